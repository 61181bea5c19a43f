package tokenstore_test

import (
	"testing"

	"tokenward/tokenstore"
)

func BenchmarkClassify(b *testing.B) {
	formats := tokenstore.NewFormats("api", "tw")
	for name, text := range map[string]string{
		"ours":           tokenstore.NewSecret("tw").Reveal(),
		"wrong length":   "tw_garbage",
		"wrong checksum": tokenstore.NewSecret("tw").Reveal()[:40] + "0",
		"foreign":        "sk_live_0123456789",
	} {
		b.Run(name, func(b *testing.B) {
			raw := []byte(text)
			b.ReportAllocs()
			for b.Loop() {
				_ = formats.Classify(raw)
			}
		})
	}
}

func BenchmarkDigest(b *testing.B) {
	pepper, err := tokenstore.NewPeppers([]byte("a pepper of at least thirty-two bytes"))
	if err != nil {
		b.Fatal(err)
	}
	raw := []byte(tokenstore.NewSecret("tw").Reveal())
	for name, p := range map[string]*tokenstore.Peppers{"plain": nil, "peppered": pepper} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = p.Candidate(0, raw)
			}
		})
	}
}
