package admin_test

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/audit"
	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// verb is a call of the service, aimed at one token where it takes a target.
type verb struct {
	name string
	call func(s *admin.Service, c admin.Caller, id tokenstore.ID) error
}

func at(id tokenstore.ID) admin.Target { return admin.Target{ID: id} }

func drop[T any](_ T, err error) error { return err }

var everything = admin.Spec{
	Name: "everything", Account: new(uint64(1)), Owner: new(uint64(1)),
	Scopes:    []string{"accounts", "cards", "user:api-token:read", "user:api-token:write"},
	Resources: &tokenstore.Resources{All: true}, Sources: &tokenstore.Sources{Any: true},
	Expiry: new(tokenstore.Never()), Limits: &tokenstore.Limits{},
}

var ctx = context.Background()

var verbs = []verb{
	{"get", func(s *admin.Service, c admin.Caller, id tokenstore.ID) error { return drop(s.Get(ctx, c, at(id))) }},
	{"list", func(s *admin.Service, c admin.Caller, _ tokenstore.ID) error {
		account, _ := s.Home(c)
		tokens, err := s.List(ctx, c, admin.ListQuery{Account: account})
		if err != nil {
			return err
		}
		for _, err := range tokens {
			if err != nil {
				return err
			}
		}
		return nil
	}},
	{"count", func(s *admin.Service, c admin.Caller, _ tokenstore.ID) error {
		account, _ := s.Home(c)
		return drop(s.Count(ctx, c, admin.ListQuery{Account: account}))
	}},
	{"create", func(s *admin.Service, c admin.Caller, _ tokenstore.ID) error {
		return drop(s.Create(ctx, c, admin.Spec{Name: "heir"}))
	}},
	{"create everything", func(s *admin.Service, c admin.Caller, _ tokenstore.ID) error {
		return drop(s.Create(ctx, c, everything))
	}},
	{"reset", func(s *admin.Service, c admin.Caller, id tokenstore.ID) error {
		return drop(s.Reset(ctx, c, at(id), admin.ResetSpec{}))
	}},
	{"rotate", func(s *admin.Service, c admin.Caller, id tokenstore.ID) error {
		return drop(s.Rotate(ctx, c, at(id), admin.RotateSpec{}))
	}},
	{"finish", func(s *admin.Service, c admin.Caller, id tokenstore.ID) error {
		return drop(s.FinishRotation(ctx, c, at(id)))
	}},
	{"narrow", func(s *admin.Service, c admin.Caller, id tokenstore.ID) error {
		return drop(s.Update(ctx, c, at(id), func(f *admin.Fields) tokenstore.Faults {
			f.Name, f.Scopes = "narrowed", []string{"accounts"}
			return nil
		}))
	}},
	{"widen", func(s *admin.Service, c admin.Caller, id tokenstore.ID) error {
		return drop(s.Update(ctx, c, at(id), func(f *admin.Fields) tokenstore.Faults {
			f.Scopes = append(f.Scopes, "accounts-write")
			return nil
		}))
	}},
	{"disable", func(s *admin.Service, c admin.Caller, id tokenstore.ID) error {
		return drop(s.Disable(ctx, c, at(id)))
	}},
	{"enable", func(s *admin.Service, c admin.Caller, id tokenstore.ID) error {
		return drop(s.Enable(ctx, c, at(id)))
	}},
	{"revoke", func(s *admin.Service, c admin.Caller, id tokenstore.ID) error {
		return drop(s.Revoke(ctx, c, at(id), false))
	}},
	{"revoke branch", func(s *admin.Service, c admin.Caller, id tokenstore.ID) error {
		return drop(s.Revoke(ctx, c, at(id), true))
	}},
}

// outcome is what came of a call: "done", or the code of its kind.
func outcome(err error) string {
	if err == nil {
		return "done"
	}
	return admin.AsError(err).Kind.String()
}

