package main

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// The bounds of a file. They keep the YAML parser, which recurses and compares
// the keys of a mapping pairwise, and the rules, some of which compare items
// pairwise, within seconds on any input.
const (
	maxConfigBytes = 1 << 20
	maxLineBytes   = 4096
	maxFlowDepth   = 8
	maxIndent      = 64   // columns
	maxKeys        = 256  // of one mapping
	maxItems       = 4000 // of one list; each route is compared with each other one
	maxTokens      = 150_000
	maxDashes      = 5 * maxItems // items of lists in block style
)

// source is a file on its way to a tree.
type source struct {
	lines  []string
	faults []configFault
	// dark tells, by line number, of lines whose meaning is not known because of a
	// fault already reported: a block with such a line is left out without a
	// further word.
	dark []darkness
}

// darkness is how little is known of a line.
type darkness uint8

const (
	legible    darkness = iota
	unreadable          // its indentation is known, its text is not
	adrift              // not even that
)

// readYAML takes the text apart. It returns the root mapping, or nil if there
// is none to go on with, and the lines. Whatever is wrong is in faults, in any
// case; a broken part of the file does not hide the faults of the others.
func readYAML(data []byte) (root *ast.MappingNode, s *source) {
	s = &source{}
	if len(data) > maxConfigBytes {
		s.whole(ruleTooLarge, fmt.Sprintf("the file is larger than %d KiB", maxConfigBytes>>10), "is this the right file? A configuration has a few kilobytes")
		return nil, s
	}
	if !s.readLines(data) {
		return nil, s
	}
	all := block{1, len(s.lines)}
	before := len(s.faults)
	node, fault := s.parse(all)
	if fault != nil || node == nil && s.darkWithin(all) {
		s.faults = s.faults[:before] // what was found on the way is found again
		root = s.parseSections()
		if fault != nil && len(s.faults) == before {
			s.faults = append(s.faults, *fault) // each part is right, only together they are not
			root = nil
		}
		return root, s
	}
	root, ok := node.(*ast.MappingNode)
	if !ok {
		if node != nil && len(s.faults) == before {
			s.fault(nodePosition(node), ruleSyntax, "here the file should name a section", "begin with a section such as `proxy:` and indent its keys below it")
		} else if len(s.faults) == 0 {
			s.whole(ruleEmpty, "the file says nothing", "start from config.example.yaml; `proxy: {}` alone stands for all defaults")
		}
		return nil, s
	}
	return root, s
}

func (s *source) fault(at position, r rule, problem, fix string) {
	s.faults = append(s.faults, configFault{Line: at.line, Column: at.column, width: at.width, Rule: r, Problem: problem, Fix: fix})
}

func (s *source) whole(r rule, problem, fix string) { s.fault(position{}, r, problem, fix) }

// readLines checks the bytes before any parser sees them. It reports false if
// they are no text at all.
func (s *source) readLines(data []byte) bool {
	switch {
	case bytes.HasPrefix(data, []byte{0xef, 0xbb, 0xbf}):
		s.whole(ruleByteOrder, "the file begins with a byte order mark", "save it as UTF-8 without one")
		data = data[3:]
	case bytes.HasPrefix(data, []byte{0xff, 0xfe}), bytes.HasPrefix(data, []byte{0xfe, 0xff}):
		s.whole(ruleByteOrder, "the file is UTF-16", "save it as UTF-8 without byte order mark")
		return false
	}
	lines := strings.Split(string(data), "\n")
	s.dark = make([]darkness, len(lines)+1)
	for i, line := range lines {
		s.lines = append(s.lines, s.readLine(i+1, strings.TrimSuffix(line, "\r")))
	}
	return true
}

// darkWithin reports whether some line of the block has no known meaning.
func (s *source) darkWithin(b block) bool {
	return slices.ContainsFunc(s.dark[b.first:b.last+1], func(d darkness) bool { return d != legible })
}

