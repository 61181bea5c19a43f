package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"tokenward/tokenstore"
)

// decoder puts a tree into a Config. Whatever does not fit is reported, and
// leaves the default where it was.
type decoder struct {
	faults []configFault
	// places are where keys and list items stand, by path. The place of a key is
	// that of its value, since that is what is to be mended.
	places map[string]position
	// broken are paths that hold a fault already: no rule looks at them again.
	broken map[string]bool
}

func (d *decoder) fault(path string, at position, r rule, problem, fix string) {
	d.faults = append(d.faults, configFault{Line: at.line, Column: at.column, width: at.width, Key: path, Rule: r, Problem: problem, Fix: fix})
	d.spoil(path)
}

// spoil marks the path, and what it is part of, as holding a fault.
func (d *decoder) spoil(path string) {
	for p := path; p != ""; p = parentPath(p) {
		d.broken[p] = true
	}
}

// report is fault for a key that is in the file, at its own place.
func (d *decoder) report(path string, r rule, problem, fix string) {
	d.fault(path, d.place(path), r, problem, fix)
}

// place is where the path, or what it is part of, stands.
func (d *decoder) place(path string) position {
	for p := path; p != ""; p = parentPath(p) {
		if at, ok := d.places[p]; ok {
			return at
		}
	}
	return position{}
}

// sound reports whether none of the paths holds a fault.
func (d *decoder) sound(paths ...string) bool {
	return !slices.ContainsFunc(paths, func(p string) bool { return d.broken[p] })
}

// parentPath is `a.b` for `a.b.c` and for `a.b[3]`.
func parentPath(path string) string {
	return path[:max(0, strings.LastIndexAny(path, ".["))]
}

func joinPath(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// value decodes node into dst by dst's type.
func (d *decoder) value(path string, node ast.Node, dst reflect.Value) {
	d.places[path] = nodePosition(node)
	switch node.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.LiteralNode:
		d.spoil(path) // reported with its token
		return
	}
	switch dst.Interface().(type) {
	case time.Duration:
		scalar(d, path, node, dst, "a duration such as 30s, 5m, 12h or 7d", ruleDuration, parseDuration)
		return
	case instant:
		scalar(d, path, node, dst, "a time such as 2026-12-31T23:59:59Z", ruleTime, parseInstant)
		return
	case byteSize:
		scalar(d, path, node, dst, "a number of bytes, such as 65536 or 64KiB", ruleSize, parseSize)
		return
	case requestRate:
		scalar(d, path, node, dst, "a number of requests and a time, such as 10/s, 600/m or 5000/h", ruleRate, parseRate)
		return
	case upstreamList:
		dst.Set(reflect.ValueOf(d.upstreams(path, node)))
		return
	case netip.Prefix:
		scalar(d, path, node, dst, "an address or network such as 10.0.0.0/8", ruleNetwork, tokenstore.ParseSource)
		return
	}
	switch dst.Kind() {
	case reflect.Pointer:
		one := reflect.New(dst.Type().Elem())
		d.value(path, node, one.Elem())
		dst.Set(one)
	case reflect.Struct:
		d.mapping(path, node, dst)
	case reflect.Map:
		d.named(path, node, dst)
	case reflect.Slice:
		d.list(path, node, dst)
	case reflect.String:
		d.text(path, node, dst)
	case reflect.Bool:
		d.flag(path, node, dst)
	case reflect.Int, reflect.Uint64:
		d.number(path, node, dst)
	default:
		panic("configuration has a field of a kind that is not read: " + path)
	}
}

// named decodes a section whose keys are names of the operator's own.
func (d *decoder) named(path string, node ast.Node, dst reflect.Value) {
	m, ok := node.(ast.MapNode)
	if !ok {
		d.wrongType(path, node, aSection)
		return
	}
	dst.Set(reflect.MakeMap(dst.Type()))
	for iter := m.MapRange(); iter.Next(); {
		keyNode := iter.Key()
		if _, merge := keyNode.(*ast.MergeKeyNode); merge {
			continue // reported with its token
		}
		key, at := keyNode.GetToken().Value, nodePosition(keyNode)
		child := joinPath(path, key)
		if dst.MapIndex(reflect.ValueOf(key)).IsValid() {
			d.fault(child, at, ruleDuplicateKey, "the key stands here a second time", "keep one of the two")
			continue
		}
		one := reflect.New(dst.Type().Elem()).Elem()
		d.value(child, iter.Value(), one)
		dst.SetMapIndex(reflect.ValueOf(key), one)
	}
}

