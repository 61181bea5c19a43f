package admin

import (
	"context"
	"errors"
	"iter"

	"tokenward/tokenstore"
)

// ListQuery selects tokens. What the caller may not see is left out, and does
// not count.
type ListQuery struct {
	AllAccounts bool   // every account; root alone. Account is ignored
	Account     uint64 // see [Service.Home] where the request names none
	Owner       uint64 // 0: every owner of the account
	Revoked     bool   // revoked tokens too, which only the native API shows

	OldestFirst bool          // newest first otherwise
	After       tokenstore.ID // begin after this id in the order asked for; 0: at the first
	Skip        int           // then pass over this many
	Limit       int           // then yield at most this many; 0: all
}

// Get returns the target. Needs visibility and the scope user:api-token:read,
// but any token may get itself. The token is shared and must not be changed.
func (s *Service) Get(ctx context.Context, c Caller, target Target) (*tokenstore.Token, error) {
	m, err := s.manager(c, c.Token, s.Now())
	if err != nil {
		return nil, err
	}
	t, err := m.find(target, func(id tokenstore.ID) (*tokenstore.Token, error) { return s.reader.ByID(ctx, id) })
	if err != nil {
		return nil, err
	}
	if t.ID != m.token.ID {
		if err := m.mayRead(); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Self returns the caller's own token, which needs no scope.
func (s *Service) Self(ctx context.Context, c Caller) (*tokenstore.Token, error) {
	if c.Token == nil {
		return nil, refuse(KindMissingToken, "An API token is required.")
	}
	return s.Get(ctx, c, Target{ID: c.Token.ID, Revoked: true})
}

// List yields the tokens that q selects and the caller may see. Needs the scope
// user:api-token:read; another account than the caller's is KindAccess, whether
// it exists or not. Memory is constant; an error, always an *Error, ends the
// sequence. Where the caller sees all of its account, q costs what it shows, and
// else as much as the account holds.
func (s *Service) List(ctx context.Context, c Caller, q ListQuery) (iter.Seq2[*tokenstore.Token, error], error) {
	m, err := s.lister(c, q)
	if err != nil {
		return nil, err
	}
	if m.grace {
		return s.listSelf(ctx, c, q), nil
	}
	query := q.store()
	if m.seesAll() {
		return storeErrors(s.reader.List(ctx, query)), nil
	}
	query.Skip, query.Limit = 0, 0
	return window(filter(storeErrors(s.reader.List(ctx, query)), m.sees), q.Skip, q.Limit), nil
}

// Count returns how many tokens List would yield, leaving After, Skip and Limit
// aside. Needs what List needs, and costs a few reads where the caller sees all
// of its account, else as much as the account holds.
func (s *Service) Count(ctx context.Context, c Caller, q ListQuery) (int, error) {
	m, err := s.lister(c, q)
	if err != nil {
		return 0, err
	}
	q.After, q.Skip, q.Limit = 0, 0, 0
	if m.seesAll() {
		n, err := s.reader.Count(ctx, q.store())
		if err != nil {
			return 0, storeError(err)
		}
		return n, nil
	}
	seq, err := s.List(ctx, c, q)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, err := range seq {
		if err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

// Introspect returns the token that a secret opens, with the secret's record,
// if the caller may see it, else KindNotFound. Needs the scope
// user:api-token:read, except for the caller's own token.
func (s *Service) Introspect(ctx context.Context, c Caller, secret tokenstore.Secret) (tokenstore.Match, error) {
	m, err := s.manager(c, c.Token, s.Now())
	if err != nil {
		return tokenstore.Match{}, err
	}
	match, err := s.lookUp(ctx, []byte(secret.Reveal()))
	if err != nil && !errors.Is(err, tokenstore.ErrNotFound) {
		return tokenstore.Match{}, storeError(err)
	}
	if err == nil && match.Token.ID == m.token.ID {
		return match, nil
	}
	if err := m.mayRead(); err != nil {
		return tokenstore.Match{}, err
	}
	if err != nil || !m.sees(match.Token) {
		return tokenstore.Match{}, notFound()
	}
	return match, nil
}

// lookUp asks the store, not the cache: a token that is asked about is not one
// that is used.
func (s *Service) lookUp(ctx context.Context, text []byte) (tokenstore.Match, error) {
	for i := range s.peppers.Candidates() {
		digest := s.peppers.Candidate(i, text)
		t, err := s.reader.ByDigest(ctx, digest)
		if errors.Is(err, tokenstore.ErrNotFound) {
			continue
		}
		if err != nil {
			return tokenstore.Match{}, err
		}
		for i := range t.Secrets {
			if t.Secrets[i].Digest.Equal(digest) {
				return tokenstore.Match{Token: t, Secret: &t.Secrets[i]}, nil
			}
		}
	}
	return tokenstore.Match{}, tokenstore.ErrNotFound
}

// lister is the caller, if it may list what q asks for.
func (s *Service) lister(c Caller, q ListQuery) (*manager, error) {
	m, err := s.manager(c, c.Token, s.Now())
	if err != nil {
		return nil, err
	}
	if err := m.mayRead(); err != nil {
		return nil, err
	}
	if !m.token.IsRoot() && (q.AllAccounts || q.Account != m.token.Account) {
		return nil, refuse(KindAccess, "The calling token belongs to another account.")
	}
	return m, nil
}

// seesAll reports whether the caller sees every token of the accounts it may
// list.
func (m *manager) seesAll() bool {
	return !m.grace && (m.token.IsRoot() || m.writesAccount())
}

// listSelf is the list of a caller in its grace period: its own token, if the
// query selects it.
func (s *Service) listSelf(ctx context.Context, c Caller, q ListQuery) iter.Seq2[*tokenstore.Token, error] {
	one := func(yield func(*tokenstore.Token, error) bool) {
		t, err := s.Self(ctx, c)
		if err != nil {
			yield(nil, err)
			return
		}
		past := q.After != 0 && (q.OldestFirst && t.ID <= q.After || !q.OldestFirst && t.ID >= q.After)
		if !past && (q.AllAccounts || t.Account == q.Account) && (q.Owner == 0 || t.Owner == q.Owner) {
			yield(t, nil)
		}
	}
	return window(one, q.Skip, q.Limit)
}

func (q ListQuery) store() tokenstore.Query {
	return tokenstore.Query{
		AllAccounts: q.AllAccounts, Account: q.Account, Owner: q.Owner, Revoked: q.Revoked,
		OldestFirst: q.OldestFirst, After: q.After, Skip: q.Skip, Limit: q.Limit,
	}
}

func storeErrors(seq iter.Seq2[*tokenstore.Token, error]) iter.Seq2[*tokenstore.Token, error] {
	return func(yield func(*tokenstore.Token, error) bool) {
		for t, err := range seq {
			if err != nil {
				yield(nil, storeError(err))
				return
			}
			if !yield(t, nil) {
				return
			}
		}
	}
}

func filter(seq iter.Seq2[*tokenstore.Token, error], keep func(*tokenstore.Token) bool) iter.Seq2[*tokenstore.Token, error] {
	return func(yield func(*tokenstore.Token, error) bool) {
		for t, err := range seq {
			if (err != nil || keep(t)) && !yield(t, err) {
				return
			}
		}
	}
}

func window(seq iter.Seq2[*tokenstore.Token, error], skip, limit int) iter.Seq2[*tokenstore.Token, error] {
	return func(yield func(*tokenstore.Token, error) bool) {
		n := 0
		for t, err := range seq {
			if err != nil {
				yield(nil, err)
				return
			}
			if n++; n <= skip {
				continue
			}
			if !yield(t, nil) || limit > 0 && n-skip >= limit {
				return
			}
		}
	}
}
