package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"tokenward/enforce"
	"tokenward/tokenstore"
)

// LimitsConfig are limits over several tokens, and what clients are told of them.
type LimitsConfig struct {
	Account SharedLimitsConfig `yaml:"account" reload:"yes"`
	Owner   SharedLimitsConfig `yaml:"owner" reload:"yes"`
	// Headers says which answers have RateLimit fields: refused or all.
	Headers string `yaml:"headers" reload:"yes"`
}

// SharedLimitsConfig bounds what several tokens do together; 0: no limit.
type SharedLimitsConfig struct {
	Rate       requestRate `yaml:"rate"`
	Burst      uint64      `yaml:"burst"` // needs Rate; 0: what one second refills
	Concurrent uint64      `yaml:"concurrent"`
	PerMinute  uint64      `yaml:"per_minute"`
	PerHour    uint64      `yaml:"per_hour"`
	PerDay     uint64      `yaml:"per_day"`
	PerMonth   uint64      `yaml:"per_month"`
}

// FailuresConfig is [enforce.FailureLimit].
type FailuresConfig struct {
	PerMinute int `yaml:"per_minute" reload:"yes"` // to 1,000,000; 0: no limit
	Burst     int `yaml:"burst" reload:"yes"`      // likewise; 0: as PerMinute
}

// requestRate is a number of requests in a second.
type requestRate float64

// errRate says what a rate is not.
var errRate = errors.New("is not a rate")

// parseRate reads 10/s, 600/m or 5000/h: digits, and what they are for.
func parseRate(s string) (requestRate, error) {
	digits, per, ok := strings.Cut(s, "/")
	if s == "0" {
		return 0, nil
	}
	seconds := map[string]float64{"s": 1, "m": 60, "h": 3600, "d": 86400}[per]
	n, err := strconv.ParseUint(digits, 10, 32)
	if !ok || err != nil || seconds == 0 || !isDecimal(digits) || n == 0 {
		return 0, errRate
	}
	if float64(n)/seconds > maxRate {
		return 0, fmt.Errorf("is more than %d/s", uint64(maxRate))
	}
	return requestRate(float64(n) / seconds), nil
}

// maxRate is what a token can be limited to, too.
const maxRate = 1e9

func (c *SharedLimitsConfig) limits() tokenstore.Limits {
	l := tokenstore.Limits{Rate: float64(c.Rate), Burst: c.Burst, Concurrent: c.Concurrent}
	for _, q := range []tokenstore.Quota{
		{Count: c.PerMinute, Per: tokenstore.PerMinute}, {Count: c.PerHour, Per: tokenstore.PerHour},
		{Count: c.PerDay, Per: tokenstore.PerDay}, {Count: c.PerMonth, Per: tokenstore.PerMonth},
	} {
		if q.Count > 0 {
			l.Quotas = append(l.Quotas, q)
		}
	}
	return l
}

// limitOptions are the limits for [enforce.Engine.SetLimits].
func (c *Config) limitOptions() enforce.LimitOptions {
	return enforce.LimitOptions{
		Account: c.Enforce.Limits.Account.limits(),
		Owner:   c.Enforce.Limits.Owner.limits(),
		Failures: enforce.FailureLimit{
			PerMinute: uint64(c.Enforce.Failures.PerMinute), //nolint:gosec // checked: not negative
			Burst:     uint64(c.Enforce.Failures.Burst),     //nolint:gosec // likewise
		},
	}
}

func (d *decoder) checkLimits(c *Config) {
	d.count("enforce.failures.per_minute", int64(c.Enforce.Failures.PerMinute), 0, 1_000_000)
	d.count("enforce.failures.burst", int64(c.Enforce.Failures.Burst), 0, 1_000_000)
	d.choice("enforce.limits.headers", c.Enforce.Limits.Headers)
	d.checkShared("enforce.limits.account", &c.Enforce.Limits.Account)
	d.checkShared("enforce.limits.owner", &c.Enforce.Limits.Owner)
	for i := range c.Routes {
		l := &c.Routes[i].Limits
		d.checkShared(itemPath("routes", i)+".limits", &SharedLimitsConfig{Rate: l.Rate, Burst: l.Burst, Concurrent: l.Concurrent})
	}
}

func (d *decoder) checkShared(path string, l *SharedLimitsConfig) {
	for key, n := range map[string]uint64{"burst": l.Burst, "concurrent": l.Concurrent, "per_minute": l.PerMinute, "per_hour": l.PerHour, "per_day": l.PerDay, "per_month": l.PerMonth} {
		if at := path + "." + key; n > math.MaxUint32 && d.sound(at) {
			d.report(at, ruleBounds, fmt.Sprintf("%d is out of bounds", n), fmt.Sprintf("write 0 to %d", uint32(math.MaxUint32)))
		}
	}
	if d.sound(path) && l.Burst != 0 && l.Rate == 0 {
		d.report(path+".burst", ruleBounds, "a burst is how many requests of a rate may come at once, and there is no rate", "write rate as well, such as `rate: 10/s`, or remove burst")
	}
}
