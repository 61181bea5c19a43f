package main

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"tokenward/audit"
	"tokenward/tokenstore"
)

func newAuditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Check the log of everything that was done to tokens",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newAuditVerifyCommand())
	return cmd
}

// verifyFlags say which log is verified, and with what.
type verifyFlags struct {
	config, log     string
	peppers         []string
	key             string
	heads, headFile []string
	asJSON          bool
}

func newAuditVerifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify [--config FILE | --log FILE]",
		Short: "Check that no line of the audit log was changed, cut out or moved",
		Long: "Read the whole audit log, older files too, and check every line. The server may be\n" +
			"running. Each fault is reported with the range of lines it concerns.\n\n" +
			"Log and keys are those of the configuration, which is tokenward.yaml unless --config names\n" +
			"another. Elsewhere, name the log, the pepper files it was written under and the public\n" +
			"key of its signatures. Lines cut off the end show only against a head that was kept\n" +
			"elsewhere: the server logs heads, and /metrics has the last one.\n\n" +
			"The exit code is 0 when the log is whole, and 1 when not.",
		Example: "  tokenward audit verify --config tokenward.yaml --head-file heads.txt\n" +
			"  tokenward audit verify --log copy.jsonl --pepper pepper --key audit-public.pem",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "configuration `file` that names log, peppers and signing key (default: tokenward.yaml, unless --log is given)")
	flags.StringVar(&f.log, "log", "", "the log's `file`, in place of the configured one")
	flags.StringArrayVar(&f.peppers, "pepper", nil, "a pepper `file` that the log was written under; repeatable")
	flags.StringVar(&f.key, "key", "", "the signing key, public or private, a PEM `file`")
	flags.StringArrayVar(&f.heads, "head", nil, "a `head` kept elsewhere; repeatable")
	flags.StringArrayVar(&f.headFile, "head-file", nil, "a `file` with one such head on each line; repeatable")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
	return cmd
}

func (f *verifyFlags) run(cmd *cobra.Command) error {
	path, keys, err := f.keys()
	if err != nil {
		return err
	}
	report, err := audit.Verify(path, keys)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w\nName the log with --log FILE, or the configuration that does with --config FILE", err)
	}
	if err != nil {
		return err
	}
	if f.asJSON {
		err = writeAuditJSON(cmd.OutOrStdout(), &report)
	} else {
		_, err = io.WriteString(cmd.OutOrStdout(), auditText(&report, keys.Signing != nil))
	}
	if n := len(report.Faults) + report.MoreFaults; n > 0 && err == nil {
		return fmt.Errorf("the audit log has %s: keep all its files as they are, and compare them with a copy kept elsewhere", counted(n, "fault"))
	}
	return err
}

// keys gathers what the log is checked with.
func (f *verifyFlags) keys() (path string, keys audit.Keys, err error) {
	signing, peppers, config := "", f.peppers, f.config
	if config == "" && f.log == "" {
		config = "tokenward.yaml"
		if _, err := os.Stat(config); errors.Is(err, fs.ErrNotExist) {
			return "", keys, usageError{errors.New("which log? There is no tokenward.yaml here: give --config FILE or --log FILE")}
		}
	}
	if config != "" {
		cfg, err := loadConfig(config)
		if err != nil {
			return "", keys, err
		}
		path, signing = cfg.Audit.Path, cfg.Audit.SigningKeyFile
		peppers = append(peppers, cfg.TokenStore.PepperFiles...)
	}
	if f.log != "" {
		path = f.log
	}
	if f.key != "" {
		signing = f.key
	}
	sealed, err := readPeppers(peppers)
	if err != nil {
		return "", keys, err
	}
	keys.MAC = sealed.AuditKeys()
	if signing != "" {
		if keys.Signing, err = readVerifyKey(signing); err != nil {
			return "", keys, err
		}
	}
	keys.Heads, err = f.readHeads(keys.Signing)
	return path, keys, err
}

// readHeads reads the heads that were kept elsewhere. With a key, those that are
// signed must be signed by it.
func (f *verifyFlags) readHeads(key ed25519.PublicKey) ([]audit.Head, error) {
	texts := f.heads
	for _, path := range f.headFile {
		b, err := os.ReadFile(path) //nolint:gosec // the operator names it
		if err != nil {
			return nil, fmt.Errorf("--head-file %s %w", path, fileProblem(err))
		}
		texts = append(texts, strings.Split(string(b), "\n")...)
	}
	var heads []audit.Head
	for _, text := range texts {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		head, err := audit.ParseHead(text)
		if err != nil {
			return nil, fmt.Errorf("%w: give a head as the server logged it", err)
		}
		if key != nil && head.Signature != nil {
			if err := head.Verify(key); err != nil {
				return nil, fmt.Errorf("head at line %d: %w: give the key that it was signed with, or find out who made it", head.Line, err)
			}
		}
		heads = append(heads, head)
	}
	return heads, nil
}

