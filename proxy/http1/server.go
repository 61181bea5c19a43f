package http1

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// ErrServerClosed is what Serve returns after Shutdown or Close.
var ErrServerClosed = errors.New("http1: server closed")

// Limits bounds what one client may send. Zero means the default; connections
// are bounded only if it is asked for.
type Limits struct {
	HeaderBytes          int // request line and field section; 32768; beyond: 431
	HeaderCount          int // field lines; 100; beyond: 431
	TargetBytes          int // 8192; beyond: 414
	Connections          int // open at once; 0: unbounded; beyond: closed without an answer
	ConnectionsPerSource int // open at once from one IPv4 address or IPv6 /64; 0: unbounded; beyond: closed without an answer
}

// Timeouts bounds how long a client may do nothing. Zero means the default,
// less than zero never. They are watched coarsely: see the package comment.
type Timeouts struct {
	Header time.Duration // from the first byte of a head, or from accepting a connection with TLS, to its last byte; 10 s; then 408
	Idle   time.Duration // without a byte between two requests, or before the first; 90 s
	Stall  time.Duration // without progress in the middle of a body or an answer; 60 s
	Tunnel time.Duration // without a byte either way on an upgraded connection; 1 h
}

// Refusal is a request or a connection that the engine turned away by itself.
type Refusal struct {
	*ProtocolError
	Remote net.Addr
}

// Answer is what a hook adds to a refusal. The engine sets Content-Length, Date
// and Connection. Fields that are malformed are left out.
type Answer struct {
	Fields []Field
	Body   []byte
}

// Server speaks HTTP/1.0 and HTTP/1.1 with clients. Set the fields before the
// first use and leave them alone afterwards. All methods are safe for
// concurrent use.
//
// A connection that is wrapped around TCP and leaves its bytes as they are, such
// as one that has read a PROXY protocol header and gives another RemoteAddr, is
// served as fast as TCP if it has a method TCPConn() *net.TCPConn. The engine
// calls RemoteAddr first, in the connection's goroutine, then TCPConn, and
// from then on reads and writes what that gives; nil stands for "not now".
type Server struct {
	// Handler is called for each request, in the connection's goroutine. It
	// answers through the exchange before it returns, and keeps nothing of it.
	// An exchange it leaves unanswered is answered with 500.
	Handler func(*Exchange)
	// NoHijack says that Handler takes over no connections (http.Hijacker), which fails
	// then. The engine can then leave the connection with the runtime's poller while a
	// request is served, which saves a system call each.
	NoHijack bool
	// HTTP2 is given the connections that speak HTTP/2: by ALPN on TLS, by the
	// preface on cleartext, with the bytes that were read before. It owns the
	// connection and returns when that has ended. If nil, the preface is
	// refused with 505.
	HTTP2 func(net.Conn)
	// Refused is called once for each refusal of the engine, also for those that
	// get no answer (Status 0). It may say what the answer holds beside its
	// status. If nil, the body is the reason in plain text.
	Refused func(Refusal) Answer
	// Panicked is called with what a handler panicked with; the connection is
	// then closed. If nil, the panic goes on.
	Panicked func(recovered any)
	// Starved is called when the operating system has no connection to give, mostly
	// for want of descriptors, at most once a minute; taking one is tried again and
	// again. If nil, nobody is told.
	Starved func(err error)

	Limits   Limits
	Timeouts Timeouts

	once     sync.Once
	limits   Limits
	timeouts Timeouts
	tick     time.Duration
	looked   time.Time                 // when now was renewed; the sweeper's own, or add's while there is none
	now      atomic.Int64              // coarse nanoseconds in which the server ran
	date     atomic.Pointer[dateField] // of the same moment
	draining atomic.Bool               // answers say Connection: close
	closing  atomic.Bool               // idle connections are closed
	mem      memory

	pipeMu sync.Mutex // guards pipes
	pipes  []*pipe
	parkMu sync.Mutex // guards parker
	parker *parker

	mu        sync.Mutex // guards what follows; held for moments only
	conns     *conn      // all connections, linked
	count     int
	sources   map[netip.Addr]int // bounded by the number of connections
	listeners map[net.Listener]struct{}
	sweeping  bool
	drained   chan struct{} // closed when count reaches 0 while draining
	closed    bool
}

