package enforce

import (
	"math/rand/v2"
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
	for range table.slots {
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
