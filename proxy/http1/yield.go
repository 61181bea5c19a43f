package http1

import _ "unsafe" // for go:linkname

// giveWay lets the goroutines that wait for this processor go first, and comes back
// when each of them has waited for something. The engine calls it where it is about to
// write, and after it, where it is about to look for the next request.
//
// So what arrived together is read and judged together and then written together. A
// write wakes whoever waits at the other end; one that comes while that one is still
// at work on the last wakes nobody, and waking is the dearest part of a write, most of
// all in a virtual machine. Under load this takes a fifth off the cost of a request
// (docs/http1.md); where nobody waits it costs some 100 ns.
//
// runtime.Gosched is not it: it puts the goroutine where all processors look, behind
// one lock, and wakes another thread to take it up. With few requests at a time that
// costs half as much again as the whole request.
//
// The runtime keeps this name for packages that link to it (go.dev/issue/67401).
//
//go:linkname giveWay runtime.goyield
func giveWay()
