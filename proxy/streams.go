package proxy

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tokenward/enforce"
	"tokenward/proxy/http1"
	"tokenward/tokenstore"
)

// Streams knows the exchanges that go on under a token, and cuts each one that
// its token no longer allows: after a change of the token, and when the token or
// the secret in use comes to its end. It judges by enforce as every request is
// judged, from the facts of the exchange and the token as it is now. Exchanges are what
// the doors forward, and the calls of our own APIs that [Guard.Watch] is told of.
//
// Exchanges are linked into a fixed number of lists by the id of their token, so
// the table needs no memory of its own and no bound: it holds what is in flight.
//
// # No exchange slips between its judgement and a change
//
// Changes are numbered. A request notes the last number before its token is looked
// up; a change counts up after the token cache was told of it, then leaves its
// number on the list and judges what is on it. A request that comes onto the list
// later finds a number above the one that it noted, and is judged anew.
type Streams struct {
	// Cut is told of each exchange that was cut, and why; nil counts nothing.
	Cut func(reason enforce.Reason)
	// Report is told of changes and endings that cut exchanges, from a goroutine of
	// its own, one call at a time; dropped is how many could not be kept for it
	// since the last call. nil: nobody is.
	Report func(cuts []CutReport, dropped uint64)
	// Usable returns an error while what is held of tokens may be too old to judge by:
	// no exchange goes on then, as none begins. nil: never.
	Usable func() error
	// Find reads a token as it is now, for [Streams.Doubt]. nil: nothing is doubted.
	Find func(ctx context.Context, id tokenstore.ID) (*tokenstore.Token, error)

	now     func() time.Time
	changes atomic.Uint64
	lists   [streamLists]streamList

	mu      sync.Mutex // guards what follows; held for moments only
	doomed  []doomed
	reports []CutReport
	dropped uint64

	wakeCut, wakeReport, wakeDoubt chan struct{}
}

// CutReport says that exchanges of one token were cut together.
type CutReport struct {
	Token     *tokenstore.Token // as it is now; as it last was where it was swept
	Reason    enforce.Reason    // of the first of them
	Exchanges int
}

const (
	streamLists = 1024
	// sweepEvery is how often exchanges are looked at whose token or secret has an
	// end.
	sweepEvery = 250 * time.Millisecond
	// touchEvery is how often exchanges that last so long count as use of their
	// token.
	touchEvery = time.Minute
	// doubtEvery is how soon a token is asked for again that could not be read.
	doubtEvery = 500 * time.Millisecond
	// maxCutReports bounds what waits for Report.
	maxCutReports = 10_000
)

// streamList's mutex guards everything below it, and the live part of every
// passage on it.
type streamList struct {
	mu      sync.Mutex
	changed uint64   // number of the last change to one of its tokens
	heads   [2]*live // exchanges without an end, and those that have one

	_ [32]byte // a cache line of its own
}

const (
	lasting = iota
	ending
)

// live is what Streams knows of an exchange. It is part of the passage, and on a
// list from hold to release. Judging reads the passage's rules, request and
// lane, which do not change in between.
type live struct {
	list       *streamList // set by hold, nil before; the passage's own
	head       int
	next, prev *live
	passage    *passage
	match      tokenstore.Match
	ends       time.Time // of token or secret, whichever comes first; only with head ending
	doomed     bool
}

// cutter ends an exchange, from any goroutine, even after it is over.
type cutter struct {
	wire     http1.Cutter
	patience *patience // in place of wire where net/http serves the client
}

func (c cutter) cut() bool {
	if c.patience != nil {
		return c.patience.cut()
	}
	return c.wire.Cut()
}

// doomed are exchanges of one token that are to be cut.
type doomed struct {
	report  CutReport
	cutters []cutter
	reasons []enforce.Reason
}

func newStreams(now func() time.Time) *Streams {
	return &Streams{now: now, wakeCut: make(chan struct{}, 1), wakeReport: make(chan struct{}, 1), wakeDoubt: make(chan struct{}, 1)}
}

// Noted is the number of the last change; see [Guard.Watch].
func (s *Streams) Noted() uint64 { return s.changes.Load() }

