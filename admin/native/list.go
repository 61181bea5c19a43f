package native

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"tokenward/admin"
	"tokenward/tokenstore"
)

// The bounds of a page.
const (
	defaultLimit = 100
	maxLimit     = 1000

	// maxExamined bounds the tokens that one page looks at when it selects by
	// state, name or owner: a page may then hold fewer than asked for, and say how
	// to go on.
	maxExamined = 20_000
)

// filter is what a list selects beyond where tokens stand.
type filter struct {
	owner uint64
	state string
	name  string // part of the name, in any case
	// unused selects those that were not used from then on although they could be
	// before; zero: all.
	unused time.Time
}

func (f *filter) holds(t *tokenstore.Token, state string) bool {
	return (f.owner == 0 || t.Owner == f.owner) && (f.state == "" || f.state == state) &&
		(f.name == "" || strings.Contains(strings.ToLower(t.Name), f.name))
}

// states are the states a list can ask for.
func states() []string {
	all := make([]string, 0, tokenstore.StatusNotYetValid)
	for s := tokenstore.StatusActive; s <= tokenstore.StatusNotYetValid; s++ {
		all = append(all, s.String())
	}
	return all
}

func (f *Face) list(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	values, err := readQuery(r)
	if err != nil {
		return err
	}
	q := f.listQuery(values, c)
	limit := values.between("limit", 1, maxLimit, defaultLimit)
	which := filter{owner: q.Owner, state: values.oneOf("state", states()...), name: strings.ToLower(values.Get("name"))}
	which.unused = values.time("unused_since")
	if !which.unused.IsZero() && !f.service.TracksUsage() {
		values.fault("unused_since", "is not available: this server does not record when tokens are used")
	}
	selection := values.selection(&q)
	if text := values.Get("cursor"); text != "" {
		var ok bool
		if q.After, ok = f.cursors.parse(text, selection); !ok {
			values.fault("cursor", "is not one of this list, or no longer: begin again without it")
		}
	}
	if err := values.faults(); err != nil {
		return err
	}
	page, err := f.page(r, c, q, &which, limit)
	if err != nil {
		return err
	}
	answer := struct {
		Items []token `json:"items"`
		Next  *string `json:"next"`
	}{Items: page.items}
	if page.last != 0 {
		answer.Next = new(f.cursors.text(page.last, selection))
	}
	return admin.WriteJSON(w, http.StatusOK, mediaType, answer)
}

func (f *Face) listQuery(values *query, c admin.Caller) admin.ListQuery {
	q := admin.ListQuery{Revoked: true, AllAccounts: c.IsRoot(), Account: c.Token.Account}
	if text := values.Get("account"); text != "" {
		n, ok := tokenstore.ParseNumber(text)
		if !ok && text != "0" {
			values.fault("account", "must be a whole number from 0 to 2^53-1")
		}
		q.AllAccounts, q.Account = false, n
	}
	if text := values.Get("owner"); text != "" {
		n, ok := tokenstore.ParseNumber(text)
		if !ok {
			values.fault("owner", "must be a whole number from 1 to 2^53-1")
		}
		q.Owner = n
	}
	return q
}

// page is a part of a list.
type page struct {
	items []token
	last  tokenstore.ID // after which the list goes on; 0: it ends here
}

func (f *Face) page(r *http.Request, c admin.Caller, q admin.ListQuery, which *filter, limit int) (page, error) {
	tokens, err := f.service.List(r.Context(), c, q)
	if err != nil {
		return page{}, err
	}
	now := f.service.Now()
	p := page{items: []token{}}
	var seen tokenstore.ID
	examined := 0
	for t, err := range tokens {
		if err != nil {
			return page{}, err
		}
		if len(p.items) == limit || examined == maxExamined {
			p.last = seen
			break
		}
		examined++
		seen = t.ID
		if !which.holds(t, t.Status(now).String()) {
			continue
		}
		used, err := f.service.Usage(t)
		if err != nil {
			return page{}, err
		}
		if which.unused.IsZero() || admin.UnusedSince(t, &used, which.unused) {
			p.items = append(p.items, render(t, &used, now))
		}
	}
	return p, nil
}

// query is the query of a request, with what is wrong with it.
type query struct {
	url.Values
	wrong tokenstore.Faults
}

func readQuery(r *http.Request) (*query, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, &admin.Error{Kind: admin.KindMalformed, Detail: "The query cannot be read."}
	}
	q := &query{Values: values}
	for _, name := range []string{"account", "owner", "state", "name", "unused_since", "ending_before", "finding", "limit", "cursor", "descendants", "wait"} {
		if len(values[name]) > 1 {
			q.fault(name, "is given twice")
		}
	}
	return q, nil
}

func (q *query) fault(name, detail string) {
	q.wrong = append(q.wrong, tokenstore.FieldFault{Field: name, Detail: detail})
}

func (q *query) faults() error {
	if len(q.wrong) == 0 {
		return nil
	}
	return &admin.Error{Kind: admin.KindMalformed, Detail: "Some query parameters are not acceptable.", Fields: q.wrong}
}

func (q *query) between(name string, least, most, otherwise int) int {
	text := q.Get(name)
	if text == "" {
		return otherwise
	}
	n, ok := tokenstore.ParseNumber(text)
	if !ok || n < uint64(least) || n > uint64(most) { //nolint:gosec // both are small and positive
		q.fault(name, "must be a whole number from "+strconv.Itoa(least)+" to "+strconv.Itoa(most))
		return otherwise
	}
	return int(n) //nolint:gosec // at most most
}

func (q *query) oneOf(name string, allowed ...string) string {
	text := q.Get(name)
	if text != "" && !slices.Contains(allowed, text) {
		q.fault(name, "must be "+strings.Join(allowed, ", ")+", or absent")
	}
	return text
}

// time reads an instant (RFC 3339); zero where there is none.
func (q *query) time(name string) time.Time {
	text := q.Get(name)
	if text == "" {
		return time.Time{}
	}
	at, ok := tokenstore.ParseTime(text)
	if !ok || at.Before(time.Unix(0, 0)) || at.After(tokenstore.MaxTime()) {
		q.fault(name, "must be a time such as 2026-11-21T12:00:00Z, with the plus sign of an offset as %2B")
		return time.Time{}
	}
	return at
}

func (q *query) bool(name string) bool { return q.oneOf(name, "true", "false") == "true" }

// selection returns what a cursor belongs to, in a canonical form: the list that is
// meant, which without an account in the query depends on who asks.
func (q *query) selection(list *admin.ListQuery) string {
	s := url.Values{}
	if !list.AllAccounts {
		s.Set("account", strconv.FormatUint(list.Account, 10))
	}
	for _, name := range []string{"owner", "state", "name", "unused_since"} {
		if value := q.Get(name); value != "" {
			s.Set(name, value)
		}
	}
	return s.Encode()
}
