// Package leaks finds secrets where they should not be, and ends those that
// others report to have found.
package leaks

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strings"
	"syscall"

	"tokenward/tokenstore"
)

// Found is a secret in a text.
type Found struct {
	Line   int // from 1
	Column int // of its first byte, from 1; of its first character where it is UTF-16
	Secret tokenstore.Secret
}

// Scanner finds secrets of the prefixes that it was made with. It is safe for
// concurrent use.
type Scanner struct {
	prefixes []string
	formats  *tokenstore.Formats
}

// NewScanner returns a scanner for secrets with these prefixes, each of which must
// satisfy [tokenstore.ValidPrefix].
func NewScanner(prefixes []string) (*Scanner, error) {
	if len(prefixes) == 0 {
		return nil, errors.New("there is no prefix to look for")
	}
	for _, p := range prefixes {
		if !tokenstore.ValidPrefix(p) {
			return nil, fmt.Errorf("%.40q is not a prefix of secrets: write a small letter and 1 to 15 small letters or digits", p)
		}
	}
	return &Scanner{slices.Clone(prefixes), tokenstore.NewFormats(prefixes...)}, nil
}

// What is read at once, and how much of it is looked at again with what follows:
// more than a secret, in UTF-32 too. Both are multiples of four, so that a character
// is never cut.
const (
	windowBytes  = 256 << 10
	overlapBytes = 256
)

// Scan calls found for each secret in r whose checksum is right, in their order.
// Whether a secret stands alone does not matter: in a log the letter before it may
// be the end of an escape, as in \n, %3D or a colour. UTF-16 and UTF-32 are read too, of
// either order and with or without a mark at their beginning, and what is in gzip is
// unpacked. Memory is constant. Bytes that are no text do not disturb it. It ends with
// ctx, once what r is asked for is here. packed reports that r is compressed in another
// way, so that only its bytes could be looked at.
func (s *Scanner) Scan(ctx context.Context, r io.Reader, found func(Found)) (packed bool, err error) {
	in := bufio.NewReader(r)
	begin, err := in.Peek(magicBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	if _, err := gzip.NewReader(bytes.NewReader(begin)); err == nil {
		unpacked, err := gzip.NewReader(in)
		if err != nil {
			return true, err
		}
		return false, s.scan(ctx, unpacking{unpacked}, found)
	}
	for _, magic := range archives {
		packed = packed || bytes.HasPrefix(begin, []byte(magic))
	}
	return packed, s.scan(ctx, in, found)
}

// unpacking tells the end of a file that was cut off from the end of a text.
type unpacking struct{ *gzip.Reader }

func (u unpacking) Read(p []byte) (int, error) {
	n, err := u.Reader.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // as [io.Reader] has it
		err = fmt.Errorf("what is in gzip cannot be unpacked further: %v", err) //nolint:errorlint // it is no end
	}
	return n, err
}

// archives are how compressed files begin that cannot be read: gzip with a strange or
// broken head, bzip2, xz, Zstandard, LZ4, 7z and zip.
var archives = []string{"\x1f\x8b\x08", "BZh", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd", "\x04\x22\x4d\x18", "7z\xbc\xaf\x27\x1c", "PK\x03\x04"}

// magicBytes is as much of a file as shows what it is: the head of gzip has names in it.
const magicBytes = 4096

func (s *Scanner) scan(ctx context.Context, r io.Reader, found func(Found)) error {
	buf := make([]byte, 0, windowBytes)
	var here place // of buf's first byte
	for first, last := true, false; ; first = false {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err, last = nil, true
		}
		last = last || err != nil // what came before it is looked at
		if first {
			here = beginning(buf)
		}
		cut := len(buf)
		if !last {
			cut -= overlapBytes
		}
		for at, text := range s.secrets(buf) {
			if at >= cut {
				continue // it is found with what follows
			}
			there := here
			there.pass(buf[:at])
			if here.width == 1 {
				width := widthAt(buf[at:])
				there.column = (there.column + width - 1) / width
			}
			found(Found{Line: there.line, Column: there.column, Secret: tokenstore.SecretFrom(string(text))})
		}
		if last {
			return err
		}
		here.pass(buf[:cut])
		buf = buf[:copy(buf, buf[cut:])]
	}
}

// secrets yields the secrets that lie whole in buf, with where they begin. A secret's
// text is valid until the next one.
func (s *Scanner) secrets(buf []byte) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		var narrowed []byte
		for from := 0; ; {
			next := bytes.IndexByte(buf[from:], '_')
			if next < 0 {
				return
			}
			mark := from + next
			from = mark + 1
			for _, p := range s.prefixes {
				at, end := mark-len(p), mark+1+tokenstore.SecretBodyLen
				if end <= len(buf) && bytes.HasSuffix(buf[:mark], []byte(p)) && s.formats.Classify(buf[at:end]) == tokenstore.ClassOurs && !yield(at, buf[at:end]) {
					return
				}
				for _, width := range []int{2, 4} {
					if at = mark - width*len(p); at < 0 {
						continue
					}
					var ok bool
					narrowed, ok = narrow(narrowed[:0], buf[at:], width, len(p)+1+tokenstore.SecretBodyLen)
					if ok && bytes.HasPrefix(narrowed, []byte(p)) && s.formats.Classify(narrowed) == tokenstore.ClassOurs && !yield(at, narrowed) {
						return
					}
				}
			}
		}
	}
}

