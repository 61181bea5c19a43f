package boltstore

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
)

// keyTime of the meta bucket holds the time of the last commit, in milliseconds
// since 1970: after a restart it is never earlier.
var keyTime = []byte("time")

// keyRestored of the meta bucket holds when the store was last restored from a backup, in
// milliseconds since 1970.
var keyRestored = []byte("restored")

// Restored returns when the store was last restored from a backup, which knows of no use
// since it was made; zero: never.
func (s *Store) Restored() (at time.Time, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		at = timeAt(tx, keyRestored)
		return nil
	})
	return at, err
}

// LastTime returns the time of the last commit before the store was opened; zero
// where that is not known.
func (s *Store) LastTime() time.Time { return s.lastTime }

// Stamp notes the time although nothing changes.
func (s *Store) Stamp(ctx context.Context) error {
	err := s.change(ctx, func(o *overlay) error {
		o.direct = func(*bolt.Tx) error { return nil } // every commit is stamped
		return nil
	})
	if err != nil {
		return fmt.Errorf("note the time: %w", err)
	}
	return nil
}

func readTime(tx *bolt.Tx) time.Time { return timeAt(tx, keyTime) }

func timeAt(tx *bolt.Tx, key []byte) time.Time {
	v := tx.Bucket(bucketMeta).Get(key)
	if len(v) != 8 {
		return time.Time{}
	}
	return time.UnixMilli(int64(min(binary.BigEndian.Uint64(v), 1<<62))).UTC() //nolint:gosec // bounded
}

// stamp notes in a commit when it was made.
func (b *batch) stamp() error {
	if b.s.clock == nil {
		return nil
	}
	now := b.s.clock()
	if now.IsZero() {
		return nil
	}
	return b.tx.Bucket(bucketMeta).Put(keyTime, number(millis(now)))
}
