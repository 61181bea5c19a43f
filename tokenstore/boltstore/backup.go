package boltstore

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// A backup is a line that says what it is, the store's file as it was at one
// instant, and a line that proves the two:
//
//	tokenward backup {"version":1,"store":"…","schema":1,…,"bytes":N}
//	N bytes
//	end SHA256 SEAL
//
// SHA256 is of everything before the last line. SEAL is, where the store has a
// pepper, a MAC under its key, and else "-": with it nobody without the pepper
// can take a token out of a backup either. What is cut off has no last line.
const (
	backupMark    = "tokenward backup "
	backupEnd     = "end "
	backupVersion = 1

	maxBackupHead = 4096
	maxBackupTail = 1024
)

// Manifest says what a backup holds.
type Manifest struct {
	Version int           `json:"version"`
	Store   string        `json:"store"` // the store's ID
	Schema  uint64        `json:"schema"`
	Time    time.Time     `json:"time"`     // when it was made
	LastID  tokenstore.ID `json:"last_id"`  // the last id that was given out
	LastSeq uint64        `json:"last_seq"` // the last event that was put into the outbox
	Tokens  uint64        `json:"tokens"`
	Bytes   int64         `json:"bytes"` // length of the file
}

// ErrBackup says that bytes are no whole backup.
var ErrBackup = errors.New("the backup is damaged or was cut off: use another copy")

// Backup writes a backup of the store to w, as it is at one instant, while
// changes go on. The file grows meanwhile by what is changed: a slow w costs
// space. now stands in the manifest. begin, unless it is nil, is told how many
// bytes there will be, before the first of them.
func (s *Store) Backup(ctx context.Context, w io.Writer, now time.Time, begin func(bytes int64)) (Manifest, error) {
	m := Manifest{Version: backupVersion, Store: s.id, Time: now.UTC()}
	var failed error // of w, which is not the store's fault
	err := s.view(func(tx *bolt.Tx) error {
		meta, err := readMeta(tx, s.path)
		if err != nil {
			return err
		}
		states := readStates(tx)
		m.Schema, m.Bytes = meta.schema, tx.Size()
		m.LastID = tokenstore.ID(tx.Bucket(bucketTokens).Sequence())
		m.LastSeq = tx.Bucket(bucketOutbox).Sequence()
		m.Tokens = states[1] + states[2] + states[3]
		head, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if begin != nil {
			begin(backupBytes(s.peppers, head, m.Bytes))
		}
		sum := sha256.New()
		out := &backupWriter{ctx: ctx, w: w, sum: sum}
		if _, err := fmt.Fprintf(out, "%s%s\n", backupMark, head); err != nil {
			failed = err
			return err
		}
		if n, err := tx.WriteTo(out); err != nil || n != m.Bytes {
			failed = errors.Join(err, out.err)
			return errors.Join(err, fmt.Errorf("%d of %d bytes were written", n, m.Bytes))
		}
		_, failed = io.WriteString(w, backupTail(s.peppers, sum.Sum(nil)))
		return failed
	})
	if err != nil {
		return m, fmt.Errorf("back up token store: %w", errors.Join(failed, err))
	}
	return m, nil
}

// backupWriter hashes what it writes, and breaks off when ctx ends.
type backupWriter struct {
	ctx context.Context //nolint:containedctx // lives as long as one call
	w   io.Writer
	sum hash.Hash
	err error
}

func (b *backupWriter) Write(p []byte) (int, error) {
	if b.err = b.ctx.Err(); b.err != nil {
		return 0, b.err
	}
	b.sum.Write(p)
	n, err := b.w.Write(p)
	b.err = err
	return n, err
}

// backupPiece is what a backup reads, hashes and writes at once: enough for the calls
// to cost little beside the copying, and little enough to stay in the processor's
// cache. 128 and 256 KiB cost as much or more.
const backupPiece = 64 << 10

// ReadFrom writes all of r.
func (b *backupWriter) ReadFrom(r io.Reader) (int64, error) {
	return io.CopyBuffer(onlyWriter{b}, r, make([]byte, backupPiece))
}

// onlyWriter keeps io.CopyBuffer from asking for ReadFrom again.
type onlyWriter struct{ io.Writer }

// backupBytes is the length of a backup of a file. A seal has one length, whatever
// it is of.
func backupBytes(peppers *tokenstore.Peppers, head []byte, file int64) int64 {
	return int64(len(backupMark)+len(head)+len("\n")) + file + int64(len(backupTail(peppers, make([]byte, sha256.Size))))
}

func backupTail(peppers *tokenstore.Peppers, sum []byte) string {
	return backupEnd + hex.EncodeToString(sum) + " " + backupSeal(peppers, sum) + "\n"
}

// backupSeal is over more than the sum, which no record begins with.
func backupSeal(peppers *tokenstore.Peppers, sum []byte) string {
	if peppers == nil {
		return "-"
	}
	sealed := peppers.Seal(append([]byte(backupMark), sum...))
	return hex.EncodeToString(sealed[len(backupMark)+len(sum):])
}

// ReadBackup copies the store's file out of a backup and proves it: its length,
// its checksum and, with peppers, its seal. What it wrote to w must not be used
// unless it returns without an error.
func ReadBackup(r io.Reader, w io.Writer, peppers *tokenstore.Peppers) (Manifest, error) {
	return readBackup(r, w, func(sum []byte, seal string) error { return checkSeal(peppers, sum, seal) })
}

