package http1

import (
	"io"
	"sync/atomic"
)

// visit is a connection's stay at its socket, between two requests: one call of
// RawConn.Read, within which the runtime's poller forgets nothing of what it was told.
// Whatever comes after the last read is told to it. So if that read took all there
// was, the next request is waited for without another that finds nothing.
//
// For this a request is served within the visit that read it, where nothing of the
// connection has to be read until it is answered: the socket's reading side is taken
// meanwhile. That is a request that came whole, after others, on a server whose handler
// takes over no connections. All else is served as on connections without a socket.
//
// An end of the client's that came together with its request has been told with that.
// The sweeper notices it, at the second tick after the answer. On the first request of
// a connection, where a client that has only one to make says so by its end, it is
// noticed at once.
type visit struct {
	fn   func(fd uintptr) bool
	read int
	err  error

	ended bool // an exchange was the last; how says in which way
	how   outcome

	// serving is set while a request is served. Whoever cuts the connection sets cut and
	// then looks here, and the visit looks at cut after it has set or cleared this; so
	// that one of them sees what the other did, and ends the connection.
	serving atomic.Bool
}

// visitSocket visits the socket until the next request has to be served elsewhere. See
// readFirst.
func (c *conn) visitSocket() (int, error) {
	v := &c.visit
	v.read, v.err, v.ended = 0, nil, false
	if err := c.raw.Read(v.fn); err != nil {
		return 0, err
	}
	return v.read, v.err
}

// try is called when there may be something to read, and reports whether the visit is
// over.
func (c *conn) try(fd uintptr) bool {
	v := &c.visit
	n, again, err := c.readLazily(fd)
	switch {
	case again:
		return false
	case n == 0 && err == nil:
		err = io.EOF
	}
	v.read, v.err = n, err
	if err != nil || n == len(c.in.blk.data) || !c.srv.NoHijack || c.exchange.Load() == 0 {
		return true
	}
	return !c.serveHere()
}

// readLazily reads into a block that it takes only while there is something to
// read; again says that there is nothing yet.
func (c *conn) readLazily(fd uintptr) (n int, again bool, err error) {
	blk := c.srv.mem.get(headBlock)
	n, again, err = readNow(fd, blk.data)
	if n <= 0 {
		c.srv.mem.put(blk)
		return 0, again, err
	}
	c.in = stream{blk: blk, w: n}
	return n, false, nil
}

// serveHere serves what was read, if it is one whole request, and reports whether the
// connection is idle again and has nothing else to be done with.
func (c *conn) serveHere() bool {
	v := &c.visit
	how, keep, served := ended, false, false
	v.serving.Store(true)
	if !c.cut.Load() {
		how, keep, served = c.exchangeHere()
	}
	v.serving.Store(false)
	cut := c.cut.Load()
	switch {
	case cut || served && !keep:
		v.read, v.ended, v.how = 0, true, how
		return false
	case !served:
		return false
	}
	v.read = 0
	if !c.in.empty() {
		return false
	}
	c.becomeIdle()
	return !c.srv.closing.Load() // closeIdle wakes those that were idle before
}

// exchangeHere is exchangeOnce for a request of which nothing has to be read any more.
func (c *conn) exchangeHere() (how outcome, keep, served bool) {
	x := c.srv.mem.exchange()
	x.begin(c)
	defer func() {
		x.end() // also after a panic
	}()
	r := &x.req
	if done, err := r.parse(c.in.buffered(), &c.srv.limits); !done || err != nil {
		return ended, false, false
	}
	if r.Chunked || r.ContentLength > int64(c.in.w-r.end) || r.ExpectContinue || r.Upgrade != nil {
		return ended, false, false
	}
	c.passHead(r)
	how, keep = c.serveExchange(x)
	return how, keep, true
}
