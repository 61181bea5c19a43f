package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// keyReplica of the meta bucket says that the store follows another one, and how
// far it has come. What it holds of tokens comes from there alone.
var keyReplica = []byte("replica")

// replicaState is the value of keyReplica.
type replicaState struct {
	Store    string    `json:"store"`
	Revision int64     `json:"revision"`
	Head     string    `json:"head,omitempty"`
	FreshAt  time.Time `json:"fresh_at"`
	Gaps     bool      `json:"gaps,omitempty"`
}

func readPosition(tx *bolt.Tx) (p tokenstore.Position, replica bool, err error) {
	v := tx.Bucket(bucketMeta).Get(keyReplica)
	if v == nil {
		return p, false, nil
	}
	var s replicaState
	if err := json.Unmarshal(v, &s); err != nil {
		return p, true, err
	}
	return tokenstore.Position(s), true, nil
}

func writePosition(tx *bolt.Tx, p *tokenstore.Position) error {
	v, err := json.Marshal(replicaState(*p))
	if err != nil {
		return err
	}
	return tx.Bucket(bucketMeta).Put(keyReplica, v)
}

// checkReplica refuses a store of its own where a copy is wanted, and the other way
// round.
func (s *Store) checkReplica(tx *bolt.Tx) error {
	p, is, err := readPosition(tx)
	switch {
	case err != nil:
		return damaged(s.path, "it does not say which store it is a copy of")
	case is && !s.replica:
		return fmt.Errorf("%s is a node's copy of the token store in etcd (%s), not a store of its own: configure tokenstore.etcd, or name another file in tokenstore.path", s.path, p.Store)
	case !is && s.replica:
		return fmt.Errorf("%s is a token store of its own and cannot become a copy of the one in etcd: copy its tokens there with `tokenward migrate --to etcd --config F`, or name another file in tokenstore.path", s.path)
	}
	s.position.Store(&p)
	return nil
}

// Followed returns how far a replica has come.
func (s *Store) Followed() tokenstore.Position {
	if p := s.position.Load(); p != nil {
		return *p
	}
	return tokenstore.Position{}
}

// copied is a token as the store that is followed has it.
type copied struct {
	id            tokenstore.ID
	before, after *tokenstore.Token
	value         []byte
}

// Apply makes the store, which is a replica, follow the one that it copies.
// Observers are told as of any change. A record that cannot be read is left out, and
// so is one that brings back a revoked token; either token is refused, and unreadable
// says how many there were.
func (s *Store) Apply(ctx context.Context, u *tokenstore.Update) (unreadable int, err error) {
	if !s.replica {
		return 0, fmt.Errorf("%w: %s is not a replica", tokenstore.ErrInvariant, s.path)
	}
	position := u.Position
	err = s.change(ctx, func(o *overlay) error {
		var err error
		if unreadable, err = o.follow(u); err != nil {
			return err
		}
		position = u.Position
		if position == (tokenstore.Position{}) {
			position = s.Followed()
		}
		position.Gaps = position.Gaps || unreadable > 0
		return nil
	})
	if err != nil {
		return unreadable, fmt.Errorf("follow the token store: %w", err)
	}
	s.position.Store(&position)
	return unreadable, nil
}

// follow stages an update.
func (o *overlay) follow(u *tokenstore.Update) (unreadable int, err error) {
	s, tx := o.batch.s, o.batch.tx
	staged := make(map[tokenstore.ID]int) // where in o.copied the token was last
	for i := range u.Records {
		r := &u.Records[i]
		bad, err := o.copyRecord(r, staged)
		if err != nil {
			return 0, err
		}
		if bad {
			unreadable++
		}
		s.lastID = max(s.lastID, r.ID)
	}
	for i := range u.Retired {
		s.lastID = max(s.lastID, u.Retired[i].Owner) // it may be swept
	}
	if u.Traits != nil {
		m, err := readMeta(tx, s.path)
		if err != nil {
			return 0, err
		}
		o.learn(m, u.Traits)
	}
	position, gaps := u.Position, unreadable > 0
	if position == (tokenstore.Position{}) {
		position = s.Followed()
	}
	position.Gaps = position.Gaps || gaps
	o.direct = func(tx *bolt.Tx) error {
		return errors.Join(o.retire(tx, u.Retired), o.linkDigests(tx), writePosition(tx, &position))
	}
	return unreadable, nil
}

