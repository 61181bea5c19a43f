package native

import (
	"mime"
	"net/http"
	"net/url"

	"tokenward/admin"
	"tokenward/tokenstore"
)

// ImportAnswer is what became of an import.
type ImportAnswer struct {
	DryRun   bool            `json:"dry_run"`
	Imported int             `json:"imported"` // with DryRun: what would be
	FirstID  tokenstore.ID   `json:"first_id"` // 0: none
	LastID   tokenstore.ID   `json:"last_id"`
	Refused  []ImportRefusal `json:"refused"`
}

// ImportRefusal is a line that was not taken.
type ImportRefusal struct {
	Line     int           `json:"line"`
	Detail   string        `json:"detail"`
	Existing tokenstore.ID `json:"existing,omitempty"` // the token that has, or had, the secret
	Wanted   tokenstore.ID `json:"wanted,omitempty"`   // the id that the line was to get
}

// ImportAnswerOf is what the service did, in the form of this API.
func ImportAnswerOf(done *admin.Imported, o admin.ImportOptions) ImportAnswer {
	a := ImportAnswer{DryRun: o.DryRun, Imported: done.Count, FirstID: done.First, LastID: done.Last, Refused: []ImportRefusal{}}
	for _, r := range done.Refused {
		a.Refused = append(a.Refused, ImportRefusal(r))
	}
	return a
}

// Add counts another answer in.
func (a *ImportAnswer) Add(b ImportAnswer) {
	a.Imported += b.Imported
	if a.FirstID == 0 {
		a.FirstID = b.FirstID
	}
	a.LastID = max(a.LastID, b.LastID)
	a.Refused = append(a.Refused, b.Refused...)
}

// maxImportBytes bounds the body of an import: MaxImport tokens of more than a
// kilobyte each.
const maxImportBytes = 16 << 20

func (f *Face) importTokens(w http.ResponseWriter, r *http.Request, c admin.Caller) error {
	claimed, err := admin.ContentType(r)
	if err != nil {
		return err
	}
	if media, _, err := mime.ParseMediaType(claimed); err != nil || media != "application/x-ndjson" {
		return &admin.Error{Kind: admin.KindMediaType, Detail: "The body must be application/x-ndjson: one JSON object on each line."}
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return &admin.Error{Kind: admin.KindMalformed, Detail: "The query cannot be read."}
	}
	var o admin.ImportOptions
	for name, values := range query {
		on := len(values) == 1 && values[0] == "true"
		switch {
		case name == "dry_run" && (on || values[0] == "false"):
			o.DryRun = on
		case name == "allow_weak" && (on || values[0] == "false"):
			o.AllowWeak = on
		default:
			return &admin.Error{Kind: admin.KindMalformed, Detail: "The query may have dry_run and allow_weak, true or false."}
		}
	}
	answer, err := f.options.Import(r.Context(), c, http.MaxBytesReader(w, r.Body, maxImportBytes), o)
	if err != nil {
		return err
	}
	return admin.WriteJSON(w, http.StatusOK, "application/json", answer)
}
