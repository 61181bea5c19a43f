package boltstore

import (
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// digestFilter tells of most digests that the store does not have that it does
// not, without asking the file. A stranger's well-formed secret then costs little
// more than garbage.
//
// # No stored digest is ever said to be absent
//
// Digests are never taken out of the file, so bits are only set. The writing
// goroutine adds a digest in the transaction that stores it, hence before the
// commit. All others are gathered from the file in the background, and until that
// is done nothing is said to be absent. A table comes into use between two commits,
// by the writing goroutine itself: what is committed later was added, and what was
// committed before is found by the gathering, which begins afterwards.
//
// A store that is only opened pays nothing: the first table is made when a digest
// was looked for in vain.
type digestFilter struct {
	table     atomic.Pointer[bloom] // nil: there is none yet
	want      chan struct{}         // asks the writing goroutine for a table
	gathering sync.WaitGroup
}

// bloom is a blocked Bloom filter: all bits of a digest lie in one cache line.
type bloom struct {
	blocks   [][blockWords]atomic.Uint64
	whole    atomic.Bool // it has all digests
	capacity int         // how many it was made for
	gathered int         // how many the file had; set before whole
	added    int         // since; the writing goroutine's own
}

const (
	blockWords = 8
	// bitsPerDigest gives one false alarm in some 300 when the filter is as full as
	// it was made for, and takes 1.9 MB for a million tokens. With twice as many it is
	// one in 20, and the filter is made anew.
	bitsPerDigest = 15
	bitsSet       = 6
	// fewestDigests is what a filter is made for at least: 120 KB.
	fewestDigests = 1 << 16
)

func newBloom(digests int) *bloom {
	digests = max(digests, fewestDigests)
	return &bloom{blocks: make([][blockWords]atomic.Uint64, digests*bitsPerDigest/(blockWords*64)), capacity: digests}
}

// place gives the block of a digest, and the number that its bits are taken from.
// Digests are hashes, so their own bytes are as good as any hash of them.
func (b *bloom) place(d []byte) (block *[blockWords]atomic.Uint64, bits uint64) {
	at := (uint64(binary.LittleEndian.Uint32(d)) * uint64(len(b.blocks))) >> 32
	return &b.blocks[at], binary.LittleEndian.Uint64(d[8:])
}

// add is for one goroutine at a time, or several; has may be called meanwhile.
func (b *bloom) add(d []byte) {
	block, bits := b.place(d)
	for range bitsSet {
		block[bits&7].Or(1 << (bits >> 3 & 63))
		bits >>= 9
	}
}

func (b *bloom) has(d []byte) bool {
	block, bits := b.place(d)
	for range bitsSet {
		if block[bits&7].Load()&(1<<(bits>>3&63)) == 0 {
			return false
		}
		bits >>= 9
	}
	return true
}

// overfull reports whether a larger table would be worth its making.
func (b *bloom) overfull() bool { return b.whole.Load() && b.gathered+b.added > 2*b.capacity }

// putDigest stores where a digest leads. It is for the writing goroutine.
func (s *Store) putDigest(digests *bolt.Bucket, d *tokenstore.Digest, id tokenstore.ID) error {
	if t := s.filter.table.Load(); t != nil {
		t.add(d[:])
		t.added++
	}
	return digests.Put(d[:], number(uint64(id)))
}

// lacks reports whether the store certainly does not have the digest.
func (s *Store) lacks(d *tokenstore.Digest) bool {
	t := s.filter.table.Load()
	return t != nil && t.whole.Load() && !t.has(d[:])
}

// missed is told that a digest was looked for in vain.
func (s *Store) missed() {
	if s.filter.table.Load() == nil {
		s.filter.ask()
	}
}

// ask asks the writing goroutine for a table.
func (f *digestFilter) ask() {
	select {
	case f.want <- struct{}{}:
	default:
	}
}

// renewFilter begins another table. It is for the writing goroutine, between two
// commits.
func (s *Store) renewFilter() {
	old := s.filter.table.Load()
	if old != nil && !old.overfull() {
		return
	}
	s.filter.gathering.Wait() // a table that is overfull was gathered: there is one at a time
	tokens := 0
	for _, n := range s.now.states {
		tokens += int(n) //nolint:gosec // a count of tokens
	}
	if old != nil {
		tokens = max(tokens, old.gathered+old.added)
	}
	t := newBloom(tokens)
	s.filter.table.Store(t)
	s.filter.gathering.Go(func() { s.gatherDigests(t) })
}

// gatherDigests adds the digests that the file has, and then has the table believed,
// unless the store is closed meanwhile or cannot be read: then everything is looked
// up, as before.
func (s *Store) gatherDigests(t *bloom) {
	n := 0
	for d, err := range s.Digests(context.Background()) {
		if err != nil {
			return
		}
		if n++; n%stepEntries == 0 && s.isClosing() {
			return
		}
		t.add(d.Digest[:])
	}
	t.gathered = n
	t.whole.Store(true)
	if n > 2*t.capacity {
		s.filter.ask() // there were many more digests than tokens
	}
}

func (s *Store) isClosing() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}
