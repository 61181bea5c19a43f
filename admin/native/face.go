// Package native is the product's own token API, `/v1`, over [admin.Service]:
// everything that a token can be, told in full.
package native

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/mux"

	"tokenward/admin"
	"tokenward/tokenstore"
	"tokenward/tokenstore/usage"
)

// Name is the API's name in Caller.API, admin.mount and audit events.
const Name = "native"

// Options are what the listener lends to the face.
type Options struct {
	// CursorKey signs the cursors of lists. Nodes that share it take each other's
	// cursors. nil: a random one, so that cursors end with the process.
	CursorKey []byte

	// Explain answers `POST /v1/explain`. nil: there is no such path.
	Explain func(ctx context.Context, q Question) (Explanation, error)

	// Backup writes a backup of the whole store, for `GET /v1/backup`. nil: there is no
	// such path.
	Backup func(ctx context.Context, w io.Writer) error

	// Import takes the tokens in the body of `POST /v1/import`, one JSON object on
	// each line. nil: there is no such path.
	Import func(ctx context.Context, c admin.Caller, body io.Reader, o admin.ImportOptions) (ImportAnswer, error)

	// Cluster is the other nodes. nil: there are none, and no path `/v1/cluster`.
	Cluster Cluster

	// Seen tells `GET /v1/whoami` what the listener knows of the request. nil: only
	// the address is told.
	Seen func(r *http.Request, c admin.Caller) Seen
}

// Question is a request that somebody wants to have judged without making it.
type Question struct {
	Method  string
	Target  string
	Headers []Header
	From    netip.Addr        // the peer; invalid: not said
	Token   *tokenstore.Token // as which it would come; nil: without a credential
}

// Header is one header line.
type Header struct{ Name, Value string }

// Explanation is how a request would be judged, step by step.
type Explanation struct {
	Decision string `json:"decision"` // allow or deny
	Code     string `json:"code"`
	Reason   string `json:"reason"`
	Route    string `json:"route"`
	Line     int    `json:"line"`
	Steps    []Step `json:"steps"`
}

