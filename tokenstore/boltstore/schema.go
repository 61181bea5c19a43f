package boltstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// schemaVersion is the layout that this file describes. A new layout means a
// new version and a step in upgrades.
const schemaVersion = 1

// The buckets. Ids and other numbers in keys are big-endian, so that their
// order is the order of the keys.
var (
	// meta: what the store says about itself, see readMeta.
	bucketMeta = []byte("meta")
	// tokens: id → state byte, sealed record. Its sequence is the last id given
	// out. The state byte repeats the record's state for the lists' sake.
	bucketTokens = []byte("tokens")
	// digests: digest → id. Entries stay when their token is swept or gives the
	// secret up: what was once a secret is never accepted as a new one.
	bucketDigests = []byte("digests")
	// accounts: account, id → state byte.
	bucketAccounts = []byte("accounts")
	// owners: account, owner, id → state byte.
	bucketOwners = []byte("owners")
	// counts: how many tokens a list has, in chunks; see chunk.
	bucketCounts = []byte("counts")
	// children: creator, id → nothing, of tokens that are not revoked.
	bucketChildren = []byte("children")
	// ends: milliseconds since 1970, id → nothing: when each token ends or, for
	// a revoked one, ended. Tokens that never end are not in it.
	bucketEnds = []byte("ends")
	// outbox: number → event. Its sequence is the last number given out.
	bucketOutbox = []byte("outbox")
	// answers: key → milliseconds since 1970 until when it is kept, sealed answer.
	bucketAnswers = []byte("answers")
	// answer-ends: milliseconds since 1970, key → nothing.
	bucketAnswerEnds = []byte("answer-ends")

	buckets = [][]byte{
		bucketMeta, bucketTokens, bucketDigests, bucketAccounts, bucketOwners, bucketCounts,
		bucketChildren, bucketEnds, bucketOutbox, bucketAnswers, bucketAnswerEnds,
	}
)

// The keys of the meta bucket.
var (
	keyProduct  = []byte("product")
	keySchema   = []byte("schema")
	keyID       = []byte("id")
	keyPeppers  = []byte("pepper/") // and the pepper's id
	keyPrefixes = []byte("prefix/") // and the prefix
	keySchemes  = []byte("scheme/") // and the scheme of secrets from elsewhere, and the id of its key
	product     = []byte("tokenward")
	present     = []byte{1} // the value of a key that says all
)

// How full bolt leaves the pages that it divides. Where keys come in order the
// full page is not touched again; elsewhere some room avoids dividing it soon
// (measured: indexes are 72 % full so, and 58 % with bolt's half).
const (
	orderedFill   = 0.95
	scatteredFill = 0.75
)

func writeSchema(tx *bolt.Tx, peppers *tokenstore.Peppers, replicaOf string) error {
	for _, name := range buckets {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	m := tx.Bucket(bucketMeta)
	puts := [][2][]byte{
		{keyProduct, product},
		{keySchema, number(schemaVersion)},
		{keyID, []byte(rand.Text())},
	}
	for _, id := range peppers.IDs() {
		puts = append(puts, [2][]byte{pepperKey(id), present})
	}
	for _, p := range puts {
		if err := m.Put(p[0], p[1]); err != nil {
			return err
		}
	}
	if replicaOf != "" {
		return writePosition(tx, &tokenstore.Position{Store: replicaOf})
	}
	return nil
}

func pepperKey(id tokenstore.PepperID) []byte { return append(bytes.Clone(keyPeppers), id[:]...) }
func prefixKey(prefix string) []byte          { return append(bytes.Clone(keyPrefixes), prefix...) }

func schemeKey(f tokenstore.Foreign) []byte {
	return append(append(bytes.Clone(keySchemes), byte(f.Scheme)), f.Key[:]...)
}

// readMeta reads the meta bucket. It fails for files that are no token store.
func readMeta(tx *bolt.Tx, path string) (*meta, error) {
	b := tx.Bucket(bucketMeta)
	if b == nil || !bytes.Equal(b.Get(keyProduct), product) {
		return nil, fmt.Errorf("%s is the bolt file of another program: correct tokenstore.path, or make a store elsewhere with `tokenward init --config F`", path)
	}
	m := &meta{id: string(b.Get(keyID))}
	schema := b.Get(keySchema)
	if len(schema) != 8 {
		return nil, damaged(path, "it does not say its schema")
	}
	m.schema = binary.BigEndian.Uint64(schema)
	c := b.Cursor()
	for k, _ := c.Seek(keyPeppers); bytes.HasPrefix(k, keyPeppers); k, _ = c.Next() {
		id := k[len(keyPeppers):]
		if len(id) != len(tokenstore.PepperID{}) {
			return nil, damaged(path, "it names a pepper that is none")
		}
		m.traits.Peppers = append(m.traits.Peppers, tokenstore.PepperID(id))
	}
	for k, _ := c.Seek(keyPrefixes); bytes.HasPrefix(k, keyPrefixes); k, _ = c.Next() {
		prefix := string(k[len(keyPrefixes):])
		if !tokenstore.ValidPrefix(prefix) {
			return nil, damaged(path, "it names a secret prefix that is none")
		}
		m.traits.Prefixes = append(m.traits.Prefixes, prefix)
	}
	for k, _ := c.Seek(keySchemes); bytes.HasPrefix(k, keySchemes); k, _ = c.Next() {
		rest := k[len(keySchemes):]
		if len(rest) != 1+len(tokenstore.PepperID{}) || !tokenstore.Scheme(rest[0]).Valid() {
			return nil, damaged(path, "it names a scheme of secrets that is none")
		}
		m.traits.Foreign = append(m.traits.Foreign, tokenstore.Foreign{Scheme: tokenstore.Scheme(rest[0]), Key: tokenstore.PepperID(rest[1:])})
	}
	return m, nil
}

// formats is what the store knows of the form of its secrets.
func (m *meta) formats() *tokenstore.Formats { return m.traits.Formats() }

// RecordForeign notes that the store holds secrets from elsewhere of a kind. It
// comes before the first of them, and does nothing when it is known.
func (s *Store) RecordForeign(ctx context.Context, kind tokenstore.Foreign) error {
	if !kind.Valid() {
		return errors.New("secrets from elsewhere have the scheme sha256, or hmac-sha256 and a key")
	}
	return s.change(ctx, func(o *overlay) error {
		m, err := readMeta(o.batch.tx, o.batch.s.path)
		if err == nil {
			o.learn(m, &tokenstore.Traits{Foreign: []tokenstore.Foreign{kind}})
		}
		return err
	})
}

// Foreign returns the kinds of secrets from elsewhere that the store holds.
func (s *Store) Foreign() ([]tokenstore.Foreign, error) {
	t, err := s.Traits()
	return t.Foreign, err
}

// Traits returns what the store says of its secrets.
func (s *Store) Traits() (t tokenstore.Traits, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		m, err := readMeta(tx, s.path)
		if err == nil {
			t = m.traits
		}
		return err
	})
	return t, err
}

