package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// ByDigest implements [tokenstore.Reader].
func (s *Store) ByDigest(ctx context.Context, d tokenstore.Digest) (*tokenstore.Token, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.lacks(&d) && !s.isClosing() {
		return nil, tokenstore.ErrNotFound
	}
	var t *tokenstore.Token
	err := s.view(func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketDigests).Get(d[:])
		if v == nil {
			s.missed()
			return tokenstore.ErrNotFound
		}
		if len(v) != 8 {
			return s.wrong("a digest leads nowhere")
		}
		var err error
		t, err = s.tokenByID(tx, tokenstore.ID(lastNumber(v)))
		return err
	})
	if err != nil {
		return nil, readError(err)
	}
	if !slices.ContainsFunc(t.Secrets, func(r tokenstore.SecretRecord) bool { return r.Digest.Equal(d) }) {
		return nil, tokenstore.ErrNotFound // the token gave that secret up
	}
	return t, nil
}

// ByID implements [tokenstore.Reader].
func (s *Store) ByID(ctx context.Context, id tokenstore.ID) (*tokenstore.Token, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var t *tokenstore.Token
	err := s.view(func(tx *bolt.Tx) (err error) {
		t, err = s.tokenByID(tx, id)
		return err
	})
	if err != nil {
		return nil, readError(err)
	}
	return t, nil
}

// readError passes the errors on that callers branch on.
func readError(err error) error {
	if errors.Is(err, tokenstore.ErrNotFound) {
		return tokenstore.ErrNotFound
	}
	return fmt.Errorf("read token: %w", err)
}

func (s *Store) tokenByID(tx *bolt.Tx, id tokenstore.ID) (*tokenstore.Token, error) {
	v := tx.Bucket(bucketTokens).Get(number(uint64(id)))
	if v == nil {
		return nil, tokenstore.ErrNotFound
	}
	return s.decode(id, v)
}

// decode reads a value of the tokens bucket. A record is valid only under its
// own id: a seal proves who wrote it, not where it belongs.
func (s *Store) decode(id tokenstore.ID, v []byte) (*tokenstore.Token, error) {
	if len(v) == 0 {
		return nil, s.wrong(fmt.Sprintf("token %d has no record", id))
	}
	record, err := s.peppers.Unseal(v[1:])
	if err != nil {
		return nil, fmt.Errorf("token %d: %w", id, err)
	}
	t, err := tokenstore.DecodeRecord(record)
	if err != nil {
		return nil, fmt.Errorf("token %d: %w", id, err)
	}
	if t.ID != id || t.State != stateAt(v) {
		return nil, s.wrong(fmt.Sprintf("token %d has the record of another token or state", id))
	}
	return t, nil
}

func (s *Store) wrong(detail string) error { return damaged(s.path, detail) }

// What one read transaction of a list does at most: a long one keeps bolt from
// using pages again, and holds up the growth of the file.
const (
	stepTokens  = 128
	stepEntries = 4 * chunkSplit
)

// List implements [tokenstore.Reader].
func (s *Store) List(ctx context.Context, q tokenstore.Query) iter.Seq2[*tokenstore.Token, error] {
	return func(yield func(*tokenstore.Token, error) bool) {
		p := pager{s: s, list: listOf(&q), query: q}
		for !p.ended {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			p.found = p.found[:0]
			if err := s.view(p.step); err != nil {
				yield(nil, fmt.Errorf("list tokens: %w", err))
				return
			}
			for _, t := range p.found {
				if !yield(t, nil) {
					return
				}
			}
		}
	}
}

