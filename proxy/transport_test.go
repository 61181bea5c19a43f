package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"tokenward/enforce/canon"
	"tokenward/proxy"
)

// route of a real client through the proxy: each protocol on both sides.
type route struct {
	name             string
	client, upstream string // http1 or h2c
}

var crossings = []route{{"http1 to http1", "http1", "http1"}, {"http1 to h2c", "http1", "h2c"}, {"h2c to http1", "h2c", "http1"}, {"h2c to h2c", "h2c", "h2c"}}

// eachCrossing runs f with a client of net/http for each pair of protocols. The
// client adds the token by itself.
func eachCrossing(t *testing.T, h http.Handler, f func(t *testing.T, client *http.Client, base string)) {
	t.Helper()
	for _, c := range crossings {
		t.Run(c.name, func(t *testing.T) {
			_, client, base := c.open(t, h, slog.DiscardHandler)
			f(t, client, base)
		})
	}
}

// open builds the proxy of a crossing, which logs to log, and its client.
func (c route) open(t *testing.T, h http.Handler, log slog.Handler) (w *world, client *http.Client, base string) {
	t.Helper()
	w = newWorld(t, canon.Options{})
	w.guard.Log = slog.New(log)
	upstream := urlOf(t, startServer(t, h))
	if c.upstream == "h2c" {
		upstream = serveH2C(t, h)
	}
	w.rules.Default = proxy.RouteOptions{Upstreams: upstreamsAt(t, nil, upstream)}
	addr := openProxy(t, w, nil)
	transport := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true, ExpectContinueTimeout: time.Minute}
	if c.client == "h2c" {
		transport.Protocols.SetUnencryptedHTTP2(true)
	} else {
		transport.Protocols.SetHTTP1(true)
	}
	t.Cleanup(transport.CloseIdleConnections)
	client = &http.Client{Transport: withToken{transport, w.secrets["full"]}, Timeout: patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return w, client, "http://" + addr
}

type withToken struct {
	inner  http.RoundTripper
	secret string
}

func (w withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	trailer := r.Trailer
	r = r.Clone(r.Context())
	r.Trailer = trailer // its values come later
	r.Header.Set("Api-Token", w.secret)
	return w.inner.RoundTrip(r)
}

