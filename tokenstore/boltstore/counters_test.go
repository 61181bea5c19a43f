package boltstore

import (
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"tokenward/tokenstore"
)

func counterKey(kind byte, id uint64) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{kind}, id), make([]byte, 8)...)
}

type counterValue struct{ key, value []byte }

// keepCounters replaces what is kept under each key.
func keepCounters(t *testing.T, s *Store, all ...counterValue) {
	t.Helper()
	keys := make([][]byte, len(all))
	for i := range all {
		keys[i] = all[i].key
	}
	if err := s.MoveCounters(t.Context(), keys, func(i int, _ []byte) ([]byte, error) { return all[i].value, nil }); err != nil {
		t.Fatal(err)
	}
}

// TestCountersAreKeptUntilTheirTokenIsSwept also holds that a store without any
// reads as empty, and that the rest of the store does not mind them.
func TestCountersAreKeptUntilTheirTokenIsSwept(t *testing.T) {
	s := newTestStore(t, Options{})
	load(t, s, 3)
	if v, err := s.Counter(counterKey(0, 1)); v != nil || err != nil {
		t.Fatalf("%q, %v", v, err)
	}
	var all []counterValue
	for _, k := range [][]byte{counterKey(0, 1), counterKey(0, 2), counterKey(3, 1)} {
		all = append(all, counterValue{k, []byte("value of " + string(k))})
	}
	keepCounters(t, s, all...)
	if err := s.Change(t.Context(), func(tx tokenstore.Tx) error {
		tx.Emit([]byte("{}"))
		return tx.Sweep(1)
	}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, true, true} {
		v, err := s.Counter(all[i].key)
		if err != nil || (string(v) == string(all[i].value)) != want {
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
	var all []counterValue
	for id := range uint64(countersStep + 100) {
		all = append(all, counterValue{counterKey(0, id), []byte{byte(id % 3)}})
	}
	keepCounters(t, s, all...)
	n, err := s.DropCounters(t.Context(), func(_, v []byte) bool { return v[0] == 0 })
	if want := (len(all) + 2) / 3; n != want || err != nil {
		t.Fatalf("%d dropped, want %d; %v", n, want, err)
	}
	if v, err := s.Counter(all[3].key); v != nil || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	if v, err := s.Counter(all[4].key); len(v) != 1 || err != nil {
		t.Errorf("%q, %v", v, err)
	}
}

// TestCountersMoveTogetherOrNotAtAll has one of many changes among concurrent ones
// refuse, or change nothing.
func TestCountersMoveTogetherOrNotAtAll(t *testing.T) {
	s := newTestStore(t, Options{})
	keys := [][]byte{counterKey(0, 1), counterKey(0, 2)}
	more := func(_ int, old []byte) ([]byte, error) {
		var n byte
		if len(old) > 0 {
			n = old[0]
		}
		return []byte{n + 1}, nil
	}
	refused := errors.New("refused")
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			switch i % 3 {
			case 0:
				if err := s.MoveCounters(t.Context(), keys, more); err != nil {
					t.Error(err)
				}
			case 1:
				err := s.MoveCounters(t.Context(), keys, func(i int, old []byte) ([]byte, error) {
					if i == 1 {
						return nil, refused
					}
					return more(i, old)
				})
				if !errors.Is(err, refused) {
					t.Error(err)
				}
			case 2:
				if err := s.MoveCounters(t.Context(), keys, func(_ int, old []byte) ([]byte, error) { return old, nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, k := range keys {
		if v, err := s.Counter(k); err != nil || len(v) != 1 || v[0] != 20 {
			t.Errorf("%v, %v", v, err)
		}
	}
	before := s.Stats().Commits
	if err := s.MoveCounters(t.Context(), keys, func(_ int, old []byte) ([]byte, error) { return old, nil }); err != nil {
		t.Fatal(err)
	}
	if after := s.Stats().Commits; after != before {
		t.Errorf("%d commits for what stays the same", after-before)
	}
	check(t, s)
}
