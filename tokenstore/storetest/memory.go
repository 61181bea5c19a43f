// Package storetest proves that a driver keeps the contract of package
// tokenstore, and lends tests a store in memory and one that fails on demand.
// It is imported by tests only.
package storetest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"tokenward/tokenstore"
)

// Store is both sides of a store.
type Store interface {
	tokenstore.Reader
	tokenstore.Writer
}

var (
	_ Store = (*Memory)(nil)
	_ Store = (*Faulty)(nil)
)

// Event is an audit event in the outbox of a store.
type Event struct {
	Seq     uint64
	Payload []byte
}

// Memory is the reference store: maps under a mutex, changed by replacing the
// maps whole. It is slow with many tokens and obviously right.
type Memory struct {
	onChange func(tokenstore.Change)
	wake     chan struct{}

	writing sync.Mutex // held for a whole change, by the one that runs

	mu     sync.Mutex // guards all below
	lastID tokenstore.ID
	seq    uint64
	state  memoryState
	closed bool
}

type memoryState struct {
	tokens  map[tokenstore.ID]*tokenstore.Token
	digests map[tokenstore.Digest]tokenstore.ID // never shrinks
	events  []Event
	answers map[tokenstore.Digest]keptAnswer
}

type keptAnswer struct {
	sealed []byte
	until  time.Time
}

// NewMemory returns an empty store. onChange is told of each changed token
// before the change is answered; nil: nobody is told.
func NewMemory(onChange func(tokenstore.Change)) *Memory {
	return &Memory{onChange: onChange, wake: make(chan struct{}, 1), state: memoryState{
		tokens:  map[tokenstore.ID]*tokenstore.Token{},
		digests: map[tokenstore.Digest]tokenstore.ID{},
		answers: map[tokenstore.Digest]keptAnswer{},
	}}
}

// Close makes everything that comes later fail with ErrClosed.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// look returns the present state, whose maps are never modified.
func (m *Memory) look(ctx context.Context) (memoryState, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return memoryState{}, tokenstore.ErrClosed
	}
	return m.state, ctx.Err()
}

// ByDigest implements [tokenstore.Reader].
func (m *Memory) ByDigest(ctx context.Context, d tokenstore.Digest) (*tokenstore.Token, error) {
	s, err := m.look(ctx)
	if err != nil {
		return nil, err
	}
	t := s.tokens[s.digests[d]]
	if t == nil || !holds(t, d) {
		return nil, tokenstore.ErrNotFound
	}
	return t, nil
}

func holds(t *tokenstore.Token, d tokenstore.Digest) bool {
	return slices.ContainsFunc(t.Secrets, func(s tokenstore.SecretRecord) bool { return s.Digest == d })
}

// ByID implements [tokenstore.Reader].
func (m *Memory) ByID(ctx context.Context, id tokenstore.ID) (*tokenstore.Token, error) {
	s, err := m.look(ctx)
	if err != nil {
		return nil, err
	}
	if t := s.tokens[id]; t != nil {
		return t, nil
	}
	return nil, tokenstore.ErrNotFound
}

