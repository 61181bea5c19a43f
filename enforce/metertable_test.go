package enforce

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

func TestMeterTableLosesNoMeter(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // repeatable
	var table meterTable
	model := make(map[meterKey]*meter)
	check := func() {
		t.Helper()
		if table.n != len(model) {
			t.Fatalf("the table has %d meters, and should have %d", table.n, len(model))
		}
		for k, m := range model {
			if table.get(k) != m {
				t.Fatalf("meter %v is not found", k)
			}
		}
	}
	for i := range 20_000 {
		k := meterKey{subject(r.IntN(int(numSubjects))), r.Uint64N(200), r.Uint64N(3)} //nolint:gosec // small
		switch m := model[k]; {
		case m == nil:
			if table.get(k) != nil {
				t.Fatalf("meter %v is found, and was never put in, or taken out", k)
			}
			model[k] = &meter{key: k}
			table.add(model[k])
		case r.IntN(3) > 0:
			table.remove(m)
			delete(model, k)
		}
		if i%100 == 0 {
			check()
		}
	}
	check()
	seen := make(map[*meter]bool)
	for range *table.slots.Load() {
		if m := table.next(); m != nil {
			seen[m] = true
		}
	}
	if len(seen) != len(model) {
		t.Errorf("going round shows %d meters of %d", len(seen), len(model))
	}
	for _, m := range model {
		table.remove(m)
	}
	if table.n != 0 || table.get(meterKey{}) != nil {
		t.Errorf("the table has %d meters left", table.n)
	}
}

// TestGlanceBesideChangesFindsNoOthersMeter looks without the lock while meters come and
// go: what is found is always the one that was asked for.
func TestGlanceBesideChangesFindsNoOthersMeter(t *testing.T) {
	t.Parallel()
	const keys, changes = 64, 20_000
	key := func(i uint64) meterKey { return meterKey{ofToken, i % keys, 0} }
	var table meterTable
	stays := &meter{key: meterKey{ofAccount, 1, 0}} // it moves when others before it go
	table.add(stays)
	var looking sync.WaitGroup
	var done atomic.Bool
	var found atomic.Int64
	for seed := range uint64(2) {
		looking.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // repeatable
			for !done.Load() {
				k := key(r.Uint64())
				if m := table.glance(k); m != nil {
					found.Add(1)
					if m.key != k {
						t.Errorf("asked for %v, found %v", k, m.key)
						return
					}
				}
				if m := table.glance(stays.key); m != nil && m != stays {
					t.Errorf("asked for %v, found %v", stays.key, m.key)
					return
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(3, 1)) //nolint:gosec // repeatable
	for i := 0; i < changes || found.Load() == 0; i++ {
		k := key(r.Uint64())
		if m := table.get(k); m != nil {
			table.remove(m)
		} else {
			table.add(&meter{key: k})
		}
	}
	done.Store(true)
	looking.Wait()
	if table.glance(stays.key) != stays {
		t.Error("a meter that was never taken out is not found once the changes are over")
	}
}
