package main

import (
	"math"
	"testing"
)

func TestCollectionsLeaveBoundedRoom(t *testing.T) {
	t.Parallel()
	before := gcPercent
	for live := uint64(1 << 20); live < 1<<40; live += live / 7 {
		percent := gcPercentFor(live)
		if percent > before || percent < gcLeast {
			t.Fatalf("%d bytes: %d %%, after %d %% for less", live, percent, before)
		}
		if percent > gcLeast && live*uint64(percent)/100 > gcRoom { //nolint:gosec // positive
			t.Errorf("%d bytes may grow by %d %%, which is more than the room", live, percent)
		}
		before = percent
	}
	if gcPercentFor(0) != gcPercent || gcPercentFor(math.MaxUint64) != gcLeast {
		t.Errorf("at the ends: %d %%, %d %%", gcPercentFor(0), gcPercentFor(math.MaxUint64))
	}
}
