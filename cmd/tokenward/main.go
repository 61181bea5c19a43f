// Command tokenward lets a request through to an HTTP API only when its API
// token allows it, and issues and manages those tokens.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The exit codes of every command.
const (
	exitFine   = 0 // done
	exitFailed = 1 // refused or failed
	exitUsage  = 2 // the command line itself is wrong
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// Who presses Ctrl-C twice does not want to wait; SIGTERM may come twice by itself.
	context.AfterFunc(ctx, func() { signal.Reset(os.Interrupt) })
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(&input{ctx: ctx, from: stdin, buf: make([]byte, 32<<10), done: make(chan result, 1)})
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitFine
	}
	text := err.Error()
	if config := cmd.Flags().Lookup("config"); config != nil {
		text = withConfig(text, config.Value.String())
	}
	switch {
	case errors.As(err, new(usageError)):
		fmt.Fprintf(stderr, "tokenward: %s\nRun `%s --help` for usage.\n", text, cmd.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(stderr, "tokenward: %s\n", text+openFilesHint(err))
	return exitFailed
}

// openFilesHint says what to do where no more files may be open: whatever is opened
// can meet that.
func openFilesHint(err error) string {
	switch {
	case errors.Is(err, syscall.EMFILE):
		return "\nThis process may have no more files open: raise its limit, with `ulimit -n 65536`, or LimitNOFILE in its systemd unit"
	case errors.Is(err, syscall.ENFILE):
		return "\nThis machine may have no more files open: raise its limit, fs.file-max of sysctl, or end what holds so many"
	}
	return ""
}

// input is standard input, until ctx ends: a read of a terminal or a pipe cannot be
// broken off. What it reads by then is lost.
type input struct {
	ctx  context.Context // lives as long as one command
	from io.Reader
	buf  []byte      // of the read that is under way
	done chan result // likewise
}

// result is what a read gave.
type result struct {
	n   int
	err error
}

func (i *input) Read(p []byte) (int, error) {
	if err := context.Cause(i.ctx); err != nil {
		return 0, err
	}
	go i.next(i.buf[:min(len(p), len(i.buf))])
	select {
	case r := <-i.done:
		return copy(p, i.buf[:r.n]), r.err
	case <-i.ctx.Done():
		return 0, context.Cause(i.ctx)
	}
}

// next ends once there is something to read.
func (i *input) next(p []byte) {
	n, err := i.from.Read(p)
	i.done <- result{n, err}
}

// withConfig names the configuration where a message from below, where it is not
// known, says F for it, so that the command that the message ends with can be typed
// as it stands.
func withConfig(text, path string) string {
	if path == "" {
		return text
	}
	return strings.ReplaceAll(text, "--config F`", "--config "+shellWord(path)+"`")
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "tokenward",
		Short: "Let a request through to an HTTP API only when its API token allows it",
		Long: "tokenward stands in front of an HTTP API and lets a request through only when\n" +
			"its API token allows it. It issues and manages those tokens itself.\n\n" +
			"New here? `tokenward demo` shows it at work in one minute.",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       readBuildInfo().String(),
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		// The flag may be right, and the command before it mistyped.
		if args := cmd.Flags().Args(); cmd.HasSubCommands() && len(args) > 0 {
			return usageError{unknownCommand(cmd, args[0])}
		}
		return usageError{wrongFlag(cmd, err)}
	})
	root.AddCommand(
		newServeCommand(), newInitCommand(), newCheckCommand(), newExplainCommand(), newHealthCommand(),
		newTokenCommand(), newReportCommand(), newAuditCommand(), newPatternCommand(), newScanCommand(),
		newBackupCommand(), newRestoreCommand(), newDoctorCommand(), newMigrateCommand(), newClusterCommand(),
		newDemoCommand(), newCompletionCommand(), newVersionCommand(),
	)
	useUsageErrors(root)
	offerNoFiles(root)
	root.SetHelpCommand(newHelpCommand(root))
	return root
}

// newHelpCommand is cobra's own, but that asking for what there is not is a wrong
// command line.
func newHelpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show the help of a command",
		RunE: func(_ *cobra.Command, args []string) error {
			about, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usageError{fmt.Errorf("there is no command %q", strings.Join(args, " "))}
			}
			return about.Help()
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			about, _, err := root.Find(args)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []cobra.Completion
			for _, sub := range about.Commands() {
				if sub.IsAvailableCommand() {
					names = append(names, cobra.CompletionWithDesc(sub.Name(), sub.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

// useUsageErrors makes wrong arguments of every command a usageError.
func useUsageErrors(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{wrongArguments(cmd, args, err)}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		useUsageErrors(sub)
	}
}

// wrongArguments says in our words what cobra's checks of arguments find; errors
// of our own checks stay as they are. Cobra calls every argument that is too many
// an unknown command, and repeats it, though it may be a secret.
func wrongArguments(cmd *cobra.Command, args []string, err error) error {
	switch text := err.Error(); {
	case strings.HasPrefix(text, "unknown command") && cmd.HasSubCommands():
		return unknownCommand(cmd, args[0])
	case strings.HasPrefix(text, "unknown command") && cmd.Flags().Lookup("config") != nil:
		return fmt.Errorf("%q takes flags only: a configuration is named with --config FILE", cmd.CommandPath())
	case strings.HasPrefix(text, "unknown command"):
		return fmt.Errorf("%q takes flags only", cmd.CommandPath())
	case strings.HasPrefix(text, "accepts "), strings.HasPrefix(text, "requires "):
		return fmt.Errorf("the arguments are not those that it takes: write %s", strings.TrimSuffix(cmd.UseLine(), " [flags]"))
	}
	return err
}

// wrongFlag says in our words what is wrong with a flag: what its value has to be, and
// for a flag that cmd does not have those that may be meant.
func wrongFlag(cmd *cobra.Command, err error) error {
	if value, is := errors.AsType[*pflag.InvalidValueError](err); is {
		switch flag := value.GetFlag(); flag.Value.Type() {
		case "uint64", "int":
			return fmt.Errorf("--%s takes a whole number", flag.Name) // what it was given may be a secret
		case "bool":
			return fmt.Errorf("--%s takes no value", flag.Name)
		}
	}
	missing, is := errors.AsType[*pflag.NotExistError](err)
	if !is || len(missing.GetSpecifiedName()) < 2 {
		return err
	}
	flags := &cobra.Command{SuggestionsMinimumDistance: 2} // it knows which of its commands is like a name
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			flags.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
		}
	})
	meant := flags.SuggestionsFor(missing.GetSpecifiedName())
	if len(meant) == 0 {
		return err
	}
	return fmt.Errorf("%w: did you mean --%s?", err, strings.Join(meant, " or --"))
}

// unknownCommand tells of a command that is not below cmd, and of those that may
// be meant.
func unknownCommand(cmd *cobra.Command, name string) error {
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz-") != "" {
		return fmt.Errorf("%q has no such command", cmd.CommandPath())
	}
	cmd.SuggestionsMinimumDistance = 2
	var meant []string
	for _, sub := range cmd.SuggestionsFor(name) {
		meant = append(meant, fmt.Sprintf("`%s %s`", cmd.CommandPath(), sub))
	}
	if len(meant) == 0 {
		return fmt.Errorf("%q has no command %q", cmd.CommandPath(), name)
	}
	return fmt.Errorf("%q has no command %q: did you mean %s?", cmd.CommandPath(), name, strings.Join(meant, " or "))
}
