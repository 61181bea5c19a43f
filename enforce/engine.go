// Package enforce judges requests: which route they take, and whether their
// token allows it.
//
// A door reads a request into a [canon.Request], asks [Engine.Decide], then
// [Engine.Admit], and acts on the decision. The package does no I/O of its own
// but the token lookup, starts no goroutine and reads no clock.
package enforce

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"tokenward/enforce/canon"
	"tokenward/tokenstore"
)

// Finder leads from a presented secret to its token: [tokenstore.Cache.Find].
// An error that is neither [tokenstore.ErrBrokenSecret] nor
// [tokenstore.ErrNotFound] means that the store cannot be asked.
type Finder interface {
	Find(ctx context.Context, text []byte) (tokenstore.Match, error)
}

// Engine is the one judge behind every door: it finds tokens and keeps account of
// their limits. Each door says which policy it judges by: the proxy has the
// configured routes, the admin listener a built-in policy. A nil Engine refuses
// everything. All methods may be called at once from many goroutines.
type Engine struct {
	// Parents is asked where a policy says that a resource can be reached through
	// its parent; nil: no parent is known. It is set before use.
	Parents ParentFinder

	finder Finder
	limits *limitTable
	shadow *limitTable // of requests that are only observed
	others atomic.Pointer[LimitOptions]
	failed failureTable
}

// DefaultMaxLimiters bounds the table of limits: about 300 bytes for each token,
// owner or account in it, and twice that with quotas.
const DefaultMaxLimiters = 1 << 18

// NewEngine returns an engine. maxLimiters bounds how many tokens, owners and
// accounts with limits can be in use at once; 0 means [DefaultMaxLimiters].
func NewEngine(finder Finder, maxLimiters int) *Engine {
	if maxLimiters <= 0 {
		maxLimiters = DefaultMaxLimiters
	}
	return &Engine{finder: finder, limits: newLimitTable(maxLimiters), shadow: newLimitTable(maxLimiters)}
}

// Decide judges the request by policy at now and changes nothing. The caller
// passes a request on only after [Engine.Admit] let it through as well. Decide
// does no I/O when the token is in the cache, and does not allocate. A nil
// policy refuses everything.
func (e *Engine) Decide(ctx context.Context, p *Policy, q *canon.Request, now time.Time) (d Decision) {
	var v vars
	if e == nil || !d.route(p, q, &v) {
		return d
	}
	if d.Reason, d.Cause = e.find(ctx, q, &d.Match); d.Reason == Allowed {
		d.near, _ = d.Match.Beside.Limits().(*meter)
		d.judge(p, q, &v, now, kinship{ctx, e.Parents, p.parents, nil})
	}
	return d
}

// route finds the request's route, and reports whether a token is needed to decide.
func (d *Decision) route(p *Policy, q *canon.Request, v *vars) bool {
	if p == nil || q.Verdict() != canon.Accepted {
		return false
	}
	d.Route = p.match(q, v)
	if d.Irregular = d.Route.irregular(q); d.Irregular != 0 {
		d.Reason = IrregularPath
		return false
	}
	if d.Route != nil && d.Route.Public {
		d.Reason = Public
		return false
	}
	return true
}

// irregular is what of the request's irregularities the route does not relax;
// a nil route relaxes nothing.
func (r *Route) irregular(q *canon.Request) canon.Irregularity {
	if q.Irregular == 0 {
		return 0
	}
	if r == nil {
		return q.Irregular.Refused(0, false)
	}
	return q.Irregular.Refused(r.relax, r.readsQuery)
}

// find gives Allowed where it found the request's token.
func (e *Engine) find(ctx context.Context, q *canon.Request, m *tokenstore.Match) (reason Reason, err error) {
	c := q.Credential()
	switch c.Kind {
	case canon.NoCredential:
		return MissingToken, nil
	case canon.AmbiguousCredential:
		return AmbiguousCredential, nil
	case canon.OneCredential:
	default:
		return MalformedToken, nil
	}
	*m, err = e.finder.Find(ctx, c.Secret)
	switch {
	case err == nil:
		return Allowed, nil
	case errors.Is(err, tokenstore.ErrBrokenSecret):
		return MalformedToken, nil
	case errors.Is(err, tokenstore.ErrNotFound):
		return UnknownToken, nil
	}
	return StoreUnavailable, err
}

