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
	"crypto/ed25519"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strconv"
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

// Recovery tells what Open found and repaired.
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

// LastOf returns the highest number of an event of the outbox named source, among the
// last thousand and more that the log has; 0: there is none.
func (l *Log) LastOf(source string) (seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.recent.order {
		if d.source == source {
			seq = max(seq, d.seq)
		}
	}
	return seq
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
		return fmt.Errorf("append to audit log %s: %w; free space on its disk or repair it; nothing is lost: the write is tried again", l.path, err)
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
	const then = "another program has touched it, which would break the chain; stop that program, put the log back as it was, then restart tokenward"
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
