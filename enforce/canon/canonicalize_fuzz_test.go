package canon

import (
	"bytes"
	"strings"
	"testing"
)

// FuzzCanonicalize holds that what is forwarded is a request of which a second reading
// takes nothing more away: it is judged the same, presents no credential, speaks for
// nobody, and keeps every line.
func FuzzCanonicalize(f *testing.F) {
	for _, seed := range []string{
		"GET /a HTTP/1.1\nHost: h\nAuthorization: Bearer S\nX-Forwarded-For: 1.2.3.4, 10.0.0.2",
		"POST http://H:80/%61//b?x&key=S;y&%6bey=T\nhost: h:80\nApi_Token: x\nSec-WebSocket-Protocol: a,bearer,S\nSec-WebSocket-Protocol: bearer,bearer",
		"OPTIONS *\nHost: [::1]:80\nAuthorization: Basic x\nForwarded: for=1.2.3.4",
		"GET /?key=a&&key\nHost: h\nSec-WebSocket-Protocol: bearer\nCookie: a=b\nX-Token-Id: 1",
	} {
		f.Add(seed)
	}
	r := compile(f, Options{
		TrustedProxies: proxies, Sets: identity,
		Credentials: []string{"authorization", "api-token", "query:key", "query:key2", "subprotocol:bearer"},
	})
	f.Add("GET /??\nHost: h")
	f.Fuzz(func(t *testing.T, text string) {
		h := rawHead(text)
		var q Request
		if r.Canonicalize(&q, h) != Accepted {
			if q.Target() != nil || q.Path != nil || q.Credential().Kind != NoCredential {
				t.Fatal("something is left of a refused request")
			}
			return
		}
		out := &Head{Method: q.Method, Target: q.Target(), Fields: []Field{{[]byte("Host"), q.Authority}}, Major: 1, Minor: 1, Peer: h.Peer}
		for i, field := range h.Fields {
			if q.Disposition(i) == Forward {
				out.Fields = append(out.Fields, field)
			}
		}
		if value, announced := q.Subprotocols(); value != nil {
			if announced == "" {
				t.Fatal("subprotocols are rewritten for no reason")
			}
			out.Fields = append(out.Fields, Field{[]byte("Sec-WebSocket-Protocol"), value})
		}
		var second Request
		if v := r.Canonicalize(&second, out); v != Accepted {
			t.Fatalf("%q: what is forwarded is refused: %v: %q", text, v, q.Target())
		}
		for i := 1; i < len(out.Fields); i++ {
			if second.Disposition(i) != Forward {
				t.Fatalf("%q: %s: %s was forwarded, and would be removed", text, out.Fields[i].Name, out.Fields[i].Value)
			}
		}
		if second.Credential().Kind != NoCredential || second.Client.Basis != NothingForwarded {
			t.Fatalf("%q: the upstream reads a %v credential and client %s", text, second.Credential(), second.ExplainClient())
		}
		if !bytes.Equal(second.Target(), q.Target()) || !bytes.Equal(second.Authority, q.Authority) || !bytes.Equal(second.Path, q.Path) ||
			!bytes.Equal(second.Query, q.Query) || second.Asterisk != q.Asterisk || second.Irregular&^q.Irregular != 0 {
			t.Fatalf("%q: judged as %q %q, forwarded as %q %q", text, q.Authority, q.Target(), second.Authority, second.Target())
		}
		if whole := string(appendTarget(nil, q.Path, q.Query, q.HasQuery)); whole != string(q.Target()) {
			t.Fatalf("%q: judged %q, forwarded %q", text, whole, q.Target())
		}
	})
}

// rawHead takes text apart with no checks at all: "METHOD TARGET" and "Name: value"
// lines, from a trusted proxy.
func rawHead(text string) *Head {
	first, rest, _ := strings.Cut(text, "\n")
	method, target, _ := strings.Cut(first, " ")
	target, _, _ = strings.Cut(target, " HTTP/")
	h := &Head{Method: []byte(method), Target: []byte(target), Major: 1, Minor: 1, Peer: peer("10.0.0.1:1")}
	for line := range strings.SplitSeq(rest, "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			h.Fields = append(h.Fields, Field{[]byte(name), []byte(strings.Trim(value, " \t"))})
		}
	}
	return h
}

// FuzzShortcut holds that the paths that are taken as they are would come out of the
// long way unchanged.
func FuzzShortcut(f *testing.F) {
	f.Add("/a/b.c")
	f.Add("/a/.b")
	f.Add("/a/%2e")
	f.Fuzz(func(t *testing.T, path string) {
		if !strings.HasPrefix(path, "/") {
			return
		}
		var q Request
		got, v := q.canonicalPath([]byte(path))
		long, irregular, longVerdict := appendCanonicalPath(nil, []byte(path))
		if longVerdict == Accepted {
			deep, more, deepVerdict := appendFullyDecoded(nil, long)
			irregular |= more
			if longVerdict = deepVerdict; deepVerdict == Accepted && hasDotSegment(deep) {
				longVerdict = DotSegment
			}
		}
		if v != longVerdict || v == Accepted && (string(got) != string(long) || q.Irregular != irregular) {
			t.Fatalf("%q: %q %v, the long way %q %v", path, got, v, long, longVerdict)
		}
	})
}
