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
		if faults := cfg.checkWritable(); len(faults) > 0 {
			t.Errorf("a folder that can be written: %+v", faults)
		}
		writeFile(t, cfg.TokenStore.Path, "", 0o400)
		expectFault(t, "file", cfg.checkWritable(), "tokenstore.path: this user cannot write")
		if err := errors.Join(os.Remove(cfg.TokenStore.Path), os.Chmod(dir, 0o500)); err != nil { //nolint:gosec // the fault under test
			t.Fatal(err)
		}
		cfg.Audit.Path = filepath.Join(other, "audit.jsonl")
		expectFault(t, "folder", cfg.checkWritable(), "tokenstore.path: this user cannot write")
	})
}
