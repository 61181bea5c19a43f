package tokenstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// The first byte of every record says which fields it has. A new field means a
// new version, a case in DecodeRecord that still reads the old one, and a fuzz
// seed. A record is written in the oldest version that holds what it has to say.
const (
	recordPlain   = 1
	recordSilence = 2 // secrets have Silence, at least one of them more than none
	recordLineage = 3 // there is a Lineage, and secrets have Silence
)

// ErrRecord says that stored bytes are no record of a token.
var ErrRecord = errors.New("record is damaged: restore the store from a backup")

// EncodeRecord appends the stored form of t to dst: a version byte and the
// fields in a fixed order, so that equal tokens have equal records. Times keep
// milliseconds. It fails only for a token that [Token.Validate] refuses.
func EncodeRecord(dst []byte, t *Token) ([]byte, error) {
	if faults := t.Validate(); len(faults) > 0 {
		return nil, fmt.Errorf("encode token %d: %w", t.ID, faults)
	}
	version := recordVersion(t)
	w := recordWriter{append(dst, version)}
	w.uint(uint64(t.ID))
	w.uint(t.Account)
	w.uint(t.Owner)
	w.text(t.Name)
	w.byte(byte(t.State))
	w.uint(t.Revision)
	w.time(t.NotBefore)
	w.expiry(t.Expiry)
	w.time(t.CreatedAt)
	w.time(t.UpdatedAt)
	w.time(t.EndedAt)
	w.uint(uint64(t.Creator.ID))
	w.text(t.Creator.Name)
	w.uint(uint64(t.ReplacedBy))
	if version >= recordLineage {
		w.uint(uint64(t.Lineage))
	}
	w.uint(uint64(len(t.Scopes)))
	for _, s := range t.Scopes {
		w.text(s)
	}
	w.bool(t.Resources.All)
	w.uint(uint64(len(t.Resources.Grants)))
	for _, g := range t.Resources.Grants {
		w.text(g.Type)
		w.text(g.ID)
		w.byte(byte(g.Level))
	}
	w.bool(t.Sources.Any)
	w.prefixes(t.Sources.Allow)
	w.prefixes(t.Sources.Deny)
	w.text(t.Sources.Text)
	w.uint(math.Float64bits(t.Limits.Rate))
	w.uint(t.Limits.Burst)
	w.uint(t.Limits.Uses)
	w.uint(t.Limits.Concurrent)
	w.uint(uint64(len(t.Limits.Quotas)))
	for _, q := range t.Limits.Quotas {
		w.uint(q.Count)
		w.byte(byte(q.Per))
	}
	w.uint(uint64(len(t.Secrets)))
	for _, s := range t.Secrets {
		w.b = append(w.b, s.Digest[:]...)
		w.b = append(w.b, s.Pepper[:]...)
		w.byte(byte(s.Scheme))
		w.text(s.Last4)
		w.time(s.CreatedAt)
		w.expiry(s.Ends)
		if version >= recordSilence {
			w.uint(uint64(s.Silence / time.Second)) //nolint:gosec // Validate bounds it
		}
	}
	return w.b, nil
}

// recordVersion is the oldest version that holds what the token has to say.
func recordVersion(t *Token) byte {
	switch {
	case t.Lineage != 0:
		return recordLineage
	case t.AwaitsSilence():
		return recordSilence
	}
	return recordPlain
}

// DecodeRecord reads what EncodeRecord wrote. The token shares no memory with
// b. Every record it accepts encodes back to the same bytes.
func DecodeRecord(b []byte) (*Token, error) {
	if len(b) == 0 {
		return nil, ErrRecord
	}
	version := b[0]
	if version < recordPlain || version > recordLineage {
		return nil, fmt.Errorf("record has version %d, this program reads up to %d: use the newer program that wrote it", version, recordLineage)
	}
	r := recordReader{b: b[1:], s: string(b[1:])}
	read := &roomyToken{Token: Token{
		ID: ID(r.uint()), Account: r.uint(), Owner: r.uint(), Name: r.text(),
		State: State(r.byte()), Revision: r.uint(),
		NotBefore: r.time(), Expiry: r.expiry(),
		CreatedAt: r.time(), UpdatedAt: r.time(), EndedAt: r.time(),
		Creator:    Creator{ID: ID(r.uint()), Name: r.text()},
		ReplacedBy: ID(r.uint()),
	}}
	t, room := &read.Token, &read.room
	if version >= recordLineage {
		t.Lineage = ID(r.uint())
	}
	if n := r.count(1); n > 0 {
		t.Scopes = take(room.scopes[:], n)
		for i := range t.Scopes {
			t.Scopes[i] = r.text()
		}
	}
	t.Resources.All = r.bool()
	if n := r.count(3); n > 0 {
		t.Resources.Grants = take(room.grants[:], n)
		for i := range t.Resources.Grants {
			t.Resources.Grants[i] = Grant{Type: r.text(), ID: r.text(), Level: Level(r.byte())}
		}
	}
	t.Sources = Sources{Any: r.bool(), Allow: r.prefixes(room.allow[:]), Deny: r.prefixes(nil), Text: r.text()}
	t.Limits = Limits{Rate: math.Float64frombits(r.uint()), Burst: r.uint(), Uses: r.uint(), Concurrent: r.uint()}
	if n := r.count(2); n > 0 {
		t.Limits.Quotas = make([]Quota, n)
		for i := range t.Limits.Quotas {
			t.Limits.Quotas[i] = Quota{Count: r.uint(), Per: Window(r.byte())}
		}
	}
	if n := r.count(len(Digest{})); n > 0 {
		t.Secrets = take(room.secrets[:], n)
		for i := range t.Secrets {
			s := &t.Secrets[i]
			r.bytes(s.Digest[:])
			r.bytes(s.Pepper[:])
			s.Scheme, s.Last4, s.CreatedAt, s.Ends = Scheme(r.byte()), r.text(), r.time(), r.expiry()
			if version >= recordSilence {
				s.Silence = r.seconds()
			}
		}
	}
	if r.failed || len(r.b) != 0 || version != recordVersion(t) || len(t.Validate()) > 0 {
		return nil, ErrRecord
	}
	return t, nil
}

