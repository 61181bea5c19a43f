package metrics

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func get(t *testing.T, h http.Handler, method, target string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w
}

func healthy() *Health {
	h := NewHealth("store")
	h.Set("store", Passing, "")
	return h
}

func TestMuxAnswersOnlyItsOwnPathsAndMethods(t *testing.T) {
	r := newTestRegistry()
	populate(r)
	plain := NewMux(r, healthy(), MuxOptions{})
	profiled := NewMux(r, healthy(), MuxOptions{PProf: true})
	tests := []struct {
		mux            http.Handler
		method, target string
		status         int
		body           string
	}{
		{plain, "GET", "/healthz", 200, "ok"},
		{plain, "HEAD", "/healthz", 200, ""},
		{plain, "GET", "/readyz", 200, `"ready": true`},
		{plain, "GET", "/metrics", 200, "tokenward_decisions_total{"},
		{plain, "HEAD", "/metrics", 200, ""},
		{plain, "POST", "/metrics", 405, "GET"},
		{plain, "DELETE", "/healthz", 405, "GET"},
		{plain, "OPTIONS", "/readyz", 405, "GET"},
		{plain, "GET", "/", 404, ""},
		{plain, "POST", "/", 404, ""},
		{plain, "GET", "/metrics/", 404, ""},
		{plain, "GET", "//metrics", 404, ""},
		{plain, "GET", "/x/../metrics", 404, ""},
		{plain, "GET", "/debug/pprof/", 404, ""},
		{plain, "GET", "/debug/pprof/heap", 404, ""},
		{plain, "GET", "/debug/vars", 404, ""},
		{profiled, "GET", "/debug/pprof/", 200, "goroutine"},
		{profiled, "GET", "/debug/pprof/heap", 200, ""},
		{profiled, "GET", "/debug/pprof/goroutine?debug=1", 200, "goroutine profile"},
		{profiled, "GET", "/debug/pprof/goroutine?debug=9", 200, ""},
		{profiled, "GET", "/debug/pprof/nothing", 404, ""},
		{profiled, "GET", "/debug/pprof", 404, ""},
		{profiled, "GET", "/debug/pprof/cmdline", 404, ""},
		{profiled, "GET", "/debug/pprof/profile?seconds=61", 400, "1 to 60"},
		{profiled, "GET", "/debug/pprof/profile?seconds=0", 400, "1 to 60"},
		{profiled, "GET", "/debug/pprof/trace?seconds=9999999999999", 400, "1 to 60"},
		{profiled, "POST", "/debug/pprof/profile", 405, ""},
	}
	for _, tt := range tests {
		w := get(t, tt.mux, tt.method, tt.target)
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.body) {
			t.Errorf("%s %s: %d %.100q, want %d with %q", tt.method, tt.target, w.Code, w.Body, tt.status, tt.body)
		}
		for name, want := range map[string]string{
			"X-Content-Type-Options":       "nosniff",
			"Cache-Control":                "no-store",
			"Content-Security-Policy":      "default-src 'none'; frame-ancestors 'none'",
			"Referrer-Policy":              "no-referrer",
			"Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s %s: %s is %q, want %q", tt.method, tt.target, name, got, want)
			}
		}
		if tt.status == 405 && w.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s %s: Allow is %q", tt.method, tt.target, w.Header().Get("Allow"))
		}
	}
}

func TestDefaultServeMuxHasNoProfiles(t *testing.T) {
	_, pattern := http.DefaultServeMux.Handler(httptest.NewRequest("GET", "/debug/pprof/", nil)) //nolint:forbidigo // to see it empty
	if pattern != "" {
		t.Errorf("http.DefaultServeMux serves %q", pattern)
	}
}

func TestMetricsAreServedAsOpenMetricsOnDemand(t *testing.T) {
	r := newTestRegistry()
	populate(r)
	req := httptest.NewRequest("GET", "/metrics", nil)
	req.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	w := httptest.NewRecorder()
	NewMux(r, healthy(), MuxOptions{}).ServeHTTP(w, req)
	if !strings.HasPrefix(w.Header().Get("Content-Type"), "application/openmetrics-text") ||
		!strings.HasSuffix(w.Body.String(), "# EOF\n") {
		t.Errorf("%s …%.60q", w.Header().Get("Content-Type"), w.Body.String()[max(0, w.Body.Len()-60):])
	}
	for _, want := range []string{
		`tokenward_request_duration_seconds_bucket{route="GET /accounts/{account}",le="0.00390625"} 1`,
		`tokenward_config_last_reload_successful 1`,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s", want)
		}
	}
}

