//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is one server with all its children, which do the work in nginx.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *os.File
}

// start runs a command until stop; its output goes to a file.
func start(ctx context.Context, dir, name string, args ...string) (*process, error) {
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(args[0], args[1:]...) //nolint:gosec // the harness names it
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return &process{name: name, cmd: cmd, log: log}, ctx.Err()
}

func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait() // how it ends says nothing about what was measured
	return p.log.Close()
}

// pids returns the process and its direct children.
func (p *process) pids() []int {
	pids := []int{p.cmd.Process.Pid}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[0]))
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// cpu returns the processor time that the process and its children have used.
// Fields 14 and 15 of /proc/PID/stat are in clock ticks, 100 a second on Linux.
func (p *process) cpu() (time.Duration, error) {
	var ticks int64
	for _, pid := range p.pids() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
		for _, f := range fields[11:13] {
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				return 0, err
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// rssAnon returns the anonymous resident memory in bytes.
func (p *process) rssAnon() (int64, error) {
	var total int64
	for _, pid := range p.pids() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		_, rest, ok := strings.Cut(string(b), "RssAnon:")
		fields := strings.Fields(rest)
		if !ok || len(fields) == 0 {
			return 0, fmt.Errorf("no RssAnon of process %d", pid)
		}
		kib, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return 0, err
		}
		total += kib << 10
	}
	return total, nil
}

// waitFor returns once something accepts at address.
func waitFor(ctx context.Context, p *process, address string) error {
	for range 200 {
		nc, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			return nc.Close()
		}
		if p.cmd.ProcessState != nil || ctx.Err() != nil {
			break
		}
		time.Sleep(25 * time.Millisecond)
	}
	return fmt.Errorf("%s does not listen on %s: see %s", p.name, address, p.log.Name())
}

func describeMachine() string {
	cpu := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(b), "model name\t: "); ok {
			cpu, _, _ = strings.Cut(rest, "\n")
		}
	}
	n := strings.Count(read("/proc/cpuinfo"), "processor\t:")
	return fmt.Sprintf("%s, %d cores, Linux %s, %s", cpu, n, strings.TrimSpace(read("/proc/sys/kernel/osrelease")), time.Now().UTC().Format(time.DateOnly))
}

func read(path string) string {
	b, _ := os.ReadFile(path) //nolint:gosec // the harness names it
	return string(b)
}
