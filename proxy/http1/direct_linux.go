package http1

import (
	"io"
	"net"
	"sync"
)

// Direct gives a listener whose TCP connections are read and written as cheaply
// as the engine does it by itself on cleartext (Linux; elsewhere, and for other
// connections, it changes nothing). It is meant to stand under tls.NewListener.
func Direct(l net.Listener) net.Listener { return directListener{l} }

// DirectConn does for one connection what Direct does for those of a listener. It
// is meant to stand under tls.Client in Upstream.Dial.
func DirectConn(nc net.Conn) net.Conn {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nc
	}
	r, w := directIO(tcp, tcp, rawOf(tcp))
	return &directConn{tcpConn: tcp, r: r, w: w}
}

type directListener struct{ net.Listener }

func (l directListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return DirectConn(nc), nil
}

type tcpConn = net.TCPConn

// directConn is a TCP connection with other system calls beneath Read and Write.
type directConn struct {
	*tcpConn
	readMu  sync.Mutex // held while r is used
	r       io.Reader
	writeMu sync.Mutex // held while w is used
	w       io.Writer
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
	return d.w.Write(p)
}

// TCPConn gives the connection beneath.
func (d *directConn) TCPConn() *net.TCPConn { return d.tcpConn }
