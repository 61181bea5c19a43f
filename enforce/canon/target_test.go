package canon

import (
	"net/url"
	"strings"
	"testing"
)

func TestPathIsCanonical(t *testing.T) {
	for _, c := range []struct {
		target, want string
		irregular    Irregularity
	}{
		{"/", "/", 0},
		{"/accounts/1", "/accounts/1", 0},
		{"/accounts/1/", "/accounts/1/", 0},
		{"/a?b=c&d", "/a?b=c&d", 0},
		{"/a?", "/a?", 0},
		{"/a?b=%2e%2e/../c", "/a?b=%2e%2e/../c", 0},
		{"/a?filter[x]=1&page[limit]=2", "/a?filter[x]=1&page[limit]=2", 0},
		{"/%61%62%63", "/abc", 0},
		{"/%41%5a%30%39%2D%5F%7E", "/AZ09-_~", 0},
		{"/a%2Eb", "/a.b", 0},
		{"/.well-known/x", "/.well-known/x", 0},
		{"/...", "/...", 0},
		{"/a..b/..c/d..", "/a..b/..c/d..", 0},
		{"/a%20b%3f%23%2a", "/a%20b%3f%23%2a", 0},
		{"/%C3%A9/%e2%82%ac/%F0%9F%98%80", "/%C3%A9/%e2%82%ac/%F0%9F%98%80", 0},
		{"/!$&'()*+,=:@", "/!$&'()*+,=:@", 0},
		{"/%21%24%7B%7c", "/%21%24%7B%7c", 0},
		{"/caf%C3%A9.%74xt", "/caf%C3%A9.txt", 0},
		{"/%EF%BF%BD", "/%EF%BF%BD", 0}, // the character that stands for broken ones is whole itself
		{"/a%C2%A0b", "/a%C2%A0b", 0},
		{"/%E2%80%A5.", "/%E2%80%A5.", 0}, // three dots
		{"/http://x", "/http://x", EmptySegment},
		{"/a/%2F/b", "/a/%2F/b", EncodedSlash},
		{"/a%2fb", "/a%2fb", EncodedSlash},
		{"/a%5Cb", "/a%5Cb", EncodedBackslash},
		{"/100%25", "/100%25", EncodedPercent},
		{"/100%25%20off", "/100%25%20off", EncodedPercent},
		{"/a%252fb", "/a%252fb", EncodedPercent | EncodedSlash},
		{"/a%25255cb", "/a%25255cb", EncodedPercent | EncodedBackslash},
		{"/a%253bb", "/a%253bb", EncodedPercent | Semicolon},
		{"/a;v=1/b", "/a;v=1/b", Semicolon},
		{"/a%3Bv/b", "/a%3Bv/b", Semicolon},
		{"/a;", "/a;", Semicolon},
		{"/a//b", "/a//b", EmptySegment},
		{"/a//", "/a//", EmptySegment},
		{"/a?b;c", "/a?b;c", QuerySemicolon},
		{"/a?b={\"x\":1}", "/a?b={\"x\":1}", QueryLoose},
		{"/a?b=100%", "/a?b=100%", QueryLoose},
		{"/a?b=%zz", "/a?b=%zz", QueryLoose},
		{"/a?b|c^d`e\\f", "/a?b|c^d`e\\f", QueryLoose},
		{"/a?_method=DELETE", "/a?_method=DELETE", MethodParameter},
		{"/a?b&%5FMethod=put", "/a?b&%5FMethod=put", MethodParameter},
		{"/a?.method=put", "/a?.method=put", MethodParameter}, // PHP reads a dot as an underscore
		{"/a?_method[]=put", "/a?_method[]=put", MethodParameter},
		{"/a?method=a&x_method=b&b=_method&_methods", "/a?method=a&x_method=b&b=_method&_methods", 0},
		{"/%EF%BC%8Fx", "/%EF%BC%8Fx", 0}, // a full-width slash is a letter like any other unless it makes a dot segment
		{"http://api.example.com/a%62?c", "/ab?c", 0},
		{"HTTPS://API.example.com/a", "/a", 0},
		{"http://api.example.com", "/", 0},
		{"http://api.example.com?x", "/?x", 0},
	} {
		q := accept(t, compile(t, Options{}), head(c.target))
		if got := string(q.Target()); got != c.want {
			t.Errorf("%s: forwarded as %s, want %s", c.target, got, c.want)
		}
		if q.Irregular != c.irregular {
			t.Errorf("%s: irregular %v, want %v", c.target, q.Irregular, c.irregular)
		}
		if q.Plain != !strings.Contains(string(q.Path), "%") {
			t.Errorf("%s: plain %v", c.target, q.Plain)
		}
		if got := string(q.TargetWithCredentials()); got != c.want {
			t.Errorf("%s: observed as %s, want %s", c.target, got, c.want)
		}
	}
}

