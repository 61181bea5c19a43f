package admin_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/mux"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/admin/fynn"
	"tokenward/admin/leaks"
	"tokenward/admin/mailtrap"
	"tokenward/admin/native"
	"tokenward/admin/unit"
	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

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
		reports{w},
		unit.New(w.Service, g, w.Log),
		fynn.New(w.Service, g, w.Log),
		mailtrap.New(w.Service, g, w.Log, mailtrap.Options{Limiter: mailtrap.NewLimiter(mailtrap.DefaultRequests)}),
		native.New(w.Service, g, w.Log, native.Options{
			CursorKey: []byte("of this test"),
			Explain: func(context.Context, native.Question) (native.Explanation, error) {
				return native.Explanation{Decision: "deny", Code: "no_route", Reason: "no route", Steps: []native.Step{{Step: "route", Detail: "none matches"}}}, nil
			},
			Backup: func(_ context.Context, to io.Writer) error {
				_, err := io.WriteString(to, "a backup")
				return err
			},
			Cluster: threeNodes{},
			Import: func(_ context.Context, _ admin.Caller, body io.Reader, o admin.ImportOptions) (native.ImportAnswer, error) {
				_, err := io.Copy(io.Discard, body)
				done := admin.Imported{Count: 1, First: 7, Last: 7, Refused: []admin.ImportRefusal{{Line: 2, Detail: "is known", Existing: 3, Wanted: 8}, {Line: 3, Detail: "is weak"}}}
				return native.ImportAnswerOf(&done, o), err
			},
		}),
	)
}

// reports is the endpoint for reports of leaked secrets, beside the faces.
type reports struct{ w *admintest.World }

func (f reports) Register(r *mux.Router) {
	h, err := leaks.New(f.w.Service, leaks.Options{
		Keys: map[string]*ecdsa.PublicKey{"k1": &reporterKey(f.w.T).PublicKey}, Action: leaks.Disable, Log: f.w.Log,
		Find: func(context.Context, []byte) (tokenstore.Match, error) {
			return tokenstore.Match{}, tokenstore.ErrNotFound
		},
	})
	if err != nil {
		f.w.T.Fatal(err)
	}
	r.Path("/v1/leaks").Handler(h)
}

func reporterKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// signature is how a reporter signs the body.
func signature(t testing.TB, body string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(body))
	s, err := ecdsa.SignASN1(rand.Reader, reporterKey(t), sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(s)
}

// TestDescriptionHoldsForEveryTranscript plays the transcripts of all contracts
// against the four APIs together.
func TestDescriptionHoldsForEveryTranscript(t *testing.T) {
	d := admintest.ReadDescription(t)
	for _, face := range []string{"unit", "fynn", "mailtrap", "native"} {
		t.Run(face, func(t *testing.T) {
			admintest.PlayFiles(t, face+"/testdata/*.txt", func(w *admintest.World) http.Handler {
				return d.Checked(t, describedFaces(w))
			})
		})
	}
	w := admintest.New(t)
	cast := w.Cast()
	h := d.Checked(t, describedFaces(w))
	admintest.Send(t, h, cast.Admin, "POST", "/v1/explain",
		`{"method":"GET","target":"/a","headers":{"Host":"example.com","X-A":["b","c"]},"from":"192.0.2.1","token_id":`+cast.Peer.ID.String()+`}`)
	admintest.Send(t, h, cast.Root, "GET", "/v1/cluster", "")
	admintest.Send(t, h, cast.Admin, "GET", "/v1/cluster", "") // refused
	admintest.Send(t, h, cast.Root, "GET", "/v1/backup", "")
	admintest.Send(t, h, cast.Admin, "GET", "/v1/backup", "") // refused
	admintest.Send(t, h, cast.Root, "POST", "/v1/import?allow_weak=true", `{"secret":"weak"}`+"\n"+`{"digest":"00","digest_type":"sha256","last4":"abcd","disabled":true}`, "Content-Type", "application/x-ndjson")
	admintest.Send(t, h, cast.Root, "POST", "/v1/import?dry_run=maybe", `{"secret":"weak"}`, "Content-Type", "application/x-ndjson")
	admintest.Send(t, h, cast.Root, "POST", "/v1/import", `{"secret":"weak"}`)
	report := `[{"token":"tw_x","type":"tokenward","url":"https://example.com","source":"content"}]`
	admintest.Send(t, h, admintest.Holder{}, "POST", "/v1/leaks", report, "Content-Type", "application/json", "Github-Public-Key-Identifier", "k1", "Github-Public-Key-Signature", signature(t, report))
	admintest.Send(t, h, admintest.Holder{}, "POST", "/v1/leaks", report, "Content-Type", "application/json", "Github-Public-Key-Identifier", "k1", "Github-Public-Key-Signature", "AA==")
	for path, item := range d.Doc.Paths.Map() {
		for method, operation := range item.Operations() {
			if !d.Used[operation.OperationID] {
				t.Errorf("no transcript shows %s %s at work", method, path)
			}
		}
	}
}

// TestDescriptionNamesEveryPath compares the document with what the faces serve.
func TestDescriptionNamesEveryPath(t *testing.T) {
	d := admintest.ReadDescription(t)
	w := admintest.New(t)
	root := w.Root()
	h := describedFaces(w)
	for path, item := range d.Doc.Paths.Map() {
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
	d := admintest.ReadDescription(t)
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
		if d.Check(httptest.NewRequest("GET", "http://tokenward.test"+c.target, nil), nil, rec) == nil {
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
	d := admintest.ReadDescription(f)
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
			if err := d.CheckError(r, rec); err != nil {
				t.Errorf("%s %q: %d %s: %v", method, target, rec.Code, rec.Body, err)
			}
		}
		if self, err := w.Store.ByID(t.Context(), by.ID); err != nil || self.State != tokenstore.StateActive || self.ReplacedBy != 0 || len(self.Secrets) > 1 || !self.Expiry.Never {
			fresh(t) // it has ended or replaced itself
		}
	})
}

// threeNodes is a cluster that the description is held to.
type threeNodes struct{}

func (threeNodes) WaitAll(context.Context) ([]string, error) { return nil, nil }

func (threeNodes) Members(context.Context) ([]native.Node, int64, error) {
	now := native.Time{Time: storetest.Epoch.In(time.FixedZone("", 3600)).Add(time.Nanosecond)}
	return []native.Node{
		{Name: "a", Version: "1", Mirror: "full", OnStale: "deny", Revision: 7, AgeMS: new(int64(5)), SaidAt: &now, Started: &now},
		{Name: "b", Version: "1", Mirror: "on_demand", OnStale: "serve", Revision: 7},
	}, 7, nil
}
