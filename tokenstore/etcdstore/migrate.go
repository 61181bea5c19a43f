package etcdstore

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
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

// Snapshot is the store in etcd as of one revision.
type Snapshot struct {
	Description
	Revision int64
	Nodes    []string // that were there
	c        *Client
}

// Snapshot returns the store as it is now. etcd may forget that revision, which
// ends the reading with an error; how long it takes is the operator's setting.
func (c *Client) Snapshot(ctx context.Context) (*Snapshot, error) {
	d, err := c.Describe(ctx)
	if err != nil {
		return nil, err
	}
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return c.etcd.Get(ctx, c.keys.nodes(), clientv3.WithPrefix(), clientv3.WithKeysOnly())
	})
	if err != nil {
		return nil, c.failed("look which nodes there are", err)
	}
	s := &Snapshot{Description: d, Revision: got.Header.Revision, c: c}
	for _, kv := range got.Kvs {
		s.Nodes = append(s.Nodes, strings.TrimPrefix(string(kv.Key), c.keys.nodes()))
	}
	return s, nil
}

// Entries yields all that the store held.
func (s *Snapshot) Entries(ctx context.Context) iter.Seq2[tokenstore.Entry, error] {
	return (&contents{c: s.c, revision: s.Revision}).entries(ctx)
}

// Waiting returns the events that no audit log had, those of each node in order.
func (s *Snapshot) Waiting(ctx context.Context) (events [][]byte, err error) {
	c := s.c
	get := func(prefix string) (*clientv3.GetResponse, error) {
		return retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) {
			return c.etcd.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(s.Revision), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
		})
	}
	waiting, err := get(c.keys.outboxes())
	if err != nil {
		return nil, c.failed("read the events that wait", err)
	}
	done, err := get(c.keys.done(""))
	if err != nil {
		return nil, c.failed("read which events wait", err)
	}
	last := map[string]uint64{}
	for _, kv := range done.Kvs {
		last[strings.TrimPrefix(string(kv.Key), c.keys.done(""))], _ = strconv.ParseUint(string(kv.Value), 10, 64)
	}
	for _, kv := range waiting.Kvs {
		node, _, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), c.keys.outboxes()), "/")
		all, err := unpackEvents(kv.Value)
		if err != nil {
			return nil, err
		}
		for i, e := range all {
			if seqOf(kv.CreateRevision, i) > last[node] {
				events = append(events, e)
			}
		}
	}
	return events, nil
}

// Changed reports whether data was changed since the snapshot.
func (s *Snapshot) Changed(ctx context.Context) (bool, error) {
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return s.c.etcd.Get(ctx, s.c.keys.head()) })
	if err != nil {
		return false, s.c.failed("see whether anything was changed meanwhile", err)
	}
	return len(got.Kvs) == 0 || got.Kvs[0].ModRevision > s.Revision, nil
}

// contents reads what is in etcd as entries.
type contents struct {
	c        *Client
	revision int64 // 0: the newest at each step
	keys     int64 // read so far
}

