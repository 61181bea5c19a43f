package http1

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func saying(body string) func(*Exchange) {
	return func(x *Exchange) { _ = x.Respond(200, nil, []byte(body)) }
}

const get = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"

func TestConnectionsPersistAsTheRequestSays(t *testing.T) {
	addr := start(t, &Server{Handler: saying("ok")})
	for _, c := range []struct {
		name, head string
		close      bool
		connection string
	}{
		{"1.1", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", false, ""},
		{"1.1 close", "GET / HTTP/1.1\r\nHost: h\r\nConnection: Close\r\n\r\n", true, "close"},
		{"1.1 keep-alive, close", "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, close\r\n\r\n", true, "close"},
		{"1.0", "GET / HTTP/1.0\r\nHost: h\r\n\r\n", true, "close"},
		{"1.0 keep-alive", "GET / HTTP/1.0\r\nHost: h\r\nConnection: Keep-Alive\r\n\r\n", false, "keep-alive"},
	} {
		cl := dial(t, addr)
		resp := cl.send(c.head).want("GET", 200, "ok")
		if got := strings.Join(resp.Header["Connection"], ","); got != c.connection && !(got == "" && resp.Close == c.close) {
			t.Errorf("%s: Connection %q, want %q", c.name, got, c.connection)
		}
		if c.close {
			cl.wantEnd()
		} else {
			cl.send(c.head).want("GET", 200, "ok")
		}
	}
}

func TestRespondFramesTheBody(t *testing.T) {
	big := strings.Repeat("b", 100_000)
	for _, c := range []struct {
		name, method string
		status       int
		fields       []Field
		body, want   string
		length       string
	}{
		{"small", "GET", 200, nil, "ok", "ok", "2"},
		{"big", "GET", 200, nil, big, big, "100000"},
		{"empty", "GET", 200, nil, "", "", "0"},
		{"HEAD", "HEAD", 200, nil, "ok", "", "2"},
		{"204", "GET", 204, nil, "ignored", "", ""},
		{"304", "GET", 304, nil, "ignored", "", ""},
		{"field", "GET", 401, []Field{{[]byte("X-A"), []byte("b")}, {[]byte("Date"), []byte("then")}}, "no", "no", "2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := start(t, &Server{Handler: func(x *Exchange) {
				if err := x.Respond(c.status, c.fields, []byte(c.body)); err != nil {
					t.Error(err)
				}
			}})
			cl := dial(t, addr)
			for range 2 {
				resp := cl.send(c.method+" / HTTP/1.1\r\nHost: h\r\n\r\n").want(c.method, c.status, c.want)
				if got := resp.Header.Get("Content-Length"); got != c.length {
					t.Errorf("Content-Length %q, want %q", got, c.length)
				}
				if len(resp.Header["Date"]) != 1 || c.fields != nil && (resp.Header.Get("X-A") != "b" || resp.Header.Get("Date") != "then") {
					t.Errorf("fields %v", resp.Header)
				}
			}
		})
	}
}

func TestRespondRefusesWhatItMustNotSend(t *testing.T) {
	addr := start(t, &Server{Handler: func(x *Exchange) {
		for _, f := range []Field{
			{[]byte("A"), []byte("b\r\nC: d")}, {[]byte("A b"), nil}, {nil, []byte("x")},
			{[]byte("Content-Length"), []byte("1")}, {[]byte("transfer-encoding"), []byte("chunked")}, {[]byte("Connection"), []byte("close")},
		} {
			if err := x.Respond(200, []Field{f}, nil); !errors.Is(err, ErrField) {
				t.Errorf("%q: %v", f, err)
			}
		}
		for _, status := range []int{0, 100, 199, 600} {
			if err := x.Respond(status, nil, nil); !errors.Is(err, ErrField) {
				t.Errorf("%d: %v", status, err)
			}
		}
		_ = x.Respond(200, nil, []byte("ok"))
	}})
	dial(t, addr).send(get).want("GET", 200, "ok")
}

