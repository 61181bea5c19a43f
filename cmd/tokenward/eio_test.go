//go:build linux

package main

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// spoil makes a system call of the running server fail with EIO on one of its files,
// as a broken disk would, until mend is called. when is strace's: which of the calls
// of each thread; "": all.
func (v *victim) spoil(t *testing.T, call, when, file string) (mend func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "strace", append(straceFlags(call, when, filepath.Join(v.dir, file)), "-p", strconv.Itoa(v.cmd.Process.Pid))...) //nolint:gosec // the test's own
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	said := ""
	for lines := bufio.NewScanner(stderr); !strings.Contains(said, " attached"); {
		if !lines.Scan() {
			_ = cmd.Wait()
			t.Skipf("strace may not look at other processes here: %s", said)
		}
		said += lines.Text() + "\n"
	}
	return func() {
		t.Helper()
		_ = cmd.Process.Signal(unix.SIGINT)
		_, _ = io.Copy(io.Discard, stderr)
		_ = cmd.Wait() // it ends by the signal, once it has let go
	}
}

func straceFlags(call, when, path string) []string {
	inject := call + ":error=EIO"
	if when != "" {
		inject += ":when=" + when
	}
	return []string{"-f", "-o", "/dev/null", "-e", "trace=" + call, "-e", "inject=" + inject, "-P", path}
}

func needStrace(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("it spoils real processes")
	}
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace")
	}
}

// attempt is a change asked for while the disk may fail.
type attempt struct {
	verb    string
	of      *witnessed // but of create
	name    string     // which a token has only by this change
	request string
	done    bool   // it was acknowledged
	code    string // of the refusal
}

// attemptAll asks for a change of every kind at once, so that they share commits, each
// of a token of its own.
func (v *victim) attemptAll(t *testing.T, targets []*witnessed) []*attempt {
	attempts := []*attempt{{verb: "create"}, {verb: "create"}}
	for i, verb := range []string{"revoke", "disable", "rename", "rotate"} {
		attempts = append(attempts, &attempt{verb: verb, of: targets[i]})
	}
	var asked sync.WaitGroup
	for _, a := range attempts {
		asked.Go(func() { v.attempt(t, a) })
	}
	asked.Wait()
	return attempts
}

