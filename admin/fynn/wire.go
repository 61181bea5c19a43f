package fynn

import (
	"net/url"
	"strconv"
	"time"

	"tokenward/admin"
	"tokenward/tokenstore"
)

const mediaType = "application/json"

// list is the answer to the list call.
type list struct {
	Data []item `json:"data"`
	Meta struct {
		Pagination pagination `json:"pagination"`
	} `json:"meta"`
}

type pagination struct {
	TotalItems     int `json:"totalItems"` // on all pages
	ItemsPerPage   int `json:"itemsPerPage"`
	CurrentPage    int `json:"currentPage"`
	LastPage       int `json:"lastPage"`       // at least 1
	PageTotalItems int `json:"pageTotalItems"` // on this page
}

// item is a token in a list.
type item struct {
	ID          string  `json:"id"`
	Description string  `json:"description"`
	ExpiresAt   *string `json:"expiresAt"`
	CreatedAt   string  `json:"createdAt"`
	UpdatedAt   string  `json:"updatedAt"`
	APIToken    string  `json:"apiToken"` // never the secret
}

// hidden stands where the secret would be.
const hidden = "**********"

// created is the answer that makes a token.
type created struct {
	ID          string  `json:"id"`
	Token       string  `json:"token"`
	Description string  `json:"description"`
	ExpiresAt   *string `json:"expiresAt"`
}

func render(t *tokenstore.Token) item {
	return item{
		ID:          FormatID(t.ID),
		Description: t.Name,
		ExpiresAt:   renderExpiry(t.Expiry),
		CreatedAt:   renderTime(t.CreatedAt),
		UpdatedAt:   renderTime(t.UpdatedAt),
		APIToken:    hidden,
	}
}

func renderExpiry(e tokenstore.Expiry) *string {
	if e.Never {
		return nil
	}
	return new(renderTime(e.At))
}

// renderTime writes whole seconds and a numeric offset.
func renderTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05-07:00") }

const minDescription = 3

// decode reads the body of a creation. What it does not say is the caller's own:
// scopes, grants, sources, and the end where none is asked for.
func decode(body *admin.Object, now time.Time) (admin.Spec, tokenstore.Faults) {
	var spec admin.Spec
	if !body.Has("description") {
		body.Fault("description", "must not be missing")
	} else if text, ok := body.Text("description"); ok {
		spec.Name = text
		if detail := checkDescription(text); detail != "" {
			body.Fault("description", detail)
		}
	}
	if body.Has("expiresAt") && !body.Null("expiresAt") {
		if at, ok := body.Time("expiresAt"); ok {
			spec.Expiry = new(tokenstore.EndsAt(at))
			if !at.After(now) {
				body.Fault("expiresAt", "must lie in the future")
			}
		}
	}
	return spec, body.Faults()
}

func checkDescription(text string) string {
	if detail := tokenstore.CheckText(text, tokenstore.MaxNameRunes); detail != "" {
		return detail
	}
	if len([]rune(text)) < minDescription {
		return "must have at least " + strconv.Itoa(minDescription) + " characters"
	}
	return ""
}

// query is the query of a request.
type query url.Values

func parseQuery(raw string) (query, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, &admin.Error{Kind: admin.KindMalformed, Detail: "The query could not be read."}
	}
	return query(values), nil
}

// number returns a parameter from 0 to most, in plain decimal; byDefault where
// it is not there.
func (q query) number(name string, byDefault, most int) (int, error) {
	values, ok := q[name]
	if !ok {
		return byDefault, nil
	}
	if len(values) == 1 && values[0] == "0" {
		return 0, nil
	}
	if len(values) == 1 {
		if n, ok := tokenstore.ParseNumber(values[0]); ok && n <= uint64(most) { //nolint:gosec // a positive constant
			return int(n), nil //nolint:gosec // at most most
		}
	}
	detail := "The parameter " + name + " must be given once, as a whole number from 0"
	if most != maxPage {
		detail += " to " + strconv.Itoa(most)
	}
	return 0, &admin.Error{Kind: admin.KindMalformed, Detail: detail + "."}
}
