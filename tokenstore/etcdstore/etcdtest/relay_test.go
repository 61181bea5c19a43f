package etcdtest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"tokenward/tokenstore/etcdstore/etcdtest"
)

func TestRelayPassesAllBytesAndTheirEnd(t *testing.T) {
	t.Parallel()
	r := etcdtest.StartRelay(t, echo(t).addr)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	nc := dial(t, r)
	var sending sync.WaitGroup
	sending.Go(func() {
		nc.Write(sent)
		nc.CloseWrite()
	})
	got, err := io.ReadAll(nc)
	sending.Wait()
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("sent %d bytes, got %d back: %v", len(sent), len(got), err)
	}
	etcdtest.WaitFor(t, "the connection to be forgotten", func(context.Context) error {
		if n := r.Open(); n != 0 {
			return errors.New("it is not")
		}
		return nil
	})
}

func TestCutEndsConnectionsAndRefusesNewOnes(t *testing.T) {
	t.Parallel()
	r := etcdtest.StartRelay(t, echo(t).addr)
	present := dial(t, r)
	say(t, present, "a")
	hear(t, present, "a")
	r.Cut()
	wantReset(t, present)
	wantNone(t, r)
	r.Heal()
	later := dial(t, r)
	say(t, later, "b")
	hear(t, later, "b")
	if n := r.Accepted(); n != 2 {
		t.Errorf("let in %d connections, want 2", n)
	}
}

func TestStallPassesNothingUntilHealed(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]etcdtest.Direction{"requests": etcdtest.Requests, "answers": etcdtest.Answers, "both": etcdtest.Both} {
		t.Run(name, func(t *testing.T) {
			e := echo(t)
			r := etcdtest.StartRelay(t, e.addr)
			nc := dial(t, r)
			say(t, nc, "a")
			hear(t, nc, "a")
			r.Stall(d)
			say(t, nc, "b")
			if d == etcdtest.Answers {
				e.wantHeard(t, "ab")
			}
			wantSilence(t, nc)
			if d != etcdtest.Answers {
				e.wantHeard(t, "a")
			}
			r.Heal()
			hear(t, nc, "b")
		})
	}
}

func TestDropAnswersLosesThemForGood(t *testing.T) {
	t.Parallel()
	e := echo(t)
	r := etcdtest.StartRelay(t, e.addr)
	nc, idle := dial(t, r), dial(t, r)
	say(t, idle, "i")
	hear(t, idle, "i")
	r.DropAnswers()
	say(t, nc, "a")
	e.wantHeard(t, "ia")
	wantSilence(t, nc)
	r.Heal()
	wantReset(t, nc)
	say(t, idle, "j")
	hear(t, idle, "j")
}

func TestDelayIsAtLeastWhatItSays(t *testing.T) {
	t.Parallel()
	const d = 50 * time.Millisecond
	r := etcdtest.StartRelay(t, echo(t).addr)
	nc := dial(t, r)
	r.Delay(d)
	began := time.Now()
	say(t, nc, "a")
	hear(t, nc, "a")
	if took := time.Since(began); took < 2*d {
		t.Errorf("there and back took %s, want %s at least", took, 2*d)
	}
}

func TestRelayToNobodyResets(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	wantNone(t, etcdtest.StartRelay(t, l.Addr().String()))
}

func TestRelayStaysOnLoopback(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"192.0.2.1:80", "0.0.0.0:80", "localhost:80", "127.0.0.1", ""} {
		if r, err := etcdtest.NewRelay(target); err == nil {
			r.Close()
			t.Errorf("relays to %q", target)
		}
	}
}

func TestRelayLeavesNoGoroutine(t *testing.T) {
	target := echo(t).addr
	before := runtime.NumGoroutine()
	for _, fault := range []func(*etcdtest.Relay){
		func(*etcdtest.Relay) {},
		func(r *etcdtest.Relay) { r.Stall(etcdtest.Both) },
		func(r *etcdtest.Relay) { r.Delay(time.Hour) },
		(*etcdtest.Relay).DropAnswers,
		(*etcdtest.Relay).Cut,
	} {
		r, err := etcdtest.NewRelay(target)
		if err != nil {
			t.Fatal(err)
		}
		var clients []*net.TCPConn
		for range 20 {
			clients = append(clients, dial(t, r))
		}
		fault(r)
		for _, nc := range clients {
			nc.Write([]byte("a"))
		}
		r.Close()
		r.Cut() // after its end, nothing happens
		for _, nc := range clients {
			nc.Close()
		}
	}
	etcdtest.WaitFor(t, "the goroutines of relays to end", func(context.Context) error {
		if n := runtime.NumGoroutine(); n > before {
			return errors.New("some are left")
		}
		return nil
	})
}

