//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
)

// runCluster measures a cluster: three members of etcd in processes of their own,
// which sync to disk, and nodes in this process, each with its own connection and its
// own copy; whole programs where their memory is asked for.
func runCluster(args []string) error {
	var o options
	var only string
	var watchIdle time.Duration
	flags := flag.NewFlagSet("cluster", flag.ExitOnError)
	flags.IntVar(&o.tokens, "tokens", 1_000_000, "tokens in the store that is mirrored")
	flags.IntVar(&o.active, "active", 1000, "tokens in use")
	flags.StringVar(&o.dir, "dir", filepath.Join(os.TempDir(), "tokenward-bench"), "where the filled store is kept between runs")
	flags.StringVar(&o.binary, "tokenward", "bin/tokenward", "the binary to measure")
	flags.StringVar(&only, "cases", "", "run only the cases whose name contains one of these, separated by commas")
	flags.DurationVar(&watchIdle, "idle", 3*time.Minute, "for how long an idle cluster is watched")
	_ = flags.Parse(args)
	o.cases = only
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fmt.Println(describeMachine())
	for _, c := range []struct {
		name string
		run  func(context.Context, options, *etcd) error
	}{
		{"revoke: acknowledged to denied on 50 nodes", revokeCase},
		{"writes: 10 writers on 5 nodes", writesCase},
		{"idle: revisions of an idle cluster", func(ctx context.Context, o options, e *etcd) error { return quietCase(ctx, e, watchIdle) }},
		{"mirror: a whole store", mirrorCase},
		{"fan-out: mirrors in one process", fanOutCase},
		{"region: nodes far from etcd", regionCase},
	} {
		if !o.wants(c.name) || ctx.Err() != nil {
			continue
		}
		fmt.Printf("\n## %s\n\n", c.name)
		e, err := startEtcd(ctx, 3)
		if err != nil {
			return err
		}
		err = c.run(ctx, o, e)
		if err = errors.Join(err, e.stop()); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return ctx.Err()
}

// etcd is a cluster of members in processes of their own.
type etcd struct {
	dir     string
	specs   []etcdtest.Spec
	members []*process
	via     []string // relays that nodes go through; nil: none
}

func startEtcd(ctx context.Context, n int) (e *etcd, err error) {
	e = &etcd{}
	if e.dir, err = os.MkdirTemp("", "tokenward-etcd-"); err != nil {
		return nil, err
	}
	if e.specs, err = etcdtest.Specs(e.dir, "http", n); err != nil {
		return nil, err
	}
	for i := range e.specs {
		e.specs[i].Limits = etcdtest.Limits{Fsync: true, QuotaBytes: 8 << 30}
		p, err := e.startMember(ctx, i)
		if err != nil {
			return nil, errors.Join(err, e.stop())
		}
		e.members = append(e.members, p)
		e.specs[i].Existing = true
	}
	for i := range e.members {
		if err := e.await(ctx, i); err != nil {
			return nil, errors.Join(err, e.stop())
		}
	}
	return e, nil
}

func (e *etcd) startMember(ctx context.Context, i int) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	spec, err := json.Marshal(&e.specs[i])
	if err != nil {
		return nil, err
	}
	return start(ctx, e.dir, e.specs[i].Name, self, "etcdmember", string(spec))
}

func (e *etcd) await(ctx context.Context, i int) error {
	u, err := url.Parse(e.specs[i].ClientURL)
	if err != nil {
		return err
	}
	return waitFor(ctx, e.members[i], u.Host)
}

// restart stops a member and starts it anew.
func (e *etcd) restart(ctx context.Context, i int) error {
	if err := e.members[i].stop(); err != nil {
		return err
	}
	p, err := e.startMember(ctx, i)
	if err != nil {
		return err
	}
	e.members[i] = p
	return e.await(ctx, i)
}

func (e *etcd) stop() error {
	var errs []error
	for _, p := range e.members {
		errs = append(errs, p.stop())
	}
	return errors.Join(append(errs, os.RemoveAll(e.dir))...)
}

func (e *etcd) endpoints() []string {
	if e.via != nil {
		return e.via
	}
	var list []string
	for i := range e.specs {
		list = append(list, e.specs[i].ClientURL)
	}
	return list
}

func (e *etcd) client() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: e.endpoints(), DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

