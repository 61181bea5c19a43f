package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// overlay is one change being made: what it did so far, over the transaction
// of its batch, which holds the changes before it.
type overlay struct {
	batch *batch

	tokens  map[tokenstore.ID]*staged
	order   []tokenstore.ID // the keys of tokens as they came
	given   map[tokenstore.ID]bool
	digests map[tokenstore.Digest]tokenstore.ID // claimed by this change
	events  [][]byte
	answers []answer
	now     time.Time // as KeepAnswer was told

	// What only the store itself does.
	meta    [][]byte             // keys to add to the meta bucket
	formats *tokenstore.Formats  // the prefixes once this is committed
	taken   uint64               // the outbox is emptied up to this number
	direct  func(*bolt.Tx) error // writes to buckets that hold nothing of tokens; nil: none
}

// staged is a token before and after the change. Both are never modified.
type staged struct {
	before *tokenstore.Token // nil: new
	after  *tokenstore.Token // nil: swept
	value  []byte            // after, as the tokens bucket holds it
}

type answer struct {
	key    tokenstore.Digest
	sealed []byte
	until  time.Time
}

func newOverlay(b *batch) *overlay {
	return &overlay{
		batch:   b,
		tokens:  map[tokenstore.ID]*staged{},
		given:   map[tokenstore.ID]bool{},
		digests: map[tokenstore.Digest]tokenstore.ID{},
	}
}

// Token implements [tokenstore.Tx].
func (o *overlay) Token(id tokenstore.ID) (*tokenstore.Token, error) {
	t, err := o.token(id)
	if err != nil {
		return nil, err
	}
	return t.Clone(), nil
}

// token returns the token as this change sees it, to be left unmodified.
func (o *overlay) token(id tokenstore.ID) (*tokenstore.Token, error) {
	if s, ok := o.tokens[id]; ok {
		if s.after == nil {
			return nil, tokenstore.ErrNotFound
		}
		return s.after, nil
	}
	return o.batch.s.tokenByID(o.batch.tx, id)
}

// Children implements [tokenstore.Tx].
func (o *overlay) Children(id tokenstore.ID) iter.Seq2[tokenstore.ID, error] {
	return func(yield func(tokenstore.ID, error) bool) {
		var added []tokenstore.ID
		for child, s := range o.tokens {
			if s.after != nil && isLivingChild(s.after, id) {
				added = append(added, child)
			}
		}
		slices.Sort(added)
		prefix := number(uint64(id))
		c := o.batch.tx.Bucket(bucketChildren).Cursor()
		for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
			child := tokenstore.ID(lastNumber(k))
			for len(added) > 0 && added[0] < child {
				if !yield(added[0], nil) {
					return
				}
				added = added[1:]
			}
			if len(added) > 0 && added[0] == child {
				added = added[1:]
			}
			if s, ok := o.tokens[child]; ok && (s.after == nil || !isLivingChild(s.after, id)) {
				continue
			}
			if !yield(child, nil) {
				return
			}
		}
		for _, child := range added {
			if !yield(child, nil) {
				return
			}
		}
	}
}

func isLivingChild(t *tokenstore.Token, parent tokenstore.ID) bool {
	return t.Creator.ID == parent && t.State != tokenstore.StateRevoked
}

// NewID implements [tokenstore.Tx].
func (o *overlay) NewID() (tokenstore.ID, error) {
	id, ok := tokenstore.ParseID((o.batch.s.lastID + 1).String())
	if !ok {
		return 0, errors.New("the store has given out every id there is")
	}
	o.batch.s.lastID = id
	o.given[id] = true
	return id, nil
}

// Put implements [tokenstore.Tx].
func (o *overlay) Put(t *tokenstore.Token) error {
	current, err := o.token(t.ID)
	switch {
	case errors.Is(err, tokenstore.ErrNotFound):
		if _, swept := o.tokens[t.ID]; swept || !o.given[t.ID] {
			return fmt.Errorf("%w: token %d was not found and its id is not new", tokenstore.ErrInvariant, t.ID)
		}
		current = nil
	case err != nil:
		return err
	}
	if err := checkTransition(current, t); err != nil {
		return err
	}
	for i := range t.Secrets {
		if err := o.claim(&t.Secrets[i].Digest, t.ID, current); err != nil {
			return err
		}
	}
	s := o.stage(t.ID, current)
	revision := uint64(1)
	if s.before != nil {
		revision = s.before.Revision + 1
	}
	copied := *t
	copied.Revision = revision
	record, err := tokenstore.EncodeRecord(nil, &copied)
	if err != nil {
		return fmt.Errorf("%w: %w", tokenstore.ErrInvariant, err)
	}
	after, err := tokenstore.DecodeRecord(record) // what readers will see, times in milliseconds
	if err != nil {
		return fmt.Errorf("read back token %d: %w", t.ID, err)
	}
	for i := range t.Secrets {
		o.digests[t.Secrets[i].Digest] = t.ID
	}
	s.after = after
	s.value = append([]byte{byte(t.State)}, o.batch.s.peppers.Seal(record)...)
	o.keep(t.ID, s)
	t.Revision = revision
	return nil
}