// copyRecord stages one record over those before it.
func (o *overlay) copyRecord(r *tokenstore.SealedRecord, staged map[tokenstore.ID]int) (unreadable bool, err error) {
	s := o.batch.s
	c := copied{id: r.ID}
	old := o.batch.tx.Bucket(bucketTokens).Get(number(uint64(r.ID)))
	if at, ok := staged[r.ID]; ok {
		old, c.before = o.copied[at].value, o.copied[at].after
	} else if old != nil {
		if c.before, err = s.decode(r.ID, old); err != nil {
			return false, err
		}
	}
	if len(old) > 0 && len(r.Sealed) > 0 && bytes.Equal(old[1:], r.Sealed) {
		return false, nil
	}
	if len(r.Sealed) > 0 {
		if c.after, err = s.unseal(r); err != nil {
			unreadable, c.after = true, nil
		} else if revives(c.before, c.after) {
			return true, nil
		} else {
			c.value = append([]byte{byte(c.after.State)}, r.Sealed...)
		}
	}
	if c.before == nil && c.after == nil {
		return unreadable, nil
	}
	staged[r.ID] = len(o.copied)
	o.copied = append(o.copied, c)
	return unreadable, nil
}

// revives reports whether a step would bring back a token that was revoked. No
// change does; whoever can write where the records come from, or restore a backup
// there, could. The copy then keeps the token as it was.
func revives(before, after *tokenstore.Token) bool {
	if before == nil || before.State != tokenstore.StateRevoked || after.State == tokenstore.StateRevoked {
		return false
	}
	return slices.ContainsFunc(after.Secrets, func(s tokenstore.SecretRecord) bool {
		return slices.ContainsFunc(before.Secrets, func(o tokenstore.SecretRecord) bool { return o.Digest.Equal(s.Digest) })
	})
}

func (s *Store) unseal(r *tokenstore.SealedRecord) (*tokenstore.Token, error) {
	record, err := s.peppers.Unseal(r.Sealed)
	if err != nil {
		return nil, err
	}
	t, err := tokenstore.DecodeRecord(record)
	if err != nil {
		return nil, err
	}
	if t.ID != r.ID {
		return nil, s.wrong(fmt.Sprintf("token %d has the record of another token", r.ID))
	}
	return t, nil
}

// retire notes digests that no token may have again.
func (o *overlay) retire(tx *bolt.Tx, retired []tokenstore.Retired) error {
	digests := tx.Bucket(bucketDigests)
	digests.FillPercent = scatteredFill
	for i := range retired {
		if err := o.leadTo(digests, &retired[i]); err != nil {
			return err
		}
	}
	return nil
}

// leadTo has a digest lead to its token, and writes nothing where it does.
func (o *overlay) leadTo(digests *bolt.Bucket, r *tokenstore.Retired) error {
	if v := digests.Get(r.Digest[:]); len(v) == 8 && lastNumber(v) == uint64(r.Owner) {
		return nil
	}
	return o.batch.s.putDigest(digests, &r.Digest, r.Owner)
}

// linkDigests leads the secrets of the copied tokens to them.
func (o *overlay) linkDigests(tx *bolt.Tx) error {
	digests := tx.Bucket(bucketDigests)
	digests.FillPercent = scatteredFill
	var links []tokenstore.Retired
	for i := range o.copied {
		if t := o.copied[i].after; t != nil {
			for j := range t.Secrets {
				links = append(links, tokenstore.Retired{Digest: t.Secrets[j].Digest, Owner: t.ID})
			}
		}
	}
	// In order, those of one page come together.
	slices.SortStableFunc(links, func(a, b tokenstore.Retired) int { return bytes.Compare(a.Digest[:], b.Digest[:]) })
	for i := range links {
		if err := o.leadTo(digests, &links[i]); err != nil {
			return err
		}
	}
	return nil
}

