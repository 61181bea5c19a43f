package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestWhatAKilledRunLeftIsRemovedByTheNext(t *testing.T) {
	place := t.TempDir()
	left := filepath.Join(place, ".tokenward-migrate-1")
	running, removeRunning, err := makeWorkFolder(place, "migrate", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, others := t.TempDir(), []string{filepath.Join(place, ".tokenward-migrate-link"), filepath.Join(place, ".tokenward-migrate-file"), filepath.Join(place, ".tokenward-restore-1"), filepath.Join(place, "tokenward.db")}
	if err := errors.Join(os.Mkdir(left, 0o700), os.Symlink(elsewhere, others[0]), os.Mkdir(others[2], 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(left, workStore), others[1], others[3]} {
		writeFile(t, path, "tokens", 0o600)
	}

	var told strings.Builder
	_, remove, err := makeWorkFolder(place, "migrate", &told)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(left); !errors.Is(err, os.ErrNotExist) || told.String() != "Removed "+left+", which a run that was killed had left behind.\n" {
		t.Errorf("%v, %s", err, &told)
	}
	for _, path := range append(others, running, elsewhere) {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("it was not a killed run's: %v", err)
		}
	}
	if err := errors.Join(remove(), removeRunning()); err != nil {
		t.Error(err)
	}
}

// TestRunsDoNotRemoveOneAnothersFolders: some look for what was left while others have
// made their folder and not locked it yet.
func TestRunsDoNotRemoveOneAnothersFolders(t *testing.T) {
	place := t.TempDir()
	var runs sync.WaitGroup
	for range 4 {
		runs.Go(func() {
			for range 200 {
				dir, remove, err := makeWorkFolder(place, "backup", io.Discard)
				if err != nil {
					t.Error(err)
					return
				}
				if err := errors.Join(os.WriteFile(filepath.Join(dir, workStore), nil, 0o600), remove()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	runs.Wait()
	if left, err := os.ReadDir(place); err != nil || len(left) > 0 {
		t.Errorf("there is %v, %v", left, err)
	}
}
