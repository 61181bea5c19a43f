package enforce

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"tokenward/tokenstore"
)

// LimitOptions hold the limits besides those of tokens and routes.
type LimitOptions struct {
	// Account and Owner bound what all tokens of one account, or of one owner
	// inside an account, do together. Uses is not looked at: it has no meaning
	// there. Root tokens, which are the operator's, are left out.
	Account, Owner tokenstore.Limits
	// Failures bounds failed credentials from one address.
	Failures FailureLimit
}

// subject is whose limits a meter measures. Locks of meters are taken in this
// order. The numbers are stored in a [CountKey]; that 0 is a token, or rather
// its lineage, whose id follows, is known to the stores too.
type subject uint8

const (
	ofToken   subject = iota // all that the token and its lineage do
	ofRoute                  // what they do on one route, by the route's default
	ofOwner                  // what all tokens of one owner do
	ofAccount                // what all tokens of one account do

	numSubjects
)

// meterKey names a meter: token; token and route; account and owner; account.
type meterKey struct {
	subject subject
	a, b    uint64
}

// limitShards divides the table so that requests of different tokens rarely
// wait for each other.
const limitShards = 64

// limitTable holds the meters of what is in use. It is bounded: a meter that has
// nothing to remember gives way, and when none is found, whoever needs a further
// one is refused rather than an active meter forgotten.
type limitTable struct {
	perShard int
	ledger   *ledgerBook // nil: counts are kept in memory alone
	shards   [limitShards]limitShard
}

// limitShard's mutex guards everything below it, but for glances at the meters, and is
// held for the length of a map access.
type limitShard struct {
	mu      sync.Mutex
	meters  meterTable
	held    map[uint64]int // meters of each account
	evicted uint64
	refused uint64
	_       [8]byte
}

// meter measures one subject.
type meter struct {
	table   *limitTable // that it was made in
	key     meterKey
	account uint64

	mu       sync.Mutex // guards what follows; held for moments only
	gone     bool       // evicted: it must not be used any more
	bucket   bucket
	inFlight uint64
	counts   *counts // nil until there is a quota or a number of uses
}

func newLimitTable(maxMeters int) *limitTable {
	return &limitTable{perShard: max(1, maxMeters/limitShards)}
}

// bound is one subject's limits together with its meter.
type bound struct {
	key        meterKey
	rate       float64
	burst      uint64
	concurrent uint64
	uses       uint64
	quotas     []tokenstore.Quota
	meter      *meter
}

func (b *bound) set() bool {
	return b.rate != 0 || b.concurrent != 0 || b.uses != 0 || len(b.quotas) > 0
}

func (b *bound) counted() bool { return b.uses != 0 || len(b.quotas) > 0 }

// bounds are those that one request is subject to.
type bounds struct {
	list [numSubjects]bound
	n    int
}

func (bs *bounds) all() []bound { return bs.list[:bs.n] }

// take counts the bound that was put into the next place, if it bounds anything.
func (bs *bounds) take() {
	if bs.list[bs.n].set() {
		bs.n++
	}
}

// of gathers the limits that a request with the token on the route is subject to.
// A route's limits are for tokens that have none of the kind themselves.
// Tokens that resets made of one another are measured together: what was left is there
// once, not for each of them.
func (bs *bounds) of(t *tokenstore.Token, r *Route, o *LimitOptions) {
	id := uint64(t.MeasuredAs())
	bs.list[bs.n] = bound{key: meterKey{ofToken, id, 0}, rate: t.Limits.Rate, burst: t.Limits.Burst,
		concurrent: t.Limits.Concurrent, uses: t.Limits.Uses, quotas: t.Limits.Quotas}
	bs.take()
	if r != nil && (r.limits.Rate != 0 || r.limits.Concurrent != 0) {
		b := &bs.list[bs.n]
		*b = bound{key: meterKey{ofRoute, id, r.hash}}
		if t.Limits.Rate == 0 {
			b.rate, b.burst = r.limits.Rate, r.limits.Burst
		}
		if t.Limits.Concurrent == 0 {
			b.concurrent = r.limits.Concurrent
		}
		bs.take()
	}
	if o == nil || t.IsRoot() {
		return
	}
	bs.list[bs.n] = bound{key: meterKey{ofOwner, t.Account, t.Owner}, rate: o.Owner.Rate, burst: o.Owner.Burst,
		concurrent: o.Owner.Concurrent, quotas: o.Owner.Quotas}
	bs.take()
	bs.list[bs.n] = bound{key: meterKey{ofAccount, t.Account, 0}, rate: o.Account.Rate, burst: o.Account.Burst,
		concurrent: o.Account.Concurrent, quotas: o.Account.Quotas}
	bs.take()
}

