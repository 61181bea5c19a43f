package importer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// The bounds of YAML. Its parser takes some 80 bytes of memory for each byte, and
// recurses.
const (
	maxYAMLBytes = 8 << 20
	maxYAMLDepth = 64
	maxYAMLBlock = 512 // columns that an item may be indented by
	maxYAMLKeys  = 512 // of one mapping
)

// exported yields the entries of an export, which is read whole: one document of JSON or
// YAML, or several behind one another, such as the pages of an API. Of a document that is a list each
// element counts as one. An error of entries ends the sequence; what it yields is about one entry.
func exported(r io.Reader, entries func(docs []json.RawMessage, yield func(Item, error) bool) error) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		docs, err := readDocuments(r)
		if err != nil {
			yield(Item{}, err)
			return
		}
		n, wanted := 0, true
		err = entries(docs, func(item Item, err error) bool {
			n++
			item.Line = n
			if err != nil {
				err = &LineError{n, err.Error()}
			}
			wanted = yield(item, err)
			return wanted
		})
		if err != nil && wanted {
			yield(Item{}, err)
		}
	}
}

func readDocuments(r io.Reader) ([]json.RawMessage, error) {
	text, err := plainText(&boundedReader{r, maxDocumentBytes})
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(text)
	if err != nil {
		return nil, fmt.Errorf("read the file: %w", err)
	}
	return parseDocuments(data)
}

func parseDocuments(data []byte) (docs []json.RawMessage, err error) {
	begin := bytes.TrimLeft(data, " \t\r\n")
	switch {
	case len(begin) == 0:
		return nil, errors.New("the file is empty")
	case !utf8.Valid(data):
		return nil, errors.New("the file is not UTF-8: save it as that")
	case begin[0] == '/':
		docs, err = etcdLines(begin)
	case begin[0] == '{' || begin[0] == '[':
		docs, err = jsonDocuments(data)
	default:
		docs, err = yamlDocuments(data)
	}
	if err != nil {
		return nil, err
	}
	var flat []json.RawMessage
	for _, doc := range docs {
		var elements []json.RawMessage
		if json.Unmarshal(doc, &elements) != nil {
			elements = []json.RawMessage{doc}
		}
		flat = append(flat, elements...)
	}
	return flat, nil
}

func jsonDocuments(data []byte) (docs []json.RawMessage, err error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var doc json.RawMessage
		switch err := dec.Decode(&doc); {
		case errors.Is(err, io.EOF):
			return docs, nil
		case err != nil:
			// Of a syntax error only the place is told: the text around it may be a secret.
			if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
				return nil, fmt.Errorf("the file is not JSON from byte %d on", syntax.Offset)
			}
			return nil, errors.New("the file is cut off: its JSON has no end")
		}
		docs = append(docs, doc)
	}
}

// etcdLines reads what `etcdctl get --prefix` prints: a key on one line, and its value
// on the next. Each becomes an object of the two.
func etcdLines(data []byte) (docs []json.RawMessage, err error) {
	lines := bytes.Split(bytes.TrimRight(data, "\r\n"), []byte("\n"))
	for i := 0; i+1 < len(lines); i += 2 {
		key, value := bytes.TrimSuffix(lines[i], []byte("\r")), bytes.TrimSuffix(lines[i+1], []byte("\r"))
		if len(key) == 0 || key[0] != '/' {
			return nil, fmt.Errorf("line %d is to be a key of etcd: give the lines of `etcdctl get --prefix` as they are", i+1)
		}
		if !json.Valid(value) {
			value = []byte("null") // a mark such as init_dir
		}
		doc, err := json.Marshal(map[string]any{"key": string(key), "value": json.RawMessage(value)})
		if err != nil {
			return nil, err
		}
		docs = append(docs, doc)
	}
	if len(lines)%2 != 0 {
		return nil, errors.New("the file is cut off: its last key of etcd has no value")
	}
	return docs, nil
}

// yamlDocuments turns YAML into JSON. What the parser panics at, it cannot read.
func yamlDocuments(data []byte) (docs []json.RawMessage, err error) {
	defer func() {
		if recover() != nil {
			docs, err = nil, errors.New("the file is neither JSON nor YAML")
		}
	}()
	if len(data) > maxYAMLBytes {
		return nil, fmt.Errorf("the file is not JSON, and as YAML larger than %d MiB: export it as JSON, or cut it into several", maxYAMLBytes>>20)
	}
	tokens := lexer.Tokenize(string(data))
	if err := soundTokens(tokens); err != nil {
		return nil, err
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, errors.New("the file is neither JSON nor YAML") // the parser's own text shows lines
	}
	for _, doc := range file.Docs {
		switch doc.Body.(type) {
		case nil, *ast.DirectiveNode, *ast.CommentGroupNode:
			continue
		}
		text, err := appendJSON(nil, doc.Body)
		if err != nil {
			return nil, err
		}
		docs = append(docs, text)
	}
	return docs, nil
}

