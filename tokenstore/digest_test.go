package tokenstore_test

import (
	"bytes"
	"testing"

	"tokenward/tokenstore"
)

func TestAuditKeysFollowThePeppersAndTellNothingOfThem(t *testing.T) {
	t.Parallel()
	first, second := bytes.Repeat([]byte("a"), 32), bytes.Repeat([]byte("b"), 32)
	peppers := func(files ...[]byte) *tokenstore.Peppers {
		p, err := tokenstore.NewPeppers(files...)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	keys := peppers(first, second).AuditKeys()
	if len(keys) != 2 || len(keys[0]) != 32 || bytes.Equal(keys[0], keys[1]) {
		t.Fatalf("%d keys, of which the first has %d bytes", len(keys), len(keys[0]))
	}
	if again := peppers(second).AuditKeys(); !bytes.Equal(again[0], keys[1]) {
		t.Error("a pepper has another key when it stands elsewhere in the list")
	}
	if sealed := peppers(first).Seal(nil); bytes.Contains(sealed, keys[0]) || bytes.Equal(keys[0], first) {
		t.Error("a key shows in what the pepper is used for")
	}
	keys[0][0]++
	if p := peppers(first); bytes.Equal(p.AuditKeys()[0], keys[0]) {
		t.Error("the caller's copy is the pepper's own")
	}
	if (*tokenstore.Peppers)(nil).AuditKeys() != nil {
		t.Error("there are keys without a pepper")
	}
}
