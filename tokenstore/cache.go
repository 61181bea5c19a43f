package tokenstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/dchest/siphash"
)

// ErrBrokenSecret says that a presented text cannot be a secret by its form.
var ErrBrokenSecret = errors.New("not the form of a secret")

// DigestReader is what the [Cache] needs of a store: [Reader.ByDigest].
type DigestReader interface {
	ByDigest(ctx context.Context, d Digest) (*Token, error)
}

// Match is a token together with the one of its secrets that was presented.
type Match struct {
	Token  *Token
	Secret *SecretRecord
	Beside *Beside // nil where the token is not kept
}

// Beside has places in the memory of a cached token's secret for pointers to what goes
// with it: the state of its limits for who judges by it, and the trace of its use for who
// notes that. Finding those takes two to four reads of memory less to wait for then. They
// are lost when the entry goes. A nil Beside keeps nothing.
type Beside struct {
	limits atomic.Value
	use    atomic.Pointer[any]
}

// Limits returns the pointer that was put there, or nil. It asks for the memory that both
// pointers lead to, so that it is on its way while the token is judged.
func (b *Beside) Limits() any {
	if b == nil {
		return nil
	}
	limits := b.limits.Load()
	prefetchBeside(limits, b.use.Load())
	return limits
}

// PutLimits replaces the pointer to the state of the limits. All are of the same type.
func (b *Beside) PutLimits(pointer any) {
	if b != nil {
		b.limits.Store(pointer)
	}
}

// Use returns what was put there, or nil.
func (b *Beside) Use() any {
	if b == nil {
		return nil
	}
	if self := b.use.Load(); self != nil {
		return *self
	}
	return nil
}

// PutUse replaces the trace of use. It takes a pointer to a value that holds the pointer
// to the trace, and may be the first field of that trace itself: an entry has room for no
// more than that.
func (b *Beside) PutUse(self *any) {
	if b != nil {
		b.use.Store(self)
	}
}

// Cache leads from a presented secret to its token. It keeps a bounded number
// of tokens in memory and asks the store for the others; secrets that lead
// nowhere are never kept, so they displace nothing.
//
// Entries are found by a keyed hash of the text, whatever the store's digests are
// made with: those, and a pepper, are asked for only on a miss and cost a hit
// nothing. The hash is SipHash-2-4 with 128 bits, which is made to authenticate
// (Aumasson and Bernstein, 2012), under a key that each Cache draws for itself: a
// text that was never issued meets one of n entries by a chance of n in 2^128, and
// nobody outside of this process can know what to try.
//
// # A change is never overtaken by an older answer
//
// A request that misses reads the store and keeps what it found. If a change
// commits between the two, what it keeps is old already. So each stored digest
// belongs to one of a fixed number of generations. A reader notes the
// generation before it reads, the entry bears what was noted, and an entry is
// believed only while its generation is still the present one. A change counts
// the generation up after its commit and before it is acknowledged: whatever
// was read earlier, and whenever it is kept, is not believed any more. Two
// digests that share a generation cost each other a read of the store at most.
//
// All methods may be called at once from many goroutines.
type Cache struct {
	store   DigestReader
	peppers *Peppers
	formats atomic.Pointer[Formats]

	importKeys atomic.Pointer[ImportKeys]

	key         [2]uint64 // of the hash that entries are found by
	entries     *table    // nil: keep nothing
	generations [1 << 16]atomic.Uint32

	lookups [16]lookups // by some bits of the hash, so that cores rarely share one
}

type lookups struct {
	hits, misses, outdated atomic.Uint64

	_ [40]byte // a cache line of its own
}

// NewCache returns a cache of at most maxEntries secrets before store; with 0
// it keeps none. A token of more than 2 KiB counts for several, so that the bound is
// one of memory whatever clients put into their tokens. formats are the
// prefixes recorded in the store.
func NewCache(store DigestReader, peppers *Peppers, formats *Formats, maxEntries int) (*Cache, error) {
	if maxEntries < 0 {
		return nil, fmt.Errorf("a cache cannot keep %d entries: 0 keeps none", maxEntries)
	}
	var key [16]byte
	_, _ = rand.Read(key[:]) // never fails
	c := &Cache{store: store, peppers: peppers}
	c.key = [2]uint64{binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:])}
	c.formats.Store(formats)
	if maxEntries == 0 {
		return c, nil
	}
	c.entries = newTable(uint64(maxEntries))
	return c, nil
}

