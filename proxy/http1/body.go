package http1

import (
	"errors"
	"io"
)

var (
	errBodyBytes = &ProtocolError{413, "body_bytes", "the request body is larger than allowed (RFC 9110 §15.5.14)"}
	errBodyCut   = &ProtocolError{400, "body_cut", "the request body ended before its announced end (RFC 9112 §8)"}
)

type bodyForm uint8

const (
	bodyNone bodyForm = iota
	bodyLength
	bodyChunked
	bodyUntilClose
)

// body follows one message body through its stream.
type body struct {
	src    *stream
	form   bodyForm
	decode bool  // give data without its chunk framing, and no trailers
	done   bool  // the last byte was taken
	failed bool  // its framing is malformed, so its end is not known
	left   int64 // bytes to come of a bodyLength
	max    int64 // most data bytes allowed; 0: any number
	cs     chunked

	keepTrailer func(name []byte) bool // beside what is forbidden anyway; nil: all others
	trailer     head
	trailerMax  *Limits
	scratch     []byte // the trailer section as it is sent on
}

// begin is called when the head before the body was consumed. length is -1
// where it is not announced.
func (b *body) begin(src *stream, form bodyForm, length int64, limits *Limits) {
	b.src, b.form, b.left = src, form, max(length, 0)
	b.done = form == bodyNone || form == bodyLength && length == 0
	b.failed = false
	b.decode, b.max, b.cs, b.keepTrailer, b.trailerMax = false, 0, chunked{}, nil, limits
	b.trailer.reset()
}

// take gives the next piece of the body among the bytes that were read already;
// it is empty if they hold none. The piece is valid until the stream is filled.
func (b *body) take() ([]byte, *ProtocolError) {
	if b.done || b.src.empty() {
		return nil, nil
	}
	s := b.src
	buf := s.buffered()
	switch b.form {
	case bodyLength:
		n := int(min(b.left, int64(len(buf))))
		s.r += n
		b.left -= int64(n)
		b.done = b.left == 0
		return buf[:n], nil
	case bodyChunked:
		piece, err := b.takeChunked(buf)
		b.failed = b.failed || err != nil
		return piece, err
	case bodyUntilClose:
		s.r = s.w
		return buf, nil
	case bodyNone:
	}
	return nil, nil
}

func (b *body) takeChunked(buf []byte) ([]byte, *ProtocolError) {
	if b.cs.state == chunkTrailer {
		return b.takeTrailer(buf)
	}
	n, data, err := b.cs.scan(buf, b.decode)
	if err == nil && b.max > 0 && b.cs.size > b.max {
		err = errBodyBytes
	}
	if err != nil {
		return nil, err
	}
	if b.cs.state == chunkTrailer && len(buf) >= n+2 && buf[n] == '\r' && buf[n+1] == '\n' {
		n += 2
		b.done = true
	}
	b.src.r += n
	if b.decode {
		return buf[:data], nil
	}
	return buf[:n], nil
}

// takeTrailer reads the trailer section once all of it is there, and gives it
// without the fields that must not pass (RFC 9110 §6.5).
func (b *body) takeTrailer(buf []byte) ([]byte, *ProtocolError) {
	b.trailer.reset()
	ok, err := b.trailer.scanFields(buf, b.trailerMax.HeaderBytes, b.trailerMax.HeaderCount)
	if err != nil || !ok {
		return nil, err
	}
	b.scratch = b.scratch[:0]
	for i, l := range b.trailer.lines {
		name := b.trailer.fields[i].Name
		if forbiddenInTrailer(name) || b.keepTrailer != nil && !b.keepTrailer(name) {
			continue
		}
		b.scratch = append(b.scratch, buf[l.start:l.end]...)
	}
	b.scratch = append(b.scratch, "\r\n"...)
	b.src.r += b.trailer.end
	b.done = true
	if b.decode {
		return nil, nil
	}
	return b.scratch, nil
}

// ended is called when the stream has ended, and says what that means.
func (b *body) ended() error {
	if b.form == bodyUntilClose {
		b.done = true
		return nil
	}
	return io.ErrUnexpectedEOF
}

// startBody prepares for the request's body, of which some bytes may have been
// read with the head.
func (x *Exchange) startBody() {
	form := bodyNone
	switch {
	case x.req.Chunked:
		form = bodyChunked
	case x.req.ContentLength > 0:
		form = bodyLength
	}
	x.body.begin(&x.c.in, form, x.req.ContentLength, &x.c.srv.limits)
}

// fillBody reads more of the request's body, unless the client stalls.
func (x *Exchange) fillBody() error {
	x.c.arm(x.stall())
	return x.readBody()
}

// readBody reads more of the request's body.
func (x *Exchange) readBody() error {
	c := x.c
	space := c.in.space()
	fits := x.body.form == bodyLength && x.body.left <= int64(len(space))
	if x.headBlk == nil && !fits && len(c.in.blk.data) < bodyBlock+c.in.base {
		blk := c.srv.mem.get(bodyBlock)
		n := copy(blk.data, c.in.buffered())
		x.headBlk = c.in.blk
		c.in = stream{blk: blk, w: n}
		space = c.in.space()
	}
	if len(space) == 0 { // only a trailer section is held back
		old := c.in.blk
		if !c.in.grow(&c.srv.mem, c.srv.limits.HeaderBytes) {
			return errHeaderBytes
		}
		if x.headBlk == nil {
			x.headBlk, old = old, nil
		}
		c.srv.mem.put(old)
		space = c.in.space()
	}
	n, err := c.read(c.rd, space)
	c.in.w += n
	if errors.Is(err, io.EOF) {
		return errBodyCut
	}
	return err
}

// Body reads the request's body, without its transfer coding. It must not be
// used together with Forward, nor after the exchange. Where the client waits
// for it, the first read sends 100 Continue. Errors are a *ProtocolError for
// what is malformed or cut short, or come from the connection.
func (x *Exchange) Body() io.Reader { return (*bodyReader)(x) }

type bodyReader Exchange

func (r *bodyReader) Read(p []byte) (int, error) {
	x := (*Exchange)(r)
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if len(x.piece) > 0 {
			n := copy(p, x.piece)
			x.piece = x.piece[n:]
			return n, nil
		}
		if x.bodyErr != nil {
			return 0, x.bodyErr
		}
		if x.body.done {
			return 0, io.EOF
		}
		x.bodyErr = x.readPiece()
	}
}

// readPiece gets the next piece of data, without its framing.
func (x *Exchange) readPiece() error {
	x.body.decode = true
	for had := -1; had != x.c.in.r; { // framing alone is progress too
		had = x.c.in.r
		piece, refusal := x.body.take()
		if refusal != nil {
			return refusal
		}
		if x.piece = piece; len(piece) > 0 || x.body.done {
			return nil
		}
	}
	if err := x.sendContinue(); err != nil {
		return err
	}
	return x.fillBody()
}

// sendContinue invites the body, where the client waits for that.
func (x *Exchange) sendContinue() error {
	if !x.req.ExpectContinue {
		return nil
	}
	x.interimMu.Lock()
	defer x.interimMu.Unlock()
	if x.invited || x.started {
		return nil
	}
	x.invited = true
	_, err := x.c.write(x.c.wr, []byte("HTTP/1.1 100 Continue\r\n\r\n"), x.stall())
	return err
}
