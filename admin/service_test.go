package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/audit"
	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

func kindOf(err error) admin.Kind { return admin.AsError(err).Kind }

func TestResetMakesASuccessorAndEndsTheOldAfterGrace(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	old := w.Token(cast.Sourced.ID)
	w.Events()
	made, err := w.Service.Reset(ctx, w.Caller(cast.Root), at(old.ID), admin.ResetSpec{})
	if err != nil {
		t.Fatal(err)
	}
	next := made.Token
	if next.ID == old.ID || next.Name != fmt.Sprintf("sourced %d", next.ID) || !slices.Equal(next.Sources.Allow, old.Sources.Allow) ||
		next.Account != old.Account || next.Owner != old.Owner || next.Creator != (tokenstore.Creator{ID: cast.Root.ID, Name: "root"}) {
		t.Errorf("successor %+v", next)
	}
	after := w.Token(old.ID)
	if after.ReplacedBy != next.ID || after.Expiry != tokenstore.EndsAt(w.Service.Now().Add(admintest.Grace)) {
		t.Errorf("old token %+v", after)
	}
	if events := w.Events(); len(events) != 2 || events[0].Verb != "reset" || events[1].Verb != "reset" || events[0].Before != nil || events[1].Before == nil {
		t.Errorf("events %+v", events)
	}
	if got := kindOf(drop(w.Service.Reset(ctx, w.Caller(cast.Root), at(old.ID), admin.ResetSpec{}))); got != admin.KindConflict {
		t.Errorf("reset twice: %s", got)
	}
	if _, err := w.Service.Get(ctx, w.Caller(admintest.Holder{ID: next.ID, Secret: made.Secret}), at(next.ID)); err != nil {
		t.Errorf("the new secret: %v", err)
	}
}

// TestResetCutsALongNameWhereItCanBeCut: between two joined emoji, before and behind.
func TestResetCutsALongNameWhereItCanBeCut(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	for _, ahead := range []int{249, 250, 251, 252} {
		name := strings.Repeat("x", ahead) + "\U0001F525\u200d\U0001F525"
		holder := w.Make(admin.Spec{Account: new(uint64(1)), Owner: new(uint64(1)), Name: name, Scopes: []string{"accounts"}})
		made, err := w.Service.Reset(ctx, w.Caller(cast.Root), at(holder.ID), admin.ResetSpec{})
		if err != nil {
			t.Errorf("%d letters ahead: %v", ahead, err)
			continue
		}
		if next := made.Token; tokenstore.CheckText(next.Name, tokenstore.MaxNameRunes) != "" || !strings.HasSuffix(next.Name, " "+next.ID.String()) {
			t.Errorf("%d letters ahead: %q", ahead, next.Name)
		}
	}
}

// TestResetsInARowAreOneLineage: whatever else is made by way of these tokens is not
// of it.
func TestResetsInARowAreOneLineage(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	first := cast.Admin
	last := first
	for n := range 3 {
		made, err := w.Service.Reset(ctx, w.Caller(last), at(last.ID), admin.ResetSpec{})
		if err != nil {
			t.Fatal(err)
		}
		last = admintest.Holder{ID: made.Token.ID, Secret: made.Secret}
		if got := w.Token(last.ID); got.Lineage != first.ID || got.MeasuredAs() != first.ID {
			t.Errorf("after %d resets the lineage is that of token %d, begun by token %d", n+1, got.Lineage, first.ID)
		}
	}
	if got := w.Token(first.ID); got.Lineage != 0 || got.MeasuredAs() != first.ID {
		t.Errorf("the first is of the lineage of token %d", got.Lineage)
	}
	if got := w.Token(childOf(t, w, last).ID); got.Lineage != 0 {
		t.Errorf("what the last made is of the lineage of token %d", got.Lineage)
	}
	if _, err := w.Service.Rotate(ctx, w.Caller(cast.Root), at(last.ID), admin.RotateSpec{}); err != nil {
		t.Fatal(err)
	}
	if got := w.Token(last.ID); got.Lineage != first.ID {
		t.Errorf("rotated, it is of the lineage of token %d", got.Lineage)
	}
}

func TestResetKeepsAnEarlierEndOfTheOldToken(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	end := w.Token(cast.Brief.ID).Expiry
	if _, err := w.Service.Reset(ctx, w.Caller(cast.Root), at(cast.Brief.ID), admin.ResetSpec{}); err != nil {
		t.Fatal(err)
	}
	if got := w.Token(cast.Brief.ID).Expiry; got != end {
		t.Errorf("the old token ends %v, was %v", got, end)
	}
}

func TestResetNeverOutlivesCallerAndTarget(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	brief := w.Caller(cast.Brief)
	beyond := tokenstore.EndsAt(w.Service.Now().Add(2 * time.Hour))
	for name, spec := range map[string]admin.ResetSpec{
		"asked":       {Expiry: &beyond},
		"asked never": {Expiry: new(tokenstore.Never())},
	} {
		if got := kindOf(drop(w.Service.Reset(ctx, brief, at(cast.Brief.ID), spec))); got != admin.KindWider {
			t.Errorf("%s: %s", name, got)
		}
	}
	made, err := w.Service.Reset(ctx, brief, at(cast.Brief.ID), admin.ResetSpec{DefaultExpiry: new(tokenstore.Never())})
	if err != nil {
		t.Fatal(err)
	}
	if made.Token.Expiry != brief.Token.Expiry {
		t.Errorf("by default it ends %v, the caller %v", made.Token.Expiry, brief.Token.Expiry)
	}
}

func TestTokensThatEndedGetNoNewSecret(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	root := w.Caller(cast.Root)
	for name, h := range map[string]admintest.Holder{"disabled": cast.Disabled, "expired": cast.Expired, "ended": cast.Ended, "replaced": cast.Replaced} {
		target := admin.Target{ID: h.ID, Revoked: true}
		if got := kindOf(drop(w.Service.Reset(ctx, root, target, admin.ResetSpec{}))); got != admin.KindConflict {
			t.Errorf("reset %s: %s", name, got)
		}
		if got := kindOf(drop(w.Service.Rotate(ctx, root, target, admin.RotateSpec{}))); got != admin.KindConflict {
			t.Errorf("rotate %s: %s", name, got)
		}
	}
}

