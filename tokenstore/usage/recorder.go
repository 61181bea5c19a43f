// Package usage remembers how tokens are used: when, from where, with what and on
// which routes each secret was last used, how often, and which routes and scopes
// a token has ever exercised.
//
// It is written behind: a request leaves its trace in memory, and a [Recorder]
// writes what has come together to the store every so often, in batches. A crash
// loses what came since. Nothing that is written takes part in the judgement of a
// request, or can bring back or change a token.
//
// # What it costs
//
// [Recorder.Record] takes one of 64 locks, by the token, for a moment, and allocates
// nothing once the token and the user agent were seen; beside a cached token it finds the
// trace of its last use without looking for it. Memory is bounded:
// only tokens used since the last write are held, at most [MaxTracked]. When one
// of the parts is nearly full everything is written early; what comes while it is
// quite full is counted as lost, and whoever draws conclusions from silence asks
// [Recorder.LostSince].
package usage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tokenward/tokenstore"
)

// Store is where a recorder writes: *boltstore.Store or *etcdstore.Store.
type Store interface {
	// UsageNames returns the names that stored values refer to by number, from 1 on.
	UsageNames() ([]string, error)
	// AddUsageNames gives numbers to those of the names that have none, and returns
	// all there are. Others may add some at the same time.
	AddUsageNames(ctx context.Context, names []string) ([]string, error)
	// Usage returns the stored value of a token, nil for none.
	Usage(id tokenstore.ID) ([]byte, error)
	// MergeUsage replaces the values of the tokens that exist, all in one durable
	// commit. It can be called again after any error. merge may run more than once.
	MergeUsage(ctx context.Context, ids []tokenstore.ID, merge func(id tokenstore.ID, old []byte) []byte) error
}

// Pace bounds what a recorder writes at a time.
type Pace struct {
	Tokens  int // of one commit; 0: as many as leaves others their turn
	Commits int // of one flush, what is left waits for the next; 0: as many as it takes

	// Late lets a recorder begin although the store cannot be read yet: it reads the
	// names before it first writes.
	Late bool
}

// DefaultEvery is how often a recorder writes.
const DefaultEvery = 10 * time.Second

const (
	// MaxTracked bounds the secrets whose use is held in memory, and likewise the
	// tokens that wait to be written while the store cannot be: about 300 bytes
	// each, and up to 192 more where their user agents differ.
	MaxTracked = shards * perShard

	shards   = 64
	perShard = 1024
	nearFull = perShard * 3 / 4

	// batchTokens bounds the tokens of one commit: other changes get their turn
	// between two.
	batchTokens = 512
)

// Recorder gathers uses and writes them behind. All methods may be called at once
// from many goroutines. A nil Recorder records nothing and knows nothing.
type Recorder struct {
	store  Store
	shards [shards]shard
	agents agents
	full   chan struct{} // a shard is nearly full

	early    atomic.Uint64
	lost     atomic.Uint64
	lastLost atomic.Int64 // Unix milliseconds
	failures atomic.Uint64

	// mu guards what follows. It is held while the store is written, and by no
	// request.
	mu      sync.RWMutex
	pending map[tokenstore.ID]*stored
	drained []*entry // that wait for their names to have numbers
	names   *names
	unread  bool          // names are not those of the store yet
	written tokenstore.ID // whose turn it was last
	pace    Pace
}

// shard's mutex guards the fields below it and is held for a map access.
type shard struct {
	mu      sync.Mutex
	epoch   uint64 // counts how often what it holds was taken
	entries map[Key]*entry
	retired []*entry // of a vocabulary that is not in force any more, or of an equal key
	spare   map[Key]*entry
	free    []*entry
	_       [32]byte // a cache line of its own, as good as
}

type place struct {
	id  tokenstore.ID
	key Key
}

// entry is the use of one secret since the last write.
type entry struct {
	self   any    // itself, for [tokenstore.Beside.PutUse]
	shard  *shard // whose lock guards what follows while it holds the entry
	epoch  uint64 // of the shard, when it came to hold it
	place  place
	words  *Vocabulary
	uses   uint64
	last   int64
	bits   []uint64 // by index of the vocabulary's routes: inline, where it is large enough
	inline [2]uint64
	from   netip.Addr
	agent  string // as received, at most rawAgent bytes
	route  int
	beyond bool // a route was taken that has no bit
}

