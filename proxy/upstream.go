package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"tokenward/proxy/http1"
)

// Upstream is one server of the API behind, with its connections and what is
// known of its health. It may stand in several [Upstreams] at once.
type Upstream struct {
	name      string
	target    *url.URL
	http2     bool              // it speaks HTTP/2 from the first byte
	wire      *http1.Upstream   // nil where http2
	transport http.RoundTripper // for what comes by HTTP/2, and for all where http2
	close     func()            // idle connections of transport
	health    health
}

// Timeouts bound how long the proxy waits for an upstream to be connected, and
// how long a connection to it stays unused. Zero fields mean 5 s and 60 s.
type Timeouts struct {
	Dial time.Duration
	Idle time.Duration
}

// maxIdle is how many unused connections to an upstream are kept.
const maxIdle = 1024

// NewUpstream returns the upstream at target, a URL of scheme and authority only.
//
// The scheme chooses the protocol. http is HTTP/1.1. https is HTTP/1.1 for what
// came by HTTP/1.1, and for what came by HTTP/2 whichever of the two the upstream
// chooses by ALPN: so gRPC works without a word of configuration, and HTTP/1.1
// stays on the fast way. h2c is cleartext HTTP/2 always, without asking.
//
// config is for https; nil takes the system's roots.
func NewUpstream(target *url.URL, config *ClientTLS, t Timeouts) (*Upstream, error) {
	u := &Upstream{name: target.Scheme + "://" + target.Host, target: target}
	if t.Dial == 0 {
		t.Dial = 5 * time.Second
	}
	if t.Idle == 0 {
		t.Idle = time.Minute
	}
	dialer := &net.Dialer{Timeout: t.Dial, KeepAlive: 30 * time.Second}
	address := target.Host
	if target.Port() == "" {
		address = net.JoinHostPort(target.Hostname(), map[bool]string{true: "443", false: "80"}[target.Scheme == "https"])
	}
	plain := func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", address) }
	secured := func(ctx context.Context, protocols ...string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, t.Dial) // of connecting and handshake together
		defer cancel()
		nc, err := plain(ctx)
		if err != nil {
			return nil, err
		}
		tc := tls.Client(http1.DirectConn(nc), config.forHost(target.Hostname(), protocols))
		if err := tc.HandshakeContext(ctx); err != nil {
			_ = nc.Close()
			return nil, err
		}
		return tc, nil
	}
	transport := &http.Transport{
		DialContext:            asDialing(plain),
		DialTLSContext:         asDialing(func(ctx context.Context) (net.Conn, error) { return secured(ctx, "h2", "http/1.1") }),
		IdleConnTimeout:        t.Idle,
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdle,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // the answer passes as the upstream wrote it
		ExpectContinueTimeout:  time.Second,
		// A connection that carries many streams must not stay half open unseen, and a
		// client that reads slowly must not have net/http's 4 MiB of its answer kept here.
		HTTP2:     &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second, MaxReceiveBufferPerStream: 512 << 10},
		Protocols: new(http.Protocols),
	}
	u.transport, u.close = transport, transport.CloseIdleConnections
	dial := plain
	switch target.Scheme {
	case "http":
		transport.Protocols.SetHTTP1(true)
	case "https":
		transport.Protocols.SetHTTP1(true)
		transport.Protocols.SetHTTP2(true)
		dial = func(ctx context.Context) (net.Conn, error) { return secured(ctx, "http/1.1") }
	case "h2c":
		transport.Protocols.SetUnencryptedHTTP2(true)
		u.http2 = true
		return u, nil
	default:
		return nil, fmt.Errorf("upstream %s: the scheme must be http, https or h2c", u.name)
	}
	u.wire = &http1.Upstream{Dial: dial, MaxIdle: maxIdle, IdleTimeout: t.Idle, DialTimeout: t.Dial}
	return u, nil
}

// Name is scheme and authority as configured.
func (u *Upstream) Name() string { return u.name }

// Up reports whether the upstream is held to be fit.
func (u *Upstream) Up() bool { return u.health.up() }

// CloseIdle closes unused connections. What is in use goes on, and requests that
// are on their way here still arrive: an upstream that is not configured any more
// is closed like this once no ruleset names it.
func (u *Upstream) CloseIdle() {
	u.close()
	if u.wire != nil {
		u.wire.CloseIdle()
	}
}

// dialError is a failure to connect: nothing of a request was sent.
type dialError struct{ error }

// Unwrap gives the cause.
func (e dialError) Unwrap() error { return e.error }

// asDialing marks what fails before there is a connection.
func asDialing(dial func(context.Context) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		nc, err := dial(ctx)
		if err != nil {
			return nil, dialError{err}
		}
		return nc, nil
	}
}

// Upstreams are the servers that one kind of request may go to, in the order of
// preference. It is immutable; the health of its members is shared.
type Upstreams struct {
	list  []*Upstream
	http2 bool
}

// MaxUpstreams bounds a list of upstreams.
const MaxUpstreams = 16

// NewUpstreams returns the list. All of it speaks HTTP/2 from the first byte, or
// none: else what a client can do would change with the failure of a server.
func NewUpstreams(list ...*Upstream) (*Upstreams, error) {
	switch {
	case len(list) == 0:
		return nil, errors.New("there is no upstream")
	case len(list) > MaxUpstreams:
		return nil, fmt.Errorf("there are %d upstreams, and %d at most", len(list), MaxUpstreams)
	case slices.ContainsFunc(list, func(u *Upstream) bool { return u.http2 != list[0].http2 }):
		return nil, errors.New("h2c upstreams cannot stand in one list with others")
	}
	return &Upstreams{list: slices.Clone(list), http2: list[0].http2}, nil
}

