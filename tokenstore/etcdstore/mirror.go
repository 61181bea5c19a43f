package etcdstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"tokenward/tokenstore"
)

// loadPage is how many keys are read at once; pagesAhead how many such pages are
// read before the replica has taken the first.
const (
	loadPage   = 8000 // and one commit of the copy, which writes the pages it touches anew
	pagesAhead = 2
)

// follow keeps the replica, or the cache, in step with etcd until ctx ends.
func (s *Store) follow(ctx context.Context) {
	anew := s.replica != nil && s.replica.Followed().Gaps // perhaps it can be read now
	s.persist(ctx, "follow the tokens", func(ctx context.Context) error {
		err := s.followOnce(ctx, anew)
		anew = anew && s.data.now() == 0
		return err
	})
}

func (s *Store) followOnce(ctx context.Context, anew bool) error {
	asked := s.following.asked()
	if err := s.refreshAbout(ctx); err != nil {
		return err
	}
	if s.replica != nil {
		if p := s.replica.Followed(); p.Store != s.about.Load().Name() || p.Revision == 0 {
			s.data.reset()
		}
	}
	connected := s.connections.Load()
	if anew {
		s.data.reset()
	} else if s.data.now() > 0 {
		switch err := s.checkHistory(ctx); {
		case errors.Is(err, errRestored):
			s.wentBack()
		case errors.Is(err, errCompacted):
			s.log.Info(err.Error())
			s.data.reset()
		case err != nil:
			return err
		}
	}
	if err := s.readKept(ctx); err != nil {
		return err
	}
	if s.data.now() == 0 {
		if err := s.load(ctx); err != nil {
			return err
		}
		s.self.called() // perhaps somebody did while this went on
	}
	w := watching{prefix: s.keys.data(), from: s.data.now() + 1, progress: &s.data, apply: s.applyToReplica, lull: replicaLull,
		restarter: &s.following, asked: asked, connected: connected, check: s.checkHistory}
	if s.replica == nil {
		w.lull = 0
		w.apply, w.options = s.applyToCache, []clientv3.OpOption{clientv3.WithPrevKV()}
	}
	return s.watch(ctx, w)
}

// errOtherStore says that the store that the node follows is no more under its
// prefix.
var errOtherStore = errors.New("etcd holds another token store under the prefix, or none: correct tokenstore.etcd, or restore etcd; or remove the copy at tokenstore.path to follow the other store")

// refreshAbout reads again what the store says of itself. It must be the one that
// the node began with.
func (s *Store) refreshAbout(ctx context.Context) error {
	d, err := s.Describe(ctx)
	if err != nil {
		s.link.bad()
		return err
	}
	old := s.about.Load()
	if d.ID != old.ID {
		return fmt.Errorf("%w: it is %s, and this node follows %s", errOtherStore, d.ID, old.ID)
	}
	if d.Cluster != old.Cluster {
		next := *old
		next.Cluster = d.Cluster
		s.about.Store(&next)
		s.wentBack()
	}
	s.learn(&d.Traits)
	return nil
}

// readKept reads which answers are kept.
func (s *Store) readKept(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, changePatience)
	defer cancel()
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return s.etcd.Get(ctx, s.keys.allKept(), clientv3.WithPrefix(), clientv3.WithKeysOnly())
	})
	if err != nil {
		return err
	}
	all := make([]keptAnswer, 0, len(got.Kvs))
	for _, kv := range got.Kvs {
		a, err := parseKept(strings.TrimPrefix(string(kv.Key), s.keys.allKept()))
		if err != nil {
			return err
		}
		all = append(all, a)
	}
	s.kept.begin(all)
	return nil
}

