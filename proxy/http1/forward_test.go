package http1

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestForwardsPlainRequests(t *testing.T) {
	settled(t)
	up := scripted(t, echoing)
	addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), nil)})
	c := dial(t, addr)
	c.send("GET /a?b HTTP/1.1\r\nHost: h\r\n\r\n").want("GET", 200, "GET /a?b h 0 ")
	c.send("POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc").want("POST", 200, "POST /p h 3 abc")
	c.send("POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").want("POST", 200, "POST /p h 3 abc")
	c.send("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n").want("HEAD", 200, "")
	c.send("POST /q HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n").send("x").send("yz").want("POST", 200, "POST /q h 3 xyz")
	big := strings.Repeat("z", 300_000)
	c.send("POST /q HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\n\r\n"+big).want("POST", 200, ("POST /q h 300000 " + big)[:200])
	c.send("GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n")
	c.want("GET", 200, "GET /1 h 0 ")
	c.want("GET", 200, "GET /2 h 0 ")
	if n := up.connections(); n != 1 {
		t.Errorf("%d upstream connections, want 1", n)
	}
}

// rawRequest gives what the upstream received for one request, as bytes.
func rawRequest(t *testing.T, request string, edit func(*Exchange, *Edit)) (got string, cl *client) {
	t.Helper()
	received := make(chan string, 1)
	up := scripted(t, func(_ int, c *client) {
		var b strings.Builder
		for !strings.HasSuffix(b.String(), "\r\n\r\n") {
			ch, err := c.br.ReadByte()
			if err != nil {
				break
			}
			b.WriteByte(ch)
		}
		received <- b.String()
		c.reply("HTTP/1.1 204 No Content\r\n\r\n")
		_, _ = io.Copy(io.Discard, c.br)
	})
	addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), edit)})
	c := dial(t, addr).send(request)
	resp, body := c.answer("GET")
	if resp.StatusCode != 204 {
		t.Fatalf("answer %d %q", resp.StatusCode, body)
	}
	return <-received, c
}

func TestRequestHeadIsForwardedByteForByte(t *testing.T) {
	raw := "GET /A%2f?x=y HTTP/1.1\r\nhOst: h\r\nAccept:*/*\r\nX-Odd:   two  spaces \t\r\nX-Odd: again\r\nEmpty:\r\nB: \xff\r\n\r\n"
	if got, _ := rawRequest(t, raw, nil); got != raw {
		t.Errorf("upstream got\n%q, want\n%q", got, raw)
	}
}

// TestFramingIsNotLeftToBeReadInAnotherWay: readers differ in whether a coding
// behind a tab, or with white space after it, is one.
func TestFramingIsNotLeftToBeReadInAnotherWay(t *testing.T) {
	for framing, want := range map[string]string{
		"transfer-ENCODING:\tChunKED \t\r\n\r\n0\r\n\r\n": "Transfer-Encoding: chunked\r\n\r\n",
		"content-LENGTH:\t 0\t \r\n\r\n":                  "Content-Length: 0\r\n\r\n",
		"Content-Length:3\r\n\r\nabc":                     "Content-Length: 3\r\n\r\n",
	} {
		got, _ := rawRequest(t, "PUT / HTTP/1.1\r\nHost: h\r\nA: 1\r\n"+framing, nil)
		if want = "PUT / HTTP/1.1\r\nHost: h\r\nA: 1\r\n" + want; got != want {
			t.Errorf("%q: upstream got\n%q, want\n%q", framing, got, want)
		}
	}
}

func TestHopByHopFieldsStayBehind(t *testing.T) {
	raw := "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, X-Gone, te\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\n" +
		"Proxy-Authorization: x\r\nProxy: x\r\nTE: trailers, gzip\r\nUpgrade: websocket\r\nHTTP2-Settings: x\r\nX-Gone: 1\r\nX-Kept: 1\r\n\r\n"
	got, _ := rawRequest(t, raw, func(_ *Exchange, e *Edit) { e.Judged = func([]byte) bool { return false } })
	want := "GET / HTTP/1.1\r\nHost: h\r\nX-Kept: 1\r\nTE: trailers\r\nConnection: TE\r\n\r\n"
	if got != want {
		t.Errorf("upstream got\n%q, want\n%q", got, want)
	}
}

func TestEditedRequest(t *testing.T) {
	raw := "GET http://h/a HTTP/1.1\r\nHost: h\r\nDrop: 1\r\nKeep: 2\r\nDrop: 3\r\n\r\n"
	got, _ := rawRequest(t, raw, func(x *Exchange, e *Edit) {
		for i, f := range x.Request().Fields {
			if string(f.Name) == "Drop" {
				e.Drop = append(e.Drop, i)
			}
		}
		e.Host = []byte("up:1")
		e.Target = []byte("/b?c")
		e.Add(Field{Name: []byte("X-Id"), Value: []byte("7")})
		e.AddNamed(NamedField{Name: MustFieldName("X-Account"), Value: []byte("8")})
	})
	if want := "GET /b?c HTTP/1.1\r\nHost: up:1\r\nKeep: 2\r\nX-Id: 7\r\nX-Account: 8\r\n\r\n"; got != want {
		t.Errorf("upstream got\n%q, want\n%q", got, want)
	}
}

func TestAbsoluteFormBecomesOriginForm(t *testing.T) {
	for _, c := range []struct{ method, target, want string }{
		{"GET", "http://h", "/"}, {"GET", "http://h?x", "/?x"}, {"GET", "HTTPS://h/a", "/a"}, {"OPTIONS", "http://h", "*"}, {"OPTIONS", "*", "*"},
	} {
		got, _ := rawRequest(t, c.method+" "+c.target+" HTTP/1.1\r\nHost: h\r\n\r\n", nil)
		if want := c.method + " " + c.want + " HTTP/1.1\r\nHost: h\r\n\r\n"; got != want {
			t.Errorf("upstream got %q, want %q", got, want)
		}
	}
}

// TestConnectionOptionCannotRemoveField: naming a judged field is refused, and
// without Judged naming any field of the request is.
func TestConnectionOptionCannotRemoveField(t *testing.T) {
	up := scripted(t, echoing)
	pool := upstreamTo(t, up.addr())
	judged := func(name []byte) bool { return equalFold(name, "x-user") }
	for _, c := range []struct {
		options string
		judged  func([]byte) bool
		status  int
	}{
		{"x-USER", judged, 400},
		{"X-Other", judged, 200},
		{"X-Other", nil, 400},
		{"x-other, close", nil, 400},
		{"X-Other-Too", nil, 200},
		{"X-Absent", nil, 200},
		{"keep-alive", nil, 200},
	} {
		addr := start(t, &Server{Handler: forwarding(pool, func(_ *Exchange, e *Edit) { e.Judged = c.judged })})
		resp, _ := dial(t, addr).send("GET / HTTP/1.1\r\nHost: h\r\nConnection: " + c.options + "\r\nX-Other: 1\r\n\r\n").answer("GET")
		if resp.StatusCode != c.status {
			t.Errorf("Connection: %s: %d, want %d", c.options, resp.StatusCode, c.status)
		}
		if c.status == 400 && !resp.Close {
			t.Errorf("Connection: %s: refused, and the connection goes on", c.options)
		}
	}
}

