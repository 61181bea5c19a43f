package enforce

import (
	"fmt"
	"hash/fnv"
	"net/url"
	"slices"
	"strings"

	"tokenward/enforce/canon"
	"tokenward/tokenstore"
)

// RouteSpec is a route as it was configured. Compile checks it.
type RouteSpec struct {
	// Match is `METHOD[,METHOD…] PATH`. `*` is any method; GET does not imply
	// HEAD. In the path `{x}` is one non-empty segment and a final `{x...}` zero
	// or more. The path `*` is that of `OPTIONS *`.
	Match string
	// Public lets everyone through; credentials are not read, only removed.
	Public bool
	// Scopes must all hold; `a|b` inside an item is either.
	Scopes []string
	// Resources must all hold for a token restricted to resources; `a|b` inside
	// an item is either. An item is `type:template`, where the template may use
	// path variables, `{?name}` and `{token.account}`.
	Resources []string
	// TokenAccount is `{x}`, a path variable that must equal the token's account.
	TokenAccount string
	// RestrictedTokens lets tokens restricted to resources use a route that
	// names none.
	RestrictedTokens bool
	// Access is the level that the resources need: read, write, or empty for
	// what the method implies.
	Access string
	// Relax names irregularities of the path that this route accepts.
	Relax []string

	// Limits bound what each token does on this route, where the token has no limit
	// of the same kind itself: Rate with Burst, and Concurrent.
	Limits tokenstore.Limits

	Line int // where it stands in the configuration; 0 if it does not
}

// SpecFault is one thing wrong with one route. Field is the key of the
// configuration that it concerns.
type SpecFault struct {
	Index  int // of the route in the list
	Field  string
	Detail string // what is wrong and what to write
}

func (f SpecFault) Error() string {
	return fmt.Sprintf("routes[%d].%s: %s", f.Index, f.Field, f.Detail)
}

// Route is a compiled route. It is immutable.
type Route struct {
	Pattern string // as configured, for logs, metrics and explain
	Index   int    // in the configuration's list
	Line    int
	Public  bool

	methods          []string // nil: any
	path             pathPattern
	scopes           [][]string // all of, any of
	resources        [][]resource
	tokenAccount     int // variable that names the account; -1: none
	restrictedTokens bool
	access           tokenstore.Level // 0: by method
	relax            canon.Irregularity
	limits           tokenstore.Limits
	hash             uint64 // of Pattern: names the route from one policy to the next
	readsQuery       bool   // a resource depends on a query parameter
}

// Scopes returns every scope that the route asks for, of all alternatives.
func (r *Route) Scopes() []string {
	var all []string
	for _, either := range r.scopes {
		all = append(all, either...)
	}
	return all
}

// resource is one alternative of a resource item.
type resource struct {
	typ      string
	template []part
}

// part is a piece of a template: a literal, or the value of a variable.
type part struct {
	kind    partKind
	literal string // partLiteral: the text; partQuery: the parameter's name
	v       int    // partPath: which variable of the pattern
}

type partKind uint8

const (
	partLiteral partKind = iota
	partPath
	partQuery
	partTokenAccount
)

// pathPattern is the path half of a match.
type pathPattern struct {
	segments []segment
	vars     []string // names of {x} in order
	tail     bool     // ends in {x...}
	asterisk bool     // the path is `*`
}

// segment is a literal (decoded) or, with param set, any non-empty segment.
type segment struct {
	literal string
	param   bool
}

// maxVars bounds the variables of a pattern so that a match needs no
// allocation.
const maxVars = 8

// compileRoute checks one route. It reports every fault it finds. rules are those by
// which requests are read.
func compileRoute(index int, spec *RouteSpec, rules *canon.Rules, report func(SpecFault)) *Route {
	c := routeCompiler{spec: spec, report: report, route: &Route{
		Pattern: spec.Match, Index: index, Line: spec.Line, Public: spec.Public,
		restrictedTokens: spec.RestrictedTokens, tokenAccount: -1, limits: spec.Limits, hash: hashOf(spec.Match),
	}}
	matches := c.match()
	c.public()
	c.scopes()
	c.resources()
	c.tokenAccount()
	c.access()
	c.limits()
	c.relax()
	if matches {
		if detail := c.route.unmet(rules); detail != "" {
			c.fault("match", "%s", detail)
		}
	}
	c.ambiguity()
	return c.route
}

