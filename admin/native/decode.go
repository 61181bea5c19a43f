package native

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tokenward/admin"
	"tokenward/tokenstore"
)

// faults is everything wrong with a body, as an error.
func faults(body *admin.Object) error {
	if f := body.Faults(); len(f) > 0 {
		return &admin.Error{Kind: admin.KindInvalid, Detail: "Some fields are not acceptable.", Fields: f}
	}
	return nil
}

// decodeSpec reads the body of a creation by the caller's own token. What is left
// out is as the caller has it, each part of sources and limits by itself.
func decodeSpec(body *admin.Object, own *tokenstore.Token) (admin.Spec, error) {
	var spec admin.Spec
	if n, ok := body.Number("account"); ok {
		spec.Account = &n
	}
	if n, ok := body.Number("owner"); ok {
		spec.Owner = &n
	}
	name, ok := body.Text("name")
	if spec.Name = name; !ok && !body.Has("name") {
		body.Fault("name", "is required")
	}
	if scopes, ok := body.Texts("scopes"); ok {
		spec.Scopes = scopes
	}
	spec.Resources = decodeResources(body)
	if s := decodeSources(body); s != nil {
		spec.Sources = new(own.Sources)
		if fault := s.merge(spec.Sources); fault != "" {
			body.Fault("sources", fault)
		}
	}
	if at := decodeNotBefore(body); at != nil {
		spec.NotBefore = *at
	}
	spec.Expiry = decodeExpiry(body)
	if l := decodeLimits(body); l != nil {
		spec.Limits = new(l.merged(own.Limits))
	}
	return spec, faults(body)
}

// patch is a merge patch (RFC 7396): nil leaves a field as it is.
type patch struct {
	name      *string
	scopes    []string
	resources *tokenstore.Resources
	sources   *sourcesPatch
	notBefore *time.Time
	expiry    *tokenstore.Expiry
	limits    *limitsPatch
}

// fixed are fields of a token that no patch changes.
var fixed = []string{"id", "account", "owner", "state", "created_at", "created_by", "updated_at", "revision", "secrets", "token"}

func decodePatch(body *admin.Object) (*patch, error) {
	p := &patch{
		resources: decodeResources(body), sources: decodeSources(body), notBefore: decodeNotBefore(body),
		expiry: decodeExpiry(body), limits: decodeLimits(body),
	}
	if name, ok := body.Text("name"); ok {
		p.name = &name
	}
	if scopes, ok := body.Texts("scopes"); ok {
		p.scopes = scopes
	}
	for _, name := range fixed {
		if body.Has(name) {
			body.Null(name)
			body.Fault(name, "cannot be changed")
		}
	}
	return p, faults(body)
}

// merge puts the patch into effect. It changes nothing but f.
func (p *patch) merge(f *admin.Fields) tokenstore.Faults {
	if p.name != nil {
		f.Name = *p.name
	}
	if p.scopes != nil {
		f.Scopes = p.scopes
	}
	if p.resources != nil {
		f.Resources = *p.resources
	}
	if p.sources != nil {
		if fault := p.sources.merge(&f.Sources); fault != "" {
			return tokenstore.Faults{{Field: "sources", Detail: fault}}
		}
	}
	if p.notBefore != nil {
		f.NotBefore = *p.notBefore
	}
	if p.expiry != nil {
		f.Expiry = *p.expiry
	}
	if p.limits != nil {
		f.Limits = p.limits.merged(f.Limits)
	}
	return nil
}

// decodeExpiry reads expires_at: nil where it is not there, never where it is
// null.
func decodeExpiry(body *admin.Object) *tokenstore.Expiry {
	if body.Null("expires_at") {
		return new(tokenstore.Never())
	}
	if at, ok := body.Time("expires_at"); ok {
		return new(tokenstore.EndsAt(at))
	}
	return nil
}

// decodeNotBefore reads not_before: nil where it is not there, the zero time
// where it is null.
func decodeNotBefore(body *admin.Object) *time.Time {
	if body.Null("not_before") {
		return &time.Time{}
	}
	if at, ok := body.Time("not_before"); ok {
		return &at
	}
	return nil
}

// decodeResources reads "all" or a list of grants; nil where it is not there.
func decodeResources(body *admin.Object) *tokenstore.Resources {
	if decodeWord(body, "resources", "all", "an array") {
		return &tokenstore.Resources{All: true}
	}
	items, ok := body.List("resources")
	if !ok {
		return nil
	}
	r := &tokenstore.Resources{}
	for _, item := range items {
		o, ok := item.Object()
		if !ok {
			continue
		}
		var g tokenstore.Grant
		g.Type = required(o, "type")
		g.ID = required(o, "id")
		level := required(o, "level")
		if g.Level, ok = tokenstore.ParseLevel(level); !ok && level != "" {
			o.Fault("level", "must be read or write")
		}
		r.Grants = append(r.Grants, g)
	}
	return r
}

// decodeWord reads a field that holds one word or else something longer, which other
// names. It reports whether there is nothing longer to read. A text that is not the
// word, and null, put the body at fault, so that nothing made of it is used.
func decodeWord(body *admin.Object, name, word, other string) bool {
	is := false
	switch {
	case body.Null(name):
	case body.IsText(name):
		text, _ := body.Text(name)
		is = text == word
	default:
		return false
	}
	if !is {
		body.Fault(name, fmt.Sprintf("must be %q or %s", word, other))
	}
	return true
}

func required(o *admin.Object, name string) string {
	if !o.Has(name) {
		o.Fault(name, "is required")
	}
	text, ok := o.Text(name)
	if ok && text == "" {
		o.Fault(name, "must not be empty")
	}
	return text
}

