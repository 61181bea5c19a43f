package tokenstore

import (
	"net/netip"
	"slices"
)

// Level is how much a grant allows. The zero Level allows nothing.
type Level uint8

// The levels, each including the ones before it.
const (
	LevelRead  Level = 1
	LevelWrite Level = 2
)

// Valid reports whether l is one of the named levels.
func (l Level) Valid() bool { return l == LevelRead || l == LevelWrite }

func (l Level) String() string {
	switch l {
	case LevelRead:
		return "read"
	case LevelWrite:
		return "write"
	}
	return "none"
}

// ParseLevel is the inverse of [Level.String].
func ParseLevel(s string) (Level, bool) {
	switch s {
	case "read":
		return LevelRead, true
	case "write":
		return LevelWrite, true
	}
	return 0, false
}

// AnyID as a grant's id stands for every resource of its type. On a path it is
// an ordinary character.
const AnyID = "*"

// TypeAccount is the resource type that every configuration knows.
const TypeAccount = "account"

// Grant lets a token reach one resource, or all of a type, at a level.
type Grant struct {
	Type  string
	ID    string
	Level Level
}

// Resources is what a token may reach: everything its account has, or only
// what the grants name. The zero value reaches nothing.
type Resources struct {
	All    bool
	Grants []Grant // consulted only when All is false
}

// Restricted reports whether only the grants count.
func (r *Resources) Restricted() bool { return !r.All }

// Allows reports whether the resource can be reached at level.
func (r *Resources) Allows(typ string, id []byte, level Level) bool {
	granted := r.Level(typ, id)
	return granted > 0 && granted >= level
}

// Level returns the highest level at which the resource can be reached, zero if it
// cannot. The id is a slice because a request's path holds it: comparing copies
// nothing.
func (r *Resources) Level(typ string, id []byte) Level {
	if r.All {
		return LevelWrite
	}
	level := Level(0)
	for i := range r.Grants {
		g := &r.Grants[i]
		if g.Level > level && g.Type == typ && (g.ID == string(id) || g.ID == AnyID) {
			level = g.Level
		}
	}
	return level
}

// covers reports whether everything that inner reaches, r reaches at the same
// level.
func (r *Resources) covers(inner *Resources) bool {
	if r.All {
		return true
	}
	if inner.All {
		return false
	}
	for _, g := range inner.Grants {
		if !r.Allows(g.Type, []byte(g.ID), g.Level) {
			return false
		}
	}
	return true
}

// Sources is which client addresses a token may be used from. The zero value
// admits none.
type Sources struct {
	Any   bool           // every address, even an unknown one; Allow and Deny are empty
	Allow []netip.Prefix // masked; an address must lie in one of them
	Deny  []netip.Prefix // masked; and in none of these
	Text  string         // as the client wrote it, for an API that echoes it; may be empty
}

// Permit reports whether addr may use the token. An invalid addr is an unknown
// client address, which only Any admits.
func (s *Sources) Permit(addr netip.Addr) bool {
	if s.Any {
		return true
	}
	if !addr.IsValid() {
		return false
	}
	contains := func(p netip.Prefix) bool { return p.Contains(addr) }
	return !slices.ContainsFunc(s.Deny, contains) && slices.ContainsFunc(s.Allow, contains)
}

// covers reports whether s admits every address that inner admits. It compares
// prefix by prefix, so it may answer false where several allowed prefixes
// together would cover one of inner's; it never answers true wrongly.
func (s *Sources) covers(inner *Sources) bool {
	if s.Any {
		return true
	}
	if inner.Any {
		return false
	}
	for _, p := range inner.Allow {
		if slices.ContainsFunc(inner.Deny, func(d netip.Prefix) bool { return prefixCovers(d, p) }) {
			continue // inner never admits from p
		}
		if !slices.ContainsFunc(s.Allow, func(a netip.Prefix) bool { return prefixCovers(a, p) }) {
			return false
		}
		for _, d := range s.Deny {
			if d.Overlaps(p) && !slices.ContainsFunc(inner.Deny, func(id netip.Prefix) bool { return prefixCovers(id, d) }) {
				return false
			}
		}
	}
	return true
}

func prefixCovers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// limitsCover reports whether each limit that outer has, inner has at least as
// tightly.
func limitsCover(outer, inner *Limits) bool {
	tight := func(o, i uint64) bool { return o == 0 || i != 0 && i <= o }
	if outer.Rate != 0 && (inner.Rate == 0 || inner.Rate > outer.Rate || inner.BurstInForce() > outer.BurstInForce()) {
		return false
	}
	if !tight(outer.Uses, inner.Uses) || !tight(outer.Concurrent, inner.Concurrent) {
		return false
	}
	for _, o := range outer.Quotas {
		if !slices.ContainsFunc(inner.Quotas, func(i Quota) bool { return i.Per == o.Per && i.Count <= o.Count }) {
			return false
		}
	}
	return true
}

// BurstInForce is how many requests may come at once: Burst, or where it is
// not set what one second refills, but at least one, or nothing would pass.
func (l *Limits) BurstInForce() int {
	if l.Burst != 0 {
		return int(l.Burst) //nolint:gosec // Validate keeps it below 2^53
	}
	return max(1, int(l.Rate))
}

// Aspect is one side of a token in which it can be wider than another.
type Aspect string

// The aspects that [Token.Dominates] compares, in its order.
const (
	AspectAccount   Aspect = "account"
	AspectOwner     Aspect = "owner"
	AspectScopes    Aspect = "scopes"
	AspectResources Aspect = "resources"
	AspectSources   Aspect = "sources"
	AspectExpiry    Aspect = "expires_at"
	AspectLimits    Aspect = "limits"
)

// Dominates reports whether t may do everything that inner may: the condition
// for handing out inner's secret. When it may not, the first aspect in which
// inner is wider is named. A root token dominates whatever is no wider than
// its own scopes, resources, sources, expiry and limits, in any account.
func (t *Token) Dominates(inner *Token) (wider Aspect, ok bool) {
	switch {
	case !t.IsRoot() && t.Account != inner.Account:
		return AspectAccount, false
	case !t.IsRoot() && t.Owner != inner.Owner:
		return AspectOwner, false
	case !scopesCover(t, inner):
		return AspectScopes, false
	case !t.Resources.covers(&inner.Resources):
		return AspectResources, false
	case !t.Sources.covers(&inner.Sources):
		return AspectSources, false
	case !inner.Expiry.NotLater(t.Expiry):
		return AspectExpiry, false
	case !limitsCover(&t.Limits, &inner.Limits):
		return AspectLimits, false
	}
	return "", true
}
