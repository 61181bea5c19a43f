package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// Each list is divided into chunks of consecutive ids, and the counts bucket
// says how many tokens each has, so that a page deep inside a list is found by
// passing over chunks instead of tokens. Most lists have one chunk, so counting
// costs a small owner one entry. The first chunk of a list begins at id 0 and
// carries the sums; a list without tokens has no chunks.

// chunkSplit is how many tokens a chunk may have. Passing over a million takes
// about a thousand steps.
const chunkSplit = 1024

// chunkMerge is how few tokens two neighbours have when they become one.
const chunkMerge = chunkSplit / 4

// chunk is one entry: list's counts prefix, first id → numbers.
type chunk struct {
	first             tokenstore.ID
	all, listed       int
	sumAll, sumListed int // of the list, in the first chunk only
}

func (c *chunk) encode() []byte {
	numbers := []int{c.all, c.listed}
	if c.first == 0 {
		numbers = append(numbers, c.sumAll, c.sumListed)
	}
	var b []byte
	for _, n := range numbers {
		b = binary.AppendUvarint(b, uint64(n)) //nolint:gosec // not negative
	}
	return b
}

// decodeChunk reads an entry. Damage reads as zeros, which Check finds.
func decodeChunk(k, v []byte) chunk {
	c := chunk{first: tokenstore.ID(lastNumber(k))}
	for _, to := range []*int{&c.all, &c.listed, &c.sumAll, &c.sumListed} {
		n, used := binary.Uvarint(v)
		if used <= 0 {
			break
		}
		*to, v = int(n), v[used:] //nolint:gosec // written from an int
	}
	return c
}

func (c *chunk) of(revoked bool) int {
	if revoked {
		return c.all
	}
	return c.listed
}

// boundary returns the key of the chunk that begins at first.
func (l *list) boundary(first tokenstore.ID) []byte {
	return binary.BigEndian.AppendUint64(bytes.Clone(l.counts), uint64(first))
}

// chunkOf returns the chunk that id falls into.
func (l *list) chunkOf(c *bolt.Cursor, id tokenstore.ID) (chunk, bool) {
	want := l.boundary(id)
	k, v := c.Seek(want)
	if !bytes.Equal(k, want) {
		if k == nil {
			k, v = c.Last()
		} else {
			k, v = c.Prev()
		}
	}
	return l.entry(k, v)
}

// entry decodes what a cursor is at, unless it left the list.
func (l *list) entry(k, v []byte) (chunk, bool) {
	if len(k) != len(l.counts)+8 || !bytes.HasPrefix(k, l.counts) {
		return chunk{}, false
	}
	return decodeChunk(k, v), true
}

// head returns the first chunk, which has the sums.
func (l *list) head(tx *bolt.Tx) chunk {
	k := l.boundary(0)
	return decodeChunk(k, tx.Bucket(bucketCounts).Get(k))
}

// count adds to the numbers of the chunk that id falls into. The list's bucket
// has been changed already.
func (l *list) count(tx *bolt.Tx, id tokenstore.ID, all, listed int) error {
	w := chunkWriter{l, tx.Bucket(bucketCounts)}
	w.counts.FillPercent = scatteredFill
	head := l.head(tx)
	head.sumAll += all
	head.sumListed += listed
	cur, ok := l.chunkOf(w.counts.Cursor(), id)
	if head.sumAll == 0 {
		return errors.Join(w.counts.Delete(l.boundary(0)), w.counts.Delete(l.boundary(cur.first)))
	}
	if !ok || cur.first == 0 {
		cur = head
	} else if err := w.put(head); err != nil {
		return err
	}
	if all > 0 && cur.all >= chunkSplit {
		return w.split(tx, cur, id, listed)
	}
	cur.all += all
	cur.listed += listed
	if all < 0 {
		return w.shrink(cur)
	}
	return w.put(cur)
}

type chunkWriter struct {
	*list
	counts *bolt.Bucket
}

func (w *chunkWriter) put(c chunk) error { return w.counts.Put(w.boundary(c.first), c.encode()) }

// appended are tokens that come after all there are, as those that are made do:
// what they add to the last chunks of their lists is gathered here, and written by
// count before anything else touches the counts. With a thousand of them in one
// change that is a fifth of its cost.
type appended struct{ runs []*appendedRun }

// appendedRun is what came to the end of one list.
type appendedRun struct {
	list
	head, last chunk // as they will be; last is head while its first is 0
}