// nodeConf is the configuration of a node.
func (e *etcd) nodeConf(dir, name, mirror string, port, admin, metrics int) string {
	own := tokenwardConf(dir, filepath.Join(dir, "tokens.db"), 200, port, admin, metrics, false)
	part := fmt.Sprintf("  etcd: {endpoints: [\"%s\"], node: %s, mirror: %s}\naudit:\n", strings.Join(e.endpoints(), `", "`), name, mirror)
	return strings.Replace(own, "audit:\n", part, 1)
}

// cpu is the processor time of all members.
func (e *etcd) cpu() (all time.Duration, err error) {
	for _, p := range e.members {
		c, err := p.cpu()
		if err != nil {
			return 0, err
		}
		all += c
	}
	return all, nil
}

// heard is told of each change of a token.
type heard func(node int, c tokenstore.Change)

// node is one node in this process.
type node struct {
	client *etcdstore.Client
	store  *etcdstore.Store
	copy   *boltstore.Store // nil: on demand
}

func (n *node) close() error {
	err := errors.Join(n.store.Close(), n.client.Close())
	if n.copy != nil {
		err = errors.Join(err, n.copy.Close())
	}
	return err
}

func dial(e *etcd, name string) (*etcdstore.Client, error) {
	// Each node begins with another member, as with names in another order.
	ends := e.endpoints()
	turn := int(name[len(name)-1]) % len(ends)
	return etcdstore.Dial(etcdstore.Options{Endpoints: append(ends[turn:len(ends):len(ends)], ends[:turn]...), Node: name, Version: "bench"})
}

// openNode starts a node with a copy at path, or without one where that is empty. It
// does not wait until it has caught up.
func openNode(ctx context.Context, e *etcd, name, path string, changed func(tokenstore.Change)) (*node, error) {
	c, err := dial(e, name)
	if err != nil {
		return nil, err
	}
	d, err := c.Describe(ctx)
	if errors.Is(err, etcdstore.ErrNotInitialised) {
		if err = c.Init(ctx); err == nil || errors.Is(err, etcdstore.ErrExists) {
			d, err = c.Describe(ctx)
		}
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	n := &node{client: c}
	if path == "" {
		n.store = c.Open(d, nil)
		n.store.Start(etcdstore.Observer{Changed: changed})
		return n, nil
	}
	open := boltstore.Open
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		open = boltstore.Create
	}
	if n.copy, err = open(boltstore.Options{Path: path, ReplicaOf: d.Name(), OnChange: changed}); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	n.store = c.Open(d, n.copy)
	n.store.Start(etcdstore.Observer{})
	return n, nil
}

// openNodes starts n nodes and waits until all have caught up.
func openNodes(ctx context.Context, e *etcd, dir string, n int, mirrored bool, changed heard) (nodes []*node, stop func() error, err error) {
	stop = func() error {
		errs := make([]error, len(nodes))
		var wg sync.WaitGroup
		for i, one := range nodes {
			wg.Go(func() { errs[i] = one.close() })
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	for i := range n {
		path := ""
		if mirrored {
			path = filepath.Join(dir, fmt.Sprintf("node-%d.db", i))
		}
		one, err := openNode(ctx, e, fmt.Sprintf("node-%d", i), path, func(c tokenstore.Change) {
			if changed != nil {
				changed(i, c)
			}
		})
		if err != nil {
			return nil, nil, errors.Join(err, stop())
		}
		nodes = append(nodes, one)
	}
	for _, one := range nodes {
		if err := one.store.WaitReady(ctx); err != nil {
			return nil, nil, errors.Join(err, stop())
		}
	}
	return nodes, stop, nil
}

// makeTokens makes tokens in the cluster, a thousand in one change.
func makeTokens(ctx context.Context, n *node, count int) (ids []tokenstore.ID, err error) {
	for len(ids) < count {
		var made []tokenstore.ID
		err := n.store.Change(ctx, func(tx tokenstore.Tx) error {
			made = made[:0]
			for range min(500, count-len(ids)) {
				id, _, err := putToken(tx, false)
				if err != nil {
					return err
				}
				made = append(made, id)
			}
			tx.Emit([]byte(`{}`))
			return nil
		})
		if err != nil {
			return nil, err
		}
		ids = append(ids, made...)
	}
	return ids, nil
}

// drain empties the outbox of a node as the audit log does.
func drain(ctx context.Context, n *node) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.store.Wake():
		}
		time.Sleep(100 * time.Millisecond) // as the program does
		events, err := n.store.Pending(1000)
		if err == nil && len(events) > 0 {
			_ = n.store.Done(events[len(events)-1].Seq) // it comes again
		}
	}
}