// TestTemplateAnswersAsRespondDoes: the same bytes, whatever the request.
func TestTemplateAnswersAsRespondDoes(t *testing.T) {
	const then = "Thu, 01 Jan 1970 00:00:00 GMT"
	big := strings.Repeat("b", 100_000)
	answers := []struct {
		name   string
		status int
		fields string // name and value, with %s for the exchange's own value
		body   string
	}{
		{"no blank", 401, "X-A: b", "no"},
		{"a blank in a field", 401, "X-Id: %s", "no"},
		{"blanks side by side", 403, "X-Id: %s%s-%s", "%s%s"},
		{"a blank at the end", 403, "X-A: b", "id %s"},
		{"a large body", 200, "X-Id: %s", big + "%s" + big},
		{"an empty body", 200, "X-Id: %s", ""},
		{"no content", 204, "X-Id: %s", "%s"},
		{"not modified", 304, "X-Id: %s", "%s"},
	}
	requests := []string{
		get, "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", "GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n", "GET / HTTP/1.0\r\nHost: h\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
		"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3000000\r\n\r\n",
	}
	for _, a := range answers {
		fieldsWith := func(value string) []Field {
			name, text, _ := strings.Cut(a.fields, ": ")
			return []Field{{[]byte(name), []byte(strings.ReplaceAll(text, "%s", value))}, {[]byte("Date"), []byte(then)}}
		}
		const blank = "4f2d"
		template, err := NewTemplate(a.status, fieldsWith(blank), []byte(strings.ReplaceAll(a.body, "%s", blank)), []byte(blank))
		if err != nil {
			t.Fatal(err)
		}
		for _, request := range requests {
			t.Run(a.name+" to "+strings.ReplaceAll(request, "\r\n", " "), func(t *testing.T) {
				whole := func(answer func(x *Exchange) error) string {
					ours, theirs := net.Pipe()
					s := &Server{Handler: func(x *Exchange) {
						if err := answer(x); err != nil {
							t.Error(err)
						}
						_ = ours.Close()
					}}
					served := make(chan struct{})
					go func() { s.ServeConn(ours); close(served) }()
					go func() { _, _ = io.WriteString(theirs, request) }()
					text, _ := io.ReadAll(theirs)
					_ = theirs.Close()
					<-served
					return string(text)
				}
				for _, value := range []string{"0001", "zzzz", blank} {
					want := whole(func(x *Exchange) error {
						return x.Respond(a.status, fieldsWith(value), []byte(strings.ReplaceAll(a.body, "%s", value)))
					})
					if got := whole(func(x *Exchange) error { return x.RespondWith(template, []byte(value), nil) }); got != want || want == "" {
						t.Errorf("value %s: %.300q, want %.300q", value, got, want)
					}
				}
			})
		}
	}
}

func TestTemplateRefusesWhatItMustNotSend(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		field  Field
		blank  string
	}{
		"an interim status":    {100, Field{[]byte("A"), []byte("b")}, "x"},
		"a second line":        {200, Field{[]byte("A"), []byte("b\r\nC: d")}, "x"},
		"a field that frames":  {200, Field{[]byte("Content-Length"), []byte("1")}, "x"},
		"no blank":             {200, Field{[]byte("A"), []byte("b")}, ""},
		"a blank of two lines": {200, Field{[]byte("A"), []byte("b")}, "\r\n"},
	} {
		if _, err := NewTemplate(c.status, []Field{c.field}, nil, []byte(c.blank)); !errors.Is(err, ErrField) {
			t.Errorf("%s: %v", name, err)
		}
	}
	template, err := NewTemplate(200, []Field{{[]byte("X-Id"), []byte("1234")}}, []byte("ok"), []byte("1234"))
	if err != nil {
		t.Fatal(err)
	}
	addr := start(t, &Server{Handler: func(x *Exchange) {
		for _, value := range []string{"", "123", "12345", "1\r\n2", "1\x002 "} {
			if err := x.RespondWith(template, []byte(value), nil); !errors.Is(err, ErrField) {
				t.Errorf("%q: %v", value, err)
			}
		}
		_ = x.RespondWith(template, []byte("5678"), []Field{{[]byte("X-More"), []byte("m")}})
		if err := x.RespondWith(template, []byte("9abc"), nil); !errors.Is(err, ErrAnswered) {
			t.Errorf("a second answer: %v", err)
		}
	}})
	resp := dial(t, addr).send(get).want("GET", 200, "ok")
	if id := resp.Header["X-Id"]; len(id) != 1 || id[0] != "5678" {
		t.Errorf("X-Id %q", id)
	}
}

