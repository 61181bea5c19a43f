package enforce

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenward/enforce/canon"
	"tokenward/tokenstore"
)

var (
	peer  = netip.MustParseAddrPort("192.0.2.10:40000")
	start = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
)

// oneToken is a store of a single token behind a real cache.
type oneToken struct {
	token *tokenstore.Token
	err   error
	reads int
}

func (o *oneToken) ByDigest(_ context.Context, d tokenstore.Digest) (*tokenstore.Token, error) {
	o.reads++
	if o.err != nil {
		return nil, o.err
	}
	if o.token == nil || !slices.ContainsFunc(o.token.Secrets, func(s tokenstore.SecretRecord) bool { return s.Digest.Equal(d) }) {
		return nil, tokenstore.ErrNotFound
	}
	return o.token, nil
}

// token returns a token that may do everything, and its secret.
func token(change func(*tokenstore.Token)) (*tokenstore.Token, string) {
	secret := tokenstore.NewSecret("tw").Reveal()
	t := &tokenstore.Token{
		ID: 7, Account: 42, Owner: 1, Name: "test", Scopes: []string{"*"},
		Resources: tokenstore.Resources{All: true}, Sources: tokenstore.Sources{Any: true}, Expiry: tokenstore.Never(),
		State: tokenstore.StateActive, CreatedAt: start, UpdatedAt: start,
		Secrets: []tokenstore.SecretRecord{{Digest: sha256.Sum256([]byte(secret)), Scheme: tokenstore.SchemeNative, CreatedAt: start, Ends: tokenstore.Never()}},
	}
	if change != nil {
		change(t)
	}
	return t, secret
}

// judgment is an engine and the policy it is asked to judge by.
type judgment struct {
	*Engine
	policy *Policy
}

func (j judgment) Decide(ctx context.Context, q *canon.Request, now time.Time) Decision {
	return j.Engine.Decide(ctx, j.policy, q, now)
}

func engineFor(t testing.TB, store *oneToken, specs ...RouteSpec) judgment {
	t.Helper()
	cache, err := tokenstore.NewCache(store, nil, tokenstore.NewFormats("tw"), 100)
	if err != nil {
		t.Fatal(err)
	}
	return judgment{NewEngine(cache, 0), mustCompile(t, specs...)}
}

func bearer(secret string) canon.Field {
	return canon.Field{Name: []byte("Authorization"), Value: []byte("Bearer " + secret)}
}

var bankRoutes = []RouteSpec{
	{Match: "GET /healthz", Public: true},
	{Match: "GET,HEAD /accounts/{account}", Scopes: []string{"accounts"}, Resources: []string{"account:{account}"}},
	{Match: "* /accounts/{account}/cards/{card}", Scopes: []string{"cards|cards-write"}, Resources: []string{"card:{card}|account:{account}"}},
	{Match: "GET /transactions", Scopes: []string{"transactions"}, Resources: []string{"account:{?account}"}},
	{Match: "GET /me", RestrictedTokens: true},
	{Match: "POST /search", Access: "read", Resources: []string{"account:{token.account}"}},
	{Match: "GET /tenants/{tenant}/info", TokenAccount: "{tenant}"},
	{Match: "GET /both/{a}/{b}", Scopes: []string{"one", "two"}, Resources: []string{"left:{a}", "right:{b}"}},
	{Match: "GET /tree/{path...}", Relax: []string{"encoded_slash"}},
	{Match: "GET /pairs/{a}/{b}", Resources: []string{"pair:{a}/{b}"}},
}

func grants(gs ...tokenstore.Grant) func(*tokenstore.Token) {
	return func(t *tokenstore.Token) { t.Resources = tokenstore.Resources{Grants: gs} }
}

