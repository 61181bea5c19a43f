package etcdstore

import (
	"context"

	"tokenward/tokenstore"
)

// DigestText is how a digest stands in keys.
func DigestText(d tokenstore.Digest) string { return text(d) }

// PackEvents is how the events of one change stand in an outbox.
func PackEvents(events [][]byte) []byte { return packEvents(events) }

// Beat proves, and renews, what a node does by itself every few seconds.
func (s *Store) Beat(ctx context.Context) error {
	if err := s.beat(ctx); err != nil {
		return err
	}
	return s.census(ctx)
}
