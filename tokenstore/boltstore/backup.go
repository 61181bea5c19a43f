package boltstore

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"tokenward/tokenstore"
)

// A backup is a line that says what it is, the store's file as it was at one
// instant, in pieces, and a line that proves the two:
//
//	tokenward backup {"version":2,"store":"…","schema":1,…,"bytes":N}
//	the pieces of a file of N bytes
//	end DIGEST SEAL
//
// A piece leaves out what is empty in the file (see piece.go) and has a sum of its
// own. DIGEST is the SHA-256 of the first line and of the sums. SEAL is, where the
// store has a pepper, a MAC under it, of DIGEST and of a keyed sum of the pieces, and
// else "-": with it nobody without the pepper can take a token out of a backup
// either. What is cut off has no last line.
const (
	backupMark    = "tokenward backup "
	backupEnd     = "end "
	backupVersion = 2

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
	Pepper  string        `json:"pepper,omitempty"` // the id of the one that seals it
	Bytes   int64         `json:"bytes"`            // length of the store's file
}

// ErrBackup says that bytes are no whole backup.
var ErrBackup = errors.New("the backup is damaged or was cut off: use another copy")

// Backup writes a backup of the store to w, as it is at one instant, while
// changes go on. The file grows meanwhile by what is changed: a slow w costs
// space. now stands in the manifest. pace, unless it is nil, is called after each
// part of the file with how many bytes of it are written: it may wait, and ends the
// backup with its error.
func (s *Store) Backup(ctx context.Context, w io.Writer, now time.Time, pace func(m *Manifest, done int64) error) (Manifest, error) {
	m := Manifest{Version: backupVersion, Store: s.id, Time: now.UTC()}
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
		if ids := s.peppers.IDs(); len(ids) > 0 {
			m.Pepper = ids[0].String()
		}
		out, err := newBackupWriter(ctx, w, &m, s.peppers)
		if err != nil {
			return err
		}
		out.pace, out.file = pace, s.file
		switch n, err := tx.WriteTo(out); {
		case out.err != nil:
			return out.err // bolt may tell only its text
		case err != nil:
			return err
		case n != m.Bytes:
			return fmt.Errorf("%d of %d bytes were written", n, m.Bytes)
		}
		return out.finish(s.peppers)
	})
	if err != nil {
		return m, fmt.Errorf("back up token store: %w", err)
	}
	return m, nil
}

// backupWriter makes a backup of the file that is written to it, and breaks off when
// ctx ends.
type backupWriter struct {
	ctx  context.Context // lives as long as one call
	w    io.Writer
	pace func(m *Manifest, done int64) error
	m    *Manifest
	file *os.File // the store's

	free     []uint64 // pages that nothing of that instant is in and that lie ahead, in order
	pageSize int64

	proof backupProof
	raw   []byte // of the next piece, as far as it is there
	out   []byte // pieces that are to be written
	done  int64  // bytes of the file that are written, or in out
	err   error
}

// backupPart is how many bytes are written at once, or a piece more: enough for the
// calls to cost little beside the copying, and little enough to stay in the
// processor's cache.
const backupPart = 128 << 10

func newBackupWriter(ctx context.Context, w io.Writer, m *Manifest, peppers *tokenstore.Peppers) (*backupWriter, error) {
	head, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	b := &backupWriter{ctx: ctx, w: w, m: m, raw: make([]byte, 0, pieceBytes), out: make([]byte, 0, backupPart+maxPiece)}
	b.out = fmt.Appendf(b.out, "%s%s\n", backupMark, head)
	b.proof = newBackupProof(b.out, keyedSum(peppers, m.Pepper))
	return b, nil
}

// Write takes the next bytes of the file. The first are a header page, as
// [bolt.Tx.WriteTo] makes it.
func (b *backupWriter) Write(p []byte) (int, error) {
	if b.done == 0 && len(b.raw) == 0 {
		if b.err = b.findFree(p); b.err != nil {
			return 0, b.err
		}
	}
	n, err := b.ReadFrom(bytes.NewReader(p))
	return int(n), err
}

// findFree reads which pages are free. bolt keeps the list in the file, with every
// commit, and would overwrite them in a copy of it: what they hold is of no use, and
// may be what was deleted.
func (b *backupWriter) findFree(page []byte) error {
	h, _, ok := parseMeta(page[pageHeaderLen:])
	if !ok || h.pageSize != uint64(len(page)) {
		return errPage
	}
	w := walker{f: b.file, header: h, seen: map[uint64]bool{}}
	if err := w.freelist(); err != nil {
		return err
	}
	b.free, b.pageSize = w.free, int64(len(page))
	return nil
}

