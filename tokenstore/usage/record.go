package usage

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"tokenward/tokenstore"
)

// Record is what is known of the use of a token.
type Record struct {
	Uses    uint64    // requests that were let through, over the token's whole life
	Last    time.Time // when the last of them was; zero: never
	Secrets []Secret  // by which, the one used last first; at most maxSecrets
	Routes  []string  // patterns of the routes that were taken, sorted
	Scopes  []string  // scopes that those routes asked for at the time, sorted
	// More says that Routes and Scopes are not all: the token took more of them
	// than are kept.
	More bool
}

// Secret is what is known of the use of one of a token's secrets.
type Secret struct {
	Key       Key
	Uses      uint64
	Last      time.Time
	From      netip.Addr // of the last use; invalid: not known
	UserAgent string     // likewise, as the client claims, printable, at most 128 characters
	Route     string     // likewise, the pattern; empty: none
}

// Key tells the secrets of one token apart.
type Key uint64

// KeyOf returns the key of the secret with this digest.
func KeyOf(d tokenstore.Digest) Key { return Key(binary.BigEndian.Uint64(d[:])) }

// Of returns what is known of one secret's use; the zero Secret where it was never
// used.
func (r *Record) Of(d tokenstore.Digest) Secret {
	key := KeyOf(d)
	for _, s := range r.Secrets {
		if s.Key == key {
			return s
		}
	}
	return Secret{}
}

// Exercised reports whether a scope that a token has was ever asked for: one
// that ends in `*` stands for all that it covers.
func (r *Record) Exercised(scope string) bool {
	t := &tokenstore.Token{Scopes: []string{scope}}
	return slices.ContainsFunc(r.Scopes, t.HasScope)
}

const (
	// maxSecrets bounds the secrets of a record: a token has two at a time.
	maxSecrets = 4
	// maxNames bounds the routes and the scopes of a record.
	maxNames = 512
	// maxAgent bounds the characters of a user agent that are kept, and rawAgent the
	// bytes that are looked at: what begins in the first may be a secret, which can
	// be told only by its whole length.
	maxAgent = 128
	rawAgent = 192

	recordVersion = 1
)

var errRecord = errors.New("the usage of a token is not readable")

// stored is a record with names by number.
type stored struct {
	uses    uint64
	last    int64 // Unix milliseconds; 0: never
	secrets []storedSecret
	names   []uint32 // of routes and scopes, ascending
	more    bool
}

type storedSecret struct {
	key   Key
	uses  uint64
	last  int64
	from  netip.Addr
	agent string
	route uint32 // number of the name; 0: none
}

// encode returns the form in the store. Equal records have equal forms.
func (r *stored) encode() []byte {
	b := []byte{recordVersion}
	b = binary.AppendUvarint(b, r.uses)
	b = binary.AppendUvarint(b, uint64(r.last)) //nolint:gosec // not before 1970
	more := byte(0)
	if r.more {
		more = 1
	}
	b = append(b, more)
	b = binary.AppendUvarint(b, uint64(len(r.names)))
	before := uint32(0)
	for _, n := range r.names {
		b = binary.AppendUvarint(b, uint64(n-before))
		before = n
	}
	b = binary.AppendUvarint(b, uint64(len(r.secrets)))
	for i := range r.secrets {
		s := &r.secrets[i]
		b = binary.BigEndian.AppendUint64(b, uint64(s.key))
		b = binary.AppendUvarint(b, s.uses)
		b = binary.AppendUvarint(b, uint64(s.last)) //nolint:gosec // not before 1970
		b = binary.AppendUvarint(b, uint64(s.route))
		from := s.from.AsSlice()
		b = append(b, byte(len(from))) //nolint:gosec // 0, 4 or 16
		b = append(b, from...)
		b = append(b, byte(len(s.agent))) //nolint:gosec // at most maxAgent
		b = append(b, s.agent...)
	}
	return b
}

// decode reads what encode wrote; nothing is the empty record. What it accepts
// encodes to the same bytes.
func decode(b []byte) (stored, error) {
	var r stored
	if len(b) == 0 {
		return r, nil
	}
	d := decoder{b: b}
	if d.byte() != recordVersion {
		return stored{}, errRecord
	}
	r.uses, r.last = d.uint(), d.millis()
	more := d.byte()
	r.more = more == 1
	n := d.uint()
	if n > 2*maxNames || more > 1 {
		return stored{}, errRecord
	}
	for before := uint64(0); n > 0 && !d.failed; n-- {
		step := d.uint()
		if step == 0 || step > 1<<31 || before+step > 1<<31 {
			return stored{}, errRecord
		}
		before += step
		r.names = append(r.names, uint32(before)) //nolint:gosec // checked above
	}
	if n = d.uint(); n > maxSecrets {
		return stored{}, errRecord
	}
	for ; n > 0 && !d.failed; n-- {
		r.secrets = append(r.secrets, d.secret())
	}
	if d.failed || len(d.b) > 0 {
		return stored{}, errRecord
	}
	return r, nil
}

