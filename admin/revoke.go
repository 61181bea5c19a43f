package admin

import (
	"context"
	"errors"
	"time"

	"tokenward/tokenstore"
)

// revokeBatch bounds the tokens that one transaction ends: other changes get
// their turn between two.
const revokeBatch = 256

// Revoked is the result of Revoke.
type Revoked struct {
	Token *tokenstore.Token // the target as it is now
	IDs   []tokenstore.ID   // what this call ended, the target first if it was not ended before
}

// Revoke ends the target for good. Needs visibility and the right to write; a
// token may always revoke itself. Where Target.Revoked lets the target be found
// again, revoking twice succeeds with no ids.
//
// With descendants, all that the target made ends with it, and what they made
// in turn. The target goes first, in a transaction of its own, so that it makes
// no more; the branch follows in bounded transactions. A call that breaks off
// says so in its error, and the next one takes up where it ended: it costs as
// much as the target's account holds.
func (s *Service) Revoke(ctx context.Context, c Caller, target Target, descendants bool) (Revoked, error) {
	var done Revoked
	err := s.change(ctx, c, verbRevoke, auditTarget(target), func(tx tokenstore.Tx, m *manager, now time.Time) error {
		done = Revoked{}
		t, err := m.find(target, tx.Token)
		if err != nil {
			return err
		}
		if t.ID != m.token.ID || descendants {
			if err := m.mayWrite(); err != nil {
				return err
			}
		}
		if err := target.at(t); err != nil {
			return err
		}
		done.Token = t
		if t.State == tokenstore.StateRevoked {
			return nil
		}
		done.Token, err = s.end(tx, c, m, t, now)
		done.IDs = []tokenstore.ID{t.ID}
		return err
	})
	if err != nil {
		return Revoked{}, err
	}
	if !descendants {
		return done, nil
	}
	ended, err := s.revokeBranch(context.WithoutCancel(ctx), c, done.Token)
	done.IDs = append(done.IDs, ended...)
	return done, err
}

// end revokes t, which is the transaction's own copy.
func (s *Service) end(tx tokenstore.Tx, c Caller, m *manager, t *tokenstore.Token, now time.Time) (*tokenstore.Token, error) {
	after := t.Clone()
	after.State, after.EndedAt = tokenstore.StateRevoked, now
	return after, s.put(tx, c, m, verbRevoke, now, t, after)
}

// revokeBranch ends everything below top, which was revoked by this caller just
// now: the right was judged then, and when a token ends its own branch it has no
// right left. It returns what it ended, also when it fails.
//
// It reads the whole account, revoked tokens included: a token that was revoked
// alone, earlier, still connects the branch above it with the one below. Members
// that are still to be ended may make others meanwhile, and ids do not tell who
// is older where nodes have blocks of them, so it reads until a pass finds none.
func (s *Service) revokeBranch(ctx context.Context, c Caller, top *tokenstore.Token) (ended []tokenstore.ID, err error) {
	branch := map[tokenstore.ID]bool{top.ID: true}
	query := tokenstore.Query{AllAccounts: top.IsRoot(), Account: top.Account, Revoked: true, OldestFirst: true}
	for known := 0; known < len(branch); {
		known = len(branch)
		var batch []tokenstore.ID
		for t, err := range s.reader.List(ctx, query) {
			if err != nil {
				return ended, brokenOff(err)
			}
			if !branch[t.Creator.ID] || branch[t.ID] {
				continue
			}
			branch[t.ID] = true
			if t.State != tokenstore.StateRevoked {
				batch = append(batch, t.ID)
			}
			if len(batch) == revokeBatch {
				if err := s.endAll(ctx, c, batch); err != nil {
					return ended, brokenOff(err)
				}
				ended, batch = append(ended, batch...), batch[:0]
			}
		}
		if err := s.endAll(ctx, c, batch); err != nil {
			return ended, brokenOff(err)
		}
		ended = append(ended, batch...)
	}
	return ended, nil
}

// endAll revokes the tokens in one transaction.
func (s *Service) endAll(ctx context.Context, c Caller, ids []tokenstore.ID) error {
	if len(ids) == 0 {
		return nil
	}
	m := &manager{token: c.Token}
	if c.operator {
		m.token = operatorToken
	}
	return s.writer.Change(ctx, func(tx tokenstore.Tx) error {
		now := s.Now()
		for _, id := range ids {
			t, err := tx.Token(id)
			switch {
			case errors.Is(err, tokenstore.ErrNotFound):
				continue // swept since it was listed
			case err != nil:
				return err
			case t.State == tokenstore.StateRevoked:
				continue
			}
			if _, err := s.end(tx, c, m, t, now); err != nil {
				return err
			}
		}
		return nil
	})
}

// brokenOff is the error of a call that has revoked its target, but perhaps not
// the whole branch.
func brokenOff(err error) *Error {
	e := *storeError(err)
	e.Detail = "The token is revoked, but perhaps not all of its descendants: send the request again. " + e.Detail
	return &e
}
