// Package etcdtest runs real etcd members inside a test, and does to them, and to
// the network before them, what befalls them in the field: a member or its leader
// dies, a disk is lost, a member loses its peers, a client loses the members or
// their answers.
//
// All of it stays on the loopback interface and ends with the test. Methods that
// cannot do their work fail the test, so they are called on its own goroutine.
package etcdtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Options say how a cluster is started; nobody changes them later.
type Options struct {
	Members     int // 1 or 3; 0 means 1
	Limits      Limits
	TLS         bool // clients come by https
	ClientCerts bool // they show a certificate of the cluster's CA as well; needs TLS
	Auth        bool // etcd checks users and roles; the cluster's own client may do everything
}

// Login is a user of etcd and its password. The zero Login is nobody.
type Login struct {
	User, Password string
}

// Cluster is a number of members in this process.
type Cluster struct {
	t        testing.TB
	o        Options
	log      tail
	zap      *zap.Logger
	ca       *CA
	own      CertFiles // of the client below
	login    Login
	members  []*Member
	isolated []bool // by member; only the test's goroutine uses it
	client   *clientv3.Client
}

// Start starts a cluster and returns when it serves. It ends with the test, which
// shows what the members logged if it fails.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Members == 0 {
		o.Members = 1
	}
	if o.Members != 1 && o.Members != 3 {
		t.Fatalf("a cluster has 1 or 3 members, not %d", o.Members)
	}
	if o.ClientCerts && !o.TLS {
		t.Fatal("client certificates need TLS")
	}
	c := &Cluster{t: t, o: o, isolated: make([]bool, o.Members)}
	c.zap = c.log.logger()
	if o.TLS {
		c.ca = NewCA(t)
		c.own = c.ca.Issue(t, "root")
	}
	for i := range o.Members {
		c.members = append(c.members, &Member{c: c, index: i})
	}
	dir := t.TempDir()
	t.Cleanup(c.close)
	c.found(dir)
	c.client = c.NewClient(c.Endpoints()...)
	if o.Auth {
		c.enableAuth()
	}
	return c
}

// Endpoints returns the members' URLs for clients. They stay the same.
func (c *Cluster) Endpoints() []string {
	var list []string
	for _, m := range c.members {
		list = append(list, m.spec.ClientURL)
	}
	return list
}

// Client returns a client of all members that no relay stands before, for what a
// test arranges and asserts. With Auth it may do everything.
func (c *Cluster) Client() *clientv3.Client { return c.client }

// NewClient returns a client like [Cluster.Client] for other endpoints, closed at
// the end of the test.
func (c *Cluster) NewClient(endpoints ...string) *clientv3.Client {
	c.t.Helper()
	conf := clientv3.Config{
		Endpoints:   endpoints,
		Username:    c.login.User,
		Password:    c.login.Password,
		DialTimeout: dialTimeout,
		Logger:      zap.NewNop(),
	}
	if c.o.TLS {
		var err error
		if conf.TLS, err = c.own.Client(); err != nil {
			c.t.Fatal(err)
		}
	}
	var client *clientv3.Client
	WaitFor(c.t, fmt.Sprintf("a client of etcd at %s", endpoints), func(context.Context) (err error) { // with Auth it logs in
		client, err = clientv3.New(conf)
		return err
	})
	c.t.Cleanup(func() { client.Close() })
	return client
}

// Size returns the number of members, whether they run or not.
func (c *Cluster) Size() int { return len(c.members) }

// Member returns the i-th member; the first is 0.
func (c *Cluster) Member(i int) *Member { return c.members[i] }

// CA returns the authority that the members' certificates are of, and nil without
// TLS.
func (c *Cluster) CA() *CA { return c.ca }

// ClientCert returns the files that clients use, and none without TLS. Their user is
// root, should authentication go by certificates.
func (c *Cluster) ClientCert() CertFiles { return c.own }

