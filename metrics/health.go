package metrics

import (
	"maps"
	"slices"
	"sync"
)

// State is what a check found. The zero value is not known, which is not ready.
type State uint8

// The states of a check.
const (
	Unknown State = iota // never set
	Failing              // not fit to serve
	Warning              // fit to serve, and somebody should look
	Passing
)

var stateNames = [...]string{Unknown: "unknown", Failing: "failing", Warning: "warning", Passing: "passing"}

// String returns the state's name.
func (s State) String() string {
	if int(s) >= len(stateNames) {
		return stateNames[Unknown]
	}
	return stateNames[s]
}

// Ready reports whether a program with a check in this state may serve.
func (s State) Ready() bool { return s == Warning || s == Passing }

// MarshalText returns the state's name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Check is one thing that must be right for the program to serve.
type Check struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	Detail string `json:"detail,omitempty"` // for operators; must hold no secret
}

// Health is what is known of the program's fitness. The zero value, like any
// in which a required check was never set, is not ready. Its methods may be
// called from many goroutines.
type Health struct {
	mu       sync.Mutex // guards all below
	required bool       // whether there was anything to require
	checks   map[string]Check
	live     map[string]func() (State, string)
	draining bool
}

// NewHealth returns a Health that is not ready before each of the required
// checks is.
func NewHealth(required ...string) *Health {
	h := &Health{required: len(required) > 0, checks: make(map[string]Check)}
	for _, name := range required {
		h.checks[name] = Check{Name: name, Detail: "not checked yet"}
	}
	return h
}

// Set notes the outcome of a check, required or not. Names come from the
// program, never from a client.
func (h *Health) Set(name string, s State, detail string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.checks == nil {
		h.checks = make(map[string]Check)
	}
	h.checks[name] = Check{Name: name, State: s, Detail: detail}
}

// Watch makes f the check of that name: it is asked whenever somebody wants to
// know, and must be quick.
func (h *Health) Watch(name string, f func() (State, string)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.live == nil {
		h.live = make(map[string]func() (State, string))
	}
	h.live[name] = f
}

// Drain makes the program not ready for good: it is about to stop.
func (h *Health) Drain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
}

// Ready reports whether the program may serve, and each check, by name.
func (h *Health) Ready() (bool, []Check) {
	h.mu.Lock()
	all := maps.Clone(h.checks)
	live := maps.Clone(h.live)
	ready := h.required && !h.draining
	draining := h.draining
	h.mu.Unlock()
	if all == nil {
		all = make(map[string]Check)
	}
	for name, f := range live {
		s, detail := f()
		all[name] = Check{Name: name, State: s, Detail: detail}
	}
	if draining {
		all["draining"] = Check{Name: "draining", State: Failing, Detail: "the program is stopping"}
	}
	checks := make([]Check, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		c := all[name]
		ready = ready && c.State.Ready()
		checks = append(checks, c)
	}
	return ready, checks
}