func TestMalformedEditIsNeverSent(t *testing.T) {
	up := scripted(t, echoing)
	pool := upstreamTo(t, up.addr())
	for name, edit := range map[string]func(*Edit){
		"line break in value": func(e *Edit) { e.Add(Field{Name: []byte("A"), Value: []byte("b\r\nC: d")}) },
		"name no token":       func(e *Edit) { e.Add(Field{Name: []byte("A b"), Value: []byte("c")}) },
		"framing field":       func(e *Edit) { e.Add(Field{Name: []byte("Content-Length"), Value: []byte("3")}) },
		"second host":         func(e *Edit) { e.Add(Field{Name: []byte("Host"), Value: []byte("g")}) },
		"bad host":            func(e *Edit) { e.Host = []byte("a b") },
		"empty target":        func(e *Edit) { e.Target = []byte{} },
		"target with space":   func(e *Edit) { e.Target = []byte("/ HTTP/1.1\r\nA: b") },
		"target not ASCII":    func(e *Edit) { e.Target = []byte("/\xe4") },
		"absolute target":     func(e *Edit) { e.Target = []byte("http://h/") },
		"index out of range":  func(e *Edit) { e.Drop = append(e.Drop, 1) },
		"no name":             func(e *Edit) { e.AddNamed(NamedField{Value: []byte("c")}) },
		"break under a name":  func(e *Edit) { e.AddNamed(NamedField{MustFieldName("A"), []byte("b\r\nC: d")}) },
		"no answer's name":    func(e *Edit) { e.AddAnswerNamed(NamedField{Value: []byte("c")}) },
		"control in answer":   func(e *Edit) { e.AddAnswerNamed(NamedField{MustFieldName("A"), []byte("\x00")}) },
		"answer field":        func(e *Edit) { e.AddAnswer(Field{Name: []byte("A"), Value: []byte("\n")}) },
	} {
		addr := start(t, &Server{Handler: forwarding(pool, func(_ *Exchange, e *Edit) { edit(e) })})
		if resp, body := dial(t, addr).send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").answer("GET"); resp.StatusCode != 500 || body != "edit" {
			t.Errorf("%s: %d %q, want 500", name, resp.StatusCode, body)
		}
	}
	if up.connections() != 0 {
		t.Error("something was sent")
	}
}

func TestFieldNamesThatFrameOrAreNoneAreRefused(t *testing.T) {
	for _, name := range []string{"", "A b", "A:", "A\r\nB", "\x00", "ä", "Content-Length", "transfer-ENCODING", "Connection", "Keep-Alive", "TE", "Upgrade", "Host", "Expect", "Proxy-Authorization", "Proxy"} {
		if n, err := NewFieldName(name); err == nil || n != (FieldName{}) || n.String() != "" {
			t.Errorf("%q is a name to add: %q, %v", name, n, err)
		}
	}
	for _, name := range []string{"X-Id", "a", "Date", "Proxy-Status", "!#$%&'*+-.^_`|~"} {
		if n, err := NewFieldName(name); err != nil || n.String() != name {
			t.Errorf("%q is no name to add: %q, %v", name, n, err)
		}
	}
}

// answers runs one request against an upstream that answers with raw and closes.
func answers(t *testing.T, raw string) (addr string) {
	t.Helper()
	up := scripted(t, func(_ int, c *client) {
		for c.request() != nil {
			c.reply(raw)
			if !strings.Contains(raw, "keep") {
				return
			}
		}
	})
	return start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), nil)})
}

func TestMalformedAnswerIs502(t *testing.T) {
	for name, raw := range map[string]string{
		"nothing":            "",
		"garbage":            "garbage\r\n\r\n",
		"bare LF":            "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
		"cut head":           "HTTP/1.1 200 OK\r\nContent-Le",
		"obs-fold":           "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
		"space before colon": "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
		"control byte":       "HTTP/1.1 200 OK\r\nA: \x00\r\nContent-Length: 0\r\n\r\n",
		"two lengths":        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
		"length and coding":  "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"coding in 1.0":      "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"unknown coding":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"status of 2 digits": "HTTP/1.1 20 OK\r\n\r\n",
		"status 600":         "HTTP/1.1 600 OK\r\n\r\n",
		"status 099":         "HTTP/1.1 099 OK\r\n\r\n",
		"status of 4 digits": "HTTP/1.1 2000 OK\r\n\r\n",
		"letter first":       "HTTP/1.1 x00 OK\r\n\r\n",
		"letter in status":   "HTTP/1.1 2x0 OK\r\n\r\n",
		"letter last":        "HTTP/1.1 20x OK\r\n\r\n",
		"version 1.2":        "HTTP/1.2 200 OK\r\n\r\n",
		"tab for space":      "HTTP/1.1\t200 OK\r\n\r\n",
		"version 2":          "HTTP/2.0 200 OK\r\n\r\n",
		"control in reason":  "HTTP/1.1 200 O\x01K\r\n\r\n",
		"204 with length":    "HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\nabc",
		"204 with coding":    "HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"unasked switch":     "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
		"bare switch":        "HTTP/1.1 101 Switching\r\n\r\n",
		"endless interims":   strings.Repeat("HTTP/1.1 103 Early\r\n\r\n", 40),
		"bad first chunk":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
		"large head":         "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 70_000) + "\r\n\r\n",
		"many fields":        "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 300) + "\r\n",
		"names its length":   "HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, answers(t, raw)).send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
			for {
				resp, body := c.answer("GET")
				if resp.StatusCode == 103 {
					continue
				}
				if resp.StatusCode != 502 || body != "head" {
					t.Errorf("answer %d %q, want 502", resp.StatusCode, body)
				}
				return
			}
		})
	}
}

