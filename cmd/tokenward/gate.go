package main

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"tokenward/admin"
	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/proxy"
	"tokenward/tokenstore"
	"tokenward/tokenstore/usage"
)

// gate judges who calls a token API by the same engine as every other door,
// under a built-in policy: any valid token from an allowed source may knock, and
// what it may do there is the service's to say.
type gate struct {
	guard  *proxy.Guard // whose engine judges, and which cuts what is being read
	canon  *canon.Rules
	policy *enforce.Policy
	goesOn *enforce.Policy // by which what a token that may read is reading goes on
	vault  *vault          // is told of uses and denials
	words  *usage.Vocabulary
	now    func() time.Time
	visits sync.Pool // of *visit
}

// visit is the scratch space of one judgement.
type visit struct {
	head canon.Head
	req  canon.Request
}

// adminRoutes are the built-in policy.
var adminRoutes = []enforce.RouteSpec{{Match: "* /{path...}", RestrictedTokens: true}}

// readingRoutes are by which a long answer goes on after its token was changed: who may
// not begin it any more does not get the rest.
var readingRoutes = []enforce.RouteSpec{
	{Match: "* /{path...}", Scopes: []string{tokenstore.ScopeTokenRead}, RestrictedTokens: true},
	{Match: "GET /v1/backup", Scopes: []string{tokenstore.ScopeTokenRead, tokenstore.ScopeTokenWrite}},
}

func newGate(guard *proxy.Guard, rules *canon.Rules, v *vault, now func() time.Time) *gate {
	compile := func(routes []enforce.RouteSpec) *enforce.Policy {
		policy, faults := enforce.Compile(routes, enforce.Options{})
		if len(faults) > 0 {
			panic("built-in policy: " + faults[0].Error())
		}
		return policy
	}
	return &gate{guard: guard, canon: rules, policy: compile(adminRoutes), goesOn: compile(readingRoutes), vault: v, words: newAPIWords(), now: now}
}

// client is the address that a request comes from, as its source is believed; the
// zero Addr if that cannot be told.
func (g *gate) client(r *http.Request) netip.Addr {
	var v visit
	proxy.FillHead(&v.head, r)
	if g.canon.Canonicalize(&v.req, &v.head) != canon.Accepted {
		return netip.Addr{}
	}
	return v.req.Client.Addr
}

// Authenticate implements [admin.Gate].
func (g *gate) Authenticate(r *http.Request) (admin.Caller, *admin.Error) {
	v, _ := g.visits.Get().(*visit)
	if v == nil {
		v = &visit{}
	}
	done := func() { g.visits.Put(v) }
	defer func() { done() }()
	proxy.FillHead(&v.head, r)
	if verdict := g.canon.Canonicalize(&v.req, &v.head); verdict != canon.Accepted {
		return admin.Caller{}, &admin.Error{Kind: admin.KindMalformed, Detail: verdict.Detail()}
	}
	now, noted := g.now(), g.guard.Streams.Noted()
	d := g.guard.Engine.Decide(r.Context(), g.policy, &v.req, now)
	g.guard.Engine.Fail(&d, v.req.Client.Addr, now)
	// Who has a stolen token may use up all that its account may do; not even that keeps
	// others of the account from revoking it.
	admit := g.guard.Engine.Admit
	if r.Method == http.MethodDelete {
		admit = g.guard.Engine.AdmitOwn
	}
	if !admit(&d, now) {
		g.vault.denied("admin", &d, &v.req, now)
		return admin.Caller{}, g.refused(&d)
	}
	d.Release() // what goes on in a token API is bounded there
	// Verbs look at the caller in their transaction, and may end the caller itself.
	if r.Method == http.MethodGet {
		policy, over := g.policy, done
		if d.Match.Token.HasScope(tokenstore.ScopeTokenRead) {
			policy = g.goesOn
		}
		done = func() {}
		if !g.guard.Watch(r.Context(), policy, &d, &v.req, noted, over) {
			g.vault.denied("admin", &d, &v.req, now)
			return admin.Caller{}, g.refused(&d)
		}
	}
	g.used(&d, v, r, now)
	return admin.Caller{
		Token:     d.Match.Token,
		Secret:    d.Match.Secret,
		Presented: tokenstore.SecretFrom(string(v.req.Credential().Secret)),
		Remote:    v.req.Client.Addr,
		RequestID: r.Header.Get(headerRequestID),
	}, nil
}

