package admin_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"tokenward/admin"
	"tokenward/tokenstore"
)

func parse(t *testing.T, body string) *admin.Object {
	t.Helper()
	o, err := admin.ParseObject([]byte(body))
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return o
}

func TestObjectReadsWhatIsThere(t *testing.T) {
	o := parse(t, `{"s":"a\ud83d\ude00","n":9007199254740991,"f":2.5e1,"b":true,"t":"2027-01-01T00:00:00Z","o":{"x":0},"l":["a","b"],"z":null}`)
	s, _ := o.Text("s")
	n, _ := o.Number("n")
	f, _ := o.Float("f")
	b, _ := o.Bool("b")
	at, _ := o.Time("t")
	inner, _ := o.Object("o")
	x, ok := inner.Number("x")
	l, _ := o.Texts("l")
	if s != "a😀" || n != 1<<53-1 || f != 25 || !b || at.Year() != 2027 || x != 0 || !ok || strings.Join(l, "") != "ab" || !o.Null("z") || o.Null("s") {
		t.Error(s, n, f, b, at, x, ok, l)
	}
	if faults := o.Faults(); len(faults) != 0 {
		t.Error(faults)
	}
	if _, ok := o.Text("absent"); ok || o.Has("absent") || o.Null("absent") || len(o.Faults()) != 0 {
		t.Error("absent")
	}
}