// checkTransition checks what a token may never become, whoever asks. before
// is nil for a new token.
func checkTransition(before, after *tokenstore.Token) error {
	fault := func(what string) error {
		return fmt.Errorf("%w: token %d %s", tokenstore.ErrInvariant, after.ID, what)
	}
	revoked := after.State == tokenstore.StateRevoked
	if revoked == after.EndedAt.IsZero() {
		return fault("must say when it was revoked, if and only if it was")
	}
	if before == nil {
		return nil
	}
	if before.Account != after.Account || before.Owner != after.Owner {
		return fault("must stay with its account and owner")
	}
	if before.State == tokenstore.StateRevoked {
		if !revoked {
			return fault("is revoked and stays so")
		}
		if before.EndedAt.UnixMilli() != after.EndedAt.UnixMilli() {
			return fault("must keep the time when it was revoked")
		}
	}
	return nil
}

// claim checks that a digest may belong to token id, which is current now.
func (o *overlay) claim(d *tokenstore.Digest, id tokenstore.ID, current *tokenstore.Token) error {
	owner, ok := o.digests[*d]
	if !ok {
		v := o.batch.tx.Bucket(bucketDigests).Get(d[:])
		if v == nil {
			return nil
		}
		owner = tokenstore.ID(lastNumber(v))
	}
	if owner != id {
		return &tokenstore.DuplicateError{Existing: owner, Wanted: id}
	}
	if current == nil || !slices.ContainsFunc(current.Secrets, func(s tokenstore.SecretRecord) bool { return s.Digest == *d }) {
		return fmt.Errorf("%w: token %d gave that secret up", tokenstore.ErrInvariant, id)
	}
	return nil
}

// Sweep implements [tokenstore.Tx].
func (o *overlay) Sweep(id tokenstore.ID) error {
	current, err := o.token(id)
	if err != nil {
		return err
	}
	o.keep(id, o.stage(id, current))
	return nil
}

// stage returns a fresh entry for a token that is current now.
func (o *overlay) stage(id tokenstore.ID, current *tokenstore.Token) *staged {
	if s, ok := o.tokens[id]; ok {
		return &staged{before: s.before}
	}
	return &staged{before: current}
}

func (o *overlay) keep(id tokenstore.ID, s *staged) {
	if _, ok := o.tokens[id]; !ok {
		o.order = append(o.order, id)
	}
	o.tokens[id] = s
}

// Emit implements [tokenstore.Tx].
func (o *overlay) Emit(event []byte) { o.events = append(o.events, bytes.Clone(event)) }

// Answer implements [tokenstore.Tx].
func (o *overlay) Answer(k tokenstore.Digest) ([]byte, error) {
	for _, a := range slices.Backward(o.answers) {
		if a.key == k {
			return bytes.Clone(a.sealed), nil
		}
	}
	v := o.batch.tx.Bucket(bucketAnswers).Get(k[:])
	if len(v) < 8 || !o.now.IsZero() && binary.BigEndian.Uint64(v) <= millis(o.now) {
		return nil, nil
	}
	return bytes.Clone(v[8:]), nil
}

// KeepAnswer implements [tokenstore.Tx]. Of two answers the one that is kept
// until the earlier time counts as older.
func (o *overlay) KeepAnswer(k tokenstore.Digest, sealed []byte, now, until time.Time) error {
	o.now = now
	if until.After(now) {
		o.answers = append(o.answers, answer{k, bytes.Clone(sealed), until})
	}
	return nil
}

// check refuses a change that kept its own promises but not those between its
// parts.
func (o *overlay) check() error {
	if len(o.tokens) > 0 && len(o.events) == 0 {
		return fmt.Errorf("%w: a token was changed without an event", tokenstore.ErrInvariant)
	}
	if len(o.events) > 0 && o.batch.now.outbox+len(o.events) > tokenstore.MaxOutbox {
		return tokenstore.ErrOutboxFull
	}
	return nil
}

// empty reports whether there is nothing to commit.
func (o *overlay) empty() bool {
	return len(o.tokens) == 0 && len(o.events) == 0 && len(o.answers) == 0 && o.now.IsZero() &&
		len(o.meta) == 0 && o.taken == 0 && o.direct == nil
}