// Count implements [tokenstore.Reader].
func (s *Store) Count(ctx context.Context, q tokenstore.Query) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n := 0
	err := s.view(func(tx *bolt.Tx) error {
		l := listOf(&q)
		head := l.head(tx)
		n = head.sumListed
		if q.Revoked {
			n = head.sumAll
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("count tokens: %w", err)
	}
	return n, nil
}

func listOf(q *tokenstore.Query) list {
	switch {
	case q.AllAccounts:
		return listAll()
	case q.Owner == 0:
		return listAccount(q.Account)
	}
	return listOwner(q.Account, q.Owner)
}

// pager walks a list in steps. query is what is left to do: After moves on,
// Skip and Limit shrink.
type pager struct {
	s     *Store
	list  list
	query tokenstore.Query
	found []*tokenstore.Token
	ended bool

	// Within a step.
	entries int   // looked at
	ahead   chunk // the one above the present one, if there are more
	more    bool
}

// step looks at the next tokens of the list, chunk by chunk.
func (p *pager) step(tx *bolt.Tx) error {
	p.entries = 0
	chunks := tx.Bucket(bucketCounts).Cursor()
	before, begins := chunk{}, true
	for c, last, ok := p.start(chunks); ok; c, last, ok = p.next(chunks, c) {
		if !begins && (c.first > before.first) != p.query.OldestFirst || c.first > last {
			return p.s.wrong("the counts of a list are not in order")
		}
		before, begins = c, false
		begun := p.query.After != 0 && p.query.After >= c.first && p.query.After <= last
		if n := c.of(p.query.Revoked); !begun && p.query.Skip >= n {
			p.query.Skip -= n
			continue
		}
		full, err := p.chunk(tx, c.first, last)
		if err != nil || full || p.ended {
			return err
		}
	}
	p.ended = true
	return nil
}

// start finds the chunk in which the list goes on, and its last id.
func (p *pager) start(c *bolt.Cursor) (chunk, tokenstore.ID, bool) {
	from := p.query.After
	if from == 0 && !p.query.OldestFirst {
		from = math.MaxUint64
	}
	first, ok := p.list.chunkOf(c, from)
	if !ok {
		return chunk{}, 0, false
	}
	p.ahead, p.more = p.list.entry(c.Next())
	last := p.lastBeforeAhead()
	if !p.query.OldestFirst {
		c.Seek(p.list.boundary(first.first))
	}
	return first, last, true
}

// next moves to the chunk after cur in the order asked for. To know where a
// chunk ends takes the one above it, so with the oldest first the cursor is
// one ahead.
func (p *pager) next(c *bolt.Cursor, cur chunk) (chunk, tokenstore.ID, bool) {
	if !p.query.OldestFirst {
		prev, ok := p.list.entry(c.Prev())
		return prev, cur.first - 1, ok
	}
	if !p.more {
		return chunk{}, 0, false
	}
	cur = p.ahead
	p.ahead, p.more = p.list.entry(c.Next())
	return cur, p.lastBeforeAhead(), true
}

func (p *pager) lastBeforeAhead() tokenstore.ID {
	if !p.more {
		return math.MaxUint64
	}
	return p.ahead.first - 1
}

// chunk takes tokens from first to last, and reports whether the step is full.
func (p *pager) chunk(tx *bolt.Tx, first, last tokenstore.ID) (full bool, err error) {
	c := tx.Bucket(p.list.bucket).Cursor()
	for k, v := p.seek(c, first, last); p.inside(k, first, last); k, v = p.advance(c) {
		id := tokenstore.ID(lastNumber(k))
		if after := p.query.After; after != 0 && (id > after) != p.query.OldestFirst || id == after {
			return false, p.s.wrong("a list is not in order")
		}
		p.query.After = id
		p.entries++
		if p.query.Revoked || stateAt(v) != tokenstore.StateRevoked {
			if err := p.take(tx, id, v); err != nil {
				return false, err
			}
		}
		if p.ended || len(p.found) == stepTokens || p.entries >= stepEntries {
			return true, nil
		}
	}
	return false, nil
}

// seek goes to the first entry between first and last that comes after the
// point reached.
func (p *pager) seek(c *bolt.Cursor, first, last tokenstore.ID) (k, v []byte) {
	after := p.query.After
	if p.query.OldestFirst {
		if after >= first {
			first = after + 1
		}
		return c.Seek(p.list.at(first))
	}
	if after != 0 && after <= last {
		last = after - 1
	}
	want := p.list.at(last)
	k, v = c.Seek(want)
	switch {
	case bytes.Equal(k, want):
		return k, v
	case k == nil:
		return c.Last()
	}
	return c.Prev()
}

func (p *pager) advance(c *bolt.Cursor) (k, v []byte) {
	if p.query.OldestFirst {
		return c.Next()
	}
	return c.Prev()
}

func (p *pager) inside(k []byte, first, last tokenstore.ID) bool {
	if len(k) != len(p.list.prefix)+8 || !bytes.HasPrefix(k, p.list.prefix) {
		return false
	}
	id := tokenstore.ID(lastNumber(k))
	return id >= first && id <= last
}

// take passes over a token or yields it.
func (p *pager) take(tx *bolt.Tx, id tokenstore.ID, v []byte) error {
	if p.query.Skip > 0 {
		p.query.Skip--
		return nil
	}
	var t *tokenstore.Token
	var err error
	if bytes.Equal(p.list.bucket, bucketTokens) {
		t, err = p.s.decode(id, v)
	} else {
		t, err = p.s.listedToken(tx, id, &p.query, stateAt(v))
	}
	if err != nil {
		return err
	}
	p.found = append(p.found, t)
	if p.query.Limit > 0 {
		p.query.Limit--
		p.ended = p.query.Limit == 0
	}
	return nil
}

// listedToken reads a token that an index led to, and fails if it does not
// belong there.
func (s *Store) listedToken(tx *bolt.Tx, id tokenstore.ID, q *tokenstore.Query, state tokenstore.State) (*tokenstore.Token, error) {
	t, err := s.tokenByID(tx, id)
	if err != nil && !errors.Is(err, tokenstore.ErrNotFound) {
		return nil, err
	}
	if err != nil || t.State != state || t.Account != q.Account || q.Owner != 0 && t.Owner != q.Owner {
		return nil, s.wrong(fmt.Sprintf("a list names token %d, which does not belong in it", id))
	}
	return t, nil
}

// Ending yields the ids of the tokens whose end lies from from on and before
// until, in the order of their ends: for a revoked token when it was revoked,
// for any other its expiry. It reads in steps, as List does.
func (s *Store) Ending(ctx context.Context, from, until time.Time) iter.Seq2[tokenstore.ID, error] {
	return along(ctx, s, walk[tokenstore.ID]{what: "the list of ends", bucket: bucketEnds, from: key(millis(from)), until: key(millis(until)), step: stepTokens,
		read: func(_ *bolt.Tx, k, _ []byte) (tokenstore.ID, error) {
			if len(k) != 16 {
				return 0, s.wrong("the list of ends names no token")
			}
			return tokenstore.ID(lastNumber(k)), nil
		}})
}
