package etcdstore_test

import (
	"testing"

	"tokenward/tokenstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
	"tokenward/tokenstore/storetest"
)

func TestStoreKeepsTheContract(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{})
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, func(t *testing.T, onChange func(tokenstore.Change)) *storetest.Harness {
				o := kind(t, c.Endpoints())
				o.changed = onChange
				return harness(t, func(t *testing.T) *node { return startNode(t, o) })
			})
		})
	}
}

// TestContractHoldsWhileMembersFail runs the whole contract while the ways to two of
// three members lose, hold up and cut what passes, and each change runs twice.
func TestContractHoldsWhileMembersFail(t *testing.T) {
	t.Parallel()
	if !storetest.Soak() {
		t.Skip("TOKENWARD_SOAK=1 runs it: each change waits for members that do not answer")
	}
	b := newBed(t, 3, 1, nil)
	t.Cleanup(b.disturb(1))
	storetest.Run(t, func(t *testing.T, onChange func(tokenstore.Change)) *storetest.Harness {
		o := mirrored(t, newPrefix(), b.relays[0].Endpoints())
		o.changed = onChange
		h := harness(t, func(t *testing.T) *node { return startNode(t, o) })
		h.Store = &storetest.Faulty{Store: h.Store, ChangeFate: func() storetest.Fate { return storetest.Twice }}
		h.Steps = 1000 // of which some take seconds
		return h
	})
}

// harness is what the contract is tested with. open starts the same node again.
func harness(t *testing.T, open func(t *testing.T) *node) *storetest.Harness {
	t.Helper()
	n := open(t)
	return &storetest.Harness{
		Store: n,
		Pending: func(limit int) ([]storetest.Event, error) {
			var events []storetest.Event
			for _, e := range n.pending(t, limit) {
				events = append(events, storetest.Event(e))
			}
			return events, nil
		},
		Done:   n.Done,
		Scans:  n.copy == nil,
		Steps:  100_000,
		Reopen: func(t *testing.T) *storetest.Harness { n.stop(); return harness(t, open) },
	}
}

var _ storetest.Store = (*etcdstore.Store)(nil)