// TestWhoMayManageWhat is the rule of docs/api.md ("Who may do what") as a table:
// what each caller gets from each verb, aimed at an unrestricted token of account 1 and owner 1 that
// has the scopes accounts and cards and may manage tokens.
func TestWhoMayManageWhat(t *testing.T) {
	const (
		done    = "done"
		scope   = "insufficient_scope"
		grace   = "secret_in_grace"
		wider   = "exceeds_caller"
		hidden  = "not_found"
		level   = "resource_not_granted"
		invalid = "invalid_token"
	)
	all := func(want string) map[string]string {
		m := map[string]string{}
		for _, v := range verbs {
			m[v.name] = want
		}
		return m
	}
	with := func(base map[string]string, want string, names ...string) map[string]string {
		m := maps.Clone(base)
		for _, name := range names {
			m[name] = want
		}
		return m
	}
	// Who dominates the target in all but one aspect may do all that yields no
	// secret and widens nothing.
	short := with(with(all(done), wider, "create everything", "reset", "rotate", "enable"), wider, "widen")
	unseen := with(all(hidden), done, "list", "count")
	graced := with(all(grace), done, "list", "count")
	want := map[string]map[string]string{
		"root":     all(done),
		"admin":    with(all(done), wider, "widen"),
		"reader":   with(all(scope), done, "get", "list", "count"),
		"plain":    all(scope),
		"weaker":   short,
		"brief":    with(short, done, "reset"), // the new token ends with the caller
		"limited":  short,
		"sourced":  short,
		"manager":  short,
		"viewer":   with(unseen, level, "create", "create everything"),
		"boxed":    with(unseen, level, "create", "create everything"),
		"inbox":    all(scope),
		"other":    short,
		"foreign":  with(with(unseen, done, "create"), wider, "create everything"),
		"disabled": all(invalid), "expired": all(invalid), "ended": all(invalid),
		"replaced": graced, "rotated": graced,
	}
	for name, outcomes := range want {
		t.Run(name, func(t *testing.T) {
			for _, v := range verbs {
				w := admintest.New(t)
				cast := w.Cast()
				caller := w.Caller(cast.Names()[name])
				w.Events()
				err := v.call(w.Service, caller, cast.Peer.ID)
				if got := outcome(err); got != outcomes[v.name] {
					t.Errorf("%s: got %s (%v), want %s", v.name, got, err, outcomes[v.name])
				}
				checkTold(t, w, v.name, err)
			}
		})
	}
}

// checkTold checks that the audit log knows what became of a verb that changes
// something, and nothing of one that reads.
func checkTold(t *testing.T, w *admintest.World, verb string, err error) {
	t.Helper()
	events := w.Events()
	switch verb {
	case "get", "list", "count":
		if len(events) != 0 {
			t.Errorf("%s: %d audit events for reading", verb, len(events))
		}
		return
	case "finish", "enable": // change nothing here
		if err == nil {
			return
		}
	}
	want := audit.Success
	if err != nil {
		want = audit.Refusal
	}
	if len(events) == 0 {
		t.Errorf("%s: no audit event", verb)
	}
	for _, e := range events {
		if e.Outcome != want || e.Actor.Token == 0 || e.Node != "test" || e.Request != "req-1" {
			t.Errorf("%s: audit event %+v", verb, e)
		}
	}
}

func TestZeroCallerIsRefusedByEveryVerb(t *testing.T) {
	for _, v := range verbs {
		w := admintest.New(t)
		cast := w.Cast()
		before := w.Store.Changes.Load()
		if got := outcome(v.call(w.Service, admin.Caller{}, cast.Peer.ID)); got != "missing_token" {
			t.Errorf("%s: %s", v.name, got)
		}
		if w.Store.Changes.Load() != before {
			t.Errorf("%s: reached the store", v.name)
		}
	}
}

func TestCallerFromElsewhereIsRefused(t *testing.T) {
	for _, v := range verbs {
		w := admintest.New(t)
		cast := w.Cast()
		for _, from := range []netip.Addr{{}, netip.MustParseAddr("198.51.100.1")} {
			c := w.Caller(cast.Sourced)
			c.Remote = from
			if got := outcome(v.call(w.Service, c, cast.Peer.ID)); got != "source_not_allowed" {
				t.Errorf("%s from %v: %s", v.name, from, got)
			}
		}
	}
}

