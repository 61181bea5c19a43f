package canon

import (
	"bytes"
	"unicode/utf8"
)

// target is a request target taken apart, nothing of it checked but the form.
type target struct {
	authority []byte // of the absolute form, nil otherwise
	path      []byte
	query     []byte
	hasQuery  bool
	asterisk  bool
	origin    []byte // path and query as received, nil if the absolute form left out the path
}

// methodParameter is what many frameworks call the method that a form means, and read
// from the query too.
const methodParameter = "_method"

// splitTarget tells the forms of RFC 9112 section 3.2 apart. Authority-form goes with
// CONNECT alone, which is refused before.
func splitTarget(h *Head) (t target, v Verdict) {
	raw := h.Target
	switch {
	case len(raw) == 0:
		return t, BadTargetForm
	case len(raw) == 1 && raw[0] == '*':
		if string(h.Method) != "OPTIONS" {
			return t, BadAsterisk
		}
		t.asterisk = true
		return t, Accepted
	case raw[0] == '/':
		t.origin = raw
	case h.Major >= 2:
		return t, BadTargetForm // RFC 9113 section 8.3.1: :path is never absolute
	default:
		rest := cutScheme(raw)
		end := bytes.IndexAny(rest, "/?#")
		if end < 0 {
			end = len(rest)
		}
		t.authority, t.origin = rest[:end:end], rest[end:]
		if len(t.authority) == 0 {
			return t, BadTargetForm
		}
		if len(t.origin) == 0 && string(h.Method) == "OPTIONS" {
			t.asterisk = true // RFC 9112 section 3.2.4
			return t, Accepted
		}
	}
	t.path, t.query, t.hasQuery = bytes.Cut(t.origin, questionMark)
	if len(t.path) == 0 {
		t.path, t.origin = slash, nil // RFC 3986 section 6.2.3
	}
	return t, Accepted
}

var (
	questionMark = []byte{'?'}
	slash        = []byte{'/'}
	asterisk     = []byte{'*'}
	doubleSlash  = []byte("//")
	slashDot     = []byte("/.")
)

// cutScheme returns what follows http:// or https://, or nil. Which of the two says
// nothing: Secure comes from the connection.
func cutScheme(raw []byte) []byte {
	for _, scheme := range [...]string{"http://", "https://"} {
		if len(raw) > len(scheme) && equalLower(raw[:len(scheme)], scheme) {
			return raw[len(scheme):]
		}
	}
	return nil
}

// readTarget makes path, query and the two targets to forward.
func (r *Rules) readTarget(q *Request, t *target) Verdict {
	if t.asterisk {
		q.Asterisk = true
		q.Path, q.target, q.claimed = asterisk, asterisk, asterisk
		return Accepted
	}
	path, v := q.canonicalPath(t.path)
	if v != Accepted {
		return v
	}
	loose, v := checkQuery(t.query)
	if v != Accepted {
		return v
	}
	q.Irregular |= loose
	if _, _, n := LookupQuery(t.query, methodParameter); n > 0 {
		q.Irregular |= MethodParameter
	}
	q.Path, q.Query, q.HasQuery = path, t.query, t.hasQuery

	samePath := t.origin != nil && len(path) == len(t.path) // decoding only ever shortens
	q.claimed = t.origin
	if !samePath {
		q.claimedBuf = appendTarget(q.claimedBuf[:0], path, t.query, t.hasQuery)
		q.claimed = q.claimedBuf
	}
	q.target = q.claimed
	if r.queryCarriers && r.takeQueryCredentials(q) {
		q.targetBuf = appendTarget(q.targetBuf[:0], path, q.Query, q.HasQuery)
		q.target = q.targetBuf
	}
	return Accepted
}

func appendTarget(dst, path, query []byte, hasQuery bool) []byte {
	dst = append(dst, path...)
	if hasQuery {
		dst = append(dst, '?')
		dst = append(dst, query...)
	}
	return dst
}

// canonicalPath returns raw itself if nothing is to be done, which is the common case,
// else a copy in scratch.
func (q *Request) canonicalPath(raw []byte) ([]byte, Verdict) {
	if is(raw, classPath) && !bytes.Contains(raw, slashDot) && !bytes.Contains(raw, doubleSlash) {
		q.Plain = true
		return raw, Accepted
	}
	path, irregular, v := appendCanonicalPath(q.pathBuf[:0], raw)
	q.pathBuf = path
	if v != Accepted {
		return nil, v
	}
	deep, deepIrregular, v := appendFullyDecoded(q.deepBuf[:0], path)
	q.deepBuf = deep
	if v != Accepted {
		return nil, v
	}
	if hasDotSegment(deep) {
		return nil, DotSegment
	}
	q.Irregular |= irregular | deepIrregular
	q.Plain = bytes.IndexByte(path, '%') < 0
	return path, Accepted
}

// appendCanonicalPath decodes percent-encoded unreserved characters and refuses what no
// path may hold. It is idempotent: what it leaves encoded stays a triple that no
// neighbour can change.
func appendCanonicalPath(dst, raw []byte) ([]byte, Irregularity, Verdict) {
	var irregular Irregularity
	for i := 0; i < len(raw); {
		c := raw[i]
		switch {
		case c == '%':
			b, ok := unhex(raw[i+1:])
			if !ok {
				return dst, 0, BadPercent
			}
			n := 3
			switch {
			case b >= utf8.RuneSelf:
				var v Verdict
				if n, v = encodedRune(raw[i:]); v != Accepted {
					return dst, 0, v
				}
			case b == '%':
				irregular |= EncodedPercent
			}
			if classes[b]&classUnreserved != 0 {
				dst = append(dst, b)
			} else {
				dst = append(dst, raw[i:i+n]...)
			}
			i += n
			continue
		case c == '/' && i+1 < len(raw) && raw[i+1] == '/':
			if i == 0 {
				return dst, 0, DoubleLeadingSlash // "//host/path" is a URL of another host to many parsers, RFC 3986 section 4.2
			}
			irregular |= EmptySegment
		case c == ';':
			irregular |= Semicolon
		case classes[c]&classPath == 0:
			return dst, 0, badPathByte(c)
		}
		dst = append(dst, c)
		i++
	}
	return dst, irregular, Accepted
}

