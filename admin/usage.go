package admin

import (
	"tokenward/tokenstore"
	"tokenward/tokenstore/usage"
)

// Usage returns what is known of the use of a token that a verb gave, up to the
// latest request; the zero Record where nothing is remembered.
func (s *Service) Usage(t *tokenstore.Token) (usage.Record, error) {
	if s.opts.Usage == nil {
		return usage.Record{}, nil
	}
	record, err := s.opts.Usage(t)
	if err != nil {
		return usage.Record{}, storeError(err)
	}
	return record, nil
}

// TracksUsage reports whether it is remembered how tokens are used.
func (s *Service) TracksUsage() bool { return s.opts.Usage != nil }
