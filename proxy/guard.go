// Package proxy is the data plane: it lets a request through to the upstream
// only when its token allows it.
//
// A door ([Wire], [HTTP]) reads a request in its own way and hands the facts to
// the [Guard]: one canonical request, one decision by package enforce, one set
// of fields for the upstream. The door then forwards or answers, and tells the
// guard how it ended. No door decides anything by itself, so that what is
// refused at one is refused at all; one table of cases runs through all of them
// (doors_test.go).
package proxy

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/proxy/http1"
	"tokenward/proxy/identity"
	"tokenward/tokenstore"
)

// Ruleset is everything about requests that a reload replaces, whole. It is
// immutable once it is in force.
type Ruleset struct {
	Canon    *canon.Rules
	Policy   *enforce.Policy
	Identity *identity.Headers
	Signer   *identity.Signer // nil: identities are not signed
	// Observe is told of every request that was judged, by the indexes of Policy's
	// routes; nil observes nothing.
	Observe Observer
	// Used is told of every request that its token lets through, when it goes on to
	// the upstream; nil is told nothing. It must not keep anything of a request, and
	// must be quick.
	Used func(d *enforce.Decision, q *canon.Request, userAgent []byte, now time.Time)
	// Lasts is told of a request that goes on under its token, about every minute and
	// at its end, where it took that long; nil is told nothing. It is called with a
	// lock held, and must be quick.
	Lasts func(m *tokenstore.Match, route *enforce.Route, q *canon.Request, userAgent []byte, now time.Time)
	// Denied is told of every request that a judgement refuses, from its goroutine,
	// on the same terms; nil is told nothing.
	Denied func(d *enforce.Decision, q *canon.Request, now time.Time)
	// Routes say how the requests of each route travel, by the indexes of Policy's
	// routes, and Default how those do of which it says nothing.
	Routes  []RouteOptions
	Default RouteOptions
	// InFlight bounds the requests at one moment, with upgraded connections;
	// further ones get 503 before anything is looked at. 0: no bound.
	InFlight int
	// StripObserved removes the credentials of requests that are allowed on a route
	// that is only observed; else they stay, for an API that still checks them.
	StripObserved bool
	// LimitHeaders has every answer tell what is left of the request's limits, and not
	// just those to requests that a limit refused.
	LimitHeaders bool
	// Record says which requests are logged.
	Record Recording

	// The two are made once, since a method value made for each request would
	// cost an allocation.
	judged, keepTrailer func(name []byte) bool
	lanes               []lane // by index of Policy's routes
	noRoute             lane
	cors                bool              // some route has it
	identity            []http1.FieldName // by the index of Identity's names
	signed              http1.FieldName   // Signer's
	prepared            *preparedRefusals
}

// Observer is told, once for each judged request, the index of its route (-1 for
// none), how it was judged, what became of it, and how long it took until the
// answer's last byte; took is negative where that says nothing, as for an
// upgraded connection. It may be called from many goroutines.
type Observer func(route int, reason enforce.Reason, outcome Outcome, took time.Duration)

// Outcome is what became of a judged request. The zero Outcome is a refusal.
type Outcome uint8

// The outcomes.
const (
	Denied   Outcome = iota // refused
	Allowed                 // forwarded, because it was allowed
	Observed                // forwarded, although it would have been refused: the route is only observed
)

func (o Outcome) String() string {
	switch o {
	case Allowed:
		return "allowed"
	case Observed:
		return "observed"
	case Denied:
	}
	return "denied"
}

// Mount is a handler that takes the paths below some prefixes on the proxy's own
// listener, for every method and before routes: a token API.
type Mount struct {
	// Name is the token API's, for people.
	Name string
	// Takes reports whether the canonical path is the handler's.
	Takes func(path []byte) bool
	// Handler gets the request as received; what it takes is never forwarded.
	Handler http.Handler
}