// learn adds what t says to what the store, which says m, says of its secrets.
func (o *overlay) learn(m *meta, t *tokenstore.Traits) {
	known := len(o.meta)
	for _, id := range t.Peppers {
		if !slices.Contains(m.traits.Peppers, id) {
			o.meta, m.traits.Peppers = append(o.meta, pepperKey(id)), append(m.traits.Peppers, id)
		}
	}
	for _, p := range t.Prefixes {
		if !slices.Contains(m.traits.Prefixes, p) {
			o.meta, m.traits.Prefixes = append(o.meta, prefixKey(p)), append(m.traits.Prefixes, p)
		}
	}
	for _, f := range t.Foreign {
		if !slices.Contains(m.traits.Foreign, f) {
			o.meta, m.traits.Foreign = append(o.meta, schemeKey(f)), append(m.traits.Foreign, f)
		}
	}
	if len(o.meta) > known {
		o.formats = m.formats()
	}
}

// IDsFrom returns the ids of stored tokens from an id on, in ascending order, at
// most limit of them.
func (s *Store) IDsFrom(from tokenstore.ID, limit int) (ids []tokenstore.ID, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketTokens).Cursor()
		for k, _ := c.Seek(number(uint64(from))); k != nil && len(ids) < limit; k, _ = c.Next() {
			ids = append(ids, tokenstore.ID(binary.BigEndian.Uint64(k)))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list token ids: %w", err)
	}
	return ids, nil
}

// Children yields the ids of the tokens that id made and that are not revoked,
// oldest first, as of one moment.
func (s *Store) Children(ctx context.Context, id tokenstore.ID) iter.Seq2[tokenstore.ID, error] {
	return func(yield func(tokenstore.ID, error) bool) {
		var ids []tokenstore.ID
		err := ctx.Err()
		if err == nil {
			err = s.view(func(tx *bolt.Tx) error {
				for child, err := range (ground{&batch{s: s, tx: tx}}).Children(id) {
					if err != nil {
						return err
					}
					ids = append(ids, child)
				}
				return nil
			})
		}
		if err != nil {
			yield(0, fmt.Errorf("list the tokens that token %d made: %w", id, err))
			return
		}
		for _, child := range ids {
			if !yield(child, nil) {
				return
			}
		}
	}
}

// Records yields every token as it is kept, sealed, in the order of ids. It reads
// in steps, as List does.
func (s *Store) Records(ctx context.Context) iter.Seq2[tokenstore.SealedRecord, error] {
	return along(ctx, s, walk[tokenstore.SealedRecord]{what: "the records", bucket: bucketTokens, step: stepTokens,
		read: func(_ *bolt.Tx, k, v []byte) (r tokenstore.SealedRecord, err error) {
			if len(k) != 8 || len(v) == 0 {
				return r, s.wrong("a token has no record")
			}
			return tokenstore.SealedRecord{ID: tokenstore.ID(lastNumber(k)), Sealed: bytes.Clone(v[1:])}, nil
		}})
}

// Digests yields every digest that a secret has or ever had, and whose it is. It
// reads in steps, as List does.
func (s *Store) Digests(ctx context.Context) iter.Seq2[tokenstore.Retired, error] {
	return along(ctx, s, walk[tokenstore.Retired]{what: "the digests", bucket: bucketDigests, step: stepEntries,
		read: func(_ *bolt.Tx, k, v []byte) (r tokenstore.Retired, err error) {
			if len(k) != len(tokenstore.Digest{}) || len(v) != 8 {
				return r, s.wrong("a digest leads nowhere")
			}
			return tokenstore.Retired{Digest: tokenstore.Digest(k), Owner: tokenstore.ID(lastNumber(v))}, nil
		}})
}