// mapping decodes the keys of a section.
func (d *decoder) mapping(path string, node ast.Node, dst reflect.Value) {
	m, ok := node.(ast.MapNode)
	if !ok {
		d.wrongType(path, node, aSection)
		return
	}
	if section, ok := dst.Addr().Interface().(*RouteConfig); ok {
		section.line = nodePosition(node).line
	}
	fields := yamlFields(dst.Type())
	first := make(map[string]position)
	for iter := m.MapRange(); iter.Next(); {
		keyNode := iter.Key()
		if _, merge := keyNode.(*ast.MergeKeyNode); merge {
			continue // reported with its token
		}
		key, at := keyNode.GetToken().Value, nodePosition(keyNode)
		child := joinPath(path, key)
		if before, twice := first[key]; twice {
			d.fault(child, at, ruleDuplicateKey, fmt.Sprintf("the key stands here a second time, after line %d", before.line), "keep one of the two")
			continue
		}
		first[key] = at
		index, known := fields[key]
		_, isText := keyNode.(*ast.StringNode)
		if !known || !isText {
			d.unknownKey(path, child, key, at, dst.Type())
			continue
		}
		d.value(child, iter.Value(), dst.Field(index))
	}
}

// yamlFields maps the keys of a section to the indexes of its fields.
func yamlFields(t reflect.Type) map[string]int {
	fields := make(map[string]int)
	for i := range t.NumField() {
		if key, ok := t.Field(i).Tag.Lookup("yaml"); ok {
			fields[key] = i
		}
	}
	return fields
}

func (d *decoder) unknownKey(path, child, key string, at position, t reflect.Type) {
	var known []string
	for k := range yamlFields(t) {
		known = append(known, k)
	}
	slices.Sort(known)
	fix := "keys here: " + strings.Join(known, ", ")
	if near := nearest(key, known); near != "" {
		fix = "did you mean " + near + "? K" + fix[1:]
	} else if elsewhere := sectionsWith(key); len(elsewhere) > 0 {
		fix = "it is a key of " + orList(elsewhere) + "; " + fix
	}
	where := "at the top of the file"
	if path != "" {
		where = "in " + path
	}
	d.fault(child, at, ruleUnknownKey, fmt.Sprintf("there is no key %s %s", quote(key), where), fix)
}

// sectionsWith lists the sections that know the key.
func sectionsWith(key string) []string {
	var found []string
	var walk func(path string, t reflect.Type)
	walk = func(path string, t reflect.Type) {
		if t.Kind() == reflect.Slice {
			path, t = path+"[]", t.Elem()
		}
		if t.Kind() != reflect.Struct || t == reflect.TypeFor[netip.Prefix]() {
			return
		}
		for k, i := range yamlFields(t) {
			if k == key && path != "" {
				found = append(found, path)
			}
			walk(joinPath(path, k), t.Field(i).Type)
		}
	}
	walk("", reflect.TypeFor[Config]())
	slices.Sort(found)
	return found
}

