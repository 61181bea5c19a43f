package enforce

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"tokenward/tokenstore"
)

// limitShards divides the table so that requests of different tokens rarely
// wait for each other.
const limitShards = 64

// limitTable holds the rate limiters of the tokens in use. It is bounded: a
// limiter that has refilled is worth nothing and gives way; when none has, a
// further token is refused rather than an active limiter forgotten.
type limitTable struct {
	perShard int
	shards   [limitShards]limitShard
}

// limitShard's mutex guards everything below it and is held by one Admit at a
// time, for the length of a map access.
type limitShard struct {
	mu      sync.Mutex
	tokens  map[tokenstore.ID]*limiter
	evicted uint64
	refused uint64
	_       [24]byte
}

// limiter is one token's bucket and the limits it was made for.
type limiter struct {
	bucket *rate.Limiter
	rate   float64
	burst  uint64
}

func newLimitTable(maxTokens int) *limitTable {
	return &limitTable{perShard: max(1, maxTokens/limitShards)}
}

// admit takes one request from the token's bucket.
func (l *limitTable) admit(t *tokenstore.Token, now time.Time) (Reason, time.Duration) {
	if t.Limits.Rate == 0 {
		return Allowed, 0
	}
	bucket := l.bucket(t, now)
	if bucket == nil {
		return LimitsFull, time.Second
	}
	if bucket.AllowN(now, 1) {
		return Allowed, 0
	}
	missing := 1 - bucket.TokensAt(now)
	return RateLimited, time.Duration(missing / t.Limits.Rate * float64(time.Second))
}

func (l *limitTable) bucket(t *tokenstore.Token, now time.Time) *rate.Limiter {
	s := &l.shards[uint64(t.ID)%limitShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.tokens[t.ID]
	if one == nil {
		if len(s.tokens) >= l.perShard && !s.evictRefilled(now) {
			s.refused++
			return nil
		}
		if s.tokens == nil {
			s.tokens = make(map[tokenstore.ID]*limiter)
		}
		one = &limiter{bucket: rate.NewLimiter(rate.Limit(t.Limits.Rate), t.Limits.BurstInForce())}
		one.rate, one.burst = t.Limits.Rate, t.Limits.Burst
		s.tokens[t.ID] = one
	}
	if one.rate != t.Limits.Rate || one.burst != t.Limits.Burst { // the token was updated
		one.bucket.SetLimitAt(now, rate.Limit(t.Limits.Rate))
		one.bucket.SetBurstAt(now, t.Limits.BurstInForce())
		one.rate, one.burst = t.Limits.Rate, t.Limits.Burst
	}
	return one.bucket
}

// evictLooks is how many limiters are looked at to find one that may go: map
// order is random, so that the work is constant and no entry is favoured.
const evictLooks = 16

func (s *limitShard) evictRefilled(now time.Time) bool {
	looks := 0
	for id, one := range s.tokens {
		if one.bucket.TokensAt(now) >= float64(one.bucket.Burst()) {
			delete(s.tokens, id)
			s.evicted++
			return true
		}
		if looks++; looks == evictLooks {
			break
		}
	}
	return false
}

// LimitStats counts what the table of rate limiters did.
type LimitStats struct {
	Tokens  int    // limiters held now
	Evicted uint64 // refilled limiters that made room
	Refused uint64 // requests refused because no room could be made
}

func (l *limitTable) stats() LimitStats {
	var out LimitStats
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		out.Tokens += len(s.tokens)
		out.Evicted += s.evicted
		out.Refused += s.refused
		s.mu.Unlock()
	}
	return out
}
