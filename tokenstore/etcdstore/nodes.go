package etcdstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
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
	Stopped    bool          `json:"stopped,omitempty"` // and may still start from its copy
}

const (
	// vouchEvery is how often a node renews its lease, and recordEvery how often
	// it writes its record although nobody asked.
	vouchEvery  = 20 * time.Second
	recordEvery = 10 * time.Minute
	// leaseMargin is for how much longer than it answers requests the node's record
	// stays.
	leaseMargin = 30 * time.Second
	// vouchRetry is about how soon renewing is tried again after it failed.
	vouchRetry = time.Second
)

// registration is the node's record in etcd.
type registration struct {
	asked    chan struct{}
	there    chan struct{} // closed once the record is in etcd
	once     sync.Once
	vouched  atomic.Int64 // when the lease was last renewed, since the start
	ever     atomic.Bool
	lease    clientv3.LeaseID
	recorded clientv3.LeaseID // that the record is under; 0: there is none
	last     int64            // revision of the record, when it was written last
	epoch    atomic.Uint64    // counts the times when it was written after it was not there
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
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			s.unregister(context.WithoutCancel(ctx))
			return
		case <-s.self.asked:
			s.self.written = time.Time{}
		case <-wait.C:
		}
		next := every
		if err := s.vouch(ctx); err != nil && ctx.Err() == nil {
			s.log.Debug("the node's record cannot be renewed; it is tried again", "error", err)
			next = min(every, vouchRetry/2+rand.N(vouchRetry)) //nolint:gosec // only to spread
		}
		wait.Reset(next)
	}
}

// vouch renews the lease, and writes the record where that is due.
func (s *Store) vouch(ctx context.Context) error {
	if s.isTaken.Load() {
		return errTaken
	}
	r := &s.self
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	at := time.Now()
	if err := s.renewLease(ctx); err != nil {
		return err
	}
	if r.lease != r.recorded || time.Since(r.written) >= recordEvery {
		// While the record is there, its lease says that the node is. A disk of etcd's
		// that is full takes no record, and does not make the node stop.
		if err := s.record(ctx); err != nil && (r.lease != r.recorded || errors.Is(err, errTaken)) {
			return err
		}
	}
	if err := s.census(ctx); err != nil {
		return err
	}
	r.vouched.Store(int64(at.Sub(r.started)))
	r.ever.Store(true)
	r.once.Do(func() { close(r.there) })
	s.out.wakeUp()
	return nil
}

// renewLease renews the lease, or gets one.
func (s *Store) renewLease(ctx context.Context) error {
	r := &s.self
	if r.lease != 0 {
		_, err := retried(ctx, func(ctx context.Context) (*clientv3.LeaseKeepAliveResponse, error) {
			return s.etcd.KeepAliveOnce(ctx, r.lease)
		})
		if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return err
		}
		r.lease = 0
	}
	granted, err := retried(ctx, func(ctx context.Context) (*clientv3.LeaseGrantResponse, error) {
		return s.etcd.Grant(ctx, int64((s.opts.MaxStaleness+leaseMargin)/time.Second))
	})
	if err != nil {
		return err
	}
	r.lease = granted.ID
	return nil
}

// record writes the record, if no other process did under the same name since this
// one.
func (s *Store) record(ctx context.Context) error {
	r := &s.self
	key := s.keys.node(s.opts.Node)
	info, err := json.Marshal(s.info())
	if err != nil {
		return err
	}
	cmps := []clientv3.Cmp{s.isOwnStore()}
	if r.last != 0 {
		// It is as it was, or was removed, or is older, since etcd was restored.
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(key), "<", r.last+1))
	}
	got, err := s.etcd.Txn(ctx).If(cmps...).
		Then(clientv3.OpPut(key, string(info), clientv3.WithLease(r.lease)), clientv3.OpDelete(s.keys.stopped(s.opts.Node))).
		Else(clientv3.OpGet(key), clientv3.OpGet(s.keys.storeID())).Commit()
	if err != nil {
		return err
	}
	if got.Succeeded {
		r.last, r.written = got.Header.Revision, time.Now()
		if r.recorded != r.lease {
			// Others may have taken over what was in the outbox meanwhile.
			r.recorded = r.lease
			r.epoch.Add(1)
			s.emitting.restart(errRecorded)
		}
		return nil
	}
	kvs, id := got.Responses[0].GetResponseRange().Kvs, got.Responses[1].GetResponseRange().Kvs
	if len(id) != 1 || string(id[0].Value) != s.ID() {
		return errOtherStore
	}
	if len(kvs) == 1 && !s.wroteRecord(kvs[0].Value) {
		s.taken()
		return errTaken
	}
	if len(kvs) == 1 {
		r.last = kvs[0].ModRevision // an answer was lost
	}
	return errors.New("the node's record is not as it was left; it is written again")
}

