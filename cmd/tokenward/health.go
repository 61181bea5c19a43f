package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const defaultMetrics = "http://127.0.0.1:8082"

// healthQuery is one question to a server's metrics listener.
type healthQuery struct {
	server string
	live   bool
	asJSON bool
}

// readiness is the answer of /readyz.
type readiness struct {
	Ready  bool `json:"ready"`
	Checks []struct {
		Name   string `json:"name"`
		State  string `json:"state"`
		Detail string `json:"detail"`
	} `json:"checks"`
}

// newHealthCommand asks a running server whether it is ready: what a container
// without a shell or curl uses as its health check.
func newHealthCommand() *cobra.Command {
	var q healthQuery
	cmd := &cobra.Command{
		Use:        "health",
		SuggestFor: []string{"status", "ready"},
		Short:      "Ask a running server whether it is ready to serve",
		Args:       cobra.NoArgs,
		RunE:       func(cmd *cobra.Command, _ []string) error { return q.ask(cmd.Context(), cmd.OutOrStdout()) },
	}
	cmd.Flags().StringVar(&q.server, "metrics", defaultMetrics, "`URL` of the server's metrics listener")
	cmd.Flags().BoolVar(&q.live, "live", false, "ask only whether the process answers")
	cmd.Flags().BoolVar(&q.asJSON, "json", false, "print the server's JSON")
	return cmd
}

func (q *healthQuery) ask(ctx context.Context, out io.Writer) error {
	base, err := url.Parse(q.server)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Hostname() == "" {
		return usageError{errors.New("--metrics is not the URL of a server: write it as " + defaultMetrics)}
	}
	path := "/readyz"
	if q.live {
		path = "/healthz"
	}
	where := strings.TrimSuffix(q.server, "/") + path
	status, body, err := getHealth(ctx, where)
	if err != nil {
		return err
	}
	if q.live {
		if status != http.StatusOK || string(body) != "ok\n" {
			return notTheMetrics(where, status)
		}
		return q.printLive(out)
	}
	var answer readiness
	if json.Unmarshal(body, &answer) != nil || len(answer.Checks) == 0 || answer.Ready != (status == http.StatusOK) {
		return notTheMetrics(where, status)
	}
	if err := q.printReady(out, body, &answer); err != nil {
		return err
	}
	if !answer.Ready {
		return errors.New("the server is not ready: the checks above that are failing say why")
	}
	return nil
}

func getHealth(ctx context.Context, where string) (status int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return 0, nil, usageError{fmt.Errorf("--metrics: %w", err)}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("no answer from %s: %w\nIs the server running, and is metrics.listen its address? Give another with --metrics URL", where, err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(io.LimitReader(resp.Body, 64<<10)); err != nil {
		return 0, nil, fmt.Errorf("read answer of %s: %w", where, err)
	}
	return resp.StatusCode, body, nil
}

// notTheMetrics is what is said of whoever answers and is not tokenward, such as the
// API behind it, which may well have a path of that name and be fine.
func notTheMetrics(where string, status int) error {
	return fmt.Errorf("%s does not answer as tokenward's metrics listener does, but with %d %s: give its address, metrics.listen, with --metrics URL", where, status, http.StatusText(status))
}

func (q *healthQuery) printLive(out io.Writer) error {
	text := "The server answers.\n"
	if q.asJSON {
		text = `{"live":true}` + "\n"
	}
	_, err := io.WriteString(out, text)
	return err
}

func (q *healthQuery) printReady(out io.Writer, body []byte, answer *readiness) error {
	if q.asJSON {
		_, err := fmt.Fprintf(out, "%s\n", strings.TrimSpace(string(body)))
		return err
	}
	var b strings.Builder
	for _, c := range answer.Checks {
		fmt.Fprintf(&b, "%-7s  %s", c.State, c.Name)
		if c.Detail != "" {
			b.WriteString(": " + c.Detail)
		}
		b.WriteByte('\n')
	}
	if answer.Ready {
		b.WriteString("The server is ready.\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}
