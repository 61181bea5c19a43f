package audit

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	macKey     = bytes.Repeat([]byte("k"), 32)
	otherKey   = bytes.Repeat([]byte("o"), 32)
	signingKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte("s"), ed25519.SeedSize))
	publicKey  = signingKey.Public().(ed25519.PublicKey)
)

func newPath(t testing.TB) string { return filepath.Join(t.TempDir(), "audit.jsonl") }

func mustOpen(t testing.TB, path string, o Options) *Log {
	t.Helper()
	l, _, err := Open(path, noon, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(noon) })
	return l
}

func mustAppend(t testing.TB, l *Log, ids ...uint64) {
	t.Helper()
	for _, id := range ids {
		if err := l.Append(noon, event(id)); err != nil {
			t.Fatal(err)
		}
	}
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(noon); err != nil {
		t.Fatal(err)
	}
}

// mustBeWhole verifies the log and returns the token ids of its events.
func mustBeWhole(t testing.TB, path string, k Keys) []uint64 {
	t.Helper()
	r, err := Verify(path, k)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Faults {
		t.Errorf("fault: %s", f)
	}
	if r.TornBytes > 0 {
		t.Errorf("%d torn bytes", r.TornBytes)
	}
	var ids []uint64
	for _, rec := range records(t, path) {
		ids = append(ids, rec.Event.Target.Token)
	}
	if r.Events != uint64(len(ids)) {
		t.Errorf("%d events verified, %d read", r.Events, len(ids))
	}
	return ids
}

// records reads all events of a log.
func records(t testing.TB, path string) []Record {
	t.Helper()
	older, err := rotatedFiles(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []Record
	for _, name := range append(older, path) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for text := range bytes.Lines(b) {
			rec, ok, err := ParseRecord(bytes.TrimSuffix(text, []byte("\n")))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if ok {
				out = append(out, rec)
			}
		}
	}
	return out
}

func wantIDs(t testing.TB, got []uint64, last uint64) {
	t.Helper()
	var want []uint64
	for i := range last {
		want = append(want, i+1)
	}
	if !slices.Equal(got, want) {
		t.Errorf("events %v, want 1 to %d", got, last)
	}
}

func wantDamage(t testing.TB, err error, line int) {
	t.Helper()
	var d *DamageError
	if !errors.As(err, &d) {
		t.Errorf("error %v, want a *DamageError", err)
		return
	}
	if line >= 0 && d.Line != line {
		t.Errorf("damage in line %d, want %d: %v", d.Line, line, d)
	}
	if !strings.Contains(err.Error(), "tokenward audit verify") {
		t.Errorf("the error does not say what to do: %v", err)
	}
}

func TestEventsAreThereAfterReopening(t *testing.T) {
	for name, o := range map[string]Options{
		"plain":  {},
		"keyed":  {MACKeys: [][]byte{macKey}},
		"signed": {MACKeys: [][]byte{macKey}, SigningKey: signingKey, HeadEvery: 3},
		"small":  {MaxFileBytes: 1, SigningKey: signingKey},
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			for i := range uint64(5) {
				l, r, err := Open(path, noon, o)
				if err != nil || r != (Recovery{Created: i == 0}) {
					t.Fatalf("opening %d: %+v, %v", i, r, err)
				}
				mustAppend(t, l, 2*i+1)
				if err := l.Append(noon, event(2*i+2)); err != nil {
					t.Fatal(err)
				}
				mustClose(t, l)
				wantIDs(t, mustBeWhole(t, path, Keys{MAC: o.MACKeys, Signing: publicKey}), 2*i+2)
			}
		})
	}
}

