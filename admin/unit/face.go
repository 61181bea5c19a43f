// Package unit is the org API token contract that Unit's clients speak
// (JSON:API), over [admin.Service].
package unit

import (
	"log/slog"
	"net/http"

	"github.com/gorilla/mux"

	"tokenward/admin"
	"tokenward/tokenstore"
)

// Name is the API's name in Caller.API, admin.mount and audit events.
const Name = "unit"

const (
	pathTokens = "/users/{userId}/api-tokens"
	pathToken  = pathTokens + "/{tokenId}"
)

// Face serves the contract.
type Face struct {
	service *admin.Service
	face    admin.Face
}

// New returns the face over service, behind gate.
func New(service *admin.Service, gate admin.Gate, log *slog.Logger) *Face {
	f := &Face{service: service}
	f.face = admin.Face{Name: Name, Gate: gate, Log: log, Refuse: writeError}
	return f
}

// Paths returns the paths at and below which everything belongs to this API, in
// the grammar of routes.
func Paths() []string { return []string{pathTokens} }

// Register adds the API's paths to a router of [admin.NewRouter].
func (f *Face) Register(r *mux.Router) {
	r.Path(pathTokens).Handler(f.face.Methods(map[string]admin.Handler{
		http.MethodGet:  f.list,
		http.MethodPost: f.create,
	}))
	r.Path(pathToken).Handler(f.face.Methods(map[string]admin.Handler{
		http.MethodDelete: f.revoke,
	}))
	r.PathPrefix(pathTokens + "/").Handler(f.face.NoPath())
}

// user is the account and the user whose tokens the path means. A path may name
// another user than the caller's for root alone. That another user exists can
// not be told from the answer: the store is not asked.
func (f *Face) user(r *http.Request, c admin.Caller) (account, owner uint64, err error) {
	account, own := f.service.Home(c)
	claimed, ok := tokenstore.ParseNumber(mux.Vars(r)["userId"])
	if !ok {
		return 0, 0, &admin.Error{Kind: admin.KindInvalid, Detail: "userId must be a positive whole number."}
	}
	if claimed != own && !c.IsRoot() {
		return 0, 0, &admin.Error{Kind: admin.KindAccess, Detail: "The calling token belongs to another user."}
	}
	return account, claimed, nil
}

func (f *Face) list(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	account, owner, err := f.user(r, c)
	if err != nil {
		return err
	}
	tokens, err := f.service.List(r.Context(), c, admin.ListQuery{Account: account, Owner: owner, OldestFirst: true})
	if err != nil {
		return err
	}
	return admin.WriteList(w, mediaType, `{"data":`, tokens, func(t *tokenstore.Token) any { return render(t) }, `}`)
}

func (f *Face) create(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	account, owner, err := f.user(r, c)
	if err != nil {
		return err
	}
	spec, err := f.readSpec(w, r)
	if err != nil {
		if refused := f.service.MayWrite(r.Context(), c, admin.Target{}); refused != nil {
			return refused // who may not create is not told what is wrong with the body
		}
		return err
	}
	spec.Account, spec.Owner = &account, &owner
	made, err := f.service.Create(r.Context(), c, spec)
	if err != nil {
		return inOurWords(err)
	}
	token := render(made.Token)
	token.Attributes.Token = made.Secret.Reveal()
	return admin.WriteJSON(w, http.StatusCreated, mediaType, document{token})
}

func (f *Face) readSpec(w http.ResponseWriter, r *http.Request) (admin.Spec, error) {
	body, err := admin.ReadJSON(w, r)
	if err != nil {
		return admin.Spec{}, err
	}
	spec, faults := decode(body, f.service.Vocabulary(), f.service.Now())
	if len(faults) > 0 {
		return admin.Spec{}, &admin.Error{Kind: admin.KindInvalid, Fields: faults}
	}
	return spec, nil
}

// revoke answers with the token as it was listed: two clients read the body of
// the answer to DELETE, whatever its status.
func (f *Face) revoke(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	account, owner, err := f.user(r, c)
	if err != nil {
		return err
	}
	id, ok := tokenstore.ParseID(mux.Vars(r)["tokenId"])
	if !ok {
		return &admin.Error{Kind: admin.KindNotFound}
	}
	revoked, err := f.service.Revoke(r.Context(), c, admin.Target{ID: id, Account: account, Owner: owner}, false)
	if err != nil {
		return err
	}
	return admin.WriteJSON(w, http.StatusOK, mediaType, document{render(revoked.Token)})
}
