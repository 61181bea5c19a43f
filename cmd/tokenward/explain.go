package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"tokenward/admin"
	"tokenward/admin/native"
	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/proxy"
	"tokenward/tokenstore"
)

// explainFlags are what the explain command is asked.
type explainFlags struct {
	config, tokenFile, from string
	tokenID                 uint64
	headers                 []string
	asJSON                  bool
}

func newExplainCommand() *cobra.Command {
	var f explainFlags
	cmd := &cobra.Command{
		Use:   "explain --config FILE METHOD TARGET",
		Short: "Say step by step how a request would be judged, and by which line",
		Long: "Judge a request by a configuration without sending it anywhere, and show each\n" +
			"step up to the one that decides. The token is given by its secret, in a file, or\n" +
			"by its id; without either the request bears none. Reading the store needs it to\n" +
			"be free: while it is served, ask the server with POST /v1/explain. Where the rules\n" +
			"depend on enforce.parents, the API is asked what the resource belongs to.",
		Example: "  tokenward explain --config tokenward.yaml --token-id 7 --from 192.0.2.7 GET /accounts/1001\n" +
			"  tokenward explain --config tokenward.yaml --token-file - -H 'X-Forwarded-For: 192.0.2.7' GET /accounts/1001 <secret",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := f.run(cmd, args[0], args[1])
			if err != nil {
				return err
			}
			if f.asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(out)
			}
			return printExplanation(cmd.OutOrStdout(), f.config, out)
		},
	}
	cmd.Flags().StringVar(&f.config, "config", "tokenward.yaml", "configuration file")
	cmd.Flags().StringVar(&f.tokenFile, "token-file", "", "file with the secret that the request bears; - reads standard input")
	cmd.Flags().Uint64Var(&f.tokenID, "token-id", 0, "id of the token that the request bears a secret of")
	cmd.Flags().StringVar(&f.from, "from", "127.0.0.1", "address that the connection comes from")
	cmd.Flags().StringArrayVarP(&f.headers, "header", "H", nil, "header line of the request, `'Name: value'`; can be repeated")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print JSON, as POST /v1/explain answers")
	return cmd
}

// run judges the request that the flags describe.
func (f *explainFlags) run(cmd *cobra.Command, method, target string) (native.Explanation, error) {
	none := native.Explanation{}
	q := native.Question{Method: method, Target: target}
	if f.tokenFile != "" && f.tokenID != 0 {
		return none, usageError{errors.New("--token-file and --token-id exclude each other: leave one out")}
	}
	from, err := netip.ParseAddr(f.from)
	if err != nil || from.Zone() != "" {
		return none, usageError{fmt.Errorf("--from %q is not an IP address: write it as 192.0.2.7 or 2001:db8::7", f.from)}
	}
	q.From = from.Unmap()
	for _, line := range f.headers {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return none, usageError{fmt.Errorf("-H %q: write 'Name: value'", line)}
		}
		value = strings.Trim(value, " \t")
		if strings.ContainsFunc(value, func(r rune) bool { return r != '\t' && unicode.IsControl(r) }) {
			return none, usageError{fmt.Errorf("-H %q holds a control character, such as a line break: no request has that in a header", name)}
		}
		q.Headers = append(q.Headers, native.Header{Name: name, Value: value})
	}
	cfg, err := loadConfig(f.config)
	if err != nil {
		return none, err
	}
	if f.tokenFile == "" && f.tokenID == 0 {
		guard, err := cfg.guardToAsk(enforce.NewEngine(noTokens{}, 1))
		if err != nil {
			return none, err
		}
		return explanationOf(guard.Explain(cmd.Context(), headOf(&q), nil, time.Now())), nil
	}
	v, err := openVault(cmd.Context(), cfg, slog.New(slog.DiscardHandler), time.Now, opening{})
	if err != nil {
		line, lerr := f.askServer(cfg, &q)
		return none, errors.Join(fmt.Errorf("%w\nTo ask a running server: %s", err, line), lerr)
	}
	out, err := f.judge(cmd.Context(), cmd.InOrStdin(), cfg, v, &q)
	return out, errors.Join(err, v.close())
}

