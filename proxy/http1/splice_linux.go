package http1

import (
	"errors"
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

// pipeBytes is the size that a pipe is asked to have, and most that is moved
// at once.
const pipeBytes = 1 << 20

// maxIdlePipes bounds the pipes a server keeps while it has connections.
const maxIdlePipes = 16

// pipe is what the kernel moves bytes through on their way from one socket to
// another.
type pipe struct {
	r, w int
	held int // bytes inside
}

// takePipe lends an empty pipe, or nil where there can be none.
func (s *Server) takePipe() *pipe {
	s.pipeMu.Lock()
	if n := len(s.pipes); n > 0 {
		p := s.pipes[n-1]
		s.pipes = s.pipes[:n-1]
		s.pipeMu.Unlock()
		return p
	}
	s.pipeMu.Unlock()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil
	}
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeBytes) // #nosec G115 -- descriptors are small; a smaller pipe will do
	return &pipe{r: fds[0], w: fds[1]}
}

// putPipe takes a pipe back.
func (s *Server) putPipe(p *pipe) {
	s.pipeMu.Lock()
	if p.held == 0 && len(s.pipes) < maxIdlePipes && !s.draining.Load() {
		s.pipes = append(s.pipes, p)
		p = nil
	}
	s.pipeMu.Unlock()
	if p != nil {
		p.close()
	}
}

// closePipes closes the pipes that are not lent.
func (s *Server) closePipes() {
	s.pipeMu.Lock()
	pipes := s.pipes
	s.pipes = nil
	s.pipeMu.Unlock()
	for _, p := range pipes {
		p.close()
	}
}

func (p *pipe) close() {
	_ = unix.Close(p.r) // nothing is kept in it
	_ = unix.Close(p.w) // likewise
}

// splice moves n bytes from socket to socket inside the kernel, as long as each
// side makes progress within the time that step gives it. ok is false, and nothing was moved, where
// that cannot be done. took counts what left src, moved what dst took of that. step
// is called before each step with what was taken so far: with n, the last is sent.
func (c *conn) splice(dst, src syscall.RawConn, n int64, step func(took int64)) (took, moved int64, ok bool, srcErr, dstErr error) {
	p := c.srv.takePipe()
	if p == nil {
		return 0, 0, false, nil, nil
	}
	defer c.srv.putPipe(p)
	for took < n {
		step(took)
		if srcErr = c.spliceStep(src.Read, func(fd uintptr) (int64, error) {
			return unix.Splice(int(fd), nil, p.w, nil, int(min(n-took, pipeBytes)), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK) // #nosec G115 -- descriptors are small
		}, &p.held); srcErr != nil {
			return took, moved, true, srcErr, nil
		}
		took += int64(p.held)
		for p.held > 0 {
			step(took)
			var out int
			if dstErr = c.spliceStep(dst.Write, func(fd uintptr) (int64, error) {
				return unix.Splice(p.r, nil, int(fd), nil, p.held, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK) // #nosec G115 -- descriptors are small
			}, &out); dstErr != nil {
				return took, moved, true, nil, dstErr
			}
			p.held -= out
			moved += int64(out)
		}
	}
	return took, moved, true, nil, nil
}

// spliceStep waits until one call moves something, and says how much.
func (c *conn) spliceStep(wait func(func(uintptr) bool) error, call func(fd uintptr) (int64, error), moved *int) error {
	var n int64
	var callErr error
	for {
		err := wait(func(fd uintptr) bool {
			for {
				n, callErr = call(fd)
				if !errors.Is(callErr, unix.EINTR) {
					break
				}
			}
			return !errors.Is(callErr, unix.EAGAIN)
		})
		switch {
		case err != nil:
			if c.spurious(err) {
				continue
			}
			return err
		case callErr != nil:
			return callErr
		case n == 0:
			return io.EOF
		}
		*moved = int(n)
		return nil
	}
}
