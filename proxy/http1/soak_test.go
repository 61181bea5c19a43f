package http1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestSoak sends many requests over 256 connections, of which both ends break
// at random, and wants every answer to be that of its request: 10,000, or
// 1,000,000 with TOKENWARD_SOAK=1, or as many as that says.
func TestSoak(t *testing.T) {
	settled(t)
	total := int64(10_000)
	wanted, _ := strconv.ParseInt(os.Getenv("TOKENWARD_SOAK"), 10, 64)
	switch {
	case wanted == 1:
		total = 1_000_000
	case wanted > 1:
		total = wanted
	}
	var outcomes sync.Map // of exchanges that did not go smoothly, by nonce
	up := soakUpstream(t)
	pool := upstreamTo(t, up)
	pool.MaxIdle = 64
	addr := start(t, &Server{
		Timeouts: Timeouts{Stall: 30 * time.Second},
		Handler: func(x *Exchange) {
			e := x.Edit()
			nonce := ""
			for _, f := range x.Request().Fields {
				if equalFold(f.Name, "x-nonce") {
					nonce = string(f.Value)
					e.AddAnswer(Field{Name: []byte("X-Front-Nonce"), Value: f.Value})
				}
			}
			k := x.Cutter()
			if bytes.HasSuffix(x.Request().Target, []byte("/cut")) {
				go k.Cut()
			}
			res, err := x.Forward(pool, e)
			if err != nil || x.close {
				outcomes.Store(nonce, fmt.Sprintf("%+v, %v, close %v", res, err, x.close))
			}
			if status := answerStatus(res, err); status != 0 {
				_ = x.Respond(status, nil, []byte(err.Error()))
			}
		},
	})
	var left, whole, failed atomic.Int64
	left.Store(total)
	var workers sync.WaitGroup
	for i := range 256 {
		workers.Go(func() {
			w := soakClient{t: t, addr: addr, outcomes: &outcomes, r: rand.New(rand.NewPCG(uint64(i), 7))} // #nosec G404 -- repeatable on purpose
			defer w.hangUp()
			for left.Add(-1) >= 0 {
				if w.round() {
					whole.Add(1)
				} else {
					failed.Add(1)
				}
			}
		})
	}
	workers.Wait()
	t.Logf("%d answers were whole, %d exchanges were broken on purpose", whole.Load(), failed.Load())
	if whole.Load() < total/2 {
		t.Errorf("only %d of %d answers were whole", whole.Load(), total)
	}
	pool.Close()
	waitFor(t, "upstream connections to be closed", func() bool { return pool.Open() == 0 })
}

