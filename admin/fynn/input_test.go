package fynn_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/admin/fynn"
)

// wireError is an answer that reports what is wrong, as clients read it.
type wireError struct {
	Code                         int
	Type, Title, Detail, Message string
	Status                       int
	Violations                   []struct{ PropertyPath, Message string }
}

func readError(t *testing.T, rec *httptest.ResponseRecorder) wireError {
	t.Helper()
	var e wireError
	if err := json.Unmarshal(rec.Body.Bytes(), &e); err != nil || e.Message == "" {
		t.Fatalf("%d is not an error of this contract: %s", rec.Code, rec.Body)
	}
	switch {
	case rec.Code == http.StatusUnauthorized:
		if e.Code != rec.Code || rec.Header().Get("Content-Type") != "application/json" {
			t.Errorf("401 has a form of its own: %s", rec.Body)
		}
	case e.Status != rec.Code || e.Title == "" || e.Type == "" || e.Detail != e.Message || rec.Header().Get("Content-Type") != "application/problem+json":
		t.Errorf("not a problem of this contract: %s", rec.Body)
	}
	return e
}

func text(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// TestBadInputNamesTheField sends what a body can have wrong, one thing each.
func TestBadInputNamesTheField(t *testing.T) {
	w := admintest.New(t)
	admin, h := w.Cast().Admin, admintest.Described(t, handler(w))
	w.Events()
	for name, c := range map[string]struct{ body, field string }{
		"description too short":     {`{"description":"ab"}`, "description"},
		"description too long":      {`{"description":` + text(strings.Repeat("é", 256)) + `}`, "description"},
		"description blank":         {`{"description":"    "}`, "description"},
		"description null":          {`{"description":null}`, "description"},
		"description a number":      {`{"description":9007199254740993}`, "description"},
		"description with control":  {`{"description":"a\u0000bc"}`, "description"},
		"description with bidi":     {`{"description":"a\u2066bc"}`, "description"},
		"description with bad utf8": {`{"description":"a` + "\xc0\x80" + `bc"}`, "description"},
		"description half a pair":   {`{"description":"a\udc00bc"}`, "description"},
		"date without zone":         {`{"description":"test","expiresAt":"2027-07-01T00:00:00"}`, "expiresAt"},
		"date alone":                {`{"description":"test","expiresAt":"2027-07-01"}`, "expiresAt"},
		"leap second":               {`{"description":"test","expiresAt":"2027-06-30T23:59:60+00:00"}`, "expiresAt"},
		"date past":                 {`{"description":"test","expiresAt":"2020-01-01T00:00:00+00:00"}`, "expiresAt"},
		"date empty":                {`{"description":"test","expiresAt":""}`, "expiresAt"},
		"date as number":            {`{"description":"test","expiresAt":1}`, "expiresAt"},
		"unknown field":             {`{"description":"test","expires_at":null}`, "expires_at"},
		"field twice":               {`{"description":"test","expiresAt":null,"expiresAt":null}`, "expiresAt"},
		"scopes":                    {`{"description":"test","scopes":` + strings.TrimSuffix("["+strings.Repeat(`"a",`, 10_000), ",") + `]}`, "scopes"},
	} {
		t.Run(name, func(t *testing.T) {
			rec := admintest.Send(t, h, admin, "POST", "/user/api-tokens", c.body, "Content-Type", "application/json")
			if rec.Code != http.StatusUnprocessableEntity {
				t.Fatalf("answer %d, want 422: %s", rec.Code, rec.Body)
			}
			e := readError(t, rec)
			if len(e.Violations) != 1 || e.Violations[0].PropertyPath != c.field {
				t.Errorf("the answer does not name the one field %s: %.300s", c.field, rec.Body)
			}
		})
	}
	if made := w.Events(); len(made) > 0 {
		t.Errorf("something was made: %+v", made)
	}
}

func TestBodyOverTheBoundIsRefused(t *testing.T) {
	w := admintest.New(t)
	rec := admintest.Send(t, admintest.Described(t, handler(w)), w.Cast().Admin, "POST", "/user/api-tokens", `{"description":`+text(strings.Repeat("x", 1<<20))+`}`)
	if rec.Code != http.StatusRequestEntityTooLarge || rec.Header().Get("Connection") != "close" {
		t.Errorf("a description of 1 MiB gives %d", rec.Code)
	}
	readError(t, rec)
}

// TestEveryKindHasItsAnswer holds the table complete.
func TestEveryKindHasItsAnswer(t *testing.T) {
	w := admintest.New(t)
	c := w.Cast()
	for _, kind := range admin.Kinds() {
		h := admintest.Handler(fynn.New(w.Service, failing{kind}, w.Log))
		rec := admintest.Send(t, h, c.Admin, "GET", "/user/api-tokens", "")
		readError(t, rec)
		if rec.Code < 400 {
			t.Errorf("%v gives %d", kind, rec.Code)
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
	f.Add(`{"description":"test"}`)
	f.Add(`{"description":"test","expiresAt":"2027-07-01t00:00:00.5-00:00"}`)
	f.Add(`{"description":"😀😀😀","expiresAt":null}`)
	f.Fuzz(func(t *testing.T, body string) {
		if calls++; calls%1000 == 0 {
			fresh(t) // nobody empties the outbox of a world
		}
		rec := admintest.Send(t, h, c.Admin, "POST", "/user/api-tokens", body)
		switch rec.Code {
		case http.StatusCreated:
			var made struct{ ID, Token, Description string }
			if err := json.Unmarshal(rec.Body.Bytes(), &made); err != nil || made.Token == "" {
				t.Fatalf("made, but told wrongly: %s", rec.Body)
			}
			if rec = admintest.Send(t, h, c.Admin, "DELETE", "/user/api-tokens/"+made.ID, ""); rec.Code != http.StatusNoContent {
				t.Errorf("what was made cannot be deleted: %s", rec.Body)
			}
		case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge:
			readError(t, rec)
		default:
			t.Errorf("answer %d to %q: %s", rec.Code, body, rec.Body)
		}
	})
}

func FuzzPage(f *testing.F) {
	w := admintest.New(f)
	c, h := w.Cast(), handler(w)
	f.Add("page=1&limit=2")
	f.Add("page=0&limit=0")
	f.Add("page=%31&limit=+1")
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest("GET", "/user/api-tokens", nil)
		r.URL.RawQuery = query
		r.Header.Set("Authorization", "Bearer "+c.Admin.Secret.Reveal())
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if rec.Code == http.StatusBadRequest {
			readError(t, rec)
			return
		}
		var page struct {
			Data []any
			Meta struct {
				Pagination struct{ TotalItems, ItemsPerPage, CurrentPage, LastPage, PageTotalItems int }
			}
		}
		if err := json.Unmarshal(rec.Body.Bytes(), &page); err != nil || rec.Code != http.StatusOK {
			t.Fatalf("answer %d to %q: %s", rec.Code, query, rec.Body)
		}
		p := page.Meta.Pagination
		if len(page.Data) != p.PageTotalItems || p.PageTotalItems > p.ItemsPerPage || p.ItemsPerPage > 100 || p.CurrentPage < 1 || p.LastPage < 1 {
			t.Errorf("%q: %+v", query, p)
		}
	})
}
