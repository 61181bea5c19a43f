package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"tokenward/admin"
	"tokenward/admin/mailtrap"
	"tokenward/audit"
	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/metrics"
	"tokenward/proxy"
	"tokenward/proxy/http1"
	"tokenward/proxy/identity"
)

// app is one running tokenward: three listeners over one engine, one service and
// one store. Nothing in it is global, so that several can run in one process.
type app struct {
	cfg *Config
	log *slog.Logger
	now func() time.Time

	path   string            // of the configuration file, which is watched; empty: none is
	loaded [sha256.Size]byte // fingerprint of the files as cfg was read from them
	hangup <-chan os.Signal  // asks for a reload

	level *slog.LevelVar // of log; nil: a reload does not change it

	vault    *vault
	upkeep   *upkeep
	engine   *enforce.Engine
	registry *metrics.Registry
	health   *metrics.Health
	guard    *proxy.Guard

	upstreams *upstreamSet
	leaks     http.Handler      // takes reports of leaked secrets; nil: nobody does
	mailtrap  *mailtrap.Limiter // of that API, on both listeners

	stopStreams func() // the cutting of streams, waiting for its end
	counts      countKeeping
	stopLimits  func() // the keeping of counts, likewise

	proxyServer   *http1.Server
	proxyHTTP2    *proxy.HTTP2
	adminServer   *http1.Server
	adminHTTP2    *proxy.HTTP2
	adminInFlight atomic.Int64 // requests
	metricsServer *http.Server

	proxyListener, adminListener, metricsListener net.Listener
	proxyTLS, adminTLS                            *proxy.ServerTLS // nil: cleartext
}

// newApp opens the store, builds everything and binds the listeners. It serves
// nothing yet. On an error nothing stays open.
func newApp(ctx context.Context, cfg *Config, log *slog.Logger, now func() time.Time) (_ *app, err error) {
	debug.SetGCPercent(gcPercent)
	a := &app{cfg: cfg, log: log, now: now, mailtrap: mailtrap.NewLimiter(cfg.Admin.Mailtrap.Requests)}
	a.registry = metrics.New(metricsOptions())
	a.health = metrics.NewHealth("store", "audit", "listeners")
	if a.vault, err = openOrBootstrap(ctx, cfg, log, now, a.observeAudit); err != nil {
		return nil, err
	}
	a.now = a.vault.clock.Now
	defer func() {
		if err != nil {
			err = errors.Join(err, a.closeListeners(), a.vault.close())
		}
	}()
	a.engine = enforce.NewEngine(a.vault.finder(), 0)
	if a.counts, err = a.vault.counting(ctx); err != nil {
		return nil, err
	}
	a.engine.KeepCounts(a.counts.ledger, a.counts.sharers)
	if err := a.buildProxy(); err != nil {
		return nil, err
	}
	if err := a.buildAdmin(); err != nil {
		return nil, err
	}
	sender, err := newSender(cfg, a)
	if err != nil {
		return nil, err
	}
	a.upkeep = newUpkeep(a.vault, sender, cfg.Notify.DaysBefore, a.log)
	a.buildMetrics()
	if err := a.bind(ctx); err != nil {
		return nil, err
	}
	a.vault.background(a.upkeep.run)
	a.vault.background(tendHeap)
	if sender != nil {
		a.vault.onChange(a.upkeep.tellRevoked)
		a.vault.background(sender.Run)
	}
	a.startLimits()
	a.startStreams()
	return a, nil
}

