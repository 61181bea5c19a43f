// Package boltstore keeps tokens in one bbolt file: the whole truth on a single
// node, and a node's local copy in a cluster.
//
// # What is written, in which order
//
// One goroutine owns writing. It takes every change that waits, runs each on an
// overlay of its own, so that a refused one leaves nothing behind, and commits
// them in one bolt transaction: the data pages, fdatasync, the header page that
// makes them valid, fdatasync. Only then are the observers told, and only then
// are the callers answered. A change, its indexes and its audit events are in
// the same transaction, so a kill at any instant leaves all of a change or
// nothing of it, and all of it once its caller was answered.
//
// # Trust
//
// With a pepper every record is sealed. The indexes are not: whoever edits them
// can hide tokens or bring up an error, but a record found under another
// token's id, or under a digest that it does not hold, is refused.
package boltstore

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"tokenward/tokenstore"
)

var (
	_ tokenstore.Reader = (*Store)(nil)
	_ tokenstore.Writer = (*Store)(nil)
)

// Options say where a store is and how it is used.
type Options struct {
	Path    string              // the file
	Peppers *tokenstore.Peppers // nil: records are not sealed

	// OnChange is told of every token that a commit changed, in commit order,
	// after the commit and before the change is answered; it delays all writing
	// while it runs. nil: nobody is told.
	OnChange func(tokenstore.Change)

	// Logger takes warnings about the file; nil drops them.
	Logger *slog.Logger

	// Now stamps every commit, see [Store.LastTime]. nil, and a zero time: none.
	Now func() time.Time

	// ReplicaOf is the ID of the store elsewhere that this one is a copy of, and
	// follows by [Store.Apply]; "": it is a store of its own.
	ReplicaOf string

	// ReadOnly opens the store without writing anything, not even its permissions.
	// Others can do the same meanwhile, and nobody can write.
	ReadOnly bool

	// LockTimeout is how long to wait for another process to let go of the file,
	// 0: one second.
	LockTimeout time.Duration
}

const (
	// The reserved address space, so that the file can grow to this size before
	// readers have to wait for it to be mapped anew. It costs no memory.
	mapBytes = 1 << 30

	// The file grows by this much, which is a hole in it at first. Each time
	// costs one more fsync.
	growBytes = 4 << 20
)

// Store is an open store. All methods may be called at once from many
// goroutines.
type Store struct {
	path     string
	db       *bolt.DB
	file     *os.File // which db closes
	peppers  *tokenstore.Peppers
	onChange func(tokenstore.Change)
	clock    func() time.Time // nil: commits bear no time
	lastTime time.Time        // of the last commit before this process
	id       string
	replica  bool                                // it only follows
	position atomic.Pointer[tokenstore.Position] // nil: it follows nothing
	formats  atomic.Pointer[tokenstore.Formats]
	wake     chan struct{}

	queue     chan *job
	closing   chan struct{}
	closeOnce sync.Once
	written   chan struct{} // closed when the writer has ended
	closed    error         // what Close returns; set before written is read

	// Owned by the writer goroutine.
	lastID tokenstore.ID // the last id given out, also by changes that failed
	now    tally         // as of the last commit
	broken error         // why no more changes are taken: bolt panicked, or the disk did not confirm
	stuck  bool          // and even its lock cannot be freed

	commit func(*bolt.Tx) error // (*bolt.Tx).Commit; tests put faults here

	stats  counters
	filter digestFilter
}

// Open opens a store that [Create] made. It refuses everything else and leaves
// it as it is.
func Open(o Options) (*Store, error) {
	s, err := open(o)
	if err != nil {
		return nil, fmt.Errorf("open token store: %w", err)
	}
	return s, nil
}

