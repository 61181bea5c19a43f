package etcdstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// NodeInfo is what a node says of itself. It stands in etcd under a lease for longer
// than the node answers requests without being heard of: a node whose record is gone
// answers none, unless it was told to serve whatever happens.
type NodeInfo struct {
	Node       string        `json:"node"`
	Instance   string        `json:"instance"` // of the process
	Version    string        `json:"version"`
	Mirror     string        `json:"mirror"` // full or on_demand
	ServeStale bool          `json:"serve_stale,omitempty"`
	Revision   int64         `json:"revision"` // that it had heard of everything up to
	Age        time.Duration `json:"age"`      // since when it might have lacked something, in nanoseconds
	At         time.Time     `json:"at"`       // when it said so, by its own clock
	Started    time.Time     `json:"started"`
}

const (
	// vouchEvery is how often a node renews its lease, and recordEvery how often
	// it writes its record although nobody asked.
	vouchEvery  = 20 * time.Second
	recordEvery = 10 * time.Minute
	// leaseMargin is for how much longer than it answers requests the node's record
	// stays.
	leaseMargin = 30 * time.Second
)

// registration is the node's record in etcd.
type registration struct {
	asked    chan struct{}
	there    chan struct{} // closed once the record is in etcd
	once     sync.Once
	vouched  atomic.Int64 // when the lease was last renewed, since the start
	ever     atomic.Bool
	lease    clientv3.LeaseID
	revision int64 // of the record
	written  time.Time
	started  time.Time // by the steady clock
	began    time.Time // by the wall clock

	mu    sync.Mutex // guards what follows
	nodes int
	first bool // this node comes first among those that are there
}

// called has the record written now.
func (r *registration) called() {
	select {
	case r.asked <- struct{}{}:
	default:
	}
}

// unvouched is for how long the node's record has not been renewed; 0 before it was
// for the first time, when the age of what it holds decides alone.
func (r *registration) unvouched() time.Duration {
	if !r.ever.Load() {
		return 0
	}
	return time.Since(r.started) - time.Duration(r.vouched.Load())
}

// keepRegistered keeps the node's record until ctx ends, and takes it away then.
func (s *Store) keepRegistered(ctx context.Context) {
	every := min(vouchEvery, s.opts.MaxStaleness/3)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := s.vouch(ctx); err != nil && ctx.Err() == nil {
			s.log.Debug("the node's record cannot be renewed; it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			s.unregister(context.WithoutCancel(ctx))
			return
		case <-s.self.asked:
			s.self.written = time.Time{}
		case <-tick.C:
		}
	}
}

// vouch renews the lease, and writes the record where that is due.
func (s *Store) vouch(ctx context.Context) error {
	r := &s.self
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	at := time.Now()
	if r.lease != 0 && time.Since(r.written) < recordEvery {
		_, err := s.etcd.KeepAliveOnce(ctx, r.lease)
		if err != nil {
			if errors.Is(err, rpctypes.ErrLeaseNotFound) {
				r.lease = 0
			}
			return err
		}
	} else if err := s.register(ctx); err != nil {
		return err
	}
	r.vouched.Store(int64(at.Sub(r.started)))
	r.ever.Store(true)
	r.once.Do(func() { close(r.there) })
	return s.census(ctx)
}

