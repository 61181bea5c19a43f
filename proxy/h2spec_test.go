package proxy_test

import (
	"bufio"
	"net"
	"os"
	"strconv"
	"strings"
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
	quietly(t)
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
			scheme, addr, _ := strings.Cut(d.open(t, w), "://")
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				t.Fatal(err)
			}
			n, err := strconv.Atoi(port)
			if err != nil {
				t.Fatal(err)
			}
			c := &config.Config{Host: host, Port: n, Path: "/healthz", Timeout: 3 * time.Second, MaxHeaderLen: 4000, TLS: scheme == "h2", Insecure: true, Strict: true}
			failed := make(map[string]string)
			cases := 0
			for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
				cases += runH2Spec(c, group, failed)
			}
			if cases < 140 {
				t.Errorf("only %d cases ran", cases)
			}
			for id, problem := range failed {
				if excused[id] == "" {
					t.Errorf("%s: %s", id, problem)
				}
			}
			for id := range excused {
				if failed[id] == "" {
					t.Errorf("%s does not fail: remove it from testdata/h2spec.txt", id)
				}
			}
		})
	}
}

// runH2Spec runs all cases of a group, and notes what fails by section and number.
func runH2Spec(c *config.Config, group *spec.TestGroup, failed map[string]string) int {
	n := 0
	for _, cases := range [][]*spec.TestCase{group.Tests, group.StrictTests} {
		for _, one := range cases {
			n++
			if err := one.Test(c, n); err != nil {
				failed[group.ID()+"/"+strconv.Itoa(n)] = one.Desc + ": " + err.Error()
			} else if one.Result != nil && one.Result.Failed {
				failed[group.ID()+"/"+strconv.Itoa(n)] = one.Desc + ": " + one.Result.Error.Error()
			}
		}
	}
	total := n
	for _, sub := range group.Groups {
		total += runH2Spec(c, sub, failed)
	}
	return total
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

// quietly keeps what the suite prints away until the test and its parts end.
func quietly(t *testing.T) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = null
	t.Cleanup(func() {
		os.Stdout = stdout
		_ = null.Close()
	})
}
