package leaks_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"unicode/utf16"

	"tokenward/admin/leaks"
	"tokenward/tokenstore"
)

func scanner(t testing.TB) *leaks.Scanner {
	t.Helper()
	s, err := leaks.NewScanner([]string{"tw", "api"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestScanFindsSecretsAndNothingElse(t *testing.T) {
	t.Parallel()
	a, b := tokenstore.NewSecret("tw").Reveal(), tokenstore.NewSecret("api").Reveal()
	other := tokenstore.NewSecret("xy").Reveal()
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"nothing":            {"", nil},
		"alone":              {a, []string{"1:1"}},
		"in text":            {"one\nkey=" + a + ";" + b + "\n", []string{"2:5", fmt.Sprintf("2:%d", 5+len(a)+1)}},
		"between bytes":      {"\x00\xff" + a + "\x00", []string{"1:3"}},
		"behind escapes":     {`\n` + a + `\n %3D` + a + "%26 \x1b[31m" + a + "\x1b[0m", []string{"1:3", fmt.Sprintf("1:%d", 9+len(a)), fmt.Sprintf("1:%d", 18+2*len(a))}},
		"within a word":      {"x" + a + " " + a + "x", []string{"1:2", fmt.Sprintf("1:%d", 3+len(a))}},
		"one after another":  {a + a, []string{"1:1", fmt.Sprintf("1:%d", 1+len(a))}},
		"over another's end": {"tw_" + strings.Repeat("x", 36) + a, []string{"1:40"}},
		"another prefix":     {other, nil},
		"a wrong checksum":   {a[:len(a)-1] + "-", nil},
		"at a seam":          {strings.Repeat("x", 256<<10-20) + " " + a + "\n" + strings.Repeat(" ", 300<<10) + b, []string{"1:262126", "2:307201"}},
		"just before a seam": {strings.Repeat(" ", 256<<10-128) + a, []string{"1:262017"}},
		"a word over a seam": {strings.Repeat("x", 256<<10-128) + a, []string{"1:262017"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, r := range []*bytes.Reader{bytes.NewReader([]byte(test.text))} {
				var got []string
				_, err := scanner(t).Scan(t.Context(), iotest.HalfReader(r), func(f leaks.Found) { got = append(got, fmt.Sprintf("%d:%d", f.Line, f.Column)) })
				if err != nil || !slices.Equal(got, test.want) {
					t.Errorf("found %v, want %v, %v", got, test.want, err)
				}
			}
		})
	}
}

// Windows writes logs, exports and the output of commands as UTF-16, and memory holds wide
// characters as UTF-32, in which a secret is no run of bytes.
func TestSecretInWideCharactersIsFound(t *testing.T) {
	t.Parallel()
	a, b := tokenstore.NewSecret("tw").Reveal(), tokenstore.NewSecret("api").Reveal()
	wide := func(text string, order binary.AppendByteOrder, width int) string {
		var out []byte
		for _, c := range utf16.Encode([]rune(text)) { // the texts here have one unit for each character
			if width == 4 {
				out = order.AppendUint32(out, uint32(c))
			} else {
				out = order.AppendUint16(out, c)
			}
		}
		return string(out)
	}
	type coding struct {
		order binary.AppendByteOrder
		width int
	}
	for order, coded := range map[string]coding{"UTF-16LE": {binary.LittleEndian, 2}, "UTF-16BE": {binary.BigEndian, 2}, "UTF-32LE": {binary.LittleEndian, 4}, "UTF-32BE": {binary.BigEndian, 4}} {
		for name, test := range map[string]struct {
			text string
			want []string
		}{
			"alone":              {a, []string{"1:1"}},
			"with a mark":        {"\ufeff" + a, []string{"1:1"}},
			"lines":              {"one\r\nkey=" + a + ";" + b + "\r\n" + a, []string{"2:5", fmt.Sprintf("2:%d", 5+len(a)+1), "3:1"}},
			"marked lines":       {"\ufeff上海\u0a01\r\nkey=" + a + ";" + b + "\r\n" + a, []string{"2:5", fmt.Sprintf("2:%d", 5+len(a)+1), "3:1"}},
			"one after another":  {a + b, []string{"1:1", fmt.Sprintf("1:%d", 1+len(a))}},
			"at a seam":          {"\ufeff" + strings.Repeat("x", 128<<10-20) + a + "\n" + strings.Repeat(" ", 300<<10) + b, []string{"1:131053", "2:307201"}},
			"just before a seam": {strings.Repeat("x", 128<<10-64) + a, []string{"1:131009"}},
			"at a seam of four":  {strings.Repeat("x", 64<<10-20) + a, []string{"1:65517"}},
			"before one of four": {strings.Repeat("x", 64<<10-64) + a, []string{"1:65473"}},
			"a wrong checksum":   {a[:len(a)-1] + "-", nil},
			"cut":                {a[:len(a)-1], nil},
			"too wide":           {strings.ReplaceAll(a, "_", "_\u0100"), nil},
			"a letter of two":    {strings.Replace(a, "w_", "\u0177_", 1), nil},
		} {
			t.Run(order+" "+name, func(t *testing.T) {
				t.Parallel()
				var got []string
				text := strings.NewReader(wide(test.text, coded.order, coded.width))
				_, err := scanner(t).Scan(t.Context(), iotest.HalfReader(text), func(f leaks.Found) { got = append(got, fmt.Sprintf("%d:%d", f.Line, f.Column)) })
				if err != nil || !slices.Equal(got, test.want) {
					t.Errorf("found %v, want %v, %v", got, test.want, err)
				}
			})
		}
	}
}

// Logs that were rotated lie there in gzip.
func TestSecretInARotatedLogIsFound(t *testing.T) {
	t.Parallel()
	a, b := tokenstore.NewSecret("tw").Reveal(), tokenstore.NewSecret("api").Reveal()
	pack := func(text string) string {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		_, err := w.Write([]byte(text))
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	noise := make([]byte, 300<<10)
	_, _ = rand.Read(noise) // so that it stays long
	long := pack("one\nkey=" + a + "\n" + string(noise) + b)
	for name, test := range map[string]struct {
		text   string
		found  int
		packed bool
		broken bool
	}{
		"whole":            {long, 2, false, false},
		"two in one":       {pack(a) + pack(b), 2, false, false},
		"cut off":          {long[:len(long)-100], 1, false, true},
		"cut in its head":  {"\x1f\x8b\x08\x08", 0, true, false},
		"only named so":    {"\x1f\x8b\x08\xff" + a, 1, true, false},
		"changed":          {long[:len(long)-3] + "xyz", 2, false, true},
		"packed otherwise": {"\x28\xb5\x2f\xfd\x00", 0, true, false},
		"zip":              {"PK\x03\x04 " + a, 1, true, false},
	} {
		found := 0
		packed, err := scanner(t).Scan(t.Context(), iotest.HalfReader(strings.NewReader(test.text)), func(leaks.Found) { found++ })
		if found != test.found || packed != test.packed || (err != nil) != test.broken {
			t.Errorf("%s: %d found, packed %t, %v", name, found, packed, err)
		}
	}
}

// A pipe in a tree of logs would keep the scan waiting for somebody who writes to it.
func TestPipeInAFolderIsSkippedAndSaidSo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe, file := filepath.Join(dir, "a-pipe"), filepath.Join(dir, "b")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	secret := []byte(tokenstore.NewSecret("tw").Reveal())
	if err := os.WriteFile(file, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	var found, skipped []string
	visit := leaks.Visit{
		Found:   func(file string, _ leaks.Found) { found = append(found, file) },
		Failed:  func(err error) { t.Error(err) },
		Skipped: func(file string, kind fs.FileMode) { skipped = append(skipped, fmt.Sprint(file, " ", kind)) },
	}
	if err := scanner(t).ScanPath(t.Context(), dir, visit); err != nil || !slices.Equal(found, []string{file}) || !slices.Equal(skipped, []string{fmt.Sprint(pipe, " ", fs.ModeNamedPipe)}) {
		t.Errorf("found in %v, skipped %v, %v", found, skipped, err)
	}

	// One that is named is read.
	found, skipped = nil, nil
	wrote := make(chan error, 1)
	go func() { wrote <- os.WriteFile(pipe, secret, 0o600) }()
	if err := scanner(t).ScanPath(t.Context(), pipe, visit); err != nil || !slices.Equal(found, []string{pipe}) || skipped != nil {
		t.Errorf("found in %v, skipped %v, %v", found, skipped, err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
}

func TestScanOfAPipeThatNobodyWritesToCanBeEnded(t *testing.T) {
	t.Parallel()
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- scanner(t).ScanPath(ctx, pipe, leaks.Visit{}) }()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	w, err := os.OpenFile(pipe, os.O_RDWR, 0) // lets go of the one who waits
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
}

// FuzzScan: whatever stands around a secret, it is found as often as it stands there.
func FuzzScan(f *testing.F) {
	f.Add([]byte("a\n"), []byte("\x00"), false)
	f.Add([]byte("\xff\xfe"), []byte{}, true)
	f.Add([]byte("\xfe\xff\x00"), []byte("tw_"), true)
	secret := tokenstore.NewSecret("tw").Reveal()
	f.Fuzz(func(t *testing.T, before, after []byte, wide bool) {
		if bytes.Contains(before, []byte("_")) {
			t.Skip() // it may be part of another secret
		}
		text := []byte(secret)
		if wide {
			text = bytes.Join(bytes.Split(text, nil), []byte{0})
		}
		n := 0
		_, err := scanner(t).Scan(t.Context(), bytes.NewReader(slices.Concat(before, text, after)), func(found leaks.Found) {
			if found.Secret.Reveal() == secret && found.Line > 0 {
				n++
			}
		})
		if err != nil || n != 1 {
			t.Errorf("found %d times, %v", n, err)
		}
	})
}

func TestScanDoesNotLeaveItsFolder(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	secret := []byte(tokenstore.NewSecret("tw").Reveal())
	inside := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(filepath.Dir(inside), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{inside, outside} {
		if err := os.WriteFile(path, secret, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"link": outside, "folder": filepath.Dir(outside), "loop": "."} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	var files []string
	visit := leaks.Visit{
		Found:   func(file string, _ leaks.Found) { files = append(files, file) },
		Failed:  func(err error) { t.Error(err) },
		Skipped: func(file string, kind fs.FileMode) { t.Errorf("%s is skipped as %s", file, kind) },
	}
	err := scanner(t).ScanPath(t.Context(), dir, visit)
	if err != nil || !slices.Equal(files, []string{inside}) {
		t.Errorf("found in %v, %v", files, err)
	}
}

func TestScanEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	text := strings.Repeat(" ", 300<<10) + tokenstore.NewSecret("tw").Reveal()
	endless := io.MultiReader(strings.NewReader(text), readerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil }))
	if _, err := scanner(t).Scan(ctx, endless, func(leaks.Found) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("the scan of what never ends: %v", err)
	}
	visit := leaks.Visit{Found: func(string, leaks.Found) {}, Failed: func(err error) { t.Error(err) }, Skipped: func(string, fs.FileMode) {}}
	if err := scanner(t).ScanPath(ctx, ".", visit); err == nil {
		t.Error("a folder is scanned after the end")
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestScannerNeedsSoundPrefixes(t *testing.T) {
	t.Parallel()
	for _, prefixes := range [][]string{nil, {"TW"}, {"t.*"}} {
		if _, err := leaks.NewScanner(prefixes); err == nil {
			t.Errorf("%q are accepted", prefixes)
		}
	}
}
