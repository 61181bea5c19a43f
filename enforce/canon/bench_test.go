package canon

import (
	"testing"
)

// typical is a request as an API client sends it through one load balancer: 12 fields.
func typical() *Head {
	h := head("/accounts/4711/cards/42?page=2&filter=open",
		"User-Agent: example-client/2.3 (linux; amd64)",
		"Accept: application/json",
		"Accept-Encoding: gzip, br",
		"Accept-Language: en",
		"Authorization: Bearer tw_0123456789ABCDEFGHIJabcdefghij01abcdef",
		"Content-Type: application/json",
		"Content-Length: 142",
		"Idempotency-Key: 5f7a3c1e-6f0e-4b59-9a8e-4d8c3b1b0a11",
		"X-Forwarded-For: 203.0.113.9",
		"X-Forwarded-Proto: https",
		"X-Request-Id: abcdef",
	)
	h.Peer = peer("10.0.0.1:40000")
	return h
}

// odd is a request that takes every slow path that is still accepted.
func odd() *Head {
	h := head("http://API.example.com/%61ccounts/a%2fb;c//d%25/%C3%A9?x=%zz;&access_token=t%77_S&y",
		"Sec-WebSocket-Protocol: chat, bearer, tw_S",
		"Api-Token: tw_S",
		`Forwarded: for=198.51.100.1;proto=https, for="[fd00::2]:80", for=10.0.0.2`,
	)
	h.Peer = peer("10.0.0.1:40000")
	return h
}

func typicalRules(tb testing.TB) *Rules {
	return compile(tb, Options{TrustedProxies: proxies, Sets: identity})
}

func oddRules(tb testing.TB) *Rules {
	return compile(tb, Options{
		TrustedProxies: proxies, Sets: identity, ClientAddress: "forwarded",
		Credentials: []string{"authorization", "api-token", "query:access_token", "subprotocol:bearer"},
	})
}

func TestNothingIsAllocated(t *testing.T) {
	for name, c := range map[string]struct {
		rules *Rules
		head  *Head
		want  Verdict
	}{
		"typical":    {typicalRules(t), typical(), Accepted},
		"odd":        {oddRules(t), odd(), Accepted},
		"refused":    {typicalRules(t), head("/a/%2e%2e/b"), DotSegment},
		"unreadable": {typicalRules(t), func() *Head { h := head("/a", "X-Forwarded-For: unknown"); h.Peer = peer("10.0.0.1:1"); return h }(), Accepted},
	} {
		var q Request
		var xff []byte
		allocs := testing.AllocsPerRun(100, func() {
			if v := c.rules.Canonicalize(&q, c.head); v != c.want {
				t.Fatal(v)
			}
			if c := q.Credential(); c.Kind == AmbiguousCredential {
				t.Fatal("ambiguous")
			}
			xff = q.AppendForwardedFor(xff[:0])
			LookupQuery(q.Query, "page")
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

func BenchmarkCanonicalize(b *testing.B) {
	for _, c := range []struct {
		name  string
		rules *Rules
		head  *Head
	}{
		{"typical", typicalRules(b), typical()},
		{"odd", oddRules(b), odd()},
	} {
		b.Run(c.name, func(b *testing.B) {
			var q Request
			b.ReportAllocs()
			for b.Loop() {
				if c.rules.Canonicalize(&q, c.head) != Accepted {
					b.Fatal("refused")
				}
				if q.Credential().Kind != OneCredential {
					b.Fatal("no credential")
				}
			}
		})
	}
}
