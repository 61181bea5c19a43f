package etcdstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"tokenward/tokenstore"
)

// Change implements [tokenstore.Writer]. The changes of other nodes can make fn run
// again.
func (s *Store) Change(ctx context.Context, fn func(tx tokenstore.Tx) error) error {
	return s.write(ctx, func(w *writing) error { return fn(&transaction{w.staging(), w}) })
}

// write makes a change: fn reads and stages it, as often as others make their own
// in between.
func (s *Store) write(ctx context.Context, fn func(*writing) error) error {
	return s.writeWithin(ctx, 2*changePatience, fn) // once to begin it, and once to finish
}

// writeWithin is write for no longer than patience.
func (s *Store) writeWithin(ctx context.Context, patience time.Duration, fn func(*writing) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// What was begun is finished, whether or not anybody waits for it.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	c := &caller{group: &s.group}
	defer c.end()
	w, revision, err := s.attempt(work, c, fn)
	if err != nil || revision == 0 {
		return err
	}
	s.stats.changes.Add(1)
	return w.seen(revision)
}

// takeLane waits for a lane that nothing is on its way on.
func (s *Store) takeLane(ctx context.Context) (*lane, error) {
	if s.isTaken.Load() {
		return nil, errTaken
	}
	patience := time.NewTimer(changePatience)
	defer patience.Stop()
	select {
	case l := <-s.lanes:
		return l, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.ctx.Done():
		return nil, tokenstore.ErrClosed
	case <-patience.C:
		return nil, s.failed("begin a change", errNoLane)
	}
}

var errNoLane = errors.New("it is not known yet what became of earlier ones")

// attempt tries until the change is made, first with others and then by itself, for
// as long as ctx allows. The revision is 0 when there was nothing to write.
func (s *Store) attempt(ctx context.Context, c *caller, fn func(*writing) error) (*writing, int64, error) {
	pause := time.Millisecond
	var l *lane // nil: it has none for itself
	var w *writing
	for certain := false; ; certain = true {
		if s.isTaken.Load() {
			return nil, 0, errTaken
		}
		w = w.again(s, ctx, c, certain)
		err := w.readAhead()
		if err == nil {
			err = guarded(func() error { return fn(w) })
		}
		if errors.Is(err, errIDUsed) {
			w.given, w.spare = nil, nil
			continue
		}
		if errors.Is(err, rpctypes.ErrCompacted) {
			continue // its revision is gone; the next has another
		}
		if err != nil && !certain && len(w.fresh) > 0 {
			continue // it says no for its own reason, such as a dry run's, and no commit proves what was taken for granted
		}
		if err != nil {
			return nil, 0, err
		}
		if w.empty() {
			return nil, 0, nil
		}
		if err := w.finish(); err != nil {
			return nil, 0, err
		}
		if len(w.ops) == 0 && len(w.events) == 0 {
			return nil, 0, nil
		}
		cmps := w.comparisons()
		if len(cmps)+groundCompares > txnCompares && w.staged != nil {
			if !w.certain {
				continue
			}
			cmps = w.onlyHead()
		}
		var o outcome
		if p := partOf(w, cmps); p != nil && !certain {
			o, err = s.group.commit(p)
		} else {
			if l == nil {
				if l, err = s.takeLane(ctx); err != nil {
					return nil, 0, err
				}
				defer s.giveBack(l)
			}
			s.stats.commits.Add(1)
			o, err = l.commit(ctx, cmps, w.operations(s))
		}
		switch {
		case errors.Is(err, tokenstore.ErrOutcomeUnknown):
			s.stats.unknown.Add(1)
			return nil, 0, err
		case errors.Is(err, rpctypes.ErrRequestTooLarge):
			return nil, 0, fmt.Errorf("%w: %w", tokenstore.ErrTooLarge, err)
		case errors.Is(err, errNotMade) && ctx.Err() == nil: // another member may answer
		case err != nil:
			return nil, 0, err
		case o.made:
			return w, o.revision, nil
		}
		s.stats.conflicts.Add(1)
		if sleep(ctx, rand.N(pause)) != nil { //nolint:gosec // only to spread
			if err != nil {
				return nil, 0, err
			}
			return nil, 0, errors.New("other nodes change the same tokens all the time: nothing was changed, try again")
		}
		pause = min(2*pause, 100*time.Millisecond)
	}
}

// guarded turns a panic in a change into an error.
func guarded(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("change panicked: %v\n%s", p, debug.Stack())
		}
	}()
	return fn()
}

