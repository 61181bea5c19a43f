package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// Event is an audit event that waits in the outbox. Numbers rise by one from
// event to event, in the order of the changes, and are never used again.
type Event struct {
	Seq     uint64
	Payload []byte
}

// Pending returns the oldest waiting events, at most limit of them.
func (s *Store) Pending(limit int) ([]Event, error) {
	var events []Event
	err := s.view(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketOutbox).Cursor()
		for k, v := c.First(); k != nil && len(events) < limit; k, v = c.Next() {
			events = append(events, Event{lastNumber(k), bytes.Clone(v)})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read outbox: %w", err)
	}
	return events, nil
}

// Done forgets the events up to and including seq, which the audit log has on
// its disk. After a crash between the two Pending returns them once more.
func (s *Store) Done(seq uint64) error {
	err := s.change(context.Background(), func(o *overlay) error {
		if o.batch.now.outbox > 0 {
			o.taken = min(seq, math.MaxUint64-1)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("empty outbox: %w", err)
	}
	return nil
}

// Wake receives when events may wait: once after opening if some do, and after
// commits that added some. Several such moments can be one signal.
func (s *Store) Wake() <-chan struct{} { return s.wake }

func (s *Store) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (b *batch) applyEvents(o *overlay) error {
	out := b.tx.Bucket(bucketOutbox)
	out.FillPercent = orderedFill
	for _, event := range o.Events() {
		seq, err := out.NextSequence()
		if err != nil {
			return err
		}
		if err := out.Put(number(seq), event); err != nil {
			return err
		}
		b.now.outbox++
	}
	if o.taken == 0 {
		return nil
	}
	taken := keysUntil(out, number(o.taken+1))
	b.now.outbox -= len(taken)
	return deleteAll(out, taken)
}

// keysUntil returns copies of a bucket's keys before end.
func keysUntil(b *bolt.Bucket, end []byte) [][]byte {
	var keys [][]byte
	c := b.Cursor()
	for k, _ := c.First(); k != nil && bytes.Compare(k, end) < 0; k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	return keys
}

func deleteAll(b *bolt.Bucket, keys [][]byte) error {
	for _, k := range keys {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// applyAnswers first drops the answers past their time, then adds, and last
// drops the oldest beyond what is kept.
func (b *batch) applyAnswers(o *overlay) error {
	answers, ends := b.tx.Bucket(bucketAnswers), b.tx.Bucket(bucketAnswerEnds)
	if !o.now.IsZero() {
		for _, end := range keysUntil(ends, number(millis(o.now)+1)) {
			if err := b.dropEnd(end); err != nil {
				return err
			}
		}
	}
	for _, a := range o.answers {
		if err := b.dropAnswer(a.key[:]); err != nil {
			return err
		}
		until := number(millis(a.until))
		if err := answers.Put(a.key[:], append(bytes.Clone(until), a.sealed...)); err != nil {
			return err
		}
		if err := ends.Put(append(until, a.key[:]...), nil); err != nil {
			return err
		}
		b.now.answers++
	}
	for b.now.answers > tokenstore.MaxAnswers {
		oldest, _ := ends.Cursor().First()
		if err := b.dropEnd(oldest); err != nil {
			return err
		}
	}
	return nil
}

// dropAnswer forgets the answer under k, if there is one.
func (b *batch) dropAnswer(k []byte) error {
	v := b.tx.Bucket(bucketAnswers).Get(k)
	if len(v) < 8 {
		return nil
	}
	return b.dropEnd(append(bytes.Clone(v[:8]), k...))
}

// dropEnd forgets the answer that an entry of the answers' ends stands for.
func (b *batch) dropEnd(end []byte) error {
	end = bytes.Clone(end) // it may lie in the page that is about to change
	b.now.answers--
	return errors.Join(b.tx.Bucket(bucketAnswerEnds).Delete(end), b.tx.Bucket(bucketAnswers).Delete(end[8:]))
}
