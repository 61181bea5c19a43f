package proxy

import (
	"context"
	"fmt"
	"time"

	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/tokenstore"
)

// What an [Explanation] gives as reason where no judgement is made.
const (
	ReasonMounted   = "mounted"   // a token API takes the path
	ReasonPreflight = "preflight" // CORS allows what a browser asks about
)

// Explanation is what the guard would do with a request.
type Explanation struct {
	// Passes is true for what goes on: to the upstream, or to the token API that takes
	// its path; and for a preflight that is answered with what it asks for.
	Passes bool
	Code   string // what the client would be told with a refusal; else empty
	// Reason is that of the judgement, which does not allow what is only observed; or
	// one of ours; or Code again, for what is refused before it is judged.
	Reason string
	Route  *enforce.Route // nil: none, or none was looked for
	Steps  []enforce.Step
}

// Explain says step by step what becomes of a request with this head. as is the
// credential that it is taken to bear, whatever it bears; nil takes it as it is.
// Nothing is charged or counted. Tests hold it equal to what the doors do.
func (g *Guard) Explain(ctx context.Context, head canon.Head, as *tokenstore.Match, now time.Time) Explanation {
	p := &passage{rules: g.rules.Load(), head: head, refusal: overloaded}
	if p.rules == nil || !p.canonicalize() {
		return p.explained("request")
	}
	if m := g.mountOf(p.req.Path); m != nil {
		detail := fmt.Sprintf("%s belongs to the token API %s (admin.mount), which answers by itself: by the scopes and the account of the token, and by no route. Nothing is forwarded", p.req.Path, m.Name)
		return Explanation{Passes: true, Reason: ReasonMounted, Steps: []enforce.Step{{Name: "mount", OK: true, Detail: detail}}}
	}
	if p.rules.cors && p.preflight() {
		return p.explained("cors")
	}
	var d enforce.Decision
	var steps []enforce.Step
	if as != nil {
		d, steps = g.Engine.ExplainAs(ctx, p.rules.Policy, &p.req, *as, now)
	} else {
		d, steps = g.Engine.Explain(ctx, p.rules.Policy, &p.req, now)
	}
	e := Explanation{Passes: d.Allowed(), Code: d.Reason.Code(), Reason: d.Reason.String(), Route: d.Route, Steps: steps}
	l := p.rules.lane(d.Route)
	if !l.observes(now) || d.Reason == enforce.IrregularPath {
		return e
	}
	until := l.observeUntil.Format(time.RFC3339)
	mode := enforce.Step{Name: "mode", OK: true, Detail: "only observed until " + until + ", and passes afterwards too"}
	if !e.Passes {
		e.Passes, e.Code = true, ""
		mode.Detail = "only observed until " + until + ": it is forwarded as it came, without identity, and refused from then on"
	}
	e.Steps = append(e.Steps, mode)
	return e
}

// explained tells of an answer that is given without a judgement.
func (p *passage) explained(step string) Explanation {
	if p.refusal.code == "" {
		return Explanation{Passes: true, Reason: ReasonPreflight, Steps: []enforce.Step{{Name: step, OK: true, Detail: "a browser asks whether a page may send a request, and the proxy answers that it may"}}}
	}
	return Explanation{Code: p.refusal.code, Reason: p.refusal.code, Steps: []enforce.Step{{Name: step, Detail: p.refusal.detail}}}
}
