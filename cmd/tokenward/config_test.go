package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/proxy/identity"
)

var updateGolden = flag.Bool("update-config", false, "write the golden messages of testdata/busted_*.yaml")

const examplePath = "../../config.example.yaml"

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := parseConfig("test.yaml", []byte(text))
	if err != nil {
		t.Fatalf("configuration is refused:\n%v", err)
	}
	return c
}

func faultsOf(t *testing.T, text string) []configFault {
	t.Helper()
	_, err := parseConfig("test.yaml", []byte(text))
	e, ok := errors.AsType[*configError](err)
	if !ok {
		t.Fatalf("configuration is not refused; error %v", err)
	}
	return e.Faults
}

// TestEachRuleHasABrokenFile holds that every rule refuses a file, with the
// message beside it, and that no rule is without one.
func TestEachRuleHasABrokenFile(t *testing.T) {
	paths, err := filepath.Glob("testdata/busted_*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	shown := make(map[rule]bool)
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = parseConfig(filepath.Base(path), data)
			e, ok := errors.AsType[*configError](err)
			if !ok {
				t.Fatalf("not refused: %v", err)
			}
			for _, f := range e.Faults {
				shown[f.Rule] = true
				if f.Problem == "" || f.Fix == "" {
					t.Errorf("fault without problem or fix: %+v", f)
				}
			}
			own, _, _ := strings.Cut(strings.TrimPrefix(name, "busted_"), "__")
			if !slices.ContainsFunc(e.Faults, func(f configFault) bool { return string(f.Rule) == own }) {
				t.Errorf("no fault of rule %s in:\n%v", own, err)
			}
			golden := filepath.Join("testdata", name+".golden")
			if *updateGolden {
				if err := os.WriteFile(golden, []byte(err.Error()+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err2 := os.ReadFile(golden)
			if err2 != nil {
				t.Fatal(err2)
			}
			if diff := cmp.Diff(string(want), err.Error()+"\n"); diff != "" {
				t.Errorf("message differs (-want +got); run with -update-config if that is meant:\n%s", diff)
			}
		})
	}
	for _, r := range allRules {
		if !shown[r] && !slices.Contains(rulesShownElsewhere, r) {
			t.Errorf("no testdata/busted_%s.yaml shows the rule", r)
		}
	}
}

// rulesShownElsewhere need a file that does not lie in testdata.
var rulesShownElsewhere = []rule{ruleFile, ruleTooLarge, ruleLongLine, ruleTooMany, ruleNotUTF8, ruleByteOrder, ruleNamedFile}

// TestOneFileIsNotUsedTwiceUnderTwoNames: the store would take the log for its own.
func TestOneFileIsNotUsedTwiceUnderTwoNames(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir + "/tokens", "../" + filepath.Base(dir) + "/tokens", "./tokens"} {
		if _, err := parseConfig("tokenward.yaml", fmt.Appendf(nil, "tokenstore: {path: tokens}\naudit: {path: %s}\n", name)); err == nil || !strings.Contains(err.Error(), "names the same file as tokenstore.path") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFilesThatAreNoText(t *testing.T) {
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	for _, c := range []struct {
		name, text string
		want       rule
		line       int
	}{
		{"larger than a configuration", strings.Repeat("# no end\n", maxConfigBytes/9+1), ruleTooLarge, 0},
		{"UTF-8 with a byte order mark", "\ufeffproxy: {}\n", ruleByteOrder, 0},
		{"UTF-16", "\xff\xfep\x00r\x00", ruleByteOrder, 0},
		{"UTF-16 the other way round", "\xfe\xff\x00p\x00r", ruleByteOrder, 0},
		{"Latin-1", "proxy:\n  upstream: http://caf\xe9\n", ruleNotUTF8, 2},
		{"overlong UTF-8", "proxy: {}\n# \xc0\xaf\n", ruleNotUTF8, 2},
		{"endless line", "proxy: {}\n# " + strings.Repeat("x", maxLineBytes) + "\n", ruleLongLine, 2},
		{"endless keys", "proxy:\n" + many(maxKeys+1, "  a%d: 1\n"), ruleTooMany, maxKeys + 2},
		{"endless keys in braces", "proxy: {\n" + many(maxKeys+1, "  a%d: 1,\n") + "}\n", ruleTooMany, maxKeys + 2},
		{"endless routes", "routes:\n" + many(maxItems+1, "  - match: GET /%d\n"), ruleTooMany, maxItems + 2},
		{"null byte", "proxy: {}\x00\n", ruleHidden, 1},
		{"old Mac line ends", "proxy:\r  listen: :1\r", ruleHidden, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			faults := faultsOf(t, c.text)
			if len(faults) != 1 || faults[0].Rule != c.want || faults[0].Line != c.line {
				t.Errorf("got %+v, want one fault of %s in line %d", faults, c.want, c.line)
			}
		})
	}
}

func TestOnlyRegularFilesAreRead(t *testing.T) {
	dir := t.TempDir()
	for name, path := range map[string]string{"directory": dir, "missing": filepath.Join(dir, "none.yaml"), "device": "/dev/null"} {
		t.Run(name, func(t *testing.T) {
			_, err := loadConfig(path)
			e, ok := errors.AsType[*configError](err)
			if !ok || len(e.Faults) != 1 || e.Faults[0].Rule != ruleFile {
				t.Errorf("got %v, want a fault of the file", err)
			}
		})
	}
}

func TestFilesFromWindowsAreRead(t *testing.T) {
	c := mustParse(t, "proxy:\r\n  listen: \"127.0.0.1:9\"\r\n  credentials: [authorization,\r\n    x-key]\r\n")
	if c.Proxy.Listen != "127.0.0.1:9" || !slices.Equal(c.Proxy.Credentials, []string{"authorization", "x-key"}) {
		t.Errorf("got %+v", c.Proxy)
	}
}

// TestAllFaultsInOneRun holds that no fault hides another, whatever its kind.
func TestAllFaultsInOneRun(t *testing.T) {
	text := `proxy:
  lissen: 127.0.0.1:1
  timeouts: {header: 10, idle: 1d}
	client_address: forwarded
enforce:
  on_no_route: 405
 mode: observe
admin:
  listen: 0.0.0.0:8081
  mount: [unit
metrics:
  pprof: yes
routes:
  - match: GET /a/{b
  - match: * /c
    scopes: [d]
  - match: GET /e
   scopes: [f]
  - match: GET /g/{h}
  - match: GET /g/{i}
  - match: GET /j
    relax: [everything]
`
	type place struct {
		Line int
		Rule rule
	}
	var got []place
	for _, f := range faultsOf(t, text) {
		got = append(got, place{f.Line, f.Rule})
	}
	want := []place{
		{2, ruleUnknownKey}, {3, ruleDuration}, {4, ruleTab}, {6, ruleChoice}, {7, ruleSyntax}, {9, ruleExposed}, {10, ruleSyntax},
		{12, ruleType}, {14, ruleRoute}, {15, ruleNotPlain}, {18, ruleSyntax}, {20, ruleConflict}, {22, ruleRoute},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}

func TestFaultsPastTheBoundAreCounted(t *testing.T) {
	text := "proxy: {}\nroutes:\n" + strings.Repeat("  - {}\n", maxFaultsShown+7)
	_, err := parseConfig("test.yaml", []byte(text))
	if !strings.Contains(err.Error(), "\n… and 7 more.") {
		t.Errorf("message does not count what it leaves out:\n%v", err)
	}
}

func TestMessagesShowNoSecret(t *testing.T) {
	token := "tw_" + strings.Repeat("a1B2", 9) + "zz"
	for _, text := range []string{
		"proxy:\n  upstream: http://user:" + "hunter2hunter2@api.internal\n",
		"proxy:\n  upstream: [http://user:" + "hunter2hunter2@api.internal]\n",
		"proxy:\n  upstrean: http://user:" + "hunter2hunter2@api.internal\n",
		"tokenstore:\n  token: " + token + "\n",
		"tokenstore:\n  secret_prefix: " + token + "\n",
		token + ": 1\n",
	} {
		_, err := parseConfig("test.yaml", []byte(text))
		if err == nil {
			t.Errorf("not refused:\n%s", text)
			continue
		}
		e, _ := errors.AsType[*configError](err)
		asJSON, jerr := json.Marshal(e.Faults)
		if jerr != nil {
			t.Fatal(jerr)
		}
		for _, shown := range []string{err.Error(), string(asJSON)} {
			if strings.Contains(shown, token) || strings.Contains(shown, "hunter2") {
				t.Errorf("the message shows a secret:\n%s", shown)
			}
		}
	}
}

func TestTerminalIsNotSteeredByAMessage(t *testing.T) {
	_, err := parseConfig("test.yaml", []byte("proxy:\n  \"li\x1b[31m\u202esten\": \xff\n  a\u00a0b: 1\n"))
	for _, r := range err.Error() {
		if hidden(r) && r != '\n' || r == '\u00a0' {
			t.Fatalf("%U stands in the message:\n%q", r, err)
		}
	}
}

// TestExampleIsTheDefaults holds config.example.yaml to defaultConfig.
func TestExampleIsTheDefaults(t *testing.T) {
	c, err := loadConfig(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Routes) == 0 {
		t.Error("the example shows no route")
	}
	c.Routes = []RouteConfig{}
	if diff := cmp.Diff(defaultConfig(), c, cmpopts.IgnoreUnexported(RouteConfig{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("the example differs from the defaults (-defaults +example):\n%s", diff)
	}
}

// TestExampleDocumentsEachKey holds that each key has a comment above it that
// names its default and whether a reload applies it.
func TestExampleDocumentsEachKey(t *testing.T) {
	data, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	root, src := readYAML(data)
	d := &decoder{places: make(map[string]position), broken: make(map[string]bool)}
	c := defaultConfig()
	d.mapping("", root, reflect.ValueOf(c).Elem())
	for k := range configKeys() {
		at, ok := d.places[k.path]
		if !ok {
			t.Errorf("%s is not in the example", k.path)
			continue
		}
		line := at.line
		if k.path == "routes" { // its value begins further down
			line = 1 + slices.Index(src.lines, "routes:")
		}
		var comment []string
		for line--; line > 0 && strings.HasPrefix(strings.TrimSpace(src.lines[line-1]), "#"); line-- {
			comment = append(comment, strings.TrimPrefix(strings.TrimSpace(src.lines[line-1]), "#"))
		}
		slices.Reverse(comment)
		got := strings.Join(comment, "")
		_, got, _ = strings.Cut(got, " Default ")
		if want := fmt.Sprintf("%s. Reload: %s.", showDefault(k.in(defaultConfig())), k.reload); got != want {
			t.Errorf("the comment of %s ends in %q, not in %q", k.path, "Default "+got, "Default "+want)
		}
	}
	used := make(map[string]bool)
	for path := range d.places {
		if rest, ok := strings.CutPrefix(generalPath(path), "routes[]."); ok {
			used[rest] = true
		}
	}
	for key := range yamlFields(reflect.TypeFor[RouteConfig]()) {
		if !used[key] {
			t.Errorf("no route of the example uses %s", key)
		}
		if !bytes.Contains(data, []byte("# "+key+": ")) {
			t.Errorf("the example does not explain routes[].%s", key)
		}
	}
}

// showDefault writes a default as the example and the documentation do.
func showDefault(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		if x < 2*time.Minute {
			return fmt.Sprintf("%ds", x/time.Second)
		}
		return formatDuration(x)
	case string:
		if x == "" {
			return `""`
		}
		return x
	case SharedLimitsConfig:
		if x == (SharedLimitsConfig{}) {
			return "{}"
		}
	case map[string]ParentConfig:
		if len(x) == 0 {
			return "{}"
		}
	case instant:
		if x.IsZero() {
			return `""`
		}
		return x.Format(time.RFC3339)
	case []int:
		return strings.ReplaceAll(fmt.Sprint(x), " ", ", ")
	case []string:
		return "[" + strings.Join(x, ", ") + "]"
	case upstreamList:
		return strings.Join(x, ", ")
	}
	return fmt.Sprint(v.Interface())
}

// TestEachKeySaysWhetherAReloadAppliesIt also holds that no section was
// forgotten by walkKeys.
func TestEachKeySaysWhetherAReloadAppliesIt(t *testing.T) {
	n := 0
	for k := range configKeys() {
		n++
		if k.reload != "yes" && k.reload != "no" {
			t.Errorf("%s has no tag reload", k.path)
		}
	}
	if n < 50 {
		t.Errorf("only %d keys were visited", n)
	}
}

func TestRestartIsAskedForWhereAReloadDoesNotHelp(t *testing.T) {
	a := mustParse(t, "proxy:\n  listen: 127.0.0.1:1\nlog: {level: info}\n")
	b := mustParse(t, "proxy:\n  listen: 127.0.0.1:2\nlog: {level: debug}\nroutes:\n  - match: GET /\ntokenstore: {reset_grace: 1d}\n")
	if got, want := restartNeeded(a, b), []string{"proxy.listen", "tokenstore.reset_grace"}; !slices.Equal(got, want) {
		t.Errorf("restart for %v, want %v", got, want)
	}
	if got := restartNeeded(b, b); got != nil {
		t.Errorf("restart for %v without any change", got)
	}
}

func TestALongLineIsShownAndHidesNothingButItself(t *testing.T) {
	text := "log:\n  level: " + strings.Repeat("x", maxLineBytes) + "\nadmin: {insecure: maybe}\n"
	_, err := parseConfig("f.yaml", []byte(text))
	if err == nil || len(faultsOf(t, text)) != 2 || !strings.Contains(err.Error(), "2 |   level: xxx") {
		t.Errorf("got %v, want two faults and the beginning of the line", err)
	}
}

func TestMisspeltKeysGetASuggestion(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"prxoy: {}\n", "did you mean proxy?"},
		{"Proxy: {}\n", "did you mean proxy?"},
		{"token-store: {}\n", "did you mean tokenstore?"},
		{"proxy:\n  lisen: x\n", "did you mean listen?"},
		{"proxy:\n  trustedproxies: []\n", "did you mean trusted_proxies?"},
		{"proxy:\n  client-address: forwarded\n", "did you mean client_address?"},
		{"proxy:\n  zzz: x\n", "keys here: client_address, credentials, identity, limits, listen, proxy_protocol_from, timeouts, tls, trusted_proxies, upstream, upstream_tls"},
		{"upstream: x\n", "it is a key of proxy or routes[]; keys here: admin, "},
		{"path: x\n", "it is a key of audit or tokenstore; keys here: "},
		{"proxy:\n  stall: 1s\n", "it is a key of proxy.timeouts or routes[].timeouts; keys here: "},
		{"routes:\n  - match: GET /\n    scope: [a]\n", "did you mean scopes?"},
		{"enforce:\n  mode: enforced\n", "did you mean enforce?"},
		{"log:\n  level: warning\n", "write debug, info, warn or error"},
	} {
		faults := faultsOf(t, c.text)
		if len(faults) != 1 || !strings.HasPrefix(faults[0].Fix, c.want) {
			t.Errorf("%q: got %+v, want %q", c.text, faults, c.want)
		}
	}
}

func TestDurationsHaveOneNotation(t *testing.T) {
	const bad = -1
	for text, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "1ns": 1, "10s": 10 * time.Second, "1m30s": 90 * time.Second, "1.5h": 90 * time.Minute,
		"7d": 7 * 24 * time.Hour, "1d12h": 36 * time.Hour, "3650d": maxDuration,
		"": bad, "10": bad, "d": bad, "-1s": bad, "-0": bad, "+1s": bad, "1d-2h": bad, "1d+2h": bad, "1.5d": bad, "01d": bad, "1dd": bad, "h": bad,
		"1d1d": bad, "2h1d": bad, "3651d": bad, "3650d1s": bad, "99999999999d": bad, "9999999h": bad, "1 s": bad, " 1s": bad, "1S": bad, "1w": bad, "5min": bad,
	} {
		got, err := parseDuration(text)
		if want == bad {
			if err == nil {
				t.Errorf("%q is read as %v", text, got)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%q: got %v, %v; want %v", text, got, err, want)
		}
		if again, err := parseDuration(formatDuration(got)); err != nil || again != got {
			t.Errorf("%q is printed as %q, which is read as %v, %v", text, formatDuration(got), again, err)
		}
	}
}

func TestDurationsArePrintedShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0", 10 * time.Second: "10s", 90 * time.Second: "1m30s", 12 * time.Hour: "12h", 24 * time.Hour: "1d",
		90 * 24 * time.Hour: "90d", 36 * time.Hour: "1d12h", time.Millisecond: "1ms", 20 * time.Minute: "20m",
	} {
		if got := formatDuration(d); got != want {
			t.Errorf("%v is printed as %q, want %q", d, got, want)
		}
	}
}