// TestBrokenAnswerIsNotSealedByTLS: without a length the end of the connection is
// the end of the answer, and an end that TLS vouches for is that of a whole one.
func TestBrokenAnswerIsNotSealedByTLS(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	clientTLS = clientTLS.Clone()
	clientTLS.NextProtos = nil
	broken := scripted(t, func(_ int, c *client) {
		c.request()
		c.reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
	})
	for name, handler := range map[string]func(*Exchange){
		"forwarded": forwarding(upstreamTo(t, broken.addr()), nil),
		"handler": Adapter(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "abc")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})),
	} {
		t.Run(name, func(t *testing.T) {
			inner, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s := &Server{Handler: handler}
			served := make(chan struct{})
			go func() { _ = s.Serve(tls.NewListener(Direct(inner), serverTLS)); close(served) }()
			t.Cleanup(func() { _ = s.Close(); <-served })
			nc, err := tls.Dial("tcp", inner.Addr().String(), clientTLS)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			_ = nc.SetDeadline(time.Now().Add(patience))
			_, _ = io.WriteString(nc, "GET / HTTP/1.0\r\nHost: h\r\n\r\n")
			if got, err := io.ReadAll(nc); err == nil {
				t.Errorf("the client read a whole answer: %q", got)
			}
		})
	}
}

// TestBrokenAnswerNeverLooksWhole: what breaks off after its head must not end
// as a complete answer.
func TestBrokenAnswerNeverLooksWhole(t *testing.T) {
	for name, raw := range map[string]string{
		"cut length":     "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
		"cut long":       "HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + strings.Repeat("a", 300_000),
		"cut chunk":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
		"cut after data": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
		"cut trailer":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y",
	} {
		for _, version := range []string{"1.1", "1.0"} {
			t.Run(name+" to HTTP/"+version, func(t *testing.T) {
				c := dial(t, answers(t, raw)).send("GET / HTTP/" + version + "\r\nHost: h\r\n\r\n")
				resp, err := http.ReadResponse(c.br, nil)
				if err != nil {
					return // a reset may overtake the head
				}
				if body, err := io.ReadAll(resp.Body); err == nil {
					t.Errorf("client read %d bytes as a whole body", len(body))
				}
			})
		}
	}
}

func TestAnswerFraming(t *testing.T) {
	big := strings.Repeat("0123456789", 50_000)
	for _, c := range []struct{ name, raw, body string }{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "abc"},
		{"no reason", "HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc", "abc"},
		{"empty", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "abc"},
		{"trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n", "abc"},
		{"until close", "HTTP/1.1 200 OK\r\n\r\nabc", "abc"},
		{"until close 1.0", "HTTP/1.0 200 OK\r\n\r\nabc", "abc"},
		{"long", "HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n" + big, big},
		{"long until close", "HTTP/1.1 200 OK\r\n\r\n" + big, big},
		{"long chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7a120\r\n" + big + "\r\n0\r\n\r\n", big},
		{"many fields", "HTTP/1.1 200 OK\r\n" + strings.Repeat("A-Field: "+strings.Repeat("v", 300)+"\r\n", 100) + "Content-Length: 3\r\n\r\nabc", "abc"},
	} {
		for _, version := range []string{"1.1", "1.0", "1.0 that keeps"} {
			t.Run(c.name+" to HTTP/"+version, func(t *testing.T) {
				version, keeps := strings.CutSuffix(version, " that keeps")
				fields := "Host: h\r\n"
				if keeps {
					fields += "Connection: keep-alive\r\n"
				}
				cl := dial(t, answers(t, c.raw)).send("GET / HTTP/" + version + "\r\n" + fields + "\r\n")
				resp, body := cl.answer("GET")
				if body != c.body {
					t.Errorf("body of %d bytes, want %d", len(body), len(c.body))
				}
				if resp.Header.Get("Date") == "" {
					t.Error("no Date")
				}
				if version == "1.0" {
					if len(resp.TransferEncoding) > 0 {
						t.Error("chunked to HTTP/1.0")
					}
					if keeps && resp.ContentLength >= 0 {
						return // the connection goes on
					}
					cl.wantEnd()
					return
				}
				if resp.Close {
					t.Error("closed without need")
				}
				cl.send("HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
			})
		}
	}
}

func TestBodylessAnswers(t *testing.T) {
	for _, c := range []struct{ name, method, raw, length string }{
		{"204", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nX: keep\r\n\r\n", ""},
		{"304", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nX: keep\r\n\r\n", "7"},
		{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nX: keep\r\n\r\n", "7"},
		{"HEAD chunked", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: keep\r\n\r\n", ""},
		{"HEAD without length", "HEAD", "HTTP/1.1 200 OK\r\nX: keep\r\n\r\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := dial(t, answers(t, c.raw))
			for range 2 {
				resp, _ := cl.send(c.method + " / HTTP/1.1\r\nHost: h\r\n\r\n").answer(c.method)
				if got := resp.Header.Get("Content-Length"); got != c.length {
					t.Errorf("Content-Length %q, want %q", got, c.length)
				}
			}
		})
	}
}

func TestAnswerLosesHopByHopFields(t *testing.T) {
	addr := answers(t, "HTTP/1.1 200 Fine\r\nConnection: X-Gone, keep-alive\r\nX-Gone: 1\r\nKeep-Alive: 9\r\nProxy-Authenticate: x\r\nProxy-Status: p\r\nUpgrade: h2c\r\nUpgrade: x\r\nTE: x\r\nX-Kept: 1\r\nDate: then\r\nContent-Length: 0\r\n\r\n")
	resp, _ := dial(t, addr).send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").answer("GET")
	var names []string
	for name := range resp.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "Content-Length Date Proxy-Status X-Kept" || resp.Header.Get("Date") != "then" || resp.Status != "200 Fine" {
		t.Errorf("status %s, fields %s, Date %s", resp.Status, got, resp.Header.Get("Date"))
	}
}

func TestAnswerIsEdited(t *testing.T) {
	up := scripted(t, func(_ int, c *client) {
		c.request()
		c.reply("HTTP/1.1 200 OK\r\nServer: s\r\nA: 1\r\nContent-Length: 3\r\n\r\nabc")
	})
	addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), func(_ *Exchange, e *Edit) {
		e.AddAnswer(Field{Name: []byte("X-Request-Id"), Value: []byte("7")})
		e.Answer = func(r *Response, e *Edit) {
			for i, f := range r.Fields {
				if string(f.Name) == "Server" {
					e.DropAnswer(i)
				}
			}
			e.AddAnswer(Field{Name: []byte("X-Status"), Value: fmt.Append(nil, r.Status)})
		}
	})})
	resp := dial(t, addr).send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").want("GET", 200, "abc")
	if h := resp.Header; h.Get("Server") != "" || h.Get("A") != "1" || h.Get("X-Request-Id") != "7" || h.Get("X-Status") != "200" {
		t.Errorf("fields %v", h)
	}
}

