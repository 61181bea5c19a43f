package http1

import (
	"io"
	"net"
	"syscall"
	"unsafe"
)

// The reads and writes here do not tell the scheduler that a system call begins.
// They are made on non-blocking sockets, so there is no waiting in them that it
// would have to fill. Telling it costs a fifth of a request on a busy machine,
// where the scheduler takes the processor away from calls that last longer than
// 20 µs and other threads are woken to take it up.
//
// They are send and recv, which lead to the socket; read and write come to it by
// way of the file, which costs half a microsecond each.

// rawReader reads a TCP socket. It is for one goroutine at a time.
type rawReader struct {
	raw syscall.RawConn
	p   []byte
	n   int
	err error
	fn  func(fd uintptr) bool
}

// rawWriter writes to a TCP socket. It is for one goroutine at a time.
type rawWriter struct {
	raw syscall.RawConn
	p   []byte
	n   int
	err error
	fn  func(fd uintptr) bool
}

// rawAsker asks on an idle TCP socket, and hears the beginning of the answer, in one
// visit of its descriptor. The visit begins with the poller forgetting what it said of
// the socket before, and the look then finds nothing to read. So whatever comes later
// is told, and the answer is waited for without a read in vain first. It is for one
// goroutine at a time.
type rawAsker struct {
	raw syscall.RawConn
	q   question
	r   reply
	fn  func(fd uintptr) bool
}

// newAsker returns what asks on the connection.
func newAsker(raw syscall.RawConn) asker {
	a := &rawAsker{raw: raw}
	a.fn = a.try
	return a
}

func (a *rawAsker) ask(q question) reply {
	a.q, a.r = q, reply{}
	giveWay()
	if err := a.raw.Read(a.fn); err != nil {
		a.r.err = err
	}
	a.q = question{}
	return a.r
}

func (a *rawAsker) try(fd uintptr) bool {
	if !a.r.waited {
		return a.tryAsking(fd)
	}
	n, again, err := readNow(fd, a.q.answer)
	if again {
		return false
	}
	if n == 0 && err == nil {
		err = io.EOF
	}
	a.r.read, a.r.err = n, err
	return true
}

// tryAsking reports whether the visit is over.
func (a *rawAsker) tryAsking(fd uintptr) bool {
	if !quiet(fd) {
		a.r.err = errNotQuiet
		return true
	}
	for a.r.sent < len(a.q.request) {
		n, again, err := writeNow(fd, a.q.request[a.r.sent:])
		a.r.sent += n
		if again || err != nil {
			a.r.err = err
			return true
		}
	}
	if a.q.answer == nil {
		return true
	}
	a.r.waited = true
	a.q.sent.arm(a.q.patience)
	return false
}

// directIO gives the fastest way to read and write nc.
func directIO(nc net.Conn, tcp *net.TCPConn, raw syscall.RawConn) (io.Reader, io.Writer) {
	if tcp == nil || raw == nil {
		return nc, nc
	}
	r, w := &rawReader{raw: raw}, &rawWriter{raw: raw}
	r.fn, w.fn = r.try, w.try
	return r, w
}

func (r *rawReader) Read(p []byte) (int, error) {
	r.p, r.n, r.err = p, 0, nil
	err := r.raw.Read(r.fn)
	r.p = nil
	switch {
	case err != nil:
		return 0, err
	case r.n == 0 && r.err == nil:
		return 0, io.EOF
	}
	return r.n, r.err
}

func (r *rawReader) try(fd uintptr) bool {
	n, again, err := readNow(fd, r.p)
	r.n, r.err = n, err
	return !again
}

// Write writes all of p, or says how much of it was written.
func (w *rawWriter) Write(p []byte) (int, error) {
	w.p, w.n, w.err = p, 0, nil
	giveWay()
	err := w.raw.Write(w.fn)
	w.p = nil
	if err == nil {
		err = w.err
	}
	return w.n, err
}

func (w *rawWriter) try(fd uintptr) bool {
	for w.n < len(w.p) {
		n, again, err := writeNow(fd, w.p[w.n:])
		w.n += n
		if again {
			return false
		}
		if err != nil {
			w.err = err
			return true
		}
	}
	return true
}

// writeNow writes to a non-blocking descriptor; again says that it takes nothing now.
func writeNow(fd uintptr, p []byte) (n int, again bool, err error) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), syscall.MSG_NOSIGNAL, 0, 0) // #nosec G103 -- the kernel reads the slice during the call
		switch errno {
		case 0:
			return int(n), false, nil // #nosec G115 -- at most len(p)
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, true, nil
		default:
			return 0, false, errno
		}
	}
}

// readNow reads from a non-blocking descriptor; again says that there is
// nothing yet.
func readNow(fd uintptr, p []byte) (n int, again bool, err error) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0) // #nosec G103 -- the kernel fills the slice during the call
		switch errno {
		case 0:
			return int(n), false, nil // #nosec G115 -- at most len(p)
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, true, nil
		default:
			return 0, false, errno
		}
	}
}

// quiet reports whether a socket is open and has nothing to read: what an idle
// connection must be to be used again.
func quiet(fd uintptr) bool {
	var b byte
	for {
		_, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b)), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0) // #nosec G103 -- the kernel fills one byte during the call
		if errno != syscall.EINTR {
			return errno == syscall.EAGAIN
		}
	}
}

// giveWay lets the goroutines that wait for this processor go first, and comes back
// when each of them has waited for something. The engine calls it where it is about to
// write, and after it, where it is about to look for the next request.
//
// So what arrived together is read and judged together and then written together. A
// write wakes whoever waits at the other end; one that comes while that one is still
// at work on the last wakes nobody, and waking is the dearest part of a write, most of
// all in a virtual machine. Under load this takes a fifth off the cost of a request
// (docs/http1.md); where nobody waits it costs some 100 ns.
//
// runtime.Gosched is not it: it puts the goroutine where all processors look, behind
// one lock, and wakes another thread to take it up. With few requests at a time that
// costs half as much again as the whole request.
//
// The runtime keeps this name for packages that link to it (go.dev/issue/67401).
//
//go:linkname giveWay runtime.goyield
func giveWay()
