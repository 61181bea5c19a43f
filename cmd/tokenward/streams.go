package main

import (
	"context"
	"fmt"
	"time"

	"tokenward/audit"
	"tokenward/enforce"
	"tokenward/proxy"
	"tokenward/tokenstore"
)

// verbCut is the audit event of exchanges that were cut together.
const verbCut audit.Word = "cut"

// reportPatience is how long the store may take to note which exchanges were cut.
const reportPatience = 10 * time.Second

// startStreams has exchanges cut whose token no longer allows them, until
// stopStreams is called, which waits for what is still to be noted.
func (a *app) startStreams() {
	s := a.guard.Streams
	s.Cut = func(reason enforce.Reason) { a.registry.Cut.Add(int(reason)) }
	s.Report = a.auditCuts
	s.Usable, s.Find = a.vault.store.Usable, a.vault.store.ByID
	a.vault.onChange(s.Changed)
	a.vault.doubted.Store(new(s.Doubt))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	a.stopStreams = func() {
		cancel()
		<-done
	}
}

// auditCuts writes one event for each token whose exchanges were cut, all in one
// change. They are cut already, so a store that cannot be written is no more than
// logged.
func (a *app) auditCuts(cuts []proxy.CutReport, dropped uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), reportPatience)
	defer cancel()
	now := a.now()
	for len(cuts) > 0 {
		batch := cuts[:min(len(cuts), maxCutsPerChange)]
		cuts = cuts[len(batch):]
		err := a.vault.store.Change(ctx, func(tx tokenstore.Tx) error {
			for i := range batch {
				b, err := audit.Encode(cutEvent(&batch[i], a.vault.nodeOf(), now))
				if err != nil {
					return err
				}
				tx.Emit(b)
			}
			return nil
		})
		if err != nil {
			a.log.Error("exchanges were cut, but the audit log does not say so: find out why the store cannot be written", "tokens", len(batch), "first", uint64(batch[0].Token.ID), "error", err)
		}
	}
	if dropped > 0 {
		a.log.Error("exchanges were cut faster than the audit log could take them, so it lacks some; tokenward_streams_cut_total counts them all", "tokens", dropped)
	}
}

// maxCutsPerChange bounds the events of one change of the store.
const maxCutsPerChange = 500

func cutEvent(c *proxy.CutReport, node string, now time.Time) audit.Event {
	return audit.Event{
		Time: now, Node: node, Verb: verbCut, Outcome: audit.Success,
		Reason: fmt.Sprintf("%s: %d exchanges", c.Reason, c.Exchanges),
		Target: audit.Target{Token: uint64(c.Token.ID), Account: c.Token.Account, Owner: c.Token.Owner},
	}
}
