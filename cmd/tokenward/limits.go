package main

import (
	"bytes"
	"context"
	"slices"
	"time"

	"tokenward/admin/native"
	"tokenward/enforce"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
)

const (
	// flushEvery is how often counts of limits are kept ahead of their use.
	flushEvery = time.Second
	// tidyEvery is how often counts that are over are looked for.
	tidyEvery = 24 * time.Hour
	// ledgerPatience is how long a request waits for the counts of its limits to be
	// kept, before it is refused.
	ledgerPatience = 5 * time.Second
)

// countKeeping is where and how the counts of limits are kept: [localCounts] or
// [clusterCounts].
type countKeeping struct {
	ledger  enforce.Ledger
	sharers func() int // as for [enforce.Engine.KeepCounts]
	// pause is how long to wait after a flush that took so many moves of the ledger.
	pause func(moves uint64) time.Duration
	// tidy forgets counts that are over at now.
	tidy func(ctx context.Context, now time.Time) error
}

// localCounts keeps counts in the store of the only node.
func localCounts(store *boltstore.Store) countKeeping {
	return countKeeping{
		ledger: countLedger{store, maxLocalClaims},
		pause:  func(uint64) time.Duration { return flushEvery },
		tidy: func(ctx context.Context, now time.Time) error {
			_, err := store.DropCounters(ctx, func(_, value []byte) bool { return enforce.CountsOver(value, now) })
			return err
		},
	}
}

// forgetAhead forgets counts in windows that have not begun at now, for an operator who
// says that the clock was ahead when they were made. Numbers of uses stay.
func forgetAhead(ctx context.Context, store *boltstore.Store, now time.Time) error {
	var ahead [][]byte
	for one, err := range store.Counts(ctx) {
		if err != nil {
			return err
		}
		if !bytes.Equal(one.Value, enforce.CountsUpTo(one.Value, now)) {
			ahead = append(ahead, one.Key)
		}
	}
	for keys := range slices.Chunk(ahead, maxLocalClaims) {
		if err := store.MoveCounters(ctx, keys, func(_ int, old []byte) ([]byte, error) { return enforce.CountsUpTo(old, now), nil }); err != nil {
			return err
		}
	}
	return nil
}

// carryCounts has a store know what was used by the counts of another one, of tokens up
// to an id.
func carryCounts(ctx context.Context, from, to *boltstore.Store, last tokenstore.ID) error {
	var keys, values [][]byte
	move := func() error {
		defer func() { keys, values = keys[:0], values[:0] }()
		return to.MoveCounters(ctx, keys, func(i int, old []byte) ([]byte, error) { return enforce.CountsOfBoth(old, values[i]), nil })
	}
	for one, err := range from.Counts(ctx) {
		if err != nil {
			return err
		}
		if enforce.CountsOfToken(one.Key) > last {
			continue
		}
		keys, values = append(keys, one.Key), append(values, one.Value)
		if len(keys) == maxLocalClaims {
			if err := move(); err != nil {
				return err
			}
		}
	}
	return move()
}

// maxLocalClaims bounds how much is read and written in one transaction of the file.
const maxLocalClaims = 1000

// counterStore is a store of counters: that of one node, or etcd.
type counterStore interface {
	// MoveCounters replaces what is kept under each of the keys by what move makes of
	// it, all or none. An error that does not wrap tokenstore.ErrOutcomeUnknown says
	// that nothing was changed.
	MoveCounters(ctx context.Context, keys [][]byte, move func(i int, old []byte) ([]byte, error)) error
}

// countLedger keeps the counts of limits in a store.
type countLedger struct {
	store counterStore
	most  int // keys in one move
}

var _ enforce.Ledger = countLedger{}

// Most implements [enforce.Ledger].
func (l countLedger) Most() int { return l.most }

// Move implements [enforce.Ledger].
func (l countLedger) Move(ctx context.Context, claims []enforce.Claim) ([]enforce.Moved, error) {
	ctx, cancel := context.WithTimeout(ctx, ledgerPatience)
	defer cancel()
	keys := make([][]byte, len(claims))
	for i := range claims {
		keys[i] = claims[i].Key[:]
	}
	moved := make([]enforce.Moved, len(claims))
	err := l.store.MoveCounters(ctx, keys, func(i int, stored []byte) ([]byte, error) {
		old, err := enforce.ParseCounts(stored)
		if err != nil {
			moved[i] = enforce.Moved{Err: err}
			return stored, nil //nolint:nilerr // those of others are not to suffer for it
		}
		after, granted := claims[i].Apply(old)
		moved[i] = enforce.Moved{Counts: after, Granted: granted}
		if after == old {
			return stored, nil
		}
		return after.Append(nil), nil
	})
	if err != nil {
		return nil, err
	}
	return moved, nil
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
			a.log.Error("the counts of quotas and uses could not be saved at shutdown: what was reserved ahead counts as used", "error", err)
		}
	}
}

func (a *app) flushCounts(ctx context.Context) {
	failing := false
	var tidied time.Time
	var moves, before uint64
	for {
		if now := a.now(); due(tidied, now, tidyEvery) {
			tidied = now
			if err := a.counts.tidy(ctx, now); err != nil && ctx.Err() == nil {
				a.log.Warn("expired counts of quotas could not be dropped; they only take up space", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(a.counts.pause(moves - before)):
		}
		err := a.engine.FlushCounts(ctx, a.now())
		if err != nil && !failing && ctx.Err() == nil {
			a.log.Error("the counts of quotas and uses cannot be saved: tokens with such limits are refused once what was reserved ahead is used up; find out why the store cannot be written", "error", err)
		}
		failing = err != nil
		before, moves = moves, a.engine.LimitStats().Flushed
	}
}

// left is what the token has left of its own limits, for the native API.
func (g *gate) left(t *tokenstore.Token) []native.Left {
	now := g.now()
	var out []native.Left
	for _, l := range g.guard.Engine.AppendLeft(nil, t, nil, now) {
		one := native.Left{Limit: l.Name, Left: l.Left}
		switch l.Name {
		case "rate", "uses", "concurrent":
		case "minute", "hour", "day", "month":
			one.Limit, one.Per = "quota", l.Name
		default:
			continue // of its owner's or account's other tokens too
		}
		if l.Reset > 0 {
			one.ResetsAt = &native.Time{Time: now.Add(l.Reset)}
		}
		out = append(out, one)
	}
	return out
}
