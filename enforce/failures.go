package enforce

import (
	"math"
	"net/netip"
	"sync"
	"time"
)

// FailureLimit is how many failed credentials may come from one address. Beyond
// it, failures are answered with 429. It never concerns a valid credential, so
// nobody can lock out others behind the same address.
type FailureLimit struct {
	PerMinute uint64 // refilled continuously; 0: no limit
	Burst     uint64 // at once; 0: as PerMinute
}

// maxFailing bounds the addresses whose failures are remembered: about 60 bytes
// each.
const maxFailing = 1 << 17

// failureTable remembers, for each address with failures of late, when the last of
// them would have been due at the even rate. An IPv6 client is its /64, all of
// which is usually one client's; those with no known address are one. What is over
// is forgotten; while nothing is, a further address counts as one that has failed
// too often.
type failureTable struct {
	shards [limitShards]failureShard
}

// failureShard's mutex guards its map and is held for moments only.
type failureShard struct {
	mu  sync.Mutex
	due map[netip.Addr]int64 // in nanoseconds since 1970
	_   [48]byte
}

// failed notes a failure from the address. It reports false, and how long to wait,
// where there have been too many.
func (f *failureTable) failed(limit FailureLimit, addr netip.Addr, now time.Time) (wait time.Duration, ok bool) {
	if limit.PerMinute == 0 {
		return 0, true
	}
	every := int64(time.Minute) / int64(min(limit.PerMinute, uint64(time.Minute))) //nolint:gosec // bounded by the line
	burst := limit.Burst
	if burst == 0 {
		burst = limit.PerMinute
	}
	addr = client(addr)
	at := now.UnixNano()
	s := f.shard(addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	due, known := s.due[addr]
	if !known && len(s.due) >= maxFailing/limitShards && !s.forget(at) {
		return time.Duration(every), false
	}
	// All that can be due lies within the burst: what is later is of before the clock was
	// set back.
	atOnce := int64(min(burst, uint64(math.MaxInt64/every/2))) * every //nolint:gosec // bounded by the line
	due = min(max(due, at), at+atOnce)
	if over := due - at - (atOnce - every); over > 0 {
		if known {
			s.due[addr] = due
		}
		return time.Duration(max(over, 1)), false
	}
	if s.due == nil {
		s.due = make(map[netip.Addr]int64)
	}
	s.due[addr] = due + every
	return 0, true
}

// client is the address that stands for a client.
func client(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if !addr.Is6() {
		return addr
	}
	p, err := addr.Prefix(64)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}

func (f *failureTable) shard(addr netip.Addr) *failureShard {
	b := addr.As16()
	h := uint32(2166136261) // FNV-1a
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	return &f.shards[h%limitShards]
}

func (s *failureShard) forget(at int64) bool {
	looks := 0
	for addr, due := range s.due {
		if due <= at {
			delete(s.due, addr)
			return true
		}
		if looks++; looks == evictLooks {
			break
		}
	}
	return false
}