func TestObjectNamesWhatIsWrong(t *testing.T) {
	for name, tt := range map[string]struct {
		body string
		read func(o *admin.Object)
		want string
	}{
		"not a string":      {`{"a":1}`, func(o *admin.Object) { o.Text("a") }, "a must be a string"},
		"null":              {`{"a":null}`, func(o *admin.Object) { o.Text("a") }, "a must be a string"},
		"not a number":      {`{"a":"1"}`, func(o *admin.Object) { o.Number("a") }, "a must be a whole number"},
		"a fraction":        {`{"a":1.0}`, func(o *admin.Object) { o.Number("a") }, "a must be a whole number from 0 to 2^53-1"},
		"an exponent":       {`{"a":1e1}`, func(o *admin.Object) { o.Number("a") }, "a must be a whole number from 0 to 2^53-1"},
		"negative zero":     {`{"a":-0}`, func(o *admin.Object) { o.Number("a") }, "a must be a whole number from 0 to 2^53-1"},
		"2^53":              {`{"a":9007199254740992}`, func(o *admin.Object) { o.Number("a") }, "a must be a whole number from 0 to 2^53-1"},
		"not a bool":        {`{"a":"true"}`, func(o *admin.Object) { o.Bool("a") }, "a must be true or false"},
		"not an object":     {`{"a":[]}`, func(o *admin.Object) { o.Object("a") }, "a must be an object"},
		"not a list":        {`{"a":{}}`, func(o *admin.Object) { o.List("a") }, "a must be an array"},
		"inside a list":     {`{"a":["x",{"b":1}]}`, func(o *admin.Object) { o.Texts("a") }, "a/1 must be a string"},
		"not a time":        {`{"a":"tomorrow"}`, func(o *admin.Object) { o.Time("a") }, "a must be an RFC 3339 date-time with a time zone, such as 2027-01-31T12:00:00Z"},
		"unknown":           {`{"a":1,"b":2}`, func(o *admin.Object) { o.Number("a") }, "b is not known"},
		"unknown inside":    {`{"a":{"b":2}}`, func(o *admin.Object) { o.Object("a") }, "a/b is not known"},
		"another case":      {`{"A":1}`, func(o *admin.Object) { o.Number("a") }, "A is not known"},
		"twice":             {`{"a":1,"a":1}`, func(o *admin.Object) { o.Number("a") }, "a is given twice"},
		"twice by escape":   {`{"a":1,"\u0061":1}`, func(o *admin.Object) { o.Number("a") }, "a is given twice"},
		"broken UTF-8":      {"{\"a\":\"\xed\xa0\x80\"}", func(o *admin.Object) { o.Text("a") }, "a must be valid UTF-8"},
		"half a pair":       {`{"a":"\udc00"}`, func(o *admin.Object) { o.Text("a") }, "a must be valid UTF-8"},
		"half, then more":   {`{"a":"\ud800\u0041"}`, func(o *admin.Object) { o.Text("a") }, "a must be valid UTF-8"},
		"half at the end":   {`{"a":"\\\ud800"}`, func(o *admin.Object) { o.Text("a") }, "a must be valid UTF-8"},
		"a replacement":     {`{"a":"\ufffd\\ud800�"}`, func(o *admin.Object) { o.Text("a") }, ""},
		"a name with marks": {`{"a/b~":1}`, func(*admin.Object) {}, "a~1b~0 is not known"},
	} {
		o := parse(t, tt.body)
		tt.read(o)
		if got := o.Faults().Error(); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestUnreadableBodyIsMalformed(t *testing.T) {
	for name, body := range map[string]string{
		"cut": `{"a":`, "list": `[]`, "word": `null`, "number": `1`, "twice": `{}{}`, "behind": `{} x`, "comma": `{"a":1,}`,
		"single quotes": `{'a':1}`, "no quotes": `{a:1}`, "comment": `{}//`, "NaN": `{"a":NaN}`, "zero first": `{"a":01}`,
		"plus": `{"a":+1}`, "control": "{\"a\":\"\x01\"}", "bom": "\ufeff{}", "nul": "{}\x00",
		"deep": strings.Repeat(`{"a":`, 17) + "1" + strings.Repeat("}", 17), "deep lists": `{"a":` + strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000) + "}",
	} {
		if _, err := admin.ParseObject([]byte(body)); err == nil || kindOf(err) != admin.KindMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, body := range []string{"", " \r\n\t ", "{}", strings.Repeat(`{"a":`, 16) + "1" + strings.Repeat("}", 16)} {
		if _, err := admin.ParseObject([]byte(body)); err != nil {
			t.Errorf("%q: %v", body, err)
		}
	}
}

func TestFaultsAreBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"":0`)
	for i := range 5000 {
		fmt.Fprintf(&b, `,"%d":0`, i)
	}
	fmt.Fprintf(&b, `,"%s":0}`, strings.Repeat("ä", 1000))
	if n := len(parse(t, b.String()).Faults()); n > 32 {
		t.Errorf("%d faults in one answer", n)
	}
	o := parse(t, `{"`+strings.Repeat("ä", 1000)+`":0}`)
	if f := o.Faults(); len(f) != 1 || len(f[0].Field) > 100 || !utf8.ValidString(f[0].Field) {
		t.Error(f)
	}
}

func TestBodiesThatClaimToBeSomethingElse(t *testing.T) {
	read := func(contentType, encoding, body string) error {
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.Header.Set("Content-Type", contentType)
		r.Header.Set("Content-Encoding", encoding)
		_, err := admin.ReadJSON(httptest.NewRecorder(), r)
		return err
	}
	for _, media := range []string{"", "application/json", "application/json; charset=utf-8", "application/vnd.api+json", "application/merge-patch+json", "text/json", "APPLICATION/JSON"} {
		if err := read(media, "", "{}"); err != nil {
			t.Errorf("%q: %v", media, err)
		}
	}
	for _, media := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "application/json;;", "application/xml"} {
		if err := read(media, "", "{}"); err == nil || kindOf(err) != admin.KindMediaType {
			t.Errorf("%q: %v", media, err)
		}
		if err := read(media, "", ""); err != nil {
			t.Errorf("%q without a body: %v", media, err)
		}
	}
	if err := read("application/json", "gzip", "{}"); err == nil || kindOf(err) != admin.KindMediaType {
		t.Errorf("encoded: %v", err)
	}
}

// TestBodyThatClaimsTwoThingsIsRefused: what stands before us may go by the other.
func TestBodyThatClaimsTwoThingsIsRefused(t *testing.T) {
	for _, c := range []struct {
		header http.Header
		want   admin.Kind
	}{
		{http.Header{"Content-Type": {"application/json", "text/plain"}}, admin.KindMalformed},
		{http.Header{"Content-Type": {"text/plain", "application/json"}}, admin.KindMalformed},
		{http.Header{"Content-Type": {"application/json", "application/json"}}, admin.KindMalformed},
		{http.Header{"Content-Type": {"", "application/json"}}, admin.KindMalformed},
		{http.Header{"Content-Type": {"application/json, text/plain"}}, admin.KindMediaType},
		{http.Header{"Content-Encoding": {"identity", "gzip"}}, admin.KindMediaType},
	} {
		r := httptest.NewRequest("POST", "/", strings.NewReader("{}"))
		r.Header = c.header
		if _, err := admin.ReadJSON(httptest.NewRecorder(), r); err == nil || kindOf(err) != c.want {
			t.Errorf("%v: %v, want %v", c.header, err, c.want)
		}
	}
}

func TestBodyThatBreaksOffIsMalformed(t *testing.T) {
	r := httptest.NewRequest("POST", "/", io.MultiReader(strings.NewReader("{"), brokenReader{}))
	if _, err := admin.ReadJSON(httptest.NewRecorder(), r); err == nil || kindOf(err) != admin.KindMalformed {
		t.Error(err)
	}
	whole := httptest.NewRequest("POST", "/", strings.NewReader(strings.Repeat(" ", admin.MaxBodyBytes)))
	if _, err := admin.ReadJSON(httptest.NewRecorder(), whole); err != nil {
		t.Errorf("a body of just the bound: %v", err)
	}
}

// A client that stalls is told to send it again, not that it wrote something wrong.
func TestBodyThatStallsIsATimeout(t *testing.T) {
	r := httptest.NewRequest("POST", "/", io.MultiReader(strings.NewReader("{"), stalledReader{}))
	if _, err := admin.ReadJSON(httptest.NewRecorder(), r); err == nil || kindOf(err) != admin.KindBodyTimeout {
		t.Error(err)
	}
}

type stalledReader struct{}

func (stalledReader) Read([]byte) (int, error) {
	return 0, &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

// FuzzParseObject compares the strict reader with encoding/json: what it takes,
// encoding/json takes as well, with the same values, and every name that was not
// asked for is told.
func FuzzParseObject(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"a":1,"b":"x","c":[1,null,{"d":true}],"e":{"f":-1.5e3}}`, `{"a":1,"a":2}`, `{"a":"\ud83d\ude00\u0000"}`,
		`{"a":"\ud800"}`, "{\"a\":\"\xff\"}", `[`, ` `, `{"a":{"a":{"a":{"a":{}}}}}`, `{"\u0061":1}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		o, err := admin.ParseObject(body)
		if err != nil {
			if kindOf(err) != admin.KindMalformed {
				t.Fatal(err)
			}
			return
		}
		want := map[string]any{}
		if strings.TrimSpace(string(body)) != "" {
			if err := json.Unmarshal(body, &want); err != nil {
				if _, ok := errors.AsType[*json.UnmarshalTypeError](err); !ok { // numbers beyond float64
					t.Fatalf("taken, but encoding/json says %v", err)
				}
				return
			}
		}
		if len(o.Names()) != len(want) {
			t.Errorf("names %q, want %v", o.Names(), want)
		}
		clean := parse(t, string(body))
		unknown := len(clean.Faults())
		if len(want) > 0 && unknown == 0 {
			t.Error("nobody asked for the names, and nobody was told")
		}
		if len(clean.Faults()) >= 32 || slices.ContainsFunc(clean.Faults(), func(f tokenstore.FieldFault) bool { return f.Detail == "is given twice" }) {
			return // encoding/json goes by the last of those that are given twice
		}
		for name, v := range want {
			if text, ok := v.(string); ok && utf8.Valid(body) {
				if got, ok := o.Text(name); !ok || got != text {
					t.Errorf("%q: %q, want %q", name, got, text)
				}
			}
		}
	})
}