func TestSizesHaveOneNotation(t *testing.T) {
	const bad = -1
	for text, want := range map[string]byteSize{
		"0": 0, "1": 1, "65536": 65536, "64KiB": 65536, "1MiB": 1 << 20, "2GiB": 2 << 30, "1048576GiB": maxSize, "0KiB": 0,
		"": bad, "KiB": bad, "-1": bad, "+1": bad, "1.5KiB": bad, "01": bad, "1 KiB": bad, "1KB": bad, "1kib": bad, "1k": bad, "1B": bad, "0x10": bad, "1_000": bad,
		"1048577GiB": bad, "99999999999999999999": bad, "9223372036854775807": bad, "1e3": bad,
	} {
		got, err := parseSize(text)
		if (want == bad) != (err != nil) || want != bad && got != want {
			t.Errorf("%q: got %v, %v; want %v", text, got, err, want)
		}
	}
}

func TestNumbersHaveOneReading(t *testing.T) {
	for _, text := range []string{"010", "0x10", "0o10", "0b1", "1_000", "+5", "-5", "1.0", "1e3", "\"5\"", ".inf", "null", "yes", "99999999999999999999", "4294967296"} {
		if _, err := parseConfig("test.yaml", []byte("tokenstore:\n  cache_entries: "+text+"\n")); err == nil {
			t.Errorf("%s is taken as a number", text)
		}
	}
	if c := mustParse(t, "tokenstore:\n  cache_entries: 0\n"); c.TokenStore.CacheEntries != 0 {
		t.Error("0 is not taken as a number")
	}
}

