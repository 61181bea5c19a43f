package http1

import (
	"bufio"
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"testing"
)

// FuzzRequest: what is accepted prints back to the same bytes, is read the same
// in one piece and in two, and net/http reads the same request from it.
func FuzzRequest(f *testing.F) {
	for _, o := range oddRequests {
		if len(o.raw) < 4096 {
			f.Add([]byte(o.raw), uint16(len(o.raw)/2))
		}
	}
	f.Add([]byte(benchRequest), uint16(7))
	f.Add([]byte(benchPost), uint16(99))
	f.Fuzz(func(t *testing.T, raw []byte, split uint16) {
		limits := (&Server{}).defaults()
		raw = raw[:len(raw):len(raw)]
		var q, again Request
		done, refusal := q.parse(raw, &limits)
		checkSplitRequest(t, raw, int(split), &limits, done, refusal)
		if refusal != nil {
			if refusal.Status < 400 || refusal.Status > 599 || refusal.Code == "" {
				t.Fatalf("refusal %+v", refusal)
			}
			return
		}
		if !done {
			return
		}
		if got := printRequest(&q, raw); !bytes.Equal(got, raw[:q.end]) {
			t.Fatalf("prints back to\n%q, was\n%q", got, raw[:q.end])
		}
		if done, refusal := again.parse(raw[:q.end], &limits); !done || refusal != nil {
			t.Fatalf("the head alone: %v, %v", done, refusal)
		}
		br := bufio.NewReaderSize(bytes.NewReader(raw), 1<<20)
		r, err := http.ReadRequest(br)
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", raw[:q.end], err)
		}
		if r.Method != string(q.Method) || r.RequestURI != string(q.Target) || r.ProtoMinor != q.Minor || !strings.EqualFold(r.Host, string(q.Host)) {
			t.Fatalf("net/http reads %s %s %d %s from %q", r.Method, r.RequestURI, r.ProtoMinor, r.Host, raw[:q.end])
		}
		if r.ContentLength != q.ContentLength || (len(r.TransferEncoding) == 1) != q.Chunked {
			t.Fatalf("net/http frames %d %v, http1 %d %v: %q", r.ContentLength, r.TransferEncoding, q.ContentLength, q.Chunked, raw[:q.end])
		}
		sameFields(t, q.Fields, r.Header)
		form := bodyNone
		switch {
		case q.Chunked:
			form = bodyChunked
		case q.ContentLength > 0:
			form = bodyLength
		}
		sameBody(t, raw[q.end:], form, q.ContentLength, r.Body, br)
		checkComposed(t, raw, &q)
	})
}

// checkSplitRequest parses raw in two steps and wants the same outcome.
func checkSplitRequest(t *testing.T, raw []byte, at int, limits *Limits, done bool, refusal *ProtocolError) {
	t.Helper()
	at = min(at, len(raw))
	var q Request
	early, err := q.parse(raw[:at], limits)
	if early || err != nil {
		if err != nil && refusal == nil {
			t.Fatalf("refused in part, %v, but not whole", err)
		}
		return
	}
	if again, err := q.parse(raw, limits); again != done || err != refusal { //nolint:errorlint // they are the same values
		t.Fatalf("in two steps %v, %v; at once %v, %v", again, err, done, refusal)
	}
}

// printRequest puts a head together from what was understood of it.
func printRequest(q *Request, raw []byte) []byte {
	out := append([]byte(nil), q.Method...)
	out = append(append(append(out, ' '), q.Target...), " HTTP/1."...)
	out = append(append(out, byte('0'+q.Minor)), "\r\n"...)
	return append(printFields(out, &q.head, raw), "\r\n"...)
}

// printFields writes name, colon and value with the white space that stands
// around them in raw.
func printFields(out []byte, h *head, raw []byte) []byte {
	for i, l := range h.lines {
		text := raw[l.start:l.end]
		f := h.fields[i]
		value := text[len(f.Name)+1 : len(text)-2]
		lead := len(value) - len(bytes.TrimLeft(value, " \t"))
		if len(f.Value) == 0 {
			lead = len(value)
		}
		out = append(append(out, f.Name...), ':')
		out = append(append(append(out, value[:lead]...), f.Value...), value[lead+len(f.Value):]...)
		out = append(out, "\r\n"...)
	}
	return out
}

// sameFields compares with net/http's map, but for what it takes out or adds.
func sameFields(t *testing.T, fields []Field, theirs http.Header) {
	t.Helper()
	ours := make(http.Header)
	for _, f := range fields {
		ours.Add(string(f.Name), string(f.Value))
	}
	for _, h := range []http.Header{ours, theirs} {
		for _, name := range []string{"Host", "Transfer-Encoding", "Trailer", "Connection"} {
			delete(h, name)
		}
	}
	if pragma := ours["Pragma"]; len(pragma) > 0 && pragma[0] == "no-cache" && ours["Cache-Control"] == nil {
		delete(theirs, "Cache-Control") // net/http adds it
	}
	if !maps.EqualFunc(ours, theirs, slices.Equal) {
		t.Fatalf("fields %q, net/http %q", ours, theirs)
	}
}

