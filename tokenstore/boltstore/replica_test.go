package boltstore

import (
	"testing"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// TestCopyNeverBringsBackARevokedToken follows a store whose backup was restored, or
// whose records somebody replays.
func TestCopyNeverBringsBackARevokedToken(t *testing.T) {
	s := newTestStore(t, Options{ReplicaOf: "another"})
	follow := func(edit func(*tokenstore.Token)) (unreadable int) {
		t.Helper()
		tok := storetest.Sample(7, 1, 1)
		edit(tok)
		record, err := tokenstore.EncodeRecord(nil, tok)
		if err != nil {
			t.Fatal(err)
		}
		n, err := s.Apply(t.Context(), &tokenstore.Update{Records: []tokenstore.SealedRecord{{ID: 7, Sealed: s.peppers.Seal(record)}}})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	state := func() tokenstore.State {
		t.Helper()
		tok, err := s.ByID(t.Context(), 7)
		if err != nil {
			t.Fatal(err)
		}
		return tok.State
	}
	follow(func(*tokenstore.Token) {})
	follow(func(tok *tokenstore.Token) { tok.State, tok.EndedAt = tokenstore.StateRevoked, storetest.Epoch })
	if n := follow(func(*tokenstore.Token) {}); n != 1 || state() != tokenstore.StateRevoked || !s.Followed().Gaps {
		t.Errorf("a revoked token came back: %d records were left out, state %v", n, state())
	}
	later := func(tok *tokenstore.Token) {
		tok.State, tok.EndedAt = tokenstore.StateRevoked, storetest.Epoch.Add(time.Hour)
	}
	if n := follow(later); n != 0 || state() != tokenstore.StateRevoked {
		t.Errorf("revoked again: %d records were left out", n)
	}
	// After a restore the id can be another token's.
	if n := follow(func(tok *tokenstore.Token) { tok.Secrets[0].Digest = randomDigest() }); n != 0 || state() == tokenstore.StateRevoked {
		t.Errorf("another token of the same id: %d records were left out", n)
	}
}
