package mailtrap_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/admin/mailtrap"
	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// serve returns the contract with n requests in a window.
func serve(w *admintest.World, n int) http.Handler {
	return admintest.Handler(mailtrap.New(w.Service, w.Gate(), w.Log, mailtrap.Options{Limiter: mailtrap.NewLimiter(n)}))
}

func TestContract(t *testing.T) {
	admintest.Play(t, func(w *admintest.World) http.Handler {
		grants := []tokenstore.Grant{{Type: "inbox", ID: "five", Level: tokenstore.LevelRead}, {Type: "card", ID: "*", Level: tokenstore.LevelRead}, {Type: "inbox", ID: "6", Level: tokenstore.LevelRead}}
		if w.Script == "others" {
			w.Make(admin.Spec{Name: "by the native API", Scopes: []string{"accounts"}, Resources: &tokenstore.Resources{Grants: grants}})
			w.Make(admin.Spec{Name: "unrestricted", Scopes: []string{"accounts"}})
		}
		return serve(w, mailtrap.DefaultRequests)
	})
}

const good = `{"name":"x","resources":[{"resource_type":"inbox","resource_id":5,"access_level":100}]}`

func TestSuccessesHaveTheVendorsForm(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := serve(w, 0)
	r := admintest.Send(t, h, cast.Admin, "POST", "/api/api_tokens", good)
	if r.Code != 200 || r.Header().Get("Content-Type") != "application/json; charset=utf-8" || r.Header().Get("X-RateLimit-Limit") != "" {
		t.Errorf("create: %d %v", r.Code, r.Header())
	}
	r = admintest.Send(t, h, cast.Admin, "DELETE", "/api/api_tokens/"+cast.Peer.ID.String(), "")
	if _, typed := r.Header()["Content-Type"]; r.Code != 204 || r.Body.Len() != 0 || typed {
		t.Errorf("delete: %d %v %q", r.Code, r.Header(), r.Body)
	}
}

// TestResetWithoutAnEndIsNotTheOldOnes: this contract has a default of its own, which
// gives way to the caller's end alone.
func TestResetWithoutAnEndIsNotTheOldOnes(t *testing.T) {
	for lifetime, want := range map[time.Duration]string{0: `"expires_at":null`, 48 * time.Hour: `"expires_at":"2026-11-23T12:01:19Z"`} {
		w := admintest.New(t)
		cast := w.Cast()
		h := admintest.Handler(mailtrap.New(w.Service, w.Gate(), w.Log, mailtrap.Options{Lifetime: lifetime}))
		r := admintest.Send(t, h, cast.Admin, "POST", "/api/api_tokens/"+cast.Brief.ID.String()+"/reset", "")
		if r.Code != 200 || !strings.Contains(r.Body.String(), want) {
			t.Errorf("default %s: %d %s, want %s", lifetime, r.Code, r.Body, want)
		}
		r = admintest.Send(t, h, cast.Weaker, "POST", "/api/api_tokens", good)
		if r.Code != 200 || !strings.Contains(r.Body.String(), want) {
			t.Errorf("create, default %s: %d %s, want %s", lifetime, r.Code, r.Body, want)
		}
	}
}

func TestEveryKindHasItsAnswer(t *testing.T) {
	for _, kind := range admin.Kinds() {
		w := admintest.New(t)
		face := mailtrap.New(w.Service, failing{kind}, w.Log, mailtrap.Options{Limiter: mailtrap.NewLimiter(1)})
		r := admintest.Send(t, admintest.Handler(face), admintest.Holder{}, "GET", "/api/api_tokens", "")
		if r.Code < 400 || r.Code == 500 && kind != admin.KindInternal && kind != admin.KindOutcomeUnknown {
			t.Errorf("%s: status %d", kind, r.Code)
		}
		checkShape(t, kind.String(), r)
		if r.Header().Get("X-Mailtrap-Version") != "v2" || r.Header().Get("X-RateLimit-Limit") != "1" {
			t.Errorf("%s: headers %v", kind, r.Header())
		}
	}
}

