package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"
)

// tokenView is a token of the native API as far as people are shown it.
type tokenView struct {
	ID        uint64        `json:"id"`
	Account   uint64        `json:"account"`
	Owner     uint64        `json:"owner"`
	Name      string        `json:"name"`
	State     string        `json:"state"`
	Scopes    []string      `json:"scopes"`
	Resources resourcesView `json:"resources"`
	Sources   sourcesView   `json:"sources"`
	NotBefore *time.Time    `json:"not_before"`
	ExpiresAt *time.Time    `json:"expires_at"`
	Limits    limitsView    `json:"limits"`
	CreatedAt time.Time     `json:"created_at"`
	CreatedBy struct {
		ID   uint64 `json:"id"`
		Name string `json:"name"`
	} `json:"created_by"`
	UpdatedAt time.Time    `json:"updated_at"`
	Revision  uint64       `json:"revision"`
	Secrets   []secretView `json:"secrets"`
	Token     string       `json:"token"`
}

// resourcesView is "all" or a list of grants.
type resourcesView struct {
	all    bool
	grants []struct {
		Type  string `json:"type"`
		ID    string `json:"id"`
		Level string `json:"level"`
	}
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *resourcesView) UnmarshalJSON(b []byte) error {
	if r.all = string(b) == `"all"`; r.all {
		return nil
	}
	return json.Unmarshal(b, &r.grants)
}

func (r *resourcesView) String() string {
	if r.all {
		return "all"
	}
	texts := make([]string, len(r.grants))
	for i, g := range r.grants {
		texts[i] = shownText(g.Type + ":" + g.ID + ":" + g.Level)
	}
	return listText(texts)
}

// sourcesView is "any" or a rule.
type sourcesView struct {
	any         bool
	allow, deny []string
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *sourcesView) UnmarshalJSON(b []byte) error {
	if s.any = string(b) == `"any"`; s.any {
		return nil
	}
	rule := struct {
		Allow []string `json:"allow"`
		Deny  []string `json:"deny"`
	}{}
	err := json.Unmarshal(b, &rule)
	s.allow, s.deny = rule.Allow, rule.Deny
	return err
}

func (s *sourcesView) String() string {
	if s.any {
		return "any"
	}
	text := shownText(listText(s.allow))
	if len(s.deny) > 0 {
		text += "; not " + shownText(listText(s.deny))
	}
	return text
}

type limitsView struct {
	Rate  *float64 `json:"rate"`
	Burst *uint64  `json:"burst"`
	Quota []struct {
		Count uint64 `json:"count"`
		Per   string `json:"per"`
	} `json:"quota"`
	Uses       *uint64 `json:"uses"`
	Concurrent *uint64 `json:"concurrent"`
}

func (l *limitsView) String() string {
	var texts []string
	if l.Rate != nil {
		texts = append(texts, strconv.FormatFloat(*l.Rate, 'f', -1, 64)+" per second")
	}
	if l.Burst != nil {
		texts = append(texts, fmt.Sprintf("bursts of %d", *l.Burst))
	}
	for _, q := range l.Quota {
		texts = append(texts, fmt.Sprintf("%d per %s", q.Count, shownText(q.Per)))
	}
	if l.Uses != nil {
		texts = append(texts, fmt.Sprintf("%d in all", *l.Uses))
	}
	if l.Concurrent != nil {
		texts = append(texts, fmt.Sprintf("%d at a time", *l.Concurrent))
	}
	return listText(texts)
}

type secretView struct {
	Last4     string     `json:"last4"`
	CreatedAt time.Time  `json:"created_at"`
	EndsAt    *time.Time `json:"ends_at"`
	Silence   string     `json:"ends_after_silence"`
	LastUsed  *struct {
		At        time.Time `json:"at"`
		From      *string   `json:"from"`
		UserAgent string    `json:"user_agent"`
		Route     string    `json:"route"`
		Uses      uint64    `json:"uses"`
	} `json:"last_used"`
}

// listText is a list in one line.
func listText(items []string) string {
	if len(items) == 0 {
		return "none"
	}
	return strings.Join(items, ", ")
}

// stateText marks every state in which a token opens nothing.
func stateText(state string) string {
	if state == "active" {
		return state
	}
	return strings.ToUpper(shownText(strings.ReplaceAll(state, "_", " ")))
}

// timeText is an instant in full and from now.
func timeText(t, now time.Time) string {
	return t.UTC().Format(time.RFC3339) + " (" + fromNow(t, now) + ")"
}

// fromNow is how far an instant lies ahead or back, in its largest unit.
func fromNow(t, now time.Time) string {
	d := t.Sub(now)
	text := durationText(d.Abs())
	switch {
	case text == "":
		return "now"
	case d > 0:
		return "in " + text
	}
	return text + " ago"
}

// durationText counts in the largest unit of which there are two, give or take
// half of the next smaller one.
func durationText(d time.Duration) string {
	const day = 24 * time.Hour
	const year = 8766 * time.Hour
	for _, unit := range []struct {
		name       string
		size, from time.Duration
	}{
		{"year", year, 2*year - day/2},
		{"day", day, 2*day - time.Hour/2},
		{"hour", time.Hour, 2*time.Hour - time.Minute/2},
		{"minute", time.Minute, 2*time.Minute - time.Second/2},
		{"second", time.Second, time.Second / 2},
	} {
		if d >= unit.from {
			return counted(int((d+unit.size/2)/unit.size), unit.name)
		}
	}
	return ""
}

func endText(at *time.Time, now time.Time) string {
	if at == nil {
		return "never"
	}
	return timeText(*at, now)
}

