//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tokenward/tokenstore"
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
