package notify_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tokenward/admin/notify"
	"tokenward/tokenstore/storetest"
)

const (
	hook   = "https://hooks.example.com/tokens?key=hidden"
	secret = "0123456789abcdef"

	firstPause = time.Second
)

// receiver is the other side: a webhook without a network.
type receiver struct {
	t      *testing.T
	answer func(try int, event string) (status int, err error)

	slow  bool       // its answers have bodies that never end
	mu    sync.Mutex // guards the rest
	tries []time.Time
	taken []notify.Event
	seen  map[string]bool // signatures
}

func (r *receiver) tried() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.tries)
}

func (r *receiver) took() []notify.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.taken)
}

// pass lets time pass in a bubble, and all happen that then does.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // in a bubble
	synctest.Wait()
}

// RoundTrip implements http.RoundTripper.
func (r *receiver) RoundTrip(q *http.Request) (*http.Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tries = append(r.tries, time.Now())
	body, err := io.ReadAll(q.Body)
	if err != nil {
		return nil, err
	}
	signature := q.Header.Get(notify.SignatureHeader)
	if err := verify(signature, body, time.Now()); err != nil {
		r.t.Errorf("%s: %v", signature, err)
	}
	if r.seen[signature] {
		r.t.Error("two requests have one signature")
	}
	r.seen[signature] = true
	status, err := r.answer(len(r.tries), q.Header.Get(notify.EventHeader))
	if err != nil {
		return nil, err
	}
	var e notify.Event
	if err := json.Unmarshal(body, &e); err != nil || e.ID != q.Header.Get(notify.EventHeader) {
		r.t.Errorf("%s: %v", body, err)
	}
	if status/100 == 2 {
		r.taken = append(r.taken, e)
	}
	header := http.Header{"Location": {"http://elsewhere.example.com/"}}
	content := io.Reader(strings.NewReader("thanks"))
	if r.slow {
		content = endless{q.Context()}
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(content), Header: header, Request: q}, nil
}

// endless is a body of which no byte comes until nobody waits for it any more.
type endless struct{ ctx context.Context } // it is one request's

func (e endless) Read([]byte) (int, error) {
	<-e.ctx.Done()
	return 0, e.ctx.Err()
}

// verify is what a receiver does.
func verify(signature string, body []byte, now time.Time) error {
	stamp, sum, ok := strings.Cut(strings.TrimPrefix(signature, "t="), ",v1=")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if !ok || err != nil {
		return errors.New("not the form of a signature")
	}
	if age := now.Sub(time.Unix(seconds, 0)); age.Abs() > 5*time.Minute {
		return fmt.Errorf("%s old", age)
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(stamp + "."))
	mac.Write(body)
	if got, err := hex.DecodeString(sum); err != nil || !hmac.Equal(got, mac.Sum(nil)) {
		return errors.New("another secret or body")
	}
	return nil
}

