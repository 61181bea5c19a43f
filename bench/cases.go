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
	"strings"
	"sync"
	"time"

	"tokenward/tokenstore"
)

// benchCase is one table of docs/benchmarks.md.
type benchCase struct {
	name string
	run  func(ctx context.Context, o options, f *field) error
}

var benchCases = []benchCase{
	{"cpu: GET, 90-byte answer, 64 connections", cpuCase(load{method: "GET", path: "/accounts/10000/small", connections: 64})},
	{"cpu: GET, 10 KiB answer, 64 connections", cpuCase(load{method: "GET", path: "/files/10k.txt", connections: 64})},
	{"cpu: POST of 1 KiB, 90-byte answer, 64 connections", cpuCase(load{method: "POST", path: "/accounts/10000/post", bodyBytes: 1024, connections: 64})},
	{"latency: one connection", latencyCase},
	{"latency: half of saturation", halfLoadCase},
	{"refused: cost of a refusal", refusedCase},
	{"guessing: 2,000 failed credentials a second beside valid requests", guessingCase},
	{"large: 1 GiB answer", largeCase},
	{"tls: TLS 1.3 keep-alive, 64 connections", tlsCase},
	{"idle: 10,000 idle connections", idleCase},
	{"scale: stored tokens and routes", scaleCase},
	{"backup: hot backups beside requests, 64 connections", backupCase},
	{"cluster: a node of a cluster beside a single node", clusterCase},
}

// cpuCase compares processor time per request, the price of a sidecar.
func cpuCase(l load) func(context.Context, options, *field) error {
	return func(ctx context.Context, o options, f *field) error {
		l := l
		l.keys = f.secrets
		names := []string{nginx, haproxy, reverseProxy, tokenward}
		samples, err := f.rounds(ctx, o, names, l)
		if err != nil {
			return err
		}
		printCPU(names, samples, tokenward)
		return nil
	}
}

// printCPU prints what a request costs each peer, and ours compared with it.
func printCPU(names []string, samples map[string][]sample, ours string) {
	fmt.Println("| peer | CPU µs/request | requests/s | tokenward costs, as a ratio |")
	fmt.Println("|---|---|---|---|")
	for _, name := range names {
		fmt.Printf("| %s | %s | %.0f | %s |\n", name, values(samples[name], microsecondsOfCPU),
			values(samples[name], sample.rate).median, ratios(samples[ours], samples[name], microsecondsOfCPU))
	}
}

// latencyCase compares what each peer adds to the direct line at one connection.
func latencyCase(ctx context.Context, o options, f *field) error {
	l := load{method: "GET", path: "/accounts/10000/small", connections: 1, keys: f.secrets}
	names := []string{direct, nginx, haproxy, reverseProxy, tokenward}
	samples, err := f.rounds(ctx, o, names, l)
	if err != nil {
		return err
	}
	added := func(name string) []float64 {
		var v []float64
		for i, s := range samples[name] {
			v = append(v, float64((s.p50-samples[direct][i].p50).Nanoseconds())/1000)
		}
		return v
	}
	fmt.Println("| peer | p50 µs | added over direct µs | added, as a ratio to nginx |")
	fmt.Println("|---|---|---|---|")
	base := added(nginx)
	for _, name := range names {
		p50 := values(samples[name], func(s sample) float64 { return float64(s.p50.Nanoseconds()) / 1000 })
		var r []float64
		for i, a := range added(name) {
			r = append(r, a/base[i])
		}
		fmt.Printf("| %s | %s | %s | %s |\n", name, p50, spreadOf(added(name)), spreadOf(r))
	}
	return nil
}

// halfLoadCase drives each peer at half of what nginx saturates at with the same
// client, which keeps to a schedule, so that a slow answer does not thin out the load.
// The direct line shows what the machine and the client add by themselves.
func halfLoadCase(ctx context.Context, o options, f *field) error {
	l := load{method: "GET", path: "/accounts/10000/small", connections: 64, keys: f.secrets}
	tops := make([]float64, 5)
	for i := range tops {
		var err error
		if tops[i], err = f.saturation(ctx, f.peers[nginx], l, o.duration); err != nil {
			return err
		}
	}
	rate := spreadOf(tops).median / 2
	names := []string{direct, nginx, haproxy, reverseProxy, tokenward}
	samples := make(map[string][]sample)
	for round := range o.rounds {
		for i := range names {
			name := names[(i+round)%len(names)]
			fmt.Fprintf(os.Stderr, "\rround %d of %d: %-14s", round+1, o.rounds, name)
			s, err := f.paced(ctx, f.peers[name], l, rate, o.duration)
			if err != nil {
				return err
			}
			samples[name] = append(samples[name], s)
		}
	}
	fmt.Fprintf(os.Stderr, "\r%40s\r", "")
	fmt.Printf("At %.0f requests/s over 64 connections, timed from the scheduled start of each request:\n\n", rate)
	p95 := func(s sample) float64 { return float64(s.p95.Nanoseconds()) / 1000 }
	fmt.Println("| peer | p95 µs | as a ratio to nginx | CPU µs/request | tokenward costs, as a ratio |")
	fmt.Println("|---|---|---|---|---|")
	for _, name := range names {
		cost := "| |"
		if name != direct {
			cost = fmt.Sprintf("| %s | %s |", values(samples[name], microsecondsOfCPU), ratios(samples[tokenward], samples[name], microsecondsOfCPU))
		}
		fmt.Printf("| %s | %s | %s %s\n", name, values(samples[name], p95), ratios(samples[name], samples[nginx], p95), cost)
	}
	return nil
}

