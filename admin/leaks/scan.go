// Package leaks finds secrets where they should not be, and ends those that
// others report to have found.
package leaks

import (
	"bytes"
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
			return nil, fmt.Errorf("%.40q is no prefix of secrets: write a small letter and 1 to 15 small letters or digits", p)
		}
	}
	return &Scanner{slices.Clone(prefixes), tokenstore.NewFormats(prefixes...)}, nil
}

// What is read at once, and how much of it is looked at again with what follows:
// more than a secret, in UTF-16 too. Both are even, so that a character of UTF-16 is
// never cut.
const (
	windowBytes  = 256 << 10
	overlapBytes = 128
)

// Scan calls found for each secret in r whose checksum is right, in their order.
// Whether a secret stands alone does not matter: in a log the letter before it may
// be the end of an escape, as in \n, %3D or a colour. UTF-16 is read too, of either
// order and with or without a mark at its beginning. Memory is constant. Bytes that
// are no text do not disturb it. It ends with ctx, once what r is asked for is here.
func (s *Scanner) Scan(ctx context.Context, r io.Reader, found func(Found)) error {
	buf := make([]byte, 0, windowBytes)
	var here place // of buf's first byte
	for first := true; ; first = false {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return err
		}
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
			if here.order == nil && buf[at+1] == 0 {
				there.column = (there.column + 1) / 2
			}
			found(Found{Line: there.line, Column: there.column, Secret: tokenstore.SecretFrom(string(text))})
		}
		if last {
			return nil
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
				if at = mark - 2*len(p); at < 0 {
					continue
				}
				var ok bool
				narrowed, ok = narrow(narrowed[:0], buf[at:], len(p)+1+tokenstore.SecretBodyLen)
				if ok && bytes.HasPrefix(narrowed, []byte(p)) && s.formats.Classify(narrowed) == tokenstore.ClassOurs && !yield(at, narrowed) {
					return
				}
			}
		}
	}
}

// narrow appends n characters of buf, which is UTF-16 of either order from its first
// character's byte on: then there is a zero between each two.
func narrow(dst, buf []byte, n int) ([]byte, bool) {
	if len(buf) < 2*n-1 {
		return dst, false
	}
	for i := range n {
		if i > 0 && buf[2*i-1] != 0 {
			return dst, false
		}
		dst = append(dst, buf[2*i])
	}
	return dst, true
}

// place is where one is in a text.
type place struct {
	line, column int              // from 1
	order        binary.ByteOrder // of UTF-16 that says so at its beginning; nil: the text is bytes
}

// beginning is the place of a text's first byte.
func beginning(text []byte) place {
	switch {
	case bytes.HasPrefix(text, []byte{0xff, 0xfe}):
		return place{line: 1, order: binary.LittleEndian} // its mark leads to column 1
	case bytes.HasPrefix(text, []byte{0xfe, 0xff}):
		return place{line: 1, order: binary.BigEndian}
	}
	return place{line: 1, column: 1}
}

// pass goes on behind text.
func (p *place) pass(text []byte) {
	if p.order == nil {
		for _, c := range text {
			p.step(uint16(c))
		}
		return
	}
	for i := 0; i+1 < len(text); i += 2 {
		p.step(p.order.Uint16(text[i:]))
	}
}

func (p *place) step(c uint16) {
	p.column++
	if c == '\n' {
		p.line, p.column = p.line+1, 1
	}
}

// Visit is told what comes of the files that ScanPath reads. None of its fields may be nil.
type Visit struct {
	Found   func(file string, f Found)
	Failed  func(error)                         // a file cannot be read, which does not end the scan
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
		return s.Scan(ctx, f, func(one Found) { v.Found(path, one) })
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
			v.Failed(err)
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
	return s.Scan(ctx, f, func(one Found) { v.Found(shown, one) })
}
