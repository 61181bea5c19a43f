package leaks

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tokenward/admin"
	"tokenward/tokenstore"
)

// Name is the door's name in audit events.
const Name = "leaks"

// The headers of a report, as GitHub's secret scanning sends them.
const (
	headerKey       = "Github-Public-Key-Identifier"
	headerSignature = "Github-Public-Key-Signature"
)

// The bound of a report, how many are taken at once, and how long one may take to
// arrive: anybody can begin to send one.
const (
	maxReportBytes = 1 << 20
	maxAtOnce      = 4
	reportPatience = 10 * time.Second
)

// Action is what becomes of a token whose secret was reported. The zero Action is
// none and cannot be used.
type Action string

// The actions.
const (
	Disable Action = "disable" // refused until somebody enables it
	Revoke  Action = "revoke"  // ended for good
)

// Options of a [Handler]; all but Reported and Client are required.
type Options struct {
	Keys   map[string]*ecdsa.PublicKey // that reports are signed with, by identifier
	Action Action
	// Find leads from a presented text to its token, as [tokenstore.Cache.Find].
	Find func(ctx context.Context, text []byte) (tokenstore.Match, error)
	// Reported is told of each token whose secret was reported, as it is once it has
	// been dealt with: the same however often one leak is reported. It must not wait.
	// nil: nobody is told.
	Reported func(t *tokenstore.Token)
	// Client is the address that a report comes from, for the audit log. nil: it is
	// not known.
	Client func(r *http.Request) netip.Addr
	Log    *slog.Logger
}

// Handler takes reports of leaked secrets in the form of GitHub's partner
// programme for secret scanning: a signed list, for which there is no other
// credential.
type Handler struct {
	service *admin.Service
	options Options
	slots   chan struct{}
	told    atomic.Int64 // when a report of a stranger was last told of, in minutes since 1970
}

// New returns the handler over service.
func New(service *admin.Service, o Options) (*Handler, error) {
	switch {
	case len(o.Keys) == 0:
		return nil, errors.New("there is no public key to check reports with")
	case o.Action != Disable && o.Action != Revoke:
		return nil, fmt.Errorf("%q is not an action: write disable or revoke", o.Action)
	}
	return &Handler{service: service, options: o, slots: make(chan struct{}, maxAtOnce)}, nil
}

// reported is one leaked secret in a report.
type reported struct {
	Token  string `json:"token"`
	Type   string `json:"type"`
	URL    string `json:"url"`
	Source string `json:"source"`
}

// feedback tells the reporter whether a find was one.
type feedback struct {
	Hash  string `json:"token_hash"` // SHA-256 in base64
	Type  string `json:"token_type"`
	Label string `json:"label"`
}

// ServeHTTP implements [http.Handler]. What is not signed learns nothing. A report
// that could not be carried out whole is answered with 503, so that it comes again.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	signature, key := h.signature(r.Header)
	if key == nil {
		w.WriteHeader(h.unsigned(r))
		return
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	default:
		w.Header().Set("Retry-After", "10")
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	status, answer := h.take(w, r, key, signature)
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "60")
	}
	if answer == nil {
		w.WriteHeader(status)
		return
	}
	_ = admin.WriteJSON(w, status, "application/json", answer) // the reporter is gone
}

func (h *Handler) take(w http.ResponseWriter, r *http.Request, key *ecdsa.PublicKey, signature []byte) (int, []feedback) {
	body, status := readReport(w, r)
	if status != http.StatusOK {
		h.tell(r, "a report of leaked secrets was too long or took too long to arrive, and was not looked at: if it was genuine, the tokens in it are still alive", "status", status)
		return status, nil
	}
	if sum := sha256.Sum256(body); !ecdsa.VerifyASN1(key, sum[:], signature) {
		return h.unsigned(r), nil
	}
	var list []reported
	if err := json.Unmarshal(body, &list); err != nil {
		// Nothing of it is shown: it may hold secrets.
		h.options.Log.ErrorContext(r.Context(), "a signed report of leaked secrets cannot be read, so no token was ended: ask its sender what was found", "bytes", len(body))
		return http.StatusBadRequest, nil
	}
	answer := make([]feedback, 0, len(list))
	hide := sync.OnceValue(func() *strings.Replacer { return hiding(list) })
	for i := range list {
		one := &list[i]
		sum := sha256.Sum256([]byte(one.Token))
		known, err := h.end(r, one, hide)
		if err != nil {
			h.options.Log.ErrorContext(r.Context(), "a leaked secret was reported and its token could not be ended: do it by hand", "error", err)
			status = http.StatusServiceUnavailable
			continue
		}
		label := "false_positive"
		if known {
			label = "true_positive"
		}
		answer = append(answer, feedback{base64.StdEncoding.EncodeToString(sum[:]), one.Type, label})
	}
	if status != http.StatusOK {
		return status, nil
	}
	return status, answer
}

// readReport reads the body, with a status other than OK when it is not a report's. A
// sender that trickles holds a place for no longer than twice reportPatience.
func readReport(w http.ResponseWriter, r *http.Request) (body []byte, status int) {
	until := time.Now().Add(reportPatience)
	_ = http.NewResponseController(w).SetReadDeadline(until) // not supported: the server's own holds
	body, err := io.ReadAll(&hastyReader{http.MaxBytesReader(w, r.Body, maxReportBytes), until})
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return nil, http.StatusRequestEntityTooLarge
	}
	if err != nil {
		return nil, http.StatusRequestTimeout
	}
	return body, http.StatusOK
}

