package enforce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tokenward/tokenstore"
)

// memoryLedger keeps counts as a store does, and can fail.
type memoryLedger struct {
	mu     sync.Mutex
	kept   map[CountKey]Counts
	writes int
	err    error
}

func (l *memoryLedger) Most() int { return 1000 }

func (l *memoryLedger) Move(_ context.Context, claims []Claim) ([]Moved, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return nil, l.err
	}
	if l.kept == nil {
		l.kept = make(map[CountKey]Counts)
	}
	all, changed := make([]Moved, len(claims)), false
	for i := range claims {
		old := l.kept[claims[i].Key]
		all[i].Counts, all[i].Granted = claims[i].Apply(old)
		l.kept[claims[i].Key] = all[i].Counts
		changed = changed || all[i].Counts != old
	}
	if changed {
		l.writes++
	}
	return all, nil
}

// crashed is the ledger as a new process finds it.
func (l *memoryLedger) crashed() *memoryLedger {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &memoryLedger{kept: maps.Clone(l.kept)}
}

func limitedEngine(o LimitOptions, ledger Ledger) *Engine {
	e := NewEngine(nil, 0)
	e.SetLimits(o)
	if ledger != nil {
		e.KeepCounts(ledger, nil)
	}
	return e
}

// use admits one request of the token on the route and lets it end.
func use(e *Engine, t *tokenstore.Token, r *Route, now time.Time) Decision {
	d := Decision{Reason: Allowed, Route: r, Match: tokenstore.Match{Token: t}}
	e.Admit(&d, now)
	d.Release()
	return d
}

// uses is how many requests are admitted until one is not, and why that is.
func uses(e *Engine, t *tokenstore.Token, now time.Time) (int, Decision) {
	for n := 0; ; n++ {
		if d := use(e, t, nil, now); !d.Allowed() || n > 100_000 {
			return n, d
		}
	}
}

func with(id tokenstore.ID, account, owner uint64, l tokenstore.Limits) *tokenstore.Token {
	return &tokenstore.Token{ID: id, Account: account, Owner: owner, Limits: l}
}

func quota(n uint64, per tokenstore.Window) tokenstore.Limits {
	return tokenstore.Limits{Quotas: []tokenstore.Quota{{Count: n, Per: per}}}
}

func TestQuotaBeginsAnewWithItsWindow(t *testing.T) {
	day := time.Date(2026, 2, 28, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		per         tokenstore.Window
		begin, last time.Time // of one window
	}{
		{tokenstore.PerMinute, day, day.Add(time.Minute - 1)},
		{tokenstore.PerHour, day, day.Add(time.Hour - 1)},
		{tokenstore.PerDay, day, day.Add(24*time.Hour - 1)},
		{tokenstore.PerMonth, day.AddDate(0, 0, -27), day.Add(24*time.Hour - 1)},
		{tokenstore.PerMonth, time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 12, 31, 23, 59, 59, 999_999_999, time.UTC)},
	} {
		for _, ledger := range []Ledger{nil, &memoryLedger{}} {
			e := limitedEngine(LimitOptions{}, ledger)
			tok := with(1, 1, 1, quota(3, c.per))
			// In another zone, whose days begin elsewhere.
			zone := time.FixedZone("", 5*3600+1800)
			if d := use(e, tok, nil, c.begin.In(zone)); !d.Allowed() {
				t.Fatalf("%v: the first: %v", c.per, d.Reason)
			}
			n, d := uses(e, tok, c.last.In(zone))
			if n != 2 || d.Reason != QuotaExhausted || d.RetryAfter != 1 || d.Limited.Name != c.per.String() || d.Limited.Quota != 3 {
				t.Errorf("%v: %d more by the last instant of the window, then %v, retry after %v, %+v", c.per, n, d.Reason, d.RetryAfter, d.Limited)
			}
			if n, _ := uses(e, tok, c.last.Add(1)); n != 3 {
				t.Errorf("%v: %d in the next window", c.per, n)
			}
			if n, _ := uses(e, tok, c.last); n != 0 {
				t.Errorf("%v: a clock that goes back gave %d", c.per, n)
			}
		}
	}
}

func TestUsesAreForGood(t *testing.T) {
	e := limitedEngine(LimitOptions{}, nil)
	tok := with(1, 1, 1, tokenstore.Limits{Uses: 5})
	n, d := uses(e, tok, start)
	if n != 5 || d.Reason != UsesExhausted || d.RetryAfter != 0 || d.Status() != 429 {
		t.Fatalf("%d, %v, retry after %v", n, d.Reason, d.RetryAfter)
	}
	if n, _ := uses(e, tok, start.AddDate(10, 0, 0)); n != 0 {
		t.Fatalf("%d after ten years", n)
	}
}

