package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/audit"
	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/storetest"
	"tokenward/tokenstore/usage"
)

// envModelSeed plays one run of the model again.
const envModelSeed = "TOKENWARD_MODEL_SEED"

// TestModel lets verbs, requests, steps of the clock and restarts follow one another
// at random, over the real store, service, cache, engine and clock, and holds each
// answer to a model that is simple enough to be believed. What it finds first is
// after the fewest steps of its seed.
func TestModel(t *testing.T) {
	t.Parallel()
	runs, steps := 2, 1500
	if storetest.Soak() {
		runs, steps = 50, 20_000
	}
	seeds := make([]uint64, runs)
	for i := range seeds {
		seeds[i] = rand.Uint64()
	}
	if text := os.Getenv(envModelSeed); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	for _, seed := range seeds {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			m := newModel(t, seed)
			for n := 1; n <= steps; n++ {
				m.step(n)
				if t.Failed() {
					t.Fatalf("seed %d fails after %d steps, of which the last are %q: run again with %s=%d", seed, n, m.trail, envModelSeed, seed)
				}
			}
			m.whole()
		})
	}
}

// model is the real thing, and what should be.
type model struct {
	t    *testing.T
	rng  *rand.Rand
	path string
	hands

	peppers *tokenstore.Peppers
	store   *boltstore.Store
	clock   *clock
	cache   *tokenstore.Cache
	service *admin.Service
	engine  *enforce.Engine
	usage   *usage.Recorder
	words   *usage.Vocabulary
	policy  *enforce.Policy
	rules   *canon.Rules

	tokens  []*modelled
	final   map[string]bool // secrets that can never be let through again
	lastID  tokenstore.ID
	stamped time.Time         // of the last change
	owed    map[string]string // what was asked, by the request, whose event is not in the log yet
	seq     uint64            // of the last event
	n       int
	trail   []string
}

// modelled is what a token should be.
type modelled struct {
	want   *tokenstore.Token // as the store has it
	texts  []string          // of its secrets, in the order of the record's
	spent  *spent
	gone   bool // swept
	parent *modelled
}

// spent is what tokens that were reset into one another have used together.
type spent struct {
	used  uint64
	lossy bool // some of its uses may count as used without having been
}

func newModel(t *testing.T, seed uint64) *model {
	t.Helper()
	m := &model{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), path: filepath.Join(t.TempDir(), "t.db"), hands: hands{wall: noon}, //nolint:gosec // it is to be the same again
		final: map[string]bool{}, owed: map[string]string{}, words: usage.NewVocabulary([]usage.Route{{Pattern: "GET /a"}, {Pattern: "GET /b"}}),
	}
	var err error
	if m.peppers, err = tokenstore.NewPeppers(bytes.Repeat([]byte("p"), tokenstore.MinPepperBytes)); err != nil {
		t.Fatal(err)
	}
	policy, faults := enforce.Compile([]enforce.RouteSpec{{Match: "GET /a", Scopes: []string{"a"}}, {Match: "GET /b", Scopes: []string{"b"}}}, enforce.Options{})
	if faults != nil {
		t.Fatal(faults)
	}
	m.policy = policy
	if m.rules, err = canon.NewRules(mustParse(t, "proxy: {}").canonOptions()); err != nil {
		t.Fatal(err)
	}
	m.open(boltstore.Create)
	t.Cleanup(func() { _ = m.store.Close() })
	return m
}

// open begins a process over the store.
func (m *model) open(open func(boltstore.Options) (*boltstore.Store, error)) {
	m.t.Helper()
	var err error
	m.store, err = open(boltstore.Options{Path: m.path, Peppers: m.peppers,
		OnChange: func(c tokenstore.Change) { m.cache.Changed(c) },
		Now: func() time.Time {
			if m.clock == nil {
				return time.Time{}
			}
			return m.clock.Now()
		}})
	if err != nil {
		m.t.Fatal(err)
	}
	m.steady = 0
	m.clock = m.hands.clock(m.store.LastTime())
	if m.clock.Now().Before(m.stamped.Truncate(time.Millisecond)) {
		m.t.Errorf("it is %v, and the store was last changed at %v", m.clock.Now(), m.stamped)
	}
	if m.cache, err = tokenstore.NewCache(m.store, m.peppers, m.store.Formats(), 100); err != nil {
		m.t.Fatal(err)
	}
	if m.usage, err = usage.NewRecorder(m.store, usage.Pace{}); err != nil {
		m.t.Fatal(err)
	}
	record := func(ctx context.Context, prefix string) error {
		err := m.store.RecordPrefix(ctx, prefix)
		m.cache.SetFormats(m.store.Formats())
		return err
	}
	if m.service, err = admin.New(m.store, m.store, m.peppers, m.clock.Now, admin.Options{ResetGrace: time.Hour, RecordPrefix: record, Usage: m.usage.Of}); err != nil {
		m.t.Fatal(err)
	}
	m.service.SetVocabulary(admin.Vocabulary{Scopes: m.policy.Scopes()})
	m.engine = enforce.NewEngine(m.cache, 0)
	m.engine.KeepCounts(localCounts(m.store).ledger, nil)
}