// failing is a gate that refuses everything with one kind.
type failing struct{ kind admin.Kind }

func (f failing) Authenticate(*http.Request) (admin.Caller, *admin.Error) {
	return admin.Caller{}, &admin.Error{Kind: f.kind, RetryAfter: time.Second, Detail: "because"}
}

// checkShape checks that an error has one of the three forms that the vendor's
// clients read: a field's errors are always an array of strings.
func checkShape(t *testing.T, what string, r *httptest.ResponseRecorder) {
	t.Helper()
	var body struct {
		Error  *string         `json:"error"`
		Errors json.RawMessage `json:"errors"`
	}
	if err := json.Unmarshal(r.Body.Bytes(), &body); err != nil {
		t.Errorf("%s: %v: %s", what, err, r.Body)
		return
	}
	var text string
	var fields map[string][]string
	switch {
	case body.Error != nil && *body.Error != "" && body.Errors == nil:
	case json.Unmarshal(body.Errors, &text) == nil && text != "" && r.Code != 422:
	case json.Unmarshal(body.Errors, &fields) == nil && len(fields) > 0 && r.Code == 422:
	default:
		t.Errorf("%s: %d %s", what, r.Code, r.Body)
	}
}

func TestBadInputIsRefusedInTheVendorsForm(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := admintest.Described(t, serve(w, 0))
	one := func(field, value string) string {
		fields := map[string]string{"name": `"x"`, "resource_type": `"inbox"`, "resource_id": "5", "access_level": "100"}
		fields[field] = value
		return fmt.Sprintf(`{"name":%s,"resources":[{"resource_type":%s,"resource_id":%s,"access_level":%s}]}`,
			fields["name"], fields["resource_type"], fields["resource_id"], fields["access_level"])
	}
	ends := func(value string) string { return strings.TrimSuffix(good, "}") + `,"expires_at":` + value + "}" }
	for name, tt := range map[string]struct {
		body   string
		status int
		field  string // named in the answer
	}{
		"duplicate key":            {`{"name":"a",` + good[1:], 422, "name"},
		"duplicate key inside":     {strings.Replace(good, `"resource_id":5`, `"resource_id":5,"resource_id":6`, 1), 422, "resources[0].resource_id"},
		"trailing data":            {good + "{}", 400, ""},
		"trailing garbage":         {good + "x", 400, ""},
		"unknown attribute":        {`{"colour":1,` + good[1:], 422, "colour"},
		"unknown attribute inside": {strings.Replace(good, `"resource_id"`, `"scope":1,"resource_id"`, 1), 422, "resources[0].scope"},
		"another case":             {strings.Replace(good, `"name"`, `"Name"`, 1), 422, "Name"},
		"name a number":            {one("name", "5"), 422, "name"},
		"name null":                {one("name", "null"), 422, "name"},
		"name of 1 MiB":            {one("name", `"`+strings.Repeat("a", 1<<20)+`"`), 413, ""},
		"name of 256 characters":   {one("name", `"`+strings.Repeat("ä", 256)+`"`), 422, "name"},
		"control in name":          {one("name", `"a\u0000b"`), 422, "name"},
		"bidi in name":             {one("name", `"a\u202eb"`), 422, "name"},
		"invalid UTF-8":            {one("name", "\"a\xffb\""), 422, "name"},
		"lone surrogate":           {one("name", `"\ud800"`), 422, "name"},
		"resources an object":      {`{"name":"x","resources":{}}`, 422, "resources"},
		"resources of null":        {`{"name":"x","resources":[null]}`, 422, "resources[0]"},
		"10,000 resources":         {`{"name":"x","resources":[` + strings.Repeat("1,", 9999) + `1]}`, 422, "resources[0]"},
		"type unknown":             {one("resource_type", `"toaster"`), 422, "resources[0].resource_type"},
		"id 0":                     {one("resource_id", "0"), 422, "resources[0].resource_id"},
		"id -1":                    {one("resource_id", "-1"), 422, "resources[0].resource_id"},
		"id 2^53 as text":          {one("resource_id", `"9007199254740992"`), 422, "resources[0].resource_id"},
		"id of 16 nines as text":   {one("resource_id", `"9999999999999999"`), 422, "resources[0].resource_id"},
		"id 01":                    {one("resource_id", `"01"`), 422, "resources[0].resource_id"},
		"id 1e3":                   {one("resource_id", "1e3"), 422, "resources[0].resource_id"},
		"id 1.0":                   {one("resource_id", "1.0"), 422, "resources[0].resource_id"},
		"id 2^53":                  {one("resource_id", "9007199254740992"), 422, "resources[0].resource_id"},
		"id 2^64":                  {one("resource_id", "18446744073709551616"), 422, "resources[0].resource_id"},
		"id 2^64 as text":          {one("resource_id", `"18446744073709551616"`), 422, "resources[0].resource_id"},
		"id with spaces":           {one("resource_id", `" 5"`), 422, "resources[0].resource_id"},
		"level a word":             {one("access_level", `"admin"`), 422, "resources[0].access_level"},
		"level 11":                 {one("access_level", "11"), 422, "resources[0].access_level"},
		"date without zone":        {ends(`"2027-01-01T00:00:00"`), 422, "expires_at"},
		"leap second":              {ends(`"2027-06-30T23:59:60Z"`), 422, "expires_at"},
		"date alone":               {ends(`"2027-01-01"`), 422, "expires_at"},
		"30 February":              {ends(`"2027-02-30T00:00:00Z"`), 422, "expires_at"},
		"a number of seconds":      {ends(`1893456000`), 422, "expires_at"},
		"a year of five digits":    {ends(`"12027-01-01T00:00:00Z"`), 422, "expires_at"},
		"an array":                 {"[]", 400, ""},
		"deep":                     {`{"name":` + strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000) + "}", 400, ""},
		"comments":                 {"/* x */" + good, 400, ""},
		"a byte order mark":        {"\ufeff" + good, 400, ""},
	} {
		r := admintest.Send(t, h, cast.Admin, "POST", "/api/accounts/1/api_tokens", tt.body)
		if r.Code != tt.status {
			t.Errorf("%s: status %d, want %d: %.200s", name, r.Code, tt.status, r.Body)
			continue
		}
		checkShape(t, name, r)
		if tt.field != "" {
			var answer struct{ Errors map[string][]string }
			if err := json.Unmarshal(r.Body.Bytes(), &answer); err != nil || len(answer.Errors[tt.field]) == 0 {
				t.Errorf("%s: does not name %s: %.200s", name, tt.field, r.Body)
			}
		}
	}
	for _, id := range []string{"0", "-1", "01", "1e3", "18446744073709551616", "+1", "1.0", "%31", "1%2Freset", "x", "%00"} {
		for _, method := range []string{"GET", "DELETE"} {
			if r := admintest.Send(t, h, cast.Admin, method, "/api/api_tokens/"+id, ""); r.Code != 404 {
				t.Errorf("%s id %s: %d %s", method, id, r.Code, r.Body)
			}
		}
		if r := admintest.Send(t, h, cast.Admin, "POST", "/api/api_tokens/"+id+"/reset", ""); r.Code != 404 {
			t.Errorf("reset id %s: %d %s", id, r.Code, r.Body)
		}
		if r := admintest.Send(t, h, cast.Root, "GET", "/api/accounts/"+id+"/api_tokens", ""); r.Code != 404 {
			t.Errorf("account %s: %d %s", id, r.Code, r.Body)
		}
	}
}

