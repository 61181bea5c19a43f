package http1

import (
	"bytes"
	"encoding/binary"
)

// Field is one field line of a head or trailer section. Name is as it was
// sent; Value has no white space around it. Both are slices of the connection's
// buffer: valid until the exchange ends, not to be written to. It has no name of its own
// as a type, so that a list of fields need not be copied for who reads it elsewhere.
type Field = struct {
	Name, Value []byte
}

// ProtocolError says why the engine refused a message.
type ProtocolError struct {
	Status int    // what a server answers: 4xx or 5xx for a request, 502 for an upstream's answer
	Code   string // short and stable, for metrics and logs: "bare_lf"
	Reason string // one sentence for people
}

// Error gives the code and the reason.
func (e *ProtocolError) Error() string { return "http1: " + e.Code + ": " + e.Reason }

var (
	errBareLF        = &ProtocolError{400, "bare_lf", "a line does not end in CR LF (RFC 9112 §2.2)"}
	errControl       = &ProtocolError{400, "control_byte", "a field value holds a control byte (RFC 9110 §5.5)"}
	errObsFold       = &ProtocolError{400, "obs_fold", "a field line begins with white space (RFC 9112 §5.2)"}
	errSpaceColon    = &ProtocolError{400, "space_before_colon", "white space stands before a colon (RFC 9112 §5.1)"}
	errFieldName     = &ProtocolError{400, "field_name", "a field name is not a token (RFC 9110 §5.1)"}
	errHeaderBytes   = &ProtocolError{431, "header_bytes", "the header section is too large (RFC 6585 §5)"}
	errHeaderCount   = &ProtocolError{431, "header_count", "there are too many field lines (RFC 6585 §5)"}
	errListElement   = &ProtocolError{400, "connection_option", "a Connection option is not a token (RFC 9110 §7.6.1)"}
	errOptionNamed   = &ProtocolError{400, "connection_names_field", "a Connection option names a field that is not the connection's (RFC 9110 §7.6.1)"}
	errContentLength = &ProtocolError{400, "content_length", "Content-Length is repeated or no plain number (RFC 9112 §6.3)"}
	errTEandCL       = &ProtocolError{400, "length_and_coding", "Transfer-Encoding stands beside Content-Length (RFC 9112 §6.1)"}
	errTE            = &ProtocolError{400, "transfer_encoding", "Transfer-Encoding is repeated, or does not end in one chunked (RFC 9112 §6.3)"}
	errTEUnknown     = &ProtocolError{501, "transfer_coding", "a transfer coding other than chunked is not supported (RFC 9112 §6.1)"}
	errTrailer       = &ProtocolError{400, "trailer", "Trailer announces a field that frames the message (RFC 9110 §6.5.1)"}
	errTEOld         = &ProtocolError{400, "transfer_encoding_1_0", "Transfer-Encoding stands in an HTTP/1.0 message (RFC 9112 §6.1)"}
)

// kind tells apart the fields that the engine itself must understand.
type kind uint8

const (
	kindOther kind = iota
	kindConnection
	kindContentLength
	kindDate
	kindExpect
	kindHost
	kindHopByHop // always dropped: Keep-Alive, Proxy-*, Proxy, HTTP2-Settings
	kindTE
	kindTransferEncoding
	kindUpgrade
)

// line is where a field line stands in the buffer, with its CR LF.
type line struct {
	start, end int32
	kind       kind
	drop       bool
}

// head is a start line and a field section inside a buffer. lines and fields
// run in parallel. The zero head is ready for its first scan.
type head struct {
	fields  []Field
	lines   []line
	pos     int  // where the first line that was not read yet begins
	started bool // the start line was read
	firstLF int  // end of the start line, with its LF
	end     int  // end of the head, with the empty line; 0 while it is incomplete
}

func (h *head) reset() {
	h.fields = h.fields[:0]
	h.lines = h.lines[:0]
	h.pos, h.started, h.firstLF, h.end = 0, false, 0, 0
}