// hastyReader begins no read after a time.
type hastyReader struct {
	r     io.Reader
	until time.Time
}

func (h *hastyReader) Read(p []byte) (int, error) {
	if time.Now().After(h.until) {
		return 0, os.ErrDeadlineExceeded
	}
	return h.r.Read(p)
}

// signature returns the signature that the header brings, and the key that it names;
// nil if that is not a configured one. A header that comes twice is refused.
func (h *Handler) signature(header http.Header) ([]byte, *ecdsa.PublicKey) {
	ids, signatures := header.Values(headerKey), header.Values(headerSignature)
	if len(ids) != 1 || len(signatures) != 1 {
		return nil, nil
	}
	signature, err := base64.StdEncoding.DecodeString(signatures[0])
	if err != nil {
		return nil, nil
	}
	return signature, h.options.Keys[ids[0]]
}

// unsigned tells of a report that no configured key signed.
func (h *Handler) unsigned(r *http.Request) int {
	h.tell(r, "a report of leaked secrets was not signed by a configured key, and refused: are the keys of admin.leaks.keys_file up to date?")
	return http.StatusUnauthorized
}

// tell warns of a report of who knows whom: of one in a minute, since anybody can send
// them.
func (h *Handler) tell(r *http.Request, message string, args ...any) {
	if minute := time.Now().Unix() / 60; h.told.Swap(minute) != minute {
		h.options.Log.WarnContext(r.Context(), message, args...)
	}
}

// end disables or revokes the token of a reported secret, if there is one. A
// secret that a rotation has ended is still one that was found, but its token lives on by
// another: whoever has the old one could take it down otherwise.
func (h *Handler) end(r *http.Request, one *reported, hide func() *strings.Replacer) (known bool, err error) {
	ctx := context.WithoutCancel(r.Context()) // the reporter's hanging up saves no leaked token
	m, err := h.options.Find(ctx, []byte(one.Token))
	if errors.Is(err, tokenstore.ErrNotFound) || errors.Is(err, tokenstore.ErrBrokenSecret) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var from netip.Addr
	if h.options.Client != nil {
		from = h.options.Client(r)
	}
	c := admin.Reporter(Name, from, r.Header.Get("X-Request-Id"))
	target := admin.Target{ID: m.Token.ID, Revoked: true}
	if m.Token.State != tokenstore.StateRevoked && m.Secret.Ends.Ended(h.service.Now()) {
		h.options.Log.WarnContext(ctx, "a secret that had ended was reported as leaked: its token is left as it is", "token_id", m.Token.ID, "account", m.Token.Account, "url", shown(one.URL, hide()), "source", shown(one.Source, hide()))
		return true, nil
	}
	now := m.Token
	switch {
	case m.Token.State == tokenstore.StateRevoked:
	case h.options.Action == Revoke:
		var revoked admin.Revoked
		revoked, err = h.service.Revoke(ctx, c, target, false)
		now = revoked.Token
	default:
		now, err = h.service.Disable(ctx, c, target)
	}
	if err == nil && h.options.Reported != nil {
		h.options.Reported(now)
	}
	if err == nil {
		h.options.Log.WarnContext(ctx, "a leaked secret was reported", "token_id", m.Token.ID, "account", m.Token.Account, "action", string(h.options.Action), "url", shown(one.URL, hide()), "source", shown(one.Source, hide()))
	}
	return true, err
}

// hiding replaces the secrets that were found, of two that begin alike the longer one.
func hiding(list []reported) *strings.Replacer {
	secrets := make([]string, 0, len(list))
	for i := range list {
		if list[i].Token != "" {
			secrets = append(secrets, list[i].Token)
		}
	}
	slices.SortFunc(secrets, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	pairs := make([]string, 0, 2*len(secrets))
	for _, secret := range slices.Compact(secrets) {
		pairs = append(pairs, secret, "REDACTED")
	}
	return strings.NewReplacer(pairs...)
}

// shown is a text of the reporter as our log may have it: bounded, and without the
// secrets that were found, which a URL may hold.
func shown(s string, hide *strings.Replacer) string {
	s = hide.Replace(s)
	const longest = 512
	if len(s) > longest {
		return s[:longest] + "…"
	}
	return s
}

// ParseKeys reads the public keys of a reporter, in the form in which GitHub
// publishes them: {"public_keys":[{"key_identifier":"…","key":"PEM"},…]}.
func ParseKeys(data []byte) (map[string]*ecdsa.PublicKey, error) {
	var file struct {
		Keys []struct {
			ID  string `json:"key_identifier"`
			Key string `json:"key"`
		} `json:"public_keys"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("it is not a list of public keys: %w", err)
	}
	keys := make(map[string]*ecdsa.PublicKey)
	for _, k := range file.Keys {
		block, _ := pem.Decode([]byte(k.Key))
		if k.ID == "" || block == nil {
			return nil, errors.New("one of its public_keys lacks key_identifier, or a key in PEM form")
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		key, ok := parsed.(*ecdsa.PublicKey)
		if err != nil || !ok {
			return nil, fmt.Errorf("key %.80q is not an ECDSA public key", k.ID)
		}
		keys[k.ID] = key
	}
	if len(keys) == 0 {
		return nil, errors.New("it has no public_keys")
	}
	return keys, nil
}
