package http1

import (
	"fmt"
	"time"
)

// Edit says how a request is changed on its way to the upstream, and its answer
// on the way back. The zero value forwards everything that HTTP lets a proxy
// forward, and nothing else: hop-by-hop fields go, an upgrade is not asked for,
// a Connection option that would remove any other field is refused.
//
// Get one from [Exchange.Edit] and use it for that exchange only; filling it
// does not allocate once its buffers have grown.
type Edit struct {
	Target []byte // replaces the request target; nil: the same, in origin-form
	Host   []byte // replaces Host; nil: the same
	Drop   []int  // indexes of Request.Fields that are not forwarded; Host, framing fields and repeats do no harm

	// Judged reports whether a field was judged by, or is set by, the caller: a
	// Connection option that names it refuses the request with 400. If nil, every
	// option that names a field of the request does.
	Judged func(name []byte) bool
	// MaxBody bounds the data bytes of the request's body; beyond: 413. 0: any.
	MaxBody int64
	// Upgrade lets a request without a body ask for another protocol, and
	// the upstream switch to it. h2c never passes.
	Upgrade bool
	// KeepTrailer reports whether a trailer field is forwarded, in either
	// direction. If nil, all are; those that RFC 9110 §6.5.1 forbids never are. It
	// may be called from two goroutines at once, and must not panic.
	KeepTrailer func(name []byte) bool
	// Answer is called with the head of each answer before it is sent on: the final
	// one, the switch to another protocol, and interim ones. It may drop fields,
	// and add some to an answer that is not interim.
	Answer func(*Response, *Edit)
	// Ending is called when all of the final answer has come from the upstream, before
	// the client is sent the last of it, and so before it can act on that; at most once,
	// and not if the answer fails or protocols are switched. nil is not called.
	Ending func()

	HeaderTimeout time.Duration // instead of the upstream's; 0: the upstream's
	StallTimeout  time.Duration // instead of the server's; 0: the server's

	added       []byte
	answerDrop  []int
	answerAdded []byte
	bad         bool
}

// Edit gives the exchange's own edit, which is empty at first.
func (x *Exchange) Edit() *Edit { return &x.edit }

func (e *Edit) reset() {
	*e = Edit{Drop: e.Drop[:0], added: e.added[:0], answerDrop: e.answerDrop[:0], answerAdded: e.answerAdded[:0]}
}

// Add adds a field to the request. A malformed one makes Forward fail.
func (e *Edit) Add(f Field) { e.added = e.appendChecked(e.added, f) }

// AddAnswer adds a field to the final answer. A malformed one makes Forward fail.
func (e *Edit) AddAnswer(f Field) { e.answerAdded = e.appendChecked(e.answerAdded, f) }

// FieldName is the name of a field that is added to many messages: it was checked once,
// and is ready to be written. The zero FieldName can be added to none.
type FieldName struct{ lead string } // with the colon and the space

// NewFieldName returns a name that may be added. Names of fields that frame messages or
// belong to the connection may not.
func NewFieldName(name string) (FieldName, error) {
	if b := []byte(name); !isToken(b) || !addable(classify(b)) {
		return FieldName{}, fmt.Errorf("%q cannot be the name of an added field", name)
	}
	return FieldName{name + ": "}, nil
}

// MustFieldName is [NewFieldName] for names that are constants.
func MustFieldName(name string) FieldName {
	n, err := NewFieldName(name)
	if err != nil {
		panic(err)
	}
	return n
}

func (n FieldName) String() string { return n.lead[:max(0, len(n.lead)-len(": "))] }

// NamedField is a field under a name that was checked before.
type NamedField struct {
	Name  FieldName
	Value []byte
}

// AddNamed is [Edit.Add] for names that were checked before.
func (e *Edit) AddNamed(f NamedField) { e.added = e.appendNamed(e.added, f) }

// AddAnswerNamed is [Edit.AddAnswer] for names that were checked before.
func (e *Edit) AddAnswerNamed(f NamedField) { e.answerAdded = e.appendNamed(e.answerAdded, f) }

func (e *Edit) appendNamed(dst []byte, f NamedField) []byte {
	if f.Name.lead == "" || !validValue(f.Value) {
		e.bad = true
		return dst
	}
	dst = append(dst, f.Name.lead...)
	dst = append(dst, f.Value...)
	return append(dst, "\r\n"...)
}

// DropAnswer leaves a field of the answer out; i is its index in
// Response.Fields.
func (e *Edit) DropAnswer(i int) { e.answerDrop = append(e.answerDrop, i) }

func (e *Edit) appendChecked(dst []byte, f Field) []byte {
	if !isToken(f.Name) || !validValue(f.Value) || !addable(classify(f.Name)) {
		e.bad = true
		return dst
	}
	return appendField(dst, f)
}

// addable reports whether a caller may add a field of that kind: what frames the
// message or belongs to the connection is the engine's.
func addable(k kind) bool {
	switch k {
	case kindConnection, kindContentLength, kindTransferEncoding, kindHopByHop, kindUpgrade, kindTE, kindHost, kindExpect:
		return false
	case kindOther, kindDate:
	}
	return true
}

// valid reports whether the edit can be applied to a request with n fields.
func (e *Edit) valid(n int) bool {
	if e.bad || e.Host != nil && !validAuthority(e.Host) {
		return false
	}
	for _, c := range e.Target {
		if c < 0x21 || c > 0x7e || c == '#' {
			return false
		}
	}
	if e.Target != nil && (len(e.Target) == 0 || e.Target[0] != '/' && string(e.Target) != "*") {
		return false
	}
	for _, i := range e.Drop {
		if i < 0 || i >= n {
			return false
		}
	}
	return true
}
