package etcdstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
	"tokenward/tokenstore/storetest"
)

// gathered runs changes on a node while none can leave, calls meanwhile once want of
// them wait together, and lets them go. It returns how many transactions they took.
func gathered(t *testing.T, n *node, want int, meanwhile func(), changes ...func() error) uint64 {
	t.Helper()
	release := n.HoldLanes()
	before := n.Stats().Commits
	var callers sync.WaitGroup
	for _, change := range changes {
		callers.Go(func() {
			if err := change(); err != nil {
				t.Error(err)
			}
		})
	}
	etcdtest.WaitFor(t, "changes to wait together", func(context.Context) error {
		if now := n.Gathered(); now != want {
			return fmt.Errorf("%d of %d", now, want)
		}
		return nil
	})
	if meanwhile != nil {
		meanwhile()
	}
	release()
	callers.Wait()
	return n.Stats().Commits - before
}

func times[T any](n int, one T) (all []T) {
	for range n {
		all = append(all, one)
	}
	return all
}

// TestChangesLeaveTogether gathers changes of different tokens, and looks at their
// events: one outbox entry has them all.
func TestChangesLeaveTogether(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 2, nil)
	create := func() error { _, err := b.create(0); return err }
	old := b.mustCreate(0).ID
	edit := func() error { return b.edit(0, old, rename) }
	if commits := gathered(t, b.nodes[0], 10, nil, append(times(9, create), edit)...); commits != 1 {
		t.Errorf("10 changes took %d transactions", commits)
	}
	events := b.nodes[0].pending(t, 100)
	if len(events) != 11 {
		t.Fatalf("%d events wait", len(events))
	}
	if r := etcdstore.RevisionOf(events[1].Seq); r != etcdstore.RevisionOf(events[10].Seq) || r == etcdstore.RevisionOf(events[0].Seq) {
		t.Error("the events of one transaction are not of one revision")
	}
	b.healed()
	// The audit log takes some of them, and the node starts anew.
	if err := b.nodes[0].Done(events[4].Seq); err != nil {
		t.Fatal(err)
	}
	b.nodes[0].stop()
	b.nodes[0] = startNode(t, b.asked[0])
	rest := b.nodes[0].pending(t, 100)
	if len(rest) < 6 || rest[0].Seq != events[5].Seq || !bytes.Equal(rest[5].Payload, events[10].Payload) {
		t.Errorf("after 5 of 11 events %d wait", len(rest))
	}
}

// TestRefusedBatchIsMadeOneByOne has another node change what one of the gathered
// changes rests on.
func TestRefusedBatchIsMadeOneByOne(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 2, nil)
	tok := b.mustCreate(0)
	create := func() error { _, err := b.create(0); return err }
	edit := func() error { return b.edit(0, tok.ID, rename) }
	commits := gathered(t, b.nodes[0], 4, func() { b.mustEdit(1, tok.ID, rename) }, create, edit, create, create)
	if commits != 5 {
		t.Errorf("4 changes, of which one was refused, took %d transactions", commits)
	}
	if got, err := b.nodes[0].ByID(t.Context(), tok.ID); err != nil || got.Name != tok.Name+"xx" {
		t.Errorf("a change was lost: %+v, %v", got, err)
	}
	b.healed()
}

// TestChangesOfOneTokenDoNotGoTogether has several callers change one token.
func TestChangesOfOneTokenDoNotGoTogether(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 1, nil)
	tok := b.mustCreate(0)
	edit := func() error { return b.edit(0, tok.ID, rename) }
	gathered(t, b.nodes[0], 1, nil, times(3, edit)...)
	if got, err := b.nodes[0].ByID(t.Context(), tok.ID); err != nil || got.Name != tok.Name+"xxx" {
		t.Errorf("a change was lost: %+v, %v", got, err)
	}
	b.healed()
}

