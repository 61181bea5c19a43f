package proxy

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tokenward/enforce/canon"
	"tokenward/proxy/http1"
)

// HTTP is the door over net/http: it serves HTTP/2, and whatever goes to an
// upstream that speaks nothing else. In the tests it stands as the reference for
// [Wire], which serves HTTP/1.1.
type HTTP struct {
	// HeaderCount bounds the field lines of a request; 0: 100; beyond: 431. Those of
	// Cookie are one here, since net/http joins them. Set it before the first request.
	HeaderCount int

	guard   *Guard
	reverse *httputil.ReverseProxy
}

// NewHTTP returns the door.
func NewHTTP(g *Guard) *HTTP {
	h := &HTTP{guard: g}
	h.reverse = &httputil.ReverseProxy{
		Rewrite:        h.rewrite,
		Transport:      sender{g},
		ModifyResponse: h.modifyResponse,
		ErrorHandler:   h.upstreamFailed,
		ErrorLog:       ErrorLog(g.Log),
		BufferPool:     &bufferPool{},
	}
	return h
}

// bufferPool lends the buffers through which answers are copied.
type bufferPool struct{ pool sync.Pool }

// Get implements httputil.BufferPool.
func (b *bufferPool) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

// Put implements httputil.BufferPool.
func (b *bufferPool) Put(p []byte) { b.pool.Put(&p) }

// journey is one request on its way to an upstream by net/http.
type journey struct {
	*passage
	patience *patience
	sending  *sendingBody // nil without a body
	streams  bool         // the answer has a body, each piece of which goes on when it comes
}

type journeyKey struct{}

func journeyOf(ctx context.Context) *journey {
	j, _ := ctx.Value(journeyKey{}).(*journey)
	return j
}

// ServeHTTP implements http.Handler.
func (h *HTTP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := h.guard.enter()
	defer h.guard.leave(p)
	FillHead(&p.head, r)
	if bad := h.check(r, len(p.head.Fields)); bad.status != 0 {
		p.refusal = bad
		h.guard.countRefusal(p.refusal.code)
		h.refuse(w, r, p)
		return
	}
	if !h.guard.judge(r.Context(), p) {
		h.refuse(w, r, p)
		return
	}
	if p.mount != nil {
		p.mount.ServeHTTP(w, r)
		return
	}
	h.forward(w, r, p, fromNetHTTP)
}

// check refuses what the engine refuses over HTTP/1.1 and net/http does not.
func (h *HTTP) check(r *http.Request, lines int) refusal {
	switch {
	case lines > cmp.Or(h.HeaderCount, 100):
		return protocolRefusal(&http1.ProtocolError{Status: http.StatusRequestHeaderFieldsTooLarge, Code: "header_count"})
	case !lengthHolds(r):
		return requestRefusal(nil)
	case r.ProtoMajor >= 2 && r.Header["Expect"] != nil: // of 100-continue net/http takes care itself, and removes it
		return protocolRefusal(&http1.ProtocolError{Status: http.StatusExpectationFailed, Code: "expect"})
	}
	return refusal{}
}

// origin says which server the request came through.
type origin uint8

const (
	fromNetHTTP origin = iota
	fromWire           // the engine sees to the patience with the client by itself
)

