package http1

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Exchange is one request and its answer. It belongs to the connection's
// goroutine while Handler runs, and must not be kept or used after that; only a
// [Cutter] may.
type Exchange struct {
	c    *conn
	req  Request
	body body
	edit Edit
	resp Response

	headBlk *block // holds the request's head where the body has a block of its own
	out     *block // outgoing heads are put together here
	piece   []byte // of the body, for Body
	bodyErr error  // what ended Body
	answer  body   // of the upstream
	request []byte // the outgoing request in out, until an answer begins
	pump    pump
	fwd     forward

	stallTimeout time.Duration // of the edit; 0: the server's

	interimMu sync.Mutex // guards invited and started, and held to write 1xx, where a body is read beside the answer

	answered bool // a final answer was begun or given up
	started  bool // bytes of a final answer went out
	invited  bool // 100 Continue went out
	close    bool // the connection ends with this exchange
	broken   bool // the connection cannot be used any more
	hijacked bool
}

var (
	// ErrAnswered says that the exchange has its answer already.
	ErrAnswered = errors.New("http1: exchange is already answered")
	// ErrField says that a field to be sent is malformed, or is one that the
	// engine sets itself.
	ErrField = errors.New("http1: malformed or reserved field")
)

const (
	// drainBytes is how much of a body that nobody read is read and thrown
	// away to keep the connection.
	drainBytes = 64 << 10
)

func (x *Exchange) begin(c *conn) {
	x.c = c
	x.req.reset()
	c.exchange.Add(1)
}

// end gives back all that was lent, and leaves the exchange as begin expects it. The
// connection's stream keeps bytes of the next request.
func (x *Exchange) end() {
	c := x.c
	x.fwd.release(false) // after a panic of the caller's in the middle of Forward
	c.mu.Lock()
	c.exchange.Add(1)
	c.cancel = nil
	c.mu.Unlock()
	mem := &c.srv.mem
	mem.put(x.headBlk)
	mem.put(x.out)
	x.headBlk, x.out, x.piece, x.request, x.bodyErr, x.c = nil, nil, nil, nil, nil, nil
	x.answered, x.started, x.invited, x.close, x.broken, x.hijacked = false, false, false, false, false, false
	x.body.src, x.answer.src, x.stallTimeout = nil, nil, 0
	x.edit.reset()
	x.resp.reset()
	x.fwd = forward{}
	mem.exchanges.Put(x)
}

// Request gives the head of the request.
func (x *Exchange) Request() *Request { return &x.req }

// Peer is the client's address as the connection gives it; the zero value if it
// is not an internet address. IPv4 in IPv6 is unmapped.
func (x *Exchange) Peer() netip.AddrPort { return x.c.peer }

// Conn gives the connection for its addresses; it must not be read, written,
// closed or given a deadline.
func (x *Exchange) Conn() net.Conn { return x.c.nc }

// TLS gives the state of the handshake, shared by all exchanges of the
// connection; nil on cleartext.
func (x *Exchange) TLS() *tls.ConnectionState { return x.c.tls }

// SetStallTimeout bounds how long the exchange waits without progress, in place of the
// server's Timeouts.Stall; less than zero: forever. Forward takes Edit.StallTimeout.
func (x *Exchange) SetStallTimeout(d time.Duration) { x.stallTimeout = d }

// Cutter ends an exchange from another goroutine.
type Cutter struct {
	c        *conn
	exchange uint64
}

// Cutter gives the handle that cuts this exchange and no other.
func (x *Exchange) Cutter() Cutter { return Cutter{x.c, x.c.exchange.Load()} }

// Cut closes the client's connection and the upstream's, whatever is going on
// between them, if the exchange is not over yet; it reports whether it did. It
// does not wait, and is safe for concurrent use.
func (k Cutter) Cut() bool {
	if k.c == nil {
		return false
	}
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	if k.c.exchange.Load() != k.exchange {
		return false
	}
	k.c.cutLocked()
	return true
}

