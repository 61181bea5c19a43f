package admin_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/audit"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/storetest"
	"tokenward/tokenstore/usage"
)

// kept is a service over a real store that remembers how tokens are used.
type kept struct {
	store   *boltstore.Store
	used    *usage.Recorder
	service *admin.Service
	clock   *admintest.Clock
}

func newKept(t *testing.T) *kept {
	t.Helper()
	k := &kept{store: admintest.Bolt(t), clock: &admintest.Clock{}}
	k.clock.Set(storetest.Epoch)
	var err error
	if k.used, err = usage.NewRecorder(k.store, usage.Pace{}); err != nil {
		t.Fatal(err)
	}
	opts := admin.Options{ResetGrace: time.Hour, Usage: k.used.Of}
	if k.service, err = admin.New(k.store, k.store, nil, k.clock.Now, opts); err != nil {
		t.Fatal(err)
	}
	k.service.SetVocabulary(admin.Vocabulary{Scopes: []string{"accounts"}})
	return k
}

func (k *kept) create(t *testing.T, expiry tokenstore.Expiry) *tokenstore.Token {
	t.Helper()
	one := uint64(1)
	made, err := k.service.Create(t.Context(), admin.Operator("test"), admin.Spec{
		Account: &one, Owner: &one, Name: "kept", Scopes: []string{"accounts"}, Expiry: &expiry})
	if err != nil {
		t.Fatal(err)
	}
	return made.Token
}

