package main

import "golang.org/x/sys/unix"

// writable returns why this user cannot write the file or folder at path: nil,
// EACCES, or EROFS on a file system that is mounted read-only.
func writable(path string) error {
	return unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS)
}
