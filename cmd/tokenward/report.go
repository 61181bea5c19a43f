package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tokenward/admin"
)

// newReportCommand tells what is worth looking at about tokens.
func newReportCommand() *cobra.Command {
	t := &tokenCommand{now: time.Now}
	var account, owner uint64
	var unused, ending string
	var findings []string
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Show which tokens are unused, wider than needed, without an end or about to end",
		Long: "Show what is worth looking at in the tokens that the calling token may see: unused,\n" +
			"never expiring, about to expire, replaced secrets that are still used, scopes and\n" +
			"routes that a token has but never exercised. The last is reported only for tokens that\n" +
			"are in use, and older than --unused-since. With --json the output is the\n" +
			"server's: one object, with the tokens in `items`.",
		Example: "  tokenward report --unused-since 30d\n" +
			"  tokenward report --finding old_secret_in_use,expires_soon",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			query := url.Values{}
			if cmd.Flags().Changed("account") {
				query.Set("account", strconv.FormatUint(account, 10))
			}
			if cmd.Flags().Changed("owner") {
				query.Set("owner", strconv.FormatUint(owner, 10))
			}
			since, err := parseAgo(unused, t.now())
			if err != nil {
				return usageError{fmt.Errorf("--unused-since %q %w", unused, err)}
			}
			before, err := parseWhen(ending, t.now())
			if err != nil {
				return usageError{fmt.Errorf("--ending-within %q %w", ending, err)}
			}
			query.Set("unused_since", wireTime(since))
			query.Set("ending_before", wireTime(before))
			for _, name := range findings {
				if !slices.Contains(admin.Findings(), admin.Finding(name)) {
					return usageError{fmt.Errorf("--finding %q is not a finding: choose from %s", name, findingNames())}
				}
			}
			if len(findings) > 0 {
				query.Set("finding", strings.Join(findings, ","))
			}
			return t.report(cmd, query)
		},
	}
	t.server.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&t.asJSON, "json", false, "print the server's JSON")
	f.Uint64Var(&account, "account", 0, "only this account `number`; 0 is that of root tokens")
	f.Uint64Var(&owner, "owner", 0, "only this owner's `number`")
	f.StringVar(&unused, "unused-since", "90d", "unused is what was not used since `then`: a time (RFC 3339), or a duration ago such as 90d")
	f.StringVar(&ending, "ending-within", "30d", "about to expire is what ends before `then`: a time (RFC 3339), or a duration such as 30d")
	f.StringSliceVar(&findings, "finding", nil, "only these `findings`: "+findingNames())
	mustComplete(cmd.RegisterFlagCompletionFunc("finding", cobra.FixedCompletions(strings.Split(findingNames(), ", "), cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func findingNames() string {
	names := make([]string, 0, len(admin.Findings()))
	for _, f := range admin.Findings() {
		names = append(names, string(f))
	}
	return strings.Join(names, ", ")
}

// report prints what the server says while it comes in.
func (t *tokenCommand) report(cmd *cobra.Command, query url.Values) error {
	c, err := t.server.client(cmd)
	if err != nil {
		return err
	}
	list := newListWriter(cmd.OutOrStdout(), t.asJSON, t.now())
	one := call{doing: "report on the tokens", method: http.MethodGet, path: "/report", query: query,
		field: fieldNames{"account": {flag: "account"}, "owner": {flag: "owner"}, "unused_since": {flag: "unused-since"}, "ending_before": {flag: "ending-within"}, "finding": {flag: "finding"}}}
	each := list.token
	w := reportWriter{table: list.table, now: t.now(), counts: map[string]int{}}
	if !t.asJSON {
		each = w.assessment
	}
	if _, err := c.page(cmd.Context(), one, each); err != nil {
		list.abort()
		return err
	}
	if t.asJSON {
		return list.end("")
	}
	return w.end()
}

// reportWriter prints a report for people.
type reportWriter struct {
	table  *tabwriter.Writer
	now    time.Time
	tokens int
	counts map[string]int // of tokens, by finding
}

// assessmentView is what a report says about one token, as far as people are shown
// it.
type assessmentView struct {
	Token        tokenView `json:"token"`
	Findings     []string  `json:"findings"`
	UnusedScopes []string  `json:"unused_scopes"`
	UnusedRoutes []string  `json:"unused_routes"`
}

// assessment prints a token, and below it each finding.
func (w *reportWriter) assessment(raw json.RawMessage) error {
	var v assessmentView
	if err := json.Unmarshal(raw, &v); err != nil {
		return fmt.Errorf("the server's report holds something other than tokens: %w", err)
	}
	w.tokens++
	fmt.Fprintf(w.table, "Token %d, %s, of account %d\n", v.Token.ID, shortened(v.Token.Name), v.Token.Account)
	for _, f := range v.Findings {
		w.counts[f]++
		fmt.Fprintf(w.table, "    %s\n", v.text(f, w.now))
	}
	return w.table.Flush()
}

func (v *assessmentView) text(finding string, now time.Time) string {
	switch admin.Finding(finding) {
	case admin.FindingUnused:
		return "unused: " + v.lastUse(now)
	case admin.FindingNeverExpires:
		return "never expires"
	case admin.FindingExpires:
		return "expires " + endText(v.Token.ExpiresAt, now)
	case admin.FindingOldSecret:
		if len(v.Token.Secrets) > 1 {
			return "the old secret is in use: " + lastUsedText(v.Token.Secrets[1], now)
		}
	case admin.FindingScopes:
		return "has scopes that it never needed: " + shownText(listText(v.UnusedScopes))
	case admin.FindingRoutes:
		return "may take routes that it never took: " + shownText(listText(v.UnusedRoutes))
	}
	return shownText(finding)
}

// lastUse tells when any of the secrets was used last.
func (v *assessmentView) lastUse(now time.Time) string {
	var last *time.Time
	for _, s := range v.Token.Secrets {
		if s.LastUsed != nil && (last == nil || s.LastUsed.At.After(*last)) {
			last = &s.LastUsed.At
		}
	}
	if last == nil {
		return "no use of its secrets is known"
	}
	return "last used " + timeText(*last, now)
}

func (w *reportWriter) end() error {
	if w.tokens == 0 {
		fmt.Fprintln(w.table, "There is nothing to say about any token.")
		return w.table.Flush()
	}
	fmt.Fprintf(w.table, "\n%s:", counted(w.tokens, "token"))
	separator := " "
	for _, f := range admin.Findings() {
		if n := w.counts[string(f)]; n > 0 {
			fmt.Fprintf(w.table, "%s%d %s", separator, n, strings.ReplaceAll(string(f), "_", " "))
			separator = ", "
		}
	}
	fmt.Fprintln(w.table)
	return w.table.Flush()
}
