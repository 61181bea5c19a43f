package etcdstore

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"tokenward/tokenstore"
)

// UsageTokens is how many tokens one call of [Store.MergeUsage] takes: what each
// rests on is compared when it is committed.
const UsageTokens = (txnCompares - groundCompares) / 2

// UsageNames returns the names that values of [Store.Usage] refer to, the first of
// them being number 1.
func (s *Store) UsageNames() ([]string, error) {
	ctx, cancel := context.WithTimeout(s.ctx, readPatience)
	defer cancel()
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return s.etcd.Get(ctx, s.keys.usageNames(), clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
	})
	if err != nil {
		return nil, s.failed("read usage names", err)
	}
	names := make([]string, 0, len(got.Kvs))
	for i, kv := range got.Kvs {
		if string(kv.Key) != s.keys.usageName(uint64(i)+1) { //nolint:gosec // an index
			return nil, errKey
		}
		names = append(names, string(kv.Value))
	}
	return names, nil
}

// AddUsageNames gives numbers to those of the names that have none, and returns all
// there are.
func (s *Store) AddUsageNames(ctx context.Context, names []string) ([]string, error) {
	err := s.write(ctx, func(w *writing) error {
		prefix := s.keys.usageNames()
		got, err := w.ask(prefix, clientv3.WithPrefix())
		if err != nil {
			return err
		}
		w.ranges = append(w.ranges, prefix)
		known := make(map[string]bool, len(got)+len(names))
		for _, kv := range got {
			known[string(kv.Value)] = true
		}
		next := uint64(len(got))
		for _, name := range names {
			if known[name] {
				continue
			}
			known[name] = true
			next++
			w.put(s.keys.usageName(next), name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("write usage names: %w", err)
	}
	return s.UsageNames()
}

// Usage returns what [Store.MergeUsage] left of a token, on any node; nil for
// nothing.
func (s *Store) Usage(id tokenstore.ID) ([]byte, error) {
	ctx, cancel := context.WithTimeout(s.ctx, readPatience)
	defer cancel()
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return s.etcd.Get(ctx, s.keys.usage(id)) })
	if err != nil {
		return nil, s.failed("read usage", err)
	}
	if len(got.Kvs) == 0 {
		return nil, nil
	}
	return got.Kvs[0].Value, nil
}

// MergeUsage replaces, all in one transaction, the usage of each of at most
// UsageTokens tokens by what merge makes of it; old is nil where there was none. A
// token that is not in the store any more is passed over. merge may run more than
// once.
func (s *Store) MergeUsage(ctx context.Context, ids []tokenstore.ID, merge func(id tokenstore.ID, old []byte) []byte) error {
	err := s.write(ctx, func(w *writing) error {
		keys := make([]string, 0, 2*len(ids))
		for _, id := range ids {
			keys = append(keys, s.keys.usage(id), s.keys.token(id))
		}
		values, err := w.getAll(keys)
		if err != nil {
			return err
		}
		for i, id := range ids {
			if values[2*i+1] == nil {
				continue
			}
			w.put(s.keys.usage(id), string(merge(id, values[2*i])))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write usage: %w", err)
	}
	return nil
}

// getAll reads keys at the revision of the change, in one question, and has the
// commit depend on them.
func (w *writing) getAll(keys []string) ([][]byte, error) {
	ops := make([]clientv3.Op, len(keys))
	for i, key := range keys {
		ops[i] = clientv3.OpGet(key)
	}
	found, _, err := w.store.read(w.ctx, ops...)
	if err != nil {
		return nil, w.store.failed("read for a change", err)
	}
	values := make([][]byte, len(keys))
	for i, key := range keys {
		w.read[key] = 0
		if kvs := found[i]; len(kvs) > 0 {
			w.read[key], values[i] = kvs[0].ModRevision, kvs[0].Value
		}
	}
	return values, nil
}

// Notice returns what is noted of the warnings before the end of a token.
func (s *Store) Notice(id tokenstore.ID, end time.Time) (tokenstore.Notice, error) {
	ctx, cancel := context.WithTimeout(s.ctx, readPatience)
	defer cancel()
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return s.etcd.Get(ctx, s.keys.notice(id)) })
	if err != nil {
		return tokenstore.Notice{}, s.failed("read a notice", err)
	}
	if len(got.Kvs) == 0 {
		return tokenstore.ParseNotice(nil, end), nil
	}
	return tokenstore.ParseNotice(got.Kvs[0].Value, end), nil
}

// NoteWarning changes what is noted, and adds the event, if not nil, to the outbox
// in the same transaction, unless another node has noted as much before: then
// neither happens. Nothing happens once the token is no more.
func (s *Store) NoteWarning(ctx context.Context, id tokenstore.ID, end time.Time, event []byte, change func(*tokenstore.Notice)) error {
	err := s.write(ctx, func(w *writing) error {
		there, err := w.get(s.keys.token(id))
		if err != nil || there == nil {
			return err
		}
		old, err := w.get(s.keys.notice(id))
		if err != nil {
			return err
		}
		before := tokenstore.ParseNotice(old, end)
		after := before
		if change(&after); after == before {
			return nil
		}
		if event != nil {
			w.staging().Emit(event)
		}
		w.put(s.keys.notice(id), string(after.Append(nil)))
		return nil
	})
	if err != nil {
		return fmt.Errorf("note a warning: %w", err)
	}
	return nil
}

// Counter returns what is kept of a limit's counts under key, nil for nothing.
func (s *Store) Counter(key []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(s.ctx, readPatience)
	defer cancel()
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return s.etcd.Get(ctx, s.keys.count(key)) })
	if err != nil {
		return nil, s.failed("read counts", err)
	}
	if len(got.Kvs) == 0 {
		return nil, nil
	}
	return got.Kvs[0].Value, nil
}