// giveBack returns a lane, at once or when it is known what became of its last
// change.
func (s *Store) giveBack(l *lane) {
	if !l.unsettled {
		s.lanes <- l
		return
	}
	s.inBackground(func() {
		if _, err := l.settle(s.ctx); s.ctx.Err() == nil || err == nil {
			s.lanes <- l
		}
	})
}

// seen waits until this node has heard of what was made as the revision. It has
// patience of its own: most of the change's may be spent.
func (w *writing) seen(revision int64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), changePatience)
	defer cancel()
	var err error
	if w.touches {
		err = w.store.data.wait(ctx, revision)
	}
	if err == nil && len(w.events) > 0 {
		err = w.store.events.wait(ctx, revision)
	}
	if err != nil {
		return fmt.Errorf("%w (it was made, as revision %d, and this node has not heard of it yet)", tokenstore.ErrOutcomeUnknown, revision)
	}
	return nil
}

// writing is one try of a change.
type writing struct {
	store    *Store
	ctx      context.Context // lives as long as one try
	caller   *caller
	certain  bool  // nothing is taken for granted: an earlier try was refused
	at       int64 // the revision that everything is read at; 0: nothing was read yet
	read     map[string]int64
	ranges   []string                    // prefixes below which nothing may be put after at
	whole    bool                        // it rests on all data
	fresh    map[tokenstore.Digest]bool  // digests that no token ever had
	given    map[tokenstore.ID]bool      // ids from NewID
	spare    []tokenstore.ID             // that an earlier try was given
	ahead    []string                    // keys that an earlier try read
	known    map[string]*mvccpb.KeyValue // what they have at the revision of the change; nil for nothing
	staged   *tokenstore.Staging
	answers  []stagedAnswer
	answered time.Time // as KeepAnswer was told
	noted    bool      // the writing pepper is noted
	output
}

// output is what a change writes, or several of one transaction.
type output struct {
	ops     []clientv3.Op
	events  [][]byte
	touches bool // one of ops is below data/
}

// operations are all that is put, with what says that it was.
func (o *output) operations(s *Store) []clientv3.Op {
	ops := slices.Clip(o.ops)
	if len(o.events) > 0 {
		ops = append(ops, clientv3.OpPut(s.keys.outbox(s.opts.Node)+s.nextNonceKey(), string(packEvents(o.events))))
	}
	if o.touches {
		ops = append(ops, clientv3.OpPut(s.keys.head(), s.nextNonce()))
	}
	return ops
}

type stagedAnswer struct {
	key    tokenstore.Digest
	sealed []byte
	until  time.Time
}

func (w *writing) staging() *tokenstore.Staging {
	if w.staged == nil {
		w.staged = tokenstore.NewStaging(w)
	}
	return w.staged
}

// again returns a new try of the same change, after w; of the first w is nil.
func (w *writing) again(s *Store, ctx context.Context, c *caller, certain bool) *writing {
	next := &writing{
		store: s, ctx: ctx, caller: c, certain: certain, read: map[string]int64{}, fresh: map[tokenstore.Digest]bool{},
		given: map[tokenstore.ID]bool{}, known: map[string]*mvccpb.KeyValue{},
	}
	if w != nil {
		next.ahead = slices.Collect(maps.Keys(w.read))
		next.spare = slices.AppendSeq(w.spare, maps.Keys(w.given))
		slices.Sort(next.spare)
	}
	return next
}

// readAhead reads what an earlier try read, many keys in one question.
func (w *writing) readAhead() error {
	for keys := range slices.Chunk(w.ahead, readOps) {
		ops := make([]clientv3.Op, len(keys))
		for i, key := range keys {
			ops[i] = clientv3.OpGet(key, clientv3.WithRev(w.at))
		}
		found, revision, err := w.store.read(w.ctx, ops...)
		if err != nil {
			return w.store.failed("read for a change", err)
		}
		if w.at == 0 {
			w.at = revision
		}
		for i, key := range keys {
			w.known[key] = nil
			if len(found[i]) > 0 {
				w.known[key] = found[i][0]
			}
		}
	}
	return nil
}

// get reads a key at the revision of the change, and has the commit depend on it.
func (w *writing) get(key string) ([]byte, error) {
	kv, ok := w.known[key]
	if !ok {
		got, err := w.ask(key)
		if err != nil {
			return nil, err
		}
		if len(got) > 0 {
			kv = got[0]
		}
	}
	if kv == nil {
		w.read[key] = 0
		return nil, nil
	}
	w.read[key] = kv.ModRevision
	return kv.Value, nil
}