// TestNothingElseIsTouched: statuses, fields and bodies that a drop-in proxy has
// to leave alone.
func TestNothingElseIsTouched(t *testing.T) {
	const whole = "0123456789"
	h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch strings.TrimPrefix(r.URL.Path, "/echo/") {
		case "204":
			rw.Header().Set("X-A", "b")
			rw.WriteHeader(204)
		case "redirect":
			http.Redirect(rw, r, "/elsewhere", http.StatusFound)
		case "gzip":
			rw.Header().Set("Content-Encoding", "gzip")
			_, _ = io.WriteString(rw, "not really")
		case "teapot":
			rw.Header()["Set-Cookie"] = []string{"a=1", "b=2"}
			rw.WriteHeader(418)
			_, _ = io.WriteString(rw, r.Header.Get("Accept-Encoding")+"|"+r.Header.Get("User-Agent")+"|"+strings.Join(r.Header["X-Many"], "+"))
		default:
			rw.Header().Set("Etag", `"v1"`)
			http.ServeContent(rw, r, "x.txt", time.Time{}, strings.NewReader(whole))
		}
	})
	eachCrossing(t, h, func(t *testing.T, client *http.Client, base string) {
		for _, c := range []struct {
			name, method, path string
			header             http.Header
			status             int
			body               string
			want               map[string]string
		}{
			{"whole", "GET", "file", nil, 200, whole, map[string]string{"Etag": `"v1"`, "Content-Length": "10", "Accept-Ranges": "bytes"}},
			{"head", "HEAD", "file", nil, 200, "", map[string]string{"Content-Length": "10"}},
			{"range", "GET", "file", http.Header{"Range": {"bytes=2-4"}}, 206, "234", map[string]string{"Content-Range": "bytes 2-4/10"}},
			{"bad range", "GET", "file", http.Header{"Range": {"bytes=20-"}}, 416, "invalid range: failed to overlap\n", nil},
			{"not modified", "GET", "file", http.Header{"If-None-Match": {`"v1"`}}, 304, "", map[string]string{"Etag": `"v1"`}},
			{"precondition", "GET", "file", http.Header{"If-Match": {`"v2"`}}, 412, "", nil},
			{"no content", "DELETE", "204", nil, 204, "", map[string]string{"X-A": "b", "Content-Length": ""}},
			{"redirect", "GET", "redirect", nil, 302, "<a href=\"/elsewhere\">Found</a>.\n\n", map[string]string{"Location": "/elsewhere"}},
			{"encoding", "GET", "gzip", http.Header{"Accept-Encoding": {"gzip"}}, 200, "not really", map[string]string{"Content-Encoding": "gzip"}},
			{"fields", "PATCH", "teapot", http.Header{"Accept-Encoding": {"br"}, "User-Agent": {"mine"}, "X-Many": {"1", "2"}}, 418, "br|mine|1+2", map[string]string{"Set-Cookie": "a=1"}},
		} {
			t.Run(c.name, func(t *testing.T) {
				req, err := http.NewRequest(c.method, base+"/echo/"+c.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				for name, values := range c.header {
					req.Header[name] = values
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != c.status || string(body) != c.body {
					t.Errorf("%d %q, %v", resp.StatusCode, body, err)
				}
				for name, want := range c.want {
					if got := resp.Header.Get(name); got != want {
						t.Errorf("%s: %q, want %q", name, got, want)
					}
				}
			})
		}
	})
}

// TestEventsArriveOneByOne: each event is read before the next is sent.
func TestEventsArriveOneByOne(t *testing.T) {
	next := make(chan struct{})
	h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream")
		for i := range 5 {
			fmt.Fprintf(rw, "data: %d\n\n", i)
			rw.(http.Flusher).Flush()
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
		}
	})
	eachCrossing(t, h, func(t *testing.T, client *http.Client, base string) {
		resp, err := client.Get(base + "/echo/events")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		br := bufio.NewReader(resp.Body)
		for i := range 5 {
			line, err := br.ReadString('\n')
			if err != nil || line != fmt.Sprintf("data: %d\n", i) {
				t.Fatalf("%q, %v", line, err)
			}
			_, _ = br.ReadString('\n')
			next <- struct{}{}
		}
		if rest, err := io.ReadAll(br); err != nil || len(rest) > 0 {
			t.Errorf("%q, %v", rest, err)
		}
	})
}

// TestBothDirectionsAtOnce: the answer to each line comes before the next line is
// sent, with trailers at both ends.
func TestBothDirectionsAtOnce(t *testing.T) {
	h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(rw).EnableFullDuplex() // HTTP/2 always has it
		rw.Header().Set("Trailer", "X-Lines, X-Token-Id")
		rw.WriteHeader(200)
		rw.(http.Flusher).Flush()
		br, n := bufio.NewReader(r.Body), 0
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				break
			}
			n++
			_, _ = io.WriteString(rw, "re: "+line)
			rw.(http.Flusher).Flush()
		}
		rw.Header().Set("X-Lines", fmt.Sprintf("%d, sum %s, id %q", n, r.Trailer.Get("X-Sum"), r.Trailer.Get("X-Token-Id")))
		rw.Header().Set("X-Token-Id", "9")
	})
	eachCrossing(t, h, func(t *testing.T, client *http.Client, base string) {
		pr, pw := io.Pipe()
		req, err := http.NewRequest("POST", base+"/echo/", pr)
		if err != nil {
			t.Fatal(err)
		}
		req.Trailer = http.Header{"X-Sum": nil, "X-Token-Id": nil}
		answered := make(chan *http.Response, 1)
		go func() {
			resp, err := client.Do(req)
			if err != nil {
				t.Error(err)
				close(answered)
				return
			}
			answered <- resp
		}()
		_, _ = io.WriteString(pw, "0\n")
		resp, ok := <-answered
		if !ok {
			return
		}
		defer resp.Body.Close()
		br := bufio.NewReader(resp.Body)
		for i := range 10 {
			if line, err := br.ReadString('\n'); err != nil || line != fmt.Sprintf("re: %d\n", i) {
				t.Fatalf("%q, %v", line, err)
			}
			if i < 9 {
				fmt.Fprintf(pw, "%d\n", i+1)
			}
		}
		req.Trailer["X-Sum"], req.Trailer["X-Token-Id"] = []string{"45"}, []string{"8"}
		_ = pw.Close()
		if rest, err := io.ReadAll(br); err != nil || len(rest) > 0 {
			t.Fatalf("%q, %v", rest, err)
		}
		if got := resp.Trailer.Get("X-Lines"); got != `10, sum 45, id ""` {
			t.Errorf("trailer X-Lines %q", got)
		}
		if got := resp.Trailer.Get("X-Token-Id"); got != "" {
			t.Errorf("trailer X-Token-Id %q", got)
		}
	})
}

