//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/etcdstore"
)

// mirrorCase brings a store of its own into etcd and follows it from there.
func mirrorCase(ctx context.Context, o options, e *etcd) (err error) {
	if _, err := fillStore(ctx, o); err != nil {
		return err
	}
	if err := importStore(ctx, o, e); err != nil {
		return err
	}
	path := filepath.Join(e.dir, "mirror.db")
	spent, err := ownCPU()
	if err != nil {
		return err
	}
	began := time.Now()
	n, err := openReady(ctx, e, "mirror", path)
	if err != nil {
		return err
	}
	took := time.Since(began)
	after, err := ownCPU()
	if err != nil {
		return errors.Join(err, n.close())
	}
	info, err := os.Stat(path)
	if err != nil {
		return errors.Join(err, n.close())
	}
	fmt.Printf("| mirror of %d tokens from nothing | %v, with %v of the node's processor time | 60 s |\n| the node's copy | %d MB | |\n", o.tokens, took.Round(10*time.Millisecond), (after - spent).Round(10*time.Millisecond), info.Size()>>20)
	if err := n.close(); err != nil {
		return err
	}
	if err := resumeStore(ctx, e, path); err != nil {
		return err
	}
	for _, kind := range []string{"full", "on_demand"} {
		if err := programMemory(ctx, o, e, kind, path); err != nil {
			return err
		}
	}
	return nil
}

// openReady opens a node and waits until it is in step.
func openReady(ctx context.Context, e *etcd, name, path string) (*node, error) {
	n, err := openNode(ctx, e, name, path, nil)
	if err != nil {
		return nil, err
	}
	if err := n.store.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

// ownCPU is the processor time of this process.
func ownCPU() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

func importStore(ctx context.Context, o options, e *etcd) error {
	s, err := boltstore.Open(boltstore.Options{Path: storePath(o), ReadOnly: true})
	if err != nil {
		return err
	}
	defer s.Close()
	c, err := dial(e, "import")
	if err != nil {
		return err
	}
	defer c.Close()
	began := time.Now()
	var verifying time.Time
	tally, err := c.Import(ctx, etcdstore.Import{ID: s.ID(), Entries: s.Entries, Report: func(at etcdstore.Copying) {
		if at.Verifying && verifying.IsZero() {
			verifying = time.Now()
		}
	}})
	if err != nil {
		return err
	}
	fmt.Println("| what | measured | goal |")
	fmt.Println("|---|---|---|")
	fmt.Printf("| migrate %d tokens into etcd | %v, and %v to read all back | |\n", tally.Count(tokenstore.EntryRecord), verifying.Sub(began).Round(time.Second), time.Since(verifying).Round(time.Second))
	etcdc, err := e.client()
	if err != nil {
		return err
	}
	defer etcdc.Close()
	status, err := etcdc.Status(ctx, e.endpoints()[0])
	if err != nil {
		return err
	}
	after, err := e.members[0].rssAnon()
	if err != nil {
		return err
	}
	if err := e.restart(ctx, 0); err != nil {
		return err
	}
	time.Sleep(3 * time.Second)
	memory, err := e.members[0].rssAnon()
	if err != nil {
		return err
	}
	fmt.Printf("| etcd: database, in use | %d MB, %d MB: %d bytes a token | |\n| etcd: RssAnon of a member | %.0f MB after that, %.0f MB when started anew: %.0f bytes a token | |\n",
		status.DbSize>>20, status.DbSizeInUse>>20, status.DbSizeInUse/int64(o.tokens), mb(after), mb(memory), float64(memory)/float64(o.tokens))
	return nil
}

// resumeStore has a node come back to what changed while it was away: in a while, and
// in an hour with ten changes a second.
func resumeStore(ctx context.Context, e *etcd, path string) error {
	for _, changes := range []int{1000, 36_000} {
		took, err := changeMeanwhile(ctx, e, changes)
		if err != nil {
			return err
		}
		began := time.Now()
		n, err := openReady(ctx, e, "mirror", path)
		if err != nil {
			return err
		}
		resumed := time.Since(began)
		if s := n.store.Stats(); s.Loads > 0 {
			return errors.Join(errors.New("the node read everything anew"), n.close())
		}
		fmt.Printf("| resume after %d new tokens, which another node with 64 callers had made in %v | %v | 2 s and the changes |\n", changes, took.Round(time.Second), resumed.Round(time.Millisecond))
		if err := n.close(); err != nil {
			return err
		}
	}
	return nil
}

// changeMeanwhile makes tokens on a node of its own, each by a change of its own.
func changeMeanwhile(ctx context.Context, e *etcd, changes int) (took time.Duration, err error) {
	n, err := openReady(ctx, e, "other", "")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	background, cancel := context.WithCancel(ctx)
	defer cancel()
	go drain(background, n)
	const callers = 64
	errs := make([]error, callers)
	var begun atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for i := range errs {
		wg.Go(func() {
			for begun.Add(1) <= int64(changes) && errs[i] == nil {
				errs[i] = n.store.Change(ctx, func(tx tokenstore.Tx) error {
					tx.Emit([]byte(`{}`))
					_, _, err := putToken(tx, false)
					return err
				})
			}
		})
	}
	wg.Wait()
	return time.Since(began), errors.Join(errs...)
}

// programMemory starts the program as a node and asks it with the tokens in use.
func programMemory(ctx context.Context, o options, e *etcd, mirror, copied string) error {
	dir := filepath.Join(e.dir, mirror)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if mirror == "full" {
		if err := os.Rename(copied, filepath.Join(dir, "tokens.db")); err != nil {
			return err
		}
	}
	file := filepath.Join(dir, "tokenward.yaml")
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(e.nodeConf(dir, "program", mirror, ports[0], ports[1], ports[2])), 0o600); err != nil {
		return err
	}
	p, err := start(ctx, dir, "tokenward", o.binary, "serve", "--config", file)
	if err != nil {
		return err
	}
	err = waitFor(ctx, p, local(ports[0]))
	var atRest, inUse int64
	if err == nil {
		time.Sleep(3 * time.Second)
		atRest, err = p.rssAnon()
	}
	if err == nil {
		err = askWithAll(o, ports[0])
	}
	if err == nil {
		inUse, err = p.rssAnon()
	}
	if err = errors.Join(err, p.stop()); err != nil {
		return err
	}
	goal := "150 MB"
	if mirror != "full" {
		goal = "60 MB"
	}
	fmt.Printf("| RssAnon of the program, %d tokens, mirror: %s | %.1f MB, %.1f MB after requests with %d tokens | %s |\n", o.tokens, mirror, mb(atRest), mb(inUse), o.active, goal)
	return nil
}

// askWithAll makes a request with each of the tokens in use. There may be no upstream,
// which is asked only once the token was judged.
func askWithAll(o options, port int) error {
	secrets, err := readLines(storePath(o) + ".secrets")
	if err != nil {
		return err
	}
	nc, err := net.Dial("tcp", local(port))
	if err != nil {
		return err
	}
	defer nc.Close()
	r := bufio.NewReader(nc)
	for _, s := range secrets[:min(o.active, len(secrets))] {
		if _, err := fmt.Fprintf(nc, "GET /accounts/10000/small HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\n\r\n", s); err != nil {
			return err
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusBadGateway {
			return fmt.Errorf("a token in use was answered %s", resp.Status)
		}
	}
	return nil
}
