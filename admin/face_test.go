package admin_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// gateFunc is a gate by a function.
type gateFunc func(*http.Request) (admin.Caller, *admin.Error)

func (f gateFunc) Authenticate(r *http.Request) (admin.Caller, *admin.Error) { return f(r) }

func anyone(*http.Request) (admin.Caller, *admin.Error) {
	t := storetest.Sample(7, 1, 1)
	return admin.Caller{Token: t, Secret: &t.Secrets[0]}, nil
}

// testFace writes errors as `code: detail` and keeps its log.
func testFace(log *bytes.Buffer) *admin.Face {
	return &admin.Face{
		Name: "test", Gate: gateFunc(anyone), Log: slog.New(slog.NewTextHandler(log, nil)),
		Refuse: func(w http.ResponseWriter, _ *http.Request, e *admin.Error) {
			w.WriteHeader(418)
			_, _ = io.WriteString(w, e.Kind.String()+": "+e.Detail)
		},
	}
}

// answerOf sends one GET through a face with one handler.
func answerOf(f *admin.Face, h admin.Handler) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	recorder.Header().Set("X-Request-Id", "req-9")
	f.Methods(map[string]admin.Handler{"GET": h}).ServeHTTP(recorder, httptest.NewRequest("GET", "/", nil))
	return recorder
}

func TestGateThatReturnsNobodyIsNotBelieved(t *testing.T) {
	f := testFace(new(bytes.Buffer))
	f.Gate = gateFunc(func(*http.Request) (admin.Caller, *admin.Error) { return admin.Caller{}, nil })
	r := answerOf(f, func(http.ResponseWriter, *http.Request, admin.Caller) error {
		t.Error("the handler was called")
		return nil
	})
	if !strings.HasPrefix(r.Body.String(), "missing_token") {
		t.Error(r.Body)
	}
}

// TestLargeBodyEndsNoConnectionThatOthersShare: over HTTP/2 it would end all streams'.
func TestLargeBodyEndsNoConnectionThatOthersShare(t *testing.T) {
	f := testFace(new(bytes.Buffer))
	for major, want := range map[int]string{1: "close", 2: ""} {
		for _, kind := range []admin.Kind{admin.KindTooLarge, admin.KindBodyTimeout} {
			r := httptest.NewRequest("GET", "/", nil)
			r.ProtoMajor = major
			recorder := httptest.NewRecorder()
			f.Methods(map[string]admin.Handler{"GET": func(http.ResponseWriter, *http.Request, admin.Caller) error {
				return &admin.Error{Kind: kind}
			}}).ServeHTTP(recorder, r)
			if got := recorder.Header().Get("Connection"); got != want {
				t.Errorf("%s over HTTP/%d: Connection %q, want %q", kind, major, got, want)
			}
		}
	}
}

func TestCallerBearsTheNameOfTheFace(t *testing.T) {
	answerOf(testFace(new(bytes.Buffer)), func(_ http.ResponseWriter, _ *http.Request, c admin.Caller) error {
		if c.API != "test" {
			t.Errorf("API %q", c.API)
		}
		return nil
	})
}

func TestRefusedCallerNeverReachesTheHandlerNorLearnsTheMethods(t *testing.T) {
	f := testFace(new(bytes.Buffer))
	f.Gate = gateFunc(func(*http.Request) (admin.Caller, *admin.Error) {
		c, _ := anyone(nil)
		return c, &admin.Error{Kind: admin.KindInvalidToken}
	})
	admitted := 0
	f.Admit = func(_ http.ResponseWriter, c admin.Caller, known bool) error {
		if admitted++; known || c.Token != nil {
			t.Error("a refused caller is known")
		}
		return errors.New("over some limit")
	}
	recorder := httptest.NewRecorder()
	f.Methods(map[string]admin.Handler{"GET": func(http.ResponseWriter, *http.Request, admin.Caller) error {
		t.Error("the handler was called")
		return nil
	}}).ServeHTTP(recorder, httptest.NewRequest("PUT", "/", nil))
	if recorder.Header().Get("Allow") != "" || !strings.HasPrefix(recorder.Body.String(), "invalid_token") || admitted != 1 {
		t.Error(recorder.Header(), recorder.Body)
	}
}

