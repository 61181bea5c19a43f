package proxy

import (
	"context"
	"net/http"

	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/proxy/http1"
)

// call is an exchange that a handler of the program's own answers. Of its passage only
// what Streams reads is set.
type call struct {
	passage passage
	over    func() // nil: it is not watched
}

type callKey struct{}

// Calls returns a handler that serves h, whose requests may be passed to
// [Guard.Watch] while they last.
func (g *Guard) Calls(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &call{}
		ctx := context.WithValue(r.Context(), callKey{}, c)
		if wire, ok := w.(interface{ Cutter() http1.Cutter }); ok {
			c.passage.cutter.wire = wire.Cutter()
		} else {
			cancelable, cancel := context.WithCancelCause(ctx)
			defer cancel(nil)
			ctx = cancelable
			patience := newPatience(0, cancel)
			defer patience.finish()
			patience.client = http.NewResponseController(w)
			c.passage.cutter.patience = patience
		}
		defer g.end(c)
		h.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (g *Guard) end(c *call) {
	g.Streams.release(&c.passage)
	if c.over != nil {
		c.over()
	}
}

// Watch cuts the request whose context this is, one that [Guard.Calls] serves, once
// policy no longer lets its token through. d is how it was judged, and noted what
// [Streams.Noted] said before. It reports false, with d the refusal, where the token
// was changed since and is not let through already. q and what it refers to stay as
// they are until over is called.
func (g *Guard) Watch(ctx context.Context, policy *enforce.Policy, d *enforce.Decision, q *canon.Request, noted uint64, over func()) bool {
	c, _ := ctx.Value(callKey{}).(*call)
	if c == nil {
		over()
		return true
	}
	c.over = over
	p := &c.passage
	p.rules, p.req, p.lane = &Ruleset{Policy: policy}, *q, &lane{}
	if g.Streams.hold(p, d.Match, noted) {
		return true
	}
	again := g.again(ctx, p)
	if again.Allowed() {
		return true
	}
	g.Streams.release(p)
	d.Reason, d.Scope, d.Cause = again.Reason, again.Scope, again.Cause
	return false
}
