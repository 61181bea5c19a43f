package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenward/enforce/canon"
	"tokenward/proxy"
)

// holding is an upstream whose answers wait until they are let go.
func holding(t testing.TB) (h http.Handler, arrived chan struct{}, release chan struct{}) {
	t.Helper()
	arrived, release = make(chan struct{}, 100), make(chan struct{})
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
		fmt.Fprint(rw, "done")
	}), arrived, release
}

// TestInFlightIsBounded: the request that is too many is refused at once, and
// another fits as soon as one has left.
func TestInFlightIsBounded(t *testing.T) {
	for _, c := range []struct {
		name   string
		bound  func(*proxy.Ruleset)
		others int // status of another route meanwhile
	}{
		{"all", func(r *proxy.Ruleset) { r.InFlight = 2 }, 503},
		{"route", func(r *proxy.Ruleset) {
			r.Routes = make([]proxy.RouteOptions, len(routes))
			r.Routes[2].InFlight = 2
		}, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, d := range doors {
				t.Run(d.name, func(t *testing.T) {
					h, arrived, release := holding(t)
					w := newWorld(t, canon.Options{})
					w.rules.Default = proxy.RouteOptions{Upstreams: upstreamsAt(t, nil, urlOf(t, startServer(t, h)))}
					c.bound(w.rules)
					addr := d.open(t, w)
					raw := request("GET", "/echo/", w.secrets["full"], "")
					done := make(chan int, 2)
					for range 2 {
						go func() {
							resp, _ := ask(t, addr, raw)
							done <- resp.StatusCode
						}()
						<-arrived
					}
					resp, body := ask(t, addr, raw)
					if resp.StatusCode != 503 || !strings.Contains(body, `"code":"overloaded"`) || resp.Header.Get("Retry-After") == "" {
						t.Errorf("%d %s", resp.StatusCode, body)
					}
					if !slices.Contains(w.counted().refused, "overloaded") {
						t.Errorf("counted %v", w.counted().refused)
					}
					// A reload must not forget who is there.
					again := *w.rules
					w.guard.SetRules(&again)
					if resp, _ := ask(t, addr, raw); resp.StatusCode != 503 {
						t.Errorf("after a reload: %d", resp.StatusCode)
					}
					close(release)
					for range 2 {
						if status := <-done; status != 200 {
							t.Errorf("held request: %d", status)
						}
					}
					if c.name == "all" { // of it a request is part until nothing of it is left
						waitFor(t, func() bool { return w.guard.InFlight() == 0 })
					}
					if resp, _ := ask(t, addr, raw); resp.StatusCode != 200 {
						t.Errorf("afterwards: %d", resp.StatusCode)
					}
				})
			}
		})
	}
}

// patience bounds every wait of a test for something that must happen. It only ends
// a test that hangs, on however busy a machine.
const patience = time.Minute

// waitFor polls until ok holds.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) { //nolint:forbidigo // what the kernel does with a socket is seen by looking only
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
	}
}

// TestFullRouteChargesNoToken: what is refused for lack of room is not counted
// against the token's rate.
func TestFullRouteChargesNoToken(t *testing.T) {
	eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
		h, arrived, release := holding(t)
		w.rules.Default = proxy.RouteOptions{Upstreams: upstreamsAt(t, nil, urlOf(t, startServer(t, h)))}
		w.rules.Routes = make([]proxy.RouteOptions, len(routes))
		w.rules.Routes[2].InFlight = 1
		w.guard.SetRules(w.rules)
		done := make(chan struct{})
		go func() {
			defer close(done)
			ask(t, addr, request("GET", "/echo/", w.secrets["full"], ""))
		}()
		<-arrived
		raw := request("GET", "/echo/", w.secrets["limited"], "")
		if resp, _ := ask(t, addr, raw); resp.StatusCode != 503 {
			t.Errorf("while full: %d", resp.StatusCode)
		}
		close(release)
		<-done
		if resp, _ := ask(t, addr, raw); resp.StatusCode != 200 {
			t.Errorf("afterwards: %d", resp.StatusCode)
		}
	})
}

