// Package admin is the token service: the verbs that make, show and end API
// tokens, the one rule of who may use them on what, and the plumbing that the
// faces share.
//
// A face (packages unit, fynn, mailtrap and native below this one)
// decodes its wire form, calls a verb of [Service], and encodes the answer. It
// decides nothing about permission: it may narrow what the service allows, and
// has no way to widen it. [Service] knows no wire form, no HTTP and no driver.
//
// # Order of checks
//
// Every verb checks in one order, which every face inherits: is the caller's
// token good now (KindInvalidToken), may it name other tokens at all
// (KindScope, KindGrace), is the target there and visible (KindNotFound), may
// the caller do this verb (KindScope, KindGrace, KindAccess), is the request
// sound (KindInvalid, KindConflict, KindPrecondition), and does the caller
// dominate what would come of it (KindWider). A verb that changes something
// checks all of it inside the transaction against the token as the store has it
// then, so that a caller revoked meanwhile gets nothing done.
//
// # Events
//
// A change and its audit event are one transaction. A refused change is told to
// the audit log as well, on a best effort: at most a few each second, none while
// the log lags behind, and the next one written says how many were not.
package admin

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tokenward/audit"
	"tokenward/enforce"
	"tokenward/tokenstore"
	"tokenward/tokenstore/usage"
)

// The defaults of [Options].
const (
	DefaultResetGrace = 12 * time.Hour
	DefaultPrefix     = "tw"
)

// Options are the values a Service works with. The zero value of a field means
// what its comment says.
type Options struct {
	// Account and Owner stand in for a root caller where a request names none.
	// 0 means 1.
	Account, Owner uint64

	// ResetGrace is how long the old token or secret works after a reset or a
	// rotation that names no deadline. 0 ends it at once; there is no default
	// here, because the configuration has one: DefaultResetGrace.
	ResetGrace time.Duration

	// Prefix begins the secrets that are made; "" means DefaultPrefix. Prefixes
	// overrides it for single APIs, by Caller.API. All must satisfy
	// tokenstore.ValidPrefix.
	Prefix   string
	Prefixes map[string]string

	// RecordPrefix records a prefix in the store. It is called once for each
	// prefix before the first secret with it is made, and must be idempotent: a
	// prefix that is not recorded would not be recognised. nil: the caller of New
	// has recorded all of them.
	RecordPrefix func(ctx context.Context, prefix string) error

	// Formats returns what the store knows of the form of its secrets, for imports.
	// nil: nothing.
	Formats func() *tokenstore.Formats

	// RecordForeign records in the store, before the first of them is imported, that
	// there are secrets from elsewhere of a scheme; it must be idempotent. nil: the
	// caller of New has recorded them.
	RecordForeign func(ctx context.Context, scheme tokenstore.Scheme) error

	// ImportKeys are the keys of HMAC digests that can be imported; nil: none.
	ImportKeys *tokenstore.ImportKeys

	// AccountTypes are resource types that lie within the tenant's account: a
	// grant on the account reaches them at its level. nil: none.
	AccountTypes []string

	// Node names this node in audit events; may be empty.
	Node string

	// Backlog returns how many audit events wait in the outbox. While more than
	// half of tokenstore.MaxOutbox wait, refusals are not added. nil: not known,
	// and the rate alone bounds them.
	Backlog func() int

	// Usage returns what is known of the use of a token, up to the latest request.
	// It may wait for the store, so it is never called within a change. nil: nothing
	// is known.
	Usage func(t *tokenstore.Token) (usage.Record, error)
}

// Vocabulary is what the configuration knows by name. It is replaced whole when
// the configuration is loaded again.
type Vocabulary struct {
	Scopes        []string // those that routes name, and enforce.known_scopes
	ResourceTypes []string // those that routes name, and enforce.resource_types; "account" is always known
	Routes        []*enforce.Route
}

// KnowsScope reports whether the configuration knows a scope that a token is to
// have: by its name, as a scope of token management, or as a pattern that
// stands for at least one known scope.
func (v *Vocabulary) KnowsScope(scope string) bool {
	if scope == "*" {
		return true
	}
	pattern := &tokenstore.Token{Scopes: []string{scope}}
	return pattern.HasScope(tokenstore.ScopeTokenRead) || pattern.HasScope(tokenstore.ScopeTokenWrite) ||
		slices.ContainsFunc(v.Scopes, pattern.HasScope)
}

// KnowsType reports whether the configuration knows the resource type.
func (v *Vocabulary) KnowsType(typ string) bool {
	return typ == tokenstore.TypeAccount || slices.Contains(v.ResourceTypes, typ)
}

