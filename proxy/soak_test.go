//go:build !race

package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"tokenward/enforce/canon"
	"tokenward/proxy"
)

// TestLargeBodiesTakeNoMemory passes bodies in both directions through a proxy in a
// process of its own, 32 MiB each, or 10 GiB with TOKENWARD_SOAK=1, and looks at
// that process's anonymous memory meanwhile. Every byte is compared.
func TestLargeBodiesTakeNoMemory(t *testing.T) {
	const warm, bound = 16 << 20, 5 << 20
	size := int64(32 << 20)
	if os.Getenv("TOKENWARD_SOAK") == "1" {
		size = 10 << 30
	}
	h := http.HandlerFunc(serveBodies)
	p := startSoakProxy(t, startServer(t, h), serveH2C(t, h).String())
	for _, c := range soakCases {
		client := p.client(c)
		for _, upload := range []bool{true, false} {
			name := c.name + map[bool]string{true: ", up", false: ", down"}[upload]
			pass := func(length int64) (peak int64, took time.Duration) {
				began, watch := time.Now(), p.watch(t)
				if err := p.pass(client, c, upload, length); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				return watch(), time.Since(began)
			}
			before, _ := pass(warm)
			peak, took := pass(size)
			t.Logf("%-30s %4.0f MiB/s, RssAnon %.1f MB, %.1f MB after %d MiB", name, float64(size>>20)/took.Seconds(), float64(peak)/1e6, float64(before)/1e6, warm>>20)
			if peak > before+bound {
				t.Errorf("%s: memory grew from %d to %d bytes", name, before, peak)
			}
		}
		client.CloseIdleConnections()
	}
}

// soakCase is a way of a body through the proxy.
type soakCase struct {
	name    string
	addr    string // of soakProxy
	http2   bool   // of the client
	path    string // chooses the upstream
	chunked bool   // or, over HTTP/2, without a Content-Length
}

var soakCases = []soakCase{
	{name: "HTTP/1.1 with a length", addr: "plain", path: "/die/"},
	{name: "HTTP/1.1 chunked", addr: "plain", path: "/die/", chunked: true},
	{name: "HTTP/1.1 over TLS", addr: "tls", path: "/die/"},
	{name: "HTTP/1.1 to h2c", addr: "plain", path: "/echo/"},
	{name: "HTTP/2 over TLS", addr: "tls", http2: true, path: "/die/"},
	{name: "h2c", addr: "plain", http2: true, path: "/die/", chunked: true},
	{name: "h2c to h2c", addr: "plain", http2: true, path: "/echo/"},
}

// soakPattern is what bodies repeat. Its length is a prime, so that bytes which are
// lost, doubled or swapped by the buffer do not go unseen.
var soakPattern = func() []byte {
	b := make([]byte, 65521)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return bytes.Repeat(b, 2)
}()

// soakBody is the pattern as a body to read; or, written to, compares.
type soakBody struct{ at, end int64 }

func (b *soakBody) Read(p []byte) (int, error) {
	if b.at == b.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), b.end-b.at)]
	n := copy(p, soakPattern[b.at%65521:])
	b.at += int64(n)
	return n, nil
}

func (b *soakBody) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		want := soakPattern[b.at%65521:]
		n := min(len(want), len(p)-done)
		if !bytes.Equal(p[done:done+n], want[:n]) {
			return done, fmt.Errorf("other bytes than were sent, about %d", b.at)
		}
		done += n
		b.at += int64(n)
	}
	return len(p), nil
}

// serveBodies takes a body and tells its length, or gives one as long as X-Want says.
func serveBodies(rw http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		seen := &soakBody{}
		if _, err := io.Copy(seen, r.Body); err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprint(rw, seen.at)
		return
	}
	want := r.Header.Get("X-Want")
	n, _ := strconv.ParseInt(want, 10, 64)
	if r.Header.Get("X-Chunked") == "" {
		rw.Header().Set("Content-Length", want)
	}
	_, _ = io.CopyBuffer(struct{ io.Writer }{rw}, &soakBody{end: n}, make([]byte, 256<<10)) // who reads it sees what is missing
}

// soakProxy is a proxy in a process of its own.
type soakProxy struct {
	pid    int
	Addrs  map[string]string // plain and tls
	Secret string
}

