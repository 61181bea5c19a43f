package admin

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"tokenward/audit"
	"tokenward/tokenstore"
)

const verbImport = audit.Word("import")

// MaxImport is how many tokens one call of [Service.Import] takes.
const MaxImport = 10_000

// minImportBits is the least estimated entropy of an imported secret, unless weak
// ones are allowed by name.
const minImportBits = 80

// importBatch is how many tokens share a transaction and an event: other changes
// get their turn between two.
const importBatch = 1000

// ImportItem is a token that a customer already holds, by its secret or by a
// digest that was made elsewhere.
type ImportItem struct {
	Line     int // where it stood, for the answer
	Secret   tokenstore.Secret
	Digest   tokenstore.Digest // of Scheme; when Secret is zero
	Scheme   tokenstore.Scheme
	Last4    string // with a digest: for people; may be empty
	Spec     Spec   // Once and DefaultExpiry are not looked at; Scopes must not be nil
	Disabled bool
}

// ImportOptions say how an import is made.
type ImportOptions struct {
	DryRun    bool // judge everything, and change nothing
	AllowWeak bool // take secrets of under 80 bits of estimated entropy
}

// Imported is what became of an import.
type Imported struct {
	Count   int           // tokens that were made, or with DryRun would be
	First   tokenstore.ID // the lowest id; 0 for none, and with DryRun
	Last    tokenstore.ID
	Refused []ImportRefusal // by line
}

// ImportRefusal is an item that was not taken.
type ImportRefusal struct {
	Line     int
	Detail   string
	Existing tokenstore.ID // the token that has, or had, the secret; 0: it is not that, or the caller does not see it
	Wanted   tokenstore.ID // the id that the item was to get; 0: with DryRun, or within the call
}

// Import makes tokens of secrets that exist already. Needs what Create needs for
// each of them: none may be wider than the caller. What cannot be taken is
// refused by itself; a secret that any token has or ever had is, also one of a
// token that was revoked or swept. An error means that the call broke off;
// what was made until then stays, and repeating the call refuses it as known.
func (s *Service) Import(ctx context.Context, c Caller, items []ImportItem, o ImportOptions) (Imported, error) {
	var done Imported
	if len(items) > MaxImport {
		return done, refuse(KindTooLarge, fmt.Sprintf("At most %d tokens can be imported by one call.", MaxImport))
	}
	if err := s.precheckImport(c); err != nil {
		s.auditRefusal(ctx, c, verbImport, audit.Target{}, AsError(err))
		return done, err
	}
	work := make([]importing, 0, len(items))
	seen := make(map[tokenstore.Digest]int, len(items))
	for i := range items {
		w, detail := s.prepareImport(&items[i], o)
		if detail != "" {
			done.Refused = append(done.Refused, ImportRefusal{Line: items[i].Line, Detail: detail})
			continue
		}
		w.earlier = seen[w.record.Digest]
		seen[w.record.Digest]++
		work = append(work, w)
	}
	slices.SortStableFunc(work, importing.compare)
	if o.DryRun {
		work = done.refuseRepeated(work)
	} else if err := s.recordForeign(ctx, work); err != nil {
		return done, err
	}
	for size := importBatch; len(work) > 0; {
		batch := work[:min(len(work), size)]
		made, err := s.importBatch(ctx, c, batch, o)
		if errors.Is(err, tokenstore.ErrTooLarge) && len(batch) > 1 {
			size = len(batch) / 2
			continue
		}
		if err != nil {
			return done, err
		}
		work = work[len(batch):]
		done.Count += made.Count
		done.First, done.Last = cmp.Or(done.First, made.First), max(done.Last, made.Last)
		done.Refused = append(done.Refused, made.Refused...)
	}
	slices.SortStableFunc(done.Refused, func(a, b ImportRefusal) int { return cmp.Compare(a.Line, b.Line) })
	return done, nil
}

// refuseRepeated refuses, in a dry run, all but the first of the items with one
// digest.
func (i *Imported) refuseRepeated(work []importing) []importing {
	kept, seen := work[:0], make(map[tokenstore.Digest]bool, len(work))
	for _, w := range work {
		if seen[w.record.Digest] {
			i.Refused = append(i.Refused, ImportRefusal{Line: w.item.Line, Detail: "has the secret of an earlier one"})
			continue
		}
		seen[w.record.Digest] = true
		kept = append(kept, w)
	}
	return kept
}

func (s *Service) precheckImport(c Caller) error {
	m, err := s.manager(c, c.Token, s.Now())
	if err != nil {
		return err
	}
	return m.mayWrite()
}

