package tokenstore_test

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// ground is what a change stands on: some tokens, or a store whose reads fail.
type ground struct {
	tokens map[tokenstore.ID]*tokenstore.Token
	broken map[string]bool // by method
	last   tokenstore.ID
}

var errGround = errors.New("disk on fire")

// newGround has the tokens with the ids, all made by token 1.
func newGround(ids ...tokenstore.ID) *ground {
	g := &ground{tokens: map[tokenstore.ID]*tokenstore.Token{}, broken: map[string]bool{}}
	for _, id := range ids {
		t := storetest.Sample(id, 1, 1)
		t.Creator.ID, t.Revision = 1, 1
		g.tokens[id], g.last = t, max(g.last, id)
	}
	return g
}

func (g *ground) fails(method string) error {
	if g.broken[method] {
		return errGround
	}
	return nil
}

func (g *ground) Token(id tokenstore.ID) (*tokenstore.Token, error) {
	if t, ok := g.tokens[id]; ok {
		return t, g.fails("token")
	}
	return nil, errors.Join(tokenstore.ErrNotFound, g.fails("token"))
}

func (g *ground) DigestOwner(d tokenstore.Digest) (tokenstore.ID, error) {
	for id, t := range g.tokens {
		if slices.ContainsFunc(t.Secrets, func(s tokenstore.SecretRecord) bool { return s.Digest.Equal(d) }) {
			return id, g.fails("digest owner")
		}
	}
	return 0, g.fails("digest owner")
}

func (g *ground) Children(id tokenstore.ID) iter.Seq2[tokenstore.ID, error] {
	return func(yield func(tokenstore.ID, error) bool) {
		var ids []tokenstore.ID
		for child, t := range g.tokens {
			if t.Creator.ID == id && t.State != tokenstore.StateRevoked {
				ids = append(ids, child)
			}
		}
		slices.Sort(ids)
		for _, child := range ids {
			if !yield(child, nil) {
				return
			}
		}
		if err := g.fails("children"); err != nil {
			yield(0, err)
		}
	}
}

func (g *ground) NewID() (tokenstore.ID, error) {
	g.last++
	return g.last, g.fails("new id")
}

// TestChildrenAreThoseOfTheChangeToo: those that it made, disabled and ended are among
// them, or are not, in the order of their ids.
func TestChildrenAreThoseOfTheChangeToo(t *testing.T) {
	t.Parallel()
	g := newGround(1, 3, 5, 6, 7, 8, 9)
	g.tokens[1].Creator.ID = 0
	g.tokens[9].Creator.ID = 2
	g.last = 1
	s := tokenstore.NewStaging(g)
	edit := func(id tokenstore.ID, with func(*tokenstore.Token)) {
		token, err := s.Token(id)
		if err != nil {
			t.Fatal(err)
		}
		with(token)
		if err := s.Put(token); err != nil {
			t.Fatal(err)
		}
	}
	give := func(made, creator tokenstore.ID) {
		g.last = made - 1
		id, err := s.NewID()
		if err != nil {
			t.Fatal(err)
		}
		token := storetest.Sample(id, 1, 1)
		token.Creator.ID = creator
		if err := s.Put(token); err != nil {
			t.Fatal(err)
		}
	}
	give(2, 1)
	give(4, 1)
	give(10, 1)
	give(11, 1)
	give(12, 2)
	give(13, 1)
	edit(5, func(t *tokenstore.Token) { t.State = tokenstore.StateDisabled })
	edit(6, revoke)
	edit(11, revoke)
	for _, id := range []tokenstore.ID{7, 13} {
		if err := s.Sweep(id); err != nil {
			t.Fatal(err)
		}
	}
	children := func(limit int) (got []tokenstore.ID) {
		for id, err := range s.Children(1) {
			if err != nil {
				t.Fatal(err)
			}
			if got = append(got, id); len(got) == limit {
				break
			}
		}
		return got
	}
	want := []tokenstore.ID{2, 3, 4, 5, 8, 10}
	for n := 1; n <= len(want)+1; n++ {
		if got := children(n); !slices.Equal(got, want[:min(n, len(want))]) {
			t.Errorf("the first %d children are %v, want of %v", n, got, want)
		}
	}
	g.broken["children"] = true
	var failed []error
	for _, err := range s.Children(1) {
		if err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) != 1 || !errors.Is(failed[0], errGround) {
		t.Errorf("a list that breaks off ends with %v", failed)
	}
	var touched []string
	for one := range s.Tokens() {
		if touched = append(touched, fmt.Sprint(one.ID)); len(touched) == 2 {
			break
		}
	}
	if !slices.Equal(touched, []string{"2", "4"}) {
		t.Errorf("the first tokens that it touched are %v", touched)
	}
}

// TestGroundThatCannotBeReadIsNotTakenForEmpty: else a token would be made twice, or a
// secret would be two tokens'.
func TestGroundThatCannotBeReadIsNotTakenForEmpty(t *testing.T) {
	t.Parallel()
	for method, call := range map[string]func(*tokenstore.Staging) error{
		"token":  func(s *tokenstore.Staging) error { _, err := s.Token(3); return err },
		"new id": func(s *tokenstore.Staging) error { _, err := s.NewID(); return err },
		"digest owner": func(s *tokenstore.Staging) error {
			id, err := s.NewID()
			if err != nil {
				return err
			}
			return s.Put(storetest.Sample(id, 1, 1))
		},
	} {
		g := newGround(3)
		g.broken[method] = true
		if err := call(tokenstore.NewStaging(g)); !errors.Is(err, errGround) {
			t.Errorf("%s: %v", method, err)
		}
	}
	for name, call := range map[string]func(*tokenstore.Staging) error{
		"put":   func(s *tokenstore.Staging) error { return s.Put(storetest.Sample(3, 1, 1)) },
		"sweep": func(s *tokenstore.Staging) error { return s.Sweep(3) },
	} {
		g := newGround(3)
		g.broken["token"] = true
		s := tokenstore.NewStaging(g)
		if err := call(s); !errors.Is(err, errGround) || !s.Empty() {
			t.Errorf("%s: %v", name, err)
		}
	}
}
