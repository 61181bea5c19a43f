package boltstore

import (
	"bufio"
	"fmt"
	"io"
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
	return fmt.Errorf("%s is in use by another process, %s: stop it, or speak to it with --admin", path, holders)
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
	defer f.Close() //nolint:errcheck // it was only read
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