func TestTrailersAreFiltered(t *testing.T) {
	trailers := "X-Ok: 1\r\nX-No: 2\r\n"
	for name := range strings.FieldsSeq(`
		Accept Age Alt-Used Authorization Cache-Control Connection Content-Encoding Content-Length Content-Range
		Content-Type Cookie Date Expect Expires Forwarded Host HTTP2-Settings If-Match If-Modified-Since If-None-Match
		If-Range If-Unmodified-Since Keep-Alive Location Max-Forwards Pragma Proxy Proxy-Authorization Range Retry-After
		Set-Cookie TE Trailer Transfer-Encoding Upgrade Vary Via Warning WWW-Authenticate X-Forwarded-For`) {
		trailers += name + ": 1\r\n"
	}
	trailers += "\r\n"
	got := make(chan http.Header, 1)
	up := scripted(t, func(_ int, c *client) {
		r, err := http.ReadRequest(c.br)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		got <- r.Trailer
		c.reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n" + trailers)
	})
	addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), func(_ *Exchange, e *Edit) {
		e.KeepTrailer = func(name []byte) bool { return string(name) != "X-No" }
	})})
	resp := dial(t, addr).send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"+trailers).want("POST", 200, "abc")
	for side, h := range map[string]http.Header{"request": <-got, "answer": resp.Trailer} {
		if len(h) != 1 || h.Get("X-Ok") != "1" {
			t.Errorf("%s's trailers: %v", side, h)
		}
	}
}

// Trailers may be as long as heads, whichever way they go and however long the head was.
func TestTrailersHaveTheBoundOfHeads(t *testing.T) {
	const bound = 32 << 10
	trailer := func(n int) string { return "X-Long: " + strings.Repeat("x", n-len("X-Long: \r\n\r\n")) + "\r\n\r\n" }
	for _, c := range []struct {
		name   string
		n      int
		head   int
		status int
	}{
		{"beyond the first block", 20 << 10, 0, 200},
		{"at the bound", bound, 0, 200},
		{"after a long head", bound, 20 << 10, 200},
		{"beyond the bound", bound + 1, 0, 431},
		{"beyond the bound after a long head", bound + 1, 20 << 10, 431},
	} {
		t.Run(c.name, func(t *testing.T) {
			head := "POST / HTTP/1.1\r\nHost: h\r\nX-Head: " + strings.Repeat("x", c.head) + "\r\nTransfer-Encoding: chunked\r\n\r\n"
			send := func(addr string) *client {
				return dial(t, addr).send(head).send("3\r\nabc\r\n0\r\n" + trailer(c.n))
			}

			got := make(chan int, 1)
			up := scripted(t, func(_ int, c *client) {
				r, err := http.ReadRequest(bufio.NewReaderSize(c.nc, 2*bound)) // net/http takes no longer trailer than its buffer
				if err != nil {
					return
				}
				if _, err := io.Copy(io.Discard, r.Body); err != nil {
					return
				}
				got <- len(r.Trailer.Get("X-Long"))
				c.reply("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
			})
			addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), nil)})
			resp, err := http.ReadResponse(send(addr).br, nil)
			if err != nil || resp.StatusCode != c.status {
				t.Fatalf("forwarded: %+v, %v", resp, err)
			}
			if c.status == 200 && <-got != c.n-len("X-Long: \r\n\r\n") {
				t.Error("the upstream got another trailer")
			}

			had := make(chan int, 1)
			read := start(t, &Server{Handler: Adapter(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := io.Copy(io.Discard, r.Body); err != nil {
					w.WriteHeader(431)
				}
				had <- len(r.Trailer.Get("X-Long"))
			}))})
			resp, err = http.ReadResponse(send(read).br, nil)
			if err != nil || resp.StatusCode != c.status {
				t.Fatalf("read: %+v, %v", resp, err)
			}
			if n := <-had; c.status == 200 && n != c.n-len("X-Long: \r\n\r\n") {
				t.Errorf("the handler got a trailer of %d bytes", n)
			}
		})
	}
	for n, whole := range map[int]bool{20 << 10: true, 2 * bound: true, 2*bound + 1: false} { // an upstream's may be twice as long
		up := scripted(t, func(_ int, c *client) {
			if _, err := http.ReadRequest(c.br); err == nil {
				c.reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n" + trailer(n))
			}
		})
		addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), nil)})
		q := dial(t, addr).send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReaderSize(q.nc, 4*bound), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if got := resp.Trailer.Get("X-Long"); (err == nil) != whole || whole && len(got) != n-len("X-Long: \r\n\r\n") {
			t.Errorf("answer with %d bytes: %d, %v", n, len(got), err)
		}
	}
}

