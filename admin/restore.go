package admin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"tokenward/audit"
	"tokenward/tokenstore"
)

// The verbs of backup, restore and migration as audit events name them.
const (
	verbBackup  = audit.Word("backup")
	verbRestore = audit.Word("restore")
	verbMigrate = audit.Word("migrate")
)

// MayBackup reports, as an error, why the caller may not have a backup of the
// whole store, and tells the audit log of one that begins. Only an unrestricted
// root token that may write may have it.
func (s *Service) MayBackup(ctx context.Context, c Caller) error {
	return s.change(ctx, c, verbBackup, audit.Target{}, func(tx tokenstore.Tx, m *manager, now time.Time) error {
		if err := m.mayWrite(); err != nil {
			return err
		}
		if !m.token.IsRoot() || !m.token.Resources.All || !m.token.HasScope("*") {
			return refuse(KindAccess, "Only a root token that may do everything may make a backup.")
		}
		event := s.event(c, m.token, verbBackup, now)
		event.Outcome = audit.Success
		return emit(tx, event)
	})
}

// MaySeeNodes reports, as an error, why the caller may not see the nodes of a
// cluster: only root tokens that read may.
func (s *Service) MaySeeNodes(c Caller) error {
	m, err := s.manager(c, c.Token, s.Now())
	if err != nil {
		return err
	}
	if err := m.mayRead(); err != nil {
		return err
	}
	if !m.token.IsRoot() {
		return refuse(KindAccess, "Only a root token may see the nodes of the cluster.")
	}
	return nil
}

// Past is what the audit log says that tokens became after a backup was made.
type Past struct{ last map[tokenstore.ID]audit.Event }

// Add takes the next event that came after the backup, in the log's order.
func (p *Past) Add(e audit.Event) {
	if e.Outcome != audit.Success || e.Target.Token == 0 || e.Before == nil && e.After == nil {
		return
	}
	if p.last == nil {
		p.last = make(map[tokenstore.ID]audit.Event)
	}
	p.last[tokenstore.ID(e.Target.Token)] = e
}

// Undone is what a restored backup gives back to a token although it had lost it
// since.
type Undone struct {
	ID      tokenstore.ID
	Account uint64
	Name    string
	Verb    audit.Word // revoke, disable, or update for what was narrowed
	Detail  string     // what comes back, in words
	At      time.Time  // when it had been taken away, or after that

	event audit.Event
}

// Undone returns, by id, what the store gives back that had been taken away
// according to past, and how many tokens past knows that the store does not:
// those were made after the backup.
func (s *Service) Undone(ctx context.Context, past *Past) (undone []Undone, lost int, err error) {
	for _, id := range slices.Sorted(maps.Keys(past.last)) {
		t, err := s.reader.ByID(ctx, id)
		if errors.Is(err, tokenstore.ErrNotFound) {
			lost++
			continue
		}
		if err != nil {
			return nil, lost, err
		}
		if u, ok := undoneOf(t, past.last[id]); ok {
			undone = append(undone, u)
		}
	}
	return undone, lost, nil
}

func undoneOf(t *tokenstore.Token, e audit.Event) (Undone, bool) {
	_, verb, detail := asItWas(t, &e)
	if verb == "" {
		return Undone{}, false
	}
	return Undone{ID: t.ID, Account: t.Account, Name: t.Name, Verb: verb, Detail: detail, At: e.Time, event: e}, true
}

// asItWas returns t with everything taken away again that it had lost by e, and
// nothing given; or no verb if there is nothing to take away.
func asItWas(t *tokenstore.Token, e *audit.Event) (after *tokenstore.Token, verb audit.Word, detail string) {
	after = t.Clone()
	if t.State == tokenstore.StateRevoked {
		return after, "", ""
	}
	if e.After == nil || e.After.State == audit.Word(tokenstore.StateRevoked.String()) {
		after.State, after.EndedAt = tokenstore.StateRevoked, e.Time.UTC().Truncate(time.Millisecond)
		return after, verbRevoke, "had been revoked"
	}
	narrowTo(after, e.After)
	if _, ok := after.Dominates(t); !ok || after.NotBefore.After(t.NotBefore) {
		verb, detail = verbUpdate, "had been narrowed"
	}
	if endSecrets(after, e) {
		verb, detail = verbUpdate, "had lost a secret, or it was about to"
	}
	if e.After.State != audit.Word(tokenstore.StateActive.String()) && t.State == tokenstore.StateActive {
		after.State = tokenstore.StateDisabled
		verb, detail = verbDisable, "had been disabled"
	}
	return after, verb, detail
}

