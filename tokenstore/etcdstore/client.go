// Package etcdstore keeps tokens in etcd, the truth for many nodes.
//
// # Writing
//
// A change reads what it needs at one revision, and is committed by one
// transaction that compares everything it read with what is there then, so that
// changes behave as if made one after another, whichever nodes make them. The
// transaction also puts the change's audit events into the node's outbox, and
// the key "head", which every change of data puts.
//
// etcd may answer late or never, and the change may have been made all the same.
// Each node therefore writes through a few lanes: a lane is a key that each
// transaction of it compares and puts. When an answer fails to come, another
// transaction on the same lane either finds that the first one was made, or takes
// its ground away so that it never can be.
//
// # Following
//
// A [Store] holds a mirror: it reads all tokens at one revision, watches from the
// next one on, and hands what changes to its replica, from which requests are
// answered. Without a replica only what is cached is held, and dropped when it
// changes.
//
// Counts, lists and other indexes are each replica's own. etcd holds a record for
// each token, a key for each digest, and what nodes have to know of each other.
//
// # Freshness
//
// Every two seconds a node notes the time, asks for head by a linearizable read,
// which only the leader's quorum can answer, and once it has applied head's
// revision it is known to have held everything as of the noted time. That etcd
// goes on sending progress proves nothing: a member cut off from its leader does
// that too.
package etcdstore

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"tokenward/tokenstore"
)

// Options say where the store is and who uses it.
type Options struct {
	Endpoints          []string // URLs of members: http, https, or host:port
	Prefix             string   // of all keys; "" means DefaultPrefix
	TLS                *tls.Config
	Username, Password string

	Node    string // names this node; unique in the cluster
	Version string // of the program, for others to see
	Peppers *tokenstore.Peppers

	// MaxStaleness is for how long the node may answer requests without knowing
	// that it holds everything; 0 means DefaultMaxStaleness. With ServeStale it
	// goes on after that, and says so.
	MaxStaleness time.Duration
	ServeStale   bool

	Now    func() time.Time // the wall clock
	Logger *slog.Logger     // nil drops what there is to tell
}

const (
	// DefaultPrefix begins the keys of a cluster that names no other.
	DefaultPrefix = "/tokenward/"
	// DefaultMaxStaleness is for how long a node goes on without etcd.
	DefaultMaxStaleness = 15 * time.Minute
	// LeastVersion is the oldest etcd whose watches and linearizable reads can be
	// relied on.
	LeastVersion = "3.5.12"
)

const (
	dialTimeout = 5 * time.Second
	// callTimeout bounds one call to etcd. Another member is asked after it.
	callTimeout = 3 * time.Second
	// firstTimeout and commitTimeout are for the first call of several that come to
	// different members, and for the transaction of a change, whose outcome another
	// one finds out; a large one has a millisecond more for each operation.
	firstTimeout  = 500 * time.Millisecond
	commitTimeout = 1500 * time.Millisecond
	// changePatience bounds how long a change tries.
	changePatience = 15 * time.Second
	// readPatience bounds how long something is read that no request waits for.
	readPatience = 5 * time.Second
	// keepAliveEvery and keepAliveWait are when a connection is asked whether its member
	// is there, and how long that may take: the watch of a member that fell silent is
	// begun anew elsewhere before those who wait for it lose patience. gRPC takes no
	// less than 10 s for the first.
	keepAliveEvery = 10 * time.Second
	keepAliveWait  = 3 * time.Second
)

// ErrNotInitialised says that there is no store under the prefix.
var ErrNotInitialised = errors.New("there is no token store in etcd under this prefix: make it with `tokenward init --config F`")

// ErrUnreachable says that no member could be asked.
var ErrUnreachable = errors.New("no member answers")

// ErrExists says that there is a store already.
var ErrExists = errors.New("there is a token store in etcd under this prefix already")

// Client speaks to etcd. Nothing of it touches the network before a method does.
type Client struct {
	etcd *clientv3.Client
	keys keyspace
	opts Options
	log  *slog.Logger

	connections atomic.Uint64 // that were ever begun
}

