package canon

import (
	"fmt"
	"strings"
	"testing"
)

func TestCredential(t *testing.T) {
	all := Options{Credentials: []string{"subprotocol:bearer", "authorization", "api-token", "X-Api-Key", "query:access_token", "query:key"}}
	for _, c := range []struct {
		name   string
		target string
		lines  []string
		want   string // kind, or the secret
	}{
		{"nothing", "/a", nil, "none"},
		{"bearer", "/a", []string{"Authorization: Bearer tw_S"}, "tw_S"},
		{"scheme in any case", "/a", []string{"authorization: bEARER tw_S"}, "tw_S"},
		{"white space around", "/a", []string{"Authorization:  \tBearer tw_S \t"}, "tw_S"},
		{"white space around a header", "/a", []string{"Api-Token: \ttw_S "}, "tw_S"},
		{"all that is visible", "/a", []string{"Api-Token: !~"}, "!~"},
		{"longest", "/a", []string{"Api-Token: " + strings.Repeat("a", 4096)}, strings.Repeat("a", 4096)},
		{"parameter named like a header", "/a?api-token=S", nil, "none"},
		{"scheme as long as ours", "/a", []string{"Authorization: Digest tw_S"}, "none"},
		{"scheme shorter than ours", "/a", []string{"Authorization: Beare"}, "none"},
		{"scheme longer by one", "/a", []string{"Authorization: BearerS"}, "none"},
		{"more spaces", "/a", []string{"Authorization: Bearer   tw_S"}, "tw_S"},
		{"token68", "/a", []string{"Authorization: Bearer aZ09-._~+/=="}, "aZ09-._~+/=="},
		{"foreign secrets may hold more", "/a", []string{"Authorization: Bearer 12|abc:$"}, "12|abc:$"},
		{"api-token", "/a", []string{"Api-Token: tw_S"}, "tw_S"},
		{"further header", "/a", []string{"x-api-key: tw_S"}, "tw_S"},
		{"disguised header is not a carrier", "/a", []string{"Api_Token: tw_S"}, "none"},
		{"disguised beside a real one", "/a", []string{"Api_Token: tw_S", "Api-Token: tw_T"}, "tw_T"},
		{"query", "/a?x=1&access_token=tw_S&y=2", nil, "tw_S"},
		{"query encoded", "/a?acc%65ss%5Ftoken=t%77_S", nil, "tw_S"},
		{"query in another case", "/a?Access_Token=S", nil, "none"},
		{"subprotocol", "/a", []string{"Sec-WebSocket-Protocol: bearer, tw_S"}, "tw_S"},
		{"subprotocol over lines", "/a", []string{"Sec-WebSocket-Protocol: chat, bearer", "Sec-WebSocket-Protocol: tw_S"}, "tw_S"},
		{"the same twice over", "/a?access_token=tw_S&key=tw_S", []string{"Authorization: Bearer tw_S", "Api-Token: tw_S"}, "tw_S"},

		{"no scheme", "/a", []string{"Authorization: tw_S"}, "none"},
		{"another scheme", "/a", []string{"Authorization: Basic dTpw"}, "none"},
		{"longer scheme", "/a", []string{"Authorization: BearerX tw_S"}, "none"},
		{"empty", "/a", []string{"Authorization:"}, "none"},
		{"another scheme beside ours", "/a", []string{"Authorization: Basic dTpw", "Api-Token: tw_S"}, "tw_S"},
		{"secret in another scheme's place", "/a", []string{"Authorization: Token tw_S"}, "none"},

		{"bearer of nothing", "/a", []string{"Authorization: Bearer"}, "malformed"},
		{"bearer of a space", "/a", []string{"Authorization: Bearer  "}, "malformed"},
		{"two words", "/a", []string{"Authorization: Bearer tw_S tw_T"}, "malformed"},
		{"tab", "/a", []string{"Authorization: Bearer\ttw_S"}, "malformed"},
		{"joined lines", "/a", []string{"Authorization: Bearer tw_S, Bearer tw_T"}, "malformed"},
		{"comma", "/a", []string{"Authorization: Bearer tw_S,"}, "malformed"},
		{"joined header", "/a", []string{"Api-Token: tw_S,tw_T"}, "malformed"},
		{"empty header", "/a", []string{"Api-Token:"}, "malformed"},
		{"quoted comma", "/a", []string{"Authorization: Bearer \"tw_S\", x"}, "malformed"},
		{"non-ASCII", "/a", []string{"Api-Token: tw_\xc3\xa9"}, "malformed"},
		{"delete", "/a", []string{"Api-Token: tw_\x7f"}, "malformed"},
		{"query beginning with a space", "/a?access_token=+a", nil, "malformed"},
		{"query broken alike", "/a?access_token=%zz&key=%zz", nil, "malformed"},
		{"control", "/a", []string{"Api-Token: tw_\x01"}, "malformed"},
		{"too long", "/a", []string{"Api-Token: " + strings.Repeat("a", 4097)}, "malformed"},
		{"query empty", "/a?access_token", nil, "malformed"},
		{"query broken", "/a?access_token=%zz", nil, "malformed"},
		{"query with a space", "/a?access_token=a+b", nil, "malformed"},
		{"subprotocol without secret", "/a", []string{"Sec-WebSocket-Protocol: chat, bearer"}, "malformed"},
		{"subprotocol with empty secret", "/a", []string{"Sec-WebSocket-Protocol: bearer, "}, "malformed"},

		{"two that differ", "/a", []string{"Authorization: Bearer tw_S", "Api-Token: tw_T"}, "ambiguous"},
		{"differ in case", "/a", []string{"Authorization: Bearer tw_S", "Api-Token: tw_s"}, "ambiguous"},
		{"header and query", "/a?access_token=tw_T", []string{"Authorization: Bearer tw_S"}, "ambiguous"},
		{"one header twice", "/a", []string{"Api-Token: tw_S", "API-TOKEN: tw_S"}, "ambiguous"},
		{"authorization twice", "/a", []string{"Authorization: Bearer tw_S", "Authorization: Bearer tw_S"}, "ambiguous"},
		{"two schemes", "/a", []string{"Authorization: Basic dTpw", "Authorization: Bearer tw_S"}, "ambiguous"},
		{"two schemes, ours first", "/a", []string{"Authorization: Bearer tw_S", "Authorization: Basic dTpw"}, "ambiguous"},
		{"two foreign beside ours", "/a", []string{"Authorization: Basic dTpw", "Authorization: Digest x", "Api-Token: tw_S"}, "ambiguous"},
		{"parameter twice", "/a?access_token=tw_S&access_token=tw_S", nil, "ambiguous"},
		{"parameter twice, once encoded", "/a?access_token=tw_S&%61ccess_token=tw_S", nil, "ambiguous"},
		{"subprotocol twice", "/a", []string{"Sec-WebSocket-Protocol: bearer, tw_S, bearer, tw_S"}, "ambiguous"},
		{"subprotocol in the secret's place", "/a", []string{"Sec-WebSocket-Protocol: bearer, bearer, tw_S"}, "ambiguous"},
		{"query broken in two ways", "/a?access_token=%zz&key=%yy", nil, "ambiguous"},
		{"query broken beside a header of the same text", "/a?access_token=%zz", []string{"Api-Token: %zz"}, "ambiguous"},
		{"good and malformed", "/a", []string{"Authorization: Bearer", "Api-Token: tw_S"}, "ambiguous"},
		{"malformed and good", "/a", []string{"Authorization: Bearer tw_S", "Api-Token:"}, "ambiguous"},
	} {
		r := compile(t, all)
		h := head(c.target, c.lines...)
		q := accept(t, r, h)
		got := q.Credential()
		text := got.Kind.String()
		if got.Kind == OneCredential {
			text = string(got.Secret)
		} else if got.Secret != nil {
			t.Errorf("%s: a secret comes with %v", c.name, got.Kind)
		}
		if text != c.want {
			t.Errorf("%s: %s, want %s", c.name, text, c.want)
		}
		if again := q.Credential(); again.Kind != got.Kind || string(again.Secret) != string(got.Secret) {
			t.Errorf("%s: reads differently the second time", c.name)
		}
		if len(q.secretBuf) > len(c.target) {
			t.Errorf("%s: each reading keeps another copy of the secret", c.name)
		}
		value, _ := q.Subprotocols()
		upstream := strings.Join(forwarded(q, h), "\n") + string(q.Target()) + string(value)
		if strings.Contains(upstream, "tw_") || strings.Contains(upstream, "t%77_") {
			t.Errorf("%s: a credential reaches the upstream: %s", c.name, upstream)
		}
		if strings.Contains(fmt.Sprintf("%v %+v %#v %s", got, got, got, got), "tw_") {
			t.Errorf("%s: the secret is printed", c.name)
		}
	}
}