// guessing is how many failed credentials come each second, and beside how many
// valid requests.
const (
	guessesPerSecond = 2000
	besideGuesses    = 1000
)

// guessingCase compares the p95 of valid requests with and without somebody who
// tries secrets, in turn.
func guessingCase(ctx context.Context, o options, f *field) error {
	valid := load{method: "GET", path: "/accounts/10000/small", connections: 16, keys: f.secrets}
	guesses := load{method: "GET", path: valid.path, connections: 16, refused: true}
	for range 1000 {
		guesses.keys = append(guesses.keys, tokenstore.NewSecret("tw").Reveal())
	}
	var calm, harried, ratio []float64
	for round := range o.rounds {
		var p95 [2]float64
		for i := range p95 {
			guessing := (i+round)%2 == 1
			fmt.Fprintf(os.Stderr, "\rround %d of %d: guessing %t ", round+1, o.rounds, guessing)
			var wg sync.WaitGroup
			var failed error
			if guessing {
				wg.Go(func() { _, failed = f.paced(ctx, f.peers[tokenward], guesses, guessesPerSecond, o.duration) })
			}
			s, err := f.paced(ctx, f.peers[tokenward], valid, besideGuesses, o.duration)
			wg.Wait()
			if err = errors.Join(err, failed); err != nil {
				return err
			}
			at := 0
			if guessing {
				at = 1
			}
			p95[at] = float64(s.p95.Nanoseconds()) / 1000
		}
		calm, harried, ratio = append(calm, p95[0]), append(harried, p95[1]), append(ratio, p95[1]/p95[0])
	}
	fmt.Fprintf(os.Stderr, "\r%40s\r", "")
	fmt.Printf("%d valid requests a second:\n\n", besideGuesses)
	fmt.Println("| beside them | p95 µs | as a ratio |")
	fmt.Println("|---|---|---|")
	fmt.Printf("| nothing | %s | |\n| %d failed credentials a second | %s | %s |\n", spreadOf(calm), guessesPerSecond, spreadOf(harried), spreadOf(ratio))
	return nil
}

// refusedCase compares refusals with a forwarded request on the same proxy.
func refusedCase(ctx context.Context, o options, f *field) error {
	kinds, err := refusals(o, f)
	if err != nil {
		return err
	}
	kinds = append([]namedLoad{{"forwarded", smallGET(f)}}, kinds...)
	samples := make(map[string][]sample)
	for round := range o.rounds {
		for i := range kinds {
			k := kinds[(i+round)%len(kinds)]
			fmt.Fprintf(os.Stderr, "\rround %d of %d: %-14s", round+1, o.rounds, k.name)
			s, err := f.drive(ctx, o, f.peers[tokenward], k.load)
			if err != nil {
				return err
			}
			samples[k.name] = append(samples[k.name], s)
		}
	}
	fmt.Fprintf(os.Stderr, "\r%40s\r", "")
	fmt.Println("| request | CPU µs/request | as a ratio to forwarded |")
	fmt.Println("|---|---|---|")
	for _, k := range kinds {
		fmt.Printf("| %s | %s | %s |\n", k.name, values(samples[k.name], microsecondsOfCPU), ratios(samples[k.name], samples["forwarded"], microsecondsOfCPU))
	}
	return nil
}

type namedLoad struct {
	name string
	load load
}

// smallGET is the request that most numbers are about.
func smallGET(f *field) load {
	return load{method: "GET", path: "/accounts/10000/small", connections: 64, keys: f.secrets}
}

// refusals are the requests that are not let through, by why they are not.
func refusals(o options, f *field) ([]namedLoad, error) {
	expired, err := readLines(expiredPath(o))
	if err != nil {
		return nil, err
	}
	unknown := make([]string, 1000)
	for i := range unknown {
		unknown[i] = tokenstore.NewSecret("tw").Reveal()
	}
	with := func(keys []string) load {
		l := smallGET(f)
		l.keys, l.refused = keys, true
		return l
	}
	wrongScope := with(f.secrets)
	wrongScope.path = "/things0/10000/1"
	return []namedLoad{
		{"garbage", with([]string{"tw_garbage", "tw_" + strings.Repeat("A", 38)})},
		{"unknown", with(unknown)},
		{"expired", with(expired)},
		{"wrong scope", wrongScope},
	}, nil
}

