package http1

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
)

// TestRequestThatNobodyActedOnMayGoElsewhere: a second Forward sends the whole
// request again, and is offered only where that can do nothing twice.
func TestRequestThatNobodyActedOnMayGoElsewhere(t *testing.T) {
	down := &Upstream{Dial: func(context.Context) (net.Conn, error) { return nil, errors.New("refused") }}
	dies := scripted(t, func(_ int, c *client) { c.request() })
	talks := scripted(t, func(_ int, c *client) { c.request(); c.reply("HTTP/1.1 20") })
	big := strings.Repeat("x", 300<<10)
	for _, c := range []struct {
		name, method, body string
		first              *Upstream
		again              bool
	}{
		{"refused", "POST", "abc", down, true},
		{"refused, large body", "POST", big, down, true},
		{"busy", "POST", "abc", &Upstream{MaxConns: 1, open: 1}, true},
		{"dies on a read", "GET", "", upstreamTo(t, dies.addr()), true},
		{"dies on a write", "POST", "abc", upstreamTo(t, dies.addr()), false},
		{"dies on a large write that may come twice", "PUT", big, upstreamTo(t, dies.addr()), false},
		{"dies after it began to answer", "GET", "", upstreamTo(t, talks.addr()), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			up := scripted(t, echoing)
			second := upstreamTo(t, up.addr())
			addr := start(t, &Server{Handler: func(x *Exchange) {
				res, err := x.Forward(c.first, nil)
				if err == nil || res.Again != c.again {
					t.Errorf("first: %+v, %v", res, err)
				}
				if res.Again {
					res, err = x.Forward(second, nil)
				}
				if status := answerStatus(res, err); status != 0 {
					_ = x.Respond(status, nil, nil)
				}
			}})
			for range 2 {
				length := "Content-Length: " + itoa(len(c.body)) + "\r\n"
				resp, body := dial(t, addr).send(c.method + " / HTTP/1.1\r\nHost: h\r\n" + length + "\r\n" + c.body).answer(c.method)
				switch {
				case !c.again && resp.StatusCode != 502:
					t.Errorf("%d %q", resp.StatusCode, body)
				case c.again && !strings.HasPrefix(body, c.method+" / h "+itoa(len(c.body))+" "):
					t.Errorf("arrived: %q", body)
				}
			}
		})
	}
}
