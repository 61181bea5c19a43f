package enforce

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"tokenward/tokenstore"
)

// TestBucketLetsThroughWhatARateLimiterDoes compares with x/time/rate, which
// defines what a rate with a burst means.
func TestBucketLetsThroughWhatARateLimiterDoes(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // repeatable
		draw := func() (float64, uint64) { return []float64{0.01, 1, 3.5, 100, 1e6}[r.IntN(5)], 1 + r.Uint64N(20) }
		now := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
		per, burst := draw()
		model := rate.NewLimiter(rate.Limit(per), int(burst)) //nolint:gosec // small
		var b bucket
		for range 300 {
			b.make(now.UnixNano(), per, burst)
			allowed := b.missing(now.UnixNano()) == 0
			if allowed {
				b.take(now.UnixNano())
			}
			if want := model.AllowN(now, 1); want != allowed {
				t.Fatalf("seed %d, rate %g, burst %d, at %v: allowed is %v, and should be %v", seed, per, burst, now, allowed, want)
			}
			now = now.Add(time.Duration(r.ExpFloat64() / per * float64(time.Second)))
			if r.IntN(40) == 0 {
				per, burst = draw()
				model.SetLimitAt(now, rate.Limit(per))
				model.SetBurstAt(now, int(burst)) //nolint:gosec // small
				b.make(now.UnixNano(), per, burst)
			}
		}
	}
}

func TestClockThatGoesBackRefillsNothing(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC).UnixNano()
	var b bucket
	b.make(start, 1, 1)
	b.take(start)
	for i := range int64(10) {
		at := start - i*int64(time.Hour)
		if b.missing(at) == 0 {
			t.Fatalf("the bucket has refilled %d h before it was emptied", i)
		}
		b.make(at, 1, uint64(2+i)) //nolint:gosec // small
	}
	if b.missing(start+int64(time.Second)) != 0 {
		t.Error("the bucket has not refilled by the time at which it should have")
	}
}

// TestClockThatWasSetBackDoesNotStopTheRefill: the machine's clock was wrong by hours
// and was mended. Who came again after a second is not to wait for hours.
func TestClockThatWasSetBackDoesNotStopTheRefill(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	back := start.Add(-5 * time.Hour)
	e := limitedEngine(LimitOptions{Failures: FailureLimit{PerMinute: 60, Burst: 2}}, nil)
	tok := with(1, 1, 1, tokenstore.Limits{Rate: 1, Burst: 2})
	failed := func(at time.Time) bool {
		d := Decision{Reason: UnknownToken}
		e.Fail(&d, netip.MustParseAddr("192.0.2.1"), at)
		return d.Reason == TooManyFailures
	}
	if n, _ := uses(e, tok, start); n != 2 || failed(start) || failed(start) || !failed(start) {
		t.Fatalf("%d at first", n)
	}
	if n, d := uses(e, tok, back); n != 0 || d.RetryAfter != time.Second || !failed(back) {
		t.Errorf("%d as the clock is set back, then retry after %v", n, d.RetryAfter)
	}
	if n, _ := uses(e, tok, back.Add(time.Second)); n != 1 || failed(back.Add(time.Second)) || !failed(back.Add(time.Second)) {
		t.Errorf("%d a second later", n)
	}
	// One that nobody asks for is full again in time, and gives way.
	key := meterKey{ofToken, 1, 0}
	m := e.limits.look(key)
	if m.bucket.at = start.UnixNano(); m.forget(back) || !m.forget(back.Add(2*time.Second)) {
		t.Error("it is forgotten too early, or stays until the clock is where it was")
	}
}

// TestRequestsThatOvertakeOneAnotherRefillNothing: they come to the limiter in another
// order than to the door.
func TestRequestsThatOvertakeOneAnotherRefillNothing(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	e := limitedEngine(LimitOptions{}, nil)
	tok := with(1, 1, 1, tokenstore.Limits{Rate: 1, Burst: 1})
	admitted := 0
	for range 100 {
		for _, at := range []time.Time{start.Add(50 * time.Second), start} {
			if d := use(e, tok, nil, at); d.Allowed() {
				admitted++
			}
		}
	}
	if admitted != 1 {
		t.Errorf("%d were admitted", admitted)
	}
}
