package storetest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"tokenward/tokenstore"
)

// Soak reports whether TOKENWARD_SOAK asks for the long runs.
func Soak() bool { return os.Getenv("TOKENWARD_SOAK") == "1" }

func testConcurrent(t *testing.T, open Opener) {
	var mu sync.Mutex
	latest := map[tokenstore.ID]uint64{}
	h := started(t, open, func(c tokenstore.Change) {
		mu.Lock()
		defer mu.Unlock()
		if c.Before == nil != (c.After.Revision == 1) || c.Before != nil && c.After.Revision != c.Before.Revision+1 || latest[c.After.ID] != c.After.Revision-1 {
			t.Errorf("token %d: revision %d was told after %d", c.After.ID, c.After.Revision, latest[c.After.ID])
		}
		latest[c.After.ID] = c.After.Revision
	})
	shared := create(t, h.Store, 1, nil)[0]
	const writers, rounds = 8, 25
	var wg sync.WaitGroup
	made := make([][]tokenstore.ID, writers)
	for w := range writers {
		wg.Go(func() {
			for i := range rounds {
				made[w] = append(made[w], createOne(t, h.Store))
				err := edit(h.Store, shared, func(tok *tokenstore.Token) { tok.Name += "x" })
				if err != nil {
					t.Errorf("edit: %v", err)
				}
				if i%5 == 0 { // a refused neighbour harms nobody
					err := edit(h.Store, shared, func(tok *tokenstore.Token) { tok.Account++ })
					wantErr(t, "refused edit", err, tokenstore.ErrInvariant)
				}
			}
		})
	}
	wg.Wait()
	if tok := byID(t, h.Store, shared); tok.Revision != 1+writers*rounds || len(tok.Name) != len("token 1")+writers*rounds {
		t.Errorf("%d edits of one token left revision %d and name of %d characters", writers*rounds, tok.Revision, len(tok.Name))
	}
	seen := map[tokenstore.ID]bool{}
	for _, id := range slices.Concat(made...) {
		if seen[id] {
			t.Errorf("id %d was given out twice", id)
		}
		seen[id] = true
		byID(t, h.Store, id)
	}
	if got, want := len(pending(t, h)), 1+2*writers*rounds; got != want {
		t.Errorf("%d events wait, want %d", got, want)
	}
}

func createOne(t *testing.T, s Store) (id tokenstore.ID) {
	err := s.Change(t.Context(), func(tx tokenstore.Tx) (err error) {
		if id, err = tx.NewID(); err != nil {
			return err
		}
		tx.Emit(event)
		return tx.Put(Sample(id, 1, 1))
	})
	if err != nil {
		t.Errorf("create: %v", err)
	}
	return id
}

// testRandom does random verbs to a store and to a map, and compares them.
func testRandom(t *testing.T, open Opener) {
	seeds, steps := uint64(2), 150
	if Soak() {
		seeds, steps = 200, 5000 // a million, over stores of moderate size
	}
	made, most := 0, 0
	for seed := range seeds {
		if most > 0 && made >= most {
			return
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := &model{
				t: t, h: started(t, open, nil), r: rand.New(rand.NewPCG(seed, 7)), //nolint:gosec // repeatable
				tokens: map[tokenstore.ID]*tokenstore.Token{}, used: map[tokenstore.Digest]tokenstore.ID{}, counts: map[tokenstore.ID]string{},
			}
			most = m.h.Steps
			for range min(steps, cmp.Or(most, steps)) {
				made++
				m.step()
				if t.Failed() {
					return
				}
			}
		})
	}
}

// maxModel keeps long runs from slowing down.
const maxModel = 1500

// model is what a store should hold.
type model struct {
	t *testing.T
	h *Harness
	r *rand.Rand

	tokens map[tokenstore.ID]*tokenstore.Token
	used   map[tokenstore.Digest]tokenstore.ID
	ever   []tokenstore.Digest // the keys of used
	events []string
	counts map[tokenstore.ID]string // of limits, by lineage, where the store keeps them
}