// newSecretText shows a new secret, in a paragraph of its own.
func newSecretText(v *tokenView) string {
	return fmt.Sprintf(" This is the only time its secret is shown:\n\n    %s\n\nKeep it where secrets are kept. If it is lost, `tokenward token rotate %d` makes another.\n", shownText(v.Token), v.ID)
}

// tokenTable is a token in full.
func tokenTable(v *tokenView, now time.Time) string {
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("Token", "%d", v.ID)
	row("State", "%s", stateText(v.State))
	row("Name", "%s", shownText(v.Name))
	row("Account", "%s", accountText(v.Account))
	row("Owner", "%d", v.Owner)
	row("Scopes", "%s", shownText(listText(v.Scopes)))
	row("Resources", "%s", &v.Resources)
	row("Sources", "%s", &v.Sources)
	row("Limits", "%s", &v.Limits)
	if v.NotBefore != nil {
		row("Begins", "%s", timeText(*v.NotBefore, now))
	}
	row("Expires", "%s", endText(v.ExpiresAt, now))
	row("Created", "%s by %s", timeText(v.CreatedAt, now), creatorText(v))
	row("Changed", "%s, revision %d", timeText(v.UpdatedAt, now), v.Revision)
	for i, s := range v.Secrets {
		name := "Secret"
		if i > 0 {
			name = "Old secret"
		}
		row(name, "…%s, made %s%s", shownText(s.Last4), timeText(s.CreatedAt, now), secretEndText(s, now))
		row("", "%s", lastUsedText(s, now))
	}
	_ = table.Flush() // a strings.Builder takes everything
	return b.String()
}

func accountText(account uint64) string {
	if account == 0 {
		return "0 (root: all accounts)"
	}
	return strconv.FormatUint(account, 10)
}

func creatorText(v *tokenView) string {
	name := shownText(v.CreatedBy.Name)
	if v.CreatedBy.ID == 0 {
		return name
	}
	return fmt.Sprintf("token %d (%s)", v.CreatedBy.ID, name)
}

func secretEndText(s secretView, now time.Time) string {
	switch {
	case s.Silence != "":
		return ", ends once unused for " + shownText(s.Silence)
	case s.EndsAt == nil:
		return ""
	case s.EndsAt.After(now):
		return ", ends " + timeText(*s.EndsAt, now)
	}
	return ", ENDED " + timeText(*s.EndsAt, now)
}

// lastUsedText says when, from where and how often a secret was used.
func lastUsedText(s secretView, now time.Time) string {
	u := s.LastUsed
	if u == nil {
		return "never used"
	}
	text := "last used " + timeText(u.At, now)
	if u.From != nil {
		text += " from " + shownText(*u.From)
	}
	if u.UserAgent != "" {
		text += fmt.Sprintf(" with %q", shownText(u.UserAgent))
	}
	if u.Route != "" {
		text += fmt.Sprintf(" on %q", shownText(u.Route))
	}
	return text + "; " + counted(int(min(u.Uses, math.MaxInt)), "use") + " in all" //nolint:gosec // bounded
}

// listWriter prints a list while it comes in: a table page by page, or one JSON
// object. Of a list that breaks off, the JSON is never whole.
type listWriter struct {
	out    io.Writer
	table  *tabwriter.Writer
	asJSON bool
	now    time.Time
	count  int
}

func newListWriter(out io.Writer, asJSON bool, now time.Time) *listWriter {
	return &listWriter{out: out, asJSON: asJSON, now: now, table: tabwriter.NewWriter(out, 4, 0, 2, ' ', 0)}
}

// token prints one token of the list.
func (l *listWriter) token(raw json.RawMessage) error {
	l.count++
	if l.asJSON {
		separator := ",\n"
		if l.count == 1 {
			separator = "{\"items\":[\n"
		}
		_, err := fmt.Fprintf(l.out, "%s%s", separator, raw)
		return err
	}
	var v tokenView
	if err := json.Unmarshal(raw, &v); err != nil {
		return fmt.Errorf("the server's list holds something other than tokens: %w", err)
	}
	if l.count == 1 {
		fmt.Fprintln(l.table, "ID\tSTATE\tACCOUNT\tOWNER\tNAME\tSCOPES\tEXPIRES")
	}
	_, err := fmt.Fprintf(l.table, "%d\t%s\t%d\t%d\t%s\t%s\t%s\n", v.ID, stateText(v.State), v.Account, v.Owner,
		shortened(v.Name), shortened(listText(v.Scopes)), endText(v.ExpiresAt, l.now))
	return err
}

// shortened fits a text into a column.
func shortened(s string) string {
	const widest = 40
	if s = shownText(s); utf8.RuneCountInString(s) > widest {
		return string([]rune(s)[:widest-1]) + "…"
	}
	return s
}

// flush prints what has come in.
func (l *listWriter) flush() error { return l.table.Flush() }

// abort ends a list that broke off. If it cannot be written, that is why, or comes on
// top of why.
func (l *listWriter) abort() {
	if l.asJSON && l.count > 0 {
		fmt.Fprintln(l.out)
	}
	_ = l.flush()
}

// end ends a list. next is where it would go on, or "".
func (l *listWriter) end(next string) error {
	if l.asJSON {
		return l.endJSON(next)
	}
	if l.count == 0 {
		fmt.Fprintln(l.table, "There is no such token.")
	}
	if next != "" {
		fmt.Fprintf(l.table, "There are more: see them all without --limit, or go on with --cursor %s\n", shownText(next))
	}
	return l.flush()
}

func (l *listWriter) endJSON(next string) error {
	begin := "\n"
	if l.count == 0 {
		begin = `{"items":[`
	}
	cursor := []byte("null")
	if next != "" {
		var err error
		if cursor, err = json.Marshal(next); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(l.out, "%s],\"next\":%s}\n", begin, cursor)
	return err
}
