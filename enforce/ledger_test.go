package enforce

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"tokenward/tokenstore"
)

// FuzzClaim holds what every count must be after any claim.
func FuzzClaim(f *testing.F) {
	f.Add(int64(0), uint64(0), int64(0), int64(10), uint64(100))
	f.Add(int64(3600), uint64(95), int64(3600), int64(10), uint64(100))
	f.Add(int64(3600), uint64(95), int64(7200), int64(10), uint64(100))
	f.Add(int64(7200), uint64(95), int64(3600), int64(10), uint64(100))
	f.Add(int64(0), uint64(5), int64(0), int64(-10), uint64(100))
	f.Add(int64(-1), uint64(math.MaxUint64), int64(-1), int64(math.MinInt64), uint64(0))
	f.Add(int64(0), uint64(1), int64(0), int64(math.MaxInt64), uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, begin int64, n uint64, claimed, add int64, most uint64) {
		old := Counts{limitHour: {begin, n}, limitDay: {1, 2}}
		c := Claim{}
		c.Draws[limitHour] = Draw{Begin: claimed, Add: add, Most: most}
		after, granted := c.Apply(old)
		got, g := after[limitHour], granted[limitHour]
		before := n // in the window that is there afterwards
		if got.Begin != begin {
			before = 0
		}
		switch {
		case got.Begin < begin:
			t.Errorf("the window went back: %+v", got)
		case claimed < begin && (got != old[limitHour] || g != 0):
			t.Errorf("an earlier window moved something: %+v, %d", got, g)
		case got.N != before+uint64(g): //nolint:gosec // negative too
			t.Errorf("%d became %d, and %d was granted", before, got.N, g)
		case g > 0 && (got.N > most || got.N < before):
			t.Errorf("%d are reserved of %d", got.N, most)
		case add >= 0 && (g < 0 || g > add), add < 0 && (g > 0 || g < add):
			t.Errorf("%d was granted of %d", g, add)
		case g < 0 && got.N > before:
			t.Errorf("taking back %d made %d of %d", g, got.N, before)
		}
		if after[limitDay] != old[limitDay] || granted[limitDay] != 0 {
			t.Errorf("a count that was not claimed moved: %+v", after[limitDay])
		}
	})
}

// FuzzParseCounts: what is read prints to the same bytes.
func FuzzParseCounts(f *testing.F) {
	c := Counts{{0, 1}, {-1, 2}, {3, 1 << 63}}
	f.Add(c.Append(nil))
	f.Add([]byte{})
	c[limitDay].Begin = lastBegin + 1
	f.Add(c.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCounts(b)
		if err != nil || len(b) == 0 {
			return
		}
		if got := c.Append(nil); string(got) != string(b) {
			t.Errorf("%x became %x", b, got)
		}
	})
}

// sharedLedger is a ledger that several engines draw on. Each move can be made or
// not, and be reported as it was or not.
type sharedLedger struct {
	memoryLedger

	fault func() (made, reported bool) // nil: all is well
}

var errLost = fmt.Errorf("no answer: %w", tokenstore.ErrOutcomeUnknown)

func (l *sharedLedger) Most() int { return 3 }

func (l *sharedLedger) Move(ctx context.Context, claims []Claim) ([]Moved, error) {
	if len(claims) > l.Most() {
		return nil, fmt.Errorf("%d claims in one move", len(claims))
	}
	seen := make(map[CountKey]bool)
	for i := range claims {
		if seen[claims[i].Key] {
			return nil, errors.New("two claims of one key")
		}
		seen[claims[i].Key] = true
	}
	made, reported := true, true
	if l.fault != nil {
		made, reported = l.fault()
	}
	if !made {
		return nil, map[bool]error{true: errors.New("not made"), false: errLost}[reported]
	}
	moved, err := l.memoryLedger.Move(ctx, claims)
	if !reported {
		return nil, errLost
	}
	return moved, err
}

func sharingEngines(n int, ledger Ledger) []*Engine {
	all := make([]*Engine, n)
	for i := range all {
		all[i] = NewEngine(nil, 0)
		all[i].SetLimits(LimitOptions{})
		all[i].KeepCounts(ledger, func() int { return n })
	}
	return all
}

