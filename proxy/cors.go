package proxy

import (
	"bytes"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"tokenward/enforce/canon"
	"tokenward/proxy/http1"
)

// CORSOptions say which pages of other origins may use a route from a browser.
type CORSOptions struct {
	Origins     []string      // scheme://host[:port] each, or `*` alone
	Methods     []string      // nil: those that the route matches
	Headers     []string      // that scripts may set
	Expose      []string      // of the answer, that scripts may read
	MaxAge      time.Duration // how long a browser may remember the preflight; 0: as it likes
	Credentials bool          // lets browsers send cookies and client certificates; not with `*`
}

// CORSFault is one thing wrong with the options.
type CORSFault struct {
	Field  string // key of the configuration
	Index  int    // of the item; -1: the key as a whole
	Detail string
	Fix    string
}

// CORS is the compiled form: immutable.
type CORS struct {
	origins map[string]bool
	any     bool
	methods []string
	headers map[string]bool // lower case
	allow   []canon.Field   // of a preflight, beside origin and method
	answer  []canon.Field   // of every answer to an allowed origin
	varies  canon.Field
}

// NewCORS compiles the options, or says all that is wrong with them.
func NewCORS(o CORSOptions) (*CORS, []CORSFault) {
	c := &CORS{origins: make(map[string]bool), headers: make(map[string]bool), methods: slices.Clone(o.Methods)}
	var faults []CORSFault
	fault := func(field string, i int, detail, fix string) {
		faults = append(faults, CORSFault{field, i, detail, fix})
	}
	if len(o.Origins) == 0 {
		fault("origins", -1, "no origin may use the route", "write origins such as https://app.example.com, or remove cors")
	}
	for i, origin := range o.Origins {
		switch {
		case origin == "*" && len(o.Origins) > 1:
			fault("origins", i, "* allows every origin already", "write [\"*\"], or the origins alone")
		case origin == "*" && o.Credentials:
			fault("origins", i, "* cannot be combined with credentials: every site could act for whoever is logged in", "list the origins, or set credentials to false")
		case origin == "*":
			c.any = true
		case !validOrigin(origin):
			fault("origins", i, strconv.Quote(origin)+" is not an origin", "write scheme and host in lower case, with a port only if it is not the scheme's own, such as https://app.example.com")
		default:
			c.origins[origin] = true
		}
	}
	for i, m := range o.Methods {
		if !validToken(m) || m != strings.ToUpper(m) {
			fault("methods", i, strconv.Quote(m)+" is not a method", "write names such as GET in capitals")
		}
	}
	for _, list := range []struct {
		field string
		names []string
	}{{"headers", o.Headers}, {"expose", o.Expose}} {
		for i, name := range list.names {
			if !validToken(name) || name == "*" {
				fault(list.field, i, strconv.Quote(name)+" is not a header name", "write names such as Content-Type; * is not taken")
			}
		}
	}
	if o.MaxAge < 0 || o.MaxAge > 24*time.Hour || o.MaxAge%time.Second != 0 {
		fault("max_age", -1, "it is not 0 to 24h in whole seconds", "write 0 to 24h; browsers cut it to two hours or a day")
	}
	if len(faults) > 0 {
		return nil, faults
	}
	for _, name := range o.Headers {
		c.headers[strings.ToLower(name)] = true
	}
	c.compile(&o)
	return c, nil
}

// compile prepares the fields that are always the same.
func (c *CORS) compile(o *CORSOptions) {
	field := func(name, value string) canon.Field { return canon.Field{Name: []byte(name), Value: []byte(value)} }
	if o.Credentials {
		c.answer = append(c.answer, field("Access-Control-Allow-Credentials", "true"))
	}
	c.allow = slices.Clone(c.answer)
	if len(o.Expose) > 0 {
		c.answer = append(c.answer, field("Access-Control-Expose-Headers", strings.Join(o.Expose, ", ")))
	}
	if len(o.Headers) > 0 {
		c.allow = append(c.allow, field("Access-Control-Allow-Headers", strings.Join(o.Headers, ", ")))
	}
	if o.MaxAge > 0 {
		c.allow = append(c.allow, field("Access-Control-Max-Age", strconv.FormatInt(int64(o.MaxAge/time.Second), 10)))
	}
	c.varies = field("Vary", "Origin")
}

// validOrigin reports whether s is what a browser sends as Origin (RFC 6454
// section 6.2): anything else would never match.
func validOrigin(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || strings.Contains(s, "*") || u.Scheme+"://"+u.Host != s || strings.ToLower(s) != s {
		return false
	}
	standard := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	return u.Port() == "" && !strings.HasSuffix(u.Host, ":") || u.Port() != standard && u.Port() != ""
}

