package audit

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// denials are the events of the verb "deny" in a log.
func denials(t *testing.T, path string) (out []Event) {
	t.Helper()
	for _, rec := range records(t, path) {
		if rec.Event.Verb == VerbDeny {
			out = append(out, rec.Event)
		}
	}
	return out
}

func TestDenialsOfOneKindAreOneLine(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{MACKeys: [][]byte{[]byte(strings.Repeat("k", 32))}})
	d := NewDenials("")
	stolen := Denial{Reason: "revoked_token", Route: "GET /a", Via: "proxy", Token: 7, Account: 3, Owner: 4, Address: netip.MustParseAddr("192.0.2.1")}
	for i := range 1000 {
		d.Note(noon.Add(time.Duration(i)*time.Millisecond), stolen)
	}
	for i := range 50 { // one client has the whole /64
		d.Note(noon, Denial{Reason: "unknown_token", Via: "proxy", Address: netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1))})
	}
	d.Note(noon, Denial{Reason: "source_unknown", Via: "admin", Token: 7, Account: 3, Owner: 4})
	if err := d.Flush(l, noon.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	got := denials(t, path)
	if len(got) != 3 {
		t.Fatalf("%d lines: %+v", len(got), got)
	}
	i := slices.IndexFunc(got, func(e Event) bool { return e.Reason == "revoked_token" })
	want := Event{
		Time: noon.Add(999 * time.Millisecond), Verb: VerbDeny, Outcome: Refusal, Reason: "revoked_token",
		Actor:  Actor{Token: 7, Account: 3, Owner: 4, Address: stolen.Address, Via: "proxy"},
		Denied: Denied{Count: 1000, Since: At(noon), Route: "GET /a"},
	}
	if i < 0 || fmt.Sprint(got[i]) != fmt.Sprint(want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if s := d.Stats(); s != (DenialStats{Written: 1051}) {
		t.Errorf("%+v", s)
	}
	r, err := Verify(path, Keys{MAC: [][]byte{[]byte(strings.Repeat("k", 32))}})
	if err != nil || len(r.Faults) > 0 {
		t.Errorf("%v %v", r.Faults, err)
	}
}

// TestFloodOfDenialsIsBounded has strangers from everywhere, and a tenant with very
// many tokens, and another's one denial among them.
func TestFloodOfDenialsIsBounded(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{})
	d := NewDenials("")
	longest := "GET /" + strings.Repeat("long/", 400)
	n := uint64(0)
	for i := range uint32(20_000) {
		from := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		d.Note(noon, Denial{Reason: fmt.Sprintf("strange_%d", i%4), Route: longest, Via: "proxy", Address: from})
		d.Note(noon, Denial{Reason: "rate_limited", Route: longest, Via: "proxy", Token: uint64(i) + 1, Account: 1, Address: from})
		n += 2
	}
	d.Note(noon, Denial{Reason: "revoked_token", Route: "GET /a", Via: "proxy", Token: 1 << 40, Account: 2})
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Flush(l, noon); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	got := denials(t, path)
	if most := maxDenialsKnown + maxDenialsUnknown + 5; len(got) > most {
		t.Errorf("%d lines, more than %d", len(got), most)
	}
	if grown, most := after.Size()-before.Size(), int64(len(got)*800); grown > most {
		t.Errorf("%d bytes in %d lines, more than %d", grown, len(got), most)
	}
	var counted uint64
	other := false
	for _, e := range got {
		counted += e.Denied.Count
		other = other || e.Actor.Token == 1<<40
		if e.Actor.Token == 0 && !e.Actor.Address.IsValid() && e.Denied.Count < 100 {
			t.Errorf("folded for nothing: %+v", e)
		}
	}
	if counted != n+1 {
		t.Errorf("%d of %d counted", counted, n+1)
	}
	if !other {
		t.Error("one tenant's flood pushed another's denial out")
	}
	if s := d.Stats(); s.Written+s.Folded != n+1 || s.Lost+s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
}

// TestDenialIsNotWrittenWhileItIsNoted: what was taken to be written is no longer
// what is noted into, not even where it was nothing.
func TestDenialIsNotWrittenWhileItIsNoted(t *testing.T) {
	d := NewDenials("")
	for noted := range 3 {
		taken := d.take()
		d.Note(noon, Denial{Reason: "unknown_token", Via: "proxy"})
		if len(taken) != min(noted, 1) {
			t.Errorf("after %d: %d were taken", noted, len(taken))
		}
		for _, h := range taken {
			if h.count != 1 {
				t.Errorf("after %d: taken, and counted on to %d", noted, h.count)
			}
		}
	}
}

func TestDenialsThatCannotBeWrittenWait(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{})
	d := NewDenials("")
	one := Denial{Reason: "revoked_token", Via: "proxy", Token: 7, Account: 3}
	d.Note(noon, one)
	l.file = &faultyFile{logFile: l.file, writeAtMost: -1, sync: []error{syscall.EIO}}
	if err := d.Flush(l, noon); err == nil {
		t.Fatal("no error")
	}
	d.Note(noon.Add(-time.Second), one)
	d.Note(noon.Add(time.Second), one)
	if s := d.Stats(); s != (DenialStats{Waiting: 3}) {
		t.Errorf("%+v", s)
	}
	if err := d.Flush(l, noon); err != nil {
		t.Fatal(err)
	}
	got := denials(t, path)
	if len(got) != 1 || got[0].Denied.Count != 3 || !got[0].Denied.Since.Equal(noon.Add(-time.Second)) || !got[0].Time.Equal(noon.Add(time.Second)) {
		t.Errorf("%+v", got)
	}
}

func TestDenialsAreWrittenEachMinuteAndAtTheEnd(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{})
	synctest.Test(t, func(t *testing.T) {
		d := NewDenials("")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			d.Run(ctx, l, time.Now, func(err error) { t.Error(err) })
		}()
		d.Note(time.Now(), Denial{Reason: "no_route", Via: "proxy"})
		time.Sleep(DenialsEvery + time.Second) //nolint:forbidigo // in a bubble
		if s := d.Stats(); s.Written != 1 {
			t.Errorf("%+v", s)
		}
		d.Note(time.Now(), Denial{Reason: "no_route", Via: "proxy"})
		cancel()
		<-done
		if s := d.Stats(); s.Written != 2 {
			t.Errorf("%+v", s)
		}
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		if err := l.Close(time.Now()); err != nil {
			t.Error(err)
		}
		d.Note(time.Now(), Denial{Reason: "no_route", Via: "proxy"})
		told := 0
		d.Run(ctx, l, time.Now, func(error) { told++ })
		if s := d.Stats(); s.Lost != 1 || s.Waiting != 0 || told != 1 {
			t.Errorf("%+v, told %d times", s, told)
		}
	})
	if got := denials(t, path); len(got) != 2 {
		t.Errorf("%+v", got)
	}
}

func BenchmarkNoteDenial(b *testing.B) {
	d := NewDenials("")
	one := Denial{Reason: "revoked_token", Route: "GET /accounts/{account}", Via: "proxy", Token: 7, Account: 3, Address: netip.MustParseAddr("192.0.2.1")}
	b.ReportAllocs()
	for b.Loop() {
		d.Note(noon, one)
	}
}
