package proxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"
)

// ProxyProtocol is a listener below which some peers must begin each connection
// with a PROXY protocol header, version 1 or 2. The address in it becomes that of
// the peer. Connections of all other peers pass as they are: a header from them
// is not HTTP and is refused as such.
//
// Headers are read beside Accept, so that a peer that sends none holds up nobody.
// A header is read to its last byte and not beyond, so that what follows is still
// in the socket.
type ProxyProtocol struct {
	inner   net.Listener
	from    []netip.Prefix
	timeout time.Duration
	refused func(remote net.Addr, err error)

	once  sync.Once
	ready chan accepted
	done  chan struct{}

	mu      sync.Mutex // guards pending and closed
	pending map[net.Conn]struct{}
	closed  bool
}

// CodeProxyProtocol is the code under which connections that are closed for the
// lack of a header are counted with [Guard.Refused].
const CodeProxyProtocol = "proxy_protocol"

// Headerless counts a connection that was closed for the lack of a header, and logs one
// a minute: a load balancer may look every few seconds whether the port is open.
func (g *Guard) Headerless(remote net.Addr, err error) {
	g.countRefusal(CodeProxyProtocol)
	g.headerless.Do(func() {
		g.Log.Warn("a connection was refused: peers in proxy.proxy_protocol_from must begin with a PROXY protocol header; tokenward_protocol_refusals_total says how often", "peer", remote.String(), "error", err)
	})
}

type accepted struct {
	nc  net.Conn
	err error
}

// maxPending bounds the connections whose header is awaited.
const maxPending = 4096

var (
	errManyPending  = errors.New("too many connections have not sent their PROXY protocol header")
	errNoHeader     = errors.New("the connection does not begin with a PROXY protocol header")
	errHeaderLength = errors.New("the PROXY protocol header is too long")
)

// NewProxyProtocol returns the listener over l, which it closes. Peers in from
// have to send a header within timeout. refused is told of each connection that
// was closed for the lack of one; it may be nil, and is called from many goroutines.
func NewProxyProtocol(l net.Listener, from []netip.Prefix, timeout time.Duration, refused func(remote net.Addr, err error)) *ProxyProtocol {
	return &ProxyProtocol{
		inner: l, from: from, timeout: timeout, refused: refused,
		ready: make(chan accepted), done: make(chan struct{}), pending: make(map[net.Conn]struct{}),
	}
}

// Accept implements net.Listener.
func (l *ProxyProtocol) Accept() (net.Conn, error) {
	l.once.Do(func() { go l.accept() })
	select {
	case a := <-l.ready:
		return a.nc, a.err
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. Connections that wait for their header are closed.
func (l *ProxyProtocol) Close() error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.done)
	}
	for nc := range l.pending {
		_ = nc.Close() // nobody will take it
	}
	l.mu.Unlock()
	return l.inner.Close()
}

// Addr implements net.Listener.
func (l *ProxyProtocol) Addr() net.Addr { return l.inner.Addr() }

// accept is the goroutine that takes connections from the socket.
func (l *ProxyProtocol) accept() {
	for {
		nc, err := l.inner.Accept()
		switch {
		case err != nil:
			if !l.hand(accepted{err: err}) || errors.Is(err, net.ErrClosed) {
				return
			}
		case !l.listed(nc.RemoteAddr()):
			if !l.hand(accepted{nc: nc}) {
				_ = nc.Close() // nobody will take it
			}
		case l.keep(nc):
			go l.greet(nc)
		default:
			l.refuse(nc, errManyPending)
		}
	}
}

// hand gives a connection to Accept, and reports false when the listener is closed.
func (l *ProxyProtocol) hand(a accepted) bool {
	select {
	case l.ready <- a:
		return true
	case <-l.done:
		return false
	}
}

func (l *ProxyProtocol) listed(remote net.Addr) bool {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return false
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	return slices.ContainsFunc(l.from, func(p netip.Prefix) bool { return p.Contains(addr) })
}

func (l *ProxyProtocol) keep(nc net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.pending) >= maxPending {
		return false
	}
	l.pending[nc] = struct{}{}
	return true
}

// refuse tells of a connection and then closes it: a peer that sees the end can
// already find it counted.
func (l *ProxyProtocol) refuse(nc net.Conn, err error) {
	if l.refused != nil && !errors.Is(err, net.ErrClosed) {
		l.refused(nc.RemoteAddr(), err)
	}
	_ = nc.Close() // nobody will take it
}

