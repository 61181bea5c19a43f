package metrics

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Outcome says what became of a judged request.
type Outcome uint8

// The outcomes. The zero value is a denial.
const (
	Denied   Outcome = iota
	Allowed          // forwarded
	Observed         // would have been denied, forwarded because the route is only observed
)

var outcomes = [...]string{Denied: "denied", Allowed: "allowed", Observed: "observed"}

// noRoute is the label value of requests that no route matched. A configured
// pattern always has a space in it, so none can look like it.
const noRoute = "none"

// Decisions count judged requests by route, reason and outcome, and measure
// how long the forwarded ones took.
type Decisions struct {
	count   *prometheus.Desc
	seconds *prometheus.Desc
	reasons []string // the last is other

	mu      sync.Mutex // guards current against a reload during a scrape
	current *Routes
}

func newDecisions(reasons []string) *Decisions {
	d := &Decisions{
		count: desc("tokenward_decisions_total", "Judged requests.", "route", "reason", "outcome"),
		seconds: desc("tokenward_request_duration_seconds",
			"Time from a forwarded request's first byte to its answer's last.", "route"),
		reasons: withOther(reasons),
	}
	d.current = d.routes(nil, nil)
	return d
}

// For returns the observer for a policy with these routes, given as their
// configured text; their positions are the indexes that Routes.Observe takes.
// A route that the policy before had too goes on counting where it was; the
// series of all others are gone. Observers of earlier policies stay usable for
// requests still under way: what they see on a route that was removed is not
// shown.
func (d *Decisions) For(routes []string) *Routes {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.current = d.routes(routes, d.current)
	return d.current
}

// routes makes an observer that shares what before has on the same routes.
func (d *Decisions) routes(names []string, before *Routes) *Routes {
	known := make(map[string]*routeStats)
	if before != nil {
		for _, r := range before.stats {
			known[r.name] = r
		}
	}
	rs := &Routes{reasons: len(d.reasons)}
	for _, name := range append(names[:len(names):len(names)], noRoute) {
		r := known[name]
		if r == nil {
			r = &routeStats{name: name, counts: make([]atomic.Uint64, len(d.reasons)*len(outcomes))}
			known[name] = r
		}
		rs.stats = append(rs.stats, r)
	}
	return rs
}

// Routes observe requests under one policy.
type Routes struct {
	reasons int
	stats   []*routeStats // the last is noRoute
}

// routeStats are the numbers of one route. They are plain atomics: a request
// touches three, some 20 ns in a life of 20 µs, so that cores seldom meet.
type routeStats struct {
	name   string
	counts []atomic.Uint64 // by reason, outcome
	took   latency
}

// Observe counts one judged request. route and reason are indexes into the
// lists that were given to For and New; a route of -1 is none. took is how long
// it all took; it is kept only for forwarded requests, and not if negative, as
// for connections that were upgraded.
func (rs *Routes) Observe(route, reason int, o Outcome, took time.Duration) {
	if rs == nil {
		return
	}
	if int(o) >= len(outcomes) {
		o = Denied
	}
	r := rs.stats[place(route, len(rs.stats))]
	r.counts[place(reason, rs.reasons)*len(outcomes)+int(o)].Add(1)
	if o != Denied && took >= 0 {
		r.took.observe(took)
	}
}

// Describe implements [prometheus.Collector].
func (d *Decisions) Describe(ch chan<- *prometheus.Desc) { ch <- d.count; ch <- d.seconds }

// Collect implements [prometheus.Collector]. It gives what has been counted.
func (d *Decisions) Collect(ch chan<- prometheus.Metric) {
	d.mu.Lock()
	current := d.current
	d.mu.Unlock()
	seen := make(map[*routeStats]bool, len(current.stats))
	for _, r := range current.stats {
		if seen[r] {
			continue
		}
		seen[r] = true
		for i := range r.counts {
			if n := r.counts[i].Load(); n > 0 {
				ch <- counter(d.count, n, r.name, d.reasons[i/len(outcomes)], outcomes[i%len(outcomes)])
			}
		}
		if m := r.took.metric(d.seconds, r.name); m != nil {
			ch <- m
		}
	}
}
