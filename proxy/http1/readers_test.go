package http1

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
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// reader is another implementation of HTTP that answers 200 to all it accepts.
type reader struct {
	addr  string
	count func(t *testing.T) int // requests it has read since it started, with this question
}

// readerRequests are forwarded and shown to other readers beside those of
// oddRequests that are accepted.
var readerRequests = []string{
	"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nGET /",
	"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nGET /\r\n0\r\n\r\n",
	"DELETE /x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
	"PUT /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0000a;q=\"x\"\r\n0123456789\r\n000\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n1\r\na\r\n0\r\nX-T: GET / HTTP/1.1\r\nX-U: y\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1f\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 31\r\nX-Content-Length: 3\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: h\r\nContent_Length: 3\r\nTransfer_Encoding: chunked\r\nContent-Length: 4\r\n\r\nabcd",
	"GET /%2e%2e/%00?a=b&c[]=%zz|\"<> HTTP/1.1\r\nHost: h\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: h\r\nX: \" unbalanced\r\nY: \\\r\nZ: a,,b\r\nX:\t\r\n\r\n",
	"GET / HTTP/1.1\r\nhOsT:h\r\nCONNECTION:keep-ALIVE\r\nConnection: ,\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
	"GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\nPOST /c HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nxGET /d HTTP/1.1\r\nHost: h\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("X-Many: "+strings.Repeat("v", 60)+"\r\n", 90) + "\r\n",
}

// TestOtherReadersSeeTheSameRequests: what http1 accepts, and what it forwards,
// is the same number of requests to llhttp and to nginx.
func TestOtherReadersSeeTheSameRequests(t *testing.T) {
	corpus := append([]string(nil), readerRequests...)
	for _, o := range oddRequests {
		corpus = append(corpus, o.raw)
	}
	for name, run := range map[string]func(*testing.T) reader{"node": runNode, "nginx": runNginx} {
		t.Run(name, func(t *testing.T) {
			other := run(t)
			var seen atomic.Int64
			own := start(t, &Server{Handler: func(x *Exchange) {
				body := x.Body()
				if _, err := io.Copy(io.Discard, body); err != nil {
					return
				}
				seen.Add(1)
				_ = x.Respond(200, nil, nil)
			}})
			var forwarded atomic.Int64
			pool := upstreamTo(t, other.addr)
			pass := start(t, &Server{Handler: func(x *Exchange) {
				e := x.Edit()
				e.Judged = func([]byte) bool { return false }
				res, err := x.Forward(pool, e)
				switch {
				case err == nil:
					forwarded.Add(1)
				case answerStatus(res, err) != 0:
					_ = x.Respond(answerStatus(res, err), nil, nil)
				}
			}})
			accepted := 0
			for _, raw := range corpus {
				before := seen.Load()
				if !talk(t, own, raw) {
					continue // refused: how others read it does not matter
				}
				accepted++
				want := int(seen.Load() - before)
				start := other.count(t)
				fine := talk(t, other.addr, raw) // it may refuse what http1 accepts, and then reads no further
				if got := other.count(t) - start - 1; got > want || fine && got != want {
					t.Errorf("%d requests, http1 reads %d: %q", got, want, raw)
				}
				start, before = other.count(t), forwarded.Load()
				talk(t, pass, raw)
				waitFor(t, "the exchange to end", func() bool { return forwarded.Load()-before >= int64(want) })
				if got := other.count(t) - start - 1; got > want || fine && got != want {
					t.Errorf("%d requests, http1 forwards %d: %q", got, want, raw)
				}
			}
			if accepted < 25 {
				t.Errorf("only %d of the corpus were accepted", accepted)
			}
		})
	}
}

// talk sends raw and one more request, and reports whether nothing was refused.
func talk(t *testing.T, addr, raw string) bool {
	t.Helper()
	c := dial(t, addr)
	defer c.nc.Close()
	c.send(raw)
	if !strings.Contains(raw, "HTTP/1.0") {
		_, _ = io.WriteString(c.nc, "GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n") // what is refused may be closed already
	}
	_ = c.nc.(*net.TCPConn).CloseWrite()
	fine := false
	for {
		resp, err := http.ReadResponse(c.br, nil)
		if err != nil {
			return fine
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return false
		}
		if resp.StatusCode >= 400 {
			return false
		}
		fine = true
	}
}

// program finds a program, or skips; under CI it must be there.
func program(t *testing.T, name string, places ...string) string {
	t.Helper()
	for _, place := range append([]string{name}, places...) {
		if path, err := exec.LookPath(place); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed; CI needs it as a further reader", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

const nodeScript = `
const http = require('node:http');
let count = 0;
const server = http.createServer((req, res) => {
  count++;
  req.resume();
  req.on('end', () => res.end(req.url === '/count' ? String(count) : ''));
});
server.keepAliveTimeout = 60000;
server.on('checkContinue', (req, res) => { res.writeContinue(); server.emit('request', req, res); });
server.on('clientError', (err, socket) => { if (socket.writable) socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n'); });
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
`

func runNode(t *testing.T) reader {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program(t, "node"), "-e", nodeScript)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	port, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	addr := "127.0.0.1:" + strings.TrimSpace(port)
	return reader{addr, func(t *testing.T) int {
		t.Helper()
		n, err := strconv.Atoi(strings.TrimSpace(ask(t, addr, "/count")))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}}
}

func ask(t *testing.T, addr, path string) string {
	t.Helper()
	_, body := dial(t, addr).send("GET " + path + " HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").answer("GET")
	return body
}

const nginxConfig = `
daemon off;
pid %[1]s/pid;
error_log %[1]s/error.log;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  large_client_header_buffers 8 32k;
  server {
    listen unix:%[1]s/sock;
    listen 127.0.0.1:%[2]d;
    location / { return 200; }
    location = /count { stub_status; }
  }
}
`

func runNginx(t *testing.T) reader {
	t.Helper()
	path := program(t, "nginx", "/usr/sbin/nginx")
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	socket, err := l.(*net.TCPListener).File() // it takes this over: nobody else gets the port before it does
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, dir, port), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, "-c", config, "-e", filepath.Join(dir, "error.log"))
	cmd.ExtraFiles, cmd.Env = []*os.File{socket}, append(os.Environ(), "NGINX=3;")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
	})
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	waitFor(t, "nginx to listen", func() bool {
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			_ = nc.Close()
		}
		return err == nil
	})
	return reader{addr, func(t *testing.T) int {
		t.Helper()
		// "server accepts handled requests\n 1 1 1"
		var accepts, handled, requests int
		_, numbers, _ := strings.Cut(ask(t, addr, "/count"), "requests")
		if _, err := fmt.Sscan(numbers, &accepts, &handled, &requests); err != nil {
			t.Fatal(err)
		}
		return requests
	}}
}
