// Package leaks finds secrets where they should not be, and ends those that
// others report to have found.
package leaks

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
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
	pattern *regexp.Regexp
	formats *tokenstore.Formats
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
	pattern, err := regexp.Compile(tokenstore.SecretPattern(prefixes))
	return &Scanner{pattern, tokenstore.NewFormats(prefixes...)}, err
}

// What is read at once, and how much of it is looked at again with what follows:
// more than a secret and the byte on either side of it.
const (
	windowBytes  = 256 << 10
	overlapBytes = 128
)

// Scan calls found for each secret in r whose checksum is right, in their order.
// Memory is constant. Bytes that are no text do not disturb it.
func (s *Scanner) Scan(r io.Reader, found func(Found)) error {
	buf := make([]byte, 0, windowBytes)
	line, column := 1, 1 // of buf's first byte
	for skip := 0; ; {
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
		for _, at := range s.pattern.FindAllIndex(buf, -1) {
			// What begins before skip was looked at with more before it.
			if at[0] < skip || at[0] >= cut || s.formats.Classify(buf[at[0]:at[1]]) != tokenstore.ClassOurs {
				continue
			}
			l, c := advance(line, column, buf[:at[0]])
			found(Found{Line: l, Column: c, Secret: tokenstore.SecretFrom(string(buf[at[0]:at[1]]))})
		}
		if last {
			return nil
		}
		keep := cut - 1 // the byte before tells whether a word begins
		line, column = advance(line, column, buf[:keep])
		buf, skip = buf[:copy(buf, buf[keep:])], 1
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
// folder; what leads out of the folder is not followed. found is told the file's
// path; failed is told of files that cannot be read, which does not end the scan.
func (s *Scanner) ScanPath(path string, found func(file string, f Found), failed func(error)) error {
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
		return s.Scan(f, func(one Found) { found(path, one) })
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
		if err := s.Scan(f, func(one Found) { found(shown, one) }); err != nil {
			failed(fmt.Errorf("%s: %w", shown, err))
		}
		return nil
	})
}
