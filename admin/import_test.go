package admin_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

func importService(t testing.TB, store storetest.Store, peppers *tokenstore.Peppers) *admin.Service {
	t.Helper()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	s, err := admin.New(store, store, peppers, func() time.Time { return now }, admin.Options{Formats: func() *tokenstore.Formats { return tokenstore.NewFormats("tw") }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func item(line int, secret string) admin.ImportItem {
	return admin.ImportItem{Line: line, Secret: tokenstore.SecretFrom(secret), Spec: admin.Spec{Name: "imported", Scopes: []string{"cards"}}}
}

// TestImportTellsNothingOfForeignTokens imports, as tenants do, secrets that
// tokens of others have.
func TestImportTellsNothingOfForeignTokens(t *testing.T) {
	w := admintest.New(t)
	cast := w.Cast()
	items := []admin.ImportItem{item(1, cast.Foreign.Secret.Reveal()), item(2, cast.Root.Secret.Reveal()), item(3, cast.Peer.Secret.Reveal())}
	for i := range items {
		items[i].Spec.Scopes = []string{"accounts"}
	}
	for name, tt := range map[string]struct {
		by   admintest.Holder
		want [3]tokenstore.ID
	}{
		"tenant": {cast.Admin, [3]tokenstore.ID{0, 0, cast.Peer.ID}},
		"root":   {cast.Root, [3]tokenstore.ID{cast.Foreign.ID, cast.Root.ID, cast.Peer.ID}},
	} {
		done, err := w.Service.Import(t.Context(), w.Caller(tt.by), items, admin.ImportOptions{DryRun: true})
		if err != nil || done.Count != 0 || len(done.Refused) != len(items) {
			t.Fatalf("%s: %+v, %v", name, done, err)
		}
		for i, r := range done.Refused {
			if r.Existing != tt.want[i] || strings.Contains(r.Detail, r.Existing.String()) != (r.Existing != 0) {
				t.Errorf("%s: line %d is refused for token %d, want %d: %s", name, r.Line, r.Existing, tt.want[i], r.Detail)
			}
		}
	}
}

func TestImportRefusesEachByItself(t *testing.T) {
	t.Parallel()
	old, err := tokenstore.NewPeppers([]byte(strings.Repeat("o", 32)))
	if err != nil {
		t.Fatal(err)
	}
	both, err := tokenstore.NewPeppers([]byte(strings.Repeat("n", 32)), []byte(strings.Repeat("o", 32)))
	if err != nil {
		t.Fatal(err)
	}
	store := storetest.NewMemory(nil)
	before := importService(t, store, old)
	known, revoked := rand.Text(), rand.Text()
	ctx := context.WithoutCancel(t.Context())
	done, err := before.Import(ctx, admin.Operator(""), []admin.ImportItem{item(1, known), item(2, revoked)}, admin.ImportOptions{})
	if err != nil || done.Count != 2 {
		t.Fatalf("%+v, %v", done, err)
	}
	for id := done.First; id <= done.Last; id++ {
		tok, err := store.ByID(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if stored, _ := old.Imported(tokenstore.SchemeSHA256, tokenstore.SHA256(revoked)); tok.Secrets[0].Digest.Equal(stored) {
			if _, err := before.Revoke(ctx, admin.Operator(""), admin.Target{ID: id}, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := importService(t, store, both) // another pepper writes now
	own := tokenstore.NewSecret("tw").Reveal()
	wide := item(12, rand.Text())
	wide.Spec.Scopes = nil
	byDigest := admin.ImportItem{Line: 13, Digest: tokenstore.SHA256(known), Scheme: tokenstore.SchemeSHA256, Spec: admin.Spec{Name: "d", Scopes: []string{"cards"}}}
	unkeyed := byDigest
	unkeyed.Line, unkeyed.Scheme = 14, tokenstore.SchemeHMAC
	unnamed := item(15, rand.Text())
	unnamed.Spec.Name = ""
	fresh := rand.Text()
	items := []admin.ImportItem{
		item(3, fresh), item(4, own), item(5, known), item(6, revoked), item(7, "short"), item(8, own[:len(own)-1]+"!"),
		item(9, "with space "+rand.Text()), item(10, fresh), item(11, ""), wide, byDigest, unkeyed, unnamed,
	}
	want := map[int]string{
		5: "belongs, or belonged, to token", 6: "belongs, or belonged, to token", 7: "weak", 8: "begins like a secret of this store", 9: "cannot stand in a request",
		10: "belong", 11: "neither a secret nor a digest", 12: "no scopes", 13: "belongs, or belonged, to token", 14: "no key for it", 15: "name",
	}
	for _, dry := range []bool{true, false} {
		count, err := store.Count(ctx, tokenstore.Query{AllAccounts: true, Revoked: true})
		if err != nil {
			t.Fatal(err)
		}
		done, err = s.Import(ctx, admin.Operator(""), items, admin.ImportOptions{DryRun: dry})
		if err != nil || done.Count != 2 {
			t.Fatalf("dry %v: %d taken, %v", dry, done.Count, err)
		}
		got := map[int]bool{}
		for _, r := range done.Refused {
			got[r.Line] = true
			expect := want[r.Line]
			if dry && (r.Line == 10 || r.Line == 13) {
				expect = "earlier one"
			}
			if expect == "" || !strings.Contains(r.Detail, expect) {
				t.Errorf("dry %v: line %d: %s", dry, r.Line, r.Detail)
			}
			if strings.Contains(r.Detail, fresh) || strings.Contains(r.Detail, known) {
				t.Errorf("line %d shows a secret: %s", r.Line, r.Detail)
			}
		}
		if len(got) != len(want) {
			t.Errorf("dry %v: refused %v", dry, got)
		}
		after, err := store.Count(ctx, tokenstore.Query{AllAccounts: true, Revoked: true})
		if err != nil || dry && after != count || !dry && after != count+2 {
			t.Errorf("dry %v: %d tokens became %d, %v", dry, count, after, err)
		}
	}
}

// TestSecretThatEndedDoesNotComeBackInAnotherForm revokes, and sweeps, tokens whose secrets
// are imported again: what was an HMAC as its text, and what an old pepper stored under the new one.
func TestSecretThatEndedDoesNotComeBackInAnotherForm(t *testing.T) {
	t.Parallel()
	peppers := func(letters ...string) *tokenstore.Peppers {
		var files [][]byte
		for _, letter := range letters {
			files = append(files, []byte(strings.Repeat(letter, 32)))
		}
		p, err := tokenstore.NewPeppers(files...)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	keys, err := tokenstore.NewImportKeys([]byte(strings.Repeat("k", 32)))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.WithoutCancel(t.Context())
	hmacOf := func(line int, text string) admin.ImportItem {
		return admin.ImportItem{Line: line, Digest: keys.Digests([]byte(text))[0], Scheme: tokenstore.SchemeHMAC, Spec: admin.Spec{Name: "h", Scopes: []string{"cards"}}}
	}
	store := storetest.NewMemory(nil)
	service := func(p *tokenstore.Peppers) *admin.Service {
		s, err := admin.New(store, store, p, func() time.Time { return time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC) }, admin.Options{ImportKeys: keys})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	texts := []string{rand.Text(), rand.Text(), rand.Text(), rand.Text()}
	before := service(peppers("o"))
	done, err := before.Import(ctx, admin.Operator(""), []admin.ImportItem{hmacOf(1, texts[0]), hmacOf(2, texts[1]), item(3, texts[2]), item(4, texts[3])}, admin.ImportOptions{})
	if err != nil || done.Count != 4 {
		t.Fatalf("%+v, %v", done, err)
	}
	for id := done.First; id <= done.Last; id++ {
		if _, err := before.Revoke(ctx, admin.Operator(""), admin.Target{ID: id}, false); err != nil {
			t.Fatal(err)
		}
		if id%2 == 0 {
			continue
		}
		err := store.Change(ctx, func(tx tokenstore.Tx) error {
			tx.Emit([]byte("swept"))
			return tx.Sweep(id)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	fresh := rand.Text()
	again := []admin.ImportItem{item(1, texts[0]), item(2, texts[1]), item(3, texts[2]), item(4, texts[3]), item(5, fresh), hmacOf(6, fresh)}
	for name, p := range map[string]*tokenstore.Peppers{"the pepper": peppers("o"), "a new one": peppers("n", "o")} {
		done, err := service(p).Import(ctx, admin.Operator(""), again, admin.ImportOptions{DryRun: true})
		if err != nil || done.Count != 1 || len(done.Refused) != 5 {
			t.Errorf("%s: %d are taken, refused %v, %v", name, done.Count, done.Refused, err)
		}
	}
}

func TestImportNeedsARightForEachToken(t *testing.T) {
	t.Parallel()
	w := admintest.New(t)
	cast := w.Cast()
	narrow := w.Make(admin.Spec{Name: "narrow", Scopes: []string{"cards", "user:api-token:write"}})
	reader := w.Make(admin.Spec{Name: "reader", Scopes: []string{"cards", "user:api-token:read"}})
	wide := item(1, rand.Text())
	wide.Spec.Scopes = []string{"accounts"}
	ctx := context.WithoutCancel(t.Context())
	done, err := w.Service.Import(ctx, w.Caller(narrow), []admin.ImportItem{wide, item(2, rand.Text())}, admin.ImportOptions{})
	if err != nil || done.Count != 1 || len(done.Refused) != 1 || done.Refused[0].Line != 1 {
		t.Errorf("%+v, %v", done, err)
	}
	for _, c := range []admin.Caller{w.Caller(reader), {}} {
		if done, err := w.Service.Import(ctx, c, []admin.ImportItem{item(3, rand.Text())}, admin.ImportOptions{}); err == nil || done.Count != 0 {
			t.Errorf("%+v without the right", done)
		}
	}
	if _, err := w.Service.Import(ctx, w.Caller(cast.Admin), make([]admin.ImportItem, admin.MaxImport+1), admin.ImportOptions{}); err == nil {
		t.Error("there is no bound")
	}
}

// TestEarlierOfTwoWithOneSecretIsTaken: each account's tokens are made together, and
// yet it is the file's order that decides.
func TestEarlierOfTwoWithOneSecretIsTaken(t *testing.T) {
	for _, dry := range []bool{true, false} {
		store := storetest.NewMemory(nil)
		s := importService(t, store, nil)
		twice := rand.Text()
		items := []admin.ImportItem{item(1, twice), item(2, rand.Text()), item(3, twice), item(4, twice)}
		for i, account := range []uint64{9, 5, 3, 1} {
			items[i].Spec.Account = &account
		}
		done, err := s.Import(t.Context(), admin.Operator(""), items, admin.ImportOptions{DryRun: dry})
		if err != nil || done.Count != 2 || len(done.Refused) != 2 || done.Refused[0].Line != 3 || done.Refused[1].Line != 4 {
			t.Errorf("dry run %t: %+v, %v", dry, done, err)
		}
	}
}

// BenchmarkImport measures tokens per second into a store on disk: of one account, and
// in turn of a thousand, whose lists are a page each.
func BenchmarkImport(b *testing.B) {
	for _, accounts := range []int{1, 1000} {
		b.Run(fmt.Sprintf("%d accounts", accounts), func(b *testing.B) {
			s := importService(b, admintest.Bolt(b), nil)
			for b.Loop() {
				b.StopTimer()
				items := make([]admin.ImportItem, admin.MaxImport)
				for i := range items {
					items[i] = item(i+1, rand.Text())
					items[i].Spec.Account = new(uint64(1 + i%accounts))
				}
				b.StartTimer()
				if done, err := s.Import(b.Context(), admin.Operator(""), items, admin.ImportOptions{}); err != nil || done.Count != len(items) {
					b.Fatalf("%d of %d, %v", done.Count, len(items), err)
				}
			}
			b.ReportMetric(float64(b.N*admin.MaxImport)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}
