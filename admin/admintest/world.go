// Package admintest lends the tests of the token service and its faces a world
// to work in: a store in memory, a clock that stands, a gate, a cast of callers,
// and transcripts. It is imported by tests only.
package admintest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/mux"

	"tokenward/admin"
	"tokenward/audit"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/storetest"
)

// Grace is the reset grace of every world.
const Grace = 12 * time.Hour

// World is a token service over a store.
type World struct {
	T       testing.TB // in a fuzz target, the target's maker: Token and Caller use it for failures alone
	Store   *Counting  // what the service uses
	Service *admin.Service
	Clock   *Clock
	Log     *slog.Logger
	Script  string // the transcript that is played, if one is
	seen    int    // events returned so far
}

// New returns a world over an empty store in memory, whose clock stands at
// storetest.Epoch. It knows the scopes and resource types of the cast.
func New(t testing.TB) *World {
	memory := storetest.NewMemory(nil)
	w := Over(t, memory, nil)
	t.Cleanup(func() { memory.Check(func(fault string) { t.Error(fault) }) })
	return w
}

// Bolt returns an empty store in a file that goes with the test.
func Bolt(t testing.TB) *boltstore.Store {
	t.Helper()
	store, err := boltstore.Create(boltstore.Options{Path: filepath.Join(t.TempDir(), "tokens.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

// Over returns a world over the given store.
func Over(t testing.TB, store storetest.Store, peppers *tokenstore.Peppers) *World {
	t.Helper()
	w := &World{T: t, Store: &Counting{Store: store}, Clock: &Clock{}, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))}
	w.Clock.Set(storetest.Epoch)
	service, err := admin.New(w.Store, w.Store, peppers, w.Clock.Now, admin.Options{
		ResetGrace: Grace, Node: "test", Prefixes: map[string]string{"fynn": "api"},
		AccountTypes: []string{"project", "inbox", "sending_domain"},
	})
	if err != nil {
		t.Fatal(err)
	}
	service.SetVocabulary(admin.Vocabulary{
		Scopes:        []string{"accounts", "accounts-write", "cards", "cards-write", "customers"},
		ResourceTypes: []string{"account", "card", "project", "inbox", "sending_domain"},
	})
	w.Service = service
	return w
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// Clock is a clock that moves when it is told to.
type Clock struct{ now atomic.Pointer[time.Time] }

// Now returns where it stands.
func (c *Clock) Now() time.Time { return *c.now.Load() }

// Set moves it to t.
func (c *Clock) Set(t time.Time) { c.now.Store(&t) }

// Advance moves it on by d.
func (c *Clock) Advance(d time.Duration) { c.Set(c.Now().Add(d)) }

// Counting counts what is read of a store, in and out of changes.
type Counting struct {
	storetest.Store
	Reads   atomic.Int64 // of single tokens
	Changes atomic.Int64
}

// ByID counts one read.
func (s *Counting) ByID(ctx context.Context, id tokenstore.ID) (*tokenstore.Token, error) {
	s.Reads.Add(1)
	return s.Store.ByID(ctx, id)
}

// ByDigest counts one read.
func (s *Counting) ByDigest(ctx context.Context, d tokenstore.Digest) (*tokenstore.Token, error) {
	s.Reads.Add(1)
	return s.Store.ByDigest(ctx, d)
}

// Change counts the change and the reads in it.
func (s *Counting) Change(ctx context.Context, fn func(tokenstore.Tx) error) error {
	s.Changes.Add(1)
	return s.Store.Change(ctx, func(tx tokenstore.Tx) error { return fn(countingTx{tx, s}) })
}

type countingTx struct {
	tokenstore.Tx
	s *Counting
}

func (tx countingTx) Token(id tokenstore.ID) (*tokenstore.Token, error) {
	tx.s.Reads.Add(1)
	return tx.Tx.Token(id)
}

// Holder is somebody with a token and its secret.
type Holder struct {
	ID     tokenstore.ID
	Secret tokenstore.Secret
}

// Root makes the root token of the world, id 1.
func (w *World) Root() Holder {
	w.T.Helper()
	made, err := w.Service.Bootstrap(context.Background(), tokenstore.Secret{})
	if err != nil {
		w.T.Fatalf("bootstrap: %v", err)
	}
	return Holder{made.Token.ID, made.Secret}
}

// Make makes a token by the powers of the command line.
func (w *World) Make(spec admin.Spec) Holder {
	w.T.Helper()
	made, err := w.Service.Create(context.Background(), admin.Operator(""), spec)
	if err != nil {
		w.T.Fatalf("make %q: %v", spec.Name, err)
	}
	return Holder{made.Token.ID, made.Secret}
}

// Caller returns the holder as a verb's caller, as a gate would find it now.
func (w *World) Caller(h Holder) admin.Caller {
	t := w.Token(h.ID)
	digest, _ := (*tokenstore.Peppers)(nil).Digest(h.Secret.Reveal())
	c := admin.Caller{Token: t, Presented: h.Secret, Remote: Client, API: "native", RequestID: "req-1"}
	for i := range t.Secrets {
		if t.Secrets[i].Digest.Equal(digest) {
			c.Secret = &t.Secrets[i]
		}
	}
	return c
}

// Client is the address that calls come from.
var Client = netip.MustParseAddr("192.0.2.1")

// Token returns the token as the store has it.
func (w *World) Token(id tokenstore.ID) *tokenstore.Token {
	t, err := w.Store.Store.ByID(context.Background(), id)
	if err != nil {
		w.T.Fatalf("token %d: %v", id, err)
	}
	return t
}

// outbox is what test stores offer beyond the contract.
type outbox interface {
	Pending(limit int) ([]storetest.Event, error)
}

// Events returns the audit events since it was last called.
func (w *World) Events() []audit.Event {
	w.T.Helper()
	store, ok := w.Store.Store.(outbox)
	if !ok {
		w.T.Fatal("this store's outbox cannot be read")
	}
	pending, err := store.Pending(tokenstore.MaxOutbox)
	if err != nil {
		w.T.Fatal(err)
	}
	var events []audit.Event
	for _, p := range pending[w.seen:] {
		e, err := audit.Decode(p.Payload)
		if err != nil {
			w.T.Fatal(err)
		}
		events = append(events, e)
	}
	w.seen = len(pending)
	return events
}

// Cast are callers of every kind. They belong to account 1 and owner 1 and may
// manage tokens, unless their line says otherwise.
type Cast struct {
	Root     Holder // sees every account
	Admin    Holder // unrestricted
	Peer     Holder // as Admin: the one that others are aimed at
	Reader   Holder // may list and get only
	Plain    Holder // no scope of token management
	Weaker   Holder // lacks the scope cards, which Peer has
	Brief    Holder // ends in an hour
	Limited  Holder // one request a second
	Sourced  Holder // from 192.0.2.0/24 only
	Manager  Holder // restricted, with a write grant on its account
	Viewer   Holder // restricted, with a read grant on its account
	Boxed    Holder // restricted to inbox 5, no grant on the account
	Inbox    Holder // like Boxed, without any scope of management
	Other    Holder // owner 2
	Foreign  Holder // account 2
	Disabled Holder
	Expired  Holder
	Ended    Holder // revoked
	Replaced Holder // reset a moment ago, in its grace period
	Rotated  Holder // the old secret of a token that is being rotated
}

// Names returns the cast by name, for tables and transcripts.
func (c *Cast) Names() map[string]Holder {
	return map[string]Holder{
		"root": c.Root, "admin": c.Admin, "peer": c.Peer, "reader": c.Reader, "plain": c.Plain, "weaker": c.Weaker,
		"brief": c.Brief, "limited": c.Limited, "sourced": c.Sourced, "manager": c.Manager, "viewer": c.Viewer,
		"boxed": c.Boxed, "inbox": c.Inbox, "other": c.Other, "foreign": c.Foreign, "disabled": c.Disabled,
		"expired": c.Expired, "ended": c.Ended, "replaced": c.Replaced, "rotated": c.Rotated,
	}
}

// Cast makes the cast. The clock moves on by a second for each.
func (w *World) Cast() *Cast {
	w.T.Helper()
	ctx := context.Background()
	manage := []string{"accounts", "cards", "user:api-token:read", "user:api-token:write"}
	resources := func(grants ...tokenstore.Grant) *tokenstore.Resources { return &tokenstore.Resources{Grants: grants} }
	inbox := tokenstore.Grant{Type: "inbox", ID: "5", Level: tokenstore.LevelWrite}
	account := func(l tokenstore.Level) tokenstore.Grant {
		return tokenstore.Grant{Type: tokenstore.TypeAccount, ID: "1", Level: l}
	}
	add := func(name string, spec admin.Spec) Holder {
		w.Clock.Advance(time.Second)
		spec.Name = name
		if spec.Scopes == nil {
			spec.Scopes = manage
		}
		return w.Make(spec)
	}
	c := &Cast{Root: w.Root()}
	c.Admin = add("admin", admin.Spec{})
	c.Peer = add("peer", admin.Spec{})
	c.Reader = add("reader", admin.Spec{Scopes: []string{"accounts", "cards", "user:api-token:read"}})
	c.Plain = add("plain", admin.Spec{Scopes: []string{"accounts", "cards", "*"}})
	c.Weaker = add("weaker", admin.Spec{Scopes: []string{"accounts", "user:api-token:read", "user:api-token:write"}})
	c.Brief = add("brief", admin.Spec{Expiry: new(tokenstore.EndsAt(w.Clock.Now().Add(time.Hour)))})
	c.Limited = add("limited", admin.Spec{Limits: &tokenstore.Limits{Rate: 1}})
	c.Sourced = add("sourced", admin.Spec{Sources: &tokenstore.Sources{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}})
	c.Manager = add("manager", admin.Spec{Resources: resources(account(tokenstore.LevelWrite))})
	c.Viewer = add("viewer", admin.Spec{Resources: resources(account(tokenstore.LevelRead))})
	c.Boxed = add("boxed", admin.Spec{Resources: resources(inbox)})
	c.Inbox = add("inbox", admin.Spec{Resources: resources(inbox), Scopes: []string{"accounts"}})
	c.Other = add("other", admin.Spec{Owner: new(uint64(2))})
	c.Foreign = add("foreign", admin.Spec{Account: new(uint64(2))})
	c.Disabled = add("disabled", admin.Spec{})
	c.Expired = add("expired", admin.Spec{Expiry: new(tokenstore.EndsAt(w.Clock.Now().Add(2 * time.Second)))})
	c.Ended = add("ended", admin.Spec{})
	c.Replaced = add("replaced", admin.Spec{})
	c.Rotated = add("rotated", admin.Spec{})
	operator := admin.Operator("")
	_, err1 := w.Service.Disable(ctx, operator, admin.Target{ID: c.Disabled.ID})
	_, err2 := w.Service.Revoke(ctx, operator, admin.Target{ID: c.Ended.ID}, false)
	_, err3 := w.Service.Reset(ctx, operator, admin.Target{ID: c.Replaced.ID}, admin.ResetSpec{})
	_, err4 := w.Service.Rotate(ctx, operator, admin.Target{ID: c.Rotated.ID}, admin.RotateSpec{})
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		w.T.Fatal(err)
	}
	w.Clock.Advance(time.Minute)
	return c
}

// Gate returns a gate over the world's store that judges as the listener's does
// in what matters here.
func (w *World) Gate() admin.Gate { return gate{w} }

type gate struct{ w *World }

// Authenticate implements admin.Gate.
func (g gate) Authenticate(r *http.Request) (admin.Caller, *admin.Error) {
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if other := r.Header.Get("Api-Token"); other != "" {
		if ok && other != text {
			return admin.Caller{}, &admin.Error{Kind: admin.KindAmbiguous, Detail: "The request bears more than one credential: send exactly one."}
		}
		text, ok = other, true
	}
	if !ok {
		return admin.Caller{}, &admin.Error{Kind: admin.KindMissingToken, Detail: "An API token is required."}
	}
	bad := &admin.Error{Kind: admin.KindInvalidToken, Detail: "The API token is not valid."}
	digest, _ := (*tokenstore.Peppers)(nil).Digest(text)
	t, err := g.w.Store.Store.ByDigest(r.Context(), digest)
	if errors.Is(err, tokenstore.ErrNotFound) {
		return admin.Caller{}, bad
	}
	if err != nil {
		return admin.Caller{}, &admin.Error{Kind: admin.KindUnavailable, Detail: "Tokens cannot be checked just now.", RetryAfter: 5 * time.Second, Cause: err}
	}
	now := g.w.Clock.Now()
	if t.Status(now) != tokenstore.StatusActive {
		return admin.Caller{}, bad
	}
	remote := Client
	if text := r.Header.Get("X-Test-From"); text != "" {
		remote = netip.MustParseAddr(text)
	}
	if !t.Sources.Permit(remote) {
		return admin.Caller{}, &admin.Error{Kind: admin.KindSource, Detail: "The token may not be used from this address."}
	}
	for i := range t.Secrets {
		if s := &t.Secrets[i]; s.Digest.Equal(digest) && !s.Ends.Ended(now) {
			return admin.Caller{Token: t, Secret: s, Presented: tokenstore.SecretFrom(text), Remote: remote, RequestID: "req-1"}, nil
		}
	}
	return admin.Caller{}, bad
}

// Face is what every wire contract offers.
type Face interface {
	Register(r *mux.Router)
}

// Handler returns the faces behind one router, as a listener has them.
func Handler(faces ...Face) http.Handler {
	r := admin.NewRouter()
	for _, f := range faces {
		f.Register(r)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("X-Request-Id", "req-1")
		r.ServeHTTP(w, req)
	})
}

// String names a holder in failures, never its secret.
func (h Holder) String() string { return fmt.Sprintf("token %d", h.ID) }