// agents are user agents that came lately: uses by the same one share its text. Where
// two belong in one place, the later one takes it.
type agents struct {
	seed   maphash.Seed
	places [1 << 10]atomic.Pointer[string]
}

// text returns raw as a text.
func (a *agents) text(raw []byte) string {
	at := &a.places[maphash.Bytes(a.seed, raw)%uint64(len(a.places))]
	if known := at.Load(); known != nil && *known == string(raw) {
		return *known
	}
	text := string(raw)
	at.Store(&text)
	return text
}

// NewRecorder returns a recorder over store. [Recorder.Run] makes it write.
func NewRecorder(store Store, pace Pace) (*Recorder, error) {
	if pace.Tokens == 0 {
		pace.Tokens = batchTokens
	}
	texts, err := store.UsageNames()
	if err != nil && !pace.Late {
		return nil, err
	}
	r := &Recorder{
		store: store, pace: pace, names: newNames(texts), unread: err != nil,
		agents: agents{seed: maphash.MakeSeed()}, full: make(chan struct{}, 1), pending: map[tokenstore.ID]*stored{},
	}
	for i := range r.shards {
		r.shards[i].entries = map[Key]*entry{}
		r.shards[i].spare = map[Key]*entry{}
	}
	return r, nil
}

// Use is one request that was let through.
type Use struct {
	Token     tokenstore.ID
	Secret    tokenstore.Digest
	At        time.Time
	From      netip.Addr // invalid: not known
	UserAgent []byte     // as received; not kept
	Route     int        // index in the vocabulary; -1: none
	Lasts     bool       // the request was noted before and goes on: it is not counted again

	Beside *tokenstore.Beside // the secret in the cache of tokens; nil: it is not there
}

// Record notes a use.
func (r *Recorder) Record(v *Vocabulary, u *Use) {
	if r == nil {
		return
	}
	at := u.At.UnixMilli()
	where := place{u.Token, KeyOf(u.Secret)}
	s := &r.shards[uint64(u.Token)%shards]
	e, _ := u.Beside.Use().(*entry)
	s.mu.Lock()
	if !s.holds(e) || e.words != v || e.place != where {
		if e = r.entryOf(s, where, v); e == nil {
			s.mu.Unlock()
			r.lose(at)
			return
		}
		u.Beside.PutUse(&e.self)
	}
	if !u.Lasts {
		e.uses++
	}
	if at >= e.last {
		e.last = at
		e.describe(u, &r.agents)
	}
	e.exercise(u.Route)
	s.mu.Unlock()
}

// holds reports whether what an entry says is still to be taken. An entry that was put
// beside a token stays there when it was taken, and when it serves another since.
func (s *shard) holds(e *entry) bool { return e != nil && e.shard == s && e.epoch == s.epoch }

// entryOf returns the shard's entry, a fresh one if there is none, and nil when there is
// no room. The shard's lock is held.
func (r *Recorder) entryOf(s *shard, where place, v *Vocabulary) *entry {
	e := s.entries[where.key]
	if e != nil && e.words == v && e.place == where {
		return e
	}
	e = s.add(where, v, e)
	if e != nil && len(s.entries)+len(s.retired) == nearFull {
		r.early.Add(1)
		select {
		case r.full <- struct{}{}:
		default:
		}
	}
	return e
}

// describe notes how the last use was made. Most are made as the one before: what stays
// the same is not written, so that its cache lines need not go from core to core.
func (e *entry) describe(u *Use, agents *agents) {
	if e.from != u.From {
		e.from = u.From
	}
	if e.route != u.Route {
		e.route = u.Route
	}
	if agent := u.UserAgent[:min(len(u.UserAgent), rawAgent)]; e.agent != string(agent) {
		e.agent = agents.text(agent)
	}
}