// step does one thing, and looks at what must hold after each.
func (m *model) step(n int) {
	m.n = n
	deeds := []struct {
		weight int
		name   string
		do     func()
	}{
		{6, "create", m.create}, {6, "rotate", m.rotate}, {4, "finish", m.finish}, {4, "reset", m.reset},
		{4, "disable", m.disable}, {5, "enable", m.enable}, {3, "revoke", m.revoke}, {1, "revoke branch", m.revokeBranch},
		{5, "update", m.update}, {60, "request", m.request}, {12, "time", m.pass}, {3, "clock", m.stepClock},
		{1, "sweep", m.sweep}, {2, "flush", m.flush}, {1, "restart", m.restart},
	}
	total := 0
	for _, d := range deeds {
		total += d.weight
	}
	at := m.rng.IntN(total)
	for _, d := range deeds {
		if at -= d.weight; at < 0 {
			m.note("%s", d.name)
			d.do()
			break
		}
	}
	m.look()
	if n%500 == 0 {
		m.drain()
	}
	if n%5000 == 0 {
		m.whole()
	}
}

func (m *model) note(format string, args ...any) {
	m.trail = append(m.trail, fmt.Sprintf(format, args...))
	if len(m.trail) > 30 {
		m.trail = m.trail[1:]
	}
}

// any is a token that was ever made, more likely a young one; nil if there is none.
func (m *model) any() *modelled {
	if len(m.tokens) == 0 {
		return nil
	}
	if m.rng.IntN(3) > 0 {
		last := min(len(m.tokens), 20)
		return m.tokens[len(m.tokens)-1-m.rng.IntN(last)]
	}
	return m.tokens[m.rng.IntN(len(m.tokens))]
}

func (m *model) caller() admin.Caller { return admin.Operator("step-" + strconv.Itoa(m.n)) }

func (w *modelled) target() admin.Target { return admin.Target{ID: w.want.ID, Revoked: true} }

// did takes what became of a verb: whether it should have succeeded, and what the
// token is then. It reports whether it did.
func (m *model) did(w *modelled, err error, should bool, after *tokenstore.Token) bool {
	m.t.Helper()
	if (err == nil) != should {
		m.t.Errorf("token %d %+v at %v: %v, and it should be %t", w.want.ID, w.want, m.clock.Now(), err, should)
	}
	if err != nil {
		return false
	}
	if after.Revision != w.want.Revision {
		m.changed()
	}
	w.want = after.Clone()
	return true
}

// changed notes that the verb of this step has to have its event.
func (m *model) changed() {
	m.owed["step-"+strconv.Itoa(m.n)] = m.trail[len(m.trail)-1]
	m.stamped = m.clock.Now()
}

func (m *model) create() {
	var limits tokenstore.Limits
	if m.rng.IntN(3) == 0 {
		limits.Uses = 1 + m.rng.Uint64N(30)
	}
	spec := admin.Spec{Name: "m", Scopes: []string{"a", "b", "user:api-token:write"}[:1+m.rng.IntN(3)], Limits: &limits, Expiry: m.end()}
	if m.rng.IntN(10) == 0 {
		spec.NotBefore = m.clock.Now().Add(m.span())
		spec.Expiry = new(tokenstore.Never())
	}
	c, parent := m.caller(), m.any()
	if parent != nil && m.rng.IntN(2) == 0 && m.mayMake(parent) { // by another token
		found, err := m.cache.Find(m.t.Context(), []byte(parent.texts[0]))
		if err != nil {
			m.t.Errorf("token %d cannot be found: %v", parent.want.ID, err)
			return
		}
		c = admin.Caller{Token: found.Token, Secret: found.Secret, RequestID: c.RequestID}
		spec.Scopes, spec.Expiry, spec.NotBefore, spec.Limits = nil, nil, time.Time{}, nil
	} else {
		parent = nil
	}
	made, err := m.service.Create(m.t.Context(), c, spec)
	if err != nil {
		m.t.Errorf("create: %v", err)
		return
	}
	m.made(&made, &modelled{parent: parent, spent: new(spent)})
}

