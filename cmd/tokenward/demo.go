package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tokenward/admin"
	"tokenward/tokenstore"
)

func newDemoCommand() *cobra.Command {
	var keep string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show it at work: a sample API, guarded, with tokens to try",
		Long: "Start a sample API with tokenward in front of it, on loopback and in its own folder,\n" +
			"make a root token and some example tokens, and print lines to paste into another\n" +
			"terminal, each with the answer to expect. Ctrl-C ends it and removes the folder.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, remove, err := demoFolder(keep)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP) // its terminal was closed
			defer stop()
			err = runDemo(ctx, dir, cmd.OutOrStdout())
			if ctx.Err() != nil && errors.Is(err, context.Canceled) {
				err = nil // interrupted before the page was there
			}
			return errors.Join(err, remove(cmd.OutOrStdout()))
		},
	}
	cmd.Flags().StringVar(&keep, "keep", "", "use the folder `DIR`, which must be new or empty, and keep it")
	return cmd
}

// demoFolder makes the folder of a demo, and returns what to do with it in the
// end.
func demoFolder(keep string) (dir string, end func(io.Writer) error, err error) {
	if keep == "" {
		if dir, err = os.MkdirTemp("", "tokenward-demo-"); err != nil {
			return "", nil, fmt.Errorf("%w: name a folder for the demo with --keep DIR, or one for temporary files in TMPDIR", err)
		}
		return dir, func(w io.Writer) error {
			fmt.Fprintln(w, "\nStopped. The demo's tokens are gone.")
			return os.RemoveAll(dir)
		}, nil
	}
	if dir, err = filepath.Abs(keep); err != nil {
		return "", nil, err
	}
	if !canBeConfigured(dir) {
		return "", nil, fmt.Errorf("--keep: a configuration cannot name files in %s: name a folder without ${…}, $(…) and control characters", quote(dir))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("--keep: %w: name a folder that can be made", err)
	}
	found, err := os.ReadDir(dir)
	if err != nil {
		return "", nil, fmt.Errorf("--keep: %w: name a folder that can be read and written", err)
	}
	if len(found) > 0 {
		return "", nil, fmt.Errorf("--keep: %s is not empty, and a demo begins with new tokens: name a new folder", dir)
	}
	return dir, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "\nStopped. The configuration, the tokens and the logs are in %s.\n", dir)
		return err
	}, nil
}

// runDemo runs a demo in an empty folder until ctx ends. The page is printed
// once every line on it works.
func runDemo(ctx context.Context, dir string, out io.Writer) (err error) {
	logFile, err := os.OpenFile(filepath.Join(dir, "tokenward.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600) //nolint:gosec // the folder is the demo's own
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logFile.Close()) }()
	sample, err := startSampleAPI(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sample.close()) }()
	a, tokens, err := newDemoApp(ctx, dir, sample.url(), logFile)
	if err != nil {
		return err
	}
	page := demoPage(demoPlaces{
		proxy: urlOf(a.proxyListener), admin: urlOf(a.adminListener), metrics: urlOf(a.metricsListener),
		upstream: sample.url(), dir: dir,
	}, tokens)
	if _, err := io.WriteString(out, page); err != nil {
		return errors.Join(err, a.shutdown())
	}
	return a.run(ctx)
}

func urlOf(l net.Listener) string { return "http://" + l.Addr().String() }

// newDemoApp makes the store with its tokens and the app on it. The ports that
// it prefers may be taken between looking and binding; then it looks again.
func newDemoApp(ctx context.Context, dir, upstream string, logFile io.Writer) (*app, *demoTokens, error) {
	const attempts = 5
	var tokens *demoTokens
	for i := 1; ; i++ {
		cfg, err := writeDemoConfig(dir, upstream)
		if err != nil {
			return nil, nil, err
		}
		log := newLogger(cfg, logFile)
		if tokens == nil {
			if tokens, err = makeDemoTokens(ctx, cfg, log); err != nil {
				return nil, nil, err
			}
		}
		a, err := newApp(ctx, cfg, log, time.Now)
		if err == nil {
			return a, tokens, nil
		}
		if i == attempts || !errors.Is(err, syscall.EADDRINUSE) {
			return nil, nil, err
		}
	}
}

