package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memOutbox is an outbox in memory that fails as told.
type memOutbox struct {
	mu      sync.Mutex // guards all below
	entries []Entry
	next    uint64
	pending []error // of the next calls
	done    []error
	applied bool // whether a failing Done has removed the entries all the same
}

func (o *memOutbox) emit(t testing.TB, n int) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	for range n {
		o.next++
		o.entries = append(o.entries, Entry{Seq: o.next, Payload: mustEncode(t, event(o.next))})
	}
}

func (o *memOutbox) left() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.entries)
}

func (o *memOutbox) Pending(max int) ([]Entry, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.pending) > 0 {
		err := o.pending[0]
		o.pending = o.pending[1:]
		if err != nil {
			return nil, err
		}
	}
	return slices.Clone(o.entries[:min(max, len(o.entries))]), nil
}

func (o *memOutbox) Done(upTo uint64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var err error
	if len(o.done) > 0 {
		err = o.done[0]
		o.done = o.done[1:]
	}
	if err == nil || o.applied {
		o.entries = slices.DeleteFunc(o.entries, func(e Entry) bool { return e.Seq <= upTo })
	}
	return err
}

// drained runs f beside a drain and returns what the drain reported.
func drained(t *testing.T, o Outbox, l *Log, f func(wake func(), cancel context.CancelFunc)) ([]Progress, error) {
	t.Helper()
	var reports []Progress
	wake := make(chan struct{}, 1)
	d := Drainer{Outbox: o, Log: l, Source: "n1", Wake: wake, Observe: func(p Progress) { reports = append(reports, p) }}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- d.Run(ctx) }()
	f(func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}, cancel)
	cancel()
	err := <-ended
	return reports, err
}

func TestDrainMovesEverythingInOrderAndAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := newPath(t)
		l := mustOpen(t, path, Options{})
		o := new(memOutbox)
		o.emit(t, 3*MaxBatch+7)
		began := time.Now()
		reports, err := drained(t, o, l, func(wake func(), _ context.CancelFunc) {
			synctest.Wait()
			if o.left() != 0 {
				t.Errorf("%d entries left of those there at the start", o.left())
			}
			o.emit(t, 5)
			wake()
			synctest.Wait()
			if o.left() != 0 {
				t.Errorf("%d entries left after waking", o.left())
			}
		})
		if err != nil || time.Since(began) != 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		written := 0
		for _, p := range reports {
			written += p.Written
		}
		if want := 3*MaxBatch + 12; written != want {
			t.Errorf("%d reported, want %d", written, want)
		}
		wantIDs(t, mustBeWhole(t, path, Keys{}), 3*MaxBatch+12)
		for i, r := range records(t, path) {
			if r.Source != "n1" || r.Seq != uint64(i+1) {
				t.Fatalf("record %d: %+v", i, r)
			}
		}
	})
}

func TestDrainNoticesEntriesNobodyWokeItFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustOpen(t, newPath(t), Options{})
		o := new(memOutbox)
		drained(t, o, l, func(func(), context.CancelFunc) {
			synctest.Wait()
			o.emit(t, 1)
			time.Sleep(idlePoll) //nolint:forbidigo // in a bubble
			synctest.Wait()
			if o.left() != 0 {
				t.Error("the entry is still there")
			}
		})
	})
}

func TestDrainRetriesWithGrowingDelay(t *testing.T) {
	broken := errors.New("disk gone")
	synctest.Test(t, func(t *testing.T) {
		path := newPath(t)
		l := mustOpen(t, path, Options{})
		o := &memOutbox{pending: slices.Repeat([]error{broken}, 12)}
		o.emit(t, 3)
		began := time.Now()
		reports, err := drained(t, o, l, func(wake func(), _ context.CancelFunc) {
			for o.left() > 0 {
				wake()                            // waking does not shorten the wait
				time.Sleep(50 * time.Millisecond) //nolint:forbidigo // in a bubble
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		var waits []time.Duration
		var total time.Duration
		for _, p := range reports {
			if p.Err != nil {
				if !errors.Is(p.Err, broken) {
					t.Error(p.Err)
				}
				waits = append(waits, p.RetryIn)
				total += p.RetryIn
			}
		}
		want := []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000, 30000}
		for i := range want {
			want[i] *= time.Millisecond //nolint:durationcheck // a number until here
		}
		if !slices.Equal(waits, want) {
			t.Errorf("waits %v, want %v", waits, want)
		}
		if took := time.Since(began); took < total || took > total+time.Second {
			t.Errorf("took %v, want %v", took, total)
		}
		wantIDs(t, mustBeWhole(t, path, Keys{}), 3)
	})
}

func TestEntryIsInTheLogOnceHoweverAcknowledgingFails(t *testing.T) {
	broken := errors.New("commit failed")
	for _, applied := range []bool{false, true} {
		t.Run(fmt.Sprintf("applied %t", applied), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := newPath(t)
				l := mustOpen(t, path, Options{})
				o := &memOutbox{done: []error{broken, nil, broken, broken}, applied: applied}
				o.emit(t, 2*MaxBatch)
				reports, err := drained(t, o, l, func(func(), context.CancelFunc) { time.Sleep(time.Minute) }) //nolint:forbidigo // in a bubble
				if err != nil || o.left() > 0 {
					t.Errorf("%d left, %v", o.left(), err)
				}
				wantIDs(t, mustBeWhole(t, path, Keys{}), 2*MaxBatch)
				repeated := 0
				for _, p := range reports {
					repeated += p.Repeated
				}
				if (repeated > 0) == applied {
					t.Errorf("%d repeated", repeated)
				}
			})
		})
	}
}

func TestDrainEmptiesTheOutboxWhenStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := newPath(t)
		l := mustOpen(t, path, Options{})
		o := &memOutbox{pending: []error{errors.New("not yet")}}
		_, err := drained(t, o, l, func(_ func(), cancel context.CancelFunc) {
			synctest.Wait()
			o.emit(t, 2*MaxBatch+1)
			cancel() // while it waits to try again
		})
		if err != nil || o.left() > 0 {
			t.Errorf("%d left, %v", o.left(), err)
		}
		wantIDs(t, mustBeWhole(t, path, Keys{}), 2*MaxBatch+1)
	})
}

func TestDrainSaysWhatItCouldNotWriteWhenStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustOpen(t, newPath(t), Options{})
		o := new(memOutbox)
		broken := errors.New("disk gone")
		_, err := drained(t, o, l, func(_ func(), cancel context.CancelFunc) {
			synctest.Wait()
			o.emit(t, 1)
			o.mu.Lock()
			o.pending = []error{broken}
			o.mu.Unlock()
			cancel()
		})
		if !errors.Is(err, broken) || !strings.Contains(err.Error(), "at the next start") || o.left() != 1 {
			t.Errorf("%d left, %v", o.left(), err)
		}
	})
}

func TestDrainSignsHeadsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustOpen(t, newPath(t), Options{SigningKey: signingKey})
		o := new(memOutbox)
		o.emit(t, 1)
		reports, err := drained(t, o, l, func(func(), context.CancelFunc) {
			time.Sleep(time.Minute + idlePoll) //nolint:forbidigo // in a bubble
			synctest.Wait()
			if l.SignedHead().Line != 2 {
				t.Errorf("signed up to line %d after a minute", l.SignedHead().Line)
			}
		})
		var heads []uint64
		for _, p := range reports {
			if p.Head.Line > 0 {
				heads = append(heads, p.Head.Line)
			}
		}
		if err != nil || !slices.Equal(heads, []uint64{2}) {
			t.Errorf("heads reported %v, %v", heads, err)
		}
	})
}

func TestDeliveryAfterACrashIsNotWrittenTwice(t *testing.T) {
	for name, o := range map[string]Options{
		"one file":     {},
		"many files":   {MaxFileBytes: 3000},
		"tiny files":   {MaxFileBytes: 1},
		"key replaced": {MACKeys: [][]byte{macKey}},
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			out := new(memOutbox)
			var total uint64
			for life := range 6 {
				l := mustOpen(t, path, o)
				if life == 3 && o.MACKeys != nil {
					mustClose(t, l)
					o.MACKeys = [][]byte{otherKey, macKey}
					l = mustOpen(t, path, o)
				}
				out.emit(t, 40)
				total += 40
				entries, _ := out.Pending(MaxBatch)
				p, err := l.AppendEntries(noon, "n1", entries)
				if err != nil || p.Written+p.Repeated != len(entries) {
					t.Fatalf("%+v, %v", p, err)
				}
				if want := 0; life%2 == 1 && p.Repeated == want {
					t.Errorf("life %d: nothing was known again", life)
				}
				// The process dies here: in every other life before acknowledging.
				if life%2 == 1 {
					out.Done(entries[len(entries)-1].Seq)
				}
				mustClose(t, l)
			}
			wantIDs(t, mustBeWhole(t, path, Keys{MAC: [][]byte{macKey, otherKey}}), total)
		})
	}
}

func TestEventsOfAStoreThatWasPutBackAreNotTakenForRepeated(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{})
	for generation := range uint64(3) {
		var entries []Entry
		for seq := range uint64(10) {
			entries = append(entries, Entry{seq + 1, mustEncode(t, event(generation*10+seq+1))})
		}
		if p, err := l.AppendEntries(noon, "n1", entries); err != nil || p.Written != 10 {
			t.Errorf("generation %d: %+v, %v", generation, p, err)
		}
		if p, err := l.AppendEntries(noon, "n1", entries); err != nil || p.Repeated != 10 || p.Written != 0 {
			t.Errorf("generation %d again: %+v, %v", generation, p, err)
		}
	}
	// The same number of another outbox is another event.
	if p, err := l.AppendEntries(noon, "n2", []Entry{{1, mustEncode(t, event(31))}}); err != nil || p.Written != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	wantIDs(t, mustBeWhole(t, path, Keys{}), 31)
}

