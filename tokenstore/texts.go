package tokenstore

import "unsafe"

// textRoom holds the texts of a token behind one another, in the token's own memory.
type textRoom [120]byte

// gather copies all texts of t, the token that the room lies behind: into the room, or
// into one string where that is too small. They then hold on to nothing else, such as
// the record that they were read from. It may be called once.
func (room *textRoom) gather(t *Token) {
	n := 0
	t.eachText(func(s *string) { n += len(*s) })
	dst := room[:0]
	if n > len(room) {
		dst = make([]byte, 0, n)
	}
	t.eachText(func(s *string) {
		start := len(dst)
		dst = append(dst, *s...)
		// As strings.Builder does: nobody can write to these bytes any more.
		*s = unsafe.String(unsafe.SliceData(dst[start:]), len(*s)) // #nosec G103
	})
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
