package etcdstore_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"tokenward/tokenstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
	"tokenward/tokenstore/storetest"
)

// bed is a cluster of etcd members with nodes, each of which comes to the members by
// relays of its own, and with what was acknowledged to their callers.
type bed struct {
	t      testing.TB
	etcd   *etcdtest.Cluster
	prefix string
	relays []*etcdtest.Relays // by node
	asked  []nodeOptions
	nodes  []*node
	book   book
}

// newBed starts n mirrored nodes, of which edit may make others. begun is told before
// they are in step.
func newBed(t testing.TB, members, n int, edit func(i int, o *nodeOptions), begun ...func(*bed)) *bed {
	t.Helper()
	b := &bed{
		t: t, prefix: newPrefix(),
		etcd: etcdtest.Start(t, etcdtest.Options{Members: members, Limits: etcdtest.Limits{Heartbeat: 50 * time.Millisecond, Election: 500 * time.Millisecond}}),
	}
	b.book.known = map[tokenstore.ID]*tokenstore.Token{}
	for i := range n {
		relays := b.etcd.ClientRelays()
		o := mirrored(t, b.prefix, relays.Endpoints())
		o.Node = fmt.Sprintf("n%d", i)
		if edit != nil {
			edit(i, &o)
		}
		b.relays, b.asked = append(b.relays, relays), append(b.asked, o)
		b.nodes = append(b.nodes, beginNode(t, o))
	}
	for _, do := range begun {
		do(b)
	}
	for _, n := range b.nodes {
		n.waitReady(t)
	}
	return b
}

// book is what callers were told, under one lock.
type book struct {
	mu     sync.Mutex
	known  map[tokenstore.ID]*tokenstore.Token // as of the last acknowledged change; nil: swept
	open   map[tokenstore.ID]bool              // of an unknown outcome since
	events []string                            // acknowledged
}

func (k *book) note(t *tokenstore.Token, event string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if old := k.known[t.ID]; old == nil || old.Revision < t.Revision { // answers come in any order
		k.known[t.ID] = t
	}
	k.events = append(k.events, event)
}

func (k *book) doubt(id tokenstore.ID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open == nil {
		k.open = map[tokenstore.ID]bool{}
	}
	k.open[id] = true
}

// create makes a token on a node and notes what the caller is told.
func (b *bed) create(i int) (*tokenstore.Token, error) {
	var made *tokenstore.Token
	var event string
	err := b.nodes[i].Change(b.t.Context(), func(tx tokenstore.Tx) error {
		id, err := tx.NewID()
		if err != nil {
			return err
		}
		made = storetest.Sample(id, 1, 1)
		event = fmt.Sprintf("create %d", id)
		tx.Emit([]byte(event))
		return tx.Put(made)
	})
	switch {
	case err == nil:
		b.book.note(made, event)
	case errors.Is(err, tokenstore.ErrOutcomeUnknown):
		b.book.doubt(made.ID)
	}
	return made, err
}

// edit changes a token on a node and notes what the caller is told.
func (b *bed) edit(i int, id tokenstore.ID, with func(*tokenstore.Token)) error {
	return b.change(i, id, func(tok *tokenstore.Token) error { with(tok); return nil }, nil, nil)
}

// change is edit with a function that may refuse. It calls between before each commit,
// and tells made of the token as it is afterwards; both may be nil.
func (b *bed) change(i int, id tokenstore.ID, with func(*tokenstore.Token) error, between func(), made func(*tokenstore.Token)) error {
	var after *tokenstore.Token
	var event string
	err := b.nodes[i].Change(b.t.Context(), func(tx tokenstore.Tx) (err error) {
		if after, err = tx.Token(id); err != nil {
			return err
		}
		if err := with(after); err != nil {
			return err
		}
		event = fmt.Sprintf("edit %d to %d", id, after.Revision+1)
		tx.Emit([]byte(event))
		err = tx.Put(after)
		if between != nil {
			between()
		}
		return err
	})
	switch {
	case err == nil:
		b.book.note(after, event)
		if made != nil {
			made(after)
		}
	case errors.Is(err, tokenstore.ErrOutcomeUnknown):
		b.book.doubt(id)
	}
	return err
}

func revoke(tok *tokenstore.Token) {
	tok.State, tok.EndedAt = tokenstore.StateRevoked, storetest.Epoch.Add(time.Hour)
}

// rename makes the name longer, which it may not be for ever.
func rename(tok *tokenstore.Token) {
	if tok.Name += "x"; len(tok.Name) > 200 {
		tok.Name = "x"
	}
}

// mustCreate and mustEdit are for where nothing is wrong.
func (b *bed) mustCreate(i int) *tokenstore.Token {
	b.t.Helper()
	tok, err := b.create(i)
	if err != nil {
		b.t.Fatalf("node %d: create: %v", i, err)
	}
	return tok
}

func (b *bed) mustEdit(i int, id tokenstore.ID, with func(*tokenstore.Token)) {
	b.t.Helper()
	if err := b.edit(i, id, with); err != nil {
		b.t.Fatalf("node %d: edit token %d: %v", i, id, err)
	}
}

