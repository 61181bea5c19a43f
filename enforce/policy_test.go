package enforce

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"tokenward/enforce/canon"
	"tokenward/tokenstore"
)

func mustCompile(t testing.TB, specs ...RouteSpec) *Policy {
	t.Helper()
	p, faults := Compile(specs, Options{})
	for _, f := range faults {
		t.Errorf("compile: %v", f)
	}
	if len(faults) > 0 {
		t.FailNow()
	}
	return p
}

func matches(patterns ...string) []RouteSpec {
	specs := make([]RouteSpec, len(patterns))
	for i, m := range patterns {
		specs[i] = RouteSpec{Match: m, Public: true}
	}
	return specs
}

func canonical(t testing.TB, method, target string, fields ...canon.Field) *canon.Request {
	t.Helper()
	rules, err := canon.NewRules(canon.Options{})
	if err != nil {
		t.Fatal(err)
	}
	q := &canon.Request{}
	fields = append(fields, canon.Field{Name: []byte("Host"), Value: []byte("api.example")})
	v := rules.Canonicalize(q, &canon.Head{Method: []byte(method), Target: []byte(target), Fields: fields, Major: 1, Minor: 1, Peer: peer})
	if v != canon.Accepted {
		t.Fatalf("%s %s: refused as %v", method, target, v)
	}
	return q
}

func TestMostSpecificRouteWins(t *testing.T) {
	p := mustCompile(t, matches(
		"GET /", "GET /a", "GET /a/", "GET,HEAD /a/{x}", "* /a/{x}", "GET /a/b", "* /a/b/c/{x...}", "POST /a/b/c/d",
		"* /files/{p...}", "GET /files/index", "HEAD /b/{x}/", "OPTIONS *", "GET /caf%C3%A9", "GET /a/{x}/y/{z}", "DELETE /{x...}",
	)...)
	for _, c := range []struct{ method, target, want string }{
		{"GET", "/", "GET /"},
		{"GET", "/a", "GET /a"},
		{"GET", "/a/", "GET /a/"},
		{"POST", "/a/", ""},
		{"HEAD", "/a", ""},
		{"HEAD", "/b/1/", "HEAD /b/{x}/"},
		{"GET", "/a/x", "GET,HEAD /a/{x}"},
		{"HEAD", "/a/x", "GET,HEAD /a/{x}"},
		{"PUT", "/a/x", "* /a/{x}"},
		{"GET", "/a/b", "GET /a/b"},
		{"PUT", "/a/b", "* /a/{x}"},
		{"PUT", "/a/b/", ""},
		{"GET", "/a/b/c", "* /a/b/c/{x...}"},
		{"GET", "/a/b/c/", "* /a/b/c/{x...}"},
		{"POST", "/a/b/c/d", "POST /a/b/c/d"},
		{"POST", "/a/b/c/d/e", "* /a/b/c/{x...}"},
		{"GET", "/files", "* /files/{p...}"},
		{"GET", "/files/", "* /files/{p...}"},
		{"GET", "/files/1/2/3", "* /files/{p...}"},
		{"GET", "/files/index", "GET /files/index"},
		{"PUT", "/files/index", "* /files/{p...}"},
		{"GET", "/files/index/", "* /files/{p...}"},
		{"GET", "/q/z", ""},
		{"HEAD", "/", ""},
		{"GET", "/q/zz", ""},
		{"GET", "/a/1/y/2", "GET /a/{x}/y/{z}"},
		{"GET", "/a/1/y/", ""},
		{"GET", "/%61", "GET /a"},
		{"GET", "/a/%62", "GET /a/b"},
		{"GET", "/caf%c3%a9", "GET /caf%C3%A9"},
		{"OPTIONS", "*", "OPTIONS *"},
		{"DELETE", "/", "DELETE /{x...}"},
		{"DELETE", "/any/where", "DELETE /{x...}"},
		{"GET", "/A", ""},
	} {
		var v vars
		got := ""
		if r := p.match(canonical(t, c.method, c.target), &v); r != nil {
			got = r.Pattern
		}
		if got != c.want {
			t.Errorf("%s %s matched %q, want %q", c.method, c.target, got, c.want)
		}
	}
}

