package main

import (
	"errors"
	"strings"
	"testing"

	"tokenward/metrics"
	"tokenward/tokenstore"
)

func TestReadinessSaysThatChangesAreRefused(t *testing.T) {
	full := errors.New("no space left on device")
	for _, c := range []struct {
		fault   error
		waiting int
		want    string
	}{
		{nil, 0, ""},
		{nil, tokenstore.MaxOutbox, "changes are refused"},
		{full, 1, "the audit log cannot be written: no space left on device"},
		{full, tokenstore.MaxOutbox, "changes are refused, since too many events wait for the audit log, which cannot be written: no space left on device"},
	} {
		if state, detail := auditState(c.fault, c.waiting); !strings.HasPrefix(detail, c.want) || (state == metrics.Passing) != (c.want == "") {
			t.Errorf("%v, %d waiting: %v %q", c.fault, c.waiting, state, detail)
		}
	}
}