// routeCompiler makes a route of its specification, key by key.
type routeCompiler struct {
	spec   *RouteSpec
	route  *Route
	report func(SpecFault)
}

func (c *routeCompiler) fault(field, format string, args ...any) {
	c.report(SpecFault{c.route.Index, field, fmt.Sprintf(format, args...)})
}

func (c *routeCompiler) match() (ok bool) {
	var err error
	if c.route.methods, c.route.path, err = parseMatch(c.spec.Match); err != nil {
		c.fault("match", "%v", err)
	}
	return err == nil
}

// public refuses whatever asks something of a token on a route that reads none.
func (c *routeCompiler) public() {
	if !c.spec.Public {
		return
	}
	for _, key := range []struct {
		name string
		set  bool
	}{
		{"scopes", len(c.spec.Scopes) > 0},
		{"resources", len(c.spec.Resources) > 0},
		{"token_account", c.spec.TokenAccount != ""},
		{"restricted_tokens", c.spec.RestrictedTokens},
		{"access", c.spec.Access != ""},
		{"limits", !c.spec.Limits.IsZero()},
	} {
		if key.set {
			c.fault(key.name, "a public route reads no token: remove either public or %s", key.name)
		}
	}
}

func (c *routeCompiler) scopes() {
	for _, item := range c.spec.Scopes {
		names := strings.Split(item, "|")
		for _, name := range names {
			if strings.Contains(name, "*") {
				c.fault("scopes", "scope %q holds an asterisk: name the scope itself, which tokens with a wider one such as * or cards:* have too", name)
			} else if detail := tokenstore.CheckScopeName(name); detail != "" {
				c.fault("scopes", "scope %q %s", name, detail)
			}
		}
		c.route.scopes = append(c.route.scopes, names)
	}
}

func (c *routeCompiler) resources() {
	for _, item := range c.spec.Resources {
		var either []resource
		for _, text := range splitOutsideBraces(item) {
			res, err := c.route.path.parseResource(text)
			if err != nil {
				c.fault("resources", "%q: %v", text, err)
			}
			if slices.ContainsFunc(res.template, func(p part) bool { return p.kind == partQuery }) {
				c.route.readsQuery = true
			}
			either = append(either, res)
		}
		c.route.resources = append(c.route.resources, either)
	}
}

func (c *routeCompiler) tokenAccount() {
	text := c.spec.TokenAccount
	if text == "" {
		return
	}
	name, opened := strings.CutPrefix(text, "{")
	name, closed := strings.CutSuffix(name, "}")
	c.route.tokenAccount = slices.Index(c.route.path.vars, name)
	if !opened || !closed || c.route.tokenAccount < 0 {
		c.fault("token_account", "%q must be a variable of the path, such as {account}", text)
	}
}

func (c *routeCompiler) access() {
	if c.spec.Access == "" {
		return
	}
	level, ok := tokenstore.ParseLevel(c.spec.Access)
	if !ok {
		c.fault("access", "%q must be read or write", c.spec.Access)
	}
	c.route.access = level
}

func (c *routeCompiler) limits() {
	l := &c.spec.Limits
	rated := l.Rate >= 1e-6 && l.Rate <= 1e9 // and not NaN
	if l.Uses != 0 || len(l.Quotas) > 0 || l.Rate == 0 && l.Burst != 0 || l.Rate != 0 && !rated {
		c.fault("limits", "a route limits rate, with burst, and concurrent, each to a positive number")
	}
}

func (c *routeCompiler) relax() {
	for _, name := range c.spec.Relax {
		bit, ok := canon.RelaxationNamed(name)
		if !ok {
			c.fault("relax", "%q is not a relaxation: choose from %s", name, relaxationNames())
		}
		c.route.relax |= bit
	}
}

// ambiguity looks for resources that mean several things, which depends on what the
// route relaxes.
func (c *routeCompiler) ambiguity() {
	slashes := c.route.relax&canon.EncodedSlash != 0
	for i, item := range c.spec.Resources {
		for j, text := range splitOutsideBraces(item) {
			if c.route.resources[i][j].ambiguous(slashes) {
				c.fault("resources", "%q names different things alike, since a value may hold what stands between its variables: separate them by a /, "+
					"which all but one of the values must be unable to hold (those of {?name} can, and with encoded_slash relaxed all), or ask for each as an item of its own", text)
			}
		}
	}
}

