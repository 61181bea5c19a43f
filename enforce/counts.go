package enforce

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"tokenward/tokenstore"
)

// Counts are how often a subject was admitted, as a [Ledger] keeps it: over its
// whole life, and in one window of each length.
type Counts [numCounts]Count

// Count is a number of requests in the window that begins at Begin, in seconds
// since 1970; for the whole life that is 0.
type Count struct {
	Begin int64
	N     uint64
}

const numCounts = int(limitMonth) + 1

// CountKey names whose counts they are: a token's, or those that all tokens of an
// account or of an owner have together. It is for the ledger no more than a key.
type CountKey [17]byte

func (k meterKey) countKey() CountKey {
	var out CountKey
	out[0] = byte(k.subject)
	binary.BigEndian.PutUint64(out[1:], k.a)
	binary.BigEndian.PutUint64(out[9:], k.b)
	return out
}

// Append appends the stored form of the counts.
func (c *Counts) Append(dst []byte) []byte {
	for i := range c {
		dst = binary.BigEndian.AppendUint64(dst, uint64(c[i].Begin)) //nolint:gosec // read back the same way
		dst = binary.BigEndian.AppendUint64(dst, c[i].N)
	}
	return dst
}

// errCounts says that stored bytes are no counts.
var errCounts = errors.New("stored counts are damaged: restore the store from a backup")

// ParseCounts reads what Append wrote; nothing is the zero Counts.
func ParseCounts(b []byte) (Counts, error) {
	var c Counts
	if len(b) == 0 {
		return c, nil
	}
	if len(b) != 16*numCounts {
		return c, errCounts
	}
	for i := range c {
		c[i].Begin = int64(binary.BigEndian.Uint64(b[16*i:])) //nolint:gosec // written the same way
		c[i].N = binary.BigEndian.Uint64(b[16*i+8:])
	}
	return c, nil
}

// CountsOver reports whether stored counts say nothing any more at now: they are
// of windows that are over, and of nothing for good.
func CountsOver(stored []byte, now time.Time) bool {
	c, err := ParseCounts(stored)
	if err != nil || c[limitUses].N != 0 {
		return false
	}
	for kind := limitMinute; kind <= limitMonth; kind++ {
		if begin, _ := windowAt(kind, now); c[kind].Begin >= begin && c[kind].N != 0 {
			return false
		}
	}
	return true
}

// Kept is one subject's counts.
type Kept struct {
	Key    CountKey
	Counts Counts
}

// Ledger keeps counts across restarts.
type Ledger interface {
	// Counts returns what was kept last; the zero Counts where nothing was.
	Counts(key CountKey) (Counts, error)
	// Keep replaces the counts of each key, all or none. It returns once they are
	// durable.
	Keep(ctx context.Context, all []Kept) error
}

// counts are the counts of one meter, guarded by its lock. What the ledger keeps
// is never less than what was used: a block is kept before it is used, so that a
// crash costs up to the rest of a block and never gives anything back. Only counts
// of a minute are not waited for, since that would be a write each minute: a crash
// gives back what is over a block since the last flush.
type counts struct {
	list   [numCounts]tally
	loaded bool // from the ledger
	dirty  bool // it is on the book's list
	unkept bool // there is no ledger
	quiet  int  // for how many flushes nothing was used
}

// tally is one of them.
type tally struct {
	begin, end int64 // of the window, in seconds since 1970; end 0: there was none yet
	used, kept uint64
}

// countState says whether a count has room for one more.
type countState uint8

const (
	countUsedUp countState = iota
	countNotDurable
	countFree
)

// countsLeft looks whether every count of the bound has room for one more.
func (b *bound) countsLeft(now time.Time) (limitKind, countState) {
	if b.meter.counts == nil || !b.meter.counts.loaded {
		return 0, countNotDurable
	}
	state := countFree
	if !b.meter.counts.dirty && !b.meter.counts.unkept {
		state = countNotDurable
	}
	for kind, most := range b.countLimits() {
		c := &b.meter.counts.list[kind]
		c.roll(kind, now)
		if c.used >= most {
			return kind, countUsedUp
		}
		if c.used >= c.kept && kind != limitMinute && !b.meter.counts.unkept {
			state = countNotDurable
		}
	}
	return 0, state
}

// countLimits yields the counts that the bound limits, and to how much.
func (b *bound) countLimits() func(yield func(limitKind, uint64) bool) {
	return func(yield func(limitKind, uint64) bool) {
		if b.uses != 0 && !yield(limitUses, b.uses) {
			return
		}
		for i := range b.quotas {
			if !yield(quotaKind(b.quotas[i].Per), b.quotas[i].Count) {
				return
			}
		}
	}
}

// count takes one of each count.
func (b *bound) count() {
	c := b.meter.counts
	for kind := range b.countLimits() {
		c.list[kind].used++
	}
	c.quiet = 0
}