func TestTornLineIsCutOffAtEveryByte(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{MACKeys: [][]byte{macKey}})
	mustAppend(t, l, 1, 2)
	if err := l.Append(noon, event(3), event(4)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	firstLine := bytes.IndexByte(whole, '\n') + 1
	for size := range len(whole) + 1 {
		for _, tail := range []string{"", strings.Repeat("\x00", 5000)} {
			cut := whole[:size]
			if err := os.WriteFile(path, append(bytes.Clone(cut), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			l, r, err := Open(path, noon, Options{MACKeys: [][]byte{macKey}})
			if size < firstLine {
				// Files are complete before they get their name, so this is no crash.
				if size == 0 && tail == "" {
					if err != nil || !r.Created {
						t.Fatalf("empty file: %+v, %v", r, err)
					}
					mustClose(t, l)
					continue
				}
				wantDamage(t, err, 0)
				continue
			}
			if err != nil {
				t.Fatalf("cut to %d bytes: %v", size, err)
			}
			good := bytes.LastIndexByte(cut, '\n') + 1
			if want := size - good + len(tail); r.TornBytes != want {
				t.Errorf("cut to %d bytes: %d torn, want %d", size, r.TornBytes, want)
			}
			events := uint64(bytes.Count(cut[:good], []byte("\n"))) - 1
			mustAppend(t, l, events+1)
			mustClose(t, l)
			wantIDs(t, mustBeWhole(t, path, Keys{MAC: [][]byte{macKey}}), events+1)
		}
	}
}

func TestEveryChangedByteIsFound(t *testing.T) {
	path := newPath(t)
	keys := Keys{MAC: [][]byte{macKey}, Signing: publicKey}
	o := Options{MACKeys: [][]byte{macKey}, SigningKey: signingKey, HeadEvery: 2}
	l := mustOpen(t, path, o)
	mustAppend(t, l, 1, 2, 3)
	mustClose(t, l)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line, lines := uint64(1), uint64(bytes.Count(whole, []byte("\n")))
	for i, c := range whole {
		for _, to := range []byte{c ^ 1 + byte(i%2)<<5, '\n'} {
			if to == c {
				continue
			}
			changed := bytes.Clone(whole)
			changed[i] = to
			if err := os.WriteFile(path, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			if l, _, err := Open(path, noon, o); err == nil && i != len(whole)-1 {
				mustClose(t, l)
				t.Fatalf("byte %d as %q: opened", i, to)
			} else if err == nil {
				mustClose(t, l)
			}
			r, err := Verify(path, keys)
			switch {
			case err != nil: // the first line names another key
				if line != 1 {
					t.Errorf("byte %d as %q: %v", i, to, err)
				}
			case i == len(whole)-1: // looks like a crash
			case len(r.Faults) == 0:
				t.Errorf("byte %d as %q: Verify finds nothing", i, to)
			case r.Faults[0].From > line || r.Faults[len(r.Faults)-1].To < line:
				t.Fatalf("byte %d in line %d as %q: %v", i, line, to, r.Faults)
			case line > 1 && r.Faults[0].From+1 < line || r.Faults[len(r.Faults)-1].To > line+2:
				t.Fatalf("byte %d in line %d as %q: fault too wide: %v", i, line, to, r.Faults)
			}
		}
		if c == '\n' {
			line++
		}
	}
	if line != lines+1 {
		t.Fatal("not all lines were tried")
	}
}

func TestLongestEventIsReadBack(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{})
	e := event(1)
	e.After = new(Token)
	for range MaxEventBytes/(maxText+3) - 1 {
		e.After.Scopes = append(e.After.Scopes, strings.Repeat("é", maxText/2))
	}
	if n := len(mustEncode(t, e)); n < MaxEventBytes-2*maxText {
		t.Fatalf("only %d bytes", n)
	}
	if err := l.Append(noon, e, event(2), e); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	l = mustOpen(t, path, Options{})
	mustAppend(t, l, 3)
	if ids := mustBeWhole(t, path, Keys{}); !slices.Equal(ids, []uint64{1, 2, 1, 3}) {
		t.Errorf("events %v", ids)
	}
}

func TestForeignFileIsNotTouched(t *testing.T) {
	for _, content := range []string{"hello", "hello\n", "{}\n", "\n", `{"n":1,"event":{},"chain":"` + strings.Repeat("0", 64) + "\"}\n", strings.Repeat("x", 2*maxLineBytes)} {
		path := newPath(t)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if l, _, err := Open(path, noon, Options{}); err == nil {
			mustClose(t, l)
			t.Errorf("%.40q was opened", content)
		}
		if now, _ := os.ReadFile(path); string(now) != content {
			t.Errorf("%.40q became %.40q", content, now)
		}
	}
	dir := t.TempDir()
	if _, _, err := Open(dir, noon, Options{}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a folder: %v", err)
	}
	if _, _, err := Open(filepath.Join(dir, "no", "such"), noon, Options{}); err == nil {
		t.Error("a log in a folder that is not there was opened")
	}
}

func TestTornTailMustBelongToTheLog(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{})
	mustAppend(t, l, 1)
	mustClose(t, l)
	whole, _ := os.ReadFile(path)
	for _, tail := range []string{"hello", `{"n":4,`, `{"n":2,`, "{}", "\x00x"} {
		if err := os.WriteFile(path, append(bytes.Clone(whole), tail...), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := Open(path, noon, Options{})
		wantDamage(t, err, 0)
		if now, _ := os.ReadFile(path); len(now) != len(whole)+len(tail) {
			t.Errorf("%q was cut off", tail)
		}
	}
}

func TestSecondWriterIsRefused(t *testing.T) {
	path := newPath(t)
	mustOpen(t, path, Options{})
	if _, _, err := Open(path, noon, Options{}); err == nil || !strings.Contains(err.Error(), "another process writes this audit log") {
		t.Errorf("second writer: %v", err)
	}
}

func TestLogStopsWhenItsFileIsTouchedByOthers(t *testing.T) {
	for name, touch := range map[string]func(path string) error{
		"removed":  os.Remove,
		"renamed":  func(path string) error { return os.Rename(path, path+".1") },
		"emptied":  func(path string) error { return os.Truncate(path, 0) },
		"extended": func(path string) error { return os.Truncate(path, 10_000) },
		"replaced": func(path string) error {
			b, err := os.ReadFile(path)
			return errors.Join(err, os.Remove(path), os.WriteFile(path, b, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			l := mustOpen(t, path, Options{})
			mustAppend(t, l, 1)
			if err := touch(path); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := l.Append(noon, event(2)); err == nil || !strings.Contains(err.Error(), "restart tokenward") {
					t.Errorf("append: %v", err)
				}
			}
			if !l.Stats().Broken {
				t.Error("not shown as broken")
			}
		})
	}
}

// faultyFile fails as told, once per entry.
type faultyFile struct {
	logFile
	writeAtMost   int // of the next write, then no space is left; -1: no fault
	sync          []error
	truncateFails bool
}

func (f *faultyFile) Write(b []byte) (int, error) {
	if f.writeAtMost < 0 || f.writeAtMost >= len(b) {
		return f.logFile.Write(b)
	}
	n, err := f.logFile.Write(b[:f.writeAtMost])
	f.writeAtMost = -1
	return n, errors.Join(err, syscall.ENOSPC)
}

func (f *faultyFile) Sync() error {
	if len(f.sync) > 0 {
		err := f.sync[0]
		f.sync = f.sync[1:]
		return err
	}
	return f.logFile.Sync()
}

func (f *faultyFile) Truncate(size int64) error {
	if f.truncateFails {
		return syscall.EIO
	}
	return f.logFile.Truncate(size)
}

func TestFullDiskLeavesTheLogAsItWas(t *testing.T) {
	length := len(appendChain(appendBody(nil, 3, kindEvent, "", 0, mustEncode(t, event(2))), chainValue{}))
	for at := range length {
		path := newPath(t)
		l := mustOpen(t, path, Options{})
		mustAppend(t, l, 1)
		before := l.Head()
		l.file = &faultyFile{logFile: l.file, writeAtMost: at}
		if err := l.Append(noon, event(2)); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free space") {
			t.Fatalf("full after %d bytes: %v", at, err)
		}
		if h := l.Head(); h.String() != before.String() {
			t.Fatalf("full after %d bytes: head moved from %v to %v", at, before, h)
		}
		wantIDs(t, mustBeWhole(t, path, Keys{}), 1)
		mustAppend(t, l, 2, 3)
		mustClose(t, l)
		wantIDs(t, mustBeWhole(t, path, Keys{}), 3)
	}
}

func TestFailedSyncIsNotBelievedLater(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{})
	mustAppend(t, l, 1)
	l.file = &faultyFile{logFile: l.file, writeAtMost: -1, sync: []error{syscall.EIO}}
	if err := l.Append(noon, event(2)); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	wantIDs(t, mustBeWhole(t, path, Keys{}), 1)
	mustAppend(t, l, 2)
	wantIDs(t, mustBeWhole(t, path, Keys{}), 2)
}

