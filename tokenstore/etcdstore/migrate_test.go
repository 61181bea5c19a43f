package etcdstore_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
	"tokenward/tokenstore/storetest"
)

const migrationPrefix = "/moved/"

// moving is a store as a file, and an etcd that it is to be in.
type moving struct {
	t       *testing.T
	cluster *etcdtest.Cluster
	peppers *tokenstore.Peppers
	path    string
	file    *boltstore.Store // open read-only
}

// node starts a node of the store in etcd.
func (m *moving) node(peppers *tokenstore.Peppers) *node {
	m.t.Helper()
	o := mirrored(m.t, migrationPrefix, m.cluster.Endpoints())
	o.Peppers = peppers
	return startNode(m.t, o)
}

// sized is how many tokens are moved: these, or 5,000 in the long run.
func sized(short int) int {
	if storetest.Soak() {
		return 5000
	}
	return short
}

func newMoving(t *testing.T, tokens int) *moving {
	t.Helper()
	pepper, err := tokenstore.NewPeppers(bytes.Repeat([]byte("p"), tokenstore.MinPepperBytes))
	if err != nil {
		t.Fatal(err)
	}
	m := &moving{t: t, cluster: etcdtest.Start(t, etcdtest.Options{}), peppers: pepper, path: filepath.Join(t.TempDir(), "tokens.db")}
	s, err := boltstore.Create(boltstore.Options{Path: m.path, Peppers: pepper})
	if err != nil {
		t.Fatal(err)
	}
	m.fill(s, tokens)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	m.reopen()
	return m
}

// fill puts something of each kind into a store.
func (m *moving) fill(s *boltstore.Store, tokens int) {
	t, ctx := m.t, m.t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.RecordPrefix(ctx, "tw"))
	must(s.RecordPrefix(ctx, "api"))
	must(s.RecordForeign(ctx, tokenstore.Foreign{Scheme: tokenstore.SchemeSHA256}))
	must(s.Change(ctx, func(tx tokenstore.Tx) error {
		for range tokens {
			id, err := tx.NewID()
			if err != nil {
				return err
			}
			if err := tx.Put(storetest.Sample(id, 1+uint64(id)%7, 1+uint64(id)%3)); err != nil {
				return err
			}
		}
		tx.Emit([]byte("made"))
		return nil
	}))
	must(s.Change(ctx, func(tx tokenstore.Tx) error {
		if err := tx.Sweep(2); err != nil { // its digest stays
			return err
		}
		rotated, err := tx.Token(3)
		if err != nil {
			return err
		}
		rotated.Secrets[0].Digest = sha256.Sum256([]byte("rotated")) // the old one stays
		revoked, err := tx.Token(4)
		if err != nil {
			return err
		}
		revoked.State, revoked.EndedAt = tokenstore.StateRevoked, storetest.Epoch
		tx.Emit([]byte("changed"))
		until := time.Now().Add(time.Hour)
		return errors.Join(tx.Put(rotated), tx.Put(revoked), tx.KeepAnswer(sha256.Sum256([]byte("call")), []byte("sealed"), time.Now(), until))
	}))
	_, err := s.AddUsageNames(ctx, []string{"accounts", "cards", "curl"})
	must(err)
	must(s.MergeUsage(ctx, []tokenstore.ID{1, 3, 5}, func(id tokenstore.ID, _ []byte) []byte { return fmt.Append(nil, "usage of ", id) }))
	must(s.NoteWarning(ctx, 5, storetest.Epoch, nil, func(n *tokenstore.Notice) { n.Told = 7 }))
	counts := []string{"12", "of an account"}
	must(s.MoveCounters(ctx, [][]byte{counterOf(1), {1, 9}}, func(i int, _ []byte) ([]byte, error) { return []byte(counts[i]), nil }))
}

func counterOf(id tokenstore.ID) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{0}, uint64(id)), 1)
}

func (m *moving) reopen() {
	m.t.Helper()
	s, err := boltstore.Open(boltstore.Options{Path: m.path, Peppers: m.peppers, ReadOnly: true})
	if err != nil {
		m.t.Fatal(err)
	}
	m.file = s
	m.t.Cleanup(func() { s.Close() })
}

