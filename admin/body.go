package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"tokenward/tokenstore"
)

// MaxBodyBytes bounds the body of every call.
const MaxBodyBytes = 64 << 10

const (
	maxDepth     = 16 // of objects and arrays inside one another
	maxFaults    = 32 // that one answer names
	maxFaultName = 64 // bytes of an unknown field's name that an answer repeats
)

// ReadBody reads the request's body. One over MaxBodyBytes is KindTooLarge, from
// its announced length without reading any of it.
func ReadBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength > MaxBodyBytes {
		return nil, BodyError(&http.MaxBytesError{Limit: MaxBodyBytes})
	}
	for _, e := range r.Header.Values("Content-Encoding") {
		if e != "" && !strings.EqualFold(e, "identity") {
			return nil, refuse(KindMediaType, "The body must not be encoded.")
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBodyBytes))
	if err != nil {
		return nil, BodyError(err)
	}
	return body, nil
}

// BodyError says why a body could not be read to its end.
func BodyError(err error) *Error {
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return refuse(KindTooLarge, fmt.Sprintf("The body must be at most %d bytes.", e.Limit))
	}
	if e, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err); ok && e.Timeout() {
		return refuse(KindBodyTimeout, "The body stopped arriving: send the request again.")
	}
	return refuse(KindMalformed, "The body could not be read.")
}

// ReadJSON reads a body that is empty or one JSON object. A body that claims to
// be something else than JSON is KindMediaType, unless it is empty: an empty
// body reads as an empty object, whatever it claims to be, once.
func ReadJSON(w http.ResponseWriter, r *http.Request) (*Object, error) {
	body, err := ReadBody(w, r)
	if err != nil {
		return nil, err
	}
	if err := RequireJSON(r, body); err != nil {
		return nil, err
	}
	return ParseObject(body)
}

// ContentType returns what the body claims to be; nothing where it claims nothing. Two
// claims are KindMalformed: others on the way may go by the second.
func ContentType(r *http.Request) (string, error) {
	claimed := r.Header.Values("Content-Type")
	switch len(claimed) {
	case 0:
		return "", nil
	case 1:
		return claimed[0], nil
	}
	return "", refuse(KindMalformed, "Content-Type is given twice: send it once.")
}

// RequireJSON refuses a body that claims to be something else than JSON.
func RequireJSON(r *http.Request, body []byte) error {
	claimed, err := ContentType(r)
	if err != nil || claimed == "" || len(body) == 0 {
		return err
	}
	media, _, err := mime.ParseMediaType(claimed)
	if err != nil || media != "application/json" && media != "text/json" && !strings.HasSuffix(media, "+json") {
		return refuse(KindMediaType, "The body must be JSON, sent as `Content-Type: application/json`.")
	}
	return nil
}

// Object is a JSON object out of a request, read strictly: names are exact, no
// name comes twice, and at the end every name must have been asked for. Wrong
// things are collected as faults, with the path of the field (`resources/0/id`),
// so that one answer can tell of all.
//
// A getter's second result reports whether the field is there with a value of
// the type asked for; a field of another type, null included, is a fault. Where
// null means something, ask Null first.
type Object struct {
	path   string
	names  []string
	values map[string]any // *Object, []Value, string, json.Number, bool or nil
	asked  map[string]bool
	doc    *document
}

// document is what all objects of one body share.
type document struct {
	objects []*Object // those that were handed out
	faults  tokenstore.Faults
}

func (d *document) add(path, detail string) {
	if len(d.faults) < maxFaults {
		d.faults = append(d.faults, tokenstore.FieldFault{Field: path, Detail: detail})
	}
}

// ParseObject reads one JSON object; nothing at all reads as an empty one.
// What is not a JSON object, or goes on behind it, is KindMalformed.
func ParseObject(body []byte) (*Object, error) {
	doc := &document{}
	if len(bytes.TrimSpace(body)) == 0 {
		return doc.hand(&Object{doc: doc}), nil
	}
	if !json.Valid(body) {
		return nil, malformed(body)
	}
	p := parser{body: body, dec: json.NewDecoder(bytes.NewReader(body)), doc: doc}
	p.dec.UseNumber()
	v, err := p.value("", 0)
	if err != nil {
		return nil, err
	}
	o, ok := v.(*Object)
	if !ok {
		return nil, refuse(KindMalformed, "The body must be a JSON object.")
	}
	return doc.hand(o), nil
}

func malformed(body []byte) *Error {
	var v any
	err := json.Unmarshal(body, &v)
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return refuse(KindMalformed, fmt.Sprintf("The body is not valid JSON, at byte %d.", e.Offset))
	}
	return refuse(KindMalformed, "The body is not valid JSON.")
}

