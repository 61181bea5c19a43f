package proxy

import "math/rand/v2"

// requestID names one request in our log, in the answer and to the upstream. It
// is not a secret; it only has to differ from all others.
type requestID [26]byte

// newRequestID draws 130 bits from the runtime's generator (ChaCha8, seeded by
// the system), as 26 characters of base32.
func newRequestID() requestID {
	const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
	var id requestID
	a, b, c := rand.Uint64(), rand.Uint64(), rand.Uint64() //nolint:gosec // names need to differ, not to be secret
	for i := range 12 {
		id[i], a = alphabet[a&31], a>>5
		id[i+12], b = alphabet[b&31], b>>5
	}
	id[24], id[25] = alphabet[c&31], alphabet[c>>5&31]
	return id
}

func (id *requestID) String() string { return string(id[:]) }

// NewRequestID returns a request id for a listener of its own, such as the one
// of the token APIs.
func NewRequestID() string {
	id := newRequestID()
	return id.String()
}