// greet is the goroutine that reads one connection's header.
func (l *ProxyProtocol) greet(nc net.Conn) {
	named, err := l.named(nc)
	l.mu.Lock()
	delete(l.pending, nc)
	l.mu.Unlock()
	if err != nil {
		l.refuse(nc, err)
		return
	}
	if !l.hand(accepted{nc: named}) {
		_ = nc.Close() // nobody will take it
	}
}

// named reads the header, and gives the connection with the address in it.
func (l *ProxyProtocol) named(nc net.Conn) (net.Conn, error) {
	if err := nc.SetReadDeadline(time.Now().Add(l.timeout)); err != nil {
		return nil, err
	}
	remote, own, err := readProxyHeader(nc)
	if err != nil {
		return nil, err
	}
	if err := nc.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	tcp, ok := nc.(*net.TCPConn)
	switch {
	case own:
		return nc, nil
	case !ok:
		return nil, errors.New("the PROXY protocol is spoken over TCP only")
	}
	return &namedConn{tcpConn: tcp, remote: remote}, nil
}

// namedConn is a connection whose peer was named by a proxy.
type namedConn struct {
	*tcpConn
	remote net.Addr
}

type tcpConn = net.TCPConn

// RemoteAddr is the address that the proxy named.
func (c *namedConn) RemoteAddr() net.Addr { return c.remote }

// TCPConn gives the connection beneath, whose bytes are the same.
func (c *namedConn) TCPConn() *net.TCPConn { return c.tcpConn }

// unknownAddr is the address of a peer that the proxy did not know. It is none of
// the internet, so every rule about sources denies.
type unknownAddr struct{}

// Network implements net.Addr.
func (unknownAddr) Network() string { return "tcp" }

// String implements net.Addr.
func (unknownAddr) String() string { return "unknown" }

const (
	v1Start     = "PROXY "
	v2Start     = "\r\n\r\n\x00\r\nQUIT\n"
	maxV1Header = 107
	maxV2Rest   = 4096
)

// readProxyHeader reads one header and not a byte more. It gives the address of
// the client, or own where the proxy speaks for itself, as for a health check.
func readProxyHeader(r io.Reader) (remote net.Addr, own bool, err error) {
	raw := make([]byte, len(v2Start), 16+64)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, false, fmt.Errorf("read PROXY protocol header: %w", err)
	}
	switch {
	case string(raw) == v2Start:
		raw, err = readV2(r, raw)
	case string(raw[:len(v1Start)]) == v1Start:
		raw, err = readV1(r, raw)
	default:
		err = errNoHeader
	}
	if err != nil {
		return nil, false, err
	}
	h, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(raw), len(raw)))
	if err != nil {
		return nil, false, fmt.Errorf("read PROXY protocol header: %w", err)
	}
	return clientOf(h)
}

func readV1(r io.Reader, raw []byte) ([]byte, error) {
	for raw[len(raw)-1] != '\n' {
		if len(raw) == maxV1Header {
			return nil, errHeaderLength
		}
		raw = append(raw, 0)
		if _, err := io.ReadFull(r, raw[len(raw)-1:]); err != nil {
			return nil, fmt.Errorf("read PROXY protocol header: %w", err)
		}
	}
	return raw, nil
}

func readV2(r io.Reader, raw []byte) ([]byte, error) {
	raw = raw[:16] //nolint:gosec // the caller made room for the longest header
	if _, err := io.ReadFull(r, raw[12:]); err != nil {
		return nil, fmt.Errorf("read PROXY protocol header: %w", err)
	}
	rest := int(binary.BigEndian.Uint16(raw[14:])) //nolint:gosec // 16 bytes, as above
	if rest > maxV2Rest {
		return nil, errHeaderLength
	}
	raw = append(raw, make([]byte, rest)...)
	if _, err := io.ReadFull(r, raw[16:]); err != nil {
		return nil, fmt.Errorf("read PROXY protocol header: %w", err)
	}
	return raw, nil
}

// clientOf gives the address in a header. Version 1 has no word for a proxy that
// speaks for itself; UNKNOWN there, and a Unix socket in version 2, is a client of whom
// nothing is known. An unspecified family in version 2 was refused before, unless the
// proxy speaks for itself.
func clientOf(h *proxyproto.Header) (remote net.Addr, own bool, err error) {
	if h.Version == 2 && h.Command.IsLocal() {
		return nil, true, nil
	}
	switch h.TransportProtocol {
	case proxyproto.TCPv4, proxyproto.TCPv6:
		if addr, ok := h.SourceAddr.(*net.TCPAddr); ok {
			return addr, false, nil
		}
		return nil, false, errNoHeader
	case proxyproto.UNSPEC, proxyproto.UnixStream:
		return unknownAddr{}, false, nil
	default:
		return nil, false, errors.New("the PROXY protocol header names a transport that is not a stream")
	}
}
