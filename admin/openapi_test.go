package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/admin/fynn"
	"tokenward/admin/mailtrap"
	"tokenward/admin/native"
	"tokenward/admin/unit"
	"tokenward/tokenstore"
)

// description is the document, ready to hold requests and answers against.
type description struct {
	doc    *openapi3.T
	router routers.Router
	used   map[string]bool // operations that answered with success
}

func readDescription(t testing.TB) *description {
	t.Helper()
	recorder := httptest.NewRecorder()
	admin.OpenAPI().ServeHTTP(recorder, httptest.NewRequest("GET", "/openapi.yaml", nil))
	doc, err := openapi3.NewLoader().LoadFromData(recorder.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return &description{doc, router, make(map[string]bool)}
}

// checked serves h and holds every request that succeeds and every answer
// against the document.
func (d *description) checked(t *testing.T, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		recorder := httptest.NewRecorder()
		h.ServeHTTP(recorder, r)
		if fault := d.check(r, body, recorder); fault != nil {
			t.Errorf("%s %s %.300s\n%d %.500s\nis not as described: %v", r.Method, r.URL, body, recorder.Code, recorder.Body, fault)
		}
		for name, values := range recorder.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(recorder.Code)
		_, _ = w.Write(recorder.Body.Bytes())
	})
}

func (d *description) check(r *http.Request, body []byte, answer *httptest.ResponseRecorder) error {
	input, err := d.input(r, body)
	if err != nil {
		if answer.Code == http.StatusNotFound || answer.Code == http.StatusMethodNotAllowed || answer.Code == http.StatusUnauthorized || answer.Code == http.StatusBadRequest {
			return d.checkError(r, answer)
		}
		return err
	}
	if answer.Code < 300 {
		d.used[input.Route.Operation.OperationID] = true
		if err := openapi3filter.ValidateRequest(r.Context(), input); err != nil {
			return fmt.Errorf("the request: %w", err)
		}
	}
	return openapi3filter.ValidateResponse(r.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input,
		Status:                 answer.Code,
		Header:                 answer.Header(),
		Body:                   io.NopCloser(bytes.NewReader(answer.Body.Bytes())),
		Options:                &openapi3filter.Options{IncludeResponseStatus: true},
	})
}

// input is the request as the library wants it. A body that claims no type, or
// is none, gets what the document asks for: the contracts do not insist.
func (d *description) input(r *http.Request, body []byte) (*openapi3filter.RequestValidationInput, error) {
	copied := r.Clone(r.Context())
	copied.Body = io.NopCloser(bytes.NewReader(body))
	copied.ContentLength = int64(len(body))
	route, parameters, err := d.router.FindRoute(copied)
	if err != nil {
		return nil, err
	}
	if len(body) == 0 || route.Operation.RequestBody == nil {
		copied.Header.Del("Content-Type")
		copied.Body, copied.ContentLength = http.NoBody, 0
	} else if copied.Header.Get("Content-Type") == "" {
		for media := range route.Operation.RequestBody.Value.Content {
			copied.Header.Set("Content-Type", media)
		}
	}
	return &openapi3filter.RequestValidationInput{
		Request: copied, PathParams: parameters, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc},
	}, nil
}

// checkError holds an answer on a path or a method that is not described
// against the errors of the API whose path it is.
func (d *description) checkError(r *http.Request, answer *httptest.ResponseRecorder) error {
	name := "Problem"
	for prefix, of := range map[string]string{"/users/": "UnitErrors", "/user/": "FynnProblem", "/api/": "MailtrapErrors"} {
		if strings.HasPrefix(r.URL.Path, prefix) {
			name = of
		}
	}
	if name == "FynnProblem" && answer.Code == http.StatusUnauthorized {
		name = "FynnUnauthorized"
	}
	var value any
	if err := json.Unmarshal(answer.Body.Bytes(), &value); err != nil {
		return err
	}
	return d.doc.Components.Schemas[name].Value.VisitJSON(value, openapi3.EnableJSONSchema2020())
}

// describedFaces are the four APIs as their own transcripts expect them.
func describedFaces(w *admintest.World) http.Handler {
	if w.Script == "others" { // grants that the Mailtrap contract has no words for
		w.Make(admin.Spec{Name: "by the native API", Scopes: []string{"accounts"}, Resources: &tokenstore.Resources{Grants: []tokenstore.Grant{
			{Type: "inbox", ID: "five", Level: tokenstore.LevelRead},
			{Type: "card", ID: tokenstore.AnyID, Level: tokenstore.LevelRead},
			{Type: "inbox", ID: "6", Level: tokenstore.LevelRead},
		}}})
		w.Make(admin.Spec{Name: "unrestricted", Scopes: []string{"accounts"}})
	}
	g := w.Gate()
	return admintest.Handler(
		unit.New(w.Service, g, w.Log),
		fynn.New(w.Service, g, w.Log),
		mailtrap.New(w.Service, g, w.Log, mailtrap.Options{Requests: mailtrap.DefaultRequests}),
		native.New(w.Service, g, w.Log, native.Options{
			CursorKey: []byte("of this test"),
			Explain: func(context.Context, native.Question) (native.Explanation, error) {
				return native.Explanation{Decision: "deny", Code: "no_route", Reason: "no route", Steps: []native.Step{{Step: "route", Detail: "none matches"}}}, nil
			},
		}),
	)
}

