package storetest

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"tokenward/tokenstore"
)

// Fate is what a [Faulty] store makes of a change.
type Fate uint8

// The fates. The zero Fate makes the change.
const (
	Made        Fate = 0
	NotMade     Fate = 1 // refused before anything is written
	Unconfirmed Fate = 2 // made, and reported with ErrOutcomeUnknown
	Lost        Fate = 3 // not made, and reported with ErrOutcomeUnknown
	Twice       Fate = 4 // the function runs twice, the first time in vain
)

// ErrFault is the cause of every error that a [Faulty] store makes.
var ErrFault = errors.New("fault injected by a test")

// Faulty is a store that fails when its hooks say so. The hooks are set before
// it is used, and may be called at once from many goroutines.
type Faulty struct {
	Store

	// ChangeFate decides about each change; nil makes all of them.
	ChangeFate func() Fate

	// BeforeRead runs before each read, and at each token of a list. It may
	// block, for a slow store, and its error is the read's. nil reads at once.
	BeforeRead func(ctx context.Context) error
}

// Change implements [tokenstore.Writer].
func (f *Faulty) Change(ctx context.Context, fn func(tx tokenstore.Tx) error) error {
	fate := Made
	if f.ChangeFate != nil {
		fate = f.ChangeFate()
	}
	switch fate {
	case Made:
	case NotMade:
		return ErrFault
	case Lost:
		return fmt.Errorf("%w: %w", tokenstore.ErrOutcomeUnknown, ErrFault)
	case Unconfirmed:
		if err := f.Store.Change(ctx, fn); err != nil {
			return err
		}
		return fmt.Errorf("%w: %w", tokenstore.ErrOutcomeUnknown, ErrFault)
	case Twice:
		err := f.Store.Change(ctx, func(tx tokenstore.Tx) error { return errors.Join(fn(tx), ErrFault) })
		if !errors.Is(err, ErrFault) {
			return err
		}
		ctx = context.WithoutCancel(ctx) // the wait for a place is over
	}
	return f.Store.Change(ctx, fn)
}

func (f *Faulty) before(ctx context.Context) error {
	if f.BeforeRead == nil {
		return nil
	}
	return f.BeforeRead(ctx)
}

// ByDigest implements [tokenstore.Reader].
func (f *Faulty) ByDigest(ctx context.Context, d tokenstore.Digest) (*tokenstore.Token, error) {
	if err := f.before(ctx); err != nil {
		return nil, err
	}
	return f.Store.ByDigest(ctx, d)
}

// ByID implements [tokenstore.Reader].
func (f *Faulty) ByID(ctx context.Context, id tokenstore.ID) (*tokenstore.Token, error) {
	if err := f.before(ctx); err != nil {
		return nil, err
	}
	return f.Store.ByID(ctx, id)
}

// List implements [tokenstore.Reader].
func (f *Faulty) List(ctx context.Context, q tokenstore.Query) iter.Seq2[*tokenstore.Token, error] {
	return func(yield func(*tokenstore.Token, error) bool) {
		for t, err := range f.Store.List(ctx, q) {
			if ferr := f.before(ctx); ferr != nil {
				yield(nil, ferr)
				return
			}
			if !yield(t, err) {
				return
			}
		}
	}
}

// Count implements [tokenstore.Reader].
func (f *Faulty) Count(ctx context.Context, q tokenstore.Query) (int, error) {
	if err := f.before(ctx); err != nil {
		return 0, err
	}
	return f.Store.Count(ctx, q)
}