// largeCase moves a file of 1 GiB.
func largeCase(ctx context.Context, o options, f *field) error {
	const gib = 1 << 30
	file := filepath.Join(f.dir, "1g.bin")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(file, gib); err != nil {
		return err
	}
	names := []string{nginx, haproxy, reverseProxy, tokenward}
	samples := make(map[string][]sample)
	for round := range o.rounds {
		for i := range names {
			name := names[(i+round)%len(names)]
			fmt.Fprintf(os.Stderr, "\rround %d of %d: %-14s", round+1, o.rounds, name)
			s, err := f.fetch(ctx, f.peers[name], "/files/1g.bin", gib)
			if err != nil {
				return err
			}
			samples[name] = append(samples[name], s)
		}
	}
	fmt.Fprintf(os.Stderr, "\r%40s\r", "")
	cpu := func(s sample) float64 { return s.cpu.Seconds() }
	speed := func(s sample) float64 { return 1 / s.elapsed.Seconds() }
	fmt.Println("| peer | GiB/s | CPU s/GiB | tokenward's speed, as a ratio | tokenward's CPU, as a ratio |")
	fmt.Println("|---|---|---|---|---|")
	for _, name := range names {
		fmt.Printf("| %s | %s | %s | %s | %s |\n", name, values(samples[name], speed), values(samples[name], cpu),
			ratios(samples[tokenward], samples[name], speed), ratios(samples[tokenward], samples[name], cpu))
	}
	return nil
}

func (f *field) fetch(ctx context.Context, p *peer, path string, size int64) (sample, error) {
	before, err := p.process.cpu()
	if err != nil {
		return sample{}, err
	}
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", local(p.port))
	if err != nil {
		return sample{}, err
	}
	defer nc.Close()
	began := time.Now()
	fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\n\r\n", path, f.secrets[0])
	resp, err := http.ReadResponse(bufio.NewReaderSize(nc, 256<<10), nil)
	if err != nil {
		return sample{}, err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{resp.Body}, make([]byte, 256<<10))
	if err != nil || n != size {
		return sample{}, fmt.Errorf("%s sent %d bytes: %w", p.name, n, err)
	}
	s := sample{requests: 1, elapsed: time.Since(began)}
	after, err := p.process.cpu()
	s.cpu = after - before
	return s, err
}

// tlsCase compares TLS 1.3 with keep-alive. tokenward runs it in a process of
// its own, over a copy of the store.
func tlsCase(ctx context.Context, o options, f *field) error {
	if err := f.startTLS(ctx, o); err != nil {
		return err
	}
	names := []string{nginxTLS, tokenwardTLS}
	samples, err := f.rounds(ctx, o, names, load{method: "GET", path: "/accounts/10000/small", connections: 64, keys: f.secrets})
	if err != nil {
		return err
	}
	printCPU(names, samples, tokenwardTLS)
	return nil
}

func (f *field) startTLS(ctx context.Context, o options) error {
	if f.peers[tokenwardTLS] != nil {
		return nil
	}
	source, err := os.Open(storePath(o))
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(storePath(o)+".tls", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(target, source); err != nil {
		return errors.Join(err, target.Close())
	}
	if err := target.Close(); err != nil {
		return err
	}
	return f.start(ctx, tokenwardTLS, "https", portTokenwardTLS, []string{o.binary, "serve", "--config", filepath.Join(f.dir, "tls.yaml")})
}

// idleCase counts what idle keep-alive connections cost in memory.
func idleCase(ctx context.Context, o options, f *field) error {
	const connections = 10_000
	if err := f.restartTokenward(ctx, o, "tokenward.yaml"); err != nil {
		return err
	}
	p := f.peers[tokenward]
	if _, err := f.drive(ctx, o, p, load{method: "GET", path: "/accounts/10000/small", connections: 64, keys: f.secrets}); err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	before, err := p.process.rssAnon()
	if err != nil {
		return err
	}
	var open []net.Conn
	defer func() {
		for _, nc := range open {
			_ = nc.Close()
		}
	}()
	for i := range connections {
		nc, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+i%8))}}).DialContext(ctx, "tcp", local(p.port)) //nolint:gosec // below 9
		if err != nil {
			return err
		}
		open = append(open, nc)
		fmt.Fprintf(nc, "GET /accounts/10000/small HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\n\r\n", f.secrets[i%len(f.secrets)])
		if err := readAnswer(bufio.NewReader(nc), false); err != nil {
			return err
		}
	}
	time.Sleep(2 * time.Second)
	after, err := p.process.rssAnon()
	if err != nil {
		return err
	}
	fmt.Println("| connections | RssAnon MB | growth MB | bytes each |")
	fmt.Println("|---|---|---|---|")
	fmt.Printf("| 0 | %.1f | | |\n| %d | %.1f | %.1f | %d |\n", mb(before), connections, mb(after), mb(after-before), (after-before)/connections)
	return nil
}

