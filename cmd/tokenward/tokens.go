package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"math"
	"os"
	"strings"
	"time"

	"tokenward/audit"
	"tokenward/enforce"
	"tokenward/metrics"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/usage"
)

// tokens is the token store as the program uses it: a file of its own, or a part
// in a cluster.
type tokens interface {
	tokenstore.Reader
	tokenstore.Writer
	usage.Store
	audit.Outbox

	ID() string
	Formats() *tokenstore.Formats
	Foreign() ([]tokenstore.Foreign, error)
	RecordPrefix(ctx context.Context, prefix string) error
	RecordForeign(ctx context.Context, kind tokenstore.Foreign) error

	Notice(id tokenstore.ID, end time.Time) (tokenstore.Notice, error)
	NoteWarning(ctx context.Context, id tokenstore.ID, end time.Time, event []byte, change func(*tokenstore.Notice)) error

	// Ending and AwaitingSilence yield the ids of tokens from an index of this node.
	Ending(ctx context.Context, from, until time.Time) iter.Seq2[tokenstore.ID, error]
	AwaitingSilence(ctx context.Context) iter.Seq2[tokenstore.ID, error]

	// LastTime is when the store, as this node holds it, was last written before
	// this process, and Stamp notes the time.
	LastTime() time.Time
	Stamp(ctx context.Context) error

	// Backup writes all tokens, as of one moment.
	Backup(ctx context.Context, w io.Writer, now time.Time, pace func(m *boltstore.Manifest, done int64) error) (boltstore.Manifest, error)
	Stats() boltstore.Stats

	// Wake receives when events may wait in the outbox, which Source names.
	Wake() <-chan struct{}
	Source() string

	// UsageEvery is how often usage is written, and UsageLag how long a use may not
	// be known to the node that leads.
	UsageEvery() time.Duration
	UsageLag() time.Duration
	// Restored is until when uses were forgotten, as a backup was restored then; zero: never.
	Restored() (time.Time, error)

	// Leads reports whether this node does what only one has to do.
	Leads() bool
	// Usable returns nil while requests may be answered.
	Usable() error

	Close() error
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

// part is this node's part in a cluster: etcd has the truth, and copy, where there
// is one, all tokens.
type part struct {
	*etcdstore.Store
	client *etcdstore.Client
	copy   *boltstore.Store // nil: tokens are read from etcd on demand

	staleness time.Duration // tokenstore.etcd.max_staleness
}

var _ tokens = (*part)(nil)

// Pending implements [audit.Outbox]. While it is not known which events wait, none
// can be written: the log is woken once it is.
func (p *part) Pending(limit int) ([]audit.Entry, error) {
	events, err := p.Store.Pending(limit)
	if errors.Is(err, etcdstore.ErrOutboxUnknown) {
		return nil, nil
	}
	entries := make([]audit.Entry, len(events))
	for i, e := range events {
		entries[i] = audit.Entry(e)
	}
	return entries, err
}

func (p *part) Source() string { return p.OutboxName() }

// UsageEvery implements tokens: the more nodes there are, the rarer each writes, so
// that all together make some ten transactions a second at most.
func (p *part) UsageEvery() time.Duration {
	return max(usage.DefaultEvery, time.Duration(p.Nodes())*2*time.Second)
}

// UsageLag implements tokens: a node may be cut off for as long as it answers
// requests, and then have more to write than one flush takes.
func (p *part) UsageLag() time.Duration { return p.staleness + 6*p.UsageEvery() }

// Restored implements tokens. What is restored is etcd, which tells nobody.
func (p *part) Restored() (time.Time, error) { return time.Time{}, nil }

// Leads implements tokens. A node without a copy has no index to work by.
func (p *part) Leads() bool { return p.copy != nil && p.First() }

func noIDs(func(tokenstore.ID, error) bool) {}

// Ending implements tokens.
func (p *part) Ending(ctx context.Context, from, until time.Time) iter.Seq2[tokenstore.ID, error] {
	if p.copy == nil {
		return noIDs
	}
	return p.copy.Ending(ctx, from, until)
}

// AwaitingSilence implements tokens.
func (p *part) AwaitingSilence(ctx context.Context) iter.Seq2[tokenstore.ID, error] {
	if p.copy == nil {
		return noIDs
	}
	return p.copy.AwaitingSilence(ctx)
}

// LastTime implements tokens.
func (p *part) LastTime() time.Time {
	if p.copy == nil {
		return time.Time{}
	}
	return p.copy.LastTime()
}

// Stamp implements tokens.
func (p *part) Stamp(ctx context.Context) error {
	if p.copy == nil {
		return nil
	}
	return p.copy.Stamp(ctx)
}

var errNoCopy = errors.New("this node holds no copy of the tokens (tokenstore.etcd.mirror is on_demand): ask one that does for a backup")

// Backup implements tokens: of the copy, once it is in step.
func (p *part) Backup(ctx context.Context, w io.Writer, now time.Time, pace func(m *boltstore.Manifest, done int64) error) (boltstore.Manifest, error) {
	if p.copy == nil {
		return boltstore.Manifest{}, errNoCopy
	}
	if p.Stale() {
		return boltstore.Manifest{}, etcdstore.ErrStale
	}
	return p.copy.Backup(ctx, w, now, pace)
}

// Stats implements tokens: of the copy, and of this node's outbox in etcd.
func (p *part) Stats() boltstore.Stats {
	var s boltstore.Stats
	if p.copy != nil {
		s = p.copy.Stats()
	}
	of := p.Store.Stats()
	s.Outbox, s.Changes, s.Commits = of.Outbox, of.Changes, of.Commits // those of the copy follow other nodes' too
	return s
}

// Close implements tokens.
func (p *part) Close() error {
	err := errors.Join(p.Store.Close(), p.client.Close())
	if p.copy != nil {
		err = errors.Join(err, p.copy.Close())
	}
	return err
}

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

// openPart opens this node's part in a cluster.
func (v *vault) openPart(ctx context.Context, cfg *Config, log *slog.Logger, opts boltstore.Options, o opening) (err error) {
	co, err := cfg.TokenStore.Etcd.clusterOptions(v.peppers, time.Now, log)
	if err != nil {
		return err
	}
	full := o.serve && cfg.TokenStore.Etcd.Mirror == "full"
	if !o.serve { // beside a server that has this name
		co.Node = "cli-" + strings.ToLower(rand.Text())
	}
	client, err := etcdstore.Dial(co)
	if err != nil {
		return err
	}
	p := &part{client: client, staleness: co.MaxStaleness}
	defer func() {
		if err != nil {
			err = errors.Join(err, client.Close())
		}
	}()
	about, err := describe(ctx, client, o.create)
	unreachable := errors.Is(err, etcdstore.ErrUnreachable)
	if err != nil && !unreachable {
		return err
	}
	if full {
		if about, err = p.openCopy(opts, about, err); err != nil {
			return err
		}
	} else if unreachable {
		return fmt.Errorf("%w\nWithout a copy of the tokens nothing can be done while etcd does not answer", err)
	}
	if p.copy == nil {
		p.Store = client.Open(about, nil)
	} else {
		p.Store = client.Open(about, p.copy)
	}
	v.store, v.part = p, p
	return nil
}

func describe(ctx context.Context, client *etcdstore.Client, create bool) (etcdstore.Description, error) {
	about, err := client.Describe(ctx)
	if !errors.Is(err, etcdstore.ErrNotInitialised) || !create {
		return about, err
	}
	if err := client.Init(ctx); err != nil && !errors.Is(err, etcdstore.ErrExists) {
		return about, err
	}
	return client.Describe(ctx)
}

// openCopy opens the copy of the store that etcd describes, or makes it. Where etcd
// could not be asked, for the reason unreachable, what the copy knows has to do.
func (p *part) openCopy(opts boltstore.Options, about etcdstore.Description, unreachable error) (etcdstore.Description, error) {
	there := true
	if _, err := os.Stat(opts.Path); errors.Is(err, fs.ErrNotExist) {
		there = false
	}
	switch {
	case unreachable != nil && !there:
		return about, fmt.Errorf("%w\nThere is no copy of the tokens at %s yet, so this node can only start while etcd answers", unreachable, opts.Path)
	case !there:
		opts.ReplicaOf = about.Name()
		copied, err := boltstore.Create(opts)
		p.copy = copied
		return about, err
	}
	opts.ReplicaOf = "any"
	copied, err := boltstore.Open(opts)
	if err != nil {
		return about, err
	}
	known, err := etcdstore.ParseName(copied.Followed().Store)
	if err == nil && unreachable == nil && known.ID != about.ID {
		err = fmt.Errorf("%s is a copy of the token store %s, and etcd holds %s under tokenstore.etcd.prefix: correct the prefix or the endpoints, or remove the copy", opts.Path, known.ID, about.ID)
	}
	if err != nil {
		return about, errors.Join(err, copied.Close())
	}
	p.copy = copied
	if unreachable == nil {
		return about, nil
	}
	if known.Traits, err = copied.Traits(); err != nil {
		return known, errors.Join(err, copied.Close())
	}
	return known, nil
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

func (p *part) stats() metrics.ClusterStats {
	s := p.Store.Stats()
	return metrics.ClusterStats{
		Revision: s.Revision, Connected: s.Connected, LastContact: s.LastContact, Nodes: p.Nodes(),
		Conflicts: s.Conflicts, Unknown: s.Unknown, Loads: s.Loads, Watches: s.Restarts, Unreadable: s.Unreadable,
	}
}

// check is the cluster's part of readiness.
func (p *part) check() (metrics.State, string) {
	s := p.Store.Stats()
	where := fmt.Sprintf("revision %d, age %s, etcd %s", s.Revision, ageText(s.Age), linkText(&s))
	switch {
	case s.Stale && p.Usable() != nil:
		return metrics.Failing, "this node may have missed changes for too long and answers 503: " + where
	case s.Stale:
		return metrics.Warning, "this node may have missed changes for too long and goes on answering: " + where
	case s.Taken:
		return metrics.Warning, "another process has taken this node's name: changes are refused here; " + where
	case s.Unreadable > 0:
		return metrics.Warning, fmt.Sprintf("%d records in etcd cannot be read, and their tokens are refused: see the log", s.Unreadable)
	case !s.Connected:
		return metrics.Warning, "etcd does not answer; requests are judged by what this node holds: " + where
	}
	return metrics.Passing, where
}

func ageText(age time.Duration) string {
	if age == math.MaxInt64 {
		return "unknown"
	}
	return age.Round(time.Millisecond).String()
}

func linkText(s *etcdstore.Stats) string {
	switch {
	case s.Connected:
		return "connected"
	case s.LastContact.IsZero():
		return "never reached"
	}
	return "last reached at " + s.LastContact.UTC().Format(time.RFC3339)
}