func TestConcurrencyIsGivenBackOnce(t *testing.T) {
	e := limitedEngine(LimitOptions{}, nil)
	tok := with(1, 1, 1, tokenstore.Limits{Concurrent: 2})
	var d [3]Decision
	for i := range d {
		d[i] = Decision{Reason: Allowed, Match: tokenstore.Match{Token: tok}}
		e.Admit(&d[i], start)
	}
	if !d[0].Allowed() || !d[1].Allowed() || d[2].Reason != TooManyAtOnce || d[2].RetryAfter != time.Second {
		t.Fatalf("%v %v %v", d[0].Reason, d[1].Reason, d[2].Reason)
	}
	d[2].Release() // held nothing
	d[0].Release()
	d[0].Release() // again
	if again := (Decision{Reason: Allowed, Match: tokenstore.Match{Token: tok}}); !e.Admit(&again, start) {
		t.Fatalf("after one has ended: %v", again.Reason)
	}
	if d := use(e, tok, nil, start); d.Reason != TooManyAtOnce {
		t.Fatalf("two are in flight: %v", d.Reason)
	}
}

// TestEveryPlaceOfARequestIsGivenBack holds a request in flight by each limit of its own,
// and by all of them together.
func TestEveryPlaceOfARequestIsGivenBack(t *testing.T) {
	one := tokenstore.Limits{Concurrent: 1}
	for name, c := range map[string]struct {
		token tokenstore.Limits
		route *Route
		other LimitOptions
		want  Reason
	}{
		"token":   {one, nil, LimitOptions{}, TooManyAtOnce},
		"route":   {tokenstore.Limits{}, &Route{hash: 1, limits: one}, LimitOptions{}, RouteLimited},
		"owner":   {tokenstore.Limits{}, nil, LimitOptions{Owner: one}, OwnerLimited},
		"account": {tokenstore.Limits{}, nil, LimitOptions{Account: one}, AccountLimited},
		"all":     {one, &Route{hash: 1, limits: one}, LimitOptions{Owner: one, Account: one}, TooManyAtOnce},
		"a route does not concern a token with its own": {tokenstore.Limits{Concurrent: 2}, &Route{hash: 1, limits: one}, LimitOptions{}, Allowed},
	} {
		e := limitedEngine(c.other, nil)
		tok := with(1, 1, 1, c.token)
		for range 3 {
			first := Decision{Reason: Allowed, Route: c.route, Match: tokenstore.Match{Token: tok}}
			if !e.Admit(&first, start) || !first.Holds() {
				t.Fatalf("%s: %v, holds %v", name, first.Reason, first.Holds())
			}
			if second := use(e, tok, c.route, start); second.Reason != c.want {
				t.Errorf("%s: while one is in flight %v, want %v", name, second.Reason, c.want)
			}
			if first.Release(); first.Holds() {
				t.Errorf("%s: something is still held", name)
			}
		}
	}
}

// TestRefusalChargesNoOtherLimit has each limit refuse in turn, and then sees that
// all others have what they had.
func TestRefusalChargesNoOtherLimit(t *testing.T) {
	one := tokenstore.Limits{Rate: 0.001, Burst: 1}
	many := tokenstore.Limits{Rate: 0.001, Burst: 100, Concurrent: 100, Quotas: []tokenstore.Quota{{Count: 100, Per: tokenstore.PerMonth}}}
	manyUses := many
	manyUses.Uses = 100
	route := &Route{hash: 7, limits: tokenstore.Limits{Rate: 0.001, Burst: 100, Concurrent: 100}}
	for _, c := range []struct {
		name string
		tok  tokenstore.Limits
		o    LimitOptions
		r    *Route
		want Reason
	}{
		{"token's rate", one, LimitOptions{Owner: many, Account: many}, route, RateLimited},
		{"token's quota", quota(1, tokenstore.PerMonth), LimitOptions{Owner: many, Account: many}, route, QuotaExhausted},
		{"token's uses", tokenstore.Limits{Uses: 1}, LimitOptions{Owner: many, Account: many}, route, UsesExhausted},
		{"route's rate", tokenstore.Limits{Uses: 100}, LimitOptions{Owner: many, Account: many}, &Route{hash: 7, limits: one}, RouteLimited},
		{"owner's rate", manyUses, LimitOptions{Owner: one, Account: many}, route, OwnerLimited},
		{"account's rate", manyUses, LimitOptions{Owner: many, Account: one}, route, AccountLimited},
		{"account's quota", manyUses, LimitOptions{Owner: many, Account: quota(1, tokenstore.PerDay)}, route, AccountLimited},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := limitedEngine(c.o, &memoryLedger{})
			tok := with(1, 2, 3, c.tok)
			if d := use(e, tok, c.r, start); !d.Allowed() {
				t.Fatal(d.Reason)
			}
			before := fmt.Sprint(e.AppendLeft(nil, tok, c.r, start))
			for range 5 {
				if d := use(e, tok, c.r, start); d.Reason != c.want || d.Limited.Left != 0 || d.Limited.Name == "" {
					t.Fatalf("%v, want %v: %+v", d.Reason, c.want, d.Limited)
				}
			}
			if after := fmt.Sprint(e.AppendLeft(nil, tok, c.r, start)); after != before {
				t.Errorf("before %s\nafter  %s", before, after)
			}
		})
	}
}

