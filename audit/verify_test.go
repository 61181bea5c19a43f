package audit

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
)

// lines reads all files of a log, oldest first, as lines with their line breaks.
func lines(t *testing.T, path string) (files []string, text [][]string) {
	t.Helper()
	older, err := rotatedFiles(path)
	if err != nil {
		t.Fatal(err)
	}
	files = append(older, path)
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, slices.Collect(strings.Lines(string(b))))
	}
	return files, text
}

func write(t *testing.T, files []string, text [][]string) {
	t.Helper()
	for i, name := range files {
		if err := os.WriteFile(name, []byte(strings.Join(text[i], "")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// rechain writes the lines of a file anew from line i on, as an attacker does
// who has the key, or where there is none.
func rechain(t *testing.T, text []string, from int, key []byte) {
	t.Helper()
	h := chainHash(key)
	prev, err := parseLine([]byte(strings.TrimSuffix(text[from-1], "\n")))
	if err != nil {
		t.Fatal(err)
	}
	c := prev.chain
	for i := from; i < len(text); i++ {
		body := text[i][:len(text[i])-1-suffixBytes]
		c = c.next(h, []byte(body))
		text[i] = string(appendChain([]byte(body), c))
	}
}

// The logs of these tests: two files under a MAC, with signed heads.
//
//	older: 1 start, 2-4 events, 5 head, 6-8 events, 9 head, 10 event, 11 head (the file is full)
//	newer: 12 start, 13-15 events, 16 head, 17 event, 18 head (closed)
const lastLine = 18

func tamperLog(t *testing.T, key []byte) (path string, head Head) {
	t.Helper()
	path = newPath(t)
	o := Options{SigningKey: signingKey, HeadEvery: 3, MaxFileBytes: 1 << 40}
	if key != nil {
		o.MACKeys = [][]byte{key}
	}
	l := mustOpen(t, path, o)
	mustAppend(t, l, 1, 2, 3, 4, 5, 6, 7)
	if err := l.rotateLocked(noon); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, 8, 9, 10, 11)
	mustClose(t, l)
	if h := l.Head(); h.Line != lastLine {
		t.Fatalf("the log has %d lines", h.Line)
	}
	return path, l.Head()
}

func TestTamperingIsFoundAndPlaced(t *testing.T) {
	replaceID := func(s string) string { return strings.Replace(s, `"account":3`, `"account":4`, 1) }
	type text = [][]string
	tests := []struct {
		name     string
		do       func(x text) text
		from, to uint64 // of all faults together
		what     string
	}{
		{"edited", func(x text) text { x[0][2] = replaceID(x[0][2]); return x }, 3, 3, "changed"},
		{"edited last line", func(x text) text { x[1][6] = strings.Replace(x[1][6], "Z", "z", 1); return x }, 18, 18, "changed"},
		{"edited two apart", func(x text) text { x[0][1] = replaceID(x[0][1]); x[1][5] = replaceID(x[1][5]); return x }, 2, 17, "changed"},
		{"chain value changed", func(x text) text {
			x[0][2] = x[0][2][:len(x[0][2])-10] + "0123456" + x[0][2][len(x[0][2])-3:]
			return x
		}, 3, 4, "changed"},
		{"number changed", func(x text) text { x[0][2] = strings.Replace(x[0][2], `{"n":3,`, `{"n":300,`, 1); return x }, 3, 3, "changed"},
		{"outcome hidden", func(x text) text { x[0][3] = strings.Replace(x[0][3], "success", "refusal", 1); return x }, 4, 4, "changed"},
		{"made unreadable", func(x text) text { x[0][2] = "gone\n"; return x }, 3, 4, "unreadable"},
		{"line emptied", func(x text) text { x[0][2] = "\n"; return x }, 3, 4, "unreadable"},
		{"one deleted", func(x text) text { x[0] = slices.Delete(x[0], 2, 3); return x }, 3, 4, "1 of 2 lines are missing"},
		{"three deleted", func(x text) text { x[0] = slices.Delete(x[0], 2, 5); return x }, 3, 6, "3 of 4 lines are missing"},
		{"end of the older file deleted", func(x text) text { x[0] = x[0][:9]; return x }, 10, 12, "2 of 3 lines are missing"},
		{"start of the newer file deleted", func(x text) text { x[1] = x[1][1:]; return x }, 12, 13, "1 of 2 lines are missing"},
		{"first line of all deleted", func(x text) text { x[0] = x[0][1:]; return x }, 2, 2, "changed"},
		{"neighbours swapped", func(x text) text { x[0][2], x[0][3] = x[0][3], x[0][2]; return x }, 3, 5, ""},
		{"far ones swapped", func(x text) text { x[0][1], x[0][6] = x[0][6], x[0][1]; return x }, 2, 8, ""},
		{"one doubled", func(x text) text { x[0] = slices.Insert(x[0], 3, x[0][2]); return x }, 3, 3, "1 line too many"},
		{"one repeated later", func(x text) text { x[1] = slices.Insert(x[1], 2, x[0][2]); return x }, 3, 14, "1 line too many"},
		{"a run repeated later", func(x text) text { x[1] = slices.Insert(x[1], 2, x[0][1:6]...); return x }, 2, 14, "5 lines too many"},
		{"all of a file repeated", func(x text) text { x[0] = append(x[0], x[0]...); return x }, 1, 12, "11 lines too many"},
		{"foreign line put in", func(x text) text {
			body := appendBody(nil, 4, kindEvent, "", 0, mustEncode(t, event(99)))
			x[0] = slices.Insert(x[0], 3, string(appendChain(body, chainValue{1})))
			return x
		}, 4, 4, "1 line too many"},
		{"blank line put in", func(x text) text { x[0] = slices.Insert(x[0], 5, "\n"); return x }, 6, 6, "1 line too many before it"},
		{"blank line put in first", func(x text) text { x[0] = slices.Insert(x[0], 0, "\n"); return x }, 1, 1, "1 line too many before it"},
		{"blank lines between files", func(x text) text { x[1] = slices.Insert(x[1], 0, "\n", "\n"); return x }, 12, 12, "2 lines too many before it"},
		{"files exchanged", func(x text) text { x[0], x[1] = x[1], x[0]; return x }, 1, 18, ""},
		{"older file emptied", func(x text) text { x[0] = nil; return x }, 0, 0, ""}, // looks moved away
		{"newer file unkeyed", func(x text) text {
			x[1][0] = strings.Replace(x[1][0], keyName(macKey), "", 1)
			first, _ := parseLine([]byte(strings.TrimSuffix(x[0][10], "\n")))
			body := x[1][0][:len(x[1][0])-1-suffixBytes]
			x[1][0] = string(appendChain([]byte(body), first.chain.next(chainHash(nil), []byte(body))))
			rechain(t, x[1], 1, nil)
			return x
		}, 1, 18, "without a MAC"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path, _ := tamperLog(t, macKey)
			files, x := lines(t, path)
			write(t, files, tt.do(x))
			r, err := Verify(path, Keys{MAC: [][]byte{macKey}, Signing: publicKey})
			if err != nil {
				t.Fatal(err)
			}
			if tt.to == 0 {
				if len(r.Faults) > 0 || r.First != 12 {
					t.Errorf("%+v", r)
				}
				return
			}
			if len(r.Faults) == 0 {
				t.Fatalf("nothing found: %+v", r)
			}
			from, to, said := r.Faults[0].From, uint64(0), false
			for _, f := range r.Faults {
				t.Log(f)
				from, to = min(from, f.From), max(to, f.To)
				said = said || strings.Contains(f.What, tt.what)
			}
			if from < tt.from || to > tt.to || from > to || !said {
				t.Errorf("found from %d to %d, want within %d to %d and %q", from, to, tt.from, tt.to, tt.what)
			}
		})
	}
}

func TestFaultOfOneLineIsSaidAsOne(t *testing.T) {
	t.Parallel()
	path, _ := tamperLog(t, macKey)
	files, x := lines(t, path)
	x[0] = slices.Insert(x[0], 9, "\n")
	write(t, files, x)
	r, err := Verify(path, Keys{MAC: [][]byte{macKey}, Signing: publicKey})
	if err != nil || len(r.Faults) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if got, want := r.Faults[0].String(), files[0]+":10: line 10: 1 line too many before it: put in, and unreadable"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestChainWrittenAnewIsFoundBySignatures(t *testing.T) {
	for name, key := range map[string][]byte{"no MAC": nil, "MAC key stolen": macKey} {
		t.Run(name, func(t *testing.T) {
			path, _ := tamperLog(t, key)
			keys := Keys{MAC: [][]byte{macKey}, Signing: publicKey}
			files, x := lines(t, path)
			x[1][2] = strings.Replace(x[1][2], `"account":3`, `"account":4`, 1)
			rechain(t, x[1], 2, key)
			write(t, files, x)
			if key != nil {
				mustClose(t, mustOpen(t, path, Options{MACKeys: [][]byte{key}})) // the chain fits
			}
			r, err := Verify(path, keys)
			if err != nil || len(r.Faults) != 2 || r.Signed != 10 {
				t.Fatalf("%+v, %v", r, err)
			}
			if f := r.Faults[0]; f.From != 11 || f.To != 16 || !strings.Contains(f.What, "signature") {
				t.Errorf("%v, want lines 11 to 16", f)
			}
			// Heads that are simply left out are missed by nobody but who expects them.
			x[1] = slices.DeleteFunc(x[1], func(s string) bool { return strings.Contains(s, `"head":`) })
			for i := range x[1] {
				ln, _ := parseLine([]byte(strings.TrimSuffix(x[1][i], "\n")))
				body := appendBody(nil, uint64(12+i), ln.kind, ln.source, ln.seq, ln.value)
				x[1][i] = string(appendChain(body, chainValue{}))
			}
			first, _ := parseLine([]byte(strings.TrimSuffix(x[0][10], "\n")))
			body := x[1][0][:len(x[1][0])-1-suffixBytes]
			x[1][0] = string(appendChain([]byte(body), first.chain.next(chainHash(key), []byte(body))))
			rechain(t, x[1], 1, key)
			write(t, files, x)
			r, err = Verify(path, keys)
			if err != nil || len(r.Faults) > 0 || r.Signed != 10 || r.Last != 16 {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

func TestWhatWasCutOffTheEndIsFoundByAHeadKeptElsewhere(t *testing.T) {
	for cut := range 6 {
		path, head := tamperLog(t, macKey)
		files, x := lines(t, path)
		x[1] = x[1][:len(x[1])-cut]
		write(t, files, x)
		keys := Keys{MAC: [][]byte{macKey}, Signing: publicKey}
		if r, err := Verify(path, keys); err != nil || len(r.Faults) > 0 {
			t.Fatalf("without the head, %d cut: %v, %v", cut, r.Faults, err)
		}
		keys.Heads = []Head{head}
		r, err := Verify(path, keys)
		switch {
		case err != nil:
			t.Fatal(err)
		case cut == 0 && len(r.Faults) > 0:
			t.Errorf("whole log: %v", r.Faults)
		case cut > 0 && (len(r.Faults) != 1 || r.Faults[0].From != uint64(lastLine-cut+1) || r.Faults[0].To != lastLine):
			t.Errorf("%d cut: %v", cut, r.Faults)
		}
	}
}

func TestHeadOfAnotherLogOrHistoryIsFound(t *testing.T) {
	path, _ := tamperLog(t, macKey)
	_, other := tamperLog(t, macKey)
	keys := Keys{MAC: [][]byte{macKey}}
	for _, line := range []uint64{5, lastLine, lastLine + 1} {
		h := other
		h.Line = line
		keys.Heads = []Head{h}
		if r, err := Verify(path, keys); err != nil || len(r.Faults) != 1 {
			t.Errorf("head of another log at line %d: %v, %v", line, r.Faults, err)
		}
	}
	r, err := Verify(path, Keys{MAC: keys.MAC})
	if err != nil {
		t.Fatal(err)
	}
	h := r.Head
	h.Chain[0] ^= 1
	keys.Heads = []Head{h}
	if r, err := Verify(path, keys); err != nil || len(r.Faults) != 1 || r.Faults[0].To != lastLine {
		t.Errorf("head of another history: %v, %v", r.Faults, err)
	}
}

func TestVerifySaysWhenThereIsNothing(t *testing.T) {
	if _, err := Verify(newPath(t), Keys{}); err == nil {
		t.Error("a log that is not there is whole")
	}
	path := newPath(t)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := Verify(path, Keys{}); err != nil || len(r.Faults) == 0 {
		t.Errorf("an empty file is whole: %+v, %v", r, err)
	}
}

func TestReportIsBounded(t *testing.T) {
	path := newPath(t)
	l := mustOpen(t, path, Options{})
	events := slices.Repeat([]Event{event(1)}, 3000)
	if err := l.Append(noon, events...); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	b, _ := os.ReadFile(path)
	all := bytes.SplitAfter(b, []byte("\n"))
	for i := 1; i < len(all)-1; i += 2 {
		all[i] = bytes.Replace(all[i], []byte(`"account":3`), []byte(`"account":4`), 1)
	}
	if err := os.WriteFile(path, bytes.Join(all, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Verify(path, Keys{})
	if err != nil || len(r.Faults) != maxFaults || r.MoreFaults != 500 {
		t.Errorf("%d faults and %d more, %v", len(r.Faults), r.MoreFaults, err)
	}
	// Nothing at all can be proven: one fault.
	for i := range all {
		all[i] = bytes.Replace(all[i], []byte(`"chain":"`), []byte(`"chain":"0`), 1)
	}
	if err := os.WriteFile(path, bytes.Join(all, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := Verify(path, Keys{}); err != nil || len(r.Faults) != 1 || r.Faults[0].To != 3001 {
		t.Errorf("%v, %v", r.Faults, err)
	}
}
