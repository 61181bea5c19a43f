package native_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/admin/native"
	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

var key = []byte("of this test")

func serve(w *admintest.World) http.Handler {
	return admintest.Handler(native.New(w.Service, w.Gate(), w.Log, native.Options{CursorKey: key}))
}

func TestContract(t *testing.T) { admintest.Play(t, serve) }

// problem is the error form of this API.
type problem struct {
	Type, Title, Code, Detail string
	Status                    int
	RequestID                 string `json:"request_id"`
	Errors                    []struct{ Field, Detail string }
}

func readProblem(t *testing.T, what string, r *httptest.ResponseRecorder) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal(r.Body.Bytes(), &p); err != nil || p.Status != r.Code || p.Code == "" || p.Title == "" ||
		r.Header().Get("Content-Type") != "application/problem+json" || p.RequestID != "req-1" {
		t.Errorf("%s: no problem of this API: %d %v %.300s", what, r.Code, err, r.Body)
	}
	return p
}

func TestEveryKindHasItsAnswer(t *testing.T) {
	codes := map[string]bool{}
	for _, kind := range admin.Kinds() {
		w := admintest.New(t)
		face := native.New(w.Service, failing{kind}, w.Log, native.Options{})
		r := admintest.Send(t, admintest.Handler(face), admintest.Holder{}, "GET", "/v1/tokens", "")
		if r.Code < 400 || r.Code == 500 && kind != admin.KindInternal && kind != admin.KindOutcomeUnknown {
			t.Errorf("%s: status %d", kind, r.Code)
		}
		p := readProblem(t, kind.String(), r)
		if p.Code != kind.String() || codes[p.Code] {
			t.Errorf("%s: code %s", kind, p.Code)
		}
		codes[p.Code] = true
	}
}

type failing struct{ kind admin.Kind }

func (f failing) Authenticate(*http.Request) (admin.Caller, *admin.Error) {
	return admin.Caller{}, &admin.Error{Kind: f.kind}
}

// TestBackupArrivesOrBreaksOff: short or long, in whatever pieces, or with a fault
// before or after its first bytes have left.
func TestBackupArrivesOrBreaksOff(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 4<<10)
	for name, test := range map[string]struct {
		pieces []string
		fault  error
		broken bool
	}{
		"short":              {[]string{"head", "end"}, nil, false},
		"long":               {[]string{"head", long, "a", long, long, "end"}, nil, false},
		"fault before":       {nil, errors.New("disk"), false},
		"fault in the head":  {[]string{"head"}, errors.New("disk"), false},
		"fault in the bytes": {[]string{"head", long, "a", long}, errors.New("disk"), true},
	} {
		t.Run(name, func(t *testing.T) {
			w := admintest.New(t)
			whole := strings.Join(test.pieces, "")
			h := admintest.Handler(native.New(w.Service, w.Gate(), w.Log, native.Options{
				Backup: func(_ context.Context, to io.Writer) error {
					for _, p := range test.pieces {
						if n, err := io.WriteString(to, p); n != len(p) || err != nil {
							t.Errorf("%d of %d bytes, %v", n, len(p), err)
						}
					}
					return test.fault
				},
			}))
			root := w.Cast().Root
			defer func() {
				if p := recover(); (p == http.ErrAbortHandler) != test.broken { //nolint:errorlint // the value itself is the sign
					t.Errorf("panic %v", p)
				}
			}()
			r := admintest.Send(t, h, root, "GET", "/v1/backup", "")
			switch {
			case test.fault != nil:
				if r.Code != http.StatusInternalServerError || strings.Contains(r.Body.String(), "head") {
					t.Errorf("status %d, %q", r.Code, r.Body)
				}
			case r.Code != http.StatusOK || r.Body.String() != whole:
				t.Errorf("status %d, %d bytes, want %d", r.Code, r.Body.Len(), len(whole))
			}
		})
	}
}

// TestExplainAllowsNoRequestThatCannotBe: a value with a line break would be two
// lines, and is refused by the listener before anything is judged.
func TestExplainAllowsNoRequestThatCannotBe(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := admintest.Handler(native.New(w.Service, w.Gate(), w.Log, native.Options{
		Explain: func(context.Context, native.Question) (native.Explanation, error) {
			return native.Explanation{Decision: "allow"}, nil
		},
	}))
	for value, want := range map[string]int{`"a\tb"`: 200, `"a\r\nX: b"`: 422, `"\u0000"`: 422, `["a","\u007f"]`: 422} {
		r := admintest.Send(t, h, cast.Admin, "POST", "/v1/explain", `{"method":"GET","target":"/","headers":{"X-A":`+value+`}}`)
		if r.Code != want {
			t.Errorf("%s: %d %s", value, r.Code, r.Body)
		}
	}
}