func revoke(tx tokenstore.Tx, id tokenstore.ID) error {
	t, err := tx.Token(id)
	if err != nil {
		return err
	}
	t.State, t.EndedAt, t.UpdatedAt = tokenstore.StateRevoked, time.Now().UTC().Truncate(time.Millisecond), time.Now().UTC().Truncate(time.Millisecond)
	tx.Emit([]byte(`{}`))
	return tx.Put(t)
}

// revocations revokes one token after another on one node, with a pause between, and
// returns how long after the acknowledgement the last of the nodes had heard of it.
type revocations struct {
	mu   sync.Mutex
	left map[tokenstore.ID]int
	done map[tokenstore.ID]chan time.Time
}

func (r *revocations) expect(id tokenstore.ID, nodes int) <-chan time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	ch := make(chan time.Time, 1)
	r.left[id], r.done[id] = nodes, ch
	return ch
}

// heard notes that a node denies the token from now on: its copy and its cache have
// dropped it.
func (r *revocations) heard(c tokenstore.Change) {
	if c.After == nil || c.After.State != tokenstore.StateRevoked {
		return
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if ch := r.done[c.After.ID]; ch != nil {
		if r.left[c.After.ID]--; r.left[c.After.ID] == 0 {
			ch <- now
		}
	}
}

func (r *revocations) run(ctx context.Context, by *node, ids []tokenstore.ID, nodes int, pause time.Duration) (late, acknowledged []time.Duration, err error) {
	for _, id := range ids {
		all := r.expect(id, nodes)
		began := time.Now()
		if err := by.store.Change(ctx, func(tx tokenstore.Tx) error { return revoke(tx, id) }); err != nil {
			return nil, nil, err
		}
		at := time.Now()
		acknowledged = append(acknowledged, at.Sub(began))
		select {
		case last := <-all:
			late = append(late, max(0, last.Sub(at)))
		case <-time.After(30 * time.Second):
			return nil, nil, fmt.Errorf("token %d is still accepted on a node after 30 s", id)
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		time.Sleep(pause)
	}
	slices.Sort(late)
	slices.Sort(acknowledged)
	return late, acknowledged, nil
}

func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*p/100)].Round(10 * time.Microsecond)
}

