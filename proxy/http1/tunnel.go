package http1

import (
	"errors"
	"io"
	"net"
	"os"
)

// switchProtocols relays a 101 and then all bytes both ways, until both sides
// have ended (RFC 9110 §7.8).
func (f *forward) switchProtocols() error {
	x, pc := f.x, f.pc
	r := &x.resp
	if !f.upgrades() || !equalFoldBytes(r.upgrade, x.req.Upgrade) {
		return f.fail(StageHead, errSwitch)
	}
	f.result.Status = 101
	if f.edit.Answer != nil {
		f.edit.Answer(r, f.edit)
		if f.edit.bad {
			return f.fail(StageEdit, ErrField)
		}
	}
	head := pc.in.buffered()[:r.end]
	pc.in.r += r.end
	dst := f.composeAnswer(head, false)
	x.answered, x.started, x.close, f.result.HeadSent = true, true, true, true
	if err := f.toClient(dst); err != nil {
		return err
	}
	f.result.Upgraded = true
	f.c.phase.Store(phaseTunnel)
	err := f.tunnel()
	f.release(false)
	x.broken = true // what comes after is not HTTP
	return err
}

// tunnel copies both ways. The end of one direction closes the writing half of
// the other side; a failure ends both.
func (f *forward) tunnel() error {
	x, c, pc := f.x, f.c, f.pc
	c.srv.mem.put(x.out)
	x.out = nil
	c.arm(c.srv.timeouts.Tunnel) // not when the first byte moves: neither side may have anything to say for long
	up := make(chan error, 1)
	go f.tunnelUp(up)
	n, err := c.copyTunnel(c.nc, c.wr, pc.nc, &pc.in)
	f.result.ResponseBytes = n
	if err != nil {
		f.closeTunnel()
	}
	if upErr := <-up; err == nil {
		err = upErr
	}
	if err == nil {
		return nil
	}
	return f.fail(StageClient, err)
}

// tunnelUp is the goroutine of the direction from the client to the upstream.
func (f *forward) tunnelUp(done chan<- error) {
	n, err := f.c.copyTunnel(f.pc.nc, f.pc.wr, f.c.nc, &f.c.in)
	f.result.RequestBytes = n
	if err != nil {
		f.closeTunnel()
	}
	done <- err
}

// closeTunnel makes both directions end.
func (f *forward) closeTunnel() {
	_ = closeNow(f.c.nc)  // it has failed
	_ = closeNow(f.pc.nc) // likewise
}

// copyTunnel copies src, beginning with what in holds of it, to dst, by w, until
// its end.
func (c *conn) copyTunnel(dst net.Conn, w io.Writer, src net.Conn, in *stream) (int64, error) {
	var total int64
	send := func(p []byte) error {
		c.arm(c.srv.timeouts.Tunnel)
		n, err := c.write(w, p, c.srv.timeouts.Tunnel)
		total += int64(n)
		return err
	}
	if !in.empty() {
		if err := send(in.buffered()); err != nil {
			return total, err
		}
		in.r = in.w
	}
	r := c.newLazyReader(src)
	for {
		blk, n, err := r.read()
		if n > 0 {
			err = send(blk.data[:n])
			c.srv.mem.put(blk)
			if err != nil {
				return total, err
			}
			continue
		}
		switch {
		case errors.Is(err, io.EOF):
			return total, closeWriteOrAll(dst)
		case errors.Is(err, os.ErrDeadlineExceeded) && c.spurious(err):
		default:
			return total, err
		}
	}
}

// closeWriteOrAll ends the writing half, or the whole connection where it has no
// halves. A side that is gone already is no failure.
func closeWriteOrAll(nc net.Conn) error {
	if _, ok := nc.(interface{ CloseWrite() error }); !ok {
		return closeNow(nc)
	}
	_ = closeWrite(nc) // a connection that is gone has ended too
	return nil
}

// lazyReader reads into a block that it holds only while there is something to
// read, where the connection lets it.
type lazyReader struct {
	c    *conn
	nc   net.Conn
	wait func(fn func(fd uintptr) bool) error
	blk  *block
	n    int
	err  error
	fn   func(fd uintptr) bool
}

func (c *conn) newLazyReader(nc net.Conn) *lazyReader {
	r := &lazyReader{c: c, nc: nc}
	if tcp, ok := nc.(*net.TCPConn); ok {
		if raw, _ := socketOf(tcp); raw != nil {
			r.wait = raw.Read
			r.fn = r.ready
		}
	}
	return r
}

// read gives a block with n bytes, which the caller puts back if n is not 0.
func (r *lazyReader) read() (*block, int, error) {
	r.blk, r.n, r.err = nil, 0, nil
	if r.wait == nil {
		r.blk = r.c.srv.mem.get(bodyBlock)
		r.n, r.err = r.nc.Read(r.blk.data)
		if r.n == 0 {
			r.c.srv.mem.put(r.blk)
		}
		return r.blk, r.n, r.err
	}
	if err := r.wait(r.fn); err != nil {
		return nil, 0, err
	}
	if r.n == 0 && r.err == nil {
		return nil, 0, io.EOF
	}
	return r.blk, r.n, r.err
}

func (r *lazyReader) ready(fd uintptr) bool {
	blk := r.c.srv.mem.get(bodyBlock)
	n, again, err := readNow(fd, blk.data)
	if n <= 0 {
		r.c.srv.mem.put(blk)
		r.err = err
		return !again
	}
	r.blk, r.n = blk, n
	return true
}
