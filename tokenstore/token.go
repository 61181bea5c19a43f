// Package tokenstore says what a token is, what a store of tokens promises,
// and how a presented secret leads to its token.
//
// It holds the words of the product ([Token], [Secret], [Digest], [Grant],
// [Expiry]), the contract that every driver keeps ([Reader], [Writer], [Tx],
// proven by package storetest), and the bounded [Cache] that every request
// reads. It knows no driver, no HTTP and no clock: time is an argument.
//
// Every restriction is stored explicitly, and the zero value of each denies:
// a zero [Resources] grants nothing, a zero [Sources] admits no address, a zero
// [Expiry] lies in the past, a zero [State] is no state at all.
package tokenstore

import (
	"cmp"
	"slices"
	"strconv"
	"time"
)

// ID names a token. It is positive and never used twice, not even after a
// restore.
type ID uint64

// String returns the id in decimal, the form it has on every wire.
func (id ID) String() string { return strconv.FormatUint(uint64(id), 10) }

// ParseID reads a decimal id in canonical form: no sign, no leading zero, no
// exponent, at least 1. It reports false for all else.
func ParseID(s string) (ID, bool) {
	n, ok := parsePositive(s)
	return ID(n), ok
}

// ParseNumber reads an account or owner number by the rule of [ParseID].
func ParseNumber(s string) (uint64, bool) { return parsePositive(s) }

// maxNumber is the largest integer that every JSON reader takes exactly
// (RFC 8259 section 6, RFC 7493 section 2.2).
const maxNumber = 1<<53 - 1

