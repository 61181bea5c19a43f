package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tokenward/tokenstore"
)

// tokenFlags are the fields of a token as flags of create and update. What is
// not given is not said to the server, which alone judges the values.
type tokenFlags struct {
	account, owner uint64

	name                          string
	scopes                        []string
	resources                     []string
	allResources                  bool
	sources, denied               []string
	anySource                     bool
	expires, notBefore            string
	rate, burst, uses, concurrent string
	quotas                        []string
}

func (t *tokenFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&t.name, "name", "", "`text` that says what the token is for")
	f.StringArrayVar(&t.scopes, "scopes", nil, "what it may do: `scopes` separated by commas; can be repeated")
	f.StringArrayVar(&t.resources, "resource", nil, "what it may do that to, as `type:id:level`: account:1001:read, card:*:write; can be repeated")
	f.BoolVar(&t.allResources, "all-resources", false, "no restriction to resources")
	f.StringArrayVar(&t.sources, "source", nil, "address or `network` it may come from; can be repeated")
	f.BoolVar(&t.anySource, "any-source", false, "it may come from everywhere")
	f.StringArrayVar(&t.denied, "deny-source", nil, "address or `network` it may not come from, beside --source or --any-source; can be repeated, or none")
	f.StringVar(&t.expires, "expires", "", "`when` it ends: a time (RFC 3339), a duration such as 90d or 12h, or never")
	f.StringVar(&t.notBefore, "not-before", "", "`when` it begins: a time, a duration, or none")
	f.StringVar(&t.rate, "rate", "", "`number` of requests per second, or none")
	f.StringVar(&t.burst, "burst", "", "`number` of requests that may come at once, or none")
	f.StringArrayVar(&t.quotas, "quota", nil, "`number` of requests per minute, hour, day or month, as 1000/day; can be repeated, or none")
	f.StringVar(&t.uses, "uses", "", "`number` of requests in all, or none")
	f.StringVar(&t.concurrent, "concurrent", "", "`number` of requests at a time, or none")
}

// addHome adds the fields that only creation sets.
func (t *tokenFlags) addHome(cmd *cobra.Command) {
	cmd.Flags().Uint64Var(&t.account, "account", 0, "account `number` it belongs to; 0 makes a root token")
	cmd.Flags().Uint64Var(&t.owner, "owner", 0, "`number` of the user inside the account")
}

// none takes a limit, a start or a list away.
const none = "none"

// body returns the fields that were given, as the native API takes them.
func (t *tokenFlags) body(cmd *cobra.Command, now time.Time) (map[string]any, error) {
	b := bodyBuilder{given: cmd.Flags().Changed, fields: map[string]any{}}
	b.set("account", "account", func() (any, error) { return t.account, nil })
	b.set("owner", "owner", func() (any, error) { return t.owner, nil })
	b.set("name", "name", func() (any, error) { return t.name, nil })
	b.set("scopes", "scopes", func() (any, error) { return t.scopeList(), nil })
	b.set("expires", "expires_at", func() (any, error) { return expiry(t.expires, now) })
	b.set("not-before", "not_before", func() (any, error) { return start(t.notBefore, now) })
	t.setResources(&b)
	t.setSources(&b)
	t.setLimits(&b)
	return b.fields, errors.Join(b.errs...)
}

// bodyBuilder collects the fields that were given, and everything wrong.
type bodyBuilder struct {
	given  func(flag string) bool
	fields map[string]any
	errs   []error
}

func (b *bodyBuilder) set(flag, field string, value func() (any, error)) {
	if !b.given(flag) {
		return
	}
	v, err := value()
	if err != nil {
		b.errs = append(b.errs, fmt.Errorf("--%s %w", flag, err))
	}
	b.fields[field] = v
}

// fail records that flags do not go together.
func (b *bodyBuilder) fail(text string) { b.errs = append(b.errs, errors.New(text)) }

func (t *tokenFlags) scopeList() []string {
	list := []string{}
	for _, given := range t.scopes {
		for scope := range strings.SplitSeq(given, ",") {
			if scope = strings.TrimSpace(scope); scope != "" {
				list = append(list, scope)
			}
		}
	}
	return list
}

func (t *tokenFlags) setResources(b *bodyBuilder) {
	if t.allResources && b.given("resource") {
		b.fail("--all-resources and --resource exclude each other: leave one out")
	}
	if t.allResources {
		b.fields["resources"] = "all"
	}
	b.set("resource", "resources", func() (any, error) {
		grants := []map[string]string{}
		for _, text := range t.resources {
			g, ok := parseGrant(text)
			if !ok {
				return nil, fmt.Errorf("%q is not type:id:level, with read or write as the level: write account:1001:read", text)
			}
			grants = append(grants, map[string]string{"type": g.Type, "id": g.ID, "level": g.Level.String()})
		}
		return grants, nil
	})
}

// parseGrant reads type:id:level. Only the id may have further colons.
func parseGrant(text string) (tokenstore.Grant, bool) {
	first, last := strings.IndexByte(text, ':'), strings.LastIndexByte(text, ':')
	if first <= 0 || last <= first+1 {
		return tokenstore.Grant{}, false
	}
	level, ok := tokenstore.ParseLevel(text[last+1:])
	return tokenstore.Grant{Type: text[:first], ID: text[first+1 : last], Level: level}, ok
}

// everywhere is any source in a rule, beside which addresses can be refused.
func everywhere() []string { return []string{"0.0.0.0/0", "::/0"} }

