package proxy

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"tokenward/proxy/http1"
)

// patience ends the wait for a client or an upstream that does nothing. One timer
// serves a whole request; each step says how long the next one may take.
type patience struct {
	stall  time.Duration
	cancel context.CancelCauseFunc
	client *http.ResponseController // nil: the client's side is somebody else's
	owes   atomic.Bool              // a piece of the request's body is waited for

	mu      sync.Mutex // guards what follows; held for moments only
	timer   *time.Timer
	phase   phase
	ended   bool
	over    bool // the exchange is, and not just the waiting
	expired bool

	clientStalled bool // expired while the client owed a piece of its body
}

type phase uint8

const (
	phaseSending   phase = iota // the request's body is on its way
	phaseWaiting                // for the head of the answer
	phaseAnswering              // the answer is on its way
)

var errCut = errors.New("the token does not allow the exchange any more")

var errImpatient = errors.New("nothing moved for too long")

func newPatience(stall time.Duration, cancel context.CancelCauseFunc) *patience {
	return &patience{stall: stall, cancel: cancel}
}

// moved notes progress in a body: of the request's, or once there is an answer of
// either.
func (p *patience) moved() { p.arm(nil, p.stall) }

// wait begins the wait for the head of an answer, unless that is here.
func (p *patience) wait(d time.Duration) {
	p.arm(func() bool { return p.phase != phaseAnswering }, d, phaseWaiting)
}

// answering notes that the head of the answer is here.
func (p *patience) answering() { p.arm(nil, p.stall, phaseAnswering) }

// arm lets d pass from now on, less than zero forever; next is the phase that
// begins. Nothing happens unless ok, which may be nil.
func (p *patience) arm(ok func() bool, d time.Duration, next ...phase) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || ok != nil && !ok() {
		return
	}
	for _, one := range next {
		p.phase = one
	}
	switch {
	case d <= 0:
		if p.timer != nil {
			p.timer.Stop()
		}
	case p.timer == nil:
		p.timer = time.AfterFunc(d, p.expire)
	default:
		p.timer.Reset(d)
	}
}

// expire is called by the timer: it ends what is waited for. The writing side of
// a client that has no answer yet stays usable, to tell it.
func (p *patience) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	p.expired = true
	p.clientStalled = p.phase == phaseSending && p.owes.Load()
	if p.client != nil {
		if p.phase != phaseWaiting {
			_ = p.client.SetReadDeadline(past) // a stream that is gone waits for nothing
		}
		if p.phase == phaseAnswering {
			_ = p.client.SetWriteDeadline(past) // likewise
		}
	}
	p.cancel(errImpatient)
}

// cut ends the exchange at once, whatever it waits for, if it is not over yet; it
// reports whether it did. After an upgrade it ends what the two sides still say.
func (p *patience) cut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return false
	}
	p.cancel(errCut) // first: whoever fails by what follows asks why
	if p.client != nil && !p.ended {
		_ = p.client.SetReadDeadline(past)  // a stream that is gone waits for nothing
		_ = p.client.SetWriteDeadline(past) // likewise
	}
	return true
}

// finish notes that the exchange is over.
func (p *patience) finish() {
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
	p.end()
}

// end stops the timer for good, and reports whether it had expired, and whether
// that was the client's doing.
func (p *patience) end() (expired, clientStalled bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	if p.timer != nil {
		p.timer.Stop()
	}
	return p.expired, p.clientStalled
}

// stalledClient reports whether the wait ended for the client's doing.
func (p *patience) stalledClient() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.clientStalled
}

var past = time.Unix(1, 0)

// sendingBody is the body of a request as it is read for the upstream. net/http may
// read on for a moment when the request has been answered already and its passage
// belongs to another one, so nothing here is the passage's.
type sendingBody struct {
	in, out  *http.Request
	body     io.ReadCloser
	patience *patience
	header   time.Duration // how long an answer may take, from the end of the body
	bound    int64         // of the size; 0: none
	size     int64
	touched  atomic.Bool // something may have been read
	arrived  atomic.Bool // something of it, or its end, is here

	mu  sync.Mutex // guards err
	err error      // what the client's side failed with
}

