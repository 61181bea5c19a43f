package boltstore

import (
	"fmt"
	"io"
	"os"

	"tokenward/tokenstore"
)

// UnpackBackup copies the store's file out of the backup in, which it proves, into out,
// an empty file, which must not be used unless it returns without an error. Where in
// can be read twice, nothing is written before all of it is proven. What is empty in
// the store becomes a hole: a piece of 40 bytes stands for 64 KiB of it, and a backup
// that somebody made up could fill the disk otherwise, however short it is.
func UnpackBackup(in, out *os.File, peppers *tokenstore.Peppers) (Manifest, error) {
	if info, err := in.Stat(); err == nil && info.Mode().IsRegular() {
		if m, err := ReadBackup(in, io.Discard, peppers); err != nil {
			return m, err
		}
		if _, err := in.Seek(0, io.SeekStart); err != nil {
			return Manifest{}, fmt.Errorf("read backup: %w", err)
		}
	}
	m, err := ReadBackup(in, &holedFile{f: out}, peppers)
	if err != nil {
		return m, err
	}
	if err := out.Truncate(m.Bytes); err != nil {
		return m, fmt.Errorf("copy backup: %w", err)
	}
	return m, nil
}

// holedFile writes a file from its start and leaves out the blocks of zeros.
type holedFile struct {
	f  *os.File
	at int64
}

// Write takes whole blocks.
func (h *holedFile) Write(p []byte) (int, error) {
	for from := 0; from < len(p); {
		to := from
		for to < len(p) && usedBytes(p[to:to+blockBytes]) > 0 {
			to += blockBytes
		}
		if to > from {
			if n, err := h.f.WriteAt(p[from:to], h.at+int64(from)); err != nil {
				return from + n, err
			}
		}
		from = to + blockBytes
	}
	h.at += int64(len(p))
	return len(p), nil
}
