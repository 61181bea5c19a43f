package http1

import (
	"bytes"
	"net/netip"
)

// Request is the head of a request, as slices of the bytes that were read.
// It is valid until the exchange ends. Only requests that passed every check
// reach a handler, so Host is one valid authority, Target is in origin-form,
// absolute-form with that authority, or the asterisk of OPTIONS, and at most one
// of ContentLength and Chunked frames a body.
type Request struct {
	Method []byte // a token; case as sent
	Target []byte // bytes 0x21 to 0x7e without '#', every '%' of the path before two hex digits
	Host   []byte // authority of the Host field
	Minor  int    // 1 for HTTP/1.1, 0 for HTTP/1.0
	Fields []Field

	ContentLength  int64 // -1 if chunked, 0 if there is no body
	Chunked        bool
	ExpectContinue bool   // Expect: 100-continue in an HTTP/1.1 request that has a body
	Upgrade        []byte // value of Upgrade where Connection asks for it in HTTP/1.1, else empty

	head
	options    connectionOptions
	teTrailers bool // TE: trailers
}

var (
	errRequestLine = &ProtocolError{400, "request_line", "the request line is not METHOD SP target SP HTTP/1.x (RFC 9112 §3)"}
	errProxyHeader = &ProtocolError{400, CodeProxyHeader, "a PROXY protocol header in place of a request line (RFC 9112 §3)"}
	errMethod      = &ProtocolError{400, "method", "the method is not a token (RFC 9110 §9.1)"}
	errMethodLong  = &ProtocolError{501, "method_long", "no method is that long (RFC 9112 §3)"}
	errConnect     = &ProtocolError{501, "connect", "CONNECT is not supported (RFC 9110 §9.3.6)"}
	errTarget      = &ProtocolError{400, "target", "the request target is malformed (RFC 9112 §3.2)"}
	errTargetLong  = &ProtocolError{414, "target_bytes", "the request target is too long (RFC 9110 §15.5.15)"}
	errVersion     = &ProtocolError{505, "version", "the version is neither HTTP/1.1 nor HTTP/1.0 (RFC 9110 §15.6.6)"}
	errHostCount   = &ProtocolError{400, "host_count", "there is not exactly one Host (RFC 9112 §3.2)"}
	errHost        = &ProtocolError{400, "host", "Host is not an authority (RFC 9110 §7.2)"}
	errHostDiffers = &ProtocolError{400, "host_differs", "the target names another authority than Host (RFC 9112 §3.2.2)"}
	errExpect      = &ProtocolError{417, "expect", "an expectation other than 100-continue (RFC 9110 §10.1.1)"}
	errPreface     = &ProtocolError{505, "http2", "this listener does not speak HTTP/2"}
)

// CodeProxyHeader is the code of a request that begins with a header of the PROXY
// protocol, which whoever accepts the connection has to take off before.
const CodeProxyHeader = "proxy_header"

// isProxyHeader reports whether a connection begins with a PROXY protocol header of
// version 1 or 2 (haproxy.org, proxy-protocol.txt, sections 2.1 and 2.2).
func isProxyHeader(buf []byte) bool {
	return bytes.HasPrefix(buf, []byte("PROXY TCP")) || bytes.HasPrefix(buf, []byte("PROXY UNKNOWN")) || bytes.HasPrefix(buf, []byte("\r\n\r\n\x00\r\nQUIT\n"))
}

const (
	maxMethodBytes = 32
	// maxLineExtra is what a request line holds beside method and target.
	maxLineExtra = len("  HTTP/1.1\r\n")
)

func (r *Request) reset() {
	r.head.reset()
	r.Method, r.Target, r.Host, r.Upgrade, r.Fields = nil, nil, nil, nil, nil
	r.Minor, r.ContentLength = 0, 0
	r.Chunked, r.ExpectContinue, r.teTrailers = false, false, false
	r.options = connectionOptions{}
}

