package boltstore

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

func TestStoreKeepsTheContract(t *testing.T) {
	for _, test := range []struct {
		name    string
		peppers *tokenstore.Peppers
	}{{"plain", nil}, {"peppered", testPeppers(t, "a")}} {
		t.Run(test.name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, onChange func(tokenstore.Change)) *storetest.Harness {
				o := Options{Path: filepath.Join(t.TempDir(), "tokens.db"), Peppers: test.peppers, OnChange: onChange}
				s, err := Create(o)
				if err != nil {
					t.Fatal(err)
				}
				return harness(t, s, o)
			})
		})
	}
}

// harness lends s to the suite, which may open it again with o.
func harness(t *testing.T, s *Store, o Options) *storetest.Harness {
	// Surviving a power failure is the crash tests' matter; without waiting for
	// the disk the suite takes seconds.
	s.db.NoSync = true
	filtered(t, s)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &storetest.Harness{
		Store: s,
		Pending: func(limit int) ([]storetest.Event, error) {
			var events []storetest.Event
			got, err := s.Pending(limit)
			for _, e := range got {
				events = append(events, storetest.Event(e))
			}
			return events, err
		},
		Done: s.Done,
		Reopen: func(t *testing.T) *storetest.Harness {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			again, err := Open(o)
			if err != nil {
				t.Fatal(err)
			}
			return harness(t, again, o)
		},
		Check: func(t *testing.T) {
			t.Helper()
			select {
			case <-s.closing: // opened again, and checked there
			default:
				check(t, s)
			}
		},
	}
}

// check fails the test when anything in the store is wrong.
func check(t testing.TB, s *Store) {
	t.Helper()
	faults := 0
	err := s.Check(context.WithoutCancel(t.Context()), func(fault string) {
		if faults++; faults < 10 {
			t.Error(fault)
		}
	})
	if err != nil {
		t.Error(err)
	}
	checkFilter(t, s)
}

func testPeppers(t testing.TB, names ...string) *tokenstore.Peppers {
	t.Helper()
	var files [][]byte
	for _, name := range names {
		files = append(files, []byte(strings.Repeat(name, tokenstore.MinPepperBytes)))
	}
	p, err := tokenstore.NewPeppers(files...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