var errBodyTooLarge = errors.New("the request's body is larger than allowed")

// Read implements io.Reader.
func (b *sendingBody) Read(p []byte) (int, error) {
	b.touched.Store(true)
	b.patience.moved()
	b.patience.owes.Store(true)
	n, err := b.body.Read(p)
	b.patience.owes.Store(false)
	b.arrived.Store(true)
	b.size += int64(n)
	switch {
	case b.bound > 0 && b.size > b.bound:
		n, err = 0, errBodyTooLarge
		b.fail(err)
	case err == io.EOF:
		for name := range b.out.Trailer {
			b.out.Trailer[name] = b.in.Trailer[name]
		}
		b.patience.wait(b.header)
	case err != nil:
		b.fail(err)
	}
	return n, err
}

// Close implements io.Closer. The server ends the client's side by itself.
func (b *sendingBody) Close() error { return nil }

func (b *sendingBody) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

// failed is what the client's side failed with, nil if it did not.
func (b *sendingBody) failed() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

var bodyTooLarge = protocolRefusal(&http1.ProtocolError{Status: http.StatusRequestEntityTooLarge, Code: "body_bytes"})

// bodyRefusal is the answer to a request whose body was at fault.
func bodyRefusal(err error) refusal {
	switch {
	case errors.Is(err, errBodyTooLarge):
		return bodyTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return protocolRefusal(&http1.ProtocolError{Status: http.StatusRequestTimeout, Code: "body_timeout"})
	}
	return requestRefusal(err)
}

// answerWriter writes an answer for the client, interim answers included.
//
// It sends on each piece of a body at once. ReverseProxy would do that too, but it
// sends the head from a timer of its own, before or after it has found out that
// nothing follows: now and then an empty answer would have its end in a frame
// of its own.
type answerWriter struct {
	http.ResponseWriter
	journey  *journey
	request  *http.Request
	interims int
}

// maxInterims bounds the interim answers to one request that are passed on.
const maxInterims = 32