func TestLogThatCannotBeCutBackStaysClosed(t *testing.T) {
	for name, f := range map[string]faultyFile{
		"truncate fails":    {writeAtMost: 7, truncateFails: true},
		"second sync fails": {writeAtMost: -1, sync: []error{syscall.EIO, syscall.EIO}},
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			l := mustOpen(t, path, Options{})
			mustAppend(t, l, 1)
			f.logFile = l.file
			l.file = &f
			for range 3 {
				if err := l.Append(noon, event(2)); !errors.Is(err, syscall.EIO) {
					t.Errorf("append: %v", err)
				}
			}
			mustClose(t, l)
			l = mustOpen(t, path, Options{})
			mustAppend(t, l, 2)
			mustBeWhole(t, path, Keys{})
		})
	}
}

// hangingFile stops in Sync until it is let go.
type hangingFile struct {
	logFile
	in, out chan struct{}
}

func (f *hangingFile) Sync() error {
	f.in <- struct{}{}
	<-f.out
	return f.logFile.Sync()
}

func TestHangingDiskHangsNobodyWhoOnlyAsks(t *testing.T) {
	l := mustOpen(t, newPath(t), Options{})
	f := &hangingFile{l.file, make(chan struct{}), make(chan struct{})}
	l.file = f
	done := make(chan error)
	go func() { done <- l.Append(noon, event(1)) }()
	<-f.in
	if l.Head().Line != 1 || l.SignedHead().Line != 0 || l.Stats().Line != 1 {
		t.Error("what is not durable is shown")
	}
	close(f.out)
	if err := <-done; err != nil || l.Head().Line != 2 || l.Stats().Events != 1 {
		t.Errorf("%+v, %v", l.Stats(), err)
	}
}

