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

// socketOf gives the TCP connection that nc is, if it is one.
func socketOf(nc net.Conn) (syscall.RawConn, *net.TCPConn) {
	tcp, _ := nc.(*net.TCPConn)
	return nil, tcp
}
