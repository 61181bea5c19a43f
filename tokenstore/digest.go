package tokenstore

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"slices"
	"sync"
)

// Digest stands for a secret in stores: SHA-256 of the text, or
// HMAC-SHA-256 of it under a pepper.
type Digest [sha256.Size]byte

// Equal compares in constant time.
func (d Digest) Equal(other Digest) bool { return subtle.ConstantTimeCompare(d[:], other[:]) == 1 }

// String shows nothing of the digest: it has no place outside the store.
func (d Digest) String() string { return Redacted }

// Format implements fmt.Formatter for every verb.
func (d Digest) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(Redacted)) }

// MarshalText keeps the digest out of JSON and the like.
func (d Digest) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// Scheme says how a digest was made from the text.
type Scheme uint8

// The schemes. The zero Scheme is invalid. Adding one means editing Scheme.Valid,
// Scheme.String and Cache.fillForeign; tests walk all values.
const (
	// SchemeNative is a digest that was made here, from the text.
	SchemeNative Scheme = 1
	// SchemeSHA256 is an imported digest, the SHA-256 of the text. An imported text
	// is stored so too, so that it is the same secret whichever way it came.
	SchemeSHA256 Scheme = 2
	// SchemeHMAC is an imported digest, HMAC-SHA-256 of the text under an import key.
	SchemeHMAC Scheme = 3
)

// Valid reports whether s is a scheme this version knows.
func (s Scheme) Valid() bool { return s >= SchemeNative && s <= SchemeHMAC }

func (s Scheme) String() string {
	switch s {
	case SchemeNative:
		return "native"
	case SchemeSHA256:
		return "sha256"
	case SchemeHMAC:
		return "hmac-sha256"
	}
	return "invalid"
}

// PepperID names a pepper without telling it. The zero PepperID means none.
type PepperID [8]byte

func (p PepperID) String() string { return hex.EncodeToString(p[:]) }

// IsZero reports whether the id stands for no pepper.
func (p PepperID) IsZero() bool { return p == PepperID{} }

// MinPepperBytes is the least entropy-bearing length of a pepper file.
const MinPepperBytes = 32

// Peppers makes digests and seals records. The nil *Peppers uses plain SHA-256
// and seals nothing. It is immutable and safe for concurrent use.
type Peppers struct{ list []*pepper }

type pepper struct {
	id       PepperID
	macKey   []byte
	auditKey []byte
	gmac     cipher.AEAD // for tags alone, see KeyedSum
	hashers  hashers
}

// hashers are pooled. An HMAC keeps the compressed key between uses, which saves two
// of four SHA-256 blocks; and a plain one would be allocated at each use, by the way
// that the compiler goes about sha256.Sum256 once it has a profile.
type hashers struct{ pool sync.Pool }

type hasher struct {
	hash hash.Hash
	out  Digest
}

func newHashers(hash func() hash.Hash) hashers {
	return hashers{sync.Pool{New: func() any { return &hasher{hash: hash()} }}}
}

func (h *hashers) digest(text []byte) Digest {
	one := h.pool.Get().(*hasher)
	one.hash.Reset()
	one.hash.Write(text)
	one.hash.Sum(one.out[:0])
	d := one.out
	h.pool.Put(one)
	return d
}

// plain hashes what is not peppered.
var plain = newHashers(sha256.New)

// NewPeppers takes the contents of the configured pepper files. The first one
// writes; all of them are tried on reading. Surrounding white space is not part
// of a pepper. No file at all gives the nil *Peppers.
func NewPeppers(files ...[]byte) (*Peppers, error) {
	if len(files) == 0 {
		return nil, nil
	}
	p := &Peppers{}
	for i, raw := range files {
		key := bytes.TrimSpace(raw)
		if len(key) < MinPepperBytes {
			return nil, fmt.Errorf("pepper %d has %d bytes, and needs at least %d: make one with `head -c 32 /dev/urandom | base64`", i+1, len(key), MinPepperBytes)
		}
		one, err := newPepper(key)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(p.list, func(o *pepper) bool { return o.id == one.id }) {
			return nil, fmt.Errorf("pepper %d is the same as an earlier one: list each once", i+1)
		}
		p.list = append(p.list, one)
	}
	return p, nil
}

