package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDemoKeepsEveryPromise(t *testing.T) {
	d := startDemo(t)
	promises := readPage(t, d.page)
	if len(promises) < 12 {
		t.Fatalf("the page has only %d lines to paste:\n%s", len(promises), d.page)
	}
	for _, p := range promises {
		status, code, body := p.ask(t)
		if status != p.status || code != p.code {
			t.Errorf("%s\npromised %d %s, answered %d %s\n%s", p.line, p.status, p.code, status, code, body)
		}
	}
	if err := d.stop(); err != nil {
		t.Errorf("Ctrl-C ended the demo with: %v", err)
	}
}

func TestDemoTellsTheAPIBehindWhoAsksAndNoSecret(t *testing.T) {
	d := startDemo(t)
	told := 0
	for _, p := range readPage(t, d.page) {
		_, _, body := p.ask(t)
		var answer struct {
			Told map[string]string `json:"what_the_api_is_told"`
		}
		if json.Unmarshal([]byte(body), &answer) != nil || answer.Told == nil {
			continue // the guard answered
		}
		told++
		if anonymous := len(p.words) == 3; anonymous == (answer.Told["X-Token-Id"] != "") {
			t.Errorf("%s\nthe API was told %v", p.line, answer.Told)
		}
		if secretInText.MatchString(body) || answer.Told["Authorization"] != "" {
			t.Errorf("%s\nthe API was shown the credential:\n%s", p.line, body)
		}
	}
	if told < 5 {
		t.Errorf("only %d answers came from the API", told)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

func TestTwoDemosRunBesideEachOther(t *testing.T) {
	one, other := startDemo(t), startDemo(t)
	for _, d := range []*runningDemo{one, other} {
		p := readPage(t, d.page)[2]
		if status, code, _ := p.ask(t); status != p.status {
			t.Errorf("%s\npromised %d, answered %d %s", p.line, p.status, status, code)
		}
	}
	if err := errors.Join(one.stop(), other.stop()); err != nil {
		t.Error(err)
	}
}

func TestDemoLeavesNothingBehind(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	out := endDemo(t, "demo")
	left, err := os.ReadDir(temp)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if !strings.Contains(out, "Stopped.") {
		t.Errorf("the end is not told:\n%s", out)
	}
}

func TestInterruptedBeforeItsPageADemoEndsCleanly(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	var stderr strings.Builder
	if code := run(ctx, []string{"demo"}, strings.NewReader(""), io.Discard, &stderr); code != exitFine {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDemoKeepsTheFolderItWasGiven(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kept")
	endDemo(t, "demo", "--keep", dir)
	for _, name := range []string{"tokenward.yaml", "tokenward.db", "tokenward-audit.jsonl", "tokenward.log"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v", name, info.Mode())
		}
	}
	if log, err := os.ReadFile(filepath.Join(dir, "tokenward.log")); err != nil || secretInText.Match(log) {
		t.Errorf("the log shows a secret, or: %v\n%s", err, log)
	}
	var stderr strings.Builder
	if code := run(t.Context(), []string{"demo", "--keep", dir}, strings.NewReader(""), io.Discard, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "not empty") {
		t.Errorf("a used folder gives %d: %s", code, stderr.String())
	}
}

// endDemo runs a demo from its command line, interrupts it once its page is
// there, and returns what it printed.
func endDemo(t *testing.T, args ...string) string {
	t.Helper()
	ctx, interrupt := context.WithCancel(t.Context())
	out := &pageCatcher{ready: interrupt}
	var stderr strings.Builder
	if code := run(ctx, args, strings.NewReader(""), out, &stderr); code != exitFine {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	return out.text.String()
}

// pageCatcher calls ready at the first write, which is the whole page.
type pageCatcher struct {
	text  strings.Builder
	ready func()
}

func (c *pageCatcher) Write(b []byte) (int, error) {
	defer c.ready()
	return c.text.Write(b)
}

// runningDemo is a demo that has printed its page.
type runningDemo struct {
	page string
	stop func() error // interrupts it and returns how it ended
}

func startDemo(t *testing.T) *runningDemo {
	t.Helper()
	ctx, interrupt := context.WithCancel(t.Context())
	shown := make(chan struct{}, 1)
	out := &pageCatcher{ready: func() { shown <- struct{}{} }}
	ended := make(chan error, 1)
	dir := t.TempDir()
	go func() { ended <- runDemo(ctx, dir, out) }()
	select {
	case <-shown:
	case err := <-ended:
		interrupt()
		log, _ := fs.ReadFile(os.DirFS(dir), "tokenward.log")
		t.Fatalf("the demo did not start: %v\n%s", err, log)
	}
	return &runningDemo{page: out.text.String(), stop: func() error {
		interrupt()
		return <-ended
	}}
}

// promise is a line of the page with the answer that stands under it.
type promise struct {
	line   string
	words  []string
	status int
	code   string
}

func readPage(t *testing.T, page string) []promise {
	t.Helper()
	var all []promise
	lines := strings.Split(page, "\n")
	for i, line := range lines {
		if !strings.HasPrefix(line, "  curl ") {
			continue
		}
		p := promise{line: line, words: shellWords(t, line)}
		under, ok := strings.CutPrefix(lines[i+1], "    → ")
		status, code, _ := strings.Cut(under, " ")
		p.code = code
		for _, digit := range status {
			p.status = p.status*10 + int(digit-'0')
		}
		if !ok || http.StatusText(p.status) == "" {
			t.Fatalf("no answer stands under\n%s", line)
		}
		all = append(all, p)
	}
	return all
}

// shellWords splits a line as a POSIX shell does, as far as the page needs it.
func shellWords(t *testing.T, line string) []string {
	t.Helper()
	var words []string
	var word strings.Builder
	quoted, within := false, false
	for _, r := range line {
		switch {
		case r == '\'':
			quoted, within = !quoted, true
		case !quoted && strings.ContainsRune("$`\\\"|&;<>()*?[]#~!{}", r):
			t.Fatalf("a shell would act on %q in\n%s", r, line)
		case r == ' ' && !quoted:
			if within {
				words = append(words, word.String())
			}
			word.Reset()
			within = false
		default:
			word.WriteRune(r)
			within = true
		}
	}
	if quoted || !within {
		t.Fatalf("the line ends within quotes:\n%s", line)
	}
	return append(words, word.String())
}

// ask does what curl would do.
func (p *promise) ask(t *testing.T) (status int, code, body string) {
	t.Helper()
	method, data, url := "", "", ""
	header := http.Header{}
	asIs := false
	for words := p.words[1:]; len(words) > 0; words = words[1:] {
		switch word := words[0]; word {
		case "-i":
		case "--path-as-is":
			asIs = true
		case "-X", "-H", "-d":
			if len(words) < 2 {
				t.Fatalf("%s lacks its value in\n%s", word, p.line)
			}
			words = words[1:]
			switch name, value, _ := strings.Cut(words[0], ": "); word {
			case "-X":
				method = words[0]
			case "-H":
				header.Set(name, value)
			case "-d":
				data = words[0]
				header.Set("Content-Type", "application/x-www-form-urlencoded") // as curl does
			}
		default:
			if url != "" || strings.HasPrefix(word, "-") {
				t.Fatalf("unexpected %q in\n%s", word, p.line)
			}
			url = word
		}
	}
	if strings.Contains(url, "/..") && !asIs {
		t.Fatalf("curl would clean the path of\n%s", p.line)
	}
	if method == "" {
		method = http.MethodGet
		if data != "" {
			method = http.MethodPost
		}
	}
	return request(t, method, url, header, data)
}

// request makes one request and returns the answer, with the code of its
// problem where it is one.
func request(t *testing.T, method, url string, header http.Header, data string) (status int, code, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var problem struct{ Code string }
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
		if err := json.Unmarshal(b, &problem); err != nil {
			t.Errorf("%s %s: a problem that is not JSON: %v\n%s", method, url, err, b)
		}
	}
	return resp.StatusCode, problem.Code, string(b)
}

func TestDemoMakesNoFolderThatAConfigurationCannotName(t *testing.T) {
	for _, name := range []string{"a${b}", "$(b)", "a\x01b", "a\xffb"} {
		dir := filepath.Join(t.TempDir(), name)
		var stderr strings.Builder
		if code := run(t.Context(), []string{"demo", "--keep", dir}, strings.NewReader(""), io.Discard, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "--keep: a configuration cannot name files in ") {
			t.Errorf("%q: exit code %d, %s", name, code, &stderr)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q was made: %v", name, err)
		}
	}
}