// Dial prepares a client.
func Dial(o Options) (*Client, error) {
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if !strings.HasSuffix(o.Prefix, "/") {
		o.Prefix += "/"
	}
	if o.MaxStaleness == 0 {
		o.MaxStaleness = DefaultMaxStaleness
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if !ValidNode(o.Node) {
		return nil, fmt.Errorf("%q cannot name a node: use 1 to 63 letters, digits, dots, hyphens and underscores, the first a letter or digit", o.Node)
	}
	c := &Client{keys: keyspace(o.Prefix), opts: o, log: o.Logger}
	etcd, err := clientv3.New(clientv3.Config{
		Endpoints: o.Endpoints, TLS: o.TLS, Username: o.Username, Password: o.Password,
		DialTimeout: dialTimeout, DialKeepAliveTime: keepAliveEvery, DialKeepAliveTimeout: keepAliveWait,
		DialOptions:         []grpc.DialOption{grpc.WithConnectParams(reconnect()), grpc.WithContextDialer(c.dial)},
		PermitWithoutStream: true, Logger: zap.NewNop(), // what it would tell is in the errors
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd at %s: %w: check tokenstore.etcd", strings.Join(o.Endpoints, ", "), err)
	}
	c.etcd = etcd
	return c, nil
}

// reconnect is how often a member that is down is tried. gRPC by itself goes up to
// two minutes between two tries, which every node would be out of step for after
// etcd came back.
func reconnect() grpc.ConnectParams {
	return grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
		MinConnectTimeout: dialTimeout,
	}
}

// Close ends the connections.
func (c *Client) Close() error {
	if err := c.etcd.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close the connections to etcd: %w", err)
	}
	return nil
}

// ValidNode reports whether name can be a node's: it stands in keys and in the
// audit log.
func ValidNode(name string) bool {
	if name == "" || len(name) > 63 || strings.ContainsRune("-._", rune(name[0])) {
		return false
	}
	return strings.IndexFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._", r)
	}) < 0
}

// Description is what a store in etcd says of itself.
type Description struct {
	ID      string // of the store
	Cluster uint64 // of the etcd that holds it; another one after a restore of etcd
	Traits  tokenstore.Traits
}

// Name is the store's ID with the etcd that holds it, whose revisions mean nothing
// in another one.
func (d *Description) Name() string { return d.ID + ":" + strconv.FormatUint(d.Cluster, 16) }

// ParseName reads what [Description.Name] returned.
func ParseName(name string) (Description, error) {
	id, cluster, _ := strings.Cut(name, ":")
	n, err := strconv.ParseUint(cluster, 16, 64)
	if d := (Description{ID: id, Cluster: n}); id != "" && err == nil && d.Name() == name {
		return d, nil
	}
	return Description{}, fmt.Errorf("%q names no token store in etcd", name)
}

// Describe checks that etcd is new enough and reads what the store says of itself,
// or returns ErrNotInitialised.
func (c *Client) Describe(ctx context.Context) (Description, error) {
	var d Description
	if err := c.checkVersions(ctx); err != nil {
		return d, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return c.etcd.Txn(ctx).Then(clientv3.OpGet(c.keys.schema()), clientv3.OpGet(c.keys.storeID()),
			clientv3.OpGet(c.keys.traits(), clientv3.WithPrefix()), clientv3.OpGet(c.keys.migration())).Commit()
	})
	if err != nil {
		if !neverMade(err) {
			err = fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		return d, c.failed("read what the store says of itself", err)
	}
	d.Cluster = got.Header.ClusterId
	schema, id := got.Responses[0].GetResponseRange().Kvs, got.Responses[1].GetResponseRange().Kvs
	if len(got.Responses[3].GetResponseRange().Kvs) > 0 {
		return d, ErrMigrating
	}
	if len(schema) == 0 || len(id) == 0 {
		return d, ErrNotInitialised
	}
	if v, err := strconv.Atoi(string(schema[0].Value)); err != nil || v != schemaVersion {
		return d, fmt.Errorf("the token store in etcd has schema %q and this program knows %d: use the version of tokenward that wrote it", schema[0].Value, schemaVersion)
	}
	d.ID = string(id[0].Value)
	for _, kv := range got.Responses[2].GetResponseRange().Kvs {
		if err := c.keys.addTrait(&d.Traits, string(kv.Key)); err != nil {
			return d, err
		}
	}
	return d, c.checkPeppers(&d.Traits)
}

