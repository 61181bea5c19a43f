package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"tokenward/admin"
	"tokenward/tokenstore/boltstore"
)

// backupCommand makes a backup, of a running server or of the file itself.
type backupCommand struct {
	server serverFlags
	config string
	out    string
	asJSON bool
}

func newBackupCommand() *cobra.Command {
	var b backupCommand
	cmd := &cobra.Command{
		Use:   "backup -o FILE [--config FILE | --admin URL]",
		Short: "Write a backup of the whole token store to a file",
		Long: "Write a backup of the token store, as it is at one instant, to a new file. A running\n" +
			"server streams it to a root token while it keeps working; with --config the file of\n" +
			"the store is read directly, for which the server must be stopped.\n\n" +
			"The backup appears under its name only once it is complete. It holds digests, no\n" +
			"secrets: keep it as carefully as the store, and the pepper somewhere else.",
		Example: "  tokenward backup -o tokens-2026-11-21.backup --token-file root\n" +
			"  tokenward backup -o tokens.backup --config tokenward.yaml",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return b.run(cmd) },
	}
	b.server.add(cmd)
	cmd.Flags().StringVarP(&b.out, "out", "o", "", "the `file` to write; it must not exist")
	cmd.Flags().StringVar(&b.config, "config", "", "configuration `file` of a server that is stopped")
	cmd.Flags().BoolVar(&b.asJSON, "json", false, "print JSON")
	return cmd
}

func (b *backupCommand) run(cmd *cobra.Command) error {
	switch {
	case b.out == "":
		return usageError{errors.New("where to? Give -o FILE")}
	case b.out == "-":
		return usageError{errors.New("-o needs a file, which is read again and proven before it has its name: give -o FILE, and send that on")}
	case b.config != "" && b.server.admin != "":
		return usageError{errors.New("--config reads the store itself, and --admin asks a server: leave one out")}
	}
	write := b.fromServer
	if b.config != "" {
		write = b.fromStore
	}
	m, err := writeBackup(cmd, b.out, write)
	if err != nil {
		return err
	}
	if b.asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(m)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s holds %s, %d bytes. Prove it elsewhere with `tokenward restore --dry-run %s`.\n", b.out, counted(int(m.Tokens), "token"), m.Bytes, shellWord(filepath.Base(b.out))) //nolint:gosec // a count of tokens
	return err
}

// writeBackup has write make the file at path, reads it again, and gives it its
// name only when it is whole.
func writeBackup(cmd *cobra.Command, path string, write func(*cobra.Command, io.Writer) error) (m boltstore.Manifest, err error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("%s exists already: name another file", path)
	}
	dir, remove, err := makeWorkFolder(filepath.Dir(path), "backup", cmd.ErrOrStderr())
	if err != nil {
		return m, fmt.Errorf("write the backup: %w", err)
	}
	defer func() { err = errors.Join(err, remove()) }()
	tmp, err := os.OpenFile(filepath.Join(dir, "tokens.backup"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // beside what the operator names
	if err != nil {
		return m, fmt.Errorf("write the backup: %w", err)
	}
	defer tmp.Close()
	file := newBackupFile(tmp)
	if err := write(cmd, file); err != nil {
		return m, err
	}
	if err := file.rewind(); err != nil {
		return m, err
	}
	if m, err = boltstore.CheckBackup(file); err != nil {
		return m, fmt.Errorf("what was written is not whole: %w", err)
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return m, fmt.Errorf("write the backup: %w: free space on its disk, then try again", err)
	}
	if err := os.Link(tmp.Name(), path); err != nil {
		return m, fmt.Errorf("name the backup: %w", err)
	}
	return m, boltstore.SyncDir(filepath.Dir(path))
}

func (b *backupCommand) fromStore(cmd *cobra.Command, w io.Writer) (err error) {
	cfg, err := loadConfig(b.config)
	if err != nil {
		return err
	}
	v, err := openVault(cmd.Context(), cfg, newLogger(cfg, cmd.ErrOrStderr()), time.Now, opening{older: true})
	if errors.Is(err, boltstore.ErrInUse) {
		return fmt.Errorf("%w\nLeave out --config to have the server make the backup", err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.close()) }()
	if v.older { // an event of its own would take the number of one that a restore looks for
		fmt.Fprintln(cmd.ErrOrStderr(), "This is an older copy of the store, so the audit log does not record the backup.")
	} else if err := v.service.MayBackup(cmd.Context(), admin.Operator("")); err != nil {
		return err
	}
	return v.backup(cmd.Context(), w, nil)
}

func (b *backupCommand) fromServer(cmd *cobra.Command, w io.Writer) error {
	c, err := b.server.client(cmd)
	if err != nil {
		return err
	}
	c.http.Timeout = 0 // it takes as long as it takes; what breaks off is noticed
	return c.stream(cmd.Context(), call{doing: "make a backup", method: http.MethodGet, path: "/backup"}, "application/octet-stream", w)
}
