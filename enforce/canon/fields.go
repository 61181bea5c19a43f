package canon

import (
	"math"
	"strings"
)

// role is what a header field means to us.
type role uint16

const (
	roleRemoved       role = 1 << iota // taken away in every spelling
	roleKeepable                       // may be named in Options.Keeps
	roleKept                           // forwarded in its own spelling when a trusted proxy sends it
	roleSet                            // set by the proxy
	roleCarrier                        // may hold a credential of ours
	roleAuthorization                  // always removed or kept for the route to decide, a carrier or not
	roleAddress                        // the one header that names the client
	roleScheme                         // X-Forwarded-Proto, while X-Forwarded-For is the one read
	roleHost                           // written anew from Request.Authority
	roleReferer                        // Referer, while a URL may hold a credential
	roleSubprotocol                    // Sec-WebSocket-Protocol, while it may hold a credential
	roleFraming                        // frames or paces the message: its own spelling is the wire engine's, every other is removed
	roleHop                            // the wire engine's too, but a Connection option may name it
	roleNoTrailer                      // only this: may not stand in a trailer (RFC 9110 section 6.5.1)
)

// Protected reports whether a Connection option that names this field must be ignored:
// the field is one that we set, judge by, or remove anyway, and no client may take it
// from the upstream. Every spelling counts.
func (r *Rules) Protected(name []byte) bool {
	if hasRemovedPrefix(name) {
		return true
	}
	entry := r.names.lookup(name)
	return entry != nil && entry.role&^(roleHop|roleNoTrailer) != 0
}

// ForbiddenTrailer reports whether a trailer field of this name is to be dropped: no
// token, a field that we set, judge by or remove, in every spelling, or one that frames
// or routes a message.
func (r *Rules) ForbiddenTrailer(name []byte) bool {
	return len(name) == 0 || !is(name, classToken) || hasRemovedPrefix(name) || r.names.lookup(name) != nil
}

// readFields sorts the field lines by role and gives each its disposition. It checks
// names, and reads no values but those of Referer and Authorization.
func (r *Rules) readFields(q *Request, h *Head) Verdict {
	if len(h.Fields) > math.MaxUint16 {
		return TooManyFields
	}
	if cap(q.dispositions) < len(h.Fields) {
		q.dispositions = make([]Disposition, len(h.Fields), len(h.Fields)+len(h.Fields)/2+16)
	}
	q.dispositions = q.dispositions[:len(h.Fields)]
	v := Accepted
	for i := range h.Fields {
		name := h.Fields[i].Name
		if len(name) == 0 || !is(name, classToken) {
			q.dispositions[i], v = Removed, BadFieldName // and not what it was for the request before
			continue
		}
		entry := r.names.lookup(name)
		switch {
		case entry != nil:
			q.dispositions[i] = r.readField(q, h, i, entry)
		case hasRemovedPrefix(name):
			q.dispositions[i] = Removed
		default:
			q.dispositions[i] = Forward
		}
	}
	return v
}

// readField notes field i, whose folded name is entry's. Only the exact spelling, but
// for case, is ever read; all others are removed.
func (r *Rules) readField(q *Request, h *Head, i int, entry *nameEntry) Disposition {
	if entry.role == roleNoTrailer {
		return Forward
	}
	if !entry.spelt(h.Fields[i].Name) {
		return Removed
	}
	switch {
	case entry.role&roleCarrier != 0:
		q.carried[entry.carrier].add(i)
		return Carrier
	case entry.role&roleAuthorization != 0:
		return r.readAuthorization(q, h, i, entry)
	case entry.role&(roleFraming|roleHop) != 0:
		return Forward
	case entry.role&roleSubprotocol != 0:
		q.wsLines = append(q.wsLines, uint16(i)) //nolint:gosec // readFields bounds i
		return Forward
	case entry.role&roleAddress != 0:
		q.addressLines = append(q.addressLines, uint16(i)) //nolint:gosec // readFields bounds i
	case entry.role&roleScheme != 0:
		q.proto.add(i)
	case entry.role&roleHost != 0:
		q.host.add(i)
	case entry.role&roleReferer != 0:
		if r.queryHoldsCredential(h.Fields[i].Value) {
			return Carrier
		}
		return Forward
	}
	if entry.role&roleKept != 0 && r.trusted.contains(h.Peer.Addr().Unmap().WithZone("")) {
		return Forward
	}
	return Removed
}

// nameTable finds header names in every spelling that a backend may fold into the same
// variable: case, and all punctuation alike, as CGI, WSGI, Rack and PHP do, and as
// Apache does with every character that is not a letter or digit.
type nameTable struct {
	byLength [maxNameBytes + 1][]nameEntry
}

// nameEntry is one name. Two entries of a table never fold to the same text.
type nameEntry struct {
	folded   string
	spelling string // lower case
	role     role
	carrier  int8    // index into Rules.carriers, -1 if it is none
	marks    []uint8 // where spelling has punctuation
}

const maxNameBytes = 64

// add enters e unless its folded name is there already; then it returns the entry that is in the way.
func (t *nameTable) add(e nameEntry) (*nameEntry, bool) {
	if old := t.find(e.spelling); old != nil {
		return old, false
	}
	if len(e.spelling) > maxNameBytes {
		return &nameEntry{spelling: e.spelling, role: roleNoTrailer}, false
	}
	e.folded = fold(e.spelling)
	for i := range len(e.folded) {
		if e.folded[i] == '-' {
			e.marks = append(e.marks, uint8(i)) //nolint:gosec // at most maxNameBytes
		}
	}
	t.byLength[len(e.folded)] = append(t.byLength[len(e.folded)], e)
	return nil, true
}

