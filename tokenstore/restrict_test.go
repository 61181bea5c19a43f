package tokenstore_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// rule reads a source rule, `10.0.0.0/8 !10.1.0.0/16`; "any" admits every address.
func rule(t *testing.T, text string) tokenstore.Sources {
	t.Helper()
	if text == "any" {
		return tokenstore.Sources{Any: true}
	}
	s := tokenstore.Sources{}
	for word := range strings.FieldsSeq(text) {
		address, denied := strings.CutPrefix(word, "!")
		p, err := tokenstore.ParseSource(address)
		if err != nil {
			t.Fatal(err)
		}
		if denied {
			s.Deny = append(s.Deny, p)
		} else {
			s.Allow = append(s.Allow, p)
		}
	}
	return s
}

// TestWiderSourcesAreNotDominated: no address may use the inner token that the outer
// one does not admit.
func TestWiderSourcesAreNotDominated(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		outer, inner string
		want         bool
	}{
		{"any", "any", true},
		{"any", "10.0.0.0/8", true},
		{"10.0.0.0/8", "any", false},
		{"", "", true},
		{"", "10.0.0.1", false},
		{"10.0.0.0/8", "", true},
		{"10.0.0.0/16", "10.0.0.0/16", true},
		{"10.0.0.0/16", "10.0.3.0/24", true},
		{"10.0.0.0/16", "10.1.0.0/24", false},
		{"10.0.0.0/16", "10.0.0.0/8", false}, // wider, and begins where the outer one does
		{"10.0.0.0/16 192.0.2.0/24", "192.0.2.1", true},
		{"10.0.0.0/16", "10.0.3.0/24 192.0.2.1", false},
		{"::/0", "10.0.0.1", false},
		{"0.0.0.0/0", "2001:db8::1", false},
		{"10.0.0.0/8 !10.1.0.0/16", "10.0.0.0/8", false},
		{"10.0.0.0/8 !10.1.0.0/16", "10.1.2.0/24", false},
		{"10.0.0.0/8 !10.1.0.0/16", "10.2.0.0/16", true},
		{"10.0.0.0/8 !10.1.0.0/16", "10.0.0.0/8 !10.1.0.0/16", true},
		{"10.0.0.0/8 !10.1.0.0/16", "10.0.0.0/8 !10.0.0.0/15", true},
		{"10.0.0.0/8 !10.1.0.0/16", "10.0.0.0/8 !10.1.0.0/24", false},
		{"10.0.0.0/8", "10.0.0.0/8 192.0.2.0/24 !192.0.0.0/16", true}, // what it denies it does not admit
		{"10.0.0.0/8", "10.0.0.0/8 192.0.2.0/24 !192.0.2.0/25", false},
	} {
		outer, inner := storetest.Sample(7, 1, 1), storetest.Sample(8, 1, 1)
		outer.Sources, inner.Sources = rule(t, tt.outer), rule(t, tt.inner)
		aspect, ok := outer.Dominates(inner)
		if ok != tt.want || !ok && aspect != tokenstore.AspectSources {
			t.Errorf("%q dominates %q: %t %s", tt.outer, tt.inner, ok, aspect)
		}
	}
}

