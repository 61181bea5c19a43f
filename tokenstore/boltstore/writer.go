package boltstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"runtime/debug"
	"syscall"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"tokenward/tokenstore"
)

// maxBatch bounds how many changes share one commit, and so how long the first
// of them waits for the others.
const maxBatch = 1024

// job is one change on its way through the writer.
type job struct {
	fn   func(*overlay) error
	done chan error // buffered, so that the writer never waits for a caller
}

// Change implements [tokenstore.Writer]. fn runs on the store's writing
// goroutine, so it must not call Change itself. A panic in it becomes an error.
func (s *Store) Change(ctx context.Context, fn func(tx tokenstore.Tx) error) error {
	if s.replica {
		return fmt.Errorf("%w: %s is a copy, which only follows", tokenstore.ErrInvariant, s.path)
	}
	return s.change(ctx, func(o *overlay) error { return fn(o) })
}

func (s *Store) change(ctx context.Context, fn func(*overlay) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j := &job{fn: fn, done: make(chan error, 1)}
	select {
	case s.queue <- j:
		return <-j.done
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return tokenstore.ErrClosed
	}
}

// write is the goroutine that owns writing.
func (s *Store) write() {
	debug.SetPanicOnFault(true) // see recovering
	ended := false
	defer func() {
		if !ended { // a change ended its goroutine, as testing's FailNow does
			go s.write()
			return
		}
		close(s.written)
	}()
	last := 0 // jobs in the batch before
	for {
		select {
		case <-s.closing:
			ended = true
			return
		case <-s.filter.want:
			s.renewFilter()
		case first := <-s.queue:
			if last > 1 {
				// Those just answered may be about to ask again: let them, or they
				// would miss this commit and wait for the one after it.
				runtime.Gosched()
			}
			jobs := s.gather(first)
			last = len(jobs)
			s.run(jobs)
			if t := s.filter.table.Load(); t != nil && t.overfull() {
				s.renewFilter()
			}
		}
	}
}

// gather takes the changes that wait. It waits for none: those that come while
// a commit is under way are the next batch.
func (s *Store) gather(first *job) []*job {
	jobs := []*job{first}
	for len(jobs) < maxBatch {
		select {
		case j := <-s.queue:
			jobs = append(jobs, j)
		default:
			return jobs
		}
	}
	return jobs
}

// run makes the changes in one commit and answers them all, none before the
// commit: even a refusal may rest on what an earlier one of them did.
func (s *Store) run(jobs []*job) {
	b := &batch{s: s, jobs: jobs, now: s.now}
	defer b.abandon()
	err := b.commit()
	if err != nil {
		s.stats.fault.Store(&err)
	}
	if err != nil && len(jobs) > 1 && s.broken == nil && !errors.Is(err, tokenstore.ErrOutcomeUnknown) {
		// Whichever of them made the commit fail must not fail the others.
		b.jobs = nil
		for _, j := range jobs {
			s.run([]*job{j})
		}
		return
	}
	b.answer(err)
}

// batch is one commit being made.
type batch struct {
	s    *Store
	tx   *bolt.Tx
	jobs []*job   // not yet answered
	made []change // what the first of them did
	now  tally    // the store's, once this is committed
}

// change is what a job did. Without an overlay it did nothing, because of err
// or by itself.
type change struct {
	overlay *overlay
	err     error
}

func (b *batch) commit() (err error) {
	s := b.s
	if s.broken != nil {
		return s.broken
	}
	if b.tx, err = s.db.Begin(true); err != nil {
		return fmt.Errorf("begin to write: %w", err)
	}
	writes := 0
	for _, j := range b.jobs {
		o, err := b.try(j)
		if o != nil {
			writes++
			if err := b.guard(func() error { return b.apply(o) }); err != nil {
				return b.takeBack(err)
			}
		}
		b.made = append(b.made, change{o, err})
	}
	if writes == 0 {
		return b.guard(b.tx.Rollback)
	}
	if err := b.guard(b.finish); err != nil {
		return b.takeBack(err)
	}
	number := b.tx.ID()
	if err := b.guard(func() error { return s.commit(b.tx) }); err != nil {
		return b.uncertain(number, b.takeBack(err))
	}
	b.confirm()
	return nil
}

// guard runs a step of bolt's. bolt asserts its file format by panicking; after
// that only reading goes on.
func (b *batch) guard(step func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			b.s.broken = damaged(b.s.path, fmt.Sprint(p))
			err = b.s.broken
		}
	}()
	return step()
}

// try runs a job on an overlay of its own. It returns none when there is
// nothing to write.
func (b *batch) try(j *job) (o *overlay, err error) {
	o = newOverlay(b)
	defer func() {
		if p := recover(); p != nil {
			o, err = nil, fmt.Errorf("change panicked: %v\n%s", p, debug.Stack())
		}
	}()
	if err := j.fn(o); err != nil {
		return nil, err
	}
	if err := o.Check(b.now.outbox); err != nil || o.empty() {
		return nil, err
	}
	return o, nil
}

