package tokenstore_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// TestCachedTokenHoldsOnToNothingOfItsRecord caches tokens whose texts just fit into the
// entry, and such as do not, writes over the record that they were read from, and has the
// collector run: no text may lie in memory that is another's.
func TestCachedTokenHoldsOnToNothingOfItsRecord(t *testing.T) {
	t.Parallel()
	token := storetest.Sample(7, 1, 1)
	token.Name, token.Sources.Text = "", ""
	secret := secretOf(token, nil)
	bare := len(token.Creator.Name)
	for _, s := range token.Scopes {
		bare += len(s)
	}
	for _, g := range token.Resources.Grants {
		bare += len(g.Type) + len(g.ID)
	}
	for i := range token.Secrets {
		bare += len(token.Secrets[i].Last4)
	}
	const room = 192
	for _, length := range []int{1, room - 1 - bare, room - bare, room + 1 - bare, 200} {
		token.Name = strings.Repeat("n", length)
		record, err := tokenstore.EncodeRecord(nil, token)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(record)
		cache := newCache(t, readerFunc(func(context.Context, tokenstore.Digest) (*tokenstore.Token, error) {
			return tokenstore.DecodeRecord(record)
		}), 10)
		if _, err := cache.Find(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
		m, err := cache.Find(t.Context(), secret)
		if err != nil {
			t.Fatal(err)
		}
		got := m.Token
		clone, name, scopes := got.Clone(), got.Name, got.Scopes
		for i := range record {
			record[i] = 0xFF
		}
		if again, err := tokenstore.EncodeRecord(nil, got); err != nil || !bytes.Equal(again, want) {
			t.Errorf("a name of %d bytes: it became %+v, %v", length, got, err)
		}
		if s := cache.Stats(); s.Hits != 1 || m.Secret != &got.Secrets[0] {
			t.Errorf("a name of %d bytes: %+v, and the secret is the token's own: %t", length, s, m.Secret == &got.Secrets[0])
		}
		// What was taken from it outlives the entry.
		runtime.GC()
		trash := make([][]byte, 1000)
		for i := range trash {
			trash[i] = bytes.Repeat([]byte{'x'}, 1000)
		}
		if again, err := tokenstore.EncodeRecord(nil, clone); err != nil || !bytes.Equal(again, want) || name != token.Name || !slices.Equal(scopes, token.Scopes) {
			t.Errorf("a name of %d bytes, once the entry is collected: %q %q %+v, %v", length, name, scopes, clone, err)
		}
		runtime.KeepAlive(trash)
	}
}

// TestCachedTokenIsTheStoredOne: what is kept in the entry's own memory, and what has no
// room there, is what the store gave, and can be lengthened without touching it.
func TestCachedTokenIsTheStoredOne(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(t *tokenstore.Token){
		"as most are": func(*tokenstore.Token) {},
		"bare": func(t *tokenstore.Token) {
			t.Name, t.Scopes, t.Resources, t.Limits = "", nil, tokenstore.Resources{All: true}, tokenstore.Limits{}
			t.Sources = tokenstore.Sources{Any: true}
		},
		"with long lists": func(t *tokenstore.Token) {
			for i := range 40 {
				t.Scopes = append(t.Scopes, fmt.Sprintf("scope-%d", i))
				t.Resources.Grants = append(t.Resources.Grants, tokenstore.Grant{Type: "card", ID: fmt.Sprint(i), Level: tokenstore.LevelRead})
				t.Sources.Allow = append(t.Sources.Allow, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16))
				t.Sources.Deny = append(t.Sources.Deny, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 1, 0}), 24))
			}
			t.Limits.Quotas = []tokenstore.Quota{{Count: 5, Per: tokenstore.PerDay}}
		},
		"with a second secret": func(t *tokenstore.Token) {
			older := t.Secrets[0]
			older.Digest[0]++
			t.Secrets = append(t.Secrets, older)
		},
	} {
		token := storetest.Sample(7, 1, 1)
		secret := secretOf(token, nil)
		change(token)
		want := token.Clone()
		cache := newCache(t, readerFunc(func(context.Context, tokenstore.Digest) (*tokenstore.Token, error) {
			return token, nil
		}), 10)
		for range 2 { // as it was read, and as it is kept
			m, err := cache.Find(t.Context(), secret)
			if err != nil {
				t.Fatal(name, err)
			}
			if diff := cmp.Diff(want, m.Token, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
			got := m.Token
			_, _ = append(got.Scopes, "more"), append(got.Resources.Grants, tokenstore.Grant{Type: "more"})
			_, _ = append(got.Secrets, tokenstore.SecretRecord{}), append(got.Sources.Allow, netip.Prefix{})
		}
	}
}

// TestBesideIsThereAsLongAsTheEntry: what is put beside a token is found with it until the
// token changes, and where nothing is kept, nothing is.
func TestBesideIsThereAsLongAsTheEntry(t *testing.T) {
	t.Parallel()
	var cache *tokenstore.Cache
	store := storetest.NewMemory(func(c tokenstore.Change) { cache.Changed(c) })
	cache = newCache(t, store, 100)
	id, secret := issue(t, store)
	beside := func(c *tokenstore.Cache) *tokenstore.Beside {
		t.Helper()
		m, err := c.Find(t.Context(), secret)
		if err != nil {
			t.Fatal(err)
		}
		return m.Beside
	}
	one, other := new(int), new(int)
	if got := beside(cache).Limits(); got != nil {
		t.Errorf("beside a token that was just read is %v", got)
	}
	beside(cache).PutLimits(one)
	if got := beside(cache).Limits(); got != one {
		t.Errorf("beside it is %v, want what was put there", got)
	}
	beside(cache).PutLimits(other)
	if got := beside(cache).Limits(); got != other {
		t.Errorf("beside it is %v, want what was put there last", got)
	}
	if got := beside(cache).Use(); got != nil {
		t.Errorf("the trace of its use is %v", got)
	}
	var trace any = one
	beside(cache).PutUse(&trace)
	if got := beside(cache).Use(); got != one || beside(cache).Limits() != other {
		t.Errorf("the trace of its use is %v, want what was put there; beside it is %v", got, beside(cache).Limits())
	}
	if err := edit(store, id, func(tok *tokenstore.Token) { tok.Name = "changed" }); err != nil {
		t.Fatal(err)
	}
	if got := beside(cache).Limits(); got != nil {
		t.Errorf("beside the changed token is %v", got)
	}
	if got := beside(cache).Use(); got != nil {
		t.Errorf("the trace of the changed token is %v", got)
	}
	none := beside(newCache(t, store, 0))
	none.PutLimits(one)
	none.PutUse(&trace)
	if none != nil || none.Limits() != nil || none.Use() != nil {
		t.Error("something is kept beside a token that is not")
	}
}
