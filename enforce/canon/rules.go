package canon

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
)

// Options is what an operator may say about reading requests. Nil and zero mean the defaults.
type Options struct {
	// TrustedProxies are the peers whose ClientAddress header is believed. Default none.
	TrustedProxies []netip.Prefix
	// ClientAddress is the one header that is read: "x-forwarded-for" (default) or "forwarded".
	ClientAddress string
	// Credentials are the places where a credential may stand, in order:
	// "authorization" (as Bearer), further header names, "query:NAME",
	// "subprotocol:NAME". Default authorization and api-token. At most 8.
	Credentials []string
	// Sets are the header fields that the proxy sets on what it forwards, identity
	// headers first of all. A client's own are removed in every spelling. X-Request-Id
	// and X-Forwarded-* need not be named.
	Sets []string
	// Removes are further header fields to take away, in every spelling.
	Removes []string
	// Keeps are header fields, removed by default, that are forwarded if a trusted
	// proxy sends them; such as cf-connecting-ip.
	Keeps []string
	// MaxTargetBytes bounds the request target as received. Default 8192.
	MaxTargetBytes int
}

// OptionError is one fault in Options, with what to do about it.
type OptionError struct {
	// Option is the field of Options; Index the position in it, -1 if it is not a list
	// or the list as a whole is meant.
	Option  string
	Index   int
	Value   string
	Problem string
	Fix     string
}

// Error is one line: what is wrong where, and what to write instead.
func (e *OptionError) Error() string {
	return fmt.Sprintf("%q %s; %s", e.Value, e.Problem, e.Fix)
}

// Rules are compiled Options: immutable, for any number of goroutines.
type Rules struct {
	trusted        prefixSet
	forwarded      bool // read Forwarded, not X-Forwarded-For
	maxTargetBytes int
	carriers       []carrier
	required       string // see Required
	queryCarriers  bool
	names          nameTable
}

// carrier is a place where a credential may stand.
type carrier struct {
	kind carrierKind
	name string // as configured, without the kind; header names in lower case
}

type carrierKind uint8

const (
	carrierAuthorization carrierKind = iota
	carrierHeader
	carrierQuery
	carrierSubprotocol
)

const (
	maxCarriers           = 8
	defaultMaxTargetBytes = 8192
	leastV4Bits           = 8
	leastV6Bits           = 16
)

// NewRules checks and compiles o. The error joins one [OptionError] per fault.
func NewRules(o Options) (*Rules, error) {
	r := &Rules{maxTargetBytes: o.MaxTargetBytes}
	c := compiler{rules: r}
	switch {
	case o.MaxTargetBytes == 0:
		r.maxTargetBytes = defaultMaxTargetBytes
	case o.MaxTargetBytes < 0:
		c.fault("MaxTargetBytes", -1, fmt.Sprint(o.MaxTargetBytes), "is negative", "write 0 for the default of 8192")
	}
	c.trust(o.TrustedProxies)
	c.builtin()
	c.clientAddress(o.ClientAddress)
	c.credentials(o.Credentials)
	c.sets(o.Sets)
	c.removes(o.Removes)
	c.keeps(o.Keeps)
	if len(c.faults) > 0 {
		return nil, errors.Join(c.faults...)
	}
	r.required = "An API token is required: send it as `" + r.carriers[0].example() + "`."
	return r, nil
}

// Required is the sentence for a client whose request bears no credential: how the
// first place for one is used.
func (r *Rules) Required() string { return r.required }

func (c carrier) example() string {
	switch c.kind {
	case carrierAuthorization:
		return "Authorization: Bearer TOKEN"
	case carrierQuery:
		return "?" + c.name + "=TOKEN"
	case carrierSubprotocol:
		return "Sec-WebSocket-Protocol: " + c.name + ", TOKEN"
	default:
		return c.name + ": TOKEN"
	}
}

// CarrierName names carrier i as in Options.Credentials; empty if there is none.
func (r *Rules) CarrierName(i int) string {
	if i < 0 || i >= len(r.carriers) {
		return ""
	}
	switch c := r.carriers[i]; c.kind {
	case carrierQuery:
		return queryKind + c.name
	case carrierSubprotocol:
		return subprotocolKind + c.name
	default:
		return c.name
	}
}

const (
	queryKind       = "query:"
	subprotocolKind = "subprotocol:"
)

// compiler gathers all faults before it gives up.
type compiler struct {
	rules  *Rules
	faults []error
}

