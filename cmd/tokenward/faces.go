package main

import (
	"net/http"

	"github.com/gorilla/mux"

	"tokenward/admin"
	"tokenward/admin/fynn"
	"tokenward/admin/mailtrap"
	"tokenward/admin/native"
	"tokenward/admin/unit"
)

// apiNames are the token APIs, in the order of their metrics.
var apiNames = []string{unit.Name, fynn.Name, mailtrap.Name, native.Name}

// face is one token API.
type face interface {
	// Patterns are the paths that belong to it, in the grammar of routes.
	Patterns() []string
	Register(r *mux.Router)
}

// newFace makes the named token API behind g.
func (a *app) newFace(name string, g *gate) face {
	service, log := a.vault.service, a.log
	switch name {
	case unit.Name:
		return unit.New(service, g, log)
	case fynn.Name:
		return fynn.New(service, g, log)
	case mailtrap.Name:
		return mailtrap.New(service, g, log, mailtrap.Options{Requests: mailtrap.DefaultRequests})
	case native.Name:
		return native.New(service, g, log, native.Options{Explain: a.explain, Seen: g.seen, Backup: a.vault.backup, Import: a.vault.importBody})
	}
	panic("no token API is called " + name)
}

// facesHandler serves the named token APIs behind g. Their paths do not collide.
func (a *app) facesHandler(g *gate, names ...string) *mux.Router {
	router := admin.NewRouter()
	for _, name := range names {
		a.newFace(name, g).Register(router)
	}
	router.NotFoundHandler = http.HandlerFunc(noSuchPath)
	return router
}

// adminHandler serves everything of the admin listener.
func (a *app) adminHandler(g *gate) http.Handler {
	router := a.facesHandler(g, apiNames...)
	router.Path("/openapi.yaml").Handler(admin.OpenAPI())
	return withRequestID(router)
}

// noSuchPath answers for paths that belong to no token API.
func noSuchPath(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNotFound)
	if r.Method != http.MethodHead {
		// The id is ours; nothing else in the answer comes from the request.
		_, _ = w.Write([]byte(`{"type":"about:blank","title":"Not Found","status":404,"code":"no_route",` +
			`"detail":"No token API has this path: see docs/api.md.","request_id":"` + w.Header().Get(headerRequestID) + `"}` + "\n"))
	}
}