func revokeCase(ctx context.Context, _ options, e *etcd) (err error) {
	const nodes, tokens = 50, 400
	r := &revocations{left: map[tokenstore.ID]int{}, done: map[tokenstore.ID]chan time.Time{}}
	all, stop, err := openNodes(ctx, e, e.dir, nodes, true, func(_ int, c tokenstore.Change) { r.heard(c) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	background, cancel := context.WithCancel(ctx)
	defer cancel()
	go drain(background, all[0])
	ids, err := makeTokens(ctx, all[0], tokens)
	if err != nil {
		return err
	}
	if _, _, err := r.run(ctx, all[0], ids[:50], nodes, 20*time.Millisecond); err != nil { // warm up
		return err
	}
	late, acknowledged, err := r.run(ctx, all[0], ids[50:], nodes, 50*time.Millisecond)
	if err != nil {
		return err
	}
	fmt.Printf("%d revocations, %d nodes with a copy each, all in one process:\n\n", len(late), nodes)
	fmt.Println("| | p50 | p95 | p99 | most | goal |")
	fmt.Println("|---|---|---|---|---|---|")
	fmt.Printf("| acknowledged to denied on all nodes | %v | %v | %v | %v | p99 100 ms |\n", percentile(late, 50), percentile(late, 95), percentile(late, 99), percentile(late, 100))
	fmt.Printf("| asked to acknowledged | %v | %v | %v | %v | |\n", percentile(acknowledged, 50), percentile(acknowledged, 95), percentile(acknowledged, 99), percentile(acknowledged, 100))
	return nil
}

func writesCase(ctx context.Context, _ options, e *etcd) (err error) {
	const nodes, writers, length = 5, 10, 15 * time.Second
	all, stop, err := openNodes(ctx, e, e.dir, nodes, true, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	background, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, n := range all {
		go drain(background, n)
	}
	before, err := e.cpu()
	if err != nil {
		return err
	}
	spent, err := ownCPU()
	if err != nil {
		return err
	}
	var commits, applied uint64
	for _, n := range all {
		stats := n.store.Stats()
		commits, applied = commits-stats.Commits, applied-stats.Applied
	}
	var made atomic.Int64
	errs := make([]error, writers)
	took := make([][]time.Duration, writers)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range writers {
		wg.Go(func() {
			for time.Since(began) < length && errs[i] == nil && ctx.Err() == nil {
				at := time.Now()
				errs[i] = all[i%nodes].store.Change(ctx, func(tx tokenstore.Tx) error {
					tx.Emit([]byte(`{}`))
					_, _, err := putToken(tx, false)
					return err
				})
				took[i] = append(took[i], time.Since(at))
				made.Add(1)
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(began)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	after, err := e.cpu()
	if err != nil {
		return err
	}
	here, err := ownCPU()
	if err != nil {
		return err
	}
	for _, n := range all {
		stats := n.store.Stats()
		commits, applied = commits+stats.Commits, applied+stats.Applied
	}
	times := slices.Sorted(slices.Values(slices.Concat(took...)))
	each := func(cpu time.Duration) time.Duration {
		return (cpu / time.Duration(made.Load())).Round(time.Microsecond)
	}
	fmt.Printf("%.0f creates/s (goal 500), each acknowledged once its node had applied it: p50 %v, p99 %v; %v of processor time each by etcd's members together, %v by the nodes; %.2f creates to a transaction, %.2f to a step of a copy.\n",
		float64(made.Load())/elapsed.Seconds(), percentile(times, 50), percentile(times, 99), each(after-before), each(here-spent),
		float64(made.Load())/float64(commits), nodes*float64(made.Load())/float64(applied))
	return nil
}

// regionCase puts a delay between nodes and etcd, whose members stay near one another.
func regionCase(ctx context.Context, _ options, e *etcd) (err error) {
	const oneWay, tokens = 20 * time.Millisecond, 60
	var relays []*etcdtest.Relay
	defer func() {
		for _, r := range relays {
			r.Close()
		}
		e.via = nil
	}()
	fmt.Println("| round trip to etcd | revoke: asked to acknowledged | from there to denied on another node | a token that is not in memory, on demand |")
	fmt.Println("|---|---|---|---|")
	for _, delay := range []time.Duration{0, oneWay, 2 * oneWay} {
		e.via = nil
		var via []string
		for _, direct := range e.endpoints() {
			u, err := url.Parse(direct)
			if err != nil {
				return err
			}
			relay, err := etcdtest.NewRelay(u.Host)
			if err != nil {
				return err
			}
			relay.Delay(delay)
			relays, via = append(relays, relay), append(via, "http://"+relay.Addr())
		}
		e.via = via
		if err := regionOf(ctx, e, tokens, delay); err != nil {
			return err
		}
	}
	return nil
}

func regionOf(ctx context.Context, e *etcd, tokens int, delay time.Duration) (err error) {
	r := &revocations{left: map[tokenstore.ID]int{}, done: map[tokenstore.ID]chan time.Time{}}
	nodes, stop, err := openNodes(ctx, e, e.dir, 2, false, func(_ int, c tokenstore.Change) { r.heard(c) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	background, cancel := context.WithCancel(ctx)
	defer cancel()
	go drain(background, nodes[0])
	ids, err := makeTokens(ctx, nodes[0], tokens)
	if err != nil {
		return err
	}
	var misses []time.Duration
	for _, id := range ids {
		began := time.Now()
		t, err := nodes[1].store.ByID(ctx, id)
		if err == nil {
			_, err = nodes[1].store.ByDigest(ctx, t.Secrets[0].Digest)
		}
		if err != nil {
			return err
		}
		misses = append(misses, time.Since(began)*2/3) // of three questions a miss has two
	}
	slices.Sort(misses)
	late, acknowledged, err := r.run(ctx, nodes[0], ids, 2, 20*time.Millisecond)
	if err != nil {
		return err
	}
	fmt.Printf("| %v | %v | %v | %v |\n", 2*delay, percentile(acknowledged, 50), percentile(late, 50), percentile(misses, 50))
	return nil
}

// quietCase counts what nodes write that have nothing to do.
func quietCase(ctx context.Context, e *etcd, length time.Duration) (err error) {
	const nodes = 5
	_, stop, err := openNodes(ctx, e, e.dir, nodes, true, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	c, err := e.client()
	if err != nil {
		return err
	}
	defer c.Close()
	revision := func() (int64, error) {
		got, err := c.Get(ctx, "no such key")
		if err != nil {
			return 0, err
		}
		return got.Header.Revision, nil
	}
	time.Sleep(5 * time.Second)
	before, err := revision()
	if err != nil {
		return err
	}
	cpu, err := e.cpu()
	if err != nil {
		return err
	}
	select {
	case <-time.After(length):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := revision()
	if err != nil {
		return err
	}
	later, err := e.cpu()
	if err != nil {
		return err
	}
	fmt.Printf("%d writes in %v with %d nodes (goal: at most %.0f); %v of etcd's processor time a second, all members together.\n",
		after-before, length, nodes, float64(nodes)*length.Minutes(), time.Duration(float64(later-cpu)/length.Seconds()).Round(10*time.Microsecond))
	return nil
}

// mirrorCase brings a store of its own into etcd and follows it from there.
func mirrorCase(ctx context.Context, o options, e *etcd) (err error) {
	if _, err := fillStore(ctx, o); err != nil {
		return err
	}
	if err := importStore(ctx, o, e); err != nil {
		return err
	}
	path := filepath.Join(e.dir, "mirror.db")
	spent, err := ownCPU()
	if err != nil {
		return err
	}
	began := time.Now()
	n, err := openReady(ctx, e, "mirror", path)
	if err != nil {
		return err
	}
	took := time.Since(began)
	after, err := ownCPU()
	if err != nil {
		return errors.Join(err, n.close())
	}
	info, err := os.Stat(path)
	if err != nil {
		return errors.Join(err, n.close())
	}
	fmt.Printf("| mirror of %d tokens from nothing | %v, with %v of the node's processor time | 60 s |\n| the node's copy | %d MB | |\n", o.tokens, took.Round(10*time.Millisecond), (after - spent).Round(10*time.Millisecond), info.Size()>>20)
	if err := n.close(); err != nil {
		return err
	}
	if err := resumeStore(ctx, e, path); err != nil {
		return err
	}
	for _, kind := range []string{"full", "on_demand"} {
		if err := programMemory(ctx, o, e, kind, path); err != nil {
			return err
		}
	}
	return nil
}

// openReady opens a node and waits until it is in step.
func openReady(ctx context.Context, e *etcd, name, path string) (*node, error) {
	n, err := openNode(ctx, e, name, path, nil)
	if err != nil {
		return nil, err
	}
	if err := n.store.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

// ownCPU is the processor time of this process.
func ownCPU() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

func importStore(ctx context.Context, o options, e *etcd) error {
	s, err := boltstore.Open(boltstore.Options{Path: storePath(o), ReadOnly: true})
	if err != nil {
		return err
	}
	defer s.Close()
	c, err := dial(e, "import")
	if err != nil {
		return err
	}
	defer c.Close()
	began := time.Now()
	var verifying time.Time
	tally, err := c.Import(ctx, etcdstore.Import{ID: s.ID(), Entries: s.Entries, Report: func(at etcdstore.Copying) {
		if at.Verifying && verifying.IsZero() {
			verifying = time.Now()
		}
	}})
	if err != nil {
		return err
	}
	fmt.Println("| what | measured | goal |")
	fmt.Println("|---|---|---|")
	fmt.Printf("| migrate %d tokens into etcd | %v, and %v to read all back | |\n", tally.Count(tokenstore.EntryRecord), verifying.Sub(began).Round(time.Second), time.Since(verifying).Round(time.Second))
	etcdc, err := e.client()
	if err != nil {
		return err
	}
	defer etcdc.Close()
	status, err := etcdc.Status(ctx, e.endpoints()[0])
	if err != nil {
		return err
	}
	after, err := e.members[0].rssAnon()
	if err != nil {
		return err
	}
	if err := e.restart(ctx, 0); err != nil {
		return err
	}
	time.Sleep(3 * time.Second)
	memory, err := e.members[0].rssAnon()
	if err != nil {
		return err
	}
	fmt.Printf("| etcd: database, in use | %d MB, %d MB: %d bytes a token | |\n| etcd: RssAnon of a member | %.0f MB after that, %.0f MB when started anew: %.0f bytes a token | |\n",
		status.DbSize>>20, status.DbSizeInUse>>20, status.DbSizeInUse/int64(o.tokens), mb(after), mb(memory), float64(memory)/float64(o.tokens))
	return nil
}

// resumeStore has a node come back to what changed while it was away: in a while, and
// in an hour with ten changes a second.
func resumeStore(ctx context.Context, e *etcd, path string) error {
	for _, changes := range []int{1000, 36_000} {
		took, err := changeMeanwhile(ctx, e, changes)
		if err != nil {
			return err
		}
		began := time.Now()
		n, err := openReady(ctx, e, "mirror", path)
		if err != nil {
			return err
		}
		resumed := time.Since(began)
		if s := n.store.Stats(); s.Loads > 0 {
			return errors.Join(errors.New("the node read everything anew"), n.close())
		}
		fmt.Printf("| resume after %d new tokens, which another node with 64 callers had made in %v | %v | 2 s and the changes |\n", changes, took.Round(time.Second), resumed.Round(time.Millisecond))
		if err := n.close(); err != nil {
			return err
		}
	}
	return nil
}

// changeMeanwhile makes tokens on a node of its own, each by a change of its own.
func changeMeanwhile(ctx context.Context, e *etcd, changes int) (took time.Duration, err error) {
	n, err := openReady(ctx, e, "other", "")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	background, cancel := context.WithCancel(ctx)
	defer cancel()
	go drain(background, n)
	const callers = 64
	errs := make([]error, callers)
	var begun atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for i := range errs {
		wg.Go(func() {
			for begun.Add(1) <= int64(changes) && errs[i] == nil {
				errs[i] = n.store.Change(ctx, func(tx tokenstore.Tx) error {
					tx.Emit([]byte(`{}`))
					_, _, err := putToken(tx, false)
					return err
				})
			}
		})
	}
	wg.Wait()
	return time.Since(began), errors.Join(errs...)
}

// programMemory starts the program as a node and asks it with the tokens in use.
func programMemory(ctx context.Context, o options, e *etcd, mirror, copied string) error {
	dir := filepath.Join(e.dir, mirror)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if mirror == "full" {
		if err := os.Rename(copied, filepath.Join(dir, "tokens.db")); err != nil {
			return err
		}
	}
	file := filepath.Join(dir, "tokenward.yaml")
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(e.nodeConf(dir, "program", mirror, ports[0], ports[1], ports[2])), 0o600); err != nil {
		return err
	}
	p, err := start(ctx, dir, "tokenward", o.binary, "serve", "--config", file)
	if err != nil {
		return err
	}
	err = waitFor(ctx, p, local(ports[0]))
	var atRest, inUse int64
	if err == nil {
		time.Sleep(3 * time.Second)
		atRest, err = p.rssAnon()
	}
	if err == nil {
		err = askWithAll(o, ports[0])
	}
	if err == nil {
		inUse, err = p.rssAnon()
	}
	if err = errors.Join(err, p.stop()); err != nil {
		return err
	}
	goal := "150 MB"
	if mirror != "full" {
		goal = "60 MB"
	}
	fmt.Printf("| RssAnon of the program, %d tokens, mirror: %s | %.1f MB, %.1f MB after requests with %d tokens | %s |\n", o.tokens, mirror, mb(atRest), mb(inUse), o.active, goal)
	return nil
}

// askWithAll makes a request with each of the tokens in use. There may be no upstream,
// which is asked only once the token was judged.
func askWithAll(o options, port int) error {
	secrets, err := readLines(storePath(o) + ".secrets")
	if err != nil {
		return err
	}
	nc, err := net.Dial("tcp", local(port))
	if err != nil {
		return err
	}
	defer nc.Close()
	r := bufio.NewReader(nc)
	for _, s := range secrets[:min(o.active, len(secrets))] {
		if _, err := fmt.Fprintf(nc, "GET /accounts/10000/small HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\n\r\n", s); err != nil {
			return err
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusBadGateway {
			return fmt.Errorf("a token in use was answered %s", resp.Status)
		}
	}
	return nil
}

// freePorts returns ports that are free at this moment: the program that is started
// beside a field of peers has none of theirs.
func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", local(0))
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