func (c *compiler) fault(option string, index int, value, problem, fix string) {
	c.faults = append(c.faults, &OptionError{Option: option, Index: index, Value: value, Problem: problem, Fix: fix})
}

func (c *compiler) trust(prefixes []netip.Prefix) {
	const option = "TrustedProxies"
	var good []netip.Prefix
	for i, p := range prefixes {
		switch {
		case !p.IsValid():
			c.fault(option, i, p.String(), "is not an address range", "write it as 10.0.0.0/8")
			continue
		case p.Addr().Is4In6() && p.Bits() >= 96:
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		least := leastV6Bits
		if p.Addr().Is4() {
			least = leastV4Bits
		}
		if p.Bits() < least {
			c.fault(option, i, p.String(), fmt.Sprintf("is wider than /%d", least),
				"name the proxies' own addresses: whoever connects from there can claim to be any client")
			continue
		}
		if p != p.Masked() {
			c.fault(option, i, p.String(), "has bits set beyond its length", "write "+p.Masked().String()+", or a longer prefix if one host is meant")
			continue
		}
		good = append(good, p)
	}
	c.rules.trusted = newPrefixSet(good)
	for _, family := range [...]struct {
		name string
		part float64
	}{{"IPv4", c.rules.trusted.share4}, {"IPv6", c.rules.trusted.share6}} {
		if family.part > 0.5 {
			c.fault(option, -1, family.name, "is trusted for more than half of all addresses",
				"name the proxies' own addresses: whoever connects from there can claim to be any client")
		}
	}
}

func (c *compiler) clientAddress(name string) {
	switch name {
	case "", "x-forwarded-for":
		c.rules.names.grant("x-forwarded-for", roleAddress)
		c.rules.names.grant("x-forwarded-proto", roleScheme)
	case "forwarded":
		c.rules.forwarded = true
		c.rules.names.grant("forwarded", roleAddress)
	default:
		c.fault("ClientAddress", -1, name, "is not a header that names clients", "write x-forwarded-for or forwarded")
	}
}

func (c *compiler) credentials(carriers []string) {
	const option = "Credentials"
	if carriers == nil {
		carriers = []string{"authorization", "api-token"}
	}
	if len(carriers) == 0 {
		c.fault(option, -1, "[]", "leaves no place for a credential", "leave the key out for [authorization, api-token]")
	}
	if len(carriers) > maxCarriers {
		c.fault(option, -1, fmt.Sprint(len(carriers)), "places are too many", fmt.Sprintf("name at most %d", maxCarriers))
		return
	}
	for i, text := range carriers {
		one := carrier{kind: carrierHeader, name: strings.ToLower(text)}
		if name, ok := strings.CutPrefix(text, queryKind); ok {
			one = carrier{kind: carrierQuery, name: name}
		} else if name, ok := strings.CutPrefix(text, subprotocolKind); ok {
			one = carrier{kind: carrierSubprotocol, name: name}
		} else if one.name == "authorization" {
			one.kind = carrierAuthorization
		}
		switch {
		case one.name == "" || !is([]byte(one.name), classToken):
			c.fault(option, i, text, "has no usable name", "use letters, digits, '-' and '_'; parameters as query:NAME, WebSocket protocols as subprotocol:NAME")
			continue
		case slices.Contains(c.rules.carriers, one):
			c.fault(option, i, text, "is named twice", "remove one of the two")
			continue
		}
		switch one.kind {
		case carrierQuery:
			if strings.ContainsAny(one.name, "%+&") {
				c.fault(option, i, text, "holds a character that means something in a query", "write the decoded name, of letters, digits, '-', '_' and '.'")
				continue
			}
			c.rules.queryCarriers = true
			c.rules.names.find("referer").role = roleReferer
		case carrierSubprotocol:
			c.rules.names.find("sec-websocket-protocol").role = roleSubprotocol
		case carrierHeader:
			entry := nameEntry{spelling: one.name, role: roleCarrier, carrier: int8(len(c.rules.carriers))} //nolint:gosec // at most maxCarriers
			if old, ok := c.rules.names.add(entry); !ok {
				c.fault(option, i, text, "cannot carry a credential: "+old.reason(), "use a header of its own, such as api-token")
				continue
			}
		case carrierAuthorization:
			c.rules.names.find("authorization").carrier = int8(len(c.rules.carriers)) //nolint:gosec // at most maxCarriers
		}
		c.rules.carriers = append(c.rules.carriers, one)
	}
}

func (c *compiler) sets(names []string) {
	for i, name := range names {
		c.remove("Sets", i, name, roleSet)
	}
}

func (c *compiler) removes(names []string) {
	for i, name := range names {
		c.remove("Removes", i, name, roleRemoved)
	}
}

// remove enters a name to be taken away in every spelling. What is removed already may
// be named again; what is needed may not.
func (c *compiler) remove(option string, i int, name string, as role) {
	lowered := strings.ToLower(name)
	if lowered == "" || !is([]byte(lowered), classToken) {
		c.fault(option, i, name, "is not a header name", "use letters, digits and '-'")
		return
	}
	if hasRemovedPrefix([]byte(lowered)) {
		return
	}
	old, ok := c.rules.names.add(nameEntry{spelling: lowered, role: as, carrier: -1})
	switch {
	case ok:
	case old.role&(roleRemoved|roleAddress|roleScheme) != 0:
		old.role = old.role&^roleKeepable | as
	case old.role == roleNoTrailer && as == roleRemoved && old.spelling == lowered:
		old.role = as
	case old.role&roleSet != 0 && as == roleSet:
		if old.spelling != lowered {
			c.fault(option, i, name, "differs from "+old.spelling+" only in punctuation, which a backend may fold", "use names that differ in letters")
		}
	default:
		c.fault(option, i, name, "cannot be used here: "+old.reason(), "choose another name")
	}
}

func (c *compiler) keeps(names []string) {
	const option = "Keeps"
	for i, name := range names {
		lowered := strings.ToLower(name)
		entry := c.rules.names.find(lowered)
		switch {
		case entry == nil && hasRemovedPrefix([]byte(lowered)):
			c.rules.names.add(nameEntry{spelling: lowered, role: roleRemoved | roleKept, carrier: -1})
		case entry == nil:
			c.fault(option, i, name, "is not removed anyway", "take it off the list")
		case entry.spelling != lowered:
			c.fault(option, i, name, "is a disguise of "+entry.spelling, "write "+entry.spelling)
		case entry.role&roleKeepable == 0:
			c.fault(option, i, name, "can never be forwarded: "+entry.reason(), "take it off the list")
		default:
			entry.role |= roleKept
		}
	}
}

// prefixSet is a set of addresses as sorted ranges apart from one another: CDNs publish
// hundreds, and each request asks at least once.
type prefixSet struct {
	ranges4, ranges6 []addrRange
	share4, share6   float64 // part of the whole space
}

type addrRange struct{ first, last netip.Addr }

func newPrefixSet(prefixes []netip.Prefix) prefixSet {
	var s prefixSet
	for _, p := range prefixes {
		one := addrRange{p.Masked().Addr(), lastAddr(p)}
		if p.Addr().Is4() {
			s.ranges4 = append(s.ranges4, one)
		} else {
			s.ranges6 = append(s.ranges6, one)
		}
	}
	s.ranges4, s.share4 = distinct(s.ranges4)
	s.ranges6, s.share6 = distinct(s.ranges6)
	return s
}

func lastAddr(p netip.Prefix) netip.Addr {
	a := p.Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(a); bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(a)
	return last
}

// distinct sorts the ranges of one family and leaves out those that lie in another:
// prefixes never overlap in any other way. It returns also what part of the whole space
// is in them.
func distinct(ranges []addrRange) (out []addrRange, share float64) {
	slices.SortFunc(ranges, func(a, b addrRange) int {
		return cmp.Or(a.first.Compare(b.first), b.last.Compare(a.last)) // of two that begin alike, the wider first
	})
	for _, one := range ranges {
		if n := len(out); n > 0 && one.first.Compare(out[n-1].last) <= 0 {
			continue
		}
		out = append(out, one)
		share += position(one.last) - position(one.first) + math.Ldexp(1, -one.last.BitLen())
	}
	return out, share
}

// position is where an address stands in the whole space, from 0 to 1.
func position(addr netip.Addr) (at float64) {
	for i, b := range addr.AsSlice() {
		at += math.Ldexp(float64(b), -8*(i+1))
	}
	return at
}

func (s *prefixSet) contains(addr netip.Addr) bool {
	ranges := s.ranges6
	if addr.Is4() {
		ranges = s.ranges4
	}
	low, high := 0, len(ranges)
	for low < high {
		mid := int(uint(low+high) >> 1)
		if ranges[mid].last.Less(addr) {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low < len(ranges) && !addr.Less(ranges[low].first)
}
