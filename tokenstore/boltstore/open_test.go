package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// newStore makes a store in a directory of its own.
func newTestStore(t testing.TB, o Options) *Store {
	t.Helper()
	if o.Path == "" {
		o.Path = filepath.Join(t.TempDir(), "tokens.db")
	}
	s, err := Create(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// closedStore makes a store with a few tokens and returns its path.
func closedStore(t testing.TB, peppers *tokenstore.Peppers, tokens int) string {
	t.Helper()
	s := newTestStore(t, Options{Peppers: peppers})
	load(t, s, tokens)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return s.Path()
}

// damage changes a closed store with bolt alone.
func damage(t *testing.T, path string, with func(tx *bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(with), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func setSchema(t *testing.T, path string, version uint64) {
	damage(t, path, func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keySchema, number(version)) })
}

// TestUnsuitableFileIsRefusedAndLeftAlone holds each refusal to saying what
// the file is and what to do, and to not touching it.
func TestUnsuitableFileIsRefusedAndLeftAlone(t *testing.T) {
	write := func(content []byte) func(t *testing.T) string {
		return func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "tokens.db")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
	}
	store := func(with func(t *testing.T, path string)) func(t *testing.T) string {
		return func(t *testing.T) string {
			path := closedStore(t, nil, 300)
			with(t, path)
			return path
		}
	}
	truncate := func(share int64) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			h, err := readHeader(f, path)
			err = errors.Join(err, f.Close(), os.Truncate(path, int64(h.pages*h.pageSize)*share/100)) //nolint:gosec // small
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	patch := func(offset int64, b ...byte) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteAt(b, offset)
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	page := int64(os.Getpagesize())
	for _, test := range []struct {
		name    string
		file    func(t *testing.T) string
		peppers *tokenstore.Peppers
		is, do  string // what the error says
	}{
		{"missing", func(t *testing.T) string { return filepath.Join(t.TempDir(), "typo.db") }, nil,
			"there is no token store at", "`tokenward init --config F`"},
		{"missing directory", func(t *testing.T) string { return filepath.Join(t.TempDir(), "no", "tokens.db") }, nil,
			"there is no token store at", "`tokenward init --config F`"},
		{"link to nothing", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "tokens.db")
			if err := os.Symlink(path+".away", path); err != nil {
				t.Fatal(err)
			}
			if _, err := Create(Options{Path: path}); err == nil || !strings.Contains(err.Error(), "exists already, as a link to a file that is not there") {
				t.Errorf("created: %v", err)
			}
			return path
		}, nil,
			"is a link to a file that is not there", "correct the link, or remove it"},
		{"directory", func(t *testing.T) string { return t.TempDir() }, nil,
			"is a directory", "correct tokenstore.path"},
		{"empty", write(nil), nil,
			"is empty, not a token store", "remove it"},
		{"text", write([]byte("tokenstore:\n  path: tokenward.db\n")), nil,
			"is not a token store", "correct tokenstore.path"},
		{"zeros", write(make([]byte, 4*page)), nil,
			"is not a token store", "correct tokenstore.path"},
		{"long text", write(bytes.Repeat([]byte("log line\n"), 10_000)), nil,
			"is not a token store", "correct tokenstore.path"},
		{"another program's bolt file", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "tokens.db")
			damage(t, path, func(tx *bolt.Tx) error {
				_, err := tx.CreateBucket([]byte("meta"))
				return err
			})
			return path
		}, nil, "is the bolt file of another program", "make a store elsewhere"},
		{"empty bolt file", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "tokens.db")
			damage(t, path, func(*bolt.Tx) error { return nil })
			return path
		}, nil, "is the bolt file of another program", "make a store elsewhere"},
		{"cut to half", store(truncate(50)), nil, "the rest was cut off", "restore a backup"},
		{"cut to its headers", store(truncate(10)), nil, "the rest was cut off", "restore a backup"},
		{"both headers overwritten", store(func(t *testing.T, path string) {
			patch(40, 0xFF, 0xFF)(t, path)
			patch(page+40, 0xFF, 0xFF)(t, path)
		}), nil, "both of its headers are", "restore a backup"},
		{"pages overwritten", store(func(t *testing.T, path string) {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			patch(2*page, bytes.Repeat([]byte{0xA5}, int(info.Size()-2*page))...)(t, path)
		}), nil, "is damaged", "restore a backup"},
		{"bucket missing", store(func(t *testing.T, path string) {
			damage(t, path, func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketDigests) })
		}), nil, `it lacks the part "digests"`, "restore a backup"},
		{"no schema", store(func(t *testing.T, path string) {
			damage(t, path, func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Delete(keySchema) })
		}), nil, "does not say its schema", "restore a backup"},
		{"newer schema", store(func(t *testing.T, path string) { setSchema(t, path, schemaVersion+1) }), nil,
			fmt.Sprintf("newer tokenward (schema %d, this one knows %d)", schemaVersion+1, schemaVersion), "use that version"},
		{"older schema", store(func(t *testing.T, path string) { setSchema(t, path, schemaVersion-1) }), nil,
			"older tokenward (schema 0, this one needs 1)", "copy the file to a safe place, then run `tokenward migrate --config F`"},
		{"pepper for a store without", store(func(*testing.T, string) {}), testPeppers(t, "a"),
			"was made without a pepper", "remove tokenstore.pepper_files"},
		{"no pepper for a store with one", func(t *testing.T) string { return closedStore(t, testPeppers(t, "a"), 10) }, nil,
			"is sealed with the pepper of id " + testPeppers(t, "a").IDs()[0].String(), "name the file in it"},
		{"another pepper", func(t *testing.T) string { return closedStore(t, testPeppers(t, "a"), 10) }, testPeppers(t, "b"),
			"is sealed with the pepper of id " + testPeppers(t, "a").IDs()[0].String(), "add the file to the end of the list"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := test.file(t)
			before := fingerprint(t, path)
			s, err := Open(Options{Path: path, Peppers: test.peppers})
			if err == nil {
				t.Fatal(errors.Join(errors.New("the file was opened"), s.Close()))
			}
			for _, want := range []string{path, test.is, test.do} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q:\n%v", want, err)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has several lines:\n%v", err)
			}
			if after := fingerprint(t, path); after != before {
				t.Error("the file was changed")
			}
		})
	}
}

