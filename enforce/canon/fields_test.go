package canon

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

var identity = []string{"X-Token-Id", "X-Token-Account", "X-Token-Owner", "X-Token-Name", "X-Token-Scopes", "X-Token-Resources"}

func TestOrdinaryFieldsAreForwarded(t *testing.T) {
	r := compile(t, Options{Sets: identity, Removes: []string{"X-Zone-09a"}, Credentials: []string{"authorization", "api-token", "subprotocol:bearer"}})
	lines := []string{
		"Accept: */*", "User-Agent: curl/8", "Cookie: a=b", "Content-Type: application/json", "Content-Length: 3", "Referer: x",
		"Sec-WebSocket-Protocol: graphql-ws, chat", "X-Custom: 1", "x_custom: 2", "X-Token: 3", "X-Forward: 4", "X-Forwarde-d: 5",
		"Connection: keep-alive", "Transfer-Encoding: chunked", "Idempotency-Key: k", "Forwarded-By: me", "Expect: 100-continue",
		strings.Repeat("X", 300) + ": long", "X-Forwardedx-For: 6",
		"X--one-09a: 7", "X-Zone--9a: 8", "X-Zone-0-a: 9", "X-Zone-09-: 10",
	}
	h := head("/a", lines...)
	if got := forwarded(accept(t, r, h), h); !slices.Equal(got, lines) {
		t.Errorf("forwarded:\n%s", strings.Join(got, "\n"))
	}
}

func TestClientCannotSpeakForUs(t *testing.T) {
	longest := "x-" + strings.Repeat("y", maxNameBytes-2)
	r := compile(t, Options{Sets: identity, Removes: []string{"X-Internal", "x_inner", "cookie", longest}, Credentials: []string{"authorization", "api-token", "x-api-key"}})
	carriers := []string{"Authorization", "Api-Token", "X-Api-Key"}
	var q Request
	for _, name := range []string{
		"X-Inner", "x_inner", longest, strings.ToUpper(longest), "x`token`id",
		"X-Token-Id", "x-token-id", "X-TOKEN-ID", "X_Token_Id", "x.token.id", "X-Token_Id", "X_TOKEN.ID", "x!token~id", "X-Token-Account", "X.TOKEN_SCOPES",
		"X-Internal", "x_internal", "Cookie",
		"X-Request-Id", "X_Request_Id",
		"X-Forwarded-For", "X_Forwarded_For", "x.forwarded.for", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Prefix",
		"X-Forwarded-", "X-Forwarded-Anything-At-All", "x_forwarded_user", "X-Forwarded", "Forwarded", "Forwarded-For", "X-Forward-For",
		"X-Real-IP", "X_Real_IP", "x.real.ip", "True-Client-IP", "X-Client-IP", "CF-Connecting-IP", "cf_connecting_ip", "Fastly-Client-IP", "X-Azure-ClientIP",
		"X-Original-URL", "X_Original_URL", "X-Rewrite-URL", "X-Original-Method", "X-Original-URI", "X-Host", "X-HTTP-Host-Override",
		"X-HTTP-Method-Override", "X_HTTP_METHOD_OVERRIDE", "X-HTTP-Method", "X-Method-Override",
		"X-Middleware-Subrequest", "X-Sendfile-Type", "X_Accel_Mapping", "Proxy", "PROXY", "Proxy-Authorization", "Client-Cert",
		"Authorization", "Api-Token", "API_TOKEN", "api.token", "X-Api-Key", "x_api_key",
		"Content_Length", "Transfer_Encoding", "transfer.encoding", "Keep_Alive",
	} {
		r.Canonicalize(&q, head("/a", "Accept: of the request before"))
		if v := r.Canonicalize(&q, head("/a", name+": Bearer spoofed")); v != Accepted {
			t.Errorf("%s: %v", name, v)
		}
		want := Removed // also where a route is only observed
		if slices.Contains(carriers, name) {
			want = Carrier
		}
		if got := q.Disposition(1); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		if !r.ForbiddenTrailer([]byte(name)) {
			t.Errorf("%s passes as a trailer", name)
		}
		if !r.Protected([]byte(name)) && !strings.HasPrefix(name, "Keep") {
			t.Errorf("%s can be taken away by a Connection option", name)
		}
	}
}

