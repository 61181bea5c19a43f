package audit

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"maps"
	"os"
	"slices"
)

// Keys are what a log is checked with.
type Keys struct {
	MAC     [][]byte          // every MAC key that a file of the log was written under
	Signing ed25519.PublicKey // nil: signatures of heads are not checked
	Heads   []Head            // kept elsewhere; each must be found in the log as it stands
}

// A Report is what Verify found. The log is whole if it has no faults.
type Report struct {
	Log        string   // id
	Files      []string // as they were read, oldest first
	First      uint64   // number of the first line; above 1 when older files are not there
	Last       uint64   // number of the last line
	Events     uint64
	Signed     uint64 // the last line covered by a signature that was checked; 0: none
	MACFrom    uint64 // the first line from which on all are under a MAC key; 0: none are
	TornBytes  int    // at the end: a line being written, or left half-written by a crash
	Head       Head   // where the log stands
	Faults     []Fault
	MoreFaults int // beyond the first 1,000
}

// A Fault is a run of lines that are not as they were written.
type Fault struct {
	File     string // where it was noticed
	FileLine int    // and its first line there, from 1
	From, To uint64 // numbers of the lines it concerns, both included
	What     string
}

// String returns the fault as a sentence for an operator.
func (f Fault) String() string {
	lines := fmt.Sprintf("lines %d to %d", f.From, f.To)
	if f.From == f.To {
		lines = fmt.Sprintf("line %d", f.From)
	}
	return fmt.Sprintf("%s:%d: %s: %s", f.File, f.FileLine, lines, f.What)
}

// maxFaults bounds a Report.
const maxFaults = 1000

// Verify reads the whole log at path and checks every line. It may run while
// the log is being written. Its error says that the log could not be read or
// a key is missing; what it found wrong stands in the Report.
//
// A changed line is found by its chain value; a missing, doubled or moved one
// by the number as well. Lines after a fault are checked on from there. Two
// things leave no trace in the files themselves: lines cut off the end, and,
// for those without the keys' protection, a chain written anew; Keys.Heads
// shows the first and most of the second.
func Verify(path string, keys Keys) (Report, error) {
	for range 5 {
		r, again, err := verifyOnce(path, keys)
		if err != nil {
			return Report{}, fmt.Errorf("verify audit log: %w", err)
		}
		if !again {
			return r, nil
		}
	}
	return Report{}, fmt.Errorf("verify audit log: %s: new files are begun faster than they can be read; try again", path)
}

// verifyOnce also reports whether a new file was begun while it read.
func verifyOnce(path string, keys Keys) (Report, bool, error) {
	older, err := rotatedFiles(path)
	if err != nil {
		return Report{}, false, err
	}
	v := verifier{keys: keys, wanted: make(map[uint64][]Head)}
	for _, h := range keys.Heads {
		v.wanted[h.Line] = append(v.wanted[h.Line], h)
	}
	for i, name := range append(slices.Clone(older), path) {
		if err := v.file(name, i == len(older)); err != nil {
			now, listErr := rotatedFiles(path)
			return Report{}, listErr == nil && !slices.Equal(older, now), err
		}
	}
	now, err := rotatedFiles(path)
	if err != nil || !slices.Equal(older, now) {
		return Report{}, err == nil, err
	}
	v.end(path)
	return v.report, false, nil
}

// A verifier follows the chain through the files.
//
// good is the last line that was proven. Lines that do not follow from it are
// suspects, until one is found that follows from good or from a suspect;
// between these two lies one fault.
type verifier struct {
	keys     Keys
	report   Report
	wanted   map[uint64][]Head
	macs     []hash.Hash // that the file being read can be under: one, once its first line is read
	good     anchor
	suspects []suspect
	dropped  int  // suspects that are no longer held
	keyed    bool // a file under a MAC key has been seen
}

// anchor is a point that the next line can follow from.
type anchor struct {
	n     uint64
	chain chainValue
}

// suspect is a line that follows from nothing known.
type suspect struct {
	file  string
	at    int
	n     uint64     // as the line says; 0 if the line cannot be read
	chain chainValue // as the line ends; zero if in no chain value
}

const (
	// maxSuspects bounds how many lines of one fault are held, and
	// maxLinks how many of them, from the last, a line is tried on.
	maxSuspects = 4096
	maxLinks    = 8
)

