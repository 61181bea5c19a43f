package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"tokenward/tokenstore/etcdstore/etcdtest"
)

// TestRevokedTokensStreamEndsAndIsAudited goes the whole way: a stream through the
// proxy, a revocation by the admin API, the end of the stream, its metric and event.
func TestRevokedTokensStreamEndsAndIsAudited(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "data: 1\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	t.Cleanup(upstream.Close)
	s := startApp(t, "routes:\n  - {match: GET /stream, restricted_tokens: allow, upstream: '"+upstream.URL+"'}\n")
	admin := "http://" + s.adminListener.Addr().String()

	var made struct {
		ID     uint64 `json:"id"`
		Secret string `json:"token"`
	}
	if err := json.Unmarshal([]byte(send(t, "POST", admin+"/v1/tokens", s.root, `{"name":"stream"}`)), &made); err != nil || made.Secret == "" {
		t.Fatalf("%+v, %v", made, err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.proxy+"/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+made.Secret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	defer resp.Body.Close()
	wantMetrics(t, s, `tokenward_requests_in_flight{listener="proxy"} 1`, `tokenward_connections{listener="proxy"} 1`, `tokenward_requests_in_flight{listener="admin"} 0`, `tokenward_connections{listener="admin"} 1`)
	send(t, "DELETE", fmt.Sprintf("%s/v1/tokens/%d", admin, made.ID), s.root, "")
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the stream looks whole")
	}

	want := fmt.Sprintf(`"verb":"cut","outcome":"success","reason":"revoked_token: 1 exchanges","target":{"token":%d,`, made.ID)
	deadline := time.Now().Add(time.Minute)
	for {
		log, err := os.ReadFile(s.cfg.Audit.Path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(log), want) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the audit log does not have %s:\n%s", want, log)
		}
		time.Sleep(10 * time.Millisecond) //nolint:forbidigo // the audit log is a file: nobody tells when it grows
	}
	wantMetrics(t, s, `tokenward_streams_cut_total{reason="revoked_token"} 1`)
}

// wantMetrics waits until the metrics have each of the lines: what a request did is counted
// when it is over, which its client may know before.
func wantMetrics(t *testing.T, s *started, lines ...string) {
	t.Helper()
	etcdtest.WaitFor(t, "the metrics to tell of it", func(context.Context) error {
		scrape := send(t, "GET", "http://"+s.metricsListener.Addr().String()+"/metrics", "", "")
		for _, line := range lines {
			if !strings.Contains(scrape, "\n"+line+"\n") {
				return fmt.Errorf("no %s", line)
			}
		}
		return nil
	})
}

// TestStreamEndsWhoseRevocationWasMissed: all that is known is that something was.
func TestStreamEndsWhoseRevocationWasMissed(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "data: 1\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	t.Cleanup(upstream.Close)
	s := startApp(t, "routes:\n  - {match: GET /stream, restricted_tokens: allow, upstream: '"+upstream.URL+"'}\n")
	admin := "http://" + s.adminListener.Addr().String()
	var made struct {
		Secret string `json:"token"`
	}
	if err := json.Unmarshal([]byte(send(t, "POST", admin+"/v1/tokens", s.root, `{"name":"stream"}`)), &made); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.proxy+"/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+made.Secret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	defer resp.Body.Close()
	s.vault.told.Store(nil)
	send(t, "DELETE", admin+"/v1/tokens/2", s.root, "")
	s.vault.missed()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the stream looks whole")
	}
}

// send asks and returns the body of an answer that must be a success.
func send(t *testing.T, method, url, secret, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %d %s, %v", method, url, resp.StatusCode, b, err)
	}
	return string(b)
}

// stuckWriter is a client that takes nothing of its answer, until it is cut.
type stuckWriter struct {
	header  http.Header
	writing chan struct{}
	cut     chan struct{}
	once    sync.Once
}

func (w *stuckWriter) Header() http.Header             { return w.header }
func (w *stuckWriter) WriteHeader(int)                 {}
func (w *stuckWriter) SetReadDeadline(time.Time) error { return nil }
func (w *stuckWriter) SetWriteDeadline(time.Time) error {
	w.once.Do(func() { close(w.cut) })
	return nil
}

func (w *stuckWriter) Write([]byte) (int, error) {
	close(w.writing)
	<-w.cut
	return 0, os.ErrDeadlineExceeded
}

// TestRevokedTokenReadsNoListToItsEnd: what a token API answers can take as long as any
// download, and a backup has everything in it.
func TestRevokedTokenReadsNoListToItsEnd(t *testing.T) {
	t.Parallel()
	s := startApp(t, "")
	admin := "http://" + s.adminListener.Addr().String()
	handler := s.adminHandler(newGate(s.guard, s.guard.Rules().Canon, s.vault, s.now))
	for _, path := range []string{"/v1/tokens", "/v1/report", "/v1/backup", "/users/1/api-tokens", "/api/api_tokens", "/user/api-tokens"} {
		for change, reason := range map[string]string{`{"state":"revoked"}`: "revoked_token", `{"scopes":["a"]}`: "scope_missing", `{"sources":{"allow":["203.0.113.1"]}}`: "source_not_allowed"} {
			var made struct {
				ID     uint64 `json:"id"`
				Secret string `json:"token"`
			}
			if err := json.Unmarshal([]byte(send(t, "POST", admin+"/v1/tokens", s.root, `{"name":"reader","account":0}`)), &made); err != nil {
				t.Fatal(err)
			}
			w := &stuckWriter{header: http.Header{}, writing: make(chan struct{}), cut: make(chan struct{})}
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
			r.Header.Set("Authorization", "Bearer "+made.Secret)
			ended := make(chan any, 1)
			go func() {
				defer func() { ended <- recover() }()
				handler.ServeHTTP(w, r)
			}()
			<-w.writing
			if reason == "revoked_token" {
				send(t, "DELETE", fmt.Sprintf("%s/v1/tokens/%d", admin, made.ID), s.root, "")
			} else {
				send(t, "PATCH", fmt.Sprintf("%s/v1/tokens/%d", admin, made.ID), s.root, change)
			}
			if got := <-ended; got != http.ErrAbortHandler { //nolint:errorlint // the value itself is the sign
				t.Errorf("%s ended with %v", path, got)
			}
		}
	}
	// They are counted once they are cut, which the last was a moment ago.
	wantMetrics(t, s, `tokenward_streams_cut_total{reason="revoked_token"} 6`, `tokenward_streams_cut_total{reason="scope_missing"} 6`, `tokenward_streams_cut_total{reason="source_not_allowed"} 6`)
}
