package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tokenward/admin"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/etcdstore"
)

// restoreFlags say how far a restore may go.
type restoreFlags struct {
	config                           string
	replace, acceptUnrevoked, dryRun bool
	asJSON                           bool
}

func newRestoreCommand() *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:   "restore --config FILE BACKUP",
		Short: "Replace the token store by a backup",
		Long: "Check a backup (its length, checksums and seal, its layout, every record and every\n" +
			"index) and put it where the configuration names the store. The server must be\n" +
			"stopped. A store that is there is moved aside, and only with --replace.\n\n" +
			"What was revoked, disabled or narrowed after the backup was made would come back to\n" +
			"life with it. The audit log knows: it is checked first, and then all of that is listed\n" +
			"and taken away again before the store is put in place. If no audit log reaches back\n" +
			"to the backup, --accept-unrevoked is needed. Ids continue above every one that was\n" +
			"ever used. What was used of limits since the backup is taken from the store that is\n" +
			"replaced; if that cannot be read, the tokens with a limited number of uses are named.\n\n" +
			"A backup of a cluster's node becomes a store of its own, for a configuration without\n" +
			"tokenstore.etcd: as the node knew it, with every secret that ever was, and without\n" +
			"the counts of limits and the use of tokens, which are in etcd. What other nodes did\n" +
			"later is in their audit logs alone, so --accept-unrevoked is needed.\n\n" +
			"With --dry-run nothing is changed: what would be done is shown.",
		Example: "  tokenward restore --config tokenward.yaml --dry-run tokens.backup\n" +
			"  tokenward restore --config tokenward.yaml --replace tokens.backup",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(f.config)
			if err != nil {
				return err
			}
			r := restorer{flags: f, cfg: cfg, log: newLogger(cfg, cmd.ErrOrStderr()), tell: cmd.ErrOrStderr(), now: time.Now}
			if err := r.run(cmd.Context(), args[0]); errors.Is(err, syscall.ENOSPC) {
				return fmt.Errorf("%w\nNo store was changed: free space for another store in %s, then try again", err, filepath.Dir(cfg.TokenStore.Path))
			} else if err != nil {
				return err
			}
			if f.asJSON {
				return r.writeJSON(cmd.OutOrStdout())
			}
			_, err = io.WriteString(cmd.OutOrStdout(), r.text())
			return err
		},
	}
	cmd.Flags().StringVar(&f.config, "config", "tokenward.yaml", "configuration file")
	cmd.Flags().BoolVar(&f.replace, "replace", false, "move an existing store aside")
	cmd.Flags().BoolVar(&f.acceptUnrevoked, "accept-unrevoked", false, "continue although what was revoked since the backup may come back")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "show what would be done, and do nothing")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
	return cmd
}

// restorer carries one restore through its steps.
type restorer struct {
	flags restoreFlags
	cfg   *Config
	log   *slog.Logger
	tell  io.Writer
	now   func() time.Time

	peppers  *tokenstore.Peppers
	manifest boltstore.Manifest
	cluster  *tokenstore.Position // of the backup, where a node of a cluster made it; else nil
	lastID   tokenstore.ID        // highest known of the backup, the old store and the log
	lastSeq  uint64
	old      origin            // the store that is replaced, and how far it had got
	replaced *boltstore.Store  // open while this runs; nil where there is none that can be read
	waiting  map[origin][]byte // events of outboxes that the log lacks
	past     admin.Past
	covered  string // why the log does not tell what came after the backup; "": it does
	undone   []admin.Undone
	lost     int
	aside    string // where the old store is now
	// usedAgain are the tokens with a number of uses, where nobody knows which of them
	// were used since the backup.
	usedAgain []tokenstore.ID
}

// origin is where an event came from.
type origin struct {
	store string
	seq   uint64
}

// wait notes the events that wait in the outbox of s.
func (r *restorer) wait(s *boltstore.Store) error {
	events, err := s.Pending(tokenstore.MaxOutbox)
	for _, e := range events {
		r.waiting[origin{s.ID(), e.Seq}] = e.Payload
	}
	return err
}

