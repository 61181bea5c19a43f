package admin_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// TestManagementRuleAgreesWithASecondReading lets random tokens manage one another,
// and holds each answer to a second, naive reading of the rule: what a token may do
// is not compared as it is written, but by trying everything there is to do.
func TestManagementRuleAgreesWithASecondReading(t *testing.T) {
	seeds := uint64(10)
	if os.Getenv("TOKENWARD_SOAK") == "1" {
		seeds = 1500
	}
	outcomes := map[string]int{}
	for seed := range seeds {
		r := newReading(t, seed)
		for range 150 {
			r.step()
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		for k, n := range r.outcomes {
			outcomes[k] += n
		}
	}
	for _, verb := range []string{"create", "update", "reset", "rotate", "enable"} {
		for _, want := range []string{"done", "exceeds_caller"} {
			if outcomes[verb+" "+want] == 0 {
				t.Errorf("%s was never answered with %s: the tokens are too much alike", verb, want)
			}
		}
	}
}

// reading is a world of random tokens, and what the rule says of them.
type reading struct {
	t        *testing.T
	rng      *rand.Rand
	w        *admintest.World
	holders  []admintest.Holder
	outcomes map[string]int
}

func newReading(t *testing.T, seed uint64) *reading {
	t.Helper()
	r := &reading{t: t, rng: rand.New(rand.NewPCG(seed, 3)), w: admintest.New(t), outcomes: map[string]int{}} //nolint:gosec // it is to be the same again
	r.holders = append(r.holders, r.w.Root())
	for i := range 16 {
		spec := r.spec()
		spec.Name, spec.Account, spec.Owner = fmt.Sprintf("t%d", i), new([]uint64{0, 1, 1, 1, 1, 2}[r.rng.IntN(6)]), new(1+r.rng.Uint64N(2))
		for _, part := range []func(*admin.Spec){r.scopes, r.resources, r.sources, r.limits} {
			part(&spec)
		}
		if r.rng.IntN(3) > 0 { // most can manage
			spec.Scopes = append(slices.DeleteFunc(spec.Scopes, func(s string) bool { return strings.HasPrefix(s, "user:api-token:") }), "user:api-token:read", "user:api-token:write")
		}
		if spec.Expiry == nil {
			spec.Expiry = new(tokenstore.Never())
		}
		r.holders = append(r.holders, r.w.Make(spec))
	}
	r.w.Clock.Advance(time.Minute)
	return r
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// spec is a creation that leaves each field out half of the time.
func (r *reading) spec() admin.Spec {
	s := admin.Spec{Name: "new"}
	for _, part := range []func(*admin.Spec){r.scopes, r.resources, r.sources, r.limits, r.ends, func(s *admin.Spec) { s.Account = new(r.rng.Uint64N(3)) },
		func(s *admin.Spec) { s.Owner = new(1 + r.rng.Uint64N(2)) }} {
		if r.rng.IntN(2) == 0 {
			part(&s)
		}
	}
	return s
}

func (r *reading) scopes(s *admin.Spec) {
	s.Scopes = []string{}
	for _, scope := range []string{"accounts", "accounts:read", "accounts:*", "cards-*", "cards-write", "user:api-token:read", "user:api-token:write", "user:api-token:*", "user:*", "user:api-*", "*"} {
		if r.rng.IntN(4) == 0 {
			s.Scopes = append(s.Scopes, scope)
		}
	}
}

func (r *reading) resources(s *admin.Spec) {
	s.Resources = &tokenstore.Resources{All: r.rng.IntN(2) == 0}
	for range r.rng.IntN(4) {
		if s.Resources.All {
			break
		}
		s.Resources.Grants = append(s.Resources.Grants, tokenstore.Grant{Type: pick(r.rng, []string{"account", "account", "card", "inbox"}),
			ID: pick(r.rng, []string{"0", "1", "1", "2", "*"}), Level: tokenstore.Level(1 + r.rng.IntN(2))}) //nolint:gosec // 1 or 2
	}
}

func (r *reading) sources(s *admin.Spec) {
	s.Sources = &tokenstore.Sources{Any: r.rng.IntN(2) == 0}
	if s.Sources.Any {
		return
	}
	s.Sources.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} // where calls come from
	for _, p := range []string{"0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "::/0", "2001:db8::/32"} {
		if r.rng.IntN(3) == 0 {
			s.Sources.Allow = append(s.Sources.Allow, netip.MustParsePrefix(p))
		}
	}
	for _, p := range []string{"10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "2001:db8::/48"} {
		if r.rng.IntN(5) == 0 {
			s.Sources.Deny = append(s.Sources.Deny, netip.MustParsePrefix(p))
		}
	}
}

func (r *reading) limits(s *admin.Spec) {
	s.Limits = &tokenstore.Limits{}
	if r.rng.IntN(2) == 0 {
		return
	}
	if s.Limits.Rate = pick(r.rng, []float64{0, 0.5, 1, 2.5}); s.Limits.Rate > 0 {
		s.Limits.Burst = pick(r.rng, []uint64{0, 1, 2, 3})
	}
	s.Limits.Uses, s.Limits.Concurrent = pick(r.rng, []uint64{0, 0, 5, 9}), pick(r.rng, []uint64{0, 0, 1, 2})
	for _, q := range []tokenstore.Quota{{Count: 1 + r.rng.Uint64N(3), Per: tokenstore.PerDay}, {Count: 1 + r.rng.Uint64N(3), Per: tokenstore.PerMinute}} {
		if r.rng.IntN(3) == 0 {
			s.Limits.Quotas = append(s.Limits.Quotas, q)
		}
	}
}

func (r *reading) ends(s *admin.Spec) { s.Expiry = new(r.end()) }

func (r *reading) end() tokenstore.Expiry {
	if r.rng.IntN(2) == 0 {
		return tokenstore.Never()
	}
	return tokenstore.EndsAt(storetest.Epoch.Add(time.Duration(1+r.rng.IntN(4)) * 24 * time.Hour))
}

// step has one token do one thing to another, or to itself.
func (r *reading) step() {
	h := pick(r.rng, r.holders)
	target := pick(r.rng, r.holders)
	if r.rng.IntN(6) == 0 {
		target = h
	}
	if r.rng.IntN(20) == 0 {
		r.w.Clock.Advance(7 * time.Hour)
	}
	c, old := r.w.Caller(h), r.w.Token(target.ID)
	if c.Secret == nil {
		return // its rotation is finished: no gate lets it in
	}
	now := r.w.Clock.Now()
	me := second{c.Token.Clone(), c.Secret, now, "inbox"}
	verb := pick(r.rng, []string{"get", "create", "create", "update", "update", "reset", "rotate", "finish", "enable", "disable", "revoke"})
	var err error
	var want string
	var after *tokenstore.Token // what should come of it
	switch verb {
	case "get":
		_, err = r.w.Service.Get(ctx, c, at(target.ID))
		want = me.may(old, "user:api-token:read", old.ID == me.ID)
	case "create":
		spec := r.spec()
		after = me.heir(&spec)
		want = cmpOr(me.mayWrite(), ahead(after.Expiry, now), me.dominates(after))
		var made admin.Made
		if made, err = r.w.Service.Create(ctx, c, spec); err == nil {
			r.compare(verb, made.Token, after)
			r.holders = append(r.holders, admintest.Holder{ID: made.Token.ID, Secret: made.Secret})
		}
	case "update":
		spec := r.spec()
		after = old.Clone()
		merge(after, &spec)
		want = cmpOr(me.may(old, "user:api-token:write", false), unsound(old, after, now), me.mayChange(old, after))
		var got *tokenstore.Token
		got, err = r.w.Service.Update(ctx, c, at(target.ID), func(f *admin.Fields) tokenstore.Faults {
			to := old.Clone()
			merge(to, &spec)
			f.Scopes, f.Resources, f.Sources, f.Limits, f.Expiry = to.Scopes, to.Resources, to.Sources, to.Limits, to.Expiry
			return nil
		})
		if err == nil {
			r.compare(verb, got, after)
		}
	case "reset":
		var spec admin.ResetSpec
		if r.rng.IntN(2) == 0 {
			spec.Expiry = new(r.end())
		}
		after = old.Clone()
		after.Expiry = earlier(old.Expiry, me.Expiry)
		if spec.Expiry != nil {
			after.Expiry = *spec.Expiry
		}
		want = cmpOr(me.may(old, "user:api-token:write", false), renewable(old, now), ahead(after.Expiry, now), me.dominates(after))
		var made admin.Made
		if made, err = r.w.Service.Reset(ctx, c, at(target.ID), spec); err == nil {
			r.compare(verb, made.Token, after)
			r.holders = append(r.holders, admintest.Holder{ID: made.Token.ID, Secret: made.Secret})
		}
	case "rotate":
		want = cmpOr(me.may(old, "user:api-token:write", false), renewable(old, now), rotating(old, now), me.dominates(old))
		var made admin.Made
		if made, err = r.w.Service.Rotate(ctx, c, at(target.ID), admin.RotateSpec{}); err == nil {
			r.compare(verb, made.Token, old)
			r.holders = append(r.holders, admintest.Holder{ID: made.Token.ID, Secret: made.Secret})
		}
	case "finish":
		_, err = r.w.Service.FinishRotation(ctx, c, at(target.ID))
		want = me.may(old, "user:api-token:write", false)
	case "enable":
		_, err = r.w.Service.Enable(ctx, c, at(target.ID))
		want = cmpOr(me.may(old, "user:api-token:write", false), me.dominates(old))
	case "disable":
		_, err = r.w.Service.Disable(ctx, c, at(target.ID))
		want = me.may(old, "user:api-token:write", false)
	case "revoke":
		if r.rng.IntN(3) > 0 {
			return // or there would soon be nobody left
		}
		_, err = r.w.Service.Revoke(ctx, c, at(target.ID), false)
		want = me.may(old, "user:api-token:write", old.ID == me.ID)
	}
	if want == "" {
		want = "done"
	}
	if got := outcome(err); got != want {
		r.t.Errorf("%s is %s (%v), the rule says %s\n caller %+v\n secret %+v\n target %+v\n after  %+v", verb, got, err, want, me.Token, me.secret, old, after)
	}
	r.outcomes[verb+" "+want]++
}

func (r *reading) compare(verb string, got, want *tokenstore.Token) {
	if got.Account != want.Account || got.Owner != want.Owner || !slices.Equal(got.Scopes, want.Scopes) || got.Resources.All != want.Resources.All ||
		!slices.Equal(got.Resources.Grants, want.Resources.Grants) || got.Sources.Any != want.Sources.Any || !slices.Equal(got.Sources.Allow, want.Sources.Allow) ||
		!slices.Equal(got.Sources.Deny, want.Sources.Deny) || got.Expiry.Never != want.Expiry.Never || !got.Expiry.At.Equal(want.Expiry.At) ||
		got.Limits.Rate != want.Limits.Rate || got.Limits.Burst != want.Limits.Burst || got.Limits.Uses != want.Limits.Uses ||
		got.Limits.Concurrent != want.Limits.Concurrent || !slices.Equal(got.Limits.Quotas, want.Limits.Quotas) {
		r.t.Errorf("%s made %+v\n and should have made %+v", verb, got, want)
	}
}

func cmpOr(answers ...string) string {
	for _, a := range answers {
		if a != "" {
			return a
		}
	}
	return ""
}

// second is a caller as the design's text has it, read anew.
type second struct {
	*tokenstore.Token
	secret *tokenstore.SecretRecord
	now    time.Time
	inside string // the resource type of which a grant on its account gives it all
}

func ended(e tokenstore.Expiry, now time.Time) bool { return !e.Never && !e.At.After(now) }

func earlier(a, b tokenstore.Expiry) tokenstore.Expiry {
	if b.Never || !a.Never && a.At.Before(b.At) {
		return a
	}
	return b
}

// valid: a token opens nothing that is not active, has ended, or whose secret has.
func (s second) valid() string {
	if s.secret == nil || s.State != tokenstore.StateActive || ended(s.Expiry, s.now) || ended(s.secret.Ends, s.now) {
		return "invalid_token"
	}
	if !reachesFrom(s.Token, admintest.Client.String()) {
		return "source_not_allowed"
	}
	return ""
}

// replaced: a secret in its grace period cannot manage.
func (s second) replaced() bool { return !s.secret.Ends.Never || s.ReplacedBy != 0 }

// may: to do something to t, the caller has to see it, and to have the scope. Any
// token may see itself and revoke itself.
func (s second) may(t *tokenstore.Token, scope string, self bool) string {
	if v := s.valid(); v != "" {
		return v
	}
	if t.ID != s.ID {
		switch {
		case !holds(s.Token, "user:api-token:read") && !holds(s.Token, "user:api-token:write"):
			return "insufficient_scope"
		case s.replaced():
			return "secret_in_grace"
		}
	}
	if t.State == tokenstore.StateRevoked || !s.sees(t) {
		return "not_found"
	}
	switch {
	case self:
		return ""
	case scope == "user:api-token:write":
		return s.mayWrite()
	case !holds(s.Token, scope):
		return "insufficient_scope"
	}
	return ""
}

func (s second) mayWrite() string {
	switch {
	case s.valid() != "":
		return s.valid()
	case !holds(s.Token, "user:api-token:write"):
		return "insufficient_scope"
	case s.replaced():
		return "secret_in_grace"
	case !s.writesAccount():
		return "resource_not_granted"
	}
	return ""
}

func (s second) writesAccount() bool {
	return grants(s.Token, "account", fmt.Sprint(s.Account), tokenstore.LevelWrite)
}

func (s second) sees(t *tokenstore.Token) bool {
	if t.ID == s.ID || s.Account == 0 {
		return true
	}
	return t.Account == s.Account && (s.writesAccount() || s.reachesAll(t))
}

// heir is what a creation makes: what it leaves out is the caller's.
func (s second) heir(spec *admin.Spec) *tokenstore.Token {
	t := s.Clone()
	if t.Account == 0 {
		t.Account = 1
	}
	if spec.Account != nil {
		t.Account = *spec.Account
	}
	if s.Account == 0 && t.Account != 0 {
		t.Owner = 1
	}
	if spec.Owner != nil {
		t.Owner = *spec.Owner
	}
	merge(t, spec)
	return t
}

func merge(t *tokenstore.Token, spec *admin.Spec) {
	if spec.Scopes != nil {
		t.Scopes = spec.Scopes
	}
	if spec.Resources != nil {
		t.Resources = *spec.Resources
	}
	if spec.Sources != nil {
		t.Sources = *spec.Sources
	}
	if spec.Limits != nil {
		t.Limits = *spec.Limits
	}
	if spec.Expiry != nil {
		t.Expiry = *spec.Expiry
	}
}

func ahead(e tokenstore.Expiry, now time.Time) string {
	if ended(e, now) {
		return "invalid"
	}
	return ""
}

// unsound: an end that is set lies ahead, and that of a token that was reset is not
// put off.
func unsound(before, after *tokenstore.Token, now time.Time) string {
	if before.Expiry == after.Expiry {
		return ""
	}
	if before.ReplacedBy != 0 && earlier(after.Expiry, before.Expiry) != after.Expiry {
		return "conflict"
	}
	return ahead(after.Expiry, now)
}

func renewable(t *tokenstore.Token, now time.Time) string {
	if t.ReplacedBy != 0 || t.State != tokenstore.StateActive || ended(t.Expiry, now) {
		return "conflict"
	}
	return ""
}

func rotating(t *tokenstore.Token, now time.Time) string {
	if len(t.Secrets) > 1 && !ended(t.Secrets[1].Ends, now) {
		return "conflict"
	}
	return ""
}

// mayChange: what only narrows a token needs no more than to see it. A grant on an
// account gives the right to make tokens for what lies in it, but reaches nothing of
// that by itself.
func (s second) mayChange(before, after *tokenstore.Token) string {
	if (second{Token: before, now: s.now}).dominates(after) == "" {
		return ""
	}
	return s.dominates(after)
}

// dominates tries whether there is anything that t can do and the caller cannot.
func (s second) dominates(t *tokenstore.Token) string {
	if s.Account != 0 && (t.Account != s.Account || t.Owner != s.Owner) || !s.reachesAll(t) || !earlierOrSame(t.Expiry, s.Expiry) || looser(&t.Limits, &s.Limits) {
		return "exceeds_caller"
	}
	for _, scope := range []string{"accounts", "accounts:read", "accounts:x", "cards-write", "cards-x", "user:api-token:read", "user:api-token:write",
		"user:api-token:x", "user:api-x", "user:x", "else"} {
		if holds(t, scope) && !holds(s.Token, scope) {
			return "exceeds_caller"
		}
	}
	for _, from := range []string{"", "10.2.0.1", "10.1.3.1", "10.1.2.1", "192.0.2.1", "198.51.100.1", "2001:db8::1", "2001:db8:1::1", "2001:db9::1"} {
		if reachesFrom(t, from) && !reachesFrom(s.Token, from) {
			return "exceeds_caller"
		}
	}
	return ""
}

func earlierOrSame(a, b tokenstore.Expiry) bool { return b.Never || !a.Never && !a.At.After(b.At) }

// reachesAll tries every resource.
func (s second) reachesAll(t *tokenstore.Token) bool {
	for _, typ := range []string{"account", "card", "inbox", "else"} {
		for _, id := range []string{"0", "1", "2", "x"} {
			for _, level := range []tokenstore.Level{tokenstore.LevelRead, tokenstore.LevelWrite} {
				if grants(t, typ, id, level) && !grants(s.Token, typ, id, level) && !(typ == s.inside && grants(s.Token, "account", fmt.Sprint(s.Account), level)) {
					return false
				}
			}
		}
	}
	return true
}

func grants(t *tokenstore.Token, typ, id string, level tokenstore.Level) bool {
	for _, g := range t.Resources.Grants {
		if g.Type == typ && (g.ID == id || g.ID == "*") && g.Level >= level {
			return true
		}
	}
	return t.Resources.All
}

func holds(t *tokenstore.Token, scope string) bool {
	for _, have := range t.Scopes {
		stem, pattern := strings.CutSuffix(have, "*")
		switch {
		case have == scope, pattern && stem != "" && strings.HasPrefix(scope, stem), have == "*" && (t.Account == 0 || !strings.HasPrefix(scope, "user:api-token:")):
			return true
		}
	}
	return false
}

func reachesFrom(t *tokenstore.Token, from string) bool {
	if t.Sources.Any || from == "" {
		return t.Sources.Any
	}
	in := func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(from)) }
	return slices.ContainsFunc(t.Sources.Allow, in) && !slices.ContainsFunc(t.Sources.Deny, in)
}

// looser reports whether l lets pass what of does not.
func looser(l, of *tokenstore.Limits) bool {
	more := func(n, limit uint64) bool { return limit != 0 && (n == 0 || n > limit) }
	atOnce := func(l *tokenstore.Limits) uint64 {
		if l.Burst == 0 {
			return max(1, uint64(l.Rate))
		}
		return l.Burst
	}
	if of.Rate != 0 && (l.Rate == 0 || l.Rate > of.Rate || atOnce(l) > atOnce(of)) || more(l.Uses, of.Uses) || more(l.Concurrent, of.Concurrent) {
		return true
	}
	for _, q := range of.Quotas {
		if !slices.ContainsFunc(l.Quotas, func(o tokenstore.Quota) bool { return o.Per == q.Per && o.Count <= q.Count }) {
			return true
		}
	}
	return false
}
