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

	"tokenward/admin/native"
	"tokenward/audit"
	"tokenward/metrics"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/usage"
)

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
// could not be asked, for the reason unreachable, what the copy knows must suffice.
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

// others are the nodes of the cluster, as the native API speaks of them.
type others struct{ part *part }

var _ native.Cluster = others{}

// memberPatience is how long a node may take to say where it is.
const memberPatience = time.Second

// WaitAll implements [native.Cluster].
func (o others) WaitAll(ctx context.Context) ([]string, error) {
	err := o.part.WaitAll(ctx)
	if lagging, ok := errors.AsType[*etcdstore.LaggingError](err); ok {
		return lagging.Nodes, err
	}
	return nil, err
}

// Members implements [native.Cluster].
func (o others) Members(ctx context.Context) ([]native.Node, int64, error) {
	infos, revision, err := o.part.Members(ctx, memberPatience)
	if err != nil {
		return nil, 0, err
	}
	nodes := make([]native.Node, 0, len(infos))
	for i := range infos {
		n := &infos[i]
		one := native.Node{Name: n.Node, Version: n.Version, Mirror: n.Mirror, OnStale: "deny", Revision: n.Revision, Stopped: n.Stopped}
		if n.ServeStale {
			one.OnStale = "serve"
		}
		if n.Age < math.MaxInt64 {
			one.AgeMS = new(n.Age.Milliseconds())
		}
		if !n.At.IsZero() {
			one.SaidAt = &native.Time{Time: n.At}
		}
		if !n.Started.IsZero() {
			one.Started = &native.Time{Time: n.Started}
		}
		nodes = append(nodes, one)
	}
	return nodes, revision, nil
}
