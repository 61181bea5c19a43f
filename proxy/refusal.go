package proxy

import (
	"net/http"
	"strconv"
	"time"

	"tokenward/enforce"
	"tokenward/proxy/http1"
)

// refusal is an answer of our own to a request that is not forwarded.
type refusal struct {
	status     int
	code       string // empty: it is no refusal, and has no body
	detail     string
	challenge  string // WWW-Authenticate
	scope      string // ends the challenge where it is not empty
	retryAfter time.Duration

	template *http1.Template // of all but retryAfter, where one was made beforehand
}

var overloaded = refusal{
	status: http.StatusServiceUnavailable, code: "overloaded", retryAfter: time.Second,
	detail: "The proxy cannot take the request just now: try again shortly.",
}

var internalError = refusal{
	status: http.StatusInternalServerError, code: "internal_error",
	detail: "The proxy could not forward the request.",
}

// refusalOf is what the client is told of d under these rules.
func (r *Ruleset) refusalOf(d *enforce.Decision) refusal {
	out := refusal{status: d.Status(), code: d.Reason.Code(), detail: d.Detail(), retryAfter: d.RetryAfter}
	switch {
	case d.Reason == enforce.MissingToken:
		out.challenge, out.detail = enforce.Challenge, r.Canon.Required()
	case d.Reason == enforce.ScopeMissing:
		out.challenge, out.scope = enforce.Challenge+`, error="insufficient_scope", scope=`, d.Scope
	case out.status == http.StatusUnauthorized:
		out.challenge = enforce.Challenge + `, error="invalid_token"`
	case out.status == http.StatusServiceUnavailable:
		out.retryAfter = time.Second
	}
	out.template = r.prepared.of(d, out)
	return out
}

// preparedRefusals are answers put together when a ruleset is made: whoever sends what is
// never let through, by mistake or to wear us out, shall cost as little as possible.
type preparedRefusals struct {
	byReason [enforce.NumReasons]*preparedRefusal
	byScope  map[string]*preparedRefusal // of ScopeMissing
}

type preparedRefusal struct {
	refusal  refusal // without retryAfter and template
	template *http1.Template
}

// of returns the template for the refusal that d led to; nil if none was made for what
// it says.
func (p *preparedRefusals) of(d *enforce.Decision, out refusal) *http1.Template {
	if p == nil {
		return nil
	}
	there := p.byReason[d.Reason]
	if d.Reason == enforce.ScopeMissing {
		there = p.byScope[d.Scope]
	}
	out.retryAfter = 0
	if there == nil || out != there.refusal {
		return nil
	}
	return there.template
}

func (r *Ruleset) prepareRefusals() {
	r.prepared = nil
	all := &preparedRefusals{byScope: make(map[string]*preparedRefusal)}
	for _, reason := range enforce.Reasons() {
		if !reason.Allows() && reason != enforce.ScopeMissing {
			all.byReason[reason] = r.prepare(&enforce.Decision{Reason: reason})
		}
	}
	if r.Policy != nil {
		for _, scope := range r.Policy.Scopes() {
			all.byScope[scope] = r.prepare(&enforce.Decision{Reason: enforce.ScopeMissing, Scope: scope})
		}
	}
	r.prepared = all
}

func (r *Ruleset) prepare(d *enforce.Decision) *preparedRefusal {
	out := r.refusalOf(d)
	out.retryAfter = 0
	blank := newRequestID() // no text of ours holds it
	fields, _ := out.appendFields(nil, nil, &blank)
	template, err := http1.NewTemplate(out.status, fields, out.appendBody(nil, &blank), blank[:])
	if err != nil { // then such an answer cannot be sent in any way
		return nil
	}
	return &preparedRefusal{out, template}
}

// appendBody appends the problem details of RFC 9457. Every text is ours or a
// token by construction, so nothing needs escaping.
func (r *refusal) appendBody(dst []byte, id *requestID) []byte {
	if r.code == "" {
		return dst
	}
	dst = append(dst, `{"type":"about:blank","title":"`...)
	dst = append(dst, http.StatusText(r.status)...)
	dst = append(dst, `","status":`...)
	dst = strconv.AppendInt(dst, int64(r.status), 10)
	dst = append(dst, `,"code":"`...)
	dst = append(dst, r.code...)
	dst = append(dst, `","detail":`...)
	dst = appendQuoted(dst, r.detail)
	dst = append(dst, `,"request_id":"`...)
	dst = append(dst, id[:]...)
	return append(dst, "\"}\n"...)
}

// appendQuoted appends s in double quotes. Most texts need no escaping.
func appendQuoted(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return strconv.AppendQuote(dst, s)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// appendFields appends the fields of the answer but its length. Values are built
// in scratch, which is returned grown; they stay valid as long as it is not reused.
func (r *refusal) appendFields(dst []http1.Field, scratch []byte, id *requestID) ([]http1.Field, []byte) {
	if r.code != "" {
		dst = append(dst, http1.Field{Name: nameContentType, Value: valueProblem}, http1.Field{Name: nameCacheControl, Value: valueNoStore})
	}
	dst = append(dst, http1.Field{Name: nameRequestID, Value: id[:]})
	add := func(name []byte, start int) {
		dst = append(dst, http1.Field{Name: name, Value: scratch[start:len(scratch):len(scratch)]})
	}
	if r.challenge != "" {
		start := len(scratch)
		scratch = append(scratch, r.challenge...)
		if r.scope != "" {
			scratch = append(append(append(scratch, '"'), r.scope...), '"')
		}
		add(nameAuthenticate, start)
	}
	if r.status == http.StatusMethodNotAllowed {
		dst = append(dst, http1.Field{Name: nameAllow, Value: valueAllow})
	}
	return r.appendRetryAfter(dst, scratch)
}

// appendRetryAfter appends the one field that a template leaves out, as appendFields does.
func (r *refusal) appendRetryAfter(dst []http1.Field, scratch []byte) ([]http1.Field, []byte) {
	if r.retryAfter <= 0 {
		return dst, scratch
	}
	start := len(scratch)
	scratch = strconv.AppendInt(scratch, seconds(r.retryAfter), 10)
	return append(dst, http1.Field{Name: nameRetryAfter, Value: scratch[start:len(scratch):len(scratch)]}), scratch
}

// fields calls add for each field of the answer but its length.
func (r *refusal) fields(id *requestID, add func(name, value string)) {
	fields, _ := r.appendFields(nil, nil, id)
	for _, f := range fields {
		add(string(f.Name), string(f.Value))
	}
}

var (
	nameContentType  = []byte("Content-Type")
	nameCacheControl = []byte("Cache-Control")
	nameAuthenticate = []byte("WWW-Authenticate")
	nameRetryAfter   = []byte("Retry-After")
	nameAllow        = []byte("Allow")
	valueProblem     = []byte("application/problem+json")
	valueNoStore     = []byte("no-store")
	valueAllow       = []byte("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
)
