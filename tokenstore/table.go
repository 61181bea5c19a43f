package tokenstore

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// table keeps entries by their keys, up to a bound on the sum of their weights. It is
// built like a processor's cache: each key has one set in which it may stand. A set is
// one line of memory with a byte of each entry's key, so that finding one waits for two
// reads of memory, the set and the entry, and takes no lock.
//
// Once the table is full, two rules keep what is in use. An entry that was found since the
// hand last came by is spared once (the clock of Corbató, 1968). And a new one comes in
// only if it was missed before of late, so that any number of those that are asked for
// once displace nothing.
//
// All methods may be called at once from many goroutines.
type table struct {
	max  uint64 // of all weights together
	sets atomic.Pointer[[]tableSet]

	mu      sync.Mutex // held by who changes anything below, or the sets but for their marks
	weight  uint64
	hand    int      // the place that was last looked at, counted through all sets
	missed  []uint32 // a part of the key last refused, by other parts; nil before the table is full
	entries atomic.Int64
	evicted atomic.Uint64
}

// ways is how many entries a set has room for.
const ways = 7

// tableSet has places for entries, and in one word what is to be known of them: a byte
// of the key of each, 0 for none, and above those a bit for each that was found of late.
type tableSet struct {
	word   atomic.Uint64
	places [ways]atomic.Pointer[entry]
}

// newTable returns a table that grows with what is put into it.
func newTable(maxWeight uint64) *table {
	t := &table{max: maxWeight}
	sets := make([]tableSet, 1)
	t.sets.Store(&sets)
	return t
}

// lookupKey is the keyed hash of a presented text.
type lookupKey struct{ low, high uint64 }

// tag is the byte that stands for the key in its set: other bits than those that choose it.
func (k lookupKey) tag() uint64 { return max(1, k.low&firstTag) }

func (k lookupKey) set(sets []tableSet) *tableSet {
	return &sets[k.high&uint64(len(sets)-1)] //nolint:gosec // not negative
}

const (
	eachTag  = 0x00_01_01_01_01_01_01_01
	tagTops  = eachTag << 7
	firstTag = 0xff
	markBit  = ways * 8 // of the first place
)

func mark(place int) uint64 { return 1 << (markBit + place) }

// get returns the entry with the key, or nil, and remembers that it was asked for.
func (t *table) get(k lookupKey) *entry {
	s := k.set(*t.sets.Load())
	word := s.word.Load()
	// A byte of other is 0 where the tag is the key's. The top bit of each such byte is set
	// in hits; a borrow can set it in the byte above one of them too, which the comparison
	// of the keys finds out.
	other := word ^ k.tag()*eachTag
	for hits := (other - eachTag) &^ other & tagTops; hits != 0; hits &= hits - 1 {
		place := bits.TrailingZeros64(hits) / 8
		e := s.places[place].Load()
		prefetch(e)
		if e == nil || e.key != k {
			continue
		}
		if word&mark(place) == 0 {
			s.word.Or(mark(place)) // if another entry came in between, it is spared once
		}
		return e
	}
	return nil
}

// put keeps e in the place of an entry with the same key if there is one, or if there is
// room for it, or if it was to be put in before of late.
func (t *table) put(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := e.key.set(*t.sets.Load())
	place := s.placeFor(e.key)
	old := s.places[place].Load()
	again := old != nil && old.key == e.key
	if !again && !t.admits(e) {
		return
	}
	if old != nil {
		t.remove(s, place)
		if !again {
			t.evicted.Add(1)
		}
	}
	if uint64(e.weight) > t.max {
		return
	}
	s.fill(place, e)
	t.weight += uint64(e.weight)
	t.entries.Add(1)
	for t.weight > t.max {
		t.evict(e)
	}
	t.grow()
}

// admits reports whether a new entry may come in, and notes that it wanted to.
func (t *table) admits(e *entry) bool {
	if t.weight+uint64(e.weight) <= t.max {
		return true
	}
	if t.missed == nil {
		t.missed = make([]uint32, 1<<bits.Len64(t.max-1))
	}
	last, part := &t.missed[e.key.high>>32&uint64(len(t.missed)-1)], uint32(e.key.low>>32) //nolint:gosec // the upper half
	if *last == part {
		return true
	}
	*last = part
	return false
}

// placeFor returns where an entry with the key goes: where one with that key is, or where
// none is, or in the place of one that was not found of late, if there is such a one.
func (s *tableSet) placeFor(k lookupKey) int {
	empty, spent := -1, -1
	for i := range ways {
		switch e := s.places[i].Load(); {
		case e == nil:
			empty = i
		case e.key == k:
			return i
		case s.word.Load()&mark(i) == 0:
			spent = i
		}
	}
	switch {
	case empty >= 0:
		return empty
	case spent >= 0:
		return spent
	}
	return int(k.low>>8) % ways //nolint:gosec // any will do
}

// fill puts e into a place where none is.
func (s *tableSet) fill(place int, e *entry) {
	s.word.And(^mark(place)) // a reader may have left it for the one before
	s.places[place].Store(e)
	s.word.Or(e.key.tag() << (8 * place))
}

// remove takes out the entry in the place, which may be read still by who found it.
func (t *table) remove(s *tableSet, place int) {
	e := s.places[place].Load()
	s.word.And(^(firstTag<<(8*place) | mark(place)))
	s.places[place].Store(nil)
	t.weight -= uint64(e.weight)
	t.entries.Add(-1)
}

// evictLooks bounds how many entries are spared in a row, so that who brings a new one
// waits no longer where all are in use.
const evictLooks = 32

// evict takes out one entry that is not spare. There is one.
func (t *table) evict(spare *entry) {
	sets := *t.sets.Load()
	for spared := 0; ; {
		t.hand = (t.hand + 1) % (ways * len(sets))
		s, place := &sets[t.hand/ways], t.hand%ways
		switch e := s.places[place].Load(); {
		case e == nil || e == spare:
		case s.word.Load()&mark(place) != 0 && spared < evictLooks:
			s.word.And(^mark(place))
			spared++
		default:
			t.remove(s, place)
			t.evicted.Add(1)
			return
		}
	}
}

// setLoad is how many entries a set has in the mean before there are twice as many sets:
// few enough that a set overflows for less than a hundredth of them.
const setLoad = 3

// grow makes twice as many sets once they are loaded. Who looks meanwhile finds everything
// in the old ones.
func (t *table) grow() {
	old := *t.sets.Load()
	if t.entries.Load() <= int64(setLoad*len(old)) {
		return
	}
	sets := make([]tableSet, 2*len(old))
	for i := range old {
		for place := range ways {
			if e := old[i].places[place].Load(); e != nil { // each set is divided between two
				s := e.key.set(sets)
				s.fill(place, e)
				s.word.Or(old[i].word.Load() & mark(place))
			}
		}
	}
	t.sets.Store(&sets)
}
