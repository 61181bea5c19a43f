// Package audit keeps the log of what was done to tokens: an append-only file
// of JSON lines in which every line carries a hash over itself and the line
// before, so that no line can be changed, cut out or moved unseen.
//
// An [Event] tells of one verb. [Log] writes events, a [Drainer] brings them from
// a store's outbox into a log, exactly once each, and [Verify] proves a log
// whole or says from where to where it is not.
//
// What the chain proves depends on the keys. Without any, whoever can write
// the file can also write a chain that fits. With a MAC key, only who has the
// key can. With signed heads, who has the key cannot change what an earlier
// head covers without the signing key either. None of them shows that lines
// were cut off the end: that takes a [Head] kept elsewhere.
package audit

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options of a log. The zero value is usable: no MAC, no signatures, defaults.
type Options struct {
	// MACKeys are the keys of the chain, at least 32 bytes each. The first one
	// writes; the others only read what was written under them. Without any the
	// chain is of plain SHA-256.
	MACKeys [][]byte
	// SigningKey signs heads; nil: none are written.
	SigningKey ed25519.PrivateKey
	// HeadEvery is after how many events a signed head is due; 0: 1,000.
	HeadEvery int
	// HeadAfter is how long an event waits for one at most; 0: 60 s.
	HeadAfter time.Duration
	// MaxFileBytes is the size from which on a new file is begun; 0: 64 MiB.
	// Opening a log reads its newest file whole, some 500 MB/s.
	MaxFileBytes int64
}

// Recovery tells what Open found and mended.
type Recovery struct {
	Created   bool // there was no log: a new one was begun
	TornBytes int  // bytes cut off the end: a line that was being written when the process died
	Rekeyed   bool // a new file was begun because the first MAC key is a new one
}

// A DamageError says that a log is not as it was written, and where.
type DamageError struct {
	File string
	Line int // counted within the file from 1; 0: the file as a whole
	What string
}

func (e *DamageError) Error() string {
	where := e.File
	if e.Line > 0 {
		where += ":" + strconv.Itoa(e.Line)
	}
	return fmt.Sprintf("audit log %s: %s; run \"tokenward audit verify\" to see how far it reaches; to go on, "+
		"move the log with its older files to a safe place, and a new one is begun", where, e.What)
}

// ErrClosed is returned once the log has been closed.
var ErrClosed = errors.New("the audit log is closed")

// A Log is an open audit log. The process that has it open is its only writer.
// All methods may be called from many goroutines.
type Log struct {
	path string
	opts Options

	// shown is what Head, SignedHead and Stats tell: they do not wait for mu, so
	// a disk that hangs hangs nobody who only asks.
	shown atomic.Pointer[shown]

	// mu is held by whoever writes, from beginning to end, syncs included. It
	// guards all that follows. Everything but recent and broken describes what
	// is durable, and changes only after a sync has succeeded.
	mu       sync.Mutex
	file     logFile
	size     int64
	id       string
	n        uint64 // number of the last line
	chain    chainValue
	hash     hash.Hash // keyed as the current file is
	events   uint64    // appended since it was opened
	unsigned int       // events since the last signed head
	since    time.Time // when the first of them was appended
	head     Head      // the last signed head
	recent   recent    // what came out of outboxes lately
	fault    error     // why the last attempt to write failed
	broken   error     // once set, the file is not touched again
}

// logFile is what a log needs of an *os.File; tests put faults in its place.
type logFile interface {
	io.Writer
	Sync() error
	Truncate(size int64) error
	Stat() (os.FileInfo, error)
	Close() error
}

// Open opens the log at path, or begins one where there is none. It checks the
// chain through the newest file and where that joins the one before. A last
// line that was only half written is cut off; for all other damage it returns
// a *DamageError and leaves the files as they are.
//
// Older files lie beside path, named after their first line's number so that
// they sort: for a.jsonl, a.00000000000000000001.jsonl and so on. They are
// never read again but by Verify, and may be moved away from the oldest on.
func Open(path string, now time.Time, o Options) (*Log, Recovery, error) {
	if err := o.complete(); err != nil {
		return nil, Recovery{}, err
	}
	l := &Log{path: path, opts: o}
	r, err := l.open(now)
	if err != nil {
		if l.file != nil {
			err = errors.Join(err, l.file.Close())
		}
		return nil, Recovery{}, fmt.Errorf("open audit log: %w", err)
	}
	l.showLocked()
	return l, r, nil
}

