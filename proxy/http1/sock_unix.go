//go:build unix

package http1

import (
	"net"
	"syscall"
)

// socketOf gives the raw connection and the TCP connection that nc is, or is
// wrapped around; nil where there is none.
func socketOf(nc net.Conn) (syscall.RawConn, *net.TCPConn) {
	for nc != nil {
		switch v := nc.(type) {
		case *net.TCPConn:
			raw, err := v.SyscallConn()
			if err != nil {
				return nil, nil
			}
			return raw, v
		case interface{ TCPConn() *net.TCPConn }:
			nc = v.TCPConn()
		case interface{ NetConn() net.Conn }:
			nc = v.NetConn()
		case syscall.Conn: // a Unix socket
			raw, err := v.SyscallConn()
			if err != nil {
				return nil, nil
			}
			return raw, nil
		default:
			return nil, nil
		}
	}
	return nil, nil
}
