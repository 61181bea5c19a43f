package usage

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

func FuzzDecode(f *testing.F) {
	full := stored{uses: 3, last: 1_790_000_000_000, names: []uint32{1, 2, 900}, more: true, secrets: []storedSecret{
		{key: 7, uses: 2, last: 1_790_000_000_000, from: netip.MustParseAddr("192.0.2.7"), agent: "curl", route: 1},
		{key: 1 << 63, uses: 1, last: 5, from: netip.MustParseAddr("2001:db8::1")},
	}}
	f.Add(full.encode())
	f.Add((&stored{}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decode(b)
		if err != nil || len(b) == 0 {
			return
		}
		if again := r.encode(); !bytes.Equal(again, b) {
			t.Errorf("%x encodes to %x", b, again)
		}
	})
}

// TestDamagedRecordIsNoneOrAnotherWhole: what is cut off, has more behind it, or another
// byte anywhere, is refused, or is the one record of what it reads as.
func TestDamagedRecordIsNoneOrAnotherWhole(t *testing.T) {
	t.Parallel()
	whole := (&stored{uses: 300, last: 1_790_000_000_000, names: []uint32{1, 2, 900}, more: true, secrets: []storedSecret{
		{key: 7, uses: 2, last: 1_790_000_000_000, from: netip.MustParseAddr("192.0.2.7"), agent: "curl", route: 1},
		{key: 1 << 63, uses: 1, last: 5, from: netip.MustParseAddr("2001:db8::1")},
	}}).encode()
	try := func(what string, at int, b []byte) {
		if r, err := decode(b); err == nil && !bytes.Equal(r.encode(), b) {
			t.Errorf("%s at %d: it reads as %+v, which is written otherwise", what, at, r)
		}
	}
	for n := range whole {
		if n > 0 { // nothing at all is no use yet
			if r, err := decode(whole[:n]); err == nil {
				t.Errorf("cut off at %d it reads as %+v", n, r)
			}
		}
		if whole[n] < 0x80 {
			longer := slices.Insert(bytes.Clone(whole), n+1, 0)
			longer[n] |= 0x80
			try("a longer number", n, longer)
		}
		for c := range 256 {
			damaged := bytes.Clone(whole)
			damaged[n] = byte(c)
			try("another byte", n, damaged)
		}
	}
	for c := range 256 {
		if r, err := decode(append(bytes.Clone(whole), byte(c))); err == nil {
			t.Errorf("with %d behind it, it reads as %+v", c, r)
		}
	}
}

func TestRecordIsBounded(t *testing.T) {
	t.Parallel()
	var r stored
	for i := range 2000 {
		r.merge(&stored{
			uses: 1, last: int64(i), names: []uint32{uint32(i) + 1}, //nolint:gosec // small
			secrets: []storedSecret{{key: Key(i), uses: 1, last: int64(i), agent: fmt.Sprint(i)}}, //nolint:gosec // small
		})
	}
	if len(r.names) != maxNames || len(r.secrets) != maxSecrets || !r.more || r.uses != 2000 || r.secrets[0].agent != "1999" {
		t.Errorf("%d names, %d secrets, %d uses, more %v", len(r.names), len(r.secrets), r.uses, r.more)
	}
	if again, err := decode(r.encode()); err != nil || !bytes.Equal(again.encode(), r.encode()) {
		t.Errorf("it does not decode: %v", err)
	}
	var texts []string
	for i := range maxDictionary {
		texts = append(texts, "r"+fmt.Sprint(i))
	}
	n := newNames(texts)
	if numbers, all := n.numbered(&Route{Pattern: "7", Scopes: []string{"one more"}}); len(numbers) != 1 || numbers[0] != 8 || all {
		t.Errorf("the names have the numbers %v, all: %v", numbers, all)
	}
}