// TestUnreadBodyNeverBecomesARequest: the body looks like a request.
func TestUnreadBodyNeverBecomesARequest(t *testing.T) {
	settled(t)
	var mu sync.Mutex
	var targets []string
	addr := start(t, &Server{Handler: func(x *Exchange) {
		mu.Lock()
		targets = append(targets, string(x.Request().Target))
		mu.Unlock()
		_ = x.Respond(401, nil, []byte("no"))
	}})
	smuggled := strings.Repeat("GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", 10_000)
	for _, c := range []struct {
		name, head, body string
		keeps            bool
	}{
		{"small", "Content-Length: 35", smuggled[:35], true},
		{"some", "Content-Length: 35000", smuggled[:35_000], true},
		{"large", "Content-Length: 350000", smuggled[:350_000], false},
		{"chunked at once", "Transfer-Encoding: chunked", "23\r\n" + smuggled[:35] + "\r\n0\r\n\r\n", true},
		{"chunked", "Transfer-Encoding: chunked", "55730\r\n" + smuggled[:350_000] + "\r\n0\r\n\r\n", false},
		{"expected", "Expect: 100-continue\r\nContent-Length: 35", "", false},
		{"expected and sent", "Expect: 100-continue\r\nContent-Length: 35", smuggled[:35], true},
		{"malformed", "Transfer-Encoding: chunked", "x\r\n" + smuggled[:350], false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := dial(t, addr)
			cl.send("POST /first HTTP/1.1\r\nHost: h\r\n" + c.head + "\r\n\r\n" + c.body)
			if resp := cl.want("POST", 401, "no"); resp.Close == c.keeps {
				t.Errorf("Connection: close %v", resp.Close)
			}
			if c.keeps {
				cl.send("GET /second HTTP/1.1\r\nHost: h\r\n\r\n").want("GET", 401, "no")
			}
		})
	}
	mu.Lock()
	defer mu.Unlock()
	for _, target := range targets {
		if target == "/smuggled" {
			t.Fatal("a body was read as a request")
		}
	}
}

func TestBodyIsDecoded(t *testing.T) {
	addr := start(t, &Server{Handler: func(x *Exchange) {
		body, err := io.ReadAll(x.Body())
		if err != nil {
			body = []byte(err.Error())
		}
		_ = x.Respond(200, nil, body)
	}})
	c := dial(t, addr)
	big := strings.Repeat("0123456789", 20_000)
	for _, r := range []struct{ raw, want string }{
		{"Content-Length: 3\r\n\r\nabc", "abc"},
		{"A: b\r\n\r\n", ""},
		{"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x\r\ndefg\r\n0\r\nT: x\r\n\r\n", "abcdefg"},
		{"Content-Length: 200000\r\n\r\n" + big, big},
		{"Transfer-Encoding: chunked\r\n\r\n30d40\r\n" + big + "\r\n0\r\n\r\n", big},
	} {
		c.send("POST / HTTP/1.1\r\nHost: h\r\n"+r.raw).want("POST", 200, r.want)
	}
	c.send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").want("POST", 100, "")
	c.send("abc").want("POST", 200, "abc")
	c.send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 200000\r\n\r\n").want("POST", 100, "")
	c.send(big).want("POST", 200, big) // invited once, however many reads it takes
	c.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n")
	if resp, body := c.answer("POST"); !strings.Contains(body, "chunk") || !resp.Close {
		t.Errorf("malformed chunk: %q, close %v", body, resp.Close)
	}
}

func TestUnansweredRequestIs500(t *testing.T) {
	c := dial(t, start(t, &Server{Handler: func(*Exchange) {}})).send(get)
	if resp, _ := c.answer("GET"); resp.StatusCode != 500 || !resp.Close {
		t.Errorf("%d, close %v", resp.StatusCode, resp.Close)
	}
	c.wantEnd()
	c = dial(t, start(t, &Server{})).send(get)
	if resp, _ := c.answer("GET"); resp.StatusCode != 500 {
		t.Errorf("the zero Server answers %d", resp.StatusCode)
	}
}

func TestPanicClosesOnlyItsConnection(t *testing.T) {
	recovered := make(chan any, 1)
	addr := start(t, &Server{
		Handler: func(x *Exchange) {
			if string(x.Request().Target) == "/panic" {
				panic("boom")
			}
			_ = x.Respond(200, nil, []byte("ok"))
		},
		Panicked: func(r any) { recovered <- r },
	})
	other := dial(t, addr).send(get)
	other.want("GET", 200, "ok")
	dial(t, addr).send("GET /panic HTTP/1.1\r\nHost: h\r\n\r\n").wantEnd()
	if r := <-recovered; r != "boom" {
		t.Errorf("recovered %v", r)
	}
	other.send(get).want("GET", 200, "ok")
}

