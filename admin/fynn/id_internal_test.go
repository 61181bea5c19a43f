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
		if got := formatID(id); got != want {
			t.Errorf("token %d is called %s, clients know it as %s", id, got, want)
		}
	}
}

func TestIDsMapBack(t *testing.T) {
	seen := make(map[string]bool)
	for _, id := range []tokenstore.ID{1, 2, 3, 10, 1000, 1<<32 - 1, 1 << 32, 1<<53 - 1} {
		text := formatID(id)
		if len(text) != 20 || strings.Trim(text, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			t.Errorf("token %d is called %q", id, text)
		}
		if seen[text] {
			t.Errorf("two tokens are called %s", text)
		}
		seen[text] = true
		if back, ok := parseID(text); !ok || back != id {
			t.Errorf("%s leads to token %d, %t, not to %d", text, back, ok, id)
		}
	}
	for _, wrong := range []string{"", "1", "ZZZZZZZZZZZZZZZZZZZZ", "00000000000000000000", strings.ToLower(formatID(2)), formatID(1) + "0", formatID(0), formatID(1 << 53), formatID(1<<64 - 1)} {
		if id, ok := parseID(wrong); ok {
			t.Errorf("%q leads to token %d", wrong, id)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add(formatID(1))
	f.Add("00000000000000000000")
	f.Fuzz(func(t *testing.T, text string) {
		if id, ok := parseID(text); ok && formatID(id) != text {
			t.Errorf("%q and %q lead to the same token", text, formatID(id))
		}
	})
}
