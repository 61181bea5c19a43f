package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// Check looks at the whole store and reports each thing that is wrong with it,
// until ctx ends or the store cannot be read further, which is the error. It
// sees one instant, while changes go on; the file grows meanwhile.
func (s *Store) Check(ctx context.Context, report func(fault string)) error {
	err := s.view(func(tx *bolt.Tx) error {
		c := checker{s: s, ctx: ctx, tx: tx, report: report}
		return c.run()
	})
	if err != nil {
		return fmt.Errorf("check token store: %w", err)
	}
	return nil
}

type checker struct {
	s      *Store
	ctx    context.Context // lives as long as one call
	tx     *bolt.Tx
	report func(fault string)

	awaiting int // tokens that await a silence
}

func (c *checker) fault(format string, args ...any) { c.report(fmt.Sprintf(format, args...)) }

func (c *checker) run() error {
	for err := range c.tx.Check() {
		c.fault("page structure: %v", err)
	}
	for _, step := range []func() error{c.tokens, c.digests, c.accounts, c.owners, c.children, c.ends, c.counts, c.outbox, c.answers, c.traces, c.silences} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// each calls fn for every entry of a bucket.
func (c *checker) each(bucket []byte, fn func(k, v []byte)) error {
	n := 0
	return c.tx.Bucket(bucket).ForEach(func(k, v []byte) error {
		if n++; n%1024 == 0 && c.ctx.Err() != nil {
			return c.ctx.Err()
		}
		fn(k, v)
		return nil
	})
}

// tokens checks each record and that every index knows it.
func (c *checker) tokens() error {
	var states [4]uint64
	last := c.tx.Bucket(bucketTokens).Sequence()
	err := c.each(bucketTokens, func(k, v []byte) {
		if len(k) != 8 {
			c.fault("a token's key has %d bytes", len(k))
			return
		}
		t, err := c.s.decode(tokenstore.ID(lastNumber(k)), v)
		if err != nil {
			c.fault("%v", err)
			return
		}
		states[t.State]++
		if uint64(t.ID) > last {
			c.fault("token %d is beyond the last id given out, %d", t.ID, last)
		}
		c.indexed(t)
		if silenceOf(t) != nil {
			c.awaiting++
		}
	})
	if have := readStates(c.tx); err == nil && have != states {
		c.fault("tokens by state are %v, noted as %v", states, have)
	}
	return err
}

func (c *checker) indexed(t *tokenstore.Token) {
	for _, l := range listsOf(t)[1:] {
		if v := c.tx.Bucket(l.bucket).Get(l.at(t.ID)); len(v) != 1 || stateAt(v) != t.State {
			c.fault("token %d is not in the %s list in its state", t.ID, l.bucket)
		}
	}
	for i := range t.Secrets {
		if v := c.tx.Bucket(bucketDigests).Get(t.Secrets[i].Digest[:]); len(v) != 8 || lastNumber(v) != uint64(t.ID) {
			c.fault("a secret of token %d does not lead to it", t.ID)
		}
	}
	p := placeOf(t)
	if p.child != nil && c.tx.Bucket(bucketChildren).Get(p.child) == nil {
		c.fault("token %d is not among the children of token %d", t.ID, t.Creator.ID)
	}
	if p.end != nil && c.tx.Bucket(bucketEnds).Get(p.end) == nil {
		c.fault("token %d is not in the list of ends", t.ID)
	}
}

// stored returns the token that an index entry names, if it can be read.
func (c *checker) stored(id uint64) *tokenstore.Token {
	t, err := c.s.tokenByID(c.tx, tokenstore.ID(id))
	if err != nil {
		return nil
	}
	return t
}

// digests allows entries without a token: those are of swept ones.
func (c *checker) digests() error {
	last := c.tx.Bucket(bucketTokens).Sequence()
	return c.each(bucketDigests, func(k, v []byte) {
		if len(k) != len(tokenstore.Digest{}) || len(v) != 8 || lastNumber(v) == 0 || lastNumber(v) > last {
			c.fault("a digest leads to no id that was given out")
		}
	})
}

func (c *checker) accounts() error {
	return c.each(bucketAccounts, func(k, _ []byte) {
		if t := c.named(bucketAccounts, k, 16); t != nil && binary.BigEndian.Uint64(k) != t.Account {
			c.fault("token %d is in the list of an account not its own", t.ID)
		}
	})
}

func (c *checker) owners() error {
	return c.each(bucketOwners, func(k, _ []byte) {
		if t := c.named(bucketOwners, k, 24); t != nil && !bytes.Equal(k, key(t.Account, t.Owner, uint64(t.ID))) {
			c.fault("token %d is in the list of an owner not its own", t.ID)
		}
	})
}

func (c *checker) children() error {
	return c.each(bucketChildren, func(k, _ []byte) {
		if t := c.named(bucketChildren, k, 16); t != nil && !bytes.Equal(k, placeOf(t).child) {
			c.fault("token %d is among the children of a token that did not make it, or is revoked", t.ID)
		}
	})
}

func (c *checker) ends() error {
	return c.each(bucketEnds, func(k, _ []byte) {
		if t := c.named(bucketEnds, k, 16); t != nil && !bytes.Equal(k, placeOf(t).end) {
			c.fault("token %d is in the list of ends at a time not its own", t.ID)
		}
	})
}

// named returns the token that an index key of the given length ends in.
func (c *checker) named(bucket, k []byte, length int) *tokenstore.Token {
	if len(k) != length {
		c.fault("a key in %s has %d bytes", bucket, len(k))
		return nil
	}
	t := c.stored(lastNumber(k))
	if t == nil {
		c.fault("%s names token %d, which cannot be read", bucket, lastNumber(k))
	}
	return t
}

// counts counts the entries of each chunk again.
func (c *checker) counts() error {
	sums := map[string]chunk{} // what the lists hold, by the key of their first chunk
	var heads []chunk          // what those say
	var keys []string
	err := c.each(bucketCounts, func(k, v []byte) {
		if bytes.Equal(k, keyStates) {
			return
		}
		l, ok := listOfCounts(k)
		if !ok {
			c.fault("a key in %s belongs to no list", bucketCounts)
			return
		}
		have := decodeChunk(k, v)
		all, listed := c.recount(&l, have.first)
		if all != have.all || listed != have.listed {
			c.fault("a chunk of the %s list from id %d has %d tokens, %d listed, noted as %d and %d", l.bucket, have.first, all, listed, have.all, have.listed)
		}
		if have.first != 0 && all == 0 {
			c.fault("a chunk of the %s list from id %d is empty", l.bucket, have.first)
		}
		head := string(l.boundary(0))
		if have.first == 0 {
			heads, keys = append(heads, have), append(keys, head)
		}
		sum := sums[head]
		sum.all, sum.listed = sum.all+all, sum.listed+listed
		sums[head] = sum
	})
	if err != nil {
		return err
	}
	covered := [3]int{}
	for i, head := range heads {
		sum := sums[keys[i]]
		covered[keys[i][0]] += sum.all
		if sum.all != head.sumAll || sum.listed != head.sumListed || sum.all == 0 {
			c.fault("a list has %d tokens, %d listed, noted as %d and %d", sum.all, sum.listed, head.sumAll, head.sumListed)
		}
	}
	if len(heads) != len(sums) {
		c.fault("%d lists have counts, %d have sums", len(sums), len(heads))
	}
	for i, bucket := range [][]byte{bucketTokens, bucketAccounts, bucketOwners} {
		if n := countKeys(c.tx.Bucket(bucket)); n != covered[i] {
			c.fault("%s has %d entries, counted as %d", bucket, n, covered[i])
		}
	}
	return nil
}

// listOfCounts returns the list that an entry of the counts bucket is about.
func listOfCounts(k []byte) (list, bool) {
	u := binary.BigEndian.Uint64
	switch {
	case len(k) == 9 && k[0] == 0:
		return listAll(), true
	case len(k) == 17 && k[0] == 1:
		return listAccount(u(k[1:])), true
	case len(k) == 25 && k[0] == 2:
		return listOwner(u(k[1:]), u(k[9:])), true
	}
	return list{}, false
}

func (c *checker) recount(l *list, first tokenstore.ID) (all, listed int) {
	counts := c.tx.Bucket(bucketCounts).Cursor()
	counts.Seek(l.boundary(first))
	next, more := l.entry(counts.Next())
	ids := c.tx.Bucket(l.bucket).Cursor()
	for k, v := ids.Seek(l.at(first)); k != nil && bytes.HasPrefix(k, l.prefix); k, v = ids.Next() {
		if more && lastNumber(k) >= uint64(next.first) {
			break
		}
		a, in := presence(0, stateAt(v))
		all, listed = all+a, listed+in
	}
	return all, listed
}

func (c *checker) outbox() error {
	n, last := 0, c.tx.Bucket(bucketOutbox).Sequence()
	before := uint64(0)
	err := c.each(bucketOutbox, func(k, _ []byte) {
		n++
		if len(k) != 8 || lastNumber(k) > last {
			c.fault("the outbox has an event beyond the last number given out, %d", last)
			return
		}
		if seq := lastNumber(k); before != 0 && seq != before+1 {
			c.fault("the outbox lacks the events between %d and %d", before, seq)
		}
		before = lastNumber(k)
	})
	if n > 0 && before != last {
		c.fault("the outbox lacks the events from %d to %d", before+1, last)
	}
	if n > tokenstore.MaxOutbox {
		c.fault("the outbox holds %d events, more than %d", n, tokenstore.MaxOutbox)
	}
	return err
}

func (c *checker) answers() error {
	n, ends := 0, 0
	err := c.each(bucketAnswers, func(k, v []byte) {
		n++
		if len(v) < 8 || c.tx.Bucket(bucketAnswerEnds).Get(append(bytes.Clone(v[:8]), k...)) == nil {
			c.fault("a kept answer has no end")
		}
	})
	if err != nil {
		return err
	}
	err = c.each(bucketAnswerEnds, func([]byte, []byte) { ends++ })
	if n != ends || n > tokenstore.MaxAnswers {
		c.fault("%d answers are kept, with %d ends, at most %d", n, ends, tokenstore.MaxAnswers)
	}
	return err
}
