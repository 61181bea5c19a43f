// Package leaks finds secrets where they should not be, and ends those that
// others report to have found.
package leaks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strings"

	"tokenward/tokenstore"
)

// Found is a secret in a text.
type Found struct {
	Line   int // from 1
	Column int // of its first byte, from 1
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
// more than a secret.
const (
	windowBytes  = 256 << 10
	overlapBytes = 128
)

// Scan calls found for each secret in r whose checksum is right, in their order.
// Whether a secret stands alone does not matter: in a log the letter before it may
// be the end of an escape, as in \n, %3D or a colour. Memory is constant. Bytes that
// are no text do not disturb it. It ends with ctx, once what r is asked for is here.
func (s *Scanner) Scan(ctx context.Context, r io.Reader, found func(Found)) error {
	buf := make([]byte, 0, windowBytes)
	line, column := 1, 1 // of buf's first byte
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return err
		}
		cut := len(buf)
		if !last {
			cut -= overlapBytes
		}
		for at, text := range s.secrets(buf) {
			if at >= cut {
				continue // it is found with what follows
			}
			l, c := advance(line, column, buf[:at])
			found(Found{Line: l, Column: c, Secret: tokenstore.SecretFrom(string(text))})
		}
		if last {
			return nil
		}
		line, column = advance(line, column, buf[:cut])
		buf = buf[:copy(buf, buf[cut:])]
	}
}

// secrets yields the secrets that lie whole in buf, with where they begin.
func (s *Scanner) secrets(buf []byte) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		for from := 0; ; {
			next := bytes.IndexByte(buf[from:], '_')
			if next < 0 {
				return
			}
			mark := from + next
			from = mark + 1
			end := mark + 1 + tokenstore.SecretBodyLen
			if end > len(buf) {
				return
			}
			for _, p := range s.prefixes {
				at := mark - len(p)
				if bytes.HasSuffix(buf[:mark], []byte(p)) && s.formats.Classify(buf[at:end]) == tokenstore.ClassOurs && !yield(at, buf[at:end]) {
					return
				}
			}
		}
	}
}

// advance returns the place behind text.
func advance(line, column int, text []byte) (int, int) {
	for _, c := range text {
		column++
		if c == '\n' {
			line, column = line+1, 1
		}
	}
	return line, column
}

// ScanPath scans the file at path, or every regular file below it if it is a
// folder; what leads out of the folder is not followed. It ends with ctx. found is told the file's
// path; failed is told of files that cannot be read, which does not end the scan.
func (s *Scanner) ScanPath(ctx context.Context, path string, found func(file string, f Found), failed func(error)) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		f, err := os.Open(path) //nolint:gosec // the operator names it
		if err != nil {
			return err
		}
		defer f.Close()
		return s.Scan(ctx, f, func(one Found) { found(path, one) })
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			failed(err)
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		f, err := root.Open(name)
		if err != nil {
			failed(err)
			return nil
		}
		defer f.Close()
		shown := strings.TrimSuffix(path, "/") + "/" + name
		if err := s.Scan(ctx, f, func(one Found) { found(shown, one) }); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			failed(fmt.Errorf("%s: %w", shown, err))
		}
		return nil
	})
}