func (s *Streams) list(id tokenstore.ID) *streamList { return &s.lists[uint64(id)%streamLists] }

// hold links the exchange and reports whether its token is still what it was when
// the request noted the number of changes.
func (s *Streams) hold(p *passage, m tokenstore.Match, noted uint64) bool {
	l := s.list(m.Token.ID)
	one := &p.live
	l.mu.Lock()
	defer l.mu.Unlock()
	one.list, one.passage, one.doomed = l, p, false
	one.know(m)
	l.link(one)
	return l.changed <= noted
}

// renew notes the token as it is now for an exchange that is held, and reports
// whether it is still that since the number of changes was noted.
func (s *Streams) renew(p *passage, m tokenstore.Match, noted uint64) bool {
	l := p.live.list
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed > noted {
		return false
	}
	l.unlink(&p.live)
	p.live.know(m)
	l.link(&p.live)
	return true
}

// release takes the exchange off its list, if it is held.
func (s *Streams) release(p *passage) {
	l := p.live.list
	if l == nil {
		return
	}
	l.mu.Lock()
	l.unlink(&p.live)
	l.mu.Unlock()
	p.live = live{}
}

// know notes the token and when it, or the secret, ends.
func (one *live) know(m tokenstore.Match) {
	one.match, one.head = m, lasting
	if end := m.Token.Expiry.Earlier(m.Secret.Ends); !end.Never {
		one.head, one.ends = ending, end.At
	}
}

func (l *streamList) link(one *live) {
	head := &l.heads[one.head]
	one.prev, one.next = nil, *head
	if one.next != nil {
		one.next.prev = one
	}
	*head = one
}

func (l *streamList) unlink(one *live) {
	if one.prev != nil {
		one.prev.next = one.next
	} else {
		l.heads[one.head] = one.next
	}
	if one.next != nil {
		one.next.prev = one.prev
	}
	one.next, one.prev = nil, nil
}

// Changed judges the exchanges of a token that was changed, and has those cut that
// it allows no longer. A store calls it after [tokenstore.Cache.Changed] and before
// the change is acknowledged. It does not wait for the cutting, which takes Run.
// What a token was before may be unknown: there can be exchanges all the same.
func (s *Streams) Changed(change tokenstore.Change) {
	last := change.After
	if last == nil {
		last = change.Before
	}
	if last == nil {
		return
	}
	s.become(last, change.After, ^uint64(0))
}

// become judges the exchanges of a token that is now as given; nil: there is none any
// more, and last is what it was. It reports false, and does nothing, where one of its
// list's tokens was changed since the number of changes was noted.
func (s *Streams) become(last, after *tokenstore.Token, noted uint64) bool {
	l := s.list(last.ID)
	d := doomed{report: CutReport{Token: last}}
	l.mu.Lock()
	if l.changed > noted {
		l.mu.Unlock()
		return false
	}
	l.changed = s.changes.Add(1)
	for head := range l.heads {
		for one := l.heads[head]; one != nil; {
			next := one.next
			if one.match.Token.ID == last.ID && !one.doomed {
				s.rejudge(one, after, &d)
			}
			one = next
		}
	}
	l.mu.Unlock()
	s.condemn(d)
	return true
}

// rejudge judges an exchange whose token is now as given; nil: there is none any
// more. The list's lock is held.
func (s *Streams) rejudge(one *live, t *tokenstore.Token, d *doomed) {
	m := tokenstore.Match{Token: t}
	if t != nil {
		for i := range t.Secrets {
			if t.Secrets[i].Digest == one.match.Secret.Digest {
				m.Secret = &t.Secrets[i]
			}
		}
	}
	reason := one.judge(m, s.now())
	if !reason.Allows() {
		d.add(one, reason)
		return
	}
	if m.Secret == nil {
		return // it is only observed, and remains under what it began with
	}
	l := one.list
	l.unlink(one)
	one.know(m)
	l.link(one)
}

