package admin

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"tokenward/audit"
	"tokenward/tokenstore"
)

// Spec is a token to be made. What is left out (nil) is the caller's own.
type Spec struct {
	Account *uint64 // nil: the caller's; for root, Options.Account. Root (0) makes a root token
	Owner   *uint64 // nil: the caller's; for root, Options.Owner
	Name    string

	Scopes    []string // nil: the caller's; empty: none
	Resources *tokenstore.Resources
	Sources   *tokenstore.Sources
	NotBefore time.Time // zero: from the start
	Limits    *tokenstore.Limits

	// Expiry is what the client asked for, and is refused when it is later than
	// the caller's. With nil, DefaultExpiry applies, or the caller's if that is
	// earlier; with both nil, the caller's.
	Expiry        *tokenstore.Expiry
	DefaultExpiry *tokenstore.Expiry

	Once *Once // nil: a repeated request makes another token
}

// Made is the result of a verb that yields a secret.
type Made struct {
	Token  *tokenstore.Token
	Secret tokenstore.Secret // its only appearance

	// Answer is what Once.Render made of the token and its secret, now or when
	// the request came first; in the second case (Replayed) Token is nil and
	// Secret is zero.
	Answer   []byte
	Replayed bool
}

// Create makes a token. Needs the scope user:api-token:write, for a restricted
// caller a write grant on its own account, and domination of the new token.
func (s *Service) Create(ctx context.Context, c Caller, spec Spec) (Made, error) {
	target := audit.Target{}
	if spec.Account != nil {
		target.Account = *spec.Account
	}
	if spec.Owner != nil {
		target.Owner = *spec.Owner
	}
	if err := s.judgeCreate(c, &spec); err != nil {
		s.auditRefusal(ctx, c, verbCreate, target, AsError(err))
		return Made{}, err
	}
	secret, err := s.newSecret(ctx, c.API)
	if err != nil {
		return Made{}, err
	}
	var made Made
	err = s.change(ctx, c, verbCreate, target, func(tx tokenstore.Tx, m *manager, now time.Time) (err error) {
		made = Made{}
		if err := m.mayWrite(); err != nil {
			return err
		}
		if made, err = spec.Once.replay(tx, c, now); err != nil || made.Replayed {
			return err
		}
		id, err := tx.NewID()
		if err != nil {
			return err
		}
		t, err := s.build(m, &spec, id, s.secretRecord(secret, now), now)
		if err != nil {
			return err
		}
		if err := s.put(tx, c, m, verbCreate, now, nil, t); err != nil {
			return err
		}
		made = Made{Token: t, Secret: secret}
		return spec.Once.keep(tx, c, &made, now)
	})
	if err != nil {
		return Made{}, err
	}
	return made, nil
}

// judgeCreate refuses without a transaction what the caller, as it came in,
// may not make: no id is used up and the store's writer is not troubled. The
// transaction judges again.
func (s *Service) judgeCreate(c Caller, spec *Spec) error {
	now := s.Now()
	m, err := s.manager(c, c.Token, now)
	if err != nil {
		return err
	}
	if err := m.mayWrite(); err != nil || spec.Once != nil {
		return err // what was answered before may not be sound any more, and is answered again
	}
	placeholder := tokenstore.SecretRecord{Scheme: tokenstore.SchemeNative, CreatedAt: now, Ends: tokenstore.Never()}
	_, err = s.build(m, spec, 1, placeholder, now)
	return err
}

// build makes the token that spec describes, if it is sound and the caller
// dominates it.
func (s *Service) build(m *manager, spec *Spec, id tokenstore.ID, secret tokenstore.SecretRecord, now time.Time) (*tokenstore.Token, error) {
	t := m.token.Clone()
	t.ID, t.Name, t.NotBefore = id, spec.Name, spec.NotBefore.UTC().Truncate(time.Millisecond)
	t.State, t.ReplacedBy, t.Lineage, t.EndedAt, t.Revision = tokenstore.StateActive, 0, 0, time.Time{}, 0
	t.Creator = tokenstore.Creator{ID: m.token.ID, Name: m.token.Name}
	t.CreatedAt = now
	t.Secrets = []tokenstore.SecretRecord{secret}
	t.Account, t.Owner = s.home(m, spec)
	if spec.Scopes != nil {
		t.Scopes = slices.Clone(spec.Scopes)
	}
	if spec.Resources != nil {
		t.Resources = *spec.Resources
	}
	if spec.Sources != nil {
		t.Sources = *spec.Sources
	}
	if spec.Limits != nil {
		t.Limits = *spec.Limits
	}
	t.Expiry = wanted(spec.Expiry, spec.DefaultExpiry, m.token.Expiry)
	faults := t.Validate()
	if spec.Expiry != nil {
		faults = append(faults, checkExpiry(t.Expiry, now)...)
	}
	faults = append(faults, checkNotBefore(t)...)
	if len(faults) > 0 {
		return nil, invalid(faults...)
	}
	if err := m.mayYield(t); err != nil {
		return nil, err
	}
	return t.Clone(), nil // shares nothing with spec
}

// home is where the new token belongs: where spec says, else where the caller
// does, else (for root, unless it makes a root token) at the defaults.
func (s *Service) home(m *manager, spec *Spec) (account, owner uint64) {
	account, owner = m.token.Account, m.token.Owner
	if m.token.IsRoot() {
		account = s.opts.Account
	}
	if spec.Account != nil {
		account = *spec.Account
	}
	if m.token.IsRoot() && account != tokenstore.Root {
		owner = s.opts.Owner
	}
	if spec.Owner != nil {
		owner = *spec.Owner
	}
	return account, owner
}

// wanted is the expiry asked for, else the default, else the ceiling; only what
// was asked for may lie beyond the ceiling, to be refused.
func wanted(asked, byDefault *tokenstore.Expiry, ceiling tokenstore.Expiry) tokenstore.Expiry {
	e := ceiling
	switch {
	case asked != nil:
		e = *asked
	case byDefault != nil:
		e = byDefault.Earlier(ceiling)
	}
	if e.Never {
		return tokenstore.Never()
	}
	return tokenstore.EndsAt(e.At.UTC().Truncate(time.Millisecond))
}

func checkExpiry(e tokenstore.Expiry, now time.Time) tokenstore.Faults {
	if e.Ended(now) {
		return tokenstore.Faults{{Field: "expires_at", Detail: "must lie in the future"}}
	}
	return nil
}

func checkNotBefore(t *tokenstore.Token) tokenstore.Faults {
	if !t.NotBefore.IsZero() && t.Expiry.Ended(t.NotBefore) {
		return tokenstore.Faults{{Field: "not_before", Detail: "must lie before expires_at"}}
	}
	return nil
}

// successorName is the name of the token that a reset makes: the old name, a
// space and the new id, the old name cut so that all of it fits. A joiner that the
// cut leaves at the end has nothing to join.
func successorName(old string, id tokenstore.ID) string {
	suffix := " " + strconv.FormatUint(uint64(id), 10)
	runes := []rune(old)
	kept := string(runes[:min(len(runes), tokenstore.MaxNameRunes-len(suffix))])
	return strings.TrimRight(kept, tokenstore.Joiners) + suffix
}
