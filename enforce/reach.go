package enforce

import "tokenward/tokenstore"

// ScopesHold reports whether t has the scopes that the route asks for. A public
// route asks no token, so none holds them.
func (r *Route) ScopesHold(t *tokenstore.Token) bool {
	if r.Public {
		return false
	}
	for _, either := range r.scopes {
		if !hasAny(t, either) {
			return false
		}
	}
	return true
}