// roll begins the window that now lies in, if the present one has ended. A clock
// that goes back stays in the window it is in, which gives nothing back.
func (c *tally) roll(kind limitKind, now time.Time) {
	if kind == limitUses || now.Unix() < c.end {
		return
	}
	*c = tally{}
	c.begin, c.end = windowAt(kind, now)
}

// used is what was used of a count by now. A nil counts has used nothing.
func (c *counts) used(kind limitKind, now time.Time) uint64 {
	if c == nil {
		return 0
	}
	if one := &c.list[kind]; kind == limitUses || now.Unix() < one.end {
		return one.used
	}
	return 0
}

// forgettable reports whether nothing is lost with the counts: all are over, or
// the ledger has them exactly.
func (c *counts) forgettable(now time.Time) bool {
	if c == nil {
		return true
	}
	if c.dirty {
		return false
	}
	for kind := range limitKind(numCounts) {
		if c.used(kind, now) != 0 && c.list[kind].used != c.list[kind].kept {
			return false
		}
	}
	return true
}

// reset is how long until the count begins anew; 0 if it never does.
func (c *counts) reset(kind limitKind, now time.Time) time.Duration {
	if kind == limitUses {
		return 0
	}
	return time.Unix(c.list[kind].end, 0).Sub(now)
}

func quotaKind(w tokenstore.Window) limitKind {
	switch w {
	case tokenstore.PerMinute:
		return limitMinute
	case tokenstore.PerHour:
		return limitHour
	case tokenstore.PerDay:
		return limitDay
	case tokenstore.PerMonth:
	}
	return limitMonth
}

// windowAt is the window of the calendar in UTC that now lies in: from begin on,
// until just before end.
func windowAt(kind limitKind, now time.Time) (begin, end int64) {
	if kind == limitMonth {
		year, month, _ := now.UTC().Date()
		return time.Date(year, month, 1, 0, 0, 0, 0, time.UTC).Unix(), time.Date(year, month+1, 1, 0, 0, 0, 0, time.UTC).Unix()
	}
	length := int64(windowLength(kind) / time.Second)
	begin = now.Unix() - now.Unix()%length
	return begin, begin + length
}

// windowLength is how long a window is; a month is as long as the longest.
func windowLength(kind limitKind) time.Duration {
	switch kind {
	case limitMinute:
		return time.Minute
	case limitHour:
		return time.Hour
	case limitDay:
		return 24 * time.Hour
	default:
		return 31 * 24 * time.Hour
	}
}

func untilNextWindow(kind limitKind, now time.Time) time.Duration {
	_, end := windowAt(kind, now)
	return time.Unix(end, 0).Sub(now)
}

// block is how much of a limit is kept at once before it is used.
func block(most uint64) uint64 { return min(max(most/10, 1), 4096) }

// ledgerBook makes counts durable. A nil book keeps nothing.
type ledgerBook struct {
	ledger Ledger

	mu     sync.Mutex // guards what follows; held for moments only
	wanted []bound    // whose requests wait for a block
	dirty  map[*meter]bound

	writing sync.Mutex // held while the ledger is written, before any other lock
}

func newLedgerBook(ledger Ledger) *ledgerBook {
	return &ledgerBook{ledger: ledger, dirty: make(map[*meter]bound)}
}

// reserve loads the counts of a bound's meter, if that was not done, and keeps a
// block of each that is used up. No lock is held. Requests that come while the
// ledger is written wait for their turn, and are then served by one writing.
func (b *ledgerBook) reserve(ctx context.Context, want *bound, now time.Time) error {
	if b == nil {
		want.meter.unkept()
		return nil
	}
	if err := b.load(want, now); err != nil {
		return err
	}
	b.mu.Lock()
	b.wanted = append(b.wanted, *want)
	b.mu.Unlock()
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.Lock()
	work := b.wanted
	b.wanted = nil
	b.mu.Unlock()
	return b.keepBlocks(ctx, append(work, *want), now) // its own may have been served
}

// keepBlocks keeps a block for each bound that is short of one. The writing lock
// is held.
func (b *ledgerBook) keepBlocks(ctx context.Context, work []bound, now time.Time) error {
	all := make([]Kept, 0, len(work))
	at := make(map[*meter]int, len(work))
	for i := range work {
		w := &work[i]
		w.meter.mu.Lock()
		kept, short := w.advance(now, false)
		w.meter.mu.Unlock()
		if _, twice := at[w.meter]; short && !twice {
			at[w.meter] = len(all)
			all = append(all, kept)
		}
	}
	if len(all) > 0 {
		if err := b.ledger.Keep(ctx, all); err != nil {
			return fmt.Errorf("keep the counts of limits: %w", err)
		}
	}
	b.mu.Lock()
	for i := range work {
		b.dirty[work[i].meter] = work[i]
	}
	b.mu.Unlock()
	for i := range work {
		w := &work[i]
		w.meter.mu.Lock()
		if n, short := at[w.meter]; short {
			w.confirm(&all[n].Counts)
		}
		w.meter.counts.dirty = true
		w.meter.mu.Unlock()
	}
	return nil
}