// file checks one file's lines.
func (v *verifier) file(name string, last bool) error {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) && len(v.report.Files) > 0 {
		v.fault(Fault{File: name, From: v.good.n + 1, To: v.good.n + 1, What: "the current file is gone"})
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	v.report.Files = append(v.report.Files, name)
	v.macs = nil
	if !v.keyed {
		v.macs = append(v.macs, chainHash(nil))
	}
	for _, k := range v.keys.MAC {
		v.macs = append(v.macs, chainHash(k))
	}
	torn, err := readLines(f, func(at int, text []byte) error { return v.line(name, at, text) })
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	switch {
	case last:
		v.report.TornBytes = len(torn)
	case len(torn) > 0:
		v.suspect(suspect{file: name})
	}
	return nil
}

// line checks one line.
func (v *verifier) line(name string, at int, text []byte) error {
	ln, err := parseLine(text)
	if err != nil || !json.Valid(ln.value) {
		v.suspect(suspect{file: name, at: at, chain: ln.chain})
		return nil //nolint:nilerr // a line that cannot be read is a finding, not a failure
	}
	if ln.kind == kindStart && at == 1 {
		if err := v.begin(name, ln); err != nil {
			return err
		}
	}
	from, ok := v.follows(ln)
	if !ok {
		v.suspect(suspect{file: name, at: at, n: ln.n, chain: ln.chain})
		return nil
	}
	v.settle(ln.n)
	if v.report.First == 0 {
		v.report.First = ln.n
	}
	switch ln.kind {
	case kindEvent:
		v.report.Events++
	case kindHead:
		v.checkSigned(name, at, ln, from)
	case kindStart:
	}
	v.good = anchor{ln.n, ln.chain}
	v.report.Last = ln.n
	v.checkWanted(name, at)
	return nil
}

// begin takes over what the first line of a file says.
func (v *verifier) begin(name string, ln line) error {
	s, err := parseStart(ln)
	if err != nil {
		return nil //nolint:nilerr // the line is not proven, then
	}
	mac, ok := keyNamed(v.keys.MAC, s.Key)
	if !ok {
		return fmt.Errorf("it was written under the MAC key %s, which was not given: name the pepper that the key derives from in tokenstore.pepper_files, or with --pepper", s.Key)
	}
	v.macs = []hash.Hash{chainHash(mac)}
	switch {
	case mac != nil && !v.keyed:
		v.keyed, v.report.MACFrom = true, ln.n
	case mac == nil && v.keyed:
		v.keyed, v.report.MACFrom = false, 0
		v.fault(Fault{File: name, FileLine: 1, From: ln.n, To: ln.n, What: "the file is without a MAC, though the one before has one"})
	}
	if v.report.Log != "" {
		if s.ID != v.report.Log {
			v.fault(Fault{File: name, FileLine: 1, From: ln.n, To: ln.n, What: "the file belongs to another log, " + s.ID})
		}
		return nil
	}
	// The files before it, if there were any, are not here: what it says it
	// follows is taken as given, if the line itself holds.
	prev, _ := s.prev()
	if _, ok := v.linked(prev, ln); ok && (ln.n > 1 || prev == (chainValue{})) {
		v.report.Log = s.ID
		if v.report.First == 0 && len(v.suspects) == 0 {
			v.good = anchor{ln.n - 1, prev}
		}
	}
	return nil
}

// follows returns the chain value that ln follows from, if it is a known one.
// No line is proven whose number is not above the last proven one: it may be
// part of a run that stands twice.
func (v *verifier) follows(ln line) (chainValue, bool) {
	if ln.n <= v.good.n {
		return chainValue{}, false
	}
	if ln.n == v.good.n+1 {
		if c, ok := v.linked(v.good.chain, ln); ok {
			return c, true
		}
	}
	for i := len(v.suspects) - 1; i >= max(0, len(v.suspects)-maxLinks); i-- {
		if s := v.suspects[i]; s.chain != (chainValue{}) {
			if c, ok := v.linked(s.chain, ln); ok {
				return c, true
			}
		}
	}
	return chainValue{}, false
}

// linked reports whether ln follows the line with the chain value c, and returns c.
func (v *verifier) linked(c chainValue, ln line) (chainValue, bool) {
	for _, h := range v.macs {
		if c.next(h, ln.body) == ln.chain {
			v.macs = []hash.Hash{h}
			return c, true
		}
	}
	return c, false
}

func (v *verifier) suspect(s suspect) {
	if len(v.suspects) == maxSuspects {
		// The first one says where the fault begins, the last ones where it can end.
		v.suspects = slices.Delete(v.suspects, 1, maxSuspects/2)
		v.dropped += maxSuspects/2 - 1
	}
	v.suspects = append(v.suspects, s)
}

