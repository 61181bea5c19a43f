package etcdstore_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/etcdstore"
	"tokenward/tokenstore/storetest"
)

func startEtcd(t *testing.T) []string {
	t.Helper()
	free := func() url.URL {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return url.URL{Scheme: "http", Host: l.Addr().String()}
	}
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	cfg.LogLevel = "panic"
	cfg.UnsafeNoFsync = true
	client, peer := free(), free()
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	return []string{client.String()}
}

func open(t *testing.T, endpoints []string, prefix, path string, peppers *tokenstore.Peppers, onChange func(tokenstore.Change), demand bool) (*etcdstore.Store, func()) {
	t.Helper()
	c, err := etcdstore.Dial(etcdstore.Options{Endpoints: endpoints, Prefix: prefix, Node: "a", Version: "test", Peppers: peppers, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	d, err := c.Describe(ctx)
	if errors.Is(err, etcdstore.ErrNotInitialised) {
		if err := c.Init(ctx); err != nil {
			t.Fatal(err)
		}
		d, err = c.Describe(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	var s *etcdstore.Store
	closeAll := func() {}
	if demand {
		s = c.Open(d, nil)
		s.Start(etcdstore.Observer{Changed: onChange})
	} else {
		o := boltstore.Options{Path: path, Peppers: peppers, OnChange: onChange, ReplicaOf: d.ID}
		replica, oerr := boltstore.Open(o)
		if oerr != nil {
			replica, oerr = boltstore.Create(o)
		}
		if oerr != nil {
			t.Fatal(oerr)
		}
		closeAll = func() { replica.Close() }
		s = c.Open(d, replica)
		s.Start(etcdstore.Observer{})
	}
	if err := s.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return s, func() { s.Close(); closeAll(); c.Close() }
}

func TestStoreKeepsTheContract(t *testing.T) {
	endpoints := startEtcd(t)
	pepper, err := tokenstore.NewPeppers([]byte(strings.Repeat("a", tokenstore.MinPepperBytes)))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		peppers *tokenstore.Peppers
		demand  bool
	}{{"mirrored", pepper, false}, {"on demand", nil, true}} {
		t.Run(test.name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, onChange func(tokenstore.Change)) *storetest.Harness {
				path := filepath.Join(t.TempDir(), "tokens.db")
				prefix := "/" + rand.Text()[:4]
				return harness(t, func() (*etcdstore.Store, func()) {
					return open(t, endpoints, prefix, path, test.peppers, onChange, test.demand)
				})
			})
		})
	}
}

func harness(t *testing.T, open func() (*etcdstore.Store, func())) *storetest.Harness {
	s, end := open()
	ended := false
	stop := func() {
		if !ended {
			ended = true
			end()
		}
	}
	t.Cleanup(stop)
	return &storetest.Harness{
		Store: s,
		Pending: func(limit int) ([]storetest.Event, error) {
			var events []storetest.Event
			got, err := s.Pending(limit)
			for _, e := range got {
				events = append(events, storetest.Event(e))
			}
			return events, err
		},
		Done:   s.Done,
		Reopen: func(t *testing.T) *storetest.Harness { stop(); return harness(t, open) },
	}
}
