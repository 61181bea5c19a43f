package native

import (
	"strings"
	"testing"

	"tokenward/tokenstore"
)

// FuzzCursor checks that what is read prints back to the same text, and that
// nothing is read that was not made.
func FuzzCursor(f *testing.F) {
	c := newCursors([]byte("key"))
	f.Add(c.text(1, ""), "")
	f.Add(c.text(1<<53-1, "account=1&state=active"), "account=1&state=active")
	f.Add("AAAAAAAAAAE", "")
	f.Add("AAAAAAAA"+strings.Repeat("\r", 24), "")
	f.Fuzz(func(t *testing.T, text, selection string) {
		id, ok := c.parse(text, selection)
		if ok && c.text(id, selection) != text {
			t.Errorf("%q reads as %d and prints as %q", text, id, c.text(id, selection))
		}
		if _, ok := newCursors([]byte("another key")).parse(text, selection); ok {
			t.Errorf("%q was read under a key that it was not made with", text)
		}
	})
}

func TestCursorPrintsAndReads(t *testing.T) {
	c := newCursors([]byte("key"))
	for _, id := range []tokenstore.ID{1, 255, 1 << 40, 1<<53 - 1} {
		if got, ok := c.parse(c.text(id, "a=b"), "a=b"); !ok || got != id {
			t.Errorf("%d reads as %d, %t", id, got, ok)
		}
	}
}