func TestAnyTokenSeesAndRevokesItself(t *testing.T) {
	for _, name := range []string{"root", "admin", "reader", "plain", "viewer", "boxed", "inbox", "other", "foreign", "replaced", "rotated"} {
		w := admintest.New(t)
		h := w.Cast().Names()[name]
		self, err := w.Service.Self(ctx, w.Caller(h))
		if err != nil || self.ID != h.ID {
			t.Errorf("%s cannot see itself: %v", name, err)
		}
		if _, err := w.Service.Revoke(ctx, w.Caller(h), at(h.ID), false); err != nil {
			t.Errorf("%s cannot revoke itself: %v", name, err)
		}
		if got := outcome(drop(w.Service.Self(ctx, w.Caller(h)))); got != "invalid_token" {
			t.Errorf("%s after revoking itself: %s", name, got)
		}
	}
}

func TestSelfRevocationTakesNoBranchWithoutTheRight(t *testing.T) {
	for name, want := range map[string]string{"plain": "insufficient_scope", "viewer": "resource_not_granted", "replaced": "secret_in_grace", "admin": "done"} {
		w := admintest.New(t)
		h := w.Cast().Names()[name]
		if got := outcome(drop(w.Service.Revoke(ctx, w.Caller(h), at(h.ID), true))); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestSecretPastItsDeadlineIsRefusedByEveryVerb(t *testing.T) {
	for _, v := range verbs {
		w := admintest.New(t)
		cast := w.Cast()
		for _, h := range []admintest.Holder{cast.Rotated, cast.Replaced} {
			c := w.Caller(h) // as a gate found it a moment before the deadline
			w.Clock.Set(storetest.Epoch.Add(admintest.Grace + time.Hour))
			if got := outcome(v.call(w.Service, c, cast.Peer.ID)); got != "invalid_token" {
				t.Errorf("%s: %s", v.name, got)
			}
		}
	}
}

func TestIntrospectionShowsWhatTheCallerSees(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	names := cast.Names()
	for _, tt := range []struct{ by, of, want string }{
		{"admin", "peer", "done"}, {"reader", "peer", "done"}, {"root", "foreign", "done"}, {"reader", "ended", "done"},
		{"admin", "foreign", "not_found"}, {"admin", "root", "not_found"}, {"viewer", "peer", "not_found"},
		{"rotated", "peer", "not_found"}, {"replaced", "peer", "not_found"},
		{"plain", "plain", "done"}, {"rotated", "rotated", "done"}, {"plain", "peer", "insufficient_scope"},
	} {
		before := w.Store.Reads.Load()
		_, err := w.Service.Introspect(ctx, w.Caller(names[tt.by]), names[tt.of].Secret)
		if got := outcome(err); got != tt.want || w.Store.Reads.Load()-before != 1 {
			t.Errorf("%s introspects %s: %s, want %s, after %d reads", tt.by, tt.of, got, tt.want, w.Store.Reads.Load()-before)
		}
		before = w.Store.Reads.Load()
		_, unknown := w.Service.Introspect(ctx, w.Caller(names[tt.by]), tokenstore.NewSecret("tw"))
		if tt.want == "not_found" && (unknown.Error() != err.Error() || w.Store.Reads.Load()-before != 1) {
			t.Errorf("%s tells %s (%v) from nothing (%v)", tt.by, tt.of, err, unknown)
		}
	}
}

func TestGracePeriodSecretSeesOnlyItself(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	for _, h := range []admintest.Holder{cast.Replaced, cast.Rotated} {
		c := w.Caller(h)
		tokens, err := w.Service.List(ctx, c, admin.ListQuery{Account: 1})
		if err != nil {
			t.Fatal(err)
		}
		var ids []tokenstore.ID
		for token, err := range tokens {
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, token.ID)
		}
		if !slices.Equal(ids, []tokenstore.ID{h.ID}) {
			t.Errorf("%v lists %v", h, ids)
		}
		if n, err := w.Service.Count(ctx, c, admin.ListQuery{Account: 1}); n != 1 || err != nil {
			t.Errorf("%v counts %d, %v", h, n, err)
		}
	}
}

func TestOnlyRootTouchesRoot(t *testing.T) {
	for _, v := range verbs[5:] {
		w := admintest.New(t)
		cast := w.Cast()
		if got := outcome(v.call(w.Service, w.Caller(cast.Admin), cast.Root.ID)); got != "not_found" {
			t.Errorf("%s on root: %s", v.name, got)
		}
	}
	w := admintest.New(t)
	cast := w.Cast()
	root := admin.Spec{Name: "mine", Account: new(tokenstore.Root)}
	if got := outcome(drop(w.Service.Create(ctx, w.Caller(cast.Admin), root))); got != "exceeds_caller" {
		t.Errorf("an account's token makes root: %s", got)
	}
	made, err := w.Service.Create(ctx, w.Caller(cast.Root), root)
	if err != nil || !made.Token.IsRoot() {
		t.Errorf("root makes root: %v", err)
	}
}

// TestOnlyRootThatMayDoAllMakesABackup: a backup holds what no other verb shows.
func TestOnlyRootThatMayDoAllMakesABackup(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	write := tokenstore.ScopeTokenWrite
	account := &tokenstore.Resources{Grants: []tokenstore.Grant{{Type: tokenstore.TypeAccount, ID: "*", Level: tokenstore.LevelWrite}}}
	root := func(scopes []string, r *tokenstore.Resources) admin.Caller {
		return w.Caller(w.Make(admin.Spec{Name: "root", Account: new(tokenstore.Root), Scopes: scopes, Resources: r}))
	}
	for name, tt := range map[string]struct {
		caller admin.Caller
		want   string
	}{
		"root":                     {w.Caller(cast.Root), "done"},
		"command line":             {admin.Operator(""), "done"},
		"account":                  {w.Caller(cast.Admin), "resource_not_granted"},
		"account with all scopes":  {w.Caller(w.Make(admin.Spec{Name: "all", Scopes: []string{"*", write}})), "resource_not_granted"},
		"root that manages alone":  {root([]string{write}, nil), "resource_not_granted"},
		"root within grants":       {root([]string{"*", write}, account), "resource_not_granted"},
		"root that does not write": {root([]string{tokenstore.ScopeTokenRead}, nil), "insufficient_scope"},
	} {
		w.Events()
		err := w.Service.MayBackup(ctx, tt.caller)
		if got := outcome(err); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
		if events := w.Events(); len(events) != 1 || events[0].Verb != "backup" || (events[0].Outcome == audit.Success) != (err == nil) {
			t.Errorf("%s: the audit log tells %+v", name, events)
		}
	}
}

// TestProbingLearnsNothing compares what a caller gets for a token that it may
// not see with what it gets for one that is not there: the same error, the same
// reads, the same changes, the same audit events.
func TestProbingLearnsNothing(t *testing.T) {
	probes := []struct{ name, caller, target string }{
		{"another account", "foreign", "peer"},
		{"root", "admin", "root"},
		{"beyond the grants", "viewer", "peer"},
		{"beyond the grants, without the account", "boxed", "peer"},
		{"no scope", "plain", "peer"},
		{"grace", "replaced", "peer"},
		{"revoked", "admin", "ended"},
	}
	for _, probe := range probes {
		for _, v := range verbs {
			if v.name == "list" || v.name == "count" || v.name == "create" || v.name == "create everything" {
				continue
			}
			try := func(pick func(*admintest.Cast) tokenstore.ID) (reads, changes int64, events []audit.Event, err error) {
				w := admintest.New(t)
				cast := w.Cast()
				c := w.Caller(cast.Names()[probe.caller])
				w.Events()
				r, ch := w.Store.Reads.Load(), w.Store.Changes.Load()
				err = v.call(w.Service, c, pick(cast))
				reads, changes = w.Store.Reads.Load()-r, w.Store.Changes.Load()-ch
				return reads, changes, w.Events(), err
			}
			reads1, changes1, events1, err1 := try(func(c *admintest.Cast) tokenstore.ID { return c.Names()[probe.target].ID })
			reads2, changes2, events2, err2 := try(func(*admintest.Cast) tokenstore.ID { return 999_999 })
			if err1 == nil || err2 == nil || err1.Error() != err2.Error() || reads1 != reads2 || changes1 != changes2 || len(events1) != len(events2) {
				t.Errorf("%s, %s:\n hidden:  %v, %d reads, %d changes, %d events\n nothing: %v, %d reads, %d changes, %d events",
					probe.name, v.name, err1, reads1, changes1, len(events1), err2, reads2, changes2, len(events2))
			}
			for i := range events1 {
				if events1[i].Reason != events2[i].Reason || events1[i].Target.Account != events2[i].Target.Account {
					t.Errorf("%s, %s: the audit log tells them apart", probe.name, v.name)
				}
			}
		}
	}
}

// TestCallerRevokedMeanwhileGetsNothingDone lets a verb wait for the store
// while its caller is revoked.
func TestCallerRevokedMeanwhileGetsNothingDone(t *testing.T) {
	for _, v := range verbs[3:] {
		for _, end := range []string{"revoke", "disable", "narrow"} {
			w := admintest.New(t)
			cast := w.Cast()
			held := &holdingStore{Store: w.Store.Store, arrived: make(chan struct{}), let: make(chan struct{})}
			w.Store.Store = held
			caller := w.Caller(cast.Admin)
			w.Events()
			held.hold.Store(true)
			result := make(chan error)
			go func() { result <- v.call(w.Service, caller, cast.Peer.ID) }()
			<-held.arrived
			held.hold.Store(false)
			var err error
			switch end {
			case "revoke":
				_, err = w.Service.Revoke(ctx, admin.Operator(""), at(cast.Admin.ID), false)
			case "disable":
				_, err = w.Service.Disable(ctx, admin.Operator(""), at(cast.Admin.ID))
			case "narrow":
				_, err = w.Service.Update(ctx, admin.Operator(""), at(cast.Admin.ID), func(f *admin.Fields) tokenstore.Faults {
					f.Scopes = []string{"accounts"}
					return nil
				})
			}
			if err != nil {
				t.Fatal(err)
			}
			close(held.let)
			got := outcome(<-result)
			if want := map[string]string{"revoke": "invalid_token", "disable": "invalid_token", "narrow": "insufficient_scope"}[end]; got != want {
				t.Errorf("%s by a caller in whose way came %s: %s, want %s", v.name, end, got, want)
			}
			for _, e := range w.Events() {
				if e.Outcome == audit.Success && e.Actor.Token == uint64(cast.Admin.ID) {
					t.Errorf("%s by a caller in whose way came %s: made %s", v.name, end, e.Verb)
				}
			}
		}
	}
}

func TestManyVerbsAgainstARevokeLeaveNoTokenBehindIt(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	caller := w.Caller(cast.Admin)
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := map[tokenstore.ID]bool{}
	for range 8 {
		wg.Go(func() {
			for {
				m, err := w.Service.Create(ctx, caller, admin.Spec{Name: "child"})
				if err != nil {
					if got := outcome(err); got != "invalid_token" {
						t.Errorf("create: %s", got)
					}
					return
				}
				mu.Lock()
				made[m.Token.ID] = true
				mu.Unlock()
			}
		})
	}
	done, err := w.Service.Revoke(ctx, w.Caller(cast.Root), at(cast.Admin.ID), true)
	if err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for id := range made {
		if w.Token(id).State != tokenstore.StateRevoked || !slices.Contains(done.IDs, id) {
			t.Errorf("token %d outlived its maker", id)
		}
	}
}

// holdingStore holds changes at the door while hold is set.
type holdingStore struct {
	storetest.Store
	hold         atomic.Bool
	arrived, let chan struct{}
}

func (s *holdingStore) Pending(limit int) ([]storetest.Event, error) {
	return s.Store.(interface {
		Pending(int) ([]storetest.Event, error)
	}).Pending(limit)
}

func (s *holdingStore) Change(ctx context.Context, fn func(tokenstore.Tx) error) error {
	if s.hold.Load() {
		close(s.arrived)
		<-s.let
	}
	return s.Store.Change(ctx, fn)
}

func TestDominationHasEveryAspect(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	spec := func(change func(*admin.Spec)) admin.Spec {
		s := admin.Spec{Name: "child"}
		change(&s)
		return s
	}
	for _, tt := range []struct {
		aspect string
		caller admintest.Holder
		spec   admin.Spec
	}{
		{"account", cast.Admin, spec(func(s *admin.Spec) { s.Account = new(uint64(2)) })},
		{"owner", cast.Admin, spec(func(s *admin.Spec) { s.Owner = new(uint64(2)) })},
		{"scopes", cast.Admin, spec(func(s *admin.Spec) { s.Scopes = []string{"customers"} })},
		{"scopes", cast.Admin, spec(func(s *admin.Spec) { s.Scopes = []string{"*"} })},
		{"resources", cast.Manager, spec(func(s *admin.Spec) { s.Resources = &tokenstore.Resources{All: true} })},
		{"resources", cast.Manager, spec(func(s *admin.Spec) {
			s.Resources = &tokenstore.Resources{Grants: []tokenstore.Grant{{Type: "card", ID: "1", Level: tokenstore.LevelRead}}}
		})},
		{"resources", cast.Manager, spec(func(s *admin.Spec) {
			s.Resources = &tokenstore.Resources{Grants: []tokenstore.Grant{{Type: "account", ID: "2", Level: tokenstore.LevelRead}}}
		})},
		{"sources", cast.Sourced, spec(func(s *admin.Spec) { s.Sources = &tokenstore.Sources{Any: true} })},
		{"expires_at", cast.Brief, spec(func(s *admin.Spec) { s.Expiry = new(tokenstore.Never()) })},
		{"limits", cast.Limited, spec(func(s *admin.Spec) { s.Limits = &tokenstore.Limits{} })},
	} {
		_, err := w.Service.Create(ctx, w.Caller(tt.caller), tt.spec)
		e, ok := errors.AsType[*admin.Error](err)
		if !ok || e.Kind != admin.KindWider || len(e.Fields) != 1 || e.Fields[0].Field != tt.aspect {
			t.Errorf("%s: %v", tt.aspect, err)
		}
	}
}

// A scope that reaches into token management and beyond it is covered by no single
// scope but itself, yet by two.
func TestWhoMayDoEverythingMayGiveAnyScope(t *testing.T) {
	w := admintest.New(t)
	for _, tt := range []struct {
		has  []string
		want string
	}{
		{[]string{"*", "user:api-token:*"}, "done"},
		{[]string{"*", "user:*"}, "done"},
		{[]string{"*", "user:api-token:read", "user:api-token:write"}, "exceeds_caller"},
		{[]string{"user:api-token:*", "accounts"}, "exceeds_caller"},
	} {
		c := w.Caller(w.Make(admin.Spec{Name: "maker", Account: new(uint64(1)), Scopes: tt.has}))
		for _, scope := range []string{"user:*", "user:api-*"} {
			want := tt.want
			if slices.Contains(tt.has, scope) {
				want = "done"
			}
			if got := outcome(drop(w.Service.Create(ctx, c, admin.Spec{Name: "made", Scopes: []string{scope}}))); got != want {
				t.Errorf("%v gives %s: %s, want %s", tt.has, scope, got, want)
			}
		}
	}
}

func TestGrantOnTheAccountCoversWhatLiesInIt(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	inbox := &tokenstore.Resources{Grants: []tokenstore.Grant{{Type: "inbox", ID: "7", Level: tokenstore.LevelWrite}}}
	if _, err := w.Service.Create(ctx, w.Caller(cast.Manager), admin.Spec{Name: "inbox 7", Resources: inbox}); err != nil {
		t.Error(err)
	}
	// Read on the account covers reading only, so what writes stays unseen.
	if got := outcome(drop(w.Service.Get(ctx, w.Caller(cast.Viewer), at(cast.Boxed.ID)))); got != "not_found" {
		t.Error(got)
	}
	if _, err := w.Service.Get(ctx, w.Caller(cast.Boxed), at(cast.Inbox.ID)); err != nil {
		t.Error("a token within the caller's own grants is hidden:", err)
	}
}

func TestWhatIsLeftOutIsInherited(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	for name, h := range cast.Names() {
		parent := w.Token(h.ID)
		made, err := w.Service.Create(ctx, w.Caller(h), admin.Spec{Name: "heir of " + name})
		if err != nil {
			continue
		}
		child := made.Token
		account, owner := parent.Account, parent.Owner
		if parent.IsRoot() {
			account, owner = 1, 1 // never root by leaving out
		}
		if child.Account != account || child.Owner != owner || !slices.Equal(child.Scopes, parent.Scopes) || child.Expiry != parent.Expiry ||
			child.Resources.All != parent.Resources.All || !slices.Equal(child.Resources.Grants, parent.Resources.Grants) ||
			child.Limits.Rate != parent.Limits.Rate || child.Sources.Any != parent.Sources.Any || child.Creator.ID != parent.ID {
			t.Errorf("heir of %s: %+v", name, child)
		}
	}
}
