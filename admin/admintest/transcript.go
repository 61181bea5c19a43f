package admintest

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the answers of transcripts anew")

// Play sends the requests of each transcript testdata/*.txt to a handler, each
// file in a world of its own, and compares the answers with those in the file.
// It does so over a store in memory and over bolt, which must answer the same.
//
// A transcript is a list of exchanges: `== title`, the request, `-- status`, the
// answer. Titles, requests and status lines are as on the wire, without the
// version. In requests {name} is the secret of one of the cast, {name.id} its id,
// {secret:n} the n-th secret that an answer showed. A title that ends in
// `(+duration)` first moves the clock.
func Play(t *testing.T, handler func(w *World) http.Handler) {
	t.Helper()
	PlayFiles(t, "testdata/*.txt", handler)
}

// PlayFiles is Play for the transcripts of another folder.
func PlayFiles(t *testing.T, pattern string, handler func(w *World) http.Handler) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts %s: %v", pattern, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			name := strings.TrimSuffix(filepath.Base(file), ".txt")
			got := play(New(t), name, string(want), handler)
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(want) {
				t.Errorf("answers differ from %s (write them anew with -update, then read the difference):\n%s", file, difference(string(want), got))
			}
			if got := play(Over(t, Bolt(t), nil), name, got, handler); got != string(want) {
				t.Errorf("over bolt, answers differ from %s:\n%s", file, difference(string(want), got))
			}
		})
	}
}

func play(w *World, name, script string, handler func(w *World) http.Handler) string {
	w.Script = name
	p := &player{t: w.T, world: w, cast: w.Cast().Names()}
	p.handler = handler(w)
	return p.play(script)
}

type player struct {
	t       testing.TB
	world   *World
	cast    map[string]Holder
	handler http.Handler
	secrets []string
}

func (p *player) play(script string) string {
	var out strings.Builder
	head, rest, _ := strings.Cut("\n"+script, "\n== ")
	out.WriteString(strings.TrimPrefix(head, "\n"))
	for _, exchange := range strings.Split(rest, "\n== ") {
		title, request, _ := strings.Cut(exchange, "\n")
		request, _, _ = strings.Cut(request, "\n-- ")
		if out.Len() > 0 {
			out.WriteString("\n")
		}
		fmt.Fprintf(&out, "== %s\n%s\n%s", title, strings.TrimSuffix(request, "\n"), p.exchange(title, request))
	}
	return out.String()
}

var advance = regexp.MustCompile(`\(\+(\S+)\)$`)

func (p *player) exchange(title, request string) string {
	if m := advance.FindStringSubmatch(title); m != nil {
		d, err := time.ParseDuration(m[1])
		if err != nil {
			p.t.Fatal(err)
		}
		p.world.Clock.Advance(d)
	}
	recorder := httptest.NewRecorder()
	p.handler.ServeHTTP(recorder, p.request(request))
	answer := recorder.Result()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "-- %d\n", answer.StatusCode)
	for _, name := range slices.Sorted(maps.Keys(answer.Header)) {
		if name != "Content-Length" && name != "Cache-Control" && name != "X-Content-Type-Options" && name != "X-Request-Id" {
			fmt.Fprintf(&out, "%s: %s\n", name, strings.Join(answer.Header[name], ", "))
		}
	}
	if answer.Header.Get("Cache-Control") != "no-store" {
		p.t.Errorf("%s: the answer may be cached", title)
	}
	if len(body) > 0 {
		fmt.Fprintf(&out, "\n%s\n", p.mask(string(body)))
	}
	return out.String()
}

var placeholder = regexp.MustCompile(`\{[a-z]+(\.id|:[0-9]+)?\}`)

func (p *player) request(text string) *http.Request {
	text = placeholder.ReplaceAllStringFunc(text, p.fill)
	head, body, _ := strings.Cut(text, "\n\n")
	lines := strings.Split(strings.TrimSpace(head), "\n")
	method, target, _ := strings.Cut(lines[0], " ")
	r := httptest.NewRequest(method, "http://tokenward.test"+target, strings.NewReader(strings.TrimSuffix(body, "\n")))
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	return r
}

func (p *player) fill(name string) string {
	name = strings.Trim(name, "{}")
	if h, ok := p.cast[strings.TrimSuffix(name, ".id")]; ok {
		if strings.HasSuffix(name, ".id") {
			return h.ID.String()
		}
		return h.Secret.Reveal()
	}
	for i, secret := range p.secrets {
		if name == fmt.Sprintf("secret:%d", i+1) {
			return secret
		}
	}
	return "{" + name + "}"
}

var secretText = regexp.MustCompile(`[a-z][a-z0-9]{1,15}_[0-9A-Za-z]{38}`)

// mask puts names in the place of what differs from run to run.
func (p *player) mask(body string) string {
	body = secretText.ReplaceAllStringFunc(body, func(secret string) string {
		i := slices.Index(p.secrets, secret)
		if i < 0 {
			p.secrets = append(p.secrets, secret)
			i = len(p.secrets) - 1
		}
		prefix, _, _ := strings.Cut(secret, "_")
		return fmt.Sprintf("{%s secret:%d}", prefix, i+1)
	})
	for i, secret := range p.secrets {
		body = strings.ReplaceAll(body, `"`+secret[len(secret)-4:]+`"`, fmt.Sprintf(`"{last4:%d}"`, i+1))
	}
	for name, h := range p.cast {
		body = strings.ReplaceAll(body, `"`+h.Secret.Last4()+`"`, fmt.Sprintf(`"{last4 %s}"`, name))
	}
	return last4Field.ReplaceAllString(body, `${1}"{last4}"`)
}

var last4Field = regexp.MustCompile(`("last_?4[a-z_]*":)"[0-9A-Za-z]{4}"`)

// difference shows the first line in which two texts differ.
func difference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		a, b := "(end)", "(end)"
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			return fmt.Sprintf("line %d:\n want %s\n  got %s", i+1, a, b)
		}
	}
	return ""
}

// Send sends one request and returns the answer, as the given holder.
func Send(t testing.TB, h http.Handler, by Holder, method, target, body string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, "http://tokenward.test"+target, bytes.NewReader([]byte(body)))
	if !by.Secret.IsZero() {
		r.Header.Set("Authorization", "Bearer "+by.Secret.Reveal())
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, r)
	return recorder
}
