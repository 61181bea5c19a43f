package http1

import (
	"strings"
	"testing"
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
