package native

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"tokenward/admin"
)

// Cluster lets the face speak of other nodes.
type Cluster interface {
	// WaitAll returns nil once every node has applied what this one has applied,
	// and else the names of those of which that is not known when ctx ends.
	WaitAll(ctx context.Context) (lagging []string, err error)
	// Members returns what each node says of itself, and the revision of the store.
	Members(ctx context.Context) (nodes []Node, revision int64, err error)
}

// Node is what one node of a cluster says of itself.
type Node struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	Mirror   string `json:"mirror"` // full or on_demand
	OnStale  string `json:"on_stale"`
	Revision int64  `json:"revision"`
	AgeMS    *int64 `json:"age_ms"` // of what it holds, as it said; null: it does not know
	SaidAt   *Time  `json:"said_at"`
	Started  *Time  `json:"started_at"`
	Stopped  bool   `json:"stopped"` // in good order, and may start again from its copy
}

// waitPatience bounds how long an answer waits for other nodes.
const waitPatience = 30 * time.Second

// waits reads whether the answer is to wait for all nodes.
func waits(q *query) bool {
	q.oneOf("wait", "all")
	return q.Get("wait") == "all"
}

// waitAll waits for the other nodes after a change. On a single node there are none.
func (f *Face) waitAll(ctx context.Context) error {
	if f.options.Cluster == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, waitPatience)
	defer cancel()
	lagging, err := f.options.Cluster.WaitAll(ctx)
	switch {
	case len(lagging) > 0:
		slices.Sort(lagging)
		return &admin.Error{Kind: admin.KindUnavailable, RetryAfter: time.Second, Cause: err,
			Detail: "The change is made and holds on this node. These nodes have not confirmed it: " + strings.Join(lagging, ", ") + ". Send the request again to wait for them."}
	case err != nil:
		return &admin.Error{Kind: admin.KindUnavailable, RetryAfter: time.Second, Cause: err,
			Detail: "The change is made and holds on this node. Whether the other nodes have it could not be found out. Send the request again to wait for them."}
	}
	return nil
}

// cluster answers `GET /v1/cluster`.
func (f *Face) cluster(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	if err := f.service.MaySeeNodes(c); err != nil {
		return err
	}
	nodes, revision, err := f.options.Cluster.Members(r.Context())
	if err != nil {
		return &admin.Error{Kind: admin.KindUnavailable, Cause: err, RetryAfter: time.Second, Detail: "The nodes of the cluster cannot be asked now."}
	}
	slices.SortFunc(nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return admin.WriteJSON(w, http.StatusOK, mediaType, struct {
		Revision int64  `json:"revision"`
		Nodes    []Node `json:"nodes"`
	}{revision, nodes})
}