func (c *Client) checkPeppers(t *tokenstore.Traits) error {
	if (len(t.Peppers) > 0) != (c.opts.Peppers != nil) {
		if c.opts.Peppers != nil {
			return errors.New("the token store in etcd was made without a pepper, so its records are not sealed: remove tokenstore.pepper_files")
		}
		return errors.New("the token store in etcd is sealed with a pepper, and tokenstore.pepper_files is empty: name the file in it")
	}
	if missing := t.Lacks(c.opts.Peppers); len(missing) > 0 {
		return fmt.Errorf("the token store in etcd is sealed with the pepper of id %s, which tokenstore.pepper_files does not hold: add the file to the end of the list", missing[0])
	}
	return nil
}

// Init makes an empty store under the prefix, or returns ErrExists or ErrMigrating. Of
// several that try at once one succeeds.
func (c *Client) Init(ctx context.Context) error {
	if err := c.checkVersions(ctx); err != nil {
		return err
	}
	ops := []clientv3.Op{
		clientv3.OpPut(c.keys.schema(), strconv.Itoa(schemaVersion)),
		clientv3.OpPut(c.keys.storeID(), rand.Text()),
		clientv3.OpPut(c.keys.head(), rand.Text()),
	}
	for _, id := range c.opts.Peppers.IDs() {
		ops = append(ops, clientv3.OpPut(c.keys.pepper(id), ""))
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	done, err := c.etcd.Txn(ctx).If(
		clientv3.Compare(clientv3.CreateRevision(c.keys.schema()), "=", 0), clientv3.Compare(clientv3.CreateRevision(c.keys.migration()), "=", 0),
	).Then(ops...).Else(clientv3.OpGet(c.keys.migration())).Commit()
	switch {
	case err != nil:
		return c.failed("make the store", err)
	case !done.Succeeded && len(done.Responses[0].GetResponseRange().Kvs) > 0:
		return ErrMigrating
	case !done.Succeeded:
		return ErrExists
	}
	return nil
}

// checkVersions asks every member for its version, all at once. At least one has to
// answer.
func (c *Client) checkVersions(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	type answer struct {
		endpoint, version string
		err               error
	}
	endpoints := c.etcd.Endpoints()
	answers := make(chan answer, len(endpoints))
	for _, endpoint := range endpoints {
		go func() {
			status, err := c.etcd.Status(ctx, endpoint)
			a := answer{endpoint: endpoint, err: err}
			if err == nil {
				a.version = status.Version
			}
			answers <- a
		}()
	}
	var failed error
	answered := false
	for range endpoints {
		a := <-answers
		if a.err != nil {
			failed = a.err
			continue
		}
		answered = true
		if older(a.version, LeastVersion) {
			return fmt.Errorf("etcd at %s is version %s, whose watches can lose events: use %s or newer", a.endpoint, a.version, LeastVersion)
		}
	}
	if !answered {
		return c.failed("ask for its version", fmt.Errorf("%w: %w", ErrUnreachable, failed))
	}
	return nil
}

// older reports whether version a comes before b; what cannot be read does.
func older(a, b string) bool {
	parse := func(s string) (n [3]int, ok bool) {
		s, _, _ = strings.Cut(s, "-")
		parts := strings.Split(s, ".")
		if len(parts) != 3 {
			return n, false
		}
		for i := range parts {
			v, err := strconv.Atoi(parts[i])
			if err != nil || v < 0 {
				return n, false
			}
			n[i] = v
		}
		return n, true
	}
	x, okX := parse(a)
	y, okY := parse(b)
	if !okX || !okY {
		return true
	}
	for i := range x {
		if x[i] != y[i] {
			return x[i] < y[i]
		}
	}
	return false
}

// failed explains why a call to etcd failed.
func (c *Client) failed(what string, err error) error {
	return fmt.Errorf("etcd (%s): %s: %w: see that it runs and can be reached", strings.Join(c.opts.Endpoints, ", "), what, err)
}
