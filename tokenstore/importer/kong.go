package importer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"tokenward/tokenstore"
)

// kongDocument is a page of what the Admin API answers, or a declarative configuration,
// as decK, `kong config db_export` and DB-less nodes have it: credentials at the top or
// below their consumers.
type kongDocument struct {
	Version     json.RawMessage `json:"_format_version"`
	Data        list            `json:"data"`
	Next        *string         `json:"next"`
	Credentials list            `json:"keyauth_credentials"`
	Encrypted   list            `json:"keyauth_enc_credentials"` // in Kong's store, not here
	Consumers   list            `json:"consumers"`
	Key         json.RawMessage `json:"key"`    // of the only credential
	Config      *string         `json:"config"` // `GET /config` of a DB-less node
}

type kongConsumer struct {
	ID          string `json:"id"`
	Username    string `json:"username"`
	CustomID    string `json:"custom_id"`
	Credentials list   `json:"keyauth_credentials"`
	Encrypted   list   `json:"keyauth_enc_credentials"`
}

type kongKey struct {
	ID       string          `json:"id"`
	Key      string          `json:"key"`
	TTL      int64           `json:"ttl"`      // seconds from when it was exported; 0: it does not end
	Consumer json.RawMessage `json:"consumer"` // {"id":…}, an id or a name
	Username string          `json:"username"` // of a consumer in the place of a key
}

// maxKongTTL is the longest that Kong takes, a little more than three years.
const maxKongTTL = 100_000_000

func readKong(r io.Reader, o Options) iter.Seq2[Item, error] {
	return exported(r, func(docs []json.RawMessage, yield func(Item, error) bool) error {
		var parsed []kongDocument
		names := map[string]string{} // of consumers by id
		for i := 0; i < len(docs); i++ {
			var d kongDocument
			if err := decode(docs[i], &d); err != nil {
				return fmt.Errorf("document %d of the file %w", i+1, err)
			}
			if d.Config != nil {
				inner, err := parseDocuments([]byte(*d.Config))
				if err != nil {
					return fmt.Errorf("the configuration in the file: %w", err)
				}
				docs = slices.Concat(docs[:i+1], inner, docs[i+1:])
			}
			if d.Next != nil && *d.Next != "" && i == len(docs)-1 {
				return errors.New("the file ends with a page that is not the last one: append the others, each of which `next` names, or use `deck gateway dump`")
			}
			for _, raw := range d.Consumers {
				var c kongConsumer
				if decode(raw, &c) == nil && c.ID != "" {
					names[c.ID] = firstOf(c.Username, c.CustomID)
				}
			}
			parsed = append(parsed, d)
		}
		for i := range parsed {
			if !parsed[i].items(docs[i], names, o, yield) {
				return nil
			}
		}
		return nil
	})
}

// items yields what is in the document, which stands in raw, and reports whether more is wanted.
func (d *kongDocument) items(raw json.RawMessage, names map[string]string, o Options, yield func(Item, error) bool) bool {
	switch {
	case d.Data != nil || d.Credentials != nil || d.Encrypted != nil || d.Consumers != nil || d.Version != nil || d.Config != nil:
	case d.Key != nil:
		return yield(kongItem(raw, "", names, o))
	default:
		return yield(Item{}, errors.New("is nothing of Kong's that holds keys: give the answer of `GET /key-auths`, or a declarative configuration"))
	}
	for _, k := range slices.Concat(d.Data, d.Credentials, d.Encrypted) {
		if !yield(kongItem(k, "", names, o)) {
			return false
		}
	}
	for _, raw := range d.Consumers {
		var c kongConsumer
		if err := decode(raw, &c); err != nil {
			if !yield(Item{}, err) {
				return false
			}
			continue
		}
		for _, k := range slices.Concat(c.Credentials, c.Encrypted) {
			if !yield(kongItem(k, firstOf(c.Username, c.CustomID), names, o)) {
				return false
			}
		}
	}
	return true
}

func kongItem(raw json.RawMessage, consumer string, names map[string]string, o Options) (item Item, err error) {
	var k kongKey
	if err := decode(raw, &k); err != nil {
		return item, err
	}
	if k.Key == "" && k.Username != "" {
		return item, errors.New("is a consumer without its keys: give the answer of `GET /key-auths`, or a declarative configuration")
	}
	item.Name = firstOf(consumer, k.consumer(names), k.ID, "imported from Kong")
	if strings.HasPrefix(k.Key, "{vault://") || strings.HasPrefix(k.Key, "${{") {
		return item, errElsewhere
	}
	switch {
	case k.TTL < 0 || k.TTL > maxKongTTL:
		return item, errors.New("has a ttl that is none of Kong's")
	case k.TTL > 0 && o.ExportedAt.IsZero():
		return item, errors.New("has a ttl, which counts from when it was exported: say when that was")
	case k.TTL > 0:
		item.Expiry = new(tokenstore.EndsAt(o.ExportedAt.UTC().Add(time.Duration(k.TTL) * time.Second)))
	}
	return item, item.key(k.Key, o.Digest)
}

// consumer is the name of the one whose key it is, as far as it is known.
func (k *kongKey) consumer(names map[string]string) string {
	var ref struct{ ID, Username string }
	if json.Unmarshal(k.Consumer, &ref) != nil && json.Unmarshal(k.Consumer, &ref.ID) != nil {
		return ""
	}
	return firstOf(ref.Username, names[ref.ID], ref.ID)
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