func (v *victim) attempt(t *testing.T, a *attempt) {
	a.name = rand.Text()
	method, path, media, body := "POST", "/tokens", "application/json", `{"name":"`+a.name+`","scopes":["a"]}`
	if a.of != nil {
		path = fmt.Sprintf("/tokens/%d", a.of.id)
	}
	switch a.verb {
	case "revoke":
		method, media, body = "DELETE", "", ""
	case "disable":
		path, media, body = path+"/disable", "", ""
	case "rename":
		method, media, body = "PATCH", "application/merge-patch+json", `{"name":"`+a.name+`"}`
	case "rotate":
		path, body = path+"/rotate", `{"old_ends_at":"2099-01-01T00:00:00Z"}`
	}
	status, answer, request, err := v.ask(method, v.admin+"/v1"+path, v.root, media, body)
	var said struct {
		ID          uint64
		Token, Code string
	}
	if err == nil && len(answer) > 0 {
		err = json.Unmarshal(answer, &said)
	}
	if err != nil || status >= 300 && status < 500 {
		t.Errorf("%s: %d %s, %v", a.verb, status, answer, err)
		return
	}
	a.request, a.code, a.done = request, said.Code, status < 300
	if !a.done {
		if a.of != nil {
			a.of.unsure = true
		}
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.calls[request] = a.verb
	switch a.verb {
	case "create":
		a.of = &witnessed{id: said.ID, alive: []string{said.Token}}
		v.tokens = append(v.tokens, a.of)
	case "revoke":
		a.of.revoked, a.of.dead, a.of.alive = true, a.of.alive, nil
	case "disable":
		a.of.disabled = true
	case "rotate":
		a.of.alive = append(a.of.alive, said.Token)
	}
}

// made reports whether the store has the change, and holds it to be whole.
func (v *victim) made(t *testing.T, a *attempt) bool {
	t.Helper()
	type token struct {
		Name, State string
		Scopes      []string
		Secrets     []struct{ Last4 string }
	}
	var one token
	var page struct{ Items []token }
	path, into := "?name="+a.name, any(&page)
	if a.verb != "create" {
		path, into = fmt.Sprintf("/%d", a.of.id), &one
	}
	status, answer, _, err := v.ask("GET", v.admin+"/v1/tokens"+path, v.root, "", "")
	if err == nil {
		err = json.Unmarshal(answer, into)
	}
	if err != nil || status != http.StatusOK {
		t.Fatalf("%d %s, %v", status, answer, err)
	}
	switch a.verb {
	case "create":
		if len(page.Items) == 0 {
			return false
		}
		one = page.Items[0]
		if len(page.Items) > 1 || one.Name != a.name || one.State != "active" || len(one.Scopes) != 1 || len(one.Secrets) != 1 {
			t.Errorf("a token is half-made: %s", answer)
		}
		return true
	case "revoke":
		return one.State == "revoked"
	case "disable":
		return one.State == "disabled"
	case "rename":
		return one.Name == a.name
	default:
		return len(one.Secrets) == 2
	}
}

// settle holds the server, started again on a disk that works, to the attempts: what
// was acknowledged is there, what was refused is not, and what is not known is there
// whole and has its event, or neither.
func (v *victim) settle(t *testing.T, attempts []*attempt) {
	t.Helper()
	v.create(t, "", 0) // its event comes after all others
	v.events(t)
	told := v.told(t)
	for _, a := range attempts {
		switch made := v.made(t, a); {
		case made != told[a.request]:
			t.Errorf("%s, answered %q: made %t, but the audit log says %t", a.verb, a.code, made, !made)
		case a.done && !made:
			t.Errorf("%s was acknowledged and is lost", a.verb)
		case !a.done && made && a.code != "outcome_unknown":
			t.Errorf("%s was answered %q and is made", a.verb, a.code)
		}
	}
}

// readiness is what /readyz says of a server, which must be ready.
func (v *victim) readiness(t *testing.T) string {
	t.Helper()
	status, answer, _, err := v.ask("GET", "http://"+v.metrics+"/readyz", v.root, "", "")
	if err != nil || status != http.StatusOK {
		t.Errorf("readyz: %d %s, %v", status, answer, err)
	}
	return string(answer)
}

// TestDiskErrorsLoseNothingAcknowledged has the disk of a running server fail under
// single system calls, all of them or some, twice in turn with a disk that works.
// Valid requests are answered all the while.
func TestDiskErrorsLoseNothingAcknowledged(t *testing.T) {
	needStrace(t)
	const store, log = "t.db", "a.jsonl"
	for _, row := range []struct {
		name             string
		call, when, file string
		refused, done    bool   // what becomes of every change; neither: of each something
		says             string // log and /readyz, after what was going on
	}{
		{name: "syncs of the store", call: "fdatasync", file: store, refused: true, says: "input/output error: check its disk, then try again"},
		{name: "writes to the store", call: "pwrite64", file: store, refused: true, says: "input/output error: check its disk, then try again"},
		{name: "some syncs of the store", call: "fdatasync", when: "1+3", file: store},
		{name: "one write to the store", call: "pwrite64", when: "2..2", file: store},
		{name: "writes to the audit log", call: "write", file: log, done: true, says: "free space on its disk or repair it; nothing is lost: the write is tried again"},
		{name: "syncs of the audit log", call: "fsync", file: log, done: true, says: "restart tokenward once the disk works"},
		{name: "one sync of the audit log", call: "fsync", when: "1..1", file: log, done: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			v := newVictim(t)
			v.start(t)
			gone := v.create(t, "", 0)
			v.change(t, gone, "DELETE", fmt.Sprintf("/tokens/%d", gone.id), "", "", nil)
			gone.revoked, gone.dead, gone.alive = true, gone.alive, nil
			var attempts []*attempt
			for range 2 {
				targets := v.targets(t)
				if targets == nil {
					break // the disk did not confirm a commit: TestUnconfirmedCommitEndsWriting
				}
				mend := v.spoil(t, row.call, row.when, row.file)
				fresh := v.attemptAll(t, targets)
				attempts = append(attempts, fresh...)
				for _, a := range fresh {
					if row.refused && a.done || row.done && !a.done {
						t.Errorf("%s is answered with code %q", a.verb, a.code)
					}
				}
				v.examine(t, v.tokens)
				if row.says != "" {
					// A commit that was under way when the disk broke may lack the
					// confirmation of its header: then that is what is told.
					v.hears(t, row.says, "its disk did not confirm an earlier change, so no more are made")
				}
				mend()
			}
			v.kill(t)
			v.start(t)
			v.examine(t, v.tokens)
			v.settle(t, attempts)
			v.sound(t)
		})
	}
}

// targets makes a token for each attempt that needs one, or nil where none can be made.
func (v *victim) targets(t *testing.T) []*witnessed {
	var targets []*witnessed
	for range 4 {
		w := v.create(t, "", 0)
		if w == nil {
			return nil
		}
		targets = append(targets, w)
	}
	return targets
}