// TestSharedCountsAreNeverExceeded has engines use, flush, settle, die and lose
// their ledger at random, with clocks an hour apart, and holds after each step that no
// window that was ever stored had more than its limit.
func TestSharedCountsAreNeverExceeded(t *testing.T) {
	const uses, hour, minute = 400, 90, 25
	limits := tokenstore.Limits{Uses: uses, Quotas: []tokenstore.Quota{{Count: hour, Per: tokenstore.PerHour}, {Count: minute, Per: tokenstore.PerMinute}}}
	for seed := range uint64(80) {
		rng := rand.New(rand.NewPCG(seed, 7)) //nolint:gosec // it is to be the same again
		ledger := &sharedLedger{}
		faulty := seed%2 == 1
		ledger.fault = func() (made, reported bool) {
			if !faulty || rng.IntN(5) > 0 {
				return true, true
			}
			return rng.IntN(2) == 0, rng.IntN(2) == 0
		}
		engines := sharingEngines(3, ledger)
		now := start
		skew := []time.Duration{0, time.Duration(rng.IntN(7200)-3600) * time.Second, time.Duration(rng.IntN(7200)-3600) * time.Second}
		type window struct {
			tok   tokenstore.ID
			kind  limitKind
			begin int64
		}
		used := make(map[window]uint64)
		for step := range 2000 {
			i := rng.IntN(len(engines))
			e, at := engines[i], now.Add(skew[i])
			switch n := rng.IntN(100); {
			case n < 80:
				tok := with(tokenstore.ID(1+rng.IntN(5)), 1, 1, limits)
				if d := use(e, tok, nil, at); !d.Allowed() {
					if !faulty && d.Reason != UsesExhausted && d.Reason != QuotaExhausted {
						t.Fatalf("seed %d, step %d: %v: %v", seed, step, d.Reason, d.Cause)
					}
					break
				}
				c := e.limits.look(meterKey{ofToken, uint64(tok.ID), 0}).counts
				for kind, most := range map[limitKind]uint64{limitUses: uses, limitHour: hour, limitMinute: minute} {
					w := window{tok.ID, kind, c.list[kind].begin}
					if used[w]++; used[w] > most {
						t.Fatalf("seed %d, step %d: %d of %d in %+v", seed, step, used[w], most, w)
					}
				}
			case n < 90:
				_ = e.FlushCounts(t.Context(), at) // fails where the ledger does
			case n < 92:
				_ = e.SettleCounts(t.Context(), at)
			case n < 93:
				engines[i] = sharingEngines(3, ledger)[i]
			default:
				now = now.Add(time.Duration(rng.IntN(40)) * time.Second)
			}
		}
		for _, k := range ledger.kept {
			if k[limitUses].N > uses || k[limitHour].N > hour || k[limitMinute].N > minute {
				t.Fatalf("seed %d: the ledger has %+v", seed, k)
			}
		}
	}
}

// TestSharedUsesAreExact: with nothing lost, all of them are had, and no more.
func TestSharedUsesAreExact(t *testing.T) {
	for _, n := range []int{1, 2, 3, 50} {
		for _, most := range []uint64{1, 2, 7, 100, 1000} {
			ledger := &sharedLedger{}
			engines := sharingEngines(n, ledger)
			tok := with(1, 1, 1, tokenstore.Limits{Uses: most})
			var mu sync.Mutex
			var wg sync.WaitGroup
			total := 0
			for _, e := range engines {
				for range 2 {
					wg.Go(func() {
						got, d := uses(e, tok, start)
						mu.Lock()
						defer mu.Unlock()
						total += got
						if d.Reason != UsesExhausted {
							t.Errorf("%v: %v", d.Reason, d.Cause)
						}
					})
				}
			}
			wg.Wait()
			if total != int(most) { //nolint:gosec // small
				t.Errorf("%d engines: %d uses of %d", n, total, most)
			}
		}
	}
}

// TestResetsWhileOthersAdmitAreExact has engines use up a token that is reset three
// times meanwhile. Each of them knows of as many of the resets as it happens to have
// heard of.
func TestResetsWhileOthersAdmitAreExact(t *testing.T) {
	for _, limits := range []tokenstore.Limits{{Uses: 1000}, quota(1000, tokenstore.PerMonth)} {
		engines := sharingEngines(3, &sharedLedger{})
		line := lineage(3, limits)
		var mu sync.Mutex
		var wg sync.WaitGroup
		total := 0
		for i, e := range engines {
			for j, tok := range line {
				wg.Go(func() {
					got, d := uses(e, tok, start)
					mu.Lock()
					defer mu.Unlock()
					total += got
					if d.Reason != UsesExhausted && d.Reason != QuotaExhausted {
						t.Errorf("engine %d, token %d of the lineage: %v: %v", i, j, d.Reason, d.Cause)
					}
				})
			}
		}
		wg.Wait()
		if total != 1000 {
			t.Errorf("%+v: %d uses", limits, total)
		}
	}
}