// run restores in steps, of which only the last two change anything that was
// there: the events that waited go into the audit log, and the finished store
// takes the old one's place under its name in one rename.
func (r *restorer) run(ctx context.Context, backup string) (err error) {
	r.waiting = make(map[origin][]byte)
	if r.cfg.TokenStore.Etcd.Enabled() {
		return fmt.Errorf("%s keeps the tokens in etcd, and each node fetches its copy from there: restore etcd with its own snapshot; or restore this backup with a configuration without tokenstore.etcd, and bring the store into etcd, under another prefix, with `tokenward migrate --to etcd`", r.flags.config)
	}
	if r.peppers, err = readPeppers(r.cfg.TokenStore.PepperFiles); err != nil {
		return err
	}
	if err := r.followLink(); err != nil {
		return err
	}
	release, err := r.holdOld()
	if err != nil {
		return err
	}
	defer release()
	dir, remove, err := makeWorkFolder(filepath.Dir(r.cfg.TokenStore.Path), "restore", r.tell)
	if err != nil {
		return fmt.Errorf("the new store cannot be made in %s, the folder of tokenstore.path: %w: make the folder, or run this as a user who may write in it", filepath.Dir(r.cfg.TokenStore.Path), errors.Unwrap(err))
	}
	defer func() { err = errors.Join(err, remove()) }()
	copied := filepath.Join(dir, workStore)
	if err := r.copyOut(copied, backup); err != nil {
		return err
	}
	if err := r.detach(copied); err != nil {
		return err
	}
	if err := r.prove(ctx, copied); err != nil {
		return err
	}
	if err := r.compare(ctx, copied); err != nil {
		return err
	}
	if r.cluster != nil && !r.flags.acceptUnrevoked {
		return fmt.Errorf("%s, so tokens that were revoked after %s may come back to life\nSay --accept-unrevoked, and look through the audit logs of the other nodes from then on for what they revoked, disabled and narrowed", r.covered, r.manifest.Time.Format(time.RFC3339))
	}
	if r.covered != "" && !r.flags.acceptUnrevoked {
		return fmt.Errorf("%s, so tokens that were revoked after %s may come back to life\nPut the audit log of that time at %s, or say --accept-unrevoked and look through `tokenward token list` afterwards", r.covered, r.manifest.Time.Format(time.RFC3339), r.cfg.Audit.Path)
	}
	if r.flags.dryRun {
		return nil
	}
	if err := r.finish(ctx, copied); err != nil {
		return err
	}
	return r.place(copied)
}

// followLink puts the store where a link at tokenstore.path leads, as the server does:
// on the disk that the operator chose for it, and not in place of the link.
func (r *restorer) followLink() error {
	path := r.cfg.TokenStore.Path
	info, err := os.Lstat(path)
	if err != nil {
		return nil //nolint:nilerr // there is none; making it says what else is wrong
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		end, err := filepath.EvalSymlinks(path)
		if err != nil {
			return fmt.Errorf("%s is a link to a file that is not there: mount the disk that it leads to, or remove the link to have the store made at its place", path)
		}
		cfg := *r.cfg
		cfg.TokenStore.Path, r.cfg = end, &cfg
		if info, err = os.Stat(end); err != nil {
			return err
		}
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is %s, not a file: correct tokenstore.path", path, fileKind(info.Mode()))
	}
	return nil
}

// holdOld keeps the store that is to be replaced from being served meanwhile,
// and reads how far it had got.
func (r *restorer) holdOld() (release func(), err error) {
	path := r.cfg.TokenStore.Path
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if !r.flags.replace && !r.flags.dryRun {
		return nil, fmt.Errorf("there is a token store at %s: add --replace to have it moved aside, or name another place in tokenstore.path", path)
	}
	old, err := boltstore.Open(boltstore.Options{Path: path, Peppers: r.peppers, Logger: r.log})
	switch {
	case err == nil:
		var seq uint64
		r.lastID, seq, err = old.Position()
		r.old, r.replaced = origin{old.ID(), seq}, old
		if err = errors.Join(err, r.wait(old)); err != nil {
			return nil, errors.Join(err, old.Close())
		}
		return func() { _ = old.Close() }, nil // it was only read
	case errors.Is(err, boltstore.ErrInUse):
		return nil, fmt.Errorf("%w\nA live store is never replaced", err)
	default:
		r.log.Warn("the store that is to be replaced cannot be read: its last changes may be missing from the audit log", "error", withConfig(err.Error(), r.flags.config))
	}
	return boltstore.Hold(path)
}

// copyOut copies the store's file out of the backup.
func (r *restorer) copyOut(path, backup string) error {
	in, err := os.Open(backup) //nolint:gosec // the operator names it
	if err != nil {
		return fmt.Errorf("%s %w: name a file that `tokenward backup` made, or correct its permissions", backup, fileProblem(err))
	}
	defer in.Close()
	if r.manifest, err = unpackBackup(path, in, r.peppers); err != nil {
		return fmt.Errorf("%s: %w", backup, err)
	}
	_, _, err = boltstore.Upgrade(path, 0)
	return err
}

// unpackBackup makes the store's file at path of the backup in, and waits for the disk.
func unpackBackup(path string, in *os.File, peppers *tokenstore.Peppers) (boltstore.Manifest, error) {
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // in a folder of this run's
	if err != nil {
		return boltstore.Manifest{}, err
	}
	manifest, err := boltstore.UnpackBackup(in, out, peppers)
	return manifest, errors.Join(err, out.Sync(), out.Close())
}

// clusterIDs is how many ids are passed over after the last one that a node of a
// cluster knew of: other nodes may have given them out since.
const clusterIDs = 1_000_000

