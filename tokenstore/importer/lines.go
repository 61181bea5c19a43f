package importer

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"tokenward/tokenstore"
)

// columns are those of a CSV file, which its first line names, separated by commas, or,
// as spreadsheets write them, by semicolons or tabs. One of secret and digest is
// required; lists are separated by spaces.
var columns = map[string]func(*Item, string) error{
	"last4":   func(i *Item, s string) error { i.Last4 = s; return nil },
	"name":    func(i *Item, s string) error { i.Name = s; return nil },
	"account": func(i *Item, s string) (err error) { i.Account, err = parseNumber(s); return err },
	"owner":   func(i *Item, s string) (err error) { i.Owner, err = parseNumber(s); return err },
	"scopes":  func(i *Item, s string) error { i.Scopes = strings.Fields(s); return nil },
	"resources": func(i *Item, s string) (err error) {
		i.Resources, err = parseResources(s)
		return err
	},
	"sources": func(i *Item, s string) (err error) { i.Sources, err = parseSources(s); return err },
	"expires_at": func(i *Item, s string) error {
		e, err := parseExpiry(s)
		i.Expiry = &e
		return err
	},
	"not_before": func(i *Item, s string) (err error) { i.NotBefore, err = parseStart(s); return err },
	"disabled": func(i *Item, s string) (err error) {
		if i.Disabled, err = strconv.ParseBool(strings.ToLower(s)); err != nil {
			return errors.New("it must be true or false")
		}
		return nil
	},
}

func readCSV(r io.Reader, o Options) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		in, head, err := openCSV(r)
		if err != nil {
			yield(Item{}, err)
			return
		}
		for {
			row, err := in.Read()
			if errors.Is(err, io.EOF) {
				return
			}
			if errors.Is(err, csv.ErrFieldCount) {
				line, _ := in.FieldPos(0)
				if !yield(Item{}, &LineError{line, fmt.Sprintf("has %d fields, and the first line names %d", len(row), len(head))}) {
					return
				}
				continue
			}
			if err != nil {
				yield(Item{}, fmt.Errorf("read CSV: %w", err))
				return
			}
			line, _ := in.FieldPos(0)
			if !yield(csvItem(line, head, row, o)) {
				return
			}
		}
	}
}

// openCSV reads the first line, which shows by what fields are separated: no column's name has
// a character that could be it.
func openCSV(r io.Reader) (*csv.Reader, []string, error) {
	text, err := plainText(&boundedReader{r, maxDocumentBytes})
	if err != nil {
		return nil, nil, err
	}
	buffered := bufio.NewReaderSize(text, maxHeadBytes)
	first, err := buffered.Peek(maxHeadBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("read CSV: %w", err)
	}
	first, _, _ = bytes.Cut(first, []byte("\n"))
	in := csv.NewReader(buffered)
	in.ReuseRecord = true
	if at := bytes.IndexAny(first, ",;\t"); at >= 0 {
		in.Comma = rune(first[at])
	}
	head, err := csvHead(in)
	return in, head, err
}

// maxHeadBytes is as much of a CSV file as its first line is looked for in.
const maxHeadBytes = 4096

func csvHead(in *csv.Reader) ([]string, error) {
	row, err := in.Read()
	if err != nil {
		return nil, fmt.Errorf("read CSV: %w: the first line is to name the columns", err)
	}
	head, keys := make([]string, len(row)), 0
	seen := map[string]bool{}
	for i, name := range row {
		name = strings.ToLower(strings.TrimSpace(name))
		head[i] = name
		if name == "secret" || name == "digest" {
			keys++
		} else if columns[name] == nil {
			return nil, fmt.Errorf("the first line names an unknown column %.40q: the columns are secret or digest, last4, name, account, owner, scopes, resources, sources, expires_at, not_before, disabled", name)
		}
		if seen[name] {
			return nil, fmt.Errorf("the first line names the column %s twice", name)
		}
		seen[name] = true
	}
	if keys != 1 {
		return nil, errors.New("the first line must name one of the columns secret and digest")
	}
	return head, nil
}

func csvItem(line int, head, row []string, o Options) (Item, error) {
	item := Item{Line: line}
	for i, name := range head {
		var err error
		switch value := row[i]; {
		case name == "secret":
			err = item.key(value, "none")
		case name == "digest":
			digest := o.Digest
			if schemeOf(digest) == tokenstore.SchemeNative {
				digest = "sha256"
			}
			err = item.key(value, digest)
		case value != "":
			err = columns[name](&item, value)
		}
		if err != nil {
			return item, &LineError{line, problem(name, err)}
		}
	}
	return item, nil
}

// problem says what is wrong with a field, and never shows its value where that
// may be a secret.
func problem(field string, err error) string {
	if field == "secret" || field == "digest" {
		return err.Error()
	}
	return "has a wrong " + field + ": " + err.Error()
}

func parseNumber(s string) (*uint64, error) {
	n, ok := tokenstore.ParseNumber(s)
	if !ok {
		return nil, errors.New("it must be a whole number from 1")
	}
	return &n, nil
}