// load reads everything at one revision.
func (s *Store) load(ctx context.Context) error {
	begun := time.Now()
	revision, head, err := s.readHead(ctx)
	if err != nil {
		return err
	}
	if s.replica == nil {
		s.stats.loads.Add(1)
		s.observer.forget()
		s.data.reachHead(revision, head)
		return nil
	}
	l := loading{store: s, revision: revision}
	if err := l.digests(ctx); err != nil {
		return err
	}
	tokens, err := l.tokens(ctx)
	if err != nil {
		return err
	}
	// All pages were of one history.
	if err := s.compareHistory(ctx, revision, head); err != nil {
		return err
	}
	traits := s.about.Load().Traits
	s.steps.Lock()
	defer s.steps.Unlock()
	position := tokenstore.Position{Store: s.about.Load().Name(), Revision: revision, Head: head, FreshAt: s.replica.Followed().FreshAt, Gaps: l.unreadable > 0}
	if _, err := s.replica.Apply(ctx, &tokenstore.Update{Traits: &traits, Position: position}); err != nil {
		return err
	}
	s.stats.loads.Add(1)
	s.unreadable.Add(uint64(l.unreadable)) //nolint:gosec // a count
	s.tellUnreadable(l.unreadable)
	s.data.reachHead(revision, head)
	s.log.Info("the tokens in etcd were copied", "tokens", tokens, "revision", revision, "took", time.Since(begun).Round(time.Millisecond))
	return nil
}

func (s *Store) tellUnreadable(n int) {
	if n > 0 {
		s.log.Error("records in etcd cannot be read, or bring back tokens that this node knows as revoked: these tokens are refused on this node; make sure that all nodes have the same tokenstore.pepper_files and version, then restart; after a restore of etcd, revoke again what was revoked since the backup", "records", n)
	}
}

// loading is one whole reading.
type loading struct {
	store      *Store
	revision   int64
	unreadable int
}

// page is a part of what lies below a prefix.
type page struct {
	kvs  []*mvccpb.KeyValue
	more bool
	err  error
}

// pages reads what lies below a prefix at the revision of the loading, ahead of
// whoever takes it.
func (l *loading) pages(ctx context.Context, prefix string) (first page, rest <-chan page) {
	read := func(from string) page {
		opts := []clientv3.OpOption{clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(loadPage),
			clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend)}
		opts = append(opts, clientv3.WithRev(l.revision))
		got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return l.store.etcd.Get(ctx, from, opts...) })
		if errors.Is(err, rpctypes.ErrCompacted) {
			err = errCompacted
		}
		if err != nil {
			return page{err: err}
		}
		return page{kvs: got.Kvs, more: got.More}
	}
	first = read(prefix)
	ahead := make(chan page, pagesAhead)
	go func() {
		defer close(ahead)
		for p := first; p.more && p.err == nil; {
			p = read(string(p.kvs[len(p.kvs)-1].Key) + "\x00")
			select {
			case ahead <- p:
			case <-ctx.Done():
				return
			}
		}
	}()
	return first, ahead
}

// each hands the pages below a prefix to take.
func (l *loading) each(ctx context.Context, prefix string, take func(kvs []*mvccpb.KeyValue, last bool) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, rest := l.pages(ctx, prefix)
	for {
		if p.err != nil {
			return p.err
		}
		if err := take(p.kvs, !p.more); err != nil {
			return err
		}
		if !p.more {
			return nil
		}
		var ok bool
		if p, ok = <-rest; !ok {
			return ctx.Err()
		}
	}
}

// tokens brings the replica's tokens to what etcd has: it adds, replaces, and
// sweeps those that are no more.
func (l *loading) tokens(ctx context.Context) (count int, err error) {
	s := l.store
	from := tokenstore.ID(1)
	prefix := s.keys.tokens()
	told := time.Now()
	err = l.each(ctx, prefix, func(kvs []*mvccpb.KeyValue, last bool) error {
		u := &tokenstore.Update{Records: make([]tokenstore.SealedRecord, 0, len(kvs))}
		here := make(map[tokenstore.ID]bool, len(kvs))
		until := ^tokenstore.ID(0)
		for _, kv := range kvs {
			id, err := parseID(strings.TrimPrefix(string(kv.Key), prefix))
			if err != nil {
				return err
			}
			here[id] = true
			u.Records = append(u.Records, tokenstore.SealedRecord{ID: id, Sealed: kv.Value})
			if !last {
				until = id
			}
		}
		gone, err := s.gone(from, until, here)
		if err != nil {
			return err
		}
		u.Records = append(u.Records, gone...)
		n, err := s.replica.Apply(ctx, u)
		if err != nil {
			return err
		}
		l.unreadable += n
		count += len(kvs)
		from = until + 1
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			s.log.Info("the tokens in etcd are being copied", "tokens", count)
		}
		return nil
	})
	return count, err
}