func TestExpectIsRelayed(t *testing.T) {
	settled(t)
	up := scripted(t, func(_ int, c *client) {
		r, err := http.ReadRequest(c.br)
		if err != nil || r.Header.Get("Expect") != "100-continue" {
			return
		}
		if r.URL.Path == "/no" {
			c.reply("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
			return
		}
		c.reply("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
		body, _ := io.ReadAll(r.Body)
		// It ends here: the next POST must not come upon it, since it could not be repeated.
		c.reply(fmt.Sprintf("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	})
	addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), nil)})
	c := dial(t, addr).send("POST /yes HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
	c.want("POST", 100, "")
	if resp := c.want("POST", 103, ""); resp.Header.Get("Link") != "x" {
		t.Error("103 without its fields")
	}
	c.send("abc").want("POST", 200, "abc")
	c = dial(t, addr).send("POST /no HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
	if resp := c.want("POST", 403, "no"); !resp.Close {
		t.Error("kept open although the body may still come")
	}
	c.wantEnd()
}

// TestClientThatLeavesIsNotWaitedForAfterTheTimeout: both have happened before the
// sweeper looks for the first time.
func TestClientThatLeavesIsNotWaitedForAfterTheTimeout(t *testing.T) {
	settled(t)
	up := scripted(t, func(_ int, c *client) { _, _ = io.Copy(io.Discard, c.br) })
	ended := make(chan struct{})
	serve := forwarding(upstreamTo(t, up.addr()), func(_ *Exchange, e *Edit) { e.HeaderTimeout = time.Millisecond })
	addr := start(t, &Server{Handler: func(x *Exchange) {
		defer close(ended)
		serve(x)
	}})
	_ = dial(t, addr).send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").nc.Close()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the exchange goes on without end")
	}
}

// TestInterimAnswersAreEdited: what the caller drops, it drops from those too.
// TestInterimAnswersOnlyWhereTheyAreUnderstood: HTTP/1.0 knows none, and 100 is for
// those who wait for it.
func TestInterimAnswersOnlyWhereTheyAreUnderstood(t *testing.T) {
	for _, c := range []struct{ version, interim string }{{"1.0", "103 Early Hints"}, {"1.0", "100 Continue"}, {"1.1", "100 Continue"}} {
		addr := answers(t, "HTTP/1.1 "+c.interim+"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
		dial(t, addr).send("GET / HTTP/"+c.version+"\r\nHost: h\r\n\r\n").want("GET", 200, "abc")
	}
}

// TestExpectOfNothingIsNotForwarded: without a body, or in HTTP/1.0, nobody waits.
func TestExpectOfNothingIsNotForwarded(t *testing.T) {
	for _, head := range []string{"1.1\r\nHost: h\r\n", "1.1\r\nHost: h\r\nContent-Length: 0\r\n", "1.0\r\nHost: h\r\nContent-Length: 3\r\n"} {
		got, _ := rawRequest(t, "POST / HTTP/"+head+"Expect: 100-continue\r\n\r\nabc"[:len("Expect: 100-continue\r\n\r\n")+3*strings.Count(head, ": 3")], nil)
		if want := "POST / HTTP/1.1" + head[3:] + "\r\n"; got != want {
			t.Errorf("upstream got %q, want %q", got, want)
		}
	}
}

// TestNothingOfAnEarlierRequestIsLeft: exchanges are used again.
func TestNothingOfAnEarlierRequestIsLeft(t *testing.T) {
	heads := make(chan string, 2)
	up := scripted(t, func(_ int, c *client) {
		for {
			r, err := http.ReadRequest(c.br)
			if err != nil {
				return
			}
			heads <- fmt.Sprint(r.Header)
			c.reply("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	c := dial(t, start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), func(_ *Exchange, e *Edit) { e.Upgrade = true })}))
	for i, fields := range []string{"TE: trailers\r\nConnection: TE\r\n", "", "Upgrade: websocket\r\nConnection: upgrade\r\n", ""} {
		c.send("GET / HTTP/1.1\r\nHost: h\r\n"+fields+"\r\n").want("GET", 200, "")
		if head := <-heads; (head == "map[]") != (i%2 == 1) {
			t.Errorf("%q is forwarded as %s", fields, head)
		}
	}
}

func TestInterimAnswersAreEdited(t *testing.T) {
	settled(t)
	up := scripted(t, func(_ int, c *client) {
		if _, err := http.ReadRequest(c.br); err == nil {
			c.reply("HTTP/1.1 103 Early Hints\r\nX-Drop: 1\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nX-Keep: 2\r\nX-Drop: 2\r\nContent-Length: 0\r\n\r\n")
		}
	})
	drop := func(_ *Exchange, e *Edit) {
		e.Answer = func(r *Response, e *Edit) {
			e.AddAnswer(Field{Name: []byte("X-Seen"), Value: fmt.Append(nil, r.Status)})
			for i, f := range r.Fields {
				if string(f.Name) == "X-Drop" {
					e.DropAnswer(i)
				}
			}
		}
	}
	c := dial(t, start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), drop)})).send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	if h := c.want("GET", 103, "").Header; h.Get("Link") != "x" || h.Get("X-Drop") != "" || h.Get("X-Seen") != "" {
		t.Error(h)
	}
	if h := c.want("GET", 200, "").Header; h.Get("X-Keep") != "2" || h.Get("X-Drop") != "" || h.Get("X-Seen") != "200" {
		t.Error(h)
	}
}

// TestEarlyAnswerEndsTheUpload: the upstream answers after the head and reads
// no more; the client gets that answer although it goes on sending.
func TestEarlyAnswerEndsTheUpload(t *testing.T) {
	settled(t)
	answered := make(chan struct{}, 1)
	up := scripted(t, func(_ int, c *client) {
		if _, err := http.ReadRequest(c.br); err != nil {
			return
		}
		c.reply("HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
		select { // what closes the connection takes the answer with it
		case <-answered:
		case <-time.After(patience):
		}
	})
	pool := upstreamTo(t, up.addr())
	addr := start(t, &Server{Handler: forwarding(pool, nil)})
	for _, head := range []string{"Content-Length: 100000000", "Transfer-Encoding: chunked"} {
		c := dial(t, addr).send("POST / HTTP/1.1\r\nHost: h\r\n" + head + "\r\n\r\n")
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			piece := "10000\r\n" + strings.Repeat("x", 1<<16) + "\r\n"
			for range 1000 {
				if _, err := io.WriteString(c.nc, piece); err != nil {
					return
				}
			}
		}()
		if resp := c.want("POST", 413, "large"); !resp.Close {
			t.Error("early answer without Connection: close")
		}
		answered <- struct{}{}
		_ = c.nc.Close()
		<-sent
		if pool.Idle() != 0 {
			t.Error("the upstream's connection was kept")
		}
	}
}

func TestDuplexBodies(t *testing.T) {
	up := scripted(t, func(_ int, c *client) {
		r, err := http.ReadRequest(c.br)
		if err != nil {
			return
		}
		c.reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		buf := make([]byte, 10)
		for {
			n, err := r.Body.Read(buf)
			if n > 0 {
				c.reply(fmt.Sprintf("%x\r\n%s\r\n", n, buf[:n]))
			}
			if err != nil {
				break
			}
		}
		c.reply("0\r\n\r\n")
	})
	addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), nil)})
	c := dial(t, addr).send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		word := fmt.Sprintf("word%02d", i)
		c.send("6\r\n" + word + "\r\n")
		got := make([]byte, 6)
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != word {
			t.Fatalf("echo %q, %v", got, err)
		}
	}
	c.send("0\r\n\r\n")
	if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
		t.Errorf("rest %q, %v", rest, err)
	}
}

