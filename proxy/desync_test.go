package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tokenward/enforce/canon"
	"tokenward/proxy"
)

// program is a proxy of others that stands before or behind ours.
type program struct {
	name   string
	path   string
	config func(dir, listen, upstream string) string
	args   func(dir, file string) []string
}

var programs = []program{
	{"nginx", "/usr/sbin/nginx", func(dir, listen, upstream string) string {
		return fmt.Sprintf(`daemon off; pid %[1]s/pid; error_log %[1]s/error.log;
events {}
http {
  access_log off;
  client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
  underscores_in_headers on; ignore_invalid_headers off; merge_slashes off;
  upstream behind { server %[3]s max_fails=0; keepalive 8; }
  server {
    listen %[2]s;
    location / { proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_request_buffering off; proxy_buffering off; }
  }
}
`, dir, listen, upstream)
	}, func(dir, file string) []string {
		return []string{"-p", dir, "-e", filepath.Join(dir, "error.log"), "-c", file}
	}},
	{"haproxy", "/usr/sbin/haproxy", func(_, _, upstream string) string {
		return fmt.Sprintf(`defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
  retries 0
  http-reuse always
frontend in
  bind fd@3
  default_backend out
backend out
  server s %s
`, upstream)
	}, func(_, file string) []string { return []string{"-q", "-db", "-f", file} }},
}

// run starts the program and gives its address. Where it is missing the test is
// skipped, but not in CI.
func (p program) run(t *testing.T, upstream string) string {
	t.Helper()
	if _, err := os.Stat(p.path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed", p.path)
		}
		t.Skipf("%s is not installed", p.path)
	}
	// It takes over a socket that listens already: nobody else gets the port before it
	// does, and who connects before it is ready waits.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	listen := l.Addr().String()
	dir := t.TempDir()
	file := filepath.Join(dir, "config")
	if err := os.WriteFile(file, []byte(p.config(dir, listen, upstream)), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, p.path, p.args(dir, file)...)
	cmd.Cancel, cmd.WaitDelay = func() error { return cmd.Process.Signal(syscall.SIGTERM) }, patience
	cmd.ExtraFiles, cmd.Env = []*os.File{socket}, append(os.Environ(), "NGINX=3;") // as its own successor would get it
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s said: %s", p.name, said.String())
		}
	})
	return listen
}