// Shapes by which the rules of gateways were walked around, from their advisories.
func TestConfusingTargetIsRefused(t *testing.T) {
	for _, c := range []struct {
		target string
		want   Verdict
	}{
		// dot segments
		{"/./", DotSegment},
		{"/.", DotSegment},
		{"/..", DotSegment},
		{"/a/../b", DotSegment},
		{"/a/./b", DotSegment},
		{"/a/..", DotSegment},
		{"/public/../admin?x=/", DotSegment},
		{"/%2e%2e/", DotSegment},
		{"/%2e%2E/", DotSegment},
		{"/.%2e/", DotSegment},
		{"/%2E./", DotSegment},
		{"/%2e", DotSegment},
		{"/admin/..;/x", DotSegment},
		{"/admin/..;x=y/x", DotSegment},
		{"/admin/..;", DotSegment},
		{"/a/.;/b", DotSegment},
		{"/a/%2e%2e;/b", DotSegment},
		{"/a/..%3b/b", DotSegment},
		{"/a/..%3Bx/b", DotSegment},
		{"/a/..%2fb", DotSegment},
		{"/a%2f..%2fb", DotSegment},
		{"/a%2F%2e%2e", DotSegment},
		{"/a/..%5cb", DotSegment},
		{"/a%5c..%5cb", DotSegment},
		{"/a%5C%2e%2E%5C", DotSegment},
		{"/a/..%20/b", DotSegment},
		{"/a/..%3fx", DotSegment},
		{"/a/..%23x", DotSegment},
		{"/a/%20../b", DotSegment},
		{"/a/.%20./b", DotSegment},
		{"/a/..%C2%A0/b", DotSegment},
		// double encoding
		{"/%252e%252e/", DotSegment},
		{"/%252e/", DotSegment},
		{"/.%252e/", DotSegment},
		{"/%25%32%65%25%32%65/", DotSegment},
		{"/%2525252e%25252e/", DotSegment},
		{"/a%252f..%252fb", DotSegment},
		{"/a/..%255cb", DotSegment},
		{"/a/..%253b/b", DotSegment},
		{"/a%2500", EncodedControl},
		{"/a%250d%250ab", EncodedControl},
		{"/a%25c0%25ae", BadUTF8},
		{"/a%25c1%259c", BadUTF8},
		{"/a%251f", EncodedControl},
		{"/a%257f", EncodedControl},
		// other alphabets
		{"/%EF%BC%8E%EF%BC%8E/", DotSegment},
		{"/%ef%bc%8e./", DotSegment},
		{"/a%EF%BC%8F..%EF%BC%8Fb", DotSegment},
		{"/..%E2%88%95b", DotSegment},
		{"/a%EF%BC%BC..", DotSegment},
		{"/%E2%80%A5/x", DotSegment},
		{"/%e2%80%a4%e2%80%a4/x", DotSegment},
		{"/..%EF%BC%9Bx/y", DotSegment},
		{"/..%E2%81%84b", DotSegment},
		{"/a%E2%88%96..", DotSegment},
		{"/a%EF%B9%A8..", DotSegment},
		{"/%EF%B9%92./x", DotSegment},
		{"/..%E3%80%80/b", DotSegment},
		// broken encodings
		{"/%c0%ae%c0%ae/", BadUTF8},
		{"/%c0%af", BadUTF8},
		{"/%e0%80%af", BadUTF8},
		{"/%f0%80%80%ae", BadUTF8},
		{"/%ed%a0%80", BadUTF8},
		{"/%f4%90%80%80", BadUTF8},
		{"/%ff", BadUTF8},
		{"/%80", BadUTF8},
		{"/%C3", BadUTF8},
		{"/%C3a%A9", BadUTF8},
		{"/%C3%", BadUTF8},
		{"/%C3%zz", BadUTF8},
		{"/%C3%8z", BadUTF8},
		{"/%u002e%u002e/", BadPercent},
		{"/%uff0e", BadPercent},
		{"/%", BadPercent},
		{"/%2", BadPercent},
		{"/%2/e", BadPercent},
		{"/%g0", BadPercent},
		{"/%%32%65", BadPercent},
		{"/%+e", BadPercent},
		{"/a%00", EncodedControl},
		{"/a%00.html", EncodedControl},
		{"/a%0d%0aX:y", EncodedControl},
		{"/a%09b", EncodedControl},
		{"/a%1f", EncodedControl},
		{"/a%7f", EncodedControl},
		{"/a%C2%85", EncodedControl},
		{"/a%C2%9f", EncodedControl},
		// raw bytes
		{"/a\\b", Backslash},
		{"/\\example.com", Backslash},
		{"/..\\admin", Backslash},
		{"/a b", ByteOutsideGrammar},
		{"/a\tb", ByteOutsideGrammar},
		{"/a\x00b", ByteOutsideGrammar},
		{"/a\nb", ByteOutsideGrammar},
		{"/a\x7fb", ByteOutsideGrammar},
		{"/caf\xc3\xa9", ByteOutsideGrammar},
		{"/a\xffb", ByteOutsideGrammar},
		{"/a[b]", ByteOutsideGrammar},
		{"/a{b}", ByteOutsideGrammar},
		{"/a|b", ByteOutsideGrammar},
		{"/a\"b<c>d^e`", ByteOutsideGrammar},
		{"/a#b", Fragment},
		{"/a?b#c", Fragment},
		{"/#", Fragment},
		{"/a?b c", BadQueryByte},
		{"/a?b\tc", BadQueryByte},
		{"/a?b\x00", BadQueryByte},
		{"/a?caf\xc3\xa9", BadQueryByte},
		{"/a?\x7f", BadQueryByte},
		// forms
		{"//", DoubleLeadingSlash},
		{"//evil.example/a", DoubleLeadingSlash},
		{"///a", DoubleLeadingSlash},
		{"http://api.example.com//a", DoubleLeadingSlash},
		{"", BadTargetForm},
		{"a", BadTargetForm},
		{"admin/x", BadTargetForm},
		{"?a", BadTargetForm},
		{"%2fadmin", BadTargetForm},
		{"api.example.com:443", BadTargetForm},
		{"ftp://api.example.com/a", BadTargetForm},
		{"http:/a", BadTargetForm},
		{"http:///a", BadTargetForm},
		{"http://", BadTargetForm},
		{"javascript://api.example.com/a", BadTargetForm},
		{"*", BadAsterisk},
		{"**", BadTargetForm},
		{"*/", BadTargetForm},
		{"http://api.example.com#x", Fragment},
		{"http://evil.example/a", HostDiffers},
		{"http://api.example.com:80/a", HostDiffers},
		{"http://api.example.com@evil.example/a", HostDiffers},
		{"http://user:pass@api.example.com/a", HostDiffers},
		{"http://api.example.com\\@evil.example/a", HostDiffers},
		{"/" + strings.Repeat("a", 8192), TargetTooLong},
	} {
		var q Request
		if v := compile(t, Options{}).Canonicalize(&q, head(c.target, "Accept: x")); v != c.want {
			t.Errorf("%q: %v (%v), want %v", c.target, v, q.Irregular, c.want)
		}
		if q.Verdict() != c.want {
			t.Errorf("%q: afterwards %v", c.target, q.Verdict())
		}
		nothingIsLeft(t, &q)
	}
}

