package native

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"

	"tokenward/tokenstore"
)

// cursors makes and reads the cursors of lists: the id after which the list
// goes on, and a MAC over it and the list's selection. A cursor carries no
// right: each page is judged anew. The MAC keeps clients from making their own,
// so that what is inside can change.
type cursors struct{ key []byte }

const (
	cursorIDLen  = 8
	cursorMACLen = 16
)

var cursorText = base64.RawURLEncoding.Strict()

func newCursors(secret []byte) *cursors {
	key, err := hkdf.Key(sha256.New, secret, nil, "tokenward list cursor", sha256.Size)
	if err != nil {
		panic("native: derive cursor key: " + err.Error()) // only for absurd lengths
	}
	return &cursors{key}
}

// text returns the cursor that goes on after id in the list of selection.
func (c *cursors) text(id tokenstore.ID, selection string) string {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, cursorIDLen+cursorMACLen), uint64(id))
	return cursorText.EncodeToString(append(b, c.mac(b, selection)...))
}

// parse is the inverse of text. It reports false for what text did not make for
// this selection.
func (c *cursors) parse(text, selection string) (tokenstore.ID, bool) {
	if len(text) != cursorText.EncodedLen(cursorIDLen+cursorMACLen) {
		return 0, false
	}
	b, err := cursorText.DecodeString(text) // it passes over line breaks, and then gives less
	if err != nil || len(b) != cursorIDLen+cursorMACLen || !hmac.Equal(b[cursorIDLen:], c.mac(b[:cursorIDLen], selection)) {
		return 0, false
	}
	return tokenstore.ID(binary.BigEndian.Uint64(b)), true
}

func (c *cursors) mac(id []byte, selection string) []byte {
	h := hmac.New(sha256.New, c.key)
	h.Write(id)
	h.Write([]byte(selection))
	return h.Sum(nil)[:cursorMACLen]
}
