package http1

import (
	"errors"
	"io"
	"os"
	"strconv"
	"time"
)

// answerRoom is kept free in front of an answer, so that its edited head can be
// put before the body without moving that.
const answerRoom = 1 << 10

// readAnswerHead reads until the head of an answer is complete.
func (f *forward) readAnswerHead() error {
	x, pc := f.x, f.pc
	x.resp.reset()
	if err := f.unheard; err != nil {
		f.unheard = nil
		return err
	}
	_ = f.answerSpace()
	in := &pc.in
	f.armHead()
	for {
		if !in.empty() {
			done, err := x.resp.parse(in.buffered(), pc.limits.HeaderBytes, pc.limits.HeaderCount)
			if err != nil {
				return err
			}
			if done {
				return nil
			}
		}
		if in.w == len(in.blk.data) {
			f.growAnswer()
		}
		n, err := f.c.read(pc.rd, in.blk.data[in.w:])
		if err != nil {
			return err
		}
		in.w += n
		f.heard = true
	}
}

// answerSpace gives room to read the beginning of an answer into.
func (f *forward) answerSpace() []byte {
	in := &f.pc.in
	if in.blk == nil {
		*in = stream{blk: f.c.srv.mem.get(bodyBlock), base: answerRoom, r: answerRoom, w: answerRoom}
	}
	return in.blk.data[in.w:]
}

// armHead sets how long the answer's head is waited for. While the request's body
// is still being sent, only a stall counts.
func (f *forward) armHead() {
	if f.pumping() {
		f.c.arm(f.stall())
		if f.pumping() {
			return
		}
	}
	f.c.arm(f.headerTimeout())
}

func (f *forward) headerTimeout() time.Duration {
	return orDuration(f.edit.HeaderTimeout, orDuration(f.up.HeaderTimeout, 30*time.Second))
}

// growAnswer moves an answer's head to the front of its block, or into a larger one.
func (f *forward) growAnswer() {
	in := &f.pc.in
	old := in.blk
	if in.r == answerRoom {
		in.blk = f.c.srv.mem.get(max(largeBlock, f.pc.limits.HeaderBytes+bodyBlock))
	}
	in.w = answerRoom + copy(in.blk.data[answerRoom:], old.data[in.r:in.w])
	in.r, in.base = answerRoom, answerRoom
	if in.blk != old {
		f.c.srv.mem.put(old)
	}
	f.x.resp.reset() // its slices pointed to where the bytes were
}

// relayInterim sends a 1xx answer on (RFC 9110 §15.2), unless the client is too
// old or did not ask for it.
func (f *forward) relayInterim() error {
	x, in := f.x, &f.pc.in
	r := &x.resp
	head := in.buffered()[:r.end]
	in.r += r.end
	if x.req.Minor == 0 || r.Status == 100 && (!x.req.ExpectContinue || x.invited) {
		return nil
	}
	x.invited = x.invited || r.Status == 100
	_ = r.dropNamed(nil, false) // it fails only where it is asked to refuse
	if e := f.edit; e.Answer != nil {
		added := len(e.answerAdded)
		e.Answer(r, e)
		e.answerAdded = e.answerAdded[:added]
		r.drop(e.answerDrop)
		e.answerDrop = e.answerDrop[:0]
	}
	dst := appendStatusLine(f.buffer(r.end), r, head)
	for _, l := range r.lines {
		if l.kind == kindOther && !l.drop || l.kind == kindDate {
			dst = append(dst, head[l.start:l.end]...)
		}
	}
	x.send(append(dst, "\r\n"...))
	if x.broken {
		return f.fail(StageClient, ErrClientGone)
	}
	return nil
}

// buffer gives the empty out buffer with room for a head of n bytes and more.
// The request in it has been sent.
func (f *forward) buffer(n int) []byte {
	x := f.x
	if x.out == nil || len(x.out.data) < n+512 {
		f.c.srv.mem.put(x.out)
		x.out = f.c.srv.mem.get(max(n+512, bodyBlock))
	}
	return x.out.data[:0]
}

// appendStatusLine writes the status line with our version.
func appendStatusLine(dst []byte, r *Response, head []byte) []byte {
	dst = append(dst, "HTTP/1.1"...)
	dst = append(dst, head[8:12]...)
	if head[12] == ' ' {
		return append(dst, head[12:r.firstLF]...)
	}
	return append(dst, " \r\n"...)
}

