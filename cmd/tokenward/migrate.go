package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tokenward/admin"
	"tokenward/audit"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/etcdstore"
)

func newMigrateCommand() *cobra.Command {
	var m mover
	cmd := &cobra.Command{
		Use:   "migrate --config FILE [--to etcd [--from FILE] | --to file --out FILE]",
		Short: "Upgrade the store of an older release, or move a store into etcd and back",
		Long: "Without --to: upgrade the token store to the layout of this release, each step in one\n" +
			"transaction. A copy of the old file stays next to it. The server must be stopped.\n\n" +
			"With --to etcd: copy the store in a file into etcd, where the configuration says, under\n" +
			"a prefix that is empty. Everything is read back and compared before nodes can use it.\n" +
			"The file is only read, and stays as it is; its server must be stopped, since what it\n" +
			"changed meanwhile would be lost. To have it stopped for seconds, copy a backup first,\n" +
			"while it runs: --from may name a backup, which leaves the copy unfinished, and the\n" +
			"run with the file then writes only what changed since. A run that was interrupted at\n" +
			"any point continues when it is started again.\n\n" +
			"With --to file: copy what etcd holds, as of one moment, into a new file, which a server\n" +
			"without tokenstore.etcd uses as its own. Nodes keep running; what they change after\n" +
			"that moment is not in the file, so stop them first when it is meant for good.",
		Example: "  tokenward backup -o ahead.backup --token-file root           # the server keeps running\n" +
			"  tokenward migrate --to etcd --config cluster.yaml --from ahead.backup\n" +
			"  tokenward migrate --to etcd --config cluster.yaml --from tokenward.db   # the server is stopped\n" +
			"  tokenward migrate --to file --config cluster.yaml --out tokenward.db",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m.out, m.tell, m.now = cmd.OutOrStdout(), cmd.ErrOrStderr(), time.Now
			return m.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&m.config, "config", "tokenward.yaml", "configuration file")
	cmd.Flags().StringVar(&m.to, "to", "", "`etcd` or file")
	mustComplete(cmd.RegisterFlagCompletionFunc("to", cobra.FixedCompletions([]string{"etcd", "file"}, cobra.ShellCompDirectiveNoFileComp)))
	cmd.Flags().StringVar(&m.from, "from", "", "the `file` of the store, or a backup of it, that goes into etcd; tokenstore.path by default")
	cmd.Flags().StringVar(&m.file, "out", "", "the `file` to make of what is in etcd")
	cmd.Flags().BoolVar(&m.asJSON, "json", false, "print JSON")
	return cmd
}

// mover is one run of `tokenward migrate`.
type mover struct {
	config, to, from, file string
	asJSON                 bool
	out, tell              io.Writer
	now                    func() time.Time

	cfg     *Config
	log     *slog.Logger
	peppers *tokenstore.Peppers
	told    time.Time // when progress was told last
}

func (m *mover) run(ctx context.Context) (err error) {
	switch {
	case m.to != "" && m.to != "etcd" && m.to != "file":
		return usageError{fmt.Errorf("--to %s: say etcd or file", shownText(m.to))}
	case m.from != "" && m.to != "etcd":
		return usageError{errors.New("--from goes with --to etcd")}
	case (m.file != "") != (m.to == "file"):
		return usageError{errors.New("--to file and --out FILE go together")}
	}
	if m.cfg, err = loadConfig(m.config); err != nil {
		return err
	}
	if m.to == "" {
		return m.upgrade()
	}
	if !m.cfg.TokenStore.Etcd.Enabled() {
		return fmt.Errorf("%s names no etcd: give the configuration of the cluster's nodes, with tokenstore.etcd.endpoints", m.config)
	}
	m.log = newLogger(m.cfg, m.tell)
	if m.peppers, err = readPeppers(m.cfg.TokenStore.PepperFiles); err != nil {
		return err
	}
	if m.to == "etcd" {
		return m.toEtcd(ctx)
	}
	return m.toFile(ctx)
}

// dial connects to etcd under a name that no node has.
func (m *mover) dial() (*etcdstore.Client, error) {
	o, err := m.cfg.TokenStore.Etcd.clusterOptions(m.peppers, m.now, m.log)
	if err != nil {
		return nil, err
	}
	o.Node = "migrate-" + strings.ToLower(rand.Text())
	return etcdstore.Dial(o)
}

// moved is what a run has done, for programs.
type moved struct {
	Done     bool     `json:"done"` // false: more has to come before it can be used
	Store    string   `json:"store"`
	Tokens   uint64   `json:"tokens"`
	Digests  uint64   `json:"digests"`
	SHA256   string   `json:"sha256"` // of all that the store holds
	Revision int64    `json:"revision,omitempty"`
	Nodes    []string `json:"nodes,omitempty"`   // that were there meanwhile
	Changed  bool     `json:"changed,omitempty"` // by them, so that it is not in the file
}

