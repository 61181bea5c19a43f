package http1

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestVisitChangesNothing sends a second request on a connection to servers that serve
// it within the visit, and that may not.
func TestVisitChangesNothing(t *testing.T) {
	second := "GET /second HTTP/1.1\r\nHost: h\r\n\r\n"
	post := "POST /p HTTP/1.1\r\nHost: h\r\n"
	for name, c := range map[string]struct {
		pieces []string // of what follows the first request, each written by itself; "" ends the client's side
		want   string   // the answers, as the client reads them until the end
	}{
		"a whole one":        {[]string{second}, "200 GET /second h 0 "},
		"in two pieces":      {[]string{second[:9], second[9:]}, "200 GET /second h 0 "},
		"two at once":        {[]string{second + get}, "200 GET /second h 0 |200 GET / h 0 "},
		"one and a half":     {[]string{second + get[:7], get[7:]}, "200 GET /second h 0 |200 GET / h 0 "},
		"two, one by one":    {[]string{second, get}, "200 GET /second h 0 |200 GET / h 0 "},
		"a body":             {[]string{post + "Content-Length: 3\r\n\r\nabc"}, "200 POST /p h 3 abc"},
		"a body in pieces":   {[]string{post + "Content-Length: 3\r\n\r\na", "bc"}, "200 POST /p h 3 abc"},
		"a body and more":    {[]string{post + "Content-Length: 3\r\n\r\nabc" + get}, "200 POST /p h 3 abc|200 GET / h 0 "},
		"a chunked body":     {[]string{post + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"}, "200 POST /p h 3 abc"},
		"a body on request":  {[]string{post + "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n", "abc"}, "200 POST /p h 3 abc"},
		"more than a block":  {[]string{post + "A: " + strings.Repeat("a", headBlock) + "\r\nContent-Length: 1\r\n\r\nb"}, "200 POST /p h 1 b"},
		"exactly a block":    {[]string{exactly(headBlock)}, "200 GET / h 0 "},
		"the last":           {[]string{"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"}, "200 GET / h 0 "},
		"of HTTP/1.0":        {[]string{"GET / HTTP/1.0\r\nHost: h\r\n\r\n"}, "200 GET / h 0 "},
		"only a head":        {[]string{"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"}, "200 "},
		"malformed":          {[]string{"GET / HTTP/1.1\r\nHost: h\r\nA : b\r\n\r\n"}, "400 space"},
		"the preface":        {[]string{preface}, "505 version"},
		"an upgrade":         {[]string{"GET /up HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "hello"}, "101 hello"},
		"a broken answer":    {[]string{"GET /broken HTTP/1.1\r\nHost: h\r\n\r\n"}, "reset"},
		"a body nobody read": {[]string{"POST /refuse HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc" + get}, "403 no|200 GET / h 0 "},
		"a panic":            {[]string{"GET /panic HTTP/1.1\r\nHost: h\r\n\r\n"}, "end"},
		"a large answer":     {[]string{"GET /large HTTP/1.1\r\nHost: h\r\n\r\n", get}, "200 " + largeAnswer + "|200 GET / h 0 "},
		"its end with it":    {[]string{second, ""}, "200 GET /second h 0 "},
	} {
		t.Run(name, func(t *testing.T) {
			for _, hijackable := range []bool{false, true} {
				if got := afterFirst(t, hijackable, c.pieces); got != c.want {
					t.Errorf("may be hijacked %t: %.200q, want %.200q", hijackable, got, c.want)
				}
			}
		})
	}
}

// largeAnswer is moved by splice.
var largeAnswer = strings.Repeat("0123456789abcdef", 64<<10)

// exactly is a request of so many bytes.
func exactly(n int) string {
	const frame = "GET / HTTP/1.1\r\nHost: h\r\nA: \r\n\r\n"
	return strings.Replace(frame, "A: ", "A: "+strings.Repeat("a", n-len(frame)), 1)
}

// afterFirst tells what a client hears after the answer to its first request.
func afterFirst(t *testing.T, hijackable bool, pieces []string) string {
	up := scripted(t, func(_ int, c *client) {
		for {
			r := c.request()
			switch {
			case r == nil:
				return
			case r.URL.Path == "/broken":
				c.reply("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
				return
			case r.URL.Path == "/large":
				c.reply(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(largeAnswer), largeAnswer))
				continue
			case r.URL.Path == "/up":
				c.reply("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
				_, _ = io.Copy(c.nc, c.br)
				return
			}
			body, _ := io.ReadAll(r.Body)
			out := fmt.Sprintf("%s %s %s %d %s", r.Method, r.RequestURI, r.Host, len(body), body)
			c.reply(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(out)))
			if r.Method != http.MethodHead {
				c.reply(out)
			}
		}
	})
	forward := forwarding(upstreamTo(t, up.addr()), func(_ *Exchange, e *Edit) { e.Upgrade = true })
	s := &Server{Panicked: func(any) {}, Handler: func(x *Exchange) {
		switch string(x.Request().Target) {
		case "/refuse":
			_ = x.Respond(403, nil, []byte("no"))
		case "/panic":
			panic("on purpose")
		default:
			forward(x)
		}
	}, Refused: func(r Refusal) Answer { return Answer{Body: []byte(strings.SplitN(r.Code, "_", 2)[0])} }}
	addr := startHijackable(t, s)
	if !hijackable {
		addr = start(t, &Server{Panicked: s.Panicked, Handler: s.Handler, Refused: s.Refused})
	}
	c := dial(t, addr)
	c.send(get).want("GET", 200, "GET / h 0 ")
	for _, p := range pieces {
		if p == "" {
			_ = closeWrite(c.nc)
			continue
		}
		c.send(p)
	}
	var heard []string
	for {
		method := "GET"
		if strings.HasPrefix(pieces[0], "HEAD") {
			method = "HEAD"
		}
		resp, err := http.ReadResponse(c.br, &http.Request{Method: method})
		switch {
		case len(heard) == 0 && errors.Is(err, io.ErrUnexpectedEOF):
			return "end"
		case err != nil:
			return strings.Join(heard, "|")
		case resp.StatusCode == http.StatusContinue:
			continue
		case resp.StatusCode == http.StatusSwitchingProtocols:
			_ = closeWrite(c.nc)
			rest, _ := io.ReadAll(c.br)
			return "101 " + string(rest)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return "reset"
		}
		heard = append(heard, fmt.Sprintf("%d %s", resp.StatusCode, body))
		_ = closeWrite(c.nc) // there is no more
	}
}

// TestNoRequestIsMissedAfterAVisit has the next request arrive at every moment of the
// one before: the poller tells of it once only.
func TestNoRequestIsMissedAfterAVisit(t *testing.T) {
	addr := start(t, &Server{Timeouts: Timeouts{Idle: -1}, Handler: func(x *Exchange) { _ = x.Respond(204, nil, nil) }})
	c := dial(t, addr)
	const rounds = 20_000
	sent := make(chan error, 1)
	ahead := make(chan struct{}, 3) // how many requests may wait for their answers
	go func() {
		for i := range rounds {
			ahead <- struct{}{}
			for range i % 64 { // spends a moment, more in each round
				_ = strings.IndexByte(preface, 0xff)
			}
			if _, err := io.WriteString(c.nc, get); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for range rounds {
		c.want("GET", 204, "")
		<-ahead
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// A visit takes the socket's reading side, so that whoever closes it waits for its end.
func TestServerClosesWhileARequestIsServedInAVisit(t *testing.T) {
	settled(t)
	arrived := make(chan struct{})
	up := scripted(t, func(_ int, uc *client) {
		uc.request()
		uc.reply("HTTP/1.1 204 No Content\r\n\r\n")
		uc.request()
		close(arrived)
		_, _ = io.Copy(io.Discard, uc.br)
	})
	s := &Server{Handler: forwarding(upstreamTo(t, up.addr()), nil)}
	c := dial(t, start(t, s))
	c.send(get).want("GET", 204, "")
	c.send(get)
	<-arrived
	_ = s.Close()
	c.wantReset()
}

// TestCutAtAnyMomentOfAVisit cuts exchanges as they begin and end. Whoever comes too late
// has cut nothing; else the client hears of it.
func TestCutAtAnyMomentOfAVisit(t *testing.T) {
	settled(t)
	var last atomic.Pointer[Cutter]
	addr := start(t, &Server{Timeouts: Timeouts{Idle: -1}, Handler: func(x *Exchange) {
		k := x.Cutter()
		last.Store(&k)
		_ = x.Respond(204, nil, nil)
	}})
	cuts := 0
	for i := range 2000 {
		c := dial(t, addr)
		c.send(get).want("GET", 204, "")
		first := last.Load()
		cut := make(chan bool, 1)
		go func() {
			for {
				if k := last.Load(); k != first {
					for range i % 512 {
						_ = strings.IndexByte(preface, 0xff)
					}
					cut <- k.Cut()
					return
				}
			}
		}()
		c.send(get)
		answers := 0
		for {
			_, err := http.ReadResponse(c.br, nil)
			if err != nil {
				break
			}
			if answers++; answers > 1 {
				t.Fatal("a second answer to one request")
			}
			select {
			case did := <-cut:
				cut <- did
				if !did {
					_ = closeWrite(c.nc)
				}
			case <-time.After(patience):
				t.Fatal("the cut hangs")
			}
		}
		if <-cut {
			cuts++
		}
		_ = c.nc.Close()
	}
	t.Logf("%d of 2000 were in time", cuts)
}

func TestHijackFailsWhereNoneWasAnnounced(t *testing.T) {
	c := dial(t, start(t, &Server{Handler: Adapter(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if _, _, err := w.(http.Hijacker).Hijack(); err == nil {
			t.Error("the connection was taken over")
		}
		_, _ = io.WriteString(w, "here")
	}))}))
	c.send(get).want("GET", 200, "here")
	c.send(get).want("GET", 200, "here")
}

// A stream that is served in a visit and then cut is reset, also if its client does not read.
func TestCutOfAStreamInAVisit(t *testing.T) {
	for _, reads := range []bool{true, false} {
		t.Run(fmt.Sprintf("client reads %t", reads), func(t *testing.T) {
			settled(t)
			up := scripted(t, func(_ int, uc *client) {
				uc.request()
				uc.reply("HTTP/1.1 204 No Content\r\n\r\n")
				uc.request()
				uc.reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
				for {
					if _, err := io.WriteString(uc.nc, "5\r\nevent\r\n"); err != nil {
						return
					}
					if reads {
						_, _ = io.Copy(io.Discard, uc.br)
						return
					}
				}
			})
			pool := upstreamTo(t, up.addr())
			cutters, results := make(chan Cutter, 2), make(chan Result, 2)
			c := dial(t, start(t, &Server{Handler: func(x *Exchange) {
				cutters <- x.Cutter()
				r, _ := x.Forward(pool, x.Edit())
				results <- r
			}}))
			c.send(get).want("GET", 204, "")
			<-cutters
			<-results
			c.send(get)
			resp, err := http.ReadResponse(c.br, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			event := make([]byte, 5)
			if _, err := io.ReadFull(resp.Body, event); err != nil {
				t.Fatal(err)
			}
			if !(<-cutters).Cut() {
				t.Error("there was nothing to cut")
			}
			if r := <-results; r.Stage != StageCut {
				t.Errorf("%+v", r)
			}
			if _, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the stream ended with %v, want a reset", err)
			}
		})
	}
}
