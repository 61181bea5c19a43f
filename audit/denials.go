package audit

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A Denial is one request that was refused on the data plane.
type Denial struct {
	Reason  string     // a name out of a fixed list
	Route   string     // as configured; empty: none
	Via     Word       // the door: proxy, admin
	Token   uint64     // the token that was shown; 0: none that is known
	Account uint64     // of that token
	Owner   uint64     // of that token
	Address netip.Addr // the client as believed; invalid when not known
}

// Denied is what an event of the verb "deny" stands for: all requests with the
// same token, address (v6 by /64), reason and route since a time, up to the event's.
// Where there were too many kinds of them, one event without token and address
// stands for the rest with the same reason.
type Denied struct {
	Count uint64 `json:"count"`
	Since Moment `json:"since"`
	Route string `json:"route,omitempty"`
}

// VerbDeny is the verb of events that tell of refused requests.
const VerbDeny = "deny"

const (
	// DenialsEvery is how often denials are written.
	DenialsEvery = time.Minute
	// The bounds of lines for each writing: of known tokens, of which no account has
	// more than it leaves, and of strangers, who cannot push those out. With one more
	// line for each reason, of at most 800 bytes each, that is below 2 KB/s for
	// as long as an attack lasts.
	maxDenialsKnown   = 64
	maxDenialsUnknown = 32
	maxDenialRoute    = 200
)

// Denials collects refused requests between two writes to a log, in bounded memory.
// Noting one takes a lock that is never held during I/O. All methods may be called
// from many goroutines; a nil Denials notes nothing.
type Denials struct {
	node string // where they are refused

	mu      sync.Mutex // guards all below
	held    map[denialKey]*held
	known   int            // of held: those of known tokens
	strange int            // those of none
	account map[uint64]int // those of each account
	stats   DenialStats
}

// DenialStats count denied requests by what became of them.
type DenialStats struct {
	Written uint64 // told with their token and address
	Folded  uint64 // told by their number only, for want of room
	Lost    uint64 // not told: their line could not be written until the end
	Waiting uint64 // not written yet
}

// denialKey is what denials are told together by.
type denialKey struct {
	reason, route string
	via           Word
	token         uint64
	source        netip.Addr // v6: the /64's first
	folded        bool
}

type held struct {
	first Denial
	count uint64
	since time.Time
	until time.Time
}

// NewDenials returns an empty collection, whose events are those of node; nothing: there is
// one node only.
func NewDenials(node string) *Denials {
	return &Denials{node: node, held: make(map[denialKey]*held), account: make(map[uint64]int)}
}

// Note counts one denial at now. It never waits for a disk.
func (d *Denials) Note(now time.Time, one Denial) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.noteLocked(keyOf(&one), held{first: one, count: 1, since: now, until: now})
	d.stats.Waiting++
}

func keyOf(one *Denial) denialKey {
	return denialKey{reason: one.Reason, route: one.Route, via: one.Via, token: one.Token, source: sourceOf(one.Address)}
}

// sourceOf is what stands for an address: a v6 client has a whole /64.
func sourceOf(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if !a.Is6() {
		return a
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}

// noteLocked adds h to what is held under k, or, where there is no room for
// another, to all those of its reason.
func (d *Denials) noteLocked(k denialKey, h held) {
	there := d.held[k]
	if there == nil && !k.folded && !d.roomLocked(&h.first) {
		k = denialKey{reason: k.reason, via: k.via, folded: true}
		h.first = Denial{Reason: k.reason, Via: k.via}
		there = d.held[k]
	}
	if there == nil {
		fresh := h // h itself would be allocated each time
		d.held[k] = &fresh
		switch {
		case k.folded:
		case h.first.Token == 0:
			d.strange++
		default:
			d.known++
			d.account[h.first.Account]++
		}
		return
	}
	there.count += h.count
	if h.since.Before(there.since) {
		there.since = h.since
	}
	if h.until.After(there.until) {
		there.until = h.until
	}
}

func (d *Denials) roomLocked(one *Denial) bool {
	if one.Token == 0 {
		return d.strange < maxDenialsUnknown
	}
	return d.known < maxDenialsKnown && d.account[one.Account] <= maxDenialsKnown-d.known
}

// Stats returns the counts so far.
func (d *Denials) Stats() DenialStats {
	if d == nil {
		return DenialStats{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Run writes what was collected to l every [DenialsEvery], until ctx is done, and
// then the rest. What cannot be written stays for the next time, in the same
// bounds; failed is told of each error.
func (d *Denials) Run(ctx context.Context, l *Log, now func() time.Time, failed func(error)) {
	tick := time.NewTicker(DenialsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := d.Flush(l, now()); err != nil {
				failed(err)
				d.lose()
			}
			return
		case <-tick.C:
			if err := d.Flush(l, now()); err != nil {
				failed(err)
			}
		}
	}
}

// Flush writes what was collected to l. After an error nothing is lost.
func (d *Denials) Flush(l *Log, now time.Time) error {
	taken := d.take()
	if len(taken) == 0 {
		return nil
	}
	err := l.Append(now, d.events(taken)...)
	d.mu.Lock()
	defer d.mu.Unlock()
	for k, h := range taken {
		switch {
		case err != nil:
			d.noteLocked(k, *h)
			continue
		case k.folded:
			d.stats.Folded += h.count
		default:
			d.stats.Written += h.count
		}
		d.stats.Waiting -= h.count
	}
	return err
}

// take gives what is held away; nil if that is nothing. What it returns is the
// caller's alone.
func (d *Denials) take() map[denialKey]*held {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.held) == 0 {
		return nil
	}
	taken := d.held
	d.held, d.account = make(map[denialKey]*held), make(map[uint64]int)
	d.known, d.strange = 0, 0
	return taken
}

// lose gives up what is held.
func (d *Denials) lose() {
	d.take()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.Lost += d.stats.Waiting
	d.stats.Waiting = 0
}

// events tells of what was taken, in the order of the first of each kind.
func (d *Denials) events(taken map[denialKey]*held) []Event {
	events := make([]Event, 0, len(taken))
	for _, h := range taken {
		events = append(events, Event{
			Time: h.until, Node: d.node, Verb: VerbDeny, Outcome: Refusal, Reason: h.first.Reason,
			Actor: Actor{
				Token: h.first.Token, Account: h.first.Account, Owner: h.first.Owner,
				Address: h.first.Address.WithZone(""), Via: h.first.Via,
			},
			Denied: Denied{Count: h.count, Since: At(h.since.UTC().Round(0)), Route: cutText(h.first.Route, maxDenialRoute)},
		})
	}
	slices.SortFunc(events, func(a, b Event) int {
		return cmp.Or(a.Denied.Since.Compare(b.Denied.Since.Time), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Actor.Token, b.Actor.Token))
	})
	return events
}
