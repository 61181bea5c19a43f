package etcdstore_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
	"tokenward/tokenstore/storetest"
)

// TestCompactionWhileANodeIsAwayLosesNothing has etcd forget what came between while a
// node is cut off.
func TestCompactionWhileANodeIsAwayLosesNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 2, nil)
	swept, kept := b.mustCreate(0), b.mustCreate(0)
	if err := b.nodes[0].WaitAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.relays[1].Cut()
	b.mustEdit(0, kept.ID, revoke)
	b.mustCreate(0)
	if err := b.nodes[0].Change(t.Context(), func(tx tokenstore.Tx) error {
		tx.Emit([]byte("sweep"))
		return tx.Sweep(swept.ID)
	}); err != nil {
		t.Fatal(err)
	}
	delete(b.book.known, swept.ID)
	b.etcd.Compact(t.Context(), b.etcd.Revision(t.Context()))
	b.relays[1].Heal()
	b.healed()
	if _, err := b.nodes[1].ByID(t.Context(), swept.ID); !errors.Is(err, tokenstore.ErrNotFound) {
		t.Errorf("a token that was swept meanwhile: %v", err)
	}
	if loads := b.nodes[1].Stats().Loads; loads != 2 {
		t.Errorf("everything was read %d times, want once at the start and once after the compaction", loads)
	}
	// Where nothing of what is followed changed, nothing is read anew. The node has to
	// have heard of everything before it is cut off, also of the last call of WaitAll,
	// which that does not wait for.
	etcdtest.WaitFor(t, "the node to have heard of everything", b.nodes[1].Beat)
	b.relays[1].Cut()
	for range 3 {
		if _, err := b.etcd.Client().Put(t.Context(), b.prefix+"usage/0000000000000001", "x"); err != nil {
			t.Fatal(err)
		}
	}
	b.etcd.Compact(t.Context(), b.etcd.Revision(t.Context()))
	now := b.etcd.Revision(t.Context())
	b.relays[1].Heal()
	etcdtest.WaitFor(t, "the node to be in step again", func(context.Context) error {
		if r := b.nodes[1].Stats().Revision; r < now {
			return fmt.Errorf("at revision %d of %d", r, now)
		}
		return nil
	})
	b.healed()
	if loads := b.nodes[1].Stats().Loads; loads != 2 {
		t.Errorf("everything was read %d times although no token changed", loads)
	}
}

// TestSkewedAndSlowNodesAgree has nodes whose clocks are an hour apart, one of them far
// away.
func TestSkewedAndSlowNodesAgree(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 3, func(i int, o *nodeOptions) {
		skew := time.Duration(i-1) * time.Hour
		o.Now = func() time.Time { return time.Now().Add(skew) }
	})
	b.relays[2].Delay(50 * time.Millisecond)
	tok := b.mustCreate(0)
	for i := range b.nodes {
		b.mustEdit(i, tok.ID, rename)
	}
	b.mustEdit(2, tok.ID, revoke)
	b.healed()
	for i, n := range b.nodes {
		if got, err := n.ByID(t.Context(), tok.ID); err != nil || got.State != tokenstore.StateRevoked {
			t.Errorf("node %d: %v, %+v", i, err, got)
		}
	}
}

