//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The ports of everyone, on 127.0.0.1.
const (
	portUpstream = 19000 + iota
	portNginx
	portHAProxy
	portReverse
	portTokenward
	portAdmin
	portMetrics
	portNginxTLS
	portTokenwardTLS
	portAdminTLS
	portMetricsTLS
	portTokenwardCluster
	portAdminCluster
	portMetricsCluster
)

// peer is one way to the upstream.
type peer struct {
	name    string
	port    int
	scheme  string
	process *process // nil for the direct line
}

func (p *peer) url(path string) string {
	return fmt.Sprintf("%s://127.0.0.1:%d%s", p.scheme, p.port, path)
}

// field is everything that runs.
type field struct {
	dir      string
	secrets  []string
	upstream *process
	peers    map[string]*peer
	started  []*process
}

// The names of the peers.
const (
	direct        = "direct"
	nginx         = "nginx"
	haproxy       = "haproxy"
	reverseProxy  = "reverseproxy"
	tokenward     = "tokenward"
	nginxTLS      = "nginx-tls"
	tokenwardTLS  = "tokenward-tls"
	tokenwardNode = "tokenward-node"
)

func startField(ctx context.Context, o options, secrets []string) (*field, error) {
	f := &field{dir: o.dir, secrets: secrets, peers: make(map[string]*peer)}
	if err := f.write(o); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	at := func(name string) string { return filepath.Join(f.dir, name) }
	f.peers[direct] = &peer{name: direct, port: portUpstream, scheme: "http"}
	for _, p := range []struct {
		name   string
		port   int
		scheme string
		args   []string
	}{
		{"upstream", portUpstream, "http", []string{"nginx", "-p", f.dir, "-c", at("upstream.conf"), "-g", "daemon off;"}},
		{nginx, portNginx, "http", []string{"nginx", "-p", f.dir, "-c", at("nginx.conf"), "-g", "daemon off;"}},
		{haproxy, portHAProxy, "http", []string{"haproxy", "-f", at("haproxy.cfg")}},
		{reverseProxy, portReverse, "http", []string{self, "reverseproxy", "-listen", local(portReverse), "-upstream", "http://" + local(portUpstream), "-keys", at("keys.txt")}},
		{tokenward, portTokenward, "http", []string{o.binary, "serve", "--config", at("tokenward.yaml")}},
	} {
		if err := f.start(ctx, p.name, p.scheme, p.port, p.args); err != nil {
			return nil, errors.Join(err, f.stop())
		}
	}
	f.upstream = f.peers["upstream"].process
	f.peers[nginxTLS] = &peer{name: nginxTLS, port: portNginxTLS, scheme: "https", process: f.peers[nginx].process}
	return f, nil
}

func (f *field) start(ctx context.Context, name, scheme string, port int, args []string) error {
	p, err := start(ctx, f.dir, name, args...)
	if err != nil {
		return err
	}
	f.started = append(f.started, p)
	f.peers[name] = &peer{name: name, port: port, scheme: scheme, process: p}
	return waitFor(ctx, p, local(port))
}

// restartTokenward runs tokenward with another configuration.
func (f *field) restartTokenward(ctx context.Context, o options, config string) error {
	return f.withTokenwardStopped(ctx, o, config, func() error { return nil })
}

// withTokenwardStopped does something to tokenward's files, and then runs it with a
// configuration.
func (f *field) withTokenwardStopped(ctx context.Context, o options, config string, do func() error) error {
	p := f.peers[tokenward].process
	if err := p.stop(); err != nil {
		return err
	}
	for i, s := range f.started {
		if s == p {
			f.started = append(f.started[:i], f.started[i+1:]...)
			break
		}
	}
	if err := do(); err != nil {
		return err
	}
	port, scheme := portTokenward, "http"
	return f.start(ctx, tokenward, scheme, port, []string{o.binary, "serve", "--config", filepath.Join(f.dir, config)})
}

func (f *field) stop() error {
	var errs []error
	for i := len(f.started) - 1; i >= 0; i-- {
		errs = append(errs, f.started[i].stop())
	}
	return errors.Join(errs...)
}

