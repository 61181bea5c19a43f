package proxy_test

import (
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenward/enforce/canon"
	"tokenward/proxy"
)

// corsWorld has CORS on GET,HEAD /accounts/{account}, and for all origins on
// /healthz.
func corsWorld(t testing.TB, w *world) {
	t.Helper()
	w.rules.Routes = make([]proxy.RouteOptions, len(routes))
	for i, o := range map[int]proxy.CORSOptions{
		3: {Origins: []string{"https://app.example", "http://localhost:3000"}, Headers: []string{"Api-Token", "X-Mine"}, Expose: []string{"X-Upstream", "X-Request-Id"}, MaxAge: time.Hour, Credentials: true},
		0: {Origins: []string{"*"}},
	} {
		c, faults := proxy.NewCORS(o)
		if faults != nil {
			t.Fatal(faults)
		}
		w.rules.Routes[i].CORS = c
	}
	w.guard.SetRules(w.rules)
}

// corsOf is what an answer says about origins, and Vary.
func corsOf(h http.Header) string {
	var out []string
	for name, values := range h {
		if name = strings.ToLower(name); strings.HasPrefix(name, "access-control-") || name == "vary" {
			out = append(out, strings.TrimPrefix(name, "access-control-")+"="+strings.Join(values, "+"))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func TestCORS(t *testing.T) {
	const allowed = "allow-credentials=true; allow-origin=https://app.example; expose-headers=X-Upstream, X-Request-Id; vary=Origin"
	eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
		corsWorld(t, w)
		say := func(method, target string, fields ...string) string {
			return method + " " + target + " HTTP/1.1\r\nHost: a\r\n" + strings.Join(append(fields, ""), "\r\n") + "\r\n"
		}
		token := "Api-Token: " + w.secrets["full"]
		for _, c := range []struct {
			name, raw string
			status    int
			cors      string
		}{
			{"preflight", say("OPTIONS", "/accounts/1", "Origin: https://app.example", "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: api-token,x-mine"), 204,
				"allow-credentials=true; allow-headers=Api-Token, X-Mine; allow-methods=GET; allow-origin=https://app.example; max-age=3600; vary=Origin"},
			{"preflight without headers", say("OPTIONS", "/accounts/1", "Origin: http://localhost:3000", "Access-Control-Request-Method: HEAD"), 204,
				"allow-credentials=true; allow-headers=Api-Token, X-Mine; allow-methods=HEAD; allow-origin=http://localhost:3000; max-age=3600; vary=Origin"},
			{"preflight with a broken token", say("OPTIONS", "/accounts/1", "Origin: https://app.example", "Access-Control-Request-Method: GET", "Api-Token: x"), 204,
				"allow-credentials=true; allow-headers=Api-Token, X-Mine; allow-methods=GET; allow-origin=https://app.example; max-age=3600; vary=Origin"},
			{"another origin", say("OPTIONS", "/accounts/1", "Origin: https://evil.example", "Access-Control-Request-Method: GET"), 403, "vary=Origin"},
			{"origin of the same name by http", say("OPTIONS", "/accounts/1", "Origin: http://app.example", "Access-Control-Request-Method: GET"), 403, "vary=Origin"},
			{"origin that begins so", say("OPTIONS", "/accounts/1", "Origin: https://app.example.evil.example", "Access-Control-Request-Method: GET"), 403, "vary=Origin"},
			{"null origin", say("OPTIONS", "/accounts/1", "Origin: null", "Access-Control-Request-Method: GET"), 403, "vary=Origin"},
			{"header that is not listed", say("OPTIONS", "/accounts/1", "Origin: https://app.example", "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: x-token-id"), 403, "vary=Origin"},
			{"method of a route without CORS", say("OPTIONS", "/accounts/1", "Origin: https://app.example", "Access-Control-Request-Method: POST"), 401, ""},
			{"method of no route", say("OPTIONS", "/accounts/1", "Origin: https://app.example", "Access-Control-Request-Method: DELETE"), 401, ""},
			{"path of no route", say("OPTIONS", "/nothing", "Origin: https://app.example", "Access-Control-Request-Method: GET"), 401, ""},
			{"two origins", say("OPTIONS", "/accounts/1", "Origin: https://app.example", "Origin: https://evil.example", "Access-Control-Request-Method: GET"), 401, ""},
			{"OPTIONS without a question", say("OPTIONS", "/accounts/1", "Origin: https://app.example"), 401, ""},
			{"OPTIONS with a token", say("OPTIONS", "/accounts/1", "Origin: https://app.example", token), 403, ""},
			{"irregular path", say("OPTIONS", "/accounts/1%2f2", "Origin: https://app.example", "Access-Control-Request-Method: GET"), 400, ""},
			{"everybody", say("OPTIONS", "/healthz", "Origin: https://any.example", "Access-Control-Request-Method: GET"), 204, "allow-methods=GET; allow-origin=*"},

			{"answer", say("GET", "/accounts/1", "Origin: https://app.example", token), 200, allowed},
			{"answer to another origin", say("GET", "/accounts/1", "Origin: https://evil.example", token), 200, "vary=Origin"},
			{"answer without an origin", say("GET", "/accounts/1", token), 200, "vary=Origin"},
			{"answer for everybody", say("GET", "/healthz", "Origin: https://any.example"), 200, "allow-origin=*"},
			{"refusal can be read", say("GET", "/accounts/1", "Origin: https://app.example"), 401, allowed},
			{"refusal of a scope can be read", say("GET", "/accounts/1", "Origin: https://app.example", "Api-Token: "+w.secrets["scopeless"]), 403, allowed},
			{"refusal for another origin cannot", say("GET", "/accounts/1", "Origin: https://evil.example"), 401, "vary=Origin"},
			{"route without CORS", say("GET", "/echo/", "Origin: https://app.example", token), 200, ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				before := w.upstream.count()
				resp, body := ask(t, addr, c.raw)
				if resp.StatusCode != c.status {
					t.Fatalf("status %d, want %d: %s", resp.StatusCode, c.status, body)
				}
				if got := corsOf(resp.Header); got != c.cors {
					t.Errorf("got  %s\nwant %s", got, c.cors)
				}
				if c.status == 204 && (body != "" || resp.Header.Get("X-Request-Id") == "") {
					t.Errorf("preflight with body %q and header %v", body, resp.Header)
				}
				if c.status != 200 && w.upstream.count() != before {
					t.Errorf("the upstream saw %q", w.upstream.last())
				}
			})
		}
	})
}

