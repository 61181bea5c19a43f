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

// HoldLanes takes every lane, so that changes are gathered until release is called.
func (s *Store) HoldLanes() (release func()) {
	var all []*lane
	for range laneCount {
		all = append(all, <-s.lanes)
	}
	return func() {
		for _, l := range all {
			s.lanes <- l
		}
	}
}

// Gathered returns how many changes wait to leave together.
func (s *Store) Gathered() int {
	s.group.mu.Lock()
	defer s.group.mu.Unlock()
	if s.group.open == nil {
		return 0
	}
	return len(s.group.open.parts)
}

// KeptAnswers returns how many answers are kept, as far as the node has heard.
func (s *Store) KeptAnswers() int { return len(s.kept.all()) }
