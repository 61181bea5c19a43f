package etcdstore_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"tokenward/tokenstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
	"tokenward/tokenstore/storetest"
)

// cells are the tokens of a history, as the model has them.
type cells [4]struct {
	revision uint64
	revoked  bool
}

// verb is what somebody asked of the store; seen is what he was told.
type verb struct {
	kind string // read, rename or revoke
	i, j int    // which tokens: a read reads two at one moment
}

type seen struct {
	unknown bool // it may or may not have been made
	refused bool // the token was revoked already
	cells   cells
}

// oneStore is what a single store that does one verb after another would do.
var oneStore = porcupine.Model{
	Init: func() any {
		var c cells
		for i := range c {
			c[i].revision = 1
		}
		return c
	},
	Step: func(state, input, output any) (bool, any) {
		c, v, s := state.(cells), input.(verb), output.(seen)
		if v.kind == "read" {
			return s.cells[v.i] == c[v.i] && s.cells[v.j] == c[v.j], c
		}
		next := c
		if !c[v.i].revoked {
			next[v.i].revision++
			next[v.i].revoked = v.kind == "revoke"
		}
		switch {
		case s.unknown:
			return true, next
		case s.refused:
			return c[v.i].revoked, c
		}
		return !c[v.i].revoked && s.cells[v.i] == next[v.i], next
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v %+v", input, output) },
}

// TestHistoriesAreThoseOfOneStore has several nodes change and read the same tokens
// while the network before them fails, and looks for an order in which one store
// could have done the same, each verb between its call and its answer.
func TestHistoriesAreThoseOfOneStore(t *testing.T) {
	t.Parallel()
	rounds, verbs := 1, 25
	if storetest.Soak() {
		rounds, verbs = 30, 60
	}
	b := newBed(t, 3, 3, func(i int, o *nodeOptions) {
		if i == 2 {
			o.path = ""
		}
	})
	for round := range rounds {
		h := &recorded{began: time.Now()}
		for i := range h.ids {
			h.ids[i] = b.mustCreate(i % len(b.nodes)).ID
		}
		if round%3 == 2 {
			h.loseAnswers(b, rand.New(rand.NewPCG(uint64(round), 99))) //nolint:gosec // repeatable
		}
		stop := b.disturb(uint64(round)) //nolint:gosec // small
		var clients sync.WaitGroup
		for i := range b.nodes {
			for c := range 2 {
				r := rand.New(rand.NewPCG(uint64(round), uint64(2*i+c))) //nolint:gosec // repeatable
				clients.Go(func() {
					for range verbs {
						h.do(b, i, 2*i+c, r)
					}
				})
			}
		}
		if round%3 == 1 {
			leader := b.etcd.Leader()
			leader.Stop()
			leader.Start()
		}
		clients.Wait()
		stop()
		h.finish()
		if got := porcupine.CheckOperationsTimeout(oneStore, h.ops, time.Minute); got != porcupine.Ok {
			t.Fatalf("round %d: %d verbs: %s: no single store could have answered so", round, len(h.ops), got)
		}
		t.Logf("round %d: %d verbs in %s, %d of unknown outcome, %d given up", round, len(h.ops), time.Since(h.began).Round(time.Millisecond), h.unknown, h.failed)
		b.healed()
	}
}

// loseAnswers takes all answers from the first node in the middle of a change, for
// longer than it is tried, while the others go on, and has all read what became of it.
func (h *recorded) loseAnswers(b *bed, r *rand.Rand) {
	var cut sync.WaitGroup
	cut.Go(func() {
		op := porcupine.Operation{ClientId: 100, Input: verb{kind: "rename"}, Call: int64(time.Since(h.began))}
		s, err := h.change(b, 0, verb{kind: "rename"}, func() { b.relays[0].Stall(etcdtest.Answers) })
		h.note(op, s, err)
	})
	for range 20 {
		h.do(b, 1, 200, r)
	}
	cut.Wait()
	b.relays[0].Heal()
	for i := range b.nodes {
		for range 10 {
			h.do(b, i, 300+i, r)
		}
	}
}

// TestHistoryOfALostChangeIsRefused shows the checker histories that no store may make.
func TestHistoryOfALostChangeIsRefused(t *testing.T) {
	at := func(revision uint64, revoked bool) (s seen) {
		for i := range s.cells {
			s.cells[i].revision = 1
		}
		s.cells[0].revision, s.cells[0].revoked = revision, revoked
		return s
	}
	const forever = math.MaxInt64
	change, revoked, read := verb{kind: "rename"}, verb{kind: "revoke"}, verb{kind: "read"}
	for _, test := range []struct {
		name string
		ops  []porcupine.Operation
		ok   bool
	}{
		{"read after write", []porcupine.Operation{{Input: change, Output: at(2, false), Call: 1, Return: 2}, {Input: read, Output: at(2, false), Call: 3, Return: 4}}, true},
		{"a lost write", []porcupine.Operation{{Input: change, Output: at(2, false), Call: 1, Return: 2}, {Input: read, Output: at(1, false), Call: 3, Return: 4}}, false},
		{"a token that comes back", []porcupine.Operation{{Input: revoked, Output: at(2, true), Call: 1, Return: 2}, {Input: change, Output: at(3, false), Call: 3, Return: 4}}, false},
		{"the same revision twice", []porcupine.Operation{{Input: change, Output: at(2, false), Call: 1, Return: 5}, {ClientId: 1, Input: change, Output: at(2, false), Call: 2, Return: 6}}, false},
		{"an unknown outcome that was made", []porcupine.Operation{{ClientId: 9, Input: change, Output: seen{unknown: true}, Call: 1, Return: forever}, {Input: read, Output: at(2, false), Call: 3, Return: 4}}, true},
		{"one that was not", []porcupine.Operation{{ClientId: 9, Input: change, Output: seen{unknown: true}, Call: 1, Return: forever}, {Input: read, Output: at(1, false), Call: 3, Return: 4}}, true},
		{"one that was made twice", []porcupine.Operation{{ClientId: 9, Input: change, Output: seen{unknown: true}, Call: 1, Return: forever}, {Input: read, Output: at(3, false), Call: 3, Return: 4}}, false},
	} {
		if got := porcupine.CheckOperations(oneStore, test.ops); got != test.ok {
			t.Errorf("%s: could be of one store: %v, want %v", test.name, got, test.ok)
		}
	}
}

// recorded is a history.
type recorded struct {
	began time.Time
	ids   [4]tokenstore.ID

	mu              sync.Mutex // guards what follows
	ops             []porcupine.Operation
	unknown, failed int
}

var errRevoked = errors.New("revoked already")

// do does a random verb on a node for a client.
func (h *recorded) do(b *bed, node, client int, r *rand.Rand) {
	v := verb{kind: "rename", i: r.IntN(len(h.ids)), j: r.IntN(len(h.ids))}
	switch r.IntN(12) {
	case 0:
		v.kind = "revoke"
	case 1, 2, 3, 4, 5:
		v.kind = "read"
	}
	op := porcupine.Operation{ClientId: client, Input: v, Call: int64(time.Since(h.began))}
	s, err := h.ask(b, node, v)
	h.note(op, s, err)
}

// note adds a verb that has ended.
func (h *recorded) note(op porcupine.Operation, s seen, err error) {
	op.Output, op.Return = s, int64(time.Since(h.began))
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case s.unknown:
		op.Return = math.MaxInt64 // whenever it is made, if ever
		h.unknown++
	case err != nil:
		h.failed++
		return // it was not made, and told nothing
	}
	h.ops = append(h.ops, op)
}

