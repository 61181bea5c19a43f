package boltstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// notices: id → milliseconds since 1970 of an end, days, days: see Notice. It is
// made when it is first needed.
var bucketNotices = []byte("notices")

// NotWarned is the days of a [Notice] before any warning.
const NotWarned = math.MaxUint16

// Notice says of which warnings before its end a token has had its share: each is
// known by the days before the end from which on it is due.
type Notice struct {
	End  time.Time // which end it is about; for another one all begins anew
	Told int       // the last warning in the audit log
	Sent int       // the last that a receiver took
}

// Notice returns what is noted of the warnings before the end of a token.
func (s *Store) Notice(id tokenstore.ID, end time.Time) (Notice, error) {
	var n Notice
	err := s.view(func(tx *bolt.Tx) error {
		n = readNotice(tx, id, end)
		return nil
	})
	if err != nil {
		return Notice{}, fmt.Errorf("read notice: %w", err)
	}
	return n, nil
}

// NoteWarning changes what is noted, and adds the event, if not nil, to the outbox
// in the same commit. Nothing happens once the token is no more.
func (s *Store) NoteWarning(ctx context.Context, id tokenstore.ID, end time.Time, event []byte, change func(*Notice)) error {
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
			value := number(millis(n.End))
			value = binary.BigEndian.AppendUint16(value, uint16(n.Told)) //nolint:gosec // at most NotWarned
			value = binary.BigEndian.AppendUint16(value, uint16(n.Sent)) //nolint:gosec // likewise
			b.FillPercent = scatteredFill
			return b.Put(number(uint64(id)), value)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note a warning: %w", err)
	}
	return nil
}

func readNotice(tx *bolt.Tx, id tokenstore.ID, end time.Time) Notice {
	fresh := Notice{End: end, Told: NotWarned, Sent: NotWarned}
	b := tx.Bucket(bucketNotices)
	if b == nil {
		return fresh
	}
	v := b.Get(number(uint64(id)))
	if len(v) != 12 || binary.BigEndian.Uint64(v) != millis(end) {
		return fresh
	}
	fresh.Told, fresh.Sent = int(binary.BigEndian.Uint16(v[8:])), int(binary.BigEndian.Uint16(v[10:]))
	return fresh
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