// readBody goes through wire, which arrives piece by piece, and gives the data,
// the wire bytes that are forwarded, and how many bytes were passed.
func readBody(wire []byte, form bodyForm, length int64, decode bool, step int) (data []byte, passed int, done bool, err *ProtocolError) {
	limits := (&Server{}).defaults()
	src := &stream{blk: &block{data: make([]byte, len(wire)+1)}}
	var b body
	b.begin(src, form, length, &limits)
	b.decode = decode
	fed := 0
	for {
		had := src.r
		piece, refusal := b.take()
		if refusal != nil {
			return data, 0, false, refusal
		}
		data = append(data, piece...)
		if b.done || len(piece) > 0 || src.r != had {
			if b.done {
				return data, fed - len(src.buffered()), true, nil
			}
			continue
		}
		if fed == len(wire) {
			if b.ended() == nil {
				return data, fed, true, nil
			}
			return data, fed, false, nil
		}
		n := copy(src.space()[:min(step, len(wire)-fed)], wire[fed:])
		src.w += n
		fed += n
	}
}

// sameBody compares the data that is read after a head with what net/http reads,
// and where both stop.
func sameBody(t *testing.T, wire []byte, form bodyForm, length int64, theirs io.Reader, br *bufio.Reader) {
	t.Helper()
	data, passed, done, refusal := readBody(wire, form, length, true, max(1, len(wire)/3))
	if refusal != nil || !done {
		return
	}
	want, err := io.ReadAll(theirs)
	if err != nil {
		t.Fatalf("net/http refuses the body %q: %v", wire, err)
	}
	if !bytes.Equal(data, want) {
		t.Fatalf("body %q, net/http %q, of %q", data, want, wire)
	}
	if rest := len(wire) - passed; rest != br.Buffered() && form != bodyUntilClose {
		t.Fatalf("%d bytes are left, net/http leaves %d, of %q", rest, br.Buffered(), wire)
	}
}

// checkComposed forwards the head and wants a request that means the same.
func checkComposed(t *testing.T, raw []byte, q *Request) {
	t.Helper()
	s := &Server{}
	s.init()
	c := &conn{srv: s}
	x := new(Exchange)
	x.begin(c)
	c.in = stream{blk: &block{data: slices.Clone(raw)}, w: len(raw)}
	limits := s.defaults()
	if done, err := x.req.parse(c.in.buffered(), &limits); !done || err != nil {
		t.Fatalf("%v, %v", done, err)
	}
	fw := forward{x: x, c: c, edit: &Edit{}}
	if x.req.options.other && x.req.dropNamed(nil, true) != nil {
		return
	}
	out := fw.composeRequest()
	var got Request
	if done, err := got.parse(out, &Limits{HeaderBytes: len(out), HeaderCount: 200, TargetBytes: 1 << 20}); !done || err != nil || got.end != len(out) {
		t.Fatalf("forwards %q: %v, %v", out, done, err)
	}
	if got.ContentLength != q.ContentLength || got.Chunked != q.Chunked || !bytes.Equal(got.Method, q.Method) || !bytes.Equal(got.Host, q.Host) || len(got.Upgrade) > 0 {
		t.Fatalf("forwards %q for %q", out, raw[:q.end])
	}
	kept := func(r *Request) (out [][]byte) {
		for i, l := range r.lines {
			if l.kind == kindOther {
				out = append(out, r.fields[i].Name, r.fields[i].Value)
			}
		}
		return out
	}
	if !slices.EqualFunc(kept(&got), kept(q), bytes.Equal) {
		t.Fatalf("forwards %q for %q", out, raw[:q.end])
	}
}

