package etcdstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"tokenward/tokenstore"
)

// ErrMigrating says that a store is being copied to the prefix, and is not whole.
var ErrMigrating = errors.New("a token store is being copied into etcd under this prefix, and is not whole yet: run the same `tokenward migrate --to etcd` again, which goes on where it was stopped")

var errOvertaken = errors.New("another `tokenward migrate` has begun to copy to this prefix: let only one run")

// migration is the value of the key that stands while a store is being copied.
// Whoever writes does so only while it is the last that put the key.
type migration struct {
	Store string    `json:"store"` // the ID
	Run   string    `json:"run"`   // which run of the program put the key
	At    time.Time `json:"at"`
}

// Import says what is copied into etcd.
type Import struct {
	ID string // of the store, which it keeps
	// Entries yields all that is copied. It is asked for more than once, and has to
	// yield the same.
	Entries func(ctx context.Context) iter.Seq2[tokenstore.Entry, error]
	// Ahead leaves the copy unfinished, so that no node can start on it: more is to
	// come from the same store.
	Ahead bool
	// Report is told how far it is, often; nil: nobody is.
	Report func(Copying)
}

// Copying says how far a copy is.
type Copying struct {
	Verifying     bool   // all is written, and is being read back
	Seen, Written uint64 // entries looked at, and those that had to be written
	Tally         *tokenstore.Tally
}

const (
	// importBytes and importOps bound one transaction of an import; importAhead is
	// how many are on their way at once. etcd keeps the last 10,000 in memory, so
	// large ones would cost it gigabytes.
	importBytes = 128 << 10
	importOps   = 120
	importAhead = 16
	// reportEvery is after how many entries progress is reported.
	reportEvery = 1000
	// importPatience is for how long one transaction is tried.
	importPatience = time.Minute
)

// Import makes what is under the prefix the same as what it is given, and then a
// store that nodes can follow. The prefix must be empty, or have an unfinished
// import of the same store, which goes on: only what differs is written. At the end
// everything is read back and compared.
//
// The order is: the key "migration" is put; then what differs, in transactions that
// rest on it; everything is compared; and in one transaction the keys that make it a
// store are put and "migration" goes. What was begun can be stopped at any point.
func (c *Client) Import(ctx context.Context, i Import) (*tokenstore.Tally, error) {
	if err := c.checkVersions(ctx); err != nil {
		return nil, err
	}
	if i.Report == nil {
		i.Report = func(Copying) {}
	}
	claim, err := c.claim(ctx, i.ID)
	if err != nil {
		return nil, err
	}
	w := importing{c: c, Import: &i, claim: claim}
	if err := w.write(ctx); err != nil {
		return nil, fmt.Errorf("copy the store into etcd: %w", err)
	}
	tally, err := w.verify(ctx)
	if err != nil {
		return nil, fmt.Errorf("read back what was copied into etcd: %w", err)
	}
	if i.Ahead {
		return tally, nil
	}
	return tally, w.finish(ctx)
}

// claim makes this run the one that may write, and returns the revision that says so.
func (c *Client) claim(ctx context.Context, id string) (revision int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, changePatience)
	defer cancel()
	got, err := c.etcd.Txn(ctx).Then(
		clientv3.OpGet(c.keys.schema()), clientv3.OpGet(c.keys.storeID()), clientv3.OpGet(c.keys.migration()),
		clientv3.OpGet(string(c.keys), clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly()),
	).Commit()
	if err != nil {
		return 0, c.failed("look what is under the prefix", err)
	}
	schema, store, begun, first := got.Responses[0].GetResponseRange().Kvs, got.Responses[1].GetResponseRange().Kvs,
		got.Responses[2].GetResponseRange().Kvs, got.Responses[3].GetResponseRange().Kvs
	var before int64
	switch {
	case len(schema) > 0 && len(store) > 0 && string(store[0].Value) == id:
		return 0, fmt.Errorf("%w, and it is this one: it was copied before, and nodes may have changed it since", ErrExists)
	case len(schema) > 0 || len(store) > 0:
		return 0, fmt.Errorf("%w, another one than this: name another prefix in tokenstore.etcd.prefix", ErrExists)
	case len(begun) > 0:
		var m migration
		if err := json.Unmarshal(begun[0].Value, &m); err != nil {
			return 0, errKey
		}
		if m.Store != id {
			return 0, fmt.Errorf("an unfinished copy of another token store (%s) is under the prefix: finish that one, or remove it with `etcdctl del --prefix %s`", m.Store, c.keys)
		}
		before = begun[0].ModRevision
	case len(first) > 0:
		return 0, fmt.Errorf("there is something else under the prefix, such as %q: name an empty one in tokenstore.etcd.prefix", first[0].Key)
	}
	value, err := json.Marshal(migration{id, c.opts.Node, c.opts.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return 0, err
	}
	done, err := c.etcd.Txn(ctx).If(
		clientv3.Compare(clientv3.ModRevision(c.keys.migration()), "=", before),
		clientv3.Compare(clientv3.CreateRevision(c.keys.schema()), "=", 0),
	).Then(clientv3.OpPut(c.keys.migration(), string(value))).Commit()
	switch {
	case err != nil:
		return 0, c.failed("begin to copy", err)
	case !done.Succeeded:
		return 0, errOvertaken
	}
	return done.Header.Revision, nil
}

