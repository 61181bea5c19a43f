package admin

import (
	"context"
	"time"

	"tokenward/audit"
	"tokenward/tokenstore"
)

// ResetSpec says how the new token of a reset ends.
type ResetSpec struct {
	// Expiry is what the client asked for. With nil, DefaultExpiry applies, and
	// with both nil the old token's own expiry; these two give way to the
	// caller's expiry, while one asked for is refused when it is later.
	Expiry        *tokenstore.Expiry
	DefaultExpiry *tokenstore.Expiry

	// Check refuses what the face's contract cannot reset. It gets the target, once
	// the caller is known to see it and to have the right to write; nil refuses
	// nothing.
	Check func(old *tokenstore.Token) error

	Once *Once
}

// Reset makes a new token in the place of the target: a new id and secret, the
// same account, owner, scopes, resources, sources and limits, and the old name
// with the new id behind it. The old one ends after the grace period, or at its
// own earlier expiry. Needs what Create needs. A token that is disabled, has
// ended or was reset before gives KindConflict.
func (s *Service) Reset(ctx context.Context, c Caller, target Target, spec ResetSpec) (Made, error) {
	return s.renew(ctx, c, verbReset, target, spec.Once, func(n *renewal) error {
		if spec.Check != nil {
			if err := spec.Check(n.old); err != nil {
				return err
			}
		}
		next, err := s.successor(n.tx, n.m, n.old, &spec, n.now)
		if err != nil {
			return err
		}
		next.Secrets = []tokenstore.SecretRecord{s.secretRecord(n.secret, n.now)}
		after := n.old.Clone()
		after.ReplacedBy = next.ID
		after.Expiry = n.old.Expiry.Earlier(tokenstore.EndsAt(n.now.Add(s.opts.ResetGrace)))
		if err := s.put(n.tx, c, n.m, verbReset, n.now, nil, next); err != nil {
			return err
		}
		n.made = next
		return s.put(n.tx, c, n.m, verbReset, n.now, n.old, after)
	})
}

// successor is the token that takes old's place, without its secret.
func (s *Service) successor(tx tokenstore.Tx, m *manager, old *tokenstore.Token, spec *ResetSpec, now time.Time) (*tokenstore.Token, error) {
	byDefault := spec.DefaultExpiry
	if byDefault == nil {
		byDefault = &old.Expiry
	}
	next := old.Clone()
	next.Expiry = wanted(spec.Expiry, byDefault, m.token.Expiry)
	if spec.Expiry != nil {
		if faults := checkExpiry(next.Expiry, now); len(faults) > 0 {
			return nil, invalid(faults...)
		}
	}
	if faults := checkNotBefore(next); len(faults) > 0 {
		return nil, invalid(faults...)
	}
	// Domination keeps the end within the caller's own, and so within the later
	// of the caller's and the old token's.
	if err := m.mayYield(next); err != nil {
		return nil, err
	}
	id, err := tx.NewID()
	if err != nil {
		return nil, err
	}
	next.ID, next.Name = id, successorName(old.Name, id)
	next.Creator = tokenstore.Creator{ID: m.token.ID, Name: m.token.Name}
	next.CreatedAt, next.Revision = now, 0
	next.Lineage = old.MeasuredAs()
	return next, nil
}

// RotateSpec says when the old secret of a rotation ends.
type RotateSpec struct {
	OldEnds time.Time // zero: after the grace period
	// OldSilence ends it, instead, once it has not been used for so long: whole
	// seconds, a minute to tokenstore.MaxSilence. 0: silence does not end it.
	OldSilence time.Duration
	Once       *Once
}

// Rotate gives the target a second secret, beside which the old one works until
// the deadline. Needs what Create needs. A token that is disabled, has ended,
// was reset, or is being rotated already gives KindConflict.
func (s *Service) Rotate(ctx context.Context, c Caller, target Target, spec RotateSpec) (Made, error) {
	return s.renew(ctx, c, verbRotate, target, spec.Once, func(n *renewal) error {
		before := n.old
		if len(before.Secrets) > 1 && !before.Secrets[1].Ends.Ended(n.now) {
			return refuse(KindConflict, "The token is being rotated already: finish that first.")
		}
		replaced := before.Secrets[0]
		if err := s.endOld(&replaced, &spec, n.now); err != nil {
			return err
		}
		if err := n.m.mayYield(before); err != nil {
			return err
		}
		n.made = before.Clone()
		n.made.Secrets = []tokenstore.SecretRecord{s.secretRecord(n.secret, n.now), replaced}
		return s.put(n.tx, c, n.m, verbRotate, n.now, before, n.made)
	})
}

