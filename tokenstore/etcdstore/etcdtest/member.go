package etcdtest

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// Member is one member of a cluster.
type Member struct {
	c     *Cluster
	index int
	spec  Spec // for the next start

	mu     sync.Mutex        // guards what follows
	server *server           // nil while it is stopped
	id     types.ID          // of the last start
	cut    map[types.ID]bool // the peers that it is cut off from, since the last start
}

// Index returns which member it is: [Cluster.Member] of it is the member.
func (m *Member) Index() int { return m.index }

// Endpoint returns its URL for clients.
func (m *Member) Endpoint() string { return m.spec.ClientURL }

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
	if err := m.run(); err != nil {
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
		m.c.t.Fatalf("etcd member %s is isolated and cannot fetch its data: heal it first", m.spec.Name)
	}
	m.stop()
	if err := os.RemoveAll(m.spec.Dir); err != nil {
		m.c.t.Fatal(err)
	}
	old := m.identity()
	WaitFor(m.c.t, "the removal of "+m.spec.Name, func(ctx context.Context) error {
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
	WaitFor(m.c.t, "the addition of "+m.spec.Name, func(ctx context.Context) error {
		list, err := m.c.client.MemberList(ctx)
		if err != nil {
			return err
		}
		for _, known := range list.Members {
			if len(known.PeerURLs) == 1 && known.PeerURLs[0] == m.spec.PeerURL {
				return nil
			}
		}
		_, err = m.c.client.MemberAdd(ctx, []string{m.spec.PeerURL})
		return errors.Join(err, errors.New("not yet seen to be added"))
	})
	if err := m.run(); err != nil {
		m.c.t.Fatal(err)
	}
	m.c.waitReady()
}

// run starts the member. From then on it belongs to a cluster that has run before.
func (m *Member) run() error {
	conf, err := m.spec.embed(m.c.zap.Named(m.spec.Name))
	if err != nil {
		return err
	}
	s, err := start(conf)
	if err != nil {
		return err
	}
	m.spec.Existing = true
	m.mu.Lock()
	m.server, m.id, m.cut = s, s.etcd.Server.MemberID(), make(map[types.ID]bool)
	m.mu.Unlock()
	m.c.cutPeers()
	return nil
}

func (m *Member) stop() {
	m.mu.Lock()
	s := m.server
	m.server = nil
	for peer, cut := range m.cut {
		if cut && s != nil {
			// etcd panics where it stops what a cut has stopped already, which happens
			// to what a member has used to join.
			s.etcd.Server.MendPeer(peer)
		}
	}
	m.mu.Unlock()
	if s != nil {
		s.stop()
	}
}

func (m *Member) waitReady() {
	m.c.t.Helper()
	e := m.running()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		m.c.t.Fatalf("etcd member %s failed: %v", m.spec.Name, err)
	case <-late.C:
		m.c.t.Fatalf("waited %s for etcd member %s to serve", patience, m.spec.Name)
	}
}

// cutPeer cuts a running member off from a peer, or mends that. Each is done once:
// etcd breaks where it pauses what is paused, or resumes what is not.
func (m *Member) cutPeer(peer types.ID, cut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.server == nil || m.cut[peer] == cut:
		return
	case cut:
		m.server.etcd.Server.CutPeer(peer)
	default:
		m.server.etcd.Server.MendPeer(peer)
	}
	m.cut[peer] = cut
}

// running returns the member's etcd, and nil while it is stopped.
func (m *Member) running() *embed.Etcd {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.server == nil {
		return nil
	}
	return m.server.etcd
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
