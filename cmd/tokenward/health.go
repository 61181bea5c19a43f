package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// newHealthCommand asks a running server whether it is ready: what a container
// without a shell or curl uses as its health check.
func newHealthCommand() *cobra.Command {
	var url string
	var live bool
	cmd := &cobra.Command{
		Use:        "health",
		SuggestFor: []string{"status", "ready"},
		Short:      "Ask a running server whether it is ready to serve",
		Args:       cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := "/readyz"
			if live {
				path = "/healthz"
			}
			return askHealth(cmd.Context(), cmd.OutOrStdout(), strings.TrimSuffix(url, "/")+path)
		},
	}
	cmd.Flags().StringVar(&url, "metrics", "http://127.0.0.1:8082", "URL of the server's metrics listener")
	cmd.Flags().BoolVar(&live, "live", false, "ask only whether the process answers")
	return cmd
}

func askHealth(ctx context.Context, out io.Writer, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return usageError{fmt.Errorf("--metrics: %w", err)}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("no answer from %s: %w\nIs the server running, and is metrics.listen its address? Give another with --metrics URL", url, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("read answer of %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable {
		return fmt.Errorf("%s does not answer as tokenward's metrics listener does, but with %s: give its address, metrics.listen, with --metrics URL", url, resp.Status)
	}
	fmt.Fprintln(out, strings.TrimSpace(string(body)))
	if resp.StatusCode != http.StatusOK {
		return errors.New("the server is not ready: the checks above that are failing say why")
	}
	return nil
}
