package etcdstore

import (
	"cmp"
	"math"
	"slices"
	"sync"

	"tokenward/tokenstore"
)

// keptAnswer is an answer that is kept for retries, without itself: every node
// knows which there are, so as to bound them.
type keptAnswer struct {
	until uint64 // in milliseconds since 1970
	key   tokenstore.Digest
}

// keptAnswers are the answers that are in etcd.
type keptAnswers struct {
	mu      sync.Mutex // guards what follows; held for moments
	until   map[tokenstore.Digest]uint64
	soonest uint64 // none of until is earlier
}

func (k *keptAnswers) begin(all []keptAnswer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.until, k.soonest = make(map[tokenstore.Digest]uint64, len(all)), 0
	for _, a := range all {
		k.until[a.key] = a.until
	}
}

func (k *keptAnswers) add(a keptAnswer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.until == nil {
		k.until = map[tokenstore.Digest]uint64{}
	}
	k.until[a.key] = a.until
	k.soonest = min(k.soonest, a.until)
}

func (k *keptAnswers) drop(a keptAnswer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.until[a.key] == a.until { // else it was replaced
		delete(k.until, a.key)
	}
}

// all returns them, those that are kept for the shortest time first.
func (k *keptAnswers) all() []keptAnswer {
	k.mu.Lock()
	all := make([]keptAnswer, 0, len(k.until))
	for key, until := range k.until {
		all = append(all, keptAnswer{until, key})
	}
	k.mu.Unlock()
	slices.SortFunc(all, func(a, b keptAnswer) int { return cmp.Compare(a.until, b.until) })
	return all
}

// answersDropped is how many answers past their time, or beyond what is kept, a change
// drops at most, if it does not keep as many itself. All changes drop the same ones until
// the node hears that they are gone: more would leave no room for others in the
// transaction, and in one change, all that there may be are more than etcd takes.
const answersDropped = 50

// excess returns those past their time, and with more to come the soonest of the
// others beyond what is kept; the first of them, where they are many.
func (k *keptAnswers) excess(now uint64, more int) []keptAnswer {
	k.mu.Lock()
	if k.soonest <= now {
		k.soonest = math.MaxUint64
		for _, until := range k.until {
			k.soonest = min(k.soonest, until)
		}
	}
	none := k.soonest > now && len(k.until)+more <= tokenstore.MaxAnswers
	k.mu.Unlock()
	if none {
		return nil
	}
	all := k.all()
	n, most := 0, max(more, answersDropped)
	for n < min(len(all), most) && (all[n].until <= now || len(all)-n+more > tokenstore.MaxAnswers) {
		n++
	}
	return all[:n]
}

func (k *keptAnswers) of(key tokenstore.Digest) (uint64, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	until, ok := k.until[key]
	return until, ok
}

// finishAnswers drops the answers past their time, adds, and drops the soonest
// beyond what is kept.
func (w *writing) finishAnswers() {
	if w.answered.IsZero() {
		return
	}
	keys, now := w.store.keys, millis(w.answered)
	added := map[tokenstore.Digest]int{} // the last of a key counts
	for i := range w.answers {
		added[w.answers[i].key] = i
	}
	for _, old := range w.store.kept.excess(now, len(added)) {
		if i, again := added[old.key]; !again || millis(w.answers[i].until) != old.until {
			w.delete(keys.kept(old))
		}
	}
	for i := range w.answers {
		a := &w.answers[i]
		if added[a.key] != i {
			continue
		}
		is := keptAnswer{millis(a.until), a.key}
		if was, ok := w.store.kept.of(a.key); ok && was != is.until && was > now {
			w.delete(keys.kept(keptAnswer{was, a.key}))
		}
		w.put(keys.kept(is), string(a.sealed))
	}
}
