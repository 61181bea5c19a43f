package canon

import "bytes"

const maxAuthorityBytes = 253 + len(":65535")

// readAuthority takes host and port from all places that name them: Host, :authority,
// and the absolute form. All that are there must agree but for case. A default port is
// not the same text as no port: who means the same writes the same.
func (q *Request) readAuthority(h *Head, absolute []byte) Verdict {
	named := h.Authority
	switch {
	case q.host.count > 1:
		return RepeatedHost
	case q.host.count == 0:
	case named == nil:
		named = h.Fields[q.host.at].Value
	case !equalASCIIFold(named, h.Fields[q.host.at].Value):
		return HostDiffers
	}
	if named == nil && q.host.count == 0 {
		if h.Major == 1 && h.Minor == 0 && absolute == nil {
			return Accepted
		}
		return MissingHost // RFC 9112 section 3.2
	}
	if !validAuthority(named) {
		return BadHost
	}
	if absolute != nil && !equalASCIIFold(absolute, named) {
		return HostDiffers
	}
	q.Authority = named
	for _, c := range named {
		if c != lower(c) {
			q.authorityBuf = appendLower(q.authorityBuf[:0], named)
			q.Authority = q.authorityBuf
			break
		}
	}
	return Accepted
}

// validAuthority wants a name of letters, digits, '-', '.', '_', an IPv4 address, or an
// IPv6 address in brackets, and perhaps a port. It is narrower than RFC 3986 section
// 3.2.2, where a name may hold percent-encoding and punctuation: no real host does.
func validAuthority(a []byte) bool {
	if len(a) == 0 || len(a) > maxAuthorityBytes {
		return false
	}
	var host, port []byte
	var hasPort bool
	if a[0] == '[' {
		end := bytes.IndexByte(a, ']')
		if end < 0 {
			return false
		}
		if _, ok := parseIPv6(a[1:end]); !ok {
			return false
		}
		rest := a[end+1:]
		if len(rest) == 0 {
			return true
		}
		return rest[0] == ':' && validPort(rest[1:])
	}
	host, port, hasPort = bytes.Cut(a, colon)
	if len(host) == 0 || !is(host, classHost) || host[0] == '.' || bytes.Contains(host, dotDot) {
		return false
	}
	return !hasPort || validPort(port)
}

var (
	colon  = []byte{':'}
	dotDot = []byte("..")
)

// validPort wants 1 to 5 digits up to 65535.
func validPort(p []byte) bool {
	if len(p) == 0 || len(p) > 5 {
		return false
	}
	n := 0
	for _, c := range p {
		if c < '0' || c > '9' {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n <= 65535
}

func equalASCIIFold(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i, c := range a {
		if lower(c) != lower(b[i]) {
			return false
		}
	}
	return true
}

func appendLower(dst, text []byte) []byte {
	for _, c := range text {
		dst = append(dst, lower(c))
	}
	return dst
}
