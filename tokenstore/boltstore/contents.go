package boltstore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// Entries yields all that the store holds, for another store to take over. It reads
// in steps: nothing must be changed meanwhile, as when the store was opened ReadOnly.
func (s *Store) Entries(ctx context.Context) iter.Seq2[tokenstore.Entry, error] {
	return func(yield func(tokenstore.Entry, error) bool) {
		var head []tokenstore.Entry
		err := s.view(func(tx *bolt.Tx) (err error) {
			head, err = s.headEntries(tx)
			return err
		})
		if err != nil {
			yield(tokenstore.Entry{}, fmt.Errorf("read the store: %w", err))
			return
		}
		for _, e := range head {
			if !yield(e, nil) {
				return
			}
		}
		for _, part := range []struct {
			kind   tokenstore.EntryKind
			bucket []byte
		}{
			{tokenstore.EntryDigest, bucketDigests}, {tokenstore.EntryRecord, bucketTokens}, {tokenstore.EntryUsageName, bucketUsageNames},
			{tokenstore.EntryUsage, bucketUsage}, {tokenstore.EntryNotice, bucketNotices}, {tokenstore.EntryCounter, bucketCounters},
			{tokenstore.EntryAnswer, bucketAnswers},
		} {
			for e, err := range s.bucketEntries(ctx, part.kind, part.bucket) {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

// headEntries are what the store says of itself.
func (s *Store) headEntries(tx *bolt.Tx) ([]tokenstore.Entry, error) {
	m, err := readMeta(tx, s.path)
	if err != nil {
		return nil, err
	}
	all := []tokenstore.Entry{
		{Kind: tokenstore.EntryLastID, Value: number(tx.Bucket(bucketTokens).Sequence())},
		{Kind: tokenstore.EntryLastSeq, Value: number(tx.Bucket(bucketOutbox).Sequence())},
	}
	for _, id := range m.traits.Peppers {
		all = append(all, tokenstore.Entry{Kind: tokenstore.EntryPepper, Key: bytes.Clone(id[:])})
	}
	for _, p := range m.traits.Prefixes {
		all = append(all, tokenstore.Entry{Kind: tokenstore.EntryPrefix, Key: []byte(p)})
	}
	for _, f := range m.traits.Foreign {
		all = append(all, tokenstore.Entry{Kind: tokenstore.EntryForeign, Key: append([]byte{byte(f.Scheme)}, f.Key[:]...)})
	}
	slices.SortFunc(all, func(a, b tokenstore.Entry) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), bytes.Compare(a.Key, b.Key))
	})
	return all, nil
}

// bucketEntries yields what one bucket holds, if it is there.
func (s *Store) bucketEntries(ctx context.Context, kind tokenstore.EntryKind, bucket []byte) iter.Seq2[tokenstore.Entry, error] {
	return along(ctx, s, walk[tokenstore.Entry]{what: "the entries of a kind", bucket: bucket, step: stepEntries,
		read: func(tx *bolt.Tx, k, v []byte) (tokenstore.Entry, error) {
			value, err := s.entryValue(tx, kind, k, v)
			return tokenstore.Entry{Kind: kind, Key: bytes.Clone(k), Value: value}, err
		}})
}

// entryValue turns what a bucket holds into the value of an entry.
func (s *Store) entryValue(tx *bolt.Tx, kind tokenstore.EntryKind, k, v []byte) ([]byte, error) {
	switch kind {
	case tokenstore.EntryRecord:
		if len(v) == 0 {
			return nil, s.wrong("a token has no record")
		}
		return bytes.Clone(v[1:]), nil // the state byte is an index
	case tokenstore.EntryDigest:
		if len(k) != len(tokenstore.Digest{}) || len(v) != 8 {
			return nil, s.wrong("a digest leads nowhere")
		}
		retired := byte(1)
		t, err := s.tokenByID(tx, tokenstore.ID(lastNumber(v)))
		switch {
		case err == nil && hasDigest(t, tokenstore.Digest(k)):
			retired = 0
		case err != nil && !errors.Is(err, tokenstore.ErrNotFound):
			return nil, err
		}
		return append(bytes.Clone(v), retired), nil
	default:
		return bytes.Clone(v), nil
	}
}

func hasDigest(t *tokenstore.Token, d tokenstore.Digest) bool {
	for i := range t.Secrets {
		if t.Secrets[i].Digest.Equal(d) {
			return true
		}
	}
	return false
}

// Load makes a store at o.Path that holds the entries and has the ID of the store
// that they come from. A record that cannot be read is an error. What is at o.Path
// after an error is not a store, and is the caller's to remove.
func Load(ctx context.Context, o Options, id string, entries iter.Seq2[tokenstore.Entry, error]) error {
	o.ReplicaOf = id
	s, err := Create(o)
	if err != nil {
		return err
	}
	err = s.load(ctx, entries)
	if err = errors.Join(err, s.Close()); err != nil {
		return fmt.Errorf("fill the token store: %w", err)
	}
	return Detach(o.Path, id)
}

// loadStep is how many entries are written in one commit. Each writes the pages it
// touches anew.
const loadStep = 20_000

func (s *Store) load(ctx context.Context, entries iter.Seq2[tokenstore.Entry, error]) error {
	step := make([]tokenstore.Entry, 0, loadStep)
	for e, err := range entries {
		if err != nil {
			return err
		}
		if step = append(step, e); len(step) < loadStep {
			continue
		}
		if err := s.loadEntries(ctx, step); err != nil {
			return err
		}
		step = step[:0]
	}
	return s.loadEntries(ctx, step)
}

func (s *Store) loadEntries(ctx context.Context, step []tokenstore.Entry) error {
	return s.change(ctx, func(o *overlay) error {
		u := tokenstore.Update{Traits: &tokenstore.Traits{}}
		var rest []tokenstore.Entry
		for i := range step {
			e := &step[i]
			taken, err := o.loadEntry(&u, e)
			if err != nil {
				return err
			}
			if !taken {
				rest = append(rest, *e)
			}
		}
		unreadable, err := o.follow(&u)
		if err != nil {
			return err
		}
		if unreadable > 0 {
			return fmt.Errorf("%d tokens have records that cannot be read: see that tokenstore.pepper_files holds all peppers", unreadable)
		}
		follow := o.direct
		o.direct = func(tx *bolt.Tx) error { return errors.Join(follow(tx), putEntries(tx, rest)) }
		return nil
	})
}

var errEntry = errors.New("what the store was filled from is damaged")

// loadEntry stages what belongs to an update of a replica, or to an answer.
func (o *overlay) loadEntry(u *tokenstore.Update, e *tokenstore.Entry) (taken bool, err error) {
	t := u.Traits
	switch e.Kind {
	case tokenstore.EntryPepper:
		if len(e.Key) != len(tokenstore.PepperID{}) {
			return false, errEntry
		}
		t.Peppers = append(t.Peppers, tokenstore.PepperID(e.Key))
	case tokenstore.EntryPrefix:
		t.Prefixes = append(t.Prefixes, string(e.Key))
	case tokenstore.EntryForeign:
		if len(e.Key) != 1+len(tokenstore.PepperID{}) {
			return false, errEntry
		}
		t.Foreign = append(t.Foreign, tokenstore.Foreign{Scheme: tokenstore.Scheme(e.Key[0]), Key: tokenstore.PepperID(e.Key[1:])})
	case tokenstore.EntryDigest:
		if len(e.Key) != len(tokenstore.Digest{}) || len(e.Value) != 9 {
			return false, errEntry
		}
		u.Retired = append(u.Retired, tokenstore.Retired{Digest: tokenstore.Digest(e.Key), Owner: tokenstore.ID(binary.BigEndian.Uint64(e.Value))})
	case tokenstore.EntryRecord:
		if len(e.Key) != 8 {
			return false, errEntry
		}
		u.Records = append(u.Records, tokenstore.SealedRecord{ID: tokenstore.ID(lastNumber(e.Key)), Sealed: e.Value})
	case tokenstore.EntryAnswer:
		if len(e.Key) != len(tokenstore.Digest{}) || len(e.Value) < 8 {
			return false, errEntry
		}
		until := time.UnixMilli(int64(binary.BigEndian.Uint64(e.Value))) //nolint:gosec // millis made it
		o.answers = append(o.answers, answer{tokenstore.Digest(e.Key), e.Value[8:], until})
	case tokenstore.EntryLastID:
		if len(e.Value) != 8 {
			return false, errEntry
		}
		o.batch.s.lastID = max(o.batch.s.lastID, tokenstore.ID(lastNumber(e.Value)))
	default:
		return false, nil
	}
	return true, nil
}

// putEntries writes what lies in buckets of its own.
func putEntries(tx *bolt.Tx, entries []tokenstore.Entry) error {
	for i := range entries {
		e := &entries[i]
		if e.Kind == tokenstore.EntryLastSeq {
			if len(e.Value) != 8 {
				return errEntry
			}
			if err := tx.Bucket(bucketOutbox).SetSequence(lastNumber(e.Value)); err != nil {
				return err
			}
			continue
		}
		name, ok := entryBuckets[e.Kind]
		if !ok {
			return errEntry
		}
		b, err := tx.CreateBucketIfNotExists(name)
		if err != nil {
			return err
		}
		if e.Kind == tokenstore.EntryUsageName {
			if err := b.SetSequence(lastNumber(e.Key)); err != nil {
				return err
			}
		}
		b.FillPercent = orderedFill
		if err := b.Put(e.Key, e.Value); err != nil {
			return err
		}
	}
	return nil
}

var entryBuckets = map[tokenstore.EntryKind][]byte{
	tokenstore.EntryUsageName: bucketUsageNames, tokenstore.EntryUsage: bucketUsage,
	tokenstore.EntryNotice: bucketNotices, tokenstore.EntryCounter: bucketCounters,
}

// Follows returns where the closed store at path, if it is a replica, has come in
// what it follows.
func Follows(path string) (p tokenstore.Position, replica bool, err error) {
	db, err := openBolt(path, 0, true)
	if err != nil {
		return p, false, fmt.Errorf("look at token store: %w", err)
	}
	defer recovering(path, &err)()
	err = db.View(func(tx *bolt.Tx) error {
		if _, err := readMeta(tx, path); err != nil {
			return err
		}
		if p, replica, err = readPosition(tx); err != nil {
			return damaged(path, "it does not say which store it is a copy of")
		}
		return nil
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return p, false, fmt.Errorf("look at token store: %w", err)
	}
	return p, replica, nil
}

// Detach makes the closed replica at path a store of its own, with the ID of the
// one that it followed. What else that one keeps of tokens, their use and the
// counts of their limits, is in it only if [Load] made it.
func Detach(path, id string) (err error) {
	db, err := openBolt(path, 0, false)
	if err != nil {
		return fmt.Errorf("detach token store: %w", err)
	}
	defer recovering(path, &err)()
	err = db.Update(func(tx *bolt.Tx) error {
		if _, err := readMeta(tx, path); err != nil {
			return err
		}
		m := tx.Bucket(bucketMeta)
		return errors.Join(m.Delete(keyReplica), m.Put(keyID, []byte(id)))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("detach token store: %w", err)
	}
	return nil
}
