package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"tokenward/tokenstore"
)

const (
	// longestGather bounds how long a change waits for others that were just
	// answered, and that come again, as those do who make one change after another.
	longestGather = 10 * time.Millisecond
	// longestHold bounds how long it waits for others that are on their way.
	longestHold = 25 * time.Millisecond
	// batchBytes is how much is gathered for one transaction, of the 1.5 MiB that
	// etcd takes by default.
	batchBytes = 256 << 10
)

// group has changes that leave the node at about the same time go to etcd together:
// a transaction costs its members, and the copies of all nodes, much the same with
// one change as with ten. A change by itself waits for nobody; with others there, it
// waits for no longer than it would take. All methods may be called at once from many
// goroutines.
type group struct {
	store *Store

	mu       sync.Mutex    // guards what follows, and callers; held for moments
	open     *batch        // which takes more changes; nil: none
	callers  int           // who wait for a change that is gathered or on its way
	crowd    int           // how many there were when the last transaction was made
	took     time.Duration // from leaving until the answer, the last time
	answered time.Time     // when that was
}

// caller is one who waits for a change.
type caller struct {
	group  *group
	joined bool
	left   time.Time // when the change left for etcd with others; zero: it has not
}

// end notes that the caller has an answer.
func (c *caller) end() {
	if !c.joined {
		return
	}
	g := c.group
	g.mu.Lock()
	defer g.mu.Unlock()
	g.callers--
	g.answered = time.Now()
	if !c.left.IsZero() {
		g.took = g.answered.Sub(c.left)
	}
}

// batch is changes none of which touches what another rests on, so that they hold in
// any order. The lock of its group guards it until it has left.
type batch struct {
	parts  []*part
	keys   map[string]touch
	ranges []string // prefixes that are rested on
	room   room     // that is taken

	left    bool          // nothing is added or taken out any more
	company chan struct{} // closed when no part is waited for
	waits   bool          // company is not closed
	done    chan struct{} // closed when outcome and err are there
	outcome outcome
	err     error
}

// touch is what changes have to do with a key.
type touch int

const (
	restedOn touch = iota + 1
	removed        // and not rested on, so that several may remove it
	written        // or removed and rested on
)

// part is a change in a batch.
type part struct {
	w    *writing
	cmps []clientv3.Cmp
	keys map[string]touch // that it writes or removes
	need room
}

// room is what changes take of a transaction.
type room struct{ compares, ops, bytes, events int }

// batchRoom is what all changes of one transaction have, besides its ground and what
// they share: the lane, the head, and the entry in the outbox.
var batchRoom = room{compares: txnCompares - groundCompares, ops: txnOps - 3, bytes: batchBytes, events: tokenstore.MaxOutbox}

func (r room) and(more room) room {
	return room{r.compares + more.compares, r.ops + more.ops, r.bytes + more.bytes, r.events + more.events}
}

func (r room) within(limit room) bool {
	return r.compares <= limit.compares && r.ops <= limit.ops && r.bytes <= limit.bytes && r.events <= limit.events
}

// partOf returns the change as a part of a batch, or nil when it goes alone: since no
// copy takes it, or since it rests on all data, removes ranges of keys, or is large.
func partOf(w *writing, cmps []clientv3.Cmp) *part {
	p := &part{w: w, cmps: cmps, keys: map[string]touch{}, need: room{compares: len(cmps), ops: len(w.ops), events: len(w.events)}}
	for i := range w.ops {
		op := &w.ops[i]
		if len(op.RangeBytes()) > 0 {
			return nil
		}
		key := string(op.KeyBytes())
		p.keys[key] = written
		if _, rests := w.read[key]; op.IsDelete() && !rests {
			p.keys[key] = removed
		}
		p.need.bytes += len(op.KeyBytes()) + len(op.ValueBytes())
	}
	for _, e := range w.events {
		p.need.bytes += len(e)
	}
	if w.whole || !w.touches && len(w.events) == 0 || !p.need.within(batchRoom) {
		return nil
	}
	return p
}

// commit makes the change, with others. What it returns is of them all: not made
// means that one of them could not be, or that etcd did not take them together, and
// that each is to be tried by itself.
func (g *group) commit(p *part) (outcome, error) {
	b, patience, opened := g.join(p)
	if opened {
		go g.send(b, patience)
	}
	select {
	case <-b.done:
		return b.outcome, b.err
	case <-p.w.ctx.Done():
	}
	if g.leave(b, p) {
		return outcome{}, g.store.failed("begin a change", errNoLane)
	}
	return outcome{}, fmt.Errorf("%w: %w", tokenstore.ErrOutcomeUnknown, p.w.ctx.Err())
}