// readLine reports at most one fault of each kind and returns the line as the
// parser may see it.
func (s *source) readLine(number int, line string) string {
	if len(line) > maxLineBytes {
		s.dark[number] = unreadable
		s.fault(position{number, 1, 1}, ruleLongLine, fmt.Sprintf("the line is longer than %d bytes", maxLineBytes), "write lists with one item on each line")
		return line
	}
	if !utf8.ValidString(line) {
		s.dark[number] = unreadable
		valid := len(line) - len(strings.TrimLeftFunc(line, func(r rune) bool { return r != utf8.RuneError }))
		s.fault(position{number, utf8.RuneCountInString(line[:valid]) + 1, 1}, ruleNotUTF8, "this is not UTF-8", "save the file as UTF-8")
		return line
	}
	if at := strings.IndexFunc(line, hidden); at >= 0 {
		s.dark[number] = unreadable
		r, _ := utf8.DecodeRuneInString(line[at:])
		s.fault(position{number, utf8.RuneCountInString(line[:at]) + 1, 1}, ruleHidden, fmt.Sprintf("there is a character here that cannot be seen, %U", r), "remove it")
		return line
	}
	code, _, _ := strings.Cut(line, "#")
	if at := strings.IndexFunc(code, foreignSpace); at >= 0 {
		if strings.Trim(code[:at], " ") == "" {
			s.dark[number] = adrift
		}
		r, _ := utf8.DecodeRuneInString(code[at:])
		s.fault(position{number, utf8.RuneCountInString(code[:at]) + 1, 1}, ruleHidden, fmt.Sprintf("there is a character here that looks like a space and is none, %U", r), "write a space in its place")
		spaced := strings.Map(func(r rune) rune {
			if foreignSpace(r) {
				return ' '
			}
			return r
		}, code)
		code, line = spaced, spaced+line[len(code):]
	}
	if at := strings.IndexByte(code, '\t'); at >= 0 {
		if strings.Trim(code[:at], " \t") == "" {
			s.dark[number] = adrift
		}
		s.fault(position{number, utf8.RuneCountInString(line[:at]) + 1, 1}, ruleTab, "there is a tab here", "use spaces")
		line = strings.ReplaceAll(code, "\t", " ") + line[len(code):]
	}
	if indent := len(line) - len(strings.TrimLeft(line, " ")); indent > maxIndent && indent < len(line) {
		s.dark[number] = adrift
		s.fault(position{number, 1, indent}, ruleNesting, fmt.Sprintf("the line is indented by more than %d spaces", maxIndent), "indent by two spaces for each level")
	}
	return line
}

// parse reads the lines of the block. It returns nil without a fault where
// there is nothing, or nothing that can be relied on.
func (s *source) parse(b block) (ast.Node, *configFault) {
	if s.darkWithin(b) {
		return nil, nil
	}
	tokens, fault := s.tokens(b.first, b.last)
	if fault != nil || len(tokens) == 0 {
		return nil, fault
	}
	file, err := parseTokens(tokens)
	if err != nil {
		return nil, s.syntaxFault(err, b.first)
	}
	for _, doc := range file.Docs {
		if _, directive := doc.Body.(*ast.DirectiveNode); doc.Body != nil && !directive {
			return doc.Body, nil // a second one, and a directive, is reported by tokens
		}
	}
	return nil, nil
}

const (
	misplaced = "this line does not fit to what stands above it"
	fixIndent = "indent it exactly as the lines beside it"
)

// parseTokens calls the parser. Should it panic on some input, that input is
// refused like any other that it cannot read.
func parseTokens(tokens token.Tokens) (file *ast.File, err error) {
	defer func() {
		if recover() != nil {
			file, err = nil, errors.New("this cannot be read as YAML")
		}
	}()
	return parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
}

// tokens cuts the lines into tokens with positions in the whole file. It
// reports what a configuration does not need of YAML, and fails on what the
// parser must not be given.
func (s *source) tokens(first, last int) (tokens token.Tokens, fault *configFault) {
	defer func() {
		if recover() != nil {
			tokens, fault = nil, &configFault{Line: first, Column: 1, Rule: ruleSyntax, Problem: "this cannot be read as YAML", Fix: "look for an unfinished quote or bracket from here on"}
		}
	}()
	tokens = lexer.Tokenize(strings.Join(s.lines[first-1:last], "\n"))
	keys := keyCounter{}
	depth, dashes := 0, 0
	for i, t := range tokens {
		t.Position.Line += first - 1
		switch t.Type {
		case token.SequenceEntryType:
			dashes++
		case token.MappingStartType, token.SequenceStartType:
			depth++
		case token.MappingEndType, token.SequenceEndType:
			depth--
		}
		if i > maxTokens || dashes > maxDashes {
			return nil, tokenFault(t, ruleTooMany, "the file says more than a configuration can", "is this the right file? Bring routes together by {x} and {x...}")
		}
		if depth > maxFlowDepth {
			return nil, tokenFault(t, ruleNesting, "brackets are nested too deeply", "no key needs more than two levels")
		}
		if i > 0 && keys.add(t, depth) > maxKeys {
			return nil, tokenFault(tokens[i-1], ruleTooMany, fmt.Sprintf("there are more than %d keys side by side", maxKeys), "is this the right file? No section has so many keys")
		}
	}
	begun := false // something of the document stands before
	directive := 0 // line of the last directive
	for _, t := range tokens {
		s.checkToken(t, begun)
		if t.Type == token.DirectiveType {
			directive = t.Position.Line
		}
		begun = begun || t.Type != token.CommentType && t.Position.Line != directive
	}
	return tokens, nil
}

