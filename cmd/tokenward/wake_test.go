package main

import (
	"io"
	"net"
	"testing"
)

// TestFewBytesAreReadInTheEnd: although more are waited for, once the other side closes,
// and once they are waited for no more.
func TestFewBytesAreReadInTheEnd(t *testing.T) {
	for name, release := range map[string]func(t *testing.T, here, there net.Conn){
		"the end": func(t *testing.T, _, there net.Conn) {
			if err := there.Close(); err != nil {
				t.Error(err)
			}
		},
		"no longer waited for": func(_ *testing.T, here, _ net.Conn) { wakeFor(here, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			here, there := connected(t)
			wakeFor(here, streamPart)
			read := make(chan string)
			go func() {
				b := make([]byte, len("few"))
				_, err := io.ReadFull(here, b)
				if err != nil {
					t.Error(err)
				}
				read <- string(b)
			}()
			if _, err := io.WriteString(there, "few"); err != nil {
				t.Fatal(err)
			}
			release(t, here, there)
			if got := <-read; got != "few" {
				t.Errorf("read %q", got)
			}
		})
	}
}

// TestOnlyAConnectionIsWaitedFor: what is none is left alone.
func TestOnlyAConnectionIsWaitedFor(t *testing.T) {
	here, there := net.Pipe()
	if wakeFor(here, streamPart) || wakeFor(nil, streamPart) {
		t.Error("waits for what no system counts")
	}
	if err := here.Close(); err != nil {
		t.Error(err)
	}
	if err := there.Close(); err != nil {
		t.Error(err)
	}
}

func connected(t *testing.T) (here, there net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // both ends stay
	if here, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if there, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = here.Close()
		_ = there.Close() // some are closed already
	})
	return here, there
}
