package native

import (
	"iter"
	"net/http"
	"slices"
	"strings"
	"time"

	"tokenward/admin"
	"tokenward/tokenstore"
)

// What a report is about where the request does not say.
const (
	defaultUnused = 90 * 24 * time.Hour
	defaultEnding = 30 * 24 * time.Hour
)

// assessment is a token on the wire with what there is to say about it.
type assessment struct {
	Token        token           `json:"token"`
	Findings     []admin.Finding `json:"findings"`
	UnusedScopes []string        `json:"unused_scopes"`
	UnusedRoutes []string        `json:"unused_routes"`
}

// report streams what there is to say about the tokens that the caller may see.
func (f *Face) report(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	values, err := readQuery(r)
	if err != nil {
		return err
	}
	now := f.service.Now()
	q := admin.ReportQuery{List: f.listQuery(values, c), UnusedSince: values.time("unused_since"), EndingBefore: values.time("ending_before")}
	if q.UnusedSince.IsZero() {
		q.UnusedSince = now.Add(-defaultUnused)
	}
	if q.EndingBefore.IsZero() {
		q.EndingBefore = now.Add(defaultEnding)
	}
	if text := values.Get("finding"); text != "" {
		for name := range strings.SplitSeq(text, ",") {
			if !slices.Contains(admin.Findings(), admin.Finding(name)) {
				values.fault("finding", "must be some of "+findingNames()+", separated by commas")
				break
			}
			q.Findings = append(q.Findings, admin.Finding(name))
		}
	}
	for _, name := range []string{"cursor", "limit"} {
		if values.Has(name) {
			values.fault(name, "is not taken here: a report comes whole, so leave it out")
		}
	}
	if err := values.faults(); err != nil {
		return err
	}
	told, err := f.service.Report(r.Context(), c, q)
	if err != nil {
		return err
	}
	var current *admin.Assessment
	return admin.WriteList(w, mediaType, `{"items":`, tokensOf(told, &current), func(*tokenstore.Token) any {
		return assessment{
			Token: render(current.Token, &current.Used, now), Findings: current.Findings,
			UnusedScopes: append([]string{}, current.UnusedScopes...), UnusedRoutes: append([]string{}, current.UnusedRoutes...),
		}
	}, `,"next":null}`)
}

// tokensOf yields the tokens of a report, each while current is what is said of it.
func tokensOf(told iter.Seq2[*admin.Assessment, error], current **admin.Assessment) iter.Seq2[*tokenstore.Token, error] {
	return func(yield func(*tokenstore.Token, error) bool) {
		for a, err := range told {
			if err != nil {
				yield(nil, err)
				return
			}
			*current = a
			if !yield(a.Token, nil) {
				return
			}
		}
	}
}

func findingNames() string {
	names := make([]string, 0, len(admin.Findings()))
	for _, f := range admin.Findings() {
		names = append(names, string(f))
	}
	return strings.Join(names, ", ")
}