// judge says why the exchange may not go on under m, or that it may.
func (one *live) judge(m tokenstore.Match, now time.Time) enforce.Reason {
	p := one.passage
	if p.lane.observes(now) {
		return enforce.Allowed
	}
	d := enforce.Judge(p.rules.Policy, m, &p.req, now)
	switch d.Reason {
	case enforce.UnknownToken:
		if m.Token != nil && m.Token.Status(now) == tokenstore.StatusActive {
			return enforce.SecretEnded // the token has dropped it
		}
	case enforce.ResourceNotGranted, enforce.LevelTooLow:
		// Perhaps a grant on the resource's parent let it through, which is not to
		// be looked up in here: with the same grants it still does.
		if sameResources(&m.Token.Resources, &one.match.Token.Resources) {
			return enforce.Allowed
		}
	default:
	}
	return d.Reason
}

func sameResources(a, b *tokenstore.Resources) bool {
	return a.All == b.All && slices.Equal(a.Grants, b.Grants)
}

func (d *doomed) add(one *live, reason enforce.Reason) {
	if len(d.cutters) == 0 {
		d.report.Reason = reason
	}
	one.doomed = true
	d.cutters = append(d.cutters, one.passage.cutter)
	d.reasons = append(d.reasons, reason)
}

// condemn has Run cut the exchanges.
func (s *Streams) condemn(ds ...doomed) {
	s.mu.Lock()
	for _, d := range ds {
		if len(d.cutters) > 0 {
			s.doomed = append(s.doomed, d)
		}
	}
	s.mu.Unlock()
	wake(s.wakeCut)
}

func wake(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Run cuts what is to be cut, until ctx ends. Without it nothing is.
func (s *Streams) Run(ctx context.Context) {
	var others sync.WaitGroup
	others.Go(func() { s.report(ctx) })
	others.Go(func() { s.settle(ctx) })
	defer others.Wait()
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	touched := s.now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wakeCut:
		case <-tick.C:
			now := s.now()
			s.sweep(now)
			if s.Usable != nil && s.Usable() != nil {
				s.endAll(now)
			}
			if now.Sub(touched).Abs() >= touchEvery { // the clock can be set back
				touched = now
				s.touch(now)
			}
		}
		s.cut()
	}
}

// sweep judges the exchanges whose token or secret has come to its end.
func (s *Streams) sweep(now time.Time) {
	for i := range s.lists {
		s.lists[i].sweep(s, now)
	}
}

func (l *streamList) sweep(s *Streams, now time.Time) {
	var ended map[tokenstore.ID]*doomed // made only for what ends now
	l.mu.Lock()
	for one := l.heads[ending]; one != nil; one = one.next {
		if one.doomed || now.Before(one.ends) {
			continue
		}
		reason := one.judge(one.match, now)
		if reason.Allows() {
			continue
		}
		id := one.match.Token.ID
		if ended == nil {
			ended = make(map[tokenstore.ID]*doomed)
		}
		if ended[id] == nil {
			ended[id] = &doomed{report: CutReport{Token: one.match.Token}}
		}
		ended[id].add(one, reason)
	}
	l.mu.Unlock()
	for _, d := range ended {
		s.condemn(*d)
	}
}

// endAll has all exchanges cut that a token let through.
func (s *Streams) endAll(now time.Time) {
	ended := map[tokenstore.ID]*doomed{}
	for i := range s.lists {
		l := &s.lists[i]
		l.mu.Lock()
		for head := range l.heads {
			for one := l.heads[head]; one != nil; one = one.next {
				if one.doomed || one.passage.lane.observes(now) {
					continue
				}
				t := one.match.Token
				if ended[t.ID] == nil {
					ended[t.ID] = &doomed{report: CutReport{Token: t}}
				}
				ended[t.ID].add(one, enforce.StoreUnavailable)
			}
		}
		l.mu.Unlock()
	}
	for _, d := range ended {
		s.condemn(*d)
	}
}

// Doubt has all exchanges judged by their tokens as Find reads them: changes may have
// been made that nobody can tell of any more. It is called after
// [tokenstore.Cache.Forget], and does not wait.
func (s *Streams) Doubt() { wake(s.wakeDoubt) }

// settle does what Doubt asks for, until ctx ends.
func (s *Streams) settle(ctx context.Context) {
	var retry <-chan time.Time // nil: nothing is left to be read
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wakeDoubt:
		case <-retry:
		}
		retry = nil
		if s.Find != nil && !s.readAnew(ctx) {
			retry = time.After(doubtEvery)
		}
	}
}

