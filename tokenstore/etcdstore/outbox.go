package etcdstore

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"tokenward/tokenstore"
)

// Event is an audit event that waits in the node's outbox. Numbers rise in the
// order of the changes, and are never used again in one etcd.
type Event struct {
	Seq     uint64
	Payload []byte
}

// seqOf numbers the events of one change: the revision that made them, and their
// place among at most [tokenstore.MaxOutbox] of it.
func seqOf(revision int64, i int) uint64 { return uint64(revision)<<14 | uint64(i) } //nolint:gosec // both are positive and small

// RevisionOf returns the revision of etcd that made the event of a number.
func RevisionOf(seq uint64) int64 { return int64(seq >> 14) } //nolint:gosec // 50 bits

// outboxView is what this node knows of its own outbox.
type outboxView struct {
	wake chan struct{}

	mu      sync.Mutex // guards what follows; held for moments
	epoch   uint64     // of the node's record, as of which all this holds
	changes []outboxChange
	done    uint64 // events up to this number are in the audit log
	count   int    // of events not done
}

// outboxChange is the events of one change.
type outboxChange struct {
	key      string
	revision int64
	events   [][]byte
}

func (o *outboxView) waiting() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count
}

// after counts the events whose numbers are greater than done.
func (c *outboxChange) after(done uint64) (n int) {
	for i := range c.events {
		if seqOf(c.revision, i) > done {
			n++
		}
	}
	return n
}

func readOutboxChange(kv *mvccpb.KeyValue) (outboxChange, error) {
	events, err := unpackEvents(kv.Value)
	return outboxChange{string(kv.Key), kv.CreateRevision, events}, err
}

// add notes the events of one change, unless it is known.
func (o *outboxView) add(kv *mvccpb.KeyValue) error {
	c, err := readOutboxChange(kv)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := len(o.changes); n > 0 && o.changes[n-1].revision >= c.revision {
		return nil
	}
	o.changes = append(o.changes, c)
	o.count += c.after(o.done)
	o.wakeUp()
	return nil
}

func (o *outboxView) wakeUp() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// drop forgets changes whose keys were removed, by this node or by one that took
// them over.
func (o *outboxView) drop(keys map[string]bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.changes = slices.DeleteFunc(o.changes, func(c outboxChange) bool { return keys[c.key] })
	o.countLocked()
}

func (o *outboxView) countLocked() {
	o.count = 0
	for _, c := range o.changes {
		o.count += c.after(o.done)
	}
}

// begin starts anew with what etcd says, in the order of revisions. What is known
// already is there all the while.
func (o *outboxView) begin(kvs []*mvccpb.KeyValue, done, epoch uint64) error {
	changes := make([]outboxChange, len(kvs))
	for i, kv := range kvs {
		var err error
		if changes[i], err = readOutboxChange(kv); err != nil {
			return err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.changes, o.done, o.epoch = changes, done, epoch
	o.countLocked()
	o.wakeUp()
	return nil
}

// ErrOutboxUnknown says that this node cannot tell which of its events wait: it has
// not read its outbox since it was last seen by the others, which may have taken over
// what was there. [Store.Wake] receives once it can.
var ErrOutboxUnknown = errors.New("this node does not know yet which of its audit events wait: etcd has to hear from it first; see that etcd runs and can be reached")

// Pending returns the oldest waiting events of this node, at most limit of them, or
// ErrOutboxUnknown.
func (s *Store) Pending(limit int) ([]Event, error) {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	r := &s.self
	if s.isTaken.Load() || !r.ever.Load() || r.unvouched() > s.opts.MaxStaleness || s.out.epoch != r.epoch.Load() {
		return nil, ErrOutboxUnknown
	}
	var events []Event
	for _, c := range s.out.changes {
		for i, payload := range c.events {
			seq := seqOf(c.revision, i)
			if seq <= s.out.done {
				continue
			}
			if len(events) == limit {
				return events, nil
			}
			events = append(events, Event{seq, bytes.Clone(payload)})
		}
	}
	return events, nil
}

// Wake receives when events may wait.
func (s *Store) Wake() <-chan struct{} { return s.out.wake }

// Done forgets the events up to and including seq, which the audit log has on its
// disk. After an error Pending returns them once more, and so it does after a
// restart between the two.
func (s *Store) Done(seq uint64) error {
	s.out.mu.Lock()
	var over []string
	var at *outboxChange
	known := seq <= s.out.done
	for i := range s.out.changes {
		c := &s.out.changes[i]
		if last := seqOf(c.revision, len(c.events)-1); len(c.events) == 0 || last <= seq {
			over = append(over, c.key)
		}
		if c.revision == RevisionOf(seq) {
			at = new(*c)
		}
	}
	s.out.mu.Unlock()
	switch {
	case at == nil && known:
		return nil
	case at == nil:
		return errEventGone
	}
	ctx, cancel := context.WithTimeout(context.Background(), changePatience)
	defer cancel()
	done, text := s.keys.done(s.opts.Node), strconv.FormatUint(seq, 10)
	ops := []clientv3.Op{clientv3.OpPut(done, text)}
	for _, key := range over {
		ops = append(ops, clientv3.OpDelete(key))
	}
	// Numbers of another history of etcd would pass over events of this one.
	is := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(at.key), "=", at.revision)}
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return nested(s.etcd.Txn(ctx), is, ops, clientv3.OpGet(done)).Commit()
	})
	if err != nil {
		return s.failed("empty the outbox", err)
	}
	if !got.Succeeded { // unless an answer was lost
		if kvs := got.Responses[0].GetResponseRange().Kvs; len(kvs) != 1 || string(kvs[0].Value) != text {
			s.emitting.restart(errEventGone)
			return errEventGone
		}
	}
	s.out.forget(seq)
	return nil
}

