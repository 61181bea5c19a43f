package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"
)

func TestBackupFileHoldsWhatWasWritten(t *testing.T) {
	for name, shift := range map[string]int{
		"at a page":                         0,
		"in memory that the system refuses": 1, // and so by way of the page cache
	} {
		for _, length := range []int{0, 1, 4096, filePiece - 1, filePiece, filePiece + 1, 3*filePiece + 4097} {
			want := make([]byte, length)
			for i := range want {
				want[i] = byte(i ^ i>>8 ^ i>>16)
			}
			half := length / 2
			b := newTestBackupFile(t)
			b.buf = b.buf[shift:]
			if n, err := b.Write(want[:half]); n != half || err != nil {
				t.Fatalf("%s: %d bytes: wrote %d, %v", name, length, n, err)
			}
			if n, err := b.ReadFrom(iotest.DataErrReader(bytes.NewReader(want[half:]))); n != int64(length-half) || err != nil {
				t.Fatalf("%s: %d bytes: took %d, %v", name, length, n, err)
			}
			if err := b.rewind(); err != nil {
				t.Fatal(err)
			}
			if got := readWhole(t, b, make([]byte, filePiece)[shift:]); !bytes.Equal(got, want) {
				t.Errorf("%s: read %d of %d bytes, or others", name, len(got), length)
			}
			if got, err := os.ReadFile(b.f.Name()); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: the file holds %d of %d bytes, or others (%v)", name, len(got), length, err)
			}
		}
	}
}

// TestBackupFileStopsAtAFault: of what it writes to, and of what it takes from.
func TestBackupFileStopsAtAFault(t *testing.T) {
	b := newTestBackupFile(t)
	if err := b.f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write(make([]byte, 2*filePiece)); err == nil {
		t.Error("wrote to a closed file")
	}
	b = newTestBackupFile(t)
	if n, err := b.ReadFrom(io.MultiReader(bytes.NewReader(make([]byte, 10)), iotest.ErrReader(io.ErrUnexpectedEOF))); n != 10 || err != io.ErrUnexpectedEOF { //nolint:errorlint // as it was
		t.Errorf("took %d bytes, %v", n, err)
	}
}

func newTestBackupFile(t *testing.T) *backupFile {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "a.backup"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // some are closed already
	return newBackupFile(f)
}

// readWhole reads all of b through piece.
func readWhole(t *testing.T, b *backupFile, piece []byte) (all []byte) {
	t.Helper()
	for {
		n, err := b.Read(piece)
		all = append(all, piece[:n]...)
		if err == io.EOF { //nolint:errorlint // as a reader gives it
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
