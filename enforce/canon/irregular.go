package canon

import (
	"iter"
	"slices"
)

// Irregularity is a set of properties of a request that two honest parsers may read
// differently. A request with any of them is refused unless the route that matched
// relaxes it by name.
type Irregularity uint16

const (
	// EncodedSlash: a slash inside a segment, as %2F, at any depth of encoding.
	EncodedSlash Irregularity = 1 << iota
	// EncodedBackslash: a backslash, as %5C, at any depth of encoding.
	EncodedBackslash
	// EncodedPercent: a percent sign, as %25.
	EncodedPercent
	// Semicolon: a ';' anywhere in the path, plain or encoded.
	Semicolon
	// EmptySegment: two slashes in a row, but not at the start, which is never accepted.
	EmptySegment
	// QueryLoose: a character in the query that RFC 3986 wants encoded, but that
	// browsers leave plain, or a '%' without two hex digits.
	QueryLoose
	// QuerySemicolon: a plain ';' in the query. See [QueryIrregularities].
	QuerySemicolon
	// MethodParameter: a parameter _method in the query, in whatever spelling.
	MethodParameter

	numIrregularities = 8
)

// QueryIrregularities matter only where a rule reads the query ({?name}): elsewhere the
// query goes through byte for byte, and an upstream may split it as it likes.
// QueryLoose is not among them, since it may break the upstream's parser as a whole.
const QueryIrregularities = QuerySemicolon

// Relaxation is one entry of the table of things that a route may relax.
type Relaxation struct {
	// Name is the word in the configuration.
	Name string
	Bit  Irregularity
	// Detail is safe to show to a client that was refused for it.
	Detail string
	// Danger is what the operator takes on by relaxing it.
	Danger string
}

// Relaxations lists all of them in the order of their bits.
func Relaxations() iter.Seq[Relaxation] { return slices.Values(relaxations[:]) }

// RelaxationNamed finds the bit for a word in the configuration.
func RelaxationNamed(name string) (Irregularity, bool) {
	for _, r := range relaxations {
		if r.Name == name {
			return r.Bit, true
		}
	}
	return 0, false
}

// Refused is the part of i that is left when a route relaxes relaxed; queryRead says
// whether a rule of it reads the query. Zero means that the request may go on.
func (i Irregularity) Refused(relaxed Irregularity, queryRead bool) Irregularity {
	left := i &^ relaxed
	if !queryRead {
		left &^= QueryIrregularities
	}
	return left
}

// Detail is the sentence for the lowest bit of i, safe to show to the client; the
// status is 400 and the code bad_request.
func (i Irregularity) Detail() string {
	for _, r := range relaxations {
		if i&r.Bit != 0 {
			return r.Detail
		}
	}
	return ""
}

// String names the bits, joined by commas, in the words of the configuration.
func (i Irregularity) String() string {
	var s string
	for _, r := range relaxations {
		if i&r.Bit == 0 {
			continue
		}
		if s != "" {
			s += ","
		}
		s += r.Name
	}
	return s
}

var relaxations = [numIrregularities]Relaxation{
	{"encoded_slash", EncodedSlash,
		"The path holds an encoded slash.",
		"An upstream or a proxy before it that decodes %2F sees one more segment than the rule did: the route must be safe for every path below it."},
	{"encoded_backslash", EncodedBackslash,
		"The path holds an encoded backslash.",
		"An upstream that treats a backslash as a slash (Windows, some URL libraries) sees one more segment than the rule did."},
	{"encoded_percent", EncodedPercent,
		"The path holds an encoded percent sign.",
		"An upstream that decodes twice sees other text than the rule compared. Dot segments stay refused at every depth."},
	{"semicolon", Semicolon,
		"The path holds a semicolon.",
		"An upstream that cuts ';…' off a segment (Java servers, some frameworks) sees another value than the rule compared, or another route."},
	{"empty_segment", EmptySegment,
		"The path holds an empty segment.",
		"An upstream that merges slashes sees other segments than the rule did, and so perhaps another route."},
	{"query_loose", QueryLoose,
		"The query holds a character that must be percent-encoded.",
		"An upstream may refuse the query, or end it early; a rule that reads a parameter may see what the upstream does not."},
	{"query_semicolon", QuerySemicolon,
		"The query holds a semicolon.",
		"An upstream that splits the query at ';' sees parameters that the rule did not count. Refused only where a rule reads the query."},
	{"method_parameter", MethodParameter,
		"The query holds a _method parameter, which some servers run in place of the request's method.",
		"An upstream that takes its method from there (Spring, Laravel, Express and WordPress can) runs what no rule judged. One that takes it from a form's body does so unseen: switch that off there."},
}
