package admin

import (
	"strings"
	"testing"
)

func TestEstimateOfEntropy(t *testing.T) {
	t.Parallel()
	for text, enough := range map[string]bool{
		"":                                     false,
		strings.Repeat("a", 100):               false,
		"1234567890123456":                     false,
		"12345678901234567890123456":           true,
		"password":                             false,
		"correct horse battery":                false,
		"0123456789abcdef":                     false,
		"0f8fad5b-d9cb-469f-a165-70867728950e": true,
		"9f86d081884c7d659a2feaa0c55ad015":     true,
		"Zk3v9QpL0xWm7RtYb2Nc":                 true,
		"0123456789abcdefABCDEF0":              true,  // 92 bits
		"0123456789abcdefABC":                  false, // 76: as if 19 characters were told apart, 80
		"0123456789abcdefABCD":                 true,  // the least, 80
		"0123456789abcdefABCG":                 true,  // no hexadecimal
	} {
		if bits := estimateBits(text); bits >= minImportBits != enough {
			t.Errorf("%q has %.0f bits", text, bits)
		}
	}
}