func (k *kept) get(t *testing.T, id tokenstore.ID) *tokenstore.Token {
	t.Helper()
	got, err := k.store.ByID(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (k *kept) verbs(t *testing.T) []audit.Word {
	t.Helper()
	pending, err := k.store.Pending(1000)
	if err != nil {
		t.Fatal(err)
	}
	var verbs []audit.Word
	for _, p := range pending {
		e, err := audit.Decode(p.Payload)
		if err != nil {
			t.Fatal(err)
		}
		verbs = append(verbs, e.Verb)
	}
	return verbs
}

func (k *kept) check(t *testing.T) {
	t.Helper()
	if err := k.store.Check(t.Context(), func(fault string) { t.Error(fault) }); err != nil {
		t.Error(err)
	}
}

func TestOldSecretEndsOnceItIsSilent(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	start := k.clock.Now()
	made := k.create(t, tokenstore.Never())
	target := admin.Target{ID: made.ID}
	if _, err := k.service.Rotate(t.Context(), admin.Operator("test"), target, admin.RotateSpec{OldSilence: 6 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	k.check(t)
	old := k.get(t, made.ID).Secrets[1]
	if !old.InGrace() || !old.Ends.Never || old.Silence != 6*time.Hour {
		t.Fatalf("the old secret is %+v", old)
	}
	words := usage.NewVocabulary([]usage.Route{{Pattern: "GET /a"}})
	use := func() {
		k.used.Record(words, &usage.Use{Token: made.ID, Secret: old.Digest, At: k.clock.Now(), Route: 0})
	}
	round := func(since time.Time, want int) {
		t.Helper()
		n, err := k.service.EndSilent(t.Context(), k.store.AwaitingSilence(t.Context()), since, time.Time{}, 0)
		if err != nil || n != want || len(k.get(t, made.ID).Secrets) != 2-want {
			t.Errorf("%d secrets ended instead of %d, %v; %d are left", n, want, err, len(k.get(t, made.ID).Secrets))
		}
		k.check(t)
	}
	round(start, 0)
	for range 5 { // a use each five hours keeps it, written or not
		k.clock.Advance(5 * time.Hour)
		use()
		round(start, 0)
		if err := k.used.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	k.clock.Advance(6*time.Hour - time.Millisecond)
	round(start, 0)
	k.clock.Advance(time.Millisecond)
	round(k.clock.Now().Add(-59*time.Minute), 0) // the server has not watched for long enough
	round(start, 1)
	if verbs := k.verbs(t); verbs[len(verbs)-1] != "rotate_silence" {
		t.Errorf("the audit log is told %v", verbs)
	}
	if _, err := k.service.Rotate(t.Context(), admin.Operator("test"), target, admin.RotateSpec{}); err != nil {
		t.Errorf("it cannot be rotated again: %v", err)
	}
}

// TestClockThatWasSetBackMakesNoSilenceLonger: the last use was noted by a clock that was
// a year ahead.
func TestClockThatWasSetBackMakesNoSilenceLonger(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	made := k.create(t, tokenstore.Never())
	if _, err := k.service.Rotate(t.Context(), admin.Operator("test"), admin.Target{ID: made.ID}, admin.RotateSpec{OldSilence: 6 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	words := usage.NewVocabulary([]usage.Route{{Pattern: "GET /a"}})
	k.used.Record(words, &usage.Use{Token: made.ID, Secret: k.get(t, made.ID).Secrets[1].Digest, At: k.clock.Now(), Route: 0})
	k.clock.Advance(-365 * 24 * time.Hour)
	since := k.clock.Now()
	for _, want := range []int{0, 0, 1} {
		// On another node, whose clock is ahead, it may be in use just now.
		if n, err := k.service.EndSilent(t.Context(), k.store.AwaitingSilence(t.Context()), since, time.Time{}, time.Minute); n != 0 || err != nil {
			t.Errorf("in a cluster %d secrets ended, %v", n, err)
		}
		n, err := k.service.EndSilent(t.Context(), k.store.AwaitingSilence(t.Context()), since, time.Time{}, 0)
		if err != nil || n != want {
			t.Errorf("%s after the clock was set back %d secrets ended, want %d, %v", k.clock.Now().Sub(since), n, want, err)
		}
		k.clock.Advance(3 * time.Hour)
	}
}

// TestUseThatARestoreForgotIsNotTakenForSilence: a backup that is older than the silence
// knows of no use since, though there may have been one a minute before it was restored.
func TestUseThatARestoreForgotIsNotTakenForSilence(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	made := k.create(t, tokenstore.Never())
	if _, err := k.service.Rotate(t.Context(), admin.Operator("test"), admin.Target{ID: made.ID}, admin.RotateSpec{OldSilence: 48 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	k.clock.Advance(72 * time.Hour)
	restored := k.clock.Now()
	for _, test := range []struct {
		after time.Duration
		want  int
	}{{2 * time.Hour, 0}, {45*time.Hour + 59*time.Minute, 0}, {time.Minute, 1}} {
		k.clock.Advance(test.after)
		n, err := k.service.EndSilent(t.Context(), k.store.AwaitingSilence(t.Context()), restored, restored, 0)
		if err != nil || n != test.want {
			t.Errorf("%s after the restore %d secrets ended, want %d, %v", k.clock.Now().Sub(restored), n, test.want, err)
		}
	}
}

// TestUnreadableUseKeepsNoOtherSecretAlive: of what cannot be read nobody knows whether
// it was silent, and the others are ended all the same.
func TestUnreadableUseKeepsNoOtherSecretAlive(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	damaged := k.create(t, tokenstore.Never())
	var err error
	k.service, err = admin.New(k.store, k.store, nil, k.clock.Now, admin.Options{Usage: func(t *tokenstore.Token) (usage.Record, error) {
		if t.ID == damaged.ID {
			return usage.Record{}, errors.New("damaged")
		}
		return k.used.Of(t)
	}})
	if err != nil {
		t.Fatal(err)
	}
	other := k.create(t, tokenstore.Never())
	for _, id := range []tokenstore.ID{damaged.ID, other.ID} {
		if _, err := k.service.Rotate(t.Context(), admin.Operator("test"), admin.Target{ID: id}, admin.RotateSpec{OldSilence: time.Hour}); err != nil {
			t.Fatal(err)
		}
	}
	start := k.clock.Now()
	k.clock.Advance(2 * time.Hour)
	n, err := k.service.EndSilent(t.Context(), k.store.AwaitingSilence(t.Context()), start, time.Time{}, 0)
	if n != 1 || err == nil || len(k.get(t, damaged.ID).Secrets) != 2 || len(k.get(t, other.ID).Secrets) != 1 {
		t.Errorf("%d secrets were ended, %v", n, err)
	}
}

func TestSilenceIsBoundedAndNeedsUsage(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	target := admin.Target{ID: k.create(t, tokenstore.Never()).ID}
	for _, spec := range []admin.RotateSpec{
		{OldSilence: time.Second}, {OldSilence: tokenstore.MaxSilence + time.Second}, {OldSilence: -time.Hour},
		{OldSilence: time.Hour + time.Millisecond}, {OldSilence: time.Hour, OldEnds: k.clock.Now().Add(time.Hour)},
	} {
		_, err := k.service.Rotate(t.Context(), admin.Operator("test"), target, spec)
		if e, ok := errors.AsType[*admin.Error](err); !ok || e.Kind != admin.KindInvalid {
			t.Errorf("%+v: %v", spec, err)
		}
	}
	blind, err := admin.New(k.store, k.store, nil, k.clock.Now, admin.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blind.Rotate(t.Context(), admin.Operator("test"), target, admin.RotateSpec{OldSilence: time.Hour}); err == nil {
		t.Error("a server that records no use ends secrets by silence")
	}
}

func TestSweepForgetsWhatEndedLongAgoAndNothingElse(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	operator := admin.Operator("test")
	soon := tokenstore.EndsAt(k.clock.Now().Add(time.Hour))
	expired, living, disabled := k.create(t, soon), k.create(t, tokenstore.Never()), k.create(t, tokenstore.Never())
	revoked, replaced := k.create(t, tokenstore.Never()), k.create(t, tokenstore.Never())
	if _, err := k.service.Disable(t.Context(), operator, admin.Target{ID: disabled.ID}); err != nil {
		t.Fatal(err)
	}
	k.clock.Advance(time.Hour)
	if _, err := k.service.Revoke(t.Context(), operator, admin.Target{ID: revoked.ID}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := k.service.Reset(t.Context(), operator, admin.Target{ID: replaced.ID}, admin.ResetSpec{}); err != nil {
		t.Fatal(err)
	}
	sweep := func(want ...tokenstore.ID) {
		t.Helper()
		n, err := k.service.Sweep(t.Context(), k.store.Ending(t.Context(), time.Time{}, k.clock.Now().Add(time.Hour)))
		if err != nil || n != len(want) {
			t.Errorf("%d tokens were swept, %v; want %v", n, err, want)
		}
		for _, id := range want {
			if _, err := k.store.ByID(t.Context(), id); !errors.Is(err, tokenstore.ErrNotFound) {
				t.Errorf("token %d is still there: %v", id, err)
			}
		}
		k.check(t)
	}
	k.clock.Advance(admin.KeepEnded - time.Millisecond)
	sweep()
	k.clock.Advance(time.Millisecond)
	sweep(expired.ID, revoked.ID)
	k.clock.Advance(time.Hour)
	sweep(replaced.ID)
	k.get(t, living.ID)
	k.get(t, disabled.ID)
	if n := len(slices.DeleteFunc(k.verbs(t), func(w audit.Word) bool { return w != "sweep" })); n != 3 {
		t.Errorf("the audit log is told of %d sweeps", n)
	}
	err := k.store.Change(t.Context(), func(tx tokenstore.Tx) error {
		id, err := tx.NewID()
		if err != nil {
			return err
		}
		again := expired.Clone()
		again.ID = id
		tx.Emit([]byte("again"))
		return tx.Put(again)
	})
	if d, ok := errors.AsType[*tokenstore.DuplicateError](err); !ok || d.Existing != expired.ID {
		t.Errorf("a swept secret can be used again: %v", err)
	}
}

// TestNothingOfALineageWorksOnceTheLastIsSwept has the longest grace period and the
// earliest end of the last token: what the lineage used of its limits is forgotten with
// that one.
func TestNothingOfALineageWorksOnceTheLastIsSwept(t *testing.T) {
	t.Parallel()
	store, clock := admintest.Bolt(t), &admintest.Clock{}
	clock.Set(storetest.Epoch)
	const longest = 90 * 24 * time.Hour // of tokenstore.reset_grace
	service, err := admin.New(store, store, nil, clock.Now, admin.Options{ResetGrace: longest})
	if err != nil {
		t.Fatal(err)
	}
	k := &kept{store: store, service: service, clock: clock}
	service.SetVocabulary(admin.Vocabulary{Scopes: []string{"accounts"}})
	line := []tokenstore.ID{k.create(t, tokenstore.Never()).ID}
	for i := range 3 {
		made, err := service.Reset(t.Context(), admin.Operator("test"), admin.Target{ID: line[i]}, admin.ResetSpec{})
		if err != nil {
			t.Fatal(err)
		}
		line = append(line, made.Token.ID)
	}
	last := line[3]
	if _, err := service.Revoke(t.Context(), admin.Operator("test"), admin.Target{ID: last}, false); err != nil {
		t.Fatal(err)
	}
	clock.Advance(admin.KeepEnded)
	n, err := service.Sweep(t.Context(), func(yield func(tokenstore.ID, error) bool) { yield(last, nil) })
	if err != nil || n != 1 {
		t.Fatalf("%d were swept: %v", n, err)
	}
	for _, id := range line[:3] {
		if status := k.get(t, id).Status(clock.Now()); status != tokenstore.StatusExpired {
			t.Errorf("token %d is %v", id, status)
		}
	}
}

// childOf is a token that h makes.
func childOf(t *testing.T, w *admintest.World, h admintest.Holder) admintest.Holder {
	t.Helper()
	made, err := w.Service.Create(ctx, w.Caller(h), admin.Spec{Name: "child"})
	if err != nil {
		t.Fatal(err)
	}
	return admintest.Holder{ID: made.Token.ID, Secret: made.Secret}
}

// TestSweepLeavesNoBranchBehind: a token that ended long ago still connects the
// branch above it with the one below.
func TestSweepLeavesNoBranchBehind(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	top := childOf(t, w, cast.Admin)
	middle := childOf(t, w, top)
	below := childOf(t, w, middle)
	bottom := childOf(t, w, below)
	for _, h := range []admintest.Holder{middle, below} {
		if _, err := w.Service.Revoke(ctx, w.Caller(h), at(h.ID), false); err != nil {
			t.Fatal(err)
		}
	}
	w.Clock.Advance(admin.KeepEnded)
	sweep := func(ids ...tokenstore.ID) int {
		n, err := w.Service.Sweep(ctx, func(yield func(tokenstore.ID, error) bool) {
			for _, id := range ids {
				if !yield(id, nil) {
					return
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := sweep(middle.ID, below.ID); n != 0 {
		t.Errorf("%d tokens were swept between token %d and token %d", n, top.ID, bottom.ID)
	}
	done, err := w.Service.Revoke(ctx, w.Caller(cast.Admin), at(top.ID), true)
	if err != nil || !slices.Equal(done.IDs, []tokenstore.ID{top.ID, bottom.ID}) {
		t.Errorf("revoked %v, %v", done.IDs, err)
	}
	w.Clock.Advance(admin.KeepEnded)
	for _, id := range []tokenstore.ID{bottom.ID, below.ID, middle.ID, top.ID} { // from the leaves up
		if n := sweep(top.ID, middle.ID, below.ID, bottom.ID); n != 1 {
			t.Errorf("%d tokens were swept where token %d was due", n, id)
		}
	}
}

func TestSweepWorksInBatches(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	const many = 300
	for range many {
		k.create(t, tokenstore.EndsAt(k.clock.Now().Add(time.Hour)))
	}
	k.clock.Advance(admin.KeepEnded + time.Hour)
	before := k.store.Stats().Changes
	n, err := k.service.Sweep(t.Context(), k.store.Ending(t.Context(), time.Time{}, k.clock.Now()))
	if err != nil || n != many {
		t.Errorf("%d were swept, %v", n, err)
	}
	if changes := k.store.Stats().Changes - before; changes != 3 {
		t.Errorf("it took %d changes", changes)
	}
	k.check(t)
}
