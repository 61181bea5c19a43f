package boltstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// put returns a change that makes one token and says which.
func put(id *tokenstore.ID) func(tx tokenstore.Tx) error {
	return func(tx tokenstore.Tx) error {
		made, err := tx.NewID()
		if err != nil {
			return err
		}
		*id = made
		tx.Emit([]byte("made"))
		return tx.Put(storetest.Sample(made, 1, 1))
	}
}

// together makes the changes as one batch, and returns what each is answered.
// The store's own writer waits meanwhile.
func together(s *Store, fns ...func(tx tokenstore.Tx) error) []error {
	jobs := make([]*job, len(fns))
	for i, fn := range fns {
		jobs[i] = &job{fn: func(o *overlay) error { return fn(o) }, done: make(chan error, 1)}
	}
	s.run(jobs)
	answers := make([]error, len(fns))
	for i, j := range jobs {
		answers[i] = <-j.done
	}
	return answers
}

func wantTokens(t *testing.T, s *Store, want int) {
	t.Helper()
	n, err := s.Count(t.Context(), tokenstore.Query{AllAccounts: true, Revoked: true})
	if n != want || err != nil {
		t.Errorf("the store has %d tokens, %v, want %d", n, err, want)
	}
	if st := s.Stats(); st.Active+st.Disabled+st.Revoked != uint64(want) { //nolint:gosec // small
		t.Errorf("the statistics say %+v, want %d tokens", st, want)
	}
	check(t, s)
}

func TestRefusedChangeHarmsNoNeighbour(t *testing.T) {
	s := newTestStore(t, Options{})
	var a, b, c, d tokenstore.ID
	refused := errors.New("no")
	answers := together(s,
		put(&a),
		func(tx tokenstore.Tx) error { return errors.Join(put(&b)(tx), refused) },
		func(tx tokenstore.Tx) error { _ = put(&c)(tx); panic("a fault of the program") },
		put(&d),
	)
	if answers[0] != nil || !errors.Is(answers[1], refused) || answers[3] != nil {
		t.Errorf("answers are %v", answers)
	}
	if answers[2] == nil || !strings.Contains(answers[2].Error(), "change panicked: a fault of the program") {
		t.Errorf("the panic was answered %v", answers[2])
	}
	if st := s.Stats(); st.Commits != 1 || st.Changes != 2 || st.Batches[1] != 1 {
		t.Errorf("it took %+v", st)
	}
	wantTokens(t, s, 2)
}

func TestPrefixesOfOneCommitAreAllKnown(t *testing.T) {
	s := newTestStore(t, Options{})
	record := func(prefix string) func(tokenstore.Tx) error {
		return func(tx tokenstore.Tx) error { return tx.(*overlay).addPrefix(prefix) }
	}
	if err := errors.Join(together(s, record("one"), record("two"), record("one"))...); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(s.Formats().Prefixes(), " "); got != "one two" {
		t.Errorf("the store recognises %q", got)
	}
}

func TestFailedCommitIsTriedOneByOne(t *testing.T) {
	s := newTestStore(t, Options{})
	full := errors.Join(errors.New("injected"), syscall.ENOSPC)
	commits := 0
	s.commit = func(tx *bolt.Tx) error {
		if commits++; commits == 1 || commits == 3 {
			return full
		}
		return tx.Commit()
	}
	var a, b, c tokenstore.ID
	answers := together(s, put(&a), put(&b), put(&c))
	if answers[0] != nil || !errors.Is(answers[1], syscall.ENOSPC) || answers[2] != nil {
		t.Errorf("answers are %v", answers)
	}
	if errors.Is(answers[1], tokenstore.ErrOutcomeUnknown) || !strings.Contains(answers[1].Error(), "free space on its disk, then try again") {
		t.Errorf("the change that was not made is answered %v", answers[1])
	}
	if _, err := s.ByID(t.Context(), b); !errors.Is(err, tokenstore.ErrNotFound) {
		t.Errorf("the change that failed is seen: %v", err)
	}
	wantTokens(t, s, 2)
}

