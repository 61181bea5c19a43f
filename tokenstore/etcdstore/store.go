package etcdstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tokenward/tokenstore"
)

// Replica is a node's own copy: *boltstore.Store.
type Replica interface {
	tokenstore.Reader
	// Children yields the tokens that id made and that are not revoked.
	Children(ctx context.Context, id tokenstore.ID) iter.Seq2[tokenstore.ID, error]
	// IDsFrom returns the ids of tokens from an id on, in ascending order.
	IDsFrom(from tokenstore.ID, limit int) ([]tokenstore.ID, error)
	// Followed returns how far the replica has come.
	Followed() tokenstore.Position
	// Position returns the greatest id that the replica ever had.
	Position() (lastID tokenstore.ID, lastSeq uint64, err error)
	// Apply makes a step. It returns once the step is durable and every later read
	// sees it, caches included. unreadable is how many records were left out.
	Apply(ctx context.Context, u *tokenstore.Update) (unreadable int, err error)
}

// Observer is told of what a node hears of, before anybody can count on it. Nil
// functions are not called.
type Observer struct {
	// Learned is told of prefixes and kinds of secrets that are new.
	Learned func(*tokenstore.Formats)
	// Changed is told of each change of a token, where there is no replica to tell
	// of it.
	Changed func(tokenstore.Change)
	// Forget drops everything that was read before, where there is no replica: what
	// changed is not known.
	Forget func()
}

// Store is a node's view of the cluster. All methods may be called at once from
// many goroutines.
type Store struct {
	*Client
	replica  Replica // nil: none, everything is read from etcd
	observer Observer
	about    atomic.Pointer[Description]
	formats  atomic.Pointer[tokenstore.Formats]
	instance string // of this process
	nonces   atomic.Uint64
	claim    claim
	lanes    chan *lane
	group    group
	ids      idBlock

	data   progress // of what the replica, or the cache, has heard of
	events progress // of the node's own outbox
	out    outboxView
	kept   keptAnswers

	steps     sync.Mutex // held from looking where the replica is until it has made its step
	following restarter
	emitting  restarter

	asks  questions
	fresh freshness
	link  link
	self  registration

	isTaken    atomic.Bool
	unreadable atomic.Uint64
	stats      counters

	background sync.WaitGroup
	cancel     context.CancelFunc
	ctx        context.Context // of the background, as long as the store is open
	closing    sync.Mutex      // guards closed, after which nothing is added to background
	closed     bool
}

// counters are what the store tells for metrics.
type counters struct {
	changes, commits, conflicts, unknown, applied, loads, restarts atomic.Uint64
}

// Open returns the store that d describes, with the replica that follows it; with
// nil everything is read from etcd. [Store.Start] begins the following.
func (c *Client) Open(d Description, replica Replica) *Store {
	s := &Store{Client: c, replica: replica, instance: rand.Text(), lanes: make(chan *lane, laneCount)}
	s.ids.store = s
	s.group.store = s
	s.claim.store, s.claim.key = s, c.keys.owner(c.opts.Node)
	s.asks = make(questions, maxAsks)
	s.self.there = make(chan struct{})
	s.self.asked, s.self.started, s.self.began = make(chan struct{}, 1), time.Now(), c.opts.Now().UTC().Truncate(time.Millisecond)
	s.out.wake = make(chan struct{}, 1)
	s.data.calls = make(chan struct{}, 1)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.about.Store(&d)
	s.formats.Store(d.Traits.Formats())
	for n := range laneCount {
		s.lanes <- &lane{store: s, key: c.keys.lane(c.opts.Node, n)}
	}
	s.fresh.init(s)
	if replica != nil {
		p := replica.Followed()
		if p.Store != d.Name() && p.Store != d.ID {
			// Another etcd: its revisions say nothing about this copy.
			p.Revision = 0
		}
		s.data.reachHead(p.Revision, p.Head)
		if p.Revision > 0 {
			s.fresh.resume(p.FreshAt)
		}
	}
	return s
}

