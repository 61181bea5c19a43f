package admin_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"tokenward/admin/admintest"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/storetest"
)

// crowd returns a world over bolt with one account of n tokens, all of one
// owner. The file is made once for all runs, and copied for none: benchmarks
// that use it do not write.
func crowd(b *testing.B, n int) (*admintest.World, admintest.Holder) {
	b.Helper()
	path := filepath.Join(os.TempDir(), fmt.Sprintf("tokenward-bench-account-%d.db", n))
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		makeCrowd(b, path, n)
	}
	store, err := boltstore.Open(boltstore.Options{Path: path})
	if err != nil {
		b.Fatalf("%v: remove %s and try again", err, path)
	}
	b.Cleanup(func() {
		if err := store.Close(); err != nil {
			b.Error(err)
		}
	})
	w := admintest.Over(b, store, nil)
	w.Log = slog.New(slog.DiscardHandler)
	return w, admintest.Holder{ID: 1, Secret: tokenstore.SecretFrom(crowdSecret)}
}

// crowdSecret is of the crowd's first token, which may read the others.
const crowdSecret = "tw_bench"

func makeCrowd(b *testing.B, path string, n int) {
	b.Helper()
	building := path + ".building"
	_ = os.Remove(building)
	store, err := boltstore.Create(boltstore.Options{Path: building})
	if err != nil {
		b.Fatal(err)
	}
	for made := 0; made < n; {
		const batch = 20_000
		err := store.Change(b.Context(), func(tx tokenstore.Tx) error {
			tx.Emit([]byte(`{"verb":"load"}`))
			for range min(batch, n-made) {
				if err := putOne(tx); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		made += batch
	}
	if err := store.Close(); err != nil {
		b.Fatal(err)
	}
	if err := os.Rename(building, path); err != nil {
		b.Fatal(err)
	}
}

func putOne(tx tokenstore.Tx) error {
	id, err := tx.NewID()
	if err != nil {
		return err
	}
	t := storetest.Sample(id, 1, 1)
	if id == 1 {
		t.Resources, t.Sources = tokenstore.Resources{All: true}, tokenstore.Sources{Any: true}
		t.Expiry, t.Limits = tokenstore.Never(), tokenstore.Limits{}
		t.Scopes = []string{tokenstore.ScopeTokenRead}
		t.Secrets[0].Digest, _ = (*tokenstore.Peppers)(nil).Digest(crowdSecret)
	}
	return tx.Put(t)
}

// client calls a server over loopback, as one caller with one connection.
type client struct {
	b      *testing.B
	server *httptest.Server
	secret string
}

func newClient(b *testing.B, w *admintest.World, by admintest.Holder) *client {
	b.Helper()
	server := httptest.NewServer(allFaces(w))
	b.Cleanup(server.Close)
	return &client{b, server, by.Secret.Reveal()}
}

func (c *client) call(method, target, body string, want int) (bytes int64) {
	c.b.Helper()
	r, err := http.NewRequestWithContext(c.b.Context(), method, c.server.URL+target, strings.NewReader(body))
	if err != nil {
		c.b.Fatal(err)
	}
	r.Header.Set("Api-Token", c.secret)
	answer, err := c.server.Client().Do(r)
	if err != nil {
		c.b.Fatal(err)
	}
	defer answer.Body.Close() //nolint:errcheck // it was only read
	bytes, err = io.Copy(io.Discard, answer.Body)
	if err != nil || answer.StatusCode != want {
		c.b.Fatal(answer.Status, err)
	}
	return bytes
}

// The lists of each API, as one page or as a whole.
var listTargets = []struct{ api, target string }{
	{"unit", "/users/1/api-tokens"},
	{"fynn", "/user/api-tokens?limit=100"},
	{"mailtrap", "/api/api_tokens"},
	{"native", "/v1/tokens?limit=100"},
}

// BenchmarkList lists 100 tokens. Promised: 2 ms.
func BenchmarkList(b *testing.B) {
	for _, l := range listTargets {
		b.Run(l.api, func(b *testing.B) {
			w, by := crowd(b, 100)
			c := newClient(b, w, by)
			for b.Loop() {
				c.call("GET", l.target, "", http.StatusOK)
			}
		})
	}
}

// BenchmarkPage asks for a page of 100 in an account of 1,000,000. Promised for
// page 10,000: 100 ms.
func BenchmarkPage(b *testing.B) {
	for _, page := range []int{1, 5000, 10_000} {
		b.Run(fmt.Sprint(page), func(b *testing.B) {
			w, by := crowd(b, 1_000_000)
			c := newClient(b, w, by)
			for b.Loop() {
				c.call("GET", fmt.Sprintf("/user/api-tokens?page=%d&limit=100", page), "", http.StatusOK)
			}
		})
	}
}

// BenchmarkStream lists 100,000 tokens as a whole, and reports by how much the
// anonymous memory of the process grew meanwhile. Promised: 20 MB.
func BenchmarkStream(b *testing.B) {
	for _, l := range listTargets {
		if l.api != "unit" && l.api != "mailtrap" {
			continue // which have pages
		}
		b.Run(l.api, func(b *testing.B) {
			w, by := crowd(b, 100_000)
			c := newClient(b, w, by)
			c.call("GET", l.target, "", http.StatusOK)
			debug.FreeOSMemory()
			before, most := anonymousBytes(b), int64(0)
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				tick := time.NewTicker(5 * time.Millisecond)
				defer tick.Stop()
				for {
					most = max(most, anonymousBytes(b))
					select {
					case <-stop:
						return
					case <-tick.C:
					}
				}
			}()
			var bytes int64
			for b.Loop() {
				bytes = c.call("GET", l.target, "", http.StatusOK)
			}
			close(stop)
			<-stopped
			b.ReportMetric(float64(bytes)/1e6, "answer-MB")
			b.ReportMetric(float64(most-before)/1e6, "grown-MB")
		})
	}
}

// anonymousBytes is the memory of this process that no file stands behind.
func anonymousBytes(b *testing.B) int64 {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Skip("needs /proc")
	}
	_, rest, _ := strings.Cut(string(raw), "RssAnon:")
	var kb int64
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		b.Skip("needs RssAnon in /proc/self/status")
	}
	return kb << 10
}

