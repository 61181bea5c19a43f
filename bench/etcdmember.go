//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"tokenward/tokenstore/etcdstore/etcdtest"
)

// runEtcdMember is one member of an etcd cluster, in a process of its own so that
// its processor time and memory are counted apart, and it can be killed. Its only
// argument is an [etcdtest.Spec] in JSON; [etcdtest.Specs] makes those of a cluster.
// It writes a line once it serves.
func runEtcdMember(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: bench etcdmember SPEC, with a member's specification in JSON")
	}
	var spec etcdtest.Spec
	if err := json.Unmarshal([]byte(args[0]), &spec); err != nil {
		return fmt.Errorf("specification of an etcd member: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return spec.Run(ctx, func() { fmt.Println("etcd member", spec.Name, "serves", spec.ClientURL) })
}
