package usage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/storetest"
	"tokenward/tokenstore/usage"
)

var (
	client = netip.MustParseAddr("192.0.2.7")
	routes = usage.NewVocabulary([]usage.Route{
		{Pattern: "GET /accounts/{account}", Scopes: []string{"accounts:read"}},
		{Pattern: "* /cards/{card}", Scopes: []string{"cards", "cards:write"}},
		{Pattern: "GET /healthz"},
	})
)

func at(seconds int) time.Time { return storetest.Epoch.Add(time.Duration(seconds) * time.Second) }

// world is a recorder over a real store with tokens in it.
type world struct {
	store    *boltstore.Store
	recorder *usage.Recorder
	tokens   []*tokenstore.Token

	mu     sync.Mutex
	beside map[tokenstore.Digest]*tokenstore.Beside // of the cached secrets; restarts leave it as it is
	uses   int
}

func newWorld(t *testing.T, tokens int) *world {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens.db")
	store, err := boltstore.Create(boltstore.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	w := &world{store: store, beside: map[tokenstore.Digest]*tokenstore.Beside{}}
	for range tokens {
		w.tokens = append(w.tokens, w.add(t))
	}
	w.restart(t)
	return w
}

func (w *world) add(t *testing.T) *tokenstore.Token {
	t.Helper()
	var made *tokenstore.Token
	err := w.store.Change(t.Context(), func(tx tokenstore.Tx) error {
		id, err := tx.NewID()
		if err != nil {
			return err
		}
		made = storetest.Sample(id, 1, 1)
		tx.Emit([]byte("made"))
		return tx.Put(made)
	})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// restart begins with a recorder that remembers nothing.
func (w *world) restart(t *testing.T) {
	t.Helper()
	var err error
	if w.recorder, err = usage.NewRecorder(w.store, usage.Pace{}); err != nil {
		t.Fatal(err)
	}
}

// record notes every other use beside the cached secret.
func (w *world) record(words *usage.Vocabulary, u *usage.Use) {
	w.mu.Lock()
	if w.uses++; w.uses%2 == 0 {
		if w.beside[u.Secret] == nil {
			w.beside[u.Secret] = &tokenstore.Beside{}
		}
		u.Beside = w.beside[u.Secret]
	}
	w.mu.Unlock()
	w.recorder.Record(words, u)
}

func (w *world) use(token *tokenstore.Token, when time.Time, route int, agent string) {
	w.record(routes, &usage.Use{
		Token: token.ID, Secret: token.Secrets[0].Digest, At: when, From: client, UserAgent: []byte(agent), Route: route,
	})
}

func (w *world) flush(t *testing.T) {
	t.Helper()
	if err := w.recorder.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(t, w.store)
}

func check(t *testing.T, s *boltstore.Store) {
	t.Helper()
	if err := s.Check(context.Background(), func(fault string) { t.Error(fault) }); err != nil {
		t.Error(err)
	}
}

func (w *world) want(t *testing.T, token *tokenstore.Token, want usage.Record) {
	t.Helper()
	got, err := w.recorder.Of(token)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
}

func TestUseIsKnownBeforeAndAfterItIsWritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	token := w.tokens[0]
	w.want(t, token, usage.Record{})
	w.use(token, at(1), 0, "curl/8")
	w.use(token, at(2), 1, "curl/9")
	want := usage.Record{
		Uses: 2, Last: at(2), Routes: []string{"* /cards/{card}", "GET /accounts/{account}"}, Scopes: []string{"accounts:read", "cards", "cards:write"},
		Secrets: []usage.Secret{{Key: usage.KeyOf(token.Secrets[0].Digest), Uses: 2, Last: at(2), From: client, UserAgent: "curl/9", Route: "* /cards/{card}"}},
	}
	w.want(t, token, want)
	w.flush(t)
	w.want(t, token, want)
	w.restart(t)
	w.want(t, token, want)
	w.use(token, at(3), 2, "")
	want.Uses, want.Last = 3, at(3)
	want.Routes = append(want.Routes, "GET /healthz")
	want.Secrets[0].Uses, want.Secrets[0].Last, want.Secrets[0].UserAgent, want.Secrets[0].Route = 3, at(3), "", "GET /healthz"
	w.want(t, token, want)
	w.flush(t)
	w.want(t, token, want)
	w.want(t, w.tokens[1], usage.Record{})
}

// TestRequestThatLastsIsOneUse has a stream go on over two writes: its token is in
// use until its end, and was used once.
func TestRequestThatLastsIsOneUse(t *testing.T) {
	w := newWorld(t, 1)
	token := w.tokens[0]
	w.use(token, at(1), 0, "app")
	for _, second := range []int{61, 121} {
		w.flush(t)
		w.record(routes, &usage.Use{
			Token: token.ID, Secret: token.Secrets[0].Digest, At: at(second), From: client, UserAgent: []byte("app"), Route: 0, Lasts: true,
		})
	}
	w.flush(t)
	w.restart(t)
	got, err := w.recorder.Of(token)
	if err != nil {
		t.Fatal(err)
	}
	if got.Uses != 1 || !got.Last.Equal(at(121)) || len(got.Secrets) != 1 || got.Secrets[0].Uses != 1 || got.Secrets[0].UserAgent != "app" {
		t.Errorf("%+v", got)
	}
}

func TestLateUseDoesNotHideALaterOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.use(w.tokens[0], at(9), 0, "late")
	w.flush(t)
	w.use(w.tokens[0], at(3), 1, "early")
	w.flush(t)
	got, err := w.recorder.Of(w.tokens[0])
	if err != nil || got.Secrets[0].UserAgent != "late" || !got.Last.Equal(at(9)) || got.Uses != 2 {
		t.Errorf("usage is %+v, %v", got, err)
	}
}

