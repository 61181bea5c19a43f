package admin

import (
	"context"
	"errors"

	"tokenward/audit"
	"tokenward/tokenstore"
)

// ErrInitialised says that a store has tokens already.
var ErrInitialised = errors.New("the store is initialised already: to replace a lost root token, type `tokenward init --new-root`")

// ErrNotInitialised says that a store has no token yet.
var ErrNotInitialised = errors.New("the store is not initialised: type `tokenward init` first")

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

// NewRoot makes another root token in the place of a lost one, and revokes in
// the same transaction every root token that the command line made before, for
// what is lost may have been found. Root tokens that other root tokens made
// stay. It returns the ids it revoked. On a store without a token it fails with
// ErrNotInitialised.
func (s *Service) NewRoot(ctx context.Context) (Made, []tokenstore.ID, error) {
	initialised, err := s.Initialised(ctx)
	if err != nil {
		return Made{}, nil, err
	}
	if !initialised {
		return Made{}, nil, ErrNotInitialised
	}
	lost, err := s.madeHere(ctx)
	if err != nil {
		return Made{}, nil, err
	}
	secret, err := s.rootSecret(ctx, tokenstore.Secret{})
	if err != nil {
		return Made{}, nil, err
	}
	c := Operator("")
	var made Made
	err = s.writer.Change(ctx, func(tx tokenstore.Tx) error {
		root, err := s.putRoot(tx, c, verbNewRoot, secret)
		if err != nil {
			return err
		}
		made = Made{Token: root, Secret: secret}
		for _, id := range lost {
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
		return Made{}, nil, err
	}
	return made, lost, nil
}

// madeHere returns the root tokens that the command line made and that are not
// revoked.
func (s *Service) madeHere(ctx context.Context) ([]tokenstore.ID, error) {
	var ids []tokenstore.ID
	for t, err := range s.reader.List(ctx, tokenstore.Query{Account: tokenstore.Root, OldestFirst: true}) {
		if err != nil {
			return nil, err
		}
		if t.Creator.ID == 0 {
			ids = append(ids, t.ID)
		}
	}
	return ids, nil
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
