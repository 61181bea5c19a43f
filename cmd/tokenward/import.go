package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tokenward/admin"
	"tokenward/admin/native"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/importer"
)

// importFlags say what is imported, and how.
type importFlags struct {
	config, format, digest string
	exportedAt             string
	dryRun, allowWeak      bool
	account, owner         uint64
	scopes                 []string
}

func (t *tokenCommand) newImport() *cobra.Command {
	var f importFlags
	cmd := &cobra.Command{
		Use:   "import --format FORMAT FILE",
		Short: "Import tokens that customers already hold",
		Long: "Import tokens that customers already hold, by their secrets or by digests of them,\n" +
			"so that nobody has to change a key. FILE - is standard input.\n\n" +
			"Formats: csv (the first line names the columns), jsonl (one object on each line, in the\n" +
			"words of the native API), and the exports of kong, tyk and apisix, in JSON or YAML. Digests\n" +
			"are sha256 or hmac-sha256 (with the key in tokenstore.import_key_files), in hexadecimal or\n" +
			"base64. A ttl of kong counts from its export: from when FILE was last written, or from now\n" +
			"for standard input, unless --exported-at says when that was.\n\n" +
			"Run it with --dry-run first. A secret that a token has or ever had is refused, also one\n" +
			"that was revoked. --config imports into the store of a stopped server.",
		Example: "  tokenward token import --format kong --scopes accounts:read --dry-run key-auths.json\n" +
			"  tokenward token import --format csv --digest sha256 --config tokenward.yaml keys.csv",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return t.importFile(cmd, &f, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.format, "format", "", "the file's `format`: "+strings.Join(importer.Formats(), ", "))
	flags.StringVar(&f.digest, "digest", "", "`kind` of digest that stands in the place of the key: none, sha256, hmac-sha256")
	flags.StringVar(&f.config, "config", "", "configuration `file` of a server that is stopped")
	flags.StringVar(&f.exportedAt, "exported-at", "", "`time` (RFC 3339) that kong's ttl counts from")
	flags.BoolVar(&f.dryRun, "dry-run", false, "say what would be imported and what refused, and change nothing")
	flags.BoolVar(&f.allowWeak, "allow-weak", false, "accept secrets of less than 80 bits too")
	flags.Uint64Var(&f.account, "account", 0, "account `number` of tokens for which the file names none")
	flags.Uint64Var(&f.owner, "owner", 0, "owner `number` likewise")
	flags.StringSliceVar(&f.scopes, "scopes", nil, "`scopes` of tokens for which the file names none")
	mustComplete(cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(importer.Formats(), cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// taker takes one batch of an import.
type taker func(ctx context.Context, batch []importer.Item) (native.ImportAnswer, error)

func (t *tokenCommand) importFile(cmd *cobra.Command, f *importFlags, path string) (err error) {
	in, exported := cmd.InOrStdin(), time.Now()
	if path != "-" {
		file, err := os.Open(path) //nolint:gosec // the operator names it
		if err != nil {
			return fmt.Errorf("%s %w: name the file with the export, - for standard input", path, fileProblem(err))
		}
		defer file.Close()
		in = file
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
			exported = info.ModTime()
		}
	}
	if f.exportedAt != "" {
		at, ok := tokenstore.ParseTime(f.exportedAt)
		if !ok {
			return usageError{fmt.Errorf("--exported-at %q is not a time: write it as 2026-11-21T12:00:00Z", f.exportedAt)}
		}
		exported = at
	}
	items, err := importer.Read(f.format, in, importer.Options{Digest: f.digest, ExportedAt: exported})
	if err != nil {
		return usageError{err}
	}
	var take taker
	if f.config != "" {
		v, err := f.open(cmd)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, v.close()) }()
		take = func(ctx context.Context, batch []importer.Item) (native.ImportAnswer, error) {
			return v.importItems(ctx, admin.Operator(""), batch, f.options())
		}
	} else {
		c, err := t.server.client(cmd)
		if err != nil {
			return err
		}
		take = func(ctx context.Context, batch []importer.Item) (native.ImportAnswer, error) {
			return c.importItems(ctx, batch, f.options())
		}
	}
	total, err := f.run(cmd, items, take)
	slices.SortStableFunc(total.Refused, func(a, b native.ImportRefusal) int { return cmp.Compare(a.Line, b.Line) })
	if werr := t.writeImported(cmd.OutOrStdout(), f, &total); err == nil {
		err = werr
	}
	if n := len(total.Refused); err == nil && n > 0 {
		err = fmt.Errorf("%s refused: see above; the others are not touched by that", were(n))
	}
	return err
}

func (f *importFlags) options() admin.ImportOptions {
	return admin.ImportOptions{DryRun: f.dryRun, AllowWeak: f.allowWeak}
}

func (f *importFlags) open(cmd *cobra.Command) (*vault, error) {
	cfg, err := loadConfig(f.config)
	if err != nil {
		return nil, err
	}
	v, err := openVault(cmd.Context(), cfg, newLogger(cfg, cmd.ErrOrStderr()), time.Now, opening{})
	if errors.Is(err, boltstore.ErrInUse) {
		return nil, fmt.Errorf("%w\nLeave out --config to have the server do it", err)
	}
	return v, err
}

// run takes the items in batches, and shows how far it is.
func (f *importFlags) run(cmd *cobra.Command, items iter.Seq2[importer.Item, error], take taker) (total native.ImportAnswer, err error) {
	batch := make([]importer.Item, 0, admin.MaxImport)
	known := knownKeys{}
	total.DryRun, total.Refused = f.dryRun, []native.ImportRefusal{}
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		one, err := take(cmd.Context(), batch)
		if err != nil {
			return fmt.Errorf("%w\nUp to then %s taken; run it again, and what was taken is refused as known", err, were(total.Imported))
		}
		total.Add(one)
		if f.dryRun {
			known.add(batch, one.Refused)
		}
		batch = batch[:0]
		fmt.Fprintf(cmd.ErrOrStderr(), "%d taken, %d refused\n", total.Imported, len(total.Refused))
		return nil
	}
	for item, err := range items {
		if e, ok := errors.AsType[*importer.LineError](err); ok {
			total.Refused = append(total.Refused, native.ImportRefusal{Line: e.Line, Detail: e.Detail})
			continue
		}
		if err != nil {
			return total, errors.Join(err, flush())
		}
		f.complete(&item)
		if known[keyOf(&item)] {
			total.Refused = append(total.Refused, native.ImportRefusal{Line: item.Line, Detail: "has the secret of an earlier one"})
			continue
		}
		if batch = append(batch, item); len(batch) == cap(batch) {
			if err := flush(); err != nil {
				return total, err
			}
		}
	}
	return total, flush()
}