func TestDecide(t *testing.T) {
	read, write := tokenstore.LevelRead, tokenstore.LevelWrite
	scoped := func(scopes ...string) func(*tokenstore.Token) {
		return func(t *tokenstore.Token) { t.Scopes = scopes }
	}
	sources := func(allow, deny string) func(*tokenstore.Token) {
		return func(t *tokenstore.Token) {
			t.Sources = tokenstore.Sources{Allow: []netip.Prefix{netip.MustParsePrefix(allow)}}
			if deny != "" {
				t.Sources.Deny = []netip.Prefix{netip.MustParsePrefix(deny)}
			}
		}
	}
	for _, c := range []struct {
		name           string
		token          func(*tokenstore.Token)
		method, target string
		want           Reason
	}{
		{"full token", nil, "GET", "/accounts/1", Allowed},
		{"zero resources deny", func(t *tokenstore.Token) { t.Resources = tokenstore.Resources{} }, "GET", "/accounts/1", ResourceNotGranted},
		{"zero sources deny", func(t *tokenstore.Token) { t.Sources = tokenstore.Sources{} }, "GET", "/accounts/1", SourceNotAllowed},
		{"zero expiry denies", func(t *tokenstore.Token) { t.Expiry = tokenstore.Expiry{} }, "GET", "/accounts/1", ExpiredToken},
		{"zero state denies", func(t *tokenstore.Token) { t.State = 0 }, "GET", "/accounts/1", UnknownToken},
		{"zero secret deadline denies", func(t *tokenstore.Token) { t.Secrets[0].Ends = tokenstore.Expiry{} }, "GET", "/accounts/1", SecretEnded},
		{"no scopes deny", scoped(), "GET", "/accounts/1", ScopeMissing},
		{"revoked", func(t *tokenstore.Token) { t.State = tokenstore.StateRevoked }, "GET", "/accounts/1", RevokedToken},
		{"disabled", func(t *tokenstore.Token) { t.State = tokenstore.StateDisabled }, "GET", "/accounts/1", DisabledToken},
		{"expires now", func(t *tokenstore.Token) { t.Expiry = tokenstore.EndsAt(start) }, "GET", "/accounts/1", ExpiredToken},
		{"expires a moment later", func(t *tokenstore.Token) { t.Expiry = tokenstore.EndsAt(start.Add(time.Millisecond)) }, "GET", "/accounts/1", Allowed},
		{"starts now", func(t *tokenstore.Token) { t.NotBefore = start }, "GET", "/accounts/1", Allowed},
		{"starts later", func(t *tokenstore.Token) { t.NotBefore = start.Add(time.Millisecond) }, "GET", "/accounts/1", TokenNotYetValid},
		{"secret past its deadline", func(t *tokenstore.Token) { t.Secrets[0].Ends = tokenstore.EndsAt(start) }, "GET", "/accounts/1", SecretEnded},
		{"secret in grace", func(t *tokenstore.Token) { t.Secrets[0].Ends = tokenstore.EndsAt(start.Add(1)) }, "GET", "/accounts/1", Allowed},
		{"source allowed", sources("192.0.2.0/24", ""), "GET", "/accounts/1", Allowed},
		{"source elsewhere", sources("198.51.100.0/24", ""), "GET", "/accounts/1", SourceNotAllowed},
		{"source denied inside allowed", sources("192.0.2.0/24", "192.0.2.10/32"), "GET", "/accounts/1", SourceNotAllowed},
		{"no route", nil, "GET", "/nothing", NoRoute},
		{"no route for the method", nil, "DELETE", "/accounts/1", NoRoute},
		{"no route, bad source first", sources("198.51.100.0/24", ""), "GET", "/nothing", SourceNotAllowed},
		{"scope by name", scoped("accounts"), "GET", "/accounts/1", Allowed},
		{"scope by prefix", scoped("accounts:*"), "GET", "/accounts/1", ScopeMissing},
		{"scope by dash prefix", scoped("cards-*"), "GET", "/accounts/1/cards/2", Allowed},
		{"write scope does not imply read", scoped("accounts-write"), "GET", "/accounts/1", ScopeMissing},
		{"scope compares case", scoped("Accounts"), "GET", "/accounts/1", ScopeMissing},
		{"either scope", scoped("cards-write"), "POST", "/accounts/1/cards/2", Allowed},
		{"all scopes needed", scoped("one"), "GET", "/both/1/2", ScopeMissing},
		{"granted account", grants(tokenstore.Grant{Type: "account", ID: "1", Level: read}), "GET", "/accounts/1", Allowed},
		{"other account", grants(tokenstore.Grant{Type: "account", ID: "1", Level: read}), "GET", "/accounts/2", ResourceNotGranted},
		{"account begins alike", grants(tokenstore.Grant{Type: "account", ID: "1", Level: read}), "GET", "/accounts/10", ResourceNotGranted},
		{"other type, same id", grants(tokenstore.Grant{Type: "card", ID: "1", Level: read}), "GET", "/accounts/1", ResourceNotGranted},
		{"all of a type", grants(tokenstore.Grant{Type: "account", ID: "*", Level: read}), "GET", "/accounts/77", Allowed},
		{"asterisk in the path is a character", grants(tokenstore.Grant{Type: "account", ID: "1", Level: read}), "GET", "/accounts/*", ResourceNotGranted},
		{"encoded value compares decoded", grants(tokenstore.Grant{Type: "account", ID: "a b", Level: read}), "GET", "/accounts/a%20b", Allowed},
		{"account grants its cards", grants(tokenstore.Grant{Type: "account", ID: "1", Level: write}), "POST", "/accounts/1/cards/2", Allowed},
		{"card alone", grants(tokenstore.Grant{Type: "card", ID: "2", Level: write}), "POST", "/accounts/1/cards/2", Allowed},
		{"read level on write", grants(tokenstore.Grant{Type: "card", ID: "2", Level: read}), "POST", "/accounts/1/cards/2", LevelTooLow},
		{"read level on read", grants(tokenstore.Grant{Type: "card", ID: "2", Level: read}), "HEAD", "/accounts/1/cards/2", Allowed},
		{"access overrides the method", grants(tokenstore.Grant{Type: "account", ID: "42", Level: read}), "POST", "/search", Allowed},
		{"token account in a template", grants(tokenstore.Grant{Type: "account", ID: "41", Level: read}), "POST", "/search", ResourceNotGranted},
		{"all items needed", grants(tokenstore.Grant{Type: "left", ID: "1", Level: read}), "GET", "/both/1/2", ResourceNotGranted},
		{"both items", grants(tokenstore.Grant{Type: "left", ID: "1", Level: read}, tokenstore.Grant{Type: "right", ID: "2", Level: read}), "GET", "/both/1/2", Allowed},
		{"restricted on a route without resources", grants(tokenstore.Grant{Type: "account", ID: "1", Level: write}), "GET", "/tenants/42/info", RestrictedToken},
		{"restricted allowed by the route", grants(tokenstore.Grant{Type: "account", ID: "1", Level: write}), "GET", "/me", Allowed},
		{"own tenant", nil, "GET", "/tenants/42/info", Allowed},
		{"own tenant, encoded", nil, "GET", "/tenants/%34%32/info", Allowed},
		{"other tenant", nil, "GET", "/tenants/43/info", OtherAccount},
		{"tenant with a leading zero", nil, "GET", "/tenants/042/info", OtherAccount},
		{"root passes tenants", func(t *tokenstore.Token) { t.Account = tokenstore.Root }, "GET", "/tenants/43/info", Allowed},
		{"query once", grants(tokenstore.Grant{Type: "account", ID: "1", Level: read}), "GET", "/transactions?a=b&account=1", Allowed},
		{"query other", grants(tokenstore.Grant{Type: "account", ID: "1", Level: read}), "GET", "/transactions?account=2", ResourceNotGranted},
		{"query absent", grants(tokenstore.Grant{Type: "account", ID: "1", Level: read}), "GET", "/transactions", AmbiguousQuery},
		{"query twice", grants(tokenstore.Grant{Type: "account", ID: "1", Level: read}), "GET", "/transactions?account=1&account=1", AmbiguousQuery},
		{"query twice, one encoded", grants(tokenstore.Grant{Type: "account", ID: "1", Level: read}), "GET", "/transactions?account=1&%61ccount=2", AmbiguousQuery},
		{"query twice, as an array", nil, "GET", "/transactions?account=1&account[]=2", AmbiguousQuery},
		{"query twice, other case", nil, "GET", "/transactions?account=1&Account=2", AmbiguousQuery},
		{"query twice, full token", nil, "GET", "/transactions?account=1&account=2", AmbiguousQuery},
		{"query empty", grants(tokenstore.Grant{Type: "account", ID: "*", Level: read}), "GET", "/transactions?account=", ResourceNotGranted},
		{"query with a plus", grants(tokenstore.Grant{Type: "account", ID: "a b", Level: read}), "GET", "/transactions?account=a+b", Allowed},
		{"query with a semicolon", nil, "GET", "/transactions?account=1;account=2", IrregularPath},
		{"semicolon in the path", nil, "GET", "/accounts/1;x", IrregularPath},
		{"query that only looks like the parameter", nil, "GET", "/transactions?Account=1", AmbiguousQuery},
		{"query with a semicolon that no rule reads", nil, "GET", "/accounts/1?a;b", Allowed},
		{"two variables in one id", grants(tokenstore.Grant{Type: "pair", ID: "1/2", Level: read}), "GET", "/pairs/1/2", Allowed},
		{"one of two variables", grants(tokenstore.Grant{Type: "pair", ID: "1", Level: read}), "GET", "/pairs/1/2", ResourceNotGranted},
		{"write on the first alternative, read on the second", grants(tokenstore.Grant{Type: "card", ID: "2", Level: write}, tokenstore.Grant{Type: "account", ID: "1", Level: read}),
			"POST", "/accounts/1/cards/2", Allowed},
		{"encoded slash", nil, "GET", "/accounts/1%2F2", IrregularPath},
		{"encoded slash relaxed", nil, "GET", "/tree/1%2F2", Allowed},
		{"encoded slash without a route", nil, "GET", "/nothing%2F", IrregularPath},
	} {
		t.Run(c.name, func(t *testing.T) {
			tok, secret := token(c.token)
			e := engineFor(t, &oneToken{token: tok}, bankRoutes...)
			d := e.Decide(t.Context(), canonical(t, c.method, c.target, bearer(secret)), start)
			if d.Reason != c.want {
				t.Fatalf("decided %v, want %v", d.Reason, c.want)
			}
			if d.Allowed() != (c.want == Allowed) {
				t.Fatalf("allowed: %v", d.Allowed())
			}
			q := canonical(t, c.method, c.target, bearer(secret))
			explained, steps := e.Explain(t.Context(), e.policy, q, start)
			asToken, _ := e.ExplainAs(t.Context(), e.policy, q, tokenstore.Match{Token: tok, Secret: &tok.Secrets[0]}, start)
			if explained.Reason != c.want || asToken.Reason != c.want {
				t.Errorf("explained as %v, by token as %v, want %v", explained.Reason, asToken.Reason, c.want)
			}
			for i, s := range steps {
				if last := i == len(steps)-1; s.OK != (!last || explained.Allowed()) || s.Detail == "" {
					t.Errorf("step %d of %d, %s: ok %v, %q", i+1, len(steps), s.Name, s.OK, s.Detail)
				}
				if strings.Contains(s.Detail, secret) {
					t.Errorf("step %s shows the secret", s.Name)
				}
			}
		})
	}
}

