package http1

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// Stage is where forwarding failed.
type Stage uint8

// The stages, in the order in which they are reached.
const (
	StageNone    Stage = iota // it did not fail
	StageEdit                 // the edit is malformed, or the exchange is answered already: a mistake of the caller
	StageRequest              // the request is at fault: the error is a *ProtocolError with the status to answer
	StagePool                 // MaxConns connections are in use
	StageDial                 // no connection
	StageWrite                // the request could not be written
	StageHead                 // no answer, or a malformed head
	StageBody                 // the answer broke off, or its framing is malformed
	StageClient               // the client went away or stopped reading
	StageCut                  // a Cutter, or Server.Close
)

// String names the stage, for metrics.
func (s Stage) String() string {
	names := [...]string{"none", "edit", "request", "pool", "dial", "write", "head", "body", "client", "cut"}
	if int(s) < len(names) {
		return names[s]
	}
	return "unknown"
}

// Result is what became of a forwarded request.
type Result struct {
	Status        int   // of the final answer; 0 if none came
	RequestBytes  int64 // of the body, as sent to the upstream
	ResponseBytes int64 // of the body, as sent to the client
	Stage         Stage // where it failed; StageNone: it did not
	Timeout       bool  // it failed because patience ended
	Sent          bool  // bytes of the request went to the upstream
	HeadSent      bool  // the client got a final answer's head; nothing else can be answered
	Retried       bool  // an idle connection had died; a new one was used
	Again         bool  // nobody acted on the request: Forward may be called again
	Upgraded      bool  // the connections switched to another protocol, and that has ended
}

// AnswerStatus is the status to answer a failed Forward with: 413, 400 and the
// like where the request was at fault, 502, 503, 504 where the upstream was; 0
// where nothing can or need be answered.
func (r Result) AnswerStatus(err error) int {
	if err == nil || r.HeadSent {
		return 0
	}
	switch r.Stage {
	case StageRequest:
		if refusal, ok := errors.AsType[*ProtocolError](err); ok {
			return refusal.Status
		}
		return 400
	case StagePool:
		return 503
	case StageDial, StageWrite, StageHead, StageBody:
		if r.Timeout {
			return 504
		}
		return 502
	case StageEdit:
		return 500
	case StageNone, StageClient, StageCut:
	}
	return 0
}

var errSlowBody = &ProtocolError{408, "body_timeout", "the request body stopped arriving (RFC 9110 §15.5.9)"}

// answerRoom is kept free in front of an answer, so that its edited head can be
// put before the body without moving that.
const answerRoom = 1 << 10

// Forward sends the request, as edit changes it, to the upstream, and the answer
// to the client. A nil edit is the zero one. It returns when both are complete
// or have failed; the error then says why and the Result where. If no head was
// sent, the caller answers by itself, with Respond.
//
// A request that failed on an idle connection that had died meanwhile is sent
// once more on a new one, if nothing of it was sent, or if its method is
// idempotent, it was sent whole, and no byte of an answer came (RFC 9112 §9.3.1).
//
// Where the Result says Again, the same holds for the upstream as a whole: unless
// the caller answers, it may call Forward once more, for another upstream. The
// edit is then the one of the first call.
func (x *Exchange) Forward(up *Upstream, edit *Edit) (Result, error) {
	if edit == nil {
		edit = &Edit{}
	}
	f := &x.fwd
	if f.result.Again && !x.answered {
		f.up, f.pc = up, nil
		f.result = Result{RequestBytes: f.result.RequestBytes}
		err := f.send()
		return f.result, err
	}
	*f = forward{x: x, c: x.c, edit: edit, up: up}
	err := f.prepare()
	if err == nil {
		err = f.send()
	}
	return f.result, err
}

// forward is one call of Forward.
type forward struct {
	x      *Exchange
	c      *conn
	edit   *Edit
	up     *Upstream
	pc     *upConn
	whole  bool // the request was sent with its whole body
	heard  bool // a byte of an answer came
	result Result
}

// send sends the prepared request and relays the answer.
func (f *forward) send() error {
	err := f.connect(true)
	if err == nil {
		if err = f.exchange(); err != nil {
			f.release(false)
		}
	}
	f.result.Again = err != nil && f.again()
	return err
}

