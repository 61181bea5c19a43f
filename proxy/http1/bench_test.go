package http1

import (
	"bytes"
	"io"
	"net"
	"testing"
)

// silentUpstream answers every head it reads with the same bytes, and does not
// allocate.
func silentUpstream(t testing.TB, answer []byte) *Upstream {
	t.Helper()
	s := scripted(t, func(_ int, c *client) {
		buf := make([]byte, 64<<10)
		n := 0
		for {
			k, err := c.nc.Read(buf[n:])
			if err != nil {
				return
			}
			if n += k; bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) || bytes.HasSuffix(buf[:n], []byte("body")) {
				n = 0
				if _, err := c.nc.Write(answer); err != nil {
					return
				}
			}
		}
	})
	return upstreamTo(t, s.addr())
}

// rounds gives a function that sends request and reads an answer, without
// allocating.
func rounds(t testing.TB, handler func(*Exchange), request, answerEnd string) func() {
	t.Helper()
	c := dial(t, start(t, &Server{Handler: handler}))
	buf := make([]byte, 64<<10)
	raw, end := []byte(request), []byte(answerEnd)
	return func() {
		if _, err := c.nc.Write(raw); err != nil {
			t.Fatal(err)
		}
		for n := 0; ; {
			k, err := c.nc.Read(buf[n:])
			if err != nil {
				t.Fatal(err)
			}
			if n += k; bytes.HasSuffix(buf[:n], end) {
				return
			}
		}
	}
}

var (
	benchRequest = "GET /accounts/7/cards?limit=10 HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: bench/1.0\r\n" +
		"Accept: application/json\r\nAccept-Encoding: gzip\r\nAuthorization: Bearer abc_0123456789abcdefghijklmnopqrstuvwxyz01\r\nX-Trace: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n"
	benchPost      = "POST /p HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 1024\r\n\r\n" + string(bytes.Repeat([]byte("body"), 256))
	benchAnswer    = []byte("HTTP/1.1 200 OK\r\nServer: s\r\nDate: Sat, 21 Nov 2026 18:00:00 GMT\r\nContent-Type: application/json\r\nContent-Length: 4\r\nConnection: keep-alive\r\n\r\nbody")
	benchChunked   = []byte("HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 18:00:00 GMT\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
	benchRequestID = []byte("0123456789abcdef")
)

func benchHandler(up *Upstream) func(*Exchange) {
	judged := func(name []byte) bool { return equalFold(name, "x-user") }
	return func(x *Exchange) {
		e := x.Edit()
		e.Judged = judged
		for i := range x.Request().Fields {
			if i == 4 {
				e.Drop = append(e.Drop, i)
			}
		}
		e.Add(Field{Name: []byte("X-Request-Id"), Value: benchRequestID})
		e.AddAnswer(Field{Name: []byte("X-Request-Id"), Value: benchRequestID})
		k := x.Cutter()
		if _, err := x.Forward(up, e); err != nil {
			panic(err)
		}
		_ = k
	}
}

// TestNothingIsAllocatedPerRequest is the promise that a request costs about
// what it costs nginx.
func TestNothingIsAllocatedPerRequest(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates, and drops pooled memory on purpose")
	}
	body := []byte("body")
	answer401 := []Field{{[]byte("WWW-Authenticate"), []byte("Bearer")}}
	template401, err := NewTemplate(401, []Field{{[]byte("X-Id"), []byte("??")}}, body, []byte("??"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, request, end string
		handler            func(*Exchange)
	}{
		{"forward", benchRequest, "body", benchHandler(silentUpstream(t, benchAnswer))},
		{"forward a body", benchPost, "body", benchHandler(silentUpstream(t, benchAnswer))},
		{"forward a chunked answer", benchRequest, "0\r\n\r\n", benchHandler(silentUpstream(t, benchChunked))},
		{"respond", benchRequest, "body", func(x *Exchange) { _ = x.Respond(401, answer401, body) }},
		{"respond from a template", benchRequest, "body", func(x *Exchange) { _ = x.RespondWith(template401, []byte("id"), answer401) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			round := rounds(t, c.handler, c.request, c.end)
			for range 100 {
				round()
			}
			if n := testing.AllocsPerRun(1000, round); n > 0 {
				t.Errorf("%v allocations per request, want 0", n)
			}
		})
	}
}

func BenchmarkForward(b *testing.B) {
	for name, c := range map[string]struct {
		request, end string
		answer       []byte
	}{
		"get":     {benchRequest, "body", benchAnswer},
		"post1k":  {benchPost, "body", benchAnswer},
		"chunked": {benchRequest, "0\r\n\r\n", benchChunked},
	} {
		b.Run(name, func(b *testing.B) {
			round := rounds(b, benchHandler(silentUpstream(b, c.answer)), c.request, c.end)
			b.ReportAllocs()
			for b.Loop() {
				round()
			}
		})
	}
}

// BenchmarkRespond answers as a refusal is answered, put together each time and from a
// template.
func BenchmarkRespond(b *testing.B) {
	fields := []Field{
		{[]byte("Content-Type"), []byte("application/problem+json")}, {[]byte("Cache-Control"), []byte("no-store")},
		{[]byte("X-Request-Id"), []byte("0123456789")}, {[]byte("WWW-Authenticate"), []byte(`Bearer realm="r", error="invalid_token"`)},
	}
	body := []byte(`{"status":401,"detail":"The API token is not valid.","request_id":"0123456789"}`)
	template, err := NewTemplate(401, fields, body, []byte("0123456789"))
	if err != nil {
		b.Fatal(err)
	}
	for name, answer := range map[string]func(*Exchange) error{
		"composed": func(x *Exchange) error { return x.Respond(401, fields, body) },
		"template": func(x *Exchange) error { return x.RespondWith(template, []byte("abcdefghij"), nil) },
	} {
		b.Run(name, func(b *testing.B) {
			round := rounds(b, func(x *Exchange) {
				if err := answer(x); err != nil {
					b.Error(err)
				}
			}, benchRequest, "}")
			b.ReportAllocs()
			for b.Loop() {
				round()
			}
		})
	}
}

func BenchmarkParseRequest(b *testing.B) {
	var r Request
	limits := (&Server{}).defaults()
	raw := []byte(benchRequest)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		r.reset()
		if done, err := r.parse(raw, &limits); !done || err != nil {
			b.Fatal(done, err)
		}
	}
}

func BenchmarkParseResponse(b *testing.B) {
	var r Response
	b.SetBytes(int64(len(benchAnswer)))
	b.ReportAllocs()
	for b.Loop() {
		r.reset()
		if done, err := r.parse(benchAnswer, 64<<10, 256); !done || err != nil {
			b.Fatal(done, err)
		}
	}
}

// BenchmarkSplice moves one answer of 64 MiB from socket to socket.
func BenchmarkSplice(b *testing.B) {
	const size = 64 << 20
	up := scripted(b, func(_ int, c *client) {
		_ = c.nc.(*net.TCPConn).SetWriteBuffer(1 << 20)
		chunk := make([]byte, 1<<20)
		for c.request() != nil {
			c.reply("HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n")
			for range size / len(chunk) {
				if _, err := c.nc.Write(chunk); err != nil {
					return
				}
			}
		}
	})
	c := dial(b, start(b, &Server{Handler: forwarding(upstreamTo(b, up.addr()), nil)}))
	b.SetBytes(size)
	for b.Loop() {
		c.send(get)
		for line := ""; line != "\r\n"; {
			line, _ = c.br.ReadString('\n')
		}
		if _, err := io.CopyN(io.Discard, c.br, size); err != nil {
			b.Fatal(err)
		}
	}
}