// unkept are the counts of a meter that no ledger keeps.
func (m *meter) unkept() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.counts == nil {
		m.counts = &counts{loaded: true, unkept: true}
	}
}

// load reads what was kept of a meter, once.
func (b *ledgerBook) load(want *bound, now time.Time) error {
	m := want.meter
	m.mu.Lock()
	loaded := m.counts != nil && m.counts.loaded
	m.mu.Unlock()
	if loaded {
		return nil
	}
	was, err := b.ledger.Counts(m.key.countKey())
	if err != nil {
		return fmt.Errorf("read the counts of limits: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.counts != nil && m.counts.loaded {
		return nil // another request was quicker
	}
	c := &counts{loaded: true}
	for kind := range limitKind(numCounts) {
		one := &c.list[kind]
		one.roll(kind, now)
		if was[kind].Begin >= one.begin { // later too: the clock went back
			one.used, one.kept = was[kind].N, was[kind].N
			if kind != limitUses && was[kind].Begin > one.begin {
				one.begin, one.end = windowAt(kind, time.Unix(was[kind].Begin, 0))
			}
		}
	}
	m.counts = c
	return nil
}

// advance says what is to be kept so that a block of each count may be used; short
// is whether that is more than what is kept now. With exact, what was used and no
// more. The meter's lock is held.
func (b *bound) advance(now time.Time, exact bool) (kept Kept, short bool) {
	c := b.meter.counts
	kept.Key = b.meter.key.countKey()
	for kind := range limitKind(numCounts) {
		one := &c.list[kind]
		kept.Counts[kind] = Count{one.begin, one.kept}
	}
	for kind, most := range b.countLimits() {
		one := &c.list[kind]
		one.roll(kind, now)
		n := max(one.kept, min(one.used+block(most), most))
		if exact {
			n = one.used
		}
		short = short || n != one.kept && (exact || one.kept-min(one.kept, one.used) <= block(most)/2)
		kept.Counts[kind] = Count{one.begin, n}
	}
	return kept, short
}

// confirm notes what the ledger keeps now. The meter's lock is held.
func (b *bound) confirm(kept *Counts) {
	for kind := range kept {
		one := &b.meter.counts.list[kind]
		if one.begin == kept[kind].Begin {
			one.kept = kept[kind].N
		}
	}
}

// quietFlushes is for how many flushes nothing must be used until the rest of a
// block is given back.
const quietFlushes = 60

// flush keeps ahead of what is used, for all meters in use at once, so that hardly
// a request waits for the ledger; what has been quiet for long is kept exactly.
// last keeps everything exactly: nothing is used any more.
func (b *ledgerBook) flush(ctx context.Context, now time.Time, last bool) error {
	if b == nil {
		return nil
	}
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.Lock()
	work := make([]bound, 0, len(b.dirty))
	for _, w := range b.dirty {
		work = append(work, w)
	}
	b.mu.Unlock()
	for len(work) > 0 {
		n := min(len(work), maxKept)
		if err := b.flushSome(ctx, work[:n], now, last); err != nil {
			return err
		}
		work = work[n:]
	}
	return nil
}

// maxKept bounds the counts of one write.
const maxKept = 1000

func (b *ledgerBook) flushSome(ctx context.Context, work []bound, now time.Time, last bool) error {
	var all []Kept
	var ahead, settled []*bound
	at := make(map[*bound]int)
	for i := range work {
		w := &work[i]
		w.meter.mu.Lock()
		c := w.meter.counts
		c.quiet++
		settle := last || c.quiet > quietFlushes
		kept, short := w.advance(now, settle)
		if settle {
			w.confirm(&kept.Counts) // before it is so: none of it may be used meanwhile
			settled = append(settled, w)
		} else if short {
			ahead = append(ahead, w)
		}
		w.meter.mu.Unlock()
		if short {
			at[w] = len(all)
			all = append(all, kept)
		}
	}
	if len(all) > 0 {
		if err := b.ledger.Keep(ctx, all); err != nil {
			return fmt.Errorf("keep the counts of limits: %w", err)
		}
	}
	for _, w := range ahead {
		w.meter.mu.Lock()
		w.confirm(&all[at[w]].Counts)
		w.meter.mu.Unlock()
	}
	for _, w := range settled {
		w.meter.mu.Lock()
		again := w.meter.counts.quiet == 0 // counts of a minute are not waited for
		w.meter.counts.dirty = again
		w.meter.mu.Unlock()
		if !again {
			b.mu.Lock()
			delete(b.dirty, w.meter)
			b.mu.Unlock()
		}
	}
	return nil
}
