package metrics

import (
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
)

const (
	routeAccounts = iota
	routeCards
)

var testRoutes = []string{"GET /accounts/{account}", "* /accounts/{account}/cards/{card}"}

func newTestRegistry() *Registry {
	return New(Options{
		Version: "v1.2.3", Revision: "abcdef",
		Reasons:  []string{"none", "ok", "missing_token", "revoked"},
		Refusals: []string{"bad_request", "encoded_slash"},
		Upstream: []string{"dial", "timeout"},
		APIs:     []string{"mailtrap", "native"},
		Verbs:    []string{"create", "revoke"},
	})
}

// populate puts a value into every family there is.
func populate(r *Registry) {
	rs := r.Decisions.For(testRoutes)
	rs.Observe(routeAccounts, 1, Allowed, 3*time.Millisecond)
	rs.Observe(routeCards, 2, Denied, time.Millisecond)
	rs.Observe(-1, 3, Observed, time.Hour)
	r.Refusals.Add(1)
	r.Upstream.Add(0)
	r.Cut.Add(3)
	r.WatchListeners(func() []ListenerStats {
		return []ListenerStats{{Name: "proxy", Connections: 5, InFlight: 1}, {Name: "admin"}}
	})
	r.Admin.Add(0, 1, AdminDone)
	r.Reload.Succeeded(time.Unix(1_800_000_000, 0))
	r.WatchStore(func() StoreStats {
		return StoreStats{Active: 5, Disabled: 2, Revoked: 1, Outbox: 3, FileBytes: 4096, Commits: 7, Changes: 21, Staleness: 2 * time.Second}
	})
	r.WatchCache(func() CacheStats {
		return CacheStats{Entries: 4, Hits: 100, Misses: 9, Evictions: 1, Outdated: 2}
	})
	r.WatchAudit(func() AuditStats {
		return AuditStats{Events: 9, FileBytes: 1000, Line: 12, Head: "id 12 00", Denials: DenialStats{Written: 3, Folded: 4, Lost: 5, Waiting: 6}}
	})
}

func TestFamiliesAreCleanForPromlint(t *testing.T) {
	r := newTestRegistry()
	populate(r)
	problems, err := testutil.GatherAndLint(r.prom)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// families returns all metrics as text, name{labels} to value, histograms
// by their count.
func families(t *testing.T, r *Registry) map[string]float64 {
	t.Helper()
	all, err := r.prom.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]float64)
	for _, f := range all {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			out[f.GetName()+"{"+strings.Join(labels, ",")+"}"] =
				m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return out
}

