package boltstore

import (
	"os"
	"runtime"
	"testing"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

func BenchmarkLoad(b *testing.B) {
	path := b.TempDir() + "/x.db"
	s, err := Create(Options{Path: path})
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	n := 200_000
	for b.Loop() {
		load(b, s, n)
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
	info, _ := os.Stat(path)
	b.ReportMetric(float64(info.Size())/float64(n*b.N), "B/token")
	_ = runtime.NumCPU
	_ = time.Now
	_ = storetest.Epoch
	_ = tokenstore.Root
	b.Logf("%+v", s.Stats())
	_ = s.Close()
}
