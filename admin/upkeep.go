package admin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"tokenward/audit"
	"tokenward/tokenstore"
)

// The verbs of the program itself, which no caller asks for.
const (
	verbSilence = audit.Word("rotate_silence")
	verbSweep   = audit.Word("sweep")
	verbExpiry  = audit.Word("expiry_warning")
)

// KeepEnded is how long expired and revoked tokens stay visible before they are
// swept. A face may hide them earlier.
const KeepEnded = 90 * 24 * time.Hour

// sweepBatch bounds the tokens of one transaction: other changes get their turn
// between two.
const sweepBatch = 128

// sweepPause lies between two of them, so that sweeping takes a small part of the
// store's time.
const sweepPause = 100 * time.Millisecond

// EndSilent ends the old secrets, of the tokens with these ids, that have not been
// used for as long as their rotation said, and returns how many it ended. since is
// from when on all uses are known for sure: before an hour (or less, if the
// silence is shorter) has passed from then, a secret counts as used. forgotten is until
// when uses are not known although there were some, so that a secret counts as used then;
// zero: never. lag is for how
// long a use on another node may not be known here: silence is that much longer. A
// token of which something cannot be read is left as it is; the first such error is
// returned once the others have had their turn.
func (s *Service) EndSilent(ctx context.Context, ids iter.Seq2[tokenstore.ID, error], since, forgotten time.Time, lag time.Duration) (int, error) {
	ended := 0
	var unreadable error
	for id, err := range ids {
		if err != nil {
			return ended, storeError(err)
		}
		if err := ctx.Err(); err != nil {
			return ended, storeError(err)
		}
		t, err := s.reader.ByID(ctx, id)
		if errors.Is(err, tokenstore.ErrNotFound) {
			continue
		}
		silent := false
		if err == nil {
			silent, err = s.silent(t, since, forgotten, lag)
		}
		if err != nil && unreadable == nil {
			unreadable = fmt.Errorf("token %d: %w", id, err)
		}
		if !silent {
			continue
		}
		done, err := s.endSilent(ctx, t)
		if err != nil {
			return ended, err
		}
		if done {
			ended++
		}
	}
	if unreadable != nil {
		return ended, storeError(unreadable)
	}
	return ended, nil
}

// silent reports whether t's old secret has been silent for long enough.
func (s *Service) silent(t *tokenstore.Token, since, forgotten time.Time, lag time.Duration) (bool, error) {
	if len(t.Secrets) < 2 || t.Secrets[1].Silence == 0 || t.State == tokenstore.StateRevoked {
		return false, nil
	}
	used, err := s.Usage(t)
	if err != nil {
		return false, err
	}
	now, silence := s.Now(), t.Secrets[1].Silence
	last := used.Of(t.Secrets[1].Digest).Last
	for _, at := range []time.Time{t.Secrets[0].CreatedAt, forgotten} {
		if last.Before(at) {
			last = at
		}
	}
	if lag == 0 && last.After(now) { // by this clock, before it was set back: other nodes' may be ahead
		last = since
	}
	return now.Sub(last) >= silence+lag && now.Sub(since) >= min(silence, time.Hour), nil
}

// endSilent takes the old secret from t, unless t was changed meanwhile.
func (s *Service) endSilent(ctx context.Context, t *tokenstore.Token) (done bool, err error) {
	err = s.writer.Change(ctx, func(tx tokenstore.Tx) error {
		done = false
		before, err := tx.Token(t.ID)
		if errors.Is(err, tokenstore.ErrNotFound) || err == nil && before.Revision != t.Revision {
			return nil
		}
		if err != nil {
			return err
		}
		after := before.Clone()
		after.Secrets = after.Secrets[:1]
		done = true
		return s.putOwn(tx, verbSilence, "it was not used for "+t.Secrets[1].Silence.String(), before, after)
	})
	if err != nil {
		return false, storeError(err)
	}
	return done, nil
}

// putOwn stores a change that the program made by itself.
func (s *Service) putOwn(tx tokenstore.Tx, verb audit.Word, reason string, before, after *tokenstore.Token) error {
	now := s.Now()
	after.UpdatedAt = now
	if err := tx.Put(after); err != nil {
		return err
	}
	return s.emitOwn(tx, verb, reason, now, before, after)
}

