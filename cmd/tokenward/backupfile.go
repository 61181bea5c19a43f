package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// filePiece is what goes to the disk, and comes from it, at once: four times as many
// pages as one request to a virtual disk takes, of at most 254. Waiting for more and
// smaller pieces costs a quarter of the command's processor time.
const filePiece = 4 * 960 << 10 // bytes

// backupFile writes a new file from its start, and reads it again, past the page
// cache where the system and the file system know how: through it, half a gigabyte
// costs the processor several times as much, pushes the store's pages out, and is
// proven by what is in memory and not on the disk. It is for one goroutine.
type backupFile struct {
	f      *os.File
	direct bool   // past the page cache
	buf    []byte // what is to be written; begins at a page, as direct wants it
	n      int    // bytes in buf
}

func newBackupFile(f *os.File) *backupFile {
	return &backupFile{f: f, direct: setDirect(f, directOn), buf: make([]byte, filePiece)}
}

// ReadFrom takes all of r. Nothing of it is sure to be in the file before rewind.
func (b *backupFile) ReadFrom(r io.Reader) (total int64, err error) {
	for {
		n, err := r.Read(b.buf[b.n:])
		b.n += n
		total += int64(n)
		if b.n == len(b.buf) {
			if err := b.flush(); err != nil {
				return total, err
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// Write takes p, as ReadFrom does.
func (b *backupFile) Write(p []byte) (total int, err error) {
	for total < len(p) {
		n := copy(b.buf[b.n:], p[total:])
		b.n += n
		total += n
		if b.n == len(b.buf) {
			if err := b.flush(); err != nil {
				return total, err
			}
		}
	}
	return total, nil
}

func (b *backupFile) flush() error {
	p := b.buf[:b.n]
	n, err := b.f.Write(p)
	if b.refused(err) {
		_, err = b.f.Write(p[n:])
	}
	if err != nil {
		return fmt.Errorf("write the backup: %w: free space on its disk, then try again", err)
	}
	b.n = 0
	return nil
}

// refused reports whether err says only that the file system does not go past the
// page cache, or not with this memory, and makes it go the common way from here on.
func (b *backupFile) refused(err error) bool {
	if !b.direct || !errors.Is(err, syscall.EINVAL) {
		return false
	}
	b.direct = false
	setDirect(b.f, directOff)
	return true
}

// rewind writes what is left, and goes to the start of the file, for Read.
func (b *backupFile) rewind() error {
	if b.direct { // what is left is not a whole number of blocks
		setDirect(b.f, directOff)
	}
	if err := b.flush(); err != nil {
		return err
	}
	if b.direct {
		b.direct = setDirect(b.f, directOn)
	}
	_, err := b.f.Seek(0, io.SeekStart)
	return err
}

// Read reads the file. Whole pieces, into memory that begins at a page, go past the
// page cache.
func (b *backupFile) Read(p []byte) (int, error) {
	n, err := b.f.Read(p)
	if n == 0 && b.refused(err) {
		return b.f.Read(p)
	}
	return n, err
}
