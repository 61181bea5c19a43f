package usage

import (
	"bytes"
	"fmt"
	"net/netip"
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