func TestConnectionMayNameOnlyWhatIsTheClients(t *testing.T) {
	r := compile(t, Options{})
	for _, name := range []string{"close", "keep-alive", "upgrade", "te", "trailer", "x-custom", "accept", "cookie"} {
		if r.Protected([]byte(name)) {
			t.Errorf("%s is protected", name)
		}
	}
	for _, name := range []string{"host", "content-length", "Transfer-Encoding", "X-Forwarded-For", "x-request-id", "authorization"} {
		if !r.Protected([]byte(name)) {
			t.Errorf("%s is not protected", name)
		}
	}
}

func TestTrailerCannotFrameOrRoute(t *testing.T) {
	r := compile(t, Options{})
	for _, name := range []string{"", "a b", "x\x00", "Host", "Content-Length", "Transfer-Encoding", "Trailer", "TE", "Content-Type", "Cookie", "Set-Cookie", "Connection", "Content-Encoding", "Cache-Control", "Access-Control-Allow-Origin"} {
		if !r.ForbiddenTrailer([]byte(name)) {
			t.Errorf("%q passes as a trailer", name)
		}
	}
	for _, name := range []string{"Grpc-Status", "grpc-message", "X-Checksum", "Digest", "Server-Timing"} {
		if r.ForbiddenTrailer([]byte(name)) {
			t.Errorf("%q is no trailer", name)
		}
	}
}

func TestFieldNameMustBeToken(t *testing.T) {
	for _, name := range []string{"", "X-Token-Id ", " X-Token-Id", "X-Token-Id\t", "X-Token-Id\x00", "X\r\nY", "X-Tok\xc3\xa9n", "a(b)", "a\"b"} {
		h := head("/a")
		h.Fields = append(h.Fields, Field{[]byte(name), []byte("1")})
		var q Request
		if v := compile(t, Options{}).Canonicalize(&q, h); v != BadFieldName {
			t.Errorf("%q: %v", name, v)
		}
	}
	h := head("/a")
	h.Fields = slices.Repeat([]Field{{[]byte("A"), nil}}, 1<<16)
	var q Request
	if v := compile(t, Options{}).Canonicalize(&q, h); v != TooManyFields || q.Client.Known {
		t.Error(v)
	}
	h.Fields = h.Fields[1:]
	if v := compile(t, Options{}).Canonicalize(&q, h); v != MissingHost {
		t.Error(v)
	}
}

func TestKeptHeaderComesFromTrustedProxyOnly(t *testing.T) {
	r := compile(t, Options{
		TrustedProxies: prefixes("198.51.100.0/24"),
		Keeps:          []string{"CF-Connecting-IP", "x-forwarded-prefix"},
	})
	h := head("/a", "cf-connecting-ip: 1", "cf_connecting_ip: 2", "X-Forwarded-Prefix: /p", "X_Forwarded_Prefix: /q", "X-Real-IP: 3")
	if got := fmt.Sprint(forwarded(accept(t, r, h), h)); got != "[cf-connecting-ip: 1 X-Forwarded-Prefix: /p]" {
		t.Error(got)
	}
	h.Peer = peer("203.0.113.1:1")
	if got := forwarded(accept(t, r, h), h); len(got) != 0 {
		t.Errorf("from anybody: %v", got)
	}
}

// FuzzFieldFold holds that whatever a backend would fold into one of our names is not
// forwarded, and that what it would not is.
func FuzzFieldFold(f *testing.F) {
	for _, seed := range []string{"X-Token-Id", "x.token_id", "X-Forwarded-For", "X_Forwarded", "Api~Token", "Accept", "xtokenid", "Host"} {
		f.Add(seed)
	}
	r := compile(f, Options{Sets: identity})
	ours := []string{
		"x_token_id", "x_token_account", "x_token_owner", "x_token_name", "x_token_scopes", "x_token_resources", "api_token", "authorization",
		"x_real_ip", "x_request_id", "host", "proxy",
	}
	f.Fuzz(func(t *testing.T, name string) {
		h := head("/a")
		h.Fields = append(h.Fields, Field{[]byte(name), []byte("x")})
		var q Request
		if r.Canonicalize(&q, h) != Accepted {
			return
		}
		folded := strings.Map(func(c rune) rune {
			if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
				return c
			}
			return '_'
		}, strings.ToLower(name))
		if slices.Contains(ours, folded) || strings.HasPrefix(folded, "x_forwarded_") {
			if q.Disposition(1) == Forward {
				t.Fatalf("%q is forwarded", name)
			}
		}
	})
}