// endSecrets ends those of t's secrets that were gone by e, at the time of e, and
// those that had a deadline at that deadline.
func endSecrets(t *tokenstore.Token, e *audit.Event) (ended bool) {
	for i := range t.Secrets {
		r := &t.Secrets[i]
		ends := tokenstore.EndsAt(e.Time.UTC().Truncate(time.Millisecond))
		for _, then := range e.After.Secrets {
			if then.Created.UnixMilli() == r.CreatedAt.UnixMilli() {
				ends = tokenstore.Never()
				if then.Ends.UnixMilli() > 0 {
					ends = tokenstore.EndsAt(then.Ends.UTC())
				}
			}
		}
		if earlier := r.Ends.Earlier(ends); earlier != r.Ends {
			r.Ends, ended = earlier, true
		}
	}
	return ended
}

// narrowTo takes from t what was is not allowed as well. It gives nothing, so
// that a log that was tampered with widens no token.
func narrowTo(t *tokenstore.Token, was *audit.Token) {
	then := tokenstore.Token{Account: t.Account, Scopes: was.Scopes}
	now := tokenstore.Token{Account: t.Account, Scopes: t.Scopes}
	t.Scopes = meet(t.Scopes, was.Scopes, then.HasScope, now.HasScope)
	t.Resources = meetResources(&t.Resources, &was.Resources)
	t.Sources = meetSources(&t.Sources, &was.Sources)
	ends := tokenstore.Expiry{Never: was.Expires.Never}
	if !ends.Never {
		ends.At = was.Expires.At.UTC()
	}
	t.Expiry = t.Expiry.Earlier(ends)
	if begins := was.NotBefore.UTC().Truncate(time.Millisecond); begins.After(t.NotBefore) {
		t.NotBefore = begins
	}
	narrowLimits(&t.Limits, was.Limits)
}

// meet returns the items of a that b covers, and those of b that a covers.
func meet[T comparable](a, b []T, inB, inA func(T) bool) []T {
	var both []T
	for _, one := range a {
		if inB(one) {
			both = append(both, one)
		}
	}
	for _, one := range b {
		if inA(one) && !slices.Contains(both, one) {
			both = append(both, one)
		}
	}
	return both
}

func meetResources(now *tokenstore.Resources, was *audit.Resources) tokenstore.Resources {
	then := tokenstore.Resources{All: was.All}
	for _, g := range was.Grants {
		level, _ := tokenstore.ParseLevel(g.Level)
		then.Grants = append(then.Grants, tokenstore.Grant{Type: g.Type, ID: g.ID, Level: level})
	}
	in := func(r *tokenstore.Resources) func(tokenstore.Grant) bool {
		return func(g tokenstore.Grant) bool { return g.Level.Valid() && r.Allows(g.Type, []byte(g.ID), g.Level) }
	}
	if then.All {
		return *now
	}
	return tokenstore.Resources{Grants: meet(now.Grants, then.Grants, in(&then), in(now))}
}