// Guard judges the requests of all doors. Its fields are set before use; the
// ruleset can be replaced at any time.
type Guard struct {
	Engine *enforce.Engine
	Mounts []Mount
	Log    *slog.Logger
	Now    func() time.Time
	// Failed counts failures of the upstream by their code; nil counts nothing.
	Failed func(code string)
	// Refused counts protocol refusals by their code; nil counts nothing.
	Refused func(code string)
	// Streams cuts exchanges whose token no longer allows them.
	Streams *Streams

	rules    atomic.Pointer[Ruleset]
	passages sync.Pool
	inFlight atomic.Int64
	recorded recorded

	// Each logs at most once a second, headers once a minute, and none in the place of
	// another.
	failures   rate.Sometimes // of upstreams
	unreadable rate.Sometimes // what a judgement depends on
	headers    rate.Sometimes // of PROXY protocol, from whoever is not listed
	headerless rate.Sometimes // connections of those who are
}

// NewGuard returns a guard that refuses everything until it has rules.
func NewGuard(engine *enforce.Engine, log *slog.Logger, now func() time.Time) *Guard {
	g := &Guard{
		Engine: engine, Log: log, Now: now,
		failures:   rate.Sometimes{Interval: time.Second},
		unreadable: rate.Sometimes{Interval: time.Second},
		headers:    rate.Sometimes{Interval: time.Minute},
		headerless: rate.Sometimes{Interval: time.Minute},
	}
	g.Streams = newStreams(func() time.Time { return g.Now() })
	return g
}

// SetRules puts a ruleset in force for all requests that arrive from now on.
// Before the first call every request is refused. Only one may call it at a time.
func (g *Guard) SetRules(r *Ruleset) {
	r.buildLanes(g.rules.Load())
	r.judged = r.Canon.Protected
	r.keepTrailer = func(name []byte) bool { return !r.Canon.ForbiddenTrailer(name) }
	r.identity = nil
	for _, name := range r.Identity.Names() {
		r.identity = append(r.identity, http1.MustFieldName(name)) // each begins with X-: none frames a message
	}
	if r.Signer != nil {
		r.signed = http1.MustFieldName(r.Signer.Name())
	}
	r.prepareRefusals()
	g.rules.Store(r)
}

// Rules returns the ruleset in force; nil before the first.
func (g *Guard) Rules() *Ruleset { return g.rules.Load() }

// InFlight is the number of requests between their judgement and the end of
// their answer.
func (g *Guard) InFlight() int64 { return g.inFlight.Load() }

// passage is one request on its way through a door. It is pooled: a door gets it
// from enter and gives it back to leave.
type passage struct {
	rules    *Ruleset
	head     canon.Head
	req      canon.Request
	decision enforce.Decision
	started  time.Time
	changes  uint64 // number of the last change to a token when it started
	live     live   // guarded by the list it is on
	cutter   cutter // set by the door before hold
	id       requestID
	mount    http.Handler       // set when a mount takes the request
	lane     *lane              // of the route; set when the request may go on to an upstream
	gate     *gate              // of the lane, once a place was taken
	limits   limitFields        // held by extra
	extra    []canon.Field      // of every answer to the request, the upstream's too
	set      []http1.NamedField // to be added to what goes upstream
	scratch  []byte             // holds their values
	refusal  refusal            // set when the request is refused
	answer   []http1.Field      // of a refusal
	took     time.Duration      // negative: says nothing
	over     func()             // giveBack, made once for all the requests of a pooled passage
	status   int                // of the upstream's answer

	read      bool // req is this request's
	observed  bool // it would have been refused, and goes on without identity
	untouched bool // its credentials go on too
	lasted    bool // it took long enough to be told to Lasts; guarded as live is
}

// enter begins a passage. The door fills head and calls judge.
func (g *Guard) enter() *passage {
	p, _ := g.passages.Get().(*passage)
	if p == nil {
		p = &passage{}
		p.over = p.giveBack
	}
	g.inFlight.Add(1)
	p.rules = g.rules.Load()
	p.started = g.Now()
	p.changes = g.Streams.changes.Load()
	p.id = newRequestID()
	return p
}

