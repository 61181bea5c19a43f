package boltstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/cespare/xxhash/v2"

	"tokenward/tokenstore"
)

// A piece stands for 64 KiB of the store's file, the last one for what is left:
//
//	8 bytes           XXH64 of the rest, with the piece's number as the seed
//	16 times 2 bytes  of each block of 4096 bytes, how many words of 8 bytes it has
//	                  before the zeros at its end
//	those words
//
// Numbers are little-endian. Pages of the file are filled from their start, so a
// quarter of it is zeros that are not there. It is as bytes that they are left out:
// nothing here knows what pages hold, and all comes back byte for byte. There is one
// piece for given bytes: the last of a block's words is not zero.
const (
	wordBytes   = 8
	blockBytes  = 4096
	pieceBlocks = 16
	pieceBytes  = pieceBlocks * blockBytes // of the file
	pieceHead   = 8 + 2*pieceBlocks
	maxPiece    = pieceHead + pieceBytes
)

// appendPiece appends the piece with a number that stands for raw, whole blocks of at
// most pieceBytes together.
func appendPiece(dst, raw []byte, number uint64) []byte {
	begin := len(dst)
	dst = append(dst, make([]byte, pieceHead)...)
	for i := 0; len(raw) > 0; i++ {
		used := usedBytes(raw[:blockBytes])
		binary.LittleEndian.PutUint16(dst[begin+8+2*i:], uint16(used/wordBytes)) //nolint:gosec // at most 512
		dst = append(dst, raw[:used]...)
		raw = raw[blockBytes:]
	}
	binary.LittleEndian.PutUint64(dst[begin:], pieceSum(dst[begin+8:], number))
	return dst
}

// usedBytes is how many bytes of a block are left without the words of zero at its end.
func usedBytes(block []byte) int {
	n := len(block)
	for n > 0 && binary.LittleEndian.Uint64(block[n-wordBytes:n]) == 0 {
		n -= wordBytes
	}
	return n
}

func pieceSum(p []byte, number uint64) uint64 {
	var d xxhash.Digest
	d.ResetWithSeed(number)
	_, _ = d.Write(p) // never fails
	return d.Sum64()
}

// pieceLength reads from a piece's head how long it is, of which raw bytes of the file
// are to come.
func pieceLength(head []byte, raw int) (int, bool) {
	length := pieceHead
	for i := range pieceBlocks {
		used := int(binary.LittleEndian.Uint16(head[8+2*i:])) * wordBytes
		if used > blockBytes || used > 0 && i*blockBytes >= raw {
			return 0, false
		}
		length += used
	}
	return length, true
}

// unpackPiece fills raw with what a piece stands for, whose length and sum are right.
func unpackPiece(raw, piece []byte) {
	words := piece[pieceHead:]
	for i := 0; len(raw) > 0; i++ {
		used := int(binary.LittleEndian.Uint16(piece[8+2*i:])) * wordBytes
		copy(raw, words[:used])
		clear(raw[used:blockBytes])
		words, raw = words[used:], raw[blockBytes:]
	}
}

// trimmed reports whether every block of a piece leaves out all zeros at its end.
func trimmed(piece []byte) bool {
	end := pieceHead
	for i := range pieceBlocks {
		used := int(binary.LittleEndian.Uint16(piece[8+2*i:])) * wordBytes
		end += used
		if used > 0 && binary.LittleEndian.Uint64(piece[end-wordBytes:]) == 0 {
			return false
		}
	}
	return true
}

// backupProof sums up a backup: what anybody can check, and what only who has the
// pepper can make.
type backupProof struct {
	all    hash.Hash
	keyed  *tokenstore.KeyedSum // or nil
	pieces uint64
}

func newBackupProof(head []byte, keyed *tokenstore.KeyedSum) backupProof {
	p := backupProof{all: sha256.New(), keyed: keyed}
	p.all.Write(head)
	return p
}

// add takes the next piece.
func (p *backupProof) add(piece []byte) {
	p.pieces++
	p.all.Write(piece[:8])
	if p.keyed != nil {
		p.keyed.Add(piece)
	}
}

// sums ends the proof. keyed is nil where there is no pepper.
func (p *backupProof) sums() (digest, keyed []byte) {
	if p.keyed != nil {
		keyed = p.keyed.Sum()
	}
	return p.all.Sum(nil), keyed
}

// pieceReader reads a backup through a buffer that it always fills from its start and
// whole, as files want that are read past the page cache. What it returns is good
// until the next call.
type pieceReader struct {
	r     io.Reader
	buf   []byte
	have  []byte // of buf, what was not taken yet
	cross []byte // what lies across two fillings, and comes before have
	err   error  // of r
}

// readAtOnce is as much as four requests to a virtual disk take, of at most 254 pages.
const readAtOnce = 4 * 960 << 10 // bytes

func newPieceReader(r io.Reader) *pieceReader {
	return &pieceReader{r: r, buf: make([]byte, readAtOnce), cross: make([]byte, 0, maxPiece)}
}

// line takes the bytes up to and with the next line feed, at most limit of them, and
// less where the backup ends.
func (in *pieceReader) line(limit int) (line []byte, err error) {
	for len(line) < limit && in.fill() {
		p := in.have[:min(len(in.have), limit-len(line))]
		if end := bytes.IndexByte(p, '\n'); end >= 0 {
			p = p[:end+1]
		}
		line = append(line, p...)
		in.have = in.have[len(p):]
		if p[len(p)-1] == '\n' {
			return line, nil
		}
	}
	if in.err != nil && !errors.Is(in.err, io.EOF) {
		return nil, in.fault()
	}
	return line, nil
}

// piece takes the piece that has a number and stands for raw bytes, and checks it.
func (in *pieceReader) piece(raw int, number uint64) ([]byte, error) {
	head, err := in.peek(pieceHead)
	if err != nil {
		return nil, err
	}
	length, ok := pieceLength(head, raw)
	if !ok {
		return nil, fmt.Errorf("%w (piece %d is none)", ErrBackup, number)
	}
	piece, err := in.peek(length)
	if err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint64(piece) != pieceSum(piece[8:], number) {
		return nil, fmt.Errorf("%w (the checksum of piece %d is wrong)", ErrBackup, number)
	}
	if !trimmed(piece) {
		return nil, fmt.Errorf("%w (piece %d is none)", ErrBackup, number)
	}
	if len(in.cross) > 0 {
		in.cross = in.cross[:0] // which is the piece
	} else {
		in.have = in.have[length:]
	}
	return piece, nil
}

// peek returns the next bytes, at most maxPiece, without taking them. Whoever peeks
// again before taking wants no fewer.
func (in *pieceReader) peek(length int) ([]byte, error) {
	if len(in.cross) == 0 && len(in.have) >= length {
		return in.have[:length], nil
	}
	for len(in.cross) < length {
		if !in.fill() {
			return nil, in.fault()
		}
		n := min(len(in.have), length-len(in.cross))
		in.cross = append(in.cross, in.have[:n]...)
		in.have = in.have[n:]
	}
	return in.cross, nil
}

// fill gets more where all was taken, and reports whether there is any.
func (in *pieceReader) fill() bool {
	for len(in.have) == 0 && in.err == nil {
		var n int
		n, in.err = in.r.Read(in.buf)
		in.have = in.buf[:n]
	}
	return len(in.have) > 0
}

// fault is why there is no more.
func (in *pieceReader) fault() error {
	if errors.Is(in.err, io.EOF) {
		return fmt.Errorf("%w (it ends too early)", ErrBackup)
	}
	return fmt.Errorf("read backup: %w", in.err)
}
