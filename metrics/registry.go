// Package metrics counts what the program does, for Prometheus, and says
// whether it is fit to serve.
//
// A [Registry] holds every family of metrics, with names and labels fixed
// here. Others are handed its small observers ([Decisions], [Counters],
// [Admin], …), whose methods take numbers only, so that no other package
// imports Prometheus; what others already count is fetched through funcs when
// it is scraped. No label has a value that a client can choose.
//
// There is no global state: two registries live side by side in one process.
package metrics

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Options are the words that label values are taken from. Position is
// identity: the observers take an index into these lists. An index outside
// its list is counted under "other".
type Options struct {
	Version  string // of the program
	Revision string // of its source

	Reasons  []string // why a decision fell as it did; index 0 is the reason that is none
	Refusals []string // codes of requests refused as HTTP, before any decision
	Upstream []string // kinds of failure of an upstream
	APIs     []string // token APIs and other faces of the admin service
	Verbs    []string // of the admin service
}

// Registry holds the metrics of one program. Its observers may be used from
// many goroutines; a nil observer counts nothing.
type Registry struct {
	Decisions *Decisions // by route, reason, outcome; and how long requests took
	Refusals  *Counters  // by Options.Refusals
	Upstream  *Counters  // by Options.Upstream
	Cut       *Counters  // exchanges, by Options.Reasons
	Admin     *Admin     // by API, verb, outcome
	Reload    *Reload

	prom *prometheus.Registry
}

// New makes a registry with all families but those that Watch… methods add.
func New(o Options) *Registry {
	r := &Registry{
		Decisions: newDecisions(o.Reasons),
		Refusals: newCounters("tokenward_protocol_refusals_total",
			"Requests refused as HTTP, before any decision.", "code", o.Refusals),
		Upstream: newCounters("tokenward_upstream_failures_total",
			"Requests that an upstream refused, broke or did not answer in time.", "kind", o.Upstream),
		Cut: newCounters("tokenward_streams_cut_total",
			"Exchanges cut because their token no longer allowed them, by the reason that a request would be refused for.", "reason", o.Reasons),
		Admin:  newAdmin(o.APIs, o.Verbs),
		Reload: newReload(),
		prom:   prometheus.NewRegistry(),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "tokenward_build_info",
		Help:        "Always 1; its labels say what is running.",
		ConstLabels: prometheus.Labels{"version": o.Version, "revision": o.Revision, "goversion": runtime.Version()},
	})
	build.Set(1)
	r.prom.MustRegister(r.Decisions, r.Refusals, r.Upstream, r.Cut, r.Admin, r.Reload, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// StoreStats are what a token store tells of itself.
type StoreStats struct {
	Active, Disabled, Revoked int           // tokens by stored state
	Outbox                    int           // audit events that wait for the log
	FileBytes                 int64         // size of its file
	Commits                   uint64        // transactions committed since start
	Changes                   uint64        // changes in them; by Commits, the mean batch
	Staleness                 time.Duration // age of what requests are judged by; 0 on a single node; negative: not known
}

// WatchStore adds the store's metrics. f is called at each scrape, from any
// goroutine, and must be quick. A second call panics.
func (r *Registry) WatchStore(f func() StoreStats) { r.prom.MustRegister(newStoreCollector(f)) }

// CacheStats are what the token cache tells of itself.
type CacheStats struct {
	Entries   int
	Hits      uint64
	Misses    uint64
	Evictions uint64
	Outdated  uint64 // lookups that found an entry from before a change
}

// WatchCache adds the token cache's metrics, as [Registry.WatchStore] does.
func (r *Registry) WatchCache(f func() CacheStats) { r.prom.MustRegister(newCacheCollector(f)) }

// AuditStats are what the audit log tells of itself.
type AuditStats struct {
	Events    uint64 // appended since start
	FileBytes int64  // size of the current file
	Line      uint64 // number of the last line
	Faulty    bool   // the last attempt to write it failed
	Head      string // the last signed head as text; empty when there is none

	Denials DenialStats
}

// DenialStats count denied requests by what the audit log tells of them.
type DenialStats struct {
	Written uint64 // with token and address
	Folded  uint64 // by their number only, for want of room
	Lost    uint64 // nothing
	Waiting uint64 // nothing yet
}

// WatchAudit adds the audit log's metrics, as [Registry.WatchStore] does.
func (r *Registry) WatchAudit(f func() AuditStats) { r.prom.MustRegister(newAuditCollector(f)) }

// UpstreamStats are what is known of one upstream.
type UpstreamStats struct {
	Name string // as configured
	Up   bool
}

// WatchUpstreams adds the upstreams' metrics, as [Registry.WatchStore] does.
func (r *Registry) WatchUpstreams(f func() []UpstreamStats) {
	r.prom.MustRegister(newUpstreamCollector(f))
}