// ask reads from etcd at the revision of the change, which its first question sets.
func (w *writing) ask(key string, opts ...clientv3.OpOption) ([]*mvccpb.KeyValue, error) {
	ctx, cancel := context.WithTimeout(w.ctx, 2*changePatience/3)
	defer cancel()
	if w.at > 0 {
		opts = append(opts, clientv3.WithRev(w.at))
	}
	found, revision, err := w.store.read(ctx, clientv3.OpGet(key, opts...))
	if err != nil {
		return nil, w.store.failed("read for a change", err)
	}
	if w.at == 0 {
		w.at = revision
	}
	return found[0], nil
}

// readOps is how many questions [Store.read] takes.
const readOps = txnOps - 1

// read asks for keys by a linearizable read, all at once, and for whose they are: what
// another store has under the prefix, or that an empty etcd has nothing, is no answer.
// It returns what was found for each question, and the revision.
func (s *Store) read(ctx context.Context, questions ...clientv3.Op) (found [][]*mvccpb.KeyValue, revision int64, err error) {
	ops := append([]clientv3.Op{clientv3.OpGet(s.keys.storeID())}, questions...)
	got, err := retried(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		got, err := s.etcd.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			return nil, err
		}
		if id := got.Responses[0].GetResponseRange().Kvs; len(id) != 1 || string(id[0].Value) != s.ID() {
			return nil, errOtherStore
		}
		return got, nil
	})
	if err != nil {
		return nil, 0, err
	}
	for _, r := range got.Responses[1:] {
		found = append(found, r.GetResponseRange().Kvs)
	}
	return found, got.Header.Revision, nil
}

// retried asks again, and so another member, while ctx allows. The first question is
// given up soon: a member that was cut off from the others answers nothing and looks
// well, and each of its clients' calls comes to it in turn.
func retried[T any](ctx context.Context, ask func(ctx context.Context) (T, error)) (T, error) {
	pause := 10 * time.Millisecond
	for try := 0; ; try++ {
		call, cancel := context.WithTimeout(ctx, timeoutOf(try))
		got, err := ask(call)
		cancel()
		if err == nil || isAnswer(err) {
			return got, err
		}
		if sleep(ctx, pause/2+rand.N(pause)) != nil { //nolint:gosec // only to spread
			return got, err
		}
		pause = min(2*pause, 500*time.Millisecond)
	}
}

// timeoutOf is how long a try of several waits for an answer: each time as often as
// clusters have members, mostly, so that chance does not spend all patience on the one
// member that says nothing.
func timeoutOf(try int) time.Duration { return min(firstTimeout<<min(try/3, 3), callTimeout) }

// isAnswer reports whether an error is what etcd has to say, and no member would say
// anything else.
func isAnswer(err error) bool {
	return neverMade(err) || errors.Is(err, rpctypes.ErrCompacted) || errors.Is(err, rpctypes.ErrFutureRev) || errors.Is(err, rpctypes.ErrLeaseNotFound) ||
		errors.Is(err, errTaken) || errors.Is(err, errGroundGone) || errors.Is(err, errOtherStore) || errors.Is(err, errRestored)
}

// Token implements [tokenstore.Ground].
func (w *writing) Token(id tokenstore.ID) (*tokenstore.Token, error) {
	key := w.store.keys.token(id)
	if w.given[id] && !w.certain {
		w.read[key] = 0
		return nil, tokenstore.ErrNotFound
	}
	v, err := w.get(key)
	if err != nil {
		return nil, err
	}
	if v == nil {
		return nil, tokenstore.ErrNotFound
	}
	if w.given[id] {
		return nil, errIDUsed
	}
	return w.store.decode(id, v)
}

// decode reads a record, which is valid only under its own id: a seal proves who
// wrote it, not where it belongs.
func (c *Client) decode(id tokenstore.ID, sealed []byte) (*tokenstore.Token, error) {
	record, err := c.opts.Peppers.Unseal(sealed)
	if err != nil {
		return nil, fmt.Errorf("token %d: %w", id, err)
	}
	t, err := tokenstore.DecodeRecord(record)
	if err != nil {
		return nil, fmt.Errorf("token %d: %w", id, err)
	}
	if t.ID != id {
		return nil, fmt.Errorf("token %d: etcd holds the record of another token under its key", id)
	}
	return t, nil
}

