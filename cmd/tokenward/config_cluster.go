package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/etcdstore"
)

// EtcdConfig has the tokens kept in etcd, for many nodes. Without endpoints the
// store is a file of this node alone.
type EtcdConfig struct {
	// Endpoints are URLs of members, http or https, all of one kind.
	Endpoints []string `yaml:"endpoints" reload:"no"`
	// Prefix begins all keys. Several clusters can share one etcd by it.
	Prefix string `yaml:"prefix" reload:"no"`
	// Node names this node in the cluster and in the audit log; "": the host's name.
	Node string `yaml:"node" reload:"no"`
	// Mirror is full, a copy of all tokens at tokenstore.path, or on_demand,
	// without a file: a token that is not in memory is read from etcd.
	Mirror string `yaml:"mirror" reload:"no"`
	// MaxStaleness is how long the node goes on without proof that it missed
	// nothing; then OnStale says: deny, or serve.
	MaxStaleness time.Duration `yaml:"max_staleness" reload:"no"`
	OnStale      string        `yaml:"on_stale" reload:"no"`
	Username     string        `yaml:"username" reload:"no"`
	PasswordFile string        `yaml:"password_file" reload:"no"`
	// TLS is for https endpoints.
	TLS EtcdTLSConfig `yaml:"tls"`
}

// EtcdTLSConfig says how https endpoints are connected to.
type EtcdTLSConfig struct {
	CAFile     string `yaml:"ca_file" reload:"no"`     // PEM; "": the system's authorities
	CertFile   string `yaml:"cert_file" reload:"no"`   // PEM, with KeyFile: what this node shows of itself
	KeyFile    string `yaml:"key_file" reload:"no"`    // PEM
	ServerName string `yaml:"server_name" reload:"no"` // in the members' certificates; "": the endpoint's host
}

func defaultEtcd() EtcdConfig {
	return EtcdConfig{Endpoints: []string{}, Prefix: etcdstore.DefaultPrefix, Mirror: "full",
		MaxStaleness: etcdstore.DefaultMaxStaleness, OnStale: "deny"}
}

// Enabled reports whether the tokens are kept in etcd.
func (c *EtcdConfig) Enabled() bool { return len(c.Endpoints) > 0 }

func (d *decoder) checkEtcd(c *Config) {
	const path = "tokenstore.etcd"
	e := &c.TokenStore.Etcd
	d.choice(path+".mirror", e.Mirror)
	d.choice(path+".on_stale", e.OnStale)
	d.duration(path+".max_staleness", e.MaxStaleness, 10*time.Second, 7*24*time.Hour, false)
	if d.sound(path+".prefix") && (!strings.HasPrefix(e.Prefix, "/") || !strings.HasSuffix(e.Prefix, "/") || len(e.Prefix) < 3 || len(e.Prefix) > 128 || !plain(e.Prefix)) {
		d.report(path+".prefix", ruleName, quote(e.Prefix)+" cannot begin the keys", "begin and end it with a slash, such as /tokenward/")
	}
	if d.sound(path+".node") && e.Node != "" && !etcdstore.ValidNode(e.Node) {
		d.report(path+".node", ruleName, quote(e.Node)+" cannot name a node", "use 1 to 63 letters, digits, dots, hyphens and underscores, the first a letter or digit")
	}
	secured := 0
	for i, endpoint := range e.Endpoints {
		at := itemPath(path+".endpoints", i)
		if !d.sound(at) {
			continue
		}
		u, err := url.Parse(endpoint)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			d.report(at, ruleUpstream, quote(endpoint)+" is not the URL of an etcd member", "write it like https://etcd-0.example:2379")
			continue
		}
		if u.Scheme == "https" {
			secured++
		} else if host := u.Hostname(); e.Username != "" && !loopbackHost(host) {
			d.report(at, ruleExposed, "the password would cross the network in clear", "use https")
		}
		if slices.Contains(e.Endpoints[:i], endpoint) {
			d.report(at, ruleTwice, quote(endpoint)+" is listed twice", "remove one of the two")
		}
	}
	if d.sound(path+".endpoints") && secured != 0 && secured != len(e.Endpoints) {
		d.report(path+".endpoints", ruleHalfTLS, "some members are asked by https and some by http", "use https for all of them")
	}
	d.checkEtcdFiles(e, secured)
}

func (d *decoder) checkEtcdFiles(e *EtcdConfig, secured int) {
	const path = "tokenstore.etcd"
	t := e.TLS
	for key, file := range map[string]string{".tls.ca_file": t.CAFile, ".tls.cert_file": t.CertFile, ".tls.key_file": t.KeyFile, ".password_file": e.PasswordFile} {
		d.checkFileReference(path+key, file)
	}
	if d.sound(path+".tls") && (t.CertFile == "") != (t.KeyFile == "") {
		d.report(path+".tls", ruleHalfTLS, "a certificate and its key go together", "set both cert_file and key_file, or neither")
	}
	if d.sound(path+".tls", path+".endpoints") && t != (EtcdTLSConfig{}) && secured == 0 {
		d.report(path+".tls", ruleHalfTLS, "no endpoint is reached by https", "write https:// in the endpoints, or remove tls")
	}
	if d.sound(path+".username", path+".password_file") && (e.Username == "") != (e.PasswordFile == "") {
		d.report(path+".username", ruleMissing, "a user name and its password go together", "set both username and password_file, or neither")
	}
}

func loopbackHost(host string) bool {
	return host == "localhost" || loopback(net.JoinHostPort(host, "1"))
}

// plain reports whether s is printable ASCII without spaces.
func plain(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// nodeName is what this node calls itself.
func (c *EtcdConfig) nodeName() (string, error) {
	if c.Node != "" {
		return c.Node, nil
	}
	name, err := os.Hostname()
	if err != nil || !etcdstore.ValidNode(name) {
		return "", fmt.Errorf("the host's name %q cannot name a node of the cluster: set tokenstore.etcd.node", name)
	}
	return name, nil
}

// clusterOptions reads the files that the section names.
func (c *EtcdConfig) clusterOptions(peppers *tokenstore.Peppers, now func() time.Time, log *slog.Logger) (etcdstore.Options, error) {
	o := etcdstore.Options{
		Endpoints: c.Endpoints, Prefix: c.Prefix, Username: c.Username, Version: readBuildInfo().Version, Peppers: peppers,
		MaxStaleness: c.MaxStaleness, ServeStale: c.OnStale == "serve", Now: now, Logger: log,
	}
	var err error
	if o.Node, err = c.nodeName(); err != nil {
		return o, err
	}
	if c.PasswordFile != "" {
		b, err := os.ReadFile(c.PasswordFile)
		if err != nil {
			return o, fmt.Errorf("tokenstore.etcd.password_file: %w", err)
		}
		o.Password = strings.TrimRight(string(b), "\r\n")
	}
	if strings.HasPrefix(c.Endpoints[0], "https:") {
		if o.TLS, err = c.TLS.client(); err != nil {
			return o, fmt.Errorf("tokenstore.etcd.tls: %w", err)
		}
	}
	return o, nil
}

// client reads the files. The node's own certificate is read again for each
// connection, so that it can be renewed under a running server.
func (t *EtcdTLSConfig) client() (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, err
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate: write PEM", t.CAFile)
		}
	}
	if t.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile); err != nil {
			return nil, err
		}
		out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			return &pair, err
		}
	}
	return out, nil
}
