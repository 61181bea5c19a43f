package main

import (
	"context"
	"log/slog"
	"time"

	"tokenward/audit"
	"tokenward/enforce"
	"tokenward/enforce/canon"
)

// runDenials writes refused requests to the audit log, until the vault is closed.
func (v *vault) runDenials(log *slog.Logger) {
	v.denials = audit.NewDenials(v.nodeOf())
	v.background(func(ctx context.Context) {
		v.denials.Run(ctx, v.log, v.now, func(err error) {
			log.Warn("refused requests could not be written to the audit log; they are tried again, and lost if the program ends before that", "error", err)
		})
	})
}

// denied notes a request that was refused at a door.
func (v *vault) denied(via audit.Word, d *enforce.Decision, q *canon.Request, now time.Time) {
	one := audit.Denial{Reason: d.Reason.String(), Via: via}
	if q.Client.Known {
		one.Address = q.Client.Addr
	}
	if d.Route != nil {
		one.Route = d.Route.Pattern
	}
	if t := d.Match.Token; t != nil {
		one.Token, one.Account, one.Owner = uint64(t.ID), t.Account, t.Owner
	}
	v.denials.Note(now, one)
}
