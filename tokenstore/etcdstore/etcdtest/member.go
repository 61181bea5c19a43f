package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
)

// Member is one member of a cluster.
type Member struct {
	c         *Cluster
	index     int
	name      string
	dir       string
	clientURL url.URL
	webURL    url.URL
	peerURL   url.URL

	mu      sync.Mutex  // guards what follows
	etcd    *embed.Etcd // nil while it is stopped
	servers []*grpc.Server
	id      types.ID          // of the last start
	cut     map[types.ID]bool // the peers that it is cut off from, since the last start
}

// Index returns which member it is: [Cluster.Member] of it is the member.
func (m *Member) Index() int { return m.index }

// Endpoint returns its URL for clients.
func (m *Member) Endpoint() string { return m.clientURL.String() }

// Running tells whether it is started; it may be unable to serve all the same.
func (m *Member) Running() bool { return m.running() != nil }

// IsLeader tells whether it takes itself for the leader. One that is cut off does so
// for up to an election timeout beside the new one.
func (m *Member) IsLeader() bool {
	id, ok := m.follows()
	return ok && id == m.identity()
}

// NewClient returns a client of this member alone, closed at the end of the test.
func (m *Member) NewClient() *clientv3.Client {
	m.c.t.Helper()
	return m.c.NewClient(m.Endpoint())
}

// Stop ends a member as near to a kill as there is inside one process: connections
// are closed at once, whatever is under way, and the leadership is not handed over.
// It does nothing if the member is stopped.
func (m *Member) Stop() { m.stop() }

// Start starts a stopped member with its data. It returns when the member serves or,
// if too few of them run for that, at once: then [Cluster.StartAll] waits, or the
// Start of the last one that is needed.
func (m *Member) Start() {
	m.c.t.Helper()
	if m.Running() {
		return
	}
	if err := m.run(true); err != nil {
		m.c.t.Fatal(err)
	}
	m.c.waitReady()
}

// LoseDisk replaces a member that runs or not by one with an empty disk: it is
// stopped, taken out of the cluster, added anew at the same addresses, and fetches
// its data from the others, which must be able to write. Where there is only one
// member its data is gone with it: see [Cluster.LoseAllDisks].
func (m *Member) LoseDisk() {
	m.c.t.Helper()
	if len(m.c.members) == 1 {
		m.c.LoseAllDisks()
		return
	}
	if m.c.isolated[m.index] {
		m.c.t.Fatalf("etcd member %s is isolated and cannot fetch its data: heal it first", m.name)
	}
	m.stop()
	if err := os.RemoveAll(m.dir); err != nil {
		m.c.t.Fatal(err)
	}
	old := m.identity()
	WaitFor(m.c.t, "the removal of "+m.name, func(ctx context.Context) error {
		list, err := m.c.client.MemberList(ctx)
		if err != nil {
			return err
		}
		for _, known := range list.Members {
			if known.ID == old {
				_, err := m.c.client.MemberRemove(ctx, old)
				return errors.Join(err, errors.New("not yet seen to be removed"))
			}
		}
		return nil
	})
	WaitFor(m.c.t, "the addition of "+m.name, func(ctx context.Context) error {
		list, err := m.c.client.MemberList(ctx)
		if err != nil {
			return err
		}
		for _, known := range list.Members {
			if len(known.PeerURLs) == 1 && known.PeerURLs[0] == m.peerURL.String() {
				return nil
			}
		}
		_, err = m.c.client.MemberAdd(ctx, []string{m.peerURL.String()})
		return errors.Join(err, errors.New("not yet seen to be added"))
	})
	if err := m.run(true); err != nil {
		m.c.t.Fatal(err)
	}
	m.c.waitReady()
}

// run starts the member; existing is for a cluster that has run before.
func (m *Member) run(existing bool) error {
	spec := Spec{
		Name:      m.name,
		Dir:       m.dir,
		ClientURL: m.clientURL.String(),
		PeerURL:   m.peerURL.String(),
		Peers:     m.c.peers(),
		Token:     m.c.token,
		Existing:  existing,
		Limits:    m.c.o.Limits,
		Cert:      m.c.cert,
	}
	conf, err := spec.embed(m.c.zap.Named(m.name))
	if err != nil {
		return err
	}
	conf.ServiceRegister = m.serving
	// Health checks and the like have a listener of their own. Else, with TLS, a server
	// of net/http stands before that of gRPC and, when the latter stops, ends its calls
	// with answers in good order where a client of a killed member sees a reset.
	conf.ListenClientHttpUrls = []url.URL{m.webURL}
	e, err := embed.StartEtcd(conf)
	if err != nil {
		return fmt.Errorf("start etcd member %s: %w", m.name, err)
	}
	m.mu.Lock()
	m.etcd, m.id, m.cut = e, e.Server.MemberID(), make(map[types.ID]bool)
	m.mu.Unlock()
	m.c.cutPeers()
	return nil
}

// serving notes a server that etcd has made, from one of its goroutines; it is the
// only way to end one without waiting for what it is doing.
func (m *Member) serving(s *grpc.Server) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.servers = append(m.servers, s)
}

func (m *Member) stop() {
	m.mu.Lock()
	for peer, cut := range m.cut {
		if cut && m.etcd != nil {
			// etcd panics where it stops what a cut has stopped already, which happens
			// to what a member has used to join.
			m.etcd.Server.MendPeer(peer)
		}
	}
	e, servers := m.etcd, m.servers
	m.etcd, m.servers = nil, nil
	m.mu.Unlock()
	if e == nil {
		return
	}
	for _, s := range servers {
		s.Stop()
	}
	e.Server.HardStop() // Close alone would hand the leadership over
	e.Close()
}

func (m *Member) waitReady() {
	m.c.t.Helper()
	e := m.running()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		m.c.t.Fatalf("etcd member %s failed: %v", m.name, err)
	case <-late.C:
		m.c.t.Fatalf("waited %s for etcd member %s to serve", patience, m.name)
	}
}

// cutPeer cuts a running member off from a peer, or mends that. Each is done once:
// etcd breaks where it pauses what is paused, or resumes what is not.
func (m *Member) cutPeer(peer types.ID, cut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.etcd == nil || m.cut[peer] == cut:
		return
	case cut:
		m.etcd.Server.CutPeer(peer)
	default:
		m.etcd.Server.MendPeer(peer)
	}
	m.cut[peer] = cut
}

// running returns the member's server, and nil while it is stopped.
func (m *Member) running() *embed.Etcd {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.etcd
}

// identity returns the member's id, also while it is stopped.
func (m *Member) identity() uint64 { return uint64(m.peerID()) }

func (m *Member) peerID() types.ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.id
}

// follows returns the id of the leader that a running member knows.
func (m *Member) follows() (uint64, bool) {
	e := m.running()
	if e == nil {
		return 0, false
	}
	leader := e.Server.Lead()
	return leader, leader != 0
}
