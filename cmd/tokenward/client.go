package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tokenward/tokenstore"
)

// The environment can say where the server is and who calls it.
const (
	envAdmin     = "TOKENWARD_ADMIN"
	envToken     = "TOKENWARD_TOKEN" //nolint:gosec // a name, not a secret
	defaultAdmin = "http://127.0.0.1:8081"
)

// serverFlags are the flags of every command that talks to a server.
type serverFlags struct{ admin, tokenFile string }

func (f *serverFlags) add(cmd *cobra.Command) {
	flags := cmd.PersistentFlags()
	flags.StringVar(&f.admin, "admin", "", "`URL` of the server's admin listener (default $"+envAdmin+", or "+defaultAdmin+")")
	flags.StringVar(&f.tokenFile, "token-file", "", "`file` with the calling token, - for standard input (default: the token in $"+envToken+")")
}

// client returns what the flags, or else the environment, name. Warnings go to
// the command's standard error.
func (f *serverFlags) client(cmd *cobra.Command) (*client, error) {
	base, from, err := f.server()
	if err != nil {
		return nil, usageError{err}
	}
	c := &client{base: base, baseFrom: from, http: newAdminHTTP()}
	if base.Scheme == "http" && !loopback(net.JoinHostPort(base.Hostname(), "0")) {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: the token crosses the network in clear to %s: use https\n", base.Host)
	}
	if c.secret, c.secretFrom, err = f.secret(cmd.InOrStdin(), cmd.ErrOrStderr()); err != nil {
		return nil, err
	}
	return c, nil
}

func (f *serverFlags) server() (base *url.URL, from string, err error) {
	text, from := f.admin, "--admin"
	if text == "" {
		text, from = os.Getenv(envAdmin), envAdmin
	}
	if text == "" {
		text, from = defaultAdmin, "the default"
	}
	base, err = url.Parse(text)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Hostname() == "" {
		return nil, "", fmt.Errorf("%s is not the URL of a server: write it as %s", from, defaultAdmin)
	}
	if base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, "", fmt.Errorf("%s may have no user, query or fragment: write it as %s", from, defaultAdmin)
	}
	base.Path, base.RawPath = strings.TrimRight(base.Path, "/"), ""
	return base, from, nil
}

// adminURL is where a server with this configuration is called from the same
// machine. A listener for all addresses is there at the loopback one.
func (c *Config) adminURL() string {
	scheme := "http"
	if c.Admin.TLS.Enabled() {
		scheme = "https"
	}
	host, port, err := net.SplitHostPort(c.Admin.Listen)
	if err != nil { // no configuration loads with such a one
		return defaultAdmin
	}
	if wildcard(host) {
		host = "127.0.0.1"
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

// secret reads the calling token and says where it came from.
func (f *serverFlags) secret(stdin io.Reader, stderr io.Writer) (tokenstore.Secret, string, error) {
	if f.tokenFile == "" {
		text, ok := os.LookupEnv(envToken)
		if !ok || strings.TrimSpace(text) == "" {
			return tokenstore.Secret{}, "", usageError{fmt.Errorf("no token to call the server with: give --token-file FILE, or set %s", envToken)}
		}
		secret, err := secretFromText(text, envToken)
		return secret, envToken, err
	}
	in, from := stdin, "standard input"
	if f.tokenFile != "-" {
		from = f.tokenFile
		file, err := os.Open(f.tokenFile)
		if err != nil {
			return tokenstore.Secret{}, "", fmt.Errorf("--token-file %s %w\nIt must hold the calling token and nothing else", f.tokenFile, fileProblem(err))
		}
		defer file.Close()
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o007 != 0 {
			fmt.Fprintf(stderr, "warning: everybody on this machine can reach %s: run `chmod 600 %s`, and rotate the token if others could read it\n", f.tokenFile, f.tokenFile)
		}
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, maxTokenFile+1))
	if err != nil {
		return tokenstore.Secret{}, "", fmt.Errorf("read the token from %s: %w", from, err)
	}
	secret, err := secretFromText(string(text), from)
	return secret, from, err
}

const maxTokenFile = 4 << 10 // bytes

// secretFromText takes a token with white space around it. Its form is the
// server's to judge, but it must fit into a header.
func secretFromText(text, from string) (tokenstore.Secret, error) {
	text = strings.TrimSpace(text)
	unprintable := func(r rune) bool { return r <= ' ' || r >= 0x7f }
	switch {
	case text == "":
		return tokenstore.Secret{}, fmt.Errorf("%s is empty: it must hold the calling token", from)
	case strings.HasPrefix(text, "{"):
		return tokenstore.Secret{}, fmt.Errorf("%s holds JSON: it must hold the value of its \"token\" and nothing else", from)
	case len(text) > maxTokenFile || strings.ContainsFunc(text, unprintable):
		return tokenstore.Secret{}, fmt.Errorf("%s holds something other than one token: it must hold the calling token and nothing else", from)
	}
	return tokenstore.SecretFrom(text), nil
}

// client calls the native API of a server. It follows no redirects, so that the
// token goes nowhere else.
type client struct {
	base       *url.URL
	baseFrom   string // the flag or variable that named it
	secret     tokenstore.Secret
	secretFrom string // the file or variable that held it
	http       *http.Client
}

// callTimeout bounds one call from connecting to the last byte of the answer.
const callTimeout = time.Minute

func newAdminHTTP() *http.Client {
	return &http.Client{
		Timeout:       callTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: 45 * time.Second,
		},
	}
}

