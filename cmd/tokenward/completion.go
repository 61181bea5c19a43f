package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// newCompletionCommand stands in for cobra's own, which takes a shell that it
// does not know for a wish to read its help.
func newCompletionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion " + strings.Join(shells, "|"),
		Short: "Print the script that completes command lines in a shell",
		Long: "Print the script that lets a shell complete the command lines of tokenward. Load it in\n" +
			"the running shell as below, or write it to where the shell looks for completions. Bash\n" +
			"needs the package bash-completion for it, and zsh compinit.",
		Example: "  source <(tokenward completion bash)\n" +
			"  source <(tokenward completion zsh)\n" +
			"  tokenward completion fish | source\n" +
			"  tokenward completion powershell | Out-String | Invoke-Expression",
		ValidArgs: shells,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(shells, args[0]) {
				return fmt.Errorf("name one shell: %s", strings.Join(shells, ", "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			}
			return root.GenPowerShellCompletionWithDesc(out)
		},
	}
}

// offerNoFiles keeps shells from offering files as arguments of the commands that take
// none, below cmd. Values of flags are another thing.
func offerNoFiles(cmd *cobra.Command) {
	files := []string{"import", "restore", "scan"}
	if cmd.ValidArgsFunction == nil && len(cmd.ValidArgs) == 0 && !slices.Contains(files, cmd.Name()) {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, sub := range cmd.Commands() {
		offerNoFiles(sub)
	}
}