// TestFaultsComeAtOnceFromManyGoroutines is for the race detector.
func TestFaultsComeAtOnceFromManyGoroutines(t *testing.T) {
	t.Parallel()
	r := etcdtest.StartRelay(t, echo(t).addr)
	var all sync.WaitGroup
	for _, fault := range []func(){
		r.Cut, r.DropAnswers, r.Heal,
		func() { r.Stall(etcdtest.Requests) },
		func() { r.Delay(time.Millisecond) },
		func() { r.Open() },
	} {
		all.Go(func() {
			for range 50 {
				fault()
			}
		})
		all.Go(func() {
			for range 20 {
				if nc, err := net.Dial("tcp", r.Addr()); err == nil {
					nc.Write([]byte("a"))
					nc.Close()
				}
			}
		})
	}
	all.Wait()
	r.Heal()
	nc := dial(t, r)
	say(t, nc, "z")
	hear(t, nc, "z")
}

func TestWriteMayHaveHappenedWhenItsAnswerIsLost(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{})
	relays := c.ClientRelays()
	client := c.NewClient(relays.Endpoints()...)
	if _, err := client.Put(t.Context(), "k", "v1"); err != nil {
		t.Fatal(err)
	}
	relays.DropAnswers()
	ctx, cancel := context.WithTimeout(t.Context(), short)
	defer cancel()
	if _, err := client.Put(ctx, "k", "v2"); err == nil {
		t.Error("a write is acknowledged although its answer is lost")
	}
	answer, err := c.Client().Get(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if got := string(answer.Kvs[0].Value); got != "v2" {
		t.Errorf("the write whose answer was lost left %q", got)
	}
	relays.Heal()
	etcdtest.WaitFor(t, "a write after the partition", func(ctx context.Context) error {
		_, err := client.Put(ctx, "k", "v3")
		return err
	})
}

func TestOneNodeIsPartitionedAndAnotherIsNot(t *testing.T) {
	t.Parallel()
	c := etcdtest.Start(t, etcdtest.Options{Members: 3, TLS: true, Auth: true})
	lost, kept := c.ClientRelays(), c.ClientRelays()
	lostClient, keptClient := c.NewClient(lost.Endpoints()...), c.NewClient(kept.Endpoints()...)
	for _, client := range []*clientv3.Client{lostClient, keptClient} {
		if _, err := client.Put(t.Context(), "k", "v"); err != nil {
			t.Fatal(err)
		}
	}
	lost.Cut()
	ctx, cancel := context.WithTimeout(t.Context(), short)
	defer cancel()
	if _, err := lostClient.Get(ctx, "k"); err == nil {
		t.Error("a node that is cut off reads")
	}
	if _, err := keptClient.Get(t.Context(), "k"); err != nil {
		t.Errorf("the other node is cut off too: %v", err)
	}
	lost.Heal()
	etcdtest.WaitFor(t, "the node to be back", func(ctx context.Context) error {
		_, err := lostClient.Get(ctx, "k")
		return err
	})
}

// echoer answers with what it hears.
type echoer struct {
	addr string

	mu    sync.Mutex
	heard []byte
}

func echo(t *testing.T) *echoer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echoer{addr: l.Addr().String()}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer nc.Close()
				io.Copy(nc, io.TeeReader(nc, e))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return e
}

// Write implements [io.Writer].
func (e *echoer) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard = append(e.heard, p...)
	return len(p), nil
}

func (e *echoer) wantHeard(t *testing.T, want string) {
	t.Helper()
	etcdtest.WaitFor(t, "the server to hear "+want, func(context.Context) error {
		e.mu.Lock()
		defer e.mu.Unlock()
		if got := string(e.heard); got != want {
			return errors.New("it has heard " + got)
		}
		return nil
	})
}

func dial(t *testing.T, r *etcdtest.Relay) *net.TCPConn {
	t.Helper()
	nc, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc.(*net.TCPConn)
}

func say(t *testing.T, nc net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(nc, text); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, nc net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(nc, got); err != nil || string(got) != want {
		t.Fatalf("heard %q, want %q: %v", got, want, err)
	}
}

// wantSilence gives what must not come a while to come. A machine that is slower
// than that misses a fault of the relay, and reports none where there is none.
func wantSilence(t *testing.T, nc net.Conn) {
	t.Helper()
	nc.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	defer nc.SetReadDeadline(time.Time{})
	if n, err := nc.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("heard %d bytes: %v", n, err)
	}
}

// wantNone dials where each connection is reset, at once or soon.
func wantNone(t *testing.T, r *etcdtest.Relay) {
	t.Helper()
	nc, err := net.Dial("tcp", r.Addr())
	if err != nil {
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("dialled: %v, want a reset", err)
		}
		return
	}
	defer nc.Close()
	wantReset(t, nc)
}

func wantReset(t *testing.T, nc net.Conn) {
	t.Helper()
	if n, err := nc.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d bytes: %v, want a reset", n, err)
	}
}
