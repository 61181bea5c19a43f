package enforce

import (
	"bytes"
	"net/netip"
	"strconv"
	"time"

	"tokenward/enforce/canon"
	"tokenward/tokenstore"
)

// Decision is the answer of [Engine.Decide]. The zero Decision refuses.
type Decision struct {
	Reason Reason
	// Route is the one that matched, or nil.
	Route *Route
	// Match is the token whose secret was presented, once it was found; it is set
	// on refusals too, for logs. The zero Match where no token was found or asked
	// for.
	Match tokenstore.Match
	// Scope is what a token would need where Reason is ScopeMissing: the
	// alternatives of the first item that did not hold, in the form of RFC 6750.
	Scope string
	// Irregular is what the route does not relax where Reason is IrregularPath.
	Irregular canon.Irregularity
	// RetryAfter is how long to wait where Reason is about a limit; 0 where that
	// does not help.
	RetryAfter time.Duration
	// Limited is the limit that refused, where Reason is about one.
	Limited Left
	// Cause is the store's error where Reason is StoreUnavailable.
	Cause error

	near     *meter    // the token's own, if Decide found it; it may be gone since
	held     [3]*meter // what is given back by Release
	notFound bool      // no_route is answered as 404
}

// Allowed reports whether the request may pass.
func (d *Decision) Allowed() bool { return d.Reason.Allows() }

// Status returns the HTTP status of a refusal, and 0 where the request passes.
func (d *Decision) Status() int {
	if d.Reason == NoRoute && d.notFound {
		return 404
	}
	return d.Reason.Status()
}

// Detail returns a sentence for the client.
func (d *Decision) Detail() string {
	if d.Reason == IrregularPath {
		return d.Irregular.Detail()
	}
	return d.Reason.Detail()
}

// Judge decides, from the token that was found and the canonical request
// alone, whether the request may pass. It is pure: the same arguments give the
// same decision. The order of the checks is policy: what a client may learn of
// a route, it learns only with a valid token used from an allowed address.
func Judge(p *Policy, m tokenstore.Match, q *canon.Request, now time.Time) Decision {
	var v vars
	d := Decision{Route: p.match(q, &v), Match: m}
	d.judge(p, q, &v, now, kinship{})
	return d
}

// judge decides about the route and the token that were found.
func (d *Decision) judge(p *Policy, q *canon.Request, v *vars, now time.Time, k kinship) {
	d.Reason = judgeToken(d.Match, now)
	if d.Reason != Allowed {
		return
	}
	t, route := d.Match.Token, d.Route
	if d.Reason = judgeSource(t, q.Client.Addr); d.Reason != Allowed {
		return
	}
	if route == nil {
		d.Reason, d.notFound = NoRoute, p != nil && p.notFoundOnNoRoute
		return
	}
	for _, either := range route.scopes {
		if !hasAny(t, either) {
			d.Reason, d.Scope = ScopeMissing, either[0]
			return
		}
	}
	d.Reason, d.Cause = route.judgeReach(t, q, v, k)
}

func judgeToken(m tokenstore.Match, now time.Time) Reason {
	if m.Token == nil || m.Secret == nil {
		return UnknownToken
	}
	switch m.Token.Status(now) {
	case tokenstore.StatusActive:
	case tokenstore.StatusRevoked:
		return RevokedToken
	case tokenstore.StatusExpired:
		return ExpiredToken
	case tokenstore.StatusDisabled:
		return DisabledToken
	case tokenstore.StatusNotYetValid:
		return TokenNotYetValid
	default:
		return UnknownToken
	}
	if m.Secret.Ends.Ended(now) {
		return SecretEnded
	}
	return Allowed
}

func judgeSource(t *tokenstore.Token, client netip.Addr) Reason {
	switch {
	case t.Sources.Permit(client):
		return Allowed
	case !client.IsValid():
		return SourceUnknown
	}
	return SourceNotAllowed
}