// TestUpstreamHasNoSayAboutOrigins on a route with CORS; on others it has.
func TestUpstreamHasNoSayAboutOrigins(t *testing.T) {
	upstream := urlOf(t, startServer(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		for _, name := range []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "access-control-expose-headers", "Access-Control-Max-Age"} {
			rw.Header().Set(name, "*")
		}
		rw.Header().Set("Vary", "Accept")
		rw.Header().Set(http.TrailerPrefix+"X-Sum", "1")
		rw.Header().Set(http.TrailerPrefix+"Access-Control-Allow-Origin", "*")
		fmt.Fprint(rw, "ok")
	})))
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			w := newWorld(t, canon.Options{})
			w.rules.Default.Upstreams = upstreamsAt(t, nil, upstream)
			addr := d.open(t, w)
			corsWorld(t, w)
			resp, _ := ask(t, addr, "GET /accounts/1 HTTP/1.1\r\nHost: a\r\nOrigin: https://evil.example\r\nApi-Token: "+w.secrets["full"]+"\r\n\r\n")
			if got := corsOf(resp.Header); got != "vary=Accept+Origin" {
				t.Errorf("with CORS: %s", got)
			}
			if got := corsOf(resp.Trailer); got != "" || resp.Trailer.Get("X-Sum") != "1" {
				t.Errorf("with CORS, after the body: %v", resp.Trailer)
			}
			resp, _ = ask(t, addr, "GET /echo/ HTTP/1.1\r\nHost: a\r\nOrigin: https://evil.example\r\nApi-Token: "+w.secrets["full"]+"\r\n\r\n")
			if got := corsOf(resp.Header); got != "allow-credentials=*; allow-origin=*; expose-headers=*; max-age=*; vary=Accept" {
				t.Errorf("without: %s", got)
			}
		})
	}
}

