package enforce

import (
	"math/rand/v2"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tokenward/tokenstore"
)

// TestDecisionsAgreeWithASecondReading holds random tokens, requests and routes to a
// naive second reading of what a route asks for: on texts, decoded first, without a
// tree and without a template compiled.
func TestDecisionsAgreeWithASecondReading(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6)) //nolint:gosec // it is to be the same again
	some := func(words ...string) string { return words[rnd.IntN(len(words))] }
	seen := map[Reason]int{}
	for range 60 {
		var specs []RouteSpec
		var p *Policy
		for range 8 { // grow a policy, leaving out what conflicts
			spec := RouteSpec{
				Match:            some("GET", "GET,PUT", "*", "DELETE") + some(" /a/{x}", " /a/b", " /a/{x}/c/{y}", " /a/{x}/c/{y...}", " /a/{x}/", " /caf%C3%A9/{x}", " /{rest...}", " /a/1/c/{x}"),
				Access:           some("", "", "read", "write"),
				RestrictedTokens: rnd.IntN(3) == 0,
			}
			for range rnd.IntN(3) {
				spec.Scopes = append(spec.Scopes, some("s", "s|t", "t:read", "t:write|u-all"))
			}
			vars := regexp.MustCompile(`\{[a-z]+\}`).FindAllString(spec.Match, -1)
			for range rnd.IntN(3) {
				item := some("acct:{token.account}", "thing:{?q}", "acct:{?q}", "fleet:1")
				for _, v := range vars {
					item += some("|thing:"+v, "|acct:"+v, "|thing:{token.account}/"+v, "")
				}
				spec.Resources = append(spec.Resources, item)
			}
			if len(vars) > 0 && rnd.IntN(4) == 0 {
				spec.TokenAccount = vars[rnd.IntN(len(vars))]
			}
			if next, faults := Compile(append(slices.Clone(specs), spec), Options{}); len(faults) == 0 {
				specs, p = append(specs, spec), next
			}
		}
		if p == nil {
			continue
		}
		for range 40 {
			tok, _ := token(func(tok *tokenstore.Token) {
				tok.Account = rnd.Uint64N(3)
				tok.Scopes = nil
				for _, s := range []string{"s", "t:read", "t:*", "u-*", "*"} {
					if rnd.IntN(3) == 0 {
						tok.Scopes = append(tok.Scopes, s)
					}
				}
				if tok.Resources.All = rnd.IntN(3) == 0; !tok.Resources.All {
					for range rnd.IntN(5) {
						tok.Resources.Grants = append(tok.Resources.Grants, tokenstore.Grant{Type: some("acct", "thing", "fleet"), ID: some("0", "1", "2", "b", "*", "x y", "1/1", "é"), Level: tokenstore.Level(1 + rnd.IntN(2))}) //nolint:gosec // 1 or 2
					}
				}
				tok.Sources = tokenstore.Sources{Any: rnd.IntN(2) == 0}
				if !tok.Sources.Any {
					tok.Sources.Allow = []netip.Prefix{netip.MustParsePrefix(some("192.0.2.0/24", "0.0.0.0/0", "::/0"))}
				}
			})
			value := func() string { return some("1", "2", "0", "b", "%62", "x%20y", "*", "%2a", "%C3%A9", "%c3%a9") }
			target := some("/a/"+value(), "/a/"+value()+"/", "/a/"+value()+"/c", "/a/"+value()+"/c/"+value(), "/a/"+value()+"/c/"+value()+"/d", "/caf%c3%a9/"+value(), "/%61/b", "/")
			query := some("", "", "?q=1", "?q="+value(), "?q=1&q=1", "?p=1", "?q=")
			method := some("GET", "PUT", "DELETE", "HEAD", "POST", "OPTIONS")
			q := canonical(t, method, target+query)
			d := Judge(p, tokenstore.Match{Token: tok, Secret: &tok.Secrets[0]}, q, start)
			want := secondJudge(p, specs, tok, method, string(q.Path), strings.TrimPrefix(query, "?"))
			if d.Reason != want {
				t.Fatalf("%s %s%s is %v, the second reading says %v\n by %+v\n of %+v", method, target, query, d.Reason, want, d.Route, tok)
			}
			seen[d.Reason]++
		}
	}
	for _, r := range []Reason{Allowed, AmbiguousQuery, SourceNotAllowed, NoRoute, ScopeMissing, OtherAccount, RestrictedToken, ResourceNotGranted, LevelTooLow} {
		if seen[r] == 0 {
			t.Errorf("no request was %v", r)
		}
	}
}

func secondJudge(p *Policy, specs []RouteSpec, tok *tokenstore.Token, method, path, query string) Reason {
	if s := tok.Sources; !s.Any && !s.Allow[0].Contains(peer.Addr()) {
		return SourceNotAllowed
	}
	segments := strings.Split(path[1:], "/")
	for i, s := range segments {
		segments[i], _ = url.PathUnescape(s)
	}
	at := slices.IndexFunc(specs, func(s RouteSpec) bool { return s.Match == naiveMatch(p, method, "/"+strings.Join(segments, "/")) })
	if at < 0 {
		return NoRoute
	}
	spec := &specs[at]
	values := map[string]string{"token.account": strconv.FormatUint(tok.Account, 10)}
	_, pattern, _ := strings.Cut(spec.Match, " /")
	for i, s := range strings.Split(pattern, "/") {
		if strings.HasPrefix(s, "{") && !strings.HasSuffix(s, "...}") {
			values[strings.Trim(s, "{}")] = segments[i]
		}
	}
	for _, item := range spec.Scopes {
		if !slices.ContainsFunc(strings.Split(item, "|"), func(want string) bool { return secondHolds(tok.Scopes, want) }) {
			return ScopeMissing
		}
	}
	if name := strings.Trim(spec.TokenAccount, "{}"); name != "" && tok.Account != 0 && values[name] != values["token.account"] {
		return OtherAccount
	}
	if len(spec.Resources) == 0 && !tok.Resources.All && !spec.RestrictedTokens {
		return RestrictedToken
	}
	level := map[string]tokenstore.Level{"read": tokenstore.LevelRead, "write": tokenstore.LevelWrite}[spec.Access]
	switch {
	case level != 0:
	case slices.Contains([]string{"GET", "HEAD", "OPTIONS"}, method):
		level = tokenstore.LevelRead
	default:
		level = tokenstore.LevelWrite
	}
	parameters, _ := url.ParseQuery(query)
	for _, item := range spec.Resources {
		if strings.Contains(item, "{?q}") {
			if len(parameters["q"]) != 1 {
				return AmbiguousQuery
			}
			values["?q"] = parameters["q"][0]
		}
		best := tokenstore.Level(0)
		for one := range strings.SplitSeq(item, "|") {
			typ, id, _ := strings.Cut(one, ":")
			for name, value := range values {
				id = strings.ReplaceAll(id, "{"+name+"}", value)
			}
			if id == "" {
				continue // names nothing, so nothing grants it
			}
			if tok.Resources.All {
				best = tokenstore.LevelWrite
			}
			for _, g := range tok.Resources.Grants {
				if g.Type == typ && (g.ID == "*" || g.ID == id) {
					best = max(best, g.Level)
				}
			}
		}
		switch {
		case best == 0:
			return ResourceNotGranted
		case best < level:
			return LevelTooLow
		}
	}
	return Allowed
}

func secondHolds(scopes []string, want string) bool {
	return slices.ContainsFunc(scopes, func(have string) bool {
		stem, pattern := strings.CutSuffix(have, "*")
		return have == want || pattern && strings.HasPrefix(want, stem)
	})
}