// Respond answers by itself, with Content-Length, Date and Connection set by the
// engine; fields must not name these or Transfer-Encoding. body is not sent where
// the method or the status forbids it. What the client still sends of its body
// is read if it is little; else the connection is closed. An error that is
// ErrAnswered or ErrField leaves the exchange as it was; any other means that
// the client did not get all of the answer.
func (x *Exchange) Respond(status int, fields []Field, body []byte) error {
	if x.answered {
		return ErrAnswered
	}
	if !finalStatus(status) {
		return ErrField
	}
	if err := checkFields(fields); err != nil {
		return err
	}
	x.respond(status, fields, body)
	return x.flushed()
}

// finalStatus reports whether status is one that an answer of ours may end with.
func finalStatus(status int) bool { return status >= 200 && status <= 599 }

// checkFields fails with ErrField where one of fields may not be part of an answer of ours.
func checkFields(fields []Field) error {
	for _, f := range fields {
		if !sendable(f) {
			return ErrField
		}
	}
	return nil
}

// flushed turns broken into an error for the handler.
func (x *Exchange) flushed() error {
	switch {
	case !x.broken:
		return nil
	case x.c.cut.Load():
		return ErrCut
	}
	return ErrClientGone
}

// sendable reports whether a field may be part of an answer of ours.
func sendable(f Field) bool {
	if !isToken(f.Name) || !validValue(f.Value) {
		return false
	}
	switch classify(f.Name) {
	case kindConnection, kindContentLength, kindTransferEncoding, kindHopByHop:
		return false
	case kindOther, kindDate, kindExpect, kindHost, kindTE, kindUpgrade:
	}
	return true
}

func (x *Exchange) respond(status int, fields []Field, body []byte) {
	x.beginAnswer()
	dst, dated := appendHead(x.outBuffer(), status, fields, len(body))
	dst = x.endHead(dst, dated)
	if bare(status) || x.bodyless() {
		body = nil
	}
	if len(dst)+len(body) <= cap(dst) {
		dst, body = append(dst, body...), nil
	}
	x.send(dst)
	if len(body) > 0 {
		x.send(body)
	}
}

// beginAnswer notes that the exchange has its answer, and what that means for the
// connection.
func (x *Exchange) beginAnswer() {
	x.answered = true
	x.started = true
	if !x.canDrain() {
		x.close = true
	}
}

// appendHead writes what is the same in every answer with this status, these fields and
// a body of this length; endHead writes the rest. dated says that Date is among fields.
func appendHead(dst []byte, status int, fields []Field, length int) (_ []byte, dated bool) {
	dst, dated = appendFields(appendStatus(dst, status), fields)
	if !bare(status) {
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, int64(length), 10)
		dst = append(dst, "\r\n"...)
	}
	return dst, dated
}

func appendFields(dst []byte, fields []Field) (_ []byte, dated bool) {
	for _, f := range fields {
		dated = dated || classify(f.Name) == kindDate
		dst = appendField(dst, f)
	}
	return dst, dated
}

func (x *Exchange) endHead(dst []byte, dated bool) []byte {
	if !dated {
		dst = append(dst, x.c.srv.date.Load().line...)
	}
	return append(x.appendConnection(dst), "\r\n"...)
}

// bare reports whether an answer of this status has no content, whatever the method.
func bare(status int) bool { return status == 204 || status == 304 }

// bodyless reports whether the method's answers have no content.
func (x *Exchange) bodyless() bool { return string(x.req.Method) == "HEAD" }

// outBuffer gives the empty buffer in which outgoing bytes are put together.
func (x *Exchange) outBuffer() []byte {
	if x.out == nil {
		x.out = x.c.srv.mem.get(bodyBlock)
	}
	return x.out.data[:0]
}

// stall is how long the exchange waits for progress.
func (x *Exchange) stall() time.Duration {
	return orDuration(x.stallTimeout, x.c.srv.timeouts.Stall)
}

// send writes to the client, unless an earlier write failed.
func (x *Exchange) send(p []byte) {
	if x.broken {
		return
	}
	x.c.arm(x.stall())
	if _, err := x.c.write(x.c.wr, p, x.stall()); err != nil {
		x.broken = true
		x.close = true
	}
}

