package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"tokenward/tokenstore"
)

func (o *Observer) forget() {
	if o.Forget != nil {
		o.Forget()
	}
}

// applyToCache tells of what changed, so that the cache drops it. What was before is
// what drops, and what cannot be told drops everything.
func (s *Store) applyToCache(_ context.Context, events []*clientv3.Event, revision int64) error {
	var traits tokenstore.Traits
	var called bool
	for _, e := range events {
		key := string(e.Kv.Key)
		if !strings.HasPrefix(key, s.keys.tokens()) {
			if err := s.applyOther(e, &traits, &called); err != nil {
				return err
			}
			continue
		}
		id, err := parseID(strings.TrimPrefix(key, s.keys.tokens()))
		if err != nil {
			return err
		}
		s.tellChange(id, e)
	}
	s.learn(&traits)
	s.stats.applied.Add(1)
	_, head := s.data.mark()
	s.data.reachHead(revision, s.keys.headOf(events, head))
	if called {
		s.self.called()
	}
	return nil
}

func (s *Store) tellChange(id tokenstore.ID, e *clientv3.Event) {
	var c tokenstore.Change
	var err error
	isNew := e.Type == clientv3.EventTypePut && e.Kv.CreateRevision == e.Kv.ModRevision
	switch {
	case e.PrevKv != nil:
		if c.Before, err = s.decode(id, e.PrevKv.Value); err != nil {
			s.observer.forget()
		}
	case !isNew:
		s.observer.forget() // etcd has forgotten what it was
	}
	if e.Type == clientv3.EventTypePut {
		if c.After, err = s.decode(id, e.Kv.Value); err != nil {
			s.unreadable.Add(1)
			s.tellUnreadable(1)
		}
	}
	if s.observer.Changed != nil && (c.Before != nil || c.After != nil) {
		s.observer.Changed(c)
	}
}