func newPepper(key []byte) (*pepper, error) {
	derive := func(label string, n int) ([]byte, error) { return hkdf.Key(sha256.New, key, nil, label, n) }
	id, err := derive("tokenward pepper id", len(PepperID{}))
	if err != nil {
		return nil, err
	}
	macKey, err := derive("tokenward record mac", sha256.Size)
	if err != nil {
		return nil, err
	}
	digestKey, err := derive("tokenward secret digest", sha256.Size)
	if err != nil {
		return nil, err
	}
	auditKey, err := derive("tokenward audit chain", sha256.Size)
	if err != nil {
		return nil, err
	}
	sumKey, err := derive("tokenward keyed sum", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(sumKey)
	if err != nil {
		return nil, err
	}
	gmac, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &pepper{
		id: PepperID(id), macKey: macKey, auditKey: auditKey, gmac: gmac,
		hashers: newHashers(func() hash.Hash { return hmac.New(sha256.New, digestKey) }),
	}, nil
}

// IDs returns the ids of the configured peppers, the writing one first; none
// for the nil *Peppers.
func (p *Peppers) IDs() []PepperID {
	if p == nil {
		return nil
	}
	ids := make([]PepperID, len(p.list))
	for i, one := range p.list {
		ids[i] = one.id
	}
	return ids
}

// AuditKeys returns the keys of the audit log's chain, one for each pepper, the
// writing one first; none for the nil *Peppers. Whoever knows one of them knows
// nothing of the pepper and of what else is derived from it.
func (p *Peppers) AuditKeys() [][]byte {
	if p == nil {
		return nil
	}
	keys := make([][]byte, len(p.list))
	for i, one := range p.list {
		keys[i] = bytes.Clone(one.auditKey)
	}
	return keys
}

// Digest returns the digest under which a new secret is stored, and the pepper
// that made it.
func (p *Peppers) Digest(text string) (Digest, PepperID) {
	if p == nil {
		return sha256.Sum256([]byte(text)), PepperID{}
	}
	return p.list[0].hashers.digest([]byte(text)), p.list[0].id
}

// Candidates is how many digests a presented text can be stored under.
func (p *Peppers) Candidates() int {
	if p == nil {
		return 1
	}
	return len(p.list)
}

// Candidate returns the i-th digest that the text can be stored under. It does
// not allocate.
func (p *Peppers) Candidate(i int, text []byte) Digest {
	if p == nil {
		return plain.digest(text)
	}
	return p.list[i].hashers.digest(text)
}

// Imported returns the digest under which a digest from elsewhere is stored, and
// the pepper that made it.
func (p *Peppers) Imported(scheme Scheme, d Digest) (Digest, PepperID) {
	if p == nil {
		return d, PepperID{}
	}
	return p.ImportedCandidate(0, scheme, d), p.list[0].id
}

// ImportedCandidate returns the i-th digest that one from elsewhere can be stored
// under. What is hashed begins with a byte that no presented text has.
func (p *Peppers) ImportedCandidate(i int, scheme Scheme, d Digest) Digest {
	if p == nil {
		return d
	}
	b := append(make([]byte, 0, 1+len(d)), byte(scheme))
	return p.list[i].hashers.digest(append(b, d[:]...))
}

// ImportKeys are the keys of HMAC digests that were made elsewhere. The nil
// *ImportKeys has none. It is immutable and safe for concurrent use.
type ImportKeys struct {
	ids  []PepperID
	keys [][]byte
}

// MinImportKeyBytes is the least length of an import key: with a shorter one the
// digests would tell the secrets to whoever tries them all.
const MinImportKeyBytes = 16

// NewImportKeys takes the contents of key files. Unlike a pepper a key from
// elsewhere may begin or end in white space, so of that only one line break at the
// end is left out. No file at all gives the nil *ImportKeys.
func NewImportKeys(files ...[]byte) (*ImportKeys, error) {
	if len(files) == 0 {
		return nil, nil
	}
	k := &ImportKeys{}
	for i, raw := range files {
		key := bytes.TrimSuffix(raw, []byte("\n"))
		if len(key) < MinImportKeyBytes {
			return nil, fmt.Errorf("import key %d has %d bytes, and needs at least %d: import the secrets themselves instead", i+1, len(key), MinImportKeyBytes)
		}
		id, err := hkdf.Key(sha256.New, key, nil, "tokenward import key id", len(PepperID{}))
		if err != nil {
			return nil, err
		}
		k.ids, k.keys = append(k.ids, PepperID(id)), append(k.keys, bytes.Clone(key))
	}
	return k, nil
}

// IDs returns names of the keys that do not tell them, the first one's first.
func (k *ImportKeys) IDs() []PepperID {
	if k == nil {
		return nil
	}
	return slices.Clone(k.ids)
}

// Digests are what was made of the text elsewhere, with each of the keys.
func (k *ImportKeys) Digests(text []byte) []Digest {
	digests := make([]Digest, len(k.IDs()))
	for i := range digests {
		digests[i] = k.digest(i, text)
	}
	return digests
}

// digest is what was made of the text elsewhere, with the i-th key.
func (k *ImportKeys) digest(i int, text []byte) (d Digest) {
	h := hmac.New(sha256.New, k.keys[i])
	h.Write(text)
	h.Sum(d[:0])
	return d
}

// sealLen is what a seal adds to a record: which pepper, and its MAC.
const sealLen = len(PepperID{}) + sha256.Size

// ErrSeal says that a record was not written by a holder of the pepper.
var ErrSeal = errors.New("record is not sealed by a configured pepper: the store was written by something else, restore it from a backup")

// Seal appends to record a MAC over it, so that whoever can write the store
// but lacks the pepper can neither mint a token nor widen one. Without a
// pepper the record is returned as it is.
func (p *Peppers) Seal(record []byte) []byte {
	if p == nil {
		return record
	}
	one := p.list[0]
	sealed := append(record, one.id[:]...)
	return append(sealed, one.seal(sealed)...)
}

// Unseal checks and removes what Seal appended.
func (p *Peppers) Unseal(sealed []byte) ([]byte, error) {
	if p == nil {
		return sealed, nil
	}
	if len(sealed) < sealLen {
		return nil, ErrSeal
	}
	body, mac := sealed[:len(sealed)-sha256.Size], sealed[len(sealed)-sha256.Size:]
	record, id := body[:len(body)-len(PepperID{})], PepperID(body[len(body)-len(PepperID{}):])
	for _, one := range p.list {
		if one.id == id && hmac.Equal(mac, one.seal(body)) {
			return record, nil
		}
	}
	return nil, ErrSeal
}

// KeyedSum sums up a long text that comes in pieces, at two fifths of what SHA-256
// costs: without the pepper nobody finds other pieces, or another order or number of them,
// with the same sum. Each piece has a tag by AES-GMAC, under a key of the pepper's and
// with its number as the nonce; the sum is the SHA-256 of the tags. Tags and sum are
// shown to nobody, so that the same numbers may serve for every text: only what
// [Peppers.Seal] makes of the sum leaves. It is for one goroutine.
type KeyedSum struct {
	gmac  cipher.AEAD
	tags  hash.Hash
	count uint64
	nonce [12]byte
	tag   [16]byte
}

// KeyedSum begins a sum under one of the peppers. It returns nil where there is none
// with the id.
func (p *Peppers) KeyedSum(id PepperID) *KeyedSum {
	if p == nil {
		return nil
	}
	for _, one := range p.list {
		if one.id == id {
			return &KeyedSum{gmac: one.gmac, tags: sha256.New()}
		}
	}
	return nil
}

// Add takes the next piece.
func (k *KeyedSum) Add(piece []byte) {
	binary.BigEndian.PutUint64(k.nonce[:], k.count)
	k.count++
	k.tags.Write(k.gmac.Seal(k.tag[:0], k.nonce[:], nil, piece))
}

// Sum returns the sum of the pieces so far.
func (k *KeyedSum) Sum() []byte { return k.tags.Sum(nil) }

func (p *pepper) seal(body []byte) []byte {
	h := hmac.New(sha256.New, p.macKey)
	h.Write(body)
	return h.Sum(nil)
}

// SHA256 is the plain digest of a text, as others make it.
func SHA256(text string) Digest { return sha256.Sum256([]byte(text)) }
