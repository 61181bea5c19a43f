package native

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"tokenward/admin"
	"tokenward/tokenstore"
	"tokenward/tokenstore/usage"
)

const (
	mediaType        = "application/json"
	problemMediaType = "application/problem+json"
)

// token is a token on the wire, in this order of fields.
type token struct {
	ID        uint64   `json:"id"`
	Account   uint64   `json:"account"`
	Owner     uint64   `json:"owner"`
	Name      string   `json:"name"`
	State     string   `json:"state"`
	Scopes    []string `json:"scopes"`
	Resources any      `json:"resources"` // "all" or []grant
	Sources   any      `json:"sources"`   // "any" or sources
	NotBefore *string  `json:"not_before"`
	ExpiresAt *string  `json:"expires_at"`
	Limits    limits   `json:"limits"`
	CreatedAt string   `json:"created_at"`
	CreatedBy creator  `json:"created_by"`
	UpdatedAt string   `json:"updated_at"`
	Revision  uint64   `json:"revision"`
	Secrets   []secret `json:"secrets"`
	Token     string   `json:"token,omitempty"` // only where a secret was made
}

type grant struct {
	Type  string `json:"type"`
	ID    string `json:"id"`
	Level string `json:"level"`
}

type sources struct {
	Allow []string `json:"allow"`
	Deny  []string `json:"deny"`
}

type limits struct {
	Rate       *float64 `json:"rate"`
	Burst      *uint64  `json:"burst"`
	Quota      []quota  `json:"quota"`
	Uses       *uint64  `json:"uses"`
	Concurrent *uint64  `json:"concurrent"`
}

type quota struct {
	Count uint64 `json:"count"`
	Per   string `json:"per"`
}

type creator struct {
	ID   uint64 `json:"id"` // 0: the command line
	Name string `json:"name"`
}

type secret struct {
	Last4     string  `json:"last4"`
	CreatedAt string  `json:"created_at"`
	EndsAt    *string `json:"ends_at"`
	// Silence is how long the secret has to be unused to end; absent: however long.
	Silence  string   `json:"ends_after_silence,omitempty"`
	LastUsed *lastUse `json:"last_used"`
}

// lastUse is when, from where, with what and on which route a secret was last
// used, and how often it ever was.
type lastUse struct {
	At        string  `json:"at"`
	From      *string `json:"from"`       // null: not known
	UserAgent string  `json:"user_agent"` // as the client claims
	Route     string  `json:"route"`      // the pattern
	Uses      uint64  `json:"uses"`
}

type whoami struct {
	Token   token   `json:"token"`
	Address *string `json:"address"` // null: not known
	Peer    *string `json:"peer"`
	Hop     string  `json:"hop"`
	Left    []Left  `json:"left"`
}

// introspection is the answer of RFC 7662 section 2.2. All but Active is left
// out for what is not active.
type introspection struct {
	Active    bool   `json:"active"`
	Scope     string `json:"scope,omitempty"`
	TokenType string `json:"token_type,omitempty"`
	Subject   string `json:"sub,omitempty"` // the owner
	ID        uint64 `json:"id,omitempty"`
	Account   uint64 `json:"account,omitempty"`
	IssuedAt  int64  `json:"iat,omitempty"`
	NotBefore int64  `json:"nbf,omitempty"`
	Expires   int64  `json:"exp,omitempty"`
}

func introspected(m tokenstore.Match, now time.Time) introspection {
	t := m.Token
	if t.Status(now) != tokenstore.StatusActive || m.Secret.Ends.Ended(now) {
		return introspection{}
	}
	answer := introspection{
		Active: true, Scope: strings.Join(t.Scopes, " "), TokenType: "Bearer",
		Subject: strconv.FormatUint(t.Owner, 10), ID: uint64(t.ID), Account: t.Account,
		IssuedAt: t.CreatedAt.Unix(),
	}
	if !t.NotBefore.IsZero() {
		answer.NotBefore = t.NotBefore.Unix()
	}
	if ends := t.Expiry.Earlier(m.Secret.Ends); !ends.Never {
		answer.Expires = ends.At.Unix()
	}
	return answer
}

