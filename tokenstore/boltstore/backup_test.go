package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

var backupTime = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func backup(t testing.TB, s *Store) ([]byte, Manifest) {
	t.Helper()
	var b bytes.Buffer
	behind := int64(0)
	m, err := s.Backup(t.Context(), &b, backupTime, func(m *Manifest, done int64) error {
		if done < behind || done > m.Bytes || m.Bytes == 0 {
			t.Errorf("%d of %d bytes are done after %d", done, m.Bytes, behind)
		}
		behind = done
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if behind != m.Bytes {
		t.Errorf("%d of %d bytes are done at the end", behind, m.Bytes)
	}
	return b.Bytes(), m
}

func TestBackupHoldsTheStoreAsItWas(t *testing.T) {
	for name, peppers := range map[string]*tokenstore.Peppers{"plain": nil, "peppered": testPeppers(t, "a")} {
		t.Run(name, func(t *testing.T) {
			s := newTestStore(t, Options{Peppers: peppers})
			load(t, s, 300)
			b, m := backup(t, s)
			load(t, s, 10) // what comes later is not in it
			if m.Store != s.ID() || m.Tokens != 300 || m.LastSeq == 0 {
				t.Errorf("manifest %+v", m)
			}
			var file bytes.Buffer
			if again, err := ReadBackup(bytes.NewReader(b), &file, peppers); err != nil || again != m {
				t.Fatalf("%+v, %v", again, err)
			}
			path := filepath.Join(t.TempDir(), "copy.db")
			if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := Raise(path, m.LastID+1000, m.LastSeq+1000, time.UnixMilli(1_800_000_000_000)); err != nil {
				t.Fatal(err)
			}
			restored, err := Open(Options{Path: path, Peppers: peppers})
			if err != nil {
				t.Fatal(err)
			}
			defer restored.Close() //nolint:errcheck // checked by the others
			check(t, restored)
			if n, err := restored.Count(t.Context(), tokenstore.Query{AllAccounts: true, Revoked: true}); n != 300 || err != nil {
				t.Errorf("%d tokens, %v", n, err)
			}
			if id, seq, err := restored.Position(); id != m.LastID+1000 || seq != m.LastSeq+1000 || err != nil {
				t.Errorf("goes on at %d and %d, %v", id, seq, err)
			}
			if at, err := restored.Restored(); at.UnixMilli() != 1_800_000_000_000 || err != nil {
				t.Errorf("it was restored at %v, %v", at, err)
			}
			if events, err := restored.Pending(10); len(events) != 0 || err != nil {
				t.Errorf("%d events wait, %v", len(events), err)
			}
		})
	}
}

// TestBackupLeavesOutOnlyWhatIsEmpty: what comes out of it is the file, byte for byte,
// save for pages that bolt says are free.
func TestBackupLeavesOutOnlyWhatIsEmpty(t *testing.T) {
	s := newTestStore(t, Options{})
	load(t, s, 2000)
	b, m := backup(t, s)
	var file bytes.Buffer
	if _, err := ReadBackup(bytes.NewReader(b), &file, nil); err != nil {
		t.Fatal(err)
	}
	was, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(os.Getpagesize())
	if int64(file.Len()) != m.Bytes {
		t.Fatalf("%d bytes came out of %d", file.Len(), m.Bytes)
	}
	free := 0
	err = s.db.Update(func(tx *bolt.Tx) error { // who changes may ask for pages
		for at := 2 * size; at < m.Bytes; at += size { // before them are the headers, of the one instant
			page, err := tx.Page(int(at / size))
			if err != nil {
				return err
			}
			want := was[at : at+size]
			if page.Type == "free" {
				want = make([]byte, size)
				free++
			}
			if !bytes.Equal(file.Bytes()[at:at+size], want) {
				t.Errorf("page %d, of type %s, is another", at/size, page.Type)
			}
		}
		return nil
	})
	if err != nil || free == 0 {
		t.Fatalf("%d pages are free, %v", free, err)
	}
	if int64(len(b)) > m.Bytes*9/10 {
		t.Errorf("the backup has %d bytes for a file of %d", len(b), m.Bytes)
	}
}

func TestDamagedBackupIsRefused(t *testing.T) {
	peppers := testPeppers(t, "a")
	s := newTestStore(t, Options{Peppers: peppers})
	load(t, s, 200)
	whole, m := backup(t, s)
	unsealed, _ := backup(t, newTestStore(t, Options{}))
	first := bytes.IndexByte(whole, '\n') + 1
	second, _ := pieceLength(whole[first:], pieceBytes)
	second += first
	third, _ := pieceLength(whole[second:], pieceBytes)
	third += second
	end := bytes.LastIndex(whole, []byte(backupEnd))
	edit := func(change func(b []byte) []byte) []byte { return change(bytes.Clone(whole)) }
	flip := func(at int) []byte {
		return edit(func(b []byte) []byte { b[at] ^= 1; return b })
	}
	digit := func(at int) []byte {
		return edit(func(b []byte) []byte { b[at] = "01"[(b[at]+1)&1]; return b })
	}
	replace := func(old, with string) []byte { return bytes.Replace(whole, []byte(old), []byte(with), 1) }
	for name, test := range map[string]struct {
		b       []byte
		peppers *tokenstore.Peppers
		want    string
	}{
		"empty":                     {nil, peppers, "is not a backup"},
		"no backup":                 {[]byte("tokens"), peppers, "is not a backup"},
		"a store":                   {[]byte(strings.Repeat("\x00", 8192)), peppers, "is not a backup"},
		"cut in its head":           {whole[:30], peppers, "first line is wrong"},
		"cut before its file":       {whole[:first], peppers, "ends too early"},
		"cut in a piece's head":     {whole[:second+20], peppers, "ends too early"},
		"cut in a piece":            {whole[:second+500], peppers, "ends too early"},
		"cut between pieces":        {whole[:second], peppers, "ends too early"},
		"without its end":           {whole[:end], peppers, "end is missing"},
		"cut in its end":            {whole[:len(whole)-1], peppers, "end is missing"},
		"with more behind":          {edit(func(b []byte) []byte { return append(b, "more\n"...) }), peppers, "follows its end"},
		"twice":                     {edit(func(b []byte) []byte { return append(b, whole...) }), peppers, "follows its end"},
		"another manifest":          {replace(`"last_id":`, `"last_id":1`), peppers, "checksum is wrong"},
		"a manifest said twice":     {replace(`"schema":`, `"version":2,"schema":`), peppers, "first line is wrong"},
		"a manifest with more":      {replace(`"schema":`, `"more":1,"schema":`), peppers, "first line is wrong"},
		"no length":                 {replace(fmt.Sprintf(`"bytes":%d`, m.Bytes), `"bytes":0`), peppers, "first line is wrong"},
		"a length below zero":       {replace(`"bytes":`, `"bytes":-`), peppers, "first line is wrong"},
		"half a block":              {replace(fmt.Sprintf(`"bytes":%d`, m.Bytes), `"bytes":6144`), peppers, "first line is wrong"},
		"a longer file":             {replace(fmt.Sprintf(`"bytes":%d`, m.Bytes), `"bytes":9223372036854771712`), peppers, "the backup is damaged"},
		"a shorter file":            {replace(fmt.Sprintf(`"bytes":%d`, m.Bytes), `"bytes":65536`), peppers, "end is missing"},
		"a part of a piece":         {replace(fmt.Sprintf(`"bytes":%d`, m.Bytes), `"bytes":4096`), peppers, "piece 0 is none"},
		"another sum":               {flip(second), peppers, "the checksum of piece 1 is wrong"},
		"another length":            {flip(second + 8), peppers, "piece 1"},
		"a block beyond its end":    {edit(func(b []byte) []byte { b[second+9] = 0xff; return b }), peppers, "piece 1 is none"},
		"another byte":              {flip(second + 100), peppers, "the checksum of piece 1 is wrong"},
		"a piece left out":          {edit(func(b []byte) []byte { return slices.Delete(b, second, third) }), peppers, "the checksum of piece 1 is wrong"},
		"a piece twice":             {edit(func(b []byte) []byte { return slices.Insert(b, third, whole[second:third]...) }), peppers, "piece 2 is none"},
		"pieces in another order":   {slices.Concat(whole[:first], whole[second:third], whole[first:second], whole[third:]), peppers, "the checksum of piece 0 is wrong"},
		"zeros not left out":        {untrimmed(whole, first), peppers, "piece 0 is none"},
		"another checksum":          {digit(end + len(backupEnd)), peppers, "checksum is wrong"},
		"another seal":              {digit(len(whole) - 2), peppers, "not sealed by a configured pepper"},
		"no seal":                   {append(bytes.Clone(whole[:end+len(backupEnd)+65]), "-\n"...), peppers, "not sealed"},
		"another pepper":            {whole, testPeppers(t, "b"), "not sealed by a configured pepper"},
		"no pepper":                 {whole, nil, "pepper_files is empty"},
		"not sealed, with a pepper": {unsealed, peppers, "it is not sealed"},
		"an older version":          {replace(`"version":2`, `"version":1`), peppers, "restore it with the program that made it"},
		"a newer version":           {replace(`"version":2`, `"version":3`), peppers, "use the newer program"},
	} {
		t.Run(name, func(t *testing.T) {
			if bytes.Equal(test.b, whole) && name != "another pepper" && name != "no pepper" {
				t.Fatal("nothing was changed")
			}
			m, err := ReadBackup(bytes.NewReader(test.b), &bytes.Buffer{}, test.peppers)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%+v, %v; want %q", m, err, test.want)
			}
			whole := strings.Contains(test.want, "pepper") || strings.Contains(test.want, "not sealed")
			if _, err := CheckBackup(bytes.NewReader(test.b)); whole != (err == nil) {
				t.Errorf("without a pepper: %v", err)
			}
		})
	}
}

// untrimmed is a backup whose first piece has a word of zeros too much, with the sum
// that it then has.
func untrimmed(b []byte, first int) []byte {
	b = bytes.Clone(b)
	length, _ := pieceLength(b[first:], pieceBytes)
	last := first + 8 + 2*(pieceBlocks-1)
	binary.LittleEndian.PutUint16(b[last:], binary.LittleEndian.Uint16(b[last:])+1)
	b = slices.Insert(b, first+length, make([]byte, wordBytes)...)
	binary.LittleEndian.PutUint64(b[first:], pieceSum(b[first+8:first+length+wordBytes], 0))
	return b
}

// TestSealedBackupCannotBeForgedByItsSums changes a piece and makes every sum fit that
// takes no pepper.
func TestSealedBackupCannotBeForgedByItsSums(t *testing.T) {
	peppers := testPeppers(t, "a")
	s := newTestStore(t, Options{Peppers: peppers})
	load(t, s, 200)
	b, m := backup(t, s)
	first := bytes.IndexByte(b, '\n') + 1
	end := bytes.LastIndex(b, []byte(backupEnd))
	b[first+pieceHead+200] ^= 1
	proof := newBackupProof(b[:first], nil)
	in := b[first:end]
	for at := int64(0); at < m.Bytes; at += pieceBytes {
		length, _ := pieceLength(in, pieceBytes)
		binary.LittleEndian.PutUint64(in, pieceSum(in[8:length], proof.pieces))
		proof.add(in[:length])
		in = in[length:]
	}
	digest, _ := proof.sums()
	copy(b[end+len(backupEnd):], hex.EncodeToString(digest))
	if _, err := CheckBackup(bytes.NewReader(b)); err != nil {
		t.Fatalf("the sums do not fit: %v", err)
	}
	if _, err := ReadBackup(bytes.NewReader(b), io.Discard, peppers); err == nil || !strings.Contains(err.Error(), "not sealed by") {
		t.Errorf("%v", err)
	}
}

// TestBackupIsReadHoweverItComes: pieces lie across whatever is read at once.
func TestBackupIsReadHoweverItComes(t *testing.T) {
	s := newTestStore(t, Options{})
	load(t, s, 2000)
	b, m := backup(t, s)
	for name, r := range map[string]io.Reader{
		"byte by byte":      iotest.OneByteReader(bytes.NewReader(b)),
		"by halves":         iotest.HalfReader(bytes.NewReader(b)),
		"ending with bytes": iotest.DataErrReader(bytes.NewReader(b)),
	} {
		if again, err := CheckBackup(r); again != m || err != nil {
			t.Errorf("%s: %+v, %v", name, again, err)
		}
	}
	for _, at := range []int{10, len(b) / 2, len(b) - 10} {
		broken := io.MultiReader(bytes.NewReader(b[:at]), iotest.ErrReader(syscall.EIO))
		if _, err := CheckBackup(broken); !errors.Is(err, syscall.EIO) {
			t.Errorf("a disk that breaks at %d: %v", at, err)
		}
	}
}

func TestPieceComesBack(t *testing.T) {
	block := func(used int) []byte {
		b := make([]byte, blockBytes)
		for i := range used {
			b[i] = byte(i) | 1
		}
		return b
	}
	for name, raw := range map[string][]byte{
		"nothing in it":      make([]byte, pieceBytes),
		"full":               bytes.Repeat(block(blockBytes), pieceBlocks),
		"one block":          block(100),
		"a last byte":        slices.Concat(block(0), append(make([]byte, blockBytes-1), 1), block(0)),
		"words that are cut": slices.Concat(block(1), block(7), block(8), block(9), block(blockBytes-1)),
	} {
		t.Run(name, func(t *testing.T) {
			piece := appendPiece([]byte("before"), raw, 7)[len("before"):]
			if length, ok := pieceLength(piece, len(raw)); length != len(piece) || !ok || !trimmed(piece) {
				t.Errorf("%d bytes, %v, want %d", length, ok, len(piece))
			}
			again := bytes.Repeat([]byte{0xff}, len(raw))
			if unpackPiece(again, piece); !bytes.Equal(again, raw) {
				t.Error("another one came back")
			}
		})
	}
}

func TestBackupThatCannotBeWrittenFails(t *testing.T) {
	s := newTestStore(t, Options{})
	full := errors.New("disk full")
	if _, err := s.Backup(t.Context(), failingWriter{full}, backupTime, nil); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Backup(ctx, &bytes.Buffer{}, backupTime, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestBackupSeesOneInstantWhileChangesGoOn(t *testing.T) {
	s := newTestStore(t, Options{})
	load(t, s, 500)
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if err := s.Change(context.WithoutCancel(t.Context()), func(tx tokenstore.Tx) error {
				id, err := tx.NewID()
				if err != nil {
					return err
				}
				tx.Emit([]byte("event"))
				return tx.Put(bulkToken(id))
			}); err != nil && !errors.Is(err, tokenstore.ErrOutboxFull) {
				stopped <- err
				return
			}
		}
	}()
	for range 10 {
		b, m := backup(t, s)
		var file bytes.Buffer
		if _, err := ReadBackup(bytes.NewReader(b), &file, nil); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "copy.db")
		if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		restored, err := Open(Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		check(t, restored)
		if id, _, _ := restored.Position(); id != m.LastID {
			t.Errorf("the last id is %d, in the manifest %d", id, m.LastID)
		}
		if err := restored.Close(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestHeldStoreCannotBeOpened(t *testing.T) {
	path := closedStore(t, nil, 1)
	release, err := Hold(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Path: path, LockTimeout: time.Millisecond}); !errors.Is(err, ErrInUse) {
		t.Errorf("opened: %v", err)
	}
	release()
	s, err := Open(Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Hold(path); !errors.Is(err, ErrInUse) {
		t.Errorf("held while it is open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// FuzzReadBackup: what is read is bounded by what it says, and written again is the
// same bytes.
func FuzzReadBackup(f *testing.F) {
	head := func(bytes int) string {
		return fmt.Sprintf(`tokenward backup {"version":2,"store":"a","schema":1,"time":"2026-11-21T12:00:00Z","last_id":1,"last_seq":1,"tokens":1,"bytes":%d}`+"\n", bytes)
	}
	whole := func(raw []byte) []byte {
		b := []byte(head(len(raw)))
		proof := newBackupProof(b, nil)
		for part := range slices.Chunk(raw, pieceBytes) {
			begin := len(b)
			b = appendPiece(b, part, proof.pieces)
			proof.add(b[begin:])
		}
		digest, _ := proof.sums()
		return fmt.Appendf(b, "%s%x -\n", backupEnd, digest)
	}
	f.Add(whole([]byte(strings.Repeat("a page", 4096))))
	f.Add(whole(append(make([]byte, pieceBytes), strings.Repeat("b", blockBytes)...)))
	f.Add([]byte(head(4096) + "end 00 -\n"))
	f.Add([]byte(head(1<<62) + strings.Repeat("\x00", 100)))
	f.Add([]byte(`tokenward backup {"version":1,"bytes":-1}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var file bytes.Buffer
		m, err := ReadBackup(bytes.NewReader(b), &file, nil)
		if int64(file.Len()) > max(0, m.Bytes) || file.Len() > (len(b)/pieceHead+1)*pieceBytes {
			t.Errorf("%d bytes came out of %d, which say %d", file.Len(), len(b), m.Bytes)
		}
		if err != nil {
			return
		}
		var again bytes.Buffer
		w, err := newBackupWriter(t.Context(), &again, &m, nil)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := w.ReadFrom(&file); n != m.Bytes || err != nil {
			t.Errorf("%d of %d bytes, %v", n, m.Bytes, err)
		}
		if err := w.finish(nil); err != nil || !bytes.Equal(again.Bytes(), b) {
			t.Errorf("another backup of the same file: %v", err)
		}
	})
}

// brokenPipe takes nothing.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestBackupSaysOnceWhatItFailedBy(t *testing.T) {
	s := newTestStore(t, Options{})
	_, err := s.Backup(t.Context(), brokenPipe{}, time.Now(), nil)
	if !errors.Is(err, syscall.EPIPE) || strings.Count(err.Error(), syscall.EPIPE.Error()) != 1 {
		t.Errorf("error is %v", err)
	}
}

func TestFailedWriteNamesTheFileOnce(t *testing.T) {
	err := explain("t.db", &fs.PathError{Op: "write", Path: "t.db", Err: syscall.ENOSPC})
	if want := "write t.db: no space left on device: free space on its disk, then try again"; err.Error() != want {
		t.Errorf("error is %q, want %q", err, want)
	}
	if err := explain("t.db", errors.New("file resize error")); !strings.HasPrefix(err.Error(), "write t.db: file resize error: check its disk") {
		t.Errorf("error is %q", err)
	}
}