// renewal is a reset or rotation inside its transaction.
type renewal struct {
	tx     tokenstore.Tx
	m      *manager
	now    time.Time
	old    *tokenstore.Token // the target as stored; not changed
	secret tokenstore.Secret // the new one
	made   *tokenstore.Token // set by the step: the token that secret opens
}

// renew has step give the target a new secret, once it is known that the caller
// sees it and may write, that the call is no repetition, and that the target may
// have one. A caller whose own secret this very call replaced may no longer write,
// and still gets its answer again.
func (s *Service) renew(ctx context.Context, c Caller, verb audit.Word, target Target, once *Once, step func(*renewal) error) (Made, error) {
	secret, err := s.newSecret(ctx, c.API)
	if err != nil {
		return Made{}, err
	}
	var made Made
	err = s.change(ctx, c, verb, auditTarget(target), func(tx tokenstore.Tx, m *manager, now time.Time) (err error) {
		made = Made{}
		old, err := m.find(target, tx.Token)
		if err != nil {
			return err
		}
		if err := m.mayWrite(); err != nil {
			made, err = once.replayOwn(tx, c, m, target, now, err)
			return err
		}
		if made, err = once.replay(tx, c, now); err != nil || made.Replayed {
			return err
		}
		if err := target.at(old); err != nil {
			return err
		}
		if err := renewable(old, now); err != nil {
			return err
		}
		n := renewal{tx: tx, m: m, now: now, old: old, secret: secret}
		if err := step(&n); err != nil {
			return err
		}
		made = Made{Token: n.made, Secret: secret}
		return once.keep(tx, c, &made, now)
	})
	if err != nil {
		return Made{}, err
	}
	return made, nil
}

// endOld says in the record of a replaced secret when it ends.
func (s *Service) endOld(old *tokenstore.SecretRecord, spec *RotateSpec, now time.Time) error {
	at := spec.OldEnds.UTC().Truncate(time.Millisecond)
	switch {
	case spec.OldSilence != 0 && !spec.OldEnds.IsZero():
		return invalid(tokenstore.FieldFault{Field: "old_ends_after_silence", Detail: "and old_ends_at exclude each other"})
	case spec.OldSilence != 0 && !s.TracksUsage():
		return invalid(tokenstore.FieldFault{Field: "old_ends_after_silence", Detail: "is not available: this server does not record when tokens are used"})
	case spec.OldSilence != 0:
		if spec.OldSilence < minSilence || spec.OldSilence > tokenstore.MaxSilence || spec.OldSilence%time.Second != 0 {
			return invalid(tokenstore.FieldFault{Field: "old_ends_after_silence", Detail: "must be a minute to 90 days, in whole seconds"})
		}
		old.Ends, old.Silence = tokenstore.Never(), spec.OldSilence
		return nil
	case spec.OldEnds.IsZero():
		at = now.Add(s.opts.ResetGrace)
	case !at.After(now) || at.After(tokenstore.MaxTime()):
		return invalid(tokenstore.FieldFault{Field: "old_ends_at", Detail: "must lie in the future"})
	}
	old.Ends = tokenstore.EndsAt(at)
	return nil
}

// minSilence is well above the interval in which uses are written.
const minSilence = time.Minute

// FinishRotation ends the old secret of a rotation now. Without one it changes
// nothing and succeeds. It needs visibility and the right to write.
func (s *Service) FinishRotation(ctx context.Context, c Caller, target Target) (*tokenstore.Token, error) {
	return s.edit(ctx, c, verbFinish, target, func(t *tokenstore.Token, _ time.Time) error {
		if t.State == tokenstore.StateRevoked {
			return refuse(KindConflict, "The token has been revoked.")
		}
		t.Secrets = t.Secrets[:1]
		return nil
	})
}

// renewable reports, as an error, why a token may not get a new secret.
func renewable(t *tokenstore.Token, now time.Time) error {
	switch {
	case t.ReplacedBy != 0:
		return refuse(KindConflict, "The token has been reset already.")
	case t.State == tokenstore.StateRevoked:
		return refuse(KindConflict, "The token has been revoked.")
	case t.Expiry.Ended(now):
		return refuse(KindConflict, "The token has expired.")
	case t.State != tokenstore.StateActive:
		return refuse(KindConflict, "The token is disabled.")
	}
	return nil
}

func auditTarget(t Target) audit.Target {
	return audit.Target{Token: uint64(t.ID), Account: t.Account, Owner: t.Owner}
}