// attacks are requests that parsers are known to cut at different places. $HIDDEN
// stands for a whole request, $LENGTH for the length of all that follows the head.
func attacks() []string {
	head := func(fields ...string) string {
		return "POST /echo/outer HTTP/1.1\r\nHost: a\r\n$ID" + strings.Join(append(fields, ""), "\r\n") + "\r\n"
	}
	out := []string{
		head("Content-Length: $LENGTH", "Transfer-Encoding: chunked") + "0\r\n\r\n$HIDDEN",
		head("Transfer-Encoding: chunked", "Content-Length: $LENGTH") + "0\r\n\r\n$HIDDEN",
		head("Content-Length: 4", "Transfer-Encoding: chunked") + "$SIZE\r\n$HIDDEN\r\n0\r\n\r\n",
		head("Content-Length: 0", "Content-Length: $LENGTH") + "$HIDDEN",
		head("Content-Length: $LENGTH", "Content-Length: 0") + "$HIDDEN",
		head("Content-Length: $LENGTH, 0") + "$HIDDEN",
		head("Content-Length: 0, $LENGTH") + "$HIDDEN",
		head("Content-Length: $LENGTH, $LENGTH") + "$HIDDEN",
		head("Content-Length: $LENGTH", "Connection: Content-Length") + "$HIDDEN",
		head("Transfer-Encoding: chunked", "Connection: Transfer-Encoding") + "$SIZE\r\n$HIDDEN\r\n0\r\n\r\n",
		strings.Replace(head("Transfer-Encoding: chunked"), "HTTP/1.1", "HTTP/1.0", 1) + "$SIZE\r\n$HIDDEN\r\n0\r\n\r\n",
		strings.Replace(head("Content-Length: $LENGTH"), "\r\n", "\n", -1) + "$HIDDEN",
		head("X-A: b\rContent-Length: 0", "Content-Length: $LENGTH") + "$HIDDEN",
		head("X-A: b\nContent-Length: 0", "Content-Length: $LENGTH") + "$HIDDEN",
		head("X-A: b\x00", "Content-Length: $LENGTH") + "$HIDDEN",
		head("X-A:", " Content-Length: 0", "Content-Length: $LENGTH") + "$HIDDEN",
		head("Content-Length: $LENGTH", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA") + "$HIDDEN",
		head("Content-Length: $LENGTH", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 9") + "$HIDDEN",
		head("Content-Length: $LENGTH", "Expect: 100-continue") + "$HIDDEN",
		strings.Replace(head("Content-Length: $LENGTH"), "POST", "GET", 1) + "$HIDDEN",
		strings.Replace(head("Content-Length: $LENGTH"), "POST", "HEAD", 1) + "$HIDDEN",
		strings.Replace(head("Content-Length: $LENGTH"), "/echo/outer HTTP/1.1", "/echo/outer HTTP/1.1 HTTP/1.1", 1) + "$HIDDEN",
		strings.Replace(head("Content-Length: $LENGTH"), "/echo/outer", "http://a/echo/outer", 1) + "$HIDDEN",
		strings.Replace(head("Content-Length: $LENGTH"), "Host: a", "Host: a\r\nHost: b", 1) + "$HIDDEN",
	}
	for _, length := range []string{"+$LENGTH", "-1", "0x$LENGTH", "00$LENGTH", "$LENGTH ", "\t$LENGTH", "$LENGTH\x0b", "\"$LENGTH\"", "$LENGTH;", "18446744073709551616", "$LENGTH.0", ""} {
		out = append(out, head("Content-Length: "+length)+"$HIDDEN")
	}
	for _, name := range []string{"Content-Length ", "Content_Length", "Content-Length\t", "\x0bContent-Length", "Content\xa0Length"} {
		out = append(out, head(name+": $LENGTH", "Content-Length: 0")+"", head(name+": 0", "Content-Length: $LENGTH")+"$HIDDEN")
	}
	for _, coding := range []string{"Transfer-Encoding : chunked", "Transfer-Encoding:\tchunked", "Transfer-Encoding: \x0bchunked", "Transfer-Encoding: chunked\x00", "Transfer-Encoding: xchunked", "Transfer-Encoding: chunked, identity",
		"Transfer-Encoding: identity, chunked", "Transfer-Encoding: chunked, chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "Transfer-Encoding: gzip, chunked", "Transfer_Encoding: chunked",
		"Transfer-Encoding:\r\n chunked", "X: y\rTransfer-Encoding: chunked", "Transfer-Encoding: \"chunked\"", "Transfer-Encoding: chunked;x=y", "Transfer-Encoding: CHUNKED", "TRANSFER-ENCODING: chunked", "Transfer-Encoding: ,chunked", "Transfer-Encoding:"} {
		out = append(out, head(coding, "Content-Length: $LENGTH")+"0\r\n\r\n$HIDDEN", head(coding)+"$SIZE\r\n$HIDDEN\r\n0\r\n\r\n")
	}
	for _, chunk := range []string{"0x$SIZE\r\n", "+$SIZE\r\n", "-$SIZE\r\n", " $SIZE\r\n", "$SIZE \r\n", "$SIZE\n", "$SIZE\r", "$SIZE;a\nb\r\n", "$SIZE;a\r\r\n", "$SIZE;\r\n", "$SIZE;a=\"\r\n\"\r\n", "10000000000000000$SIZE\r\n", "000000000000000000000$SIZE\r\n", "$SIZE\x00\r\n", "\r\n$SIZE\r\n", "_$SIZE\r\n"} {
		out = append(out, head("Transfer-Encoding: chunked")+chunk+"$HIDDEN\r\n0\r\n\r\n")
	}
	for _, end := range []string{"$HIDDEN0\r\n\r\n", "$HIDDEN\n0\r\n\r\n", "$HIDDEN\r\n0\r\nX: y\r\n$HIDDEN", "$HIDDEN\r\n0\n\n", "$HIDDEN\r\n0\r\nContent-Length: 5\r\n\r\n", "$HIDDEN\r\n00\r\n\r\n", "$HIDDENxx0\r\n\r\n"} {
		out = append(out, head("Transfer-Encoding: chunked")+"$SIZE\r\n"+end)
	}
	return out
}

// arm fills in an attack's gaps.
func arm(attack, secret string, n int) string {
	id := fmt.Sprintf("X-N: %d\r\nApi-Token: %s\r\n", n, secret)
	hidden := "POST /echo/hidden HTTP/1.1\r\nHost: a\r\n" + id + "Content-Length: 0\r\n\r\n"
	attack = strings.NewReplacer("$ID", id, "$HIDDEN", hidden, "$SIZE", fmt.Sprintf("%x", len(hidden))).Replace(attack)
	_, body, ok := strings.Cut(attack, "\r\n\r\n")
	if !ok {
		_, body, _ = strings.Cut(attack, "\n\n")
	}
	return strings.ReplaceAll(attack, "$LENGTH", fmt.Sprint(len(body))) +
		"POST /echo/last HTTP/1.1\r\nHost: a\r\n" + id + "Connection: close\r\nContent-Length: 0\r\n\r\n"
}

// counting is an upstream that notes the path of each request by its X-N, and
// answers with it.
type counting struct {
	mu   sync.Mutex
	seen map[string][]string
}

func (c *counting) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	what := strings.TrimPrefix(r.URL.Path, "/echo/")
	c.mu.Lock()
	c.seen[r.Header.Get("X-N")] = append(c.seen[r.Header.Get("X-N")], what)
	c.mu.Unlock()
	rw.Header().Set("X-Answers", r.Header.Get("X-N")+" "+what)
	_, _ = io.WriteString(rw, what)
}

func (c *counting) count(n int, what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := 0
	for _, one := range c.seen[fmt.Sprint(n)] {
		if one == what {
			found++
		}
	}
	return found
}

// answersTo sends raw and gives what was answered by the upstream, one word each.
func answersTo(addr, raw string) ([]string, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(3 * time.Second)) // some wait for more, and are given up
	go func() { _, _ = io.WriteString(nc, raw) }()
	br := bufio.NewReader(nc)
	method, _, _ := strings.Cut(raw, " ")
	var out []string
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			return out, nil
		}
		if resp.StatusCode == http.StatusContinue {
			continue
		}
		method = "POST" // of all that follow
		_, _ = io.Copy(io.Discard, resp.Body)
		if answers := resp.Header.Get("X-Answers"); answers != "" {
			out = append(out, answers)
		}
		if resp.Close {
			return out, nil
		}
	}
}