// roomyToken is a token that takes one allocation with what most hold beside it.
type roomyToken struct {
	Token
	room listRoom
}

// listRoom has room for the lists of most tokens.
type listRoom struct {
	scopes  [4]string
	grants  [2]Grant
	allow   [2]netip.Prefix
	secrets [1]SecretRecord
}

// take gives n elements: of room, if that has so many.
func take[T any](room []T, n int) []T {
	if n > len(room) {
		return make([]T, n)
	}
	return room[:n:n]
}

type recordWriter struct{ b []byte }

func (w *recordWriter) uint(n uint64) { w.b = binary.AppendUvarint(w.b, n) }
func (w *recordWriter) byte(c byte)   { w.b = append(w.b, c) }

func (w *recordWriter) bool(v bool) {
	c := byte(0)
	if v {
		c = 1
	}
	w.byte(c)
}

func (w *recordWriter) text(s string) {
	w.uint(uint64(len(s)))
	w.b = append(w.b, s...)
}

// time writes milliseconds since 1970 plus one, and zero for the zero Time, so
// that absence stays absence.
func (w *recordWriter) time(t time.Time) {
	if t.IsZero() {
		w.uint(0)
		return
	}
	w.uint(uint64(t.UnixMilli()) + 1) //nolint:gosec // Validate refuses times before 1970
}

func (w *recordWriter) expiry(e Expiry) {
	w.bool(e.Never)
	if !e.Never {
		w.time(e.At)
	}
}

func (w *recordWriter) prefixes(ps []netip.Prefix) {
	w.uint(uint64(len(ps)))
	for _, p := range ps {
		addr := p.Addr().AsSlice()
		w.byte(byte(len(addr))) //nolint:gosec // 0, 4 or 16
		w.b = append(w.b, addr...)
		w.byte(byte(p.Bits())) //nolint:gosec // 0 to 128
	}
}

// recordReader reads forward and remembers failure instead of returning it at
// every step. b and s always hold the same bytes.
type recordReader struct {
	b      []byte
	s      string
	failed bool
}

func (r *recordReader) fail() {
	r.failed, r.b, r.s = true, nil, ""
}

func (r *recordReader) skip(n int) { r.b, r.s = r.b[n:], r.s[n:] }

func (r *recordReader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 { // the second: not the shortest form
		r.fail()
		return 0
	}
	r.skip(n)
	return v
}

func (r *recordReader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	c := r.b[0]
	r.skip(1)
	return c
}

func (r *recordReader) bool() bool {
	c := r.byte()
	if c > 1 {
		r.fail()
	}
	return c == 1
}

// count reads a number of items that each take at least size bytes.
func (r *recordReader) count(size int) int {
	n := r.uint()
	if n > uint64(len(r.b)/size) { //nolint:gosec // lengths are not negative
		r.fail()
		return 0
	}
	return int(n) //nolint:gosec // bounded by the line above
}

func (r *recordReader) text() string {
	n := r.count(1)
	s := r.s[:n]
	r.skip(n)
	return s
}

func (r *recordReader) bytes(dst []byte) {
	if len(r.b) < len(dst) {
		r.fail()
		return
	}
	copy(dst, r.b)
	r.skip(len(dst))
}

func (r *recordReader) time() time.Time {
	n := r.uint()
	if n == 0 {
		return time.Time{}
	}
	if n-1 > uint64(maxTime.UnixMilli()) {
		r.fail()
		return time.Time{}
	}
	return time.UnixMilli(int64(n - 1)).UTC() //nolint:gosec // bounded by the line above
}

func (r *recordReader) seconds() time.Duration {
	n := r.uint()
	if n > uint64(MaxSilence/time.Second) {
		r.fail()
		return 0
	}
	return time.Duration(n) * time.Second //nolint:gosec // bounded by the line above
}

func (r *recordReader) expiry() Expiry {
	if r.bool() {
		return Never()
	}
	return EndsAt(r.time())
}

func (r *recordReader) prefixes(room []netip.Prefix) []netip.Prefix {
	n := r.count(6)
	if n == 0 {
		return nil
	}
	ps := take(room, n)
	for i := range ps {
		var buf [16]byte
		size := int(r.byte())
		if size != 4 && size != 16 {
			r.fail()
			return nil
		}
		r.bytes(buf[:size])
		addr, _ := netip.AddrFromSlice(buf[:size])
		ps[i] = netip.PrefixFrom(addr, int(r.byte()))
	}
	return ps
}