// gateKinds gives every refusing reason its kind; TestEveryReasonHasItsKind
// walks them all.
var gateKinds = map[enforce.Reason]admin.Kind{
	enforce.IrregularPath:       admin.KindMalformed,
	enforce.AmbiguousQuery:      admin.KindMalformed,
	enforce.MissingToken:        admin.KindMissingToken,
	enforce.AmbiguousCredential: admin.KindAmbiguous,
	enforce.MalformedToken:      admin.KindInvalidToken,
	enforce.UnknownToken:        admin.KindInvalidToken,
	enforce.StoreUnavailable:    admin.KindUnavailable,
	enforce.RevokedToken:        admin.KindInvalidToken,
	enforce.ExpiredToken:        admin.KindInvalidToken,
	enforce.DisabledToken:       admin.KindInvalidToken,
	enforce.TokenNotYetValid:    admin.KindInvalidToken,
	enforce.SecretEnded:         admin.KindInvalidToken,
	enforce.SourceUnknown:       admin.KindSource,
	enforce.SourceNotAllowed:    admin.KindSource,
	enforce.NoRoute:             admin.KindNoPath,
	enforce.ScopeMissing:        admin.KindScope,
	enforce.OtherAccount:        admin.KindAccess,
	enforce.RestrictedToken:     admin.KindAccess,
	enforce.ResourceNotGranted:  admin.KindAccess,
	enforce.LevelTooLow:         admin.KindAccess,
	enforce.ParentUnavailable:   admin.KindBadGateway,
	enforce.RateLimited:         admin.KindRateLimited,
	enforce.QuotaExhausted:      admin.KindRateLimited,
	enforce.UsesExhausted:       admin.KindRateLimited,
	enforce.TooManyAtOnce:       admin.KindRateLimited,
	enforce.RouteLimited:        admin.KindRateLimited,
	enforce.OwnerLimited:        admin.KindRateLimited,
	enforce.AccountLimited:      admin.KindRateLimited,
	enforce.LimitsFull:          admin.KindRateLimited,
	enforce.TooManyFailures:     admin.KindRateLimited,
}

// refused is a refusal of the engine, with all that the proxy's listener would
// tell of it.
func (g *gate) refused(d *enforce.Decision) *admin.Error {
	e := &admin.Error{Kind: gateKinds[d.Reason], Detail: d.Detail(), RetryAfter: d.RetryAfter, Cause: d.Cause}
	if e.Kind == admin.KindMissingToken {
		e.Detail = g.canon.Required()
	}
	if e.Kind == admin.KindUnavailable {
		e.RetryAfter = storeRetry
	}
	if d.Limited.Name != "" {
		e.Limits.Policy, e.Limits.Left = proxy.LimitFields([]enforce.Left{d.Limited})
	}
	return e
}

// storeRetry is when to ask again while tokens cannot be looked up.
const storeRetry = time.Second

const headerRequestID = "X-Request-Id"

// withRequestID gives every request of h an id of ours, in place of whatever the
// client sent.
func withRequestID(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := proxy.NewRequestID()
		r.Header.Set(headerRequestID, id)
		w.Header().Set(headerRequestID, id)
		h.ServeHTTP(w, r)
	})
}

// plainPath has h see a path without what is percent-encoded for no reason (RFC 3986
// section 6.2.2.2), as it is judged: a mount takes `/users/1/api%2Dtokens` from the
// routes of the proxy, so the token API has to know it for its own. What separates
// segments stays encoded.
func plainPath(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawPath != "" { // Path alone would not say it
			segments := strings.Split(r.URL.RawPath, "/")
			for i, segment := range segments {
				if text, err := url.PathUnescape(segment); err == nil {
					segments[i] = url.PathEscape(text)
				}
			}
			r.URL.RawPath = strings.Join(segments, "/")
		}
		h.ServeHTTP(w, r)
	})
}
