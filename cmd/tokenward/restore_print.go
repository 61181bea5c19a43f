package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"tokenward/audit"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
)

func (r *restorer) text() string {
	var b strings.Builder
	m := &r.manifest
	fmt.Fprintf(&b, "The backup of %s is sound: %s, last id %d.\n", m.Time.Format(time.RFC3339), counted(int(m.Tokens), "token"), m.LastID) //nolint:gosec // a count of tokens
	if r.covered != "" {
		fmt.Fprintf(&b, "Warning: %s. Look through `tokenward token list` for what should not be there.\n", r.covered)
	}
	if r.cluster != nil {
		fmt.Fprintf(&b, "A node of a cluster made it, as of revision %d. It becomes a store of its own, with every secret that ever was; limits count anew.\n", r.cluster.Revision)
	}
	verb := "was taken away again"
	if r.flags.dryRun {
		verb = "would be taken away again"
	}
	for i := range r.undone {
		u := &r.undone[i]
		fmt.Fprintf(&b, "token %d (%s, account %d) %s by %s: it %s\n", u.ID, shownText(u.Name), u.Account, u.Detail, u.At.UTC().Format(time.RFC3339), verb)
	}
	if n := len(r.usedAgain); n > 0 {
		const shown = 100
		fmt.Fprintf(&b, "Warning: the store that was in use is not here, or cannot be read, so the uses since the backup are not known. %s with a limited number of uses can be used again as often as when the backup was made: %s. Revoke those that were used up.\n",
			counted(n, "token"), listed(r.usedAgain[:min(n, shown)], n > shown))
	}
	if r.lost > 0 {
		fmt.Fprintf(&b, "%s made after the backup: gone, and no id is used again.\n", were(r.lost))
	}
	if r.flags.dryRun {
		b.WriteString("Nothing was changed.\n")
		return b.String()
	}
	if r.aside != "" {
		fmt.Fprintf(&b, "The store that was there is now %s.\n", r.aside)
	}
	fmt.Fprintf(&b, "Restored to %s. Ids go on above %d. Start the server.\n", r.cfg.TokenStore.Path, r.lastID)
	return b.String()
}

// listed writes ids with commas between them.
func listed(ids []tokenstore.ID, more bool) string {
	var b strings.Builder
	for i, id := range ids {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%d", id)
	}
	if more {
		b.WriteString(" and more")
	}
	return b.String()
}

func were(n int) string {
	if n == 1 {
		return "1 token was"
	}
	return fmt.Sprintf("%d tokens were", n)
}

func (r *restorer) writeJSON(w io.Writer) error {
	type taken struct {
		ID      tokenstore.ID `json:"id"`
		Account uint64        `json:"account"`
		Name    string        `json:"name"`
		Verb    audit.Word    `json:"verb"`
		Detail  string        `json:"detail"`
		At      time.Time     `json:"at"`
	}
	out := struct {
		Restored  bool               `json:"restored"`
		Backup    boltstore.Manifest `json:"backup"`
		Warning   string             `json:"warning,omitempty"`
		TakenAway []taken            `json:"taken_away"`
		UsedAgain []tokenstore.ID    `json:"used_again,omitempty"`
		Lost      int                `json:"lost"`
		LastID    tokenstore.ID      `json:"last_id"`
		Replaced  string             `json:"replaced,omitempty"`
	}{!r.flags.dryRun, r.manifest, r.covered, []taken{}, r.usedAgain, r.lost, r.lastID, r.aside}
	for i := range r.undone {
		u := &r.undone[i]
		out.TakenAway = append(out.TakenAway, taken{u.ID, u.Account, u.Name, u.Verb, u.Detail, u.At.UTC()})
	}
	return json.NewEncoder(w).Encode(out)
}
