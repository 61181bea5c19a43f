package tokenstore

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The bounds of a token's fields. They keep every token small enough to cache
// and to send in a header.
const (
	MaxNameRunes   = 255
	MaxScopes      = 256
	MaxScopeBytes  = 128
	MaxGrants      = 1024
	MaxGrantID     = 255
	MaxTypeBytes   = 64
	MaxPrefixes    = 256
	MaxSourceBytes = 4096
)

// maxTime is the last instant a token may name: what RFC 3339 can write.
var maxTime = time.Date(9999, 12, 31, 23, 59, 59, 999e6, time.UTC)

// MaxTime returns the last instant a token may name.
func MaxTime() time.Time { return maxTime }

// FieldFault says what is wrong with one field of a token. Field is a path in
// the native API's words (`scopes/0`); Detail completes the sentence "it …" in
// words that are safe to show.
type FieldFault struct{ Field, Detail string }

// Faults lists everything that is wrong with a token; as an error it reads as
// one line.
type Faults []FieldFault

func (f Faults) Error() string {
	parts := make([]string, len(f))
	for i, one := range f {
		parts[i] = one.Field + " " + one.Detail
	}
	return strings.Join(parts, "; ")
}

func (f *Faults) add(field, format string, args ...any) {
	*f = append(*f, FieldFault{field, fmt.Sprintf(format, args...)})
}

// Validate checks every rule that holds for all tokens at all times, whoever
// made them, and returns nothing when they hold. Rules that depend on the
// caller, the configuration or the clock are not the token's.
func (t *Token) Validate() Faults {
	var f Faults
	number := func(field string, n uint64, least uint64) {
		if n < least || n > maxNumber {
			f.add(field, "must be a whole number from %d to 2^53-1", least)
		}
	}
	number("id", uint64(t.ID), 1)
	number("account", t.Account, 0)
	number("owner", t.Owner, 1)
	number("created_by/id", uint64(t.Creator.ID), 0)
	number("replaced_by", uint64(t.ReplacedBy), 0)
	number("lineage", uint64(t.Lineage), 0)
	if t.Lineage == t.ID && t.ID != 0 { // it may be above: nodes give out ids in blocks
		f.add("lineage", "must be of another token")
	}
	if detail := CheckText(t.Name, MaxNameRunes); detail != "" {
		f.add("name", "%s", detail)
	}
	if detail := CheckText(t.Creator.Name, MaxNameRunes); detail != "" && t.Creator.Name != "" {
		f.add("created_by/name", "%s", detail)
	}
	if !t.State.Valid() {
		f.add("state", "must be active, disabled or revoked")
	}
	t.validateScopes(&f)
	t.Resources.validate(&f)
	t.Sources.validate(&f)
	t.Limits.validate(&f)
	for _, at := range []struct {
		field string
		t     time.Time
	}{{"not_before", t.NotBefore}, {"created_at", t.CreatedAt}, {"updated_at", t.UpdatedAt}, {"ended_at", t.EndedAt}} {
		if !at.t.IsZero() && !validTime(at.t) {
			f.add(at.field, "must lie between the years 1970 and 9999")
		}
	}
	if !t.Expiry.valid() {
		f.add("expires_at", "must lie between the years 1970 and 9999, or be never")
	}
	t.validateSecrets(&f)
	return f
}

func validTime(t time.Time) bool { return t.UnixMilli() >= 0 && !t.After(maxTime) }

func (e Expiry) valid() bool {
	if e.Never {
		return e.At.IsZero()
	}
	return e.At.IsZero() || validTime(e.At)
}

// CheckText says what is wrong with a text that people read, or nothing: it
// must not be blank, have at most maxRunes characters, be valid UTF-8, and
// hold no character that hides or reorders others (controls, line separators,
// bidirectional formatting: CVE-2021-42574). A joiner hides nothing where it belongs.
func CheckText(s string, maxRunes int) string {
	switch {
	case !utf8.ValidString(s):
		return "must be valid UTF-8"
	case strings.TrimSpace(s) == "":
		return "must not be blank"
	case utf8.RuneCountInString(s) > maxRunes:
		return fmt.Sprintf("must have at most %d characters", maxRunes)
	case strings.ContainsFunc(s, deceptive) && !joined(s):
		return "must not contain control or invisible formatting characters"
	}
	return ""
}