func TestExercisedNamesOutliveThePolicy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	token := w.tokens[0]
	w.use(token, at(1), 1, "")
	// The same index means another route in the next policy, before and after a write.
	next := usage.NewVocabulary([]usage.Route{{Pattern: "GET /a", Scopes: []string{"a"}}, {Pattern: "GET /b", Scopes: []string{"b"}}})
	for range 2 {
		w.record(next, &usage.Use{Token: token.ID, Secret: token.Secrets[0].Digest, At: at(2), Route: 1})
		got, err := w.recorder.Of(token)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"* /cards/{card}", "GET /b"}, got.Routes); diff != "" {
			t.Errorf("routes (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"b", "cards", "cards:write"}, got.Scopes); diff != "" {
			t.Errorf("scopes (-want +got):\n%s", diff)
		}
		w.flush(t)
	}
	w.restart(t)
	if got, err := w.recorder.Of(token); err != nil || got.Uses != 3 || !got.Exercised("cards:*") || got.Exercised("accounts:read") || !got.Exercised("*") {
		t.Errorf("after a restart usage is %+v, %v", got, err)
	}
}

func TestLargePoliciesAreFollowedUpToTheirBound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	var many []usage.Route
	for i := range 5000 {
		many = append(many, usage.Route{Pattern: fmt.Sprintf("GET /%04d", i)})
	}
	large := usage.NewVocabulary(many)
	take := func(words *usage.Vocabulary, taken ...int) {
		for _, route := range taken {
			w.record(words, &usage.Use{Token: w.tokens[0].ID, Secret: w.tokens[0].Secrets[0].Digest, At: at(route), Route: route})
		}
		w.flush(t)
	}
	take(routes, 0, 2) // the entry of the one is used again for the other, and back
	take(large, 0, 2, 299, 4095)
	if got, err := w.recorder.Of(w.tokens[0]); err != nil || got.More {
		t.Errorf("it took more routes than %v, %v", got.Routes, err)
	}
	// What is known of a route that is not followed is that there was one: it must not
	// pass for one that was never taken.
	w.record(large, &usage.Use{Token: w.tokens[0].ID, Secret: w.tokens[0].Secrets[0].Digest, At: at(4999), Route: 4999})
	if got, err := w.recorder.Of(w.tokens[0]); err != nil || !got.More {
		t.Errorf("before it is written it took no more routes than %v, %v", got.Routes, err)
	}
	w.flush(t)
	take(routes, 2)
	got, err := w.recorder.Of(w.tokens[0])
	if err != nil || !got.More {
		t.Errorf("it took no more routes than %v, %v", got.Routes, err)
	}
	want := []string{"GET /0000", "GET /0002", "GET /0299", "GET /4095", "GET /accounts/{account}", "GET /healthz"}
	if diff := cmp.Diff(want, got.Routes); diff != "" || got.Uses != 8 || got.Secrets[0].Route != "GET /4999" {
		t.Errorf("%d uses, the last on %s; routes (-want +got):\n%s", got.Uses, got.Secrets[0].Route, diff)
	}
}