// TestBadRequestIsToldToWhoMayMakeIt sends what is wrong in every way, as package
// admin orders the checks.
func TestBadRequestIsToldToWhoMayMakeIt(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := serve(w)
	seen, unseen := "/v1/tokens/"+cast.Peer.ID.String(), "/v1/tokens/"+cast.Foreign.ID.String()
	for _, bad := range []struct{ kind, body, media string }{
		{"bad_request", "{", "application/json"}, {"unsupported_media_type", "{}", "text/plain"}, {"invalid", `{"surprise":1}`, "application/json"},
	} {
		for _, call := range []struct{ method, below string }{
			{"POST", ""}, {"PATCH", "/"}, {"POST", "/rotate"}, {"POST", "/rotate/finish"}, {"POST", "/reset"}, {"POST", "/disable"}, {"POST", "/enable"},
		} {
			send := func(by admintest.Holder, path string) string {
				path += strings.TrimSuffix(call.below, "/")
				if call.below == "" {
					path = "/v1/tokens"
				}
				return readProblem(t, path, admintest.Send(t, h, by, call.method, path, bad.body, "Content-Type", bad.media)).Code
			}
			got := []string{send(cast.Admin, seen), send(cast.Reader, seen), send(cast.Plain, unseen)}
			want := []string{bad.kind, "insufficient_scope", "insufficient_scope"}
			if call.below != "" {
				got, want = append(got, send(cast.Admin, unseen)), append(want, "not_found")
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s %s with %s: %v, want %v", call.method, call.below, bad.kind, got, want)
			}
		}
	}
}

// TestWhoMayNotImportIsNotToldHow: nor is a query that was mistyped, which would import
// where it should only look, carried out for who may.
func TestWhoMayNotImportIsNotToldHow(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := admintest.Handler(native.New(w.Service, w.Gate(), w.Log, native.Options{
		Import: func(context.Context, admin.Caller, io.Reader, admin.ImportOptions) (native.ImportAnswer, error) {
			t.Error("something was imported")
			return native.ImportAnswer{}, nil
		},
	}))
	for _, bad := range []struct{ query, media, code string }{
		{"", "application/json", "unsupported_media_type"}, {"?dryrun=true", "application/x-ndjson", "bad_request"}, {"?dry_run=1", "application/x-ndjson", "bad_request"},
	} {
		for by, want := range map[admintest.Holder]string{cast.Admin: bad.code, cast.Reader: "insufficient_scope", cast.Viewer: "resource_not_granted"} {
			r := admintest.Send(t, h, by, "POST", "/v1/import"+bad.query, "{}", "Content-Type", bad.media)
			if p := readProblem(t, bad.query, r); p.Code != want {
				t.Errorf("%q as %s: %s, want %s", bad.query, bad.media, p.Code, want)
			}
		}
	}
}

// TestWhoMayNotBackUpHoldsNobodyUp asks while a backup is being made: others learn
// neither that it is, nor can they be in its way.
func TestWhoMayNotBackUpHoldsNobodyUp(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	var h http.Handler
	meanwhile := make(map[string]int)
	h = admintest.Handler(native.New(w.Service, w.Gate(), w.Log, native.Options{
		Backup: func(_ context.Context, to io.Writer) error {
			for name, by := range map[string]admintest.Holder{"root": cast.Root, "admin": cast.Admin, "no scope": cast.Plain} {
				meanwhile[name] = admintest.Send(t, h, by, "GET", "/v1/backup", "").Code
			}
			_, err := io.WriteString(to, "whole")
			return err
		},
	}))
	if r := admintest.Send(t, h, cast.Root, "GET", "/v1/backup", ""); r.Code != http.StatusOK {
		t.Errorf("the backup: %d %s", r.Code, r.Body)
	}
	if want := map[string]int{"root": 503, "admin": 403, "no scope": 403}; !maps.Equal(meanwhile, want) {
		t.Errorf("meanwhile %v, want %v", meanwhile, want)
	}
}

// TestNullIsToldBothFormsOfTheField: what takes a word or a structure says so.
func TestNullIsToldBothFormsOfTheField(t *testing.T) {
	w := admintest.New(t)
	c, h := w.Cast(), admintest.Described(t, serve(w))
	for field, want := range map[string]string{
		"resources": `{"field":"/resources","detail":"must be \"all\" or an array"}`,
		"sources":   `{"field":"/sources","detail":"must be \"any\" or an object"}`,
	} {
		rec := admintest.Send(t, h, c.Admin, "POST", "/v1/tokens", `{"name":"x","`+field+`":null}`, "Content-Type", "application/json")
		if rec.Code != http.StatusUnprocessableEntity || !strings.Contains(rec.Body.String(), want) {
			t.Errorf("%s null: %d %s, want %s", field, rec.Code, rec.Body, want)
		}
	}
}