// parseResources reads `all`, or grants as type:id:level separated by spaces.
func parseResources(s string) (*tokenstore.Resources, error) {
	if s == "all" {
		return &tokenstore.Resources{All: true}, nil
	}
	r := &tokenstore.Resources{}
	for _, one := range strings.Fields(s) {
		first, last := strings.IndexByte(one, ':'), strings.LastIndexByte(one, ':')
		if first < 1 || last <= first {
			return nil, errors.New("grants are written as type:id:level, or all")
		}
		level, ok := tokenstore.ParseLevel(one[last+1:])
		if !ok {
			return nil, errors.New("a level is read or write")
		}
		r.Grants = append(r.Grants, tokenstore.Grant{Type: one[:first], ID: one[first+1 : last], Level: level})
	}
	return r, nil
}

// parseSources reads `any`, or networks separated by spaces.
func parseSources(s string) (*tokenstore.Sources, error) {
	if s == "any" {
		return &tokenstore.Sources{Any: true}, nil
	}
	allow, err := parsePrefixes(strings.Fields(s))
	return &tokenstore.Sources{Allow: allow}, err
}

func parsePrefixes(texts []string) (ps []netip.Prefix, err error) {
	for _, text := range texts {
		p, err := tokenstore.ParseSource(text)
		if err != nil {
			return nil, fmt.Errorf("an address %w", err)
		}
		ps = append(ps, p)
	}
	return ps, nil
}

func parseStart(s string) (time.Time, error) {
	at, ok := tokenstore.ParseTime(s)
	if !ok || at.IsZero() {
		return time.Time{}, errors.New("it must be a time (RFC 3339)")
	}
	return at, nil
}

func parseExpiry(s string) (tokenstore.Expiry, error) {
	if s == "never" {
		return tokenstore.Never(), nil
	}
	at, ok := tokenstore.ParseTime(s)
	if !ok {
		return tokenstore.Expiry{}, errors.New("it must be a time (RFC 3339) or never")
	}
	return tokenstore.EndsAt(at), nil
}

// lineObject is a line of the native form, in the words of the native API.
type lineObject struct {
	Secret     string          `json:"secret"`
	Digest     string          `json:"digest"`
	DigestType string          `json:"digest_type"`
	Last4      string          `json:"last4"`
	Name       string          `json:"name"`
	Account    *uint64         `json:"account"`
	Owner      *uint64         `json:"owner"`
	Scopes     []string        `json:"scopes"`
	Resources  json.RawMessage `json:"resources"`
	Sources    json.RawMessage `json:"sources"`
	NotBefore  *string         `json:"not_before"`
	ExpiresAt  json.RawMessage `json:"expires_at"`
	Limits     *lineLimits     `json:"limits"`
	Disabled   bool            `json:"disabled"`
}

type lineLimits struct {
	Rate       float64 `json:"rate"`
	Burst      uint64  `json:"burst"`
	Uses       uint64  `json:"uses"`
	Concurrent uint64  `json:"concurrent"`
	Quota      []struct {
		Count uint64 `json:"count"`
		Per   string `json:"per"`
	} `json:"quota"`
}

func readLines(r io.Reader, o Options) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		text, err := plainText(r)
		if err != nil {
			yield(Item{}, err)
			return
		}
		in := bufio.NewScanner(text)
		in.Buffer(make([]byte, 0, 4096), maxLineBytes)
		line := 0
		for in.Scan() {
			line++
			text := bytes.TrimSpace(in.Bytes())
			if len(text) == 0 {
				continue
			}
			item, err := lineItem(text, o)
			item.Line = line
			if err != nil {
				err = &LineError{line, err.Error()}
			}
			if !yield(item, err) {
				return
			}
		}
		if err := in.Err(); errors.Is(err, bufio.ErrTooLong) {
			yield(Item{}, fmt.Errorf("line %d is longer than %d bytes", line+1, maxLineBytes))
		} else if err != nil {
			yield(Item{}, fmt.Errorf("line %d: %w", line+1, err))
		}
	}
}

// errLine says what a line is to be, without repeating it: it holds a secret.
var errLine = errors.New("is not a JSON object with secret or digest, and the fields of a token")

