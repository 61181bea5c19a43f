package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tokenward/tokenstore"
)

// Harness is a store under test with what the contract leaves to each driver.
type Harness struct {
	Store   Store
	Pending func(limit int) ([]Event, error)
	Done    func(seq uint64) error

	// Reopen closes the store and returns the harness of the same store, opened
	// again; nil for a store that does not outlive its process.
	Reopen func(t *testing.T) *Harness

	// Scans says that every query reads the whole store, so that fewer are tried.
	Scans bool

	// Steps bounds the random verbs of a long run; 0: a million.
	Steps int

	// Check fails the test when anything in the store is wrong; nil: nothing can
	// be checked.
	Check func(t *testing.T)
}

// Opener makes a new, empty store that tells onChange of changes, and arranges
// for its end in t.Cleanup.
type Opener func(t *testing.T, onChange func(tokenstore.Change)) *Harness

// Run holds a driver to the contract of package tokenstore.
func Run(t *testing.T, open Opener) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, open Opener)
	}{
		{"TokenReadsBackAsItWasPut", testReadsBack},
		{"UnknownTokenIsNotFound", testNotFound},
		{"FailedChangeLeavesNothing", testFailedChange},
		{"ChangeReadsItsOwnWrites", testOwnWrites},
		{"CallerCannotReachStoredToken", testPrivateCopies},
		{"ChangeWithoutEventIsRefused", testEventRequired},
		{"BrokenPromiseIsRefused", testInvariants},
		{"SecretBelongsToOneTokenForEver", testDigests},
		{"SweptTokenIsGoneForGood", testSweep},
		{"CountsStayWithTheLineage", testLineage},
		{"IDIsNeverUsedTwice", testIDs},
		{"ChildrenAreTheLivingOnes", testChildren},
		{"QuerySelectsByPlaceAndOrder", testQueries},
		{"ListSurvivesChangesWhileItRuns", testListWhileChanging},
		{"OutboxKeepsOrderAndBound", testOutbox},
		{"AnswersAreBoundedAndEnd", testAnswers},
		{"ObserverKnowsBeforeCaller", testObserver},
		{"EndedContextStopsEverything", testContext},
		{"ConcurrentChangesBehaveAsOneAfterAnother", testConcurrent},
		{"RandomVerbsMatchModel", testRandom},
		{"ReopenedStoreHasEverything", testReopen},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open) })
	}
}

// start opens a store and checks it when the test ends.
func start(t *testing.T, open Opener) *Harness {
	t.Helper()
	return started(t, open, nil)
}

func started(t *testing.T, open Opener, onChange func(tokenstore.Change)) *Harness {
	t.Helper()
	h := open(t, onChange)
	t.Cleanup(func() { h.check(t) })
	return h
}

func (h *Harness) check(t *testing.T) {
	t.Helper()
	if h.Check != nil {
		h.Check(t)
	}
}

// event is what the suite's changes emit.
var event = []byte(`{"verb":"test"}`)

// create makes n tokens in one change, as edit leaves them.
func create(t *testing.T, s Store, n int, edit func(i int, tok *tokenstore.Token)) []tokenstore.ID {
	t.Helper()
	var ids []tokenstore.ID
	change(t, s, func(tx tokenstore.Tx) error {
		ids = nil
		for i := range n {
			id, err := tx.NewID()
			if err != nil {
				return err
			}
			tok := Sample(id, 1, 1)
			if edit != nil {
				edit(i, tok)
			}
			if err := tx.Put(tok); err != nil {
				return err
			}
			ids = append(ids, id)
		}
		tx.Emit(event)
		return nil
	})
	return ids
}

func change(t *testing.T, s Store, fn func(tx tokenstore.Tx) error) {
	t.Helper()
	if err := s.Change(t.Context(), fn); err != nil {
		t.Fatalf("Change: %v", err)
	}
}

// edit changes one stored token.
func edit(s Store, id tokenstore.ID, with func(tok *tokenstore.Token)) error {
	return s.Change(context.Background(), func(tx tokenstore.Tx) error {
		tok, err := tx.Token(id)
		if err != nil {
			return err
		}
		with(tok)
		tx.Emit(event)
		return tx.Put(tok)
	})
}

