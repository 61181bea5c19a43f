package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Head says where a log stands: whoever keeps a copy can prove later that
// all lines up to there are still there and unchanged. A signed one can also
// be trusted when it comes from somebody else.
type Head struct {
	Log       string    // id of the log
	Line      uint64    // the last line it covers; 0 for the zero Head
	Chain     [32]byte  // that line's chain value
	Time      time.Time // when it was signed; zero when it is not
	Key       string    // names the signing key; "" when not signed
	Signature []byte    // Ed25519; nil when not signed
}

// ErrHeadSignature says that a head was not signed by the key it was checked with.
var ErrHeadSignature = errors.New("the head is not signed by this key")

// Verify returns nil if pub's owner signed the head.
func (h Head) Verify(pub ed25519.PublicKey) error {
	if len(pub) != ed25519.PublicKeySize || !ed25519.Verify(pub, h.message(), h.Signature) {
		return ErrHeadSignature
	}
	return nil
}

// String returns the head as one line of text that [ParseHead] reads:
// log id, line, chain value, and, if signed, time, key name and signature.
func (h Head) String() string {
	s := h.Log + " " + strconv.FormatUint(h.Line, 10) + " " + hex.EncodeToString(h.Chain[:])
	if h.Signature == nil {
		return s
	}
	return s + " " + timeText(h.Time) + " " + h.Key + " " + base64.RawURLEncoding.EncodeToString(h.Signature)
}

// ParseHead reads what [Head.String] returned. It does not check the signature.
func ParseHead(s string) (Head, error) {
	fields := strings.Split(s, " ")
	if len(fields) != 3 && len(fields) != 6 {
		return Head{}, errors.New("a head has 3 fields, or 6 when signed")
	}
	h := Head{Log: fields[0]}
	line, rest, ok := cutNumber([]byte(fields[1]))
	if !ok || len(rest) > 0 {
		return Head{}, fmt.Errorf("the head's line is not a number: %.40q", fields[1])
	}
	h.Line = line
	chain, err := hex.DecodeString(fields[2])
	if err != nil || len(chain) != len(h.Chain) {
		return Head{}, fmt.Errorf("the head's chain value is not 32 bytes in hexadecimal: %.80q", fields[2])
	}
	copy(h.Chain[:], chain)
	if len(fields) == 6 {
		if h.Time, err = time.Parse(time.RFC3339Nano, fields[3]); err != nil {
			return Head{}, fmt.Errorf("the head's time cannot be read: %w", err)
		}
		h.Key = fields[4]
		if h.Signature, err = base64.RawURLEncoding.DecodeString(fields[5]); err != nil || len(h.Signature) != ed25519.SignatureSize {
			return Head{}, fmt.Errorf("the head's signature is not %d bytes in base64: %.100q", ed25519.SignatureSize, fields[5])
		}
	}
	if h.String() != s {
		return Head{}, errors.New("the head is not in the form it is written in")
	}
	return h, nil
}

// message is what is signed: the unsigned text and the time, under a line that
// no other protocol signs.
func (h Head) message() []byte {
	h.Signature = nil
	return []byte("tokenward audit head v1\n" + h.String() + " " + timeText(h.Time))
}

func (h *Head) sign(key ed25519.PrivateKey, now time.Time) {
	h.Time = now.UTC().Round(0)
	h.Key = signingKeyName(key.Public().(ed25519.PublicKey))
	h.Signature = ed25519.Sign(key, h.message())
}

func signingKeyName(pub ed25519.PublicKey) string {
	sum := sha256.Sum256(pub)
	return hex.EncodeToString(sum[:8])
}

// headValue is a signed head as its line carries it. What it covers is the
// line before, so neither the line nor the chain value is repeated.
type headValue struct {
	Time      Moment `json:"time"`
	Key       string `json:"key"`
	Signature string `json:"signature"`
}

func (h Head) value() ([]byte, error) {
	return marshal(headValue{At(h.Time), h.Key, base64.RawURLEncoding.EncodeToString(h.Signature)})
}

// parseHeadLine returns the head that l carries, given what stands before it.
func parseHeadLine(l line, log string, prev chainValue) (Head, error) {
	var v headValue
	d := json.NewDecoder(bytes.NewReader(l.value))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return Head{}, fmt.Errorf("read head: %w", err)
	}
	sig, err := base64.RawURLEncoding.DecodeString(v.Signature)
	if err != nil || len(sig) != ed25519.SignatureSize {
		return Head{}, errors.New("read head: the signature is not in base64")
	}
	return Head{Log: log, Line: l.n - 1, Chain: prev, Time: v.Time.Time, Key: v.Key, Signature: sig}, nil
}
