package proxy

import (
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Status codes of gRPC.
const (
	grpcCancelled         = 1
	grpcDeadlineExceeded  = 4
	grpcPermissionDenied  = 7
	grpcResourceExhausted = 8
	grpcInternal          = 13
	grpcUnavailable       = 14
)

// streamReset has the fields of net/http's error for a stream that the other side
// reset, which net/http converts into any struct that has them.
type streamReset struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

// Error implements error.
func (e streamReset) Error() string {
	return "the stream was reset with code " + strconv.Itoa(int(e.Code))
}

// endsCall ends the answer to a gRPC call, which the upstream broke off with err,
// with the status that its client would have read from that: net/http can reset a
// stream with no code but INTERNAL_ERROR, so that a call past its deadline would
// look like a fault and a lost connection like no reason to try again. It reports
// false where the answer is not gRPC.
func endsCall(r *http.Response, took time.Duration, err error) bool {
	kind := r.Header.Get("Content-Type")
	if rest, ok := strings.CutPrefix(kind, "application/grpc"); !ok || rest != "" && rest[0] != '+' && rest[0] != ';' {
		return false // as is gRPC-Web, whose trailers are in the body
	}
	code, message := grpcUnavailable, "the upstream broke off its answer"
	if reset, ok := errors.AsType[streamReset](err); ok {
		code, message = grpcStatus(reset.Code), "the upstream reset the call"
	}
	if limit, ok := grpcTimeout(r.Request.Header.Get("Grpc-Timeout")); ok && code == grpcCancelled && took >= limit {
		code, message = grpcDeadlineExceeded, "the upstream ended the call at its deadline"
	}
	r.Trailer = http.Header{"Grpc-Status": {strconv.Itoa(code)}, "Grpc-Message": {message}}
	return true
}

// grpcStatus says which status an HTTP/2 error code stands for, as gRPC's clients
// read it ("gRPC over HTTP2", Errors).
func grpcStatus(code uint32) int {
	switch code {
	case 0x7: // REFUSED_STREAM
		return grpcUnavailable
	case 0x8: // CANCEL
		return grpcCancelled
	case 0xb: // ENHANCE_YOUR_CALM
		return grpcResourceExhausted
	case 0xc: // INADEQUATE_SECURITY
		return grpcPermissionDenied
	}
	return grpcInternal
}

// grpcTimeout reads a Grpc-Timeout: at most 8 digits and a unit.
func grpcTimeout(s string) (time.Duration, bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	unit, ok := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if !ok || err != nil {
		return 0, false
	}
	if n > uint64(math.MaxInt64/unit) { // #nosec G115 -- it is positive
		return math.MaxInt64, true
	}
	return time.Duration(n) * unit, true // #nosec G115 -- it fits
}