func appendStatus(dst []byte, status int) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	dst = append(dst, http.StatusText(status)...)
	return append(dst, "\r\n"...)
}

func appendField(dst []byte, f Field) []byte {
	dst = append(dst, f.Name...)
	dst = append(dst, ": "...)
	dst = append(dst, f.Value...)
	return append(dst, "\r\n"...)
}

// appendConnection says what becomes of the client's connection, and settles it
// (RFC 9112 §9.3).
func (x *Exchange) appendConnection(dst []byte) []byte {
	o := x.req.options
	if o.close || x.req.Minor == 0 && !o.keepAlive || x.c.srv.draining.Load() {
		x.close = true
	}
	switch {
	case x.close:
		return append(dst, "Connection: close\r\n"...)
	case x.req.Minor == 0:
		return append(dst, "Connection: keep-alive\r\n"...)
	}
	return dst
}

// refuse answers with an error of the engine's own and ends the connection.
func (x *Exchange) refuse(err *ProtocolError) {
	x.close = true
	refusal := Refusal{ProtocolError: err, Remote: x.c.nc.RemoteAddr()}
	answer := Answer{Body: []byte(err.Reason + "\n")}
	if x.c.srv.Refused != nil {
		answer = x.c.srv.Refused(refusal)
	}
	fields := make([]Field, 0, len(answer.Fields)+1)
	for _, f := range answer.Fields {
		if sendable(f) {
			fields = append(fields, f)
		}
	}
	if x.c.srv.Refused == nil {
		fields = append(fields, Field{[]byte("Content-Type"), []byte("text/plain; charset=utf-8")})
	}
	x.respond(err.Status, fields, answer.Body)
}

// canDrain reports whether the rest of the request's body is little enough to
// be read and thrown away.
func (x *Exchange) canDrain() bool {
	b := &x.body
	if b.failed || x.bodyErr != nil { // what did not come is not waited for again
		return false
	}
	if b.done || b.src == nil {
		return true
	}
	if x.req.ExpectContinue && !x.invited && b.src.empty() {
		return false // it may never come (RFC 9110 §10.1.1)
	}
	switch b.form {
	case bodyLength:
		return b.left <= drainBytes
	case bodyChunked:
		return x.skipBuffered()
	case bodyNone, bodyUntilClose:
	}
	return false
}

// skipBuffered throws away what was read of the body, and reports whether that
// was its end.
func (x *Exchange) skipBuffered() bool {
	for !x.body.done {
		had := x.c.in.r
		if _, err := x.body.take(); err != nil || x.c.in.r == had {
			return false
		}
	}
	return true
}

// mayFollow reports whether the client has sent more, or may be sending still because it
// did not know that this was the end. Closing at once would answer that with a reset,
// which takes from it what it has not read of its last answers (RFC 9112 §9.6).
func (x *Exchange) mayFollow() bool {
	c := x.c
	if !x.body.done || !c.in.empty() {
		return true
	}
	if c.raw == nil {
		return false
	}
	if o := x.req.options; !o.close && (x.req.Minor == 1 || o.keepAlive) {
		return true
	}
	silent := true
	err := c.raw.Control(func(fd uintptr) { silent = quiet(fd) })
	return err == nil && !silent
}

// finish ends the exchange on the wire. keep says that the connection may carry
// another.
func (x *Exchange) finish() (how outcome, keep bool) {
	c := x.c
	if x.broken || c.cut.Load() || c.gone.Load() {
		return ended, false
	}
	if !x.close {
		c.arm(c.srv.timeouts.Header)
		for !x.body.done {
			had := c.in.r
			if _, err := x.body.take(); err != nil || c.in.r == had && !x.body.done && x.readBody() != nil {
				return ended, false
			}
		}
	}
	if x.close {
		if x.mayFollow() {
			return lingering, false
		}
		return ended, false
	}
	in := &c.in
	if in.empty() {
		in.base, in.r, in.w = 0, 0, 0
		return ended, true
	}
	in.w = copy(in.blk.data, in.buffered())
	in.base, in.r = 0, 0
	c.phase.Store(phaseHead)
	c.arm(c.srv.timeouts.Header)
	return ended, true
}