// "/admin..;/" is a dot segment to nobody, but a backend that cuts ";…" off routes it
// elsewhere: it takes a relaxation by name.
func TestSemicolonAfterDotsNeedsRelaxation(t *testing.T) {
	q := accept(t, compile(t, Options{}), head("/admin..;/"))
	if q.Irregular.Refused(0, false) != Semicolon {
		t.Errorf("irregular %v", q.Irregular)
	}
}

func TestAsteriskGoesWithOptions(t *testing.T) {
	r := compile(t, Options{})
	for _, target := range []string{"*", "http://api.example.com"} {
		h := head(target)
		h.Method = []byte("OPTIONS")
		if q := accept(t, r, h); !q.Asterisk || string(q.Target()) != "*" || string(q.Path) != "*" {
			t.Errorf("%s: %s", target, q.Target())
		}
	}
	for _, target := range []string{"/a", "http://api.example.com/a", "http://api.example.com/", "http://api.example.com?a"} {
		h := head(target)
		h.Method = []byte("OPTIONS")
		if accept(t, r, h).Asterisk {
			t.Errorf("%s is taken for the asterisk", target)
		}
	}
}

func TestTargetIsBounded(t *testing.T) {
	for longest, r := range map[int]*Rules{defaultMaxTargetBytes: compile(t, Options{}), 4: compile(t, Options{MaxTargetBytes: 4})} {
		accept(t, r, head("/"+strings.Repeat("a", longest-1)))
		var q Request
		if v := r.Canonicalize(&q, head("/"+strings.Repeat("a", longest))); v != TargetTooLong {
			t.Errorf("%d bytes: %v", longest+1, v)
		}
	}
}

