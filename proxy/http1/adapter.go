package http1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Adapter serves an http.Handler on exchanges. It is meant for paths that are
// called seldom: each request allocates its header map. Handlers may use
// Flush, Hijack, trailers, 1xx answers and http.ResponseController. The request's
// context ends when the handler returns, when the exchange is cut, and within a
// few ticks of the server after the client went away.
//
// Deadlines set through http.ResponseController are as coarse as all others here.
// A handler that panics with http.ErrAbortHandler has its connection closed.
func Adapter(h http.Handler) func(*Exchange) {
	return func(x *Exchange) {
		ctx, cancel := context.WithCancel(context.WithValue(context.Background(), http.LocalAddrContextKey, x.c.nc.LocalAddr()))
		defer cancel()
		r, err := x.httpRequest(ctx)
		if err != nil {
			x.refuse(errTarget)
			return
		}
		w := &responseWriter{x: x, r: r, header: make(http.Header), length: -1}
		w.body = &requestBody{w: w}
		r.Body = w.body
		x.c.setCancel(cancel)
		defer w.finish()
		defer w.abort()
		defer w.body.end()
		h.ServeHTTP(w, r)
		w.done = true
	}
}

// httpRequest builds the request as net/http would.
func (x *Exchange) httpRequest(ctx context.Context) (*http.Request, error) {
	q := &x.req
	target := string(q.Target)
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return nil, err
	}
	header := make(http.Header, len(q.Fields))
	for i, f := range q.Fields {
		if k := q.lines[i].kind; k == kindHost || k == kindTransferEncoding {
			continue
		}
		name := http.CanonicalHeaderKey(string(f.Name))
		header[name] = append(header[name], string(f.Value))
	}
	r := &http.Request{
		Method: string(q.Method), URL: u, Proto: "HTTP/1." + strconv.Itoa(q.Minor), ProtoMajor: 1, ProtoMinor: q.Minor,
		Header: header, ContentLength: q.ContentLength, Host: string(q.Host), RequestURI: target,
		RemoteAddr: x.c.nc.RemoteAddr().String(), TLS: x.c.tls,
		Close: q.options.close || q.Minor == 0 && !q.options.keepAlive,
	}
	if q.Chunked {
		r.TransferEncoding = []string{"chunked"}
		r.Trailer = announcedTrailer(header)
	}
	return r.WithContext(ctx), nil
}

// announcedTrailer reads the Trailer fields, as keys without values.
func announcedTrailer(header http.Header) http.Header {
	var trailer http.Header
	for _, line := range header["Trailer"] {
		for name := range strings.SplitSeq(line, ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			if name == "" || forbiddenInTrailer([]byte(name)) {
				continue
			}
			if trailer == nil {
				trailer = make(http.Header)
			}
			trailer[name] = nil
		}
	}
	delete(header, "Trailer")
	return trailer
}

// requestBody is Request.Body. It fills Request.Trailer at its end. As with
// net/http, a goroutine of the handler's may read it while another writes the
// answer, and may be about it still when the handler returns.
type requestBody struct {
	w *responseWriter

	mu     sync.Mutex // held while the body is read; guards what follows
	closed bool
	filled bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	x := b.w.x
	n, err := x.Body().Read(p)
	if errors.Is(err, io.EOF) && !b.filled {
		b.filled = true
		b.fillTrailer()
	}
	return n, err
}

func (b *requestBody) fillTrailer() {
	trailer := &b.w.x.body.trailer
	for _, f := range trailer.fields {
		name := http.CanonicalHeaderKey(string(f.Name))
		if forbiddenInTrailer(f.Name) {
			continue
		}
		if b.w.r.Trailer == nil {
			b.w.r.Trailer = make(http.Header)
		}
		b.w.r.Trailer[name] = append(b.w.r.Trailer[name], string(f.Value))
	}
}

// Close leaves the body alone: the engine sees to what is left of it. It must not
// wait for a Read that waits for the client.
func (b *requestBody) Close() error {
	if b.mu.TryLock() {
		b.closed = true
		b.mu.Unlock()
	}
	return nil
}

