package canon

import (
	"strings"
	"testing"
)

func TestHostMustBeOneAuthority(t *testing.T) {
	type version struct{ major, minor uint8 }
	http11, http10, http2 := version{1, 1}, version{1, 0}, version{2, 0}
	for _, c := range []struct {
		name      string
		version   version
		authority string // "-" for none
		hosts     string // joined by |, "-" for none
		target    string
		want      string // the authority, or the verdict's name
	}{
		{"plain", http11, "-", "api.example.com", "/", "api.example.com"},
		{"port", http11, "-", "api.example.com:8449", "/", "api.example.com:8449"},
		{"folded", http11, "-", "API.Example.ZONE:80", "/", "api.example.zone:80"},
		{"highest port", http11, "-", "a:65535", "/", "a:65535"},
		{"longest", http11, "-", strings.Repeat("a", 253) + ":65535", "/", strings.Repeat("a", 253) + ":65535"},
		{"underscore", http11, "-", "my_service", "/", "my_service"},
		{"final dot", http11, "-", "api.example.com.", "/", "api.example.com."},
		{"v4", http11, "-", "127.0.0.1:80", "/", "127.0.0.1:80"},
		{"v6", http11, "-", "[::1]:80", "/", "[::1]:80"},
		{"v6 folded", http11, "-", "[2001:DB8::1]", "/", "[2001:db8::1]"},
		{"absolute agrees", http11, "-", "api.example.com", "http://API.example.com/", "api.example.com"},
		{"1.0 without", http10, "-", "-", "/", ""},
		{"1.0 with", http10, "-", "h", "/", "h"},
		{"2 authority", http2, "H", "-", "/", "h"},
		{"2 host only", http2, "-", "h", "/", "h"},
		{"2 both", http2, "h", "H", "/", "h"},

		{"none", http11, "-", "-", "/", "missing_host"},
		{"2 none", http2, "-", "-", "/", "missing_host"},
		{"1.0 absolute without", http10, "-", "-", "http://h/", "missing_host"},
		{"two", http11, "-", "a|b", "/", "repeated_host"},
		{"the same twice", http11, "-", "a|a", "/", "repeated_host"},
		{"2 twice", http2, "a", "a|a", "/", "repeated_host"},
		{"2 differ", http2, "a", "b", "/", "host_differs"},
		{"2 authority empty", http2, "", "b", "/", "host_differs"},
		{"2 empty", http2, "", "-", "/", "bad_host"},
		{"absolute differs", http11, "-", "a", "http://b/", "host_differs"},
		{"absolute default port", http11, "-", "a", "http://a:80/", "host_differs"},
		{"userinfo in both", http11, "-", "u@a", "http://u@a/", "bad_host"},
		{"empty", http11, "-", "", "/", "bad_host"},
		{"1.0 empty", http10, "-", "", "/", "bad_host"},
		{"userinfo", http11, "-", "user@api.example.com", "/", "bad_host"},
		{"path", http11, "-", "api.example.com/admin", "/", "bad_host"},
		{"query", http11, "-", "api.example.com?x", "/", "bad_host"},
		{"fragment", http11, "-", "api.example.com#x", "/", "bad_host"},
		{"list", http11, "-", "a, b", "/", "bad_host"},
		{"space", http11, "-", "a b", "/", "bad_host"},
		{"backslash", http11, "-", `a\b`, "/", "bad_host"},
		{"percent", http11, "-", "a%2eb", "/", "bad_host"},
		{"wildcard", http11, "-", "*.example.com", "/", "bad_host"},
		{"non-ASCII", http11, "-", "\xc3\xa9.example", "/", "bad_host"},
		{"leading dot", http11, "-", ".example.com", "/", "bad_host"},
		{"empty label", http11, "-", "a..b", "/", "bad_host"},
		{"port alone", http11, "-", ":80", "/", "bad_host"},
		{"port empty", http11, "-", "a:", "/", "bad_host"},
		{"port word", http11, "-", "a:http", "/", "bad_host"},
		{"port signed", http11, "-", "a:+80", "/", "bad_host"},
		{"port and path", http11, "-", "a:80/", "/", "bad_host"},
		{"port and colon", http11, "-", "a:80:", "/", "bad_host"},
		{"port too high", http11, "-", "a:65536", "/", "bad_host"},
		{"port too long", http11, "-", "a:000080", "/", "bad_host"},
		{"two ports", http11, "-", "a:80:80", "/", "bad_host"},
		{"port and name", http11, "-", "a:80@b", "/", "bad_host"},
		{"v6 bare", http11, "-", "::1", "/", "bad_host"},
		{"v6 open", http11, "-", "[::1", "/", "bad_host"},
		{"v6 zone", http11, "-", "[fe80::1%25eth0]", "/", "bad_host"},
		{"v6 and more", http11, "-", "[::1]a", "/", "bad_host"},
		{"v6 and a number", http11, "-", "[::1]180", "/", "bad_host"},
		{"v6 port empty", http11, "-", "[::1]:", "/", "bad_host"},
		{"name in brackets", http11, "-", "[localhost]", "/", "bad_host"},
		{"too long", http11, "-", strings.Repeat("a", 254) + ":65535", "/", "bad_host"},
	} {
		h := head(c.target)
		h.Major, h.Minor = c.version.major, c.version.minor
		h.Fields = nil
		if c.authority != "-" {
			h.Authority = []byte(c.authority)
		}
		if c.hosts != "-" {
			for host := range strings.SplitSeq(c.hosts, "|") {
				h.Fields = append(h.Fields, Field{[]byte("hOST"), append([]byte(nil), host...)}) // nil where empty
			}
		}
		var q Request
		got := compile(t, Options{}).Canonicalize(&q, h).String()
		if got == "accepted" {
			got = string(q.Authority)
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		for i := range h.Fields {
			if q.Disposition(i) != Removed {
				t.Errorf("%s: the client's own Host line is forwarded", c.name)
			}
		}
	}
}
