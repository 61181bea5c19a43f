package main

import (
	"math"
	"net/http"
	"sync/atomic"
	"time"

	"tokenward/enforce"
	"tokenward/metrics"
	"tokenward/proxy"
)

// metricsOptions names everything that metrics are labelled with.
func metricsOptions() metrics.Options {
	b := readBuildInfo()
	names := make([]string, enforce.NumReasons)
	for _, r := range enforce.Reasons() {
		names[r] = r.String()
	}
	names[enforce.Undecided] = enforce.Undecided.String()
	return metrics.Options{
		Version: b.Version, Revision: b.Revision,
		Reasons: names, Refusals: proxy.RefusalCodes(), Upstream: proxy.FailureCodes(),
		APIs: apiNames,
	}
}

// observer counts judged requests under the policy's routes.
func (a *app) observer(p *enforce.Policy) proxy.Observer {
	patterns := make([]string, 0, len(p.Routes()))
	for _, r := range p.Routes() {
		patterns = append(patterns, r.Pattern)
	}
	routes := a.registry.Decisions.For(patterns)
	return func(route int, reason enforce.Reason, outcome proxy.Outcome, took time.Duration) {
		routes.Observe(route, int(reason), metricsOutcomes[outcome], took)
	}
}

var metricsOutcomes = [...]metrics.Outcome{proxy.Denied: metrics.Denied, proxy.Allowed: metrics.Allowed, proxy.Observed: metrics.Observed}

// recording says which requests are logged.
func (c *Config) recording() proxy.Recording {
	return proxy.Recording{
		Denied: c.Log.Requests != "off",
		All:    c.Log.Requests == "all",
		Every:  uint64(c.Log.RequestsEvery), //nolint:gosec // at least 1
	}
}

// counting returns a function that counts by code. codes are all there are, in the
// order of add's index; any other code has index -1.
func counting(codes []string, add func(index int)) func(code string) {
	places := make(map[string]int, len(codes))
	for i, code := range codes {
		places[code] = i
	}
	return func(code string) {
		i, ok := places[code]
		if !ok {
			i = -1
		}
		add(i)
	}
}

// listenerStats are counted by the servers for themselves already, but for the
// admin listener's requests, which are few.
func (a *app) listenerStats() []metrics.ListenerStats {
	return []metrics.ListenerStats{
		{Name: "proxy", Connections: a.proxyServer.Connections(), InFlight: a.guard.InFlight()},
		{Name: "admin", Connections: a.adminServer.Connections(), InFlight: a.adminInFlight.Load()},
	}
}

// inFlight counts in n the requests that h is serving.
func inFlight(h http.Handler, n *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		defer n.Add(-1)
		h.ServeHTTP(w, r)
	})
}

func (a *app) storeStats() metrics.StoreStats {
	s := a.vault.store.Stats()
	out := metrics.StoreStats{
		Active: int(s.Active), Disabled: int(s.Disabled), Revoked: int(s.Revoked), //nolint:gosec // counts of tokens
		Outbox: s.Outbox, FileBytes: s.FileBytes, Commits: s.Commits, Changes: s.Changes,
	}
	if p := a.vault.part; p != nil {
		if out.Staleness = p.Store.Stats().Age; out.Staleness == math.MaxInt64 {
			out.Staleness = -1 // not known
		}
	}
	return out
}

func (a *app) cacheStats() metrics.CacheStats {
	s := a.vault.cache.Stats()
	return metrics.CacheStats{Entries: s.Entries, Hits: s.Hits, Misses: s.Misses, Evictions: s.Evictions, Outdated: s.Outdated}
}

func (a *app) usageStats() metrics.UsageStats { return metrics.UsageStats(a.vault.usage.Stats()) }

func (a *app) auditStats() metrics.AuditStats {
	s := a.vault.log.Stats()
	out := metrics.AuditStats{
		Events: s.Events, FileBytes: s.FileBytes, Line: s.Line, Faulty: s.Fault != nil,
		Denials: metrics.DenialStats(a.vault.denials.Stats()),
	}
	if head := a.vault.log.SignedHead(); head.Line > 0 {
		out.Head = head.String()
	}
	return out
}