func (o *Options) complete() error {
	for i, k := range o.MACKeys {
		if len(k) < 32 {
			return fmt.Errorf("open audit log: MAC key %d has %d bytes; make one of at least 32, for example with \"openssl rand -out FILE 32\"", i+1, len(k))
		}
	}
	if o.SigningKey != nil && len(o.SigningKey) != ed25519.PrivateKeySize {
		return errors.New("open audit log: the signing key is not an Ed25519 private key")
	}
	if o.HeadEvery <= 0 {
		o.HeadEvery = 1000
	}
	if o.HeadAfter <= 0 {
		o.HeadAfter = time.Minute
	}
	if o.MaxFileBytes <= 0 {
		o.MaxFileBytes = 64 << 20
	}
	return nil
}

func (o *Options) writeKey() []byte {
	if len(o.MACKeys) == 0 {
		return nil
	}
	return o.MACKeys[0]
}

// keyNamed finds the key that a file names.
func keyNamed(keys [][]byte, name string) (key []byte, ok bool) {
	if name == "" {
		return nil, true
	}
	for _, k := range keys {
		if keyName(k) == name {
			return k, true
		}
	}
	return nil, false
}

// Append writes the events, all or none, and returns once they are on disk.
// After an error, such as a full disk, the log stands as before and the same
// call may be made again. Only when even that cannot be brought about, or
// another process has changed the file, does every later call fail too.
func (l *Log) Append(now time.Time, events ...Event) error {
	b := batch{}
	for _, e := range events {
		value, err := Encode(e)
		if err != nil {
			return err
		}
		b.items = append(b.items, item{value: value})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.appendLocked(now, b)
}

// Tick signs a head if one is due by time. Call it now and then.
func (l *Log) Tick(now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.headDueLocked(now, 0) {
		return nil
	}
	return l.appendLocked(now, batch{sign: true})
}

// Head returns where the log stands. It is not signed.
func (l *Log) Head() Head { return l.shown.Load().head }

// SignedHead returns the last signed head in the current file, or the zero Head.
func (l *Log) SignedHead() Head { return l.shown.Load().signed }

// Stats are numbers for metrics.
type Stats struct {
	Events    uint64 // appended since the log was opened
	Line      uint64 // number of the last line
	FileBytes int64  // size of the current file
	Broken    bool   // nothing more can be written
	Fault     error  // why the last attempt to write failed; nil: it did not
}

// Stats returns the log's numbers.
func (l *Log) Stats() Stats { return l.shown.Load().stats }

// shown is the log's state as others see it.
type shown struct {
	head, signed Head
	stats        Stats
}

// showLocked makes the present state visible.
func (l *Log) showLocked() {
	l.shown.Store(&shown{
		head:   Head{Log: l.id, Line: l.n, Chain: l.chain},
		signed: l.head,
		stats:  Stats{Events: l.events, Line: l.n, FileBytes: l.size, Broken: l.broken != nil, Fault: l.fault},
	})
}

// Close signs what is not signed yet, and closes the log. Its file is whole
// whether or not Close is called.
func (l *Log) Close(now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(l.broken, ErrClosed) {
		return nil
	}
	var err error
	if l.unsigned > 0 && l.opts.SigningKey != nil && l.broken == nil {
		err = l.appendLocked(now, batch{sign: true})
	}
	l.broken = ErrClosed
	l.showLocked()
	return errors.Join(err, l.file.Close())
}

// batch is what is written and synced at once.
type batch struct {
	items []item
	sign  bool // a head is wanted whether it is due or not
}

// item is one event to write. mark is set if it came from an outbox.
type item struct {
	mark  delivery
	value []byte
}

// appendLocked makes b durable. The order is: look that the file is ours and
// as we left it; begin a new one if it is full; write all lines at once; sync;
// only then take the new state over. When writing or syncing fails, the file
// is cut back to what was durable before.
func (l *Log) appendLocked(now time.Time, b batch) (err error) {
	if l.broken != nil {
		return fmt.Errorf("append to audit log %s: %w", l.path, l.broken)
	}
	if len(b.items) == 0 && !b.sign {
		return nil
	}
	defer func() {
		l.fault = err
		l.showLocked()
	}()
	if err := l.checkFileLocked(); err != nil {
		l.broken = err
		return fmt.Errorf("append to audit log %s: %w", l.path, err)
	}
	if l.size >= l.opts.MaxFileBytes {
		if err := l.rotateLocked(now); err != nil {
			return fmt.Errorf("begin a new audit log file: %w", err)
		}
	}
	return l.putLocked(now, b)
}

// putLocked writes b to the current file.
func (l *Log) putLocked(now time.Time, b batch) error {
	var text []byte
	n, chain := l.n, l.chain
	add := func(kind lineKind, mark delivery, value []byte) {
		n++
		at := len(text)
		text = appendBody(text, n, kind, mark.source, mark.seq, value)
		chain = chain.next(l.hash, text[at:])
		text = appendChain(text, chain)
	}
	for _, it := range b.items {
		add(kindEvent, it.mark, it.value)
	}
	var head Head
	if b.sign || l.headDueLocked(now, len(b.items)) {
		head = Head{Log: l.id, Line: n, Chain: chain}
		head.sign(l.opts.SigningKey, now)
		value, err := head.value()
		if err != nil {
			return fmt.Errorf("sign the audit log's head: %w", err)
		}
		add(kindHead, delivery{}, value)
	}
	if err := l.writeLocked(text); err != nil {
		return fmt.Errorf("append to audit log %s: %w; free space on its disk or mend it: nothing is lost, it is tried again", l.path, err)
	}
	l.n, l.chain = n, chain
	l.size += int64(len(text))
	l.events += uint64(len(b.items))
	if l.unsigned == 0 {
		l.since = now
	}
	l.unsigned += len(b.items)
	if head.Line > 0 {
		l.head, l.unsigned = head, 0
	}
	for _, it := range b.items {
		l.recent.add(it.mark)
	}
	return nil
}

// headDueLocked reports whether a head is due at now, after more further events.
func (l *Log) headDueLocked(now time.Time, more int) bool {
	if l.opts.SigningKey == nil || l.unsigned+more == 0 {
		return false
	}
	return l.unsigned+more >= l.opts.HeadEvery || l.unsigned > 0 && now.Sub(l.since) >= l.opts.HeadAfter
}

// checkFileLocked returns an error if the file at path is not the one that is
// open, or not of the length it was left with.
func (l *Log) checkFileLocked() error {
	const then = "another program has touched it, which would break the chain; stop that program, then restart tokenward"
	open, err := l.file.Stat()
	if err != nil {
		return err
	}
	named, err := os.Stat(l.path)
	if err != nil {
		return fmt.Errorf("%w: %s", err, then)
	}
	if !os.SameFile(open, named) {
		return errors.New("the file was replaced: " + then)
	}
	if open.Size() != l.size {
		return fmt.Errorf("the file has %d bytes and was left with %d: %s", open.Size(), l.size, then)
	}
	return nil
}

// writeLocked writes text at the end and syncs, or leaves the file as it was.
// A failed sync may have dropped what was written, so it is never just tried
// again: the bytes are cut off and written anew by the next call.
func (l *Log) writeLocked(text []byte) error {
	_, err := l.file.Write(text)
	if err == nil {
		err = l.file.Sync()
	}
	if err == nil {
		return nil
	}
	undo := l.file.Truncate(l.size)
	if undo == nil {
		undo = l.file.Sync()
	}
	if undo != nil {
		l.broken = fmt.Errorf("%w, and the half-written line could not be removed: %w; restart tokenward once the disk works", err, undo)
		return l.broken
	}
	return err
}

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

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// A delivery is one event that came out of an outbox. The sum tells a repeated
// delivery from a new event under an old number, as comes out of a store that
// was put back to an earlier state.
type delivery struct {
	source string
	seq    uint64
	sum    [16]byte
}

func deliveryOf(source string, seq uint64, value []byte) delivery {
	sum := sha256.Sum256(value)
	return delivery{source, seq, [16]byte(sum[:])}
}

// maxRecent is how many deliveries are remembered: several batches of an
// outbox, one of which can have been written but not acknowledged when the
// process died.
const maxRecent = 4 * MaxBatch

// recent is the last deliveries: at least maxRecent, less than twice as many.
type recent struct {
	order []delivery // oldest first
	known map[delivery]struct{}
}

// add remembers d. The zero delivery is not remembered.
func (r *recent) add(d delivery) {
	if d == (delivery{}) {
		return
	}
	if r.known == nil {
		r.known = make(map[delivery]struct{}, maxRecent)
	}
	if len(r.order) == 2*maxRecent-1 {
		for _, old := range r.order[:maxRecent] {
			delete(r.known, old)
		}
		r.order = append(r.order[:0], r.order[maxRecent:]...)
	}
	r.order = append(r.order, d)
	r.known[d] = struct{}{}
}

// precede remembers what came before all that is remembered.
func (r *recent) precede(before recent) {
	for _, d := range r.order {
		before.add(d)
	}
	*r = before
}

func (r *recent) has(d delivery) bool {
	_, ok := r.known[d]
	return ok
}