// askServer is the line for a shell that asks the same of a running server. A token
// that is named by its secret asks for itself, and needs no other right for it.
func (f *explainFlags) askServer(cfg *Config, q *native.Question) (string, error) {
	headers := make(map[string][]string)
	for _, h := range q.Headers {
		if slices.ContainsFunc(cfg.Proxy.Credentials, func(carrier string) bool { return strings.EqualFold(carrier, h.Name) }) {
			continue // it may be a secret, and the server is asked about another
		}
		headers[h.Name] = append(headers[h.Name], h.Value)
	}
	body, err := admin.EncodeJSON(struct {
		Method  string              `json:"method"`
		Target  string              `json:"target"`
		Headers map[string][]string `json:"headers,omitempty"`
		From    string              `json:"from"`
		TokenID uint64              `json:"token_id,omitempty"`
	}{q.Method, q.Target, headers, q.From.String(), f.tokenID})
	if err != nil {
		return "", err
	}
	token := "$TOKENWARD_TOKEN"
	if f.tokenFile != "" && f.tokenFile != "-" {
		token = "$(cat " + shellQuoted(f.tokenFile) + ")"
	}
	return `curl -H "Authorization: Bearer ` + token + `" -H "Content-Type: application/json" ` + shellQuoted(cfg.adminURL()+"/v1/explain") + " -d " + shellQuoted(string(body)), nil
}

func shellQuoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// shellWord is text as one word of a command line, quoted only where a shell would
// read something into it.
func shellWord(text string) string {
	plain := func(r rune) bool {
		return '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || strings.ContainsRune("%+,-./:=@_", r)
	}
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return !plain(r) }) {
		return shellQuoted(text)
	}
	return text
}

func (f *explainFlags) judge(ctx context.Context, stdin io.Reader, cfg *Config, v *vault, q *native.Question) (native.Explanation, error) {
	engine := enforce.NewEngine(v.cache, 1)
	if len(cfg.Enforce.Parents) > 0 {
		upstreams, err := newUpstreamSet(cfg)
		if err != nil {
			return native.Explanation{}, err
		}
		defer upstreams.closeIdle()
		if engine.Parents, err = cfg.parents(upstreams, time.Now); err != nil {
			return native.Explanation{}, err
		}
	}
	guard, err := cfg.guardToAsk(engine)
	if err != nil {
		return native.Explanation{}, err
	}
	if f.tokenID != 0 {
		t, err := v.store.ByID(ctx, tokenstore.ID(f.tokenID))
		switch {
		case errors.Is(err, tokenstore.ErrNotFound):
			return native.Explanation{}, fmt.Errorf("there is no token %d in this store, or it was swept: `tokenward token list` shows those of a running server", f.tokenID)
		case err != nil:
			return native.Explanation{}, fmt.Errorf("token %d: %w", f.tokenID, err)
		}
		q.Token = t
		return explainAs(ctx, guard, q, time.Now()), nil
	}
	in := stdin
	if f.tokenFile != "-" {
		file, err := os.Open(f.tokenFile)
		if err != nil {
			return native.Explanation{}, fmt.Errorf("--token-file %s %w\nIt must hold the secret that the request bears, and nothing else", f.tokenFile, fileProblem(err))
		}
		defer file.Close()
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, 4096))
	if err != nil {
		return native.Explanation{}, fmt.Errorf("read secret: %w", err)
	}
	bear(guard.Rules().Canon, q, strings.TrimSpace(string(text)))
	return explanationOf(guard.Explain(ctx, headOf(q), nil, time.Now())), nil
}

// guardToAsk is the proxy's guard as a server with this configuration would have it,
// but for what carries requests.
func (c *Config) guardToAsk(engine *enforce.Engine) (*proxy.Guard, error) {
	rules, err := c.judgedBy()
	if err != nil {
		return nil, err
	}
	rules.Default = c.defaultRouteOptions()
	for i := range c.Routes {
		rules.Routes = append(rules.Routes, c.Routes[i].routeOptions(c))
	}
	guard := proxy.NewGuard(engine, slog.New(slog.DiscardHandler), time.Now)
	guard.Mounts = c.mounts(func(string) http.Handler { return http.NotFoundHandler() })
	guard.SetRules(rules)
	return guard, nil
}

// bear puts the secret in the first place where the proxy looks for one.
func bear(rules *canon.Rules, q *native.Question, secret string) {
	header := native.Header{Name: rules.CarrierName(0), Value: secret}
	switch kind, name, special := strings.Cut(header.Name, ":"); {
	case kind == "authorization":
		header.Value = "Bearer " + secret
	case special && kind == "query":
		mark := "?"
		if strings.Contains(q.Target, mark) {
			mark = "&"
		}
		q.Target += mark + name + "=" + url.QueryEscape(secret)
		return
	case special:
		header = native.Header{Name: "Sec-WebSocket-Protocol", Value: name + ", " + secret}
	}
	q.Headers = append(q.Headers, header)
}