// grant gives a further role to a name that is in the table.
func (t *nameTable) grant(name string, r role) {
	t.find(name).role |= r
}

func (t *nameTable) find(name string) *nameEntry { return t.lookup([]byte(name)) }

func (t *nameTable) lookup(name []byte) *nameEntry {
	if len(name) == 0 || len(name) > maxNameBytes {
		return nil
	}
	entries := t.byLength[len(name)]
	first, last := foldTable[name[0]], foldTable[name[len(name)-1]]
	for i := range entries {
		e := &entries[i]
		if e.folded[0] == first && e.folded[len(e.folded)-1] == last && foldsTo(name, e.folded) {
			return e
		}
	}
	return nil
}

// spelt reports whether a name that folds to e's is e's but for case: only punctuation
// can tell them apart.
func (e *nameEntry) spelt(name []byte) bool {
	for _, i := range e.marks {
		if name[i] != e.spelling[i] {
			return false
		}
	}
	return true
}

// reason says why a name is taken, for an operator.
func (e *nameEntry) reason() string {
	switch {
	case len(e.spelling) > maxNameBytes:
		return "it is longer than 64 characters"
	case e.role&roleAuthorization != 0:
		return "authorization is read as a credential, and removed"
	case e.role&roleCarrier != 0:
		return "it is read as a credential, and removed"
	case e.role&roleSet != 0:
		return "the proxy sets it (" + e.spelling + ")"
	case e.role&(roleHost|roleFraming|roleHop|roleReferer|roleSubprotocol|roleNoTrailer) != 0:
		return "HTTP itself needs it (" + e.spelling + ")"
	default:
		return "it is always removed (" + e.spelling + ")"
	}
}

func foldsTo(name []byte, folded string) bool {
	for i, c := range name {
		if foldTable[c] != folded[i] {
			return false
		}
	}
	return true
}

// foldTable makes letters lower case and everything but letters and digits a '-'.
var foldTable = makeFoldTable()

func makeFoldTable() (t [256]byte) {
	for i := range t {
		c := lower(byte(i))
		if 'a' <= c && c <= 'z' || '0' <= c && c <= '9' {
			t[i] = c
		} else {
			t[i] = '-'
		}
	}
	return t
}

func fold(name string) string {
	folded := []byte(name)
	for i, c := range folded {
		folded[i] = foldTable[c]
	}
	return string(folded)
}

// removedPrefix covers X-Forwarded-For, -Host, -Proto, -Port, -Prefix, -Uri, -User,
// -Client-Cert and whatever else is invented.
const removedPrefix = "x-forwarded-"

func hasRemovedPrefix(name []byte) bool {
	return len(name) >= len(removedPrefix) && foldTable[name[0]] == 'x' && foldsTo(name[:len(removedPrefix)], removedPrefix)
}

// builtin enters the names that mean something whatever the options say.
func (c *compiler) builtin() {
	for _, group := range [...]struct {
		role  role
		names string
	}{
		{roleHost, "host"},
		{roleAuthorization, "authorization"},
		{roleSet, "x-request-id x-forwarded-for x-forwarded-proto x-forwarded-host"},
		{roleRemoved, "forwarded"},
		// Who the client is, as one product or another reads it.
		{roleRemoved | roleKeepable, `
			x-forwarded forwarded-for x-forward-for
			x-real-ip true-client-ip x-true-client-ip x-client-ip client-ip x-cluster-client-ip x-remote-ip x-remote-addr remote-addr
			x-originating-ip x-original-forwarded-for x-original-remote-addr x-proxyuser-ip proxy-client-ip wl-proxy-client-ip
			cf-connecting-ip cf-connecting-ipv6 cf-pseudo-ipv4 fastly-client-ip fly-client-ip do-connecting-ip x-nf-client-connection-ip
			x-appengine-user-ip x-azure-clientip x-azure-socketip x-envoy-external-address x-envoy-peer-metadata
			client-cert client-cert-chain`},
		// Which resource is meant, and how: what we judged would not be what runs.
		{roleRemoved, `
			x-original-url x-original-uri x-original-path x-original-method x-original-host x-original-proto
			x-rewrite-url x-rewrite-uri x-override-url x-envoy-original-path x-envoy-original-host x-envoy-original-method
			x-host x-http-host-override x-script-name script-name x-path-info path-info
			x-http-method-override x-http-method x-method-override x-method
			x-middleware-subrequest x-sendfile-type x-accel-mapping`},
		// Read by CGI programs as HTTP_PROXY, CVE-2016-5385; and credentials for a
		// proxy, which we are.
		{roleRemoved, "proxy proxy-authorization proxy-authenticate"},
		{roleFraming, "content-length transfer-encoding expect"},
		{roleHop, "connection proxy-connection keep-alive upgrade te trailer"},
		{roleNoTrailer, `
			accept-encoding content-encoding content-type content-range content-location content-disposition
			cache-control max-forwards pragma range if-match if-none-match if-modified-since if-unmodified-since if-range
			cookie set-cookie www-authenticate age date expires location retry-after vary origin referer sec-websocket-key
			sec-websocket-version sec-websocket-extensions sec-websocket-protocol
			access-control-allow-origin access-control-allow-credentials access-control-allow-methods
			access-control-allow-headers access-control-expose-headers access-control-max-age`},
	} {
		for name := range strings.FieldsSeq(group.names) {
			c.rules.names.add(nameEntry{spelling: name, role: group.role, carrier: -1})
		}
	}
}
