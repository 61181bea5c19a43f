//go:build !race

package proxy_test

import (
	"bytes"
	"math"
	"net"
	"runtime"
	"testing"
	"time"

	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/tokenstore"
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
	addr := openWire(t, w)
	allocatesNothing(t, addr, request("GET", "/accounts/1?a=b", w.secrets["full"], "", "Accept: */*"), "HTTP/1.1 200 OK\r\n", "\r\n\r\nok")
}

// TestRefusedRequestAllocatesNothing: who wants to wear us out shall not have the garbage
// collector's help.
func TestRefusedRequestAllocatesNothing(t *testing.T) {
	unknown := tokenstore.NewSecret("tw").Reveal()
	for name, c := range map[string]struct {
		failures uint64 // a minute that one address is allowed; 0: any
		path     string
		token    string // a name, or the text of one
		status   string
	}{
		"garbage":                {0, "/accounts/1", "tw_garbage", "401 Unauthorized"},
		"unknown":                {0, "/accounts/1", unknown, "401 Unauthorized"},
		"unknown, and too often": {1, "/accounts/1", unknown, "429 Too Many Requests"},
		"expired":                {0, "/accounts/1", "expired", "401 Unauthorized"},
		"from elsewhere":         {0, "/accounts/1", "elsewhere", "403 Forbidden"},
		"without the scope":      {0, "/accounts/1", "scopeless", "403 Forbidden"},
		"for another account":    {0, "/accounts/2", "account1", "403 Forbidden"},
		"of no route":            {0, "/nowhere", "full", "403 Forbidden"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, canon.Options{})
			w.rules.Observe = nil
			w.guard.Engine.SetLimits(enforce.LimitOptions{Failures: enforce.FailureLimit{PerMinute: c.failures}})
			token := c.token
			if secret, ok := w.secrets[token]; ok {
				token = secret
			}
			addr := openWire(t, w)
			if c.failures > 0 {
				ask(t, addr, request("GET", c.path, token, ""))
			}
			allocatesNothing(t, addr, request("GET", c.path, token, "", "Accept: */*"), "HTTP/1.1 "+c.status+"\r\n", "\"}\n")
		})
	}
}

// allocatesNothing sends the same request again and again on one connection. Each answer
// begins and ends as told.
func allocatesNothing(t *testing.T, addr, raw, begin, end string) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	ask, first, last, answer := []byte(raw), []byte(begin), []byte(end), make([]byte, 4096)
	exchange := func() {
		if _, err := nc.Write(ask); err != nil {
			t.Fatal(err)
		}
		n := 0
		for !bytes.HasSuffix(answer[:n], last) {
			m, err := nc.Read(answer[n:])
			if n += m; err != nil {
				t.Fatalf("%v after %q", err, answer[:n])
			}
		}
		if !bytes.HasPrefix(answer[:n], first) {
			t.Fatalf("answer %q", answer[:n])
		}
	}
	for range 200 {
		exchange()
	}
	// What else goes on in the process, as in a store that was just opened, allocates in one
	// round or another; what a request allocates is in each.
	const rounds, n = 5, 1000
	least := math.Inf(1)
	for range rounds {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range n {
			exchange()
		}
		runtime.ReadMemStats(&after)
		least = min(least, float64(after.Mallocs-before.Mallocs)/n)
	}
	if least > 0.2 {
		t.Errorf("%.2f allocations a request in the least of %d rounds", least, rounds)
	}
}