func TestHTTP2TargetIsNeverAbsolute(t *testing.T) {
	h := head("http://api.example.com/a")
	h.Major, h.Minor = 2, 0
	var q Request
	if v := compile(t, Options{}).Canonicalize(&q, h); v != BadTargetForm {
		t.Error(v)
	}
}

func TestMethodThatNoRuleNamesIsRefused(t *testing.T) {
	r := compile(t, Options{})
	for method, want := range map[string]Verdict{
		"GET": Accepted, "POST": Accepted, "PROPFIND": Accepted, "M-SEARCH": Accepted, "VERSION-CONTROL": Accepted, "ACL": Accepted, "ZAP": Accepted, strings.Repeat("A", 32): Accepted,
		"": BadMethod, "GE T": BadMethod, "GET\t": BadMethod, "GET,POST": BadMethod, "G\x00T": BadMethod, "GÉT": BadMethod,
		"get": UnknownMethod, "Get": UnknownMethod, "*": UnknownMethod, "G!T": UnknownMethod, "0": UnknownMethod, "-GET": UnknownMethod, "_": UnknownMethod, strings.Repeat("A", 33): UnknownMethod,
		"CONNECT": MethodNotAllowed, "TRACE": MethodNotAllowed, "connect": UnknownMethod,
	} {
		h := head("/a")
		h.Method = []byte(method)
		var q Request
		if v := r.Canonicalize(&q, h); v != want {
			t.Errorf("%q: %v, want %v", method, v, want)
		}
	}
}

func TestIrregularNeedsItsOwnRelaxation(t *testing.T) {
	n := 0
	for relaxation := range Relaxations() {
		n++
		if got, ok := RelaxationNamed(relaxation.Name); !ok || got != relaxation.Bit {
			t.Errorf("%s is not found by its name", relaxation.Name)
		}
		if relaxation.Bit.String() != relaxation.Name || relaxation.Bit.Detail() != relaxation.Detail || relaxation.Detail == "" || relaxation.Danger == "" {
			t.Errorf("%s: texts are missing", relaxation.Name)
		}
		if relaxation.Bit.Refused(relaxation.Bit, true) != 0 {
			t.Errorf("%s is refused though relaxed", relaxation.Name)
		}
		if relaxation.Bit != QuerySemicolon && relaxation.Bit.Refused(0, false) != relaxation.Bit {
			t.Errorf("%s is let through where no rule reads the query", relaxation.Name)
		}
		if relaxation.Bit.Refused(^relaxation.Bit, true) != relaxation.Bit {
			t.Errorf("%s is let through by the others", relaxation.Name)
		}
	}
	if n != numIrregularities {
		t.Errorf("%d relaxations", n)
	}
	if _, ok := RelaxationNamed(""); ok {
		t.Error("the empty name relaxes something")
	}
	if QuerySemicolon.Refused(0, false) != 0 || QuerySemicolon.Refused(0, true) == 0 {
		t.Error("a semicolon in the query matters exactly where a rule reads the query")
	}
	if got := (EncodedSlash | Semicolon).String(); got != "encoded_slash,semicolon" {
		t.Error(got)
	}
}

