package proxy

import (
	"strconv"
	"time"

	"tokenward/enforce"
	"tokenward/enforce/canon"
)

var (
	nameRateLimit       = []byte("RateLimit")
	nameRateLimitPolicy = []byte("RateLimit-Policy")
)

// limitFields are the fields of one answer about limits, with the memory that
// holds them.
type limitFields struct {
	left []enforce.Left
	text []byte
}

// tellLimits adds to every answer of the request what its limits are and what is
// left of them: of the one that refused it, or where the rules say so of all.
func (g *Guard) tellLimits(p *passage) {
	d := &p.decision
	p.limits.left = p.limits.left[:0]
	limited := d.Limited.Name != ""
	switch {
	case p.rules.LimitHeaders && d.Match.Token != nil && (limited || d.Reason == enforce.Allowed):
		p.limits.left = g.Engine.AppendLeft(p.limits.left, d.Match.Token, d.Route, p.started)
	case limited:
		p.limits.left = append(p.limits.left, d.Limited)
	}
	if len(p.limits.left) == 0 {
		return
	}
	text := appendPolicies(p.limits.text[:0], p.limits.left)
	middle := len(text)
	text = appendRemains(text, p.limits.left)
	p.limits.text = text
	p.extra = append(p.extra,
		canon.Field{Name: nameRateLimitPolicy, Value: text[:middle:middle]},
		canon.Field{Name: nameRateLimit, Value: text[middle:]})
}

// LimitFields returns the values of RateLimit-Policy and RateLimit for an answer
// that says what is left of these limits.
func LimitFields(left []enforce.Left) (policy, remains string) {
	return string(appendPolicies(nil, left)), string(appendRemains(nil, left))
}

// appendPolicies appends the value of RateLimit-Policy, a list of structured fields
// (draft-ietf-httpapi-ratelimit-headers, section 3).
func appendPolicies(dst []byte, left []enforce.Left) []byte {
	for i := range left {
		l := &left[i]
		dst = appendItem(dst, i, l.Name)
		dst = strconv.AppendUint(append(dst, ";q="...), min(l.Quota, maxInteger), 10)
		if l.Concurrent {
			dst = append(dst, `;qu="concurrent-requests"`...)
		}
		if l.Window > 0 {
			dst = strconv.AppendInt(append(dst, ";w="...), seconds(l.Window), 10)
		}
	}
	return dst
}

// appendRemains appends the value of RateLimit (section 4 there).
func appendRemains(dst []byte, left []enforce.Left) []byte {
	for i := range left {
		l := &left[i]
		dst = appendItem(dst, i, l.Name)
		dst = strconv.AppendUint(append(dst, ";r="...), min(l.Left, maxInteger), 10)
		if l.Reset > 0 {
			dst = strconv.AppendInt(append(dst, ";t="...), seconds(l.Reset), 10)
		}
	}
	return dst
}

// maxInteger is the greatest integer that structured fields know (RFC 9651, section
// 3.3.1): with a greater one the whole field is to be ignored.
const maxInteger = 999_999_999_999_999

func appendItem(dst []byte, i int, name string) []byte {
	if i > 0 {
		dst = append(dst, ", "...)
	}
	dst = append(dst, '"')
	dst = append(dst, name...)
	return append(dst, '"')
}

// seconds is d in whole seconds, rounded up: who waits so long has waited enough.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
