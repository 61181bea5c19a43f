package enforce_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
)

// The scale of the promised numbers.
const (
	scaleTokens = 1_000_000
	scaleKnown  = 100_000 // secrets that the benchmarks know
	scaleRoutes = 200
)

// scaleStore fills a store once and keeps it between runs, since that takes a
// minute. With a pepper it is another one.
func scaleStore(b *testing.B, peppers *tokenstore.Peppers) (*boltstore.Store, []string) {
	b.Helper()
	name := "plain"
	if peppers != nil {
		name = "peppered"
	}
	dir := filepath.Join(os.TempDir(), "tokenward-scale")
	path, list := filepath.Join(dir, name+"-1.db"), filepath.Join(dir, name+"-1.secrets")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	opts := boltstore.Options{Path: path, Peppers: peppers}
	if raw, err := os.ReadFile(list); err == nil {
		store, err := boltstore.Open(opts)
		if err != nil {
			b.Fatal(err)
		}
		const size = 2 + 1 + 38
		secrets := make([]string, 0, scaleKnown)
		for ; len(raw) >= size; raw = raw[size:] {
			secrets = append(secrets, string(raw[:size]))
		}
		return store, secrets
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		b.Fatal(err)
	}
	b.Logf("filling %s with %d tokens", path, scaleTokens)
	store, err := boltstore.Create(opts)
	if err != nil {
		b.Fatal(err)
	}
	var secrets []string
	const batch = 20_000
	for range scaleTokens / batch {
		var made []string
		err := store.Change(b.Context(), func(tx tokenstore.Tx) error {
			made = nil
			tx.Emit([]byte("{}"))
			for range batch {
				secret, err := putScaleToken(tx, peppers)
				if err != nil {
					return err
				}
				made = append(made, secret)
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		if len(secrets) < scaleKnown {
			secrets = append(secrets, made...)
		}
	}
	var raw []byte
	for _, s := range secrets {
		raw = append(raw, s...)
	}
	if err := os.WriteFile(list, raw, 0o600); err != nil {
		b.Fatal(err)
	}
	return store, secrets
}

func putScaleToken(tx tokenstore.Tx, peppers *tokenstore.Peppers) (string, error) {
	id, err := tx.NewID()
	if err != nil {
		return "", err
	}
	secret := tokenstore.NewSecret("tw")
	digest, pepper := peppers.Digest(secret.Reveal())
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return secret.Reveal(), tx.Put(&tokenstore.Token{
		ID: id, Account: 1 + uint64(id)%1000, Owner: 1, Name: fmt.Sprintf("worker %d", id),
		Scopes: []string{"accounts", "cards", "payments-write"},
		Resources: tokenstore.Resources{Grants: []tokenstore.Grant{
			{Type: "account", ID: "10000", Level: tokenstore.LevelWrite}, {Type: "account", ID: "10001", Level: tokenstore.LevelRead}}},
		Sources:   tokenstore.Sources{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/24")}},
		Expiry:    tokenstore.EndsAt(now.AddDate(10, 0, 0)),
		Limits:    tokenstore.Limits{Rate: 1e9, Burst: 1e9},
		State:     tokenstore.StateActive,
		Creator:   tokenstore.Creator{ID: 1, Name: "root"},
		CreatedAt: now, UpdatedAt: now,
		Secrets: []tokenstore.SecretRecord{{Digest: digest, Pepper: pepper, Scheme: tokenstore.SchemeNative, Last4: secret.Last4(), CreatedAt: now, Ends: tokenstore.Never()}},
	})
}

func scalePolicy(b *testing.B) *enforce.Policy {
	b.Helper()
	var specs []enforce.RouteSpec
	for i := range scaleRoutes {
		specs = append(specs, enforce.RouteSpec{Match: fmt.Sprintf("GET /accounts/{account}/things%d/{id}", i),
			Scopes: []string{"cards|accounts"}, Resources: []string{"thing:{id}|account:{account}"}})
	}
	policy, faults := enforce.Compile(specs, enforce.Options{})
	if len(faults) > 0 {
		b.Fatal(faults)
	}
	return policy
}

// asking is one canonical request whose credential can be exchanged, so that
// only the judgement is measured, and not a walk through prepared requests.
type asking struct {
	req    canon.Request
	secret []byte // inside of the header's value
}

func newAsking(b *testing.B) *asking {
	b.Helper()
	rules, err := canon.NewRules(canon.Options{})
	if err != nil {
		b.Fatal(err)
	}
	value := []byte("Bearer " + tokenstore.NewSecret("tw").Reveal())
	a := &asking{secret: value[len("Bearer "):]}
	v := rules.Canonicalize(&a.req, &canon.Head{
		Method: []byte("GET"), Target: fmt.Appendf(nil, "/accounts/10000/things%d/7", scaleRoutes/2), Major: 1, Minor: 1,
		Fields: []canon.Field{{Name: []byte("Host"), Value: []byte("a")}, {Name: []byte("Authorization"), Value: value}},
		Peer:   netip.MustParseAddrPort("192.0.2.10:40000"),
	})
	if v != canon.Accepted {
		b.Fatal(v)
	}
	return a
}

// inOneRow puts the secrets one behind the other in memory, since those of requests
// have just been received: fetching them is not the judgement's work.
func inOneRow(secrets []string) []string {
	all := strings.Join(secrets, "")
	row := make([]string, len(secrets))
	for i, s := range secrets {
		row[i], all = all[:len(s)], all[len(s):]
	}
	return row
}

// processCPU is the processor time of this process, which other work on the machine
// inflates far less than the time on the wall; what others of its threads do on
// behalf of a request counts too.
func processCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkDecideAndAdmit(b *testing.B) {
	pepper, err := tokenstore.NewPeppers([]byte("a pepper of at least thirty-two bytes"))
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		peppers *tokenstore.Peppers
		secrets int
		cache   int
	}{
		{"64 hot", nil, 64, 100_000},
		{"64 hot with a pepper", pepper, 64, 100_000},
		{"100000 cached, uniformly random", nil, scaleKnown, 2 * scaleKnown},
		{"all misses", nil, scaleKnown, 0},
		{"garbage with our prefix", nil, 0, 100_000},
	} {
		b.Run(c.name, func(b *testing.B) {
			store, secrets := scaleStore(b, c.peppers)
			b.Cleanup(func() { _ = store.Close() })
			if secrets = secrets[:c.secrets]; c.secrets == 0 {
				secrets = []string{"tw_0123456789abcdefghijABCDEFGHIJ0123456789AA"[:41]}
			}
			cache, err := tokenstore.NewCache(store, c.peppers, tokenstore.NewFormats("tw"), c.cache)
			if err != nil {
				b.Fatal(err)
			}
			e, policy, a := enforce.NewEngine(cache, 0), scalePolicy(b), newAsking(b)
			now := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
			ctx := context.Background()
			decide := func(secret string) {
				copy(a.secret, secret)
				d := e.Decide(ctx, policy, &a.req, now)
				if e.Admit(&d, now) != (c.secrets > 0) {
					b.Fatal(d.Reason)
				}
			}
			for _, s := range secrets {
				decide(s)
			}
			rand.Shuffle(len(secrets), func(i, j int) { secrets[i], secrets[j] = secrets[j], secrets[i] })
			secrets = inOneRow(secrets)
			i, n := 0, 0
			b.ReportAllocs()
			runtime.GC() // what filling the cache leaves is not the requests'
			before := processCPU(b)
			for b.Loop() {
				decide(secrets[i])
				n++
				if i++; i == len(secrets) {
					i = 0
				}
			}
			b.ReportMetric(float64((processCPU(b)-before).Nanoseconds())/float64(n), "cpu-ns/op")
		})
	}
}

// BenchmarkCachedMemory reports the anonymous memory of a process that keeps 100,000
// tokens in its cache and the state of their limits. Promised: 150 MB. The program
// keeps the use of each besides.
func BenchmarkCachedMemory(b *testing.B) {
	store, secrets := scaleStore(b, nil)
	defer store.Close()
	cache, err := tokenstore.NewCache(store, nil, tokenstore.NewFormats("tw"), 2*scaleKnown)
	if err != nil {
		b.Fatal(err)
	}
	e, policy, a := enforce.NewEngine(cache, 0), scalePolicy(b), newAsking(b)
	now := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	for b.Loop() {
		for _, secret := range secrets[:scaleKnown] {
			copy(a.secret, secret)
			if d := e.Decide(b.Context(), policy, &a.req, now); !e.Admit(&d, now) {
				b.Fatal(d.Reason)
			}
		}
	}
	debug.FreeOSMemory()
	b.ReportMetric(rssAnon(b), "RssAnon-MB")
	if n := cache.Stats().Entries; n < scaleKnown*99/100 {
		b.Errorf("%d tokens are cached", n)
	}
	runtime.KeepAlive(e)
}

func rssAnon(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Skip(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	var kb float64
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		b.Fatal(err)
	}
	return kb / 1024
}
