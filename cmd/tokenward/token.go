package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tokenward/admin/native"
	"tokenward/tokenstore"
)

// tokenCommand is what the verbs on tokens share.
type tokenCommand struct {
	server serverFlags
	asJSON bool
	now    func() time.Time
}

func newTokenCommand() *cobra.Command {
	t := &tokenCommand{now: time.Now}
	cmd := &cobra.Command{
		Use:        "token",
		SuggestFor: []string{"tokens", "list", "create", "rotate", "revoke"},
		Short:      "Make, show, change and end tokens on a running server",
		Long: "Make, show, change and end tokens on a running server, through its admin listener.\n\n" +
			"The server is named by --admin or $" + envAdmin + ", and the token to call it with stands in\n" +
			"the file of --token-file or in $" + envToken + ": a secret is never an argument, because\n" +
			"arguments show in the process table and in the history of shells.\n\n" +
			"Where a token's id is wanted, `self` is the calling token.",
		Example: "  tokenward token create --name ci --scopes cards:read --resource account:1001:read --expires 90d\n" +
			"  tokenward token list --state active\n" +
			"  tokenward token rotate 7\n" +
			"  tokenward token revoke 7 --descendants",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	t.server.add(cmd)
	cmd.PersistentFlags().BoolVar(&t.asJSON, "json", false, "print the server's JSON, an object on each line for several tokens")
	cmd.AddCommand(t.newCreate(), t.newList(), t.newShow(), t.newUpdate(), t.newRotate(), t.newReset(),
		t.newState("disable", "Refuse tokens until they are enabled again"),
		t.newState("enable", "Let disabled tokens pass again"),
		t.newRevoke(), t.newImport())
	return cmd
}

func (t *tokenCommand) newCreate() *cobra.Command {
	var fields tokenFlags
	cmd := &cobra.Command{
		Use:        "create --name NAME",
		SuggestFor: []string{"add", "new", "make", "issue"},
		Short:      "Make a token and print its secret, once",
		Long: "Make a token and print its secret, which cannot be read again.\n\n" +
			"What is left out is as with the calling token, but the new token is valid from the\n" +
			"start. For root, account and owner are the server's defaults. Naming one limit leaves\n" +
			"the others off.",
		Example: "  tokenward token create --name reporting --scopes accounts:read,cards:read --expires 2027-01-31T00:00:00Z\n" +
			"  tokenward token create --name office --source 192.0.2.0/24 --source 2001:db8::/32 --rate 5 --quota 10000/day",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body, err := fields.body(cmd, t.now())
			if err != nil {
				return usageError{err}
			}
			if _, named := body["name"]; !named {
				return usageError{errors.New("--name is missing: say what the token is for")}
			}
			return t.make(cmd, call{doing: "create the token", path: "/tokens", body: body, field: fields.names()}, func(v *tokenView) string {
				return fmt.Sprintf("Token %d was made.", v.ID)
			})
		},
	}
	fields.add(cmd)
	fields.addHome(cmd)
	return cmd
}

// make makes a call that yields a secret, and prints what was done, the secret
// and the token.
func (t *tokenCommand) make(cmd *cobra.Command, one call, done func(*tokenView) string) error {
	one.method, one.once = http.MethodPost, true
	return t.one(cmd, one, func(v *tokenView) string {
		return done(v) + newSecretText(v) + "\n" + tokenTable(v, t.now())
	})
}

// one makes a call that is answered with one token, and prints what say makes
// of it.
func (t *tokenCommand) one(cmd *cobra.Command, one call, say func(*tokenView) string) error {
	c, err := t.server.client(cmd)
	if err != nil {
		return err
	}
	return t.oneOf(cmd, c, one, say)
}