// takeBack ends the transaction after err without its writes.
func (b *batch) takeBack(err error) error {
	b.s.stats.failed.Add(1)
	if rerr := b.guard(b.tx.Rollback); rerr != nil && !errors.Is(rerr, bolterrors.ErrTxClosed) {
		err = errors.Join(err, rerr)
		b.s.stuck = b.s.broken != nil
	}
	return explain(b.s.path, err)
}

// uncertain finds out what became of a commit that failed: when even the
// header page was written but not confirmed, bolt goes on from the new state,
// and only a power failure could bring the old one back.
//
// Then this process writes no more. The kernel takes a page whose writing failed for
// written, so no later sync would tell that the header is not there; and bolt reuses
// at once what that commit freed, which the old state, if that is what the disk has,
// and whoever is still reading it, such as a backup, need. Opening the store again
// begins with [anchor].
func (b *batch) uncertain(number int, err error) error {
	seen := 0
	verr := b.s.view(func(tx *bolt.Tx) error { seen = tx.ID(); return nil })
	if verr == nil && seen < number {
		return err
	}
	b.confirm() // an observer told too much is the safe side
	b.s.broken = fmt.Errorf("write %s: its disk did not confirm an earlier change, so no more are made: check the disk, then restart tokenward", b.s.path)
	return fmt.Errorf("%w: %w: restart tokenward once it works", tokenstore.ErrOutcomeUnknown, errors.Join(err, verr))
}

// confirm makes the new state the present one and tells the observers.
func (b *batch) confirm() {
	s := b.s
	arrived := b.now.outbox > s.now.outbox
	s.now = b.now
	s.stats.adopt(b.now)
	writes := 0
	for _, c := range b.made {
		if c.overlay != nil {
			writes++
			c.overlay.confirm(s)
		}
	}
	s.stats.count(writes)
	if arrived {
		s.signal()
	}
}

func (o *overlay) confirm(s *Store) {
	if o.formats != nil {
		s.formats.Store(o.formats)
	}
	if s.onChange == nil {
		return
	}
	for t := range o.Tokens() {
		if t.Before != nil || t.After != nil {
			s.onChange(tokenstore.Change{Before: t.Before, After: t.After})
		}
	}
	for _, c := range o.copied {
		s.onChange(tokenstore.Change{Before: c.before, After: c.after})
	}
}

// answer tells each caller what became of its change, err being the commit's.
func (b *batch) answer(err error) {
	for i, j := range b.jobs {
		verdict := err
		if i < len(b.made) && (err == nil || errors.Is(err, tokenstore.ErrOutcomeUnknown) && b.made[i].overlay == nil) {
			verdict = b.made[i].err
		}
		j.done <- verdict
	}
	b.jobs = nil
}

// abandon answers those who still wait when a change ended the goroutine, and
// frees bolt's lock.
func (b *batch) abandon() {
	if len(b.jobs) == 0 {
		return
	}
	if b.tx != nil {
		_ = b.guard(b.tx.Rollback)
	}
	b.made = nil
	b.answer(errors.New("a change ended the goroutine that ran it: nothing was written"))
}

// explain adds to an error from writing what to do about it.
func explain(path string, err error) error {
	if _, named := errors.AsType[*fs.PathError](err); !named {
		err = fmt.Errorf("write %s: %w", path, err)
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, bolterrors.ErrMaxSizeReached) {
		return fmt.Errorf("%w: free space on its disk, then try again", err)
	}
	return fmt.Errorf("%w: check its disk, then try again", err)
}

// tally is what the writer knows about the store without looking.
type tally struct {
	states  [4]uint64 // tokens by state; index 0 is unused
	outbox  int       // events that wait
	answers int
}

func readTally(tx *bolt.Tx) tally {
	var t tally
	t.states = readStates(tx)
	// Both are bounded, so counting them takes milliseconds at most.
	t.outbox = countKeys(tx.Bucket(bucketOutbox))
	t.answers = countKeys(tx.Bucket(bucketAnswers))
	return t
}

func countKeys(b *bolt.Bucket) int {
	n := 0
	c := b.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		n++
	}
	return n
}

// recordPepper notes the writing pepper in the store before it seals anything.
func (s *Store) recordPepper() error {
	id := s.peppers.IDs()[0]
	return s.change(context.Background(), func(o *overlay) error {
		if o.batch.tx.Bucket(bucketMeta).Get(pepperKey(id)) == nil {
			o.meta = append(o.meta, pepperKey(id))
		}
		return nil
	})
}

// RecordPrefix notes that secrets of this store bear the prefix. It comes
// before the first of them is given out, and does nothing when it is known.
func (s *Store) RecordPrefix(ctx context.Context, prefix string) error {
	if !tokenstore.ValidPrefix(prefix) {
		return fmt.Errorf("secret prefix %q must match [a-z][a-z0-9]{1,15}", prefix)
	}
	return s.change(ctx, func(o *overlay) error { return o.addPrefix(prefix) })
}

// addPrefix is RecordPrefix in a change. What is known already is read from the
// transaction, since another change of the same commit may add one too.
func (o *overlay) addPrefix(prefix string) error {
	m, err := readMeta(o.batch.tx, o.batch.s.path)
	if err == nil {
		o.learn(m, &tokenstore.Traits{Prefixes: []string{prefix}})
	}
	return err
}
