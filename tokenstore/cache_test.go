package tokenstore_test

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// secretOf makes a secret and gives its digest to the token.
func secretOf(tok *tokenstore.Token, peppers *tokenstore.Peppers) []byte {
	s := tokenstore.NewSecret("tw")
	tok.Secrets[0].Digest, tok.Secrets[0].Pepper = peppers.Digest(s.Reveal())
	tok.Secrets[0].Last4 = s.Last4()
	return []byte(s.Reveal())
}

// issue stores a token and returns its id and secret.
func issue(t *testing.T, s tokenstore.Writer) (id tokenstore.ID, secret []byte) {
	t.Helper()
	err := s.Change(t.Context(), func(tx tokenstore.Tx) (err error) {
		if id, err = tx.NewID(); err != nil {
			return err
		}
		tok := storetest.Sample(id, 1, 1)
		secret = secretOf(tok, nil)
		tx.Emit([]byte("issued"))
		return tx.Put(tok)
	})
	if err != nil {
		t.Fatal(err)
	}
	return id, secret
}

func edit(s tokenstore.Writer, id tokenstore.ID, with func(tok *tokenstore.Token)) error {
	return s.Change(context.Background(), func(tx tokenstore.Tx) error {
		tok, err := tx.Token(id)
		if err != nil {
			return err
		}
		with(tok)
		tx.Emit([]byte("edited"))
		return tx.Put(tok)
	})
}

func revoke(tok *tokenstore.Token) {
	tok.State, tok.EndedAt = tokenstore.StateRevoked, storetest.Epoch
}