// DigestOwner implements [tokenstore.Ground]. The first try believes that a digest
// is new unless this node knows better, and has the commit depend on it; so that a
// thousand new tokens do not take a thousand questions.
func (w *writing) DigestOwner(d tokenstore.Digest) (tokenstore.ID, error) {
	if w.fresh[d] {
		return 0, nil
	}
	key := w.store.keys.digest(d)
	if !w.certain && !w.store.mayKnow(w.ctx, d) {
		w.read[key] = 0
		w.fresh[d] = true
		return 0, nil
	}
	v, err := w.get(key)
	if err != nil {
		return 0, err
	}
	if v == nil {
		w.fresh[d] = true
		return 0, nil
	}
	return parseID(string(v))
}

// mayKnow reports whether this node has heard of a token with the digest.
func (s *Store) mayKnow(ctx context.Context, d tokenstore.Digest) bool {
	if s.replica == nil {
		return false
	}
	_, err := s.replica.ByDigest(ctx, d)
	return !errors.Is(err, tokenstore.ErrNotFound)
}

// Children implements [tokenstore.Ground]. It rests on all tokens, so any change
// that comes between has it made again.
func (w *writing) Children(id tokenstore.ID) iter.Seq2[tokenstore.ID, error] {
	return func(yield func(tokenstore.ID, error) bool) {
		if _, err := w.get(w.store.keys.head()); err != nil {
			yield(0, err)
			return
		}
		w.whole = true
		head := w.read[w.store.keys.head()]
		if err := w.store.data.wait(w.ctx, head); err != nil {
			yield(0, fmt.Errorf("this node has not heard of all changes yet: %w", err))
			return
		}
		for child, err := range w.store.children(w.ctx, id, w.at) {
			if !yield(child, err) {
				return
			}
		}
	}
}

// NewID implements [tokenstore.Ground]. Of the ids of an earlier try none was used.
func (w *writing) NewID() (tokenstore.ID, error) {
	if len(w.spare) > 0 {
		id := w.spare[0]
		w.spare = w.spare[1:]
		w.given[id] = true
		return id, nil
	}
	id, err := w.store.ids.take(w.ctx)
	if err == nil {
		w.given[id] = true
	}
	return id, err
}

// errIDUsed says that there is a token with an id that is given out for a new one,
// as can be after a restore of etcd. The change is made again with others.
var errIDUsed = errors.New("the id of a new token is in use")

// put adds a key to what is written.
func (w *writing) put(key, value string) {
	w.ops = append(w.ops, clientv3.OpPut(key, value))
	w.touches = w.touches || w.isData(key)
}

func (w *writing) delete(key string) {
	w.ops = append(w.ops, clientv3.OpDelete(key))
	w.touches = w.touches || w.isData(key)
}

func (w *writing) isData(key string) bool {
	data := w.store.keys.data()
	return len(key) > len(data) && key[:len(data)] == data
}

func (w *writing) empty() bool {
	return len(w.ops) == 0 && (w.staged == nil || w.staged.Empty()) && len(w.answers) == 0 && w.answered.IsZero()
}

// comparisons are what must still hold when the change is committed.
func (w *writing) comparisons() []clientv3.Cmp {
	cmps := make([]clientv3.Cmp, 0, len(w.read)+len(w.ranges))
	head := w.store.keys.head()
	for key, revision := range w.read {
		if key != head || w.whole {
			cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(key), "=", revision))
		}
	}
	for _, prefix := range w.ranges {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(prefix).WithPrefix(), "<", w.at+1))
	}
	return cmps
}

// onlyHead compares that no data was changed since it was read, instead of each key
// by itself: a change that rests on many of them waits for a moment when nobody
// else changes any. Whatever a change of tokens rests on is put with head.
func (w *writing) onlyHead() []clientv3.Cmp {
	return []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(w.store.keys.head()), "<", w.at+1)}
}

// finish turns what was staged into operations.
func (w *writing) finish() error {
	if w.staged != nil {
		if err := w.staged.Check(w.store.out.waiting()); err != nil {
			return err
		}
		w.finishTokens()
		w.events = w.staged.Events()
	}
	w.finishAnswers()
	return nil
}