// sourcesPatch is what a request says of the sources; nil lists are not said.
type sourcesPatch struct {
	any         bool
	allow, deny []netip.Prefix
}

func decodeSources(body *admin.Object) *sourcesPatch {
	if decodeWord(body, "sources", "any", "an object") {
		return &sourcesPatch{any: true}
	}
	o, ok := body.Object("sources")
	if !ok {
		return nil
	}
	p := &sourcesPatch{allow: decodePrefixes(o, "allow")}
	if p.deny = []netip.Prefix{}; !o.Null("deny") {
		p.deny = decodePrefixes(o, "deny")
	}
	return p
}

func decodePrefixes(o *admin.Object, name string) []netip.Prefix {
	items, ok := o.List(name)
	if !ok {
		return nil
	}
	ps := make([]netip.Prefix, 0, len(items))
	for _, item := range items {
		text, ok := item.Text()
		if !ok {
			continue
		}
		p, err := tokenstore.ParseSource(text)
		if err != nil {
			item.Fault(err.Error())
		}
		ps = append(ps, p)
	}
	return ps
}

// merge puts the patch into effect, or says what is wrong with it. The text that
// another API echoes goes: it would no longer tell the truth.
func (p *sourcesPatch) merge(s *tokenstore.Sources) (fault string) {
	if p.any {
		*s = tokenstore.Sources{Any: true}
		return ""
	}
	if s.Any && p.allow == nil {
		return "must have allow: the addresses that are let in"
	}
	s.Any, s.Text = false, ""
	if p.allow != nil {
		s.Allow = p.allow
	}
	if p.deny != nil {
		s.Deny = p.deny
	}
	return ""
}

// limitsPatch is what a request says of the limits: nil is not said, 0 (null on
// the wire) takes the limit away.
type limitsPatch struct {
	none                    bool
	rate                    *float64
	burst, uses, concurrent *uint64
	quotas                  *[]tokenstore.Quota
}

func decodeLimits(body *admin.Object) *limitsPatch {
	if body.Null("limits") {
		return &limitsPatch{none: true}
	}
	o, ok := body.Object("limits")
	if !ok {
		return nil
	}
	return &limitsPatch{
		rate: decodeRate(o), burst: decodeLimit(o, "burst"), uses: decodeLimit(o, "uses"),
		concurrent: decodeLimit(o, "concurrent"), quotas: decodeQuotas(o),
	}
}

func decodeRate(o *admin.Object) *float64 {
	if o.Null("rate") {
		return new(float64)
	}
	rate, ok := o.Float("rate")
	if !ok {
		return nil
	}
	if rate <= 0 {
		o.Fault("rate", "must be more than 0; null sets no limit")
	}
	return &rate
}

func decodeLimit(o *admin.Object, name string) *uint64 {
	if o.Null(name) {
		return new(uint64)
	}
	n, ok := o.Number(name)
	if !ok {
		return nil
	}
	if n == 0 {
		o.Fault(name, "must be at least 1; null sets no limit")
	}
	return &n
}

func decodeQuotas(o *admin.Object) *[]tokenstore.Quota {
	if o.Null("quota") {
		return &[]tokenstore.Quota{}
	}
	items, ok := o.List("quota")
	if !ok {
		return nil
	}
	quotas := make([]tokenstore.Quota, 0, len(items))
	for _, item := range items {
		q, ok := item.Object()
		if !ok {
			continue
		}
		var one tokenstore.Quota
		if one.Count, ok = q.Number("count"); !ok && !q.Has("count") {
			q.Fault("count", "is required")
		}
		per := required(q, "per")
		if one.Per, ok = tokenstore.ParseWindow(per); !ok && per != "" {
			q.Fault("per", "must be minute, hour, day or month")
		}
		quotas = append(quotas, one)
	}
	return &quotas
}

func (p *limitsPatch) merged(l tokenstore.Limits) tokenstore.Limits {
	if p.none {
		return tokenstore.Limits{}
	}
	if p.rate != nil {
		l.Rate = *p.rate
	}
	for _, one := range []struct{ to, from *uint64 }{{&l.Burst, p.burst}, {&l.Uses, p.uses}, {&l.Concurrent, p.concurrent}} {
		if one.from != nil {
			*one.to = *one.from
		}
	}
	if p.quotas != nil {
		l.Quotas = slices.Clone(*p.quotas)
	}
	return l
}

// decodeQuestion reads the body of explain. id is the token it asks about, or 0
// for the caller's own.
func decodeQuestion(body *admin.Object) (q Question, id tokenstore.ID) {
	q.Method, q.Target = required(body, "method"), required(body, "target")
	if o, ok := body.Object("headers"); ok {
		for _, name := range o.Names() {
			for _, value := range headerValues(o, name) {
				if strings.ContainsFunc(value, isControl) {
					o.Fault(name, "must not hold control characters: the listener refuses them in every request")
				}
				q.Headers = append(q.Headers, Header{name, value})
			}
		}
	}
	if from, ok := body.Text("from"); ok {
		addr, err := netip.ParseAddr(from)
		if err != nil || addr.Zone() != "" {
			body.Fault("from", "must be an IP address")
		}
		q.From = addr.Unmap()
	}
	if n, ok := body.Number("token_id"); ok {
		if id = tokenstore.ID(n); id == 0 {
			body.Fault("token_id", "must be at least 1")
		}
	}
	return q, id
}

// isControl reports whether no field value has r (RFC 9110 section 5.5).
func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// headerValues reads a header's value, or a list of them.
func headerValues(o *admin.Object, name string) []string {
	if o.IsText(name) {
		value, _ := o.Text(name)
		return []string{value}
	}
	values, _ := o.Texts(name)
	return values
}