// join puts the change into the open batch, or opens another, which is to be sent and
// waits for company for as long as its patience.
func (g *group) join(p *part) (b *batch, patience time.Duration, opened bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open != nil && !g.open.takes(p) {
		g.open.goes()
		g.open = nil
	}
	if g.open == nil {
		g.open = &batch{keys: map[string]touch{}, company: make(chan struct{}), waits: true, done: make(chan struct{})}
		opened = true
		patience = min(g.took/4, longestGather)
		switch {
		case g.callers > 0:
			patience = min(g.took, longestHold)
		case time.Since(g.answered) > longestHold:
			g.crowd = 0 // whoever was there does not come again
		}
	}
	b = g.open
	b.add(p)
	p.w.caller.joined = true
	g.callers++
	if len(b.parts) >= g.crowd {
		b.goes()
	}
	return b, patience, opened
}

// goes has no further part be waited for.
func (b *batch) goes() {
	if b.waits {
		b.waits = false
		close(b.company)
	}
}

// takes reports whether there is room for the change, and whether it neither touches
// what the others rest on or write, nor rests on what they write.
func (b *batch) takes(p *part) bool {
	if !b.room.and(b.needOf(p)).within(batchRoom) {
		return false
	}
	for key, t := range p.keys {
		if touched := b.keys[key]; touched != 0 && (touched != removed || t != removed) || below(key, b.ranges) {
			return false
		}
	}
	for key := range p.w.read {
		if b.keys[key] > restedOn {
			return false
		}
	}
	for key, t := range b.keys {
		if t > restedOn && below(key, p.w.ranges) {
			return false
		}
	}
	return true
}

// needOf is the room that the change takes beside the others, which may remove the
// same keys, as all do that find the same answers past their time.
func (b *batch) needOf(p *part) room {
	need := p.need
	for key, t := range p.keys {
		if t == removed && b.keys[key] == removed {
			need.ops--
			need.bytes -= len(key)
		}
	}
	return need
}

func below(key string, prefixes []string) bool {
	for _, prefix := range prefixes {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

func (b *batch) add(p *part) {
	b.parts = append(b.parts, p)
	b.room = b.room.and(b.needOf(p))
	b.ranges = append(b.ranges, p.w.ranges...)
	for key := range p.w.read {
		b.keys[key] = max(b.keys[key], restedOn)
	}
	maps.Copy(b.keys, p.keys)
}

// leave takes a change out of a batch that has not left.
func (g *group) leave(b *batch, p *part) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b.left {
		return false
	}
	b.parts = slices.DeleteFunc(b.parts, func(one *part) bool { return one == p })
	return true
}

// send waits for company and then for a lane: whoever comes meanwhile goes too. Then
// it makes the transaction.
func (g *group) send(b *batch, patience time.Duration) {
	defer close(b.done)
	s := g.store
	over := time.NewTimer(patience)
	select {
	case <-b.company:
	case <-over.C:
	case <-s.ctx.Done():
	}
	over.Stop()
	l, err := s.takeLane(context.Background())
	g.departs(b)
	if err != nil {
		b.err = err
		return
	}
	defer s.giveBack(l)
	if len(b.parts) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), changePatience)
	defer cancel()
	s.stats.commits.Add(1)
	b.outcome, b.err = l.commit(ctx, b.comparisons(), b.operations(s))
	if len(b.parts) > 1 && b.err != nil && !errors.Is(b.err, tokenstore.ErrOutcomeUnknown) {
		b.err = nil // each learns by itself what is wrong with it, or with etcd
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.crowd = g.callers
}

func (g *group) departs(b *batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	b.left = true
	if g.open == b {
		g.open = nil
	}
	for _, p := range b.parts {
		p.w.caller.left = time.Now()
	}
}

func (b *batch) comparisons() (cmps []clientv3.Cmp) {
	for _, p := range b.parts {
		cmps = append(cmps, p.cmps...)
	}
	return cmps
}

// operations are those of all changes, a key removed once, with one entry in the outbox
// and one head for them all.
func (b *batch) operations(s *Store) []clientv3.Op {
	var all output
	gone := map[string]bool{}
	for _, p := range b.parts {
		for i := range p.w.ops {
			op := &p.w.ops[i]
			if op.IsDelete() {
				if gone[string(op.KeyBytes())] {
					continue
				}
				gone[string(op.KeyBytes())] = true
			}
			all.ops = append(all.ops, *op)
		}
		all.events = append(all.events, p.w.events...)
		all.touches = all.touches || p.w.touches
	}
	return all.operations(s)
}