// clearFree empties what is there of free pages.
func (b *backupWriter) clearFree() {
	end := b.done + int64(len(b.raw))
	for len(b.free) > 0 && int64(b.free[0])*b.pageSize < end { //nolint:gosec // a page of the file
		from := int64(b.free[0])*b.pageSize - b.done //nolint:gosec // likewise
		to := from + b.pageSize
		clear(b.raw[max(0, from):min(to, int64(len(b.raw)))])
		if b.done+to > end {
			return // the rest of it is to come
		}
		b.free = b.free[1:]
	}
}

// ReadFrom takes the next bytes of the file, all that r has.
func (b *backupWriter) ReadFrom(r io.Reader) (total int64, err error) {
	for b.err == nil {
		n, err := io.ReadFull(r, b.raw[len(b.raw):cap(b.raw)])
		b.raw = b.raw[:len(b.raw)+n]
		total += int64(n)
		if len(b.raw) == cap(b.raw) {
			b.err = b.pack()
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return total, b.err
		case err != nil:
			return total, err
		}
	}
	return total, b.err
}

// pack makes a piece of what is there, and writes pieces where they are enough.
func (b *backupWriter) pack() error {
	b.clearFree()
	begin := len(b.out)
	b.out = appendPiece(b.out, b.raw, b.proof.pieces)
	b.proof.add(b.out[begin:])
	b.done += int64(len(b.raw))
	b.raw = b.raw[:0]
	if len(b.out) < backupPart {
		return nil
	}
	return b.write()
}

func (b *backupWriter) write() error {
	if err := b.ctx.Err(); err != nil {
		return err
	}
	_, err := b.w.Write(b.out)
	b.out = b.out[:0]
	if err == nil && b.pace != nil {
		err = b.pace(b.m, b.done)
	}
	return err
}

// finish writes what is left, and the last line.
func (b *backupWriter) finish(peppers *tokenstore.Peppers) error {
	if len(b.raw) > 0 {
		if err := b.pack(); err != nil {
			return err
		}
	}
	digest, keyed := b.proof.sums()
	b.out = fmt.Appendf(b.out, "%s%x %s\n", backupEnd, digest, backupSeal(peppers, digest, keyed))
	return b.write()
}

// sealed is what the seal of a backup is over. No record begins so.
func sealed(digest, keyed []byte) []byte {
	return append(append([]byte(backupMark), digest...), keyed...)
}

func backupSeal(peppers *tokenstore.Peppers, digest, keyed []byte) string {
	if peppers == nil {
		return "-"
	}
	text := sealed(digest, keyed)
	return hex.EncodeToString(peppers.Seal(text)[len(text):])
}

// keyedSum returns the sum under a pepper, or nil where it is not configured, which
// the seal then shows.
func keyedSum(peppers *tokenstore.Peppers, id string) *tokenstore.KeyedSum {
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) != len(tokenstore.PepperID{}) {
		return nil
	}
	return peppers.KeyedSum(tokenstore.PepperID(raw))
}

// ReadBackup copies the store's file out of a backup and proves it: its length, its
// sums and, with peppers, its seal. A piece is written once its own sum is right; the
// whole must not be used unless ReadBackup returns without an error.
func ReadBackup(r io.Reader, w io.Writer, peppers *tokenstore.Peppers) (Manifest, error) {
	in := newPieceReader(r)
	m, head, err := readManifest(in)
	if err != nil {
		return m, err
	}
	proof := newBackupProof(head, keyedSum(peppers, m.Pepper))
	raw := make([]byte, pieceBytes)
	err = readPieces(in, &m, &proof, func(piece []byte, length int) error {
		unpackPiece(raw[:length], piece)
		_, err := w.Write(raw[:length])
		return err
	})
	if err != nil {
		return m, err
	}
	digest, keyed := proof.sums()
	seal, err := readTail(in, digest)
	if err != nil {
		return m, err
	}
	return m, checkSeal(peppers, &m, digest, keyed, seal)
}