// TestClientThatBreaksOffItsBodyIsNoFailureOfTheUpstream: the answer has begun, and the
// upstream can only break it off too. Neither counters nor the log blame it for that.
func TestClientThatBreaksOffItsBodyIsNoFailureOfTheUpstream(t *testing.T) {
	h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(rw).EnableFullDuplex()
		rw.WriteHeader(200)
		rw.(http.Flusher).Flush()
		_, _ = io.Copy(rw, r.Body)
	})
	for _, c := range crossings {
		t.Run(c.name, func(t *testing.T) {
			var said bytes.Buffer // written by the exchange only
			w, client, base := c.open(t, h, slog.NewTextHandler(&said, nil))
			pr, pw := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), "POST", base+"/echo/", pr)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(pw, "half a ")
			_ = pw.CloseWithError(errors.New("thought better of it"))
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			waitFor(t, func() bool { return w.guard.InFlight() == 0 })
			if got := w.counted().failed; len(got) > 0 {
				t.Errorf("counted %v", got)
			}
			if said.Len() > 0 {
				t.Errorf("logged %s", said.String())
			}
		})
	}
}

// TestInterimAnswersPass: 100 when the body is asked for, and 103 before the answer.
func TestInterimAnswersPass(t *testing.T) {
	h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Link", "</a.css>; rel=preload")
		rw.WriteHeader(http.StatusEarlyHints)
		rw.Header().Del("Link")
		if r.URL.Path == "/echo/refused" {
			rw.WriteHeader(403)
			return
		}
		_, _ = io.Copy(rw, r.Body)
	})
	eachCrossing(t, h, func(t *testing.T, client *http.Client, base string) {
		for path, want := range map[string]int{"/echo/taken": 200, "/echo/refused": 403} {
			var hints, continued atomic.Int64
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
				Got100Continue: func() { continued.Add(1) },
				Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
					if (code == http.StatusEarlyHints) != (h.Get("Link") != "") {
						t.Errorf("%s: %d with Link %q", path, code, h.Get("Link"))
					}
					if code == http.StatusEarlyHints {
						hints.Add(1)
					}
					return nil
				},
			})
			req, err := http.NewRequestWithContext(ctx, "POST", base+path, strings.NewReader("abc"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Expect", "100-continue")
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != want || want == 200 && string(body) != "abc" || resp.Header.Get("Link") != "" {
				t.Errorf("%s: %d %q %v", path, resp.StatusCode, body, resp.Header)
			}
			if hints.Load() != 1 || want == 200 && continued.Load() == 0 {
				t.Errorf("%s: %d early hints, %d times 100", path, hints.Load(), continued.Load())
			}
		}
	})
}