func TestSuccessorNameFits(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	long := strings.Repeat("ä", tokenstore.MaxNameRunes)
	h := w.Make(admin.Spec{Name: long})
	made, err := w.Service.Reset(ctx, w.Caller(cast.Root), at(h.ID), admin.ResetSpec{})
	if err != nil {
		t.Fatal(err)
	}
	suffix := " " + made.Token.ID.String()
	if name := []rune(made.Token.Name); len(name) != tokenstore.MaxNameRunes || !strings.HasSuffix(made.Token.Name, "ä"+suffix) {
		t.Errorf("%d runes: %s", len(name), made.Token.Name)
	}
}

func TestRotateGivesASecondSecretAndFinishEndsTheFirst(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	root := w.Caller(cast.Root)
	made, err := w.Service.Rotate(ctx, root, at(cast.Peer.ID), admin.RotateSpec{})
	if err != nil {
		t.Fatal(err)
	}
	fresh := admintest.Holder{ID: cast.Peer.ID, Secret: made.Secret}
	if s := made.Token.Secrets; len(s) != 2 || s[0].InGrace() || s[1].Ends != tokenstore.EndsAt(w.Service.Now().Add(admintest.Grace)) {
		t.Errorf("secrets %+v", s)
	}
	if got := kindOf(drop(w.Service.Rotate(ctx, root, at(cast.Peer.ID), admin.RotateSpec{}))); got != admin.KindConflict {
		t.Errorf("rotate while rotating: %s", got)
	}
	old := w.Caller(cast.Peer)
	if got := kindOf(drop(w.Service.FinishRotation(ctx, old, at(cast.Peer.ID)))); got != admin.KindGrace {
		t.Errorf("the old secret finishes: %s", got)
	}
	if _, err := w.Service.FinishRotation(ctx, w.Caller(fresh), at(cast.Peer.ID)); err != nil {
		t.Fatal(err)
	}
	if got := len(w.Token(cast.Peer.ID).Secrets); got != 1 {
		t.Errorf("%d secrets after finishing", got)
	}
	if _, err := w.Service.Rotate(ctx, w.Caller(fresh), at(cast.Peer.ID), admin.RotateSpec{}); err != nil {
		t.Errorf("rotate again: %v", err)
	}
}

func TestRotateAfterTheDeadlineDropsTheOldSecret(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	w.Clock.Advance(admintest.Grace)
	made, err := w.Service.Rotate(ctx, w.Caller(cast.Root), at(cast.Rotated.ID), admin.RotateSpec{})
	if err != nil {
		t.Fatal(err)
	}
	if len(made.Token.Secrets) != 2 || w.Caller(cast.Rotated).Secret != nil {
		t.Error("the secret past its deadline is still there")
	}
}

func TestDeadlineOfTheOldSecretLiesAhead(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	for _, ends := range []time.Time{w.Service.Now(), w.Service.Now().Add(-time.Hour), tokenstore.MaxTime().Add(time.Hour)} {
		if got := kindOf(drop(w.Service.Rotate(ctx, w.Caller(cast.Root), at(cast.Peer.ID), admin.RotateSpec{OldEnds: ends}))); got != admin.KindInvalid {
			t.Errorf("%v: %s", ends, got)
		}
	}
}

func TestNoVerbChangesATokenThatHasMovedOn(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	root := w.Caller(cast.Root)
	rename := func(name string) func(*admin.Fields) tokenstore.Faults {
		return func(f *admin.Fields) tokenstore.Faults { f.Name = name; return nil }
	}
	revision := w.Token(cast.Peer.ID).Revision
	known := admin.Target{ID: cast.Peer.ID, Revisions: []uint64{revision}}
	after, err := w.Service.Update(ctx, root, known, rename("one"))
	if err != nil || after.Revision != revision+1 || after.Name != "one" {
		t.Fatalf("%+v, %v", after, err)
	}
	for verb, err := range map[string]error{
		"update":  drop(w.Service.Update(ctx, root, known, rename("two"))),
		"finish":  drop(w.Service.FinishRotation(ctx, root, known)),
		"disable": drop(w.Service.Disable(ctx, root, known)),
		"enable":  drop(w.Service.Enable(ctx, root, known)),
		"rotate":  drop(w.Service.Rotate(ctx, root, known, admin.RotateSpec{})),
		"reset":   drop(w.Service.Reset(ctx, root, known, admin.ResetSpec{})),
		"revoke":  drop(w.Service.Revoke(ctx, root, known, true)),
	} {
		if got := kindOf(err); got != admin.KindPrecondition {
			t.Errorf("%s of a token that has moved on: %s", verb, got)
		}
	}
	if got := kindOf(drop(w.Service.Revoke(ctx, w.Caller(cast.Foreign), known, false))); got != admin.KindNotFound {
		t.Errorf("an outdated revision of what is not seen: %s", got)
	}
	if got := w.Token(cast.Peer.ID); got.Revision != after.Revision {
		t.Errorf("something was changed: %+v", got)
	}
	w.Events()
	same, err := w.Service.Update(ctx, root, at(cast.Peer.ID), rename("one"))
	if err != nil || same.Revision != after.Revision || len(w.Events()) != 0 {
		t.Errorf("a change to nothing left a trace: %v", err)
	}
}

