package http1

import (
	"net"
	"testing"
)

// pair gives both ends of a TCP connection.
func pair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near.(*net.TCPConn), far.(*net.TCPConn)
}

// TestSpliceCountsWhatABrokenSideDidNotTake: bytes that left the client must
// not be expected from it once more, or they would be taken out of its next
// request.
func TestSpliceCountsWhatABrokenSideDidNotTake(t *testing.T) {
	sender, src := pair(t)
	dst, gone := pair(t)
	_ = gone.SetLinger(0)
	_ = gone.Close()
	s := &Server{}
	s.init()
	c := &conn{srv: s, nc: src}
	raw, _ := socketOf(dst)
	waitFor(t, "the reset to arrive", func() bool {
		broken := false
		_ = raw.Control(func(fd uintptr) { broken = !quiet(fd) })
		return broken
	})
	if _, err := sender.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	from, _ := socketOf(src)
	took, moved, ok, srcErr, dstErr := c.splice(raw, from, 5000, func(int64) {})
	if !ok || took != 1000 || moved != 0 || srcErr != nil || dstErr == nil {
		t.Errorf("took %d, moved %d, %v, %v, %v", took, moved, ok, srcErr, dstErr)
	}
	s.closePipes()
}

// TestAnswerDoesNotOvertakeTheLastSplicedPiece: an upstream answers as soon as it
// has the last byte. If that was not said to be on its way, the answer would count
// as early and end the client's connection.
func TestAnswerDoesNotOvertakeTheLastSplicedPiece(t *testing.T) {
	sender, src := pair(t)
	dst, _ := pair(t)
	s := &Server{}
	s.init()
	x := &Exchange{c: &conn{srv: s, nc: src}}
	x.c.raw, _ = socketOf(src)
	raw, tcp := socketOf(dst)
	if _, err := sender.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	x.body.form, x.body.left = bodyLength, 1000
	ok, _, err := x.pumpSplice(&upConn{nc: dst, raw: raw, tcp: tcp}, 0)
	if !ok || err != nil || !x.body.done {
		t.Fatal(ok, err, x.body.left)
	}
	if !x.pump.last.Load() {
		t.Error("nobody was told that the last piece was being sent")
	}
	s.closePipes()
}