// again reports whether the failed request is still here as a whole, and either
// reached nobody or may reach somebody twice.
func (f *forward) again() bool {
	switch f.result.Stage {
	case StagePool, StageDial:
		return true
	case StageWrite:
		return !f.result.Timeout && (!f.result.Sent || f.idempotent())
	case StageHead:
		return !f.result.Timeout && !f.heard && f.whole && f.idempotent()
	case StageNone, StageEdit, StageRequest, StageBody, StageClient, StageCut:
	}
	return false
}

// prepare checks what is asked for, and puts the request's head together with as
// much of its body as there is.
func (f *forward) prepare() error {
	x, e := f.x, f.edit
	if x.answered || x.body.decode {
		return f.fail(StageEdit, ErrAnswered)
	}
	if !e.valid(len(x.req.fields)) {
		return f.fail(StageEdit, ErrField)
	}
	if e.MaxBody > 0 && x.req.ContentLength > e.MaxBody {
		return f.fail(StageRequest, errBodyBytes)
	}
	if x.req.options.other {
		if err := x.req.dropNamed(e.Judged, true); err != nil {
			return f.fail(StageRequest, err)
		}
	}
	for _, i := range e.Drop {
		x.req.lines[i].drop = true
	}
	x.stallTimeout = e.StallTimeout
	x.body.max, x.body.keepTrailer = e.MaxBody, e.KeepTrailer
	dst := f.composeRequest()
	return f.gather(dst)
}

// composeRequest writes the outgoing head into the exchange's out block.
func (f *forward) composeRequest() []byte {
	x, e := f.x, f.edit
	r := &x.req
	size := r.end + len(e.Target) + len(e.Host) + len(e.added) + 256
	if x.out == nil || len(x.out.data) < size {
		f.c.srv.mem.put(x.out)
		x.out = f.c.srv.mem.get(max(size, bodyBlock))
	}
	head := x.headBytes()
	dst := append(x.out.data[:0], r.Method...)
	dst = append(dst, ' ')
	if e.Target != nil {
		dst = append(dst, e.Target...)
	} else {
		dst = r.originForm(dst)
	}
	dst = append(dst, " HTTP/1.1\r\n"...)
	upgrade := f.upgrades()
	for i, l := range r.lines {
		switch l.kind {
		case kindConnection, kindHopByHop, kindTE:
			continue
		case kindUpgrade:
			if !upgrade {
				continue
			}
		case kindHost:
			if e.Host != nil {
				dst = appendField(dst, Field{r.fields[i].Name, e.Host})
				continue
			}
		case kindExpect:
			if !r.ExpectContinue {
				continue
			}
		case kindContentLength, kindTransferEncoding:
		case kindOther, kindDate:
			if l.drop {
				continue
			}
		}
		dst = append(dst, head[l.start:l.end]...)
	}
	dst = append(dst, e.added...)
	switch {
	case upgrade:
		dst = append(dst, "Connection: upgrade\r\n"...)
	case r.teTraits:
		dst = append(dst, "TE: trailers\r\nConnection: TE\r\n"...)
	}
	return append(dst, "\r\n"...)
}

// headBytes gives the bytes of the request's head.
func (x *Exchange) headBytes() []byte {
	if x.headBlk != nil {
		return x.headBlk.data[:x.req.end]
	}
	return x.c.in.blk.data[:x.req.end]
}

// upgrades reports whether the upstream is asked to switch protocols.
func (f *forward) upgrades() bool {
	r := &f.x.req
	return f.edit.Upgrade && r.ContentLength == 0 && isToken(r.Upgrade) && !equalFold(r.Upgrade, "h2c")
}

// gather appends the body to the head where it is here or small, so that both
// leave in one write.
func (f *forward) gather(dst []byte) error {
	x := f.x
	b := &x.body
	wait := b.form == bodyLength && !x.req.ExpectContinue && b.left <= int64(cap(dst)-len(dst))
	for !b.done {
		if !b.src.empty() {
			if len(b.src.buffered()) > cap(dst)-len(dst) {
				break
			}
			had := b.src.r
			piece, err := b.take()
			if err != nil {
				x.close = true
				return f.fail(StageRequest, err)
			}
			dst = append(dst, piece...)
			f.result.RequestBytes += int64(len(piece))
			if b.src.r != had {
				continue
			}
		}
		if !wait {
			break
		}
		if err := x.fillBody(); err != nil {
			return f.failReading(err)
		}
	}
	f.whole = b.done
	x.request = dst
	return nil
}

