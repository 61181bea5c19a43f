package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ClusterStats are what a node tells of its part in a cluster.
type ClusterStats struct {
	Revision    int64     // of etcd, up to which the node has heard everything
	Connected   bool      // the last contact with etcd succeeded
	LastContact time.Time // zero: there was none
	Nodes       int       // known to etcd

	Conflicts  uint64 // changes made again because another node was quicker
	Unknown    uint64 // changes of which it stayed open whether they were made
	Loads      uint64 // times that everything was read
	Watches    uint64 // watches begun
	Unreadable uint64 // records that could not be read
}

// WatchCluster adds the metrics of a node's part in a cluster. f is called at each
// scrape, from any goroutine, and must be quick. A second call panics.
func (r *Registry) WatchCluster(f func() ClusterStats) { r.prom.MustRegister(newClusterCollector(f)) }

type clusterCollector struct {
	stats                                          func() ClusterStats
	revision, connected, contact, nodes            *prometheus.Desc
	conflicts, unknown, loads, watches, unreadable *prometheus.Desc
}

func newClusterCollector(f func() ClusterStats) *clusterCollector {
	return &clusterCollector{
		stats:      f,
		revision:   desc("tokenward_cluster_revision", "Revision of etcd up to which this node has heard everything."),
		connected:  desc("tokenward_cluster_connected", "Whether the last contact with etcd succeeded."),
		contact:    desc("tokenward_cluster_last_contact_timestamp_seconds", "When etcd was last reached; 0: never."),
		nodes:      desc("tokenward_cluster_nodes", "Nodes that etcd knows of."),
		conflicts:  desc("tokenward_cluster_conflicts_total", "Changes made again because another node was quicker."),
		unknown:    desc("tokenward_cluster_unknown_outcomes_total", "Changes of which it stayed open whether they were made."),
		loads:      desc("tokenward_cluster_loads_total", "Times that everything was read from etcd."),
		watches:    desc("tokenward_cluster_watches_total", "Watches begun."),
		unreadable: desc("tokenward_cluster_unreadable_records_total", "Records in etcd that this node could not read, and whose tokens it refuses."),
	}
}

func (c *clusterCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.revision, c.connected, c.contact, c.nodes, c.conflicts, c.unknown, c.loads, c.watches, c.unreadable} {
		ch <- d
	}
}

func (c *clusterCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	connected, contact := 0.0, 0.0
	if s.Connected {
		connected = 1
	}
	if !s.LastContact.IsZero() {
		contact = float64(s.LastContact.UnixMilli()) / 1000
	}
	ch <- gauge(c.revision, float64(s.Revision))
	ch <- gauge(c.connected, connected)
	ch <- gauge(c.contact, contact)
	ch <- gauge(c.nodes, float64(s.Nodes))
	ch <- counter(c.conflicts, s.Conflicts)
	ch <- counter(c.unknown, s.Unknown)
	ch <- counter(c.loads, s.Loads)
	ch <- counter(c.watches, s.Watches)
	ch <- counter(c.unreadable, s.Unreadable)
}