// keyCounter counts the keys of each open mapping, told apart by column in
// block style and by depth of brackets in flow style.
type keyCounter map[int]int

func (k keyCounter) add(t *token.Token, depth int) int {
	slot := t.Position.Column
	if depth > 0 {
		slot = -depth
	}
	switch t.Type {
	case token.MappingStartType, token.SequenceEntryType:
		for other := range k {
			if depth == 0 && other > slot || depth > 0 && other <= slot {
				delete(k, other)
			}
		}
	case token.MappingValueType:
		if depth == 0 && t.Prev != nil {
			slot = t.Prev.Position.Column
			for other := range k {
				if other > slot {
					delete(k, other)
				}
			}
		}
		k[slot]++
		return k[slot]
	}
	return 0
}

// checkToken reports forms of YAML that a configuration does without: each of
// them lets a line mean something that is written elsewhere, or not at all.
func (s *source) checkToken(t *token.Token, begun bool) {
	notPlain := func(what, fix string) {
		f := tokenFault(t, ruleNotPlain, what, fix)
		s.faults = append(s.faults, *f)
	}
	switch t.Type {
	case token.AnchorType:
		notPlain("anchors (&name) are not used here", "write the value out where it is needed, or put text that begins with & in quotes")
	case token.AliasType:
		notPlain("text that begins with * must be in quotes; aliases are not used here", "write \"* /path\" or \"*\" with the quotes")
	case token.MergeKeyType:
		notPlain("merge keys (<<) are not used here", "write the keys out")
	case token.TagType:
		notPlain("tags (!name) are not used here", "remove it, or put text that begins with ! in quotes")
	case token.DirectiveType:
		notPlain("directives (%name) are not used here", "remove the line")
	case token.MappingKeyType:
		notPlain("complex keys (?) are not used here", "write `key: value`")
	case token.DocumentHeaderType:
		if begun {
			s.faults = append(s.faults, *tokenFault(t, ruleDocument, "a second document begins here", "keep one configuration in one file: remove this line and what follows it"))
		}
	case token.DocumentEndType:
		s.faults = append(s.faults, *tokenFault(t, ruleDocument, "the document ends here", "remove this line; nothing may follow the configuration"))
	case token.LiteralType, token.FoldedType:
		s.faults = append(s.faults, *tokenFault(t, ruleMultiLine, "text of several lines is not used here", "write the value on the line of its key"))
	case token.StringType, token.SingleQuoteType, token.DoubleQuoteType:
		if strings.Contains(strings.TrimSpace(t.Origin), "\n") && (t.Prev == nil || t.Prev.Type != token.LiteralType && t.Prev.Type != token.FoldedType) {
			s.faults = append(s.faults, *tokenFault(t, ruleMultiLine, "this text goes on over several lines", "write it on one line; is a closing quote missing, or the space after a colon?"))
		}
	}
}

func tokenFault(t *token.Token, r rule, problem, fix string) *configFault {
	at := tokenPosition(t)
	return &configFault{Line: at.line, Column: at.column, width: at.width, Rule: r, Problem: problem, Fix: fix}
}

func tokenPosition(t *token.Token) position {
	if t == nil || t.Position == nil {
		return position{}
	}
	text, _, _ := strings.Cut(strings.TrimSpace(t.Origin), "\n")
	return position{t.Position.Line, max(1, t.Position.Column), max(1, utf8.RuneCountInString(text))}
}

