package native

import (
	"regexp"
	"strings"
	"time"

	"tokenward/admin"
	"tokenward/tokenstore"
)

// silenceForm is how a silence is written: 36h, 2d, 1d12h, 90m.
var silenceForm = regexp.MustCompile(`^(?:([0-9]{1,3})d)?((?:[0-9]{1,5}h)?(?:[0-9]{1,6}m)?(?:[0-9]{1,7}s)?)$`)

// decodeSilence reads old_ends_after_silence; 0 where it is not there.
func decodeSilence(body *admin.Object) time.Duration {
	const name = "old_ends_after_silence"
	text, ok := body.Text(name)
	if !ok {
		return 0
	}
	parts := silenceForm.FindStringSubmatch(text)
	if text == "" || parts == nil {
		body.Fault(name, "must be a duration such as 36h, 2d or 1d12h")
		return 0
	}
	var d time.Duration
	if parts[2] != "" {
		d, _ = time.ParseDuration(parts[2]) // the form leaves nothing to fail
	}
	if parts[1] != "" {
		days, _ := time.ParseDuration(parts[1] + "h")
		d += 24 * days
	}
	if d <= 0 || d > tokenstore.MaxSilence {
		body.Fault(name, "must be a minute to 90 days, in whole seconds")
		return 0
	}
	return d
}

// silenceText writes a silence in hours, minutes and seconds; none is "".
func silenceText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
