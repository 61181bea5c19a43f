package fynn

import (
	"strings"
	"testing"

	"tokenward/tokenstore"
)

func TestIDsAreStable(t *testing.T) {
	for id, want := range map[tokenstore.ID]string{
		1:         "14W2OYSIPREKKI8MOOJS",
		2:         "II9EUZZQN0DHMQDX219S",
		1<<53 - 1: "8XNL2LLU36UCCMERY0NU",
	} {
		if got := FormatID(id); got != want {
			t.Errorf("token %d is called %s, clients know it as %s", id, got, want)
		}
	}
}

func TestIDsMapBack(t *testing.T) {
	seen := make(map[string]bool)
	for _, id := range []tokenstore.ID{1, 2, 3, 10, 1000, 1<<32 - 1, 1 << 32, 1<<53 - 1} {
		text := FormatID(id)
		if len(text) != 20 || strings.Trim(text, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			t.Errorf("token %d is called %q", id, text)
		}
		if seen[text] {
			t.Errorf("two tokens are called %s", text)
		}
		seen[text] = true
		if back, ok := ParseID(text); !ok || back != id {
			t.Errorf("%s leads to token %d, %t, not to %d", text, back, ok, id)
		}
	}
	for _, wrong := range []string{"", "1", "ZZZZZZZZZZZZZZZZZZZZ", "00000000000000000000", strings.ToLower(FormatID(2)), FormatID(1) + "0", FormatID(0), FormatID(1 << 53), FormatID(1<<64 - 1)} {
		if id, ok := ParseID(wrong); ok {
			t.Errorf("%q leads to token %d", wrong, id)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add(FormatID(1))
	f.Add("00000000000000000000")
	f.Fuzz(func(t *testing.T, text string) {
		if id, ok := ParseID(text); ok && FormatID(id) != text {
			t.Errorf("%q and %q lead to the same token", text, FormatID(id))
		}
	})
}