// TestNothingIsAnsweredFromAnUncommittedNeighbour: the second change is refused
// because of the first; when the first fails after all, so does its reason.
func TestNothingIsAnsweredFromAnUncommittedNeighbour(t *testing.T) {
	s := newTestStore(t, Options{})
	commits := 0
	s.commit = func(tx *bolt.Tx) error {
		if commits++; commits <= 2 {
			return errors.New("injected")
		}
		return tx.Commit()
	}
	shared := func(tx tokenstore.Tx) error {
		id, err := tx.NewID()
		if err != nil {
			return err
		}
		tok := storetest.Sample(id, 1, 1)
		tok.Secrets[0].Digest = storetest.SampleDigest(77)
		tx.Emit([]byte("made"))
		return tx.Put(tok)
	}
	var seen []byte
	answers := together(s, shared, shared,
		func(tx tokenstore.Tx) error {
			return tx.KeepAnswer(storetest.SampleDigest(1), []byte("kept"), storetest.Epoch, storetest.Epoch.AddDate(0, 0, 1))
		},
		func(tx tokenstore.Tx) (err error) { seen, err = tx.Answer(storetest.SampleDigest(1)); return err })
	if answers[0] == nil || answers[1] != nil || answers[2] != nil || answers[3] != nil || string(seen) != "kept" {
		t.Errorf("answers are %v, %q", answers, seen)
	}
	wantTokens(t, s, 1)
}

// TestUnconfirmedCommitEndsWriting: the header page was written, but the disk
// did not confirm it. Until the store is opened again only reading goes on.
func TestUnconfirmedCommitEndsWriting(t *testing.T) {
	var told []tokenstore.ID
	s := newTestStore(t, Options{OnChange: func(c tokenstore.Change) { told = append(told, c.After.ID) }})
	commit := s.commit
	s.commit = func(tx *bolt.Tx) error { return errors.Join(tx.Commit(), syscall.EIO) }
	var a, b tokenstore.ID
	refused := errors.New("no")
	answers := together(s, put(&a), put(&b), func(tokenstore.Tx) error { return refused })
	for _, err := range answers[:2] {
		if !errors.Is(err, tokenstore.ErrOutcomeUnknown) || !errors.Is(err, syscall.EIO) {
			t.Errorf("answered %v", err)
		}
	}
	if !errors.Is(answers[2], refused) {
		t.Errorf("a refusal is answered %v", answers[2])
	}
	if len(told) != 2 {
		t.Errorf("the observer was told of %v: a cache would keep what is no longer so", told)
	}
	s.commit = commit
	wantTokens(t, s, 2)
	before, err := os.ReadFile(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	var c tokenstore.ID
	for range 2 {
		err := s.Change(t.Context(), put(&c))
		if err == nil || errors.Is(err, tokenstore.ErrOutcomeUnknown) || !strings.Contains(err.Error(), "restart tokenward") {
			t.Errorf("the next change is answered %v", err)
		}
		if fault := s.Stats().Fault; !errors.Is(fault, err) {
			t.Errorf("the fault is %v", fault)
		}
	}
	if after, err := os.ReadFile(s.Path()); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was written after the disk had not confirmed its header (%v)", err)
	}
	wantTokens(t, s, 2)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(Options{Path: s.Path()}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Change(t.Context(), put(&c)); err != nil || c <= b {
		t.Errorf("opened again, the next token is %d, %v", c, err)
	}
	wantTokens(t, s, 3)
}

// TestFaultIsToldUntilACommitSucceeds: a change that writes nothing proves nothing.
func TestFaultIsToldUntilACommitSucceeds(t *testing.T) {
	s := newTestStore(t, Options{})
	commit := s.commit
	s.commit = func(*bolt.Tx) error { return syscall.EIO }
	var id tokenstore.ID
	if err := s.Change(t.Context(), put(&id)); !errors.Is(err, syscall.EIO) || !errors.Is(s.Stats().Fault, syscall.EIO) {
		t.Errorf("answered %v, the fault is %v", err, s.Stats().Fault)
	}
	s.commit = commit
	if err := s.Change(t.Context(), func(tokenstore.Tx) error { return nil }); err != nil || s.Stats().Fault == nil {
		t.Errorf("after nothing was written: %v, the fault is %v", err, s.Stats().Fault)
	}
	if err := s.Change(t.Context(), put(&id)); err != nil || s.Stats().Fault != nil {
		t.Errorf("after a commit: %v, the fault is %v", err, s.Stats().Fault)
	}
}

// TestDiskFullIsSaidAndSurvived lets bolt itself run out of space.
func TestDiskFullIsSaidAndSurvived(t *testing.T) {
	s := newTestStore(t, Options{})
	load(t, s, 100)
	s.db.MaxSize = 1 // whatever grows the file now fails
	var failed error
	made := 100
	for range 10_000 {
		var id tokenstore.ID
		if failed = s.Change(t.Context(), put(&id)); failed != nil {
			break
		}
		made++
	}
	if failed == nil || !strings.Contains(failed.Error(), "free space on its disk") || errors.Is(failed, tokenstore.ErrOutcomeUnknown) {
		t.Fatalf("the store ran full with %v", failed)
	}
	wantTokens(t, s, made)
	s.db.MaxSize = 0
	var id tokenstore.ID
	if err := s.Change(t.Context(), put(&id)); err != nil {
		t.Errorf("with space again: %v", err)
	}
	wantTokens(t, s, made+1)
}

func TestBrokenBoltStopsWritingAndGoesOnReading(t *testing.T) {
	s := newTestStore(t, Options{})
	var a, b tokenstore.ID
	if err := s.Change(t.Context(), put(&a)); err != nil {
		t.Fatal(err)
	}
	s.commit = func(*bolt.Tx) error { panic("assertion failed: page 7 is no page") }
	for range 2 {
		if err := s.Change(t.Context(), put(&b)); err == nil || !strings.Contains(err.Error(), "restore a backup") {
			t.Errorf("answered %v", err)
		}
	}
	if _, err := s.ByID(t.Context(), a); err != nil {
		t.Errorf("reading: %v", err)
	}
	wantTokens(t, s, 1)
}

// TestChangeThatEndsItsGoroutine is what a test's FailNow does inside one.
func TestChangeThatEndsItsGoroutine(t *testing.T) {
	s := newTestStore(t, Options{})
	err := s.Change(t.Context(), func(tx tokenstore.Tx) error {
		tx.Emit([]byte("never"))
		runtime.Goexit()
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "nothing was written") {
		t.Errorf("answered %v", err)
	}
	var id tokenstore.ID
	if err := s.Change(t.Context(), put(&id)); err != nil {
		t.Errorf("the next change: %v", err)
	}
	wantTokens(t, s, 1)
}

func TestWaitingChangesShareCommits(t *testing.T) {
	s := newTestStore(t, Options{})
	const callers = 32
	var first, rest sync.WaitGroup
	entered, gate := make(chan bool), make(chan bool)
	first.Go(func() {
		_ = s.Change(context.Background(), func(tokenstore.Tx) error {
			close(entered)
			<-gate
			return nil
		})
	})
	<-entered
	for range callers {
		rest.Go(func() {
			var id tokenstore.ID
			if err := s.Change(context.Background(), put(&id)); err != nil {
				t.Error(err)
			}
		})
	}
	close(gate)
	first.Wait()
	rest.Wait()
	if st := s.Stats(); st.Changes != callers || st.Commits > st.Changes {
		t.Errorf("%+v", st)
	}
	wantTokens(t, s, callers)
}

func TestWaitingCallerCanGiveUp(t *testing.T) {
	s := newTestStore(t, Options{})
	entered, gate := make(chan bool), make(chan bool)
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = s.Change(context.Background(), func(tokenstore.Tx) error {
			close(entered)
			<-gate
			return nil
		})
	})
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan error)
	wg.Go(func() {
		answered <- s.Change(ctx, func(tokenstore.Tx) error {
			t.Error("a change ran although its caller had gone")
			return nil
		})
	})
	cancel()
	if err := <-answered; !errors.Is(err, context.Canceled) {
		t.Errorf("answered %v", err)
	}
	close(gate)
	wg.Wait()
}

