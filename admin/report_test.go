package admin_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tokenward/admin"
	"tokenward/enforce"
	"tokenward/tokenstore"
	"tokenward/tokenstore/usage"
)

func TestReportTellsWhatIsWorthLookingAt(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	policy, faults := enforce.Compile([]enforce.RouteSpec{
		{Match: "GET /healthz", Public: true},
		{Match: "GET /accounts/{a}", Scopes: []string{"accounts"}},
		{Match: "DELETE /accounts/{a}", Scopes: []string{"accounts"}},
		{Match: "GET /cards/{c}", Scopes: []string{"cards"}},
	}, enforce.Options{})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	k.service.SetVocabulary(admin.Vocabulary{Scopes: policy.Scopes(), Routes: policy.Routes()})
	year := tokenstore.EndsAt(k.clock.Now().AddDate(1, 0, 0))
	operator := admin.Operator("test")
	unused, forever, busy, revoked := k.create(t, year), k.create(t, tokenstore.Never()), k.create(t, year), k.create(t, year)
	ended := k.create(t, tokenstore.EndsAt(k.clock.Now().Add(time.Hour)))
	if _, err := k.service.Revoke(t.Context(), operator, admin.Target{ID: revoked.ID}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := k.service.Update(t.Context(), operator, admin.Target{ID: forever.ID}, func(f *admin.Fields) tokenstore.Faults {
		f.Scopes = []string{"accounts", "cards"}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	words := usage.NewVocabulary([]usage.Route{{Pattern: "GET /accounts/{a}", Scopes: []string{"accounts"}}, {Pattern: "DELETE /accounts/{a}", Scopes: []string{"accounts"}}})
	use := func(token *tokenstore.Token, secret tokenstore.Digest, route int) {
		k.used.Record(words, &usage.Use{Token: token.ID, Secret: secret, At: k.clock.Now(), Route: route})
	}
	k.clock.Advance(48 * time.Hour)
	fresh := k.create(t, tokenstore.EndsAt(k.clock.Now().Add(time.Hour)))
	if _, err := k.service.Rotate(t.Context(), operator, admin.Target{ID: busy.ID}, admin.RotateSpec{OldEnds: k.clock.Now().Add(72 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	k.clock.Advance(time.Minute)
	use(forever, forever.Secrets[0].Digest, 0)
	use(busy, busy.Secrets[0].Digest, 0)
	use(busy, k.get(t, busy.ID).Secrets[0].Digest, 1)

	want := map[tokenstore.ID][]admin.Finding{
		unused.ID:  {admin.FindingUnused},
		forever.ID: {admin.FindingNeverExpires, admin.FindingScopes, admin.FindingRoutes},
		busy.ID:    {admin.FindingOldSecret},
		fresh.ID:   {admin.FindingExpires},
	}
	q := admin.ReportQuery{List: admin.ListQuery{AllAccounts: true}, UnusedSince: k.clock.Now().Add(-24 * time.Hour), EndingBefore: k.clock.Now().Add(24 * time.Hour)}
	got := map[tokenstore.ID][]admin.Finding{}
	told, err := k.service.Report(t.Context(), operator, q)
	if err != nil {
		t.Fatal(err)
	}
	for a, err := range told {
		if err != nil {
			t.Fatal(err)
		}
		got[a.Token.ID] = a.Findings
		if a.Token.ID == forever.ID {
			if !slices.Equal(a.UnusedScopes, []string{"cards"}) || !slices.Equal(a.UnusedRoutes, []string{"DELETE /accounts/{a}", "GET /cards/{c}"}) {
				t.Errorf("never exercised are %v and %v", a.UnusedScopes, a.UnusedRoutes)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("findings (-want +got; ended is %d, revoked %d):\n%s", ended.ID, revoked.ID, diff)
	}
	q.Findings = []admin.Finding{admin.FindingNeverExpires}
	if told, err = k.service.Report(t.Context(), operator, q); err != nil {
		t.Fatal(err)
	}
	for a := range told {
		if a.Token.ID != forever.ID || len(a.Findings) != 1 {
			t.Errorf("asked for tokens without an end it tells of token %d: %v", a.Token.ID, a.Findings)
		}
	}
}

// TestTokenThatCouldNotBeUsedIsNotUnused: it was made long ago, and begins to be valid
// only now.
func TestTokenThatCouldNotBeUsedIsNotUnused(t *testing.T) {
	t.Parallel()
	made := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	since := made.AddDate(0, 6, 0)
	for _, c := range []struct {
		name      string
		notBefore time.Time
		used      time.Time
		want      bool
	}{
		{"valid from the start", time.Time{}, time.Time{}, true},
		{"valid before", since.Add(-time.Millisecond), time.Time{}, true},
		{"valid from then on", since, time.Time{}, false},
		{"valid some day", since.AddDate(1, 0, 0), time.Time{}, false},
		{"used just then", time.Time{}, since, false},
	} {
		tok := &tokenstore.Token{CreatedAt: made, NotBefore: c.notBefore}
		if got := admin.UnusedSince(tok, &usage.Record{Last: c.used}, since); got != c.want {
			t.Errorf("%s: unused is %v", c.name, got)
		}
	}
}

func TestReportNeedsWhatListNeeds(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	if _, err := k.service.Report(t.Context(), admin.Caller{}, admin.ReportQuery{}); err == nil {
		t.Error("anybody gets a report")
	}
}