func TestConflictingRoutesAreRefused(t *testing.T) {
	for _, c := range []struct {
		routes []string
		ok     bool
	}{
		{[]string{"GET /a", "GET /a"}, false},
		{[]string{"GET /a", "GET,PUT /a"}, false},
		{[]string{"* /a", "* /a"}, false},
		{[]string{"GET /a", "* /a"}, true},
		{[]string{"GET /a", "PUT /a"}, true},
		{[]string{"GET /a/{x}", "GET /{y}/b"}, false},
		{[]string{"GET /a/{x}", "PUT /{y}/b"}, true},
		{[]string{"GET /a/{x}", "GET /a/{y}"}, false},
		{[]string{"GET /a/{x}", "GET /a/b", "GET /{y}/{z}"}, true},
		{[]string{"GET /a/{x...}", "GET /{y}/b"}, false},
		{[]string{"GET /a/{x...}", "GET /a/b"}, true},
		{[]string{"GET /a/{x...}", "GET /a"}, true},
		{[]string{"GET /a/{x...}", "GET /a/{y...}"}, false},
		{[]string{"GET /{x...}", "GET /a/{y...}", "GET /a/b/{z}"}, true},
		{[]string{"GET /a/{x}/c/{t...}", "GET /a/b/{u}/{v}"}, false},
		{[]string{"GET /a/", "GET /a/{x}"}, true},
		{[]string{"OPTIONS *", "OPTIONS /{x...}"}, true},
		{[]string{"OPTIONS *", "* *"}, true},
		{[]string{"GET /a/%62", "GET /a/b"}, false},
	} {
		_, faults := Compile(matches(c.routes...), Options{})
		if ok := len(faults) == 0; ok != c.ok {
			t.Errorf("%q: accepted %v, want %v (%v)", c.routes, ok, c.ok, faults)
		}
	}
}