func TestListenAddresses(t *testing.T) {
	for listen, want := range map[string]bool{
		"127.0.0.1:8080": true, ":8080": true, "0.0.0.0:8080": true, "[::]:8080": true, "[::1]:0": true, "localhost:1": true, "[fe80::1%eth0]:80": true, "127.0.0.1:65535": true,
		"8080": false, "127.0.0.1": false, "127.0.0.1:": false, "127.0.0.1:65536": false, "127.0.0.1:-1": false, "127.0.0.1:080": false, "127.0.0.1:http": false,
		"::1:8080": false, "example.com:80": false, "unix:/run/x": false, "": false, "127.1:80": false, " 127.0.0.1:80": false,
	} {
		_, err := parseConfig("test.yaml", []byte("metrics:\n  listen: \""+listen+"\"\nproxy: {listen: \"127.0.0.1:9001\"}\nadmin: {listen: \"127.0.0.1:9002\"}\n"))
		if (err == nil) != want {
			t.Errorf("%q: got %v", listen, err)
		}
	}
}

func TestListenersDoNotShareAPort(t *testing.T) {
	for _, c := range []struct {
		proxy, metrics string
		same           bool
	}{
		{":1", "127.0.0.1:1", true}, {"127.0.0.1:1", "0.0.0.0:1", true}, {"[::]:1", "127.0.0.1:1", true}, {"localhost:1", "[::1]:1", true}, {"127.0.0.1:1", "127.0.0.1:1", true},
		{"127.0.0.1:1", "127.0.0.2:1", false}, {":0", ":0", false}, {":1", ":2", false}, {"localhost:1", "192.0.2.1:1", false},
	} {
		_, err := parseConfig("test.yaml", fmt.Appendf(nil, "proxy:\n  listen: %q\nmetrics:\n  listen: %q\n", c.proxy, c.metrics))
		if (err != nil) != c.same {
			t.Errorf("%s and %s: got %v", c.proxy, c.metrics, err)
		}
	}
}