func TestRefusalIsRenderedByTheHook(t *testing.T) {
	var mu sync.Mutex
	var seen []Refusal
	addr := start(t, &Server{Refused: func(r Refusal) Answer {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r)
		return Answer{
			Fields: []Field{{[]byte("Content-Type"), []byte("application/problem+json")}, {[]byte("Bad"), []byte("a\r\nInjected: b")}},
			Body:   []byte(`{"code":"` + r.Code + `"}`),
		}
	}})
	c := dial(t, addr).send("GET / HTTP/1.1\r\n\r\n")
	resp := c.want("GET", 400, `{"code":"host_count"}`)
	if resp.Header.Get("Content-Type") != "application/problem+json" || resp.Header.Get("Injected") != "" || !resp.Close {
		t.Errorf("fields %v", resp.Header)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 1 || seen[0].Remote.String() != c.nc.LocalAddr().String() {
		t.Errorf("hook saw %v", seen)
	}
}

func TestEachTimeoutEndsItsWait(t *testing.T) {
	settled(t)
	// Only one of them is short each time: none of the others may come before it.
	served := func(timeouts Timeouts) string {
		return start(t, &Server{
			Handler: func(x *Exchange) {
				if _, err := io.ReadAll(x.Body()); err == nil {
					t.Error("a stalled body has an end")
				}
				_ = x.Respond(408, nil, []byte("stall"))
			},
			Timeouts: timeouts,
		})
	}
	dial(t, served(Timeouts{Idle: 20 * time.Millisecond, Header: time.Hour, Stall: time.Hour})).wantEnd()
	c := dial(t, served(Timeouts{Header: 20 * time.Millisecond, Idle: time.Hour, Stall: time.Hour})).send("GET / HTTP/1.1\r\nHo")
	if resp, _ := c.answer("GET"); resp.StatusCode != 408 || !resp.Close {
		t.Errorf("slow head: %d", resp.StatusCode)
	}
	c.wantEnd()
	c = dial(t, served(Timeouts{Stall: 20 * time.Millisecond, Header: time.Hour, Idle: time.Hour})).send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc")
	c.want("POST", 408, "stall")
}

func TestTimeoutsAreNeverEarly(t *testing.T) {
	for offset := range 10 {
		synctest.Test(t, func(t *testing.T) {
			s := &Server{Timeouts: Timeouts{Header: time.Second}}
			defer time.Sleep(time.Second) //nolint:forbidigo // in a bubble: until the sweeper has ended
			near, far := net.Pipe()
			defer near.Close()
			go s.ServeConn(far)
			time.Sleep(time.Duration(offset) * 27 * time.Millisecond) //nolint:forbidigo // in a bubble: between two looks at the clock
			began := time.Now()
			_, _ = near.Write([]byte("G"))
			answer, _ := io.ReadAll(near)
			took := time.Since(began)
			if !bytes.HasPrefix(answer, []byte("HTTP/1.1 408 ")) || took < time.Second || took > time.Second+2*s.tick {
				t.Errorf("after %v: %.12q", took, answer)
			}
		})
	}
}

