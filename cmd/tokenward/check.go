package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// newCheckCommand checks a configuration without starting anything.
func newCheckCommand() *cobra.Command {
	var path string
	var asJSON, textOnly bool
	cmd := &cobra.Command{
		Use:   "check --config FILE",
		Short: "Check a configuration and the files it names, and list its routes",
		Long: "Check a configuration and the files it names: certificates, keys, peppers and the\n" +
			"folders of store and audit log. Every fault is shown in one run, with its line and with\n" +
			"what to write instead. Nothing is started, and no file is written.\n\n" +
			"The exit code is 0 when the server would start with it, and 1 when not.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := check(path, cmd.InOrStdin(), textOnly, time.Now())
			if err != nil && asJSON {
				return errors.Join(r.writeJSON(cmd.OutOrStdout()), errors.New(r.verdict()))
			}
			if err != nil {
				return err
			}
			if asJSON {
				return r.writeJSON(cmd.OutOrStdout())
			}
			return r.write(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&path, "config", "tokenward.yaml", "configuration file, or - for standard input")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&textOnly, "text-only", false, "check the text alone, not the files that it names")
	return cmd
}

// checkReport is what check found.
type checkReport struct {
	OK       bool          `json:"ok"`
	Config   string        `json:"config"`
	Faults   []configFault `json:"faults"`
	Warnings []configFault `json:"warnings"`
	Routes   []checkRoute  `json:"routes"`
}

// checkRoute is a route as it stands in the list.
type checkRoute struct {
	Line    int    `json:"line"`
	Methods string `json:"methods"`
	Path    string `json:"path"`
	Asks    string `json:"asks"` // in words
}

// check reads the configuration at path and, unless textOnly, looks at the
// files it names. The report is filled in any case; err prints the faults.
func check(path string, stdin io.Reader, textOnly bool, now time.Time) (checkReport, error) {
	r := checkReport{Config: path, Faults: []configFault{}, Warnings: []configFault{}, Routes: []checkRoute{}}
	cfg, err := loadFrom(path, stdin)
	if e, ok := errors.AsType[*configError](err); ok {
		if !textOnly {
			e = e.withFiles(now)
		}
		r.Faults, err = e.Faults, e
	}
	if err != nil {
		return r, err
	}
	for i := range cfg.Routes {
		r.Routes = append(r.Routes, describeRoute(&cfg.Routes[i]))
	}
	r.Warnings = append(r.Warnings, cfg.routeWarnings()...)
	if !textOnly {
		faults, warnings := cfg.checkFiles(now)
		unwritable, unsafe := cfg.checkWritable()
		r.Warnings = append(append(r.Warnings, warnings...), unsafe...)
		if faults = append(faults, unwritable...); len(faults) > 0 {
			e := newConfigError(path, nil, faults)
			r.Faults = e.Faults
			return r, e
		}
	}
	if len(cfg.Routes) == 0 {
		r.Warnings = append(r.Warnings, configFault{Key: "routes", Rule: ruleMissing, Problem: "there is no route, so every request is refused", Fix: "write what may pass, as in config.example.yaml"})
	}
	r.OK = true
	return r, nil
}

func loadFrom(path string, stdin io.Reader) (*Config, error) {
	if path != "-" {
		return loadConfig(path)
	}
	data, err := io.ReadAll(io.LimitReader(stdin, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	return parseConfig("standard input", data)
}

// describeRoute says in words what a route asks of a request.
func describeRoute(r *RouteConfig) checkRoute {
	methods, path, _ := strings.Cut(r.Match, " ")
	out := checkRoute{Line: r.line, Methods: methods, Path: path}
	if r.Public {
		out.Asks = "nothing (public)"
		return out
	}
	var asks []string
	list := func(name string, items []string) {
		if len(items) > 0 {
			asks = append(asks, name+" "+strings.ReplaceAll(strings.Join(items, " and "), "|", " or "))
		}
	}
	list("scope", r.Scopes)
	list("resource", r.Resources)
	if r.TokenAccount != "" {
		asks = append(asks, "the token's account in "+r.TokenAccount)
	}
	if len(r.Resources) > 0 && r.Access != "" {
		asks = append(asks, r.Access+" access")
	}
	if len(asks) == 0 {
		asks = append(asks, "any valid token")
	}
	if len(r.Resources) == 0 && r.RestrictedTokens != "allow" {
		asks = append(asks, "not restricted to resources")
	}
	if len(r.Relax) > 0 {
		asks = append(asks, "relaxes "+strings.Join(r.Relax, " and "))
	}
	out.Asks = strings.Join(asks, ", ")
	return out
}

func (r *checkReport) verdict() string {
	if !r.OK {
		return fmt.Sprintf("the configuration has %s", counted(len(r.Faults), "fault"))
	}
	return fmt.Sprintf("config is fine: %s, %s", counted(len(r.Routes), "route"), counted(len(r.Warnings), "warning"))
}

func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// write prints the report of a sound configuration for people.
func (r *checkReport) write(w io.Writer) error {
	var b strings.Builder
	b.WriteString(r.verdict() + "\n")
	for _, one := range r.Warnings {
		fmt.Fprintf(&b, "\nwarning: %s: %s\n         %s\n", one.Key, one.Problem, one.Fix)
	}
	if len(r.Routes) > 0 {
		b.WriteByte('\n')
		writeColumns(&b, r.Routes)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeColumns sets the routes as a table. Paths longer than the column push
// only their own line aside.
func writeColumns(b *strings.Builder, routes []checkRoute) {
	const widest = 48
	methods, path := len("METHODS"), len("PATH")
	for _, one := range routes {
		methods = max(methods, min(widest, utf8.RuneCountInString(one.Methods)))
		path = max(path, min(widest, utf8.RuneCountInString(one.Path)))
	}
	rows := slices.Insert(slices.Clone(routes), 0, checkRoute{Methods: "METHODS", Path: "PATH", Asks: "ASKS FOR"})
	for i, one := range rows {
		line := "LINE"
		if i > 0 {
			line = fmt.Sprint(one.Line)
		}
		fmt.Fprintf(b, "%5s  %-*s  %-*s  %s\n", line, methods, one.Methods, path, one.Path, one.Asks)
	}
}

func (r *checkReport) writeJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}
