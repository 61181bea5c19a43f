package boltstore

import (
	"bytes"
	"context"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// What is known of the use of tokens lies in buckets of its own, which no
// judgement reads. They are made when they are first needed, so that a store from
// before them needs no migration.
var (
	// usage: id → what package usage makes of it. Only of tokens that are in the
	// store.
	bucketUsage = []byte("usage")
	// usage-names: number → a name that the values in usage stand for by number.
	// Its sequence is the last number given out.
	bucketUsageNames = []byte("usage-names")
)

// UsageNames returns the names that values of [Store.Usage] refer to, the first of
// them being number 1.
func (s *Store) UsageNames() ([]string, error) {
	var names []string
	err := s.view(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketUsageNames)
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			if len(k) != 8 || lastNumber(k) != uint64(len(names)+1) {
				return s.wrong("the names of usage are not in order")
			}
			names = append(names, string(v))
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read usage names: %w", err)
	}
	return names, nil
}

// Usage returns what [Store.MergeUsage] left of a token; nil for nothing.
func (s *Store) Usage(id tokenstore.ID) ([]byte, error) {
	var value []byte
	err := s.view(func(tx *bolt.Tx) error {
		if b := tx.Bucket(bucketUsage); b != nil {
			value = bytes.Clone(b.Get(number(uint64(id))))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	return value, nil
}

// AddUsageNames gives numbers to those of the names that have none, in one commit,
// and returns all there are.
func (s *Store) AddUsageNames(ctx context.Context, names []string) (all []string, err error) {
	err = s.change(ctx, func(o *overlay) error {
		o.direct = func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(bucketUsageNames)
			if err != nil {
				return err
			}
			known := make(map[string]bool, len(names))
			if err := b.ForEach(func(_, v []byte) error { known[string(v)] = true; return nil }); err != nil {
				return err
			}
			for _, name := range names {
				if known[name] {
					continue
				}
				known[name] = true
				n, err := b.NextSequence()
				if err != nil {
					return err
				}
				if err := b.Put(number(n), []byte(name)); err != nil {
					return err
				}
			}
			return nil
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("write usage names: %w", err)
	}
	return s.UsageNames()
}

// MergeUsage replaces, all in one commit, the usage of each of the tokens by what
// merge makes of it; old is nil where there was none. A token that is not in the
// store any more is passed over.
//
// It touches nothing that requests are judged by: no record of a token, no
// generation of a cache, no event. merge may run more than once.
func (s *Store) MergeUsage(ctx context.Context, ids []tokenstore.ID, merge func(id tokenstore.ID, old []byte) []byte) error {
	err := s.change(ctx, func(o *overlay) error {
		values := make(map[tokenstore.ID][]byte, len(ids))
		for _, id := range ids {
			if o.batch.tx.Bucket(bucketTokens).Get(number(uint64(id))) == nil {
				continue
			}
			var old []byte
			if b := o.batch.tx.Bucket(bucketUsage); b != nil {
				old = b.Get(number(uint64(id)))
			}
			values[id] = merge(id, old)
		}
		if len(values) > 0 {
			o.direct = func(tx *bolt.Tx) error { return putUsage(tx, ids, values) }
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write usage: %w", err)
	}
	return nil
}

func putUsage(tx *bolt.Tx, ids []tokenstore.ID, values map[tokenstore.ID][]byte) error {
	usage, err := tx.CreateBucketIfNotExists(bucketUsage)
	if err != nil {
		return err
	}
	usage.FillPercent = scatteredFill
	for _, id := range ids {
		if value, ok := values[id]; ok {
			if err := usage.Put(number(uint64(id)), value); err != nil {
				return err
			}
		}
	}
	return nil
}

// traces checks that what is known beside records is about tokens that are there.
func (c *checker) traces() error {
	for _, name := range [][]byte{bucketUsage, bucketNotices} {
		if c.tx.Bucket(name) == nil {
			continue
		}
		err := c.each(name, func(k, _ []byte) {
			if len(k) != 8 || c.tx.Bucket(bucketTokens).Get(k) == nil {
				c.fault("%s has something under %x, where no token is", name, k)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}
