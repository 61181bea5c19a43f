package admin

// realm names the protection space of RFC 9110 section 11.5.
const realm = `Bearer realm="tokenward"`

// Challenge returns the WWW-Authenticate value (RFC 6750 section 3) that goes
// with an error, or nothing for one that is not about the caller's token. A
// contract that has a challenge of its own uses that instead.
func Challenge(e *Error) string {
	switch e.Kind {
	case KindMissingToken:
		return realm
	case KindInvalidToken:
		return realm + `, error="invalid_token"`
	case KindScope:
		return realm + `, error="insufficient_scope", scope="` + e.Scope + `"`
	default:
		return ""
	}
}