// render shows a token in full. now tells its state, and used what is known of its
// use.
func render(t *tokenstore.Token, used *usage.Record, now time.Time) token {
	wire := token{
		ID: uint64(t.ID), Account: t.Account, Owner: t.Owner, Name: t.Name, State: t.Status(now).String(),
		Scopes: append([]string{}, t.Scopes...), Resources: "all", Sources: "any",
		ExpiresAt: expiryText(t.Expiry), Limits: renderLimits(&t.Limits),
		CreatedAt: timeText(t.CreatedAt), CreatedBy: creator{uint64(t.Creator.ID), t.Creator.Name},
		UpdatedAt: timeText(t.UpdatedAt), Revision: t.Revision,
	}
	if !t.Resources.All {
		grants := make([]grant, 0, len(t.Resources.Grants))
		for _, g := range t.Resources.Grants {
			grants = append(grants, grant{g.Type, g.ID, g.Level.String()})
		}
		wire.Resources = grants
	}
	if !t.Sources.Any {
		wire.Sources = sources{prefixTexts(t.Sources.Allow), prefixTexts(t.Sources.Deny)}
	}
	if !t.NotBefore.IsZero() {
		wire.NotBefore = new(timeText(t.NotBefore))
	}
	for i := range t.Secrets {
		s := &t.Secrets[i]
		wire.Secrets = append(wire.Secrets, secret{
			Last4: s.Last4, CreatedAt: timeText(s.CreatedAt), EndsAt: expiryText(s.Ends),
			Silence: silenceText(s.Silence), LastUsed: renderUse(used.Of(s.Digest)),
		})
	}
	return wire
}

func renderUse(u usage.Secret) *lastUse {
	if u.Last.IsZero() {
		return nil
	}
	return &lastUse{At: timeText(u.Last), From: addressText(u.From), UserAgent: u.UserAgent, Route: u.Route, Uses: u.Uses}
}

func renderLimits(l *tokenstore.Limits) limits {
	some := func(n uint64) *uint64 {
		if n == 0 {
			return nil
		}
		return &n
	}
	wire := limits{Burst: some(l.Burst), Quota: []quota{}, Uses: some(l.Uses), Concurrent: some(l.Concurrent)}
	if l.Rate != 0 {
		wire.Rate = &l.Rate
	}
	for _, q := range l.Quotas {
		wire.Quota = append(wire.Quota, quota{q.Count, q.Per.String()})
	}
	return wire
}

// prefixTexts writes a network of one address as that address.
func prefixTexts(ps []netip.Prefix) []string {
	texts := make([]string, 0, len(ps))
	for _, p := range ps {
		if p.IsSingleIP() {
			texts = append(texts, p.Addr().String())
		} else {
			texts = append(texts, p.String())
		}
	}
	return texts
}

// Time is an instant on the wire: in UTC, with milliseconds.
type Time struct{ time.Time }

// MarshalJSON implements json.Marshaler.
func (t Time) MarshalJSON() ([]byte, error) { return []byte(`"` + timeText(t.Time) + `"`), nil }

func timeText(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func expiryText(e tokenstore.Expiry) *string {
	if e.Never {
		return nil
	}
	return new(timeText(e.At))
}

func addressText(a netip.Addr) *string {
	if !a.IsValid() {
		return nil
	}
	return new(a.String())
}

func etag(t *tokenstore.Token) string { return `"` + strconv.FormatUint(t.Revision, 10) + `"` }

// problem is an error by RFC 9457.
type problem struct {
	Type      string       `json:"type"`
	Title     string       `json:"title"`
	Status    int          `json:"status"`
	Code      string       `json:"code"`
	Detail    string       `json:"detail,omitempty"`
	RequestID string       `json:"request_id,omitempty"`
	Errors    []fieldError `json:"errors,omitempty"`
}

type fieldError struct {
	Field  string `json:"field"` // a JSON pointer into the body (RFC 6901), or a query parameter
	Detail string `json:"detail"`
}

func writeProblem(w http.ResponseWriter, _ *http.Request, e *admin.Error) {
	code := e.Kind.Status()
	if c := admin.Challenge(e); c != "" {
		w.Header().Set("WWW-Authenticate", c)
	}
	body := problem{
		Type: "about:blank", Title: http.StatusText(code), Status: code, Code: e.Kind.String(),
		Detail: e.Detail, RequestID: admin.RequestID(w),
	}
	for _, f := range e.Fields {
		field := "/" + f.Field
		if e.Kind == admin.KindMalformed { // a query parameter
			field = f.Field
		}
		body.Errors = append(body.Errors, fieldError{field, f.Detail})
	}
	_ = admin.WriteJSON(w, code, problemMediaType, body) // a client that is gone needs no answer
}