// CounterKeys is how many keys one call of [Store.MoveCounters] takes.
const CounterKeys = txnCompares - groundCompares

// MoveCounters replaces what is kept under each of at most CounterKeys keys, which are
// all different, by what move makes of it, all or none; a value that stays the same is
// not written. It returns once that is durable. move may run more than once. Requests
// wait for it, so it does not go on for longer than ctx allows.
func (s *Store) MoveCounters(ctx context.Context, all [][]byte, move func(i int, old []byte) ([]byte, error)) error {
	patience := changePatience
	if end, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(end))
	}
	err := s.writeWithin(ctx, patience, func(w *writing) error {
		keys := make([]string, len(all))
		for i := range all {
			keys[i] = s.keys.count(all[i])
		}
		values, err := w.getAll(keys)
		if err != nil {
			return err
		}
		for i := range all {
			next, err := move(i, values[i])
			if err != nil {
				return err
			}
			if string(next) != string(values[i]) {
				w.put(keys[i], string(next))
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write counts: %w", err)
	}
	return nil
}

// DropCounters forgets every counter that over says is over. It returns how many
// there were.
func (s *Store) DropCounters(ctx context.Context, over func(key, value []byte) bool) (int, error) {
	dropped := 0
	from, end := s.keys.counts(), clientv3.GetPrefixRangeEnd(s.keys.counts())
	for {
		got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) {
			return s.etcd.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(loadPage))
		})
		if err != nil {
			return dropped, s.failed("read counts", err)
		}
		for _, kv := range got.Kvs {
			from = string(kv.Key) + "\x00"
			key, err := hex.DecodeString(strings.TrimPrefix(string(kv.Key), s.keys.counts()))
			if err != nil {
				return dropped, errKey
			}
			if !over(key, kv.Value) {
				continue
			}
			done, err := s.etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(string(kv.Key)), "=", kv.ModRevision)).Then(clientv3.OpDelete(string(kv.Key))).Commit()
			if err != nil {
				return dropped, s.failed("drop counts", err)
			}
			if done.Succeeded {
				dropped++
			}
		}
		if !got.More {
			return dropped, nil
		}
	}
}