func TestUnreadableEntryHoldsNobodyUp(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{})
	entries := []Entry{
		{1, mustEncode(t, event(1))},
		{2, []byte(`{"time":"2027-01-01T00:00:00Z","verb":"levitate","new_field":"` + secretText + `"}`)},
		{3, []byte("\x00\xff\n")},
		{4, nil},
		{5, mustEncode(t, event(5))},
	}
	p, err := l.AppendEntries(noon, "n1", entries)
	if err != nil || p.Written != 5 || p.Unreadable != 3 {
		t.Fatalf("%+v, %v", p, err)
	}
	mustClose(t, l)
	l = mustOpen(t, path, Options{})
	if p, err := l.AppendEntries(noon, "n1", entries); err != nil || p.Repeated != 5 || p.Written != 0 {
		t.Errorf("again: %+v, %v", p, err)
	}
	mustBeWhole(t, path, Keys{})
	got := records(t, path)
	if e := got[1].Event; e.Verb != "audit.unreadable" || e.Outcome != Failure || !strings.Contains(e.Reason, "levitate") || strings.Contains(e.Reason, secretText[3:]) {
		t.Errorf("%+v", e)
	}
	if got[4].Event.Target.Token != 5 {
		t.Errorf("%+v", got[4])
	}
}

func TestOutboxOutOfOrderIsRefused(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{})
	payload := mustEncode(t, event(1))
	for name, entries := range map[string][]Entry{
		"descending": {{2, payload}, {1, payload}},
		"doubled":    {{2, payload}, {2, payload}},
		"zero":       {{0, payload}},
	} {
		if _, err := l.AppendEntries(noon, "n1", entries); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	for _, source := range []string{"", `a"b`, "a b", strings.Repeat("a", 129), "ä"} {
		if _, err := l.AppendEntries(noon, source, []Entry{{1, payload}}); err == nil {
			t.Errorf("source %q: taken", source)
		}
		if err := (&Drainer{Log: l, Outbox: new(memOutbox), Source: source}).Run(t.Context()); err == nil {
			t.Errorf("drain from source %q ran", source)
		}
	}
	wantIDs(t, mustBeWhole(t, path, Keys{}), 0)
}

func TestMemoryOfDeliveriesIsBounded(t *testing.T) {
	var r recent
	for i := range uint64(10 * maxRecent) {
		r.add(delivery{source: "n1", seq: i + 1})
		if len(r.order) >= 2*maxRecent || len(r.known) != len(r.order) {
			t.Fatalf("%d in order, %d known", len(r.order), len(r.known))
		}
		if i > 0 && !r.has(delivery{source: "n1", seq: i}) {
			t.Fatalf("delivery %d was forgotten at once", i)
		}
	}
	if !r.has(delivery{source: "n1", seq: 9*maxRecent + 1}) || r.has(delivery{source: "n1", seq: 1}) {
		t.Error("the wrong ones are remembered")
	}
}

func TestDrainGathersWhatComesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustOpen(t, newPath(t), Options{})
		o := new(memOutbox)
		wake := make(chan struct{}, 1)
		var mu sync.Mutex // guards reports
		var reports []Progress
		reported := func() []Progress {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(reports)
		}
		d := Drainer{Outbox: o, Log: l, Source: "n1", Wake: wake, Gather: 100 * time.Millisecond, Observe: func(p Progress) {
			mu.Lock()
			defer mu.Unlock()
			reports = append(reports, p)
		}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- d.Run(ctx) }()
		synctest.Wait()
		for range 10 {
			o.emit(t, 1)
			select {
			case wake <- struct{}{}:
			default:
			}
			time.Sleep(9 * time.Millisecond) //nolint:forbidigo // in a bubble
		}
		synctest.Wait()
		if got := reported(); len(got) != 0 {
			t.Errorf("%+v before the time to gather is over", got)
		}
		time.Sleep(10 * time.Millisecond) //nolint:forbidigo // in a bubble
		synctest.Wait()
		if got := reported(); len(got) != 1 || got[0].Written != 10 || o.left() != 0 {
			t.Errorf("%+v, %d left", got, o.left())
		}
		o.emit(t, 1)
		wake <- struct{}{}
		synctest.Wait()
		cancel() // does not wait
		if err := <-ended; err != nil || o.left() != 0 {
			t.Errorf("%v, %d left", err, o.left())
		}
	})
}
