package boltstore

import (
	"context"
	"crypto/rand"
	"errors"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// filtered waits until the store's filter has all digests.
func filtered(t testing.TB, s *Store) {
	t.Helper()
	if _, err := s.ByDigest(t.Context(), randomDigest()); !errors.Is(err, tokenstore.ErrNotFound) {
		t.Fatal(err)
	}
	for {
		if table := s.filter.table.Load(); table != nil && table.whole.Load() {
			return
		}
		runtime.Gosched()
	}
}

func randomDigest() (d tokenstore.Digest) {
	_, _ = rand.Read(d[:]) // never fails
	return d
}

// checkFilter fails the test when a stored digest is said to be absent.
func checkFilter(t testing.TB, s *Store) {
	t.Helper()
	for d, err := range s.Digests(context.WithoutCancel(t.Context())) {
		if err != nil {
			t.Error(err)
			return
		}
		if s.lacks(&d.Digest) {
			t.Errorf("the digest of token %d is stored, and said to be absent", d.Owner)
			return
		}
	}
}

// TestNoStoredDigestIsSaidToBeAbsent has tokens made while the filter is begun,
// gathered and made anew, and looks for each as soon as it is acknowledged.
func TestNoStoredDigestIsSaidToBeAbsent(t *testing.T) {
	stored, askers := 5_000, 1 // gathered in several views
	if storetest.Soak() {
		stored, askers = 20_000, 4
	}
	const writing, each = 4, 250
	s := newTestStore(t, Options{})
	load(t, s, stored)
	s.db.NoSync = true
	var made atomic.Uint64
	var writers, strangers sync.WaitGroup
	stop := make(chan struct{})
	for range writing {
		writers.Go(func() {
			for range each {
				var id tokenstore.ID
				if err := s.Change(t.Context(), put(&id)); err != nil {
					t.Error(err)
					return
				}
				if got, err := s.ByDigest(t.Context(), storetest.SampleDigest(id)); err != nil || got.ID != id {
					t.Errorf("token %d was made, and is not found: %v", id, err)
					return
				}
				if made.Add(1)%100 == 0 { // as if it had become too small
					table := s.filter.table.Load()
					if table != nil && table.whole.Load() {
						s.filter.table.CompareAndSwap(table, overfull(table))
						s.filter.ask()
					}
				}
			}
		})
	}
	for range askers {
		strangers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := s.ByDigest(t.Context(), randomDigest()); !errors.Is(err, tokenstore.ErrNotFound) {
					t.Errorf("an unknown digest: %v", err)
					return
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	strangers.Wait()
	filtered(t, s)
	wantTokens(t, s, stored+writing*each)
	checkFilter(t, s)
}

// overfull is the same table, as if it had been made for far fewer digests.
func overfull(b *bloom) *bloom {
	small := &bloom{blocks: b.blocks, gathered: b.gathered}
	small.whole.Store(true)
	return small
}

func TestFilterKnowsWhatAReplicaFollows(t *testing.T) {
	s := newTestStore(t, Options{ReplicaOf: "another"})
	filtered(t, s)
	for id := range tokenstore.ID(200) {
		one := storetest.Sample(id+1, 1, 1)
		record, err := tokenstore.EncodeRecord(nil, one)
		if err != nil {
			t.Fatal(err)
		}
		retired := tokenstore.Retired{Digest: randomDigest(), Owner: one.ID}
		if _, err := s.Apply(t.Context(), &tokenstore.Update{
			Records: []tokenstore.SealedRecord{{ID: one.ID, Sealed: s.peppers.Seal(record)}}, Retired: []tokenstore.Retired{retired},
		}); err != nil {
			t.Fatal(err)
		}
		if got, err := s.ByDigest(t.Context(), storetest.SampleDigest(one.ID)); err != nil || got.ID != one.ID {
			t.Fatalf("token %d was followed, and is not found: %v", one.ID, err)
		}
	}
	checkFilter(t, s)
}

func TestUnknownDigestsDoNotReadTheFile(t *testing.T) {
	s := newTestStore(t, Options{})
	load(t, s, 1000)
	filtered(t, s)
	before := s.db.Stats().TxN
	for range 10_000 {
		if _, err := s.ByDigest(t.Context(), randomDigest()); !errors.Is(err, tokenstore.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if reads := s.db.Stats().TxN - before; reads > 100 {
		t.Errorf("10000 unknown digests read the file %d times", reads)
	}
}

func TestFullFilterIsMadeAnew(t *testing.T) {
	s := newTestStore(t, Options{})
	load(t, s, 1000)
	filtered(t, s)
	first := s.filter.table.Load()
	s.filter.table.Store(overfull(first))
	var id tokenstore.ID
	if err := s.Change(t.Context(), put(&id)); err != nil {
		t.Fatal(err)
	}
	for s.filter.table.Load().capacity == 0 {
		runtime.Gosched()
	}
	filtered(t, s)
	if again := s.filter.table.Load(); again.gathered != 1001 {
		t.Errorf("the new filter has %d digests, want 1001", again.gathered)
	}
	checkFilter(t, s)
}

// TestFilterIsAsExactAsItIsMadeFor bounds false alarms at the size for which it is
// made, and at twice that.
func TestFilterIsAsExactAsItIsMadeFor(t *testing.T) {
	b := newBloom(fewestDigests)
	alarms := func() (n int) {
		for range 100_000 {
			if d := randomDigest(); b.has(d[:]) {
				n++
			}
		}
		return n
	}
	for _, most := range []int{600, 8000} { // of 100,000
		for range fewestDigests {
			d := randomDigest()
			b.add(d[:])
		}
		if n := alarms(); n > most {
			t.Errorf("%d of 100000 unknown digests pass the filter, want at most %d", n, most)
		}
	}
}

func TestClosedStoreSaysSoOfUnknownDigests(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	s, err := Create(Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	filtered(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ByDigest(t.Context(), randomDigest()); !errors.Is(err, tokenstore.ErrClosed) {
		t.Errorf("it says %v", err)
	}
}

func BenchmarkUnknownDigest(b *testing.B) {
	s := bulkStore(b, nil, false)
	filtered(b, s)
	digests := make([]tokenstore.Digest, 4096)
	for i := range digests {
		digests[i] = randomDigest()
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := s.ByDigest(b.Context(), digests[i&4095]); !errors.Is(err, tokenstore.ErrNotFound) {
			b.Fatal(err)
		}
		i++
	}
}