// forward sends a judged request on.
func (h *HTTP) forward(w http.ResponseWriter, r *http.Request, p *passage, from origin) {
	if p.lane.bodyBytes > 0 && r.ContentLength > p.lane.bodyBytes {
		p.refusal = bodyTooLarge
		h.guard.countRefusal(p.refusal.code)
		h.refuse(w, r, p)
		return
	}
	if r.Header.Get("Upgrade") != "" && !p.lane.upstreams.speaksHTTP2() {
		p.took = -1
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	j := &journey{passage: p, patience: newPatience(p.lane.stall, cancel)}
	defer j.patience.finish()
	client := http.NewResponseController(w)
	switch from {
	case fromNetHTTP:
		j.patience.client = client
		p.cutter.patience = j.patience
		if !h.guard.hold(ctx, p) {
			h.refuse(w, r, p)
			return
		}
		if err := awaitEmptyBody(client, r, p.lane.stall); err != nil {
			p.refusal = bodyRefusal(err)
			h.guard.countRefusal(p.refusal.code)
			h.refuse(w, r, p)
			return
		}
	case fromWire:
		// Without a server in the context, an answer that broke off would be ended
		// as if it were whole.
		ctx = context.WithValue(ctx, http.ServerContextKey, &http.Server{}) //nolint:gosec // it serves nothing
	}
	ctx = context.WithValue(ctx, journeyKey{}, j)
	h.reverse.ServeHTTP(&answerWriter{ResponseWriter: w, journey: j, request: r}, r.WithContext(ctx))
}

// awaitEmptyBody waits until a body that is announced as empty has ended, for stall
// at most. Over HTTP/2 the end may come after the head, and bytes in place of it:
// such a request is malformed (RFC 9113 section 8.1.1) and must not be forwarded.
func awaitEmptyBody(client *http.ResponseController, r *http.Request, stall time.Duration) error {
	if r.ContentLength != 0 || r.ProtoMajor < 2 {
		return nil
	}
	if stall > 0 {
		if err := client.SetReadDeadline(time.Now().Add(stall)); err != nil {
			return err
		}
	}
	n, err := r.Body.Read(make([]byte, 1))
	if n > 0 || err != io.EOF {
		return cmp.Or(err, errBodyTooLarge)
	}
	if stall > 0 {
		return client.SetReadDeadline(time.Time{})
	}
	return nil
}

// FillHead turns what net/http read into the raw head that is canonicalised.
// The order of different fields is lost in net/http; that of lines of one field,
// which alone matters, is kept.
func FillHead(dst *canon.Head, r *http.Request) {
	dst.Method, dst.Target = []byte(r.Method), []byte(r.RequestURI)
	dst.Major, dst.Minor = uint8(r.ProtoMajor), uint8(r.ProtoMinor) //nolint:gosec // single digits
	dst.TLS = r.TLS != nil
	dst.Upgrade = r.Header.Get("Upgrade") != ""
	dst.Peer = peerOf(r.RemoteAddr)
	dst.Fields = make([]canon.Field, 0, len(r.Header)+1)
	switch {
	case r.ProtoMajor >= 2:
		dst.Authority = []byte(r.Host)
	case r.Host != "":
		dst.Fields = append(dst.Fields, canon.Field{Name: []byte("Host"), Value: []byte(r.Host)})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		for _, value := range r.Header[name] {
			dst.Fields = append(dst.Fields, canon.Field{Name: []byte(name), Value: []byte(value)})
		}
	}
}

// lengthHolds reports whether Content-Length says what net/http makes of it, which
// in HTTP/2 overlooks a length without a body and takes one of several (RFC 9113
// section 8.1.1).
func lengthHolds(r *http.Request) bool {
	lengths := r.Header["Content-Length"]
	return len(lengths) == 0 || len(lengths) == 1 && lengths[0] == strconv.FormatInt(r.ContentLength, 10)
}

func (h *HTTP) refuse(w http.ResponseWriter, r *http.Request, p *passage) {
	p.giveBack()
	for _, f := range p.extra {
		w.Header().Add(string(f.Name), string(f.Value))
	}
	p.refusal.fields(&p.id, w.Header().Set)
	body := p.refusal.appendBody(nil, &p.id)
	if p.refusal.status != http.StatusNoContent {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(p.refusal.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) //nolint:gosec // it is not HTML, and a client that is gone needs no answer
	}
}

// rewrite makes the outgoing request from the canonical one. Hop-by-hop fields
// are gone already; what Connection named is gone with them, and since every
// field of ours is set here, afterwards, none of ours can be named away.
func (h *HTTP) rewrite(pr *httputil.ProxyRequest) {
	j := journeyOf(pr.In.Context())
	p, out := j.passage, pr.Out
	path, query, hasQuery := strings.Cut(string(p.target()), "?")
	out.URL = &url.URL{Opaque: path, RawQuery: query, ForceQuery: hasQuery && query == ""} // where to is the sender's to say
	out.Host = string(p.req.Authority)
	out.Method = string(p.req.Method)
	for i, f := range p.head.Fields {
		if !p.forwards(i) {
			delete(out.Header, http.CanonicalHeaderKey(string(f.Name)))
		}
	}
	for _, f := range p.set {
		name := f.Name.String()
		delete(out.Header, http.CanonicalHeaderKey(name))
		out.Header[name] = []string{string(f.Value)}
	}
	delete(out.Header, "Http2-Settings") // goes no further (RFC 7540 section 3.2.1); net/http takes it for any other
	if _, sent := out.Header["User-Agent"]; !sent {
		out.Header["User-Agent"] = nil // else net/http invents one
	}
	if p.lane.upstreams.speaksHTTP2() { // which knows no such thing (RFC 9113 section 8.6)
		delete(out.Header, "Connection")
		delete(out.Header, "Upgrade")
	}
	for _, name := range repeatable {
		if values, sent := out.Header[name]; sent {
			delete(out.Header, name)
			out.Header[strings.ToLower(name)] = values
		}
	}
	// net/http's HTTP/2 keeps a request open for announced trailers that nobody sends
	// where it has no body (that holds for Go 1.26).
	out.Trailer = nil
	if out.Body == nil || out.Body == http.NoBody {
		return
	}
	j.sending = &sendingBody{in: pr.In, out: out, body: out.Body, patience: j.patience, header: p.lane.responseHeader, bound: p.lane.bodyBytes}
	if len(pr.In.Trailer) > 0 {
		out.Trailer = make(http.Header, len(pr.In.Trailer))
		for name := range pr.In.Trailer {
			if !p.rules.Canon.ForbiddenTrailer([]byte(name)) {
				out.Trailer[name] = nil
			}
		}
	}
	out.Body = j.sending
}

// repeatable are the fields with which net/http sends a request of any method again
// when the connection breaks, where they have the letter case that it looks for. A
// proxy must not (RFC 9110 section 9.2.2): what the client means by them is between it and
// the upstream.
var repeatable = [...]string{"Idempotency-Key", "X-Idempotency-Key"}

// modifyResponse edits the answer before it goes on.
func (h *HTTP) modifyResponse(r *http.Response) error {
	j := journeyOf(r.Request.Context())
	p := j.passage
	p.status = r.StatusCode
	if p.lane.cors != nil {
		dropHeaderCORS(r.Header)
	}
	for _, f := range p.extra {
		r.Header.Add(string(f.Name), string(f.Value))
	}
	r.Header.Set(headerRequestID, p.id.String())
	if r.StatusCode == http.StatusSwitchingProtocols {
		if _, announced := p.subprotocols(); announced != "" && r.Header.Get("Sec-Websocket-Protocol") == "" {
			r.Header.Set("Sec-Websocket-Protocol", announced)
		}
		j.patience.end() // what follows has no bodies
		return nil
	}
	if r.StatusCode == http.StatusNotModified || r.StatusCode == http.StatusNoContent {
		// With a Content-Length, which is that of another answer, net/http's HTTP/2
		// would miss the body.
		_ = r.Body.Close() // there is nothing in it
		r.Body = http.NoBody
		p.giveBack()
		return nil
	}
	if r.Request.Method == http.MethodHead {
		p.giveBack()
	}
	// An answer that ends with its head must reach the client as that: gRPC knows no
	// other way to refuse a call without a word (its "Trailers-Only").
	j.streams = r.ContentLength != 0
	a := &answerBody{ReadCloser: r.Body, response: r, journey: j, guard: h.guard, left: r.ContentLength}
	a.filterTrailer()
	r.Body = a
	return nil
}

// upstreamFailed answers for an upstream that did not.
func (h *HTTP) upstreamFailed(w http.ResponseWriter, r *http.Request, err error) {
	j := journeyOf(r.Context())
	p := j.passage
	impatient, clientStalled := j.patience.end()
	bodyErr := j.sending.failed()
	if clientStalled {
		bodyErr = os.ErrDeadlineExceeded
	}
	switch {
	case context.Cause(r.Context()) == errCut: //nolint:errorlint // it is set as it is
		p.took = -1
		panic(http.ErrAbortHandler) // an answer would look like the upstream's
	case errors.Is(err, errNoUpstream):
		p.refusal = noUpstream
		h.guard.countFailure(p.refusal.code, p, err)
	case bodyErr != nil && !h.gone(r, impatient):
		p.refusal = bodyRefusal(bodyErr)
		h.guard.countRefusal(p.refusal.code)
	case h.gone(r, impatient):
		p.took = -1
		return // the answer's reader is gone
	default:
		p.refusal = upstreamRefusal(classifyError(err, impatient))
		h.guard.countFailure(p.refusal.code, p, err)
	}
	h.refuse(w, r, p)
}

// gone reports whether the client went away, and not our own patience.
func (h *HTTP) gone(r *http.Request, impatient bool) bool {
	return r.Context().Err() != nil && !impatient
}

// failure says how an upstream failed.
type failure uint8

const (
	failureBroke failure = iota
	failureRefused
	failureTimeout
	failureDialTimeout

	numFailures
)

func classifyError(err error, impatient bool) failure {
	_, dialing := errors.AsType[dialError](err)
	var timeout interface{ Timeout() bool }
	timedOut := impatient || errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
	switch {
	case dialing && timedOut:
		return failureDialTimeout
	case dialing:
		return failureRefused
	case timedOut:
		return failureTimeout
	}
	return failureBroke
}

const codeUpstreamBroke = "upstream_broke"

func upstreamRefusal(f failure) refusal {
	switch f {
	case failureRefused:
		return refusal{status: http.StatusBadGateway, code: "upstream_refused", detail: "The API behind this proxy cannot be reached."}
	case failureTimeout:
		return refusal{status: http.StatusGatewayTimeout, code: "upstream_timeout", detail: "The API behind this proxy did not answer in time."}
	case failureDialTimeout:
		return refusal{status: http.StatusGatewayTimeout, code: "upstream_dial_timeout", detail: "The API behind this proxy could not be reached in time."}
	case failureBroke, numFailures:
	}
	return refusal{status: http.StatusBadGateway, code: codeUpstreamBroke, detail: "The API behind this proxy broke off its answer."}
}

// ErrorLog returns a logger for the servers and proxies of net/http: each line that
// they log by themselves becomes one record of l.
func ErrorLog(l *slog.Logger) *log.Logger { return log.New(logWriter{l}, "", 0) }

type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	w.log.Warn("net/http says", "message", strings.TrimSpace(string(b)))
	return len(b), nil
}