// add enters a new token into its lists.
func (a *appended) add(tx *bolt.Tx, id tokenstore.ID, state tokenstore.State, lists []list) error {
	if len(a.runs) == len(lists) {
		for i := range lists {
			if !bytes.Equal(a.runs[i].counts, lists[i].counts) {
				if err := a.runs[i].write(tx); err != nil {
					return err
				}
				a.runs[i] = beginRun(tx, lists[i], id)
			}
		}
	} else {
		for i := range lists {
			a.runs = append(a.runs, beginRun(tx, lists[i], id))
		}
	}
	all, listed := presence(0, state)
	for _, r := range a.runs {
		if err := r.enter(tx, id, state); err != nil {
			return err
		}
		if r.last.all >= chunkSplit {
			if err := r.write(tx); err != nil {
				return err
			}
			r.last = chunk{first: id}
		}
		r.head.sumAll += all
		r.head.sumListed += listed
		r.last.all += all
		r.last.listed += listed
	}
	return nil
}

// count writes what was gathered.
func (a *appended) count(tx *bolt.Tx) error {
	for _, r := range a.runs {
		if err := r.write(tx); err != nil {
			return err
		}
	}
	a.runs = nil
	return nil
}

func beginRun(tx *bolt.Tx, l list, id tokenstore.ID) *appendedRun {
	r := &appendedRun{list: l, head: l.head(tx)}
	var ok bool
	if r.last, ok = l.chunkOf(tx.Bucket(bucketCounts).Cursor(), id); !ok {
		r.last = r.head
	}
	return r
}

func (r *appendedRun) write(tx *bolt.Tx) error {
	w := chunkWriter{&r.list, tx.Bucket(bucketCounts)}
	w.counts.FillPercent = scatteredFill
	if r.last.first == 0 {
		r.head.all, r.head.listed = r.last.all, r.last.listed
		return w.put(r.head)
	}
	return errors.Join(w.put(r.head), w.put(r.last))
}

// split makes two chunks of a full one that id is added to. At the end of a
// list, where tokens are made, the full one stays as it is.
func (w *chunkWriter) split(tx *bolt.Tx, full chunk, id tokenstore.ID, listed int) error {
	c := tx.Bucket(w.bucket).Cursor()
	c.Seek(w.at(id))
	if k, _ := c.Next(); !bytes.HasPrefix(k, w.prefix) || k == nil {
		if err := w.put(full); err != nil {
			return err
		}
		return w.put(chunk{first: id, all: 1, listed: listed})
	}
	left, right := full, chunk{all: full.all + 1, listed: full.listed + listed}
	left.all, left.listed = 0, 0
	for k, v := c.Seek(w.at(full.first)); k != nil && left.all < chunkSplit/2; k, v = c.Next() {
		all, in := presence(0, stateAt(v))
		left.all, left.listed = left.all+all, left.listed+in
		right.all, right.listed = right.all-all, right.listed-in
		right.first = tokenstore.ID(lastNumber(k)) + 1
	}
	if err := w.put(left); err != nil {
		return err
	}
	return w.put(right)
}

// shrink writes a chunk that lost a token, as part of the one before it when
// both are small.
func (w *chunkWriter) shrink(cur chunk) error {
	if cur.first == 0 {
		return w.put(cur)
	}
	c := w.counts.Cursor()
	c.Seek(w.boundary(cur.first))
	prev, ok := w.entry(c.Prev())
	if !ok || cur.all > 0 && prev.all+cur.all > chunkMerge {
		return w.put(cur)
	}
	prev.all += cur.all
	prev.listed += cur.listed
	if err := w.counts.Delete(w.boundary(cur.first)); err != nil {
		return err
	}
	return w.put(prev)
}

// stateAt reads the state byte that leads a value.
func stateAt(v []byte) tokenstore.State {
	if len(v) == 0 {
		return 0
	}
	return tokenstore.State(v[0])
}

// keyStates holds how many tokens are in each state, in the counts bucket
// behind all lists.
var keyStates = []byte{3}

func readStates(tx *bolt.Tx) (n [4]uint64) {
	v := tx.Bucket(bucketCounts).Get(keyStates)
	for i := 1; i < len(n) && len(v) >= 8; i++ {
		n[i], v = binary.BigEndian.Uint64(v), v[8:]
	}
	return n
}

func writeStates(tx *bolt.Tx, n [4]uint64) error {
	return tx.Bucket(bucketCounts).Put(keyStates, key(n[1:]...))
}