func TestBadInputNamesTheField(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := admintest.Described(t, serve(w))
	field := func(name, value string) string { return fmt.Sprintf(`{"name":"x",%q:%s}`, name, value) }
	scopes := `["s0"` + strings.Repeat(`,"s"`, 9_999) + "]"
	for name, tt := range map[string]struct {
		body   string
		status int
		field  string
	}{
		"duplicate key":             {`{"name":"a","name":"b"}`, 422, "/name"},
		"duplicate key inside":      {field("limits", `{"rate":1,"rate":2}`), 422, "/limits/rate"},
		"trailing data":             {`{"name":"x"} {}`, 400, ""},
		"unknown attribute":         {field("colour", "1"), 422, "/colour"},
		"unknown attribute inside":  {field("limits", `{"speed":1}`), 422, "/limits/speed"},
		"an odd name":               {field("a/b~c", "1"), 422, "/a~1b~0c"},
		"name a number":             {`{"name":1}`, 422, "/name"},
		"name of 60 KiB":            {`{"name":"` + strings.Repeat("a", 60<<10) + `"}`, 422, "/name"},
		"name of 1 MiB":             {`{"name":"` + strings.Repeat("a", 1<<20) + `"}`, 413, ""},
		"control in name":           {`{"name":"a\u001bb"}`, 422, "/name"},
		"bidi in name":              {`{"name":"a\u2066b"}`, 422, "/name"},
		"invalid UTF-8":             {"{\"name\":\"\xc0\xaf\"}", 422, "/name"},
		"invalid UTF-8 in a key":    {"{\"name\":\"x\",\"\xff\":1}", 422, "/\ufffd"},
		"scopes a string":           {field("scopes", `"accounts"`), 422, "/scopes"},
		"10,000 scopes":             {field("scopes", scopes), 422, "/scopes"},
		"empty scope":               {field("scopes", `[""]`), 422, "/scopes/0"},
		"space in scope":            {field("scopes", `["a b"]`), 422, "/scopes/0"},
		"star inside":               {field("scopes", `["a*"]`), 422, "/scopes/0"},
		"resources some word":       {field("resources", `"some"`), 422, "/resources"},
		"resource without id":       {field("resources", `[{"type":"card","level":"read"}]`), 422, "/resources/0/id"},
		"resource id a number":      {field("resources", `[{"type":"card","id":5,"level":"read"}]`), 422, "/resources/0/id"},
		"resource type":             {field("resources", `[{"type":"CARD","id":"5","level":"read"}]`), 422, "/resources/0/type"},
		"resource level":            {field("resources", `[{"type":"card","id":"5","level":"100"}]`), 422, "/resources/0/level"},
		"address 1.2.3":             {field("sources", `{"allow":["1.2.3"]}`), 422, "/sources/allow/0"},
		"address mapped":            {field("sources", `{"allow":["::ffff:1.2.3.4"]}`), 422, "/sources/allow/0"},
		"address /33":               {field("sources", `{"allow":["10.0.0.0/33"]}`), 422, "/sources/allow/0"},
		"address with bits beyond":  {field("sources", `{"allow":["10.0.0.1/8"]}`), 422, "/sources/allow/0"},
		"address with a zone":       {field("sources", `{"allow":["fe80::1%eth0"]}`), 422, "/sources/allow/0"},
		"address with spaces":       {field("sources", `{"allow":[" 10.0.0.1"]}`), 422, "/sources/allow/0"},
		"address 010.0.0.1":         {field("sources", `{"allow":["010.0.0.1"]}`), 422, "/sources/allow/0"},
		"sources without allow":     {field("sources", `{}`), 422, "/sources"},
		"sources null":              {field("sources", `null`), 422, "/sources"},
		"date without zone":         {field("expires_at", `"2027-01-01T00:00:00"`), 422, "/expires_at"},
		"leap second":               {field("expires_at", `"2027-06-30T23:59:60Z"`), 422, "/expires_at"},
		"date in the past":          {field("expires_at", `"2020-01-01T00:00:00Z"`), 422, "/expires_at"},
		"date before 1970":          {field("not_before", `"1969-12-31T23:59:59Z"`), 422, "/not_before"},
		"date after 9999":           {field("not_before", `"9999-12-31T23:59:59-23:59"`), 422, "/not_before"},
		"account -1":                {field("account", "-1"), 422, "/account"},
		"account 2^53":              {field("account", "9007199254740992"), 422, "/account"},
		"account 2^64":              {field("account", "18446744073709551616"), 422, "/account"},
		"account 1e3":               {field("account", "1e3"), 422, "/account"},
		"account a string":          {field("account", `"1"`), 422, "/account"},
		"owner 0":                   {field("owner", "0"), 422, "/owner"},
		"rate 0":                    {field("limits", `{"rate":0}`), 422, "/limits/rate"},
		"rate -1":                   {field("limits", `{"rate":-1}`), 422, "/limits/rate"},
		"rate 1e400":                {field("limits", `{"rate":1e400}`), 422, "/limits/rate"},
		"rate a string":             {field("limits", `{"rate":"1"}`), 422, "/limits/rate"},
		"uses 0":                    {field("limits", `{"uses":0}`), 422, "/limits/uses"},
		"quota per year":            {field("limits", `{"quota":[{"count":1,"per":"year"}]}`), 422, "/limits/quota/0/per"},
		"quota twice":               {field("limits", `{"quota":[{"count":1,"per":"day"},{"count":2,"per":"day"}]}`), 422, "/limits/quota/1"},
		"quota of nothing":          {field("limits", `{"quota":[{"per":"day"}]}`), 422, "/limits/quota/0/count"},
		"a list":                    {`[{"name":"x"}]`, 400, ""},
		"a word":                    {`true`, 400, ""},
		"deep":                      {field("limits", strings.Repeat(`{"a":`, 100)+"1"+strings.Repeat("}", 100)), 400, ""},
		"nul":                       {"{\"name\":\"a\x00b\"}", 400, ""},
		"a raw line break in text":  {"{\"name\":\"a\nb\"}", 400, ""},
		"single quotes":             {`{'name':'x'}`, 400, ""},
		"not a number":              {field("limits", `{"rate":NaN}`), 400, ""},
		"a key that is not a token": {`{"name":"x",}`, 400, ""},
	} {
		r := admintest.Send(t, h, cast.Root, "POST", "/v1/tokens", tt.body)
		p := readProblem(t, name, r)
		named := tt.field == ""
		for _, e := range p.Errors {
			named = named || e.Field == tt.field
		}
		if r.Code != tt.status || !named {
			t.Errorf("%s: %d, want %d naming %q: %.300s", name, r.Code, tt.status, tt.field, r.Body)
		}
	}
	for _, id := range []string{"0", "-1", "01", "1e3", "18446744073709551616", "9007199254740992", "x", "%31", "1%2frotate"} {
		for _, call := range []string{"GET ", "PATCH ", "DELETE ", "POST /rotate", "POST /rotate/finish", "POST /reset", "POST /disable", "POST /enable"} {
			method, rest, _ := strings.Cut(call, " ")
			if r := admintest.Send(t, h, cast.Root, method, "/v1/tokens/"+id+rest, ""); r.Code != 404 {
				t.Errorf("%s %s%s: %d", method, id, rest, r.Code)
			}
		}
	}
}

