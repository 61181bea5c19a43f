package metrics

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ClockStats are what the clock of a program tells of itself.
type ClockStats struct {
	Departure time.Duration // by how much the machine's clock is ahead
	Alarmed   bool          // it departed by more than is harmless
	Adopted   uint64        // times that the machine's clock was followed
}

// WatchClock adds the clock's metrics, as [Registry.WatchStore] does.
func (r *Registry) WatchClock(f func() ClockStats) {
	r.prom.MustRegister(&clockCollector{
		stats:     f,
		departure: desc("tokenward_clock_departure_seconds", "By how much the machine's clock is ahead of the time that tokens are judged by."),
		alarm:     desc("tokenward_clock_alarm", "1 while the machine's clock differs by more than is harmless, else 0."),
		adopted:   desc("tokenward_clock_adopted_total", "Times that the machine's clock was followed."),
	})
}

type clockCollector struct {
	stats                     func() ClockStats
	departure, alarm, adopted *prometheus.Desc
}

func (c *clockCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.departure
	ch <- c.alarm
	ch <- c.adopted
}

func (c *clockCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	ch <- gauge(c.departure, s.Departure.Seconds())
	alarm := 0.0
	if s.Alarmed {
		alarm = 1
	}
	ch <- gauge(c.alarm, alarm)
	ch <- counter(c.adopted, s.Adopted)
}

// UsageStats are what the recorder of usage tells of itself.
type UsageStats struct {
	Tracked  int    // secrets used since the last write
	Pending  int    // tokens that a failed write left
	Early    uint64 // times that memory was nearly full before its time
	Lost     uint64 // uses without room
	Failures uint64 // writes that did not succeed
}

// WatchUsage adds the metrics of usage, as [Registry.WatchStore] does.
func (r *Registry) WatchUsage(f func() UsageStats) {
	r.prom.MustRegister(&usageCollector{
		stats:    f,
		tracked:  desc("tokenward_usage_tracked_secrets", "Secrets used since their use was last written."),
		pending:  desc("tokenward_usage_pending_tokens", "Tokens whose use could not be written yet."),
		early:    desc("tokenward_usage_early_writes_total", "Times that the memory for use was nearly full before it was to be written."),
		lost:     desc("tokenward_usage_lost_total", "Uses that were not recorded for want of room."),
		failures: desc("tokenward_usage_write_failures_total", "Writes of use that did not succeed."),
	})
}

type usageCollector struct {
	stats                                   func() UsageStats
	tracked, pending, early, lost, failures *prometheus.Desc
}

func (c *usageCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.tracked, c.pending, c.early, c.lost, c.failures} {
		ch <- d
	}
}

func (c *usageCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	ch <- gauge(c.tracked, float64(s.Tracked))
	ch <- gauge(c.pending, float64(s.Pending))
	ch <- counter(c.early, s.Early)
	ch <- counter(c.lost, s.Lost)
	ch <- counter(c.failures, s.Failures)
}

// LimitStats are what the table of limits tells of itself.
type LimitStats struct {
	Meters  int    // tokens, owners and accounts with limits, held now
	Evicted uint64 // those with nothing to remember that made room
	Refused uint64 // requests refused because no room could be made

	// Transactions of the store that reserved quota and uses ahead of use, and those
	// that requests waited for.
	Flushed, Awaited uint64
}

// WatchLimits adds the metrics of limits, as [Registry.WatchStore] does.
func (r *Registry) WatchLimits(f func() LimitStats) {
	r.prom.MustRegister(&limitCollector{
		stats:    f,
		meters:   desc("tokenward_limits_tracked", "Tokens, owners and accounts whose limits are held in memory."),
		evicted:  desc("tokenward_limits_evictions_total", "Limits with nothing to remember that made room for others."),
		refused:  desc("tokenward_limits_full_total", "Requests refused because no room could be made for their limits."),
		reserved: desc("tokenward_limits_reservations_total", "Transactions that reserved quota and uses: ahead of use, or awaited by requests.", "when"),
	})
}

type limitCollector struct {
	stats                              func() LimitStats
	meters, evicted, refused, reserved *prometheus.Desc
}

func (c *limitCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.meters
	ch <- c.evicted
	ch <- c.refused
	ch <- c.reserved
}

func (c *limitCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	ch <- gauge(c.meters, float64(s.Meters))
	ch <- counter(c.evicted, s.Evicted)
	ch <- counter(c.refused, s.Refused)
	ch <- counter(c.reserved, s.Flushed, "ahead")
	ch <- counter(c.reserved, s.Awaited, "awaited")
}

// UpkeepStats are what a program does with tokens by itself.
type UpkeepStats struct {
	Ending   []Ending // tokens that end soon
	Swept    uint64   // tokens forgotten after their time
	Silenced uint64   // old secrets that ended by silence
	Failures uint64   // rounds that did not succeed
}

// Ending is how many tokens end within so much time, unless somebody renews them.
type Ending struct {
	Within time.Duration
	Tokens int
}

// WatchUpkeep adds the metrics of upkeep, as [Registry.WatchStore] does.
func (r *Registry) WatchUpkeep(f func() UpkeepStats) {
	r.prom.MustRegister(&upkeepCollector{
		stats:    f,
		ending:   desc("tokenward_tokens_ending", "Tokens, not revoked, that expire within so many days.", "days"),
		swept:    desc("tokenward_tokens_swept_total", "Tokens forgotten since start, 90 days after their end."),
		silenced: desc("tokenward_secrets_silenced_total", "Old secrets ended since start because nobody used them."),
		failures: desc("tokenward_upkeep_failures_total", "Rounds of upkeep that did not succeed."),
	})
}

type upkeepCollector struct {
	stats                             func() UpkeepStats
	ending, swept, silenced, failures *prometheus.Desc
}

func (c *upkeepCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.ending, c.swept, c.silenced, c.failures} {
		ch <- d
	}
}

func (c *upkeepCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	for _, e := range s.Ending {
		ch <- gauge(c.ending, float64(e.Tokens), strconv.Itoa(int(e.Within/(24*time.Hour))))
	}
	ch <- counter(c.swept, s.Swept)
	ch <- counter(c.silenced, s.Silenced)
	ch <- counter(c.failures, s.Failures)
}

// NotifyStats are what the sender of notifications tells of itself.
type NotifyStats struct {
	Waiting int    // in the queue
	Sent    uint64 // taken by the receiver
	Failed  uint64 // given up
	Dropped uint64 // without room in the queue
}

// WatchNotify adds the metrics of notifications, as [Registry.WatchStore] does.
func (r *Registry) WatchNotify(f func() NotifyStats) {
	r.prom.MustRegister(&notifyCollector{
		stats:   f,
		waiting: desc("tokenward_notify_waiting", "Notifications that wait to be sent."),
		total:   desc("tokenward_notify_total", "Notifications, by what became of them.", "result"),
	})
}

type notifyCollector struct {
	stats          func() NotifyStats
	waiting, total *prometheus.Desc
}

func (c *notifyCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.waiting
	ch <- c.total
}

func (c *notifyCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	ch <- gauge(c.waiting, float64(s.Waiting))
	ch <- counter(c.total, s.Sent, "sent")
	ch <- counter(c.total, s.Failed, "failed")
	ch <- counter(c.total, s.Dropped, "dropped")
}
