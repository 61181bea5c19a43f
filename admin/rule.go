package admin

import (
	"slices"
	"strconv"
	"time"

	"tokenward/tokenstore"
)

// manager is a caller as the management rule sees it: its token as the store
// has it now, not as it was when the request came in.
type manager struct {
	token        *tokenstore.Token
	grace        bool     // the presented secret, or the token itself, has been replaced
	accountTypes []string // see Options.AccountTypes
}

// operatorToken stands for the person at the command line, who can write the
// store anyway. It is never stored; a root token is made in its likeness. `*` is
// all that root itself needs: the scopes of token management stand beside it
// because `*` does not carry them to the tokens that inherit.
var operatorToken = &tokenstore.Token{
	Account: tokenstore.Root, Owner: 1, Name: "command line",
	Scopes:    []string{"*", tokenstore.ManagePrefix + "*"},
	Resources: tokenstore.Resources{All: true},
	Sources:   tokenstore.Sources{Any: true},
	Expiry:    tokenstore.Never(),
	State:     tokenstore.StateActive,
}

// manager judges whether the caller may call at all, against the current form
// of its token.
func (s *Service) manager(c Caller, current *tokenstore.Token, now time.Time) (*manager, error) {
	if c.operator {
		return &manager{token: operatorToken}, nil
	}
	if c.Token == nil || c.Secret == nil || current == nil || current.ID != c.Token.ID {
		return nil, refuse(KindMissingToken, "An API token is required.")
	}
	i := slices.IndexFunc(current.Secrets, func(r tokenstore.SecretRecord) bool { return r.Digest.Equal(c.Secret.Digest) })
	if current.Status(now) != tokenstore.StatusActive || i < 0 || current.Secrets[i].Ends.Ended(now) {
		return nil, refuse(KindInvalidToken, "The API token is not valid.")
	}
	if !current.Sources.Permit(c.Remote) {
		return nil, refuse(KindSource, "The API token may not be used from this address.")
	}
	return &manager{
		token:        current,
		grace:        current.Secrets[i].InGrace() || current.ReplacedBy != 0,
		accountTypes: s.opts.AccountTypes,
	}, nil
}

// sees reports whether t exists for the caller: itself always; all tokens for
// root; those of its account for others, unless the caller is restricted and
// has no write grant on its account, which leaves those that reach no further
// than itself. A secret in its grace period sees its own token alone.
func (m *manager) sees(t *tokenstore.Token) bool {
	switch {
	case t.ID == m.token.ID:
		return true
	case m.grace:
		return false
	case m.token.IsRoot():
		return true
	case t.Account != m.token.Account:
		return false
	}
	return m.writesAccount() || m.reaches(&t.Resources)
}

// mayAddress reports, as an error, why the caller may not name tokens other
// than itself at all. It comes before any look at the store, so that a caller
// without either scope learns nothing from the difference of answers.
func (m *manager) mayAddress(scope string) error {
	if !m.token.HasScope(tokenstore.ScopeTokenRead) && !m.token.HasScope(tokenstore.ScopeTokenWrite) {
		return missingScope(scope)
	}
	if m.grace {
		return refuse(KindGrace, "This secret has been replaced: it may no longer manage tokens.")
	}
	return nil
}

// mayRead reports, as an error, why the caller may not read tokens.
func (m *manager) mayRead() error {
	if !m.token.HasScope(tokenstore.ScopeTokenRead) {
		return missingScope(tokenstore.ScopeTokenRead)
	}
	return nil
}

// mayWrite reports, as an error, why the caller may not change tokens.
func (m *manager) mayWrite() error {
	switch {
	case !m.token.HasScope(tokenstore.ScopeTokenWrite):
		return missingScope(tokenstore.ScopeTokenWrite)
	case m.grace:
		return refuse(KindGrace, "This secret has been replaced: it may no longer manage tokens.")
	case !m.writesAccount():
		return refuse(KindAccess, "The calling token is restricted and has no write grant on its own account.")
	}
	return nil
}

// writesAccount reports whether the caller is unrestricted, or restricted with
// a write grant on its own account.
func (m *manager) writesAccount() bool {
	return m.reachesAccount(tokenstore.LevelWrite)
}

// reaches reports whether everything that r grants lies within what the caller
// is granted.
func (m *manager) reaches(r *tokenstore.Resources) bool {
	if r.All {
		return m.token.Resources.All
	}
	for _, g := range r.Grants {
		if !m.grants(g) {
			return false
		}
	}
	return true
}

// grants reports whether the caller has g itself, or has it through a grant on
// its account.
func (m *manager) grants(g tokenstore.Grant) bool {
	return m.token.Resources.Allows(g.Type, []byte(g.ID), g.Level) ||
		slices.Contains(m.accountTypes, g.Type) && m.reachesAccount(g.Level)
}

func (m *manager) reachesAccount(level tokenstore.Level) bool {
	return m.token.Resources.Allows(tokenstore.TypeAccount, strconv.AppendUint(nil, m.token.Account, 10), level)
}

// mayYield reports, as an error, why the caller may not make t what it is: it
// must be at least as wide in every aspect. The account is one of them, so that
// only root makes root.
func (m *manager) mayYield(t *tokenstore.Token) error {
	// What the caller has through its account, the comparison need not find.
	inner := *t
	if !inner.Resources.All {
		inner.Resources.Grants = slices.DeleteFunc(slices.Clone(t.Resources.Grants), m.grants)
	}
	if aspect, ok := m.token.Dominates(&inner); !ok {
		return wider(aspect)
	}
	return nil
}

func wider(aspect tokenstore.Aspect) *Error {
	return &Error{
		Kind:   KindWider,
		Detail: "The token would be wider than the calling token: " + string(aspect) + ".",
		Fields: []tokenstore.FieldFault{{Field: string(aspect), Detail: "must not be wider than the calling token's"}},
	}
}

// narrows reports whether after allows nothing that before did not: the
// condition under which visibility is enough to make the change.
func narrows(before, after *tokenstore.Token) bool {
	_, ok := before.Dominates(after)
	return ok && !after.NotBefore.Before(before.NotBefore) && !(before.State != tokenstore.StateActive && after.State == tokenstore.StateActive)
}

// find returns the target if the caller sees it. A token that does not exist,
// one that the caller may not see and one outside of what the path named all
// cost the same read and give the same error.
func (m *manager) find(target Target, byID func(tokenstore.ID) (*tokenstore.Token, error)) (*tokenstore.Token, error) {
	if target.ID != m.token.ID {
		if err := m.mayAddress(tokenstore.ScopeTokenRead); err != nil {
			return nil, err
		}
	}
	t, err := byID(target.ID)
	if err != nil {
		return nil, storeError(err)
	}
	if !m.sees(t) || !target.holds(t) {
		return nil, notFound()
	}
	return t, nil
}
