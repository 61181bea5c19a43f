package proxy

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// HTTP2 serves connections that speak HTTP/2, which another server accepted and
// recognised, through net/http. It is made by [NewHTTP2].
type HTTP2 struct {
	server *http.Server
	inbox  *inbox

	mu    sync.Mutex // guards ended
	ended map[net.Conn]chan struct{}
}

// NewHTTP2 returns a server for h. idle and header bound how long a connection
// may be unused and how long a request's head may take.
func NewHTTP2(h http.Handler, header, idle time.Duration, maxHeaderBytes int, logger *slog.Logger) *HTTP2 {
	s := &HTTP2{ended: make(map[net.Conn]chan struct{}), inbox: newInbox()}
	s.server = &http.Server{
		Handler:           h,
		ReadHeaderTimeout: header,
		IdleTimeout:       idle,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnState:         s.connState,
		ErrorLog:          ErrorLog(logger),
		Protocols:         new(http.Protocols),

		DisableGeneralOptionsHandler: true, // it would answer OPTIONS * itself, whoever asks
	}
	s.server.Protocols.SetHTTP2(true)
	s.server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = s.server.Serve(s.inbox) }() // ends when Shutdown or Close closes the inbox
	return s
}

// ServeConn serves one connection and returns when it has ended.
func (s *HTTP2) ServeConn(nc net.Conn) {
	done := make(chan struct{})
	s.mu.Lock()
	s.ended[nc] = done
	s.mu.Unlock()
	if !s.inbox.put(nc) {
		s.forget(nc)
		_ = nc.Close()
		return
	}
	<-done
}

// Shutdown finishes the requests in flight and closes all connections.
func (s *HTTP2) Shutdown(ctx context.Context) error { return s.server.Shutdown(ctx) }

// Close closes all connections at once.
func (s *HTTP2) Close() error { return s.server.Close() }

func (s *HTTP2) connState(nc net.Conn, state http.ConnState) {
	if state == http.StateClosed || state == http.StateHijacked {
		s.forget(nc)
	}
}

func (s *HTTP2) forget(nc net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if done := s.ended[nc]; done != nil {
		delete(s.ended, nc)
		close(done)
	}
}

// inbox is a net.Listener whose connections were accepted elsewhere.
type inbox struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newInbox() *inbox {
	return &inbox{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (i *inbox) put(nc net.Conn) bool {
	select {
	case i.conns <- nc:
		return true
	case <-i.closed:
		return false
	}
}

// Accept implements net.Listener.
func (i *inbox) Accept() (net.Conn, error) {
	select {
	case nc := <-i.conns:
		return nc, nil
	case <-i.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (i *inbox) Close() error {
	i.once.Do(func() { close(i.closed) })
	return nil
}

// Addr implements net.Listener.
func (i *inbox) Addr() net.Addr { return &net.TCPAddr{} }
