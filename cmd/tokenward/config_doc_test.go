package main

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"tokenward/enforce/canon"
)

const docPath = "../../docs/config.md"

// TestDocumentationListsEachKey holds the tables of docs/config.md to the
// struct: path, default and whether a reload applies the key.
func TestDocumentationListsEachKey(t *testing.T) {
	rows := docRows(t)
	known := map[string]bool{"routes": true}
	for k := range configKeys() {
		known[k.path] = true
		row, ok := rows[k.path]
		if !ok {
			t.Errorf("%s is not documented", k.path)
			continue
		}
		if want := "`" + showDefault(k.in(defaultConfig())) + "`"; row[1] != want {
			t.Errorf("%s is documented with the default %s, and has %s", k.path, row[1], want)
		}
		if row[len(row)-1] != k.reload {
			t.Errorf("%s is documented with reload %s, and has %s", k.path, row[len(row)-1], k.reload)
		}
	}
	for key := range yamlFields(reflect.TypeFor[RouteConfig]()) {
		known["routes[]."+key] = true
		if _, ok := rows["routes[]."+key]; !ok {
			t.Errorf("routes[].%s is not documented", key)
		}
	}
	for r := range canon.Relaxations() {
		known[r.Name] = true
		if row := rows[r.Name]; len(row) != 3 || row[1] != r.Detail || row[2] != r.Danger {
			t.Errorf("the relaxation should be documented as\n| `%s` | %s | %s |", r.Name, r.Detail, r.Danger)
		}
	}
	for key := range rows {
		if !known[key] {
			t.Errorf("%s is documented, and does not exist", key)
		}
	}
}

// docRows are the cells of all tables by the name in their first one.
func docRows(t *testing.T) map[string][]string {
	t.Helper()
	data, err := os.ReadFile(docPath)
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string][]string)
	for line := range strings.Lines(string(data)) {
		line = strings.ReplaceAll(strings.TrimSpace(line), `\|`, "\x00")
		inner, ok := strings.CutPrefix(line, "| `")
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(inner, "`")
		if rows[name] != nil {
			t.Errorf("%s is documented twice", name)
		}
		for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
			rows[name] = append(rows[name], strings.TrimSpace(cell))
		}
	}
	return rows
}

func TestExamplesOfTheDocumentationLoad(t *testing.T) {
	data, err := os.ReadFile(docPath)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, part := range strings.Split(string(data), "```yaml\n")[1:] {
		text, _, _ := strings.Cut(part, "```")
		n++
		if _, err := parseConfig(fmt.Sprintf("example %d of docs/config.md", n), []byte(text)); err != nil {
			t.Error(err)
		}
	}
	if n == 0 {
		t.Error("the documentation shows no configuration")
	}
}
