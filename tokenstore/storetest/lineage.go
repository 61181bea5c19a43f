package storetest

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"tokenward/tokenstore"
)

// counters is a store that keeps counts of limits.
type counters interface {
	Counter(key []byte) ([]byte, error)
	MoveCounters(ctx context.Context, keys [][]byte, move func(i int, old []byte) ([]byte, error)) error
}

// countKey is what the counts of a lineage are kept under, with something behind it.
func countKey(id tokenstore.ID) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{0}, uint64(id)), "more"...)
}

func setCount(t *testing.T, c counters, id tokenstore.ID, value string) {
	t.Helper()
	err := c.MoveCounters(t.Context(), [][]byte{countKey(id)}, func(int, []byte) ([]byte, error) { return []byte(value), nil })
	if err != nil {
		t.Fatal(err)
	}
}

func wantCount(t *testing.T, c counters, id tokenstore.ID, want string) {
	t.Helper()
	if got, err := c.Counter(countKey(id)); string(got) != want || err != nil {
		t.Errorf("what the lineage of token %d has used reads %q, %v; want %q", id, got, err, want)
	}
}

// replace puts a new token into the place of one, as a reset does.
func replace(tx tokenstore.Tx, id tokenstore.ID, d tokenstore.Digest) (old, next *tokenstore.Token, err error) {
	if old, err = tx.Token(id); err != nil {
		return nil, nil, err
	}
	next = Sample(0, old.Account, old.Owner)
	if next.ID, err = tx.NewID(); err != nil {
		return nil, nil, err
	}
	next.Lineage, next.Secrets[0].Digest = old.MeasuredAs(), d
	old.ReplacedBy = next.ID
	return old, next, errors.Join(tx.Put(next), tx.Put(old))
}

// testLineage resets a token three times and sweeps what is left of it.
func testLineage(t *testing.T, open Opener) {
	h := start(t, open)
	line := create(t, h.Store, 1, nil)
	for n := range tokenstore.ID(3) {
		var next *tokenstore.Token
		change(t, h.Store, func(tx tokenstore.Tx) (err error) {
			tx.Emit(event)
			_, next, err = replace(tx, line[n], SampleDigest(n+1<<40))
			return err
		})
		line = append(line, next.ID)
	}
	last := line[3]
	if tok := byID(t, h.Store, last); tok.Lineage != line[0] {
		t.Errorf("the last is of the lineage of token %d, which token %d began", tok.Lineage, line[0])
	}
	for _, lineage := range []tokenstore.ID{0, line[1], last} {
		wantErr(t, "move to another lineage", edit(h.Store, last, func(tok *tokenstore.Token) { tok.Lineage = lineage }), tokenstore.ErrInvariant)
	}
	wantErr(t, "begin a lineage afterwards", edit(h.Store, line[0], func(tok *tokenstore.Token) { tok.Lineage = last }), tokenstore.ErrInvariant)

	c, counts := h.Store.(counters)
	if !counts {
		return
	}
	setCount(t, c, line[0], "used")
	setCount(t, c, 1<<50, "by others")
	for _, id := range []tokenstore.ID{line[1], line[0]} {
		if err := sweep(h.Store, id); err != nil {
			t.Fatal(err)
		}
		wantCount(t, c, line[0], "used")
	}
	if h.Reopen != nil {
		h = h.Reopen(t)
		c, _ = h.Store.(counters)
		wantCount(t, c, line[0], "used")
	}
	for range 2 { // the last one, and then one before it
		if err := sweep(h.Store, last); err != nil {
			t.Fatal(err)
		}
		wantCount(t, c, line[0], "")
		last = line[2]
	}
	wantCount(t, c, 1<<50, "by others")

	// What a change made and swept again is the last of nothing.
	first := create(t, h.Store, 1, func(_ int, tok *tokenstore.Token) { tok.Secrets[0].Digest = SampleDigest(1 << 42) })[0]
	setCount(t, c, first, "used")
	change(t, h.Store, func(tx tokenstore.Tx) error {
		tx.Emit(event)
		_, next, err := replace(tx, first, SampleDigest(1<<43))
		if err != nil {
			return err
		}
		return tx.Sweep(next.ID)
	})
	wantCount(t, c, first, "used")
	// Nor is what was replaced in the change that sweeps it.
	first = create(t, h.Store, 1, func(_ int, tok *tokenstore.Token) { tok.Secrets[0].Digest = SampleDigest(1 << 44) })[0]
	setCount(t, c, first, "used")
	change(t, h.Store, func(tx tokenstore.Tx) error {
		tx.Emit(event)
		_, _, err := replace(tx, first, SampleDigest(1<<45))
		if err != nil {
			return err
		}
		return tx.Sweep(first)
	})
	wantCount(t, c, first, "used")
}
