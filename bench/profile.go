//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/google/pprof/profile"
)

// writeProfile drives tokenward with each kind of request that a busy one sees, the
// common ones longer, and writes where its processor time went to a file by which
// `go build` compiles it (-pgo).
func writeProfile(ctx context.Context, o options, f *field, file string) error {
	if err := f.startTLS(ctx, o); err != nil {
		return err
	}
	type part struct {
		name    string
		peer    string
		metrics int
		load    load
		seconds int
	}
	get := smallGET(f)
	large, post := get, get
	large.path = "/files/10k.txt"
	post.method, post.path, post.bodyBytes = "POST", "/accounts/10000/post", 1024
	parts := []part{
		{"small GET", tokenward, portMetrics, get, 60},
		{"10 KiB", tokenward, portMetrics, large, 20},
		{"POST", tokenward, portMetrics, post, 30},
		{"TLS", tokenwardTLS, portMetricsTLS, get, 20},
	}
	refused, err := refusals(o, f)
	if err != nil {
		return err
	}
	for _, r := range refused {
		parts = append(parts, part{r.name, tokenward, portMetrics, r.load, 6})
	}
	var profiles []*profile.Profile
	for _, p := range parts {
		fmt.Printf("profile of %s: %d s\n", p.name, p.seconds)
		one, err := f.profile(ctx, o, f.peers[p.peer], p.load, p.metrics, p.seconds)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		profiles = append(profiles, one)
	}
	merged, err := profile.Merge(profiles)
	if err != nil {
		return err
	}
	if err := writeAnonymous(merged, file); err != nil {
		return err
	}
	fmt.Printf("%s is written; it counts from the next build on\n", file)
	return nil
}

// writeAnonymous leaves out which binary it was, where, when and at which addresses:
// the compiler asks for functions and lines only.
func writeAnonymous(p *profile.Profile, file string) error {
	for _, m := range p.Mapping {
		m.File, m.BuildID = "tokenward", ""
	}
	p.TimeNanos, p.DurationNanos, p.Comments = 0, 0, nil
	const inlined, functions, files, lines, columns, addresses = true, true, true, true, false, false
	if err := p.Aggregate(inlined, functions, files, lines, columns, addresses); err != nil {
		return err
	}
	small, err := profile.Merge([]*profile.Profile{p})
	if err != nil {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(small.Write(out), out.Close())
}

// profile takes a peer's processor profile of the seconds in the middle of a load.
func (f *field) profile(ctx context.Context, o options, p *peer, l load, metrics, seconds int) (*profile.Profile, error) {
	o.duration = time.Duration(seconds+2) * time.Second
	driven := make(chan error, 1)
	go func() {
		_, err := f.drive(ctx, o, p, l)
		driven <- err
	}()
	time.Sleep(time.Second)
	taken, err := takeProfile(ctx, metrics, seconds)
	return taken, errors.Join(err, <-driven)
}

func takeProfile(ctx context.Context, metrics, seconds int) (*profile.Profile, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", local(metrics), seconds), nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the profile: %s", resp.Status)
	}
	return profile.Parse(resp.Body)
}
