package etcdtest

import (
	"fmt"
	"sync"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
)

// server is an etcd that can be ended at once. Its own Close hands the leadership over
// and waits for what clients are doing, watches among it, for eight seconds.
type server struct {
	etcd *embed.Etcd

	mu      sync.Mutex // guards what follows
	calls   []*grpc.Server
	stopped bool
}

func start(conf *embed.Config) (*server, error) {
	s := new(server)
	conf.ServiceRegister = s.serving
	var err error
	if s.etcd, err = embed.StartEtcd(conf); err != nil {
		return nil, fmt.Errorf("start etcd member %s: %w", conf.Name, err)
	}
	return s, nil
}

// stop returns when nothing of it runs. Connections are reset first, as when a
// process dies; what it was writing may or may not be there when it comes back.
func (s *server) stop() {
	s.mu.Lock()
	s.stopped = true
	calls := s.calls
	s.mu.Unlock()
	for _, c := range calls {
		c.Stop()
	}
	s.etcd.Server.HardStop()
	s.etcd.Close()
}

// serving notes a gRPC server that etcd has made and is about to start, which it
// does on a goroutine of its own, once it has a leader.
func (s *server) serving(c *grpc.Server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		c.Stop()
	}
	s.calls = append(s.calls, c)
}
