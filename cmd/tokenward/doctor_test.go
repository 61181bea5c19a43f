package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
)

// Events that wait for the audit log, as after a restore or a kill, are written by the
// next start. That is no fault, and a script that asks doctor must not take it for one.
func TestEventsThatWaitForTheServerAreNoFault(t *testing.T) {
	config, cfg := storeToExamine(t, unsealed)
	store, err := boltstore.Open(boltstore.Options{Path: cfg.TokenStore.Path, Logger: slog.New(slog.DiscardHandler)})
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
	out, err := examine(t, config)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if want := "ok     outbox: waiting for the audit log: 1 event, which the server writes there when it starts"; !strings.Contains(out, want) {
		t.Errorf("want %q in\n%s", want, out)
	}
}

// Kubernetes gives volumes and secrets to a pod by group, so what deploy/ recommends
// would never be without a fault.
func TestDoctorCountsNoFileOfTheGroupAsFault(t *testing.T) {
	config, cfg := storeToExamine(t, sealedByPepper)
	for path, mode := range map[string]os.FileMode{cfg.TokenStore.PepperFiles[0]: 0o440, cfg.Audit.Path: 0o660} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	out, err := examine(t, config)
	if err != nil || strings.Contains(out, "WRONG") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, want := range []string{"warn   files: tokenstore.pepper_files[0]: its group can read", "warn   files: its group can reach " + cfg.Audit.Path} {
		if !strings.Contains(out, want) {
			t.Errorf("want %q in\n%s", want, out)
		}
	}
	if err := os.Chmod(cfg.Audit.Path, 0o664); err != nil { //nolint:gosec // the fault under test
		t.Fatal(err)
	}
	if out, err = examine(t, config); err == nil || !strings.Contains(out, "WRONG  files: others can reach "+cfg.Audit.Path) {
		t.Errorf("a log that everybody can read: %v\n%s", err, out)
	}
}

// TestDoctorGivesOneAdviceForOneFault: a pepper that is listed twice need not be put
// back, and whoever makes another signing key because one is not found leaves the
// heads of the log without the key that they were signed with.
func TestDoctorGivesOneAdviceForOneFault(t *testing.T) {
	config, cfg := storeToExamine(t, sealedByPepper)
	pepper := cfg.TokenStore.PepperFiles[0]
	text, err := os.ReadFile(pepper) //nolint:gosec // the test's own
	if err != nil {
		t.Fatal(err)
	}
	again := writeFile(t, pepper+"2", string(text), 0o600)
	for name, c := range map[string]struct{ old, new, want, never string }{
		"a pepper twice":    {"[" + pepper + "]", "[" + pepper + ", " + again + "]", "list each pepper once", "cannot be read"},
		"a pepper missing":  {"[" + pepper + "]", "[" + pepper + ", " + pepper + "3]", "cannot be read", "make one"},
		"a key that is not": {"path: " + cfg.Audit.Path, "path: " + cfg.Audit.Path + ", signing_key_file: " + pepper + "4", "correct the path, or put the file there", "openssl"},
	} {
		text, err := os.ReadFile(config) //nolint:gosec // the test's own
		if err != nil {
			t.Fatal(err)
		}
		changed := writeFile(t, config+".changed", strings.Replace(string(text), c.old, c.new, 1), 0o600)
		out, err := examine(t, changed)
		if err == nil || strings.Count(out, c.want) != 1 || strings.Contains(out, c.never) {
			t.Errorf("%s: %v, want %q once and no %q in\n%s", name, err, c.want, c.never, out)
		}
	}
}

// TestDoctorNamesTheConfigurationInCommandsToPaste: another one's store would be
// replaced, or none found. A folder is not made the owner's like a file.
func TestDoctorNamesTheConfigurationInCommandsToPaste(t *testing.T) {
	config, cfg := storeToExamine(t, unsealed)
	moved := writeFile(t, filepath.Join(filepath.Dir(config), "not here.yaml"), "", 0o600)
	if err := errors.Join(os.Rename(config, moved), os.Remove(cfg.TokenStore.Path), os.Mkdir(cfg.TokenStore.Path, 0o755)); err != nil { //nolint:gosec // the fault under test
		t.Fatal(err)
	}
	out, err := examine(t, moved)
	if want := "`tokenward restore --replace BACKUP --config '" + moved + "'`"; err == nil || !strings.Contains(out, want) {
		t.Errorf("%v, want %s in\n%s", err, want, out)
	}
	if strings.Contains(out, "chmod") {
		t.Errorf("the mode of a folder:\n%s", out)
	}
	if out, err = examine(t, writeFile(t, moved, "x: 1\n", 0o600)); err == nil || !strings.Contains(out, "`tokenward check --config '"+moved+"'`") {
		t.Errorf("%v\n%s", err, out)
	}
}

// examined is what kind of store is examined.
type examined int

const (
	unsealed examined = iota
	sealedByPepper
)

// storeToExamine makes a store, and the configuration that names it.
func storeToExamine(t *testing.T, kind examined) (config string, cfg *Config) {
	t.Helper()
	dir, peppers := t.TempDir(), "[]"
	if kind == sealedByPepper {
		peppers = "[" + writeFile(t, filepath.Join(dir, "pepper"), strings.Repeat("p", 64), 0o600) + "]"
	}
	config = writeFile(t, filepath.Join(dir, "tokenward.yaml"), fmt.Sprintf("tokenstore: {path: %s/t.db, pepper_files: %s}\naudit: {path: %s/a.jsonl}\nroutes:\n  - {match: GET /a}\n", dir, peppers, dir), 0o600)
	cfg, err := loadConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := initialise(t.Context(), cfg, slog.New(slog.DiscardHandler), false); err != nil {
		t.Fatal(err)
	}
	return config, cfg
}

// examine runs the doctor, and returns what it printed.
func examine(t *testing.T, config string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newDoctorCommand()
	cmd.SetOut(&out)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs([]string{"--config", config})
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}
