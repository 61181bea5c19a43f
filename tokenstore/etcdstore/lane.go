package etcdstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"tokenward/tokenstore"
)

// laneCount is how many changes of one node are on their way at once.
const laneCount = 8

// errTaken says that another process writes under this node's name.
var errTaken = errors.New("another process has taken this node's name in the cluster: stop one of the two, or name them apart with tokenstore.etcd.node")

// errGroundGone says that etcd no longer has what would tell what became of a
// change, which cannot be made any more: the node was away for so long that others
// forgot it, or etcd was restored.
var errGroundGone = errors.New("what the node left in etcd was removed meanwhile")

// claim is a key that says which process writes under the node's name: the one that
// put it last. Every transaction through a lane compares it, so that whatever an
// earlier process of the name left on its way is not made any more.
type claim struct {
	store *Store
	key   string

	mu       sync.Mutex // guards what follows; held while the key is put
	revision int64      // of the key; 0: not put, or to be put again
	last     int64      // what revision was last, ever
}

// hold returns the revision of the claim, which is made if it is not there. Should
// another process have claimed the name after this one, it returns errTaken.
func (c *claim) hold(ctx context.Context) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.revision != 0 {
		return c.revision, nil
	}
	s := c.store
	cmps := []clientv3.Cmp{s.isOwnStore()}
	if c.last != 0 {
		// It was removed, or is older than it was, since etcd was restored.
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(c.key), "<", c.last+1))
	}
	got, err := s.etcd.Txn(ctx).If(cmps...).Then(clientv3.OpPut(c.key, s.nextNonce())).
		Else(clientv3.OpGet(c.key), clientv3.OpGet(s.keys.storeID())).Commit()
	switch {
	case err != nil:
		return 0, err
	case got.Succeeded:
		c.revision = got.Header.Revision
	default:
		here, id := got.Responses[0].GetResponseRange().Kvs, got.Responses[1].GetResponseRange().Kvs
		if len(id) != 1 || string(id[0].Value) != s.ID() {
			return 0, errOtherStore
		}
		if len(here) != 1 || !s.isOurs(here[0].Value) {
			s.taken()
			return 0, errTaken
		}
		c.revision = here[0].ModRevision // an answer was lost
	}
	c.last = c.revision
	return c.revision, nil
}

// drop has the claim made anew if it still is of that revision.
func (c *claim) drop(revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.revision == revision {
		c.revision = 0
	}
}

// lane is a key that every transaction through it compares and puts. It is used by
// one goroutine at a time.
type lane struct {
	store    *Store
	key      string
	revision int64 // of the key, as of the last transaction through the lane; 0: not known
	claim    int64 // the claim that the lane was begun under

	// While it is not known whether the last one was made: what it and those that
	// were to find out would have left in the key.
	unsettled bool
	change    string
	fences    []string
}

// outcome is what became of a transaction.
type outcome struct {
	made     bool
	revision int64 // of the store, where it was made
}

// begin puts the lane's key, whatever was on its way.
func (l *lane) begin(ctx context.Context) error {
	held, err := l.store.claim.hold(ctx)
	if err != nil {
		return err
	}
	key := l.store.claim.key
	got, err := l.store.etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", held)).
		Then(clientv3.OpPut(l.key, l.store.nextNonce())).Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return err
	}
	if !got.Succeeded {
		return l.lost(held, got.Responses[0].GetResponseRange().Kvs)
	}
	l.revision, l.claim = got.Header.Revision, held
	l.settled()
	return nil
}

func (l *lane) settled() { l.unsettled, l.fences = false, nil }

// lost tells why the claim of a revision does not hold, as etcd shows its key.
func (l *lane) lost(held int64, kvs []*mvccpb.KeyValue) error {
	if len(kvs) == 1 && kvs[0].ModRevision > held && !l.store.isOurs(kvs[0].Value) {
		l.store.taken()
		return errTaken
	}
	l.store.claim.drop(held)
	return errGroundGone
}

// ground is what every transaction through the lane rests on.
func (l *lane) ground() []clientv3.Cmp {
	return []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(l.key), "=", l.revision),
		clientv3.Compare(clientv3.ModRevision(l.store.claim.key), "=", l.claim),
	}
}

// groundCompares is how many comparisons ground returns.
const groundCompares = 2

// look reads what a refused transaction rested on.
func (l *lane) look() []clientv3.Op {
	return []clientv3.Op{clientv3.OpGet(l.key), clientv3.OpGet(l.store.claim.key)}
}

// commit makes a transaction if what it compares still holds; made is false when it
// does not. An error that wraps ErrOutcomeUnknown leaves open whether it was, or
// will be, made; after any other it was not and never will be.
func (l *lane) commit(ctx context.Context, cmps []clientv3.Cmp, ops []clientv3.Op) (outcome, error) {
	if err := l.ready(ctx); err != nil {
		return outcome{}, err
	}
	nonce := l.store.nextNonce()
	ops = append(ops, clientv3.OpPut(l.key, nonce))
	call, cancel := context.WithTimeout(ctx, commitTimeout+time.Duration(len(ops))*time.Millisecond)
	got, err := nested(l.store.etcd.Txn(call), append(l.ground(), cmps...), ops, l.look()...).Commit()
	cancel()
	switch {
	case err == nil && got.Succeeded:
		l.revision = got.Header.Revision
		return outcome{true, got.Header.Revision}, nil
	case err == nil:
		return outcome{}, l.refused(got)
	case neverMade(err):
		return outcome{}, l.store.failed("commit a change", err)
	}
	l.unsettled, l.change, l.fences = true, nonce, nil
	o, serr := l.settle(ctx)
	if serr != nil {
		return outcome{}, fmt.Errorf("%w: %w", tokenstore.ErrOutcomeUnknown, l.store.failed("commit a change", errors.Join(err, serr)))
	}
	if !o.made {
		return outcome{}, fmt.Errorf("%w: %w", errNotMade, l.store.failed("commit a change", err))
	}
	return o, nil
}

