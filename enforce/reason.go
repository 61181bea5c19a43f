package enforce

import "fmt"

// Reason is why a request was let through or refused. The zero Reason refuses.
//
// Adding one means a line in reasons below; everything that depends on the
// reason (status, code, log, metric, explain) reads it from there, and a test
// walks all of them through every table that maps them.
type Reason uint8

// The reasons, in the order in which they are looked for.
const (
	Undecided           Reason = iota // nothing was decided: a fault of the program
	Allowed                           // the token allows the request
	Public                            // the route asks for no token
	IrregularPath                     // the path has a form that this route does not relax
	AmbiguousQuery                    // a query parameter that the route reads is not there exactly once
	MissingToken                      // no credential
	AmbiguousCredential               // several credentials
	MalformedToken                    // not the form of a secret
	UnknownToken                      // no token has this secret
	StoreUnavailable                  // the store could not be asked
	RevokedToken
	ExpiredToken
	DisabledToken
	TokenNotYetValid
	SecretEnded      // replaced by a rotation, and its deadline has passed
	SourceUnknown    // the client's address could not be established
	SourceNotAllowed // the address is not one of the token's sources
	NoRoute          // no route matches
	ScopeMissing
	OtherAccount       // the path names another account
	RestrictedToken    // the route names no resource, the token has only some
	ResourceNotGranted // the resource is not among the token's
	LevelTooLow        // it is, but for reading only
	ParentUnavailable  // the resource's parent could not be looked up
	RateLimited        // the token's rate is used up
	QuotaExhausted     // one of the token's quotas is
	UsesExhausted      // the token was used as often as it may be
	TooManyAtOnce      // the token has as many requests in flight as it may have
	RouteLimited       // the route's limit for each token is used up
	OwnerLimited       // the limit of all tokens of the owner together is
	AccountLimited     // the limit of all tokens of the account together is
	LimitsFull         // no room to account for another limit
	TooManyFailures    // a failed credential from an address with too many of them

	reasonCount
)

// What the client is told where several reasons share a code; README.md lists all
// codes.
const (
	codeInvalidToken = "invalid_token"
	codeResource     = "resource_not_granted"
	codeSource       = "source_not_allowed"
	codeBadRequest   = "bad_request"
	codeRateLimited  = "rate_limited"
	codeStore        = "store_unavailable"
)

// reasons says for each Reason its name for operators, the code and status for
// the client, and what the client may be told.
var reasons = [reasonCount]struct {
	name   string
	code   string
	status int
	detail string
}{
	Undecided:           {"undecided", "internal_error", 500, "The request could not be judged."},
	Allowed:             {"allowed", "", 0, ""},
	Public:              {"public", "", 0, ""},
	IrregularPath:       {"irregular_path", codeBadRequest, 400, "The path has a form that this API does not accept."},
	AmbiguousQuery:      {"ambiguous_query", codeBadRequest, 400, "A query parameter that decides about access must be given exactly once."},
	MissingToken:        {"missing_token", "missing_token", 401, "An API token is required."},
	AmbiguousCredential: {"ambiguous_credential", "ambiguous_credential", 400, "The request bears more than one credential: send exactly one."},
	MalformedToken:      {"malformed_token", codeInvalidToken, 401, tokenNotValid},
	UnknownToken:        {"unknown_token", codeInvalidToken, 401, tokenNotValid},
	StoreUnavailable:    {"store_unavailable", codeStore, 503, "Tokens cannot be checked just now: try again shortly."},
	RevokedToken:        {"revoked_token", codeInvalidToken, 401, tokenNotValid},
	ExpiredToken:        {"expired_token", codeInvalidToken, 401, tokenNotValid},
	DisabledToken:       {"disabled_token", codeInvalidToken, 401, tokenNotValid},
	TokenNotYetValid:    {"token_not_yet_valid", codeInvalidToken, 401, tokenNotValid},
	SecretEnded:         {"secret_ended", codeInvalidToken, 401, tokenNotValid},
	SourceUnknown:       {"source_unknown", codeSource, 403, sourceRefused},
	SourceNotAllowed:    {"source_not_allowed", codeSource, 403, sourceRefused},
	NoRoute:             {"no_route", "no_route", 403, "This API has no such operation."},
	ScopeMissing:        {"scope_missing", "insufficient_scope", 403, "The token lacks a scope that this operation needs."},
	OtherAccount:        {"other_account", codeResource, 403, resourceRefused},
	RestrictedToken:     {"restricted_token", codeResource, 403, resourceRefused},
	ResourceNotGranted:  {"resource_not_granted", codeResource, 403, resourceRefused},
	LevelTooLow:         {"level_too_low", codeResource, 403, resourceRefused},
	ParentUnavailable:   {"parent_unavailable", "upstream_lookup_failed", 502, "The API behind this proxy did not say what the resource belongs to: try again shortly."},
	RateLimited:         {"rate_limited", codeRateLimited, 429, "The token's rate limit is used up: try again later."},
	QuotaExhausted:      {"quota_exhausted", codeRateLimited, 429, "The token's quota is used up: try again later."},
	UsesExhausted:       {"uses_exhausted", codeRateLimited, 429, "The token has been used as often as it may be."},
	TooManyAtOnce:       {"too_many_at_once", codeRateLimited, 429, "The token has too many requests in flight: try again once one has ended."},
	RouteLimited:        {"route_limited", codeRateLimited, 429, "The token's limit for this operation is used up: try again later."},
	OwnerLimited:        {"owner_limited", codeRateLimited, 429, "The limit of all your tokens together is used up: try again later."},
	AccountLimited:      {"account_limited", codeRateLimited, 429, "The limit of all tokens of the account together is used up: try again later."},
	LimitsFull:          {"limits_full", codeRateLimited, 429, "Too many tokens are in use at once: try again later."},
	TooManyFailures:     {"too_many_failures", codeRateLimited, 429, "Too many invalid credentials came from this address: try again later, or with a valid one."},
}

const (
	tokenNotValid   = "The API token is not valid."
	sourceRefused   = "The token may not be used from this address."
	resourceRefused = "The token does not grant access to this resource."
)

// Challenge is how our WWW-Authenticate values begin: the scheme and the protection
// space (RFC 9110 section 11.5). RFC 6750 section 3 says which parameters follow.
const Challenge = `Bearer realm="tokenward"`

// Reasons returns every reason but the zero one, for tables indexed by reason.
func Reasons() []Reason {
	all := make([]Reason, 0, reasonCount-1)
	for r := Undecided + 1; r < reasonCount; r++ {
		all = append(all, r)
	}
	return all
}

// NumReasons is one more than the largest Reason.
const NumReasons = int(reasonCount)

// Allows reports whether the request may pass.
func (r Reason) Allows() bool { return r == Allowed || r == Public }

// String returns the reason's name for operators: logs, metrics, explain. It
// is not for the client, who must not learn why a token is invalid.
func (r Reason) String() string {
	if r >= reasonCount {
		return fmt.Sprintf("reason(%d)", uint8(r))
	}
	return reasons[r].name
}

// Code returns the code that the client sees; empty where the request passes.
func (r Reason) Code() string { return reasons[r.known()].code }

// Status returns the HTTP status of a refusal, and 0 where the request passes.
func (r Reason) Status() int { return reasons[r.known()].status }

// Detail returns a sentence for the client.
func (r Reason) Detail() string { return reasons[r.known()].detail }

// known maps what is no reason to the zero one, which refuses.
func (r Reason) known() Reason {
	if r >= reasonCount {
		return Undecided
	}
	return r
}