func TestUserAgentCannotCarryASecretOrControls(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	secret := tokenstore.NewSecret("tw").Reveal()
	for i, test := range []struct{ agent, want string }{
		{"a\r\nb\x00\xffc", "a??b??c"},
		{"x " + secret, "x [secret]"},
		{strings.Repeat("a", 500), strings.Repeat("a", 128)},
		{strings.Repeat(" ", 120) + secret, strings.Repeat(" ", 120) + "[secret]"},
		{strings.Repeat("-", 127) + " " + secret, strings.Repeat("-", 127) + " "},
	} {
		w.use(w.tokens[0], at(i), 0, test.agent)
		got, err := w.recorder.Of(w.tokens[0])
		if err != nil || got.Secrets[0].UserAgent != test.want {
			t.Errorf("%q is kept as %q, %v", test.agent, got.Secrets[0].UserAgent, err)
		}
		w.flush(t)
	}
}

func TestWriteBackNeitherRevivesNorTouchesTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	revoked, swept := w.tokens[0], w.tokens[1]
	w.use(revoked, at(1), 0, "")
	w.use(swept, at(1), 0, "")
	w.flush(t)
	w.use(revoked, at(2), 0, "")
	w.use(swept, at(2), 0, "")
	err := w.store.Change(t.Context(), func(tx tokenstore.Tx) error {
		dead, err := tx.Token(revoked.ID)
		if err != nil {
			return err
		}
		dead.State, dead.EndedAt = tokenstore.StateRevoked, at(2)
		tx.Emit([]byte("gone"))
		return errors.Join(tx.Put(dead), tx.Sweep(swept.ID))
	})
	if err != nil {
		t.Fatal(err)
	}
	before := w.store.Stats()
	w.flush(t)
	got, err := w.store.ByID(t.Context(), revoked.ID)
	if err != nil || got.State != tokenstore.StateRevoked || got.Revision != 2 {
		t.Errorf("the revoked token is %+v, %v", got, err)
	}
	if _, err := w.store.ByID(t.Context(), swept.ID); !errors.Is(err, tokenstore.ErrNotFound) {
		t.Errorf("the swept token: %v", err)
	}
	if value, err := w.store.Usage(swept.ID); err != nil || value != nil {
		t.Errorf("usage of the swept token is %x, %v", value, err)
	}
	if after := w.store.Stats(); after.Outbox != before.Outbox || after.Active != before.Active {
		t.Errorf("the write changed the store from %+v to %+v", before, after)
	}
}

// faulty fails writes as it is told.
type faulty struct {
	usage.Store
	fail func() error
}

func (f *faulty) MergeUsage(ctx context.Context, ids []tokenstore.ID, merge func(tokenstore.ID, []byte) []byte) error {
	err := f.fail()
	if err == nil || errors.Is(err, tokenstore.ErrOutcomeUnknown) {
		err = errors.Join(err, f.Store.MergeUsage(ctx, ids, merge))
	}
	return err
}

func TestFailedWriteIsMadeUpForOnce(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]error{"not applied": errors.New("disk full"), "applied": tokenstore.ErrOutcomeUnknown} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1)
			err := fault
			recorder, rerr := usage.NewRecorder(&faulty{w.store, func() error { return err }}, usage.Pace{})
			if rerr != nil {
				t.Fatal(rerr)
			}
			w.recorder = recorder
			w.use(w.tokens[0], at(1), 0, "a")
			if got := recorder.Flush(t.Context()); !errors.Is(got, fault) {
				t.Fatalf("flush: %v", got)
			}
			w.use(w.tokens[0], at(2), 1, "b")
			err = nil
			w.flush(t)
			w.restart(t)
			got, oerr := w.recorder.Of(w.tokens[0])
			if oerr != nil || got.Uses != 2 || got.Secrets[0].UserAgent != "b" || len(got.Routes) != 2 {
				t.Errorf("usage is %+v, %v", got, oerr)
			}
		})
	}
}

