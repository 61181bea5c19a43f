package enforce

import (
	"math/bits"
	"sync/atomic"
)

// meterTable is a set of meters by their keys: open addressing with linear
// probing, at most half full. Finding a meter touches one cache line beside its
// own, where Go's map touches four. The zero table is empty.
//
// Any number of goroutines may call glance at once, also while the table changes; for all
// else its owner holds a lock.
type meterTable struct {
	slots atomic.Pointer[meterSlots] // nil: empty
	n     int
	hand  int // where next goes on
}

// meterSlots are a power of two of places, at least half of them empty.
type meterSlots []atomic.Pointer[meter]

// home is where the meter with the key stands if nothing is in its way.
func (s meterSlots) home(k *meterKey) int {
	const odd = 0x9E3779B97F4A7C15 // 2^64 divided by the golden ratio
	h := ((k.a*odd+k.b)*odd + uint64(k.subject)) * odd
	return int(h >> (64 - bits.Len(uint(len(s)-1)))) //nolint:gosec // below the number of slots
}

// after is the place behind i.
func (s meterSlots) after(i int) int { return (i + 1) & (len(s) - 1) }

// get returns the meter, or nil.
func (t *meterTable) get(k meterKey) *meter { return t.glance(k) }

// glance is get without the lock: while the table changes it may miss a meter that is
// there, and find one that is just taken out.
func (t *meterTable) glance(k meterKey) *meter {
	s := t.slots.Load()
	if s == nil {
		return nil
	}
	slots := *s
	for i := slots.home(&k); ; i = slots.after(i) {
		if m := slots[i].Load(); m == nil || m.key == k {
			return m
		}
	}
}

// add puts in a meter whose key is not there yet.
func (t *meterTable) add(m *meter) {
	s := t.slots.Load()
	if s == nil || 2*(t.n+1) > len(*s) {
		s = t.grow(s)
	}
	s.place(m)
	t.n++
}

// grow makes the table twice as large.
func (t *meterTable) grow(old *meterSlots) *meterSlots {
	size := 8
	if old != nil {
		size = 2 * len(*old)
	}
	grown := make(meterSlots, size)
	if old != nil {
		for i := range *old {
			if m := (*old)[i].Load(); m != nil {
				grown.place(m)
			}
		}
	}
	t.slots.Store(&grown)
	return &grown
}

func (s meterSlots) place(m *meter) {
	i := s.home(&m.key)
	for s[i].Load() != nil {
		i = s.after(i)
	}
	s[i].Store(m)
}

// remove takes out a meter that is there. What stands behind it moves up, so that
// no gap hides it.
func (t *meterTable) remove(m *meter) {
	s := *t.slots.Load()
	mask := len(s) - 1
	gap := s.home(&m.key)
	for s[gap].Load() != m {
		gap = s.after(gap)
	}
	for i := s.after(gap); ; i = s.after(i) {
		next := s[i].Load()
		if next == nil {
			break
		}
		if (i-s.home(&next.key))&mask >= (i-gap)&mask { // its home is not behind the gap
			s[gap].Store(next)
			gap = i
		}
	}
	s[gap].Store(nil)
	t.n--
}

// next goes round through the slots and returns the meter in the next one, nil if
// that is empty.
func (t *meterTable) next() *meter {
	s := t.slots.Load()
	if s == nil {
		return nil
	}
	t.hand = s.after(t.hand)
	return (*s)[t.hand].Load()
}
