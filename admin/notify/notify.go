// Package notify tells a webhook what happens to tokens: that one is about to
// expire, was revoked, or that its secret leaked.
//
// # What the receiver gets
//
// A POST with a JSON [Event]. The header [SignatureHeader] holds `t=SECONDS,v1=HEX`:
// when the request was made, and the HMAC-SHA-256 under the shared secret over
// SECONDS, a full stop, and the body. A receiver compares it in constant time,
// refuses what is older than five minutes, and remembers the ids of the events for
// as long, so that a recorded request is worth nothing. An answer of 2xx means that
// the event is taken; after any other, or none, it comes again with the same id and
// a fresh signature, up to twelve times, each after twice the pause of the one
// before. The same event can come twice when an answer was lost, and events come in
// no order that can be relied on.
//
// # What one event does to the others
//
// An event that is not taken waits aside. What its receiver refuses (4xx) keeps the
// others waiting for a second; what a receiver that is away or unwell does not take
// (no answer, 5xx, 408, 429, a redirection) keeps them waiting too, for twice as long
// each time in a row, and another event goes next: so a dead receiver is asked by one
// event at a time, ever less often, and an event that breaks its receiver does not
// have its turn again before the others had theirs.
//
// # What it never does
//
// It never blocks who tells it something: the queue is bounded, and what finds no
// room is counted. It speaks https, or http to this machine alone; it follows no
// redirects, and sends no secret and no digest.
package notify

import (
	"bytes"
	"cmp"
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
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"tokenward/tokenstore"
)

// The headers of a notification.
const (
	SignatureHeader = "Tokenward-Signature"
	EventHeader     = "Tokenward-Event" // the id, which the body has too
)

// MinSecretBytes is how long the shared secret has to be.
const MinSecretBytes = 16

const (
	maxWaiting = 1024
	maxTries   = 12 // the last about half an hour after the first
	firstPause = time.Second
	maxPause   = 10 * time.Minute
	tryTimeout = 10 * time.Second

	// bodyPatience is how long the rest of an answer is waited for: its status, which
	// says all, is here.
	bodyPatience = time.Second
)

// Kind says what happened.
type Kind string

// The kinds of events.
const (
	Expires Kind = "token.expires"
	Revoked Kind = "token.revoked"
	Leaked  Kind = "token.leaked" // its secret was found where it should not be
)

// Event is what a receiver is told.
type Event struct {
	ID    string    `json:"id"` // the same whenever it is the same event
	Type  Kind      `json:"type"`
	Time  time.Time `json:"time"`
	Days  int       `json:"days,omitempty"` // Expires: within so many it ends
	Token Token     `json:"token"`

	// Delivered is called, on the goroutine of Run, once a receiver has taken it;
	// may be nil.
	Delivered func() `json:"-"`
}

// Token is the token that an event is about.
type Token struct {
	ID        tokenstore.ID `json:"id"`
	Account   uint64        `json:"account"`
	Owner     uint64        `json:"owner"`
	Name      string        `json:"name"`
	ExpiresAt *time.Time    `json:"expires_at"`
}

// ExpiryEvent tells that t, which has an end, ends within so many days.
func ExpiryEvent(t *tokenstore.Token, days int, now time.Time) Event {
	id := fmt.Sprintf("expires.%d.%d.%d", t.ID, t.Expiry.At.UnixMilli(), days)
	return Event{ID: id, Type: Expires, Time: now.UTC(), Days: days, Token: about(t)}
}

// RevokedEvent tells that t was revoked.
func RevokedEvent(t *tokenstore.Token) Event {
	return Event{ID: fmt.Sprintf("revoked.%d.%d", t.ID, t.EndedAt.UnixMilli()), Type: Revoked, Time: t.EndedAt.UTC(), Token: about(t)}
}

// LeakedEvent tells that a secret of t was reported as leaked. t is as the report left
// it, so that a leak that is reported again is the same event.
func LeakedEvent(t *tokenstore.Token, now time.Time) Event {
	return Event{ID: fmt.Sprintf("leaked.%d.%d", t.ID, t.Revision), Type: Leaked, Time: now.UTC(), Token: about(t)}
}