func TestAdminIsNotExposedWithoutTLS(t *testing.T) {
	for _, c := range []struct {
		admin   string
		refused bool
	}{
		{"{listen: \"127.0.0.1:1\"}", false}, {"{listen: \"[::1]:1\"}", false}, {"{listen: \"localhost:1\"}", false},
		{"{listen: \":1\"}", true}, {"{listen: \"0.0.0.0:1\"}", true}, {"{listen: \"192.0.2.1:1\"}", true}, {"{listen: \"[::]:1\"}", true}, {"{listen: \"[::ffff:192.0.2.1]:1\"}", true},
		{"{listen: \":1\", insecure: false}", true}, {"{listen: \":1\", insecure: true}", false},
		{"{listen: \":1\", tls: {cert_file: c, key_file: k}}", false},
		{"{listen: \":1\", tls: {cert_file: \"\", key_file: \"\"}}", true},
	} {
		_, err := parseConfig("test.yaml", []byte("admin: "+c.admin+"\n"))
		if (err != nil) != c.refused {
			t.Errorf("%s: got %v", c.admin, err)
		}
	}
}

func TestUpstreamsAreURLsOfAHostAlone(t *testing.T) {
	for upstream, want := range map[string]bool{
		"http://127.0.0.1:3000": true, "https://api.internal": true, "http://[::1]:3000/": true, "http://api": true,
		"api:3000": false, "127.0.0.1:3000": false, "//api": false, "http://": false, "http://:80": false, "http://api:0": false, "http://api:99999": false, "http://api:": false,
		"ftp://api": false, "h2c://api": true, "h2c://127.0.0.1:8080": false, "http://api/v1": false, "http://api?a=b": false, "http://api?": false, "http://api#x": false, "http://api#": false, "http://u@api": false, "http://u:p@api": false,
		"http://a b": false, "http://a%41": false, "unix:///run/api": false, "": false, "HTTP://api": true,
		"http://127.0.0.1:8080": false, "http://localhost:8080": false, "http://127.0.0.1:8081": false, "http://[::1]:8080": true,
	} {
		c, err := parseConfig("test.yaml", fmt.Appendf(nil, "proxy:\n  upstream: %q\n", upstream))
		if (err == nil) != want {
			t.Errorf("%q: got %v", upstream, err)
		}
		if err != nil {
			continue
		}
		if u := upstreamURL(c.Proxy.Upstream[0]); len(c.Proxy.Upstream) != 1 || u.Host == "" || u.Path != "" {
			t.Errorf("%q becomes %v", upstream, u)
		}
	}
}