// List implements [tokenstore.Reader].
func (m *Memory) List(ctx context.Context, q tokenstore.Query) iter.Seq2[*tokenstore.Token, error] {
	return func(yield func(*tokenstore.Token, error) bool) {
		s, err := m.look(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		for _, t := range selected(s.tokens, q) {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			if !yield(t, nil) {
				return
			}
		}
	}
}

// Count implements [tokenstore.Reader].
func (m *Memory) Count(ctx context.Context, q tokenstore.Query) (int, error) {
	s, err := m.look(ctx)
	q.After, q.Skip, q.Limit = 0, 0, 0
	return len(selected(s.tokens, q)), err
}

// selected returns what a query means.
func selected(tokens map[tokenstore.ID]*tokenstore.Token, q tokenstore.Query) []*tokenstore.Token {
	var ts []*tokenstore.Token
	for _, t := range tokens {
		switch {
		case !q.AllAccounts && t.Account != q.Account:
		case !q.AllAccounts && q.Owner != 0 && t.Owner != q.Owner:
		case !q.Revoked && t.State == tokenstore.StateRevoked:
		case q.After != 0 && q.OldestFirst && t.ID <= q.After:
		case q.After != 0 && !q.OldestFirst && t.ID >= q.After:
		default:
			ts = append(ts, t)
		}
	}
	slices.SortFunc(ts, func(a, b *tokenstore.Token) int {
		if q.OldestFirst {
			return cmp.Compare(a.ID, b.ID)
		}
		return cmp.Compare(b.ID, a.ID)
	})
	ts = ts[min(q.Skip, len(ts)):]
	if q.Limit > 0 {
		ts = ts[:min(q.Limit, len(ts))]
	}
	return ts
}

// Change implements [tokenstore.Writer].
func (m *Memory) Change(ctx context.Context, fn func(tx tokenstore.Tx) error) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	s, err := m.look(ctx)
	if err != nil {
		return err
	}
	tx := &memoryTx{m: m, before: s.tokens, given: map[tokenstore.ID]bool{}, now: memoryState{
		tokens:  maps.Clone(s.tokens),
		digests: maps.Clone(s.digests),
		events:  slices.Clone(s.events),
		answers: maps.Clone(s.answers),
	}}
	if err := fn(tx); err != nil {
		return err
	}
	if len(tx.changed) > 0 && tx.emitted == 0 {
		return fmt.Errorf("%w: a token was changed without an event", tokenstore.ErrInvariant)
	}
	if tx.emitted > 0 && len(tx.now.events) > tokenstore.MaxOutbox {
		return tokenstore.ErrOutboxFull
	}
	m.commit(tx)
	return nil
}

