package main

import (
	"crypto/tls"
	"net"

	"golang.org/x/sys/unix"
)

// wakeFor has whoever reads conn woken only for so many bytes, or the end, and reports
// whether it could: else each packet of a stream wakes it, which costs a processor more
// than the copying. What is there is read at any time (tcp(7), SO_RCVLOWAT).
func wakeFor(conn net.Conn, bytes int) bool {
	if t, is := conn.(*tls.Conn); is {
		conn = t.NetConn()
	}
	tcp, is := conn.(*net.TCPConn)
	if !is {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, bytes)
	})
	return err == nil && failed == nil
}
