package identity

import (
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"

	"tokenward/tokenstore"
)

func defaults(t testing.TB) *Headers {
	t.Helper()
	h, err := New(DefaultNames())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// values returns what h says of tok, by name, without what it does not say.
func values(h *Headers, tok *tokenstore.Token) map[string]string {
	said := make(map[string]string)
	for i, name := range h.Names() {
		if value := h.AppendValue([]byte("before "), i, tok); string(value) != "before " {
			said[name] = strings.TrimPrefix(string(value), "before ")
		}
	}
	return said
}

func TestHeadersDescribeTheToken(t *testing.T) {
	tok := &tokenstore.Token{ID: 70, Account: 42, Owner: 30, Name: "Zoë 100%!~\x7f", Scopes: []string{"a", "b:*"},
		Resources: tokenstore.Resources{Grants: []tokenstore.Grant{{Type: "card", ID: "a,b:c\nd", Level: tokenstore.LevelRead}, {Type: "account", ID: "*", Level: tokenstore.LevelWrite}}}}
	want := map[string]string{
		"X-Token-Id": "70", "X-Token-Account": "42", "X-Token-Owner": "30", "X-Token-Name": "Zo%C3%AB%20100%25!~%7F",
		"X-Token-Scopes": "a b:*", "X-Token-Resources": "card:a%2Cb%3Ac%0Ad:read,account:*:write",
	}
	if got := values(defaults(t), tok); !maps.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	names := []string{"X-Token-Id", "X-Token-Account", "X-Token-Owner", "X-Token-Name", "X-Token-Scopes", "X-Token-Resources"}
	if got := defaults(t).Names(); !slices.Equal(got, names) {
		t.Errorf("what a client must not send: %q", got)
	}
}

func TestAbsentValueSendsNoHeader(t *testing.T) {
	got := values(defaults(t), &tokenstore.Token{ID: 1, Owner: 1, Name: "n"})
	want := map[string]string{"X-Token-Id": "1", "X-Token-Account": "0", "X-Token-Owner": "1", "X-Token-Name": "n"}
	if !maps.Equal(got, want) {
		t.Errorf("of a token without scopes and resources it says %q", got)
	}
	var none *Headers
	if none.Names() != nil {
		t.Error("nil headers say something")
	}
}

func TestUnrestrictedIsSaidOutLoud(t *testing.T) {
	if got := values(defaults(t), &tokenstore.Token{ID: 1, Resources: tokenstore.Resources{All: true}})["X-Token-Resources"]; got != "all" {
		t.Errorf("resources: %q", got)
	}
}

func TestNamesWithAMeaningOfTheirOwnAreRefused(t *testing.T) {
	longest := "X-" + strings.Repeat("a", 62)
	for _, good := range []string{longest, "x-a", "X-AZ-az-09"} {
		if h, err := New(Names{ID: good}); err != nil || !slices.Equal(h.Names(), []string{good}) {
			t.Errorf("%q alone: %v, %v", good, h, err)
		}
	}
	for key, names := range map[string]Names{
		"id": {ID: "Host"}, "account": {Account: "Host"}, "owner": {Owner: "Host"}, "name": {Name: "Host"}, "scopes": {Scopes: "Host"}, "resources": {Resources: "Host"},
	} {
		if _, err := New(names); err == nil || !strings.Contains(err.Error(), "header "+key+":") {
			t.Errorf("%s: %v", key, err)
		}
	}
	for _, bad := range []string{"Host", "Authorization", "X-Forwarded-For", "x-request-id", "X Y", "X_", "X-", "X-A\r\nB", "X-Ä", longest + "a", "X-A_B", "X-A.B", "X-/", "X-:", "X-@", "X-[", "X-`", "X-{"} {
		if _, err := New(Names{ID: bad}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if _, err := New(Names{ID: "X-A", Name: "x-a"}); err == nil {
		t.Error("one name for two values was accepted")
	}
}

func FuzzNameIsOneHeaderValue(f *testing.F) {
	for _, s := range []string{"a", " a ", "ä\r\nX-Token-Id: 1", "%41", "\x00"} {
		f.Add(s)
	}
	h := defaults(f)
	f.Fuzz(func(t *testing.T, name string) {
		said := values(h, &tokenstore.Token{ID: 1, Name: name})
		for header, value := range said {
			for _, c := range []byte(value) {
				if c <= ' ' || c >= 0x7f {
					t.Fatalf("%s: %q", header, value)
				}
			}
		}
		if back, err := url.PathUnescape(said["X-Token-Name"]); err != nil || back != name {
			t.Fatalf("%q reads back as %q, %v", name, back, err)
		}
	})
}

func BenchmarkHeaders(b *testing.B) {
	h := defaults(b)
	tok := &tokenstore.Token{ID: 7, Account: 42, Owner: 3, Name: "billing worker", Scopes: []string{"accounts", "cards"}, Resources: tokenstore.Resources{All: true}}
	names := len(h.Names())
	var scratch []byte
	b.ReportAllocs()
	for b.Loop() {
		scratch = scratch[:0]
		for i := range names {
			scratch = h.AppendValue(scratch, i, tok)
		}
	}
}