func badPathByte(c byte) Verdict {
	switch c {
	case '#':
		return Fragment
	case '\\':
		return Backslash
	}
	return ByteOutsideGrammar
}

// encodedRune measures the percent-encoded UTF-8 sequence at the start of raw, which
// begins with a triple of 0x80 or more. Overlong forms, surrogates and C1 controls are
// refused.
func encodedRune(raw []byte) (int, Verdict) {
	var seq [utf8.UTFMax]byte
	n := 0
	for n < len(seq) && len(raw) >= 3*n+3 && raw[3*n] == '%' {
		b, ok := unhex(raw[3*n+1:])
		if !ok {
			break // reported when its turn comes, unless the sequence needed it
		}
		seq[n] = b
		n++
	}
	c, size := utf8.DecodeRune(seq[:n])
	switch {
	case size == 1: // not even its first byte is good
		return 0, BadUTF8
	case c < 0xa0:
		return 0, EncodedControl
	}
	return 3 * size, Accepted
}

// appendFullyDecoded decodes path as often as it can be decoded, in one pass: whenever
// the bytes written last form a triple, they become the byte that they stand for. A
// '.', '/', '\' or ';' that shows at any depth is still there at the end, since none of
// them is a hex digit. The flags are for what came out of a triple, the refusals for
// what only a second decoding brings to light.
func appendFullyDecoded(dst, path []byte) ([]byte, Irregularity, Verdict) {
	var irregular Irregularity
	start := len(dst)
	for _, c := range path {
		dst = append(dst, c)
		for len(dst)-start >= 3 && dst[len(dst)-3] == '%' {
			b, ok := unhex(dst[len(dst)-2:])
			if !ok {
				break
			}
			switch {
			case b < 0x20 || b == 0x7f:
				return dst, 0, EncodedControl
			case b == 0xc0 || b == 0xc1:
				return dst, 0, BadUTF8
			case b == '/':
				irregular |= EncodedSlash
			case b == '\\':
				irregular |= EncodedBackslash
			case b == ';':
				irregular |= Semicolon
			}
			dst = append(dst[:len(dst)-3], b)
		}
	}
	return dst, irregular, Accepted
}

// hasDotSegment looks for "." and ".." between slashes and backslashes in fully decoded
// text, after cutting ";…" (and "?…", "#…", for who parses again after decoding) and
// dropping spaces as some servers do, and with characters that Unicode compatibility
// mapping (NFKC, or Windows best fit) turns into one of these.
func hasDotSegment(text []byte) bool {
	dots, other, cut := 0, false, false
	for i := 0; i < len(text); {
		c, size := rune(text[i]), 1
		if c >= utf8.RuneSelf {
			c, size = utf8.DecodeRune(text[i:])
		}
		i += size
		switch c {
		case '/', '\\', 0xff0f, 0x2044, 0x2215, 0xff3c, 0x2216, 0xfe68:
			if !other && (dots == 1 || dots == 2) {
				return true
			}
			dots, other, cut = 0, false, false
			continue
		case ';', 0xff1b, '?', '#':
			cut = true
		}
		if cut {
			continue
		}
		switch c {
		case '.', 0xff0e, 0x2024, 0xfe52:
			dots++
		case 0x2025:
			dots += 2
		case ' ', 0xa0, 0x3000:
		default:
			other = true
		}
	}
	return !other && (dots == 1 || dots == 2)
}

// checkQuery leaves the query as it is and says what is odd about it.
func checkQuery(query []byte) (Irregularity, Verdict) {
	if is(query, classQuery) {
		return 0, Accepted
	}
	var irregular Irregularity
	for i, c := range query {
		switch {
		case classes[c]&classQuery != 0:
		case c == ';':
			irregular |= QuerySemicolon
		case c == '%':
			if _, ok := unhex(query[i+1:]); !ok {
				irregular |= QueryLoose
			}
		case c == '#':
			return 0, Fragment
		case classes[c]&classLoose != 0:
			irregular |= QueryLoose
		default:
			return 0, BadQueryByte
		}
	}
	return irregular, Accepted
}

// EqualDecoded reports whether segment is s once its percent-encoding is undone one
// level deep. A segment with a broken escape equals nothing. Segments of a canonical
// path need no more than this.
func EqualDecoded(segment []byte, s string) bool {
	i := 0
	for len(segment) > 0 {
		c, n := segment[0], 1
		if c == '%' {
			var ok bool
			if c, ok = unhex(segment[1:]); !ok {
				return false
			}
			n = 3
		}
		if i == len(s) || s[i] != c {
			return false
		}
		segment = segment[n:]
		i++
	}
	return i == len(s)
}

// AppendDecoded appends segment to dst with its percent-encoding undone one level deep.
// With a broken escape it reports false and returns dst as it was.
func AppendDecoded(dst, segment []byte) ([]byte, bool) {
	start := len(dst)
	for i := 0; i < len(segment); i++ {
		c := segment[i]
		if c == '%' {
			var ok bool
			if c, ok = unhex(segment[i+1:]); !ok {
				return dst[:start], false
			}
			i += 2
		}
		dst = append(dst, c)
	}
	return dst, true
}
