package http1

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestHandlerReadsOnAfterItsAnswerBegan: nothing of the body is lost, whatever was
// in the buffer when the head left.
func TestHandlerReadsOnAfterItsAnswerBegan(t *testing.T) {
	for _, framing := range []string{"Content-Length: 6\r\n\r\nabcdef", "Transfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n"} {
		addr := start(t, &Server{Handler: Adapter(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			_, _ = w.Write(body)
		}))})
		dial(t, addr).send("POST / HTTP/1.1\r\nHost: h\r\n"+framing).want("POST", 200, "abcdef")
	}
}

// TestHandlerMayLeaveAReaderBehind: a goroutine that still reads the body when the
// handler returns is interrupted, and never touches the next request.
func TestHandlerMayLeaveAReaderBehind(t *testing.T) {
	settled(t)
	type read struct {
		data []byte
		err  error
	}
	reads := make(chan read, 1)
	addr := start(t, &Server{Handler: Adapter(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/second" {
			_, _ = io.WriteString(w, "second")
			return
		}
		one := make([]byte, 3)
		_, _ = io.ReadFull(r.Body, one)
		go func() {
			data, err := io.ReadAll(r.Body)
			reads <- read{data, err}
		}()
		_, _ = w.Write(bytes.ToUpper(one))
	}))})
	for range 20 {
		c := dial(t, addr)
		c.send("POST /first HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc").want("POST", 200, "ABC")
		c.send("defghijGET /second HTTP/1.1\r\nHost: h\r\n\r\n")
		if got := <-reads; got.err == nil || strings.Contains(string(got.data), "GET") {
			t.Fatalf("the reader got %q, %v", got.data, got.err)
		}
	}
}

// TestContinueNeverFollowsTheAnswer: the body is first read after the head left.
func TestContinueNeverFollowsTheAnswer(t *testing.T) {
	addr := start(t, &Server{Handler: Adapter(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		_, _ = r.Body.Read(make([]byte, 1))
	}))})
	c := dial(t, addr).send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	c.send("x")
	rest, err := io.ReadAll(resp.Body)
	if err != nil || bytes.Contains(rest, []byte("100")) {
		t.Fatalf("%q, %v", rest, err)
	}
}

// TestTrailersInTheirOwnSegment: they arrive with nothing but framing before them.
func TestTrailersInTheirOwnSegment(t *testing.T) {
	addr := start(t, &Server{Handler: Adapter(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		one := make([]byte, 3)
		if _, err := io.ReadFull(r.Body, one); err != nil {
			t.Error(err)
		}
		w.WriteHeader(200)
		w.(http.Flusher).Flush() // the rest is sent once this has arrived
		if r.URL.Path == "/read" {
			if rest, err := io.ReadAll(r.Body); err != nil || len(rest) > 0 {
				t.Errorf("%q, %v", rest, err)
			}
			_, _ = io.WriteString(w, r.Trailer.Get("X-Sum"))
		}
	}))})
	for path, want := range map[string]string{"/read": "45", "/leave": ""} {
		c := dial(t, addr).send("POST " + path + " HTTP/1.1\r\nHost: h\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
		resp, err := http.ReadResponse(c.br, nil)
		if err != nil {
			t.Fatal(err)
		}
		c.send("0\r\nX-Sum: 45\r\n\r\n")
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != want {
			t.Errorf("%s: %q, %v", path, body, err)
		}
	}
}