// parse reads what is there of a head and reports whether it is complete. After
// an incomplete parse it may be called again with more bytes in the same memory.
func (r *Request) parse(buf []byte, l *Limits) (bool, *ProtocolError) {
	if !r.started {
		text, ok, err := r.nextLine(buf)
		if err != nil {
			return false, err
		}
		if !ok {
			if len(buf) > l.TargetBytes+maxMethodBytes+maxLineExtra {
				return false, errTargetLong
			}
			return false, nil
		}
		if err := r.parseLine(text, l.TargetBytes); err != nil {
			if isProxyHeader(buf) {
				err = errProxyHeader
			}
			return false, err
		}
		r.started, r.firstLF = true, r.pos
	}
	done, err := r.scanFields(buf, l.HeaderBytes, l.HeaderCount)
	if !done || err != nil {
		return false, err
	}
	return true, r.finish()
}

// parseLine reads the request line (RFC 9112 §3).
func (r *Request) parseLine(text []byte, maxTarget int) *ProtocolError {
	i := bytes.IndexByte(text, ' ')
	if i <= 0 {
		if len(text) > maxTarget+maxMethodBytes {
			return errTargetLong
		}
		return errRequestLine
	}
	if i > maxMethodBytes {
		return errMethodLong
	}
	r.Method = text[:i:i]
	if !isToken(r.Method) {
		return errMethod
	}
	rest := text[i+1:]
	j := bytes.IndexByte(rest, ' ')
	if j <= 0 {
		if len(rest) > maxTarget {
			return errTargetLong
		}
		return errRequestLine
	}
	if j > maxTarget {
		return errTargetLong
	}
	r.Target = rest[:j:j]
	switch version := rest[j+1:]; {
	case string(version) == "HTTP/1.1":
		r.Minor = 1
	case string(version) == "HTTP/1.0":
		r.Minor = 0
	case len(version) == 8 && string(version[:5]) == "HTTP/" && isDigit(version[5]) && version[6] == '.' && isDigit(version[7]):
		return errVersion
	default:
		return errRequestLine
	}
	if string(r.Method) == "CONNECT" {
		return errConnect
	}
	return nil
}

// finish judges the head as a whole, once its last line was read.
func (r *Request) finish() *ProtocolError {
	r.Fields = r.fields
	hosts, expects := 0, 0
	for i := range r.lines {
		switch r.lines[i].kind {
		case kindHost:
			hosts++
			r.Host = r.fields[i].Value
		case kindExpect:
			if expects++; expects > 1 || !equalFold(r.fields[i].Value, "100-continue") {
				return errExpect
			}
		}
	}
	if hosts != 1 {
		return errHostCount
	}
	if !validAuthority(r.Host) {
		return errHost
	}
	if err := r.checkTarget(); err != nil {
		return err
	}
	var err *ProtocolError
	if r.options, err = r.connection(); err != nil {
		return err
	}
	length, chunked, err := r.framing(r.Minor)
	if err != nil {
		return err
	}
	r.Chunked = chunked
	switch {
	case chunked:
		r.ContentLength = -1
	case length > 0:
		r.ContentLength = length
	}
	r.ExpectContinue = expects == 1 && r.Minor == 1 && r.ContentLength != 0
	return r.readUpgradeAndTE()
}

func (r *Request) readUpgradeAndTE() *ProtocolError {
	upgrades := 0
	for i := range r.lines {
		switch r.lines[i].kind {
		case kindUpgrade:
			upgrades++
			if r.options.upgrade && r.Minor == 1 {
				r.Upgrade = r.fields[i].Value
			}
		case kindTE:
			for rest := r.fields[i].Value; len(rest) > 0; {
				var coding []byte
				coding, rest, _ = bytes.Cut(rest, []byte{','})
				if equalFold(trimOWS(coding), "trailers") {
					r.teTrailers = true
				}
			}
		}
	}
	if upgrades > 1 {
		r.Upgrade = nil // what was asked for is unclear, so nothing is switched (RFC 9110 §7.8)
	}
	return nil
}

