package proxy

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"

	"tokenward/proxy/http1"
)

// Wire is the door over the HTTP/1.1 engine. A forwarded request allocates
// nothing here, and its bytes are copied once. What goes to an upstream that
// speaks HTTP/2 only is handed to the other door once it was judged.
type Wire struct {
	guard *Guard
	http  *HTTP
}

// NewWire returns the door.
func NewWire(g *Guard) *Wire { return &Wire{guard: g, http: NewHTTP(g)} }

// Serve handles one exchange: it is the Handler of an [http1.Server].
func (w *Wire) Serve(x *http1.Exchange) {
	p := w.guard.enter()
	defer w.guard.leave(p)
	r := x.Request()
	p.head.Method, p.head.Target = r.Method, r.Target
	p.head.Major, p.head.Minor = 1, uint8(r.Minor) //nolint:gosec // 0 or 1
	p.head.TLS = x.TLS() != nil
	p.head.Peer = x.Peer()
	p.head.Fields = r.Fields
	p.head.Upgrade = len(r.Upgrade) > 0
	// A look-up is not worth cancelling: it ends within the store's own bounds.
	if !w.guard.judge(context.Background(), p) {
		w.refuse(x, p)
		return
	}
	if p.mount != nil {
		http1.Adapter(p.mount)(x)
		return
	}
	p.cutter.wire = x.Cutter()
	if !w.guard.hold(context.Background(), p) {
		w.refuse(x, p)
		return
	}
	switch us := p.lane.upstreams; {
	case us == nil:
		p.refusal = noUpstream
		w.guard.countFailure(p.refusal.code, p, errNoUpstream)
		w.refuse(x, p)
	case us.http2:
		x.SetStallTimeout(p.lane.stall)
		http1.Adapter(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.http.forward(rw, r, p, fromWire) }))(x)
	default:
		w.forward(x, p)
	}
}

func (w *Wire) refuse(x *http1.Exchange, p *passage) {
	p.giveBack()
	p.answer = append(p.answer[:0], p.extra...)
	if t := p.refusal.template; t != nil {
		p.answer, p.scratch = p.refusal.appendRetryAfter(p.answer, p.scratch[:0])
		_ = x.RespondWith(t, p.id[:], p.answer) // a client that is gone needs no answer
		return
	}
	p.answer, p.scratch = p.refusal.appendFields(p.answer, p.scratch[:0], &p.id)
	body := len(p.scratch)
	p.scratch = p.refusal.appendBody(p.scratch, &p.id)
	_ = x.Respond(p.refusal.status, p.answer, p.scratch[body:]) // likewise
}

func (w *Wire) forward(x *http1.Exchange, p *passage) {
	e := x.Edit()
	e.Target, e.Host = p.target(), p.req.Authority
	for i := range p.head.Fields {
		if !p.forwards(i) {
			e.Drop = append(e.Drop, i)
		}
	}
	for i := range p.set {
		e.AddNamed(p.set[i])
	}
	e.AddAnswerNamed(http1.NamedField{Name: setRequestID, Value: p.id[:]})
	e.Answer = dropRequestID
	e.Judged = p.rules.judged
	e.KeepTrailer = p.rules.keepTrailer
	e.MaxBody = p.lane.bodyBytes
	e.HeaderTimeout, e.StallTimeout = p.lane.responseHeader, p.lane.stall
	e.Upgrade = true
	if p.holds() { // else the last byte of a long answer need not be sent apart
		e.Ending = p.over
	}
	for i := range p.extra {
		e.AddAnswer(p.extra[i])
	}
	if p.lane.cors != nil {
		e.Answer = dropUpstreamCORS
	}
	if _, announced := p.subprotocols(); announced != "" {
		others := e.Answer
		e.Answer = func(r *http1.Response, e *http1.Edit) {
			selectSubprotocol(r, e, announced)
			others(r, e)
		}
	}
	result, err := w.send(x, p, e)
	p.status = result.Status
	switch {
	case result.Upgraded:
		p.took = -1
	case err == nil:
	case result.HeadSent || result.Stage == http1.StageClient || result.Stage == http1.StageCut:
		p.took = -1
		if result.Stage != http1.StageClient && result.Stage != http1.StageCut {
			w.guard.countFailure(codeUpstreamBroke, p, err)
		}
	default:
		w.answerFailure(x, p, &result, err)
	}
}

// send forwards to one upstream after the other, until one takes the request.
func (w *Wire) send(x *http1.Exchange, p *passage, e *http1.Edit) (http1.Result, error) {
	var a attempt
	up := a.next(p.lane.upstreams, p.started)
	for {
		result, err := x.Forward(up.wire, e)
		w.notice(up, &result, err)
		if err == nil || !result.Again {
			return result, err
		}
		next := a.next(p.lane.upstreams, w.guard.Now())
		if next == nil {
			return result, err
		}
		w.guard.countFailover(up, p, err)
		up = next
	}
}