// settle makes one fault of the suspects before line n, which is proven.
func (v *verifier) settle(n uint64) {
	if len(v.suspects) == 0 {
		return
	}
	have := uint64(len(v.suspects) + v.dropped) //nolint:gosec // counts
	before := v.good.n
	if v.report.First == 0 {
		// Nothing was proven yet. If all can be read, they are taken for the
		// first lines there are; else there is no telling how many it were.
		unreadable := func(s suspect) bool { return s.n == 0 }
		if n > have && !slices.ContainsFunc(v.suspects, unreadable) {
			before = n - 1 - have
		}
		v.report.First = before + 1
	}
	want := n - 1 - before
	f := Fault{File: v.suspects[0].file, FileLine: v.suspects[0].at, From: before + 1, To: n - 1}
	readable, ordered := true, true
	previous := uint64(0)
	for _, s := range v.suspects {
		readable = readable && s.n > 0
		if s.n == 0 {
			continue
		}
		ordered = ordered && s.n > previous
		previous = s.n
		if have > want {
			f.From, f.To = min(f.From, s.n), max(f.To, min(s.n, n))
		}
	}
	switch {
	case have < want:
		f.What = fmt.Sprintf("%d of %d lines are missing or run together, the rest cannot be proven", want-have, want)
	case f.From > f.To: // blank or torn lines alone, which have no number
		f.From, f.To = n, n
		f.What = tooMany(have) + " before it: put in, and unreadable"
	case have > want:
		f.What = tooMany(have-want) + ": doubled, moved or put in"
	case !readable:
		f.What = "changed after they were written, and unreadable"
	case !ordered:
		f.What = "not in their order"
	default:
		f.What = "changed after they were written"
	}
	v.fault(f)
	v.suspects, v.dropped = v.suspects[:0], 0
}

func tooMany(n uint64) string {
	if n == 1 {
		return "1 line too many"
	}
	return fmt.Sprintf("%d lines too many", n)
}

// checkSigned checks a signed head that stands in the log.
func (v *verifier) checkSigned(name string, at int, ln line, prev chainValue) {
	if v.keys.Signing == nil || v.report.Log == "" {
		return
	}
	h, err := parseHeadLine(ln, v.report.Log, prev)
	if err == nil && h.Key != signingKeyName(v.keys.Signing) {
		return // of another key: it proves nothing here, and its absence of proof shows in Signed
	}
	if err == nil {
		err = h.Verify(v.keys.Signing)
	}
	if err != nil {
		v.fault(Fault{File: name, FileLine: at, From: max(v.report.Signed+1, v.report.First), To: ln.n,
			What: "the signature over the lines up to here is wrong: one of them was changed and the chain written anew"})
		return
	}
	v.report.Signed = h.Line
}

// checkWanted compares heads kept elsewhere with the line just proven.
func (v *verifier) checkWanted(name string, at int) {
	for _, h := range v.wanted[v.good.n] {
		if h.Chain != v.good.chain || h.Log != v.report.Log {
			v.fault(Fault{File: name, FileLine: at, From: max(v.report.First, 1), To: v.good.n,
				What: "the log is not the one that the head kept elsewhere was taken from, or its chain was written anew"})
		}
	}
	delete(v.wanted, v.good.n)
}

// end settles what is open at the end of the last file.
func (v *verifier) end(path string) {
	next := v.good.n + uint64(v.dropped) + 1 //nolint:gosec // a count
	for _, s := range v.suspects {
		if s.n == 0 || s.n > v.good.n { // else it stood before
			next++
		}
	}
	v.settle(next)
	if v.report.First == 0 {
		v.fault(Fault{File: path, From: 1, To: 1, What: "there is not one line"})
	}
	for _, n := range slices.Sorted(maps.Keys(v.wanted)) {
		for _, h := range v.wanted[n] {
			f := Fault{File: path, From: v.report.Last + 1, To: n, What: "cut off: a head kept elsewhere covers them"}
			switch {
			case h.Log != v.report.Log:
				f.From, f.To, f.What = v.report.First, v.report.Last, "the head kept elsewhere is of another log, "+h.Log
			case n < v.report.First:
				continue // in a file that is no longer here
			case n <= v.report.Last:
				f.From, f.To, f.What = n, n, "the line that a head kept elsewhere ends in is not there as it was"
			}
			v.fault(f)
		}
	}
	v.report.Head = Head{Log: v.report.Log, Line: v.good.n, Chain: v.good.chain}
}

func (v *verifier) fault(f Fault) {
	if len(v.report.Faults) == maxFaults {
		v.report.MoreFaults++
		return
	}
	v.report.Faults = append(v.report.Faults, f)
}
