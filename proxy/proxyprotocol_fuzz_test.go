package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"testing"

	"github.com/pires/go-proxyproto"
)

// FuzzProxyHeader holds that a header is read to its last byte and not beyond, and
// that its address is the one that the library reads.
func FuzzProxyHeader(f *testing.F) {
	for _, s := range []string{
		"PROXY TCP4 198.51.100.7 10.0.0.1 12345 443\r\nGET / HTTP/1.1\r\n", "PROXY UNKNOWN\r\nx", "PROXY TCP6 ::1 ::1 1 2\r\n",
		v2Start + "\x21\x11\x00\x0c\xc6\x33\x64\x07\x0a\x00\x00\x01\x30\x39\x01\xbbGET", v2Start + "\x20\x00\x00\x00", v2Start + "\x21\x11\xff\xff", "GET / HTTP/1.1\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		remote, own, err := readProxyHeader(r)
		if err != nil {
			return
		}
		rest, _ := io.ReadAll(r)
		br := bufio.NewReaderSize(bytes.NewReader(data), len(data)+16)
		want, err := proxyproto.Read(br)
		if err != nil {
			t.Fatalf("the library refuses it: %v", err)
		}
		if wantRest, _ := io.ReadAll(br); !bytes.Equal(rest, wantRest) {
			t.Fatalf("left %q, want %q", rest, wantRest)
		}
		switch addr := remote.(type) {
		case nil:
			if !own || !want.Command.IsLocal() {
				t.Fatal("no address, and not the proxy's own connection")
			}
		case *net.TCPAddr:
			if own || addr.String() != want.SourceAddr.String() {
				t.Fatalf("%v, want %v", addr, want.SourceAddr)
			}
		case unknownAddr:
			if want.TransportProtocol.IsStream() && !want.TransportProtocol.IsUnix() {
				t.Fatalf("unknown, but it is %v", want.SourceAddr)
			}
		}
	})
}
