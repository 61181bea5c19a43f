package etcdstore

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"tokenward/tokenstore"
)

func TestOlderEtcdIsToldFromNewer(t *testing.T) {
	for _, test := range []struct {
		version string
		older   bool
	}{
		{"3.5.11", true}, {"3.5.12", false}, {"3.5.13", false}, {"3.4.99", true}, {"3.6.0", false}, {"4.0.0", false}, {"2.9.9", true},
		{"3.5.12-rc.1", false}, {"3.10.0", false}, {"3.5", true}, {"3.5.x", true}, {"", true}, {"-1.5.12", true}, {"3.5.12.1", true},
	} {
		if got := older(test.version, LeastVersion); got != test.older {
			t.Errorf("%q comes before %s: %v, want %v", test.version, LeastVersion, got, test.older)
		}
	}
}

// FuzzKeys reads keys that somebody else may have put: what is read must print back to
// the same bytes, so that no two keys stand for one thing.
func FuzzKeys(f *testing.F) {
	k := keyspace("/p/")
	d := tokenstore.Digest{1, 2, 3}
	f.Add(strings.TrimPrefix(k.token(7), k.tokens()), []byte("0000000000000001"))
	f.Add(text(d), []byte(hexID(9)))
	f.Add(strings.TrimPrefix(k.kept(keptAnswer{5, d}), k.allKept()), []byte{})
	f.Add("pepper/"+strings.Repeat("ab", len(tokenstore.PepperID{})), []byte{})
	f.Add("prefix/tw", []byte{})
	f.Add(strings.TrimPrefix(k.foreign(tokenstore.Foreign{Scheme: tokenstore.SchemeSHA256}), k.traits()), []byte{})
	f.Add("foreign/01/00", []byte("+1"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		if id, err := parseID(key); err == nil && hexID(id) != key {
			t.Errorf("id %q prints as %q", key, hexID(id))
		}
		if d, err := parseDigest(key); err == nil && text(d) != key {
			t.Errorf("digest %q prints as %q", key, text(d))
		}
		if a, err := parseKept(key); err == nil && k.kept(a) != k.allKept()+key {
			t.Errorf("kept answer %q prints as %q", key, k.kept(a))
		}
		if r, err := parseRetired(key, value); err == nil && (text(r.Digest) != key || hexID(r.Owner) != string(value)) {
			t.Errorf("retired %q %q prints as %q %q", key, value, text(r.Digest), hexID(r.Owner))
		}
		var traits tokenstore.Traits
		if err := k.addTrait(&traits, k.traits()+key); err == nil {
			var back string
			switch {
			case len(traits.Peppers) > 0:
				back = k.pepper(traits.Peppers[0])
			case len(traits.Prefixes) > 0:
				back = k.prefix(traits.Prefixes[0])
			case len(traits.Foreign) > 0:
				back = k.foreign(traits.Foreign[0])
			}
			if back != k.traits()+key {
				t.Errorf("trait %q prints as %q", key, back)
			}
		}
		if d, err := ParseName(key); err == nil && d.Name() != key {
			t.Errorf("name %q prints as %q", key, d.Name())
		}
	})
}

func FuzzOutboxEvents(f *testing.F) {
	f.Add(packEvents([][]byte{[]byte("one"), {}, []byte("three")}))
	f.Add([]byte{0x80})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Add([]byte{0x81, 0x00, 'x'})
	f.Fuzz(func(t *testing.T, packed []byte) {
		events, err := unpackEvents(packed)
		if err != nil {
			return
		}
		again, err := unpackEvents(packEvents(events))
		if err != nil || len(again) != len(events) {
			t.Fatalf("%d events read back as %d: %v", len(events), len(again), err)
		}
		for i := range events {
			if !bytes.Equal(events[i], again[i]) {
				t.Errorf("event %d differs", i)
			}
		}
	})
}

func FuzzNodeRecord(f *testing.F) {
	whole, err := json.Marshal(NodeInfo{Node: "a", Instance: "i", Mirror: "full", Revision: 7, Age: time.Second, At: time.Unix(0, 0).UTC()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a", whole)
	f.Add("a", []byte(`{"node":"b"}`))
	f.Add("", []byte(`{}`))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		n, err := parseNode(name, value)
		if err == nil && (n.Node != name || !ValidNode(n.Node)) {
			t.Errorf("record of %q was read for %q", n.Node, name)
		}
		if err != nil && n != (NodeInfo{}) {
			t.Errorf("a record that is refused tells %+v", n)
		}
		if r := headRevision(string(value)); headRevision(headTextOf(r)) != r {
			t.Errorf("head revision %d does not read back", r)
		}
	})
}

func headTextOf(revision int64) string {
	return headText(&mvccpb.KeyValue{ModRevision: revision, Value: []byte("1 2")})
}
