package etcdtest_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"tokenward/tokenstore/etcdstore/etcdtest"
)

// short is for calls that must fail because nothing answers: long enough that one
// which can be answered is.
const short = 3 * time.Second

func TestMemberRefusesMoreThanItsLimits(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Limits: etcdtest.Limits{TxnOps: 4, RequestBytes: 10_000}})
	var ops []clientv3.Op
	for i := range 5 {
		ops = append(ops, clientv3.OpPut(fmt.Sprint("k", i), "v"))
	}
	if _, err := c.Client().Txn(t.Context()).Then(ops[:4]...).Commit(); err != nil {
		t.Errorf("4 operations where 4 are allowed: %v", err)
	}
	if _, err := c.Client().Txn(t.Context()).Then(ops...).Commit(); !errors.Is(err, rpctypes.ErrTooManyOps) {
		t.Errorf("5 operations where 4 are allowed: %v", err)
	}
	if _, err := c.Client().Put(t.Context(), "k", strings.Repeat("v", 10_001)); !errors.Is(err, rpctypes.ErrRequestTooLarge) {
		t.Errorf("10,001 bytes where 10,000 are allowed: %v", err)
	}
}

func TestFullDatabaseRefusesWrites(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Limits: etcdtest.Limits{QuotaBytes: 1 << 20}})
	big := strings.Repeat("v", 100<<10)
	etcdtest.WaitFor(t, "the database to be full", func(ctx context.Context) error {
		_, err := c.Client().Put(ctx, "k", big)
		switch {
		case errors.Is(err, rpctypes.ErrNoSpace):
			return nil
		case err != nil:
			return err
		}
		return errors.New("a write more has gone in")
	})
	if _, err := c.Client().Get(t.Context(), "k"); err != nil {
		t.Errorf("a full database is not read: %v", err)
	}
}

func TestIdleWatchIsToldTheRevision(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Limits: etcdtest.Limits{WatchProgress: 100 * time.Millisecond}})
	last := put(t, c, "other").Header.Revision
	for answer := range c.Client().Watch(t.Context(), "k", clientv3.WithProgressNotify()) {
		if answer.IsProgressNotify() {
			if answer.Header.Revision != last {
				t.Errorf("told of revision %d, want %d", answer.Header.Revision, last)
			}
			return
		}
	}
	t.Error("the watch has ended")
}

func TestLeaderDiesAndWritesGoOn(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	put(t, c, "before")
	old := c.Leader()
	old.Stop()
	if old.Running() || old.IsLeader() {
		t.Error("a stopped member says that it runs or leads")
	}
	put(t, c, "after")
	if now := c.Leader(); now == old {
		t.Error("a stopped member is still the leader")
	}
	old.Start()
	wantAt(t, old, "before", "after")
}

func TestAllDieAndNothingIsLost(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	put(t, c, "before")
	rev := c.Revision(t.Context())
	c.StopAll()
	ctx, cancel := context.WithTimeout(t.Context(), short)
	defer cancel()
	if _, err := c.Client().Get(ctx, "before"); err == nil {
		t.Error("a stopped cluster answers")
	}
	c.StartAll()
	wantAt(t, c.Member(0), "before")
	if got := c.Revision(t.Context()); got != rev {
		t.Errorf("came back at revision %d, left at %d", got, rev)
	}
}

func TestMajorityComesBackOneByOne(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	put(t, c, "before")
	c.StopAll()
	c.Member(2).Start() // returns although it cannot serve
	c.Member(1).Start()
	put(t, c, "after")
	wantAt(t, c.Member(2), "before", "after")
}

func TestMemberLosesItsDiskAndFetchesAll(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	put(t, c, "before")
	for range 2 {
		m := c.Leader()
		m.LoseDisk()
		put(t, c, "after")
		wantAt(t, m, "before", "after")
	}
	list, err := c.Client().MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Members) != c.Size() {
		t.Errorf("%d members are known, want %d", len(list.Members), c.Size())
	}
}