func revoke(tok *tokenstore.Token) {
	tok.State, tok.EndedAt = tokenstore.StateRevoked, Epoch.Add(time.Hour)
}

func sweep(s Store, id tokenstore.ID) error {
	return s.Change(context.Background(), func(tx tokenstore.Tx) error {
		tx.Emit(event)
		return tx.Sweep(id)
	})
}

// same compares tokens field by field.
func same(t *testing.T, got, want *tokenstore.Token) {
	t.Helper()
	if diff := cmp.Diff(plain(want), plain(got)); diff != "" {
		t.Errorf("token differs (-want +got):\n%s", diff)
	}
}

// plain returns the token's stored form, in which equal tokens are equal bytes.
func plain(tok *tokenstore.Token) string {
	b, err := tokenstore.EncodeRecord(nil, tok)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d rev %d %q %v: %x", tok.ID, tok.Revision, tok.Name, tok.State, b)
}

func byID(t *testing.T, s Store, id tokenstore.ID) *tokenstore.Token {
	t.Helper()
	tok, err := s.ByID(t.Context(), id)
	if err != nil {
		t.Fatalf("ByID(%d): %v", id, err)
	}
	return tok
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want %v", what, err, want)
	}
}

func testReadsBack(t *testing.T, open Opener) {
	h := start(t, open)
	var want *tokenstore.Token
	id := create(t, h.Store, 1, func(_ int, tok *tokenstore.Token) {
		tok.UpdatedAt = tok.UpdatedAt.Add(1234567 * time.Nanosecond)
		want = tok
	})[0]
	want = want.Clone()
	want.UpdatedAt = want.UpdatedAt.Truncate(time.Millisecond)
	if want.Revision != 1 {
		t.Errorf("Put set revision %d, want 1", want.Revision)
	}
	same(t, byID(t, h.Store, id), want)
	got, err := h.Store.ByDigest(t.Context(), SampleDigest(id))
	if err != nil {
		t.Fatalf("ByDigest: %v", err)
	}
	same(t, got, want)
	if !got.UpdatedAt.Equal(want.UpdatedAt) {
		t.Errorf("updated at %v, want %v: times keep milliseconds", got.UpdatedAt, want.UpdatedAt)
	}

	for range 3 {
		if err := edit(h.Store, id, func(tok *tokenstore.Token) { tok.Name = "renamed" }); err != nil {
			t.Fatal(err)
		}
	}
	if got := byID(t, h.Store, id); got.Revision != 4 || got.Name != "renamed" {
		t.Errorf("after three edits: revision %d, name %q", got.Revision, got.Name)
	}
}

func testNotFound(t *testing.T, open Opener) {
	h := start(t, open)
	_, err := h.Store.ByID(t.Context(), 1)
	wantErr(t, "ByID", err, tokenstore.ErrNotFound)
	_, err = h.Store.ByDigest(t.Context(), SampleDigest(1))
	wantErr(t, "ByDigest", err, tokenstore.ErrNotFound)
	wantErr(t, "Sweep", sweep(h.Store, 1), tokenstore.ErrNotFound)
	wantErr(t, "Token", edit(h.Store, 1, func(*tokenstore.Token) {}), tokenstore.ErrNotFound)
	if n, err := h.Store.Count(t.Context(), tokenstore.Query{AllAccounts: true, Revoked: true}); n != 0 || err != nil {
		t.Errorf("an empty store counts %d, %v", n, err)
	}
	for tok, err := range h.Store.List(t.Context(), tokenstore.Query{AllAccounts: true, Skip: 5}) {
		t.Errorf("an empty store lists %v, %v", tok, err)
	}
}