func (p *soakProxy) client(c soakCase) *http.Client {
	t := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // the certificate is tested elsewhere
	switch {
	case !c.http2:
		t.Protocols.SetHTTP1(true)
	case c.addr == "tls":
		t.Protocols.SetHTTP2(true)
	default:
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	return &http.Client{Transport: withToken{t, p.Secret}}
}

// pass sends a body of that length through, or has one sent.
func (p *soakProxy) pass(client *http.Client, c soakCase, upload bool, length int64) error {
	base := map[string]string{"plain": "http://", "tls": "https://"}[c.addr] + p.Addrs[c.addr] + c.path
	req, err := http.NewRequest(http.MethodGet, base, nil)
	if upload {
		req, err = http.NewRequest(http.MethodPost, base, io.NopCloser(&soakBody{end: length}))
	}
	if err != nil {
		return err
	}
	req.Header.Set("X-Want", strconv.FormatInt(length, 10))
	if c.chunked {
		req.Header.Set("X-Chunked", "1")
	} else if upload {
		req.ContentLength = length
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if (resp.ContentLength < 0) != c.chunked && !upload {
		return fmt.Errorf("the answer's length is given as %d", resp.ContentLength)
	}
	if upload {
		said, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || string(said) != strconv.FormatInt(length, 10) {
			return fmt.Errorf("%d %q, %w", resp.StatusCode, said, err)
		}
		return nil
	}
	seen := &soakBody{}
	_, err = io.CopyBuffer(struct{ io.Writer }{seen}, resp.Body, make([]byte, 256<<10))
	if err == nil && (seen.at != length || resp.StatusCode != 200) {
		err = fmt.Errorf("%d with %d bytes", resp.StatusCode, seen.at)
	}
	return err
}

// watch looks at the process's memory until what it gives is called, which then
// gives the highest that was seen.
func (p *soakProxy) watch(t *testing.T) func() int64 {
	t.Helper()
	highest := p.rssAnon(t)
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-end:
				tick.Stop()
				return
			case <-tick.C:
				highest = max(highest, p.rssAnon(t))
			}
		}
	}()
	return func() int64 {
		close(end)
		<-ended
		return max(highest, p.rssAnon(t))
	}
}

// rssAnon is the memory that only this process has and no file backs.
func (p *soakProxy) rssAnon(t *testing.T) int64 {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.pid), "status"))
	if errors.Is(err, os.ErrNotExist) && runtime.GOOS != "linux" {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	number, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, convErr := strconv.ParseInt(number, 10, 64)
	if err := errors.Join(err, convErr); err != nil {
		t.Error(err)
	}
	return n << 10
}

const soakEnv = "TOKENWARD_SOAK_UPSTREAMS"

func startSoakProxy(t *testing.T, upstreams ...string) *soakProxy {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSoakProxy$", "-test.count=1") //nolint:gosec // ourselves
	cmd.Env = append(os.Environ(), soakEnv+"="+strings.Join(upstreams, " "))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close() // it ends then
		_ = cmd.Wait() // whatever it says
	})
	p := &soakProxy{pid: cmd.Process.Pid}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err := errors.Join(err, json.Unmarshal(line, p)); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return p
}

// TestSoakProxy is the process of a soakProxy.
func TestSoakProxy(t *testing.T) {
	upstreams := strings.Fields(os.Getenv(soakEnv))
	if len(upstreams) == 0 {
		return
	}
	debug.SetGCPercent(50) // as the program does
	w := newWorld(t, canon.Options{})
	w.rules.Default = proxy.RouteOptions{ResponseHeader: -1, Stall: time.Minute}
	w.rules.Routes = make([]proxy.RouteOptions, len(routes))
	for i, at := range upstreams {
		u, err := url.Parse(at)
		if err != nil {
			t.Fatal(err)
		}
		w.rules.Routes[1+i].Upstreams = upstreamsAt(t, nil, u) // of /die/ and /echo/
	}
	w.rules.Default.Upstreams = w.rules.Routes[1].Upstreams
	a := newAuthority(t)
	cert, key := a.issue("api.example")
	front, err := proxy.NewServerTLS(proxy.ServerTLSFiles{CertFile: cert, KeyFile: key})
	if err != nil {
		t.Fatal(err)
	}
	said, err := json.Marshal(soakProxy{Addrs: map[string]string{"plain": openProxy(t, w, nil), "tls": openProxy(t, w, front.Listener)}, Secret: w.secrets["full"]})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%s\n", said) //nolint:forbidigo // to the process that started this one
	_, _ = io.Copy(io.Discard, os.Stdin)
}
