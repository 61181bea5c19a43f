package unit_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/admin/unit"
	"tokenward/tokenstore"
)

// wireErrors is an answer that reports what is wrong, as clients read it.
type wireErrors struct {
	Errors []struct {
		Status, Title, Code, Detail, Details string
		Source                               struct{ Pointer string }
	}
}

func readErrors(t *testing.T, rec *httptest.ResponseRecorder) wireErrors {
	t.Helper()
	var e wireErrors
	if err := json.Unmarshal(rec.Body.Bytes(), &e); err != nil || len(e.Errors) == 0 {
		t.Fatalf("%d is not an error of this contract: %s", rec.Code, rec.Body)
	}
	for _, item := range e.Errors {
		if item.Status != fmt.Sprint(rec.Code) || item.Title == "" || item.Code == "" || item.Detail == "" || item.Detail != item.Details {
			t.Errorf("a client drops this item: %+v", item)
		}
	}
	return e
}

func body(attributes string) string {
	return `{"data":{"type":"apiToken","attributes":{` + attributes + `}}}`
}

const rest = `"description":"test","scope":"accounts","expiration":"2027-07-01T00:00:00Z"`

func text(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// TestRefusedNetworkIsNamed: of a hundred networks, one that is only written wrongly has
// to be found.
func TestRefusedNetworkIsNamed(t *testing.T) {
	w := admintest.New(t)
	admin, h := w.Cast().Admin, admintest.Described(t, handler(w))
	for sources, want := range map[string]string{
		"192.0.2.1,10.0.0.1/8":       "sourceIp names 10.0.0.1/8, which has bits set beyond its length: write 10.0.0.0/8",
		"::ffff:192.0.2.1,192.0.2.1": "sourceIp names ::ffff:192.0.2.1, which must be written as an IPv4 address, not mapped into IPv6",
		"192.0.2.1,<script>":         "sourceIp must be IPv4 or IPv6 addresses or networks, separated by commas without spaces",
		"192.0.2.1, 192.0.2.2":       "sourceIp must be IPv4 or IPv6 addresses or networks, separated by commas without spaces",
	} {
		rec := admintest.Send(t, h, admin, "POST", "/users/1/api-tokens", body(rest+`,"sourceIp":`+text(sources)), "Content-Type", "application/vnd.api+json")
		if e := readErrors(t, rec); e.Errors[0].Detail != want {
			t.Errorf("%s: %q, want %q", sources, e.Errors[0].Detail, want)
		}
	}
}

// TestBadInputNamesTheAttribute sends what a body can have wrong, one thing each.
func TestBadInputNamesTheAttribute(t *testing.T) {
	w := admintest.New(t)
	admin, h := w.Cast().Admin, admintest.Described(t, handler(w))
	w.Events()
	for name, c := range map[string]struct{ attributes, pointer string }{
		"description too long":      {`"scope":"accounts","expiration":"2027-07-01T00:00:00Z","description":` + text(strings.Repeat("é", 256)), "description"},
		"description with control":  {`"scope":"accounts","expiration":"2027-07-01T00:00:00Z","description":"a\u0007b"`, "description"},
		"description with bidi":     {`"scope":"accounts","expiration":"2027-07-01T00:00:00Z","description":"a\u202Eb"`, "description"},
		"description with bad utf8": {`"scope":"accounts","expiration":"2027-07-01T00:00:00Z","description":"a` + "\xff" + `b"`, "description"},
		"description half a pair":   {`"scope":"accounts","expiration":"2027-07-01T00:00:00Z","description":"a\ud800b"`, "description"},
		"description empty":         {`"scope":"accounts","expiration":"2027-07-01T00:00:00Z","description":""`, "description"},
		"description null":          {`"scope":"accounts","expiration":"2027-07-01T00:00:00Z","description":null`, "description"},
		"scope empty":               {`"description":"test","expiration":"2027-07-01T00:00:00Z","scope":""`, "scope"},
		"scope blank":               {`"description":"test","expiration":"2027-07-01T00:00:00Z","scope":"  "`, "scope"},
		"scope with tab":            {`"description":"test","expiration":"2027-07-01T00:00:00Z","scope":"accounts\tcards"`, "scope"},
		"scope unknown":             {`"description":"test","expiration":"2027-07-01T00:00:00Z","scope":"boats"`, "scope"},
		"scope twice":               {`"description":"test","expiration":"2027-07-01T00:00:00Z","scope":"accounts accounts"`, "scope"},
		"scope 10,000 times":        {`"description":"test","expiration":"2027-07-01T00:00:00Z","scope":` + text(strings.Repeat("a ", 10_000)), "scope"},
		"scope of another case":     {`"description":"test","expiration":"2027-07-01T00:00:00Z","scope":"Accounts"`, "scope"},
		"date without zone":         {`"description":"test","scope":"accounts","expiration":"2027-07-01T00:00:00"`, "expiration"},
		"date alone":                {`"description":"test","scope":"accounts","expiration":"2027-07-01"`, "expiration"},
		"leap second":               {`"description":"test","scope":"accounts","expiration":"2027-06-30T23:59:60Z"`, "expiration"},
		"no such day":               {`"description":"test","scope":"accounts","expiration":"2027-02-30T00:00:00Z"`, "expiration"},
		"year 10000":                {`"description":"test","scope":"accounts","expiration":"10000-01-01T00:00:00Z"`, "expiration"},
		"date past":                 {`"description":"test","scope":"accounts","expiration":"2020-01-01T00:00:00Z"`, "expiration"},
		"date as number":            {`"description":"test","scope":"accounts","expiration":9007199254740993`, "expiration"},
		"half an address":           {rest + `,"sourceIp":"1.2.3"`, "sourceIp"},
		"mapped address":            {rest + `,"sourceIp":"::ffff:1.2.3.4"`, "sourceIp"},
		"network too long":          {rest + `,"sourceIp":"10.0.0.0/33"`, "sourceIp"},
		"network with host bits":    {rest + `,"sourceIp":"10.0.0.1/8"`, "sourceIp"},
		"octal address":             {rest + `,"sourceIp":"010.0.0.1"`, "sourceIp"},
		"zone":                      {rest + `,"sourceIp":"fe80::1%eth0"`, "sourceIp"},
		"port":                      {rest + `,"sourceIp":"192.0.2.1:80"`, "sourceIp"},
		"space in list":             {rest + `,"sourceIp":"192.0.2.1, 192.0.2.2"`, "sourceIp"},
		"comma at the end":          {rest + `,"sourceIp":"192.0.2.1,"`, "sourceIp"},
		"empty list of addresses":   {rest + `,"sourceIp":""`, "sourceIp"},
		"addresses as array":        {rest + `,"sourceIp":["192.0.2.1"]`, "sourceIp"},
		"too many addresses":        {rest + `,"sourceIp":` + text(strings.Repeat("192.0.2.1,", 300)+"192.0.2.1"), "sourceIp"},
		"very many addresses":       {rest + `,"sourceIp":` + text(strings.Repeat("192.0.2.1,", 5000)+"192.0.2.1"), "sourceIp"},
		"no resources":              {rest + `,"resources":[]`, "resources"},
		"resource without ids":      {rest + `,"resources":[{"type":"card","ids":[]}]`, "resources"},
		"resource of unknown type":  {rest + `,"resources":[{"type":"boat","ids":["1"]}]`, "resources"},
		"resource id 0":             {rest + `,"resources":[{"type":"card","ids":["0"]}]`, "resources"},
		"resource id -1":            {rest + `,"resources":[{"type":"card","ids":["-1"]}]`, "resources"},
		"resource id 01":            {rest + `,"resources":[{"type":"card","ids":["01"]}]`, "resources"},
		"resource id 1e3":           {rest + `,"resources":[{"type":"card","ids":["1e3"]}]`, "resources"},
		"resource id 2^64":          {rest + `,"resources":[{"type":"card","ids":["18446744073709551616"]}]`, "resources"},
		"resource id *":             {rest + `,"resources":[{"type":"card","ids":["*"]}]`, "resources"},
		"resource id as number":     {rest + `,"resources":[{"type":"card","ids":[1]}]`, "resources"},
		"resource with id and ids":  {rest + `,"resources":[{"type":"card","id":"1","ids":["1"]}]`, "resources"},
		"too many resources":        {rest + `,"resources":[{"type":"card","ids":[` + strings.Repeat(`"1",`, 2000) + `"1"]}]`, "resources"},
		"resources bare with ids":   {rest + `,"resources":{"type":"card","ids":["1"]}`, "resources"},
		"resources bare, id 01":     {rest + `,"resources":{"type":"card","id":"01"}`, "resources"},
		"resources bare, both":      {rest + `,"resources":{"type":"card","id":"1","ids":["1"]}`, "resources"},
		"resources empty object":    {rest + `,"resources":{}`, "resources"},
		"unknown attribute":         {rest + `,"sourceIP":"192.0.2.1"`, "sourceIP"},
		"attribute twice":           {rest + `,"description":"other"`, "description"},
	} {
		t.Run(name, func(t *testing.T) {
			rec := admintest.Send(t, h, admin, "POST", "/users/1/api-tokens", body(c.attributes), "Content-Type", "application/vnd.api+json")
			if rec.Code != http.StatusBadRequest {
				t.Fatalf("answer %d, want 400: %s", rec.Code, rec.Body)
			}
			e := readErrors(t, rec)
			if len(e.Errors) != 1 || e.Errors[0].Code != "invalid_value" || e.Errors[0].Source.Pointer != "/data/attributes/"+c.pointer {
				t.Errorf("the answer does not name the one attribute %s: %.300s", c.pointer, rec.Body)
			}
		})
	}
	if made := w.Events(); len(made) > 0 {
		t.Errorf("something was made: %+v", made)
	}
}

// TestOneResourceNeedsNoList: `{type,id}` stands for a list of one.
func TestOneResourceNeedsNoList(t *testing.T) {
	w := admintest.New(t)
	c, h := w.Cast(), admintest.Described(t, handler(w))
	for _, resources := range []string{`{"type":"card","id":"7"}`, `[{"type":"card","id":"7"}]`, `[{"type":"card","ids":["7"]}]`} {
		rec := admintest.Send(t, h, c.Admin, "POST", "/users/1/api-tokens", body(rest+`,"resources":`+resources), "Content-Type", "application/vnd.api+json")
		var made struct{ Data struct{ ID string } }
		if err := json.Unmarshal(rec.Body.Bytes(), &made); err != nil || rec.Code != http.StatusCreated {
			t.Errorf("%s: %d %s", resources, rec.Code, rec.Body)
			continue
		}
		id, _ := tokenstore.ParseID(made.Data.ID)
		want := []tokenstore.Grant{{Type: "card", ID: "7", Level: tokenstore.LevelWrite}}
		if r := w.Token(id).Resources; r.All || !slices.Equal(r.Grants, want) {
			t.Errorf("%s: the token may reach %+v", resources, r)
		}
	}
}

// TestBadIDsLeadNowhere: whatever stands in an id's place is an unknown id.
func TestBadIDsLeadNowhere(t *testing.T) {
	w := admintest.New(t)
	c, h := w.Cast(), admintest.Described(t, handler(w))
	for _, id := range []string{"0", "-1", "01", "+3", "1e3", "3.0", "0x3", "%33", "3%20", "18446744073709551616", "18446744073709551619", "9007199254740992", "\u0663", strings.Repeat("9", 4000), "*", "self"} {
		for _, by := range []admintest.Holder{c.Root, c.Admin} {
			rec := admintest.Send(t, h, by, "DELETE", "/users/1/api-tokens/"+id, "")
			if e := readErrors(t, rec); rec.Code != http.StatusBadRequest || e.Errors[0].Code != "not_found" {
				t.Errorf("id %.40q gives %d %s", id, rec.Code, rec.Body)
			}
		}
		rec := admintest.Send(t, h, c.Root, "GET", "/users/"+id+"/api-tokens", "")
		if e := readErrors(t, rec); rec.Code != http.StatusBadRequest || e.Errors[0].Code != "invalid_value" || !strings.Contains(e.Errors[0].Detail, "userId") {
			t.Errorf("user %.40q gives %d %s", id, rec.Code, rec.Body)
		}
		rec = admintest.Send(t, h, c.Root, "POST", "/users/"+id+"/api-tokens", body(rest))
		if e := readErrors(t, rec); rec.Code != http.StatusBadRequest || e.Errors[0].Code != "invalid_value" || !strings.Contains(e.Errors[0].Detail, "userId") {
			t.Errorf("a token of user %.40q: %d %s", id, rec.Code, rec.Body)
		}
	}
}

func TestBodyOverTheBoundIsNotRead(t *testing.T) {
	w := admintest.New(t)
	c, h := w.Cast(), handler(w)
	name := `"description":"` + strings.Repeat("x", 1<<20) + `"`
	rec := admintest.Send(t, h, c.Admin, "POST", "/users/1/api-tokens", body(name))
	if rec.Code != http.StatusRequestEntityTooLarge || rec.Header().Get("Connection") != "close" {
		t.Errorf("a name of 1 MiB gives %d", rec.Code)
	}
	readErrors(t, rec)

	endless := &countingReader{}
	r := httptest.NewRequest("POST", "/users/1/api-tokens", endless)
	r.Header.Set("Authorization", "Bearer "+c.Admin.Secret.Reveal())
	rec = httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	if rec.Code != http.StatusRequestEntityTooLarge || endless.n > 2*admin.MaxBodyBytes {
		t.Errorf("an endless body gives %d after %d bytes", rec.Code, endless.n)
	}
}

type countingReader struct{ n int }

func (r *countingReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	r.n += len(p)
	return len(p), nil
}

// TestEveryKindHasItsAnswer holds the table complete.
func TestEveryKindHasItsAnswer(t *testing.T) {
	w := admintest.New(t)
	c := w.Cast()
	for _, kind := range admin.Kinds() {
		h := admintest.Handler(unit.New(w.Service, failing{kind}, w.Log))
		rec := admintest.Send(t, h, c.Admin, "GET", "/users/1/api-tokens", "")
		readErrors(t, rec)
		if rec.Code < 400 || rec.Header().Get("Content-Type") != "application/vnd.api+json" {
			t.Errorf("%v gives %d %s", kind, rec.Code, rec.Header())
		}
		if kind != admin.KindInternal && rec.Code == http.StatusInternalServerError && kind != admin.KindOutcomeUnknown {
			t.Errorf("%v has no answer of its own", kind)
		}
	}
}

type failing struct{ kind admin.Kind }

func (f failing) Authenticate(*http.Request) (admin.Caller, *admin.Error) {
	return admin.Caller{}, &admin.Error{Kind: f.kind}
}

// TestCutListIsNotAList lets the store fail in the middle of a list that is
// longer than what is held back.
func TestCutListIsNotAList(t *testing.T) {
	w := admintest.New(t)
	c := w.Cast()
	for range 300 {
		w.Make(admin.Spec{Name: strings.Repeat("x", 200)})
	}
	failed := &failAfter{Store: w.Store.Store, left: 250}
	w.Store.Store = failed
	server := httptest.NewServer(handler(w))
	defer server.Close()
	r, _ := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/users/1/api-tokens", nil)
	r.Header.Set("Authorization", "Bearer "+c.Admin.Secret.Reveal())
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	read, err := io.ReadAll(answer.Body)
	if err == nil || json.Valid(read) {
		t.Errorf("a list that the store cut short looks whole: %d bytes, %v", len(read), err)
	}

	failed.left = 3
	rec := admintest.Send(t, handler(w), c.Admin, "GET", "/users/1/api-tokens", "")
	if rec.Code != http.StatusServiceUnavailable || rec.Header().Get("Retry-After") == "" {
		t.Errorf("a list that the store cut short at once gives %d", rec.Code)
	}
	readErrors(t, rec)
}

// TestForeignTokensAreShown renders what only other APIs can make.
func TestForeignTokensAreShown(t *testing.T) {
	w := admintest.New(t)
	c := w.Cast()
	w.Make(admin.Spec{Name: "a", Account: new(uint64(3)), Owner: new(uint64(9)), Sources: &tokenstore.Sources{}})
	w.Make(admin.Spec{Name: "b", Account: new(uint64(1)), Owner: new(uint64(9)), Sources: &tokenstore.Sources{}})
	rec := admintest.Send(t, handler(w), c.Root, "GET", "/users/9/api-tokens", "")
	if want := `"sourceIp":""`; !strings.Contains(rec.Body.String(), want) {
		t.Errorf("a token that no address may use must not look like one that all may: %s", rec.Body)
	}
	if strings.Contains(rec.Body.String(), `"description":"a"`) {
		t.Errorf("the list shows another account: %s", rec.Body)
	}
}

func FuzzCreate(f *testing.F) {
	var (
		c     *admintest.Cast
		h     http.Handler
		calls int
	)
	fresh := func(t testing.TB) {
		w := admintest.New(t)
		w.Log = slog.New(slog.DiscardHandler)
		c, h = w.Cast(), handler(w)
	}
	fresh(f)
	f.Add(body(rest))
	f.Add(body(rest + `,"sourceIp":"192.0.2.7,2001:db8::/32","resources":[{"type":"card","ids":["1"]},{"type":"account","id":"7"}]`))
	f.Add(`{"data":null}`)
	f.Add(`{"data":{"type":"apiToken","attributes":{"description":"\ud83d\ude00","scope":"accounts  cards","expiration":"2027-07-01t00:00:00+23:59"}}}`)
	f.Fuzz(func(t *testing.T, body string) {
		if calls++; calls%1000 == 0 {
			fresh(t) // nobody empties the outbox of a world
		}
		rec := admintest.Send(t, h, c.Admin, "POST", "/users/1/api-tokens", body)
		switch rec.Code {
		case http.StatusCreated:
			var made struct {
				Data struct {
					ID         string
					Attributes struct{ Token, CreatedAt, Expiration, Description string }
				}
			}
			if err := json.Unmarshal(rec.Body.Bytes(), &made); err != nil || made.Data.Attributes.Token == "" {
				t.Fatalf("made, but told wrongly: %s", rec.Body)
			}
			if len(made.Data.Attributes.Expiration) != len("2027-07-01T00:00:00.000Z") {
				t.Errorf("a client cannot read %s", made.Data.Attributes.Expiration)
			}
			rec = admintest.Send(t, h, c.Admin, "DELETE", "/users/1/api-tokens/"+made.Data.ID, "")
			if rec.Code != http.StatusOK {
				t.Errorf("what was made cannot be revoked: %s", rec.Body)
			}
		case http.StatusBadRequest, http.StatusForbidden, http.StatusRequestEntityTooLarge:
			readErrors(t, rec)
		default:
			t.Errorf("answer %d to %q: %s", rec.Code, body, rec.Body)
		}
	})
}
