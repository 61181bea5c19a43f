package enforce

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"tokenward/enforce/canon"
	"tokenward/tokenstore"
)

// Step is one check of a judgement, for people.
type Step struct {
	Name   string // path, route, credential, token, source, scopes, account, resources, limits
	OK     bool   // it stood in nobody's way
	Detail string // what was compared with what; never a secret
}

// Explain judges as Decide does and tells each step up to the one that decided.
// Nothing is charged. Tests hold its decision equal to Decide's.
func (e *Engine) Explain(ctx context.Context, p *Policy, q *canon.Request, now time.Time) (d Decision, _ []Step) {
	var v vars
	var heard []parentage
	if e != nil && d.route(p, q, &v) {
		if d.Reason, d.Cause = e.find(ctx, q, &d.Match); d.Reason == Allowed {
			d.judge(p, q, &v, now, kinship{ctx, e.Parents, p.parents, &heard})
		}
	}
	return d, steps(p, q, d, now, heard)
}

// ExplainAs judges the request as if it bore m's secret, whatever it bears. It
// is for asking about a token whose secret one does not have.
func (e *Engine) ExplainAs(ctx context.Context, p *Policy, q *canon.Request, m tokenstore.Match, now time.Time) (d Decision, _ []Step) {
	var v vars
	var heard []parentage
	if d.route(p, q, &v) {
		d.Match = m
		d.judge(p, q, &v, now, kinship{ctx, e.Parents, p.parents, &heard})
	}
	return d, steps(p, q, d, now, heard)
}

// account collects steps until one of them decides.
type account struct {
	steps   []Step
	decided Reason
}

// add tells of a check; it is the deciding one if the decision's reason is among
// those it can end with. It reports whether to go on.
func (a *account) add(name, detail string, endsWith ...Reason) bool {
	ok := true
	for _, r := range endsWith {
		ok = ok && r != a.decided
	}
	a.steps = append(a.steps, Step{name, ok, detail})
	return ok
}

// steps retells the decision in the order of judge.
func steps(p *Policy, q *canon.Request, d Decision, now time.Time, heard []parentage) []Step {
	if q.Verdict() != canon.Accepted {
		return []Step{{"request", false, q.Verdict().Detail()}}
	}
	a := &account{decided: d.Reason}
	r, t := d.Route, d.Match.Token
	if !a.add("path", pathDetail(q, &d), IrregularPath) {
		return a.steps
	}
	if r != nil {
		a.add("route", r.describe())
		if d.Reason == Public {
			a.add("credential", "the route is public: credentials are not read, only removed")
			return a.steps
		}
	} else {
		a.add("route", "none matches; this is told only to holders of a valid token")
	}
	if !a.add("credential", credentialDetail(&d), MissingToken, AmbiguousCredential, MalformedToken, UnknownToken, StoreUnavailable) || t == nil {
		return a.steps
	}
	if !a.add("token", tokenDetail(d.Match, now), RevokedToken, ExpiredToken, DisabledToken, TokenNotYetValid, SecretEnded, UnknownToken) ||
		!a.add("source", sourceDetail(t, q), SourceUnknown, SourceNotAllowed) {
		return a.steps
	}
	if r == nil {
		a.steps = append(a.steps, Step{"route", false, "none matches, and what no route names is refused"})
		return a.steps
	}
	if !a.add("scopes", fmt.Sprintf("the route needs %s; the token has %s", allOf(r.scopes), listOf(t.Scopes)), ScopeMissing) ||
		!a.add("account", r.accountDetail(t), OtherAccount) ||
		!a.add("resources", r.resourceDetail(p, t, q, heard), RestrictedToken, ResourceNotGranted, LevelTooLow, AmbiguousQuery, ParentUnavailable) {
		return a.steps
	}
	a.add("limits", limitsDetail(&t.Limits), RateLimited, QuotaExhausted, UsesExhausted, TooManyAtOnce, RouteLimited, OwnerLimited, AccountLimited, LimitsFull)
	return a.steps
}

func pathDetail(q *canon.Request, d *Decision) string {
	text := fmt.Sprintf("%s %s is judged and forwarded", q.Method, q.Path)
	if d.Reason == IrregularPath {
		return fmt.Sprintf("%s The route may accept it with relax: [%s].", d.Irregular.Detail(), d.Irregular)
	}
	return text
}

// describe names the route and where it stands.
func (r *Route) describe() string {
	if r.Line == 0 {
		return r.Pattern
	}
	return fmt.Sprintf("%s (line %d)", r.Pattern, r.Line)
}

func credentialDetail(d *Decision) string {
	if d.Match.Token != nil {
		return fmt.Sprintf("a secret of token %d", d.Match.Token.ID)
	}
	switch d.Reason {
	case MalformedToken:
		return "it does not have the form of a secret: length, alphabet or checksum is wrong"
	case UnknownToken:
		return "no token has this secret"
	case StoreUnavailable:
		return fmt.Sprintf("the store could not be asked: %v", d.Cause)
	default:
		return d.Reason.Detail()
	}
}