func TestCredentialIsJudgedBeforeTheRoute(t *testing.T) {
	tok, secret := token(nil)
	store := &oneToken{token: tok}
	e := engineFor(t, store, bankRoutes...)
	for _, c := range []struct {
		name, target string
		fields       []canon.Field
		want         Reason
	}{
		{"none", "/nothing", nil, MissingToken},
		{"none on a route", "/accounts/1", nil, MissingToken},
		{"other scheme", "/accounts/1", []canon.Field{{Name: []byte("Authorization"), Value: []byte("Basic dTpw")}}, MissingToken},
		{"garbage with our prefix", "/accounts/1", []canon.Field{bearer("tw_garbage")}, MalformedToken},
		{"one character changed", "/accounts/1", []canon.Field{bearer(secret[:10] + "!" + secret[11:])}, MalformedToken},
		{"bearer of nothing", "/accounts/1", []canon.Field{bearer("")}, MalformedToken},
		{"other text", "/accounts/1", []canon.Field{bearer("sk_live_1234")}, UnknownToken},
		{"unknown secret", "/accounts/1", []canon.Field{bearer(tokenstore.NewSecret("tw").Reveal())}, UnknownToken},
		{"two that differ", "/accounts/1", []canon.Field{bearer(secret), {Name: []byte("Api-Token"), Value: []byte("x")}}, AmbiguousCredential},
		{"one header twice", "/accounts/1", []canon.Field{bearer(secret), bearer(secret)}, AmbiguousCredential},
		{"public reads none", "/healthz", []canon.Field{bearer(secret), bearer("x")}, Public},
		{"valid without a route", "/nothing", []canon.Field{bearer(secret)}, NoRoute},
		{"the other header", "/accounts/1", []canon.Field{{Name: []byte("Api-Token"), Value: []byte(secret)}}, Allowed},
	} {
		d := e.Decide(t.Context(), canonical(t, "GET", c.target, c.fields...), start)
		if d.Reason != c.want {
			t.Errorf("%s: decided %v, want %v", c.name, d.Reason, c.want)
		}
	}
}

