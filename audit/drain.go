package audit

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"
)

// MaxBatch is how many outbox entries are written and acknowledged at once.
const MaxBatch = 256

// An Outbox holds the events that a store committed with the changes they tell
// of, until they are in the log. Only one [Drainer] at a time may work on it.
type Outbox interface {
	// Pending returns the oldest entries, at most max, in ascending order.
	Pending(max int) ([]Entry, error)
	// Done removes all entries up to and including upTo, durably.
	Done(upTo uint64) error
}

// An Entry is one event in an outbox.
type Entry struct {
	Seq     uint64 // its number, positive, larger than of any entry before
	Payload []byte // as made by Encode
}

// Drainer moves entries from an outbox to a log. All fields but Wake,
// Gather and Observe are required.
type Drainer struct {
	Outbox Outbox
	Log    *Log
	// Source names the outbox in the log, for example by node and store.
	Source string
	// Wake tells that there may be new entries. A channel of capacity one that
	// is sent to without blocking after each commit serves best.
	Wake <-chan struct{}
	// Gather is how long entries are waited for that come together with one that
	// it was woken for, where acknowledging costs a write elsewhere; 0: not at all.
	Gather time.Duration
	// Observe is told of everything that happens, from the draining goroutine.
	Observe func(Progress)
}

// Progress is what one step of a [Drainer] did.
type Progress struct {
	Written    int           // entries that are now in the log
	Repeated   int           // entries that were in it already
	Unreadable int           // entries of those written whose payload was no event
	Head       Head          // the newest signed head, if this step signed one
	Err        error         // why the step failed; nothing is lost
	RetryIn    time.Duration // with Err: when it is tried again; 0: not in this run
}

const (
	minRetry = 100 * time.Millisecond
	maxRetry = 30 * time.Second
	// idlePoll is how often the outbox is looked at without being woken, and
	// how late a head can be signed.
	idlePoll = 5 * time.Second
)

// Run moves entries, in order, until ctx is done; then it moves what is still
// there, and returns nil once the outbox is empty, or the error that kept it
// from that. Each entry is in the log exactly once, whenever the process dies:
// it is acknowledged only once it is there, and known again if it comes twice.
// Errors are retried with growing delay.
func (d *Drainer) Run(ctx context.Context) error {
	if err := checkSource(d.Source); err != nil {
		return err
	}
	var retry time.Duration
	gathering := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return d.finish()
		case <-timer.C:
			gathering = false
		case <-d.wakeUnless(retry > 0 || gathering):
			if d.Gather > 0 {
				gathering = true
				timer.Reset(d.Gather)
				continue
			}
		}
		more, err := d.step(retry)
		switch {
		case err != nil:
			retry = nextRetry(retry)
			timer.Reset(retry)
		case more:
			retry = 0
			timer.Reset(0)
		default:
			retry = 0
			timer.Reset(idlePoll)
		}
	}
}

// wakeUnless returns the wake channel, or, while waiting is true, one that never wakes.
func (d *Drainer) wakeUnless(waiting bool) <-chan struct{} {
	if waiting {
		return nil
	}
	return d.Wake
}

func nextRetry(last time.Duration) time.Duration {
	return min(max(2*last, minRetry), maxRetry)
}

// finish moves what is left, without waiting for anything.
func (d *Drainer) finish() error {
	for {
		before := d.Log.SignedHead().Line
		p, more, err := d.move()
		d.report(p, before, err, 0)
		if err != nil {
			return fmt.Errorf("the outbox still holds audit events; they are written at the next start: %w", err)
		}
		if !more {
			return nil
		}
	}
}

// step moves one batch and signs a head if that is due.
func (d *Drainer) step(lastRetry time.Duration) (more bool, err error) {
	before := d.Log.SignedHead().Line
	p, more, err := d.move()
	if err == nil && !more {
		err = d.Log.Tick(time.Now())
	}
	var retryIn time.Duration
	if err != nil {
		retryIn = nextRetry(lastRetry)
	}
	d.report(p, before, err, retryIn)
	return more, err
}

func (d *Drainer) report(p Progress, headBefore uint64, err error, retryIn time.Duration) {
	if h := d.Log.SignedHead(); h.Line != headBefore {
		p.Head = h
	}
	p.Err, p.RetryIn = err, retryIn
	if d.Observe != nil && (p.Written > 0 || p.Repeated > 0 || p.Head.Line > 0 || err != nil) {
		d.Observe(p)
	}
}

// move brings one batch into the log and acknowledges it.
func (d *Drainer) move() (p Progress, more bool, err error) {
	entries, err := d.Outbox.Pending(MaxBatch)
	if err != nil {
		return p, false, fmt.Errorf("read the audit outbox: %w", err)
	}
	if len(entries) == 0 {
		return p, false, nil
	}
	if p, err = d.Log.AppendEntries(time.Now(), d.Source, entries); err != nil {
		return p, false, err
	}
	if err := d.Outbox.Done(entries[len(entries)-1].Seq); err != nil {
		return p, false, fmt.Errorf("acknowledge audit events: %w", err)
	}
	return p, len(entries) >= MaxBatch, nil
}

// AppendEntries writes entries of the outbox named source, as Append does,
// leaving out those that are in the log already. A payload that is not an event,
// which a store of a newer version or a damaged one may hold, is written
// inside an event of the verb "audit.unreadable", so that what follows it gets
// through.
func (l *Log) AppendEntries(now time.Time, source string, entries []Entry) (Progress, error) {
	if err := checkSource(source); err != nil {
		return Progress{}, err
	}
	var last uint64
	for _, e := range entries {
		if e.Seq <= last {
			return Progress{}, fmt.Errorf("the audit outbox gave entry %d after entry %d", e.Seq, last)
		}
		last = e.Seq
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var p Progress
	var b batch
	for _, e := range entries {
		value := e.Payload
		_, fault := Decode(value)
		if fault != nil {
			var err error
			if value, err = unreadable(e.Payload, fault); err != nil {
				return Progress{}, err
			}
		}
		mark := deliveryOf(source, e.Seq, value)
		if l.recent.has(mark) {
			p.Repeated++
			continue
		}
		if fault != nil {
			p.Unreadable++
		}
		b.items = append(b.items, item{mark, value})
	}
	if err := l.appendLocked(now, b); err != nil {
		return Progress{}, err
	}
	p.Written = len(b.items)
	return p, nil
}

// unreadable returns an encoded event that stands for a payload that is none.
// It depends on the payload alone, so that a repetition is known; so its time,
// which nobody knows, is that of the epoch.
func unreadable(payload []byte, fault error) ([]byte, error) {
	return Encode(Event{
		Time:    time.Unix(0, 0),
		Verb:    "audit.unreadable",
		Outcome: Failure,
		Reason:  fmt.Sprintf("%.200s; SHA-256 %x of %+.700q", fault.Error(), sha256.Sum256(payload), payload),
	})
}
