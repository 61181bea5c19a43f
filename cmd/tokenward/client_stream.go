package main

import (
	"context"
	"io"
	"net"
	"net/http/httptrace"
	"time"
)

// streamPart is how much of a stream is waited for before it is read, for as long as
// streamPause brings so much.
const (
	streamPart  = 4 << 20 // bytes
	streamPause = 5 * time.Second
)

// timedReader puts a timer off with each read.
type timedReader struct {
	r     io.Reader
	timer *time.Timer
}

func (t *timedReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.timer.Reset(streamPause)
	return n, err
}

// stream makes a call whose answer is not JSON and long, and copies it to w. The
// connection is closed behind it, and so the end is heard of even while more is
// waited for.
func (c *client) stream(ctx context.Context, one call, media string, w io.Writer) error {
	one.media, one.last = media, true
	var conn net.Conn
	resp, err := c.open(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { conn = info.Conn },
	}), one, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body := io.Reader(resp.Body)
	if resp.Close && wakeFor(conn, streamPart) {
		each := time.AfterFunc(streamPause, func() { wakeFor(conn, 1) })
		defer each.Stop()
		body = &timedReader{body, each}
	}
	if _, err := io.Copy(w, body); err != nil {
		return &lostError{c, one, err}
	}
	return nil
}
