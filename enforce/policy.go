package enforce

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"tokenward/enforce/canon"
)

// Options hold what concerns all routes.
type Options struct {
	// KnownScopes and ResourceTypes are known besides those that routes name.
	KnownScopes   []string
	ResourceTypes []string
	// NotFoundOnNoRoute answers 404 rather than 403 where no route matches and
	// the credential is valid.
	NotFoundOnNoRoute bool
	// Reserved are paths below which no route may lie: they are taken before
	// routes are looked at.
	Reserved []string
	// Parents says for a resource type that a grant on its parent's type reaches it
	// as well, such as account for card. Which parent a resource has, the engine's
	// ParentFinder knows.
	Parents map[string]string
}

// Policy is the compiled set of routes: immutable, and safe for concurrent use.
// A nil or zero Policy has no route, so it lets nothing through.
type Policy struct {
	routes            []*Route
	root              node
	asterisk          []*Route
	scopes            []string
	resourceTypes     []string
	parents           map[string]string
	notFoundOnNoRoute bool
}

// node is one segment of the tree of all paths.
type node struct {
	literals literals
	param    *node
	end      []*Route // routes whose path ends here
	tail     []*Route // routes whose path goes on here with {x...}
}

// Compile checks all routes and their relation to each other, and builds the
// policy. With any fault there is no policy: faults are all that are found.
func Compile(specs []RouteSpec, opts Options) (*Policy, []SpecFault) {
	var faults []SpecFault
	report := func(f SpecFault) { faults = append(faults, f) }
	p := &Policy{notFoundOnNoRoute: opts.NotFoundOnNoRoute, parents: maps.Clone(opts.Parents)}
	rules, err := canon.NewRules(canon.Options{MaxTargetBytes: math.MaxInt}) // how long a target may be is the listener's
	if err != nil {
		panic("enforce: the default rules of requests do not compile: " + err.Error())
	}
	for i := range specs {
		p.routes = append(p.routes, compileRoute(i, &specs[i], rules, report))
	}
	if len(faults) > 0 {
		return nil, faults // a route that could not be read is related to nothing
	}
	p.reportConflicts(report)
	p.reportReserved(opts.Reserved, report)
	if len(faults) > 0 {
		return nil, faults
	}
	for _, r := range p.routes {
		p.insert(r)
	}
	p.scopes, p.resourceTypes = p.vocabulary(opts)
	return p, nil
}

// Routes returns the compiled routes in the order of the configuration.
func (p *Policy) Routes() []*Route { return slices.Clone(p.routes) }

// Scopes returns every scope that routes or options name, sorted.
func (p *Policy) Scopes() []string { return slices.Clone(p.scopes) }

// ResourceTypes returns every resource type that routes or options name, sorted.
func (p *Policy) ResourceTypes() []string { return slices.Clone(p.resourceTypes) }

func (p *Policy) vocabulary(opts Options) (scopes, types []string) {
	scopes, types = slices.Clone(opts.KnownScopes), slices.Clone(opts.ResourceTypes)
	for typ, parent := range opts.Parents {
		types = append(types, typ, parent)
	}
	for _, r := range p.routes {
		for _, either := range r.scopes {
			scopes = append(scopes, either...)
		}
		for _, either := range r.resources {
			for _, res := range either {
				types = append(types, res.typ)
			}
		}
	}
	slices.Sort(scopes)
	slices.Sort(types)
	return slices.Compact(scopes), slices.Compact(types)
}

// reportConflicts finds routes that leave a request undecided with an earlier
// one: the same path and method twice, or paths that overlap without one lying
// inside the other. It reports one conflict of each route: the pairs of a
// mistake repeated over thousands of routes would fill the memory.
func (p *Policy) reportConflicts(report func(SpecFault)) {
	for i, b := range p.routes {
		for _, a := range p.routes[:i] {
			if detail := conflict(a, b); detail != "" {
				report(SpecFault{b.Index, "match", detail})
				break
			}
		}
	}
}