func TestUnknownSourceIsNoSource(t *testing.T) {
	for name, c := range map[string]struct {
		sources tokenstore.Sources
		want    Reason
	}{
		"any":       {tokenstore.Sources{Any: true}, Allowed},
		"all of v4": {tokenstore.Sources{Allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}, SourceUnknown},
	} {
		tok, secret := token(func(t *tokenstore.Token) { t.Sources = c.sources })
		e := engineFor(t, &oneToken{token: tok}, bankRoutes...)
		q := canonical(t, "GET", "/accounts/1", bearer(secret))
		q.Client = canon.Client{}
		if d := e.Decide(t.Context(), q, start); d.Reason != c.want {
			t.Errorf("%s: %v, want %v", name, d.Reason, c.want)
		}
	}
}

func TestUpgradedConnectionNeedsWrite(t *testing.T) {
	for level, want := range map[tokenstore.Level]Reason{tokenstore.LevelRead: LevelTooLow, tokenstore.LevelWrite: Allowed} {
		tok, secret := token(grants(tokenstore.Grant{Type: "account", ID: "1", Level: level}))
		e := engineFor(t, &oneToken{token: tok}, bankRoutes...)
		q := canonical(t, "GET", "/accounts/1", bearer(secret))
		q.Upgrade = true
		if d := e.Decide(t.Context(), q, start); d.Reason != want {
			t.Errorf("%v: %v, want %v", level, d.Reason, want)
		}
	}
}

