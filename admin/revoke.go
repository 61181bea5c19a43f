package admin

import (
	"context"
	"slices"
	"time"

	"tokenward/tokenstore"
)

// revokeBatch bounds the tokens that one transaction ends, and the steps it
// takes to find them: other changes get their turn between two.
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
// With descendants, the whole branch of tokens that the target made, and they
// in turn, ends with it. The target goes first, in a transaction of its own
// right; the branch follows from its tips inward, in bounded transactions, and no
// token ends before all that it made have. So it can make no more, and a call
// that breaks off (the error says so) is taken up by the next one.
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
	ended, err := s.revokeBranch(context.WithoutCancel(ctx), c, target.ID)
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
func (s *Service) revokeBranch(ctx context.Context, c Caller, top tokenstore.ID) ([]tokenstore.ID, error) {
	m := &manager{token: c.Token}
	if c.operator {
		m.token = operatorToken
	}
	var ended []tokenstore.ID
	path := []tokenstore.ID{top} // from the top to where the walk is
	for len(path) > 0 {
		var walked, batch []tokenstore.ID
		err := s.writer.Change(ctx, func(tx tokenstore.Tx) (err error) {
			walked, batch, err = s.revokeTips(tx, c, m, slices.Clone(path))
			return err
		})
		if err != nil {
			e := *storeError(err)
			e.Detail = "The token is revoked, but not all of its descendants: send the request again. " + e.Detail
			return ended, &e
		}
		path, ended = walked, append(ended, batch...)
	}
	return ended, nil
}

// revokeTips walks on from the end of path and ends what has no children left.
// It returns where it stopped.
func (s *Service) revokeTips(tx tokenstore.Tx, c Caller, m *manager, path []tokenstore.ID) (walked, ended []tokenstore.ID, err error) {
	now := s.Now()
	for steps := 0; len(path) > 0 && steps < 4*revokeBatch && len(ended) < revokeBatch; steps++ {
		last := path[len(path)-1]
		child, err := firstChild(tx, last)
		if err != nil {
			return nil, nil, err
		}
		if child > last { // a maker is always older; anything else would be a circle
			path = append(path, child)
			continue
		}
		path = path[:len(path)-1]
		t, err := tx.Token(last)
		if err != nil {
			return nil, nil, err
		}
		if t.State == tokenstore.StateRevoked {
			continue
		}
		if _, err := s.end(tx, c, m, t, now); err != nil {
			return nil, nil, err
		}
		ended = append(ended, last)
	}
	return path, ended, nil
}

// firstChild returns the oldest token that id made and that still stands, or 0.
func firstChild(tx tokenstore.Tx, id tokenstore.ID) (tokenstore.ID, error) {
	for child, err := range tx.Children(id) {
		return child, err
	}
	return 0, nil
}
