package importer

import (
	"encoding/csv"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestFileBeyondTheBoundGivesNoHalfSecret(t *testing.T) {
	t.Parallel()
	in := csv.NewReader(&boundedReader{strings.NewReader("secret\nwhole-secret\nhalf-secret\n"), 25})
	rows := 0
	for {
		row, err := in.Read()
		if err == nil && strings.HasPrefix(row[0], "half") {
			t.Fatalf("a half row is read: %q", row)
		}
		if errors.Is(err, io.EOF) {
			t.Fatal("the end of what is read passes for the end of the file")
		}
		if err != nil {
			break
		}
		rows++
	}
	if rows != 2 {
		t.Errorf("%d rows are read before the bound", rows)
	}
}
