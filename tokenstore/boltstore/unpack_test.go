package boltstore

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"tokenward/tokenstore"
)

// unpack has a backup unpacked out of a file, and returns what it is unpacked to.
func unpack(t *testing.T, backup []byte, peppers *tokenstore.Peppers) (out *os.File, err error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "backup")
	if err := os.WriteFile(path, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if out, err = os.CreateTemp(t.TempDir(), "store"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	_, err = UnpackBackup(in, out, peppers)
	return out, err
}

func onDisk(t *testing.T, f *os.File) (length, blocks int64) {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Size(), info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestMadeUpBackupFillsNoDisk(t *testing.T) {
	t.Parallel()
	const pieces = 1 << 10
	m := Manifest{Version: backupVersion, Store: "made-up", Time: backupTime, Bytes: pieces * pieceBytes}
	head, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	b := fmt.Appendf(nil, "%s%s\n", backupMark, head)
	proof := newBackupProof(b, nil)
	for i := range uint64(pieces) {
		raw := make([]byte, pieceBytes)
		if i == pieces/2 {
			raw[5*blockBytes] = 1
		}
		begin := len(b)
		b = appendPiece(b, raw, i)
		proof.add(b[begin:])
	}
	digest, _ := proof.sums()
	b = fmt.Appendf(b, "%s%x -\n", backupEnd, digest)
	out, err := unpack(t, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if length, blocks := onDisk(t, out); length != m.Bytes || blocks > 64<<10 {
		t.Errorf("%d bytes of backup are %d bytes on the disk, of a file of %d", len(b), blocks, length)
	}
	out, err = unpack(t, b, testPeppers(t, "a"))
	if length, _ := onDisk(t, out); err == nil || length != 0 {
		t.Errorf("%d bytes of what nobody sealed are written, %v", length, err)
	}
}

func TestUnpackedStoreIsTheStore(t *testing.T) {
	t.Parallel()
	peppers := testPeppers(t, "a")
	s := newTestStore(t, Options{Peppers: peppers})
	load(t, s, 500)
	b, _ := backup(t, s)
	var want bytes.Buffer
	if _, err := ReadBackup(bytes.NewReader(b), &want, peppers); err != nil {
		t.Fatal(err)
	}
	out, err := unpack(t, b, peppers)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(out.Name()); err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes are unpacked, and differ from the %d of the store, %v", len(got), want.Len(), err)
	}
	if out, err = unpack(t, b[:len(b)-1], peppers); err == nil {
		t.Error("a backup that was cut off is unpacked")
	}
	if length, _ := onDisk(t, out); length != 0 {
		t.Errorf("%d bytes of it are written", length)
	}
}