func about(t *tokenstore.Token) Token {
	a := Token{ID: t.ID, Account: t.Account, Owner: t.Owner, Name: t.Name}
	if !t.Expiry.Never {
		a.ExpiresAt = new(t.Expiry.At.UTC())
	}
	return a
}

// Sender sends events to one receiver, one at a time. All methods may be called at
// once from many goroutines; Run by one.
type Sender struct {
	url    string
	secret []byte
	client *http.Client
	log    *slog.Logger
	now    func() time.Time
	wake   chan struct{} // of one place: an event came

	mu      sync.Mutex         // guards the two below; held for moments
	waiting map[string]*parcel // by the event's id, at most maxWaiting
	came    uint64             // events that ever waited

	// Run's own: tries in a row that met a receiver that is away or unwell, and until
	// when it is left alone.
	failures int
	rest     time.Time

	sent, failed, dropped atomic.Uint64
}

// parcel is an event that waits. What Send made of it stays; the rest is Run's.
type parcel struct {
	event Event
	came  uint64 // its place among all events
	tries int    // made
	due   time.Time
}

// New returns a sender to the receiver at target. now stamps signatures, so it is
// the machine's time. client may be nil.
func New(target string, secret []byte, client *http.Client, now func() time.Time, log *slog.Logger) (*Sender, error) {
	if problem := CheckURL(target); problem != "" {
		return nil, fmt.Errorf("the URL of the webhook %s", problem)
	}
	if len(secret) < MinSecretBytes {
		return nil, fmt.Errorf("the secret of the webhook has fewer than %d bytes: make one with `head -c 32 /dev/urandom | base64`", MinSecretBytes)
	}
	if client == nil {
		client = &http.Client{Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: tryTimeout, ResponseHeaderTimeout: tryTimeout,
			IdleConnTimeout: time.Minute, MaxIdleConns: 1, ForceAttemptHTTP2: true,
		}}
	}
	direct := *client
	direct.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Sender{
		url: target, secret: bytes.Clone(secret), client: &direct, log: log, now: now,
		wake: make(chan struct{}, 1), waiting: map[string]*parcel{},
	}, nil
}

// CheckURL says why events may not be sent to a URL, or nothing.
func CheckURL(target string) string {
	u, err := url.Parse(target)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return "must be a URL such as https://hooks.example.com/tokens"
	case u.User != nil:
		return "must not hold a user or password"
	case u.Fragment != "":
		return "must not have a fragment"
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return "must be https, unless the receiver is on this machine (127.0.0.1 or [::1])"
	}
	return ""
}

// loopback takes no names: what localhost means, a file on the machine says.
func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// Send queues an event and returns at once. It reports whether the event waits
// now, which one that waits already does; without room it is dropped and counted.
func (s *Sender) Send(e Event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting[e.ID] != nil {
		return true
	}
	if len(s.waiting) == maxWaiting {
		s.dropped.Add(1)
		return false
	}
	s.came++
	s.waiting[e.ID] = &parcel{event: e, came: s.came}
	select {
	case s.wake <- struct{}{}:
	default: // it is to look anyway
	}
	return true
}

// Run sends what is queued until ctx ends.
func (s *Sender) Run(ctx context.Context) {
	defer s.client.CloseIdleConnections()
	for ctx.Err() == nil {
		p, pause := s.next(s.now())
		if p != nil && pause == 0 {
			s.deliver(ctx, p)
			continue
		}
		var due <-chan time.Time
		if p != nil {
			due = time.After(pause)
		}
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-due:
		}
	}
}

// next returns the event to try next and in how long; nil if none waits. Of those that
// are due it is the one that was tried least, so that no event keeps the others back.
func (s *Sender) next(now time.Time) (first *parcel, pause time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.waiting {
		if first == nil || p.before(first, now) {
			first = p
		}
	}
	if first == nil {
		return nil, 0
	}
	return first, max(first.due.Sub(now), s.rest.Sub(now), 0)
}

