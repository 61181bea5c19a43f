package etcdstore_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"tokenward/tokenstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
	"tokenward/tokenstore/storetest"
)

// short is a bound for staleness that a test can wait for.
const short = 8 * time.Second

// TestMembersDieAndNothingIsLost has members die while all nodes write.
func TestMembersDieAndNothingIsLost(t *testing.T) {
	t.Parallel()
	b := newBed(t, 3, 3, nil)
	for _, fault := range []struct {
		name string
		do   func()
	}{
		{"a member that does not lead", func() { m := b.follower(); m.Stop(); b.writeOnAll(3); m.Start() }},
		{"the leader", func() { m := b.etcd.Leader(); m.Stop(); b.writeOnAll(3); m.Start() }},
		{"all", func() { b.etcd.StopAll(); b.etcd.StartAll(); b.writeOnAll(1) }},
		{"the disk of a member", func() { m := b.follower(); m.LoseDisk(); b.writeOnAll(1) }},
	} {
		b.whileWriting(fault.do)
		b.healed()
		if t.Failed() {
			t.Fatalf("after the loss of %s", fault.name)
		}
	}
}

var errNone = errors.New("no error")

func orNil(err error) error { return cmp.Or(err, errNone) }

// follower returns a member that does not lead.
func (b *bed) follower() *etcdtest.Member {
	b.t.Helper()
	leader := b.etcd.Leader()
	for i := range b.etcd.Size() {
		if m := b.etcd.Member(i); m != leader {
			return m
		}
	}
	b.t.Fatal("all members lead")
	return nil
}

// writeOnAll has each node make n tokens, however long that takes.
func (b *bed) writeOnAll(n int) {
	b.t.Helper()
	for i := range b.nodes {
		for range n {
			etcdtest.WaitFor(b.t, fmt.Sprintf("node %d to write", i), func(context.Context) error {
				_, err := b.create(i)
				return err
			})
		}
	}
}

// whileWriting runs a fault while every node makes and changes tokens, each its own.
func (b *bed) whileWriting(fault func()) {
	b.t.Helper()
	stop := make(chan struct{})
	ended := make(chan struct{}, len(b.nodes))
	for i := range b.nodes {
		go func() {
			defer func() { ended <- struct{}{} }()
			var tok *tokenstore.Token
			for {
				select {
				case <-stop:
					return
				default:
				}
				if tok == nil {
					if made, err := b.create(i); err == nil {
						tok = made
					}
					continue
				}
				if err := b.edit(i, tok.ID, rename); err != nil {
					tok = nil // it may or may not have been changed: leave it
				}
			}
		}()
	}
	defer func() {
		close(stop)
		for range b.nodes {
			<-ended
		}
	}()
	fault()
}

// TestEtcdTakenBackIsNoticed restores a backup with the same cluster id, so that the
// nodes know of revisions that etcd has not had.
func TestEtcdTakenBackIsNoticed(t *testing.T) {
	t.Parallel()
	for name, kind := range map[string]func(i int, o *nodeOptions){
		"mirrored":  nil,
		"on demand": func(_ int, o *nodeOptions) { o.path = "" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, 1, 2, kind)
			kept, lost := b.mustCreate(0), (*tokenstore.Token)(nil)
			restore := b.etcd.Backup()
			for range 40 { // more than a block of ids
				lost = b.mustCreate(1)
			}
			restore()
			b.book.events = nil
			for id := range b.book.known {
				if id != kept.ID {
					delete(b.book.known, id)
				}
			}
			etcdtest.WaitFor(t, "all nodes to forget what etcd never had", func(ctx context.Context) error {
				for _, n := range b.nodes {
					if _, err := n.ByID(ctx, lost.ID); !errors.Is(err, tokenstore.ErrNotFound) {
						return fmt.Errorf("token %d on node %s: %w", lost.ID, n.Node(), orNil(err))
					}
				}
				return nil
			})
			made := b.mustCreate(1)
			if name == "mirrored" && made.ID <= lost.ID {
				t.Errorf("id %d was given out after %d, which the node knew", made.ID, lost.ID)
			}
			b.mustEdit(0, made.ID, revoke)
			etcdtest.WaitFor(t, "the other node to hear of the change", func(ctx context.Context) error {
				got, err := b.nodes[1].ByID(ctx, made.ID)
				if err != nil {
					return err
				}
				if got.State != tokenstore.StateRevoked {
					return errors.New("not revoked")
				}
				return nil
			})
		})
	}
}