// Step is one step of a judgement.
type Step struct {
	Step   string `json:"step"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Seen is what the listener knows of a request.
type Seen struct {
	Peer netip.Addr // who is at the other end of the connection
	Hop  string     // why the address was believed
	Left []Left
}

// Left is what is left of one of the token's limits.
type Left struct {
	Limit    string `json:"limit"` // rate, quota, uses or concurrent
	Per      string `json:"per,omitempty"`
	Left     uint64 `json:"left"`
	ResetsAt *Time  `json:"resets_at"`
}

// Face serves the API.
type Face struct {
	service *admin.Service
	options Options
	cursors *cursors
	face    admin.Face

	// backups is held while one is made: each keeps the store's file from using
	// space again.
	backups sync.Mutex
}

// New returns the face over service, behind gate.
func New(service *admin.Service, gate admin.Gate, log *slog.Logger, options Options) *Face {
	if options.CursorKey == nil {
		options.CursorKey = []byte(rand.Text())
	}
	f := &Face{service: service, options: options, cursors: newCursors(options.CursorKey)}
	f.face = admin.Face{Name: Name, Gate: gate, Log: log, Refuse: writeProblem}
	return f
}

// Paths returns the paths at and below which everything belongs to this API, in
// the grammar of routes.
func Paths() []string { return []string{"/v1"} }

// Register adds the API's paths to a router of [admin.NewRouter]. Where a path
// has an id, `self` stands for the caller's own.
func (f *Face) Register(r *mux.Router) {
	on := func(path string, handlers map[string]admin.Handler) {
		r.Path(path).Handler(f.face.Methods(handlers))
	}
	on("/v1/tokens", map[string]admin.Handler{http.MethodGet: f.list, http.MethodPost: f.rightFirst(f.create)})
	on("/v1/tokens/{id}", map[string]admin.Handler{
		http.MethodGet: f.get, http.MethodPatch: f.rightFirst(f.update), http.MethodDelete: f.revoke,
	})
	on("/v1/tokens/{id}/rotate", map[string]admin.Handler{http.MethodPost: f.rightFirst(f.rotate)})
	on("/v1/tokens/{id}/rotate/finish", map[string]admin.Handler{http.MethodPost: f.rightFirst(f.change(f.service.FinishRotation))})
	on("/v1/tokens/{id}/reset", map[string]admin.Handler{http.MethodPost: f.rightFirst(f.reset)})
	on("/v1/tokens/{id}/disable", map[string]admin.Handler{http.MethodPost: f.rightFirst(f.change(f.service.Disable))})
	on("/v1/tokens/{id}/enable", map[string]admin.Handler{http.MethodPost: f.rightFirst(f.change(f.service.Enable))})
	on("/v1/introspect", map[string]admin.Handler{http.MethodPost: f.introspect})
	on("/v1/whoami", map[string]admin.Handler{http.MethodGet: f.whoami})
	on("/v1/report", map[string]admin.Handler{http.MethodGet: f.report})
	if f.options.Explain != nil {
		on("/v1/explain", map[string]admin.Handler{http.MethodPost: f.explain})
	}
	if f.options.Backup != nil {
		on("/v1/backup", map[string]admin.Handler{http.MethodGet: f.backup})
	}
	if f.options.Import != nil {
		on("/v1/import", map[string]admin.Handler{http.MethodPost: f.rightFirst(f.importTokens)})
	}
	if f.options.Cluster != nil {
		on("/v1/cluster", map[string]admin.Handler{http.MethodGet: f.cluster})
	}
	r.PathPrefix("/v1/").Handler(f.face.NoPath())
}

// backup streams a backup. One that breaks off breaks the connection, and lacks the end
// by which a whole one is known.
func (f *Face) backup(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	if !c.IsRoot() { // who will be refused must not stand in the way of who is not
		if err := f.service.MayBackup(r.Context(), c); err != nil {
			return err
		}
	}
	if !f.backups.TryLock() {
		return &admin.Error{Kind: admin.KindUnavailable, Detail: "Another backup is being made.", RetryAfter: backupRetry}
	}
	defer f.backups.Unlock()
	if err := f.service.MayBackup(r.Context(), c); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := f.options.Backup(r.Context(), w); err != nil {
		return &admin.Error{Kind: admin.KindInternal, Cause: err}
	}
	return nil
}

// backupRetry is when to ask again while a backup is being made.
const backupRetry = 10 * time.Second

// target reads the id of the path.
func target(r *http.Request, c admin.Caller) (admin.Target, error) {
	raw := mux.Vars(r)["id"]
	if raw == "self" {
		return admin.Target{ID: c.Token.ID, Revoked: true}, nil
	}
	id, ok := tokenstore.ParseID(raw)
	if !ok {
		return admin.Target{}, &admin.Error{Kind: admin.KindNotFound, Detail: "There is no such token."}
	}
	return admin.Target{ID: id, Revoked: true}, nil
}

// changeTarget reads the id of the path for a call that changes the token, and at
// which revisions it may.
func changeTarget(r *http.Request, c admin.Caller) (admin.Target, error) {
	t, err := target(r, c)
	t.Revisions = ifMatch(r)
	return t, err
}

// rightFirst tells what is wrong with a request only to who may make it: a face
// that reads the whole request before it calls a verb would else answer in
// another order than package admin promises.
func (f *Face) rightFirst(h admin.Handler) admin.Handler {
	return func(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
		err := h(w, r, c)
		if err == nil {
			return nil
		}
		switch admin.AsError(err).Kind { //nolint:exhaustive // the others are judged by the verb, or of no request in particular
		case admin.KindMalformed, admin.KindMediaType, admin.KindInvalid:
			var t admin.Target
			if mux.Vars(r)["id"] != "" {
				t, _ = target(r, c) // the handler has read it already
			}
			if refused := f.service.MayWrite(r.Context(), c, t); refused != nil {
				return refused
			}
		}
		return err
	}
}

func (f *Face) create(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	body, once, err := f.readOnce(w, r)
	if err != nil {
		return err
	}
	spec, err := decodeSpec(body, c.Token)
	if err != nil {
		return err
	}
	spec.Once = once
	made, err := f.service.Create(r.Context(), c, spec)
	if err != nil {
		return err
	}
	f.tellUnknown(w, spec.Scopes)
	return f.writeMade(w, http.StatusCreated, made)
}

func (f *Face) get(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	target, err := target(r, c)
	if err != nil {
		return err
	}
	t, err := f.service.Get(r.Context(), c, target)
	if err != nil {
		return err
	}
	return f.writeToken(w, t)
}

func (f *Face) update(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	target, err := changeTarget(r, c)
	if err != nil {
		return err
	}
	body, err := admin.ReadJSON(w, r)
	if err != nil {
		return err
	}
	p, err := decodePatch(body)
	if err != nil {
		return err
	}
	q, err := readQuery(r)
	if err != nil {
		return err
	}
	wait := waits(q)
	if err := q.faults(); err != nil {
		return err
	}
	t, err := f.service.Update(r.Context(), c, target, p.merge)
	if err != nil {
		return err
	}
	if wait {
		if err := f.waitAll(r.Context()); err != nil {
			return err
		}
	}
	f.tellUnknown(w, p.scopes)
	return f.writeToken(w, t)
}

// UnknownScopesHeader names, separated by spaces, scopes that were asked for and that
// nothing in the configuration knows: most often a slip of the pen. At most
// maxUnknownTold are named.
const UnknownScopesHeader = "Tokenward-Unknown-Scopes"

const maxUnknownTold = 10

// tellUnknown says which of the scopes that a request named nothing will ever ask for.
// Where the configuration knows no scope at all, it says nothing.
func (f *Face) tellUnknown(w http.ResponseWriter, scopes []string) {
	known := f.service.Vocabulary()
	if len(known.Scopes) == 0 {
		return
	}
	var unknown []string
	for _, s := range scopes {
		if !known.KnowsScope(s) && len(unknown) < maxUnknownTold {
			unknown = append(unknown, s)
		}
	}
	if len(unknown) > 0 {
		w.Header().Set(UnknownScopesHeader, strings.Join(unknown, " "))
	}
}

func (f *Face) rotate(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	target, err := changeTarget(r, c)
	if err != nil {
		return err
	}
	body, once, err := f.readOnce(w, r)
	if err != nil {
		return err
	}
	spec := admin.RotateSpec{Once: once}
	spec.OldEnds, _ = body.Time("old_ends_at")
	spec.OldSilence = decodeSilence(body)
	if err := faults(body); err != nil {
		return err
	}
	made, err := f.service.Rotate(r.Context(), c, target, spec)
	if err != nil {
		return err
	}
	return f.writeMade(w, http.StatusOK, made)
}

func (f *Face) reset(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	target, err := changeTarget(r, c)
	if err != nil {
		return err
	}
	body, once, err := f.readOnce(w, r)
	if err != nil {
		return err
	}
	spec := admin.ResetSpec{Expiry: decodeExpiry(body), Once: once}
	if err := faults(body); err != nil {
		return err
	}
	made, err := f.service.Reset(r.Context(), c, target, spec)
	if err != nil {
		return err
	}
	return f.writeMade(w, http.StatusOK, made)
}

// change is a call without a body that changes one token.
func (f *Face) change(verb func(context.Context, admin.Caller, admin.Target) (*tokenstore.Token, error)) admin.Handler {
	return func(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
		target, err := changeTarget(r, c)
		if err != nil {
			return err
		}
		body, err := admin.ReadJSON(w, r)
		if err != nil {
			return err
		}
		if err := faults(body); err != nil {
			return err
		}
		q, err := readQuery(r)
		if err != nil {
			return err
		}
		wait := waits(q)
		if err := q.faults(); err != nil {
			return err
		}
		t, err := verb(r.Context(), c, target)
		if err != nil {
			return err
		}
		if wait {
			if err := f.waitAll(r.Context()); err != nil {
				return err
			}
		}
		return f.writeToken(w, t)
	}
}

func (f *Face) revoke(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	target, err := changeTarget(r, c)
	if err != nil {
		return err
	}
	q, err := readQuery(r)
	if err != nil {
		return err
	}
	descendants := q.bool("descendants")
	wait := waits(q)
	if err := q.faults(); err != nil {
		return err
	}
	done, err := f.service.Revoke(r.Context(), c, target, descendants)
	if err != nil {
		return err
	}
	if wait {
		if err := f.waitAll(r.Context()); err != nil {
			return err
		}
	}
	answer := struct {
		Revoked []uint64 `json:"revoked"`
	}{make([]uint64, 0, len(done.IDs))}
	for _, id := range done.IDs {
		answer.Revoked = append(answer.Revoked, uint64(id))
	}
	return admin.WriteJSON(w, http.StatusOK, mediaType, answer)
}

// introspect answers by RFC 7662. What is no token, what has ended and what the
// caller may not see are one and the same.
func (f *Face) introspect(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	secret, err := readForm(w, r)
	if err != nil {
		return err
	}
	answer := introspection{}
	match, err := f.service.Introspect(r.Context(), c, secret)
	switch e, ok := errors.AsType[*admin.Error](err); {
	case ok && e.Kind == admin.KindNotFound:
	case err != nil:
		return err
	default:
		answer = introspected(match, f.service.Now())
	}
	return admin.WriteJSON(w, http.StatusOK, mediaType, answer)
}

// readForm reads the form of RFC 7662 section 2.1.
func readForm(w http.ResponseWriter, r *http.Request) (tokenstore.Secret, error) {
	body, err := admin.ReadBody(w, r)
	if err != nil {
		return tokenstore.Secret{}, err
	}
	claimed, err := admin.ContentType(r)
	if err != nil {
		return tokenstore.Secret{}, err
	}
	if media, _, _ := strings.Cut(claimed, ";"); !strings.EqualFold(strings.TrimSpace(media), "application/x-www-form-urlencoded") {
		return tokenstore.Secret{}, &admin.Error{Kind: admin.KindMediaType, Detail: "The body must be a form: application/x-www-form-urlencoded."}
	}
	form, err := url.ParseQuery(string(body))
	if err != nil || len(form["token"]) != 1 || form.Get("token") == "" {
		return tokenstore.Secret{}, &admin.Error{Kind: admin.KindMalformed, Detail: "The form must have `token` exactly once."}
	}
	return tokenstore.SecretFrom(form.Get("token")), nil
}

func (f *Face) whoami(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	t, err := f.service.Self(r.Context(), c)
	if err != nil {
		return err
	}
	shown, err := f.shown(t)
	if err != nil {
		return err
	}
	answer := whoami{Token: shown, Address: addressText(c.Remote), Left: []Left{}}
	if f.options.Seen != nil {
		seen := f.options.Seen(r, c)
		answer.Peer, answer.Hop = addressText(seen.Peer), seen.Hop
		answer.Left = append(answer.Left, seen.Left...)
	}
	return admin.WriteJSON(w, http.StatusOK, mediaType, answer)
}

func (f *Face) explain(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	body, err := admin.ReadJSON(w, r)
	if err != nil {
		return err
	}
	q, id := decodeQuestion(body)
	if err := faults(body); err != nil {
		return err
	}
	if id == 0 {
		id = c.Token.ID
	}
	if q.Token, err = f.service.Get(r.Context(), c, admin.Target{ID: id, Revoked: true}); err != nil {
		return err
	}
	answer, err := f.options.Explain(r.Context(), q)
	if err != nil {
		return err
	}
	return admin.WriteJSON(w, http.StatusOK, mediaType, answer)
}

// readOnce reads a JSON body and, if the request bears an idempotency key, what
// makes the verb repeatable.
func (f *Face) readOnce(w http.ResponseWriter, r *http.Request) (*admin.Object, *admin.Once, error) {
	raw, err := admin.ReadBody(w, r)
	if err != nil {
		return nil, nil, err
	}
	if err := admin.RequireJSON(r, raw); err != nil {
		return nil, nil, err
	}
	body, err := admin.ParseObject(raw)
	if err != nil {
		return nil, nil, err
	}
	key, given, err := idempotencyKey(r)
	if err != nil || !given {
		return body, nil, err
	}
	return body, &admin.Once{
		Key:     key,
		Request: admin.RequestDigest(r.Method, r.URL.EscapedPath(), raw),
		Render:  func(made admin.Made) ([]byte, error) { return admin.EncodeJSON(f.renderMade(made)) },
	}, nil
}

// maxKeyBytes bounds an idempotency key.
const maxKeyBytes = 255

func idempotencyKey(r *http.Request) (key string, given bool, err error) {
	values := r.Header.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", false, nil
	}
	visible := func(c rune) bool { return c > ' ' && c < 0x7f }
	key = values[0]
	if len(values) > 1 || key == "" || len(key) > maxKeyBytes || strings.ContainsFunc(key, func(c rune) bool { return !visible(c) }) {
		return "", false, &admin.Error{Kind: admin.KindMalformed, Detail: "Idempotency-Key must come once, with 1 to 255 visible ASCII characters."}
	}
	return key, true, nil
}

// ifMatch returns the revisions that If-Match allows, by RFC 9110 section 13.1.1:
// nil if it allows any. What is not an entity tag of a token, a weak one included, is
// the tag of no revision.
func ifMatch(r *http.Request) []uint64 {
	lines := r.Header.Values("If-Match")
	if len(lines) == 0 || len(lines) == 1 && lines[0] == "*" {
		return nil
	}
	revisions := []uint64{}
	for tag := range strings.SplitSeq(strings.Join(lines, ","), ",") {
		text, begins := strings.CutPrefix(strings.Trim(tag, " \t"), `"`)
		text, ends := strings.CutSuffix(text, `"`)
		if n, ok := tokenstore.ParseNumber(text); begins && ends && ok {
			revisions = append(revisions, n)
		}
	}
	return revisions
}

func (f *Face) renderMade(made admin.Made) token {
	wire := render(made.Token, &usage.Record{}, f.service.Now())
	wire.Token = made.Secret.Reveal()
	return wire
}

func (f *Face) writeMade(w http.ResponseWriter, status int, made admin.Made) error {
	if made.Answer != nil {
		return admin.WriteBytes(w, status, mediaType, made.Answer)
	}
	return admin.WriteJSON(w, status, mediaType, f.renderMade(made))
}

func (f *Face) writeToken(w http.ResponseWriter, t *tokenstore.Token) error {
	shown, err := f.shown(t)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", etag(t))
	return admin.WriteJSON(w, http.StatusOK, mediaType, shown)
}

// shown is a token with what is known of its use.
func (f *Face) shown(t *tokenstore.Token) (token, error) {
	used, err := f.service.Usage(t)
	if err != nil {
		return token{}, err
	}
	return render(t, &used, f.service.Now()), nil
}