func (t *tokenCommand) oneOf(cmd *cobra.Command, c *client, one call, say func(*tokenView) string) error {
	var unknown string
	one.told = func(h http.Header) { unknown = h.Get(native.UnknownScopesHeader) }
	answer, err := c.do(cmd.Context(), one)
	if err != nil {
		return err
	}
	if unknown != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: no route and no enforce.known_scopes knows the scope %s: nothing will ever ask for it. "+
			"If it is a slip, put it right with `tokenward token update`; if not, name it in enforce.known_scopes\n", shownText(strings.ReplaceAll(unknown, " ", ", ")))
	}
	text := string(answer) + "\n"
	var v tokenView
	if err := json.Unmarshal(answer, &v); err != nil && !t.asJSON {
		return c.strange(one, err.Error())
	}
	if !t.asJSON {
		text = say(&v)
	}
	if one.once {
		tellBrokenPipe()
	}
	_, err = io.WriteString(cmd.OutOrStdout(), text)
	if err != nil && one.once {
		return unprinted(&v, err)
	}
	return err
}

// tellBrokenPipe has a write fail where nobody reads the pipe any more. That would
// else end the program without a word, and nobody would know that there is a secret
// that nobody has.
func tellBrokenPipe() { signal.Ignore(syscall.SIGPIPE) }

// unprinted is the error of a secret that was made and that nobody got to see.
func unprinted(v *tokenView, cause error) error {
	rotate := fmt.Sprintf("`tokenward token rotate %d`", v.ID)
	next := "Run " + rotate + " to have another"
	if len(v.Secrets) > 1 {
		next = fmt.Sprintf("The one before it works on until its end. To have another now, run `tokenward token rotate %d --finish`, which ends that one too, and then %s", v.ID, rotate)
	}
	return fmt.Errorf("token %d has a new secret, but it could not be printed, and cannot be read again: %w\n%s", v.ID, cause, next)
}

