package mailtrap

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"tokenward/admin"
	"tokenward/tokenstore"
)

const mediaType = "application/json; charset=utf-8"

// token is a token on the wire: all fields always, in this order, and Token only
// where a secret was made.
type token struct {
	Resources   []resource `json:"resources"`
	ID          uint64     `json:"id"`
	Name        string     `json:"name"`
	Last4Digits string     `json:"last_4_digits"`
	CreatedBy   string     `json:"created_by"`
	ExpiresAt   *string    `json:"expires_at"`
	Token       string     `json:"token,omitempty"`
}

type resource struct {
	ResourceType string `json:"resource_type"`
	ResourceID   uint64 `json:"resource_id"`
	AccessLevel  int    `json:"access_level"`
}

// The access levels of this contract.
const (
	levelViewer = 10
	levelAdmin  = 100
)

// The resource types of this contract, as they are stored.
const (
	typeProject = "project"
	typeInbox   = "inbox"
	typeDomain  = "sending_domain"
)

// typeNames says how stored types are called under one of the prefixes.
type typeNames struct{ inbox, domain string }

var (
	longNames  = &typeNames{inbox: "inbox", domain: "sending_domain"} // where the path names the account
	shortNames = &typeNames{inbox: "sandbox", domain: "domain"}       // where it does not
)

func (n *typeNames) of(stored string) string {
	switch stored {
	case typeInbox:
		return n.inbox
	case typeDomain:
		return n.domain
	}
	return stored
}

// storedType returns the type under the one name it is stored by.
func storedType(wire string) string {
	switch wire {
	case shortNames.inbox:
		return typeInbox
	case shortNames.domain:
		return typeDomain
	}
	return wire
}

// render shows a token, whichever API made it. A grant that this contract has no
// words for is left out.
func render(t *tokenstore.Token, names *typeNames) token {
	wire := token{
		Resources: []resource{},
		ID:        uint64(t.ID), Name: t.Name, Last4Digits: t.Secrets[0].Last4, CreatedBy: t.Creator.Name,
	}
	if t.Resources.All {
		wire.Resources = append(wire.Resources, resource{tokenstore.TypeAccount, t.Account, levelAdmin})
	} else {
		for _, g := range t.Resources.Grants {
			id, ok := tokenstore.ParseNumber(g.ID)
			if !ok {
				continue
			}
			level := levelViewer
			if g.Level == tokenstore.LevelWrite {
				level = levelAdmin
			}
			wire.Resources = append(wire.Resources, resource{names.of(g.Type), id, level})
		}
	}
	if !t.Expiry.Never {
		wire.ExpiresAt = new(t.Expiry.At.UTC().Format("2006-01-02T15:04:05Z"))
	}
	return wire
}

// expressible refuses, as an error, a token with grants that this contract has
// no words for: its reset would show less than it makes.
func expressible(t *tokenstore.Token) error {
	for _, g := range t.Resources.Grants {
		if _, ok := tokenstore.ParseNumber(g.ID); !ok {
			return baseError("This token has permissions that this API cannot show. Please reset it with the native API.")
		}
	}
	return nil
}

func baseError(text string) *admin.Error {
	return &admin.Error{Kind: admin.KindInvalid, Fields: []tokenstore.FieldFault{{Field: base, Detail: text}}}
}

// base is the name under which errors stand that belong to no single field.
const base = "base"

const noPermissions = "No permissions selected. Please choose at least one."

func (f *Face) decodeCreate(body *admin.Object, p place, c admin.Caller) (admin.Spec, error) {
	spec := admin.Spec{Account: &p.account}
	if !body.Has("resources") || body.Null("resources") {
		return spec, baseError(noPermissions)
	}
	items, ok := body.List("resources")
	if ok && len(items) == 0 {
		return spec, baseError(noPermissions)
	}
	var grants []tokenstore.Grant
	foreign := false
	for _, item := range items {
		g := f.decodeResource(item)
		foreign = foreign || g.Type == tokenstore.TypeAccount && g.ID != strconv.FormatUint(p.account, 10)
		grants = append(grants, g)
	}
	spec.Resources = &tokenstore.Resources{Grants: grants}
	spec.Name = decodeName(body)
	f.decodeExpiry(body, &spec.Expiry, &spec.DefaultExpiry)
	if faults := body.Faults(); len(faults) > 0 {
		return spec, &admin.Error{Kind: admin.KindInvalid, Fields: faults}
	}
	if foreign && !c.IsRoot() {
		return spec, forbidden
	}
	return spec, nil
}

func decodeName(body *admin.Object) string {
	if !body.Has("name") || body.Null("name") {
		body.Fault("name", blank)
		return ""
	}
	name, ok := body.Text("name")
	switch {
	case !ok:
	case strings.TrimSpace(name) == "":
		body.Fault("name", blank)
	default:
		if detail := tokenstore.CheckText(name, tokenstore.MaxNameRunes); detail != "" {
			body.Fault("name", detail)
		}
	}
	return name
}

const blank = "can't be blank"

