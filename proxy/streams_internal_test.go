package proxy

import (
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"tokenward/enforce"
	"tokenward/tokenstore"
)

// BenchmarkHold is what it costs a request that its exchange can be cut. The
// promise is 100 ns.
func BenchmarkHold(b *testing.B) {
	g := NewGuard(nil, slog.New(slog.DiscardHandler), time.Now)
	var ids atomic.Uint64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		t := &tokenstore.Token{ID: tokenstore.ID(ids.Add(1)), Expiry: tokenstore.EndsAt(time.Now().Add(time.Hour)), Secrets: []tokenstore.SecretRecord{{Ends: tokenstore.Never()}}}
		p := &passage{decision: enforce.Decision{Reason: enforce.Allowed, Match: tokenstore.Match{Token: t, Secret: &t.Secrets[0]}}}
		for pb.Next() {
			p.changes = g.Streams.changes.Load()
			if !g.hold(b.Context(), p) {
				b.Fatal("not held")
			}
			g.Streams.release(p)
		}
	})
}
