package tokenstore_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
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

// TestKeysThatGuessingFindsAreRefused: a short one, and one that is named twice, which
// would stand for a second.
func TestKeysThatGuessingFindsAreRefused(t *testing.T) {
	t.Parallel()
	text := func(c string, n int) []byte { return []byte(strings.Repeat(c, n)) }
	for name, tt := range map[string]struct {
		files [][]byte
		want  string // "": they are taken
	}{
		"shortest":           {[][]byte{text("a", 32)}, ""},
		"two":                {[][]byte{text("a", 32), text("b", 32)}, ""},
		"short":              {[][]byte{text("a", 31)}, "pepper 1 has 31 bytes"},
		"second is short":    {[][]byte{text("a", 32), text("b", 31)}, "pepper 2 has 31 bytes"},
		"space is no pepper": {[][]byte{append(text("a", 31), " \n\t"...)}, "pepper 1 has 31 bytes"},
		"empty":              {[][]byte{nil}, "pepper 1 has 0 bytes"},
		"same":               {[][]byte{text("a", 32), text("b", 32), append(text("b", 32), '\n')}, "pepper 3 is the same"},
	} {
		p, err := tokenstore.NewPeppers(tt.files...)
		if tt.want == "" && (err != nil || len(p.IDs()) != len(tt.files)) || tt.want != "" && (p != nil || err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("peppers, %s: %v, want %q", name, err, tt.want)
		}
	}
	for name, tt := range map[string]struct {
		files [][]byte
		want  string
	}{
		"shortest":               {[][]byte{text("a", 16)}, ""},
		"space belongs to it":    {[][]byte{append(text("a", 15), ' ', '\n')}, ""},
		"short":                  {[][]byte{text("a", 15)}, "import key 1 has 15 bytes"},
		"short but for its line": {[][]byte{text("a", 16), append(text("a", 15), '\n')}, "import key 2 has 15 bytes"},
	} {
		k, err := tokenstore.NewImportKeys(tt.files...)
		if tt.want == "" && (err != nil || len(k.IDs()) != len(tt.files)) || tt.want != "" && (k != nil || err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("import keys, %s: %v, want %q", name, err, tt.want)
		}
	}
	if p, err := tokenstore.NewPeppers(); p != nil || err != nil {
		t.Errorf("peppers of no file: %v", err)
	}
	if k, err := tokenstore.NewImportKeys(); k != nil || err != nil {
		t.Errorf("import keys of no file: %v", err)
	}
}

// TestRecordThatAnotherSealedIsRefused: another pepper, another record, another seal, or
// none at all.
func TestRecordThatAnotherSealedIsRefused(t *testing.T) {
	t.Parallel()
	peppers := func(names string) *tokenstore.Peppers {
		var files [][]byte
		for _, c := range []byte(names) {
			files = append(files, bytes.Repeat([]byte{c}, 32))
		}
		p, err := tokenstore.NewPeppers(files...)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	record := []byte("a record")
	sealed := peppers("ab").Seal(bytes.Clone(record))
	for _, names := range []string{"a", "ab", "ba"} {
		if got, err := peppers(names).Unseal(sealed); err != nil || !bytes.Equal(got, record) {
			t.Errorf("under %q: %q, %v", names, got, err)
		}
	}
	for _, names := range []string{"b", "bc"} {
		if got, err := peppers(names).Unseal(sealed); got != nil || !errors.Is(err, tokenstore.ErrSeal) {
			t.Errorf("under %q: %q, %v", names, got, err)
		}
	}
	for n := range sealed {
		damaged := bytes.Clone(sealed)
		damaged[n] ^= 1
		if got, err := peppers("ab").Unseal(damaged); got != nil || !errors.Is(err, tokenstore.ErrSeal) {
			t.Errorf("with another byte at %d: %q, %v", n, got, err)
		}
		if got, err := peppers("ab").Unseal(sealed[:n]); got != nil || !errors.Is(err, tokenstore.ErrSeal) {
			t.Errorf("cut off at %d: %q, %v", n, got, err)
		}
	}
	if got, err := peppers("a").Unseal(peppers("a").Seal(nil)); err != nil || len(got) != 0 {
		t.Errorf("an empty record: %q, %v", got, err)
	}
}

// TestNoPrinterShowsASecret tries each way in which one ends up in a log or an answer by
// oversight.
func TestNoPrinterShowsASecret(t *testing.T) {
	t.Parallel()
	secret := tokenstore.NewSecret("tw")
	digest := tokenstore.SHA256(secret.Reveal())
	for _, value := range []any{secret, &secret, digest, &digest, []any{secret, digest},
		map[string]any{"is": secret}, struct {
			S tokenstore.Secret
			D tokenstore.Digest
		}{secret, digest}} {
		var logged bytes.Buffer
		slog.New(slog.NewJSONHandler(&logged, nil)).Info("found", "it", value)
		slog.New(slog.NewTextHandler(&logged, nil)).Info("found", "it", value)
		marshalled, err := json.Marshal(value)
		if err != nil {
			t.Error(err)
		}
		printed := fmt.Sprintf("%v %+v %#v %s %q %x %X %d", value, value, value, value, value, value, value, value)
		for _, text := range []string{logged.String(), string(marshalled), printed} {
			if strings.Contains(text, secret.Reveal()[3:]) || strings.Contains(text, fmt.Sprintf("%x", secret.Reveal())) ||
				strings.Contains(strings.ToLower(text), fmt.Sprintf("%x", digest[:])) || !strings.Contains(text, tokenstore.Redacted) {
				t.Errorf("%T is shown as %s", value, text)
			}
		}
	}
	for text, want := range map[string]string{"12345678901": "", "123456789012": "9012", "": ""} {
		if got := tokenstore.SecretFrom(text).Last4(); got != want {
			t.Errorf("of %d characters %q are shown, want %q", len(text), got, want)
		}
	}
}
