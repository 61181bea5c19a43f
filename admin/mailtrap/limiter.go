package mailtrap

import (
	"sync"
	"time"

	"tokenward/admin"
	"tokenward/tokenstore"
)

// maxCounted bounds the tokens that are counted one by one in a window. Those
// that come after them share a single count: they may be refused though each is
// below its limit, and none is let through above it.
const maxCounted = 1 << 16

// Limiter counts the requests of each token in windows that begin for all
// tokens at once, so that a window's counts are forgotten together.
type Limiter struct {
	limit int

	mu     sync.Mutex // guards all below
	window time.Time
	counts map[tokenstore.ID]int
	others int
}

// NewLimiter returns a limiter of how many requests a token may make in each
// Window; nil, which is no limit, for 0.
func NewLimiter(requests int) *Limiter {
	if requests <= 0 {
		return nil
	}
	return &Limiter{limit: requests, counts: make(map[tokenstore.ID]int)}
}

// take counts one request and returns how many more the window has room for.
func (l *Limiter) take(id tokenstore.ID, now time.Time) (remaining int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if window := now.Truncate(Window); !window.Equal(l.window) {
		l.window, l.counts, l.others = window, make(map[tokenstore.ID]int), 0
	}
	count := l.counts[id]
	own := count > 0 || len(l.counts) < maxCounted
	if !own {
		count = l.others
	}
	if count >= l.limit {
		return 0, &admin.Error{Kind: admin.KindRateLimited, RetryAfter: l.window.Add(Window).Sub(now)}
	}
	count++
	if own {
		l.counts[id] = count
	} else {
		l.others = count
	}
	return l.limit - count, nil
}
