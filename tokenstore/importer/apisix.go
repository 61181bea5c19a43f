package importer

import (
	"encoding/json"
	"errors"
	"io"
	"iter"
	"strings"
)

// apisixDocument is what the Admin API answers for consumers, a consumer or its
// credentials, a standalone configuration, what `adc dump` writes, or what etcd holds.
type apisixDocument struct {
	List      list            `json:"list"` // of APISIX 3
	Node      *apisixNode     `json:"node"` // of APISIX 2
	Consumers list            `json:"consumers"`
	KVs       []apisixKV      `json:"kvs"` // `etcdctl get --prefix -w json`
	Key       string          `json:"key"`
	Value     json.RawMessage `json:"value"`
	Username  string          `json:"username"` // of a consumer by itself
	Plugins   json.RawMessage `json:"plugins"`
}

type apisixNode struct {
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value"`
	Nodes list            `json:"nodes"`
}

// apisixKV is in base64.
type apisixKV struct {
	Key   []byte `json:"key"`
	Value []byte `json:"value"`
}

type apisixConsumer struct {
	ID          string          `json:"id"`
	Username    string          `json:"username"`
	Name        string          `json:"name"` // of a credential, as adc writes it
	Desc        string          `json:"desc"`
	Plugins     json.RawMessage `json:"plugins"`
	Credentials list            `json:"credentials"`
	Type        string          `json:"type"` // of a credential, as adc writes it, and what belongs to it
	Config      json.RawMessage `json:"config"`
}

type apisixKeyAuth struct {
	Key     string `json:"key"`
	Disable bool   `json:"disable"` // APISIX 2
	Meta    struct {
		Disable bool `json:"disable"`
	} `json:"_meta"`
}

func readAPISIX(r io.Reader, o Options) iter.Seq2[Item, error] {
	return exported(r, func(docs []json.RawMessage, yield func(Item, error) bool) error {
		for i, doc := range docs {
			a := apisixReader{o: o, yield: yield}
			wanted, known := a.document(doc)
			if !wanted {
				return nil
			}
			if !known && (len(docs) == 1 || !isKeyValue(docs[i])) && !yield(Item{}, errors.New("is nothing of APISIX's that holds keys: give the answer of `GET /apisix/admin/consumers`, or a standalone configuration")) {
				return nil
			}
		}
		return nil
	})
}

// isKeyValue reports whether a document is one key of etcd, of which there are others
// than consumers.
func isKeyValue(doc json.RawMessage) bool {
	var one apisixDocument
	return decode(doc, &one) == nil && strings.HasPrefix(one.Key, "/")
}

// apisixReader yields what is found.
type apisixReader struct {
	o     Options
	yield func(Item, error) bool
}

// document reads a document, and reports whether more is wanted and whether it held
// anything known.
func (a *apisixReader) document(doc json.RawMessage) (wanted, known bool) {
	var d apisixDocument
	if err := decode(doc, &d); err != nil {
		return a.yield(Item{}, err), true
	}
	known = d.List != nil || d.Consumers != nil || d.Node != nil || d.KVs != nil
	if d.Node != nil {
		d.List = append(d.List, d.Node.Nodes...)
		d.Key, d.Value = firstOf(d.Key, d.Node.Key), d.Node.Value
	}
	for _, raw := range d.List {
		var one apisixNode
		if err := decode(raw, &one); err != nil {
			if !a.yield(Item{}, err) {
				return false, true
			}
			continue
		}
		if wanted, _ := a.keyed(one.Key, one.Value); !wanted {
			return false, true
		}
	}
	for _, kv := range d.KVs {
		if wanted, _ := a.keyed(string(kv.Key), kv.Value); !wanted {
			return false, true
		}
	}
	for _, raw := range d.Consumers {
		if !a.consumer(raw, "") {
			return false, true
		}
	}
	switch {
	case isObject(d.Value):
		wanted, consumer := a.keyed(d.Key, d.Value)
		return wanted, known || consumer
	case d.Plugins != nil && d.Username != "":
		return a.consumer(doc, ""), true
	}
	return true, known
}

// keyed reads what stands under a key of etcd, if it is a consumer or a credential of
// one: routes name the plugin too.
func (a *apisixReader) keyed(key string, value json.RawMessage) (wanted, consumer bool) {
	_, path, consumer := strings.Cut(key, "/consumers/")
	if !consumer || !isObject(value) {
		return true, consumer
	}
	return a.consumer(value, path), true
}

// consumer yields the keys of a consumer, or of a credential, which is found at a path
// below all consumers.
func (a *apisixReader) consumer(raw json.RawMessage, path string) bool {
	var c apisixConsumer
	if err := decode(raw, &c); err != nil {
		return a.yield(Item{}, err)
	}
	name := firstOf(c.Username, strings.Replace(firstOf(path, c.ID), "/credentials/", "/", 1), c.Desc)
	var plugins struct {
		KeyAuth json.RawMessage `json:"key-auth"`
	}
	if isObject(c.Plugins) {
		if err := decode(c.Plugins, &plugins); err != nil {
			return a.yield(Item{}, err)
		}
	}
	if c.Type == "key-auth" {
		plugins.KeyAuth = c.Config
	}
	if plugins.KeyAuth != nil && !a.yield(a.item(plugins.KeyAuth, name)) { // else it is let in by something else
		return false
	}
	for _, raw := range c.Credentials {
		var one apisixConsumer
		_ = decode(raw, &one) // what is wrong is found again
		if !a.consumer(raw, name+"/"+firstOf(one.Name, one.ID)) {
			return false
		}
	}
	return true
}

func (a *apisixReader) item(keyAuth json.RawMessage, name string) (Item, error) {
	item := Item{Name: firstOf(strings.Trim(name, "/"), "imported from APISIX")}
	var k apisixKeyAuth
	if err := decode(keyAuth, &k); err != nil {
		return item, err
	}
	item.Disabled = k.Disable || k.Meta.Disable
	// APISIX folds the case of some of these.
	if folded := strings.ToLower(k.Key); strings.HasPrefix(folded, "$secret://") || strings.HasPrefix(folded, "$env://") {
		return item, errElsewhere
	}
	return item, item.key(k.Key, a.o.Digest)
}
