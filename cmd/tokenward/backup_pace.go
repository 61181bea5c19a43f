package main

import (
	"context"
	"io"
	"time"

	"tokenward/tokenstore/boltstore"
)

// A server takes backupToken for each token of a backup, so that a million take 8.7 s
// and the command has a second to prove them within 10. At full speed it would take
// most of a processor from the requests meanwhile; if it were slower, the store's file
// would grow for longer. A file that is large for its few tokens goes by at backupBytes
// a second.
const (
	backupToken = 8700 * time.Nanosecond
	backupBytes = 150e6
)

// backup streams a backup, at the pace that leaves room for requests.
func (a *app) backup(ctx context.Context, w io.Writer) error {
	p := pacer{ctx: ctx}
	return a.vault.backup(ctx, w, p.wait)
}

// pacer spreads a backup over its time. Of what takes longer by itself, no more than
// lagMost is made up for.
type pacer struct {
	ctx  context.Context // lives as long as one call
	done int64           // bytes of the file
	due  time.Time       // when they may have been written
}

// pauseLeast makes bursts of about 2 ms of processor time. Smaller ones cost more,
// since a processor has to be woken for each, on both sides.
const pauseLeast = 20 * time.Millisecond

// lagMost is as long as a disk may keep the command waiting, now and then, without the
// backup taking longer for it. What is made up for goes as fast as it can.
const lagMost = 250 * time.Millisecond

// wait returns once the backup may go on from where it has done so many bytes of the
// file, or its context has ended.
func (p *pacer) wait(m *boltstore.Manifest, done int64) error {
	now := time.Now()
	if p.due.IsZero() {
		p.due = now
	} else if latest := now.Add(-lagMost); p.due.Before(latest) {
		p.due = latest
	}
	whole := max(float64(m.Tokens)*float64(backupToken), float64(m.Bytes)/backupBytes*float64(time.Second))
	p.due = p.due.Add(time.Duration(whole * float64(done-p.done) / float64(m.Bytes)))
	p.done = done
	ahead := p.due.Sub(now)
	if ahead < pauseLeast {
		return nil
	}
	pause := time.NewTimer(ahead)
	defer pause.Stop()
	select {
	case <-pause.C:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}
