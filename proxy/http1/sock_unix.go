//go:build unix

package http1

import (
	"errors"
	"net"
	"syscall"
)

// readNow reads from a non-blocking descriptor; again says that there is
// nothing yet.
func readNow(fd uintptr, p []byte) (n int, again bool, err error) {
	for {
		n, err = syscall.Read(int(fd), p) // #nosec G115 -- descriptors are small
		switch {
		case err == nil:
			return n, false, nil
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			return 0, true, nil
		}
		return 0, false, err
	}
}

// quiet reports whether a socket is open and has nothing to read: what an idle
// connection must be to be used again.
func quiet(fd uintptr) bool {
	var b [1]byte
	for {
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT) // #nosec G115 -- descriptors are small
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		return errors.Is(err, syscall.EAGAIN)
	}
}

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