func newCache(t *testing.T, r tokenstore.DigestReader, entries int) *tokenstore.Cache {
	t.Helper()
	c, err := tokenstore.NewCache(r, nil, tokenstore.NewFormats("tw"), entries)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// readerFunc is a store whose reads a test steers.
type readerFunc func(ctx context.Context, d tokenstore.Digest) (*tokenstore.Token, error)

func (f readerFunc) ByDigest(ctx context.Context, d tokenstore.Digest) (*tokenstore.Token, error) {
	return f(ctx, d)
}

// TestRevokedTokenIsNotRevivedByLookupInFlight runs a lookup and a revocation
// through every order of their steps. A lookup has three: it notes the
// generation, reads the store, and puts what it read into the cache. A
// revocation has two that show: the store's commit, and telling the cache.
// Afterwards the token must be dead.
func TestRevokedTokenIsNotRevivedByLookupInFlight(t *testing.T) {
	// When each step of the lookup happens: 0 before the commit, 1 between
	// commit and telling, 2 after both.
	for noted := range 3 {
		for read := noted; read < 3; read++ {
			for put := read; put < 3; put++ {
				for _, warm := range []bool{false, true} {
					t.Run(fmt.Sprintf("noted=%d,read=%d,put=%d,warm=%t", noted, read, put, warm), func(t *testing.T) {
						raceOnce(t, noted, read, put, warm)
					})
				}
			}
		}
	}
}

func raceOnce(t *testing.T, noted, read, put int, warm bool) {
	var cache *tokenstore.Cache
	var told func()
	store := storetest.NewMemory(func(c tokenstore.Change) {
		if c.Before == nil {
			return
		}
		told()
		cache.Changed(c)
	})

	var steering atomic.Bool
	inside, mayRead, hasRead, mayPut := make(chan bool), make(chan bool), make(chan bool), make(chan bool)
	cache = newCache(t, readerFunc(func(ctx context.Context, d tokenstore.Digest) (*tokenstore.Token, error) {
		if !steering.CompareAndSwap(true, false) {
			return store.ByDigest(ctx, d)
		}
		inside <- true // the generation has been noted
		<-mayRead
		tok, err := store.ByDigest(ctx, d)
		hasRead <- true
		<-mayPut
		return tok, err
	}), 100)
	id, secret := issue(t, store)
	if warm {
		// Another secret of the same cache, so that it is not empty.
		_, other := issue(t, store)
		if _, err := cache.Find(t.Context(), other); err != nil {
			t.Fatal(err)
		}
	}

	done := make(chan error, 1)
	phase := func(now int) {
		if noted == now {
			steering.Store(true)
			go func() {
				_, err := cache.Find(context.Background(), secret)
				done <- err
			}()
			<-inside
		}
		if read == now {
			mayRead <- true
			<-hasRead
		}
		if put == now {
			mayPut <- true
			if err := <-done; err != nil {
				t.Errorf("lookup in flight: %v", err)
			}
		}
	}
	phase(0)
	told = func() { phase(1) }
	if err := edit(store, id, revoke); err != nil {
		t.Fatal(err)
	}
	told = func() {}
	phase(2)

	for range 2 { // from the store, then from the cache
		m, err := cache.Find(t.Context(), secret)
		if err != nil {
			t.Fatal(err)
		}
		if m.Token.State != tokenstore.StateRevoked {
			t.Fatal("the revoked token came back")
		}
	}
}

// TestRevokedTokenStaysDeadUnderLoad revokes tokens while many goroutines use
// them. Once a revocation is answered nobody may find the token alive.
func TestRevokedTokenStaysDeadUnderLoad(t *testing.T) {
	rounds := 300
	if storetest.Soak() {
		rounds = 100_000
	}
	for _, entries := range []int{0, 4, 1000} { // none, far too few, plenty
		t.Run(fmt.Sprint(entries), func(t *testing.T) {
			var cache *tokenstore.Cache
			store := storetest.NewMemory(func(c tokenstore.Change) { cache.Changed(c) })
			cache = newCache(t, readerFunc(func(ctx context.Context, d tokenstore.Digest) (*tokenstore.Token, error) {
				tok, err := store.ByDigest(ctx, d)
				for range rand.IntN(20) { // often long enough for a change to pass by
					runtime.Gosched()
				}
				return tok, err
			}), entries)
			for range rounds {
				revokeUnderLoad(t, store, cache)
				if t.Failed() {
					return
				}
			}
		})
	}
}

func revokeUnderLoad(t *testing.T, store *storetest.Memory, cache *tokenstore.Cache) {
	const readers = 4
	id, secret := issue(t, store)
	var dead atomic.Bool
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for after := 0; after < 3; {
				wasDead := dead.Load()
				m, err := cache.Find(context.Background(), secret)
				if err != nil {
					t.Errorf("Find: %v", err)
					return
				}
				if wasDead && m.Token.State != tokenstore.StateRevoked {
					t.Error("a token was found alive after its revocation was answered")
					return
				}
				if wasDead {
					after++
				}
			}
		})
	}
	for range rand.IntN(3) {
		_ = edit(store, id, func(tok *tokenstore.Token) { tok.Name = "busy" })
	}
	if err := edit(store, id, revoke); err != nil {
		t.Error(err)
	}
	dead.Store(true)
	wg.Wait()
	if err := store.Change(t.Context(), func(tx tokenstore.Tx) error { // keep the maps small
		tx.Emit([]byte("swept"))
		return tx.Sweep(id)
	}); err != nil {
		t.Error(err)
	}
	events, _ := store.Pending(tokenstore.MaxOutbox)
	_ = store.Done(events[len(events)-1].Seq)
	if _, err := cache.Find(t.Context(), secret); !errors.Is(err, tokenstore.ErrNotFound) {
		t.Errorf("the swept token is found: %v", err)
	}
}

