package boltstore

import (
	"bytes"
	"context"
	"iter"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// silences: id → nothing, of the tokens that are not revoked and have a secret
// that ends by silence. It is made when it is first needed.
var bucketSilences = []byte("silences")

// AwaitingSilence yields the ids of the tokens that have a secret which ends once
// it has not been used for long enough, oldest first. It reads in steps, as List
// does.
func (s *Store) AwaitingSilence(ctx context.Context) iter.Seq2[tokenstore.ID, error] {
	return along(ctx, s, walk[tokenstore.ID]{what: "the list of silences", bucket: bucketSilences, step: stepTokens,
		read: func(_ *bolt.Tx, k, _ []byte) (tokenstore.ID, error) {
			if len(k) != 8 {
				return 0, s.wrong("the list of silences names no token")
			}
			return tokenstore.ID(lastNumber(k)), nil
		}})
}

func silenceOf(t *tokenstore.Token) []byte {
	if t == nil || t.State == tokenstore.StateRevoked || !t.AwaitsSilence() {
		return nil
	}
	return number(uint64(t.ID))
}

// moveSilence keeps the list of silences in step with a token.
func moveSilence(tx *bolt.Tx, before, after []byte) error {
	if bytes.Equal(before, after) {
		return nil
	}
	b, err := tx.CreateBucketIfNotExists(bucketSilences)
	if err != nil {
		return err
	}
	return replace(b, before, after)
}

// silences checks that the list holds the tokens that it should and no others.
func (c *checker) silences() error {
	b := c.tx.Bucket(bucketSilences)
	listed := 0
	if b != nil {
		err := c.each(bucketSilences, func(k, _ []byte) {
			listed++
			if t := c.named(bucketSilences, k, 8); t != nil && !bytes.Equal(k, silenceOf(t)) {
				c.fault("token %d is in the list of silences and awaits none", t.ID)
			}
		})
		if err != nil {
			return err
		}
	}
	if listed != c.awaiting {
		c.fault("%d tokens await silence, %d are listed", c.awaiting, listed)
	}
	return nil
}