func TestUnknownErrorIsOpaqueAndLoggedOnce(t *testing.T) {
	for name, h := range map[string]admin.Handler{
		"error": func(http.ResponseWriter, *http.Request, admin.Caller) error { return errors.New("very private") },
		"panic": func(http.ResponseWriter, *http.Request, admin.Caller) error { panic("very private") },
		"late": func(w http.ResponseWriter, _ *http.Request, _ admin.Caller) error {
			_, _ = io.WriteString(w, "begun")
			return errors.New("very private")
		},
	} {
		var log bytes.Buffer
		r := answerOf(testFace(&log), h)
		if r.Body.String() != "internal: " || r.Code != 418 {
			t.Errorf("%s: %d %s", name, r.Code, r.Body)
		}
		if strings.Count(log.String(), "very private") != 1 || !strings.Contains(log.String(), "request_id=req-9") {
			t.Errorf("%s: log %s", name, log.String())
		}
	}
}

func TestFaultsOfTheClientAreNotLogged(t *testing.T) {
	for _, kind := range admin.Kinds() {
		if kind == admin.KindInternal {
			continue
		}
		var log bytes.Buffer
		answerOf(testFace(&log), func(http.ResponseWriter, *http.Request, admin.Caller) error { return &admin.Error{Kind: kind} })
		if log.Len() > 0 {
			t.Errorf("%s: %s", kind, log.String())
		}
	}
}

func TestHeadersOfAnAnswerThatWasNotSentAreTakenBack(t *testing.T) {
	r := answerOf(testFace(new(bytes.Buffer)), func(w http.ResponseWriter, _ *http.Request, _ admin.Caller) error {
		w.Header().Set("ETag", `"1"`)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(200)
		return &admin.Error{Kind: admin.KindUnavailable, RetryAfter: 1500 * time.Millisecond}
	})
	if r.Header().Get("ETag") != "" || r.Header().Get("Retry-After") != "2" || r.Code != 418 || r.Header().Get("Cache-Control") != "no-store" {
		t.Error(r.Code, r.Header())
	}
}

func TestAnswerOverTheHoldGoesOutInParts(t *testing.T) {
	server := httptest.NewServer(testFace(new(bytes.Buffer)).Methods(map[string]admin.Handler{
		"GET": func(w http.ResponseWriter, r *http.Request, _ admin.Caller) error {
			for range 10 {
				if _, err := w.Write(make([]byte, 20_000)); err != nil {
					return err
				}
			}
			if r.URL.Path == "/broken" {
				return errors.New("the store failed")
			}
			return nil
		},
	}))
	defer server.Close()
	get := func(path string) (int, error) {
		answer, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		n, err := io.Copy(io.Discard, answer.Body)
		return int(n), err
	}
	if n, err := get("/whole"); n != 200_000 || err != nil {
		t.Errorf("whole: %d bytes, %v", n, err)
	}
	if n, err := get("/broken"); err == nil {
		t.Errorf("broken: %d bytes passed for the whole", n)
	}
}

func TestEveryKindHasOneCode(t *testing.T) {
	seen := map[string]admin.Kind{}
	for _, kind := range admin.Kinds() {
		code := kind.String()
		if other, twice := seen[code]; twice || code == "" {
			t.Errorf("%d and %d are both %q", kind, other, code)
		}
		seen[code] = kind
	}
	if admin.Kind(200).String() != "internal" {
		t.Error("an unknown kind is not internal")
	}
}

func TestErrorsOfTheStoreAreClassified(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	for err, want := range map[error]admin.Kind{
		tokenstore.ErrOutboxFull:                      admin.KindUnavailable,
		tokenstore.ErrClosed:                          admin.KindUnavailable,
		tokenstore.ErrInvariant:                       admin.KindInternal,
		tokenstore.ErrOutcomeUnknown:                  admin.KindOutcomeUnknown,
		&tokenstore.DuplicateError{}:                  admin.KindInternal,
		errors.New("disk on fire"):                    admin.KindUnavailable,
		errors.Join(tokenstore.ErrInvariant, io.EOF):  admin.KindInternal,
		error(&admin.Error{Kind: admin.KindTooLarge}): admin.KindTooLarge,
	} {
		store := w.Store.Store
		w.Store.Store = refusing{store, err}
		_, got := w.Service.Create(ctx, w.Caller(cast.Admin), admin.Spec{Name: "x"})
		w.Store.Store = store
		e, ok := errors.AsType[*admin.Error](got)
		if !ok || e.Kind != want || strings.Contains(e.Detail, "fire") {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// refusing is a store that refuses changes with one error.
type refusing struct {
	storetest.Store
	err error
}

func (s refusing) Change(context.Context, func(tokenstore.Tx) error) error { return s.err }