func movedOf(id string, t *tokenstore.Tally) moved {
	return moved{Done: true, Store: id, Tokens: t.Count(tokenstore.EntryRecord), Digests: t.Count(tokenstore.EntryDigest), SHA256: fmt.Sprintf("%x", t.Sum())}
}

func (m *mover) print(r *moved, text string) error {
	if m.asJSON {
		return json.NewEncoder(m.out).Encode(r)
	}
	_, err := fmt.Fprintf(m.out, "%s, %s that are or were in use; all of it was read back and is the same (SHA-256 %s).\n%s",
		counted(int(r.Tokens), "token"), counted(int(r.Digests), "secret"), r.SHA256, text) //nolint:gosec // counts of tokens
	return err
}

// progressEvery is how often progress is told.
const progressEvery = 3 * time.Second

func (m *mover) progress(format string, args ...any) {
	if now := m.now(); now.Sub(m.told) >= progressEvery {
		m.told = now
		fmt.Fprintf(m.tell, format+"\n", args...)
	}
}

func (m *mover) toEtcd(ctx context.Context) (err error) {
	from := m.from
	if from == "" {
		from = m.cfg.TokenStore.Path
	}
	path, ahead, remove, err := m.source(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	s, err := boltstore.Open(boltstore.Options{Path: path, Peppers: m.peppers, Logger: m.log, ReadOnly: true})
	if errors.Is(err, boltstore.ErrInUse) {
		return fmt.Errorf("%w\nThe server must be stopped: what it changes meanwhile would not be in etcd. To stop it for seconds only, copy a backup first:\n    tokenward backup -o ahead.backup && tokenward migrate --to etcd --config %s --from ahead.backup", err, m.config)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if !ahead {
		if err := m.deliver(s); err != nil {
			return err
		}
	}
	c, err := m.dial()
	if err != nil {
		return err
	}
	tally, err := c.Import(ctx, etcdstore.Import{ID: s.ID(), Entries: s.Entries, Ahead: ahead, Report: func(at etcdstore.Copying) {
		verb := "copied"
		if at.Verifying {
			verb = "read back"
		}
		m.progress("%d entries %s, %d of them had to be written", at.Seen, verb, at.Written)
	}})
	if err = errors.Join(err, c.Close()); err != nil {
		return err
	}
	r := movedOf(s.ID(), tally)
	if ahead {
		r.Done = false
		return m.print(&r, "This was a backup, so the copy is not finished and no node can start on it. Stop the server, and run this with the store's file.\n")
	}
	if err := m.noteInCluster(ctx); err != nil {
		return fmt.Errorf("the store is in etcd and complete, but the audit log could not record it: %w", err)
	}
	return m.print(&r, fmt.Sprintf("The store is in etcd. Its file %s is as it was: keep it until the nodes serve, and start no server on it again. Name another place in tokenstore.path, where each node keeps its copy, then start the nodes.\n", from))
}

// source returns the file of the store, which is taken out of a backup if that is
// what from is; then the copy can only be one ahead.
func (m *mover) source(from string) (path string, ahead bool, remove func() error, err error) {
	in, err := os.Open(from) //nolint:gosec // the operator names it
	if err != nil {
		return "", false, nil, fmt.Errorf("%s %w", from, fileProblem(err))
	}
	defer in.Close()
	if is, err := boltstore.IsBackup(in); err != nil || !is {
		return from, false, func() error { return nil }, err
	}
	dir, remove, err := makeWorkFolder(filepath.Dir(from), "migrate", m.tell)
	if err != nil {
		return "", false, nil, fmt.Errorf("take the store out of the backup: %w", err)
	}
	path = filepath.Join(dir, workStore)
	if _, err := unpackBackup(path, in, m.peppers); err != nil {
		return "", false, nil, fmt.Errorf("%s: %w", from, errors.Join(err, remove()))
	}
	return path, true, remove, nil
}

// deliver brings the events that wait in the file's outbox into the audit log. They
// stay in the file, which is not written; the log knows them when they come again.
func (m *mover) deliver(s *boltstore.Store) error {
	events, err := file{s}.Pending(tokenstore.MaxOutbox)
	if err != nil || len(events) == 0 {
		return err
	}
	log, _, err := openAudit(m.cfg, m.peppers, m.now())
	if err != nil {
		return err
	}
	err = appendAll(log, m.now(), s.ID(), events)
	return errors.Join(err, log.Close(m.now()))
}

// noteInCluster has an event wait in etcd for the first node that serves.
func (m *mover) noteInCluster(ctx context.Context) (err error) {
	v, err := openVault(ctx, m.cfg, m.log, m.now, opening{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.close()) }()
	if err := v.readied(ctx); err != nil {
		return err
	}
	return v.service.Moved(ctx, "the token store was copied from a file into etcd")
}

// toFile makes the file in steps, of which the last one gives it its name.
func (m *mover) toFile(ctx context.Context) (err error) {
	if _, err := os.Lstat(m.file); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s exists already: name another file", m.file)
	}
	c, err := m.dial()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	snapshot, err := c.Snapshot(ctx)
	if err != nil {
		return err
	}
	dir, remove, err := makeWorkFolder(filepath.Dir(m.file), "migrate", m.tell)
	if err != nil {
		return fmt.Errorf("make the file: %w", err)
	}
	defer func() { err = errors.Join(err, remove()) }()
	path := filepath.Join(dir, workStore)
	tally, err := m.fill(ctx, snapshot, path)
	if err != nil {
		return err
	}
	if err := m.settle(ctx, snapshot, path); err != nil {
		return err
	}
	changed, err := snapshot.Changed(ctx)
	if err != nil {
		return err
	}
	if err := os.Link(path, m.file); err != nil {
		return fmt.Errorf("name the file: %w", err)
	}
	if err := boltstore.SyncDir(filepath.Dir(m.file)); err != nil {
		return err
	}
	r := movedOf(snapshot.ID, tally)
	r.Revision, r.Nodes, r.Changed = snapshot.Revision, snapshot.Nodes, changed
	return m.print(&r, r.fileText(m.file))
}

func (r *moved) fileText(path string) string {
	var b strings.Builder
	switch {
	case r.Changed:
		b.WriteString("Warning: the nodes went on changing tokens, and what they changed since is not in the file. Stop them, and make another.\n")
	case len(r.Nodes) > 0:
		fmt.Fprintf(&b, "Warning: nodes are running (%s): what they change from now on is not in the file.\n", strings.Join(r.Nodes, ", "))
	}
	fmt.Fprintf(&b, "%s is a store of its own, as etcd was at revision %d. Name it in tokenstore.path of a configuration without tokenstore.etcd, with the same peppers and audit log, and start one server.\n", path, r.Revision)
	return b.String()
}

// fill makes the file and compares it with etcd.
func (m *mover) fill(ctx context.Context, snapshot *etcdstore.Snapshot, path string) (*tokenstore.Tally, error) {
	seen := 0
	counting := func(yield func(tokenstore.Entry, error) bool) {
		for e, err := range snapshot.Entries(ctx) {
			if seen++; seen%1000 == 0 {
				m.progress("%d entries copied", seen)
			}
			if !yield(e, err) {
				return
			}
		}
	}
	if err := boltstore.Load(ctx, boltstore.Options{Path: path, Peppers: m.peppers, Logger: m.log}, snapshot.ID, counting); err != nil {
		return nil, err
	}
	s, err := boltstore.Open(boltstore.Options{Path: path, Peppers: m.peppers, Logger: m.log, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	m.progress("comparing the file with etcd")
	tally, err := tokenstore.Verify(snapshot.Entries(ctx), s.Entries(ctx))
	return tally, errors.Join(err, s.Close())
}

// settle has the file go on above all events that the audit log has of the store,
// and takes over those that wait in etcd.
func (m *mover) settle(ctx context.Context, snapshot *etcdstore.Snapshot, path string) (err error) {
	last, err := lastEvent(m.cfg.Audit.Path, snapshot.ID)
	if err != nil {
		return err
	}
	if err := boltstore.Raise(path, 0, last, time.Time{}); err != nil {
		return err
	}
	waiting, err := snapshot.Waiting(ctx)
	if err != nil {
		return err
	}
	s, err := boltstore.Open(boltstore.Options{Path: path, Peppers: m.peppers, Logger: m.log, Now: m.now})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	err = s.Change(ctx, func(tx tokenstore.Tx) error {
		for _, e := range waiting {
			tx.Emit(bytes.Clone(e))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("take over the events that wait: %w", err)
	}
	service, err := admin.New(s, s, m.peppers, m.now, m.cfg.serviceOptions())
	if err != nil {
		return err
	}
	return service.Moved(ctx, fmt.Sprintf("the token store was copied from etcd, as of revision %d, into a file", snapshot.Revision))
}

// lastEvent returns the highest number of an event that the audit log at path, if
// there is one, has of a store.
func lastEvent(path, store string) (last uint64, err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for record, err := range audit.Records(path) {
		if err != nil {
			return last, fmt.Errorf("read the audit log: %w: see `tokenward audit verify`", err)
		}
		if record.Source == store {
			last = max(last, record.Seq)
		}
	}
	return last, nil
}