// decodeResource reads one item of resources. What is wrong with it is among the
// body's faults.
func (f *Face) decodeResource(item admin.Value) tokenstore.Grant {
	o, ok := item.Object()
	if !ok {
		return tokenstore.Grant{}
	}
	given := func(name string) bool {
		missing := !o.Has(name) || o.Null(name)
		if missing {
			o.Fault(name, blank)
		}
		return !missing
	}
	var g tokenstore.Grant
	if given("resource_type") {
		wire, ok := o.Text("resource_type")
		g.Type = storedType(wire)
		if ok && !slices.Contains(AccountTypes(), g.Type) && !f.service.Vocabulary().KnowsType(g.Type) {
			o.Fault("resource_type", "is not included in the list")
		}
	}
	if given("resource_id") {
		g.ID = decodeResourceID(o)
	}
	if given("access_level") {
		switch level, ok := o.Number("access_level"); {
		case !ok:
		case level == levelViewer:
			g.Level = tokenstore.LevelRead
		case level == levelAdmin:
			g.Level = tokenstore.LevelWrite
		default:
			o.Fault("access_level", fmt.Sprintf("must be %d or %d", levelViewer, levelAdmin))
		}
	}
	return g
}

// decodeResourceID reads an id that may be an integer or a string of digits.
func decodeResourceID(o *admin.Object) string {
	var (
		id uint64
		ok bool
	)
	if o.IsText("resource_id") {
		text, _ := o.Text("resource_id")
		id, ok = tokenstore.ParseNumber(text)
	} else if id, ok = o.Number("resource_id"); !ok {
		return "" // said already
	}
	if !ok || id == 0 {
		o.Fault("resource_id", "must be a whole number from 1 to 2^53-1")
		return ""
	}
	return strconv.FormatUint(id, 10)
}

// maxYears is how far ahead an end may lie.
const maxYears = 5

// decodeExpiry reads expires_at in its three states: absent leaves it to the
// default, null is never.
func (f *Face) decodeExpiry(body *admin.Object, asked, byDefault **tokenstore.Expiry) {
	now := f.service.Now()
	switch {
	case !body.Has("expires_at"):
		*byDefault = new(tokenstore.Never())
		if f.options.Lifetime > 0 {
			*byDefault = new(tokenstore.EndsAt(now.Add(f.options.Lifetime)))
		}
	case body.Null("expires_at"):
		*asked = new(tokenstore.Never())
	default:
		at, ok := body.Time("expires_at")
		switch {
		case !ok:
		case !at.After(now):
			body.Fault("expires_at", "must be in the future")
		case at.After(now.AddDate(maxYears, 0, 0)):
			body.Fault("expires_at", fmt.Sprintf("must be at most %d years ahead", maxYears))
		}
		*asked = new(tokenstore.EndsAt(at))
	}
}

func (f *Face) decodeReset(w http.ResponseWriter, r *http.Request) (admin.ResetSpec, error) {
	body, err := admin.ReadJSON(w, r)
	if err != nil {
		return admin.ResetSpec{}, err
	}
	spec := admin.ResetSpec{Check: expressible}
	f.decodeExpiry(body, &spec.Expiry, &spec.DefaultExpiry)
	if faults := body.Faults(); len(faults) > 0 {
		return spec, &admin.Error{Kind: admin.KindInvalid, Fields: faults}
	}
	return spec, nil
}

// status knows no conflicts: this contract tells of them as of any other request
// that cannot be carried out.
func status(k admin.Kind) int {
	switch k {
	case admin.KindConflict, admin.KindPrecondition:
		return http.StatusUnprocessableEntity
	default:
		return k.Status()
	}
}

// writeError writes an error in this contract's form: `error` with one text,
// `errors` with one text, or `errors` with an array of texts for each field. A
// bare text in the last form crashes one of the clients.
func writeError(w http.ResponseWriter, _ *http.Request, e *admin.Error) {
	code := status(e.Kind)
	var body any
	switch code {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Token realm="Application"`)
		body = errorText{"Incorrect API token"}
	case http.StatusForbidden:
		body = errorsText{"Account access forbidden"}
	case http.StatusNotFound:
		body = errorText{"Not Found"}
	case http.StatusMethodNotAllowed:
		body = errorText{"Method Not Allowed"}
	case http.StatusUnprocessableEntity:
		body = errorsByField{fieldErrors(e)}
	case http.StatusTooManyRequests:
		body = errorsText{"Rate limit exceeded"}
	default:
		body = errorsText{orElse(e.Detail, http.StatusText(code))}
	}
	_ = admin.WriteJSON(w, code, mediaType, body) // a client that is gone needs no answer
}

type (
	errorText struct {
		Error string `json:"error"`
	}
	errorsText struct {
		Errors string `json:"errors"`
	}
	errorsByField struct {
		Errors map[string][]string `json:"errors"`
	}
)

func fieldErrors(e *admin.Error) map[string][]string {
	if len(e.Fields) == 0 {
		return map[string][]string{base: {orElse(e.Detail, "is not possible")}}
	}
	fields := make(map[string][]string, len(e.Fields))
	for _, f := range e.Fields {
		name := fieldName(f.Field)
		fields[name] = append(fields[name], f.Detail)
	}
	return fields
}

// fieldName turns the path of a field (`resources/0/level`) into this contract's
// words.
func fieldName(path string) string {
	parts := strings.Split(path, "/")
	name := parts[0]
	for _, part := range parts[1:] {
		switch {
		case part != "" && strings.Trim(part, "0123456789") == "":
			name += "[" + part + "]"
		case serviceNames[part] != "" && parts[0] == "resources":
			name += "." + serviceNames[part]
		default:
			name += "." + part
		}
	}
	return name
}

// serviceNames are the names by which the service calls the parts of a resource.
var serviceNames = map[string]string{"type": "resource_type", "id": "resource_id", "level": "access_level"}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