// TestWebSocket runs a real client and server through the engine, with the token in
// the header and in the subprotocol, where the server selects one and where not.
func TestWebSocket(t *testing.T) {
	for _, selects := range []string{"", "chat"} {
		t.Run("server selects "+selects, func(t *testing.T) {
			offered := make(chan string, 1)
			upstream := urlOf(t, startServer(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				offered <- r.Header.Get("Sec-Websocket-Protocol") + "|" + r.Header.Get("X-Token-Id")
				opts := &websocket.AcceptOptions{InsecureSkipVerify: true}
				if selects != "" {
					opts.Subprotocols = []string{selects}
				}
				c, err := websocket.Accept(rw, r, opts)
				if err != nil {
					return
				}
				defer c.CloseNow()
				for {
					kind, data, err := c.Read(r.Context())
					if err != nil {
						return
					}
					if err := c.Write(r.Context(), kind, append([]byte("re: "), data...)); err != nil {
						return
					}
				}
			})))
			for _, d := range []door{doors[0], doors[1]} {
				for _, carrier := range []string{"header", "subprotocol", "query"} {
					t.Run(d.name+" "+carrier, func(t *testing.T) {
						w := newWorld(t, canon.Options{Credentials: []string{"authorization", "api-token", "subprotocol:bearer", "query:access_token"}})
						w.rules.Default = proxy.RouteOptions{Upstreams: upstreamsAt(t, nil, upstream)}
						addr := d.open(t, w)
						opts, target, want := &websocket.DialOptions{Subprotocols: []string{"chat"}}, "ws://"+addr+"/accounts/1/live", selects
						switch carrier {
						case "header":
							opts.HTTPHeader = http.Header{"Api-Token": {w.secrets["full"]}}
						case "subprotocol": // as a browser can
							opts.Subprotocols = []string{"bearer", w.secrets["full"], "chat"}
							if want == "" {
								want = "bearer"
							}
						case "query":
							target += "?a=1&access_token=" + w.secrets["full"]
						}
						ctx, cancel := context.WithTimeout(t.Context(), patience)
						defer cancel()
						c, _, err := websocket.Dial(ctx, target, opts)
						if err != nil {
							t.Fatal(err)
						}
						defer c.CloseNow()
						if got := c.Subprotocol(); got != want {
							t.Errorf("selected %q, want %q", got, want)
						}
						if got := <-offered; got != "chat|1" {
							t.Errorf("the upstream was offered %q", got)
						}
						for i := range 3 {
							if err := c.Write(ctx, websocket.MessageText, fmt.Append(nil, i)); err != nil {
								t.Fatal(err)
							}
							if _, data, err := c.Read(ctx); err != nil || string(data) != fmt.Sprint("re: ", i) {
								t.Fatalf("%q, %v", data, err)
							}
						}
						if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
							t.Error(err)
						}
					})
				}
			}
		})
	}
}

// TestUpgradeMeansNothingToHTTP2: an upstream that speaks HTTP/2 gets a plain request.
func TestUpgradeMeansNothingToHTTP2(t *testing.T) {
	w := newWorld(t, canon.Options{})
	w.rules.Default.Upstreams = upstreamsAt(t, nil, serveH2C(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprint(rw, r.Header.Get("Upgrade"), r.Header.Get("Connection"))
	})))
	resp, body := ask(t, openWire(t, w), "GET /accounts/1/live HTTP/1.1\r\nHost: a\r\nApi-Token: "+w.secrets["full"]+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if resp.StatusCode != 200 || body != "" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
}

// TestQueryTokenOfAnEventSource: a browser's EventSource can set no header.
func TestQueryTokenOfAnEventSource(t *testing.T) {
	eachDoor(t, canon.Options{Credentials: []string{"authorization", "query:access_token"}}, func(t *testing.T, w *world, addr string) {
		resp, _ := ask(t, addr, "GET /echo/events?last=1&access_token="+w.secrets["full"]+"&x HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\nCache-Control: no-cache\r\n\r\n")
		line, _, _ := strings.Cut(w.upstream.last(), "\r\n")
		if resp.StatusCode != 200 || line != "GET /echo/events?last=1&x HTTP/1.1" {
			t.Errorf("%d, arrived as %q", resp.StatusCode, line)
		}
	})
}