// importing is one run of an import.
type importing struct {
	*Import
	c     *Client
	claim int64 // the revision of the key "migration" while this run may write

	seen, written uint64
	batch         []clientv3.Op
	bytes         int
}

// write puts what is missing and what differs, and deletes what is too much. Nobody
// else writes, and what is written lies behind what is read.
func (w *importing) write(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(importAhead)
	there := contents{c: w.c}
	err := w.differences(ctx, &there, func(ops []clientv3.Op) {
		group.Go(func() error { return w.commit(ctx, ops) })
	})
	return errors.Join(group.Wait(), err)
}

func (w *importing) differences(ctx context.Context, there *contents, send func([]clientv3.Op)) error {
	for both, err := range tokenstore.Compare(w.Entries(ctx), there.entries(ctx)) {
		if err != nil {
			return err
		}
		if w.seen++; w.seen%reportEvery == 0 {
			w.Report(Copying{Seen: w.seen, Written: w.written})
		}
		if both.Same() {
			continue
		}
		ops, err := w.ops(&both)
		if err != nil {
			return err
		}
		w.written++
		for i := range ops {
			w.batch = append(w.batch, ops[i])
			w.bytes += len(ops[i].KeyBytes()) + len(ops[i].ValueBytes()) + 32
		}
		if len(w.batch) >= importOps || w.bytes >= importBytes {
			send(w.batch)
			w.batch, w.bytes = nil, 0
		}
	}
	if len(w.batch) > 0 {
		send(w.batch)
	}
	return nil
}

// ops turns one difference into what makes it none.
func (w *importing) ops(both *tokenstore.Both) (ops []clientv3.Op, err error) {
	if both.Right != nil {
		old, err := w.c.keys.pairs(both.Right)
		if err != nil {
			return nil, err
		}
		for _, p := range old {
			ops = append(ops, clientv3.OpDelete(p.key))
		}
	}
	if both.Left == nil {
		return ops, nil
	}
	wanted, err := w.c.keys.pairs(both.Left)
	if err != nil {
		return nil, err
	}
	// etcd refuses to delete and to put a key in one transaction.
	kept := ops[:0]
	for i := range ops {
		if !hasKey(wanted, string(ops[i].KeyBytes())) {
			kept = append(kept, ops[i])
		}
	}
	for _, p := range wanted {
		kept = append(kept, clientv3.OpPut(p.key, p.value))
	}
	return kept, nil
}

// commit makes a transaction, as often as it takes to know that it was made: it can
// be made twice.
func (w *importing) commit(ctx context.Context, ops []clientv3.Op) error {
	c := w.c
	ctx, cancel := context.WithTimeout(ctx, importPatience)
	defer cancel()
	mine := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(c.keys.migration()), "=", w.claim)}
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return nested(c.etcd.Txn(ctx), mine, ops, clientv3.OpGet(c.keys.migration())).Commit()
	})
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("etcd is full: raise its --quota-backend-bytes, disarm the alarm with `etcdctl alarm disarm`, and run this again: %w", err)
	case err != nil:
		return fmt.Errorf("%w: run this again, it goes on where it was stopped", c.failed("write", err))
	case !got.Succeeded:
		return errOvertaken
	}
	return nil
}

// verify reads back what is there, and that there is nothing else.
func (w *importing) verify(ctx context.Context) (*tokenstore.Tally, error) {
	there := contents{c: w.c}
	seen := uint64(0)
	counted := func(yield func(tokenstore.Entry, error) bool) {
		for e, err := range there.entries(ctx) {
			if seen++; seen%reportEvery == 0 {
				w.Report(Copying{Verifying: true, Seen: seen, Written: w.written})
			}
			if !yield(e, err) {
				return
			}
		}
	}
	tally, err := tokenstore.Verify(w.Entries(ctx), counted)
	if err != nil {
		return nil, err
	}
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return w.c.etcd.Get(ctx, string(w.c.keys), clientv3.WithPrefix(), clientv3.WithCountOnly())
	})
	if err != nil {
		return nil, w.c.failed("count the keys", err)
	}
	if want := there.keys + 1; got.Count != want { // the one more is "migration"
		return nil, fmt.Errorf("etcd has %d keys under the prefix, and %d are of the store: something else writes there; stop it, remove all with `etcdctl del --prefix %s`, and begin anew", got.Count, want, w.c.keys)
	}
	w.Report(Copying{Verifying: true, Seen: seen, Written: w.written, Tally: tally})
	return tally, nil
}