// hears waits until /readyz, and with it the log, say one of some things.
func (v *victim) hears(t *testing.T, what ...string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		ready, log := v.readiness(t), v.said()
		if slices.ContainsFunc(what, func(one string) bool { return strings.Contains(ready, one) && strings.Contains(log, one) }) {
			return
		}
		time.Sleep(20 * time.Millisecond) //nolint:forbidigo // nobody tells when another process writes its log
	}
	t.Errorf("neither\n%s\nnor\n%s\nsay %q", v.readiness(t), v.said(), what)
}

// sound stops the server and has its files checked.
func (v *victim) sound(t *testing.T) {
	t.Helper()
	v.stop(t)
	for _, verb := range [][]string{{"audit", "verify"}, {"doctor"}} {
		if out, err := v.command(append(verb, "--config", v.config)...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v %s", verb, err, out)
		}
	}
}

// TestUnconfirmedCommitIsNotBuiltUpon has the sync fail by which a commit's header is
// confirmed. Until it is started again the server serves and changes nothing more, on
// whichever disk.
func TestUnconfirmedCommitIsNotBuiltUpon(t *testing.T) {
	needStrace(t)
	v := newVictim(t)
	v.start(t)
	var attempts []*attempt
	unknown := false
	for tries := 0; !unknown && tries < 50; tries++ {
		target := v.create(t, "", 0)
		mend := v.spoil(t, "fdatasync", "2+2", "t.db") // of each thread: which are whose is chance
		for _, a := range []*attempt{{verb: "create"}, {verb: "revoke", of: target}} {
			v.attempt(t, a)
			attempts = append(attempts, a)
			unknown = unknown || a.code == "outcome_unknown"
		}
		mend()
	}
	if !unknown {
		t.Fatalf("no header failed:\n%s", v.said())
	}
	late := &attempt{verb: "create"}
	if v.attempt(t, late); late.done || late.code != "store_unavailable" {
		t.Errorf("a change after one that was not confirmed: done %t, code %q", late.done, late.code)
	}
	t.Logf("a header failed among %d attempts", len(attempts))
	v.hears(t, "check the disk, then restart tokenward")
	v.examine(t, v.tokens)
	v.kill(t)
	v.start(t)
	v.examine(t, v.tokens)
	v.settle(t, append(attempts, late))
	if strings.Contains(v.readiness(t), "cannot be written") {
		t.Error("the fault is told although the disk works again")
	}
	v.sound(t)
}

// TestStoreIsNotServedFromADiskThatDoesNotConfirm: what a process before this one left
// unconfirmed must be on the disk before anything rests on it.
func TestStoreIsNotServedFromADiskThatDoesNotConfirm(t *testing.T) {
	needStrace(t)
	v := newVictim(t)
	for _, call := range []string{"pwrite64", "fsync"} {
		serve := v.command("serve", "--config", v.config)
		cmd := exec.CommandContext(t.Context(), "strace", append(straceFlags(call, "", filepath.Join(v.dir, "t.db")), serve.Args...)...) //nolint:gosec // the test's own
		cmd.Env = serve.Env
		out, err := cmd.CombinedOutput()
		if strings.Contains(string(out), "ptrace") {
			t.Skipf("strace may not start processes here: %s", out)
		}
		if err == nil || !strings.Contains(string(out), "cannot be written to disk: ") || !strings.Contains(string(out), "check the disk, then try again") {
			t.Errorf("%s fails: %v %s", call, err, out)
		}
	}
	v.start(t)
	v.sound(t)
}

// TestStoreIsUpgradedOnlyOnceTheDiskHasTheNameOfItsCopy: a power failure could else leave
// the new layout alone.
func TestStoreIsUpgradedOnlyOnceTheDiskHasTheNameOfItsCopy(t *testing.T) {
	needStrace(t)
	v := newVictim(t)
	migrate := v.command("migrate", "--config", v.config)
	cmd := exec.CommandContext(t.Context(), "strace", append(straceFlags("fsync", "", v.dir), migrate.Args...)...) //nolint:gosec // the test's own
	cmd.Env = migrate.Env
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "ptrace") {
		t.Skipf("strace may not start processes here: %s", out)
	}
	if err == nil || !strings.Contains(string(out), "copy the store: ") {
		t.Errorf("%v %s", err, out)
	}
	if left, err := filepath.Glob(filepath.Join(v.dir, "t.db.*")); err != nil || len(left) > 0 {
		t.Errorf("there is %q, %v", left, err)
	}
}
