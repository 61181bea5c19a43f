package etcdstore

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"tokenward/tokenstore"
)

const (
	leastBlock    = 32
	greatestBlock = 4096
	// busyBlock: a block that lasts for less was too small.
	busyBlock = 10 * time.Second
)

// idBlock is the ids that the node may still give out. What is left of it is lost
// with the process.
type idBlock struct {
	store *Store

	mu         sync.Mutex // held while a block is fetched: others need it too
	next, last tokenstore.ID
	size       uint64
	fetched    time.Time
}

// take returns an id that no node gave out before.
func (b *idBlock) take(ctx context.Context) (tokenstore.ID, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == 0 || b.next > b.last {
		if err := b.fetch(ctx); err != nil {
			return 0, err
		}
	}
	b.next++
	return b.next - 1, nil
}

// drop has the next id come from a new block.
func (b *idBlock) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next = 0
}

// greatestID returns the greatest id that this node's copy ever had.
func (s *Store) greatestID() (tokenstore.ID, error) {
	if s.replica == nil {
		return 0, nil
	}
	id, _, err := s.replica.Position()
	return id, err
}

// fetch takes the next block for this node. One that was taken without the node's
// knowing is lost.
func (b *idBlock) fetch(ctx context.Context) error {
	now := time.Now()
	switch {
	case b.size == 0 || now.Sub(b.fetched) > busyBlock:
		b.size = leastBlock
	default:
		b.size = min(2*b.size, greatestBlock)
	}
	key := b.store.keys.ids()
	for {
		got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return b.store.etcd.Get(ctx, key) })
		if err != nil {
			return b.store.failed("take ids for new tokens", err)
		}
		first, revision := uint64(1), int64(0)
		if len(got.Kvs) > 0 {
			revision = got.Kvs[0].ModRevision
			if first, err = strconv.ParseUint(string(got.Kvs[0].Value), 10, 64); err != nil || first == 0 {
				return errKey
			}
		}
		// After a restore of etcd, it gives out again what this node knows as given.
		known, err := b.store.greatestID()
		if err != nil {
			return err
		}
		first = max(first, uint64(max(known, b.last))+1)
		last := first + b.size - 1
		if _, ok := tokenstore.ParseID(strconv.FormatUint(last, 10)); !ok {
			return errors.New("the store has given out every id there is")
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		done, err := b.store.etcd.Txn(call).If(
			clientv3.Compare(clientv3.ModRevision(key), "=", revision),
			b.store.isOwnStore(),
		).Then(clientv3.OpPut(key, strconv.FormatUint(last+1, 10))).Else(clientv3.OpGet(b.store.keys.storeID())).Commit()
		cancel()
		if err == nil && done.Succeeded {
			b.next, b.last, b.fetched = tokenstore.ID(first), tokenstore.ID(last), now
			return nil
		}
		if err == nil { // another node was faster, or there is another store
			if kvs := done.Responses[0].GetResponseRange().Kvs; len(kvs) != 1 || string(kvs[0].Value) != b.store.ID() {
				return errOtherStore
			}
		}
		if err != nil && neverMade(err) {
			return b.store.failed("take ids for new tokens", err)
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return b.store.failed("take ids for new tokens", err)
		}
	}
}