// exercise notes that a route was taken; less than zero is none.
func (e *entry) exercise(route int) {
	word, bit := route>>6, uint64(1)<<(route&63)
	switch {
	case route < 0:
	case word >= len(e.bits):
		e.beyond = true
	case e.bits[word]&bit == 0:
		e.bits[word] |= bit
	}
}

// add returns a fresh entry, nil when there is no room. old is the present one of
// another vocabulary, or nil.
func (s *shard) add(where place, v *Vocabulary, old *entry) *entry {
	if len(s.entries)+len(s.retired) >= perShard {
		return nil
	}
	if old != nil {
		s.retired = append(s.retired, old)
	}
	var e *entry
	if n := len(s.free); n > 0 {
		e, s.free = s.free[n-1], s.free[:n-1]
	} else {
		e = &entry{shard: s}
		e.self = e
	}
	bits := e.inline[:]
	if words := v.words(); words <= len(bits) {
		bits = bits[:words]
	} else {
		bits = slices.Grow(e.bits[:0], words)[:words]
	}
	clear(bits)
	e.epoch, e.place, e.words, e.bits, e.route = s.epoch, where, v, bits, -1
	e.uses, e.last, e.agent, e.beyond = 0, 0, "", false
	s.entries[where.key] = e
	return e
}

func (r *Recorder) lose(at int64) {
	r.lost.Add(1)
	for {
		before := r.lastLost.Load()
		if at <= before || r.lastLost.CompareAndSwap(before, at) {
			return
		}
	}
}

// LostSince reports whether a use from t on went unrecorded for want of room.
func (r *Recorder) LostSince(t time.Time) bool {
	return r != nil && r.lost.Load() > 0 && r.lastLost.Load() >= t.UnixMilli()
}

// Of returns what is known of the use of t, up to the latest request.
func (r *Recorder) Of(t *tokenstore.Token) (Record, error) {
	if r == nil {
		return Record{}, nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	value, err := r.store.Usage(t.ID)
	if err != nil {
		return Record{}, err
	}
	known, err := decode(value)
	if err != nil {
		return Record{}, fmt.Errorf("token %d: %w", t.ID, err)
	}
	if p := r.pending[t.ID]; p != nil {
		known.merge(p)
	}
	record := known.named(r.names)
	for _, e := range r.drained {
		if e.place.id == t.ID {
			record.add(e)
		}
	}
	for i := range t.Secrets {
		r.shards[uint64(t.ID)%shards].latest(place{t.ID, KeyOf(t.Secrets[i].Digest)}, &record)
	}
	return record, nil
}

// latest adds to a record what has not been written of one secret.
func (s *shard) latest(where place, record *Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[where.key]
	for _, one := range append([]*entry{e}, s.retired...) {
		if one == nil || one.place != where {
			continue
		}
		record.add(one)
	}
}

func (r *Record) add(e *entry) {
	last := instant(e.last)
	r.Uses += e.uses
	r.More = r.More || e.beyond
	if last.After(r.Last) {
		r.Last = last
	}
	i := slices.IndexFunc(r.Secrets, func(s Secret) bool { return s.Key == e.place.key })
	if i < 0 {
		r.Secrets = append(r.Secrets, Secret{Key: e.place.key})
		i = len(r.Secrets) - 1
	}
	s := &r.Secrets[i]
	s.Uses += e.uses
	if !last.Before(s.Last) {
		s.Last, s.From, s.UserAgent, s.Route = last, e.from, printable(e.agent), e.pattern()
	}
	slices.SortStableFunc(r.Secrets, func(a, b Secret) int { return b.Last.Compare(a.Last) })
	for route := range e.exercised() {
		r.Routes = include(r.Routes, route.Pattern)
		for _, scope := range route.Scopes {
			r.Scopes = include(r.Scopes, scope)
		}
	}
}

// include adds s to a sorted set.
func include(set []string, s string) []string {
	at, found := slices.BinarySearch(set, s)
	if found {
		return set
	}
	return slices.Insert(set, at, s)
}

func (e *entry) pattern() string {
	if e.route < 0 || e.route >= len(e.words.routes) {
		return ""
	}
	return e.words.routes[e.route].Pattern
}

// exercised yields the routes that were taken.
func (e *entry) exercised() func(func(*Route) bool) {
	return func(yield func(*Route) bool) {
		for i := range e.words.routes {
			if i>>6 < len(e.bits) && e.bits[i>>6]&(1<<(i&63)) != 0 && !yield(&e.words.routes[i]) {
				return
			}
		}
	}
}

// Run writes what has come together every so often, and once more when ctx ends.
// failed is told of writes that did not succeed, which are tried again.
func (r *Recorder) Run(ctx context.Context, every func() time.Duration, failed func(error)) {
	next := time.NewTimer(every())
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := r.flush(context.WithoutCancel(ctx), 0); err != nil {
				failed(err)
			}
			return
		case <-next.C:
		case <-r.full:
		}
		next.Reset(every())
		if err := r.Flush(ctx); err != nil && ctx.Err() == nil {
			failed(err)
		}
	}
}

