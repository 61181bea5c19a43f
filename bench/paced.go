//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// paced sends requests at a fixed rate and measures what the peer spent, and the 95th
// percentile, timed from the moment at which each request should have been sent.
func (f *field) paced(ctx context.Context, p *peer, l load, rate float64, length time.Duration) (sample, error) {
	before, err := p.cpu()
	if err != nil {
		return sample{}, err
	}
	all, err := f.pacedTimes(ctx, p, l, time.Duration(float64(l.connections)/rate*float64(time.Second)), length)
	if err != nil {
		return sample{}, err
	}
	after, err := p.cpu()
	slices.Sort(all)
	return sample{requests: len(all), elapsed: length, cpu: after - before, p95: all[len(all)*95/100]}, err
}

// saturation is how many requests a second the peer answers to the client of paced
// when that sends each as soon as the last is answered. Another client costs more or
// less, and what is half of the machine to it is not to this one.
func (f *field) saturation(ctx context.Context, p *peer, l load, length time.Duration) (float64, error) {
	all, err := f.pacedTimes(ctx, p, l, 0, length)
	return float64(len(all)) / length.Seconds(), err
}

// pacedTimes is how long each answer took. Each connection sends a request in each
// interval; in one of 0, as fast as it can.
func (f *field) pacedTimes(ctx context.Context, p *peer, l load, each, length time.Duration) ([]time.Duration, error) {
	began := time.Now().Add(50 * time.Millisecond)
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	var wg sync.WaitGroup
	for i := range l.connections {
		wg.Go(func() {
			took, err := f.pacedConnection(ctx, p, l, i, began.Add(each*time.Duration(i)/time.Duration(l.connections)), each, length)
			mu.Lock()
			defer mu.Unlock()
			all, failed = append(all, took...), errors.Join(failed, err)
		})
	}
	wg.Wait()
	if failed == nil && len(all) == 0 {
		failed = errors.New("nothing was answered")
	}
	if failed != nil {
		return nil, fmt.Errorf("%s: %w", p.name, failed)
	}
	return all, nil
}

// pacedConnection keeps the client cheap: it shares the machine with what is
// measured, and one that costs more than the proxies saturates it long before them.
// Requests are made beforehand, and after the first answer, which is read as HTTP,
// only the length of the others is looked at: they all have the same.
func (f *field) pacedConnection(ctx context.Context, p *peer, l load, index int, next time.Time, each, length time.Duration) ([]time.Duration, error) {
	nc, err := net.Dial("tcp", local(p.port))
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	requests := make([][]byte, 16)
	for i := range requests {
		key := l.keys[(index*len(requests)+i)%len(l.keys)]
		requests[i] = fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\nUser-Agent: bench/1.0\r\nAccept: application/json\r\n\r\n", l.method, l.path, key)
	}
	if _, err := nc.Write(requests[0]); err != nil {
		return nil, err
	}
	var first bytes.Buffer
	if err := readAnswer(bufio.NewReader(io.TeeReader(nc, &first)), l.refused); err != nil {
		return nil, err
	}
	answer := make([]byte, first.Len())
	read := func() error {
		if _, err := io.ReadFull(nc, answer); err != nil {
			return err
		}
		if !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) {
			return fmt.Errorf("%s answered %q", p.name, answer)
		}
		return nil
	}
	if l.refused { // those differ
		r := bufio.NewReader(nc)
		read = func() error { return readAnswer(r, l.refused) }
	}
	var took []time.Duration
	for end := next.Add(length); next.Before(end) && ctx.Err() == nil; next = next.Add(each) {
		if time.Sleep(time.Until(next)); each == 0 {
			next = time.Now()
		}
		if _, err := nc.Write(requests[len(took)%len(requests)]); err != nil {
			return nil, err
		}
		if err := read(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(next))
	}
	return took, nil
}

func readAnswer(r *bufio.Reader, refused bool) error {
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	wanted := resp.StatusCode == http.StatusOK
	if refused {
		wanted = resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusTooManyRequests
	}
	if err == nil && !wanted {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	return err
}
