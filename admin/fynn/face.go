// Package fynn is the user API token contract that Fynn's clients speak, over
// [admin.Service]. A user is the owner of the calling token.
package fynn

import (
	"log/slog"
	"math"
	"net/http"

	"github.com/gorilla/mux"

	"tokenward/admin"
)

// Name is the API's name in Caller.API, admin.mount and audit events.
const Name = "fynn"

// DefaultPrefix begins the secrets that this API makes, for
// admin.Options.Prefixes.
const DefaultPrefix = "api"

const (
	pathTokens = "/user/api-tokens"
	pathToken  = pathTokens + "/{id}"
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
		http.MethodDelete: f.delete,
	}))
	r.PathPrefix(pathTokens + "/").Handler(f.face.NoPath())
}

func (f *Face) list(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	page, err := readPage(r)
	if err != nil {
		return err
	}
	account, owner := f.service.Home(c)
	q := admin.ListQuery{Account: account, Owner: owner}
	total, err := f.service.Count(r.Context(), c, q)
	if err != nil {
		return err
	}
	answer := list{Data: []item{}}
	if page.limit > 0 {
		q.Skip, q.Limit = (page.number-1)*page.limit, page.limit
		tokens, err := f.service.List(r.Context(), c, q)
		if err != nil {
			return err
		}
		for t, err := range tokens {
			if err != nil {
				return err
			}
			answer.Data = append(answer.Data, render(t))
		}
	}
	answer.Meta.Pagination = pagination{
		TotalItems: total, ItemsPerPage: page.limit, CurrentPage: page.number,
		LastPage: page.last(total), PageTotalItems: len(answer.Data),
	}
	return admin.WriteJSON(w, http.StatusOK, mediaType, answer)
}

func (f *Face) create(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	spec, err := f.readSpec(w, r)
	if err != nil {
		if refused := f.service.MayWrite(r.Context(), c, admin.Target{}); refused != nil {
			return refused // who may not create is not told what is wrong with the body
		}
		return err
	}
	account, owner := f.service.Home(c)
	spec.Account, spec.Owner = &account, &owner
	made, err := f.service.Create(r.Context(), c, spec)
	if err != nil {
		return inOurWords(err)
	}
	return admin.WriteJSON(w, http.StatusCreated, mediaType, created{
		ID:          FormatID(made.Token.ID),
		Token:       made.Secret.Reveal(),
		Description: made.Token.Name,
		ExpiresAt:   renderExpiry(made.Token.Expiry),
	})
}

func (f *Face) readSpec(w http.ResponseWriter, r *http.Request) (admin.Spec, error) {
	body, err := admin.ReadJSON(w, r)
	if err != nil {
		return admin.Spec{}, err
	}
	spec, faults := decode(body, f.service.Now())
	if len(faults) > 0 {
		return admin.Spec{}, &admin.Error{Kind: admin.KindInvalid, Fields: faults}
	}
	return spec, nil
}

func (f *Face) delete(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	id, ok := ParseID(mux.Vars(r)["id"])
	if !ok {
		return &admin.Error{Kind: admin.KindNotFound}
	}
	account, owner := f.service.Home(c)
	if _, err := f.service.Revoke(r.Context(), c, admin.Target{ID: id, Account: account, Owner: owner}, false); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// page is the part of the list that is asked for.
type page struct{ number, limit int }

const (
	defaultLimit = 30
	maxLimit     = 100
	maxPage      = math.MaxInt / maxLimit // so that what is passed over can be counted
)

// readPage reads page and limit. What is there has to be a plain number, once.
func readPage(r *http.Request) (page, error) {
	query, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return page{}, err
	}
	number, err := query.number("page", 1, maxPage)
	if err != nil {
		return page{}, err
	}
	limit, err := query.number("limit", defaultLimit, maxLimit)
	if err != nil {
		return page{}, err
	}
	return page{max(number, 1), limit}, nil // a client of the vendor's counts from 0
}

func (p page) last(total int) int {
	if p.limit == 0 {
		return 1
	}
	return max(1, (total+p.limit-1)/p.limit)
}
