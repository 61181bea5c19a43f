package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tokenward/admin"
	"tokenward/admin/mailtrap"
	"tokenward/audit"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/usage"
)

// vault is the token store with everything that hangs on its file: the cache
// before it, the audit log behind it, and the service that changes it.
type vault struct {
	store   tokens
	part    *part // the store, in a cluster; else nil
	cache   *tokenstore.Cache
	log     *audit.Log
	service *admin.Service
	usage   *usage.Recorder
	denials *audit.Denials // nil: they are not told
	clock   *clock
	peppers *tokenstore.Peppers

	importKeys *tokenstore.ImportKeys
	older      bool // the store is behind its audit log, and is to make no events

	told    atomic.Pointer[func(tokenstore.Change)] // of changes, after the cache; nil: nobody
	doubted atomic.Pointer[func()]                  // called when changes were missed, after the cache; nil: nobody is

	drained chan error           // what the drainer of the outbox ended with
	observe func(audit.Progress) // told of heads; nil: nobody is
	stop    context.CancelFunc
	now     func() time.Time

	// Of the background tasks, for as long as the vault is open.
	tasks  sync.WaitGroup
	ctx    context.Context // see above
	cancel context.CancelFunc
}

// stamp is the time for a commit; none while the store is being opened, and the
// clock is not there yet.
func (v *vault) stamp() time.Time {
	if v.clock == nil {
		return time.Time{}
	}
	return v.clock.Now()
}

// envBelieveClock makes the machine's clock count although the store was written at
// a later time, as after a clock that was years ahead.
const envBelieveClock = "TOKENWARD_BELIEVE_CLOCK"

func believesClock() bool { return os.Getenv(envBelieveClock) == "1" }

// leastTime is the time that the clock does not begin before.
func (v *vault) leastTime(log *slog.Logger) time.Time {
	last := v.store.LastTime()
	if !believesClock() {
		return last
	}
	log.Warn("the machine's clock is trusted although the store may have been written at a later time: unset the variable once the server runs", "variable", envBelieveClock, "last_written", last)
	return time.Time{}
}

// background runs a task until the vault is closed, which waits for it.
func (v *vault) background(task func(ctx context.Context)) {
	v.tasks.Go(func() { task(v.ctx) })
}

// changed is told of every change before it is acknowledged.
func (v *vault) changed(c tokenstore.Change) {
	v.cache.Changed(c)
	if tell := v.told.Load(); tell != nil {
		(*tell)(c)
	}
}

// missed is told that tokens may have changed in ways that are not known.
func (v *vault) missed() {
	v.cache.Forget()
	if doubt := v.doubted.Load(); doubt != nil {
		(*doubt)()
	}
}

// onChange has f, beside those before it, told of every change from now on, once
// the cache knows of it. f must not wait. Only one may call it at a time.
func (v *vault) onChange(f func(tokenstore.Change)) {
	if before := v.told.Load(); before != nil {
		first, then := *before, f
		f = func(c tokenstore.Change) { first(c); then(c) }
	}
	v.told.Store(&f)
}

// opening says what a store is opened for.
type opening struct {
	create  bool                 // where there is none, it is made
	serve   bool                 // it is for a server, and not for one verb
	older   bool                 // an older copy of the store is opened too, to be read
	observe func(audit.Progress) // nil: nobody is told of what reaches the audit log
}

// openVault opens the store that cfg names.
func openVault(ctx context.Context, cfg *Config, log *slog.Logger, now func() time.Time, o opening) (*vault, error) {
	peppers, err := readPeppers(cfg.TokenStore.PepperFiles)
	if err != nil {
		return nil, err
	}
	v := &vault{peppers: peppers, drained: make(chan error, 1)}
	v.ctx, v.cancel = context.WithCancel(context.Background())
	if err := v.openTokens(ctx, cfg, log, o); err != nil {
		return nil, err
	}
	v.clock = newClock(now, steadyClock(), v.leastTime(log), log)
	v.now = v.clock.Now
	if err := v.connect(ctx, cfg, log, o); err != nil {
		v.cancel()
		v.tasks.Wait()
		return nil, errors.Join(err, v.store.Close())
	}
	return v, nil
}

