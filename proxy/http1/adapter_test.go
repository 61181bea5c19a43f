package http1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func adapted(t *testing.T, h http.HandlerFunc) *client {
	t.Helper()
	return dial(t, startHijackable(t, &Server{Handler: Adapter(h)}))
}

func TestAdapterGivesTheWholeRequest(t *testing.T) {
	c := adapted(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s %v %d %q %v %s", r.Method, r.URL.Path, r.URL.RawQuery, r.Host, r.Header["X-A"], r.ContentLength, body, err, r.Trailer.Get("T"))
		if r.RemoteAddr == "" || r.Proto != "HTTP/1.1" || r.TLS != nil || r.Context().Value(http.LocalAddrContextKey) == nil {
			t.Errorf("%+v", r)
		}
		if chunked := slices.Equal(r.TransferEncoding, []string{"chunked"}); chunked != (r.ContentLength < 0) || r.Header["Transfer-Encoding"] != nil {
			t.Errorf("Transfer-Encoding %q, length %d, fields %v", r.TransferEncoding, r.ContentLength, r.Header)
		}
	})
	c.send("POST /a%20b?c=d HTTP/1.1\r\nHost: h:1\r\nx-a: 1\r\nX-A: 2\r\nContent-Length: 3\r\n\r\nabc").
		want("POST", 200, `POST /a b c=d h:1 [1 2] 3 "abc" <nil> `)
	c.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n3\r\nabc\r\n0\r\nT: v\r\n\r\n").
		want("POST", 200, `POST /  h [] -1 "abc" <nil> v`)
	c.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n3\r\nabc\r\n0\r\n\r\n").
		want("POST", 200, `POST /  h [] -1 "abc" <nil> `) // and nothing of the one before
}

// TestLongAnswerMakesNoGarbage: a backup is half a gigabyte in such pieces.
func TestLongAnswerMakesNoGarbage(t *testing.T) {
	piece := []byte(strings.Repeat("x", 32<<10))
	c := adapted(t, func(w http.ResponseWriter, _ *http.Request) {
		if n := testing.AllocsPerRun(200, func() { _, _ = w.Write(piece) }); n >= 1 {
			t.Errorf("%.1f allocations for each piece", n)
		}
	})
	c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").want("GET", 200, strings.Repeat(string(piece), 201))
}

