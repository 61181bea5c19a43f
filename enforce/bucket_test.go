package enforce

import (
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/time/rate"
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