// Service is the token service. All methods may be called at once from many
// goroutines.
type Service struct {
	reader  tokenstore.Reader
	writer  tokenstore.Writer
	peppers *tokenstore.Peppers
	now     func() time.Time
	opts    Options

	vocabulary atomic.Pointer[Vocabulary]
	refusals   refusals

	// prefixMu guards recorded, the prefixes that are in the store for sure. It is
	// held while one is recorded, so that no secret overtakes its prefix.
	prefixMu sync.Mutex
	recorded map[string]bool
}

// New returns a service over the store. now is the clock; times that reach the
// store are cut to milliseconds. peppers may be nil. It fails if an option is
// not usable, in words for the operator.
func New(reader tokenstore.Reader, writer tokenstore.Writer, peppers *tokenstore.Peppers, now func() time.Time, opts Options) (*Service, error) {
	opts.Account, opts.Owner = max(opts.Account, 1), max(opts.Owner, 1)
	if opts.Prefix == "" {
		opts.Prefix = DefaultPrefix
	}
	opts.Prefixes = maps.Clone(opts.Prefixes)
	opts.AccountTypes = slices.Clone(opts.AccountTypes)
	for _, p := range append(slices.Collect(maps.Values(opts.Prefixes)), opts.Prefix) {
		if !tokenstore.ValidPrefix(p) {
			return nil, fmt.Errorf("secret prefix %q is not usable: write a small letter and 1 to 15 small letters or digits", p)
		}
	}
	if opts.ResetGrace < 0 {
		return nil, fmt.Errorf("reset grace %s is negative: write 0s to end the old token at once", opts.ResetGrace)
	}
	s := &Service{reader: reader, writer: writer, peppers: peppers, now: now, opts: opts, recorded: make(map[string]bool)}
	s.refusals.init()
	s.SetVocabulary(Vocabulary{})
	return s, nil
}

// SetVocabulary replaces what the configuration knows by name, as a reload does.
func (s *Service) SetVocabulary(v Vocabulary) {
	v.Scopes, v.ResourceTypes, v.Routes = slices.Clone(v.Scopes), slices.Clone(v.ResourceTypes), slices.Clone(v.Routes)
	s.vocabulary.Store(&v)
}

// Vocabulary returns what the configuration knows by name. It must not be
// changed.
func (s *Service) Vocabulary() *Vocabulary { return s.vocabulary.Load() }

// Now returns the time by the service's clock, in UTC, cut to milliseconds.
func (s *Service) Now() time.Time { return s.now().UTC().Truncate(time.Millisecond) }

// Home returns the account and owner that a request of c means when it names
// none: the caller's own, and for root the configured defaults.
func (s *Service) Home(c Caller) (account, owner uint64) {
	if c.IsRoot() {
		return s.opts.Account, s.opts.Owner
	}
	if c.Token == nil {
		return 0, 0
	}
	return c.Token.Account, c.Token.Owner
}

// Caller is who calls a verb: the token that a request presented, as the judge
// of the request found it, and what is known of the request. The zero Caller is
// refused by every verb.
type Caller struct {
	Token     *tokenstore.Token        // shared; not changed
	Secret    *tokenstore.SecretRecord // the one of Token's secrets that was presented
	Presented tokenstore.Secret        // its text, only to seal idempotent answers with
	Remote    netip.Addr               // the client as believed; invalid: not known
	API       string                   // the face (unit, fynn, mailtrap, native), or what stands for one (cli, leaks)
	RequestID string

	operator bool
	reporter bool // operator, in the name of a report that proved itself otherwise
}

// Operator is the caller for verbs at the command line that work on the store
// itself, offline: whoever can write the store file needs no token. It has all
// powers of root.
func Operator(requestID string) Caller {
	return Caller{API: "cli", RequestID: requestID, operator: true}
}

// Reporter is the caller for what the door api does on a report from remote that
// bore no token, once it is proven in the door's own way. It has the powers of
// [Operator], and the audit log says that it was a report.
func Reporter(api string, remote netip.Addr, requestID string) Caller {
	return Caller{API: api, Remote: remote, RequestID: requestID, operator: true, reporter: true}
}

// IsRoot reports whether the caller claims the powers of root.
func (c Caller) IsRoot() bool { return c.operator || c.Token != nil && c.Token.IsRoot() }

