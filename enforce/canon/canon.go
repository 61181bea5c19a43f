// Package canon turns the head of a request into the one canonical form that is both
// judged and forwarded, or refuses it.
//
// A door (HTTP/1.1, HTTP/2, the token APIs) fills a [Head] with what it read and calls
// [Rules.Canonicalize]. From then on nobody looks at the raw request line or at a raw
// credential again: the decision reads the [Request], and the forwarding side writes
// what the Request says. What the two could read differently is refused here
// ([Verdict]), or flagged as an [Irregularity] that is refused unless the matched route
// relaxes it by name.
//
// The rules hold state for no request and may be used by any number of goroutines; a
// Request belongs to one connection or stream at a time and is reused, so that nothing
// is allocated once its buffers have grown.
package canon

import "net/netip"

// Field is one header field line as received. The door has split it, trimmed optional
// whitespace around the value, and made sure that the value holds no CR, LF or NUL;
// canon checks the name again. Any struct of this form is one: a door need not copy its
// list.
type Field = struct {
	Name, Value []byte
}

// Head is what a door read from the wire, before any interpretation. All slices stay
// the door's and must not change until the [Request] made from them is no longer used.
type Head struct {
	// Method and Target are the two texts of the request line, or :method and :path.
	Method, Target []byte
	// Authority is :authority; nil in HTTP/1.x and where HTTP/2 left it out.
	Authority []byte
	// Fields holds every field line in order, Host included. A door over net/http,
	// which moves Host away, adds it back.
	Fields []Field
	// Major and Minor are the HTTP version. Only HTTP/1.0 may come without a Host.
	Major, Minor uint8
	// TLS says whether this connection is encrypted up to us.
	TLS bool
	// Upgrade says that the request asks the connection to switch to another protocol.
	Upgrade bool
	// Peer is the other end of the connection, or what a listed peer named by PROXY
	// protocol. The zero value is an unknown peer.
	Peer netip.AddrPort
}

// Request is the canonical request. The zero value is refused ([Unread]), presents no
// credential and comes from an unknown client.
//
// Its slices point into the Head or into its own scratch space: they are valid until
// the next Canonicalize with the same Request, and read-only. A Request must not be
// copied after first use. It is not safe for concurrent use.
type Request struct {
	// Method is an upper-case token, never CONNECT or TRACE.
	Method []byte
	// Authority is host[:port] in lower case, to be forwarded as Host. Empty only for
	// HTTP/1.0 without Host.
	Authority []byte
	// Path starts with a slash; percent-encoded unreserved characters are decoded,
	// everything else stands as received. It is "*" when Asterisk is set. Split it at
	// '/', compare segments with [EqualDecoded].
	Path []byte
	// Plain says that Path has no percent-encoded byte, so that its segments are what they stand for.
	Plain bool
	// Query is what follows the question mark, byte for byte, without the parameters
	// that carry credentials.
	Query []byte
	// HasQuery tells "/a?" from "/a".
	HasQuery bool
	// Asterisk is set for "OPTIONS *".
	Asterisk bool
	// Secure says that the client's side speaks https: by TLS to us, or by the word of
	// a trusted proxy. For X-Forwarded-Proto only.
	Secure bool
	// Upgrade says that the request asks the connection to switch to another protocol:
	// it may then write whatever its method.
	Upgrade bool
	// Irregular is what the matched route must have relaxed by name; if any bit is left
	// over, the request is refused.
	Irregular Irregularity
	// Client is where the request comes from.
	Client Client

	verdict Verdict
	rules   *Rules
	fields  []Field

	target            []byte // to forward
	claimed           []byte // the same with query credentials still in it
	protocols         []byte // Sec-WebSocket-Protocol without the credential, if rewritten
	subcarrier        string // name of the subprotocol that announced a credential
	carried           [maxCarriers]carried
	host, auth, proto found // Host, Authorization, X-Forwarded-Proto

	dispositions []Disposition
	addressLines []uint16
	wsLines      []uint16
	hops         []netip.Addr // believed hops, nearest first, without the peer
	badHop       []byte

	authorityBuf, pathBuf, deepBuf, targetBuf, claimedBuf, queryBuf, protocolBuf, secretBuf []byte
}

// found counts the lines of one field; at is the index of the last one.
type found struct{ count, at int }

func (f *found) add(at int) {
	f.count++
	f.at = at
}

// Disposition says what becomes of one received field line.
type Disposition uint8

const (
	// Removed lines never reach an upstream, not even in observe mode.
	Removed Disposition = iota
	// Carrier lines hold (or may hold) a credential of ours. Only observe mode forwards them.
	Carrier
	// ForeignAuthorization is an Authorization of another scheme: forwarded only if the
	// route says forward_authorization and the credential came by another carrier.
	ForeignAuthorization
	// Forward lines go to the upstream byte for byte, unless they are hop-by-hop, which
	// the wire engine knows.
	Forward
)