func open(o Options) (*Store, error) {
	db, file, err := openBoltFile(o.Path, o.LockTimeout, o.ReadOnly)
	if err != nil {
		return nil, err
	}
	s := newStore(db, o)
	s.file = file
	if err := s.begin(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if o.ReadOnly {
		go s.write() // which answers that it cannot
		return s, nil
	}
	if err := tighten(o); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if err := anchor(o.Path, db.Info().PageSize); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	go s.write()
	if s.peppers != nil {
		if err := s.recordPepper(); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

func newStore(db *bolt.DB, o Options) *Store {
	return &Store{
		path: o.Path, db: db, peppers: o.Peppers, replica: o.ReplicaOf != "", onChange: o.OnChange, clock: o.Now,
		wake:    make(chan struct{}, 1),
		queue:   make(chan *job),
		closing: make(chan struct{}), written: make(chan struct{}),
		commit: (*bolt.Tx).Commit,
		filter: digestFilter{want: make(chan struct{}, 1)},
	}
}

// begin reads what the store says about itself and checks that this program,
// with this configuration, may use it.
func (s *Store) begin() error {
	return s.view(func(tx *bolt.Tx) error {
		m, err := readMeta(tx, s.path)
		if err != nil {
			return err
		}
		if err := m.checkSchema(s.path); err != nil {
			return err
		}
		if err := m.checkPeppers(s.path, s.peppers); err != nil {
			return err
		}
		for _, name := range buckets {
			if tx.Bucket(name) == nil {
				return damaged(s.path, fmt.Sprintf("it lacks the part %q", name))
			}
		}
		if err := s.checkReplica(tx); err != nil {
			return err
		}
		s.id = m.id
		s.lastTime = readTime(tx)
		s.formats.Store(m.formats())
		s.lastID = tokenstore.ID(tx.Bucket(bucketTokens).Sequence())
		s.now = readTally(tx)
		s.stats.adopt(s.now)
		if s.now.outbox > 0 {
			s.signal()
		}
		return nil
	})
}

// tighten takes the file from the eyes of other users. It is the last step of
// opening, so that a refused file keeps even its permissions.
func tighten(o Options) error {
	info, err := os.Stat(o.Path)
	if err != nil {
		return err
	}
	loose := info.Mode().Perm() &^ 0o600
	if loose == 0 {
		return nil
	}
	if err := os.Chmod(o.Path, 0o600); err != nil {
		return fmt.Errorf("%s can be read or written by other users (%v) and that cannot be changed: %w: as its owner run `chmod 600 %s`", o.Path, info.Mode().Perm(), err, o.Path)
	}
	if o.Logger != nil {
		o.Logger.Warn("token store could be read or written by other users; permissions tightened to 0600", "path", o.Path, "were", info.Mode().Perm().String())
	}
	return nil
}

// Create makes a new, empty store and opens it. It never touches a file that
// is there already: the store is built beside its place and linked into it.
func Create(o Options) (*Store, error) {
	if err := create(o); err != nil {
		return nil, fmt.Errorf("make token store: %w", err)
	}
	return Open(o)
}

func create(o Options) (err error) {
	exists := fmt.Errorf("%s exists already: use it as it is, or name another place in tokenstore.path", o.Path)
	if _, err := os.Lstat(o.Path); err == nil {
		if _, err := os.Stat(o.Path); errors.Is(err, fs.ErrNotExist) {
			exists = fmt.Errorf("%s exists already, as a link to a file that is not there: mount the disk that it leads to, correct the link, or remove it", o.Path)
		}
		return fmt.Errorf("%w (%w)", exists, fs.ErrExist)
	}
	dir := filepath.Dir(o.Path)
	tmp, err := os.CreateTemp(dir, ".tokenward-new-*")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no directory %[1]s: make it with `mkdir -p %[1]s`, or correct tokenstore.path: %[2]w", whole(dir), fs.ErrNotExist)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the directory %s cannot be written by this user: change its owner, or name another place in tokenstore.path: %w", whole(dir), fs.ErrPermission)
	case errors.Is(err, syscall.EROFS):
		return readOnlyError(o.Path)
	case err != nil:
		return err
	}
	defer func() {
		if rerr := os.Remove(tmp.Name()); err == nil {
			err = rerr
		}
	}()
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := fill(tmp.Name(), o.Peppers, o.ReplicaOf); err != nil {
		return explain(o.Path, err)
	}
	switch err := os.Link(tmp.Name(), o.Path); {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w (%w)", exists, fs.ErrExist)
	case err != nil:
		return err
	}
	return SyncDir(dir)
}

// fill makes an empty bolt file an empty store.
func fill(path string, peppers *tokenstore.Peppers, replicaOf string) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	return errors.Join(db.Update(func(tx *bolt.Tx) error { return writeSchema(tx, peppers, replicaOf) }), db.Close())
}

// SyncDir waits until the disk has the names of the files in dir, as they are now.
func SyncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // the operator named it
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// openBolt opens the file at path if it is a sound bolt file.
func openBolt(path string, lockTimeout time.Duration, readOnly bool) (*bolt.DB, error) {
	db, _, err := openBoltFile(path, lockTimeout, readOnly)
	return db, err
}

