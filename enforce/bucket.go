package enforce

import "time"

// bucket is a token bucket: it refills at a rate up to a burst, and each request takes
// one. The zero bucket is not made yet. When the clock goes back, nothing is refilled
// for the time in between. Its owner's lock guards it, which is why it is not
// x/time/rate: that has a lock and memory of its own, two more cache lines for each
// request.
type bucket struct {
	level float64 // at moment at
	at    int64   // nanoseconds since 1970
	rate  float64 // per second; 0: not made
	burst uint64
}

// overtaking bounds how far apart in time two requests that overtake one another can
// be. A time from further back means that the clock was set back.
const overtaking = int64(time.Minute)

// follow makes the bucket refill from now on where the clock was set back: otherwise
// it would wait until the clock has caught up.
func (b *bucket) follow(now int64) {
	if b.at-now > overtaking {
		b.at = now
	}
}

// make makes the bucket full, or adapts it where the limit was changed: what it
// holds then stays, up to the new burst.
func (b *bucket) make(now int64, rate float64, burst uint64) {
	b.follow(now)
	if b.rate == rate && b.burst == burst {
		return
	}
	if b.rate == 0 {
		b.level = float64(burst)
	} else {
		b.level = min(b.levelAt(now), float64(burst))
	}
	b.at, b.rate, b.burst = max(b.at, now), rate, burst
}

// levelAt is how many requests the bucket has room for.
func (b *bucket) levelAt(now int64) float64 {
	if now <= b.at {
		return b.level
	}
	return min(b.level+float64(now-b.at)/float64(time.Second)*b.rate, float64(b.burst))
}

// missing is how long it takes until there is room for one; 0: there is.
func (b *bucket) missing(now int64) time.Duration {
	level := b.levelAt(now)
	if level >= 1 {
		return 0
	}
	return time.Duration((1 - level) / b.rate * float64(time.Second)) // less than a nanosecond is nothing
}

// take takes one, if that is there.
func (b *bucket) take(now int64) {
	b.level, b.at = max(0, b.levelAt(now)-1), max(b.at, now)
}

// full reports whether the bucket has nothing to remember.
func (b *bucket) full(now int64) bool { return b.rate == 0 || b.levelAt(now) >= float64(b.burst) }