// finish makes it a store.
func (w *importing) finish(ctx context.Context) error {
	c := w.c
	ctx, cancel := context.WithTimeout(ctx, importPatience)
	defer cancel()
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return c.etcd.Txn(ctx).If(
			clientv3.Compare(clientv3.ModRevision(c.keys.migration()), "=", w.claim),
			clientv3.Compare(clientv3.CreateRevision(c.keys.schema()), "=", 0),
		).Then(
			clientv3.OpPut(c.keys.schema(), strconv.Itoa(schemaVersion)), clientv3.OpPut(c.keys.storeID(), w.ID),
			clientv3.OpPut(c.keys.head(), rand.Text()), clientv3.OpDelete(c.keys.migration()),
		).Else(clientv3.OpGet(c.keys.storeID()), clientv3.OpGet(c.keys.migration())).Commit()
	})
	if err != nil {
		return fmt.Errorf("%w: run this again, to see whether it was done", c.failed("finish the copy", err))
	}
	if !got.Succeeded {
		store, begun := got.Responses[0].GetResponseRange().Kvs, got.Responses[1].GetResponseRange().Kvs
		if len(begun) == 0 && len(store) > 0 && string(store[0].Value) == w.ID {
			return nil // an answer was lost
		}
		return errOvertaken
	}
	return nil
}

// pair is a key of etcd and its value.
type pair struct{ key, value string }

func hasKey(pairs []pair, key string) bool {
	for i := range pairs {
		if pairs[i].key == key {
			return true
		}
	}
	return false
}

var errEntry = errors.New("an entry of the store is damaged")

// pairs returns where an entry is kept.
func (k keyspace) pairs(e *tokenstore.Entry) ([]pair, error) {
	id := tokenstore.ID(numberOf(e.Key))
	value := string(e.Value)
	switch e.Kind { //nolint:exhaustive // EntryKinds is none
	case tokenstore.EntryLastID:
		return []pair{{k.ids(), strconv.FormatUint(numberOf(e.Value)+1, 10)}}, nil
	case tokenstore.EntryLastSeq:
		return []pair{{k.seq(), strconv.FormatUint(numberOf(e.Value), 10)}}, nil
	case tokenstore.EntryPepper:
		if len(e.Key) == len(tokenstore.PepperID{}) {
			return []pair{{k.pepper(tokenstore.PepperID(e.Key)), ""}}, nil
		}
	case tokenstore.EntryPrefix:
		return []pair{{k.prefix(string(e.Key)), ""}}, nil
	case tokenstore.EntryForeign:
		if len(e.Key) == 1+len(tokenstore.PepperID{}) {
			return []pair{{k.foreign(tokenstore.Foreign{Scheme: tokenstore.Scheme(e.Key[0]), Key: tokenstore.PepperID(e.Key[1:])}), ""}}, nil
		}
	case tokenstore.EntryDigest:
		if len(e.Key) != len(tokenstore.Digest{}) || len(e.Value) != 9 {
			break
		}
		d, owner := tokenstore.Digest(e.Key), hexID(tokenstore.ID(numberOf(e.Value[:8])))
		pairs := []pair{{k.digest(d), owner}}
		if e.Value[8] != 0 {
			pairs = append(pairs, pair{k.retired(d), owner})
		}
		return pairs, nil
	case tokenstore.EntryRecord:
		return []pair{{k.token(id), value}}, nil
	case tokenstore.EntryUsageName:
		return []pair{{k.usageName(numberOf(e.Key)), value}}, nil
	case tokenstore.EntryUsage:
		return []pair{{k.usage(id), value}}, nil
	case tokenstore.EntryNotice:
		return []pair{{k.notice(id), value}}, nil
	case tokenstore.EntryCounter:
		return []pair{{k.count(e.Key), value}}, nil
	case tokenstore.EntryAnswer:
		if len(e.Key) == len(tokenstore.Digest{}) && len(e.Value) >= 8 {
			return []pair{{k.kept(keptAnswer{numberOf(e.Value[:8]), tokenstore.Digest(e.Key)}), value[8:]}}, nil
		}
	}
	return nil, errEntry
}

// numberOf reads a number of an entry; 0 where there is none.
func numberOf(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}
