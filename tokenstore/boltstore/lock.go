package boltstore

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// lockedError says that another process holds the file, and which.
func lockedError(path string) error {
	holders := "find it with `fuser " + path + "`"
	if pids := lockHolders(path); len(pids) > 0 {
		names := make([]string, len(pids))
		for i, pid := range pids {
			names[i] = processText(pid)
		}
		holders = "it may be " + strings.Join(names, ", ")
	}
	return &heldError{path, holders}
}

// ErrInUse says that another process has the store open.
var ErrInUse = errors.New("the token store is in use by another process")

type heldError struct{ path, holders string }

func (e *heldError) Error() string {
	return fmt.Sprintf("%s is in use by another process, %s: stop it, or go through its admin listener", e.path, e.holders)
}

func (e *heldError) Unwrap() error { return ErrInUse }

// Hold keeps every process from opening the store at path, sound or not, until
// release is called. It fails with ErrInUse while one has it open.
func Hold(path string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) //nolint:gosec // the operator named it; a pipe would be waited for
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noFile(path)
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		if err == nil {
			err = notRegular(path, info.Mode())
		}
		return nil, errors.Join(err, f.Close())
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil { //nolint:gosec // a descriptor is small
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, lockedError(path)
		}
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// lockHolders returns the processes that hold a lock on the file, as far as
// Linux tells: none on other systems, and none of another container.
func lockHolders(path string) []int {
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return nil
	}
	defer f.Close()
	return parseLocks(f, st.Ino)
}

// parseLocks reads proc(5)'s /proc/locks: `1: FLOCK ADVISORY WRITE 1234
// 08:02:5678 0 EOF`, the last number of the triple being the inode. The device
// is not compared: some file systems show another one there than stat does.
func parseLocks(r io.Reader, inode uint64) []int {
	var pids []int
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[1] != "FLOCK" { // a waiter has `->` there
			continue
		}
		file := fields[5][strings.LastIndexByte(fields[5], ':')+1:]
		pid, err := strconv.Atoi(fields[4])
		if err == nil && pid > 0 && file == strconv.FormatUint(inode, 10) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func processText(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(name)))
}
