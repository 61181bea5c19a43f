//go:build !linux

package http1

// parker is not used on this system: idle connections keep their goroutine.
type parker struct{}

func (s *Server) park(*conn) bool    { return false }
func (s *Server) unpark(*conn)       {}
func (s *Server) closeParkerLocked() {}
