package etcdstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	leastRetry    = 50 * time.Millisecond
	greatestRetry = 5 * time.Second
	// gatherEvents is how many events are applied in one step, if so many wait.
	gatherEvents = 4096
	// replicaLull is how soon after a step of the replica's the next one is made,
	// unless somebody waits for what it brings: each is a commit to disk, and under
	// load one for several changes costs no more than one for each.
	replicaLull = 25 * time.Millisecond
)

// errCompacted: etcd has forgotten what came between.
var errCompacted = errors.New("etcd has compacted the revisions since then: everything is read anew")

// persist runs a task again whenever it fails, until ctx ends. It tells of the
// first failure of several, and of their end.
func (s *Store) persist(ctx context.Context, what string, task func(ctx context.Context) error) {
	retry := leastRetry
	failing := false
	for ctx.Err() == nil {
		began := time.Now()
		err := task(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case errors.Is(err, errCompacted), errors.Is(err, errRestored), errors.Is(err, errReconnected), errors.Is(err, errRecorded):
			s.log.Debug(err.Error(), "task", what)
		case !failing:
			failing = true
			s.log.Warn("etcd cannot be followed; it is tried again", "task", what, "error", err)
		}
		if time.Since(began) > greatestRetry {
			retry, failing = leastRetry, false
		}
		if sleep(ctx, retry/2+rand.N(retry)) != nil { //nolint:gosec // only to spread
			return
		}
		retry = min(2*retry, greatestRetry)
	}
}

// watching is what a watch is about.
type watching struct {
	prefix   string
	from     int64 // revision
	progress *progress
	lull     time.Duration // between two steps that nobody waits for
	options  []clientv3.OpOption
	// apply takes events in order, complete up to the revision.
	apply func(ctx context.Context, events []*clientv3.Event, revision int64) error
	// check returns an error unless etcd's history is still the one that is followed.
	// It was last asked when connected connections had been made, and is asked again
	// before anything is believed that may have come by a later one: the client goes
	// on with a watch by itself, also in an etcd that was restored meanwhile.
	check     func(ctx context.Context) error
	connected uint64
	restarter *restarter
	asked     uint64 // how many restarts had been asked for when all this was begun
}

// restarter ends a watch so that it begins again.
type restarter struct {
	mu     sync.Mutex // guards what follows
	count  uint64     // of restarts asked for
	cause  error      // of the last
	cancel context.CancelCauseFunc
}

func (r *restarter) asked() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

// begin has cancel called when a restart is asked for, or at once if one was since
// count was read.
func (r *restarter) begin(count uint64, cancel context.CancelCauseFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancel = cancel
	if count != r.count {
		cancel(r.cause)
	}
}

func (r *restarter) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancel = nil
}

// restart ends the watch, now or when it begins.
func (r *restarter) restart(cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count++
	r.cause = cause
	if r.cancel != nil {
		r.cancel(cause)
	}
}

// watch applies what changes below a prefix, until it fails or ctx ends. It fails
// with errCompacted when etcd has forgotten what came between.
func (s *Store) watch(ctx context.Context, w watching) error {
	ctx, cancel := context.WithCancelCause(clientv3.WithRequireLeader(ctx))
	defer cancel(nil)
	w.restarter.begin(w.asked, cancel)
	defer w.restarter.end()
	s.stats.restarts.Add(1)
	options := append([]clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithRev(w.from), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify()}, w.options...)
	responses := s.etcd.Watch(ctx, w.prefix, options...)
	var stepped time.Time
	for r := range responses {
		events, revision, err := gather(&r, responses, w.progress, time.Until(stepped.Add(w.lull)))
		if now := s.connections.Load(); now != w.connected {
			if cerr := w.check(ctx); cerr != nil {
				return errors.Join(err, cerr)
			}
			w.connected = now
		}
		if len(events) > 0 {
			if aerr := w.apply(ctx, events, revision); aerr != nil {
				return errors.Join(err, aerr)
			}
			stepped = time.Now()
		}
		if err != nil {
			return err
		}
		s.link.good(s.opts.Now())
		w.progress.reach(revision)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return errors.New("the watch ended")
}

// gather takes what waits after the first response too, and what comes for as long as
// there is time, unless somebody waits for what is here. The revision is the last of
// which everything was heard.
func gather(first *clientv3.WatchResponse, more clientv3.WatchChan, p *progress, spare time.Duration) (events []*clientv3.Event, revision int64, err error) {
	var over <-chan time.Time // nil: nobody waited yet
	for r := *first; ; {
		if r.CompactRevision != 0 {
			return events, revision, errCompacted
		}
		if err := r.Err(); err != nil {
			if errors.Is(err, rpctypes.ErrCompacted) {
				err = errCompacted
			}
			return events, revision, err
		}
		events = append(events, r.Events...)
		switch {
		case len(r.Events) > 0:
			revision = r.Events[len(r.Events)-1].Kv.ModRevision
		case r.IsProgressNotify():
			revision = max(revision, r.Header.Revision)
		}
		if len(events) >= gatherEvents {
			return events, revision, nil
		}
		var ok bool
		select {
		case r, ok = <-more:
		default:
			if spare <= 0 || len(events) == 0 {
				return events, revision, nil
			}
			if over == nil {
				over = time.After(spare)
			}
			if r, ok = await(more, p, revision, over); !ok {
				return events, revision, nil
			}
		}
		if !ok {
			return events, revision, nil
		}
	}
}

// await gives the next response, or false when what is here, up to the revision, is to
// be applied first.
func await(more clientv3.WatchChan, p *progress, revision int64, over <-chan time.Time) (r clientv3.WatchResponse, ok bool) {
	for !p.wanted(revision) {
		select {
		case r, ok = <-more:
			return r, ok
		case <-p.calls:
		case <-over:
			return r, false
		}
	}
	return r, false
}

// link is what is known of the connection to etcd.
type link struct {
	mu      sync.Mutex
	up      bool
	contact time.Time
}

func (l *link) good(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up, l.contact = true, at
}

func (l *link) bad() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up = false
}

func (l *link) state() (up bool, contact time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up, l.contact
}