func (v *vault) connect(ctx context.Context, cfg *Config, log *slog.Logger, o opening) error {
	var err error
	if v.cache, err = tokenstore.NewCache(v.store, v.peppers, v.store.Formats(), cfg.TokenStore.CacheEntries); err != nil {
		return err
	}
	if err := v.follow(ctx, log); err != nil {
		return err
	}
	if v.usage, err = usage.NewRecorder(v.store, v.pace()); err != nil {
		return err
	}
	opts := cfg.serviceOptions()
	opts.Usage, opts.Node = v.usage.Of, v.nodeOf()
	opts.AccountTypes = mailtrap.AccountTypes()
	opts.RecordPrefix = v.recordPrefix
	opts.Formats, opts.RecordForeign = v.store.Formats, v.recordForeign
	if v.importKeys, err = readImportKeys(cfg.TokenStore.ImportKeyFiles, v.store); err != nil {
		return err
	}
	opts.ImportKeys = v.importKeys
	v.cache.SetImportKeys(v.importKeys)
	opts.Backlog = func() int { return v.store.Stats().Outbox }
	if v.service, err = admin.New(v.store, v.store, v.peppers, v.now, opts); err != nil {
		return err
	}
	v.background(v.clock.run)
	if v.part != nil && !o.serve {
		return nil // the events wait in etcd, for a node that serves
	}
	var recovery audit.Recovery
	if v.log, recovery, err = openAudit(cfg, v.peppers, v.now()); err != nil {
		return err
	}
	if recovery.TornBytes > 0 {
		log.Warn("the audit log ended in half a line, which was cut off: the process was killed while it wrote, nothing acknowledged is lost", "path", cfg.Audit.Path, "bytes", recovery.TornBytes)
	}
	if v.older, err = v.compareWithLog(cfg, log); err != nil && !(v.older && o.older) {
		return errors.Join(err, v.log.Close(v.now()))
	}
	v.startDrainer(log, o.observe)
	v.runUsage(log)
	if cfg.Audit.Denials == "on" {
		v.runDenials(log)
	}
	return nil
}

// compareWithLog refuses a store that is behind its audit log, as after somebody put an
// older copy of the file in its place. What was revoked since would be valid again, and
// its next events would have the numbers of those that tell a restore of it. A log
// that is behind its store is warned of now: once more is written, nobody can tell.
func (v *vault) compareWithLog(cfg *Config, log *slog.Logger) (older bool, err error) {
	own, single := v.store.(file)
	if !single {
		return false, nil // the events of a cluster are numbered by etcd
	}
	_, last, err := own.Position()
	if err != nil {
		return false, err
	}
	known := v.log.LastOf(v.store.Source())
	if known > last {
		return true, fmt.Errorf("%s is an older copy of the token store: the audit log tells of event %d, and it has made only %d, so what was revoked since would be valid again\n"+
			"Put the latest file back; or make this one a backup, with `tokenward backup -o BACKUP --config F`, and restore that, with `tokenward restore --replace BACKUP --config F`, which takes away again what was revoked. "+
			"If the log is the wrong one, move it with its older files to a safe place, and a new one is begun", cfg.TokenStore.Path, known, last)
	}
	if had := last - uint64(v.store.Stats().Outbox); known < had { //nolint:gosec // a count
		log.Warn("the audit log lacks the last events that this store gave it: its end was cut off, or it is a new one or that of another store. "+
			"Unless that was meant, stop, and put the log back from where copies are kept", "path", cfg.Audit.Path, "given", had, "known", known)
	}
	return false, nil
}

// openAudit opens the audit log that cfg names: chained under keys that derive
// from the peppers, with heads signed where there is a key for it.
func openAudit(cfg *Config, peppers *tokenstore.Peppers, now time.Time) (*audit.Log, audit.Recovery, error) {
	opts := audit.Options{MACKeys: peppers.AuditKeys()}
	if path := cfg.Audit.SigningKeyFile; path != "" {
		key, err := readSigningKey(path)
		if err != nil {
			return nil, audit.Recovery{}, fmt.Errorf("audit.signing_key_file: %w", err)
		}
		opts.SigningKey = key
	}
	log, recovery, err := audit.Open(cfg.Audit.Path, now, opts)
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: run this as the owner of audit.path, or change the owner with `chown`", err)
	}
	return log, recovery, err
}

