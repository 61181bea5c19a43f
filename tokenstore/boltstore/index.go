package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// apply writes what a change did into the batch's transaction.
func (b *batch) apply(o *overlay) error {
	var run appended
	for t := range o.Tokens() {
		var value []byte
		if t.After != nil {
			value = append([]byte{byte(t.After.State)}, b.s.peppers.Seal(t.Record)...)
		}
		if err := b.applyToken(t.ID, t.Before, t.After, value, &run); err != nil {
			return err
		}
		if t.Forgets == 0 {
			continue
		}
		if err := sweepCounters(b.tx, t.Forgets); err != nil {
			return err
		}
	}
	for _, c := range o.copied {
		if err := b.applyToken(c.id, c.before, c.after, c.value, &run); err != nil {
			return err
		}
	}
	if err := run.count(b.tx); err != nil {
		return err
	}
	digests := b.tx.Bucket(bucketDigests)
	digests.FillPercent = scatteredFill
	for d, id := range o.Digests() {
		if err := b.s.putDigest(digests, &d, id); err != nil {
			return err
		}
	}
	for _, k := range o.meta {
		if err := b.tx.Bucket(bucketMeta).Put(k, present); err != nil {
			return err
		}
	}
	if o.direct != nil {
		if err := o.direct(b.tx); err != nil {
			return err
		}
	}
	return errors.Join(b.applyEvents(o), b.applyAnswers(o))
}

// finish writes what is the same for the whole batch.
func (b *batch) finish() error {
	return errors.Join(
		b.tx.Bucket(bucketTokens).SetSequence(uint64(b.s.lastID)),
		writeStates(b.tx, b.now.states),
		b.stamp(),
	)
}

// applyToken writes what became of a token. before is nil for a new one, after for
// one that is swept, and value is after as the tokens bucket holds it. What is new
// and the last of all may be counted by run, later.
func (b *batch) applyToken(id tokenstore.ID, before, after *tokenstore.Token, value []byte, run *appended) error {
	tokens := b.tx.Bucket(bucketTokens)
	tokens.FillPercent = orderedFill
	isLast := before == nil && after != nil && isAbove(tokens, id)
	var err error
	if !isLast {
		err = run.count(b.tx)
	}
	if err != nil {
		return err
	}
	if after != nil {
		err = tokens.Put(number(uint64(id)), value)
	} else {
		err = errors.Join(tokens.Delete(number(uint64(id))), sweepTraces(b.tx, id))
	}
	if err != nil {
		return err
	}
	was, is := placeOf(before), placeOf(after)
	if was.state != 0 {
		b.now.states[was.state]--
	}
	if is.state != 0 {
		b.now.states[is.state]++
	}
	owned := after
	if owned == nil {
		owned = before
	}
	if owned == nil {
		return nil // made and swept in one change
	}
	switch {
	case was.state == is.state:
	case isLast:
		err = run.add(b.tx, id, is.state, listsOf(owned))
	default:
		for _, l := range listsOf(owned) {
			err = errors.Join(err, l.move(b.tx, id, was.state, is.state))
		}
	}
	if err != nil {
		return err
	}
	return errors.Join(
		replace(b.tx.Bucket(bucketChildren), was.child, is.child),
		replace(b.tx.Bucket(bucketEnds), was.end, is.end),
		moveSilence(b.tx, silenceOf(before), silenceOf(after)),
	)
}

// isAbove reports whether id is above all in a bucket of ids.
func isAbove(b *bolt.Bucket, id tokenstore.ID) bool {
	last, _ := b.Cursor().Last()
	return last == nil || tokenstore.ID(lastNumber(last)) < id
}

// place is where the indexes hold a token; nothing for none.
type place struct {
	state tokenstore.State
	child []byte // key in children
	end   []byte // key in ends
}

func placeOf(t *tokenstore.Token) place {
	if t == nil {
		return place{}
	}
	p := place{state: t.State}
	switch {
	case t.State == tokenstore.StateRevoked:
		p.end = key(millis(t.EndedAt), uint64(t.ID))
	case !t.Expiry.Never:
		p.end = key(millis(t.Expiry.At), uint64(t.ID))
	}
	if t.Creator.ID != 0 && t.State != tokenstore.StateRevoked {
		p.child = key(uint64(t.Creator.ID), uint64(t.ID))
	}
	return p
}

// replace moves an entry that is all key.
func replace(b *bolt.Bucket, before, after []byte) error {
	if bytes.Equal(before, after) {
		return nil
	}
	if before != nil {
		if err := b.Delete(before); err != nil {
			return err
		}
	}
	if after == nil {
		return nil
	}
	b.FillPercent = scatteredFill
	return b.Put(after, nil)
}

// list is an ordered set of tokens that a query can ask for: all, those of an
// account, or those of an owner in it.
type list struct {
	bucket []byte // where its ids are
	prefix []byte // before each id there
	counts []byte // before each boundary in bucketCounts
}

func listAll() list { return list{bucket: bucketTokens, counts: []byte{0}} }

func listAccount(account uint64) list {
	k := key(account)
	return list{bucket: bucketAccounts, prefix: k, counts: append([]byte{1}, k...)}
}

func listOwner(account, owner uint64) list {
	k := key(account, owner)
	return list{bucket: bucketOwners, prefix: k, counts: append([]byte{2}, k...)}
}

func listsOf(t *tokenstore.Token) []list {
	return []list{listAll(), listAccount(t.Account), listOwner(t.Account, t.Owner)}
}

// at returns the key of id in the list's bucket.
func (l *list) at(id tokenstore.ID) []byte {
	return binary.BigEndian.AppendUint64(bytes.Clone(l.prefix), uint64(id))
}

// enter puts the token's state into the list's bucket; state 0 is not being there.
func (l *list) enter(tx *bolt.Tx, id tokenstore.ID, state tokenstore.State) error {
	if bytes.Equal(l.bucket, bucketTokens) {
		return nil // whose state byte is put with the record
	}
	b := tx.Bucket(l.bucket)
	b.FillPercent = scatteredFill
	if state == 0 {
		return b.Delete(l.at(id))
	}
	return b.Put(l.at(id), []byte{byte(state)})
}

// move notes that a token's state changed.
func (l *list) move(tx *bolt.Tx, id tokenstore.ID, before, after tokenstore.State) error {
	if err := l.enter(tx, id, after); err != nil {
		return err
	}
	all, listed := presence(before, after)
	if all == 0 && listed == 0 {
		return nil
	}
	return l.count(tx, id, all, listed)
}

// presence returns by how much a change of state changes the number of tokens
// and the number of those not revoked.
func presence(before, after tokenstore.State) (all, listed int) {
	one := func(yes bool) int {
		if yes {
			return 1
		}
		return 0
	}
	in := func(s tokenstore.State) bool { return s != 0 && s != tokenstore.StateRevoked }
	return one(after != 0) - one(before != 0), one(in(after)) - one(in(before))
}