// TestForeignAuthorizationPassesWhereTheRouteSaysSo, and nowhere else.
func TestForeignAuthorizationPassesWhereTheRouteSaysSo(t *testing.T) {
	eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
		w.rules.Routes = make([]proxy.RouteOptions, len(routes))
		w.rules.Routes[2].ForwardAuthorization = true // /echo/
		w.rules.Routes[0].ForwardAuthorization = true // /healthz, which is public
		w.guard.SetRules(w.rules)
		secret := w.secrets["full"]
		for _, c := range []struct {
			name, target, fields string
			status               int
			passes               string
		}{
			{"foreign", "/echo/", "Api-Token: " + secret + "\r\nAuthorization: Basic dTpw\r\n", 200, "Basic dTpw"},
			{"foreign without a token", "/echo/", "Authorization: Basic dTpw\r\n", 401, ""},
			{"ours", "/echo/", "Authorization: Bearer " + secret + "\r\n", 200, ""},
			{"ours twice", "/echo/", "Api-Token: " + secret + "\r\nAuthorization: Bearer " + secret + "\r\n", 200, ""},
			{"ours and foreign in two lines", "/echo/", "Authorization: Bearer " + secret + "\r\nAuthorization: Basic dTpw\r\n", 400, ""},
			{"foreign twice", "/echo/", "Api-Token: " + secret + "\r\nAuthorization: Basic dTpw\r\nAuthorization: Basic eDp5\r\n", 400, ""},
			{"another's bearer", "/echo/", "Api-Token: " + secret + "\r\nAuthorization: Bearer abc\r\n", 400, ""},
			{"another route", "/accounts/1", "Api-Token: " + secret + "\r\nAuthorization: Basic dTpw\r\n", 200, ""},
			{"public route", "/healthz", "Api-Token: " + secret + "\r\nAuthorization: Basic dTpw\r\n", 200, ""},
		} {
			before := w.upstream.count()
			resp, body := ask(t, addr, "GET "+c.target+" HTTP/1.1\r\nHost: a\r\n"+c.fields+"\r\n")
			if resp.StatusCode != c.status {
				t.Errorf("%s: %d %s", c.name, resp.StatusCode, body)
			}
			if w.upstream.count() == before {
				continue
			}
			got := ""
			for line := range strings.SplitSeq(w.upstream.last(), "\r\n") {
				if name, value, _ := strings.Cut(line, ": "); strings.EqualFold(name, "authorization") {
					got += value
				}
			}
			if got != c.passes || strings.Contains(w.upstream.last(), secret) {
				t.Errorf("%s: arrived as %q", c.name, got)
			}
		}
	})
}