// TestClientThatDoesNotReadIsGivenUp: the answer is larger than all buffers on
// the way.
func TestClientThatDoesNotReadIsGivenUp(t *testing.T) {
	settled(t)
	failed := make(chan error, 1)
	addr := start(t, &Server{
		Handler:  func(x *Exchange) { failed <- x.Respond(200, nil, make([]byte, 64<<20)) },
		Timeouts: Timeouts{Stall: 20 * time.Millisecond},
	})
	dial(t, addr).send(get)
	select {
	case err := <-failed:
		if !errors.Is(err, ErrClientGone) {
			t.Errorf("Respond: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("still writing")
	}
}

func TestConnectionLimits(t *testing.T) {
	settled(t)
	refusals := make(chan string, 4)
	refused := func(r Refusal) Answer { refusals <- r.Code; return Answer{} }
	for code, limits := range map[string]Limits{
		"connections":            {Connections: 2},
		"connections_per_source": {ConnectionsPerSource: 2},
	} {
		s := &Server{Handler: saying("ok"), Refused: refused, Limits: limits}
		addr := start(t, s)
		a, b := dial(t, addr), dial(t, addr)
		a.send(get).want("GET", 200, "ok")
		b.send(get).want("GET", 200, "ok")
		third := dial(t, addr)
		if _, err := third.br.ReadByte(); err == nil {
			t.Error("a third connection was served")
		}
		select { // told of before its end
		case got := <-refusals:
			if got != code {
				t.Errorf("refused by %q, want %q", got, code)
			}
		default:
			t.Errorf("%s: a connection ended that nobody was told of", code)
		}
		_ = a.nc.Close()
		waitFor(t, "the connection to be forgotten", func() bool { return s.Connections() == 1 })
		dial(t, addr).send(get).want("GET", 200, "ok")
	}
}

func TestShutdownFinishesWhatIsInFlight(t *testing.T) {
	settled(t)
	entered, release := make(chan struct{}), make(chan struct{})
	s := &Server{Handler: func(x *Exchange) {
		if string(x.Request().Target) == "/slow" {
			close(entered)
			<-release
		}
		_ = x.Respond(200, nil, []byte("ok"))
	}}
	addr := start(t, s)
	idle := dial(t, addr).send(get)
	idle.want("GET", 200, "ok")
	fresh := dial(t, addr)
	busy := dial(t, addr).send("GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
	<-entered
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown with an ended context: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	idle.wantEnd()
	fresh.wantEnd()
	if nc, err := net.Dial("tcp", addr); err == nil {
		_ = nc.Close()
		t.Error("still listening")
	}
	close(release)
	if resp := busy.want("GET", 200, "ok"); !resp.Close {
		t.Error("no Connection: close while draining")
	}
	busy.wantEnd()
	_ = busy.nc.Close() // else what it may still send is waited for
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// TestRequestThatCrossesShutdownIsAnswered: the client has an answer that says nothing of
// an end, and sends the next request before it can know. Another one stays silent.
func TestRequestThatCrossesShutdownIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{Handler: saying("ok")}
		defer time.Sleep(time.Second) //nolint:forbidigo // in a bubble: until the sweeper has ended
		clients := make([]*client, 2)
		for i := range clients {
			near, far := net.Pipe()
			defer near.Close()
			go s.ServeConn(far)
			clients[i] = &client{t: t, nc: near, br: bufio.NewReader(near)}
			if clients[i].send(get).want("GET", 200, "ok").Close {
				t.Fatal("the connection ends before Shutdown")
			}
		}
		began := time.Now()
		done := make(chan error, 1)
		go func() { done <- s.Shutdown(t.Context()) }()
		synctest.Wait()
		if !clients[0].send(get).want("GET", 200, "ok").Close {
			t.Error("no Connection: close while draining")
		}
		clients[0].wantEnd()
		clients[1].wantEnd()
		if err, took := <-done, time.Since(began); err != nil || took > 2*lastCallTime {
			t.Errorf("Shutdown: %v after %v", err, took)
		}
	})
}

// TestRequestThatCrossesTheIdleTimeoutIsTaken: it came after the connection's goroutine
// was woken to close it. TLS and cleartext look for it in different ways.
func TestRequestThatCrossesTheIdleTimeoutIsTaken(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	clientTLS = clientTLS.Clone()
	clientTLS.NextProtos = nil
	for name, secure := range map[string]bool{"cleartext": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			near, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			far, err := Direct(l).Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer far.Close()
			shaken := make(chan error, 1)
			if secure {
				client := tls.Client(near, clientTLS)
				near, far = client, tls.Server(far, serverTLS)
				go func() { shaken <- client.Handshake() }()
			} else {
				shaken <- nil
			}
			s := &Server{}
			s.init()
			c := &conn{srv: s, nc: far}
			if _, ok := c.open(); !ok || <-shaken != nil {
				t.Fatal("the connection did not open")
			}
			if _, err := io.WriteString(near, get); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the request", func() bool {
				silent := true
				err := c.raw.Control(func(fd uintptr) { silent = quiet(fd) })
				return err == nil && !silent
			})
			c.phase.Store(phaseIdle)
			s.now.Store(2)
			c.deadline.Store(1)
			c.wake()
			if ready, how := c.waitForRequest(); !ready {
				t.Fatalf("the connection ends: %v", how)
			}
			if _, err := c.readHead(&Request{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestEndTakesNoAnswerFromWhoSendsOn: a reset takes from a client what it has not
// read yet (RFC 9112 §9.6).
func TestEndTakesNoAnswerFromWhoSendsOn(t *testing.T) {
	for name, test := range map[string]struct{ request, meanwhile, after string }{
		"the next request is here":                  {request: "GET / HTTP/1.1\r\nHost: h\r\n\r\n", meanwhile: get},
		"the next request is here over HTTP/1.0":    {request: "GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n", meanwhile: get},
		"an empty line after a body that was asked": {request: "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", meanwhile: "\r\n"},
		"the next request is on its way":            {request: "GET / HTTP/1.1\r\nHost: h\r\n\r\n", after: get},
	} {
		t.Run(name, func(t *testing.T) {
			entered, release := make(chan struct{}), make(chan struct{})
			s := &Server{Handler: func(x *Exchange) {
				_, _ = io.Copy(io.Discard, x.Body())
				close(entered)
				<-release
				_ = x.Respond(200, nil, []byte("ok"))
			}}
			c := dial(t, start(t, s)).send(test.request)
			<-entered
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			_ = s.Shutdown(ended) // so that the answer ends the connection
			c.send(test.meanwhile)
			close(release)
			c.want("GET", 200, "ok")
			c.wantEnd()
			if test.after != "" {
				c.send(test.after).send(test.after)
			}
		})
	}
}

func TestServeAfterShutdownRefuses(t *testing.T) {
	s := &Server{}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); !errors.Is(err, ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}
	a, b := net.Pipe()
	s.ServeConn(a)
	if _, err := b.Read(make([]byte, 1)); err == nil {
		t.Error("served a connection after Shutdown")
	}
}

// TestServesAnyConnection: a pipe has no socket beneath.
func TestServesAnyConnection(t *testing.T) {
	settled(t)
	a, b := net.Pipe()
	s := &Server{Handler: saying("ok")}
	done := make(chan struct{})
	go func() { defer close(done); s.ServeConn(a) }()
	c := &client{t: t, nc: b, br: bufio.NewReader(b)}
	for range 3 {
		c.send(get).want("GET", 200, "ok")
	}
	_ = b.Close()
	<-done
}

// TestPrefaceAfterARequestIsRefused: behind a proxy that reuses its connections whoever
// sent it would have those who come later speak HTTP/2.
func TestPrefaceAfterARequestIsRefused(t *testing.T) {
	settled(t)
	c := dial(t, start(t, &Server{Handler: saying("ok"), HTTP2: func(nc net.Conn) {
		t.Error("the connection was handed on")
		_ = nc.Close()
	}}))
	c.send(get+preface).want("GET", 200, "ok")
	if resp, _ := c.answer("PRI"); resp.StatusCode != 505 || !resp.Close {
		t.Errorf("answer %d, closing %v; want 505 and the end", resp.StatusCode, resp.Close)
	}
}

func TestHTTP2IsHandedOn(t *testing.T) {
	settled(t)
	got := make(chan string, 1)
	s := &Server{Handler: saying("ok"), HTTP2: func(nc net.Conn) {
		defer nc.Close()
		b := make([]byte, len(preface)+4)
		n, _ := io.ReadFull(nc, b)
		got <- string(b[:n])
	}}
	addr := start(t, s)
	c := dial(t, addr)
	for _, piece := range []string{"P", "RI * HTTP/2.0\r", "\n\r\nSM\r\n\r\nre", "st"} {
		c.send(piece)
	}
	if g := <-got; g != preface+"rest" {
		t.Errorf("handed on %q", g)
	}
	c.wantEnd()
	dial(t, addr).send("PUT / HTTP/1.1\r\nHost: h\r\n\r\n").want("PUT", 200, "ok")
	dial(t, addr).send("PRI / HTTP/1.1\r\nHost: h\r\n\r\n").want("PRI", 200, "ok")

	addr = start(t, &Server{Handler: saying("ok")})
	resp, _ := dial(t, addr).send(preface).answer("GET")
	if resp.StatusCode != 505 {
		t.Errorf("preface without HTTP2: %d, want 505", resp.StatusCode)
	}
}

func testTLS(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"h"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12},
		&tls.Config{RootCAs: roots, ServerName: "h", MinVersion: tls.VersionTLS12}
}

func TestTLSOnBothSides(t *testing.T) {
	settled(t)
	serverTLS, clientTLS := testTLS(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	origin := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		_, _ = io.CopyN(w, zeros{}, n)
	}), TLSConfig: serverTLS.Clone(), TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}}
	origin.TLSConfig.NextProtos = nil
	go origin.ServeTLS(l, "", "")
	t.Cleanup(func() { _ = origin.Close() })
	pool := &Upstream{Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		nc, err := d.DialContext(ctx, "tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		secure := tls.Client(DirectConn(nc), clientTLS)
		return secure, secure.HandshakeContext(ctx)
	}}
	t.Cleanup(pool.Close)
	s := &Server{Handler: forwarding(pool, nil), HTTP2: func(nc net.Conn) {
		_, _ = io.WriteString(nc, "two")
		_ = nc.Close()
	}}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(tls.NewListener(Direct(inner), serverTLS))
	t.Cleanup(func() {
		_ = s.Close()
		waitFor(t, "connections to end", func() bool { return s.Connections() == 0 })
	})

	nc, err := tls.Dial("tcp", inner.Addr().String(), clientTLS)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	c := &client{t: t, nc: nc, br: bufio.NewReader(nc)}
	for _, n := range []int{0, 10, 300_000, 5} {
		body := strings.Repeat("\x00", n)
		c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: " + itoa(n) + "\r\n\r\n" + body)
		c.want("POST", 200, body)
	}
	waitFor(t, "one connection to the upstream to be idle", func() bool { return pool.Open() == 1 && pool.Idle() == 1 })

	h2 := clientTLS.Clone()
	h2.NextProtos = []string{"h2"}
	nc2, err := tls.Dial("tcp", inner.Addr().String(), h2)
	if err != nil {
		t.Fatal(err)
	}
	defer nc2.Close()
	if got, _ := io.ReadAll(nc2); string(got) != "two" {
		t.Errorf("ALPN h2 got %q", got)
	}

	plain := dial(t, inner.Addr().String()).send(get)
	_, _ = io.ReadAll(plain.br) // the handshake fails, and nothing hangs
}

