package audit

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 123, time.UTC)

// secretText has a secret's form.
const secretText = "tw_0123456789abcdefghijABCDEFGHIJ01234567"

func event(id uint64) Event {
	return Event{Time: noon, Node: "n1", Verb: "create", Outcome: Success, Target: Target{Token: id, Account: 3}}
}

// fullEvent has a value in every field.
func fullEvent() Event {
	token := Token{
		State: "active", Name: "deploy <bot> & co", Account: 3, Owner: 4, Creator: 1, Scopes: []string{"accounts", "cards-*"},
		Sources:   Sources{Any: true, Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Deny: []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}},
		Resources: Resources{All: true, Grants: []Grant{{"card", "*", "read"}}},
		NotBefore: At(noon), Expires: Expiry{Never: true, At: At(noon)},
		Limits:  []Limit{{Kind: "rate", Count: 10, Per: "second", Burst: 20}},
		Secrets: []Secret{{Number: 2, Created: At(noon), Ends: At(noon)}},
	}
	return Event{
		Time: noon, Node: "n1", Request: "r1", Verb: "update", Outcome: Refusal, Reason: "may not widen",
		Actor:  Actor{Token: 1, Name: "root", Account: 2, Owner: 3, Address: netip.MustParseAddr("192.0.2.7"), Via: "native"},
		Target: Target{Token: 9, Account: 3, Owner: 4}, Before: &token, After: &token,
		Denied: Denied{Count: 5, Since: At(noon), Route: "GET /a"},
	}
}