func TestGarbageTouchesNoStore(t *testing.T) {
	store := &oneToken{}
	e := engineFor(t, store, bankRoutes...)
	for _, text := range []string{"tw_", "tw_short", "tw_" + strings.Repeat("A", 38), "tw_" + strings.Repeat("A", 4000)} {
		e.Decide(t.Context(), canonical(t, "GET", "/accounts/1", bearer(text)), start)
	}
	if store.reads != 0 {
		t.Fatalf("the store was read %d times", store.reads)
	}
}

func TestBrokenStoreDenies(t *testing.T) {
	broken := errors.New("disk gone")
	_, secret := token(nil)
	e := engineFor(t, &oneToken{err: broken}, bankRoutes...)
	d := e.Decide(t.Context(), canonical(t, "GET", "/accounts/1", bearer(secret)), start)
	if d.Reason != StoreUnavailable || d.Status() != 503 || !errors.Is(d.Cause, broken) {
		t.Fatalf("decided %v, status %d, cause %v", d.Reason, d.Status(), d.Cause)
	}
}

func TestZeroValuesDeny(t *testing.T) {
	tok, secret := token(nil)
	q := canonical(t, "GET", "/accounts/1", bearer(secret))
	m := tokenstore.Match{Token: tok, Secret: &tok.Secrets[0]}
	var nilEngine *Engine
	e := engineFor(t, &oneToken{token: tok}, bankRoutes...)
	for name, d := range map[string]Decision{
		"zero decision":  {},
		"nil engine":     nilEngine.Decide(t.Context(), e.policy, q, start),
		"no policy":      e.Engine.Decide(t.Context(), nil, q, start),
		"unread request": e.Decide(t.Context(), &canon.Request{}, start),
		"empty policy":   e.Engine.Decide(t.Context(), &Policy{}, q, start),
		"nil policy":     Judge(nil, m, q, start),
		"no match":       Judge(&Policy{}, tokenstore.Match{}, q, start),
	} {
		if d.Allowed() || d.Status() < 400 || e.Admit(&d, start) || e.AdmitOwn(&d, start) || e.AdmitShadow(&d, start) {
			t.Errorf("%s: allowed %v with status %d", name, d.Allowed(), d.Status())
		}
	}
	for name, m := range map[string]tokenstore.Match{"no match": {}, "no token": {Secret: m.Secret}, "no secret": {Token: tok}} {
		if d := Judge(e.policy, m, q, start); d.Reason != UnknownToken {
			t.Errorf("%s: %v", name, d.Reason)
		}
	}
	if d := e.Decide(t.Context(), &canon.Request{}, start); d.Reason != Undecided {
		t.Errorf("a request that was not read was judged: %v", d.Reason)
	}
}

