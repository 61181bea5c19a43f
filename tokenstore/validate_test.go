package tokenstore_test

import (
	"testing"

	"tokenward/tokenstore"
)

// TestJoinersStandOnlyWhereTheyAreSeen: they are part of how people write, and
// elsewhere a way to make two names look the same.
func TestJoinersStandOnlyWhereTheyAreSeen(t *testing.T) {
	for name, text := range map[string]string{
		"family":              "\U0001F468\u200d\U0001F469\u200d\U0001F467 at home",
		"technologist":        "\U0001F469\U0001F3FD\u200d\U0001F4BB",
		"heart on fire":       "\u2764\ufe0f\u200d\U0001F525",
		"shaking head":        "\U0001F642\u200d\u2194\ufe0f",
		"Persian":             "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
		"Sinhala":             "\u0DC1\u0DCA\u200d\u0DBB\u0DD3",
		"Malayalam":           "\u0D28\u0D4D\u200c\u0D28",
		"accent of two parts": "e\u0301",
	} {
		if detail := tokenstore.CheckText(text, tokenstore.MaxNameRunes); detail != "" {
			t.Errorf("%s %q %s", name, text, detail)
		}
	}
	for name, text := range map[string]string{
		"between Latin letters":    "ad\u200dmin",
		"between Cyrillic letters": "\u0430\u0434\u200c\u043c\u0438\u043d",
		"at the beginning":         "\u200d\U0001F525",
		"at the end":               "\U0001F525\u200d",
		"before a space":           "\U0001F525\u200d 7",
		"two":                      "\U0001F525\u200d\u200d\U0001F525",
		"both kinds":               "\u0645\u200c\u200d\u062e",
		"alone":                    "\u200d",
		"with another":             "\U0001F468\u200d\U0001F469\u200b",
		"with a bidi control":      "\u202e\u0645\u06cc\u200c\u062e",
		"with a tag":               "\U0001F468\u200d\U0001F469\U000E0067",
	} {
		if tokenstore.CheckText(text, tokenstore.MaxNameRunes) == "" {
			t.Errorf("%s: %q is taken", name, text)
		}
	}
}
