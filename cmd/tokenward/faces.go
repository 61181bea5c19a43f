package main

import (
	"crypto/ecdsa"
	"fmt"
	"net/http"
	"os"

	"github.com/gorilla/mux"

	"tokenward/admin"
	"tokenward/admin/fynn"
	"tokenward/admin/leaks"
	"tokenward/admin/mailtrap"
	"tokenward/admin/native"
	"tokenward/admin/unit"
	"tokenward/proxy"
)

// apiNames are the token APIs, in the order of their metrics.
var apiNames = []string{unit.Name, fynn.Name, mailtrap.Name, native.Name}

// face is one token API.
type face interface{ Register(r *mux.Router) }

// newFace makes the named token API behind g.
func (a *app) newFace(name string, g *gate) face {
	service, log := a.vault.service, a.log
	switch name {
	case unit.Name:
		return unit.New(service, g, log)
	case fynn.Name:
		return fynn.New(service, g, log)
	case mailtrap.Name:
		return mailtrap.New(service, g, log, mailtrap.Options{Lifetime: a.cfg.Admin.Mailtrap.DefaultLifetime, Limiter: a.mailtrap})
	case native.Name:
		return native.New(service, g, log, a.nativeOptions(g))
	}
	panic("no token API is called " + name)
}

func (a *app) nativeOptions(g *gate) native.Options {
	o := native.Options{Explain: a.explain, Seen: g.seen, Backup: a.backup, Import: a.vault.importBody}
	if p := a.vault.part; p != nil {
		o.Cluster, o.CursorKey = others{p}, a.vault.cursorKey()
	}
	return o
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
	return a.guard.Calls(withRequestID(plainPath(a.withLeaks(router))))
}

// withLeaks puts the endpoint for reports of leaked secrets before h. Reports bear
// a signature and no token, so the token APIs do not see them.
func (a *app) withLeaks(h http.Handler) http.Handler {
	if a.leaks == nil {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/leaks" {
			a.leaks.ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// newLeaks makes the endpoint for reports of leaked secrets; nil where it is not
// configured.
func (a *app) newLeaks(g *gate) (http.Handler, error) {
	c := a.cfg.Admin.Leaks
	if c.KeysFile == "" {
		return nil, nil
	}
	keys, err := readLeakKeys(c.KeysFile)
	if err != nil {
		return nil, fmt.Errorf("admin.leaks.keys_file: %w", err)
	}
	return leaks.New(a.vault.service, leaks.Options{
		Keys: keys, Action: leaks.Action(c.Action), Find: a.vault.cache.Find,
		Reported: a.tellLeaked, Client: g.client, Log: a.log,
	})
}

func readLeakKeys(path string) (map[string]*ecdsa.PublicKey, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, fmt.Errorf("%s %w", path, fileProblem(err))
	}
	keys, err := leaks.ParseKeys(data)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be used: %w", path, err)
	}
	return keys, nil
}

// mounts are the token APIs that take their paths from the proxy's listener. handler
// makes what serves one.
func (c *Config) mounts(handler func(name string) http.Handler) []proxy.Mount {
	mounts := make([]proxy.Mount, len(c.Admin.Mount))
	for i, name := range c.Admin.Mount {
		mounts[i] = proxy.PrefixMount(handler(name), mountedPaths[name]...)
		mounts[i].Name = name
	}
	return mounts
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
