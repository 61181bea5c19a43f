package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"tokenward/audit"
)

// TestRefusedRequestsAreAudited has requests refused at both doors, and the log say
// so: with the token where one is known, and never with what was shown.
func TestRefusedRequestsAreAudited(t *testing.T) {
	s := startApp(t, "routes:\n  - {match: GET /a, scopes: [a]}\n")
	admin := "http://" + s.adminListener.Addr().String()
	var made struct {
		ID     uint64 `json:"id"`
		Secret string `json:"token"`
	}
	if err := json.Unmarshal([]byte(send(t, "POST", admin+"/v1/tokens", s.root, `{"name":"a","scopes":["a"]}`)), &made); err != nil {
		t.Fatal(err)
	}
	bearer := map[string][]string{"Authorization": {"Bearer " + made.Secret}}
	if code, _, body := request(t, "GET", s.proxy+"/a", bearer, ""); code != 200 {
		t.Fatal(code, body)
	}
	send(t, "DELETE", fmt.Sprintf("%s/v1/tokens/%d", admin, made.ID), s.root, "")
	for range 3 {
		if code, _, _ := request(t, "GET", s.proxy+"/a", bearer, ""); code != 401 {
			t.Fatal(code)
		}
	}
	if code, _, _ := request(t, "GET", admin+"/v1/whoami", map[string][]string{"Authorization": {"Bearer tw_nothing"}}, ""); code != 401 {
		t.Fatal(code)
	}
	if err := s.vault.denials.Flush(s.vault.log, time.Now()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(s.cfg.Audit.Path)
	if err != nil {
		t.Fatal(err)
	}
	var got []audit.Event
	for line := range strings.Lines(string(text)) {
		rec, ok, err := audit.ParseRecord([]byte(strings.TrimSuffix(line, "\n")))
		if err != nil {
			t.Fatal(err)
		}
		if ok && rec.Event.Verb == audit.VerbDeny {
			got = append(got, rec.Event)
		}
	}
	local := netip.MustParseAddr("127.0.0.1")
	if len(got) != 2 || got[0].Reason != "revoked_token" || got[0].Denied.Count != 3 || got[0].Denied.Route != "GET /a" ||
		got[0].Actor != (audit.Actor{Token: made.ID, Account: 1, Owner: 1, Address: local, Via: "proxy"}) ||
		got[1].Reason != "malformed_token" || got[1].Actor != (audit.Actor{Address: local, Via: "admin"}) {
		t.Errorf("%+v", got)
	}
	if strings.Contains(string(text), "tw_") {
		t.Error("the log has a secret")
	}
	scrape := send(t, "GET", "http://"+s.metricsListener.Addr().String()+"/metrics", "", "")
	if want := `tokenward_audit_denials_total{result="written"} 4`; !strings.Contains(scrape, want) {
		t.Errorf("no %s", want)
	}
}
