//go:build unix

package http1

import (
	"net"
	"syscall"
)

// socketOf gives the socket that nc is made of, to ask what has become of the
// peer, and the TCP connection whose bytes are those of nc; nil where there is
// none.
func socketOf(nc net.Conn) (syscall.RawConn, *net.TCPConn) {
	switch v := nc.(type) {
	case *net.TCPConn:
		return rawOf(v), v
	case interface{ TCPConn() *net.TCPConn }:
		if tcp := v.TCPConn(); tcp != nil {
			return rawOf(tcp), tcp
		}
	case interface{ NetConn() net.Conn }: // TLS, or another layer that changes the bytes
		raw, _ := socketOf(v.NetConn())
		return raw, nil
	case syscall.Conn: // a Unix socket
		return rawOf(v), nil
	}
	return nil, nil
}

func rawOf(c syscall.Conn) syscall.RawConn {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}
