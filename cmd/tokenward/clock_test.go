package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"tokenward/enforce"
	"tokenward/metrics"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
)

// hands are a machine's clocks that move as they are told.
type hands struct {
	wall   time.Time
	steady time.Duration
}

func (h *hands) clock(floor time.Time) *clock {
	return newClock(func() time.Time { return h.wall }, func() time.Duration { return h.steady }, floor, slog.New(slog.DiscardHandler))
}

// pass lets d pass, with a look at the clocks every so often as run does.
func (h *hands) pass(c *clock, d time.Duration) {
	for ; d > 0; d -= clockEvery {
		h.wall, h.steady = h.wall.Add(clockEvery), h.steady+clockEvery
		c.compare()
	}
}

func (h *hands) step(d time.Duration) { h.wall = h.wall.Add(d) }

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func wantTime(t *testing.T, c *clock, want time.Time, alarmed bool) {
	t.Helper()
	if got := c.Now(); !got.Equal(want) {
		t.Errorf("it is %s instead of %s", got, want)
	}
	state, detail := c.check()
	if (state == metrics.Warning) != alarmed {
		t.Errorf("readiness says %s: %s", state, detail)
	}
}

func TestSteppedClockIsFollowedOnlyAfterAgreement(t *testing.T) {
	t.Parallel()
	for name, step := range map[string]time.Duration{"forward": 48 * time.Hour, "back": -48 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := &hands{wall: noon}
			c := h.clock(time.Time{})
			h.pass(c, time.Minute)
			wantTime(t, c, noon.Add(time.Minute), false)
			h.step(step)
			h.pass(c, clockAgreement)
			wantTime(t, c, noon.Add(time.Minute+clockAgreement), true)
			h.pass(c, clockEvery)
			wantTime(t, c, h.wall, false)
		})
	}
}

func TestClockThatIsSetBackAndForthIsNotFollowed(t *testing.T) {
	t.Parallel()
	h := &hands{wall: noon}
	c := h.clock(time.Time{})
	for range 10 {
		h.step(time.Hour)
		h.pass(c, clockAgreement/2)
		h.step(-time.Hour)
		h.pass(c, clockAgreement/2)
	}
	wantTime(t, c, noon.Add(10*clockAgreement), false)
	if c.stats().Adopted != 0 {
		t.Error("a time that did not last was adopted")
	}
}

func TestSmallDepartureIsFollowedWithoutAlarm(t *testing.T) {
	t.Parallel()
	h := &hands{wall: noon}
	c := h.clock(time.Time{})
	h.step(clockAlarm)
	h.pass(c, clockAgreement)
	wantTime(t, c, noon.Add(clockAgreement), false)
	h.pass(c, 2*clockEvery)
	wantTime(t, c, h.wall, false)
}

func TestTimeIsNeverBeforeTheStoresLast(t *testing.T) {
	t.Parallel()
	h := &hands{wall: noon}
	c := h.clock(noon.Add(time.Hour))
	wantTime(t, c, noon.Add(time.Hour), false)
	h.pass(c, 30*time.Minute)
	wantTime(t, c, noon.Add(90*time.Minute), true)
	// Once the machine's clock has passed the store's last time it can be followed.
	h.pass(c, 30*time.Minute)
	if now := c.Now(); now.Before(noon.Add(time.Hour)) {
		t.Errorf("it is %s", now)
	}
	wantTime(t, c, h.wall, false)
}

func TestNothingIsSweptSoonAfterALeap(t *testing.T) {
	t.Parallel()
	h := &hands{wall: noon}
	c := h.clock(time.Time{})
	h.pass(c, calmAfterLeap-clockEvery)
	if c.calm() {
		t.Error("it is calm at the start")
	}
	h.pass(c, clockEvery)
	if !c.calm() {
		t.Error("it is not calm after the start")
	}
	h.step(365 * 24 * time.Hour)
	h.pass(c, clockEvery)
	if c.calm() {
		t.Error("it is calm while the clocks depart")
	}
	h.pass(c, clockAgreement)
	if wantTime(t, c, h.wall, false); c.calm() {
		t.Error("it is calm right after the leap")
	}
	h.pass(c, calmAfterLeap)
	if !c.calm() {
		t.Error("it never becomes calm again")
	}
}

func TestRestartRemembersTheTime(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	at := noon
	store, err := boltstore.Create(boltstore.Options{Path: path, Now: func() time.Time { return at }})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if !store.LastTime().IsZero() && !store.LastTime().Equal(at) {
			t.Errorf("the store was last written at %s, it says %s", at, store.LastTime())
		}
		at = at.Add(time.Hour)
		if err := store.Stamp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		if store, err = boltstore.Open(boltstore.Options{Path: path, Now: func() time.Time { return at }}); err != nil {
			t.Fatal(err)
		}
	}
	if got := store.LastTime(); !got.Equal(at) {
		t.Errorf("the store was last written at %s, it says %s", at, got)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOperatorCanBelieveTheMachinesClock(t *testing.T) {
	cfg := defaultConfig()
	dir := t.TempDir()
	cfg.TokenStore.Path, cfg.Audit.Path = filepath.Join(dir, "tokens.db"), filepath.Join(dir, "audit.jsonl")
	log := slog.New(slog.DiscardHandler)
	ahead := func() time.Time { return time.Now().AddDate(10, 0, 0) }
	for i, believe := range []string{"", "", "1", ""} {
		t.Setenv(envBelieveClock, believe)
		machine := time.Now
		if i == 0 {
			machine = ahead
		}
		v, err := openVault(t.Context(), cfg, log, machine, opening{create: i == 0, serve: true})
		if err != nil {
			t.Fatal(err)
		}
		if behind := v.clock.Now().Before(ahead().AddDate(-1, 0, 0)); behind != (i >= 2) {
			t.Errorf("start %d begins at %s", i, v.clock.Now())
		}
		// A quota that was used up in ten years is there again, and no number of uses.
		admitted := useUp(t, v, &tokenstore.Token{ID: 7, Account: 1, Owner: 1, Limits: tokenstore.Limits{
			Uses: 5, Quotas: []tokenstore.Quota{{Count: 3, Per: tokenstore.PerDay}}}})
		if want := []int{3, 0, 2, 0}[i]; admitted != want {
			t.Errorf("start %d admits %d, want %d", i, admitted, want)
		}
		if err := v.store.Stamp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := v.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// useUp is how many requests with a token a server over v lets through.
func useUp(t *testing.T, v *vault, tok *tokenstore.Token) (admitted int) {
	t.Helper()
	kept, err := v.counting(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e := enforce.NewEngine(nil, 0)
	e.KeepCounts(kept.ledger, kept.sharers)
	for {
		d := enforce.Decision{Reason: enforce.Allowed, Match: tokenstore.Match{Token: tok}}
		if !e.Admit(&d, v.now()) {
			break
		}
		admitted++
	}
	if err := e.SettleCounts(t.Context(), v.now()); err != nil {
		t.Fatal(err)
	}
	return admitted
}

func TestClockRunsAndStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newClock(time.Now, steadyClock(), time.Time{}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		c.run(ctx)
		wantTime(t, c, time.Now().UTC(), false)
	})
}

func BenchmarkClock(b *testing.B) {
	c := newClock(time.Now, steadyClock(), time.Time{}, slog.New(slog.DiscardHandler))
	b.ReportAllocs()
	for b.Loop() {
		_ = c.Now()
	}
}
