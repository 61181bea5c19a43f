package tokenstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/maypok86/otter/v2"
	"github.com/maypok86/otter/v2/stats"
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
}

// Cache leads from a presented secret to its token. It keeps a bounded number
// of tokens in memory and asks the store for the others; secrets that lead
// nowhere are never kept, so they displace nothing.
//
// # A change is never overtaken by an older answer
//
// A request that misses reads the store and puts what it found into the cache.
// If a change commits between its read and its put, the put would bring the
// old token back. So each digest belongs to one of a fixed number of
// generations: a reader notes the generation before it reads, a change first
// counts the generation up and then removes the entry, and a put is made, under
// the entry's own lock, only while the generation is still the noted one. A put
// that came first is removed by the change, one that comes later is not made.
//
// All methods may be called at once from many goroutines.
type Cache struct {
	store   DigestReader
	peppers *Peppers
	formats atomic.Pointer[Formats]

	entries     *otter.Cache[Digest, Match] // nil: keep nothing
	generations [1 << 12]atomic.Uint64

	lookups  [16]lookups // by a byte of the digest, so that cores rarely share one
	overtook atomic.Uint64
	evicted  evictions
}

type lookups struct {
	hits, misses atomic.Uint64
	_            [48]byte // a cache line of its own
}

// NewCache returns a cache of at most maxEntries secrets before store; with 0
// it keeps none. formats are the prefixes recorded in the store.
func NewCache(store DigestReader, peppers *Peppers, formats *Formats, maxEntries int) (*Cache, error) {
	if maxEntries < 0 {
		return nil, fmt.Errorf("a cache cannot keep %d entries: 0 keeps none", maxEntries)
	}
	c := &Cache{store: store, peppers: peppers}
	c.formats.Store(formats)
	if maxEntries == 0 {
		return c, nil
	}
	entries, err := otter.New(&otter.Options[Digest, Match]{MaximumSize: maxEntries, StatsRecorder: &c.evicted})
	if err != nil {
		return nil, fmt.Errorf("make token cache: %w", err)
	}
	c.entries = entries
	return c, nil
}

// Find returns the token that the presented text is a secret of. A text of a
// wrong form gives ErrBrokenSecret and an unknown one ErrNotFound; any other
// error means that the store could not be asked. A found token may be in any
// state: judging it is the caller's. A hit does no I/O and does not allocate.
func (c *Cache) Find(ctx context.Context, text []byte) (Match, error) {
	switch c.formats.Load().Classify(text) {
	case ClassBroken:
		return Match{}, ErrBrokenSecret
	case ClassForeign:
		return Match{}, ErrNotFound // no store holds foreign secrets
	}
	for i := range c.peppers.Candidates() {
		m, err := c.find(ctx, c.peppers.Candidate(i, text))
		if !errors.Is(err, ErrNotFound) {
			return m, err
		}
	}
	return Match{}, ErrNotFound
}

func (c *Cache) find(ctx context.Context, d Digest) (Match, error) {
	count := &c.lookups[d[0]&15]
	if c.entries != nil {
		if m, ok := c.entries.GetIfPresent(d); ok {
			count.hits.Add(1)
			return m, nil
		}
	}
	count.misses.Add(1)
	return c.fill(ctx, d)
}

func (c *Cache) fill(ctx context.Context, d Digest) (Match, error) {
	generation := c.generation(d)
	noted := generation.Load()
	t, err := c.store.ByDigest(ctx, d)
	if err != nil {
		return Match{}, err
	}
	m := Match{Token: t}
	for i := range t.Secrets {
		if t.Secrets[i].Digest.Equal(d) {
			m.Secret = &t.Secrets[i]
		}
	}
	if m.Secret == nil { // the store's index points to a token that lacks the secret
		return Match{}, ErrNotFound
	}
	if c.entries != nil {
		c.entries.Compute(d, func(Match, bool) (Match, otter.ComputeOp) {
			if generation.Load() != noted {
				c.overtook.Add(1)
				return Match{}, otter.CancelOp
			}
			return m, otter.WriteOp
		})
	}
	return m, nil
}

func (c *Cache) generation(d Digest) *atomic.Uint64 {
	return &c.generations[binary.LittleEndian.Uint16(d[:])%uint16(len(c.generations))]
}

// Changed makes the next Find of every secret that the token had or has read
// the store. A driver calls it after the commit and before the change is
// acknowledged.
func (c *Cache) Changed(change Change) {
	for _, t := range []*Token{change.Before, change.After} {
		if t == nil {
			continue
		}
		for i := range t.Secrets {
			c.drop(t.Secrets[i].Digest)
		}
	}
}

func (c *Cache) drop(d Digest) {
	c.generation(d).Add(1)
	if c.entries != nil {
		c.entries.Invalidate(d)
	}
}

// SetFormats replaces the set of recorded prefixes.
func (c *Cache) SetFormats(f *Formats) { c.formats.Store(f) }

// CacheStats counts what the cache did since it was made.
type CacheStats struct {
	Entries    int
	MaxEntries int
	Hits       uint64
	Misses     uint64
	Evictions  uint64
	Overtaken  uint64 // fills not kept because a change came between
}

// Stats returns the counts. They are read one after another, not at one
// instant.
func (c *Cache) Stats() CacheStats {
	s := CacheStats{Overtaken: c.overtook.Load(), Evictions: c.evicted.n.Load()}
	for i := range c.lookups {
		s.Hits += c.lookups[i].hits.Load()
		s.Misses += c.lookups[i].misses.Load()
	}
	if c.entries != nil {
		s.Entries = c.entries.EstimatedSize()
		s.MaxEntries = int(c.entries.GetMaximum()) //nolint:gosec // it was made from an int
	}
	return s
}

// evictions counts what the bound pushed out, the only one of the library's
// statistics that it alone knows.
type evictions struct {
	stats.NoopRecorder
	n atomic.Uint64
}

func (e *evictions) RecordEviction(uint32) { e.n.Add(1) }
