package canon

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestBadOptionsAreRefusedWithMend(t *testing.T) {
	v4, v6 := halfAndOne()
	for _, c := range []struct {
		name    string
		options Options
		option  string
		index   int
		text    string
	}{
		{"v4 too wide", Options{TrustedProxies: prefixes("10.0.0.1/32", "0.0.0.0/0")}, "TrustedProxies", 1, `"0.0.0.0/0" is wider than /8`},
		{"v4 half", Options{TrustedProxies: prefixes("128.0.0.0/7")}, "TrustedProxies", 0, "is wider than /8"},
		{"v6 too wide", Options{TrustedProxies: prefixes("::/0")}, "TrustedProxies", 0, "is wider than /16"},
		{"v6 mapped too wide", Options{TrustedProxies: prefixes("::ffff:0:0/96")}, "TrustedProxies", 0, "is wider than /8"},
		{"v6 over mapped", Options{TrustedProxies: prefixes("::ffff:0:0/95")}, "TrustedProxies", 0, "has bits set"},
		{"v4 together too wide", Options{TrustedProxies: v4}, "TrustedProxies", -1, `"IPv4" is trusted for more than half`},
		{"v6 together too wide", Options{TrustedProxies: v6}, "TrustedProxies", -1, `"IPv6" is trusted for more than half`},
		{"host bits", Options{TrustedProxies: prefixes("10.1.2.3/8")}, "TrustedProxies", 0, "write 10.0.0.0/8"},
		{"invalid prefix", Options{TrustedProxies: []netip.Prefix{{}}}, "TrustedProxies", 0, "is not an address range"},
		{"client address", Options{ClientAddress: "x-real-ip"}, "ClientAddress", -1, "write x-forwarded-for or forwarded"},
		{"no carriers", Options{Credentials: []string{}}, "Credentials", -1, "leaves no place"},
		{"too many carriers", Options{Credentials: strings.Split("a,b,c,d,e,f,g,h,i", ",")}, "Credentials", -1, "are too many; name at most 8"},
		{"carrier twice", Options{Credentials: []string{"api-token", "Api-Token"}}, "Credentials", 1, "is named twice"},
		{"authorization twice", Options{Credentials: []string{"authorization", "Authorization"}}, "Credentials", 1, "is named twice"},
		{"carriers that fold", Options{Credentials: []string{"api-token", "api_token"}}, "Credentials", 1, "is read as a credential"},
		{"carrier empty", Options{Credentials: []string{""}}, "Credentials", 0, "has no usable name"},
		{"carrier with space", Options{Credentials: []string{"api token"}}, "Credentials", 0, "has no usable name"},
		{"query empty", Options{Credentials: []string{"query:"}}, "Credentials", 0, "has no usable name"},
		{"query encoded", Options{Credentials: []string{"query:a%62"}}, "Credentials", 0, "means something in a query"},
		{"subprotocol list", Options{Credentials: []string{"subprotocol:a,b"}}, "Credentials", 0, "has no usable name"},
		{"carrier that is cookie", Options{Credentials: []string{"Cookie"}}, "Credentials", 0, "HTTP itself needs it"},
		{"carrier that is host", Options{Credentials: []string{"host"}}, "Credentials", 0, "HTTP itself needs it"},
		{"carrier that we set", Options{Credentials: []string{"X-Request-Id"}}, "Credentials", 0, "the proxy sets it"},
		{"carrier that is removed", Options{Credentials: []string{"x-real-ip"}}, "Credentials", 0, "always removed"},
		{"carrier too long", Options{Credentials: []string{strings.Repeat("x", 65)}}, "Credentials", 0, "longer than 64"},
		{"set carrier", Options{Sets: []string{"Api_Token"}}, "Sets", 0, "read as a credential"},
		{"set authorization", Options{Sets: []string{"authorization"}}, "Sets", 0, "authorization is read"},
		{"set nothing", Options{Sets: []string{""}}, "Sets", 0, "is not a header name"},
		{"set cookie", Options{Sets: []string{"Cookie"}}, "Sets", 0, "HTTP itself needs it"},
		{"set framing", Options{Sets: []string{"Content-Length"}}, "Sets", 0, "HTTP itself needs it"},
		{"set twice folded", Options{Sets: []string{"X-Token-Id", "x_token_id"}}, "Sets", 1, "differs from x-token-id only in punctuation"},
		{"set no token", Options{Sets: []string{"X Token"}}, "Sets", 0, "is not a header name"},
		{"remove what we set", Options{Removes: []string{"X-Request-Id"}}, "Removes", 0, "the proxy sets it"},
		{"remove a disguise", Options{Removes: []string{"set_cookie"}}, "Removes", 0, "HTTP itself needs it"},
		{"remove host", Options{Removes: []string{"Host"}}, "Removes", 0, "HTTP itself needs it"},
		{"keep nothing", Options{Keeps: []string{""}}, "Keeps", 0, "is not removed anyway"},
		{"keep forwarded", Options{Keeps: []string{"forwarded"}}, "Keeps", 0, "can never be forwarded"},
		{"keep proxy", Options{Keeps: []string{"proxy"}}, "Keeps", 0, "can never be forwarded"},
		{"keep what is kept", Options{Keeps: []string{"x-custom"}}, "Keeps", 0, "is not removed anyway"},
		{"keep identity", Options{Sets: []string{"x-real-ip"}, Keeps: []string{"x-real-ip"}}, "Keeps", 0, "can never be forwarded"},
		{"keep override", Options{Keeps: []string{"X-HTTP-Method-Override"}}, "Keeps", 0, "can never be forwarded"},
		{"keep url", Options{Keeps: []string{"x-original-url"}}, "Keeps", 0, "can never be forwarded"},
		{"keep what we set", Options{Keeps: []string{"x-forwarded-for"}}, "Keeps", 0, "can never be forwarded"},
		{"keep a disguise", Options{Keeps: []string{"x_real_ip"}}, "Keeps", 0, "write x-real-ip"},
		{"negative", Options{MaxTargetBytes: -1}, "MaxTargetBytes", -1, "is negative"},
	} {
		rules, err := NewRules(c.options)
		if err == nil || rules != nil {
			t.Errorf("%s: not refused", c.name)
			continue
		}
		all := err.(interface{ Unwrap() []error }).Unwrap() //nolint:errorlint // the joined list is wanted
		one, ok := all[0].(*OptionError)                    //nolint:errorlint // likewise
		if !ok || len(all) != 1 || one.Option != c.option || one.Index != c.index || !strings.Contains(one.Error(), c.text) || one.Fix == "" {
			t.Errorf("%s: %+v", c.name, all)
		}
	}
}

