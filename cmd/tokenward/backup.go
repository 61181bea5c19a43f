package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptrace"
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
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tokenward-backup-*")
	if err != nil {
		return m, fmt.Errorf("write the backup: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(tmp.Name())) }()
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
	return m, syncFolder(filepath.Dir(path))
}

func syncFolder(path string) error {
	d, err := os.Open(path) //nolint:gosec // the operator names it
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (b *backupCommand) fromStore(cmd *cobra.Command, w io.Writer) (err error) {
	cfg, err := loadConfig(b.config)
	if err != nil {
		return err
	}
	v, err := openVault(cmd.Context(), cfg, newLogger(cfg, cmd.ErrOrStderr()), time.Now, opening{})
	if errors.Is(err, boltstore.ErrInUse) {
		return fmt.Errorf("%w\nLeave out --config to have the server make the backup", err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.close()) }()
	if err := v.service.MayBackup(cmd.Context(), admin.Operator("")); err != nil {
		return err
	}
	return v.backup(cmd.Context(), w, nil)
}

// A server takes backupToken for each token of a backup, so that a million take 8.7 s
// and the command has a second to prove them within 10. As fast as it can it takes most of a
// processor from the requests meanwhile; slower, the store's file grows for longer.
// A file that is large for its few tokens goes by at backupBytes a second.
const (
	backupToken = 8700 * time.Nanosecond
	backupBytes = 150e6
)

// backup streams a backup, at the pace that leaves room for requests.
func (a *app) backup(ctx context.Context, w io.Writer) error {
	p := pacer{ctx: ctx}
	return a.vault.backup(ctx, w, p.wait)
}

// pacer spreads a backup over its time. Of what takes longer by itself, no more than
// lagMost is made up for.
type pacer struct {
	ctx  context.Context // lives as long as one call
	done int64           // bytes of the file
	due  time.Time       // when they may have been written
}

// pauseLeast makes bursts of some 2 ms of a processor. A processor that is to be woken
// for each, on both sides, costs more with smaller ones.
const pauseLeast = 20 * time.Millisecond

// lagMost is as long as a disk may keep the command waiting, now and then, without the
// backup taking longer for it. What is made up for goes as fast as it can.
const lagMost = 250 * time.Millisecond

// wait returns once the backup may go on from where it has done so many bytes of the
// file, or its context has ended.
func (p *pacer) wait(m *boltstore.Manifest, done int64) error {
	now := time.Now()
	if p.due.IsZero() {
		p.due = now
	} else if latest := now.Add(-lagMost); p.due.Before(latest) {
		p.due = latest
	}
	whole := max(float64(m.Tokens)*float64(backupToken), float64(m.Bytes)/backupBytes*float64(time.Second))
	p.due = p.due.Add(time.Duration(whole * float64(done-p.done) / float64(m.Bytes)))
	p.done = done
	ahead := p.due.Sub(now)
	if ahead < pauseLeast {
		return nil
	}
	pause := time.NewTimer(ahead)
	defer pause.Stop()
	select {
	case <-pause.C:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (b *backupCommand) fromServer(cmd *cobra.Command, w io.Writer) error {
	c, err := b.server.client(cmd)
	if err != nil {
		return err
	}
	c.http.Timeout = 0 // it takes as long as it takes; what breaks off is noticed
	return c.stream(cmd.Context(), call{doing: "make a backup", method: http.MethodGet, path: "/backup"}, "application/octet-stream", w)
}

// streamPart is how much of a stream is waited for before it is read, for as long as
// streamPause brings so much.
const (
	streamPart  = 4 << 20 // bytes
	streamPause = 5 * time.Second
)

// timedReader puts a timer off with each read.
type timedReader struct {
	r     io.Reader
	timer *time.Timer
}

func (t *timedReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.timer.Reset(streamPause)
	return n, err
}

// stream makes a call whose answer is no JSON and long, and copies it to w. The
// connection is closed behind it, and so the end is heard of even while more is
// waited for.
func (c *client) stream(ctx context.Context, one call, media string, w io.Writer) error {
	one.media, one.last = media, true
	var conn net.Conn
	resp, err := c.open(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { conn = info.Conn },
	}), one, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body := io.Reader(resp.Body)
	if resp.Close && wakeFor(conn, streamPart) {
		each := time.AfterFunc(streamPause, func() { wakeFor(conn, 1) })
		defer each.Stop()
		body = &timedReader{body, each}
	}
	if _, err := io.Copy(w, body); err != nil {
		return &lostError{c, one, err}
	}
	return nil
}
