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
// account or of an owner have together. To the ledger it is an opaque key.
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

// lastBegin is the last second of the year 9999.
const lastBegin = 253402300799

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
		if c[i].Begin > lastBegin || i == int(limitUses) && c[i].Begin != 0 {
			return Counts{}, errCounts
		}
	}
	return c, nil
}

// CountsOver reports whether stored counts no longer matter at now: all their
// windows are over, and none of them is for the whole life.
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

// CountsUpTo returns stored counts without those of windows that begin after now, which
// were made while the clock was ahead: otherwise they would count until the time has
// reached them.
func CountsUpTo(stored []byte, now time.Time) []byte {
	c, err := ParseCounts(stored)
	if err != nil {
		return stored
	}
	for kind := limitMinute; kind <= limitMonth; kind++ {
		if c[kind].Begin > now.Unix() {
			c[kind] = Count{}
		}
	}
	return c.Append(nil)
}

// CountsOfBoth returns what was used at least, where two stores kept counts of the same
// subject: of each count the later window or, where both have the same, the larger
// number. What cannot be read of stored stays, and else counts for nothing.
func CountsOfBoth(stored, other []byte) []byte {
	c, err := ParseCounts(stored)
	if err != nil {
		return stored
	}
	o, err := ParseCounts(other)
	if err != nil || o == c {
		return stored
	}
	for i := range c {
		switch {
		case o[i].Begin > c[i].Begin:
			c[i] = o[i]
		case o[i].Begin == c[i].Begin:
			c[i].N = max(c[i].N, o[i].N)
		}
	}
	return c.Append(nil)
}

// CountsOfToken is the token whose counts are kept under a key, the first of its
// lineage; 0: they are not a token's.
func CountsOfToken(key []byte) tokenstore.ID {
	if len(key) != len(CountKey{}) || key[0] != byte(ofToken) {
		return 0
	}
	return tokenstore.ID(binary.BigEndian.Uint64(key[1:]))
}

// Claim asks a [Ledger] to move the counts of one subject.
type Claim struct {
	Key   CountKey
	Draws [numCounts]Draw
}

// Draw is what a claim asks of one count. The zero Draw leaves it as it is.
type Draw struct {
	Begin int64  // of the window, in seconds since 1970; 0 for the whole life
	Add   int64  // how much is to be reserved; negative: given back
	Most  uint64 // the limit; nothing is reserved beyond it
}

// Granted is how much of each count was reserved; negative: given back.
type Granted [numCounts]int64

// Apply returns what a ledger that holds old holds after the claim, and what it
// granted. A window later than the ledger's starts from zero; in an earlier one
// nothing is granted any more, and nothing taken back.
func (c *Claim) Apply(old Counts) (after Counts, granted Granted) {
	for i := range c.Draws {
		after[i], granted[i] = c.Draws[i].apply(old[i])
	}
	return after, granted
}

func (d *Draw) apply(old Count) (after Count, granted int64) {
	if d.Add == 0 || d.Begin < old.Begin {
		return old, 0
	}
	if d.Begin > old.Begin {
		old = Count{Begin: d.Begin}
	}
	if d.Add > 0 {
		n := min(uint64(d.Add), d.Most-min(d.Most, old.N))
		return Count{old.Begin, old.N + n}, int64(n) //nolint:gosec // at most Add
	}
	n := min(uint64(-d.Add), old.N)               //nolint:gosec // the least int64 too
	return Count{old.Begin, old.N - n}, -int64(n) //nolint:gosec // likewise
}

// Moved is the result of a claim.
type Moved struct {
	Counts  Counts // afterwards
	Granted Granted
	Err     error // the counts could not be read; they stay as they are, and nothing was granted
}

// Ledger keeps counts across restarts, for one process or for several that draw on
// the same counts.
type Ledger interface {
	// Move applies every claim to the counts under its key as [Claim.Apply] does, all
	// or none, and returns their results once they are durable. The keys are all
	// different, and at most Most. After an error nothing counts as granted, although
	// it may have been reserved where the error wraps [tokenstore.ErrOutcomeUnknown].
	Move(ctx context.Context, claims []Claim) ([]Moved, error)
	// Most is how many claims one Move takes, at least 1.
	Most() int
}