// register writes the record, if no other process did under the same name since
// this one.
func (s *Store) register(ctx context.Context) error {
	r := &s.self
	if r.lease == 0 {
		ttl := int64((s.opts.MaxStaleness + leaseMargin) / time.Second)
		granted, err := s.etcd.Grant(ctx, ttl)
		if err != nil {
			return err
		}
		r.lease = granted.ID
	} else if _, err := s.etcd.KeepAliveOnce(ctx, r.lease); err != nil {
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			r.lease = 0
		}
		return err
	}
	key := s.keys.node(s.opts.Node)
	info, err := json.Marshal(s.info())
	if err != nil {
		return err
	}
	var cmps []clientv3.Cmp
	if r.revision != 0 {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(key), "=", r.revision))
	}
	got, err := s.etcd.Txn(ctx).If(cmps...).Then(clientv3.OpPut(key, string(info), clientv3.WithLease(r.lease))).Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return err
	}
	if got.Succeeded {
		r.revision, r.written = got.Header.Revision, time.Now()
		return nil
	}
	r.revision = 0
	kvs := got.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return errors.New("the node's record was removed; it is written again")
	}
	var other NodeInfo
	if err := json.Unmarshal(kvs[0].Value, &other); err != nil || other.Instance != s.instance {
		s.taken()
		return errTaken
	}
	r.revision = kvs[0].ModRevision // an answer was lost
	return errors.New("the node's record was written, and is written again")
}

func (s *Store) info() NodeInfo {
	i := NodeInfo{
		Node: s.opts.Node, Instance: s.instance, Version: s.opts.Version, Mirror: "full", ServeStale: s.opts.ServeStale,
		Revision: s.data.now(), Age: s.fresh.age(), At: s.opts.Now().UTC().Truncate(time.Millisecond), Started: s.self.began,
	}
	if s.replica == nil {
		i.Mirror = "on_demand"
	}
	return i
}

func (s *Store) unregister(ctx context.Context) {
	r := &s.self
	if r.lease == 0 || s.isTaken.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	key := s.keys.node(s.opts.Node)
	_, err := s.etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", r.revision)).Then(clientv3.OpDelete(key)).Commit()
	if err == nil {
		_, err = s.etcd.Revoke(ctx, r.lease)
	}
	if err != nil {
		s.log.Info("the node could not take its record out of etcd, which does it by itself later", "error", err)
	}
}

// censusLimit is how many records a node reads to see whether it comes first.
const censusLimit = 2

// census counts the nodes, and finds out whether this one comes first.
func (s *Store) census(ctx context.Context) error {
	got, err := s.etcd.Txn(ctx).Then(
		clientv3.OpGet(s.keys.nodes(), clientv3.WithPrefix(), clientv3.WithCountOnly()),
		clientv3.OpGet(s.keys.nodes(), clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(censusLimit)),
	).Commit()
	if err != nil {
		return err
	}
	keys := got.Responses[1].GetResponseRange().Kvs
	s.self.mu.Lock()
	defer s.self.mu.Unlock()
	s.self.nodes = int(got.Responses[0].GetResponseRange().Count)
	s.self.first = len(keys) > 0 && string(keys[0].Key) == s.keys.node(s.opts.Node)
	return nil
}

// Nodes returns how many nodes there are, at least 1.
func (s *Store) Nodes() int {
	s.self.mu.Lock()
	defer s.self.mu.Unlock()
	return max(s.self.nodes, 1)
}

// First reports whether this node is the one that does what one of them has to do.
// For a moment two may take themselves for it, or none.
func (s *Store) First() bool {
	s.self.mu.Lock()
	defer s.self.mu.Unlock()
	return s.self.first && !s.fresh.stale()
}

// readNodes returns the records of all nodes, and the revision of the last change of
// data.
func (s *Store) readNodes(ctx context.Context) (nodes []NodeInfo, revision int64, err error) {
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.etcd.Txn(ctx).Then(clientv3.OpGet(s.keys.nodes(), clientv3.WithPrefix()), clientv3.OpGet(s.keys.head())).Commit()
	})
	if err != nil {
		return nil, 0, s.failed("read the records of the nodes", err)
	}
	if head := got.Responses[1].GetResponseRange().Kvs; len(head) > 0 {
		revision = head[0].ModRevision
	}
	for _, kv := range got.Responses[0].GetResponseRange().Kvs {
		var n NodeInfo
		if err := json.Unmarshal(kv.Value, &n); err != nil || n.Node != strings.TrimPrefix(string(kv.Key), s.keys.nodes()) {
			return nil, 0, errKey
		}
		nodes = append(nodes, n)
	}
	return nodes, revision, nil
}

