package main

import (
	"context"
	"io"
	"strings"
	"testing"
)

// TestInterruptEndsWhatWaitsForStandardInput: nobody types, as in a terminal where
// somebody forgot to name a file.
func TestInterruptEndsWhatWaitsForStandardInput(t *testing.T) {
	for _, args := range [][]string{
		{"scan", "-"},
		{"check", "--config", "-"},
		{"token", "import", "--format", "csv", "-"},
		{"token", "list", "--token-file", "-"},
	} {
		ctx, interrupt := context.WithCancel(t.Context())
		in, typing := io.Pipe()
		var errs strings.Builder
		ended := make(chan int)
		go func() { ended <- run(ctx, args, &firstRead{in, interrupt}, io.Discard, &errs) }()
		if code := <-ended; code == exitFine {
			t.Errorf("%q: exit code %d\n%s", args, code, errs.String())
		}
		if err := typing.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// firstRead tells that it is waited for.
type firstRead struct {
	io.Reader
	told func()
}

func (f *firstRead) Read(p []byte) (int, error) {
	f.told()
	return f.Reader.Read(p)
}
