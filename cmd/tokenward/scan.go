package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tokenward/admin/leaks"
	"tokenward/tokenstore"
)

// scanCommand looks for secrets in files.
type scanCommand struct {
	prefixFlags
	server serverFlags
	asJSON bool
}

func newScanCommand() *cobra.Command {
	var s scanCommand
	cmd := &cobra.Command{
		Use:   "scan FILE|FOLDER…",
		Short: "Find secrets in logs and source trees, and say which of them are live",
		Long: "Find secrets of tokens in files, and in all files below folders; - is standard input.\n" +
			"Gzip is unpacked, and text in UTF-16 and UTF-32 is read too. Links out of a folder are\n" +
			"not followed, and pipes and devices are read only if they are named. A secret is never\n" +
			"shown whole.\n\n" +
			"With --config, the store of a stopped server says which are live; with --admin or\n" +
			"$" + envAdmin + ", a running one does, as far as the calling token may see.\n\n" +
			"The exit code is 0 when there is none, and 1 when there are some.",
		Example: "  tokenward scan /var/log src\n" +
			"  git log -p | tokenward scan --admin http://127.0.0.1:8081 --token-file root -",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, paths []string) error { return s.run(cmd, paths) },
	}
	s.add(cmd)
	s.server.add(cmd)
	cmd.Flags().BoolVar(&s.asJSON, "json", false, "print JSON, an object on each line")
	return cmd
}

// leak is a secret in a file, as it is shown.
type leak struct {
	File   string        `json:"file"`
	Line   int           `json:"line"`
	Column int           `json:"column"`
	Secret string        `json:"secret"`           // its prefix and last four characters
	Status string        `json:"status,omitempty"` // live, ended or unknown; empty: nobody was asked
	Token  tokenstore.ID `json:"token,omitempty"`  // the token that it opens, or opened
}

// asker says what a secret is to a store.
type asker func(ctx context.Context, secret tokenstore.Secret) (status string, id tokenstore.ID, err error)

func (s *scanCommand) run(cmd *cobra.Command, paths []string) (err error) {
	prefixes, err := s.all()
	if err != nil {
		return err
	}
	ask, done, err := s.asker(cmd, &prefixes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	scanner, err := leaks.NewScanner(prefixes)
	if err != nil {
		return usageError{err}
	}
	p := leakPrinter{ctx: cmd.Context(), w: cmd.OutOrStdout(), ask: ask, asJSON: s.asJSON, known: map[string]leak{}}
	failed := func(err error) { p.errs = append(p.errs, err) }
	visit := leaks.Visit{Found: p.found, Failed: failed, Skipped: p.skip, Packed: p.pack}
	for _, path := range paths {
		var err error
		if path == "-" {
			var packed bool
			packed, err = scanner.Scan(cmd.Context(), cmd.InOrStdin(), func(f leaks.Found) { p.found("standard input", f) })
			if packed {
				p.pack("standard input")
			}
		} else {
			err = scanner.ScanPath(cmd.Context(), path, visit)
		}
		if cmd.Context().Err() != nil {
			failed(fmt.Errorf("interrupted at %s: what comes behind was not looked at", path))
			break
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: name files and folders that are there", err)
		}
		if err != nil {
			failed(err)
		}
	}
	if p.skipped > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "skipped what is not a file: %s, the first is %s; name one yourself to have it read\n", counted(p.skipped, "path"), p.skippedFirst)
	}
	if p.packed > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "compressed in a way that is not read: %s, the first is %s; unpack them to have them looked at\n", counted(p.packed, "file"), p.packedFirst)
	}
	if p.count > 0 {
		failed(fmt.Errorf("%s found: revoke what is live with `tokenward token revoke`, or rotate it", counted(p.count, "secret")))
	}
	return errors.Join(p.errs...)
}

// asker opens the store or makes a client, as the flags say. The store knows
// further prefixes.
func (s *scanCommand) asker(cmd *cobra.Command, prefixes *[]string) (ask asker, done func() error, err error) {
	if s.config != "" {
		cfg, err := loadConfig(s.config)
		if err != nil {
			return nil, nil, err
		}
		v, err := openVault(cmd.Context(), cfg, newLogger(cfg, cmd.ErrOrStderr()), time.Now, opening{})
		if err != nil {
			return nil, nil, err
		}
		*prefixes = append(*prefixes, v.store.Formats().Prefixes()...)
		slices.Sort(*prefixes)
		*prefixes = slices.Compact(*prefixes)
		return v.ask, v.close, nil
	}
	nothing := func() error { return nil }
	if s.server.admin == "" && s.server.tokenFile == "" {
		return nil, nothing, nil
	}
	c, err := s.server.client(cmd)
	if err != nil {
		return nil, nil, err
	}
	return c.ask, nothing, nil
}