// unmet says why no request can take the route; it is empty where some can. A route
// for requests that are refused before routes are looked at would have no effect,
// and whoever wrote it believes that it has.
func (r *Route) unmet(rules *canon.Rules) string {
	target := r.path.sample()
	methods := r.methods
	if methods == nil {
		methods = []string{"OPTIONS"} // which goes with every path
	}
	for _, s := range r.path.segments {
		if len(s.literal) > maxDecoded {
			return fmt.Sprintf("a segment of %q is longer than %d bytes: shorten it, or write a variable {x} in its place", r.Pattern, maxDecoded)
		}
	}
	for _, method := range methods {
		var q canon.Request
		head := canon.Head{Method: []byte(method), Target: []byte(target), Fields: []canon.Field{{Name: []byte("Host"), Value: []byte("host")}}, Major: 1, Minor: 1}
		if v := rules.Canonicalize(&q, &head); v != canon.Accepted {
			return fmt.Sprintf("%q matches no request, since each is refused beforehand (%s): write a method and a path that requests can have", r.Pattern, v.Detail())
		}
		if left := r.irregular(&q); left != 0 {
			return fmt.Sprintf("%q matches no request, since each is refused for its form (%s): add relax: [%s] to the route, or change the path", r.Pattern, left.Detail(), left)
		}
	}
	return ""
}

// sample is the shortest target that the pattern matches.
func (p *pathPattern) sample() string {
	if p.asterisk {
		return "*"
	}
	var b strings.Builder
	for _, s := range p.segments {
		b.WriteByte('/')
		if s.param {
			b.WriteByte('x')
		}
		b.WriteString(url.PathEscape(s.literal))
	}
	if b.Len() == 0 {
		return "/"
	}
	return b.String()
}

func hashOf(pattern string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(pattern)) // never fails
	return h.Sum64()
}

func relaxationNames() string {
	var names []string
	for r := range canon.Relaxations() {
		names = append(names, r.Name)
	}
	return strings.Join(names, ", ")
}

func parseMatch(match string) (methods []string, path pathPattern, err error) {
	method, rest, ok := strings.Cut(match, " ")
	if !ok || method == "" || strings.ContainsAny(rest, " \t") {
		return nil, path, fmt.Errorf("%q must be methods, one space and a path, such as `GET,HEAD /accounts/{account}`", match)
	}
	if method != "*" {
		methods = strings.Split(method, ",")
		for i, m := range methods {
			if !validMethod(m) {
				return nil, path, fmt.Errorf("%q is not a method: write names such as GET in capitals, separated by commas without spaces, or * for any", m)
			}
			if slices.Contains(methods[:i], m) {
				return nil, path, fmt.Errorf("method %s is named twice", m)
			}
		}
	}
	path, err = parsePath(rest)
	return methods, path, err
}