// halfAndOne are ranges of each family that take more than half of it, though none by
// itself is too wide. Without the first of each list, of IPv4 a single address, they
// take half of it.
func halfAndOne() (v4, v6 []netip.Prefix) {
	v4 = prefixes("0.0.0.0/32")
	for i := range 1 << 7 {
		v4 = append(v4, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(i + 1)}), leastV4Bits))
	}
	for i := range 1<<15 + 1 {
		v6 = append(v6, netip.PrefixFrom(netip.AddrFrom16([16]byte{byte(i >> 8), byte(i)}), leastV6Bits))
	}
	return v4, v6
}

func TestRequiredNamesTheFirstPlaceThatIsRead(t *testing.T) {
	for credential, want := range map[string]string{
		"Authorization": "Authorization: Bearer TOKEN", "X-Key": "x-key: TOKEN", "query:token": "?token=TOKEN", "subprotocol:bearer": "Sec-WebSocket-Protocol: bearer, TOKEN",
	} {
		rules, err := NewRules(Options{Credentials: []string{credential, "api-token"}})
		if err != nil || !strings.Contains(rules.Required(), "`"+want+"`") {
			t.Errorf("%s: %q, %v", credential, rules.Required(), err)
		}
	}
}

func TestAllOptionFaultsAreToldAtOnce(t *testing.T) {
	_, err := NewRules(Options{
		TrustedProxies: prefixes("0.0.0.0/0", "::/0"), ClientAddress: "x", Credentials: []string{"cookie", ""}, Sets: []string{"host"}, Keeps: []string{"y"},
	})
	if n := len(strings.Split(err.Error(), "\n")); n != 7 {
		t.Errorf("%d faults:\n%v", n, err)
	}
}

func TestGoodOptionsAreAccepted(t *testing.T) {
	v4, v6 := halfAndOne()
	half := slices.Concat(v4[1:], v4[1:], v6[1:], prefixes("10.0.0.0/9")) // what is in another counts once
	compile(t, Options{TrustedProxies: half, Credentials: strings.Split("a,b,c,d,e,f,g,h", ",")})
	r := compile(t, Options{
		TrustedProxies: prefixes("::ffff:10.0.0.0/104", "127.0.0.0/8", "2001::/16"),
		Credentials:    []string{"Authorization", "X-Api-Key", "query:access_token", "subprotocol:bearer"},
		Sets:           []string{"X-Token-Id", "x-token-id", "X-Forwarded-User", "X-Request-Id", "X-Real-IP"},
		Removes:        []string{"X-Real-IP", "Cookie", "X-Internal", "X-Forwarded-Host"},
		Keeps:          []string{"cf-connecting-ip", "x-forwarded-port"},
	})
	var names []string
	for i := range r.carriers {
		names = append(names, r.CarrierName(i))
	}
	if want := []string{"authorization", "x-api-key", "query:access_token", "subprotocol:bearer"}; !slices.Equal(names, want) {
		t.Error(names)
	}
	if r.CarrierName(-1) != "" || r.CarrierName(4) != "" {
		t.Error("a carrier that does not exist has a name")
	}
	for text, want := range map[string]bool{"10.0.0.0": true, "10.255.255.255": true, "9.255.255.255": false, "11.0.0.0": false} {
		if r.trusted.contains(addr(text)) != want {
			t.Errorf("10.0.0.0/8, written as IPv6, has %s: %v", text, !want)
		}
	}
}

func TestTrustedProxiesAreExactlyThoseNamed(t *testing.T) {
	list := prefixes(
		"10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/16", "11.0.0.0/16", "11.0.0.0/9", "192.0.2.0/31", "192.0.2.2/32", "203.0.113.255/32", "255.255.255.255/32",
		"2001:db8::/32", "2001:db8:1::/48", "fd00::/16", "ffff::/16", "::1/128", "::fffe:0:0/95",
	)
	r := compile(t, Options{TrustedProxies: list})
	for _, p := range list {
		first, last := p.Addr(), lastAddr(p)
		for _, addr := range []netip.Addr{first, last, first.Prev(), last.Next()} {
			if !addr.IsValid() {
				continue
			}
			want := slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(addr) })
			if got := r.trusted.contains(addr); got != want {
				t.Errorf("%v: %v", addr, got)
			}
		}
	}
	if r.trusted.contains(netip.Addr{}) || compile(t, Options{}).trusted.contains(netip.MustParseAddr("127.0.0.1")) {
		t.Error("somebody is trusted whom nobody named")
	}
}
