package main

import (
	"strings"
	"testing"

	"tokenward/audit"
)

// TestLogWithoutSignedHeadsIsNotPassedOverInSilence: whoever writes the chain anew can
// leave them out.
func TestLogWithoutSignedHeadsIsNotPassedOverInSilence(t *testing.T) {
	const told = "No line is signed by that key"
	if text := auditText(&audit.Report{Events: 1}, true); !strings.Contains(text, told) {
		t.Error(text)
	}
	if text := auditText(&audit.Report{Events: 1}, false); strings.Contains(text, told) {
		t.Error(text)
	}
}
