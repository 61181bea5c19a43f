package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/mux"

	"tokenward/admin"
	"tokenward/audit"
	"tokenward/enforce/canon"
	"tokenward/proxy"
)

func TestReportOfALeakReachesTheStore(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	published, err := json.Marshal(map[string]any{"public_keys": []map[string]string{{"key_identifier": "k1", "key": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := defaultConfig()
	cfg.TokenStore.Path, cfg.Audit.Path = filepath.Join(dir, "tokens.db"), filepath.Join(dir, "audit.jsonl")
	cfg.Admin.Leaks.KeysFile = filepath.Join(dir, "keys.json")
	if err := os.WriteFile(cfg.Admin.Leaks.KeysFile, published, 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := openVault(t.Context(), cfg, slog.New(slog.DiscardHandler), time.Now, opening{create: true, serve: true})
	if err != nil {
		t.Fatal(err)
	}
	account := uint64(1)
	made, err := v.service.Create(t.Context(), admin.Operator(""), admin.Spec{Account: &account, Name: "leaked", Scopes: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	rules, err := canon.NewRules(cfg.adminCanonOptions())
	if err != nil {
		t.Fatal(err)
	}
	a := &app{cfg: cfg, vault: v, log: slog.New(slog.DiscardHandler)}
	g := newGate(proxy.NewGuard(nil, a.log, time.Now), rules, v, time.Now)
	if a.leaks, err = a.newLeaks(g); err != nil {
		t.Fatal(err)
	}
	body := `[{"token":"` + made.Secret.Reveal() + `","type":"tokenward","url":"https://example.com","source":"content"}]`
	sum := sha256.Sum256([]byte(body))
	signature, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodPost, "/v1/leaks", strings.NewReader(body))
	r.Header.Set("Github-Public-Key-Identifier", "k1")
	r.Header.Set("Github-Public-Key-Signature", base64.StdEncoding.EncodeToString(signature))
	rec := httptest.NewRecorder()
	a.withLeaks(mux.NewRouter()).ServeHTTP(rec, r)
	answer, _ := io.ReadAll(rec.Body)
	status, _, err := v.ask(t.Context(), made.Secret)
	if rec.Code != http.StatusOK || !strings.Contains(string(answer), "true_positive") || status != leakEnded || err != nil {
		t.Errorf("%d %s; the secret is %s, %v", rec.Code, answer, status, err)
	}
	rec = httptest.NewRecorder()
	a.withLeaks(mux.NewRouter()).ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/v1/leaks/", nil))
	if rec.Code != http.StatusNotFound {
		t.Errorf("another path is answered with %d", rec.Code)
	}
	if err := os.WriteFile(cfg.Admin.Leaks.KeysFile, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.newLeaks(g); err == nil {
		t.Error("a file without keys is accepted")
	}
	if err := v.close(); err != nil { // after which all events are in the log
		t.Fatal(err)
	}
	var last audit.Event
	for r, err := range audit.Records(cfg.Audit.Path) {
		if err != nil {
			t.Fatal(err)
		}
		last = r.Event
	}
	if by := last.Actor; by.Name != "report" || by.Token != 0 || by.Address.String() != "192.0.2.1" || by.Via != "leaks" {
		t.Errorf("it was ended by %+v", by)
	}
}