func TestBodyOverTheBoundIsRefused(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := admintest.Described(t, serve(w))
	long := strings.Repeat(" ", admin.MaxBodyBytes+1)
	for _, call := range []string{"POST /v1/tokens", "PATCH /v1/tokens/2", "POST /v1/tokens/2/rotate", "POST /v1/tokens/2/reset", "POST /v1/tokens/2/disable", "POST /v1/introspect"} {
		method, path, _ := strings.Cut(call, " ")
		r := admintest.Send(t, h, cast.Root, method, path, long)
		if r.Code != 413 {
			t.Errorf("%s: %d", call, r.Code)
		}
		readProblem(t, call, r)
	}
}

// A slip in a scope makes a token that cannot do what it is for, and nobody learns.
func TestUnknownScopesAreTold(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := admintest.Described(t, serve(w))
	told := func(method, path, scopes string) string {
		r := admintest.Send(t, h, cast.Root, method, path, `{"name":"x","scopes":`+scopes+`}`, "Content-Type", "application/json", "Idempotency-Key", "k"+scopes)
		if r.Code/100 != 2 {
			t.Fatalf("%s %s: %d %s", method, scopes, r.Code, r.Body)
		}
		return r.Header().Get(native.UnknownScopesHeader)
	}
	many := `["a0"`
	for i := range 40 {
		many += fmt.Sprintf(`,"b%d"`, i)
	}
	for scopes, want := range map[string]string{
		`["accounts","cards-*","*","user:api-token:*","user:api-token:read"]`: "",
		`["acounts"]`:                  "acounts",
		`["acounts","cards","card-*"]`: "acounts card-*",
		`["accounts:*"]`:               "accounts:*",
		`[]`:                           "",
		many + "]":                     "a0 b0 b1 b2 b3 b4 b5 b6 b7 b8",
	} {
		for range 2 { // the repetition is told the same
			if got := told("POST", "/v1/tokens", scopes); got != want {
				t.Errorf("%s: %q, want %q", scopes, got, want)
			}
		}
		if got := told("PATCH", "/v1/tokens/"+cast.Plain.ID.String(), scopes); got != want {
			t.Errorf("change to %s: %q, want %q", scopes, got, want)
		}
	}
	w.Service.SetVocabulary(admin.Vocabulary{})
	if got := told("POST", "/v1/tokens", `["anything"]`); got != "" {
		t.Errorf("without any known scope: %q", got)
	}
}