// notice tells the upstream's health how an exchange ended, where that says
// anything about it.
func (w *Wire) notice(up *Upstream, result *http1.Result, err error) {
	switch {
	case result.Status != 0:
		w.guard.answered(up)
	case err == nil:
	case result.Stage == http1.StageDial, result.Stage == http1.StageWrite, result.Stage == http1.StageHead:
		w.guard.unanswered(up, err)
	}
}

// dropRequestID leaves out what the upstream calls the request: the id in an answer
// is ours, and leads to one record in our log.
func dropRequestID(r *http1.Response, e *http1.Edit) {
	for i, f := range r.Fields {
		if len(f.Name) == len(nameRequestID) && bytes.EqualFold(f.Name, nameRequestID) {
			e.DropAnswer(i)
		}
	}
}

// selectSubprotocol selects the protocol that carried the credential where the
// upstream selected none: a browser gives up otherwise.
func selectSubprotocol(r *http1.Response, e *http1.Edit, announced string) {
	if r.Status != 101 {
		return
	}
	for _, f := range r.Fields {
		if bytes.EqualFold(f.Name, nameSubprotocol) {
			return
		}
	}
	e.AddAnswerNamed(http1.NamedField{Name: setSubprotocol, Value: []byte(announced)})
}

// answerFailure answers for an exchange that could not be forwarded and of which
// the client has seen nothing yet.
func (w *Wire) answerFailure(x *http1.Exchange, p *passage, result *http1.Result, err error) {
	switch result.Stage {
	case http1.StageRequest:
		p.refusal = requestRefusal(err)
		w.guard.countRefusal(p.refusal.code)
	case http1.StagePool:
		p.refusal = overloaded
		w.guard.countFailure(p.refusal.code, p, err)
	case http1.StageEdit:
		p.refusal = internalError
		w.guard.Log.Error("a request could not be edited for forwarding: this is a fault of tokenward", "error", err, "request_id", p.id.String())
	case http1.StageDial:
		p.refusal = upstreamRefusal(failureRefused)
		if result.Timeout {
			p.refusal = upstreamRefusal(failureDialTimeout)
		}
		w.guard.countFailure(p.refusal.code, p, err)
	default:
		p.refusal = upstreamRefusal(failureBroke)
		if result.Timeout {
			p.refusal = upstreamRefusal(failureTimeout)
		}
		w.guard.countFailure(p.refusal.code, p, err)
	}
	w.refuse(x, p)
}

// requestRefusal is the answer to a request whose body or framing was found
// faulty only while it was forwarded.
func requestRefusal(err error) refusal {
	if e, ok := errors.AsType[*http1.ProtocolError](err); ok {
		return protocolRefusal(e)
	}
	return refusal{status: 400, code: "bad_request", detail: "The request is malformed."}
}

// Refuse renders the engine's own refusals in the form of all others: it is the
// Refused hook of an [http1.Server].
func (w *Wire) Refuse(r http1.Refusal) http1.Answer {
	if r.Status == 0 { // closed without an answer
		code := protocolCodes[400]
		if strings.HasPrefix(r.Code, "connections") {
			code = overloaded.code
		}
		w.guard.countRefusal(code)
		return http1.Answer{}
	}
	id := newRequestID()
	out := protocolRefusal(r.ProtocolError)
	if r.Code == http1.CodeProxyHeader {
		w.guard.countRefusal(CodeProxyProtocol)
		w.guard.headers.Do(func() {
			w.guard.Log.Warn("a connection begins with a PROXY protocol header, and its peer is not one of proxy.proxy_protocol_from: if it is your load balancer, add its address there", "peer", r.Remote.String())
		})
	} else {
		w.guard.countRefusal(out.code)
	}
	var a http1.Answer
	a.Fields, _ = out.appendFields(nil, nil, &id)
	a.Body = out.appendBody(nil, &id)
	return a
}

func protocolRefusal(e *http1.ProtocolError) refusal {
	return refusal{status: e.Status, code: statusCode(e.Status), detail: "The request is not acceptable HTTP: " + e.Code + "."}
}

// protocolCodes are the codes that clients are told, by status, for requests that
// are refused as HTTP.
var protocolCodes = map[int]string{
	400: "bad_request",
	405: "method_not_allowed",
	408: "request_timeout",
	413: "content_too_large",
	414: "uri_too_long",
	417: "expectation_failed",
	431: "header_fields_too_large",
	501: "not_implemented",
	505: "http_version_not_supported",
}

func statusCode(status int) string {
	if code, ok := protocolCodes[status]; ok {
		return code
	}
	return protocolCodes[400]
}

// RefusalCodes returns the codes that [Guard.Refused] is called with.
func RefusalCodes() []string {
	return append(slices.Sorted(maps.Values(protocolCodes)), overloaded.code, codeCORS, CodeProxyProtocol)
}

// FailureCodes returns the codes that [Guard.Failed] is called with.
func FailureCodes() []string {
	codes := []string{overloaded.code, codeFailover}
	for f := range numFailures {
		codes = append(codes, upstreamRefusal(f).code)
	}
	return codes
}