// nextLine gives the next complete line of buf without its CR LF, and moves on.
func (h *head) nextLine(buf []byte) (text []byte, ok bool, err *ProtocolError) {
	rest := buf[h.pos:]
	i := bytes.IndexByte(rest, '\n')
	if i < 0 {
		return nil, false, nil
	}
	if i == 0 || rest[i-1] != '\r' {
		return nil, false, errBareLF
	}
	h.pos += i + 1
	return rest[: i-1 : i-1], true, nil
}

// scanFields reads the field lines that are complete in buf and reports whether
// the empty line after them was reached. It goes on where it stopped as long as
// buf is the same memory.
func (h *head) scanFields(buf []byte, maxBytes, maxCount int) (bool, *ProtocolError) {
	for {
		start := h.pos
		text, ok, err := h.nextLine(buf)
		if err != nil {
			return false, err
		}
		if h.pos > maxBytes || !ok && len(buf) > maxBytes {
			return false, errHeaderBytes
		}
		if !ok {
			return false, nil
		}
		if len(text) == 0 {
			h.end = h.pos
			return true, nil
		}
		if len(h.fields) == maxCount {
			return false, errHeaderCount
		}
		field, err := parseField(text)
		if err != nil {
			return false, err
		}
		h.fields = append(h.fields, field)
		h.lines = append(h.lines, line{start: int32(start), end: int32(h.pos), kind: classify(field.Name)}) // #nosec G115 -- bounded by maxBytes
	}
}

// parseField splits one line without its line end (RFC 9112 §5).
func parseField(text []byte) (Field, *ProtocolError) {
	n := 0
	for n < len(text) && tokenByte[text[n]] {
		n++
	}
	if n == 0 || n == len(text) || text[n] != ':' {
		return Field{}, nameError(text, n)
	}
	value := trimOWS(text[n+1:])
	if !validValue(value) {
		return Field{}, errControl
	}
	return Field{Name: text[:n:n], Value: value}, nil
}

func nameError(text []byte, n int) *ProtocolError {
	switch {
	case text[0] == ' ' || text[0] == '\t':
		return errObsFold
	case n > 0 && n < len(text) && (text[n] == ' ' || text[n] == '\t') && bytes.IndexByte(text, ':') > 0:
		return errSpaceColon
	}
	return errFieldName
}

func trimOWS(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b[:len(b):len(b)]
}

// validValue reports whether b holds only what RFC 9110 §5.5 allows in a field
// value: visible bytes, obs-text, space and tab. Eight bytes are looked at at a
// time.
func validValue(b []byte) bool {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for len(b) >= 8 {
		x := binary.LittleEndian.Uint64(b)
		y := x ^ 0x7f*ones
		if ((x-0x20*ones)&^x|(y-ones)&^y)&highs != 0 && !plainValue(b[:8]) {
			return false
		}
		b = b[8:]
	}
	return plainValue(b)
}

