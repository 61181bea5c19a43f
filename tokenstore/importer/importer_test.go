package importer_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/importer"
)

// read renders what a file yields, one line for each entry.
func read(t testing.TB, format, text string, o importer.Options) []string {
	t.Helper()
	items, err := importer.Read(format, strings.NewReader(text), o)
	if err != nil {
		return []string{"refused: " + err.Error()}
	}
	var got []string
	for item, err := range items {
		switch _, line := errors.AsType[*importer.LineError](err); {
		case line:
			got = append(got, err.Error())
		case err != nil:
			got = append(got, "stopped: "+err.Error())
		default:
			key := item.Secret.Reveal()
			if item.Secret.IsZero() {
				key = item.Scheme.String() + ":" + hex.EncodeToString(item.Digest[:4])
			}
			more := ""
			if item.Expiry != nil && !item.Expiry.Never {
				more += " until " + item.Expiry.At.Format(time.RFC3339)
			}
			if item.Limits != nil {
				more += fmt.Sprintf(" %+v", *item.Limits)
			}
			if item.Disabled {
				more += " disabled"
			}
			got = append(got, fmt.Sprintf("%d %s %s%s", item.Line, key, item.Name, more))
		}
	}
	return got
}

func TestFormatsAreReadAndFaultsNamed(t *testing.T) {
	t.Parallel()
	sum := sha256.Sum256([]byte("secret"))
	short := hex.EncodeToString(sum[:4])
	for name, test := range map[string]struct {
		format, text string
		options      importer.Options
		want         []string
	}{
		"CSV": {"csv", "\ufeffSecret, name\nabc,one\n\"d\"\"e\",two\n", importer.Options{}, []string{`2 abc one`, `3 d"e two`}},
		"CSV of digests": {"csv", "digest,name\n" + hex.EncodeToString(sum[:]) + ",hex\n" + base64.StdEncoding.EncodeToString(sum[:]) + ",base64\n" + base64.RawURLEncoding.EncodeToString(sum[:]) + ",url\nabc,short\n", importer.Options{},
			[]string{"2 sha256:" + short + " hex", "3 sha256:" + short + " base64", "4 sha256:" + short + " url", "entry 5 has no digest of 32 bytes in hexadecimal or base64"}},
		"CSV of HMAC":             {"csv", "digest\n" + hex.EncodeToString(sum[:]) + "\n", importer.Options{Digest: "hmac-sha256"}, []string{"2 hmac-sha256:" + short + " "}},
		"CSV with faults":         {"csv", "secret,account,expires_at\na,x,\nb,,soon\nc\n,1,\nd,2,never\n", importer.Options{}, []string{"entry 2 has a wrong account: it must be a whole number from 1", "entry 3 has a wrong expires_at: it must be a time (RFC 3339) or never", "entry 4 has 1 fields, and the first line names 3", "entry 5 has no key", "6 d "}},
		"CSV without a key":       {"csv", "name\na\n", importer.Options{}, []string{"stopped: the first line must name one of the columns secret and digest"}},
		"CSV with both keys":      {"csv", "secret,digest\na,b\n", importer.Options{}, []string{"stopped: the first line must name one of the columns secret and digest"}},
		"CSV with a column twice": {"csv", "secret,name,name\n", importer.Options{}, []string{"stopped: the first line names the column name twice"}},
		"JSON lines": {"jsonl", `{"secret":"abc","name":"one","limits":{"rate":2}}` + "\n\n" + `{"secret":"d","expires_at":"2027-01-01T00:00:00Z","disabled":true}`, importer.Options{},
			[]string{"1 abc one {Rate:2 Burst:0 Quotas:[] Uses:0 Concurrent:0}", "3 d  until 2027-01-01T00:00:00Z disabled"}},
		"JSON lines with faults": {"jsonl", `{"secret":"a","digest":"b"}` + "\n" + `{"secret":"a","scope":[]}` + "\nsecret\n" + `{"secret":"a"} {"secret":"b"}` + "\n" + `{"digest":"ab","digest_type":"md5"}`, importer.Options{}, []string{
			"entry 1 is not a JSON object with secret or digest, and the fields of a token", "entry 2 is not a JSON object with secret or digest, and the fields of a token", "entry 3 is not a JSON object with secret or digest, and the fields of a token", "entry 4 is not a JSON object with secret or digest, and the fields of a token",
			"entry 5 has a digest that is refused: md5 is not a cryptographic hash, so other texts than the secret would be let in: import the secrets themselves"}},
		"JSON lines read in two ways": {"jsonl", strings.Join([]string{
			`{"secret":"a","scopes":["x"],"scop\u0065s":["*"]}`, `{"secret":"a","SCOPES":["*"]}`, `{"secret":"a","sources":{"allow":[],"deny":["192.0.2.1"],"deny":[]}}`,
			`{"secret":"a","name":"\ud800"}`, "{\"secret\":\"a\",\"name\":\"\xff\"}", `{"secret":"a","scopes":[],"limits":{"quota":[{"count":1,"count":2,"per":"day"}]}}`,
			`{"secret":"a","name":"secret","last4":"name"}`,
		}, "\n"), importer.Options{}, []string{
			"entry 1 has a field twice", "entry 2 is not a JSON object with secret or digest, and the fields of a token", "entry 3 has a field twice",
			"entry 4 holds text that is not Unicode", "entry 5 holds text that is not Unicode", "entry 6 has a field twice", "7 a secret",
		}},
		"times": {"jsonl", strings.Join([]string{
			`{"secret":"a","expires_at":"2027-01-01t00:00:00z"}`, `{"secret":"a","expires_at":"2027-01-01T00:00:00,5Z"}`, `{"secret":"a","not_before":"0001-01-01T00:00:00Z"}`, `{"secret":"a","not_before":null,"expires_at":5}`,
		}, "\n"), importer.Options{}, []string{
			"1 a  until 2027-01-01T00:00:00Z", "entry 2 has a wrong expires_at: it must be a time (RFC 3339) or null", "entry 3 has a wrong not_before: it must be a time (RFC 3339) or null", "entry 4 has a wrong expires_at: it must be a time (RFC 3339) or null",
		}},
		"CSV times":                        {"csv", "secret,not_before,expires_at\na,0001-01-01T00:00:00Z,never\nb,,2027-01-01t00:00:00z\n", importer.Options{}, []string{"entry 2 has a wrong not_before: it must be a time (RFC 3339)", "3 b  until 2027-01-01T00:00:00Z"}},
		"Kong's Admin API":                 {"kong", `{"data":[{"id":"1","key":"k1","consumer":{"id":"c1"},"created_at":1600000000,"ttl":60,"tags":null},{"id":"2","key":"k2","ttl":null}],"next":null}`, importer.Options{ExportedAt: time.Unix(1700000000, 0)}, []string{"1 k1 c1 until 2023-11-14T22:14:20Z", "2 k2 2"}},
		"Kong's declarative configuration": {"kong", `{"_format_version":"3.0","consumers":[{"username":"ann","keyauth_credentials":[{"key":"k1"},{"key":"k2"}]}],"keyauth_credentials":[{"key":"k3","consumer":"bob"}]}`, importer.Options{}, []string{"1 k3 bob", "2 k1 ann", "3 k2 ann"}},
		"one page of Kong":                 {"kong", `{"data":[{"key":"k1"}],"next":"/key-auths?offset=x"}`, importer.Options{}, []string{"stopped: the file ends with a page that is not the last one: append the others, each of which `next` names, or use `deck gateway dump`"}},
		"Tyk's sessions by key":            {"tyk", `{"apikey-plain-key-of-tyk":{"alias":"a","expires":1700000000,"rate":10,"per":5,"quota_max":100,"quota_renewal_rate":3600,"is_inactive":true}}`, importer.Options{}, []string{"1 plain-key-of-tyk a until 2023-11-14T22:13:20Z {Rate:2 Burst:10 Quotas:[{Count:100 Per:hour}] Uses:0 Concurrent:0} disabled"}},
		"Tyk's list":                       {"tyk", `{"keys":[{"key_id":"key-of-tyk","data":{"alias":"a","expires":-1}},{"key":"x"}]}`, importer.Options{}, []string{"1 key-of-tyk a", "entry 2 has no session"}},
		"Tyk's sha256":                     {"tyk", `[{"key_hash":"` + hex.EncodeToString(sum[:]) + `","session":{}}]`, importer.Options{Digest: "sha256"}, []string{"1 sha256:" + short + " imported from Tyk"}},
		"Tyk's murmur":                     {"tyk", `{"1a2b3c4d":{},"1a2b3c4d5e6f7a8b":{}}`, importer.Options{}, []string{tykMurmur(1), tykMurmur(2)}},
		"Tyk's odd quota":                  {"tyk", `{"key-of-tyk":{"quota_max":1,"quota_renewal_rate":7}}`, importer.Options{}, []string{"entry 1 has a quota that is renewed every 7 seconds: quotas are by minute, hour, day or month"}},
		"APISIX's consumers":               {"apisix", `{"total":2,"list":[{"key":"/apisix/consumers/jack","value":{"username":"jack","plugins":{"key-auth":{"key":"k1"}}}},{"key":"/apisix/consumers/jill","value":{"username":"jill","plugins":{"jwt-auth":{"key":"x"}}}}]}`, importer.Options{}, []string{"1 k1 jack"}},
		"APISIX's credentials":             {"apisix", `{"list":[{"key":"/apisix/consumers/jack/credentials/main","value":{"plugins":{"key-auth":{"key":"k1"}}}}]}`, importer.Options{}, []string{"1 k1 jack/main"}},
		"APISIX, standalone":               {"apisix", `{"consumers":[{"username":"jack","plugins":{"key-auth":{"key":"$env://KEY"}}}]}`, importer.Options{}, []string{"entry 1 names a secret that is kept elsewhere: put the key itself into the file"}},
		"APISIX's reference in capitals":   {"apisix", `{"consumers":[{"username":"jack","plugins":{"key-auth":{"key":"$ENV://JACKS_API_KEY_FOR_OUR_API"}}}]}`, importer.Options{}, []string{"entry 1 names a secret that is kept elsewhere: put the key itself into the file"}},
		"Kong's references":                {"kong", `{"data":[{"key":"{vault://env/jacks-api-key-for-our-api}"},{"key":"${{env_JACKS_API_KEY_FOR_OUR_API}}"}]}`, importer.Options{}, []string{"entry 1 names a secret that is kept elsewhere: put the key itself into the file", "entry 2 names a secret that is kept elsewhere: put the key itself into the file"}},
		"a misspelt restriction":           {"jsonl", `{"secret":"a","sources":{"allow":["0.0.0.0/0"],"denied":["192.0.2.1"]}}` + "\n" + `{"secret":"a","resources":[{"type":"a","id":"b","level":"read","levels":"write"}]}`, importer.Options{}, []string{`entry 1 has wrong sources: they are "any", or allow and deny`, `entry 2 has wrong resources: they are "all" or a list of type, id and level`}},
		"no JSON":                          {"kong", `{"data":[{"key":"a secret" oops`, importer.Options{}, []string{"stopped: the file is not JSON from byte 28 on"}},
		"a key that is a number":           {"kong", `{"data":[{"key":7},{"key":"k2","id":"2"}]}`, importer.Options{}, []string{"entry 1 has a key of another kind than it should be, as text is that stands without quotes", "2 k2 2"}},
		"two documents":                    {"apisix", `{}{}`, importer.Options{}, []string{notAPISIX(1), notAPISIX(2)}},
		"murmur":                           {"csv", "", importer.Options{Digest: "murmur64"}, []string{"refused: murmur64 is not a cryptographic hash, so other texts than the secret would be let in: import the secrets themselves"}},
		"bcrypt":                           {"csv", "", importer.Options{Digest: "bcrypt"}, []string{`refused: "bcrypt" is not a kind of digest that can be imported: write sha256 or hmac-sha256, or import the secrets themselves`}},
		"no format":                        {"xml", "", importer.Options{}, []string{`refused: "xml" is not a format: write one of apisix, csv, jsonl, kong, tyk`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := read(t, test.format, test.text, test.options); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

func notAPISIX(n int) string {
	return fmt.Sprintf("entry %d is nothing of APISIX's that holds keys: give the answer of `GET /apisix/admin/consumers`, or a standalone configuration", n)
}

func TestExportsAsTheProductsWriteThem(t *testing.T) {
	t.Parallel()
	hash := strings.Repeat("0123456789abcdef", 4)
	const (
		notKong   = " is nothing of Kong's that holds keys: give the answer of `GET /key-auths`, or a declarative configuration"
		noSession = "entry 1 is a key without its session: get each with `GET /tyk/keys/KEY`, and give an object of sessions by key"
		tykSHA    = "entry 1 looks like a SHA-256 of the key: say --digest sha256, or --digest none if it is the key itself"
	)
	for name, test := range map[string]struct {
		format, text string
		options      importer.Options
		want         []string
	}{
		"decK's YAML": {"kong", "_format_version: \"3.0\"\nconsumers:\n- custom_id: \"7\"\n  keyauth_credentials:\n  - key: k1 # of ann\n    tags: [a, b]\n  - key: 'k''2'\n  username: ann\n- username: bob\n  basicauth_credentials:\n  - {username: bob, password: p}\nservices: []\n", importer.Options{}, []string{"1 k1 ann", "2 k'2 ann"}},
		"Kong's db_export": {"kong", "_format_version: '3.0'\n_transform: false\nconsumers:\n- id: c-1\n  username: ann\nkeyauth_credentials:\n- consumer: c-1\n  created_at: 1600000000\n  id: i-1\n  key: k1\n  tags: ~\n  ttl: 60\n", importer.Options{ExportedAt: time.Unix(1700000000, 0)},
			[]string{"1 k1 ann until 2023-11-14T22:14:20Z"}},
		"a ttl of Kong from nobody knows when": {"kong", `{"data":[{"key":"k1","ttl":60,"created_at":1700000000}],"next":null}`, importer.Options{}, []string{"entry 1 has a ttl, which counts from when it was exported: say when that was"}},
		"a ttl that overflows":                 {"kong", `{"data":[{"key":"k1","ttl":9223372036854775807},{"key":"k2","ttl":-1}]}`, importer.Options{ExportedAt: time.Unix(1, 0)}, []string{"entry 1 has a ttl that is none of Kong's", "entry 2 has a ttl that is none of Kong's"}},
		"Kong's pages behind one another":      {"kong", `{"data":[{"key":"k1","id":"1"}],"next":"/key-auths?offset=x","offset":"x"}` + "\n" + `{"data":[{"key":"k2","id":"2"}],"next":null}`, importer.Options{}, []string{"1 k1 1", "2 k2 2"}},
		"Kong's pages in a list":               {"kong", `[{"data":[{"key":"k1","id":"1"}],"next":"/key-auths?offset=x"},{"data":{},"next":null}]`, importer.Options{}, []string{"1 k1 1"}},
		"one credential of Kong":               {"kong", `{"key":"k1","id":"1","consumer":{"id":"c"}}`, importer.Options{}, []string{"1 k1 c"}},
		"Kong's consumers":                     {"kong", `{"data":[{"id":"1","username":"ann"}],"next":null}`, importer.Options{}, []string{"entry 1 is a consumer without its keys: give the answer of `GET /key-auths`, or a declarative configuration"}},
		"the configuration of a DB-less node":  {"kong", `{"config":"_format_version: '3.0'\nconsumers:\n- {username: ann, keyauth_credentials: [{key: k1}]}\n"}`, importer.Options{}, []string{"1 k1 ann"}},
		"another's export":                     {"kong", `{"list":[{"key":"/apisix/consumers/jack","value":{}}]}`, importer.Options{}, []string{"entry 1" + notKong}},
		"a key in YAML without quotes":         {"kong", "keyauth_credentials:\n- key: 0123\n- key: 1.5\n- key: true\n- key: ok\n", importer.Options{}, []string{"entry 1 has a key of another kind than it should be, as text is that stands without quotes", "entry 2 has a key of another kind than it should be, as text is that stands without quotes", "entry 3 has a key of another kind than it should be, as text is that stands without quotes", "4 ok imported from Kong"}},
		"an alias of YAML":                     {"kong", "a: &a {key: k1}\nkeyauth_credentials:\n- *a\n", importer.Options{}, []string{"stopped: line 1 uses an anchor, an alias, a tag or the like: write out what it stands for, as `yq 'explode(.)'` does, or give the file as JSON"}},
		"a name twice in YAML":                 {"kong", "keyauth_credentials:\n- key: k1\n  ttl: 5\n  ttl: 0\n", importer.Options{}, []string{"stopped: line 4 has a name that stands there twice"}},
		"an empty file":                        {"kong", " \n", importer.Options{}, []string{"stopped: the file is empty"}},
		"UTF-16":                               {"kong", "\xff\xfe{\x00", importer.Options{}, []string{"stopped: the file is UTF-16: save it as UTF-8"}},
		"a byte order mark":                    {"kong", "\ufeff" + `{"key":"k1","id":"1"}`, importer.Options{}, []string{"1 k1 1"}},
		"a key that is no Unicode":             {"kong", "{\"key\":\"k\xff1\"}", importer.Options{}, []string{"stopped: the file is not UTF-8: save it as that"}},

		"Tyk's keys alone":                {"tyk", `{"keys":["key-of-tyk"]}`, importer.Options{}, []string{noSession}},
		"the Dashboard's page":            {"tyk", `{"data":{"keys":[{"key_id":"key-of-tyk","data":{"alias":"a"}}]},"pages":1}`, importer.Options{}, []string{"1 key-of-tyk a"}},
		"one key of the Dashboard":        {"tyk", `{"api_model":{},"key_id":"key-of-tyk","key_hash":"","data":{"alias":"a","expires":-1},"is_good":true}`, importer.Options{}, []string{"1 key-of-tyk a"}},
		"a session without its key":       {"tyk", `{"alias":"a","expires":0,"access_rights":{}}`, importer.Options{}, []string{"entry 1 has no key beside its session: give an object of sessions by key"}},
		"a dump of Redis":                 {"tyk", `{"db":0,"key":"apikey-key-of-tyk","ttl":-1,"type":"string","value":"{\"alias\":\"a\",\"expires\":1700000000}","size":9}` + "\n", importer.Options{}, []string{"1 key-of-tyk a until 2023-11-14T22:13:20Z"}},
		"sessions as text by key":         {"tyk", `{"apikey-key-of-tyk":"{\"alias\":\"a\"}","quota-x":"5"}`, importer.Options{}, []string{"1 key-of-tyk a", "entry 2 has no session"}},
		"Tyk's sha256 taken for a secret": {"tyk", `{"` + hash + `":{}}`, importer.Options{}, []string{tykSHA}},
		"Tyk's hash said to be the key":   {"tyk", `[{"key_hash":"` + hash + `","data":{}},{"key_hash":"1a2b3c4d","data":{}},{"key":"` + hash + `","data":{"alias":"a"}}]`, importer.Options{Digest: "none"}, []string{tykSHA, tykMurmur(2), "3 " + hash + " a"}},
		"Tyk's keys that are no secrets": {"tyk", `{"a":{"basic_auth_data":{"password":"p"}},"b":{"hmac_enabled":true},"c":{"jwt_data":{"secret":"s"}},"d":{"certificate":"x"},"e":{"mtls_static_certificate_bindings":["x"]},"f":{"enable_http_signature_validation":true}}`, importer.Options{}, []string{
			"entry 1 is a user with a password, not a key", "entry 2 is a key for signatures: its name is not a secret", "entry 3 is a key for JWTs: its name is not a secret",
			"entry 4 is bound to a client certificate, which a token cannot be", "entry 5 is bound to a client certificate, which a token cannot be", "entry 6 is a key for signatures: its name is not a secret",
		}},
		"a rate that overflows": {"tyk", `{"key-of-tyk":{"rate":1e300,"per":1}}`, importer.Options{}, []string{"entry 1 has a rate that is none"}},

		"APISIX 2":                    {"apisix", `{"action":"get","count":2,"node":{"dir":true,"key":"/apisix/consumers","nodes":[{"key":"/apisix/consumers/jack","value":{"username":"jack","plugins":{"key-auth":{"key":"k1","disable":true}}}}]}}`, importer.Options{}, []string{"1 k1 jack disabled"}},
		"APISIX 2 without consumers":  {"apisix", `{"action":"get","count":0,"node":{"dir":true,"key":"/apisix/consumers","nodes":{}}}`, importer.Options{}, nil},
		"a consumer of APISIX 2":      {"apisix", `{"action":"get","node":{"key":"/apisix/consumers/jack","value":{"username":"jack","plugins":{"key-auth":{"key":"k1"}}}}}`, importer.Options{}, []string{"1 k1 jack"}},
		"a consumer of APISIX 3":      {"apisix", `{"key":"/apisix/consumers/jack","value":{"username":"jack","plugins":{"key-auth":{"key":"k1","_meta":{"disable":true}}}},"createdIndex":1,"modifiedIndex":2}`, importer.Options{}, []string{"1 k1 jack disabled"}},
		"a standalone configuration":  {"apisix", "routes:\n  -\n    uri: /hello\n    plugins:\n      key-auth: {}\nconsumers:\n  - username: jack\n    plugins:\n      key-auth:\n        key: k1\n  - username: jill\n    plugins: {}\n  - id: jill/credentials/main\n    plugins:\n      key-auth: {key: k2}\n#END\n", importer.Options{}, []string{"1 k1 jack", "2 k2 jill/main"}},
		"what adc dumps":              {"apisix", "consumers:\n  - username: jane\n    credentials:\n      - name: primary\n        type: key-auth\n        config:\n          key: k1\n      - name: other\n        type: jwt-auth\n        config: {key: k2}\n", importer.Options{}, []string{"1 k1 jane/primary"}},
		"lines of etcdctl":            {"apisix", "/apisix/consumers/\ninit_dir\n/apisix/consumers/jack\n" + `{"username":"jack","plugins":{"key-auth":{"key":"k1"}}}` + "\n/apisix/consumers/jack/credentials/main\n" + `{"id":"main","plugins":{"key-auth":{"key":"k2"}}}` + "\n/apisix/routes/1\n" + `{"plugins":{"key-auth":{}}}` + "\n", importer.Options{}, []string{"1 k1 jack", "2 k2 jack/main"}},
		"lines of etcdctl, cut":       {"apisix", "/apisix/consumers/jack\n", importer.Options{}, []string{"stopped: the file is cut off: its last key of etcd has no value"}},
		"JSON of etcdctl":             {"apisix", `{"header":{},"kvs":[{"key":"` + base64.StdEncoding.EncodeToString([]byte("/apisix/consumers/jack")) + `","value":"` + base64.StdEncoding.EncodeToString([]byte(`{"username":"jack","plugins":{"key-auth":{"key":"k1"}}}`)) + `"}],"count":1}`, importer.Options{}, []string{"1 k1 jack"}},
		"a consumer of another kind":  {"apisix", `{"consumers":[{"username":7,"plugins":{"key-auth":{"key":"k1"}}},{"username":"jack","plugins":{"key-auth":{"key":"k2"}}}]}`, importer.Options{}, []string{"entry 1 has a username of another kind than it should be, as text is that stands without quotes", "2 k2 jack"}},
		"an export of Kong as APISIX": {"apisix", "_format_version: '3.0'\n", importer.Options{}, []string{notAPISIX(1)}},

		"CSV of a spreadsheet":  {"csv", "\ufeff\"secret\";\"name\";\"disabled\"\r\n\"a;b\";one, two;FALSE\r\nc;;WAHR\r\n", importer.Options{}, []string{"2 a;b one, two", "entry 3 has a wrong disabled: it must be true or false"}},
		"CSV with tabs":         {"csv", "name\tsecret\none\ta\n", importer.Options{}, []string{"2 a one"}},
		"CSV in UTF-16":         {"csv", "\xff\xfes\x00", importer.Options{}, []string{"stopped: the file is UTF-16: save it as UTF-8"}},
		"JSON lines of Windows": {"jsonl", "\ufeff{\"secret\":\"a\"}\r\n{\"secret\":\"b\"}\r\n", importer.Options{}, []string{"1 a ", "2 b "}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := read(t, test.format, test.text, test.options); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

func TestHostileYAMLEndsSoon(t *testing.T) {
	t.Parallel()
	var wide strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&wide, "a%d: 1\n", i)
	}
	for name, text := range map[string]string{
		"brackets": "a: " + strings.Repeat("[", 1<<15),
		"braces":   strings.Repeat("a: {", 1<<15),
		"dashes":   strings.Repeat("- ", 1<<15),
		"indents":  strings.Repeat("- ", 300) + "a",
		"keys":     strings.Repeat("? ", 1<<15),
		"values":   strings.Repeat("a: ", 1<<15),
		"anchors":  strings.Repeat("&a ", 1<<15),
		"wide":     wide.String(),
		"too long": strings.Repeat("#\n", 5<<20),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := read(t, "kong", text, importer.Options{})
			if len(got) == 0 || len(got[0]) > 200 {
				t.Errorf("%.200q", got)
			}
		})
	}
}

func tykMurmur(n int) string {
	return fmt.Sprintf("entry %d looks like a murmur hash, which is not a cryptographic one: other texts than the secret would be let in. Import the secrets themselves (with --digest none if these are), or hashes of sha256", n)
}

func TestErrorsShowNoSecret(t *testing.T) {
	t.Parallel()
	const secret = "S3cretS3cretS3cret"
	for format, text := range map[string]string{
		"csv":    "secret,account\n" + secret + ",x\n" + secret + "\n\"" + secret,
		"jsonl":  `{"secret":"` + secret + `","x":1}` + "\n" + secret,
		"kong":   `{"data":[{"key":"` + secret + `","ttl":5}]}`,
		"tyk":    `{"` + secret + `":{"quota_max":1,"quota_renewal_rate":7}}`,
		"apisix": `{"list":[{"value":{"plugins":{"key-auth":{"key":"` + secret + `}}}}]}`,
	} {
		lines := read(t, format, text, importer.Options{})
		if len(lines) == 0 || strings.Contains(strings.Join(lines, ""), secret) {
			t.Errorf("%s: %q", format, lines)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, format := range importer.Formats() {
		f.Add(format, "secret,name\na,b\n", "")
		f.Add(format, `{"secret":"a","resources":[{"type":"a","id":"b","level":"read"}]}`, "sha256")
		f.Add(format, `{"data":[{"key":"a"}],"keys":[{"key":"a","data":{}}],"list":[{"key":"/a","value":{"plugins":{"key-auth":{"key":"b"}}}}]}`, "none")
	}
	f.Fuzz(func(t *testing.T, format, text, digest string) {
		items, err := importer.Read(format, strings.NewReader(text), importer.Options{Digest: digest})
		if err != nil {
			return
		}
		for item, err := range items {
			if err == nil && item.Secret.IsZero() && (item.Digest == tokenstore.Digest{}) && !strings.Contains(text, "00") && !strings.Contains(text, "AA") {
				t.Errorf("an entry without a key: %+v", item)
			}
		}
	})
}
