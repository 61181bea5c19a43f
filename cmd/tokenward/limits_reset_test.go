package main

import (
	"encoding/binary"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/enforce"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
	"tokenward/tokenstore/storetest"
)

// countingStore is a store of tokens that keeps counts of their limits.
type countingStore interface {
	tokenstore.Reader
	tokenstore.Writer
	Counter(key []byte) ([]byte, error)
}

// limited is a store with the processes that draw on its counts. restart ends the
// processes, clean or not, and begins others.
type limited struct {
	store   countingStore
	engines []*enforce.Engine
	restart func(t *testing.T, clean bool)
}

// limitedFile is a store in a file.
func limitedFile(t *testing.T) *limited {
	o := boltstore.Options{Path: filepath.Join(t.TempDir(), "t.db")}
	store, err := boltstore.Create(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	l := &limited{}
	begin := func() {
		e := enforce.NewEngine(nil, 0)
		e.KeepCounts(localCounts(store).ledger, nil)
		l.store, l.engines = store, []*enforce.Engine{e}
	}
	begin()
	l.restart = func(t *testing.T, clean bool) {
		if clean {
			l.settle(t)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		if store, err = boltstore.Open(o); err != nil {
			t.Fatal(err)
		}
		begin()
	}
	return l
}

// limitedCluster is three nodes on one etcd.
func limitedCluster(t *testing.T) *limited {
	cluster := etcdtest.Start(t, etcdtest.Options{})
	l := &limited{}
	var nodes []*limitNode
	for _, name := range []string{"a", "b", "c"} {
		nodes = append(nodes, startLimitNode(t, name, cluster.Endpoints()))
		l.engines = append(l.engines, nodes[len(nodes)-1].Engine)
	}
	l.store = nodes[0].store
	l.restart = func(t *testing.T, clean bool) {
		if clean {
			l.settle(t)
		}
		for i, n := range nodes {
			n.restart()
			l.engines[i] = n.Engine
		}
	}
	return l
}

func (l *limited) settle(t *testing.T) {
	t.Helper()
	for _, e := range l.engines {
		if err := e.SettleCounts(t.Context(), storetest.Epoch); err != nil {
			t.Fatal(err)
		}
	}
}

// use has each process admit a request by each of the tokens in turn, as often as
// times, and returns how many were admitted.
func (l *limited) use(t *testing.T, line []*tokenstore.Token, times int) (total int) {
	t.Helper()
	for n := range times {
		for i, e := range l.engines {
			d := enforce.Decision{Reason: enforce.Allowed, Match: tokenstore.Match{Token: line[(n+i)%len(line)]}}
			if e.Admit(&d, storetest.Epoch) {
				total++
			} else if d.Reason != enforce.UsesExhausted {
				t.Fatalf("%v: %v", d.Reason, d.Cause)
			}
			d.Release()
		}
	}
	return total
}

// counts is what the store keeps of a token's limits.
func (l *limited) counts(id tokenstore.ID) ([]byte, error) {
	var key enforce.CountKey
	binary.BigEndian.PutUint64(key[1:], uint64(id))
	return l.store.Counter(key[:])
}

// TestResetsInARowHaveTheLimitsOfOneToken resets a token three times within one grace
// period, uses all four of them between the resets and over restarts, on each node with
// whatever it still remembers of them, and sweeps them one after the other.
func TestResetsInARowHaveTheLimitsOfOneToken(t *testing.T) {
	for name, open := range map[string]func(*testing.T) *limited{"file": limitedFile, "cluster": limitedCluster} {
		t.Run(name, func(t *testing.T) {
			const most = 40
			l := open(t)
			clock := &admintest.Clock{}
			clock.Set(storetest.Epoch)
			service := func() *admin.Service {
				s, err := admin.New(l.store, l.store, nil, clock.Now, admin.Options{ResetGrace: 12 * time.Hour})
				if err != nil {
					t.Fatal(err)
				}
				s.SetVocabulary(admin.Vocabulary{Scopes: []string{"accounts"}})
				return s
			}
			operator, one := admin.Operator("test"), uint64(1)
			made, err := service().Create(t.Context(), operator, admin.Spec{Account: &one, Owner: &one, Name: "limited", Scopes: []string{"accounts"},
				Limits: &tokenstore.Limits{Uses: most}, Expiry: new(tokenstore.Never())})
			if err != nil {
				t.Fatal(err)
			}
			first := made.Token.ID
			line := []*tokenstore.Token{made.Token}
			total := 0
			for range 3 {
				total += l.use(t, line, 2)
				if made, err = service().Reset(t.Context(), operator, admin.Target{ID: made.Token.ID}, admin.ResetSpec{}); err != nil {
					t.Fatal(err)
				}
				old, err := l.store.ByID(t.Context(), made.Token.Lineage)
				if err != nil || old.ID != first {
					t.Fatalf("token %d is of the lineage of token %d: %v", made.Token.ID, made.Token.Lineage, err)
				}
				line = append(line, old, made.Token)
				total += l.use(t, line, 1)
			}
			l.restart(t, true)
			if total += l.use(t, line, most); total != most {
				t.Fatalf("all of them together were used %d times of %d", total, most)
			}
			usedUp := func(when string) {
				t.Helper()
				l.restart(t, false)
				if n := l.use(t, line, len(line)); n != 0 {
					t.Errorf("%s, %d more are had", when, n)
				}
				if kept, err := l.counts(first); err != nil || len(kept) == 0 {
					t.Errorf("%s, it is kept that %q was used: %v", when, kept, err)
				}
			}
			usedUp("used up")

			var ids []tokenstore.ID
			for _, tok := range line {
				if !slices.Contains(ids, tok.ID) {
					ids = append(ids, tok.ID)
				}
			}
			sweep := func(id tokenstore.ID) {
				t.Helper()
				n, err := service().Sweep(t.Context(), func(yield func(tokenstore.ID, error) bool) { yield(id, nil) })
				if err != nil || n != 1 {
					t.Fatalf("%d were swept: %v", n, err)
				}
			}
			clock.Advance(12*time.Hour + admin.KeepEnded)
			line = line[len(line)-1:]
			for _, id := range []tokenstore.ID{ids[1], ids[0], ids[2]} {
				sweep(id)
				usedUp("without token " + id.String())
			}
			if _, err := service().Revoke(t.Context(), operator, admin.Target{ID: ids[3]}, false); err != nil {
				t.Fatal(err)
			}
			clock.Advance(admin.KeepEnded)
			sweep(ids[3])
			for _, id := range ids {
				if _, err := l.store.ByID(t.Context(), id); !errors.Is(err, tokenstore.ErrNotFound) {
					t.Errorf("token %d is still there: %v", id, err)
				}
				if kept, err := l.counts(id); err != nil || kept != nil {
					t.Errorf("what token %d used is still there: %x, %v", id, kept, err)
				}
			}
		})
	}
}
