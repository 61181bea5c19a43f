package etcdstore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"tokenward/tokenstore"
)

const (
	// beatEvery is how often the node proves that it lacks nothing.
	beatEvery = 2 * time.Second
	// keepEvery is how often the replica notes until when it lacked nothing.
	keepEvery = time.Minute
	// maxBehind is how many beats may find etcd ahead of the watch before the watch is
	// begun anew.
	maxBehind = 5
)

// errBehind says that etcd has what the watch does not bring.
var errBehind = errors.New("the watch does not bring what etcd has")

// ErrStale says that the node may have missed changes for longer than is allowed.
var ErrStale = errors.New("this node has not been in step with etcd for longer than tokenstore.etcd.max_staleness")

// freshness is until when the node is known to have held everything.
type freshness struct {
	store    *Store
	start    time.Time // all times below are since then, by the steady clock
	provenAt atomic.Int64
	proven   atomic.Bool
	told     atomic.Bool
	caughtUp chan struct{} // closed once the node was in step for the first time
	once     sync.Once
}

func (f *freshness) init(s *Store) {
	f.store, f.start, f.caughtUp = s, time.Now(), make(chan struct{})
}

// resume takes over what the replica knew before this process. Between the two
// there is only the wall clock: a time to come proves nothing.
func (f *freshness) resume(freshAt time.Time) {
	age := f.store.opts.Now().Sub(freshAt)
	if freshAt.IsZero() || age < 0 {
		return
	}
	f.provenAt.Store(int64(-age))
	f.proven.Store(true)
}

// prove notes that the node held everything as of at.
func (f *freshness) prove(at time.Time) {
	f.provenAt.Store(int64(at.Sub(f.start)))
	f.proven.Store(true)
	f.once.Do(func() { close(f.caughtUp) })
}

// age is since when the node may lack something; very long where that was never
// known.
func (f *freshness) age() time.Duration {
	if !f.proven.Load() {
		return time.Duration(1<<63 - 1)
	}
	return time.Since(f.start) - time.Duration(f.provenAt.Load())
}

// stale reports whether the node may have missed changes for too long. It also is
// while no other node could know that this one still answers requests.
func (f *freshness) stale() bool {
	limit := f.store.opts.MaxStaleness
	return f.age() > limit || f.store.self.unvouched() > limit
}

// Usable returns nil while the node may answer requests from what it holds, and
// else ErrStale. It is asked for each request, does no I/O and takes no lock.
func (s *Store) Usable() error {
	if s.opts.ServeStale || !s.fresh.stale() {
		return nil
	}
	return ErrStale
}

// Stale reports whether the node has been out of step for too long, whether or not
// it then goes on answering.
func (s *Store) Stale() bool { return s.fresh.stale() }

// keepFresh proves again and again that the node lacks nothing, until ctx ends.
func (s *Store) keepFresh(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-s.self.there: // others know that this node answers, before it does
	}
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	var kept time.Time
	behind := 0
	for {
		at, wall := time.Now(), s.opts.Now()
		err := s.beat(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errBehind), errors.Is(err, errCompacted):
			if behind++; behind%maxBehind == 0 {
				s.following.restart(err)
			}
		case errors.Is(err, errRestored):
			s.following.restart(err)
		case err != nil:
			s.link.bad()
		default:
			behind = 0
			s.link.good(s.opts.Now())
			s.fresh.prove(at)
			if s.replica != nil && at.Sub(kept) >= keepEvery {
				kept = at
				s.keepPosition(ctx, wall)
			}
		}
		s.tellStale()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// beat returns nil once the node is known to hold everything as of when it was
// called.
func (s *Store) beat(ctx context.Context) error {
	known, before := s.data.mark()
	if known == 0 { // everything is being read
		first, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		if s.data.wait(first, 1) != nil {
			return errBehind
		}
		known, before = s.data.mark()
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	revision, head, err := s.readHead(call)
	if err == nil && head != before {
		err = s.compareHistory(call, known, before)
	}
	cancel()
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := s.data.wait(wait, headRevision(head)); err != nil {
		return errBehind
	}
	// Whatever changes data puts head, so nothing came after it.
	s.data.reachAt(revision, head)
	return nil
}

// keepPosition lets the replica note how far it is: after a restart that is where
// it goes on, and how old it is. It notes no time as of which the others may take the
// node for gone.
func (s *Store) keepPosition(ctx context.Context, wall time.Time) {
	if s.self.unvouched() > leaseMargin/2 {
		return
	}
	s.steps.Lock()
	defer s.steps.Unlock()
	p := s.replica.Followed()
	revision, head := s.data.mark()
	if p.Store != s.about.Load().Name() || p.Revision == 0 || p.Head != head {
		return // it is being loaded
	}
	p.Revision, p.FreshAt = max(p.Revision, revision), wall
	if _, err := s.replica.Apply(ctx, &tokenstore.Update{Position: p}); err != nil && ctx.Err() == nil {
		s.log.Warn("the copy of the tokens cannot note how fresh it is; after a restart it counts as older", "error", err)
	}
}

// tellStale logs when the node becomes stale, and when it no longer is.
func (s *Store) tellStale() {
	stale := s.fresh.stale()
	if s.fresh.told.Swap(stale) == stale {
		return
	}
	switch {
	case !stale:
		s.log.Info("this node is in step with etcd again")
	case s.opts.ServeStale:
		s.log.Error("this node may have missed changes for too long, and goes on answering, as tokenstore.etcd.on_stale says: tokens that were revoked meanwhile are accepted; make sure that etcd runs and can be reached", "max_staleness", s.opts.MaxStaleness)
	default:
		s.log.Error("this node may have missed changes for too long: all requests are answered 503 until it is in step again; make sure that etcd runs and can be reached", "max_staleness", s.opts.MaxStaleness)
	}
}