// Start begins to follow etcd. It does not wait for it: [Store.WaitReady] does.
func (s *Store) Start(o Observer) {
	s.observer = o
	for _, run := range []func(context.Context){s.follow, s.followOutbox, s.keepFresh, s.keepRegistered} {
		s.inBackground(func() { run(s.ctx) })
	}
}

// WaitReady waits until the node has caught up with etcd once, or ctx ends.
func (s *Store) WaitReady(ctx context.Context) error {
	select {
	case <-s.fresh.caughtUp:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close takes the node out of the cluster's records and ends the following. The
// replica stays open.
func (s *Store) Close() error {
	s.closing.Lock()
	s.closed = true
	s.closing.Unlock()
	s.cancel()
	s.background.Wait()
	return nil
}

// inBackground runs a task that ends with the store, unless that has ended.
func (s *Store) inBackground(task func()) {
	s.closing.Lock()
	defer s.closing.Unlock()
	if !s.closed {
		s.background.Go(task)
	}
}

// ID returns the store's ID.
func (s *Store) ID() string { return s.about.Load().ID }

// OutboxName names the node's outbox in its audit log. The numbers of its events
// are those of one etcd.
func (s *Store) OutboxName() string { return s.about.Load().Name() + "/" + s.opts.Node }

// Node returns the node's name.
func (s *Store) Node() string { return s.opts.Node }

// Formats returns what is known of the form of secrets.
func (s *Store) Formats() *tokenstore.Formats { return s.formats.Load() }

// Traits returns what the store says of its secrets.
func (s *Store) Traits() (tokenstore.Traits, error) { return s.about.Load().Traits, nil }

// Foreign returns the kinds of secrets from elsewhere that the store holds.
func (s *Store) Foreign() ([]tokenstore.Foreign, error) { return s.about.Load().Traits.Foreign, nil }

func (s *Store) taken() {
	if !s.isTaken.Swap(true) {
		s.log.Error(errTaken.Error(), "node", s.opts.Node)
	}
}

// progress is a revision that only rises, and that can be waited for.
type progress struct {
	calls chan struct{} // receives when somebody begins to wait; nil: nobody asks

	mu       sync.Mutex // guards what follows
	revision int64
	head     string        // as of the revision, where it is data that is followed
	risen    chan struct{} // closed at the next rise; nil: nobody waits
	waits    []int64       // what is waited for
}

// reach notes that everything up to the revision was heard, and no change of data
// since head.
func (p *progress) reach(revision int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.riseLocked(revision)
}

// reachHead notes that everything up to the revision was heard, as of which head was
// as given.
func (p *progress) reachHead(revision int64, head string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if revision >= p.revision {
		p.head = head
		p.riseLocked(revision)
	}
}

// reachAt is reach, if head is still as given.
func (p *progress) reachAt(revision int64, head string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.head == head {
		p.riseLocked(revision)
	}
}

func (p *progress) riseLocked(revision int64) {
	if revision <= p.revision {
		return
	}
	p.revision = revision
	if p.risen != nil {
		close(p.risen)
		p.risen = nil
	}
}

// reset takes the progress back, as when etcd itself was restored.
func (p *progress) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.revision, p.head = 0, ""
}

// mark returns the revision and what head was then.
func (p *progress) mark() (revision int64, head string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.revision, p.head
}

func (p *progress) now() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.revision
}

// wait waits until the revision is reached.
func (p *progress) wait(ctx context.Context, revision int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.revision >= revision {
		return nil
	}
	p.waits = append(p.waits, revision)
	defer func() {
		i := slices.Index(p.waits, revision)
		p.waits = slices.Delete(p.waits, i, i+1)
	}()
	select {
	case p.calls <- struct{}{}:
	default:
	}
	for p.revision < revision {
		if p.risen == nil {
			p.risen = make(chan struct{})
		}
		risen := p.risen
		p.mu.Unlock()
		var err error
		select {
		case <-risen:
		case <-ctx.Done():
			err = ctx.Err()
		}
		p.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}

// wanted reports whether somebody waits for a revision up to the given one.
func (p *progress) wanted(revision int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.waits, func(wait int64) bool { return wait <= revision })
}