// TestLostAnswerOfABatchIsSettled drops the answers of a member to many changes at
// once: all of them are made, and made once. Callers may be left in doubt when it is
// that member that tells the node what changes.
func TestLostAnswerOfABatchIsSettled(t *testing.T) {
	t.Parallel()
	b := newBed(t, 3, 1, nil)
	var mu sync.Mutex
	var made []tokenstore.ID
	create := func() error {
		tok, err := b.create(0)
		mu.Lock()
		defer mu.Unlock()
		made = append(made, tok.ID)
		if errors.Is(err, tokenstore.ErrOutcomeUnknown) {
			err = nil
		}
		return err
	}
	for member := range b.etcd.Size() {
		gathered(t, b.nodes[0], 6, func() { b.relays[0].To(member).DropAnswers() }, times(6, create)...)
		b.relays[0].Heal()
	}
	b.healed()
	for _, id := range made {
		if _, err := b.nodes[0].ByID(t.Context(), id); err != nil {
			t.Errorf("token %d: %v", id, err)
		}
	}
	if events := b.nodes[0].pending(t, 100); len(events) < 3*6 {
		t.Errorf("%d events of 18 changes", len(events))
	}
}

// TestBatchThatEtcdDoesNotTakeIsMadeOneByOne has an etcd that takes less in one request
// than it does by default.
func TestBatchThatEtcdDoesNotTakeIsMadeOneByOne(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Limits: etcdtest.Limits{RequestBytes: 10_000}})
	n := startNode(t, mirrored(t, newPrefix(), c.Endpoints()))
	create := func() error {
		return n.Change(t.Context(), func(tx tokenstore.Tx) error {
			id, err := tx.NewID()
			if err != nil {
				return err
			}
			tx.Emit(bytes.Repeat([]byte{'e'}, 3000))
			return tx.Put(storetest.Sample(id, 1, 1))
		})
	}
	if commits := gathered(t, n, 6, nil, times(6, create)...); commits != 7 {
		t.Errorf("6 changes that are too large together took %d transactions", commits)
	}
	if events := n.pending(t, 100); len(events) != 6 {
		t.Errorf("%d events of 6 changes", len(events))
	}
}

// TestChangesThatKeepAnswersLeaveTogether has each of many changes find the same
// answers past their time, which it drops.
func TestChangesThatKeepAnswersLeaveTogether(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{})
	n := startNode(t, mirrored(t, newPrefix(), c.Endpoints()))
	keep := func(key byte, now time.Time) error {
		return n.Change(t.Context(), func(tx tokenstore.Tx) error {
			return tx.KeepAnswer(tokenstore.Digest{key}, []byte("kept"), now, now.Add(time.Minute))
		})
	}
	for key := range byte(3) {
		if err := keep(key, storetest.Epoch); err != nil {
			t.Fatal(err)
		}
	}
	var changes []func() error
	for key := byte(3); key < 9; key++ {
		changes = append(changes, func() error { return keep(key, storetest.Epoch.Add(time.Hour)) })
	}
	if commits := gathered(t, n, len(changes), nil, changes...); commits != 1 {
		t.Errorf("%d changes that drop the same answers took %d transactions", len(changes), commits)
	}
	if got := n.KeptAnswers(); got != len(changes) {
		t.Errorf("%d answers are kept, want the last %d", got, len(changes))
	}
}

// TestManyAnswersPastTheirTimeDoNotStopChanges lets more answers come to their end at
// once than etcd removes in one request.
func TestManyAnswersPastTheirTimeDoNotStopChanges(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Limits: etcdtest.Limits{RequestBytes: 20_000}})
	n := startNode(t, mirrored(t, newPrefix(), c.Endpoints()))
	keep := func(now time.Time, keys ...int) {
		t.Helper()
		if err := n.Change(t.Context(), func(tx tokenstore.Tx) error {
			for _, key := range keys {
				if err := tx.KeepAnswer(storetest.SampleDigest(tokenstore.ID(key)), []byte("kept"), now, now.Add(time.Minute)); err != nil { //nolint:gosec // small
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	const many = 400
	for i := range many / 50 {
		var keys []int
		for j := range 50 {
			keys = append(keys, 1+50*i+j)
		}
		keep(storetest.Epoch, keys...)
	}
	for i := range 10 {
		keep(storetest.Epoch.Add(time.Hour), 1+many+i)
	}
	if got := n.KeptAnswers(); got != 10 {
		t.Errorf("%d answers are kept, want the last 10", got)
	}
}