func TestAdapterFramesAnswers(t *testing.T) {
	long := strings.Repeat("x", 3*adapterBuffer)
	announcedLong := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(3*len(long)+3))
		for _, piece := range []string{"a", long, long, "b", long, "c"} {
			_, _ = io.WriteString(w, piece)
		}
	}
	for _, c := range []struct {
		name    string
		method  string
		version string
		handler http.HandlerFunc
		status  int
		body    string
		check   func(*http.Response) bool
	}{
		{"nothing", "GET", "1.1", func(http.ResponseWriter, *http.Request) {}, 200, "", func(r *http.Response) bool { return r.ContentLength == 0 }},
		{"short", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, 200, "<html>",
			func(r *http.Response) bool {
				return r.ContentLength == 6 && r.Header.Get("Content-Type") == "text/html; charset=utf-8"
			}},
		{"long", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, long) }, 200, long,
			func(r *http.Response) bool { return r.ContentLength == -1 && !r.Close }},
		{"long to 1.0", "GET", "1.0", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, long) }, 200, long,
			func(r *http.Response) bool { return r.ContentLength == -1 && r.Close }},
		{"flushed", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "a")
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "b")
		}, 200, "ab", func(r *http.Response) bool { return r.ContentLength == -1 }},
		{"announced", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "2")
			_, _ = io.WriteString(w, "a")
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "b")
			if _, err := io.WriteString(w, "c"); !errors.Is(err, http.ErrContentLength) {
				panic(err)
			}
		}, 200, "ab", func(r *http.Response) bool { return r.ContentLength == 2 }},
		{"announced long", "GET", "1.1", announcedLong, 200, "a" + long + long + "b" + long + "c", func(r *http.Response) bool { return r.ContentLength == int64(3*len(long)+3) && !r.Close }},
		{"HEAD announced long", "HEAD", "1.1", announcedLong, 200, "", func(r *http.Response) bool { return r.ContentLength == int64(3*len(long)+3) && !r.Close }},
		{"HEAD", "HEAD", "1.1", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "abc") }, 200, "",
			func(r *http.Response) bool { return r.ContentLength == 3 }},
		{"HEAD long", "HEAD", "1.1", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, long) }, 200, "", func(*http.Response) bool { return true }},
		{"no content", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(204)
			if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrBodyNotAllowed) {
				panic(err)
			}
		}, 204, "", func(r *http.Response) bool { return r.Header.Get("Content-Length") == "" }},
		{"not modified", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) }, 304, "", func(*http.Response) bool { return true }},
		{"close", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") }, 200, "",
			func(r *http.Response) bool { return r.Close }},
		{"injection", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["X"] = []string{"a\r\nInjected: b"}
			w.Header()["Bad name"] = []string{"a"}
		}, 200, "", func(r *http.Response) bool {
			return r.Header.Get("Injected") == "" && r.Header.Get("X") == "a  Injected: b"
		}},
		{"late fields", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(201)
			w.Header().Set("Late", "x")
			w.WriteHeader(500)
		}, 201, "", func(r *http.Response) bool { return r.Header.Get("Late") == "" }},
		{"trailers", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "A, Content-Length")
			_, _ = io.WriteString(w, "x")
			w.Header().Set("A", "1")
			w.Header().Set(http.TrailerPrefix+"B", "2")
		}, 200, "x", func(r *http.Response) bool { return r.Trailer.Get("A") == "1" && r.Trailer.Get("B") == "2" }},
		{"unread body", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }, 200, "", func(r *http.Response) bool { return !r.Close }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := adapted(t, c.handler)
			resp := cl.send(c.method+" / HTTP/"+c.version+"\r\nHost: h\r\n\r\n").want(c.method, c.status, c.body)
			if !c.check(resp) {
				t.Errorf("length %d, close %v, fields %v, trailers %v", resp.ContentLength, resp.Close, resp.Header, resp.Trailer)
			}
			if !resp.Close {
				cl.send(c.method+" / HTTP/"+c.version+"\r\nHost: h\r\n\r\n").want(c.method, c.status, c.body)
			}
		})
	}
}

func TestAdapterStreamsBothWays(t *testing.T) {
	c := adapted(t, func(w http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 3)
		for {
			n, err := io.ReadFull(r.Body, buf)
			_, _ = w.Write(buf[:n])
			w.(http.Flusher).Flush()
			if err != nil {
				return
			}
		}
	})
	c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n")
	for i, part := range []string{"abc", "def", "ghi"} {
		c.send(part)
		if i == 0 {
			resp, err := http.ReadResponse(c.br, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				rest, err := io.ReadAll(resp.Body)
				if string(rest) != "abcdefghi" || err != nil {
					t.Errorf("%q, %v", rest, err)
				}
			}()
		}
	}
}

func TestAdapterInterim(t *testing.T) {
	c := adapted(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "x")
		w.WriteHeader(103)
		_, _ = io.Copy(w, r.Body)
	})
	c.send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
	c.want("POST", 103, "")
	c.want("POST", 100, "")
	c.send("ok").want("POST", 200, "ok")
}

func TestAdapterMaxBytes(t *testing.T) {
	c := adapted(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 2))
		if _, ok := errors.AsType[*http.MaxBytesError](err); !ok {
			t.Errorf("read: %v", err)
		}
		http.Error(w, "large", http.StatusRequestEntityTooLarge)
	})
	c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc").want("POST", 413, "large\n")
	c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc").want("POST", 413, "large\n")
}

func TestAdapterHijack(t *testing.T) {
	settled(t)
	c := adapted(t, func(w http.ResponseWriter, r *http.Request) {
		nc, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		w.WriteHeader(http.StatusEarlyHints) // the connection is no longer its own
		if _, err := w.Write(nil); !errors.Is(err, http.ErrHijacked) {
			t.Errorf("write after hijack: %v", err)
		}
		go func() {
			defer nc.Close()
			got, _ := io.ReadAll(io.LimitReader(rw, 9))
			_, _ = nc.Write(append([]byte("got "), got...))
		}()
	})
	c.send(get + "early").send("late")
	if got, err := io.ReadAll(c.br); string(got) != "got earlylate" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAdapterContextEndsWithTheClient(t *testing.T) {
	settled(t)
	entered, ended := make(chan struct{}), make(chan error, 1)
	c := adapted(t, func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		select {
		case <-r.Context().Done():
			ended <- r.Context().Err()
		case <-time.After(patience):
			ended <- nil
		}
	})
	c.send(get)
	<-entered
	_ = c.nc.Close()
	if err := <-ended; err == nil {
		t.Error("the context did not end")
	}
}