func (t *tokenCommand) newList() *cobra.Command {
	var account, owner uint64
	var state, name, unused, cursor string
	var limit int
	cmd := &cobra.Command{
		Use:        "list",
		SuggestFor: []string{"ls"},
		Short:      "List tokens, newest first",
		Long: "List the tokens that the calling token may see, newest first: those of its account,\n" +
			"or for root of all accounts. With --json the output is one object in the form of one\n" +
			"page; its `next` is null unless --limit ended the list, and then goes into --cursor.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			query := url.Values{}
			set := func(flag, value string) {
				if cmd.Flags().Changed(flag) {
					query.Set(flag, value)
				}
			}
			set("account", strconv.FormatUint(account, 10))
			set("owner", strconv.FormatUint(owner, 10))
			set("state", state)
			set("name", name)
			if cmd.Flags().Changed("unused-since") {
				at, err := parseAgo(unused, t.now())
				if err != nil {
					return usageError{fmt.Errorf("--unused-since %q %w", unused, err)}
				}
				query.Set("unused_since", wireTime(at))
			}
			set("cursor", cursor)
			if limit < 0 || limit == 0 && cmd.Flags().Changed("limit") {
				return usageError{errors.New("--limit must be at least 1; leave it out to list all")}
			}
			return t.list(cmd, query, limit)
		},
	}
	f := cmd.Flags()
	f.Uint64Var(&account, "account", 0, "only this account `number`; 0 is that of root tokens")
	f.Uint64Var(&owner, "owner", 0, "only this owner's `number`")
	f.StringVar(&state, "state", "", "only this `state`: "+strings.Join(tokenStates(), ", "))
	f.StringVar(&name, "name", "", "only names with this `text` in them, in any case")
	f.StringVar(&unused, "unused-since", "", "only those not used since `then`: a time (RFC 3339), or a duration ago such as 90d or 12h")
	f.IntVar(&limit, "limit", 0, "at most this `number` (default: all)")
	f.StringVar(&cursor, "cursor", "", "go on at the `cursor` where an earlier list ended")
	mustComplete(cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(tokenStates(), cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// mustComplete panics where a completion names a flag that is not there.
func mustComplete(err error) {
	if err != nil {
		panic("completion: " + err.Error())
	}
}

// tokenStates are the states a list can ask for.
func tokenStates() []string {
	var all []string
	for s := tokenstore.StatusActive; s <= tokenstore.StatusNotYetValid; s++ {
		all = append(all, s.String())
	}
	return all
}

// pageTokens is how many tokens one call asks for.
const pageTokens = 1000

// list prints page after page; limit 0 is no limit.
func (t *tokenCommand) list(cmd *cobra.Command, query url.Values, limit int) error {
	c, err := t.server.client(cmd)
	if err != nil {
		return err
	}
	out := newListWriter(cmd.OutOrStdout(), t.asJSON, t.now())
	one := call{doing: "list the tokens", method: http.MethodGet, path: "/tokens", query: query, field: listFieldNames()}
	for {
		size := pageTokens
		if limit > 0 {
			size = min(size, limit-out.count)
		}
		query.Set("limit", strconv.Itoa(size))
		next, err := c.page(cmd.Context(), one, out.token)
		if err != nil {
			out.abort()
			return err
		}
		switch {
		case next == "" || limit > 0 && out.count >= limit:
			return out.end(next)
		case next == query.Get("cursor"):
			out.abort()
			return c.strange(one, "its pages of the list go round in circles")
		}
		query.Set("cursor", next)
		if err := out.flush(); err != nil {
			return err
		}
	}
}

func (t *tokenCommand) newShow() *cobra.Command {
	return &cobra.Command{
		Use:        "show [ID…]",
		SuggestFor: []string{"get", "describe"},
		Short:      "Show tokens in full; without an id the calling token",
		Args:       tokenIDs(0, anyNumber),
		RunE: func(cmd *cobra.Command, ids []string) error {
			if len(ids) == 0 {
				ids = []string{"self"}
			}
			shown := 0
			return t.each(cmd, ids, func(id string) call {
				return call{doing: "show " + tokenText(id), id: id, method: http.MethodGet, path: "/tokens/" + id}
			}, func(v *tokenView) string {
				separator := ""
				if shown++; shown > 1 {
					separator = "\n"
				}
				return separator + tokenTable(v, t.now())
			})
		},
	}
}

// each makes a call for each id. One that fails does not keep the others from
// being made.
func (t *tokenCommand) each(cmd *cobra.Command, ids []string, one func(id string) call, say func(*tokenView) string) error {
	c, err := t.server.client(cmd)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		errs = append(errs, t.oneOf(cmd, c, one(id), say))
	}
	return errors.Join(errs...)
}

func (t *tokenCommand) newUpdate() *cobra.Command {
	var wait bool
	var fields tokenFlags
	var revision uint64
	cmd := &cobra.Command{
		Use:        "update ID",
		SuggestFor: []string{"edit", "set", "change"},
		Short:      "Change what a token may do, its name, times or limits",
		Long: "Change a token. What is left out stays as it is; a list that is given replaces the\n" +
			"whole list. `none` takes a limit, a start or the refused addresses away.",
		Example: "  tokenward token update 7 --scopes accounts:read --rate none\n" +
			"  tokenward token update 7 --expires 30d --if-revision 3",
		Args: tokenIDs(1, 1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			body, err := fields.body(cmd, t.now())
			if err != nil {
				return usageError{err}
			}
			if len(body) == 0 {
				return usageError{errors.New("nothing is to be changed: give at least one field, such as --name")}
			}
			if revision == 0 && cmd.Flags().Changed("if-revision") {
				return usageError{errors.New("--if-revision must be at least 1; leave it out to change any")}
			}
			one := call{doing: "change " + tokenText(ids[0]), id: ids[0], method: http.MethodPatch, path: "/tokens/" + ids[0], body: body, match: revision, field: fields.names(), query: waitQuery(wait)}
			return t.one(cmd, one, func(v *tokenView) string { return fmt.Sprintf("Token %d is now:\n\n", v.ID) + tokenTable(v, t.now()) })
		},
	}
	fields.add(cmd)
	addWait(cmd, &wait)
	cmd.Flags().Uint64Var(&revision, "if-revision", 0, "only if the token is at this `revision` still, which show tells")
	return cmd
}

func (t *tokenCommand) newRotate() *cobra.Command {
	var oldEnds, silence string
	var finish bool
	cmd := &cobra.Command{
		Use:   "rotate ID",
		Short: "Give a token a second secret, print it once, and end the old one later",
		Long: "Give a token a second secret and print it, once. The token stays what it is: its id,\n" +
			"history and limits. The old secret ends after the server's grace period\n" +
			"(tokenstore.reset_grace), at --old-ends, or once it has not been used for as long as\n" +
			"--old-ends-after-silence says; --finish ends it now.",
		Example: "  tokenward token rotate 7 --old-ends 2d\n" +
			"  tokenward token rotate 7 --old-ends-after-silence 48h\n" +
			"  tokenward token rotate 7 --finish",
		Args: tokenIDs(1, 1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			id := ids[0]
			given, silent := cmd.Flags().Changed("old-ends"), cmd.Flags().Changed("old-ends-after-silence")
			switch {
			case finish && given:
				return usageError{errors.New("--finish ends the old secret now, so --old-ends has no meaning beside it: leave one out")}
			case finish && silent:
				return usageError{errors.New("--finish ends the old secret now, so --old-ends-after-silence has no meaning beside it: leave one out")}
			case given && silent:
				return usageError{errors.New("--old-ends and --old-ends-after-silence exclude each other: leave one out")}
			case finish:
				one := call{doing: "finish the rotation of " + tokenText(id), id: id, method: http.MethodPost, path: "/tokens/" + id + "/rotate/finish"}
				return t.one(cmd, one, func(v *tokenView) string {
					return fmt.Sprintf("Only the newest secret of token %d is left.\n", v.ID)
				})
			}
			body := map[string]any{}
			if given {
				at, err := parseWhen(oldEnds, t.now())
				if err != nil {
					return usageError{fmt.Errorf("--old-ends %q %w", oldEnds, err)}
				}
				body["old_ends_at"] = wireTime(at)
			}
			if silent {
				body["old_ends_after_silence"] = silence
			}
			one := call{doing: "rotate " + tokenText(id), id: id, path: "/tokens/" + id + "/rotate", body: body,
				field: fieldNames{"old_ends_at": {flag: "old-ends"}, "old_ends_after_silence": {flag: "old-ends-after-silence"}}}
			return t.make(cmd, one, func(v *tokenView) string { return rotatedText(v, t.now()) })
		},
	}
	cmd.Flags().StringVar(&oldEnds, "old-ends", "", "`when` the old secret ends: a time (RFC 3339), or a duration such as 90d or 12h (default: after the grace period)")
	cmd.Flags().StringVar(&silence, "old-ends-after-silence", "", "end the old secret once it has not been used for this `duration`, such as 48h or 7d")
	cmd.Flags().BoolVar(&finish, "finish", false, "end the old secret now, and make none")
	return cmd
}

func rotatedText(v *tokenView, now time.Time) string {
	text := fmt.Sprintf("Token %d has a new secret.", v.ID)
	if len(v.Secrets) > 1 && v.Secrets[1].Silence != "" {
		text += fmt.Sprintf(" The old one (…%s) ends once it has not been used for %s.", shownText(v.Secrets[1].Last4), shownText(v.Secrets[1].Silence))
	} else if len(v.Secrets) > 1 && v.Secrets[1].EndsAt != nil {
		text += fmt.Sprintf(" The old one (…%s) ends %s.", shownText(v.Secrets[1].Last4), timeText(*v.Secrets[1].EndsAt, now))
	}
	return text
}

func (t *tokenCommand) newReset() *cobra.Command {
	var expires string
	cmd := &cobra.Command{
		Use:   "reset ID",
		Short: "Replace a token by a new one, print its secret once, and end the old one later",
		Long: "Make a new token, with a new id, that may do what the old one may, and print its\n" +
			"secret, once. The old token ends after the server's grace period\n" +
			"(tokenstore.reset_grace). To keep the id, use rotate.",
		Args: tokenIDs(1, 1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			body := map[string]any{}
			if cmd.Flags().Changed("expires") {
				at, err := expiry(expires, t.now())
				if err != nil {
					return usageError{fmt.Errorf("--expires %q %w", expires, err)}
				}
				body["expires_at"] = at
			}
			one := call{doing: "reset " + tokenText(ids[0]), id: ids[0], path: "/tokens/" + ids[0] + "/reset", body: body,
				field: fieldNames{"expires_at": {flag: "expires"}}}
			return t.make(cmd, one, func(v *tokenView) string {
				return fmt.Sprintf("Token %d takes the place of %s, which ends after the grace period.", v.ID, tokenText(ids[0]))
			})
		},
	}
	cmd.Flags().StringVar(&expires, "expires", "", "`when` the new token ends: a time (RFC 3339), a duration such as 90d or 12h, or never (default: as the old one)")
	return cmd
}

// newState makes disable and enable.
func (t *tokenCommand) newState(verb, short string) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   verb + " ID…",
		Short: short,
		Args:  tokenIDs(1, anyNumber),
		RunE: func(cmd *cobra.Command, ids []string) error {
			return t.each(cmd, ids, func(id string) call {
				return call{doing: verb + " " + tokenText(id), id: id, method: http.MethodPost, path: "/tokens/" + id + "/" + verb, query: waitQuery(wait)}
			}, func(v *tokenView) string { return fmt.Sprintf("Token %d is now %s.\n", v.ID, stateText(v.State)) })
		},
	}
	addWait(cmd, &wait)
	return cmd
}

