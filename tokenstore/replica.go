package tokenstore

import (
	"slices"
	"time"
)

// Traits are what a store says of its secrets as a whole. They only grow.
type Traits struct {
	Peppers  []PepperID // that ever sealed a record
	Prefixes []string   // that secrets ever bore
	Foreign  []Foreign  // kinds of secrets from elsewhere
}

// Foreign is a kind of secrets from elsewhere that a store holds: the scheme of
// their digests, and for SchemeHMAC the id of the key.
type Foreign struct {
	Scheme Scheme
	Key    PepperID
}

// Valid reports whether there can be secrets of the kind.
func (f Foreign) Valid() bool {
	return f.Scheme.Valid() && f.Scheme != SchemeNative && f.Key.IsZero() == (f.Scheme != SchemeHMAC)
}

// Formats is what the traits say about the form of secrets.
func (t *Traits) Formats() *Formats {
	f := NewFormats(t.Prefixes...)
	for _, kind := range t.Foreign {
		f = f.With(kind.Scheme)
	}
	return f
}

// Lacks returns the peppers that records may be sealed with and have does not hold.
func (t *Traits) Lacks(have *Peppers) []PepperID {
	return slices.DeleteFunc(slices.Clone(t.Peppers), func(id PepperID) bool { return slices.Contains(have.IDs(), id) })
}

// Update is a step in which a replica follows a store elsewhere. It takes effect
// as a whole or not at all, and doing it twice is doing it once.
type Update struct {
	Records  []SealedRecord // in the order of the changes, which observers are told in
	Retired  []Retired
	Traits   *Traits  // nil: as before; else what is new is added
	Position Position // where the replica is afterwards; zero: where it was
}

// SealedRecord is a token as stores keep it: an encoded record under the seal of
// the writing pepper. Sealed is empty for a token that was swept.
type SealedRecord struct {
	ID     ID
	Sealed []byte
}

// Retired is a digest that no token has any more, and whose it was.
type Retired struct {
	Digest Digest
	Owner  ID
}

// Position says how far a replica has followed.
type Position struct {
	Store    string    // the ID of the store that it follows
	Revision int64     // of that store, which the replica holds as a whole; 0: it never did
	Head     string    // what tells the revision from one of the same number in another history
	FreshAt  time.Time // until when, by the wall clock, it is known to have held all
	Gaps     bool      // it holds all but records that it could not read
}