func TestWakeTellsOfEvents(t *testing.T) {
	s := newTestStore(t, Options{})
	woken := func() bool {
		select {
		case <-s.Wake():
			return true
		default:
			return false
		}
	}
	if woken() {
		t.Error("an empty outbox woke its reader")
	}
	var id tokenstore.ID
	if err := s.Change(t.Context(), put(&id)); err != nil {
		t.Fatal(err)
	}
	if !woken() || woken() {
		t.Error("one event must wake once")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(Options{Path: s.Path()})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close() //nolint:errcheck // checked by its last use
	select {
	case <-again.Wake():
	default:
		t.Error("events that waited through a restart woke nobody")
	}
	if st := again.Stats(); st.Outbox != 1 || st.Active != 1 {
		t.Errorf("%+v", st)
	}
	if err := again.Done(100); err != nil {
		t.Fatal(err)
	}
	if st := again.Stats(); st.Outbox != 0 {
		t.Errorf("%+v", st)
	}
	check(t, again)
}

func TestSealedStoreHidesNoRecordFromItsPepper(t *testing.T) {
	s := newTestStore(t, Options{Peppers: testPeppers(t, "a")})
	var id tokenstore.ID
	if err := s.Change(t.Context(), put(&id)); err != nil {
		t.Fatal(err)
	}
	err := s.view(func(tx *bolt.Tx) error {
		if _, err := tokenstore.DecodeRecord(tx.Bucket(bucketTokens).Get(number(uint64(id)))[1:]); err == nil {
			t.Error("the record is not sealed")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	wantTokens(t, s, 1)
}