// FuzzResponse is FuzzRequest for answers.
func FuzzResponse(f *testing.F) {
	for _, raw := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 200\r\n\r\nabc", "HTTP/1.0 200 OK\r\n\r\nabc",
		"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\n",
		"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
		"HTTP/1.1 200 OK\r\nConnection: x, close\r\nX: y\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
		"HTTP/1.1 200 OK\n\n", "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", string(benchAnswer), string(benchChunked),
	} {
		f.Add([]byte(raw), uint16(len(raw)/2), false)
		f.Add([]byte(raw), uint16(len(raw)/3), true)
	}
	f.Fuzz(func(t *testing.T, raw []byte, split uint16, head bool) {
		var r, parts Response
		method := "GET"
		if head {
			method = "HEAD"
		}
		done, refusal := r.parse(raw, 1<<16, 256)
		if refusal != nil && refusal.Status != 502 {
			t.Fatalf("refusal %+v", refusal)
		}
		if early, err := parts.parse(raw[:min(int(split), len(raw))], 1<<16, 256); !early && err == nil {
			again, err := parts.parse(raw, 1<<16, 256)
			if again != done || (err == nil) != (refusal == nil) {
				t.Fatalf("in two steps %v, %v; at once %v, %v", again, err, done, refusal)
			}
		}
		if refusal != nil || !done {
			return
		}
		out := append([]byte(nil), raw[:r.firstLF]...)
		if out = append(printFields(out, &r.head, raw), "\r\n"...); !bytes.Equal(out, raw[:r.end]) {
			t.Fatalf("prints back to %q, was %q", out, raw[:r.end])
		}
		br := bufio.NewReaderSize(bytes.NewReader(raw), 1<<20)
		theirs, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", raw[:r.end], err)
		}
		if theirs.StatusCode != r.Status || theirs.ProtoMinor != r.Minor || (len(theirs.TransferEncoding) == 1) != r.Chunked && !r.bodyless([]byte(method)) {
			t.Fatalf("net/http reads %d %d %v from %q", theirs.StatusCode, theirs.ProtoMinor, theirs.TransferEncoding, raw[:r.end])
		}
		sameFields(t, r.Fields, theirs.Header)
		form := bodyUntilClose
		switch {
		case r.bodyless([]byte(method)):
			form = bodyNone
		case r.Chunked:
			form = bodyChunked
		case r.ContentLength >= 0:
			form = bodyLength
		}
		sameBody(t, raw[r.end:], form, r.ContentLength, theirs.Body, br)
	})
}

// FuzzChunked: however a chunked body arrives, it is read the same, net/http
// reads the same data from it, and what is forwarded is what came, but for its
// trailers.
func FuzzChunked(f *testing.F) {
	for _, wire := range []string{
		"0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n", "3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\n", "00003\r\nabc\r\n000\r\n\r\n",
		"3\nabc\r\n0\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n", "fffffffffffffff\r\na", "3 \r\nabc\r\n0\r\n\r\n", "3;\"\r\n\"\r\nabc\r\n0\r\n\r\n",
		"1\r\na\r\n0\r\nTransfer-Encoding: x\r\nT: 1\r\n\r\nrest",
	} {
		f.Add([]byte(wire), uint8(1))
		f.Add([]byte(wire), uint8(5))
	}
	f.Fuzz(func(t *testing.T, wire []byte, step uint8) {
		data, passed, done, refusal := readBody(wire, bodyChunked, 0, true, int(step)+1)
		whole, passedWhole, doneWhole, refusalWhole := readBody(wire, bodyChunked, 0, true, len(wire)+1)
		if done != doneWhole || refusal != refusalWhole || done && (!bytes.Equal(data, whole) || passed != passedWhole) { //nolint:errorlint // they are the same values
			t.Fatalf("in steps of %d: %q %v %v; at once: %q %v %v", step, data, done, refusal, whole, doneWhole, refusalWhole)
		}
		if !done {
			return
		}
		theirs, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(wire)))
		if err != nil || !bytes.Equal(theirs, data) {
			t.Fatalf("net/http reads %q, %v; http1 %q", theirs, err, data)
		}
		forwarded, _, done, refusal := readBody(wire, bodyChunked, 0, false, int(step)+1)
		if !done || refusal != nil {
			t.Fatalf("forwarding: %v, %v", done, refusal)
		}
		again, n, done, refusal := readBody(forwarded, bodyChunked, 0, true, len(forwarded)+1)
		if !done || refusal != nil || n != len(forwarded) || !bytes.Equal(again, data) {
			t.Fatalf("forwards %q, which reads %q, %v, %v", forwarded, again, done, refusal)
		}
	})
}

// FuzzAuthority: what validAuthority accepts has a host and at most one port.
func FuzzAuthority(f *testing.F) {
	for _, s := range []string{"h", "h:80", "[::1]", "[::1]:80", "a.b-c_d~", "h:", ":80", "[::1", "u@h", "h/x", "", "[1.2.3.4]", "[::%1]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if !validAuthority(b) {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET http://" + string(b) + "/ HTTP/1.1\r\nHost: " + string(b) + "\r\n\r\n")))
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", b, err)
		}
		if r.Host != string(b) || r.URL.Host != string(b) || r.URL.Hostname() == "" || r.URL.User != nil {
			t.Fatalf("net/http reads %q from %q", r.URL.Host, b)
		}
	})
}
