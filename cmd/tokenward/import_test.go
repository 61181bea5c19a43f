package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"tokenward/admin"
	"tokenward/admin/native"
	"tokenward/tokenstore/importer"
)

func TestDryRunFindsDuplicatesOverBatches(t *testing.T) {
	t.Parallel()
	var file strings.Builder
	file.WriteString("secret\nfirst\nrefused\n")
	for i := range admin.MaxImport {
		fmt.Fprintf(&file, "between-%d\n", i)
	}
	file.WriteString("first\nrefused\n")
	for dryRun, want := range map[bool][]int{true: {3, admin.MaxImport + 4}, false: {3}} {
		items, err := importer.Read("csv", strings.NewReader(file.String()), importer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		take := func(_ context.Context, batch []importer.Item) (answer native.ImportAnswer, _ error) {
			for i := range batch {
				if batch[i].Line == 3 {
					answer.Refused = append(answer.Refused, native.ImportRefusal{Line: 3, Detail: "is not liked"})
				}
			}
			return answer, nil
		}
		cmd := &cobra.Command{}
		cmd.SetErr(&bytes.Buffer{})
		cmd.SetContext(t.Context())
		total, err := (&importFlags{dryRun: dryRun}).run(cmd, items, take)
		var got []int
		for _, r := range total.Refused {
			got = append(got, r.Line)
		}
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("dry run %t: the entries %v are refused, want %v, %v", dryRun, got, want, err)
		}
	}
}