// CheckBackup reads a backup and checks its length and its sums, which takes no
// pepper and does not show whether somebody made it up.
func CheckBackup(r io.Reader) (Manifest, error) {
	in := newPieceReader(r)
	m, head, err := readManifest(in)
	if err != nil {
		return m, err
	}
	proof := newBackupProof(head, nil)
	if err := readPieces(in, &m, &proof, func([]byte, int) error { return nil }); err != nil {
		return m, err
	}
	digest, _ := proof.sums()
	_, err = readTail(in, digest)
	return m, err
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

// readPieces reads and checks the pieces, and hands each to use with how many bytes
// of the file it stands for.
func readPieces(in *pieceReader, m *Manifest, proof *backupProof, use func(piece []byte, length int) error) error {
	for at := int64(0); at < m.Bytes; at += pieceBytes {
		length := int(min(pieceBytes, m.Bytes-at))
		piece, err := in.piece(length, proof.pieces)
		if err != nil {
			return fmt.Errorf("%w, %d of %d bytes into the store", err, at, m.Bytes)
		}
		proof.add(piece)
		if err := use(piece, length); err != nil {
			return fmt.Errorf("copy backup: %w", err)
		}
	}
	return nil
}

func readManifest(in *pieceReader) (m Manifest, head []byte, err error) {
	if head, err = in.line(maxBackupHead); err != nil {
		return m, nil, err
	}
	text, ok := bytes.CutPrefix(head, []byte(backupMark))
	if !ok {
		return m, nil, errors.New("the file is not a backup: name one that `tokenward backup` made")
	}
	err = json.Unmarshal(text, &m)
	switch {
	case m.Version > backupVersion:
		return m, nil, fmt.Errorf("the backup has version %d, this program reads %d: use the newer program that made it", m.Version, backupVersion)
	case m.Version == 1:
		return m, nil, fmt.Errorf("the backup has version 1, of before the first release, and this program reads %d: restore it with the program that made it, and make a new one with this", backupVersion)
	case err != nil || m.Version != backupVersion || m.Bytes <= 0 || m.Bytes%blockBytes != 0 || m.Store == "":
		return m, nil, fmt.Errorf("%w (its first line is wrong)", ErrBackup)
	}
	if same, err := json.Marshal(m); err != nil || !bytes.Equal(append(same, '\n'), text) {
		return m, nil, fmt.Errorf("%w (its first line is wrong)", ErrBackup)
	}
	return m, bytes.Clone(head), nil
}

// readTail reads the last line and returns the seal.
func readTail(in *pieceReader, digest []byte) (seal string, err error) {
	tail, err := in.line(maxBackupTail)
	if err != nil {
		return "", err
	}
	fields := strings.Split(strings.TrimSuffix(string(tail), "\n"), " ")
	if len(fields) != 3 || fields[0]+" " != backupEnd || !bytes.HasSuffix(tail, []byte("\n")) {
		return "", fmt.Errorf("%w (its end is missing)", ErrBackup)
	}
	if fields[1] != hex.EncodeToString(digest) {
		return "", fmt.Errorf("%w (its checksum is wrong)", ErrBackup)
	}
	more, err := in.line(1)
	if err != nil {
		return "", err
	}
	if len(more) > 0 {
		return "", fmt.Errorf("%w (something follows its end)", ErrBackup)
	}
	return fields[2], nil
}

func checkSeal(peppers *tokenstore.Peppers, m *Manifest, digest, keyed []byte, seal string) error {
	switch {
	case peppers == nil && (seal != "-" || m.Pepper != ""):
		return errors.New("the backup is sealed with a pepper, and tokenstore.pepper_files is empty: name the file in it")
	case peppers == nil:
		return nil
	}
	raw, err := hex.DecodeString(seal)
	if err != nil || m.Pepper == "" || hex.EncodeToString(raw) != seal {
		return fmt.Errorf("%w (it is not sealed)", ErrBackup)
	}
	want := sealed(digest, keyed)
	body, err := peppers.Unseal(append(bytes.Clone(want), raw...))
	if err != nil || keyed == nil || !hmac.Equal(body, want) {
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
// to where they belong. It never lowers either number. restored is what
// [Store.Restored] says from then on; zero: what it said before.
func Raise(path string, lastID tokenstore.ID, lastSeq uint64, restored time.Time) (err error) {
	db, err := openBolt(path, 0, false)
	if err != nil {
		return fmt.Errorf("raise token store: %w", err)
	}
	defer recovering(path, &err)()
	err = db.Update(func(tx *bolt.Tx) error {
		tokens, out := tx.Bucket(bucketTokens), tx.Bucket(bucketOutbox)
		if tokens == nil || out == nil || tx.Bucket(bucketMeta) == nil {
			return damaged(path, "it lacks tokens, outbox or what it says of itself")
		}
		if err := deleteAll(out, keysUntil(out, number(^uint64(0)))); err != nil {
			return err
		}
		if err := tokens.SetSequence(max(tokens.Sequence(), uint64(lastID))); err != nil {
			return err
		}
		if !restored.IsZero() {
			if err := tx.Bucket(bucketMeta).Put(keyRestored, number(millis(restored))); err != nil {
				return err
			}
		}
		return out.SetSequence(max(out.Sequence(), lastSeq))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("raise token store: %w", err)
	}
	return nil
}
