package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenward/audit"
	"tokenward/tokenstore"
	"tokenward/tokenstore/etcdstore/etcdtest"
)

// clusterNode is a whole program in a cluster.
type clusterNode struct {
	app  *app
	dir  string
	stop func() error
}

// startNode starts a program whose files lie in dir. extra are further keys of
// tokenstore.etcd.
func startNode(t *testing.T, name, dir string, endpoints []string, upstream, extra string) (*clusterNode, error) {
	t.Helper()
	cfg := mustParse(t, fmt.Sprintf(`proxy: {listen: "127.0.0.1:0", upstream: %q}
admin: {listen: "127.0.0.1:0"}
metrics: {listen: "127.0.0.1:0"}
tokenstore:
  path: %[3]s/t.db
  etcd: {endpoints: ["%[2]s"], node: %[4]s%[5]s}
audit: {path: %[3]s/audit.jsonl}
routes:
  - match: GET /things
    scopes: [things]
`, upstream, strings.Join(endpoints, `", "`), dir, name, extra))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	a, err := newApp(ctx, cfg, slog.New(slog.NewTextHandler(t.Output(), nil)).With("on", name), time.Now)
	if err != nil {
		cancel()
		return nil, err
	}
	ran := make(chan error, 1)
	go func() { ran <- a.run(ctx) }()
	stopped := false
	n := &clusterNode{app: a, dir: dir}
	n.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-ran
	}
	t.Cleanup(func() { _ = n.stop() }) // etcd may be gone by then
	return n, nil
}

// ask makes a request and returns the status and the body.
func (n *clusterNode) ask(t *testing.T, l net.Listener, method, path, secret, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+l.Addr().String()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

func (n *clusterNode) api(t *testing.T, method, path, secret, body string) (int, string) {
	return n.ask(t, n.app.adminListener, method, path, secret, body)
}

func (n *clusterNode) things(t *testing.T, secret string) int {
	status, _ := n.ask(t, n.app.proxyListener, http.MethodGet, "/things", secret, "")
	return status
}

// TestThreeNodesAreOne makes, changes and revokes a token on one node each, and
// looks at the others from outside.
func TestThreeNodesAreOne(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "things") }))
	t.Cleanup(api.Close)
	root := tokenstore.NewSecret("tw").Reveal()
	t.Setenv(envBootstrapToken, root)
	dir := t.TempDir()
	var nodes []*clusterNode
	for i, extra := range []string{"", "", ", mirror: on_demand"} {
		name := string(rune('a' + i))
		own := filepath.Join(dir, name)
		if err := os.Mkdir(own, 0o700); err != nil {
			t.Fatal(err)
		}
		n, err := startNode(t, name, own, etcd.Endpoints(), api.URL, extra)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	status, body := nodes[0].api(t, http.MethodPost, "/v1/tokens", root, `{"name":"first","scopes":["things"]}`)
	var made struct {
		ID     int    `json:"id"`
		Secret string `json:"token"`
	}
	if err := json.Unmarshal([]byte(body), &made); status != http.StatusCreated || err != nil || made.Secret == "" {
		t.Fatalf("create: %d %s", status, body)
	}
	path := fmt.Sprintf("/v1/tokens/%d", made.ID)
	if status, body := nodes[0].api(t, http.MethodPost, path+"/enable?wait=all", root, ""); status != http.StatusOK {
		t.Fatalf("wait for all nodes: %d %s", status, body)
	}
	everywhere := func(want int) {
		t.Helper()
		for _, n := range nodes {
			if got := n.things(t, made.Secret); got != want {
				t.Errorf("a node answers %d, want %d", got, want)
			}
		}
	}
	everywhere(http.StatusOK)
	if status, body := nodes[2].api(t, http.MethodPost, path+"/disable?wait=all", root, ""); status != http.StatusOK {
		t.Fatalf("disable on the node without a copy: %d %s", status, body)
	}
	everywhere(http.StatusUnauthorized)
	if status, body := nodes[1].api(t, http.MethodPost, path+"/enable?wait=all", root, ""); status != http.StatusOK {
		t.Fatalf("enable: %d %s", status, body)
	}
	everywhere(http.StatusOK)
	if status, body := nodes[1].api(t, http.MethodDelete, path+"?wait=all", root, ""); status != http.StatusOK {
		t.Fatalf("revoke: %d %s", status, body)
	}
	everywhere(http.StatusUnauthorized)

	for _, n := range nodes {
		status, body := n.api(t, http.MethodGet, "/v1/cluster", root, "")
		var cluster struct {
			Nodes []struct {
				Name, Mirror string
				Revision     int64
			}
		}
		if err := json.Unmarshal([]byte(body), &cluster); status != http.StatusOK || err != nil || len(cluster.Nodes) != 3 || cluster.Nodes[2].Mirror != "on_demand" {
			t.Errorf("the cluster: %d %s", status, body)
		}
		if status, body := n.api(t, http.MethodGet, "/v1/tokens?state=revoked", root, ""); status != http.StatusOK || !strings.Contains(body, `"first"`) {
			t.Errorf("the list of revoked tokens: %d %s", status, body)
		}
	}

	for _, n := range nodes {
		etcdtest.WaitFor(t, "the metrics to tell of what this node changed, and of no copy", func(context.Context) error {
			s, conflicts := n.app.storeStats(), n.app.vault.part.Store.Stats().Conflicts
			if s.Commits == 0 || s.Commits > s.Changes+conflicts {
				return fmt.Errorf("%d changes in %d transactions, with %d conflicts", s.Changes, s.Commits, conflicts)
			}
			return nil
		})
	}

	// Each node's chain has its own calls, with its name.
	for _, n := range nodes {
		if err := n.stop(); err != nil {
			t.Error(err)
		}
		name := filepath.Base(n.dir)
		if log, err := os.ReadFile(filepath.Join(n.dir, "audit.jsonl")); err != nil || !strings.Contains(string(log), `"node":"`+name+`","verb":"deny"`) {
			t.Errorf("the audit log of %s does not say what %s refused (%v):\n%s", name, name, err, log)
		}
	}
	want := map[string][]string{"a": {"bootstrap", "create"}, "b": {"enable", "revoke"}, "c": {"disable"}}
	for _, n := range nodes {
		name := filepath.Base(n.dir)
		if got := verbsIn(t, filepath.Join(n.dir, "audit.jsonl"), name); !slices.Equal(got, want[name]) {
			t.Errorf("the audit log of %s has %v, want %v", name, got, want[name])
		}
	}
}

