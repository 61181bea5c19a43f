package canon

import (
	"net/netip"
	"strings"
	"testing"
)

// compile makes rules that must be fine.
func compile(t testing.TB, o Options) *Rules {
	t.Helper()
	r, err := NewRules(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// head is a GET over HTTP/1.1 for host api.example.com, from a peer that nobody trusts,
// with further "Name: value" lines.
func head(target string, lines ...string) *Head {
	h := &Head{
		Method: []byte("GET"), Target: []byte(target), Major: 1, Minor: 1,
		Peer: netip.MustParseAddrPort("198.51.100.7:40000"),
	}
	for _, line := range append([]string{"Host: api.example.com"}, lines...) {
		name, value, _ := strings.Cut(line, ":")
		h.Fields = append(h.Fields, Field{[]byte(name), []byte(strings.TrimPrefix(value, " "))})
	}
	return h
}

// accept canonicalises what must be accepted.
func accept(t testing.TB, r *Rules, h *Head) *Request {
	t.Helper()
	var q Request
	if v := r.Canonicalize(&q, h); v != Accepted {
		t.Fatalf("%s %q: refused: %v", h.Method, h.Target, v)
	}
	return &q
}

// forwarded lists the lines that go to the upstream as they are.
func forwarded(q *Request, h *Head) []string {
	var lines []string
	for i, f := range h.Fields {
		if q.Disposition(i) == Forward {
			lines = append(lines, string(f.Name)+": "+string(f.Value))
		}
	}
	return lines
}

func TestZeroValuesRefuse(t *testing.T) {
	var q Request
	if q.Verdict() == Accepted {
		t.Error("a request that was never read is accepted")
	}
	if q.Verdict().Status() != 400 {
		t.Errorf("status %d", q.Verdict().Status())
	}
	if c := q.Credential(); c.Kind != NoCredential || c.Secret != nil {
		t.Errorf("credential %v", c)
	}
	if q.Client.Known {
		t.Error("the client is known")
	}
	if q.Disposition(0) != Removed {
		t.Error("a field is forwarded")
	}
}

func TestUpgradeIsSeenByTheDoorAndKept(t *testing.T) {
	h := head("/a")
	h.Upgrade = true
	r := compile(t, Options{})
	q := accept(t, r, h)
	if !q.Upgrade {
		t.Error("the upgrade is lost")
	}
	if r.Canonicalize(q, head("/a")) != Accepted || q.Upgrade {
		t.Error("the upgrade of the last request stays")
	}
}

// A Request is used again and again on a connection: nothing of one request may show in the next.
func TestNothingIsLeftOfTheLastRequest(t *testing.T) {
	r := compile(t, Options{
		TrustedProxies: proxies, Credentials: []string{"authorization", "api-token", "query:key", "subprotocol:bearer"},
	})
	full := head("http://API.example.com/%61/b%2f;?key=S&x", "Authorization: Bearer S", "Api-Token: S", "Api-Token: T",
		"Sec-WebSocket-Protocol: bearer, S, chat", "X-Forwarded-For: 1.2.3.4, 10.0.0.2", "X-Forwarded-Proto: https")
	full.Peer, full.TLS, full.Upgrade = peer("10.0.0.1:1"), true, true
	asterisk := head("*")
	asterisk.Method = []byte("OPTIONS")
	byProxy := head("/plain?y", "X-Forwarded-Port: 1")
	byProxy.Peer = peer("10.0.0.1:1")
	ofNobody := head("/plain")
	ofNobody.Peer = netip.AddrPort{}
	var q Request
	for _, before := range []*Head{full, head("/..", "Accept: x"), asterisk, head("/plain", "Accept: x"), full} {
		for _, c := range []struct {
			head   *Head
			target string
			client Client
			route  string // X-Forwarded-For
		}{
			{head("/plain"), "/plain", Client{Addr: addr("198.51.100.7"), Known: true, Basis: PeerItself, Peer: addr("198.51.100.7")}, "198.51.100.7"},
			{byProxy, "/plain?y", Client{Addr: addr("10.0.0.1"), Known: true, Basis: NothingForwarded, Peer: addr("10.0.0.1")}, "10.0.0.1"},
			{ofNobody, "/plain", Client{}, ""},
		} {
			r.Canonicalize(&q, before)
			if r.Canonicalize(&q, c.head) != Accepted {
				t.Fatal("refused")
			}
			value, announced := q.Subprotocols()
			if q.Credential().Kind != NoCredential || q.Client != c.client || q.Irregular != 0 || q.Secure || q.Upgrade || q.Asterisk || !q.Plain ||
				value != nil || announced != "" || string(q.Target()) != c.target || string(q.AppendForwardedFor(nil)) != c.route ||
				string(q.Authority) != "api.example.com" || q.Disposition(1) != Removed {
				t.Errorf("something is left: %+v", &q)
			}
		}
		r.Canonicalize(&q, before)
		if r.Canonicalize(&q, head("/..")) != DotSegment {
			t.Fatal("accepted")
		}
		nothingIsLeft(t, &q)
		if r.Canonicalize(&q, &Head{Fields: make([]Field, 1<<16), Peer: peer("10.0.0.1:1")}) != TooManyFields || q.Client != (Client{}) {
			t.Errorf("a client is left: %+v", q.Client)
		}
	}
}

// nothingIsLeft wants nothing to forward and nothing to judge by of a request that was refused.
func nothingIsLeft(t *testing.T, q *Request) {
	t.Helper()
	value, announced := q.Subprotocols()
	if q.Method != nil || q.Authority != nil || q.Path != nil || q.Query != nil || q.Target() != nil || q.TargetWithCredentials() != nil ||
		value != nil || announced != "" || q.Plain || q.HasQuery || q.Asterisk || q.Secure || q.Upgrade || q.Irregular != 0 ||
		len(q.dispositions) != 0 || q.fields != nil || q.rules != nil {
		t.Errorf("refused, and yet something is left: %+v", q)
	}
}