// soakUpstream answers with a body made from the request's nonce, in all
// framings, and misbehaves as the request's path says.
func soakUpstream(t *testing.T) string {
	return scripted(t, func(_ int, c *client) {
		_ = c.nc.SetDeadline(time.Time{})
		for {
			r, err := http.ReadRequest(c.br)
			if err != nil {
				return
			}
			nonce := r.Header.Get("X-Nonce")
			if strings.HasSuffix(r.URL.Path, "/early") {
				c.reply(soakAnswer(nonce, "length"))
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			if want := r.Header.Get("X-Length"); want != strconv.Itoa(len(body)) || strings.Trim(string(body), nonce[:1]) != "" {
				t.Errorf("request %s arrived with %d bytes, want %s", nonce, len(body), want)
				return
			}
			out := soakAnswer(nonce, strings.TrimPrefix(r.URL.Path, "/"))
			switch {
			case strings.HasSuffix(r.URL.Path, "/reset"):
				_ = c.nc.(*net.TCPConn).SetLinger(0)
				return
			case strings.HasSuffix(r.URL.Path, "/half"):
				c.reply(out[:len(out)/2])
				return
			case strings.HasSuffix(r.URL.Path, "/slow"):
				for len(out) > 0 {
					n := min(len(out), 1+len(out)/3)
					c.reply(out[:n])
					out = out[n:]
					runtime.Gosched()
				}
			default:
				c.reply(out)
			}
			if strings.HasPrefix(r.URL.Path, "/close") {
				return
			}
		}
	}).addr()
}

// soakBody is what the answer to a nonce holds.
func soakBody(nonce string) string {
	n, _ := strconv.Atoi(nonce[1:])
	size := n % 300
	if n%50 == 0 {
		size = n % 200_000
	}
	return nonce + strings.Repeat(nonce[:1], size)
}

func soakAnswer(nonce, framing string) string {
	body := soakBody(nonce)
	head := "HTTP/1.1 200 OK\r\nX-Nonce: " + nonce + "\r\n"
	switch framing, _, _ = strings.Cut(framing, "/"); framing {
	case "chunked":
		half := len(body) / 2
		return fmt.Sprintf("%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%x;e=1\r\n%s\r\n0\r\nX-T: %s\r\n\r\n",
			head, half, body[:half], len(body)-half, body[half:], nonce)
	case "close":
		return head + "\r\n" + body
	}
	return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
}

// soakClient is one of the clients, with at most one connection.
type soakClient struct {
	t    *testing.T
	addr string
	r    *rand.Rand
	nc   net.Conn
	br   *bufio.Reader

	outcomes *sync.Map
	history  []string // nonces and kinds on this connection
}

func (w *soakClient) hangUp() {
	if w.nc != nil {
		_ = w.nc.Close()
		w.nc = nil
	}
}

// round sends one request, or two at once, and checks what comes back; it
// reports whether all answers were whole.
func (w *soakClient) round() bool {
	if w.nc == nil {
		nc, err := net.Dial("tcp", w.addr)
		if err != nil {
			w.t.Errorf("dial: %v", err)
			return false
		}
		w.nc, w.br, w.history = nc, bufio.NewReader(nc), nil
	}
	_ = w.nc.SetDeadline(time.Now().Add(time.Minute))
	nonces := []string{w.nonce()}
	if w.r.IntN(8) == 0 {
		nonces = append(nonces, w.nonce())
	}
	var raw string
	kind := []string{"", "", "", "", "", "", "/slow", "/reset", "/half", "/early", "/cut"}[w.r.IntN(11)]
	for _, nonce := range nonces {
		raw += w.request(nonce, kind)
		w.history = append(w.history, nonce+kind)
	}
	switch w.r.IntN(30) {
	case 0: // leave in the middle
		_, _ = io.WriteString(w.nc, raw[:w.r.IntN(len(raw))])
		w.hangUp()
		return false
	case 1: // reset while an answer is awaited
		_, _ = io.WriteString(w.nc, raw)
		_ = w.nc.(*net.TCPConn).SetLinger(0)
		w.hangUp()
		return false
	}
	slowly := w.r.IntN(30) == 0
	var writer sync.WaitGroup
	nc := w.nc
	writer.Go(func() { write(nc, raw, slowly) })
	defer writer.Wait()
	for _, nonce := range nonces {
		if !w.check(nonce, kind) {
			w.hangUp()
			return false
		}
	}
	return true
}

// write sends raw while answers are read: who sends two requests at once and
// reads only then may wait for ever. What fails shows in the answers.
func write(nc net.Conn, raw string, slowly bool) {
	for len(raw) > 0 {
		n := len(raw)
		if slowly {
			n = 1 + n/4
		}
		if _, err := io.WriteString(nc, raw[:n]); err != nil {
			return
		}
		raw = raw[n:]
		runtime.Gosched()
	}
}

func (w *soakClient) nonce() string {
	return string(rune('a'+w.r.IntN(26))) + strconv.Itoa(1_000_000+w.r.IntN(9_000_000))
}

func (w *soakClient) request(nonce, kind string) string {
	framing := []string{"length", "chunked", "close"}[w.r.IntN(3)]
	method := []string{"GET", "POST", "PUT"}[w.r.IntN(3)]
	size := 0
	if method != "GET" {
		size = []int{1, 100, 1_000, 5_000, 30_000}[w.r.IntN(5)]
		if w.r.IntN(40) == 0 {
			size = 150_000
		}
	}
	head := fmt.Sprintf("%s /%s%s HTTP/1.1\r\nHost: h\r\nX-Nonce: %s\r\nX-Length: %d\r\n", method, framing, kind, nonce, size)
	body := strings.Repeat(nonce[:1], size)
	switch {
	case method == "GET":
		return head + "\r\n"
	case w.r.IntN(2) == 0:
		return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, size, body)
	}
	first := w.r.IntN(size) + 1
	out := fmt.Sprintf("%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", head, first, body[:first])
	if first < size {
		out += fmt.Sprintf("%x\r\n%s\r\n", size-first, body[first:])
	}
	return out + "0\r\n\r\n"
}

// followsCut reports whether the request came right after one to be cut. The answer to
// that may arrive whole while its exchange is not over yet; a cut then takes the
// connection away from the request behind it, which has not begun.
func (w *soakClient) followsCut(nonce string) bool {
	for i, earlier := range w.history {
		if id, _, _ := strings.Cut(earlier, "/"); id == nonce {
			return i > 0 && strings.HasSuffix(w.history[i-1], "/cut")
		}
	}
	return false
}

// check reads one answer. What is whole must belong to the nonce; what is not
// must have been broken on purpose.
func (w *soakClient) check(nonce, kind string) bool {
	resp, err := http.ReadResponse(w.br, nil)
	if err != nil {
		if (kind == "" || kind == "/slow") && !w.followsCut(nonce) {
			last := len(w.history)
			for _, earlier := range w.history[max(0, last-4):] {
				id, _, _ := strings.Cut(earlier, "/")
				outcome, _ := w.outcomes.Load(id)
				w.t.Logf("%s: %v", earlier, outcome)
			}
			w.t.Errorf("no answer to %s: %v", nonce, err)
		}
		return false
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		if kind == "" || kind == "/slow" {
			w.t.Errorf("the answer to %s broke off: %v", nonce, err)
		}
		return false
	}
	if resp.StatusCode != 200 {
		// An idle connection may die just when a request goes out on it.
		if resp.StatusCode != 502 {
			w.t.Errorf("answer %d %s to %s", resp.StatusCode, body, nonce)
		}
		return !resp.Close
	}
	if kind == "/half" && resp.Header.Get("X-Nonce") == nonce && strings.HasPrefix(soakBody(nonce), string(body)) {
		return !resp.Close // cut, but its framing was the end of the connection
	}
	if resp.Header.Get("X-Nonce") != nonce || resp.Header.Get("X-Front-Nonce") != nonce || string(body) != soakBody(nonce) {
		w.t.Errorf("%s was answered with %q, %d bytes", nonce, resp.Header, len(body))
	}
	return !resp.Close
}
