package canon

import "bytes"

// Credential is what a request presents. The zero value is no credential.
type Credential struct {
	Kind CredentialKind
	// Secret is the text presented, for OneCredential only. It points into the Head or
	// the Request, is valid as long as these, and must not be printed.
	Secret []byte
}

// String never shows the secret.
func (c Credential) String() string { return c.Kind.String() }

// GoString never shows the secret.
func (c Credential) GoString() string { return "canon.Credential(" + c.Kind.String() + ")" }

// CredentialKind says what there was to read.
type CredentialKind uint8

const (
	// NoCredential: answer 401 missing_token.
	NoCredential CredentialKind = iota
	// OneCredential: one secret, in one place or the same in several.
	OneCredential
	// MalformedCredential: a place that holds no possible secret. Answer 401 invalid_token.
	MalformedCredential
	// AmbiguousCredential: two that differ, or one place twice. Answer 400 ambiguous_credential.
	AmbiguousCredential

	numCredentialKinds
)

var credentialKindNames = [numCredentialKinds]string{"none", "one", "malformed", "ambiguous"}

// String names the kind for logs.
func (k CredentialKind) String() string { return credentialKindNames[k] }

// maxSecretBytes bounds what is hashed for one look-up of a foreign secret.
const maxSecretBytes = 4096

// carried is where one carrier was found in a request.
type carried struct {
	found        // the field, for headers; only counted, for the others
	raw   []byte // encoded value, for query and subprotocol
}

// Credential reads the carriers in order. It is asked for only where a route needs a
// credential: on public routes carriers are removed unread, and two that differ are no
// fault there.
//
// A secret is 1 to 4096 visible ASCII characters but for the comma, since a proxy that
// joins two lines writes one. That is wider than the token68 of RFC 6750, as secrets
// imported from other products are. "Authorization: Bearer S" takes any case of the
// scheme and one or more spaces (RFC 9110 section 11.4); an Authorization with another
// scheme, or with nothing that looks like a scheme, is not ours and is no credential.
// All other headers hold the secret as it is; query parameters hold it form-encoded; in
// Sec-WebSocket-Protocol it is the element after NAME.
//
// The result is valid until the next Canonicalize. Each call does the work again.
func (q *Request) Credential() (found Credential) {
	if q.verdict != Accepted {
		return found
	}
	if q.auth.count > 1 {
		return Credential{Kind: AmbiguousCredential}
	}
	q.secretBuf = q.secretBuf[:0]
	for i := range q.carried[:len(q.rules.carriers)] {
		if q.carried[i].count == 0 {
			continue
		}
		kind, secret := q.readCarrier(i)
		switch {
		case found.Kind == NoCredential:
			found.Kind, found.Secret = kind, secret
		case found.Kind != kind || !bytes.Equal(found.Secret, secret):
			return Credential{Kind: AmbiguousCredential}
		}
	}
	if found.Kind == MalformedCredential {
		found.Secret = nil
	}
	return found
}

// readCarrier reads a place that was found. A malformed credential still bears its
// text, so that it can be told from another one.
func (q *Request) readCarrier(i int) (kind CredentialKind, secret []byte) {
	place := &q.carried[i]
	if place.count > 1 {
		return AmbiguousCredential, nil
	}
	switch q.rules.carriers[i].kind {
	case carrierAuthorization:
		_, secret = splitBearer(q.fields[place.at].Value)
	case carrierHeader:
		secret = trimSpace(q.fields[place.at].Value)
	case carrierSubprotocol:
		secret = place.raw
	case carrierQuery:
		start := len(q.secretBuf)
		var ok bool
		if q.secretBuf, ok = AppendFormDecoded(q.secretBuf, place.raw); !ok {
			return MalformedCredential, place.raw
		}
		secret = q.secretBuf[start:]
	}
	if len(secret) == 0 || len(secret) > maxSecretBytes || !is(secret, classSecret) {
		return MalformedCredential, secret
	}
	return OneCredential, secret
}

// readAuthorization notes an Authorization line and tells ours from those of another scheme.
func (r *Rules) readAuthorization(q *Request, h *Head, i int, entry *nameEntry) Disposition {
	if q.auth.count > 0 { // neither can be told to be the one that is meant
		q.dispositions[q.auth.at] = Carrier
		q.auth.add(i)
		return Carrier
	}
	q.auth.add(i)
	if entry.carrier < 0 {
		return ForeignAuthorization
	}
	if bearer, _ := splitBearer(h.Fields[i].Value); !bearer {
		return ForeignAuthorization
	}
	q.carried[entry.carrier].add(i)
	return Carrier
}