// hand gives an object out: its names will have to be asked for.
func (d *document) hand(o *Object) *Object {
	d.objects = append(d.objects, o)
	return o
}

// parser builds values out of a body that is known to be valid JSON.
type parser struct {
	body []byte
	dec  *json.Decoder
	doc  *document
}

var errDepth = &Error{Kind: KindMalformed, Detail: fmt.Sprintf("The body has objects or arrays more than %d deep.", maxDepth)}

func (p *parser) value(path string, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errDepth
	}
	token, err := p.token(path)
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		return p.object(path, depth)
	case json.Delim('['):
		return p.array(path, depth)
	}
	return token, nil
}

// token reads the next token. Text that is not Unicode is a fault of the field
// at path, because the decoder would silently replace what is wrong in it.
func (p *parser) token(path string) (json.Token, error) {
	begin := p.dec.InputOffset()
	token, err := p.dec.Token()
	if err != nil {
		return nil, malformed(p.body)
	}
	if _, ok := token.(string); ok {
		raw := p.body[begin:p.dec.InputOffset()]
		if !utf8.Valid(raw) || hasLoneSurrogate(raw) {
			p.doc.add(path, "must be valid UTF-8")
		}
	}
	return token, nil
}

func (p *parser) object(path string, depth int) (*Object, error) {
	o := &Object{path: path, values: make(map[string]any), asked: make(map[string]bool), doc: p.doc}
	for p.dec.More() {
		token, err := p.token(path)
		if err != nil {
			return nil, err
		}
		name, _ := token.(string) // valid JSON has nothing else here
		v, err := p.value(o.at(name), depth+1)
		if err != nil {
			return nil, err
		}
		if _, twice := o.values[name]; twice {
			p.doc.add(o.at(name), "is given twice")
			continue
		}
		o.names = append(o.names, name)
		o.values[name] = v
	}
	_, err := p.dec.Token()
	return o, err
}

func (p *parser) array(path string, depth int) ([]Value, error) {
	var items []Value
	for p.dec.More() {
		at := joinPath(path, strconv.Itoa(len(items)))
		v, err := p.value(at, depth+1)
		if err != nil {
			return nil, err
		}
		items = append(items, Value{path: at, v: v, doc: p.doc})
	}
	_, err := p.dec.Token()
	return items, err
}

// hasLoneSurrogate reports whether a JSON text has a \u escape that is one half
// of a pair (RFC 8259 section 8.2).
func hasLoneSurrogate(raw []byte) bool {
	unit := func(i int) (uint64, bool) {
		if i+6 > len(raw) || raw[i] != '\\' || raw[i+1] != 'u' {
			return 0, false
		}
		u, err := strconv.ParseUint(string(raw[i+2:i+6]), 16, 16)
		return u, err == nil
	}
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		u, ok := unit(i)
		switch {
		case !ok:
			i++ // an escape of one character
		case u >= 0xDC00 && u <= 0xDFFF:
			return true
		case u >= 0xD800 && u <= 0xDBFF:
			if low, ok := unit(i + 6); !ok || low < 0xDC00 || low > 0xDFFF {
				return true
			}
			i += 11
		default:
			i += 5
		}
	}
	return false
}

// at is the path of a field of o, escaped as RFC 6901 section 3 says.
func (o *Object) at(name string) string {
	if len(name) > maxFaultName {
		end := maxFaultName
		for end > 0 && !utf8.RuneStart(name[end]) {
			end--
		}
		name = name[:end] + "…"
	}
	return joinPath(o.path, strings.NewReplacer("~", "~0", "/", "~1").Replace(strings.ToValidUTF8(name, "\uFFFD")))
}

func joinPath(path, name string) string {
	if path == "" {
		return name
	}
	return path + "/" + name
}

// Has reports whether the field is there, null or not. It does not count as
// having asked for it.
func (o *Object) Has(name string) bool {
	_, ok := o.values[name]
	return ok
}

// IsText reports whether the field is there and a string. It does not count as
// having asked for it, and records no fault.
func (o *Object) IsText(name string) bool {
	_, ok := o.values[name].(string)
	return ok
}

// Names returns the names in the order they came.
func (o *Object) Names() []string { return o.names }

// Fault records what is wrong with a field, as a sentence that begins with it.
func (o *Object) Fault(name, detail string) { o.doc.add(o.at(name), detail) }

// Null reports whether the field is null.
func (o *Object) Null(name string) bool {
	v, ok := o.get(name)
	return ok && v.v == nil
}

func (o *Object) get(name string) (Value, bool) {
	v, ok := o.values[name]
	if ok {
		o.asked[name] = true
	}
	return Value{path: o.at(name), v: v, doc: o.doc}, ok
}

