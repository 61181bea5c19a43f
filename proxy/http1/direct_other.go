//go:build !linux

package http1

import "net"

// Direct gives a listener whose TCP connections are read and written as cheaply
// as the engine does it by itself on cleartext (Linux; elsewhere it changes
// nothing). It is meant to stand under tls.NewListener.
func Direct(l net.Listener) net.Listener { return l }

// DirectConn does for one connection what Direct does for those of a listener.
func DirectConn(nc net.Conn) net.Conn { return nc }
