package main

import (
	"tokenward/metrics"
	"tokenward/tokenstore"
)

// checkStore asks the store something small. While it can be read it serves, also
// when it cannot be written.
func (a *app) checkStore() (metrics.State, string) {
	if err := a.vault.probe(); err != nil {
		return metrics.Failing, "the token store cannot be read: " + err.Error()
	}
	switch s := a.vault.store.Stats(); {
	case s.Fault != nil:
		return metrics.Warning, "the token store cannot be written: " + s.Fault.Error()
	case s.Displaced:
		return metrics.Warning, "the file that is served is no longer at " + a.cfg.TokenStore.Path + ", and the next start will not find it: " + fixDisplaced
	}
	return metrics.Passing, ""
}

const fixDisplaced = "take a backup now, with `tokenward backup -o BACKUP`, stop, and restore it with `tokenward restore BACKUP`"

func (a *app) checkAudit() (metrics.State, string) {
	return auditState(a.vault.log.Stats().Fault, a.vault.store.Stats().Outbox)
}

// auditState is what there is to say of a log whose last write ended with fault, while
// so many events wait for it.
func auditState(fault error, waiting int) (metrics.State, string) {
	switch full := waiting >= tokenstore.MaxOutbox; {
	case fault != nil && full:
		return metrics.Warning, "changes are refused, since too many events wait for the audit log, which cannot be written: " + fault.Error()
	case fault != nil:
		return metrics.Warning, "the audit log cannot be written: " + fault.Error()
	case full:
		return metrics.Warning, "changes are refused: too many events wait for the audit log"
	case waiting > tokenstore.MaxOutbox/10:
		return metrics.Warning, "many events wait for the audit log"
	}
	return metrics.Passing, ""
}
