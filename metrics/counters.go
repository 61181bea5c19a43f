package metrics

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// other is the label value of what is in no list.
const other = "other"

// Counters count events by one label whose values were fixed when it was made.
type Counters struct {
	desc   *prometheus.Desc
	values []string // the last is other
	counts []atomic.Uint64
}

func newCounters(name, help, label string, values []string) *Counters {
	values = withOther(values)
	return &Counters{desc: desc(name, help, label), values: values, counts: make([]atomic.Uint64, len(values))}
}

func withOther(values []string) []string { return append(values[:len(values):len(values)], other) }

// place returns i, or, if it is outside a list that ends in other, its end.
func place(i, n int) int {
	if uint(i) >= uint(n) {
		return n - 1
	}
	return i
}

// Add counts one event of the value at index i.
func (c *Counters) Add(i int) {
	if c != nil {
		c.counts[place(i, len(c.counts))].Add(1)
	}
}

// Describe implements [prometheus.Collector].
func (c *Counters) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements [prometheus.Collector]. All values are given from the
// start, but for other, which appears once it has been counted.
func (c *Counters) Collect(ch chan<- prometheus.Metric) {
	for i, v := range c.values {
		if n := c.counts[i].Load(); n > 0 || v != other {
			ch <- counter(c.desc, n, v)
		}
	}
}

// AdminOutcome says how a request to the admin service ended.
type AdminOutcome uint8

// The outcomes. The zero value is a failure.
const (
	AdminFailed  AdminOutcome = iota // it should have been done, and could not
	AdminRefused                     // the caller may not, or asked for what cannot be
	AdminDone
)

var adminOutcomes = [...]string{AdminFailed: "failure", AdminRefused: "refusal", AdminDone: "success"}

// Admin counts requests to the admin service.
type Admin struct {
	desc   *prometheus.Desc
	apis   []string
	verbs  []string
	counts []atomic.Uint64 // by API, verb, outcome
}

func newAdmin(apis, verbs []string) *Admin {
	a := &Admin{
		desc: desc("tokenward_admin_requests_total", "Requests to the admin service.", "api", "verb", "outcome"),
		apis: withOther(apis), verbs: withOther(verbs),
	}
	a.counts = make([]atomic.Uint64, len(a.apis)*len(a.verbs)*len(adminOutcomes))
	return a
}

// Add counts one request for the verb at index verb over the API at index api.
func (a *Admin) Add(api, verb int, o AdminOutcome) {
	if a == nil {
		return
	}
	if int(o) >= len(adminOutcomes) {
		o = AdminFailed
	}
	a.counts[(place(api, len(a.apis))*len(a.verbs)+place(verb, len(a.verbs)))*len(adminOutcomes)+int(o)].Add(1)
}

// Describe implements [prometheus.Collector].
func (a *Admin) Describe(ch chan<- *prometheus.Desc) { ch <- a.desc }

// Collect implements [prometheus.Collector]. It gives what has been counted.
func (a *Admin) Collect(ch chan<- prometheus.Metric) {
	for i := range a.counts {
		if n := a.counts[i].Load(); n > 0 {
			pair := i / len(adminOutcomes)
			ch <- counter(a.desc, n, a.apis[pair/len(a.verbs)], a.verbs[pair%len(a.verbs)], adminOutcomes[i%len(adminOutcomes)])
		}
	}
}

// Reload tells whether the running configuration is the one on disk.
type Reload struct {
	ok, at   *prometheus.Desc
	failed   atomic.Bool
	loadedAt atomic.Int64 // Unix nanoseconds
}

func newReload() *Reload {
	return &Reload{
		ok: desc("tokenward_config_last_reload_successful", "1 if the last attempt to load the configuration succeeded, else 0."),
		at: desc("tokenward_config_last_reload_success_timestamp_seconds", "When the running configuration was loaded."),
	}
}

// Succeeded notes that a configuration was loaded at now.
func (r *Reload) Succeeded(now time.Time) {
	if r != nil {
		r.loadedAt.Store(now.UnixNano())
		r.failed.Store(false)
	}
}

// Failed notes that a configuration could not be loaded; the one before stays.
func (r *Reload) Failed() {
	if r != nil {
		r.failed.Store(true)
	}
}

// Describe implements [prometheus.Collector].
func (r *Reload) Describe(ch chan<- *prometheus.Desc) { ch <- r.ok; ch <- r.at }

// Collect implements [prometheus.Collector]. As long as nothing was loaded,
// the last attempt counts as failed.
func (r *Reload) Collect(ch chan<- prometheus.Metric) {
	at := r.loadedAt.Load()
	ok := 0.0
	if at != 0 && !r.failed.Load() {
		ok = 1
	}
	ch <- gauge(r.ok, ok)
	ch <- gauge(r.at, float64(at)/1e9)
}