// BenchmarkCreate creates tokens through HTTP with one caller, each beside the
// commit alone: the same token and an event of the same size, put by nobody.
// Promised: a ratio of at most 2.5.
func BenchmarkCreate(b *testing.B) {
	for _, d := range dialects() {
		b.Run(d.name, func(b *testing.B) {
			store := admintest.Bolt(b)
			w := admintest.Over(b, store, nil)
			w.Log = slog.New(slog.DiscardHandler)
			c := newClient(b, w, w.Root())
			create := d.calls[toCreate](home{1, 1}, 0)
			event := make([]byte, drain(b, store))
			var commits time.Duration
			made := 0
			for b.Loop() {
				c.call(create.method, create.target, create.body, d.success[toCreate])
				b.StopTimer()
				commits += commit(b, store, event)
				if made++; made%1000 == 0 {
					drain(b, store)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed())/float64(commits), "x-commit")
		})
	}
}

// commit makes a change that does what a creation does, and nothing besides.
func commit(b *testing.B, store *boltstore.Store, event []byte) time.Duration {
	b.Helper()
	begun := time.Now()
	err := store.Change(context.Background(), func(tx tokenstore.Tx) error {
		id, err := tx.NewID()
		if err != nil {
			return err
		}
		tx.Emit(event)
		return tx.Put(storetest.Sample(id, 1, 1))
	})
	if err != nil {
		b.Fatal(err)
	}
	return time.Since(begun)
}

// drain empties the outbox, as the audit log does in a server, and returns the
// size of an event.
func drain(b *testing.B, store *boltstore.Store) (size int) {
	b.Helper()
	events, err := store.Pending(tokenstore.MaxOutbox)
	if err != nil {
		b.Fatal(err)
	}
	if len(events) == 0 {
		return 0
	}
	if err := store.Done(events[len(events)-1].Seq); err != nil {
		b.Fatal(err)
	}
	return len(events[0].Payload)
}