func TestFaultyRoutesAreRefused(t *testing.T) {
	for _, c := range []struct {
		spec  RouteSpec
		field string
	}{
		{RouteSpec{Match: ""}, "match"},
		{RouteSpec{Match: "/a"}, "match"},
		{RouteSpec{Match: "GET"}, "match"},
		{RouteSpec{Match: "GET  /a"}, "match"},
		{RouteSpec{Match: "GET /a /b"}, "match"},
		{RouteSpec{Match: "get /a"}, "match"},
		{RouteSpec{Match: "GET, PUT /a"}, "match"},
		{RouteSpec{Match: "GET,GET /a"}, "match"},
		{RouteSpec{Match: "CONNECT /a"}, "match"},
		{RouteSpec{Match: "TRACE /a"}, "match"},
		{RouteSpec{Match: "GET a"}, "match"},
		{RouteSpec{Match: "GET /a//b"}, "match"},
		{RouteSpec{Match: "GET /a/../b"}, "match"},
		{RouteSpec{Match: "GET /a/%2e%2e/b"}, "match"},
		{RouteSpec{Match: "GET /a/./b"}, "match"},
		{RouteSpec{Match: "GET /a?b=c"}, "match"},
		{RouteSpec{Match: "GET /a#b"}, "match"},
		{RouteSpec{Match: "GET /a/*"}, "match"},
		{RouteSpec{Match: "GET /a/b{x}"}, "match"},
		{RouteSpec{Match: "GET /a/{x}b"}, "match"},
		{RouteSpec{Match: "GET /a/{}"}, "match"},
		{RouteSpec{Match: "GET /a/{X}"}, "match"},
		{RouteSpec{Match: "GET /{x}/{x}"}, "match"},
		{RouteSpec{Match: "GET /{x...}/a"}, "match"},
		{RouteSpec{Match: "GET /a/%zz"}, "match"},
		{RouteSpec{Match: "GET /{a}/{b}/{c}/{d}/{e}/{f}/{g}/{h}/{i}"}, "match"},
		{RouteSpec{Match: "GET *"}, "match"},
		{RouteSpec{Match: "GET,1GET /a"}, "match"},
		{RouteSpec{Match: "GET /a%00"}, "match"},
		{RouteSpec{Match: "GET /caf%E9"}, "match"},
		{RouteSpec{Match: "GET /．．"}, "match"},
		{RouteSpec{Match: "GET /a%2Fb"}, "match"},
		{RouteSpec{Match: "GET /a%5Cb", Relax: []string{"encoded_slash"}}, "match"},
		{RouteSpec{Match: "GET /100%25"}, "match"},
		{RouteSpec{Match: "GET /{x}/a;b"}, "match"},
		{RouteSpec{Match: "GET /" + strings.Repeat("a", 257)}, "match"},
		{RouteSpec{Match: "GET /a", Scopes: []string{"a b"}}, "scopes"},
		{RouteSpec{Match: "GET /a", Scopes: []string{""}}, "scopes"},
		{RouteSpec{Match: "GET /a", Scopes: []string{"a|"}}, "scopes"},
		{RouteSpec{Match: "GET /a", Scopes: []string{"a:*"}}, "scopes"},
		{RouteSpec{Match: "GET /a", Resources: []string{"card"}}, "resources"},
		{RouteSpec{Match: "GET /a", Resources: []string{"Card:1"}}, "resources"},
		{RouteSpec{Match: "GET /a", Resources: []string{"card:{x}"}}, "resources"},
		{RouteSpec{Match: "GET /{x...}", Resources: []string{"card:{x}"}}, "resources"},
		{RouteSpec{Match: "GET /{x}", Resources: []string{"card:{x}|"}}, "resources"},
		{RouteSpec{Match: "GET /{x}", Resources: []string{"card:{x"}}, "resources"},
		{RouteSpec{Match: "GET /{x}", Resources: []string{"card:x}"}}, "resources"},
		{RouteSpec{Match: "GET /{x}", Resources: []string{"card:{?}"}}, "resources"},
		{RouteSpec{Match: "GET /{x}", Resources: []string{"card:{token.owner}"}}, "resources"},
		{RouteSpec{Match: "GET /{x}", TokenAccount: "x"}, "token_account"},
		{RouteSpec{Match: "GET /{x}", TokenAccount: "{y}"}, "token_account"},
		{RouteSpec{Match: "GET /{x}", Access: "admin"}, "access"},
		{RouteSpec{Match: "GET /{x}", Relax: []string{"everything"}}, "relax"},
		{RouteSpec{Match: "GET /{x}", Public: true, Scopes: []string{"a"}}, "scopes"},
		{RouteSpec{Match: "GET /{x}", Public: true, Access: "read"}, "access"},
		{RouteSpec{Match: "GET /{x}", Public: true, Resources: []string{"card:{x}"}}, "resources"},
		{RouteSpec{Match: "GET /{x}", Public: true, TokenAccount: "{x}"}, "token_account"},
		{RouteSpec{Match: "GET /{x}", Public: true, RestrictedTokens: true}, "restricted_tokens"},
		{RouteSpec{Match: "GET /{x}", Public: true, Limits: tokenstore.Limits{Rate: 1}}, "limits"},
		{RouteSpec{Match: "GET /{x}", TokenAccount: "{x"}, "token_account"},
		{RouteSpec{Match: "GET /{x}", Resources: []string{"card:{?a;b}"}}, "resources"},
		{RouteSpec{Match: "GET /{x}", Resources: []string{"card:"}}, "resources"},
		{RouteSpec{Match: "GET /{x}", Limits: tokenstore.Limits{Uses: 1}}, "limits"},
		{RouteSpec{Match: "GET /{x}", Limits: tokenstore.Limits{Quotas: []tokenstore.Quota{{Count: 1, Per: tokenstore.PerDay}}}}, "limits"},
		{RouteSpec{Match: "GET /{x}", Limits: tokenstore.Limits{Burst: 1}}, "limits"},
		{RouteSpec{Match: "GET /{x}", Limits: tokenstore.Limits{Rate: math.NaN()}}, "limits"},
		{RouteSpec{Match: "GET /{x}", Limits: tokenstore.Limits{Rate: 1e-7}}, "limits"},
		{RouteSpec{Match: "GET /{x}", Limits: tokenstore.Limits{Rate: 1e10}}, "limits"},
	} {
		p, faults := Compile([]RouteSpec{c.spec}, Options{})
		if p != nil || len(faults) == 0 {
			t.Errorf("%+v was accepted", c.spec)
			continue
		}
		if !slices.ContainsFunc(faults, func(f SpecFault) bool { return f.Field == c.field }) {
			t.Errorf("%+v: fault %v, want one of field %s", c.spec, faults, c.field)
		}
	}
}

// TestEachRouteCanBeTaken: what is refused before routes are looked at cannot be
// named by one, and everything else can.
func TestEachRouteCanBeTaken(t *testing.T) {
	for _, spec := range []RouteSpec{
		{Match: "GET /a%2Fb", Relax: []string{"encoded_slash"}},
		{Match: "GET /a%5Cb/{x}/", Relax: []string{"encoded_backslash"}},
		{Match: "GET /100%25", Relax: []string{"encoded_percent"}},
		{Match: "GET /a;b=c", Relax: []string{"semicolon"}},
		{Match: "* /{x...}"}, {Match: "* /a/{x}/{y...}"}, {Match: "* *"}, {Match: "OPTIONS *"}, {Match: "M-SEARCH /"}, {Match: "GET /caf%C3%A9"}, {Match: "GET /café"},
		{Match: "GET /a:b@c!$&'()+,=~"}, {Match: "GET /a%20b%22%3C%3E%5B%5D%7B%7C%7D"}, {Match: "GET /..."}, {Match: "GET /" + strings.Repeat("%20", 256)},
	} {
		p := mustCompile(t, spec)
		method := "OPTIONS"
		if r := p.routes[0]; r.methods != nil {
			method = r.methods[0]
		}
		q := canonical(t, method, p.routes[0].path.sample())
		var v vars
		if r := p.match(q, &v); r == nil || r.irregular(q) != 0 {
			t.Errorf("%s takes no request", spec.Match)
		}
	}
}