// nodePosition is where a value begins; of a mapping in block style, its first key.
func nodePosition(n ast.Node) position {
	switch n := n.(type) {
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return nodePosition(n.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return nodePosition(n.Key)
	}
	return tokenPosition(n.GetToken())
}

// syntaxFault puts the parser's complaint in words that say what to do.
func (s *source) syntaxFault(err error, first int) *configFault {
	f := &configFault{Line: first, Column: 1, Rule: ruleSyntax, Problem: "this cannot be read as YAML", Fix: "compare indentation, quotes and brackets with config.example.yaml"}
	var syntax *yaml.SyntaxError
	if !errors.As(err, &syntax) {
		return f
	}
	at := tokenPosition(syntax.Token)
	f.Line, f.Column, f.width = at.line, at.column, at.width
	message := syntax.Message
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(message, p) {
				return true
			}
		}
		return false
	}
	line := ""
	if f.Line >= 1 && f.Line <= len(s.lines) {
		line = s.lines[f.Line-1]
	}
	switch {
	case has("could not find end character of"):
		f.Problem, f.Fix = "this quote is not closed", "end the text with the same quote, on the same line"
	case has("',' or ']'", "',' or '}'") && strings.ContainsAny(line, "{}"):
		f.Problem, f.Fix = "brackets do not fit together here", "put text that holds { or } in quotes inside [ ], as in [\"card:{card}\"]"
	case has("',' or ']'", "sequence end token"):
		f.Problem, f.Fix = "a list in [ ] is not closed", "separate its items by commas and end it with ]"
	case has("',' or '}'", "mapping end token", "flow map"):
		f.Problem, f.Fix = "a mapping in { } is not closed", "separate its keys by commas and end it with }"
	case has("corresponding to"):
		f.Problem, f.Fix = "this bracket closes nothing", "remove it, or put text that holds brackets in quotes"
	case has("unexpected key name", "non-map value", "map key definition", "could not find expected ':'", "found an invalid key"):
		f.Problem, f.Fix = "here a key, a colon and a space are expected", "write `key: value`, with a space after the colon"
	case has("mapping value is not allowed", "map key-value is pre-defined"):
		f.Problem, f.Fix = "there is a second colon and value here", "put the text in quotes if the colon belongs to it; else begin a new line for the new key"
		if value, key := s.keyBelowValue(f.Line, f.Column); value > 0 {
			f.Problem = fmt.Sprintf("line %d is indented below line %d, which has a value already", key, value)
			f.Fix = fmt.Sprintf("let it begin where the key of line %d begins; if that is to be a section, take its value away", value)
			if text, _ := s.indented(value); len(text) > 1 && text[0] == '-' && text[1] != ' ' {
				f.Problem, f.Fix = "an item of a list begins with a dash and a space", "write a space after the dash"
			}
			s.faults = slices.DeleteFunc(s.faults, func(other configFault) bool { // the parser took both for one text
				return other.Rule == ruleMultiLine && other.Line == f.Line && other.Column == f.Column
			})
		}
	case has("value is not allowed in this context", "unexpected end content", "block sequence entries"):
		f.Problem, f.Fix = misplaced, fixIndent
	case has("unknown escape character"):
		f.Problem, f.Fix = "in double quotes a backslash begins an escape, and there is none like this", "write the text in single quotes, where a backslash stands for itself"
	case has("cannot start any token"):
		f.Problem, f.Fix = "text cannot begin with this character", "put the text in quotes"
	}
	return f
}

// keyBelowValue tells apart what the parser complains of in the same words: a second
// colon in a line, and a key that is indented below a value. For the latter it returns
// both lines; the complaint is about either. 0: it is the former.
func (s *source) keyBelowValue(line, column int) (value, key int) {
	if line < 1 || line > len(s.lines) {
		return 0, 0
	}
	text := []rune(s.lines[line-1])
	at := min(max(column-1, 0), len(text))
	said := func(i int) bool {
		code := strings.TrimSpace(s.lines[i-1])
		return code != "" && !strings.HasPrefix(code, "#")
	}
	if strings.TrimSpace(string(text[:at])) == "" {
		for value = line - 1; value > 0 && !said(value); value-- {
		}
		return value, line
	}
	if rest := strings.TrimSpace(string(text[at:])); strings.Contains(rest, ": ") || strings.HasSuffix(rest, ":") {
		return 0, 0
	}
	for key = line + 1; key <= len(s.lines); key++ {
		if said(key) {
			return line, key
		}
	}
	return 0, 0
}