// knownKeys are what a dry run would have taken in the batches before: nothing is
// stored that the next batch could be compared with.
type knownKeys map[[16]byte]bool

// add notes the items of a batch but for those that were refused.
func (k knownKeys) add(batch []importer.Item, refused []native.ImportRefusal) {
	lines := make(map[int]bool, len(refused))
	for _, r := range refused {
		lines[r.Line] = true
	}
	for i := range batch {
		if !lines[batch[i].Line] {
			k[keyOf(&batch[i])] = true
		}
	}
}

// keyOf is the same for a secret and for its SHA-256, and takes little room.
func keyOf(item *importer.Item) [16]byte {
	digest := item.Digest
	switch {
	case !item.Secret.IsZero():
		digest = tokenstore.SHA256(item.Secret.Reveal())
	case item.Scheme == tokenstore.SchemeHMAC:
		digest = tokenstore.SHA256("hmac" + string(digest[:])) // the SHA-256 of another text may be the same
	}
	return [16]byte(digest[:16])
}

// complete fills in what the file does not say.
func (f *importFlags) complete(item *importer.Item) {
	if item.Account == nil && f.account != 0 {
		item.Account = &f.account
	}
	if item.Owner == nil && f.owner != 0 {
		item.Owner = &f.owner
	}
	if item.Scopes == nil {
		item.Scopes = f.scopes
	}
	if item.Name == "" {
		item.Name = fmt.Sprintf("imported, entry %d", item.Line)
	}
}

