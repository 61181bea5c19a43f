//go:build !unix

package http1

import (
	"net"
	"syscall"
)

// readNow is not used on this system: socketOf gives no raw connection.
func readNow(uintptr, []byte) (n int, again bool, err error) { return 0, true, nil }

// quiet is not used on this system.
func quiet(uintptr) bool { return true }

// peerGone is not used on this system.
func peerGone(uintptr) bool { return false }

// socketOf gives the TCP connection that nc is, or whose bytes are those of nc.
func socketOf(nc net.Conn) (syscall.RawConn, *net.TCPConn) {
	switch v := nc.(type) {
	case *net.TCPConn:
		return nil, v
	case interface{ TCPConn() *net.TCPConn }:
		return nil, v.TCPConn()
	}
	return nil, nil
}