func TestCredentialIsTakenOutOfQuery(t *testing.T) {
	r := compile(t, Options{Credentials: []string{"query:access_token"}})
	var q Request // one for all: nothing of one query may be left in the next
	for target, want := range map[string]string{
		"/a?access_token=S":                     "/a",
		"/a?access_token=S&":                    "/a?",
		"/a?x=1&access_token=S":                 "/a?x=1",
		"/a?access_token=S&x=1":                 "/a?x=1",
		"/a?x=1&access_token=S&y=%2f&&z":        "/a?x=1&y=%2f&&z",
		"/a?%61ccess%5ftoken=S&x":               "/a?x",
		"/a?access_token&x":                     "/a?x",
		"/a?access_token=S&access_token=T":      "/a",
		"/a?access_tokens=S&xaccess_token":      "/a?access_tokens=S&xaccess_token",
		"/a?x=access_token=S":                   "/a?x=access_token=S",
		"/a?":                                   "/a?",
		"/a":                                    "/a",
		"/%61?access_token=S&x":                 "/a?x",
		"http://api.example.com?access_token=S": "/",
	} {
		if v := r.Canonicalize(&q, head(target)); v != Accepted {
			t.Fatal(v)
		}
		if got := string(q.Target()); got != want || q.HasQuery != strings.Contains(want, "?") {
			t.Errorf("%s: %s, want %s (%v)", target, got, want, q.HasQuery)
		}
		if strings.Contains(target, "=S") && !strings.Contains(string(q.TargetWithCredentials()), "=S") {
			t.Errorf("%s: observed as %s", target, q.TargetWithCredentials())
		}
	}
}

