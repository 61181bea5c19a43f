package enforce

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"tokenward/tokenstore"
)

// family answers from a table, and counts.
type family struct {
	of    map[string]string
	err   error
	asked int
}

func (f *family) Parent(_ context.Context, typ string, id []byte) (string, error) {
	f.asked++
	if f.err != nil {
		return "", f.err
	}
	parent, ok := f.of[typ+":"+string(id)]
	if !ok {
		return "", ErrNoParent
	}
	return parent, nil
}

func TestGrantOnTheParentReachesTheResource(t *testing.T) {
	read, write := tokenstore.LevelRead, tokenstore.LevelWrite
	longest := strings.Repeat("7", tokenstore.MaxGrantID)
	account := func(id string, l tokenstore.Level) func(*tokenstore.Token) {
		return grants(tokenstore.Grant{Type: "account", ID: id, Level: l})
	}
	for _, c := range []struct {
		name   string
		token  func(*tokenstore.Token)
		method string
		target string
		broken bool
		want   Reason
		asked  int
	}{
		{"own account's card", account("1", read), "GET", "/cards/7", false, Allowed, 1},
		{"another account's card", account("2", read), "GET", "/cards/7", false, ResourceNotGranted, 1},
		{"every account", account("*", read), "GET", "/cards/7", false, Allowed, 1},
		{"no such card", account("1", read), "GET", "/cards/8", false, ResourceNotGranted, 1},
		{"level too low", account("1", read), "POST", "/cards/7", false, LevelTooLow, 1},
		{"read on the card, write on its account", grants(tokenstore.Grant{Type: "card", ID: "7", Level: read}, tokenstore.Grant{Type: "account", ID: "1", Level: write}), "POST", "/cards/7", false, Allowed, 1},
		{"a parent without a name", account("*", read), "GET", "/cards/9", false, ResourceNotGranted, 1},
		{"longest id", account("1", read), "GET", "/cards/" + longest, false, Allowed, 1},
		{"not asked for an id that no grant can have", account("*", read), "GET", "/cards/" + longest + "x", false, ResourceNotGranted, 0},
		{"not asked for no id", account("*", read), "GET", "/cards?id=", false, ResourceNotGranted, 0},
		{"level write", account("1", write), "POST", "/cards/7", false, Allowed, 1},
		{"not asked for an unrestricted token", nil, "GET", "/cards/7", false, Allowed, 0},
		{"not asked for the card's own grant", grants(tokenstore.Grant{Type: "card", ID: "7", Level: read}), "GET", "/cards/7", false, Allowed, 0},
		{"not asked for a token without such grants", grants(tokenstore.Grant{Type: "card", ID: "8", Level: read}), "GET", "/cards/7", false, ResourceNotGranted, 0},
		{"fails closed", account("1", read), "GET", "/cards/7", true, ParentUnavailable, 1},
		{"a failure does not matter where it is not asked", nil, "GET", "/cards/7", true, Allowed, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			tok, secret := token(c.token)
			j := engineFor(t, &oneToken{token: tok})
			p, faults := Compile([]RouteSpec{
				{Match: "* /cards/{card}", Resources: []string{"card:{card}"}}, {Match: "* /cards", Resources: []string{"card:{?id}"}},
			}, Options{Parents: map[string]string{"card": "account"}})
			if faults != nil {
				t.Fatal(faults)
			}
			f := &family{of: map[string]string{"card:7": "1", "card:9": "", "card:" + longest: "1"}}
			if c.broken {
				f.err = errors.New("gone")
			}
			j.policy, j.Parents = p, f
			d := j.Decide(t.Context(), canonical(t, c.method, c.target, bearer(secret)), start)
			if d.Reason != c.want || f.asked != c.asked {
				t.Errorf("%v after %d questions, want %v after %d", d.Reason, f.asked, c.want, c.asked)
			}
			if (d.Cause != nil) != (c.want == ParentUnavailable) {
				t.Errorf("cause %v", d.Cause)
			}
			j.Parents = nil
			if d := j.Decide(t.Context(), canonical(t, c.method, c.target, bearer(secret)), start); c.asked > 0 && d.Allowed() {
				t.Error("allowed although nobody knows the parent")
			}
		})
	}
}

func TestExplainTellsWhatTheParentIs(t *testing.T) {
	for _, c := range []struct {
		name, account, card string
		broken              bool
		want                string
	}{
		{"granted", "1", "7", false, `it belongs to account:"1")`},
		{"another's, and whose is not told", "2", "7", false, "it belongs to another account)"},
		{"none", "1", "8", false, "it belongs to no account)"},
		{"broken", "1", "7", true, "it could not be asked which account that is)"},
		{"not asked, since the card itself is granted", "1", "9", false, "names as its parent)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			read := tokenstore.LevelRead
			tok, secret := token(grants(tokenstore.Grant{Type: "account", ID: c.account, Level: read}, tokenstore.Grant{Type: "card", ID: "9", Level: read}))
			j := engineFor(t, &oneToken{token: tok})
			p, faults := Compile([]RouteSpec{{Match: "* /cards/{card}", Resources: []string{"card:{card}"}}}, Options{Parents: map[string]string{"card": "account"}})
			if faults != nil {
				t.Fatal(faults)
			}
			f := &family{of: map[string]string{"card:7": "1", "card:9": "3"}}
			if c.broken {
				f.err = errors.New("gone")
			}
			j.Parents = f
			q := canonical(t, "GET", "/cards/"+c.card, bearer(secret))
			j.policy = p
			want := j.Decide(t.Context(), q, start).Reason
			d, steps := j.Explain(t.Context(), p, q, start)
			as, stepsAs := j.ExplainAs(t.Context(), p, q, tokenstore.Match{Token: tok, Secret: &tok.Secrets[0]}, start)
			if d.Reason != want || as.Reason != want || !slices.Equal(steps, stepsAs) {
				t.Errorf("decided %v, explained %v and %v", want, d.Reason, as.Reason)
			}
			i := slices.IndexFunc(steps, func(s Step) bool { return s.Name == "resources" })
			if i < 0 || !strings.Contains(steps[i].Detail, c.want) || strings.Contains(steps[i].Detail, `account:"3"`) {
				t.Errorf("want %q: %+v", c.want, steps)
			}
		})
	}
}