func testFailedChange(t *testing.T, open Opener) {
	h := start(t, open)
	old := create(t, h.Store, 1, nil)[0]
	failed := errors.New("the caller thought better of it")
	var id tokenstore.ID
	err := h.Store.Change(t.Context(), func(tx tokenstore.Tx) error {
		id, _ = tx.NewID()
		if err := tx.Put(Sample(id, 1, 1)); err != nil {
			return err
		}
		tok, err := tx.Token(old)
		if err != nil {
			return err
		}
		revoke(tok)
		if err := tx.Put(tok); err != nil {
			return err
		}
		tx.Emit(event)
		if err := tx.KeepAnswer(SampleDigest(99), []byte("x"), Epoch, Epoch.Add(time.Hour)); err != nil {
			return err
		}
		return failed
	})
	if err != failed { //nolint:errorlint // the contract says: as it is
		t.Errorf("Change returned %v, want the function's error as it is", err)
	}
	_, err = h.Store.ByID(t.Context(), id)
	wantErr(t, "ByID of the token that was not made", err, tokenstore.ErrNotFound)
	_, err = h.Store.ByDigest(t.Context(), SampleDigest(id))
	wantErr(t, "ByDigest of the token that was not made", err, tokenstore.ErrNotFound)
	if tok := byID(t, h.Store, old); tok.State != tokenstore.StateActive || tok.Revision != 1 {
		t.Errorf("token %d is %v, revision %d, after a failed change", old, tok.State, tok.Revision)
	}
	if got := pending(t, h); len(got) != 1 {
		t.Errorf("%d events, want the first change's alone", len(got))
	}
	change(t, h.Store, func(tx tokenstore.Tx) error {
		if a, err := tx.Answer(SampleDigest(99)); a != nil || err != nil {
			t.Errorf("Answer of a failed change: %q, %v", a, err)
		}
		return nil
	})
	// The secret is free: the failed change claimed nothing.
	create(t, h.Store, 1, func(_ int, tok *tokenstore.Token) { tok.Secrets[0].Digest = SampleDigest(id) })
}

func pending(t *testing.T, h *Harness) []Event {
	t.Helper()
	events, err := h.Pending(tokenstore.MaxOutbox + 1)
	if err != nil {
		t.Fatalf("Pending: %v", err)
	}
	return events
}

func testOwnWrites(t *testing.T, open Opener) {
	h := start(t, open)
	change(t, h.Store, func(tx tokenstore.Tx) error {
		id, err := tx.NewID()
		if err != nil {
			return err
		}
		if err := tx.Put(Sample(id, 1, 1)); err != nil {
			return err
		}
		tok, err := tx.Token(id)
		if err != nil {
			return fmt.Errorf("read the token just put: %w", err)
		}
		tok.Name = "second thoughts"
		if err := tx.Put(tok); err != nil {
			return fmt.Errorf("put it again: %w", err)
		}
		if tok.Revision != 1 {
			t.Errorf("two puts in one change made revision %d, want 1", tok.Revision)
		}
		if err := tx.KeepAnswer(SampleDigest(7), []byte("sealed"), Epoch, Epoch.Add(time.Minute)); err != nil {
			return err
		}
		if a, err := tx.Answer(SampleDigest(7)); string(a) != "sealed" || err != nil {
			t.Errorf("Answer just kept: %q, %v", a, err)
		}
		tx.Emit(event)
		return nil
	})
	for tok := range h.Store.List(t.Context(), tokenstore.Query{AllAccounts: true}) {
		if tok.Name != "second thoughts" {
			t.Errorf("the first put won: %q", tok.Name)
		}
	}
}

func testPrivateCopies(t *testing.T, open Opener) {
	h := start(t, open)
	var kept *tokenstore.Token
	change(t, h.Store, func(tx tokenstore.Tx) error {
		payload, sealed := []byte("as emitted"), []byte("as kept")
		id, err := tx.NewID()
		if err != nil {
			return err
		}
		kept = Sample(id, 1, 1)
		if err := tx.Put(kept); err != nil {
			return err
		}
		kept.Name, kept.Scopes[0] = "changed after Put", "*"
		read, err := tx.Token(id)
		if err != nil {
			return err
		}
		read.Scopes[1], read.Secrets[0].Last4 = "*", "hack"
		tx.Emit(payload)
		payload[0] = 'X'
		if err := tx.KeepAnswer(SampleDigest(7), sealed, Epoch, Epoch.Add(time.Minute)); err != nil {
			return err
		}
		sealed[0] = 'X'
		return nil
	})
	want := Sample(kept.ID, 1, 1)
	want.Revision = 1
	same(t, byID(t, h.Store, kept.ID), want)
	if got := pending(t, h); string(got[0].Payload) != "as emitted" {
		t.Errorf("event reads %q", got[0].Payload)
	}
	change(t, h.Store, func(tx tokenstore.Tx) error {
		if a, _ := tx.Answer(SampleDigest(7)); string(a) != "as kept" {
			t.Errorf("answer reads %q", a)
		}
		return nil
	})
}

