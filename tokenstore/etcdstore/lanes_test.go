package etcdstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
	"tokenward/tokenstore/storetest"
)

// TestOlderProcessOfANameStopsWriting starts a second process under a node's name.
func TestOlderProcessOfANameStopsWriting(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 1, nil)
	older := b.nodes[0]
	tok := b.mustCreate(0)
	second := mirrored(t, b.prefix, b.etcd.Endpoints())
	second.Node = older.Node()
	b.nodes = append(b.nodes, startNode(t, second))
	b.mustCreate(1)
	if _, err := b.create(0); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("the older process wrote: %v", err)
	}
	for range 20 { // through every lane
		b.mustEdit(1, tok.ID, rename)
	}
	if !older.Stats().Taken {
		t.Error("the older process does not say that its name was taken")
	}
	if b.nodes[1].Stats().Taken {
		t.Error("the newer process thinks that its name was taken")
	}
	if events, err := older.Pending(1); len(events) > 0 || !errors.Is(err, etcdstore.ErrOutboxUnknown) {
		t.Errorf("the older process hands out the newer one's events: %v, %v", events, err)
	}
	etcdtest.WaitFor(t, "the older process to read what the newer wrote", func(ctx context.Context) error {
		got, err := older.ByID(ctx, tok.ID)
		if err == nil && got.Revision != 21 {
			err = fmt.Errorf("revision %d", got.Revision)
		}
		return err
	})
}

// TestStalledTransactionIsNotMadeLater holds a node's transactions up on the way to one
// member until the node has settled what became of them by another.
func TestStalledTransactionIsNotMadeLater(t *testing.T) {
	t.Parallel()
	b := newBed(t, 3, 1, nil)
	var ids []tokenstore.ID
	for range 6 {
		ids = append(ids, b.mustCreate(0).ID)
	}
	members := 1
	if storetest.Soak() {
		members = b.etcd.Size()
	}
	for member := range members {
		stalled := b.relays[0].To(member)
		stalled.Stall(etcdtest.Requests)
		var writers sync.WaitGroup
		for _, id := range ids {
			writers.Go(func() {
				if err := b.edit(0, id, rename); err != nil {
					t.Errorf("with two of three members: %v", err)
				}
			})
		}
		writers.Wait()
		before := b.inEtcd()
		stalled.Heal()
		b.mustCreate(0)
		after := strings.Split(b.inEtcd(), "\n")
		for line := range strings.SplitSeq(before, "\n") {
			if !slices.Contains(after, line) {
				t.Errorf("member %d: a transaction was made after it had been settled: %s is gone", member, line)
			}
		}
	}
	b.healed()
}

// TestLostAnswersAreSettled drops the answers of members while nodes write: every
// outcome must be known while one member answers.
func TestLostAnswersAreSettled(t *testing.T) {
	t.Parallel()
	b := newBed(t, 3, 2, nil)
	tok := b.mustCreate(0)
	rounds, writes := 1, 2
	if storetest.Soak() {
		rounds, writes = 60, 4
	}
	for round := range rounds {
		for i := range b.nodes {
			b.relays[i].To((round + i) % b.etcd.Size()).DropAnswers()
		}
		var writers sync.WaitGroup
		for i := range b.nodes {
			writers.Go(func() {
				for range writes {
					if err := b.edit(i, tok.ID, rename); err != nil {
						t.Errorf("node %d: %v", i, err)
					}
					if _, err := b.create(i); err != nil {
						t.Errorf("node %d: %v", i, err)
					}
				}
			})
		}
		writers.Wait()
		for i := range b.nodes {
			b.relays[i].Heal()
		}
	}
	b.healed()
	if len(b.book.open) > 0 {
		t.Errorf("the outcome for tokens %v stayed unknown", b.book.open)
	}
}

// TestOutcomeIsUnknownOnlyWhileEtcdIsAway stalls all members in the middle of changes.
func TestOutcomeIsUnknownOnlyWhileEtcdIsAway(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 2, nil)
	tok := b.mustCreate(0)
	b.relays[0].Stall(etcdtest.Answers)
	began := time.Now()
	var writers sync.WaitGroup
	for range 12 { // more than there are lanes
		writers.Go(func() {
			if err := b.edit(0, tok.ID, rename); err == nil {
				t.Error("a change was acknowledged without an answer from etcd")
			}
		})
	}
	writers.Wait()
	if took := time.Since(began); took > time.Minute {
		t.Errorf("callers waited %s", took)
	}
	b.relays[0].Heal()
	b.healed()
}