// counts are the counts of one meter, guarded by its lock. The ledger never has less
// than what was used: a block is reserved before it is used, so that a crash costs
// up to the rest of a block and never gives anything back. Only counts of a minute
// are not waited for by a process that has the ledger for itself, since that would be
// a write each minute: a crash gives back what is over a block since the last flush.
//
// Only whoever holds the book's writing lock changes what is kept.
type counts struct {
	list    [numCounts]tally
	last    int64 // second of the last flush before which it was used
	loaded  bool  // it is known what the ledger has
	listed  bool  // it is on the book's list
	ready   bool  // loaded, listed and not being settled; or there is no ledger
	unkept  bool  // there is no ledger
	shared  bool  // others draw on the same counts
	active  bool  // it was used since the last flush, or refused for being used up
	refused bool  // a request was refused although others may have given something back
}

// tally is one of them. What is kept and not used is this process's to use; where
// others draw on the same count, used has what they reserved in it.
type tally struct {
	begin, end int64 // of the window, in seconds since 1970; end 0: there was none yet
	used, kept uint64
}

// unspent is what may be used without asking the ledger. It is negative where more
// was used than reserved.
func (c *tally) unspent() int64 { return int64(c.kept - c.used) } //nolint:gosec // the difference is small

// countState says whether a count has room for one more.
type countState uint8

const (
	countUsedUp countState = iota
	countNotDurable
	countFree
)

// countsLeft looks whether every count of the bound has room for one more.
func (b *bound) countsLeft(now time.Time) countState {
	c := b.meter.counts
	if c == nil || !c.loaded || c.shared && !c.ready {
		return countNotDurable
	}
	state := countFree
	if !c.ready {
		state = countNotDurable
	}
	for kind, most := range b.countLimits() {
		one := &c.list[kind]
		one.roll(kind, now)
		if one.used >= most {
			if c.shared {
				c.active, c.refused = true, true
			}
			return countUsedUp
		}
		if one.used >= one.kept && (kind != limitMinute || c.shared) && !c.unkept {
			state = countNotDurable
		}
	}
	return state
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
	c.active = true
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
	if c.listed {
		return false
	}
	for kind := range limitKind(numCounts) {
		if c.used(kind, now) != 0 && c.list[kind].used != c.list[kind].kept {
			return false
		}
	}
	return true
}

// reset is how long until the count begins anew; 0 if it never does. A nil counts is
// in the window that now lies in.
func (c *counts) reset(kind limitKind, now time.Time) time.Duration {
	if kind == limitUses {
		return 0
	}
	_, end := windowAt(kind, now)
	if c != nil {
		end = max(end, c.list[kind].end) // a clock that goes back stays in its window
	}
	return time.Unix(end, 0).Sub(now)
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

// block is how much of a limit is reserved at once before it is used.
func block(most uint64) uint64 { return min(max(most/10, 1), 4096) }

// ledgerBook makes counts durable. A nil book keeps nothing.
type ledgerBook struct {
	ledger  Ledger
	sharers func() int // nil: nobody else draws on the ledger

	mu      sync.Mutex // guards what follows; held for moments only
	waiting *round     // of the requests that wait for the next writing; nil: none does
	listed  map[*meter]bound
	failing error // what the ledger answered last; nil: it works
	retryAt time.Time
	flushed uint64 // moves made ahead of use
	awaited uint64 // moves that requests waited for

	writing sync.Mutex // held while the ledger is written, before any other lock
}

// round holds the requests that one write to the ledger serves.
type round struct {
	wanted  []bound
	retries bool // one of them is to find out whether the ledger works again

	// Guarded by the book's writing lock.
	done    bool
	err     error
	damaged map[*meter]error
}

func newLedgerBook(ledger Ledger, sharers func() int) *ledgerBook {
	return &ledgerBook{ledger: ledger, sharers: sharers, listed: make(map[*meter]bound)}
}

// reserve reserves a block of each count of the bound that is used up. No lock is
// held. Requests that come while the ledger is written wait for their turn, and are
// then served by one writing, which fails for all or for none of them.
func (b *ledgerBook) reserve(ctx context.Context, want *bound, now time.Time) error {
	if b == nil {
		want.meter.unkept()
		return nil
	}
	r, err := b.join(want, now)
	if err != nil {
		return err
	}
	b.writing.Lock()
	defer b.writing.Unlock()
	if !r.done {
		b.serve(ctx, r, now)
	}
	if err := r.damaged[want.meter]; err != nil {
		return err
	}
	return r.err
}

// retryEvery is how often a request tries a ledger that has failed. The others are
// refused at once, rather than kept waiting for an answer that will hardly come.
const retryEvery = time.Second

func (b *ledgerBook) join(want *bound, now time.Time) (*round, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	retries := b.failing != nil
	if retries {
		if wait := b.retryAt.Sub(now); wait > 0 && wait <= retryEvery { // more: the clock was set back
			return nil, b.failing
		}
		b.retryAt = now.Add(retryEvery)
	}
	if b.waiting == nil {
		b.waiting = new(round)
	}
	b.waiting.retries = b.waiting.retries || retries
	b.waiting.wanted = append(b.waiting.wanted, *want)
	return b.waiting, nil
}

// serve ends the round that waits. The writing lock is held.
func (b *ledgerBook) serve(ctx context.Context, r *round, now time.Time) {
	r.done = true
	b.mu.Lock()
	b.waiting = nil
	if b.failing != nil && !r.retries {
		r.err = b.failing
	}
	b.mu.Unlock()
	if r.err != nil {
		return
	}
	errands := b.prepare(r.wanted, now)
	for len(errands) > 0 && r.err == nil {
		n := min(len(errands), b.ledger.Most())
		b.mu.Lock()
		b.awaited++
		b.mu.Unlock()
		r.err = b.run(ctx, errands[:n])
		for i := range errands[:n] {
			if e := &errands[i]; e.err != nil {
				if r.damaged == nil {
					r.damaged = make(map[*meter]error)
				}
				r.damaged[e.bound.meter] = e.err
			}
		}
		errands = errands[n:]
	}
}

// prepare puts what requests want on the list, and returns the claims that it takes.
func (b *ledgerBook) prepare(wanted []bound, now time.Time) []errand {
	number := make(map[*meter]uint64, len(wanted)) // of the requests for each
	for i := range wanted {
		number[wanted[i].meter]++
	}
	sharers := b.sharing()
	errands := make([]errand, 0, len(number))
	for i := range wanted {
		w := &wanted[i]
		n := number[w.meter]
		if n == 0 {
			continue // it had its turn
		}
		delete(number, w.meter)
		w.meter.mu.Lock()
		gone := w.meter.gone
		if !gone {
			c := w.meter.counts
			if c == nil {
				c = &counts{shared: b.sharers != nil}
				w.meter.counts = c
			}
			c.listed, c.active, c.ready = true, true, c.loaded
			if claim, needed := w.ahead(now, sharers, n); needed {
				errands = append(errands, errand{bound: w, claim: claim})
			}
		}
		w.meter.mu.Unlock()
		if !gone {
			b.mu.Lock()
			b.listed[w.meter] = *w
			b.mu.Unlock()
		}
	}
	return errands
}

// sharing is how many draw on the ledger, at least one.
func (b *ledgerBook) sharing() uint64 {
	if b.sharers == nil {
		return 1
	}
	return uint64(max(1, b.sharers())) //nolint:gosec // positive
}

// unkept are the counts of a meter that no ledger keeps.
func (m *meter) unkept() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.counts == nil {
		m.counts = &counts{loaded: true, ready: true, unkept: true}
	}
}

