package tokenstore

import (
	"strconv"
	"time"
)

// ParseTime reads a date-time in any form that RFC 3339 section 5.6 allows; a
// leap second names an instant that Go's time does not have, and is refused. The
// result is in UTC, cut to milliseconds.
func ParseTime(s string) (time.Time, bool) {
	const shape = "0000-00-00T00:00:00"
	if len(s) <= len(shape) {
		return time.Time{}, false
	}
	b := []byte(s)
	if b[10] == 't' || b[10] == ' ' {
		b[10] = 'T'
	}
	for i := range len(shape) {
		if digit := b[i] >= '0' && b[i] <= '9'; digit != (shape[i] == '0') || !digit && b[i] != shape[i] {
			return time.Time{}, false
		}
	}
	rest := b[len(shape):]
	if rest[0] == '.' {
		n := 1
		for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
			n++
		}
		if n == 1 {
			return time.Time{}, false
		}
		rest = rest[n:]
	}
	if len(rest) == 1 && rest[0] == 'z' {
		rest[0] = 'Z'
	}
	if !(len(rest) == 1 && rest[0] == 'Z') && !isOffset(rest) {
		return time.Time{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(b))
	if err != nil {
		return time.Time{}, false
	}
	return t.UTC().Truncate(time.Millisecond), true
}

// isOffset reports whether b is a numeric time zone, `+01:00`.
func isOffset(b []byte) bool {
	if len(b) != 6 || b[0] != '+' && b[0] != '-' || b[3] != ':' {
		return false
	}
	hour, herr := strconv.ParseUint(string(b[1:3]), 10, 8)
	minute, merr := strconv.ParseUint(string(b[4:6]), 10, 8)
	return herr == nil && merr == nil && hour <= 23 && minute <= 59
}