// conflict says why a request could not be decided between a and the later b,
// or nothing.
func conflict(a, b *Route) string {
	if !methodsMeet(a, b) || !overlap(&a.path, &b.path) {
		return ""
	}
	aInB, bInA := within(&a.path, &b.path), within(&b.path, &a.path)
	switch {
	case aInB && bInA && (a.methods == nil) == (b.methods == nil):
		return fmt.Sprintf("%q and %q match the same requests: remove one, or give them different methods", b.Pattern, at(a))
	case !aInB && !bInA:
		return fmt.Sprintf("%q and %q both match some requests, and neither lies within the other: change one, so that it is clear which of the two decides", b.Pattern, at(a))
	}
	return ""
}

// at names the other route of a conflict by pattern and line.
func at(r *Route) string {
	if r.Line == 0 {
		return r.Pattern
	}
	return fmt.Sprintf("%s (line %d)", r.Pattern, r.Line)
}

func methodsMeet(a, b *Route) bool {
	if a.methods == nil || b.methods == nil {
		return true
	}
	return slices.ContainsFunc(a.methods, func(m string) bool { return slices.Contains(b.methods, m) })
}

// overlap reports whether some path matches both patterns.
func overlap(a, b *pathPattern) bool {
	if a.asterisk || b.asterisk {
		return a.asterisk == b.asterisk
	}
	for i := 0; ; i++ {
		aEnd, bEnd := i == len(a.segments), i == len(b.segments)
		switch {
		case aEnd && a.tail || bEnd && b.tail:
			return true // {x...} takes whatever the other goes on with
		case aEnd || bEnd:
			return aEnd && bEnd
		case !segmentsMeet(a.segments[i], b.segments[i]):
			return false
		}
	}
}

func segmentsMeet(a, b segment) bool {
	switch {
	case a.param && b.param:
		return true
	case a.param:
		return b.literal != ""
	case b.param:
		return a.literal != ""
	}
	return a.literal == b.literal
}

// within reports whether every path that matches a also matches b.
func within(a, b *pathPattern) bool {
	if a.asterisk || b.asterisk {
		return a.asterisk == b.asterisk
	}
	for i := 0; ; i++ {
		aEnd, bEnd := i == len(a.segments), i == len(b.segments)
		switch {
		case bEnd && b.tail:
			return true
		case aEnd && a.tail:
			return false
		case aEnd || bEnd:
			return aEnd && bEnd
		}
		sa, sb := a.segments[i], b.segments[i]
		if sb.param {
			if !sa.param && sa.literal == "" {
				return false
			}
		} else if sa.param || sa.literal != sb.literal {
			return false
		}
	}
}

func (p *Policy) reportReserved(reserved []string, report func(SpecFault)) {
	for _, prefix := range reserved {
		taken := pathPattern{tail: true}
		for s := range strings.SplitSeq(strings.Trim(prefix, "/"), "/") {
			if strings.HasPrefix(s, "{") {
				taken.segments = append(taken.segments, segment{param: true})
			} else {
				taken.segments = append(taken.segments, segment{literal: s})
			}
		}
		for _, r := range p.routes {
			// A route that merely contains the reserved paths, such as /{x...}, never
			// sees them; one that lies within would never match at all.
			if overlap(&r.path, &taken) && !within(&taken, &r.path) {
				report(SpecFault{r.Index, "match", fmt.Sprintf("%q overlaps %s, which a mounted token API takes before routes: remove the route or the mount", r.Pattern, prefix)})
			}
		}
	}
}

func (p *Policy) insert(r *Route) {
	if r.path.asterisk {
		p.asterisk = append(p.asterisk, r)
		return
	}
	n := &p.root
	for _, s := range r.path.segments {
		n = n.child(s)
	}
	if r.path.tail {
		n.tail = append(n.tail, r)
	} else {
		n.end = append(n.end, r)
	}
}

func (n *node) child(s segment) *node {
	if s.param {
		if n.param == nil {
			n.param = &node{}
		}
		return n.param
	}
	next := n.literals.get([]byte(s.literal))
	if next == nil {
		next = &node{}
		n.literals.add(s.literal, next)
	}
	return next
}

// literals are nodes by the text of their segment. A few of them are compared one by
// one, which takes a fraction of what a map does.
type literals struct {
	few  []literal
	many map[string]*node // in place of few
}

type literal struct {
	text string
	node *node
}