// mayMake reports whether the token may make others like itself.
func (m *model) mayMake(w *modelled) bool {
	t := w.want
	return !w.gone && t.State == tokenstore.StateActive && t.Expiry.Never && t.NotBefore.IsZero() && slices.Contains(t.Scopes, "user:api-token:write")
}

func (m *model) made(made *admin.Made, w *modelled) {
	if made.Token.ID <= m.lastID {
		m.t.Errorf("id %d after %d", made.Token.ID, m.lastID)
	}
	m.lastID = made.Token.ID
	w.want, w.texts = made.Token.Clone(), []string{made.Secret.Reveal()}
	m.tokens = append(m.tokens, w)
	m.changed()
}

// end is never, or a time to come.
func (m *model) end() *tokenstore.Expiry {
	if m.rng.IntN(2) == 0 {
		return new(tokenstore.Never())
	}
	return new(tokenstore.EndsAt(m.clock.Now().Add(time.Minute + m.span()).Truncate(time.Millisecond)))
}

// span is from seconds to days, each order as likely.
func (m *model) span() time.Duration {
	unit := []time.Duration{time.Second, time.Minute, time.Hour, 24 * time.Hour}[m.rng.IntN(4)]
	return time.Duration(1 + m.rng.Int64N(int64(40*unit)))
}

// renewable reports whether the token may get a new secret.
func (m *model) renewable(w *modelled) bool {
	t := w.want
	return !w.gone && t.ReplacedBy == 0 && t.State == tokenstore.StateActive && !m.over(t.Expiry)
}

func (m *model) over(e tokenstore.Expiry) bool {
	return !e.Never && !m.clock.Now().Truncate(time.Millisecond).Before(e.At)
}

func (m *model) rotate() {
	w := m.any()
	if w == nil {
		return
	}
	var spec admin.RotateSpec
	if m.rng.IntN(2) == 0 {
		spec.OldEnds = m.clock.Now().Add(time.Minute + m.span())
	}
	should := m.renewable(w) && (len(w.texts) == 1 || m.over(w.want.Secrets[1].Ends))
	made, err := m.service.Rotate(m.t.Context(), m.caller(), w.target(), spec)
	if m.did(w, err, should, made.Token) {
		m.lose(w.texts[1:]...)
		w.texts = []string{made.Secret.Reveal(), w.texts[0]}
	}
}

func (m *model) lose(texts ...string) {
	for _, s := range texts {
		m.final[s] = true
	}
}

func (m *model) finish() {
	if w := m.any(); w != nil {
		after, err := m.service.FinishRotation(m.t.Context(), m.caller(), w.target())
		if m.did(w, err, m.alterable(w), after) {
			m.lose(w.texts[1:]...)
			w.texts = w.texts[:1]
		}
	}
}

func (m *model) alterable(w *modelled) bool {
	return !w.gone && w.want.State != tokenstore.StateRevoked
}

func (m *model) reset() {
	w := m.any()
	if w == nil {
		return
	}
	should := m.renewable(w)
	before := w.want
	made, err := m.service.Reset(m.t.Context(), m.caller(), w.target(), admin.ResetSpec{})
	if (err == nil) != should {
		m.t.Errorf("reset of token %d %+v at %v: %v", w.want.ID, w.want, m.clock.Now(), err)
	}
	if err != nil {
		return
	}
	after := w.want.Clone()
	after.ReplacedBy, after.Revision = made.Token.ID, before.Revision+1
	after.Expiry = before.Expiry.Earlier(tokenstore.EndsAt(m.clock.Now().Truncate(time.Millisecond).Add(time.Hour)))
	after.UpdatedAt = m.clock.Now().Truncate(time.Millisecond)
	w.want = after
	m.made(&made, &modelled{spent: w.spent})
}

func (m *model) disable() {
	if w := m.any(); w != nil {
		after, err := m.service.Disable(m.t.Context(), m.caller(), w.target())
		if m.did(w, err, m.alterable(w), after) && after.State != tokenstore.StateDisabled {
			m.t.Errorf("disabled, it is %v", after.State)
		}
	}
}

func (m *model) enable() {
	if w := m.any(); w != nil {
		after, err := m.service.Enable(m.t.Context(), m.caller(), w.target())
		if m.did(w, err, m.alterable(w), after) && after.State != tokenstore.StateActive {
			m.t.Errorf("enabled, it is %v", after.State)
		}
	}
}

func (m *model) revoke() {
	if w := m.any(); w != nil {
		done, err := m.service.Revoke(m.t.Context(), m.caller(), w.target(), false)
		if m.did(w, err, !w.gone, done.Token) {
			m.ended(w)
		}
	}
}