// Flush writes what has come together, as much as the pace allows. What could not be
// written is kept for the next time.
func (r *Recorder) Flush(ctx context.Context) error {
	if r == nil {
		return nil
	}
	return r.flush(ctx, r.pace.Commits)
}

// flush writes in so many commits at most; 0: in as many as it takes.
func (r *Recorder) flush(ctx context.Context, commits int) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.shards {
		r.drain(&r.shards[i])
	}
	err := r.number(ctx)
	if err == nil {
		err = r.write(ctx, commits)
	}
	if err != nil {
		r.failures.Add(1)
	}
	return err
}

// drain takes what a shard holds.
func (r *Recorder) drain(s *shard) {
	s.mu.Lock()
	if len(s.entries) == 0 && len(s.retired) == 0 {
		s.mu.Unlock()
		return
	}
	entries, retired := s.entries, s.retired
	s.entries, s.retired = s.spare, nil
	s.epoch++ // what is taken is not written to any more
	s.mu.Unlock()
	for _, e := range entries {
		r.take(e)
	}
	for _, e := range retired {
		r.take(e)
	}
	clear(entries)
	s.mu.Lock()
	s.spare = entries
	s.mu.Unlock()
}

func (r *Recorder) take(e *entry) {
	if len(r.drained) >= MaxTracked {
		r.lose(e.last)
		return
	}
	r.drained = append(r.drained, e)
}