func TestClosedLogTakesNothing(t *testing.T) {
	l := mustOpen(t, newPath(t), Options{})
	mustClose(t, l)
	mustClose(t, l)
	if err := l.Append(noon, event(1)); !errors.Is(err, ErrClosed) {
		t.Errorf("append: %v", err)
	}
}

func TestBadEventIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{})
	if err := l.Append(noon, event(1), Event{}); err == nil {
		t.Error("an empty event was taken")
	}
	wantIDs(t, mustBeWhole(t, path, Keys{}), 0)
}

// fillFiles appends events until the log has that many older files.
func fillFiles(t *testing.T, path string, o Options, older int) (last uint64) {
	t.Helper()
	l := mustOpen(t, path, o)
	defer mustClose(t, l)
	for {
		files, err := rotatedFiles(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(files) == older {
			return last
		}
		last++
		mustAppend(t, l, last)
	}
}

func TestChainGoesOnIntoTheNextFile(t *testing.T) {
	path := newPath(t)
	o := Options{MACKeys: [][]byte{macKey}, SigningKey: signingKey, MaxFileBytes: 1000}
	last := fillFiles(t, path, o, 4)
	wantIDs(t, mustBeWhole(t, path, Keys{MAC: [][]byte{macKey}, Signing: publicKey}), last)
	r, err := Verify(path, Keys{MAC: [][]byte{macKey}, Signing: publicKey})
	if err != nil || len(r.Files) != 5 || r.MACFrom != 1 || r.First != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if !slices.IsSorted(r.Files) {
		t.Errorf("file names do not sort: %v", r.Files)
	}
	if r.Signed != r.Last-1 {
		t.Errorf("signed up to %d of %d", r.Signed, r.Last)
	}
	// The oldest file is moved away; what is left still proves itself.
	if err := os.Remove(r.Files[0]); err != nil {
		t.Fatal(err)
	}
	rest, err := Verify(path, Keys{MAC: [][]byte{macKey}})
	if err != nil || len(rest.Faults) > 0 || rest.First <= 1 || rest.Head.String() != r.Head.String() {
		t.Errorf("without the oldest: %+v, %v", rest, err)
	}
	mustAppend(t, mustOpen(t, path, o), last+1)
}

func TestRotationBrokenOffIsCompleted(t *testing.T) {
	for name, back := range map[string]func(t *testing.T, path, newest string){
		"before the first renaming": func(t *testing.T, path, newest string) {
			rename(t, path, path+".next")
			rename(t, newest, path)
		},
		"new file half written": func(t *testing.T, path, newest string) {
			rename(t, path, path+".next")
			rename(t, newest, path)
			if err := os.Truncate(path+".next", 20); err != nil {
				t.Fatal(err)
			}
		},
		"between the renamings": func(t *testing.T, path, _ string) { rename(t, path, path+".next") },
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			o := Options{MaxFileBytes: 600}
			// The newest file has no event yet when its rotation is under way.
			l := mustOpen(t, path, o)
			var last uint64
			for l.size < o.MaxFileBytes {
				last++
				mustAppend(t, l, last)
			}
			if err := l.rotateLocked(noon); err != nil {
				t.Fatal(err)
			}
			mustClose(t, l)
			files, err := rotatedFiles(path)
			if err != nil {
				t.Fatal(err)
			}
			back(t, path, files[len(files)-1])
			l = mustOpen(t, path, o)
			mustAppend(t, l, last+1)
			mustClose(t, l)
			wantIDs(t, mustBeWhole(t, path, Keys{}), last+1)
			if _, err := os.Stat(path + ".next"); err == nil {
				t.Error("the passing name is still there")
			}
		})
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func TestMissingOrForeignCurrentFileIsRefused(t *testing.T) {
	path := newPath(t)
	o := Options{MaxFileBytes: 600}
	fillFiles(t, path, o, 2)
	whole, _ := os.ReadFile(path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	_, _, err := Open(path, noon, o)
	wantDamage(t, err, 0)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = Open(path, noon, o)
	wantDamage(t, err, 0)

	foreign := newPath(t)
	mustClose(t, mustOpen(t, foreign, o))
	rename(t, foreign, path)
	_, _, err = Open(path, noon, o)
	wantDamage(t, err, 1)

	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path, o)
}

func TestNewMACKeyBeginsANewFile(t *testing.T) {
	path := newPath(t)
	var last uint64
	for i, keys := range [][][]byte{nil, {macKey}, {macKey}, {otherKey, macKey}, {otherKey}} {
		l, r, err := Open(path, noon, Options{MACKeys: keys})
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if want := i == 1 || i == 3; r.Rekeyed != want {
			t.Errorf("step %d: rekeyed %t, want %t", i, r.Rekeyed, want)
		}
		last++
		mustAppend(t, l, last)
		mustClose(t, l)
	}
	all := Keys{MAC: [][]byte{macKey, otherKey}}
	wantIDs(t, mustBeWhole(t, path, all), last)
	r, err := Verify(path, all)
	if err != nil || r.MACFrom != 3 {
		t.Errorf("under a MAC from line %d, want 3: %v", r.MACFrom, err)
	}
	for name, keys := range map[string][][]byte{"none": nil, "one missing": {macKey}, "another": {bytes.Repeat([]byte("x"), 32)}} {
		if _, err := Verify(path, Keys{MAC: keys}); err == nil || !strings.Contains(err.Error(), "MAC key") {
			t.Errorf("verify with %s: %v", name, err)
		}
		if _, _, err := Open(path, noon, Options{MACKeys: keys}); err == nil || !strings.Contains(err.Error(), "add that key") {
			t.Errorf("open with %s: %v", name, err)
		}
	}
	if _, _, err := Open(path, noon, Options{MACKeys: [][]byte{macKey[:31]}}); err == nil || !strings.Contains(err.Error(), "openssl rand") {
		t.Errorf("short key: %v", err)
	}
	if _, _, err := Open(path, noon, Options{SigningKey: signingKey[:10]}); err == nil {
		t.Error("a short signing key was taken")
	}
}

func TestHeadsAreSignedByCountByTimeAndAtTheEnd(t *testing.T) {
	path := newPath(t)
	o := Options{SigningKey: signingKey, HeadEvery: 5}
	l := mustOpen(t, path, o)
	signedAt := func(want uint64) {
		t.Helper()
		h := l.SignedHead()
		if h.Line != want {
			t.Errorf("signed up to line %d, want %d", h.Line, want)
		}
		if want == 0 {
			return
		}
		if err := h.Verify(publicKey); err != nil {
			t.Error(err)
		}
	}
	tick := func(after time.Duration) {
		t.Helper()
		if err := l.Tick(noon.Add(after)); err != nil {
			t.Fatal(err)
		}
	}
	tick(time.Hour) // nothing to sign
	signedAt(0)
	mustAppend(t, l, 1, 2, 3, 4)
	signedAt(0)
	mustAppend(t, l, 5)
	signedAt(6)
	tick(time.Hour)
	signedAt(6)
	mustAppend(t, l, 6)
	tick(time.Minute - 1)
	signedAt(6)
	tick(time.Minute)
	signedAt(8)
	mustAppend(t, l, 7)
	mustClose(t, l)
	signedAt(10)
	l = mustOpen(t, path, o)
	signedAt(10)
	wantIDs(t, mustBeWhole(t, path, Keys{Signing: publicKey, Heads: []Head{l.Head(), l.SignedHead()}}), 7)
}

func TestHeadIsProvenOnlyByItsOwnKeyAndText(t *testing.T) {
	l := mustOpen(t, newPath(t), Options{SigningKey: signingKey, HeadEvery: 1})
	mustAppend(t, l, 1)
	h := l.SignedHead()
	got, err := ParseHead(h.String())
	if err != nil || got.Verify(publicKey) != nil {
		t.Fatalf("%v: %v", got, err)
	}
	for name, change := range map[string]func(*Head){
		"log":       func(h *Head) { h.Log = strings.Repeat("0", 32) },
		"line":      func(h *Head) { h.Line++ },
		"chain":     func(h *Head) { h.Chain[31] ^= 1 },
		"time":      func(h *Head) { h.Time = h.Time.Add(1) },
		"signature": func(h *Head) { h.Signature = bytes.Repeat([]byte{1}, 64) },
		"unsigned":  func(h *Head) { h.Signature = nil },
	} {
		c := h
		change(&c)
		if err := c.Verify(publicKey); !errors.Is(err, ErrHeadSignature) {
			t.Errorf("changed %s: %v", name, err)
		}
	}
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte("x"), 32)).Public().(ed25519.PublicKey)
	if err := h.Verify(other); !errors.Is(err, ErrHeadSignature) {
		t.Errorf("other key: %v", err)
	}
	if err := h.Verify(nil); !errors.Is(err, ErrHeadSignature) {
		t.Errorf("no key: %v", err)
	}
}

