//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// load is what the client sends in one measurement.
type load struct {
	method      string
	path        string
	bodyBytes   int
	connections int
	keys        []string // one of them at random with each request
	refused     bool     // an answer of 4xx is what is wanted
}

// sample is one measurement of one peer.
type sample struct {
	requests int
	elapsed  time.Duration
	cpu      time.Duration // of the peer, all of its processes
	p50, p95 time.Duration // as the client saw it; wrk is asked for the first, paced for the second
}

func (s sample) cpuPerRequest() time.Duration {
	return s.cpu / time.Duration(max(1, s.requests))
}

func (s sample) rate() float64 { return float64(s.requests) / s.elapsed.Seconds() }

// script makes wrk send a random one of the requests that its arguments describe.
const script = `
local requests = {}
init = function(args)
  local method, path, bytes, keys = args[1], args[2], tonumber(args[3]), args[4]
  local body = nil
  if bytes > 0 then body = string.rep("b", bytes) end
  for key in io.lines(keys) do
    local headers = { ["Authorization"] = "Bearer " .. key, ["User-Agent"] = "bench/1.0", ["Accept"] = "application/json" }
    if body then headers["Content-Type"] = "application/json" end
    requests[#requests + 1] = wrk.format(method, path, headers, body)
  end
  math.randomseed(os.time())
end
request = function() return requests[math.random(#requests)] end
`

// drive runs wrk against a peer and measures what the peer spent.
func (f *field) drive(ctx context.Context, o options, p *peer, l load) (sample, error) {
	keys := filepath.Join(f.dir, "load.keys")
	lua := filepath.Join(f.dir, "load.lua")
	if err := errors.Join(writeLines(keys, l.keys), os.WriteFile(lua, []byte(script), 0o600)); err != nil {
		return sample{}, err
	}
	before, err := p.cpu()
	if err != nil {
		return sample{}, err
	}
	began := time.Now()
	threads := min(2, l.connections)
	cmd := exec.CommandContext(ctx, "wrk", "-t", strconv.Itoa(threads), "-c", strconv.Itoa(l.connections), "-d", fmt.Sprintf("%ds", int(o.duration.Seconds())), //nolint:gosec // the harness names it
		"--latency", "-s", lua, p.url(l.path), "--", l.method, l.path, strconv.Itoa(l.bodyBytes), keys)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return sample{}, fmt.Errorf("wrk: %w: %s", err, out)
	}
	s, err := parseWrk(string(out), l.refused)
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w", p.name, err)
	}
	s.elapsed = time.Since(began)
	after, err := p.cpu()
	s.cpu = after - before
	return s, err
}

// cpu is what all processes of the peer have spent; the direct line has none.
func (p *peer) cpu() (time.Duration, error) {
	if p.process == nil {
		return 0, nil
	}
	return p.process.cpu()
}

var (
	wrkRequests = regexp.MustCompile(`(\d+) requests in`)
	wrkP50      = regexp.MustCompile(`50%\s+([\d.]+)(us|ms|s)`)
	wrkNot2xx   = regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`)
)

func parseWrk(out string, refused bool) (sample, error) {
	m := wrkRequests.FindStringSubmatch(out)
	if m == nil {
		return sample{}, fmt.Errorf("wrk said: %s", out)
	}
	var s sample
	s.requests, _ = strconv.Atoi(m[1])
	if m := wrkP50.FindStringSubmatch(out); m != nil {
		s.p50, _ = time.ParseDuration(m[1] + m[2])
	}
	bad := 0
	if m := wrkNot2xx.FindStringSubmatch(out); m != nil {
		bad, _ = strconv.Atoi(m[1])
	}
	if refused && bad != s.requests || !refused && bad != 0 || strings.Contains(out, "Socket errors") {
		return s, fmt.Errorf("%d of %d answers were refusals, or sockets failed: %s", bad, s.requests, out)
	}
	return s, nil
}

// rounds measures the peers one after another, o.rounds times, each time in
// another order, and returns the samples by peer.
func (f *field) rounds(ctx context.Context, o options, names []string, l load) (map[string][]sample, error) {
	samples := make(map[string][]sample)
	short := o
	short.duration = time.Second
	for _, name := range names { // warm up: connections, caches, the scheduler
		if _, err := f.drive(ctx, short, f.peers[name], l); err != nil {
			return nil, err
		}
	}
	for round := range o.rounds {
		for i := range names {
			name := names[(i+round)%len(names)]
			fmt.Fprintf(os.Stderr, "\rround %d of %d: %-14s", round+1, o.rounds, name)
			s, err := f.drive(ctx, o, f.peers[name], l)
			if err != nil {
				return nil, err
			}
			samples[name] = append(samples[name], s)
		}
	}
	fmt.Fprintf(os.Stderr, "\r%40s\r", "")
	return samples, nil
}

// spread is the median, least and greatest of some numbers.
type spread struct{ median, min, max float64 }

func spreadOf(values []float64) spread {
	v := slices.Sorted(slices.Values(values))
	return spread{median: v[len(v)/2], min: v[0], max: v[len(v)-1]}
}

func (s spread) String() string { return fmt.Sprintf("%.2f (%.2f–%.2f)", s.median, s.min, s.max) }

// figure takes one number from each sample.
type figure func(sample) float64

func microsecondsOfCPU(s sample) float64 { return float64(s.cpuPerRequest().Nanoseconds()) / 1000 }

// ratios compares the figure round by round.
func ratios(of, to []sample, take figure) spread {
	var r []float64
	for i := range of {
		r = append(r, take(of[i])/take(to[i]))
	}
	return spreadOf(r)
}

func values(samples []sample, take figure) spread {
	var v []float64
	for _, s := range samples {
		v = append(v, take(s))
	}
	return spreadOf(v)
}