// endless is a body that never ends, and counts what is read of it.
type endless struct{ read int }

func (b *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	b.read += len(p)
	return len(p), nil
}

func TestBodyOverTheBoundIsRefusedBeforeItIsRead(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := serve(w, 0)
	for announced, most := range map[int64]int{admin.MaxBodyBytes + 1: 0, -1: 2 * admin.MaxBodyBytes} {
		body := &endless{}
		r := httptest.NewRequest("POST", "/api/api_tokens", body)
		r.ContentLength = announced
		r.Header.Set("Api-Token", cast.Admin.Secret.Reveal())
		recorder := httptest.NewRecorder()
		h.ServeHTTP(recorder, r)
		if recorder.Code != 413 || body.read > most {
			t.Errorf("announced %d: status %d after %d bytes", announced, recorder.Code, body.read)
		}
		checkShape(t, "too large", recorder)
	}
}

// TestTwoListenersDoNotDoubleTheLimit asks the faces of two listeners in turn.
func TestTwoListenersDoNotDoubleTheLimit(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	options := mailtrap.Options{Limiter: mailtrap.NewLimiter(3)}
	faces := []http.Handler{
		admintest.Handler(mailtrap.New(w.Service, w.Gate(), w.Log, options)),
		admintest.Handler(mailtrap.New(w.Service, w.Gate(), w.Log, options)),
	}
	for i, want := range []int{200, 200, 200, 429, 429} {
		if r := admintest.Send(t, faces[i%2], cast.Admin, "GET", "/api/api_tokens", ""); r.Code != want {
			t.Errorf("request %d: %d, want %d", i+1, r.Code, want)
		}
	}
}

