//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
)

// etcd is a cluster of members in processes of their own.
type etcd struct {
	dir     string
	specs   []etcdtest.Spec
	members []*process
	via     []string // relays that nodes go through; nil: none
}

func startEtcd(ctx context.Context, n int) (e *etcd, err error) {
	e = &etcd{}
	if e.dir, err = os.MkdirTemp("", "tokenward-etcd-"); err != nil {
		return nil, err
	}
	if e.specs, err = etcdtest.Specs(e.dir, "http", n); err != nil {
		return nil, err
	}
	for i := range e.specs {
		e.specs[i].Limits = etcdtest.Limits{Fsync: true, QuotaBytes: 8 << 30}
		p, err := e.startMember(ctx, i)
		if err != nil {
			return nil, errors.Join(err, e.stop())
		}
		e.members = append(e.members, p)
		e.specs[i].Existing = true
	}
	for i := range e.members {
		if err := e.await(ctx, i); err != nil {
			return nil, errors.Join(err, e.stop())
		}
	}
	return e, nil
}

func (e *etcd) startMember(ctx context.Context, i int) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	spec, err := json.Marshal(&e.specs[i])
	if err != nil {
		return nil, err
	}
	return start(ctx, e.dir, e.specs[i].Name, self, "etcdmember", string(spec))
}

func (e *etcd) await(ctx context.Context, i int) error {
	u, err := url.Parse(e.specs[i].ClientURL)
	if err != nil {
		return err
	}
	return waitFor(ctx, e.members[i], u.Host)
}

// restart stops a member and starts it anew.
func (e *etcd) restart(ctx context.Context, i int) error {
	if err := e.members[i].stop(); err != nil {
		return err
	}
	p, err := e.startMember(ctx, i)
	if err != nil {
		return err
	}
	e.members[i] = p
	return e.await(ctx, i)
}

func (e *etcd) stop() error {
	var errs []error
	for _, p := range e.members {
		errs = append(errs, p.stop())
	}
	return errors.Join(append(errs, os.RemoveAll(e.dir))...)
}

func (e *etcd) endpoints() []string {
	if e.via != nil {
		return e.via
	}
	var list []string
	for i := range e.specs {
		list = append(list, e.specs[i].ClientURL)
	}
	return list
}

func (e *etcd) client() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: e.endpoints(), DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

// nodeConf is the configuration of a node.
func (e *etcd) nodeConf(dir, name, mirror string, port, admin, metrics int) string {
	own := tokenwardConf(dir, filepath.Join(dir, "tokens.db"), 200, port, admin, metrics, false)
	part := fmt.Sprintf("  etcd: {endpoints: [\"%s\"], node: %s, mirror: %s}\naudit:\n", strings.Join(e.endpoints(), `", "`), name, mirror)
	return strings.Replace(own, "audit:\n", part, 1)
}

// cpu is the processor time of all members.
func (e *etcd) cpu() (all time.Duration, err error) {
	for _, p := range e.members {
		c, err := p.cpu()
		if err != nil {
			return 0, err
		}
		all += c
	}
	return all, nil
}

// heard is told of each change of a token.
type heard func(node int, c tokenstore.Change)

// node is one node in this process.
type node struct {
	client *etcdstore.Client
	store  *etcdstore.Store
	copy   *boltstore.Store // nil: on demand
}

func (n *node) close() error {
	err := errors.Join(n.store.Close(), n.client.Close())
	if n.copy != nil {
		err = errors.Join(err, n.copy.Close())
	}
	return err
}

func dial(e *etcd, name string) (*etcdstore.Client, error) {
	// Each node begins with another member, as with names in another order.
	ends := e.endpoints()
	turn := int(name[len(name)-1]) % len(ends)
	return etcdstore.Dial(etcdstore.Options{Endpoints: append(ends[turn:len(ends):len(ends)], ends[:turn]...), Node: name, Version: "bench"})
}

// openNode starts a node with a copy at path, or without one where that is empty. It
// does not wait until it has caught up.
func openNode(ctx context.Context, e *etcd, name, path string, changed func(tokenstore.Change)) (*node, error) {
	c, err := dial(e, name)
	if err != nil {
		return nil, err
	}
	d, err := c.Describe(ctx)
	if errors.Is(err, etcdstore.ErrNotInitialised) {
		if err = c.Init(ctx); err == nil || errors.Is(err, etcdstore.ErrExists) {
			d, err = c.Describe(ctx)
		}
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	n := &node{client: c}
	if path == "" {
		n.store = c.Open(d, nil)
		n.store.Start(etcdstore.Observer{Changed: changed})
		return n, nil
	}
	open := boltstore.Open
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		open = boltstore.Create
	}
	if n.copy, err = open(boltstore.Options{Path: path, ReplicaOf: d.Name(), OnChange: changed}); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	n.store = c.Open(d, n.copy)
	n.store.Start(etcdstore.Observer{})
	return n, nil
}

// openNodes starts n nodes and waits until all have caught up.
func openNodes(ctx context.Context, e *etcd, dir string, n int, mirrored bool, changed heard) (nodes []*node, stop func() error, err error) {
	stop = func() error {
		errs := make([]error, len(nodes))
		var wg sync.WaitGroup
		for i, one := range nodes {
			wg.Go(func() { errs[i] = one.close() })
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	for i := range n {
		path := ""
		if mirrored {
			path = filepath.Join(dir, fmt.Sprintf("node-%d.db", i))
		}
		one, err := openNode(ctx, e, fmt.Sprintf("node-%d", i), path, func(c tokenstore.Change) {
			if changed != nil {
				changed(i, c)
			}
		})
		if err != nil {
			return nil, nil, errors.Join(err, stop())
		}
		nodes = append(nodes, one)
	}
	for _, one := range nodes {
		if err := one.store.WaitReady(ctx); err != nil {
			return nil, nil, errors.Join(err, stop())
		}
	}
	return nodes, stop, nil
}

// makeTokens makes tokens in the cluster, a thousand in one change.
func makeTokens(ctx context.Context, n *node, count int) (ids []tokenstore.ID, err error) {
	for len(ids) < count {
		var made []tokenstore.ID
		err := n.store.Change(ctx, func(tx tokenstore.Tx) error {
			made = made[:0]
			for range min(500, count-len(ids)) {
				id, _, err := putToken(tx, false)
				if err != nil {
					return err
				}
				made = append(made, id)
			}
			tx.Emit([]byte(`{}`))
			return nil
		})
		if err != nil {
			return nil, err
		}
		ids = append(ids, made...)
	}
	return ids, nil
}

// drain empties the outbox of a node as the audit log does.
func drain(ctx context.Context, n *node) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.store.Wake():
		}
		time.Sleep(100 * time.Millisecond) // as the program does
		events, err := n.store.Pending(1000)
		if err == nil && len(events) > 0 {
			_ = n.store.Done(events[len(events)-1].Seq) // it comes again
		}
	}
}

func revoke(tx tokenstore.Tx, id tokenstore.ID) error {
	t, err := tx.Token(id)
	if err != nil {
		return err
	}
	t.State, t.EndedAt, t.UpdatedAt = tokenstore.StateRevoked, time.Now().UTC().Truncate(time.Millisecond), time.Now().UTC().Truncate(time.Millisecond)
	tx.Emit([]byte(`{}`))
	return tx.Put(t)
}

// freePorts returns ports that are free at this moment: the program that is started
// beside a field of peers has none of theirs.
func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", local(0))
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