func TestEveryReasonIsMapped(t *testing.T) {
	codes := map[string]int{ // as README.md lists them for clients
		"missing_token": 401, "invalid_token": 401, "ambiguous_credential": 400, "source_not_allowed": 403, "insufficient_scope": 403,
		"resource_not_granted": 403, "no_route": 403, "rate_limited": 429, "store_unavailable": 503, "upstream_lookup_failed": 502, "bad_request": 400,
	}
	seen := map[string]bool{}
	for _, r := range Reasons() {
		if r.String() == "" || seen[r.String()] {
			t.Errorf("reason %d has no name of its own: %q", r, r)
		}
		seen[r.String()] = true
		if r.Allows() {
			if r.Status() != 0 || r.Code() != "" {
				t.Errorf("%v allows, yet has status %d and code %q", r, r.Status(), r.Code())
			}
			continue
		}
		if status, ok := codes[r.Code()]; !ok || status != r.Status() || r.Detail() == "" {
			t.Errorf("%v has code %q, status %d, detail %q", r, r.Code(), r.Status(), r.Detail())
		}
	}
	for _, r := range []Reason{Undecided, reasonCount, 255} {
		if r.Allows() || r.Status() != 500 || r.String() == "" {
			t.Errorf("%d: allows %v, status %d", r, r.Allows(), r.Status())
		}
	}
}

func TestNoRouteCanBeNotFound(t *testing.T) {
	tok, secret := token(nil)
	p, faults := Compile(bankRoutes, Options{NotFoundOnNoRoute: true})
	if faults != nil {
		t.Fatal(faults)
	}
	e := engineFor(t, &oneToken{token: tok}, bankRoutes...)
	e.policy = p
	if d := e.Decide(t.Context(), canonical(t, "GET", "/nothing", bearer(secret)), start); d.Status() != 404 {
		t.Errorf("with a valid token the status is %d, want 404", d.Status())
	}
	if d := Judge(nil, tokenstore.Match{Token: tok, Secret: &tok.Secrets[0]}, canonical(t, "GET", "/nothing"), start); d.Status() != 403 {
		t.Errorf("without a policy it is %d, want 403", d.Status())
	}
	if d := engineFor(t, &oneToken{token: tok}, bankRoutes...).Decide(t.Context(), canonical(t, "GET", "/nothing", bearer(secret)), start); d.Status() != 403 {
		t.Errorf("where nothing else is asked for it is %d, want 403", d.Status())
	}
	if d := e.Decide(t.Context(), canonical(t, "GET", "/nothing"), start); d.Status() != 401 {
		t.Errorf("without one it is %d, want 401: routes are not to be probed", d.Status())
	}
}

