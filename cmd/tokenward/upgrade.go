package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"tokenward/tokenstore/boltstore"
)

// upgraded is what an upgrade has done, for programs.
type upgraded struct {
	Path string `json:"path"`
	From uint64 `json:"from"` // schema
	To   uint64 `json:"to"`
	Copy string `json:"copy,omitempty"` // of the file as it was; none where nothing was to be done
}

// upgrade brings the store's file to the layout of this release.
func (m *mover) upgrade() error {
	r := upgraded{Path: m.cfg.TokenStore.Path}
	release, err := boltstore.Hold(r.Path)
	if err != nil {
		return err
	}
	r.Copy = fmt.Sprintf("%s.before-migration-%s", r.Path, m.now().UTC().Format("20060102T150405Z"))
	err = copyFile(r.Copy, r.Path)
	release()
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("copy the store: %w: run this again", err)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("copy the store: %w: make room beside it, then run this again", err), removeCopy(r.Copy))
	}
	if r.From, r.To, err = boltstore.Upgrade(r.Path, 0); r.From == 0 { // it was left as it is
		return errors.Join(err, removeCopy(r.Copy))
	}
	if err != nil {
		return fmt.Errorf("%w; a copy of it as it was at first is %s", err, r.Copy)
	}
	if r.From == r.To {
		if err := os.Remove(r.Copy); err != nil {
			return err
		}
		r.Copy = ""
	}
	switch {
	case m.asJSON:
		return json.NewEncoder(m.out).Encode(r)
	case r.Copy == "":
		_, err = fmt.Fprintf(m.out, "%s already has the current schema, %d: nothing had to be done.\n", r.Path, r.To)
	default:
		_, err = fmt.Fprintf(m.out, "%s was upgraded from schema %d to %d. A copy of it as it was before is %s.\n", r.Path, r.From, r.To, r.Copy)
	}
	return err
}

// removeCopy removes a copy that is of no use. There may be none.
func removeCopy(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// copyFile makes a copy that only the owner can read, and waits for the disk.
func copyFile(to, from string) (err error) {
	in, err := os.Open(from) //nolint:gosec // the operator names it
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // beside what the operator names
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	return boltstore.SyncDir(filepath.Dir(to))
}