// buildProxy makes the data plane.
func (a *app) buildProxy() error {
	var err error
	if a.upstreams, err = newUpstreamSet(a.cfg); err != nil {
		return err
	}
	if a.engine.Parents, err = a.cfg.parents(a.upstreams, a.now); err != nil {
		return err
	}
	rules, err := a.ruleset(a.cfg)
	if err != nil {
		return err
	}
	a.guard = proxy.NewGuard(a.engine, a.log, a.now)
	a.guard.Refused = counting(proxy.RefusalCodes(), a.registry.Refusals.Add)
	a.guard.Failed = counting(proxy.FailureCodes(), a.registry.Upstream.Add)
	a.guard.SetRules(rules)
	if len(a.cfg.Admin.Mount) > 0 {
		g := newGate(a.guard, rules.Canon, a.vault, a.now)
		a.guard.Mounts = a.cfg.mounts(func(name string) http.Handler {
			return a.guard.Calls(withRequestID(plainPath(a.facesHandler(g, name))))
		})
	}
	t, l := a.cfg.Proxy.Timeouts, a.cfg.Proxy.Limits
	wire := proxy.NewWire(a.guard)
	door := proxy.NewHTTP(a.guard)
	door.HeaderCount = l.HeaderCount
	a.proxyHTTP2 = proxy.NewHTTP2(door, t.Header, t.Idle, int(l.HeaderBytes), a.log)
	a.proxyServer = &http1.Server{
		Handler: wire.Serve, NoHijack: true, HTTP2: a.proxyHTTP2.ServeConn, Refused: wire.Refuse, Panicked: a.panicked, Starved: a.starved("proxy"),
		Limits: http1.Limits{
			HeaderBytes: int(l.HeaderBytes), HeaderCount: l.HeaderCount, TargetBytes: int(l.URIBytes),
			Connections: l.Connections, ConnectionsPerSource: l.ConnectionsPerSource,
		},
		Timeouts: http1.Timeouts{Header: t.Header, Idle: t.Idle, Stall: orNever(t.Stall)},
	}
	return nil
}