// leave ends the passage: it is observed and may not be used any more.
func (g *Guard) leave(p *passage) {
	g.Streams.release(p)
	if p.lasted { // by which the minute's walk found it, so that most requests need not look
		p.lasts(g.Now())
	}
	p.giveBack()
	g.inFlight.Add(-1)
	g.record(p)
	if p.decision.Reason != enforce.Undecided && p.rules.Observe != nil {
		took := p.took
		if took == 0 {
			took = g.Now().Sub(p.started)
		}
		route := -1
		if p.decision.Route != nil {
			route = p.decision.Route.Index
		}
		p.rules.Observe(route, p.decision.Reason, p.outcome(), took)
	}
	// Nothing of a request may be seen by the next one.
	p.head = canon.Head{}
	p.set = p.set[:0]
	p.extra = p.extra[:0]
	p.scratch = p.scratch[:0]
	p.rules, p.mount, p.lane = nil, nil, nil
	p.decision, p.refusal = enforce.Decision{}, refusal{}
	p.cutter = cutter{}
	p.read, p.observed, p.untouched, p.lasted = false, false, false, false
	p.took, p.status = 0, 0
	g.passages.Put(p)
}

// giveBack gives back the places that the request held among those in flight, of its
// token and of its route. A door does so when all of the upstream's answer is here and
// before the client is sent the last of it: who has seen an answer's end can rely on
// its place. Calling it again does nothing.
func (p *passage) giveBack() {
	p.decision.Release()
	if p.gate != nil {
		p.gate.leave()
		p.gate = nil
	}
}

// holds reports whether there is something to give back.
func (p *passage) holds() bool { return p.gate != nil || p.decision.Holds() }

// judge canonicalises and decides. On true the request may go on: to p.mount if
// that is set, else to the upstream as p.req and p.set say. On false p.refusal
// is the answer.
func (g *Guard) judge(ctx context.Context, p *passage) bool {
	if p.rules == nil {
		p.refusal = overloaded
		return false
	}
	if bound := p.rules.InFlight; bound > 0 && g.inFlight.Load() > int64(bound) {
		p.refusal = overloaded
		g.countRefusal(p.refusal.code)
		return false
	}
	p.read = true
	if !p.canonicalize() {
		g.countRefusal(p.refusal.code)
		return false
	}
	if m := g.mountOf(p.req.Path); m != nil {
		p.mount = m.Handler
		return true
	}
	if p.rules.cors && p.preflight() {
		if p.refusal.code != "" {
			g.countRefusal(p.refusal.code)
		}
		return false
	}
	d := g.Engine.Decide(ctx, p.rules.Policy, &p.req, p.started)
	lane := p.rules.lane(d.Route)
	if lane.cors != nil {
		p.extra = lane.cors.appendAnswer(p.extra, p.only(nameOrigin))
	}
	observed := lane.observes(p.started) && d.Reason != enforce.IrregularPath
	if lane.gate != nil && (d.Allowed() || observed) {
		if !lane.gate.enter() {
			p.refusal = overloaded // before p.decision: it is not counted as judged
			g.countRefusal(p.refusal.code)
			return false
		}
		p.gate = lane.gate
	}
	var allowed bool
	if observed {
		allowed = g.Engine.AdmitShadow(&d, p.started)
	} else {
		g.Engine.Fail(&d, p.req.Client.Addr, p.started)
		allowed = g.Engine.Admit(&d, p.started)
	}
	p.decision = d
	p.observed = observed && !allowed
	p.untouched = observed && (!allowed || !p.rules.StripObserved)
	if !p.observed {
		g.tellLimits(p)
	}
	if !allowed && !p.observed {
		g.deny(ctx, p)
		return false
	}
	p.lane = lane
	if allowed && p.rules.Used != nil && p.decision.Match.Token != nil {
		p.rules.Used(&p.decision, &p.req, p.first(nameUserAgent), p.started)
	}
	p.prepare()
	return true
}