// unlimited reports whether a request is subject to no limit at all.
func unlimited(t *tokenstore.Token, r *Route, o *LimitOptions) bool {
	return t.Limits.IsZero() && (r == nil || r.limits.IsZero()) && (o == nil || o.Owner.IsZero() && o.Account.IsZero())
}

// admit charges one request to all its limits, or to none of them when one
// refuses. It refuses with StoreUnavailable when a count cannot be made durable. near may
// be the meter of the first of them, found before; which one it was that was asked, admit
// returns, or near.
func (l *limitTable) admit(d *Decision, near *meter, o *LimitOptions, now time.Time) (first *meter) {
	if unlimited(d.Match.Token, d.Route, o) {
		return near
	}
	var bs bounds
	bs.of(d.Match.Token, d.Route, o)
	l.findFast(&bs, near)
	for range admitTurns {
		if !l.find(&bs, d.Match.Token.Account, now) {
			d.Reason, d.RetryAfter = LimitsFull, time.Second
			return near
		}
		if !bs.lock() {
			continue // one was evicted in between
		}
		uncounted := bs.charge(d, now)
		bs.unlock()
		if uncounted == nil {
			return bs.list[0].meter
		}
		// The writing serves others too, so it does not end with this client.
		if err := l.ledger.reserve(context.Background(), uncounted, now); err != nil {
			d.Reason, d.Cause = StoreUnavailable, err
			return near
		}
	}
	d.Reason, d.Cause = StoreUnavailable, errTurns
	return near
}

// admitTurns is how often a request asks for what others take before it: more than
// any can need, since all that wait are reserved for.
const admitTurns = 100

var errTurns = errors.New("other requests used up all that was reserved, again and again: try again")

// findFast gets bounds their meters where no lock is needed for that; near is one that
// may be among them.
func (l *limitTable) findFast(bs *bounds, near *meter) {
	for i := range bs.all() {
		b := &bs.list[i]
		if near != nil && near.key == b.key && near.table == l {
			b.meter = near
		} else {
			b.meter = l.shard(b.key).meters.glance(b.key)
		}
	}
}

// find gets every bound its meter that has none. It reports false where there is no room.
func (l *limitTable) find(bs *bounds, account uint64, now time.Time) bool {
	for i := range bs.all() {
		b := &bs.list[i]
		if b.meter == nil {
			b.meter = l.meter(b.key, account, now)
		}
		if b.meter == nil {
			return false
		}
	}
	return true
}

func (l *limitTable) shard(k meterKey) *limitShard {
	return &l.shards[(k.a+k.b*31+uint64(k.subject)*7)%limitShards]
}

func (l *limitTable) meter(k meterKey, account uint64, now time.Time) *meter {
	s := l.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.meters.get(k)
	if m != nil {
		return m
	}
	if !s.hasRoom(account, l.perShard) && !s.evict(now) || !s.hasRoom(account, l.perShard) {
		s.refused++
		return nil
	}
	if s.held == nil {
		s.held = make(map[uint64]int)
	}
	m = &meter{table: l, key: k, account: account}
	s.meters.add(m)
	s.held[account]++
	return m
}

// hasRoom reports whether the account may have another meter. Once half of the
// shard is taken, an account that holds more than what is left free gets no more,
// so that one tenant with very many slow tokens cannot lock out all others.
func (s *limitShard) hasRoom(account uint64, perShard int) bool {
	free := perShard - s.meters.n
	return free > 0 && (s.meters.n < perShard/2 || s.held[account] <= free)
}

// look returns the meter if there is one.
func (l *limitTable) look(k meterKey) *meter {
	s := l.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.meters.get(k)
}

// evictLooks is how many entries are looked at to find one that may go, so that
// the work is constant.
const evictLooks = 16

func (s *limitShard) evict(now time.Time) bool {
	for range 2 * evictLooks { // at least half of the places are empty
		m := s.meters.next()
		if m == nil || !m.forget(now) {
			continue
		}
		s.meters.remove(m)
		if s.held[m.account]--; s.held[m.account] == 0 {
			delete(s.held, m.account)
		}
		s.evicted++
		return true
	}
	return false
}

// forget marks the meter as gone if it has nothing to remember: its bucket is
// full, no request is in flight, and its counts are over or kept elsewhere.
func (m *meter) forget(now time.Time) bool {
	if !m.mu.TryLock() {
		return false // in use
	}
	defer m.mu.Unlock()
	m.bucket.follow(now.UnixNano())
	if m.inFlight > 0 || !m.bucket.full(now.UnixNano()) || !m.counts.forgettable(now) {
		return false
	}
	m.gone = true
	return true
}