// maxFaultsSought is where the search for further broken sections ends.
const maxFaultsSought = 500

// parseSections reads the file section by section, and broken sections block by
// block, so that one broken place does not hide what is wrong elsewhere.
func (s *source) parseSections() *ast.MappingNode {
	root := &ast.MappingNode{BaseNode: &ast.BaseNode{}}
	for _, b := range s.blocks(1, len(s.lines), 0, "-]}") {
		if len(s.faults) > maxFaultsSought {
			break
		}
		before := len(s.faults)
		node, fault := s.parse(b)
		if m, ok := node.(*ast.MappingNode); ok {
			root.Values = append(root.Values, m.Values...)
			continue
		}
		if node != nil {
			s.fault(nodePosition(node), ruleSyntax, "here the name of a section is expected", "write a section such as `proxy:` and indent its keys below it")
			continue
		}
		if b.first == b.last || (fault == nil && !s.darkWithin(b)) {
			if fault != nil {
				s.faults = append(s.faults, *fault)
			}
			continue
		}
		s.faults = s.faults[:before]
		if section := s.parseBlocks(b, fault); section != nil {
			root.Values = append(root.Values, section)
		}
	}
	return root
}

// block is a range of lines, both included.
type block struct{ first, last int }

// blocks cuts lines where one is indented by at most indent spaces and does not
// begin with one of the characters in goesOn. Inside a section a line of unknown
// meaning stands for itself. Comments and blank lines belong to what stands
// above them.
func (s *source) blocks(first, last, indent int, goesOn string) []block {
	var out []block
	for n := first; n <= last; n++ {
		text, at := s.indented(n)
		if text == "" {
			continue
		}
		if len(out) == 0 || indent > 0 && s.dark[n] != legible || at <= indent && !strings.ContainsRune(goesOn, rune(text[0])) {
			out = append(out, block{n, n})
		}
		out[len(out)-1].last = n
	}
	return out
}

// indented is the line without its indentation, and how deep that is. A line
// that says nothing is empty.
func (s *source) indented(number int) (text string, indent int) {
	line := s.lines[number-1]
	if text = strings.TrimLeft(line, " "); strings.HasPrefix(text, "#") {
		text = ""
	}
	return text, len(line) - len(text)
}

// parseBlocks reads a section whose lines do not fit together as a whole: its
// head by itself, then each part of the body by itself.
func (s *source) parseBlocks(b block, whole *configFault) *ast.MappingValueNode {
	indent := s.bodyIndent(b)
	body := s.blocks(b.first+1, b.last, indent, "]}")
	head, fault := s.parse(block{b.first, b.first})
	m, ok := head.(*ast.MappingNode)
	if fault != nil || !ok || len(m.Values) != 1 || len(body) == 0 {
		if whole != nil {
			s.faults = append(s.faults, *whole)
		}
		return nil
	}
	before := len(s.faults)
	mapping := &ast.MappingNode{BaseNode: &ast.BaseNode{}, Start: m.Start}
	sequence := &ast.SequenceNode{BaseNode: &ast.BaseNode{}, Start: m.Values[0].Start}
	for _, part := range body {
		if text, at := s.indented(part.first); at != indent && s.dark[part.first] == legible {
			s.fault(position{part.first, at + 1, utf8.RuneCountInString(text)}, ruleSyntax, misplaced, fixIndent)
			continue
		}
		node, fault := s.parse(part)
		if fault != nil {
			s.faults = append(s.faults, *fault)
		}
		switch node := node.(type) {
		case *ast.MappingNode:
			mapping.Values = append(mapping.Values, node.Values...)
		case *ast.SequenceNode:
			sequence.Values = append(sequence.Values, node.Values...)
		}
	}
	if whole != nil && len(s.faults) == before {
		s.faults = append(s.faults, *whole) // each part is right, only together they are not
		return nil
	}
	switch {
	case len(sequence.Values) > 0:
		m.Values[0].Value = sequence
	case len(mapping.Values) > 0:
		m.Values[0].Value = mapping
	default:
		return nil
	}
	return m.Values[0]
}

// bodyIndent is the indentation of the first line below a section's head.
func (s *source) bodyIndent(b block) int {
	for n := b.first + 1; n <= b.last; n++ {
		if text, at := s.indented(n); text != "" && s.dark[n] != adrift {
			return at
		}
	}
	return 0
}