func testEventRequired(t *testing.T, open Opener) {
	h := start(t, open)
	id := create(t, h.Store, 1, nil)[0]
	err := h.Store.Change(t.Context(), func(tx tokenstore.Tx) error {
		tok, err := tx.Token(id)
		if err != nil {
			return err
		}
		return tx.Put(tok)
	})
	wantErr(t, "Put without event", err, tokenstore.ErrInvariant)
	err = h.Store.Change(t.Context(), func(tx tokenstore.Tx) error { return tx.Sweep(id) })
	wantErr(t, "Sweep without event", err, tokenstore.ErrInvariant)
	if got := byID(t, h.Store, id); got.Revision != 1 {
		t.Errorf("revision %d after refused changes", got.Revision)
	}
}

func testInvariants(t *testing.T, open Opener) {
	h := start(t, open)
	id := create(t, h.Store, 1, nil)[0]
	dead := create(t, h.Store, 1, nil)[0]
	if err := edit(h.Store, dead, revoke); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		id   tokenstore.ID
		with func(tok *tokenstore.Token)
	}{
		{"revive", dead, func(tok *tokenstore.Token) { tok.State, tok.EndedAt = tokenstore.StateActive, time.Time{} }},
		{"revive to disabled", dead, func(tok *tokenstore.Token) { tok.State, tok.EndedAt = tokenstore.StateDisabled, time.Time{} }},
		{"revoke later", dead, func(tok *tokenstore.Token) { tok.EndedAt = tok.EndedAt.Add(time.Second) }},
		{"revoke earlier", dead, func(tok *tokenstore.Token) { tok.EndedAt = tok.EndedAt.Add(-time.Second) }},
		{"forget when it was revoked", dead, func(tok *tokenstore.Token) { tok.EndedAt = time.Time{} }},
		{"revoke without time", id, func(tok *tokenstore.Token) { tok.State = tokenstore.StateRevoked }},
		{"end without revoking", id, func(tok *tokenstore.Token) { tok.EndedAt = Epoch }},
		{"another account", id, func(tok *tokenstore.Token) { tok.Account = 2 }},
		{"root account", id, func(tok *tokenstore.Token) { tok.Account = tokenstore.Root }},
		{"another owner", id, func(tok *tokenstore.Token) { tok.Owner = 2 }},
		{"no state", id, func(tok *tokenstore.Token) { tok.State = 0 }},
		{"no secret", id, func(tok *tokenstore.Token) { tok.Secrets = nil }},
		{"broken scope", id, func(tok *tokenstore.Token) { tok.Scopes = []string{"a b"} }},
		{"id never given out", id, func(tok *tokenstore.Token) {
			tok.ID, tok.Secrets[0].Digest = 1<<40, SampleDigest(1<<40)
		}},
	} {
		before := byID(t, h.Store, test.id)
		wantErr(t, test.name, edit(h.Store, test.id, test.with), tokenstore.ErrInvariant)
		same(t, byID(t, h.Store, test.id), before)
	}
	if err := edit(h.Store, dead, func(tok *tokenstore.Token) { tok.Name = "late rename" }); err != nil {
		t.Errorf("a revoked token cannot be renamed: %v", err)
	}
	for _, state := range []tokenstore.State{tokenstore.StateDisabled, tokenstore.StateActive} {
		if err := edit(h.Store, id, func(tok *tokenstore.Token) { tok.State = state }); err != nil {
			t.Errorf("to state %v: %v", state, err)
		}
	}
}