// TestObservedRefusalsCountAmongThoseInFlight: the bound is the upstream's
// protection, not the judgement's.
func TestObservedRefusalsCountAmongThoseInFlight(t *testing.T) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			h, arrived, release := holding(t)
			w := newWorld(t, canon.Options{})
			w.rules.Default = proxy.RouteOptions{Upstreams: upstreamsAt(t, nil, urlOf(t, startServer(t, h))), ObserveUntil: time.Now().Add(time.Hour)}
			w.rules.Routes = make([]proxy.RouteOptions, len(routes))
			w.rules.Routes[2].InFlight = 1
			addr := d.open(t, w)
			raw := "GET /echo/ HTTP/1.1\r\nHost: a\r\n\r\n" // bears no token
			done := make(chan struct{})
			go func() { defer close(done); ask(t, addr, raw) }()
			<-arrived
			if resp, body := ask(t, addr, raw); resp.StatusCode != 503 || !strings.Contains(body, `"code":"overloaded"`) {
				t.Errorf("while full: %d %s", resp.StatusCode, body)
			}
			close(release)
			<-done
			if resp, _ := ask(t, addr, raw); resp.StatusCode != 200 {
				t.Errorf("afterwards: %d", resp.StatusCode)
			}
		})
	}
}

func TestBodyBytesAreBounded(t *testing.T) {
	for _, d := range doors {
		for _, h2c := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, h2c %v", d.name, h2c), func(t *testing.T) {
				w := newWorld(t, canon.Options{})
				w.rules.Default.BodyBytes = 5
				if h2c {
					w.rules.Default.Upstreams = upstreamsAt(t, nil, serveH2C(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
						body, err := io.ReadAll(r.Body)
						if err == nil {
							fmt.Fprintf(rw, "hello %s", body)
						}
					})))
				}
				w.rules.Routes = make([]proxy.RouteOptions, len(routes))
				w.rules.Routes[4].BodyBytes = -1 // POST /accounts/{account}
				addr := d.open(t, w)
				for _, c := range []struct {
					target, body string
					chunked      bool
					status       int
				}{
					{"/echo/", "abcde", false, 200}, {"/echo/", "abcdef", false, 413}, {"/echo/", "abcde", true, 200}, {"/echo/", "abcdef", true, 413},
					{"/accounts/1", "abcdef", false, 200}, {"/accounts/1", "abcdef", true, 200},
				} {
					raw := request("POST", c.target, w.secrets["full"], c.body)
					switch {
					case c.chunked && strings.HasPrefix(addr, "h2"):
						raw = strings.Replace(raw, fmt.Sprintf("Content-Length: %d\r\n", len(c.body)), "", 1)
					case c.chunked:
						head, _, _ := strings.Cut(raw, "Content-Length")
						raw = head + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n2\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", c.body[:2], len(c.body)-2, c.body[2:])
					}
					resp, body := ask(t, addr, raw)
					if resp.StatusCode != c.status || c.status == 413 && !strings.Contains(body, "content_too_large") || c.status == 200 && body != "hello "+c.body {
						t.Errorf("%+v: %d %s", c, resp.StatusCode, body)
					}
				}
				if n := w.counted(); !slices.Contains(n.refused, "content_too_large") || len(n.failed) > 0 {
					t.Errorf("counted %+v", n)
				}
			})
		}
	}
}

// TestRouteHasItsOwnTimeouts: the answer comes later than the default allows.
func TestRouteHasItsOwnTimeouts(t *testing.T) {
	for _, d := range doors {
		for _, h2c := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, h2c %v", d.name, h2c), func(t *testing.T) {
				h, arrived, release := holding(t)
				w := newWorld(t, canon.Options{})
				upstream := urlOf(t, startServer(t, h))
				if h2c {
					upstream = serveH2C(t, h)
				}
				w.rules.Default = proxy.RouteOptions{Upstreams: upstreamsAt(t, nil, upstream), ResponseHeader: 50 * time.Millisecond}
				w.rules.Routes = make([]proxy.RouteOptions, len(routes))
				w.rules.Routes[3].ResponseHeader = -1 // GET,HEAD /accounts/{account}
				addr := d.open(t, w)
				patient := make(chan int)
				go func() {
					resp, _ := ask(t, addr, request("GET", "/accounts/1", w.secrets["full"], ""))
					patient <- resp.StatusCode
				}()
				<-arrived
				for _, body := range []string{"", "abc"} {
					resp, text := ask(t, addr, request("POST", "/echo/", w.secrets["full"], body))
					if resp.StatusCode != 504 || !strings.Contains(text, "upstream_timeout") {
						t.Errorf("impatient: %d %s", resp.StatusCode, text)
					}
				}
				close(release)
				if status := <-patient; status != 200 {
					t.Errorf("patient: %d", status)
				}
			})
		}
	}
}

