// Package identity tells the upstream who asks: it turns a token into header
// fields. The fields are set on the outgoing request only, after everything a
// client could have sent under their names, in any spelling, was removed.
package identity

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"tokenward/tokenstore"
)

// Names are the header names to use; an empty one is not sent.
type Names struct {
	ID        string // the token's id
	Account   string // its account; 0 for a root token
	Owner     string // the user inside the account
	Name      string // percent-encoded where it is not visible ASCII
	Scopes    string // separated by spaces; absent for a token without scopes
	Resources string // `all`, or `type:id:level` separated by commas
}

// DefaultNames are the names of the headers unless the operator chooses others.
func DefaultNames() Names {
	return Names{ID: "X-Token-Id", Account: "X-Token-Account", Owner: "X-Token-Owner",
		Name: "X-Token-Name", Scopes: "X-Token-Scopes", Resources: "X-Token-Resources"}
}

// Headers says who asks, header by header. The nil *Headers has none. It is immutable
// and safe for concurrent use.
type Headers struct{ fields []field }

type field struct {
	name  string
	value func([]byte, *tokenstore.Token) []byte
}

// New checks the names.
func New(n Names) (*Headers, error) {
	h := &Headers{}
	for _, f := range []struct {
		key, name string
		value     func([]byte, *tokenstore.Token) []byte
	}{
		{"id", n.ID, appendID}, {"account", n.Account, appendAccount}, {"owner", n.Owner, appendOwner},
		{"name", n.Name, appendName}, {"scopes", n.Scopes, appendScopes}, {"resources", n.Resources, appendResources},
	} {
		if f.name == "" {
			continue
		}
		if !validName(f.name) {
			return nil, fmt.Errorf("identity header %s: %q must begin with X- and consist of letters, digits and dashes", f.key, f.name)
		}
		same := func(o field) bool { return strings.EqualFold(o.name, f.name) }
		if slices.ContainsFunc(h.fields, same) {
			return nil, fmt.Errorf("identity header %s: %q is used twice", f.key, f.name)
		}
		h.fields = append(h.fields, field{f.name, f.value})
	}
	return h, nil
}

// validName keeps identity apart from every header that has a meaning of its
// own, such as Host or Content-Length.
func validName(name string) bool {
	if len(name) < 3 || len(name) > 64 || !strings.EqualFold(name[:2], "X-") {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return !strings.EqualFold(name, "X-Request-Id") && !strings.HasPrefix(strings.ToLower(name), "x-forwarded-")
}

// Names returns the header names in use: what a client must not be able to send.
func (h *Headers) Names() []string {
	if h == nil {
		return nil
	}
	names := make([]string, len(h.fields))
	for i, f := range h.fields {
		names[i] = f.name
	}
	return names
}

// AppendValue appends to dst what the header i of [Headers.Names] says of t. Where t has
// nothing to say there it appends nothing, and the header is not sent.
func (h *Headers) AppendValue(dst []byte, i int, t *tokenstore.Token) []byte {
	return h.fields[i].value(dst, t)
}

func appendID(b []byte, t *tokenstore.Token) []byte {
	return strconv.AppendUint(b, uint64(t.ID), 10)
}

func appendAccount(b []byte, t *tokenstore.Token) []byte {
	return strconv.AppendUint(b, t.Account, 10)
}

func appendOwner(b []byte, t *tokenstore.Token) []byte {
	return strconv.AppendUint(b, t.Owner, 10)
}

func appendName(b []byte, t *tokenstore.Token) []byte { return appendEncoded(b, t.Name, &nameBytes) }

func appendScopes(b []byte, t *tokenstore.Token) []byte {
	for i, s := range t.Scopes {
		if i > 0 {
			b = append(b, ' ')
		}
		b = append(b, s...) // visible ASCII without spaces, by tokenstore.CheckScope
	}
	return b
}

func appendResources(b []byte, t *tokenstore.Token) []byte {
	if t.Resources.All {
		return append(b, "all"...)
	}
	for i, g := range t.Resources.Grants {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, g.Type...)
		b = append(b, ':')
		b = appendEncoded(b, g.ID, &grantBytes)
		b = append(b, ':')
		b = append(b, g.Level.String()...)
	}
	return b
}

// The bytes that stand for themselves in a name, and in the id of a grant.
var nameBytes, grantBytes = visibleExcept("%"), visibleExcept("%,:")

func visibleExcept(special string) (set [256]bool) {
	for c := byte('!'); c <= '~'; c++ {
		set[c] = strings.IndexByte(special, c) < 0
	}
	return set
}

// appendEncoded percent-encodes the bytes of s but those of plain, so that the value is
// one header value whatever s is and reads back to s.
func appendEncoded(b []byte, s string, plain *[256]bool) []byte {
	const hex = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; plain[c] {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return b
}
