package leaks_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

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
				err := scanner(t).Scan(t.Context(), iotest.HalfReader(r), func(f leaks.Found) { got = append(got, fmt.Sprintf("%d:%d", f.Line, f.Column)) })
				if err != nil || !slices.Equal(got, test.want) {
					t.Errorf("found %v, want %v, %v", got, test.want, err)
				}
			}
		})
	}
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
	err := scanner(t).ScanPath(t.Context(), dir, func(file string, _ leaks.Found) { files = append(files, file) }, func(err error) { t.Error(err) })
	if err != nil || !slices.Equal(files, []string{inside}) {
		t.Errorf("found in %v, %v", files, err)
	}
}

func TestScanEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	text := strings.Repeat(" ", 300<<10) + tokenstore.NewSecret("tw").Reveal()
	endless := io.MultiReader(strings.NewReader(text), readerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil }))
	if err := scanner(t).Scan(ctx, endless, func(leaks.Found) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("the scan of what never ends: %v", err)
	}
	failed := func(err error) { t.Error(err) }
	if err := scanner(t).ScanPath(ctx, ".", func(string, leaks.Found) {}, failed); err == nil {
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