func TestEveryFamilyHasItsNameLabelsAndValue(t *testing.T) {
	r := newTestRegistry()
	populate(r)
	got := families(t, r)
	want := map[string]float64{
		"tokenward_decisions_total{outcome=allowed,reason=ok,route=GET /accounts/{account}}":                      1,
		"tokenward_decisions_total{outcome=denied,reason=missing_token,route=* /accounts/{account}/cards/{card}}": 1,
		"tokenward_decisions_total{outcome=observed,reason=revoked,route=none}":                                   1,
		"tokenward_request_duration_seconds{route=GET /accounts/{account}}":                                       1,
		"tokenward_request_duration_seconds{route=none}":                                                          1,
		"tokenward_protocol_refusals_total{code=bad_request}":                                                     0,
		"tokenward_protocol_refusals_total{code=encoded_slash}":                                                   1,
		"tokenward_upstream_failures_total{kind=dial}":                                                            1,
		"tokenward_upstream_failures_total{kind=timeout}":                                                         0,
		"tokenward_streams_cut_total{reason=none}":                                                                0,
		"tokenward_streams_cut_total{reason=ok}":                                                                  0,
		"tokenward_streams_cut_total{reason=missing_token}":                                                       0,
		"tokenward_streams_cut_total{reason=revoked}":                                                             1,
		"tokenward_requests_in_flight{listener=proxy}":                                                            1,
		"tokenward_requests_in_flight{listener=admin}":                                                            0,
		"tokenward_connections{listener=proxy}":                                                                   5,
		"tokenward_connections{listener=admin}":                                                                   0,
		"tokenward_admin_requests_total{api=mailtrap,outcome=success,verb=revoke}":                                1,
		"tokenward_config_last_reload_successful{}":                                                               1,
		"tokenward_config_last_reload_success_timestamp_seconds{}":                                                1_800_000_000,
		"tokenward_store_tokens{state=active}":                                                                    5,
		"tokenward_store_tokens{state=disabled}":                                                                  2,
		"tokenward_store_tokens{state=revoked}":                                                                   1,
		"tokenward_store_outbox_entries{}":                                                                        3,
		"tokenward_store_file_bytes{}":                                                                            4096,
		"tokenward_store_commits_total{}":                                                                         7,
		"tokenward_store_changes_total{}":                                                                         21,
		"tokenward_store_staleness_seconds{}":                                                                     2,
		"tokenward_cache_entries{}":                                                                               4,
		"tokenward_cache_lookups_total{result=hit}":                                                               100,
		"tokenward_cache_lookups_total{result=miss}":                                                              9,
		"tokenward_cache_evictions_total{}":                                                                       1,
		"tokenward_cache_outdated_total{}":                                                                        2,
		"tokenward_audit_events_total{}":                                                                          9,
		"tokenward_audit_file_bytes{}":                                                                            1000,
		"tokenward_audit_last_line{}":                                                                             12,
		"tokenward_audit_writable{}":                                                                              1,
		"tokenward_audit_head_info{head=id 12 00}":                                                                1,
		"tokenward_audit_denials_total{result=written}":                                                           3,
		"tokenward_audit_denials_total{result=folded}":                                                            4,
		"tokenward_audit_denials_total{result=lost}":                                                              5,
		"tokenward_audit_denials_waiting{}":                                                                       6,
	}
	for name, v := range want {
		if g, ok := got[name]; !ok || g != v {
			t.Errorf("%s = %v (there: %t), want %v", name, g, ok, v)
		}
	}
	runtimes := 0
	for name := range got {
		if _, ok := want[name]; ok {
			continue
		}
		switch {
		case strings.HasPrefix(name, "tokenward_build_info{"):
		case strings.HasPrefix(name, "go_"), strings.HasPrefix(name, "process_"):
			runtimes++
		default:
			t.Errorf("unexpected series %s", name)
		}
	}
	if runtimes == 0 {
		t.Error("no metrics of the Go runtime and the process")
	}
}

func TestUnknownIndexesAreCountedAsOtherAndNeverPanic(t *testing.T) {
	r := newTestRegistry()
	rs := r.Decisions.For(testRoutes)
	for _, i := range []int{-1, 4, 1 << 40, math.MinInt} {
		rs.Observe(i, i, Outcome(200), time.Second)
		r.Refusals.Add(i)
		r.Upstream.Add(i)
		r.Admin.Add(i, i, AdminOutcome(200))
	}
	got := families(t, r)
	for _, name := range []string{
		"tokenward_decisions_total{outcome=denied,reason=other,route=none}",
		"tokenward_protocol_refusals_total{code=other}",
		"tokenward_upstream_failures_total{kind=other}",
		"tokenward_admin_requests_total{api=other,outcome=failure,verb=other}",
	} {
		if got[name] != 4 {
			t.Errorf("%s = %v, want 4", name, got[name])
		}
	}
}

func TestNilObserversCountNothing(t *testing.T) {
	var r Registry
	r.Decisions.For(testRoutes).Observe(0, 0, Allowed, 0)
	r.Refusals.Add(0)
	r.Admin.Add(0, 0, AdminDone)
	r.Reload.Succeeded(time.Now())
	r.Reload.Failed()
}

func TestRemovedRouteLosesItsSeriesAndKeptOneItsNumbersNot(t *testing.T) {
	r := newTestRegistry()
	first := r.Decisions.For(testRoutes)
	first.Observe(routeAccounts, 1, Allowed, time.Millisecond)
	first.Observe(routeCards, 1, Allowed, time.Millisecond)
	second := r.Decisions.For([]string{"GET /new", testRoutes[routeAccounts]})
	first.Observe(routeCards, 1, Allowed, time.Millisecond)    // still under way
	first.Observe(routeAccounts, 1, Allowed, time.Millisecond) // likewise
	second.Observe(1, 1, Allowed, time.Millisecond)
	second.Observe(0, 1, Allowed, time.Millisecond)
	got := families(t, r)
	for name, want := range map[string]float64{
		"tokenward_decisions_total{outcome=allowed,reason=ok,route=GET /accounts/{account}}": 3,
		"tokenward_decisions_total{outcome=allowed,reason=ok,route=GET /new}":                1,
		"tokenward_request_duration_seconds{route=GET /accounts/{account}}":                  3,
	} {
		if got[name] != want {
			t.Errorf("%s = %v, want %v", name, got[name], want)
		}
	}
	for name := range got {
		if strings.Contains(name, "cards") {
			t.Errorf("series of a removed route is still there: %s", name)
		}
	}
}