func plainValue(b []byte) bool {
	for _, c := range b {
		if c < 0x20 && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// classify names the fields that the engine must understand. name is a token.
func classify(name []byte) kind {
	switch len(name) {
	case 2:
		if equalFold(name, "te") {
			return kindTE
		}
	case 4:
		if equalFold(name, "host") {
			return kindHost
		}
		if equalFold(name, "date") {
			return kindDate
		}
	case 5:
		if equalFold(name, "proxy") { // read as HTTP_PROXY by CGI programs
			return kindHopByHop
		}
	case 6:
		if equalFold(name, "expect") {
			return kindExpect
		}
	case 7:
		if equalFold(name, "upgrade") {
			return kindUpgrade
		}
	case 10:
		if equalFold(name, "connection") {
			return kindConnection
		}
		if equalFold(name, "keep-alive") {
			return kindHopByHop
		}
	case 14:
		if equalFold(name, "content-length") {
			return kindContentLength
		}
		if equalFold(name, "http2-settings") {
			return kindHopByHop
		}
	case 17:
		if equalFold(name, "transfer-encoding") {
			return kindTransferEncoding
		}
	}
	if len(name) > 6 && equalFold(name[:6], "proxy-") && !equalFold(name, "proxy-status") {
		return kindHopByHop
	}
	return kindOther
}

// equalFold compares a token with a lower-case ASCII text.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// equalFoldBytes compares two texts, ASCII letters without case.
func equalFoldBytes(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		if x|0x20 != y|0x20 || x|0x20 < 'a' || x|0x20 > 'z' {
			return false
		}
	}
	return true
}

// nextOption cuts the first element off a comma-separated list of tokens
// (RFC 9110 §5.6.1); empty elements are passed over, and an empty option ends
// the list.
func nextOption(list []byte) (option, rest []byte, err *ProtocolError) {
	for len(list) > 0 {
		option, rest = list, nil
		if i := bytes.IndexByte(list, ','); i >= 0 {
			option, rest = list[:i], list[i+1:]
		}
		option = trimOWS(option)
		if len(option) > 0 {
			if !isToken(option) {
				return nil, nil, errListElement
			}
			return option, rest, nil
		}
		list = rest
	}
	return nil, nil, nil
}

func isToken(b []byte) bool {
	for _, c := range b {
		if !tokenByte[c] {
			return false
		}
	}
	return len(b) > 0
}

// connectionOptions is what the Connection fields of a head say.
type connectionOptions struct {
	close, keepAlive, upgrade, te bool
	other                         bool // options that name further fields
}

// connection reads all Connection fields. An option that names what frames,
// routes or authorises the message is refused: it could only be an attempt to
// have the field removed on the way.
func (h *head) connection() (connectionOptions, *ProtocolError) {
	var o connectionOptions
	for i := range h.lines {
		if h.lines[i].kind != kindConnection {
			continue
		}
		option, rest, err := nextOption(h.fields[i].Value)
		for ; len(option) > 0; option, rest, err = nextOption(rest) {
			switch {
			case equalFold(option, "close"):
				o.close = true
			case equalFold(option, "keep-alive"):
				o.keepAlive = true
			case equalFold(option, "upgrade"):
				o.upgrade = true
			case equalFold(option, "te"):
				o.te = true
			case classify(option) == kindHopByHop:
			case classify(option) != kindOther, forbiddenInTrailer(option):
				return o, errOptionNamed
			default:
				o.other = true
			}
		}
		if err != nil {
			return o, err
		}
	}
	return o, nil
}

// dropNamed marks the fields that Connection options name. judged, if not nil,
// says which of them must not be removed in this way; with a nil judged no
// field may.
func (h *head) dropNamed(judged func(name []byte) bool, refuse bool) *ProtocolError {
	for i := range h.lines {
		if h.lines[i].kind != kindConnection {
			continue
		}
		option, rest, _ := nextOption(h.fields[i].Value)
		for ; len(option) > 0; option, rest, _ = nextOption(rest) {
			if classify(option) != kindOther {
				continue
			}
			if refuse && judged != nil && judged(option) {
				return errOptionNamed
			}
			for j := range h.fields {
				if !equalFoldBytes(h.fields[j].Name, option) {
					continue
				}
				if refuse && judged == nil {
					return errOptionNamed
				}
				h.lines[j].drop = true
			}
		}
	}
	return nil
}

// framing finds the fields that say how long the body is. length is -1 where
// there is no Content-Length.
func (h *head) framing(minor int) (length int64, chunked bool, err *ProtocolError) {
	length = -1
	coded := false
	for i := range h.lines {
		switch h.lines[i].kind {
		case kindContentLength:
			if length >= 0 {
				return 0, false, errContentLength
			}
			if length = parseLength(h.fields[i].Value); length < 0 {
				return 0, false, errContentLength
			}
		case kindTransferEncoding:
			if coded {
				return 0, false, errTE
			}
			coded = true
			if err := checkCoding(h.fields[i].Value); err != nil {
				return 0, false, err
			}
		}
	}
	switch {
	case coded && length >= 0:
		return 0, false, errTEandCL
	case coded && minor == 0:
		return 0, false, errTEOld
	}
	if coded {
		err = h.checkTrailerNames()
	}
	return length, coded, err
}

// checkTrailerNames refuses a Trailer field that announces what frames the
// message (RFC 9110 §6.5.1): a reader that believes it would frame it anew.
func (h *head) checkTrailerNames() *ProtocolError {
	for i := range h.fields {
		if !equalFold(h.fields[i].Name, "trailer") {
			continue
		}
		for rest := h.fields[i].Value; len(rest) > 0; {
			var name []byte
			name, rest, _ = bytes.Cut(rest, []byte{','})
			switch name = trimOWS(name); {
			case equalFold(name, "trailer"), classify(name) == kindContentLength, classify(name) == kindTransferEncoding:
				return errTrailer
			}
		}
	}
	return nil
}

// parseLength reads 1*DIGIT without leading zeros, and gives -1 for all else.
func parseLength(b []byte) int64 {
	if len(b) == 0 || len(b) > 18 || b[0] == '0' && len(b) > 1 {
		return -1
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return -1
		}
		n = n*10 + int64(c-'0')
	}
	return n
}

