package admin_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/audit"
	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// restoredWorld is a store that was restored from a backup, with one token, and
// what the token was changed to after the backup.
func restoredWorld(t *testing.T, alter func(*tokenstore.Token)) (*admin.Service, *storetest.Memory, *tokenstore.Token) {
	t.Helper()
	store := storetest.NewMemory(nil)
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	service, err := admin.New(store, store, nil, func() time.Time { return now }, admin.Options{})
	if err != nil {
		t.Fatal(err)
	}
	account := uint64(1)
	made, err := service.Create(t.Context(), admin.Operator(""), admin.Spec{Account: &account, Name: "token"})
	if err != nil {
		t.Fatal(err)
	}
	tok := made.Token
	if alter != nil {
		err := store.Change(t.Context(), func(tx tokenstore.Tx) error {
			c, err := tx.Token(tok.ID)
			if err != nil {
				return err
			}
			alter(c)
			tx.Emit([]byte("altered"))
			return tx.Put(c)
		})
		if err != nil {
			t.Fatal(err)
		}
		if tok, err = store.ByID(t.Context(), tok.ID); err != nil {
			t.Fatal(err)
		}
	}
	return service, store, tok
}

func TestRestoreTakesAwayWhatWasTakenAway(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	wide := func() *audit.Token {
		return &audit.Token{State: "active", Scopes: []string{"*", "user:api-token:*"}, Sources: audit.Sources{Any: true}, Resources: audit.Resources{All: true},
			Expires: audit.Expiry{Never: true}, Secrets: []audit.Secret{{Number: 1, Created: audit.At(time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC))}}}
	}
	with := func(change func(*audit.Token)) *audit.Token { w := wide(); change(w); return w }
	prefix := netip.MustParsePrefix
	for name, test := range map[string]struct {
		alter func(*tokenstore.Token)
		after *audit.Token
		verb  audit.Word
		check func(*tokenstore.Token) bool
	}{
		"nothing": {nil, wide(), "", nil},
		"revoked": {nil, with(func(w *audit.Token) { w.State = "revoked" }), "revoke", func(t *tokenstore.Token) bool {
			return t.State == tokenstore.StateRevoked && t.EndedAt.Equal(at)
		}},
		"swept":            {nil, nil, "revoke", func(t *tokenstore.Token) bool { return t.State == tokenstore.StateRevoked }},
		"disabled":         {nil, with(func(w *audit.Token) { w.State = "disabled" }), "disable", func(t *tokenstore.Token) bool { return t.State == tokenstore.StateDisabled }},
		"an unknown state": {nil, with(func(w *audit.Token) { w.State = "new" }), "disable", func(t *tokenstore.Token) bool { return t.State == tokenstore.StateDisabled }},
		"fewer scopes": {nil, with(func(w *audit.Token) { w.Scopes = []string{"cards:*"} }), "update", func(t *tokenstore.Token) bool {
			return t.HasScope("cards:read") && !t.HasScope("accounts:read") && !t.HasScope(tokenstore.ScopeTokenRead)
		}},
		"no management": {nil, with(func(w *audit.Token) { w.Scopes = []string{"*"} }), "update", func(t *tokenstore.Token) bool {
			return t.HasScope("cards:read") && !t.HasScope(tokenstore.ScopeTokenRead)
		}},
		"other scopes": {func(t *tokenstore.Token) { t.Scopes = []string{"a", "b"} }, with(func(w *audit.Token) { w.Scopes = []string{"b", "c"} }), "update", func(t *tokenstore.Token) bool {
			return t.HasScope("b") && !t.HasScope("a") && !t.HasScope("c")
		}},
		"more scopes": {func(t *tokenstore.Token) { t.Scopes = []string{"a"} }, wide(), "", nil},
		"fewer sources": {nil, with(func(w *audit.Token) { w.Sources = audit.Sources{Allow: []netip.Prefix{prefix("192.0.2.0/24")}} }), "update", func(t *tokenstore.Token) bool {
			return t.Sources.Permit(netip.MustParseAddr("192.0.2.1")) && !t.Sources.Permit(netip.MustParseAddr("198.51.100.1"))
		}},
		"a source refused": {func(t *tokenstore.Token) {
			t.Sources = tokenstore.Sources{Allow: []netip.Prefix{prefix("192.0.2.0/24")}}
		}, with(func(w *audit.Token) {
			w.Sources = audit.Sources{Allow: []netip.Prefix{prefix("0.0.0.0/0")}, Deny: []netip.Prefix{prefix("192.0.2.7/32")}}
		}), "update", func(t *tokenstore.Token) bool {
			return t.Sources.Permit(netip.MustParseAddr("192.0.2.1")) && !t.Sources.Permit(netip.MustParseAddr("192.0.2.7")) && !t.Sources.Permit(netip.MustParseAddr("198.51.100.1"))
		}},
		"other networks": {func(t *tokenstore.Token) {
			t.Sources = tokenstore.Sources{Allow: []netip.Prefix{prefix("10.0.0.0/16"), prefix("192.0.2.0/24")}, Text: "as it was written"}
		}, with(func(w *audit.Token) {
			w.Sources = audit.Sources{Allow: []netip.Prefix{prefix("10.0.0.0/8"), prefix("192.0.2.0/28")}}
		}), "update", func(t *tokenstore.Token) bool {
			return t.Sources.Permit(netip.MustParseAddr("10.0.1.1")) && !t.Sources.Permit(netip.MustParseAddr("10.1.0.1")) &&
				t.Sources.Permit(netip.MustParseAddr("192.0.2.1")) && !t.Sources.Permit(netip.MustParseAddr("192.0.2.100")) && t.Sources.Text == ""
		}},
		"the same sources": {func(t *tokenstore.Token) {
			t.Sources = tokenstore.Sources{Allow: []netip.Prefix{prefix("10.0.0.0/16")}, Text: "as it was written"}
			t.State = tokenstore.StateActive
		}, with(func(w *audit.Token) {
			w.State, w.Sources = "disabled", audit.Sources{Allow: []netip.Prefix{prefix("10.0.0.0/16")}}
		}), "disable", func(t *tokenstore.Token) bool { return t.Sources.Text == "as it was written" }},
		"fewer resources": {nil, with(func(w *audit.Token) {
			w.Resources = audit.Resources{Grants: []audit.Grant{{Type: "card", ID: "7", Level: "read"}}}
		}), "update", func(t *tokenstore.Token) bool {
			return t.Resources.Allows("card", []byte("7"), tokenstore.LevelRead) && !t.Resources.Allows("card", []byte("7"), tokenstore.LevelWrite) && !t.Resources.Allows("card", []byte("8"), tokenstore.LevelRead)
		}},
		"an earlier end": {nil, with(func(w *audit.Token) { w.Expires = audit.Expiry{At: audit.At(at)} }), "update", func(t *tokenstore.Token) bool {
			return t.Expiry == tokenstore.EndsAt(at)
		}},
		"a later begin": {nil, with(func(w *audit.Token) { w.NotBefore = audit.At(at) }), "update", func(t *tokenstore.Token) bool { return t.NotBefore.Equal(at) }},
		"limits": {nil, with(func(w *audit.Token) {
			w.Limits = []audit.Limit{{Kind: "rate", Count: 30, Per: "minute", Burst: 3}, {Kind: "quota", Count: 9, Per: "day"}, {Kind: "uses", Count: 5}, {Kind: "concurrent", Count: 2}}
		}), "update", func(t *tokenstore.Token) bool {
			l := t.Limits
			return l.Rate == 0.5 && l.Burst == 3 && l.Uses == 5 && l.Concurrent == 2 && len(l.Quotas) == 1 && l.Quotas[0].Count == 9
		}},
		"a burst that was taken out": {func(t *tokenstore.Token) {
			t.Limits = tokenstore.Limits{Rate: 2, Burst: 50}
		}, with(func(w *audit.Token) { w.Limits = []audit.Limit{{Kind: "rate", Count: 2, Per: "second"}} }), "update", func(t *tokenstore.Token) bool {
			return t.Limits.Rate == 2 && t.Limits.BurstInForce() == 2
		}},
		"a lower rate with a burst beyond what the rate gave": {func(t *tokenstore.Token) {
			t.Limits = tokenstore.Limits{Rate: 5}
		}, with(func(w *audit.Token) {
			w.Limits = []audit.Limit{{Kind: "rate", Count: 1, Per: "second", Burst: 9}}
		}), "update", func(t *tokenstore.Token) bool {
			return t.Limits.Rate == 1 && t.Limits.BurstInForce() == 5
		}},
		"a lower rate": {func(t *tokenstore.Token) { t.Limits.Rate = 5 }, with(func(w *audit.Token) {
			w.Limits = []audit.Limit{{Kind: "rate", Count: 2, Per: "second"}}
		}), "update", func(t *tokenstore.Token) bool { return t.Limits.Rate == 2 && t.Limits.Burst == 0 }},
		"a burst that no program wrote": {func(t *tokenstore.Token) { t.Limits.Rate = 5 }, with(func(w *audit.Token) {
			w.Limits = []audit.Limit{{Kind: "rate", Count: 5, Per: "second", Burst: 1<<64 - 1}}
		}), "update", func(t *tokenstore.Token) bool { return t.Limits.Rate == 5 && t.Limits.Burst == 1 }},
		"fewer of each": {func(t *tokenstore.Token) {
			t.Limits = tokenstore.Limits{Uses: 9, Concurrent: 9, Quotas: []tokenstore.Quota{{Count: 9, Per: tokenstore.PerDay}, {Count: 3, Per: tokenstore.PerMonth}}}
		}, with(func(w *audit.Token) {
			w.Limits = []audit.Limit{{Kind: "quota", Count: 5, Per: "day"}, {Kind: "quota", Count: 7, Per: "month"}, {Kind: "uses", Count: 2}, {Kind: "concurrent", Count: 20}}
		}), "update", func(t *tokenstore.Token) bool {
			l := t.Limits
			return l.Rate == 0 && l.Uses == 2 && l.Concurrent == 9 && l.Quotas[0].Count == 5 && l.Quotas[1].Count == 3
		}},
		"a rate that the log rounded": {func(t *tokenstore.Token) { t.Limits.Rate = 0.0123456 }, with(func(w *audit.Token) {
			w.Limits = []audit.Limit{{Kind: "rate", Count: 32000, Per: "month"}}
		}), "", nil},
		"the secret gone": {nil, with(func(w *audit.Token) { w.Secrets[0].Created = audit.At(at) }), "update", func(t *tokenstore.Token) bool {
			return t.Secrets[0].Ends == tokenstore.EndsAt(at)
		}},
		"the secret about to end": {nil, with(func(w *audit.Token) { w.Secrets[0].Ends = audit.At(at.Add(time.Hour)) }), "update", func(t *tokenstore.Token) bool {
			return t.Secrets[0].Ends == tokenstore.EndsAt(at.Add(time.Hour))
		}},
		"revoked in the backup": {func(t *tokenstore.Token) { t.State, t.EndedAt = tokenstore.StateRevoked, at }, with(func(w *audit.Token) { w.State = "disabled" }), "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			service, store, before := restoredWorld(t, test.alter)
			var past admin.Past
			past.Add(audit.Event{Time: at, Verb: "any", Outcome: audit.Success, Target: audit.Target{Token: uint64(before.ID)}, Before: wide(), After: test.after})
			past.Add(audit.Event{Time: at, Verb: "any", Outcome: audit.Refusal, Target: audit.Target{Token: uint64(before.ID)}}) // changed nothing
			past.Add(audit.Event{Time: at, Verb: "create", Outcome: audit.Success, Target: audit.Target{Token: 99}, After: wide()})
			undone, lost, err := service.Undone(t.Context(), &past)
			if err != nil || lost != 1 {
				t.Fatalf("%d lost, %v", lost, err)
			}
			if test.verb == "" {
				if len(undone) != 0 {
					t.Errorf("%+v is taken away for nothing", undone)
				}
				return
			}
			if len(undone) != 1 || undone[0].ID != before.ID || undone[0].Verb != test.verb || undone[0].Account != 1 || undone[0].Name != "token" || !undone[0].At.Equal(at) {
				t.Fatalf("undone %+v", undone)
			}
			for range 2 { // repeating changes nothing
				if err := service.TakeAgain(context.WithoutCancel(t.Context()), undone, "test"); err != nil {
					t.Fatal(err)
				}
			}
			told := 0
			pending, err := store.Pending(tokenstore.MaxOutbox)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range pending {
				if e, err := audit.Decode(p.Payload); err == nil && e.Verb == test.verb && e.Target == (audit.Target{Token: uint64(before.ID), Account: 1, Owner: 1}) && e.Before != nil && e.After != nil {
					told++
				}
			}
			if told != 1 {
				t.Errorf("%d events tell of it", told)
			}
			after, err := store.ByID(t.Context(), before.ID)
			if err != nil || !test.check(after) {
				t.Errorf("the token is now %+v, %v", after, err)
			}
			if _, ok := before.Dominates(after); !ok {
				t.Error("the token became wider than in the backup")
			}
			if left, _, err := service.Undone(t.Context(), &past); len(left) != 0 || err != nil {
				t.Errorf("left: %+v, %v", left, err)
			}
		})
	}
}