// importing is an item on its way.
type importing struct {
	item   *ImportItem
	record tokenstore.SecretRecord
	others []tokenstore.Digest // under which it would be stored with another pepper, or as an HMAC of the import keys

	earlier int       // how many before it have the digest
	home    [2]uint64 // account and owner that the item names; 0 for none
}

// compare gives the order in which items are taken. Texts come behind HMACs, which they
// are compared with, and what repeats a digest behind the first that has it. Then what
// shares lists comes together, and what shares pages of the digests: a thousand tokens
// of as many accounts are some thousands of pages to write.
func (w importing) compare(other importing) int {
	return cmp.Or(
		cmp.Compare(other.record.Scheme, w.record.Scheme),
		cmp.Compare(w.earlier, other.earlier),
		slices.Compare(w.home[:], other.home[:]),
		bytes.Compare(w.record.Digest[:], other.record.Digest[:]))
}

// prepareImport makes the record of the item's secret, or says why it cannot be
// taken.
func (s *Service) prepareImport(item *ImportItem, o ImportOptions) (w importing, refused string) {
	w.item = item
	for i, n := range [2]*uint64{item.Spec.Account, item.Spec.Owner} {
		if n != nil {
			w.home[i] = *n
		}
	}
	w.record = tokenstore.SecretRecord{Scheme: item.Scheme, Last4: item.Last4, Ends: tokenstore.Never()}
	if item.Spec.Scopes == nil {
		return w, "has no scopes: say what it may do"
	}
	candidate := func(i int) tokenstore.Digest {
		return s.peppers.ImportedCandidate(i, w.record.Scheme, item.Digest)
	}
	switch {
	case item.Secret.IsZero() && (item.Scheme != tokenstore.SchemeSHA256 && item.Scheme != tokenstore.SchemeHMAC || item.Digest == tokenstore.Digest{}):
		return w, "has neither a secret nor a digest of a known kind"
	case item.Secret.IsZero():
		if item.Scheme == tokenstore.SchemeHMAC && len(s.opts.ImportKeys.IDs()) == 0 {
			return w, "is an HMAC, and tokenstore.import_key_files names no key for it"
		}
		w.record.Digest, w.record.Pepper = s.peppers.Imported(item.Scheme, item.Digest)
	default:
		text := item.Secret.Reveal()
		if detail := checkImportText(text, o.AllowWeak); detail != "" {
			return w, detail
		}
		w.record.Last4 = item.Secret.Last4()
		switch s.formats().Classify([]byte(text)) {
		case tokenstore.ClassBroken:
			return w, "begins like a secret of this store, and is not one: its length or checksum is wrong"
		case tokenstore.ClassOurs:
			w.record.Scheme = tokenstore.SchemeNative
			w.record.Digest, w.record.Pepper = s.peppers.Digest(text)
			candidate = func(i int) tokenstore.Digest { return s.peppers.Candidate(i, []byte(text)) }
		case tokenstore.ClassForeign:
			w.record.Scheme = tokenstore.SchemeSHA256
			d := tokenstore.SHA256(text)
			w.record.Digest, w.record.Pepper = s.peppers.Imported(tokenstore.SchemeSHA256, d)
			candidate = func(i int) tokenstore.Digest {
				return s.peppers.ImportedCandidate(i, tokenstore.SchemeSHA256, d)
			}
		}
	}
	for i := 1; i < s.peppers.Candidates(); i++ {
		w.others = append(w.others, candidate(i))
	}
	if item.Secret.IsZero() {
		return w, ""
	}
	for _, d := range s.opts.ImportKeys.Digests([]byte(item.Secret.Reveal())) {
		for i := range s.peppers.Candidates() {
			w.others = append(w.others, s.peppers.ImportedCandidate(i, tokenstore.SchemeHMAC, d))
		}
	}
	return w, ""
}

func (s *Service) formats() *tokenstore.Formats {
	if s.opts.Formats == nil {
		return tokenstore.NewFormats()
	}
	return s.opts.Formats()
}

// maxImportText is the longest credential that requests can bear.
const maxImportText = 4096

// checkImportText says why a text cannot be an imported secret.
func checkImportText(text string, allowWeak bool) string {
	if len(text) > maxImportText || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ',' }) {
		return fmt.Sprintf("cannot stand in a request: secrets are at most %d visible ASCII characters without commas", maxImportText)
	}
	if bits := estimateBits(text); bits < minImportBits && !allowWeak {
		return fmt.Sprintf("is weak: some %d bits, and %d are the least; reset it at its holder, or allow weak ones", int(bits), minImportBits)
	}
	return ""
}

