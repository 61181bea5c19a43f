package tokenstore

import "testing"

// The hash that entries are found by must be one that nobody can compute outside of
// the cache: with a key that is known, or always the same, texts can be looked for
// that meet an entry.
func TestEachCacheHashesUnderAKeyOfItsOwn(t *testing.T) {
	text := []byte("tw_0123456789ABCDEFGHIJKLMNOPQRSTUVabcdef")
	other := []byte("tw_0123456789ABCDEFGHIJKLMNOPQRSTUVabcdeg")
	seen := map[lookupKey]bool{}
	for range 3 {
		c, err := NewCache(nil, nil, NewFormats("tw"), 1)
		if err != nil {
			t.Fatal(err)
		}
		k := c.lookupKey(text)
		if c.key == [2]uint64{} || seen[k] {
			t.Errorf("the key %x gives the hash %x, as another cache's did", c.key, k)
		}
		seen[k] = true
		if k != c.lookupKey(text) {
			t.Error("the same text has two hashes")
		}
		if d := c.lookupKey(other); d.low == k.low || d.high == k.high {
			t.Errorf("half of the hash is the same for another text: %x and %x", k, d)
		}
		for i := range c.key {
			weaker := Cache{key: c.key}
			weaker.key[i] = 0
			if weaker.lookupKey(text) == k {
				t.Errorf("half %d of the key makes no difference", i)
			}
		}
	}
}
