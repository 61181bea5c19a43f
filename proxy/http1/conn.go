package http1

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Phases of a connection, for the sweeper and Shutdown.
const (
	phaseNew    int32 = iota // is being prepared; its fields are not set yet
	phaseIdle                // waits for the first byte of a request
	phaseHead                // handshake, or the rest of a head
	phaseBusy                // an exchange is going on
	phaseTunnel              // an upgraded connection
	phaseGone                // belongs to another protocol, or was hijacked
	phaseParked              // idle, without a goroutine
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// lingerTime is how long bytes of a client are thrown away after its last
// answer, so that it can read that answer (RFC 9112 §9.6).
const lingerTime = 2 * time.Second

var (
	// ErrClientGone says that the client closed its connection while its answer
	// was awaited.
	ErrClientGone = errors.New("http1: client closed the connection")
	// ErrCut says that the exchange was ended by its Cutter, or by Server.Close.
	ErrCut = errors.New("http1: exchange was cut")
)

// conn is one client connection. Its goroutine owns all fields but those under
// mu, the atomics, and the links, which Server.mu guards.
type conn struct {
	srv        *Server
	nc         net.Conn
	raw        syscall.RawConn // the socket beneath, nil if there is none
	tcp        *net.TCPConn    // the connection itself where it is cleartext TCP
	rd         io.Reader       // reads the connection
	wr         io.Writer       // writes it
	tls        *tls.ConnectionState
	peer       netip.AddrPort
	source     netip.Addr // as counted; guarded by Server.mu
	next, prev *conn      // guarded by Server.mu
	in         stream
	visit      visit   // where the connection is cleartext TCP
	one        [1]byte // what an idle connection without a visit reads into

	phase    atomic.Int32
	deadline atomic.Int64  // coarse moment at which patience ends; 0: never
	exchange atomic.Uint64 // counts the exchanges; odd while one is going on
	gone     atomic.Bool   // the client went away
	cut      atomic.Bool
	stopPump atomic.Bool

	lastSeen uint64 // exchange at the sweeper's last look; the sweeper's own

	mu     sync.Mutex // guards up, cancel, woken against other goroutines that wake or cut
	up     *upConn
	cancel context.CancelFunc // ends what the exchange waits for beside its connections
	woken  bool               // a deadline in the past was set to interrupt

	mayPark   bool        // nobody waits for serve to return
	wantPark  atomic.Bool // the sweeper asks for it
	parkID    uint64      // of the last time; guarded by the parker's mutex
	idleTicks int         // how often the sweeper found it idle; the sweeper's own
}

// stream is the reading half of a connection, with the bytes that were read and
// not yet consumed: blk.data[r:w]. Bytes before base belong to a head and stay.
type stream struct {
	blk        *block
	base, r, w int
}

func (s *stream) buffered() []byte { return s.blk.data[s.r:s.w] }

func (s *stream) empty() bool { return s.blk == nil || s.r == s.w }

// space makes room to read into, and gives it.
func (s *stream) space() []byte {
	if s.r == s.w {
		s.r, s.w = s.base, s.base
	}
	if s.w == len(s.blk.data) && s.r > s.base {
		s.w = s.base + copy(s.blk.data[s.base:], s.blk.data[s.r:s.w])
		s.r = s.base
	}
	return s.blk.data[s.w:]
}

// grow moves what is buffered into a block that holds a section of as many bytes,
// which the caller then reads on. The old block is the caller's. It reports false if
// the present one would have held it.
func (s *stream) grow(mem *memory, bytes int) bool {
	if len(s.blk.data)-s.base > bytes {
		return false
	}
	blk := mem.get(max(largeBlock, bytes+bodyBlock))
	*s = stream{blk: blk, w: copy(blk.data, s.buffered())}
	return true
}

// outcome is how a connection's goroutine ended.
type outcome int

const (
	ended     outcome = iota // the connection is to be closed
	lingering                // likewise, once the client has read its last answer
	handOn                   // the client speaks HTTP/2
	hijacked                 // the handler owns the connection
	parked                   // it goes on with another goroutine
)

// serve runs a new connection.
func (c *conn) serve() {
	how := ended
	defer func() { c.leave(how) }()
	if next, ok := c.open(); !ok {
		how = next
		return
	}
	how = c.run()
}

// resume runs a connection that was parked.
func (c *conn) resume() {
	how := ended
	defer func() { c.leave(how) }()
	c.phase.Store(phaseIdle)
	how = c.run()
}

// run serves requests one after the other.
func (c *conn) run() outcome {
	for {
		ready, how := c.waitForRequest()
		if ready {
			if how, ready = c.exchangeOnce(); ready {
				continue
			}
		}
		if how == lingering {
			c.linger()
			how = ended
		}
		return how
	}
}

// leave is the last that a connection's goroutine does, also after a panic.
func (c *conn) leave(how outcome) {
	switch how {
	case parked:
		return // another goroutine may own it already
	case handOn:
		c.handOn(c.takeBuffered())
	case ended, lingering:
		c.srv.mem.put(c.in.blk)
		_ = c.nc.Close() // nothing more can be done for it
	case hijacked:
	}
	c.srv.remove(c)
}

// open prepares a new connection, and reports whether requests can be read.
func (c *conn) open() (outcome, bool) {
	c.arm(c.srv.timeouts.Idle)
	if addr := c.nc.RemoteAddr(); addr != nil {
		c.peer = addrPortOf(addr)
	}
	if !c.srv.addSource(c, c.peer.Addr()) {
		c.srv.turnAway(errSource, c.nc.RemoteAddr())
		return ended, false
	}
	raw, tcp := socketOf(c.nc)
	c.raw, c.rd, c.wr = raw, c.nc, c.nc
	if tc, ok := c.nc.(*tls.Conn); ok {
		if !c.handshake(tc) {
			return ended, false
		}
		if c.tls.NegotiatedProtocol == "h2" {
			return handOn, false
		}
		return ended, true
	}
	if tcp != nil {
		c.tcp = tcp
		if raw != nil {
			c.visit.fn = c.try
		}
	}
	c.rd, c.wr = directIO(c.nc, c.tcp, c.raw)
	return ended, true
}

func addrPortOf(addr net.Addr) netip.AddrPort {
	if a, ok := addr.(interface{ AddrPort() netip.AddrPort }); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

func (c *conn) handshake(tc *tls.Conn) bool {
	c.phase.Store(phaseHead)
	c.arm(c.srv.timeouts.Header)
	if err := tc.Handshake(); err != nil {
		c.srv.turnAway(errHandshake, c.nc.RemoteAddr())
		return false
	}
	engage(tc, c)
	state := tc.ConnectionState()
	c.tls = &state
	return true
}

// handOn gives the connection to HTTP2 with the bytes that were read before.
func (c *conn) handOn(read []byte) {
	c.phase.Store(phaseGone)
	c.arm(-1)
	c.settle()
	engage(c.nc, nil)
	if c.srv.HTTP2 == nil {
		c.srv.turnAway(errNoHTTP2, c.nc.RemoteAddr())
		_ = c.nc.Close() // nothing more can be done for it
		return
	}
	nc := c.nc
	if len(read) > 0 {
		nc = &replayConn{Conn: nc, read: read}
	}
	c.srv.HTTP2(nc)
}

// takeBuffered gives a copy of what was read and not consumed, and frees its block.
func (c *conn) takeBuffered() []byte {
	if c.in.blk == nil {
		return nil
	}
	read := bytes.Clone(c.in.buffered())
	c.srv.mem.put(c.in.blk)
	c.in = stream{}
	return read
}

// replayConn reads some bytes again before it goes on with the connection.
type replayConn struct {
	net.Conn
	read []byte
}

func (r *replayConn) Read(p []byte) (int, error) {
	if len(r.read) > 0 {
		n := copy(p, r.read)
		r.read = r.read[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

// NetConn gives the connection beneath.
func (r *replayConn) NetConn() net.Conn { return r.Conn }

// CloseWrite closes the writing half where the connection has one.
func (r *replayConn) CloseWrite() error { return closeWrite(r.Conn) }

// waitForRequest waits, without a block, until there is a byte of the next
// request. If there will be none, or another goroutine is to wait for it, how
// says so.
func (c *conn) waitForRequest() (ready bool, how outcome) {
	if !c.in.empty() {
		return true, ended
	}
	c.becomeIdle()
	for {
		if c.srv.closing.Load() {
			return c.lastLook(), ended
		}
		n, err := c.readFirst()
		switch {
		case n > 0:
			c.phase.Store(phaseHead)
			c.arm(c.srv.timeouts.Header)
			return true, ended
		case c.visit.ended:
			return false, c.visit.how
		case !c.in.empty(): // the next request came with the one that was served
			return true, ended
		case err != nil && !c.spurious(err):
			return errors.Is(err, os.ErrDeadlineExceeded) && c.lastLook(), ended
		}
		if c.mayPark && c.wantPark.Swap(false) {
			c.phase.Store(phaseParked)
			if c.srv.park(c) {
				return false, parked
			}
			c.phase.Store(phaseIdle)
		}
	}
}

// becomeIdle gives back the block, of which nothing is left.
func (c *conn) becomeIdle() {
	c.srv.mem.put(c.in.blk)
	c.in = stream{}
	if c.phase.Load() != phaseIdle {
		c.arm(c.srv.timeouts.Idle)
		c.phase.Store(phaseIdle)
	}
}

// readFirst reads the first bytes of a request into a new block. Without any and
// without an error, requests were served meanwhile, and what becomes of the connection
// is to be seen.
func (c *conn) readFirst() (int, error) {
	giveWay() // the client may have sent the next one until then
	if c.visit.fn != nil {
		return c.visitSocket()
	}
	n, err := c.nc.Read(c.one[:])
	switch {
	case n == 0 && err == nil:
		return 0, io.ErrNoProgress
	case n == 0:
		return 0, err
	}
	c.in.blk = c.srv.mem.get(headBlock)
	c.in.blk.data[0] = c.one[0]
	c.in.w = 1
	return 1, nil
}

// lastLook takes a request that has already arrived although the connection is about to
// be closed, for having been idle too long or because all idle ones are. Closed over it,
// its client could not know whether anybody acted on it.
func (c *conn) lastLook() bool {
	if c.visit.fn == nil {
		return c.lastLookTLS()
	}
	n := 0
	_ = c.raw.Control(func(fd uintptr) { n, _, _ = c.readLazily(fd) }) // an error means no request
	if n == 0 {
		return false
	}
	c.phase.Store(phaseHead)
	c.arm(c.srv.timeouts.Header)
	c.settle()
	return true
}

// lastLookTLS is lastLook where only reading tells what the socket's bytes are.
func (c *conn) lastLookTLS() bool {
	if c.raw == nil {
		return false
	}
	silent := true
	if err := c.raw.Control(func(fd uintptr) { silent = quiet(fd) }); err != nil || silent {
		return false
	}
	c.phase.Store(phaseHead)
	c.arm(c.srv.timeouts.Header)
	for {
		c.settle()
		n, err := c.readFirst()
		if n > 0 || !c.spurious(err) {
			return n > 0
		}
	}
}

// exchangeOnce reads one head and has it handled. keep says that the connection
// may carry another request.
func (c *conn) exchangeOnce() (how outcome, keep bool) {
	x := c.srv.mem.exchange()
	x.begin(c)
	defer func() {
		// Also after a panic: what was lent goes back, but for a hijacked connection's.
		x.end()
	}()
	if h2, err := c.readHead(&x.req); h2 {
		return handOn, false
	} else if err != nil {
		if refusal, ok := errors.AsType[*ProtocolError](err); ok {
			x.refuse(refusal)
			if refusal != errSlowHead && !x.broken {
				return lingering, false
			}
		}
		return ended, false
	}
	return c.serveExchange(x)
}

// serveExchange has a request handled whose head was read.
func (c *conn) serveExchange(x *Exchange) (how outcome, keep bool) {
	x.startBody()
	c.phase.Store(phaseBusy)
	c.arm(-1)
	c.handle(x)
	if x.hijacked {
		return hijacked, false
	}
	return x.finish()
}

// handle runs the handler.
func (c *conn) handle(x *Exchange) {
	if c.srv.Panicked != nil {
		defer func() {
			if r := recover(); r != nil {
				x.close = true
				x.broken = true
				c.srv.Panicked(r)
			}
		}()
	}
	if c.srv.Handler != nil {
		c.srv.Handler(x)
	}
	if !x.answered && !x.hijacked && !x.broken {
		x.refuse(errUnanswered)
	}
}

// readHead reads until the head is complete.
func (c *conn) readHead(r *Request) (h2 bool, err error) {
	limits := &c.srv.limits
	first := c.exchange.Load() == 1 // later it is a request like any other (RFC 9113 §3.4)
	for {
		buf := c.in.buffered()
		if first && buf[0] == 'P' && isPreface(buf) {
			if len(buf) >= len(preface) {
				if c.srv.HTTP2 == nil || c.tls != nil {
					return false, errPreface
				}
				return true, nil
			}
		} else {
			first = false
			done, err := r.parse(buf, limits)
			if err != nil {
				return false, err
			}
			if done {
				c.passHead(r)
				return false, nil
			}
		}
		c.growHead(r)
		n, err := c.read(c.rd, c.in.blk.data[c.in.w:])
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return false, errSlowHead
			}
			return false, err
		}
		c.in.w += n
	}
}

// passHead leaves a head that is complete where it is.
func (c *conn) passHead(r *Request) {
	c.in.r += r.end
	c.in.base = c.in.r
}

// isPreface reports whether buf may be the beginning of an HTTP/2 connection.
func isPreface(buf []byte) bool {
	n := min(len(buf), len(preface))
	return string(buf[:n]) == preface[:n]
}

// growHead makes room for more of a head: it moves it to the front of its
// block, or into a larger one.
func (c *conn) growHead(r *Request) {
	in := &c.in
	if in.w < len(in.blk.data) {
		return
	}
	old := in.blk
	if in.r == 0 {
		in.blk = c.srv.mem.get(max(largeBlock, c.srv.limits.HeaderBytes+bodyBlock))
	}
	in.w = copy(in.blk.data, old.data[in.r:in.w])
	in.r = 0
	if in.blk != old {
		c.srv.mem.put(old)
	}
	r.reset() // its slices pointed to where the bytes were
}

// arm sets when patience ends, from now. Less than zero is never. The coarse clock may
// be a tick behind, of which the other side is given the benefit.
func (c *conn) arm(d time.Duration) {
	if d <= 0 {
		c.deadline.Store(0)
		return
	}
	c.deadline.Store(c.srv.now.Load() + int64(d+c.srv.tick))
}

// read reads from one of the exchange's connections. It gives
// os.ErrDeadlineExceeded only when patience has really ended.
func (c *conn) read(r io.Reader, p []byte) (int, error) {
	for {
		n, err := r.Read(p)
		if n > 0 {
			return n, nil
		}
		if err != nil && !c.spurious(err) {
			return 0, err
		}
	}
}

// write writes all of p. A write that makes any progress within patience, which the
// caller has armed, goes on for as long again.
func (c *conn) write(w io.Writer, p []byte, patience time.Duration) (int, error) {
	if t, ok := w.(*tls.Conn); ok {
		// A write that failed is the last that crypto/tls makes. So it goes on beneath.
		if d, ok := t.NetConn().(*directConn); ok {
			d.begin(patience)
		}
		return w.Write(p)
	}
	total := 0
	for {
		n, err := w.Write(p[total:])
		total += n
		if err == nil || !c.goesOn(err, n > 0, patience) {
			return total, err
		}
	}
}

// goesOn reports whether a write that failed with err, having moved something since
// it was armed or not, is to go on.
func (c *conn) goesOn(err error, moved bool, patience time.Duration) bool {
	if moved && errors.Is(err, os.ErrDeadlineExceeded) && !c.cut.Load() {
		c.arm(patience)
	}
	return c.spurious(err)
}

// spurious reports whether err is an interruption meant for a moment that has
// passed, and makes the connections usable again.
func (c *conn) spurious(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	c.settle()
	d := c.deadline.Load()
	return !c.cut.Load() && !c.stopPump.Load() && (d == 0 || d > c.srv.now.Load())
}

// settle takes back an interruption.
func (c *conn) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.woken {
		return
	}
	c.woken = false
	_ = c.nc.SetDeadline(time.Time{}) // a closed connection says so at its next use
	if c.up != nil {
		_ = c.up.nc.SetDeadline(time.Time{}) // likewise
	}
}

var past = time.Unix(1, 0)

// wake interrupts what the connection's goroutines wait for.
func (c *conn) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wakeLocked()
}

func (c *conn) wakeLocked() {
	c.woken = true
	_ = c.nc.SetDeadline(past) // a closed connection is awake
	if c.up != nil {
		_ = c.up.nc.SetDeadline(past) // likewise
	}
}

// cutNow ends the exchange and the connection, from any goroutine.
func (c *conn) cutNow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cutLocked()
}

