package boltstore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// The test binary runs itself as the process that is killed: childEnv says
// with what to do, childDir where.
const (
	childEnv = "TOKENWARD_TEST_CHILD"
	childDir = "TOKENWARD_TEST_DIR"
)

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	case "write":
		err = writeUntilKilled(os.Getenv(childDir))
	case "create":
		err = createUntilKilled(os.Getenv(childDir))
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// killed runs the child until it has acknowledged the given number of things,
// kills it, and returns all that it acknowledged.
func killed(t *testing.T, what, dir string, after int) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0]) //nolint:gosec // itself
	cmd.Env = append(os.Environ(), childEnv+"="+what, childDir+"="+dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var acks []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		acks = append(acks, lines.Text())
		if len(acks) == after {
			_ = cmd.Process.Kill()
		}
	}
	if err := cmd.Wait(); err == nil || len(acks) < after {
		t.Fatalf("the child ended by itself after %d of %d acknowledgements: %v\n%s", len(acks), after, err, stderr.String())
	}
	return acks
}

func kills() int {
	if storetest.Soak() {
		return 1000
	}
	return 20
}

// TestKilledProcessLosesNothingAcknowledged kills a process that writes from
// several goroutines, again and again over one file.
func TestKilledProcessLosesNothingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tokens.db")
	s, err := Create(Options{Path: path, Peppers: testPeppers(t, "a")})
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	w := witness{acked: map[tokenstore.ID]fact{}, made: map[tokenstore.ID]bool{}}
	for range kills() {
		for _, ack := range killed(t, "write", dir, 1+rand.IntN(200)) {
			w.hear(t, ack)
		}
		s, err := Open(Options{Path: path, Peppers: testPeppers(t, "a")})
		if err != nil {
			t.Fatal(err)
		}
		w.examine(t, s, filepath.Join(dir, "audit"))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d tokens were acknowledged over %d kills", len(w.acked), kills())
}

// fact is what one change made of a token, and what its event says.
type fact struct {
	id       tokenstore.ID
	revision uint64
	state    tokenstore.State // 0: swept
}

func (f fact) String() string { return fmt.Sprintf("%d %d %d", f.id, f.revision, f.state) }

func parseFact(t *testing.T, line string) (f fact) {
	t.Helper()
	if _, err := fmt.Sscanf(line, "%d %d %d", &f.id, &f.revision, &f.state); err != nil || f.String() != line {
		t.Fatalf("half a line: %q", line)
	}
	return f
}

// witness remembers what was acknowledged by all processes so far.
type witness struct {
	acked map[tokenstore.ID]fact // the latest of each token
	made  map[tokenstore.ID]bool // ids of new tokens
}

func (w *witness) hear(t *testing.T, ack string) {
	t.Helper()
	f := parseFact(t, ack)
	if f.revision == 1 && f.state == tokenstore.StateActive {
		if w.made[f.id] {
			t.Errorf("id %d was given out again", f.id)
		}
		w.made[f.id] = true
	}
	old, known := w.acked[f.id]
	if !known || f.state == 0 || old.state != 0 && f.revision > old.revision {
		w.acked[f.id] = f
	}
}

// examine compares the store with what was acknowledged, and its events with
// its tokens.
func (w *witness) examine(t *testing.T, s *Store, audit string) {
	t.Helper()
	check(t, s)
	told := map[fact]bool{}
	for _, line := range auditLines(t, s, audit) {
		told[parseFact(t, line)] = true
	}
	for id, f := range w.acked {
		if !told[f] {
			t.Errorf("token %d: %q was acknowledged, but has no event", id, f)
		}
		tok, err := s.ByID(t.Context(), id)
		switch {
		case f.state == 0 && errors.Is(err, tokenstore.ErrNotFound):
		case f.state == 0:
			t.Errorf("token %d was swept, and is there again: %v", id, err)
		case errors.Is(err, tokenstore.ErrNotFound) && told[fact{id, f.revision, 0}]:
			delete(w.acked, id) // swept, and killed before it could say so
		case err != nil:
			t.Errorf("token %d was acknowledged and is lost: %v", id, err)
		case tok.Revision < f.revision:
			t.Errorf("token %d is back at revision %d from %d", id, tok.Revision, f.revision)
		case f.state == tokenstore.StateRevoked && tok.State != tokenstore.StateRevoked:
			t.Errorf("token %d was revoked, and is %v", id, tok.State)
		}
	}
	for tok, err := range s.List(t.Context(), tokenstore.Query{AllAccounts: true, Revoked: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if !told[fact{tok.ID, tok.Revision, tok.State}] {
			t.Errorf("token %d at revision %d has no event", tok.ID, tok.Revision)
		}
		if found, err := s.ByDigest(t.Context(), tok.Secrets[0].Digest); err != nil || found.ID != tok.ID {
			t.Errorf("token %d is half made: its secret leads to %v, %v", tok.ID, found, err)
		}
	}
}

// auditLines returns all events ever: those drained into the file, less a last
// line that the kill cut off, and those that still wait.
func auditLines(t *testing.T, s *Store, audit string) []string {
	t.Helper()
	raw, err := os.ReadFile(audit) //nolint:gosec // in the test's directory
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	lines := strings.Split(string(raw), "\n")
	lines = lines[:len(lines)-1]
	if whole := strings.LastIndexByte(string(raw), '\n') + 1; whole < len(raw) {
		if err := os.Truncate(audit, int64(whole)); err != nil {
			t.Fatal(err)
		}
	}
	events, err := s.Pending(tokenstore.MaxOutbox)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		lines = append(lines, string(e.Payload))
	}
	return lines
}

