package importer

import (
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

// readDocument reads one JSON document whole, into v.
func readDocument(r io.Reader, v any) error {
	dec := json.NewDecoder(io.LimitReader(r, maxDocumentBytes))
	if err := dec.Decode(v); err != nil {
		// Of a syntax error only the place is told: the text around it may be a secret.
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			return fmt.Errorf("the file is no JSON from byte %d on", syntax.Offset)
		}
		if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return fmt.Errorf("the file is not of that format: at byte %d, %s is not what it should be", kind.Offset, kind.Field)
		}
		return fmt.Errorf("the file cannot be read as JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the file has more than one JSON document: for one on each line use the format jsonl")
	}
	return nil
}

// document yields the entries of a file that is one JSON document.
func document[T any](r io.Reader, entries func(T, func(Item, error) bool)) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		var v T
		if err := readDocument(r, &v); err != nil {
			yield(Item{}, err)
			return
		}
		n := 0
		entries(v, func(item Item, err error) bool {
			n++
			item.Line = n
			if err != nil {
				err = &LineError{n, err.Error()}
			}
			return yield(item, err)
		})
	}
}

// kongFile is what `GET /key-auths` answers, or a declarative configuration in
// JSON: credentials at the top or below their consumers.
type kongFile struct {
	Data        []kongKey      `json:"data"`
	Credentials []kongKey      `json:"keyauth_credentials"`
	Consumers   []kongConsumer `json:"consumers"`
	Next        *string        `json:"next"`
}

type kongConsumer struct {
	Username    string    `json:"username"`
	CustomID    string    `json:"custom_id"`
	Credentials []kongKey `json:"keyauth_credentials"`
}

type kongKey struct {
	ID        string          `json:"id"`
	Key       string          `json:"key"`
	TTL       int64           `json:"ttl"` // seconds from CreatedAt
	CreatedAt int64           `json:"created_at"`
	Consumer  json.RawMessage `json:"consumer"` // {"id":…}, or a name
}

func readKong(r io.Reader, o Options) iter.Seq2[Item, error] {
	return document(r, func(f kongFile, yield func(Item, error) bool) {
		if f.Next != nil && *f.Next != "" {
			yield(Item{}, errors.New("is the last of a page: the file has only one of several, get the others with its `next`, or use `deck gateway dump`"))
			return
		}
		for _, k := range slices.Concat(f.Data, f.Credentials) {
			if !yield(k.item("", o)) {
				return
			}
		}
		for _, c := range f.Consumers {
			for _, k := range c.Credentials {
				if !yield(k.item(firstOf(c.Username, c.CustomID), o)) {
					return
				}
			}
		}
	})
}

func (k *kongKey) item(consumer string, o Options) (Item, error) {
	if consumer == "" {
		var ref struct{ ID, Username string }
		if json.Unmarshal(k.Consumer, &ref) == nil {
			consumer = firstOf(ref.Username, ref.ID)
		} else if err := json.Unmarshal(k.Consumer, &consumer); err != nil {
			consumer = ""
		}
	}
	item := Item{Name: firstOf(consumer, k.ID, "imported from Kong")}
	if strings.HasPrefix(k.Key, "{vault://") || strings.HasPrefix(k.Key, "${{") {
		return item, errElsewhere
	}
	if k.TTL > 0 {
		if k.CreatedAt == 0 {
			return item, errors.New("has a ttl, and does not say when it was made")
		}
		item.Expiry = new(tokenstore.EndsAt(time.Unix(k.CreatedAt+k.TTL, 0).UTC()))
	}
	return item, item.key(k.Key, o.Digest)
}

// errElsewhere refuses a reference: taken for the key, it would let in everybody who
// has seen the configuration.
var errElsewhere = errors.New("names a secret that is kept elsewhere: put the key itself into the file")

func firstOf(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}

// tykSession is a session object, which belongs to one key.
type tykSession struct {
	Alias            string  `json:"alias"`
	Expires          int64   `json:"expires"` // seconds since 1970; 0 and -1: never
	Rate             float64 `json:"rate"`    // requests in Per seconds; 0 and -1: no limit
	Per              float64 `json:"per"`
	QuotaMax         int64   `json:"quota_max"` // requests; -1 and 0: no limit
	QuotaRenewalRate int64   `json:"quota_renewal_rate"`
	IsInactive       bool    `json:"is_inactive"`
	OrgID            string  `json:"org_id"`
}

// tykEntry is a key with its session.
type tykEntry struct {
	Key     string      `json:"key"`
	KeyID   string      `json:"key_id"`
	KeyHash string      `json:"key_hash"`
	Data    *tykSession `json:"data"`
	Session *tykSession `json:"session"`
}