// A page that was opened with a credential in its URL names that URL in the requests it makes.
func TestRefererDoesNotLeakCredential(t *testing.T) {
	r := compile(t, Options{Credentials: []string{"query:access_token"}})
	for value, want := range map[string]Disposition{
		"https://h/a?access_token=S":       Carrier,
		"https://h/a?x&%61ccess_token=S#y": Carrier,
		"https://h/a?x=access_token":       Forward,
		"https://h/access_token=S":         Forward,
		"":                                 Forward,
	} {
		if got := accept(t, r, head("/a", "Referer: "+value)).Disposition(1); got != want {
			t.Errorf("%s: %v", value, got)
		}
	}
	if accept(t, compile(t, Options{}), head("/a", "Referer: https://h/a?access_token=S")).Disposition(1) != Forward {
		t.Error("Referer is judged where no query is a carrier")
	}
}

func TestCredentialIsTakenOutOfSubprotocols(t *testing.T) {
	r := compile(t, Options{Credentials: []string{"subprotocol:bearer", "x-key"}})
	var q Request // one for all: nothing of one list may be left in the next
	for value, want := range map[string]string{
		"bearer, S":                    "(bearer)",
		"bearer,S,chat":                "chat (bearer)",
		"chat , bearer ,S, graphql-ws": "chat, graphql-ws (bearer)",
		"a,bearer,S,b":                 "a, b (bearer)",
		"chat, bearer":                 "chat (bearer)",
		"bearer, bearer":               "(bearer)",
		"bearer, S, bearer, T":         "(bearer)",
	} {
		if v := r.Canonicalize(&q, head("/a", "Sec-WebSocket-Protocol: "+value)); v != Accepted {
			t.Fatal(v)
		}
		rest, announced := q.Subprotocols()
		if got := strings.TrimSpace(string(rest) + " (" + announced + ")"); got != want {
			t.Errorf("%s: %s, want %s", value, got, want)
		}
		if rest != nil && len(rest) == 0 {
			t.Errorf("%s: an empty list is forwarded", value)
		}
		if q.Disposition(1) != Carrier {
			t.Errorf("%s: the line is forwarded", value)
		}
	}
	h := head("/a", "Sec-WebSocket-Protocol: chat,Bearer , x-key, x")
	if v := r.Canonicalize(&q, h); v != Accepted {
		t.Fatal(v)
	}
	if rest, announced := q.Subprotocols(); rest != nil || announced != "" || q.Disposition(1) != Forward {
		t.Errorf("a list without credential is changed: %s", rest)
	}
}