// SetLimits replaces the limits besides those of tokens and routes, for all
// requests from now on. Before the first call there are none.
func (e *Engine) SetLimits(o LimitOptions) { e.others.Store(&o) }

// KeepCounts keeps quotas and numbers of uses in the ledger. It is called once,
// before use; without it they begin anew with each start. sharers is nil where this
// process alone draws on the ledger. Otherwise it returns how many processes do:
// the more there are, the less each reserves at once. The number may be wrong, and
// is asked for now and then.
func (e *Engine) KeepCounts(ledger Ledger, sharers func() int) {
	e.limits.ledger = newLedgerBook(ledger, sharers)
}

// FlushCounts reserves counts in the ledger ahead of their use, so that requests need
// not wait for it, and gives back the rest of what has been quiet for a minute. It is
// called every second, or less often by many sharers, from one goroutine.
func (e *Engine) FlushCounts(ctx context.Context, now time.Time) error {
	return e.limits.ledger.flush(ctx, now, false)
}

// SettleCounts writes the counts exactly as they are, and gives back what was
// reserved and not used. It is called at the end, when nothing is admitted any
// more.
func (e *Engine) SettleCounts(ctx context.Context, now time.Time) error {
	return e.limits.ledger.flush(ctx, now, true)
}

// Admit charges the request to every limit that it is subject to (the token's, the
// route's, the owner's, the account's), or, where one of them refuses, to none. It
// changes d into a refusal then, and reports whether d allows. Only a decision that
// allows is charged. What was admitted ends with [Decision.Release].
//
// Admit does no I/O unless a quota or a number of uses needs a further block from
// the ledger: at its first use, and when the flush is late.
func (e *Engine) Admit(d *Decision, now time.Time) bool {
	return e.admit(e.limits, d, d.near, e.others.Load(), now)
}

// AdmitOwn is like Admit without the limits that the token shares with others of its
// owner and account: for requests that must not be refused for what those did.
func (e *Engine) AdmitOwn(d *Decision, now time.Time) bool {
	return e.admit(e.limits, d, d.near, nil, now)
}

// AdmitShadow is like Admit on a separate set of limits, so that observing a route
// uses nothing up.
func (e *Engine) AdmitShadow(d *Decision, now time.Time) bool {
	return e.admit(e.shadow, d, nil, e.others.Load(), now)
}

func (e *Engine) admit(limits *limitTable, d *Decision, near *meter, others *LimitOptions, now time.Time) bool {
	if !d.Allowed() {
		return false
	}
	if d.Reason == Public {
		return true
	}
	if m := limits.admit(d, near, others, now); m != near && limits == e.limits {
		d.Match.Beside.PutLimits(m)
	}
	return d.Allowed()
}

// Fail counts a failed credential against the client's address, which may be
// unknown, and changes d into TooManyFailures where there have been too many from
// there. A decision for any other reason is left alone: a valid credential is never
// refused for the failures of another.
func (e *Engine) Fail(d *Decision, client netip.Addr, now time.Time) {
	o := e.others.Load()
	if o == nil || d.Reason.Code() != codeInvalidToken {
		return
	}
	if wait, ok := e.failed.failed(o.Failures, client, now); !ok {
		d.Reason, d.RetryAfter = TooManyFailures, wait
	}
}

// AppendLeft appends what is left of each limit that a request with the token on
// the route is subject to. route may be nil.
func (e *Engine) AppendLeft(dst []Left, t *tokenstore.Token, route *Route, now time.Time) []Left {
	return e.limits.appendLeft(dst, t, route, e.others.Load(), now)
}

// LimitStats returns counts of the table of limits.
func (e *Engine) LimitStats() LimitStats { return e.limits.stats() }
