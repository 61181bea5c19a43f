package native_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/storetest"
)

// drain empties the outbox, as the audit log does in a server.
func drain(b *testing.B, s *boltstore.Store) {
	b.Helper()
	events, err := s.Pending(tokenstore.MaxOutbox)
	if err != nil || len(events) == 0 {
		b.Fatal(len(events), err)
	}
	if err := s.Done(events[len(events)-1].Seq); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkCommit is what BenchmarkCreate is measured against: the same token
// and an event of the same size, put by one caller.
func BenchmarkCommit(b *testing.B) {
	store := admintest.Bolt(b)
	event := make([]byte, 600)
	n := 0
	for b.Loop() {
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
		if n++; n%5000 == 0 {
			b.StopTimer()
			drain(b, store)
			b.StartTimer()
		}
	}
}

// BenchmarkCreate creates tokens through HTTP on loopback, one caller.
func BenchmarkCreate(b *testing.B) {
	store := admintest.Bolt(b)
	w := admintest.Over(b, store, nil)
	w.Log = slog.New(slog.DiscardHandler)
	root := w.Root()
	server := httptest.NewServer(serve(w))
	defer server.Close()
	client := server.Client()
	n := 0
	for b.Loop() {
		r, err := http.NewRequestWithContext(b.Context(), "POST", server.URL+"/v1/tokens", strings.NewReader(`{"name":"x","scopes":["accounts"]}`))
		if err != nil {
			b.Fatal(err)
		}
		r.Header.Set("Api-Token", root.Secret.Reveal())
		answer, err := client.Do(r)
		if err != nil || answer.StatusCode != 201 {
			b.Fatal(answer, err)
		}
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			b.Fatal(err)
		}
		if err := answer.Body.Close(); err != nil {
			b.Fatal(err)
		}
		if n++; n%5000 == 0 {
			b.StopTimer()
			drain(b, store)
			b.StartTimer()
		}
	}
}

// fill puts n tokens of account 1 into the store.
func fill(b *testing.B, store *boltstore.Store, n int) {
	b.Helper()
	for n > 0 {
		err := store.Change(context.Background(), func(tx tokenstore.Tx) error {
			tx.Emit([]byte("filled"))
			for range min(n, 10_000) {
				id, err := tx.NewID()
				if err != nil {
					return err
				}
				if err := tx.Put(storetest.Sample(id, 1, 1)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		n -= 10_000
	}
}

// BenchmarkPage reads pages of 100 tokens out of an account of 100,000.
func BenchmarkPage(b *testing.B) {
	store := admintest.Bolt(b)
	w := admintest.Over(b, store, nil)
	root := w.Root()
	fill(b, store, 100_000)
	h := serve(w)
	for b.Loop() {
		if r := admintest.Send(b, h, root, "GET", "/v1/tokens?account=1", ""); r.Code != 200 {
			b.Fatal(r.Body)
		}
	}
}

// BenchmarkPageByNumber reads the page before the last, by its number, as the
// faces do that count pages.
func BenchmarkPageByNumber(b *testing.B) {
	store := admintest.Bolt(b)
	w := admintest.Over(b, store, nil)
	root := w.Root()
	const tokens = 200_000
	fill(b, store, tokens)
	caller := w.Caller(root)
	for b.Loop() {
		list, err := w.Service.List(b.Context(), caller, admin.ListQuery{Account: 1, Skip: tokens - 200, Limit: 100})
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		for _, err := range list {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != 100 {
			b.Fatal(n)
		}
	}
}

// BenchmarkRevokeBranch revokes a token without descendants together with them
// in an account of 100,000: what the search for them costs.
func BenchmarkRevokeBranch(b *testing.B) {
	store := admintest.Bolt(b)
	w := admintest.Over(b, store, nil)
	root := w.Root()
	fill(b, store, 100_000)
	caller := w.Caller(root)
	for b.Loop() {
		h := w.Make(admin.Spec{Name: "top", Scopes: []string{}})
		if _, err := w.Service.Revoke(b.Context(), caller, admin.Target{ID: h.ID}, true); err != nil {
			b.Fatal(err)
		}
	}
}
