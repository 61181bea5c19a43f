//go:build !race

package proxy_test

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"tokenward/enforce"
	"tokenward/enforce/canon"
)

// steady is an upstream that answers every request with the same bytes.
func steady(nc net.Conn) {
	buf := make([]byte, 4096)
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\nok")
	for {
		n, err := nc.Read(buf)
		if err != nil || !bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
			return
		}
		if _, err := nc.Write(answer); err != nil {
			return
		}
	}
}

// TestForwardedRequestAllocatesNothing from the first byte that is read to the last
// that is written: with routes, timeouts, limits and failover resolved beforehand.
func TestForwardedRequestAllocatesNothing(t *testing.T) {
	w := newWorld(t, canon.Options{})
	w.rules.Observe = nil
	w.rules.Denied = func(d *enforce.Decision, _ *canon.Request, _ time.Time) { t.Errorf("refused: %v", d.Reason) }
	w.rules.InFlight = 100
	w.rules.Default.BodyBytes = 1000
	w.rules.Default.Upstreams = upstreamsAt(t, nil, talking(t, steady), refusing(t))
	w.rules.Routes = nil
	nc, err := net.Dial("tcp", openWire(t, w))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	raw, answer := []byte(request("GET", "/accounts/1?a=b", w.secrets["full"], "", "Accept: */*")), make([]byte, 4096)
	exchange := func() {
		if _, err := nc.Write(raw); err != nil {
			t.Fatal(err)
		}
		for n := 0; !bytes.HasSuffix(answer[:n], []byte("\r\n\r\nok")); {
			m, err := nc.Read(answer[n:])
			if n += m; err != nil {
				t.Fatal(err, io.ErrUnexpectedEOF)
			}
		}
	}
	for range 200 {
		exchange()
	}
	const n = 2000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		exchange()
	}
	runtime.ReadMemStats(&after)
	if per := float64(after.Mallocs-before.Mallocs) / n; per > 0.2 {
		t.Errorf("%.2f allocations a request", per)
	}
}