// writeDemoConfig writes the configuration of a demo and reads it back.
func writeDemoConfig(dir, upstream string) (*Config, error) {
	var listen [3]string
	for i := range listen {
		var err error
		if listen[i], err = freeAddress(8080 + i); err != nil {
			return nil, err
		}
	}
	path := filepath.Join(dir, "tokenward.yaml")
	if err := os.WriteFile(path, demoText(dir, upstream, listen), 0o600); err != nil {
		return nil, err
	}
	return loadConfig(path)
}

func demoText(dir, upstream string, listen [3]string) []byte {
	return fmt.Appendf(nil, demoConfig, listen[0], upstream, listen[1], listen[2],
		strconv.Quote(demoStore(dir)), strconv.Quote(filepath.Join(dir, "tokenward-audit.jsonl")))
}

func demoStore(dir string) string { return filepath.Join(dir, "tokenward.db") }

// canBeConfigured reports whether a configuration means the files in dir by their names.
func canBeConfigured(dir string) bool {
	text := demoText(dir, "http://127.0.0.1:1", [3]string{"127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4"})
	c, err := parseConfig("demo", text)
	return err == nil && c.TokenStore.Path == demoStore(dir)
}

// freeAddress is an address on loopback that nobody listens on: with the
// preferred port, or else with any.
func freeAddress(preferred int) (string, error) {
	for _, port := range []int{preferred, 0} {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return l.Addr().String(), l.Close()
		}
		if port == 0 {
			return "", err
		}
	}
	panic("unreachable")
}

const demoConfig = `# The configuration of tokenward's demo. config.example.yaml has every key.

proxy:
  listen: %s
  upstream: %s
  # In the demo, curl plays the proxy before this one, which says where the
  # client is.
  trusted_proxies: [127.0.0.1]
  timeouts:
    drain: 2s

admin:
  listen: %s

metrics:
  listen: %s

tokenstore:
  path: %s

audit:
  path: %s

routes:
  - match: GET /healthz
    public: true

  - match: GET,HEAD /accounts
    scopes: ["accounts:read"]

  - match: GET,HEAD /accounts/{account}
    scopes: ["accounts:read"]
    resources: ["account:{account}"]

  - match: GET,HEAD /accounts/{account}/cards
    scopes: ["cards:read"]
    resources: ["account:{account}"]

  - match: POST /accounts/{account}/cards
    scopes: ["cards:write"]
    resources: ["account:{account}"]

  - match: GET,HEAD /accounts/{account}/cards/{card}
    scopes: ["cards:read"]
    resources: ["card:{card}|account:{account}"]

  - match: DELETE /accounts/{account}/cards/{card}
    scopes: ["cards:write"]
    resources: ["card:{card}|account:{account}"]
`

// demoTokens are the tokens of a demo.
type demoTokens struct{ root, full, readOnly, oneAccount, expired, office admin.Made }

// makeDemoTokens makes the store and its tokens two hours ago by the clock of
// the store, so that one of them has ended by now.
func makeDemoTokens(ctx context.Context, cfg *Config, log *slog.Logger) (_ *demoTokens, err error) {
	then := func() time.Time { return time.Now().Add(-2 * time.Hour) }
	v, err := openVault(ctx, cfg, log, then, opening{create: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.close()) }()
	tokens := &demoTokens{}
	if tokens.root, err = v.service.Bootstrap(ctx, tokenstore.Secret{}); err != nil {
		return nil, err
	}
	all := []string{"*"}
	for _, one := range []struct {
		made *admin.Made
		spec admin.Spec
	}{
		{&tokens.full, admin.Spec{Name: "full", Scopes: all}},
		{&tokens.readOnly, admin.Spec{Name: "read-only", Scopes: []string{"accounts:read", "cards:read"}}},
		{&tokens.oneAccount, admin.Spec{Name: "one account only", Scopes: all, Resources: &tokenstore.Resources{
			Grants: []tokenstore.Grant{{Type: tokenstore.TypeAccount, ID: "1001", Level: tokenstore.LevelWrite}}}}},
		{&tokens.expired, admin.Spec{Name: "expired", Scopes: all, Expiry: new(tokenstore.EndsAt(then().Add(time.Hour)))}},
		{&tokens.office, admin.Spec{Name: "from the office only", Scopes: all, Sources: &tokenstore.Sources{
			Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}}},
	} {
		if *one.made, err = v.service.Create(ctx, admin.Operator(""), one.spec); err != nil {
			return nil, fmt.Errorf("make the token %q: %w", one.spec.Name, err)
		}
	}
	return tokens, nil
}
