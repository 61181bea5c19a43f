//go:build !linux

package main

import "net"

// wakeFor reports that it is for the system to say when a reader is woken.
func wakeFor(net.Conn, int) bool { return false }
