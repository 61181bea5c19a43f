package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// errRestored: etcd was taken back to a backup, or is another one.
var errRestored = errors.New("etcd was restored to an earlier state: everything is read again")

// headText is what tells head, as some revision has it, from every other that there
// ever was: each put of it has another value.
func headText(kv *mvccpb.KeyValue) string {
	return strconv.FormatInt(kv.ModRevision, 10) + " " + string(kv.Value)
}

// headRevision returns when a head that headText told of was put.
func headRevision(head string) int64 {
	text, _, _ := strings.Cut(head, " ")
	n, _ := strconv.ParseInt(text, 10, 64) // "" before there was any
	return n
}

// headOf returns head as of the last of events, and before where none is of it.
func (k keyspace) headOf(events []*clientv3.Event, before string) string {
	for i := len(events) - 1; i >= 0; i-- {
		if string(events[i].Kv.Key) == k.head() && events[i].Type == clientv3.EventTypePut {
			return headText(events[i].Kv)
		}
	}
	return before
}

// readHead reads head by a linearizable read. It fails where the store is gone.
func (s *Store) readHead(ctx context.Context) (revision int64, head string, err error) {
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) { return s.etcd.Get(ctx, s.keys.head()) })
	if err != nil {
		return 0, "", err
	}
	if len(got.Kvs) == 0 || got.Header.ClusterId != s.about.Load().Cluster {
		return 0, "", errRestored
	}
	return got.Header.Revision, headText(got.Kvs[0]), nil
}

// checkHistory returns nil if what the node holds is of etcd's history, errRestored
// if it is not, and errCompacted if that cannot be known any more.
func (s *Store) checkHistory(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, changePatience)
	defer cancel()
	revision, head := s.data.mark()
	err := s.compareHistory(ctx, revision, head)
	if !errors.Is(err, errCompacted) {
		return err
	}
	now, latest, rerr := s.readHead(ctx)
	if rerr != nil {
		return rerr
	}
	if latest != head {
		return err
	}
	s.data.reachAt(now, head) // nothing has changed since
	return nil
}

func (s *Store) compareHistory(ctx context.Context, revision int64, head string) error {
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return s.etcd.Get(ctx, s.keys.head(), clientv3.WithRev(revision))
	})
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return errCompacted
	case errors.Is(err, rpctypes.ErrFutureRev):
		return errRestored
	case err != nil:
		return fmt.Errorf("see whether etcd was restored: %w", err)
	case got.Header.ClusterId != s.about.Load().Cluster, len(got.Kvs) == 0, headText(got.Kvs[0]) != head:
		return errRestored
	}
	return nil
}

// wentBack forgets what rests on a history that etcd has no more. Nothing is dropped
// from what requests are answered from before what etcd has is read.
func (s *Store) wentBack() {
	s.log.Error("etcd was restored to an earlier state: what was changed since then is lost, and tokens revoked since then are valid again except on nodes that saw the revocation; find them in the audit logs, and revoke them again")
	s.data.reset()
	s.ids.drop()
	s.emitting.restart(errRestored)
}

// dial makes a connection, and counts it before anything can come by it.
func (c *Client) dial(ctx context.Context, address string) (net.Conn, error) {
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err == nil {
		c.connections.Add(1)
	}
	return nc, err
}