func run(t *testing.T, answer func(int, string) (int, error), log io.Writer, test func(*notify.Sender, *receiver)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{t: t, answer: answer, seen: map[string]bool{}}
		s, err := notify.New(hook, []byte(secret), &http.Client{Transport: r}, time.Now, slog.New(slog.NewTextHandler(log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { s.Run(ctx); close(ended) }()
		test(s, r)
		cancel()
		<-ended
	})
}

func fine(int, string) (int, error) { return http.StatusNoContent, nil }

func TestEventIsSignedAndDeliveredOnce(t *testing.T) {
	t.Parallel()
	run(t, fine, io.Discard, func(s *notify.Sender, r *receiver) {
		token := storetest.Sample(7, 1, 2)
		delivered := 0
		e := notify.ExpiryEvent(token, 14, time.Now())
		e.Delivered = func() { delivered++ }
		for range 3 { // while it waits it is the same one
			if !s.Send(e) {
				t.Error("it was dropped")
			}
		}
		synctest.Wait()
		if len(r.taken) != 1 || delivered != 1 || r.taken[0].Token.Name != "token 7" || r.taken[0].Days != 14 || !r.taken[0].Token.ExpiresAt.Equal(token.Expiry.At) {
			t.Errorf("%d deliveries of %+v", delivered, r.taken)
		}
	})
}

func TestFailedDeliveryIsRepeatedWithFreshSignatures(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	run(t, func(try int, _ string) (int, error) {
		switch {
		case try < 4:
			return 0, errors.New("connection refused")
		case try < 5:
			return http.StatusFound, nil // is not followed
		case try < 8:
			return http.StatusInternalServerError, nil
		}
		return http.StatusOK, nil
	}, &log, func(s *notify.Sender, r *receiver) {
		token := storetest.Sample(7, 1, 2)
		token.EndedAt = storetest.Epoch
		s.Send(notify.RevokedEvent(token))
		time.Sleep(time.Hour) //nolint:forbidigo // in a bubble
		synctest.Wait()
		if len(r.tries) != 8 || len(r.taken) != 1 || s.Stats().Sent != 1 {
			t.Errorf("%d tries, %d taken", len(r.tries), len(r.taken))
		}
		if last := r.tries[7].Sub(r.tries[0]); last != 127*time.Second {
			t.Errorf("the last came %s after the first", last)
		}
	})
	if strings.Contains(log.String(), "hidden") || !strings.Contains(log.String(), "sent again") {
		t.Errorf("the log says %s", &log)
	}
}

func TestReceiverThatRefusesAllBlocksNobodyAndIsNotHammered(t *testing.T) {
	t.Parallel()
	run(t, func(int, string) (int, error) { return http.StatusTeapot, nil }, io.Discard, func(s *notify.Sender, r *receiver) {
		sent := uint64(0)
		for i := range 2000 {
			if s.Send(notify.Event{ID: strconv.Itoa(i)}) {
				sent++
			}
		}
		if st := s.Stats(); sent != 1024 || st.Dropped != 2000-sent {
			t.Errorf("%d were queued, %+v", sent, st)
		}
		pass(30 * time.Minute)
		r.mu.Lock()
		defer r.mu.Unlock()
		for i := range r.tries[1:] {
			if pause := r.tries[i+1].Sub(r.tries[i]); pause != time.Second {
				t.Fatalf("try %d came %s after the one before", i+2, pause)
			}
		}
	})
}

func TestRefusedEventIsGivenUp(t *testing.T) {
	t.Parallel()
	run(t, func(int, string) (int, error) { return http.StatusBadRequest, nil }, io.Discard, func(s *notify.Sender, r *receiver) {
		for i := range 3 {
			s.Send(notify.Event{ID: strconv.Itoa(i)})
		}
		pass(time.Hour)
		if st := s.Stats(); st.Failed != 3 || st.Waiting != 0 || st.Sent != 0 || r.tried() != 3*12 {
			t.Errorf("%+v after %d tries", st, r.tried())
		}
	})
}

// One event that the receiver refuses, breaks at or hangs on must not keep the others
// waiting for as long as it is tried.
func TestEventThatIsNotTakenDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]func() (int, error){
		"refused":           func() (int, error) { return http.StatusUnprocessableEntity, nil },
		"breaks it":         func() (int, error) { return http.StatusInternalServerError, nil },
		"answered by a cut": func() (int, error) { return 0, io.ErrUnexpectedEOF },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var poison atomic.Int32
			run(t, func(_ int, event string) (int, error) {
				if event == "poison" {
					poison.Add(1)
					return bad()
				}
				return http.StatusOK, nil
			}, io.Discard, func(s *notify.Sender, r *receiver) {
				s.Send(notify.Event{ID: "poison"})
				synctest.Wait() // it is the first one tried
				for i := range 100 {
					s.Send(notify.Event{ID: strconv.Itoa(i)})
				}
				pass(firstPause)
				if n := len(r.took()); n != 100 || poison.Load() > 2 {
					t.Fatalf("%d of 100 were taken within a pause, with %d tries of the bad one", n, poison.Load())
				}
				for i := range 40 { // one that comes at any time goes on within a pause
					pass(time.Minute)
					s.Send(notify.Event{ID: fmt.Sprint("later", i)})
					pass(firstPause)
					if len(r.took()) != 100+i+1 {
						t.Fatal("an event waits for the bad one")
					}
				}
				if st := s.Stats(); poison.Load() != 12 || st.Failed != 1 || st.Sent != 140 || st.Waiting != 0 {
					t.Errorf("the bad one was tried %d times, %+v", poison.Load(), st)
				}
			})
		})
	}
}

func TestDeadReceiverIsNotAskedByEveryEvent(t *testing.T) {
	t.Parallel()
	var back atomic.Bool
	run(t, func(int, string) (int, error) {
		if back.Load() {
			return http.StatusOK, nil
		}
		return 0, errors.New("connection refused")
	}, io.Discard, func(s *notify.Sender, r *receiver) {
		for i := range 1000 {
			s.Send(notify.Event{ID: strconv.Itoa(i)})
		}
		pass(time.Hour)
		// 1, 2, 4 … 512 s after one another, then every ten minutes.
		if st := s.Stats(); r.tried() != 15 || st.Failed != 0 || st.Waiting != 1000 {
			t.Errorf("%d tries, %+v", r.tried(), st)
		}
		back.Store(true)
		pass(10 * time.Minute)
		if st := s.Stats(); st.Sent != 1000 || st.Waiting != 0 || r.tried() != 15+1000 {
			t.Errorf("it is back: %d tries, %+v", r.tried(), st)
		}
	})
}

// TestReceiverThatNeverEndsItsAnswerHoldsNobodyUpForLong: it took the event, and that is
// all there is to know.
func TestReceiverThatNeverEndsItsAnswerHoldsNobodyUpForLong(t *testing.T) {
	t.Parallel()
	run(t, fine, io.Discard, func(s *notify.Sender, r *receiver) {
		r.slow = true
		for i := range 10 {
			s.Send(notify.Event{ID: strconv.Itoa(i)})
		}
		pass(15 * time.Second)
		if st := s.Stats(); st.Sent != 10 || r.tried() != 10 {
			t.Errorf("%d tries, %+v", r.tried(), st)
		}
	})
}

func TestOnlyHTTPSOrThisMachineIsTold(t *testing.T) {
	t.Parallel()
	for target, ok := range map[string]bool{
		"https://hooks.example.com/a?b=c": true, "http://127.0.0.1:9000/x": true, "http://[::1]:9000/": true,
		"http://hooks.example.com/": false, "http://localhost/": false, "http://127.0.0.1.example.com/": false, "http://10.0.0.1/": false,
		"ftp://127.0.0.1/": false, "https://user:pass@example.com/": false, "https:///x": false, "": false, "https://example.com/#x": false,
	} {
		if _, err := notify.New(target, []byte(secret), nil, time.Now, slog.New(slog.DiscardHandler)); (err == nil) != ok {
			t.Errorf("%q: %v", target, err)
		}
	}
	if _, err := notify.New(hook, []byte("short"), nil, time.Now, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a short secret is taken")
	}
}