func tokenDetail(m tokenstore.Match, now time.Time) string {
	t := m.Token
	text := fmt.Sprintf("token %d (%s) of account %d is %s", t.ID, t.Name, t.Account, t.Status(now))
	if !t.Expiry.Never {
		text += ", ends " + t.Expiry.At.Format(time.RFC3339)
	}
	if !t.NotBefore.IsZero() {
		text += ", begins " + t.NotBefore.Format(time.RFC3339)
	}
	if m.Secret != nil && m.Secret.InGrace() {
		text += "; the secret has been replaced and ends " + secretEnd(m.Secret)
	}
	return text
}

// secretEnd says when a secret that was replaced ends.
func secretEnd(s *tokenstore.SecretRecord) string {
	if s.Silence > 0 {
		return "once it was not used for " + s.Silence.String()
	}
	return s.Ends.At.Format(time.RFC3339)
}

func sourceDetail(t *tokenstore.Token, q *canon.Request) string {
	from := "the client's address is not known"
	if q.Client.Addr.IsValid() {
		from = "the client is " + q.Client.Addr.String()
	}
	rule := "any address is allowed"
	if !t.Sources.Any {
		rule = fmt.Sprintf("the token allows %v", t.Sources.Allow)
		if len(t.Sources.Deny) > 0 {
			rule += fmt.Sprintf(" without %v", t.Sources.Deny)
		}
	}
	return fmt.Sprintf("%s (%s); %s", from, q.ExplainClient(), rule)
}

func (r *Route) accountDetail(t *tokenstore.Token) string {
	switch {
	case r.tokenAccount < 0:
		return "the route does not compare accounts"
	case t.IsRoot():
		return "a root token passes for every account"
	}
	return fmt.Sprintf("{%s} must be the token's account, %d", r.path.vars[r.tokenAccount], t.Account)
}

func (r *Route) resourceDetail(p *Policy, t *tokenstore.Token, q *canon.Request, heard []parentage) string {
	has := "the token is not restricted"
	if t.Resources.Restricted() {
		has = "the token grants " + grantsText(t.Resources.Grants)
	}
	if len(r.resources) == 0 {
		if r.restrictedTokens {
			return has + "; the route names no resource and lets restricted tokens use it"
		}
		return has + "; the route names no resource, so a restricted token may not use it"
	}
	var v vars
	p.match(q, &v)
	level := r.level(q)
	var items []string
	for _, either := range r.resources {
		var alternatives []string
		for i := range either {
			id, ok := either[i].appendID(nil, t, q, &v)
			if !ok {
				return "a query parameter that the route reads is not there exactly once"
			}
			text := fmt.Sprintf("%s:%s", either[i].typ, strconv.QuoteToASCII(string(id)))
			if parent := p.parents[either[i].typ]; parent != "" {
				text += " (or the " + parent + " that the API names as its parent" + saidOf(heard, either[i].typ, string(id)) + ")"
			}
			alternatives = append(alternatives, text)
		}
		items = append(items, strings.Join(alternatives, " or "))
	}
	return fmt.Sprintf("needs %s at level %s; %s", strings.Join(items, " and "), level, has)
}

// saidOf is what the API was heard to say about a resource; nothing if it was not asked.
func saidOf(heard []parentage, typ, id string) string {
	i := slices.IndexFunc(heard, func(p parentage) bool { return p.typ == typ && p.id == id })
	if i < 0 {
		return ""
	}
	return ": " + heard[i].said
}

func limitsDetail(l *tokenstore.Limits) string {
	var texts []string
	if l.Rate != 0 {
		texts = append(texts, fmt.Sprintf("%g requests a second, %d at once", l.Rate, l.BurstInForce()))
	}
	for _, q := range l.Quotas {
		texts = append(texts, fmt.Sprintf("%d a %s", q.Count, q.Per))
	}
	if l.Uses != 0 {
		texts = append(texts, fmt.Sprintf("%d for good", l.Uses))
	}
	if l.Concurrent != 0 {
		texts = append(texts, fmt.Sprintf("%d in flight", l.Concurrent))
	}
	if len(texts) == 0 {
		return "the token has no limit of its own"
	}
	return strings.Join(texts, "; ") + "; not charged here"
}

func allOf(items [][]string) string {
	if len(items) == 0 {
		return "no scope"
	}
	texts := make([]string, len(items))
	for i, either := range items {
		texts[i] = strings.Join(either, " or ")
	}
	return strings.Join(texts, " and ")
}

func listOf(texts []string) string {
	if len(texts) == 0 {
		return "none"
	}
	return strings.Join(texts, " ")
}

func grantsText(grants []tokenstore.Grant) string {
	if len(grants) == 0 {
		return "nothing"
	}
	const most = 10
	var texts []string
	for i, g := range grants {
		if i == most {
			texts = append(texts, fmt.Sprintf("and %d more", len(grants)-most))
			break
		}
		texts = append(texts, fmt.Sprintf("%s:%s:%s", g.Type, strconv.QuoteToASCII(g.ID), g.Level))
	}
	return strings.Join(texts, ", ")
}