func (m *Memory) commit(tx *memoryTx) {
	m.mu.Lock()
	m.state = tx.now
	m.seq += uint64(tx.emitted) //nolint:gosec // not negative
	m.mu.Unlock()
	for _, id := range tx.changed {
		before, after := tx.before[id], tx.now.tokens[id]
		if m.onChange != nil && (before != nil || after != nil) {
			m.onChange(tokenstore.Change{Before: before, After: after})
		}
	}
	if tx.emitted > 0 {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

// Pending returns the oldest waiting events, at most limit of them.
func (m *Memory) Pending(limit int) ([]Event, error) {
	s, err := m.look(context.Background())
	return slices.Clone(s.events[:min(limit, len(s.events))]), err
}

// Done forgets the events up to and including seq.
func (m *Memory) Done(seq uint64) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.events = slices.DeleteFunc(slices.Clone(m.state.events), func(e Event) bool { return e.Seq <= seq })
	return nil
}

// Wake receives when events may wait.
func (m *Memory) Wake() <-chan struct{} { return m.wake }

// Check reports what is wrong with the state as it stands.
func (m *Memory) Check(report func(fault string)) {
	s, err := m.look(context.Background())
	if err != nil {
		report(err.Error())
	}
	for id, t := range s.tokens {
		if faults := t.Validate(); len(faults) > 0 || t.ID != id {
			report(fmt.Sprintf("token %d: %v", id, faults))
		}
		for i := range t.Secrets {
			if s.digests[t.Secrets[i].Digest] != id {
				report(fmt.Sprintf("a secret of token %d leads to another", id))
			}
		}
	}
}

// memoryTx is one change on a copy of the state.
type memoryTx struct {
	m       *Memory
	before  map[tokenstore.ID]*tokenstore.Token
	now     memoryState
	given   map[tokenstore.ID]bool
	changed []tokenstore.ID
	emitted int
	swept   time.Time // when answers past their time were dropped last
}

func (tx *memoryTx) Token(id tokenstore.ID) (*tokenstore.Token, error) {
	if t := tx.now.tokens[id]; t != nil {
		return t.Clone(), nil
	}
	return nil, tokenstore.ErrNotFound
}

func (tx *memoryTx) Children(id tokenstore.ID) iter.Seq2[tokenstore.ID, error] {
	return func(yield func(tokenstore.ID, error) bool) {
		for _, child := range slices.Sorted(maps.Keys(tx.now.tokens)) {
			t := tx.now.tokens[child]
			if t == nil || t.Creator.ID != id || t.State == tokenstore.StateRevoked {
				continue
			}
			if !yield(child, nil) {
				return
			}
		}
	}
}

func (tx *memoryTx) NewID() (tokenstore.ID, error) {
	tx.m.lastID++
	tx.given[tx.m.lastID] = true
	return tx.m.lastID, nil
}

func (tx *memoryTx) DigestOwner(d tokenstore.Digest) (tokenstore.ID, error) {
	return tx.now.digests[d], nil
}

func (tx *memoryTx) Put(t *tokenstore.Token) error {
	current := tx.now.tokens[t.ID]
	if err := tx.allowed(current, t); err != nil {
		return fmt.Errorf("%w: token %d: %w", tokenstore.ErrInvariant, t.ID, err)
	}
	for i := range t.Secrets {
		d := t.Secrets[i].Digest
		switch owner := tx.now.digests[d]; {
		case owner == 0:
		case owner != t.ID:
			return &tokenstore.DuplicateError{Existing: owner, Wanted: t.ID}
		case current == nil || !holds(current, d):
			return fmt.Errorf("%w: token %d gave that secret up", tokenstore.ErrInvariant, t.ID)
		}
	}
	kept := t.Clone()
	kept.Revision = 1
	if before := tx.before[t.ID]; before != nil {
		kept.Revision = before.Revision + 1
	}
	record, err := tokenstore.EncodeRecord(nil, kept)
	if err != nil {
		return fmt.Errorf("%w: %w", tokenstore.ErrInvariant, err)
	}
	if kept, err = tokenstore.DecodeRecord(record); err != nil { // rounds times
		return err
	}
	for i := range t.Secrets {
		tx.now.digests[t.Secrets[i].Digest] = t.ID
	}
	t.Revision = kept.Revision
	tx.now.tokens[t.ID] = kept
	tx.touch(t.ID)
	return nil
}

// allowed says what is against the step from current, nil for none, to t.
func (tx *memoryTx) allowed(current, t *tokenstore.Token) error {
	revoked := t.State == tokenstore.StateRevoked
	switch {
	case revoked == t.EndedAt.IsZero():
		return errors.New("the time of revocation belongs to revoked tokens")
	case current == nil && (!tx.given[t.ID] || slices.Contains(tx.changed, t.ID)):
		return errors.New("the id is not new")
	case current == nil:
		return nil
	case current.Account != t.Account || current.Owner != t.Owner:
		return errors.New("moved to another account or owner")
	case current.Lineage != t.Lineage:
		return errors.New("moved to another lineage")
	case current.State != tokenstore.StateRevoked:
		return nil
	case !revoked:
		return errors.New("brought back")
	case !current.EndedAt.Equal(t.EndedAt.Truncate(time.Millisecond)):
		return errors.New("revoked at another time")
	}
	return nil
}

func (tx *memoryTx) touch(id tokenstore.ID) {
	if !slices.Contains(tx.changed, id) {
		tx.changed = append(tx.changed, id)
	}
}

func (tx *memoryTx) Sweep(id tokenstore.ID) error {
	if tx.now.tokens[id] == nil {
		return tokenstore.ErrNotFound
	}
	delete(tx.now.tokens, id)
	tx.touch(id)
	return nil
}

func (tx *memoryTx) Emit(event []byte) {
	tx.emitted++
	tx.now.events = append(tx.now.events, Event{tx.m.seq + uint64(tx.emitted), bytes.Clone(event)}) //nolint:gosec // not negative
}

func (tx *memoryTx) Answer(key tokenstore.Digest) ([]byte, error) {
	return bytes.Clone(tx.now.answers[key].sealed), nil
}

func (tx *memoryTx) KeepAnswer(key tokenstore.Digest, sealed []byte, now, until time.Time) error {
	if until.After(now) {
		tx.now.answers[key] = keptAnswer{bytes.Clone(sealed), until}
	}
	if !now.Equal(tx.swept) { // a thousand answers of one instant need one look
		maps.DeleteFunc(tx.now.answers, func(_ tokenstore.Digest, a keptAnswer) bool { return !a.until.After(now) })
		tx.swept = now
	}
	if len(tx.now.answers) > tokenstore.MaxAnswers {
		oldest := key
		for k, a := range tx.now.answers {
			if a.until.Before(tx.now.answers[oldest].until) {
				oldest = k
			}
		}
		delete(tx.now.answers, oldest)
	}
	return nil
}