func TestSecretReplacedByRotationIsNotFoundInCache(t *testing.T) {
	var cache *tokenstore.Cache
	store := storetest.NewMemory(func(c tokenstore.Change) { cache.Changed(c) })
	cache = newCache(t, store, 100)
	id, old := issue(t, store)
	if _, err := cache.Find(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	var fresh []byte
	if err := edit(store, id, func(tok *tokenstore.Token) { fresh = secretOf(tok, nil) }); err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Find(t.Context(), old); !errors.Is(err, tokenstore.ErrNotFound) {
		t.Errorf("the secret that was given up: %v", err)
	}
	if m, err := cache.Find(t.Context(), fresh); err != nil || m.Secret != &m.Token.Secrets[0] {
		t.Errorf("the new secret: %v, %v", m, err)
	}
}

func TestUnknownSecretsDisplaceNothing(t *testing.T) {
	store := storetest.NewMemory(nil)
	cache := newCache(t, store, 10)
	_, secret := issue(t, store)
	if _, err := cache.Find(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		unknown := tokenstore.NewSecret("tw")
		if _, err := cache.Find(t.Context(), []byte(unknown.Reveal())); !errors.Is(err, tokenstore.ErrNotFound) {
			t.Fatalf("unknown secret: %v", err)
		}
	}
	before := cache.Stats()
	if _, err := cache.Find(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	if after := cache.Stats(); after.Hits != before.Hits+1 {
		t.Errorf("the known secret was displaced: %+v", after)
	}
}

// TestLargeTokensDoNotMultiplyTheCache: the bound on entries is one of memory.
func TestLargeTokensDoNotMultiplyTheCache(t *testing.T) {
	store := storetest.NewMemory(nil)
	const entries = 1000
	c := newCache(t, store, entries)
	large := func(tok *tokenstore.Token) {
		tok.Resources = tokenstore.Resources{}
		for i := range tokenstore.MaxGrants {
			tok.Resources.Grants = append(tok.Resources.Grants, tokenstore.Grant{Type: "account", ID: fmt.Sprintf("%060d", i), Level: tokenstore.LevelRead})
		}
	}
	for range 60 {
		id, secret := issue(t, store)
		if err := edit(store, id, large); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Find(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
	}
	const most = entries / 50 // each counts for more than fifty
	if kept := c.Stats().Entries; kept > most || kept < most/2 {
		t.Errorf("%d large tokens are kept, want at most %d and about as many", kept, most)
	}
}

func TestGarbageTouchesNeitherCacheNorStore(t *testing.T) {
	cache := newCache(t, readerFunc(func(context.Context, tokenstore.Digest) (*tokenstore.Token, error) {
		t.Error("the store was asked")
		return nil, tokenstore.ErrNotFound
	}), 10)
	good := []byte(tokenstore.NewSecret("tw").Reveal())
	for _, test := range []struct {
		name string
		text []byte
		want error
	}{
		{"empty", nil, tokenstore.ErrBrokenSecret},
		{"short", good[:20], tokenstore.ErrBrokenSecret},
		{"long", append(append([]byte{}, good...), '0'), tokenstore.ErrBrokenSecret},
		{"wrong checksum", append(append([]byte{}, good[:len(good)-1]...), '!'), tokenstore.ErrBrokenSecret},
		{"right checksum of no base62", outsideAlphabet(), tokenstore.ErrBrokenSecret},
		{"another prefix", append([]byte("x"), good...), tokenstore.ErrNotFound},
	} {
		if _, err := cache.Find(t.Context(), test.text); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
		broken := tokenstore.NewFormats("tw").Classify(test.text) == tokenstore.ClassBroken
		if broken != errors.Is(test.want, tokenstore.ErrBrokenSecret) {
			t.Errorf("%s: by its form it is broken: %t", test.name, broken)
		}
	}
	if s := cache.Stats(); s.Hits+s.Misses != 0 {
		t.Errorf("garbage was counted as lookups: %+v", s)
	}
}

// outsideAlphabet makes a text that is a secret in all but one of its characters.
func outsideAlphabet() []byte {
	const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	text := []byte("tw_0123456789abcdef-ABCDEFGHIJ01234")
	crc := crc32.ChecksumIEEE(text)
	sum := make([]byte, 6)
	for i := range sum {
		sum[len(sum)-1-i] = base62[crc%62]
		crc /= 62
	}
	return append(text, sum...)
}

// TestIndexThatPointsElsewhereOpensNothing: whoever writes the store without the pepper
// can have the digest of a secret of theirs lead to any token.
func TestIndexThatPointsElsewhereOpensNothing(t *testing.T) {
	secret := []byte(tokenstore.NewSecret("tw").Reveal())
	cache := newCache(t, readerFunc(func(context.Context, tokenstore.Digest) (*tokenstore.Token, error) {
		return storetest.Sample(7, 1, 1), nil
	}), 10)
	for range 2 { // from the store, and from what might have been kept
		if m, err := cache.Find(t.Context(), secret); !errors.Is(err, tokenstore.ErrNotFound) || m.Token != nil {
			t.Errorf("it opens %+v, %v", m.Token, err)
		}
	}
}

func TestCacheCountsWhatItDid(t *testing.T) {
	var cache *tokenstore.Cache
	store := storetest.NewMemory(func(c tokenstore.Change) { cache.Changed(c) })
	cache = newCache(t, store, 1)
	id, secret := issue(t, store)
	find := func(secret []byte) {
		if _, err := cache.Find(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
	}
	find(secret)
	find(secret)
	find(secret)
	if got, want := cache.Stats(), (tokenstore.CacheStats{Entries: 1, MaxEntries: 1, Hits: 2, Misses: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if err := edit(store, id, revoke); err != nil {
		t.Fatal(err)
	}
	find(secret)
	cache.Forget()
	find(secret)
	if got, want := cache.Stats(), (tokenstore.CacheStats{Entries: 1, MaxEntries: 1, Hits: 2, Misses: 3, Outdated: 2}); got != want {
		t.Errorf("after two changes %+v, want %+v", got, want)
	}
	none := newCache(t, store, 0)
	if _, err := none.Find(t.Context(), secret); err != nil || none.Stats() != (tokenstore.CacheStats{Misses: 1}) {
		t.Errorf("a cache that keeps nothing: %+v, %v", none.Stats(), err)
	}
	if _, err := tokenstore.NewCache(store, nil, tokenstore.NewFormats("tw"), -1); err == nil {
		t.Error("a cache keeps fewer than no entries")
	}
}

func TestStoreErrorIsNotTakenForUnknownSecret(t *testing.T) {
	store := storetest.NewMemory(nil)
	_, secret := issue(t, store)
	broken := errors.New("disk on fire")
	fail := true
	cache := newCache(t, readerFunc(func(ctx context.Context, d tokenstore.Digest) (*tokenstore.Token, error) {
		if fail {
			return nil, broken
		}
		return store.ByDigest(ctx, d)
	}), 10)
	if _, err := cache.Find(t.Context(), secret); !errors.Is(err, broken) || errors.Is(err, tokenstore.ErrNotFound) {
		t.Errorf("got %v, want the store's error", err)
	}
	fail = false
	if _, err := cache.Find(t.Context(), secret); err != nil {
		t.Errorf("the error was kept: %v", err)
	}
}

func TestEveryPepperIsTried(t *testing.T) {
	file := func(c byte) []byte {
		b := make([]byte, tokenstore.MinPepperBytes)
		for i := range b {
			b[i] = c
		}
		return b
	}
	peppers := func(files ...[]byte) *tokenstore.Peppers {
		p, err := tokenstore.NewPeppers(files...)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	store := storetest.NewMemory(nil)
	var secret []byte
	err := store.Change(t.Context(), func(tx tokenstore.Tx) error {
		id, err := tx.NewID()
		if err != nil {
			return err
		}
		tok := storetest.Sample(id, 1, 1)
		secret = secretOf(tok, peppers(file('a')))
		tx.Emit([]byte("issued"))
		return tx.Put(tok)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		peppers *tokenstore.Peppers
		found   bool
	}{
		{"the same", peppers(file('a')), true},
		{"behind a newer one", peppers(file('b'), file('a')), true},
		{"another", peppers(file('b')), false},
		{"none", nil, false},
	} {
		cache, err := tokenstore.NewCache(store, test.peppers, tokenstore.NewFormats("tw"), 10)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cache.Find(t.Context(), secret); err == nil != test.found {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// Tokens in use, here by strict turns, must stay while many others are asked for once.
func TestTokensInUseOutstayThoseAskedForOnce(t *testing.T) {
	reads := 0
	cache := newCache(t, readerFunc(func(_ context.Context, d tokenstore.Digest) (*tokenstore.Token, error) {
		reads++
		tok := storetest.Sample(1, 1, 1)
		tok.Secrets[0].Digest, tok.Secrets[0].Scheme = d, tokenstore.SchemeNative
		return tok, nil
	}), 256)
	find := func(secret []byte) {
		if _, err := cache.Find(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
	}
	inUse := make([][]byte, 16)
	for i := range inUse {
		inUse[i] = []byte(tokenstore.NewSecret("tw").Reveal())
	}
	const rounds, others = 400, 32
	missed := 0
	for range rounds {
		for _, secret := range inUse {
			before := reads
			find(secret)
			missed += reads - before
		}
		for range others {
			find([]byte(tokenstore.NewSecret("tw").Reveal()))
		}
	}
	if most := 2 * len(inUse); missed > most { // once each at first
		t.Errorf("tokens in use were read from the store %d times in %d uses: more than %d", missed, rounds*len(inUse), most)
	}
}