// AddUser adds a user who may read and write what begins with prefix, and nothing
// else.
func (c *Cluster) AddUser(name, prefix string) Login {
	c.t.Helper()
	l := Login{User: name, Password: rand.Text()}
	ctx := c.t.Context()
	_, errRole := c.client.RoleAdd(ctx, name)
	_, errGrant := c.client.RoleGrantPermission(ctx, name, prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite))
	_, errUser := c.client.UserAdd(ctx, name, l.Password)
	_, errMay := c.client.UserGrantRole(ctx, name, name)
	if err := errors.Join(errRole, errGrant, errUser, errMay); err != nil {
		c.t.Fatalf("add user %s to etcd: %v", name, err)
	}
	return l
}

// Leader waits until most members agree on a leader that runs, and returns it.
func (c *Cluster) Leader() *Member {
	c.t.Helper()
	var leader *Member
	WaitFor(c.t, "a leader of etcd", func(context.Context) error {
		votes := make(map[uint64]int)
		for _, m := range c.members {
			if id, ok := m.follows(); ok {
				votes[id]++
			}
		}
		for _, m := range c.members {
			if m.IsLeader() && votes[m.identity()] > len(c.members)/2 {
				leader = m
				return nil
			}
		}
		return fmt.Errorf("members' votes by id: %v", votes)
	})
	return leader
}

// MoveLeader makes a member the leader, and returns when most members follow it.
func (c *Cluster) MoveLeader(to *Member) {
	c.t.Helper()
	WaitFor(c.t, "the leadership of "+to.spec.Name, func(ctx context.Context) error {
		leader := c.Leader()
		if leader == to {
			return nil
		}
		e := leader.running()
		if e == nil {
			return errors.New("the leader has stopped")
		}
		if err := e.Server.MoveLeader(ctx, leader.identity(), to.identity()); err != nil {
			return err
		}
		return errors.New("moved, but not yet followed")
	})
}

// StopAll stops all members that run, as [Member.Stop] does.
func (c *Cluster) StopAll() {
	c.t.Helper()
	var stopping sync.WaitGroup
	for _, m := range c.members {
		stopping.Go(m.stop)
	}
	stopping.Wait()
}

// StartAll starts all members that are stopped, with their data, and returns when
// they serve.
func (c *Cluster) StartAll() {
	c.t.Helper()
	for _, m := range c.members {
		if m.running() != nil {
			continue
		}
		if err := m.run(); err != nil {
			c.t.Fatal(err)
		}
	}
	c.waitReady()
}

// LoseAllDisks stops all members and starts an empty cluster in their place, at the
// same addresses, with another cluster id and revisions from 1 again.
func (c *Cluster) LoseAllDisks() {
	c.t.Helper()
	c.StopAll()
	token := rand.Text()
	for _, m := range c.members {
		m.spec.Token, m.spec.Existing = token, false
		if err := os.RemoveAll(m.spec.Dir); err != nil {
			c.t.Fatal(err)
		}
		if err := m.run(); err != nil {
			c.t.Fatal(err)
		}
	}
	c.waitReady()
	if c.o.Auth {
		c.client = c.anonymous()
		c.enableAuth()
	}
}

// Backup stops all members, copies their data, and starts them again. It returns
// what puts the copy in their place, in the same way: revisions go back, and those
// that come after mean something else, while the cluster's id stays. That is what
// an operator does who copies disks.
func (c *Cluster) Backup() (restore func()) {
	c.t.Helper()
	copies := c.t.TempDir()
	c.StopAll()
	for _, m := range c.members {
		if err := os.CopyFS(filepath.Join(copies, m.spec.Name), os.DirFS(m.spec.Dir)); err != nil {
			c.t.Fatal(err)
		}
	}
	c.StartAll()
	return func() {
		c.t.Helper()
		c.StopAll()
		for _, m := range c.members {
			if err := os.RemoveAll(m.spec.Dir); err != nil {
				c.t.Fatal(err)
			}
			if err := os.CopyFS(m.spec.Dir, os.DirFS(filepath.Join(copies, m.spec.Name))); err != nil {
				c.t.Fatal(err)
			}
		}
		c.StartAll()
	}
}

// IsolatePeers cuts a member off from the others, in both directions, while clients
// still reach it. What the members send one another is lost, as by a firewall that
// drops packets. If it led, the others elect another leader. What etcd sends on ways of
// its own, renewals of leases and whole snapshots, passes until the members miss one
// another, which takes an election timeout.
func (c *Cluster) IsolatePeers(i int) {
	c.isolated[i] = true
	c.cutPeers()
}