// TestNothingIsLeftBehind counts goroutines and descriptors after exchanges that
// went wrong in every way.
func TestNothingIsLeftBehind(t *testing.T) {
	secretOf := func(w *world) string { return w.secrets["full"] }
	dies := func(nc net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(nc))
		fmt.Fprint(nc, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
	}
	resets := func(nc net.Conn) {
		dies(nc)
		_ = nc.(*net.TCPConn).SetLinger(0)
	}
	silent := func(nc net.Conn) { _, _ = io.Copy(io.Discard, nc) }
	endless := func(nc net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(nc))
		fmt.Fprint(nc, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for {
			if _, err := fmt.Fprintf(nc, "1000\r\n%s\r\n", bytes.Repeat([]byte("x"), 0x1000)); err != nil {
				return
			}
		}
	}
	// The connection may stay open after an answer that is whole.
	oneAnswer := func(nc net.Conn) {
		if answer, err := http.ReadResponse(bufio.NewReader(nc), nil); err == nil {
			_, _ = io.Copy(io.Discard, answer.Body)
		}
	}
	get := func(w *world) string { return request("GET", "/echo/", secretOf(w), "") }
	upload := func(w *world) string {
		return strings.Replace(request("POST", "/echo/", secretOf(w), ""), "Content-Length: 0", "Content-Length: 1000000", 1) + strings.Repeat("x", 50000)
	}
	for _, c := range []struct {
		name     string
		upstream func(net.Conn)
		raw      func(*world) string
		client   func(nc net.Conn) // what it does once it has sent
	}{
		{"upstream dies midway", dies, get, oneAnswer},
		{"upstream resets midway", resets, get, oneAnswer},
		{"upstream dies during the upload", func(nc net.Conn) { _, _ = nc.Read(make([]byte, 10)) }, upload, oneAnswer},
		{"client leaves while it waits", silent, get, nil},
		{"client resets while it waits", silent, get, func(nc net.Conn) { _ = nc.(*net.TCPConn).SetLinger(0) }},
		{"client resets in the middle of its body", silent, upload, func(nc net.Conn) { _ = nc.(*net.TCPConn).SetLinger(0) }},
		{"client closes half in the middle of its body", silent, upload, func(nc net.Conn) {
			_ = nc.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, nc)
		}},
		{"client stops reading", endless, get, func(nc net.Conn) { _, _ = nc.Read(make([]byte, 10)) }},
		{"client sends half a head", silent, func(*world) string { return "GET / HTTP/1.1\r\nHost: a\r\nX-" }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, d := range []door{doors[0], {"h2c behind", openWire}, doors[3]} {
				t.Run(d.name, func(t *testing.T) {
					settled(t)
					w := newWorld(t, canon.Options{})
					upstream := talking(t, c.upstream)
					if d.name == "h2c behind" {
						upstream.Scheme = "h2c" // it never says a word of HTTP/2, or one of nonsense
					}
					w.rules.Default = proxy.RouteOptions{Upstreams: upstreamsAt(t, nil, upstream), Stall: 300 * time.Millisecond, ResponseHeader: 300 * time.Millisecond}
					addr := d.open(t, w)
					var clients sync.WaitGroup
					for range 4 {
						clients.Go(func() {
							if strings.Contains(addr, "://") {
								leaveH2(t, addr, w, strings.HasPrefix(c.raw(w), "POST"))
								return
							}
							nc, err := net.Dial("tcp", addr)
							if err != nil {
								t.Error(err)
								return
							}
							_ = nc.SetDeadline(time.Now().Add(patience))
							_, _ = io.WriteString(nc, c.raw(w)) // the other side may have gone
							if c.client != nil {
								c.client(nc)
							}
							_ = nc.Close()
						})
					}
					clients.Wait()
					waitFor(t, func() bool { return w.guard.InFlight() == 0 })
				})
			}
		})
	}
}

// leaveH2 begins an exchange over HTTP/2, sees a little of it and drops the connection.
func leaveH2(t testing.TB, addr string, w *world, upload bool) {
	t.Helper()
	c := dialH2(t, addr)
	method := "GET"
	if upload {
		method = "POST"
	}
	c.headers(!upload, ":method", method, ":scheme", "http", ":authority", "a", ":path", "/echo/", "api-token", w.secrets["full"])
	if upload {
		c.data(false, "abc")
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	for {
		if _, err := c.framer.ReadFrame(); err != nil {
			break
		}
	}
	_ = c.nc.Close()
}

// settled checks, when the test ends, that no goroutine and no descriptor is left.
func settled(t *testing.T) {
	t.Helper()
	_ = refusing(t) // with the first socket the runtime opens what it waits with, and keeps it
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	t.Cleanup(func() {
		end := time.Now().Add(patience)
		for runtime.NumGoroutine() > goroutines || openFiles(t) > files {
			if time.Now().After(end) {
				buf := make([]byte, 1<<20)
				t.Fatalf("%d goroutines (before %d), %d files (before %d):\n%s", runtime.NumGoroutine(), goroutines, openFiles(t), files, buf[:runtime.Stack(buf, true)])
			}
			runtime.GC()                     // pipes for splice are kept until then
			time.Sleep(5 * time.Millisecond) //nolint:forbidigo // goroutines and descriptors go when the runtime lets them
		}
	})
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