// TestRefusalIsByWhatRefusesForLongest: who comes back when the answer said is not to
// be refused by another limit that had no room either.
func TestRefusalIsByWhatRefusesForLongest(t *testing.T) {
	at := time.Date(2026, 12, 31, 22, 59, 50, 0, time.UTC)
	perMinute, perHour, perDay := tokenstore.Quota{Count: 1, Per: tokenstore.PerMinute}, tokenstore.Quota{Count: 1, Per: tokenstore.PerHour}, tokenstore.Quota{Count: 1, Per: tokenstore.PerDay}
	for _, c := range []struct {
		name string
		tok  tokenstore.Limits
		o    LimitOptions
		want Left
		by   Reason
	}{
		{"quotas", tokenstore.Limits{Quotas: []tokenstore.Quota{perMinute, perDay, perHour}}, LimitOptions{},
			Left{Name: "day", Quota: 1, Window: 24 * time.Hour, Reset: time.Hour + 10*time.Second}, QuotaExhausted},
		{"rate and quota", tokenstore.Limits{Rate: 0.01, Burst: 1, Quotas: []tokenstore.Quota{perMinute}}, LimitOptions{},
			Left{Name: "rate", Quota: 1, Window: 100 * time.Second, Reset: 100 * time.Second}, RateLimited},
		{"token's quota and account's", tokenstore.Limits{Quotas: []tokenstore.Quota{perMinute}}, LimitOptions{Account: tokenstore.Limits{Quotas: []tokenstore.Quota{perHour}}},
			Left{Name: "minute", Quota: 1, Window: time.Minute, Reset: 10 * time.Second}, QuotaExhausted}, // equally long
		{"uses and quota", tokenstore.Limits{Uses: 1, Quotas: []tokenstore.Quota{perDay}}, LimitOptions{},
			Left{Name: "uses", Quota: 1}, UsesExhausted},
		{"quota and owner's rate", tokenstore.Limits{Quotas: []tokenstore.Quota{perMinute}}, LimitOptions{Owner: tokenstore.Limits{Rate: 0.001, Burst: 1}},
			Left{Name: "owner-rate", Quota: 1, Window: 1000 * time.Second, Reset: 1000 * time.Second}, OwnerLimited},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := limitedEngine(c.o, &memoryLedger{})
			tok := with(1, 2, 3, c.tok)
			if d := use(e, tok, nil, at); !d.Allowed() {
				t.Fatal(d.Reason)
			}
			d := use(e, tok, nil, at)
			if d.Limited != c.want || d.Reason != c.by || d.RetryAfter != c.want.Reset {
				t.Errorf("%v, retry after %v: %+v, want %+v", d.Reason, d.RetryAfter, d.Limited, c.want)
			}
			if c.want.Reset == 0 {
				return
			}
			if d := use(e, tok, nil, at.Add(d.RetryAfter)); !d.Allowed() {
				t.Errorf("after that wait: %v", d.Reason)
			}
		})
	}
	t.Run("concurrency and quota", func(t *testing.T) {
		e := limitedEngine(LimitOptions{}, &memoryLedger{})
		d := Decision{Reason: Allowed, Match: tokenstore.Match{Token: with(1, 1, 1, tokenstore.Limits{Concurrent: 1, Quotas: []tokenstore.Quota{perHour}})}}
		again := d
		if !e.Admit(&d, at) || e.Admit(&again, at) || again.Reason != QuotaExhausted || again.RetryAfter != 10*time.Second {
			t.Errorf("%v, then %v, retry after %v", d.Reason, again.Reason, again.RetryAfter)
		}
	})
}

// TestWhatIsLeftIsOfTheWindowThatIsCounted: the clock was set back, and the window stays.
func TestWhatIsLeftIsOfTheWindowThatIsCounted(t *testing.T) {
	e := limitedEngine(LimitOptions{}, nil)
	tok := with(1, 1, 1, quota(1, tokenstore.PerHour))
	use(e, tok, nil, start)
	back := start.Add(-3 * time.Hour)
	d := use(e, tok, nil, back)
	left := e.AppendLeft(nil, tok, nil, back)
	if len(left) != 1 || left[0].Left != 0 || left[0].Reset != d.RetryAfter || left[0].Reset <= 3*time.Hour {
		t.Errorf("%+v, and the refusal says %v", left, d.RetryAfter)
	}
}

func TestMoreTokensBuyNothing(t *testing.T) {
	o := LimitOptions{Owner: tokenstore.Limits{Rate: 0.001, Burst: 3}, Account: tokenstore.Limits{Rate: 0.001, Burst: 5}}
	e := limitedEngine(o, nil)
	admitted := func(owner uint64, from tokenstore.ID) (n int) {
		for id := from; id < from+10; id++ {
			if d := use(e, with(id, 42, owner, tokenstore.Limits{}), nil, start); d.Allowed() {
				n++
			}
		}
		return n
	}
	if n := admitted(1, 1); n != 3 {
		t.Errorf("the first owner's tokens got %d", n)
	}
	if n := admitted(2, 100); n != 2 {
		t.Errorf("the second owner's tokens got %d of what is left of the account's", n)
	}
	if n, _ := uses(e, with(500, 43, 1, tokenstore.Limits{}), start); n != 3 {
		t.Errorf("an owner of the same number in another account got %d", n)
	}
	for range 10 {
		if d := use(e, with(900, tokenstore.Root, 1, tokenstore.Limits{}), nil, start); !d.Allowed() {
			t.Fatalf("root: %v", d.Reason)
		}
	}
}

