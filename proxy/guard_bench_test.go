package proxy

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/proxy/identity"
	"tokenward/tokenstore"
)

// oneToken is a store of one token.
type oneToken struct{ token *tokenstore.Token }

func (o oneToken) ByDigest(context.Context, tokenstore.Digest) (*tokenstore.Token, error) {
	return o.token, nil
}

// BenchmarkGuard measures what the guard does to a forwarded request beside the
// wire: canonicalisation, decision, outgoing fields and observation.
func BenchmarkGuard(b *testing.B) {
	secret := tokenstore.NewSecret("tw").Reveal()
	now := time.Now()
	token := &tokenstore.Token{ID: 7, Account: 42, Owner: 1, Name: "billing worker", Scopes: []string{"accounts", "cards"},
		Resources: tokenstore.Resources{All: true}, Sources: tokenstore.Sources{Any: true}, Expiry: tokenstore.Never(), State: tokenstore.StateActive,
		Secrets: []tokenstore.SecretRecord{{Digest: sha256.Sum256([]byte(secret)), Scheme: tokenstore.SchemeNative, CreatedAt: now, Ends: tokenstore.Never()}}}
	cache, err := tokenstore.NewCache(oneToken{token}, nil, tokenstore.NewFormats("tw"), 10)
	if err != nil {
		b.Fatal(err)
	}
	g := NewGuard(enforce.NewEngine(cache, 0), slog.New(slog.DiscardHandler), time.Now)
	headers, err := identity.New(identity.DefaultNames())
	if err != nil {
		b.Fatal(err)
	}
	rules, err := canon.NewRules(canon.Options{Sets: headers.Names()})
	if err != nil {
		b.Fatal(err)
	}
	policy, faults := enforce.Compile([]enforce.RouteSpec{{Match: "GET /accounts/{account}", Scopes: []string{"accounts"}, Resources: []string{"account:{account}"}}}, enforce.Options{})
	if len(faults) > 0 {
		b.Fatal(faults)
	}
	g.SetRules(&Ruleset{Canon: rules, Policy: policy, Identity: headers, Observe: func(int, enforce.Reason, Outcome, time.Duration) {}})
	fields := []canon.Field{
		{Name: []byte("Host"), Value: []byte("api.example")}, {Name: []byte("Authorization"), Value: []byte("Bearer " + secret)},
		{Name: []byte("User-Agent"), Value: []byte("bench/1.0")}, {Name: []byte("Accept"), Value: []byte("application/json")},
		{Name: []byte("Accept-Encoding"), Value: []byte("gzip")}, {Name: []byte("X-Forwarded-For"), Value: []byte("10.0.0.1")},
	}
	method, target := []byte("GET"), []byte("/accounts/10000?page=2")
	b.ReportAllocs()
	for b.Loop() {
		p := g.enter()
		p.head.Method, p.head.Target, p.head.Major, p.head.Minor = method, target, 1, 1
		p.head.Peer = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), 40000)
		p.head.Fields = fields
		if !g.judge(context.Background(), p) {
			b.Fatal(p.decision.Reason)
		}
		g.leave(p)
	}
}