// deny makes p.refusal of p.decision, and tells of it.
func (g *Guard) deny(ctx context.Context, p *passage) {
	d := &p.decision
	if d.Cause != nil {
		g.unreadable.Do(func() {
			g.Log.ErrorContext(ctx, "tokens or limits cannot be read, so requests are refused; tokenward_decisions_total says how often",
				"reason", d.Reason.String(), "error", d.Cause, "request_id", p.id.String())
		})
	}
	if p.rules.Denied != nil {
		p.rules.Denied(d, &p.req, p.started)
	}
	p.refusal = p.rules.refusalOf(d)
}

// canonicalize reads the head as it will be judged. On false p.refusal says what is
// wrong with it, whoever sends it.
func (p *passage) canonicalize() bool {
	if v := p.rules.Canon.Canonicalize(&p.req, &p.head); v != canon.Accepted {
		p.refusal = refusal{status: v.Status(), code: v.Code(), detail: v.Detail()}
		return false
	}
	if p.namesProtected() {
		p.refusal = refusal{status: http.StatusBadRequest, code: "bad_request", detail: "Connection names a header field that the proxy sets or judges by."}
		return false
	}
	return true
}

// mountOf returns the mount that takes a canonical path; nil where none does.
func (g *Guard) mountOf(path []byte) *Mount {
	for i := range g.Mounts {
		if g.Mounts[i].Takes(path) {
			return &g.Mounts[i]
		}
	}
	return nil
}

// lasts tells that the request goes on at now, under the token that it began with.
func (p *passage) lasts(now time.Time) {
	if p.rules.Lasts != nil {
		p.rules.Lasts(&p.decision.Match, p.decision.Route, &p.req, p.first(nameUserAgent), now)
	}
}

// forwards reports whether field i of the head goes on to the upstream.
func (p *passage) forwards(i int) bool {
	switch p.req.Disposition(i) {
	case canon.Forward:
		return true
	case canon.ForeignAuthorization:
		// The token was allowed, so it came by another carrier.
		return p.untouched || p.lane.forwardAuthorization && p.decision.Reason == enforce.Allowed
	case canon.Carrier:
		return p.untouched
	case canon.Removed:
	}
	return false
}

// target is what the upstream is asked for.
func (p *passage) target() []byte {
	if p.untouched {
		return p.req.TargetWithCredentials()
	}
	return p.req.Target()
}

// subprotocols is canon's, where credentials are taken out.
func (p *passage) subprotocols() (value []byte, announced string) {
	if p.untouched {
		return nil, ""
	}
	return p.req.Subprotocols()
}

func (p *passage) outcome() Outcome {
	switch {
	case p.observed:
		return Observed
	case p.decision.Allowed():
		return Allowed
	}
	return Denied
}

// namesProtected reports whether a Connection option asks us to remove what we
// set or judge by: the client's way to strip an identity on its last hop.
func (p *passage) namesProtected() bool {
	for i := range p.head.Fields {
		f := &p.head.Fields[i]
		if !bytes.EqualFold(f.Name, nameConnection) {
			continue
		}
		for option := range bytes.SplitSeq(f.Value, []byte{','}) {
			if option = bytes.TrimSpace(option); len(option) > 0 && p.rules.Canon.Protected(option) {
				return true
			}
		}
	}
	return false
}

func (g *Guard) countRefusal(code string) {
	if g.Refused != nil {
		g.Refused(code)
	}
}

// countFailure counts a failure of the upstream, and logs one each second: an
// upstream that is down fails every request.
func (g *Guard) countFailure(code string, p *passage, err error) {
	if g.Failed != nil {
		g.Failed(code)
	}
	g.failures.Do(func() {
		attrs := []any{"code", code, "upstream", p.lane.upstreams.names(), "error", err}
		if fix := upstreamFix(err); fix != "" {
			attrs = append(attrs, "fix", fix)
		}
		g.Log.Warn("the upstream did not answer as it should; tokenward_upstream_failures_total says how often", append(attrs, "request_id", p.id.String())...)
	})
}