func itoa(n int) string { return strconv.Itoa(n) }

// TestIdleConnectionHoldsNoBlock: what an idle connection read is given back.
func TestIdleConnectionHoldsNoBlock(t *testing.T) {
	s := &Server{Handler: saying("ok")}
	addr := start(t, s)
	c := dial(t, addr)
	c.send(get).want("GET", 200, "ok")
	waitFor(t, "the connection to be idle", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.conns.phase.Load() == phaseIdle
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns.in.blk != nil {
		t.Error("an idle connection holds a block")
	}
}

// TestParkedConnectionComesBack: an idle connection without a goroutine serves
// on, times out, and is ended by Shutdown and Close.
func TestParkedConnectionComesBack(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("connections are parked on Linux only")
	}
	settled(t)
	for _, secure := range []bool{false, true} {
		for name, end := range map[string]func(*Server, *client){
			"client":   func(_ *Server, c *client) { _ = c.nc.Close() },
			"shutdown": func(s *Server, c *client) { _ = s.Shutdown(context.Background()); c.wantEnd() },
			"close":    func(s *Server, c *client) { _ = s.Close() },
			"idle":     func(s *Server, c *client) { parkedConn(s).arm(time.Nanosecond); c.wantEnd() },
		} {
			s := &Server{Handler: saying("ok")}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			c := &client{t: t}
			if secure {
				serverTLS, clientTLS := testTLS(t)
				clientTLS.NextProtos = nil
				go s.Serve(tls.NewListener(Direct(l), serverTLS))
				c.nc, err = tls.Dial("tcp", l.Addr().String(), clientTLS)
			} else {
				go s.Serve(l)
				c.nc, err = net.Dial("tcp", l.Addr().String())
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = c.nc.SetDeadline(time.Now().Add(patience))
			c.br = bufio.NewReader(c.nc)
			for range 3 {
				c.send(get).want("GET", 200, "ok")
				park(t, s)
			}
			end(s, c)
			waitFor(t, "the connection to end by "+name, func() bool { return s.Connections() == 0 })
			_ = s.Close()
			_ = c.nc.Close()
		}
	}
}

// park asks the server's only connection to give up its goroutine until it has.
func park(t *testing.T, s *Server) {
	t.Helper()
	waitFor(t, "the connection to be parked", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.conns == nil || s.conns.phase.Load() == phaseParked {
			return s.conns != nil
		}
		if s.conns.phase.Load() == phaseIdle {
			s.conns.askToPark()
		}
		return false
	})
}

