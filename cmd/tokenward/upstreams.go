package main

import (
	"fmt"
	"slices"
	"sync"

	"tokenward/metrics"
	"tokenward/proxy"
)

// upstreamSet are the servers of the API behind, each once however many routes
// name it: they share its connections and its health.
type upstreamSet struct {
	tls      *proxy.ClientTLS // nil: the system's authorities
	timeouts proxy.Timeouts

	mu    sync.Mutex // guards what follows: a reload adds servers while metrics list them
	names []string   // in the order of the configuration
	byURL map[string]*proxy.Upstream
}

// newUpstreamSet makes what the configuration names.
func newUpstreamSet(cfg *Config) (*upstreamSet, error) {
	s := &upstreamSet{byURL: make(map[string]*proxy.Upstream)}
	if t := cfg.Proxy.UpstreamTLS; t.used() {
		var err error
		if s.tls, err = proxy.NewClientTLS(proxy.ClientTLSFiles(t)); err != nil {
			return nil, fmt.Errorf("proxy.upstream_tls: %w", err)
		}
	}
	s.timeouts = proxy.Timeouts{Dial: cfg.Proxy.Timeouts.Dial, Idle: cfg.Proxy.Timeouts.Idle}
	for _, raw := range cfg.allUpstreams() {
		if _, err := s.server(raw); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// server is the one with that URL, made if it is new.
func (s *upstreamSet) server(raw string) (*proxy.Upstream, error) {
	target := upstreamURL(raw)
	name := target.String()
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.byURL[name]; u != nil {
		return u, nil
	}
	u, err := proxy.NewUpstream(target, s.tls, s.timeouts)
	if err != nil {
		return nil, err
	}
	s.byURL[name] = u
	s.names = append(s.names, name)
	return u, nil
}

// list is the order of preference of those URLs; nil for none.
func (s *upstreamSet) list(urls upstreamList) (*proxy.Upstreams, error) {
	if len(urls) == 0 {
		return nil, nil // a route without upstreams of its own has those of proxy
	}
	var all []*proxy.Upstream
	for _, raw := range urls {
		u, err := s.server(raw)
		if err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	return proxy.NewUpstreams(all...)
}

// keep forgets the servers that the configuration names no more, so that nobody is
// told of their health, and closes their unused connections. Requests that are on their way to
// one still arrive.
func (s *upstreamSet) keep(cfg *Config) {
	named := make(map[string]bool)
	for _, raw := range cfg.allUpstreams() {
		named[upstreamURL(raw).String()] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names = slices.DeleteFunc(s.names, func(name string) bool { return !named[name] })
	for name, u := range s.byURL {
		if !named[name] {
			delete(s.byURL, name)
			u.CloseIdle()
		}
	}
}

// closeIdle closes unused connections.
func (s *upstreamSet) closeIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.byURL {
		u.CloseIdle()
	}
}

// stats says which upstreams are held to be fit.
func (s *upstreamSet) stats() []metrics.UpstreamStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]metrics.UpstreamStats, len(s.names))
	for i, name := range s.names {
		out[i] = metrics.UpstreamStats{Name: name, Up: s.byURL[name].Up()}
	}
	return out
}

// check warns when upstreams are left out. The program is fit to serve
// nevertheless: not to be asked any more would help nobody.
func (s *upstreamSet) check() (metrics.State, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	down, first := 0, ""
	for _, name := range s.names {
		if !s.byURL[name].Up() {
			if down == 0 {
				first = name
			}
			down++
		}
	}
	if down == 0 {
		return metrics.Passing, ""
	}
	return metrics.Warning, fmt.Sprintf("%d of %d upstreams did not answer several times in a row, %s first: are they running?", down, len(s.names), first)
}

// routeOptions say how the requests of each route travel, and those of all.
func (s *upstreamSet) routeOptions(cfg *Config) (routes []proxy.RouteOptions, others proxy.RouteOptions, err error) {
	others = cfg.defaultRouteOptions()
	if others.Upstreams, err = s.list(cfg.Proxy.Upstream); err != nil {
		return nil, others, fmt.Errorf("proxy.upstream: %w", err)
	}
	routes = make([]proxy.RouteOptions, len(cfg.Routes))
	for i := range cfg.Routes {
		routes[i] = cfg.Routes[i].routeOptions(cfg)
		if routes[i].Upstreams, err = s.list(cfg.Routes[i].Upstream); err != nil {
			return nil, others, fmt.Errorf("routes[%d].upstream: %w", i, err)
		}
	}
	return routes, others, nil
}
