package tokenstore

import (
	"math/rand/v2"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
)

// checkTable holds what is true of a table that nobody changes at the moment, and returns
// what it keeps.
func checkTable(t *testing.T, table *table) map[lookupKey]*entry {
	t.Helper()
	kept := make(map[lookupKey]*entry)
	var weight uint64
	sets := *table.sets.Load()
	for i := range sets {
		for place := range ways {
			e, tag := sets[i].places[place].Load(), sets[i].word.Load()>>(8*place)&firstTag
			if e == nil {
				if tag != 0 {
					t.Fatalf("place %d of set %d is empty and has the tag %#x", place, i, tag)
				}
				continue
			}
			if tag != e.key.tag() || e.key.set(sets) != &sets[i] {
				t.Fatalf("entry %x stands in set %d with the tag %#x", e.key, i, tag)
			}
			if kept[e.key] != nil {
				t.Fatalf("entry %x stands in two places", e.key)
			}
			kept[e.key] = e
			weight += uint64(e.weight)
		}
	}
	if weight != table.weight || weight > table.max || len(kept) != int(table.entries.Load()) {
		t.Fatalf("%d entries of weight %d, counted as %d and %d of at most %d",
			len(kept), weight, table.entries.Load(), table.weight, table.max)
	}
	return kept
}

// TestTableKeepsWhatItWasGiven compares tables with a map after each step. Keys are
// chosen so that many share a set, and many of those a tag.
func TestTableKeepsWhatItWasGiven(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                    string
		max                     uint64
		sets, tags              uint64
		heaviest                uint32
		everything, pushy, full bool // nothing goes; something does; something does not come in
	}{
		{"roomy", 1 << 20, 1 << 32, 1 << 32, 1, true, false, false},
		{"roomy, few tags", 1 << 20, 1 << 32, 2, 3, true, false, false},
		{"one set", 1 << 20, 1, 256, 1, false, true, false},
		{"full", 200, 1 << 32, 1 << 32, 1, false, true, true},
		{"full, by weight", 500, 64, 4, 120, false, true, true},
		{"of one", 1, 4, 4, 2, false, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // repeatable
			table, model := newTable(c.max), make(map[lookupKey]*entry)
			var known []lookupKey
			evicted, refused := uint64(0), 0
			for step := range 4_000 {
				k := lookupKey{r.Uint64()<<32 | r.Uint64N(c.tags), r.Uint64()<<32 | r.Uint64N(c.sets)}
				if len(known) > 0 && r.IntN(3) > 0 {
					k = known[r.IntN(len(known))]
				}
				if got := table.get(k); got != nil && got != model[k] {
					t.Fatalf("step %d: asked for %x, found %x", step, k, got.key)
				} else if got == nil && model[k] != nil {
					t.Fatalf("step %d: %x is lost", step, k)
				}
				if r.IntN(2) == 0 {
					continue
				}
				e := &entry{key: k, weight: 1 + r.Uint32N(c.heaviest)}
				had, room := model[k] != nil, table.weight+uint64(e.weight) <= c.max
				table.put(e)
				known = append(known, k)
				kept := checkTable(t, table)
				if fits := uint64(e.weight) <= c.max; kept[k] == e {
					model[k] = e
				} else if fits && (had || room) || kept[k] != nil {
					t.Fatalf("step %d: what was just put in is not there", step)
				} else {
					refused++
					delete(model, k)
				}
				evicted += uint64(len(model) - len(kept))
				model = kept
				if got := table.evicted.Load(); got != evicted {
					t.Fatalf("step %d: %d went, and %d were counted", step, evicted, got)
				}
			}
			if c.everything && evicted > uint64(len(known)/100) {
				t.Errorf("%d of %d went, and there is room for all", evicted, len(known))
			}
			if c.pushy && evicted == 0 || c.full && refused == 0 {
				t.Errorf("%d were pushed out, %d refused", evicted, refused)
			}
		})
	}
}