func TestReadinessFailsClosed(t *testing.T) {
	tests := []struct {
		name   string
		health func() *Health
		ready  bool
		detail string
	}{
		{"zero value", func() *Health { return new(Health) }, false, ""},
		{"nothing required", func() *Health { return NewHealth() }, false, ""},
		{"nothing required, something set", func() *Health { h := NewHealth(); h.Set("x", Passing, ""); return h }, false, ""},
		{"never set", func() *Health { return NewHealth("store") }, false, "not checked yet"},
		{"one of two set", func() *Health { h := NewHealth("store", "config"); h.Set("store", Passing, ""); return h }, false, "not checked yet"},
		{"all set", healthy, true, ""},
		{"set unknown", func() *Health { h := healthy(); h.Set("store", Unknown, ""); return h }, false, "unknown"},
		{"state that is none", func() *Health { h := healthy(); h.Set("store", 77, ""); return h }, false, "unknown"},
		{"failing", func() *Health { h := healthy(); h.Set("store", Failing, "disk full"); return h }, false, "disk full"},
		{"recovered", func() *Health {
			h := healthy()
			h.Set("store", Failing, "")
			h.Set("store", Passing, "")
			return h
		}, true, ""},
		{"warning", func() *Health { h := healthy(); h.Set("config", Warning, "last reload failed"); return h }, true, "last reload failed"},
		{"one more failing", func() *Health { h := healthy(); h.Set("clock", Failing, "off by 6m"); return h }, false, "off by 6m"},
		{"watched and failing", func() *Health {
			h := healthy()
			h.Watch("replica", func() (State, string) { return Failing, "16m old" })
			return h
		}, false, "16m old"},
		{"watched and passing", func() *Health {
			h := NewHealth("replica")
			h.Watch("replica", func() (State, string) { return Passing, "1s old" })
			return h
		}, true, "1s old"},
		{"zero value, all passing", func() *Health { h := new(Health); h.Set("store", Passing, ""); return h }, false, ""},
		{"draining", func() *Health { h := healthy(); h.Drain(); return h }, false, "stopping"},
		{"draining, then set again", func() *Health { h := healthy(); h.Drain(); h.Set("draining", Passing, ""); return h }, false, "stopping"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := tt.health()
			w := get(t, NewMux(newTestRegistry(), h, MuxOptions{}), "GET", "/readyz")
			want := http.StatusServiceUnavailable
			if tt.ready {
				want = http.StatusOK
			}
			if w.Code != want || !strings.Contains(w.Body.String(), tt.detail) {
				t.Errorf("%d %s, want %d with %q", w.Code, w.Body, want, tt.detail)
			}
			var body struct {
				Ready  bool
				Checks []struct{ Name, State, Detail string }
			}
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Ready != tt.ready {
				t.Errorf("body %s: %v", w.Body, err)
			}
			if alive := get(t, NewMux(newTestRegistry(), h, MuxOptions{}), "GET", "/healthz"); alive.Code != 200 {
				t.Errorf("/healthz: %d", alive.Code)
			}
		})
	}
}

func TestOnlyOneProfileOverTimeIsTaken(t *testing.T) {
	m := NewMux(newTestRegistry(), healthy(), MuxOptions{PProf: true}).(*mux)
	m.profiling <- struct{}{} // somebody else's
	if w := get(t, m, "GET", "/debug/pprof/trace?seconds=60"); w.Code != http.StatusConflict {
		t.Errorf("beside another: %d", w.Code)
	}
	<-m.profiling
	gone, leave := context.WithCancel(t.Context())
	leave()
	for _, path := range []string{"/debug/pprof/trace?seconds=60", "/debug/pprof/trace"} {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequestWithContext(gone, "GET", path, nil))
		if w.Code != http.StatusOK || w.Body.Len() == 0 {
			t.Errorf("%s by itself: %d, %d bytes", path, w.Code, w.Body.Len())
		}
	}
}