// detach makes the copy a store of its own, where a node of a cluster made the
// backup.
func (r *restorer) detach(path string) error {
	p, is, err := boltstore.Follows(path)
	if err != nil || !is {
		return err
	}
	known, err := etcdstore.ParseName(p.Store)
	if err != nil {
		return err
	}
	if p.Revision == 0 || p.Gaps {
		return errors.New("the node that made the backup did not hold all tokens then: restore another one")
	}
	r.cluster, r.manifest.Store = &p, known.ID
	r.manifest.LastID += clusterIDs
	r.covered = "the backup is of one node of a cluster, and the audit log of one does not tell what all have done since"
	return boltstore.Detach(path, known.ID)
}

// prove checks everything in the copy.
func (r *restorer) prove(ctx context.Context, path string) error {
	s, err := boltstore.Open(boltstore.Options{Path: path, Peppers: r.peppers, Logger: r.log})
	if err != nil {
		return err
	}
	var faults []string
	err = s.Check(ctx, func(fault string) {
		if len(faults) < 20 {
			faults = append(faults, fault)
		}
	})
	if err = errors.Join(err, r.wait(s), s.Close()); err != nil {
		return err
	}
	if len(faults) > 0 {
		return fmt.Errorf("the backup is whole, but the store in it was not sound:\n  %s\nRestore an earlier one", strings.Join(faults, "\n  "))
	}
	return nil
}

// compare reads from the audit log what happened after the backup.
func (r *restorer) compare(ctx context.Context, path string) error {
	r.lastID, r.lastSeq = max(r.lastID, r.manifest.LastID), r.manifest.LastSeq
	if r.old.store == r.manifest.Store {
		r.lastSeq = max(r.lastSeq, r.old.seq)
	}
	if err := r.readLog(); err != nil {
		return err
	}
	s, service, err := r.openCopy(path)
	if err != nil {
		return err
	}
	r.undone, r.lost, err = service.Undone(ctx, &r.past)
	if err == nil && !r.knowsCounts() {
		r.usedAgain, err = countedTokens(ctx, s)
	}
	return errors.Join(err, s.Close())
}

// knowsCounts reports whether the store that is replaced knows what was used of limits
// since the backup.
func (r *restorer) knowsCounts() bool { return r.replaced != nil && r.old.store == r.manifest.Store }

// countedTokens are those that have a number of uses.
func countedTokens(ctx context.Context, s *boltstore.Store) (ids []tokenstore.ID, err error) {
	for t, err := range s.List(ctx, tokenstore.Query{AllAccounts: true, OldestFirst: true}) {
		if err != nil {
			return nil, err
		}
		if t.Limits.Uses != 0 {
			ids = append(ids, t.ID)
		}
	}
	return ids, nil
}

func (r *restorer) openCopy(path string) (*boltstore.Store, *admin.Service, error) {
	s, err := boltstore.Open(boltstore.Options{Path: path, Peppers: r.peppers, Logger: r.log})
	if err != nil {
		return nil, nil, err
	}
	service, err := admin.New(s, s, r.peppers, r.now, r.cfg.serviceOptions())
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	return s, service, nil
}

// finish makes the copy the store that is to be: its waiting events are in the
// audit log, its numbers go on above all, and what was taken away is away.
func (r *restorer) finish(ctx context.Context, path string) error {
	if err := r.deliver(); err != nil {
		return err
	}
	if err := boltstore.Raise(path, r.lastID, r.lastSeq, r.now()); err != nil {
		return err
	}
	s, service, err := r.openCopy(path)
	if err != nil {
		return err
	}
	if r.knowsCounts() {
		if err := carryCounts(ctx, r.replaced, s, r.manifest.LastID); err != nil {
			return errors.Join(fmt.Errorf("carry over what was used of limits: %w", err), s.Close())
		}
	}
	reason := fmt.Sprintf("the backup of %s was restored, %s taken away again", r.manifest.Time.Format(time.RFC3339), counted(len(r.undone), "change"))
	return errors.Join(service.TakeAgain(ctx, r.undone, reason), s.Close())
}

// place gives the copy the store's name. At no instant there is no store under it.
func (r *restorer) place(copied string) error {
	path := r.cfg.TokenStore.Path
	if _, err := os.Lstat(path); err == nil {
		if err := r.linkAside(path); err != nil {
			return fmt.Errorf("move the old store aside: %w", err)
		}
		if err := os.Rename(copied, path); err != nil {
			return err
		}
	} else if err := os.Link(copied, path); err != nil {
		return fmt.Errorf("put the store into its place: %w", err)
	}
	return boltstore.SyncDir(filepath.Dir(path))
}

// linkAside gives the old store a second name, one that is free: a restore that was
// broken off may have left one of the same second.
func (r *restorer) linkAside(path string) error {
	stem := fmt.Sprintf("%s.replaced-%s", path, r.now().UTC().Format("20060102T150405Z"))
	r.aside = stem
	for n := 2; ; n++ {
		err := os.Link(path, r.aside)
		if !errors.Is(err, fs.ErrExist) || n > 100 {
			return err
		}
		r.aside = fmt.Sprintf("%s-%d", stem, n)
	}
}
