package proxy_test

import (
	"net/http"
	"regexp"
	"testing"

	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/proxy"
	"tokenward/tokenstore"
)

// TestRateLimitFields looks at both fields of answers at every door, for those that
// a limit refused and, where the rules say so, for all.
func TestRateLimitFields(t *testing.T) {
	for _, c := range []struct {
		name         string
		all          bool
		limits       tokenstore.Limits
		first, after [2]string // RateLimit-Policy and RateLimit, as regular expressions
		retry        string
	}{
		{name: "rate", limits: tokenstore.Limits{Rate: 0.1, Burst: 1},
			after: [2]string{`"rate";q=1;w=10`, `"rate";r=0;t=10`}, retry: "10"},
		{name: "uses", limits: tokenstore.Limits{Uses: 1},
			after: [2]string{`"uses";q=1`, `"uses";r=0`}},
		{name: "month", limits: tokenstore.Limits{Quotas: []tokenstore.Quota{{Count: 1, Per: tokenstore.PerMonth}}},
			after: [2]string{`"month";q=1;w=2678400`, `"month";r=0;t=\d+`}, retry: `\d+`},
		{name: "all", all: true, limits: tokenstore.Limits{Rate: 0.1, Burst: 5, Concurrent: 2, Uses: 1},
			first: [2]string{`"rate";q=5;w=50, "uses";q=1, "concurrent";q=2;qu="concurrent-requests"`, `"rate";r=4;t=10, "uses";r=0, "concurrent";r=1`},
			after: [2]string{`"rate";q=5;w=50, "uses";q=1, "concurrent";q=2;qu="concurrent-requests"`, `"rate";r=4;t=10, "uses";r=0, "concurrent";r=2`}},
		// Integers of structured fields have 15 digits: with more, a reader ignores the field.
		{name: "very large", all: true, limits: tokenstore.Limits{Rate: 1e-6, Burst: 1<<53 - 1, Uses: 1<<53 - 1, Concurrent: 1<<53 - 1},
			first: [2]string{`"rate";q=999999999999999;w=9000000000, "uses";q=999999999999999, "concurrent";q=999999999999999;qu="concurrent-requests"`, `"rate";r=999999999999999;t=1000000, "uses";r=999999999999999, "concurrent";r=999999999999999`},
			after: [2]string{`"rate";q=999999999999999;w=9000000000, .*`, `"rate";r=999999999999999;t=1000000, .*`}},
		{name: "all of no limit", all: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
				w.mint(t, "told", func(t *tokenstore.Token) { t.Limits = c.limits })
				rules := *w.rules
				rules.LimitHeaders = c.all
				w.guard.SetRules(&rules)
				see := func(want [2]string, retry string) {
					t.Helper()
					resp, _ := ask(t, addr, request("GET", "/echo/", w.secrets["told"], ""))
					for i, name := range []string{"RateLimit-Policy", "RateLimit"} {
						values := resp.Header.Values(name)
						if want[i] == "" && len(values) == 0 {
							continue
						}
						if len(values) != 1 || !regexp.MustCompile("^"+want[i]+"$").MatchString(values[0]) {
							t.Errorf("%d: %s is %q, want %s", resp.StatusCode, name, values, want[i])
						}
					}
					if got := resp.Header.Get("Retry-After"); !regexp.MustCompile("^" + retry + "$").MatchString(got) {
						t.Errorf("%d: Retry-After is %q, want %s", resp.StatusCode, got, retry)
					}
				}
				see(c.first, "")
				see(c.after, c.retry)
			})
		})
	}
}

// TestFailuresOfOneClientAreLimited: who guesses is told to wait, and who comes from
// the same address with a valid token is not.
func TestFailuresOfOneClientAreLimited(t *testing.T) {
	eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
		w.guard.Engine.SetLimits(enforce.LimitOptions{Failures: enforce.FailureLimit{PerMinute: 1, Burst: 2}})
		for i, want := range []int{401, 401, 429, 429} {
			resp, _ := ask(t, addr, request("GET", "/echo/", tokenstore.NewSecret("tw").Reveal(), ""))
			if resp.StatusCode != want || (want == 429) != (resp.Header.Get("Retry-After") != "") {
				t.Errorf("failure %d: %d, retry after %q", i+1, resp.StatusCode, resp.Header.Get("Retry-After"))
			}
			if resp, _ := ask(t, addr, request("GET", "/echo/", w.secrets["full"], "")); resp.StatusCode != 200 {
				t.Errorf("a valid token after failure %d: %d", i+1, resp.StatusCode)
			}
		}
		if resp, _ := ask(t, addr, "GET /echo/ HTTP/1.1\r\nHost: a\r\n\r\n"); resp.StatusCode != 401 {
			t.Errorf("without a credential: %d", resp.StatusCode)
		}
	})
}

// TestConcurrencyLastsAsLongAsTheExchange: the place is held while the answer is
// awaited, and free again once the client has seen its end.
func TestConcurrencyLastsAsLongAsTheExchange(t *testing.T) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			h, arrived, release := holding(t)
			w := newWorld(t, canon.Options{})
			w.mint(t, "one", func(t *tokenstore.Token) { t.Limits = tokenstore.Limits{Concurrent: 1} })
			w.rules.Default = proxy.RouteOptions{Upstreams: upstreamsAt(t, nil, urlOf(t, startServer(t, h)))}
			addr := d.open(t, w)
			raw := request("GET", "/echo/", w.secrets["one"], "")
			done := make(chan int, 1)
			go func() {
				resp, _ := ask(t, addr, raw)
				done <- resp.StatusCode
			}()
			<-arrived
			if resp, body := ask(t, addr, raw); resp.StatusCode != http.StatusTooManyRequests {
				t.Errorf("a second at once: %d %s", resp.StatusCode, body)
			}
			close(release)
			if status := <-done; status != 200 {
				t.Errorf("the first: %d", status)
			}
			for range 20 { // whoever has seen an answer's end can rely on its place
				if resp, body := ask(t, addr, raw); resp.StatusCode != 200 {
					t.Errorf("one after the other: %d %s", resp.StatusCode, body)
				}
			}
		})
	}
}
