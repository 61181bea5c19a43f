package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/gorilla/mux"

	"tokenward/tokenstore"
)

// Gate tells who calls. The listener provides it: it judges the credential,
// the token's state, its sources and its limits as every door does, so that no
// face has a judgement of its own. The error is one of KindMissingToken,
// KindInvalidToken, KindAmbiguous, KindSource, KindRateLimited, KindUnavailable
// or KindMalformed, with RetryAfter where it applies; on an error the Caller is
// not used. The face sets Caller.API.
type Gate interface {
	Authenticate(r *http.Request) (Caller, *Error)
}

// Handler answers one call of a wire contract. It writes a success to w, or
// writes nothing and returns an error, which the Face turns into the contract's
// form. An error after writing is allowed: if what was written has left already
// the connection breaks off.
type Handler func(w http.ResponseWriter, r *http.Request, c Caller) error

// Face is what all wire contracts share in serving HTTP: the order of steps
// before a call, and the one place that writes errors.
type Face struct {
	Name string // Caller.API of its calls
	Gate Gate
	Log  *slog.Logger // for faults of the program and the store, once each

	// Refuse writes the error in the contract's form. It is given every Kind.
	Refuse func(w http.ResponseWriter, r *http.Request, e *Error)

	// Admit is called when it is known who calls, and also (known is false) when
	// that was refused: it sets headers that every answer bears and may refuse a
	// known caller. May be nil.
	Admit func(w http.ResponseWriter, c Caller, known bool) error
}

// NewRouter returns a router for faces to register with: it matches the path as
// it was sent, without cleaning or decoding, and never redirects.
func NewRouter() *mux.Router {
	return mux.NewRouter().SkipClean(true).UseEncodedPath()
}

// Methods returns the handler of one path. Another method is refused with
// KindMethod, after the caller was authenticated: who has no credential learns
// nothing of what a path takes.
func (f *Face) Methods(handlers map[string]Handler) http.Handler {
	allow := slices.Sorted(maps.Keys(handlers))
	return f.serve(func(w http.ResponseWriter, r *http.Request, c Caller) error {
		h, ok := handlers[r.Method]
		if !ok {
			return &Error{Kind: KindMethod, Detail: "This path does not take the method " + method(r) + ".", Allow: allow}
		}
		return h(w, r, c)
	})
}

// NoPath returns the handler for paths under the face's prefixes that it does
// not have.
func (f *Face) NoPath() http.Handler {
	return f.serve(func(http.ResponseWriter, *http.Request, Caller) error {
		return refuse(KindNoPath, "There is no such path.")
	})
}

// method is what may be shown of the request's method.
func method(r *http.Request) string {
	const longest = 16
	if len(r.Method) > longest {
		return r.Method[:longest] + "…"
	}
	return r.Method
}

func (f *Face) serve(h Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := &answer{w: w}
		a.Header().Set("Cache-Control", "no-store")
		a.Header().Set("X-Content-Type-Options", "nosniff")
		if err := f.call(a, r, h); err != nil {
			f.fail(a, r, AsError(err))
		}
		if a.flush() != nil {
			panic(http.ErrAbortHandler) // the client is gone
		}
	})
}

// call runs the steps of one call. A panic of the handler becomes an error.
func (f *Face) call(a *answer, r *http.Request, h Handler) (err error) {
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			panic(p)
		default:
			err = &Error{Kind: KindInternal, Cause: fmt.Errorf("panic: %v\n%s", p, debug.Stack())}
		}
	}()
	c, refused := f.Gate.Authenticate(r)
	if refused == nil && (c.Token == nil || c.Secret == nil) {
		refused = refuse(KindMissingToken, "An API token is required.")
	}
	if refused != nil {
		c = Caller{}
	}
	c.API = f.Name
	if f.Admit != nil {
		if err := f.Admit(a, c, refused == nil); err != nil && refused == nil {
			return err
		}
	}
	if refused != nil {
		return refused
	}
	return h(a, r, c)
}

// fail writes the error, or breaks the connection if a part of the answer has
// gone out: a list that is cut short must not look whole.
func (f *Face) fail(a *answer, r *http.Request, e *Error) {
	f.log(r.Context(), a, e)
	if a.committed {
		panic(http.ErrAbortHandler)
	}
	a.reset()
	if unread := e.Kind == KindTooLarge || e.Kind == KindBodyTimeout; unread && r.ProtoMajor < 2 {
		a.Header().Set("Connection", "close") // HTTP/2 ends the stream alone
	}
	if e.RetryAfter > 0 {
		a.Header().Set("Retry-After", strconv.Itoa(max(1, int((e.RetryAfter+999e6)/1e9))))
	}
	if e.Limits != (Limits{}) {
		a.Header().Set("RateLimit-Policy", e.Limits.Policy)
		a.Header().Set("RateLimit", e.Limits.Left)
	}
	if len(e.Allow) > 0 {
		a.Header().Set("Allow", strings.Join(e.Allow, ", "))
	}
	f.Refuse(a, r, e)
}