func (w *writing) finishTokens() {
	keys := w.store.keys
	last := map[tokenstore.ID]*tokenstore.Token{}
	for t := range w.staged.Tokens() {
		last[t.ID] = t.After
		switch {
		case t.After != nil:
			w.notePepper()
			w.put(keys.token(t.ID), string(w.store.opts.Peppers.Seal(t.Record)))
		case t.Before != nil:
			w.delete(keys.token(t.ID))
			w.delete(keys.usage(t.ID))
			w.delete(keys.notice(t.ID))
		}
		if t.Forgets != 0 {
			w.ops = append(w.ops, clientv3.OpDelete(keys.countsOf(t.Forgets), clientv3.WithPrefix()))
		}
		if t.Before != nil {
			for i := range t.Before.Secrets {
				if d := t.Before.Secrets[i].Digest; t.After == nil || !holds(t.After, d) {
					w.put(keys.retired(d), hexID(t.ID))
				}
			}
		}
	}
	for d, id := range w.staged.Digests() {
		if !w.fresh[d] {
			continue
		}
		w.put(keys.digest(d), hexID(id))
		if t := last[id]; t == nil || !holds(t, d) {
			w.put(keys.retired(d), hexID(id)) // claimed and given up in one change
		}
	}
}

// notePepper notes the writing pepper with the first record that it seals: a node
// that lacks it learns so.
func (w *writing) notePepper() {
	ids := w.store.opts.Peppers.IDs()
	if w.noted || len(ids) == 0 || contains(w.store.about.Load().Traits.Peppers, ids[0]) {
		return
	}
	w.noted = true
	w.put(w.store.keys.pepper(ids[0]), "")
}

func holds(t *tokenstore.Token, d tokenstore.Digest) bool {
	for i := range t.Secrets {
		if t.Secrets[i].Digest.Equal(d) {
			return true
		}
	}
	return false
}

// transaction is a change as its function sees it.
type transaction struct {
	*tokenstore.Staging
	w *writing
}

var _ tokenstore.Tx = (*transaction)(nil)

// Answer implements [tokenstore.Tx].
func (t *transaction) Answer(k tokenstore.Digest) ([]byte, error) {
	for i := len(t.w.answers) - 1; i >= 0; i-- {
		if t.w.answers[i].key == k {
			return bytes.Clone(t.w.answers[i].sealed), nil
		}
	}
	return t.w.keptAnswer(k)
}

// keptAnswer reads the answer that is kept under a key, and has the commit depend
// on it that none is added.
func (w *writing) keptAnswer(k tokenstore.Digest) ([]byte, error) {
	prefix := w.store.keys.keptFor(k)
	got, err := w.ask(prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	w.ranges = append(w.ranges, prefix)
	var latest keptAnswer
	var sealed []byte
	for _, kv := range got {
		a, err := parseKept(strings.TrimPrefix(string(kv.Key), w.store.keys.allKept()))
		if err != nil {
			return nil, err
		}
		if a.until > latest.until {
			latest, sealed = a, kv.Value
		}
	}
	if !w.answered.IsZero() && latest.until <= millis(w.answered) {
		return nil, nil
	}
	return sealed, nil
}

// KeepAnswer implements [tokenstore.Tx].
func (t *transaction) KeepAnswer(k tokenstore.Digest, sealed []byte, now, until time.Time) error {
	t.w.answered = now
	if until.After(now) {
		t.w.answers = append(t.w.answers, stagedAnswer{k, bytes.Clone(sealed), until})
	}
	return nil
}

func millis(t time.Time) uint64 { return uint64(max(0, t.UnixMilli())) } //nolint:gosec // not negative

func (s *Store) nextNonceKey() string {
	return s.instance + "-" + strconv.FormatUint(s.nonces.Add(1), 10)
}

// packEvents joins the events of one change, each behind its length.
func packEvents(events [][]byte) []byte {
	var b []byte
	for _, e := range events {
		b = binary.AppendUvarint(b, uint64(len(e)))
		b = append(b, e...)
	}
	return b
}

var errEvents = errors.New("the outbox in etcd holds something that are no events")

func unpackEvents(b []byte) (events [][]byte, err error) {
	for len(b) > 0 {
		n, used := binary.Uvarint(b)
		if used <= 0 || n > uint64(len(b)-used) { //nolint:gosec // used is at most the length
			return nil, errEvents
		}
		events = append(events, b[used:used+int(n)]) //nolint:gosec // checked
		b = b[used+int(n):]                          //nolint:gosec // likewise
	}
	return events, nil
}
