package main

import (
	"fmt"
	"strings"

	"tokenward/admin"
)

// demoPlaces are the URLs and the folder of a running demo.
type demoPlaces struct{ proxy, admin, metrics, upstream, dir string }

// demoPage is what a demo prints: lines to paste, each with the answer to
// expect under it. TestDemoKeepsEveryPromise reads it back and holds it to
// them, in its order.
func demoPage(at demoPlaces, tokens *demoTokens) string {
	p := &pageWriter{}
	p.text("tokenward stands in front of a sample API of accounts and cards.\n\n")
	for _, place := range [][2]string{
		{"guarded API", at.proxy}, {"token APIs", at.admin}, {"metrics", at.metrics + "/metrics"},
		{"the API behind", at.upstream}, {"configuration", at.dir + "/tokenward.yaml"},
	} {
		p.text("  %-16s%s\n", place[0], place[1])
	}
	p.text("\nPaste the lines into another terminal, from the top. The answer to expect stands\nunder each.\n")

	p.part("Without a token, only what the configuration calls public")
	p.line("", at.proxy+"/healthz", "200")
	p.line("", at.proxy+"/accounts", "401 missing_token")

	p.part("A token for everything; the answer shows what the API behind is told of it")
	p.line(bearer(&tokens.full), at.proxy+"/accounts", "200")
	p.line(bearer(&tokens.full)+` -d '{"name":"Books"}'`, at.proxy+"/accounts/1002/cards", "201")

	p.part("A read-only token: scopes accounts:read and cards:read")
	p.line(bearer(&tokens.readOnly), at.proxy+"/accounts/1001/cards", "200")
	p.line(bearer(&tokens.readOnly)+" -X DELETE", at.proxy+"/accounts/1001/cards/c-1", "403 insufficient_scope")

	p.part("A token for one account only: resource account:1001, to write")
	p.line(bearer(&tokens.oneAccount)+` -d '{"name":"Rent"}'`, at.proxy+"/accounts/1001/cards", "201")
	p.line(bearer(&tokens.oneAccount), at.proxy+"/accounts/1002", "403 resource_not_granted")
	p.line(bearer(&tokens.oneAccount)+" --path-as-is", at.proxy+"/accounts/1001/../1002", "400 bad_request")

	p.part("A token that expired an hour ago")
	p.line(bearer(&tokens.expired), at.proxy+"/accounts", "401 invalid_token")

	p.part("A token for the office only: source 192.0.2.0/24, as a trusted proxy reports it")
	p.line(bearer(&tokens.office), at.proxy+"/accounts", "403 source_not_allowed")
	p.line(bearer(&tokens.office)+" -H 'X-Forwarded-For: 192.0.2.7'", at.proxy+"/accounts", "200")

	p.part("The root token manages the others; what it revokes is dead on the next request")
	p.line(bearer(&tokens.root), at.admin+"/v1/tokens", "200")
	p.line(bearer(&tokens.root)+" -X DELETE", fmt.Sprintf("%s/v1/tokens/%d", at.admin, tokens.full.Token.ID), "200")
	p.line(bearer(&tokens.full), at.proxy+"/accounts", "401 invalid_token")

	p.text("\n`tokenward token` does that at the command line, and more. Ctrl-C ends the demo.\n")
	return p.b.String()
}

func bearer(made *admin.Made) string {
	return " -H 'Authorization: Bearer " + made.Secret.Reveal() + "'"
}

// pageWriter sets the page.
type pageWriter struct{ b strings.Builder }

func (p *pageWriter) text(format string, args ...any) { fmt.Fprintf(&p.b, format, args...) }

func (p *pageWriter) part(title string) { p.text("\n%s\n", title) }

// line is one request with its promise: the status, and the code of a refusal.
func (p *pageWriter) line(options, url, promise string) {
	p.text("  curl -i%s %s\n    → %s\n", options, url, promise)
}