// Text returns a string.
func (o *Object) Text(name string) (string, bool) { return get(o, name, Value.Text) }

// Number returns a whole number from 0 to 2^53-1.
func (o *Object) Number(name string) (uint64, bool) { return get(o, name, Value.Number) }

// Float returns a number.
func (o *Object) Float(name string) (float64, bool) { return get(o, name, Value.Float) }

// Bool returns true or false.
func (o *Object) Bool(name string) (value, ok bool) { return get(o, name, Value.Bool) }

// Time returns an RFC 3339 date-time.
func (o *Object) Time(name string) (time.Time, bool) { return get(o, name, Value.Time) }

// Object returns an object.
func (o *Object) Object(name string) (*Object, bool) { return get(o, name, Value.Object) }

// List returns the items of an array.
func (o *Object) List(name string) ([]Value, bool) { return get(o, name, Value.List) }

// ListOfOne returns an object that has the member as a list of one. It reports false
// for all else, and then records no fault and does not count as having asked.
func (o *Object) ListOfOne(name, member string) ([]Value, bool) {
	if one, ok := o.values[name].(*Object); !ok || !one.Has(member) {
		return nil, false
	}
	v, _ := o.get(name)
	return []Value{v}, true
}

// Texts returns the strings of an array of strings; never nil with ok.
func (o *Object) Texts(name string) ([]string, bool) {
	items, ok := o.List(name)
	if !ok {
		return nil, false
	}
	texts := make([]string, 0, len(items))
	for _, item := range items {
		text, _ := item.Text()
		texts = append(texts, text)
	}
	return texts, true
}

func get[T any](o *Object, name string, as func(Value) (T, bool)) (value T, ok bool) {
	v, ok := o.get(name)
	if !ok {
		return value, false
	}
	return as(v)
}

// Faults returns everything that was found wrong with the whole body, and every
// name in it that nobody asked for.
func (o *Object) Faults() tokenstore.Faults {
	for _, object := range o.doc.objects {
		for _, name := range object.names {
			if !object.asked[name] {
				object.asked[name] = true
				object.Fault(name, "is not known")
			}
		}
	}
	return o.doc.faults
}

// Value is a JSON value out of a request. Its getters work as those of Object.
type Value struct {
	path string
	v    any
	doc  *document
}

// Fault records what is wrong with the value.
func (v Value) Fault(detail string) { v.doc.add(v.path, detail) }

// Text returns the value as a string.
func (v Value) Text() (string, bool) {
	s, ok := v.v.(string)
	if !ok {
		v.Fault("must be a string")
	}
	return s, ok
}

// IsText reports whether the value is a string. It records no fault.
func (v Value) IsText() bool {
	_, ok := v.v.(string)
	return ok
}

// Number returns the value as a whole number from 0 to 2^53-1, which is what
// every JSON reader takes exactly (RFC 7493 section 2.2). It has to be written
// as one: no sign, fraction or exponent.
func (v Value) Number() (uint64, bool) {
	n, ok := v.v.(json.Number)
	if !ok {
		v.Fault("must be a whole number")
		return 0, false
	}
	if n == "0" {
		return 0, true
	}
	u, ok := tokenstore.ParseNumber(string(n))
	if !ok {
		v.Fault("must be a whole number from 0 to 2^53-1")
	}
	return u, ok
}

// Float returns the value as a number.
func (v Value) Float() (float64, bool) {
	n, ok := v.v.(json.Number)
	f, err := n.Float64()
	if !ok || err != nil {
		v.Fault("must be a number")
		return 0, false
	}
	return f, true
}

// Bool returns the value as true or false.
func (v Value) Bool() (value, ok bool) {
	b, ok := v.v.(bool)
	if !ok {
		v.Fault("must be true or false")
	}
	return b, ok
}

// Time returns the value as an RFC 3339 date-time.
func (v Value) Time() (time.Time, bool) {
	s, ok := v.v.(string)
	if ok {
		switch t, ok := tokenstore.ParseTime(s); {
		case ok && t.IsZero(): // what a Go program takes for no time at all
			v.Fault("must lie between the years 1970 and 9999")
			return time.Time{}, false
		case ok:
			return t, true
		}
	}
	v.Fault("must be an RFC 3339 date-time with a time zone, such as 2027-01-31T12:00:00Z")
	return time.Time{}, false
}

// Object returns the value as an object.
func (v Value) Object() (*Object, bool) {
	o, ok := v.v.(*Object)
	if !ok {
		v.Fault("must be an object")
		return nil, false
	}
	return v.doc.hand(o), true
}

// List returns the items of the value, an array.
func (v Value) List() ([]Value, bool) {
	items, ok := v.v.([]Value)
	if !ok {
		v.Fault("must be an array")
	}
	return items, ok
}
