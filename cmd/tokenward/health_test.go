package main

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestNobodyElsePassesForAHealthyServer: an API that answers everything with 200, asked
// by a slip of the port, would keep a dead guard in service.
func TestNobodyElsePassesForAHealthyServer(t *testing.T) {
	const checks = `"checks":[{"name":"store","state":"failing","detail":"the file is gone"}]}`
	for name, c := range map[string]struct {
		status int
		body   string
		live   bool
		refuse string // part of the error
		shown  string
	}{
		"another API":                {status: 200, body: `{"ok":true}`, refuse: "does not answer as tokenward's metrics listener"},
		"a page":                     {status: 200, body: "<html>", refuse: "does not answer as tokenward's metrics listener"},
		"a page, alive":              {status: 200, body: "<html>", live: true, refuse: "does not answer as tokenward's metrics listener"},
		"a balancer without servers": {status: 503, body: "no server", refuse: "does not answer as tokenward's metrics listener"},
		"ready, with a bad status":   {status: 503, body: `{"ready":true,` + checks, refuse: "does not answer as tokenward's metrics listener"},
		"ready without checks":       {status: 200, body: `{"ready":true,"checks":[]}`, refuse: "does not answer as tokenward's metrics listener"},
		"not ready":                  {status: 503, body: `{"ready":false,` + checks, refuse: "not ready", shown: "failing  store: the file is gone\n"},
		"ready":                      {status: 200, body: `{"ready":true,"checks":[{"name":"store","state":"passing"}]}`, shown: "passing  store\nThe server is ready.\n"},
		"alive":                      {status: 200, body: "ok\n", live: true, shown: "The server answers.\n"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body))
			}))
			defer server.Close()
			var out bytes.Buffer
			err := (&healthQuery{server: server.URL, live: c.live}).ask(t.Context(), &out)
			if (err != nil) != (c.refuse != "") || err != nil && (!strings.Contains(err.Error(), c.refuse) || errors.As(err, new(usageError))) {
				t.Errorf("error %v, want one with %q", err, c.refuse)
			}
			if out.String() != c.shown {
				t.Errorf("printed %q, want %q", &out, c.shown)
			}
		})
	}
}