// relay sends the final answer on.
func (f *forward) relay() error {
	x, pc := f.x, f.pc
	r := &x.resp
	f.result.Status = r.Status
	x.pump.heard.Store(true)
	if f.edit.Answer != nil {
		f.edit.Answer(r, f.edit)
		if f.edit.bad {
			return f.fail(StageEdit, ErrField)
		}
	}
	form := bodyUntilClose
	switch {
	case r.bodyless(x.req.Method):
		form = bodyNone
	case r.Chunked:
		form = bodyChunked
	case r.ContentLength >= 0:
		form = bodyLength
	}
	if f.unsent() || !x.canDrain() {
		x.close = true // an early answer ends the connection (RFC 9112 §9.3)
	}
	rechunk := form == bodyUntilClose && x.req.Minor == 1
	if form == bodyUntilClose && !rechunk || form == bodyChunked && x.req.Minor == 0 {
		x.close = true // the end of the connection is the end of the answer
	}
	head := pc.in.buffered()[:r.end]
	dst := f.composeAnswer(head, rechunk)
	pc.in.r += r.end
	x.answer.begin(&pc.in, form, r.ContentLength, &pc.limits)
	x.answer.keepTrailer = f.edit.KeepTrailer
	x.answer.decode = form == bodyChunked && x.req.Minor == 0
	x.answered, x.started, f.result.HeadSent = true, true, true
	if err := f.sendHead(dst, rechunk); err != nil {
		return err
	}
	if err := f.relayBody(rechunk); err != nil {
		x.broken = true
		f.c.breakOff()
		return err
	}
	return f.complete(form)
}

// complete decides what becomes of the upstream's connection after a whole answer.
func (f *forward) complete(form bodyForm) error {
	r := &f.x.resp
	if !f.whole {
		if f.unsent() {
			f.x.close = true
		}
		f.stopPump()
		f.whole = f.x.pump.err == nil && f.x.body.done
	}
	reuse := f.whole && form != bodyUntilClose && r.Minor == 1 && !r.options.close && f.pc.in.empty()
	f.release(reuse)
	return nil
}

// drop marks the lines that are not sent on.
func (r *Response) drop(lines []int) {
	for _, i := range lines {
		if i >= 0 && i < len(r.lines) {
			r.lines[i].drop = true
		}
	}
}

// composeAnswer writes the edited head of the answer into the out buffer.
func (f *forward) composeAnswer(head []byte, rechunk bool) []byte {
	x, e := f.x, f.edit
	r := &x.resp
	if r.options.other {
		_ = r.dropNamed(nil, false) // it fails only where it is asked to refuse
	}
	r.drop(e.answerDrop)
	dst := appendStatusLine(f.buffer(r.end+len(e.answerAdded)), r, head)
	dated := false
	run := r.firstLF // kept lines that follow each other are copied at once
	for i := range r.lines {
		l := &r.lines[i]
		if f.keepsAnswerLine(l) {
			dated = dated || l.kind == kindDate
			continue
		}
		dst = append(dst, head[run:l.start]...)
		run = int(l.end)
	}
	dst = append(dst, head[run:r.end-2]...)
	if !dated {
		dst = append(dst, f.c.srv.date.Load().line...)
	}
	if rechunk {
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
	}
	dst = append(dst, e.answerAdded...)
	if r.Status == 101 {
		dst = append(dst, "Connection: upgrade\r\n"...)
	} else {
		dst = x.appendConnection(dst)
	}
	return append(dst, "\r\n"...)
}

func (f *forward) keepsAnswerLine(l *line) bool {
	switch l.kind {
	case kindConnection, kindHopByHop, kindTE:
		return false
	case kindUpgrade:
		return f.x.resp.Status == 101
	case kindTransferEncoding:
		return f.x.req.Minor == 1
	case kindContentLength:
		return f.x.resp.Status != 204 && f.x.resp.Status >= 200
	case kindOther, kindDate, kindExpect, kindHost:
	}
	return !l.drop
}

// sendHead sends the head with the part of the body that is here. The head is
// put before that where there is room; else both are put into the out buffer.
func (f *forward) sendHead(dst []byte, rechunk bool) error {
	x := f.x
	if rechunk || x.answer.done || x.answer.src.empty() {
		if x.answer.done {
			f.ending()
		}
		return f.toClient(dst)
	}
	in := x.answer.src
	at := in.r
	piece, err := x.answer.take()
	if err != nil {
		f.result.HeadSent, x.answered, x.started = false, false, false // nothing has left yet
		return f.fail(StageHead, asAnswer(err))
	}
	f.result.ResponseBytes += int64(len(piece))
	if x.answer.done {
		f.ending()
	}
	if start := at - len(dst); start >= 0 {
		copy(in.blk.data[start:], dst)
		return f.toClient(in.blk.data[start : at+len(piece)])
	}
	if len(dst)+len(piece) <= cap(dst) {
		return f.toClient(append(dst, piece...))
	}
	if err := f.toClient(dst); err != nil {
		return err
	}
	return f.toClient(piece)
}

