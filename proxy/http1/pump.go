package http1

import (
	"errors"
	"io"
	"sync/atomic"
	"time"
)

// pump sends the request's body while the answer is read.
type pump struct {
	done    chan struct{}
	running bool // startPump was called and stopPump has not waited
	ended   atomic.Bool
	last    atomic.Bool // the last piece of the body is being written
	heard   atomic.Bool // the final answer has begun: only a stall ends it now
	side    pumpSide
	err     error
	bytes   int64
}

type pumpSide uint8

const (
	pumpClient   pumpSide = iota // the client's side failed
	pumpUpstream                 // the upstream's side failed
)

func (f *forward) startPump() {
	p := &f.x.pump
	p.done, p.running = make(chan struct{}), true
	p.side, p.err, p.bytes = pumpClient, nil, 0
	p.ended.Store(false)
	p.last.Store(false)
	p.heard.Store(false)
	go f.x.pumpBody(f.pc, f.stall(), f.headerTimeout())
}

// pumping reports whether the request's body is still being sent.
func (f *forward) pumping() bool {
	p := &f.x.pump
	return p.running && !p.ended.Load()
}

// unsent reports whether part of the request's body is still to be sent. An
// answer may overtake the news that its last byte has left, so that is waited for.
func (f *forward) unsent() bool {
	if !f.pumping() {
		return false
	}
	if f.x.pump.last.Load() {
		wait := time.NewTimer(lastWriteTime)
		defer wait.Stop()
		select {
		case <-f.x.pump.done:
		case <-wait.C:
		}
	}
	return f.pumping()
}

// lastWriteTime is how long an answer waits for the write of the last piece of
// the request's body to return.
const lastWriteTime = 20 * time.Millisecond

// stopPump ends the sending of the request's body and waits for that. Unless it
// had ended by itself, the upstream's connection is closed by it.
func (f *forward) stopPump() {
	p := &f.x.pump
	if !p.running {
		return
	}
	if !p.ended.Load() {
		f.c.stopPump.Store(true)
		_ = closeNow(f.pc.nc) // it is out of step
		f.c.wake()
	}
	<-p.done
	p.running = false
	f.c.stopPump.Store(false)
	f.c.settle()
	f.result.RequestBytes += p.bytes
}

// pumpBody is the pump's goroutine. A failure on the client's side ends the
// exchange; one on the upstream's does not, because an answer may have come first.
//
// From its end on the answer's head is waited for. The answer's reader arms the same
// patience at the same time: it looks for the pump's end after it has done so, and the pump
// looks for the answer's beginning after that, so that the right one of them is the last.
func (x *Exchange) pumpBody(pc *upConn, stall, header time.Duration) {
	p, c := &x.pump, x.c
	defer close(p.done)
	p.side, p.err = x.pumpPieces(pc, stall)
	p.ended.Store(true) // before the answer's reader can notice what follows
	switch {
	case p.err == nil:
		c.arm(header)
		if p.heard.Load() {
			c.arm(stall)
		}
	case p.side == pumpClient:
		_ = closeNow(pc.nc) // the request cannot become whole any more
	}
}

func (x *Exchange) pumpPieces(pc *upConn, stall time.Duration) (pumpSide, error) {
	b, c := &x.body, x.c
	for !b.done {
		had := b.src.r
		piece, refusal := b.take()
		if refusal != nil {
			return pumpClient, refusal
		}
		if len(piece) > 0 {
			x.pump.last.Store(b.done)
			c.arm(stall)
			n, err := c.write(pc.wr, piece, stall)
			x.pump.bytes += int64(n)
			if err != nil {
				return pumpUpstream, err
			}
		}
		if b.done || b.src.r != had {
			continue
		}
		if b.form == bodyLength && b.left >= spliceBytes && c.tcp != nil && pc.tcp != nil {
			if ok, side, err := x.pumpSplice(pc, stall); err != nil {
				return side, err
			} else if ok {
				continue
			}
		}
		if err := x.fillBody(); err != nil {
			return pumpClient, err
		}
	}
	return pumpClient, nil
}

// pumpSplice has the kernel copy what is left of a request's body; ok is false
// if it cannot.
func (x *Exchange) pumpSplice(pc *upConn, stall time.Duration) (ok bool, side pumpSide, err error) {
	c, b := x.c, &x.body
	took, moved, ok, srcErr, dstErr := c.splice(pc.raw, c.raw, b.left, func(took int64) {
		x.pump.last.Store(took == b.left)
		c.arm(stall)
	})
	b.left -= took // also what the upstream did not take: it must not be waited for
	b.done = b.left == 0
	x.pump.bytes += moved
	switch {
	case errors.Is(srcErr, io.EOF):
		return ok, pumpClient, errBodyCut
	case srcErr != nil:
		return ok, pumpClient, srcErr
	}
	return ok, pumpUpstream, dstErr
}
