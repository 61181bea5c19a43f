//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tokenward/tokenstore"
)

// fanOutCase asks what a change costs as the mirrors become more: hundreds of them in
// this process, each with a connection of its own, without copies, so that what is
// measured is etcd and not this process's disk. It goes on from what it measured to
// more of them than there is room for here.
func fanOutCase(ctx context.Context, _ options, e *etcd) error {
	sizes := []int{50, 200, 500}
	var all []fanOut
	fmt.Println("| mirrors | acknowledged to heard by all, p50 | p99 | etcd's CPU for a change | bytes sent for a change | idle: CPU a second | idle: bytes sent a second |")
	fmt.Println("|---|---|---|---|---|---|---|")
	for _, n := range sizes {
		f, err := fanOutOf(ctx, e, n)
		if err != nil {
			return err
		}
		all = append(all, f)
		fmt.Printf("| %d | %v | %v | %.2f ms | %.0f | %.1f ms | %.0f |\n", n, f.p50, f.p99, f.cpu*1000, f.bytes, f.idleCPU*1000, f.idleBytes)
	}
	extrapolate(all)
	return nil
}

// fanOut is what one number of mirrors costs. The processor time and bytes are of all
// members together.
type fanOut struct {
	mirrors            int
	p50, p99           time.Duration
	cpu, bytes         float64 // for each change
	idleCPU, idleBytes float64 // for each second without changes
}

func fanOutOf(ctx context.Context, e *etcd, n int) (f fanOut, err error) {
	const changes, idle, pause = 150, 10 * time.Second, 40 * time.Millisecond
	f.mirrors = n
	r := &revocations{left: map[tokenstore.ID]int{}, done: map[tokenstore.ID]chan time.Time{}}
	nodes, stop, err := openNodes(ctx, e, "", n, false, func(_ int, c tokenstore.Change) { r.heard(c) })
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	background, cancel := context.WithCancel(ctx)
	defer cancel()
	go drain(background, nodes[0])
	ids, err := makeTokens(ctx, nodes[0], changes)
	if err != nil {
		return f, err
	}
	time.Sleep(3 * time.Second)
	before, err := e.spent()
	if err != nil {
		return f, err
	}
	time.Sleep(idle)
	middle, err := e.spent()
	if err != nil {
		return f, err
	}
	late, _, err := r.run(ctx, nodes[0], ids, n, pause)
	if err != nil {
		return f, err
	}
	after, err := e.spent()
	if err != nil {
		return f, err
	}
	f.p50, f.p99 = percentile(late, 50), percentile(late, 99)
	quiet, busy := middle.at.Sub(before.at).Seconds(), after.at.Sub(middle.at).Seconds()
	f.idleCPU, f.idleBytes = (middle.cpu-before.cpu).Seconds()/quiet, (middle.sent-before.sent)/quiet
	f.cpu = max(0, (after.cpu-middle.cpu).Seconds()-f.idleCPU*busy) / changes
	f.bytes = max(0, after.sent-middle.sent-f.idleBytes*busy) / changes
	return f, nil
}

// expense is what the members have spent so far.
type expense struct {
	at   time.Time
	cpu  time.Duration
	sent float64 // bytes, to clients
}

func (e *etcd) spent() (x expense, err error) {
	if x.cpu, err = e.cpu(); err != nil {
		return x, err
	}
	for i := range e.specs {
		sent, err := metric(e.specs[i].WebURL+"/metrics", "etcd_network_client_grpc_sent_bytes_total")
		if err != nil {
			return x, err
		}
		x.sent += sent
	}
	x.at = time.Now()
	return x, nil
}

// metric reads a number without labels from a page of metrics.
func metric(url, name string) (float64, error) {
	resp, err := http.Get(url) //nolint:gosec // a member that the harness started
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("%s does not tell %s", url, name)
}

// extrapolate draws a line through what was measured, and says what it assumes.
func extrapolate(all []fanOut) {
	line := func(take func(fanOut) float64) (at0, each float64) {
		var n, x, y, xx, xy float64
		for _, f := range all {
			m, v := float64(f.mirrors), take(f)
			n, x, y, xx, xy = n+1, x+m, y+v, xx+m*m, xy+m*v
		}
		each = (n*xy - x*y) / (n*xx - x*x)
		return (y - each*x) / n, each
	}
	cpu0, cpu1 := line(func(f fanOut) float64 { return f.cpu })
	idle0, idle1 := line(func(f fanOut) float64 { return f.idleCPU })
	bytes0, bytes1 := line(func(f fanOut) float64 { return f.bytes })
	fmt.Printf("\nA change costs etcd %.2f ms and %.1f µs for each mirror, and %.0f bytes for each; an idle mirror costs %.0f µs a second.\n", cpu0*1000, cpu1*1e6, bytes1, idle1*1e6)
	fmt.Printf("\nExtrapolated, assuming that the cost stays linear, that mirrors spread evenly over three members of which each has 2 cores and may be busy to 60 %%, and\nthat changes come one by one (those that come together share their frames, which is cheaper):\n\n")
	fmt.Println("| mirrors | cores for idle mirrors | changes a second that the rest allows | MB for each second at 100 changes |")
	fmt.Println("|---|---|---|---|")
	const cores = 3 * 2 * 0.6
	for _, n := range []float64{500, 1000, 2000, 5000, 10000} {
		idle, change := max(0, idle0+idle1*n), max(0, cpu0+cpu1*n)
		fmt.Printf("| %.0f | %.2f | %.0f | %.1f |\n", n, idle, max(0, cores-idle)/change, max(0, bytes0+bytes1*n)*100/1e6)
	}
}