// writeUntilKilled is the child: it changes tokens from several goroutines, and
// says what was acknowledged once it was.
func writeUntilKilled(dir string) error {
	peppers, err := tokenstore.NewPeppers([]byte(strings.Repeat("a", tokenstore.MinPepperBytes)))
	if err != nil {
		return err
	}
	s, err := Open(Options{Path: filepath.Join(dir, "tokens.db"), Peppers: peppers, Now: time.Now})
	if err != nil {
		return err
	}
	failed := make(chan error)
	for range 4 {
		go func() {
			for {
				f, err := randomChange(s)
				if err != nil {
					failed <- err
					return
				}
				// One write of one line: the kill leaves all of it or nothing.
				if _, err := os.Stdout.WriteString(f.String() + "\n"); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	go func() { failed <- drain(s, filepath.Join(dir, "audit")) }()
	go func() { failed <- leaveTraces(s) }()
	return <-failed
}

// leaveTraces writes what is known beside tokens: usage with its names, and
// warnings, of tokens that are being swept meanwhile.
func leaveTraces(s *Store) error {
	ctx := context.Background()
	for {
		names, err := s.UsageNames()
		if err != nil {
			return err
		}
		var ids []tokenstore.ID
		for range 64 {
			ids = append(ids, 1+rand.N(tokenstore.ID(2000)))
		}
		if _, err := s.AddUsageNames(ctx, []string{fmt.Sprint(len(names))}); err != nil {
			return err
		}
		err = s.MergeUsage(ctx, ids, func(_ tokenstore.ID, old []byte) []byte { return append(bytes.Clone(old), 1)[:min(len(old)+1, 100)] })
		if err != nil {
			return err
		}
		if err := s.NoteWarning(ctx, ids[0], storetest.Epoch, nil, func(n *tokenstore.Notice) { n.Sent = min(n.Sent, 3) }); err != nil {
			return err
		}
	}
}

// randomChange makes, edits, revokes or sweeps a token, and returns what became
// of it.
func randomChange(s *Store) (f fact, err error) {
	err = s.Change(context.Background(), func(tx tokenstore.Tx) error {
		id, err := tx.NewID()
		if err != nil {
			return err
		}
		tok := storetest.Sample(id, 1+uint64(id)%3, 1)
		if verb := rand.IntN(4); verb > 0 && id > 1 {
			switch old, err := tx.Token(1 + rand.N(id-1)); {
			case errors.Is(err, tokenstore.ErrNotFound): // swept: make one
			case err != nil:
				return err
			case verb == 1 && old.State == tokenstore.StateRevoked:
				f = fact{old.ID, old.Revision, 0}
				tx.Emit([]byte(f.String()))
				return tx.Sweep(old.ID)
			case verb == 2 && old.State != tokenstore.StateRevoked:
				old.State, old.EndedAt = tokenstore.StateRevoked, storetest.Epoch
				tok = old
			default:
				old.Name += "."
				if len(old.Name) > 200 {
					old.Name = "short"
				}
				tok = old
			}
		}
		if err := tx.Put(tok); err != nil {
			return err
		}
		f = fact{tok.ID, tok.Revision, tok.State}
		tx.Emit([]byte(f.String()))
		return nil
	})
	return f, err
}

// drain does what the audit log does: events reach its disk before they leave
// the outbox.
func drain(s *Store, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // in the test's directory
	if err != nil {
		return err
	}
	for range s.Wake() {
		events, err := s.Pending(64)
		if err != nil {
			return err
		}
		if len(events) == 0 {
			continue
		}
		var lines strings.Builder
		for _, e := range events {
			lines.Write(e.Payload)
			lines.WriteByte('\n')
		}
		if _, err := io.WriteString(f, lines.String()); err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), s.Done(events[len(events)-1].Seq)); err != nil {
			return err
		}
	}
	return nil
}

// TestKilledCreateLeavesAStoreOrNothing kills a process that makes stores.
func TestKilledCreateLeavesAStoreOrNothing(t *testing.T) {
	for range kills() / 4 {
		dir := t.TempDir()
		acks := killed(t, "create", dir, 1+rand.IntN(20))
		stores, err := filepath.Glob(filepath.Join(dir, "*.db"))
		if err != nil || len(stores) < len(acks) {
			t.Fatalf("%d stores of %d acknowledged, %v", len(stores), len(acks), err)
		}
		for _, path := range stores {
			s, err := Open(Options{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			check(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// createUntilKilled is the child: it makes stores side by side.
func createUntilKilled(dir string) error {
	var wg sync.WaitGroup
	failed := make(chan error, 3)
	for w := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				s, err := Create(Options{Path: filepath.Join(dir, fmt.Sprintf("%d-%d.db", w, i))})
				if err == nil {
					err = s.Close()
				}
				if err == nil {
					_, err = os.Stdout.WriteString("made\n")
				}
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	wg.Wait()
	return <-failed
}
