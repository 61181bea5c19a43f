package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"tokenward/tokenstore"
)

// unreached is the error of a request that got no answer.
func (c *client) unreached(one call, err error) error {
	cause := err
	if e, ok := errors.AsType[*url.Error](err); ok {
		cause = e.Err // without the URL, which is named anyway
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return fmt.Errorf("cannot %s: no connection to %s (%s): %w\nIs the server running, and is admin.listen its address? Name another with --admin URL or %s", one.doing, c.base, c.baseFrom, cause, envAdmin)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("cannot %s: the certificate of %s is not trusted: %w\nFor one of your own authority, set SSL_CERT_FILE to its certificate", one.doing, c.base, cause)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok || strings.Contains(cause.Error(), "HTTP response to HTTPS") {
		return fmt.Errorf("cannot %s: %s does not speak TLS: write http:// in %s", one.doing, c.base, c.baseFrom)
	}
	return &lostError{c, one, cause}
}

// strange is the error of an answer that no native API gives.
func (c *client) strange(one call, what string) error {
	return fmt.Errorf("cannot %s: %s (%s) does not answer as tokenward's admin listener does: %s\nName the admin listener with --admin URL or %s", one.doing, c.base, c.baseFrom, what, envAdmin)
}

// lostError is a call whose answer did not arrive: it may have been carried
// out or not.
type lostError struct {
	client *client
	call   call
	cause  error
}

func (e *lostError) Error() string {
	text := fmt.Sprintf("cannot %s: the answer of %s was lost: %v", e.call.doing, e.client.base, e.cause)
	if e.client.base.Scheme == "http" && errors.Is(e.cause, io.EOF) {
		text += "\nIf TLS is spoken there, write https:// in " + e.client.baseFrom
	}
	if e.call.method == http.MethodGet {
		return text + "\nTry again"
	}
	look := "`tokenward token list`"
	if e.call.id != "" {
		look = "`tokenward token show " + e.call.id + "`"
	}
	return text + "\nIt may have been done nevertheless: look with " + look + " before you try again"
}

func (e *lostError) Unwrap() error { return e.cause }

// problem is an error of the native API (RFC 9457).
type problem struct {
	Code      string `json:"code"`
	Title     string `json:"title"`
	Detail    string `json:"detail"`
	RequestID string `json:"request_id"`
	Errors    []struct {
		Field  string `json:"field"`
		Detail string `json:"detail"`
	} `json:"errors"`
}

// apiError is a call that the server refused.
type apiError struct {
	client     *client
	call       call
	status     int
	retryAfter string // seconds, as the header has it
	problem    problem
}

func (e *apiError) Error() string {
	p := &e.problem
	var b strings.Builder
	fmt.Fprintf(&b, "cannot %s: %s", e.call.doing, e.what())
	for _, f := range p.Errors {
		fmt.Fprintf(&b, "\n  %s %s", e.call.field.name(f.Field), shownText(f.Detail))
	}
	if next := e.next(); next != "" {
		b.WriteString("\n" + next)
	}
	if e.status >= 500 && p.RequestID != "" {
		fmt.Fprintf(&b, "\nThe server's log has more about request %s", shownText(p.RequestID))
	}
	return b.String()
}

// what says what happened.
func (e *apiError) what() string {
	switch e.problem.Code {
	case "missing_token", "invalid_token":
		return fmt.Sprintf("%s does not accept the token from %s", e.client.base, e.client.secretFrom)
	case "no_route":
		return fmt.Sprintf("%s (%s) does not know this call", e.client.base, e.client.baseFrom)
	}
	detail := e.problem.Detail
	if detail == "" {
		detail = e.problem.Title
	}
	return inSentence(shownText(detail))
}

// inSentence makes a whole sentence the rest of another.
func inSentence(s string) string {
	s = strings.TrimSuffix(s, ".")
	if len(s) > 1 && s[0] >= 'A' && s[0] <= 'Z' && s[1] >= 'a' && s[1] <= 'z' && !strings.HasPrefix(s, "If-") {
		return strings.ToLower(s[:1]) + s[1:]
	}
	return s
}

// next says what to do about it.
func (e *apiError) next() string {
	switch e.problem.Code {
	case "missing_token", "invalid_token":
		return "It is unknown there, disabled, revoked, expired, not yet valid, or was replaced. Name another with --token-file FILE or " + envToken +
			";\nif the root token is lost, stop the server and run `tokenward init --new-root`"
	case "source_not_allowed":
		return "Call from an address that the token from " + e.client.secretFrom + " allows"
	case "secret_in_grace":
		return "Use the secret that replaced the one from " + e.client.secretFrom
	case "insufficient_scope", "resource_not_granted":
		return "Use a token that may: `tokenward token show` tells what the one from " + e.client.secretFrom + " can do"
	case "exceeds_caller":
		return "Ask for less, or use a wider token: `tokenward token show` tells what the one from " + e.client.secretFrom + " can do"
	case "not_found":
		return "`tokenward token list` shows those that the token from " + e.client.secretFrom + " may see"
	case "conflict":
		return "`tokenward token show " + e.call.id + "` tells its state"
	case "precondition_failed":
		return "Look at it with `tokenward token show " + e.call.id + "`, then try again with its present revision"
	case "invalid", "bad_request":
		return "Correct that and try again"
	case "outcome_unknown":
		return "`tokenward token list` shows what there is"
	case "no_route":
		if e.call.path == pathCluster {
			return "A server whose configuration has no tokenstore.etcd.endpoints is not part of a cluster. For one that is, name its admin listener with --admin URL or " + envAdmin
		}
		return "Is it the admin listener of a tokenward of this version? Name another with --admin URL or " + envAdmin
	}
	if seconds, ok := tokenstore.ParseNumber(e.retryAfter); ok {
		return "Try again in " + (time.Duration(min(seconds, 86400)) * time.Second).String() //nolint:gosec // at most a day
	}
	return ""
}

// fieldNames are the flags that stand for the fields of a call's body, by their
// JSON pointers without the leading slash. An index is of the flag's values.
type fieldNames map[string]fieldName

type fieldName struct {
	flag   string
	values []string // as they were given; may be empty
}

// name returns how the person at the command line knows the field.
func (n fieldNames) name(pointer string) string {
	path := strings.TrimPrefix(pointer, "/")
	for at, index := path, -1; at != ""; {
		if f, ok := n[at]; ok {
			if index >= 0 && index < len(f.values) {
				return fmt.Sprintf("--%s %q", f.flag, f.values[index])
			}
			return "--" + f.flag
		}
		cut := max(strings.LastIndexByte(at, '/'), 0)
		if i, err := strconv.Atoi(strings.TrimPrefix(at[cut:], "/")); err == nil {
			index = i
		}
		at = at[:cut]
	}
	return shownText(path)
}
