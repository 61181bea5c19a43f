package admin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"tokenward/tokenstore"
)

// Kind says what went wrong in words that a program can branch on. Each wire
// contract turns it into its own code and text, and into the status of
// [Kind.Status] or one of its own.
type Kind uint8

// The kinds. The zero Kind is KindInternal, so that what nobody classified is
// answered as an opaque fault. Adding one means editing kindCodes here,
// [Kind.Status], and what faces say otherwise; TestEveryKindHasItsAnswer walks
// all of them through all faces.
const (
	KindInternal       Kind = iota // a fault of the program; nothing of it is shown
	KindMissingToken               // no credential
	KindInvalidToken               // the credential does not open anything now
	KindAmbiguous                  // two credentials that differ, or one header twice
	KindSource                     // not from this address
	KindScope                      // the caller lacks a scope; Error.Scope names it
	KindAccess                     // another account, or the level on it is too low
	KindGrace                      // the caller's secret has been replaced and may not manage
	KindWider                      // the token asked for is wider than the caller
	KindNotFound                   // no such token, or none that the caller may see
	KindNoPath                     // no such path
	KindMethod                     // the path does not take this method; Error.Allow has those it takes
	KindMalformed                  // the body or query cannot be read
	KindMediaType                  // the body is not JSON
	KindTooLarge                   // the body is over MaxBodyBytes
	KindBodyTimeout                // the body stopped arriving
	KindInvalid                    // fields are wrong; Error.Fields names them
	KindConflict                   // the token's state does not allow it
	KindPrecondition               // the token is not at the revision the caller wants to change
	KindKeyReused                  // the idempotency key came with another request before
	KindRateLimited                // too many requests; Error.RetryAfter says when
	KindUnavailable                // the store cannot be used just now
	KindOutcomeUnknown             // the change may or may not have been made
	KindBadGateway                 // what stands behind this node broke
	KindGatewayTimeout             // what stands behind this node did not answer in time
)

// kindCodes are the codes of the native API and of logs.
var kindCodes = [...]string{
	KindInternal:       "internal",
	KindMissingToken:   "missing_token",
	KindInvalidToken:   "invalid_token",
	KindAmbiguous:      "ambiguous_credential",
	KindSource:         "source_not_allowed",
	KindScope:          "insufficient_scope",
	KindAccess:         "resource_not_granted",
	KindGrace:          "secret_in_grace",
	KindWider:          "exceeds_caller",
	KindNotFound:       "not_found",
	KindNoPath:         "no_route",
	KindMethod:         "method_not_allowed",
	KindMalformed:      "bad_request",
	KindMediaType:      "unsupported_media_type",
	KindTooLarge:       "body_too_large",
	KindBodyTimeout:    "body_timeout",
	KindInvalid:        "invalid",
	KindConflict:       "conflict",
	KindPrecondition:   "precondition_failed",
	KindKeyReused:      "idempotency_key_reused",
	KindRateLimited:    "rate_limited",
	KindUnavailable:    "store_unavailable",
	KindOutcomeUnknown: "outcome_unknown",
	KindBadGateway:     "upstream_failed",
	KindGatewayTimeout: "upstream_timeout",
}

// Kinds returns every kind, for the tests that walk tables.
func Kinds() []Kind {
	all := make([]Kind, len(kindCodes))
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

// String returns the kind's code.
func (k Kind) String() string {
	if int(k) < len(kindCodes) {
		return kindCodes[k]
	}
	return kindCodes[KindInternal]
}

// Error is how every verb and the plumbing of the faces fail. Kind, Detail and
// Fields are safe to show to the client; Cause is for the log alone.
type Error struct {
	Kind       Kind
	Detail     string                  // one sentence; empty: the kind says it all
	Fields     []tokenstore.FieldFault // KindInvalid: what is wrong where, in the native API's words
	Scope      string                  // KindScope: the scope that is missing
	Allow      []string                // KindMethod: the methods the path takes
	RetryAfter time.Duration           // when to come back; 0: not said
	Limits     Limits                  // KindRateLimited: what refused
	Cause      error
}

// Limits are the values of the header fields that tell a refused client of the
// limit (draft-ietf-httpapi-ratelimit-headers). The zero Limits tells nothing.
type Limits struct {
	Policy string // RateLimit-Policy
	Left   string // RateLimit
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Kind.String())
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	for _, f := range e.Fields {
		fmt.Fprintf(&b, "; %s %s", f.Field, f.Detail)
	}
	if e.Cause != nil {
		b.WriteString(": " + e.Cause.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// retryStore is how soon a client may try a store again that cannot be used.
const retryStore = 5 * time.Second

// AsError classifies err. An *Error in its chain is returned as it is; the
// store's errors get their kinds; everything else is KindInternal.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Kind: KindInternal, Cause: err}
}

// storeError classifies what a store returned.
func storeError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if _, ok := errors.AsType[*tokenstore.DuplicateError](err); ok || errors.Is(err, tokenstore.ErrInvariant) {
		return &Error{Kind: KindInternal, Cause: err}
	}
	switch {
	case errors.Is(err, tokenstore.ErrNotFound):
		return notFound()
	case errors.Is(err, tokenstore.ErrOutcomeUnknown):
		return &Error{Kind: KindOutcomeUnknown, Detail: "The change may or may not have been made; look before trying again.", Cause: err}
	case errors.Is(err, tokenstore.ErrOutboxFull):
		return &Error{Kind: KindUnavailable, Detail: "Changes are refused while the audit log cannot be written.", RetryAfter: retryStore, Cause: err}
	case errors.Is(err, tokenstore.ErrTooLarge):
		return &Error{Kind: KindTooLarge, Detail: "The change is larger than the token store takes at once.", Cause: err}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &Error{Kind: KindUnavailable, Detail: "The change was not begun in time.", RetryAfter: retryStore, Cause: err}
	}
	return &Error{Kind: KindUnavailable, Detail: "The token store cannot be used just now.", RetryAfter: retryStore, Cause: err}
}

func refuse(kind Kind, detail string) *Error { return &Error{Kind: kind, Detail: detail} }

// notFound is the one answer for what does not exist and what the caller may
// not see.
func notFound() *Error { return refuse(KindNotFound, "There is no such token.") }

func missingScope(scope string) *Error {
	return &Error{Kind: KindScope, Detail: "The calling token lacks the scope " + scope + ".", Scope: scope}
}

func invalid(faults ...tokenstore.FieldFault) *Error {
	return &Error{Kind: KindInvalid, Detail: "Some fields are not acceptable.", Fields: faults[:min(len(faults), maxFaults)]}
}