func mb(n int64) float64 { return float64(n) / 1e6 }

// scaleCase asks whether more tokens in the store or more routes cost anything.
func scaleCase(ctx context.Context, o options, f *field) error {
	small := o
	small.tokens = 1000
	secrets, err := fillStore(ctx, small)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(f.dir, "small.yaml"), []byte(tokenwardConf(f.dir, storePath(small), 200, portTokenward, portAdmin, portMetrics, false)), 0o600); err != nil {
		return err
	}
	kinds := []struct {
		name, config string
		keys         []string
	}{
		{fmt.Sprintf("%d stored, 200 routes", o.tokens), "tokenward.yaml", f.secrets},
		{"1000 stored, 200 routes", "small.yaml", secrets},
		{fmt.Sprintf("%d stored, 2 routes", o.tokens), "routes1.yaml", f.secrets},
		{fmt.Sprintf("%d stored, 1000 routes", o.tokens), "routes1k.yaml", f.secrets},
	}
	samples := make(map[string][]sample)
	for round := range o.rounds {
		for i := range kinds {
			k := kinds[(i+round)%len(kinds)]
			fmt.Fprintf(os.Stderr, "\rround %d of %d: %-30s", round+1, o.rounds, k.name)
			if err := f.restartTokenward(ctx, o, k.config); err != nil {
				return err
			}
			l := load{method: "GET", path: "/accounts/10000/small", connections: 64, keys: k.keys}
			short := o
			short.duration = time.Second
			if _, err := f.drive(ctx, short, f.peers[tokenward], l); err != nil {
				return err
			}
			s, err := f.drive(ctx, o, f.peers[tokenward], l)
			if err != nil {
				return err
			}
			samples[k.name] = append(samples[k.name], s)
		}
	}
	fmt.Fprintf(os.Stderr, "\r%50s\r", "")
	fmt.Println("| tokenward with | requests/s | CPU µs/request | requests/s, as a ratio to the first | CPU, as a ratio to the first |")
	fmt.Println("|---|---|---|---|---|")
	for _, k := range kinds {
		fmt.Printf("| %s | %.0f | %s | %s | %s |\n", k.name, values(samples[k.name], sample.rate).median, values(samples[k.name], microsecondsOfCPU),
			ratios(samples[k.name], samples[kinds[0].name], sample.rate), ratios(samples[k.name], samples[kinds[0].name], microsecondsOfCPU))
	}
	return nil
}

// clusterCase compares a node of a cluster, around three members of etcd, with a node
// by itself. Both hold the same tokens.
func clusterCase(ctx context.Context, o options, f *field) (err error) {
	small := o
	small.tokens = 1000
	secrets, err := fillStore(ctx, small)
	if err != nil {
		return err
	}
	e, err := startEtcd(ctx, 3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	if err := importStore(ctx, small, e); err != nil {
		return err
	}
	single := tokenwardConf(f.dir, storePath(small), 200, portTokenward, portAdmin, portMetrics, false)
	node := e.nodeConf(e.dir, "node", "full", portTokenwardCluster, portAdminCluster, portMetricsCluster)
	if err := errors.Join(os.WriteFile(filepath.Join(f.dir, "small.yaml"), []byte(single), 0o600), os.WriteFile(filepath.Join(f.dir, "node.yaml"), []byte(node), 0o600)); err != nil {
		return err
	}
	if err := f.restartTokenward(ctx, o, "small.yaml"); err != nil {
		return err
	}
	if err := f.start(ctx, tokenwardNode, "http", portTokenwardCluster, []string{o.binary, "serve", "--config", filepath.Join(f.dir, "node.yaml")}); err != nil {
		return err
	}
	names := []string{tokenward, tokenwardNode}
	samples, err := f.rounds(ctx, o, names, load{method: "GET", path: "/accounts/10000/small", connections: 64, keys: secrets})
	if err != nil {
		return err
	}
	fmt.Println("\n| tokenward | requests/s | CPU µs/request | requests/s, as a ratio (goal 0.97) | CPU, as a ratio |")
	fmt.Println("|---|---|---|---|---|")
	for _, name := range names {
		fmt.Printf("| %s | %.0f | %s | %s | %s |\n", name, values(samples[name], sample.rate).median, values(samples[name], microsecondsOfCPU),
			ratios(samples[name], samples[tokenward], sample.rate), ratios(samples[name], samples[tokenward], microsecondsOfCPU))
	}
	return nil
}
