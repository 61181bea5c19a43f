package boltstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tokenward/tokenstore"
)

var backupTime = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func backup(t testing.TB, s *Store) ([]byte, Manifest) {
	t.Helper()
	var b bytes.Buffer
	announced := int64(-1)
	m, err := s.Backup(t.Context(), &b, backupTime, func(bytes int64) {
		if b.Len() > 0 {
			t.Error("the length came after the beginning")
		}
		announced = bytes
	})
	if err != nil {
		t.Fatal(err)
	}
	if int64(b.Len()) != announced {
		t.Errorf("%d bytes, and %d were announced", b.Len(), announced)
	}
	return b.Bytes(), m
}

func TestBackupHoldsTheStoreAsItWas(t *testing.T) {
	for name, peppers := range map[string]*tokenstore.Peppers{"plain": nil, "peppered": testPeppers(t, "a")} {
		t.Run(name, func(t *testing.T) {
			s := newTestStore(t, Options{Peppers: peppers})
			load(t, s, 300)
			b, m := backup(t, s)
			load(t, s, 10) // what comes later is not in it
			if m.Store != s.ID() || m.Tokens != 300 || m.LastSeq == 0 {
				t.Errorf("manifest %+v", m)
			}
			var file bytes.Buffer
			if again, err := ReadBackup(bytes.NewReader(b), &file, peppers); err != nil || again != m {
				t.Fatalf("%+v, %v", again, err)
			}
			path := filepath.Join(t.TempDir(), "copy.db")
			if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := Raise(path, m.LastID+1000, m.LastSeq+1000); err != nil {
				t.Fatal(err)
			}
			restored, err := Open(Options{Path: path, Peppers: peppers})
			if err != nil {
				t.Fatal(err)
			}
			defer restored.Close() //nolint:errcheck // checked by the others
			check(t, restored)
			if n, err := restored.Count(t.Context(), tokenstore.Query{AllAccounts: true, Revoked: true}); n != 300 || err != nil {
				t.Errorf("%d tokens, %v", n, err)
			}
			if id, seq, err := restored.Position(); id != m.LastID+1000 || seq != m.LastSeq+1000 || err != nil {
				t.Errorf("goes on at %d and %d, %v", id, seq, err)
			}
			if events, err := restored.Pending(10); len(events) != 0 || err != nil {
				t.Errorf("%d events wait, %v", len(events), err)
			}
		})
	}
}

func TestDamagedBackupIsRefused(t *testing.T) {
	peppers := testPeppers(t, "a")
	s := newTestStore(t, Options{Peppers: peppers})
	load(t, s, 20)
	whole, _ := backup(t, s)
	plain := newTestStore(t, Options{})
	unsealed, _ := backup(t, plain)
	flip := func(at int) []byte {
		b := bytes.Clone(whole)
		b[at] ^= 1
		return b
	}
	for name, test := range map[string]struct {
		b       []byte
		peppers *tokenstore.Peppers
	}{
		"empty":                    {nil, peppers},
		"no backup":                {[]byte("tokens"), peppers},
		"cut in its head":          {whole[:30], peppers},
		"cut in its file":          {whole[:len(whole)/2], peppers},
		"without its end":          {whole[:bytes.LastIndex(whole, []byte(backupEnd))], peppers},
		"cut in its end":           {whole[:len(whole)-1], peppers},
		"with more behind":         {append(bytes.Clone(whole), "more\n"...), peppers},
		"another manifest":         {flip(bytes.Index(whole, []byte(`"last_id":`)) + 10), peppers},
		"another byte":             {flip(len(whole) / 2), peppers},
		"another checksum":         {flip(len(whole) - 150), peppers},
		"another seal":             {flip(len(whole) - 3), peppers},
		"another pepper":           {whole, testPeppers(t, "b")},
		"no pepper":                {whole, nil},
		"not sealed, with peppers": {unsealed, peppers},
		"a newer version":          {bytes.Replace(whole, []byte(`"version":1`), []byte(`"version":2`), 1), peppers},
	} {
		t.Run(name, func(t *testing.T) {
			if m, err := ReadBackup(bytes.NewReader(test.b), &bytes.Buffer{}, test.peppers); err == nil {
				t.Errorf("accepted as %+v", m)
			}
		})
	}
}

func TestBackupThatCannotBeWrittenFails(t *testing.T) {
	s := newTestStore(t, Options{})
	full := errors.New("disk full")
	if _, err := s.Backup(t.Context(), failingWriter{full}, backupTime, nil); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Backup(ctx, &bytes.Buffer{}, backupTime, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestBackupSeesOneInstantWhileChangesGoOn(t *testing.T) {
	s := newTestStore(t, Options{})
	load(t, s, 500)
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if err := s.Change(context.WithoutCancel(t.Context()), func(tx tokenstore.Tx) error {
				id, err := tx.NewID()
				if err != nil {
					return err
				}
				tx.Emit([]byte("event"))
				return tx.Put(bulkToken(id))
			}); err != nil && !errors.Is(err, tokenstore.ErrOutboxFull) {
				stopped <- err
				return
			}
		}
	}()
	for range 10 {
		b, m := backup(t, s)
		var file bytes.Buffer
		if _, err := ReadBackup(bytes.NewReader(b), &file, nil); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "copy.db")
		if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		restored, err := Open(Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		check(t, restored)
		if id, _, _ := restored.Position(); id != m.LastID {
			t.Errorf("the last id is %d, in the manifest %d", id, m.LastID)
		}
		if err := restored.Close(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestHeldStoreCannotBeOpened(t *testing.T) {
	path := closedStore(t, nil, 1)
	release, err := Hold(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Path: path, LockTimeout: time.Millisecond}); !errors.Is(err, ErrInUse) {
		t.Errorf("opened: %v", err)
	}
	release()
	s, err := Open(Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Hold(path); !errors.Is(err, ErrInUse) {
		t.Errorf("held while it is open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzReadBackup(f *testing.F) {
	f.Add([]byte("tokenward backup {\"version\":1,\"store\":\"a\",\"schema\":1,\"time\":\"2026-11-21T12:00:00Z\",\"last_id\":1,\"last_seq\":1,\"tokens\":1,\"bytes\":3}\nabcend 00 -\n"))
	f.Add([]byte("tokenward backup {\"version\":1,\"bytes\":-1}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var file bytes.Buffer
		m, err := ReadBackup(bytes.NewReader(b), &file, nil)
		if err == nil && int64(file.Len()) != m.Bytes {
			t.Errorf("%d bytes of %d", file.Len(), m.Bytes)
		}
	})
}
