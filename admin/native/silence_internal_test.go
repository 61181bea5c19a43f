package native

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/tokenstore"
)

func TestSilenceIsReadInWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		d     time.Duration // 0: it is refused
		shown string
	}{
		`"36h"`:         {36 * time.Hour, "36h"},
		`"2d"`:          {48 * time.Hour, "48h"},
		`"1d12h"`:       {36 * time.Hour, "36h"},
		`"1d1h1m1s"`:    {25*time.Hour + time.Minute + time.Second, "25h1m1s"},
		`"90m"`:         {90 * time.Minute, "1h30m"},
		`"20m"`:         {20 * time.Minute, "20m"},
		`"90s"`:         {90 * time.Second, "1m30s"},
		`"90d"`:         {tokenstore.MaxSilence, "2160h"},
		`"90d1s"`:       {},
		`"91d"`:         {},
		`"0m"`:          {},
		`"0d"`:          {},
		`""`:            {},
		`"d"`:           {},
		`"1"`:           {},
		`"-1h"`:         {},
		`"1h1d"`:        {},
		`"1.5h"`:        {},
		`"1h "`:         {},
		`"1w"`:          {},
		`"1000d"`:       {},
		`"9999999999s"`: {},
		`60`:            {},
		`null`:          {},
	} {
		r := httptest.NewRequest("POST", "/", strings.NewReader(`{"old_ends_after_silence":`+text+`}`))
		r.Header.Set("Content-Type", "application/json")
		body, err := admin.ReadJSON(httptest.NewRecorder(), r)
		if err != nil {
			t.Fatal(text, err)
		}
		got := decodeSilence(body)
		if refused := len(body.Faults()) > 0; got != want.d || refused != (want.d == 0) {
			t.Errorf("%s reads as %s, with %v", text, got, body.Faults())
		}
		if shown := silenceText(got); shown != want.shown {
			t.Errorf("%s is shown as %q, want %q", text, shown, want.shown)
		}
	}
}
