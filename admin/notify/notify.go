// Package notify tells a web hook what happens to tokens: that one is about to
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
// a fresh signature. The same event can come twice when an answer was lost.
//
// # What it never does
//
// It never blocks who tells it something: the queue is bounded, and what finds no
// room is counted. It speaks https, or http to this machine alone; it follows no
// redirects, and sends no secret and no digest.
package notify

import (
	"bytes"
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
	maxQueue   = 1024
	maxTries   = 12 // the last about half an hour after the first
	firstPause = time.Second
	maxPause   = 10 * time.Minute
	tryTimeout = 10 * time.Second
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

// LeakedEvent tells that a secret of t was reported as leaked.
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

// Sender sends events to one receiver, one after the other. All methods may be
// called at once from many goroutines; Run by one.
type Sender struct {
	url    string
	secret []byte
	client *http.Client
	log    *slog.Logger
	now    func() time.Time
	queue  chan Event

	mu      sync.Mutex // guards waiting; held for moments
	waiting map[string]bool

	sent, failed, dropped atomic.Uint64
}

// New returns a sender to the receiver at target. now stamps signatures, so it is
// the machine's time. client may be nil.
func New(target string, secret []byte, client *http.Client, now func() time.Time, log *slog.Logger) (*Sender, error) {
	if problem := CheckURL(target); problem != "" {
		return nil, fmt.Errorf("the URL of the web hook %s", problem)
	}
	if len(secret) < MinSecretBytes {
		return nil, fmt.Errorf("the secret of the web hook has fewer than %d bytes: make one with `head -c 32 /dev/urandom | base64`", MinSecretBytes)
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
		queue: make(chan Event, maxQueue), waiting: map[string]bool{},
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
	if s.waiting[e.ID] {
		return true
	}
	select {
	case s.queue <- e:
		s.waiting[e.ID] = true
		return true
	default:
		s.dropped.Add(1)
		return false
	}
}

// Run sends what is queued until ctx ends.
func (s *Sender) Run(ctx context.Context) {
	defer s.client.CloseIdleConnections()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-s.queue:
			s.deliver(ctx, &e)
		}
	}
}

// deliver tries until the receiver took the event, it is given up, or ctx ends.
func (s *Sender) deliver(ctx context.Context, e *Event) {
	defer s.done(e)
	body, err := json.Marshal(e)
	if err != nil {
		s.failed.Add(1)
		s.log.Error("a notification could not be written", "event", e.ID, "error", err)
		return
	}
	pause := firstPause
	for try := 1; ; try++ {
		err := s.post(ctx, e, body)
		switch {
		case err == nil:
			s.sent.Add(1)
			if e.Delivered != nil {
				e.Delivered()
			}
			return
		case ctx.Err() != nil:
			return
		case try == maxTries:
			s.failed.Add(1)
			s.log.Error("a notification was given up: look at the receiver, then at `tokenward report`", "event", e.ID, "tries", try, "error", err)
			return
		case try == 1:
			s.log.Warn("a notification was not taken; it is sent again", "event", e.ID, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
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
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the receiver answered %d", resp.StatusCode)
	}
	return nil
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
	Waiting int    // events in the queue
	Sent    uint64 // taken by the receiver
	Failed  uint64 // given up
	Dropped uint64 // without room in the queue
}

// Stats returns the counts. They are read one after another, not at one instant.
func (s *Sender) Stats() Stats {
	return Stats{Waiting: len(s.queue), Sent: s.sent.Load(), Failed: s.failed.Load(), Dropped: s.dropped.Load()}
}