// maxAttempts bounds how many upstreams are tried with one request, since each
// may cost the time to connect.
const maxAttempts = 3

// attempt chooses upstreams for one request, one after the other.
type attempt struct {
	tried uint32 // bits of the list
	count int
}

// next gives the first upstream that is up and was not tried yet. If all are
// down, it gives the one whose last failure is the longest ago, but only to a
// request that has tried none. It is nil when there is nothing left to try.
func (a *attempt) next(us *Upstreams, now time.Time) *Upstream {
	if us == nil || a.count == maxAttempts {
		return nil
	}
	chosen := -1
	for i, u := range us.list {
		if a.tried&(1<<i) == 0 && u.health.available(now) {
			chosen = i
			break
		}
	}
	if chosen < 0 {
		if a.count > 0 {
			return nil
		}
		for i, u := range us.list {
			if chosen < 0 || u.health.lastFailed.Load() < us.list[chosen].health.lastFailed.Load() {
				chosen = i
			}
		}
	}
	a.tried |= 1 << chosen
	a.count++
	return us.list[chosen]
}

// health is what requests have told of an upstream. Only failures to get an answer
// that can be read count; an answer, whatever its status, is a sign of life.
type health struct {
	failures   atomic.Int32 // in a row
	downs      atomic.Int32 // in a row, without an answer between them
	downUntil  atomic.Int64 // Unix nanoseconds; 0: up
	lastFailed atomic.Int64 // likewise; 0: never
}

const (
	failuresUntilDown = 3
	firstDown         = time.Second
	longestDown       = 30 * time.Second
)

func (h *health) up() bool { return h.downUntil.Load() == 0 }

// available reports whether a request may be sent. When the time of an upstream
// that is down is over, one request finds out for all others.
func (h *health) available(now time.Time) bool {
	until := h.downUntil.Load()
	if until == 0 {
		return true
	}
	if now.UnixNano() < until {
		return false
	}
	next := now.Add(downTime(h.downs.Load() + 1)).UnixNano()
	if !h.downUntil.CompareAndSwap(until, next) {
		return false
	}
	h.downs.Add(1)
	return true
}

// downTime is how long an upstream stays away for the n-th time in a row.
func downTime(n int32) time.Duration {
	return min(firstDown<<min(max(n-1, 0), 10), longestDown)
}

// failed notes a request that got no answer, and reports whether that was one too
// many.
func (h *health) failed(now time.Time) bool {
	h.lastFailed.Store(now.UnixNano())
	if h.failures.Add(1) < failuresUntilDown {
		return false
	}
	if !h.downUntil.CompareAndSwap(0, now.Add(firstDown).UnixNano()) {
		return false
	}
	h.downs.Store(1)
	return true
}

// answered notes a sign of life, and reports whether the upstream was down.
func (h *health) answered() bool {
	if h.failures.Load() == 0 {
		return false
	}
	h.failures.Store(0)
	h.downs.Store(0)
	return h.downUntil.Swap(0) != 0
}

var (
	noUpstream    = refusal{status: http.StatusServiceUnavailable, code: overloaded.code, detail: "The proxy has nowhere to send the request.", retryAfter: time.Second}
	errNoUpstream = errors.New("the route has no upstream")
)

// codeFailover counts requests that one upstream did not take and another was
// tried with.
const codeFailover = "failed_over"

// countFailover counts a request that goes on to the next upstream.
func (g *Guard) countFailover(from *Upstream, p *passage, err error) {
	g.countFailure(codeFailover, p, fmt.Errorf("%s: %w", from.name, err))
}

// answered notes that the upstream answered.
func (g *Guard) answered(u *Upstream) {
	if u.health.answered() {
		g.Log.Info("an upstream answers again", "upstream", u.name)
	}
}

// unanswered notes that the upstream could not be reached, broke off before it
// answered, did not answer in time, or sent what is no answer. What this machine lacks
// is not its failure.
func (g *Guard) unanswered(u *Upstream, err error) {
	if lacksDescriptors(err) {
		return
	}
	if u.health.failed(g.Now()) {
		g.Log.Warn("an upstream is left out for a while: it did not answer several times in a row", "upstream", u.name, "error", err)
	}
}

// names are the list's upstreams, in order; none of the nil list.
func (us *Upstreams) names() []string {
	if us == nil {
		return nil
	}
	names := make([]string, 0, len(us.list))
	for _, u := range us.list {
		names = append(names, u.name)
	}
	return names
}

// FixDescriptors is what to do when the process has no descriptors left.
const FixDescriptors = "raise the limit of open files (ulimit -n, LimitNOFILE=) if that is what is used up: a client takes one, and another to the upstream"

// lacksDescriptors reports whether there was no socket to be had at all.
func lacksDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// upstreamFix is what to do about a failure of TLS with an upstream, which goes
// on until somebody does it, or of this machine; "" of any other failure.
func upstreamFix(err error) string {
	if lacksDescriptors(err) {
		return FixDescriptors
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "its certificate is from an authority that is not trusted here: name that one in upstream_tls.ca_file"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "its certificate bears another name: write that one into upstream_tls.server_name, or into the URL"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "it does not speak TLS: write http:// in its URL"
	}
	return ""
}

// speaksHTTP2 reports whether the list speaks HTTP/2 from the first byte. The nil
// list does not.
func (us *Upstreams) speaksHTTP2() bool { return us != nil && us.http2 }

// RoundTrip sends a request of our own, over the connections that requests of
// clients use too. It implements http.RoundTripper.
func (u *Upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "h2c" {
		out := r.Clone(r.Context())
		out.URL.Scheme = "http"
		r = out
	}
	return u.transport.RoundTrip(r)
}
