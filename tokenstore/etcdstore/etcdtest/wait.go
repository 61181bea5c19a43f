package etcdtest

import (
	"context"
	"testing"
	"time"
)

const (
	patience  = 2 * time.Minute       // for what happens within seconds on a machine that is not starved
	pollEvery = 10 * time.Millisecond // how often a condition is looked at
	oneTry    = 10 * time.Second      // how long one look may take
)

// WaitFor returns once ok returns nil, which it is asked again and again for two
// minutes. After that the test fails with what was waited for and the last error.
// Each look has ten seconds. It is the only place of a test that waits.
func WaitFor(t testing.TB, what string, ok func(context.Context) error) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := look(ctx, ok)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited %s for %s: %v", time.Since(began).Round(time.Second), what, err)
		}
	}
}

func look(ctx context.Context, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, oneTry)
	defer cancel()
	return ok(ctx)
}
