package boltstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// notices: id → milliseconds since 1970 of an end, days, days: see
// [tokenstore.Notice]. It is
// made when it is first needed.
var bucketNotices = []byte("notices")

// Notice returns what is noted of the warnings before the end of a token.
func (s *Store) Notice(id tokenstore.ID, end time.Time) (tokenstore.Notice, error) {
	var n tokenstore.Notice
	err := s.view(func(tx *bolt.Tx) error {
		n = readNotice(tx, id, end)
		return nil
	})
	if err != nil {
		return tokenstore.Notice{}, fmt.Errorf("read notice: %w", err)
	}
	return n, nil
}

// NoteWarning changes what is noted, and adds the event, if not nil, to the outbox
// in the same commit. Nothing happens once the token is no more.
func (s *Store) NoteWarning(ctx context.Context, id tokenstore.ID, end time.Time, event []byte, change func(*tokenstore.Notice)) error {
	err := s.change(ctx, func(o *overlay) error {
		if o.batch.tx.Bucket(bucketTokens).Get(number(uint64(id))) == nil {
			return nil
		}
		n := readNotice(o.batch.tx, id, end)
		change(&n)
		if event != nil {
			o.Emit(event)
		}
		o.direct = func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(bucketNotices)
			if err != nil {
				return err
			}
			b.FillPercent = scatteredFill
			return b.Put(number(uint64(id)), n.Append(nil))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note a warning: %w", err)
	}
	return nil
}

func readNotice(tx *bolt.Tx, id tokenstore.ID, end time.Time) tokenstore.Notice {
	b := tx.Bucket(bucketNotices)
	if b == nil {
		return tokenstore.ParseNotice(nil, end)
	}
	return tokenstore.ParseNotice(b.Get(number(uint64(id))), end)
}

// sweepTraces forgets what is known beside its record of a token that is no more.
func sweepTraces(tx *bolt.Tx, id tokenstore.ID) error {
	var errs []error
	for _, name := range [][]byte{bucketUsage, bucketNotices} {
		if b := tx.Bucket(name); b != nil {
			errs = append(errs, b.Delete(number(uint64(id))))
		}
	}
	return errors.Join(errs...)
}