func (m *model) ended(w *modelled) {
	if w.want.State != tokenstore.StateRevoked {
		m.t.Errorf("token %d was revoked, and is %v", w.want.ID, w.want.State)
	}
	m.lose(w.texts...)
}

// revokeBranch ends a token and all that hang below it.
func (m *model) revokeBranch() {
	w := m.any()
	if w == nil {
		return
	}
	var branch []*modelled
	for _, one := range m.tokens {
		for p := one.parent; p != nil; p = p.parent {
			if p == w && !one.gone {
				branch = append(branch, one)
			}
		}
	}
	done, err := m.service.Revoke(m.t.Context(), m.caller(), w.target(), true)
	if !m.did(w, err, !w.gone, done.Token) {
		return
	}
	m.ended(w)
	for _, one := range branch {
		now, err := m.store.ByID(m.t.Context(), one.want.ID)
		if m.did(one, err, true, now) {
			m.ended(one)
		}
	}
}

func (m *model) update() {
	w := m.any()
	if w == nil {
		return
	}
	scopes, end := [][]string{{"a"}, {"b"}, {"a", "b"}}[m.rng.IntN(3)], *m.end()
	should := m.alterable(w) && (end.Never || end.At.After(w.want.NotBefore)) && (w.want.ReplacedBy == 0 || end.NotLater(w.want.Expiry))
	after, err := m.service.Update(m.t.Context(), m.caller(), w.target(), func(f *admin.Fields) tokenstore.Faults {
		f.Scopes, f.Expiry = scopes, end
		return nil
	})
	if m.did(w, err, should, after) && (!slices.Equal(after.Scopes, scopes) || after.Expiry != end) {
		m.t.Errorf("updated to %v, %v: %+v", scopes, end, after)
	}
}

// request shows any secret that ever was on one of two routes.
func (m *model) request() {
	w := m.any()
	if w == nil {
		return
	}
	m.ask(w, w.texts[m.rng.IntN(len(w.texts))], m.rng.IntN(2))
}

func (m *model) ask(w *modelled, text string, route int) {
	m.t.Helper()
	scope := []string{"a", "b"}[route]
	now := m.clock.Now()
	var q canon.Request
	head := canon.Head{Method: []byte("GET"), Target: []byte("/" + scope), Major: 1, Minor: 1, Peer: netip.MustParseAddrPort("192.0.2.1:1"),
		Fields: []canon.Field{{Name: []byte("Host"), Value: []byte("a")}, {Name: []byte("Api-Token"), Value: []byte(text)}}}
	if v := m.rules.Canonicalize(&q, &head); v != canon.Accepted {
		m.t.Fatal(v)
	}
	d := m.engine.Decide(m.t.Context(), m.policy, &q, now)
	allowed := m.engine.Admit(&d, now)
	d.Release()
	should := m.should(w, text, scope, now)
	limit := w.want.Limits.Uses
	switch {
	case should && limit > 0 && w.spent.used >= limit:
		should = false
	case should && d.Reason == enforce.UsesExhausted && w.spent.lossy:
		return // in favour of denying
	}
	if allowed != should || allowed && m.final[text] {
		m.t.Errorf("token %d %+v (used %d, lossy %t) on %s at %v: %v (%v), and it should be %t", w.want.ID, w.want, w.spent.used, w.spent.lossy, scope, now, d.Reason, d.Cause, should)
	}
	if allowed {
		w.spent.used++
		m.usage.Record(m.words, &usage.Use{Token: w.want.ID, Secret: d.Match.Secret.Digest, At: now, Route: route})
	}
}

// should reports whether the token allows a request, but for its uses.
func (m *model) should(w *modelled, text, scope string, now time.Time) bool {
	i := slices.Index(w.texts, text)
	if w.gone || i < 0 {
		return false
	}
	t := w.want
	ended := func(e tokenstore.Expiry) bool { return !e.Never && !now.Before(e.At) }
	return t.State == tokenstore.StateActive && !now.Before(t.NotBefore) && !ended(t.Expiry) && !ended(t.Secrets[i].Ends) && slices.Contains(t.Scopes, scope)
}

// pass lets time pass by both clocks.
func (m *model) pass() {
	before, adopted := m.clock.Now(), m.clock.adopted
	d := m.span()
	m.wall, m.steady = m.wall.Add(d), m.steady+d
	m.clock.compare()
	m.note("for %v", d)
	if m.clock.Now().Before(m.stamped) {
		m.stamped = m.clock.Now() // it was told so for long enough
	}
	if m.clock.adopted == adopted && !m.clock.Now().Equal(before.Add(d)) {
		m.t.Errorf("it was %v, %v have passed, and it is %v", before, d, m.clock.Now())
	}
}

