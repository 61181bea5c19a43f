package audit

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
	"time"
)

// A line of the log is a JSON object whose frame is fixed to the byte:
//
//	{"n":N,"log":START,"chain":"C"}
//	{"n":N,"event":EVENT,"chain":"C"}
//	{"n":N,"source":"S","seq":Q,"event":EVENT,"chain":"C"}
//	{"n":N,"head":HEAD,"chain":"C"}
//
// N counts the lines of all files of a log from 1 without a gap. C is the hash
// over the chain value of line N-1 (32 zero bytes for line 1) and every byte
// of this line before `,"chain"`. Frames are read by hand: a frame that could
// be read in two ways would be a way to change a line unseen.

// chainValue is SHA-256, or HMAC-SHA-256 under the file's key.
type chainValue [sha256.Size]byte

// maxLineBytes bounds a line with its line break: the largest event, its frame, room.
const maxLineBytes = MaxEventBytes + 4096

const (
	chainMark   = `,"chain":"`
	chainEnd    = `"}`
	suffixBytes = len(chainMark) + 2*len(chainValue{}) + len(chainEnd)
)

// lineKind says what a line carries.
type lineKind uint8

const (
	kindStart lineKind = iota + 1 // the first line of each file
	kindEvent
	kindHead
)

// line is one line taken apart. Its slices point into the text it was read from.
type line struct {
	n      uint64
	kind   lineKind
	source string // "" for an event that came by no outbox
	seq    uint64
	value  []byte // the start, event or head
	body   []byte // what the chain value is taken over, with the one before
	chain  chainValue
}

// start is what the first line of each file says.
type start struct {
	Version int    `json:"version"` // 1
	ID      string `json:"id"`      // of the log, the same in all its files
	Prev    string `json:"prev"`    // chain value of the line before, of the file before
	Key     string `json:"key"`     // names the HMAC key; "" when chained by SHA-256 alone
	Time    Moment `json:"time"`    // when the file was begun
}

// appendBody begins a line: all of it up to its chain value. Only events have a source.
func appendBody(dst []byte, n uint64, kind lineKind, source string, seq uint64, value []byte) []byte {
	dst = append(dst, `{"n":`...)
	dst = strconv.AppendUint(dst, n, 10)
	if source != "" {
		dst = append(dst, `,"source":"`...)
		dst = append(dst, source...)
		dst = append(dst, `","seq":`...)
		dst = strconv.AppendUint(dst, seq, 10)
	}
	dst = append(dst, kindMarks[kind]...)
	return append(dst, value...)
}

// appendChain ends a line begun by appendBody.
func appendChain(dst []byte, c chainValue) []byte {
	dst = append(dst, chainMark...)
	dst = hex.AppendEncode(dst, c[:])
	return append(dst, chainEnd+"\n"...)
}

// parseLine takes a line without its line break apart. It accepts exactly what
// appendBody and appendChain write around one object in braces; whether that is
// JSON and a proper event, and the chain value true, is for the caller to find out.
// With an error it returns no more than the chain value, if that can be read.
func parseLine(text []byte) (line, error) {
	if len(text) >= maxLineBytes {
		return line{}, fmt.Errorf("it is longer than %d bytes", maxLineBytes)
	}
	if len(text) < suffixBytes {
		return line{}, errors.New("it is too short")
	}
	body, suffix := text[:len(text)-suffixBytes], text[len(text)-suffixBytes:]
	chain, err := parseChain(suffix)
	if err != nil {
		return line{}, err
	}
	l, err := parseBody(body)
	if err != nil {
		return line{chain: chain}, err
	}
	l.body, l.chain = body, chain
	return l, nil
}

func parseChain(suffix []byte) (c chainValue, err error) {
	digits, ok := bytes.CutPrefix(suffix, []byte(chainMark))
	if !ok || !bytes.HasSuffix(digits, []byte(chainEnd)) {
		return c, errors.New("it does not end in a chain value")
	}
	digits = digits[:2*len(c)]
	if _, err := hex.Decode(c[:], digits); err != nil || !bytes.Equal(digits, bytes.ToLower(digits)) {
		return chainValue{}, errors.New("its chain value is not in lower-case hexadecimal")
	}
	return c, nil
}

