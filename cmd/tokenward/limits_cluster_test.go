package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tokenward/enforce"
	"tokenward/tokenstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
)

// limitNode is a node of a cluster, as far as limits go. What it does to counters
// passes before, if that is set.
type limitNode struct {
	*enforce.Engine
	store  *etcdstore.Store
	before atomic.Pointer[func()]
	away   atomic.Bool // etcd does not answer: it is waited for briefly
}

// MoveCounters implements counterStore.
func (n *limitNode) MoveCounters(ctx context.Context, keys [][]byte, move func(i int, old []byte) ([]byte, error)) error {
	patience := time.Minute // more than a request's: a busy machine is not what is tested
	if n.away.Load() {
		patience = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	return n.store.MoveCounters(ctx, keys, func(i int, old []byte) ([]byte, error) {
		if f := n.before.Load(); f != nil {
			(*f)()
		}
		return move(i, old)
	})
}

// startLimitNode starts a node of three, at the endpoints.
func startLimitNode(t *testing.T, name string, endpoints []string) *limitNode {
	t.Helper()
	c, err := etcdstore.Dial(etcdstore.Options{Endpoints: endpoints, Node: name, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Init(ctx); err != nil && !errors.Is(err, etcdstore.ErrExists) {
		t.Fatal(err)
	}
	d, err := c.Describe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n := &limitNode{store: c.Open(d, nil)}
	n.store.Start(etcdstore.Observer{Learned: func(*tokenstore.Formats) {}, Changed: func(tokenstore.Change) {}, Forget: func() {}})
	t.Cleanup(func() { _ = n.store.Close() })
	if err := n.store.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	n.restart()
	return n
}

// restart begins another process on the node, which knows nothing of what the one
// before had reserved.
func (n *limitNode) restart() {
	n.Engine = enforce.NewEngine(nil, 0)
	n.KeepCounts(countLedger{n, etcdstore.CounterKeys}, func() int { return 3 })
}

// use uses the token up to so many times, and returns how often that was possible and
// why not more often.
func (n *limitNode) use(tok *tokenstore.Token, times int, now time.Time) (int, enforce.Decision) {
	for i := range times {
		d := enforce.Decision{Reason: enforce.Allowed, Match: tokenstore.Match{Token: tok}}
		if !n.Admit(&d, now) {
			return i, d
		}
		d.Release()
	}
	return times, enforce.Decision{}
}

// useAll has so many clients use the token at once on each node, until it is refused.
func useAll(t *testing.T, nodes []*limitNode, clients int, tok *tokenstore.Token, now time.Time) int {
	t.Helper()
	var total atomic.Int64
	var wg sync.WaitGroup
	for _, n := range nodes {
		for range clients {
			wg.Go(func() {
				got, d := n.use(tok, 100_000, now)
				total.Add(int64(got))
				if d.Reason != enforce.UsesExhausted && d.Reason != enforce.QuotaExhausted {
					t.Errorf("%v: %v", d.Reason, d.Cause)
				}
			})
		}
	}
	wg.Wait()
	return int(total.Load())
}

func usesOf(id tokenstore.ID, n uint64) *tokenstore.Token {
	return &tokenstore.Token{ID: id, Account: 1, Owner: 1, Limits: tokenstore.Limits{Uses: n}}
}

func quotaOf(id tokenstore.ID, n uint64, per tokenstore.Window) *tokenstore.Token {
	return &tokenstore.Token{ID: id, Account: 1, Owner: 1, Limits: tokenstore.Limits{Quotas: []tokenstore.Quota{{Count: n, Per: per}}}}
}

// TestLimitsOfAClusterAreExact shares a real etcd between nodes.
func TestLimitsOfAClusterAreExact(t *testing.T) {
	cluster := etcdtest.Start(t, etcdtest.Options{})
	relays := cluster.ClientRelays()
	nodes := []*limitNode{
		startLimitNode(t, "a", cluster.Endpoints()), startLimitNode(t, "b", cluster.Endpoints()), startLimitNode(t, "c", relays.Endpoints()),
	}
	now := time.Date(2026, 11, 21, 12, 30, 0, 0, time.UTC)
	var id tokenstore.ID
	next := func() tokenstore.ID { id++; return id }

	for n := 1; n <= 3; n++ {
		t.Run(fmt.Sprintf("uses on %d nodes at once", n), func(t *testing.T) {
			if total := useAll(t, nodes[:n], 8, usesOf(next(), 1000), now); total != 1000 {
				t.Errorf("%d of 1000", total)
			}
		})
	}

	t.Run("a single use, wanted by all", func(t *testing.T) {
		if total := useAll(t, nodes, 8, usesOf(next(), 1), now); total != 1 {
			t.Errorf("%d", total)
		}
	})

	t.Run("a node that dies loses its block", func(t *testing.T) {
		tok := usesOf(next(), 1000)
		total := 0
		for range 5 {
			got, _ := nodes[1].use(tok, 10, now)
			total += got
			nodes[1].restart()
		}
		total += useAll(t, nodes, 4, tok, now)
		if most := 1000 - 5*(33-10); total != most {
			t.Errorf("%d, want %d", total, most)
		}
	})

	t.Run("a quota, once others have settled", func(t *testing.T) {
		tok := quotaOf(next(), 600, tokenstore.PerHour)
		total, _ := nodes[0].use(tok, 1, now)
		got, _ := nodes[1].use(tok, 1, now)
		total += got
		got, d := nodes[2].use(tok, 1000, now)
		if total += got; d.Reason != enforce.QuotaExhausted || total != 600-2*19 {
			t.Fatalf("%d, then %v", total, d.Reason)
		}
		later := now
		for range 63 {
			later = later.Add(time.Second)
			for _, n := range nodes {
				if err := n.FlushCounts(t.Context(), later); err != nil {
					t.Fatal(err)
				}
			}
		}
		if total += useAll(t, nodes, 2, tok, later); total != 600 {
			t.Errorf("%d of 600", total)
		}
	})

	t.Run("clocks an hour apart", func(t *testing.T) {
		tok := quotaOf(next(), 600, tokenstore.PerHour)
		total := 0
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i, n := range nodes {
			wg.Go(func() {
				got, d := n.use(tok, 10_000, now.Add(time.Duration(i-1)*time.Hour))
				mu.Lock()
				defer mu.Unlock()
				total += got
				if d.Reason != enforce.QuotaExhausted {
					t.Errorf("%v: %v", d.Reason, d.Cause)
				}
			})
		}
		wg.Wait()
		// Whichever is ahead ends the windows of the others, which may have been used.
		if total < 600 || total > 3*600 {
			t.Errorf("%d", total)
		}
		for i, n := range nodes {
			if got, _ := n.use(tok, 1, now.Add(time.Duration(i-1)*time.Hour)); got != 0 {
				t.Errorf("node %d has more", i)
			}
			// Its clock comes to the window that the first of them has used up.
			if got, _ := n.use(tok, 1, now.Add(time.Hour)); got != 0 {
				t.Errorf("node %d has more in the last window", i)
			}
		}
		if total := useAll(t, nodes, 1, tok, now.Add(2*time.Hour)); total != 600 {
			t.Errorf("%d in the window after that", total)
		}
	})

	t.Run("without etcd, the block and no more", func(t *testing.T) {
		tok := usesOf(next(), 1000)
		total, _ := nodes[2].use(tok, 3, now)
		nodes[2].away.Store(true)
		relays.Cut()
		got, d := nodes[2].use(tok, 1000, now)
		if total += got; total != 33 || d.Reason != enforce.StoreUnavailable || d.Status() != 503 || d.Cause == nil {
			t.Errorf("%d uses, then %v: %v", total, d.Reason, d.Cause)
		}
		if got, d := nodes[2].use(usesOf(next(), 5), 1, now); got != 0 || d.Reason != enforce.StoreUnavailable {
			t.Errorf("a token that was not used before: %v", d.Reason)
		}
		nodes[2].away.Store(false)
		relays.Heal()
		etcdtest.WaitFor(t, "etcd to be reached again", func(ctx context.Context) error { return nodes[2].FlushCounts(ctx, now) })
		if total += useAll(t, nodes, 2, tok, now); total != 1000 {
			t.Errorf("%d of 1000", total)
		}
	})

	t.Run("answers that are lost", func(t *testing.T) {
		tok := usesOf(next(), 1000)
		total, _ := nodes[2].use(tok, 33, now)
		drop := func() { relays.DropAnswers() }
		nodes[2].before.Store(&drop)
		nodes[2].away.Store(true)
		got, d := nodes[2].use(tok, 1, now)
		if got != 0 || d.Reason != enforce.StoreUnavailable || !errors.Is(d.Cause, tokenstore.ErrOutcomeUnknown) {
			t.Errorf("%v: %v", d.Reason, d.Cause)
		}
		nodes[2].before.Store(nil)
		nodes[2].away.Store(false)
		relays.Heal()
		etcdtest.WaitFor(t, "etcd to be reached again", func(ctx context.Context) error { return nodes[2].FlushCounts(ctx, now) })
		total += useAll(t, nodes, 2, tok, now)
		if total > 1000 || total < 1000-33 {
			t.Errorf("%d of 1000", total)
		}
	})
}

// TestFlushesOfManyNodesAreFewTogether: about ten transactions a second.
func TestFlushesOfManyNodesAreFewTogether(t *testing.T) {
	for _, c := range []struct {
		moves uint64
		nodes int
		want  time.Duration
	}{{0, 1, time.Second}, {1, 10, time.Second}, {0, 100, 10 * time.Second}, {1, 1000, 100 * time.Second}, {7, 50, 35 * time.Second}} {
		if got := clusterPause(c.moves, c.nodes); got != c.want {
			t.Errorf("%d nodes that take %d transactions pause for %v, want %v", c.nodes, c.moves, got, c.want)
		}
	}
}
