package unit

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tokenward/admin"
	"tokenward/tokenstore"
)

const mediaType = "application/vnd.api+json"

// typeToken is the JSON:API type of a token.
const typeToken = "apiToken"

// The attributes of a token. On creation others are refused.
const (
	attrDescription = "description"
	attrScope       = "scope"
	attrExpiration  = "expiration"
	attrSourceIP    = "sourceIp"
	attrResources   = "resources"
)

// document is the top level of an answer.
type document struct {
	Data any `json:"data"`
}

// resource is a token as this API shows it. Scopes and resources are not
// echoed.
type resource struct {
	ID         string     `json:"id"`
	Type       string     `json:"type"`
	Attributes attributes `json:"attributes"`
}

type attributes struct {
	CreatedAt   string  `json:"createdAt"`
	Description string  `json:"description"`
	Expiration  string  `json:"expiration"`
	SourceIP    *string `json:"sourceIp,omitempty"`
	Token       string  `json:"token,omitempty"` // in the answer that makes it, nowhere else
}

// timeForm has three fraction digits always: one client's parser fails on none
// and on nine.
const timeForm = "2006-01-02T15:04:05.000Z"

func render(t *tokenstore.Token) resource {
	expires := t.Expiry.At
	if t.Expiry.Never {
		expires = tokenstore.MaxTime() // the contract has no word for never
	}
	return resource{ID: t.ID.String(), Type: typeToken, Attributes: attributes{
		CreatedAt:   t.CreatedAt.UTC().Format(timeForm),
		Description: t.Name,
		Expiration:  expires.UTC().Format(timeForm),
		SourceIP:    renderSources(&t.Sources),
	}}
}

// renderSources is the list as it was sent, or for a token that another API made
// the addresses that are allowed. The contract has no word for denied ones.
func renderSources(s *tokenstore.Sources) *string {
	switch {
	case s.Any:
		return nil
	case s.Text != "":
		return &s.Text
	}
	var addresses []string
	for _, p := range s.Allow {
		if p.IsSingleIP() {
			addresses = append(addresses, p.Addr().String())
		} else {
			addresses = append(addresses, p.String())
		}
	}
	return new(strings.Join(addresses, ","))
}

// decode reads the body of a creation. It finds everything that is wrong at
// once, by the names of this contract.
func decode(body *admin.Object, known *admin.Vocabulary, now time.Time) (admin.Spec, tokenstore.Faults) {
	var spec admin.Spec
	if data, ok := required(body, "data", (*admin.Object).Object); ok {
		if typ, ok := required(data, "type", (*admin.Object).Text); ok && typ != typeToken {
			data.Fault("type", "must be "+typeToken)
		}
		if attrs, ok := required(data, "attributes", (*admin.Object).Object); ok {
			spec = decodeAttributes(attrs, known, now)
		}
	}
	return spec, body.Faults()
}

// required is a field that must be there.
func required[T any](o *admin.Object, name string, get func(*admin.Object, string) (T, bool)) (value T, ok bool) {
	if !o.Has(name) {
		o.Fault(name, "is required")
		return value, false
	}
	return get(o, name)
}

func decodeAttributes(attrs *admin.Object, known *admin.Vocabulary, now time.Time) admin.Spec {
	var spec admin.Spec
	if text, ok := required(attrs, attrDescription, (*admin.Object).Text); ok {
		spec.Name = text
		if detail := tokenstore.CheckText(text, tokenstore.MaxNameRunes); detail != "" {
			attrs.Fault(attrDescription, detail)
		}
	}
	if text, ok := required(attrs, attrScope, (*admin.Object).Text); ok {
		spec.Scopes = decodeScopes(text, known, func(detail string) { attrs.Fault(attrScope, detail) })
	}
	if at, ok := required(attrs, attrExpiration, (*admin.Object).Time); ok {
		spec.Expiry = new(tokenstore.EndsAt(at))
		if !at.After(now) {
			attrs.Fault(attrExpiration, "must lie in the future")
		}
	}
	if text, ok := attrs.Text(attrSourceIP); ok {
		spec.Sources = decodeSources(text, func(detail string) { attrs.Fault(attrSourceIP, detail) })
	}
	items, ok := attrs.ListOfOne(attrResources, "id")
	if !ok {
		items, ok = attrs.List(attrResources)
	}
	if ok {
		spec.Resources = decodeResources(items, known, func(detail string) { attrs.Fault(attrResources, detail) })
	}
	return spec
}