func parseBody(body []byte) (l line, err error) {
	rest, ok := bytes.CutPrefix(body, []byte(`{"n":`))
	if !ok {
		return line{}, errors.New("it does not begin with its number")
	}
	if l.n, rest, ok = cutNumber(rest); !ok {
		return line{}, errors.New("its number cannot be read")
	}
	if after, found := bytes.CutPrefix(rest, []byte(`,"source":"`)); found {
		source, tail, found := bytes.Cut(after, []byte(`","seq":`))
		l.source = string(source)
		if err := checkSource(l.source); err != nil || !found {
			return line{}, errors.New("its source cannot be read")
		}
		if l.seq, rest, ok = cutNumber(tail); !ok {
			return line{}, errors.New("its outbox number cannot be read")
		}
	}
	for kind, mark := range kindMarks {
		if value, found := bytes.CutPrefix(rest, []byte(mark)); found && mark != "" {
			l.kind, l.value = lineKind(kind), value
		}
	}
	switch {
	case l.kind == 0, l.source != "" && l.kind != kindEvent:
		return line{}, errors.New("it is neither an event, nor a head, nor the start of a file")
	case len(l.value) < 2 || l.value[0] != '{' || l.value[len(l.value)-1] != '}':
		return line{}, errors.New("what it carries is not a JSON object")
	}
	return l, nil
}

var kindMarks = [...]string{kindStart: `,"log":`, kindEvent: `,"event":`, kindHead: `,"head":`}

// cutNumber reads a positive decimal number in its only form.
func cutNumber(b []byte) (n uint64, rest []byte, ok bool) {
	i := 0
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	n, err := strconv.ParseUint(string(b[:i]), 10, 64)
	return n, b[i:], err == nil && b[0] != '0'
}

// checkSource holds the names of outboxes to characters that JSON never escapes.
func checkSource(s string) error {
	if s == "" || len(s) > 128 {
		return errors.New("the name of an outbox has 1 to 128 bytes")
	}
	for _, c := range []byte(s) {
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.IndexByte("._-/:", c) >= 0) {
			return fmt.Errorf("the name of an outbox has letters, digits and ._-/: only, not %q", s)
		}
	}
	return nil
}

// chainHash returns a fresh hash for one chain value; nil key means SHA-256 alone.
func chainHash(key []byte) hash.Hash {
	if key == nil {
		return sha256.New()
	}
	return hmac.New(sha256.New, key)
}

// next returns the chain value of the line with this body that follows c.
func (c chainValue) next(h hash.Hash, body []byte) chainValue {
	h.Reset()
	h.Write(c[:])
	h.Write(body)
	var out chainValue
	h.Sum(out[:0])
	return out
}

// String returns c as it stands in the log.
func (c chainValue) String() string { return hex.EncodeToString(c[:]) }

// keyName names an HMAC key without telling it. "" names the absent key.
func keyName(key []byte) string {
	if key == nil {
		return ""
	}
	h := hmac.New(sha256.New, key)
	h.Write([]byte("tokenward audit key name"))
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// parseStart reads the value of a file's first line.
func parseStart(l line) (start, error) {
	var s start
	if l.kind != kindStart {
		return s, errors.New("the file does not begin with the first line of an audit log")
	}
	d := json.NewDecoder(bytes.NewReader(l.value))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return s, fmt.Errorf("the first line of the file cannot be read: %w", err)
	}
	if s.Version != 1 {
		return s, fmt.Errorf("the file is of version %d; this program reads version 1", s.Version)
	}
	if _, err := s.prev(); err != nil {
		return s, err
	}
	return s, nil
}

func (s start) prev() (c chainValue, err error) {
	if b, err := hex.DecodeString(s.Prev); err != nil || copy(c[:], b) != len(c) || len(b) != len(c) {
		return c, errors.New("the first line of the file does not say which chain value it continues")
	}
	return c, nil
}

// A Record is an event with its place in the log.
type Record struct {
	Line   uint64 // number of its line, counted over all files
	Source string // the outbox it came from; "" when from none
	Seq    uint64 // its number there
	Event  Event
}

// ParseRecord reads one line of a log, without its line break. It reports
// false for lines that carry no event. It does not check the chain: see [Verify].
func ParseRecord(text []byte) (Record, bool, error) {
	l, err := parseLine(text)
	if err != nil {
		return Record{}, false, fmt.Errorf("read audit line: %w", err)
	}
	if l.kind != kindEvent {
		return Record{}, false, nil
	}
	e, err := Decode(l.value)
	if err != nil {
		return Record{}, false, fmt.Errorf("read audit line %d: %w", l.n, err)
	}
	return Record{Line: l.n, Source: l.source, Seq: l.seq, Event: e}, true, nil
}

// timeText is the form in which heads give the time.
func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