// leakPrinter prints what is found, and remembers what a secret was found to be.
type leakPrinter struct {
	ctx    context.Context // lives as long as one command
	w      io.Writer
	ask    asker // nil: nobody is asked
	asJSON bool
	known  map[string]leak // by secret; at most maxKnownLeaks
	count  int
	errs   []error

	skipped      int
	skippedFirst string
	packed       int
	packedFirst  string
}

const maxKnownLeaks = 100_000

func (p *leakPrinter) found(file string, f leaks.Found) {
	p.count++
	text := f.Secret.Reveal()
	one, ok := p.known[text]
	if !ok && p.ask != nil {
		var err error
		if one.Status, one.Token, err = p.ask(p.ctx, f.Secret); err != nil {
			p.errs = append(p.errs, err)
			p.ask = nil // it would fail for each of them
		}
		if len(p.known) < maxKnownLeaks {
			p.known[text] = one
		}
	}
	prefix, _, _ := strings.Cut(text, "_")
	one.File, one.Line, one.Column, one.Secret = file, f.Line, f.Column, prefix+"_…"+f.Secret.Last4()
	if p.asJSON {
		p.failed(json.NewEncoder(p.w).Encode(one)) //nolint:gosec // cut to its last four characters above
		return
	}
	what := ""
	switch {
	case one.Token != 0:
		what = fmt.Sprintf("  %s, token %d", strings.ToUpper(one.Status), one.Token)
	case one.Status != "":
		what = "  " + one.Status
	}
	_, err := fmt.Fprintf(p.w, "%s:%d:%d: %s%s\n", shownText(file), one.Line, one.Column, one.Secret, what)
	p.failed(err)
}

// skip notes what is not a regular file below a folder.
func (p *leakPrinter) skip(file string, kind fs.FileMode) {
	if p.skipped++; p.skipped == 1 {
		p.skippedFirst = shownText(file) + " (" + fileKind(kind) + ")"
	}
}

// pack notes a file that is compressed, of which only the bytes were looked at.
func (p *leakPrinter) pack(file string) {
	if p.packed++; p.packed == 1 {
		p.packedFirst = shownText(file)
	}
}

func (p *leakPrinter) failed(err error) {
	if err != nil {
		p.errs = append(p.errs, err)
	}
}

// What a found secret can be.
const (
	leakLive    = "live"
	leakEnded   = "ended"
	leakUnknown = "unknown"
)

// ask looks a secret up in the store.
func (v *vault) ask(ctx context.Context, secret tokenstore.Secret) (string, tokenstore.ID, error) {
	m, err := v.cache.Find(ctx, []byte(secret.Reveal()))
	switch {
	case errors.Is(err, tokenstore.ErrNotFound) || errors.Is(err, tokenstore.ErrBrokenSecret):
		return leakUnknown, 0, nil
	case err != nil:
		return "", 0, err
	case m.Token.Status(v.now()) != tokenstore.StatusActive || m.Secret.Ends.Ended(v.now()):
		return leakEnded, m.Token.ID, nil
	}
	return leakLive, m.Token.ID, nil
}

// ask has the server look a secret up (RFC 7662). What is not live, and what the
// calling token may not see, is the same to it.
func (c *client) ask(ctx context.Context, secret tokenstore.Secret) (string, tokenstore.ID, error) {
	form := url.Values{"token": {secret.Reveal()}}
	one := call{doing: "look a secret up", method: http.MethodPost, path: "/introspect", raw: []byte(form.Encode()), rawMedia: "application/x-www-form-urlencoded"}
	b, err := c.do(ctx, one)
	if err != nil {
		return "", 0, err
	}
	var answer struct {
		Active bool
		ID     tokenstore.ID
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return "", 0, c.strange(one, err.Error())
	}
	if !answer.Active {
		return "not live", 0, nil
	}
	return leakLive, answer.ID, nil
}