// TestNodeStartsFromItsCopyWithoutEtcd starts a node while etcd is away, with clocks
// that went on as they should and with others.
func TestNodeStartsFromItsCopyWithoutEtcd(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 1, nil)
	tok := b.mustCreate(0)
	b.nodes[0].stop()
	b.etcd.StopAll()
	for _, test := range []struct {
		name   string
		skew   time.Duration
		usable bool
	}{
		{"soon after", time.Minute, true},
		{"after too long", 16 * time.Minute, false},
		{"by a clock that went back", -time.Hour, false},
	} {
		o := b.asked[0]
		o.Now = func() time.Time { return time.Now().Add(test.skew) }
		client, err := etcdstore.Dial(o.Options)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Describe(t.Context()); !errors.Is(err, etcdstore.ErrUnreachable) {
			t.Errorf("etcd is away: %v", err)
		}
		replica, err := boltstore.Open(boltstore.Options{Path: o.path, ReplicaOf: b.nodes[0].ID()})
		if err != nil {
			t.Fatal(err)
		}
		known, err := etcdstore.ParseName(replica.Followed().Store)
		if err != nil {
			t.Fatal(err)
		}
		s := client.Open(known, replica)
		s.Start(etcdstore.Observer{})
		if err := s.Usable(); (err == nil) != test.usable {
			t.Errorf("%s: usable: %v, want %v", test.name, err, test.usable)
		}
		if _, err := s.ByID(t.Context(), tok.ID); err != nil {
			t.Errorf("%s: the copy lacks a token: %v", test.name, err)
		}
		if test.usable {
			b.etcd.StartAll()
			etcdtest.WaitFor(t, "the node to write again", func(ctx context.Context) error {
				return s.Change(ctx, func(tx tokenstore.Tx) error { tx.Emit([]byte("again")); return nil })
			})
			b.etcd.StopAll()
		}
		s.Close()
		replica.Close()
		client.Close()
	}
}

// TestCachedTokenNeverComesBackOnDemand looks up secrets on a node without a copy while
// another one revokes, the watch breaks and etcd forgets.
func TestCachedTokenNeverComesBackOnDemand(t *testing.T) {
	t.Parallel()
	rounds := 6
	if storetest.Soak() {
		rounds = 400
	}
	var cache *tokenstore.Cache
	var ready sync.WaitGroup
	ready.Add(1)
	b := newBed(t, 1, 2, func(i int, o *nodeOptions) {
		if i == 0 {
			o.path = ""
			o.changed = func(c tokenstore.Change) { ready.Wait(); cache.Changed(c) }
			o.forget = func() {
				ready.Wait()
				cache.Forget()
			}
		}
	}, func(b *bed) {
		var err error
		if cache, err = tokenstore.NewCache(b.nodes[0], nil, tokenstore.NewFormats("tw"), 1000); err != nil {
			t.Fatal(err)
		}
		ready.Done()
	})
	r := rand.New(rand.NewPCG(1, 3)) //nolint:gosec // repeatable
	for round := range rounds {
		secret := tokenstore.NewSecret("tw")
		digest, _ := (*tokenstore.Peppers)(nil).Digest(secret.Reveal())
		var id tokenstore.ID
		if err := b.nodes[1].Change(t.Context(), func(tx tokenstore.Tx) (err error) {
			if id, err = tx.NewID(); err != nil {
				return err
			}
			tok := storetest.Sample(id, 1, 1)
			tok.Secrets[0].Digest = digest
			tx.Emit(fmt.Appendf(nil, "issue %d", id))
			return tx.Put(tok)
		}); err != nil {
			t.Fatal(err)
		}
		// It is looked up all the while.
		stop := make(chan struct{})
		var lookers sync.WaitGroup
		for range 3 {
			lookers.Go(func() {
				dead := false
				for {
					select {
					case <-stop:
						return
					default:
					}
					m, err := cache.Find(t.Context(), []byte(secret.Reveal()))
					if err != nil {
						continue // etcd was not reached
					}
					if m.Token.State == tokenstore.StateRevoked {
						dead = true
					} else if dead {
						t.Errorf("round %d: a token that was seen revoked is accepted again", round)
						return
					}
				}
			})
		}
		fault := r.IntN(4)
		switch fault {
		case 0:
			b.relays[0].Cut()
		case 1:
			b.relays[0].Stall(etcdtest.Answers)
		case 2:
			b.relays[0].Delay(20 * time.Millisecond)
		}
		b.mustEdit(1, id, revoke)
		if fault == 0 && r.IntN(2) == 0 {
			b.etcd.Compact(t.Context(), b.etcd.Revision(t.Context()))
		}
		b.relays[0].Heal()
		etcdtest.WaitFor(t, "the revocation to be known", func(ctx context.Context) error {
			m, err := cache.Find(ctx, []byte(secret.Reveal()))
			if err == nil && m.Token.State != tokenstore.StateRevoked {
				err = errors.New("the token is accepted")
			}
			return err
		})
		close(stop)
		lookers.Wait()
		delete(b.book.known, id)
	}
	b.healed()
}