func local(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// write writes every configuration.
func (f *field) write(o options) error {
	var nginxMap, haproxyKeys, keys strings.Builder
	for _, s := range f.secrets {
		fmt.Fprintf(&nginxMap, "        %q 1;\n", "Bearer "+s)
		fmt.Fprintf(&haproxyKeys, "Bearer %s\n", s)
		fmt.Fprintln(&keys, s)
	}
	if err := writeCertificate(f.dir); err != nil {
		return err
	}
	body := strings.Repeat("x", 90)
	files := map[string]string{
		"90.txt":         body,
		"10k.txt":        strings.Repeat("0123456789abcdef", 640),
		"keys.txt":       keys.String(),
		"haproxy.keys":   haproxyKeys.String(),
		"upstream.conf":  upstreamConf(f.dir),
		"nginx.conf":     nginxConf(f.dir, nginxMap.String()),
		"haproxy.cfg":    haproxyConf(f.dir),
		"tokenward.yaml": tokenwardConf(f.dir, storePath(o), 200, portTokenward, portAdmin, portMetrics, false),
		"tls.yaml":       tokenwardConf(f.dir, storePath(o)+".tls", 200, portTokenwardTLS, portAdminTLS, portMetricsTLS, true),
		"routes1.yaml":   tokenwardConf(f.dir, storePath(o), 1, portTokenward, portAdmin, portMetrics, false),
		"routes1k.yaml":  tokenwardConf(f.dir, storePath(o), 1000, portTokenward, portAdmin, portMetrics, false),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(f.dir, "logs"), 0o700)
}

func upstreamConf(dir string) string {
	return fmt.Sprintf(`user root;
worker_processes 1;
pid %[1]s/upstream.pid;
error_log %[1]s/upstream.err warn;
events { worker_connections 16384; }
http {
    access_log off;
    keepalive_requests 100000000;
    keepalive_timeout 600s;
    sendfile on;
    default_type text/plain;
    client_body_buffer_size 64k;
    server {
        listen 127.0.0.1:%[2]d backlog=4096;
        location /accounts/10000/small { return 200 "%[3]s"; }
        location /accounts/10000/large { return 200 "%[4]s"; }
        location /accounts/10000/post { return 200 "%[3]s"; }
        location /files/ { alias %[1]s/; }
    }
}
`, dir, portUpstream, strings.Repeat("x", 90), strings.Repeat("0123456789abcdef", 240))
}

func nginxConf(dir, keys string) string {
	return fmt.Sprintf(`user root;
worker_processes 2;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx.err warn;
events { worker_connections 32768; }
worker_rlimit_nofile 65536;
http {
    access_log off;
    keepalive_requests 100000000;
    keepalive_timeout 600s;
    map_hash_max_size 65536;
    map_hash_bucket_size 128;
    map $http_authorization $allowed {
        default 0;
%[4]s    }
    upstream api { server 127.0.0.1:%[2]d; keepalive 256; keepalive_requests 100000000; }
    server {
        listen 127.0.0.1:%[3]d backlog=4096 reuseport;
        listen 127.0.0.1:%[5]d ssl backlog=4096 reuseport;
        ssl_certificate %[1]s/cert.pem;
        ssl_certificate_key %[1]s/key.pem;
        ssl_protocols TLSv1.3;
        location / {
            if ($allowed = 0) { return 401; }
            proxy_pass http://api;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_max_temp_file_size 0;
        }
    }
}
`, dir, portUpstream, portNginx, keys, portNginxTLS)
}

func haproxyConf(dir string) string {
	return fmt.Sprintf(`global
    nbthread 2
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    timeout http-keep-alive 600s
    option http-keep-alive
frontend in
    bind 127.0.0.1:%d backlog 4096
    acl known req.hdr(Authorization) -f %s/haproxy.keys
    http-request return status 401 unless known
    http-request del-header Authorization
    http-request set-header X-Forwarded-For %%[src]
    default_backend api
backend api
    http-reuse always
    server s1 127.0.0.1:%d maxconn 1024 pool-max-conn 1024
`, portHAProxy, dir, portUpstream)
}

// tokenwardConf is the default configuration with routes: everything that a
// request goes through is on.
func tokenwardConf(dir, store string, routes, port, admin, metrics int, tls bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "proxy:\n  listen: %s\n  upstream: http://%s\n", local(port), local(portUpstream))
	if tls {
		fmt.Fprintf(&b, "  tls: {cert_file: %s/cert.pem, key_file: %s/key.pem}\n", dir, dir)
	}
	fmt.Fprintf(&b, "admin:\n  listen: %s\nmetrics:\n  listen: %s\n  pprof: true\n", local(admin), local(metrics))
	fmt.Fprintf(&b, "tokenstore:\n  path: %s\naudit:\n  path: %s.audit.jsonl\nroutes:\n", store, store)
	fmt.Fprintf(&b, "  - {match: \"* /accounts/{account}/{what}\", scopes: [accounts], resources: [\"account:{account}\"]}\n")
	fmt.Fprintf(&b, "  - {match: \"GET /files/{name}\", scopes: [accounts], restricted_tokens: allow}\n")
	for i := range max(0, routes-2) {
		fmt.Fprintf(&b, "  - {match: \"GET /things%d/{account}/{id}\", scopes: [things], resources: [\"account:{account}\"]}\n", i)
	}
	return b.String()
}

func writeCertificate(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "key.pem")); err == nil {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "127.0.0.1"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	write := func(name, kind string, b []byte) error {
		return os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600)
	}
	return errors.Join(write("cert.pem", "CERTIFICATE", cert), write("key.pem", "PRIVATE KEY", der))
}

// runReverseProxy is the peer that a Go programmer would write first: the
// standard reverse proxy behind a check of the key's SHA-256.
func runReverseProxy(args []string) error {
	flags := flag.NewFlagSet("reverseproxy", flag.ExitOnError)
	listen := flags.String("listen", "", "address")
	target := flags.String("upstream", "", "URL")
	keys := flags.String("keys", "", "file of keys")
	_ = flags.Parse(args)
	u, err := url.Parse(*target)
	if err != nil {
		return err
	}
	lines, err := readLines(*keys)
	if err != nil {
		return err
	}
	known := make(map[[sha256.Size]byte]bool, len(lines))
	for _, l := range lines {
		known[sha256.Sum256([]byte(l))] = true
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost, transport.DisableCompression = 1024, 1024, true
	rp := &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(u)
		r.SetXForwarded()
		r.Out.Header.Del("Authorization")
	}}
	return http.ListenAndServe(*listen, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:gosec // a peer in a benchmark
		key, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || !known[sha256.Sum256([]byte(key))] {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		rp.ServeHTTP(w, r)
	}))
}
