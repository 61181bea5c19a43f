package etcdtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Spec is what one member is started with. A [Cluster] makes its own; a program
// that runs a member as a process of its own fills one in.
type Spec struct {
	Name      string // unique in the cluster
	Dir       string // made if it does not exist
	ClientURL string // http or https, with the address and port to listen on
	WebURL    string // with the scheme of ClientURL, for what is not gRPC; empty for none
	PeerURL   string // http
	Peers     string // name=PeerURL of all members, separated by commas
	Token     string // the same for all members of one cluster, another for each cluster
	Existing  bool   // the member joins a cluster that has run before

	Limits Limits
	Cert   CertFiles // needed for https; CA asks clients for certificates, empty does not
}

// Limits are settings that clusters in the field differ in. The zero value of each
// means etcd's default, or what its comment says.
type Limits struct {
	TxnOps        uint          // operations in one transaction; etcd: 128
	RequestBytes  uint          // size of one request; etcd: 1.5 MiB
	QuotaBytes    int64         // size of the database, past which writes are refused; etcd: 2 GB
	Heartbeat     time.Duration // of the leader; 0: 100 ms
	Election      time.Duration // how long a follower waits for it; 0: 1.5 s
	WatchProgress time.Duration // how often an idle watch tells its revision; etcd: 10 min
	Fsync         bool          // false: nothing is synced, which only a crash of the machine can tell
}

// Specs returns what the members of a new cluster are started with: in folders below
// dir, at ports of the loopback network that are free at this moment. Clients come
// by the scheme, http or https; for https each still needs its Cert.
func Specs(dir, scheme string, n int) ([]Spec, error) {
	const each = 3
	free, err := freePorts(loopback(), each*n)
	if err != nil {
		return nil, err
	}
	token := rand.Text()
	specs := make([]Spec, n)
	var peers []string
	for i := range specs {
		name := "m" + strconv.Itoa(i)
		specs[i] = Spec{
			Name:      name,
			Dir:       filepath.Join(dir, name),
			ClientURL: scheme + "://" + free[each*i],
			WebURL:    scheme + "://" + free[each*i+1],
			PeerURL:   "http://" + free[each*i+2],
			Token:     token,
		}
		peers = append(peers, name+"="+specs[i].PeerURL)
	}
	for i := range specs {
		specs[i].Peers = strings.Join(peers, ",")
	}
	return specs, nil
}

// Run runs a member until ctx ends or it fails, and tells ready once it serves,
// which needs a majority of the members. It ends at once, and logs warnings and errors
// to stderr.
func (s *Spec) Run(ctx context.Context, ready func()) error {
	config := zap.NewProductionConfig()
	config.Level = zap.NewAtomicLevelAt(zap.WarnLevel)
	log, err := config.Build()
	if err != nil {
		return err
	}
	conf, err := s.embed(log)
	if err != nil {
		return err
	}
	e, err := start(conf)
	if err != nil {
		return err
	}
	defer e.stop()
	served := e.etcd.Server.ReadyNotify()
	for {
		select {
		case <-served:
			ready()
			served = nil
		case <-e.etcd.Server.StopNotify():
			return fmt.Errorf("etcd member %s stopped by itself", s.Name)
		case err := <-e.etcd.Err():
			return fmt.Errorf("etcd member %s: %w", s.Name, err)
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Spec) embed(log *zap.Logger) (*embed.Config, error) {
	client, errClient := url.Parse(s.ClientURL)
	web, errWeb := url.Parse(s.WebURL)
	peer, errPeer := url.Parse(s.PeerURL)
	if err := errors.Join(errClient, errWeb, errPeer); err != nil {
		return nil, err
	}
	c := embed.NewConfig()
	c.Name = s.Name
	c.Dir = s.Dir
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	if s.WebURL != "" {
		// Health checks and the like have a listener of their own. Else, with TLS, a
		// server of net/http stands before that of gRPC and, when the latter stops, ends
		// its calls with answers in good order where the client of a killed member sees
		// a reset.
		c.ListenClientHttpUrls = []url.URL{*web}
	}
	c.InitialCluster = s.Peers
	c.InitialClusterToken = s.Token
	if s.Existing {
		c.ClusterState = embed.ClusterStateFlagExisting
	}
	c.TickMs = milliseconds(s.Limits.Heartbeat, 100)
	c.ElectionMs = milliseconds(s.Limits.Election, 1500)
	if s.Limits.TxnOps > 0 {
		c.MaxTxnOps = s.Limits.TxnOps
	}
	if s.Limits.RequestBytes > 0 {
		c.MaxRequestBytes = s.Limits.RequestBytes
	}
	c.QuotaBackendBytes = s.Limits.QuotaBytes
	c.WatchProgressNotifyInterval = s.Limits.WatchProgress
	c.UnsafeNoFsync = !s.Limits.Fsync
	c.AutoCompactionRetention = "0" // only when a test says so
	// A member is lost and replaced faster than the check of etcd allows, which wants
	// all others to have been connected for five seconds.
	c.StrictReconfigCheck = false
	c.EnableGRPCGateway = false
	c.BcryptCost = 4 // the least that bcrypt takes
	c.ClientTLSInfo.CertFile = s.Cert.Cert
	c.ClientTLSInfo.KeyFile = s.Cert.Key
	c.ClientTLSInfo.TrustedCAFile = s.Cert.CA
	c.ClientTLSInfo.ClientCertAuth = s.Cert.CA != ""
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(log)
	return c, nil
}

func milliseconds(d time.Duration, otherwise uint) uint {
	if d <= 0 {
		return otherwise
	}
	return uint(d.Milliseconds())
}

// host returns the address that clients come to.
func (s *Spec) host() net.IP {
	u, err := url.Parse(s.ClientURL)
	if err != nil {
		return nil
	}
	return net.ParseIP(u.Hostname())
}

// loopback picks an address of the loopback network that nobody else uses, so that
// a port stays free while its member is stopped. Outgoing connections leave from
// 127.0.0.1 and take none. Systems other than Linux have that address only.
func loopback() netip.Addr {
	common := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if runtime.GOOS != "linux" {
		return common
	}
	var b [3]byte
	rand.Read(b[:])
	own := netip.AddrFrom4([4]byte{127, b[0], b[1], b[2]&0x7f | 1})
	l, err := net.Listen("tcp", netip.AddrPortFrom(own, 0).String())
	if err != nil {
		return common
	}
	l.Close()
	return own
}

// freePorts returns addresses with ports that are free at this moment.
func freePorts(host netip.Addr, n int) ([]string, error) {
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	for range n {
		l, err := net.Listen("tcp", netip.AddrPortFrom(host, 0).String())
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
	}
	addresses := make([]string, n)
	for i, l := range listeners {
		addresses[i] = l.Addr().String()
	}
	return addresses, nil
}