func testDigests(t *testing.T, open Opener) {
	h := start(t, open)
	ids := create(t, h.Store, 4, nil)
	rotated, revoked, swept, other := ids[0], ids[1], ids[2], ids[3]
	second := SampleDigest(1 << 50)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(edit(h.Store, rotated, func(tok *tokenstore.Token) {
		next := tok.Secrets[0]
		next.Digest = second
		tok.Secrets[0].Ends = tokenstore.EndsAt(Epoch)
		tok.Secrets = []tokenstore.SecretRecord{next, tok.Secrets[0]}
	}))
	for _, d := range []tokenstore.Digest{second, SampleDigest(rotated)} {
		if tok, err := h.Store.ByDigest(t.Context(), d); err != nil || tok.ID != rotated {
			t.Errorf("in its grace period a token has two secrets: %v, %v", tok, err)
		}
	}
	must(edit(h.Store, rotated, func(tok *tokenstore.Token) { tok.Secrets = tok.Secrets[:1] }))
	_, err := h.Store.ByDigest(t.Context(), SampleDigest(rotated))
	wantErr(t, "secret that was given up", err, tokenstore.ErrNotFound)
	must(edit(h.Store, revoked, revoke))
	must(sweep(h.Store, swept))

	for _, taken := range []struct {
		digest tokenstore.Digest
		owner  tokenstore.ID
	}{
		{second, rotated}, {SampleDigest(rotated), rotated}, {SampleDigest(revoked), revoked}, {SampleDigest(swept), swept},
	} {
		err := edit(h.Store, other, func(tok *tokenstore.Token) { tok.Secrets[0].Digest = taken.digest })
		dup, ok := errors.AsType[*tokenstore.DuplicateError](err)
		if !ok || dup.Existing != taken.owner || dup.Wanted != other {
			t.Errorf("taking a secret of token %d: %v", taken.owner, err)
		}
		// A change that is not made has looked as well as one that is.
		var owner tokenstore.ID
		asked := h.Store.Change(t.Context(), func(tx tokenstore.Tx) (err error) {
			if owner, err = tx.DigestOwner(taken.digest); err != nil {
				return err
			}
			return errUnmade
		})
		if !errors.Is(asked, errUnmade) || owner != taken.owner {
			t.Errorf("the digest of token %d is said to be of token %d, %v", taken.owner, owner, asked)
		}
	}
	err = edit(h.Store, rotated, func(tok *tokenstore.Token) { tok.Secrets[0].Digest = SampleDigest(rotated) })
	wantErr(t, "taking back a secret given up", err, tokenstore.ErrInvariant)

	// Two tokens of one change compete as well.
	err = h.Store.Change(t.Context(), func(tx tokenstore.Tx) error {
		tx.Emit(event)
		for range 2 {
			id, err := tx.NewID()
			if err != nil {
				return err
			}
			tok := Sample(id, 1, 1)
			tok.Secrets[0].Digest = SampleDigest(1 << 51)
			if err := tx.Put(tok); err != nil {
				return err
			}
		}
		return nil
	})
	if _, ok := errors.AsType[*tokenstore.DuplicateError](err); !ok {
		t.Errorf("one secret for two new tokens: %v", err)
	}
}

// errUnmade ends a change that is not to be made.
var errUnmade = errors.New("it is not to be made")

func testSweep(t *testing.T, open Opener) {
	h := start(t, open)
	ids := create(t, h.Store, 3, nil)
	if err := sweep(h.Store, ids[2]); err != nil {
		t.Fatal(err)
	}
	_, err := h.Store.ByID(t.Context(), ids[2])
	wantErr(t, "ByID", err, tokenstore.ErrNotFound)
	_, err = h.Store.ByDigest(t.Context(), SampleDigest(ids[2]))
	wantErr(t, "ByDigest", err, tokenstore.ErrNotFound)
	wantErr(t, "sweep twice", sweep(h.Store, ids[2]), tokenstore.ErrNotFound)
	if n, _ := h.Store.Count(t.Context(), tokenstore.Query{AllAccounts: true, Revoked: true}); n != 2 {
		t.Errorf("%d tokens are counted, want 2", n)
	}
	err = h.Store.Change(t.Context(), func(tx tokenstore.Tx) error {
		tx.Emit(event)
		if err := tx.Sweep(ids[1]); err != nil {
			return err
		}
		if _, err := tx.Token(ids[1]); !errors.Is(err, tokenstore.ErrNotFound) {
			t.Errorf("Token after Sweep in one change: %v", err)
		}
		return tx.Put(Sample(ids[1], 1, 1))
	})
	wantErr(t, "put a token just swept", err, tokenstore.ErrInvariant)
	wantErr(t, "put a token swept earlier", h.Store.Change(t.Context(), func(tx tokenstore.Tx) error {
		tx.Emit(event)
		tok := Sample(ids[2], 1, 1)
		tok.Secrets[0].Digest = SampleDigest(1 << 50)
		return tx.Put(tok)
	}), tokenstore.ErrInvariant)
}

