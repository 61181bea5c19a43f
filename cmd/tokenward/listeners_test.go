package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tokenward/tokenstore"
)

func TestAddressThatCannotBeListenedOnSaysWhatToDo(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	for _, test := range []struct{ address, fix string }{
		{taken.Addr().String(), "The port is taken"},
		{"192.0.2.1:0", "This machine does not have the address"}, // RFC 5737: nobody's
	} {
		if _, err := listen(t.Context(), "proxy.listen", test.address); err == nil || !strings.Contains(err.Error(), test.fix) {
			t.Errorf("%s: %v, want %q", test.address, err, test.fix)
		}
	}
	refused := &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EACCES)}
	if fix := listenFix(refused); !strings.Contains(fix, "CAP_NET_BIND_SERVICE") {
		t.Errorf("a port below 1024: %q", fix)
	}
}

// TestTransportKeysAreObeyed starts the program with TLS behind PROXY protocol and
// two upstreams, of which the first is down, and looks at it from outside.
func TestTransportKeysAreObeyed(t *testing.T) {
	dir := t.TempDir()
	pool := issueCertificate(t, dir)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header.Get("X-Forwarded-For"), " ", r.Header.Get("X-Forwarded-Proto"))
	}))
	t.Cleanup(api.Close)
	down, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = down.Close()
	t.Setenv("TOKENWARD_BOOTSTRAP_TOKEN", tokenstore.NewSecret("tw").Reveal())
	cfg := mustParse(t, fmt.Sprintf(`proxy:
  listen: 127.0.0.1:0
  upstream: [http://%[1]s, %[2]s]
  proxy_protocol_from: [127.0.0.1]
  tls: {cert_file: %[3]s/cert.pem, key_file: %[3]s/key.pem}
  limits: {body_bytes: 10}
admin: {listen: "127.0.0.1:0"}
metrics: {listen: "127.0.0.1:0"}
tokenstore: {path: %[3]s/t.db}
audit: {path: %[3]s/audit.jsonl}
routes:
  - match: "* /open"
    public: true
    cors: {origins: [https://app.example]}
`, down.Addr(), api.URL, dir))
	ctx, cancel := context.WithCancel(t.Context())
	a, err := newApp(ctx, cfg, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- a.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	ask := func(header, raw string) (int, string, http.Header) {
		nc, err := net.Dial("tcp", a.proxyListener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprint(nc, header)
		tc := tls.Client(nc, &tls.Config{RootCAs: pool, ServerName: "api.example", MinVersion: tls.VersionTLS12})
		fmt.Fprint(tc, raw)
		resp, err := http.ReadResponse(bufio.NewReader(tc), nil)
		if err != nil {
			return 0, err.Error(), nil
		}
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body), resp.Header
	}
	const from = "PROXY TCP4 198.51.100.7 192.0.2.1 1 2\r\n"
	const get = " /open HTTP/1.1\r\nHost: a\r\n"
	if status, body, _ := ask(from, "GET"+get+"\r\n"); status != 200 || body != "198.51.100.7 https" {
		t.Errorf("%d %q", status, body)
	}
	if status, body, _ := ask("", "GET"+get+"\r\n"); status != 0 {
		t.Errorf("without a PROXY header: %d %q", status, body)
	}
	if status, body, _ := ask(from, "POST"+get+"Content-Length: 11\r\n\r\n12345678901"); status != 413 {
		t.Errorf("large body: %d %q", status, body)
	}
	if status, _, h := ask(from, "OPTIONS"+get+"Origin: https://app.example\r\nAccess-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: api-token\r\n\r\n"); status != 204 || h.Get("Access-Control-Allow-Methods") != "PUT" {
		t.Errorf("preflight: %d %v", status, h)
	}
	resp, err := http.Get("http://" + a.metricsListener.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	metrics, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		fmt.Sprintf("tokenward_upstream_up{upstream=%q} 1", api.URL), fmt.Sprintf("tokenward_upstream_up{upstream=%q} 1", "http://"+down.Addr().String()),
		`tokenward_upstream_failures_total{kind="failed_over"} 1`, `tokenward_protocol_refusals_total{code="proxy_protocol"} 1`, `tokenward_protocol_refusals_total{code="content_too_large"} 1`,
	} {
		if !strings.Contains(string(metrics), line+"\n") {
			t.Errorf("the metrics lack %s", line)
		}
	}
}

// issueCertificate writes cert.pem and key.pem for api.example.
func issueCertificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"api.example"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return pool
}
