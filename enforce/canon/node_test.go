package canon

import (
	"bufio"
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

// nodeScript reads targets, one a line, and prints what Node's two URL parsers make of
// each, as servers on it route.
const nodeScript = `
const url = require('url');
require('readline').createInterface({input: process.stdin}).on('line', line => {
	const modern = new URL(line, 'http://h'), legacy = url.parse(line);
	console.log(JSON.stringify([modern.pathname, modern.search, modern.host, legacy.pathname, legacy.search || '', legacy.host || 'h']));
});
`

// TestNodeRoutesAlike compares with a parser that normalises on its own: whatever is
// accepted, Node sees the same path.
func TestNodeRoutesAlike(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("needs node")
	}
	r := compile(t, Options{})
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a repeatable sequence is wanted
	var targets []string
	var input bytes.Buffer
	for len(targets) < 20000 {
		var q Request
		if r.Canonicalize(&q, head(randomTarget(random))) == Accepted && !q.Asterisk {
			targets = append(targets, string(q.Target()))
			input.Write(q.Target())
			input.WriteByte('\n')
		}
	}
	cmd := exec.CommandContext(t.Context(), node, "--no-deprecation", "-e", nodeScript) //nolint:gosec // the script is above
	cmd.Stdin = &input
	output, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(bytes.NewReader(output))
	for _, target := range targets {
		if !lines.Scan() {
			t.Fatal("node ended early")
		}
		var got [6]string
		if err := json.Unmarshal(lines.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		path, query, _ := strings.Cut(target, "?")
		for _, one := range []struct{ parser, path, query, host string }{
			{"new URL", got[0], got[1], got[2]},
			{"url.parse", got[3], got[4], got[5]},
		} {
			// Both write a few plain characters as escapes; what they stand for must be the same.
			if decodeLeniently(one.path) != decodeLeniently(path) || strings.Count(one.path, "/") != strings.Count(path, "/") || one.host != "h" {
				t.Errorf("%s: %s has path %s at %s", target, one.parser, one.path, one.host)
			}
			if decodeLeniently(strings.TrimPrefix(one.query, "?")) != decodeLeniently(query) {
				t.Errorf("%s: %s has query %s", target, one.parser, one.query)
			}
		}
	}
}

var targetPieces = strings.Fields(`
	/ / / / // a b admin .. . ... %2e %2E %2f %5c %25 %252e ; ;x=1 : @ ? ? & = # \ %00 %c0%ae %C3%A9 %EF%BC%8E ~ ' ! $ * ( ) + , [ ] { } | ^
	%20 %3f %23 http: https:// %61 %7e x:y@z %E2%80%A5 .well-known " < >
`)

func randomTarget(random *rand.Rand) string {
	var b strings.Builder
	b.WriteByte('/')
	for range random.IntN(9) {
		b.WriteString(targetPieces[random.IntN(len(targetPieces))])
	}
	return b.String()
}
