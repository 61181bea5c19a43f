package canon_test

import (
	"fmt"
	"net/netip"

	"tokenward/enforce/canon"
)

func ExampleRules_Canonicalize() {
	rules, err := canon.NewRules(canon.Options{
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		Credentials:    []string{"authorization", "query:access_token"},
		Sets:           []string{"X-Token-Id"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	var q canon.Request // one per connection, used again and again
	v := rules.Canonicalize(&q, &canon.Head{
		Method: []byte("GET"), Target: []byte("/%61ccounts/7?access_token=tw_S&page=2"), Major: 1, Minor: 1,
		Fields: []canon.Field{
			{Name: []byte("Host"), Value: []byte("API.example.com")},
			{Name: []byte("x_token.id"), Value: []byte("1")},
			{Name: []byte("X-Forwarded-For"), Value: []byte("127.0.0.1, 203.0.113.9")},
		},
		Peer: netip.MustParseAddrPort("10.0.0.1:4000"),
	})
	fmt.Println(v, v == canon.Accepted && q.Irregular.Refused(0, false) == 0)
	fmt.Printf("%s %s %s\n", q.Method, q.Authority, q.Target())
	fmt.Println(q.Credential(), q.Client.Addr, q.Disposition(1) == canon.Removed)
	fmt.Println(q.ExplainClient())
	// Output:
	// accepted true
	// GET api.example.com /accounts/7?page=2
	// one 203.0.113.9 true
	// 203.0.113.9 is hop 1 from the right, named by trusted proxy 10.0.0.1, and itself no trusted proxy
}