// TestTableUnderReadersGivesEachItsOwn has readers look while entries come, go and move
// into twice as many sets. What is never pushed out is always found.
func TestTableUnderReadersGivesEachItsOwn(t *testing.T) {
	t.Parallel()
	const stays, others = 8, 30_000
	bounded := newTable(others / 4)
	// What stays shares no set with what comes and goes, but while there is only one.
	steady := func(i int) lookupKey { return lookupKey{uint64(i), 2 * uint64(i)} } //nolint:gosec // small
	for i := range stays {
		bounded.put(&entry{key: steady(i), weight: 1})
	}
	grown := newTable(1 << 20) // the same without a bound that matters
	for i := range stays {
		grown.put(&entry{key: steady(i), weight: 1})
	}
	tables := []*table{bounded, grown}
	var done atomic.Bool
	var looking sync.WaitGroup
	for seed := range uint64(3) {
		looking.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // repeatable
			for !done.Load() {
				k := steady(r.IntN(stays))
				if e := grown.get(k); e == nil || e.key != k {
					t.Errorf("asked for %x, which is never pushed out: %v", k, e)
					return
				}
				k = lookupKey{r.Uint64N(others), 1 + 2*r.Uint64N(others)}
				for _, one := range tables {
					if e := one.get(k); e != nil && e.key != k {
						t.Errorf("asked for %x, found %x", k, e.key)
						return
					}
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(9, 1)) //nolint:gosec // repeatable
	for range others {
		k := lookupKey{r.Uint64N(others), 1 + 2*r.Uint64N(others)}
		bounded.put(&entry{key: k, weight: 1})
		grown.put(&entry{key: k, weight: 1})
	}
	done.Store(true)
	looking.Wait()
	checkTable(t, bounded)
	checkTable(t, grown)
	if bounded.evicted.Load() == 0 {
		t.Error("nothing was pushed out")
	}
}

// TestPuttingIntoAFullTableSparesFewInARow: where all is in use, who brings one more does
// not look through everything first.
func TestPuttingIntoAFullTableSparesFewInARow(t *testing.T) {
	t.Parallel()
	const entries = 10_000
	table := newTable(entries)
	r := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // repeatable
	fresh := func() *entry { return &entry{key: lookupKey{r.Uint64(), r.Uint64()}, weight: 1} }
	for table.entries.Load() < entries {
		table.put(fresh())
	}
	for k := range checkTable(t, table) {
		table.get(k)
	}
	sets := len(*table.sets.Load())
	for range 100 {
		before, e := table.hand, fresh()
		table.put(e)
		table.put(e)
		// Of each set's places at least 10,000 ÷ sets are taken: in the mean more than one.
		if walked := (table.hand - before + ways*sets) % (ways * sets); walked > 10*evictLooks*ways {
			t.Fatalf("one put looked at %d places", walked)
		}
	}
	checkTable(t, table)
}

// TestFullTableTakesInWhatIsMissedAgain: tokens that are asked for once displace nothing,
// and one that comes into use finds its place.
func TestFullTableTakesInWhatIsMissedAgain(t *testing.T) {
	t.Parallel()
	const entries = 1000
	table := newTable(entries)
	r := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // repeatable
	fresh := func() *entry { return &entry{key: lookupKey{r.Uint64(), r.Uint64()}, weight: 1} }
	for table.entries.Load() < entries {
		table.put(fresh())
	}
	before := table.evicted.Load()
	for range entries {
		table.put(fresh())
	}
	if got := table.evicted.Load() - before; got > entries/100 {
		t.Errorf("%d entries that were asked for once displaced %d", entries, got)
	}
	e := fresh()
	for i, want := range []bool{false, true} {
		if table.put(e); (table.get(e.key) != nil) != want {
			t.Errorf("missed %d times: it is kept: %t", i+1, !want)
		}
	}
	heavy := &entry{key: e.key, weight: entries + 1}
	if table.put(heavy); table.get(e.key) != nil {
		t.Error("what became too large for the table left the entry from before")
	}
	checkTable(t, table)
}

// TestEntryIsOneBlockOfMemory: a judgement waits for memory once only if the entry is what
// prefetch asks for.
func TestEntryIsOneBlockOfMemory(t *testing.T) {
	t.Parallel()
	e := reflect.TypeFor[entry]()
	if reflect.TypeFor[uintptr]().Size() != 8 {
		t.Skip("the sizes are those of processors with 64 bits")
	}
	const header = 8 // the runtime's, in front of what is larger than 512 bytes
	if size := e.Size() + header; size != 1024 {
		t.Errorf("an entry takes %d bytes, want 1024: change what texts have room for", size)
	}
	if token, _ := e.FieldByName("token"); (token.Offset+header)%64 != 0 {
		t.Errorf("the token begins at byte %d, which is not where a cache line begins", token.Offset+header)
	}
	if set := reflect.TypeFor[tableSet]().Size(); set != 64 {
		t.Errorf("a set takes %d bytes, want one cache line", set)
	}
}