// TestManyNodesStartAtOnce is a storm of starts after an outage of everything.
func TestManyNodesStartAtOnce(t *testing.T) {
	t.Parallel()
	nodes := 15
	if storetest.Soak() {
		nodes = 100
	}
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	prefix := newPrefix()
	first := startNode(t, mirrored(t, prefix, c.Endpoints()))
	for range 20 {
		if err := first.Change(t.Context(), func(tx tokenstore.Tx) error {
			id, err := tx.NewID()
			if err != nil {
				return err
			}
			tx.Emit([]byte("create"))
			return tx.Put(storetest.Sample(id, 1, 1))
		}); err != nil {
			t.Fatal(err)
		}
	}
	before, began := c.Revision(t.Context()), time.Now()
	all := make([]*node, nodes)
	for i := range all {
		o := onDemand(t, prefix, c.Endpoints())
		if i%5 == 0 {
			o = mirrored(t, prefix, c.Endpoints())
		}
		o.Node = fmt.Sprintf("s%d", i)
		all[i] = beginNode(t, o)
	}
	for _, n := range all {
		n.waitReady(t)
	}
	took := time.Since(began)
	if writes := c.Revision(t.Context()) - before; writes > int64(2*nodes) {
		t.Errorf("%d nodes started with %d writes, want at most a record before and one after all was read", nodes, writes)
	}
	ctx, cancel := context.WithTimeout(t.Context(), ready)
	defer cancel()
	if err := first.WaitAll(ctx); err != nil {
		t.Error(err)
	}
	if n, _, err := first.Members(ctx, ready); err != nil || len(n) != nodes+1 {
		t.Errorf("%d nodes are known: %v", len(n), err)
	}
	t.Logf("%d nodes were in step after %s", nodes, took.Round(time.Millisecond))
}

// TestIdleNodesWriteNothing lets nodes renew and prove what they do every few seconds.
func TestIdleNodesWriteNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 3, nil)
	b.healed()
	before := b.etcd.Revision(t.Context())
	for range 10 {
		for _, n := range b.nodes {
			if err := n.Beat(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if storetest.Soak() {
		minute, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		<-minute.Done()
	}
	if after := b.etcd.Revision(t.Context()); after > before+int64(len(b.nodes)) {
		t.Errorf("idle nodes made %d writes", after-before)
	}
}

// TestNodeComesByTLSAndPassword has a node show a certificate and log in as a user who
// may do nothing beyond the prefix.
func TestNodeComesByTLSAndPassword(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{TLS: true, ClientCerts: true, Auth: true})
	o := mirrored(t, newPrefix(), c.Endpoints())
	conf, err := c.ClientCert().Client()
	if err != nil {
		t.Fatal(err)
	}
	login := c.AddUser("tokenward", o.Prefix)
	o.TLS, o.Username, o.Password = conf, login.User, login.Password
	n := startNode(t, o)
	if err := n.Change(t.Context(), func(tx tokenstore.Tx) error { tx.Emit([]byte("by TLS")); return nil }); err != nil {
		t.Error(err)
	}
	if err := n.WaitAll(t.Context()); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*etcdstore.Options){
		"without a certificate": func(o *etcdstore.Options) {
			o.TLS = conf.Clone()
			o.TLS.Certificates = nil
			o.TLS.GetClientCertificate = nil
		},
		"without TLS":           func(o *etcdstore.Options) { o.TLS = nil },
		"with another password": func(o *etcdstore.Options) { o.Password = "guessed" },
		"beyond the prefix":     func(o *etcdstore.Options) { o.Prefix = "/another/" },
	} {
		other := o.Options
		change(&other)
		client, err := etcdstore.Dial(other)
		if err == nil {
			_, err = client.Describe(t.Context())
			client.Close()
		}
		if err == nil || errors.Is(err, etcdstore.ErrNotInitialised) {
			t.Errorf("%s: etcd was read: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), o.Password) {
			t.Errorf("%s: the error tells the password", name)
		}
	}
}

// oldMember says that it is an etcd of a version.
type oldMember struct {
	pb.UnimplementedMaintenanceServer
	version string
}

func (m *oldMember) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return &pb.StatusResponse{Header: &pb.ResponseHeader{}, Version: m.version}, nil
}