// isOwnStore compares whose the keys under the prefix are.
func (s *Store) isOwnStore() clientv3.Cmp {
	return clientv3.Compare(clientv3.Value(s.keys.storeID()), "=", s.ID())
}

// errRecorded has the outbox read anew.
var errRecorded = errors.New("the node's record was written anew")

func (s *Store) wroteRecord(value []byte) bool {
	var n NodeInfo
	return json.Unmarshal(value, &n) == nil && n.Instance == s.instance
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

// unregister takes the record away. A node that has a copy may answer requests from
// it when it is started again and finds no etcd, so that it leaves word of itself for as
// long as its record would have stayed.
func (s *Store) unregister(ctx context.Context) {
	r := &s.self
	if r.recorded == 0 || s.isTaken.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	key := s.keys.node(s.opts.Node)
	info := s.info()
	info.Stopped = true
	last, err := json.Marshal(info)
	ops := []clientv3.Op{clientv3.OpDelete(key)}
	if s.replica != nil {
		ops = append(ops, clientv3.OpPut(s.keys.stopped(s.opts.Node), string(last), clientv3.WithLease(r.recorded)))
	}
	if err == nil {
		_, err = s.etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", r.last)).Then(ops...).Commit()
	}
	if err == nil && s.replica == nil {
		_, err = s.etcd.Revoke(ctx, r.recorded)
	}
	if err != nil {
		s.log.Info("the node could not take its record out of etcd, which does it by itself later", "error", err)
	}
}

// censusLimit is how many records a node reads to see whether it comes first.
const censusLimit = 2

// census counts the nodes, and finds out whether this one comes first and whether
// its record is as it left it.
func (s *Store) census(ctx context.Context) error {
	r := &s.self
	own := s.keys.node(s.opts.Node)
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.etcd.Txn(ctx).Then(
			clientv3.OpGet(s.keys.nodes(), clientv3.WithPrefix(), clientv3.WithCountOnly()),
			clientv3.OpGet(s.keys.nodes(), clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(censusLimit)),
			clientv3.OpGet(own),
		).Commit()
	})
	if err != nil {
		return err
	}
	kvs := got.Responses[2].GetResponseRange().Kvs
	if len(kvs) == 1 && kvs[0].ModRevision > r.last && !s.wroteRecord(kvs[0].Value) {
		s.taken()
		return errTaken
	}
	if len(kvs) != 1 || kvs[0].ModRevision != r.last {
		r.recorded = 0 // it was removed, or etcd was restored
		return errors.New("the node's record is not as it was left; it is written again")
	}
	keys := got.Responses[1].GetResponseRange().Kvs
	s.self.mu.Lock()
	defer s.self.mu.Unlock()
	s.self.nodes = int(got.Responses[0].GetResponseRange().Count)
	s.self.first = len(keys) > 0 && string(keys[0].Key) == own
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

// readNodes returns the records of all nodes, those that stopped included, and the
// revision of the last change of data.
func (s *Store) readNodes(ctx context.Context) (nodes []NodeInfo, revision int64, err error) {
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.etcd.Txn(ctx).Then(clientv3.OpGet(s.keys.head()), clientv3.OpGet(s.keys.nodes(), clientv3.WithPrefix()),
			clientv3.OpGet(s.keys.allStopped(), clientv3.WithPrefix())).Commit()
	})
	if err != nil {
		return nil, 0, s.failed("read the records of the nodes", err)
	}
	if head := got.Responses[0].GetResponseRange().Kvs; len(head) > 0 {
		revision = head[0].ModRevision
	}
	for i, prefix := range []string{s.keys.nodes(), s.keys.allStopped()} {
		for _, kv := range got.Responses[i+1].GetResponseRange().Kvs {
			n, err := parseNode(strings.TrimPrefix(string(kv.Key), prefix), kv.Value)
			if err != nil {
				return nil, 0, err
			}
			nodes = append(nodes, n)
		}
	}
	return nodes, revision, nil
}

// parseNode reads the record of the node of a name.
func parseNode(name string, value []byte) (n NodeInfo, err error) {
	if err := json.Unmarshal(value, &n); err != nil || n.Node != name || !ValidNode(name) {
		return NodeInfo{}, errKey
	}
	return n, nil
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
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.etcd.Txn(ctx).If(s.isOwnStore()).Then(clientv3.OpPut(s.keys.call(), ""), clientv3.OpPut(s.keys.head(), s.nextNonce())).Commit()
	})
	if err == nil && !got.Succeeded {
		err = errOtherStore
	}
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
		if !nodes[i].Stopped {
			living[nodes[i].Node] = true
		}
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
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return s.etcd.Get(ctx, all, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	})
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