// end is called when the handler has returned or given the connection away: it
// interrupts a Read that goes on, and no other begins.
func (b *requestBody) end() {
	c := b.w.x.c
	if !b.mu.TryLock() {
		c.stopPump.Store(true)
		c.wake()
		b.mu.Lock()
		c.stopPump.Store(false)
		c.settle()
	}
	b.closed = true
	b.mu.Unlock()
}

// canDrain is that of the exchange, but throws nothing away: the handler may read
// on after its answer began.
func (b *requestBody) canDrain() bool {
	if !b.mu.TryLock() {
		return false // more is waited for
	}
	defer b.mu.Unlock()
	x := b.w.x
	return x.body.done || x.body.form == bodyLength && x.canDrain()
}

// adapterBuffer is how much of an answer is held back to find out its length
// and type.
const adapterBuffer = 8 << 10

// responseWriter is what a handler writes to. Its methods must not be called at
// the same time, as with net/http.
type responseWriter struct {
	x        *Exchange
	r        *http.Request
	body     *requestBody
	header   http.Header
	sent     http.Header // header as it was when WriteHeader was called
	status   int
	length   int64 // announced by the handler, or -1
	written  int64
	buf      []byte
	out      []byte // what was sent last, whose place the next piece takes
	headOut  bool   // the head has left
	chunking bool
	done     bool // the handler returned normally
	failed   error
}

var _ interface {
	http.ResponseWriter
	http.Flusher
	http.Hijacker
	io.StringWriter
} = (*responseWriter)(nil)

// Header gives the answer's fields; after WriteHeader only trailers count.
func (w *responseWriter) Header() http.Header { return w.header }

// WriteHeader sends an interim answer, or begins the final one.
func (w *responseWriter) WriteHeader(status int) {
	if w.x.hijacked || w.status != 0 {
		return
	}
	if status < 100 || status > 999 {
		panic("http1: invalid status " + strconv.Itoa(status))
	}
	if status < 200 && status != http.StatusSwitchingProtocols {
		w.interim(status)
		return
	}
	w.status = status
	w.sent = w.header.Clone()
	if lines := w.sent["Content-Length"]; len(lines) > 0 {
		w.length = parseLength([]byte(lines[0]))
		delete(w.sent, "Content-Length")
	}
}

func (w *responseWriter) interim(status int) {
	if w.x.req.Minor == 0 || w.failed != nil {
		return
	}
	w.x.interimMu.Lock() // a reader of the body may write 100 Continue by itself
	defer w.x.interimMu.Unlock()
	w.x.invited = w.x.invited || status == http.StatusContinue
	dst := appendHeader(appendStatus(nil, status), w.header, nil)
	w.send(append(dst, "\r\n"...))
}

func (w *responseWriter) send(p []byte) {
	if w.failed != nil || len(p) == 0 {
		return
	}
	w.x.send(p)
	if w.x.broken {
		w.failed = ErrClientGone
	}
}

