package tokenstore

import (
	"crypto/rand"
	"fmt"
	"hash/crc32"
	"log/slog"
	"slices"
	"strings"
)

// The form of a secret: `<prefix>_`, then random characters, then a checksum.
const (
	randomLen   = 32 // 32 base62 characters: 190.5 bits
	checksumLen = 6  // base62 digits of a CRC-32, most significant first
	bodyLen     = randomLen + checksumLen

	minPrefixLen = 2
	maxPrefixLen = 16
	maxSecretLen = maxPrefixLen + 1 + bodyLen
)

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// Secret is the text that proves possession of a token. It exists in the
// answer that makes it and in the request that uses it, nowhere else: every
// printer shows it redacted, and only Reveal gives the text.
type Secret struct{ text string }

// Redacted is what a secret looks like wherever it is printed.
const Redacted = "[redacted]"

// NewSecret makes a secret with the given prefix from the system's randomness.
// The prefix must satisfy [ValidPrefix]; anything else is a broken invariant of
// the caller and panics.
func NewSecret(prefix string) Secret {
	if !ValidPrefix(prefix) {
		panic("tokenstore: secret prefix was not validated: " + prefix)
	}
	b := make([]byte, 0, len(prefix)+1+bodyLen)
	b = append(b, prefix...)
	b = append(b, '_')
	b = appendRandom(b, randomLen)
	b = appendChecksum(b)
	return Secret{string(b)}
}

// SecretFrom wraps a text that someone presented or a file held. It checks
// nothing: [Formats.Classify] does.
func SecretFrom(text string) Secret { return Secret{text} }

// Reveal returns the text. Every call of it is a place to review.
func (s Secret) Reveal() string { return s.text }

// Last4 returns the last four characters, which people use to tell secrets
// apart, or nothing for a text too short to spare them.
func (s Secret) Last4() string {
	if len(s.text) < 12 {
		return ""
	}
	return s.text[len(s.text)-4:]
}

// IsZero reports whether there is no text.
func (s Secret) IsZero() bool { return s.text == "" }

func (s Secret) String() string { return Redacted }

// Format implements fmt.Formatter for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(Redacted)) }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalText keeps the text out of JSON, YAML and the like.
func (s Secret) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// appendRandom appends n base62 characters, each equally likely: a byte of 248
// or more would favour the first characters and is drawn again.
func appendRandom(b []byte, n int) []byte {
	const limit = 256 / len(base62) * len(base62)
	var buf [randomLen + 8]byte
	for n > 0 {
		_, _ = rand.Read(buf[:]) // never fails: crypto/rand aborts the program instead
		for _, c := range buf {
			if int(c) >= limit {
				continue
			}
			b = append(b, base62[int(c)%len(base62)])
			if n--; n == 0 {
				break
			}
		}
	}
	return b
}

// appendChecksum appends the CRC-32/IEEE of b as six base62 digits.
func appendChecksum(b []byte) []byte {
	crc := crc32.ChecksumIEEE(b)
	var sum [checksumLen]byte
	for i := checksumLen - 1; i >= 0; i-- {
		sum[i] = base62[crc%62]
		crc /= 62
	}
	return append(b, sum[:]...)
}

// ValidPrefix reports whether p matches [a-z][a-z0-9]{1,15}.
func ValidPrefix(p string) bool {
	if len(p) < minPrefixLen || len(p) > maxPrefixLen || p[0] < 'a' || p[0] > 'z' {
		return false
	}
	for i := range len(p) {
		if c := p[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// Class is what the form of a presented text says about it.
type Class uint8

// The classes. The zero Class is a text that cannot be a secret.
const (
	ClassBroken  Class = 0 // empty, or our prefix with a wrong length, alphabet or checksum
	ClassOurs    Class = 1 // well-formed with a recorded prefix
	ClassForeign Class = 2 // does not bear a recorded prefix
)

// Formats is the set of prefixes that this store ever used. The zero value
// knows none, so every text is foreign to it. A Formats is immutable.
type Formats struct {
	prefixes []string
	foreign  foreignSchemes // by scheme: whether there are secrets from elsewhere
}

type foreignSchemes [SchemeHMAC + 1]bool

// NewFormats returns the set of the given prefixes.
func NewFormats(prefixes ...string) *Formats {
	p := slices.Clone(prefixes)
	slices.Sort(p)
	return &Formats{prefixes: slices.Compact(p)}
}

// With returns the set together with schemes of secrets from elsewhere.
func (f *Formats) With(schemes ...Scheme) *Formats {
	more := *f
	for _, s := range schemes {
		if s.Valid() && s != SchemeNative {
			more.foreign[s] = true
		}
	}
	return &more
}

// Foreign reports whether there are secrets from elsewhere of the scheme.
func (f *Formats) Foreign(s Scheme) bool { return s.Valid() && f.foreign[s] }

// Prefixes returns the recorded prefixes in order.
func (f *Formats) Prefixes() []string { return slices.Clone(f.prefixes) }

// Classify judges the text by its form alone. It takes time that depends on the
// text's public parts only, and does not allocate.
func (f *Formats) Classify(text []byte) Class {
	class := f.glance(text)
	if class == ClassOurs && !inAlphabet(text) {
		return ClassBroken
	}
	return class
}

// glance is Classify but for the characters of the text: enough for garbage to be
// refused without a look at cache or store, and for a text that the cache knows.
func (f *Formats) glance(text []byte) Class {
	if len(text) == 0 {
		return ClassBroken
	}
	for _, p := range f.prefixes {
		if len(text) > len(p) && text[len(p)] == '_' && string(text[:len(p)]) == p {
			if len(text) == len(p)+1+bodyLen && checked(text) {
				return ClassOurs
			}
			return ClassBroken
		}
	}
	return ClassForeign
}

// checked reports whether the text ends in the checksum of what stands before. The
// value of a character that is no digit is larger than any digit's.
func checked(text []byte) bool {
	split := len(text) - checksumLen
	var sum uint64 // 62⁶ is more than 32 bits
	for _, c := range text[split:] {
		sum = sum*62 + uint64(base62Value[c])
	}
	return sum == uint64(crc32.ChecksumIEEE(text[:split]))
}

// inAlphabet reports whether the body of a text of the right length is one.
func inAlphabet(text []byte) bool {
	all := uint8(0)
	for _, c := range text[len(text)-bodyLen:] {
		all |= base62Value[c]
	}
	return all < notBase62
}

// base62Value gives the values of the characters of a secret's body, as a table
// because every request looks up 38 of them.
var base62Value = func() (table [256]uint8) {
	for c := range table {
		table[c] = notBase62
	}
	for i := range len(base62) {
		table[base62[i]] = uint8(i)
	}
	return table
}()

// notBase62 has a bit that no value of a base62 digit has.
const notBase62 = 1 << 6

// SecretBodyLen is how many characters follow the underscore behind the prefix.
const SecretBodyLen = bodyLen

// SecretPattern returns the regular expression (RE2 syntax) that the secrets of
// the given prefixes match.
func SecretPattern(prefixes []string) string {
	return fmt.Sprintf(`\b(?:%s)_[0-9A-Za-z]{%d}\b`, strings.Join(prefixes, "|"), bodyLen)
}
