package etcdstore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"iter"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"tokenward/tokenstore"
)

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
	all = append(all,
		tokenstore.Entry{Kind: tokenstore.EntryLastID, Value: number(ids - min(ids, 1))},
		tokenstore.Entry{Kind: tokenstore.EntryLastSeq, Value: number(seq)})
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
