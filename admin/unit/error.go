package unit

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"tokenward/admin"
	"tokenward/tokenstore"
)

// wireError is what a kind of error looks like here. Validation is 400, not 422,
// and so is an id that leads nowhere.
type wireError struct {
	status int
	code   string
}

// wireErrors has every kind. An unknown one is a fault of ours.
var wireErrors = map[admin.Kind]wireError{
	admin.KindInternal:       {http.StatusInternalServerError, "internal_server_error"},
	admin.KindMissingToken:   {http.StatusUnauthorized, "unauthorized"},
	admin.KindInvalidToken:   {http.StatusUnauthorized, "unauthorized"},
	admin.KindAmbiguous:      {http.StatusBadRequest, "invalid_value"},
	admin.KindSource:         {http.StatusForbidden, "forbidden"},
	admin.KindScope:          {http.StatusForbidden, "forbidden"},
	admin.KindAccess:         {http.StatusForbidden, "forbidden"},
	admin.KindGrace:          {http.StatusForbidden, "forbidden"},
	admin.KindWider:          {http.StatusForbidden, "forbidden"},
	admin.KindNotFound:       {http.StatusBadRequest, "not_found"},
	admin.KindNoPath:         {http.StatusNotFound, "not_found"},
	admin.KindMethod:         {http.StatusMethodNotAllowed, "method_not_allowed"},
	admin.KindMalformed:      {http.StatusBadRequest, "invalid_value"},
	admin.KindMediaType:      {http.StatusUnsupportedMediaType, "unsupported_media_type"},
	admin.KindTooLarge:       {http.StatusRequestEntityTooLarge, "payload_too_large"},
	admin.KindBodyTimeout:    {http.StatusRequestTimeout, "request_timeout"},
	admin.KindInvalid:        {http.StatusBadRequest, "invalid_value"},
	admin.KindConflict:       {http.StatusConflict, "conflict"},
	admin.KindPrecondition:   {http.StatusPreconditionFailed, "precondition_failed"},
	admin.KindKeyReused:      {http.StatusUnprocessableEntity, "invalid_value"},
	admin.KindRateLimited:    {http.StatusTooManyRequests, "too_many_requests"},
	admin.KindUnavailable:    {http.StatusServiceUnavailable, "service_unavailable"},
	admin.KindOutcomeUnknown: {http.StatusInternalServerError, "internal_server_error"},
	admin.KindBadGateway:     {http.StatusBadGateway, "bad_gateway"},
	admin.KindGatewayTimeout: {http.StatusGatewayTimeout, "gateway_timeout"},
}

// details stand in where an error brings none.
var details = map[admin.Kind]string{
	admin.KindInternal:       "Something went wrong on our side.",
	admin.KindMissingToken:   "Bearer token is missing.",
	admin.KindInvalidToken:   "Bearer token is invalid or expired.",
	admin.KindNotFound:       "There is no such token.",
	admin.KindRateLimited:    "Too many requests: try again later.",
	admin.KindUnavailable:    "The service is not available just now: try again shortly.",
	admin.KindBadGateway:     "The service behind did not answer as it should.",
	admin.KindGatewayTimeout: "The service behind did not answer in time.",
}

// errorItem is one thing that is wrong. A client drops the whole document when
// an item lacks title or its status is not a string.
type errorItem struct {
	Status  string  `json:"status"`
	Title   string  `json:"title"`
	Code    string  `json:"code"`
	Detail  string  `json:"detail"`
	Details string  `json:"details"` // the same text: clients read one or the other
	Source  *source `json:"source,omitempty"`
}

// source says what an item is about (JSON:API, "Error Objects").
type source struct {
	Pointer string `json:"pointer"`
}

// writeError is the Refuse of the face.
func writeError(w http.ResponseWriter, _ *http.Request, e *admin.Error) {
	wire, ok := wireErrors[e.Kind]
	if !ok {
		wire, e = wireErrors[admin.KindInternal], &admin.Error{Kind: admin.KindInternal}
	}
	if challenge := admin.Challenge(e); challenge != "" {
		w.Header().Set("WWW-Authenticate", challenge)
	}
	var items []errorItem
	if e.Kind == admin.KindInvalid || e.Kind == admin.KindWider {
		items = fieldItems(wire, e.Fields)
	}
	if len(items) == 0 {
		items = []errorItem{item(wire, detailOf(e), nil)}
	}
	_ = admin.WriteJSON(w, wire.status, mediaType, struct {
		Errors []errorItem `json:"errors"`
	}{items}) // the client is gone: nobody is left to tell
}

func item(wire wireError, detail string, about *source) errorItem {
	return errorItem{strconv.Itoa(wire.status), http.StatusText(wire.status), wire.code, detail, detail, about}
}

func detailOf(e *admin.Error) string {
	if e.Detail != "" {
		return e.Detail
	}
	if detail, ok := details[e.Kind]; ok {
		return detail
	}
	return http.StatusText(wireErrors[e.Kind].status) + "."
}

// fieldItems makes one item of all that is wrong with one attribute.
func fieldItems(wire wireError, faults tokenstore.Faults) []errorItem {
	var items []errorItem
	index := make(map[source]int)
	for _, f := range faults {
		about, name := locate(f.Field)
		detail := name + " " + f.Detail
		if i, again := index[about]; again {
			items[i].Detail += "; " + detail
			items[i].Details = items[i].Detail
			continue
		}
		index[about] = len(items)
		items = append(items, item(wire, detail, &about))
	}
	return items
}

// locate turns the path of a field into the attribute that the client sent, and
// a name for the field inside it.
func locate(field string) (about source, name string) {
	parts := strings.Split(field, "/")
	switch {
	case parts[0] == "data":
		last := min(len(parts), 3)
		return source{"/" + strings.Join(parts[:last], "/")}, strings.Join(parts[last-1:], "/")
	case field == "":
		return source{"/data"}, "the document"
	}
	return source{"/" + field}, field
}

// inOurWords gives the fields that the service names the paths they have in a
// body of this contract.
func inOurWords(err error) error {
	e := *admin.AsError(err)
	e.Fields = slices.Clone(e.Fields)
	for i := range e.Fields {
		name, _, _ := strings.Cut(e.Fields[i].Field, "/")
		attr, ok := map[string]string{
			"name": attrDescription, "scopes": attrScope, "expires_at": attrExpiration,
			"sources": attrSourceIP, "resources": attrResources,
		}[name]
		if ok {
			e.Fields[i].Field = "data/attributes/" + attr
		}
	}
	return &e
}
