// Package mailtrap is the account API token contract that Mailtrap's clients
// speak, over [admin.Service]. It is served under two prefixes at once, which
// differ in where the account comes from and in the names of two resource types.
package mailtrap

import (
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/gorilla/mux"

	"tokenward/admin"
	"tokenward/tokenstore"
)

// Name is the API's name in Caller.API, admin.mount and audit events.
const Name = "mailtrap"

// The defaults of [Options].
const (
	DefaultRequests = 150
	Window          = 10 * time.Second
)

// AccountTypes returns the resource types of this contract that lie within an
// account, so that a grant on the account covers them: for
// admin.Options.AccountTypes.
func AccountTypes() []string { return []string{typeProject, typeInbox, typeDomain} }

// Options are what the operator can choose.
type Options struct {
	// Lifetime is how long a token lives whose creation or reset says nothing
	// about its end; 0: it never ends. It gives way to the caller's own expiry.
	Lifetime time.Duration

	// Limiter bounds the requests of each token, and is shared by all faces that a
	// token can reach. nil: any number, and no X-RateLimit headers.
	Limiter *Limiter
}

// Face serves the contract.
type Face struct {
	service *admin.Service
	options Options
	face    admin.Face
}

// New returns the face over service, behind gate.
func New(service *admin.Service, gate admin.Gate, log *slog.Logger, options Options) *Face {
	f := &Face{service: service, options: options}
	f.face = admin.Face{Name: Name, Gate: gate, Log: log, Refuse: writeError, Admit: f.admit}
	return f
}

// Paths returns the paths at and below which everything belongs to this API, in
// the grammar of routes.
func Paths() []string { return []string{"/api/accounts/{account}/api_tokens", "/api/api_tokens"} }

// Register adds the API's paths to a router of [admin.NewRouter].
func (f *Face) Register(r *mux.Router) {
	for _, prefix := range Paths() {
		r.Path(prefix).Handler(f.face.Methods(map[string]admin.Handler{
			http.MethodGet:  f.list,
			http.MethodPost: f.create,
		}))
		r.Path(prefix + "/{id}").Handler(f.face.Methods(map[string]admin.Handler{
			http.MethodGet:    f.get,
			http.MethodDelete: f.delete,
		}))
		r.Path(prefix + "/{id}/reset").Handler(f.face.Methods(map[string]admin.Handler{
			http.MethodPost: f.reset,
		}))
		r.PathPrefix(prefix + "/").Handler(f.face.NoPath())
	}
}

// admit sets what every answer of this API bears and counts the request.
func (f *Face) admit(w http.ResponseWriter, c admin.Caller, known bool) error {
	w.Header().Set("X-Mailtrap-Version", "v2")
	l := f.options.Limiter
	if l == nil {
		return nil
	}
	remaining, err := l.limit, error(nil)
	if known {
		remaining, err = l.take(c.Token.ID, f.service.Now())
	}
	w.Header().Set("X-RateLimit-Limit", strconv.Itoa(l.limit))
	w.Header().Set("X-RateLimit-Remaining", strconv.Itoa(remaining))
	return err
}

// place is what a path names: an account, and how it wants types called.
type place struct {
	account uint64
	names   *typeNames
}

var forbidden = &admin.Error{Kind: admin.KindAccess, Detail: "The calling token belongs to another account."}

// place reads the account of the path, which must be the caller's own unless it
// is root.
func (f *Face) place(r *http.Request, c admin.Caller) (place, error) {
	account, _ := f.service.Home(c)
	raw, named := mux.Vars(r)["account"]
	if !named {
		return place{account, shortNames}, nil
	}
	claimed, ok := tokenstore.ParseNumber(raw)
	if !ok {
		return place{}, &admin.Error{Kind: admin.KindNotFound}
	}
	if claimed != account && !c.IsRoot() {
		return place{}, forbidden
	}
	return place{claimed, longNames}, nil
}

// target reads account and token of the path.
func (f *Face) target(r *http.Request, c admin.Caller) (place, admin.Target, error) {
	p, err := f.place(r, c)
	if err != nil {
		return p, admin.Target{}, err
	}
	id, ok := tokenstore.ParseID(mux.Vars(r)["id"])
	if !ok {
		return p, admin.Target{}, &admin.Error{Kind: admin.KindNotFound}
	}
	return p, admin.Target{ID: id, Account: p.account}, nil
}

func (f *Face) list(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	p, err := f.place(r, c)
	if err != nil {
		return err
	}
	tokens, err := f.service.List(r.Context(), c, admin.ListQuery{Account: p.account, OldestFirst: true})
	if err != nil {
		return err
	}
	now := f.service.Now()
	listed := func(yield func(*tokenstore.Token, error) bool) {
		for t, err := range tokens {
			if (err != nil || !longGone(t, now)) && !yield(t, err) {
				return
			}
		}
	}
	return admin.WriteList(w, mediaType, "", listed, func(t *tokenstore.Token) any { return render(t, p.names) }, "")
}

// listedAfterReset is how long a token is listed that a reset has ended.
const listedAfterReset = 24 * time.Hour

func longGone(t *tokenstore.Token, now time.Time) bool {
	return t.ReplacedBy != 0 && !t.Expiry.Never && now.Sub(t.Expiry.At) >= listedAfterReset
}

func (f *Face) get(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	p, target, err := f.target(r, c)
	if err != nil {
		return err
	}
	t, err := f.service.Get(r.Context(), c, target)
	if err != nil {
		return err
	}
	return admin.WriteJSON(w, http.StatusOK, mediaType, render(t, p.names))
}

func (f *Face) create(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	p, err := f.place(r, c)
	if err != nil {
		return err
	}
	spec, wrong := f.readCreate(w, r, p, c)
	if wrong != nil { // which is told after 403; of a sound body the verb itself tells, and the audit log with it
		if err := f.service.MayWrite(r.Context(), c, admin.Target{}); err != nil {
			return err
		}
		return wrong
	}
	made, err := f.service.Create(r.Context(), c, spec)
	if err != nil {
		return err
	}
	return writeMade(w, made, p)
}

func (f *Face) readCreate(w http.ResponseWriter, r *http.Request, p place, c admin.Caller) (admin.Spec, error) {
	body, err := admin.ReadJSON(w, r)
	if err != nil {
		return admin.Spec{}, err
	}
	return f.decodeCreate(body, p, c)
}

func (f *Face) reset(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	p, target, err := f.target(r, c)
	if err != nil {
		return err
	}
	spec, wrong := f.decodeReset(w, r)
	if wrong != nil { // which is told after 404 and 403
		if err := f.service.MayWrite(r.Context(), c, target); err != nil {
			return err
		}
		return wrong
	}
	made, err := f.service.Reset(r.Context(), c, target, spec)
	if err != nil {
		return err
	}
	return writeMade(w, made, p)
}

func (f *Face) delete(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	_, target, err := f.target(r, c)
	if err != nil {
		return err
	}
	if _, err := f.service.Revoke(r.Context(), c, target, false); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func writeMade(w http.ResponseWriter, made admin.Made, p place) error {
	answer := render(made.Token, p.names)
	answer.Token = made.Secret.Reveal()
	return admin.WriteJSON(w, http.StatusOK, mediaType, answer)
}