// verbsIn returns what the audit log says that was done on the node. Of what the node did
// by itself it looks at the name only: a request whose answer was just read may be there
// still when its token ends, and is cut.
func verbsIn(t *testing.T, path, node string) (verbs []string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var l struct {
			Event struct{ Verb, Node string }
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if l.Event.Verb == "" {
			continue
		}
		if l.Event.Node != node {
			t.Errorf("the log of %s has a %s of %q", node, l.Event.Verb, l.Event.Node)
		}
		if l.Event.Verb != audit.VerbDeny && l.Event.Verb != string(verbCut) {
			verbs = append(verbs, l.Event.Verb)
		}
	}
	return verbs
}

// TestNodeGoesOnWithoutEtcd starts nodes while etcd is away: from a copy, and
// without one.
func TestNodeGoesOnWithoutEtcd(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "things") }))
	t.Cleanup(api.Close)
	root := tokenstore.NewSecret("tw").Reveal()
	t.Setenv(envBootstrapToken, root)
	dir := t.TempDir()
	first, err := startNode(t, "a", dir, etcd.Endpoints(), api.URL, "")
	if err != nil {
		t.Fatal(err)
	}
	status, body := first.api(t, http.MethodPost, "/v1/tokens", root, `{"name":"first","scopes":["things"]}`)
	var made struct {
		Secret string `json:"token"`
	}
	if err := json.Unmarshal([]byte(body), &made); status != http.StatusCreated || err != nil {
		t.Fatalf("create: %d %s", status, body)
	}
	// The copy knows until when it was whole once it has noted it.
	etcdtest.WaitFor(t, "the copy to note how fresh it is", func(context.Context) error {
		if p := first.app.vault.part.copy.Followed(); p.FreshAt.IsZero() {
			return fmt.Errorf("it is at %+v", p)
		}
		return nil
	})
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	etcd.StopAll()

	again, err := startNode(t, "a", dir, etcd.Endpoints(), api.URL, "")
	if err != nil {
		t.Fatalf("a node with a copy cannot start: %v", err)
	}
	if got := again.things(t, made.Secret); got != http.StatusOK {
		t.Errorf("it answers %d from its copy", got)
	}
	if status, body := again.ask(t, again.app.metricsListener, http.MethodGet, "/readyz", "", ""); status != http.StatusOK || !strings.Contains(body, "etcd never reached") {
		t.Errorf("ready: %d %s", status, body)
	}
	t.Run("without a copy", func(t *testing.T) {
		for name, node := range map[string]struct{ extra, refusal string }{
			"b": {"", "There is no copy of the tokens at"},
			"c": {", mirror: on_demand", "Without a copy"},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel() // each asks etcd until its patience ends
				if _, err := startNode(t, name, t.TempDir(), etcd.Endpoints(), api.URL, node.extra); err == nil || !strings.Contains(err.Error(), node.refusal) {
					t.Errorf("it says %v", err)
				}
			})
		}
	})

	etcd.StartAll()
	etcdtest.WaitFor(t, "the node to be in step again", func(context.Context) error {
		if s := again.app.vault.part.Store.Stats(); !s.Connected || s.Age > time.Minute {
			return fmt.Errorf("it is at %+v", s)
		}
		return nil
	})
	if status, body := again.api(t, http.MethodPost, "/v1/tokens", root, `{"name":"second","scopes":["things"]}`); status != http.StatusCreated {
		t.Errorf("create once etcd is back: %d %s", status, body)
	}
}
