package metrics

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
)

// storeCollector asks a store once per scrape, so that its numbers belong together.
type storeCollector struct {
	stats                                              func() StoreStats
	tokens, outbox, bytes, commits, changes, staleness *prometheus.Desc
}

func newStoreCollector(f func() StoreStats) *storeCollector {
	return &storeCollector{
		stats:     f,
		tokens:    desc("tokenward_store_tokens", "Tokens in the store, by stored state.", "state"),
		outbox:    desc("tokenward_store_outbox_entries", "Audit events that wait to be written to the audit log."),
		bytes:     desc("tokenward_store_file_bytes", "Size of the store's file."),
		commits:   desc("tokenward_store_commits_total", "Transactions committed."),
		changes:   desc("tokenward_store_changes_total", "Changes committed; divided by commits, the mean batch."),
		staleness: desc("tokenward_store_staleness_seconds", "Age of what requests are judged by; infinite when not known."),
	}
}

func (c *storeCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.tokens, c.outbox, c.bytes, c.commits, c.changes, c.staleness} {
		ch <- d
	}
}

func (c *storeCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	ch <- gauge(c.tokens, float64(s.Active), "active")
	ch <- gauge(c.tokens, float64(s.Disabled), "disabled")
	ch <- gauge(c.tokens, float64(s.Revoked), "revoked")
	ch <- gauge(c.outbox, float64(s.Outbox))
	ch <- gauge(c.bytes, float64(s.FileBytes))
	ch <- counter(c.commits, s.Commits)
	ch <- counter(c.changes, s.Changes)
	staleness := s.Staleness.Seconds()
	if staleness < 0 {
		staleness = math.Inf(1)
	}
	ch <- gauge(c.staleness, staleness)
}

// cacheCollector asks the token cache once per scrape.
type cacheCollector struct {
	stats                                func() CacheStats
	entries, lookups, evictions, dropped *prometheus.Desc
}

func newCacheCollector(f func() CacheStats) *cacheCollector {
	return &cacheCollector{
		stats:     f,
		entries:   desc("tokenward_cache_entries", "Tokens in the cache."),
		lookups:   desc("tokenward_cache_lookups_total", "Lookups in the cache, by result.", "result"),
		evictions: desc("tokenward_cache_evictions_total", "Tokens that made room for others."),
		dropped:   desc("tokenward_cache_outdated_total", "Lookups that found an entry from before a change, and read the store."),
	}
}

func (c *cacheCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.entries, c.lookups, c.evictions, c.dropped} {
		ch <- d
	}
}

func (c *cacheCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	ch <- gauge(c.entries, float64(s.Entries))
	ch <- counter(c.lookups, s.Hits, "hit")
	ch <- counter(c.lookups, s.Misses, "miss")
	ch <- counter(c.evictions, s.Evictions)
	ch <- counter(c.dropped, s.Outdated)
}

// auditCollector asks the audit log once per scrape.
type auditCollector struct {
	stats                         func() AuditStats
	events, bytes, line, up, head *prometheus.Desc
	denials, waiting              *prometheus.Desc
}

func newAuditCollector(f func() AuditStats) *auditCollector {
	return &auditCollector{
		stats:  f,
		events: desc("tokenward_audit_events_total", "Events written to the audit log."),
		bytes:  desc("tokenward_audit_file_bytes", "Size of the audit log's current file."),
		line:   desc("tokenward_audit_last_line", "Number of the audit log's last line."),
		up:     desc("tokenward_audit_writable", "1 while the audit log can be written, else 0."),
		head:   desc("tokenward_audit_head_info", "Always 1; its label is the audit log's last signed head, to be kept elsewhere.", "head"),
		denials: desc("tokenward_audit_denials_total",
			"Denied requests by what the audit log tells of them: written with token and address, folded into one number for want of room, or lost.", "result"),
		waiting: desc("tokenward_audit_denials_waiting", "Denied requests that the audit log is not told of yet."),
	}
}

func (c *auditCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.events, c.bytes, c.line, c.up, c.head, c.denials, c.waiting} {
		ch <- d
	}
}

func (c *auditCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	ch <- counter(c.events, s.Events)
	ch <- gauge(c.bytes, float64(s.FileBytes))
	ch <- gauge(c.line, float64(s.Line))
	up := 1.0
	if s.Faulty {
		up = 0
	}
	ch <- gauge(c.up, up)
	if s.Head != "" {
		ch <- gauge(c.head, 1, s.Head)
	}
	ch <- counter(c.denials, s.Denials.Written, "written")
	ch <- counter(c.denials, s.Denials.Folded, "folded")
	ch <- counter(c.denials, s.Denials.Lost, "lost")
	ch <- gauge(c.waiting, float64(s.Denials.Waiting))
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

func gauge(d *prometheus.Desc, v float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func counter(d *prometheus.Desc, v uint64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

// upstreamCollector asks for the health of all upstreams once per scrape.
type upstreamCollector struct {
	stats func() []UpstreamStats
	up    *prometheus.Desc
}

func newUpstreamCollector(f func() []UpstreamStats) *upstreamCollector {
	return &upstreamCollector{
		stats: f,
		up:    desc("tokenward_upstream_up", "Whether requests are sent to the upstream; 0 after it failed to answer several times in a row.", "upstream"),
	}
}

func (c *upstreamCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.up }

func (c *upstreamCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.stats() {
		up := 0.0
		if s.Up {
			up = 1
		}
		ch <- gauge(c.up, up, s.Name)
	}
}

// ListenerStats are what the server of a listener tells of itself.
type ListenerStats struct {
	Name        string
	Connections int   // open, from clients
	InFlight    int64 // requests being served
}

// WatchListeners adds the metrics of listeners, as [Registry.WatchStore] does.
func (r *Registry) WatchListeners(f func() []ListenerStats) {
	r.prom.MustRegister(&listenerCollector{
		stats:       f,
		connections: desc("tokenward_connections", "Open connections from clients.", "listener"),
		inFlight:    desc("tokenward_requests_in_flight", "Requests being served.", "listener"),
	})
}

// listenerCollector asks at each scrape, so that requests count nothing for it.
type listenerCollector struct {
	stats                 func() []ListenerStats
	connections, inFlight *prometheus.Desc
}

func (c *listenerCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.connections
	ch <- c.inFlight
}

func (c *listenerCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.stats() {
		ch <- gauge(c.connections, float64(s.Connections), s.Name)
		ch <- gauge(c.inFlight, float64(s.InFlight), s.Name)
	}
}