// Write buffers the beginning of the answer and streams the rest.
func (w *responseWriter) Write(p []byte) (int, error) {
	if w.x.hijacked {
		return 0, http.ErrHijacked
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !bodyAllowed(w.status) {
		return 0, http.ErrBodyNotAllowed
	}
	if w.length >= 0 && w.written+int64(len(p)) > w.length {
		return 0, http.ErrContentLength
	}
	w.written += int64(len(p))
	switch {
	case len(w.buf)+len(p) < adapterBuffer:
		w.buf = append(w.buf, p...)
	case !w.headOut: // which is composed by how the body begins
		w.buf = append(w.buf, p...)
		w.flush(nil)
	default:
		w.flush(p)
	}
	return len(p), w.failed
}

// WriteString is Write for a string.
func (w *responseWriter) WriteString(s string) (int, error) { return w.Write([]byte(s)) }

// Flush sends what was written so far.
func (w *responseWriter) Flush() {
	_ = w.FlushError() // Write reports it next time
}

// FlushError sends what was written so far.
func (w *responseWriter) FlushError() error {
	if w.x.hijacked {
		return http.ErrHijacked
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.flush(nil)
	return w.failed
}

func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// flush sends the head, if it has not left, what is buffered, and then p.
func (w *responseWriter) flush(p []byte) {
	if w.headOut && !w.chunking && len(w.buf) == 0 && w.r.Method != http.MethodHead {
		w.send(p) // as it is
		return
	}
	dst := w.out[:0]
	if !w.headOut {
		dst = w.composeHead(-1)
	}
	dst = w.appendBody(dst, w.buf, p)
	w.buf, w.out = w.buf[:0], dst
	w.send(dst)
}

// appendBody appends a piece of the body, which is in two parts.
func (w *responseWriter) appendBody(dst, p, rest []byte) []byte {
	length := len(p) + len(rest)
	switch {
	case w.r.Method == http.MethodHead || length == 0:
		return dst
	case w.chunking:
		dst = strconv.AppendInt(dst, int64(length), 16)
		dst = append(append(append(dst, "\r\n"...), p...), rest...)
		return append(dst, "\r\n"...)
	}
	return append(append(dst, p...), rest...)
}

// composeHead writes the answer's head. whole is the length of the body where
// all of it is known, or -1.
func (w *responseWriter) composeHead(whole int64) []byte {
	x := w.x
	w.headOut = true
	x.interimMu.Lock() // from here on no 100 Continue goes out
	x.answered, x.started = true, true
	x.interimMu.Unlock()
	if !w.body.canDrain() {
		x.close = true
	}
	if hasToken(w.sent["Connection"], "close") {
		x.close = true
	}
	trailers := w.declaredTrailers()
	dst := appendStatus(nil, w.status)
	if bodyAllowed(w.status) {
		dst = w.appendType(dst)
	}
	dst = appendHeader(dst, w.sent, trailers)
	if w.sent["Date"] == nil {
		dst = append(dst, x.c.srv.date.Load().line...)
	}
	length := w.length
	if length < 0 && len(trailers) == 0 {
		length = whole
	}
	switch {
	case !bodyAllowed(w.status):
	case length >= 0 && !(w.r.Method == http.MethodHead && w.length < 0 && length == 0):
		dst = strconv.AppendInt(append(dst, "Content-Length: "...), length, 10)
		dst = append(dst, "\r\n"...)
	case w.r.Method == http.MethodHead:
	case w.r.ProtoMinor == 1:
		w.chunking = true
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
		if len(trailers) > 0 {
			dst = append(dst, "Trailer: "+strings.Join(trailers, ", ")+"\r\n"...)
		}
	default:
		x.close = true // the end of the connection is the end of the answer
	}
	return append(x.appendConnection(dst), "\r\n"...)
}

// appendType adds a Content-Type found from the content where there is none.
func (w *responseWriter) appendType(dst []byte) []byte {
	if _, set := w.sent["Content-Type"]; set || len(w.buf) == 0 || w.sent.Get("Content-Encoding") != "" {
		return dst
	}
	return append(append(append(dst, "Content-Type: "...), http.DetectContentType(w.buf)...), "\r\n"...)
}

// declaredTrailers gives the canonical names that the Trailer fields announce.
func (w *responseWriter) declaredTrailers() []string {
	var names []string
	for _, line := range w.sent["Trailer"] {
		for name := range strings.SplitSeq(line, ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			if isToken([]byte(name)) && !forbiddenInTrailer([]byte(name)) {
				names = append(names, name)
			}
		}
	}
	return names
}

func hasToken(lines []string, token string) bool {
	for _, line := range lines {
		for option := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(option), token) {
				return true
			}
		}
	}
	return false
}

// appendHeader writes fields in the order of their names, without those that the
// engine sets and those that are malformed.
func appendHeader(dst []byte, h http.Header, without []string) []byte {
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if name == "Trailer" || strings.HasPrefix(name, http.TrailerPrefix) || slices.Contains(without, name) {
			continue
		}
		for _, value := range h[name] {
			f := Field{[]byte(name), oneLine(value)}
			if sendable(f) {
				dst = appendField(dst, f)
			}
		}
	}
	return dst
}