func TestAllDisksLostIsAnotherCluster(t *testing.T) {
	t.Parallel()
	for _, auth := range []bool{false, true} {
		t.Run(fmt.Sprintf("auth=%t", auth), func(t *testing.T) {
			t.Parallel()
			c := etcdtest.Start(t, etcdtest.Options{Auth: auth})
			id := put(t, c, "before").Header.ClusterId
			c.Member(0).LoseDisk()
			answer, err := c.Client().Get(t.Context(), "before")
			if err != nil {
				t.Fatal(err)
			}
			if answer.Count != 0 || answer.Header.ClusterId == id {
				t.Errorf("%d keys are left in cluster %x, which was %x", answer.Count, answer.Header.ClusterId, id)
			}
		})
	}
}

func TestOldCopyTakesRevisionsBack(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	first := put(t, c, "kept").Header
	restore := c.Backup()
	put(t, c, "lost")
	restore()
	answer, err := c.Client().Get(t.Context(), "", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if answer.Count != 1 || string(answer.Kvs[0].Key) != "kept" {
		t.Errorf("the old copy has %v", answer.Kvs)
	}
	if answer.Header.ClusterId != first.ClusterId || answer.Header.Revision != first.Revision {
		t.Errorf("cluster %x at %d, want %x at %d", answer.Header.ClusterId, answer.Header.Revision, first.ClusterId, first.Revision)
	}
}

func TestLeaderIsMoved(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	for i := range c.Size() {
		c.MoveLeader(c.Member(i))
		if now := c.Leader(); now.Index() != i {
			t.Errorf("member %d leads, want %d", now.Index(), i)
		}
	}
}

func TestMembersRunByThemselves(t *testing.T) {
	t.Parallel()
	specs, err := etcdtest.Specs(t.TempDir(), "http", 3)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	serving, ended := make(chan struct{}), make(chan error)
	var endpoints []string
	for _, s := range specs {
		endpoints = append(endpoints, s.ClientURL)
		go func() { ended <- s.Run(ctx, func() { serving <- struct{}{} }) }()
	}
	for range specs {
		select {
		case <-serving:
		case err := <-ended:
			t.Fatalf("a member ended: %v", err)
		}
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	etcdtest.WaitFor(t, "a write", func(ctx context.Context) error {
		_, err := client.Put(ctx, "k", "v")
		return err
	})
	cancel()
	for range specs {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestIsolatedMemberServesOldReadsOnly(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"leader", "follower"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			c := etcdtest.Start(t, etcdtest.Options{Members: 3})
			put(t, c, "before")
			m := c.Leader()
			if who == "follower" {
				m = c.Member((m.Index() + 1) % 3)
			}
			wantAt(t, m, "before")
			c.IsolatePeers(m.Index())
			etcdtest.WaitFor(t, "a leader among the others", func(context.Context) error {
				if m.IsLeader() || c.Leader() == m {
					return errors.New("the isolated member leads")
				}
				return nil
			})
			put(t, c, "after")

			client := m.NewClient()
			ctx, cancel := context.WithTimeout(t.Context(), short)
			defer cancel()
			if _, err := client.Get(ctx, "before"); err == nil {
				t.Error("a member without peers answers a linearizable read")
			}
			for key, want := range map[string]int64{"before": 1, "after": 0} {
				answer, err := client.Get(t.Context(), key, clientv3.WithSerializable())
				if err != nil {
					t.Fatal(err)
				}
				if answer.Count != want {
					t.Errorf("key %q is there %d times, want %d", key, answer.Count, want)
				}
			}

			c.HealPeers(m.Index())
			wantAt(t, m, "before", "after")
		})
	}
}

func TestIsolationOutlivesARestart(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	m := c.Member((c.Leader().Index() + 1) % 3)
	c.IsolatePeers(m.Index())
	other := c.Member((m.Index() + 1) % 3)
	other.Stop()
	other.Start()
	put(t, c, "after")
	answer, err := m.NewClient().Get(t.Context(), "after", clientv3.WithSerializable())
	if err != nil {
		t.Fatal(err)
	}
	if answer.Count != 0 {
		t.Error("a restarted member writes to an isolated one")
	}
	c.HealPeers(m.Index())
	wantAt(t, m, "after")
}

func TestWatcherLearnsOfCompaction(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{})
	first := put(t, c, "k").Header.Revision
	put(t, c, "k")
	last := put(t, c, "k").Header.Revision
	c.Compact(t.Context(), last)
	c.Defragment(t.Context())
	answer := <-c.Client().Watch(t.Context(), "k", clientv3.WithRev(first))
	if answer.CompactRevision != last {
		t.Errorf("told to start over from %d, want %d: %v", answer.CompactRevision, last, answer.Err())
	}
}

