package boltstore

import (
	"encoding/binary"
	"testing"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

func counterKey(kind byte, id uint64) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{kind}, id), make([]byte, 8)...)
}

// TestCountersAreKeptUntilTheirTokenIsSwept also holds that a store without any
// reads as empty, and that the rest of the store does not mind them.
func TestCountersAreKeptUntilTheirTokenIsSwept(t *testing.T) {
	s := newTestStore(t, Options{})
	load(t, s, 3)
	if v, err := s.Counter(counterKey(0, 1)); v != nil || err != nil {
		t.Fatalf("%q, %v", v, err)
	}
	var all []Counter
	for _, k := range [][]byte{counterKey(0, 1), counterKey(0, 2), counterKey(3, 1)} {
		all = append(all, Counter{k, []byte("value of " + string(k))})
	}
	if err := s.KeepCounters(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	if err := s.Change(t.Context(), func(tx tokenstore.Tx) error {
		tx.Emit([]byte("{}"))
		return tx.Sweep(1)
	}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, true, true} {
		v, err := s.Counter(all[i].Key)
		if err != nil || (string(v) == string(all[i].Value)) != want {
			t.Errorf("counter %d: %q, %v", i, v, err)
		}
	}
	check(t, s)
}

func TestCountersThatAreOverAreDropped(t *testing.T) {
	s := newTestStore(t, Options{})
	if n, err := s.DropCounters(t.Context(), func(_, _ []byte) bool { return true }); n != 0 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	var all []Counter
	for id := range uint64(countersStep + 100) {
		all = append(all, Counter{counterKey(0, id), []byte{byte(id % 3)}})
	}
	if err := s.KeepCounters(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	n, err := s.DropCounters(t.Context(), func(_, v []byte) bool { return v[0] == 0 })
	if want := (len(all) + 2) / 3; n != want || err != nil {
		t.Fatalf("%d dropped, want %d; %v", n, want, err)
	}
	if v, err := s.Counter(all[3].Key); v != nil || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	if v, err := s.Counter(all[4].Key); len(v) != 1 || err != nil {
		t.Errorf("%q, %v", v, err)
	}
}

// TestResetTokenInheritsCounters: whoever resets a token does not get its quota anew.
func TestResetTokenInheritsCounters(t *testing.T) {
	s := newTestStore(t, Options{})
	load(t, s, 2)
	if err := s.KeepCounters(t.Context(), []Counter{{counterKey(0, 1), []byte("used")}}); err != nil {
		t.Fatal(err)
	}
	var heir tokenstore.ID
	replace := func() {
		t.Helper()
		if err := s.Change(t.Context(), func(tx tokenstore.Tx) error {
			old, err := tx.Token(1)
			if err != nil {
				return err
			}
			if heir == 0 {
				if heir, err = tx.NewID(); err != nil {
					return err
				}
				next := storetest.Sample(heir, old.Account, old.Owner)
				if err := tx.Put(next); err != nil {
					return err
				}
			}
			old.ReplacedBy = heir
			tx.Emit([]byte("{}"))
			return tx.Put(old)
		}); err != nil {
			t.Fatal(err)
		}
	}
	replace()
	if v, err := s.Counter(counterKey(0, uint64(heir))); string(v) != "used" || err != nil {
		t.Fatalf("%q, %v", v, err)
	}
	if err := s.KeepCounters(t.Context(), []Counter{{counterKey(0, uint64(heir)), []byte("used more")}}); err != nil {
		t.Fatal(err)
	}
	replace() // another change of the old token
	if v, err := s.Counter(counterKey(0, uint64(heir))); string(v) != "used more" || err != nil {
		t.Fatalf("%q, %v", v, err)
	}
	check(t, s)
}
