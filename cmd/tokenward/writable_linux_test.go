package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// TestCheckLooksWhetherItsUserCanWrite lets a user check that may not write.
func TestCheckLooksWhetherItsUserCanWrite(t *testing.T) {
	const nobody = 65534
	dir, other := t.TempDir(), t.TempDir()
	if os.Geteuid() == 0 {
		for _, d := range []string{dir, other, filepath.Dir(dir)} {
			if err := os.Chown(d, nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("as somebody", func(t *testing.T) {
		if os.Geteuid() == 0 { // who can write everywhere
			runtime.LockOSThread() // the thread ends with the test
			if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), nobody, ^uintptr(0)); errno != 0 {
				t.Fatal(errno)
			}
		}
		cfg := defaultConfig()
		cfg.TokenStore.Path, cfg.Audit.Path = filepath.Join(dir, "tokens.db"), filepath.Join(dir, "audit.jsonl")
		if faults, warnings := cfg.checkWritable(); len(faults)+len(warnings) > 0 {
			t.Errorf("a folder that can be written: %+v %+v", faults, warnings)
		}
		writeFile(t, cfg.TokenStore.Path, "", 0o400)
		faults, _ := cfg.checkWritable()
		expectFault(t, "file", faults, "tokenstore.path: this user cannot write")
		if err := errors.Join(os.Remove(cfg.TokenStore.Path), os.Chmod(dir, 0o500)); err != nil { //nolint:gosec // the fault under test
			t.Fatal(err)
		}
		cfg.Audit.Path = filepath.Join(other, "audit.jsonl")
		faults, _ = cfg.checkWritable()
		expectFault(t, "folder", faults, "tokenstore.path: this user cannot write")

		// A log that is there can be written, but not begun anew.
		logs := filepath.Join(other, "logs")
		cfg.TokenStore.Path, cfg.Audit.Path = filepath.Join(other, "tokens.db"), filepath.Join(logs, "audit.jsonl")
		if err := os.Mkdir(logs, 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, cfg.Audit.Path, "", 0o600)
		if err := os.Chmod(logs, 0o500); err != nil { //nolint:gosec // the fault under test
			t.Fatal(err)
		}
		defer os.Chmod(logs, 0o700) //nolint:errcheck,gosec // so that the folder can be removed
		faults, warnings := cfg.checkWritable()
		expectFault(t, "folder of the log", warnings, "audit.path: this user cannot write in the folder")
		if len(faults) > 0 {
			t.Errorf("a server would start: %+v", faults)
		}
	})
}
