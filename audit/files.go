package audit

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// rotateLocked begins a new file that continues the chain. The order is: sign
// what the current file holds; write and sync the new file under a passing
// name; give the current file its final name; give the new one the current
// name; sync the folder. If the process dies in between, open finds the new
// file under its passing name and goes on from there.
func (l *Log) rotateLocked(now time.Time) error {
	if l.unsigned > 0 && l.opts.SigningKey != nil {
		if err := l.putLocked(now, batch{sign: true}); err != nil {
			return err
		}
	}
	first, err := firstLine(l.path)
	if err != nil {
		return err
	}
	f, t, err := l.createNextLocked(now, l.id)
	if err != nil {
		return err
	}
	if err := os.Rename(l.path, l.rotatedPath(first)); err != nil {
		return errors.Join(err, f.Close(), os.Remove(l.nextPath()))
	}
	if err := l.install(); err != nil {
		l.broken = err
		return errors.Join(err, f.Close())
	}
	err = l.file.Close()
	l.file, l.n, l.chain, l.size, l.hash = f, t.n, t.chain, t.size, chainHash(l.opts.writeKey())
	return err
}

// tip is where a file's lines end.
type tip struct {
	n     uint64
	chain chainValue
	size  int64
}

// createNextLocked makes a locked file under the passing name whose only line
// continues the log with this id.
func (l *Log) createNextLocked(now time.Time, id string) (f *os.File, t tip, err error) {
	f, err = openLocked(l.nextPath(), os.O_CREATE)
	if err != nil {
		return nil, tip{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(l.nextPath()))
		}
	}()
	if err := f.Truncate(0); err != nil {
		return nil, tip{}, err
	}
	key := l.opts.writeKey()
	value, err := marshal(start{Version: 1, ID: id, Prev: l.chain.String(), Key: keyName(key), Time: At(now)})
	if err != nil {
		return nil, tip{}, err
	}
	t.n = l.n + 1
	text := appendBody(nil, t.n, kindStart, "", 0, value)
	t.chain = l.chain.next(chainHash(key), text)
	text = appendChain(text, t.chain)
	t.size = int64(len(text))
	if _, err := f.Write(text); err != nil {
		return nil, tip{}, err
	}
	return f, t, f.Sync()
}

// openLocked opens the file for appending and takes it for this process.
func openLocked(path string, create int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|create, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	// Between open and lock its last owner may have given it another name.
	open, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if named, err := os.Stat(path); err != nil || !os.SameFile(open, named) {
		return nil, errors.Join(fmt.Errorf("%s: another process has just renamed it; try again", path), f.Close())
	}
	return f, nil
}

// install gives the file of the passing name the log's own.
func (l *Log) install() error {
	if err := os.Rename(l.nextPath(), l.path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(l.path))
}

func (l *Log) nextPath() string { return l.path + ".next" }

func (l *Log) rotatedPath(first uint64) string {
	stem, ext := splitExt(l.path)
	return fmt.Sprintf("%s.%020d%s", stem, first, ext)
}

func splitExt(path string) (stem, ext string) {
	ext = filepath.Ext(path)
	return strings.TrimSuffix(path, ext), ext
}

// rotatedFiles returns the older files of the log at path, oldest first.
func rotatedFiles(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path)) // sorted by name
	if err != nil {
		return nil, err
	}
	stem, ext := splitExt(filepath.Base(path))
	var files []string
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), stem+".")
		if !ok {
			continue
		}
		if digits, ok = strings.CutSuffix(digits, ext); !ok || len(digits) != 20 || strings.Trim(digits, "0123456789") != "" {
			continue
		}
		files = append(files, filepath.Join(filepath.Dir(path), e.Name()))
	}
	return files, nil
}

// open finds the current file, or makes one, and reads the log's state from it.
func (l *Log) open(now time.Time) (Recovery, error) {
	older, err := rotatedFiles(l.path)
	if err != nil {
		return Recovery{}, err
	}
	info, err := os.Lstat(l.path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return Recovery{}, fmt.Errorf("%s is not a regular file; write the log to one", l.path)
	case err == nil && (info.Size() > 0 || len(older) > 0):
		err = l.takeCurrent()
	case err == nil, errors.Is(err, fs.ErrNotExist) && len(older) == 0:
		return Recovery{Created: true}, l.create(now)
	case errors.Is(err, fs.ErrNotExist):
		err = l.takeNext()
	}
	if err != nil {
		return Recovery{}, err
	}
	return l.resume(now, older)
}