func testIDs(t *testing.T, open Opener) {
	h := start(t, open)
	seen := map[tokenstore.ID]bool{}
	take := func(tx tokenstore.Tx) error {
		id, err := tx.NewID()
		if seen[id] || id == 0 {
			t.Errorf("id %d was given out before", id)
		}
		seen[id] = true
		return err
	}
	change(t, h.Store, func(tx tokenstore.Tx) error { return errors.Join(take(tx), take(tx)) })
	_ = h.Store.Change(t.Context(), func(tx tokenstore.Tx) error { return errors.Join(take(tx), ErrFault) })
	change(t, h.Store, take)
	for _, id := range create(t, h.Store, 3, nil) {
		if seen[id] {
			t.Errorf("id %d was given out before", id)
		}
		seen[id] = true
		if err := sweep(h.Store, id); err != nil {
			t.Fatal(err)
		}
	}
	if h.Reopen != nil {
		h = h.Reopen(t)
		for _, id := range create(t, h.Store, 3, func(_ int, tok *tokenstore.Token) {
			tok.Secrets[0].Digest = SampleDigest(tok.ID + 1<<40)
		}) {
			if seen[id] {
				t.Errorf("id %d was given out again after reopening", id)
			}
		}
	}
}

func testChildren(t *testing.T, open Opener) {
	h := start(t, open)
	parent := create(t, h.Store, 1, nil)[0]
	made := create(t, h.Store, 6, func(i int, tok *tokenstore.Token) {
		if i != 2 {
			tok.Creator = tokenstore.Creator{ID: parent, Name: "parent"}
		}
	})
	if err := edit(h.Store, made[0], revoke); err != nil {
		t.Fatal(err)
	}
	if err := sweep(h.Store, made[1]); err != nil {
		t.Fatal(err)
	}
	want := func(tx tokenstore.Tx, want ...tokenstore.ID) {
		t.Helper()
		var got []tokenstore.ID
		for id, err := range tx.Children(parent) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, id)
		}
		if !slices.Equal(got, want) {
			t.Errorf("children are %v, want %v", got, want)
		}
	}
	change(t, h.Store, func(tx tokenstore.Tx) error {
		want(tx, made[3], made[4], made[5])
		id, err := tx.NewID()
		if err != nil {
			return err
		}
		tok := Sample(id, 1, 1)
		tok.Creator.ID = parent
		revoked, err := tx.Token(made[4])
		if err != nil {
			return err
		}
		revoke(revoked)
		tx.Emit(event)
		if err := errors.Join(tx.Put(tok), tx.Put(revoked), tx.Sweep(made[3])); err != nil {
			return err
		}
		want(tx, made[5], id)
		for range tx.Children(parent) {
			break
		}
		return nil
	})
	// Revoking while iterating is what revoking a branch does.
	change(t, h.Store, func(tx tokenstore.Tx) error {
		tx.Emit(event)
		for id, err := range tx.Children(parent) {
			if err != nil {
				return err
			}
			tok, err := tx.Token(id)
			if err != nil {
				return err
			}
			revoke(tok)
			if err := tx.Put(tok); err != nil {
				return err
			}
		}
		want(tx)
		return nil
	})
}