func (c *conn) cutLocked() {
	c.cut.Store(true)
	c.wakeLocked()
	c.breakOff()
	c.abandonLocked()
}

// closeNow closes without waiting for a lock that a blocked TLS write holds.
func closeNow(nc net.Conn) error {
	if t, ok := nc.(*tls.Conn); ok {
		return t.NetConn().Close()
	}
	return nc.Close()
}

// breakOff resets the connection, beneath TLS where there is that: an end that
// TLS vouches for would make an answer look whole that is not (RFC 9112 §9.8). A
// connection that is being visited is closed, and so reset, when the visit ends: closing
// it before would wait for that.
func (c *conn) breakOff() {
	nc := c.nc
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	if _, tcp := socketOf(nc); tcp != nil {
		_ = tcp.SetLinger(0) // a connection that is gone cannot be taken for whole
	}
	if !c.visit.serving.Load() {
		_ = nc.Close() // likewise
	}
}

// abandonLocked ends what the exchange waits for beside its client.
func (c *conn) abandonLocked() {
	if c.up != nil {
		_ = closeNow(c.up.nc) // it is not used any more
	}
	if c.cancel != nil {
		c.cancel()
	}
}

// needsLook reports whether the sweeper should look at the connection: its
// patience ended, or it is in the same exchange as at the last tick, or has been idle
// since then and may have ended with its last request (see visit). Where many are idle
// that is found out as they are parked.
func (c *conn) needsLook(now int64, many bool) bool {
	seen := c.exchange.Load()
	same := seen == c.lastSeen
	c.lastSeen = seen
	phase := c.phase.Load()
	if !same || phase != phaseIdle {
		c.idleTicks = 0
	} else {
		c.idleTicks++
	}
	d := c.deadline.Load()
	return d != 0 && d <= now || same && phase == phaseBusy || c.idleTicks == 1 && c.srv.NoHijack && !(many && c.mayPark)
}