// TestWhatOthersGiveBackIsHad: an engine that was refused asks again in the flush,
// once for any number of refusals, and not at all while nobody asks it.
func TestWhatOthersGiveBackIsHad(t *testing.T) {
	ledger := &sharedLedger{}
	engines := sharingEngines(2, ledger)
	tok := with(1, 1, 1, quota(600, tokenstore.PerDay))
	use(engines[0], tok, nil, start) // and it has 29 more
	if n, d := uses(engines[1], tok, start); n != 570 || d.Reason != QuotaExhausted {
		t.Fatalf("%d, %v", n, d.Reason)
	}
	now := start
	asked := func() uint64 { return engines[1].LimitStats().Flushed }
	for range settleAfter + 2 {
		now = now.Add(time.Second)
		before := asked()
		for range 10 {
			if d := use(engines[1], tok, nil, now); d.Reason != QuotaExhausted {
				t.Fatal(d.Reason)
			}
		}
		for _, e := range engines {
			if err := e.FlushCounts(t.Context(), now); err != nil {
				t.Fatal(err)
			}
		}
		if asked() != before+1 {
			t.Fatalf("asked %d times", asked()-before)
		}
	}
	if n, d := uses(engines[1], tok, now); n != 29 || d.Reason != QuotaExhausted {
		t.Fatalf("%d after the other settled, then %v", n, d.Reason)
	}
	before := asked()
	for range 5 {
		now = now.Add(time.Second)
		if err := engines[1].FlushCounts(t.Context(), now); err != nil {
			t.Fatal(err)
		}
	}
	if asked() != before+1 { // for the refusal above
		t.Errorf("asked %d times for nobody", asked()-before)
	}
}

// TestSharedMinuteIsWaitedFor: a lone process may be over the count of a minute that
// is kept, several may not.
func TestSharedMinuteIsWaitedFor(t *testing.T) {
	engines := sharingEngines(3, &sharedLedger{})
	total := 0
	for _, e := range engines {
		n, _ := uses(e, with(1, 1, 1, quota(100, tokenstore.PerMinute)), start)
		total += n
	}
	if total != 100 {
		t.Errorf("%d in one minute of 100", total)
	}
}

// TestDamagedCountsDenyTheirOwnOnly has one subject's counts unreadable.
func TestDamagedCountsDenyTheirOwnOnly(t *testing.T) {
	damaged := errors.New("damaged")
	ledger := &damagedLedger{bad: meterKey{ofToken, 1, 0}.countKey(), err: damaged}
	e := limitedEngine(LimitOptions{}, ledger)
	for range 3 {
		if d := use(e, with(1, 1, 1, tokenstore.Limits{Uses: 5}), nil, start); d.Reason != StoreUnavailable || !errors.Is(d.Cause, damaged) {
			t.Fatalf("%v, %v", d.Reason, d.Cause)
		}
		if d := use(e, with(2, 1, 1, tokenstore.Limits{Uses: 5}), nil, start); !d.Allowed() {
			t.Fatalf("another token: %v", d.Reason)
		}
	}
	if err := e.FlushCounts(t.Context(), start); !errors.Is(err, damaged) {
		t.Errorf("the flush says %v", err)
	}
	if err := e.SettleCounts(t.Context(), start); err != nil {
		t.Error(err)
	}
}

type damagedLedger struct {
	memoryLedger

	bad CountKey
	err error
}

func (l *damagedLedger) Move(ctx context.Context, claims []Claim) ([]Moved, error) {
	moved, err := l.memoryLedger.Move(ctx, claims)
	for i := range claims {
		if claims[i].Key == l.bad {
			moved[i] = Moved{Err: l.err}
		}
	}
	return moved, err
}

// TestClockThatWasSetBackKeepsNoLedgerFailing, nor what it reserved: neither waits until
// the clock is where it was.
func TestClockThatWasSetBackKeepsNoLedgerFailing(t *testing.T) {
	fails := true
	ledger := &sharedLedger{fault: func() (made, reported bool) { return !fails, !fails }}
	e := sharingEngines(1, ledger)[0]
	tok := with(1, 1, 1, tokenstore.Limits{Uses: 50})
	back := start.Add(-5 * time.Hour)
	if d := use(e, tok, nil, start); d.Reason != StoreUnavailable {
		t.Fatal(d.Reason)
	}
	fails = false
	if d := use(e, tok, nil, back); !d.Allowed() {
		t.Fatalf("the ledger works again: %v, %v", d.Reason, d.Cause)
	}
	at := start.Add(time.Hour)
	if err := errors.Join(e.FlushCounts(t.Context(), at), e.FlushCounts(t.Context(), back)); err != nil {
		t.Fatal(err)
	}
	if m := e.limits.look(meterKey{ofToken, 1, 0}); m.counts.listed {
		t.Error("what has been quiet is not settled")
	}
}