func hasAny(t *tokenstore.Token, either []string) bool {
	for _, scope := range either {
		if t.HasScope(scope) {
			return true
		}
	}
	return false
}

// judgeReach checks account and resources.
func (r *Route) judgeReach(t *tokenstore.Token, q *canon.Request, v *vars, k kinship) (Reason, error) {
	if r.tokenAccount >= 0 && !t.IsRoot() {
		var decimal [20]byte
		own := strconv.AppendUint(decimal[:0], t.Account, 10)
		s := v[r.tokenAccount]
		if !canon.EqualDecoded(q.Path[s.start:s.end], string(own)) {
			return OtherAccount, nil
		}
	}
	if len(r.resources) == 0 {
		if t.Resources.Restricted() && !r.restrictedTokens {
			return RestrictedToken, nil
		}
		return Allowed, nil
	}
	level := r.level(q)
	for _, either := range r.resources {
		reason := judgeItem(either, t, q, v, level)
		var err error
		if reason == ResourceNotGranted || reason == LevelTooLow {
			reason, err = k.judgeParents(either, t, q, v, level, reason)
		}
		if reason != Allowed {
			return reason, err
		}
	}
	return Allowed, nil
}

// level is what the request needs of its resources. An upgraded connection
// carries whatever its two ends agree on, so it needs write.
func (r *Route) level(q *canon.Request) tokenstore.Level {
	if r.access != 0 {
		return r.access
	}
	if q.Upgrade {
		return tokenstore.LevelWrite
	}
	switch string(q.Method) {
	case "GET", "HEAD", "OPTIONS":
		return tokenstore.LevelRead
	}
	return tokenstore.LevelWrite
}

// judgeItem looks for one alternative that the token grants. Every alternative
// is read before the answer, so that a query parameter that is not there exactly
// once is refused for every token alike.
func judgeItem(either []resource, t *tokenstore.Token, q *canon.Request, v *vars, level tokenstore.Level) Reason {
	result := ResourceNotGranted
	var buf [tokenstore.MaxGrantID + 1]byte
	for i := range either {
		id, ok := either[i].appendID(buf[:0], t, q, v)
		switch {
		case !ok:
			return AmbiguousQuery
		case result == Allowed || len(id) == 0:
		default:
			switch granted := t.Resources.Level(either[i].typ, id); {
			case granted == 0:
			case granted >= level:
				result = Allowed
			default:
				result = LevelTooLow
			}
		}
	}
	return result
}

// appendID appends the resource's id as this request names it, decoded. It
// reports false where a query parameter is not there exactly once.
// What is returned need not be dst.
func (res *resource) appendID(dst []byte, t *tokenstore.Token, q *canon.Request, v *vars) ([]byte, bool) {
	if len(res.template) == 1 && res.template[0].kind == partPath { // nearly always
		s := v[res.template[0].v]
		if raw := q.Path[s.start:s.end]; q.Plain || bytes.IndexByte(raw, '%') < 0 {
			return raw, true
		}
	}
	for i := range res.template {
		p := &res.template[i]
		ok := true
		switch p.kind {
		case partLiteral:
			dst = append(dst, p.literal...)
		case partPath:
			s := v[p.v]
			dst, ok = canon.AppendDecoded(dst, q.Path[s.start:s.end])
		case partQuery:
			dst, ok = appendQueryValue(dst, q.Query, p.literal)
		case partTokenAccount:
			dst = strconv.AppendUint(dst, t.Account, 10)
		}
		if !ok {
			return nil, false
		}
	}
	return dst, true
}

// appendQueryValue appends the decoded value of the parameter if the query has
// it exactly once, counting whatever some backend may take for it.
func appendQueryValue(dst, query []byte, name string) ([]byte, bool) {
	value, found, n := canon.LookupQuery(query, name)
	if !found || n != 1 {
		return nil, false
	}
	return canon.AppendFormDecoded(dst, value)
}