// TestEtcdThatIsTooOldIsRefusedByName asks a member for its version. Only that is
// answered: nothing of such an etcd may be used.
func TestEtcdThatIsTooOldIsRefusedByName(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterMaintenanceServer(server, &oldMember{version: "3.5.11"})
	go server.Serve(l)
	t.Cleanup(server.Stop)
	client, err := etcdstore.Dial(onDemand(t, newPrefix(), []string{"http://" + l.Addr().String()}).Options)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = client.Describe(t.Context())
	for _, want := range []string{"3.5.11", "3.5.12", l.Addr().String()} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the refusal does not name %s: %v", want, err)
		}
	}
	if err := client.Init(t.Context()); err == nil {
		t.Error("a store was made in an etcd that is too old")
	}
}

// TestTokenIsResetOnANodeWithLowerIDs: nodes give out ids in blocks, so what takes a
// token's place may have a lower one, and its lineage begins above itself.
func TestTokenIsResetOnANodeWithLowerIDs(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 2, nil)
	low := b.mustCreate(0)
	old := b.mustCreate(1)
	key := binary.BigEndian.AppendUint64([]byte{0}, uint64(old.ID))
	if err := b.nodes[1].MoveCounters(t.Context(), [][]byte{key}, func(int, []byte) ([]byte, error) { return []byte("used"), nil }); err != nil {
		t.Fatal(err)
	}
	var next *tokenstore.Token
	err := b.nodes[0].Change(t.Context(), func(tx tokenstore.Tx) error {
		id, err := tx.NewID()
		if err != nil {
			return err
		}
		was, err := tx.Token(old.ID)
		if err != nil {
			return err
		}
		next = storetest.Sample(id, was.Account, was.Owner)
		next.Lineage, was.ReplacedBy = was.MeasuredAs(), id
		tx.Emit([]byte("reset"))
		return errors.Join(tx.Put(next), tx.Put(was))
	})
	if err != nil {
		t.Fatal(err)
	}
	if low.ID > next.ID || next.ID > old.ID {
		t.Fatalf("token %d takes the place of token %d, beside token %d: the test needs it to be lower", next.ID, old.ID, low.ID)
	}
	for i, n := range b.nodes {
		etcdtest.WaitFor(t, "the change to be known", func(ctx context.Context) error {
			_, err := n.ByID(ctx, next.ID)
			return err
		})
		if got, err := n.ByID(t.Context(), next.ID); err != nil || got.MeasuredAs() != old.ID {
			t.Errorf("on node %d it is %+v, %v", i, got, err)
		}
		if got, err := n.Counter(key); err != nil || string(got) != "used" {
			t.Errorf("node %d knows of %q, %v", i, got, err)
		}
	}
}

// TestLargeChangeRestsOnWhatItRead makes a change of more keys than are compared one by
// one, while another node changes one of the tokens that it read.
func TestLargeChangeRestsOnWhatItRead(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, 2, nil)
	shared := b.mustCreate(0)
	edit := func(n *node, more string) error {
		return n.Change(t.Context(), func(tx tokenstore.Tx) error {
			tok, err := tx.Token(shared.ID)
			if err != nil {
				return err
			}
			tok.Name += more
			tx.Emit([]byte("edit"))
			return tx.Put(tok)
		})
	}
	tries := 0
	err := b.nodes[0].Change(t.Context(), func(tx tokenstore.Tx) error {
		tok, err := tx.Token(shared.ID)
		if err != nil {
			return err
		}
		for range 80 {
			id, err := tx.NewID()
			if err != nil {
				return err
			}
			if err := tx.Put(storetest.Sample(id, 1, 1)); err != nil {
				return err
			}
		}
		if tries++; tries <= 3 { // the first finds that it is large
			if err := edit(b.nodes[1], " and"); err != nil {
				return err
			}
		}
		tok.Name += " more"
		tx.Emit([]byte("large"))
		return tx.Put(tok)
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.nodes[0].ByID(t.Context(), shared.ID); err != nil || got.Name != shared.Name+" and and and more" {
		t.Errorf("after %d tries it is called %q, %v", tries, got.Name, err)
	}
}