func TestMemoryIsBoundedAndWhatIsLostIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	digest := tokenstore.Digest{1}
	for i := range usage.MaxTracked + 64 {
		w.record(routes, &usage.Use{Token: tokenstore.ID(i + 1), Secret: digest, At: at(i), Route: 0})
	}
	st := w.recorder.Stats()
	if st.Tracked != usage.MaxTracked || st.Lost != 64 || st.Early != 64 {
		t.Errorf("stats are %+v", st)
	}
	if !w.recorder.LostSince(at(usage.MaxTracked)) || w.recorder.LostSince(at(usage.MaxTracked+64)) {
		t.Error("the time of the loss is wrong")
	}
	w.flush(t)
	if st := w.recorder.Stats(); st.Tracked != 0 || st.Pending != 0 {
		t.Errorf("after the write stats are %+v", st)
	}
}

func TestRunWritesEverySoOftenAndAtTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() {
			w.recorder.Run(ctx, func() time.Duration { return usage.DefaultEvery }, func(err error) { t.Error(err) })
		})
		stored := func() bool {
			synctest.Wait()
			value, err := w.store.Usage(w.tokens[0].ID)
			return err == nil && value != nil
		}
		w.use(w.tokens[0], at(1), 0, "")
		time.Sleep(usage.DefaultEvery - time.Millisecond) //nolint:forbidigo // in a bubble
		if stored() {
			t.Error("it was written before its time")
		}
		time.Sleep(time.Millisecond) //nolint:forbidigo // in a bubble
		if !stored() {
			t.Error("it was not written in time")
		}
		w.use(w.tokens[0], at(2), 0, "")
		cancel()
		done.Wait()
		w.restart(t)
		if got, err := w.recorder.Of(w.tokens[0]); err != nil || got.Uses != 2 {
			t.Errorf("after the end usage is %+v, %v", got, err)
		}
		_ = w.store.Close()
	})
}

func TestConcurrentUsesAreAllCounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4)
	const each, workers = 500, 4
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range each {
				w.use(w.tokens[i%len(w.tokens)], at(i), i%3, "x")
			}
		})
	}
	for range 5 {
		w.flush(t)
		if _, err := w.recorder.Of(w.tokens[0]); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	w.flush(t)
	sum := uint64(0)
	for _, token := range w.tokens {
		got, err := w.recorder.Of(token)
		if err != nil {
			t.Fatal(err)
		}
		sum += got.Uses
	}
	if sum != each*workers {
		t.Errorf("%d uses were counted, %d made", sum, each*workers)
	}
}

func TestRecordDoesNotAllocate(t *testing.T) {
	w := newWorld(t, 1)
	u := usage.Use{Token: w.tokens[0].ID, Secret: w.tokens[0].Secrets[0].Digest, At: at(1), From: client, Route: 1}
	clients := [][]byte{[]byte("curl/8.5.0"), nil, bytes.Repeat([]byte("a"), 300)} // take turns
	use := func() {
		for _, u.UserAgent = range clients {
			w.recorder.Record(routes, &u)
		}
	}
	for _, u.Beside = range []*tokenstore.Beside{nil, {}} {
		use()
		if n := testing.AllocsPerRun(1000, use); n != 0 {
			t.Errorf("%v allocations for %d uses, in the cache: %t", n, len(clients), u.Beside != nil)
		}
	}
}