func TestBodyThatClaimsTwoThingsIsRefused(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	taken := func(context.Context, admin.Caller, io.Reader, admin.ImportOptions) (native.ImportAnswer, error) {
		return native.ImportAnswer{}, nil
	}
	h := admintest.Handler(native.New(w.Service, w.Gate(), w.Log, native.Options{Import: taken}))
	for path, own := range map[string]string{"/v1/tokens": "application/json", "/v1/introspect": "application/x-www-form-urlencoded", "/v1/import": "application/x-ndjson"} {
		r := admintest.Send(t, h, cast.Root, "POST", path, "token=x", "Content-Type", own, "Content-Type", "text/plain")
		if p := readProblem(t, path, r); r.Code != 400 || !strings.Contains(p.Detail, "Content-Type is given twice") {
			t.Errorf("%s: %d %s", path, r.Code, r.Body)
		}
	}
}

type list struct {
	Items []struct{ ID tokenstore.ID }
	Next  *string
}

func TestPagesHoldEveryTokenOnce(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := admintest.Described(t, serve(w))
	for _, selection := range []string{"", "state=active", "name=e", "account=1&owner=1", "account=1&state=revoked"} {
		var whole []tokenstore.ID
		for _, limit := range []int{1000, 1, 2, 3, 7} {
			var ids []tokenstore.ID
			cursor := ""
			for {
				r := admintest.Send(t, h, cast.Root, "GET", fmt.Sprintf("/v1/tokens?%s&limit=%d&cursor=%s", selection, limit, cursor), "")
				var page list
				if err := json.Unmarshal(r.Body.Bytes(), &page); err != nil || r.Code != 200 || len(page.Items) > limit {
					t.Fatalf("%d %v %s", r.Code, err, r.Body)
				}
				for _, item := range page.Items {
					ids = append(ids, item.ID)
				}
				if page.Next == nil {
					break
				}
				cursor = *page.Next
			}
			if whole == nil {
				whole = ids
			}
			if len(ids) == 0 || !slices.Equal(ids, whole) || !slices.IsSortedFunc(ids, func(a, b tokenstore.ID) int { return int(b) - int(a) }) { //nolint:gosec // small
				t.Errorf("%q by %d: %v, want %v", selection, limit, ids, whole)
			}
		}
	}
}

func TestCursorOfAnotherListIsRefused(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := admintest.Described(t, serve(w))
	r := admintest.Send(t, h, cast.Root, "GET", "/v1/tokens?limit=1&account=1", "")
	var page list
	if err := json.Unmarshal(r.Body.Bytes(), &page); err != nil || page.Next == nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"another account":  "/v1/tokens?limit=1&account=2&cursor=" + *page.Next,
		"no account":       "/v1/tokens?limit=1&cursor=" + *page.Next,
		"another state":    "/v1/tokens?limit=1&account=1&state=active&cursor=" + *page.Next,
		"cut":              "/v1/tokens?account=1&cursor=" + (*page.Next)[:10],
		"another last bit": "/v1/tokens?account=1&cursor=" + (*page.Next)[:len(*page.Next)-1] + "-",
		"another id":       "/v1/tokens?account=1&cursor=B" + (*page.Next)[1:],
	} {
		r := admintest.Send(t, h, cast.Root, "GET", target, "")
		if r.Code != 400 {
			t.Errorf("%s: %d %s", name, r.Code, r.Body)
		}
	}
	// Without an account in the query it is the caller's own that is meant.
	next := "/v1/tokens?limit=1&cursor=" + *page.Next
	for name, step := range map[string]struct {
		by     admintest.Holder
		target string
		want   int
	}{
		"the same list by its own": {cast.Admin, next, 200},
		"and with its account":     {cast.Admin, next + "&account=1", 200},
		"of another account's":     {cast.Foreign, next, 400},
	} {
		if r := admintest.Send(t, h, step.by, "GET", step.target, ""); r.Code != step.want {
			t.Errorf("%s: %d %s", name, r.Code, r.Body)
		}
	}
}