// ahead claims what it takes so that a block of each count may be used, or as many as
// there are requests waiting; needed is whether too little is left of any. The meter's
// lock is held.
func (b *bound) ahead(now time.Time, sharers, waiting uint64) (claim Claim, needed bool) {
	c := b.meter.counts
	claim.Key = b.meter.key.countKey()
	needed = !c.loaded
	for kind, most := range b.countLimits() {
		one := &c.list[kind]
		one.roll(kind, now)
		size := int64(max(block(most)/sharers, waiting, 1)) //nolint:gosec // at most 4096, or the requests
		left := one.unspent()
		claim.Draws[kind] = Draw{Begin: one.begin, Add: max(0, size-left), Most: most}
		needed = needed || left <= size/2 && (one.kept < most || c.refused)
	}
	c.refused = false
	return claim, needed
}

// rest claims that the ledger has what was used and no more. The meter's lock is
// held.
func (b *bound) rest(now time.Time) (claim Claim, needed bool) {
	c := b.meter.counts
	claim.Key = b.meter.key.countKey()
	for kind, most := range b.countLimits() {
		one := &c.list[kind]
		one.roll(kind, now)
		claim.Draws[kind] = Draw{Begin: one.begin, Add: -one.unspent(), Most: most}
		needed = needed || one.unspent() != 0
	}
	return claim, needed
}

// take notes the result of a claim. The meter's lock is held.
func (c *counts) take(m *Moved) {
	for kind := range limitKind(numCounts) {
		one, now := &c.list[kind], &m.Counts[kind]
		switch {
		case now.Begin > one.begin: // others' clocks are ahead, or ours went back
			one.begin, one.used, one.kept = now.Begin, now.N, now.N
			_, one.end = windowAt(kind, time.Unix(now.Begin, 0))
		case now.Begin == one.begin:
			left := one.unspent() + m.Granted[kind]
			if left > 0 && uint64(left) > now.N {
				left = int64(now.N) //nolint:gosec // less than left. The ledger has lost some
			}
			one.kept, one.used = now.N, now.N-uint64(left) //nolint:gosec // negative too
		default: // the ledger has lost all
			one.kept = min(one.kept, one.used)
		}
	}
	c.loaded = true
}