// orNever turns the configuration's 0, which means no limit, into the engine's.
func orNever(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

// judgedBy compiles what the configuration says about requests: the part of a
// ruleset that explain needs too.
func (c *Config) judgedBy() (*proxy.Ruleset, error) {
	rules, err := canon.NewRules(c.canonOptions())
	if err != nil {
		return nil, err
	}
	headers, err := identity.New(c.identityNames())
	if err != nil {
		return nil, err
	}
	policy, faults := enforce.Compile(c.routeSpecs(), c.enforceOptions())
	if len(faults) > 0 {
		return nil, faults[0]
	}
	return &proxy.Ruleset{Canon: rules, Policy: policy, Identity: headers}, nil
}

// parents knows what resources belong to, by asking the first upstream; nil where
// nothing is configured.
func (c *Config) parents(upstreams *upstreamSet, now func() time.Time) (enforce.ParentFinder, error) {
	if len(c.Enforce.Parents) == 0 {
		return nil, nil // the engine then asks nobody
	}
	rules := make(map[string]proxy.ParentRule, len(c.Enforce.Parents))
	for typ, p := range c.Enforce.Parents {
		rule := proxy.ParentRule{Get: p.Get, Pointer: p.Pointer, TTL: p.TTL}
		if p.CredentialFile != "" {
			b, err := os.ReadFile(p.CredentialFile)
			if err != nil {
				return nil, fmt.Errorf("enforce.parents.%s.credential_file: %w", typ, err)
			}
			rule.Authorization = strings.TrimSpace(string(b))
		}
		rules[typ] = rule
	}
	first, err := upstreams.server(c.Proxy.Upstream[0])
	if err != nil {
		return nil, err
	}
	return proxy.NewParents(upstreamURL(c.Proxy.Upstream[0]), first, rules, now)
}

// signer reads the keys of the signed identity; nil where it is off.
func (c *Config) signer() (*identity.Signer, error) {
	i := &c.Proxy.Identity
	if i.Signed == headerOff {
		return nil, nil // the nil signer signs nothing
	}
	o := identity.SignerOptions{Name: i.Signed, Lifetime: i.SignedLifetime}
	for _, path := range i.SigningKeyFiles {
		key, err := os.ReadFile(path) //nolint:gosec // the operator names it
		if err != nil {
			return nil, fmt.Errorf("proxy.identity.signing_key_files: %w", err)
		}
		o.Keys = append(o.Keys, key)
	}
	s, err := identity.NewSigner(o)
	if err != nil {
		return nil, fmt.Errorf("proxy.identity: %w", err)
	}
	return s, nil
}

// ruleset makes the whole ruleset that cfg asks for, and tells the token service
// the words of it.
func (a *app) ruleset(cfg *Config) (*proxy.Ruleset, error) {
	rules, err := cfg.judgedBy()
	if err != nil {
		return nil, err
	}
	routes, others, err := a.upstreams.routeOptions(cfg)
	if err != nil {
		return nil, err
	}
	if rules.Signer, err = cfg.signer(); err != nil {
		return nil, err
	}
	policy := rules.Policy
	a.vault.service.SetVocabulary(admin.Vocabulary{Scopes: policy.Scopes(), ResourceTypes: policy.ResourceTypes(), Routes: policy.Routes()})
	rules.Observe = a.observer(policy)
	words := vocabularyOf(policy)
	rules.Used, rules.Lasts = a.usedBy(words), a.lastingBy(words)
	if a.vault.denials != nil {
		rules.Denied = func(d *enforce.Decision, q *canon.Request, now time.Time) { a.vault.denied("proxy", d, q, now) }
	}
	rules.Routes, rules.Default, rules.InFlight = routes, others, cfg.Proxy.Limits.InFlight
	rules.StripObserved = cfg.Enforce.ObserveCredentials == "remove"
	rules.Record = cfg.recording()
	rules.LimitHeaders = cfg.Enforce.Limits.Headers == "all"
	return rules, nil
}

// buildAdmin makes the listener of the token APIs.
func (a *app) buildAdmin() error {
	rules, err := canon.NewRules(a.cfg.adminCanonOptions())
	if err != nil {
		return err
	}
	g := newGate(a.guard, rules, a.vault, a.now)
	if a.leaks, err = a.newLeaks(g); err != nil {
		return err
	}
	handler := inFlight(a.adminHandler(g), &a.adminInFlight)
	t, l := a.cfg.Proxy.Timeouts, a.cfg.Proxy.Limits
	a.adminHTTP2 = proxy.NewHTTP2(handler, t.Header, t.Idle, int(l.HeaderBytes), a.log)
	a.adminServer = &http1.Server{
		Handler: http1.Adapter(handler), HTTP2: a.adminHTTP2.ServeConn, Panicked: a.panicked, Starved: a.starved("admin"),
		Refused:  proxy.NewWire(a.guard).Refuse,
		Limits:   http1.Limits{HeaderBytes: int(l.HeaderBytes), HeaderCount: l.HeaderCount, TargetBytes: int(l.URIBytes)},
		Timeouts: http1.Timeouts{Header: t.Header, Idle: t.Idle, Stall: orNever(t.Stall)},
	}
	return nil
}

// starved tells that a listener cannot take connections.
func (a *app) starved(listener string) func(error) {
	return func(err error) {
		a.log.Error("new connections cannot be taken, and wait", "listener", listener, "error", err, "fix", proxy.FixDescriptors)
	}
}

func (a *app) panicked(recovered any) {
	a.log.Error("a request made the program panic; only its connection was closed: please report this with the stack", "panic", fmt.Sprint(recovered), "stack", string(debug.Stack()))
}

// run serves until ctx ends or a listener fails, then drains and closes.
func (a *app) run(ctx context.Context) error {
	err := a.watch(ctx, a.start())
	return errors.Join(err, a.shutdown())
}

// start serves on all listeners. A listener that breaks is told on the channel.
func (a *app) start() <-chan error {
	failed := make(chan error, 3)
	serve := func(what string, f func() error) {
		go func() {
			if err := f(); !errors.Is(err, http1.ErrServerClosed) && !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("%s listener: %w", what, err)
			}
		}()
	}
	serve("proxy", func() error { return a.proxyServer.Serve(a.proxyListener) })
	serve("admin", func() error { return a.adminServer.Serve(a.adminListener) })
	serve("metrics", func() error { return a.metricsServer.Serve(a.metricsListener) })
	a.health.Set("listeners", metrics.Passing, "")
	a.registry.Reload.Succeeded(a.now())
	a.log.Info("tokenward is ready",
		"proxy", a.proxyListener.Addr().String(), "admin", a.adminListener.Addr().String(), "metrics", a.metricsListener.Addr().String(),
		"upstream", []string(a.cfg.Proxy.Upstream), "routes", len(a.cfg.Routes), "version", readBuildInfo().Version)
	a.announceObserving()
	return failed
}