// call is one request to the native API.
type call struct {
	doing  string // completes "cannot …" in errors
	id     string // the token it is about; "": none
	method string
	path   string // below /v1
	query  url.Values
	body   map[string]any // nil: none
	raw    []byte         // a body of rawMedia, in the place of body
	match  uint64         // the revision for If-Match; 0: any
	last   bool           // the connection is closed behind the answer
	once   bool           // it bears an idempotency key, so that it can be repeated
	media  string         // the answer's media type; "": JSON

	rawMedia string

	field fieldNames // how errors name the fields of the body; nil: by their names

	told func(http.Header) // is told the header of a success; nil: nobody
}

// maxAnswer bounds an answer that is read whole: a revocation may name a
// million descendants.
const maxAnswer = 16 << 20 // bytes

// do makes the call and returns the body of its success. Where the answer is
// lost on the way, a call that can be repeated is made once more: with the same
// idempotency key the server makes nothing twice.
func (c *client) do(ctx context.Context, one call) ([]byte, error) {
	key := ""
	if one.once {
		key = rand.Text()
	}
	body, err := c.attempt(ctx, one, key)
	if _, lost := errors.AsType[*lostError](err); lost && ctx.Err() == nil && (one.once || one.method == http.MethodGet) {
		body, err = c.attempt(ctx, one, key)
	}
	return body, err
}

func (c *client) attempt(ctx context.Context, one call, key string) ([]byte, error) {
	resp, err := c.open(ctx, one, key)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if one.told != nil {
		one.told(resp.Header)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, &lostError{c, one, err}
	}
	if len(body) > maxAnswer || !json.Valid(body) {
		return nil, c.strange(one, "the answer is not JSON, or far too long")
	}
	return bytes.TrimSpace(body), nil
}

// open makes the call and returns its success, whose body is still to be read.
func (c *client) open(ctx context.Context, one call, key string) (*http.Response, error) {
	req, err := c.request(ctx, one, key)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreached(one, err)
	}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if resp.StatusCode/100 == 2 && media == cmp.Or(one.media, "application/json") {
		return resp, nil
	}
	defer resp.Body.Close()
	e := &apiError{client: c, call: one, status: resp.StatusCode, retryAfter: resp.Header.Get("Retry-After")}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, &lostError{c, one, err}
	}
	if resp.StatusCode < 400 || media != "application/problem+json" || json.Unmarshal(body, &e.problem) != nil || e.problem.Code == "" {
		return nil, c.strange(one, fmt.Sprintf("the answer was %d %s with a body of type %q", resp.StatusCode, http.StatusText(resp.StatusCode), resp.Header.Get("Content-Type")))
	}
	return nil, e
}

func (c *client) request(ctx context.Context, one call, key string) (*http.Request, error) {
	target := *c.base
	target.Path += "/v1" + one.path
	target.RawQuery = one.query.Encode()
	var body io.Reader
	media := "application/json"
	if one.body != nil {
		b, err := json.Marshal(one.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	} else if one.raw != nil {
		body, media = bytes.NewReader(one.raw), one.rawMedia
	}
	req, err := http.NewRequestWithContext(ctx, one.method, target.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.secret.Reveal())
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "tokenward/"+readBuildInfo().Version)
	if body != nil {
		req.Header.Set("Content-Type", media)
	}
	req.Close = one.last
	if one.match != 0 {
		req.Header.Set("If-Match", `"`+strconv.FormatUint(one.match, 10)+`"`)
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	return req, nil
}

// page reads one page of a list: each gets the tokens one by one, as they
// stand, while they come in. It returns the cursor of the next page, or "" at
// the end.
func (c *client) page(ctx context.Context, one call, each func(json.RawMessage) error) (next string, err error) {
	resp, err := c.open(ctx, one, "")
	if _, lost := errors.AsType[*lostError](err); lost && ctx.Err() == nil {
		resp, err = c.open(ctx, one, "")
	}
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	p := pageReader{dec: json.NewDecoder(resp.Body), each: each}
	p.read()
	switch {
	case p.stopped:
		return "", p.err
	case p.err != nil:
		return "", &lostError{c, one, p.err}
	}
	return p.next, nil
}

// pageReader reads {"items":[…],"next":…}; the first error stops it.
type pageReader struct {
	dec     *json.Decoder
	each    func(json.RawMessage) error
	next    string
	err     error
	stopped bool // err is of each
}

func (p *pageReader) read() {
	p.expect(json.Delim('{'))
	for p.err == nil && p.dec.More() {
		var name json.Token
		if name, p.err = p.dec.Token(); p.err != nil {
			return
		}
		switch name {
		case "items":
			p.items()
		case "next":
			p.err = p.dec.Decode(&p.next) // null leaves it empty
		default:
			p.err = p.dec.Decode(new(json.RawMessage))
		}
	}
	p.expect(json.Delim('}'))
}

func (p *pageReader) items() {
	p.expect(json.Delim('['))
	for p.err == nil && p.dec.More() {
		var item json.RawMessage
		if p.err = p.dec.Decode(&item); p.err != nil {
			return
		}
		if p.err = p.each(item); p.err != nil {
			p.stopped = true
		}
	}
	p.expect(json.Delim(']'))
}

func (p *pageReader) expect(d json.Delim) {
	if p.err != nil {
		return
	}
	var got json.Token
	if got, p.err = p.dec.Token(); p.err == nil && got != d {
		p.err = fmt.Errorf("the answer has %v where %v belongs", got, d)
	}
}
