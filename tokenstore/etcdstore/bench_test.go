package etcdstore_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
	"tokenward/tokenstore/storetest"
)

// BenchmarkRevokedEverywhere measures from the acknowledgement of a revocation to the
// moment when the last of many mirrored nodes refuses the token, all in one process
// with three members.
func BenchmarkRevokedEverywhere(b *testing.B) {
	const nodes = 50
	c := etcdtest.Start(b, etcdtest.Options{Members: 3})
	prefix := newPrefix()
	writer := startNode(b, mirrored(b, prefix, c.Endpoints()))
	var mu sync.Mutex
	heard := map[tokenstore.ID]*sync.WaitGroup{}
	last := map[tokenstore.ID]time.Time{}
	for i := range nodes {
		o := mirrored(b, prefix, c.Endpoints())
		o.Node = fmt.Sprintf("r%d", i)
		o.changed = func(ch tokenstore.Change) {
			if ch.After == nil || ch.After.State != tokenstore.StateRevoked {
				return
			}
			now := time.Now()
			mu.Lock()
			defer mu.Unlock()
			if last[ch.After.ID].Before(now) {
				last[ch.After.ID] = now
			}
			heard[ch.After.ID].Done()
		}
		startNode(b, o)
	}
	var took []time.Duration
	for b.Loop() {
		var id tokenstore.ID
		if err := writer.Change(b.Context(), func(tx tokenstore.Tx) (err error) {
			if id, err = tx.NewID(); err != nil {
				return err
			}
			tx.Emit([]byte("create"))
			return tx.Put(storetest.Sample(id, 1, 1))
		}); err != nil {
			b.Fatal(err)
		}
		var all sync.WaitGroup
		all.Add(nodes)
		mu.Lock()
		heard[id] = &all
		mu.Unlock()
		if err := writer.Change(b.Context(), func(tx tokenstore.Tx) error {
			tok, err := tx.Token(id)
			if err != nil {
				return err
			}
			revoke(tok)
			tx.Emit([]byte("revoke"))
			return tx.Put(tok)
		}); err != nil {
			b.Fatal(err)
		}
		acknowledged := time.Now()
		all.Wait()
		mu.Lock()
		took = append(took, max(0, last[id].Sub(acknowledged)))
		mu.Unlock()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
}