func validToken(s string) bool {
	const others = "!#$%&'*+-.^_`|~"
	for i := range len(s) {
		c := s[i]
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return s != ""
}

// allowsOrigin reports whether a page of that origin may use the route.
func (c *CORS) allowsOrigin(origin []byte) bool {
	return len(origin) > 0 && (c.any || c.origins[string(origin)])
}

// appendAnswer appends the fields of every answer on the route. origin is nil
// where there was none, or not one.
func (c *CORS) appendAnswer(dst []canon.Field, origin []byte) []canon.Field {
	if !c.any {
		dst = append(dst, c.varies)
	}
	if !c.allowsOrigin(origin) {
		return dst
	}
	return append(append(dst, c.allowOrigin(origin)), c.answer...)
}

func (c *CORS) allowOrigin(origin []byte) canon.Field {
	if c.any {
		return canon.Field{Name: nameAllowOrigin, Value: wildcard}
	}
	return canon.Field{Name: nameAllowOrigin, Value: origin}
}

// preflight appends the fields that allow the request which a browser asks about,
// or says why it is not allowed.
func (c *CORS) preflight(dst []canon.Field, origin, method, headers []byte) ([]canon.Field, string) {
	if !c.any {
		dst = append(dst, c.varies)
	}
	if !c.allowsOrigin(origin) {
		return dst, "Pages of this origin may not use this path."
	}
	if len(c.methods) > 0 && !slices.Contains(c.methods, string(method)) {
		return dst, "Pages of other origins may not use this method here."
	}
	for name := range bytes.SplitSeq(headers, []byte{','}) {
		name = bytes.ToLower(bytes.TrimSpace(name))
		if len(name) > 0 && !c.headers[string(name)] {
			return dst, "Pages of other origins may not set one of these headers here."
		}
	}
	dst = append(dst, c.allowOrigin(origin), canon.Field{Name: nameAllowMethods, Value: method})
	return append(dst, c.allow...), ""
}

var (
	nameOrigin         = []byte("Origin")
	nameRequestMethod  = []byte("Access-Control-Request-Method")
	nameRequestHeaders = []byte("Access-Control-Request-Headers")
	nameAllowOrigin    = []byte("Access-Control-Allow-Origin")
	nameAllowMethods   = []byte("Access-Control-Allow-Methods")
	prefixCORS         = []byte("Access-Control-")
	wildcard           = []byte("*")
)

const codeCORS = "cors_refused"

// preflight answers a browser's question whether a page may send a request, by
// the route that this request would take. It reports false where the question is
// none, or that route has no CORS: then the request is judged as any other.
func (p *passage) preflight() bool {
	if string(p.req.Method) != http.MethodOptions {
		return false
	}
	method, origin := p.only(nameRequestMethod), p.only(nameOrigin)
	if len(method) == 0 || len(origin) == 0 {
		return false
	}
	route := p.rules.Policy.RouteFor(method, &p.req)
	lane := p.rules.lane(route)
	if lane.cors == nil {
		return false
	}
	var detail string
	if p.extra, detail = lane.cors.preflight(p.extra, origin, method, p.only(nameRequestHeaders)); detail != "" {
		p.refusal = refusal{status: http.StatusForbidden, code: codeCORS, detail: detail}
		return true
	}
	p.refusal = refusal{status: http.StatusNoContent}
	return true
}

// only gives the value of a field that is there once, else nil.
func (p *passage) only(name []byte) []byte {
	var value []byte
	found := false
	for i := range p.head.Fields {
		if f := &p.head.Fields[i]; bytes.EqualFold(f.Name, name) {
			if found {
				return nil
			}
			value, found = f.Value, true
		}
	}
	return value
}

// dropUpstreamCORS leaves out what the upstream says about other origins: on a
// route with CORS the proxy alone does. It leaves out all that dropRequestID does.
func dropUpstreamCORS(r *http1.Response, e *http1.Edit) {
	dropRequestID(r, e)
	for i, f := range r.Fields {
		if len(f.Name) >= len(prefixCORS) && bytes.EqualFold(f.Name[:len(prefixCORS)], prefixCORS) {
			e.DropAnswer(i)
		}
	}
}

// dropHeaderCORS is dropUpstreamCORS for net/http.
func dropHeaderCORS(h http.Header) {
	for name := range h {
		if strings.HasPrefix(name, string(prefixCORS)) {
			delete(h, name)
		}
	}
}