// TestFailingLedgerIsNotAskedByEachRequest: while it fails, one request a second finds
// out whether it still does.
func TestFailingLedgerIsNotAskedByEachRequest(t *testing.T) {
	asked := 0
	ledger := &sharedLedger{fault: func() (made, reported bool) { asked++; return false, true }}
	e := sharingEngines(1, ledger)[0]
	for second := range 5 {
		for id := range tokenstore.ID(100) {
			if d := use(e, with(1+id, 1, 1, tokenstore.Limits{Uses: 5}), nil, start.Add(time.Duration(second)*time.Second)); d.Reason != StoreUnavailable || d.Cause == nil {
				t.Fatalf("%v, %v", d.Reason, d.Cause)
			}
		}
	}
	if asked != 6 { // the first that failed, and one each second
		t.Errorf("asked %d times", asked)
	}
	ledger.fault = nil
	now := start.Add(time.Hour)
	for id := range tokenstore.ID(100) {
		if d := use(e, with(1+id, 1, 1, tokenstore.Limits{Uses: 5}), nil, now); !d.Allowed() {
			t.Fatalf("once it works again: %v", d.Reason)
		}
	}
}

// TestFailedSettlingKeepsWhatIsReserved: what surely was not given back is still there
// to use, what perhaps was is not.
func TestFailedSettlingKeepsWhatIsReserved(t *testing.T) {
	for name, c := range map[string]struct {
		made, reported bool
		left           int
	}{"not made": {false, true, 99}, "perhaps not made": {false, false, 90}, "perhaps made": {true, false, 99}} {
		t.Run(name, func(t *testing.T) {
			ledger := &sharedLedger{}
			e := sharingEngines(1, ledger)[0]
			tok := with(1, 1, 1, tokenstore.Limits{Uses: 100})
			use(e, tok, nil, start)
			ledger.fault = func() (made, reported bool) { return c.made, c.reported }
			if err := e.SettleCounts(t.Context(), start); err == nil {
				t.Fatal("settled")
			}
			ledger.fault = nil
			if n, d := uses(e, tok, start); n != c.left || d.Reason != UsesExhausted {
				t.Errorf("%d, %v", n, d.Reason)
			}
		})
	}
}

// TestNothingIsUsedWhileItIsGivenBack looks from inside of the move that settles.
func TestNothingIsUsedWhileItIsGivenBack(t *testing.T) {
	ledger := &sharedLedger{}
	e := sharingEngines(1, ledger)[0]
	use(e, with(1, 1, 1, tokenstore.Limits{Uses: 100}), nil, start)
	b := bound{uses: 100, meter: e.limits.look(meterKey{ofToken, 1, 0})}
	looked := false
	ledger.fault = func() (made, reported bool) {
		b.meter.mu.Lock()
		defer b.meter.mu.Unlock()
		if left := b.countsLeft(start); left != countNotDurable {
			t.Errorf("a use finds %v", left)
		}
		looked = true
		return true, true
	}
	if err := e.SettleCounts(t.Context(), start); err != nil || !looked {
		t.Fatal(err, looked)
	}
}

// TestSettledNodeAsksAgain: one that was used up when it went quiet asks at the next
// request, not at the next flush.
func TestSettledNodeAsksAgain(t *testing.T) {
	engines := sharingEngines(2, &sharedLedger{})
	tok := with(1, 1, 1, tokenstore.Limits{Uses: 600})
	use(engines[0], tok, nil, start) // and it has 29 more
	uses(engines[1], tok, start)
	for _, e := range []*Engine{engines[1], engines[0]} {
		if err := e.SettleCounts(t.Context(), start); err != nil {
			t.Fatal(err)
		}
	}
	if n, d := uses(engines[1], tok, start); n != 29 {
		t.Errorf("%d, %v", n, d.Reason)
	}
}

