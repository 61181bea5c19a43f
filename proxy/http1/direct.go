package http1

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Direct gives a listener whose TCP connections are made to stand under
// tls.NewListener: they are read and written as cheaply as the engine does it by
// itself on cleartext (Linux), and a client that reads slowly is waited for as
// it is there. Without it, a write over TLS that took longer than the stall timeout
// fails although it made progress. Connections that are not over TCP stay as they are.
func Direct(l net.Listener) net.Listener { return directListener{l} }

// DirectConn does for one connection what Direct does for those of a listener. It
// is meant to stand under tls.Client in Upstream.Dial.
func DirectConn(nc net.Conn) net.Conn {
	raw, tcp := socketOf(nc)
	if tcp == nil {
		return nc
	}
	r, w := directIO(tcp, tcp, raw)
	return &directConn{Conn: nc, tcp: tcp, r: r, w: w}
}

type directListener struct{ net.Listener }

func (l directListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return DirectConn(nc), nil
}

// directConn is a connection over TCP with other system calls beneath Read and
// Write. The engine interrupts its waits by deadlines in the past, and some of that is
// meant for a moment that has passed; crypto/tls writes nothing more once a write has
// failed, so that such a one is taken up again here, where nothing is lost.
type directConn struct {
	net.Conn
	tcp     *net.TCPConn         // beneath
	user    atomic.Pointer[conn] // whose interruptions they may be; nil: nobody's
	readMu  sync.Mutex           // held while r is used
	r       io.Reader
	writeMu sync.Mutex // held while w is used
	w       io.Writer

	// Of what is being written above TLS, which is one Write here for each record.
	patience atomic.Int64
	moved    atomic.Bool // since patience was armed
}

// begin says how long may pass without progress in what is written next.
func (d *directConn) begin(patience time.Duration) {
	d.patience.Store(int64(patience))
	d.moved.Store(false)
}

// Read reads from the connection.
func (d *directConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	d.readMu.Lock()
	defer d.readMu.Unlock()
	return d.r.Read(p)
}

// Write writes all of p.
func (d *directConn) Write(p []byte) (int, error) {
	d.writeMu.Lock()
	defer d.writeMu.Unlock()
	total := 0
	for {
		n, err := d.w.Write(p[total:])
		total += n
		if err == nil {
			d.moved.Store(true)
			return total, nil
		}
		moved := d.moved.Swap(false) || n > 0
		if c := d.user.Load(); c == nil || !c.goesOn(err, moved, time.Duration(d.patience.Load())) {
			return total, err
		}
	}
}

// SetWriteDeadline bounds writes for good. The engine bounds reads and writes
// together, so this is somebody else, such as crypto/tls about its last word.
func (d *directConn) SetWriteDeadline(t time.Time) error {
	d.user.Store(nil)
	return d.Conn.SetWriteDeadline(t)
}

// CloseWrite closes the writing half.
func (d *directConn) CloseWrite() error { return d.tcp.CloseWrite() }

// TCPConn gives the connection beneath.
func (d *directConn) TCPConn() *net.TCPConn { return d.tcp }

// engage says whose exchange uses a connection, if that is TLS over a directConn; nil:
// nobody's. Only while c's waits end by interruptions of c may it stand here.
func engage(nc net.Conn, c *conn) {
	t, ok := nc.(*tls.Conn)
	if !ok {
		return
	}
	if d, ok := t.NetConn().(*directConn); ok {
		d.user.Store(c)
	}
}
