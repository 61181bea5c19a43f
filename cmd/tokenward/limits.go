package main

import (
	"context"
	"time"

	"tokenward/admin/native"
	"tokenward/enforce"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
)

const (
	// flushEvery is how often counts of limits are kept ahead of their use.
	flushEvery = time.Second
	// ledgerPatience is how long a request waits for the counts of its limits to be
	// kept, before it is refused.
	ledgerPatience = 5 * time.Second
)

// countLedger keeps the counts of limits in the store.
type countLedger struct{ store *boltstore.Store }

var _ enforce.Ledger = countLedger{}

// Counts implements [enforce.Ledger].
func (l countLedger) Counts(key enforce.CountKey) (enforce.Counts, error) {
	b, err := l.store.Counter(key[:])
	if err != nil {
		return enforce.Counts{}, err
	}
	return enforce.ParseCounts(b)
}

// Keep implements [enforce.Ledger].
func (l countLedger) Keep(ctx context.Context, all []enforce.Kept) error {
	ctx, cancel := context.WithTimeout(ctx, ledgerPatience)
	defer cancel()
	counters := make([]boltstore.Counter, len(all))
	for i := range all {
		counters[i] = boltstore.Counter{Key: all[i].Key[:], Value: all[i].Counts.Append(nil)}
	}
	return l.store.KeepCounters(ctx, counters)
}

// startLimits keeps the counts of limits ahead of their use, until stopLimits is
// called, which keeps them exactly. Counts that are over are forgotten first.
func (a *app) startLimits() {
	a.engine.SetLimits(a.cfg.limitOptions())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.flushCounts(ctx)
	}()
	a.stopLimits = func() {
		cancel()
		<-done
		if err := a.engine.SettleCounts(context.Background(), a.now()); err != nil {
			a.log.Error("the counts of quotas and uses could not be kept at the end: some of each that was in use counts as used", "error", err)
		}
	}
}

func (a *app) flushCounts(ctx context.Context) {
	if _, err := a.vault.store.DropCounters(ctx, func(_, value []byte) bool { return enforce.CountsOver(value, a.now()) }); err != nil && ctx.Err() == nil {
		a.log.Warn("counts of quotas that are over could not be dropped; they only take room", "error", err)
	}
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := a.engine.FlushCounts(ctx, a.now())
		if err != nil && !failing && ctx.Err() == nil {
			a.log.Error("the counts of quotas and uses cannot be kept: tokens that have them are refused once what was kept ahead is used up; see why the store cannot be written", "error", err)
		}
		failing = err != nil
	}
}

// left is what the token has left of its own limits, for the native API.
func (g *gate) left(t *tokenstore.Token) []native.Left {
	now := g.now()
	var out []native.Left
	for _, l := range g.engine.AppendLeft(nil, t, nil, now) {
		one := native.Left{Limit: l.Name, Left: l.Left}
		switch l.Name {
		case "rate", "uses", "concurrent":
		case "minute", "hour", "day", "month":
			one.Limit, one.Per = "quota", l.Name
		default:
			continue // of its owner's or account's other tokens too
		}
		if l.Reset > 0 {
			at := now.Add(l.Reset).UTC().Truncate(time.Millisecond)
			one.ResetsAt = &at
		}
		out = append(out, one)
	}
	return out
}
