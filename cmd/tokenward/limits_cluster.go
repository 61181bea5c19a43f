package main

import (
	"context"
	"time"

	"tokenward/enforce"
	"tokenward/tokenstore/etcdstore"
)

const (
	// clusterFlushes is how many transactions a second all nodes together make to keep
	// counts ahead of their use, however many nodes there are.
	clusterFlushes = 10
	// clockMargin is by how much nodes' clocks may differ before counts are forgotten
	// that are in use by another.
	clockMargin = 24 * time.Hour
)

// clusterCounts keeps counts in etcd, where all nodes draw on them.
func clusterCounts(store *etcdstore.Store) countKeeping {
	return countKeeping{
		ledger:  countLedger{store, etcdstore.CounterKeys},
		sharers: store.Nodes,
		pause:   func(moves uint64) time.Duration { return clusterPause(moves, store.Nodes()) },
		tidy: func(ctx context.Context, now time.Time) error {
			if !store.First() {
				return nil
			}
			_, err := store.DropCounters(ctx, func(_, value []byte) bool { return enforce.CountsOver(value, now.Add(-clockMargin)) })
			return err
		},
	}
}

// clusterPause is how long one of so many nodes waits after a flush of so many
// transactions.
func clusterPause(moves uint64, nodes int) time.Duration {
	return max(flushEvery, time.Duration(max(moves, 1))*time.Duration(nodes)*time.Second/clusterFlushes) //nolint:gosec // both small
}
