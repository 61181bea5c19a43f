package main

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"tokenward/admin"
	"tokenward/admin/notify"
	"tokenward/metrics"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/usage"
)

// upkeep is what a running server does with its tokens by itself: it ends old
// secrets that nobody uses, sweeps what ended long ago, counts what is about to
// end, and notes the time.
type upkeep struct {
	store   upkeepStore
	service *admin.Service
	usage   *usage.Recorder
	clock   *clock
	log     *slog.Logger
	sender  *notify.Sender // nil: there is no webhook
	days    []int          // before a token's end, on which it is warned of

	// When the last of each began; of run alone.
	swept, counted, warned time.Time
	unsent                 bool // the last look for warnings found no room for all of them
	displaced              bool // the last look found another file, or none, at the store's path

	sweptTokens, silenced, failures atomic.Uint64

	mu     sync.Mutex // guards what follows; held for moments
	ending []metrics.Ending
}

// upkeepStore is what upkeep needs of the store.
type upkeepStore interface {
	ByID(ctx context.Context, id tokenstore.ID) (*tokenstore.Token, error)

	// Ending and AwaitingSilence yield the ids of tokens from an index of this node.
	Ending(ctx context.Context, from, until time.Time) iter.Seq2[tokenstore.ID, error]
	AwaitingSilence(ctx context.Context) iter.Seq2[tokenstore.ID, error]

	// Notice and NoteWarning read and write which warnings of a token's end were given.
	Notice(id tokenstore.ID, end time.Time) (tokenstore.Notice, error)
	NoteWarning(ctx context.Context, id tokenstore.ID, end time.Time, event []byte, change func(*tokenstore.Notice)) error

	// Stats tell whether the store's file is still where it was opened.
	Stats() boltstore.Stats

	// Stamp notes the time, for LastTime of the next process.
	Stamp(ctx context.Context) error
	// Leads reports whether this node does what only one has to do.
	Leads() bool
	// UsageLag is how long a use may not be known to the node that leads.
	UsageLag() time.Duration
	// Restored is until when uses were forgotten, as a backup was restored then; zero: never.
	Restored() (time.Time, error)
}

const (
	upkeepEvery = time.Minute
	sweepEvery  = time.Hour
	countEvery  = 5 * time.Minute
)

// endingDays are the spans for which tokens that end within them are counted.
var endingDays = []int{1, 7, 30}

// newUpkeep returns what keeps up the tokens of v. sender may be nil.
func newUpkeep(v *vault, sender *notify.Sender, days []int, log *slog.Logger) *upkeep {
	return &upkeep{store: v.store, service: v.service, usage: v.usage, clock: v.clock, log: log, sender: sender, days: days}
}

// run keeps up until ctx ends.
func (u *upkeep) run(ctx context.Context) {
	tick := time.NewTicker(upkeepEvery)
	defer tick.Stop()
	for {
		u.round(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// round does what is due. What does not succeed is tried again in the next.
func (u *upkeep) round(ctx context.Context) {
	u.lookAtFile()
	steps := []func(context.Context) error{u.store.Stamp, u.count}
	if p, ok := u.store.(*part); ok {
		steps = append(steps, p.KeepHouse)
	}
	if u.store.Leads() {
		steps = append(steps, u.warn, u.endSilent, u.sweep)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil && ctx.Err() == nil {
			u.failures.Add(1)
			u.log.Warn("the upkeep of tokens failed; it is tried again within a minute", "error", errors.Join(err, causeOf(err)))
		}
	}
}

// lookAtFile tells in the log that the store's file was taken away.
func (u *upkeep) lookAtFile() {
	was := u.displaced
	u.displaced = u.store.Stats().Displaced
	if u.displaced && !was {
		u.log.Error("the file that is served is no longer at tokenstore.path, and the next start will not find it", "fix", fixDisplaced)
	}
}

// causeOf is what an answer of the service does not tell its callers.
func causeOf(err error) error {
	if e, ok := errors.AsType[*admin.Error](err); ok {
		return e.Cause
	}
	return nil
}

// endSilent ends the old secrets that have been silent for long enough. A loss of
// uses in memory makes all of them count as used just then.
func (u *upkeep) endSilent(ctx context.Context) error {
	if u.usage.LostSince(u.clock.Now().Add(-silenceTrust)) {
		return nil
	}
	restored, err := u.store.Restored()
	if err != nil {
		return err
	}
	n, err := u.service.EndSilent(ctx, u.store.AwaitingSilence(ctx), u.clock.evenSince(), restored, u.store.UsageLag())
	u.silenced.Add(uint64(n)) //nolint:gosec // a count
	return err
}

// silenceTrust is how long after the last lost use silence means nothing.
const silenceTrust = 24 * time.Hour

// sweep forgets what ended long ago.
func (u *upkeep) sweep(ctx context.Context) error {
	now := u.clock.Now()
	if !u.clock.calm() || !due(u.swept, now, sweepEvery) {
		return nil
	}
	u.swept = now
	n, err := u.service.Sweep(ctx, u.store.Ending(ctx, time.Time{}, now.Add(-admin.KeepEnded)))
	u.sweptTokens.Add(uint64(n)) //nolint:gosec // a count
	if n > 0 {
		u.log.Info("tokens that ended long ago were swept", "tokens", n)
	}
	return err
}

// due reports whether what was begun at last is to be done again at now. A clock that
// was set back does not keep it waiting.
func due(last, now time.Time, every time.Duration) bool {
	return last.IsZero() || now.Sub(last).Abs() >= every
}

// count counts the tokens that are about to end, by the index alone: the revoked
// are not in it at times to come.
func (u *upkeep) count(ctx context.Context) error {
	now := u.clock.Now()
	if !due(u.counted, now, countEvery) {
		return nil
	}
	u.counted = now
	var ending []metrics.Ending
	tokens, from := 0, now
	for _, days := range endingDays {
		within := time.Duration(days) * 24 * time.Hour
		for _, err := range u.store.Ending(ctx, from, now.Add(within)) {
			if err != nil {
				return err
			}
			tokens++
		}
		from = now.Add(within)
		ending = append(ending, metrics.Ending{Within: within, Tokens: tokens})
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ending = ending
	return nil
}

func (u *upkeep) stats() metrics.UpkeepStats {
	u.mu.Lock()
	defer u.mu.Unlock()
	return metrics.UpkeepStats{Ending: u.ending, Swept: u.sweptTokens.Load(), Silenced: u.silenced.Load(), Failures: u.failures.Load()}
}
