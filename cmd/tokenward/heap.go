package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// gcPercent is what the heap may grow by between two collections while it is
	// small. A forwarded request allocates nothing, so they are rare.
	gcPercent = 50
	// gcRoom is what it may grow by at most, in bytes. A full cache is most of the
	// heap and lasts: half of it again would lie idle.
	gcRoom = 16 << 20
	// gcLeast keeps a collection, which looks at all that lives, from coming too
	// often where the cache is made very large.
	gcLeast = 10

	gcEvery = time.Second
)

// tendHeap keeps the room between collections within gcRoom, until ctx ends.
func tendHeap(ctx context.Context) {
	tick := time.NewTicker(gcEvery)
	defer tick.Stop()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	set := gcPercent
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(live)
		if live[0].Value.Kind() != metrics.KindUint64 {
			return // a runtime that does not tell
		}
		want := gcPercentFor(live[0].Value.Uint64())
		if off := want - set; off > set/8 || -off > set/8 { // each setting stops the world for a moment
			debug.SetGCPercent(want)
			set = want
		}
	}
}

// gcPercentFor returns how much a heap of which so many bytes live may grow by, in
// per cent.
func gcPercentFor(live uint64) int {
	if live <= gcRoom*100/gcPercent {
		return gcPercent
	}
	return max(gcLeast, int(gcRoom*100/live)) //nolint:gosec // below gcPercent
}