// number gives the names that what was drained needs their numbers.
func (r *Recorder) number(ctx context.Context) error {
	if r.unread {
		all, err := r.store.UsageNames()
		if err != nil {
			return err
		}
		r.names, r.unread = newNames(all), false
	}
	missing := map[name]bool{}
	seen := map[*Vocabulary][]uint64{} // routes that were looked at, as bits
	for _, e := range r.drained {
		if seen[e.words] == nil {
			seen[e.words] = make([]uint64, len(e.words.routes)/64+1)
		}
		for i := range e.taken() {
			if word := &seen[e.words][i>>6]; *word&(1<<(i&63)) == 0 {
				*word |= 1 << (i & 63)
				r.names.lacks(&e.words.routes[i], missing)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	texts := make([]string, 0, len(missing))
	for one := range missing {
		texts = append(texts, string(rune(one.kind))+one.text)
	}
	slices.Sort(texts)
	all, err := r.store.AddUsageNames(ctx, texts[:min(len(texts), max(0, maxDictionary-len(r.names.list)))])
	if err != nil {
		return err
	}
	r.names = newNames(all)
	return nil
}

// taken yields the indexes of the routes that were taken.
func (e *entry) taken() func(func(int) bool) {
	return func(yield func(int) bool) {
		for i := range e.words.routes {
			set := i>>6 < len(e.bits) && e.bits[i>>6]&(1<<(i&63)) != 0
			if (set || i == e.route) && !yield(i) {
				return
			}
		}
	}
}

// gatherAll moves entries that were drained to pending, and gives them back.
func (r *Recorder) gatherAll(drained []*entry) {
	for _, e := range drained {
		r.gather(e)
		e.words = nil
		s := &r.shards[uint64(e.place.id)%shards]
		s.mu.Lock()
		if len(s.free) < perShard {
			s.free = append(s.free, e)
		}
		s.mu.Unlock()
	}
}

func (r *Recorder) gather(e *entry) {
	p := r.pending[e.place.id]
	if p == nil {
		if len(r.pending) >= MaxTracked {
			r.lose(e.last)
			return
		}
		p = &stored{}
		r.pending[e.place.id] = p
	}
	add := stored{uses: e.uses, last: e.last, more: e.beyond}
	secret := storedSecret{key: e.place.key, uses: e.uses, last: e.last, from: e.from, agent: printable(e.agent)}
	for route := range e.exercised() {
		numbers, all := r.names.numbered(route)
		add.names = append(add.names, numbers...)
		add.more = add.more || !all
	}
	if e.route >= 0 && e.route < len(e.words.routes) {
		secret.route = r.names.numbers[name{kindRoute, e.words.routes[e.route].Pattern}]
	}
	add.secrets = []storedSecret{secret}
	p.merge(&add)
}

// write writes in batches what is pending and what was drained, which becomes pending
// batch by batch: all of it at once would be as much memory again as the entries take.
func (r *Recorder) write(ctx context.Context, most int) error {
	// Behind where the last one ended, so that none has to wait for ever: as numbers
	// without a sign, those up to there come last.
	first := r.written + 1
	turn := func(a, b tokenstore.ID) int { return cmp.Compare(a-first, b-first) }
	slices.SortFunc(r.drained, func(a, b *entry) int { return turn(a.place.id, b.place.id) })
	drained := r.drained
	defer func() { // what is left when the store fails, or has done enough, is kept by token
		r.gatherAll(drained)
		clear(r.drained)
		r.drained = r.drained[:0]
	}()
	ids := make([]tokenstore.ID, 0, len(r.pending)+len(drained))
	for id := range r.pending {
		ids = append(ids, id)
	}
	for _, e := range drained {
		ids = append(ids, e.place.id)
	}
	slices.SortFunc(ids, turn)
	commits := 0
	for batch := range slices.Chunk(slices.Compact(ids), r.pace.Tokens) {
		if commits++; most > 0 && commits > most {
			return nil
		}
		r.written = batch[len(batch)-1]
		n := 0
		for n < len(drained) && turn(drained[n].place.id, r.written) <= 0 {
			n++
		}
		r.gatherAll(drained[:n])
		drained = drained[n:]
		batch = slices.DeleteFunc(batch, func(id tokenstore.ID) bool { return r.pending[id] == nil }) // no room: it is lost
		if len(batch) == 0 {
			continue
		}
		if err := r.store.MergeUsage(ctx, batch, r.merged); err != nil {
			if errors.Is(err, tokenstore.ErrOutcomeUnknown) {
				// Better not counted than counted twice.
				for _, id := range batch {
					r.lose(r.pending[id].last)
				}
				r.forget(batch)
			}
			return err
		}
		r.forget(batch)
	}
	return nil
}

func (r *Recorder) forget(batch []tokenstore.ID) {
	for _, id := range batch {
		delete(r.pending, id)
	}
}

// merged is the value of a token with what is pending. One that cannot be read is
// begun anew: it says nothing that matters more than going on.
func (r *Recorder) merged(id tokenstore.ID, old []byte) []byte {
	known, err := decode(old)
	if err != nil {
		known = stored{more: true}
	}
	known.merge(r.pending[id])
	return known.encode()
}

// Stats are what a recorder tells of itself.
type Stats struct {
	Tracked  int    // secrets used since the last write
	Pending  int    // tokens that a failed write left
	Early    uint64 // times that a part was nearly full before its time
	Lost     uint64 // uses without room
	Failures uint64 // writes that did not succeed
}

// Stats returns the counts. They are read one after another, not at one instant.
func (r *Recorder) Stats() Stats {
	if r == nil {
		return Stats{}
	}
	st := Stats{Early: r.early.Load(), Lost: r.lost.Load(), Failures: r.failures.Load()}
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		st.Tracked += len(s.entries) + len(s.retired)
		s.mu.Unlock()
	}
	if r.mu.TryRLock() { // not while the store is written
		st.Pending = len(r.pending)
		r.mu.RUnlock()
	}
	return st
}