// ByDigest implements [tokenstore.Reader].
func (s *Store) ByDigest(ctx context.Context, d tokenstore.Digest) (*tokenstore.Token, error) {
	if s.replica != nil {
		return s.replica.ByDigest(ctx, d)
	}
	release, err := s.asks.take(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	v, err := s.ask(ctx, s.keys.digest(d))
	if err != nil {
		return nil, err
	}
	id, err := parseID(string(v))
	if err != nil {
		return nil, err
	}
	t, err := s.byID(ctx, id)
	if err != nil {
		return nil, err
	}
	if !holds(t, d) {
		return nil, tokenstore.ErrNotFound // the token gave that secret up
	}
	return t, nil
}

// ByID implements [tokenstore.Reader].
func (s *Store) ByID(ctx context.Context, id tokenstore.ID) (*tokenstore.Token, error) {
	if s.replica != nil {
		return s.replica.ByID(ctx, id)
	}
	release, err := s.asks.take(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return s.byID(ctx, id)
}

func (s *Store) byID(ctx context.Context, id tokenstore.ID) (*tokenstore.Token, error) {
	v, err := s.ask(ctx, s.keys.token(id))
	if err != nil {
		return nil, err
	}
	return s.decode(id, v)
}

// ask reads a key by a linearizable read, or returns ErrNotFound.
func (s *Store) ask(ctx context.Context, key string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	found, _, err := s.read(ctx, clientv3.OpGet(key))
	if err != nil {
		return nil, s.failed("read a token", err)
	}
	if len(found[0]) == 0 {
		return nil, tokenstore.ErrNotFound
	}
	return found[0][0].Value, nil
}

// maxAsks is how many requests may wait for etcd at once: each unknown secret costs
// one question, and strangers can make up as many as they like.
const maxAsks = 64

var errAsks = errors.New("too many secrets that this node does not know are being looked up in etcd")

// questions bounds how many are asked at once.
type questions chan struct{}

func (q questions) take(ctx context.Context) (release func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case q <- struct{}{}:
		return func() { <-q }, nil
	default:
		return nil, errAsks
	}
}

// List implements [tokenstore.Reader]. Without a replica it reads all tokens of the
// cluster, from the first in the order asked for to the last that is wanted.
func (s *Store) List(ctx context.Context, q tokenstore.Query) iter.Seq2[*tokenstore.Token, error] {
	if s.replica != nil {
		return s.replica.List(ctx, q)
	}
	return func(yield func(*tokenstore.Token, error) bool) {
		if err := ctx.Err(); err != nil {
			yield(nil, err)
			return
		}
		left := q.Limit
		for t, err := range s.walk(ctx, q.After, q.OldestFirst) {
			if err != nil {
				yield(nil, fmt.Errorf("list tokens: %w", err))
				return
			}
			if !selects(&q, t) {
				continue
			}
			if q.Skip > 0 {
				q.Skip--
				continue
			}
			if !yield(t, nil) {
				return
			}
			if left--; left == 0 {
				return
			}
		}
	}
}

func selects(q *tokenstore.Query, t *tokenstore.Token) bool {
	return (q.AllAccounts || t.Account == q.Account && (q.Owner == 0 || t.Owner == q.Owner)) &&
		(q.Revoked || t.State != tokenstore.StateRevoked)
}

// Count implements [tokenstore.Reader]. Without a replica it reads all tokens of the
// cluster.
func (s *Store) Count(ctx context.Context, q tokenstore.Query) (int, error) {
	if s.replica != nil {
		return s.replica.Count(ctx, q)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n := 0
	for t, err := range s.walk(ctx, 0, true) {
		if err != nil {
			return 0, fmt.Errorf("count tokens: %w", err)
		}
		if selects(&q, t) {
			n++
		}
	}
	return n, nil
}

// leastSpan is how many ids are asked for at first.
const leastSpan = 32

// walk yields all tokens in etcd in the order of ids, a span of ids at a time: a
// token that changes meanwhile appears in its old or its new form.
func (s *Store) walk(ctx context.Context, after tokenstore.ID, oldestFirst bool) iter.Seq2[*tokenstore.Token, error] {
	return func(yield func(*tokenstore.Token, error) bool) {
		next, err := s.nextID(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		first, end := tokenstore.ID(1), next // of what is left
		switch {
		case oldestFirst:
			first = after + 1
		case after > 0:
			end = min(end, after)
		}
		// Who wants the first few does not cause thousands to be read.
		for size := tokenstore.ID(leastSpan); first < end; size = min(2*size, loadPage) {
			from, to := first, min(first+size, end)
			if oldestFirst {
				first = to
			} else {
				from = max(first, end-min(end, size))
				to, end = end, from
			}
			kvs, err := s.span(ctx, from, to)
			if err == nil && !oldestFirst {
				slices.Reverse(kvs)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			for _, kv := range kvs {
				t, err := s.decodeKV(kv)
				if !yield(t, err) || err != nil {
					return
				}
			}
		}
	}
}

// nextID returns the lowest id that no node has been given.
func (s *Store) nextID(ctx context.Context) (tokenstore.ID, error) {
	v, err := s.ask(ctx, s.keys.ids())
	if errors.Is(err, tokenstore.ErrNotFound) {
		return 1, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(v), 10, 64)
	if err != nil {
		return 0, errKey
	}
	return tokenstore.ID(n), nil
}

// span reads the tokens from an id on and before another.
func (s *Store) span(ctx context.Context, from, to tokenstore.ID) ([]*mvccpb.KeyValue, error) {
	found, _, err := s.read(ctx, clientv3.OpGet(s.keys.token(from), clientv3.WithRange(s.keys.token(to))))
	if err != nil {
		return nil, s.failed("read tokens", err)
	}
	return found[0], nil
}

func (s *Store) decodeKV(kv *mvccpb.KeyValue) (*tokenstore.Token, error) {
	id, err := parseID(strings.TrimPrefix(string(kv.Key), s.keys.tokens()))
	if err != nil {
		return nil, err
	}
	return s.decode(id, kv.Value)
}

// children yields the living tokens that id made, as of a revision at the latest.
func (s *Store) children(ctx context.Context, id tokenstore.ID, revision int64) iter.Seq2[tokenstore.ID, error] {
	if s.replica != nil {
		return s.replica.Children(ctx, id)
	}
	return func(yield func(tokenstore.ID, error) bool) {
		l := loading{store: s, revision: revision}
		err := l.each(ctx, s.keys.tokens(), func(kvs []*mvccpb.KeyValue, _ bool) error {
			for _, kv := range kvs {
				t, err := s.decodeKV(kv)
				if err != nil {
					return err
				}
				if t.Creator.ID == id && t.State != tokenstore.StateRevoked && !yield(t.ID, nil) {
					return errEnough
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			yield(0, err)
		}
	}
}

var errEnough = errors.New("enough")
