package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tokenward/admin"
	"tokenward/audit"
	"tokenward/tokenstore"
)

func newInitCommand() *cobra.Command {
	var config string
	var asJSON, newRoot bool
	cmd := &cobra.Command{
		Use:   "init --config FILE",
		Short: "Make a new token store and its root token",
		Long: "Make the token store that the configuration names, and its root token, whose\n" +
			"secret is printed once. With --new-root, on a store that is not being served,\n" +
			"make another root token in the place of a lost one; the lost one is revoked, with\n" +
			"all root tokens that were made here or by resetting one of these.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(config)
			if err != nil {
				return err
			}
			log := newLogger(cfg, cmd.ErrOrStderr())
			made, others, err := initialise(cmd.Context(), cfg, log, newRoot)
			if err != nil {
				return err
			}
			tellBrokenPipe()
			if err := printRoot(cmd.OutOrStdout(), cfg, made, others, asJSON); err != nil {
				return fmt.Errorf("root token %d was made, but its secret could not be printed, and cannot be read again: %w\nTo have another in its place, run `tokenward init --new-root --config %s`", made.Token.ID, err, shellWord(config))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", "tokenward.yaml", "configuration file")
	cmd.Flags().BoolVar(&asJSON, "json", false, `print {"id":1,"token":"…"}`)
	cmd.Flags().BoolVar(&newRoot, "new-root", false, "replace a lost root token of an existing store")
	return cmd
}

// initialise makes the store and its root token, or with newRoot another root
// token in an existing store. It also completes an initialisation that was cut
// short between the two.
func initialise(ctx context.Context, cfg *Config, log *slog.Logger, newRoot bool) (made admin.Made, others admin.OtherRoots, err error) {
	v, err := openVault(ctx, cfg, log, time.Now, opening{create: !newRoot})
	if err != nil {
		return made, others, err
	}
	defer func() { err = errors.Join(err, v.close()) }()
	if err := v.readied(ctx); err != nil {
		return made, others, err
	}
	if newRoot {
		made, others, err = v.service.NewRoot(ctx)
	} else {
		made, err = v.service.Bootstrap(ctx, tokenstore.Secret{})
	}
	return made, others, err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func printRoot(w io.Writer, cfg *Config, made admin.Made, others admin.OtherRoots, asJSON bool) error {
	secret := made.Secret.Reveal()
	if asJSON {
		return json.NewEncoder(w).Encode(struct {
			ID    tokenstore.ID `json:"id"`
			Token string        `json:"token"`
		}{made.Token.ID, secret})
	}
	var text strings.Builder
	fmt.Fprintf(&text, "Root token %d, shown this once:\n\n    %s\n\n", made.Token.ID, secret)
	for _, id := range others.Revoked {
		fmt.Fprintf(&text, "Revoked: root token %d\n", id)
	}
	for _, t := range others.Left {
		fmt.Fprintf(&text, "Not revoked: root token %d (%s), which token %d made: revoke it too if the lost one may have come into other hands\n", t.ID, shownText(t.Name), t.Creator.ID)
	}
	fmt.Fprintf(&text, "It can do everything. Keep it where secrets are kept, and make lesser tokens with it:\n\n"+
		"    export TOKENWARD_ADMIN=%s TOKENWARD_TOKEN=<the root token>\n"+
		"    tokenward token create --name first --scopes '*'\n", cfg.adminURL())
	_, err := io.WriteString(w, text.String())
	return err
}

// The environment can make the root secret known before the first start. A file
// is the better of the two: the environment shows in the process table.
const (
	envBootstrapFile  = "TOKENWARD_BOOTSTRAP_TOKEN_FILE"
	envBootstrapToken = "TOKENWARD_BOOTSTRAP_TOKEN" //nolint:gosec // a name, not a secret
)

// openOrBootstrap opens the store for serving. Where the environment gives a root
// secret and there is no store yet, it makes one. A store that was never
// initialised is refused with what to type. One that was needs no root secret, so
// that what is wrong with the environment's keeps nothing from starting: the
// secret is taken away after the first start, and the variable often later.
func openOrBootstrap(ctx context.Context, cfg *Config, log *slog.Logger, now func() time.Time, observe func(audit.Progress)) (_ *vault, err error) {
	secret, unusable := bootstrapSecret()
	v, err := openVault(ctx, cfg, log, now, opening{create: !secret.IsZero(), serve: true, observe: observe})
	if err != nil {
		return nil, errors.Join(unusable, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.close())
		}
	}()
	initialised, err := v.service.Initialised(ctx)
	switch {
	case err != nil:
		return nil, err
	case unusable != nil && !initialised:
		return nil, unusable
	case unusable != nil:
		log.Warn("the root secret given by the environment cannot be read, and is not needed: the store is initialised already; remove it from the environment", "error", unusable)
	case initialised && !secret.IsZero():
		log.Warn("the root secret given by the environment is ignored: the store is initialised already; remove it from the environment", "variable", envBootstrapFile+" or "+envBootstrapToken)
	case !initialised && secret.IsZero():
		return nil, admin.ErrNotInitialised
	case !initialised:
		prefix, _, _ := strings.Cut(secret.Reveal(), "_")
		if err := v.recordPrefix(ctx, prefix); err != nil {
			return nil, err
		}
		made, err := v.service.Bootstrap(ctx, secret)
		if err != nil {
			return nil, err
		}
		log.Info("the store was initialised with the root secret given by the environment", "root_token_id", made.Token.ID)
	}
	return v, nil
}

// bootstrapSecret reads the root secret that the environment gives; the zero
// Secret where it gives none.
func bootstrapSecret() (tokenstore.Secret, error) {
	text, from := os.Getenv(envBootstrapToken), envBootstrapToken
	if path := os.Getenv(envBootstrapFile); path != "" {
		if text != "" {
			return tokenstore.Secret{}, fmt.Errorf("both %s and %s are set: keep the file and unset the other", envBootstrapFile, envBootstrapToken)
		}
		b, err := os.ReadFile(path) //nolint:gosec // the operator names it
		if err != nil {
			return tokenstore.Secret{}, fmt.Errorf("%s cannot be read: put a file with a root secret there, or unset the variable: %w", envBootstrapFile, err)
		}
		text, from = strings.TrimSpace(string(b)), path
		if text == "" {
			return tokenstore.Secret{}, fmt.Errorf("%s (%s) is empty: write a root secret into it, or unset the variable", envBootstrapFile, path)
		}
	}
	if text == "" {
		return tokenstore.Secret{}, nil
	}
	prefix, _, _ := strings.Cut(text, "_")
	if !tokenstore.ValidPrefix(prefix) || tokenstore.NewFormats(prefix).Classify([]byte(text)) != tokenstore.ClassOurs {
		return tokenstore.Secret{}, fmt.Errorf("%s holds no secret in the form of tokenward (prefix, underscore, 32 random characters, 6 of checksum): use one that `tokenward init --json` made with a store of its own", from)
	}
	return tokenstore.SecretFrom(text), nil
}
