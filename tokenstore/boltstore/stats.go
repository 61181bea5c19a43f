package boltstore

import (
	"errors"
	"io/fs"
	"math/bits"
	"os"
	"sync/atomic"

	"tokenward/tokenstore"
)

// Stats is what a store tells for metrics.
type Stats struct {
	Active, Disabled, Revoked uint64 // tokens by the state they are stored in

	Outbox    int   // events that wait for the audit log
	Answers   int   // answers kept for retries
	FileBytes int64 // size of the file

	// Since the store was opened.
	Commits uint64 // transactions committed
	Changes uint64 // changes in them
	Failed  uint64 // transactions that could not be committed

	Fault error // why the store cannot be written: the last attempt failed; nil: it did not

	// Displaced says that the path no longer leads to the open file: somebody moved
	// it away, removed or replaced it. What is written is in a file that the next
	// start does not find.
	Displaced bool

	// Batches counts the commits by how many changes they had: up to 1, 2, 4 …
	// and in the last field more.
	Batches [BatchSizes]uint64
}

// BatchSizes is the number of size classes in [Stats.Batches].
const BatchSizes = 10

// counters is the part of Stats that the writer keeps up to date.
type counters struct {
	states           [4]atomic.Uint64
	outbox, answers  atomic.Int64
	commits, changes atomic.Uint64
	failed           atomic.Uint64
	batches          [BatchSizes]atomic.Uint64
	fault            atomic.Pointer[error] // of the last commit that was tried; nil: none
}

func (c *counters) adopt(t tally) {
	for i, n := range t.states {
		c.states[i].Store(n)
	}
	c.outbox.Store(int64(t.outbox))
	c.answers.Store(int64(t.answers))
}

func (c *counters) count(changes int) {
	c.fault.Store(nil)
	c.commits.Add(1)
	c.changes.Add(uint64(changes))                                 //nolint:gosec // not negative
	c.batches[min(bits.Len(uint(changes-1)), BatchSizes-1)].Add(1) //nolint:gosec // at least 1
}

// Stats returns the present numbers. They are read one after another, not at
// one instant.
func (s *Store) Stats() Stats {
	c := &s.stats
	st := Stats{
		Active:   c.states[tokenstore.StateActive].Load(),
		Disabled: c.states[tokenstore.StateDisabled].Load(),
		Revoked:  c.states[tokenstore.StateRevoked].Load(),
		Outbox:   int(c.outbox.Load()),
		Answers:  int(c.answers.Load()),
		Commits:  c.commits.Load(),
		Changes:  c.changes.Load(),
		Failed:   c.failed.Load(),
	}
	for i := range st.Batches {
		st.Batches[i] = c.batches[i].Load()
	}
	if err := c.fault.Load(); err != nil {
		st.Fault = *err
	}
	if info, err := os.Stat(s.path); err == nil {
		st.FileBytes = info.Size()
		st.Displaced = s.displaced(info)
	} else {
		st.Displaced = errors.Is(err, fs.ErrNotExist)
	}
	return st
}

// displaced reports whether there, what the path leads to, is not the open file.
func (s *Store) displaced(there fs.FileInfo) bool {
	open, err := s.file.Stat()
	return err == nil && !os.SameFile(there, open) // closed: nobody writes any more
}