// TestPartOfALimitLeavesTheOthersTheCallers: what a creation does not say is
// inherited, and only what it says can be too wide.
func TestPartOfALimitLeavesTheOthersTheCallers(t *testing.T) {
	w := admintest.New(t)
	w.Cast()
	h := admintest.Described(t, serve(w))
	by := w.Make(admin.Spec{
		Account: new(uint64(1)), Owner: new(uint64(1)), Name: "bounded", Scopes: []string{tokenstore.ScopeTokenWrite},
		Limits: &tokenstore.Limits{Rate: 50, Burst: 60, Uses: 1000, Quotas: []tokenstore.Quota{{Count: 100, Per: tokenstore.PerDay}}},
		Sources: &tokenstore.Sources{
			Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Deny: []netip.Prefix{netip.MustParsePrefix("192.0.2.9/32")},
		},
	})
	const (
		limits  = `"limits":{"rate":50,"burst":60,"quota":[{"count":100,"per":"day"}],"uses":1000,"concurrent":null}`
		sources = `"sources":{"allow":["192.0.2.0/24"],"deny":["192.0.2.9"]}`
	)
	for said, want := range map[string]string{
		`"limits":{}`:                             limits,
		`"limits":{"uses":5}`:                     strings.Replace(limits, `"uses":1000`, `"uses":5`, 1),
		`"limits":{"concurrent":2}`:               strings.Replace(limits, `null`, `2`, 1),
		`"limits":null`:                           "",
		`"limits":{"uses":null}`:                  "",
		`"limits":{"quota":[]}`:                   "",
		`"sources":{}`:                            sources,
		`"sources":{"allow":["192.0.2.0/28"]}`:    strings.Replace(sources, "/24", "/28", 1),
		`"sources":{"deny":["192.0.2.0/28"]}`:     strings.Replace(sources, "2.9", "2.0/28", 1),
		`"sources":{"deny":null}`:                 "",
		`"sources":{"deny":[]}`:                   "",
		`"sources":"any"`:                         "",
		`"sources":{"allow":["198.51.100.0/24"]}`: "",
	} {
		r := admintest.Send(t, h, by, "POST", "/v1/tokens", `{"name":"x",`+said+`}`)
		if want == "" && r.Code == http.StatusForbidden || want != "" && r.Code == http.StatusCreated && strings.Contains(r.Body.String(), want) {
			continue
		}
		t.Errorf("%s: %d %s, want %s", said, r.Code, r.Body, want)
	}
}

// TestNullTakesDeniedAddressesAway: in a merge patch null removes (RFC 7396).
func TestNullTakesDeniedAddressesAway(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := admintest.Described(t, serve(w))
	path := "/v1/tokens/" + cast.Peer.ID.String()
	for _, step := range []struct {
		patch, want string
		code        int
	}{
		{`{"sources":{"allow":["192.0.2.0/24"],"deny":["192.0.2.9"]}}`, `{"allow":["192.0.2.0/24"],"deny":["192.0.2.9"]}`, 200},
		{`{"sources":{"allow":null}}`, `/sources/allow`, 422},
		{`{"sources":{"deny":null}}`, `{"allow":["192.0.2.0/24"],"deny":[]}`, 200},
	} {
		r := admintest.Send(t, h, cast.Root, "PATCH", path, step.patch)
		if r.Code != step.code || !strings.Contains(r.Body.String(), step.want) {
			t.Errorf("%s: %d %s", step.patch, r.Code, r.Body)
		}
	}
}

func TestIdempotencyKeyOverHTTP(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := admintest.Described(t, serve(w))
	send := func(path, body string, keys ...string) *httptest.ResponseRecorder {
		var headers []string
		for _, key := range keys {
			headers = append(headers, "Idempotency-Key", key)
		}
		return admintest.Send(t, h, cast.Admin, "POST", path, body, headers...)
	}
	first := send("/v1/tokens", `{"name":"x"}`, "k")
	again := send("/v1/tokens", `{"name":"x"}`, "k")
	if first.Code != 201 || again.Code != 201 || first.Body.String() != again.Body.String() || !strings.Contains(first.Body.String(), `"token":"tw_`) {
		t.Errorf("first %d %s\nagain %d %s", first.Code, first.Body, again.Code, again.Body)
	}
	other := send("/v1/tokens", `{"name":"y"}`, "k")
	if p := readProblem(t, "another body", other); other.Code != 422 || p.Code != "idempotency_key_reused" {
		t.Errorf("another body: %d %s", other.Code, other.Body)
	}
	elsewhere := send("/v1/tokens/"+cast.Peer.ID.String()+"/rotate", `{"name":"x"}`, "k")
	if elsewhere.Code != 422 {
		t.Errorf("another call: %d %s", elsewhere.Code, elsewhere.Body)
	}
	rotated := send("/v1/tokens/"+cast.Peer.ID.String()+"/rotate", "", "r")
	if repeated := send("/v1/tokens/"+cast.Peer.ID.String()+"/rotate", "", "r"); rotated.Code != 200 || repeated.Body.String() != rotated.Body.String() {
		t.Errorf("rotate again: %d %s", repeated.Code, repeated.Body)
	}
	for name, keys := range map[string][]string{"empty": {""}, "long": {strings.Repeat("a", 256)}, "two": {"a", "b"}, "space": {"a b"}} {
		if r := send("/v1/tokens", `{"name":"x"}`, keys...); r.Code != 400 {
			t.Errorf("%s key: %d", name, r.Code)
		}
	}
}