// openBoltFile is openBolt, and returns the file as well, which is db's to close.
func openBoltFile(path string, lockTimeout time.Duration, readOnly bool) (db *bolt.DB, file *os.File, err error) {
	defer recovering(path, &err)()
	if lockTimeout == 0 {
		lockTimeout = time.Second
	}
	db, err = bolt.Open(path, 0o600, &bolt.Options{
		Timeout:         lockTimeout,
		ReadOnly:        readOnly,
		FreelistType:    bolt.FreelistArrayType, // the map is sorted anew for each commit: 2 ms with 14,000 free pages
		InitialMmapSize: mapBytes,
		OpenFile: func(path string, flag int, mode fs.FileMode) (*os.File, error) {
			var err error
			file, err = openSound(path, flag&^os.O_CREATE, mode)
			return file, err
		},
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, nil, lockedError(path)
	}
	if err != nil && (errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrChecksum) || errors.Is(err, bolterrors.ErrVersionMismatch)) {
		return nil, nil, damaged(path, err.Error())
	}
	if err != nil {
		return nil, nil, err
	}
	db.AllocSize = growBytes
	return db, file, nil
}

// anchor puts on the disk the state that was read. A commit that a crash, or a failed
// sync, cut off from its confirmation is seen from now on, so it must not be lost to
// the next power failure. A sync by itself is not enough: pages whose writing failed
// count as written. So both header pages are written again, as they are; what they
// lead to was synced before them.
func anchor(path string, pageSize int) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0) //nolint:gosec // the operator named it
	if err != nil {
		return err
	}
	headers := make([]byte, 2*pageSize)
	_, err = f.ReadAt(headers, 0)
	if err == nil {
		_, err = f.WriteAt(headers, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s cannot be written to disk: %w: check the disk, then try again", path, err)
	}
	return nil
}

// Close waits for the change under way and closes the file. Changes and reads
// that come later get ErrClosed. It may be called more than once.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.closing)
		<-s.written
		s.filter.gathering.Wait()
		if s.stuck {
			s.closed = s.broken
			return
		}
		s.closed = s.db.Close()
	})
	return s.closed
}

// ID returns the random name that the store got when it was made.
func (s *Store) ID() string { return s.id }

// Path returns where the file is.
func (s *Store) Path() string { return s.path }

// Formats returns the prefixes that secrets of this store ever bore.
func (s *Store) Formats() *tokenstore.Formats { return s.formats.Load() }

// view runs fn in a read transaction. A damaged page gives an error instead of
// ending the program.
func (s *Store) view(fn func(tx *bolt.Tx) error) (err error) {
	defer recovering(s.path, &err)()
	err = s.db.View(fn)
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return tokenstore.ErrClosed
	}
	return err
}

// meta is what a store says about itself.
type meta struct {
	schema uint64
	id     string
	traits tokenstore.Traits
}

func (m *meta) checkSchema(path string) error {
	switch {
	case m.schema > schemaVersion:
		return fmt.Errorf("%s was written by a newer tokenward (schema %d, this one knows %d): use that version, or restore a backup made by this one", path, m.schema, schemaVersion)
	case m.schema < schemaVersion:
		return fmt.Errorf("%s was written by an older tokenward (schema %d, this one needs %d): copy the file to a safe place, then run `tokenward migrate --config F`", path, m.schema, schemaVersion)
	}
	return nil
}

func (m *meta) checkPeppers(path string, have *tokenstore.Peppers) error {
	switch {
	case len(m.traits.Peppers) == 0 && have != nil:
		return fmt.Errorf("%s was made without a pepper, so its records are not sealed: remove tokenstore.pepper_files, or make a new store with `tokenward init --config F` and issue the tokens anew", path)
	case len(m.traits.Peppers) > 0 && have == nil:
		return fmt.Errorf("%s is sealed with %s, and tokenstore.pepper_files is empty: name the file in it", path, peppersText(m.traits.Peppers))
	}
	if missing := m.traits.Lacks(have); len(missing) > 0 {
		return fmt.Errorf("%s is sealed with %s, which tokenstore.pepper_files does not hold: add the file to the end of the list", path, peppersText(missing))
	}
	return nil
}

func peppersText(ids []tokenstore.PepperID) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	if len(names) == 1 {
		return "the pepper of id " + names[0]
	}
	return "the peppers of ids " + strings.Join(names, ", ")
}