// Joiners are the invisible characters that are part of how some texts are spelt:
// emoji of several (ZWJ), and words of scripts whose letters join or must not.
const Joiners = "\u200c\u200d"

// joined reports whether s holds nothing that deceives but joiners that stand where
// they change what is seen (UAX #31 section 2.3): between two characters that can join.
func joined(s string) bool {
	var before rune
	for i, r := range s {
		switch {
		case strings.ContainsRune(Joiners, r):
			after, size := utf8.DecodeRuneInString(s[i+utf8.RuneLen(r):])
			if size == 0 || !joins(before) || !joins(after) {
				return false
			}
		case deceptive(r):
			return false
		}
		before = r
	}
	return true
}

// joins reports whether r can join what stands beside it: an emoji, a mark, or a letter
// of a cursive or Indic script.
func joins(r rune) bool {
	return r >= utf8.RuneSelf && (unicode.In(r, unicode.So, unicode.Sm, unicode.Sk, unicode.Mn, unicode.Mc) ||
		unicode.In(r, unicode.Arabic, unicode.Syriac, unicode.Mongolian, unicode.Nko) ||
		unicode.In(r, unicode.Devanagari, unicode.Bengali, unicode.Gurmukhi, unicode.Gujarati, unicode.Oriya, unicode.Tamil,
			unicode.Telugu, unicode.Kannada, unicode.Malayalam, unicode.Sinhala, unicode.Khmer, unicode.Myanmar, unicode.Tibetan))
}

func deceptive(r rune) bool {
	if r < utf8.RuneSelf { // as nearly all are, at each reading of a record
		return r < ' ' || r == 0x7f
	}
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co)
}

// CheckScope says what is wrong with a scope of a token, or nothing.
func CheckScope(s string) string {
	if detail := CheckScopeName(strings.TrimSuffix(s, "*")); detail != "" && s != "*" {
		return detail
	}
	if strings.HasSuffix(s, "*") && s != "*" && !strings.HasSuffix(s, ":*") && !strings.HasSuffix(s, "-*") {
		return "may end in * only after : or -"
	}
	return ""
}

// CheckScopeName says what is wrong with a scope that a route names, or
// nothing: the characters of RFC 6749 section 3.3 without the asterisk, which
// only tokens use, and the bar, which separates alternatives in a route.
func CheckScopeName(s string) string {
	if len(s) == 0 || len(s) > MaxScopeBytes {
		return fmt.Sprintf("must have 1 to %d characters", MaxScopeBytes)
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"\*|`, c) >= 0 {
			return "must consist of printable ASCII without spaces, quotes, backslashes, bars and inner asterisks"
		}
	}
	return ""
}

func (t *Token) validateScopes(f *Faults) {
	if len(t.Scopes) > MaxScopes {
		f.add("scopes", "must be at most %d", MaxScopes)
		return
	}
	seen := make(map[string]bool, len(t.Scopes))
	for i, s := range t.Scopes {
		if detail := CheckScope(s); detail != "" {
			f.add(fmt.Sprintf("scopes/%d", i), "%s", detail)
		} else if seen[s] {
			f.add(fmt.Sprintf("scopes/%d", i), "is named twice")
		}
		seen[s] = true
	}
}

