//go:build !linux

package http1

import "syscall"

// pipe is not used on this system.
type pipe struct{}

func (s *Server) closePipes() {}

// splice does nothing on this system.
func (c *conn) splice(_, _ syscall.RawConn, _ int64, _ func(int64)) (took, moved int64, ok bool, srcErr, dstErr error) {
	return 0, 0, false, nil, nil
}