// TestDescriptionHoldsForEveryTranscript plays the transcripts of all contracts
// against the four APIs together.
func TestDescriptionHoldsForEveryTranscript(t *testing.T) {
	d := readDescription(t)
	for _, face := range []string{"unit", "fynn", "mailtrap", "native"} {
		t.Run(face, func(t *testing.T) {
			admintest.PlayFiles(t, face+"/testdata/*.txt", func(w *admintest.World) http.Handler {
				return d.checked(t, describedFaces(w))
			})
		})
	}
	w := admintest.New(t)
	cast := w.Cast()
	admintest.Send(t, d.checked(t, describedFaces(w)), cast.Admin, "POST", "/v1/explain",
		`{"method":"GET","target":"/a","headers":{"Host":"example.com","X-A":["b","c"]},"from":"192.0.2.1","token_id":`+cast.Peer.ID.String()+`}`)
	for path, item := range d.doc.Paths.Map() {
		for method, operation := range item.Operations() {
			if !d.used[operation.OperationID] {
				t.Errorf("no transcript shows %s %s at work", method, path)
			}
		}
	}
}

// TestDescriptionNamesEveryPath compares the document with what the faces serve.
func TestDescriptionNamesEveryPath(t *testing.T) {
	d := readDescription(t)
	w := admintest.New(t)
	root := w.Root()
	h := describedFaces(w)
	for path, item := range d.doc.Paths.Map() {
		target := strings.NewReplacer("{userId}", "1", "{tokenId}", "1", "{account_id}", "1", "{id}", "1").Replace(path)
		var described []string
		for method := range item.Operations() {
			described = append(described, method)
		}
		rec := admintest.Send(t, h, root, "OPTIONS", target, "")
		if rec.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s is described and not served: %d", path, rec.Code)
			continue
		}
		served := strings.Split(rec.Header().Get("Allow"), ", ")
		if len(served) != len(described) {
			t.Errorf("%s serves %v, and %v is described", path, served, described)
		}
	}
}

// TestWrongAnswersAreNoticed proves that the check above checks.
func TestWrongAnswersAreNoticed(t *testing.T) {
	d := readDescription(t)
	for name, c := range map[string]struct {
		target, media, body string
		status              int
	}{
		"status as a number":        {"/users/1/api-tokens", "application/vnd.api+json", `{"errors":[{"status":401,"title":"Unauthorized","code":"unauthorized","detail":"x","details":"x"}]}`, 401},
		"error without title":       {"/users/1/api-tokens", "application/vnd.api+json", `{"errors":[{"status":"401","code":"unauthorized","detail":"x","details":"x"}]}`, 401},
		"secret in a list":          {"/users/1/api-tokens", "application/vnd.api+json", `{"data":[{"id":"1","type":"apiToken","attributes":{"createdAt":"2026-11-21T12:00:00.000Z","description":"x","expiration":"2026-11-21T12:00:00.000Z","token":"x"}}]}`, 200},
		"nine fraction digits":      {"/users/1/api-tokens", "application/vnd.api+json", `{"data":[{"id":"1","type":"apiToken","attributes":{"createdAt":"2026-11-21T12:00:00.000000000Z","description":"x","expiration":"2026-11-21T12:00:00.000Z"}}]}`, 200},
		"another media type":        {"/users/1/api-tokens", "text/html", `{"data":[]}`, 200},
		"secret in a page":          {"/user/api-tokens", "application/json", `{"data":[{"id":"II9EUZZQN0DHMQDX219S","description":"x","expiresAt":null,"createdAt":"2026-11-21T12:00:00+00:00","updatedAt":"2026-11-21T12:00:00+00:00","apiToken":"api_x"}],"meta":{"pagination":{"totalItems":1,"itemsPerPage":30,"currentPage":1,"lastPage":1,"pageTotalItems":1}}}`, 200},
		"text in place of an array": {"/api/api_tokens", "application/json; charset=utf-8", `{"errors":{"name":"can't be blank"}}`, 422},
		"object without expires_at": {"/api/api_tokens", "application/json; charset=utf-8", `[{"resources":[],"id":1,"name":"x","last_4_digits":"abcd","created_by":"x"}]`, 200},
		"native without problem":    {"/v1/tokens", "application/json", `{"error":"x"}`, 500},
		"native token cut":          {"/v1/tokens", "application/json", `{"items":[{"id":1}],"next":null}`, 200},
	} {
		rec := httptest.NewRecorder()
		rec.Header().Set("Content-Type", c.media)
		rec.Header().Set("X-Request-Id", "req-1")
		rec.Header().Set("X-Mailtrap-Version", "v2")
		rec.WriteHeader(c.status)
		_, _ = rec.WriteString(c.body)
		if d.check(httptest.NewRequest("GET", "http://tokenward.test"+c.target, nil), nil, rec) == nil {
			t.Errorf("%s is not noticed", name)
		}
	}
}

