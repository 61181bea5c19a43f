package canon

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
)

// Client is where a request comes from.
type Client struct {
	// Addr is the client's address, unmapped and without zone; invalid unless Known.
	Addr netip.Addr
	// Known is false if no address could be believed. Every rule about sources then denies.
	Known bool
	// Basis says on what the address, or the lack of one, rests.
	Basis Basis
	// Peer is the other end of the connection, unmapped and without zone; invalid if
	// the door did not know it.
	Peer netip.Addr
	// Hops is how many hops of the header were believed.
	Hops int
}

// Basis is the ground for believing a client address.
type Basis uint8

const (
	// PeerUnknown: the door did not know the peer's address. The client is unknown.
	PeerUnknown Basis = iota
	// PeerItself: the peer is not a trusted proxy, so it is the client, whatever its headers say.
	PeerItself
	// NothingForwarded: the peer is a trusted proxy that named no client, so it is the client itself.
	NothingForwarded
	// FirstUntrustedHop: right to left, the first hop that is not a trusted proxy.
	FirstUntrustedHop
	// AllHopsTrusted: every hop is a trusted proxy; the leftmost is the client.
	AllHopsTrusted
	// UnreadableHop: a hop that had to be read is not an address. The client is unknown.
	UnreadableHop
	// TooManyHops: more trusted hops than anybody chains. The client is unknown.
	TooManyHops

	numBases
)

var basisNames = [numBases]string{
	"peer_unknown", "peer_itself", "nothing_forwarded", "first_untrusted_hop", "all_hops_trusted", "unreadable_hop", "too_many_hops",
}

// String names the basis for logs.
func (b Basis) String() string { return basisNames[b] }

const maxHops = 64

// readClient works out q.Client from the peer and, if the peer is a trusted proxy, from
// the lines that readFields gathered.
func (r *Rules) readClient(q *Request, h *Head) {
	peer := h.Peer.Addr().Unmap().WithZone("")
	q.Client.Peer = peer
	q.Secure = h.TLS
	if !peer.IsValid() {
		return
	}
	q.Client.Addr, q.Client.Known, q.Client.Basis = peer, true, PeerItself
	if !r.trusted.contains(peer) {
		return
	}
	q.Client.Basis = NothingForwarded
	r.readScheme(q, h)
	for i := len(q.addressLines) - 1; i >= 0; i-- {
		line := h.Fields[q.addressLines[i]].Value
		for more := true; more; {
			var hop []byte
			if hop, line, more = lastHop(line); !r.believeHop(q, hop) {
				return
			}
		}
	}
}

// lastHop cuts the rightmost hop off line; more says whether there was a comma before it.
// X-Forwarded-For knows no quotes, and a hop that has one is unreadable wherever it is cut.
func lastHop(line []byte) (hop, rest []byte, more bool) {
	cut := lastUnquoted(line, ',')
	hop = trimSpace(line[cut+1:])
	if cut < 0 {
		return hop, nil, false
	}
	return hop, line[:cut], true
}

// believeHop takes one hop and reports whether to go on to the next.
func (r *Rules) believeHop(q *Request, hop []byte) bool {
	node := hop
	if r.forwarded {
		node = forwardedParameter(hop, "for")
	}
	addr, ok := parseNode(node)
	if !ok {
		q.badHop = hop
		q.Client.Addr, q.Client.Known, q.Client.Basis = netip.Addr{}, false, UnreadableHop
		return false
	}
	if len(q.hops) == maxHops {
		q.Client.Addr, q.Client.Known, q.Client.Basis = netip.Addr{}, false, TooManyHops
		return false
	}
	q.hops = append(q.hops, addr)
	q.Client.Hops = len(q.hops)
	q.Client.Addr = addr
	if r.trusted.contains(addr) {
		q.Client.Basis = AllHopsTrusted
		return true
	}
	q.Client.Basis = FirstUntrustedHop
	return false
}

