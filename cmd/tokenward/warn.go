package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tokenward/admin/notify"
	"tokenward/metrics"
	"tokenward/tokenstore"
)

const (
	warnEvery = 15 * time.Minute
	// warnAtOnce bounds the warnings of one round; the others come with the next.
	warnAtOnce = 500
)

// newSender makes what tells a webhook; nil where none is configured.
func newSender(cfg *Config, a *app) (*notify.Sender, error) {
	if cfg.Notify.URL == "" {
		return nil, nil
	}
	secret, err := readHookSecret(cfg.Notify.SecretFile)
	if err != nil {
		return nil, fmt.Errorf("notify.secret_file: %w", err)
	}
	return notify.New(cfg.Notify.URL, secret, nil, time.Now, a.log)
}

// tellRevoked tells the webhook of a token that was revoked. It does not wait.
func (u *upkeep) tellRevoked(c tokenstore.Change) {
	if u.sender == nil || c.After == nil || c.After.State != tokenstore.StateRevoked {
		return
	}
	if c.Before == nil || c.Before.State != tokenstore.StateRevoked {
		u.sender.Send(notify.RevokedEvent(c.After))
	}
}

// tellLeaked tells the webhook of a token whose secret was reported as leaked. It
// does not wait.
func (a *app) tellLeaked(t *tokenstore.Token) {
	if a.upkeep != nil && a.upkeep.sender != nil {
		a.upkeep.sender.Send(notify.LeakedEvent(t, a.now()))
	}
}

// warn warns of tokens that are about to end: once for each of the days that the
// configuration names, by an event in the audit log and, where there is one, to a
// webhook. What was told or taken is noted in the store.
func (u *upkeep) warn(ctx context.Context) error {
	now := u.clock.Now()
	goesOn := u.unsent && u.sender.Stats().Waiting == 0
	if len(u.days) == 0 || !goesOn && !due(u.warned, now, warnEvery) {
		return nil
	}
	u.warned, u.unsent = now, false
	var r warning
	for id, err := range u.store.Ending(ctx, now, now.Add(daysOf(slices.Max(u.days)))) {
		if err == nil {
			err = u.warnOf(ctx, id, now, &r)
		}
		if err != nil {
			return errors.Join(append(r.unreadable, err)...)
		}
		if r.told == warnAtOnce {
			u.warned = time.Time{} // the next round goes on
			break
		}
	}
	return errors.Join(r.unreadable...)
}

// warning is what came of one look for warnings.
type warning struct {
	told       int     // written to the audit log
	unreadable []error // the first of them: they are not to keep other tokens' warnings back
}

const maxUnreadable = 3

func (r *warning) skip(err error) {
	if len(r.unreadable) < maxUnreadable {
		r.unreadable = append(r.unreadable, err)
	}
}

func daysOf(n int) time.Duration { return time.Duration(n) * 24 * time.Hour }

// warnOf gives the warning of a token's end that is due, to whoever it has not been
// given: it is written to the audit log once, and waits for the webhook until that
// takes it.
func (u *upkeep) warnOf(ctx context.Context, id tokenstore.ID, now time.Time, r *warning) error {
	t, err := u.store.ByID(ctx, id)
	if errors.Is(err, tokenstore.ErrNotFound) {
		return nil
	}
	if err != nil {
		r.skip(err)
		return nil
	}
	if t.State == tokenstore.StateRevoked || t.ReplacedBy != 0 || t.Expiry.Never {
		return nil
	}
	due := 0
	for _, days := range u.days {
		if t.Expiry.At.Sub(now) <= daysOf(days) && (due == 0 || days < due) {
			due = days
		}
	}
	if due == 0 {
		return nil
	}
	end := t.Expiry.At
	noted, err := u.store.Notice(t.ID, end)
	if err != nil {
		r.skip(err)
		return nil
	}
	if noted.Told > due {
		event, err := u.service.ExpiryWarning(t, due)
		if err != nil {
			return err
		}
		if err := u.store.NoteWarning(ctx, t.ID, end, event, func(n *tokenstore.Notice) { n.Told = min(n.Told, due) }); err != nil {
			return err
		}
		r.told++
	}
	if u.sender == nil || u.unsent || noted.Sent <= due {
		return nil
	}
	e := notify.ExpiryEvent(t, due, now)
	e.Delivered = func() {
		// A warning that was taken is noted even while the server stops.
		err := u.store.NoteWarning(context.WithoutCancel(ctx), t.ID, end, nil, func(n *tokenstore.Notice) { n.Sent = min(n.Sent, due) })
		if err != nil {
			u.log.Warn("the webhook accepted a warning, but that could not be noted: the warning may come again", "event", e.ID, "error", err)
		}
	}
	u.unsent = !u.sender.Send(e)
	return nil
}

func (u *upkeep) notifyStats() metrics.NotifyStats { return metrics.NotifyStats(u.sender.Stats()) }
