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
		Use:        "serve --config FILE",
		SuggestFor: []string{"run", "start", "server"},
		Short:      "Run the proxy, the token APIs and the metrics listener",
		Long: "Run the proxy, the token APIs and the metrics listener until SIGTERM or SIGINT.\n" +
			"Then no new connections are taken, requests in flight are finished within\n" +
			"proxy.timeouts.drain, everything is written, and the exit code is 0.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(config)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), cfg, config, cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&config, "config", "tokenward.yaml", "configuration file; config.example.yaml shows every key")
	return cmd
}

// serve runs one app until ctx ends, and then drains it. path is where cfg was
// read from.
func serve(ctx context.Context, cfg *Config, path string, stderr io.Writer) error {
	loaded := cfg.fingerprint(path)
	hangup, stop := hangups()
	defer stop()
	faults, warnings := cfg.checkFiles(time.Now())
	if len(faults) > 0 {
		return newConfigError(path, nil, faults)
	}
	level := new(slog.LevelVar)
	log := newLeveledLogger(cfg, stderr, level)
	warnOf(log, cfg, warnings)
	a, err := newApp(ctx, cfg, log, time.Now)
	if err != nil {
		return err
	}
	a.path, a.loaded, a.hangup, a.level = path, loaded, hangup, level
	return a.run(ctx)
}

// newLogger returns a logger whose level stays what cfg says.
func newLogger(cfg *Config, w io.Writer) *slog.Logger {
	return newLeveledLogger(cfg, w, new(slog.LevelVar))
}

// newLeveledLogger returns a logger whose level is that of level, which begins at
// what cfg says.
func newLeveledLogger(cfg *Config, w io.Writer, level *slog.LevelVar) *slog.Logger {
	level.Set(cfg.logLevel())
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Log.Format == "text" {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}