func (s *seen) tell(i int, tok *tokenstore.Token) {
	s.cells[i].revision, s.cells[i].revoked = tok.Revision, tok.State == tokenstore.StateRevoked
}

func (h *recorded) ask(b *bed, node int, v verb) (s seen, err error) {
	if v.kind == "read" {
		err = b.nodes[node].Change(b.t.Context(), func(tx tokenstore.Tx) error {
			for _, i := range []int{v.i, v.j} {
				tok, err := tx.Token(h.ids[i])
				if err != nil {
					return err
				}
				s.tell(i, tok)
			}
			return nil
		})
		return s, err
	}
	return h.change(b, node, v, nil)
}

// change does a verb that changes; between is called before each commit.
func (h *recorded) change(b *bed, node int, v verb, between func()) (s seen, err error) {
	err = b.change(node, h.ids[v.i], func(tok *tokenstore.Token) error {
		if tok.State == tokenstore.StateRevoked {
			return errRevoked
		}
		if rename(tok); v.kind == "revoke" {
			revoke(tok)
		}
		return nil
	}, between, func(tok *tokenstore.Token) { s.tell(v.i, tok) })
	switch {
	case errors.Is(err, errRevoked):
		s.refused, err = true, nil
	case errors.Is(err, tokenstore.ErrOutcomeUnknown):
		s.unknown = true
	}
	return s, err
}

// finish gives the verbs of unknown outcome clients of their own, for they have not
// ended when their client goes on.
func (h *recorded) finish() {
	next := 1000
	for i := range h.ops {
		if h.ops[i].Return == math.MaxInt64 {
			h.ops[i].ClientId = next
			next++
		}
	}
}

// disturb has the network before the nodes fail again and again, in ways that
// leave each node at least one member, until the returned function is called, which
// heals it.
func (b *bed) disturb(seed uint64) (stop func()) {
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // repeatable
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			relays := b.relays[r.IntN(len(b.relays))]
			for range 1 + r.IntN(2) {
				one := relays.To(r.IntN(b.etcd.Size()))
				switch r.IntN(4) {
				case 0:
					one.Cut()
				case 1:
					one.DropAnswers()
				case 2:
					one.Stall(etcdtest.Both)
				default:
					one.Delay(time.Duration(r.IntN(300)) * time.Millisecond)
				}
			}
			select {
			case <-done:
				return
			case <-time.After(time.Duration(100+r.IntN(900)) * time.Millisecond):
			}
			relays.Heal()
		}
	})
	return func() {
		close(done)
		running.Wait()
		for _, relays := range b.relays {
			relays.Heal()
		}
	}
}
