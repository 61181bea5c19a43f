package tokenstore_test

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// TestUnsoundTokenIsNamedByItsField has a row for each rule, and one for the last value
// that each bound lets through. What Validate refuses, no record holds.
func TestUnsoundTokenIsNamedByItsField(t *testing.T) {
	t.Parallel()
	const beyond = 1 << 53
	type token = tokenstore.Token
	before1970, after9999 := time.UnixMilli(-1), tokenstore.MaxTime().Add(time.Millisecond)
	scopes := func(n int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf("scope-%d", i))
		}
		return list
	}
	grants := func(n int) tokenstore.Resources {
		return tokenstore.Resources{Grants: slices.Repeat([]tokenstore.Grant{{Type: "card", ID: "1", Level: tokenstore.LevelRead}}, n)}
	}
	grant := func(typ, id string, level tokenstore.Level) func(t *token) {
		return func(t *token) { t.Resources.Grants[1] = tokenstore.Grant{Type: typ, ID: id, Level: level} }
	}
	nets := func(n int) []netip.Prefix {
		return slices.Repeat([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, n)
	}
	allow := func(p netip.Prefix) func(t *token) { return func(t *token) { t.Sources.Allow[1] = p } }
	scope := func(s string) func(t *token) { return func(t *token) { t.Scopes[1] = s } }
	rate := func(n float64) func(t *token) { return func(t *token) { t.Limits.Rate = n } }
	quota := func(list ...tokenstore.Quota) func(t *token) { return func(t *token) { t.Limits.Quotas = list } }
	second := func(with func(s *tokenstore.SecretRecord)) func(t *token) {
		return func(t *token) {
			s := t.Secrets[0]
			s.Digest = storetest.SampleDigest(8)
			with(&s)
			t.Secrets = append(t.Secrets, s)
		}
	}
	for _, tt := range []struct {
		name  string
		with  func(t *token)
		field string // "": it is sound
	}{
		{"as it is", func(*token) {}, ""},
		{"no id", func(t *token) { t.ID = 0 }, "id"},
		{"id beyond 2^53", func(t *token) { t.ID = beyond }, "id"},
		{"last id", func(t *token) { t.ID = beyond - 1 }, ""},
		{"account beyond 2^53", func(t *token) { t.Account = beyond }, "account"},
		{"root", func(t *token) { t.Account = tokenstore.Root }, ""},
		{"no owner", func(t *token) { t.Owner = 0 }, "owner"},
		{"owner beyond 2^53", func(t *token) { t.Owner = beyond }, "owner"},
		{"creator beyond 2^53", func(t *token) { t.Creator.ID = beyond }, "created_by/id"},
		{"successor beyond 2^53", func(t *token) { t.ReplacedBy = beyond }, "replaced_by"},

		{"no name", func(t *token) { t.Name = "" }, "name"},
		{"blank name", func(t *token) { t.Name = " \t" }, "name"},
		{"longest name", func(t *token) { t.Name = strings.Repeat("ä", 255) }, ""},
		{"name too long", func(t *token) { t.Name = strings.Repeat("ä", 256) }, "name"},
		{"name that is no UTF-8", func(t *token) { t.Name = "a\xff" }, "name"},
		{"name with a control", func(t *token) { t.Name = "a\nb" }, "name"},
		{"name with a unit separator", func(t *token) { t.Name = "a\x1fb" }, "name"},
		{"name with DEL", func(t *token) { t.Name = "a\x7fb" }, "name"},
		{"name with a C1 control", func(t *token) { t.Name = "a\u0080b" }, "name"},
		{"name that reads backwards", func(t *token) { t.Name = "a\u202eb" }, "name"},
		{"name of two lines", func(t *token) { t.Name = "a\u2028b" }, "name"},
		{"name of two paragraphs", func(t *token) { t.Name = "a\u2029b" }, "name"},
		{"name of private characters", func(t *token) { t.Name = "a\ue000b" }, "name"},
		{"creator without a name", func(t *token) { t.Creator.Name = "" }, ""},
		{"creator with a control", func(t *token) { t.Creator.Name = "a\nb" }, "created_by/name"},
		{"no state", func(t *token) { t.State = 0 }, "state"},
		{"state beyond the last", func(t *token) { t.State = tokenstore.StateRevoked + 1 }, "state"},
		{"last state", func(t *token) { t.State = tokenstore.StateRevoked }, ""},

		{"no scopes", func(t *token) { t.Scopes = nil }, ""},
		{"most scopes", func(t *token) { t.Scopes = scopes(256) }, ""},
		{"too many scopes", func(t *token) { t.Scopes = scopes(257) }, "scopes"},
		{"scope named twice", scope("accounts"), "scopes/1"},
		{"empty scope", scope(""), "scopes/1"},
		{"everything", scope("*"), ""},
		{"longest scope", scope(strings.Repeat("s", 128)), ""},
		{"scope too long", scope(strings.Repeat("s", 129)), "scopes/1"},
		{"every kind of character", scope("!~A0:-*"), ""},
		{"scope with a space", scope("a b"), "scopes/1"},
		{"scope with DEL", scope("a\x7f"), "scopes/1"},
		{"scope that is not ASCII", scope("ä"), "scopes/1"},
		{"scope with a quote", scope(`a"`), "scopes/1"},
		{"scope with a backslash", scope(`a\`), "scopes/1"},
		{"scope with a bar", scope("a|b"), "scopes/1"},
		{"scope with an inner asterisk", scope("a*b"), "scopes/1"},
		{"scope with two asterisks", scope("a:**"), "scopes/1"},
		{"pattern that cuts a word", scope("car*"), "scopes/1"},

		{"all and grants", func(t *token) { t.Resources.All = true }, "resources"},
		{"all", func(t *token) { t.Resources = tokenstore.Resources{All: true} }, ""},
		{"no resources", func(t *token) { t.Resources = tokenstore.Resources{} }, ""},
		{"most grants", func(t *token) { t.Resources = grants(1024) }, ""},
		{"too many grants", func(t *token) { t.Resources = grants(1025) }, "resources"},
		{"longest grant", grant("a"+strings.Repeat("b", 63), strings.Repeat("1", 255), tokenstore.LevelRead), ""},
		{"every kind of character in a type", grant("zaz09_-", "1", tokenstore.LevelRead), ""},
		{"type too long", grant(strings.Repeat("a", 65), "1", tokenstore.LevelRead), "resources/1/type"},
		{"no type", grant("", "1", tokenstore.LevelRead), "resources/1/type"},
		{"type before a", grant("`a", "1", tokenstore.LevelRead), "resources/1/type"},
		{"type beyond z", grant("{a", "1", tokenstore.LevelRead), "resources/1/type"},
		{"type with a digit first", grant("1a", "1", tokenstore.LevelRead), "resources/1/type"},
		{"type with a capital", grant("aB", "1", tokenstore.LevelRead), "resources/1/type"},
		{"type with what stands before 0", grant("a/", "1", tokenstore.LevelRead), "resources/1/type"},
		{"type with what stands behind 9", grant("a:", "1", tokenstore.LevelRead), "resources/1/type"},
		{"type with what stands behind z", grant("a{", "1", tokenstore.LevelRead), "resources/1/type"},
		{"no resource", grant("card", "", tokenstore.LevelRead), "resources/1/id"},
		{"resource too long", grant("card", strings.Repeat("1", 256), tokenstore.LevelRead), "resources/1/id"},
		{"resource with a control", grant("card", "1\n", tokenstore.LevelRead), "resources/1/id"},
		{"no level", grant("card", "1", 0), "resources/1/level"},
		{"level beyond the last", grant("card", "1", tokenstore.LevelWrite+1), "resources/1/level"},

		{"any and allowed", func(t *token) { t.Sources.Any, t.Sources.Deny = true, nil }, "sources"},
		{"any and denied", func(t *token) { t.Sources.Any, t.Sources.Allow = true, nil }, "sources"},
		{"any", func(t *token) { t.Sources = tokenstore.Sources{Any: true} }, ""},
		{"most sources", func(t *token) { t.Sources.Allow, t.Sources.Deny = nets(256), nets(256) }, ""},
		{"too many allowed", func(t *token) { t.Sources.Allow = nets(257) }, "sources"},
		{"too many denied", func(t *token) { t.Sources.Deny = nets(257) }, "sources"},
		{"longest text", func(t *token) { t.Sources.Text = strings.Repeat("1", 4096) }, ""},
		{"text too long", func(t *token) { t.Sources.Text = strings.Repeat("1", 4097) }, "sources"},
		{"text that is no UTF-8", func(t *token) { t.Sources.Text = "\xff" }, "sources"},
		{"text with a control", func(t *token) { t.Sources.Text = "a\nb" }, "sources"},
		{"no network", allow(netip.Prefix{}), "sources/allow/1"},
		{"bits beyond the length", allow(netip.MustParsePrefix("192.0.2.1/24")), "sources/allow/1"},
		{"IPv4 within IPv6", allow(netip.MustParsePrefix("::ffff:192.0.2.0/120")), "sources/allow/1"},
		{"no network denied", func(t *token) { t.Sources.Deny[0] = netip.Prefix{} }, "sources/deny/0"},

		{"highest rate", rate(1e9), ""},
		{"lowest rate", rate(1e-6), ""},
		{"rate too high", rate(math.Nextafter(1e9, 2e9)), "limits/rate"},
		{"rate too low", rate(math.Nextafter(1e-6, 0)), "limits/rate"},
		{"rate below zero", rate(-1), "limits/rate"},
		{"rate of minus zero", func(t *token) { t.Limits.Rate, t.Limits.Burst = math.Copysign(0, -1), 0 }, "limits/rate"},
		{"rate that is no number", rate(math.NaN()), "limits/rate"},
		{"burst without a rate", rate(0), "limits/burst"},
		{"neither rate nor burst", func(t *token) { t.Limits.Rate, t.Limits.Burst = 0, 0 }, ""},
		{"rate without a burst", func(t *token) { t.Limits.Burst = 0 }, ""},
		{"most of all", func(t *token) {
			t.Limits.Burst, t.Limits.Uses, t.Limits.Concurrent = beyond-1, beyond-1, beyond-1
		}, ""},
		{"burst beyond 2^53", func(t *token) { t.Limits.Burst = beyond }, "limits/burst"},
		{"uses beyond 2^53", func(t *token) { t.Limits.Uses = beyond }, "limits/uses"},
		{"concurrent beyond 2^53", func(t *token) { t.Limits.Concurrent = beyond }, "limits/concurrent"},
		{"quotas of all windows", quota(tokenstore.Quota{Count: 1, Per: tokenstore.PerMinute}, tokenstore.Quota{Count: beyond - 1, Per: tokenstore.PerMonth}), ""},
		{"quota of nothing", quota(tokenstore.Quota{Per: tokenstore.PerDay}), "limits/quota/0"},
		{"quota beyond 2^53", quota(tokenstore.Quota{Count: beyond, Per: tokenstore.PerDay}), "limits/quota/0"},
		{"quota without a window", quota(tokenstore.Quota{Count: 1}), "limits/quota/0"},
		{"quota of a window beyond the last", quota(tokenstore.Quota{Count: 1, Per: tokenstore.PerMonth + 1}), "limits/quota/0"},
		{"two quotas of one window", quota(tokenstore.Quota{Count: 1, Per: tokenstore.PerDay}, tokenstore.Quota{Count: 2, Per: tokenstore.PerDay}), "limits/quota/1"},

		{"not before 1970", func(t *token) { t.NotBefore = before1970 }, "not_before"},
		{"created after 9999", func(t *token) { t.CreatedAt = after9999 }, "created_at"},
		{"updated after 9999", func(t *token) { t.UpdatedAt = after9999 }, "updated_at"},
		{"ended before 1970", func(t *token) { t.EndedAt = before1970 }, "ended_at"},
		{"first and last instant", func(t *token) { t.CreatedAt, t.UpdatedAt = time.UnixMilli(0), tokenstore.MaxTime() }, ""},
		{"never and an end", func(t *token) { t.Expiry.Never = true }, "expires_at"},
		{"never", func(t *token) { t.Expiry = tokenstore.Never() }, ""},
		{"ended long ago", func(t *token) { t.Expiry = tokenstore.Expiry{} }, ""},
		{"end after 9999", func(t *token) { t.Expiry = tokenstore.EndsAt(after9999) }, "expires_at"},
		{"end before 1970", func(t *token) { t.Expiry = tokenstore.EndsAt(before1970) }, "expires_at"},

		{"no secret", func(t *token) { t.Secrets = nil }, "secrets"},
		{"two secrets", second(func(*tokenstore.SecretRecord) {}), ""},
		{"three secrets", func(t *token) {
			second(func(*tokenstore.SecretRecord) {})(t)
			second(func(s *tokenstore.SecretRecord) { s.Digest = storetest.SampleDigest(9) })(t)
		}, "secrets"},
		{"two secrets that are one", second(func(s *tokenstore.SecretRecord) { s.Digest = storetest.SampleDigest(7) }), "secrets/1"},
		{"no scheme", second(func(s *tokenstore.SecretRecord) { s.Scheme = 0 }), "secrets/1/scheme"},
		{"last scheme", second(func(s *tokenstore.SecretRecord) { s.Scheme = tokenstore.SchemeHMAC }), ""},
		{"scheme beyond the last", second(func(s *tokenstore.SecretRecord) { s.Scheme = tokenstore.SchemeHMAC + 1 }), "secrets/1/scheme"},
		{"five last characters", second(func(s *tokenstore.SecretRecord) { s.Last4 = "vwxyz" }), "secrets/1/last4"},
		{"last characters that are no UTF-8", second(func(s *tokenstore.SecretRecord) { s.Last4 = "\xff" }), "secrets/1/last4"},
		{"last characters with a control", second(func(s *tokenstore.SecretRecord) { s.Last4 = "a\n" }), "secrets/1/last4"},
		{"secret made at no time", second(func(s *tokenstore.SecretRecord) { s.CreatedAt = time.Time{} }), "secrets/1/created_at"},
		{"secret made before 1970", second(func(s *tokenstore.SecretRecord) { s.CreatedAt = before1970 }), "secrets/1/created_at"},
		{"secret that ends after 9999", second(func(s *tokenstore.SecretRecord) { s.Ends = tokenstore.EndsAt(after9999) }), "secrets/1/created_at"},
		{"longest silence", second(func(s *tokenstore.SecretRecord) { s.Silence = tokenstore.MaxSilence }), ""},
		{"silence too long", second(func(s *tokenstore.SecretRecord) { s.Silence = tokenstore.MaxSilence + time.Second }), "secrets/1/ends_after_silence"},
		{"silence below zero", second(func(s *tokenstore.SecretRecord) { s.Silence = -time.Second }), "secrets/1/ends_after_silence"},
		{"silence of half a second", second(func(s *tokenstore.SecretRecord) { s.Silence = 500 * time.Millisecond }), "secrets/1/ends_after_silence"},
	} {
		token := storetest.Sample(7, 1, 1)
		tt.with(token)
		got := ""
		faults := token.Validate()
		if len(faults) > 0 {
			got = faults[0].Field
		}
		if got != tt.field || len(faults) > 1 {
			t.Errorf("%s: %v, want a fault of %q", tt.name, faults, tt.field)
		}
		record, err := tokenstore.EncodeRecord(nil, token)
		if (err == nil) != (tt.field == "") {
			t.Errorf("%s: encoded with %v", tt.name, err)
		}
		if err != nil {
			continue
		}
		if again, err := tokenstore.DecodeRecord(record); err != nil || len(again.Validate()) > 0 {
			t.Errorf("%s: it does not come back: %v", tt.name, err)
		}
	}
}

// TestUnknownValueIsNoneOfTheNamed: what a record or a request may hold and no version
// knows is not taken for its neighbour.
func TestUnknownValueIsNoneOfTheNamed(t *testing.T) {
	t.Parallel()
	foreign := func(s tokenstore.Scheme, key byte) bool {
		return tokenstore.Foreign{Scheme: s, Key: tokenstore.PepperID{key}}.Valid()
	}
	for name, got := range map[string][2]string{
		"states":       {valid(tokenstore.State.Valid), "123"},
		"levels":       {valid(tokenstore.Level.Valid), "12"},
		"windows":      {valid(tokenstore.Window.Valid), "1234"},
		"schemes":      {valid(tokenstore.Scheme.Valid), "123"},
		"foreign":      {valid(func(s tokenstore.Scheme) bool { return foreign(s, 0) }), "2"},
		"with a key":   {valid(func(s tokenstore.Scheme) bool { return foreign(s, 1) }), "3"},
		"of a set":     {valid(tokenstore.NewFormats("tw").With(0, 1, 2, 3, 4).Foreign), "23"},
		"of one":       {valid(tokenstore.NewFormats("tw").With(2).Foreign), "2"},
		"of no set":    {valid(tokenstore.NewFormats("tw").Foreign), ""},
		"of the store": {valid((&tokenstore.Traits{Foreign: []tokenstore.Foreign{{Scheme: 2}, {Scheme: 3}}}).Formats().Foreign), "23"},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %q are known, want %q", name, got[0], got[1])
		}
	}
	for v := range uint8(10) {
		window, level := tokenstore.Window(v), tokenstore.Level(v)
		if got, ok := tokenstore.ParseWindow(window.String()); ok != window.Valid() || ok && got != window {
			t.Errorf("window %s reads as %s, %t", window, got, ok)
		}
		if got, ok := tokenstore.ParseLevel(level.String()); ok != level.Valid() || ok && got != level {
			t.Errorf("level %s reads as %s, %t", level, got, ok)
		}
	}
}

// TestNumberHasOneForm: a number that is read is written as it was.
func TestNumberHasOneForm(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"1", "9", "10", "9007199254740991"} {
		if id, ok := tokenstore.ParseID(s); !ok || id.String() != s {
			t.Errorf("%q reads as %s, %t", s, id, ok)
		}
	}
	for _, s := range []string{"", "0", "01", "+1", "-1", " 1", "1 ", "1_0", "0x1", "1e3", "1.0", "a", ":", "\u0661", "9007199254740992", "18446744073709551617", strings.Repeat("9", 17)} {
		if id, ok := tokenstore.ParseID(s); ok || id != 0 {
			t.Errorf("%q reads as %s, %t", s, id, ok)
		}
	}
}