func TestRequestsInAWindowAreCounted(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := admintest.Described(t, serve(w, 3))
	get := func(by admintest.Holder) (int, string, string) {
		r := admintest.Send(t, h, by, "GET", "/api/api_tokens/"+by.ID.String(), "")
		return r.Code, r.Header().Get("X-RateLimit-Remaining"), r.Header().Get("Retry-After")
	}
	w.Clock.Set(storetest.Epoch.Add(3 * time.Second))
	for _, want := range []string{"2", "1", "0"} {
		if code, remaining, _ := get(cast.Admin); code != 200 || remaining != want {
			t.Errorf("%d, remaining %s, want %s", code, remaining, want)
		}
	}
	if code, remaining, after := get(cast.Admin); code != 429 || remaining != "0" || after != "7" {
		t.Errorf("over the limit: %d, remaining %s, after %s", code, remaining, after)
	}
	if code, _, _ := get(cast.Peer); code != 200 {
		t.Errorf("another token: %d", code)
	}
	w.Clock.Advance(7 * time.Second)
	if code, remaining, _ := get(cast.Admin); code != 200 || remaining != "2" {
		t.Errorf("the next window: %d, remaining %s", code, remaining)
	}
}

// many is a store with n tokens in account 1, made as they are read, which fails
// after failAfter of them if that is not 0.
type many struct {
	storetest.Store
	n, failAfter int
}

func (m many) List(context.Context, tokenstore.Query) iter.Seq2[*tokenstore.Token, error] {
	return func(yield func(*tokenstore.Token, error) bool) {
		for i := range m.n {
			if m.failAfter > 0 && i == m.failAfter {
				yield(nil, storetest.ErrFault)
				return
			}
			if !yield(storetest.Sample(tokenstore.ID(i+1), 1, 1), nil) {
				return
			}
		}
	}
}

// watcher takes an answer and looks at the memory in use meanwhile.
type watcher struct {
	header       http.Header
	writes       int
	bytes, worst int64
	last         byte
}

func (w *watcher) Header() http.Header { return w.header }
func (w *watcher) WriteHeader(int)     {}
func (w *watcher) Write(b []byte) (int, error) {
	if w.writes++; w.writes%100 == 0 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		w.worst = max(w.worst, int64(m.HeapAlloc)) //nolint:gosec // far below the bound
	}
	w.bytes += int64(len(b))
	w.last = b[len(b)-1]
	return len(b), nil
}

func TestListStreamsInConstantMemory(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := serve(w, 0)
	w.Store.Store = many{Store: w.Store.Store, n: 100_000}
	r := httptest.NewRequest("GET", "/api/api_tokens", nil)
	r.Header.Set("Api-Token", cast.Admin.Secret.Reveal())
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	answer := &watcher{header: http.Header{}}
	h.ServeHTTP(answer, r)
	grown := answer.worst - int64(before.HeapAlloc) //nolint:gosec // far below the bound
	t.Logf("%d bytes in %d writes, memory grew by at most %d bytes", answer.bytes, answer.writes, grown)
	if answer.bytes < 10<<20 || answer.last != ']' || grown > 5<<20 {
		t.Errorf("%d bytes, ending in %q, memory grew by %d", answer.bytes, answer.last, grown)
	}
}

