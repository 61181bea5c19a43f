package main

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// rule names what a configuration can break. Each has a file
// testdata/busted_RULE.yaml with the message that it gives; a test walks all
// of them.
type rule string

// The rules, in the order in which a file is looked at. A new one also stands
// in allRules.
const (
	ruleFile         rule = "file" // no file here, or not one that can be read
	ruleTooLarge     rule = "too_large"
	ruleEmpty        rule = "empty"
	ruleByteOrder    rule = "byte_order_mark"
	ruleNotUTF8      rule = "not_utf8"
	ruleHidden       rule = "hidden_character"
	ruleTab          rule = "tab"
	ruleLongLine     rule = "long_line"
	ruleNesting      rule = "nesting"
	ruleTooMany      rule = "too_many"       // keys or list items
	ruleNotPlain     rule = "not_plain_yaml" // anchors, aliases, merge keys, tags, directives, complex keys
	ruleMultiLine    rule = "multi_line"
	ruleDocument     rule = "second_document"
	ruleSyntax       rule = "syntax"
	ruleUnknownKey   rule = "unknown_key"
	ruleDuplicateKey rule = "duplicate_key"
	ruleType         rule = "wrong_type"
	ruleMissing      rule = "missing"
	ruleDuration     rule = "bad_duration"
	ruleTime         rule = "bad_time"
	ruleObserve      rule = "observe"
	ruleParent       rule = "bad_parent"
	ruleSize         rule = "bad_size"
	ruleRate         rule = "bad_rate"
	ruleNetwork      rule = "bad_network"
	ruleChoice       rule = "bad_choice"
	ruleBounds       rule = "out_of_bounds"
	ruleListen       rule = "bad_listen"
	ruleSameListen   rule = "same_listen"
	ruleUpstream     rule = "bad_upstream"
	ruleLoop         rule = "upstream_loop"
	rulePath         rule = "bad_path"
	ruleSameFile     rule = "same_file"
	ruleSecretInline rule = "secret_inline"
	ruleHalfTLS      rule = "half_tls"
	ruleExposed      rule = "admin_exposed"
	ruleProfiles     rule = "profiles_exposed"
	ruleTarget       rule = "uri_over_header"
	ruleProxies      rule = "trusted_proxies"
	ruleCredentials  rule = "credentials"
	ruleIdentity     rule = "identity"
	ruleName         rule = "bad_name" // of a scope, resource type or secret prefix
	ruleTwice        rule = "listed_twice"
	ruleRoute        rule = "bad_route"
	ruleConflict     rule = "route_conflict"
	ruleCORS         rule = "cors"
	ruleWebHook      rule = "bad_hook"
	ruleNamedFile    rule = "named_file" // a file that the configuration names; found by check alone
)

var allRules = []rule{
	ruleFile, ruleTooLarge, ruleEmpty, ruleByteOrder, ruleNotUTF8, ruleHidden, ruleTab, ruleLongLine, ruleNesting, ruleTooMany,
	ruleNotPlain, ruleMultiLine, ruleDocument, ruleSyntax, ruleUnknownKey, ruleDuplicateKey, ruleType, ruleMissing,
	ruleDuration, ruleTime, ruleObserve, ruleParent, ruleSize, ruleRate, ruleNetwork, ruleChoice, ruleBounds, ruleListen, ruleSameListen, ruleUpstream, ruleLoop, rulePath,
	ruleSameFile, ruleSecretInline, ruleHalfTLS, ruleExposed, ruleProfiles, ruleTarget, ruleProxies, ruleCredentials, ruleIdentity,
	ruleName, ruleTwice, ruleRoute, ruleConflict, ruleCORS, ruleWebHook, ruleNamedFile,
}

// position is a place in the file: line and column count from 1, the column in
// characters. Line 0 is the file as a whole.
type position struct {
	line, column int
	width        int // characters to underline
}

// configFault is one thing wrong with a configuration.
type configFault struct {
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Key     string `json:"key,omitempty"` // such as proxy.timeouts.idle or routes[3].scopes
	Rule    rule   `json:"rule"`
	Problem string `json:"problem"`
	Fix     string `json:"fix"`

	width int
}

// configError holds every fault of one configuration.
type configError struct {
	Name   string // of the file
	Faults []configFault
	lines  []string // of the file, for quoting

	// config is as far as the text could be read, and decoder knows how far that is;
	// nil where the faults are not of a text.
	config  *Config
	decoder *decoder
}

// maxFaultsShown bounds what is printed; all faults are counted.
const maxFaultsShown = 50

// newConfigError puts the faults in the order of the file.
func newConfigError(name string, lines []string, faults []configFault) *configError {
	slices.SortStableFunc(faults, func(a, b configFault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Problem, b.Problem))
	})
	for i := range faults {
		f := &faults[i]
		f.Key, f.Problem, f.Fix = mask(shownText(f.Key)), mask(f.Problem), mask(f.Fix)
	}
	return &configError{Name: name, Faults: slices.Compact(faults), lines: lines}
}