// CheckBackup reads a backup and checks its length and its checksum, which takes
// no pepper and does not show whether somebody made it up.
func CheckBackup(r io.Reader) (Manifest, error) {
	return readBackup(r, io.Discard, func([]byte, string) error { return nil })
}

// IsBackup reports whether f begins as a backup does, and goes back to its start.
func IsBackup(f io.ReadSeeker) (bool, error) {
	head := make([]byte, len(backupMark))
	_, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, fmt.Errorf("look for a backup: %w", err)
	}
	_, err = f.Seek(0, io.SeekStart)
	return string(head) == backupMark, err
}

func readBackup(r io.Reader, w io.Writer, check func(sum []byte, seal string) error) (Manifest, error) {
	in := bufio.NewReaderSize(r, 1<<20)
	sum := sha256.New()
	m, head, err := readManifest(in)
	if err != nil {
		return m, err
	}
	sum.Write(head)
	if n, err := copyBytes(io.MultiWriter(w, sum), in, m.Bytes); err != nil {
		if errors.Is(err, io.EOF) {
			return m, fmt.Errorf("%w (it ends after %d of %d bytes)", ErrBackup, n, m.Bytes)
		}
		return m, fmt.Errorf("copy backup: %w", err)
	}
	tail, err := io.ReadAll(io.LimitReader(in, maxBackupTail+1))
	if err != nil {
		return m, fmt.Errorf("read backup: %w", err)
	}
	return m, checkTail(string(tail), sum.Sum(nil), check)
}

// copyBytes is io.CopyN without a buffer between.
func copyBytes(w io.Writer, in *bufio.Reader, length int64) (done int64, err error) {
	for done < length {
		if _, err := in.Peek(1); err != nil {
			return done, err
		}
		p, err := in.Peek(int(min(int64(in.Buffered()), length-done)))
		if err != nil {
			return done, err
		}
		if _, err := w.Write(p); err != nil {
			return done, err
		}
		n, err := in.Discard(len(p))
		if done += int64(n); err != nil {
			return done, err
		}
	}
	return done, nil
}

func readManifest(in *bufio.Reader) (m Manifest, head []byte, err error) {
	for len(head) < maxBackupHead {
		c, err := in.ReadByte()
		if err != nil {
			break // whatever there is, is judged
		}
		if head = append(head, c); c == '\n' {
			break
		}
	}
	text, ok := bytes.CutPrefix(head, []byte(backupMark))
	if !ok {
		return m, nil, errors.New("the file is no backup: name one that `tokenward backup` made")
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	switch err := dec.Decode(&m); {
	case m.Version > backupVersion:
		return m, nil, fmt.Errorf("the backup has version %d, this program reads %d: use the newer program that made it", m.Version, backupVersion)
	case err != nil || m.Version != backupVersion || m.Bytes < 0 || m.Store == "":
		return m, nil, ErrBackup
	}
	return m, head, nil
}

func checkTail(tail string, sum []byte, check func(sum []byte, seal string) error) error {
	fields := strings.Split(strings.TrimSuffix(tail, "\n"), " ")
	if len(fields) != 3 || fields[0]+" " != backupEnd || !strings.HasSuffix(tail, "\n") {
		return fmt.Errorf("%w (its end is missing)", ErrBackup)
	}
	if fields[1] != hex.EncodeToString(sum) {
		return fmt.Errorf("%w (its checksum is wrong)", ErrBackup)
	}
	return check(sum, fields[2])
}

func checkSeal(peppers *tokenstore.Peppers, sum []byte, seal string) error {
	switch {
	case peppers == nil && seal != "-":
		return errors.New("the backup is sealed with a pepper, and tokenstore.pepper_files is empty: name the file in it")
	case peppers == nil:
		return nil
	}
	bytesOfSeal, err := hex.DecodeString(seal)
	if err != nil {
		return fmt.Errorf("%w (it is not sealed)", ErrBackup)
	}
	want := append([]byte(backupMark), sum...)
	body, err := peppers.Unseal(append(bytes.Clone(want), bytesOfSeal...))
	if err != nil || !hmac.Equal(body, want) {
		return errors.New("the backup is not sealed by a configured pepper: it is of another store, or was written by something else")
	}
	return nil
}

// Position returns the last id and the last number of an event that the store
// has given out.
func (s *Store) Position() (lastID tokenstore.ID, lastSeq uint64, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		lastID = tokenstore.ID(tx.Bucket(bucketTokens).Sequence())
		lastSeq = tx.Bucket(bucketOutbox).Sequence()
		return nil
	})
	return lastID, lastSeq, err
}

// Raise makes the closed store at path, restored from a backup, go on above
// lastID and lastSeq, and empties its outbox, whose events the caller has brought
// to where they belong. It never lowers either number.
func Raise(path string, lastID tokenstore.ID, lastSeq uint64) (err error) {
	db, err := openBolt(path, 0, false)
	if err != nil {
		return fmt.Errorf("raise token store: %w", err)
	}
	defer recovering(path, &err)()
	err = db.Update(func(tx *bolt.Tx) error {
		tokens, out := tx.Bucket(bucketTokens), tx.Bucket(bucketOutbox)
		if tokens == nil || out == nil {
			return damaged(path, "it lacks tokens or outbox")
		}
		if err := deleteAll(out, keysUntil(out, number(^uint64(0)))); err != nil {
			return err
		}
		if err := tokens.SetSequence(max(tokens.Sequence(), uint64(lastID))); err != nil {
			return err
		}
		return out.SetSequence(max(out.Sequence(), lastSeq))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("raise token store: %w", err)
	}
	return nil
}
