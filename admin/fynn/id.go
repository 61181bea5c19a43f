package fynn

import (
	"crypto/sha256"
	"encoding/binary"
	"math/big"
	"strings"

	"tokenward/tokenstore"
)

// An id of this API is 20 characters of A–Z and 0–9: in base 36 a check of 39
// bits, which follows from the token's id, before the token's id under a mask of
// 64 bits, which follows from the check. So it is stable, no other text reads as
// the same token, and neighbours look unlike. It hides nothing: whoever has this
// file can read it, and learns a number that other APIs show.
const (
	idLen     = 20
	idBase    = 36
	checkBits = 39
)

// FormatID returns the id of a token as this API shows it.
func FormatID(id tokenstore.ID) string {
	check := idCheck(id)
	n := new(big.Int).SetUint64(check)
	n.Lsh(n, 64).Or(n, new(big.Int).SetUint64(uint64(id)^idMask(check)))
	text := strings.ToUpper(n.Text(idBase))
	return strings.Repeat("0", idLen-len(text)) + text
}

// ParseID is the inverse of [FormatID]. It reports false for every other text.
func ParseID(text string) (tokenstore.ID, bool) {
	if len(text) != idLen {
		return 0, false
	}
	for i := range idLen {
		if c := text[i]; (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return 0, false
		}
	}
	n, ok := new(big.Int).SetString(text, idBase)
	if !ok || n.BitLen() > checkBits+64 {
		return 0, false
	}
	masked := new(big.Int).And(n, new(big.Int).SetUint64(1<<64-1)).Uint64()
	check := n.Rsh(n, 64).Uint64()
	id, ok := tokenstore.ParseID(tokenstore.ID(masked ^ idMask(check)).String())
	return id, ok && idCheck(id) == check
}

func idCheck(id tokenstore.ID) uint64 {
	return idHash("tokenward fynn id check", uint64(id)) >> (64 - checkBits)
}

func idMask(check uint64) uint64 { return idHash("tokenward fynn id mask", check) }

func idHash(label string, n uint64) uint64 {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(label), n))
	return binary.BigEndian.Uint64(sum[:])
}
