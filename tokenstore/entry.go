package tokenstore

import "unsafe"

// entry is what the cache keeps of a secret: a copy of the token with all that it leads
// to, as far as there is room, in one block of memory. A judgement then touches a few
// neighbouring cache lines, all asked for at once, in place of a dozen scattered ones.
// Once it is kept nothing of it changes but what is beside it.
type entry struct {
	key        lookupKey
	generation uint32 // what it was before the store was read
	weight     uint32
	slot       uint16 // which generation the stored digest belongs to
	secret     uint16 // which of the token's it is
	beside     Beside

	token Token // from here on in cache lines of its own, where a pointer takes 8 bytes
	room  listRoom
	texts [192]byte // what is left of the 1,024 bytes that the runtime gives to each
}

// newEntry returns the entry of the token's secret number n, which shares no text and,
// where there is room, no list with the token.
func newEntry(key lookupKey, t *Token, n int, slot uint16, generation uint32) *entry {
	e := &entry{key: key, generation: generation, slot: slot, secret: uint16(n), token: *t} //nolint:gosec // at most MaxSecrets
	e.token.Scopes = move(e.room.scopes[:], t.Scopes)
	e.token.Resources.Grants = move(e.room.grants[:], t.Resources.Grants)
	e.token.Sources.Allow = move(e.room.allow[:], t.Sources.Allow)
	e.token.Secrets = move(e.room.secrets[:], t.Secrets)
	e.weight = 1 + uint32((e.gather()+e.listed())/bytesOfWeight) //nolint:gosec // Validate bounds all of it
	return e
}

func (e *entry) match() Match {
	return Match{Token: &e.token, Secret: &e.token.Secrets[e.secret], Beside: &e.beside}
}

// move copies a list into the room, or elsewhere if it is larger.
func move[T any](room, list []T) []T {
	if len(list) == 0 {
		return nil
	}
	moved := take(room, len(list))
	copy(moved, list)
	return moved
}

// gather moves all texts behind one another, into the entry or into one string where that
// has no room for them, and returns their bytes. They then hold on to nothing else, such
// as the record that they were read from. It may be called once.
func (e *entry) gather() int {
	n := 0
	e.token.eachText(func(s *string) { n += len(*s) })
	dst := e.texts[:0]
	if n > len(e.texts) {
		dst = make([]byte, 0, n)
	}
	e.token.eachText(func(s *string) {
		start := len(dst)
		dst = append(dst, *s...)
		// As strings.Builder does: nobody can write to these bytes any more.
		*s = unsafe.String(unsafe.SliceData(dst[start:]), len(*s)) // #nosec G103
	})
	return n
}

// eachText visits every text of the token.
func (t *Token) eachText(visit func(s *string)) {
	for i := range t.Scopes { // those that a request looks at come first
		visit(&t.Scopes[i])
	}
	for i := range t.Resources.Grants {
		visit(&t.Resources.Grants[i].Type)
		visit(&t.Resources.Grants[i].ID)
	}
	visit(&t.Name)
	visit(&t.Creator.Name)
	visit(&t.Sources.Text)
	for i := range t.Secrets {
		visit(&t.Secrets[i].Last4)
	}
}

// bytesOfWeight is what the bound on entries reckons with for each: several times what a
// token usually takes, and a fiftieth of what one can.
const bytesOfWeight = 2 << 10

// listed is about how many bytes the token's lists take.
func (e *entry) listed() int {
	const text, grant, prefix = 16, 40, 32
	t := &e.token
	return text*len(t.Scopes) + grant*len(t.Resources.Grants) + prefix*(len(t.Sources.Allow)+len(t.Sources.Deny))
}