// TestResourceNamesOneThing: with two variables, an id must tell where the first
// value ends.
func TestResourceNamesOneThing(t *testing.T) {
	for template, ok := range map[string]bool{
		"{a}": true, "x{a}y": true, "{?q}": true, "{a}{a}": true, "{a}-{a}": true,
		"{a}{b}": false, "{a}-{b}": false, "{a}:{b}": false, "{a}/{b}": true, "{a}-/-{b}": true, "x/{a}{b}": false, "{a}{b}/x": false,
		"{a}/{b}/{c}": true, "{a}/{b}-{c}": false,
		"{token.account}{a}": true, "{a}{token.account}": true, "{a}{token.account}{b}": false, "{a}/{token.account}{b}": true,
		"{a}-{?q}": false, "{a}/{?q}": true, "{?q}/{a}": true, "{a}/{?q}/{b}": true, "{?q}/{?r}": false, "{?q}/{a}/{?r}": false,
	} {
		for _, relax := range [][]string{nil, {"encoded_slash"}} {
			_, faults := Compile([]RouteSpec{{Match: "GET /{a}/{b}/{c}", Resources: []string{"t:" + template}, Relax: relax}}, Options{})
			want := ok && (relax == nil || !strings.Contains(template, "{b}") && !(strings.Contains(template, "{a}") && strings.Contains(template, "{?q}")))
			if (len(faults) == 0) != want {
				t.Errorf("%s with %v relaxed: %v, want accepted %v", template, relax, faults, want)
			}
		}
	}
}

// TestAmbiguityIsFound holds it to what it stands for: over all short values, no two
// that differ make one id where a template is accepted.
func TestAmbiguityIsFound(t *testing.T) {
	values := []string{"1", "-", "1-", "-1", "1-1", "--", "11"}
	for _, separator := range []string{"", "-", "1", "--", "/", "-/", "1/1"} {
		seen, collides := make(map[string]bool), false
		for _, a := range values {
			for _, b := range values {
				id := a + separator + b
				collides = collides || seen[id]
				seen[id] = true
			}
		}
		_, faults := Compile([]RouteSpec{{Match: "GET /{a}/{b}", Resources: []string{"t:{a}" + separator + "{b}"}}}, Options{})
		if (len(faults) > 0) != collides {
			t.Errorf("separated by %q: %v, but values collide: %v", separator, faults, collides)
		}
	}
}

func TestReservedPathsCannotBeRoutes(t *testing.T) {
	opts := Options{Reserved: []string{"/v1/tokens", "/users/{user}/api-tokens"}}
	for pattern, ok := range map[string]bool{
		"GET /v1/tokens": false, "GET /v1/tokens/{id}": false, "* /v1/{x}": false, "GET /users/{u}/api-tokens": false,
		"GET /users/7/api-tokens/{id}": false, "GET /users/{u}/{what}": false,
		"GET /v1/token": true, "GET /v1": true, "* /{x...}": true, "GET /users/{u}": true, "GET /v1/{x...}": true,
	} {
		_, faults := Compile(matches(pattern), opts)
		if got := len(faults) == 0; got != ok {
			t.Errorf("%q accepted: %v, want %v", pattern, got, ok)
		}
	}
}

// naiveMatch restates the precedence rule of docs/config.md: among the routes that
// match, the one whose path lies within all others, then the named method.
func naiveMatch(p *Policy, method, path string) string {
	var best *Route
	for _, r := range p.routes {
		if r.methods != nil && !slices.Contains(r.methods, method) || !naiveMatchPath(&r.path, strings.Split(path[1:], "/")) {
			continue
		}
		if best == nil || within(&r.path, &best.path) && (!within(&best.path, &r.path) || r.methods != nil) {
			best = r
		}
	}
	if best == nil {
		return ""
	}
	return best.Pattern
}

func naiveMatchPath(p *pathPattern, segments []string) bool {
	if p.asterisk || len(segments) < len(p.segments) || len(segments) > len(p.segments) && !p.tail {
		return false
	}
	for i, s := range p.segments {
		if s.param && segments[i] == "" || !s.param && s.literal != segments[i] {
			return false
		}
	}
	return true
}