func testOutbox(t *testing.T, open Opener) {
	h := start(t, open)
	for i := range 5 {
		change(t, h.Store, func(tx tokenstore.Tx) error {
			tx.Emit(fmt.Appendf(nil, "%d a", i))
			tx.Emit(fmt.Appendf(nil, "%d b", i))
			return nil
		})
	}
	events := pending(t, h)
	for i, e := range events {
		if want := fmt.Sprintf("%d %c", i/2, "ab"[i%2]); string(e.Payload) != want {
			t.Errorf("event %d reads %q, want %q", i, e.Payload, want)
		}
		if i > 0 && e.Seq <= events[i-1].Seq {
			t.Errorf("event %d has number %d after %d", i, e.Seq, events[i-1].Seq)
		}
	}
	if len(events) != 10 {
		t.Fatalf("%d events wait, want 10", len(events))
	}
	if few, err := h.Pending(3); len(few) != 3 || err != nil || few[0].Seq != events[0].Seq {
		t.Errorf("Pending(3) gives %d events, %v", len(few), err)
	}
	if err := h.Done(events[3].Seq); err != nil {
		t.Fatal(err)
	}
	if rest := pending(t, h); len(rest) != 6 || rest[0].Seq != events[4].Seq {
		t.Errorf("after Done %d events wait", len(rest))
	}
	if err := h.Done(events[9].Seq); err != nil {
		t.Fatal(err)
	}

	emit := func(n int) error {
		return h.Store.Change(t.Context(), func(tx tokenstore.Tx) error {
			for range n {
				tx.Emit([]byte("full"))
			}
			return nil
		})
	}
	if err := emit(tokenstore.MaxOutbox - 1); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "two events for one place", emit(2), tokenstore.ErrOutboxFull)
	if err := emit(1); err != nil {
		t.Errorf("the last place is not to be had: %v", err)
	}
	wantErr(t, "full outbox", emit(1), tokenstore.ErrOutboxFull)
	change(t, h.Store, func(tx tokenstore.Tx) error { // reading goes on
		_, err := tx.NewID()
		return err
	})
	first := pending(t, h)[0].Seq
	if first <= events[9].Seq {
		t.Errorf("number %d was given out again", first)
	}
	if err := h.Done(first); err != nil {
		t.Fatal(err)
	}
	if err := emit(1); err != nil {
		t.Errorf("one place was made, and cannot be taken: %v", err)
	}
}

func testAnswers(t *testing.T, open Opener) {
	h := start(t, open)
	minute := func(n int) time.Time { return Epoch.Add(time.Duration(n) * time.Minute) }
	keep := func(now time.Time, key tokenstore.ID, text string, until time.Time) {
		t.Helper()
		change(t, h.Store, func(tx tokenstore.Tx) error {
			return tx.KeepAnswer(SampleDigest(key), []byte(text), now, until)
		})
	}
	want := func(key tokenstore.ID, text string) {
		t.Helper()
		change(t, h.Store, func(tx tokenstore.Tx) error {
			a, err := tx.Answer(SampleDigest(key))
			if string(a) != text {
				t.Errorf("answer %d reads %q, want %q", key, a, text)
			}
			return err
		})
	}
	keep(minute(0), 1, "one", minute(10))
	keep(minute(5), 2, "two", minute(15))
	keep(minute(5), 1, "one again", minute(15))
	want(1, "one again")
	want(3, "")
	keep(minute(15), 3, "three", minute(25))
	want(1, "")
	want(2, "")
	want(3, "three")
	keep(minute(16), 4, "late", minute(16))
	want(4, "")

	change(t, h.Store, func(tx tokenstore.Tx) error {
		for i := range tokenstore.MaxAnswers {
			until := minute(30).Add(time.Duration(i) * time.Millisecond)
			if err := tx.KeepAnswer(SampleDigest(tokenstore.ID(100+i)), []byte("many"), minute(20), until); err != nil { //nolint:gosec // small
				return err
			}
		}
		return nil
	})
	want(3, "") // the oldest went
	want(100, "many")
	want(100+tokenstore.MaxAnswers-1, "many")
	keep(minute(20), 5, "one more", minute(40))
	want(100, "")
	want(101, "many")
	want(5, "one more")
}

