// Package http1 is a strict, fast HTTP/1.1 wire engine over net.Conn: the server
// side, and a client side that forwards an exchange to an upstream. It knows
// nothing of tokens, routes or policy.
//
// A [Server] runs one goroutine per connection. For each request whose head
// passed every check of RFC 9110 and RFC 9112 it calls Handler with an
// [Exchange]; the handler answers it once, with [Exchange.Respond], a [Template],
// [Exchange.Forward] or an [Adapter] around an http.Handler. What is odd is
// refused by the engine itself, with a 4xx or 5xx status and Connection: close;
// docs/http1.md lists what and why.
//
// The request head stays the bytes that were read. [Request] gives slices of
// them, and Forward sends the same lines on, without those that an [Edit]
// drops and with those it adds. There is no header map, and a request that is
// forwarded allocates nothing.
//
// Time is coarse. Instead of arming a timer for each read the engine stores the
// moment at which a connection's patience ends, and one sweeper per Server looks
// through the connections, every quarter of a second or an eighth of the
// shortest timeout, whichever is less. Time in which the process itself does not
// get to run hardly counts. The sweeper also notices clients that
// went away while their answer was awaited.
package http1