// readTyk reads a list of keys with their sessions, one below "keys", or an object
// of sessions by key, as the store of Tyk has them.
func readTyk(r io.Reader, o Options) iter.Seq2[Item, error] {
	return document(r, func(raw json.RawMessage, yield func(Item, error) bool) {
		entries, err := tykEntries(raw)
		if err != nil {
			yield(Item{}, err)
			return
		}
		for i := range entries {
			if !yield(entries[i].item(o)) {
				return
			}
		}
	})
}

func tykEntries(raw json.RawMessage) ([]tykEntry, error) {
	var list []tykEntry
	if json.Unmarshal(raw, &list) == nil {
		return list, nil
	}
	var below struct {
		Keys []tykEntry `json:"keys"`
	}
	if json.Unmarshal(raw, &below) == nil && below.Keys != nil {
		return below.Keys, nil
	}
	var sessions map[string]*tykSession
	if err := json.Unmarshal(raw, &sessions); err != nil {
		return nil, errors.New("is no export of keys: give a list of key and session, or an object of sessions by key")
	}
	for _, key := range slices.Sorted(maps.Keys(sessions)) {
		list = append(list, tykEntry{Key: key, Data: sessions[key]})
	}
	return list, nil
}

func (e *tykEntry) item(o Options) (Item, error) {
	text := strings.TrimPrefix(firstOf(e.Key, e.KeyID, e.KeyHash), "apikey-")
	session := e.Data
	if session == nil {
		session = e.Session
	}
	if session == nil {
		return Item{}, errors.New("has no session")
	}
	item := Item{Name: firstOf(session.Alias, "imported from Tyk"), Disabled: session.IsInactive}
	item.Expiry = new(tokenstore.Never())
	if session.Expires > 0 {
		item.Expiry = new(tokenstore.EndsAt(time.Unix(session.Expires, 0).UTC()))
	}
	if o.Digest == "" && (looksHashed(text) || e.Key == "" && e.KeyID == "") {
		return item, errors.New("looks like a murmur hash, which is no cryptographic one: other texts than the secret would be let in. Import the secrets themselves (with --digest none if these are), or hashes of sha256")
	}
	var err error
	if item.Limits, err = session.limits(); err != nil {
		return item, err
	}
	return item, item.key(text, o.Digest)
}

// limits are those of the session; nil for none. A quota whose period is none of
// ours is refused rather than guessed.
func (s *tykSession) limits() (*tokenstore.Limits, error) {
	l := &tokenstore.Limits{}
	if s.Rate > 0 && s.Per > 0 {
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

// apisixFile is what the Admin API answers to `GET /consumers` or to
// `GET /consumers/NAME/credentials`, or a standalone configuration in JSON.
type apisixFile struct {
	List []struct {
		Key   string         `json:"key"`
		Value apisixConsumer `json:"value"`
	} `json:"list"`
	Consumers []apisixConsumer `json:"consumers"`
}

type apisixConsumer struct {
	ID       string `json:"id"`
	Username string `json:"username"`
	Desc     string `json:"desc"`
	Plugins  struct {
		KeyAuth *struct {
			Key string `json:"key"`
		} `json:"key-auth"`
	} `json:"plugins"`
	Credentials []apisixConsumer `json:"credentials"`
}

func readAPISIX(r io.Reader, o Options) iter.Seq2[Item, error] {
	return document(r, func(f apisixFile, yield func(Item, error) bool) {
		consumers := f.Consumers
		for _, one := range f.List {
			c := one.Value
			c.ID = firstOf(c.ID, one.Key[strings.LastIndexByte(one.Key, '/')+1:])
			consumers = append(consumers, c)
		}
		for _, c := range consumers {
			for _, k := range append([]apisixConsumer{c}, c.Credentials...) {
				if k.Plugins.KeyAuth == nil {
					continue // it is let in by something else
				}
				if !yield(k.item(firstOf(c.Username, k.Username, c.ID), o)) {
					return
				}
			}
		}
	})
}

func (c *apisixConsumer) item(name string, o Options) (Item, error) {
	item := Item{Name: firstOf(name, c.Desc, "imported from APISIX")}
	key := c.Plugins.KeyAuth.Key
	// APISIX folds the case of some of these.
	if folded := strings.ToLower(key); strings.HasPrefix(folded, "$secret://") || strings.HasPrefix(folded, "$env://") {
		return item, errElsewhere
	}
	return item, item.key(key, o.Digest)
}
