package http1

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
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

var errSlowBody = &ProtocolError{408, "body_timeout", "the request body stopped arriving (RFC 9110 §15.5.9)"}

// Forward sends the request, as edit changes it, to the upstream, and the answer
// to the client. A nil edit is the zero one. It returns when both are complete
// or have failed; the error then says why and the Result where. If no head was
// sent, the caller answers by itself, with Respond.
//
// A request that failed on an idle connection that had died meanwhile is sent
// once more on a new one, if nothing of it was sent, or if its method is
// safe, it was sent whole, and no byte of an answer came (RFC 9112 §9.3.1).
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

	unheard error // why none came after the request was sent
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
		return !f.result.Timeout && (!f.result.Sent || f.harmless())
	case StageHead:
		return !f.result.Timeout && !f.heard && f.whole && f.harmless()
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
		x.close = true
		return f.fail(StageRequest, errBodyBytes)
	}
	if x.req.options.other {
		if err := x.req.dropNamed(e.Judged, true); err != nil {
			x.close = true
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
		case kindContentLength: // written anew: no white space or letter case is left to be read in another way
			dst = strconv.AppendInt(append(dst, "Content-Length: "...), r.ContentLength, 10)
			dst = append(dst, "\r\n"...)
			continue
		case kindTransferEncoding: // likewise
			dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
			continue
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
	case r.teTrailers:
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
	engage(f.pc.nc, f.c)
	f.c.mu.Lock()
	f.c.up = f.pc
	f.c.mu.Unlock()
	if f.c.cut.Load() || f.c.gone.Load() {
		f.release(false)
		return f.fail(StageCut, ErrCut) // or StageClient
	}
	f.c.arm(f.stall())
	n, err := f.sendRequest()
	f.result.Sent = f.result.Sent || n > 0
	if err == nil {
		return nil
	}
	if errors.Is(err, errNotQuiet) {
		f.release(false)
		return f.connect(mayReuse) // there is one idle connection less
	}
	again := f.pc.pooled && (n == 0 || f.harmless())
	f.release(false)
	if again && !f.c.cut.Load() && !f.c.gone.Load() && !errors.Is(err, os.ErrDeadlineExceeded) {
		f.result.Retried = true
		return f.connect(false)
	}
	return f.fail(StageWrite, err)
}

// sendRequest writes the request, and says how much of it. On a connection that was
// idle it hears the beginning of the answer with it where it can; errNotQuiet then says
// that the connection is none to be used.
func (f *forward) sendRequest() (int, error) {
	pc, request := f.pc, f.x.request
	if pc.asker == nil || !pc.pooled {
		return f.c.write(pc.wr, request, f.stall())
	}
	q := question{request: request, sent: f.c, patience: f.headerTimeout()}
	if f.whole {
		q.answer = f.answerSpace()
	}
	r := pc.asker.ask(q)
	for r.sent == 0 && f.c.spurious(r.err) {
		r = pc.asker.ask(q)
	}
	switch {
	case r.waited:
		pc.in.w += r.read
		f.heard = r.read > 0
		if r.err != nil && !f.c.spurious(r.err) {
			f.unheard = r.err
		}
		return r.sent, nil
	case r.err != nil:
		return r.sent, r.err
	case r.sent < len(request):
		n, err := f.c.write(pc.wr, request[r.sent:], f.stall())
		return r.sent + n, err
	}
	return r.sent, nil
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

// harmless reports whether the request asks for nothing to be done (RFC 9110 §9.2.1),
// so that it may be sent twice. Idempotent ones that do may not: whoever deletes twice
// is told that there is nothing, and what somebody else did in between is undone.
func (f *forward) harmless() bool {
	switch string(f.x.req.Method) {
	case "GET", "HEAD", "OPTIONS", "TRACE":
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
	engage(pc.nc, nil)
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
	return f.pc.pooled && f.whole && !f.result.Retried && f.harmless() && !f.heard &&
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