func TestListThatFailsOnTheWayBreaksTheConnection(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := serve(w, 0)
	memory := w.Store.Store
	get := func() *http.Request {
		r := httptest.NewRequest("GET", "/api/api_tokens", nil)
		r.Header.Set("Api-Token", cast.Admin.Secret.Reveal())
		return r
	}
	w.Store.Store = many{Store: memory, n: 100_000, failAfter: 50_000}
	func() {
		defer func() {
			if p, _ := recover().(error); !errors.Is(p, http.ErrAbortHandler) {
				t.Errorf("the answer ended without breaking off: %v", p)
			}
		}()
		answer := &watcher{header: http.Header{}}
		h.ServeHTTP(answer, get())
		t.Error("a short list passed for a whole one")
	}()
	w.Store.Store = many{Store: memory, n: 10, failAfter: 5}
	early := httptest.NewRecorder()
	h.ServeHTTP(early, get())
	if early.Code != 503 {
		t.Errorf("a list that fails early: %d %s", early.Code, early.Body)
	}
	checkShape(t, "early", early)
}

func TestFaultOfTheProgramIsOpaque(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := admintest.Described(t, serve(w, 0))
	w.Store.Store = panicking{w.Store.Store}
	r := admintest.Send(t, h, cast.Admin, "GET", "/api/api_tokens", "")
	if r.Code != 500 || strings.Contains(r.Body.String(), "very private") {
		t.Errorf("%d %s", r.Code, r.Body)
	}
	checkShape(t, "panic", r)
}

type panicking struct{ storetest.Store }

func (panicking) List(context.Context, tokenstore.Query) iter.Seq2[*tokenstore.Token, error] {
	panic("very private")
}

func TestUnconfirmedChangeIsNotReportedAsDone(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	h := serve(w, 0)
	w.Store.Store = &storetest.Faulty{Store: w.Store.Store, ChangeFate: func() storetest.Fate { return storetest.Unconfirmed }}
	r := admintest.Send(t, h, cast.Admin, "POST", "/api/api_tokens", good)
	if r.Code != 500 || strings.Contains(r.Body.String(), "token\":") {
		t.Errorf("%d %s", r.Code, r.Body)
	}
	checkShape(t, "unconfirmed", r)
}

func FuzzCreate(f *testing.F) {
	f.Add(good)
	f.Add(`{"name":"x","resources":[{"resource_type":"account","resource_id":"1","access_level":10}],"expires_at":"2027-01-01T00:00:00Z"}`)
	f.Add(`{"resources":[]}`)
	f.Add(`{"name":null,"resources":[1,{}],"expires_at":null,"a":{"b":[]}}`)
	w := admintest.New(f)
	w.Log = slog.New(slog.DiscardHandler)
	cast := w.Cast()
	h := serve(w, 0)
	f.Fuzz(func(t *testing.T, body string) {
		r := admintest.Send(t, h, cast.Admin, "POST", "/api/accounts/1/api_tokens", body)
		switch {
		case r.Code == 200:
			var made struct{ ID tokenstore.ID }
			if err := json.Unmarshal(r.Body.Bytes(), &made); err != nil {
				t.Fatal(err)
			}
			token, err := w.Store.ByID(t.Context(), made.ID)
			if err != nil || len(token.Validate()) > 0 {
				t.Fatal(token, err)
			}
			// The store grows slow with many tokens.
			err = w.Store.Change(t.Context(), func(tx tokenstore.Tx) error {
				tx.Emit([]byte("swept"))
				return tx.Sweep(made.ID)
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Store.Store.(*storetest.Memory).Done(1 << 60); err != nil {
				t.Fatal(err)
			}
		case r.Code >= 500:
			t.Errorf("%d %s", r.Code, r.Body)
		default:
			checkShape(t, body, r)
		}
	})
}