// askToPark has an idle connection give its goroutine up. If a request comes between, its
// exchange takes the interruption back, and the connection has to be asked again.
func (c *conn) askToPark() {
	c.idleTicks = 0
	if !c.mayPark || c.raw == nil {
		return
	}
	c.wantPark.Store(true)
	c.wake()
}

// look is the sweeper's: it ends waits that took too long, and those for a client that
// went away.
func (c *conn) look(now int64) {
	switch phase := c.phase.Load(); {
	case phase == phaseIdle && c.clientGone():
		c.wake() // so that it reads the end
		return
	case phase == phaseBusy && !c.gone.Load():
		if c.clientGone() {
			c.mu.Lock()
			same := c.phase.Load() == phaseBusy && c.exchange.Load() == c.lastSeen
			if same {
				c.gone.Store(true)
				c.abandonLocked()
			}
			c.mu.Unlock()
			if same {
				return
			}
		}
	}
	if d := c.deadline.Load(); d == 0 || d > now {
		return
	}
	if c.phase.Load() == phaseParked {
		c.srv.unpark(c)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.deadline.Load(); d != 0 && d <= now {
		c.wakeLocked()
	}
}

// clientGone asks the socket whether the client has ended its side.
func (c *conn) clientGone() bool {
	gone := false
	return c.raw != nil && c.raw.Control(func(fd uintptr) { gone = peerGone(fd) }) == nil && gone
}

// closeWrite closes the writing half of a connection, where it has one.
func closeWrite(nc net.Conn) error {
	if h, ok := nc.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// linger ends the sending side and throws away what the client still sends, for
// a while.
func (c *conn) linger() {
	if err := closeWrite(c.nc); err != nil {
		return
	}
	c.arm(lingerTime)
	if c.in.blk == nil {
		c.in.blk = c.srv.mem.get(headBlock)
	}
	for {
		if _, err := c.read(c.rd, c.in.blk.data); err != nil {
			return
		}
	}
}
