package proxy_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"

	"tokenward/enforce"
	"tokenward/enforce/canon"
)

// TestH2Spec runs the conformance suite for RFC 7540 and RFC 7541. What fails is
// listed in testdata/h2spec.txt with the reason; whatever else fails is a fault,
// and so is a line there for what does not.
func TestH2Spec(t *testing.T) {
	if testing.Short() {
		t.Skip("the suite waits for what must not come")
	}
	for _, d := range []door{doors[2], doors[3]} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel() // it waits for what must not come, most of the time
			excused := readExcuses(t, "testdata/h2spec.txt", d.name)
			w := newWorld(t, canon.Options{})
			policy, faults := enforce.Compile([]enforce.RouteSpec{{Match: "* /{path...}", Public: true}}, enforce.Options{})
			if faults != nil {
				t.Fatal(faults)
			}
			w.rules.Policy = policy // an answer of ours would overtake what is wrong with a body
			suite := h2Suite{excused: excused, failed: make(map[string]string)}
			w.rules.Default.Upstreams = upstreamsAt(t, nil, urlOf(t, startServer(t, &suite)))
			scheme, addr, _ := strings.Cut(d.open(t, w), "://")
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				t.Fatal(err)
			}
			n, err := strconv.Atoi(port)
			if err != nil {
				t.Fatal(err)
			}
			suite.config = config.Config{Host: host, Port: n, Path: "/healthz", Timeout: 3 * time.Second, MaxHeaderLen: 4000, TLS: scheme == "h2", Insecure: true, Strict: true}
			cases := 0
			for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
				cases += suite.run(group)
			}
			if cases < 140 {
				t.Errorf("only %d cases ran", cases)
			}
			for id, problem := range suite.failed {
				if excused[id] == "" {
					t.Errorf("%s: %s", id, problem)
				}
			}
			for id := range excused {
				if suite.failed[id] == "" {
					t.Errorf("%s does not fail: remove it from testdata/h2spec.txt", id)
				}
			}
		})
	}
}

// h2Suite runs cases, and is the upstream meanwhile.
type h2Suite struct {
	config  config.Config
	excused map[string]string // the reason by section and number
	failed  map[string]string // what is wrong likewise
	holds   atomic.Bool       // the upstream does not answer
}

// ServeHTTP implements http.Handler.
func (s *h2Suite) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	if s.holds.Load() {
		<-r.Context().Done()
		return
	}
	_, _ = io.WriteString(rw, "hello")
}

// run runs all cases of a group, and returns how many there are. What fails is tried
// once more with more patience: what comes too late is the machine's fault.
func (s *h2Suite) run(group *spec.TestGroup) int {
	n := 0
	s.holds.Store(group.ID() == "http2/5.1.2") // no stream may end before there are too many
	for _, cases := range [][]*spec.TestCase{group.Tests, group.StrictTests} {
		for _, one := range cases {
			n++
			id, c := group.ID()+"/"+strconv.Itoa(n), s.config
			err := runH2Case(&c, one)
			if err != nil && s.excused[id] == "" {
				c.Timeout *= 10
				err = runH2Case(&c, one)
			}
			if err != nil {
				s.failed[id] = one.Desc + ": " + err.Error()
			}
		}
	}
	total := n
	for _, sub := range group.Groups {
		total += s.run(sub)
	}
	return total
}

// runH2Case runs a case. The suite's own way to run one also prints, by variables that
// all its runs share.
func runH2Case(c *config.Config, one *spec.TestCase) error {
	conn, err := spec.Dial(c)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := one.Run(c, conn); !errors.Is(err, spec.ErrSkipped) {
		return err
	}
	return nil
}

// readExcuses reads lines of a case and a reason; a door before the case limits it
// to that one.
func readExcuses(t *testing.T, path, door string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := make(map[string]string)
	for s := bufio.NewScanner(f); s.Scan(); {
		id, reason, ok := strings.Cut(s.Text(), " ")
		if strings.HasPrefix(id, "#") || id == "" {
			continue
		}
		if !ok || strings.TrimSpace(reason) == "" {
			t.Errorf("%s has no reason", id)
		}
		if only, rest, limited := strings.Cut(id, ":"); limited {
			if only != door {
				continue
			}
			id = rest
		}
		out[id] = reason
	}
	return out
}