func TestEveryVerdictHasItsTexts(t *testing.T) {
	codes := map[string]int{
		"ok": 200, "bad_request": 400, "method_not_allowed": 405, "uri_too_long": 414, "header_fields_too_large": 431, "not_implemented": 501,
	}
	names := map[string]bool{}
	for v := range numVerdicts {
		if codes[v.Code()] != v.Status() {
			t.Errorf("%v: code %q with status %d", v, v.Code(), v.Status())
		}
		if v.Detail() == "" || v.String() == "" || names[v.String()] {
			t.Errorf("verdict %d: no texts of its own", v)
		}
		names[v.String()] = true
	}
	if numVerdicts.Status() != 400 || numVerdicts.Code() != "bad_request" || numVerdicts.Detail() == "" || numVerdicts.String() != "unread" {
		t.Error("a verdict out of range is no refusal")
	}
}

func TestEqualDecodedReadsOneLevel(t *testing.T) {
	for _, c := range []struct {
		segment, s string
		want       bool
	}{
		{"", "", true}, {"a", "a", true}, {"a", "A", false}, {"a", "", false}, {"", "a", false}, {"ab", "a", false},
		{"%61", "a", true}, {"%2F", "/", true}, {"%2f", "/", true}, {"%252f", "%2f", true}, {"%252f", "/", false},
		{"a+b", "a b", false}, {"a%20b", "a b", true}, {"%", "%", false}, {"%2", "%2", false}, {"%zz", "%zz", false}, {"%zz", "\x00", false}, {"*", "*", true},
		{"%C3%A9", "é", true},
	} {
		if got := EqualDecoded([]byte(c.segment), c.s); got != c.want {
			t.Errorf("EqualDecoded(%q, %q) = %v", c.segment, c.s, got)
		}
	}
}

func FuzzPath(f *testing.F) {
	for _, seed := range []string{
		"/", "/a/b?c=d", "/%61%2e", "/a%2fb", "/a/..;/b", "/%252e%252e/", "/%c0%ae", "/%EF%BC%8E%EF%BC%8E/x", "//x", "/a//b", "/a%5c..%5c",
		"/%25%32%65", "/a;b=c", "/.well-known", "/%E2%82%AC", "*", "http://api.example.com/x", "/a%25%3225e/%2525%32%65", "/..%20", "/%C2%85",
	} {
		f.Add(seed)
	}
	r := compile(f, Options{})
	f.Fuzz(func(t *testing.T, target string) {
		var q Request
		if r.Canonicalize(&q, head(target)) != Accepted || q.Asterisk {
			return
		}
		got := string(q.Target())

		var again Request
		if v := r.Canonicalize(&again, head(got)); v != Accepted || string(again.Target()) != got || again.Irregular != q.Irregular {
			t.Fatalf("%q: canonical form %q is read as %v %q %v", target, got, v, again.Target(), again.Irregular)
		}
		u, err := url.ParseRequestURI(got)
		if err != nil {
			t.Fatalf("%q: net/url refuses %q: %v", target, got, err)
		}
		if u.EscapedPath() != string(q.Path) && u.RawPath != "" {
			t.Fatalf("%q: net/url has path %q, we %q", target, u.EscapedPath(), q.Path)
		}
		if u.RawQuery != string(q.Query) || u.Host != "" || u.User != nil || u.Fragment != "" {
			t.Fatalf("%q: net/url reads %q differently: %#v", target, got, u)
		}
		decoded, ok := AppendDecoded(nil, q.Path)
		if !ok || u.Path != string(decoded) || !EqualDecoded(q.Path, u.Path) {
			t.Fatalf("%q: net/url decodes %q, we %q", target, u.Path, decoded)
		}
		if q.Irregular&(EncodedSlash|EncodedPercent) == 0 && strings.Count(u.Path, "/") != strings.Count(string(q.Path), "/") {
			t.Fatalf("%q: slashes appear by decoding, unflagged", target)
		}
		noDotSegments(t, target, u.Path)
		if strings.HasPrefix(target, "/") {
			original, err := url.ParseRequestURI(target)
			if err != nil || original.Path != u.Path {
				t.Fatalf("%q: decodes to %q before and %q after", target, original.Path, u.Path)
			}
		}
	})
}

