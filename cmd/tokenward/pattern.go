package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tokenward/admin/leaks"
	"tokenward/tokenstore"
)

// prefixFlags say how the secrets begin that are looked for.
type prefixFlags struct {
	prefixes []string
	config   string
}

func (f *prefixFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.prefixes, "prefix", nil, "how secrets begin; repeatable (default: tw and api, or what the configuration says)")
	cmd.Flags().StringVar(&f.config, "config", "", "configuration `file`")
}

// all lists the prefixes that the flags, or else the configuration, name.
func (f *prefixFlags) all() ([]string, error) {
	prefixes := slices.Clone(f.prefixes)
	cfg := defaultConfig()
	if f.config != "" {
		loaded, err := loadConfig(f.config)
		if err != nil {
			return nil, err
		}
		cfg = loaded
	}
	if f.config != "" || len(prefixes) == 0 {
		prefixes = append(prefixes, cfg.TokenStore.SecretPrefix)
		prefixes = slices.AppendSeq(prefixes, maps.Values(cfg.Admin.SecretPrefix.byAPI()))
	}
	slices.Sort(prefixes)
	return slices.Compact(prefixes), nil
}

func newPatternCommand() *cobra.Command {
	var f prefixFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "pattern",
		Short: "Print how to recognise secrets: a regular expression and a rule for gitleaks",
		Long: "Print the regular expression (RE2) that secrets match, and a rule for gitleaks with\n" +
			"it. The last six characters are a checksum, which `tokenward scan` checks too.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			prefixes, err := f.all()
			if err != nil {
				return err
			}
			if _, err := leaks.NewScanner(prefixes); err != nil {
				return usageError{err}
			}
			return printPattern(cmd.OutOrStdout(), prefixes, asJSON)
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printPattern(w io.Writer, prefixes []string, asJSON bool) error {
	pattern := tokenstore.SecretPattern(prefixes)
	rule := gitleaksRule(prefixes, pattern)
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		return enc.Encode(struct {
			Pattern  string   `json:"pattern"`
			Prefixes []string `json:"prefixes"`
			Gitleaks string   `json:"gitleaks"`
		}{pattern, prefixes, rule})
	}
	_, err := fmt.Fprintf(w, "%s\n\n# For .gitleaks.toml:\n%s", pattern, rule)
	return err
}

func gitleaksRule(prefixes []string, pattern string) string {
	keywords := make([]string, len(prefixes))
	for i, p := range prefixes {
		keywords[i] = fmt.Sprintf("%q", p+"_")
	}
	return "[[rules]]\nid = \"tokenward-token\"\ndescription = \"API token of tokenward\"\n" +
		"regex = '''" + pattern + "'''\nkeywords = [" + strings.Join(keywords, ", ") + "]\n"
}