// lineage is what n resets in a row make of a token with the limits, within one grace
// period, together with the token as it was before.
func lineage(n int, l tokenstore.Limits) []*tokenstore.Token {
	line := []*tokenstore.Token{with(70, 42, 1, l), with(70, 42, 1, l)}
	for i := range n {
		old := line[len(line)-1]
		next := with(old.ID-tokenstore.ID(1+i), 42, 1, l) //nolint:gosec // small. Ids need not grow
		next.Lineage, old.ReplacedBy = old.MeasuredAs(), next.ID
		line = append(line, next)
	}
	return line
}

// TestResetsInARowGiveNothing resets a token three times, and uses all that work in
// the grace period in turn: they have what one has.
func TestResetsInARowGiveNothing(t *testing.T) {
	slow := &Route{hash: 1, limits: tokenstore.Limits{Rate: 1e-3, Burst: 7}}
	for name, c := range map[string]struct {
		limits tokenstore.Limits
		route  *Route
		most   int
		reason Reason
		kept   bool // over a restart
	}{
		"uses":       {tokenstore.Limits{Uses: 10}, nil, 10, UsesExhausted, true},
		"quota":      {quota(9, tokenstore.PerDay), nil, 9, QuotaExhausted, true},
		"rate":       {tokenstore.Limits{Rate: 1e-3, Burst: 8}, nil, 8, RateLimited, false},
		"route rate": {tokenstore.Limits{}, slow, 7, RouteLimited, false},
	} {
		t.Run(name, func(t *testing.T) {
			line := lineage(3, c.limits)
			ledger := &memoryLedger{}
			e := limitedEngine(LimitOptions{}, ledger)
			total := 0
			for n := range c.most {
				if d := use(e, line[n%len(line)], c.route, start); !d.Allowed() {
					t.Fatalf("use %d is refused: %v", n, d.Reason)
				}
				if total++; total == c.most/2 && c.kept {
					if err := e.SettleCounts(t.Context(), start); err != nil {
						t.Fatal(err)
					}
					e = limitedEngine(LimitOptions{}, ledger.crashed())
				}
			}
			for _, tok := range line {
				if d := use(e, tok, c.route, start); d.Reason != c.reason {
					t.Errorf("token %d goes on beyond what was left: %v", tok.ID, d.Reason)
				}
				for _, left := range e.AppendLeft(nil, tok, c.route, start) {
					if left.Left != 0 {
						t.Errorf("token %d is told of %+v", tok.ID, left)
					}
				}
			}
		})
	}
	t.Run("concurrent", func(t *testing.T) {
		e := limitedEngine(LimitOptions{}, nil)
		line := lineage(3, tokenstore.Limits{Concurrent: 2})
		held := [2]Decision{}
		for i := range held {
			held[i] = Decision{Reason: Allowed, Match: tokenstore.Match{Token: line[i]}}
			if !e.Admit(&held[i], start) {
				t.Fatal(held[i].Reason)
			}
		}
		for _, tok := range line {
			if d := use(e, tok, nil, start); d.Reason != TooManyAtOnce {
				t.Errorf("token %d: %v", tok.ID, d.Reason)
			}
		}
		held[0].Release()
		for _, tok := range line {
			if d := use(e, tok, nil, start); !d.Allowed() {
				t.Errorf("token %d, with room again: %v", tok.ID, d.Reason)
			}
		}
	})
}

// TestOthersLimitsAreNotOfTheLineage: what a token of the lineage made has its own.
func TestOthersLimitsAreNotOfTheLineage(t *testing.T) {
	e := limitedEngine(LimitOptions{}, &memoryLedger{})
	line := lineage(2, tokenstore.Limits{Uses: 5})
	other := with(71, 42, 1, tokenstore.Limits{Uses: 5})
	if n, _ := uses(e, line[3], start); n != 5 {
		t.Errorf("%d uses of 5", n)
	}
	if n, _ := uses(e, other, start); n != 5 {
		t.Errorf("another token of the owner has %d uses of 5", n)
	}
}

func TestRouteLimitIsForTokensWithoutTheirOwn(t *testing.T) {
	e := limitedEngine(LimitOptions{}, nil)
	slow := &Route{hash: 1, limits: tokenstore.Limits{Rate: 0.001, Burst: 2}}
	other := &Route{hash: 2, limits: tokenstore.Limits{Rate: 0.001, Burst: 2}}
	count := func(tok *tokenstore.Token, r *Route) (n int) {
		for use(e, tok, r, start).Reason == Allowed && n < 10 {
			n++
		}
		return n
	}
	for _, c := range []struct {
		name string
		tok  *tokenstore.Token
		r    *Route
		want int
	}{
		{"no limit of its own", with(1, 1, 1, tokenstore.Limits{}), slow, 2},
		{"on another route", with(1, 1, 1, tokenstore.Limits{}), other, 2},
		{"another token", with(2, 1, 1, tokenstore.Limits{}), slow, 2},
		{"its own rate", with(3, 1, 1, tokenstore.Limits{Rate: 0.001, Burst: 5}), slow, 5},
		{"a quota is not a rate", with(4, 1, 1, quota(8, tokenstore.PerDay)), slow, 2},
	} {
		if n := count(c.tok, c.r); n != c.want {
			t.Errorf("%s: %d, want %d", c.name, n, c.want)
		}
	}
}