// splitBearer reports whether the scheme is Bearer, and what follows it. A scheme ends
// at the first byte that is not a token character, so "Bearer\tS" is a malformed Bearer
// and "BearerS" is another scheme.
func splitBearer(value []byte) (bearer bool, secret []byte) {
	const scheme = "bearer"
	value = trimSpace(value)
	if len(value) < len(scheme) || !equalLower(value[:len(scheme)], scheme) {
		return false, nil
	}
	rest := value[len(scheme):]
	if len(rest) > 0 && classes[rest[0]]&classToken != 0 {
		return false, nil
	}
	for len(rest) > 0 && rest[0] == ' ' {
		rest = rest[1:]
	}
	return true, rest
}

// takeQueryCredentials notes credentials in the query and takes their parameters out of
// q.Query. It reports whether there were any.
func (r *Rules) takeQueryCredentials(q *Request) bool {
	taken := false
	q.queryBuf = q.queryBuf[:0]
	first := true
	for rest, more := q.Query, true; more; {
		var parameter []byte
		parameter, rest, more = bytes.Cut(rest, ampersand)
		name, value, _ := bytes.Cut(parameter, equals)
		if i := r.queryCarrier(name); i >= 0 {
			q.carried[i].count++
			q.carried[i].raw = value
			taken = true
			continue
		}
		if !first {
			q.queryBuf = append(q.queryBuf, '&')
		}
		q.queryBuf = append(q.queryBuf, parameter...)
		first = false
	}
	if taken {
		q.Query, q.HasQuery = q.queryBuf, !first
	}
	return taken
}

var ampersand = []byte{'&'}

// queryHoldsCredential looks for a credential in a URL that another request had: a
// browser repeats it in Referer.
func (r *Rules) queryHoldsCredential(url []byte) bool {
	_, query, more := bytes.Cut(url, questionMark)
	for more {
		var parameter []byte
		parameter, query, more = bytes.Cut(query, ampersand)
		if name, _, _ := bytes.Cut(parameter, equals); r.queryCarrier(name) >= 0 {
			return true
		}
	}
	return false
}

// queryCarrier finds the carrier that an encoded parameter name stands for, or -1.
func (r *Rules) queryCarrier(name []byte) int {
	for i := range r.carriers {
		if c := &r.carriers[i]; c.kind == carrierQuery && EqualFormDecoded(name, c.name) {
			return i
		}
	}
	return -1
}

// readSubprotocols looks for NAME in Sec-WebSocket-Protocol and takes it and the
// element after it, which is the secret, out of the list. Browsers let a script set no
// other header of a WebSocket; the pair is what their "new WebSocket(url, [NAME,
// secret])" sends.
func (r *Rules) readSubprotocols(q *Request) {
	buf := q.protocolBuf[:0]
	pending := -1 // carrier whose secret comes next
	found := false
	for _, line := range q.wsLines {
		for rest, more := q.fields[line].Value, true; more; {
			var element []byte
			element, rest, more = bytes.Cut(rest, comma)
			element = trimSpace(element)
			i := r.subprotocolCarrier(element)
			if pending >= 0 && i < 0 {
				q.carried[pending].raw = element
				pending = -1
				continue
			}
			if i >= 0 { // also where a secret should stand: then that is missing
				q.carried[i].count++
				q.subcarrier = r.carriers[i].name
				pending, found = i, true
				continue
			}
			if len(buf) > 0 {
				buf = append(buf, ", "...)
			}
			buf = append(buf, element...)
		}
	}
	q.protocolBuf = buf
	if !found {
		return
	}
	for _, line := range q.wsLines {
		q.dispositions[line] = Carrier
	}
	if len(buf) > 0 {
		q.protocols = buf
	}
}

var comma = []byte{','}

func (r *Rules) subprotocolCarrier(element []byte) int {
	for i := range r.carriers {
		if c := &r.carriers[i]; c.kind == carrierSubprotocol && string(element) == c.name {
			return i
		}
	}
	return -1
}