// Unwrap gives what is beneath, for http.ResponseController.
func (w *answerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader begins the answer, or sends an interim one.
func (w *answerWriter) WriteHeader(status int) {
	if status < 200 && status != http.StatusSwitchingProtocols {
		w.interim(status)
		return
	}
	w.ResponseWriter.WriteHeader(status)
	_ = w.flush() // Write reports it
}

// Write writes a piece of the answer's body.
func (w *answerWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	if err == nil {
		err = w.flush()
	}
	return n, err
}

func (w *answerWriter) flush() error {
	if !w.journey.streams {
		return nil
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// interim sends an interim answer.
//
// A client of HTTP/2 that waits for 100 Continue gets it from net/http when its
// body is first read, but never once another interim answer went out (that holds
// for Go 1.26), and net/http hides whether it waits. So it is asked for its body
// before any other interim answer, unless that is here. Who asked for no such
// thing ignores it (RFC 9110 section 15.2.1).
func (w *answerWriter) interim(status int) {
	fields := w.Header()
	if w.interims++; w.interims > maxInterims {
		return // the wait for the answer goes on, and has its own bound
	}
	if w.journey.lane.cors != nil {
		dropHeaderCORS(fields)
	}
	delete(fields, headerRequestID)
	s := w.journey.sending
	if status != http.StatusContinue && w.request.ProtoMajor == 2 && s != nil && !s.arrived.Load() {
		kept := maps.Clone(fields)
		clear(fields)
		w.ResponseWriter.WriteHeader(http.StatusContinue)
		maps.Copy(fields, kept)
	}
	w.ResponseWriter.WriteHeader(status)
}

// answerBody is the body of an upstream's answer as it is read for the client.
type answerBody struct {
	io.ReadCloser
	response *http.Response
	journey  *journey
	guard    *Guard
	left     int64 // of the announced length
}

// Read implements io.Reader.
func (b *answerBody) Read(p []byte) (int, error) {
	b.journey.patience.moved()
	n, err := b.ReadCloser.Read(p)
	b.journey.patience.moved()
	if b.left -= int64(n); err != nil || b.left == 0 {
		b.journey.giveBack()
	}
	switch {
	case err == io.EOF:
		b.filterTrailer()
	case err != nil:
		if !b.clientFailed() {
			b.guard.countFailure(codeUpstreamBroke, b.journey.passage, err)
			if b.response.Request.Context().Err() == nil && endsCall(b.response, b.guard.Now().Sub(b.journey.started), err) {
				return n, io.EOF // what is in the trailers ends it
			}
		}
		return n, context.Canceled // ReverseProxy would log any other, a line for each request
	}
	return n, err
}

// clientFailed reports whether the exchange was ended from the client's side: it is
// gone, or its body broke off or is malformed.
func (b *answerBody) clientFailed() bool {
	ctx := b.response.Request.Context()
	return ctx.Err() != nil && context.Cause(ctx) != errImpatient || b.journey.sending.failed() != nil //nolint:errorlint // it is set as it is
}

// filterTrailer removes the trailers that must not pass. It is done before the
// answer begins, for those that are announced, and at its end for all.
func (b *answerBody) filterTrailer() {
	for name := range b.response.Trailer {
		if b.journey.rules.Canon.ForbiddenTrailer([]byte(name)) {
			delete(b.response.Trailer, name)
		}
	}
}

// sender sends requests to the upstreams of their lane, one after the other until
// one takes it.
type sender struct{ guard *Guard }

// RoundTrip implements http.RoundTripper.
func (s sender) RoundTrip(r *http.Request) (*http.Response, error) {
	j := journeyOf(r.Context())
	us := j.lane.upstreams
	var a attempt
	up := a.next(us, j.started)
	if up == nil {
		return nil, errNoUpstream
	}
	for {
		if j.sending == nil {
			j.patience.wait(j.lane.responseHeader)
		} else {
			j.patience.moved()
		}
		resp, heard, err := s.try(r, up, len(us.list) > 1)
		if err == nil {
			j.patience.answering()
			s.guard.answered(up)
			return resp, nil
		}
		_, dialing := errors.AsType[dialError](err)
		switch {
		case j.sending.failed() != nil, j.patience.stalledClient(), r.Context().Err() != nil && context.Cause(r.Context()) != errImpatient: //nolint:errorlint // it is set as it is
			return nil, err // that was the client
		default:
			s.guard.unanswered(up, err)
		}
		if !mayGoElsewhere(r, j, dialing, heard) {
			return nil, err
		}
		next := a.next(us, s.guard.Now())
		if next == nil {
			return nil, err
		}
		s.guard.countFailover(up, j.passage, err)
		up = next
	}
}

// try sends the request to one upstream. heard says whether a byte of an answer
// came; it is looked at only where asked for.
func (s sender) try(r *http.Request, up *Upstream, listen bool) (resp *http.Response, heard bool, err error) {
	ctx := r.Context()
	var first atomic.Bool
	if listen {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotFirstResponseByte: func() { first.Store(true) }})
	}
	out := r.WithContext(ctx)
	u := *r.URL
	u.Scheme, u.Host = up.target.Scheme, up.target.Host
	if u.Scheme == "h2c" {
		u.Scheme = "http"
	}
	out.URL = &u
	resp, err = up.transport.RoundTrip(out)
	return resp, first.Load(), err
}

// mayGoElsewhere reports whether a request that got no answer reached nobody, or
// asks for nothing to be done (RFC 9110 section 9.2.1), as with the engine's door.
func mayGoElsewhere(r *http.Request, j *journey, dialing, heard bool) bool {
	if r.Context().Err() != nil || j.sending != nil && j.sending.touched.Load() {
		return false
	}
	if dialing {
		return true
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return !heard
	}
	return false
}