func TestDescriptionIsServedAsItIs(t *testing.T) {
	file, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	admin.OpenAPI().ServeHTTP(rec, httptest.NewRequest("GET", "/openapi.yaml", nil))
	if !bytes.Equal(rec.Body.Bytes(), file) || rec.Header().Get("Content-Type") != "application/yaml" {
		t.Errorf("served is something else: %s", rec.Header())
	}
	rec = httptest.NewRecorder()
	admin.OpenAPI().ServeHTTP(rec, httptest.NewRequest("POST", "/openapi.yaml", nil))
	if rec.Code != http.StatusMethodNotAllowed || rec.Header().Get("Allow") == "" {
		t.Errorf("POST gives %d", rec.Code)
	}
}

// FuzzAnyRequestIsAnsweredAsDescribed sends what it likes to all four APIs: none
// of it may be a fault of ours, and every refusal has the form of its API.
func FuzzAnyRequestIsAnsweredAsDescribed(f *testing.F) {
	d := readDescription(f)
	var (
		w     *admintest.World
		h     http.Handler
		by    admintest.Holder
		calls int
	)
	fresh := func(t testing.TB) {
		w = admintest.New(t)
		w.Log = slog.New(slog.DiscardHandler)
		by = w.Cast().Admin
		h = describedFaces(w)
	}
	fresh(f)
	for _, seed := range []struct{ method, target, media, body string }{
		{"POST", "/users/1/api-tokens", "application/vnd.api+json", `{"data":{"type":"apiToken","attributes":{"description":"x","scope":"accounts","expiration":"2027-01-01T00:00:00Z"}}}`},
		{"DELETE", "/users/1/api-tokens/3", "", ""},
		{"GET", "/users/%31/api-tokens", "", ""},
		{"GET", "/user/api-tokens?page=1&limit=2", "", ""},
		{"POST", "/user/api-tokens", "application/json", `{"description":"abc","expiresAt":null}`},
		{"DELETE", "/user/api-tokens/JGGRYCC8L6K042YXWL4W", "", ""},
		{"POST", "/api/api_tokens", "application/json", `{"name":"x","resources":[{"resource_type":"inbox","resource_id":5,"access_level":10}]}`},
		{"POST", "/api/accounts/1/api_tokens/3/reset", "application/x-www-form-urlencoded", ""},
		{"GET", "/v1/tokens?state=active&limit=1&cursor=x", "", ""},
		{"PATCH", "/v1/tokens/3", "application/merge-patch+json", `{"limits":{"rate":1.5,"quota":[{"count":1,"per":"day"}]}}`},
		{"POST", "/v1/introspect", "application/x-www-form-urlencoded", "token=x"},
		{"POST", "/v1/explain", "application/json", `{"method":"GET","target":"/a","headers":{"a":"b"}}`},
		{"DELETE", "/v1/tokens/3?descendants=true", "", ""},
	} {
		f.Add(seed.method, seed.target, seed.media, seed.body)
	}
	f.Fuzz(func(t *testing.T, method, target, media, body string) {
		if calls++; calls%1000 == 0 {
			fresh(t) // nobody empties the outbox of a world
		}
		if !strings.HasPrefix(target, "/") || strings.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" || method == "" {
			return // the engine refuses it
		}
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return // likewise
		}
		r := httptest.NewRequest("GET", "/", strings.NewReader(body))
		r.Method, r.URL, r.RequestURI = method, u, target
		r.Header.Set("Api-Token", by.Secret.Reveal())
		if media != "" {
			r.Header.Set("Content-Type", media)
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		switch {
		case rec.Header().Get("Cache-Control") == "":
			// no path of the APIs
		case rec.Code >= 500:
			t.Errorf("%s %q: %d %s", method, target, rec.Code, rec.Body)
		case rec.Code >= 400:
			if err := d.checkError(r, rec); err != nil {
				t.Errorf("%s %q: %d %s: %v", method, target, rec.Code, rec.Body, err)
			}
		}
		if self, err := w.Store.ByID(t.Context(), by.ID); err != nil || self.State != tokenstore.StateActive || self.ReplacedBy != 0 || len(self.Secrets) > 1 || !self.Expiry.Never {
			fresh(t) // it has ended or replaced itself
		}
	})
}
