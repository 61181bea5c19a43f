package http1

var (
	errChunk    = &ProtocolError{400, "chunk", "a chunk is not framed by a size in hex and CR LF (RFC 9112 §7.1)"}
	errChunkBig = &ProtocolError{400, "chunk_size", "a chunk size has too many digits (RFC 9112 §7.1)"}
	errChunkExt = &ProtocolError{400, "chunk_extension", "a chunk extension is malformed or too long (RFC 9112 §7.1.1)"}
)

const (
	maxChunkDigits   = 15      // sizes stay far below the range of int64
	maxChunkExtBytes = 128     // of one chunk
	maxExtBytesTotal = 8 << 10 // of one body
)

type chunkState uint8

const (
	chunkSize    chunkState = iota
	chunkExt                // after the ';'
	chunkSizeLF             // after the CR that ends the size line
	chunkData               // left bytes of data are to come
	chunkDataCR             // after the data
	chunkDataLF             // after the CR that follows the data
	chunkTrailer            // the trailer section is to come
)

// extPart is where in a chunk extension the last byte stood.
type extPart uint8

const (
	extBegin   extPart = iota // the ';'
	extName                   // in the name
	extEqual                  // the '='
	extValue                  // in a value that is a token
	extQuoted                 // in a quoted string
	extEscaped                // the backslash in it
	extClosed                 // the quote that ends it
)

// chunked follows the chunked coding (RFC 9112 §7.1) through a stream of bytes.
// The zero value stands before the first chunk.
type chunked struct {
	state    chunkState
	digits   uint8
	part     extPart
	ext      int   // bytes of extension in this chunk
	extTotal int   // in this body
	left     int64 // in state chunkSize the size so far, in chunkData what is to come
	size     int64 // data bytes of all chunks so far
}

// scan goes through wire up to the trailer section or the end of wire, and gives
// the number of bytes it passed. With decode the data bytes among them are moved
// together at the front of wire, and data is their number.
func (c *chunked) scan(wire []byte, decode bool) (n, data int, err *ProtocolError) {
	for n < len(wire) && c.state != chunkTrailer {
		if c.state == chunkData {
			k := int(min(c.left, int64(len(wire)-n)))
			if decode {
				copy(wire[data:], wire[n:n+k])
			}
			data += k
			n += k
			if c.left -= int64(k); c.left == 0 {
				c.state = chunkDataCR
			}
			continue
		}
		if err := c.step(wire[n]); err != nil {
			return n, data, err
		}
		n++
	}
	return n, data, nil
}

// step takes one byte that is not data.
func (c *chunked) step(b byte) *ProtocolError {
	switch c.state {
	case chunkSize:
		return c.stepSize(b)
	case chunkExt:
		return c.stepExt(b)
	case chunkSizeLF:
		if b != '\n' {
			return errChunk
		}
		c.size += c.left
		c.digits, c.ext = 0, 0
		c.state = chunkData
		if c.left == 0 {
			c.state = chunkTrailer
		}
	case chunkDataCR:
		if b != '\r' {
			return errChunk
		}
		c.state = chunkDataLF
	case chunkDataLF:
		if b != '\n' {
			return errChunk
		}
		c.state = chunkSize
	case chunkData, chunkTrailer:
	}
	return nil
}

func (c *chunked) stepSize(b byte) *ProtocolError {
	if isHex(b) {
		if c.digits++; c.digits > maxChunkDigits {
			return errChunkBig
		}
		d := int64(b - '0')
		if !isDigit(b) {
			d = int64(b|0x20-'a') + 10
		}
		c.left = c.left<<4 | d
		return nil
	}
	switch {
	case c.digits == 0:
		return errChunk
	case b == ';':
		c.state, c.part = chunkExt, extBegin
	case b == '\r':
		c.state = chunkSizeLF
	default:
		return errChunk
	}
	return nil
}

// stepExt takes one byte of the extensions, or the CR after them. White space between
// their parts, which the grammar has for old senders only, is refused.
func (c *chunked) stepExt(b byte) *ProtocolError {
	if b == '\r' && (c.part == extName || c.part == extValue || c.part == extClosed) {
		c.state = chunkSizeLF
		return nil
	}
	c.ext++
	c.extTotal++
	if c.ext > maxChunkExtBytes || c.extTotal > maxExtBytesTotal || !c.extend(b) {
		return errChunkExt
	}
	return nil
}

// extend reports whether b may stand here in an extension. Where readers disagree about
// the end of one, such as that of an open quote, they disagree about all that follows.
func (c *chunked) extend(b byte) bool {
	switch {
	case c.part == extQuoted && b == '"':
		c.part = extClosed
	case c.part == extQuoted && b == '\\':
		c.part = extEscaped
	case c.part == extQuoted || c.part == extEscaped:
		c.part = extQuoted
		return b >= 0x20 && b < 0x7f || b == '\t'
	case c.part == extEqual && b == '"':
		c.part = extQuoted
	case c.part == extBegin || c.part == extEqual:
		c.part++ // to the name or the value
		return tokenByte[b]
	case b == ';':
		c.part = extBegin
	case c.part == extName && b == '=':
		c.part = extEqual
	default:
		return c.part != extClosed && tokenByte[b]
	}
	return true
}