// noDotSegments decodes again and again, as no server should, and looks for dot segments each time.
func noDotSegments(t *testing.T, target, path string) {
	t.Helper()
	for {
		for part := range strings.FieldsFuncSeq(path, func(c rune) bool { return c == '/' || c == '\\' }) {
			if name, _, _ := strings.Cut(part, ";"); name == "." || name == ".." {
				t.Fatalf("%q: dot segment in %q", target, path)
			}
		}
		next := decodeLeniently(path)
		if next == path {
			return
		}
		path = next
	}
}

// decodeLeniently leaves broken escapes as they are.
func decodeLeniently(s string) string {
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if b, ok := unhex([]byte(s[i+1 : i+3])); ok {
				out = append(out, b)
				i += 2
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

func FuzzEqualDecoded(f *testing.F) {
	f.Add("a%2fb", "a/b")
	f.Add("%zz", "x")
	f.Add("%25", "%")
	f.Add("a+b", "a b")
	f.Fuzz(func(t *testing.T, segment, s string) {
		want, err := url.PathUnescape(segment)
		got, ok := AppendDecoded([]byte("x"), []byte(segment))
		if ok != (err == nil) || string(got) != "x"+want {
			t.Fatalf("AppendDecoded(%q) = %q %v, want %q %v", segment, got, ok, want, err)
		}
		if EqualDecoded([]byte(segment), s) != (err == nil && want == s) {
			t.Fatalf("EqualDecoded(%q, %q) is wrong", segment, s)
		}
		if err == nil && !EqualDecoded([]byte(segment), want) {
			t.Fatalf("EqualDecoded(%q, %q) is false", segment, want)
		}
		form, err := url.QueryUnescape(segment)
		decoded, ok := AppendFormDecoded([]byte("x"), []byte(segment))
		if ok != (err == nil) || string(decoded) != "x"+form || EqualFormDecoded([]byte(segment), form) != (err == nil) ||
			err != nil && EqualFormDecoded([]byte(segment), segment) {
			t.Fatalf("AppendFormDecoded(%q) = %q %v, want %q %v", segment, decoded, ok, form, err)
		}
	})
}

func TestEveryVerdictIsReached(t *testing.T) {
	reach := map[Verdict]*Head{
		Accepted:           head("/"),
		TargetTooLong:      head("/" + strings.Repeat("a", 8192)),
		TooManyFields:      {Fields: make([]Field, 1<<16)},
		BadFieldName:       head("/", "a b: c"),
		MissingHost:        {Method: []byte("GET"), Target: []byte("/"), Major: 1, Minor: 1},
		RepeatedHost:       head("/", "Host: api.example.com"),
		BadHost:            {Method: []byte("GET"), Target: []byte("/"), Major: 2, Authority: []byte("a@b")},
		HostDiffers:        head("http://b/"),
		BadTargetForm:      head("a"),
		BadAsterisk:        head("*"),
		Fragment:           head("/#"),
		Backslash:          head(`/\`),
		ByteOutsideGrammar: head("/ "),
		BadPercent:         head("/%"),
		EncodedControl:     head("/%00"),
		BadUTF8:            head("/%ff"),
		DotSegment:         head("/.."),
		DoubleLeadingSlash: head("//"),
		BadQueryByte:       head("/? "),
	}
	for v, method := range map[Verdict]string{BadMethod: "", UnknownMethod: "get", MethodNotAllowed: "TRACE"} {
		reach[v] = head("/")
		reach[v].Method = []byte(method)
	}
	r := compile(t, Options{})
	for v := range numVerdicts {
		var q Request
		if v == Unread {
			if q.Verdict() != Unread {
				t.Error("the zero Request has been read")
			}
		} else if h := reach[v]; h == nil {
			t.Errorf("%v: no case", v)
		} else if got := r.Canonicalize(&q, h); got != v {
			t.Errorf("%v, want %v", got, v)
		}
	}
}