// TestRestoreRevivesNoTokenThatTheNodeSawRevoked restores a backup in which a revoked
// token is valid.
func TestRestoreRevivesNoTokenThatTheNodeSawRevoked(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 2, nil)
	tok := b.mustCreate(0)
	restore := b.etcd.Backup()
	b.mustEdit(0, tok.ID, revoke)
	b.mustCreate(0)
	if err := b.nodes[0].WaitAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	restore()
	after := b.mustCreate(1)
	for i, n := range b.nodes {
		etcdtest.WaitFor(t, "the node to be in step again", func(ctx context.Context) error {
			_, err := n.ByID(ctx, after.ID)
			return err
		})
		got, err := n.ByID(t.Context(), tok.ID)
		if err != nil || got.State != tokenstore.StateRevoked {
			t.Errorf("node %d: a token that it knew as revoked: %v, %+v", i, err, got)
		}
	}
	b.mustEdit(1, tok.ID, revoke) // what the operator is told to do
	if got, err := b.nodes[1].ByID(t.Context(), tok.ID); err != nil || got.State != tokenstore.StateRevoked {
		t.Errorf("revoked again: %v, %+v", err, got)
	}
}

// TestEmptyEtcdIsNotTakenForTheStore loses all disks of etcd.
func TestEmptyEtcdIsNotTakenForTheStore(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 1, func(_ int, o *nodeOptions) { o.MaxStaleness = short })
	n := b.nodes[0]
	tok := b.mustCreate(0)
	b.etcd.LoseAllDisks()
	if _, err := b.create(0); err == nil {
		t.Error("an empty etcd took a token")
	}
	if got, err := n.ByID(t.Context(), tok.ID); err != nil || got.ID != tok.ID {
		t.Errorf("the copy lost a token when etcd did: %v", err)
	}
	etcdtest.WaitFor(t, "the node to be stale", func(context.Context) error {
		if err := n.Usable(); !errors.Is(err, etcdstore.ErrStale) {
			return fmt.Errorf("usable: %w", orNil(err))
		}
		return nil
	})
	// Another store in its place is not taken for it either.
	other := mirrored(t, b.prefix, b.etcd.Endpoints())
	other.Node = "other"
	startNode(t, other)
	if _, err := b.create(0); err == nil {
		t.Error("another store took a token")
	}
	if _, err := n.ByID(t.Context(), tok.ID); err != nil {
		t.Errorf("the copy lost a token to another store: %v", err)
	}
	if err := n.Usable(); !errors.Is(err, etcdstore.ErrStale) {
		t.Errorf("usable with another store: %v", err)
	}
}

