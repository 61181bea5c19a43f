package boltstore

import (
	"bytes"
	"context"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// bucketCounters: key → counts of a limit, both as package enforce makes them. It
// is made when it is first needed. The key of a token's counts begins with
// counterOfToken and its id; they go over to the token that a reset puts in its
// place, and go when the token is swept.
var bucketCounters = []byte("counters")

const counterOfToken = 0

// Counter is the counts kept under one key.
type Counter struct{ Key, Value []byte }

// Counter returns what is kept under key, nil for nothing.
func (s *Store) Counter(key []byte) ([]byte, error) {
	var value []byte
	err := s.view(func(tx *bolt.Tx) error {
		if b := tx.Bucket(bucketCounters); b != nil {
			value = bytes.Clone(b.Get(key))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	return value, nil
}

// KeepCounters replaces what is kept under each of the keys, all or none, and
// returns once it is durable. It touches nothing of tokens, and makes no event.
func (s *Store) KeepCounters(ctx context.Context, all []Counter) error {
	err := s.change(ctx, func(o *overlay) error {
		o.direct = func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(bucketCounters)
			if err != nil {
				return err
			}
			b.FillPercent = scatteredFill
			for _, c := range all {
				if err := b.Put(c.Key, c.Value); err != nil {
					return err
				}
			}
			return nil
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write counters: %w", err)
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

// inheritCounters gives a token's counts to the one that takes its place, in the
// change that says so.
func inheritCounters(tx *bolt.Tx, before, after *tokenstore.Token) error {
	if before == nil || before.ReplacedBy != 0 || after.ReplacedBy == 0 {
		return nil
	}
	b := tx.Bucket(bucketCounters)
	if b == nil {
		return nil
	}
	prefix := tokenCounters(before.ID)
	k, v := b.Cursor().Seek(prefix)
	if !bytes.HasPrefix(k, prefix) {
		return nil
	}
	heir := append(tokenCounters(after.ReplacedBy), k[len(prefix):]...)
	return b.Put(heir, bytes.Clone(v))
}

func tokenCounters(id tokenstore.ID) []byte {
	return append([]byte{counterOfToken}, number(uint64(id))...)
}

// sweepCounters forgets the counts of a token that is no more.
func sweepCounters(tx *bolt.Tx, id tokenstore.ID) error {
	b := tx.Bucket(bucketCounters)
	if b == nil {
		return nil
	}
	prefix := tokenCounters(id)
	c := b.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Seek(prefix) {
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}