// healed checks everything that must hold once nothing is wrong any more: every node
// takes a write, no acknowledged change is lost, all nodes hold what etcd holds, and
// every acknowledged event is in one outbox.
func (b *bed) healed() {
	b.t.Helper()
	for i := range b.nodes {
		etcdtest.WaitFor(b.t, fmt.Sprintf("node %d to take a write", i), func(context.Context) error {
			_, err := b.create(i)
			return err
		})
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), ready)
	defer cancel()
	if err := b.nodes[0].WaitAll(ctx); err != nil {
		b.t.Fatal(err)
	}
	want := b.inEtcd()
	for i, n := range b.nodes {
		if n.copy == nil {
			continue
		}
		if got := b.inCopy(n); got != want {
			b.t.Errorf("node %d does not hold what etcd holds:\n%s", i, firstDifference(want, got))
		}
		if err := n.Usable(); err != nil || n.Stats().Unreadable > 0 {
			b.t.Errorf("node %d: %v, %+v", i, err, n.Stats())
		}
	}
	b.acknowledgedIsKept()
	b.eventsAreKeptOnce()
}

// acknowledgedIsKept compares what callers were told with what every node answers.
func (b *bed) acknowledgedIsKept() {
	b.t.Helper()
	b.book.mu.Lock()
	defer b.book.mu.Unlock()
	for id, want := range b.book.known {
		for i, n := range b.nodes {
			got, err := n.ByID(b.t.Context(), id)
			switch {
			case err != nil:
				b.t.Errorf("node %d: token %d, whose change was acknowledged: %v", i, id, err)
			case got.Revision < want.Revision:
				b.t.Errorf("node %d: token %d is at revision %d, acknowledged was %d", i, id, got.Revision, want.Revision)
			case got.Revision > want.Revision && !b.book.open[id]:
				b.t.Errorf("node %d: token %d is at revision %d, although the last change anybody made left %d", i, id, got.Revision, want.Revision)
			case want.State == tokenstore.StateRevoked && got.State != tokenstore.StateRevoked:
				b.t.Errorf("node %d: token %d was revoked and is not", i, id)
			}
		}
	}
}

// eventsAreKeptOnce checks that every acknowledged event is in the outbox of one node,
// once, and that each outbox is in the order of revisions.
func (b *bed) eventsAreKeptOnce() {
	b.t.Helper()
	count := map[string]int{}
	for i, n := range b.nodes {
		events := n.pending(b.t, tokenstore.MaxOutbox)
		for j, e := range events {
			count[string(e.Payload)]++
			if j > 0 && events[j-1].Seq >= e.Seq {
				b.t.Errorf("node %d: event %d comes after %d", i, e.Seq, events[j-1].Seq)
			}
		}
	}
	b.book.mu.Lock()
	defer b.book.mu.Unlock()
	for _, e := range b.book.events {
		if count[e] != 1 {
			b.t.Errorf("the acknowledged event %q is in %d places of the outboxes", e, count[e])
		}
	}
	for e, n := range count {
		if n > 1 {
			b.t.Errorf("the event %q is %d times in the outboxes", e, n)
		}
	}
}

// inEtcd is a text of all that nodes follow: records, digests and traits.
func (b *bed) inEtcd() string {
	b.t.Helper()
	got, err := b.etcd.Client().Get(b.t.Context(), b.prefix+"data/", clientv3.WithPrefix())
	if err != nil {
		b.t.Fatal(err)
	}
	digests, err := b.etcd.Client().Get(b.t.Context(), b.prefix+"digest/", clientv3.WithPrefix())
	if err != nil {
		b.t.Fatal(err)
	}
	var lines []string
	for _, kv := range got.Kvs {
		switch key := strings.TrimPrefix(string(kv.Key), b.prefix+"data/"); {
		case strings.HasPrefix(key, "token/"):
			lines = append(lines, fmt.Sprintf("%s %x", key, sha256.Sum256(kv.Value)))
		case strings.HasPrefix(key, "trait/prefix/"):
			lines = append(lines, key)
		}
	}
	for _, kv := range digests.Kvs {
		lines = append(lines, strings.TrimPrefix(string(kv.Key), b.prefix)+" "+string(kv.Value))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// inCopy is the same text of a node's copy.
func (b *bed) inCopy(n *node) string {
	b.t.Helper()
	var lines []string
	for r, err := range n.copy.Records(b.t.Context()) {
		if err != nil {
			b.t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("token/%016x %x", uint64(r.ID), sha256.Sum256(r.Sealed)))
	}
	for r, err := range n.copy.Digests(b.t.Context()) {
		if err != nil {
			b.t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("digest/%s %016x", etcdstore.DigestText(r.Digest), uint64(r.Owner)))
	}
	traits, err := n.copy.Traits()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, p := range traits.Prefixes {
		lines = append(lines, "trait/prefix/"+p)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		switch {
		case i >= len(w):
			return "has more: " + g[i]
		case i >= len(g):
			return "lacks: " + w[i]
		case w[i] != g[i]:
			return "has " + g[i] + "\nfor " + w[i]
		}
	}
	return ""
}