// checkTarget accepts origin-form, absolute-form and the asterisk of OPTIONS
// (RFC 9112 §3.2). What a path means is for the caller to judge.
func (r *Request) checkTarget() *ProtocolError {
	for _, c := range r.Target {
		if c < 0x21 || c > 0x7e || c == '#' {
			return errTarget
		}
	}
	t := r.Target
	if t[0] != '/' {
		if string(t) == "*" {
			if string(r.Method) != "OPTIONS" {
				return errTarget
			}
			return nil
		}
		authority, rest, ok := splitAbsolute(t)
		if !ok || !validAuthority(authority) {
			return errTarget
		}
		if !equalFoldBytes(authority, r.Host) {
			return errHostDiffers
		}
		t = rest
	}
	if i := bytes.IndexByte(t, '?'); i >= 0 {
		t = t[:i]
	}
	for {
		i := bytes.IndexByte(t, '%')
		if i < 0 {
			return nil
		}
		if len(t) < i+3 || !isHex(t[i+1]) || !isHex(t[i+2]) {
			return errTarget
		}
		t = t[i+3:]
	}
}

// splitAbsolute cuts an absolute-form target into its authority and the path
// and query after it.
func splitAbsolute(t []byte) (authority, rest []byte, ok bool) {
	switch {
	case len(t) > 7 && equalFold(t[:7], "http://"):
		t = t[7:]
	case len(t) > 8 && equalFold(t[:8], "https://"):
		t = t[8:]
	default:
		return nil, nil, false
	}
	if i := bytes.IndexAny(t, "/?"); i >= 0 {
		return t[:i], t[i:], true
	}
	return t, nil, true
}

// originForm appends the target as an origin server expects it (RFC 9112 §3.2.1).
func (r *Request) originForm(dst []byte) []byte {
	if r.Target[0] == '/' || r.Target[0] == '*' {
		return append(dst, r.Target...)
	}
	_, rest, _ := splitAbsolute(r.Target)
	switch {
	case len(rest) == 0 && string(r.Method) == "OPTIONS":
		return append(dst, '*')
	case len(rest) == 0 || rest[0] == '?':
		dst = append(dst, '/')
	}
	return append(dst, rest...)
}

// validAuthority accepts a name or address with an optional port, and no user
// information (RFC 9110 §4.2.4, §7.2). Percent-encoding in names is refused.
func validAuthority(b []byte) bool {
	if len(b) > 0 && b[0] == '[' {
		i := bytes.IndexByte(b, ']')
		if i < 0 {
			return false
		}
		addr, err := netip.ParseAddr(string(b[1:i]))
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return false
		}
		if i+1 == len(b) {
			return true
		}
		return b[i+1] == ':' && validPort(b[i+2:])
	}
	host, port, hasPort := bytes.Cut(b, []byte{':'})
	if hasPort && !validPort(port) {
		return false
	}
	for _, c := range host {
		if !regNameByte[c] {
			return false
		}
	}
	return len(host) > 0
}

func validPort(b []byte) bool {
	n := 0
	for _, c := range b {
		if !isDigit(c) {
			return false
		}
		if n = n*10 + int(c-'0'); n > 65535 {
			return false
		}
	}
	return len(b) > 0 && len(b) <= 5
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isHex(c byte) bool {
	return isDigit(c) || c|0x20 >= 'a' && c|0x20 <= 'f'
}

// regNameByte marks unreserved and sub-delims of RFC 3986.
var regNameByte = func() (t [256]bool) {
	for c := range 256 {
		t[c] = isDigit(byte(c)) || c|0x20 >= 'a' && c|0x20 <= 'z' ||
			bytes.IndexByte([]byte("-._~!$&'()*+,;="), byte(c)) >= 0
	}
	return t
}()