func validMethod(m string) bool {
	if m == "" || m == "CONNECT" || m == "TRACE" {
		return false
	}
	for i := range len(m) {
		if c := m[i]; (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

func parsePath(text string) (p pathPattern, err error) {
	if text == "*" {
		return pathPattern{asterisk: true}, nil
	}
	rest, ok := strings.CutPrefix(text, "/")
	if !ok {
		return p, fmt.Errorf("path %q must begin with a slash", text)
	}
	segments := strings.Split(rest, "/")
	for i, s := range segments {
		last := i == len(segments)-1
		name, isVar := strings.CutPrefix(s, "{")
		switch {
		case isVar && strings.HasSuffix(s, "...}"):
			if name = strings.TrimSuffix(name, "...}"); !validVar(name) {
				return p, fmt.Errorf("%q is not a variable: names match [a-z][a-z0-9_]*", s)
			}
			if !last {
				return p, fmt.Errorf("%s may stand only at the end of a path", s)
			}
			if slices.Contains(p.vars, name) {
				return p, fmt.Errorf("variable {%s} is named twice", name)
			}
			p.tail = true
		case isVar:
			name, ok := strings.CutSuffix(name, "}")
			if !ok || !validVar(name) {
				return p, fmt.Errorf("%q is not a variable: a variable is a whole segment, and names match [a-z][a-z0-9_]*", s)
			}
			if slices.Contains(p.vars, name) {
				return p, fmt.Errorf("variable {%s} is named twice", name)
			}
			if len(p.vars) == maxVars {
				return p, fmt.Errorf("path %q has more than %d variables", text, maxVars)
			}
			p.vars = append(p.vars, name)
			p.segments = append(p.segments, segment{param: true})
		case s == "" && !last:
			return p, fmt.Errorf("path %q has an empty segment", text)
		default:
			literal, err := parseLiteral(s)
			if err != nil {
				return p, err
			}
			p.segments = append(p.segments, segment{literal: literal})
		}
	}
	return p, nil
}

func validVar(name string) bool {
	if name == "" || name[0] < 'a' || name[0] > 'z' {
		return false
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}

// parseLiteral decodes a literal segment. What no request can have, no route
// may name, or it would protect nothing.
func parseLiteral(s string) (string, error) {
	if strings.ContainsAny(s, "{}*?#\\ ") {
		return "", fmt.Errorf("segment %q must be literal text or a whole variable: write {x} for any one segment, {x...} at the end for the rest, and percent-encode other characters", s)
	}
	decoded, err := url.PathUnescape(s)
	if err != nil {
		return "", fmt.Errorf("segment %q is not percent-encoded correctly", s)
	}
	if decoded == "." || decoded == ".." {
		return "", fmt.Errorf("segment %q is a dot segment, which is never forwarded", s)
	}
	return decoded, nil
}

// splitOutsideBraces splits at every bar that is not inside braces.
func splitOutsideBraces(item string) []string {
	var parts []string
	depth, start := 0, 0
	for i := range len(item) {
		switch item[i] {
		case '{':
			depth++
		case '}':
			depth--
		case '|':
			if depth == 0 {
				parts = append(parts, item[start:i])
				start = i + 1
			}
		}
	}
	return append(parts, item[start:])
}

func (p *pathPattern) parseResource(text string) (resource, error) {
	typ, template, ok := strings.Cut(text, ":")
	if !ok || template == "" {
		return resource{}, fmt.Errorf("must be type:template, such as account:{account}")
	}
	if detail := tokenstore.CheckResourceType(typ); detail != "" {
		return resource{}, fmt.Errorf("resource type %q %s", typ, detail)
	}
	res := resource{typ: typ}
	for template != "" {
		literal, rest, found := strings.Cut(template, "{")
		if literal != "" {
			if strings.Contains(literal, "}") {
				return res, fmt.Errorf("has a } without a {")
			}
			res.template = append(res.template, part{kind: partLiteral, literal: literal})
		}
		if !found {
			break
		}
		name, after, ok := strings.Cut(rest, "}")
		if !ok {
			return res, fmt.Errorf("has a { without a }")
		}
		one, err := p.parseVariable(name)
		if err != nil {
			return res, err
		}
		res.template = append(res.template, one)
		template = after
	}
	return res, nil
}

// ambiguous reports whether the values of two requests may differ and make the
// same id: with {a}-{b}, `1-2` and `3` do, and `1` and `2-3`. slashes says that a
// segment of the path may hold a slash.
func (res *resource) ambiguous(slashes bool) bool {
	var last *part
	separated, distinct, touching, open := false, false, false, 0
	for i := range res.template {
		p := &res.template[i]
		switch p.kind {
		case partLiteral:
			separated = separated || strings.Contains(p.literal, "/")
		case partTokenAccount: // is the same whatever its token asks for
		case partPath, partQuery:
			if last != nil {
				distinct = distinct || *p != *last
				touching = touching || !separated
			}
			if slashes || p.kind == partQuery {
				open++
			}
			last, separated = p, false
		}
	}
	return distinct && (touching || open > 1)
}

func (p *pathPattern) parseVariable(name string) (part, error) {
	if name == "token.account" {
		return part{kind: partTokenAccount}, nil
	}
	if query, ok := strings.CutPrefix(name, "?"); ok {
		if query == "" || strings.ContainsAny(query, "&=+%;# ") {
			return part{}, fmt.Errorf("{%s} must name a query parameter, such as {?account}", name)
		}
		return part{kind: partQuery, literal: query}, nil
	}
	i := slices.Index(p.vars, name)
	if i < 0 {
		return part{}, fmt.Errorf("{%s} is not a variable of the path; a final {x...} cannot be used", name)
	}
	return part{kind: partPath, v: i}, nil
}