// readScheme believes the nearest trusted proxy about https, by X-Forwarded-Proto or by
// proto= of the last Forwarded element.
func (r *Rules) readScheme(q *Request, h *Head) {
	var scheme []byte
	switch {
	case r.forwarded && len(q.addressLines) > 0:
		hop, _, _ := lastHop(h.Fields[q.addressLines[len(q.addressLines)-1]].Value)
		scheme = forwardedParameter(hop, "proto")
	case q.proto.count == 1: // never where Forwarded is read
		scheme = h.Fields[q.proto.at].Value
	}
	switch {
	case equalLower(scheme, "https"):
		q.Secure = true
	case equalLower(scheme, "http"):
		q.Secure = false
	}
}

// ExplainClient says in a sentence which address was believed and why, for explain and
// whoami. It quotes the header; escape it for terminals as any client text. It
// allocates.
func (q *Request) ExplainClient() string {
	c := &q.Client
	switch c.Basis {
	case PeerItself:
		return fmt.Sprintf("%v is the peer of the connection, and no trusted proxy: what it forwards is not read", c.Addr)
	case NothingForwarded:
		return fmt.Sprintf("%v is a trusted proxy that forwarded for nobody, so it is the client itself", c.Addr)
	case FirstUntrustedHop:
		return fmt.Sprintf("%v is hop %d from the right, named by trusted proxy %v, and itself no trusted proxy", c.Addr, c.Hops, q.namedBy(c.Hops))
	case AllHopsTrusted:
		return fmt.Sprintf("%v is the leftmost of %d hops, which are all trusted proxies", c.Addr, c.Hops)
	case UnreadableHop:
		return fmt.Sprintf("unknown: hop %d from the right, named by trusted proxy %v, is %q, which is not an address", c.Hops+1, q.namedBy(c.Hops+1), clip(q.badHop))
	case TooManyHops:
		return fmt.Sprintf("unknown: more than %d trusted hops in a row", maxHops)
	default:
		return "unknown: the connection has no address"
	}
}

// namedBy is the proxy that wrote hop n, counted from 1 at the right.
func (q *Request) namedBy(n int) netip.Addr {
	if n <= 1 {
		return q.Client.Peer
	}
	return q.hops[n-2]
}

func clip(text []byte) string {
	const most = 100
	if len(text) > most {
		return strings.ToValidUTF8(string(text[:most]), "") + "…"
	}
	return string(text)
}

// lastUnquoted finds the rightmost sep outside quoted strings, scanning from the right:
// the right end was written by whom we trust, so its quotes are paired, and no quote
// that a client left open further left can reach it. Backslash escapes make the element
// unreadable later.
func lastUnquoted(text []byte, sep byte) int {
	quoted := false
	for i := len(text) - 1; i >= 0; i-- {
		switch {
		case text[i] == '"':
			quoted = !quoted
		case text[i] == sep && !quoted:
			return i
		}
	}
	return -1
}

// forwardedParameter finds the one parameter of a Forwarded element (RFC 7239 section
// 4) called name, unquoted. It returns nil if the element is malformed in any way, or
// has the parameter not exactly once.
func forwardedParameter(element []byte, name string) (value []byte) {
	if bytes.IndexByte(element, '\\') >= 0 {
		return nil
	}
	for more := true; more; {
		cut := lastUnquoted(element, ';')
		pair := trimSpace(element[cut+1:])
		if more = cut >= 0; more {
			element = element[:cut]
		}
		key, val, _ := bytes.Cut(pair, equals)
		if len(key) == 0 || !is(key, classToken) || len(val) == 0 {
			return nil
		}
		if val[0] == '"' {
			var closed bool
			if val, closed = bytes.CutSuffix(val[1:], quote); !closed {
				return nil
			}
		}
		if bytes.IndexByte(val, '"') >= 0 {
			return nil
		}
		if !equalLower(key, name) {
			continue
		}
		if value != nil {
			return nil
		}
		value = val
	}
	return value
}

var (
	quote  = []byte{'"'}
	equals = []byte{'='}
)