// addWait adds the flag that has an answer wait for all nodes of a cluster.
func addWait(cmd *cobra.Command, wait *bool) {
	cmd.Flags().BoolVar(wait, "wait", false, "until every node of the cluster has it; else name those that have not confirmed it")
}

func waitQuery(wait bool) url.Values {
	if !wait {
		return url.Values{}
	}
	return url.Values{"wait": {"all"}}
}

func (t *tokenCommand) newRevoke() *cobra.Command {
	var descendants, wait bool
	cmd := &cobra.Command{
		Use:        "revoke ID…",
		SuggestFor: []string{"delete", "remove", "rm", "end"},
		Short:      "End tokens for good",
		Long: "End tokens for good: their next request is refused. This cannot be undone; disable\n" +
			"can. With --descendants, all tokens that they made end too, and what those made.\n" +
			"With --wait, the command ends only when every node of the cluster refuses them, and\n" +
			"else names those that have not confirmed it.",
		Args: tokenIDs(1, anyNumber),
		RunE: func(cmd *cobra.Command, ids []string) error {
			c, err := t.server.client(cmd)
			if err != nil {
				return err
			}
			var errs []error
			for _, id := range ids {
				errs = append(errs, t.revoke(cmd.Context(), cmd, c, id, descendants, wait))
			}
			return errors.Join(errs...)
		},
	}
	addWait(cmd, &wait)
	cmd.Flags().BoolVar(&descendants, "descendants", false, "also all tokens that they made, and what those made in turn")
	return cmd
}

