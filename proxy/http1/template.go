package http1

import (
	"bytes"
	"slices"
)

// Template is an answer that is put together once and sent often, with a value of each
// exchange's own in its blanks. It is immutable, and safe for concurrent use.
type Template struct {
	head   []byte // the status line, the template's own fields, and the length
	dated  bool   // Date is among the fields
	body   []byte
	length int // of a value
	blanks struct{ head, body []int }
}

// NewTemplate makes the template of what [Exchange.Respond] would send. Wherever blank
// occurs in the value of a field or in the body, a value of the same length is put; it
// must occur nowhere else, so it is best drawn at random. It fails with ErrField where
// Respond would, or where blank itself could not stand in a field.
func NewTemplate(status int, fields []Field, body, blank []byte) (*Template, error) {
	if !finalStatus(status) {
		return nil, ErrField
	}
	if err := checkFields(fields); err != nil {
		return nil, err
	}
	if len(blank) == 0 || !validValue(blank) {
		return nil, ErrField
	}
	t := &Template{length: len(blank)}
	t.head, t.dated = appendHead(nil, status, fields, len(body))
	if !bare(status) {
		t.body = slices.Clone(body)
	}
	t.blanks.head, t.blanks.body = occurrences(t.head, blank), occurrences(t.body, blank)
	return t, nil
}

func occurrences(text, part []byte) []int {
	var at []int
	for from := 0; ; {
		i := bytes.Index(text[from:], part)
		if i < 0 {
			return at
		}
		at = append(at, from+i)
		from += i + len(part)
	}
}

// RespondWith answers as Respond does, at a fraction of the cost: with what the template
// says, value in its blanks, and more fields besides. It fails with ErrField where Respond
// would for these fields, and where value is of another length than the template's blank
// or could not stand in a field.
func (x *Exchange) RespondWith(t *Template, value []byte, more []Field) error {
	if x.answered {
		return ErrAnswered
	}
	if len(value) != t.length || !validValue(value) {
		return ErrField
	}
	if err := checkFields(more); err != nil {
		return err
	}
	x.beginAnswer()
	dst := append(x.outBuffer(), t.head...)
	fill(dst, t.blanks.head, value)
	dst, dated := appendFields(dst, more)
	dst = x.endHead(dst, dated || t.dated)
	if !x.bodyless() {
		start := len(dst)
		dst = append(dst, t.body...)
		fill(dst[start:], t.blanks.body, value)
	}
	x.send(dst)
	return x.flushed()
}

func fill(dst []byte, blanks []int, value []byte) {
	for _, at := range blanks {
		copy(dst[at:], value)
	}
}
