package importer

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"tokenward/tokenstore"
)

// tykSession is a session object, which belongs to one key.
type tykSession struct {
	Alias            string  `json:"alias"`
	Expires          int64   `json:"expires"` // seconds since 1970; 0 and -1: never
	Rate             float64 `json:"rate"`    // requests in Per seconds; 0 and -1: no limit
	Per              float64 `json:"per"`
	QuotaMax         int64   `json:"quota_max"` // requests; -1 and 0: no limit
	QuotaRenewalRate int64   `json:"quota_renewal_rate"`
	IsInactive       bool    `json:"is_inactive"`

	// What lets in beside the key, or in its place.
	Certificate  string   `json:"certificate"`
	Certificates []string `json:"mtls_static_certificate_bindings"`
	HMAC         bool     `json:"hmac_enabled"`
	Signatures   bool     `json:"enable_http_signature_validation"`
	Basic        struct {
		Password string `json:"password"`
	} `json:"basic_auth_data"`
	JWT struct {
		Secret string `json:"secret"`
	} `json:"jwt_data"`
}

// tykEntry is a key with its session, which is an object or the text of one.
type tykEntry struct {
	Key     string          `json:"key"`
	KeyID   string          `json:"key_id"`
	KeyHash string          `json:"key_hash"`
	Data    json.RawMessage `json:"data"`
	Session json.RawMessage `json:"session"`
	Value   json.RawMessage `json:"value"` // in a dump of Redis
}

// readTyk reads keys with their sessions: lists of them, also below "keys", single
// ones, and objects of sessions by key, as the store of Tyk has them.
func readTyk(r io.Reader, o Options) iter.Seq2[Item, error] {
	return exported(r, func(docs []json.RawMessage, yield func(Item, error) bool) error {
		for _, doc := range docs {
			for _, raw := range tykEntries(doc) {
				if !yield(tykItem(raw, o)) {
					return nil
				}
			}
		}
		return nil
	})
}

// tykEntries finds the entries in a document.
func tykEntries(doc json.RawMessage) []json.RawMessage {
	var fields map[string]json.RawMessage
	if json.Unmarshal(doc, &fields) != nil {
		return []json.RawMessage{doc}
	}
	var below struct {
		Keys list `json:"keys"`
	}
	if json.Unmarshal(doc, &below) == nil && below.Keys != nil {
		return below.Keys
	}
	if json.Unmarshal(fields["data"], &below) == nil && below.Keys != nil {
		return below.Keys
	}
	for _, name := range []string{"key", "key_id", "key_hash", "access_rights", "expires", "org_id", "quota_max"} {
		if value, ok := fields[name]; ok && !isObject(value) {
			return []json.RawMessage{doc}
		}
	}
	var entries []json.RawMessage
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		raw, err := json.Marshal(map[string]any{"key": key, "session": fields[key]})
		if err == nil {
			entries = append(entries, raw)
		}
	}
	if entries == nil {
		return []json.RawMessage{doc}
	}
	return entries
}

func tykItem(raw json.RawMessage, o Options) (item Item, err error) {
	var e tykEntry
	if !isObject(raw) {
		return item, errors.New("is a key without its session: get each with `GET /tyk/keys/KEY`, and give an object of sessions by key")
	}
	if err := decode(raw, &e); err != nil {
		return item, err
	}
	text := strings.TrimPrefix(firstOf(e.Key, e.KeyID, e.KeyHash), "apikey-")
	if text == "" {
		return item, errors.New("has no key beside its session: give an object of sessions by key")
	}
	session, err := e.session(raw)
	if err != nil {
		return item, err
	}
	item = Item{Name: firstOf(session.Alias, "imported from Tyk"), Disabled: session.IsInactive}
	item.Expiry = new(tokenstore.Never())
	if session.Expires > 0 {
		item.Expiry = new(tokenstore.EndsAt(time.Unix(session.Expires, 0).UTC()))
	}
	if err := session.keyAlone(); err != nil {
		return item, err
	}
	if err := e.checkHash(text, o); err != nil {
		return item, err
	}
	if item.Limits, err = session.limits(); err != nil {
		return item, err
	}
	return item, item.key(text, o.Digest)
}