// TestLedgerThatLostCounts: a node goes on with what is there.
func TestLedgerThatLostCounts(t *testing.T) {
	ledger := &sharedLedger{}
	e := sharingEngines(1, ledger)[0]
	tok := with(1, 1, 1, tokenstore.Limits{Uses: 100})
	for range 6 {
		use(e, tok, nil, start)
	}
	ledger.kept = nil
	if err := e.FlushCounts(t.Context(), start); err != nil {
		t.Fatal(err)
	}
	if n, d := uses(e, tok, start); n != 100 || d.Reason != UsesExhausted {
		t.Errorf("%d, %v", n, d.Reason)
	}
}

// TestWhoeverWaitsBehindAFailureFailsWithIt: not each round for its own time-out.
func TestWhoeverWaitsBehindAFailureFailsWithIt(t *testing.T) {
	asked := 0
	ledger := &sharedLedger{fault: func() (made, reported bool) { asked++; return false, true }}
	e := sharingEngines(1, ledger)[0]
	book := e.limits.ledger
	want := &bound{key: meterKey{ofToken, 1, 0}, uses: 5, meter: &meter{key: meterKey{ofToken, 1, 0}}}
	waiting, err := book.join(want, start)
	if err != nil {
		t.Fatal(err)
	}
	book.failing = errLost // as the round before has found
	book.serve(t.Context(), waiting, start)
	if !errors.Is(waiting.err, errLost) || asked != 0 {
		t.Errorf("%v, and the ledger was asked %d times", waiting.err, asked)
	}
}

// TestEndedFlushSaysNothingOfTheLedger: its context ended, and the ledger works.
func TestEndedFlushSaysNothingOfTheLedger(t *testing.T) {
	ledger := &sharedLedger{}
	e := sharingEngines(1, ledger)[0]
	for range 8 {
		use(e, with(1, 1, 1, tokenstore.Limits{Uses: 100}), nil, start)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ledger.fault = func() (made, reported bool) { cancel(); return false, true }
	if err := e.FlushCounts(ctx, start); err == nil {
		t.Fatal("flushed")
	}
	if err := e.limits.ledger.failing; err != nil {
		t.Errorf("the ledger counts as failing: %v", err)
	}
}

// TestUnspentEndsWithItsWindow: what the ledger has of an earlier window covers nothing.
func TestUnspentEndsWithItsWindow(t *testing.T) {
	c := counts{}
	c.list[limitHour] = tally{begin: 7200, end: 10800, used: 3, kept: 10}
	c.take(&Moved{Counts: Counts{limitHour: {3600, 10}}})
	if got := c.list[limitHour]; got != (tally{7200, 10800, 3, 3}) {
		t.Errorf("%+v", got)
	}
}

func TestCountsOfTwoStoresGiveNothingBack(t *testing.T) {
	t.Parallel()
	stored := func(uses, begin, n uint64) []byte {
		c := Counts{{N: uses}, 3: {Begin: int64(begin), N: n}} //nolint:gosec // small
		return c.Append(nil)
	}
	for name, test := range map[string]struct{ a, b, want []byte }{
		"more uses there":    {stored(1, 86400, 5), stored(3, 86400, 4), stored(3, 86400, 5)},
		"a later window":     {stored(1, 86400, 5), stored(1, 172800, 1), stored(1, 172800, 1)},
		"an earlier window":  {stored(1, 172800, 1), stored(2, 86400, 5), stored(2, 172800, 1)},
		"none here":          {nil, stored(1, 86400, 5), stored(1, 86400, 5)},
		"none there":         {stored(1, 86400, 5), nil, stored(1, 86400, 5)},
		"none":               {nil, nil, nil},
		"damaged there":      {stored(1, 86400, 5), []byte("x"), stored(1, 86400, 5)},
		"damaged here stays": {[]byte("x"), stored(1, 86400, 5), []byte("x")},
	} {
		if got := CountsOfBoth(test.a, test.b); !bytes.Equal(got, test.want) {
			t.Errorf("%s: %x, want %x", name, got, test.want)
		}
	}
	if id := CountsOfToken(append([]byte{0, 0, 0, 0, 0, 0, 0, 1, 2}, make([]byte, 8)...)); id != 258 {
		t.Errorf("the counts are of token %d", id)
	}
	for _, key := range [][]byte{nil, {0}, append([]byte{3, 0, 0, 0, 0, 0, 0, 1, 2}, make([]byte, 8)...)} {
		if id := CountsOfToken(key); id != 0 {
			t.Errorf("%x are the counts of token %d", key, id)
		}
	}
}