// stepClock sets the machine's clock.
func (m *model) stepClock() {
	d := m.span()
	if m.rng.IntN(2) == 0 {
		d = -d
	}
	before := m.clock.Now()
	m.hands.step(d)
	m.clock.compare()
	m.note("by %v", d)
	if !m.clock.Now().Equal(before) {
		m.t.Errorf("a step of the machine's clock was followed at once: it was %v, and is %v", before, m.clock.Now())
	}
}

func (m *model) sweep() {
	if !m.clock.calm() {
		return
	}
	now := m.clock.Now()
	if _, err := m.service.Sweep(m.t.Context(), m.store.Ending(m.t.Context(), time.Time{}, now.Add(-admin.KeepEnded))); err != nil {
		m.t.Error(err)
	}
	for _, w := range m.tokens {
		if w.gone {
			continue
		}
		_, err := m.store.ByID(m.t.Context(), w.want.ID)
		if !errors.Is(err, tokenstore.ErrNotFound) {
			continue
		}
		end := w.want.Expiry
		if w.want.State == tokenstore.StateRevoked {
			end = tokenstore.EndsAt(w.want.EndedAt)
		}
		if end.Never || now.Before(end.At.Add(admin.KeepEnded)) {
			m.t.Errorf("token %d, which ended at %v, was swept at %v", w.want.ID, end, now)
		}
		w.gone = true
		m.lose(w.texts...)
	}
}

func (m *model) flush() {
	if err := errors.Join(m.engine.FlushCounts(m.t.Context(), m.clock.Now()), m.usage.Flush(m.t.Context())); err != nil {
		m.t.Error(err)
	}
}

// restart ends the process, as it should or in the midst of everything, and begins
// another.
func (m *model) restart() {
	if m.rng.IntN(2) == 0 {
		m.note("clean")
		if err := errors.Join(m.engine.SettleCounts(m.t.Context(), m.clock.Now()), m.usage.Flush(m.t.Context())); err != nil {
			m.t.Error(err)
		}
	} else {
		for _, w := range m.tokens {
			w.spent.lossy = true
		}
	}
	if err := m.store.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.clock = nil
	m.open(boltstore.Open)
}

// look holds what must be after every step: a token is as it was left, and what has
// ended for good is refused.
func (m *model) look() {
	m.t.Helper()
	w := m.any()
	if w == nil {
		return
	}
	got, err := m.store.ByID(m.t.Context(), w.want.ID)
	switch {
	case w.gone != errors.Is(err, tokenstore.ErrNotFound):
		m.t.Errorf("token %d: %v", w.want.ID, err)
	case !w.gone && !reflect.DeepEqual(got, w.want):
		m.t.Errorf("token %d is\n%+v, and should be\n%+v", w.want.ID, got, w.want)
	}
	for _, text := range w.texts {
		if m.final[text] {
			m.ask(w, text, m.rng.IntN(2))
		}
	}
}

// drain takes the events out of the outbox, and misses none.
func (m *model) drain() {
	m.t.Helper()
	for {
		events, err := m.store.Pending(256)
		if err != nil {
			m.t.Fatal(err)
		}
		if len(events) == 0 {
			break
		}
		for _, e := range events {
			if e.Seq != m.seq+1 {
				m.t.Errorf("event %d after %d", e.Seq, m.seq)
			}
			m.seq = e.Seq
			told, err := audit.Decode(e.Payload)
			if err != nil {
				m.t.Fatal(err)
			}
			if told.Outcome == audit.Success {
				delete(m.owed, told.Request)
			}
		}
		if err := m.store.Done(m.seq); err != nil {
			m.t.Fatal(err)
		}
	}
	for request, what := range m.owed {
		m.t.Errorf("%s, %s, has no event", request, what)
	}
}

// whole holds the store to its own invariants and every token to the model.
func (m *model) whole() {
	m.t.Helper()
	if err := m.store.Check(m.t.Context(), func(fault string) { m.t.Error(fault) }); err != nil {
		m.t.Error(err)
	}
	there := 0
	for _, w := range m.tokens {
		if !w.gone {
			there++
		}
	}
	n, err := m.store.Count(m.t.Context(), tokenstore.Query{AllAccounts: true, Revoked: true})
	if err != nil || n != there {
		m.t.Errorf("%d tokens of %d, %v", n, there, err)
	}
}