func parkedConn(s *Server) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

// A connection that is asked to park as its next request comes goes on with that, and parks
// when it is asked again: the request took the interruption, and not the wish.
func TestConnectionThatWasBusyParksWhenAskedAgain(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("connections are parked on Linux only")
	}
	settled(t)
	for _, noHijack := range []bool{false, true} {
		s := &Server{NoHijack: noHijack, Handler: func(x *Exchange) {
			x.c.askToPark() // as if the connection had been idle a moment ago
			_ = x.Respond(200, nil, []byte("ok"))
		}}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go s.Serve(l)
		c := dial(t, l.Addr().String())
		for range 3 {
			c.send(get).want("GET", 200, "ok")
			park(t, s)
		}
		_ = s.Close()
	}
}

// TestManyIdleConnectionsGiveUpTheirGoroutines also holds them to their memory
// in goroutines: all but warmIdle.
func TestManyIdleConnectionsGiveUpTheirGoroutines(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("connections are parked on Linux only")
	}
	settled(t)
	s := &Server{Handler: saying("ok")}
	addr := start(t, s)
	before := runtime.NumGoroutine()
	var clients []*client
	for range warmIdle + 500 {
		c := dial(t, addr)
		c.send(get).want("GET", 200, "ok")
		clients = append(clients, c)
	}
	waitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() < before+20 })
	for _, c := range clients {
		c.send(get).want("GET", 200, "ok")
	}
}

