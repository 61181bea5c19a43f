package metrics

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"runtime/pprof"
	"runtime/trace"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// MuxOptions of a NewMux. The zero value is usable.
type MuxOptions struct {
	// PProf also serves /debug/pprof/. A profile shows how the program spends
	// its time and memory, and costs some of both.
	PProf bool
	// Keys is served at /.well-known/jwks.json, asked anew each time; nil: nothing is.
	Keys func() []byte
	// Log is told of scrapes that fail; nil: nobody is.
	Log *slog.Logger
}

// NewMux returns the handler of the metrics listener:
//
//	/metrics       the registry, as text, OpenMetrics or protobuf
//	/healthz       200 as long as the process answers
//	/readyz        200 if h is ready, else 503; in both cases every check as JSON
//	/debug/pprof/  profiles, if asked for
//	/.well-known/jwks.json  the keys that identities are signed with, if there are any
//
// All else is 404, and every method but GET and HEAD 405.
func NewMux(r *Registry, h *Health, o MuxOptions) http.Handler {
	opts := promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: 4}
	if o.Log != nil {
		opts.ErrorLog = slog.NewLogLogger(o.Log.Handler(), slog.LevelError)
	}
	return &mux{metrics: promhttp.HandlerFor(r.prom, opts), health: h, keys: o.Keys, pprof: o.PProf, profiling: make(chan struct{}, 1)}
}

// mux compares paths as a whole: nothing is cleaned, redirected or inherited.
type mux struct {
	metrics   http.Handler
	health    *Health
	keys      func() []byte
	pprof     bool
	profiling chan struct{} // holds a value while a profile over time is taken
}

func (m *mux) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Content-Type-Options", "nosniff")
	serve := m.route(r.URL.Path)
	switch {
	case serve == nil:
		http.Error(w, "not found", http.StatusNotFound)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
	default:
		serve(w, r)
	}
}

func (m *mux) jwks(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/jwk-set+json")
	_, _ = w.Write(m.keys())
}

func (m *mux) route(path string) http.HandlerFunc {
	switch path {
	case "/metrics":
		return m.metrics.ServeHTTP
	case "/healthz":
		return m.alive
	case "/readyz":
		return m.ready
	case "/.well-known/jwks.json":
		if m.keys == nil {
			return nil
		}
		return m.jwks
	}
	profile, ok := strings.CutPrefix(path, "/debug/pprof/")
	switch {
	case !ok || !m.pprof:
		return nil
	case profile == "":
		return listProfiles
	case profile == "profile":
		return m.cpuProfile
	case profile == "trace":
		return m.trace
	}
	if p := pprof.Lookup(profile); p != nil {
		return func(w http.ResponseWriter, r *http.Request) { writeProfile(w, r, p) }
	}
	return nil
}

func (m *mux) alive(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "ok\n") // if this fails, the client is gone; so below
}

func (m *mux) ready(w http.ResponseWriter, _ *http.Request) {
	ready, checks := m.health.Ready()
	body, err := json.MarshalIndent(struct {
		Ready  bool    `json:"ready"`
		Checks []Check `json:"checks"`
	}{ready, checks}, "", "  ")
	status := http.StatusOK
	if !ready || err != nil {
		status = http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

// Package runtime/pprof is used directly: importing net/http/pprof would put
// handlers on http.DefaultServeMux.

func listProfiles(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	names := []string{"profile", "trace"}
	for _, p := range pprof.Profiles() {
		names = append(names, p.Name())
	}
	_, _ = io.WriteString(w, strings.Join(names, "\n")+"\n")
}

// writeProfile writes a profile of this moment, as text if ?debug=1 or 2 asks for it.
func writeProfile(w http.ResponseWriter, r *http.Request, p *pprof.Profile) {
	debug, err := strconv.Atoi(r.URL.Query().Get("debug"))
	if err != nil || debug < 0 || debug > 2 {
		debug = 0
	}
	contentType := "application/octet-stream"
	if debug > 0 {
		contentType = "text/plain; charset=utf-8"
	}
	w.Header().Set("Content-Type", contentType)
	_ = p.WriteTo(w, debug)
}

func (m *mux) cpuProfile(w http.ResponseWriter, r *http.Request) {
	m.during(w, r, pprof.StartCPUProfile, pprof.StopCPUProfile)
}

func (m *mux) trace(w http.ResponseWriter, r *http.Request) {
	m.during(w, r, trace.Start, trace.Stop)
}

// maxProfile is the longest that a profile over time may take.
const maxProfile = 60 * time.Second

// during records for ?seconds=, from 1 to 60 and 10 when absent, or until the client leaves.
func (m *mux) during(w http.ResponseWriter, r *http.Request, start func(io.Writer) error, stop func()) {
	length := 10 * time.Second
	if s := r.URL.Query().Get("seconds"); s != "" {
		n, err := strconv.Atoi(s)
		length = time.Duration(n) * time.Second
		if err != nil || n < 1 || length > maxProfile {
			http.Error(w, "seconds is a whole number from 1 to 60", http.StatusBadRequest)
			return
		}
	}
	select {
	case m.profiling <- struct{}{}:
		defer func() { <-m.profiling }()
	default:
		http.Error(w, "a profile is being taken already; try again later", http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := start(w); err != nil {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	defer stop()
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	}
}