// narrow appends n characters of buf, which are of width bytes in either order, from the
// first one's byte on: all other bytes are zero.
func narrow(dst, buf []byte, width, n int) ([]byte, bool) {
	if len(buf) < width*(n-1)+1 {
		return dst, false
	}
	for i := range n {
		if at := i * width; i > 0 {
			for _, c := range buf[at-width+1 : at] {
				if c != 0 {
					return dst, false
				}
			}
		}
		dst = append(dst, buf[i*width])
	}
	return dst, true
}

// widthAt is of how many bytes the characters of a secret are that begins in buf.
func widthAt(buf []byte) int {
	switch {
	case buf[1] != 0:
		return 1
	case buf[2] != 0:
		return 2
	}
	return 4
}

// place is where one is in a text.
type place struct {
	line, column int              // from 1
	width        int              // bytes of a character: 1 unless the text says otherwise at its beginning
	order        binary.ByteOrder // of wider ones
}

// beginning is the place of a text's first byte. A mark there leads to column 1.
func beginning(text []byte) place {
	switch {
	case bytes.HasPrefix(text, []byte{0xff, 0xfe, 0, 0}):
		return place{line: 1, width: 4, order: binary.LittleEndian}
	case bytes.HasPrefix(text, []byte{0, 0, 0xfe, 0xff}):
		return place{line: 1, width: 4, order: binary.BigEndian}
	case bytes.HasPrefix(text, []byte{0xff, 0xfe}):
		return place{line: 1, width: 2, order: binary.LittleEndian}
	case bytes.HasPrefix(text, []byte{0xfe, 0xff}):
		return place{line: 1, width: 2, order: binary.BigEndian}
	}
	return place{line: 1, column: 1, width: 1}
}

// pass goes on behind text.
func (p *place) pass(text []byte) {
	switch p.width {
	case 2:
		for ; len(text) > 1; text = text[2:] {
			p.step(uint32(p.order.Uint16(text)))
		}
	case 4:
		for ; len(text) > 3; text = text[4:] {
			p.step(p.order.Uint32(text))
		}
	default:
		for _, c := range text {
			p.step(uint32(c))
		}
	}
}

func (p *place) step(c uint32) {
	p.column++
	if c == '\n' {
		p.line, p.column = p.line+1, 1
	}
}

// Visit is told what comes of the files that ScanPath reads. None of its fields may be nil.
type Visit struct {
	Found   func(file string, f Found)
	Failed  func(error)                         // a file cannot be read, which does not end the scan
	Packed  func(file string)                   // compressed in a way that is not read: only its bytes were looked at
	Skipped func(file string, kind fs.FileMode) // what is neither file, folder nor link, such as a pipe
}

// ScanPath scans what is at path: a file, also a pipe or a device, since it was named;
// or every regular file below it if it is a folder. What leads out of the folder is not
// followed, and what might never end there is not read. It ends with ctx.
func (s *Scanner) ScanPath(ctx context.Context, path string, v Visit) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		f, err := open(ctx, path)
		if err != nil {
			return err
		}
		defer f.Close()
		return s.scanFile(ctx, f, path, &v)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		shown := strings.TrimSuffix(path, "/") + "/" + name
		switch {
		case err != nil:
			v.Failed(fmt.Errorf("%s: %w", shown, err))
		case d.Type().IsRegular():
			if err := s.scanIn(ctx, root, name, shown, &v); ctx.Err() != nil {
				return ctx.Err()
			} else if err != nil {
				v.Failed(fmt.Errorf("%s: %w", shown, err))
			}
		case d.Type()&(fs.ModeDir|fs.ModeSymlink) == 0:
			v.Skipped(shown, d.Type())
		}
		return nil
	})
}

// open opens a file. Opening a pipe waits for its writer, for no longer than ctx: then
// a goroutine goes on waiting, until there is one or the process ends.
func open(ctx context.Context, path string) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	opened := make(chan result, 1)
	go func() {
		f, err := os.Open(path) //nolint:gosec // the operator names it
		opened <- result{f, err}
	}()
	select {
	case r := <-opened:
		return r.f, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// scanIn scans a file below root that was a regular one when its folder was read. That
// it no longer is must not keep the scan waiting for it to be opened.
func (s *Scanner) scanIn(ctx context.Context, root *os.Root, name, shown string, v *Visit) error {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		v.Skipped(shown, info.Mode().Type())
		return nil
	}
	return s.scanFile(ctx, f, shown, v)
}

func (s *Scanner) scanFile(ctx context.Context, f *os.File, shown string, v *Visit) error {
	packed, err := s.Scan(ctx, f, func(one Found) { v.Found(shown, one) })
	if packed {
		v.Packed(shown)
	}
	return err
}
