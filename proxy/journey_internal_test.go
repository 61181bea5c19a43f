package proxy

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestEarlyHintsDoNotHoldUpTheBody: the hints go out before anybody has read of the
// body, which its client sends only when asked to.
func TestEarlyHintsDoNotHoldUpTheBody(t *testing.T) {
	for _, expects := range []bool{true, false} {
		server := NewHTTP2(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			j := &journey{passage: &passage{lane: &lane{}}, sending: &sendingBody{in: r, out: r, body: r.Body}}
			j.sending.patience = newPatience(time.Minute, func(error) {})
			defer j.sending.patience.finish()
			w := &answerWriter{ResponseWriter: rw, journey: j, request: r}
			w.Header().Set("Link", "</a.css>")
			w.Header().Set(headerRequestID, "theirs")
			w.WriteHeader(http.StatusEarlyHints)
			clear(w.Header())
			body, err := io.ReadAll(j.sending)
			if err != nil {
				t.Error(err)
			}
			w.Header().Set("Link", "</b.css>")
			w.WriteHeader(http.StatusEarlyHints) // the body is here: nothing is to be asked for
			clear(w.Header())
			_, _ = w.Write(body)
		}), time.Second, time.Minute, 1<<14, slog.New(slog.DiscardHandler))
		here, there := net.Pipe()
		go server.ServeConn(there)
		transport := &http.Transport{Protocols: new(http.Protocols), ExpectContinueTimeout: time.Minute, DialContext: func(context.Context, string, string) (net.Conn, error) { return here, nil }}
		transport.Protocols.SetUnencryptedHTTP2(true)
		var got []string
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			got = append(got, http.StatusText(code)+h.Get("Link")+h.Get(headerRequestID))
			return nil
		}})
		req, err := http.NewRequestWithContext(ctx, "POST", "http://a/", strings.NewReader("abc"))
		if err != nil {
			t.Fatal(err)
		}
		if expects {
			req.Header.Set("Expect", "100-continue")
		}
		resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || string(body) != "abc" {
			t.Errorf("%q, %v", body, err)
		}
		if want := []string{"Continue", "Early Hints</a.css>", "Early Hints</b.css>"}; !slices.Equal(got, want) {
			t.Errorf("expecting %v: got %q, want %q", expects, got, want)
		}
		_ = resp.Body.Close()
		transport.CloseIdleConnections()
		_ = server.Close()
	}
}

// TestUpstreamCannotFloodWithInterimAnswers, which have no bound in net/http.
func TestUpstreamCannotFloodWithInterimAnswers(t *testing.T) {
	sent := &statuses{ResponseWriter: httptest.NewRecorder()}
	w := &answerWriter{ResponseWriter: sent, journey: &journey{passage: &passage{lane: &lane{}}}, request: httptest.NewRequest("GET", "/", nil)}
	for range 1000 {
		w.WriteHeader(http.StatusEarlyHints)
	}
	w.WriteHeader(http.StatusOK)
	if len(sent.list) != maxInterims+1 || sent.list[maxInterims] != http.StatusOK {
		t.Errorf("%d answers went out: %v", len(sent.list), sent.list)
	}
}

// statuses notes what is written.
type statuses struct {
	http.ResponseWriter
	list []int
}

func (s *statuses) WriteHeader(status int) { s.list = append(s.list, status) }

// TestBrokenCallEndsWithTheStatusItStandsFor.
func TestBrokenCallEndsWithTheStatusItStandsFor(t *testing.T) {
	for _, c := range []struct {
		name, kind, timeout string
		took                time.Duration
		err                 error
		want                string // empty: it is no call
	}{
		{"lost", "application/grpc", "", 0, io.ErrUnexpectedEOF, "14"},
		{"cancelled", "application/grpc", "", 0, streamReset{Code: 8}, "1"},
		{"cancelled before its deadline", "application/grpc", "1S", 999 * time.Millisecond, streamReset{Code: 8}, "1"},
		{"cancelled at its deadline", "application/grpc", "1S", time.Second, streamReset{Code: 8}, "4"},
		{"cancelled at no deadline", "application/grpc", "S", time.Second, streamReset{Code: 8}, "1"},
		{"cancelled long before its deadline", "application/grpc", "99999999H", time.Hour, streamReset{Code: 8}, "1"},
		{"lost at its deadline", "application/grpc+proto", "1m", time.Second, io.ErrUnexpectedEOF, "14"},
		{"refused", "application/grpc; x=y", "", 0, streamReset{Code: 7}, "14"},
		{"too many", "application/grpc", "", 0, streamReset{Code: 11}, "8"},
		{"insecure", "application/grpc", "", 0, streamReset{Code: 12}, "7"},
		{"fault", "application/grpc", "", 0, streamReset{Code: 2}, "13"},
		{"gRPC-Web", "application/grpc-web", "", 0, io.ErrUnexpectedEOF, ""},
		{"JSON", "application/json", "", 0, io.ErrUnexpectedEOF, ""},
	} {
		r := &http.Response{Header: http.Header{"Content-Type": {c.kind}}, Request: &http.Request{Header: http.Header{"Grpc-Timeout": {c.timeout}}}}
		if ended := endsCall(r, c.took, c.err); ended != (c.want != "") || r.Trailer.Get("Grpc-Status") != c.want {
			t.Errorf("%s: ended %v with %v, want %s", c.name, ended, r.Trailer, c.want)
		}
	}
}
