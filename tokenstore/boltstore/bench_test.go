package boltstore

import (
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// bulkStore opens the benchmarks' store; to be written, a copy of it.
func bulkStore(b *testing.B, peppers *tokenstore.Peppers, writable bool) *Store {
	b.Helper()
	path := bulkPath(b, peppers)
	if writable {
		path = copyFile(b, path)
	}
	s, err := Open(Options{Path: path, Peppers: peppers})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return s
}

func copyFile(b *testing.B, path string) string {
	b.Helper()
	from, err := os.Open(path) //nolint:gosec // made by bulkPath
	if err != nil {
		b.Fatal(err)
	}
	defer from.Close() //nolint:errcheck // it was only read
	to, err := os.OpenFile(filepath.Join(b.TempDir(), "copy.db"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		b.Fatal(err)
	}
	if err := to.Sync(); err != nil {
		b.Fatal(err)
	}
	if err := to.Close(); err != nil {
		b.Fatal(err)
	}
	return to.Name()
}

// forPeppers runs a benchmark without and with a pepper.
func forPeppers(b *testing.B, run func(b *testing.B, peppers *tokenstore.Peppers)) {
	b.Run("plain", func(b *testing.B) { run(b, nil) })
	b.Run("peppered", func(b *testing.B) { run(b, testPeppers(b, "a")) })
}

// BenchmarkMiss is what a request pays whose token is not in the cache.
// Promised: 15 µs.
func BenchmarkMiss(b *testing.B) {
	forPeppers(b, func(b *testing.B, peppers *tokenstore.Peppers) {
		s := bulkStore(b, peppers, false)
		ctx := context.Background()
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.ByDigest(ctx, storetest.SampleDigest(1+rand.N(tokenstore.ID(bulkTokens)))); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkUnknownSecret is what a well-formed but unknown secret costs.
func BenchmarkUnknownSecret(b *testing.B) {
	s := bulkStore(b, nil, false)
	ctx := context.Background()
	for b.Loop() {
		if _, err := s.ByDigest(ctx, storetest.SampleDigest(1<<40+rand.N(tokenstore.ID(1<<40)))); err == nil {
			b.Fatal("found")
		}
	}
}

// BenchmarkOpen opens the store and answers the first request. Promised: 1 s.
func BenchmarkOpen(b *testing.B) {
	forPeppers(b, func(b *testing.B, peppers *tokenstore.Peppers) {
		path := bulkPath(b, peppers)
		info, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			s, err := Open(Options{Path: path, Peppers: peppers})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := s.ByDigest(context.Background(), storetest.SampleDigest(1+rand.N(tokenstore.ID(bulkTokens)))); err != nil {
				b.Fatal(err)
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(info.Size())/1e6, "file-MB")
	})
}

// BenchmarkMemory reports the anonymous memory of a process that read 100,000
// random tokens and kept none. Promised: 40 MB.
func BenchmarkMemory(b *testing.B) {
	s := bulkStore(b, nil, false)
	for b.Loop() {
		for range 100_000 {
			if _, err := s.ByDigest(context.Background(), storetest.SampleDigest(1+rand.N(tokenstore.ID(bulkTokens)))); err != nil {
				b.Fatal(err)
			}
		}
	}
	debug.FreeOSMemory()
	b.ReportMetric(rssAnon(b), "RssAnon-MB")
}

func rssAnon(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Skip(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	fields := strings.Fields(rest)
	kb, err := strconv.ParseFloat(fields[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return kb / 1024
}

// BenchmarkPage reads a page of 100 tokens at different depths of the list.
func BenchmarkPage(b *testing.B) {
	s := bulkStore(b, nil, false)
	for _, bench := range []struct {
		name  string
		query tokenstore.Query
	}{
		{"first", tokenstore.Query{AllAccounts: true}},
		{"oldest", tokenstore.Query{AllAccounts: true, OldestFirst: true}},
		{"small account", tokenstore.Query{Account: 78}},
		{"skip 399,900 of account", tokenstore.Query{Account: 1, Skip: 399_900}},
		{"skip 999,900", tokenstore.Query{AllAccounts: true, Revoked: true, Skip: bulkTokens - 100}},
		{"skip 999,900 oldest", tokenstore.Query{AllAccounts: true, Revoked: true, Skip: bulkTokens - 100, OldestFirst: true}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			bench.query.Limit = 100
			for b.Loop() {
				n := 0
				for _, err := range s.List(context.Background(), bench.query) {
					if err != nil {
						b.Fatal(err)
					}
					n++
				}
				if n != 100 && bench.query.Account != 78 {
					b.Fatalf("%d tokens", n)
				}
			}
		})
	}
}

// BenchmarkSkip passes over a million tokens. Promised: 1 ms.
func BenchmarkSkip(b *testing.B) {
	s := bulkStore(b, nil, false)
	for name, oldest := range map[string]bool{"newest first": false, "oldest first": true} {
		b.Run(name, func(b *testing.B) {
			q := tokenstore.Query{AllAccounts: true, Revoked: true, Skip: bulkTokens - 1, OldestFirst: oldest}
			for b.Loop() {
				for _, err := range s.List(context.Background(), q) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkCount counts the tokens of the largest account.
func BenchmarkCount(b *testing.B) {
	s := bulkStore(b, nil, false)
	for b.Loop() {
		if n, err := s.Count(context.Background(), tokenstore.Query{Account: 1}); err != nil || n == 0 {
			b.Fatal(n, err)
		}
	}
}

// emptyOutbox lets the writing benchmarks go on for ever, at a thousandth of
// their cost.
func emptyOutbox(b *testing.B, s *Store) {
	if s.Stats().Outbox > tokenstore.MaxOutbox/2 {
		if err := s.Done(1 << 60); err != nil {
			b.Error(err)
		}
	}
}

func createBulk(s *Store) error {
	return s.Change(context.Background(), func(tx tokenstore.Tx) error {
		id, err := tx.NewID()
		if err != nil {
			return err
		}
		tx.Emit(benchEvent)
		return tx.Put(bulkToken(id))
	})
}

var benchEvent = []byte(`{"verb":"create","who":"deploy pipeline","what":"token"}`)

// BenchmarkCreate makes single tokens, each durable before the next.
func BenchmarkCreate(b *testing.B) {
	b.Run("one caller", func(b *testing.B) {
		s := bulkStore(b, nil, true)
		for b.Loop() {
			if err := createBulk(s); err != nil {
				b.Fatal(err)
			}
			emptyOutbox(b, s)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
	})
	b.Run("bare bolt", func(b *testing.B) { benchmarkBare(b) })
	b.Run("64 callers", func(b *testing.B) {
		s := bulkStore(b, nil, true)
		b.SetParallelism(32) // times two cores
		b.ResetTimer()
		var n atomic.Int64
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := createBulk(s); err != nil {
					b.Error(err)
					return
				}
				if n.Add(1)%1024 == 0 {
					emptyOutbox(b, s)
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
		st := s.Stats()
		b.ReportMetric(float64(st.Changes)/float64(st.Commits), "creates/commit")
	})
}

// benchmarkBare puts what a create puts, with nothing but bolt: the measure of
// BenchmarkCreate. Promised: one caller takes at most 1.3 times as long.
func benchmarkBare(b *testing.B) {
	db := bulkStore(b, nil, true).db
	id := tokenstore.ID(bulkTokens)
	counts := chunk{all: 1, listed: 1, sumAll: 1, sumListed: 1}
	for b.Loop() {
		id++
		tok := bulkToken(id)
		tok.Revision = 1
		record, err := tokenstore.EncodeRecord([]byte{byte(tok.State)}, tok)
		if err != nil {
			b.Fatal(err)
		}
		p := placeOf(tok)
		d := tok.Secrets[0].Digest
		err = db.Update(func(tx *bolt.Tx) error {
			tx.Bucket(bucketTokens).FillPercent = orderedFill
			puts := []struct{ bucket, k, v []byte }{
				{bucketTokens, number(uint64(id)), record},
				{bucketDigests, d[:], number(uint64(id))},
				{bucketAccounts, key(tok.Account, uint64(id)), []byte{1}},
				{bucketOwners, key(tok.Account, tok.Owner, uint64(id)), []byte{1}},
				{bucketChildren, p.child, nil},
				{bucketEnds, p.end, nil},
				{bucketOutbox, number(uint64(id)), benchEvent},
				{bucketCounts, keyStates, key(1, 2, 3)},
			}
			for _, l := range listsOf(tok) {
				last, _ := l.chunkOf(tx.Bucket(bucketCounts).Cursor(), id)
				puts = append(puts,
					struct{ bucket, k, v []byte }{bucketCounts, l.boundary(0), counts.encode()},
					struct{ bucket, k, v []byte }{bucketCounts, l.boundary(last.first), counts.encode()})
			}
			for _, p := range puts {
				if p.k == nil {
					continue
				}
				if err := tx.Bucket(p.bucket).Put(p.k, p.v); err != nil {
					return err
				}
			}
			return tx.Bucket(bucketTokens).SetSequence(uint64(id))
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
}