func TestWhoamiTellsWhatTheListenerSaw(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := admintest.Handler(native.New(w.Service, w.Gate(), w.Log, native.Options{
		Seen: func(_ *http.Request, c admin.Caller) native.Seen {
			return native.Seen{
				Peer: netip.MustParseAddr("10.0.0.1"), Hop: "x-forwarded-for, from a trusted proxy",
				Left: []native.Left{
					{Limit: "rate", Left: uint64(c.Token.ID)},
					{Limit: "quota", Per: "month", Left: 3, ResetsAt: &native.Time{Time: time.Date(2026, 12, 1, 1, 0, 0, 0, time.FixedZone("", 3600))}},
				},
			}
		},
	}))
	r := admintest.Send(t, h, cast.Admin, "GET", "/v1/whoami", "")
	for _, want := range []string{`"address":"192.0.2.1"`, `"peer":"10.0.0.1"`, `"hop":"x-forwarded-for, from a trusted proxy"`, `"left":[{"limit":"rate","left":2,"resets_at":null},{"limit":"quota","per":"month","left":3,"resets_at":"2026-12-01T00:00:00.000Z"}]`} {
		if !strings.Contains(r.Body.String(), want) {
			t.Errorf("no %s in %s", want, r.Body)
		}
	}
}

func TestExplainAsksForWhatTheCallerMaySee(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	var asked native.Question
	h := admintest.Handler(native.New(w.Service, w.Gate(), w.Log, native.Options{
		Explain: func(_ context.Context, q native.Question) (native.Explanation, error) {
			asked = q
			return native.Explanation{Decision: "deny", Code: "no_route", Reason: "no_route", Steps: []native.Step{{Step: "route", Detail: "none"}}}, nil
		},
	}))
	body := func(id tokenstore.ID) string {
		return fmt.Sprintf(`{"method":"GET","target":"/cards/1","headers":{"Accept":"*/*","X-A":["1","2"]},"from":"192.0.2.1","token_id":%d}`, id)
	}
	r := admintest.Send(t, h, cast.Reader, "POST", "/v1/explain", body(cast.Peer.ID))
	if r.Code != 200 || asked.Token.ID != cast.Peer.ID || len(asked.Headers) != 3 || asked.From != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("%d %s %+v", r.Code, r.Body, asked)
	}
	if !strings.Contains(r.Body.String(), `"steps":[{"step":"route","ok":false,"detail":"none"}]`) {
		t.Error(r.Body)
	}
	for name, tt := range map[string]struct {
		by     admintest.Holder
		body   string
		status int
	}{
		"another account's": {cast.Reader, body(cast.Foreign.ID), 404},
		"no scope":          {cast.Plain, body(cast.Peer.ID), 403},
		"oneself":           {cast.Plain, `{"method":"GET","target":"/"}`, 200},
		"no target":         {cast.Reader, `{"method":"GET"}`, 422},
		"an odd address":    {cast.Reader, `{"method":"GET","target":"/","from":"1.2.3"}`, 422},
		"token 0":           {cast.Reader, body(0), 422},
	} {
		if r := admintest.Send(t, h, tt.by, "POST", "/v1/explain", tt.body); r.Code != tt.status {
			t.Errorf("%s: %d %s", name, r.Code, r.Body)
		}
	}
	if r := admintest.Send(t, serve(w), cast.Reader, "POST", "/v1/explain", body(cast.Peer.ID)); r.Code != 404 {
		t.Errorf("without an explainer: %d", r.Code)
	}
}

func TestStoreFaultsAreAnsweredWithoutTheirCause(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := admintest.Described(t, serve(w))
	memory := w.Store.Store
	for fate, status := range map[storetest.Fate]int{storetest.NotMade: 503, storetest.Lost: 500} {
		w.Store.Store = &storetest.Faulty{Store: memory, ChangeFate: func() storetest.Fate { return fate }}
		r := admintest.Send(t, h, cast.Admin, "POST", "/v1/tokens", `{"name":"x"}`)
		readProblem(t, "fault", r)
		if r.Code != status || strings.Contains(r.Body.String(), "injected") || (status == 503) != (r.Header().Get("Retry-After") != "") {
			t.Errorf("%d %v %s", r.Code, r.Header(), r.Body)
		}
	}
}