// HealPeers ends [Cluster.IsolatePeers].
func (c *Cluster) HealPeers(i int) {
	c.isolated[i] = false
	c.cutPeers()
}

// Compact forgets all revisions before rev, and returns when they are gone from
// the database.
func (c *Cluster) Compact(ctx context.Context, rev int64) {
	c.t.Helper()
	if _, err := c.client.Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil {
		c.t.Fatalf("compact etcd at %d: %v", rev, err)
	}
}

// Defragment gives back the space of what was compacted, member after member. A
// member answers nothing meanwhile.
func (c *Cluster) Defragment(ctx context.Context) {
	c.t.Helper()
	for _, e := range c.Endpoints() {
		if _, err := c.client.Defragment(ctx, e); err != nil {
			c.t.Fatalf("defragment etcd at %s: %v", e, err)
		}
	}
}

// Revision returns the cluster's revision.
func (c *Cluster) Revision(ctx context.Context) int64 {
	c.t.Helper()
	answer, err := c.client.Get(ctx, "no such key")
	if err != nil {
		c.t.Fatalf("ask etcd for its revision: %v", err)
	}
	return answer.Header.Revision
}

// found starts all members of a new cluster at ports that are free. Should another
// take one between the look and the start, it looks for others.
func (c *Cluster) found(dir string) {
	c.t.Helper()
	const tries = 5
	for try := 1; ; try++ {
		err := c.tryFound(filepath.Join(dir, strconv.Itoa(try)))
		if err == nil {
			break
		}
		if try == tries || !errors.Is(err, syscall.EADDRINUSE) {
			c.t.Fatal(err)
		}
		c.StopAll()
	}
	c.waitReady()
}

func (c *Cluster) tryFound(dir string) error {
	scheme := "http"
	if c.o.TLS {
		scheme = "https"
	}
	specs, err := Specs(dir, scheme, len(c.members))
	if err != nil {
		return err
	}
	var cert CertFiles
	if c.o.TLS {
		cert = c.ca.Issue(c.t, "members", specs[0].host())
	}
	if !c.o.ClientCerts {
		cert.CA = ""
	}
	for i, m := range c.members {
		m.spec = specs[i]
		m.spec.Limits, m.spec.Cert = c.o.Limits, cert
		if err := m.run(); err != nil {
			return err
		}
	}
	return nil
}

// waitReady waits for all members that run and could have a leader.
func (c *Cluster) waitReady() {
	c.t.Helper()
	var candidates []*Member
	for i, m := range c.members {
		if m.running() != nil && !c.isolated[i] {
			candidates = append(candidates, m)
		}
	}
	if len(candidates) <= len(c.members)/2 {
		return
	}
	for _, m := range candidates {
		m.waitReady()
	}
}

// cutPeers brings what the members pass on in line with isolated. What is cut is
// a matter of each running member, so it is done again when one starts.
func (c *Cluster) cutPeers() {
	for i, m := range c.members {
		for j, other := range c.members {
			if i != j {
				m.cutPeer(other.peerID(), c.isolated[i] || c.isolated[j])
			}
		}
	}
}

func (c *Cluster) enableAuth() {
	c.t.Helper()
	l := Login{User: "root", Password: rand.Text()}
	ctx := c.t.Context()
	_, errUser := c.client.UserAdd(ctx, l.User, l.Password)
	_, errRole := c.client.RoleAdd(ctx, l.User)
	_, errGrant := c.client.UserGrantRole(ctx, l.User, l.User)
	_, errEnable := c.client.AuthEnable(ctx)
	if err := errors.Join(errUser, errRole, errGrant, errEnable); err != nil {
		c.t.Fatalf("enable authentication in etcd: %v", err)
	}
	c.login = l
	c.client = c.NewClient(c.Endpoints()...)
}

func (c *Cluster) anonymous() *clientv3.Client {
	c.t.Helper()
	c.login = Login{}
	return c.NewClient(c.Endpoints()...)
}

func (c *Cluster) close() {
	c.StopAll()
	if c.t.Failed() {
		if _, err := c.t.Output().Write(c.log.text()); err != nil {
			c.t.Log(err)
		}
	}
}
