package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"tokenward/enforce/canon"
)

// HTTP is the door over net/http: it serves HTTP/2, and stands in the tests as
// the reference for [Wire], which serves HTTP/1.1.
type HTTP struct {
	guard   *Guard
	reverse *httputil.ReverseProxy
}

// Timeouts bound how long the proxy waits for an upstream.
type Timeouts struct {
	Dial           time.Duration // for a connection
	ResponseHeader time.Duration // for the head of the answer, from the last byte of the request
	Idle           time.Duration // before an unused connection is closed
}

// NewHTTP returns the door to one upstream, an http or https URL without a path.
// config is used for https; it may be nil.
func NewHTTP(g *Guard, upstream *url.URL, config *tls.Config, t Timeouts) *HTTP {
	h := &HTTP{guard: g}
	h.reverse = &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) { rewrite(pr, upstream) },
		Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: t.Dial, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:       config,
			TLSHandshakeTimeout:   t.Dial,
			ResponseHeaderTimeout: t.ResponseHeader,
			IdleConnTimeout:       t.Idle,
			MaxIdleConns:          1024,
			MaxIdleConnsPerHost:   1024,
			DisableCompression:    true, // the answer passes as the upstream wrote it
		},
		FlushInterval:  -1, // each piece of an answer goes on when it comes
		ModifyResponse: h.modifyResponse,
		ErrorHandler:   h.upstreamFailed,
		ErrorLog:       log.New(logWriter{g.Log}, "", 0),
	}
	return h
}

// Close gives up unused connections to the upstream.
func (h *HTTP) Close() { h.reverse.Transport.(*http.Transport).CloseIdleConnections() }

type passageKey struct{}

func passageOf(ctx context.Context) *passage {
	p, _ := ctx.Value(passageKey{}).(*passage)
	return p
}

// ServeHTTP implements http.Handler.
func (h *HTTP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := h.guard.enter()
	defer h.guard.leave(p)
	FillHead(&p.head, r)
	if !h.guard.judge(r.Context(), p) {
		h.refuse(w, r, p)
		return
	}
	if p.mount != nil {
		p.mount.ServeHTTP(w, r)
		return
	}
	if r.Header.Get("Upgrade") != "" {
		p.took = -1
	}
	h.reverse.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), passageKey{}, p)))
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
	dst.Fields = dst.Fields[:0]
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

func (h *HTTP) refuse(w http.ResponseWriter, r *http.Request, p *passage) {
	p.refusal.fields(&p.id, w.Header().Set)
	body := p.refusal.appendBody(nil, &p.id)
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(p.refusal.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that is gone needs no answer
	}
}

// rewrite makes the outgoing request from the canonical one. Hop-by-hop fields
// are gone already; what Connection named is gone with them, and since every
// field of ours is set here, afterwards, none of ours can be named away.
func rewrite(pr *httputil.ProxyRequest, upstream *url.URL) {
	p := passageOf(pr.In.Context())
	out := pr.Out
	path, query, hasQuery := strings.Cut(string(p.req.Target()), "?")
	out.URL = &url.URL{Scheme: upstream.Scheme, Host: upstream.Host, Opaque: path, RawQuery: query, ForceQuery: hasQuery && query == ""}
	out.Host = string(p.req.Authority)
	out.Method = string(p.req.Method)
	for i, f := range p.head.Fields {
		if p.req.Disposition(i) != canon.Forward {
			delete(out.Header, string(f.Name))
		}
	}
	for _, f := range p.set {
		name := string(f.Name)
		delete(out.Header, http.CanonicalHeaderKey(name))
		out.Header[name] = []string{string(f.Value)}
	}
	if _, sent := out.Header["User-Agent"]; !sent {
		out.Header["User-Agent"] = nil // else net/http invents one
	}
	if out.Body != nil && len(pr.In.Trailer) > 0 {
		out.Trailer = make(http.Header, len(pr.In.Trailer))
		for name := range pr.In.Trailer {
			if !p.rules.Canon.ForbiddenTrailer([]byte(name)) {
				out.Trailer[name] = nil
			}
		}
		out.Body = &trailerBody{ReadCloser: out.Body, in: pr.In, out: out}
	}
}

// trailerBody copies the trailers that may pass once the body has been read,
// which is when net/http knows them.
type trailerBody struct {
	io.ReadCloser
	in, out *http.Request
}

func (b *trailerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		for name := range b.out.Trailer {
			b.out.Trailer[name] = b.in.Trailer[name]
		}
	}
	return n, err
}

func (h *HTTP) modifyResponse(r *http.Response) error {
	p := passageOf(r.Request.Context())
	r.Header.Set(headerRequestID, p.id.String())
	if _, announced := p.req.Subprotocols(); announced != "" && r.StatusCode == http.StatusSwitchingProtocols && r.Header.Get("Sec-Websocket-Protocol") == "" {
		r.Header.Set("Sec-Websocket-Protocol", announced)
	}
	return nil
}

// upstreamFailed answers for an upstream that did not.
func (h *HTTP) upstreamFailed(w http.ResponseWriter, r *http.Request, err error) {
	p := passageOf(r.Context())
	if r.Context().Err() != nil {
		p.took = -1
		return // the client is gone, and so is the answer's reader
	}
	p.refusal = upstreamRefusal(classifyError(err))
	h.guard.countFailure(p.refusal.code, p, err)
	h.refuse(w, r, p)
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

func classifyError(err error) failure {
	var dial *net.OpError
	dialing := errors.As(err, &dial) && dial.Op == "dial"
	var timeout interface{ Timeout() bool }
	timedOut := errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
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

// logWriter passes what net/http logs by itself to the log, one record a line.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	w.log.Warn("net/http says", "message", strings.TrimSpace(string(b)))
	return len(b), nil
}