func (r *contents) entries(ctx context.Context) iter.Seq2[tokenstore.Entry, error] {
	return func(yield func(tokenstore.Entry, error) bool) {
		for _, part := range []iter.Seq2[tokenstore.Entry, error]{
			r.head(ctx), r.digests(ctx),
			r.numbered(ctx, tokenstore.EntryRecord, r.c.keys.tokens(), 16), r.numbered(ctx, tokenstore.EntryUsageName, r.c.keys.usageNames(), 8),
			r.numbered(ctx, tokenstore.EntryUsage, r.c.keys.allUsage(), 16), r.numbered(ctx, tokenstore.EntryNotice, r.c.keys.notices(), 16),
			r.counts(ctx), r.answers(ctx),
		} {
			for e, err := range part {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

// below yields the keys below a prefix, in order.
func (r *contents) below(ctx context.Context, prefix string) iter.Seq2[*mvccpb.KeyValue, error] {
	return func(yield func(*mvccpb.KeyValue, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		pages := make(chan page, 1) // read ahead
		go r.readBelow(ctx, prefix, pages)
		for p := range pages {
			if p.err != nil {
				yield(nil, p.err)
				return
			}
			for _, kv := range p.kvs {
				r.keys++
				if !yield(kv, nil) {
					return
				}
			}
		}
		if err := ctx.Err(); err != nil {
			yield(nil, err)
		}
	}
}

func (r *contents) readBelow(ctx context.Context, prefix string, pages chan<- page) {
	defer close(pages)
	opts := []clientv3.OpOption{clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(loadPage), clientv3.WithRev(r.revision)}
	for from, more := prefix, true; more; {
		var p page
		got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return r.c.etcd.Get(ctx, from, opts...) })
		switch {
		case errors.Is(err, rpctypes.ErrCompacted):
			p.err = errors.New("etcd has compacted the revision that was being read: run this again, and if it comes again raise etcd's --auto-compaction-retention")
		case err != nil:
			p.err = r.c.failed("read", err)
		default:
			p.kvs, p.more = got.Kvs, got.More
		}
		more = p.err == nil && p.more
		if more {
			from = string(p.kvs[len(p.kvs)-1].Key) + "\x00"
		}
		select {
		case pages <- p:
		case <-ctx.Done():
			return
		}
	}
}

func (r *contents) number(ctx context.Context, key string) (uint64, error) {
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return r.c.etcd.Get(ctx, key, clientv3.WithRev(r.revision))
	})
	if err != nil {
		return 0, r.c.failed("read", err)
	}
	if len(got.Kvs) == 0 {
		return 0, nil
	}
	r.keys++
	n, err := strconv.ParseUint(string(got.Kvs[0].Value), 10, 64)
	if err != nil {
		return 0, errKey
	}
	return n, nil
}

// head yields what the store says of itself.
func (r *contents) head(ctx context.Context) iter.Seq2[tokenstore.Entry, error] {
	return func(yield func(tokenstore.Entry, error) bool) {
		all, err := r.readHead(ctx)
		if err != nil {
			yield(tokenstore.Entry{}, err)
			return
		}
		for _, e := range all {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (r *contents) readHead(ctx context.Context) (all []tokenstore.Entry, err error) {
	ids, err := r.number(ctx, r.c.keys.ids())
	if err != nil {
		return nil, err
	}
	seq, err := r.number(ctx, r.c.keys.seq())
	if err != nil {
		return nil, err
	}
	all = append(all, tokenstore.Entry{Kind: tokenstore.EntryLastID, Value: number(ids - min(ids, 1))}, tokenstore.Entry{Kind: tokenstore.EntryLastSeq, Value: number(seq)})
	var t tokenstore.Traits
	for kv, err := range r.below(ctx, r.c.keys.traits()) {
		if err != nil {
			return nil, err
		}
		if err := r.c.keys.addTrait(&t, string(kv.Key)); err != nil {
			return nil, err
		}
	}
	begin := len(all)
	for _, id := range t.Peppers {
		all = append(all, tokenstore.Entry{Kind: tokenstore.EntryPepper, Key: bytes.Clone(id[:])})
	}
	for _, p := range t.Prefixes {
		all = append(all, tokenstore.Entry{Kind: tokenstore.EntryPrefix, Key: []byte(p)})
	}
	for _, f := range t.Foreign {
		all = append(all, tokenstore.Entry{Kind: tokenstore.EntryForeign, Key: append([]byte{byte(f.Scheme)}, f.Key[:]...)})
	}
	sortEntries(all[begin:])
	return all, nil
}

// numbered yields what is kept under numbers of so many hexadecimal digits.
func (r *contents) numbered(ctx context.Context, kind tokenstore.EntryKind, prefix string, digits int) iter.Seq2[tokenstore.Entry, error] {
	return func(yield func(tokenstore.Entry, error) bool) {
		for kv, err := range r.below(ctx, prefix) {
			var e tokenstore.Entry
			if err == nil {
				text := strings.TrimPrefix(string(kv.Key), prefix)
				n, perr := strconv.ParseUint(text, 16, 64)
				if err = perr; perr != nil || len(text) != digits {
					err = errKey
				}
				e = tokenstore.Entry{Kind: kind, Key: number(n), Value: kv.Value}
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func (r *contents) counts(ctx context.Context) iter.Seq2[tokenstore.Entry, error] {
	return func(yield func(tokenstore.Entry, error) bool) {
		for kv, err := range r.below(ctx, r.c.keys.counts()) {
			var e tokenstore.Entry
			if err == nil {
				var key []byte
				if key, err = hex.DecodeString(strings.TrimPrefix(string(kv.Key), r.c.keys.counts())); err != nil {
					err = errKey
				}
				e = tokenstore.Entry{Kind: tokenstore.EntryCounter, Key: key, Value: kv.Value}
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// base64Digits are the digits in which keys write digests, by their value; their
// order as characters is another one.
const base64Digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// digests yields the digests in the order of their bytes: those of one first digit
// after another, of which each are read as a whole.
func (r *contents) digests(ctx context.Context) iter.Seq2[tokenstore.Entry, error] {
	return func(yield func(tokenstore.Entry, error) bool) {
		for _, digit := range base64Digits {
			all, err := r.digestsOf(ctx, string(digit))
			if err != nil {
				yield(tokenstore.Entry{}, err)
				return
			}
			for _, e := range all {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

func (r *contents) digestsOf(ctx context.Context, digit string) (all []tokenstore.Entry, err error) {
	retired := map[tokenstore.Digest]tokenstore.ID{}
	read := func(prefix string, take func(tokenstore.Digest, tokenstore.ID)) error {
		for kv, err := range r.below(ctx, prefix+digit) {
			if err != nil {
				return err
			}
			one, err := parseRetired(strings.TrimPrefix(string(kv.Key), prefix), kv.Value)
			if err != nil {
				return err
			}
			take(one.Digest, one.Owner)
		}
		return nil
	}
	if err := read(r.c.keys.allRetired(), func(d tokenstore.Digest, owner tokenstore.ID) { retired[d] = owner }); err != nil {
		return nil, err
	}
	err = read(r.c.keys.digests(), func(d tokenstore.Digest, owner tokenstore.ID) {
		value := append(number(uint64(owner)), 0)
		if retired[d] == owner {
			value[8] = 1
			delete(retired, d)
		}
		all = append(all, tokenstore.Entry{Kind: tokenstore.EntryDigest, Key: bytes.Clone(d[:]), Value: value})
	})
	if err == nil && len(retired) > 0 {
		err = errors.New("etcd says of a digest that its token has it no more, and not which token that is")
	}
	sortEntries(all)
	return all, err
}

// answers yields the kept answers. Of several under one key the last counts.
func (r *contents) answers(ctx context.Context) iter.Seq2[tokenstore.Entry, error] {
	return func(yield func(tokenstore.Entry, error) bool) {
		var all []tokenstore.Entry
		for kv, err := range r.below(ctx, r.c.keys.allKept()) {
			var a keptAnswer
			if err == nil {
				a, err = parseKept(strings.TrimPrefix(string(kv.Key), r.c.keys.allKept()))
			}
			if err != nil {
				yield(tokenstore.Entry{}, err)
				return
			}
			e := tokenstore.Entry{Kind: tokenstore.EntryAnswer, Key: bytes.Clone(a.key[:]), Value: append(number(a.until), kv.Value...)}
			if n := len(all); n > 0 && bytes.Equal(all[n-1].Key, e.Key) {
				all = all[:n-1]
			}
			all = append(all, e)
		}
		sortEntries(all)
		for _, e := range all {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func sortEntries(all []tokenstore.Entry) {
	slices.SortFunc(all, func(a, b tokenstore.Entry) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), bytes.Compare(a.Key, b.Key))
	})
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
