package enforce

import "math/bits"

// meterTable is a set of meters by their keys: open addressing with linear
// probing, at most half full. Finding a meter touches one cache line beside its
// own, where Go's map touches four. The zero table is empty. It is not safe for
// concurrent use.
type meterTable struct {
	slots []*meter // a power of two of them
	n     int
	hand  int // where next goes on
}

// home is where the meter with the key stands if nothing is in its way.
func (t *meterTable) home(k *meterKey) int {
	const odd = 0x9E3779B97F4A7C15 // 2^64 divided by the golden ratio
	h := ((k.a*odd+k.b)*odd + uint64(k.subject)) * odd
	return int(h >> (64 - bits.Len(uint(len(t.slots)-1)))) //nolint:gosec // below the number of slots
}

// get returns the meter, or nil.
func (t *meterTable) get(k meterKey) *meter {
	if t.n == 0 {
		return nil
	}
	for i := t.home(&k); ; i = (i + 1) & (len(t.slots) - 1) {
		if m := t.slots[i]; m == nil || m.key == k {
			return m
		}
	}
}

// add puts in a meter whose key is not there yet.
func (t *meterTable) add(m *meter) {
	if 2*(t.n+1) > len(t.slots) {
		old := t.slots
		t.slots = make([]*meter, max(8, 2*len(old)))
		for _, o := range old {
			if o != nil {
				t.place(o)
			}
		}
	}
	t.place(m)
	t.n++
}

func (t *meterTable) place(m *meter) {
	i := t.home(&m.key)
	for t.slots[i] != nil {
		i = (i + 1) & (len(t.slots) - 1)
	}
	t.slots[i] = m
}

// remove takes out a meter that is there. What stands behind it moves up, so that
// no gap hides it.
func (t *meterTable) remove(m *meter) {
	mask := len(t.slots) - 1
	gap := t.home(&m.key)
	for t.slots[gap] != m {
		gap = (gap + 1) & mask
	}
	for i := (gap + 1) & mask; t.slots[i] != nil; i = (i + 1) & mask {
		if (i-t.home(&t.slots[i].key))&mask >= (i-gap)&mask { // its home is not behind the gap
			t.slots[gap], gap = t.slots[i], i
		}
	}
	t.slots[gap] = nil
	t.n--
}

// next goes round through the slots and returns the meter in the next one, nil if
// that is empty.
func (t *meterTable) next() *meter {
	if len(t.slots) == 0 {
		return nil
	}
	t.hand = (t.hand + 1) & (len(t.slots) - 1)
	return t.slots[t.hand]
}
