package main

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"tokenward/audit"
	"tokenward/tokenstore"
	"tokenward/tokenstore/etcdstore"
)

// readLog proves the audit log and takes from it what this store did after the
// backup. Where the log is not whole, or does not reach from the backup to its
// own end, r.covered says why.
func (r *restorer) readLog() error {
	path := r.cfg.Audit.Path
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		r.covered = "there is no audit log at " + path
		return nil
	}
	keys, err := r.cfg.auditKeys(r.peppers)
	if err != nil {
		return err
	}
	report, err := audit.Verify(path, keys)
	if err != nil {
		return err
	}
	if len(report.Faults) > 0 {
		r.covered = "the audit log is not whole (" + report.Faults[0].String() + ")"
	}
	have := map[uint64]bool{} // numbers from the backup's on
	for record, err := range audit.Records(path) {
		if err != nil {
			if r.covered != "" {
				break // what can be read is used all the same
			}
			return err
		}
		delete(r.waiting, origin{record.Source, record.Seq})
		r.record(record, have)
	}
	// What still waited is younger than all that the log has of that store.
	for _, from := range r.waitingOf(r.manifest.Store) {
		e, err := audit.Decode(r.waiting[from])
		if err != nil {
			continue // it goes into the log as unreadable
		}
		r.record(audit.Record{Source: from.store, Seq: from.seq, Event: e}, have)
	}
	if r.cluster != nil {
		return nil // r.covered says it
	}
	reaches := r.manifest.LastSeq == 0 || have[r.manifest.LastSeq]
	for seq := r.manifest.LastSeq + 1; seq <= r.lastSeq && reaches; seq++ {
		reaches = have[seq]
	}
	if !reaches && r.covered == "" {
		r.covered = "the audit log does not tell all that happened to this store since the backup"
	}
	return nil
}

// waitingOf lists the waiting events of one store in their order.
func (r *restorer) waitingOf(store string) []origin {
	var list []origin
	for from := range r.waiting {
		if from.store == store {
			list = append(list, from)
		}
	}
	slices.SortFunc(list, func(a, b origin) int { return cmp.Compare(a.seq, b.seq) })
	return list
}

// record takes one event of a store.
func (r *restorer) record(record audit.Record, have map[uint64]bool) {
	if r.cluster != nil && strings.HasPrefix(record.Source, r.cluster.Store+"/") {
		r.recordOfNode(record)
		return
	}
	if record.Source != r.manifest.Store {
		return
	}
	r.lastSeq = max(r.lastSeq, record.Seq)
	if e := &record.Event; e.Outcome == audit.Success {
		r.lastID = max(r.lastID, tokenstore.ID(e.Target.Token))
	}
	if record.Seq >= r.manifest.LastSeq {
		have[record.Seq] = true
	}
	if record.Seq > r.manifest.LastSeq {
		r.past.Add(record.Event)
	}
}

// recordOfNode takes one event that a node of the cluster made, or took over.
func (r *restorer) recordOfNode(record audit.Record) {
	if e := &record.Event; e.Outcome == audit.Success {
		r.lastID = max(r.lastID, tokenstore.ID(e.Target.Token))
	}
	if etcdstore.RevisionOf(record.Seq) > r.cluster.Revision {
		r.past.Add(record.Event)
	}
}

// deliver brings the events that waited into the audit log.
func (r *restorer) deliver() error {
	if len(r.waiting) == 0 {
		return nil
	}
	log, _, err := openAudit(r.cfg, r.peppers, r.now())
	if err != nil {
		return err
	}
	for store := range map[string]bool{r.old.store: true, r.manifest.Store: true} {
		var entries []audit.Entry
		for _, from := range r.waitingOf(store) {
			entries = append(entries, audit.Entry{Seq: from.seq, Payload: r.waiting[from]})
		}
		if err := appendAll(log, r.now(), store, entries); err != nil {
			return errors.Join(err, log.Close(r.now()))
		}
	}
	return log.Close(r.now())
}