// TestStalledAnswerIsCut: an upstream that stops in the middle of its answer does
// not hold the client for ever, nor look complete.
func TestStalledAnswerIsCut(t *testing.T) {
	for _, d := range doors {
		for _, framing := range []string{"Content-Length: 100\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"} {
			t.Run(d.name+" "+framing[:8], func(t *testing.T) {
				w := newWorld(t, canon.Options{})
				done := make(chan struct{})
				t.Cleanup(func() { close(done) })
				upstream := talking(t, func(nc net.Conn) {
					_, _ = http.ReadRequest(bufio.NewReader(nc))
					fmt.Fprint(nc, "HTTP/1.1 200 OK\r\n"+framing)
					<-done
				})
				w.rules.Default = proxy.RouteOptions{Upstreams: upstreamsAt(t, nil, upstream), Stall: 500 * time.Millisecond}
				if whole, body := isWhole(t, d.open(t, w), request("GET", "/echo/", w.secrets["full"], "")); whole || body != "abc" {
					t.Errorf("whole %v: %q", whole, body)
				}
			})
		}
	}
}

// isWhole asks, and reports whether the answer came to its end.
func isWhole(t testing.TB, addr, raw string) (bool, string) {
	t.Helper()
	if strings.Contains(addr, "://") {
		c := dialH2(t, addr)
		path := strings.Split(raw, " ")[1]
		_, secret, _ := strings.Cut(raw, "Api-Token: ")
		secret, _, _ = strings.Cut(secret, "\r\n")
		c.headers(true, ":method", "GET", ":scheme", "http", ":authority", "a", ":path", path, "api-token", secret)
		_, body, err := c.answer()
		return err == nil, body
	}
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(nc, raw); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		return false, ""
	}
	body, err := io.ReadAll(resp.Body)
	if isTimeout(err) {
		t.Fatal(err)
	}
	return err == nil, string(body)
}

// TestStalledUploadIsEnded: a client that stops in the middle of its body is told,
// and the upstream is let go.
func TestStalledUploadIsEnded(t *testing.T) {
	for _, d := range doors {
		for _, h2c := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, h2c %v", d.name, h2c), func(t *testing.T) {
				t.Parallel()
				gone := make(chan struct{}, 1)
				h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					if _, err := io.ReadAll(r.Body); err != nil {
						gone <- struct{}{}
					}
				})
				upstream := urlOf(t, startServer(t, h))
				if h2c {
					upstream = serveH2C(t, h)
				}
				w := newWorld(t, canon.Options{})
				w.rules.Default = proxy.RouteOptions{Upstreams: upstreamsAt(t, nil, upstream), Stall: 500 * time.Millisecond}
				addr := d.open(t, w)
				// More than is gathered before it is sent.
				sent := strings.Repeat("x", 100<<10)
				var resp *http.Response
				if strings.Contains(addr, "://") {
					c := dialH2(t, addr)
					c.headers(false, ":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/echo/", "content-length", "200000", "api-token", w.secrets["full"])
					for s := sent[:60<<10]; s != ""; s = s[min(len(s), 16000):] {
						c.data(false, s[:min(len(s), 16000)])
					}
					r, _, err := c.answer()
					if err != nil {
						t.Fatal(err)
					}
					resp = r
				} else {
					raw := strings.Replace(request("POST", "/echo/", w.secrets["full"], ""), "Content-Length: 0", "Content-Length: 200000", 1)
					resp, _ = ask(t, addr, raw+sent)
				}
				if resp.StatusCode != 408 {
					t.Errorf("status %d", resp.StatusCode)
				}
				select {
				case <-gone:
				case <-time.After(patience):
					t.Error("the upstream waits still")
				}
			})
		}
	}
}