func meetSources(now *tokenstore.Sources, was *audit.Sources) tokenstore.Sources {
	if was.Any {
		return *now
	}
	if now.Any {
		return tokenstore.Sources{Allow: was.Allow, Deny: was.Deny}
	}
	in := func(list []netip.Prefix) func(netip.Prefix) bool {
		return func(p netip.Prefix) bool {
			return slices.ContainsFunc(list, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
		}
	}
	out := tokenstore.Sources{
		Allow: meet(now.Allow, was.Allow, in(was.Allow), in(now.Allow)),
		Deny:  slices.Clone(now.Deny),
	}
	for _, p := range was.Deny {
		if !slices.Contains(out.Deny, p) {
			out.Deny = append(out.Deny, p)
		}
	}
	if slices.Equal(out.Allow, now.Allow) && slices.Equal(out.Deny, now.Deny) {
		out.Text = now.Text
	}
	return out
}

func narrowLimits(l *tokenstore.Limits, was []audit.Limit) {
	tighter := func(a, b uint64) uint64 {
		if a == 0 {
			return b
		}
		return min(a, max(b, 1))
	}
	for _, one := range was {
		switch one.Kind {
		case "rate":
			narrowRate(l, one)
		case "quota":
			narrowQuota(l, one)
		case "uses":
			l.Uses = tighter(l.Uses, one.Count)
		case "concurrent":
			l.Concurrent = tighter(l.Concurrent, one.Count)
		}
	}
}

func narrowRate(l *tokenstore.Limits, one audit.Limit) {
	was := tokenstore.Limits{Rate: float64(one.Count) / rateSeconds(one.Per), Burst: one.Burst}
	if was.Rate == 0 {
		return
	}
	// How many may come at once is the rate's to say where no burst is set.
	atOnce := max(1, was.BurstInForce())
	if l.Rate != 0 {
		atOnce = min(atOnce, l.BurstInForce())
	}
	// What the log rounded is not a narrowing.
	if count, per := wholeRate(l.Rate); l.Rate == 0 || was.Rate < l.Rate && (count != one.Count || per != one.Per) {
		l.Rate = was.Rate
	}
	if l.BurstInForce() != atOnce {
		l.Burst = uint64(atOnce) //nolint:gosec // at least 1
	}
}

func rateSeconds(per audit.Word) float64 {
	for _, unit := range rateUnits {
		if unit.per == per {
			return unit.seconds
		}
	}
	return math.Inf(1)
}

func narrowQuota(l *tokenstore.Limits, one audit.Limit) {
	per, ok := tokenstore.ParseWindow(string(one.Per))
	if !ok {
		return
	}
	l.Quotas = slices.Clone(l.Quotas)
	for i := range l.Quotas {
		if q := &l.Quotas[i]; q.Per == per {
			q.Count = min(q.Count, max(one.Count, 1))
			return
		}
	}
	l.Quotas = append(l.Quotas, tokenstore.Quota{Count: max(one.Count, 1), Per: per})
}

// TakeAgain takes away from the tokens of a restored store what undone lists,
// with an event for each and one for the restore itself, which reason describes.
// It is for the command line. What was done already is not done again, so a call
// that breaks off can be repeated.
func (s *Service) TakeAgain(ctx context.Context, undone []Undone, reason string) error {
	c := Operator("")
	err := s.writer.Change(ctx, func(tx tokenstore.Tx) error {
		event := s.event(c, operatorToken, verbRestore, s.Now())
		event.Outcome, event.Reason = audit.Success, reason
		return emit(tx, event)
	})
	if err != nil {
		return fmt.Errorf("note the restore: %w", err)
	}
	for batch := range slices.Chunk(undone, revokeBatch) {
		err := s.writer.Change(ctx, func(tx tokenstore.Tx) error {
			for i := range batch {
				if err := s.takeAgain(tx, c, &batch[i]); err != nil {
					return fmt.Errorf("token %d: %w", batch[i].ID, err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Moved tells the audit log that the whole store was moved, as reason describes. It
// is for the command line.
func (s *Service) Moved(ctx context.Context, reason string) error {
	err := s.writer.Change(ctx, func(tx tokenstore.Tx) error {
		event := s.event(Operator(""), operatorToken, verbMigrate, s.Now())
		event.Outcome, event.Reason = audit.Success, reason
		return emit(tx, event)
	})
	if err != nil {
		return fmt.Errorf("note the migration: %w", err)
	}
	return nil
}

func (s *Service) takeAgain(tx tokenstore.Tx, c Caller, u *Undone) error {
	t, err := tx.Token(u.ID)
	if err != nil {
		return err
	}
	after, verb, _ := asItWas(t, &u.event)
	if verb == "" {
		return nil
	}
	now := s.Now()
	after.UpdatedAt = now
	if err := tx.Put(after); err != nil {
		return err
	}
	event := s.event(c, operatorToken, verb, now)
	event.Outcome, event.Reason = audit.Success, "the restored backup was older than this change"
	event.Target = audit.Target{Token: uint64(t.ID), Account: t.Account, Owner: t.Owner}
	event.Before, event.After = auditToken(t), auditToken(after)
	return emit(tx, event)
}
