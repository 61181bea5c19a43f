package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// Direction is a way through a [Relay]; directions add up.
type Direction uint8

// The directions, as the client sees them.
const (
	Requests Direction = 1 << iota
	Answers
	Both = Requests | Answers
)

const (
	maxLines     = 4096     // connections through one relay at once; further ones are reset
	chunkBytes   = 32 << 10 // what one read takes
	queuedChunks = 32       // chunks under way in one direction of a connection: a megabyte
	dialTimeout  = 10 * time.Second
)

// Relay passes TCP connections on to one address of the loopback interface, until
// it is told to misbehave. Faults of different kinds add up and end with Heal. All
// methods may be called at once from many goroutines.
type Relay struct {
	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu       sync.Mutex // guards what follows
	fault    fault
	changed  chan struct{} // closed when fault changes, and then replaced
	lines    map[*line]struct{}
	accepted int
	closed   bool
}

// fault is what a relay does wrong.
type fault struct {
	cut     bool
	stalled Direction
	dropped Direction
	delay   time.Duration
}

// NewRelay listens on a free port beside target, which is an address and a port of
// the loopback interface. The caller closes it.
func NewRelay(target string) (*Relay, error) {
	to, err := netip.ParseAddrPort(target)
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	if !to.Addr().IsLoopback() {
		return nil, fmt.Errorf("relay to %s: only the loopback interface is relayed", to)
	}
	listener, err := net.Listen("tcp", netip.AddrPortFrom(to.Addr(), 0).String())
	if err != nil {
		return nil, fmt.Errorf("relay to %s: %w", to, err)
	}
	r := &Relay{target: target, listener: listener, changed: make(chan struct{}), lines: make(map[*line]struct{})}
	r.running.Go(r.accept)
	return r, nil
}

// StartRelay is [NewRelay] for a test, which closes it at its end.
func StartRelay(t testing.TB, target string) *Relay {
	t.Helper()
	r, err := NewRelay(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// Addr returns the address and port at which the relay listens.
func (r *Relay) Addr() string { return r.listener.Addr().String() }

// Cut resets all connections, and each new one.
func (r *Relay) Cut() {
	r.change(func(f *fault) { f.cut = true })
}

// Stall keeps connections open, takes new ones, and passes nothing in a direction:
// what is sent arrives after Heal. A chunk that was just being written when Stall
// was called still passes.
func (r *Relay) Stall(d Direction) {
	r.change(func(f *fault) { f.stalled |= d })
}

// DropAnswers lets requests pass and throws the answers away, so that the client
// cannot know what became of them. Heal resets the connections that lost bytes.
func (r *Relay) DropAnswers() {
	r.change(func(f *fault) { f.dropped |= Answers })
}

// Delay lets every chunk take d longer, each way. What passes while it waits is
// bounded to about a megabyte in each direction of a connection.
func (r *Relay) Delay(d time.Duration) {
	r.change(func(f *fault) { f.delay = d })
}

// Heal ends all faults.
func (r *Relay) Heal() {
	r.change(func(f *fault) { *f = fault{} })
}

// Accepted returns how many connections were ever let in.
func (r *Relay) Accepted() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.accepted
}

// Open returns how many connections there are now.
func (r *Relay) Open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.lines)
}

// Close resets all connections, and returns when no goroutine of the relay is left.
func (r *Relay) Close() {
	r.mu.Lock()
	r.closed = true
	for l := range r.lines {
		l.end()
	}
	r.mu.Unlock()
	r.listener.Close()
	r.running.Wait()
}

func (r *Relay) change(do func(*fault)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.fault
	do(&r.fault)
	for l := range r.lines {
		if r.fault.cut || l.spoiled && before.dropped&^r.fault.dropped != 0 {
			l.end()
		}
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *Relay) accept() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return // closed
		}
		l := newLine(client)
		if !r.admit(l) {
			l.end()
			continue
		}
		r.running.Go(func() { r.serve(l) })
	}
}

func (r *Relay) admit(l *line) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.fault.cut || len(r.lines) >= maxLines {
		return false
	}
	r.lines[l] = struct{}{}
	r.accepted++
	return true
}

func (r *Relay) serve(l *line) {
	defer func() {
		l.finish()
		r.mu.Lock()
		delete(r.lines, l)
		r.mu.Unlock()
	}()
	server, err := l.dial(r.target)
	if err != nil {
		l.end()
		return
	}
	var ways sync.WaitGroup
	ways.Go(func() { r.pass(l, Requests, server, l.client) })
	r.pass(l, Answers, l.client, server)
	ways.Wait()
}

// pass passes one direction on until its end, which it passes on too, or until the
// line ends. A failure ends the line.
func (r *Relay) pass(l *line, d Direction, to, from net.Conn) {
	chunks := make(chan chunk, queuedChunks)
	r.running.Go(func() {
		defer close(chunks)
		l.read(from, chunks)
	})
	for c := range chunks {
		if !r.wait(l, d, c) {
			continue
		}
		if _, err := to.Write(c.bytes); err != nil {
			l.end()
		}
	}
	if tcp, ok := to.(*net.TCPConn); ok {
		tcp.CloseWrite() // fails where the line has ended
	}
}

// wait returns when a chunk is due, and whether it is to be written at all.
func (r *Relay) wait(l *line, d Direction, c chunk) bool {
	for {
		r.mu.Lock()
		f, changed := r.fault, r.changed
		if f.dropped&d != 0 {
			l.spoiled = true
		}
		r.mu.Unlock()
		if f.dropped&d != 0 {
			return false
		}
		var due <-chan time.Time // never, while stalled
		if f.stalled&d == 0 {
			left := time.Until(c.read.Add(f.delay))
			if left <= 0 {
				return true
			}
			due = time.After(left)
		}
		select {
		case <-due:
		case <-changed:
		case <-l.ended.Done():
			return false
		}
	}
}

// line is one connection through a relay.
type line struct {
	client net.Conn
	ended  context.Context
	cancel context.CancelFunc

	spoiled bool // bytes were dropped; guarded by the relay's mutex

	mu     sync.Mutex // guards what follows
	server net.Conn   // nil until it is dialled
}

type chunk struct {
	bytes []byte
	read  time.Time
}

func newLine(client net.Conn) *line {
	ctx, cancel := context.WithCancel(context.Background())
	return &line{client: client, ended: ctx, cancel: cancel}
}

// dial connects to the target, or not if the line ends before.
func (l *line) dial(target string) (net.Conn, error) {
	server, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(l.ended, "tcp", target)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.ended.Err(); err != nil {
		reset(server)
		return nil, err
	}
	l.server = server
	return server, nil
}

func (l *line) read(from net.Conn, chunks chan<- chunk) {
	for {
		buf := make([]byte, chunkBytes)
		n, err := from.Read(buf)
		if n > 0 {
			select {
			case chunks <- chunk{buf[:n], time.Now()}:
			case <-l.ended.Done():
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				l.end()
			}
			return
		}
	}
}

// end resets both sides, so that they see an error and not an end.
func (l *line) end() {
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	reset(l.client)
	if l.server != nil {
		reset(l.server)
	}
}

// finish closes both sides; what was written to them still arrives, unless the
// line was ended before.
func (l *line) finish() {
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.client.Close()
	if l.server != nil {
		l.server.Close()
	}
}

func reset(nc net.Conn) {
	if tcp, ok := nc.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	nc.Close()
}