// TestCrashGivesNothingBack uses part of a count, loses the process, and goes on
// with what the ledger has: together never more than the limit.
func TestCrashGivesNothingBack(t *testing.T) {
	month := 100_000 // of which a block is as large as blocks become
	if os.Getenv("TOKENWARD_SOAK") == "1" {
		month = 1_000_000
	}
	for _, c := range []struct {
		name  string
		limit tokenstore.Limits
		most  int
		least int // that a crash leaves of it
	}{
		{"single use", tokenstore.Limits{Uses: 1}, 1, 1},
		{"uses", tokenstore.Limits{Uses: 1000}, 1000, 1000 - 2*100},
		{"day", quota(50, tokenstore.PerDay), 50, 50 - 2*5},
		{"month", quota(uint64(month), tokenstore.PerMonth), month, month - 2*4096}, //nolint:gosec // not negative
	} {
		for _, used := range []int{0, 1, 7, c.most / 2, c.most} {
			for _, flush := range []bool{false, true} {
				ledger := &memoryLedger{}
				tok := with(1, 1, 1, c.limit)
				e := limitedEngine(LimitOptions{}, ledger)
				n := 0
				for n < min(used, c.most) && use(e, tok, nil, start).Reason == Allowed {
					n++
				}
				if flush {
					if err := e.FlushCounts(t.Context(), start); err != nil {
						t.Fatal(err)
					}
				}
				again := limitedEngine(LimitOptions{}, ledger.crashed())
				total := n
				for use(again, tok, nil, start.Add(time.Second)).Reason == Allowed {
					total++
				}
				if total > c.most || total < min(c.least, c.most) {
					t.Errorf("%s: %d before the crash (flushed: %v), %d in all, want %d to %d", c.name, n, flush, total, c.least, c.most)
				}
			}
		}
	}
}

func TestCleanRestartLosesNothing(t *testing.T) {
	ledger := &memoryLedger{}
	limits := tokenstore.Limits{Uses: 1000, Quotas: []tokenstore.Quota{{Count: 500, Per: tokenstore.PerDay}, {Count: 400, Per: tokenstore.PerMinute}}}
	tok := with(1, 1, 1, limits)
	used := 0
	for range 4 {
		e := limitedEngine(LimitOptions{}, ledger)
		for range 30 {
			if d := use(e, tok, nil, start); !d.Allowed() {
				t.Fatal(d.Reason)
			}
			used++
		}
		if err := e.SettleCounts(t.Context(), start); err != nil {
			t.Fatal(err)
		}
		again := limitedEngine(LimitOptions{}, ledger.crashed())
		use(again, tok, nil, start)
		for _, l := range again.AppendLeft(nil, tok, nil, start) {
			if l.Left != l.Quota-uint64(used)-1 {
				t.Errorf("%s: %d of %d left after %d", l.Name, l.Left, l.Quota, used+1)
			}
		}
	}
}

func TestLedgerThatCannotBeWrittenDenies(t *testing.T) {
	ledger := &memoryLedger{}
	e := limitedEngine(LimitOptions{}, ledger)
	tok := with(1, 1, 1, tokenstore.Limits{Uses: 100})
	if d := use(e, tok, nil, start); !d.Allowed() {
		t.Fatal(d.Reason)
	}
	ledger.err = errors.New("disk full")
	n, d := uses(e, tok, start)
	if n != 9 || d.Reason != StoreUnavailable || !errors.Is(d.Cause, ledger.err) || d.Status() != 503 {
		t.Fatalf("%d of the block were used, then %v, %v", n, d.Reason, d.Cause)
	}
	if err := e.FlushCounts(t.Context(), start); !errors.Is(err, ledger.err) {
		t.Fatal(err)
	}
	ledger.err = nil
	if n, d := uses(e, tok, start); n != 90 || d.Reason != UsesExhausted {
		t.Fatalf("%d once it can be written again, then %v", n, d.Reason)
	}
}