func (t *tokenCommand) revoke(ctx context.Context, cmd *cobra.Command, c *client, id string, descendants, wait bool) error {
	one := call{doing: "revoke " + tokenText(id), id: id, method: http.MethodDelete, path: "/tokens/" + id}
	one.query = waitQuery(wait)
	if descendants {
		one.query.Set("descendants", "true")
	}
	answer, err := c.do(ctx, one)
	if err != nil {
		return err
	}
	if t.asJSON {
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n", answer)
		return err
	}
	var done struct {
		Revoked []uint64 `json:"revoked"`
	}
	if err := json.Unmarshal(answer, &done); err != nil {
		return c.strange(one, err.Error())
	}
	text := "Nothing was left to revoke: " + tokenText(id) + " had been revoked before.\n"
	if n := len(done.Revoked); n > 0 {
		slices.Sort(done.Revoked)
		text = "Revoked " + counted(n, "token") + ": " + strings.Trim(fmt.Sprint(done.Revoked), "[]") + "\n"
	}
	_, err = fmt.Fprint(cmd.OutOrStdout(), text)
	return err
}

const anyNumber = int(^uint(0) >> 1)

// tokenIDs checks that the arguments are so many ids.
func tokenIDs(least, most int) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return errors.New("the id of a token is missing: `tokenward token list` shows them")
		case len(args) > most:
			return fmt.Errorf("one token at a time, but %d ids are given", len(args))
		}
		for _, arg := range args {
			if _, ok := tokenstore.ParseID(arg); !ok && arg != "self" {
				return fmt.Errorf("%s is not the id of a token: ids are whole numbers from 1, and `self` is the calling token", idText(arg))
			}
		}
		return nil
	}
}

// idText repeats an argument, unless it may be a secret in the wrong place.
func idText(arg string) string {
	if len(arg) > 20 || strings.Contains(arg, "_") {
		return "one of the arguments"
	}
	return strconv.Quote(arg)
}

func tokenText(id string) string {
	if id == "self" {
		return "the calling token"
	}
	return "token " + id
}