// before reports whether p goes before q.
func (p *parcel) before(q *parcel, now time.Time) bool {
	if p.due.After(now) || q.due.After(now) {
		return cmp.Or(p.due.Compare(q.due), cmp.Compare(p.came, q.came)) < 0
	}
	return cmp.Or(cmp.Compare(p.tries, q.tries), p.due.Compare(q.due), cmp.Compare(p.came, q.came)) < 0
}

// deliver tries once to have the event taken, and says when to try again.
func (s *Sender) deliver(ctx context.Context, p *parcel) {
	e := &p.event
	body, err := json.Marshal(e)
	if err != nil {
		s.failed.Add(1)
		s.done(e)
		s.log.Error("a notification could not be written", "event", e.ID, "error", err)
		return
	}
	err = s.post(ctx, e, body)
	if err != nil && ctx.Err() != nil {
		return
	}
	p.tries++
	s.restAfter(err)
	switch {
	case err == nil:
		s.sent.Add(1)
		if e.Delivered != nil {
			e.Delivered()
		}
		s.done(e)
	case p.tries == maxTries:
		s.failed.Add(1)
		s.done(e)
		s.log.Error("a notification was given up after its last try: check the receiver, then see `tokenward report`", "event", e.ID, "tries", p.tries, "error", err)
	default:
		p.due = s.now().Add(pauseAfter(p.tries))
		if p.tries == 1 {
			s.log.Warn("the webhook did not accept a notification; it is sent again", "event", e.ID, "error", err)
		}
	}
}

// restAfter says for how long the receiver is left alone after what became of a try.
func (s *Sender) restAfter(err error) {
	switch refused, answered := errors.AsType[statusError](err); {
	case err == nil:
		s.failures, s.rest = 0, time.Time{}
	case answered && refused.ofEvent():
		s.failures, s.rest = 0, s.now().Add(firstPause)
	default:
		s.failures++
		s.rest = s.now().Add(pauseAfter(s.failures))
	}
}

// pauseAfter is how long to wait after so many tries in vain.
func pauseAfter(tries int) time.Duration {
	return min(firstPause<<min(tries-1, 30), maxPause)
}

func (s *Sender) done(e *Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, e.ID)
}

// post makes one request.
func (s *Sender) post(ctx context.Context, e *Event, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "tokenward")
	r.Header.Set(EventHeader, e.ID)
	r.Header.Set(SignatureHeader, sign(s.secret, s.now(), body))
	resp, err := s.client.Do(r)
	if err != nil {
		// The URL may hold what only the receiver should see.
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return err
	}
	defer resp.Body.Close()
	// What it says is of no interest, but read so that the connection can be used again:
	// not for longer than another connection takes.
	enough := time.AfterFunc(bodyPatience, cancel)
	defer enough.Stop()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode/100 != 2 {
		return statusError(resp.StatusCode)
	}
	return nil
}

// statusError is an answer that does not take the event.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("the receiver answered %d", int(e)) }

// ofEvent reports whether the answer is about the event that was sent, so that others
// may be taken.
func (e statusError) ofEvent() bool {
	return e/100 == 4 && e != http.StatusRequestTimeout && e != http.StatusTooManyRequests
}

func sign(secret []byte, at time.Time, body []byte) string {
	seconds := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(seconds + "."))
	mac.Write(body)
	return "t=" + seconds + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}

// Stats are what a sender tells of itself.
type Stats struct {
	Waiting int    // events that were neither taken nor given up
	Sent    uint64 // taken by the receiver
	Failed  uint64 // given up
	Dropped uint64 // without room in the queue
}

// Stats returns the counts. They are read one after another, not at one instant.
func (s *Sender) Stats() Stats {
	s.mu.Lock()
	waiting := len(s.waiting)
	s.mu.Unlock()
	return Stats{Waiting: waiting, Sent: s.sent.Load(), Failed: s.failed.Load(), Dropped: s.dropped.Load()}
}