// MayWrite reports, as an error, why the caller may not change the target, or
// with a zero Target.ID any token but itself: the target is not there for it, a
// scope is missing, the secret is in its grace period, or the token is
// restricted without a write grant on its account. Every verb checks this itself;
// a face calls it where its contract puts the check before others that the
// face makes.
func (s *Service) MayWrite(ctx context.Context, c Caller, target Target) error {
	m, err := s.manager(c, c.Token, s.Now())
	if err != nil {
		return err
	}
	if target.ID != 0 {
		if _, err := m.find(target, func(id tokenstore.ID) (*tokenstore.Token, error) { return s.reader.ByID(ctx, id) }); err != nil {
			return err
		}
	}
	return m.mayWrite()
}

// Target names the token that a verb is aimed at, within what the path named.
type Target struct {
	ID      tokenstore.ID
	Account uint64 // if not 0: a token of another account is not found
	Owner   uint64 // likewise
	Revoked bool   // revoked tokens are found too, which only the native API does

	// Revisions are those at which the token may be changed; at another the answer
	// is KindPrecondition. nil: at any; empty: at none.
	Revisions []uint64
}

func (t Target) holds(token *tokenstore.Token) bool {
	return (t.Account == 0 || token.Account == t.Account) &&
		(t.Owner == 0 || token.Owner == t.Owner) &&
		(t.Revoked || token.State != tokenstore.StateRevoked)
}

// at refuses, as an error, a change of a token that has moved on.
func (t Target) at(token *tokenstore.Token) error {
	if t.Revisions == nil || slices.Contains(t.Revisions, token.Revision) {
		return nil
	}
	return refuse(KindPrecondition, "The token has been changed meanwhile: read it again.")
}

// change makes one audited change. fn gets the caller as the transaction sees
// it; it may run more than once. A refusal is told to the audit log.
func (s *Service) change(ctx context.Context, c Caller, verb audit.Word, target audit.Target, fn func(tx tokenstore.Tx, m *manager, now time.Time) error) error {
	err := s.precheck(c, tokenstore.ID(target.Token))
	if err == nil {
		err = s.writer.Change(ctx, func(tx tokenstore.Tx) error {
			now := s.Now()
			m, err := s.managerIn(tx, c, now)
			if err != nil {
				return err
			}
			return fn(tx, m, now)
		})
	}
	if err == nil {
		return nil
	}
	e := storeError(err)
	s.auditRefusal(ctx, c, verb, target, e)
	return e
}

// precheck refuses what the caller may do to no token, without troubling the
// store's writer. The transaction checks it again.
func (s *Service) precheck(c Caller, target tokenstore.ID) error {
	m, err := s.manager(c, c.Token, s.Now())
	if err != nil {
		return err
	}
	if target != 0 && target == m.token.ID {
		return nil
	}
	return m.mayAddress(tokenstore.ScopeTokenWrite)
}

// managerIn reads the caller's token again, in the transaction.
func (s *Service) managerIn(tx tokenstore.Tx, c Caller, now time.Time) (*manager, error) {
	if c.operator || c.Token == nil {
		return s.manager(c, nil, now)
	}
	current, err := tx.Token(c.Token.ID)
	if err != nil {
		e := storeError(err)
		if e.Kind == KindNotFound {
			e = refuse(KindInvalidToken, "The API token is not valid.")
		}
		return nil, e
	}
	return s.manager(c, current, now)
}

// newSecret makes a secret with the prefix of the caller's API, which is in the
// store before the secret exists.
func (s *Service) newSecret(ctx context.Context, api string) (tokenstore.Secret, error) {
	prefix, ok := s.opts.Prefixes[api]
	if !ok {
		prefix = s.opts.Prefix
	}
	if err := s.recordPrefix(ctx, prefix); err != nil {
		return tokenstore.Secret{}, err
	}
	return tokenstore.NewSecret(prefix), nil
}

func (s *Service) recordPrefix(ctx context.Context, prefix string) error {
	if s.opts.RecordPrefix == nil {
		return nil
	}
	s.prefixMu.Lock()
	defer s.prefixMu.Unlock()
	if s.recorded[prefix] {
		return nil
	}
	if err := s.opts.RecordPrefix(ctx, prefix); err != nil {
		return storeError(fmt.Errorf("record secret prefix %q: %w", prefix, err))
	}
	s.recorded[prefix] = true
	return nil
}

// secretRecord is what the store keeps of a secret made now.
func (s *Service) secretRecord(secret tokenstore.Secret, now time.Time) tokenstore.SecretRecord {
	digest, pepper := s.peppers.Digest(secret.Reveal())
	return tokenstore.SecretRecord{
		Digest: digest, Pepper: pepper, Scheme: tokenstore.SchemeNative,
		Last4: secret.Last4(), CreatedAt: now, Ends: tokenstore.Never(),
	}
}
