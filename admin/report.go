package admin

import (
	"context"
	"iter"
	"slices"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/usage"
)

// Finding is something about a token that its owner should look at.
type Finding string

// The findings, in the order in which they are told.
const (
	FindingUnused       Finding = "unused"            // not used since the time asked about, though it could be before
	FindingNeverExpires Finding = "never_expires"     // it has no end
	FindingExpires      Finding = "expires_soon"      // it ends before the time asked about, and nothing took its place
	FindingOldSecret    Finding = "old_secret_in_use" // a rotation or a reset replaced its secret, which was used after it
	FindingScopes       Finding = "unused_scopes"     // it has scopes that no request of it ever needed
	FindingRoutes       Finding = "unused_routes"     // its scopes open routes that it never took
)

// Findings returns all findings.
func Findings() []Finding {
	return []Finding{FindingUnused, FindingNeverExpires, FindingExpires, FindingOldSecret, FindingScopes, FindingRoutes}
}

// ReportQuery selects what a report tells.
type ReportQuery struct {
	List         ListQuery // revoked tokens are left out whatever it says
	UnusedSince  time.Time // FindingUnused is about the time from here on
	EndingBefore time.Time // FindingExpires is about ends before this
	Findings     []Finding // those to tell; empty: all
}

// Assessment is a token with what there is to say about it.
type Assessment struct {
	Token        *tokenstore.Token // shared; not to be changed
	Used         usage.Record
	Findings     []Finding // at least one
	UnusedScopes []string  // of the token, for FindingScopes
	UnusedRoutes []string  // patterns, for FindingRoutes
}

// Report yields, of the tokens that the query lists, those about which there is
// something to say and which still open something or may again. Needs what List
// needs, and costs as much as the list is long; memory is constant. An error, always
// an *Error, ends the sequence.
//
// What a token never exercised is told only of tokens that were used and could be
// before UnusedSince: the others had no time to, or are unused as a whole.
func (s *Service) Report(ctx context.Context, c Caller, q ReportQuery) (iter.Seq2[*Assessment, error], error) {
	q.List.Revoked = false
	tokens, err := s.List(ctx, c, q.List)
	if err != nil {
		return nil, err
	}
	return func(yield func(*Assessment, error) bool) {
		for t, err := range tokens {
			if err != nil {
				yield(nil, err)
				return
			}
			a, err := s.assess(t, &q)
			if err != nil {
				yield(nil, err)
				return
			}
			if len(a.Findings) > 0 && !yield(a, nil) {
				return
			}
		}
	}, nil
}

func (s *Service) assess(t *tokenstore.Token, q *ReportQuery) (*Assessment, error) {
	a := &Assessment{Token: t}
	now := s.Now()
	if t.Expiry.Ended(now) {
		return a, nil
	}
	var err error
	if a.Used, err = s.Usage(t); err != nil {
		return nil, err
	}
	settled := existed(t, q.UnusedSince)
	note := func(f Finding, holds bool) {
		if holds && (len(q.Findings) == 0 || slices.Contains(q.Findings, f)) {
			a.Findings = append(a.Findings, f)
		}
	}
	note(FindingUnused, s.TracksUsage() && UnusedSince(t, &a.Used, q.UnusedSince))
	note(FindingNeverExpires, t.Expiry.Never)
	note(FindingExpires, !t.Expiry.Never && t.ReplacedBy == 0 && t.Expiry.At.Before(q.EndingBefore))
	note(FindingOldSecret, oldSecretInUse(t, &a.Used, now))
	if settled && a.Used.Uses > 0 && !a.Used.More {
		a.UnusedScopes, a.UnusedRoutes = unexercised(t, &a.Used), s.routesNotTaken(t, &a.Used)
		note(FindingScopes, len(a.UnusedScopes) > 0)
		note(FindingRoutes, len(a.UnusedRoutes) > 0)
	}
	return a, nil
}

// UnusedSince reports whether a token could be used before since, and was not from
// then on.
func UnusedSince(t *tokenstore.Token, used *usage.Record, since time.Time) bool {
	return existed(t, since) && used.Last.Before(since)
}

// existed reports whether t could be used before at.
func existed(t *tokenstore.Token, at time.Time) bool {
	return t.CreatedAt.Before(at) && t.NotBefore.Before(at)
}

func oldSecretInUse(t *tokenstore.Token, used *usage.Record, now time.Time) bool {
	if t.ReplacedBy != 0 {
		return used.Last.After(t.UpdatedAt)
	}
	if len(t.Secrets) < 2 || t.Secrets[1].Ends.Ended(now) {
		return false
	}
	return used.Of(t.Secrets[1].Digest).Last.After(t.Secrets[0].CreatedAt)
}

func unexercised(t *tokenstore.Token, used *usage.Record) []string {
	var scopes []string
	for _, scope := range t.Scopes {
		if !used.Exercised(scope) {
			scopes = append(scopes, scope)
		}
	}
	return scopes
}

// routesNotTaken are the patterns of the routes that t's scopes open and that it
// never took.
func (s *Service) routesNotTaken(t *tokenstore.Token, used *usage.Record) []string {
	var patterns []string
	for _, r := range s.Vocabulary().Routes {
		if _, taken := slices.BinarySearch(used.Routes, r.Pattern); !taken && r.ScopesHold(t) {
			patterns = append(patterns, r.Pattern)
		}
	}
	return patterns
}
