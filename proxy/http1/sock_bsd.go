//go:build unix && !linux

package http1

import (
	"errors"
	"syscall"
)

// peerGone reports whether the other side closed or reset the connection; bytes
// that it sent before and that were not read yet hide that.
func peerGone(fd uintptr) bool {
	var b [1]byte
	n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return n == 0 && err == nil || err != nil && !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR)
}