// TestLooserLimitsAreNotDominated has a row for each limit that the inner token leaves
// out, has more of, and has as much of.
func TestLooserLimitsAreNotDominated(t *testing.T) {
	t.Parallel()
	type limits = tokenstore.Limits
	quota := func(list ...tokenstore.Quota) limits { return limits{Quotas: list} }
	for name, tt := range map[string]struct {
		outer, inner limits
		want         bool
	}{
		"no limits":             {limits{}, limits{}, true},
		"limits below none":     {limits{}, limits{Rate: 1, Burst: 1, Uses: 1, Concurrent: 1}, true},
		"no rate":               {limits{Rate: 2}, limits{}, false},
		"more rate":             {limits{Rate: 2}, limits{Rate: 2.5}, false},
		"as much rate":          {limits{Rate: 2}, limits{Rate: 2}, true},
		"more at once":          {limits{Rate: 2, Burst: 5}, limits{Rate: 2, Burst: 6}, false},
		"more than a second":    {limits{Rate: 2}, limits{Rate: 1, Burst: 3}, false},
		"a second is more":      {limits{Rate: 2, Burst: 1}, limits{Rate: 2}, false},
		"as much at once":       {limits{Rate: 2, Burst: 5}, limits{Rate: 1, Burst: 5}, true},
		"at least one at once":  {limits{Rate: 0.5}, limits{Rate: 0.5, Burst: 1}, true},
		"no uses":               {limits{Uses: 3}, limits{}, false},
		"more uses":             {limits{Uses: 3}, limits{Uses: 4}, false},
		"as many uses":          {limits{Uses: 3}, limits{Uses: 3}, true},
		"no bound on requests":  {limits{Concurrent: 3}, limits{}, false},
		"more requests":         {limits{Concurrent: 3}, limits{Concurrent: 4}, false},
		"as many requests":      {limits{Concurrent: 3}, limits{Concurrent: 3}, true},
		"no quota":              {quota(tokenstore.Quota{Count: 3, Per: tokenstore.PerDay}), limits{}, false},
		"quota of another time": {quota(tokenstore.Quota{Count: 3, Per: tokenstore.PerDay}), quota(tokenstore.Quota{Count: 3, Per: tokenstore.PerMonth}), false},
		"more quota":            {quota(tokenstore.Quota{Count: 3, Per: tokenstore.PerDay}), quota(tokenstore.Quota{Count: 4, Per: tokenstore.PerDay}), false},
		"as much quota": {
			quota(tokenstore.Quota{Count: 3, Per: tokenstore.PerDay}),
			quota(tokenstore.Quota{Count: 9, Per: tokenstore.PerMonth}, tokenstore.Quota{Count: 3, Per: tokenstore.PerDay}), true,
		},
		"one quota of two": {
			quota(tokenstore.Quota{Count: 3, Per: tokenstore.PerDay}, tokenstore.Quota{Count: 9, Per: tokenstore.PerMonth}),
			quota(tokenstore.Quota{Count: 3, Per: tokenstore.PerDay}), false,
		},
	} {
		outer, inner := storetest.Sample(7, 1, 1), storetest.Sample(8, 1, 1)
		outer.Limits, inner.Limits = tt.outer, tt.inner
		aspect, ok := outer.Dominates(inner)
		if ok != tt.want || !ok && aspect != tokenstore.AspectLimits {
			t.Errorf("%s: %t %s", name, ok, aspect)
		}
	}
	for name, l := range map[string]limits{
		"rate": {Rate: 1}, "burst": {Burst: 1}, "quota": quota(tokenstore.Quota{}), "uses": {Uses: 1}, "concurrent": {Concurrent: 1},
	} {
		if l.IsZero() {
			t.Errorf("a %s is no limit", name)
		}
	}
}

// TestEndIsReachedAtItsInstant: neither a moment before nor one after.
func TestEndIsReachedAtItsInstant(t *testing.T) {
	t.Parallel()
	at := storetest.Epoch
	before, after := tokenstore.EndsAt(at.Add(-1)), tokenstore.EndsAt(at.Add(1))
	end, never := tokenstore.EndsAt(at), tokenstore.Never()
	if end.Ended(at.Add(-1)) || !end.Ended(at) || never.Ended(at) || !(tokenstore.Expiry{}).Ended(time.Time{}) {
		t.Error("an end is reached at another instant than its own")
	}
	if !end.NotLater(end) || !end.NotLater(after) || end.NotLater(before) || !end.NotLater(never) || never.NotLater(end) || !never.NotLater(never) {
		t.Error("an end is not later than what comes before it")
	}
	if end.Earlier(after) != end || after.Earlier(end) != end || never.Earlier(end) != end || end.Earlier(never) != end {
		t.Error("the later of two ends comes first")
	}
}

func TestZeroLevelIsNeverGranted(t *testing.T) {
	t.Parallel()
	r := tokenstore.Resources{Grants: []tokenstore.Grant{{Type: "card", ID: "1", Level: tokenstore.LevelRead}, {Type: "card", ID: "2"}}}
	for id, want := range map[string]string{"1": "read", "2": "none", "3": "none"} {
		if got := r.Level("card", []byte(id)); got.String() != want || r.Allows("card", []byte(id), 0) != (want == "read") {
			t.Errorf("card %s at level %s", id, got)
		}
	}
}

// TestUnknownAddressIsAdmittedByAnyAlone: a rule that denies nothing but others admits
// no address that is not known.
func TestUnknownAddressIsAdmittedByAnyAlone(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"any":                     "unknown 10.0.0.1 10.1.0.1 192.0.2.1",
		"":                        "",
		"0.0.0.0/0 ::/0":          "10.0.0.1 10.1.0.1 192.0.2.1",
		"10.0.0.0/8 !10.1.0.0/16": "10.0.0.1",
		"!10.1.0.0/16":            "",
	} {
		s := rule(t, text)
		var admitted []string
		if s.Permit(netip.Addr{}) {
			admitted = append(admitted, "unknown")
		}
		for _, from := range []string{"10.0.0.1", "10.1.0.1", "192.0.2.1"} {
			if s.Permit(netip.MustParseAddr(from)) {
				admitted = append(admitted, from)
			}
		}
		if got := strings.Join(admitted, " "); got != want {
			t.Errorf("%q admits %q, want %q", text, got, want)
		}
	}
}
