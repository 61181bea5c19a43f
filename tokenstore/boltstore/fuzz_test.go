package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// FuzzOpenFile opens arbitrary bytes. Only a store may be opened, and nothing
// that is refused may be changed.
func FuzzOpenFile(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("tokenstore:\n  path: tokenward.db\n"))
	f.Add(make([]byte, 8192))
	small := sampleFile(f, 0)
	f.Add(small[:2*os.Getpagesize()])
	f.Fuzz(func(t *testing.T, content []byte) { openDamaged(t, content) })
}

// FuzzOpenDamagedStore changes single bytes of a store, four bytes of place and
// one of value each, and cuts the file. Whatever opens may fail in any way but
// by ending or hanging the program, or by showing a token that was not stored.
func FuzzOpenDamagedStore(f *testing.F) {
	base := sampleFile(f, 60)
	page := uint32(os.Getpagesize()) //nolint:gosec // small
	patch := func(edits ...uint32) (p []byte) {
		for i := 0; i < len(edits); i += 2 {
			p = append(binary.BigEndian.AppendUint32(p, edits[i]), byte(edits[i+1])) //nolint:gosec // as meant
		}
		return p
	}
	f.Add(uint32(0), []byte{})
	f.Add(page+7, []byte{})
	for at := 2 * page; at < uint32(len(base)); at += page { //nolint:gosec // small
		f.Add(uint32(0), patch(at, 0xFF))      // its number
		f.Add(uint32(0), patch(at+8, 1))       // its kind
		f.Add(uint32(0), patch(at+8, 2))       //
		f.Add(uint32(0), patch(at+10, 0xFF))   // how many elements it has
		f.Add(uint32(0), patch(at+12, 0xFF))   // how many pages follow
		f.Add(uint32(0), patch(at+20, 0xFF))   // where an element is
		f.Add(uint32(0), patch(at+26, 0xFF))   // how long its key is
		f.Add(uint32(0), patch(at+page-9, 64)) // what it holds
	}
	f.Fuzz(func(t *testing.T, cut uint32, edits []byte) {
		content := bytes.Clone(base)
		for ; len(edits) >= 5; edits = edits[5:] {
			content[binary.BigEndian.Uint32(edits)%uint32(len(content))] = edits[4] //nolint:gosec // small
		}
		if cut > 0 {
			content = content[:cut%uint32(len(content))] //nolint:gosec // small
		}
		openDamaged(t, content)
	})
}

// sampleFile returns the bytes of a sealed store with n tokens.
func sampleFile(f *testing.F, n int) []byte {
	f.Helper()
	path := closedStore(f, testPeppers(f, "a"), n)
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		f.Fatal(err)
	}
	defer file.Close() //nolint:errcheck // it was only read
	h, err := readHeader(file, path)
	if err != nil {
		f.Fatal(err)
	}
	return b[:h.pages*h.pageSize]
}

func openDamaged(t *testing.T, content []byte) {
	path := filepath.Join(t.TempDir(), "tokens.db")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Path: path, Peppers: testPeppers(t, "a"), LockTimeout: time.Minute})
	if err != nil {
		if after, rerr := os.ReadFile(path); rerr != nil || !bytes.Equal(after, content) {
			t.Errorf("a refused file was changed: %v (%v)", err, rerr)
		}
		return
	}
	s.db.NoSync = true
	useDamaged(t, s)
	if err := s.Close(); err != nil && s.broken == nil {
		t.Error(err)
	}
}

// useDamaged does everything to a store that may be damaged.
func useDamaged(t *testing.T, s *Store) {
	ctx := context.Background()
	genuine := func(tok *tokenstore.Token) {
		want := bulkToken(tok.ID)
		want.Revision = tok.Revision
		a, errA := tokenstore.EncodeRecord(nil, want)
		b, errB := tokenstore.EncodeRecord(nil, tok)
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("token %d was never stored so", tok.ID)
		}
	}
	for id := range tokenstore.ID(70) {
		if tok, err := s.ByID(ctx, id); err == nil {
			genuine(tok)
		}
		if tok, err := s.ByDigest(ctx, storetest.SampleDigest(id)); err == nil {
			genuine(tok)
		}
	}
	for _, q := range []tokenstore.Query{{AllAccounts: true, Revoked: true}, {Account: 1, Skip: 3}, {Account: 1, Owner: 2, OldestFirst: true}} {
		n := 0
		for tok, err := range s.List(ctx, q) {
			if n++; err != nil || n > 1000 {
				break
			}
			genuine(tok)
		}
		_, _ = s.Count(ctx, q)
	}
	for range s.Ending(ctx, time.Time{}, tokenstore.MaxTime()) {
		break
	}
	_, _ = s.Pending(10)
	_ = s.Check(ctx, func(string) {})
	var id tokenstore.ID
	_ = s.Change(ctx, put(&id))
	_ = s.Change(ctx, func(tx tokenstore.Tx) error {
		for range tx.Children(1) {
			break
		}
		tx.Emit([]byte("swept"))
		return errors.Join(
			tx.KeepAnswer(storetest.SampleDigest(1), []byte("x"), storetest.Epoch, storetest.Epoch.AddDate(1, 0, 0)),
			tx.Sweep(2))
	})
	_ = s.Done(1)
}

// FuzzRecordInStore puts arbitrary bytes where a record belongs.
func FuzzRecordInStore(f *testing.F) {
	s := newTestStore(f, Options{})
	load(f, s, 3)
	s.db.NoSync = true
	_ = s.view(func(tx *bolt.Tx) error {
		f.Add(bytes.Clone(tx.Bucket(bucketTokens).Get(number(2))))
		f.Add(bytes.Clone(tx.Bucket(bucketTokens).Get(number(3))))
		return nil
	})
	lineal := storetest.Sample(2, 1, 1)
	lineal.Lineage = 1
	record, err := tokenstore.EncodeRecord([]byte{byte(lineal.State)}, lineal)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(record)
	f.Add([]byte{})
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, value []byte) {
		err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketTokens).Put(number(2), value) })
		if err != nil {
			t.Skip() // longer than bolt takes
		}
		tok, err := s.ByID(t.Context(), 2)
		if err == nil && (tok.ID != 2 || len(tok.Validate()) > 0 || byte(tok.State) != value[0]) {
			t.Errorf("read %+v", tok)
		}
		for tok, err := range s.List(t.Context(), tokenstore.Query{Account: 1}) {
			if err == nil && len(tok.Validate()) > 0 {
				t.Errorf("listed %+v", tok)
			}
		}
	})
}