// damagedError is for a file that is a token store but not a sound one.
type damagedError struct{ path, detail string }

func (e *damagedError) Error() string {
	return fmt.Sprintf("%s is damaged (%s): keep the file, check the disk, and restore a backup", e.path, e.detail)
}

func damaged(path, detail string) error { return &damagedError{path, detail} }

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// key joins numbers into a key.
func key(numbers ...uint64) []byte {
	k := make([]byte, 0, 8*len(numbers))
	for _, n := range numbers {
		k = binary.BigEndian.AppendUint64(k, n)
	}
	return k
}

// lastNumber returns the number at the end of a key.
func lastNumber(k []byte) uint64 { return binary.BigEndian.Uint64(k[len(k)-8:]) }

func millis(t time.Time) uint64 { return uint64(max(0, t.UnixMilli())) } //nolint:gosec // not negative

// upgrade is one step from a layout to the next.
type upgrade struct {
	from uint64
	run  func(tx *bolt.Tx) error
}

// upgrades holds every step since the first layout, which is the present one.
var upgrades []upgrade

// Upgrade brings the store at path to the layout of this program, each step in
// one transaction, so that a crash leaves the layout before or after it. It
// returns the layouts it came from and arrived at, the same when there was
// nothing to do; both are 0 with an error before any step, which leaves the file as
// it was. The caller has made a copy of the file.
func Upgrade(path string, lockTimeout time.Duration) (from, to uint64, err error) {
	db, err := openBolt(path, lockTimeout, false)
	if err != nil {
		return 0, 0, fmt.Errorf("upgrade token store: %w", err)
	}
	from, to, err = runUpgrades(db, upgrades, schemaVersion)
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return from, to, fmt.Errorf("upgrade token store: %w", err)
	}
	return from, to, nil
}

func runUpgrades(db *bolt.DB, steps []upgrade, target uint64) (from, to uint64, err error) {
	err = db.View(func(tx *bolt.Tx) error {
		m, err := readMeta(tx, db.Path())
		if err == nil {
			from, to = m.schema, m.schema
		}
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	if from > target {
		return 0, 0, fmt.Errorf("%s has schema %d, newer than this program's %d: use the newer program", db.Path(), from, target)
	}
	var way []upgrade
	for at := from; at < target; at++ {
		step, ok := stepFrom(steps, at)
		if !ok {
			return 0, 0, fmt.Errorf("%s has schema %d, and this program knows no way from there to %d: upgrade with the release before this one first", db.Path(), from, target)
		}
		way = append(way, step)
	}
	for _, step := range way {
		err := db.Update(func(tx *bolt.Tx) error {
			if err := step.run(tx); err != nil {
				return err
			}
			return tx.Bucket(bucketMeta).Put(keySchema, number(to+1))
		})
		if err != nil {
			return from, to, fmt.Errorf("from schema %d to %d: %w: the file is as it was before this step", to, to+1, err)
		}
		to++
	}
	return from, to, nil
}

func stepFrom(steps []upgrade, from uint64) (upgrade, bool) {
	for _, s := range steps {
		if s.from == from {
			return s, true
		}
	}
	return upgrade{}, false
}
