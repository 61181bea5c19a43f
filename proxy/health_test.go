package proxy

import (
	"log/slog"
	"net"
	"net/url"
	"os"
	"syscall"
	"testing"
	"time"
)

func TestDownTimeGrowsAndIsBounded(t *testing.T) {
	var h health
	now := time.Unix(1000, 0)
	for i := range failuresUntilDown {
		if !h.up() || !h.available(now) {
			t.Fatalf("down after %d failures", i)
		}
		h.failed(now)
	}
	if h.up() {
		t.Fatal("still up")
	}
	for _, seconds := range []int{1, 2, 4, 8, 16, 30, 30, 30} {
		want := time.Duration(seconds) * time.Second
		if h.available(now.Add(want - 1)) {
			t.Fatalf("available before %v", want)
		}
		now = now.Add(want)
		if !h.available(now) {
			t.Fatalf("not available after %v", want)
		}
		if h.available(now) {
			t.Fatal("two requests find out at the same time")
		}
		h.failed(now)
	}
	if !h.answered() || !h.up() || !h.available(now) || h.answered() {
		t.Fatal("an answer does not bring it back once")
	}
	h.failed(now)
	if !h.up() {
		t.Fatal("one failure after an answer is enough")
	}
}

// TestProbeThatNeverEndsIsRepeated: the request that finds out may be ended by its
// client.
func TestProbeThatNeverEndsIsRepeated(t *testing.T) {
	var h health
	now := time.Unix(1000, 0)
	for range failuresUntilDown {
		h.failed(now)
	}
	now = now.Add(firstDown)
	if !h.available(now) {
		t.Fatal("no probe")
	}
	if now = now.Add(2 * firstDown); !h.available(now) {
		t.Fatal("no second probe")
	}
}

func TestOrderOfAttempts(t *testing.T) {
	list := make([]*Upstream, 5)
	for i := range list {
		u, err := NewUpstream(&url.URL{Scheme: "http", Host: string(rune('a' + i))}, nil, Timeouts{})
		if err != nil {
			t.Fatal(err)
		}
		list[i] = u
	}
	us, err := NewUpstreams(list...)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1000, 0)
	order := func() string {
		var a attempt
		s := ""
		for u := a.next(us, now); u != nil; u = a.next(us, now) {
			s += u.target.Host
		}
		return s
	}
	fail := func(i int, at time.Time) {
		for range failuresUntilDown {
			list[i].health.failed(at)
		}
	}
	if got := order(); got != "abc" {
		t.Errorf("all up: %q", got)
	}
	fail(1, now)
	if got := order(); got != "acd" {
		t.Errorf("one down: %q", got)
	}
	for i, at := range []int{4, 0, 2, 1, 3} {
		fail(i, now.Add(time.Duration(at)*time.Millisecond))
	}
	if got := order(); got != "b" {
		t.Errorf("all down: %q", got)
	}
	var a attempt
	if a.next(nil, now) != nil {
		t.Error("no list gives an upstream")
	}
}

// TestUpstreamIsNotToBlameForLackOfDescriptors: left out, it would be missed by those
// who get one.
func TestUpstreamIsNotToBlameForLackOfDescriptors(t *testing.T) {
	u := &Upstream{name: "http://a"}
	g := &Guard{Log: slog.New(slog.DiscardHandler), Now: time.Now}
	failing := func(cause syscall.Errno) error {
		return dialError{&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", cause)}}
	}
	for range 2 * failuresUntilDown {
		g.unanswered(u, failing(syscall.EMFILE))
		g.unanswered(u, failing(syscall.ENFILE))
	}
	if !u.Up() {
		t.Error("it is left out for what this machine lacks")
	}
	if fix := upstreamFix(failing(syscall.EMFILE)); fix != FixDescriptors {
		t.Errorf("what to do: %q", fix)
	}
	for range failuresUntilDown {
		g.unanswered(u, failing(syscall.ECONNREFUSED))
	}
	if u.Up() {
		t.Error("it refuses, and is not left out")
	}
}