func (m *model) step() {
	switch m.r.IntN(14) {
	case 0, 1, 2:
		m.create(1)
	case 3:
		m.create(1 + m.r.IntN(15))
	case 4, 5:
		m.edit(func(tok *tokenstore.Token) { tok.Name = fmt.Sprint("name ", m.r.Uint64()) })
	case 6:
		m.edit(func(tok *tokenstore.Token) {
			if tok.State != tokenstore.StateRevoked {
				revoke(tok)
			}
		})
	case 7:
		m.edit(m.rotate)
	case 8:
		m.edit(func(tok *tokenstore.Token) {
			tok.Expiry = tokenstore.Never()
			if m.r.IntN(2) == 0 {
				tok.Expiry = tokenstore.EndsAt(Epoch.Add(time.Duration(m.r.IntN(1000)) * time.Hour))
			}
			if tok.State == tokenstore.StateActive {
				tok.State = tokenstore.StateDisabled
			}
		})
	case 9:
		m.sweep()
	case 10:
		m.steal()
	case 11:
		m.drain()
	case 12:
		m.reset()
	case 13:
		m.count()
	}
	m.verify()
}

func (m *model) emit(tx tokenstore.Tx) string {
	e := fmt.Sprint("event ", len(m.events), m.r.Uint64())
	tx.Emit([]byte(e))
	return e
}

func (m *model) newDigest() tokenstore.Digest {
	m.ever = append(m.ever, SampleDigest(tokenstore.ID(len(m.ever))+1<<40)) //nolint:gosec // not negative
	return m.ever[len(m.ever)-1]
}

func (m *model) create(n int) {
	for len(m.tokens) > maxModel {
		m.sweep()
	}
	var made []*tokenstore.Token
	var e string
	change(m.t, m.h.Store, func(tx tokenstore.Tx) error {
		made = nil
		for range n {
			id, err := tx.NewID()
			if err != nil {
				return err
			}
			tok := Sample(id, m.r.Uint64N(3), 1+m.r.Uint64N(3))
			tok.Secrets[0].Digest = m.newDigest()
			if len(m.tokens) > 0 && m.r.IntN(2) == 0 {
				tok.Creator.ID = m.pick()
			}
			if err := tx.Put(tok); err != nil {
				return err
			}
			made = append(made, tok)
		}
		e = m.emit(tx)
		return nil
	})
	for _, tok := range made {
		m.remember(tok)
	}
	m.events = append(m.events, e)
}

func (m *model) remember(tok *tokenstore.Token) {
	m.tokens[tok.ID] = tok
	for _, s := range tok.Secrets {
		m.used[s.Digest] = tok.ID
	}
}

// pick returns a stored id, or 0 when there is none.
func (m *model) pick() tokenstore.ID {
	ids := slices.Sorted(maps.Keys(m.tokens))
	if len(ids) == 0 {
		return 0
	}
	return ids[m.r.IntN(len(ids))]
}

func (m *model) edit(with func(tok *tokenstore.Token)) {
	id := m.pick()
	if id == 0 {
		return
	}
	var e string
	var put *tokenstore.Token
	change(m.t, m.h.Store, func(tx tokenstore.Tx) error {
		tok, err := tx.Token(id)
		if err != nil {
			return err
		}
		with(tok)
		e, put = m.emit(tx), tok
		return tx.Put(tok)
	})
	m.remember(put)
	m.events = append(m.events, e)
}

func (m *model) rotate(tok *tokenstore.Token) {
	next := tok.Secrets[0]
	next.Digest = m.newDigest()
	tok.Secrets = append([]tokenstore.SecretRecord{next}, tok.Secrets[:m.r.IntN(2)]...)
}

// reset has a new token take the place of one, in its lineage.
func (m *model) reset() {
	id := m.pick()
	if id == 0 || m.tokens[id].ReplacedBy != 0 {
		return
	}
	var e string
	var old, next *tokenstore.Token
	change(m.t, m.h.Store, func(tx tokenstore.Tx) (err error) {
		if old, next, err = replace(tx, id, m.newDigest()); err == nil {
			e = m.emit(tx)
		}
		return err
	})
	m.remember(old)
	m.remember(next)
	m.events = append(m.events, e)
}

