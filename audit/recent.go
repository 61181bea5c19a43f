package audit

import "crypto/sha256"

// A delivery is one event that came out of an outbox. The sum tells a repeated
// delivery from a new event under an old number, as comes out of a store that
// was put back to an earlier state.
type delivery struct {
	source string
	seq    uint64
	sum    [16]byte
}

func deliveryOf(source string, seq uint64, value []byte) delivery {
	sum := sha256.Sum256(value)
	return delivery{source, seq, [16]byte(sum[:])}
}

// maxRecent is how many deliveries are remembered: several batches of an
// outbox, one of which can have been written but not acknowledged when the
// process died.
const maxRecent = 4 * MaxBatch

// recent is the last deliveries: at least maxRecent, less than twice as many.
type recent struct {
	order []delivery // oldest first
	known map[delivery]struct{}
}

// add remembers d. The zero delivery is not remembered.
func (r *recent) add(d delivery) {
	if d == (delivery{}) {
		return
	}
	if r.known == nil {
		r.known = make(map[delivery]struct{}, maxRecent)
	}
	if len(r.order) == 2*maxRecent-1 {
		for _, old := range r.order[:maxRecent] {
			delete(r.known, old)
		}
		r.order = append(r.order[:0], r.order[maxRecent:]...)
	}
	r.order = append(r.order, d)
	r.known[d] = struct{}{}
}

// precede remembers what came before all that is remembered.
func (r *recent) precede(before recent) {
	for _, d := range r.order {
		before.add(d)
	}
	*r = before
}

func (r *recent) has(d delivery) bool {
	_, ok := r.known[d]
	return ok
}