// TestFlushKeepsAheadOfUse: between flushes a steady use waits for no write.
func TestFlushKeepsAheadOfUse(t *testing.T) {
	ledger := &memoryLedger{}
	e := limitedEngine(LimitOptions{}, ledger)
	tok := with(1, 1, 1, quota(10_000, tokenstore.PerDay))
	now := start
	for range 10 {
		for range 400 {
			use(e, tok, nil, now)
		}
		before := ledger.writes
		now = now.Add(time.Second)
		if err := e.FlushCounts(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		if ledger.writes > before+1 {
			t.Fatalf("%d writes in one flush", ledger.writes-before)
		}
	}
	if ledger.writes > 11 {
		t.Errorf("%d writes for 10 flushes", ledger.writes)
	}
	// Once it is quiet, the rest of the block is given back.
	for range settleAfter + 2 {
		now = now.Add(time.Second)
		if err := e.FlushCounts(t.Context(), now); err != nil {
			t.Fatal(err)
		}
	}
	if got := ledger.kept[meterKey{ofToken, 1, 0}.countKey()]; got[limitDay].N != 4000 {
		t.Errorf("%d are kept of 4000 used", got[limitDay].N)
	}
}

// TestLimitsHoldUnderContention has many goroutines use tokens of one account up,
// with a ledger and flushes beside them.
func TestLimitsHoldUnderContention(t *testing.T) {
	ledger := &memoryLedger{}
	o := LimitOptions{Owner: tokenstore.Limits{Concurrent: 4}, Account: quota(1000, tokenstore.PerDay)}
	e := limitedEngine(o, ledger)
	var wg sync.WaitGroup
	var mu sync.Mutex
	admitted, most := 0, uint64(0)
	for g := range 8 {
		wg.Go(func() {
			tok := with(tokenstore.ID(g%3+1), 42, 1, tokenstore.Limits{Uses: 400})
			for range 1000 {
				d := Decision{Reason: Allowed, Match: tokenstore.Match{Token: tok}}
				if !e.Admit(&d, start) {
					continue
				}
				mu.Lock()
				admitted++
				mu.Unlock()
				m := e.limits.look(meterKey{ofOwner, 42, 1})
				m.mu.Lock()
				most = max(most, m.inFlight)
				m.mu.Unlock()
				d.Release()
			}
		})
	}
	for range 20 {
		if err := e.FlushCounts(t.Context(), start); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if admitted > 1000 || most > 4 {
		t.Errorf("%d were admitted of 1000, %d at once of 4", admitted, most)
	}
	if m := e.limits.look(meterKey{ofOwner, 42, 1}); m.inFlight != 0 {
		t.Errorf("%d are held after all have ended", m.inFlight)
	}
}

// TestOnlyWhatHasNothingToRememberIsEvicted fills a table of one place a shard.
func TestOnlyWhatHasNothingToRememberIsEvicted(t *testing.T) {
	held := Decision{Reason: Allowed, Match: tokenstore.Match{Token: with(1, 1, 1, tokenstore.Limits{Concurrent: 1})}}
	for _, c := range []struct {
		name  string
		first func(l *limitTable)
		now   time.Time
		want  Reason
	}{
		{"in flight", func(l *limitTable) { l.admit(&held, nil, nil, start) }, start, LimitsFull},
		{"no longer", func(l *limitTable) { l.admit(&held, nil, nil, start); held.Release() }, start, Allowed},
		{"a quota in use", func(l *limitTable) { admit(l, with(1, 1, 1, quota(5, tokenstore.PerHour)), start) }, start, LimitsFull},
		{"a quota that is over", func(l *limitTable) { admit(l, with(1, 1, 1, quota(5, tokenstore.PerHour)), start) }, start.Add(time.Hour), Allowed},
		{"uses", func(l *limitTable) { admit(l, with(1, 1, 1, tokenstore.Limits{Uses: 5}), start) }, start.AddDate(1, 0, 0), LimitsFull},
	} {
		l := newLimitTable(limitShards)
		held = Decision{Reason: Allowed, Match: held.Match}
		c.first(l)
		if r, _ := admit(l, with(1+limitShards, 1, 1, tokenstore.Limits{Rate: 1, Burst: 1}), c.now); r != c.want {
			t.Errorf("%s: %v, want %v", c.name, r, c.want)
		}
	}
}

// TestSettledCountsGiveWay: what the ledger has exactly can be loaded again.
func TestSettledCountsGiveWay(t *testing.T) {
	l := newLimitTable(limitShards)
	l.ledger = newLedgerBook(&memoryLedger{}, nil)
	tok := with(1, 1, 1, tokenstore.Limits{Uses: 5})
	other := with(1+limitShards, 1, 1, tokenstore.Limits{Rate: 1, Burst: 1})
	admit(l, tok, start)
	if r, _ := admit(l, other, start); r != LimitsFull {
		t.Fatalf("%v: the count is not settled", r)
	}
	if err := l.ledger.flush(t.Context(), start, true); err != nil {
		t.Fatal(err)
	}
	if r, _ := admit(l, other, start); r != Allowed {
		t.Fatal(r)
	}
	now := start.Add(time.Hour)
	for i, want := range []Reason{Allowed, Allowed, Allowed, Allowed, UsesExhausted} {
		if r, _ := admit(l, tok, now); r != want {
			t.Fatalf("use %d after it came back: %v, want %v", i+2, r, want)
		}
	}
}

func TestOnlyFailuresAreLimitedByFailures(t *testing.T) {
	e := limitedEngine(LimitOptions{Failures: FailureLimit{PerMinute: 60, Burst: 3}}, nil)
	v4 := netip.MustParseAddr("192.0.2.1")
	fail := func(r Reason, addr netip.Addr, at time.Duration) Decision {
		d := Decision{Reason: r}
		e.Fail(&d, addr, start.Add(at))
		return d
	}
	for i, want := range []Reason{UnknownToken, UnknownToken, UnknownToken, TooManyFailures, TooManyFailures} {
		d := fail(UnknownToken, v4, 0)
		if d.Reason != want {
			t.Fatalf("failure %d: %v", i+1, d.Reason)
		}
		if want == TooManyFailures && (d.RetryAfter != time.Second || d.Status() != 429) {
			t.Fatalf("retry after %v, status %d", d.RetryAfter, d.Status())
		}
	}
	for _, r := range Reasons() {
		if r.Code() == codeInvalidToken {
			if d := fail(r, v4, 0); d.Reason != TooManyFailures {
				t.Errorf("%v is a failed credential", r)
			}
		} else if d := fail(r, v4, 0); d.Reason != r {
			t.Errorf("%v became %v", r, d.Reason)
		}
	}
	if d := fail(UnknownToken, v4, time.Second); d.Reason != UnknownToken {
		t.Errorf("after a second: %v", d.Reason)
	}
	if d := fail(UnknownToken, v4, time.Second); d.Reason != TooManyFailures {
		t.Errorf("and once more: %v", d.Reason)
	}
	if d := fail(UnknownToken, netip.MustParseAddr("::ffff:192.0.2.1"), time.Second); d.Reason != TooManyFailures {
		t.Errorf("the same address mapped to IPv6: %v", d.Reason)
	}
	if d := fail(UnknownToken, netip.MustParseAddr("192.0.2.2"), 0); d.Reason != UnknownToken {
		t.Errorf("the neighbour: %v", d.Reason)
	}
	for range 3 {
		fail(RevokedToken, netip.MustParseAddr("2001:db8:0:1::1"), 0)
		fail(RevokedToken, netip.Addr{}, 0)
	}
	for addr, want := range map[string]Reason{"2001:db8:0:1:ffff::2%eth0": TooManyFailures, "2001:db8::1": UnknownToken, "2001:db8:0:2::1": UnknownToken} {
		if d := fail(UnknownToken, netip.MustParseAddr(addr), 0); d.Reason != want {
			t.Errorf("%s: %v", addr, d.Reason)
		}
	}
	if d := fail(UnknownToken, netip.Addr{}, 0); d.Reason != TooManyFailures {
		t.Errorf("another unknown address: %v", d.Reason)
	}
	e.SetLimits(LimitOptions{Failures: FailureLimit{PerMinute: 2}})
	for i, want := range []Reason{UnknownToken, UnknownToken, TooManyFailures} {
		if d := fail(UnknownToken, netip.MustParseAddr("192.0.2.3"), 0); d.Reason != want {
			t.Errorf("failure %d without a burst: %v, want %v", i+1, d.Reason, want)
		}
	}
	e.SetLimits(LimitOptions{})
	if d := fail(UnknownToken, v4, 0); d.Reason != UnknownToken {
		t.Errorf("without a limit: %v", d.Reason)
	}
}

func TestFailuresOfManyAddressesAreBounded(t *testing.T) {
	var f failureTable
	limit := FailureLimit{PerMinute: 1, Burst: 1}
	addr := netip.MustParseAddr("10.0.0.0")
	refused := 0
	for range 2 * maxFailing {
		if _, ok := f.failed(limit, addr, start); !ok {
			refused++
		}
		addr = addr.Next()
	}
	held := 0
	for i := range f.shards {
		held += len(f.shards[i].due)
	}
	if held > maxFailing || refused != 2*maxFailing-held {
		t.Errorf("%d are held, %d were refused", held, refused)
	}
	if _, ok := f.failed(limit, addr, start.Add(time.Hour)); !ok {
		t.Error("what is over does not give way")
	}
}

func TestCountsArePrintedAndReadBack(t *testing.T) {
	c := Counts{{0, 1}, {-1, 2}, {3, 1 << 63}}
	got, err := ParseCounts(c.Append(nil))
	if err != nil || got != c {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := ParseCounts(nil); err != nil || got != (Counts{}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := ParseCounts(c.Append(nil)[1:]); err == nil {
		t.Error("cut counts were read")
	}
}

// BenchmarkAdmit is what limits cost a request. The promise is 150 ns.
func BenchmarkAdmit(b *testing.B) {
	for _, c := range []struct {
		name   string
		limits tokenstore.Limits
		o      LimitOptions
	}{
		{"none", tokenstore.Limits{}, LimitOptions{}},
		{"rate", tokenstore.Limits{Rate: 1e9, Burst: 1e9}, LimitOptions{}},
		{"quota", quota(1<<50, tokenstore.PerDay), LimitOptions{}},
		{"concurrent", tokenstore.Limits{Concurrent: 1000}, LimitOptions{}},
		{"rate-quota-concurrent", tokenstore.Limits{Rate: 1e9, Burst: 1e9, Concurrent: 1000, Quotas: quota(1<<50, tokenstore.PerDay).Quotas}, LimitOptions{}},
		{"rate-of-token-and-account", tokenstore.Limits{Rate: 1e9, Burst: 1e9}, LimitOptions{Account: tokenstore.Limits{Rate: 1e9, Burst: 1e9}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			e := limitedEngine(c.o, &memoryLedger{})
			tok := with(1, 1, 1, c.limits)
			now := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				d := Decision{Reason: Allowed, Match: tokenstore.Match{Token: tok}}
				if !e.Admit(&d, now) {
					b.Fatal(d.Reason)
				}
				d.Release()
			}
		})
	}
}

// TestOneTenantCannotLockOutTheOthers fills the table with one account's tokens
// that refill in weeks, each used once.
func TestOneTenantCannotLockOutTheOthers(t *testing.T) {
	e := NewEngine(nil, 64*limitShards)
	admit := func(id, account uint64) Reason {
		tok := &tokenstore.Token{ID: tokenstore.ID(id), Account: account, Owner: 1, Limits: tokenstore.Limits{Rate: 1e-6, Burst: 1}}
		d := Decision{Reason: Allowed, Match: tokenstore.Match{Token: tok, Secret: &tokenstore.SecretRecord{}}}
		e.Admit(&d, start)
		d.Release()
		return d.Reason
	}
	refused := 0
	for id := uint64(1); id <= 64*limitShards*2; id++ {
		if admit(id, 1) == LimitsFull {
			refused++
		}
	}
	if refused == 0 {
		t.Fatal("one account filled the whole table")
	}
	for id := uint64(1); id <= 1000; id++ {
		if r := admit(1<<30+id, 2+id%100); r != Allowed {
			t.Fatalf("token %d of another account: %v", id, r)
		}
	}
}

// TestMeterThatWasEvictedBetweenDecideAndAdmitIsNotCharged: what a request found before
// its judgement is forgotten by the time it is charged. A charge to it would be lost, and
// the next request find a full bucket.
func TestMeterThatWasEvictedBetweenDecideAndAdmitIsNotCharged(t *testing.T) {
	t.Parallel()
	l := newLimitTable(limitShards) // one in each shard
	one, other := with(1, 1, 1, tokenstore.Limits{Rate: 1, Burst: 1}), with(1+limitShards, 1, 1, tokenstore.Limits{Rate: 1, Burst: 1})
	if r, _ := admit(l, one, start); r != Allowed {
		t.Fatal(r)
	}
	near := l.look(meterKey{ofToken, uint64(one.ID), 0})
	if near == nil {
		t.Fatal("the meter of a token in use is not found")
	}
	later := start.Add(2 * time.Second)
	if r, _ := admit(l, other, later); r != Allowed || !near.gone {
		t.Fatalf("the other token: %v, and the meter is gone: %v", r, near.gone)
	}
	for _, c := range []struct {
		at   time.Time
		want Reason
	}{
		{later, LimitsFull}, // the other one's has something to remember
		{later.Add(2 * time.Second), Allowed},
		{later.Add(2 * time.Second), RateLimited},
	} {
		d := Decision{Reason: Allowed, Match: tokenstore.Match{Token: one}}
		if l.admit(&d, near, nil, c.at); d.Reason != c.want {
			t.Errorf("at %v: %v, want %v", c.at, d.Reason, c.want)
		}
	}
}

// TestRacingEvictionsChargeNoMeterThatIsGone has tokens push each other's meters out of a
// table with room for one, while requests bring meters that they found long before.
func TestRacingEvictionsChargeNoMeterThatIsGone(t *testing.T) {
	t.Parallel()
	const tokens, workers, turns, step = 3, 4, 10_000, 700 * time.Millisecond
	l := newLimitTable(limitShards) // one in each shard
	var clock, admitted, gone atomic.Int64
	var working sync.WaitGroup
	for worker := range uint64(workers) {
		working.Go(func() {
			r := rand.New(rand.NewPCG(worker, 1)) //nolint:gosec // repeatable
			var near [tokens]*meter
			left := make(map[*meter]bucket) // what meters held that were gone
			for range turns {
				i := r.IntN(tokens)
				tok := with(tokenstore.ID(1+i*limitShards), 1, 1, tokenstore.Limits{Rate: 1, Burst: 2}) //nolint:gosec // small
				if near[i] == nil || r.IntN(10) == 0 {
					near[i] = l.look(meterKey{ofToken, uint64(tok.ID), 0})
				}
				d := Decision{Reason: Allowed, Match: tokenstore.Match{Token: tok}}
				l.admit(&d, near[i], nil, start.Add(time.Duration(clock.Add(1))*step))
				switch d.Reason {
				case Allowed:
					admitted.Add(1)
				case RateLimited, LimitsFull:
				default:
					t.Errorf("decided %v", d.Reason)
					return
				}
				m := near[i]
				if m == nil {
					continue
				}
				m.mu.Lock()
				if before, seen := left[m]; seen && m.bucket != before {
					t.Errorf("a meter that was gone was charged: it held %+v, and now %+v", before, m.bucket)
				}
				if m.gone {
					left[m] = m.bucket
				}
				m.mu.Unlock()
			}
			gone.Add(int64(len(left)))
		})
	}
	working.Wait()
	if admitted.Load() == 0 || gone.Load() == 0 {
		t.Errorf("%d requests were admitted, and %d of the meters that they brought were gone", admitted.Load(), gone.Load())
	}
}