// readAnew judges all exchanges by their tokens as they are now, and reports whether
// all could be read.
func (s *Streams) readAnew(ctx context.Context) bool {
	all := true
	for id, last := range s.inUse() {
		for {
			noted := s.changes.Load()
			after, err := s.Find(ctx, id)
			if err != nil && !errors.Is(err, tokenstore.ErrNotFound) {
				all = false
				break
			}
			if after != nil {
				last = after
			}
			if s.become(last, after, noted) {
				break
			}
		}
	}
	return all
}

// inUse are the tokens of all exchanges. A request whose token was looked up before is
// judged anew when it comes onto its list.
func (s *Streams) inUse() map[tokenstore.ID]*tokenstore.Token {
	tokens := map[tokenstore.ID]*tokenstore.Token{}
	for i := range s.lists {
		l := &s.lists[i]
		l.mu.Lock()
		l.changed = s.changes.Add(1)
		for head := range l.heads {
			for one := l.heads[head]; one != nil; one = one.next {
				tokens[one.match.Token.ID] = one.match.Token
			}
		}
		l.mu.Unlock()
	}
	return tokens
}

// touch tells of the exchanges that have gone on for touchEvery: a token that is in
// use must not count as silent because the request began long ago.
func (s *Streams) touch(now time.Time) {
	for i := range s.lists {
		l := &s.lists[i]
		l.mu.Lock()
		for head := range l.heads {
			for one := l.heads[head]; one != nil; one = one.next {
				if p := one.passage; !one.doomed && now.Sub(p.started) >= touchEvery {
					p.lasted = true
					p.lasts(now)
				}
			}
		}
		l.mu.Unlock()
	}
}

// cut ends everything that is doomed.
func (s *Streams) cut() {
	s.mu.Lock()
	ds := s.doomed
	s.doomed = nil
	s.mu.Unlock()
	for _, d := range ds {
		for i, c := range d.cutters {
			if !c.cut() {
				continue // it came to its own end
			}
			d.report.Exchanges++
			if s.Cut != nil {
				s.Cut(d.reasons[i])
			}
		}
		if d.report.Exchanges > 0 {
			s.tell(d.report)
		}
	}
}

func (s *Streams) tell(r CutReport) {
	s.mu.Lock()
	if len(s.reports) < maxCutReports {
		s.reports = append(s.reports, r)
	} else {
		s.dropped++
	}
	s.mu.Unlock()
	wake(s.wakeReport)
}

// report hands over what was cut, until ctx ends, so that a slow reader holds up
// no cutting.
func (s *Streams) report(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			s.handOver()
			return
		case <-s.wakeReport:
			s.handOver()
		}
	}
}

func (s *Streams) handOver() {
	s.mu.Lock()
	reports, dropped := s.reports, s.dropped
	s.reports, s.dropped = nil, 0
	s.mu.Unlock()
	if s.Report != nil && len(reports) > 0 {
		s.Report(reports, dropped)
	}
}

// hold makes the exchange one that is cut once its token does not allow it any
// more. It reports false, with the refusal set, where that is so already.
func (g *Guard) hold(ctx context.Context, p *passage) bool {
	if p.decision.Reason != enforce.Allowed || g.Streams.hold(p, p.decision.Match, p.changes) {
		return true
	}
	d := g.again(ctx, p)
	if d.Allowed() || p.lane.observes(p.started) {
		return true
	}
	g.Streams.release(p)
	p.decision.Reason, p.decision.Scope, p.decision.Cause = d.Reason, d.Scope, d.Cause
	p.refusal = p.rules.refusalOf(&p.decision)
	return false
}

// again judges an exchange that is held, since its token was changed after it was looked
// up. What changes after this look will find the exchange on its list, and is not to be
// taken back by what was seen.
func (g *Guard) again(ctx context.Context, p *passage) enforce.Decision {
	for {
		noted := g.Streams.changes.Load()
		d := g.Engine.Decide(ctx, p.rules.Policy, &p.req, g.Now())
		if !d.Allowed() || g.Streams.renew(p, d.Match, noted) {
			return d
		}
	}
}
