package fynn

import (
	"net/http"
	"slices"
	"strings"

	"tokenward/admin"
)

// details stand in where an error brings none.
var details = map[admin.Kind]string{
	admin.KindInternal:       "Something went wrong on our side.",
	admin.KindMissingToken:   "API token not found.",
	admin.KindInvalidToken:   "Invalid API token.",
	admin.KindNotFound:       "There is no such token.",
	admin.KindRateLimited:    "Too many requests: try again later.",
	admin.KindUnavailable:    "The service is not available just now: try again shortly.",
	admin.KindBadGateway:     "The service behind did not answer as it should.",
	admin.KindGatewayTimeout: "The service behind did not answer in time.",
}

// problem is the body of an error (RFC 9457), with the member that clients of
// this API read instead of detail.
type problem struct {
	Type       string      `json:"type"`
	Title      string      `json:"title"`
	Status     int         `json:"status"`
	Detail     string      `json:"detail"`
	Message    string      `json:"message"` // equal to Detail
	Violations []violation `json:"violations,omitempty"`
}

// violation is one field of the request that is wrong.
type violation struct {
	PropertyPath string `json:"propertyPath"`
	Message      string `json:"message"`
}

// writeError is the Refuse of the face.
func writeError(w http.ResponseWriter, _ *http.Request, e *admin.Error) {
	status := e.Kind.Status()
	if challenge := admin.Challenge(e); challenge != "" {
		w.Header().Set("WWW-Authenticate", challenge)
	}
	detail := detailOf(e, status)
	if status == http.StatusUnauthorized {
		_ = admin.WriteJSON(w, status, mediaType, struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		}{status, detail}) // the client is gone: nobody is left to tell
		return
	}
	p := problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
	if wrong := violations(e); len(wrong) > 0 {
		p.Detail = summary(wrong)
		if status == http.StatusUnprocessableEntity {
			p.Violations = wrong
		}
	}
	p.Message = p.Detail
	_ = admin.WriteJSON(w, status, "application/problem+json", p) // likewise
}

func detailOf(e *admin.Error, status int) string {
	if e.Detail != "" {
		return e.Detail
	}
	if detail, ok := details[e.Kind]; ok {
		return detail
	}
	return http.StatusText(status) + "."
}

func violations(e *admin.Error) []violation {
	all := make([]violation, len(e.Fields))
	for i, f := range e.Fields {
		all[i] = violation{f.Field, "This value " + f.Detail + "."}
	}
	return all
}

func summary(all []violation) string {
	lines := make([]string, len(all))
	for i, v := range all {
		lines[i] = v.PropertyPath + ": " + v.Message
	}
	return strings.Join(lines, "\n")
}

// inOurWords gives the fields that the service names the names they have in a
// body of this contract.
func inOurWords(err error) error {
	e := *admin.AsError(err)
	e.Fields = slices.Clone(e.Fields)
	for i := range e.Fields {
		switch f := &e.Fields[i]; f.Field {
		case "name":
			f.Field = "description"
		case "expires_at":
			f.Field = "expiresAt"
		}
	}
	return &e
}