// takeCurrent opens the current file. A rotation that had not come to the
// first renaming is forgotten.
func (l *Log) takeCurrent() error {
	f, err := openLocked(l.path, 0)
	if err != nil {
		return err
	}
	l.file = f
	if err := os.Remove(l.nextPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// takeNext completes a rotation that had not come to the second renaming.
func (l *Log) takeNext() error {
	f, err := openLocked(l.nextPath(), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return &DamageError{File: l.path, What: "it is gone, while its older files are there"}
	}
	if err != nil {
		return err
	}
	l.file = f
	return l.install()
}

// create begins a log.
func (l *Log) create(now time.Time) error {
	var id [16]byte
	rand.Read(id[:])
	f, t, err := l.createNextLocked(now, hex.EncodeToString(id[:]))
	if err != nil {
		return err
	}
	l.file = f
	l.id, l.n, l.chain, l.size = hex.EncodeToString(id[:]), t.n, t.chain, t.size
	l.hash = chainHash(l.opts.writeKey())
	return l.install()
}

// resume takes the state of the log over from its files.
func (l *Log) resume(now time.Time, older []string) (Recovery, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return Recovery{}, err
	}
	defer f.Close()
	s, torn, err := l.readCurrent(f)
	if err != nil {
		return Recovery{}, err
	}
	if len(older) > 0 {
		if err := l.joinOlder(older[len(older)-1], s); err != nil {
			return Recovery{}, err
		}
	}
	r := Recovery{TornBytes: len(torn)}
	if r.TornBytes > 0 {
		if !looksTorn(torn, l.n+1) {
			return Recovery{}, &DamageError{File: l.path, What: fmt.Sprintf("its last %d bytes are not the beginning of a line of this log", len(torn))}
		}
		if err := l.file.Truncate(l.size); err != nil {
			return Recovery{}, err
		}
	}
	// Lines that a killed process wrote and did not sync are taken for durable from
	// now on: what comes out of an outbox again is left out for their sake.
	if err := l.file.Sync(); err != nil {
		return Recovery{}, fmt.Errorf("%s cannot be written to disk: %w: check the disk, then try again", l.path, err)
	}
	l.since = now
	if s.Key != keyName(l.opts.writeKey()) {
		r.Rekeyed = true
		if err := l.rotateLocked(now); err != nil {
			return Recovery{}, err
		}
	}
	return r, nil
}

// readCurrent checks the current file's chain and takes its state over. It
// returns the bytes after the last line break.
func (l *Log) readCurrent(f io.Reader) (s start, torn []byte, err error) {
	torn, err = readLines(f, func(at int, text []byte) error {
		bad := func(err error) error { return &DamageError{File: l.path, Line: at, What: err.Error()} }
		ln, err := parseLine(text)
		if err != nil {
			return bad(err)
		}
		if at == 1 {
			if s, err = parseStart(ln); err != nil {
				return bad(err)
			}
			key, ok := keyNamed(l.opts.MACKeys, s.Key)
			if !ok {
				return fmt.Errorf("%s was written under the MAC key %s, which is not configured; add that key to the list", l.path, s.Key)
			}
			l.id, l.n, l.hash = s.ID, ln.n-1, chainHash(key)
			l.chain, _ = s.prev()
		} else if ln.kind == kindStart {
			return bad(errors.New("a file begins in the middle of another"))
		}
		if ln.n != l.n+1 {
			return bad(fmt.Errorf("line %d follows line %d", ln.n, l.n))
		}
		if l.chain.next(l.hash, ln.body) != ln.chain {
			return bad(errors.New("the line or the one before it was changed after it was written"))
		}
		switch ln.kind {
		case kindEvent:
			l.unsigned++
			if ln.source != "" {
				l.recent.add(deliveryOf(ln.source, ln.seq, ln.value))
			}
		case kindHead:
			if l.head, err = parseHeadLine(ln, l.id, l.chain); err != nil {
				return bad(err)
			}
			l.unsigned = 0
		case kindStart:
		}
		l.n, l.chain = ln.n, ln.chain
		l.size += int64(len(text)) + 1
		return nil
	})
	if err == nil && l.size == 0 {
		err = &DamageError{File: l.path, What: "it does not begin with the first line of an audit log"}
	}
	return s, torn, err
}

// joinOlder checks that the current file, which begins with s, continues the
// older one, and learns from that what came out of outboxes last.
func (l *Log) joinOlder(older string, s start) error {
	f, err := os.Open(older)
	if err != nil {
		return err
	}
	defer f.Close()
	var before recent
	var last line
	torn, err := readLines(f, func(at int, text []byte) error {
		ln, err := parseLine(text)
		if err != nil {
			return &DamageError{File: older, Line: at, What: err.Error()}
		}
		if ln.source != "" {
			before.add(deliveryOf(ln.source, ln.seq, ln.value))
		}
		last = line{n: ln.n, chain: ln.chain}
		return nil
	})
	if err != nil {
		return err
	}
	if prev, _ := s.prev(); len(torn) > 0 || last.chain != prev {
		return &DamageError{File: l.path, Line: 1, What: "it does not continue where " + older + " ends"}
	}
	l.recent.precede(before)
	return nil
}

// looksTorn reports whether torn can be the beginning of line n. A file system
// may have filled what it had not written yet with zeros.
func looksTorn(torn []byte, n uint64) bool {
	begin := []byte(`{"n":` + strconv.FormatUint(n, 10) + ",")
	torn = bytes.TrimRight(torn, "\x00")
	return bytes.HasPrefix(torn, begin) || bytes.HasPrefix(begin, torn)
}

// readLines calls fn with each line that ends in a line break, without it, and its
// number from 1. It returns what follows the last line break. The text is
// valid until fn returns.
func readLines(r io.Reader, fn func(at int, text []byte) error) (torn []byte, err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	var long []byte // what was read of a line that is longer than br's buffer
	for at := 1; ; {
		text, err := br.ReadSlice('\n')
		if len(long) > 0 || errors.Is(err, bufio.ErrBufferFull) {
			long = append(long, text...)
			text = long
		}
		switch {
		case len(text) > maxLineBytes:
			return nil, fmt.Errorf("line %d is longer than any line of an audit log", at)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return bytes.Clone(text), nil
		case err != nil:
			return nil, err
		}
		if err := fn(at, text[:len(text)-1]); err != nil {
			return nil, err
		}
		long = long[:0]
		at++
	}
}

// firstLine returns the number of the first line of a file.
func firstLine(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	text, err := bufio.NewReaderSize(f, maxLineBytes).ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	ln, err := parseLine(bytes.TrimSuffix(text, []byte("\n")))
	return ln.n, err
}

// syncDir waits until the disk has the names of the files in dir. It is not
// boltstore's, since this package knows nothing of ours.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