// LaggingError names the nodes that were not heard to have applied a change.
type LaggingError struct{ Nodes []string }

func (e *LaggingError) Error() string {
	return fmt.Sprintf("the change is made, and these nodes have not confirmed it: %s", strings.Join(e.Nodes, ", "))
}

// WaitAll returns once every node has applied what this one has applied, or has
// answered no request for so long that etcd has forgotten it. A *LaggingError names
// those of which neither was heard before ctx ended.
func (s *Store) WaitAll(ctx context.Context) error {
	revision := s.data.now()
	if err := s.call(ctx); err != nil {
		return err
	}
	var lagging []string
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		nodes, _, err := s.readNodes(ctx)
		if err == nil {
			if lagging = behind(nodes, revision); len(lagging) == 0 {
				return nil
			}
		}
		if sleep(ctx, pause) != nil {
			if lagging == nil && err != nil {
				return err
			}
			return &LaggingError{lagging}
		}
	}
}

func behind(nodes []NodeInfo, revision int64) (names []string) {
	for i := range nodes {
		if nodes[i].Revision < revision {
			names = append(names, nodes[i].Node)
		}
	}
	slices.Sort(names)
	return names
}

// call has every node write its record once it has applied everything up to the
// call.
func (s *Store) call(ctx context.Context) error {
	_, err := retried(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.etcd.Txn(ctx).Then(clientv3.OpPut(s.keys.call(), ""), clientv3.OpPut(s.keys.head(), "")).Commit()
	})
	if err != nil {
		return s.failed("ask the nodes where they are", err)
	}
	return nil
}

// Members asks all nodes where they are, waits for their answers for as long as
// patience allows, and returns what they said last, with the revision of the last
// change.
func (s *Store) Members(ctx context.Context, patience time.Duration) ([]NodeInfo, int64, error) {
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.WaitAll(wait); err != nil {
		if _, lagging := errors.AsType[*LaggingError](err); !lagging {
			return nil, 0, err
		}
	}
	return s.readNodes(ctx)
}

// KeepHouse does what one node has to do for all: it takes over the events of nodes
// that are gone, and forgets what these left. Others call it in vain.
func (s *Store) KeepHouse(ctx context.Context) error {
	if !s.First() {
		return nil
	}
	nodes, _, err := s.readNodes(ctx)
	if err != nil {
		return err
	}
	living := make(map[string]bool, len(nodes))
	for i := range nodes {
		living[nodes[i].Node] = true
	}
	if err := s.adopt(ctx, living); err != nil {
		return err
	}
	return s.forgetLanes(ctx, living)
}

// forgetLanes removes the lanes of nodes that are gone: a change that was still on
// its way through one finds that its ground is gone.
func (s *Store) forgetLanes(ctx context.Context, living map[string]bool) error {
	all := s.keys.lanes("")
	all = all[:len(all)-1]
	got, err := s.etcd.Get(ctx, all, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return s.failed("look for what nodes left that are gone", err)
	}
	gone := map[string]bool{}
	for _, kv := range got.Kvs {
		node, _, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), all), "/")
		if !living[node] && node != s.opts.Node {
			gone[node] = true
		}
	}
	for node := range gone {
		// Only while it left no events, and has not come back.
		_, err := s.etcd.Txn(ctx).If(
			clientv3.Compare(clientv3.CreateRevision(s.keys.node(node)), "=", 0),
			clientv3.Compare(clientv3.CreateRevision(s.keys.outbox(node)).WithPrefix(), "=", 0),
		).Then(
			clientv3.OpDelete(s.keys.lanes(node), clientv3.WithPrefix()), clientv3.OpDelete(s.keys.done(node)),
		).Commit()
		if err != nil {
			return s.failed("remove what a node left that is gone", err)
		}
	}
	return nil
}
