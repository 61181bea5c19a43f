package etcdstore_test

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
)

// ready bounds what happens within seconds on a machine that is not starved.
const ready = 2 * time.Minute

// nodeOptions say what a node of a test is.
type nodeOptions struct {
	etcdstore.Options
	path    string // of the copy; empty: everything is read from etcd
	changed func(tokenstore.Change)
	forget  func()
}

// kinds are the ways to run a node, each with a new store of its own.
var kinds = map[string]func(t *testing.T, endpoints []string) nodeOptions{
	"mirrored with pepper": func(t *testing.T, endpoints []string) nodeOptions {
		o := mirrored(t, newPrefix(), endpoints)
		o.Peppers = pepper(t)
		return o
	},
	"on demand": func(t *testing.T, endpoints []string) nodeOptions { return onDemand(t, newPrefix(), endpoints) },
}

func newPrefix() string { return "/" + rand.Text()[:6] + "/" }

func pepper(t testing.TB) *tokenstore.Peppers {
	t.Helper()
	p, err := tokenstore.NewPeppers([]byte(strings.Repeat("a", tokenstore.MinPepperBytes)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mirrored(t testing.TB, prefix string, endpoints []string) nodeOptions {
	o := onDemand(t, prefix, endpoints)
	o.path = filepath.Join(t.TempDir(), "tokens.db")
	return o
}

func onDemand(_ testing.TB, prefix string, endpoints []string) nodeOptions {
	return nodeOptions{Options: etcdstore.Options{Endpoints: endpoints, Prefix: prefix, Node: "a", Version: "test", Now: time.Now}}
}

// node is a node of a cluster. It ends with the test, if not before.
type node struct {
	*etcdstore.Store
	client *etcdstore.Client
	copy   *boltstore.Store // nil: none
	stop   func()
}

// startNode starts a node and waits until it is in step. It makes the store if there
// is none.
func startNode(t testing.TB, o nodeOptions) *node {
	t.Helper()
	n := beginNode(t, o)
	n.waitReady(t)
	return n
}

// beginNode starts a node.
func beginNode(t testing.TB, o nodeOptions) *node {
	t.Helper()
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})).With("node", o.Node)
	client, err := etcdstore.Dial(o.Options)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{client: client}
	n.open(t, o, describe(t, client))
	stop := sync.OnceFunc(func() {
		n.Close()
		if n.copy != nil {
			n.copy.Close()
		}
		client.Close()
	})
	n.stop = stop
	t.Cleanup(stop)
	return n
}

// describe reads what the store says of itself, and makes it if there is none.
func describe(t testing.TB, client *etcdstore.Client) (d etcdstore.Description) {
	t.Helper()
	etcdtest.WaitFor(t, "the store to be described", func(ctx context.Context) (err error) {
		if d, err = client.Describe(ctx); errors.Is(err, etcdstore.ErrNotInitialised) {
			if ierr := client.Init(ctx); ierr != nil && !errors.Is(ierr, etcdstore.ErrExists) {
				return ierr
			}
		}
		return err
	})
	return d
}

func (n *node) open(t testing.TB, o nodeOptions, d etcdstore.Description) {
	t.Helper()
	if o.path == "" {
		n.Store = n.client.Open(d, nil)
		n.Start(etcdstore.Observer{Changed: o.changed, Forget: o.forget})
		return
	}
	bo := boltstore.Options{Path: o.path, Peppers: o.Peppers, OnChange: o.changed, ReplicaOf: d.ID}
	replica, err := boltstore.Open(bo)
	if err != nil {
		replica, err = boltstore.Create(bo)
	}
	if err != nil {
		t.Fatal(err)
	}
	n.copy = replica
	n.Store = n.client.Open(d, replica)
	n.Start(etcdstore.Observer{})
}

func (n *node) waitReady(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), ready)
	defer cancel()
	if err := n.WaitReady(ctx); err != nil {
		t.Fatalf("node %s does not come into step: %v; %+v", n.Node(), err, n.Stats())
	}
}

// pending is what waits in the node's outbox. Where the node does not know that yet,
// it is waited for, and not for longer.
func (n *node) pending(t testing.TB, limit int) (events []etcdstore.Event) {
	t.Helper()
	etcdtest.WaitFor(t, "node "+n.Node()+" to know its outbox", func(context.Context) (err error) {
		events, err = n.Pending(limit)
		return err
	})
	return events
}
