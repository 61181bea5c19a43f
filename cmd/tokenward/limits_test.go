package main

import (
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"tokenward/admin/native"
	"tokenward/enforce"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
)

// TestUsesSurviveARestart uses a token up over several processes, of which each
// second one is killed.
func TestUsesSurviveARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	tok := &tokenstore.Token{ID: 1, Account: 1, Owner: 1, Limits: tokenstore.Limits{Uses: 10}}
	now := time.Now()
	open, total := boltstore.Create, 0
	for run := range 12 {
		store, err := open(boltstore.Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		open = boltstore.Open
		e := enforce.NewEngine(nil, 0)
		e.KeepCounts(localCounts(store).ledger, nil)
		d := enforce.Decision{Reason: enforce.Allowed, Match: tokenstore.Match{Token: tok}}
		if e.Admit(&d, now) {
			total++
		} else if d.Reason != enforce.UsesExhausted || total != 10 {
			t.Fatalf("%v (%v) after %d uses", d.Reason, d.Cause, total)
		}
		if run%2 == 0 {
			if err := e.SettleCounts(t.Context(), now); err != nil {
				t.Fatal(err)
			}
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if total != 10 {
		t.Errorf("%d uses of 10", total)
	}
}

func TestRatesHaveOneNotation(t *testing.T) {
	for text, want := range map[string]requestRate{"0": 0, "10/s": 10, "600/m": 10, "36000/h": 10, "864000/d": 10, "1/m": 1.0 / 60} {
		if got, err := parseRate(text); got != want || err != nil {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "10", "/s", "s", "0/s", "-1/s", "+1/s", "1.5/s", "01/s", "1e3/s", "1/", "1/w", "1/s/s", " 1/s", "1 /s", "99999999999/s"} {
		if got, err := parseRate(text); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}

// TestLimitsReachTheEngine has a configuration with every limit, and looks at what
// a token has left.
func TestLimitsReachTheEngine(t *testing.T) {
	c := mustParse(t, "enforce:\n  limits:\n    account: {rate: 10/s, burst: 20, concurrent: 3, per_minute: 4, per_hour: 5, per_day: 6, per_month: 7}\n"+
		"    owner: {per_day: 8}\n  failures: {per_minute: 9, burst: 10}\nroutes:\n  - match: GET /\n    limits: {rate: 60/m, concurrent: 11}\n")
	policy, faults := enforce.Compile(c.routeSpecs(), c.enforceOptions())
	if faults != nil {
		t.Fatal(faults)
	}
	e := enforce.NewEngine(nil, 0)
	o := c.limitOptions()
	e.SetLimits(o)
	if o.Failures != (enforce.FailureLimit{PerMinute: 9, Burst: 10}) {
		t.Errorf("failures %+v", o.Failures)
	}
	want := map[string]uint64{"account-rate": 20, "account-concurrent": 3, "account-minute": 4, "account-hour": 5, "account-day": 6, "account-month": 7,
		"owner-day": 8, "route-rate": 1, "route-concurrent": 11}
	for _, l := range e.AppendLeft(nil, &tokenstore.Token{ID: 1, Account: 1, Owner: 1}, policy.Routes()[0], time.Now()) {
		if l.Quota != want[l.Name] || l.Left != l.Quota {
			t.Errorf("%+v, want %d", l, want[l.Name])
		}
		delete(want, l.Name)
	}
	if len(want) > 0 {
		t.Errorf("not in force: %v", want)
	}
}

// TestWhoamiSaysWhatIsLeft asks twice, and sees the limits go down.
func TestWhoamiSaysWhatIsLeft(t *testing.T) {
	s := startApp(t, "routes: []\n")
	admin := "http://" + s.adminListener.Addr().String()
	var made struct {
		Secret string `json:"token"`
	}
	body := `{"name":"limited","limits":{"quota":[{"count":100,"per":"month"}],"uses":50,"concurrent":3}}`
	if err := json.Unmarshal([]byte(send(t, "POST", admin+"/v1/tokens", s.root, body)), &made); err != nil {
		t.Fatal(err)
	}
	for used := uint64(1); used <= 2; used++ {
		var who struct{ Left []native.Left }
		if err := json.Unmarshal([]byte(send(t, "GET", admin+"/v1/whoami", made.Secret, "")), &who); err != nil {
			t.Fatal(err)
		}
		want := []native.Left{{Limit: "quota", Per: "month", Left: 100 - used}, {Limit: "uses", Left: 50 - used}, {Limit: "concurrent", Left: 3}}
		if len(who.Left) != len(want) {
			t.Fatalf("%+v", who.Left)
		}
		for i, l := range who.Left {
			if (l.ResetsAt != nil) != (l.Per != "") {
				t.Errorf("%s resets at %v", l.Limit, l.ResetsAt)
			}
			if l.ResetsAt = nil; l != want[i] {
				t.Errorf("%+v, want %+v", l, want[i])
			}
		}
	}
}
