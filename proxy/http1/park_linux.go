package http1

import (
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// parker waits for the next byte of idle connections that gave up their
// goroutine, with an epoll instance of its own. A goroutine costs 2 to 8 KiB of
// stack, more than all else that an idle connection holds.
type parker struct {
	srv  *Server
	fd   int
	file *os.File // the same descriptor, in the runtime's poller
	raw  syscall.RawConn

	mu     sync.Mutex // guards what follows
	parked map[uint64]*conn
	last   uint64 // ids are never used twice, so that a late event finds nothing
}

func newParker(s *Server) (*parker, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd) // it was never used
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "epoll") // #nosec G115 -- descriptors are small
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close() // it was never used
		return nil, err
	}
	return &parker{srv: s, fd: fd, file: file, raw: raw, parked: make(map[uint64]*conn)}, nil
}

// add takes c in, unless the server is draining. From then on c belongs to
// whoever claims it.
func (p *parker) add(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.srv.draining.Load() {
		return false
	}
	p.last++
	op := unix.EPOLL_CTL_ADD
	if c.parkID != 0 {
		op = unix.EPOLL_CTL_MOD
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(uint32(p.last)), Pad: int32(p.last >> 32)} // #nosec G115 -- both halves are put together again
	var ctlErr error
	err := c.raw.Control(func(fd uintptr) { ctlErr = unix.EpollCtl(p.fd, op, int(fd), &event) }) // #nosec G115 -- descriptors are small
	if err != nil || ctlErr != nil {
		return false
	}
	c.parkID = p.last
	p.parked[p.last] = c
	return true
}

// claim takes a connection out, if it is still there.
func (p *parker) claim(id uint64) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.parked[id]
	delete(p.parked, id)
	return c
}

// wait is the parker's goroutine, until close. Each connection that has
// something to read gets a goroutine again.
func (p *parker) wait() {
	events := make([]unix.EpollEvent, 128)
	for {
		n := 0
		err := p.raw.Read(func(fd uintptr) bool {
			var err error
			n, err = unix.EpollWait(int(fd), events, 0) // #nosec G115 -- descriptors are small
			return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
		})
		if err != nil {
			return
		}
		for _, e := range events[:max(n, 0)] {
			if c := p.claim(uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32); c != nil { // #nosec G115 -- as add took them apart
				go c.resume()
			}
		}
	}
}

func (p *parker) close() { _ = p.file.Close() } // nothing is parked in it

// park gives an idle connection to the parker and reports whether it took it.
// If so the caller has nothing to do with it any more.
func (s *Server) park(c *conn) bool {
	s.parkMu.Lock()
	if s.parker == nil {
		p, err := newParker(s)
		if err != nil {
			s.parkMu.Unlock()
			return false
		}
		s.parker = p
		go p.wait()
	}
	p := s.parker
	s.parkMu.Unlock()
	return p.add(c)
}

// unpark gives a connection its goroutine back, if it is parked.
func (s *Server) unpark(c *conn) {
	s.parkMu.Lock()
	p := s.parker
	s.parkMu.Unlock()
	if p == nil {
		return
	}
	p.mu.Lock()
	id := c.parkID
	p.mu.Unlock()
	if p.claim(id) != nil {
		go c.resume()
	}
}

// closeParkerLocked ends the parker. There must be no connections: with mu held
// none can come meanwhile and be parked in what is closed, where nothing would
// ever wake it and Shutdown would wait for it.
func (s *Server) closeParkerLocked() {
	s.parkMu.Lock()
	p := s.parker
	s.parker = nil
	s.parkMu.Unlock()
	if p != nil {
		p.close()
	}
}