// lock takes the locks of all meters, in the order of their subjects, so that no
// two requests wait for each other. It reports false, with none taken, where one
// is gone, and forgets the meters: under the table's lock none that is gone is found.
func (bs *bounds) lock() bool {
	for i := range bs.all() {
		m := bs.list[i].meter
		m.mu.Lock()
		if m.gone {
			for j := range i + 1 {
				bs.list[j].meter.mu.Unlock()
			}
			for j := range bs.all() {
				bs.list[j].meter = nil
			}
			return false
		}
	}
	return true
}

func (bs *bounds) unlock() {
	for i := range bs.all() {
		bs.list[i].meter.mu.Unlock()
	}
}

// charge looks at every limit and, if all have room, takes from all. All locks are
// held. It returns a bound whose count must first be made durable, and has changed
// nothing then.
func (bs *bounds) charge(d *Decision, now time.Time) (uncounted *bound) {
	at := now.UnixNano()
	for i := range bs.all() {
		b := &bs.list[i]
		if b.concurrent != 0 && b.meter.inFlight >= b.concurrent {
			bs.refuse(d, now)
			return nil
		}
		if b.counted() {
			switch b.countsLeft(now) {
			case countUsedUp:
				bs.refuse(d, now)
				return nil
			case countNotDurable:
				return b
			case countFree:
			}
		}
		if b.rate != 0 {
			b.meter.bucket.make(at, b.rate, b.burstInForce())
		}
	}
	for i := range bs.all() {
		b := &bs.list[i]
		if b.rate == 0 {
			continue
		}
		if b.meter.bucket.missing(at) > 0 {
			bs.refuse(d, now)
			return nil
		}
	}
	held := 0
	for i := range bs.all() {
		b := &bs.list[i]
		if b.rate != 0 {
			b.meter.bucket.take(at)
		}
		if b.counted() {
			b.count()
		}
		if b.concurrent != 0 {
			b.meter.inFlight++
			d.held[held] = b.meter
			held++
		}
	}
	return nil
}

// burstInForce is how many requests the rate lets through at once.
func (b *bound) burstInForce() uint64 {
	l := tokenstore.Limits{Rate: b.rate, Burst: b.burst}
	return uint64(l.BurstInForce()) //nolint:gosec // at least one
}

// refuse turns the decision into the refusal by the limit that will refuse for longest:
// a client that waits until that has room again is not refused by another one then. All
// locks are held.
func (bs *bounds) refuse(d *Decision, now time.Time) {
	by, kind, longest := 0, limitKind(0), time.Duration(0)
	for i := range bs.all() {
		if which, wait := bs.list[i].lacking(now); wait > longest {
			by, kind, longest = i, which, wait
		}
	}
	if longest == forGood {
		longest = 0
	}
	bs.list[by].refuse(d, kind, longest)
}

// forGood is the wait where waiting does not help.
const forGood = time.Duration(math.MaxInt64)

// lacking is the limit of the bound that will have no room for longest, and how long;
// 0: all have room.
func (b *bound) lacking(now time.Time) (kind limitKind, longest time.Duration) {
	m, at := b.meter, now.UnixNano()
	if b.concurrent != 0 && m.inFlight >= b.concurrent {
		kind, longest = limitConcurrent, time.Second
	}
	for one, most := range b.countLimits() {
		if c := m.counts; c == nil || !c.loaded || c.used(one, now) < most {
			continue
		}
		wait := forGood
		if one != limitUses {
			wait = m.counts.reset(one, now)
		}
		if wait > longest {
			kind, longest = one, wait
		}
	}
	if b.rate != 0 {
		m.bucket.make(at, b.rate, b.burstInForce())
		if missing := m.bucket.missing(at); missing > longest {
			kind, longest = limitRate, missing
		}
	}
	return kind, longest
}

// refuse turns the decision into the refusal by one limit.
func (b *bound) refuse(d *Decision, kind limitKind, wait time.Duration) {
	d.RetryAfter = wait
	d.Limited = b.left(kind, 0, wait)
	switch b.key.subject {
	case ofAccount:
		d.Reason = AccountLimited
	case ofOwner:
		d.Reason = OwnerLimited
	case ofRoute:
		d.Reason = RouteLimited
	case ofToken, numSubjects:
		d.Reason = limitReasons[kind]
	}
}

// Release gives back what an admitted request held while it was in flight. Whoever
// admitted a request calls it once the request is over, on the same Decision;
// calling it again does nothing.
func (d *Decision) Release() {
	for i, m := range d.held {
		if m == nil {
			return
		}
		d.held[i] = nil
		m.mu.Lock()
		m.inFlight--
		m.mu.Unlock()
	}
}

// Holds reports whether Release has something to give back.
func (d *Decision) Holds() bool { return d.held[0] != nil }

// limitKind is one kind of limit. Those from limitUses to limitMonth are counts,
// in the order of [Counts].
type limitKind uint8

const (
	limitUses limitKind = iota
	limitMinute
	limitHour
	limitDay
	limitMonth
	limitRate
	limitConcurrent

	numLimitKinds
)