func (t *tokenFlags) setSources(b *bodyBuilder) {
	rule := map[string]any{}
	switch {
	case t.anySource && b.given("source"):
		b.fail("--any-source and --source exclude each other: leave one out")
	case b.given("source"):
		rule["allow"] = t.sources
	case t.anySource && b.given("deny-source"):
		rule["allow"] = everywhere()
	case t.anySource:
		b.fields["sources"] = "any"
		return
	case b.given("deny-source"):
		b.fail("--deny-source needs --source or --any-source beside it: say from where it may come otherwise")
		return
	default:
		return
	}
	if b.given("deny-source") {
		rule["deny"] = withoutNone(t.denied)
	}
	b.fields["sources"] = rule
}

// withoutNone is the list that a flag gives which can be none.
func withoutNone(list []string) []string {
	if len(list) == 1 && list[0] == none {
		return []string{}
	}
	return list
}

func (t *tokenFlags) setLimits(b *bodyBuilder) {
	limits := bodyBuilder{given: b.given, fields: map[string]any{}}
	limits.set("rate", "rate", func() (any, error) {
		if t.rate == none {
			return nil, nil
		}
		rate, err := strconv.ParseFloat(t.rate, 64)
		if err != nil || !(rate > 0 && rate <= 1e9) {
			return nil, fmt.Errorf("%q is not a number of requests per second: write 5, 0.2 or none", t.rate)
		}
		return rate, nil
	})
	for flag, text := range map[string]string{"burst": t.burst, "uses": t.uses, "concurrent": t.concurrent} {
		limits.set(flag, flag, func() (any, error) { return parseCount(text) })
	}
	limits.set("quota", "quota", func() (any, error) { return parseQuotas(withoutNone(t.quotas)) })
	if rate, given := limits.fields["rate"]; given && rate == nil && !b.given("burst") {
		limits.fields["burst"] = nil // it is of the rate, and goes with it
	}
	b.errs = append(b.errs, limits.errs...)
	if len(limits.fields) > 0 {
		b.fields["limits"] = limits.fields
	}
}

func parseCount(text string) (any, error) {
	if text == none {
		return nil, nil
	}
	n, ok := tokenstore.ParseNumber(text)
	if !ok {
		return nil, fmt.Errorf("%q is not a number of requests: write a whole number from 1, or none", text)
	}
	return n, nil
}

func parseQuotas(texts []string) (any, error) {
	quotas := []map[string]any{}
	for _, text := range texts {
		count, per, _ := strings.Cut(text, "/")
		n, ok := tokenstore.ParseNumber(count)
		window, known := tokenstore.ParseWindow(per)
		if !ok || !known {
			return nil, fmt.Errorf("%q is not a quota: write 1000/day, or minute, hour or month, or none", text)
		}
		quotas = append(quotas, map[string]any{"count": n, "per": window.String()})
	}
	return quotas, nil
}

// expiry reads when something ends: null is never.
func expiry(text string, now time.Time) (any, error) {
	if text == "never" {
		return nil, nil
	}
	at, err := parseWhen(text, now)
	if err != nil {
		return nil, fmt.Errorf("%q %w; never is without an end", text, err)
	}
	return wireTime(at), nil
}

// start reads when something begins: null is from the start.
func start(text string, now time.Time) (any, error) {
	if text == none {
		return nil, nil
	}
	at, err := parseWhen(text, now)
	if err != nil {
		return nil, fmt.Errorf("%q %w; none is from the start", text, err)
	}
	return wireTime(at), nil
}

// parseWhen reads an instant, or a duration from now.
func parseWhen(text string, now time.Time) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, nil
	}
	d, err := parseDuration(text)
	switch {
	case errors.Is(err, errLongDuration):
		return time.Time{}, fmt.Errorf("%w: write the time, as 2047-01-31T00:00:00Z", err)
	case err != nil || d <= 0:
		return time.Time{}, errors.New("is neither a time nor a duration: write 2027-01-31T00:00:00Z, or 90d or 12h from now")
	}
	return now.Add(d), nil
}

// parseAgo reads a time, or how long ago it was.
func parseAgo(text string, now time.Time) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, nil
	}
	d, err := parseDuration(text)
	if err != nil || d <= 0 {
		return time.Time{}, errors.New("is neither a time nor a duration: write 2027-01-31T00:00:00Z, or 90d for 90 days ago")
	}
	return now.Add(-d), nil
}

func wireTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// names tells which flag stands for which field of the body.
func (t *tokenFlags) names() fieldNames {
	allow := t.sources
	return fieldNames{
		"name": {flag: "name"}, "account": {flag: "account"}, "owner": {flag: "owner"},
		"scopes":        {flag: "scopes", values: t.scopeList()},
		"resources":     {flag: "resource", values: t.resources},
		"sources":       {flag: "source"},
		"sources/allow": {flag: "source", values: allow},
		"sources/deny":  {flag: "deny-source", values: t.denied},
		"expires_at":    {flag: "expires"}, "not_before": {flag: "not-before"},
		"limits":            {flag: "rate, --burst, --quota, --uses or --concurrent:"},
		"limits/rate":       {flag: "rate"},
		"limits/burst":      {flag: "burst"},
		"limits/uses":       {flag: "uses"},
		"limits/concurrent": {flag: "concurrent"},
		"limits/quota":      {flag: "quota", values: t.quotas},
	}
}

// listFieldNames tells which flag of list stands for which query parameter.
func listFieldNames() fieldNames {
	names := fieldNames{}
	for _, name := range []string{"account", "owner", "state", "name", "limit", "cursor"} {
		names[name] = fieldName{flag: name}
	}
	names["unused_since"] = fieldName{flag: "unused-since"}
	return names
}