// announced is a connection that has another peer, as after a PROXY protocol
// header.
type announced struct {
	net.Conn
	tcp *net.TCPConn
}

func (a announced) RemoteAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 9} }
func (a announced) TCPConn() *net.TCPConn { return a.tcp }

// wrapped is a connection that hides its socket.
type wrapped struct{ net.Conn }

func TestWrappedConnections(t *testing.T) {
	settled(t)
	for name, wrap := range map[string]func(net.Conn) net.Conn{
		"announced": func(nc net.Conn) net.Conn { return announced{nc, nc.(*net.TCPConn)} },
		"hidden":    func(nc net.Conn) net.Conn { return wrapped{nc} },
		"replayed":  func(nc net.Conn) net.Conn { return &replayConn{Conn: nc, read: []byte("GET /")} },
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{Handler: func(x *Exchange) {
			_ = x.Respond(200, nil, []byte(x.Peer().Addr().String()+" "+string(x.Request().Target)))
		}}
		done := make(chan struct{})
		go func() {
			defer close(done)
			nc, err := l.Accept()
			if err != nil {
				return
			}
			s.ServeConn(wrap(nc))
		}()
		c := dial(t, l.Addr().String())
		switch name {
		case "replayed":
			c.send("x HTTP/1.1\r\nHost: h\r\n\r\n").want("GET", 200, "127.0.0.1 /x")
		case "announced":
			c.send(get).want("GET", 200, "192.0.2.7 /")
		default:
			c.send(get).want("GET", 200, "127.0.0.1 /")
		}
		c.send(get)
		c.answer("GET")
		_ = c.nc.Close()
		<-done
		_ = l.Close()
	}
}

// TestPauseOfTheProcessIsNotThePeersFault: after a pause the sweeper must not
// find all patience ended before anybody could read what has arrived.
func TestPauseOfTheProcessIsNotThePeersFault(t *testing.T) {
	s := &Server{}
	s.init()
	s.lookAtClock()
	before := s.now.Load()
	s.looked = s.looked.Add(-time.Hour)
	s.lookAtClock()
	if passed := time.Duration(s.now.Load() - before); passed > 4*s.tick {
		t.Errorf("%v counted", passed)
	}
}

// TestLackOfDescriptorsIsTold: clients wait meanwhile, and nothing else would say why.
func TestLackOfDescriptorsIsTold(t *testing.T) {
	lack := &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	l := &failingListener{errs: []error{lack, lack, lack}, ended: errors.New("the listener is broken")}
	var told []error
	s := &Server{Handler: func(*Exchange) {}, Starved: func(err error) { told = append(told, err) }}
	if err := s.Serve(l); !errors.Is(err, l.ended) {
		t.Errorf("it ended with %v", err)
	}
	if len(told) != 1 || !errors.Is(told[0], syscall.EMFILE) {
		t.Errorf("told %v", told)
	}
}

// failingListener fails with errs, one after the other, and then with ended.
type failingListener struct {
	net.Listener
	errs  []error
	ended error
}

func (l *failingListener) Accept() (net.Conn, error) {
	if len(l.errs) == 0 {
		return nil, l.ended
	}
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, err
}

func (l *failingListener) Close() error { return nil }

func TestDateGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{}
		s.init()
		for range 3 {
			s.lookAtClock()
			if got, want := string(s.date.Load().line), "Date: "+time.Now().UTC().Format(http.TimeFormat)+"\r\n"; got != want {
				t.Errorf("%q, want %q", got, want)
			}
			time.Sleep(time.Second) //nolint:forbidigo // in a bubble
		}
	})
}

// TestFieldsFollowTheirHead: a head that outgrows its block is moved, and what was read of
// it must not point to where it was.
func TestFieldsFollowTheirHead(t *testing.T) {
	addr := start(t, &Server{Handler: func(x *Exchange) {
		r := x.Request()
		head := x.c.in.blk.data
		for i, f := range r.Fields {
			if &f.Name[0] != &head[r.lines[i].start] {
				t.Errorf("%s is not in the head's block", f.Name)
			}
		}
		_ = x.Respond(200, nil, nil)
	}})
	c := dial(t, addr)
	c.send("GET / HTTP/1.1\r\nHost: h\r\nA: b\r\nLong: "+strings.Repeat("x", 10_000)+"\r\n\r\n").want("GET", 200, "")
	c.send(get+"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\nLong: "+strings.Repeat("x", headBlock-100)+"\r\n\r\n").want("GET", 200, "")
	c.want("GET", 200, "")
}