// soundTokens refuses what the parser must not be given, for it recurses, and compares the
// keys of a mapping with one another.
func soundTokens(tokens token.Tokens) error {
	var flow, line, colons int
	deep := false
	keys := make(map[int]int) // of the mappings that are open, by column; in brackets below 0, by depth
	for _, t := range tokens {
		if t.Position.Line != line {
			line, colons = t.Position.Line, 0
		}
		place := -flow
		if flow == 0 && t.Prev != nil {
			place = t.Prev.Position.Column // of the key
		}
		switch t.Type {
		case token.MappingStartType, token.SequenceStartType:
			flow++
		case token.MappingEndType, token.SequenceEndType:
			delete(keys, -flow)
			flow--
		case token.SequenceEntryType:
			deep = t.Position.Column > maxYAMLBlock
			maps.DeleteFunc(keys, func(column, _ int) bool { return column > t.Position.Column })
		case token.MappingValueType:
			colons++
			deep = flow == 0 && colons > maxYAMLDepth
			maps.DeleteFunc(keys, func(column, _ int) bool { return column > place && place > 0 })
			if keys[place]++; keys[place] > maxYAMLKeys {
				return fmt.Errorf("line %d is the %dth key of one mapping: give the file as JSON", line, maxYAMLKeys+1)
			}
		case token.AliasType, token.AnchorType, token.MergeKeyType, token.TagType, token.MappingKeyType:
			return fmt.Errorf("line %d uses an anchor, an alias, a tag or the like: write out what it stands for, as `yq 'explode(.)'` does, or give the file as JSON", line)
		}
		if deep || flow > maxYAMLDepth {
			return fmt.Errorf("line %d is nested too deeply", line)
		}
	}
	return nil
}

// appendJSON appends what a node of YAML is in JSON.
func appendJSON(dst []byte, node ast.Node) (_ []byte, err error) {
	switch n := node.(type) {
	case nil, *ast.NullNode:
		return append(dst, "null"...), nil
	case *ast.StringNode:
		return appendText(dst, n.Value)
	case *ast.LiteralNode:
		return appendText(dst, n.Value.Value)
	case *ast.BoolNode:
		return strconv.AppendBool(dst, n.Value), nil
	case *ast.IntegerNode:
		return fmt.Append(dst, n.Value), nil
	case *ast.FloatNode:
		if math.IsInf(n.Value, 0) || math.IsNaN(n.Value) {
			return append(dst, "false"...), nil // no number where one is wanted
		}
		return strconv.AppendFloat(dst, n.Value, 'g', -1, 64), nil
	case *ast.InfinityNode, *ast.NanNode:
		return append(dst, "false"...), nil
	case *ast.SequenceNode:
		dst = append(dst, '[')
		for i, value := range n.Values {
			if i > 0 {
				dst = append(dst, ',')
			}
			if dst, err = appendJSON(dst, value); err != nil {
				return nil, err
			}
		}
		return append(dst, ']'), nil
	case *ast.MappingNode:
		return appendObject(dst, n.Values)
	case *ast.MappingValueNode:
		return appendObject(dst, []*ast.MappingValueNode{n})
	}
	return nil, fmt.Errorf("line %d is more of YAML than an export needs: give the file as JSON", node.GetToken().Position.Line)
}

func appendObject(dst []byte, pairs []*ast.MappingValueNode) (_ []byte, err error) {
	dst = append(dst, '{')
	seen := make(map[string]bool, len(pairs))
	for i, pair := range pairs {
		name := pair.Key.GetToken().Value
		if seen[name] {
			return nil, fmt.Errorf("line %d has a name that stands there twice", pair.Key.GetToken().Position.Line)
		}
		seen[name] = true
		if i > 0 {
			dst = append(dst, ',')
		}
		if dst, err = appendText(dst, name); err != nil {
			return nil, err
		}
		dst = append(dst, ':')
		if dst, err = appendJSON(dst, pair.Value); err != nil {
			return nil, err
		}
	}
	return append(dst, '}'), nil
}

func appendText(dst []byte, text string) ([]byte, error) {
	b, err := json.Marshal(text)
	return append(dst, b...), err
}

// list is an array, each element of which is decoded by itself, so that what is wrong
// with one of them concerns no other. Lua writes an empty one as {}.
type list []json.RawMessage

// UnmarshalJSON implements [json.Unmarshaler].
func (l *list) UnmarshalJSON(b []byte) error {
	if string(b) == "{}" {
		*l = list{}
		return nil
	}
	return json.Unmarshal(b, (*[]json.RawMessage)(l))
}

// decode reads one thing of an export. Its error never shows a value.
func decode(raw json.RawMessage, v any) error {
	err := json.Unmarshal(raw, v)
	if err == nil {
		return nil
	}
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && kind.Field != "" {
		return fmt.Errorf("has a %s of another kind than it should be, as text is that stands without quotes", kind.Field)
	}
	return errors.New("is not an object as the format has them")
}

func isObject(raw json.RawMessage) bool { return len(raw) > 0 && raw[0] == '{' }
