package tokenstore

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"slices"
)

// Ground is the committed state that a change is made on, as a driver reads it.
// All of it is of one moment.
type Ground interface {
	// Token returns the token, which is not modified, or ErrNotFound.
	Token(id ID) (*Token, error)
	// DigestOwner returns the token that has or ever had a secret with the digest;
	// 0 for none.
	DigestOwner(d Digest) (ID, error)
	// Children yields the ids of the tokens that id made and that are not revoked,
	// oldest first.
	Children(id ID) iter.Seq2[ID, error]
	// NewID returns an id that was never used before.
	NewID() (ID, error)
}

// Staging is one change being made: what it did so far, over the ground it stands
// on. It keeps the promises of [Tx] about tokens and events, whatever the driver,
// which only reads the ground and writes the outcome.
type Staging struct {
	ground  Ground
	tokens  map[ID]*Staged
	order   []ID // the keys of tokens as they came
	given   map[ID]bool
	digests map[Digest]ID // claimed by this change
	events  [][]byte
}

// Staged is a token before and after a change. Neither is modified.
type Staged struct {
	ID     ID
	Before *Token // nil: new
	After  *Token // nil: swept
	Record []byte // After, encoded
	// Forgets is whose counts of limits go with a swept token, as Token.MeasuredAs
	// says; 0: nobody's.
	Forgets ID
}

// NewStaging returns a change that did nothing yet.
func NewStaging(g Ground) *Staging {
	return &Staging{ground: g, tokens: map[ID]*Staged{}, given: map[ID]bool{}, digests: map[Digest]ID{}}
}

// Token implements [Tx].
func (s *Staging) Token(id ID) (*Token, error) {
	t, err := s.token(id)
	if err != nil {
		return nil, err
	}
	return t.Clone(), nil
}

// token returns the token as this change sees it, to be left unmodified.
func (s *Staging) token(id ID) (*Token, error) {
	if one, ok := s.tokens[id]; ok {
		if one.After == nil {
			return nil, ErrNotFound
		}
		return one.After, nil
	}
	return s.ground.Token(id)
}