func TestForeignAuthorizationIsTheRoutesToDecide(t *testing.T) {
	for _, c := range []struct {
		credentials []string
		line        string
		want        Disposition
	}{
		{nil, "Authorization: Basic dTpw", ForeignAuthorization},
		{nil, "Authorization: Bearer S", Carrier},
		{nil, "Authorization: Bearer", Carrier},
		{nil, "Authorization:", ForeignAuthorization},
		{nil, "Authorization: S", ForeignAuthorization},
		{[]string{"api-token"}, "Authorization: Bearer S", ForeignAuthorization},
		{[]string{"api-token"}, "Authorization: Basic dTpw", ForeignAuthorization},
	} {
		r := compile(t, Options{Credentials: c.credentials})
		q := accept(t, r, head("/a", c.line))
		if got := q.Disposition(1); got != c.want {
			t.Errorf("%v %s: %v, want %v", c.credentials, c.line, got, c.want)
		}
	}
	q := accept(t, compile(t, Options{}), head("/a", "Authorization: Basic x", "Authorization: Basic y"))
	if q.Disposition(1) != Carrier || q.Disposition(2) != Carrier {
		t.Error("one of two Authorization lines may be forwarded")
	}
}

func TestLookupQueryCountsWhatBackendsConfuse(t *testing.T) {
	for _, c := range []struct {
		query, name, want string
	}{
		{"", "account", " false 0"},
		{"account=1", "account", "1 true 1"},
		{"a&account=1&b", "account", "1 true 1"},
		{"account", "account", " true 1"},
		{"%61ccount=%31", "account", "%31 true 1"},
		{"account=1&account=2", "account", "2 true 2"},
		{"account=1&Account=2", "account", "1 true 2"},
		{"ACCOUNT=2", "account", " false 1"},
		{"account=1&account[]=2", "account", "1 true 2"},
		{"account=1&account%5B0%5D=2", "account", "1 true 2"},
		{"account=1&account%00x=2", "account", "1 true 2"},
		{"account.id=1&account_id=2", "account_id", "2 true 2"},
		{"account+id=1&account_id=2", "account_id", "2 true 2"},
		{"account=1&%20account=2", "account", "1 true 2"},
		{"account=1&++account=2", "account", "1 true 2"},
		{"account=1&account+=2", "account", "1 true 2"},
		{"account=1&[account]=2", "account", "1 true 2"},
		{"account=1&%5Baccount%5D=2", "account", "1 true 2"},
		{"account=1&[account][0]=2", "account", "1 true 2"},
		{"filter[account]=1&[filter][account]=2", "filter[account]", "1 true 2"},
		{"filter[account]=1&filter[account][]=2", "filter[account]", "1 true 2"},
		{"account=1&+=2&[=3&[]=4&%20", "account", "1 true 1"},
		{"accounts=1&xaccount=2&accoun=3&amounts=4", "account", " false 0"},
		{"account=1&account!=2&!account=3", "account", "1 true 1"},
		{"account%id=1&account_id=2", "account_id", "2 true 2"}, // a broken escape stands for itself, and PHP reads it as an underscore
		{"f[a]b=1&f[a]xb=2", "f[a]b", "1 true 1"},
		{"x=account=1", "account", " false 0"},
		{"%zz=1&account=%zz", "account", "%zz true 1"},
	} {
		value, found, n := LookupQuery([]byte(c.query), c.name)
		if got := fmt.Sprintf("%s %v %d", value, found, n); got != c.want {
			t.Errorf("%s in %s: %s, want %s", c.name, c.query, got, c.want)
		}
	}
}