func TestSeriesDoNotGrowWithReloads(t *testing.T) {
	r := newTestRegistry()
	for i := range 200 {
		rs := r.Decisions.For([]string{"GET /v" + strings.Repeat("x", i)})
		for reason := range 10 {
			for o := range Outcome(5) {
				rs.Observe(0, reason, o, time.Duration(i))
				rs.Observe(-1, reason, o, time.Duration(i))
			}
		}
	}
	n, err := testutil.GatherAndCount(r.prom, "tokenward_decisions_total")
	if err != nil {
		t.Fatal(err)
	}
	if want := 2 * 5 * 3; n != want { // routes, reasons with other, outcomes
		t.Errorf("%d series, want %d", n, want)
	}
}

func TestTwoRegistriesInOneProcess(t *testing.T) {
	a, b := newTestRegistry(), newTestRegistry()
	populate(a)
	populate(b)
	a.Refusals.Add(1)
	name := "tokenward_protocol_refusals_total{code=encoded_slash}"
	if got := families(t, a)[name]; got != 2 {
		t.Errorf("first registry has %v, want 2", got)
	}
	if got := families(t, b)[name]; got != 1 {
		t.Errorf("second registry has %v, want 1", got)
	}
}

func TestReloadIsNotSuccessfulBeforeOneWas(t *testing.T) {
	r := newTestRegistry()
	const name = "tokenward_config_last_reload_successful{}"
	steps := []struct {
		do   func()
		want float64
	}{
		{func() {}, 0},
		{func() { r.Reload.Succeeded(time.Unix(100, 0)) }, 1},
		{func() { r.Reload.Failed() }, 0},
		{func() { r.Reload.Succeeded(time.Unix(200, 0)) }, 1},
	}
	for i, s := range steps {
		s.do()
		if got := families(t, r)[name]; got != s.want {
			t.Errorf("step %d: %v, want %v", i, got, s.want)
		}
	}
}

func TestUnknownStalenessIsInfinite(t *testing.T) {
	r := newTestRegistry()
	r.WatchStore(func() StoreStats { return StoreStats{Staleness: -1} })
	if got := families(t, r)["tokenward_store_staleness_seconds{}"]; !math.IsInf(got, 1) {
		t.Errorf("staleness %v, want +Inf", got)
	}
}

func TestBucketsHoldWhatTheirBoundsSay(t *testing.T) {
	const last = octaves*subBuckets + 1
	bound := func(i int) float64 { return math.Exp2(minExp + float64(i)/subBuckets) }
	var durations []time.Duration
	for i := range last {
		at := time.Duration(bound(i) * 1e9)
		durations = append(durations, at-1, at, at+1, at+2)
	}
	durations = append(durations, 0, 1, 511*time.Second, 512*time.Second, 512*time.Second+1, math.MaxInt64)
	slices.Sort(durations)
	previous := 0
	for _, d := range durations {
		i := bucketOf(d)
		if i < previous {
			t.Fatalf("%d ns is in bucket %d, a shorter one in %d", d, i, previous)
		}
		previous = i
		s := d.Seconds()
		if i > 0 && s <= bound(i-1)*(1-1e-12) {
			t.Errorf("%d ns is in bucket %d, which begins above %v s", d, i, bound(i-1))
		}
		if i < last && s > bound(i)*(1+1e-12) {
			t.Errorf("%d ns is in bucket %d, which ends at %v s", d, i, bound(i))
		}
	}
	if previous != last {
		t.Errorf("the longest is in bucket %d, want %d", previous, last)
	}
	for _, exact := range []time.Duration{time.Second / 8, time.Second / 4, time.Second / 2, time.Second, 2 * time.Second} {
		if a, b := bucketOf(exact), bucketOf(exact+1); b != a+1 {
			t.Errorf("%v is not the inclusive end of its bucket: %d, %d", exact, a, b)
		}
	}
}

