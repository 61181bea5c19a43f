package tokenstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"iter"
)

// Entry is a part of what a store holds, in a form that is the same for every
// driver: so a whole store is carried into another one, and the two are compared.
//
// The entries of a store come in the order of their kinds, and those of a kind in
// the order of their keys, none twice. Events that wait for the audit log are not
// among them: they have their numbers from the store that they wait in.
type Entry struct {
	Kind       EntryKind
	Key, Value []byte // as the kind says; numbers have 8 bytes, the highest first
}

// EntryKind says what an entry is about. One that is added needs a name in
// entryNames, and each driver has to write it, to read it, and to find it in order.
type EntryKind uint8

// The kinds of entries.
const (
	EntryLastID    EntryKind = iota + 1 // no key; the highest id that was ever given out
	EntryLastSeq                        // no key; the highest number of an event that the store had as a file
	EntryPepper                         // its id; nothing
	EntryPrefix                         // what secrets ever began with; nothing
	EntryForeign                        // scheme and key of secrets from elsewhere; nothing
	EntryDigest                         // the digest; whose it is or was, and 1 if that token has it no more
	EntryRecord                         // the token's id; its sealed record
	EntryUsageName                      // a number; the name that usage refers to by it
	EntryUsage                          // the token's id; its usage
	EntryNotice                         // the token's id; its [Notice]
	EntryCounter                        // the key of a limit's counts; the counts
	EntryAnswer                         // the key it is kept under; until when, in milliseconds since 1970, and the sealed answer
)

// EntryKinds is one more than the last kind.
const EntryKinds = EntryKind(uint8(EntryAnswer) + 1)

var entryNames = [EntryKinds]string{
	EntryLastID: "last id", EntryLastSeq: "last event", EntryPepper: "pepper", EntryPrefix: "prefix", EntryForeign: "kind of imported secrets",
	EntryDigest: "digest", EntryRecord: "token", EntryUsageName: "name in usage", EntryUsage: "usage of a token", EntryNotice: "notice",
	EntryCounter: "count of a limit", EntryAnswer: "kept answer",
}

// String returns what one of the kind is called.
func (k EntryKind) String() string {
	if k == 0 || k >= EntryKinds {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return entryNames[k]
}

// Equal reports whether the two are the same.
func (e *Entry) Equal(other *Entry) bool {
	return e.Kind == other.Kind && bytes.Equal(e.Key, other.Key) && bytes.Equal(e.Value, other.Value)
}

// compare says where e stands among entries.
func (e *Entry) compare(other *Entry) int {
	if e.Kind != other.Kind {
		return int(e.Kind) - int(other.Kind)
	}
	return bytes.Compare(e.Key, other.Key)
}

// Both is an entry as two stores have it: nil where one lacks it.
type Both struct{ Left, Right *Entry }

// Same reports whether both stores have it, and the same.
func (b *Both) Same() bool { return b.Left != nil && b.Right != nil && b.Left.Equal(b.Right) }

// Compare goes through the entries of two stores side by side. An error of either,
// or entries that are not in order, end it.
func Compare(left, right iter.Seq2[Entry, error]) iter.Seq2[Both, error] {
	return func(yield func(Both, error) bool) {
		l, r := sideOf(left), sideOf(right)
		defer l.stop()
		defer r.stop()
		for {
			a, err := l.peek()
			if err != nil {
				yield(Both{}, err)
				return
			}
			b, err := r.peek()
			if err != nil {
				yield(Both{}, err)
				return
			}
			var both Both
			switch {
			case a == nil && b == nil:
				return
			case b == nil || a != nil && a.compare(b) < 0:
				both.Left = l.take()
			case a == nil || a.compare(b) > 0:
				both.Right = r.take()
			default:
				both = Both{l.take(), r.take()}
			}
			if !yield(both, nil) {
				return
			}
		}
	}
}

// side is one of the two stores that are compared.
type side struct {
	next func() (Entry, error, bool)
	stop func()
	at   *Entry // seen and not taken
	last *Entry // taken
}

func sideOf(entries iter.Seq2[Entry, error]) *side {
	next, stop := iter.Pull2(entries)
	return &side{next: next, stop: stop}
}

// peek returns the next entry, and nil at the end.
func (s *side) peek() (*Entry, error) {
	if s.at != nil {
		return s.at, nil
	}
	e, err, ok := s.next()
	if err != nil || !ok {
		return nil, err
	}
	if s.last != nil && s.last.compare(&e) >= 0 {
		return nil, fmt.Errorf("%w: a %s comes out of order", ErrInvariant, e.Kind)
	}
	s.at = &e
	return s.at, nil
}

func (s *side) take() *Entry {
	s.last, s.at = s.at, nil
	return s.last
}

// Tally sums up the entries of a store. The zero Tally is of none.
type Tally struct {
	counts [EntryKinds]uint64
	sum    hash.Hash
}

// Add takes the next entry of the store.
func (t *Tally) Add(e *Entry) {
	if t.sum == nil {
		t.sum = sha256.New()
	}
	t.counts[e.Kind]++
	var head [1 + 2*binary.MaxVarintLen64]byte
	b := append(head[:0], byte(e.Kind))
	b = binary.AppendUvarint(b, uint64(len(e.Key)))
	b = binary.AppendUvarint(b, uint64(len(e.Value)))
	t.sum.Write(b)
	t.sum.Write(e.Key)
	t.sum.Write(e.Value)
}

// Count returns how many entries of a kind there were.
func (t *Tally) Count(k EntryKind) uint64 { return t.counts[k] }

// Sum returns the SHA-256 of all entries: the same for two stores that hold the
// same.
func (t *Tally) Sum() [sha256.Size]byte {
	if t.sum == nil {
		return sha256.Sum256(nil)
	}
	return [sha256.Size]byte(t.sum.Sum(nil))
}

// DifferenceError says where two stores that should hold the same do not.
type DifferenceError struct {
	Kind          EntryKind
	Lacks, Beyond uint64 // entries that only the first has, and only the second
	Other         uint64 // entries that both have, not the same
}

func (e *DifferenceError) Error() string {
	return fmt.Sprintf("the copy is not the same: %d entries are missing, %d are too many, %d differ; the first is a %s", e.Lacks, e.Beyond, e.Other, e.Kind)
}

// Verify goes through two stores, and returns the sum of what both hold, or a
// *DifferenceError.
func Verify(original, duplicate iter.Seq2[Entry, error]) (*Tally, error) {
	var t Tally
	var d DifferenceError
	for both, err := range Compare(original, duplicate) {
		if err != nil {
			return nil, err
		}
		at := both.Left
		switch {
		case both.Right == nil:
			d.Lacks++
		case both.Left == nil:
			at = both.Right
			d.Beyond++
		case !both.Same():
			d.Other++
		default:
			t.Add(both.Left)
			continue
		}
		if d.Kind == 0 {
			d.Kind = at.Kind
		}
	}
	if d.Kind != 0 {
		return nil, &d
	}
	return &t, nil
}
