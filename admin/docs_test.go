package admin_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"

	"tokenward/admin/admintest"
)

// TestDocumentedCallsWork makes every call that docs/api.md shows, in its order,
// and expects each operation of the OpenAPI document among them.
func TestDocumentedCallsWork(t *testing.T) {
	page, err := os.ReadFile("../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	w := admintest.New(t)
	cast := w.Cast()
	d := admintest.ReadDescription(t)
	h := d.Checked(t, describedFaces(w))
	fill := strings.NewReplacer("$ADMIN", "http://tokenward.test", "$TOKEN", cast.Admin.Secret.Reveal(), "$SECRET", cast.Peer.Secret.Reveal(), "$ROOT", cast.Root.Secret.Reveal(), "$KEY", "k1")
	for _, command := range curls(string(page)) {
		r := curlRequest(t, fill.Replace(command))
		if r.URL.Path == "/openapi.yaml" {
			continue // no token API
		}
		if r.URL.Path == "/v1/leaks" {
			signReport(t, r)
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if rec.Code >= 300 {
			t.Errorf("%s\nanswers %d %s", command, rec.Code, rec.Body)
		}
	}
	for path, item := range d.Doc.Paths.Map() {
		for method, operation := range item.Operations() {
			if !d.Used[operation.OperationID] {
				t.Errorf("no curl shows %s %s", method, path)
			}
		}
	}
}

// signReport puts the signature in the place of the page's variable.
func signReport(t *testing.T, r *http.Request) {
	t.Helper()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.Header.Set("Github-Public-Key-Signature", signature(t, string(body)))
}

// curls returns the commands in the page's blocks of shell.
func curls(page string) []string {
	var all []string
	for _, block := range strings.Split(page, "```sh\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		block = strings.ReplaceAll(block, "\\\n", " ")
		all = append(all, strings.Split("\n"+block, "\ncurl ")[1:]...)
	}
	return all
}

// curlRequest is the request that the arguments of curl make.
func curlRequest(t *testing.T, arguments string) *http.Request {
	t.Helper()
	var method, target, body string
	header := http.Header{}
	words := shellWords(arguments)
	for i := 0; i < len(words); i++ {
		next := func() string {
			i++
			return words[i]
		}
		switch word := words[i]; word {
		case "-X":
			method = next()
		case "-H":
			name, value, _ := strings.Cut(next(), ": ")
			header.Set(name, value)
		case "-d":
			body = next()
		case "--data-urlencode":
			name, value, _ := strings.Cut(next(), "=")
			body = url.Values{name: {value}}.Encode()
			header.Set("Content-Type", "application/x-www-form-urlencoded")
		default:
			target = word
		}
	}
	if method == "" {
		method = http.MethodGet
		if body != "" {
			method = http.MethodPost
		}
	}
	r := httptest.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	r.Header = header
	return r
}

// shellWords splits a command as a shell does, as far as the page needs it:
// quotes, and a comment at the end.
func shellWords(command string) []string {
	var words []string
	var word strings.Builder
	var quote rune
	begun := false
	for _, c := range command {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '"' || c == '\'':
			quote, begun = c, true
		case c == '#' && !begun:
			return words
		case c == ' ' || c == '\n':
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteRune(c)
			begun = true
		}
	}
	if begun {
		words = append(words, word.String())
	}
	return words
}