func testObserver(t *testing.T, open Opener) {
	var mu sync.Mutex
	var seen []tokenstore.Change
	h := started(t, open, func(c tokenstore.Change) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, c)
	})
	want := func(what string, pairs ...[2]string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		name := func(tok *tokenstore.Token) string {
			if tok == nil {
				return ""
			}
			return tok.Name
		}
		var got [][2]string
		for _, c := range seen {
			got = append(got, [2]string{name(c.Before), name(c.After)})
		}
		if diff := cmp.Diff(pairs, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: observer saw (-want +got):\n%s", what, diff)
		}
		seen = nil
	}
	ids := create(t, h.Store, 2, func(i int, tok *tokenstore.Token) { tok.Name = string(rune('a' + i)) })
	want("create", [2]string{"", "a"}, [2]string{"", "b"})
	if err := edit(h.Store, ids[1], func(tok *tokenstore.Token) { tok.Name = "c" }); err != nil {
		t.Fatal(err)
	}
	want("edit", [2]string{"b", "c"})
	_ = edit(h.Store, ids[0], func(tok *tokenstore.Token) { tok.Owner = 9 })
	want("refused edit")
	if err := sweep(h.Store, ids[0]); err != nil {
		t.Fatal(err)
	}
	want("sweep", [2]string{"a", ""})
}

func testContext(t *testing.T, open Opener) {
	h := start(t, open)
	id := create(t, h.Store, 1, nil)[0]
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := h.Store.Change(ctx, func(tokenstore.Tx) error {
		t.Error("a change ran although its context had ended")
		return nil
	})
	wantErr(t, "Change", err, context.Canceled)
	_, err = h.Store.ByID(ctx, id)
	wantErr(t, "ByID", err, context.Canceled)
	_, err = h.Store.ByDigest(ctx, SampleDigest(id))
	wantErr(t, "ByDigest", err, context.Canceled)
	_, err = h.Store.Count(ctx, tokenstore.Query{AllAccounts: true})
	wantErr(t, "Count", err, context.Canceled)
	for _, err := range h.Store.List(ctx, tokenstore.Query{AllAccounts: true}) {
		wantErr(t, "List", err, context.Canceled)
	}
	// A context that ends during a change does not cut it off.
	ctx, cancel = context.WithCancel(t.Context())
	err = h.Store.Change(ctx, func(tx tokenstore.Tx) error {
		cancel()
		tx.Emit([]byte("finished"))
		return nil
	})
	if err != nil {
		t.Errorf("a change under way was cut off: %v", err)
	}
	if events := pending(t, h); !bytes.Equal(events[len(events)-1].Payload, []byte("finished")) {
		t.Error("its event is missing")
	}
}

func testReopen(t *testing.T, open Opener) {
	h := start(t, open)
	if h.Reopen == nil {
		t.Skip("the store does not outlive its process")
	}
	ids := create(t, h.Store, 5, func(i int, tok *tokenstore.Token) { tok.Owner = uint64(1 + i%2) }) //nolint:gosec // small
	if err := edit(h.Store, ids[1], revoke); err != nil {
		t.Fatal(err)
	}
	if err := sweep(h.Store, ids[2]); err != nil {
		t.Fatal(err)
	}
	change(t, h.Store, func(tx tokenstore.Tx) error {
		return tx.KeepAnswer(SampleDigest(1), []byte("kept"), Epoch, Epoch.Add(time.Hour))
	})
	before := snapshot(t, h)
	h = h.Reopen(t)
	if diff := cmp.Diff(before, snapshot(t, h)); diff != "" {
		t.Errorf("the reopened store differs (-before +after):\n%s", diff)
	}
	change(t, h.Store, func(tx tokenstore.Tx) error {
		if a, err := tx.Answer(SampleDigest(1)); string(a) != "kept" {
			t.Errorf("answer reads %q, %v", a, err)
		}
		return nil
	})
	err := edit(h.Store, ids[0], func(tok *tokenstore.Token) { tok.Secrets[0].Digest = SampleDigest(ids[2]) })
	if _, ok := errors.AsType[*tokenstore.DuplicateError](err); !ok {
		t.Errorf("a swept token's secret can be taken after reopening: %v", err)
	}
	h.check(t)
}

// snapshot returns all that can be read of a store.
func snapshot(t *testing.T, h *Harness) []string {
	t.Helper()
	var all []string
	for tok, err := range h.Store.List(t.Context(), tokenstore.Query{AllAccounts: true, Revoked: true}) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, plain(tok))
	}
	for _, e := range pending(t, h) {
		all = append(all, fmt.Sprintf("%d %s", e.Seq, e.Payload))
	}
	return all
}