// TestTraceBesideATokenServesNoOther: what a cached secret leads to may have been written
// since, and note the use of another token by now, or of the same one.
func TestTraceBesideATokenServesNoOther(t *testing.T) {
	t.Parallel()
	const sharing = 64 // tokens whose ids differ by so much share a part, and its traces
	w := newWorld(t, sharing+1)
	one, other := w.tokens[0], w.tokens[sharing]
	use := func(token *tokenstore.Token, words *usage.Vocabulary, when, route int) {
		secret := token.Secrets[0].Digest
		if w.beside[secret] == nil {
			w.beside[secret] = &tokenstore.Beside{}
		}
		w.recorder.Record(words, &usage.Use{Token: token.ID, Secret: secret, At: at(when), Route: route, Beside: w.beside[secret]})
	}
	want := func(token *tokenstore.Token, uses uint64, last int) {
		t.Helper()
		got, err := w.recorder.Of(token)
		if err != nil || got.Uses != uses || uses > 0 && (!got.Last.Equal(at(last)) || len(got.Secrets) != 1) {
			t.Errorf("token %d: %+v, %v, want %d uses, the last at %v", token.ID, got, err, uses, at(last))
		}
	}
	use(one, routes, 0, 0)
	w.restart(t) // what was not written is lost, and the trace beside it is another recorder's
	use(one, routes, 1, 0)
	use(one, routes, 2, 0)
	want(one, 2, 2)
	w.flush(t)
	use(other, routes, 3, 1) // takes the trace that one left
	want(one, 2, 2)
	want(other, 1, 3)
	use(one, routes, 4, 0)
	use(other, routes, 5, 1)
	want(one, 3, 4)
	want(other, 2, 5)
	// One that a reload replaced still counts, and the later words are found again.
	later := usage.NewVocabulary([]usage.Route{{Pattern: "GET /later"}})
	use(one, later, 6, 0)
	use(one, routes, 7, 0)
	use(one, later, 8, 0)
	want(one, 6, 8)
	w.flush(t)
	want(one, 6, 8)
	want(other, 2, 5)
	// Nor is one written to that was taken, and waits for a store that fails.
	w.recorder, _ = usage.NewRecorder(nameless{w.store}, usage.Pace{})
	latest := usage.NewVocabulary([]usage.Route{{Pattern: "GET /latest"}})
	use(other, latest, 10, 0)
	if err := w.recorder.Flush(t.Context()); !errors.Is(err, errNameless) {
		t.Fatalf("flush: %v", err)
	}
	use(other, latest, 11, 0)
	if st := w.recorder.Stats(); st.Tracked != 1 {
		t.Errorf("after a use stats are %+v", st)
	}
	want(other, 4, 11)
}

var errNameless = errors.New("no more names")

// nameless takes no new names.
type nameless struct{ usage.Store }

func (nameless) AddUsageNames(context.Context, []string) ([]string, error) { return nil, errNameless }

// Many more agents than texts that are shared: each use must keep its own.
func TestUserAgentsDoNotTakeOneAnothersPlace(t *testing.T) {
	w := newWorld(t, 50)
	const agents = 3000
	for i := range agents {
		buf := fmt.Appendf(nil, "agent %d", i) // the caller's own, which it uses again
		token := w.tokens[i%len(w.tokens)]
		w.recorder.Record(routes, &usage.Use{Token: token.ID, Secret: token.Secrets[0].Digest, At: at(i), From: client, UserAgent: buf, Route: 0})
		clear(buf)
	}
	for i, token := range w.tokens {
		got, err := w.recorder.Of(token)
		want := fmt.Sprintf("agent %d", agents-len(w.tokens)+i)
		if err != nil || len(got.Secrets) != 1 || got.Secrets[0].UserAgent != want {
			t.Errorf("%+v, %v: not by %q", got, err, want)
		}
	}
}

// BenchmarkRecord is what tracking adds to a request: at most 100 ns.
func BenchmarkRecord(b *testing.B) {
	store, err := boltstore.Create(boltstore.Options{Path: filepath.Join(b.TempDir(), "tokens.db")})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	r, err := usage.NewRecorder(store, usage.Pace{})
	if err != nil {
		b.Fatal(err)
	}
	agent := []byte("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0")
	for _, tokens := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("tokens=%d", tokens), func(b *testing.B) {
			b.ReportAllocs()
			beside := make([]tokenstore.Beside, tokens)
			i := 0
			for b.Loop() {
				i++
				id := tokenstore.ID(i%tokens + 1) //nolint:gosec // not negative
				r.Record(routes, &usage.Use{Token: id, Secret: tokenstore.Digest{byte(id), byte(id >> 8)}, At: storetest.Epoch, From: client, UserAgent: agent, Route: i % 3, Beside: &beside[i%tokens]})
			}
		})
	}
}

func TestPaceLeavesNoTokenWaiting(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	var err error
	if w.recorder, err = usage.NewRecorder(w.store, usage.Pace{Tokens: 1, Commits: 1}); err != nil {
		t.Fatal(err)
	}
	for i, token := range w.tokens {
		w.use(token, at(i), 0, "")
	}
	written := func() (n int) {
		for _, token := range w.tokens {
			if value, err := w.store.Usage(token.ID); err != nil {
				t.Fatal(err)
			} else if value != nil {
				n++
			}
		}
		return n
	}
	for want := 1; want <= 3; want++ {
		w.use(w.tokens[0], at(10+want), 0, "") // the first in order, all the time
		w.flush(t)
		if n := written(); n != want {
			t.Errorf("after %d flushes %d tokens are written", want, n)
		}
	}
}
