package tokenstore_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
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

// TestKeyedSumChangesWithAnyPiece: with what they are, in which order and number, and
// with the pepper; and with nothing else.
func TestKeyedSumChangesWithAnyPiece(t *testing.T) {
	t.Parallel()
	file := bytes.Repeat([]byte("a"), 32)
	peppers, err := tokenstore.NewPeppers(file, bytes.Repeat([]byte("b"), 32))
	if err != nil {
		t.Fatal(err)
	}
	first, second := peppers.IDs()[0], peppers.IDs()[1]
	sum := func(p *tokenstore.Peppers, id tokenstore.PepperID, pieces ...string) string {
		k := p.KeyedSum(id)
		for _, piece := range pieces {
			k.Add([]byte(piece))
		}
		if once := k.Sum(); !bytes.Equal(once, k.Sum()) {
			t.Error("asking for the sum changes it")
		}
		return string(k.Sum())
	}
	seen := map[string][]string{}
	for _, pieces := range [][]string{{}, {""}, {"", ""}, {"a", "b"}, {"b", "a"}, {"ab"}, {"a", "b", ""}, {"a", "a"}, {"a"}, {"a\x00"}} {
		s := sum(peppers, first, pieces...)
		if other, is := seen[s]; is {
			t.Errorf("%q and %q have the same sum", pieces, other)
		}
		seen[s] = pieces
	}
	if seen[sum(peppers, second, "a", "b")] != nil {
		t.Error("another pepper makes the same sum")
	}
	alone, err := tokenstore.NewPeppers(file)
	if err != nil {
		t.Fatal(err)
	}
	if seen[sum(alone, first, "a", "b")] == nil {
		t.Error("the same pepper makes another sum")
	}
	if alone.KeyedSum(second) != nil || (*tokenstore.Peppers)(nil).KeyedSum(first) != nil || alone.KeyedSum(tokenstore.PepperID{}) != nil {
		t.Error("there is a sum without the pepper")
	}
}

// foreignStore leads from stored digests to tokens.
type foreignStore map[tokenstore.Digest]*tokenstore.Token

func (s foreignStore) ByDigest(_ context.Context, d tokenstore.Digest) (*tokenstore.Token, error) {
	if t := s[d]; t != nil {
		return t, nil
	}
	return nil, tokenstore.ErrNotFound
}

func (s foreignStore) add(id tokenstore.ID, scheme tokenstore.Scheme, d tokenstore.Digest) {
	s[d] = &tokenstore.Token{ID: id, Secrets: []tokenstore.SecretRecord{{Digest: d, Scheme: scheme}}}
}

func TestSecretsFromElsewhereAreFoundByTheirScheme(t *testing.T) {
	t.Parallel()
	pepper, err := tokenstore.NewPeppers(bytes.Repeat([]byte("n"), 32), bytes.Repeat([]byte("o"), 32))
	if err != nil {
		t.Fatal(err)
	}
	key := []byte("a key of theirs, 16 or more")
	keys, err := tokenstore.NewImportKeys([]byte("another key that they have\n"), append(key, '\n'))
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("by hmac"))
	byHMAC := tokenstore.Digest(mac.Sum(nil)) // here: an HMAC is not for several goroutines
	for name, peppers := range map[string]*tokenstore.Peppers{"plain": nil, "peppered": pepper} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := foreignStore{}
			sum := tokenstore.Digest(sha256.Sum256([]byte("by digest")))
			stored, _ := peppers.Imported(tokenstore.SchemeSHA256, sum)
			store.add(1, tokenstore.SchemeSHA256, stored)
			stored, _ = peppers.Imported(tokenstore.SchemeHMAC, byHMAC)
			store.add(2, tokenstore.SchemeHMAC, stored)
			find := func(text string, f *tokenstore.Formats, k *tokenstore.ImportKeys) tokenstore.ID {
				c, err := tokenstore.NewCache(store, peppers, f, 10)
				if err != nil {
					t.Fatal(err)
				}
				c.SetImportKeys(k)
				id := tokenstore.ID(0)
				for range 2 { // from the store, then from memory
					m, err := c.Find(t.Context(), []byte(text))
					if id = 0; err == nil {
						id = m.Token.ID
					}
				}
				return id
			}
			none := tokenstore.NewFormats("tw")
			both := none.With(tokenstore.SchemeSHA256, tokenstore.SchemeHMAC)
			for _, test := range []struct {
				text string
				f    *tokenstore.Formats
				k    *tokenstore.ImportKeys
				want tokenstore.ID
			}{
				{"by digest", both, keys, 1},
				{"by hmac", both, keys, 2},
				{"by hmac", both, nil, 0},
				{"by hmac", none.With(tokenstore.SchemeSHA256), keys, 0},
				{"by digest", none.With(tokenstore.SchemeHMAC), keys, 0},
				{"by digest", none, keys, 0},
				{"by nothing", both, keys, 0},
				{string(sum[:]), both, keys, 0},
				{"tw_by digest", both, keys, 0},
			} {
				if got := find(test.text, test.f, test.k); got != test.want {
					t.Errorf("%q leads to %d, want %d", test.text, got, test.want)
				}
			}
		})
	}
}

func TestImportedDigestIsNoNativeOne(t *testing.T) {
	t.Parallel()
	secret := tokenstore.NewSecret("tw").Reveal()
	store := foreignStore{}
	store.add(1, tokenstore.SchemeSHA256, sha256.Sum256([]byte(secret)))
	c, err := tokenstore.NewCache(store, nil, tokenstore.NewFormats("tw").With(tokenstore.SchemeSHA256), 0)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := c.Find(t.Context(), []byte(secret)); err == nil {
		t.Errorf("found token %d under a scheme that its form has not", m.Token.ID)
	}
}