func TestAdmitChargesOnlyWhatIsAllowed(t *testing.T) {
	tok, secret := token(func(t *tokenstore.Token) { t.Limits = tokenstore.Limits{Rate: 1, Burst: 2} })
	e := engineFor(t, &oneToken{token: tok}, bankRoutes...)
	ask := func(target string, at time.Duration) Decision {
		d := e.Decide(t.Context(), canonical(t, "GET", target, bearer(secret)), start.Add(at))
		e.Admit(&d, start.Add(at))
		return d
	}
	for range 5 {
		if d := ask("/nothing", 0); d.Reason != NoRoute {
			t.Fatalf("decided %v", d.Reason)
		}
	}
	for i, want := range []Reason{Allowed, Allowed, RateLimited, RateLimited} {
		if d := ask("/accounts/1", 0); d.Reason != want {
			t.Fatalf("request %d: %v, want %v", i, d.Reason, want)
		} else if want == RateLimited && (d.RetryAfter <= 0 || d.RetryAfter > time.Second || d.Status() != 429) {
			t.Fatalf("request %d: retry after %v, status %d", i, d.RetryAfter, d.Status())
		}
	}
	if d := ask("/accounts/1", time.Second); d.Reason != Allowed {
		t.Fatalf("after a second: %v", d.Reason)
	}
	if d := ask("/accounts/1", time.Second); d.Reason != RateLimited {
		t.Fatalf("and once more: %v", d.Reason)
	}
}

// TestDecideFindsTheMeterThatAdmitCharges: without it nothing is wrong but the time that
// a decision takes.
func TestDecideFindsTheMeterThatAdmitCharges(t *testing.T) {
	t.Parallel()
	for _, lineage := range []tokenstore.ID{0, 7} {
		tok, secret := token(func(t *tokenstore.Token) {
			t.Lineage, t.Limits = lineage, tokenstore.Limits{Rate: 1, Burst: 2}
		})
		e := engineFor(t, &oneToken{token: tok}, bankRoutes...)
		for i := range 2 {
			d := e.Decide(t.Context(), canonical(t, "GET", "/accounts/1", bearer(secret)), start)
			if (d.near != nil) != (i > 0) || !e.Admit(&d, start) {
				t.Errorf("lineage %d, request %d: near is %v, decided %v", lineage, i, d.near, d.Reason)
			}
		}
	}
}

// TestObservingLeavesNoMeterBehind: what is only observed is measured in a table of its
// own, whose meters nobody may charge for a request that is enforced.
func TestObservingLeavesNoMeterBehind(t *testing.T) {
	t.Parallel()
	tok, secret := token(func(t *tokenstore.Token) { t.Limits = tokenstore.Limits{Rate: 1, Burst: 2} })
	e := engineFor(t, &oneToken{token: tok}, bankRoutes...)
	ask := func(admit func(*Decision, time.Time) bool) (Decision, bool) {
		d := e.Decide(t.Context(), canonical(t, "GET", "/accounts/1", bearer(secret)), start)
		return d, admit(&d, start)
	}
	for i, want := range []bool{true, true, false} {
		if d, admitted := ask(e.AdmitShadow); admitted != want || d.near != nil {
			t.Errorf("observed request %d: admitted %t, near %v", i, admitted, d.near)
		}
	}
	for i, want := range []bool{true, true, false} {
		if _, admitted := ask(e.Admit); admitted != want {
			t.Errorf("request %d: admitted %t", i, admitted)
		}
	}
	if _, admitted := ask(e.AdmitShadow); admitted {
		t.Error("the observed requests are counted by the meter of those that are enforced")
	}
}

