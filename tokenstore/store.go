package tokenstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
)

// The errors that callers branch on. A driver wraps its own cause behind them;
// any other error means that the store cannot be used just now.
var (
	// ErrNotFound: there is no such token.
	ErrNotFound = errors.New("no such token")
	// ErrOutcomeUnknown: the change may or may not have been made; ask again.
	ErrOutcomeUnknown = errors.New("the store did not confirm the change: it may or may not have been made, look before trying again")
	// ErrOutboxFull: the audit log does not take events, so changes wait.
	ErrOutboxFull = errors.New("changes are refused while the audit log cannot be written: free its disk, then try again")
	// ErrTooLarge: the change is larger than the store takes at once, and was not
	// made.
	ErrTooLarge = errors.New("the change is too large to be made at once: divide it")
	// ErrClosed: the store has been closed.
	ErrClosed = errors.New("the token store is closed")
	// ErrInvariant: a change was refused because it broke a promise of the
	// store. It is a fault of the program, not of the client.
	ErrInvariant = errors.New("change breaks a promise of the token store")
)

// DuplicateError says that a secret's digest belongs to another token already.
type DuplicateError struct{ Existing, Wanted ID }

func (e *DuplicateError) Error() string {
	return fmt.Sprintf("the secret of token %d belongs to token %d already", e.Wanted, e.Existing)
}

// Reader is the reading side of a store. All methods may be called at once
// from many goroutines. Tokens they return are shared and must not be changed.
type Reader interface {
	// ByDigest returns the token that has a secret with this digest, whatever
	// its state, or ErrNotFound.
	ByDigest(ctx context.Context, d Digest) (*Token, error)

	// ByID returns the token, whatever its state, or ErrNotFound. Once a token
	// has been swept its id is not found again.
	ByID(ctx context.Context, id ID) (*Token, error)

	// List yields the tokens that q selects. It reads in steps and holds no
	// lock while the consumer works, so memory is constant, a slow consumer
	// harms nobody, and a token that changes meanwhile appears in its old or its
	// new form, never twice. An error ends the sequence.
	List(ctx context.Context, q Query) iter.Seq2[*Token, error]

	// Count returns how many tokens q selects, leaving After, Skip and Limit
	// aside. It costs no more than a few reads, however many they are.
	Count(ctx context.Context, q Query) (int, error)
}

// Query selects tokens by where they stand, which an index answers. Selection
// by what they hold is the caller's, over the sequence.
type Query struct {
	AllAccounts bool   // every account, Account and Owner are ignored
	Account     uint64 // with AllAccounts false: this account alone
	Owner       uint64 // 0: every owner of the account

	// Revoked includes revoked tokens, which are otherwise left out.
	Revoked bool

	OldestFirst bool // by id; newest first otherwise
	After       ID   // begin after this id in the order asked for; 0: at the first
	Skip        int  // then pass over this many, at the cost of a few reads
	Limit       int  // then yield at most this many; 0: all
}

// Writer is the writing side of a store.
type Writer interface {
	// Change runs fn and commits what it did, all or nothing, with its audit
	// events. It returns once the change is durable and every later read on
	// this node sees it, the cache included.
	//
	// fn may run more than once, and must have no effect but through tx. When fn
	// returns an error nothing is changed and Change returns that error as it
	// is. Changes behave as if made one after another. A change that puts or
	// sweeps a token must emit an event, else it is refused with ErrInvariant.
	//
	// ctx bounds the wait for a place in the queue; a change under way is
	// finished. An error that wraps ErrOutcomeUnknown leaves open whether the
	// change was made; after any other it was not.
	Change(ctx context.Context, fn func(tx Tx) error) error
}

// Tx is one change being made. It reads its own writes. It must not be used
// after fn returned, nor from another goroutine.
type Tx interface {
	// Token returns a private copy of the token, or ErrNotFound.
	Token(id ID) (*Token, error)

	// Children yields the ids of the tokens that id made and that are not
	// revoked, oldest first.
	Children(id ID) iter.Seq2[ID, error]

	// NewID returns an id that was never used before. It is used up even when
	// the change fails.
	NewID() (ID, error)

	// Put stores t, new or changed, and sets its Revision. t's id must come from
	// NewID or Token. Put refuses with ErrInvariant to bring a revoked token back,
	// to change when it was revoked, to move a token to another account, owner or
	// lineage, to give it a digest that it gave up, or to store what Validate refuses;
	// and with *DuplicateError a digest that another token has or had, swept ones
	// included. EndedAt is set on revoked tokens and on no others.
	Put(t *Token) error

	// DigestOwner returns the token that has or ever had a secret with the digest, a
	// swept one too; 0: none. Like all that a change reads it is right in the last run of it.
	DigestOwner(d Digest) (ID, error)

	// Sweep forgets a token. Its id and digests stay known as used. What its lineage
	// used of limits, where the store keeps that, is forgotten with the last token of
	// the lineage, which no other replaced: those before it have ended by then.
	Sweep(id ID) error

	// Emit adds an event to the outbox, from where it reaches the audit log.
	Emit(event []byte)

	// Answer returns the sealed answer kept under key, or nil.
	Answer(key Digest) ([]byte, error)

	// KeepAnswer keeps a sealed answer until then, at most MaxAnswers of them;
	// those that are kept for the shortest time from now on go first. now is used
	// to drop those past their time.
	KeepAnswer(key Digest, sealed []byte, now, until time.Time) error
}

// MaxAnswers is how many sealed answers a store keeps for retries.
const MaxAnswers = 10_000

// MaxOutbox is how many events may wait for the audit log before changes are
// refused.
const MaxOutbox = 10_000

// Change tells an observer what a commit did to one token.
type Change struct {
	Before *Token // nil for a new token
	After  *Token // nil for a swept token
}
