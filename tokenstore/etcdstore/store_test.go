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
		Reopen: func(t *testing.T) *storetest.Harness { n.stop(); return harness(t, open) },
	}
}

var _ storetest.Store = (*etcdstore.Store)(nil)
