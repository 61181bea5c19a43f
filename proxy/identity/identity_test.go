package identity

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"tokenward/proxy/http1"
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

func TestFieldsDescribeTheToken(t *testing.T) {
	tok := &tokenstore.Token{ID: 70, Account: 42, Owner: 30, Name: "Zoë 100%!~\x7f", Scopes: []string{"a", "b:*"},
		Resources: tokenstore.Resources{Grants: []tokenstore.Grant{{Type: "card", ID: "a,b:c\nd", Level: tokenstore.LevelRead}, {Type: "account", ID: "*", Level: tokenstore.LevelWrite}}}}
	fields, _ := defaults(t).Append(nil, nil, tok)
	want := map[string]string{
		"X-Token-Id": "70", "X-Token-Account": "42", "X-Token-Owner": "30", "X-Token-Name": "Zo%C3%AB%20100%25!~%7F",
		"X-Token-Scopes": "a b:*", "X-Token-Resources": "card:a%2Cb%3Ac%0Ad:read,account:*:write",
	}
	for _, f := range fields {
		if want[f.Name.String()] != string(f.Value) {
			t.Errorf("%s: %q, want %q", f.Name, f.Value, want[f.Name.String()])
		}
		delete(want, f.Name.String())
	}
	if len(want) > 0 {
		t.Errorf("not sent: %v", want)
	}
	names := []string{"X-Token-Id", "X-Token-Account", "X-Token-Owner", "X-Token-Name", "X-Token-Scopes", "X-Token-Resources"}
	if got := defaults(t).Names(); !slices.Equal(got, names) {
		t.Errorf("what a client must not send: %q", got)
	}
}

func TestAbsentValueSendsNoField(t *testing.T) {
	fields, _ := defaults(t).Append(nil, nil, &tokenstore.Token{ID: 1, Owner: 1, Name: "n"})
	for _, f := range fields {
		if n := f.Name.String(); n == "X-Token-Scopes" || n == "X-Token-Resources" {
			t.Errorf("%s sent as %q for a token that has none", f.Name, f.Value)
		}
	}
	var none *Headers
	if fields, scratch := none.Append([]http1.NamedField{{}}, []byte("x"), &tokenstore.Token{ID: 1}); len(fields) != 1 || string(scratch) != "x" || none.Names() != nil {
		t.Error("nil headers sent something")
	}
}

func TestUnrestrictedIsSaidOutLoud(t *testing.T) {
	fields, _ := defaults(t).Append(nil, nil, &tokenstore.Token{ID: 1, Resources: tokenstore.Resources{All: true}})
	if last := fields[len(fields)-1]; last.Name.String() != "X-Token-Resources" || string(last.Value) != "all" {
		t.Errorf("%s: %s", last.Name, last.Value)
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
		fields, _ := h.Append(nil, nil, &tokenstore.Token{ID: 1, Name: name})
		for _, one := range fields {
			for _, c := range one.Value {
				if c <= ' ' || c >= 0x7f {
					t.Fatalf("%s: %q", one.Name, one.Value)
				}
			}
			if one.Name.String() == "X-Token-Name" {
				if back, err := url.PathUnescape(string(one.Value)); err != nil || back != name {
					t.Fatalf("%q reads back as %q, %v", name, back, err)
				}
			}
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	h := defaults(b)
	tok := &tokenstore.Token{ID: 7, Account: 42, Owner: 3, Name: "billing worker", Scopes: []string{"accounts", "cards"}, Resources: tokenstore.Resources{All: true}}
	var fields []http1.NamedField
	var scratch []byte
	b.ReportAllocs()
	for b.Loop() {
		fields, scratch = h.Append(fields[:0], scratch[:0], tok)
	}
}
