package audit

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func event(id uint64) Event {
	return Event{Time: noon, Node: "n1", Verb: "create", Outcome: Success, Target: Target{Token: id, Account: 3}}
}

func TestAppendedEventsAreReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l, r, err := Open(path, noon, Options{})
	if err != nil || !r.Created {
		t.Fatal(r, err)
	}
	for i := range uint64(10) {
		if err := l.Append(noon, event(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(noon); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(path)
	t.Logf("%s", b[:600])
	rep, err := Verify(path, Keys{})
	if err != nil || len(rep.Faults) > 0 || rep.Events != 10 || rep.Last != 11 {
		t.Fatalf("%+v %v", rep, err)
	}
	if _, r, err = Open(path, noon, Options{}); err != nil || r != (Recovery{}) {
		t.Fatal(r, err)
	}
}