// limitReasons are those of a token's own limits.
var limitReasons = [numLimitKinds]Reason{
	limitUses: UsesExhausted, limitMinute: QuotaExhausted, limitHour: QuotaExhausted, limitDay: QuotaExhausted, limitMonth: QuotaExhausted,
	limitRate: RateLimited, limitConcurrent: TooManyAtOnce,
}

// limitNames name limits on the wire, in RateLimit fields: words in lower case.
var limitNames = [numSubjects][numLimitKinds]string{
	ofToken:   {"uses", "minute", "hour", "day", "month", "rate", "concurrent"},
	ofRoute:   {limitRate: "route-rate", limitConcurrent: "route-concurrent"},
	ofOwner:   {"", "owner-minute", "owner-hour", "owner-day", "owner-month", "owner-rate", "owner-concurrent"},
	ofAccount: {"", "account-minute", "account-hour", "account-day", "account-month", "account-rate", "account-concurrent"},
}

// Left is what is left of one limit. The zero Left is of none.
type Left struct {
	Name   string        // uses, minute, hour, day, month, rate or concurrent, with route-, owner- or account- before it where it is not the token's own
	Quota  uint64        // how many requests it allows: at once where Concurrent, in each Window, or for good where that is 0
	Left   uint64        // how many of them are left
	Window time.Duration // what the quota is for: rounded to whole seconds, 31 days for calendar months
	Reset  time.Duration // until there is more; 0 where waiting does not help, or nothing was used

	Concurrent bool
}

// maxWindowSeconds is what is said of windows that are longer than a time.Duration can
// be: 285 years.
const maxWindowSeconds = 9e9

// left describes one limit of the bound.
func (b *bound) left(kind limitKind, left uint64, reset time.Duration) Left {
	out := Left{Name: limitNames[b.key.subject][kind], Left: left, Reset: reset}
	switch kind {
	case limitUses:
		out.Quota = b.uses
	case limitConcurrent:
		out.Quota, out.Concurrent = b.concurrent, true
	case limitRate:
		out.Quota = b.burstInForce()
		out.Window = time.Duration(min(max(1, math.Ceil(float64(out.Quota)/b.rate)), maxWindowSeconds)) * time.Second
	case limitMinute, limitHour, limitDay, limitMonth:
		for _, q := range b.quotas {
			if quotaKind(q.Per) == kind {
				out.Quota = q.Count
			}
		}
		out.Window = windowLength(kind)
	case numLimitKinds:
	}
	return out
}

// appendLeft appends what is left of each limit in force.
func (l *limitTable) appendLeft(dst []Left, t *tokenstore.Token, r *Route, o *LimitOptions, now time.Time) []Left {
	var bs bounds
	bs.of(t, r, o)
	for i := range bs.all() {
		b := &bs.list[i]
		if b.meter = l.look(b.key); b.meter == nil {
			b.meter = &meter{}
		}
		dst = b.appendLeft(dst, now)
	}
	return dst
}

func (b *bound) appendLeft(dst []Left, now time.Time) []Left {
	m := b.meter
	m.mu.Lock()
	defer m.mu.Unlock()
	if b.rate != 0 {
		one := b.left(limitRate, 0, 0)
		tokens := float64(one.Quota)
		if m.bucket.rate != 0 {
			tokens = min(tokens, m.bucket.levelAt(now.UnixNano()))
		}
		one.Left = uint64(tokens)
		if one.Left < one.Quota {
			one.Reset = time.Duration((float64(one.Left) + 1 - tokens) / b.rate * float64(time.Second))
		}
		dst = append(dst, one)
	}
	for _, q := range b.quotas {
		kind := quotaKind(q.Per)
		used := m.counts.used(kind, now)
		dst = append(dst, b.left(kind, q.Count-min(q.Count, used), m.counts.reset(kind, now)))
	}
	if b.uses != 0 {
		dst = append(dst, b.left(limitUses, b.uses-min(b.uses, m.counts.used(limitUses, now)), 0))
	}
	if b.concurrent != 0 {
		dst = append(dst, b.left(limitConcurrent, b.concurrent-min(b.concurrent, m.inFlight), 0))
	}
	return dst
}

// LimitStats counts what the table of meters did.
type LimitStats struct {
	Meters  int    // held now
	Evicted uint64 // those with nothing to remember that made room
	Refused uint64 // requests refused because no room could be made

	// Moves of the ledger that were made ahead of use, and that requests waited for.
	Flushed, Awaited uint64
}

func (l *limitTable) stats() LimitStats {
	var out LimitStats
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		out.Meters += s.meters.n
		out.Evicted += s.evicted
		out.Refused += s.refused
		s.mu.Unlock()
	}
	out.Flushed, out.Awaited = l.ledger.moves()
	return out
}
