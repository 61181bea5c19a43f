package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"tokenward/metrics"
	"tokenward/proxy"
)

// reloadEvery is how often the files that a reload reads are looked at.
const reloadEvery = 2 * time.Second

// watch reloads on SIGHUP and whenever the content of the configuration file, or
// of a certificate that it names, has changed and then stayed the same for
// reloadEvery, until ctx ends or failed tells of a listener that broke, whose error
// it returns. The app's configuration changes in here only. A configuration that
// came from no file is not watched.
func (a *app) watch(ctx context.Context, failed <-chan error) error {
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	path := a.path
	files := newChanges(a.loaded)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-a.hangup:
		case <-tick.C:
			if path == "" || !files.settled(a.cfg.fingerprint(path)) {
				continue
			}
		}
		if path != "" {
			files = newChanges(a.cfg.fingerprint(path))
			a.reload(path)
		}
	}
}

// hangups receives when the operator asks for a reload, until stop is called. Whoever
// begins early is not ended by one that comes while the program still starts.
func hangups() (asked <-chan os.Signal, stop func()) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	return hangup, func() { signal.Stop(hangup) }
}

// changes tells when files have changed and are not being written any more: half
// of a file can be a sound configuration that lets more through than the whole, as
// when it ends before the scopes of its last route.
type changes struct {
	loaded [sha256.Size]byte // what is in force
	last   [sha256.Size]byte // what there was at the last look
}

func newChanges(loaded [sha256.Size]byte) changes { return changes{loaded: loaded, last: loaded} }

// settled takes what there is now, and reports whether it is to be loaded.
func (c *changes) settled(now [sha256.Size]byte) bool {
	same := now == c.last
	c.last = now
	return same && now != c.loaded
}

// fingerprint is a digest of what the watched files hold. What cannot be read, or is
// no file any more, counts as empty: the reload that follows says why.
func (c *Config) fingerprint(path string) [sha256.Size]byte {
	h := sha256.New()
	files := []string{path}
	for _, t := range []TLSConfig{c.Proxy.TLS, c.Admin.TLS} {
		files = append(files, t.CertFile, t.KeyFile, t.ClientCAFile)
	}
	up := c.Proxy.UpstreamTLS
	files = append(files, up.CAFile, up.CertFile, up.KeyFile)
	files = append(files, c.Proxy.Identity.SigningKeyFiles...)
	for _, f := range files {
		if f == "" {
			continue
		}
		sum := sha256.New()
		if file, err := openRegular(f); err == nil {
			_, _ = io.Copy(sum, file)
			_ = file.Close()
		}
		h.Write(sum.Sum(nil))
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// reload reads the configuration again and puts in force what can change while
// running: routes, rules, names, timeouts, log level, certificates. A file with a
// fault is refused whole, and what was in force stays.
func (a *app) reload(path string) {
	err := a.applyFile(path)
	a.upstreams.keep(a.cfg) // also what a refused file brought in
	if err != nil {
		a.registry.Reload.Failed()
		a.health.Set("config", metrics.Warning, "the configuration on disk was refused, the last good one is in force: see the log")
		a.log.Error("the configuration was not reloaded; the last good one stays in force", "path", path, "error", err.Error())
		return
	}
	a.registry.Reload.Succeeded(a.now())
	a.health.Set("config", metrics.Passing, "")
}

func (a *app) applyFile(path string) error {
	wanted, err := loadConfig(path)
	if err != nil {
		return err
	}
	if faults, warnings := wanted.checkFiles(a.now()); len(faults) > 0 {
		return newConfigError(path, nil, faults)
	} else {
		warnOf(a.log, wanted, warnings)
	}
	restart := restartNeeded(a.cfg, wanted)
	slices.Sort(restart)
	next := a.cfg.reloaded(wanted)
	useCertificates, err := a.readCertificates()
	if err != nil {
		return besideOld(err, restart)
	}
	rules, err := a.ruleset(next)
	if err != nil {
		return besideOld(err, restart)
	}
	useCertificates() // from here on nothing fails
	a.cfg = next
	if a.level != nil {
		a.level.Set(next.logLevel())
	}
	a.guard.SetRules(rules)
	a.engine.SetLimits(next.limitOptions())
	a.announceObserving()
	if len(restart) > 0 {
		a.log.Warn("some changes take effect only after a restart of tokenward", "keys", strings.Join(restart, ", "))
	}
	a.log.Info("the configuration was reloaded", "path", path, "routes", len(next.Routes))
	return nil
}

// besideOld is err of a file that has no fault by itself, but cannot be put in force
// beside the old values of the keys that need a restart.
func besideOld(err error, restart []string) error {
	if len(restart) == 0 {
		return err
	}
	return fmt.Errorf("%w\nThe file has no fault, but does not fit to the old values of %s, which stay in force until a restart: restart tokenward", err, strings.Join(restart, ", "))
}

// reloaded is the running configuration with those values of wanted that a
// reload applies.
func (c *Config) reloaded(wanted *Config) *Config {
	next := *c
	for k := range configKeys() {
		if k.reload == "yes" {
			k.in(&next).Set(k.in(wanted))
		}
	}
	return &next
}

// announceObserving says loudly, in log and readiness, that requests which should
// be refused are not.
func (a *app) announceObserving() {
	until := a.cfg.Enforce.ObserveUntil.Time
	observed := a.cfg.Enforce.Mode == "observe"
	for i := range a.cfg.Routes {
		observed = observed || a.cfg.Routes[i].Mode == "observe"
	}
	a.health.Watch("enforcement", func() (metrics.State, string) {
		if observed && a.now().Before(until) {
			return metrics.Warning, "requests are only observed, not refused, until " + until.Format(time.RFC3339)
		}
		return metrics.Passing, ""
	})
	if observed && a.now().Before(until) {
		a.log.Warn("OBSERVING: requests that would be refused are forwarded until the time given; they are counted as observed in tokenward_decisions_total", "until", until)
	}
}

// readCertificates reads the files of every TLS side again, and returns what makes
// new connections get what they hold now: all of them do, or none.
func (a *app) readCertificates() (use func(), err error) {
	var sides []interface{ Read() (func(), error) }
	for _, t := range []*proxy.ServerTLS{a.proxyTLS, a.adminTLS} {
		if t != nil {
			sides = append(sides, t)
		}
	}
	if t := a.upstreams.tls; t != nil {
		sides = append(sides, t)
	}
	var applies []func()
	for _, side := range sides {
		apply, err := side.Read()
		if err != nil {
			return nil, err
		}
		applies = append(applies, apply)
	}
	return func() {
		for _, apply := range applies {
			apply()
		}
	}, nil
}

// warnOf logs what could be better about the routes and the files of a configuration.
func warnOf(log *slog.Logger, c *Config, files []configFault) {
	for _, w := range c.routeWarnings() {
		log.Warn("a route may not match what is meant", "key", w.Key, "problem", w.Problem, "fix", w.Fix)
	}
	for _, w := range files {
		log.Warn("a file that the configuration names could be safer", "key", w.Key, "problem", w.Problem, "fix", w.Fix)
	}
}