// valid lists the values from 0 to 9 that is holds of.
func valid[T ~uint8](is func(T) bool) (list string) {
	for v := range T(10) {
		if is(v) {
			list += fmt.Sprint(uint8(v))
		}
	}
	return list
}

func TestPrefixIsAWordOfSmallLettersAndDigits(t *testing.T) {
	t.Parallel()
	for prefix, want := range map[string]bool{
		"tw": true, "a0": true, "z9": true, "az": true, "a" + strings.Repeat("z", 15): true,
		"": false, "a": false, "a" + strings.Repeat("z", 16): false,
		"0a": false, "`a": false, "{a": false, "Ta": false, "tW": false,
		"a/": false, "a:": false, "a`": false, "a{": false, "a_": false, "a-": false, "aä": false,
	} {
		if got := tokenstore.ValidPrefix(prefix); got != want {
			t.Errorf("%q: %t", prefix, got)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a secret was made with a prefix that no one checked")
		}
	}()
	tokenstore.NewSecret("T")
}

// TestJoinersStandOnlyWhereTheyAreSeen: they are part of how people write, and
// elsewhere a way to make two names look the same.
func TestJoinersStandOnlyWhereTheyAreSeen(t *testing.T) {
	for name, text := range map[string]string{
		"family":              "\U0001F468\u200d\U0001F469\u200d\U0001F467 at home",
		"technologist":        "\U0001F469\U0001F3FD\u200d\U0001F4BB",
		"heart on fire":       "\u2764\ufe0f\u200d\U0001F525",
		"shaking head":        "\U0001F642\u200d\u2194\ufe0f",
		"Persian":             "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
		"Sinhala":             "\u0DC1\u0DCA\u200d\u0DBB\u0DD3",
		"Malayalam":           "\u0D28\u0D4D\u200c\u0D28",
		"accent of two parts": "e\u0301",
	} {
		if detail := tokenstore.CheckText(text, tokenstore.MaxNameRunes); detail != "" {
			t.Errorf("%s %q %s", name, text, detail)
		}
	}
	for name, text := range map[string]string{
		"between Latin letters":    "ad\u200dmin",
		"between Cyrillic letters": "\u0430\u0434\u200c\u043c\u0438\u043d",
		"at the beginning":         "\u200d\U0001F525",
		"at the end":               "\U0001F525\u200d",
		"before a space":           "\U0001F525\u200d 7",
		"two":                      "\U0001F525\u200d\u200d\U0001F525",
		"both kinds":               "\u0645\u200c\u200d\u062e",
		"alone":                    "\u200d",
		"with another":             "\U0001F468\u200d\U0001F469\u200b",
		"with a bidi control":      "\u202e\u0645\u06cc\u200c\u062e",
		"with a tag":               "\U0001F468\u200d\U0001F469\U000E0067",
	} {
		if tokenstore.CheckText(text, tokenstore.MaxNameRunes) == "" {
			t.Errorf("%s: %q is taken", name, text)
		}
	}
}
