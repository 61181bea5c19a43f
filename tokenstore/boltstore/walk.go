package boltstore

import (
	"bytes"
	"context"
	"fmt"
	"iter"

	bolt "go.etcd.io/bbolt"
)

// walk is a way through a bucket.
type walk[T any] struct {
	what   string // is read, for errors
	bucket []byte // empty where there is none of the name
	from   []byte // the first key
	until  []byte // the key that the way ends before; nil: the bucket's end
	step   int    // how many entries are read in one transaction
	// read makes of an entry what is yielded. It must keep nothing of k and v.
	read func(tx *bolt.Tx, k, v []byte) (T, error)
}

// along yields what lies on the way, in the order of keys. It reads in steps, so
// that whoever takes long over one holds no transaction open; what changes meanwhile
// may or may not be seen. After an error it yields no more.
func along[T any](ctx context.Context, s *Store, w walk[T]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		at, more := w.from, true
		for more {
			if err := ctx.Err(); err != nil {
				yield(none, err)
				return
			}
			var found []T
			err := s.view(func(tx *bolt.Tx) (err error) {
				at, found, more, err = w.next(s, tx, at)
				return err
			})
			if err != nil {
				yield(none, fmt.Errorf("read %s: %w", w.what, err))
				return
			}
			for _, one := range found {
				if !yield(one, nil) {
					return
				}
			}
		}
	}
}

// next reads one step from a key on; then is where the next one begins.
func (w *walk[T]) next(s *Store, tx *bolt.Tx, at []byte) (then []byte, found []T, more bool, err error) {
	b := tx.Bucket(w.bucket)
	if b == nil {
		return nil, nil, false, nil
	}
	c := b.Cursor()
	for k, v := c.Seek(at); k != nil && (w.until == nil || bytes.Compare(k, w.until) < 0); k, v = c.Next() {
		if len(found) == w.step {
			return at, found, true, nil
		}
		if bytes.Compare(k, at) < 0 { // else a damaged bucket could have no end
			return nil, nil, false, s.wrong(w.what + ": its keys are not in order")
		}
		one, err := w.read(tx, k, v)
		if err != nil {
			return nil, nil, false, err
		}
		found = append(found, one)
		at = append(bytes.Clone(k), 0) // right behind it
	}
	return nil, found, false, nil
}