// Children implements [Tx].
func (s *Staging) Children(id ID) iter.Seq2[ID, error] {
	return func(yield func(ID, error) bool) {
		var added []ID
		for child, one := range s.tokens {
			if one.After != nil && isLivingChild(one.After, id) {
				added = append(added, child)
			}
		}
		slices.Sort(added)
		for child, err := range s.ground.Children(id) {
			if err != nil {
				yield(0, err)
				return
			}
			for len(added) > 0 && added[0] < child {
				if !yield(added[0], nil) {
					return
				}
				added = added[1:]
			}
			if len(added) > 0 && added[0] == child {
				added = added[1:]
			}
			if one, ok := s.tokens[child]; ok && (one.After == nil || !isLivingChild(one.After, id)) {
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

func isLivingChild(t *Token, parent ID) bool {
	return t.Creator.ID == parent && t.State != StateRevoked
}

// NewID implements [Tx].
func (s *Staging) NewID() (ID, error) {
	id, err := s.ground.NewID()
	if err != nil {
		return 0, err
	}
	s.given[id] = true
	return id, nil
}

// Put implements [Tx].
func (s *Staging) Put(t *Token) error {
	current, err := s.token(t.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		if _, swept := s.tokens[t.ID]; swept || !s.given[t.ID] {
			return fmt.Errorf("%w: token %d was not found and its id is not new", ErrInvariant, t.ID)
		}
		current = nil
	case err != nil:
		return err
	}
	if err := checkTransition(current, t); err != nil {
		return err
	}
	for i := range t.Secrets {
		if err := s.claim(t.Secrets[i].Digest, t.ID, current); err != nil {
			return err
		}
	}
	one := s.stage(t.ID, current)
	revision := uint64(1)
	if one.Before != nil {
		revision = one.Before.Revision + 1
	}
	copied := *t
	copied.Revision = revision
	if one.Record, err = EncodeRecord(nil, &copied); err != nil {
		return fmt.Errorf("%w: %w", ErrInvariant, err)
	}
	if one.After, err = DecodeRecord(one.Record); err != nil { // what readers will see, times in milliseconds
		return fmt.Errorf("read back token %d: %w", t.ID, err)
	}
	for i := range t.Secrets {
		s.digests[t.Secrets[i].Digest] = t.ID
	}
	s.keep(one)
	t.Revision = revision
	return nil
}

// checkTransition checks what a token may never become, whoever asks. before
// is nil for a new token.
func checkTransition(before, after *Token) error {
	fault := func(what string) error {
		return fmt.Errorf("%w: token %d %s", ErrInvariant, after.ID, what)
	}
	revoked := after.State == StateRevoked
	if revoked == after.EndedAt.IsZero() {
		return fault("must say when it was revoked, if and only if it was")
	}
	if before == nil {
		return nil
	}
	if before.Account != after.Account || before.Owner != after.Owner {
		return fault("must stay with its account and owner")
	}
	if before.Lineage != after.Lineage {
		return fault("must keep its lineage")
	}
	if before.State == StateRevoked {
		if !revoked {
			return fault("is revoked and stays so")
		}
		if before.EndedAt.UnixMilli() != after.EndedAt.UnixMilli() {
			return fault("must keep the time when it was revoked")
		}
	}
	return nil
}

// DigestOwner implements [Tx].
func (s *Staging) DigestOwner(d Digest) (ID, error) {
	if owner, ok := s.digests[d]; ok {
		return owner, nil
	}
	return s.ground.DigestOwner(d)
}

// claim checks that a digest may belong to token id, which is current now.
func (s *Staging) claim(d Digest, id ID, current *Token) error {
	if _, ok := s.digests[d]; !ok && current != nil && current.secretWith(d) >= 0 {
		return nil // what it has is its own
	}
	owner, err := s.DigestOwner(d)
	if err != nil || owner == 0 {
		return err
	}
	if owner != id {
		return &DuplicateError{Existing: owner, Wanted: id}
	}
	if current == nil || current.secretWith(d) < 0 {
		return fmt.Errorf("%w: token %d gave that secret up", ErrInvariant, id)
	}
	return nil
}

// Sweep implements [Tx].
func (s *Staging) Sweep(id ID) error {
	current, err := s.token(id)
	if err != nil {
		return err
	}
	one := s.stage(id, current)
	if one.Before != nil && current.ReplacedBy == 0 {
		one.Forgets = current.MeasuredAs()
	}
	s.keep(one)
	return nil
}

// stage returns a fresh entry for a token that is current now.
func (s *Staging) stage(id ID, current *Token) *Staged {
	if one, ok := s.tokens[id]; ok {
		current = one.Before
	}
	return &Staged{ID: id, Before: current}
}

func (s *Staging) keep(one *Staged) {
	if _, ok := s.tokens[one.ID]; !ok {
		s.order = append(s.order, one.ID)
	}
	s.tokens[one.ID] = one
}

// Emit implements [Tx].
func (s *Staging) Emit(event []byte) { s.events = append(s.events, bytes.Clone(event)) }

// Check refuses a change that kept its own promises but not those between its
// parts. waiting is how many events the outbox holds.
func (s *Staging) Check(waiting int) error {
	if len(s.tokens) > 0 && len(s.events) == 0 {
		return fmt.Errorf("%w: a token was changed without an event", ErrInvariant)
	}
	if len(s.events) > 0 && waiting+len(s.events) > MaxOutbox {
		return ErrOutboxFull
	}
	return nil
}

// Empty reports whether the change did nothing.
func (s *Staging) Empty() bool { return len(s.tokens) == 0 && len(s.events) == 0 }

// Tokens yields what became of each token that the change touched, in the order in
// which they were first touched. One that was made and swept has neither Before
// nor After.
func (s *Staging) Tokens() iter.Seq[*Staged] {
	return func(yield func(*Staged) bool) {
		for _, id := range s.order {
			if !yield(s.tokens[id]) {
				return
			}
		}
	}
}

// Digests returns the digests that the change's tokens have, and whose they are.
// Some may have been theirs before.
func (s *Staging) Digests() map[Digest]ID { return s.digests }

// Events returns what was emitted.
func (s *Staging) Events() [][]byte { return s.events }