// decoder reads forward and remembers failure.
type decoder struct {
	b      []byte
	failed bool
}

func (d *decoder) take(n int) []byte {
	if d.failed || n > len(d.b) {
		d.failed = true
		return nil
	}
	part := d.b[:n]
	d.b = d.b[n:]
	return part
}

func (d *decoder) byte() byte {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if d.failed || n <= 0 || n > 1 && d.b[n-1] == 0 { // the last: not the shortest form
		d.failed = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) millis() int64 {
	v := d.uint()
	if v > uint64(tokenstore.MaxTime().UnixMilli()) { //nolint:gosec // far after 1970
		d.failed = true
		return 0
	}
	return int64(v) //nolint:gosec // checked above
}

func (d *decoder) secret() storedSecret {
	var s storedSecret
	if k := d.take(8); k != nil {
		s.key = Key(binary.BigEndian.Uint64(k))
	}
	s.uses, s.last = d.uint(), d.millis()
	route := d.uint()
	size := int(d.byte())
	if route > 1<<31 || size != 0 && size != 4 && size != 16 {
		d.failed = true
		return s
	}
	s.route = uint32(route) //nolint:gosec // checked above
	s.from, _ = netip.AddrFromSlice(d.take(size))
	agent := d.take(int(d.byte()))
	s.agent = string(agent)
	if len(s.agent) > maxAgent || s.agent != printable(s.agent) {
		d.failed = true
	}
	return s
}

// merge adds what was gathered since.
func (r *stored) merge(add *stored) {
	r.uses += add.uses
	r.last = max(r.last, add.last)
	r.more = r.more || add.more
	for i := range add.secrets {
		r.mergeSecret(&add.secrets[i])
	}
	slices.SortStableFunc(r.secrets, func(a, b storedSecret) int {
		switch {
		case a.last > b.last:
			return -1
		case a.last < b.last:
			return 1
		}
		return 0
	})
	r.secrets = r.secrets[:min(len(r.secrets), maxSecrets)]
	for _, n := range add.names {
		r.addName(n)
	}
}

func (r *stored) mergeSecret(add *storedSecret) {
	for i := range r.secrets {
		if s := &r.secrets[i]; s.key == add.key {
			uses := s.uses + add.uses
			if add.last >= s.last {
				*s = *add
			}
			s.uses = uses
			return
		}
	}
	r.secrets = append(r.secrets, *add)
}

func (r *stored) addName(n uint32) {
	at, found := slices.BinarySearch(r.names, n)
	switch {
	case found:
	case len(r.names) >= maxNames:
		r.more = true
	default:
		r.names = slices.Insert(r.names, at, n)
	}
}

// named returns the record with the names that names gives.
func (r *stored) named(names *names) Record {
	out := Record{Uses: r.uses, Last: instant(r.last), More: r.more}
	for i := range r.secrets {
		s := &r.secrets[i]
		route, _ := names.of(s.route)
		out.Secrets = append(out.Secrets, Secret{
			Key: s.key, Uses: s.uses, Last: instant(s.last), From: s.from, UserAgent: s.agent, Route: route.text,
		})
	}
	for _, n := range r.names {
		switch name, ok := names.of(n); {
		case !ok:
			out.More = true
		case name.kind == kindRoute:
			out.Routes = append(out.Routes, name.text)
		default:
			out.Scopes = append(out.Scopes, name.text)
		}
	}
	slices.Sort(out.Routes)
	slices.Sort(out.Scopes)
	return out
}

func instant(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// secretForm is what one of our secrets may look like.
var secretForm = regexp.MustCompile(`[0-9A-Za-z]*_[0-9A-Za-z]{32,}`)

// printable is a client's text as it is kept: printable ASCII, what looks like a
// secret masked, at most maxAgent characters.
func printable(raw string) string {
	s := raw
	if strings.IndexFunc(raw, unprintable) >= 0 {
		clean := []byte(raw)
		for i, c := range clean {
			if unprintable(rune(c)) {
				clean[i] = '?'
			}
		}
		s = string(clean)
	}
	if strings.IndexByte(s, '_') >= 0 {
		s = secretForm.ReplaceAllString(s, "[secret]")
	}
	return s[:min(len(s), maxAgent)]
}

func unprintable(c rune) bool { return c < ' ' || c > '~' }