// Canonicalize reads h into dst and reports [Accepted], or why the request is refused.
// After a refusal dst holds nothing but the verdict and the client, which is unknown
// only if the fields are too many to read. Whatever is accepted must still be refused
// if Irregular has a bit that the matched route does not relax.
func (r *Rules) Canonicalize(dst *Request, h *Head) Verdict {
	dst.reset(r, h)
	v := r.readFields(dst, h)
	if v != TooManyFields {
		r.readClient(dst, h)
	}
	if v == Accepted {
		v = r.readRequest(dst, h)
	}
	if v != Accepted {
		dst.wipe()
	}
	dst.verdict = v
	return v
}

// Verdict is what Canonicalize said last.
func (q *Request) Verdict() Verdict { return q.verdict }

// Target is the origin-form (or "*") to send to the upstream: canonical path, and query
// without credentials.
func (q *Request) Target() []byte { return q.target }

// TargetWithCredentials is Target before credentials were taken out of the query; for
// observe mode only.
func (q *Request) TargetWithCredentials() []byte { return q.claimed }

// Disposition says what becomes of field i of the Head.
func (q *Request) Disposition(i int) Disposition {
	if i >= len(q.dispositions) {
		return Removed
	}
	return q.dispositions[i]
}

// Subprotocols is the Sec-WebSocket-Protocol value to send in place of the lines that
// are not forwarded because they held a credential; nil if there is nothing to send.
// Announced is the protocol name that carried the credential, empty if none did: a
// browser gives up unless one of the protocols it offered is selected, so when the
// upstream selects none, the answer to the client must select it.
func (q *Request) Subprotocols() (value []byte, announced string) {
	return q.protocols, q.subcarrier
}

// AppendForwardedFor appends the X-Forwarded-For value to send: the believed hops,
// client first, then the peer. Nothing that an untrusted party wrote is in it. Appends
// nothing if not even the peer is known.
func (q *Request) AppendForwardedFor(dst []byte) []byte {
	for i := len(q.hops) - 1; i >= 0; i-- {
		dst = q.hops[i].AppendTo(dst)
		dst = append(dst, ", "...)
	}
	return q.Client.Peer.AppendTo(dst) // nothing of an unknown one
}

func (q *Request) reset(r *Rules, h *Head) {
	q.wipe()
	q.verdict = Unread
	q.rules = r
	q.fields = h.Fields
	q.Client = Client{}
	q.hops = q.hops[:0]
	q.addressLines = q.addressLines[:0]
	q.wsLines = q.wsLines[:0]
	for i := range r.carriers {
		q.carried[i] = carried{}
	}
	q.host, q.auth, q.proto = found{}, found{}, found{}
}

// wipe takes back everything that a refused request must not show.
func (q *Request) wipe() {
	q.Method, q.Authority, q.Path, q.Query = nil, nil, nil, nil
	q.target, q.claimed, q.protocols, q.subcarrier = nil, nil, nil, ""
	q.Plain, q.HasQuery, q.Asterisk, q.Secure, q.Upgrade = false, false, false, false, false
	q.Irregular = 0
	q.dispositions = q.dispositions[:0]
	q.rules, q.fields = nil, nil
}

// readRequest reads method, authority, target and the rest of the credential carriers;
// the field lines are read already.
func (r *Rules) readRequest(q *Request, h *Head) Verdict {
	if v := checkMethod(h.Method); v != Accepted {
		return v
	}
	q.Method, q.Upgrade = h.Method, h.Upgrade
	if len(h.Target) > r.maxTargetBytes {
		return TargetTooLong
	}
	t, v := splitTarget(h)
	if v != Accepted {
		return v
	}
	if v := q.readAuthority(h, t.authority); v != Accepted {
		return v
	}
	if v := r.readTarget(q, &t); v != Accepted {
		return v
	}
	r.readSubprotocols(q)
	return Accepted
}

const maxMethodBytes = 32

// checkMethod tells what is no token at all (RFC 9110 section 9.1) from what is a token
// we do not implement. Methods are case-sensitive, so "get" is an unknown method and
// not a misspelt GET; a backend that folds it would run what no rule has judged.
func checkMethod(m []byte) Verdict {
	acc := ^class(0)
	for _, c := range m {
		acc &= classes[c]
	}
	switch {
	case len(m) == 0 || acc&classToken == 0:
		return BadMethod
	case acc&classMethod == 0 || len(m) > maxMethodBytes || m[0] < 'A' || m[0] > 'Z':
		return UnknownMethod
	case string(m) == "CONNECT" || string(m) == "TRACE":
		return MethodNotAllowed
	}
	return Accepted
}