// orList is "a, b or c".
func orList(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

// list decodes a sequence, item by item. An item that does not fit keeps its place
// as a zero value, so that the rules name each of the others by its own number.
func (d *decoder) list(path string, node ast.Node, dst reflect.Value) {
	seq, ok := node.(*ast.SequenceNode)
	if !ok {
		d.wrongType(path, node, "a list, such as [a, b]")
		return
	}
	if len(seq.Values) > maxItems {
		d.fault(path, nodePosition(seq.Values[maxItems]), ruleTooMany, fmt.Sprintf("the list has %d items, and may have %d", len(seq.Values), maxItems), "bring items together: networks in wider ones, routes by {x} and {x...}")
		return
	}
	dst.Set(reflect.MakeSlice(dst.Type(), len(seq.Values), len(seq.Values)))
	for i, item := range seq.Values {
		d.value(itemPath(path, i), item, dst.Index(i))
	}
}

// text decodes a string. What YAML reads as a number, a truth value or nothing
// has to be quoted if the text is meant.
func (d *decoder) text(path string, node ast.Node, dst reflect.Value) {
	s, ok := node.(*ast.StringNode)
	if !ok {
		d.wrongType(path, node, "text")
		return
	}
	dst.SetString(s.Value)
}

func (d *decoder) flag(path string, node ast.Node, dst reflect.Value) {
	b, ok := node.(*ast.BoolNode)
	if !ok {
		d.wrongType(path, node, "true or false")
		return
	}
	dst.SetBool(b.Value)
}

// number decodes a decimal integer. Other notations of YAML are refused: 010 is
// eight to one reader and ten to another.
func (d *decoder) number(path string, node ast.Node, dst reflect.Value) {
	text := node.GetToken().Value
	if _, ok := node.(*ast.IntegerNode); (!ok && node.GetToken().Type != token.StringType) || !isDecimal(text) { // beyond 64 bits it is text to YAML
		d.wrongType(path, node, "a whole number in digits")
		return
	}
	tooLarge := func() { d.report(path, ruleBounds, text+" is too large", "write a smaller number") }
	if dst.Kind() == reflect.Int {
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			tooLarge()
			return
		}
		dst.SetInt(n)
		return
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		tooLarge()
		return
	}
	dst.SetUint(n)
}

// scalar decodes a value that has its own notation.
func scalar[T any](d *decoder, path string, node ast.Node, dst reflect.Value, what string, r rule, parse func(string) (T, error)) {
	switch node.(type) {
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode:
	default:
		d.wrongType(path, node, what)
		return
	}
	text := node.GetToken().Value
	v, err := parse(text)
	if err != nil {
		d.report(path, r, quote(text)+" "+err.Error(), "write "+what)
		return
	}
	dst.Set(reflect.ValueOf(v))
}

// aSection is what a mapping is called in messages.
const aSection = "a section with keys of its own"

func (d *decoder) wrongType(path string, node ast.Node, want string) {
	text := node.GetToken().Value
	fix := "write " + want
	if want == aSection {
		fix = "write its keys on the lines below, indented"
	}
	switch n := node.(type) {
	case *ast.NullNode:
		d.report(path, ruleType, "there is no value here", fix+", or remove the key to have its default")
		return
	case *ast.MappingNode:
		switch {
		case !n.IsFlowStyle && strings.HasPrefix(want, "a list") && len(n.Values) > 0:
			key := shownText(strings.TrimPrefix(n.Values[0].Key.GetToken().Value, "-"))
			fix = "begin each item with a dash and a space: `- " + key + ": …`"
		case n.IsFlowStyle && want == "text":
			fix = "put text with braces in quotes, as in \"{account}\""
		case !n.IsFlowStyle && strings.HasSuffix(path, "]") && want != aSection: // {upstream: [http://api:3000]} is read as one, too
			fix = "put text with a colon in quotes, as in \"http://api:3000\" and \"cards:read\""
		}
		d.report(path, ruleType, "this is a section with keys, and should be "+want, fix)
		return
	case *ast.SequenceNode:
		d.report(path, ruleType, "this is a list, and should be "+want, fix)
		return
	case *ast.StringNode:
		key, value, colon := strings.Cut(text, ":")
		switch {
		case want == aSection && colon && value != "":
			fix = "write a space after the colon: `" + shownText(key) + ": " + shownText(value) + "`"
		case isDecimal(text) && strings.Contains(want, "number"):
			fix = "remove the quotes"
		case strings.HasPrefix(want, "a list"):
			fix = "write a list: [" + quote(text) + "]"
		}
	default:
		switch {
		case isDecimal(text) && strings.HasSuffix(path, ".listen"):
			fix = "write host:port, such as 127.0.0.1:" + text + ", or \":" + text + "\" for all addresses"
		case choices[path] != nil:
			fix = "write " + orList(choices[path])
		case want == "text":
			fix = "put it in quotes if the text is meant"
		}
	}
	d.report(path, ruleType, quote(text)+" should be "+want, fix)
}

