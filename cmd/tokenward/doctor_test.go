package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
)

// Events that wait for the audit log, as after a restore or a kill, are written by the
// next start. That is no fault, and a script that asks doctor must not take it for one.
func TestEventsThatWaitForTheServerAreNoFault(t *testing.T) {
	dir := t.TempDir()
	config := writeFile(t, filepath.Join(dir, "tokenward.yaml"), fmt.Sprintf("tokenstore: {path: %s/t.db}\naudit: {path: %s/a.jsonl}\nroutes:\n  - {match: GET /a}\n", dir, dir), 0o600)
	cfg, err := loadConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if _, _, err := initialise(t.Context(), cfg, log, false); err != nil {
		t.Fatal(err)
	}
	store, err := boltstore.Open(boltstore.Options{Path: cfg.TokenStore.Path, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	err = store.Change(t.Context(), func(tx tokenstore.Tx) error {
		tx.Emit([]byte(`{}`))
		return nil
	})
	if err := errors.Join(err, store.Close()); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := newDoctorCommand()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--config", config})
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Errorf("%v\n%s", err, &out)
	}
	if want := "ok     outbox: waiting for the audit log: 1 event, which the server writes there when it starts"; !strings.Contains(out.String(), want) {
		t.Errorf("want %q in\n%s", want, &out)
	}
}