// TestInterimAnswersHaveNoSayAboutOrigins, nor about the request's id.
func TestInterimAnswersHaveNoSayAboutOrigins(t *testing.T) {
	h := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		for _, name := range []string{"Access-Control-Allow-Origin", "X-Request-Id", "Link"} {
			rw.Header().Set(name, "theirs")
		}
		rw.WriteHeader(http.StatusEarlyHints)
	})
	for _, upstream := range []*url.URL{urlOf(t, startServer(t, h)), serveH2C(t, h)} {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("HTTP/2 %v to %s", http2, upstream.Scheme), func(t *testing.T) {
				w := newWorld(t, canon.Options{})
				w.rules.Default.Upstreams = upstreamsAt(t, nil, upstream)
				addr := openProxy(t, w, nil)
				corsWorld(t, w)
				for path, want := range map[string]string{"/accounts/1": "", "/echo/": "theirs"} {
					var got []http.Header
					ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
						got = append(got, http.Header(h))
						return nil
					}})
					req, err := http.NewRequestWithContext(ctx, "GET", "http://"+addr+path, nil)
					if err != nil {
						t.Fatal(err)
					}
					transport := &http.Transport{Protocols: new(http.Protocols)}
					transport.Protocols.SetHTTP1(!http2)
					transport.Protocols.SetUnencryptedHTTP2(http2)
					resp, err := withToken{transport, w.secrets["full"]}.RoundTrip(req)
					if err != nil {
						t.Fatal(err)
					}
					_ = resp.Body.Close()
					transport.CloseIdleConnections()
					if resp.StatusCode != 200 || len(got) != 1 || got[0].Get("Link") != "theirs" || got[0].Get("X-Request-Id") != "" || got[0].Get("Access-Control-Allow-Origin") != want {
						t.Errorf("%s: %d after %v", path, resp.StatusCode, got)
					}
				}
			})
		}
	}
}

func TestCORSNeverCombinesWildcardAndCredentials(t *testing.T) {
	for _, o := range []proxy.CORSOptions{
		{}, {Origins: []string{"*"}, Credentials: true}, {Origins: []string{"*", "https://a"}}, {Origins: []string{"null"}}, {Origins: []string{"https://a/"}}, {Origins: []string{"https://A"}},
		{Origins: []string{"https://a:443"}}, {Origins: []string{"http://a:80"}}, {Origins: []string{"a"}}, {Origins: []string{"https://"}}, {Origins: []string{"https://u@a"}}, {Origins: []string{"https://*.a"}},
		{Origins: []string{"https://a"}, Headers: []string{"*"}}, {Origins: []string{"https://a"}, Expose: []string{"a\r\nb"}}, {Origins: []string{"https://a"}, Methods: []string{"get"}}, {Origins: []string{"https://a"}, MaxAge: 25 * time.Hour},
	} {
		if c, faults := proxy.NewCORS(o); len(faults) == 0 || c != nil {
			t.Errorf("%+v is taken", o)
		}
	}
	for _, origin := range []string{"https://a", "https://a.b-c.example", "http://localhost:3000", "http://[::1]:8080", "https://a:8443", "capacitor://localhost"} {
		if _, faults := proxy.NewCORS(proxy.CORSOptions{Origins: []string{origin}}); faults != nil {
			t.Errorf("%s: %v", origin, faults)
		}
	}
}