func (t *tokenCommand) writeImported(w io.Writer, f *importFlags, total *native.ImportAnswer) error {
	if t.asJSON {
		return json.NewEncoder(w).Encode(total)
	}
	var b strings.Builder
	for _, r := range total.Refused {
		fmt.Fprintf(&b, "entry %d: %s\n", r.Line, shownText(r.Detail))
	}
	verb := "imported"
	if f.dryRun {
		verb = "that would be imported"
	}
	fmt.Fprintf(&b, "%s %s", counted(total.Imported, "token"), verb)
	if total.FirstID != 0 {
		fmt.Fprintf(&b, ", ids %d to %d", total.FirstID, total.LastID)
	}
	fmt.Fprintf(&b, "; %d refused.\n", len(total.Refused))
	_, err := io.WriteString(w, b.String())
	return err
}

// importItems takes a batch into the store.
func (v *vault) importItems(ctx context.Context, c admin.Caller, batch []importer.Item, o admin.ImportOptions) (native.ImportAnswer, error) {
	items := make([]admin.ImportItem, len(batch))
	for i := range batch {
		b := &batch[i]
		items[i] = admin.ImportItem{
			Line: b.Line, Secret: b.Secret, Digest: b.Digest, Scheme: b.Scheme, Last4: b.Last4, Disabled: b.Disabled,
			Spec: admin.Spec{
				Account: b.Account, Owner: b.Owner, Name: b.Name, Scopes: b.Scopes, Resources: b.Resources, Sources: b.Sources,
				NotBefore: b.NotBefore, Expiry: b.Expiry, Limits: b.Limits,
			},
		}
		if items[i].Spec.Limits == nil {
			items[i].Spec.Limits = &tokenstore.Limits{}
		}
	}
	done, err := v.service.Import(ctx, c, items, o)
	return native.ImportAnswerOf(&done, o), err
}

// importBody is what `POST /v1/import` does with its body.
func (v *vault) importBody(ctx context.Context, c admin.Caller, body io.Reader, o admin.ImportOptions) (native.ImportAnswer, error) {
	lines, err := importer.Read("jsonl", body, importer.Options{})
	if err != nil {
		return native.ImportAnswer{}, err
	}
	var batch []importer.Item
	var refused []native.ImportRefusal
	for item, err := range lines {
		if e, ok := errors.AsType[*importer.LineError](err); ok {
			refused = append(refused, native.ImportRefusal{Line: e.Line, Detail: e.Detail})
			continue
		}
		if e := admin.BodyError(err); err != nil && e.Kind != admin.KindMalformed {
			return native.ImportAnswer{}, e
		}
		if err != nil {
			return native.ImportAnswer{}, &admin.Error{Kind: admin.KindMalformed, Detail: "The body cannot be read: " + err.Error() + "."}
		}
		if len(batch) == admin.MaxImport {
			return native.ImportAnswer{}, &admin.Error{Kind: admin.KindTooLarge, Detail: fmt.Sprintf("At most %d tokens can be imported by one call.", admin.MaxImport)}
		}
		batch = append(batch, item)
	}
	answer, err := v.importItems(ctx, c, batch, o)
	answer.Refused = append(answer.Refused, refused...)
	return answer, err
}

// importItems has the server take a batch.
func (c *client) importItems(ctx context.Context, batch []importer.Item, o admin.ImportOptions) (answer native.ImportAnswer, err error) {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	for i := range batch {
		if err := enc.Encode(importLine(&batch[i])); err != nil {
			return answer, err
		}
	}
	one := call{doing: "import tokens", method: http.MethodPost, path: "/import", query: url.Values{}, raw: body.Bytes(), rawMedia: "application/x-ndjson"}
	if o.DryRun {
		one.query.Set("dry_run", "true")
	}
	if o.AllowWeak {
		one.query.Set("allow_weak", "true")
	}
	b, err := c.do(ctx, one)
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return answer, c.strange(one, err.Error())
	}
	for i, r := range answer.Refused { // the server counts lines of the body
		if r.Line >= 1 && r.Line <= len(batch) {
			answer.Refused[i].Line = batch[r.Line-1].Line
		}
	}
	return answer, nil
}