// Find returns the token that the presented text is a secret of. A text of a
// wrong form gives ErrBrokenSecret and an unknown one ErrNotFound; any other
// error means that the store could not be asked. A found token may be in any
// state: judging it is the caller's. A hit does no I/O and does not allocate.
func (c *Cache) Find(ctx context.Context, text []byte) (Match, error) {
	formats := c.formats.Load()
	class := formats.glance(text)
	switch class {
	case ClassBroken:
		return Match{}, ErrBrokenSecret
	case ClassForeign:
		if formats.foreign == (foreignSchemes{}) {
			return Match{}, ErrNotFound
		}
	case ClassOurs:
	}
	key := c.lookupKey(text)
	count := &c.lookups[key.low&15]
	if c.entries != nil {
		if e := c.entries.get(key); e != nil {
			if c.generations[e.slot].Load() == e.generation {
				count.hits.Add(1)
				return e.match(), nil
			}
			count.outdated.Add(1)
		}
	}
	if class == ClassOurs && !inAlphabet(text) { // which no secret that is kept can be
		return Match{}, ErrBrokenSecret
	}
	count.misses.Add(1)
	if class == ClassForeign {
		return c.fillForeign(ctx, formats, key, text)
	}
	for i := range c.peppers.Candidates() {
		if m, err := c.fill(ctx, key, SchemeNative, c.peppers.Candidate(i, text)); !errors.Is(err, ErrNotFound) {
			return m, err
		}
	}
	return Match{}, ErrNotFound
}

func (c *Cache) lookupKey(text []byte) (k lookupKey) {
	k.low, k.high = siphash.Hash128(c.key[0], c.key[1], text)
	return k
}

// fillForeign looks for a secret from elsewhere under each scheme of which there
// are any.
func (c *Cache) fillForeign(ctx context.Context, f *Formats, key lookupKey, text []byte) (Match, error) {
	if f.foreign[SchemeSHA256] {
		if m, err := c.fillImported(ctx, key, SchemeSHA256, sha256.Sum256(text)); !errors.Is(err, ErrNotFound) {
			return m, err
		}
	}
	keys := c.importKeys.Load()
	if !f.foreign[SchemeHMAC] || keys == nil {
		return Match{}, ErrNotFound
	}
	for k := range keys.keys {
		if m, err := c.fillImported(ctx, key, SchemeHMAC, keys.digest(k, text)); !errors.Is(err, ErrNotFound) {
			return m, err
		}
	}
	return Match{}, ErrNotFound
}

// fillImported looks for a digest that was made elsewhere, under each pepper.
func (c *Cache) fillImported(ctx context.Context, key lookupKey, scheme Scheme, d Digest) (Match, error) {
	for i := range c.peppers.Candidates() {
		if m, err := c.fill(ctx, key, scheme, c.peppers.ImportedCandidate(i, scheme, d)); !errors.Is(err, ErrNotFound) {
			return m, err
		}
	}
	return Match{}, ErrNotFound
}

// fill reads the store under one digest that the text can be stored under. A secret
// that is stored under another scheme is not meant: without a pepper whoever knows an
// imported digest could else present it in the place of the text.
func (c *Cache) fill(ctx context.Context, key lookupKey, scheme Scheme, d Digest) (Match, error) {
	slot := slotOf(&d)
	generation := c.generations[slot].Load()
	t, err := c.store.ByDigest(ctx, d)
	if err != nil {
		return Match{}, err
	}
	n := t.secretWith(d)
	if n < 0 || t.Secrets[n].Scheme != scheme {
		return Match{}, ErrNotFound // the store's index points to a token that lacks the secret
	}
	if c.entries == nil {
		return Match{Token: t, Secret: &t.Secrets[n]}, nil
	}
	e := newEntry(key, t, n, slot, generation)
	c.entries.put(e)
	return e.match(), nil
}

func slotOf(d *Digest) uint16 { return binary.LittleEndian.Uint16(d[:]) }

// Changed makes the next Find of every secret that the token had before the
// change read the store. A driver calls it after the commit and before the
// change is acknowledged.
func (c *Cache) Changed(change Change) {
	if change.Before == nil {
		return // nobody can have found a token that was not there
	}
	for i := range change.Before.Secrets {
		c.generations[slotOf(&change.Before.Secrets[i].Digest)].Add(1)
	}
}

// Forget makes the next Find of every secret read the store: what changed is not
// known.
func (c *Cache) Forget() {
	for i := range c.generations {
		c.generations[i].Add(1)
	}
}

// SetImportKeys sets the keys of HMAC digests that were made elsewhere.
func (c *Cache) SetImportKeys(k *ImportKeys) { c.importKeys.Store(k) }

// SetFormats replaces the set of recorded prefixes.
func (c *Cache) SetFormats(f *Formats) { c.formats.Store(f) }

// CacheStats counts what the cache did since it was made.
type CacheStats struct {
	Entries    int
	MaxEntries int
	Hits       uint64
	Misses     uint64 // lookups that read the store
	Outdated   uint64 // those of them that found an entry from before a change
	Evictions  uint64
}

// Stats returns the counts. They are read one after another, not at one
// instant.
func (c *Cache) Stats() CacheStats {
	var s CacheStats
	for i := range c.lookups {
		s.Hits += c.lookups[i].hits.Load()
		s.Misses += c.lookups[i].misses.Load()
		s.Outdated += c.lookups[i].outdated.Load()
	}
	if c.entries != nil {
		s.Entries, s.MaxEntries = int(c.entries.entries.Load()), int(c.entries.max) //nolint:gosec // it was made from an int
		s.Evictions = c.entries.evicted.Load()
	}
	return s
}
