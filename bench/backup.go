//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// backupCase compares requests a second with and without hot backups of the whole
// store, taken one after the other over the admin API, in turn: by the command, which
// writes and proves a file on the same machine, and by a reader that costs this machine
// as little as if it were another.
func backupCase(ctx context.Context, o options, f *field) error {
	root, err := f.newRoot(ctx, o)
	if err != nil {
		return err
	}
	l := load{method: "GET", path: "/accounts/10000/small", connections: 64, keys: f.secrets}
	if _, err := f.drive(ctx, o, f.peers[tokenward], l); err != nil {
		return err
	}
	alone, err := f.backup(ctx, o, root)
	if err != nil {
		return err
	}
	kinds := []struct {
		name string
		take func(context.Context, options, string) (backupTaken, error) // nil: none
	}{{"nothing", nil}, {"backups by the command", f.backup}, {"backups to elsewhere", f.readBackup}}
	samples, took := make(map[string][]sample), make(map[string][]backupTaken)
	for round := range o.rounds {
		for i := range kinds {
			k := kinds[(i+round)%len(kinds)]
			fmt.Fprintf(os.Stderr, "\rround %d of %d: %-24s", round+1, o.rounds, k.name)
			s, made, err := f.driveBeside(ctx, o, l, func() (backupTaken, error) { return k.take(ctx, o, root) }, k.take != nil)
			if err != nil {
				return err
			}
			samples[k.name], took[k.name] = append(samples[k.name], s), append(took[k.name], made...)
		}
	}
	fmt.Fprintf(os.Stderr, "\r%50s\r", "")
	fmt.Printf("%d tokens, %.0f MB. The command by itself takes %.2f s, and of these %.2f s of processor time.\n\n", o.tokens, mb(alone.bytes), alone.elapsed.Seconds(), alone.cpu.Seconds())
	fmt.Println("| beside the requests | requests/s | as a ratio (goal 0.95) | CPU µs/request, backup included | as a ratio | s for one (goal 10 for 1,000,000) |")
	fmt.Println("|---|---|---|---|---|---|")
	for _, k := range kinds {
		var seconds []float64
		for _, b := range took[k.name] {
			seconds = append(seconds, b.elapsed.Seconds())
		}
		one := ""
		if len(seconds) > 0 {
			one = spreadOf(seconds).String()
		}
		fmt.Printf("| %s | %.0f | %s | %s | %s | %s |\n", k.name, values(samples[k.name], sample.rate).median, ratios(samples[k.name], samples[kinds[0].name], sample.rate),
			values(samples[k.name], microsecondsOfCPU), ratios(samples[k.name], samples[kinds[0].name], microsecondsOfCPU), one)
	}
	return nil
}

// backupTaken is what one backup cost.
type backupTaken struct {
	elapsed time.Duration
	cpu     time.Duration // of the command, where it is one
	bytes   int64
}

// driveBeside measures while backups are taken, if they are. The last of them ends
// after the measurement, since one that breaks off says nothing.
func (f *field) driveBeside(ctx context.Context, o options, l load, take func() (backupTaken, error), backups bool) (sample, []backupTaken, error) {
	measured := make(chan struct{})
	ended := make(chan error, 1)
	var made []backupTaken
	go func() {
		for going := backups; going; {
			b, err := take()
			if err != nil {
				ended <- err
				return
			}
			made = append(made, b)
			select {
			case <-measured:
				going = false
			default:
			}
		}
		ended <- nil
	}()
	s, err := f.drive(ctx, o, f.peers[tokenward], l)
	close(measured)
	return s, made, errors.Join(err, <-ended)
}

// readBackup takes one as a reader on another machine would: this one's processors
// send it, and the kernel throws it away unread. HTTP/1.0 spares it the chunks; a
// stream that is cut ends in a reset then.
func (f *field) readBackup(ctx context.Context, _ options, root string) (b backupTaken, err error) {
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", local(portAdmin))
	if err != nil {
		return b, err
	}
	defer nc.Close()
	began := time.Now()
	fmt.Fprintf(nc, "GET /v1/backup HTTP/1.0\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", local(portAdmin), root)
	r := bufio.NewReader(nc)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return b, err
	}
	if resp.StatusCode != http.StatusOK {
		return b, fmt.Errorf("backup: %s", resp.Status)
	}
	n, err := throwAway(nc.(*net.TCPConn))
	b.bytes, b.elapsed = int64(r.Buffered())+n, time.Since(began)
	return b, err
}

// throwAway has the kernel drop what arrives until the end, a MiB at a time, and
// counts it (tcp(7), MSG_TRUNC and SO_RCVLOWAT).
func throwAway(nc *net.TCPConn) (n int64, err error) {
	raw, err := nc.SyscallConn()
	if err != nil {
		return 0, err
	}
	unread := make([]byte, 1<<20)
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, len(unread))
	}); err != nil || failed != nil {
		return 0, errors.Join(err, failed)
	}
	err = raw.Read(func(fd uintptr) bool {
		for {
			got, _, err := syscall.Recvfrom(int(fd), unread, syscall.MSG_TRUNC|syscall.MSG_DONTWAIT)
			switch {
			case errors.Is(err, syscall.EAGAIN):
				return false
			case errors.Is(err, syscall.EINTR):
				continue
			case err != nil || got == 0:
				failed = err
				return true
			}
			n += int64(got)
		}
	})
	return n, errors.Join(err, failed)
}

// backup takes one and removes it.
func (f *field) backup(ctx context.Context, o options, root string) (b backupTaken, err error) {
	path := filepath.Join(f.dir, "tokens.backup")
	cmd := exec.CommandContext(ctx, o.binary, "backup", "--admin", "http://"+local(portAdmin), "-o", path, "--json") //nolint:gosec // the harness names it
	cmd.Env = append(slices.Clone(os.Environ()), "TOKENWARD_TOKEN="+root)
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return b, fmt.Errorf("backup: %w: %s", err, out)
	}
	b.elapsed = time.Since(began)
	b.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	info, err := os.Stat(path)
	if err != nil {
		return b, err
	}
	b.bytes = info.Size()
	return b, os.Remove(path)
}

// newRoot gives the store of the benchmark a root token, with tokenward stopped
// meanwhile, and returns its secret.
func (f *field) newRoot(ctx context.Context, o options) (string, error) {
	var made struct{ Token string }
	err := f.withTokenwardStopped(ctx, o, "tokenward.yaml", func() error {
		out, err := exec.CommandContext(ctx, o.binary, "init", "--config", filepath.Join(f.dir, "tokenward.yaml"), "--new-root", "--json").Output() //nolint:gosec // the harness names it
		if err != nil {
			return fmt.Errorf("make a root token: %w: %s", err, stderrOf(err))
		}
		return json.Unmarshal(out, &made)
	})
	return made.Token, err
}

func stderrOf(err error) []byte {
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		return failed.Stderr
	}
	return nil
}
