package admin

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"tokenward/audit"
	"tokenward/tokenstore"
)

// The verbs as audit events name them.
const (
	verbBootstrap = audit.Word("bootstrap")
	verbNewRoot   = audit.Word("new_root")
	verbCreate    = audit.Word("create")
	verbUpdate    = audit.Word("update")
	verbReset     = audit.Word("reset")
	verbRotate    = audit.Word("rotate")
	verbFinish    = audit.Word("rotate_finish")
	verbRevoke    = audit.Word("revoke")
	verbDisable   = audit.Word("disable")
	verbEnable    = audit.Word("enable")
)

// put stores after and tells the audit log, in one transaction, how it came to
// be. before is nil for a new token.
func (s *Service) put(tx tokenstore.Tx, c Caller, m *manager, verb audit.Word, now time.Time, before, after *tokenstore.Token) error {
	after.UpdatedAt = now
	if err := tx.Put(after); err != nil {
		return err
	}
	event := s.event(c, m.token, verb, now)
	event.Outcome = audit.Success
	event.Target = audit.Target{Token: uint64(after.ID), Account: after.Account, Owner: after.Owner}
	event.Before, event.After = auditToken(before), auditToken(after)
	return emit(tx, event)
}

func emit(tx tokenstore.Tx, event audit.Event) error {
	b, err := audit.Encode(event)
	if err != nil {
		return &Error{Kind: KindInternal, Cause: err}
	}
	tx.Emit(b)
	return nil
}

// event begins an event of this caller. caller may be nil when no token is
// known.
func (s *Service) event(c Caller, caller *tokenstore.Token, verb audit.Word, now time.Time) audit.Event {
	event := audit.Event{Time: now, Node: s.opts.Node, Request: c.RequestID, Verb: verb}
	event.Actor = audit.Actor{Address: c.Remote, Via: audit.Word(c.API)}
	switch {
	case c.reporter:
		event.Actor.Name = "report"
	case caller != nil:
		event.Actor.Token, event.Actor.Name = uint64(caller.ID), caller.Name
		event.Actor.Account, event.Actor.Owner = caller.Account, caller.Owner
	}
	return event
}

// auditToken is the token as an event shows it: everything it allows, nothing
// of its secrets but when they were made and end.
func auditToken(t *tokenstore.Token) *audit.Token {
	if t == nil {
		return nil
	}
	a := &audit.Token{
		State: audit.Word(t.State.String()), Name: t.Name, Account: t.Account, Owner: t.Owner,
		Creator:   uint64(t.Creator.ID),
		Scopes:    t.Scopes,
		Sources:   audit.Sources{Any: t.Sources.Any, Allow: t.Sources.Allow, Deny: t.Sources.Deny},
		Resources: audit.Resources{All: t.Resources.All},
		NotBefore: audit.At(t.NotBefore),
		Expires:   audit.Expiry{Never: t.Expiry.Never, At: audit.At(t.Expiry.At)},
		Limits:    auditLimits(&t.Limits),
	}
	for _, g := range t.Resources.Grants {
		a.Resources.Grants = append(a.Resources.Grants, audit.Grant{Type: g.Type, ID: g.ID, Level: g.Level.String()})
	}
	for i := range t.Secrets {
		r := &t.Secrets[i]
		a.Secrets = append(a.Secrets, audit.Secret{
			Number: uint64(len(t.Secrets) - i), Created: audit.At(r.CreatedAt), Ends: audit.At(r.Ends.At), //nolint:gosec // at most two
		})
	}
	return a
}

func auditLimits(l *tokenstore.Limits) []audit.Limit {
	var limits []audit.Limit
	if l.Rate > 0 {
		count, per := wholeRate(l.Rate)
		limits = append(limits, audit.Limit{Kind: "rate", Count: count, Per: per, Burst: l.Burst})
	}
	for _, q := range l.Quotas {
		limits = append(limits, audit.Limit{Kind: "quota", Count: q.Count, Per: audit.Word(q.Per.String())})
	}
	if l.Uses > 0 {
		limits = append(limits, audit.Limit{Kind: "uses", Count: l.Uses})
	}
	if l.Concurrent > 0 {
		limits = append(limits, audit.Limit{Kind: "concurrent", Count: l.Concurrent})
	}
	return limits
}

// rateUnits are the periods in which a rate is written.
var rateUnits = []struct {
	per     audit.Word
	seconds float64
}{{"second", 1}, {"minute", 60}, {"hour", 3600}, {"day", 86400}, {"month", 30 * 86400}}

// wholeRate writes a rate as a whole number in the shortest period in which it
// is one, or else rounded in the longest.
func wholeRate(perSecond float64) (count uint64, per audit.Word) {
	n := perSecond
	for _, unit := range rateUnits {
		n, per = perSecond*unit.seconds, unit.per
		if n >= 1 && n == math.Trunc(n) {
			break
		}
	}
	return uint64(math.Round(n)), per
}

// refusals bounds how many refused changes reach the audit log: each of them is
// a durable write that a caller causes without having any right.
type refusals struct {
	rate   *rate.Limiter
	passed atomic.Uint64 // over since the last one that was written
}

// A refusal each second, and a burst of thirty to show how an attack begins:
// if the audit log stands still it takes hours to fill the outbox with them,
// and Options.Backlog stops them long before.
const (
	refusalsPerSecond = 1
	refusalsAtOnce    = 30

	// refusalWait bounds how long an answer waits for the store to take one.
	refusalWait = 2 * time.Second
)

func (r *refusals) init() { r.rate = rate.NewLimiter(refusalsPerSecond, refusalsAtOnce) }

// auditRefusal tells the audit log of a change that the caller was refused. It
// fails silently: the answer to the caller is a refusal either way.
func (s *Service) auditRefusal(ctx context.Context, c Caller, verb audit.Word, target audit.Target, e *Error) {
	switch e.Kind {
	case KindSource, KindScope, KindAccess, KindGrace, KindWider, KindNotFound, KindConflict, KindInvalidToken:
	default:
		return
	}
	now := s.Now()
	if c.Token == nil && !c.operator {
		return // nobody to name; the door that let it in has logged it
	}
	if s.opts.Backlog != nil && s.opts.Backlog() > tokenstore.MaxOutbox/2 || !s.refusals.rate.AllowN(now, 1) {
		s.refusals.passed.Add(1)
		return
	}
	caller := c.Token
	if c.operator {
		caller = operatorToken
	}
	event := s.event(c, caller, verb, now)
	event.Outcome, event.Reason, event.Target = audit.Refusal, e.Kind.String(), target
	passed := s.refusals.passed.Swap(0)
	if passed > 0 {
		event.Reason += fmt.Sprintf(" (%d refusals before it were not written)", passed)
	}
	// Hanging up does not keep a refusal out of the log.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), refusalWait)
	defer cancel()
	err := s.writer.Change(ctx, func(tx tokenstore.Tx) error { return emit(tx, event) })
	if err != nil {
		s.refusals.passed.Add(passed + 1)
	}
}
