package boltstore

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// bulkTokens is how many tokens the benchmarks' store has: 1,000,000, in
// 10,000 accounts of different sizes.
const bulkTokens = 1_000_000

// bulkPath makes the benchmarks' store once for all runs of this schema, and
// returns where it is. A benchmark that writes works on a copy.
func bulkPath(b *testing.B, peppers *tokenstore.Peppers) string {
	b.Helper()
	kind := "plain"
	if peppers != nil {
		kind = "peppered"
	}
	path := filepath.Join(os.TempDir(), fmt.Sprintf("tokenward-bench-v%d-%s-%d.db", schemaVersion, kind, bulkTokens))
	if _, err := os.Stat(path); err == nil {
		return path
	}
	building := path + ".building"
	_ = os.Remove(building)
	s, err := Create(Options{Path: building, Peppers: peppers})
	if err != nil {
		b.Fatal(err)
	}
	load(b, s, bulkTokens)
	check(b, s)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	if err := os.Rename(building, path); err != nil {
		b.Fatal(err)
	}
	return path
}

// load adds n tokens in large changes, without waiting for the disk but at the
// end.
func load(t testing.TB, s *Store, n int) {
	t.Helper()
	s.db.NoSync = true
	for from := 0; from < n; from += 20_000 {
		err := s.Change(t.Context(), func(tx tokenstore.Tx) error {
			tx.Emit([]byte(`{"verb":"load"}`))
			for range min(20_000, n-from) {
				id, err := tx.NewID()
				if err != nil {
					return err
				}
				if err := tx.Put(bulkToken(id)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	s.db.NoSync = false
	if err := s.db.Sync(); err != nil {
		t.Fatal(err)
	}
}

// bulkToken is a token of common size: half of them in one account, one in ten
// revoked, most made by another.
func bulkToken(id tokenstore.ID) *tokenstore.Token {
	account := 1 + uint64(id)%10_000
	if id%2 == 0 {
		account = 1
	}
	tok := storetest.Sample(id, account, 1+uint64(id)%7)
	tok.Sources = tokenstore.Sources{Any: true}
	tok.Limits = tokenstore.Limits{}
	tok.Creator = tokenstore.Creator{ID: 1 + id/100, Name: "deploy pipeline"}
	if id%10 == 0 {
		tok.State, tok.EndedAt = tokenstore.StateRevoked, storetest.Epoch
	}
	return tok
}
