package main

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
)

func newServeCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the proxy, the token APIs and the metrics listener",
		Long: "Run the proxy, the token APIs and the metrics listener until SIGTERM or SIGINT.\n" +
			"Then no new connections are taken, requests in flight are finished within\n" +
			"proxy.timeouts.drain, everything is written, and the exit code is 0.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(config)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), cfg, newLogger(cfg, cmd.ErrOrStderr()))
		},
	}
	cmd.Flags().StringVar(&config, "config", "tokenward.yaml", "configuration file; config.example.yaml shows every key")
	return cmd
}

// serve runs one app until ctx ends, and then drains it.
func serve(ctx context.Context, cfg *Config, log *slog.Logger) error {
	a, err := newApp(ctx, cfg, log, time.Now)
	if err != nil {
		return err
	}
	return a.run(ctx)
}

func newLogger(cfg *Config, w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.logLevel()}
	if cfg.Log.Format == "text" {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}
