package http1

import (
	"runtime"
	"sync/atomic"
	"testing"
)

// Whoever waits for the processor has run before giveWay comes back.
func TestGiveWayLetsAllOthersGoFirst(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const others = 8
	var ran atomic.Int32
	done := make(chan struct{})
	for range others {
		go func() {
			if ran.Add(1) == others {
				close(done)
			}
		}()
	}
	giveWay()
	if n := ran.Load(); n != others {
		t.Errorf("%d of %d goroutines ran first", n, others)
	}
	<-done
}
