package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// MaxEventBytes bounds an encoded event. A verb whose event is larger must
// fail: the log could never take it and the outbox behind it would stand still.
const MaxEventBytes = 512 << 10

// maxText bounds, in bytes, each free text of an event; longer text is cut.
const maxText = 1024

// An Event tells of one verb, done or refused: who asked for what, from where,
// and what the token was before and after. It has no field for a secret or a
// digest, and a text that looks like a secret is masked when it is encoded.
//
// Its place in the log, and the outbox number it came under, are not the
// event's own business: see [Record].
type Event struct {
	Time    time.Time `json:"time"`              // when the verb was judged; required
	Node    string    `json:"node,omitempty"`    // the node that took the call
	Request string    `json:"request,omitempty"` // the request id the caller was given
	Verb    Word      `json:"verb"`              // create, revoke, …; required
	Outcome Outcome   `json:"outcome"`           // required
	Reason  string    `json:"reason,omitempty"`  // why it was refused or failed; what the caller gave as a reason
	Actor   Actor     `json:"actor,omitzero"`
	Target  Target    `json:"target,omitzero"`
	Before  *Token    `json:"before,omitempty"` // nil when there was none
	After   *Token    `json:"after,omitempty"`  // nil when nothing came to be
	Denied  Denied    `json:"denied,omitzero"`  // of the verb "deny" only
}

// A Word is a lower-case name out of [a-z0-9._-], beginning with a letter and
// at most 64 bytes long.
type Word string

// Outcome says how a verb ended. The zero value is not an outcome and cannot be encoded.
type Outcome uint8

// The outcomes. An addition needs a name in outcomeNames.
const (
	Success Outcome = iota + 1 // done and durable
	Refusal                    // the caller may not, or asked for what cannot be
	Failure                    // allowed, but it could not be done
)

var outcomeNames = [...]string{Success: "success", Refusal: "refusal", Failure: "failure"}

// String returns the outcome's name on the wire.
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) && o != 0 {
		return outcomeNames[o]
	}
	return fmt.Sprintf("outcome(%d)", uint8(o))
}

// MarshalText refuses every value that is not one of the outcomes.
func (o Outcome) MarshalText() ([]byte, error) {
	if int(o) >= len(outcomeNames) || o == 0 {
		return nil, fmt.Errorf("no such outcome: %d", uint8(o))
	}
	return []byte(outcomeNames[o]), nil
}

// UnmarshalText reads an outcome's exact name.
func (o *Outcome) UnmarshalText(text []byte) error {
	for i, name := range outcomeNames {
		if name != "" && name == string(text) {
			*o = Outcome(i)
			return nil
		}
	}
	return fmt.Errorf("no such outcome: %.32q", text)
}

// An Actor is who called. The zero value is the program itself.
type Actor struct {
	Token   uint64     `json:"token,omitempty"` // id of the token that was shown; 0 when none was known
	Name    string     `json:"name,omitempty"`  // that token's name
	Account uint64     `json:"account,omitempty"`
	Owner   uint64     `json:"owner,omitempty"`
	Address netip.Addr `json:"address,omitzero"` // the client as believed; invalid when not known
	Via     Word       `json:"via,omitempty"`    // the door: proxy, admin, unit, fynn, mailtrap, native, leaks, cli
}

// A Target is the token a verb was aimed at, as the caller named it.
type Target struct {
	Token   uint64 `json:"token,omitempty"`
	Account uint64 `json:"account,omitempty"`
	Owner   uint64 `json:"owner,omitempty"`
}

// A Token is what a token allowed at one moment. As in the token itself, what
// is absent allows nothing.
type Token struct {
	State     Word      `json:"state,omitempty"`
	Name      string    `json:"name,omitempty"`
	Account   uint64    `json:"account,omitempty"`
	Owner     uint64    `json:"owner,omitempty"`
	Creator   uint64    `json:"creator,omitempty"` // the token that made it; 0: the command line
	Scopes    []string  `json:"scopes,omitempty"`
	Sources   Sources   `json:"sources,omitzero"`
	Resources Resources `json:"resources,omitzero"`
	NotBefore Moment    `json:"not_before,omitzero"`
	Expires   Expiry    `json:"expires,omitzero"`
	Limits    []Limit   `json:"limits,omitempty"`
	Secrets   []Secret  `json:"secrets,omitempty"`
}

// Sources is where a token may be used from.
type Sources struct {
	Any   bool           `json:"any,omitempty"`
	Allow []netip.Prefix `json:"allow,omitempty"`
	Deny  []netip.Prefix `json:"deny,omitempty"`
}

// Resources is what a token may be used on.
type Resources struct {
	All    bool    `json:"all,omitempty"`
	Grants []Grant `json:"grants,omitempty"`
}

// A Grant allows one resource, or with the id "*" all of a type, at a level.
type Grant struct {
	Type  string `json:"type"`
	ID    string `json:"id"`
	Level string `json:"level"`
}

// An Expiry is the time a token ends, or never.
type Expiry struct {
	Never bool   `json:"never,omitempty"`
	At    Moment `json:"at,omitzero"`
}

// A Limit bounds the use of a token: Count per Per (second, minute, hour, day,
// month; empty: for good), with Burst at once.
type Limit struct {
	Kind  Word   `json:"kind"` // rate, quota, uses, concurrent
	Count uint64 `json:"count"`
	Per   Word   `json:"per,omitempty"`
	Burst uint64 `json:"burst,omitempty"`
}

