package admin

import (
	"context"
	"errors"

	"tokenward/audit"
	"tokenward/tokenstore"
)

// ErrInitialised says that a store has tokens already.
var ErrInitialised = errors.New("the store is initialised already: to replace a lost root token, run `tokenward init --new-root --config F`")

// ErrNotInitialised says that a store has no token yet.
var ErrNotInitialised = errors.New("the store is not initialised: run `tokenward init --config F` first")

// Bootstrap makes the first token of a new store, the root token with id 1.
// secret is the one that the operator chose, whose form the caller has checked
// and whose prefix is recorded; the zero Secret makes one. On a store that has
// had a token it fails with ErrInitialised and changes nothing. It is for the
// command line and the first start, not for requests.
func (s *Service) Bootstrap(ctx context.Context, secret tokenstore.Secret) (Made, error) {
	initialised, err := s.Initialised(ctx)
	if err != nil {
		return Made{}, err
	}
	if initialised {
		return Made{}, ErrInitialised
	}
	if secret, err = s.rootSecret(ctx, secret); err != nil {
		return Made{}, err
	}
	c := Operator("")
	var made Made
	err = s.writer.Change(ctx, func(tx tokenstore.Tx) error {
		switch _, err := tx.Token(1); {
		case err == nil:
			return ErrInitialised
		case !errors.Is(err, tokenstore.ErrNotFound):
			return err
		}
		t, err := s.putRoot(tx, c, verbBootstrap, secret)
		made = Made{Token: t, Secret: secret}
		return err
	})
	if err != nil {
		return Made{}, err
	}
	return made, nil
}

// Initialised reports whether the store has had its first token.
func (s *Service) Initialised(ctx context.Context) (bool, error) {
	for _, err := range s.reader.List(ctx, tokenstore.Query{AllAccounts: true, Revoked: true, OldestFirst: true, Limit: 1}) {
		return err == nil, err
	}
	return false, nil
}

// OtherRoots are the root tokens that were there when another was made in the place
// of a lost one.
type OtherRoots struct {
	Revoked []tokenstore.ID     // ended with it
	Left    []*tokenstore.Token // made by root tokens, and neither ended now nor before; shared
}

// NewRoot makes another root token in the place of a lost one, and revokes in
// the same transaction every root token that the command line made before, for
// what is lost may have been found. Resets of such a one are the same lost token
// under another id, and so is one whose lineage is too old to tell. Root tokens that
// other root tokens made stay. On a store without a token it fails with
// ErrNotInitialised.
func (s *Service) NewRoot(ctx context.Context) (Made, OtherRoots, error) {
	initialised, err := s.Initialised(ctx)
	if err != nil {
		return Made{}, OtherRoots{}, err
	}
	if !initialised {
		return Made{}, OtherRoots{}, ErrNotInitialised
	}
	others, err := s.otherRoots(ctx)
	if err != nil {
		return Made{}, OtherRoots{}, err
	}
	secret, err := s.rootSecret(ctx, tokenstore.Secret{})
	if err != nil {
		return Made{}, OtherRoots{}, err
	}
	c := Operator("")
	var made Made
	err = s.writer.Change(ctx, func(tx tokenstore.Tx) error {
		root, err := s.putRoot(tx, c, verbNewRoot, secret)
		if err != nil {
			return err
		}
		made = Made{Token: root, Secret: secret}
		for _, id := range others.Revoked {
			t, err := tx.Token(id)
			if err != nil {
				return err
			}
			if t.State == tokenstore.StateRevoked {
				continue
			}
			if _, err := s.end(tx, c, &manager{token: operatorToken}, t, s.Now()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Made{}, OtherRoots{}, err
	}
	return made, others, nil
}

// otherRoots returns the root tokens that are not revoked.
func (s *Service) otherRoots(ctx context.Context) (OtherRoots, error) {
	var others OtherRoots
	for t, err := range s.reader.List(ctx, tokenstore.Query{Account: tokenstore.Root, OldestFirst: true}) {
		if err != nil {
			return OtherRoots{}, err
		}
		first := t
		if t.Lineage != 0 {
			first, err = s.reader.ByID(ctx, t.Lineage)
		}
		switch {
		case errors.Is(err, tokenstore.ErrNotFound), err == nil && first.Creator.ID == 0:
			others.Revoked = append(others.Revoked, t.ID)
		case err != nil:
			return OtherRoots{}, err
		case !t.Expiry.Ended(s.Now()):
			others.Left = append(others.Left, t)
		}
	}
	return others, nil
}

func (s *Service) rootSecret(ctx context.Context, chosen tokenstore.Secret) (tokenstore.Secret, error) {
	if !chosen.IsZero() {
		return chosen, nil
	}
	return s.newSecret(ctx, "")
}

func (s *Service) putRoot(tx tokenstore.Tx, c Caller, verb audit.Word, secret tokenstore.Secret) (*tokenstore.Token, error) {
	now := s.Now()
	id, err := tx.NewID()
	if err != nil {
		return nil, err
	}
	t := operatorToken.Clone()
	t.ID, t.Name = id, "root"
	t.Creator = tokenstore.Creator{Name: operatorToken.Name}
	t.CreatedAt = now
	t.Secrets = []tokenstore.SecretRecord{s.secretRecord(secret, now)}
	return t, s.put(tx, c, &manager{token: operatorToken}, verb, now, nil, t)
}