// withFiles adds the faults of the files that are named where the text has none.
func (e *configError) withFiles(now time.Time) *configError {
	if e.config == nil {
		return e
	}
	faults := e.Faults
	named, _ := e.config.checkFiles(now)
	unwritable, _ := e.config.checkWritable()
	for _, f := range slices.Concat(named, unwritable) {
		if at, written := e.decoder.places[f.Key]; written && e.decoder.sound(f.Key) {
			f.Line, f.Column, f.width = at.line, at.column, at.width
			faults = append(faults, f)
		}
	}
	return newConfigError(e.Name, e.lines, faults)
}

// Error prints all faults: where, what, the line with the place underlined,
// and what to write.
func (e *configError) Error() string {
	var b strings.Builder
	b.WriteString(e.summary() + ":\n\n")
	shown := e.Faults[:min(len(e.Faults), maxFaultsShown)]
	for i := range shown {
		if i > 0 {
			b.WriteByte('\n')
		}
		e.write(&b, &shown[i])
	}
	if more := len(e.Faults) - len(shown); more > 0 {
		fmt.Fprintf(&b, "\n… and %d more.\n", more)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// summary counts the faults.
func (e *configError) summary() string {
	if len(e.Faults) == 1 {
		return "the configuration has a fault"
	}
	return fmt.Sprintf("the configuration has %d faults", len(e.Faults))
}

func (e *configError) write(b *strings.Builder, f *configFault) {
	b.WriteString(e.Name)
	if f.Line > 0 {
		fmt.Fprintf(b, ":%d:%d", f.Line, f.Column)
	}
	b.WriteString(": ")
	if f.Key != "" {
		b.WriteString(f.Key + ": ")
	}
	b.WriteString(f.Problem + "\n")
	if f.Line > 0 && f.Line <= len(e.lines) {
		text, indent, width := excerpt(e.lines[f.Line-1], f.Column, f.width)
		fmt.Fprintf(b, "%6d | %s\n", f.Line, text)
		fmt.Fprintf(b, "       | %s%s\n", strings.Repeat(" ", indent), strings.Repeat("^", width))
	}
	b.WriteString("         " + f.Fix + "\n")
}

// excerptWidth is how many characters of a line are shown.
const excerptWidth = 110

// excerpt cuts a window out of the line that holds the column, masks secrets
// and replaces what a terminal would act on. indent and width place the carets
// below it.
func excerpt(line string, column, width int) (text string, indent, carets int) {
	runes := []rune(mask(shownText(line)))
	indent = min(max(column-1, 0), len(runes))
	from := 0
	if len(runes) > excerptWidth {
		from = min(max(indent-excerptWidth/2, 0), len(runes)-excerptWidth)
		runes = runes[from : from+excerptWidth]
	}
	indent -= from
	return strings.TrimRight(string(runes), " "), indent, max(1, min(width, len(runes)-indent))
}

// shownText replaces every byte that is not UTF-8 and every character that
// is not shown as one mark on the line by '?', one for one.
func shownText(line string) string {
	var b strings.Builder
	for _, r := range line {
		if r == utf8.RuneError || hidden(r) || r == '\t' || !unicode.IsPrint(r) {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// hidden reports whether a character steers the display or cannot be seen, so
// that the file would not mean what it seems to (CVE-2021-42574).
func hidden(r rune) bool {
	switch {
	case r < ' ' && r != '\t', r >= 0x7f && r <= 0x9f: // controls
	case r >= 0x200b && r <= 0x200f, r >= 0x2028 && r <= 0x202e: // zero width, separators, bidirectional embedding
	case r >= 0x2060 && r <= 0x206f, r == 0xfeff, r == 0x061c, r == 0x00ad, r == 0x180e: // joiners, isolates, soft hyphen
	case r >= 0xfff9 && r <= 0xfffb, r >= 0xe0000 && r <= 0xe007f: // annotations, tags
	default:
		return false
	}
	return true
}

// foreignSpace reports whether a character is shown as a space but belongs to the text
// for YAML, as the no-break space does that word processors and web pages put in.
func foreignSpace(r rune) bool { return r != ' ' && unicode.Is(unicode.Zs, r) }

// secretInText matches what must not be shown even though somebody wrote it into
// the configuration: the userinfo of a URL, and API tokens.
var secretInText = regexp.MustCompile(`://[^/@\s"']+@|\b[a-z][a-z0-9]{1,15}_[0-9A-Za-z]{38}\b`)

// mask replaces secrets by asterisks, one for one so that columns stay.
func mask(s string) string {
	return secretInText.ReplaceAllStringFunc(s, func(m string) string {
		if inner, ok := strings.CutPrefix(m, "://"); ok {
			return "://" + strings.Repeat("*", utf8.RuneCountInString(inner)-1) + "@"
		}
		return strings.Repeat("*", len(m))
	})
}

// quote shows a value of the file in a sentence, cut to a readable length.
func quote(s string) string {
	const most = 80
	s = shownText(s)
	if runes := []rune(s); len(runes) > most {
		s = string(runes[:most]) + "…"
	}
	return `"` + s + `"`
}
