package admin

import (
	"context"
	"reflect"
	"slices"
	"time"

	"tokenward/audit"
	"tokenward/tokenstore"
)

// Fields is what an update may change of a token.
type Fields struct {
	Name      string
	Scopes    []string
	Resources tokenstore.Resources
	Sources   tokenstore.Sources
	NotBefore time.Time
	Expiry    tokenstore.Expiry
	Limits    tokenstore.Limits
}

// Update merges a change into the target: merge gets the fields as they are and
// alters what it wants to. It may be called more than once and must have no
// other effect; the faults it returns refuse the change with KindInvalid.
//
// Needs visibility and the right to write, and unless the token only becomes
// narrower, domination of what it becomes. A change to nothing succeeds and
// leaves no trace.
func (s *Service) Update(ctx context.Context, c Caller, target Target, merge func(*Fields) tokenstore.Faults) (*tokenstore.Token, error) {
	return s.edit(ctx, c, verbUpdate, target, func(t *tokenstore.Token, now time.Time) error {
		if t.State == tokenstore.StateRevoked {
			return refuse(KindConflict, "The token has been revoked.")
		}
		was := t.Expiry
		c := t.Clone()
		f := Fields{c.Name, c.Scopes, c.Resources, c.Sources, c.NotBefore, c.Expiry, c.Limits}
		faults := merge(&f)
		if len(faults) > 0 {
			return invalid(faults...)
		}
		t.Name, t.Scopes, t.Resources, t.Sources, t.Limits = f.Name, slices.Clone(f.Scopes), f.Resources, f.Sources, f.Limits
		t.NotBefore = f.NotBefore.UTC().Truncate(time.Millisecond)
		t.Expiry = wanted(&f.Expiry, nil, was)
		faults = t.Validate()
		if t.Expiry != was {
			faults = append(faults, checkExpiry(t.Expiry, now)...)
			if t.ReplacedBy != 0 && !t.Expiry.NotLater(was) {
				return refuse(KindConflict, "The token has been reset: its end can only be brought forward.")
			}
		}
		if faults = append(faults, checkNotBefore(t)...); len(faults) > 0 {
			return invalid(faults...)
		}
		return nil
	})
}

// Disable makes the target refused until it is enabled again. Needs visibility
// and the right to write. Disabling twice succeeds.
func (s *Service) Disable(ctx context.Context, c Caller, target Target) (*tokenstore.Token, error) {
	return s.setState(ctx, c, verbDisable, target, tokenstore.StateDisabled)
}

// Enable undoes Disable. Needs the right to write and domination of the target.
// Enabling what is enabled succeeds, and needs the same.
func (s *Service) Enable(ctx context.Context, c Caller, target Target) (*tokenstore.Token, error) {
	return s.setState(ctx, c, verbEnable, target, tokenstore.StateActive)
}

func (s *Service) setState(ctx context.Context, c Caller, verb audit.Word, target Target, state tokenstore.State) (*tokenstore.Token, error) {
	return s.edit(ctx, c, verb, target, func(t *tokenstore.Token, _ time.Time) error {
		if t.State == tokenstore.StateRevoked {
			return refuse(KindConflict, "The token has been revoked, which is final.")
		}
		t.State = state
		return nil
	})
}

// edit changes one token by alter, which may run more than once.
func (s *Service) edit(ctx context.Context, c Caller, verb audit.Word, target Target, alter func(t *tokenstore.Token, now time.Time) error) (*tokenstore.Token, error) {
	var after *tokenstore.Token
	err := s.change(ctx, c, verb, auditTarget(target), func(tx tokenstore.Tx, m *manager, now time.Time) error {
		before, err := m.find(target, tx.Token)
		if err != nil {
			return err
		}
		if err := m.mayWrite(); err != nil {
			return err
		}
		if err := target.at(before); err != nil {
			return err
		}
		after = before.Clone()
		if err := alter(after, now); err != nil {
			return err
		}
		if verb == verbEnable || !narrows(before, after) {
			if err := m.mayYield(after); err != nil {
				return err
			}
		}
		if reflect.DeepEqual(before, after) {
			return nil
		}
		return s.put(tx, c, m, verb, now, before, after)
	})
	if err != nil {
		return nil, err
	}
	return after, nil
}