// CheckResourceType says what is wrong with the name of a resource type, or
// nothing.
func CheckResourceType(s string) string {
	ok := len(s) > 0 && len(s) <= MaxTypeBytes && s[0] >= 'a' && s[0] <= 'z'
	for i := range len(s) {
		c := s[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' || c == '-')
	}
	if !ok {
		return fmt.Sprintf("must match [a-z][a-z0-9_-]* with at most %d characters", MaxTypeBytes)
	}
	return ""
}

func (r *Resources) validate(f *Faults) {
	if r.All && len(r.Grants) > 0 {
		f.add("resources", "must be either all or a list of grants")
	}
	if len(r.Grants) > MaxGrants {
		f.add("resources", "must be at most %d grants", MaxGrants)
		return
	}
	for i, g := range r.Grants {
		if detail := CheckResourceType(g.Type); detail != "" {
			f.add(fmt.Sprintf("resources/%d/type", i), "%s", detail)
		}
		if detail := CheckText(g.ID, MaxGrantID); detail != "" {
			f.add(fmt.Sprintf("resources/%d/id", i), "%s", detail)
		}
		if !g.Level.Valid() {
			f.add(fmt.Sprintf("resources/%d/level", i), "must be read or write")
		}
	}
}

func (s *Sources) validate(f *Faults) {
	if s.Any && (len(s.Allow) > 0 || len(s.Deny) > 0) {
		f.add("sources", "must be either any or a rule")
	}
	if len(s.Allow) > MaxPrefixes || len(s.Deny) > MaxPrefixes {
		f.add("sources", "must be at most %d addresses", MaxPrefixes)
		return
	}
	if len(s.Text) > MaxSourceBytes || !utf8.ValidString(s.Text) || strings.ContainsFunc(s.Text, deceptive) {
		f.add("sources", "must be text of at most %d bytes", MaxSourceBytes)
	}
	for _, list := range []struct {
		field string
		ps    []netip.Prefix
	}{{"sources/allow", s.Allow}, {"sources/deny", s.Deny}} {
		for i, p := range list.ps {
			if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
				f.add(fmt.Sprintf("%s/%d", list.field, i), "must be an IPv4 or IPv6 address or network")
			}
		}
	}
}

// ParseSource reads one address or network of a source rule, `192.0.2.7`,
// `2001:db8::/32`. An IPv4 address must not hide in an IPv6 one, and a network
// must not have bits set beyond its length: both would mean something else
// than they seem to.
func ParseSource(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		addr, aerr := netip.ParseAddr(s)
		if aerr != nil || addr.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("must be an IPv4 or IPv6 address or network")
		}
		p = netip.PrefixFrom(addr, addr.BitLen())
	}
	switch {
	case p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("must be written as an IPv4 address, not mapped into IPv6")
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("has bits set beyond its length: write %s", p.Masked())
	}
	return p, nil
}

func (l *Limits) validate(f *Faults) {
	if math.IsNaN(l.Rate) || math.Signbit(l.Rate) || l.Rate > 1e9 || l.Rate != 0 && l.Rate < 1e-6 {
		f.add("limits/rate", "must lie between 0.000001 and 1000000000 requests per second, or be absent")
	}
	if l.Burst > 0 && l.Rate == 0 {
		f.add("limits/burst", "needs a rate")
	}
	for field, n := range map[string]uint64{"limits/burst": l.Burst, "limits/uses": l.Uses, "limits/concurrent": l.Concurrent} {
		if n > maxNumber {
			f.add(field, "must be below 2^53")
		}
	}
	var seen []Window
	for i, q := range l.Quotas {
		if !q.Per.Valid() || q.Count == 0 || q.Count > maxNumber || slices.Contains(seen, q.Per) {
			f.add(fmt.Sprintf("limits/quota/%d", i), "must have a count of at least 1, and minute, hour, day or month at most once each")
		}
		seen = append(seen, q.Per)
	}
}

func (t *Token) validateSecrets(f *Faults) {
	if len(t.Secrets) == 0 || len(t.Secrets) > MaxSecrets {
		f.add("secrets", "must be 1 to %d", MaxSecrets)
	}
	for i, s := range t.Secrets {
		switch {
		case !s.Scheme.Valid():
			f.add(fmt.Sprintf("secrets/%d/scheme", i), "is not known")
		case len(s.Last4) > 4 || strings.ContainsFunc(s.Last4, deceptive) || !utf8.ValidString(s.Last4):
			f.add(fmt.Sprintf("secrets/%d/last4", i), "must be at most four characters")
		case s.CreatedAt.IsZero() || !validTime(s.CreatedAt) || !s.Ends.valid():
			f.add(fmt.Sprintf("secrets/%d/created_at", i), "must lie between the years 1970 and 9999")
		case s.Silence < 0 || s.Silence > MaxSilence || s.Silence%time.Second != 0:
			f.add(fmt.Sprintf("secrets/%d/ends_after_silence", i), "must be whole seconds, at most 90 days")
		case i > 0 && s.Digest == t.Secrets[0].Digest:
			f.add(fmt.Sprintf("secrets/%d", i), "is the same as the first")
		}
	}
}