// change closes the file, changes it, and opens it again.
func (m *moving) change(do func(*boltstore.Store) error) {
	m.t.Helper()
	if err := m.file.Close(); err != nil {
		m.t.Fatal(err)
	}
	s, err := boltstore.Open(boltstore.Options{Path: m.path, Peppers: m.peppers})
	if err != nil {
		m.t.Fatal(err)
	}
	if err := errors.Join(do(s), s.Close()); err != nil {
		m.t.Fatal(err)
	}
	m.reopen()
}

func (m *moving) client(endpoints ...string) *etcdstore.Client {
	m.t.Helper()
	if len(endpoints) == 0 {
		endpoints = m.cluster.Endpoints()
	}
	c, err := etcdstore.Dial(etcdstore.Options{Endpoints: endpoints, Prefix: migrationPrefix, Node: "mover", Peppers: m.peppers})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c
}

func (m *moving) job() etcdstore.Import {
	return etcdstore.Import{ID: m.file.ID(), Entries: m.file.Entries}
}

// wantMoved reads etcd back into another file, and wants all three to be the same.
func (m *moving) wantMoved() {
	m.t.Helper()
	ctx := m.t.Context()
	snapshot, err := m.client().Snapshot(ctx)
	if err != nil {
		m.t.Fatal(err)
	}
	if snapshot.ID != m.file.ID() {
		m.t.Errorf("the store has the id %s instead of %s", snapshot.ID, m.file.ID())
	}
	there, err := tokenstore.Verify(m.file.Entries(ctx), snapshot.Entries(ctx))
	if err != nil {
		m.t.Fatal(err)
	}
	for k := tokenstore.EntryLastID; k < tokenstore.EntryKinds; k++ {
		if there.Count(k) == 0 {
			m.t.Errorf("no %s was copied: the test lacks one", k)
		}
	}
	back := filepath.Join(m.t.TempDir(), "back.db")
	if err := boltstore.Load(ctx, boltstore.Options{Path: back, Peppers: m.peppers}, snapshot.ID, snapshot.Entries(ctx)); err != nil {
		m.t.Fatal(err)
	}
	s, err := boltstore.Open(boltstore.Options{Path: back, Peppers: m.peppers})
	if err != nil {
		m.t.Fatal(err)
	}
	defer s.Close()
	again, err := tokenstore.Verify(m.file.Entries(ctx), s.Entries(ctx))
	if err != nil {
		m.t.Fatal(err)
	}
	if again.Sum() != there.Sum() {
		m.t.Error("the sums differ")
	}
	if err := s.Check(ctx, func(fault string) { m.t.Error(fault) }); err != nil {
		m.t.Error(err)
	}
	if s.ID() != m.file.ID() {
		m.t.Errorf("the file has the id %s instead of %s", s.ID(), m.file.ID())
	}
}

func TestImportAndExportLoseNothing(t *testing.T) {
	m := newMoving(t, sized(1500))
	if _, err := m.client().Import(t.Context(), m.job()); err != nil {
		t.Fatal(err)
	}
	m.wantMoved()
	if _, err := m.client().Import(t.Context(), m.job()); !errors.Is(err, etcdstore.ErrExists) {
		t.Errorf("the second import: %v", err)
	}
}

