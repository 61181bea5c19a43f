package canon

// Verdict is the outcome of reading one request. The zero value refuses.
//
// To add one: here, in verdictTexts, and in a case of TestEveryVerdictIsReached.
type Verdict uint8

const (
	// Unread is the verdict of a Request that was never canonicalised.
	Unread Verdict = iota
	// Accepted is the only verdict that lets a request go on to be judged.
	Accepted
	BadMethod
	UnknownMethod
	MethodNotAllowed
	TargetTooLong
	TooManyFields
	BadFieldName
	MissingHost
	RepeatedHost
	BadHost
	HostDiffers
	BadTargetForm
	BadAsterisk
	Fragment
	Backslash
	ByteOutsideGrammar
	BadPercent
	EncodedControl
	BadUTF8
	DotSegment
	DoubleLeadingSlash
	BadQueryByte

	numVerdicts
)

// Status is the HTTP status of the answer; 400 for what is not in the table.
func (v Verdict) Status() int { return verdictTexts[v.known()].status }

// Code is the stable machine-readable word of the answer's body.
func (v Verdict) Code() string { return verdictTexts[v.known()].code }

// Detail says what is wrong in a sentence that is safe to show to the client: it never
// quotes the request.
func (v Verdict) Detail() string { return verdictTexts[v.known()].detail }

// String names the verdict for logs and as a metric label.
func (v Verdict) String() string { return verdictTexts[v.known()].name }

// known maps what is no verdict to the zero one, which refuses.
func (v Verdict) known() Verdict {
	if v >= numVerdicts {
		return Unread
	}
	return v
}

// Accepted has a status of 200 only so that a mistaken use is seen at once; no answer
// is made from it.
var verdictTexts = [numVerdicts]struct {
	name   string
	status int
	code   string
	detail string
}{
	Unread:             {"unread", 400, "bad_request", "The request was not read."},
	Accepted:           {"accepted", 200, "ok", "The request is well-formed."},
	BadMethod:          {"bad_method", 400, "bad_request", "The method is not a token."},
	UnknownMethod:      {"unknown_method", 501, "not_implemented", "The method is not of upper-case letters, digits, '-' and '_', beginning with a letter."},
	MethodNotAllowed:   {"method_not_allowed", 405, "method_not_allowed", "CONNECT and TRACE are not served here."},
	TargetTooLong:      {"target_too_long", 414, "uri_too_long", "The request target is too long."},
	TooManyFields:      {"too_many_fields", 431, "header_fields_too_large", "The request has too many header fields."},
	BadFieldName:       {"bad_field_name", 400, "bad_request", "A header field name is not a token."},
	MissingHost:        {"missing_host", 400, "bad_request", "The request names no host."},
	RepeatedHost:       {"repeated_host", 400, "bad_request", "The request names its host more than once."},
	BadHost:            {"bad_host", 400, "bad_request", "The host is not a name or address with an optional port."},
	HostDiffers:        {"host_differs", 400, "bad_request", "The request names two different hosts."},
	BadTargetForm:      {"bad_target_form", 400, "bad_request", "The request target is neither a path nor an absolute http or https URL."},
	BadAsterisk:        {"bad_asterisk", 400, "bad_request", "The target * goes with OPTIONS only."},
	Fragment:           {"fragment", 400, "bad_request", "The request target holds a '#'; write it as %23 if it is meant."},
	Backslash:          {"backslash", 400, "bad_request", "The path holds a backslash."},
	ByteOutsideGrammar: {"byte_outside_grammar", 400, "bad_request", "The path holds a character that must be percent-encoded."},
	BadPercent:         {"bad_percent", 400, "bad_request", "A '%' in the path is not followed by two hexadecimal digits."},
	EncodedControl:     {"encoded_control", 400, "bad_request", "The path holds an encoded control character."},
	BadUTF8:            {"bad_utf8", 400, "bad_request", "The path is not UTF-8 when decoded."},
	DotSegment:         {"dot_segment", 400, "bad_request", "The path holds a '.' or '..' segment, plain or in disguise."},
	DoubleLeadingSlash: {"double_leading_slash", 400, "bad_request", "The path begins with two slashes."},
	BadQueryByte:       {"bad_query_byte", 400, "bad_request", "The query holds a space, control or non-ASCII character that must be percent-encoded."},
}