func TestLargeBodiesBothWays(t *testing.T) {
	const size = 20 << 20
	up := scripted(t, func(_ int, c *client) {
		for {
			r, err := http.ReadRequest(c.br)
			if err != nil {
				return
			}
			n, _ := io.Copy(io.Discard, r.Body)
			c.reply(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", n))
			_, _ = io.CopyN(c.nc, zeros{}, n)
		}
	})
	addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), nil)})
	c := dial(t, addr)
	for range 2 {
		c.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", size))
		if _, err := io.CopyN(c.nc, zeros{}, size); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(c.br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
			t.Fatalf("%d bytes back, %v", n, err)
		}
	}
	if up.connections() != 1 {
		t.Errorf("%d upstream connections, want 1", up.connections())
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestDeadIdleConnectionIsReplaced: the upstream closes after each answer
// without saying so.
// TestLargeBodiesWithTLSOnOneSide: what the kernel moves from socket to socket it would
// move past TLS.
func TestLargeBodiesWithTLSOnOneSide(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	body := strings.Repeat("0123456789", 100_000)
	echo := func(_ int, c *client) {
		for {
			r := c.request()
			if r == nil {
				return
			}
			c.reply("HTTP/1.1 200 OK\r\nContent-Length: " + itoa(len(body)) + "\r\n\r\n")
			_, _ = io.Copy(c.nc, r.Body)
		}
	}
	for _, secret := range []string{"client", "upstream"} {
		t.Run(secret, func(t *testing.T) {
			up := scripted(t, func(n int, c *client) {
				if secret == "upstream" {
					c.nc = tls.Server(c.nc, serverTLS)
					c.br.Reset(c.nc)
				}
				echo(n, c)
			})
			pool := upstreamTo(t, up.addr())
			if plain := pool.Dial; secret == "upstream" {
				pool.Dial = func(ctx context.Context) (net.Conn, error) {
					nc, err := plain(ctx)
					if err != nil {
						return nil, err
					}
					return tls.Client(DirectConn(nc), clientTLS), nil
				}
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s := &Server{Handler: forwarding(pool, nil)}
			addr := l.Addr().String()
			if secret == "client" {
				l = tls.NewListener(Direct(l), serverTLS)
			}
			served := make(chan struct{})
			go func() { _ = s.Serve(l); close(served) }()
			t.Cleanup(func() { _ = s.Close(); <-served })
			c := dial(t, addr)
			if secret == "client" {
				c.nc = tls.Client(c.nc, clientTLS)
				c.br.Reset(c.nc)
			}
			for range 2 {
				c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: "+itoa(len(body))+"\r\n\r\n"+body).want("POST", 200, body)
			}
		})
	}
}

func TestDeadIdleConnectionIsReplaced(t *testing.T) {
	up := scripted(t, func(_ int, c *client) {
		c.request()
		c.reply("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), nil)})
	c := dial(t, addr)
	for range 20 {
		c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").want("GET", 200, "ok")
	}
}

// TestOnlySafeRequestsAreRepeated: the connection dies after the second
// request has arrived.
func TestOnlySafeRequestsAreRepeated(t *testing.T) {
	for method, status := range map[string]int{"GET": 200, "OPTIONS": 200, "PUT": 502, "DELETE": 502, "POST": 502, "PATCH": 502} {
		up := scripted(t, func(n int, c *client) {
			c.request()
			c.reply("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			if c.request(); n > 1 {
				c.reply("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		})
		addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), nil)})
		c := dial(t, addr)
		for _, want := range []int{200, status} {
			resp, _ := c.send(method + " / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx").answer(method)
			if resp.StatusCode != want {
				t.Errorf("%s: %d, want %d", method, resp.StatusCode, want)
			}
		}
	}
}

// TestUnsolicitedBytesAreNeverAnAnswer: what an upstream sends beyond its answer
// must not become the answer to the next request.
func TestUnsolicitedBytesAreNeverAnAnswer(t *testing.T) {
	forged := "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
	for _, late := range []bool{false, true} {
		answered := make(chan struct{})
		up := scripted(t, func(_ int, c *client) {
			for c.request() != nil {
				if late {
					c.reply("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
					<-answered // so that it arrives by itself
					c.reply(forged)
				} else {
					c.reply("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + forged)
				}
			}
		})
		pool := upstreamTo(t, up.addr())
		addr := start(t, &Server{Handler: forwarding(pool, nil)})
		c := dial(t, addr)
		for range 3 {
			c.send(get).want("GET", 200, "ok")
			if late {
				waitFor(t, "the connection to be idle", func() bool { return pool.Idle() == 1 })
				answered <- struct{}{}
			}
			waitFor(t, "the forged answer to arrive", func() bool {
				pool.mu.Lock()
				defer pool.mu.Unlock()
				if !late {
					return pool.open == 0
				}
				return len(pool.idle) == 1 && !pool.idle[0].silent()
			})
			if late && pool.Open() != 1 {
				t.Errorf("%d connections are counted, want 1", pool.Open())
			}
		}
	}
}

func TestUpgradeIsATwoWayCopy(t *testing.T) {
	settled(t)
	up := scripted(t, func(_ int, c *client) {
		r, err := http.ReadRequest(c.br)
		if err != nil || r.Header.Get("Upgrade") != "WebSocket" || r.Header.Get("Connection") != "upgrade" {
			c.reply("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
			return
		}
		c.reply("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello ")
		got, _ := io.ReadAll(c.br) // until the client's half-close
		c.reply("you said " + string(got))
	})
	results := make(chan Result, 1)
	pool := upstreamTo(t, up.addr())
	addr := start(t, &Server{Handler: func(x *Exchange) {
		e := x.Edit()
		e.Upgrade = string(x.Request().Target) == "/ws"
		res, err := x.Forward(pool, e)
		if err != nil {
			t.Errorf("Forward: %v", err)
		}
		results <- res
	}})
	head := " HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
	c := dial(t, addr).send("GET /ws" + head + "early ")
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("%v, %v", resp, err)
	}
	c.send("late")
	_ = c.nc.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c.br); err != nil || string(got) != "hello you said early late" {
		t.Errorf("got %q, %v", got, err)
	}
	if res := <-results; !res.Upgraded || res.RequestBytes != 10 || res.ResponseBytes != 25 {
		t.Errorf("result %+v", res)
	}
	dial(t, addr).send("GET /other"+head).want("GET", 200, "no")
	<-results
}

func TestUpgradesThatNeverPass(t *testing.T) {
	for name, head := range map[string]string{
		"h2c":         "HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n",
		"in HTTP/1.0": "HTTP/1.0\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
		"not listed":  "HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n",
		"a list":      "HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
		"two":         "HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n",
	} {
		got, _ := rawRequest(t, "GET / "+head+"\r\n", func(_ *Exchange, e *Edit) { e.Upgrade = true })
		if want := "GET / HTTP/1.1\r\nHost: h\r\n\r\n"; got != want {
			t.Errorf("%s: upstream got %q, want %q", name, got, want)
		}
	}
	const body = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n"
	got, _ := rawRequest(t, body+"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\nabc", func(_ *Exchange, e *Edit) { e.Upgrade = true })
	if got != body+"\r\n" {
		t.Errorf("with a body: upstream got %q", got)
	}
}

// TestSwitchToAnotherProtocolIs502: what follows such an answer is nobody's.
func TestSwitchToAnotherProtocolIs502(t *testing.T) {
	for _, fields := range []string{"", "Upgrade: h2c\r\n", "Upgrade: websocket\r\nUpgrade: websocket\r\n", "Upgrade: websocket\r\nUpgrade: h2c\r\n"} {
		up := scripted(t, func(_ int, c *client) {
			c.request()
			c.reply("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n" + fields + "\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		})
		addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), func(_ *Exchange, e *Edit) { e.Upgrade = true })})
		dial(t, addr).send("GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").want("GET", 502, "head")
	}
}

func TestCutEndsALiveStream(t *testing.T) {
	settled(t)
	up := scripted(t, func(_ int, c *client) {
		r, err := http.ReadRequest(c.br)
		if err != nil {
			return
		}
		if r.Header.Get("Upgrade") != "" {
			c.reply("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nfirst")
		} else {
			c.reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
		}
		_, _ = io.Copy(io.Discard, c.br) // until it is cut
	})
	pool := upstreamTo(t, up.addr())
	cutters := make(chan Cutter, 1)
	stages := make(chan Stage, 1)
	addr := start(t, &Server{Handler: func(x *Exchange) {
		cutters <- x.Cutter()
		e := x.Edit()
		e.Upgrade = true
		res, _ := x.Forward(pool, e)
		stages <- res.Stage
	}})
	for _, fields := range []string{"", "Connection: upgrade\r\nUpgrade: x\r\n"} {
		c := dial(t, addr).send("GET / HTTP/1.1\r\nHost: h\r\n" + fields + "\r\n")
		resp, err := http.ReadResponse(c.br, nil)
		if err != nil {
			t.Fatal(err)
		}
		var body io.Reader = resp.Body
		if resp.StatusCode == 101 {
			body = c.br
		}
		if _, err := io.ReadFull(body, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		k := <-cutters
		if !k.Cut() {
			t.Error("Cut found no exchange")
		}
		_, _ = io.ReadAll(body)
		if stage := <-stages; stage != StageCut {
			t.Errorf("stage %v, want cut", stage)
		}
		waitFor(t, "the exchange to end", func() bool { return !k.Cut() })
	}
}

// TestCutStreamDoesNotLookWhole: an HTTP/1.0 client knows the end of an answer only by
// that of the connection.
func TestCutStreamDoesNotLookWhole(t *testing.T) {
	settled(t)
	up := scripted(t, func(_ int, c *client) {
		if _, err := http.ReadRequest(c.br); err != nil {
			return
		}
		c.reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
		_, _ = io.Copy(io.Discard, c.br) // until it is cut
	})
	pool := upstreamTo(t, up.addr())
	cutters := make(chan Cutter, 1)
	addr := start(t, &Server{Handler: func(x *Exchange) {
		cutters <- x.Cutter()
		_, _ = x.Forward(pool, x.Edit())
	}})
	c := dial(t, addr).send("GET / HTTP/1.0\r\nHost: h\r\n\r\n")
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if k := <-cutters; !k.Cut() {
		t.Error("Cut found no exchange")
	}
	if rest, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the answer looks whole, with %q more", rest)
	}
}

// TestCutterOfAnEarlierExchangeDoesNothing: a handle must not reach the next
// request on the same connection.
func TestCutterOfAnEarlierExchangeDoesNothing(t *testing.T) {
	var cutters []Cutter
	addr := start(t, &Server{Handler: func(x *Exchange) {
		for _, k := range cutters {
			if k.Cut() {
				t.Error("cut by an old handle")
			}
		}
		cutters = append(cutters, x.Cutter())
		_ = x.Respond(200, nil, []byte("ok"))
	}})
	c := dial(t, addr)
	for range 5 {
		c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").want("GET", 200, "ok")
	}
	if (Cutter{}).Cut() {
		t.Error("the zero Cutter cuts")
	}
}

// TestClientThatLeavesEndsTheUpstreamExchange: nothing is written, so only the
// sweeper can notice.
// TestCutLeavesTheConnectionOfAnEarlierExchange, which may be another client's by now.
func TestCutLeavesTheConnectionOfAnEarlierExchange(t *testing.T) {
	up := scripted(t, echoing)
	pool := upstreamTo(t, up.addr())
	forward := forwarding(pool, nil)
	addr := start(t, &Server{Handler: func(x *Exchange) {
		if string(x.Request().Target) == "/cut" {
			x.Cutter().Cut()
			return
		}
		forward(x)
	}})
	c := dial(t, addr)
	c.send(get).want("GET", 200, "GET / h 0 ")
	c.send("GET /cut HTTP/1.1\r\nHost: h\r\n\r\n").wantReset()
	dial(t, addr).send("GET /other HTTP/1.1\r\nHost: h\r\n\r\n").want("GET", 200, "GET /other h 0 ")
	if n := up.connections(); n != 1 {
		t.Errorf("%d connections to the upstream, want 1", n)
	}
}

func TestClientThatLeavesEndsTheUpstreamExchange(t *testing.T) {
	settled(t)
	arrived, left := make(chan struct{}), make(chan struct{})
	up := scripted(t, func(_ int, c *client) {
		if c.request() == nil {
			return
		}
		close(arrived)
		_, _ = io.Copy(io.Discard, c.br)
		close(left)
	})
	pool := upstreamTo(t, up.addr())
	stages := make(chan Stage, 1)
	var refused atomic.Int32
	s := &Server{Handler: func(x *Exchange) {
		res, _ := x.Forward(pool, nil)
		stages <- res.Stage
	}, Refused: func(Refusal) Answer {
		refused.Add(1)
		return Answer{}
	}}
	c := dial(t, start(t, s)).send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	<-arrived
	_ = c.nc.Close()
	<-left
	if stage := <-stages; stage != StageClient {
		t.Errorf("stage %v, want client", stage)
	}
	waitFor(t, "the connection to end", func() bool { return s.Connections() == 0 })
	if n := refused.Load(); n != 0 {
		t.Errorf("the client that left was counted as refused %d times", n)
	}
}

func TestUpstreamTimeouts(t *testing.T) {
	settled(t)
	up := scripted(t, func(_ int, c *client) {
		r := c.request()
		if r != nil && r.URL.Path == "/body" {
			c.reply("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
		}
		_, _ = io.Copy(io.Discard, c.br)
	})
	pool := upstreamTo(t, up.addr())
	type outcome struct {
		res Result
		err error
	}
	outcomes := make(chan outcome, 1)
	addr := start(t, &Server{
		Timeouts: Timeouts{Stall: 40 * time.Millisecond},
		Handler: func(x *Exchange) {
			e := x.Edit()
			e.HeaderTimeout = patience
			if string(x.Request().Target) == "/head" {
				e.HeaderTimeout = 40 * time.Millisecond
			}
			res, err := x.Forward(pool, e)
			if status := answerStatus(res, err); status != 0 {
				_ = x.Respond(status, nil, nil)
			}
			outcomes <- outcome{res, err}
		},
	})
	c := dial(t, addr)
	c.send("GET /head HTTP/1.1\r\nHost: h\r\n\r\n").want("GET", 504, "")
	if o := <-outcomes; o.res.Stage != StageHead || !o.res.Timeout || !o.res.Sent {
		t.Errorf("%+v", o)
	}
	c.send("GET /body HTTP/1.1\r\nHost: h\r\n\r\n")
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("a stalled answer looks whole")
	}
	if o := <-outcomes; o.res.Stage != StageBody || !o.res.Timeout || !o.res.HeadSent {
		t.Errorf("%+v", o)
	}
	c = dial(t, addr).send("POST /upload HTTP/1.1\r\nHost: h\r\nContent-Length: 90000\r\n\r\nabc")
	c.want("POST", 408, "")
	if o := <-outcomes; o.res.Stage != StageRequest {
		t.Errorf("%+v", o)
	}
}

func TestDialFailures(t *testing.T) {
	settled(t)
	refused := errors.New("refused")
	block := func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
	for _, c := range []struct {
		name   string
		up     *Upstream
		status int
		body   string
	}{
		{"refused", &Upstream{Dial: func(context.Context) (net.Conn, error) { return nil, refused }}, 502, "dial"},
		{"timeout", &Upstream{Dial: block, DialTimeout: time.Millisecond}, 504, "dial"},
		{"busy", &Upstream{MaxConns: 1, open: 1}, 503, "pool"},
		{"closed", &Upstream{closed: true}, 502, "dial"},
	} {
		addr := start(t, &Server{Handler: forwarding(c.up, nil)})
		dial(t, addr).send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").want("GET", c.status, c.body)
	}
}

func TestRequestBodyLimit(t *testing.T) {
	up := scripted(t, echoing)
	addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), func(_ *Exchange, e *Edit) { e.MaxBody = 5 })})
	for body, status := range map[string]int{
		"Content-Length: 5\r\n\r\nabcde":                                        200,
		"Content-Length: 6\r\n\r\nabcdef":                                       413,
		"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n":             200,
		"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\nabc\r\n0\r\n\r\n":   413,
		"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nfffffff\r\nabc\r\n0\r\n": 413,
	} {
		resp, _ := dial(t, addr).send("POST / HTTP/1.1\r\nHost: h\r\n" + body).answer("POST")
		if resp.StatusCode != status {
			t.Errorf("%q: %d, want %d", body, resp.StatusCode, status)
		}
		if resp.Close != (status == 413) {
			t.Errorf("%q: %d, close %v", body, resp.StatusCode, resp.Close)
		}
	}
}

func TestForwardTwiceIsAMistake(t *testing.T) {
	up := scripted(t, echoing)
	pool := upstreamTo(t, up.addr())
	addr := start(t, &Server{Handler: func(x *Exchange) {
		if _, err := x.Forward(pool, nil); err != nil {
			t.Error(err)
		}
		if res, err := x.Forward(pool, nil); res.Stage != StageEdit || !errors.Is(err, ErrAnswered) {
			t.Errorf("%v, %v", res, err)
		}
		if err := x.Respond(200, nil, nil); !errors.Is(err, ErrAnswered) {
			t.Error(err)
		}
	}})
	dial(t, addr).send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").want("GET", 200, "GET / h 0 ")
}

// TestForwardAfterBodyIsAMistake: what the caller has read would be missing.
func TestForwardAfterBodyIsAMistake(t *testing.T) {
	up := scripted(t, echoing)
	pool := upstreamTo(t, up.addr())
	addr := start(t, &Server{Handler: func(x *Exchange) {
		_, _ = x.Body().Read(make([]byte, 1))
		if res, err := x.Forward(pool, nil); res.Stage != StageEdit || !errors.Is(err, ErrAnswered) {
			t.Errorf("%v, %v", res, err)
		}
		_ = x.Respond(200, nil, nil)
	}})
	dial(t, addr).send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc").want("POST", 200, "")
}

// TestPanicInTheMiddleOfForwardLeavesNothingBehind: the upload is still going on
// when the caller's hook panics.
func TestPanicInTheMiddleOfForwardLeavesNothingBehind(t *testing.T) {
	settled(t)
	up := scripted(t, func(_ int, c *client) {
		if _, err := http.ReadRequest(c.br); err == nil {
			c.reply("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			_, _ = io.Copy(io.Discard, c.br)
		}
	})
	pool := upstreamTo(t, up.addr())
	addr := start(t, &Server{Panicked: func(any) {}, Handler: func(x *Exchange) {
		e := x.Edit()
		e.Answer = func(*Response, *Edit) { panic("boom") }
		_, _ = x.Forward(pool, e)
	}})
	c := dial(t, addr).send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
	_, _ = io.ReadAll(c.br)
	waitFor(t, "the upstream's connection to be closed", func() bool { return pool.Open() == 0 })
}

// TestCallerIsToldBeforeTheClientSeesTheEnd: who frees a place when an answer ends
// must have done so when the client can know of it.
func TestCallerIsToldBeforeTheClientSeesTheEnd(t *testing.T) {
	long := strings.Repeat("x", 4*spliceBytes)
	for _, c := range []struct{ name, method, answer, body string }{
		{"no body", "GET", "HTTP/1.1 204 No Content\r\n\r\n", ""},
		{"head only", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", ""},
		{"empty", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""},
		{"in one piece", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		{"copied by the kernel", "GET", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(long), long), long},
		{"chunked", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "hello"},
		{"until the end of the connection", "GET", "HTTP/1.1 200 OK\r\n\r\nhello", "hello"},
		{"after an interim answer", "GET", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
	} {
		t.Run(c.name, func(t *testing.T) {
			up := scripted(t, func(_ int, conn *client) {
				conn.request()
				conn.reply(c.answer)
				if !strings.Contains(c.answer, "Content-Length") {
					_ = conn.nc.(*net.TCPConn).CloseWrite()
				}
			})
			var told atomic.Int32
			addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), func(_ *Exchange, e *Edit) {
				e.Ending = func() {
					for range 100 { // the client's turn, if it had been sent the end
						runtime.Gosched()
					}
					told.Add(1)
				}
			})})
			for n := range int32(20) {
				conn := dial(t, addr).send(c.method + " / HTTP/1.1\r\nHost: a\r\n\r\n")
				if strings.Contains(c.answer, " 103 ") {
					conn.want(c.method, 103, "")
				}
				resp, body := conn.answer(c.method)
				if got := told.Load(); got != n+1 {
					t.Fatalf("after answer %d to a client the caller was told %d times", n+1, got)
				}
				if body != c.body {
					t.Fatalf("%d with %d bytes, want %d", resp.StatusCode, len(body), len(c.body))
				}
			}
		})
	}
}

// TestCallerIsNotToldOfTheEndOfABrokenAnswer: what the upstream broke off has no end.
func TestCallerIsNotToldOfTheEndOfABrokenAnswer(t *testing.T) {
	up := scripted(t, func(_ int, conn *client) {
		conn.request()
		conn.reply("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
	})
	addr := start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), func(_ *Exchange, e *Edit) {
		e.Ending = func() { t.Error("it was told") }
	})})
	_, _ = io.ReadAll(dial(t, addr).send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").br)
}