// Serve accepts connections of l until Shutdown or Close, or until l fails for
// good, and closes l.
func (s *Server) Serve(l net.Listener) error {
	s.init()
	defer l.Close()
	if !s.addListener(l) {
		return ErrServerClosed
	}
	defer s.removeListener(l)
	delay := 5 * time.Millisecond
	var told time.Time
	for {
		nc, err := l.Accept()
		if err == nil {
			delay = 5 * time.Millisecond
			if c := s.add(nc); c != nil {
				c.mayPark = true
				go c.serve()
			}
			continue
		}
		if s.draining.Load() {
			return ErrServerClosed
		}
		if temporary, ok := errors.AsType[interface {
			error
			Temporary() bool
		}](err); !ok || !temporary.Temporary() {
			return fmt.Errorf("accept a connection: %w", err)
		}
		if s.Starved != nil && time.Since(told) >= time.Minute {
			told = time.Now()
			s.Starved(err)
		}
		<-time.After(delay) // out of descriptors, most likely
		delay = min(2*delay, time.Second)
	}
}

// ServeConn serves one connection, and returns when it has ended or was handed
// on. It closes nc unless that was hijacked.
func (s *Server) ServeConn(nc net.Conn) {
	s.init()
	if c := s.add(nc); c != nil {
		c.serve()
	}
}