// TestNodesNeverShareAnID has nodes take ids at once, with restarts and lost answers.
func TestNodesNeverShareAnID(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 3, func(_ int, o *nodeOptions) { o.path = "" })
	var mu sync.Mutex
	given := map[tokenstore.ID]int{}
	take := func(i, n int) {
		for range n {
			var id tokenstore.ID
			err := b.nodes[i].Change(t.Context(), func(tx tokenstore.Tx) (err error) {
				id, err = tx.NewID()
				return err
			})
			mu.Lock()
			if before, again := given[id]; err == nil && again {
				t.Errorf("node %d was given id %d, as node %d was", i, id, before)
			}
			given[id] = i
			mu.Unlock()
		}
	}
	for round := range 3 {
		if round == 1 {
			b.relays[0].DropAnswers()
		}
		var takers sync.WaitGroup
		for i := range b.nodes {
			takers.Go(func() { take(i, 100) })
		}
		if round == 1 {
			etcdtest.WaitFor(t, "another node to take a block meanwhile", func(context.Context) error {
				mu.Lock()
				defer mu.Unlock()
				if len(given) < 350 {
					return errors.New("not yet")
				}
				return nil
			})
			b.relays[0].Heal()
		}
		takers.Wait()
		b.nodes[round].stop()
		b.nodes[round] = startNode(t, b.asked[round])
	}
}

// TestSecretBelongsToOneTokenOfAllNodes offers the same secret to two nodes at once.
func TestSecretBelongsToOneTokenOfAllNodes(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 2, nil)
	for round := range 10 {
		secret := storetest.SampleDigest(tokenstore.ID(1_000_000 + round)) //nolint:gosec // small
		var writers sync.WaitGroup
		var errs [2]error
		for i := range b.nodes {
			writers.Go(func() {
				errs[i] = b.nodes[i].Change(t.Context(), func(tx tokenstore.Tx) error {
					id, err := tx.NewID()
					if err != nil {
						return err
					}
					tok := storetest.Sample(id, 1, 1)
					tok.Secrets[0].Digest = secret
					tx.Emit([]byte("import"))
					return tx.Put(tok)
				})
			})
		}
		writers.Wait()
		refused := 0
		for i, err := range errs {
			if _, duplicate := errors.AsType[*tokenstore.DuplicateError](err); duplicate {
				refused++
			} else if err != nil {
				t.Errorf("node %d: %v", i, err)
			}
		}
		if refused != 1 {
			t.Errorf("of two tokens with one secret %d were refused: %v", refused, errs)
		}
	}
}

// TestEventsOfADeadNodeAreInOneLog kills a node with events that wait.
func TestEventsOfADeadNodeAreInOneLog(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 3, nil)
	// More events of a living node come first than are looked at at once, each, as a
	// node writes them, of a revision of its own.
	for i := range 1100 {
		event := fmt.Appendf(nil, "of n0: %d", i)
		if _, err := b.etcd.Client().Put(t.Context(), fmt.Sprintf("%soutbox/n0/x-%d", b.prefix, i), string(etcdstore.PackEvents([][]byte{event}))); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		b.mustCreate(2)
	}
	events := b.nodes[2].pending(t, 100)
	if len(events) != 5 {
		t.Fatalf("%d events wait", len(events))
	}
	if err := b.nodes[2].Done(events[1].Seq); err != nil { // two are in its log
		t.Fatal(err)
	}
	b.book.events = b.book.events[2:]
	b.relays[2].Cut()
	dead := b.nodes[2]
	b.nodes = b.nodes[:2]
	key := b.prefix + "node/" + dead.Node()
	if _, err := b.etcd.Client().Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	for _, n := range b.nodes { // whichever is the first; the other calls in vain
		if err := n.KeepHouse(t.Context()); err != nil {
			t.Error(err)
		}
	}
	b.healed()
	// It comes back with what it knew, which others have taken over.
	b.relays[2].Heal()
	b.nodes = append(b.nodes, dead)
	b.healed()
}

// mustLag checks that node 0 waits for a node in vain, and for no other.
func (b *bed) mustLag(name string) {
	b.t.Helper()
	etcdtest.WaitFor(b.t, "only "+name+" to lag", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err := b.nodes[0].WaitAll(ctx)
		lagging, ok := errors.AsType[*etcdstore.LaggingError](err)
		switch {
		case err == nil:
			b.t.Fatalf("nobody waited for %s", name)
		case ok && slices.Equal(lagging.Nodes, []string{name}):
			return nil
		}
		return err // etcd, or another node, did not answer in time
	})
}

// TestLaggingNodeIsNamed waits for a node that is stalled, and for one that is gone.
func TestLaggingNodeIsNamed(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 2, nil)
	b.relays[1].Stall(etcdtest.Both)
	b.mustCreate(0)
	b.mustLag("n1")
	b.relays[1].Heal()
	all, cancel := context.WithTimeout(t.Context(), ready)
	defer cancel()
	if err := b.nodes[0].WaitAll(all); err != nil {
		t.Errorf("all are well: %v", err)
	}
	b.relays[1].Cut()
	b.mustCreate(0)
	b.forgetNode(1) // as its lease does in time
	if err := b.nodes[0].WaitAll(all); err != nil {
		t.Errorf("the node is gone: %v", err)
	}
}

// TestStoppedNodeThatMayStartAgainIsWaitedFor ends a node in good order: started again
// while etcd is away, it would answer from its copy.
func TestStoppedNodeThatMayStartAgainIsWaitedFor(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 2, nil)
	b.nodes[1].stop()
	b.mustCreate(0)
	b.mustLag("n1")
	b.nodes[1] = startNode(t, b.asked[1])
	b.healed()
}
