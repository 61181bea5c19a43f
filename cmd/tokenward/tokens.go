package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"time"

	"tokenward/audit"
	"tokenward/enforce"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/usage"
)

// tokens is the token store as the program uses it: a file of its own, or a part
// in a cluster. Whoever uses a part of it names that part.
type tokens interface {
	tokenstore.Reader
	tokenstore.Writer
	usage.Store
	outbox
	secretForms
	upkeepStore

	ID() string
	// LastTime is when the store, as this node holds it, was last written before
	// this process.
	LastTime() time.Time
	// UsageEvery is how often usage is written.
	UsageEvery() time.Duration
	// Usable returns nil while requests may be answered.
	Usable() error
	// Backup writes all tokens, as of one moment.
	Backup(ctx context.Context, w io.Writer, now time.Time, pace func(m *boltstore.Manifest, done int64) error) (boltstore.Manifest, error)
	Stats() boltstore.Stats
	Close() error
}

// outbox is where events wait for the audit log.
type outbox interface {
	audit.Outbox
	// Wake receives when events may wait.
	Wake() <-chan struct{}
	// Source names the outbox in the audit log.
	Source() string
}

// secretForms are the forms of all secrets that the store ever held.
type secretForms interface {
	Formats() *tokenstore.Formats
	Foreign() ([]tokenstore.Foreign, error)
	RecordPrefix(ctx context.Context, prefix string) error
	RecordForeign(ctx context.Context, kind tokenstore.Foreign) error
}

// file is a store of this node alone.
type file struct{ *boltstore.Store }

var _ tokens = file{}

// Pending implements [audit.Outbox].
func (f file) Pending(limit int) ([]audit.Entry, error) {
	events, err := f.Store.Pending(limit)
	entries := make([]audit.Entry, len(events))
	for i, e := range events {
		entries[i] = audit.Entry(e)
	}
	return entries, err
}

func (f file) Source() string            { return f.ID() }
func (f file) UsageEvery() time.Duration { return usage.DefaultEvery }
func (f file) UsageLag() time.Duration   { return 0 }
func (f file) Leads() bool               { return true }
func (f file) Usable() error             { return nil }

// openTokens opens the store that cfg names. In a cluster it is not followed yet:
// [vault.follow] begins that.
func (v *vault) openTokens(ctx context.Context, cfg *Config, log *slog.Logger, o opening) error {
	opts := boltstore.Options{Path: cfg.TokenStore.Path, Peppers: v.peppers, Logger: log, OnChange: v.changed, Now: v.stamp}
	if cfg.TokenStore.Etcd.Enabled() {
		return v.openPart(ctx, cfg, log, opts, o)
	}
	open := boltstore.Open
	if o.create && !exists(cfg.TokenStore.Path) {
		open = boltstore.Create
	}
	store, err := open(opts)
	if err != nil {
		return err
	}
	v.store = file{store}
	return nil
}

// follow begins to follow the cluster, where there is one, and waits for the first
// whole copy.
func (v *vault) follow(ctx context.Context, log *slog.Logger) error {
	p := v.part
	if p == nil {
		return nil
	}
	p.Start(etcdstore.Observer{Learned: v.cache.SetFormats, Changed: v.changed, Forget: v.missed})
	if p.copy != nil && p.copy.Followed().Revision > 0 {
		if age := p.Store.Stats().Age; age < math.MaxInt64 {
			log.Info("this node continues from its copy of the tokens", "path", p.copy.Path(), "revision", p.copy.Followed().Revision, "age", age.Round(time.Second))
		}
		return nil
	}
	log.Info("this node waits for its first copy of the tokens", "store", p.ID(), "node", p.Node())
	if err := p.WaitReady(ctx); err != nil {
		return fmt.Errorf("wait for the first copy of the tokens: %w", err)
	}
	return nil
}

// gated finds tokens while the store may be used.
type gated struct {
	cache  *tokenstore.Cache
	usable func() error
}

var _ enforce.Finder = gated{}

// Find implements [enforce.Finder].
func (g gated) Find(ctx context.Context, text []byte) (tokenstore.Match, error) {
	if err := g.usable(); err != nil {
		return tokenstore.Match{}, err
	}
	return g.cache.Find(ctx, text)
}

// finder is how the engine finds tokens.
func (v *vault) finder() enforce.Finder {
	if v.part == nil {
		return v.cache
	}
	return gated{v.cache, v.part.Usable}
}

// counting is how the counts of limits are kept. Where the machine's clock is believed,
// those that it made while it was ahead are forgotten.
func (v *vault) counting(ctx context.Context) (countKeeping, error) {
	if v.part != nil {
		return clusterCounts(v.part.Store), nil
	}
	f, _ := v.store.(file)
	if believesClock() {
		if err := forgetAhead(ctx, f.Store, v.now()); err != nil {
			return countKeeping{}, err
		}
	}
	return localCounts(f.Store), nil
}

// pace is how usage is written: in a cluster a flush is a few transactions, and the
// more nodes there are the rarer it is.
func (v *vault) pace() usage.Pace {
	if v.part == nil {
		return usage.Pace{}
	}
	return usage.Pace{Tokens: etcdstore.UsageTokens, Commits: 20, Late: true}
}

// readied waits, for a verb that changes the store and ends, until a cluster is in
// step.
func (v *vault) readied(ctx context.Context) error {
	if v.part == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := v.part.WaitReady(ctx); err != nil {
		return fmt.Errorf("etcd does not answer, so nothing can be changed: %w", err)
	}
	return nil
}

// nodeOf names this node in audit events: in a cluster only.
func (v *vault) nodeOf() string {
	if v.part == nil {
		return ""
	}
	return v.part.Node()
}