func TestUpdateJudgesTheResult(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	past := tokenstore.EndsAt(w.Service.Now().Add(-time.Hour))
	soon := w.Service.Now().Add(time.Minute)
	for name, tt := range map[string]struct {
		by, target admintest.Holder
		merge      func(*admin.Fields)
		want       admin.Kind
	}{
		"blank name":                  {cast.Admin, cast.Peer, func(f *admin.Fields) { f.Name = " " }, admin.KindInvalid},
		"10,000 scopes":               {cast.Admin, cast.Peer, func(f *admin.Fields) { f.Scopes = make([]string, 10_000) }, admin.KindInvalid},
		"end in the past":             {cast.Admin, cast.Peer, func(f *admin.Fields) { f.Expiry = past }, admin.KindInvalid},
		"begin after the end":         {cast.Admin, cast.Brief, func(f *admin.Fields) { f.NotBefore = soon.AddDate(1, 0, 0) }, admin.KindInvalid},
		"itself wider":                {cast.Weaker, cast.Weaker, func(f *admin.Fields) { f.Scopes = append(f.Scopes, "cards") }, admin.KindWider},
		"itself for longer":           {cast.Brief, cast.Brief, func(f *admin.Fields) { f.Expiry = tokenstore.Never() }, admin.KindWider},
		"a successor of the replaced": {cast.Root, cast.Replaced, func(f *admin.Fields) { f.Expiry = tokenstore.Never() }, admin.KindConflict},
		"no limits":                   {cast.Limited, cast.Limited, func(f *admin.Fields) { f.Limits = tokenstore.Limits{} }, admin.KindWider},
	} {
		_, err := w.Service.Update(ctx, w.Caller(tt.by), at(tt.target.ID), func(f *admin.Fields) tokenstore.Faults { tt.merge(f); return nil })
		if got := kindOf(err); err == nil || got != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBringingTheBeginForwardWidens(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	later := w.Service.Now().Add(time.Hour)
	h := w.Make(admin.Spec{Name: "later", Scopes: []string{"customers"}, NotBefore: later})
	begin := func(at time.Time) func(*admin.Fields) tokenstore.Faults {
		return func(f *admin.Fields) tokenstore.Faults { f.NotBefore = at; return nil }
	}
	if _, err := w.Service.Update(ctx, w.Caller(cast.Admin), at(h.ID), begin(later.Add(time.Hour))); err != nil {
		t.Errorf("put off: %v", err)
	}
	if got := kindOf(drop(w.Service.Update(ctx, w.Caller(cast.Admin), at(h.ID), begin(time.Time{})))); got != admin.KindWider {
		t.Errorf("brought forward: %s", got)
	}
}

func TestRevokedIsFinal(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	target := admin.Target{ID: cast.Ended.ID, Revoked: true}
	root := w.Caller(cast.Root)
	for name, err := range map[string]error{
		"enable":  drop(w.Service.Enable(ctx, root, target)),
		"disable": drop(w.Service.Disable(ctx, root, target)),
		"finish":  drop(w.Service.FinishRotation(ctx, root, target)),
		"update":  drop(w.Service.Update(ctx, root, target, func(*admin.Fields) tokenstore.Faults { return nil })),
	} {
		if kindOf(err) != admin.KindConflict {
			t.Errorf("%s: %v", name, err)
		}
	}
	done, err := w.Service.Revoke(ctx, root, target, false)
	if err != nil || len(done.IDs) != 0 {
		t.Errorf("revoke twice: %v, %v", done.IDs, err)
	}
}

// family makes a tree of tokens below a fresh token of account 1: the ids of
// depth generations of width each, by maker.
func family(t *testing.T, w *admintest.World, depth, width int) (top admintest.Holder, all []tokenstore.ID) {
	t.Helper()
	top = w.Make(admin.Spec{Name: "top"})
	all = []tokenstore.ID{top.ID}
	parents := []admintest.Holder{top}
	for range depth {
		var next []admintest.Holder
		for _, parent := range parents {
			for range width {
				made, err := w.Service.Create(ctx, w.Caller(parent), admin.Spec{Name: "child"})
				if err != nil {
					t.Fatal(err)
				}
				next = append(next, admintest.Holder{ID: made.Token.ID, Secret: made.Secret})
				all = append(all, made.Token.ID)
			}
		}
		parents = next
	}
	return top, all
}

func TestRevokeTakesTheWholeBranch(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	top, all := family(t, w, 3, 3)
	// A member that was revoked alone, earlier, hides nothing of what it made.
	if _, err := w.Service.Revoke(ctx, w.Caller(cast.Root), at(all[1]), false); err != nil {
		t.Fatal(err)
	}
	done, err := w.Service.Revoke(ctx, w.Caller(top), at(top.ID), true)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range all {
		if w.Token(id).State != tokenstore.StateRevoked {
			t.Errorf("token %d stands", id)
		}
	}
	if len(done.IDs) != len(all)-1 || done.IDs[0] != top.ID {
		t.Errorf("reported %d of %d", len(done.IDs), len(all)-1)
	}
	if w.Token(cast.Peer.ID).State != tokenstore.StateActive {
		t.Error("a token outside of the branch ended")
	}
}

func TestRevokeOfABranchThatBrokeOffIsTakenUpAgain(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	top, all := family(t, w, 2, 20)
	changes := 0
	faulty := &storetest.Faulty{Store: w.Store.Store, ChangeFate: func() storetest.Fate {
		if changes++; changes == 2 {
			return storetest.NotMade
		}
		return storetest.Made
	}}
	memory := w.Store.Store
	w.Store.Store = faulty
	target := admin.Target{ID: top.ID, Revoked: true}
	if got := kindOf(drop(w.Service.Revoke(ctx, w.Caller(cast.Root), target, true))); got != admin.KindUnavailable {
		t.Fatalf("broken off: %s", got)
	}
	w.Store.Store = memory
	if w.Token(top.ID).State != tokenstore.StateRevoked {
		t.Error("the target itself stands")
	}
	done, err := w.Service.Revoke(ctx, w.Caller(cast.Root), target, true)
	if err != nil || len(done.IDs) != len(all)-1 {
		t.Errorf("taken up: %d of %d, %v", len(done.IDs), len(all)-1, err)
	}
}

func TestBootstrapMakesRootOnce(t *testing.T) {
	w := admintest.New(t)
	if _, _, err := w.Service.NewRoot(ctx); !errors.Is(err, admin.ErrNotInitialised) {
		t.Errorf("new root on an empty store: %v", err)
	}
	root := w.Root()
	token := w.Token(root.ID)
	if root.ID != 1 || !token.IsRoot() || !token.HasScope("anything") || !token.HasScope(tokenstore.ScopeTokenWrite) {
		t.Errorf("root %+v", token)
	}
	if _, err := w.Service.Bootstrap(ctx, tokenstore.Secret{}); !errors.Is(err, admin.ErrInitialised) {
		t.Errorf("bootstrap twice: %v", err)
	}
	own, err := w.Service.Create(ctx, w.Caller(root), admin.Spec{Name: "second", Account: new(tokenstore.Root)})
	if err != nil {
		t.Fatal(err)
	}
	made, others, err := w.Service.NewRoot(ctx)
	if err != nil || !slices.Equal(others.Revoked, []tokenstore.ID{1}) || w.Token(1).State != tokenstore.StateRevoked {
		t.Errorf("new root revoked %v: %v", others.Revoked, err)
	}
	if w.Token(own.Token.ID).State != tokenstore.StateActive || !made.Token.IsRoot() || len(others.Left) != 1 || others.Left[0].ID != own.Token.ID {
		t.Errorf("a root token that root made has ended, or is not told of: %v", others.Left)
	}
}

// TestLostRootThatWasResetIsRevoked: the one that was lost is another than the one
// that the command line made, and still the same.
func TestLostRootThatWasResetIsRevoked(t *testing.T) {
	w := admintest.New(t)
	root := w.Root()
	reset := func(by admintest.Holder, id tokenstore.ID) admintest.Holder {
		t.Helper()
		made, err := w.Service.Reset(ctx, w.Caller(by), at(id), admin.ResetSpec{})
		if err != nil {
			t.Fatal(err)
		}
		w.Clock.Advance(time.Hour)
		return admintest.Holder{ID: made.Token.ID, Secret: made.Secret}
	}
	create := func(by admintest.Holder, name string) admintest.Holder {
		t.Helper()
		made, err := w.Service.Create(ctx, w.Caller(by), admin.Spec{Name: name, Account: new(tokenstore.Root)})
		if err != nil {
			t.Fatal(err)
		}
		return admintest.Holder{ID: made.Token.ID, Secret: made.Secret}
	}
	robot := create(root, "robot")
	second := reset(root, root.ID)
	third := reset(second, second.ID)
	newRobot := reset(third, robot.ID)
	want := []tokenstore.ID{root.ID, second.ID, third.ID}
	w.Clock.Advance(admintest.Grace)
	_, others, err := w.Service.NewRoot(ctx)
	if err != nil || !slices.Equal(others.Revoked, want) {
		t.Errorf("revoked %v, want %v: %v", others.Revoked, want, err)
	}
	if got := outcome(drop(w.Service.Self(ctx, w.Caller(third)))); got != "invalid_token" {
		t.Errorf("the lost root token: %s", got)
	}
	var left []tokenstore.ID
	for _, t := range others.Left {
		left = append(left, t.ID)
	}
	if !slices.Equal(left, []tokenstore.ID{newRobot.ID}) {
		t.Errorf("left %v, want the robot's that has not ended", left)
	}
	fourth, _, err := w.Service.NewRoot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	fifth := reset(admintest.Holder{ID: fourth.Token.ID, Secret: fourth.Secret}, fourth.Token.ID)
	if err := w.Store.Change(ctx, func(tx tokenstore.Tx) error { // as long after its end
		tx.Emit([]byte("swept"))
		return tx.Sweep(fourth.Token.ID)
	}); err != nil {
		t.Fatal(err)
	}
	if _, others, err = w.Service.NewRoot(ctx); err != nil || !slices.Contains(others.Revoked, fifth.ID) {
		t.Errorf("one whose first is swept: revoked %v, %v", others.Revoked, err)
	}
}

func TestBootstrapTakesTheOperatorsSecret(t *testing.T) {
	w := admintest.New(t)
	chosen := tokenstore.NewSecret("tw")
	made, err := w.Service.Bootstrap(ctx, chosen)
	if err != nil || made.Secret.Reveal() != chosen.Reveal() {
		t.Fatal(err)
	}
	if _, err := w.Service.Self(ctx, w.Caller(admintest.Holder{ID: 1, Secret: chosen})); err != nil {
		t.Error(err)
	}
}

func TestEventsTellBeforeAndAfterButNoSecret(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	secrets := map[string]string{}
	for name, h := range cast.Names() {
		secrets[name] = h.Secret.Reveal()
	}
	for _, v := range verbs {
		if err := v.call(w.Service, w.Caller(cast.Root), cast.Peer.ID); err != nil && kindOf(err) != admin.KindNotFound && kindOf(err) != admin.KindConflict {
			t.Fatalf("%s: %v", v.name, err)
		}
	}
	pending, err := w.Store.Store.(*storetest.Memory).Pending(tokenstore.MaxOutbox)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pending {
		for name, secret := range secrets {
			if bytes.Contains(p.Payload, []byte(secret)) || bytes.Contains(p.Payload, []byte(secret[len(secret)-12:])) {
				t.Errorf("event %d shows the secret of %s", p.Seq, name)
			}
		}
	}
	for _, e := range w.Events() {
		if e.Outcome == audit.Success && e.Verb == "disable" && (e.Before.State != "active" || e.After.State != "disabled") {
			t.Errorf("disable: %+v", e)
		}
	}
}

// TestEventTellsAllThatATokenAllows: a restored store is set right by what the log says.
func TestEventTellsAllThatATokenAllows(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	maker := w.Make(admin.Spec{Name: "maker", Account: new(uint64(5)), Owner: new(uint64(6)), Scopes: []string{"*", tokenstore.ScopeTokenWrite}})
	sample := storetest.Sample(1, 5, 6)
	sample.Limits.Quotas = append(sample.Limits.Quotas, tokenstore.Quota{Count: 7, Per: tokenstore.PerMonth})
	w.Events()
	made, err := w.Service.Create(ctx, w.Caller(maker), admin.Spec{
		Name: "all of it", Scopes: sample.Scopes, Resources: &sample.Resources, Sources: &sample.Sources,
		NotBefore: sample.NotBefore.Add(time.Hour), Expiry: &sample.Expiry, Limits: &sample.Limits,
	})
	if err != nil {
		t.Fatal(err)
	}
	whole := `{"state":"active","name":"all of it","account":5,"owner":6,"creator":` + maker.ID.String() + `,"scopes":["accounts","cards:*"],` +
		`"sources":{"allow":["192.0.2.0/24","2001:db8::/32"],"deny":["192.0.2.7/32"]},` +
		`"resources":{"grants":[{"type":"account","id":"5","level":"read"},{"type":"card","id":"*","level":"write"}]},` +
		`"not_before":"2026-11-21T13:00:00Z","expires":{"at":"2027-11-21T12:00:00Z"},` +
		`"limits":[{"kind":"rate","count":750,"per":"minute","burst":20},{"kind":"quota","count":1000,"per":"hour"},` +
		`{"kind":"quota","count":7,"per":"month"},{"kind":"uses","count":1000000},{"kind":"concurrent","count":8}],` +
		`"secrets":[{"number":1,"created":"2026-11-21T12:01:19Z"}]}`
	if _, err := w.Service.Rotate(ctx, w.Caller(cast.Root), at(made.Token.ID), admin.RotateSpec{OldEnds: sample.Expiry.At}); err != nil {
		t.Fatal(err)
	}
	rotated := strings.Replace(whole, `"secrets":[`, `"secrets":[{"number":2,"created":"2026-11-21T12:01:19Z"},`, 1)
	rotated = strings.Replace(rotated, `19Z"}]}`, `19Z","ends":"2027-11-21T12:00:00Z"}]}`, 1)
	events := w.Events()
	for i, want := range []struct {
		actor         admintest.Holder
		before, after string
	}{{maker, "null", whole}, {cast.Root, whole, rotated}} {
		e := events[i]
		before, err1 := json.Marshal(e.Before)
		after, err2 := json.Marshal(e.After)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if string(before) != want.before || string(after) != want.after || e.Actor.Token != uint64(want.actor.ID) ||
			e.Target != (audit.Target{Token: uint64(made.Token.ID), Account: 5, Owner: 6}) {
			t.Errorf("by %d on %+v: before\n%s, want\n%s; after\n%s, want\n%s", e.Actor.Token, e.Target, before, want.before, after, want.after)
		}
	}
}

// TestBranchIsEndedInTheNameOfWhoAsked: each of its events, not the first alone.
func TestBranchIsEndedInTheNameOfWhoAsked(t *testing.T) {
	for name, want := range map[string]string{"root": "root", "command line": "command line", "report": "report"} {
		w := admintest.New(t)
		cast := w.Cast()
		for range 2 {
			if _, err := w.Service.Create(ctx, w.Caller(cast.Admin), admin.Spec{Name: "child"}); err != nil {
				t.Fatal(err)
			}
		}
		by := w.Caller(cast.Root)
		switch name {
		case "command line":
			by = admin.Operator("")
		case "report":
			by = admin.Reporter("leaks", admintest.Client, "")
		}
		w.Events()
		if _, err := w.Service.Revoke(ctx, by, at(cast.Admin.ID), true); err != nil {
			t.Fatal(err)
		}
		events := w.Events()
		for _, e := range events {
			id := uint64(0)
			if name == "root" {
				id = uint64(cast.Root.ID)
			}
			if e.Actor.Name != want || e.Actor.Token != id || e.Actor.Address != by.Remote || string(e.Actor.Via) != by.API {
				t.Errorf("by the %s: %+v", name, e.Actor)
			}
		}
		if len(events) != 3 {
			t.Errorf("by the %s: %d events", name, len(events))
		}
	}
}

func TestRefusalsCannotFillTheOutbox(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	w.Events()
	attack := func(n int) {
		for range n {
			_, _ = w.Service.Disable(ctx, w.Caller(cast.Foreign), at(cast.Peer.ID))
		}
	}
	attack(1000)
	if n := len(w.Events()); n == 0 || n > 30 {
		t.Errorf("%d events of 1000 refusals at once", n)
	}
	w.Clock.Advance(time.Second)
	attack(1)
	events := w.Events()
	if len(events) != 1 || !strings.Contains(events[0].Reason, "970 refusals before it were not written") {
		t.Errorf("%+v", events)
	}
	w.Clock.Advance(time.Hour)
	if _, err := w.Service.Disable(ctx, w.Caller(cast.Admin), at(cast.Peer.ID)); err != nil {
		t.Error(err)
	}
}

// TestVerbsSurviveBeingRunTwice gives every verb a store that runs its function
// twice, as a store that loses a race does.
func TestVerbsSurviveBeingRunTwice(t *testing.T) {
	for _, v := range verbs {
		w := admintest.New(t)
		cast := w.Cast()
		before, err := w.Service.Count(ctx, w.Caller(cast.Root), admin.ListQuery{AllAccounts: true})
		if err != nil {
			t.Fatal(err)
		}
		w.Store.Store = &storetest.Faulty{Store: w.Store.Store, ChangeFate: func() storetest.Fate { return storetest.Twice }}
		if err := v.call(w.Service, w.Caller(cast.Root), cast.Peer.ID); err != nil {
			t.Errorf("%s: %v", v.name, err)
		}
		after, err := w.Service.Count(ctx, w.Caller(cast.Root), admin.ListQuery{AllAccounts: true})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]int{"create": 1, "create everything": 1, "reset": 1, "revoke": -1, "revoke branch": -1}[v.name]
		if after-before != want {
			t.Errorf("%s: %d tokens more, want %d", v.name, after-before, want)
		}
	}
}

func TestStoreFaultsHaveTheirKinds(t *testing.T) {
	for _, v := range verbs {
		for fate, want := range map[storetest.Fate]admin.Kind{
			storetest.NotMade:     admin.KindUnavailable,
			storetest.Lost:        admin.KindOutcomeUnknown,
			storetest.Unconfirmed: admin.KindOutcomeUnknown,
		} {
			w := admintest.New(t)
			cast := w.Cast()
			caller := w.Caller(cast.Root)
			w.Store.Store = &storetest.Faulty{
				Store: w.Store.Store, ChangeFate: func() storetest.Fate { return fate },
				BeforeRead: func(context.Context) error { return storetest.ErrFault },
			}
			if v.name == "get" || v.name == "list" || v.name == "count" {
				want = admin.KindUnavailable
			}
			err := v.call(w.Service, caller, cast.Peer.ID)
			if got := kindOf(err); err == nil || got != want {
				t.Errorf("%s, fate %d: %v", v.name, fate, err)
			}
			if e := admin.AsError(err); strings.Contains(e.Detail, "fault injected") {
				t.Errorf("%s shows its cause to the client: %s", v.name, e.Detail)
			}
		}
	}
}

func once(key, request string) *admin.Once {
	return &admin.Once{
		Key: key, Request: admin.RequestDigest("POST", "/v1/tokens", []byte(request)),
		Render: func(m admin.Made) ([]byte, error) {
			return fmt.Appendf(nil, "%d %s", m.Token.ID, m.Secret.Reveal()), nil
		},
	}
}

func TestRepeatedRequestGetsTheSameAnswer(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	create := func(h admintest.Holder, o *admin.Once) (admin.Made, error) {
		return w.Service.Create(ctx, w.Caller(h), admin.Spec{Name: "once", Once: o})
	}
	first, err := create(cast.Admin, once("k1", "a"))
	if err != nil || first.Replayed {
		t.Fatal(first.Replayed, err)
	}
	again, err := create(cast.Admin, once("k1", "a"))
	if err != nil || !again.Replayed || !bytes.Equal(again.Answer, first.Answer) || again.Token != nil || !again.Secret.IsZero() {
		t.Errorf("again: %+v, %v", again, err)
	}
	if got := kindOf(drop(create(cast.Admin, once("k1", "b")))); got != admin.KindKeyReused {
		t.Errorf("another request: %s", got)
	}
	other, err := create(cast.Peer, once("k1", "a"))
	if err != nil || other.Replayed {
		t.Errorf("another caller: %+v, %v", other, err)
	}
	if got := kindOf(drop(create(cast.Reader, once("k1", "a")))); got != admin.KindScope {
		t.Errorf("a caller without the right: %s", got)
	}
	w.Clock.Advance(admin.AnswerKept)
	late, err := create(cast.Admin, once("k1", "a"))
	if err != nil || late.Replayed {
		t.Errorf("after ten minutes: %+v, %v", late, err)
	}
	w.Clock.Advance(-5 * time.Hour) // the secret is not to be had for hours
	if back, err := create(cast.Admin, once("k1", "a")); err != nil || back.Replayed {
		t.Errorf("once the clock was set back: %+v, %v", back, err)
	}
}

func TestRepeatedRequestIsAnsweredThoughItIsNotSoundAnyMore(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	create := func() (admin.Made, error) {
		soon := tokenstore.EndsAt(storetest.Epoch.Add(5 * time.Minute))
		return w.Service.Create(ctx, w.Caller(cast.Admin), admin.Spec{Name: "brief", Expiry: &soon, Once: once("k", "")})
	}
	first, err := create()
	if err != nil {
		t.Fatal(err)
	}
	w.Clock.Advance(5 * time.Minute)
	if again, err := create(); err != nil || !bytes.Equal(again.Answer, first.Answer) {
		t.Error(err)
	}
}

func TestRefusalIsLoggedThoughTheClientHungUp(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	w.Events()
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := w.Service.Create(gone, w.Caller(cast.Reader), admin.Spec{Name: "x"}); kindOf(err) != admin.KindScope {
		t.Error(err)
	}
	if events := w.Events(); len(events) != 1 || events[0].Reason != "insufficient_scope" {
		t.Errorf("%+v", events)
	}
}

func TestRefusalsWaitWhileTheAuditLogLagsBehind(t *testing.T) {
	memory := storetest.NewMemory(nil)
	backlog := 0
	service, err := admin.New(memory, memory, nil, func() time.Time { return storetest.Epoch }, admin.Options{Backlog: func() int { return backlog }})
	if err != nil {
		t.Fatal(err)
	}
	refused := func() int {
		before, _ := memory.Pending(tokenstore.MaxOutbox)
		if _, err := service.Disable(ctx, admin.Operator(""), at(404)); kindOf(err) != admin.KindNotFound {
			t.Fatal(err)
		}
		after, _ := memory.Pending(tokenstore.MaxOutbox)
		return len(after) - len(before)
	}
	if refused() != 1 {
		t.Error("a refusal was not written")
	}
	backlog = tokenstore.MaxOutbox/2 + 1
	if refused() != 0 {
		t.Error("a refusal takes the place of a change")
	}
}

func TestAnswerLostOnTheWayCanBeAskedForAgain(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	memory := w.Store.Store
	w.Store.Store = &storetest.Faulty{Store: memory, ChangeFate: func() storetest.Fate { return storetest.Unconfirmed }}
	rotate := func() (admin.Made, error) {
		return w.Service.Rotate(ctx, w.Caller(cast.Admin), at(cast.Peer.ID), admin.RotateSpec{Once: once("k", "")})
	}
	if got := kindOf(drop(rotate())); got != admin.KindOutcomeUnknown {
		t.Fatal(got)
	}
	w.Store.Store = memory
	made, err := rotate()
	if err != nil || !made.Replayed {
		t.Errorf("%+v, %v", made, err)
	}
}

// TestWhoReplacesItselfCanAskForALostAnswer: the old secret manages no more, and
// the new one was in the answer that got lost.
func TestWhoReplacesItselfCanAskForALostAnswer(t *testing.T) {
	for name, replace := range map[string]func(*admin.Service, admin.Caller, admin.Target, *admin.Once) (admin.Made, error){
		"rotate": func(s *admin.Service, c admin.Caller, own admin.Target, o *admin.Once) (admin.Made, error) {
			return s.Rotate(ctx, c, own, admin.RotateSpec{Once: o})
		},
		"reset": func(s *admin.Service, c admin.Caller, own admin.Target, o *admin.Once) (admin.Made, error) {
			return s.Reset(ctx, c, own, admin.ResetSpec{Once: o})
		},
	} {
		w := admintest.New(t)
		cast := w.Cast()
		own, old := at(cast.Admin.ID), w.Caller(cast.Admin)
		peer, err := w.Service.Rotate(ctx, old, at(cast.Peer.ID), admin.RotateSpec{Once: once("peer", "")})
		if err != nil {
			t.Fatal(name, err)
		}
		first, err := replace(w.Service, old, own, once("k", ""))
		if err != nil {
			t.Fatal(name, err)
		}
		again, err := replace(w.Service, old, own, once("k", ""))
		if err != nil || !again.Replayed || !bytes.Equal(again.Answer, first.Answer) {
			t.Errorf("%s: again: %+v, %v", name, again, err)
		}
		for what, o := range map[string]*admin.Once{"another key": once("other", ""), "no key": nil} {
			if got := kindOf(drop(replace(w.Service, old, own, o))); got != admin.KindGrace {
				t.Errorf("%s: %s: %s", name, what, got)
			}
		}
		if got := kindOf(drop(replace(w.Service, old, own, once("k", "other")))); got != admin.KindKeyReused {
			t.Errorf("%s: another request: %s", name, got)
		}
		if got := kindOf(drop(w.Service.Rotate(ctx, old, at(cast.Peer.ID), admin.RotateSpec{Once: once("peer", "")}))); got != admin.KindGrace || len(peer.Answer) == 0 {
			t.Errorf("%s: what was made of another token: %s", name, got)
		}
		w.Clock.Advance(admin.AnswerKept)
		if got := kindOf(drop(replace(w.Service, old, own, once("k", "")))); got != admin.KindGrace {
			t.Errorf("%s: too late: %s", name, got)
		}
	}
}

// TestKeptAnswerIsNotForWhoLostTheRight: an answer with a secret is repeated to who may
// still ask for it, or would but for having replaced its own.
func TestKeptAnswerIsNotForWhoLostTheRight(t *testing.T) {
	for name, target := range map[string]func(*admintest.Cast) tokenstore.ID{
		"own":     func(c *admintest.Cast) tokenstore.ID { return c.Admin.ID },
		"another": func(c *admintest.Cast) tokenstore.ID { return c.Peer.ID },
	} {
		w := admintest.New(t)
		cast := w.Cast()
		caller, id := w.Caller(cast.Admin), at(target(cast))
		rotate := func() (admin.Made, error) {
			return w.Service.Rotate(ctx, caller, id, admin.RotateSpec{Once: once("k", "")})
		}
		if made, err := rotate(); err != nil || made.Replayed {
			t.Fatal(name, err)
		}
		_, err := w.Service.Update(ctx, admin.Operator(""), at(cast.Admin.ID), func(f *admin.Fields) tokenstore.Faults {
			f.Scopes = []string{"accounts", tokenstore.ScopeTokenRead}
			return nil
		})
		if err != nil {
			t.Fatal(name, err)
		}
		if made, err := rotate(); kindOf(err) != admin.KindScope || len(made.Answer) != 0 {
			t.Errorf("%s: %v, with an answer of %d bytes", name, err, len(made.Answer))
		}
	}
}

// TestStoreCannotOpenKeptAnswers looks into the store for what is kept of an
// answer: neither the secret nor the key is there, and another name opens
// nothing.
func TestStoreCannotOpenKeptAnswers(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	spy := &answerSpy{Store: w.Store.Store}
	w.Store.Store = spy
	made, err := w.Service.Create(ctx, w.Caller(cast.Admin), admin.Spec{Name: "once", Once: once("key-of-mine", "a")})
	if err != nil {
		t.Fatal(err)
	}
	if len(spy.sealed) == 0 || bytes.Contains(spy.sealed, made.Answer) || bytes.Contains(spy.sealed, []byte(made.Secret.Reveal())) ||
		bytes.Contains(spy.sealed, []byte("key-of-mine")) {
		t.Error("the kept answer is not sealed")
	}
}

type answerSpy struct {
	storetest.Store
	sealed []byte
}

func (s *answerSpy) Change(ctx context.Context, fn func(tokenstore.Tx) error) error {
	return s.Store.Change(ctx, func(tx tokenstore.Tx) error { return fn(spyTx{tx, s}) })
}

type spyTx struct {
	tokenstore.Tx
	s *answerSpy
}

func (tx spyTx) KeepAnswer(key tokenstore.Digest, sealed []byte, now, until time.Time) error {
	tx.s.sealed = bytes.Clone(sealed)
	return tx.Tx.KeepAnswer(key, sealed, now, until)
}

func TestListPagesAndFilters(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	ids := func(h admintest.Holder, q admin.ListQuery) []tokenstore.ID {
		t.Helper()
		tokens, err := w.Service.List(ctx, w.Caller(h), q)
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
		return ids
	}
	for name, q := range map[string]admin.ListQuery{
		"newest": {Account: 1}, "oldest": {Account: 1, OldestFirst: true}, "owner": {Account: 1, Owner: 2}, "revoked": {Account: 1, Revoked: true},
	} {
		for who, h := range map[string]admintest.Holder{"admin": cast.Admin, "boxed": cast.Boxed, "rotated": cast.Rotated} {
			all := ids(h, q)
			if n, err := w.Service.Count(ctx, w.Caller(h), q); n != len(all) || err != nil {
				t.Errorf("%s, %s: counts %d of %d, %v", who, name, n, len(all), err)
			}
			for skip := range len(all) + 1 {
				for limit := 1; limit <= 3; limit++ {
					part := q
					part.Skip, part.Limit = skip, limit
					if got, want := ids(h, part), all[min(skip, len(all)):min(skip+limit, len(all))]; !slices.Equal(got, want) {
						t.Errorf("%s, %s: skip %d, limit %d: %v, want %v", who, name, skip, limit, got, want)
					}
				}
				if skip > 0 {
					part := q
					part.After = all[skip-1]
					if got := ids(h, part); !slices.Equal(got, all[skip:]) {
						t.Errorf("%s, %s: after %d: %v, want %v", who, name, part.After, got, all[skip:])
					}
				}
			}
		}
	}
	if got := ids(cast.Boxed, admin.ListQuery{Account: 1, OldestFirst: true}); !slices.Equal(got, []tokenstore.ID{cast.Boxed.ID, cast.Inbox.ID}) {
		t.Errorf("a restricted caller lists %v", got)
	}
	for _, q := range []admin.ListQuery{{Account: 2}, {AllAccounts: true}, {Account: tokenstore.Root}, {Account: 404}} {
		if _, err := w.Service.List(ctx, w.Caller(cast.Admin), q); kindOf(err) != admin.KindAccess {
			t.Errorf("list %+v: %v", q, err)
		}
	}
}

func TestPrefixIsRecordedBeforeItsFirstSecret(t *testing.T) {
	memory := storetest.NewMemory(nil)
	var recorded []string
	fault := errors.New("disk full")
	service, err := admin.New(memory, memory, nil, func() time.Time { return storetest.Epoch }, admin.Options{
		Prefix: "acme", Prefixes: map[string]string{"fynn": "api"},
		RecordPrefix: func(_ context.Context, prefix string) error {
			recorded = append(recorded, prefix)
			return fault
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := service.Bootstrap(ctx, tokenstore.Secret{}); err == nil {
		t.Fatal("a secret was made whose prefix is not in the store")
	}
	fault = nil
	made, err := service.Bootstrap(ctx, tokenstore.Secret{})
	if err != nil || !strings.HasPrefix(made.Secret.Reveal(), "acme_") {
		t.Fatal(err)
	}
	operator := admin.Operator("")
	operator.API = "fynn"
	for range 2 {
		made, err = service.Create(ctx, operator, admin.Spec{Name: "x"})
		if err != nil || !strings.HasPrefix(made.Secret.Reveal(), "api_") {
			t.Fatal(err)
		}
	}
	if !slices.Equal(recorded, []string{"acme", "acme", "api"}) {
		t.Errorf("recorded %v", recorded)
	}
}

func TestUnusableOptionsAreRefused(t *testing.T) {
	memory := storetest.NewMemory(nil)
	for _, o := range []admin.Options{{Prefix: "A"}, {Prefixes: map[string]string{"fynn": "x"}}, {ResetGrace: -1}} {
		if _, err := admin.New(memory, memory, nil, time.Now, o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

func TestVocabularyKnowsScopesAndPatterns(t *testing.T) {
	v := admin.Vocabulary{Scopes: []string{"cards", "cards-write", "reports:daily"}, ResourceTypes: []string{"card"}}
	for scope, want := range map[string]bool{
		"cards": true, "cards-*": true, "reports:*": true, "*": true, "user:api-token:read": true, "user:api-token:*": true,
		"card": false, "customers": false, "customers-*": false, "": false, "Cards": false,
	} {
		if v.KnowsScope(scope) != want {
			t.Errorf("%q: %t", scope, !want)
		}
	}
	if !v.KnowsType("account") || !v.KnowsType("card") || v.KnowsType("inbox") {
		t.Error("types")
	}
}

func TestAnswerNamesABoundedNumberOfFaults(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	grants := make([]tokenstore.Grant, tokenstore.MaxGrants)
	_, err := w.Service.Create(ctx, w.Caller(cast.Admin), admin.Spec{Name: "x", Resources: &tokenstore.Resources{Grants: grants}})
	if e := admin.AsError(err); e.Kind != admin.KindInvalid || len(e.Fields) == 0 || len(e.Fields) > 32 {
		t.Errorf("%d faults in one answer", len(e.Fields))
	}
}

func TestRootThatNamesNobodyMeansTheDefaults(t *testing.T) {
	memory := storetest.NewMemory(nil)
	service, err := admin.New(memory, memory, nil, func() time.Time { return storetest.Epoch }, admin.Options{Account: 8, Owner: 9})
	if err != nil {
		t.Fatal(err)
	}
	operator := admin.Operator("")
	if account, owner := service.Home(operator); account != 8 || owner != 9 {
		t.Errorf("home %d/%d", account, owner)
	}
	for name, tt := range map[string]struct {
		spec           admin.Spec
		account, owner uint64
	}{
		"nothing":      {admin.Spec{}, 8, 9},
		"an account":   {admin.Spec{Account: new(uint64(3))}, 3, 9},
		"an owner":     {admin.Spec{Owner: new(uint64(4))}, 8, 4},
		"both":         {admin.Spec{Account: new(uint64(3)), Owner: new(uint64(4))}, 3, 4},
		"root, spoken": {admin.Spec{Account: new(tokenstore.Root)}, tokenstore.Root, 1},
	} {
		tt.spec.Name = name
		made, err := service.Create(ctx, operator, tt.spec)
		if err != nil || made.Token.Account != tt.account || made.Token.Owner != tt.owner {
			t.Errorf("%s: %+v, %v", name, made.Token, err)
		}
	}
}