func TestAdapterPanics(t *testing.T) {
	recovered := make(chan any, 2)
	addr := start(t, &Server{Panicked: func(r any) { recovered <- r }, Handler: Adapter(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "half")
		if r.URL.Path == "/abort" {
			panic(http.ErrAbortHandler)
		}
		panic("boom")
	}))})
	dial(t, addr).send("GET /abort HTTP/1.1\r\nHost: h\r\n\r\n").wantEnd()
	dial(t, addr).send(get).wantEnd()
	if r := <-recovered; r != "boom" || len(recovered) > 0 {
		t.Errorf("recovered %v and %d more", r, len(recovered))
	}
}

func TestExchangeWithoutAStallTimeoutIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer time.Sleep(time.Second) //nolint:forbidigo // in a bubble: until the sweeper has ended
		echo := Adapter(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
		s := &Server{Timeouts: Timeouts{Stall: time.Second}, Handler: func(x *Exchange) {
			x.SetStallTimeout(-1)
			echo(x)
		}}
		near, far := net.Pipe()
		defer near.Close()
		go s.ServeConn(far)
		c := &client{t: t, nc: near, br: bufio.NewReader(near)}
		c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc")
		time.Sleep(time.Hour) //nolint:forbidigo // in a bubble
		c.send("defghi").want("POST", 200, "abcdefghi")
	})
}

// TestStalledBodyIsNotWaitedForTwice: the answer to a body that stopped arriving
// must say that the connection ends, and not wait for the rest of it once more.
func TestStalledBodyIsNotWaitedForTwice(t *testing.T) {
	addr := start(t, &Server{Timeouts: Timeouts{Stall: 20 * time.Millisecond}, Handler: Adapter(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			http.Error(w, "stalled", http.StatusRequestTimeout)
		}
	}))})
	c := dial(t, addr).send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\na")
	if resp := c.want("POST", 408, "stalled\n"); !resp.Close {
		t.Error("the rest of the body is waited for")
	}
	c.wantEnd()
}

func TestAdapterDeadlines(t *testing.T) {
	c := adapted(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := io.ReadAll(r.Body); err == nil {
			t.Error("the body has an end")
		}
		_, _ = io.WriteString(w, "late")
	})
	c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\na").want("POST", 200, "late")
}

// TestAdapterAnswersLikeNetHTTP compares with the reference over a mux.
func TestAdapterAnswersLikeNetHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{}`)
	})
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/json", http.StatusFound) })
	mux.HandleFunc("/long", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("y", 20_000)) })
	mux.HandleFunc("/error", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusTeapot) })
	reference := httptest.NewServer(mux)
	defer reference.Close()
	ours := dial(t, start(t, &Server{Handler: Adapter(mux)}))
	theirs := dial(t, reference.Listener.Addr().String())
	for _, method := range []string{"GET", "HEAD", "POST", "OPTIONS"} {
		for _, path := range []string{"/json", "/redirect", "/long", "/error", "/none", "/json/../long"} {
			raw := method + " " + path + " HTTP/1.1\r\nHost: h\r\n\r\n"
			a, aBody := ours.send(raw).answer(method)
			b, bBody := theirs.send(raw).answer(method)
			a.Header.Del("Date")
			b.Header.Del("Date")
			if a.StatusCode != b.StatusCode || aBody != bBody || fmt.Sprint(a.Header) != fmt.Sprint(b.Header) || a.ContentLength != b.ContentLength {
				t.Errorf("%s %s:\n%d %v %d\n%d %v %d", method, path, a.StatusCode, a.Header, a.ContentLength, b.StatusCode, b.Header, b.ContentLength)
			}
		}
	}
}