func TestKilledImportGoesOn(t *testing.T) {
	tokens := sized(3000)
	entries := uint64(2 * tokens) //nolint:gosec // small
	m := newMoving(t, tokens)
	for at := uint64(1000); at < entries; at += 2000 {
		ctx, kill := context.WithCancel(t.Context())
		job := m.job()
		job.Report = func(c etcdstore.Copying) {
			if c.Seen >= at {
				kill()
			}
		}
		if _, err := m.client().Import(ctx, job); err == nil {
			t.Fatalf("an import that is killed at %d entries says that it is done", at)
		}
		if _, err := m.client().Describe(t.Context()); !errors.Is(err, etcdstore.ErrMigrating) {
			t.Fatalf("a node can start on half a store: %v", err)
		}
		if err := m.client().Init(t.Context()); !errors.Is(err, etcdstore.ErrMigrating) {
			t.Fatalf("another store can be made over half a one: %v", err)
		}
	}
	var written uint64
	job := m.job()
	job.Report = func(c etcdstore.Copying) { written = c.Written }
	if _, err := m.client().Import(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	// The one before had seen all but 1,000, and at most 17 transactions of 120 were on
	// their way or being gathered.
	if written > 1000+17*120+100 {
		t.Errorf("the last one wrote %d of %d entries again", written, entries)
	}
	m.wantMoved()
}

func TestImportAheadTakesWhatChangedLater(t *testing.T) {
	m := newMoving(t, 500)
	job := m.job()
	job.Ahead = true
	if _, err := m.client().Import(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	if _, err := m.client().Describe(t.Context()); !errors.Is(err, etcdstore.ErrMigrating) {
		t.Fatalf("a node can start on what was copied ahead: %v", err)
	}
	m.change(func(s *boltstore.Store) error {
		return errors.Join(
			s.MergeUsage(t.Context(), []tokenstore.ID{1, 9}, func(tokenstore.ID, []byte) []byte { return []byte("more") }),
			s.Change(t.Context(), func(tx tokenstore.Tx) error {
				tx.Emit([]byte("later"))
				id, err := tx.NewID()
				if err != nil {
					return err
				}
				kept := tx.KeepAnswer(sha256.Sum256([]byte("call")), []byte("sealed anew"), time.Now(), time.Now().Add(2*time.Hour))
				return errors.Join(kept, tx.Sweep(1), tx.Sweep(5), tx.Put(storetest.Sample(id, 1, 1)))
			}))
	})
	var last etcdstore.Copying
	job = m.job()
	job.Report = func(c etcdstore.Copying) { last = c }
	if _, err := m.client().Import(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	if last.Written > 20 {
		t.Errorf("%d entries were written for a handful of changes", last.Written)
	}
	snapshot, err := m.client().Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tokenstore.Verify(m.file.Entries(t.Context()), snapshot.Entries(t.Context())); err != nil {
		t.Error(err)
	}
}

func TestImportTouchesNothingThatIsNotItsOwn(t *testing.T) {
	m := newMoving(t, 10)
	etcd := m.cluster.Client()
	put := func(key, value string) {
		t.Helper()
		if _, err := etcd.Put(t.Context(), migrationPrefix+key, value); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(want string) {
		t.Helper()
		if _, err := m.client().Import(t.Context(), m.job()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v instead of %q", err, want)
		}
	}
	put("other", "1")
	refused("something else under the prefix")
	if _, err := etcd.Delete(t.Context(), migrationPrefix, clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	put("migration", `{"store":"ANOTHER"}`)
	refused("unfinished copy of another token store")
	if _, err := etcd.Delete(t.Context(), migrationPrefix, clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	if err := m.client().Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused("another one than this")
}

func TestImportNoticesAStrangersKey(t *testing.T) {
	m := newMoving(t, 10)
	job := m.job()
	job.Report = func(c etcdstore.Copying) {}
	job.Entries = func(ctx context.Context) iter.Seq2[tokenstore.Entry, error] {
		if _, err := m.cluster.Client().Put(ctx, migrationPrefix+"stray", ""); err != nil {
			t.Error(err)
		}
		return m.file.Entries(ctx)
	}
	if _, err := m.client().Import(t.Context(), job); err == nil || !strings.Contains(err.Error(), "something else writes there") {
		t.Errorf("%v", err)
	}
}

func TestOvertakenImportWritesNoMore(t *testing.T) {
	m := newMoving(t, sized(1500))
	job := m.job()
	overtaken := false
	job.Report = func(c etcdstore.Copying) {
		if !overtaken {
			overtaken = true
			ahead := m.job()
			ahead.Ahead = true
			if _, err := m.client().Import(t.Context(), ahead); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := m.client().Import(t.Context(), job); err == nil || !strings.Contains(err.Error(), "another `tokenward migrate`") {
		t.Errorf("%v", err)
	}
	if _, err := m.client().Import(t.Context(), m.job()); err != nil {
		t.Fatal(err)
	}
	m.wantMoved()
}

func TestImportEndsWellOverABrokenLine(t *testing.T) {
	m := newMoving(t, sized(2000)) // the line breaks at each 1,000th of 4,000 entries
	endpoint, err := url.Parse(m.cluster.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	relay := etcdtest.StartRelay(t, endpoint.Host)
	job := m.job()
	cuts := 0
	job.Report = func(c etcdstore.Copying) {
		if cuts++; cuts < 5 {
			relay.DropAnswers() // what was on its way is made, and fails
			relay.Cut()
			relay.Heal()
		}
	}
	if _, err := m.client("http://"+relay.Addr()).Import(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	m.wantMoved()
}

func TestNodeServesWhatWasImportedAndTheFileWhatWasExported(t *testing.T) {
	m := newMoving(t, 200)
	if _, err := m.client().Import(t.Context(), m.job()); err != nil {
		t.Fatal(err)
	}
	s := m.node(m.peppers)
	for id := tokenstore.ID(1); id <= 200; id++ {
		want, werr := m.file.ByID(t.Context(), id)
		got, err := s.ByID(t.Context(), id)
		if !errors.Is(err, werr) || werr == nil && (got.Revision != want.Revision || got.State != want.State) {
			t.Fatalf("token %d: %v, %v", id, got, err)
		}
	}
	if _, err := s.ByDigest(t.Context(), storetest.SampleDigest(3)); !errors.Is(err, tokenstore.ErrNotFound) {
		t.Errorf("a secret that was given up: %v", err)
	}
	change := func(w tokenstore.Writer, digest tokenstore.Digest) (id tokenstore.ID, err error) {
		err = w.Change(t.Context(), func(tx tokenstore.Tx) error {
			if id, err = tx.NewID(); err != nil {
				return err
			}
			tx.Emit([]byte("made"))
			made := storetest.Sample(id, 1, 1)
			made.Secrets[0].Digest = digest
			return tx.Put(made)
		})
		return id, err
	}
	for name, d := range map[string]tokenstore.Digest{"swept": storetest.SampleDigest(2), "given up": storetest.SampleDigest(3)} {
		if _, err := change(s, d); err == nil {
			t.Errorf("a secret that was %s is taken again", name)
		}
	}
	id, err := change(s, sha256.Sum256([]byte("new")))
	if err != nil || id <= 200 {
		t.Fatalf("token %d: %v", id, err)
	}
	snapshot, err := m.client().Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waiting, err := snapshot.Waiting(t.Context())
	if err != nil || len(waiting) != 1 || string(waiting[0]) != "made" {
		t.Errorf("%q wait for the audit log, %v", waiting, err)
	}
	path := filepath.Join(t.TempDir(), "own.db")
	if err := boltstore.Load(t.Context(), boltstore.Options{Path: path, Peppers: m.peppers}, snapshot.ID, snapshot.Entries(t.Context())); err != nil {
		t.Fatal(err)
	}
	own, err := boltstore.Open(boltstore.Options{Path: path, Peppers: m.peppers})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if got, err := own.ByDigest(t.Context(), sha256.Sum256([]byte("new"))); err != nil || got.ID != id {
		t.Errorf("what the cluster made: %v, %v", got, err)
	}
	if _, err := change(own, storetest.SampleDigest(2)); err == nil {
		t.Error("a secret that was swept is taken again")
	}
	if next, err := change(own, sha256.Sum256([]byte("newer"))); err != nil || next <= id {
		t.Errorf("token %d: %v", next, err)
	}
	if changed, err := snapshot.Changed(t.Context()); changed || err != nil {
		t.Errorf("changed meanwhile: %v, %v", changed, err)
	}
	if _, err := change(s, sha256.Sum256([]byte("elsewhere"))); err != nil {
		t.Fatal(err)
	}
	if changed, err := snapshot.Changed(t.Context()); !changed || err != nil {
		t.Errorf("changed meanwhile: %v, %v", changed, err)
	}
}

func TestNewPepperIsNotedWithTheFirstRecordItSeals(t *testing.T) {
	m := newMoving(t, 10)
	if _, err := m.client().Import(t.Context(), m.job()); err != nil {
		t.Fatal(err)
	}
	both, err := tokenstore.NewPeppers(bytes.Repeat([]byte("q"), tokenstore.MinPepperBytes), bytes.Repeat([]byte("p"), tokenstore.MinPepperBytes))
	if err != nil {
		t.Fatal(err)
	}
	s := m.node(both)
	if err := s.Change(t.Context(), func(tx tokenstore.Tx) error {
		one, err := tx.Token(7)
		if err != nil {
			return err
		}
		one.Name = "sealed anew"
		tx.Emit([]byte("renamed"))
		return tx.Put(one)
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.client().Describe(t.Context()); err == nil || !strings.Contains(err.Error(), "pepper") {
		t.Errorf("a node without the new pepper may start: %v", err)
	}
}