// decodeScopes reads scopes separated by spaces.
func decodeScopes(text string, known *admin.Vocabulary, fault func(detail string)) []string {
	scopes := slices.DeleteFunc(strings.Split(text, " "), func(s string) bool { return s == "" })
	switch {
	case len(scopes) == 0:
		fault("must name at least one scope")
		return nil
	case len(scopes) > tokenstore.MaxScopes:
		fault(fmt.Sprintf("must name at most %d scopes", tokenstore.MaxScopes))
		return nil
	}
	for i, scope := range scopes {
		switch {
		case tokenstore.CheckScope(scope) != "":
			fault("must consist of scopes separated by spaces, each of printable ASCII")
			return nil
		case !known.KnowsScope(scope):
			fault("names the scope " + scope + ", which does not exist")
		case slices.Contains(scopes[:i], scope):
			fault("names the scope " + scope + " twice")
		}
	}
	return scopes
}

// decodeSources reads addresses and networks separated by commas without
// spaces. The text is kept to be echoed.
func decodeSources(text string, fault func(detail string)) *tokenstore.Sources {
	const want = "must be IPv4 or IPv6 addresses or networks, separated by commas without spaces"
	if len(text) > tokenstore.MaxSourceBytes {
		fault(fmt.Sprintf("must have at most %d characters", tokenstore.MaxSourceBytes))
		return nil
	}
	parts := strings.Split(text, ",")
	if len(parts) > tokenstore.MaxPrefixes {
		fault(fmt.Sprintf("must name at most %d addresses", tokenstore.MaxPrefixes))
		return nil
	}
	var allow []netip.Prefix
	for _, part := range parts {
		p, err := tokenstore.ParseSource(part)
		switch {
		case err != nil && isNetwork(part):
			fault("names " + part + ", which " + err.Error())
			return nil
		case err != nil:
			fault(want)
			return nil
		}
		allow = append(allow, p)
	}
	return &tokenstore.Sources{Allow: allow, Text: text}
}

// isNetwork reports whether text is an address or a network, be it one that a token
// cannot have.
func isNetwork(text string) bool {
	_, err := netip.ParsePrefix(text)
	addr, aerr := netip.ParseAddr(text)
	return err == nil || aerr == nil && addr.Zone() == ""
}

// decodeResources reads items of `{"type","ids":[…]}`, or of `{"type","id"}` as
// an older client sends them, one of them also outside of a list. What they name can
// be read and written.
func decodeResources(items []admin.Value, known *admin.Vocabulary, fault func(detail string)) *tokenstore.Resources {
	if len(items) == 0 {
		fault("must have at least one item")
		return nil
	}
	r := &tokenstore.Resources{}
	for _, item := range items {
		o, ok := item.Object()
		if !ok {
			continue
		}
		typ, ok := required(o, "type", (*admin.Object).Text)
		if ok && !known.KnowsType(typ) {
			o.Fault("type", "must be a resource type that exists")
		}
		for _, id := range decodeIDs(o) {
			if len(r.Grants) == tokenstore.MaxGrants {
				fault(fmt.Sprintf("must name at most %d resources", tokenstore.MaxGrants))
				return nil
			}
			r.Grants = append(r.Grants, tokenstore.Grant{Type: typ, ID: id, Level: tokenstore.LevelWrite})
		}
	}
	return r
}

func decodeIDs(o *admin.Object) []string {
	const want = "must be a positive whole number as a string"
	if o.Has("id") && !o.Has("ids") {
		id, ok := o.Text("id")
		if !ok {
			return nil
		}
		if _, ok := tokenstore.ParseNumber(id); !ok {
			o.Fault("id", want)
		}
		return []string{id}
	}
	items, ok := required(o, "ids", (*admin.Object).List)
	if ok && len(items) == 0 {
		o.Fault("ids", "must have at least one id")
	}
	var ids []string
	for _, item := range items {
		id, ok := item.Text()
		if !ok {
			continue
		}
		if _, ok := tokenstore.ParseNumber(id); !ok {
			item.Fault(want)
		}
		ids = append(ids, id)
	}
	return ids
}