// first returns the value of the first line of a field.
func (p *passage) first(name []byte) []byte {
	for i := range p.head.Fields {
		if f := &p.head.Fields[i]; len(f.Name) == len(name) && bytes.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return nil
}

// prepare makes the fields that only we set: identity, the believed way to us,
// the request's id.
func (p *passage) prepare() {
	add := func(name http1.FieldName, start int) {
		if len(p.scratch) > start {
			p.set = append(p.set, http1.NamedField{Name: name, Value: p.scratch[start:len(p.scratch):len(p.scratch)]})
		}
	}
	if t := p.decision.Match.Token; t != nil && !p.observed {
		for i, name := range p.rules.identity {
			start := len(p.scratch)
			p.scratch = p.rules.Identity.AppendValue(p.scratch, i, t)
			add(name, start)
		}
		if signed := p.rules.Signer.Value(t, p.started); len(signed) > 0 {
			p.set = append(p.set, http1.NamedField{Name: p.rules.signed, Value: signed})
		}
	}
	start := len(p.scratch)
	p.scratch = p.req.AppendForwardedFor(p.scratch)
	add(setForwardedFor, start)
	start = len(p.scratch)
	p.scratch = append(p.scratch, p.req.Authority...)
	add(setForwardedHost, start)
	proto := protoHTTP
	if p.req.Secure {
		proto = protoHTTPS
	}
	p.set = append(p.set, http1.NamedField{Name: setForwardedProto, Value: proto}, http1.NamedField{Name: setRequestID, Value: p.id[:]})
	if protocols, _ := p.subprotocols(); protocols != nil {
		p.set = append(p.set, http1.NamedField{Name: setSubprotocol, Value: protocols})
	}
}

var (
	protoHTTP       = []byte("http")
	protoHTTPS      = []byte("https")
	nameConnection  = []byte("Connection")
	nameRequestID   = []byte(headerRequestID)
	nameUserAgent   = []byte("User-Agent")
	nameSubprotocol = []byte("Sec-Websocket-Protocol")
)

// What prepare sets.
var (
	setForwardedFor   = http1.MustFieldName("X-Forwarded-For")
	setForwardedHost  = http1.MustFieldName("X-Forwarded-Host")
	setForwardedProto = http1.MustFieldName("X-Forwarded-Proto")
	setRequestID      = http1.MustFieldName(headerRequestID)
	setSubprotocol    = http1.MustFieldName("Sec-Websocket-Protocol")
)

const headerRequestID = "X-Request-Id"

// PrefixMount takes the paths that equal one of the prefixes or lie below it. A
// segment `{x}` of a prefix stands for any non-empty segment.
func PrefixMount(h http.Handler, prefixes ...string) Mount {
	split := make([][]string, len(prefixes))
	for i, p := range prefixes {
		split[i] = strings.Split(strings.Trim(p, "/"), "/")
	}
	return Mount{Handler: h, Takes: func(path []byte) bool {
		for _, segments := range split {
			if hasPrefix(path, segments) {
				return true
			}
		}
		return false
	}}
}

func hasPrefix(path []byte, segments []string) bool {
	rest, ok := bytes.CutPrefix(path, []byte{'/'})
	for _, want := range segments {
		if !ok {
			return false
		}
		var segment []byte
		segment, rest, ok = bytes.Cut(rest, []byte{'/'})
		if strings.HasPrefix(want, "{") {
			if len(segment) == 0 {
				return false
			}
		} else if !canon.EqualDecoded(segment, want) {
			return false
		}
	}
	return true
}

// peerOf reads the address that net/http gives as text.
func peerOf(remote string) netip.AddrPort {
	peer, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.AddrPort{} // unknown: every source rule denies
	}
	return peer
}