var errEventGone = errors.New("an event that the audit log has is not in the node's outbox any more: etcd was restored, or another node took the event over")

func (o *outboxView) forget(seq uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done = max(o.done, seq)
	o.changes = slices.DeleteFunc(o.changes, func(c outboxChange) bool {
		return len(c.events) == 0 || seqOf(c.revision, len(c.events)-1) <= o.done
	})
	o.countLocked()
}

// followOutbox keeps the view of the node's own outbox, until ctx ends.
func (s *Store) followOutbox(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-s.self.there: // before, the node counts as gone
	}
	s.persist(ctx, "watch the node's outbox", func(ctx context.Context) error {
		prefix := s.keys.outbox(s.opts.Node)
		asked := s.emitting.asked()
		epoch, connected := s.self.epoch.Load(), s.connections.Load()
		call, cancel := context.WithTimeout(ctx, changePatience)
		got, err := retried(call, func(ctx context.Context) (*clientv3.TxnResponse, error) {
			return s.etcd.Txn(ctx).Then(
				clientv3.OpGet(prefix, clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend)),
				clientv3.OpGet(s.keys.done(s.opts.Node)),
			).Commit()
		})
		cancel()
		if err != nil {
			return err
		}
		var done uint64
		if kvs := got.Responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
			if done, err = strconv.ParseUint(string(kvs[0].Value), 10, 64); err != nil {
				return errKey
			}
		}
		if err := s.out.begin(got.Responses[0].GetResponseRange().Kvs, done, epoch); err != nil {
			return err
		}
		s.events.reset()
		s.events.reach(got.Header.Revision)
		return s.watch(ctx, watching{
			restarter: &s.emitting, asked: asked, connected: connected,
			check:  func(context.Context) error { return errReconnected },
			prefix: prefix, from: got.Header.Revision + 1, progress: &s.events,
			apply: func(_ context.Context, events []*clientv3.Event, _ int64) error { return s.out.apply(events) },
		})
	})
}

// errReconnected has the outbox read anew: it is short.
var errReconnected = errors.New("a connection to etcd was made anew")

func (o *outboxView) apply(events []*clientv3.Event) error {
	gone := map[string]bool{}
	for _, e := range events {
		if e.Type == clientv3.EventTypeDelete {
			gone[string(e.Kv.Key)] = true
		} else if err := o.add(e.Kv); err != nil {
			return err
		}
	}
	if len(gone) > 0 {
		o.drop(gone)
	}
	return nil
}

// adopt brings the events of nodes that are gone into this node's outbox: whoever
// reads the audit logs finds them there, with the name of the node that made them.
func (s *Store) adopt(ctx context.Context, living map[string]bool) error {
	gone, err := s.outboxesBut(ctx, living)
	if err != nil {
		return s.failed("look for events of nodes that are gone", err)
	}
	for _, node := range gone {
		if err := s.adoptFrom(ctx, node); err != nil {
			if errors.Is(err, tokenstore.ErrOutboxFull) {
				return nil // it goes on when the audit log has taken some
			}
			return err
		}
		s.log.Warn("the audit log of this node takes over the events of a node that is gone", "gone", node)
	}
	return nil
}

// outboxesBut returns the other nodes that have events and are not living. It asks
// once for each outbox, however much is in it.
func (s *Store) outboxesBut(ctx context.Context, living map[string]bool) (gone []string, err error) {
	at, end := s.keys.outboxes(), clientv3.GetPrefixRangeEnd(s.keys.outboxes())
	for {
		got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) {
			return s.etcd.Get(ctx, at, clientv3.WithRange(end), clientv3.WithLimit(1), clientv3.WithKeysOnly())
		})
		if err != nil || len(got.Kvs) == 0 {
			return gone, err
		}
		key := string(got.Kvs[0].Key)
		node, _, ok := strings.Cut(key[len(s.keys.outboxes()):], "/")
		if !ok { // not ours
			at = key + "\x00"
			continue
		}
		if !living[node] && node != s.opts.Node {
			gone = append(gone, node)
		}
		at = clientv3.GetPrefixRangeEnd(s.keys.outbox(node))
	}
}

// adoptPage is how many of a node's changes are looked at at once.
const adoptPage = 1000

// adoptFrom takes what waits in the outbox of one node, in its order, unless that
// comes back.
func (s *Store) adoptFrom(ctx context.Context, node string) error {
	for {
		got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) {
			return s.etcd.Get(ctx, s.keys.outbox(node), clientv3.WithPrefix(), clientv3.WithLimit(adoptPage),
				clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
		})
		if err != nil {
			return s.failed("read the events of a node that is gone", err)
		}
		for _, kv := range got.Kvs {
			if back, err := s.adoptChange(ctx, node, kv); back || err != nil {
				return err
			}
		}
		if !got.More {
			return nil
		}
	}
}

// adoptChange takes the events of one change. back says that the node is there again.
func (s *Store) adoptChange(ctx context.Context, node string, kv *mvccpb.KeyValue) (back bool, err error) {
	err = s.write(ctx, func(w *writing) error {
		here, err := w.get(s.keys.node(node))
		if back = here != nil; err != nil || back {
			return err
		}
		value, err := w.get(string(kv.Key))
		if err != nil || value == nil {
			return err
		}
		text, err := w.get(s.keys.done(node))
		if err != nil {
			return err
		}
		events, err := unpackEvents(value)
		if err != nil {
			return err
		}
		done, _ := strconv.ParseUint(string(text), 10, 64) // none: nothing is in its log
		for i, e := range events {
			if seqOf(kv.CreateRevision, i) > done {
				w.staging().Emit(e)
			}
		}
		w.delete(string(kv.Key))
		return nil
	})
	return back, err
}
