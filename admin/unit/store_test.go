package unit_test

import (
	"context"
	"errors"
	"iter"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// failAfter is a store whose lists break off.
type failAfter struct {
	storetest.Store
	left int
}

func (s *failAfter) List(ctx context.Context, q tokenstore.Query) iter.Seq2[*tokenstore.Token, error] {
	return func(yield func(*tokenstore.Token, error) bool) {
		n := 0
		for t, err := range s.Store.List(ctx, q) {
			if n++; n > s.left {
				yield(nil, errors.New("the disk is gone"))
				return
			}
			if !yield(t, err) {
				return
			}
		}
	}
}