// parseNode reads the forms in which proxies write an address: 192.0.2.1,
// 192.0.2.1:443, 2001:db8::1, [2001:db8::1], [2001:db8::1]:443. Everything else,
// "unknown" and "_hidden" of RFC 7239 included, is unreadable. v4-mapped addresses come
// back unmapped.
func parseNode(node []byte) (netip.Addr, bool) {
	if len(node) > 0 && node[0] == '[' {
		end := bytes.IndexByte(node, ']')
		if end < 0 {
			return netip.Addr{}, false
		}
		if rest := node[end+1:]; len(rest) > 0 && (rest[0] != ':' || !validPort(rest[1:])) {
			return netip.Addr{}, false
		}
		return parseIPv6(node[1:end])
	}
	first := bytes.IndexByte(node, ':')
	if first < 0 {
		return parseIPv4(node)
	}
	if bytes.IndexByte(node[first+1:], ':') >= 0 {
		return parseIPv6(node)
	}
	if !validPort(node[first+1:]) {
		return netip.Addr{}, false
	}
	return parseIPv4(node[:first])
}

// parseIPv4 takes four decimal numbers without leading zeros and nothing else.
// netip.ParseAddr would do, but wants a string, which allocates.
func parseIPv4(text []byte) (netip.Addr, bool) {
	a, ok := fourBytes(text)
	if !ok {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4(a), true
}

func fourBytes(text []byte) (a [4]byte, ok bool) {
	n, digits, value := 0, 0, 0
	for i := 0; i <= len(text); i++ {
		if i == len(text) || text[i] == '.' {
			if digits == 0 || n == len(a) {
				return a, false
			}
			a[n] = byte(value)
			n++
			digits, value = 0, 0
			continue
		}
		c := text[i]
		if c < '0' || c > '9' || digits > 0 && value == 0 {
			return a, false
		}
		value = value*10 + int(c-'0')
		if digits++; value > 255 {
			return a, false
		}
	}
	return a, n == len(a)
}

// parseIPv6 takes the forms of RFC 4291 section 2.2 without a zone.
func parseIPv6(text []byte) (netip.Addr, bool) {
	var a [16]byte
	n, gap := 0, -1 // bytes written; where "::" stands
	if len(text) >= 2 && text[0] == ':' && text[1] == ':' {
		gap = 0
		text = text[2:]
	}
	for len(text) > 0 {
		if n == len(a) {
			return netip.Addr{}, false
		}
		value, digits := 0, 0
		for digits < len(text) && hexValues[text[digits]] < 16 {
			value = value<<4 | int(hexValues[text[digits]])
			if digits++; digits > 4 {
				return netip.Addr{}, false
			}
		}
		if digits < len(text) && text[digits] == '.' {
			v4, ok := fourBytes(text)
			if !ok || n > len(a)-4 {
				return netip.Addr{}, false
			}
			copy(a[n:], v4[:])
			n += 4
			break
		}
		if digits == 0 {
			return netip.Addr{}, false
		}
		a[n], a[n+1] = byte(value>>8), byte(value)
		n += 2
		if text = text[digits:]; len(text) == 0 {
			break
		}
		if text[0] != ':' || len(text) == 1 {
			return netip.Addr{}, false
		}
		if text = text[1:]; text[0] == ':' {
			if gap >= 0 {
				return netip.Addr{}, false
			}
			gap = n
			text = text[1:]
		}
	}
	switch {
	case gap < 0 && n != len(a):
		return netip.Addr{}, false
	case gap >= 0 && n == len(a):
		return netip.Addr{}, false // "::" stands for at least one group
	case gap >= 0:
		tail := n - gap
		copy(a[len(a)-tail:], a[gap:n])
		clear(a[gap : len(a)-tail])
	}
	return netip.AddrFrom16(a).Unmap(), true
}

// trimSpace takes spaces and tabs off both ends.
func trimSpace(text []byte) []byte {
	for len(text) > 0 && (text[0] == ' ' || text[0] == '\t') {
		text = text[1:]
	}
	for len(text) > 0 && (text[len(text)-1] == ' ' || text[len(text)-1] == '\t') {
		text = text[:len(text)-1]
	}
	return text
}
