package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// workStore is the name of a store's file in a work folder.
const workStore = "tokens.db"

// makeWorkFolder makes a folder in place, for what a command makes until it is whole.
// This process holds it, which tells it from what killed runs left behind. That is
// removed, and tell is told.
func makeWorkFolder(place, command string, tell io.Writer) (path string, remove func() error, err error) {
	stem := ".tokenward-" + command + "-"
	removeLeftFolders(place, stem, tell)
	for range 10 {
		if path, err = os.MkdirTemp(place, stem+"*"); err != nil {
			return "", nil, err
		}
		release, err := holdFolder(path)
		if errors.Is(err, errFolderTaken) { // by a run that looked for what was left just then
			continue
		}
		if err != nil { // no run can hold folders here, so none removes this one
			release = func() error { return nil }
		}
		return path, func() error { return errors.Join(os.RemoveAll(path), release()) }, nil
	}
	return "", nil, &fs.PathError{Op: "make a folder in", Path: place, Err: errFolderTaken}
}

func removeLeftFolders(place, stem string, tell io.Writer) {
	entries, err := os.ReadDir(place)
	if err != nil {
		return // who makes a folder there says what is wrong
	}
	for _, e := range entries {
		path := filepath.Join(place, e.Name())
		if !e.IsDir() || !strings.HasPrefix(e.Name(), stem) {
			continue
		}
		release, err := holdFolder(path)
		if err != nil {
			continue
		}
		if err := errors.Join(os.RemoveAll(path), release()); err != nil {
			fmt.Fprintf(tell, "%s was left behind by a run that was killed, and cannot be removed: %v\n", path, err)
			continue
		}
		fmt.Fprintf(tell, "Removed %s, which a run that was killed had left behind.\n", path)
	}
}

// errFolderTaken says that another process holds the folder, or has just removed it.
var errFolderTaken = errors.New("another run removes it; try again")

// holdFolder keeps others from holding the folder until release is called or this
// process ends, in whatever way.
func holdFolder(path string) (release func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_DIRECTORY, 0) //nolint:gosec // in a place that the operator names
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errFolderTaken
	}
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) //nolint:gosec // a descriptor is small
	if err == nil {
		var open, named fs.FileInfo
		open, err = f.Stat()
		if named, _ = os.Lstat(path); err == nil && (named == nil || !os.SameFile(open, named)) {
			err = errFolderTaken
		}
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errFolderTaken
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f.Close, nil
}