func TestClassicAndNativeFormAgree(t *testing.T) {
	r := newTestRegistry()
	rs := r.Decisions.For(testRoutes)
	observed := []time.Duration{0, time.Microsecond, 100 * time.Microsecond, 120 * time.Microsecond, time.Millisecond,
		125 * time.Millisecond, 125*time.Millisecond + 1, time.Second, 30 * time.Second, 10 * time.Minute}
	var sum time.Duration
	for _, d := range observed {
		rs.Observe(routeAccounts, 1, Allowed, d)
		sum += d
	}
	rs.Observe(routeAccounts, 1, Allowed, -1) // an upgraded connection is counted, not timed
	var h *dto.Histogram
	all, err := r.prom.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == "tokenward_request_duration_seconds" {
			h = f.Metric[0].Histogram
		}
	}
	if h.GetSampleCount() != uint64(len(observed)) || h.GetSampleSum() != sum.Seconds() {
		t.Errorf("count %d sum %v, want %d %v", h.GetSampleCount(), h.GetSampleSum(), len(observed), sum.Seconds())
	}
	for _, b := range h.Bucket {
		want := uint64(0)
		for _, d := range observed {
			if d.Seconds() <= b.GetUpperBound() {
				want++
			}
		}
		if b.GetCumulativeCount() != want {
			t.Errorf("le=%v: %d, want %d", b.GetUpperBound(), b.GetCumulativeCount(), want)
		}
	}
	// Read the native form as its definition says.
	index, count, delta := int32(0), int64(0), 0
	native := make(map[int32]int64)
	for _, s := range h.PositiveSpan {
		index += s.GetOffset()
		for range s.GetLength() {
			count += h.PositiveDelta[delta]
			delta++
			native[index] = count
			index++
		}
	}
	if delta != len(h.PositiveDelta) {
		t.Errorf("%d deltas for %d buckets", len(h.PositiveDelta), delta)
	}
	total := int64(h.GetZeroCount())
	for i, n := range native {
		total += n
		lower, upper := math.Exp2(float64(i-1)/subBuckets), math.Exp2(float64(i)/subBuckets)
		want := int64(0)
		for _, d := range observed {
			if s := d.Seconds(); s > lower && (s <= upper || i == maxExp*subBuckets+1) && s > h.GetZeroThreshold() {
				want++
			}
		}
		if n != want {
			t.Errorf("native bucket %d (%v, %v]: %d, want %d", i, lower, upper, n, want)
		}
	}
	if total != int64(len(observed)) || h.GetZeroCount() != 2 {
		t.Errorf("native buckets hold %d, %d of them zero; want %d and 2", total, h.GetZeroCount(), len(observed))
	}
}

func TestScrapesAndReloadsDuringObservation(t *testing.T) {
	r := newTestRegistry()
	rs := r.Decisions.For(testRoutes)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 2000 {
				rs.Observe(i%3-1, i%5, Outcome(i%3), time.Duration(i))
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			r.Decisions.For(testRoutes)
		}
	})
	for range 20 {
		families(t, r)
	}
	wg.Wait()
	sum := 0.0
	for name, v := range families(t, r) {
		if strings.HasPrefix(name, "tokenward_decisions_total") {
			sum += v
		}
	}
	if sum != 8000 {
		t.Errorf("%v decisions counted, want 8000", sum)
	}
}

func TestObservingAllocatesNothing(t *testing.T) {
	r := newTestRegistry()
	rs := r.Decisions.For(testRoutes)
	if n := testing.AllocsPerRun(1000, func() {
		rs.Observe(routeAccounts, 1, Allowed, time.Millisecond)
		r.Refusals.Add(0)
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	rs := newTestRegistry().Decisions.For(testRoutes)
	b.ReportAllocs()
	for b.Loop() {
		rs.Observe(routeAccounts, 1, Allowed, 350*time.Microsecond)
	}
}

// All cores on one route: the worst case of plain atomics.
func BenchmarkObserveParallel(b *testing.B) {
	rs := newTestRegistry().Decisions.For(testRoutes)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			rs.Observe(routeAccounts, 1, Allowed, 350*time.Microsecond)
		}
	})
}

func BenchmarkObserveDeniedParallel(b *testing.B) {
	rs := newTestRegistry().Decisions.For(testRoutes)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			rs.Observe(routeAccounts, 2, Denied, 0)
		}
	})
}

func BenchmarkScrape200Routes(b *testing.B) {
	r := newTestRegistry()
	var routes []string
	for i := range 200 {
		routes = append(routes, "GET /"+strings.Repeat("x", i))
	}
	rs := r.Decisions.For(routes)
	for i := range 200 {
		for reason := range 4 {
			rs.Observe(i, reason, Allowed, time.Duration(i)*time.Millisecond)
		}
	}
	for b.Loop() {
		if _, err := r.prom.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