// log records what the operator must know: what is not the client's fault.
func (f *Face) log(ctx context.Context, a *answer, e *Error) {
	if e.Cause == nil && e.Kind != KindInternal || a.failed != nil || errors.Is(e.Cause, context.Canceled) {
		return
	}
	level := slog.LevelError
	if e.Kind != KindInternal {
		level = slog.LevelWarn
	}
	f.Log.LogAttrs(ctx, level, "admin call failed",
		slog.String("api", f.Name), slog.String("request_id", RequestID(a)), slog.String("error", e.Error()))
}

// RequestID returns the id of the request that w answers, which the listener
// has set as a header before it calls a face.
func RequestID(w http.ResponseWriter) string { return w.Header().Get("X-Request-Id") }

// answer holds an answer back until it is whole or over holdBytes, so that a
// fault before that can still be answered properly.
type answer struct {
	w         http.ResponseWriter
	status    int
	held      []byte
	committed bool  // the head has left
	failed    error // what writing to the client gave
}

const holdBytes = 32 << 10

func (a *answer) Header() http.Header { return a.w.Header() }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *answer) Write(b []byte) (int, error) {
	if a.failed != nil {
		return 0, a.failed
	}
	a.WriteHeader(http.StatusOK)
	if a.committed && len(b) >= holdBytes {
		return a.pass(b)
	}
	a.held = append(a.held, b...)
	if len(a.held) >= holdBytes {
		if err := a.send(); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// pass writes what is held, and b as it is: pieces of a backup are not copied.
func (a *answer) pass(b []byte) (n int, err error) {
	if err := a.send(); err != nil {
		return 0, err
	}
	n, a.failed = a.w.Write(b)
	return n, a.failed
}

// Unwrap serves http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.w }

func (a *answer) reset() {
	a.status, a.held = 0, a.held[:0]
	for _, name := range []string{"Content-Type", "Content-Length", "ETag", "Location"} {
		a.Header().Del(name)
	}
}

// flush sends what is held at the end of the call.
func (a *answer) flush() error {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	if !a.committed && a.status != http.StatusNoContent {
		a.Header().Set("Content-Length", strconv.Itoa(len(a.held)))
	}
	return a.send()
}

func (a *answer) send() error {
	if !a.committed {
		a.committed = true
		a.w.WriteHeader(a.status)
	}
	if len(a.held) > 0 && a.failed == nil {
		_, a.failed = a.w.Write(a.held)
		a.held = a.held[:0]
	}
	return a.failed
}

// EncodeJSON returns v as JSON in one line, without escaping <, > and &.
func EncodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	if err := encodeJSON(&b, v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func encodeJSON(b *bytes.Buffer, v any) error {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return &Error{Kind: KindInternal, Cause: err}
	}
	b.Truncate(b.Len() - 1) // the line break
	return nil
}

// WriteJSON answers with v as JSON.
func WriteJSON(w http.ResponseWriter, status int, contentType string, v any) error {
	b, err := EncodeJSON(v)
	if err != nil {
		return err
	}
	return WriteBytes(w, status, contentType, b)
}

// WriteBytes answers with a body that is encoded already.
func WriteBytes(w http.ResponseWriter, status int, contentType string, body []byte) error {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, err := w.Write(body)
	return err
}

// WriteList answers 200 with a JSON array between head and tail, one token
// after the other as the sequence gives them: memory is constant at any length.
// If the sequence fails, so does the call; what has left breaks off and cannot
// be taken for a whole list.
func WriteList(w http.ResponseWriter, contentType, head string, tokens iter.Seq2[*tokenstore.Token, error], render func(*tokenstore.Token) any, tail string) error {
	w.Header().Set("Content-Type", contentType)
	var b bytes.Buffer
	b.WriteString(head)
	separator := "["
	for t, err := range tokens {
		if err != nil {
			return err
		}
		b.WriteString(separator)
		separator = ","
		if err := encodeJSON(&b, render(t)); err != nil {
			return err
		}
		if _, err := w.Write(b.Bytes()); err != nil {
			return err
		}
		b.Reset()
	}
	if separator == "[" {
		b.WriteString("[")
	}
	b.WriteString("]" + tail)
	_, err := w.Write(b.Bytes())
	return err
}
