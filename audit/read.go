package audit

import (
	"errors"
	"iter"
	"os"
)

// errStopped ends the reading of lines when nobody wants more.
var errStopped = errors.New("stopped")

// Records yields the events of the log at path in their order, older files
// first. It proves nothing: call [Verify] before. A line that cannot be read
// ends the sequence with an error; one that is half written, at the very end,
// is left out.
func Records(path string) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		older, err := rotatedFiles(path)
		if err != nil {
			yield(Record{}, err)
			return
		}
		for _, name := range append(older, path) {
			switch err := readRecords(name, yield); {
			case errors.Is(err, errStopped):
				return
			case err != nil:
				yield(Record{}, err)
				return
			}
		}
	}
}

func readRecords(name string, yield func(Record, error) bool) error {
	f, err := os.Open(name) //nolint:gosec // the operator names it
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = readLines(f, func(_ int, text []byte) error {
		r, ok, err := ParseRecord(text)
		if err != nil || !ok {
			return err
		}
		if !yield(r, nil) {
			return errStopped
		}
		return nil
	})
	return err
}
