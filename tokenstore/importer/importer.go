// Package importer reads the tokens that customers already hold out of files:
// CSV, JSON lines, and the exports of keys of Kong, Tyk and Apache APISIX. It only
// reads: what it yields is judged and stored by the token service.
package importer

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"tokenward/tokenstore"
)

// Item is one token. What is zero or nil, the file does not say.
type Item struct {
	Line      int // where it stands: a line, or in one JSON document its number there
	Secret    tokenstore.Secret
	Digest    tokenstore.Digest // of Scheme, when Secret is zero
	Scheme    tokenstore.Scheme
	Last4     string
	Name      string
	Account   *uint64
	Owner     *uint64
	Scopes    []string
	Resources *tokenstore.Resources
	Sources   *tokenstore.Sources
	NotBefore time.Time
	Expiry    *tokenstore.Expiry
	Limits    *tokenstore.Limits
	Disabled  bool
}

// Options say how a file is read.
type Options struct {
	// Digest says what stands where a key is expected: "" or "none" for the secret
	// itself, "sha256" or "hmac-sha256" for a digest of it.
	Digest string
	// ExportedAt is when an export was made, which what it says in seconds from then
	// counts from. Zero: not known, and such an entry cannot be read.
	ExportedAt time.Time
}

// LineError says that one entry cannot be read; the ones after it can.
type LineError struct {
	Line   int
	Detail string
}

func (e *LineError) Error() string { return fmt.Sprintf("entry %d %s", e.Line, e.Detail) }

// The bounds of what is read, so that no file fills the memory.
const (
	maxLineBytes     = 64 << 10
	maxDocumentBytes = 1 << 30
)

// Formats returns the names that Read knows, in order.
func Formats() []string { return []string{"apisix", "csv", "jsonl", "kong", "tyk"} }

// Read yields the tokens in r, a file of the format. A *LineError stands for an
// entry that cannot be read; any other error ends the sequence. It fails at once
// for a format or a digest that is not known.
func Read(format string, r io.Reader, o Options) (iter.Seq2[Item, error], error) {
	if err := checkDigest(o.Digest); err != nil {
		return nil, err
	}
	switch format {
	case "csv":
		return readCSV(r, o), nil
	case "jsonl":
		return readLines(r, o), nil
	case "kong":
		return readKong(r, o), nil
	case "tyk":
		return readTyk(r, o), nil
	case "apisix":
		return readAPISIX(r, o), nil
	}
	return nil, fmt.Errorf("%q is not a format: write one of %s", format, strings.Join(Formats(), ", "))
}

// broken lists hashes that are no protection: whoever has the file, or only tries
// long enough, finds a text that fits.
var broken = []string{"murmur", "crc", "md5", "sha1", "fnv", "xxhash", "cityhash", "adler", "djb2", "siphash"}

func checkDigest(name string) error {
	folded := strings.ToLower(strings.ReplaceAll(name, "-", ""))
	switch folded {
	case "", "none", "sha256", "hmacsha256":
		return nil
	}
	if slices.ContainsFunc(broken, func(b string) bool { return strings.HasPrefix(folded, b) }) {
		return fmt.Errorf("%s is not a cryptographic hash, so other texts than the secret would be let in: import the secrets themselves", name)
	}
	return fmt.Errorf("%q is not a kind of digest that can be imported: write sha256 or hmac-sha256, or import the secrets themselves", name)
}

func schemeOf(digest string) tokenstore.Scheme {
	switch strings.ToLower(strings.ReplaceAll(digest, "-", "")) {
	case "sha256":
		return tokenstore.SchemeSHA256
	case "hmacsha256":
		return tokenstore.SchemeHMAC
	}
	return tokenstore.SchemeNative
}

// key sets what the item is recognised by: the secret itself, or a digest in
// hexadecimal or base64.
func (i *Item) key(text, digest string) error {
	if text == "" {
		return errors.New("has no key")
	}
	if i.Scheme = schemeOf(digest); i.Scheme == tokenstore.SchemeNative {
		i.Scheme, i.Secret = 0, tokenstore.SecretFrom(text)
		return nil
	}
	d, ok := parseDigest(text)
	if !ok {
		return errors.New("has no digest of 32 bytes in hexadecimal or base64")
	}
	i.Digest = d
	return nil
}

func parseDigest(text string) (d tokenstore.Digest, ok bool) {
	for _, decode := range []func(string) ([]byte, error){
		hex.DecodeString,
		base64.StdEncoding.Strict().DecodeString, base64.RawStdEncoding.Strict().DecodeString,
		base64.URLEncoding.Strict().DecodeString, base64.RawURLEncoding.Strict().DecodeString,
	} {
		if b, err := decode(text); err == nil && len(b) == len(d) {
			return tokenstore.Digest(b), true
		}
	}
	return d, false
}

// plainText returns what r holds without a byte order mark at its beginning.
func plainText(r io.Reader) (io.Reader, error) {
	in := bufio.NewReader(r)
	begin, err := in.Peek(3)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the file: %w", err)
	}
	switch {
	case bytes.HasPrefix(begin, []byte("\ufeff")):
		_, _ = in.Discard(3) // they are there
	case bytes.HasPrefix(begin, []byte{0xff, 0xfe}), bytes.HasPrefix(begin, []byte{0xfe, 0xff}):
		return nil, errors.New("the file is UTF-16: save it as UTF-8")
	}
	return in, nil
}

// boundedReader fails behind so many bytes: an end there would make a whole row, and
// perhaps a whole secret, of the beginning of one.
type boundedReader struct {
	r    io.Reader
	left int
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, errors.New("the file is longer than 1 GiB: cut it into several, each whole by itself; with CSV, each with the line that names the columns")
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
