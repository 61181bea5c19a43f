package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"tokenward/metrics"
)

// clock tells the time by which tokens begin and end. It runs by the steady clock
// of the process from where the machine's stood at the start, so that setting the
// machine's clock neither revives what has ended nor ends what has not. Where the
// two depart it follows the machine only after they have been apart by the same
// for clockAgreement: a step that is taken back leaves no trace. It never tells a
// time earlier than floor.
//
// All methods may be called at once from many goroutines.
type clock struct {
	wall   func() time.Time     // the machine's
	steady func() time.Duration // since some fixed moment
	log    *slog.Logger
	floor  time.Time // the last time that the store heard of before this process

	base atomic.Pointer[clockBase]

	mu       sync.Mutex // guards what follows; held for moments
	apart    bool
	since    time.Duration // by steady: from when on the departure was what it is
	by       time.Duration // that departure: what the machine's clock is ahead
	alarmed  bool
	leapt    bool          // the time went forward by more than clockAlarm
	leaptAt  time.Duration // by steady
	even     time.Time     // from when on the time has not leapt, either way
	adopted  uint64
	hindered bool // the machine's clock is behind floor
}

// clockBase is a moment by both clocks.
type clockBase struct {
	at     time.Time
	steady time.Duration
}

const (
	// clockAlarm is a departure that somebody should look at.
	clockAlarm = 5 * time.Minute
	// clockSlack is what two readings may differ by for nothing: a clock that is
	// being slewed by NTP drifts by half of it in an agreement.
	clockSlack = time.Second
	// clockAgreement is how long a departure has to stay the same to be believed.
	clockAgreement = 10 * time.Minute
	// clockEvery is how often the two are compared.
	clockEvery = 5 * time.Second
	// calmAfterLeap is how long nothing is swept after the time leapt forward.
	calmAfterLeap = 10 * time.Minute
)

// newClock returns a clock that begins at what wall says, but not before floor.
func newClock(wall func() time.Time, steady func() time.Duration, floor time.Time, log *slog.Logger) *clock {
	c := &clock{wall: wall, steady: steady, log: log, floor: floor}
	at := c.reading()
	if at.Before(floor) {
		at = floor
	}
	c.base.Store(&clockBase{at: at, steady: steady()})
	c.even = at
	return c
}

// steadyClock returns the steady clock of the machine, from now on.
func steadyClock() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}

func (c *clock) reading() time.Time { return c.wall().Round(0).UTC() }

// Now returns the time. It does not allocate and takes no lock.
func (c *clock) Now() time.Time {
	b := c.base.Load()
	return b.at.Add(c.steady() - b.steady)
}

// run compares the clocks until ctx ends.
func (c *clock) run(ctx context.Context) {
	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	for {
		c.compare()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// compare looks at both clocks and adopts the machine's if it is to be believed.
func (c *clock) compare() {
	c.mu.Lock()
	defer c.mu.Unlock()
	steady, now, wall := c.steady(), c.Now(), c.reading()
	by := wall.Sub(now)
	c.hindered = wall.Before(c.floor)
	if by.Abs() < clockSlack {
		if c.alarmed {
			c.log.Info("the machine's clock agrees again with the time that tokens are judged by")
		}
		c.apart, c.alarmed = false, false
		return
	}
	if !c.apart || (by-c.by).Abs() >= clockSlack {
		c.apart, c.since, c.by = true, steady, by
	}
	if by.Abs() > clockAlarm && !c.alarmed {
		c.alarmed = true
		c.log.Error("the machine's clock differs from the time that tokens are judged by: if the clock is right, do nothing; else set it right",
			"machine", wall, "time", now, "adopted_after", clockAgreement.String(), "not_before", c.floor)
	}
	if steady-c.since < clockAgreement || c.hindered {
		return
	}
	c.base.Store(&clockBase{at: wall, steady: steady})
	c.adopted++
	if by > clockAlarm {
		c.leapt, c.leaptAt = true, steady
	}
	if by.Abs() > clockAlarm {
		c.even = wall
		c.log.Warn("the machine's clock was adopted", "was", now, "is", wall)
	}
	c.apart, c.alarmed = false, false
}

// calm reports whether the time has not leapt forward for a while, so that what
// lies long back by it may be swept. Before such a while has passed since the
// start it does not: the leap may have been while nobody looked.
func (c *clock) calm() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	steady := c.steady()
	return !c.alarmed && steady >= calmAfterLeap && (!c.leapt || steady-c.leaptAt >= calmAfterLeap)
}

// evenSince is from when on what lies between two times has passed, and was heard of:
// since the start, or the last leap.
func (c *clock) evenSince() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.even
}

// check is the clock's part of readiness.
func (c *clock) check() (metrics.State, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.alarmed {
		return metrics.Passing, ""
	}
	if c.hindered {
		return metrics.Warning, fmt.Sprintf("the machine's clock is earlier than the last write to the store (%s), and tokens are judged by no earlier time than that: set the clock right, or see Time in docs/operations.md", c.floor.Format(time.RFC3339))
	}
	return metrics.Warning, fmt.Sprintf("the machine's clock differs by %s from the time that tokens are judged by: see the log", c.by.Round(time.Second))
}

// stats are for metrics.
func (c *clock) stats() metrics.ClockStats {
	by := c.reading().Sub(c.Now())
	c.mu.Lock()
	defer c.mu.Unlock()
	return metrics.ClockStats{Departure: by, Alarmed: c.alarmed, Adopted: c.adopted}
}
