package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tokenward/admin/native"
)

// pathCluster is where a node of a cluster tells of all; other servers have no
// such path.
const pathCluster = "/cluster"

func newClusterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Look at the nodes of a cluster",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newClusterStatusCommand())
	return cmd
}

func newClusterStatusCommand() *cobra.Command {
	t := &tokenCommand{now: time.Now}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show each node with its version, its revision and the age of its data",
		Long: "Show each node of the cluster with its version, the revision of etcd up to which it has\n" +
			"heard everything, and since when it might lack something. Each node is asked and has\n" +
			"a second to answer; for one that does not, its last report is shown. Needs a root token.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.server.client(cmd)
			if err != nil {
				return err
			}
			one := call{doing: "show the cluster", method: http.MethodGet, path: pathCluster}
			answer, err := c.do(cmd.Context(), one)
			if err != nil {
				return err
			}
			if t.asJSON {
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n", answer)
				return err
			}
			var status struct {
				Revision int64         `json:"revision"`
				Nodes    []native.Node `json:"nodes"`
			}
			if err := json.Unmarshal(answer, &status); err != nil {
				return c.strange(one, err.Error())
			}
			return printCluster(cmd.OutOrStdout(), status.Revision, status.Nodes, t.now())
		},
	}
	t.server.add(cmd)
	cmd.Flags().BoolVar(&t.asJSON, "json", false, "print the server's JSON")
	return cmd
}

func printCluster(w io.Writer, revision int64, nodes []native.Node, now time.Time) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Revision %d, %s.\n\n", revision, counted(len(nodes), "node"))
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tVERSION\tMIRROR\tREVISION\tBEHIND\tAGE\tSAID\tUP")
	for i := range nodes {
		n := &nodes[i]
		age := "unknown"
		if n.AgeMS != nil {
			age = (time.Duration(*n.AgeMS) * time.Millisecond).String()
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", n.Name, n.Version, n.Mirror, n.Revision, max(0, revision-n.Revision), age, since(n.SaidAt, now), up(n, now))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// up is how long a node has been up. One that stopped is waited for like the others, as
// it may start again from its copy.
func up(n *native.Node, now time.Time) string {
	if n.Stopped {
		return "stopped"
	}
	return since(n.Started, now)
}

// since is how long ago a node says that something was, by two clocks.
func since(t *native.Time, now time.Time) string {
	if t == nil {
		return "unknown"
	}
	return max(0, now.Sub(t.Time)).Round(time.Second).String()
}
