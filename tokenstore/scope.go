package tokenstore

import "strings"

// ManagePrefix begins the scopes that manage tokens. A lone `*` does not
// cover them: the power to make tokens is always named.
const ManagePrefix = "user:api-token:"

// The scopes that the token APIs ask for.
const (
	ScopeTokenRead  = ManagePrefix + "read"
	ScopeTokenWrite = ManagePrefix + "write"
)

// HasScope reports whether one of the token's scopes covers want, a scope that
// a route names.
func (t *Token) HasScope(want string) bool {
	root := t.IsRoot()
	for _, have := range t.Scopes {
		if have == want || scopeCovers(have, want, root) {
			return true
		}
	}
	return false
}

// scopeCovers reports whether have, a scope of a token, includes want, which is
// another and may itself be a pattern.
func scopeCovers(have, want string, root bool) bool {
	if have == "*" {
		return root || !reachesManagement(want)
	}
	prefix, ok := scopePrefix(have)
	return ok && strings.HasPrefix(want, prefix)
}

// reachesManagement reports whether want is, or as a pattern stands for, a
// scope that manages tokens.
func reachesManagement(want string) bool {
	if strings.HasPrefix(want, ManagePrefix) {
		return true
	}
	prefix, ok := scopePrefix(want)
	return ok && strings.HasPrefix(ManagePrefix, prefix)
}

// scopePrefix returns what a pattern scope (`cards:*`, `cards-*`) stands for
// the beginning of.
func scopePrefix(scope string) (prefix string, ok bool) {
	if !strings.HasSuffix(scope, ":*") && !strings.HasSuffix(scope, "-*") {
		return "", false
	}
	return scope[:len(scope)-1], true
}

// scopesCover reports whether every scope of inner is covered by outer's. One that
// stands for more than token management, such as `user:*`, takes two to cover it:
// `*`, and all of management beside it.
func scopesCover(outer, inner *Token) bool {
	everything := outer.HasScope("*") && outer.HasScope(ManagePrefix+"*")
	for _, want := range inner.Scopes {
		if !everything && !outer.HasScope(want) {
			return false
		}
	}
	return true
}
