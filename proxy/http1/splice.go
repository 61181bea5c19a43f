package http1

import (
	"errors"
	"io"
	"net"
	"time"
)

// spliced counts what is written through ReadFrom, and tells errors of the two
// sides apart.
func spliceSome(dst, src *net.TCPConn, n int64) (moved int64, srcErr, dstErr error) {
	r := &io.LimitedReader{R: src, N: n}
	moved, err := dst.ReadFrom(r)
	switch {
	case err == nil && moved < n:
		return moved, io.EOF, nil
	case err == nil:
		return moved, nil, nil
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "read" {
		return moved, err, nil
	}
	return moved, nil, err
}

// splice moves up to n bytes of an answer from socket to socket in the kernel.
func (f *forward) splice(dst, src *net.TCPConn, n int64) (int64, error) {
	c := f.c
	c.splicing.Store(true)
	defer c.splicing.Store(false)
	var total int64
	for total < n {
		c.arm(f.stall())
		moved, srcErr, dstErr := spliceSome(dst, src, min(n-total, spliceChunk))
		total += moved
		switch {
		case srcErr == nil && dstErr == nil, srcErr != nil && c.spurious(srcErr), dstErr != nil && c.spurious(dstErr):
		case srcErr != nil:
			if errors.Is(srcErr, io.EOF) {
				srcErr = io.ErrUnexpectedEOF
			}
			return total, f.fail(StageBody, srcErr)
		default:
			return total, f.fail(StageClient, dstErr)
		}
	}
	return total, nil
}

// pumpSplice moves what is left of a request's body in the kernel.
func (x *Exchange) pumpSplice(pc *upConn, stall time.Duration) (pumpSide, error) {
	c, b := x.c, &x.body
	c.splicing.Store(true)
	defer c.splicing.Store(false)
	for b.left > 0 {
		c.arm(stall)
		moved, srcErr, dstErr := spliceSome(pc.tcp, c.tcp, min(b.left, spliceChunk))
		b.left -= moved
		x.pump.bytes += moved
		switch {
		case srcErr == nil && dstErr == nil, srcErr != nil && c.spurious(srcErr), dstErr != nil && c.spurious(dstErr):
		case errors.Is(srcErr, io.EOF):
			return pumpClient, errBodyCut
		case srcErr != nil:
			return pumpClient, srcErr
		default:
			return pumpUpstream, dstErr
		}
	}
	b.done = true
	return pumpClient, nil
}