func (s *Service) emitOwn(tx tokenstore.Tx, verb audit.Word, reason string, now time.Time, before, after *tokenstore.Token) error {
	event := s.event(Caller{}, nil, verb, now)
	event.Outcome, event.Reason = audit.Success, reason
	event.Target = audit.Target{Token: uint64(before.ID), Account: before.Account, Owner: before.Owner}
	event.Before, event.After = auditToken(before), auditToken(after)
	return emit(tx, event)
}

// Sweep forgets those of the tokens with these ids whose end lies back for as long
// as ended ones are kept, and that have made no token which is still there: they
// connect a branch that may have to be revoked as a whole. It returns how many it
// swept. Their ids and digests stay known as used. It works in small transactions
// with pauses between them, and stops early while many events wait for the audit
// log. Where there is anything to sweep it reads the whole store once.
func (s *Service) Sweep(ctx context.Context, ids iter.Seq2[tokenstore.ID, error]) (int, error) {
	leaves, err := s.leaves(ctx, ids)
	if err != nil {
		return 0, err
	}
	swept := 0
	for batch := range slices.Chunk(leaves, sweepBatch) {
		if swept > 0 {
			select {
			case <-ctx.Done():
				return swept, storeError(ctx.Err())
			case <-time.After(sweepPause):
			}
		}
		n, err := s.sweep(ctx, batch)
		swept += n
		if err != nil {
			return swept, err
		}
		if s.opts.Backlog != nil && s.opts.Backlog() > tokenstore.MaxOutbox/2 {
			return swept, nil
		}
	}
	return swept, nil
}

// maxSweep bounds the tokens that one call looks at, and so its memory. What is
// left is for the next one.
const maxSweep = 1 << 18

// leaves are the first of the tokens with these ids that made none of those in
// the store. What has ended for so long makes no more.
func (s *Service) leaves(ctx context.Context, ids iter.Seq2[tokenstore.ID, error]) ([]tokenstore.ID, error) {
	var found []tokenstore.ID
	for id, err := range ids {
		if err != nil {
			return nil, storeError(err)
		}
		if found = append(found, id); len(found) == maxSweep {
			break
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	parents := make(map[tokenstore.ID]bool, len(found))
	for _, id := range found {
		parents[id] = false
	}
	for t, err := range s.reader.List(ctx, tokenstore.Query{AllAccounts: true, Revoked: true, OldestFirst: true}) {
		if err != nil {
			return nil, storeError(err)
		}
		if _, ok := parents[t.Creator.ID]; ok {
			parents[t.Creator.ID] = true
		}
	}
	return slices.DeleteFunc(found, func(id tokenstore.ID) bool { return parents[id] }), nil
}

func (s *Service) sweep(ctx context.Context, ids []tokenstore.ID) (n int, err error) {
	err = s.writer.Change(ctx, func(tx tokenstore.Tx) error {
		n = 0
		now := s.Now()
		for _, id := range ids {
			t, err := tx.Token(id)
			if errors.Is(err, tokenstore.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if !sweepable(t, now) {
				continue
			}
			if err := tx.Sweep(id); err != nil {
				return err
			}
			if err := s.emitOwn(tx, verbSweep, "it ended long ago", now, t, nil); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	if err != nil {
		return 0, storeError(err)
	}
	return n, nil
}

// sweepable reports whether t has been kept for long enough after its end.
func sweepable(t *tokenstore.Token, now time.Time) bool {
	switch {
	case t.State == tokenstore.StateRevoked:
		return !now.Before(t.EndedAt.Add(KeepEnded))
	case t.Expiry.Never:
		return false
	}
	return !now.Before(t.Expiry.At.Add(KeepEnded))
}

// ExpiryWarning is the audit event that warns of the end of t, which lies within
// so many days.
func (s *Service) ExpiryWarning(t *tokenstore.Token, days int) ([]byte, error) {
	event := s.event(Caller{}, nil, verbExpiry, s.Now())
	event.Outcome = audit.Success
	event.Reason = fmt.Sprintf("it ends within %d days", days)
	event.Target = audit.Target{Token: uint64(t.ID), Account: t.Account, Owner: t.Owner}
	event.Before, event.After = auditToken(t), auditToken(t) // nothing changed: what has no after is gone
	b, err := audit.Encode(event)
	if err != nil {
		return nil, &Error{Kind: KindInternal, Cause: err}
	}
	return b, nil
}