// estimateBits estimates how many bits of entropy a secret has at most, from its
// length and the characters in it: nobody can tell from one text how it was made.
func estimateBits(text string) float64 {
	var seen [256]bool
	distinct, hex := 0, true
	for i := range len(text) {
		c := text[i]
		if !seen[c] {
			seen[c] = true
			distinct++
		}
		hex = hex && (c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F')
	}
	if hex {
		distinct = min(distinct, 16) // a letter in both cases is one digit
	}
	return float64(len(text)) * math.Log2(float64(distinct))
}

// recordForeign notes the kinds of secrets in the store before the first of them.
func (s *Service) recordForeign(ctx context.Context, work []importing) error {
	var kinds [tokenstore.SchemeHMAC + 1]bool
	for i := range work {
		kinds[work[i].record.Scheme] = true
	}
	for _, scheme := range []tokenstore.Scheme{tokenstore.SchemeSHA256, tokenstore.SchemeHMAC} {
		if !kinds[scheme] || s.opts.RecordForeign == nil {
			continue
		}
		if err := s.opts.RecordForeign(ctx, scheme); err != nil {
			return storeError(fmt.Errorf("record secrets of the scheme %s: %w", scheme, err))
		}
	}
	return nil
}

// importBatch makes one batch in one transaction, with one event.
func (s *Service) importBatch(ctx context.Context, c Caller, batch []importing, o ImportOptions) (made Imported, err error) {
	err = s.change(ctx, c, verbImport, audit.Target{}, func(tx tokenstore.Tx, m *manager, now time.Time) error {
		made = Imported{}
		if err := m.mayWrite(); err != nil {
			return err
		}
		for i := range batch {
			if err := s.importOne(tx, m, &batch[i], &made, now); err != nil {
				return err
			}
		}
		if o.DryRun {
			return errDryRun
		}
		if made.Count == 0 {
			return nil
		}
		event := s.event(c, m.token, verbImport, now)
		event.Outcome = audit.Success
		event.Target = audit.Target{Token: uint64(made.Last)}
		event.Reason = fmt.Sprintf("%d tokens, ids %d to %d", made.Count, made.First, made.Last)
		return emit(tx, event)
	})
	if e, ok := errors.AsType[*Error](err); ok && errors.Is(e.Cause, errDryRun) {
		for i := range made.Refused {
			made.Refused[i].Wanted = 0
		}
		made.First, made.Last = 0, 0
		return made, nil
	}
	return made, err
}

// errDryRun takes back what a dry run did.
var errDryRun = errors.New("a dry run changes nothing")

// importOne puts one token. Its error ends the transaction; what is wrong with
// the item alone goes into made.
func (s *Service) importOne(tx tokenstore.Tx, m *manager, w *importing, made *Imported, now time.Time) error {
	refuseItem := func(detail string, existing, wanted tokenstore.ID) {
		made.Refused = append(made.Refused, ImportRefusal{Line: w.item.Line, Detail: detail, Existing: existing, Wanted: wanted})
	}
	refuseTaken := func(belongs string, existing, wanted tokenstore.ID) {
		if t, err := tx.Token(existing); !m.token.IsRoot() && (err != nil || !m.sees(t)) {
			refuseItem("the secret belongs, or belonged, to another token already", 0, wanted)
			return
		}
		refuseItem(fmt.Sprintf("the secret %s to token %d already", belongs, existing), existing, wanted)
	}
	id, err := tx.NewID()
	if err != nil {
		return err
	}
	for _, d := range w.others {
		owner, err := tx.DigestOwner(d)
		if err != nil {
			return err
		}
		if owner != 0 {
			refuseTaken("belongs, or belonged,", owner, id)
			return nil
		}
	}
	record := w.record
	record.CreatedAt = now
	t, err := s.build(m, &w.item.Spec, id, record, now)
	if err != nil {
		e := AsError(err)
		if e.Kind != KindInvalid && e.Kind != KindWider {
			return err
		}
		detail := e.Detail
		for _, f := range e.Fields {
			detail = f.Field + " " + f.Detail
		}
		refuseItem(detail, 0, 0)
		return nil
	}
	if w.item.Disabled {
		t.State = tokenstore.StateDisabled
	}
	t.UpdatedAt = now
	if err := tx.Put(t); err != nil {
		e, duplicate := errors.AsType[*tokenstore.DuplicateError](err)
		if !duplicate {
			return err
		}
		refuseTaken("belongs, or belonged,", e.Existing, e.Wanted)
		return nil
	}
	made.Count++
	made.First, made.Last = cmp.Or(made.First, id), max(made.Last, id)
	return nil
}
