package admin

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"tokenward/tokenstore"
)

// AnswerKept is how long the answer to a request with an idempotency key can
// be asked for again.
const AnswerKept = 10 * time.Minute

// Once makes a verb that yields a secret safe to repeat: the same caller, key
// and request get the same answer for AnswerKept.
//
// The answer holds a secret, so the store keeps it sealed under a key that the
// store does not have: HKDF-SHA-256 (RFC 5869) of the caller's own secret with
// the idempotency key as salt. The name it is kept under comes the same way.
// The nil *Once keeps nothing.
type Once struct {
	Key     string            // as the client gave it
	Request [sha256.Size]byte // a digest of all that the request asks for

	// Render makes the answer that is kept. It runs inside the transaction, and
	// may run more than once.
	Render func(Made) ([]byte, error)
}

// RequestDigest returns the digest of a request for [Once].
func RequestDigest(method, target string, body []byte) [sha256.Size]byte {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(method), []byte(target), body} {
		h.Write(binary.AppendUvarint(nil, uint64(len(part))))
		h.Write(part)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// replay returns the answer that was kept for the same request, if there is
// one. It runs after the right to make the request was judged.
func (o *Once) replay(tx tokenstore.Tx, c Caller, now time.Time) (Made, error) {
	if o == nil {
		return Made{}, nil
	}
	seal, err := o.seal(c)
	if err != nil {
		return Made{}, err
	}
	sealed, err := tx.Answer(seal.name)
	if err != nil || sealed == nil {
		return Made{}, err
	}
	until, request, answer, err := seal.open(sealed)
	switch {
	case err != nil:
		return Made{}, &Error{Kind: KindInternal, Cause: err}
	case !now.Before(until) || until.Sub(now) > 2*AnswerKept: // the clock was set back; nodes' differ by less
		return Made{}, nil
	case subtle.ConstantTimeCompare(request[:], o.Request[:]) != 1:
		return Made{}, refuse(KindKeyReused, "This Idempotency-Key came with another request before.")
	}
	return Made{Answer: answer, Replayed: true}, nil
}

// replayOwn is replay for a caller that was refused. Who replaced its own secret
// manages no more, but if the answer was lost on the way it has no other secret:
// it gets that answer again, and else refused.
func (o *Once) replayOwn(tx tokenstore.Tx, c Caller, m *manager, target Target, now time.Time, refused error) (Made, error) {
	before := *m
	before.grace = false
	if !m.grace || target.ID != m.token.ID || before.mayWrite() != nil {
		return Made{}, refused
	}
	made, err := o.replay(tx, c, now)
	if err == nil && !made.Replayed {
		err = refused
	}
	return made, err
}

// keep renders the answer and keeps it, in the transaction of the change.
func (o *Once) keep(tx tokenstore.Tx, c Caller, made *Made, now time.Time) error {
	if o == nil {
		return nil
	}
	answer, err := o.Render(*made)
	if err != nil {
		return err
	}
	seal, err := o.seal(c)
	if err != nil {
		return err
	}
	made.Answer = answer
	until := now.Add(AnswerKept)
	return tx.KeepAnswer(seal.name, seal.close(until, o.Request, answer), now, until)
}

// answerSeal holds the keys that follow from one caller's secret and one
// idempotency key.
type answerSeal struct {
	name tokenstore.Digest
	aead cipher.AEAD
}

func (o *Once) seal(c Caller) (*answerSeal, error) {
	if c.Presented.IsZero() || o.Key == "" {
		return nil, &Error{Kind: KindInternal, Cause: errors.New("an answer can only be sealed with a presented secret and a key")}
	}
	derive := func(label string) ([]byte, error) {
		return hkdf.Key(sha256.New, []byte(c.Presented.Reveal()), []byte(o.Key), label, sha256.Size)
	}
	name, err := derive("tokenward answer name")
	if err != nil {
		return nil, err
	}
	key, err := derive("tokenward answer seal")
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &answerSeal{tokenstore.Digest(name), aead}, nil
}

// close seals until (milliseconds), the request's digest and the answer.
func (s *answerSeal) close(until time.Time, request [sha256.Size]byte, answer []byte) []byte {
	plain := make([]byte, 0, 8+len(request)+len(answer))
	plain = binary.BigEndian.AppendUint64(plain, uint64(until.UnixMilli())) //nolint:gosec // the clock is past 1970
	plain = append(plain, request[:]...)
	plain = append(plain, answer...)
	return s.aead.Seal(nil, nil, plain, s.name[:]) //nolint:gosec // this AEAD makes its nonce itself, at random
}

func (s *answerSeal) open(sealed []byte) (until time.Time, request [sha256.Size]byte, answer []byte, err error) {
	plain, err := s.aead.Open(nil, nil, sealed, s.name[:])
	if err != nil || len(plain) < 8+len(request) {
		return time.Time{}, request, nil, fmt.Errorf("open kept answer: %w", errors.Join(err, errors.New("it is damaged")))
	}
	until = time.UnixMilli(int64(binary.BigEndian.Uint64(plain))) //nolint:gosec // written by close
	return until, [sha256.Size]byte(plain[8:]), plain[8+len(request):], nil
}