// forfeit takes what is left as used. The meter's lock is held.
func (c *counts) forfeit() {
	for i := range c.list {
		c.list[i].kept = min(c.list[i].kept, c.list[i].used)
	}
}

// errand is a claim on its way.
type errand struct {
	bound  *bound
	claim  Claim
	settle bool  // it gives back what is left, and nothing is used meanwhile
	err    error // of this one alone
}

// run takes errands to the ledger, and notes their results. The writing lock is
// held.
func (b *ledgerBook) run(ctx context.Context, errands []errand) error {
	claims := make([]Claim, len(errands))
	for i := range errands {
		claims[i] = errands[i].claim
	}
	moved, err := b.ledger.Move(ctx, claims)
	if err == nil && len(moved) != len(claims) {
		err = fmt.Errorf("%d claims were answered, of %d", len(moved), len(claims))
	}
	if err != nil {
		err = fmt.Errorf("keep the counts of limits: %w", err)
	}
	if err == nil || ctx.Err() == nil {
		b.mu.Lock()
		b.failing = err
		b.mu.Unlock()
	}
	for i := range errands {
		e := &errands[i]
		m := e.bound.meter
		m.mu.Lock()
		switch {
		case err == nil && moved[i].Err == nil:
			m.counts.take(&moved[i])
		case err == nil:
			e.err = fmt.Errorf("keep the counts of limits: %w", moved[i].Err)
		}
		m.counts.ready = m.counts.loaded
		m.mu.Unlock()
		// What may have been given back is not used any more; what is still reserved
		// for sure is given back the next time.
		if e.settle && (err == nil || errors.Is(err, tokenstore.ErrOutcomeUnknown)) {
			b.unlist(m)
		}
	}
	return err
}

// unlist takes a meter whose counts are settled off the list. The writing lock is
// held.
func (b *ledgerBook) unlist(m *meter) {
	b.mu.Lock()
	delete(b.listed, m)
	b.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counts.forfeit()
	m.counts.listed, m.counts.ready = false, false
	if !m.counts.loaded {
		m.counts = nil
	}
}

// settleAfter is for how many seconds nothing must be used until the rest of a block
// is given back.
const settleAfter = 60

// flush reserves ahead of what is used, for all meters in use at once, so that hardly
// a request waits for the ledger; what has been quiet for long is settled. last
// settles everything: nothing is used any more.
func (b *ledgerBook) flush(ctx context.Context, now time.Time, last bool) error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	work := make([]bound, 0, len(b.listed))
	for _, w := range b.listed {
		work = append(work, w)
	}
	b.mu.Unlock()
	var damaged []error
	for len(work) > 0 {
		errands, done, err := b.flushSome(ctx, work, now, last)
		if err != nil {
			return err
		}
		for i := range errands {
			if errands[i].err != nil {
				damaged = append(damaged, errands[i].err)
			}
		}
		work = work[done:]
	}
	return errors.Join(damaged...)
}

// flushSome makes the claims of as much of the work as one move takes. Requests that
// wait for the ledger have their turn after it.
func (b *ledgerBook) flushSome(ctx context.Context, work []bound, now time.Time, last bool) (errands []errand, done int, err error) {
	b.writing.Lock()
	defer b.writing.Unlock()
	sharers, most := b.sharing(), b.ledger.Most()
	for done < len(work) && len(errands) < most {
		w := &work[done]
		done++
		w.meter.mu.Lock()
		c := w.meter.counts
		if c.active {
			c.active, c.last = false, now.Unix()
		}
		quiet := now.Unix() - c.last // negative: the clock was set back
		settle := last || quiet > settleAfter || quiet < -settleAfter
		var claim Claim
		var needed bool
		if settle {
			c.ready = false
			claim, needed = w.rest(now)
		} else {
			claim, needed = w.ahead(now, sharers, 0)
		}
		w.meter.mu.Unlock()
		if needed {
			errands = append(errands, errand{bound: w, claim: claim, settle: settle})
		} else if settle {
			b.unlist(w.meter)
		}
	}
	if len(errands) == 0 {
		return nil, done, nil
	}
	b.mu.Lock()
	b.flushed++
	b.mu.Unlock()
	return errands, done, b.run(ctx, errands)
}

func (b *ledgerBook) moves() (flushed, awaited uint64) {
	if b == nil {
		return 0, 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.flushed, b.awaited
}