// count changes what is used of a token's limits.
func (m *model) count() {
	c, ok := m.h.Store.(counters)
	id := m.pick()
	if !ok || id == 0 {
		return
	}
	shared := m.tokens[id].MeasuredAs()
	m.counts[shared] += "|"
	setCount(m.t, c, shared, m.counts[shared])
}

func (m *model) sweep() {
	id := m.pick()
	if id == 0 {
		return
	}
	if m.tokens[id].ReplacedBy == 0 {
		delete(m.counts, m.tokens[id].MeasuredAs())
	}
	if err := sweep(m.h.Store, id); err != nil {
		m.t.Errorf("sweep %d: %v", id, err)
	}
	delete(m.tokens, id)
	m.events = append(m.events, string(event))
}

// steal tries to give a token a secret that was used before.
func (m *model) steal() {
	id := m.pick()
	if id == 0 {
		return
	}
	d := m.ever[m.r.IntN(len(m.ever))]
	if m.used[d] == 0 || holds(m.tokens[id], d) { // made up by a function that ran twice
		return
	}
	err := edit(m.h.Store, id, func(tok *tokenstore.Token) { tok.Secrets[0].Digest = d })
	dup, ok := errors.AsType[*tokenstore.DuplicateError](err)
	if ok && dup.Existing == m.used[d] && dup.Wanted == id && dup.Existing != id {
		return
	}
	if m.used[d] != id || !errors.Is(err, tokenstore.ErrInvariant) {
		m.t.Errorf("token %d took a secret of token %d: %v", id, m.used[d], err)
	}
}

// drain does what the audit log does.
func (m *model) drain() {
	events, err := m.h.Pending(1 + m.r.IntN(100))
	if err != nil {
		m.t.Fatal(err)
	}
	for i, e := range events {
		if string(e.Payload) != m.events[i] {
			m.t.Errorf("event %d reads %q, want %q", i, e.Payload, m.events[i])
		}
	}
	if len(events) == 0 {
		return
	}
	if err := m.h.Done(events[len(events)-1].Seq); err != nil {
		m.t.Fatal(err)
	}
	m.events = m.events[len(events):]
}

func (m *model) verify() {
	t := m.t
	if got := len(pending(t, m.h)); got != len(m.events) {
		t.Errorf("%d events wait, want %d", got, len(m.events))
	}
	if id := m.pick(); id != 0 {
		if c, ok := m.h.Store.(counters); ok {
			wantCount(t, c, m.tokens[id].MeasuredAs(), m.counts[m.tokens[id].MeasuredAs()])
		}
		same(t, byID(t, m.h.Store, id), m.tokens[id])
		tok, err := m.h.Store.ByDigest(t.Context(), m.tokens[id].Secrets[0].Digest)
		if err != nil || tok.ID != id {
			t.Errorf("secret of token %d leads to %v, %v", id, tok, err)
		}
	}
	q := tokenstore.Query{
		AllAccounts: m.r.IntN(3) == 0, Account: m.r.Uint64N(4), Owner: m.r.Uint64N(4),
		OldestFirst: m.r.IntN(2) == 0, Revoked: m.r.IntN(2) == 0,
		Skip: m.r.IntN(10), Limit: m.r.IntN(20),
	}
	if m.r.IntN(2) == 0 {
		q.After = m.pick()
	}
	compare(t, m.h.Store, m.tokens, q)
	m.children()
	if !Soak() || m.r.IntN(100) == 0 {
		m.h.check(t)
	}
}

func (m *model) children() {
	parent := m.pick()
	var want, got []tokenstore.ID
	for id, tok := range m.tokens {
		if tok.Creator.ID == parent && tok.State != tokenstore.StateRevoked {
			want = append(want, id)
		}
	}
	slices.Sort(want)
	change(m.t, m.h.Store, func(tx tokenstore.Tx) error {
		got = nil
		for id, err := range tx.Children(parent) {
			if err != nil {
				return err
			}
			got = append(got, id)
		}
		return nil
	})
	if parent != 0 && !slices.Equal(got, want) {
		m.t.Errorf("children of token %d are %v, want %v", parent, got, want)
	}
}