// TestNoRequestIsCountedDifferently puts real proxies before and behind ours. What
// the client had answered and what the last server saw must be the same requests:
// one more on either side is a request that somebody smuggled.
func TestNoRequestIsCountedDifferently(t *testing.T) {
	for _, p := range programs {
		for _, before := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, before %v", p.name, before), func(t *testing.T) {
				upstream := &counting{seen: make(map[string][]string)}
				target := urlOf(t, startServer(t, upstream))
				w := newWorld(t, canon.Options{})
				var addr string
				if before {
					w.rules.Default = proxy.RouteOptions{Upstreams: upstreamsAt(t, nil, target)}
					addr = p.run(t, openProxy(t, w, nil))
				} else {
					target.Host = p.run(t, target.Host)
					w.rules.Default = proxy.RouteOptions{Upstreams: upstreamsAt(t, nil, target)}
					addr = openProxy(t, w, nil)
				}
				if got, err := answersTo(addr, arm("", w.secrets["full"], -1)); err != nil || len(got) != 1 {
					t.Fatalf("a plain request is answered with %v, %v", got, err)
				}
				list := attacks()
				answers := make([][]string, len(list))
				var clients sync.WaitGroup
				slots := make(chan struct{}, 16)
				for i, attack := range list {
					slots <- struct{}{}
					clients.Go(func() {
						defer func() { <-slots }()
						var err error
						if answers[i], err = answersTo(addr, arm(attack, w.secrets["full"], i)); err != nil {
							t.Error(err)
						}
					})
				}
				clients.Wait()
				waitFor(t, func() bool { return w.guard.InFlight() == 0 })
				for i := range list {
					answered := make(map[string]int)
					for _, one := range answers[i] {
						n, what, _ := strings.Cut(one, " ")
						if n != fmt.Sprint(i) {
							t.Errorf("%q got an answer to another's request: %q", list[i], one)
						}
						answered[what]++
					}
					for _, what := range []string{"outer", "hidden", "last"} {
						seen := upstream.count(i, what)
						if answered[what] > seen || what == "hidden" && answered[what] != seen {
							t.Errorf("%q: the client had %d answers to %s, the upstream saw %d", list[i], answered[what], what, seen)
						}
					}
				}
			})
		}
	}
}
