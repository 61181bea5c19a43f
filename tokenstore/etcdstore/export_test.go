package etcdstore

import (
	"context"

	"tokenward/tokenstore"
)

// DigestText is how a digest stands in keys.
func DigestText(d tokenstore.Digest) string { return text(d) }

// Beat proves, and renews, what a node does by itself every few seconds.
func (s *Store) Beat(ctx context.Context) error {
	if err := s.beat(ctx); err != nil {
		return err
	}
	return s.census(ctx)
}
