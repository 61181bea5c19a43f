package admintest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"tokenward/admin"
)

// Description is the OpenAPI document of the token APIs, ready to hold requests
// and answers against.
type Description struct {
	Doc    *openapi3.T
	Used   map[string]bool // operations that answered with success
	router routers.Router
}

// ReadDescription reads the document as it is served.
func ReadDescription(t testing.TB) *Description {
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
	return &Description{doc, make(map[string]bool), router}
}

// Described serves h and holds every request that succeeds and every answer
// against the document.
func Described(t testing.TB, h http.Handler) http.Handler {
	t.Helper()
	return ReadDescription(t).Checked(t, h)
}

// Checked does so, and notes which operations succeeded.
func (d *Description) Checked(t testing.TB, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 2<<20)) // some never end
		if err != nil {
			t.Fatal(err)
		}
		r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), r.Body))
		recorder := httptest.NewRecorder()
		h.ServeHTTP(recorder, r)
		if fault := d.Check(r, body, recorder); fault != nil {
			t.Errorf("%s %s %.300s\n%d %.500s\nis not as described: %v", r.Method, r.URL, body, recorder.Code, recorder.Body, fault)
		}
		for name, values := range recorder.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(recorder.Code)
		_, _ = w.Write(recorder.Body.Bytes())
	})
}

// Check returns how request or answer differ from the document.
func (d *Description) Check(r *http.Request, body []byte, answer *httptest.ResponseRecorder) error {
	input, err := d.input(r, body)
	if err != nil {
		if answer.Code == http.StatusNotFound || answer.Code == http.StatusMethodNotAllowed || answer.Code == http.StatusUnauthorized || answer.Code == http.StatusBadRequest {
			return d.CheckError(r, answer)
		}
		return err
	}
	if answer.Code < 300 {
		d.Used[input.Route.Operation.OperationID] = true
		if err := d.lines(r, body); err != nil {
			return err
		}
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

// lines holds each line of an import against what the document says of one.
func (d *Description) lines(r *http.Request, body []byte) error {
	if r.URL.Path != "/v1/import" {
		return nil
	}
	n := 0
	for line := range bytes.Lines(body) {
		var value any
		if err := json.Unmarshal(line, &value); err != nil {
			return err
		}
		if err := d.Doc.Components.Schemas["ImportLine"].Value.VisitJSON(value, openapi3.EnableJSONSchema2020()); err != nil {
			return fmt.Errorf("line %d: %w", n+1, err)
		}
		n++
	}
	return nil
}

// input is the request as the library wants it. A body that claims no type, or
// is none, gets what the document asks for: the contracts do not insist.
func (d *Description) input(r *http.Request, body []byte) (*openapi3filter.RequestValidationInput, error) {
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

// CheckError holds an answer on a path or a method that is not described
// against the errors of the API whose path it is.
func (d *Description) CheckError(r *http.Request, answer *httptest.ResponseRecorder) error {
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
	return d.Doc.Components.Schemas[name].Value.VisitJSON(value, openapi3.EnableJSONSchema2020())
}