const fewLiterals = 4

func (l *literals) get(text []byte) *node {
	if l.many != nil {
		return l.many[string(text)]
	}
	for i := range l.few {
		if l.few[i].text == string(text) {
			return l.few[i].node
		}
	}
	return nil
}

// add adds a text that is not there yet.
func (l *literals) add(text string, n *node) {
	switch {
	case l.many != nil:
		l.many[text] = n
	case len(l.few) < fewLiterals:
		l.few = append(l.few, literal{text, n})
	default:
		l.many = map[string]*node{text: n}
		for _, one := range l.few {
			l.many[one.text] = one.node
		}
		l.few = nil
	}
}

// span is where a variable's value stands in the path.
type span struct{ start, end int }

// vars are the values of a route's variables.
type vars [maxVars]span

// RouteFor returns the route that a request for q's path would take if its method
// were the given one; nil where there is none, or where the path has a form that
// the route does not relax. It says nothing about whether the request may pass.
func (p *Policy) RouteFor(method []byte, q *canon.Request) *Route {
	if p == nil || q.Asterisk || len(q.Path) == 0 || q.Path[0] != '/' {
		return nil
	}
	var v vars
	m := matcher{method: method, path: q.Path, vars: &v, encoded: !q.Plain}
	route := m.from(&p.root, 1, 0)
	if route.irregular(q) != 0 {
		return nil
	}
	return route
}

// match finds the route for method and canonical path. Literal segments are
// tried before variables and variables before {x...}; since Compile admits only
// paths of which one lies inside the other, what is found first is the most
// specific. Each node of the tree is visited at most once.
func (p *Policy) match(q *canon.Request, v *vars) *Route {
	if p == nil {
		return nil
	}
	if q.Asterisk {
		return pick(p.asterisk, q.Method)
	}
	if len(q.Path) == 0 || q.Path[0] != '/' {
		return nil
	}
	m := matcher{method: q.Method, path: q.Path, vars: v, encoded: !q.Plain}
	return m.from(&p.root, 1, 0)
}

type matcher struct {
	method, path []byte
	vars         *vars
	encoded      bool // some segment may be percent-encoded
}

// from matches the segments from path[start:] on below n; nvars variables are
// bound so far. start is one past the path's end when no segment is left.
func (m *matcher) from(n *node, start, nvars int) *Route {
	if start > len(m.path) {
		if r := pick(n.end, m.method); r != nil {
			return r
		}
		return pick(n.tail, m.method)
	}
	end := start
	for end < len(m.path) && m.path[end] != '/' {
		end++
	}
	if next := m.literal(n, m.path[start:end]); next != nil {
		if r := m.from(next, end+1, nvars); r != nil {
			return r
		}
	}
	if n.param != nil && end > start {
		m.vars[nvars] = span{start, end}
		if r := m.from(n.param, end+1, nvars+1); r != nil {
			return r
		}
	}
	return pick(n.tail, m.method)
}

// maxDecoded bounds the literal segments that a percent-encoded one can equal.
const maxDecoded = 256

// literal is the child of n for a literal segment. A percent-encoded one is
// decoded first.
func (m *matcher) literal(n *node, raw []byte) *node {
	if !m.encoded || bytes.IndexByte(raw, '%') < 0 {
		return n.literals.get(raw)
	}
	return n.literals.getEncoded(raw)
}

// getEncoded is get for a percent-encoded text. It has a frame of its own, which the
// compiler would else put into those of the callers, one in the other: then no
// request's stack fits into 8 KB.
//
//go:noinline
func (l *literals) getEncoded(raw []byte) *node {
	if len(raw) > 3*maxDecoded {
		return nil
	}
	var buf [3 * maxDecoded]byte
	decoded, ok := canon.AppendDecoded(buf[:0], raw)
	if !ok {
		return nil
	}
	return l.get(decoded)
}

// pick chooses among routes of one path: a named method beats any.
func pick(routes []*Route, method []byte) *Route {
	var anyMethod *Route
	for _, r := range routes {
		if r.methods == nil {
			anyMethod = r
			continue
		}
		for _, m := range r.methods {
			if m == string(method) {
				return r
			}
		}
	}
	return anyMethod
}