// appendAll appends what waited in the outbox named source, batch by batch.
func appendAll(log *audit.Log, now time.Time, source string, waiting []audit.Entry) error {
	for batch := range slices.Chunk(waiting, audit.MaxBatch) {
		if _, err := log.AppendEntries(now, source, batch); err != nil {
			return err
		}
	}
	return nil
}

// recordPrefix makes secrets with the prefix recognisable.
func (v *vault) recordPrefix(ctx context.Context, prefix string) error {
	if err := v.store.RecordPrefix(ctx, prefix); err != nil {
		return err
	}
	v.cache.SetFormats(v.store.Formats())
	return nil
}

// startDrainer moves events from the store's outbox into the audit log.
func (v *vault) startDrainer(log *slog.Logger, observe func(audit.Progress)) {
	d := &audit.Drainer{Outbox: v.store, Log: v.log, Source: v.store.Source(), Wake: v.store.Wake(), Gather: v.gather(),
		Observe: func(p audit.Progress) {
			if p.Err != nil {
				log.Error("the audit log cannot be written; changes are refused once too many events wait", "error", p.Err, "retry_in", p.RetryIn.String())
			}
			if observe != nil {
				observe(p)
			}
		}}
	v.observe = observe
	ctx, cancel := context.WithCancel(context.Background())
	v.stop = cancel
	go func() { v.drained <- d.Run(ctx) }()
}

// gather is how long events wait for others: each time that the outbox in etcd is
// emptied is a write as dear as the change itself.
func (v *vault) gather() time.Duration {
	if v.part == nil {
		return 0
	}
	return 100 * time.Millisecond
}

// close writes what waits for the audit log and closes everything.
func (v *vault) close() error {
	v.cancel()
	v.tasks.Wait()
	if v.log == nil {
		return v.store.Close()
	}
	v.stop()
	drained, before := <-v.drained, v.log.SignedHead()
	closed := v.log.Close(v.now())
	if last := v.log.SignedHead(); last.Line > before.Line && v.observe != nil {
		v.observe(audit.Progress{Head: last})
	}
	return errors.Join(drained, closed, v.store.Close())
}

// readPeppers reads the configured pepper files.
func readPeppers(paths []string) (*tokenstore.Peppers, error) {
	files := make([][]byte, len(paths))
	for i, path := range paths {
		b, err := os.ReadFile(path) //nolint:gosec // the operator names it
		if err != nil {
			return nil, fmt.Errorf("read pepper: %w\nA store that was made with a pepper cannot be used without it: put the file back, or correct tokenstore.pepper_files", err)
		}
		files[i] = b
	}
	peppers, err := tokenstore.NewPeppers(files...)
	if err != nil {
		return nil, fmt.Errorf("tokenstore.pepper_files (%s): %w", strings.Join(paths, ", "), err)
	}
	return peppers, nil
}

// backup writes a backup of the store, as fast as pace lets it, which may be nil.
func (v *vault) backup(ctx context.Context, w io.Writer, pace func(m *boltstore.Manifest, done int64) error) error {
	_, err := v.store.Backup(ctx, w, v.now(), pace)
	return err
}

// probe reads something small, to see whether the store answers. A node without a copy
// would have to read all of etcd to count; there [part.check] tells how etcd is.
func (v *vault) probe() error {
	if v.part != nil && v.part.copy == nil {
		return nil
	}
	_, err := v.store.Count(context.Background(), tokenstore.Query{AllAccounts: true})
	return err
}

// cursorKey is the same on all nodes, so that a list can be gone on with on any of
// them.
func (v *vault) cursorKey() []byte {
	secret := []byte("tokenward")
	if keys := v.peppers.AuditKeys(); len(keys) > 0 {
		secret = keys[0]
	}
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "cursors of %s", v.store.ID())
	return mac.Sum(nil)
}