// TestAnotherStoreAnswersNoQuestion puts an empty etcd, and then another store, in the
// place of the nodes' own, which has a token with the same id: what is read there must
// neither let a request through nor tell a caller what there is.
func TestAnotherStoreAnswersNoQuestion(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 2, func(i int, o *nodeOptions) {
		if i == 1 {
			o.path = ""
		}
	})
	tok := b.mustCreate(0)
	// A secret that these nodes have never seen.
	stranger := storetest.Sample(tok.ID, 1, 1)
	stranger.Secrets[0].Digest = storetest.SampleDigest(9_999_999)
	asked := func(what string) {
		t.Helper()
		for i, n := range b.nodes {
			err := n.Change(t.Context(), func(tx tokenstore.Tx) error { _, err := tx.Token(tok.ID); return err })
			if err == nil || errors.Is(err, tokenstore.ErrNotFound) {
				t.Errorf("node %d: a change is told by %s: %v", i, what, err)
			}
		}
		for _, d := range []tokenstore.Digest{tok.Secrets[0].Digest, stranger.Secrets[0].Digest} {
			if _, err := b.nodes[1].ByDigest(t.Context(), d); err == nil || errors.Is(err, tokenstore.ErrNotFound) {
				t.Errorf("a request is judged by %s: %v", what, err)
			}
		}
		for _, err := range b.nodes[1].List(t.Context(), tokenstore.Query{AllAccounts: true, Revoked: true, Limit: 1}) {
			if err == nil {
				t.Errorf("a list is of %s", what)
			}
		}
	}
	b.etcd.LoseAllDisks()
	asked("an empty etcd")
	if _, _, err := b.nodes[0].Members(t.Context(), time.Second); err == nil {
		t.Error("the nodes of an empty etcd are told")
	}
	if got, err := b.etcd.Client().Get(t.Context(), b.prefix, clientv3.WithPrefix()); err != nil || got.Count > 0 {
		t.Errorf("an empty etcd was written to: %v, %v", got.Kvs, err)
	}
	other := mirrored(t, b.prefix, b.etcd.Endpoints())
	other.Node = "other"
	o := startNode(t, other)
	if err := o.Change(t.Context(), func(tx tokenstore.Tx) error {
		for {
			id, err := tx.NewID()
			if err != nil {
				return err
			}
			if id == tok.ID {
				tx.Emit([]byte("create"))
				return tx.Put(stranger)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	asked("another store")
}

// TestIsolatedMemberProvesNothing lets a node reach one member alone, which is cut off
// from the others.
func TestIsolatedMemberProvesNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t, 3, 2, func(_ int, o *nodeOptions) { o.MaxStaleness = short })
	tok := b.mustCreate(1)
	b.relays[0].To(1).Cut()
	b.relays[0].To(2).Cut()
	b.etcd.IsolatePeers(0)
	etcdtest.WaitFor(t, "the token to be revoked elsewhere", func(context.Context) error { return b.edit(1, tok.ID, revoke) })
	etcdtest.WaitFor(t, "the node to be stale", func(context.Context) error {
		if err := b.nodes[0].Usable(); !errors.Is(err, etcdstore.ErrStale) {
			return fmt.Errorf("usable: %w", orNil(err))
		}
		return nil
	})
	b.etcd.HealPeers(0)
	b.relays[0].Heal()
	etcdtest.WaitFor(t, "the node to be usable", func(context.Context) error { return b.nodes[0].Usable() })
	b.healed()
}

// TestNodeThatWasForgottenWritesAgain keeps a node away until the others have taken
// over its events and removed what it left.
func TestNodeThatWasForgottenWritesAgain(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 2, func(_ int, o *nodeOptions) { o.MaxStaleness = short })
	b.mustCreate(1)
	b.relays[1].Cut()
	b.forgetNode(1)
	etcdtest.WaitFor(t, "the events of the node to be taken over", func(ctx context.Context) error {
		if err := b.nodes[0].KeepHouse(ctx); err != nil {
			return err
		}
		left, err := b.etcd.Client().Get(ctx, b.prefix+"lane/n1/0")
		if err == nil && len(left.Kvs) > 0 {
			err = errors.New("its lanes are still there")
		}
		return err
	})
	b.relays[1].Heal()
	b.healed()
}

// forgetNode removes a node's record from etcd, as its lease does in time.
func (b *bed) forgetNode(i int) {
	b.t.Helper()
	key := b.prefix + "node/" + b.nodes[i].Node()
	if _, err := b.etcd.Client().Delete(b.t.Context(), key); err != nil {
		b.t.Fatal(err)
	}
}