// ending tells the caller that what is sent now is the last of the answer.
func (f *forward) ending() {
	if tell := f.edit.Ending; tell != nil {
		f.edit.Ending = nil
		tell()
	}
}

func (f *forward) toClient(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	f.c.arm(f.stall())
	if _, err := f.c.write(f.c.wr, p, f.stall()); err != nil {
		f.x.broken = true
		return f.fail(StageClient, err)
	}
	return nil
}

// relayBody sends the rest of the answer's body on.
func (f *forward) relayBody(rechunk bool) error {
	x := f.x
	b := &x.answer
	for !b.done {
		had := b.src.r
		piece, refusal := b.take()
		if refusal != nil {
			return f.fail(StageBody, asAnswer(refusal))
		}
		if b.done {
			f.ending()
		}
		if len(piece) > 0 {
			f.result.ResponseBytes += int64(len(piece))
			if rechunk {
				piece = x.asChunk(piece)
			}
			if err := f.toClient(piece); err != nil {
				return err
			}
		}
		if b.done || b.src.r != had {
			continue
		}
		if err := f.moreAnswer(); err != nil {
			return err
		}
	}
	f.ending() // where there was no last piece
	if rechunk {
		return f.toClient([]byte("0\r\n\r\n"))
	}
	return nil
}

// asChunk wraps data into one chunk, in the out buffer.
func (x *Exchange) asChunk(data []byte) []byte {
	dst := strconv.AppendInt(x.outBuffer(), int64(len(data)), 16)
	dst = append(dst, "\r\n"...)
	dst = append(dst, data...)
	return append(dst, "\r\n"...)
}

// spliceBytes is from where on the kernel is asked to copy by itself.
const spliceBytes = 64 << 10

// moreAnswer reads more of the answer's body, or has the kernel copy it.
func (f *forward) moreAnswer() error {
	x, pc := f.x, f.pc
	b := &x.answer
	f.c.srv.mem.put(x.out) // a stream may last; chunks take another
	x.out, x.request = nil, nil
	f.c.arm(f.stall())
	if b.form == bodyLength && b.left >= spliceBytes && pc.tcp != nil && f.c.tcp != nil {
		if ok, err := f.spliceAnswer(); ok {
			return err
		}
	}
	if b.left >= largeBlock && len(pc.in.blk.data) < largeBlock {
		f.c.srv.mem.put(pc.in.blk)
		pc.in = stream{blk: f.c.srv.mem.get(largeBlock)}
	}
	space := b.src.space()
	if len(space) == 0 { // only a trailer section is held back
		old := pc.in.blk
		if !pc.in.grow(&f.c.srv.mem, pc.limits.HeaderBytes) {
			return f.fail(StageBody, asAnswer(errHeaderBytes))
		}
		f.c.srv.mem.put(old)
		space = pc.in.space()
	}
	n, err := f.c.read(pc.rd, space)
	b.src.w += n
	if errors.Is(err, io.EOF) {
		if err = b.ended(); err == nil {
			return nil
		}
	}
	if err != nil {
		return f.failAnswer(err)
	}
	return nil
}

// failAnswer says what it means that the answer's body ends early. If the request's body
// failed first, the client is the cause, as in failHead.
func (f *forward) failAnswer(err error) error {
	p := &f.x.pump
	byItself := p.running && (p.ended.Load() || errors.Is(err, os.ErrDeadlineExceeded))
	f.stopPump()
	if byItself && p.err != nil && p.side == pumpClient {
		return f.fail(StageClient, p.err)
	}
	return f.fail(StageBody, err)
}

// spliceAnswer has the kernel copy the rest of the answer's body; ok is false if
// it cannot.
func (f *forward) spliceAnswer() (ok bool, err error) {
	b := &f.x.answer
	n := b.left
	if f.edit.Ending != nil {
		n-- // the last byte waits until the caller was told
	}
	took, moved, ok, srcErr, dstErr := f.c.splice(f.c.raw, f.pc.raw, n, func(int64) { f.c.arm(f.stall()) })
	b.left -= took
	b.done = b.left == 0
	f.result.ResponseBytes += moved
	switch {
	case errors.Is(srcErr, io.EOF):
		return ok, f.failAnswer(io.ErrUnexpectedEOF)
	case srcErr != nil:
		return ok, f.failAnswer(srcErr)
	case dstErr != nil:
		return ok, f.fail(StageClient, dstErr)
	}
	return ok, nil
}