// fingerprint tells whether anything about the file at path changed.
func fingerprint(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "missing"
	}
	if err != nil {
		t.Fatal(err)
	}
	var content []byte
	if info.Mode().IsRegular() {
		if content, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprint(info.Mode(), info.ModTime(), len(content), string(content))
}

func TestMissingStoreCanBeToldApart(t *testing.T) {
	_, err := Open(Options{Path: filepath.Join(t.TempDir(), "typo.db")})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestLockedFileNamesItsHolder(t *testing.T) {
	s := newTestStore(t, Options{})
	_, err := Open(Options{Path: s.Path(), LockTimeout: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "is in use by another process, it may be process "+fmt.Sprint(os.Getpid())) {
		t.Errorf("got %v", err)
	}
}

func TestLockHoldersAreReadFromTheKernelsList(t *testing.T) {
	const list = `1: FLOCK  ADVISORY  WRITE 1234 fd:00:5678 0 EOF
1: -> FLOCK  ADVISORY  WRITE 99 fd:00:5678 0 EOF
2: POSIX  ADVISORY  WRITE 55 fd:00:5678 0 EOF
3: FLOCK  ADVISORY  READ  4321 00:2f:5678 0 EOF
4: FLOCK  ADVISORY  WRITE 7 fd:00:678 0 EOF
5: FLOCK  ADVISORY  WRITE -1 fd:00:5678 0 EOF
6: FLOCK
`
	if got := fmt.Sprint(parseLocks(strings.NewReader(list), 5678)); got != "[1234 4321]" {
		t.Errorf("got %v", got)
	}
}

func TestWidePermissionsAreTightened(t *testing.T) {
	path := closedStore(t, nil, 1)
	if err := os.Chmod(path, 0o644); err != nil { //nolint:gosec // the fault under test
		t.Fatal(err)
	}
	var log bytes.Buffer
	s, err := Open(Options{Path: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // closed without writes
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("permissions are %v, %v", info.Mode(), err)
	}
	if !strings.Contains(log.String(), "tightened") {
		t.Errorf("the log says %q", log.String())
	}
}

func TestCreateNeverTouchesWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	for name, put := range map[string]func(path string) error{
		"store":     func(path string) error { return os.Rename(closedStore(t, nil, 1), path) },
		"empty":     func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"text":      func(path string) error { return os.WriteFile(path, []byte("precious"), 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"link":      func(path string) error { return os.Symlink("nowhere", path) },
	} {
		path := filepath.Join(dir, name)
		if err := put(path); err != nil {
			t.Fatal(err)
		}
		_, err := Create(Options{Path: path})
		if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "exists already") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "text")); string(b) != "precious" || err != nil {
		t.Errorf("the file was changed: %q, %v", b, err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 5 {
		t.Errorf("something was left behind: %v", entries)
	}
}

// TestMissingStoreIsNamedFromTheRoot: who starts the program in another folder
// must see where it looked, before making a second store there.
func TestMissingStoreIsNamedFromTheRoot(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	_, err := Open(Options{Path: "tokens.db"})
	if err == nil || !strings.Contains(err.Error(), "there is no token store at "+filepath.Join(dir, "tokens.db")+":") {
		t.Errorf("got %v", err)
	}
}

func TestCreateSaysWhatTheDirectoryLacks(t *testing.T) {
	_, err := Create(Options{Path: filepath.Join(t.TempDir(), "no", "tokens.db")})
	if err == nil || !strings.Contains(err.Error(), "make it with `mkdir -p") {
		t.Errorf("got %v", err)
	}
	if os.Getuid() == 0 {
		return // root writes everywhere
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil { //nolint:gosec // the fault under test
		t.Fatal(err)
	}
	_, err = Create(Options{Path: filepath.Join(dir, "tokens.db")})
	if err == nil || !strings.Contains(err.Error(), "cannot be written by this user") {
		t.Errorf("got %v", err)
	}
}

func TestNewStoreIsPrivateAndNamed(t *testing.T) {
	a, b := newTestStore(t, Options{}), newTestStore(t, Options{})
	if a.ID() == b.ID() || len(a.ID()) < 20 {
		t.Errorf("ids %q and %q", a.ID(), b.ID())
	}
	info, err := os.Stat(a.Path())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("permissions are %v, %v", info.Mode(), err)
	}
	check(t, a)
}

func TestNewPepperIsRecordedBesideTheOld(t *testing.T) {
	path := closedStore(t, testPeppers(t, "a"), 3)
	both := testPeppers(t, "b", "a")
	s, err := Open(Options{Path: path, Peppers: both})
	if err != nil {
		t.Fatal(err)
	}
	load(t, s, 3)
	check(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, peppers := range []*tokenstore.Peppers{testPeppers(t, "a"), testPeppers(t, "b")} {
		if s, err := Open(Options{Path: path, Peppers: peppers}); err == nil {
			t.Error("opened with one of two peppers", s.Close())
		}
	}
	s, err = Open(Options{Path: path, Peppers: testPeppers(t, "a", "b")})
	if err != nil {
		t.Fatal(err)
	}
	check(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestPrefixIsRecordedForGood(t *testing.T) {
	s := newTestStore(t, Options{})
	if got := s.Formats().Prefixes(); len(got) != 0 {
		t.Errorf("a new store knows %v", got)
	}
	for _, prefix := range []string{"tw", "api", "tw"} {
		if err := s.RecordPrefix(t.Context(), prefix); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.RecordPrefix(t.Context(), "No Prefix"); err == nil {
		t.Error("an invalid prefix was recorded")
	}
	const want = "[api tw]"
	if got := fmt.Sprint(s.Formats().Prefixes()); got != want {
		t.Errorf("prefixes are %v", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(Options{Path: s.Path()})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close() //nolint:errcheck // closed without writes
	if got := fmt.Sprint(again.Formats().Prefixes()); got != want {
		t.Errorf("after reopening prefixes are %v", got)
	}
}

func TestClosedStoreSaysSo(t *testing.T) {
	s := newTestStore(t, Options{})
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	_, byID := s.ByID(t.Context(), 1)
	_, count := s.Count(t.Context(), tokenstore.Query{})
	change := s.Change(t.Context(), func(tokenstore.Tx) error { return nil })
	_, pending := s.Pending(1)
	for _, err := range []error{byID, count, change, pending, s.Done(1)} {
		if !errors.Is(err, tokenstore.ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
}

// TestOlderStoreIsBroughtUp uses a made-up layout 0, in which no list of
// children was kept.
func TestOlderStoreIsBroughtUp(t *testing.T) {
	steps := []upgrade{{from: 0, run: func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket(bucketChildren)
		if err != nil {
			return err
		}
		return tx.Bucket(bucketTokens).ForEach(func(_, v []byte) error {
			tok, err := tokenstore.DecodeRecord(v[1:])
			if err != nil {
				return err
			}
			return replace(b, nil, placeOf(tok).child)
		})
	}}}
	old := func(t *testing.T) *bolt.DB {
		path := closedStore(t, nil, 50)
		damage(t, path, func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketChildren) })
		setSchema(t, path, 0)
		db, err := openBolt(path, 0, false)
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	t.Run("in one step", func(t *testing.T) {
		db := old(t)
		path := db.Path()
		from, to, err := runUpgrades(db, steps, 1)
		if from != 0 || to != 1 || err != nil {
			t.Fatalf("from %d to %d, %v", from, to, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		check(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a step that fails leaves the file as it was", func(t *testing.T) {
		db := old(t)
		path := db.Path()
		broken := append(steps[:1:1], upgrade{from: 1, run: func(tx *bolt.Tx) error {
			return errors.Join(tx.DeleteBucket(bucketTokens), storetest.ErrFault)
		}})
		from, to, err := runUpgrades(db, broken, 2)
		if from != 0 || to != 1 || !errors.Is(err, storetest.ErrFault) {
			t.Fatalf("from %d to %d, %v", from, to, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		check(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("no way there", func(t *testing.T) {
		db := old(t)
		for _, steps := range [][]upgrade{nil, steps} { // the second would stop half way
			_, to, err := runUpgrades(db, steps, 2)
			if to != 0 || err == nil || !strings.Contains(err.Error(), "upgrade with the release before this one first") {
				t.Errorf("to %d, %v", to, err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("present", func(t *testing.T) {
		from, to, err := Upgrade(closedStore(t, nil, 1), 0)
		if from != schemaVersion || to != schemaVersion || err != nil {
			t.Errorf("from %d to %d, %v", from, to, err)
		}
	})
	t.Run("newer", func(t *testing.T) {
		path := closedStore(t, nil, 1)
		setSchema(t, path, schemaVersion+1)
		if from, _, err := Upgrade(path, 0); from != 0 || err == nil || !strings.Contains(err.Error(), "use the newer program") {
			t.Errorf("from %d, %v", from, err)
		}
	})
}

// TestPipeInTheStoresPlaceIsNotWaitedFor holds that nothing waits for somebody who writes
// into it.
func TestPipeInTheStoresPlaceIsNotWaitedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	_, held := Hold(path)
	_, read := openBolt(path, 0, true)
	_, written := openBolt(path, 0, false)
	for _, err := range []error{held, read, written} {
		if err == nil || !strings.Contains(err.Error(), "no regular file: correct tokenstore.path") {
			t.Errorf("got %v", err)
		}
	}
}

// TestRecordOutOfPlaceIsRefused edits the file as an attacker could who cannot
// make seals.
func TestRecordOutOfPlaceIsRefused(t *testing.T) {
	peppers := testPeppers(t, "a")
	get := func(tx *bolt.Tx, id uint64) []byte { return bytes.Clone(tx.Bucket(bucketTokens).Get(number(id))) }
	for _, test := range []struct {
		name string
		edit func(tx *bolt.Tx) error
		find func(s *Store) error
	}{
		{"another token's record", func(tx *bolt.Tx) error {
			return tx.Bucket(bucketTokens).Put(number(2), get(tx, 3))
		}, func(s *Store) error { _, err := s.ByID(t.Context(), 2); return err }},
		{"a widened record", func(tx *bolt.Tx) error {
			v := get(tx, 2)
			return tx.Bucket(bucketTokens).Put(number(2), bytes.Replace(v, []byte("accounts"), []byte("*ccounts"), 1))
		}, func(s *Store) error { _, err := s.ByID(t.Context(), 2); return err }},
		{"a record without seal", func(tx *bolt.Tx) error {
			v := get(tx, 2)
			return tx.Bucket(bucketTokens).Put(number(2), v[:len(v)-40])
		}, func(s *Store) error { _, err := s.ByID(t.Context(), 2); return err }},
		{"a known secret's digest led to another token", func(tx *bolt.Tx) error {
			d := storetest.SampleDigest(1 << 40)
			return tx.Bucket(bucketDigests).Put(d[:], number(2))
		}, func(s *Store) error { _, err := s.ByDigest(t.Context(), storetest.SampleDigest(1<<40)); return err }},
		{"a token in another account's list", func(tx *bolt.Tx) error {
			return tx.Bucket(bucketAccounts).Put(key(77, 2), []byte{byte(tokenstore.StateActive)})
		}, func(s *Store) error {
			l := listAccount(77)
			_ = s.db.Update(func(tx *bolt.Tx) error {
				c := chunk{all: 1, listed: 1, sumAll: 1, sumListed: 1}
				return tx.Bucket(bucketCounts).Put(l.boundary(0), c.encode())
			})
			for tok, err := range s.List(t.Context(), tokenstore.Query{Account: 77}) {
				if tok != nil {
					t.Error("the list shows it")
				}
				return err
			}
			return nil
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := closedStore(t, peppers, 5)
			damage(t, path, test.edit)
			s, err := Open(Options{Path: path, Peppers: peppers})
			if err != nil {
				t.Fatal(err)
			}
			if err := test.find(s); err == nil {
				t.Error("it was accepted")
			}
			faults := 0
			if err := s.Check(t.Context(), func(string) { faults++ }); err != nil {
				t.Error(err)
			}
			if faults == 0 && test.name != "a known secret's digest led to another token" {
				t.Error("Check finds nothing")
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestCheckFindsEveryKindOfFault breaks one thing at a time.
func TestCheckFindsEveryKindOfFault(t *testing.T) {
	put := func(bucket, k, v []byte) func(tx *bolt.Tx) error {
		return func(tx *bolt.Tx) error { return tx.Bucket(bucket).Put(k, v) }
	}
	remove := func(bucket []byte) func(tx *bolt.Tx) error {
		return func(tx *bolt.Tx) error {
			k, _ := tx.Bucket(bucket).Cursor().First()
			return tx.Bucket(bucket).Delete(k)
		}
	}
	all := listAll()
	for _, test := range []struct {
		name string
		edit func(tx *bolt.Tx) error
		want string
	}{
		{"token gone", remove(bucketTokens), "which cannot be read"},
		{"token unreadable", put(bucketTokens, number(1), []byte{1, 9}), "record has version 9"},
		{"digest gone", remove(bucketDigests), "does not lead to it"},
		{"digest to nowhere", put(bucketDigests, make([]byte, 32), number(1<<40)), "no id that was given out"},
		{"account entry gone", remove(bucketAccounts), "not in the accounts list"},
		{"account entry too many", put(bucketAccounts, key(9, 1), []byte{1}), "an account not its own"},
		{"owner entry gone", remove(bucketOwners), "not in the owners list"},
		{"owner entry too many", put(bucketOwners, key(9, 9, 1), []byte{1}), "an owner not its own"},
		{"child gone", remove(bucketChildren), "not among the children"},
		{"child too many", put(bucketChildren, key(9, 2), nil), "did not make it"},
		{"end gone", remove(bucketEnds), "not in the list of ends"},
		{"end too many", put(bucketEnds, key(9, 1), nil), "a time not its own"},
		{"count wrong", func(tx *bolt.Tx) error {
			c := all.head(tx)
			c.listed++
			return tx.Bucket(bucketCounts).Put(all.boundary(0), c.encode())
		}, "noted as"},
		{"sum wrong", func(tx *bolt.Tx) error {
			c := all.head(tx)
			c.sumAll++
			return tx.Bucket(bucketCounts).Put(all.boundary(0), c.encode())
		}, "a list has 20 tokens"},
		{"states wrong", put(bucketCounts, keyStates, key(1, 2, 3)), "tokens by state"},
		{"event gone", func(tx *bolt.Tx) error {
			return errors.Join(tx.Bucket(bucketOutbox).Put(number(3), nil), tx.Bucket(bucketOutbox).SetSequence(3))
		}, "lacks the events between 1 and 3"},
		{"last event gone", func(tx *bolt.Tx) error { return tx.Bucket(bucketOutbox).SetSequence(3) }, "lacks the events from 2 to 3"},
		{"answer without end", put(bucketAnswers, make([]byte, 32), make([]byte, 9)), "a kept answer has no end"},
		{"end without answer", put(bucketAnswerEnds, make([]byte, 40), nil), "0 answers are kept, with 1 ends"},
		{"ids start again", func(tx *bolt.Tx) error { return tx.Bucket(bucketTokens).SetSequence(5) }, "beyond the last id given out"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := closedStore(t, nil, 20)
			damage(t, path, test.edit)
			s, err := Open(Options{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close() //nolint:errcheck // closed without writes
			var faults []string
			if err := s.Check(t.Context(), func(f string) { faults = append(faults, f) }); err != nil {
				t.Error(err)
			}
			if !strings.Contains(strings.Join(faults, "\n"), test.want) {
				t.Errorf("want %q among:\n%s", test.want, strings.Join(faults, "\n"))
			}
		})
	}
}

func TestEndingListsWhatEndsWhen(t *testing.T) {
	s := newTestStore(t, Options{})
	s.db.NoSync = true
	day := func(n int) time.Time { return storetest.Epoch.AddDate(0, 0, n) }
	const n = 3 * stepTokens
	err := s.Change(t.Context(), func(tx tokenstore.Tx) error {
		tx.Emit([]byte("made"))
		for i := range n {
			id, err := tx.NewID()
			if err != nil {
				return err
			}
			tok := storetest.Sample(id, 1, 1)
			tok.Expiry = tokenstore.EndsAt(day(n - i))
			switch i {
			case 0:
				tok.Expiry = tokenstore.Never()
			case 1:
				tok.State, tok.EndedAt = tokenstore.StateRevoked, day(1)
			}
			if err := tx.Put(tok); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ending := func(from, until time.Time) (ids []tokenstore.ID) {
		for id, err := range s.Ending(t.Context(), from, until) {
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		return ids
	}
	if got := fmt.Sprint(ending(day(1), day(4))); got != fmt.Sprint([]int{2, n, n - 1, n - 2}) {
		t.Errorf("from day 1 to 4 end %v", got)
	}
	if got := len(ending(time.Time{}, day(2*n))); got != n-1 {
		t.Errorf("%d end at all, want %d", got, n-1)
	}
	for range s.Ending(t.Context(), day(0), day(9)) {
		break
	}
}

func TestHeaderIsReadFromEitherPage(t *testing.T) {
	path := closedStore(t, nil, 10)
	for _, page := range []int64{0, int64(os.Getpagesize())} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		binary.NativeEndian.PutUint64(b[page+pageHeaderLen+56:], 0) // the checksum
		hurt := filepath.Join(t.TempDir(), "hurt.db")
		if err := os.WriteFile(hurt, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Options{Path: hurt})
		if err != nil {
			t.Errorf("with the header at %d destroyed: %v", page, err)
			continue
		}
		check(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFileThatIsTakenAwayIsMissed: what is acknowledged from then on is gone at the
// next start.
func TestFileThatIsTakenAwayIsMissed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	s, err := Create(Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	look := func(when string, want bool) {
		t.Helper()
		if got := s.Stats().Displaced; got != want {
			t.Errorf("%s: displaced %v", when, got)
		}
	}
	look("at first", false)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	look("moved away", true)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	look("another in its place", true)
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	look("put back", false)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	look("removed", true)
}