func lineItem(text []byte, o Options) (item Item, err error) {
	var l lineObject
	if err := soundLine(text); err != nil {
		return item, err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil || dec.InputOffset() != int64(len(text)) {
		return item, errLine
	}
	item = Item{Last4: l.Last4, Name: l.Name, Account: l.Account, Owner: l.Owner, Scopes: l.Scopes, Disabled: l.Disabled}
	switch {
	case (l.Secret == "") == (l.Digest == ""):
		return item, errLine
	case l.Secret != "":
		err = item.key(l.Secret, "none")
	default:
		digest := l.DigestType
		if digest == "" {
			digest = o.Digest
		}
		if err := checkDigest(digest); err != nil {
			return item, fmt.Errorf("has a digest that is refused: %w", err)
		}
		if schemeOf(digest) == tokenstore.SchemeNative {
			digest = "sha256"
		}
		err = item.key(l.Digest, digest)
	}
	if err != nil {
		return item, err
	}
	return item, l.rest(&item)
}

// soundLine refuses what the decoder would read as something else than was
// meant: a name given twice, of which the last counts for it, names in other
// letters, and text that is not Unicode.
func soundLine(text []byte) error {
	if !utf8.Valid(text) {
		return errNotUnicode
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	type level struct {
		names map[string]bool // nil: an array
		value bool            // the next token is a name's value
	}
	var levels []level
	for {
		token, err := dec.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return errLine
		}
		var at *level
		if n := len(levels); n > 0 {
			at = &levels[n-1]
		}
		word, isText := token.(string)
		if isText && strings.ContainsRune(word, utf8.RuneError) {
			return errNotUnicode // one half of a pair of escapes, or text that was broken before
		}
		if at != nil && at.names != nil && isText && !at.value {
			if at.names[word] {
				return errors.New("has a field twice")
			}
			if strings.ToLower(word) != word {
				return errLine
			}
			at.names[word], at.value = true, true
			continue
		}
		if at != nil {
			at.value = false
		}
		switch token {
		case json.Delim('{'):
			levels = append(levels, level{names: map[string]bool{}})
		case json.Delim('['):
			levels = append(levels, level{})
		case json.Delim('}'), json.Delim(']'):
			levels = levels[:len(levels)-1]
		}
	}
}

var errNotUnicode = errors.New("holds text that is not Unicode")

// rest reads the fields that can be written in two ways.
func (l *lineObject) rest(item *Item) (err error) {
	if item.Resources, err = l.resources(); err != nil {
		return err
	}
	if item.Sources, err = l.sources(); err != nil {
		return err
	}
	if l.NotBefore != nil {
		at, ok := tokenstore.ParseTime(*l.NotBefore)
		if !ok || at.IsZero() {
			return errors.New("has a wrong not_before: it must be a time (RFC 3339) or null")
		}
		item.NotBefore = at
	}
	switch text := string(l.ExpiresAt); {
	case text == "":
	case text == "null":
		item.Expiry = new(tokenstore.Never())
	default:
		var text string
		err := json.Unmarshal(l.ExpiresAt, &text)
		at, ok := tokenstore.ParseTime(text)
		if err != nil || !ok {
			return errors.New("has a wrong expires_at: it must be a time (RFC 3339) or null")
		}
		item.Expiry = new(tokenstore.EndsAt(at))
	}
	if l.Limits == nil {
		return nil
	}
	item.Limits = &tokenstore.Limits{Rate: l.Limits.Rate, Burst: l.Limits.Burst, Uses: l.Limits.Uses, Concurrent: l.Limits.Concurrent}
	for _, q := range l.Limits.Quota {
		per, ok := tokenstore.ParseWindow(q.Per)
		if !ok {
			return errors.New("has a wrong quota: per is minute, hour, day or month")
		}
		item.Limits.Quotas = append(item.Limits.Quotas, tokenstore.Quota{Count: q.Count, Per: per})
	}
	return nil
}

func (l *lineObject) resources() (*tokenstore.Resources, error) {
	switch string(l.Resources) {
	case "":
		return nil, nil
	case `"all"`:
		return &tokenstore.Resources{All: true}, nil
	}
	var grants []struct{ Type, ID, Level string }
	dec := json.NewDecoder(bytes.NewReader(l.Resources))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&grants); err != nil {
		return nil, errors.New(`has wrong resources: they are "all" or a list of type, id and level`)
	}
	r := &tokenstore.Resources{}
	for _, g := range grants {
		level, ok := tokenstore.ParseLevel(g.Level)
		if !ok {
			return nil, errors.New("has wrong resources: a level is read or write")
		}
		r.Grants = append(r.Grants, tokenstore.Grant{Type: g.Type, ID: g.ID, Level: level})
	}
	return r, nil
}

func (l *lineObject) sources() (*tokenstore.Sources, error) {
	switch string(l.Sources) {
	case "":
		return nil, nil
	case `"any"`:
		return &tokenstore.Sources{Any: true}, nil
	}
	var rule struct{ Allow, Deny []string }
	dec := json.NewDecoder(bytes.NewReader(l.Sources))
	dec.DisallowUnknownFields() // a deny that is misspelt
	if err := dec.Decode(&rule); err != nil {
		return nil, errors.New(`has wrong sources: they are "any", or allow and deny`)
	}
	allow, err := parsePrefixes(rule.Allow)
	if err != nil {
		return nil, fmt.Errorf("has wrong sources: %w", err)
	}
	deny, err := parsePrefixes(rule.Deny)
	if err != nil {
		return nil, fmt.Errorf("has wrong sources: %w", err)
	}
	return &tokenstore.Sources{Allow: allow, Deny: deny}, nil
}