// A Secret says when one of a token's secrets was made and when it ends; of
// the secret itself nothing is known here.
type Secret struct {
	Number  uint64 `json:"number"` // 1 is the first the token ever had
	Created Moment `json:"created,omitzero"`
	Ends    Moment `json:"ends,omitzero"` // zero: with the token
}

// A Moment is a time that is always encoded in UTC.
type Moment struct{ time.Time }

// MarshalJSON writes the moment in UTC as RFC 3339 with nanoseconds.
func (m Moment) MarshalJSON() ([]byte, error) { return m.UTC().MarshalJSON() }

// At returns t as a Moment.
func At(t time.Time) Moment { return Moment{t} }

// Encode returns the event as one line of JSON without a line break: the only
// form that [Decode] accepts. It cuts over-long free text, replaces control
// characters, and masks whatever has the form of a secret, in any text.
// It fails if a required field is missing or the event is over [MaxEventBytes].
func Encode(e Event) ([]byte, error) {
	e.sanitise()
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("encode audit event: %w", err)
	}
	b, err := marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode audit event: %w", err)
	}
	if len(b) > MaxEventBytes {
		return nil, fmt.Errorf("encode audit event: %s is %d bytes, the limit is %d", e.Verb, len(b), MaxEventBytes)
	}
	return b, nil
}

// Decode reads what [Encode] wrote, and nothing else: unknown, doubled or
// reordered fields, white space, unmasked secrets and trailing bytes are errors.
func Decode(b []byte) (Event, error) {
	if len(b) > MaxEventBytes {
		return Event{}, fmt.Errorf("decode audit event: %d bytes, the limit is %d", len(b), MaxEventBytes)
	}
	var e Event
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return Event{}, fmt.Errorf("decode audit event: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Event{}, errors.New("decode audit event: something follows the event")
	}
	again, err := Encode(e)
	if err != nil {
		return Event{}, err
	}
	if !bytes.Equal(again, b) {
		return Event{}, errors.New("decode audit event: not in the form it is written in")
	}
	return e, nil
}

// marshal encodes without escaping <, > and &, which nobody here reads as HTML.
func marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// sanitise brings the event into the form that is written; doing so twice
// changes nothing more. What the event points at is copied, not changed.
func (e *Event) sanitise() {
	e.Time = e.Time.UTC().Round(0)
	e.Actor.Address = e.Actor.Address.WithZone(cleanText(e.Actor.Address.Zone()))
	for _, s := range []*string{&e.Node, &e.Request, &e.Reason, &e.Actor.Name} {
		*s = cleanText(*s)
	}
	e.Before = e.Before.sanitised()
	e.After = e.After.sanitised()
	e.Denied.Route = cleanText(e.Denied.Route)
}

func (t *Token) sanitised() *Token {
	if t == nil {
		return nil
	}
	c := *t
	c.Name = cleanText(c.Name)
	c.Scopes = nil
	for _, s := range t.Scopes {
		c.Scopes = append(c.Scopes, cleanText(s))
	}
	c.Resources.Grants = nil
	for _, g := range t.Resources.Grants {
		c.Resources.Grants = append(c.Resources.Grants, Grant{cleanText(g.Type), cleanText(g.ID), cleanText(g.Level)})
	}
	return &c
}

// secretForm is wider than a secret's form, so that two run together, a mistyped
// one, or one without its checksum are masked too.
var secretForm = regexp.MustCompile(`[0-9A-Za-z]*_[0-9A-Za-z]{32,}`)

// cleanText returns s as valid UTF-8 without control characters and secrets,
// cut to maxText bytes.
func cleanText(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == ' ' || unicode.IsGraphic(r) && !unicode.IsSpace(r) {
			return r
		}
		return utf8.RuneError
	}, s)
	s = secretForm.ReplaceAllString(s, "[secret]")
	return cutText(s, maxText)
}

// cutText returns s cut to so many bytes.
func cutText(s string, most int) string {
	if len(s) <= most {
		return s
	}
	const mark = "…"
	end := most - len(mark)
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + mark
}

func (e *Event) check() error {
	if e.Time.IsZero() {
		return errors.New("it has no time")
	}
	if err := e.Verb.check("verb"); err != nil {
		return err
	}
	if e.Actor.Via != "" {
		if err := e.Actor.Via.check("via"); err != nil {
			return err
		}
	}
	for _, t := range []*Token{e.Before, e.After} {
		if t == nil {
			continue
		}
		if t.State != "" {
			if err := t.State.check("state"); err != nil {
				return err
			}
		}
		for _, l := range t.Limits {
			if err := l.Kind.check("kind of limit"); err != nil {
				return err
			}
			if l.Per == "" {
				continue
			}
			if err := l.Per.check("window of limit"); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w Word) check(what string) error {
	for i, c := range []byte(w) {
		letter := 'a' <= c && c <= 'z'
		if !letter && (i == 0 || !('0' <= c && c <= '9' || c == '.' || c == '_' || c == '-')) {
			return fmt.Errorf("%s %.80q is not a lower-case name", what, string(w))
		}
	}
	if w == "" || len(w) > 64 {
		return fmt.Errorf("%s %.80q is empty or longer than 64 bytes", what, string(w))
	}
	return nil
}
