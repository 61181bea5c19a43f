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

func TestFormats(t *testing.T) {
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
			"entry 1 is no JSON object with secret or digest, and the fields of a token", "entry 2 is no JSON object with secret or digest, and the fields of a token", "entry 3 is no JSON object with secret or digest, and the fields of a token", "entry 4 is no JSON object with secret or digest, and the fields of a token",
			"entry 5 has a digest that is refused: md5 is no cryptographic hash, so other texts than the secret would be let in: import the secrets themselves"}},
		"JSON lines read in two ways": {"jsonl", strings.Join([]string{
			`{"secret":"a","scopes":["x"],"scop\u0065s":["*"]}`, `{"secret":"a","SCOPES":["*"]}`, `{"secret":"a","sources":{"allow":[],"deny":["192.0.2.1"],"deny":[]}}`,
			`{"secret":"a","name":"\ud800"}`, "{\"secret\":\"a\",\"name\":\"\xff\"}", `{"secret":"a","scopes":[],"limits":{"quota":[{"count":1,"count":2,"per":"day"}]}}`,
			`{"secret":"a","name":"secret","last4":"name"}`,
		}, "\n"), importer.Options{}, []string{
			"entry 1 has a field twice", "entry 2 is no JSON object with secret or digest, and the fields of a token", "entry 3 has a field twice",
			"entry 4 holds text that is not Unicode", "entry 5 holds text that is not Unicode", "entry 6 has a field twice", "7 a secret",
		}},
		"times": {"jsonl", strings.Join([]string{
			`{"secret":"a","expires_at":"2027-01-01t00:00:00z"}`, `{"secret":"a","expires_at":"2027-01-01T00:00:00,5Z"}`, `{"secret":"a","not_before":"0001-01-01T00:00:00Z"}`, `{"secret":"a","not_before":null,"expires_at":5}`,
		}, "\n"), importer.Options{}, []string{
			"1 a  until 2027-01-01T00:00:00Z", "entry 2 has a wrong expires_at: it must be a time (RFC 3339) or null", "entry 3 has a wrong not_before: it must be a time (RFC 3339) or null", "entry 4 has a wrong expires_at: it must be a time (RFC 3339) or null",
		}},
		"CSV times":                        {"csv", "secret,not_before,expires_at\na,0001-01-01T00:00:00Z,never\nb,,2027-01-01t00:00:00z\n", importer.Options{}, []string{"entry 2 has a wrong not_before: it must be a time (RFC 3339)", "3 b  until 2027-01-01T00:00:00Z"}},
		"Kong's Admin API":                 {"kong", `{"data":[{"id":"1","key":"k1","consumer":{"id":"c1"},"created_at":1700000000,"ttl":60,"tags":null},{"id":"2","key":"k2"}],"next":null}`, importer.Options{}, []string{"1 k1 c1 until 2023-11-14T22:14:20Z", "2 k2 2"}},
		"Kong's declarative configuration": {"kong", `{"_format_version":"3.0","consumers":[{"username":"ann","keyauth_credentials":[{"key":"k1"},{"key":"k2"}]}],"keyauth_credentials":[{"key":"k3","consumer":"bob"}]}`, importer.Options{}, []string{"1 k3 bob", "2 k1 ann", "3 k2 ann"}},
		"one page of Kong":                 {"kong", `{"data":[{"key":"k1"}],"next":"/key-auths?offset=x"}`, importer.Options{}, []string{"entry 1 is the last of a page: the file has only one of several, get the others with its `next`, or use `deck gateway dump`"}},
		"Tyk's sessions by key":            {"tyk", `{"apikey-plain-key-of-tyk":{"alias":"a","expires":1700000000,"rate":10,"per":5,"quota_max":100,"quota_renewal_rate":3600,"is_inactive":true}}`, importer.Options{}, []string{"1 plain-key-of-tyk a until 2023-11-14T22:13:20Z {Rate:2 Burst:10 Quotas:[{Count:100 Per:hour}] Uses:0 Concurrent:0} disabled"}},
		"Tyk's list":                       {"tyk", `{"keys":[{"key_id":"key-of-tyk","data":{"alias":"a","expires":-1}},{"key":"x"}]}`, importer.Options{}, []string{"1 key-of-tyk a", "entry 2 has no session"}},
		"Tyk's sha256":                     {"tyk", `[{"key_hash":"` + hex.EncodeToString(sum[:]) + `","session":{}}]`, importer.Options{Digest: "sha256"}, []string{"1 sha256:" + short + " imported from Tyk"}},
		"Tyk's murmur":                     {"tyk", `{"1a2b3c4d":{},"1a2b3c4d5e6f7a8b":{}}`, importer.Options{}, []string{tykMurmur(1), tykMurmur(2)}},
		"Tyk's odd quota":                  {"tyk", `{"key-of-tyk":{"quota_max":1,"quota_renewal_rate":7}}`, importer.Options{}, []string{"entry 1 has a quota that is renewed every 7 seconds: quotas are by minute, hour, day or month"}},
		"APISIX's consumers":               {"apisix", `{"total":2,"list":[{"key":"/apisix/consumers/jack","value":{"username":"jack","plugins":{"key-auth":{"key":"k1"}}}},{"key":"/apisix/consumers/jill","value":{"username":"jill","plugins":{"jwt-auth":{"key":"x"}}}}]}`, importer.Options{}, []string{"1 k1 jack"}},
		"APISIX's credentials":             {"apisix", `{"list":[{"key":"/apisix/consumers/jack/credentials/main","value":{"plugins":{"key-auth":{"key":"k1"}}}}]}`, importer.Options{}, []string{"1 k1 main"}},
		"APISIX, standalone":               {"apisix", `{"consumers":[{"username":"jack","plugins":{"key-auth":{"key":"$env://KEY"}}}]}`, importer.Options{}, []string{"entry 1 names a secret that is kept elsewhere: put the key itself into the file"}},
		"APISIX's reference in capitals":   {"apisix", `{"consumers":[{"username":"jack","plugins":{"key-auth":{"key":"$ENV://JACKS_API_KEY_FOR_OUR_API"}}}]}`, importer.Options{}, []string{"entry 1 names a secret that is kept elsewhere: put the key itself into the file"}},
		"Kong's references":                {"kong", `{"data":[{"key":"{vault://env/jacks-api-key-for-our-api}"},{"key":"${{env_JACKS_API_KEY_FOR_OUR_API}}"}]}`, importer.Options{}, []string{"entry 1 names a secret that is kept elsewhere: put the key itself into the file", "entry 2 names a secret that is kept elsewhere: put the key itself into the file"}},
		"a misspelt restriction":           {"jsonl", `{"secret":"a","sources":{"allow":["0.0.0.0/0"],"denied":["192.0.2.1"]}}` + "\n" + `{"secret":"a","resources":[{"type":"a","id":"b","level":"read","levels":"write"}]}`, importer.Options{}, []string{`entry 1 has wrong sources: they are "any", or allow and deny`, `entry 2 has wrong resources: they are "all" or a list of type, id and level`}},
		"no JSON":                          {"kong", `{"data":[{"key":"a secret" oops`, importer.Options{}, []string{"stopped: the file is no JSON from byte 28 on"}},
		"another JSON":                     {"kong", `{"data":[{"key":7}]}`, importer.Options{}, []string{"stopped: the file is not of that format: at byte 17, data.key is not what it should be"}},
		"two documents":                    {"apisix", `{}{}`, importer.Options{}, []string{"stopped: the file has more than one JSON document: for one on each line use the format jsonl"}},
		"murmur":                           {"csv", "", importer.Options{Digest: "murmur64"}, []string{"refused: murmur64 is no cryptographic hash, so other texts than the secret would be let in: import the secrets themselves"}},
		"bcrypt":                           {"csv", "", importer.Options{Digest: "bcrypt"}, []string{`refused: "bcrypt" is no kind of digest that can be imported: write sha256 or hmac-sha256, or import the secrets themselves`}},
		"no format":                        {"xml", "", importer.Options{}, []string{`refused: "xml" is no format: write one of apisix, csv, jsonl, kong, tyk`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := read(t, test.format, test.text, test.options); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

func tykMurmur(n int) string {
	return fmt.Sprintf("entry %d looks like a murmur hash, which is no cryptographic one: other texts than the secret would be let in. Import the secrets themselves (with --digest none if these are), or hashes of sha256", n)
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