// errNotMade says that etcd did not answer and that the change was not made.
var errNotMade = errors.New("the change was not made")

// refused returns an error when a transaction was refused since the name is
// another's. It has the lane begun anew where its ground is gone.
func (l *lane) refused(got *clientv3.TxnResponse) error {
	here, claimed := got.Responses[0].GetResponseRange().Kvs, got.Responses[1].GetResponseRange().Kvs
	if len(claimed) != 1 || claimed[0].ModRevision != l.claim {
		l.revision = 0
		if err := l.lost(l.claim, claimed); errors.Is(err, errTaken) {
			return err
		}
		return nil
	}
	if len(here) != 1 || here[0].ModRevision != l.revision {
		l.revision = 0
	}
	return nil
}

// ready makes sure that nothing is on its way on the lane.
func (l *lane) ready(ctx context.Context) error {
	if l.unsettled {
		if _, err := l.settle(ctx); err != nil && !errors.Is(err, errGroundGone) {
			return err
		}
	}
	for l.revision == 0 {
		_, err := retried(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, l.begin(ctx) })
		switch {
		case errors.Is(err, errGroundGone):
			continue // the claim is made anew
		case errors.Is(err, errTaken):
			return err
		case err != nil:
			return l.store.failed("begin to write", err)
		}
	}
	return nil
}

// settle finds out whether the last change was made: by a transaction that takes
// its ground away if it was not. It tries until ctx ends. With errTaken and
// errGroundGone the change cannot be made any more, and may have been.
func (l *lane) settle(ctx context.Context) (outcome, error) {
	pause := 20 * time.Millisecond
	for try := 0; ; try++ {
		o, err := l.fence(ctx, timeoutOf(try))
		if err == nil || errors.Is(err, errTaken) || errors.Is(err, errGroundGone) {
			return o, err
		}
		if serr := sleep(ctx, pause); serr != nil {
			return outcome{}, err
		}
		pause = min(2*pause, time.Second)
	}
}

func (l *lane) fence(ctx context.Context, timeout time.Duration) (outcome, error) {
	nonce := l.store.nextNonce()
	l.fences = append(l.fences, nonce)
	call, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	got, err := l.store.etcd.Txn(call).If(l.ground()...).Then(clientv3.OpPut(l.key, nonce)).Else(l.look()...).Commit()
	if err != nil {
		return outcome{}, err
	}
	if got.Succeeded {
		l.revision = got.Header.Revision
		l.settled()
		return outcome{}, nil
	}
	// Whatever is there now, neither the change nor an earlier fence can be made.
	here := got.Responses[0].GetResponseRange().Kvs
	if len(here) == 1 {
		value, revision := string(here[0].Value), here[0].ModRevision
		made, fenced := value == l.change, slices.Contains(l.fences, value)
		if made || fenced {
			l.revision = revision
			l.settled()
			return outcome{made, revision}, nil
		}
	}
	l.revision = 0
	l.settled()
	if claimed := got.Responses[1].GetResponseRange().Kvs; len(claimed) != 1 || claimed[0].ModRevision != l.claim {
		return outcome{}, l.lost(l.claim, claimed)
	}
	return outcome{}, errGroundGone
}

// neverMade reports whether an error of etcd's says for sure that a transaction
// was refused before it could be made.
func neverMade(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.FailedPrecondition, codes.ResourceExhausted, codes.Unimplemented:
		return true
	default:
		return false
	}
}

const (
	// txnOps is how many comparisons, or operations, etcd takes in one transaction
	// by default (its --max-txn-ops), those of the transactions in it included
	// along each way down.
	txnOps = 128
	// txnCompares is how many of them comparisons may be, so that there is room for
	// many operations.
	txnCompares = 64
)

// nested makes a transaction of at most txnCompares comparisons and any number of
// operations, all of which are made if the comparisons hold: many of them are
// made by transactions in the transaction.
func nested(txn clientv3.Txn, cmps []clientv3.Cmp, ops []clientv3.Op, otherwise ...clientv3.Op) clientv3.Txn {
	if len(ops) > txnOps {
		ops = grouped(len(cmps), ops)
	}
	return txn.If(cmps...).Then(ops...).Else(otherwise...)
}

// grouped puts operations into transactions, in as few levels as it takes.
func grouped(compares int, ops []clientv3.Op) []clientv3.Op {
	for levels := 2; ; levels++ {
		top := max(compares, txnOps/levels)
		inner := (txnOps - top) / (levels - 1)
		most := top
		for range levels - 1 {
			most *= inner
		}
		if len(ops) > most {
			continue
		}
		for range levels - 1 {
			var outer []clientv3.Op
			for group := range slices.Chunk(ops, inner) {
				outer = append(outer, clientv3.OpTxn(nil, group, nil))
			}
			ops = outer
		}
		return ops
	}
}

func (s *Store) nextNonce() string {
	return s.instance + "/" + strconv.FormatUint(s.nonces.Add(1), 10)
}

// isOurs reports whether this process made the nonce.
func (s *Store) isOurs(nonce []byte) bool {
	instance, _, ok := bytes.Cut(nonce, []byte("/"))
	return ok && string(instance) == s.instance
}

// sleep waits, but not longer than ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