// failReading says what a failure to read the request's body means.
func (f *forward) failReading(err error) error {
	f.x.close = true
	if refusal, ok := errors.AsType[*ProtocolError](err); ok {
		return f.fail(StageRequest, refusal)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return f.fail(StageRequest, errSlowBody)
	}
	f.x.broken = true
	return f.fail(StageClient, err)
}

// fail notes where the exchange failed. Being cut or left by the client explains
// all other failures.
func (f *forward) fail(stage Stage, err error) error {
	f.result.Timeout = errors.Is(err, os.ErrDeadlineExceeded)
	switch {
	case stage == StageEdit:
	case f.c.cut.Load():
		f.x.broken = true
		stage, err = StageCut, ErrCut
	case f.c.gone.Load():
		f.x.broken = true
		stage, err = StageClient, ErrClientGone
	}
	f.result.Stage = stage
	return err
}

// connect gets a connection, and writes the request to it.
func (f *forward) connect(mayReuse bool) error {
	if mayReuse {
		f.pc = f.up.takeIdle()
	}
	if f.pc == nil {
		if err := f.dial(); err != nil {
			return err
		}
	}
	f.c.mu.Lock()
	f.c.up = f.pc
	f.c.mu.Unlock()
	if f.c.cut.Load() || f.c.gone.Load() {
		f.release(false)
		return f.fail(StageCut, ErrCut) // or StageClient
	}
	f.c.arm(f.stall())
	n, err := f.c.write(f.pc.wr, f.x.request)
	f.result.Sent = f.result.Sent || n > 0
	if err == nil {
		return nil
	}
	again := f.pc.pooled && (n == 0 || f.idempotent())
	f.release(false)
	if again && !f.c.cut.Load() && !f.c.gone.Load() && !errors.Is(err, os.ErrDeadlineExceeded) {
		f.result.Retried = true
		return f.connect(false)
	}
	return f.fail(StageWrite, err)
}

func (f *forward) stall() time.Duration { return f.x.stall() }

// dial opens a new connection. Cutting the exchange ends it.
func (f *forward) dial() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	f.c.setCancel(cancel)
	f.c.arm(-1)
	pc, err := f.up.dial(ctx)
	f.c.setCancel(nil)
	switch {
	case errors.Is(err, ErrUpstreamBusy):
		return f.fail(StagePool, err)
	case errors.Is(err, context.DeadlineExceeded):
		return f.fail(StageDial, os.ErrDeadlineExceeded)
	case err != nil:
		return f.fail(StageDial, err)
	}
	f.pc = pc
	return nil
}

// setCancel registers what else the exchange waits for.
func (c *conn) setCancel(cancel context.CancelFunc) {
	c.mu.Lock()
	c.cancel = cancel
	ended := c.cut.Load() || c.gone.Load()
	c.mu.Unlock()
	if ended && cancel != nil {
		cancel()
	}
}

// idempotent reports whether the request may be sent twice (RFC 9110 §9.2.2).
func (f *forward) idempotent() bool {
	switch string(f.x.req.Method) {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE":
		return true
	}
	return false
}

// release ends the exchange's use of its upstream connection.
func (f *forward) release(reuse bool) {
	c, pc := f.c, f.pc
	if pc == nil {
		return
	}
	f.stopPump()
	c.mu.Lock()
	c.up = nil
	reuse = reuse && !c.woken && !c.cut.Load() && !c.gone.Load()
	c.mu.Unlock()
	f.pc = nil
	c.srv.mem.put(pc.in.blk)
	pc.in = stream{}
	if reuse {
		pc.up.put(pc)
	} else {
		pc.up.discard(pc)
	}
}

// exchange reads the answer while what is left of the request's body is sent.
func (f *forward) exchange() error {
	x := f.x
	if !f.whole {
		f.startPump()
	}
	for interims := 0; ; interims++ {
		if interims > maxInterims {
			return f.fail(StageHead, errInterim)
		}
		if err := f.readAnswerHead(); err != nil {
			if f.mayRepeat(err) {
				f.release(false)
				f.result.Retried = true
				if err := f.connect(false); err != nil {
					return err
				}
				continue
			}
			return f.failHead(err)
		}
		switch {
		case x.resp.Status == 101:
			return f.switchProtocols()
		case x.resp.Status >= 200:
			return f.relay()
		}
		if err := f.relayInterim(); err != nil {
			return err
		}
	}
}

