package main

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/tokenstore"
	"tokenward/tokenstore/usage"
)

// runUsage writes what has come together of the use of tokens, until the vault is
// closed.
func (v *vault) runUsage(log *slog.Logger) {
	v.background(func(ctx context.Context) {
		v.usage.Run(ctx, v.store.UsageEvery, func(err error) {
			log.Warn("the use of tokens could not be written; it is tried again, and lost if the program ends before that", "error", err)
		})
	})
}

// usedBy records the requests that a policy lets through.
func (a *app) usedBy(words *usage.Vocabulary) func(*enforce.Decision, *canon.Request, []byte, time.Time) {
	return func(d *enforce.Decision, q *canon.Request, userAgent []byte, now time.Time) {
		a.vault.usage.Record(words, &usage.Use{
			Token: d.Match.Token.ID, Secret: d.Match.Secret.Digest, At: now,
			From: q.Client.Addr, UserAgent: userAgent, Route: d.Route.Index, Beside: d.Match.Beside,
		})
	}
}

// lastingBy records that requests go on which were let through.
func (a *app) lastingBy(words *usage.Vocabulary) func(*tokenstore.Match, *enforce.Route, *canon.Request, []byte, time.Time) {
	return func(m *tokenstore.Match, route *enforce.Route, q *canon.Request, userAgent []byte, now time.Time) {
		a.vault.usage.Record(words, &usage.Use{
			Token: m.Token.ID, Secret: m.Secret.Digest, At: now,
			From: q.Client.Addr, UserAgent: userAgent, Route: route.Index, Lasts: true, Beside: m.Beside,
		})
	}
}

func vocabularyOf(p *enforce.Policy) *usage.Vocabulary {
	routes := make([]usage.Route, 0, len(p.Routes()))
	for _, r := range p.Routes() {
		routes = append(routes, usage.Route{Pattern: r.Pattern, Scopes: r.Scopes()})
	}
	return usage.NewVocabulary(routes)
}

// The token APIs count as two routes, whatever their paths.
const (
	apiReading = iota
	apiChanging
)

// newAPIWords returns the vocabulary of the token APIs.
func newAPIWords() *usage.Vocabulary {
	return usage.NewVocabulary([]usage.Route{
		apiReading:  {Pattern: "token API, reading", Scopes: []string{tokenstore.ScopeTokenRead}},
		apiChanging: {Pattern: "token API, changing", Scopes: []string{tokenstore.ScopeTokenWrite}},
	})
}

// used records a call of a token API.
func (g *gate) used(d *enforce.Decision, v *visit, r *http.Request, now time.Time) {
	route := apiChanging
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		route = apiReading
	}
	g.vault.usage.Record(g.words, &usage.Use{
		Token: d.Match.Token.ID, Secret: d.Match.Secret.Digest, At: now,
		From: v.req.Client.Addr, UserAgent: []byte(r.UserAgent()), Route: route,
	})
}