// TestEnginesBehindOneCacheKeepTheirOwnAccounts: both keep their meters beside the same
// tokens. One that charged the other's would give away what is used up, or take twice.
func TestEnginesBehindOneCacheKeepTheirOwnAccounts(t *testing.T) {
	t.Parallel()
	tok, secret := token(func(t *tokenstore.Token) { t.Limits = tokenstore.Limits{Rate: 1, Burst: 3} })
	one := engineFor(t, &oneToken{token: tok}, bankRoutes...)
	other := NewEngine(one.finder, 0)
	for i := range 4 {
		for name, e := range map[string]*Engine{"one": one.Engine, "other": other} {
			d := e.Decide(t.Context(), one.policy, canonical(t, "GET", "/accounts/1", bearer(secret)), start)
			if admitted := e.Admit(&d, start); admitted != (i < 3) {
				t.Errorf("request %d to %s: admitted %t", i, name, admitted)
			}
		}
	}
}

func admit(l *limitTable, t *tokenstore.Token, now time.Time) (Reason, time.Duration) {
	d := Decision{Reason: Allowed, Match: tokenstore.Match{Token: t}}
	l.admit(&d, nil, nil, now)
	return d.Reason, d.RetryAfter
}

func TestActiveLimiterIsNeverForgotten(t *testing.T) {
	l := newLimitTable(limitShards) // one in each shard
	limited := func(id tokenstore.ID) *tokenstore.Token {
		return &tokenstore.Token{ID: id, Limits: tokenstore.Limits{Rate: 1, Burst: 1}}
	}
	if r, _ := admit(l, limited(1), start); r != Allowed {
		t.Fatal(r)
	}
	if r, retry := admit(l, limited(1+limitShards), start); r != LimitsFull || retry <= 0 {
		t.Fatalf("%v, retry %v: the first limiter is in use and its place is the only one", r, retry)
	}
	if r, _ := admit(l, limited(1), start); r != RateLimited {
		t.Fatalf("%v: the first limiter was forgotten", r)
	}
	if r, _ := admit(l, limited(1+limitShards), start.Add(time.Second)); r != Allowed {
		t.Fatalf("%v: the first limiter has refilled and could go", r)
	}
	if s := l.stats(); s.Meters != 1 || s.Evicted != 1 || s.Refused != 1 {
		t.Fatalf("%+v", s)
	}
}

func TestUpdatedLimitTakesHold(t *testing.T) {
	l := newLimitTable(0)
	tok := &tokenstore.Token{ID: 1, Limits: tokenstore.Limits{Rate: 1, Burst: 1}}
	admit(l, tok, start)
	wider := &tokenstore.Token{ID: 1, Limits: tokenstore.Limits{Rate: 1000, Burst: 1000}}
	at := start.Add(time.Second)
	for i := range 900 {
		if r, _ := admit(l, wider, at); i < 1 && r != Allowed {
			t.Fatalf("request %d under the wider limit: %v", i, r)
		}
		at = at.Add(time.Millisecond)
	}
	if r, _ := admit(l, wider, at); r != Allowed {
		t.Fatal(r)
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	tok, secret := token(func(t *tokenstore.Token) {
		grants(tokenstore.Grant{Type: "account", ID: "1", Level: tokenstore.LevelWrite})(t)
		t.Limits = tokenstore.Limits{Rate: 1e9, Burst: 1e9}
	})
	e := engineFor(t, &oneToken{token: tok}, bankRoutes...)
	q := canonical(t, "POST", "/accounts/1/cards/2", bearer(secret))
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		d := e.Decide(ctx, q, start)
		if !e.Admit(&d, start) {
			t.Fatal(d.Reason)
		}
	}); n != 0 {
		t.Errorf("allocates %v times", n)
	}
	bad := canonical(t, "POST", "/accounts/1/cards/2", bearer("tw_garbage"))
	if n := testing.AllocsPerRun(1000, func() { _ = e.Decide(ctx, bad, start) }); n != 0 {
		t.Errorf("garbage allocates %v times", n)
	}
}
