package storetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"tokenward/tokenstore"
)

// list returns the ids that a query yields.
func list(t *testing.T, s Store, q tokenstore.Query) []tokenstore.ID {
	t.Helper()
	var ids []tokenstore.ID
	for tok, err := range s.List(t.Context(), q) {
		if err != nil {
			t.Fatalf("List(%+v): %v", q, err)
		}
		ids = append(ids, tok.ID)
	}
	return ids
}

// testQueries compares queries of every shape with what they mean, over lists
// long enough to have inner structure.
func testQueries(t *testing.T, open Opener) {
	h := start(t, open)
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // repeatable
	const n = 4000
	all, drafts := map[tokenstore.ID]*tokenstore.Token{}, map[tokenstore.ID]*tokenstore.Token{}
	for range n / 500 {
		made := create(t, h.Store, 500, func(_ int, tok *tokenstore.Token) {
			tok.Account, tok.Owner = 1, 1+r.Uint64N(2)
			if r.IntN(10) == 0 {
				tok.Account, tok.Owner = r.Uint64N(20), 1+r.Uint64N(3)
			}
			if r.IntN(4) == 0 || tok.ID > 1200 && tok.ID < 3300 && r.IntN(100) > 0 {
				revoke(tok)
			}
			drafts[tok.ID] = tok.Clone()
		})
		for _, id := range made {
			all[id] = drafts[id]
		}
	}
	h.check(t)
	queries := 30
	if Soak() {
		queries = 60
	}
	if h.Scans {
		queries /= 6
	}
	for range queries {
		q := tokenstore.Query{Account: 1, OldestFirst: r.IntN(2) == 0, Revoked: r.IntN(2) == 0}
		switch r.IntN(4) {
		case 0:
			q.AllAccounts = true
		case 1:
			q.Owner = 1 + r.Uint64N(3)
		case 2:
			q.Account = r.Uint64N(21)
		}
		if r.IntN(2) == 0 {
			q.After = tokenstore.ID(r.Uint64N(n + 10))
		}
		if r.IntN(2) == 0 {
			q.Skip = r.IntN(r.IntN(n) + 1)
		}
		if r.IntN(2) == 0 {
			q.Limit = 1 + r.IntN(r.IntN(n)+1)
		}
		compare(t, h.Store, all, q)
	}
}

// compare checks List and Count against what the query means.
func compare(t *testing.T, s Store, all map[tokenstore.ID]*tokenstore.Token, q tokenstore.Query) {
	t.Helper()
	var want []tokenstore.ID
	for _, tok := range selected(all, q) {
		want = append(want, tok.ID)
	}
	if got := list(t, s, q); !slices.Equal(got, want) {
		t.Fatalf("List(%+v): got %s, want %s", q, brief(got), brief(want))
	}
	n, err := s.Count(t.Context(), q)
	q.After, q.Skip, q.Limit = 0, 0, 0
	if want := len(selected(all, q)); err != nil || n != want {
		t.Fatalf("Count(%+v): got %d, %v, want %d", q, n, err, want)
	}
}

func brief(ids []tokenstore.ID) string {
	if len(ids) > 12 {
		return fmt.Sprintf("%d ids %v … %v", len(ids), ids[:6], ids[len(ids)-6:])
	}
	return fmt.Sprintf("%d ids %v", len(ids), ids)
}

func testListWhileChanging(t *testing.T, open Opener) {
	h := start(t, open)
	ids := create(t, h.Store, 1000, nil)
	for _, oldest := range []bool{true, false} {
		var wg sync.WaitGroup
		defer wg.Wait()
		seen := map[tokenstore.ID]bool{}
		i := 0
		for tok, err := range h.Store.List(t.Context(), tokenstore.Query{Account: 1, OldestFirst: oldest}) {
			if err != nil {
				t.Fatal(err)
			}
			if seen[tok.ID] {
				t.Fatalf("token %d came twice", tok.ID)
			}
			seen[tok.ID] = true
			// The consumer itself changes the store: nothing may be locked.
			if i%100 == 0 {
				if err := edit(h.Store, tok.ID, func(tok *tokenstore.Token) { tok.Name = "seen" }); err != nil {
					t.Fatal(err)
				}
				create(t, h.Store, 1, nil)
			}
			i++
		}
		for _, id := range ids {
			if !seen[id] {
				t.Errorf("token %d, which stood all the while, did not come", id)
			}
		}
	}
	n := 0
	for range h.Store.List(t.Context(), tokenstore.Query{Account: 1}) {
		if n++; n == 3 {
			break
		}
	}
}
