package etcdstore

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func responseAt(revision int64) clientv3.WatchResponse {
	return clientv3.WatchResponse{Events: []*clientv3.Event{{Kv: &mvccpb.KeyValue{ModRevision: revision}}}}
}

// TestEventsAreGatheredUntilSomebodyWaitsForThem: the replica takes what comes within
// a moment in one step, and nobody waits for that moment to end.
func TestEventsAreGatheredUntilSomebodyWaitsForThem(t *testing.T) {
	const spare = 10 * time.Millisecond
	for name, c := range map[string]struct {
		spare    time.Duration
		wants    int64         // what somebody begins to wait for; 0: nobody does
		after    time.Duration // when
		others   []int64       // revisions that come, one each 3 ms
		broken   bool          // and then the watch ends
		revision int64         // up to which events are gathered
		took     time.Duration
	}{
		"nothing else comes":               {spare: spare, revision: 5, took: spare},
		"others come within the moment":    {spare: spare, others: []int64{6, 7}, revision: 7, took: spare},
		"others come beyond the moment":    {spare: spare, others: []int64{6, 7, 8, 9}, revision: 8, took: spare},
		"there is no time to spare":        {spare: -1, others: []int64{6}, revision: 5},
		"somebody waits for it":            {spare: spare, wants: 5, others: []int64{6}, revision: 5},
		"somebody begins to wait for it":   {spare: spare, wants: 4, after: 2 * time.Millisecond, others: []int64{6}, revision: 5, took: 2 * time.Millisecond},
		"somebody waits for what comes":    {spare: spare, wants: 6, others: []int64{6, 7}, revision: 6, took: 3 * time.Millisecond},
		"somebody waits for what does not": {spare: spare, wants: 9, others: []int64{6, 7}, revision: 7, took: spare},
		"the watch ends":                   {spare: spare, others: []int64{6}, broken: true, revision: 6, took: 3 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &progress{calls: make(chan struct{}, 1)}
				p.reach(1)
				var others sync.WaitGroup
				defer others.Wait()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if c.wants > 0 {
					others.Go(func() {
						<-time.After(c.after)
						if err := p.wait(ctx, c.wants); err != nil && !errors.Is(err, context.Canceled) {
							t.Error(err)
						}
					})
					if c.after == 0 {
						synctest.Wait()
					}
				}
				more := make(chan clientv3.WatchResponse)
				others.Go(func() {
					for _, r := range c.others {
						<-time.After(3 * time.Millisecond)
						select {
						case more <- responseAt(r):
						case <-ctx.Done():
							return
						}
					}
					if c.broken {
						close(more)
					}
				})
				began := time.Now()
				first := responseAt(5)
				events, revision, err := gather(&first, more, p, c.spare)
				if err != nil || revision != c.revision || int64(len(events)) != c.revision-4 {
					t.Errorf("%d events up to %d, %v; want up to %d", len(events), revision, err, c.revision)
				}
				if took := time.Since(began); took != c.took {
					t.Errorf("gathered for %v, want %v", took, c.took)
				}
			})
		})
	}
}