func isDecimal(s string) bool {
	if s == "" || len(s) > 1 && s[0] == '0' {
		return false
	}
	return strings.Trim(s, "0123456789") == ""
}

// byteSize is a number of bytes.
type byteSize int64

const maxSize = 1 << 50

// parseSize reads a decimal number of bytes, or of KiB, MiB or GiB.
func parseSize(s string) (byteSize, error) {
	digits, shift := s, 0
	for suffix, by := range map[string]int{"KiB": 10, "MiB": 20, "GiB": 30} {
		if before, ok := strings.CutSuffix(s, suffix); ok {
			digits, shift = before, by
		}
	}
	if !isDecimal(digits) {
		if strings.ContainsAny(s, "kKmMgGbB") {
			return 0, errors.New("is not a size: units are KiB, MiB and GiB, without a space before them")
		}
		return 0, errors.New("is not a size")
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > maxSize>>shift {
		return 0, errors.New("is too large a size")
	}
	return byteSize(n << shift), nil
}

// instant is a time in the configuration; the zero value is none.
type instant struct{ time.Time }

func parseInstant(s string) (instant, error) {
	if s == "" {
		return instant{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return instant{}, errors.New("is not a time with a zone")
	}
	return instant{t.UTC()}, nil
}

const maxDuration = 10 * 365 * 24 * time.Hour

var errLongDuration = errors.New("is longer than ten years")

// parseDuration reads Go's notation, in which days may come first: 7d, 1d12h.
func parseDuration(s string) (time.Duration, error) {
	switch {
	case s == "0":
		return 0, nil
	case s == "":
		return 0, errors.New("is not a duration")
	case isDecimal(s):
		return 0, errors.New("has no unit")
	case strings.HasPrefix(s, "-"):
		return 0, errors.New("is negative")
	}
	var days time.Duration
	rest := s
	if before, after, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseUint(before, 10, 16)
		if err != nil || !isDecimal(before) {
			return 0, errors.New("is not a duration")
		}
		days, rest = time.Duration(n)*24*time.Hour, after
	}
	var part time.Duration
	if rest != "" {
		var err error
		if part, err = time.ParseDuration(rest); err != nil || strings.HasPrefix(rest, "-") || strings.HasPrefix(rest, "+") {
			return 0, errors.New("is not a duration")
		}
	}
	if days > maxDuration || part > maxDuration-days {
		return 0, errLongDuration
	}
	return days + part, nil
}

// formatDuration prints a duration in the shortest form that parseDuration
// reads: 12h rather than 12h0m0s.
func formatDuration(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	var days string
	if n := d / (24 * time.Hour); n > 0 {
		days, d = strconv.FormatInt(int64(n), 10)+"d", d%(24*time.Hour)
	}
	if d == 0 {
		return days
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return days + text
}

// nearest is the word that s was probably meant to be, or nothing.
func nearest(s string, words []string) string {
	if len(s) > 64 {
		return ""
	}
	lowered := strings.ReplaceAll(strings.ToLower(s), "-", "_")
	best := slices.MinFunc(append([]string{""}, words...), func(a, b string) int {
		return cmp.Compare(distance(lowered, a), distance(lowered, b))
	})
	if best == "" || distance(lowered, best) > max(1, len(best)/3) {
		return ""
	}
	return best
}

// distance counts the letters to insert, remove, replace or swap with their
// neighbour to make b of a (optimal string alignment).
func distance(a, b string) int {
	rows := [3][]int{make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row := rows[0], rows[1], rows[2]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			same := 1
			if a[i-1] == b[j-1] {
				same = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+same)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		rows[0], rows[1], rows[2] = last, row, before
	}
	return rows[1][len(b)]
}
