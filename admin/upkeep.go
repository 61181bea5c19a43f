package admin

import (
	"context"
	"errors"
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
)

// KeepEnded is how long expired and revoked tokens stay to be seen before they are
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
// silence is shorter) has passed from then, a secret counts as used.
func (s *Service) EndSilent(ctx context.Context, ids iter.Seq2[tokenstore.ID, error], since time.Time) (int, error) {
	ended := 0
	for id, err := range ids {
		if err != nil {
			return ended, storeError(err)
		}
		t, err := s.reader.ByID(ctx, id)
		if errors.Is(err, tokenstore.ErrNotFound) {
			continue
		}
		if err != nil {
			return ended, storeError(err)
		}
		silent, err := s.silent(t, since)
		if err != nil {
			return ended, err
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
	return ended, nil
}

// silent reports whether t's old secret has been silent for long enough.
func (s *Service) silent(t *tokenstore.Token, since time.Time) (bool, error) {
	if len(t.Secrets) < 2 || t.Secrets[1].Silence == 0 || t.State == tokenstore.StateRevoked {
		return false, nil
	}
	used, err := s.Usage(t)
	if err != nil {
		return false, err
	}
	now, silence := s.Now(), t.Secrets[1].Silence
	last := used.Of(t.Secrets[1].Digest).Last
	if rotated := t.Secrets[0].CreatedAt; last.Before(rotated) {
		last = rotated
	}
	return now.Sub(last) >= silence && now.Sub(since) >= min(silence, time.Hour), nil
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
// as ended ones are kept, and returns how many it swept. Their ids and digests
// stay known as used. It works in small transactions with pauses between them, and
// stops early while many events wait for the audit log.
func (s *Service) Sweep(ctx context.Context, ids iter.Seq2[tokenstore.ID, error]) (int, error) {
	swept := 0
	var batch []tokenstore.ID
	for id, err := range ids {
		if err != nil {
			return swept, storeError(err)
		}
		if batch = append(batch, id); len(batch) < sweepBatch {
			continue
		}
		n, err := s.sweep(ctx, batch)
		swept, batch = swept+n, batch[:0]
		if err != nil {
			return swept, err
		}
		if s.opts.Backlog != nil && s.opts.Backlog() > tokenstore.MaxOutbox/2 {
			return swept, nil
		}
		select {
		case <-ctx.Done():
			return swept, storeError(ctx.Err())
		case <-time.After(sweepPause):
		}
	}
	n, err := s.sweep(ctx, batch)
	return swept + n, err
}

func (s *Service) sweep(ctx context.Context, ids []tokenstore.ID) (n int, err error) {
	if len(ids) == 0 {
		return 0, nil
	}
	ids = slices.Clone(ids)
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
