package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"iter"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// overlay is one change being made: what it did so far, over the transaction
// of its batch, which holds the changes before it.
type overlay struct {
	*tokenstore.Staging
	batch *batch

	answers []answer
	now     time.Time // as KeepAnswer was told

	// What only the store itself does.
	copied  []copied             // tokens as another store has them
	meta    [][]byte             // keys to add to the meta bucket
	formats *tokenstore.Formats  // the prefixes once this is committed
	taken   uint64               // the outbox is emptied up to this number
	direct  func(*bolt.Tx) error // writes to buckets that hold nothing of tokens; nil: none
}

type answer struct {
	key    tokenstore.Digest
	sealed []byte
	until  time.Time
}

func newOverlay(b *batch) *overlay {
	return &overlay{batch: b, Staging: tokenstore.NewStaging(ground{b})}
}

// ground is what a batch did so far, for the next change in it.
type ground struct{ batch *batch }

var _ tokenstore.Ground = ground{}

// Token implements [tokenstore.Ground].
func (g ground) Token(id tokenstore.ID) (*tokenstore.Token, error) {
	return g.batch.s.tokenByID(g.batch.tx, id)
}

// DigestOwner implements [tokenstore.Ground].
func (g ground) DigestOwner(d tokenstore.Digest) (tokenstore.ID, error) {
	v := g.batch.tx.Bucket(bucketDigests).Get(d[:])
	switch len(v) {
	case 0:
		return 0, nil
	case 8:
		return tokenstore.ID(lastNumber(v)), nil
	}
	return 0, g.batch.s.wrong("a digest leads nowhere")
}

// Children implements [tokenstore.Ground].
func (g ground) Children(id tokenstore.ID) iter.Seq2[tokenstore.ID, error] {
	return func(yield func(tokenstore.ID, error) bool) {
		prefix := number(uint64(id))
		c := g.batch.tx.Bucket(bucketChildren).Cursor()
		for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
			if !yield(tokenstore.ID(lastNumber(k)), nil) {
				return
			}
		}
	}
}

// NewID implements [tokenstore.Ground].
func (g ground) NewID() (tokenstore.ID, error) {
	id, ok := tokenstore.ParseID((g.batch.s.lastID + 1).String())
	if !ok {
		return 0, errors.New("the store has given out every id there is")
	}
	g.batch.s.lastID = id
	return id, nil
}

// Answer implements [tokenstore.Tx].
func (o *overlay) Answer(k tokenstore.Digest) ([]byte, error) {
	for _, a := range slices.Backward(o.answers) {
		if a.key == k {
			return bytes.Clone(a.sealed), nil
		}
	}
	v := o.batch.tx.Bucket(bucketAnswers).Get(k[:])
	if len(v) < 8 || !o.now.IsZero() && binary.BigEndian.Uint64(v) <= millis(o.now) {
		return nil, nil
	}
	return bytes.Clone(v[8:]), nil
}

// KeepAnswer implements [tokenstore.Tx]. Of two answers the one that is kept
// until the earlier time counts as older.
func (o *overlay) KeepAnswer(k tokenstore.Digest, sealed []byte, now, until time.Time) error {
	o.now = now
	if until.After(now) {
		o.answers = append(o.answers, answer{k, bytes.Clone(sealed), until})
	}
	return nil
}

// empty reports whether there is nothing to commit.
func (o *overlay) empty() bool {
	return o.Empty() && len(o.answers) == 0 && o.now.IsZero() &&
		len(o.copied) == 0 && len(o.meta) == 0 && o.taken == 0 && o.direct == nil
}
