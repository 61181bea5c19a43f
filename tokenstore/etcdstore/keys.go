package etcdstore

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"tokenward/tokenstore"
)

// schemaVersion is the layout that this file describes.
const schemaVersion = 1

// keyspace is the prefix of all keys. Below it lie
//
//	schema                  the layout's version
//	store                   the store's ID
//	data/…                  what every node follows:
//	  head                  put by every change of what is below data/, each time with another value
//	  token/ID              the sealed record
//	  retired/DIGEST        the token that gave the digest up, or was swept
//	  trait/…               peppers, prefixes and kinds of foreign secrets, by name
//	  kept/KEY/UNTIL        a sealed answer that is kept until then
//	  call                  nothing; put to have every node tell where it is
//	digest/DIGEST           the token that has or ever had it
//	ids                     the lowest id not yet given to a node
//	outbox/NODE/…           the events of one change
//	done/NODE               the last event that is in the node's audit log
//	lane/NODE/owner         which process of the node writes
//	lane/NODE/N             which change was made last through the lane
//	node/NODE               what the node says of itself, under a lease
//	stopped/NODE            likewise, of a node that ended and may start from its copy
//	usage/ID, usage-name/N  how tokens are used, by any node
//	count/KEY               what is used of limits, by all nodes
//	notice/ID               which warnings before its end a token has had
//	seq                     the last number of an event that the store had as a file
//	migration               whose store is being copied here, until that is done
//
// Numbers are written so that their order is the order of the keys.
type keyspace string

func (k keyspace) schema() string                     { return string(k) + "schema" }
func (k keyspace) storeID() string                    { return string(k) + "store" }
func (k keyspace) data() string                       { return string(k) + "data/" }
func (k keyspace) head() string                       { return k.data() + "head" }
func (k keyspace) call() string                       { return k.data() + "call" }
func (k keyspace) tokens() string                     { return k.data() + "token/" }
func (k keyspace) token(id tokenstore.ID) string      { return k.tokens() + hexID(id) }
func (k keyspace) allRetired() string                 { return k.data() + "retired/" }
func (k keyspace) retired(d tokenstore.Digest) string { return k.allRetired() + text(d) }
func (k keyspace) traits() string                     { return k.data() + "trait/" }
func (k keyspace) pepper(id tokenstore.PepperID) string {
	return k.traits() + "pepper/" + hex.EncodeToString(id[:])
}
func (k keyspace) prefix(p string) string { return k.traits() + "prefix/" + p }
func (k keyspace) foreign(f tokenstore.Foreign) string {
	return k.traits() + "foreign/" + strconv.Itoa(int(f.Scheme)) + "/" + hex.EncodeToString(f.Key[:])
}
func (k keyspace) allKept() string                    { return k.data() + "kept/" }
func (k keyspace) keptFor(d tokenstore.Digest) string { return k.allKept() + text(d) + "/" }
func (k keyspace) kept(a keptAnswer) string {
	return k.keptFor(a.key) + fmt.Sprintf("%016x", a.until)
}
func (k keyspace) digests() string                   { return string(k) + "digest/" }
func (k keyspace) digest(d tokenstore.Digest) string { return k.digests() + text(d) }
func (k keyspace) ids() string                       { return string(k) + "ids" }
func (k keyspace) outboxes() string                  { return string(k) + "outbox/" }
func (k keyspace) outbox(node string) string         { return k.outboxes() + node + "/" }
func (k keyspace) done(node string) string           { return string(k) + "done/" + node }
func (k keyspace) lanes(node string) string          { return string(k) + "lane/" + node + "/" }
func (k keyspace) lane(node string, n int) string    { return k.lanes(node) + strconv.Itoa(n) }
func (k keyspace) owner(node string) string          { return k.lanes(node) + "owner" }
func (k keyspace) nodes() string                     { return string(k) + "node/" }
func (k keyspace) node(name string) string           { return k.nodes() + name }
func (k keyspace) allStopped() string                { return string(k) + "stopped/" }
func (k keyspace) stopped(name string) string        { return k.allStopped() + name }
func (k keyspace) allUsage() string                  { return string(k) + "usage/" }
func (k keyspace) usage(id tokenstore.ID) string     { return k.allUsage() + hexID(id) }
func (k keyspace) usageNames() string                { return string(k) + "usage-name/" }
func (k keyspace) usageName(n uint64) string         { return k.usageNames() + fmt.Sprintf("%08x", n) }
func (k keyspace) counts() string                    { return string(k) + "count/" }
func (k keyspace) count(key []byte) string           { return k.counts() + hex.EncodeToString(key) }
func (k keyspace) countsOf(id tokenstore.ID) string  { return k.counts() + "00" + hexID(id) }
func (k keyspace) notice(id tokenstore.ID) string    { return string(k) + "notice/" + hexID(id) }

func (k keyspace) seq() string       { return string(k) + "seq" }
func (k keyspace) notices() string   { return string(k) + "notice/" }
func (k keyspace) migration() string { return string(k) + "migration" }

func hexID(id tokenstore.ID) string { return fmt.Sprintf("%016x", uint64(id)) }

func text(d tokenstore.Digest) string { return base64.RawURLEncoding.EncodeToString(d[:]) }

var errKey = errors.New("etcd holds a key under the prefix that is none of tokenward's: remove it, or use another prefix")

func parseID(s string) (tokenstore.ID, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	if id := tokenstore.ID(n); err == nil && n > 0 && hexID(id) == s {
		return id, nil
	}
	return 0, errKey
}

func parseDigest(s string) (d tokenstore.Digest, err error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(d) || text(tokenstore.Digest(b)) != s { // it passes over line breaks
		return d, errKey
	}
	return tokenstore.Digest(b), nil
}

func parseKept(s string) (a keptAnswer, err error) {
	key, until, ok := strings.Cut(s, "/")
	n, err := strconv.ParseUint(until, 16, 64)
	if !ok || err != nil || fmt.Sprintf("%016x", n) != until {
		return a, errKey
	}
	a.until = n
	a.key, err = parseDigest(key)
	return a, err
}

// addTrait adds what a key below traits says.
func (k keyspace) addTrait(t *tokenstore.Traits, key string) error {
	kind, rest, _ := strings.Cut(strings.TrimPrefix(key, k.traits()), "/")
	switch kind {
	case "pepper":
		b, err := hex.DecodeString(rest)
		if err != nil || len(b) != len(tokenstore.PepperID{}) || k.pepper(tokenstore.PepperID(b)) != key {
			return errKey
		}
		t.Peppers = append(t.Peppers, tokenstore.PepperID(b))
		return nil
	case "prefix":
		if !tokenstore.ValidPrefix(rest) {
			return errKey
		}
		t.Prefixes = append(t.Prefixes, rest)
		return nil
	case "foreign":
		scheme, with, _ := strings.Cut(rest, "/")
		n, err := strconv.ParseUint(scheme, 10, 8)
		b, kerr := hex.DecodeString(with)
		if err != nil || kerr != nil || len(b) != len(tokenstore.PepperID{}) {
			return errKey
		}
		f := tokenstore.Foreign{Scheme: tokenstore.Scheme(n), Key: tokenstore.PepperID(b)}
		if !f.Valid() || k.foreign(f) != key {
			return errKey
		}
		t.Foreign = append(t.Foreign, f)
		return nil
	}
	return errKey
}