// importLine is an item in the form of `POST /v1/import`.
func importLine(item *importer.Item) map[string]any {
	line := map[string]any{"name": item.Name, "scopes": item.Scopes, "disabled": item.Disabled}
	if item.Scopes == nil {
		delete(line, "scopes")
	}
	if item.Secret.IsZero() {
		line["digest"], line["digest_type"], line["last4"] = hex.EncodeToString(item.Digest[:]), item.Scheme.String(), item.Last4
	} else {
		line["secret"] = item.Secret.Reveal()
	}
	for name, n := range map[string]*uint64{"account": item.Account, "owner": item.Owner} {
		if n != nil {
			line[name] = *n
		}
	}
	if r := item.Resources; r != nil {
		line["resources"] = grantList(r)
	}
	if s := item.Sources; s != nil {
		line["sources"] = "any"
		if !s.Any {
			line["sources"] = map[string][]netip.Prefix{"allow": s.Allow, "deny": s.Deny}
		}
	}
	if !item.NotBefore.IsZero() {
		line["not_before"] = wireTime(item.NotBefore)
	}
	if e := item.Expiry; e != nil {
		line["expires_at"] = nil
		if !e.Never {
			line["expires_at"] = wireTime(e.At)
		}
	}
	if l := item.Limits; l != nil {
		quota := []map[string]any{}
		for _, q := range l.Quotas {
			quota = append(quota, map[string]any{"count": q.Count, "per": q.Per.String()})
		}
		line["limits"] = map[string]any{"rate": l.Rate, "burst": l.Burst, "uses": l.Uses, "concurrent": l.Concurrent, "quota": quota}
	}
	return line
}

func grantList(r *tokenstore.Resources) any {
	if r.All {
		return "all"
	}
	list := []map[string]string{}
	for _, g := range r.Grants {
		list = append(list, map[string]string{"type": g.Type, "id": g.ID, "level": g.Level.String()})
	}
	return list
}

// recordForeign notes in the store that it holds secrets from elsewhere, and lets
// the cache look for them.
func (v *vault) recordForeign(ctx context.Context, scheme tokenstore.Scheme) error {
	keys := []tokenstore.PepperID{{}}
	if scheme == tokenstore.SchemeHMAC {
		keys = v.importKeys.IDs() // which of them made a digest does not show, so all are needed
	}
	for _, key := range keys {
		if err := v.store.RecordForeign(ctx, tokenstore.Foreign{Scheme: scheme, Key: key}); err != nil {
			return err
		}
	}
	v.cache.SetFormats(v.store.Formats())
	return nil
}

// readImportKeys reads the configured keys, and checks that the store needs no
// other.
func readImportKeys(paths []string, store secretForms) (*tokenstore.ImportKeys, error) {
	var files [][]byte
	for _, path := range paths {
		b, err := os.ReadFile(path) //nolint:gosec // the operator names it
		if err != nil {
			return nil, fmt.Errorf("tokenstore.import_key_files: %s %w", path, fileProblem(err))
		}
		files = append(files, b)
	}
	keys, err := tokenstore.NewImportKeys(files...)
	if err != nil {
		return nil, fmt.Errorf("tokenstore.import_key_files: %w", err)
	}
	kinds, err := store.Foreign()
	if err != nil {
		return nil, err
	}
	have := map[tokenstore.PepperID]bool{{}: true}
	for _, id := range keys.IDs() {
		have[id] = true
	}
	for _, kind := range kinds {
		if !have[kind.Key] {
			return nil, errors.New("the store holds imported digests under the key of id " + kind.Key.String() + ", which tokenstore.import_key_files does not hold: put the file back into the list")
		}
	}
	return keys, nil
}
