package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/proxy/http1"
)

// TestPreparedRefusalSaysWhatAnyOtherDoes: for every reason there is, with and without
// fields of the request's own, the answer from a template has the fields and the body of
// one that is put together for the request.
func TestPreparedRefusalSaysWhatAnyOtherDoes(t *testing.T) {
	policy, faults := enforce.Compile([]enforce.RouteSpec{{Match: "GET /a", Scopes: []string{"one", "two|three"}}}, enforce.Options{})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	rules, err := canon.NewRules(canon.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := &Ruleset{Canon: rules, Policy: policy}
	r.prepareRefusals()
	type kind struct {
		d        enforce.Decision
		prepared bool
	}
	var kinds []kind
	for _, reason := range enforce.Reasons() {
		if reason.Allows() || reason == enforce.ScopeMissing {
			continue
		}
		for _, wait := range []time.Duration{0, 1, time.Second, 90 * time.Second} {
			kinds = append(kinds, kind{enforce.Decision{Reason: reason, RetryAfter: wait}, true})
		}
	}
	for scope, prepared := range map[string]bool{"one": true, "two": true, "three": true, "four": false, "": false} {
		kinds = append(kinds, kind{enforce.Decision{Reason: enforce.ScopeMissing, Scope: scope}, prepared})
	}
	kinds = append(kinds, kind{enforce.Decision{Reason: enforce.IrregularPath, Irregular: canon.EncodedSlash}, false})
	for _, k := range kinds {
		out := r.refusalOf(&k.d)
		if (out.template != nil) != k.prepared {
			t.Errorf("%v %q: a template: %t, want %t", k.d.Reason, k.d.Scope, out.template != nil, k.prepared)
		}
		for _, extra := range [][]canon.Field{nil, {{Name: nameAllowOrigin, Value: []byte("*")}, {Name: nameRateLimit, Value: []byte(`"uses";r=0`)}}} {
			p := &passage{refusal: out, extra: extra, id: newRequestID()}
			got, gotBody := refused(t, p)
			p.refusal.template = nil
			want, wantBody := refused(t, p)
			if diff := cmp.Diff(want, got); diff != "" || gotBody != wantBody {
				t.Errorf("%v %q: body %s, want %s; fields: %s", k.d.Reason, k.d.Scope, gotBody, wantBody, diff)
			}
			if got.Get("X-Request-Id") != p.id.String() {
				t.Errorf("%v: the id of another request: %v", k.d.Reason, got)
			}
		}
	}
}

// refused is the answer that the wire's door gives p, without its Date.
func refused(t *testing.T, p *passage) (http.Header, string) {
	t.Helper()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	s := &http1.Server{Handler: func(x *http1.Exchange) { (&Wire{}).refuse(x, p) }}
	go s.ServeConn(ours)
	go func() { _, _ = io.WriteString(theirs, "GET / HTTP/1.1\r\nHost: h\r\n\r\n") }()
	resp, err := http.ReadResponse(bufio.NewReader(theirs), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != p.refusal.status {
		t.Fatal(resp.Status, err)
	}
	if resp.Header.Get("Date") == "" {
		t.Error("no Date")
	}
	resp.Header.Del("Date")
	return resp.Header, string(body)
}