func TestWatchOutlivesARestart(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{TLS: true})
	watching := c.Client().Watch(clientv3.WithRequireLeader(t.Context()), "k", clientv3.WithCreatedNotify())
	<-watching
	c.StopAll()
	c.StartAll()
	put(t, c, "k")
	if answer := <-watching; len(answer.Events) != 1 {
		t.Errorf("a watch across a restart got %d events: %v", len(answer.Events), answer.Err())
	}
}

func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Members: 3, TLS: true, ClientCerts: true})
	put(t, c, "k")
	host, _, err := net.SplitHostPort(strings.TrimPrefix(c.Endpoints()[0], "https://"))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]etcdtest.CertFiles{
		"ours":            c.CA().Issue(t, "someone", net.ParseIP(host)),
		"of a stranger":   etcdtest.NewCA(t).Issue(t, "someone"),
		"none, but trust": {CA: c.CA().File},
	}
	stranger := files["of a stranger"]
	stranger.CA = c.CA().File // the stranger trusts us
	files["of a stranger"] = stranger
	for name, f := range files {
		conf, err := f.Client()
		if err != nil {
			t.Fatal(err)
		}
		client, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), TLS: conf})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(t.Context(), short)
		defer cancel()
		if name == "ours" {
			ctx = t.Context()
		}
		if _, err := client.Get(ctx, "k"); (err == nil) != (name == "ours") {
			t.Errorf("certificate %s: %v", name, err)
		}
	}
}

func TestUserIsKeptToItsPrefix(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Auth: true, TLS: true})
	l := c.AddUser("node", "tw/")
	conf, err := c.ClientCert().Client()
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Username: l.User, Password: l.Password, TLS: conf})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Put(t.Context(), "tw/k", "v"); err != nil {
		t.Error(err)
	}
	if _, err := client.Put(t.Context(), "k", "v"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("wrote outside its prefix: %v", err)
	}
	if _, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Username: l.User, Password: "wrong", TLS: conf}); err == nil {
		t.Error("a wrong password is accepted")
	}
}

func TestClusterLeavesNoGoroutine(t *testing.T) {
	run := func(t *testing.T) {
		c := etcdtest.Start(t, etcdtest.Options{Members: 3})
		relays := c.ClientRelays()
		client := c.NewClient(relays.Endpoints()...)
		watching := client.Watch(t.Context(), "k", clientv3.WithCreatedNotify())
		<-watching
		put(t, c, "k")
		c.Member(1).LoseDisk()
		c.IsolatePeers(1)
		c.Member(0).Stop()
		relays.Stall(etcdtest.Both)
	}
	t.Run("first", run) // packages start goroutines of their own once
	before := runtime.NumGoroutine()
	t.Run("second", run)
	etcdtest.WaitFor(t, "the goroutines of a cluster to end", func(context.Context) error {
		now := runtime.NumGoroutine()
		if now <= before {
			return nil
		}
		stacks := make([]byte, 1<<20)
		return fmt.Errorf("%d goroutines, before %d:\n%s", now, before, stacks[:runtime.Stack(stacks, true)])
	})
}

// put writes a key, again and again while there is no leader. A write that was on
// its way to a leader that died is answered only after seven seconds and more.
func put(t *testing.T, c *etcdtest.Cluster, key string) (answer *clientv3.PutResponse) {
	t.Helper()
	etcdtest.WaitFor(t, "a write of "+key, func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, short)
		defer cancel()
		answer, err = c.Client().Put(ctx, key, "v")
		return err
	})
	return answer
}

// wantAt waits until one member has the keys and answers for the whole cluster.
func wantAt(t *testing.T, m *etcdtest.Member, keys ...string) {
	t.Helper()
	client := m.NewClient()
	for _, key := range keys {
		etcdtest.WaitFor(t, fmt.Sprintf("key %q at member %d", key, m.Index()), func(ctx context.Context) error {
			answer, err := client.Get(ctx, key)
			if err == nil && answer.Count != 1 {
				err = fmt.Errorf("there %d times", answer.Count)
			}
			return err
		})
	}
}