// oneLine keeps a value on its line, as net/http does.
func oneLine(value string) []byte {
	b := []byte(value)
	for i, c := range b {
		if c == '\r' || c == '\n' {
			b[i] = ' '
		}
	}
	return trimOWS(b)
}

// abort runs when the handler ended, also by a panic.
func (w *responseWriter) abort() {
	if w.done {
		return
	}
	w.x.answered, w.x.broken, w.x.close = true, true, true
	if w.headOut && !w.x.hijacked {
		w.x.c.breakOff()
	}
	if r := recover(); r != nil && r != http.ErrAbortHandler { //nolint:errorlint // the value itself is the sign
		panic(r)
	}
}

// finish completes the answer.
func (w *responseWriter) finish() {
	x := w.x
	if !w.done || x.hijacked {
		return
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	var dst []byte
	if !w.headOut {
		dst = w.composeHead(int64(len(w.buf)))
	}
	dst = w.appendBody(dst, w.buf, nil)
	if w.chunking {
		dst = append(dst, "0\r\n"...)
		dst = append(w.appendTrailers(dst), "\r\n"...)
	}
	w.send(dst)
	if w.length >= 0 && w.written < w.length && w.r.Method != http.MethodHead && bodyAllowed(w.status) {
		x.close, x.broken = true, true // the client must not take what follows for the rest
	}
}

func (w *responseWriter) appendTrailers(dst []byte) []byte {
	trailer := make(http.Header)
	for _, name := range w.declaredTrailers() {
		trailer[name] = w.header[name]
	}
	for name, values := range w.header {
		if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok && !forbiddenInTrailer([]byte(name)) {
			trailer[http.CanonicalHeaderKey(name)] = values
		}
	}
	return appendHeader(dst, trailer, nil)
}

// Hijack gives the connection to the handler, with what was read of it.
func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	x, c := w.x, w.x.c
	switch {
	case x.hijacked:
		return nil, nil, http.ErrHijacked
	case w.headOut:
		return nil, nil, errors.New("http1: hijack after the answer began")
	case c.srv.NoHijack:
		return nil, nil, errors.New("http1: the server's handler takes over no connections (Server.NoHijack)")
	}
	w.body.end()
	x.hijacked, x.answered = true, true
	c.phase.Store(phaseGone)
	c.arm(-1)
	c.settle()
	engage(c.nc, nil)
	c.setCancel(nil)
	nc := c.nc
	var left []byte
	if c.in.blk != nil {
		left = bytes.Clone(c.in.buffered())
	}
	if len(left) > 0 {
		nc = &replayConn{Conn: nc, read: left}
	}
	return nc, bufio.NewReadWriter(bufio.NewReader(nc), bufio.NewWriter(nc)), nil
}

// Cutter gives the handle that cuts this exchange.
func (w *responseWriter) Cutter() Cutter { return w.x.Cutter() }

// EnableFullDuplex says that reading goes on after the answer began; it always
// does here.
func (w *responseWriter) EnableFullDuplex() error { return nil }

// SetReadDeadline bounds reads of the body, coarsely.
func (w *responseWriter) SetReadDeadline(t time.Time) error { return w.setDeadline(t) }

// SetWriteDeadline bounds writes, coarsely.
func (w *responseWriter) SetWriteDeadline(t time.Time) error { return w.setDeadline(t) }

// setDeadline makes the exchange's patience end at t, for reads and writes
// alike. The zero time takes that back.
func (w *responseWriter) setDeadline(t time.Time) error {
	if w.x.hijacked {
		return http.ErrHijacked
	}
	d := time.Duration(0)
	if !t.IsZero() {
		d = max(time.Until(t), time.Nanosecond)
	}
	w.x.stallTimeout = d
	w.x.c.arm(d)
	return nil
}