// shutdown stops accepting, finishes requests in flight, and closes the store.
func (a *app) shutdown() error {
	a.health.Drain()
	drain := a.cfg.Proxy.Timeouts.Drain
	a.log.Info("stopping: no new connections are taken, requests in flight are finished", "in_flight", a.guard.InFlight(), "at_most", drain.String())
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	done := make(chan error, 4)
	stops := []func(context.Context) error{a.proxyHTTP2.Shutdown, a.adminHTTP2.Shutdown, a.proxyServer.Shutdown, a.adminServer.Shutdown}
	for _, stop := range stops {
		go func() { done <- stop(ctx) }()
	}
	cut := false
	for range stops {
		cut = <-done != nil || cut
	}
	if cut {
		a.log.Warn("requests in flight were cut: they took longer than proxy.timeouts.drain", "in_flight", a.guard.InFlight())
		_, _, _, _ = a.proxyHTTP2.Close(), a.adminHTTP2.Close(), a.proxyServer.Close(), a.adminServer.Close()
	}
	_ = a.metricsServer.Close()
	a.upstreams.closeIdle()
	a.stopStreams()
	a.stopLimits()
	if err := a.vault.close(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	a.log.Info("stopped")
	return nil
}

// buildMetrics makes the listener for operators' machines.
func (a *app) buildMetrics() {
	a.registry.WatchStore(a.storeStats)
	a.registry.WatchCache(a.cacheStats)
	a.registry.WatchAudit(a.auditStats)
	a.registry.WatchUpstreams(a.upstreams.stats)
	a.registry.WatchListeners(a.listenerStats)
	a.health.Watch("store", a.checkStore)
	if p := a.vault.part; p != nil {
		a.health.Watch("cluster", p.check)
		a.registry.WatchCluster(p.stats)
	}
	a.health.Watch("audit", a.checkAudit)
	a.health.Watch("upstreams", a.upstreams.check)
	a.health.Watch("clock", a.vault.clock.check)
	a.registry.WatchClock(a.vault.clock.stats)
	a.registry.WatchUsage(a.usageStats)
	a.registry.WatchLimits(func() metrics.LimitStats { return metrics.LimitStats(a.engine.LimitStats()) })
	a.registry.WatchUpkeep(a.upkeep.stats)
	if a.upkeep.sender != nil {
		a.registry.WatchNotify(a.upkeep.notifyStats)
	}
	a.metricsServer = &http.Server{
		Handler:           metrics.NewMux(a.registry, a.health, metrics.MuxOptions{PProf: a.cfg.Metrics.PProf, Keys: a.signingKeys, Log: a.log}),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       90 * time.Second,
		ErrorLog:          proxy.ErrorLog(a.log),
	}
}

// observeAudit logs signed heads: a copy kept elsewhere proves later what the
// log held.
func (a *app) observeAudit(p audit.Progress) {
	if p.Unreadable > 0 {
		a.log.Error("the outbox held events that this version cannot read; they are in the audit log as audit.unreadable", "events", p.Unreadable)
	}
	if p.Head.Line > 0 {
		a.log.Info("a head of the audit log was signed: keep a copy of it elsewhere", "head", p.Head.String())
	}
}

// signingKeys are the public keys of the signed identity.
func (a *app) signingKeys() []byte { return a.guard.Rules().Signer.JWKS() }