// TestConfigFeedsThePackages holds that what was accepted is accepted by those
// who get it.
func TestConfigFeedsThePackages(t *testing.T) {
	c, err := loadConfig(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	policy, faults := enforce.Compile(c.routeSpecs(), c.enforceOptions())
	if len(faults) > 0 || len(policy.Routes()) != len(c.Routes) {
		t.Errorf("routes: %v", faults)
	}
	for i, r := range policy.Routes() {
		if r.Line == 0 || r.Line != c.Routes[i].line {
			t.Errorf("route %s does not know its line", r.Pattern)
		}
	}
	for _, o := range []canon.Options{c.canonOptions(), c.adminCanonOptions()} {
		if _, err := canon.NewRules(o); err != nil {
			t.Error(err)
		}
	}
	names := c.identityNames()
	h, err := identity.New(names)
	if err != nil || !slices.Equal(h.Names(), c.canonOptions().Sets) {
		t.Errorf("identity headers %v are not those that are removed, %v (%v)", h.Names(), c.canonOptions().Sets, err)
	}
}

func TestHeaderThatIsOffIsNotSet(t *testing.T) {
	c := mustParse(t, "proxy:\n  identity: {name: off, scopes: X-Rights}\n")
	if n := c.identityNames(); n.Name != "" || n.Scopes != "X-Rights" || n.ID != "X-Token-Id" {
		t.Errorf("got %+v", n)
	}
	if sets := c.canonOptions().Sets; slices.Contains(sets, "off") || len(sets) != 5 {
		t.Errorf("got %v", sets)
	}
}

func TestRouteKeysReachTheSpec(t *testing.T) {
	c := mustParse(t, `routes:
- match: POST /a/{b}
  scopes: [s, "t|u"]
  resources: ["account:{b}"]
  token_account: "{b}"
  restricted_tokens: allow
  access: read
  relax: [semicolon]
- match: GET /p
  public: true
  restricted_tokens: refuse
`)
	want := []enforce.RouteSpec{
		{Match: "POST /a/{b}", Scopes: []string{"s", "t|u"}, Resources: []string{"account:{b}"}, TokenAccount: "{b}", RestrictedTokens: true, Access: "read", Relax: []string{"semicolon"}, Line: 2},
		{Match: "GET /p", Public: true, Line: 9},
	}
	if diff := cmp.Diff(want, c.routeSpecs(), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMountedPathsAreReserved(t *testing.T) {
	c := defaultConfig()
	c.Admin.Mount = []string{"mailtrap"}
	if got := c.enforceOptions().Reserved; !slices.Equal(got, mountedPaths["mailtrap"]) {
		t.Errorf("got %v", got)
	}
	for _, api := range choices["admin.mount"] {
		if len(mountedPaths[api]) == 0 {
			t.Errorf("%s takes no path", api)
		}
	}
}

// TestDeepNestingIsNoCrash holds against the parser's recursion.
func TestDeepNestingIsNoCrash(t *testing.T) {
	for name, text := range map[string]string{
		"brackets":        "a: " + strings.Repeat("[", 4000),
		"closed brackets": "a: " + strings.Repeat("[", 2000) + strings.Repeat("]", 2000),
		"lines":           strings.Repeat("[\n", maxConfigBytes/20),
		"braces":          strings.Repeat("{a: \n", maxConfigBytes/50),
		"dashes":          strings.Repeat("- ", 2000) + "a",
		"question marks":  strings.Repeat("? ", 2000) + "a",
		"tags":            strings.Repeat("!a ", 1300) + "a",
		"anchors":         strings.Repeat("&a ", 1300) + "a",
		"stairs":          stairs(2000),
		"laughs":          "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n",
	} {
		t.Run(name, func(t *testing.T) { faultsOf(t, text) })
	}
}

// TestHugeFilesAreAnswered holds against what takes minutes or gigabytes: the
// parser and the rules compare some things pairwise.
func TestHugeFilesAreAnswered(t *testing.T) {
	for name, text := range map[string]string{
		"the same route":  "routes:\n" + strings.Repeat("  - match: GET /a/{x}\n", maxItems/4),
		"dashes":          strings.Repeat("- \n", 4*maxDashes),
		"aliases":         "a: [" + strings.Repeat("*a,\n", maxTokens/2) + "]",
		"broken sections": strings.Repeat("a: [\n", maxConfigBytes/25),
	} {
		t.Run(name, func(t *testing.T) {
			if n := len(faultsOf(t, text)); n > maxItems {
				t.Errorf("%d faults are kept", n)
			}
		})
	}
}

func stairs(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

// FuzzConfig holds that no text makes the loader panic, and that what it takes
// fits together.
func FuzzConfig(f *testing.F) {
	paths, err := filepath.Glob("testdata/busted_*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range append(paths, examplePath) {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConfig("fuzz.yaml", data)
		if err != nil {
			e, ok := errors.AsType[*configError](err)
			if !ok || len(e.Faults) == 0 || c != nil {
				t.Fatalf("refused without a fault: %v", err)
			}
			for _, fault := range e.Faults {
				if fault.Line < 0 || fault.Line > len(e.lines) || fault.Problem == "" || fault.Fix == "" {
					t.Fatalf("fault without a place: %+v", fault)
				}
			}
			_ = err.Error()
			return
		}
		if _, faults := enforce.Compile(c.routeSpecs(), c.enforceOptions()); len(faults) > 0 {
			t.Fatalf("accepted routes do not compile: %v", faults)
		}
		if _, err := canon.NewRules(c.canonOptions()); err != nil {
			t.Fatalf("accepted rules do not compile: %v", err)
		}
		if _, err := identity.New(c.identityNames()); err != nil {
			t.Fatalf("accepted names are refused: %v", err)
		}
		if c.Admin.Listen != "" && !loopback(c.Admin.Listen) && !c.Admin.TLS.Enabled() && !c.Admin.Insecure {
			t.Fatal("the admin listener is exposed")
		}
		if _, err := newUpstreamSet(c); err != nil && !c.Proxy.UpstreamTLS.used() {
			t.Fatalf("accepted upstreams are refused: %v", err)
		}
	})
}

// TestHeaderThatIsOffIsStillRemoved holds that nobody can say who he is in a
// header that an upstream was used to believe.
func TestHeaderThatIsOffIsStillRemoved(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{"proxy: {}\n", []string{"X-Token-Jwt"}},
		{"proxy:\n  identity: {name: off, scopes: X-Rights}\n", []string{"X-Token-Name", "X-Token-Scopes", "X-Token-Jwt"}},
		{"proxy:\n  identity: {id: off, account: x-token-id, signed: x-token-jwt, signing_key_files: [k]}\n", []string{"X-Token-Account"}},
		{"proxy:\n  identity: {signed: X-Proof, signing_key_files: [k]}\n", []string{"X-Token-Jwt"}},
		{"proxy:\n  credentials: [x_token.id, x-token-jwt]\n  identity: {id: off, owner: off}\n", []string{"X-Token-Owner"}},
	} {
		o := mustParse(t, c.text).canonOptions()
		if !slices.Equal(o.Removes, c.want) {
			t.Errorf("%q removes %v, want %v", c.text, o.Removes, c.want)
		}
		if _, err := canon.NewRules(o); err != nil {
			t.Errorf("%q: %v", c.text, err)
		}
	}
}

// generalPath is the path with the numbers of list items left out.
func generalPath(path string) string {
	var b strings.Builder
	inside := false
	for _, r := range path {
		switch r {
		case '[':
			b.WriteString("[]")
			inside = true
		case ']':
			inside = false
		default:
			if !inside {
				b.WriteRune(r)
			}
		}
	}
	return b.String()
}

// TestTokenAPIsAreConfigured holds what the contracts leave to the operator.
func TestTokenAPIsAreConfigured(t *testing.T) {
	if got := defaultConfig().serviceOptions().Prefixes; !maps.Equal(got, map[string]string{"fynn": "api"}) {
		t.Errorf("by default, secrets begin %v", got)
	}
	c := mustParse(t, "admin:\n  secret_prefix: {unit: un, fynn: '', native: nt}\n  mailtrap: {requests: 0, default_lifetime: 365d}\n")
	if got := c.serviceOptions().Prefixes; !maps.Equal(got, map[string]string{"unit": "un", "native": "nt"}) {
		t.Errorf("secrets begin %v", got)
	}
	if m := c.Admin.Mailtrap; m.Requests != 0 || m.DefaultLifetime != 365*24*time.Hour {
		t.Errorf("%+v", m)
	}
}