func TestManyWritersAtOnce(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{MaxFileBytes: 4000, SigningKey: signingKey, HeadEvery: 10})
	var wg sync.WaitGroup
	for w := range uint64(8) {
		wg.Go(func() {
			for i := range uint64(10) {
				if err := l.Append(noon, event(w*10+i+1)); err != nil {
					t.Error(err)
				}
				l.Head()
				l.SignedHead()
				l.Stats()
			}
		})
	}
	wg.Wait()
	mustClose(t, l)
	ids := mustBeWhole(t, path, Keys{Signing: publicKey})
	slices.Sort(ids)
	wantIDs(t, ids, 80)
}

// The child of TestKilledProcessLosesNothing: it says each event's number once
// it is acknowledged.
func TestMain(m *testing.M) {
	path := os.Getenv("AUDIT_TEST_WRITE")
	if path == "" {
		os.Exit(m.Run())
	}
	l, _, err := Open(path, time.Now(), killOptions)
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(1)
	}
	id, _ := strconv.ParseUint(os.Getenv("AUDIT_TEST_FROM"), 10, 64)
	for {
		var entries []Entry
		for range 1 + id%3 {
			payload, err := Encode(event(id))
			if err != nil {
				panic(err)
			}
			entries = append(entries, Entry{Seq: id, Payload: payload})
			id++
		}
		if _, err := l.AppendEntries(time.Now(), "test", entries); err != nil {
			fmt.Println("append:", err)
			os.Exit(1)
		}
		fmt.Println(id - 1)
	}
}