// recordTraits notes traits in etcd, and returns once this node knows them.
func (s *Store) recordTraits(ctx context.Context, key string, known bool) error {
	if known {
		return nil
	}
	return s.write(ctx, func(w *writing) error {
		w.put(key, "")
		return nil
	})
}

// RecordPrefix notes that secrets of this store bear the prefix. It comes before the
// first of them is given out, and does nothing when it is known.
func (s *Store) RecordPrefix(ctx context.Context, prefix string) error {
	if !tokenstore.ValidPrefix(prefix) {
		return fmt.Errorf("secret prefix %q must match [a-z][a-z0-9]{1,15}", prefix)
	}
	t := s.about.Load().Traits
	return s.recordTraits(ctx, s.keys.prefix(prefix), contains(t.Prefixes, prefix))
}

// RecordForeign notes that the store holds secrets from elsewhere of a kind. It
// comes before the first of them, and does nothing when it is known.
func (s *Store) RecordForeign(ctx context.Context, kind tokenstore.Foreign) error {
	if !kind.Valid() {
		return errors.New("secrets from elsewhere have the scheme sha256, or hmac-sha256 and a key")
	}
	t := s.about.Load().Traits
	return s.recordTraits(ctx, s.keys.foreign(kind), contains(t.Foreign, kind))
}

func contains[T comparable](all []T, one T) bool {
	for i := range all {
		if all[i] == one {
			return true
		}
	}
	return false
}

// learn adds to what the store says of itself.
func (s *Store) learn(more *tokenstore.Traits) {
	for {
		old := s.about.Load()
		d := *old
		d.Traits = tokenstore.Traits{}
		d.Traits.Peppers = union(old.Traits.Peppers, more.Peppers)
		d.Traits.Prefixes = union(old.Traits.Prefixes, more.Prefixes)
		d.Traits.Foreign = union(old.Traits.Foreign, more.Foreign)
		if len(d.Traits.Peppers)+len(d.Traits.Prefixes)+len(d.Traits.Foreign) == len(old.Traits.Peppers)+len(old.Traits.Prefixes)+len(old.Traits.Foreign) {
			return
		}
		if s.about.CompareAndSwap(old, &d) {
			formats := d.Traits.Formats()
			s.formats.Store(formats)
			if s.observer.Learned != nil {
				s.observer.Learned(formats)
			}
			return
		}
	}
}

func union[T comparable](a, b []T) []T {
	all := append([]T(nil), a...)
	for _, one := range b {
		if !contains(all, one) {
			all = append(all, one)
		}
	}
	return all
}

// Stats is what a store tells for metrics and for whoever asks how it is.
type Stats struct {
	Node        string
	Revision    int64         // that the node has heard of everything up to
	Age         time.Duration // since when it may lack something
	Stale       bool
	Connected   bool      // the last contact with etcd succeeded
	LastContact time.Time // by the wall clock; zero: never
	Outbox      int       // events that wait for the audit log
	Unreadable  uint64    // records that could not be read, since the start
	Taken       bool      // another process took the node's name

	Changes, Conflicts, Unknown uint64 // made; tried again for others' sake; of unknown outcome
	Commits                     uint64 // transactions for changes, made or not
	Applied                     uint64 // updates applied
	Loads, Restarts             uint64 // whole readings; watches begun
}

// Stats returns the present numbers.
func (s *Store) Stats() Stats {
	c := &s.stats
	connected, contact := s.link.state()
	return Stats{
		Node: s.opts.Node, Revision: s.data.now(), Age: s.fresh.age(), Stale: s.fresh.stale(),
		Connected: connected, LastContact: contact, Outbox: s.out.waiting(),
		Unreadable: s.unreadable.Load(), Taken: s.isTaken.Load(),
		Changes: c.changes.Load(), Commits: c.commits.Load(), Conflicts: c.conflicts.Load(), Unknown: c.unknown.Load(),
		Applied: c.applied.Load(), Loads: c.loads.Load(), Restarts: c.restarts.Load(),
	}
}