// A request for a path is asked about in two ways: by itself, and by the preflight
// of a browser that is going to make it.
func TestEncodedLiteralIsTheSameForRequestAndPreflight(t *testing.T) {
	p := mustCompile(t, matches("GET /a%20b/{x}", "PUT /a/b")...)
	for target, want := range map[string]string{
		"/a%20b/1": "GET /a%20b/{x}", "/%61%20b/%20": "GET /a%20b/{x}", "/a%2Fb": "", "/a%252Fb": "", "/a%20b": "",
	} {
		q := canonical(t, "GET", target)
		q.Irregular = 0
		var v vars
		for name, r := range map[string]*Route{"request": p.match(q, &v), "preflight": p.RouteFor([]byte("GET"), q)} {
			got := ""
			if r != nil {
				got = r.Pattern
			}
			if got != want {
				t.Errorf("%s: the %s takes route %q, want %q", target, name, got, want)
			}
		}
	}
}

func TestTreeAgreesWithTheRuleOnRandomPolicies(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	words := []string{"a", "b", "c", "d", "e", "f", "{x}", "{y}"} // more than a node compares one by one
	word := func() string { return words[min(rnd.IntN(12), rnd.IntN(12))%len(words)] }
	pattern := func() string {
		seen := map[string]bool{}
		var segments []string
		for range 1 + rnd.IntN(4) {
			w := word()
			if strings.HasPrefix(w, "{") && seen[w] {
				w = "a"
			}
			seen[w] = true
			segments = append(segments, w)
		}
		switch rnd.IntN(5) {
		case 0:
			segments = append(segments, "{t...}")
		case 1:
			segments = append(segments, "")
		}
		return []string{"GET", "PUT", "*", "GET,PUT"}[rnd.IntN(4)] + " /" + strings.Join(segments, "/")
	}
	compiled := 0
	for range 400 {
		var specs []RouteSpec
		var p *Policy
		for range 8 { // grow a policy, leaving out what conflicts
			more := append(slices.Clone(specs), RouteSpec{Match: pattern(), Public: true})
			if next, faults := Compile(more, Options{}); len(faults) == 0 {
				specs, p = more, next
			}
		}
		compiled++
		for range 30 {
			var segments []string
			for range 1 + rnd.IntN(5) {
				segments = append(segments, []string{"a", "b", "c", "d", "e", "f", "g"}[min(rnd.IntN(7), rnd.IntN(7))])
			}
			path := "/" + strings.Join(segments, "/") + []string{"", "", "/"}[rnd.IntN(3)]
			method := []string{"GET", "PUT"}[rnd.IntN(2)]
			var v vars
			got := ""
			if r := p.match(canonical(t, method, path), &v); r != nil {
				got = r.Pattern
			}
			if want := naiveMatch(p, method, path); got != want {
				t.Fatalf("%s %s matched %q, the rule says %q, among %v", method, path, got, want, specs)
			}
		}
	}
	if compiled == 0 {
		t.Fatal("no policy was compiled")
	}
}

func FuzzRoutePattern(f *testing.F) {
	for _, s := range []string{"GET /", "* /a/{x}", "GET,HEAD /a/{x...}", "OPTIONS *", "GET /a//b", "GET /{x}/{x}", "GET /%2e%2e", "GET /a%2Fb", "* /{a}/b/{c}/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, match string) {
		p, faults := Compile([]RouteSpec{{Match: match, Public: true}}, Options{})
		if (p == nil) != (len(faults) > 0) {
			t.Fatalf("%q: policy and faults contradict each other", match)
		}
		if p == nil {
			return
		}
		r := p.routes[0]
		if !within(&r.path, &r.path) || !overlap(&r.path, &r.path) {
			t.Fatalf("%q does not lie within itself", match)
		}
		if _, again := Compile([]RouteSpec{{Match: match, Public: true}, {Match: match, Public: true}}, Options{}); len(again) == 0 {
			t.Fatalf("%q was accepted twice", match)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{1, 200, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var specs []RouteSpec
			for i := range n {
				specs = append(specs, RouteSpec{Match: fmt.Sprintf("GET /accounts/{account}/things%d/{id}", i), Public: true})
			}
			p := mustCompile(b, specs...)
			q := canonical(b, "GET", fmt.Sprintf("/accounts/10000/things%d/20000", n/2))
			b.ReportAllocs()
			for b.Loop() {
				var v vars
				if p.match(q, &v) == nil {
					b.Fatal("no match")
				}
			}
		})
	}
}
