package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"tokenward/tokenstore"
)

// laneCount is how many changes of one node are on their way at once.
const laneCount = 8

// errTaken says that another process writes under this node's name.
var errTaken = errors.New("another process has taken this node's name in the cluster: stop one of the two, or name them apart with tokenstore.etcd.node")

// lane is a key that every transaction through it compares and puts. It is used by
// one goroutine at a time.
type lane struct {
	store    *Store
	key      string
	revision int64 // of the key, as of the last transaction through the lane; 0: not known

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

// take makes the lane this process's, whatever an earlier one of the node's name
// left on its way.
func (l *lane) take(ctx context.Context) error {
	put, err := l.store.etcd.Put(ctx, l.key, l.store.nextNonce())
	if err != nil {
		return err
	}
	l.revision, l.unsettled, l.fences = put.Header.Revision, false, nil
	return nil
}

// commit makes a transaction if what it compares still holds; made is false when it
// does not. An error that wraps ErrOutcomeUnknown leaves open whether it was, or
// will be, made; after any other it was not and never will be.
func (l *lane) commit(ctx context.Context, cmps []clientv3.Cmp, ops []clientv3.Op) (outcome, error) {
	if err := l.ready(ctx); err != nil {
		return outcome{}, err
	}
	nonce := l.store.nextNonce()
	cmps = append([]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(l.key), "=", l.revision)}, cmps...)
	ops = append(ops, clientv3.OpPut(l.key, nonce))
	call, cancel := context.WithTimeout(ctx, callTimeout)
	got, err := nested(l.store.etcd.Txn(call), cmps, ops, clientv3.OpGet(l.key)).Commit()
	cancel()
	switch {
	case err == nil && got.Succeeded:
		l.revision = got.Header.Revision
		return outcome{true, got.Header.Revision}, nil
	case err == nil:
		if kvs := got.Responses[0].GetResponseRange().Kvs; len(kvs) != 1 || kvs[0].ModRevision != l.revision {
			l.store.taken()
			return outcome{}, errTaken
		}
		return outcome{}, nil
	case neverMade(err):
		return outcome{}, l.store.failed("commit a change", err)
	}
	l.unsettled, l.change, l.fences = true, nonce, nil
	o, serr := l.settle(ctx)
	if serr != nil {
		return outcome{}, fmt.Errorf("%w: %w", tokenstore.ErrOutcomeUnknown, l.store.failed("commit a change", errors.Join(err, serr)))
	}
	if !o.made {
		return outcome{}, l.store.failed("commit a change", err)
	}
	return o, nil
}

// ready makes sure that nothing is on its way on the lane.
func (l *lane) ready(ctx context.Context) error {
	if l.unsettled {
		_, err := l.settle(ctx)
		return err
	}
	if l.revision == 0 {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		if err := l.take(call); err != nil {
			return l.store.failed("begin to write", err)
		}
	}
	return nil
}

// settle finds out whether the last change was made: by a transaction that takes
// its ground away if it was not. It tries until ctx ends.
func (l *lane) settle(ctx context.Context) (outcome, error) {
	pause := 20 * time.Millisecond
	for {
		o, err := l.fence(ctx)
		if err == nil || errors.Is(err, errTaken) {
			return o, err
		}
		if serr := sleep(ctx, pause); serr != nil {
			return outcome{}, err
		}
		pause = min(2*pause, time.Second)
	}
}

func (l *lane) fence(ctx context.Context) (outcome, error) {
	nonce := l.store.nextNonce()
	l.fences = append(l.fences, nonce)
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	got, err := l.store.etcd.Txn(call).If(clientv3.Compare(clientv3.ModRevision(l.key), "=", l.revision)).
		Then(clientv3.OpPut(l.key, nonce)).Else(clientv3.OpGet(l.key)).Commit()
	if err != nil {
		return outcome{}, err
	}
	if got.Succeeded {
		l.revision, l.unsettled, l.fences = got.Header.Revision, false, nil
		return outcome{}, nil
	}
	kvs := got.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		l.store.taken()
		return outcome{}, errTaken
	}
	o := outcome{made: string(kvs[0].Value) == l.change, revision: kvs[0].ModRevision}
	for _, f := range l.fences {
		if string(kvs[0].Value) == f {
			o.revision = 0
			l.revision, l.unsettled, l.fences = kvs[0].ModRevision, false, nil
			return o, nil
		}
	}
	if !o.made {
		l.store.taken()
		return outcome{}, errTaken
	}
	l.revision, l.unsettled, l.fences = kvs[0].ModRevision, false, nil
	return o, nil
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
func nested(txn clientv3.Txn, cmps []clientv3.Cmp, ops []clientv3.Op, otherwise clientv3.Op) clientv3.Txn {
	if len(ops) > txnOps {
		ops = grouped(len(cmps), ops)
	}
	return txn.If(cmps...).Then(ops...).Else(otherwise)
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