// checkCoding accepts exactly "chunked". A list that ends in chunked names
// codings we do not have; every other list leaves the length unknown.
func checkCoding(value []byte) *ProtocolError {
	if equalFold(value, "chunked") {
		return nil
	}
	i := bytes.LastIndexByte(value, ',')
	if i < 0 || !equalFold(trimOWS(value[i+1:]), "chunked") {
		return errTE
	}
	for rest, more := value[:i], true; more; {
		var coding []byte
		coding, rest, more = bytes.Cut(rest, []byte{','})
		if coding = trimOWS(coding); !isToken(coding) || equalFold(coding, "chunked") || equalFold(coding, "identity") {
			return errTE
		}
	}
	return errTEUnknown
}

// forbiddenInTrailer reports whether a field must not stand in a trailer
// section, and must never be removed by a Connection option: it frames, routes,
// modifies, authenticates or describes the message before its end (RFC 9110 §6.5.1).
func forbiddenInTrailer(name []byte) bool {
	if classify(name) != kindOther {
		return true
	}
	switch len(name) {
	case 3:
		return equalFold(name, "age") || equalFold(name, "via")
	case 4:
		return equalFold(name, "vary")
	case 5:
		return equalFold(name, "range")
	case 6:
		return equalFold(name, "cookie") || equalFold(name, "pragma") || equalFold(name, "accept")
	case 7:
		return equalFold(name, "expires") || equalFold(name, "trailer") || equalFold(name, "warning")
	case 8:
		return equalFold(name, "location") || equalFold(name, "if-match") || equalFold(name, "if-range") || equalFold(name, "alt-used")
	case 9:
		return equalFold(name, "forwarded")
	case 10:
		return equalFold(name, "set-cookie")
	case 11:
		return equalFold(name, "retry-after")
	case 12:
		return equalFold(name, "content-type") || equalFold(name, "max-forwards")
	case 13:
		return equalFold(name, "authorization") || equalFold(name, "cache-control") ||
			equalFold(name, "content-range") || equalFold(name, "if-none-match")
	case 16:
		return equalFold(name, "content-encoding") || equalFold(name, "www-authenticate")
	case 17:
		return equalFold(name, "if-modified-since")
	case 19:
		return equalFold(name, "if-unmodified-since")
	}
	return len(name) > 12 && equalFold(name[:12], "x-forwarded-")
}

// tokenByte marks the bytes of a token (RFC 9110 §5.6.2).
var tokenByte = func() (t [256]bool) {
	for c := range 256 {
		t[c] = c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' ||
			bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), byte(c)) >= 0
	}
	return t
}()