func mustEncode(t testing.TB, e Event) []byte {
	t.Helper()
	b, err := Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEventSurvivesEncodingWhole(t *testing.T) {
	want := fullEvent()
	noZeroField(t, reflect.ValueOf(want), "Event")
	b := mustEncode(t, want)
	got, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// noZeroField fails if a field of the full event was forgotten.
func noZeroField(t *testing.T, v reflect.Value, name string) {
	t.Helper()
	if v.IsZero() {
		t.Errorf("%s is not set in the full event", name)
	}
	switch {
	case v.Kind() == reflect.Pointer:
		noZeroField(t, v.Elem(), name)
	case v.Kind() == reflect.Slice:
		noZeroField(t, v.Index(0), name+"[0]")
	case v.Kind() == reflect.Struct && v.Type().PkgPath() == reflect.TypeFor[Event]().PkgPath() && v.Type() != reflect.TypeFor[Moment]():
		for i := range v.NumField() {
			noZeroField(t, v.Field(i), name+"."+v.Type().Field(i).Name)
		}
	}
}

func TestEventWithoutWhatItMustHaveIsRefused(t *testing.T) {
	huge := strings.Repeat("a", maxText)
	tests := map[string]func(*Event){
		"no time":             func(e *Event) { e.Time = time.Time{} },
		"time out of range":   func(e *Event) { e.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"no verb":             func(e *Event) { e.Verb = "" },
		"verb with a space":   func(e *Event) { e.Verb = "create token" },
		"verb in upper case":  func(e *Event) { e.Verb = "Create" },
		"verb begins with 1":  func(e *Event) { e.Verb = "1create" },
		"verb too long":       func(e *Event) { e.Verb = Word(strings.Repeat("a", 65)) },
		"no outcome":          func(e *Event) { e.Outcome = 0 },
		"unknown outcome":     func(e *Event) { e.Outcome = Failure + 1 },
		"via with a quote":    func(e *Event) { e.Actor.Via = `na"tive` },
		"state with a line":   func(e *Event) { e.After = &Token{State: "a\nb"} },
		"limit without kind":  func(e *Event) { e.After = &Token{Limits: []Limit{{Count: 1}}} },
		"limit with odd unit": func(e *Event) { e.After = &Token{Limits: []Limit{{Kind: "rate", Per: "Week"}}} },
		"too large": func(e *Event) {
			e.After = new(Token)
			for range MaxEventBytes/maxText + 1 {
				e.After.Scopes = append(e.After.Scopes, huge)
			}
		},
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			e := event(1)
			spoil(&e)
			if b, err := Encode(e); err == nil {
				t.Errorf("encoded as %.200s", b)
			}
		})
	}
}

func TestSecretInAnyTextIsMasked(t *testing.T) {
	for _, text := range []string{
		secretText,
		"Bearer " + secretText + ", and so on",
		secretText + secretText,
		secretText + "cd_" + secretText[3:],
		secretText + "_" + secretText[3:],
		"api_" + strings.Repeat("x", 200),
		strings.Repeat("long ", 203) + secretText, // the cut would go through it
	} {
		e := fullEvent()
		e.Node, e.Request, e.Reason, e.Actor.Name = text, text, text, text
		e.Actor.Address = netip.MustParseAddr("fe80::1").WithZone(text)
		tok := Token{Name: text, Scopes: []string{text}, Resources: Resources{Grants: []Grant{{text, text, text}}}}
		e.Before, e.After = &tok, &tok
		b := mustEncode(t, e)
		if bytes.Contains(b, []byte("0123456789")) || bytes.Contains(b, []byte("xxxxxxxxxxx")) {
			t.Errorf("secret in %q shows in %s", text, b)
		}
		if tok.Name != text || tok.Scopes[0] != text {
			t.Error("the caller's token was changed")
		}
		if _, err := Decode(b); err != nil {
			t.Error(err)
		}
	}
}

func TestFreeTextCannotBreakTheLine(t *testing.T) {
	e := event(1)
	e.Reason = "a\nb\r\x00\x1b[31m\u2028\u0085\xff c\u00a0d"
	e.Actor.Name = strings.Repeat("é", maxText)
	got, err := Decode(mustEncode(t, e))
	if err != nil {
		t.Fatal(err)
	}
	if want := "a\uFFFDb\uFFFD\uFFFD\uFFFD[31m\uFFFD\uFFFD\uFFFD c\uFFFDd"; got.Reason != want {
		t.Errorf("reason %q, want %q", got.Reason, want)
	}
	if n := len(got.Actor.Name); n > maxText || n < maxText-5 || !strings.HasSuffix(got.Actor.Name, "é…") {
		t.Errorf("name of %d bytes, ends in %q", n, got.Actor.Name[n-10:])
	}
}

func TestDecodeTakesOnlyWhatEncodeWrites(t *testing.T) {
	good := string(mustEncode(t, event(7)))
	if _, err := Decode([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty":               "",
		"null":                "null",
		"array":               "[]",
		"empty object":        "{}",
		"cut":                 good[:len(good)-1],
		"trailing bytes":      good + "x",
		"trailing object":     good + good,
		"trailing space":      good + " ",
		"leading space":       " " + good,
		"inner space":         strings.Replace(good, `,"verb"`, `, "verb"`, 1),
		"unknown field":       strings.Replace(good, `"verb"`, `"x":1,"verb"`, 1),
		"doubled field":       strings.Replace(good, `"verb"`, `"verb":"revoke","verb"`, 1),
		"other case":          strings.Replace(good, `"verb"`, `"Verb"`, 1),
		"escaped letter":      strings.Replace(good, `"create"`, `"\u0063reate"`, 1),
		"zero given":          strings.Replace(good, `"token":7`, `"token":7,"owner":0`, 1),
		"other time zone":     strings.Replace(good, `123Z"`, `123+00:00"`, 1),
		"outcome as a number": strings.Replace(good, `"success"`, `1`, 1),
		"unknown outcome":     strings.Replace(good, `"success"`, `"fine"`, 1),
		"secret":              strings.Replace(good, `"n1"`, `"`+secretText+`"`, 1),
		"negative id":         strings.Replace(good, `"token":7`, `"token":-7`, 1),
	} {
		if text == good {
			t.Errorf("%s: the case changes nothing", name)
		}
		if e, err := Decode([]byte(text)); err == nil {
			t.Errorf("%s: read as %+v", name, e)
		}
	}
}

func TestOutcomesHaveNames(t *testing.T) {
	for o := range Outcome(len(outcomeNames) + 2) {
		text, err := o.MarshalText()
		valid := o >= Success && o <= Failure
		if (err == nil) != valid {
			t.Errorf("%d: %v", o, err)
		}
		if !valid {
			continue
		}
		var back Outcome
		if err := back.UnmarshalText(text); err != nil || back != o || o.String() != string(text) {
			t.Errorf("%d: %q is read as %d, %v", o, text, back, err)
		}
	}
	if s := fmt.Sprint(Outcome(0)); s != "outcome(0)" {
		t.Errorf("zero prints as %s", s)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(mustEncode(f, event(1)))
	f.Add(mustEncode(f, fullEvent()))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			return
		}
		if again := mustEncode(t, e); !bytes.Equal(again, b) {
			t.Errorf("%q is read, and written as %q", b, again)
		}
	})
}

func FuzzEncode(f *testing.F) {
	f.Add("a", secretText, int64(0))
	f.Add("\xff\x00", strings.Repeat("é", 600), int64(1<<60))
	f.Fuzz(func(t *testing.T, name, reason string, nanos int64) {
		e := event(1)
		e.Time = time.Unix(0, nanos)
		e.Actor.Name, e.Reason = name, reason
		e.After = &Token{Name: name, Scopes: []string{reason, name}}
		b := mustEncode(t, e)
		if secretForm.Match(b) {
			t.Errorf("a secret shows: %s", b)
		}
		if _, err := Decode(b); err != nil {
			t.Errorf("%s: %v", b, err)
		}
	})
}
