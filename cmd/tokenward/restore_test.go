package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/enforce"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
)

// TestRestoreGivesNoUseBack: a token for one use that was used after the backup is not
// to be had again, and where nobody knows that, it is named.
func TestRestoreGivesNoUseBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := defaultConfig()
	cfg.TokenStore.Path, cfg.Audit.Path = filepath.Join(dir, "tokens.db"), filepath.Join(dir, "audit.jsonl")
	log := slog.New(slog.DiscardHandler)
	v, err := openVault(t.Context(), cfg, log, time.Now, opening{create: true, serve: true})
	if err != nil {
		t.Fatal(err)
	}
	counts, err := v.counting(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	account := uint64(1)
	create := func() tokenstore.ID {
		made, err := v.service.Create(t.Context(), admin.Operator(""), admin.Spec{Account: &account, Name: "once", Scopes: []string{"a"}, Limits: &tokenstore.Limits{Uses: 5}})
		if err != nil {
			t.Fatal(err)
		}
		return made.Token.ID
	}
	keyOf := func(id tokenstore.ID) (key enforce.CountKey) {
		binary.BigEndian.PutUint64(key[1:], uint64(id))
		return key
	}
	use := func(id tokenstore.ID, n int64) {
		claim := enforce.Claim{Key: keyOf(id)}
		claim.Draws[0] = enforce.Draw{Add: n, Most: 5}
		moved, err := counts.ledger.Move(t.Context(), []enforce.Claim{claim})
		if err != nil || moved[0].Granted[0] != n {
			t.Fatalf("%+v, %v", moved, err)
		}
	}
	before := create()
	use(before, 2)
	backup := filepath.Join(dir, "backup")
	f, err := os.Create(backup)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.backup(t.Context(), f, nil); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	after := create()
	use(before, 2)
	use(after, 1)
	if err := v.close(); err != nil {
		t.Fatal(err)
	}

	restore := func() *restorer {
		r := &restorer{flags: restoreFlags{replace: true, acceptUnrevoked: true}, cfg: cfg, log: log, tell: io.Discard, now: time.Now}
		if err := r.run(t.Context(), backup); err != nil {
			t.Fatal(err)
		}
		return r
	}
	used := func(id tokenstore.ID) uint64 {
		s, err := boltstore.Open(boltstore.Options{Path: cfg.TokenStore.Path, Logger: log})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		key := keyOf(id)
		value, err := s.Counter(key[:])
		if err != nil {
			t.Fatal(err)
		}
		c, err := enforce.ParseCounts(value)
		if err != nil {
			t.Fatal(err)
		}
		return c[0].N
	}
	for range 2 { // a store that was restored knows as well
		if r := restore(); len(r.usedAgain) > 0 || strings.Contains(r.text(), "uses") {
			t.Errorf("restored beside the old store it says\n%s", r.text())
		}
		if got := used(before); got != 4 {
			t.Errorf("%d uses are known, want 4", got)
		}
		if got := used(after); got != 0 {
			t.Errorf("%d uses are kept of a token that is gone", got)
		}
	}
	if err := os.Remove(cfg.TokenStore.Path); err != nil {
		t.Fatal(err)
	}
	if r := restore(); !slices.Equal(r.usedAgain, []tokenstore.ID{before}) || !strings.Contains(r.text(), "1 token with a limited number of uses") || used(before) != 2 {
		t.Errorf("restored without the old store it says of %v, with %d uses\n%s", r.usedAgain, used(before), r.text())
	}
}

// TestOlderCopyOfTheStoreIsNotServed: what was revoked since is valid again in it, and
// once it has made events of its own, a restore cannot tell any more what that was.
func TestOlderCopyOfTheStoreIsNotServed(t *testing.T) {
	t.Parallel()
	_, cfg := storeToExamine(t, unsealed)
	serve := func(use func(v *vault)) error {
		v, err := openVault(t.Context(), cfg, slog.New(slog.DiscardHandler), time.Now, opening{serve: true})
		if err != nil {
			return err
		}
		use(v)
		return v.close()
	}
	before := cfg.TokenStore.Path + ".before"
	if err := copyFile(before, cfg.TokenStore.Path); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the store itself is served again
		err := serve(func(v *vault) {
			account := uint64(1)
			if _, err := v.service.Create(t.Context(), admin.Operator(""), admin.Spec{Account: &account, Name: "later", Scopes: []string{"a"}}); err != nil {
				t.Error(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(before, cfg.TokenStore.Path); err != nil {
		t.Fatal(err)
	}
	for range 2 { // nor the second time, when the log has been open
		err := serve(func(*vault) { t.Error("an older copy is served") })
		if err == nil || !strings.Contains(err.Error(), "older copy") || !strings.Contains(err.Error(), "tokenward restore --replace BACKUP") {
			t.Errorf("an older copy: %v", err)
		}
	}
}

// TestWarningOfARestoreHasCommandsThatCanBeTyped: the log is no error, in which the
// configuration is named in the end.
func TestWarningOfARestoreHasCommandsThatCanBeTyped(t *testing.T) {
	dir := t.TempDir()
	text := fmt.Sprintf("tokenstore: {path: %[1]s/t.db}\naudit: {path: %[1]s/a.jsonl}\nlog: {format: text}\n", dir)
	path := writeFile(t, filepath.Join(dir, "c.yaml"), text, 0o600)
	if code := run(t.Context(), []string{"init", "--config", path}, strings.NewReader(""), io.Discard, io.Discard); code != exitFine {
		t.Fatalf("exit code %d", code)
	}
	pepper := writeFile(t, filepath.Join(dir, "pepper"), strings.Repeat("p", tokenstore.MinPepperBytes), 0o600)
	writeFile(t, path, strings.Replace(text, "t.db", "t.db, pepper_files: ["+pepper+"]", 1), 0o600)
	var errs strings.Builder
	run(t.Context(), []string{"restore", "--config", path, "--replace", filepath.Join(dir, "none.backup")}, strings.NewReader(""), io.Discard, &errs)
	if text := errs.String(); !strings.Contains(text, "its last changes may be missing") || !strings.Contains(text, "`tokenward init --config "+path+"`") {
		t.Error(text)
	}
}

// TestLogThatLostItsEndIsToldAtTheStart: the first event behind the gap hides it from
// every later look.
func TestLogThatLostItsEndIsToldAtTheStart(t *testing.T) {
	t.Parallel()
	_, cfg := storeToExamine(t, unsealed)
	start := func() string {
		var log bytes.Buffer
		v, err := openVault(t.Context(), cfg, slog.New(slog.NewTextHandler(&log, nil)), time.Now, opening{serve: true})
		if err != nil {
			t.Fatal(err)
		}
		account := uint64(1)
		if _, err := v.service.Create(t.Context(), admin.Operator(""), admin.Spec{Account: &account, Name: "later", Scopes: []string{"a"}}); err != nil {
			t.Error(err)
		}
		if err := v.close(); err != nil {
			t.Fatal(err)
		}
		return log.String()
	}
	const told = "the audit log lacks the last events"
	if log := start(); strings.Contains(log, told) {
		t.Errorf("a whole log:\n%s", log)
	}
	if err := os.Rename(cfg.Audit.Path, cfg.Audit.Path+".1"); err != nil {
		t.Fatal(err)
	}
	if log := start(); !strings.Contains(log, told) {
		t.Errorf("a log that was moved away is not missed:\n%s", log)
	}
	if log := start(); strings.Contains(log, told) {
		t.Errorf("the new log:\n%s", log)
	}
}
