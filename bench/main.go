//go:build linux

// Command bench measures tokenward beside the proxies that people would use in
// its place: nginx with a key map, HAProxy with a key file, and the standard
// library's reverse proxy with a SHA-256 check. All of them, and a direct line,
// lead to the same upstream and are driven by the same client, in alternating
// rounds of one run, so that what is quoted is a ratio and not the speed of a
// noisy machine.
//
// `bench cluster` measures nodes around three members of etcd, each in a process of
// its own.
//
// It needs nginx, haproxy and wrk, reads processor times from /proc, which is why it is
// for Linux alone, and stays on the loopback interface.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 { // what we start ourselves
		switch os.Args[1] {
		case "reverseproxy":
			exit(runReverseProxy(os.Args[2:]))
		case "cluster":
			exit(runCluster(os.Args[2:]))
		case "etcdmember":
			exit(runEtcdMember(os.Args[2:]))
		}
	}
	var o options
	flag.IntVar(&o.rounds, "rounds", 7, "rounds of each case; an odd number has a median of its own")
	flag.DurationVar(&o.duration, "duration", 3*time.Second, "length of one measurement")
	flag.IntVar(&o.tokens, "tokens", 1_000_000, "tokens in tokenward's store")
	flag.IntVar(&o.active, "active", 1000, "tokens in use")
	flag.StringVar(&o.cases, "cases", "", "run only the cases whose name contains one of these, separated by commas")
	flag.StringVar(&o.dir, "dir", filepath.Join(os.TempDir(), "tokenward-bench"), "where configurations and the filled store are kept between runs")
	flag.StringVar(&o.binary, "tokenward", "bin/tokenward", "the binary to measure")
	flag.StringVar(&o.profile, "profile", "", "measure nothing, and write the profile by which the program is compiled to this file")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(bench(ctx, o))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

type options struct {
	rounds         int
	duration       time.Duration
	tokens, active int
	cases          string
	dir, binary    string
	profile        string
}

func (o *options) wants(name string) bool {
	if o.cases == "" {
		return true
	}
	for part := range strings.SplitSeq(o.cases, ",") {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

func bench(ctx context.Context, o options) (err error) {
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	fmt.Println(describeMachine())
	secrets, err := fillStore(ctx, o)
	if err != nil {
		return err
	}
	field, err := startField(ctx, o, secrets)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, field.stop()) }()
	if o.profile != "" {
		return writeProfile(ctx, o, field, o.profile)
	}
	for _, c := range benchCases {
		if !o.wants(c.name) || ctx.Err() != nil {
			continue
		}
		fmt.Printf("\n## %s\n\n", c.name)
		if err := c.run(ctx, o, field); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return ctx.Err()
}
