package metrics

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// latency is a histogram of durations. Its bounds are powers of two of a
// second, subBuckets to the octave, between minExp and maxExp: what Prometheus
// calls a native histogram of that schema. Every octave from classicMin to
// classicMax is a bound of the classic form too, so one set of counters gives
// both exactly. (prometheus.Histogram does the same at a few times the cost,
// as it counts for both forms separately and finds its place by searching.)
type latency struct {
	buckets [octaves*subBuckets + 2]atomic.Uint64 // at the ends: all below and all above
	sum     atomic.Uint64                         // nanoseconds
}

const (
	schema     = 2
	subBuckets = 1 << schema
	minExp     = -17 // up to 7.6 µs nothing is told apart
	maxExp     = 9   // nor above 512 s
	octaves    = maxExp - minExp
	classicMin = -11 // 488 µs
	classicMax = 6   // 64 s
)

// inner holds, for each octave, the bounds within it, in nanoseconds.
var inner = innerBounds()

func innerBounds() (b [octaves][subBuckets - 1]time.Duration) {
	for o := range octaves {
		for q := range subBuckets - 1 {
			b[o][q] = time.Duration(math.Exp2(minExp+float64(o)+float64(q+1)/subBuckets) * float64(time.Second))
		}
	}
	return b
}

// observe counts d, which must not be negative.
func (l *latency) observe(d time.Duration) {
	l.buckets[bucketOf(d)].Add(1)
	l.sum.Add(uint64(d)) //nolint:gosec // not negative
}

// bucketOf returns the bucket of d: bucket i, but for the first and the last,
// holds what is above 2^(minExp+(i-1)/subBuckets) s and at most 2^(minExp+i/subBuckets) s.
func bucketOf(d time.Duration) int {
	if d <= 0 {
		return 0
	}
	if d > time.Second<<maxExp {
		return octaves*subBuckets + 1
	}
	units := (uint64(d)<<-minExp - 1) / uint64(time.Second) // whole 2^minExp s that end before d does
	octave := bits.Len64(units)
	if octave == 0 {
		return 0
	}
	i := (octave-1)*subBuckets + 1
	for _, bound := range inner[octave-1] {
		if d > bound {
			i++
		}
	}
	return i
}

// metric returns what has been observed, or nil if that is nothing.
func (l *latency) metric(d *prometheus.Desc, route string) prometheus.Metric {
	h := &histogram{desc: d, route: route}
	for i := range l.buckets {
		h.buckets[i] = l.buckets[i].Load()
		h.count += h.buckets[i]
	}
	if h.count == 0 {
		return nil
	}
	h.sum = float64(l.sum.Load()) / 1e9
	return h
}

// histogram is a latency at the moment of a scrape.
type histogram struct {
	desc    *prometheus.Desc
	route   string
	buckets [octaves*subBuckets + 2]uint64
	count   uint64
	sum     float64 // seconds
}

// Desc implements [prometheus.Metric].
func (h *histogram) Desc() *prometheus.Desc { return h.desc }

// Write implements [prometheus.Metric], in the classic and the native form at once.
func (h *histogram) Write(m *dto.Metric) error {
	out := &dto.Histogram{
		SampleCount:   new(h.count),
		SampleSum:     new(h.sum),
		Schema:        new(int32(schema)),
		ZeroThreshold: new(math.Exp2(minExp)),
		ZeroCount:     new(h.buckets[0]),
	}
	cumulative, next := uint64(0), 0
	for exp := classicMin; exp <= classicMax; exp++ {
		for ; next <= (exp-minExp)*subBuckets; next++ {
			cumulative += h.buckets[next]
		}
		out.Bucket = append(out.Bucket, &dto.Bucket{CumulativeCount: new(cumulative), UpperBound: new(math.Exp2(float64(exp)))})
	}
	// Native buckets are given as runs of used ones, each count as the
	// difference from the one before.
	last, previous := -1, int64(0)
	for i := 1; i < len(h.buckets); i++ {
		if h.buckets[i] == 0 {
			continue
		}
		if n := len(out.PositiveSpan); n > 0 && i == last+1 {
			*out.PositiveSpan[n-1].Length++
		} else {
			offset := int32(i - last - 1)
			if n == 0 {
				offset = int32(minExp*subBuckets + i)
			}
			out.PositiveSpan = append(out.PositiveSpan, &dto.BucketSpan{Offset: new(offset), Length: new(uint32(1))})
		}
		out.PositiveDelta = append(out.PositiveDelta, int64(h.buckets[i])-previous) //nolint:gosec // a count of requests
		last, previous = i, int64(h.buckets[i])                                     //nolint:gosec // a count of requests
	}
	m.Label = []*dto.LabelPair{{Name: new("route"), Value: new(h.route)}}
	m.Histogram = out
	return nil
}
