package admin

import "tokenward/enforce"

// Challenge returns the WWW-Authenticate value (RFC 6750 section 3) that goes
// with an error, or nothing for one that is not about the caller's token. A
// contract that has a challenge of its own uses that instead.
func Challenge(e *Error) string {
	switch e.Kind {
	case KindMissingToken:
		return enforce.Challenge
	case KindInvalidToken:
		return enforce.Challenge + `, error="invalid_token"`
	case KindScope:
		return enforce.Challenge + `, error="insufficient_scope", scope="` + e.Scope + `"`
	default:
		return ""
	}
}
