package proxy

import (
	"sync/atomic"
	"time"

	"tokenward/enforce"
)

// RouteOptions say how the requests of one route travel. A zero field means what
// [Ruleset.Default] says, and there what is said here. InFlight, CORS and
// ForwardAuthorization are a route's own and have no default.
type RouteOptions struct {
	Upstreams *Upstreams // where requests go; without, they are answered with 503
	// ResponseHeader is from the last byte of the request to the head of the
	// answer: 30 s; less than zero: forever.
	ResponseHeader time.Duration
	// Stall is without a byte moving in a body: 60 s; less than zero: forever.
	Stall     time.Duration
	BodyBytes int64 // of a request's body; 0 or less: any. Less lifts the default's bound
	// InFlight bounds the route's requests at one moment, with upgraded
	// connections; further ones get 503. 0: no bound.
	InFlight int
	CORS     *CORS // nil: OPTIONS is judged like everything else
	// ForwardAuthorization lets an Authorization of another scheme pass when our
	// credential came by another header.
	ForwardAuthorization bool
	// ObserveUntil is when the route begins to be enforced: until then requests
	// that would be refused are forwarded as they are, without identity, and
	// counted. Zero: it is enforced.
	ObserveUntil time.Time
	// Enforce enforces the route although Default says to observe.
	Enforce bool
}

// lane is RouteOptions with the defaults put in, as a request uses them.
type lane struct {
	upstreams            *Upstreams
	responseHeader       time.Duration
	stall                time.Duration
	bodyBytes            int64 // 0: any
	cors                 *CORS
	forwardAuthorization bool
	observeUntil         time.Time
	gate                 *gate // nil: no bound
}

// gate counts requests in flight against a bound. Several rulesets may share the
// count, but not the bound.
type gate struct {
	bound int64
	count *atomic.Int64
}

// enter takes a place, if there is one.
func (g *gate) enter() bool {
	if g.count.Add(1) > g.bound {
		g.count.Add(-1)
		return false
	}
	return true
}

func (g *gate) leave() { g.count.Add(-1) }

// observes reports whether requests are only observed at now.
func (l *lane) observes(now time.Time) bool { return now.Before(l.observeUntil) }

// buildLanes resolves the options of each route, so that a request finds them
// ready. before is the ruleset that was in force: a route that it had too goes on
// counting its requests in flight.
func (r *Ruleset) buildLanes(before *Ruleset) {
	counts := make(map[string]*atomic.Int64)
	if before != nil && before.Policy != nil {
		for i, route := range before.Policy.Routes() {
			if g := before.lanes[i].gate; g != nil {
				counts[route.Pattern] = g.count
			}
		}
	}
	r.noRoute = r.resolve(RouteOptions{})
	var routes []*enforce.Route
	if r.Policy != nil {
		routes = r.Policy.Routes()
	}
	r.lanes = make([]lane, len(routes))
	for i, route := range routes {
		var o RouteOptions
		if i < len(r.Routes) {
			o = r.Routes[i]
		}
		r.lanes[i] = r.resolve(o)
		r.cors = r.cors || r.lanes[i].cors != nil
		if o.InFlight <= 0 {
			continue
		}
		count := counts[route.Pattern]
		if count == nil {
			count = new(atomic.Int64)
		}
		r.lanes[i].gate = &gate{bound: int64(o.InFlight), count: count}
	}
}

const (
	defaultResponseHeader = 30 * time.Second
	defaultStall          = time.Minute
)

// resolve gives the lane of one route, without its gate.
func (r *Ruleset) resolve(o RouteOptions) lane {
	first := func(ds ...time.Duration) time.Duration {
		for _, d := range ds {
			if d != 0 {
				return d
			}
		}
		return 0
	}
	l := lane{
		upstreams:            o.Upstreams,
		responseHeader:       first(o.ResponseHeader, r.Default.ResponseHeader, defaultResponseHeader),
		stall:                first(o.Stall, r.Default.Stall, defaultStall),
		bodyBytes:            o.BodyBytes,
		cors:                 o.CORS,
		forwardAuthorization: o.ForwardAuthorization,
		observeUntil:         o.ObserveUntil,
	}
	if l.observeUntil.IsZero() && !o.Enforce {
		l.observeUntil = r.Default.ObserveUntil
	}
	if l.upstreams == nil {
		l.upstreams = r.Default.Upstreams
	}
	if l.bodyBytes == 0 {
		l.bodyBytes = r.Default.BodyBytes
	}
	l.bodyBytes = max(l.bodyBytes, 0)
	return l
}

// lane gives the options of a route; those of none where it is nil.
func (r *Ruleset) lane(route *enforce.Route) *lane {
	if route == nil {
		return &r.noRoute
	}
	return &r.lanes[route.Index]
}