func parsePositive(s string) (uint64, bool) {
	if len(s) == 0 || s[0] < '1' { // a sign or a leading zero; ParseUint refuses all else
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > maxNumber {
		return 0, false // and not n: it must not pass for a number where only that is looked at
	}
	return n, true
}

// Root is the account of root tokens: they see every account.
const Root uint64 = 0

// State is the stored state of a token. Expired and not-yet-valid are not
// stored; they follow from [Token.Expiry], [Token.NotBefore] and the time.
type State uint8

// The states a token can be stored in. The zero State is none of them and
// denies. Adding one means editing State.String, the record codec's check,
// enforce's judgement and the native API's rendering; tests walk all values.
const (
	StateActive   State = 1 // usable
	StateDisabled State = 2 // refused until enabled again
	StateRevoked  State = 3 // refused for good
)

// Valid reports whether s is one of the named states.
func (s State) Valid() bool { return s >= StateActive && s <= StateRevoked }

func (s State) String() string {
	switch s {
	case StateActive:
		return "active"
	case StateDisabled:
		return "disabled"
	case StateRevoked:
		return "revoked"
	}
	return "invalid"
}

// Expiry says when something ends: never, or at an instant. The zero value
// ended long ago.
type Expiry struct {
	Never bool      // no end; At is ignored and stored as zero
	At    time.Time // the first instant at which it has ended
}

// Never is the expiry of what does not end by itself.
func Never() Expiry { return Expiry{Never: true} }

// EndsAt is the expiry of what ends at t: valid before t, ended from t on.
func EndsAt(t time.Time) Expiry { return Expiry{At: t} }

// Ended reports whether the end has been reached at now.
func (e Expiry) Ended(now time.Time) bool { return !e.Never && !now.Before(e.At) }

// NotLater reports whether e ends no later than other.
func (e Expiry) NotLater(other Expiry) bool {
	return other.Never || !e.Never && !e.At.After(other.At)
}

// Earlier returns whichever of the two ends first.
func (e Expiry) Earlier(other Expiry) Expiry {
	if e.NotLater(other) {
		return e
	}
	return other
}

// Creator names who made a token: another token, or the command line (ID 0).
type Creator struct {
	ID   ID
	Name string
}

// Quota allows Count requests in each window of length Per.
type Quota struct {
	Count uint64
	Per   Window
}

// Window is the length of a quota's accounting period.
type Window uint8

// The windows a quota may have. The zero Window is invalid.
const (
	PerMinute Window = 1
	PerHour   Window = 2
	PerDay    Window = 3
	PerMonth  Window = 4
)

// Valid reports whether w is one of the named windows.
func (w Window) Valid() bool { return w >= PerMinute && w <= PerMonth }

func (w Window) String() string {
	switch w {
	case PerMinute:
		return "minute"
	case PerHour:
		return "hour"
	case PerDay:
		return "day"
	case PerMonth:
		return "month"
	}
	return "invalid"
}

// ParseWindow is the inverse of [Window.String].
func ParseWindow(s string) (Window, bool) {
	for w := PerMinute; w <= PerMonth; w++ {
		if w.String() == s {
			return w, true
		}
	}
	return 0, false
}

// Limits bound how much a token may be used. A zero field sets no limit of
// that kind; a token without any limit is bounded only by its route.
type Limits struct {
	Rate       float64 // requests per second, refilled continuously
	Burst      uint64  // requests that may come at once; needs Rate
	Quotas     []Quota // at most one for each window
	Uses       uint64  // requests over the token's whole life
	Concurrent uint64  // requests in flight at once
}

// IsZero reports whether no limit is set.
func (l *Limits) IsZero() bool {
	return l.Rate == 0 && l.Burst == 0 && len(l.Quotas) == 0 && l.Uses == 0 && l.Concurrent == 0
}

// SecretRecord is what the store keeps of a secret: enough to recognise it,
// never enough to show it.
type SecretRecord struct {
	Digest    Digest
	Pepper    PepperID // which pepper made Digest; zero for none
	Scheme    Scheme   // how Digest was made from the text
	Last4     string   // last four characters of the text, for people
	CreatedAt time.Time
	Ends      Expiry // Never, or the deadline given when it was replaced
	// Silence ends a replaced secret once it has not been used for so long: whole
	// seconds up to MaxSilence. 0: silence does not end it.
	Silence time.Duration
}

// MaxSilence bounds [SecretRecord.Silence].
const MaxSilence = 90 * 24 * time.Hour

// InGrace reports whether the secret has been replaced and works only until its
// deadline, or until it has been silent for long enough. Such a secret may use the API
// but not manage tokens.
func (s *SecretRecord) InGrace() bool { return !s.Ends.Never || s.Silence > 0 }

// MaxSecrets is how many secrets one token can have: the current one and the
// one that rotation is replacing.
const MaxSecrets = 2

// Token is one API token as the store keeps it.
//
// A Token read from a store or the [Cache] is shared: treat it as immutable
// and change a [Token.Clone]. Inside [Writer.Change] the transaction hands out
// private copies.
type Token struct {
	ID      ID
	Account uint64 // the tenant; Root for a root token
	Owner   uint64 // the user inside the account
	Name    string

	Scopes    []string // sorted as given, compared byte for byte
	Resources Resources
	Sources   Sources
	NotBefore time.Time // zero: valid from the start
	Expiry    Expiry
	Limits    Limits

	State      State
	Creator    Creator
	ReplacedBy ID // the token that a reset made in this one's place; 0 for none
	Lineage    ID // the first of the tokens that took each other's place before this one; 0: no reset made it
	CreatedAt  time.Time
	UpdatedAt  time.Time
	EndedAt    time.Time // when it was revoked; zero otherwise
	Revision   uint64    // set by the store: 1 on creation, one more with each change

	Secrets []SecretRecord // newest first, at most MaxSecrets
}

// IsRoot reports whether t belongs to the root account.
func (t *Token) IsRoot() bool { return t.Account == Root }

// MeasuredAs returns the id under which all tokens of t's lineage share what they use
// of their limits, however often they were reset.
func (t *Token) MeasuredAs() ID { return cmp.Or(t.Lineage, t.ID) }

// AwaitsSilence reports whether one of t's secrets ends by silence.
func (t *Token) AwaitsSilence() bool {
	return slices.ContainsFunc(t.Secrets, func(s SecretRecord) bool { return s.Silence != 0 })
}

// secretWith returns which of t's secrets has the digest, and -1 for none.
func (t *Token) secretWith(d Digest) int {
	return slices.IndexFunc(t.Secrets, func(s SecretRecord) bool { return s.Digest.Equal(d) })
}

// Clone returns a deep copy of t.
func (t *Token) Clone() *Token {
	c := *t
	c.Scopes = slices.Clone(t.Scopes)
	c.Resources.Grants = slices.Clone(t.Resources.Grants)
	c.Sources.Allow = slices.Clone(t.Sources.Allow)
	c.Sources.Deny = slices.Clone(t.Sources.Deny)
	c.Limits.Quotas = slices.Clone(t.Limits.Quotas)
	c.Secrets = slices.Clone(t.Secrets)
	return &c
}

// Status is what a token amounts to at one instant.
type Status uint8

// The statuses. The zero Status is invalid and denies.
const (
	StatusActive      Status = 1
	StatusDisabled    Status = 2
	StatusRevoked     Status = 3
	StatusExpired     Status = 4
	StatusNotYetValid Status = 5
)

func (s Status) String() string {
	switch s {
	case StatusActive:
		return "active"
	case StatusDisabled:
		return "disabled"
	case StatusRevoked:
		return "revoked"
	case StatusExpired:
		return "expired"
	case StatusNotYetValid:
		return "not_yet_valid"
	}
	return "invalid"
}

// Status derives the status at now. Revoked outlasts all else, then expired,
// then disabled: what can no longer be undone is named first.
func (t *Token) Status(now time.Time) Status {
	switch {
	case t.State == StateRevoked:
		return StatusRevoked
	case !t.State.Valid():
		return 0
	case t.Expiry.Ended(now):
		return StatusExpired
	case t.State == StateDisabled:
		return StatusDisabled
	case now.Before(t.NotBefore):
		return StatusNotYetValid
	}
	return StatusActive
}
