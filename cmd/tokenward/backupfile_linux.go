package main

import (
	"os"

	"golang.org/x/sys/unix"
)

const (
	directOn  = unix.O_DIRECT
	directOff = 0
)

// setDirect makes a file be read and written past the page cache, or not, and reports
// whether it could. A file system may refuse only later, with EINVAL (open(2)).
func setDirect(f *os.File, direct int) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	done := false
	err = raw.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if err != nil {
			return
		}
		_, err = unix.FcntlInt(fd, unix.F_SETFL, flags&^unix.O_DIRECT|direct)
		done = err == nil
	})
	return err == nil && done
}