var killOptions = Options{MACKeys: [][]byte{macKey}, SigningKey: signingKey, HeadEvery: 7, MaxFileBytes: 1500}

func TestKilledProcessLosesNothing(t *testing.T) {
	path := newPath(t)
	var acknowledged uint64
	for range 12 {
		cmd := exec.Command(os.Args[0])
		// Every life begins with what may not have been acknowledged before.
		cmd.Env = append(os.Environ(), "AUDIT_TEST_WRITE="+path, fmt.Sprint("AUDIT_TEST_FROM=", acknowledged+1))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		left := 1 + rand.IntN(40)
		for lines.Scan() {
			n, err := strconv.ParseUint(lines.Text(), 10, 64)
			if err != nil {
				t.Fatal(lines.Text())
			}
			acknowledged = n
			if left--; left == 0 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		cmd.Wait()
		l, r, err := Open(path, noon, killOptions)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("acknowledged %d, recovery %+v", acknowledged, r)
		mustClose(t, l)
		ids := mustBeWhole(t, path, Keys{MAC: [][]byte{macKey}, Signing: publicKey})
		if uint64(len(ids)) < acknowledged {
			t.Fatalf("%d events acknowledged, %d in the log", acknowledged, len(ids))
		}
		wantIDs(t, ids, uint64(len(ids)))
	}
}

func TestVerifyWhileTheLogIsWritten(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{MaxFileBytes: 30_000})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range uint64(300) {
			if err := l.Append(noon, event(i+1)); err != nil {
				t.Error(err)
			}
		}
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		r, err := Verify(path, Keys{})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Faults) > 0 {
			t.Fatal(r.Faults)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add(bytes.TrimSuffix(appendChain(appendBody(nil, 7, kindEvent, "n/1", 3, mustEncode(f, event(1))), chainValue{1}), []byte("\n")))
	f.Add(bytes.TrimSuffix(appendChain(appendBody(nil, 1, kindStart, "", 0, []byte(`{"version":1}`)), chainValue{}), []byte("\n")))
	f.Add(bytes.TrimSuffix(appendChain(appendBody(nil, 1<<63, kindHead, "", 0, []byte("{}")), chainValue{}), []byte("\n")))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := parseLine(text)
		if err != nil {
			return
		}
		again := appendChain(appendBody(nil, l.n, l.kind, l.source, l.seq, l.value), l.chain)
		if !bytes.Equal(again, append(bytes.Clone(text), '\n')) {
			t.Errorf("%q is read, and written as %q", text, again)
		}
		if _, _, err := ParseRecord(text); err != nil {
			return
		}
	})
}

