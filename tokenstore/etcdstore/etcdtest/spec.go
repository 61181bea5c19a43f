package etcdtest

import (
	"context"
	"fmt"
	"net/url"
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
	PeerURL   string // http, likewise
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

// Run runs a member until ctx ends or it fails, and tells ready once it serves,
// which needs a majority of the members. It logs warnings and errors to stderr.
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
	e, err := embed.StartEtcd(conf)
	if err != nil {
		return fmt.Errorf("start etcd member %s: %w", s.Name, err)
	}
	defer e.Close()
	served := e.Server.ReadyNotify()
	for {
		select {
		case <-served:
			ready()
			served = nil
		case <-e.Server.StopNotify():
			return fmt.Errorf("etcd member %s stopped by itself", s.Name)
		case err := <-e.Err():
			return fmt.Errorf("etcd member %s: %w", s.Name, err)
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Spec) embed(log *zap.Logger) (*embed.Config, error) {
	client, err := url.Parse(s.ClientURL)
	if err != nil {
		return nil, err
	}
	peer, err := url.Parse(s.PeerURL)
	if err != nil {
		return nil, err
	}
	c := embed.NewConfig()
	c.Name = s.Name
	c.Dir = s.Dir
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
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
