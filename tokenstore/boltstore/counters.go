package boltstore

import (
	"bytes"
	"context"
	"fmt"
	"iter"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// bucketCounters: key → counts of a limit, both as package enforce makes them. It
// is made when it is first needed. The key of a token's counts begins with
// counterOfToken and the id of the first of its lineage; they go when the last of
// the lineage is swept.
var bucketCounters = []byte("counters")

const counterOfToken = 0

// Counter returns what is kept under key, nil for nothing.
func (s *Store) Counter(key []byte) ([]byte, error) {
	var value []byte
	err := s.view(func(tx *bolt.Tx) error {
		value = bytes.Clone(counter(tx, key))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	return value, nil
}

// Count is one counter: what is kept under a key.
type Count struct{ Key, Value []byte }

// Counts yields all counters in the order of their keys. It reads in steps, as List
// does.
func (s *Store) Counts(ctx context.Context) iter.Seq2[Count, error] {
	return along(ctx, s, walk[Count]{what: "counters", bucket: bucketCounters, step: countersStep,
		read: func(_ *bolt.Tx, k, v []byte) (Count, error) { return Count{bytes.Clone(k), bytes.Clone(v)}, nil }})
}

// MoveCounters replaces what is kept under each of the keys, which are all different,
// by what move makes of it, all or none, and returns once that is durable. Where
// everything stays the same nothing is written. It touches nothing of tokens, and
// makes no event. move may run more than once, and does not keep old.
func (s *Store) MoveCounters(ctx context.Context, keys [][]byte, move func(i int, old []byte) ([]byte, error)) error {
	moved := func(tx *bolt.Tx) (values map[int][]byte, err error) {
		values = make(map[int][]byte)
		for i, key := range keys {
			old := counter(tx, key)
			next, err := move(i, old)
			if err != nil {
				return nil, err
			}
			if !bytes.Equal(old, next) {
				values[i] = next
			}
		}
		return values, nil
	}
	changes := false
	err := s.view(func(tx *bolt.Tx) error {
		values, err := moved(tx)
		changes = len(values) > 0
		return err
	})
	if err == nil && changes {
		err = s.change(ctx, func(o *overlay) error {
			values, err := moved(o.batch.tx)
			if err == nil && len(values) > 0 {
				o.direct = func(tx *bolt.Tx) error { return putCounters(tx, keys, values) }
			}
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("write counters: %w", err)
	}
	return nil
}

func counter(tx *bolt.Tx, key []byte) []byte {
	if b := tx.Bucket(bucketCounters); b != nil {
		return b.Get(key)
	}
	return nil
}

// putCounters writes the values of those keys that have one.
func putCounters(tx *bolt.Tx, keys [][]byte, values map[int][]byte) error {
	b, err := tx.CreateBucketIfNotExists(bucketCounters)
	if err != nil {
		return err
	}
	b.FillPercent = scatteredFill
	for i, value := range values {
		if err := b.Put(keys[i], value); err != nil {
			return err
		}
	}
	return nil
}

// DropCounters forgets every counter that over says is over, in steps, so that
// other changes get their turn. It returns how many there were.
func (s *Store) DropCounters(ctx context.Context, over func(key, value []byte) bool) (int, error) {
	dropped := 0
	var from []byte
	for {
		var keys [][]byte
		err := s.view(func(tx *bolt.Tx) error {
			b := tx.Bucket(bucketCounters)
			if b == nil {
				from = nil
				return nil
			}
			c := b.Cursor()
			k, v := c.Seek(from)
			for n := 0; k != nil && n < countersStep; n++ {
				if over(k, v) {
					keys = append(keys, bytes.Clone(k))
				}
				k, v = c.Next()
			}
			from = bytes.Clone(k)
			return nil
		})
		if err == nil && len(keys) > 0 {
			err = s.change(ctx, func(o *overlay) error {
				o.direct = func(tx *bolt.Tx) error { return dropCounters(tx, keys, over) }
				return nil
			})
			dropped += len(keys)
		}
		if err != nil {
			return dropped, fmt.Errorf("drop counters: %w", err)
		}
		if from == nil {
			return dropped, nil
		}
	}
}

// countersStep is how many counters are looked at in one transaction.
const countersStep = 10_000

func dropCounters(tx *bolt.Tx, keys [][]byte, over func(key, value []byte) bool) error {
	b := tx.Bucket(bucketCounters)
	for _, k := range keys {
		if !over(k, b.Get(k)) {
			continue // used again meanwhile
		}
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// sweepCounters forgets the counts of a lineage that is no more.
func sweepCounters(tx *bolt.Tx, id tokenstore.ID) error {
	b := tx.Bucket(bucketCounters)
	if b == nil {
		return nil
	}
	prefix := append([]byte{counterOfToken}, number(uint64(id))...)
	c := b.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Seek(prefix) {
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}
