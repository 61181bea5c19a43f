package canon

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func peer(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

var proxies = prefixes("10.0.0.0/8", "fd00::/16", "192.0.2.1/32")

func TestClientAddress(t *testing.T) {
	const lb = "10.0.0.1:1"
	for _, c := range []struct {
		name      string
		header    string // client_address
		peer      string
		lines     []string
		want      string // address or unknown, basis
		forwarded string // the X-Forwarded-For to send
	}{
		{"direct", "", "203.0.113.9:1", nil, "203.0.113.9 peer_itself", "203.0.113.9"},
		{"direct mapped", "", "[::ffff:203.0.113.9]:1", nil, "203.0.113.9 peer_itself", "203.0.113.9"},
		{"direct with zone", "", "[fe80::1%eth0]:1", nil, "fe80::1 peer_itself", "fe80::1"},
		{"spoofed directly", "", "203.0.113.9:1", []string{"X-Forwarded-For: 10.0.0.1, 127.0.0.1"}, "203.0.113.9 peer_itself", "203.0.113.9"},
		{"no peer", "", "", []string{"X-Forwarded-For: 198.51.100.1"}, "unknown peer_unknown", ""},
		{"nothing forwarded", "", lb, nil, "10.0.0.1 nothing_forwarded", "10.0.0.1"},
		{"one hop", "x-forwarded-for", lb, []string{"X-Forwarded-For: 198.51.100.1"}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, 10.0.0.1"},
		{"mapped proxy", "", "[::ffff:10.0.0.1]:1", []string{"X-Forwarded-For: 198.51.100.1"}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, 10.0.0.1"},
		{"spoofed before", "", lb, []string{"X-Forwarded-For: 127.0.0.1, 10.9.9.9, 198.51.100.1"}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, 10.0.0.1"},
		{"rubbish before", "", lb, []string{"X-Forwarded-For: \"', unknown, 198.51.100.1"}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, 10.0.0.1"},
		{"empty before", "", lb, []string{"X-Forwarded-For: , 198.51.100.1"}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, 10.0.0.1"},
		{"empty before trusted", "", lb, []string{"X-Forwarded-For: ,10.0.0.2"}, "unknown unreadable_hop", "10.0.0.2, 10.0.0.1"},
		{"tabs", "", lb, []string{"X-Forwarded-For: 198.51.100.1\t,\t10.0.0.2"}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, 10.0.0.2, 10.0.0.1"},
		{"two hops", "", lb, []string{"X-Forwarded-For: 198.51.100.1, 10.0.0.2"}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, 10.0.0.2, 10.0.0.1"},
		{"over lines", "", lb, []string{"X-Forwarded-For: 127.0.0.1, 198.51.100.1", "Accept: x", "x-forwarded-for: fd00::2,10.0.0.2"}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, fd00::2, 10.0.0.2, 10.0.0.1"},
		{"client's line last is still read last", "", lb, []string{"X-Forwarded-For: 198.51.100.1", "X-Forwarded-For: 127.0.0.1"}, "127.0.0.1 first_untrusted_hop", "127.0.0.1, 10.0.0.1"},
		{"all trusted", "", lb, []string{"X-Forwarded-For: 10.0.0.3, 10.0.0.2"}, "10.0.0.3 all_hops_trusted", "10.0.0.3, 10.0.0.2, 10.0.0.1"},
		{"mapped hop", "", lb, []string{"X-Forwarded-For: 198.51.100.1, ::ffff:10.0.0.2"}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, 10.0.0.2, 10.0.0.1"},
		{"port", "", lb, []string{"X-Forwarded-For: 198.51.100.1:4711"}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, 10.0.0.1"},
		{"v6 port", "", lb, []string{"X-Forwarded-For: [2001:db8::1]:4711"}, "2001:db8::1 first_untrusted_hop", "2001:db8::1, 10.0.0.1"},
		{"v6", "", lb, []string{"X-Forwarded-For: 2001:DB8:0::1"}, "2001:db8::1 first_untrusted_hop", "2001:db8::1, 10.0.0.1"},
		{"disguised header", "", lb, []string{"X_Forwarded_For: 198.51.100.1", "X-Real-IP: 198.51.100.1", "Forwarded: for=198.51.100.1"}, "10.0.0.1 nothing_forwarded", "10.0.0.1"},
		{"unknown", "", lb, []string{"X-Forwarded-For: 198.51.100.1, unknown"}, "unknown unreadable_hop", "10.0.0.1"},
		{"unknown behind one", "", lb, []string{"X-Forwarded-For: unknown, 10.0.0.2"}, "unknown unreadable_hop", "10.0.0.2, 10.0.0.1"},
		{"empty", "", lb, []string{"X-Forwarded-For:"}, "unknown unreadable_hop", "10.0.0.1"},
		{"final comma", "", lb, []string{"X-Forwarded-For: 198.51.100.1,"}, "unknown unreadable_hop", "10.0.0.1"},
		{"name", "", lb, []string{"X-Forwarded-For: localhost"}, "unknown unreadable_hop", "10.0.0.1"},
		{"octal", "", lb, []string{"X-Forwarded-For: 010.0.0.1"}, "unknown unreadable_hop", "10.0.0.1"},
		{"hex", "", lb, []string{"X-Forwarded-For: 0x7f.0.0.1"}, "unknown unreadable_hop", "10.0.0.1"},
		{"short", "", lb, []string{"X-Forwarded-For: 127.1"}, "unknown unreadable_hop", "10.0.0.1"},
		{"number", "", lb, []string{"X-Forwarded-For: 2130706433"}, "unknown unreadable_hop", "10.0.0.1"},
		{"zone", "", lb, []string{"X-Forwarded-For: fe80::1%eth0"}, "unknown unreadable_hop", "10.0.0.1"},
		{"port out of range", "", lb, []string{"X-Forwarded-For: 198.51.100.1:65536"}, "unknown unreadable_hop", "10.0.0.1"},
		{"v6 and more", "", lb, []string{"X-Forwarded-For: [2001:db8::1]x"}, "unknown unreadable_hop", "10.0.0.1"},
		{"v6 and a number", "", lb, []string{"X-Forwarded-For: [2001:db8::1]180"}, "unknown unreadable_hop", "10.0.0.1"},
		{"v6 port out of range", "", lb, []string{"X-Forwarded-For: [2001:db8::1]:65536"}, "unknown unreadable_hop", "10.0.0.1"},
		{"v6 open", "", lb, []string{"X-Forwarded-For: [2001:db8::1"}, "unknown unreadable_hop", "10.0.0.1"},
		{"empty brackets", "", lb, []string{"X-Forwarded-For: []"}, "unknown unreadable_hop", "10.0.0.1"},
		{"colon in brackets", "", lb, []string{"X-Forwarded-For: [:]"}, "unknown unreadable_hop", "10.0.0.1"},
		{"v4 in brackets", "", lb, []string{"X-Forwarded-For: [198.51.100.1]"}, "unknown unreadable_hop", "10.0.0.1"},
		{"quoted", "", lb, []string{"X-Forwarded-For: \"198.51.100.1\""}, "unknown unreadable_hop", "10.0.0.1"},
		{"too many", "", lb, []string{"X-Forwarded-For: unknown," + strings.Repeat("10.0.0.2,", 64) + "10.0.0.2"}, "unknown too_many_hops", strings.Repeat("10.0.0.2, ", 64) + "10.0.0.1"},

		{"forwarded", "forwarded", lb, []string{"Forwarded: for=198.51.100.1;proto=https;by=10.0.0.1"}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, 10.0.0.1"},
		{"forwarded v6", "forwarded", lb, []string{`Forwarded: For="[2001:db8::1]:4711"`}, "2001:db8::1 first_untrusted_hop", "2001:db8::1, 10.0.0.1"},
		{"forwarded short name", "forwarded", lb, []string{"Forwarded: x=1;for=198.51.100.1"}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, 10.0.0.1"},
		{"forwarded chain", "forwarded", lb, []string{`Forwarded: for=127.0.0.1, for=198.51.100.1;host="a,b;c"`, `Forwarded: by=_x; for="10.0.0.2:80"`}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, 10.0.0.2, 10.0.0.1"},
		{"forwarded with a quote left open", "forwarded", lb, []string{`Forwarded: for=", for=198.51.100.1`}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, 10.0.0.1"},
		{"forwarded with a trap", "forwarded", lb, []string{`Forwarded: for=127.0.0.1;x=", for=198.51.100.1;by="_p"`}, "198.51.100.1 first_untrusted_hop", "198.51.100.1, 10.0.0.1"},
		{"forwarded, other header not read", "forwarded", lb, []string{"X-Forwarded-For: 198.51.100.1"}, "10.0.0.1 nothing_forwarded", "10.0.0.1"},
		{"forwarded unknown", "forwarded", lb, []string{"Forwarded: for=unknown"}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded hidden", "forwarded", lb, []string{"Forwarded: for=_hidden"}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded without for", "forwarded", lb, []string{"Forwarded: proto=https"}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded with for twice", "forwarded", lb, []string{"Forwarded: for=198.51.100.1;for=127.0.0.1"}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded escape", "forwarded", lb, []string{`Forwarded: for="198.51.100\.1"`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded bare", "forwarded", lb, []string{"Forwarded: 198.51.100.1"}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded half quoted", "forwarded", lb, []string{`Forwarded: for="198.51.100.1"x`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded escape elsewhere", "forwarded", lb, []string{`Forwarded: for=198.51.100.1;x="a\b"`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded half quoted elsewhere", "forwarded", lb, []string{`Forwarded: x="a"b;for=198.51.100.1`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded quoted twice", "forwarded", lb, []string{`Forwarded: x="a""b";for=198.51.100.1`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded quoted in the middle", "forwarded", lb, []string{`Forwarded: x=a"b";for=198.51.100.1`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded quote left open by whom we trust", "forwarded", lb, []string{`Forwarded: for="198.51.100.1`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded quote in quotes", "forwarded", lb, []string{`Forwarded: for=198.51.100.1;x=""a"`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded quote alone", "forwarded", lb, []string{`Forwarded: for="`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded empty quotes", "forwarded", lb, []string{`Forwarded: for="";for=198.51.100.1`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded no value", "forwarded", lb, []string{`Forwarded: x=;for=198.51.100.1`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded no equals sign", "forwarded", lb, []string{`Forwarded: x;for=198.51.100.1`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded no name", "forwarded", lb, []string{`Forwarded: =x;for=198.51.100.1`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded two names", "forwarded", lb, []string{`Forwarded: a b=1;for=198.51.100.1`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded empty first part", "forwarded", lb, []string{`Forwarded: ;for=198.51.100.1`}, "unknown unreadable_hop", "10.0.0.1"},
		{"forwarded empty before trusted", "forwarded", lb, []string{`Forwarded: ,for=10.0.0.2`}, "unknown unreadable_hop", "10.0.0.2, 10.0.0.1"},
		{"forwarded empty part", "forwarded", lb, []string{`Forwarded: for=198.51.100.1;`}, "unknown unreadable_hop", "10.0.0.1"},
	} {
		r := compile(t, Options{TrustedProxies: proxies, ClientAddress: c.header})
		h := head("/a", c.lines...)
		h.Peer = netip.AddrPort{}
		if c.peer != "" {
			h.Peer = peer(c.peer)
		}
		q := accept(t, r, h)
		got := "unknown"
		if q.Client.Known {
			got = q.Client.Addr.String()
		} else if q.Client.Addr.IsValid() {
			t.Errorf("%s: an unknown client has address %v", c.name, q.Client.Addr)
		}
		if got += " " + q.Client.Basis.String(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if got := string(q.AppendForwardedFor(nil)); got != c.forwarded {
			t.Errorf("%s: X-Forwarded-For: %s, want %s", c.name, got, c.forwarded)
		}
		if text := q.ExplainClient(); !strings.HasPrefix(text, strings.Fields(c.want)[0]) {
			t.Errorf("%s: explained as %s", c.name, text)
		}
	}
}

// What whoami and explain say must name the proxy whose word is in doubt.
func TestExplanationNamesTheProxyThatSaidSo(t *testing.T) {
	for header, want := range map[string]string{
		"":                                 "10.0.0.1 is a trusted proxy that forwarded for nobody, so it is the client itself",
		"198.51.100.1":                     "198.51.100.1 is hop 1 from the right, named by trusted proxy 10.0.0.1, and itself no trusted proxy",
		"198.51.100.1, 10.0.0.3, 10.0.0.2": "198.51.100.1 is hop 3 from the right, named by trusted proxy 10.0.0.3, and itself no trusted proxy",
		"10.0.0.3, 10.0.0.2":               "10.0.0.3 is the leftmost of 2 hops, which are all trusted proxies",
		"x, 10.0.0.2":                      `unknown: hop 2 from the right, named by trusted proxy 10.0.0.2, is "x", which is not an address`,
		strings.Repeat("x", 100):           `unknown: hop 1 from the right, named by trusted proxy 10.0.0.1, is "` + strings.Repeat("x", 100) + `", which is not an address`,
		strings.Repeat("x", 101):           `unknown: hop 1 from the right, named by trusted proxy 10.0.0.1, is "` + strings.Repeat("x", 100) + `…", which is not an address`,
		strings.Repeat("10.0.0.2,", 64) + "10.0.0.2": "unknown: more than 64 trusted hops in a row",
	} {
		h := head("/a", "X-Forwarded-For: "+header)
		if h.Peer = peer("10.0.0.1:1"); header == "" {
			h.Fields = h.Fields[:1]
		}
		if got := accept(t, compile(t, Options{TrustedProxies: proxies}), h).ExplainClient(); got != want {
			t.Errorf("%s: %s", header, got)
		}
	}
	h := head("/a")
	if got := accept(t, compile(t, Options{}), h).ExplainClient(); got != "198.51.100.7 is the peer of the connection, and no trusted proxy: what it forwards is not read" {
		t.Error(got)
	}
	h.Peer = netip.AddrPort{}
	if got := accept(t, compile(t, Options{}), h).ExplainClient(); got != "unknown: the connection has no address" {
		t.Error(got)
	}
}

func TestClientIsReadOfRefusedRequestToo(t *testing.T) {
	h := head("/..", "X-Forwarded-For: 198.51.100.1")
	h.Peer = peer("10.0.0.1:1")
	var q Request
	if compile(t, Options{TrustedProxies: proxies}).Canonicalize(&q, h); q.Client.Addr.String() != "198.51.100.1" {
		t.Error(q.Client)
	}
}

func TestSchemeIsBelievedOfTrustedProxyOnly(t *testing.T) {
	for _, c := range []struct {
		name   string
		header string
		peer   string
		tls    bool
		lines  []string
		want   bool
	}{
		{"plain", "", "203.0.113.9:1", false, nil, false},
		{"tls", "", "203.0.113.9:1", true, nil, true},
		{"claimed by a client", "", "203.0.113.9:1", false, []string{"X-Forwarded-Proto: https"}, false},
		{"denied by a client", "", "203.0.113.9:1", true, []string{"X-Forwarded-Proto: http"}, true},
		{"said by a proxy", "", "10.0.0.1:1", false, []string{"X-Forwarded-Proto: HTTPS", "X-Forwarded-For: 198.51.100.1", "X-Real-IP: 198.51.100.1"}, true},
		{"nothing said behind tls", "", "10.0.0.1:1", true, nil, true},
		{"no scheme behind tls", "", "10.0.0.1:1", true, []string{"X-Forwarded-Proto: x"}, true},
		{"plain behind tls", "", "10.0.0.1:1", true, []string{"X-Forwarded-Proto: http"}, false},
		{"twice", "", "10.0.0.1:1", false, []string{"X-Forwarded-Proto: https", "X-Forwarded-Proto: https"}, false},
		{"list", "", "10.0.0.1:1", false, []string{"X-Forwarded-Proto: https, http"}, false},
		{"disguised", "", "10.0.0.1:1", false, []string{"X_Forwarded_Proto: https"}, false},
		{"other header", "forwarded", "10.0.0.1:1", false, []string{"X-Forwarded-Proto: https"}, false},
		{"forwarded", "forwarded", "10.0.0.1:1", false, []string{"Forwarded: for=1.1.1.1;proto=http, for=198.51.100.1;proto=https"}, true},
		{"forwarded by a client", "forwarded", "203.0.113.9:1", false, []string{"Forwarded: proto=https"}, false},
	} {
		h := head("/a", c.lines...)
		h.Peer, h.TLS = peer(c.peer), c.tls
		if got := accept(t, compile(t, Options{TrustedProxies: proxies, ClientAddress: c.header}), h).Secure; got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestAddressesAreReadLikeNetip(t *testing.T) {
	for _, text := range []string{
		"1.2.3.4", "0.0.0.0", "255.255.255.255", "256.1.1.1", "1.2.3", "1.2.3.4.5", "1..2.3", ".1.2.3", "1.2.3.", "01.2.3.4", "1.2.3.04", "", "a.b.c.d", "1.2.3.4 ", "1.2.3./",
		"::", "::1", "1::", "1::2", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1::2::3", ":::", ":1", "1:", "1:2:3:4::5:6:7:8",
		"::ffff:1.2.3.4", "::1.2.3.4", "1:2:3:4:5:6:1.2.3.4", "1:2:3:4:5:6:7:1.2.3.4", "::1.2.3", "1.2.3.4::", "12345::", "::g", "fe80::1%eth0", "::ffff:0:0", "FD00::A",
		"::1.2.3.:", "::2:3:4:5:6:7:8:1.2.3.4", ":1:2:3:4:5:6:7", "1:::2", "1g2:3:4:5:6:7:8", "::1::2", "::1:2:3:4:5:6:7:8",
	} {
		sameAsNetip(t, text)
	}
}

func sameAsNetip(t *testing.T, text string) {
	t.Helper()
	parse := parseIPv4
	if strings.Contains(text, ":") {
		parse = parseIPv6
	}
	got, ok := parse([]byte(text))
	want, err := netip.ParseAddr(text)
	if want.Zone() != "" {
		want = netip.Addr{}
	}
	if ok != want.IsValid() || got != want.Unmap() {
		t.Errorf("%q: %v %v, netip has %v %v", text, got, ok, want, err)
	}
}

func FuzzClientAddress(f *testing.F) {
	f.Add("1.2.3.4", "10.0.0.2, 10.0.0.3", true)
	f.Add("[::1]:80, fd00::1", "::ffff:10.0.0.1", false)
	f.Add(`for=1.2.3.4;by="_x"`, `for="[fd00::1]:80"`, true)
	f.Add(`for=", for=9.9.9.9`, `For=10.0.0.2;host="a,b"`, true)
	f.Add(`by=_p`, `for=" fd00::1"`, true)
	byXFF := compile(f, Options{TrustedProxies: proxies})
	byForwarded := compile(f, Options{TrustedProxies: proxies, ClientAddress: "forwarded"})
	f.Fuzz(func(t *testing.T, first, second string, rfc bool) {
		for text := range strings.FieldsSeq(first + " " + second) {
			sameAsNetip(t, strings.Trim(text, ","))
		}
		r, name, tail := byXFF, "X-Forwarded-For: ", ", 198.51.100.1"
		if rfc {
			r, name, tail = byForwarded, "Forwarded: ", ", for=198.51.100.1;by=\"_p\""
		}
		for _, lines := range [][]string{{name + first + tail}, {name + first, name + second + tail}, {name + first, name + tail[2:]}} {
			h := head("/a", lines...)
			h.Peer = peer("10.0.0.1:1")
			if q := accept(t, r, h); q.Client.Addr.String() != "198.51.100.1" {
				t.Fatalf("%q: what a client wrote moves the address: %s", lines, q.ExplainClient())
			}
		}
		h := head("/a", name+first, name+second)
		h.Peer = peer("10.0.0.1:1")
		q := accept(t, r, h)
		hops := naiveForwardedFor(h)
		if rfc {
			hops = naiveForwarded(h)
		}
		if want := naiveClient(hops); hops != nil && (q.Client.Addr != want || q.Client.Known != want.IsValid()) {
			t.Fatalf("%q: %v, want %v: %s", h.Fields[1:], q.Client.Addr, want, q.ExplainClient())
		}
	})
}

func trustedByAll(addr netip.Addr) bool {
	return slices.ContainsFunc(proxies, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// naiveClient says the same as readClient, by splitting and the standard library.
func naiveClient(hops []string) netip.Addr {
	slices.Reverse(hops)
	var addr netip.Addr
	for i, hop := range hops {
		if i == 64 {
			return netip.Addr{}
		}
		addr = naiveNode(hop)
		if !addr.IsValid() || !trustedByAll(addr) {
			break
		}
	}
	return addr
}

var bracketed = regexp.MustCompile(`^\[([^\]]*:[^\]]*)\]$`)

func naiveNode(hop string) netip.Addr {
	addr, err := netip.ParseAddr(hop)
	if err != nil {
		if m := bracketed.FindStringSubmatch(hop); m != nil {
			addr, err = netip.ParseAddr(m[1])
		}
	}
	if err != nil {
		var at netip.AddrPort
		at, err = netip.ParseAddrPort(hop)
		addr = at.Addr()
		if i := strings.LastIndexByte(hop, ':'); i >= 0 && len(hop)-i > 6 {
			return netip.Addr{} // a port of more than five digits
		}
	}
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}
	}
	return addr.Unmap()
}

var (
	pair     = `[!#$%&'*+.^_|~0-9A-Za-z\x60-]+=(?:"[^"\\]*"|[^",;\\\x00-\x20]+)`
	element  = regexp.MustCompile(pair + `(?:;` + pair + `)*`)
	elements = regexp.MustCompile(`^` + element.String() + `(?:, ?` + element.String() + `)*$`)
	forPair  = regexp.MustCompile(`(?i)(?:^|;)for=(?:"([^"]*)"|([^";]*))`)
	quoted   = regexp.MustCompile(`"[^"]*[,;][^"]*"`)
)

// naiveForwardedFor takes the space around its hops away; within the quotes of
// Forwarded it is a part of the node.
func naiveForwardedFor(h *Head) []string {
	var hops []string
	for _, f := range h.Fields[1:] {
		for hop := range strings.SplitSeq(string(f.Value), ",") {
			hops = append(hops, strings.Trim(hop, " \t"))
		}
	}
	return hops
}

// naiveForwarded reads well-formed lines from left to right; nil if they are not, or
// where it would take a regular expression more to tell a separator from a quoted one.
func naiveForwarded(h *Head) []string {
	var hops []string
	for _, f := range h.Fields[1:] {
		value := string(f.Value)
		if !elements.MatchString(value) || quoted.MatchString(value) {
			return nil
		}
		for _, one := range element.FindAllString(value, -1) {
			m := forPair.FindAllStringSubmatch(one, -1)
			if len(m) == 1 {
				hops = append(hops, m[0][1]+m[0][2])
			} else {
				hops = append(hops, "none")
			}
		}
	}
	return hops
}