// auditText is a report in words. signing says that there is a key for signed heads.
func auditText(r *audit.Report, signing bool) string {
	var b strings.Builder
	for _, fault := range r.Faults {
		fmt.Fprintln(&b, fault.String())
	}
	if r.MoreFaults > 0 {
		fmt.Fprintf(&b, "and %d more\n", r.MoreFaults)
	}
	if len(r.Faults) == 0 {
		fmt.Fprintf(&b, "The audit log is whole: lines %d to %d, %s in %s.\n", r.First, r.Last, counted(int(r.Events), "event"), counted(len(r.Files), "file")) //nolint:gosec // a count of lines
	}
	if r.First > 1 {
		fmt.Fprintf(&b, "Lines 1 to %d are in older files that are not here.\n", r.First-1)
	}
	switch {
	case r.MACFrom == 0:
		b.WriteString("No line is under a MAC: whoever can write the file could write the chain anew. A pepper would prevent that.\n")
	case r.MACFrom > r.First:
		fmt.Fprintf(&b, "Lines %d to %d are without a MAC.\n", r.First, r.MACFrom-1)
	}
	switch {
	case r.Signed > 0:
		fmt.Fprintf(&b, "Signed up to line %d.\n", r.Signed)
	case signing && r.Events > 0:
		b.WriteString("No line is signed by that key: it is another one, it is new, or somebody left the signed heads out.\n")
	}
	if r.TornBytes > 0 {
		fmt.Fprintf(&b, "The last line is half written (%d bytes): it is being written, or the process was killed meanwhile.\n", r.TornBytes)
	}
	fmt.Fprintf(&b, "Head: %s\n", r.Head)
	return b.String()
}

func writeAuditJSON(w io.Writer, r *audit.Report) error {
	type fault struct {
		File string `json:"file"`
		Line int    `json:"line"`
		From uint64 `json:"from"`
		To   uint64 `json:"to"`
		What string `json:"what"`
	}
	out := struct {
		OK         bool     `json:"ok"`
		Log        string   `json:"log"`
		Files      []string `json:"files"`
		First      uint64   `json:"first"`
		Last       uint64   `json:"last"`
		Events     uint64   `json:"events"`
		MACFrom    uint64   `json:"mac_from"`
		Signed     uint64   `json:"signed"`
		TornBytes  int      `json:"torn_bytes"`
		Head       string   `json:"head"`
		Faults     []fault  `json:"faults"`
		MoreFaults int      `json:"more_faults"`
	}{len(r.Faults) == 0, r.Log, r.Files, r.First, r.Last, r.Events, r.MACFrom, r.Signed, r.TornBytes, r.Head.String(), []fault{}, r.MoreFaults}
	for _, f := range r.Faults {
		out.Faults = append(out.Faults, fault{f.File, f.FileLine, f.From, f.To, f.What})
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}

// auditKeys are what the configured log is checked with. On an error they have no
// signing key.
func (c *Config) auditKeys(peppers *tokenstore.Peppers) (keys audit.Keys, err error) {
	keys.MAC = peppers.AuditKeys()
	if path := c.Audit.SigningKeyFile; path != "" {
		if keys.Signing, err = readVerifyKey(path); err != nil {
			return keys, fmt.Errorf("audit.signing_key_file: %w", err)
		}
	}
	return keys, nil
}

// readSigningKey reads an Ed25519 private key in PEM (RFC 8410 in PKCS #8).
func readSigningKey(path string) (ed25519.PrivateKey, error) {
	parsed, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds no Ed25519 private key", path)
	}
	return key, nil
}

// readVerifyKey reads the public half of a signing key, from either half.
func readVerifyKey(path string) (ed25519.PublicKey, error) {
	parsed, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	switch key := parsed.(type) {
	case ed25519.PublicKey:
		return key, nil
	case ed25519.PrivateKey:
		return key.Public().(ed25519.PublicKey), nil
	}
	return nil, fmt.Errorf("%s holds no Ed25519 key", path)
}

// readPEM reads the one key in a PEM file.
func readPEM(path string) (any, error) {
	b, err := os.ReadFile(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, fmt.Errorf("%s %w", path, fileProblem(err))
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key in PEM form", path)
	}
	if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s holds neither a private key (PKCS #8) nor a public one (PKIX)", path)
	}
	return key, nil
}