// noTokens is a store for requests that bear none.
type noTokens struct{}

func (noTokens) Find(context.Context, []byte) (tokenstore.Match, error) {
	return tokenstore.Match{}, tokenstore.ErrNotFound
}

// explain answers `POST /v1/explain` on a running server.
func (a *app) explain(ctx context.Context, q native.Question) (native.Explanation, error) {
	return explainAs(ctx, a.guard, &q, a.now()), nil
}

// explainAs judges the question as its token's current secret would be.
func explainAs(ctx context.Context, guard *proxy.Guard, q *native.Question, now time.Time) native.Explanation {
	m := tokenstore.Match{Token: q.Token}
	if q.Token != nil && len(q.Token.Secrets) > 0 {
		m.Secret = &q.Token.Secrets[0]
	}
	return explanationOf(guard.Explain(ctx, headOf(q), &m, now))
}

// headOf is the question as the proxy's listener would read it.
func headOf(q *native.Question) canon.Head {
	head := canon.Head{Method: []byte(q.Method), Target: []byte(q.Target), Major: 1, Minor: 1}
	if q.From.IsValid() {
		head.Peer = netip.AddrPortFrom(q.From, 0)
	}
	head.Upgrade = asksToSwitch(q.Headers)
	named := false
	for _, h := range q.Headers {
		named = named || strings.EqualFold(h.Name, "Host")
		head.Fields = append(head.Fields, canon.Field{Name: []byte(h.Name), Value: []byte(h.Value)})
	}
	if !named {
		head.Fields = append(head.Fields, canon.Field{Name: []byte("Host"), Value: []byte("localhost")})
	}
	return head
}

// asksToSwitch reports whether the header fields ask for another protocol, as the
// listener takes them: by one Upgrade, which Connection names (RFC 9110 section 7.8).
func asksToSwitch(headers []native.Header) bool {
	upgrades, named := 0, false
	for _, h := range headers {
		switch {
		case strings.EqualFold(h.Name, "Upgrade") && strings.Trim(h.Value, " \t") == "":
			return false
		case strings.EqualFold(h.Name, "Upgrade"):
			upgrades++
		case strings.EqualFold(h.Name, "Connection"):
			for option := range strings.SplitSeq(h.Value, ",") {
				named = named || strings.EqualFold(strings.Trim(option, " \t"), "upgrade")
			}
		}
	}
	return named && upgrades == 1
}

func explanationOf(e proxy.Explanation) native.Explanation {
	out := native.Explanation{Decision: "deny", Code: e.Code, Reason: e.Reason, Steps: make([]native.Step, len(e.Steps))}
	if e.Passes {
		out.Decision = "allow"
	}
	if e.Route != nil {
		out.Route, out.Line = e.Route.Pattern, e.Route.Line
	}
	for i, s := range e.Steps {
		out.Steps[i] = native.Step{Step: s.Name, OK: s.OK, Detail: s.Detail}
	}
	return out
}

func printExplanation(w io.Writer, config string, e native.Explanation) error {
	verdict := "ALLOWED"
	switch {
	case e.Decision != "allow":
		verdict = "REFUSED: " + e.Reason
		if e.Code != "" && e.Code != e.Reason {
			verdict += " (the client is told " + e.Code + ")"
		}
	case e.Reason == proxy.ReasonMounted:
		verdict = "NOT FORWARDED: a mounted token API answers"
	case e.Reason == proxy.ReasonPreflight:
		verdict = "NOT FORWARDED: the proxy answers the preflight"
	case e.Reason != enforce.Allowed.String() && e.Reason != enforce.Public.String():
		verdict = "ONLY OBSERVED: forwarded, although refused by " + e.Reason
	}
	fmt.Fprintln(w, verdict)
	if e.Route != "" {
		fmt.Fprintf(w, "by %s, %s:%d\n", e.Route, config, e.Line)
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range e.Steps {
		mark := "ok"
		if !s.OK {
			mark = "NO"
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\n", mark, s.Step, s.Detail)
	}
	return t.Flush()
}

// seen tells `GET /v1/whoami` which hop was believed, and why.
func (g *gate) seen(r *http.Request, c admin.Caller) native.Seen {
	v := &visit{}
	proxy.FillHead(&v.head, r)
	g.canon.Canonicalize(&v.req, &v.head)
	return native.Seen{Peer: v.req.Client.Peer, Hop: v.req.ExplainClient(), Left: g.left(c.Token)}
}