// session reads the session of the entry, which stands in raw.
func (e *tykEntry) session(raw json.RawMessage) (s tykSession, err error) {
	var inner struct {
		Rights json.RawMessage `json:"access_rights"`
	}
	var found json.RawMessage
	for _, one := range []json.RawMessage{e.Data, e.Session, e.Value} {
		var text string
		if json.Unmarshal(one, &text) == nil && text != "" {
			one = json.RawMessage(text)
		}
		if found == nil && isObject(one) {
			found = one
		}
	}
	if found == nil && json.Unmarshal(raw, &inner) == nil && inner.Rights != nil {
		found = raw
	}
	if found == nil {
		return s, errors.New("has no session")
	}
	return s, decode(found, &s)
}

// keyAlone refuses keys that let nobody in by themselves: names of users, of certificates and
// of keys for signatures, which are no secrets.
func (s *tykSession) keyAlone() error {
	switch {
	case s.Basic.Password != "":
		return errors.New("is a user with a password, not a key")
	case s.HMAC || s.Signatures:
		return errors.New("is a key for signatures: its name is not a secret")
	case s.JWT.Secret != "":
		return errors.New("is a key for JWTs: its name is not a secret")
	case s.Certificate != "" || len(s.Certificates) > 0:
		return errors.New("is bound to a client certificate, which a token cannot be")
	}
	return nil
}

// checkHash refuses hashes that nobody said to be there.
func (e *tykEntry) checkHash(text string, o Options) error {
	hashed := e.Key == "" && e.KeyID == ""
	switch n, isHex := hexBytes(text); {
	case schemeOf(o.Digest) != tokenstore.SchemeNative:
	case isHex && n == 32 && (hashed || o.Digest == ""):
		return errors.New("looks like a SHA-256 of the key: say --digest sha256, or --digest none if it is the key itself")
	case hashed || o.Digest == "" && isHex && (n == 4 || n == 8 || n == 16):
		return errors.New("looks like a murmur hash, which is not a cryptographic one: other texts than the secret would be let in. Import the secrets themselves (with --digest none if these are), or hashes of sha256")
	}
	return nil
}

// hexBytes is how many bytes a text is in hexadecimal.
func hexBytes(text string) (n int, ok bool) {
	b, err := hex.DecodeString(text)
	return len(b), err == nil
}

// maxTykRate is a rate that nobody means.
const maxTykRate = 1e12

// limits are those of the session; nil for none. A quota whose period is none of
// ours is refused rather than guessed.
func (s *tykSession) limits() (*tokenstore.Limits, error) {
	l := &tokenstore.Limits{}
	if s.Rate > 0 && s.Per > 0 {
		if s.Rate > maxTykRate {
			return nil, errors.New("has a rate that is none")
		}
		l.Rate = s.Rate / s.Per
		l.Burst = uint64(max(1, s.Rate))
	}
	if s.QuotaMax > 0 {
		per, ok := map[int64]tokenstore.Window{
			60: tokenstore.PerMinute, 3600: tokenstore.PerHour, 86400: tokenstore.PerDay,
			28 * 86400: tokenstore.PerMonth, 30 * 86400: tokenstore.PerMonth, 31 * 86400: tokenstore.PerMonth,
		}[s.QuotaRenewalRate]
		if !ok {
			return nil, fmt.Errorf("has a quota that is renewed every %d seconds: quotas are by minute, hour, day or month", s.QuotaRenewalRate)
		}
		l.Quotas = []tokenstore.Quota{{Count: uint64(s.QuotaMax), Per: per}} //nolint:gosec // more than 0
	}
	if l.IsZero() {
		return nil, nil
	}
	return l, nil
}
