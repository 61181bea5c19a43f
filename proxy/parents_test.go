package proxy_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tokenward/enforce"
	"tokenward/proxy"
)

// bank tells what cards belong to.
type bank struct {
	asked  atomic.Int64
	answer func(w http.ResponseWriter, r *http.Request)
}

func newParents(t *testing.T, now func() time.Time, answer func(w http.ResponseWriter, r *http.Request)) (*proxy.Parents, *bank) {
	t.Helper()
	b := &bank{answer: answer}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.asked.Add(1)
		b.answer(w, r)
	}))
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.NewParents(u, http.DefaultTransport, map[string]proxy.ParentRule{
		"card": {Get: "/cards/{id}", Pointer: "/data/relationships/account/data/id", TTL: time.Minute, Authorization: "Bearer internal"}}, now)
	if err != nil {
		t.Fatal(err)
	}
	return p, b
}

func TestParentIsReadFromTheAnswerAndKept(t *testing.T) {
	now := time.Now()
	p, b := newParents(t, func() time.Time { return now }, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer internal" || r.URL.EscapedPath() != "/cards/a%2Fb%20c" {
			t.Errorf("asked %s with %q", r.URL.EscapedPath(), r.Header.Get("Authorization"))
		}
		fmt.Fprint(w, `{"data":{"relationships":{"account":{"data":{"type":"account","id":"42"}}}}}`)
	})
	for i, c := range []struct {
		after time.Duration
		asked int64
	}{{0, 1}, {time.Minute - 1, 1}, {time.Minute, 2}} {
		now = now.Add(c.after)
		if i == 2 {
			now = now.Add(-(time.Minute - 1))
		}
		got, err := p.Parent(t.Context(), "card", []byte("a/b c"))
		if err != nil || got != "42" || b.asked.Load() != c.asked {
			t.Fatalf("step %d: %q, %v after %d questions", i, got, err, b.asked.Load())
		}
	}
}

// TestClockThatWasSetBackKeepsNoParent: what was believed for a minute is not to be
// believed for the hours by which the clock was ahead.
func TestClockThatWasSetBackKeepsNoParent(t *testing.T) {
	now := time.Now()
	p, b := newParents(t, func() time.Time { return now }, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"data":{"relationships":{"account":{"data":{"type":"account","id":"42"}}}}}`)
	})
	for range 2 {
		if _, err := p.Parent(t.Context(), "card", []byte("1")); err != nil {
			t.Fatal(err)
		}
		now = now.Add(-5 * time.Hour)
	}
	if asked := b.asked.Load(); asked != 2 {
		t.Errorf("it was asked %d times", asked)
	}
}

func TestWhatIsNoParentFailsClosed(t *testing.T) {
	for name, c := range map[string]struct {
		answer   string
		status   int
		noParent bool
	}{
		"absent":         {status: 404, noParent: true},
		"refused":        {status: 403},
		"broken":         {status: 500},
		"redirect":       {status: 302},
		"no JSON":        {status: 200, answer: "<html>"},
		"empty":          {status: 200},
		"nothing there":  {status: 200, answer: `{"data":{}}`},
		"null":           {status: 200, answer: `{"data":{"relationships":{"account":{"data":{"id":null}}}}}`},
		"an object":      {status: 200, answer: `{"data":{"relationships":{"account":{"data":{"id":{}}}}}}`},
		"a fraction":     {status: 200, answer: `{"data":{"relationships":{"account":{"data":{"id":1.5}}}}}`},
		"empty id":       {status: 200, answer: `{"data":{"relationships":{"account":{"data":{"id":""}}}}}`},
		"trailing data":  {status: 200, answer: `{"data":{"relationships":{"account":{"data":{"id":"1"}}}}} {}`},
		"too long to be": {status: 200, answer: `{"x":"` + strings.Repeat("x", 2<<20) + `"}`},
	} {
		t.Run(name, func(t *testing.T) {
			p, b := newParents(t, time.Now, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.answer)
			})
			for range 2 {
				got, err := p.Parent(t.Context(), "card", []byte("1"))
				if got != "" || err == nil || errors.Is(err, enforce.ErrNoParent) != c.noParent {
					t.Fatalf("%q, %v", got, err)
				}
			}
			if want := map[bool]int64{true: 1, false: 2}[c.noParent]; b.asked.Load() != want {
				t.Errorf("asked %d times, want %d: absence is kept, failure is not", b.asked.Load(), want)
			}
		})
	}
}

func TestManyWhoAskForOneMakeOneQuestion(t *testing.T) {
	arrived := make(chan struct{})
	release := make(chan struct{})
	p, b := newParents(t, time.Now, func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-release
		fmt.Fprint(w, `{"data":{"relationships":{"account":{"data":{"id":42}}}}}`)
	})
	var wg sync.WaitGroup
	ask := func() {
		if got, err := p.Parent(t.Context(), "card", []byte("1")); err != nil || got != "42" {
			t.Errorf("%q, %v", got, err)
		}
	}
	wg.Go(ask)
	<-arrived
	for range 20 {
		wg.Go(ask)
	}
	close(release)
	wg.Wait()
	if n := b.asked.Load(); n != 1 {
		t.Errorf("%d questions", n)
	}
}

func TestDotSegmentIsNotAsked(t *testing.T) {
	p, b := newParents(t, time.Now, func(http.ResponseWriter, *http.Request) {})
	for _, id := range []string{".", ".."} {
		if _, err := p.Parent(t.Context(), "card", []byte(id)); !errors.Is(err, enforce.ErrNoParent) {
			t.Errorf("%s: %v", id, err)
		}
	}
	if b.asked.Load() != 0 {
		t.Error("the API was asked")
	}
	if _, err := p.Parent(t.Context(), "payment", []byte("1")); !errors.Is(err, enforce.ErrNoParent) {
		t.Error("a type without a rule has a parent")
	}
}

func TestUnusableParentRulesAreRefused(t *testing.T) {
	for _, r := range []proxy.ParentRule{
		{Get: "cards/{id}", Pointer: "/a"}, {Get: "/cards", Pointer: "/a"}, {Get: "/cards/{id}/{id}", Pointer: "/a"}, {Get: "/cards/{id}#x", Pointer: "/a"},
		{Get: "/cards/{id}"}, {Get: "/cards/{id}", Pointer: "a"}, {Get: "/cards/{id}", Pointer: "/a", TTL: -1}, {Get: "/cards/{id}", Pointer: "/a", TTL: 48 * time.Hour},
	} {
		if _, err := proxy.NewParents(&url.URL{Scheme: "http", Host: "a"}, nil, map[string]proxy.ParentRule{"card": r}, time.Now); err == nil {
			t.Errorf("%+v was accepted", r)
		}
	}
}
