package http1_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"

	"tokenward/proxy/http1"
)

// A reverse proxy that drops one field, adds another, and answers what it
// cannot forward by itself.
func Example() {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s, cookie %q, user %q", r.URL.Path, r.Header.Get("Cookie"), r.Header.Get("X-User"))
	}))
	defer origin.Close()

	upstream := &http1.Upstream{Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", origin.Listener.Addr().String())
	}}
	defer upstream.Close()

	server := &http1.Server{Handler: func(x *http1.Exchange) {
		edit := x.Edit()
		edit.Judged = func(name []byte) bool { return strings.EqualFold(string(name), "X-User") }
		for i, f := range x.Request().Fields {
			if strings.EqualFold(string(f.Name), "Cookie") {
				edit.Drop = append(edit.Drop, i)
			}
		}
		edit.Add(http1.Field{Name: []byte("X-User"), Value: []byte("7")})
		result, err := x.Forward(upstream, edit)
		if err != nil && !result.HeadSent {
			_ = x.Respond(http.StatusBadGateway, nil, []byte(result.Stage.String()))
		}
	}}
	defer server.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	go server.Serve(listener)

	request, _ := http.NewRequest("GET", "http://"+listener.Addr().String()+"/a", http.NoBody)
	request.Header.Set("Cookie", "secret")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(answer.Body)
	fmt.Println(answer.StatusCode, string(body))
	http.DefaultClient.CloseIdleConnections()
	// Output: 200 /a, cookie "", user "7"
}

// An answer from memory, on any net.Conn.
func ExampleExchange_Respond() {
	server := &http1.Server{Handler: func(x *http1.Exchange) {
		_ = x.Respond(401, []http1.Field{
			{Name: []byte("Date"), Value: []byte("Sat, 21 Nov 2026 18:00:00 GMT")},
			{Name: []byte("WWW-Authenticate"), Value: []byte("Bearer")},
		}, []byte("no token\n"))
	}}
	ours, theirs := net.Pipe()
	go server.ServeConn(ours)
	_, _ = io.WriteString(theirs, "GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n")
	answer, _ := io.ReadAll(theirs)
	fmt.Println(strings.ReplaceAll(string(answer), "\r\n", "\n"))
	// Output:
	// HTTP/1.1 401 Unauthorized
	// Date: Sat, 21 Nov 2026 18:00:00 GMT
	// WWW-Authenticate: Bearer
	// Content-Length: 9
	// Connection: close
	//
	// no token
}

// A handler of net/http for the paths that are called seldom.
func ExampleAdapter() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /admin/{name}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s", r.PathValue("name"))
	})
	server := &http1.Server{Handler: http1.Adapter(mux)}
	ours, theirs := net.Pipe()
	go server.ServeConn(ours)
	_, _ = io.WriteString(theirs, "GET /admin/you HTTP/1.0\r\nHost: example.com\r\n\r\n")
	answer, _ := io.ReadAll(theirs)
	_, body, _ := strings.Cut(string(answer), "\r\n\r\n")
	fmt.Println(body)
	// Output: hello you
}

// The engine's own refusals get a body and are counted through one hook.
func ExampleServer_refused() {
	server := &http1.Server{Refused: func(r http1.Refusal) http1.Answer {
		return http1.Answer{
			Fields: []http1.Field{
				{Name: []byte("Date"), Value: []byte("Sat, 21 Nov 2026 18:00:00 GMT")},
				{Name: []byte("Content-Type"), Value: []byte("application/problem+json")},
			},
			Body: fmt.Appendf(nil, `{"code":%q}`, r.Code),
		}
	}}
	ours, theirs := net.Pipe()
	go server.ServeConn(ours)
	go io.WriteString(theirs, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n")
	answer := make([]byte, 512)
	n, _ := theirs.Read(answer)
	_ = theirs.Close()
	fmt.Println(strings.ReplaceAll(string(answer[:n]), "\r\n", "\n"))
	// Output:
	// HTTP/1.1 400 Bad Request
	// Date: Sat, 21 Nov 2026 18:00:00 GMT
	// Content-Type: application/problem+json
	// Content-Length: 28
	// Connection: close
	//
	// {"code":"length_and_coding"}
}