const maxInterims = 32

// mayRepeat reports whether the request can go out again after an idle
// connection turned out to be dead.
func (f *forward) mayRepeat(err error) bool {
	return f.pc.pooled && f.whole && !f.result.Retried && f.idempotent() && !f.heard &&
		!f.c.cut.Load() && !f.c.gone.Load() && !errors.Is(err, os.ErrDeadlineExceeded)
}

// failHead says what it means that there is no answer. If the request's body
// failed first, that is the cause.
func (f *forward) failHead(err error) error {
	p := &f.x.pump
	late := errors.Is(err, os.ErrDeadlineExceeded)
	byItself := p.running && p.ended.Load() || late
	f.stopPump()
	if !f.whole && byItself && p.err != nil && p.side == pumpClient && !(late && f.uninvited()) {
		return f.failReading(p.err)
	}
	if errors.Is(err, io.EOF) {
		err = errAnswerCut
	}
	return f.fail(StageHead, err)
}

// uninvited reports whether the client may still be waiting for 100 Continue.
func (f *forward) uninvited() bool { return f.x.req.ExpectContinue && !f.x.invited }

// readAnswerHead reads until the head of an answer is complete.
func (f *forward) readAnswerHead() error {
	x, pc := f.x, f.pc
	x.resp.reset()
	if pc.in.blk == nil {
		pc.in = stream{blk: f.c.srv.mem.get(bodyBlock), base: answerRoom, r: answerRoom, w: answerRoom}
	}
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

// armHead sets how long the answer's head is waited for. While the request's body
// is still being sent, only a stall counts.
func (f *forward) armHead() {
	if f.pumping() {
		f.c.arm(f.stall())
		return
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
		if f.c.tcp != nil {
			_ = f.c.tcp.SetLinger(0) // the client shall see that the answer is not whole
		}
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

// composeAnswer writes the edited head of the answer into the out buffer.
func (f *forward) composeAnswer(head []byte, rechunk bool) []byte {
	x, e := f.x, f.edit
	r := &x.resp
	if r.options.other {
		_ = r.dropNamed(nil, false) // it fails only where it is asked to refuse
	}
	for _, i := range e.answerDrop {
		if i >= 0 && i < len(r.lines) {
			r.lines[i].drop = true
		}
	}
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

func (f *forward) toClient(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	f.c.arm(f.stall())
	if _, err := f.c.write(f.c.wr, p); err != nil {
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
	if len(space) == 0 {
		return f.fail(StageBody, asAnswer(errHeaderBytes))
	}
	n, err := f.c.read(pc.rd, space)
	b.src.w += n
	if errors.Is(err, io.EOF) {
		if err = b.ended(); err == nil {
			return nil
		}
	}
	if err != nil {
		return f.fail(StageBody, err)
	}
	return nil
}

// spliceAnswer has the kernel copy the rest of the answer's body; ok is false if
// it cannot.
func (f *forward) spliceAnswer() (ok bool, err error) {
	b := &f.x.answer
	took, moved, ok, srcErr, dstErr := f.c.splice(f.c.raw, f.pc.raw, b.left, func() { f.c.arm(f.stall()) })
	b.left -= took
	b.done = b.left == 0
	f.result.ResponseBytes += moved
	switch {
	case errors.Is(srcErr, io.EOF):
		return ok, f.fail(StageBody, io.ErrUnexpectedEOF)
	case srcErr != nil:
		return ok, f.fail(StageBody, srcErr)
	case dstErr != nil:
		return ok, f.fail(StageClient, dstErr)
	}
	return ok, nil
}

// pump sends the request's body while the answer is read.
type pump struct {
	done    chan struct{}
	running bool // startPump was called and stopPump has not waited
	ended   atomic.Bool
	last    atomic.Bool // the last piece of the body is being written
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
func (x *Exchange) pumpBody(pc *upConn, stall, header time.Duration) {
	p, c := &x.pump, x.c
	defer close(p.done)
	p.side, p.err = x.pumpPieces(pc, stall)
	if p.err == nil {
		c.arm(header)
	}
	p.ended.Store(true) // before the answer's reader can notice what follows
	if p.err != nil && p.side == pumpClient {
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
			n, err := c.write(pc.wr, piece)
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
	took, moved, ok, srcErr, dstErr := c.splice(pc.raw, c.raw, b.left, func() { c.arm(stall) })
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