func FuzzParseHead(f *testing.F) {
	h := Head{Log: "abc", Line: 7, Chain: [32]byte{1}}
	f.Add(h.String())
	h.sign(signingKey, noon)
	f.Add(h.String())
	f.Fuzz(func(t *testing.T, s string) {
		if h, err := ParseHead(s); err == nil && h.String() != s {
			t.Errorf("%q is read, and written as %q", s, h.String())
		}
	})
}

// FuzzVerify must neither panic nor find a changed file whole.
func FuzzVerify(f *testing.F) {
	// Made by hand, as every process of a fuzz run must have the same.
	begin, err := marshal(start{Version: 1, ID: "fuzz", Prev: chainValue{}.String(), Key: keyName(macKey), Time: At(noon)})
	if err != nil {
		f.Fatal(err)
	}
	var whole []byte
	var chain chainValue
	add := func(n uint64, kind lineKind, value []byte) {
		body := appendBody(nil, n, kind, "", 0, value)
		chain = chain.next(chainHash(macKey), body)
		whole = append(whole, appendChain(body, chain)...)
	}
	add(1, kindStart, begin)
	for n := range uint64(4) {
		add(n+2, kindEvent, mustEncode(f, event(n)))
	}
	f.Add(whole)
	for cut := range bytes.Lines(whole) {
		f.Add(bytes.Replace(whole, cut, nil, 1))
		f.Add(append(bytes.Clone(whole), cut...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		path := newPath(t)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Verify(path, Keys{MAC: [][]byte{macKey}})
		if err != nil {
			return
		}
		if len(r.Faults) == 0 && r.MACFrom == r.First && r.TornBytes == 0 && !bytes.HasPrefix(whole, b) {
			t.Errorf("found whole: %q", b)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := mustOpen(b, newPath(b), Options{MACKeys: [][]byte{macKey}})
			events := slices.Repeat([]Event{fullEvent()}, n)
			for b.Loop() {
				if err := l.Append(noon, events...); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	for b.Loop() {
		if _, err := Encode(fullEvent()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFullFile(b *testing.B) {
	path := newPath(b)
	o := Options{MACKeys: [][]byte{macKey}}
	l := mustOpen(b, path, o)
	events := slices.Repeat([]Event{fullEvent()}, 1000)
	for n := uint64(1); l.Stats().FileBytes < 15<<20; n++ {
		var entries []Entry
		for i, e := range events {
			entries = append(entries, Entry{Seq: n*1000 + uint64(i), Payload: mustEncode(b, e)})
		}
		if _, err := l.AppendEntries(noon, "n1", entries); err != nil {
			b.Fatal(err)
		}
	}
	mustClose(b, l)
	b.Run("Open", func(b *testing.B) {
		for b.Loop() {
			mustClose(b, mustOpen(b, path, o))
		}
	})
	b.Run("Verify", func(b *testing.B) {
		for b.Loop() {
			if _, err := Verify(path, Keys{MAC: o.MACKeys}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