// Shutdown stops accepting, closes idle connections, and waits until the
// exchanges in flight are answered, each with Connection: close. Idle connections
// are closed 50 ms later, so that a client that is just sending its next request,
// and knows of nothing yet, gets an answer. If ctx ends first it returns its error
// and leaves the rest to Close. HTTP/2 connections are waited for too; winding them
// up is their owner's part.
func (s *Server) Shutdown(ctx context.Context) error {
	s.init()
	s.draining.Store(true)
	s.mu.Lock()
	s.closeListenersLocked()
	if s.count == 0 {
		s.mu.Unlock()
		return nil
	}
	if s.drained == nil {
		s.drained = make(chan struct{})
	}
	drained := s.drained
	s.mu.Unlock()
	lastCall := time.NewTimer(lastCallTime)
	defer lastCall.Stop()
	select {
	case <-drained:
		return nil
	case <-lastCall.C:
	case <-ctx.Done():
	}
	s.closeIdle()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lastCallTime is how long idle connections stay open when the server ends. A busy client
// sends its next request as soon as it has an answer; if the connection is closed meanwhile,
// it cannot know whether anybody acted on that request.
const lastCallTime = 50 * time.Millisecond

// closeIdle closes the idle connections, and those that become idle from now on.
func (s *Server) closeIdle() {
	s.closing.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := s.conns; c != nil; c = c.next {
		switch c.phase.Load() {
		case phaseIdle:
			c.wake()
		case phaseParked:
			s.unpark(c)
		}
	}
}

// Close closes all listeners and connections at once, with the exchanges on them.
func (s *Server) Close() error {
	s.init()
	s.draining.Store(true)
	s.closing.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.closeListenersLocked()
	for c := s.conns; c != nil; c = c.next {
		c.cutNow()
		s.unpark(c)
	}
	return nil
}

// Connections is the number of open connections, with those that speak HTTP/2.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

func (s *Server) init() {
	s.once.Do(func() {
		s.limits = s.defaults()
		s.timeouts = Timeouts{
			Header: orDuration(s.Timeouts.Header, 10*time.Second),
			Idle:   orDuration(s.Timeouts.Idle, 90*time.Second),
			Stall:  orDuration(s.Timeouts.Stall, time.Minute),
			Tunnel: orDuration(s.Timeouts.Tunnel, time.Hour),
		}
		s.tick = 250 * time.Millisecond
		for _, d := range []time.Duration{s.timeouts.Header, s.timeouts.Idle, s.timeouts.Stall, s.timeouts.Tunnel} {
			if d > 0 {
				s.tick = max(min(s.tick, d/8), time.Millisecond)
			}
		}
		s.looked = time.Now()
		s.listeners = make(map[net.Listener]struct{})
		s.sources = make(map[netip.Addr]int)
	})
}

// defaults gives the limits with the defaults in place of zeros.
func (s *Server) defaults() Limits {
	l := s.Limits
	l.HeaderBytes = orInt(l.HeaderBytes, 32<<10)
	l.HeaderCount = orInt(l.HeaderCount, 100)
	l.TargetBytes = orInt(l.TargetBytes, 8<<10)
	return l
}

func orInt(n, fallback int) int {
	if n <= 0 {
		return fallback
	}
	return n
}

func orDuration(d, fallback time.Duration) time.Duration {
	if d == 0 {
		return fallback
	}
	return d
}

func (s *Server) addListener(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) removeListener(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

func (s *Server) closeListenersLocked() {
	for l := range s.listeners {
		_ = l.Close() // Serve reports what is wrong with its listener
	}
}

// add takes a connection in, or closes it and gives nil.
func (s *Server) add(nc net.Conn) *conn {
	c := &conn{srv: s, nc: nc}
	s.mu.Lock()
	if s.draining.Load() || s.limits.Connections > 0 && s.count >= s.limits.Connections {
		full := !s.draining.Load()
		s.mu.Unlock()
		if full { // before the end: a peer that sees it can already find it counted
			s.turnAway(errConnections, nc.RemoteAddr())
		}
		_ = nc.Close()
		return nil
	}
	s.count++
	c.next = s.conns
	if c.next != nil {
		c.next.prev = c
	}
	s.conns = c
	if !s.sweeping {
		s.sweeping = true
		s.lookAtClock()
		go s.sweep()
	}
	s.mu.Unlock()
	return c
}

// addSource counts a connection for its source, unless that has too many.
func (s *Server) addSource(c *conn, source netip.Addr) bool {
	if s.limits.ConnectionsPerSource <= 0 || !source.IsValid() {
		return true
	}
	source = source.Unmap()
	if source.Is6() {
		prefix, _ := source.WithZone("").Prefix(64) // cannot fail for an IPv6 address
		source = prefix.Addr()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sources[source] >= s.limits.ConnectionsPerSource {
		return false
	}
	s.sources[source]++
	c.source = source
	return true
}

// remove forgets a connection.
func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		s.conns = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.next, c.prev = nil, nil
	if c.source.IsValid() {
		if s.sources[c.source]--; s.sources[c.source] == 0 {
			delete(s.sources, c.source)
		}
	}
	s.count--
	if s.count == 0 && s.drained != nil {
		close(s.drained)
		s.drained = nil
	}
}

var (
	errConnections = &ProtocolError{0, "connections", "too many connections are open"}
	errSource      = &ProtocolError{0, "connections_per_source", "too many connections are open from this source"}
	errHandshake   = &ProtocolError{0, "tls_handshake", "the TLS handshake failed"}
	errNoHTTP2     = &ProtocolError{0, "http2", "HTTP/2 was negotiated, but nobody speaks it here"}
	errSlowHead    = &ProtocolError{408, "header_timeout", "the head did not arrive in time (RFC 9110 §15.5.9)"}
	errUnanswered  = &ProtocolError{500, "unanswered", "the request was not answered"}
)

// turnAway reports a refusal that gets no answer.
func (s *Server) turnAway(err *ProtocolError, remote net.Addr) {
	if s.Refused != nil {
		s.Refused(Refusal{ProtocolError: err, Remote: remote})
	}
}

// dateField is a Date field line for one second.
type dateField struct {
	second int64
	line   []byte
}

// lookAtClock renews the coarse time and the Date line. Time in which the
// process did not run counts for four ticks at most: a peer is not to blame
// for bytes that nobody has come to read. It is called by one goroutine at a time.
func (s *Server) lookAtClock() {
	now := time.Now()
	s.now.Add(int64(min(now.Sub(s.looked), 4*s.tick)))
	s.looked = now
	if d := s.date.Load(); d == nil || d.second != now.Unix() {
		line := now.UTC().AppendFormat([]byte("Date: "), http.TimeFormat)
		s.date.Store(&dateField{second: now.Unix(), line: append(line, "\r\n"...)})
	}
}

const (
	// warmIdle is how many idle connections may keep their goroutine for
	// parkAfter; if there are more, one tick is enough.
	warmIdle  = 1024
	parkAfter = 5 * time.Second
)

// sweep watches over the connections until there are none.
func (s *Server) sweep() {
	ticker := time.NewTicker(s.tick)
	defer ticker.Stop()
	var due []*conn
	warm := 0 // connections that were idle with a goroutine at the last tick
	for range ticker.C {
		s.lookAtClock()
		now := s.now.Load()
		s.mu.Lock()
		if s.count == 0 {
			s.sweeping = false
			s.closeParkerLocked()
			s.mu.Unlock()
			s.closePipes()
			return
		}
		due = due[:0]
		many, idle := warm > warmIdle, 0
		for c := s.conns; c != nil; c = c.next {
			if c.needsLook(now, many) {
				due = append(due, c)
			}
			if c.idleTicks > 0 {
				idle++
				if many || time.Duration(c.idleTicks)*s.tick >= parkAfter {
					c.askToPark()
				}
			}
		}
		warm = idle
		s.mu.Unlock()
		for _, c := range due {
			c.look(now)
		}
		clear(due)
	}
}
