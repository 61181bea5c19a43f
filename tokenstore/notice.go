package tokenstore

import (
	"encoding/binary"
	"math"
	"time"
)

// NotWarned is the days of a [Notice] before any warning.
const NotWarned = math.MaxUint16

// Notice says of which warnings before its end a token has had its share: each is
// known by the days before the end from which on it is due.
type Notice struct {
	End  time.Time // which end it is about; for another one all begins anew
	Told int       // the last warning in the audit log
	Sent int       // the last that a receiver took
}

// Append appends the stored form of the notice.
func (n *Notice) Append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, millis(n.End))
	dst = binary.BigEndian.AppendUint16(dst, uint16(n.Told))  //nolint:gosec // at most NotWarned
	return binary.BigEndian.AppendUint16(dst, uint16(n.Sent)) //nolint:gosec // likewise
}

// ParseNotice reads what Append wrote; what is about another end than this, or is
// nothing, is a notice of no warning.
func ParseNotice(stored []byte, end time.Time) Notice {
	n := Notice{End: end, Told: NotWarned, Sent: NotWarned}
	if len(stored) == 12 && binary.BigEndian.Uint64(stored) == millis(end) {
		n.Told, n.Sent = int(binary.BigEndian.Uint16(stored[8:])), int(binary.BigEndian.Uint16(stored[10:]))
	}
	return n
}

func millis(t time.Time) uint64 { return uint64(max(0, t.UnixMilli())) } //nolint:gosec // not negative