// gone returns an end for each token of the replica between two ids that is not
// among those in etcd.
func (s *Store) gone(from, until tokenstore.ID, here map[tokenstore.ID]bool) (gone []tokenstore.SealedRecord, err error) {
	for from <= until && from != 0 {
		ids, err := s.replica.IDsFrom(from, loadPage)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			if id > until {
				return gone, nil
			}
			if !here[id] {
				gone = append(gone, tokenstore.SealedRecord{ID: id})
			}
			from = id + 1
		}
		if len(ids) < loadPage {
			return gone, nil
		}
	}
	return gone, nil
}

// digests notes every digest that a token has or ever had, before the tokens, and in
// order: those that come one by one with their tokens lie anywhere in the copy, which
// has to write a page for each.
func (l *loading) digests(ctx context.Context) error {
	prefix := l.store.keys.digests()
	for _, digit := range base64Digits {
		var all []tokenstore.Retired
		err := l.each(ctx, prefix+string(digit), func(kvs []*mvccpb.KeyValue, _ bool) error {
			for _, kv := range kvs {
				r, err := parseRetired(strings.TrimPrefix(string(kv.Key), prefix), kv.Value)
				if err != nil {
					return err
				}
				all = append(all, r)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if len(all) == 0 {
			continue
		}
		slices.SortFunc(all, func(a, b tokenstore.Retired) int { return bytes.Compare(a.Digest[:], b.Digest[:]) })
		for step := range slices.Chunk(all, 2*loadPage) {
			if _, err := l.store.replica.Apply(ctx, &tokenstore.Update{Retired: step}); err != nil {
				return err
			}
		}
	}
	return nil
}

func parseRetired(key string, value []byte) (r tokenstore.Retired, err error) {
	if r.Digest, err = parseDigest(key); err != nil {
		return r, err
	}
	r.Owner, err = parseID(string(value))
	return r, err
}

// applyToReplica makes the replica take a step.
func (s *Store) applyToReplica(ctx context.Context, events []*clientv3.Event, revision int64) error {
	u := &tokenstore.Update{}
	var traits tokenstore.Traits
	var called bool
	for _, e := range events {
		key := string(e.Kv.Key)
		switch {
		case strings.HasPrefix(key, s.keys.tokens()):
			id, err := parseID(strings.TrimPrefix(key, s.keys.tokens()))
			if err != nil {
				return err
			}
			r := tokenstore.SealedRecord{ID: id}
			if e.Type == clientv3.EventTypePut {
				r.Sealed = e.Kv.Value
			}
			u.Records = append(u.Records, r)
		case strings.HasPrefix(key, s.keys.allRetired()) && e.Type == clientv3.EventTypePut:
			r, err := parseRetired(strings.TrimPrefix(key, s.keys.allRetired()), e.Kv.Value)
			if err != nil {
				return err
			}
			u.Retired = append(u.Retired, r)
		default:
			if err := s.applyOther(e, &traits, &called); err != nil {
				return err
			}
		}
	}
	s.steps.Lock()
	defer s.steps.Unlock()
	p := s.replica.Followed()
	p.Store, p.Revision, p.Head = s.about.Load().Name(), revision, s.keys.headOf(events, p.Head)
	u.Position, u.Traits = p, &traits
	s.learn(&traits)
	n, err := s.replica.Apply(context.WithoutCancel(ctx), u)
	if err != nil {
		return err
	}
	s.unreadable.Add(uint64(n)) //nolint:gosec // a count
	s.tellUnreadable(n)
	s.stats.applied.Add(1)
	s.data.reachHead(revision, p.Head)
	if called {
		s.self.called()
	}
	return nil
}

// applyOther takes an event that is not about a token.
func (s *Store) applyOther(e *clientv3.Event, traits *tokenstore.Traits, called *bool) error {
	key := string(e.Kv.Key)
	switch {
	case key == s.keys.call():
		*called = true
	case strings.HasPrefix(key, s.keys.traits()) && e.Type == clientv3.EventTypePut:
		return s.keys.addTrait(traits, key)
	case strings.HasPrefix(key, s.keys.allKept()):
		a, err := parseKept(strings.TrimPrefix(key, s.keys.allKept()))
		if err != nil {
			return err
		}
		if e.Type == clientv3.EventTypePut {
			s.kept.add(a)
		} else {
			s.kept.drop(a)
		}
	}
	return nil
}