func TestTimesAreWrittenWithMilliseconds(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	w.Clock.Advance(123456 * time.Microsecond)
	r := admintest.Send(t, serve(w), cast.Admin, "POST", "/v1/tokens", `{"name":"x","expires_at":"2027-01-01t02:00:00.9999+02:00"}`)
	for _, want := range []string{`"created_at":"2026-11-21T12:01:19.123Z"`, `"expires_at":"2027-01-01T00:00:00.999Z"`} {
		if !strings.Contains(r.Body.String(), want) {
			t.Errorf("no %s in %s", want, r.Body)
		}
	}
}

func FuzzCreateAndPatch(f *testing.F) {
	f.Add(`{"name":"x"}`)
	f.Add(`{"account":1,"owner":1,"name":"x","scopes":["accounts"],"resources":[{"type":"card","id":"*","level":"read"}],"sources":{"allow":["192.0.2.0/24"],"deny":["192.0.2.7"]},"not_before":"2026-12-01T00:00:00Z","expires_at":"2027-12-01T00:00:00Z","limits":{"rate":2.5,"burst":10,"quota":[{"count":1,"per":"day"}],"uses":1,"concurrent":4}}`)
	f.Add(`{"name":"x","sources":"any","resources":"all","limits":null,"expires_at":null,"not_before":null}`)
	f.Add(`{"limits":{"rate":null,"quota":null},"sources":{"deny":[]}}`)
	w := admintest.New(f)
	w.Log = slog.New(slog.DiscardHandler)
	cast := w.Cast()
	h := serve(w)
	memory := w.Store.Store.(*storetest.Memory)
	f.Fuzz(func(t *testing.T, body string) {
		for _, call := range []string{"POST /v1/tokens", "PATCH /v1/tokens/" + cast.Peer.ID.String()} {
			method, path, _ := strings.Cut(call, " ")
			r := admintest.Send(t, h, cast.Root, method, path, body)
			if r.Code >= 500 {
				t.Errorf("%s: %d %s", call, r.Code, r.Body)
			}
			if r.Code >= 300 {
				readProblem(t, call, r)
				continue
			}
			var answer struct{ ID tokenstore.ID }
			if err := json.Unmarshal(r.Body.Bytes(), &answer); err != nil {
				t.Fatal(err)
			}
			token, err := memory.ByID(t.Context(), answer.ID)
			if err != nil || len(token.Validate()) > 0 {
				t.Fatal(token, err)
			}
			if method == "POST" {
				err := memory.Change(t.Context(), func(tx tokenstore.Tx) error {
					tx.Emit([]byte("swept"))
					return tx.Sweep(answer.ID)
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := memory.Done(1 << 60); err != nil {
			t.Fatal(err)
		}
	})
}

// TestSecretPastItsDeadlineIsNotActive: the other one of the token still is.
func TestSecretPastItsDeadlineIsNotActive(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := serve(w)
	introspect := func(secret tokenstore.Secret) string {
		r := admintest.Send(t, h, cast.Root, "POST", "/v1/introspect", "token="+secret.Reveal(), "Content-Type", "application/x-www-form-urlencoded")
		if r.Code != http.StatusOK {
			t.Fatalf("%d %s", r.Code, r.Body)
		}
		return r.Body.String()
	}
	made, err := w.Service.Rotate(t.Context(), admin.Operator(""), admin.Target{ID: cast.Peer.ID}, admin.RotateSpec{OldEnds: w.Clock.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	ends := fmt.Sprintf(`"exp":%d}`, w.Clock.Now().Add(time.Hour).Unix())
	if got := introspect(cast.Peer.Secret); !strings.Contains(got, `"active":true`) || !strings.Contains(got, ends) {
		t.Errorf("before its deadline: %s, want %s", got, ends)
	}
	w.Clock.Advance(time.Hour)
	if got := strings.TrimSpace(introspect(cast.Peer.Secret)); got != `{"active":false}` {
		t.Errorf("past its deadline: %s", got)
	}
	if got := introspect(made.Secret); !strings.Contains(got, `"active":true`) || strings.Contains(got, `"exp"`) {
		t.Errorf("the new one: %s", got)
	}
}

// TestSilenceThatNobodyNoticesIsRefused: where no use is recorded, an old secret would
// never end by it.
func TestSilenceThatNobodyNoticesIsRefused(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	r := admintest.Send(t, serve(w), cast.Root, "POST", "/v1/tokens/"+cast.Peer.ID.String()+"/rotate", `{"old_ends_after_silence":"36h"}`, "Content-Type", "application/json")
	if r.Code != http.StatusUnprocessableEntity || !strings.Contains(r.Body.String(), `"/old_ends_after_silence"`) || len(w.Token(cast.Peer.ID).Secrets) != 1 {
		t.Errorf("%d %s", r.Code, r.Body)
	}
}
