package main

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"tokenward/proxy"
)

// upstreamList are URLs of the API behind, in the order of preference. In the
// file it is one URL or a list of them.
type upstreamList []string

// UpstreamTLSConfig says how https upstreams are connected to.
type UpstreamTLSConfig struct {
	CAFile     string `yaml:"ca_file" reload:"no"`     // PEM; empty: the system's authorities
	CertFile   string `yaml:"cert_file" reload:"no"`   // PEM, shown to an upstream that asks; empty: none
	KeyFile    string `yaml:"key_file" reload:"no"`    // PEM
	ServerName string `yaml:"server_name" reload:"no"` // empty: the host of the URL
}

// used reports whether anything is set.
func (t UpstreamTLSConfig) used() bool { return t != UpstreamTLSConfig{} }

// RouteTimeoutsConfig are a route's own times; nil where it has those of proxy.timeouts.
type RouteTimeoutsConfig struct {
	ResponseHeader *time.Duration `yaml:"response_header"`
	Stall          *time.Duration `yaml:"stall"`
}

// RouteLimitsConfig are a route's own limits.
type RouteLimitsConfig struct {
	BodyBytes *byteSize `yaml:"body_bytes"` // nil: that of proxy.limits
	InFlight  int       `yaml:"in_flight"`  // of this route; 0: no limit
	// Of each token on this route, where it has no such limit itself; 0: none.
	Rate       requestRate `yaml:"rate"`
	Burst      uint64      `yaml:"burst"`
	Concurrent uint64      `yaml:"concurrent"`
}

// CORSConfig is [proxy.CORSOptions].
type CORSConfig struct {
	Origins     []string      `yaml:"origins"`
	Methods     []string      `yaml:"methods"`
	Headers     []string      `yaml:"headers"` // nil: Content-Type, and the headers in which a token may stand
	Expose      []string      `yaml:"expose"`
	MaxAge      time.Duration `yaml:"max_age"`
	Credentials bool          `yaml:"credentials"`
}

// defaultTLS is the TLS of a listener without any.
func defaultTLS() TLSConfig { return TLSConfig{ClientAuth: "none"} }

// upstreams decodes one URL, or a list of them.
func (d *decoder) upstreams(path string, node ast.Node) upstreamList {
	var items []ast.Node
	switch n := node.(type) {
	case *ast.SequenceNode:
		items = n.Values
	case *ast.StringNode:
		items = []ast.Node{n}
	default:
		d.wrongType(path, node, "a URL, or a list of URLs")
		return nil
	}
	var out upstreamList
	for i, item := range items {
		child := path
		if len(items) > 1 || node != item {
			child = itemPath(path, i)
			d.places[child] = nodePosition(item)
		}
		s, ok := item.(*ast.StringNode)
		switch {
		case !ok:
			d.wrongType(child, item, "a URL")
		case s.Value == "":
			d.report(child, ruleMissing, "there is no upstream", "write the URL of the API, such as http://127.0.0.1:3000")
		default:
			out = append(out, s.Value)
		}
	}
	if len(items) == 0 {
		d.report(path, ruleMissing, "there is no upstream", "write the URL of the API, such as http://127.0.0.1:3000")
	}
	return out
}

// checkTransport applies the rules about connections and how requests travel.
func (d *decoder) checkTransport(c *Config) {
	d.checkUpstreams(c, "proxy.upstream", c.Proxy.Upstream)
	for i := range c.Routes {
		r, path := &c.Routes[i], itemPath("routes", i)
		if _, set := d.places[path+".upstream"]; set {
			d.checkUpstreams(c, path+".upstream", r.Upstream)
		}
		d.checkRouteTransport(c, r, path)
	}
	d.checkListenerTLS("proxy.tls", c.Proxy.TLS)
	d.checkListenerTLS("admin.tls", c.Admin.TLS)
	d.checkUpstreamTLS(c)
}

func (d *decoder) checkListenerTLS(path string, t TLSConfig) {
	if !d.sound(path) {
		return
	}
	d.checkFileReference(path+".cert_file", t.CertFile)
	d.checkFileReference(path+".key_file", t.KeyFile)
	d.checkFileReference(path+".client_ca_file", t.ClientCAFile)
	d.choiceOf("proxy.tls.client_auth", path+".client_auth", t.ClientAuth)
	if !d.sound(path) {
		return
	}
	switch asks := t.ClientAuth != "none"; {
	case (t.CertFile == "") != (t.KeyFile == ""):
		d.report(path, ruleHalfTLS, "a certificate and its key go together", "set both cert_file and key_file, or neither")
	case asks && !t.Enabled():
		d.report(path, ruleHalfTLS, "clients can be asked for certificates only over TLS", "set cert_file and key_file as well, or client_auth to none")
	case asks && t.ClientCAFile == "":
		d.report(path, ruleHalfTLS, "nothing says whose client certificates are good", "set client_ca_file, or client_auth to none")
	case !asks && t.ClientCAFile != "":
		d.report(path, ruleHalfTLS, "client_ca_file is set, and no client is asked for a certificate", "set client_auth to request or require, or remove client_ca_file")
	}
}

func (d *decoder) checkUpstreamTLS(c *Config) {
	const path = "proxy.upstream_tls"
	t := c.Proxy.UpstreamTLS
	if !d.sound(path) || !t.used() {
		return
	}
	d.checkFileReference(path+".ca_file", t.CAFile)
	d.checkFileReference(path+".cert_file", t.CertFile)
	d.checkFileReference(path+".key_file", t.KeyFile)
	if (t.CertFile == "") != (t.KeyFile == "") {
		d.report(path, ruleHalfTLS, "a certificate and its key go together", "set both cert_file and key_file, or neither")
	}
	if strings.ContainsAny(t.ServerName, ":/ *") {
		d.report(path+".server_name", ruleName, quote(t.ServerName)+" is not a host name", "write the name in the upstream's certificate, without scheme and port")
	}
	secured := func(url string) bool { return strings.HasPrefix(strings.ToLower(url), "https:") }
	if !slices.ContainsFunc(c.allUpstreams(), secured) {
		d.report(path, ruleUpstream, "no upstream speaks TLS", "write https:// in the upstream's URL, or remove upstream_tls")
	}
}

// allUpstreams are the URLs of proxy and routes.
func (c *Config) allUpstreams() []string {
	all := slices.Clone(c.Proxy.Upstream)
	for i := range c.Routes {
		all = append(all, c.Routes[i].Upstream...)
	}
	return all
}

// checkUpstreams admits URLs of scheme and authority only: a path, a query or a
// user in one would change what was judged, or be a secret in the configuration.
func (d *decoder) checkUpstreams(c *Config, path string, list upstreamList) {
	if !d.sound(path) {
		return
	}
	if len(list) > proxy.MaxUpstreams {
		d.report(path, ruleTooMany, fmt.Sprintf("the list has %d upstreams, and may have %d", len(list), proxy.MaxUpstreams), "put a load balancer before so many")
		return
	}
	seen := make(map[string]bool)
	for i, raw := range list {
		at := path
		if _, item := d.places[itemPath(path, i)]; item {
			at = itemPath(path, i)
		}
		u := d.checkUpstream(c, at, raw)
		switch {
		case u == nil:
		case seen[u.String()]:
			d.report(at, ruleTwice, quote(raw)+" is listed twice", "remove one of the two")
		case (u.Scheme == "h2c") != strings.HasPrefix(strings.ToLower(list[0]), "h2c:"):
			d.report(at, ruleUpstream, "h2c and other upstreams cannot stand in one list: WebSocket would come and go with their health", "write the same scheme for all")
		}
		if u != nil {
			seen[u.String()] = true
		}
	}
}

// checkUpstream gives the URL if it is sound.
func (d *decoder) checkUpstream(c *Config, path, raw string) *url.URL {
	const form = "write scheme, host and port only, such as http://127.0.0.1:3000"
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		d.report(path, ruleUpstream, quote(raw)+" is not a URL", form)
	case u.User != nil:
		d.report(path, ruleSecretInline, "a URL here may not hold a user or password", "remove it: the upstream is told who asks by the identity headers")
	case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "h2c":
		d.report(path, ruleUpstream, quote(raw)+" is not an http, https or h2c URL", form)
	case u.Hostname() == "" || strings.ContainsAny(u.Host, "%\\ "):
		d.report(path, ruleUpstream, quote(raw)+" names no host", form)
	case !validPort(u.Port(), u.Host):
		d.report(path, ruleUpstream, quote(raw)+" has no valid port", form)
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(raw, "#"):
		d.report(path, ruleUpstream, "the URL goes on after the host", "remove that: paths are forwarded as they came. "+strings.ToUpper(form[:1])+form[1:])
	default:
		for _, key := range []string{"proxy.listen", "admin.listen", "metrics.listen"} {
			if listen := listenOf(c, key); d.sound(key) && reaches(u, listen) {
				d.report(path, ruleLoop, fmt.Sprintf("the upstream is %s itself (%s)", key, listen), "write the address of the API behind")
			}
		}
		return &url.URL{Scheme: u.Scheme, Host: u.Host}
	}
	return nil
}

// checkRouteTransport applies the rules about one route's way to the upstream.
func (d *decoder) checkRouteTransport(c *Config, r *RouteConfig, path string) {
	const day = 24 * time.Hour
	if t := r.Timeouts; t.ResponseHeader != nil {
		d.duration(path+".timeouts.response_header", *t.ResponseHeader, time.Millisecond, day, true)
	}
	if t := r.Timeouts; t.Stall != nil {
		d.duration(path+".timeouts.stall", *t.Stall, time.Millisecond, day, true)
	}
	if r.Public && r.ForwardAuthorization && d.sound(path+".forward_authorization") {
		d.report(path+".forward_authorization", ruleRoute, "a public route reads no token, so it cannot tell whose Authorization it is", "remove either public or forward_authorization")
	}
	if r.CORS == nil || !d.sound(path+".cors") {
		return
	}
	_, faults := proxy.NewCORS(r.CORS.options(c))
	for _, f := range faults {
		d.report(itemPath(path+".cors."+f.Field, f.Index), ruleCORS, f.Detail, f.Fix)
	}
}

// options are the route's, with the headers that a page needs to send a token.
func (o *CORSConfig) options(c *Config) proxy.CORSOptions {
	headers := o.Headers
	if headers == nil {
		headers = []string{"Content-Type"}
		for _, carrier := range c.Proxy.Credentials {
			if !strings.Contains(carrier, ":") {
				headers = append(headers, carrier)
			}
		}
	}
	return proxy.CORSOptions{
		Origins: o.Origins, Methods: o.Methods, Headers: headers, Expose: o.Expose,
		MaxAge: o.MaxAge, Credentials: o.Credentials,
	}
}

// routeOptions are the options of one route but its upstreams.
func (r *RouteConfig) routeOptions(c *Config) proxy.RouteOptions {
	o := proxy.RouteOptions{InFlight: r.Limits.InFlight, ForwardAuthorization: r.ForwardAuthorization}
	if t := r.Timeouts.ResponseHeader; t != nil {
		o.ResponseHeader = orNever(*t)
	}
	if t := r.Timeouts.Stall; t != nil {
		o.Stall = orNever(*t)
	}
	if n := r.Limits.BodyBytes; n != nil {
		o.BodyBytes = int64(*n)
		if *n == 0 {
			o.BodyBytes = -1
		}
	}
	if r.CORS != nil {
		o.CORS, _ = proxy.NewCORS(r.CORS.options(c)) // it was checked with the configuration
	}
	switch r.Mode {
	case "observe":
		o.ObserveUntil = c.Enforce.ObserveUntil.Time
	case "enforce":
		o.Enforce = true
	}
	return o
}

// defaultRouteOptions are those of all routes, but their upstreams.
func (c *Config) defaultRouteOptions() proxy.RouteOptions {
	t := c.Proxy.Timeouts
	o := proxy.RouteOptions{ResponseHeader: orNever(t.ResponseHeader), Stall: orNever(t.Stall), BodyBytes: int64(c.Proxy.Limits.BodyBytes)}
	if c.Enforce.Mode == "observe" {
		o.ObserveUntil = c.Enforce.ObserveUntil.Time
	}
	return o
}

// serverTLSFiles are the files of a listener.
func (t TLSConfig) serverTLSFiles() proxy.ServerTLSFiles {
	auth := map[string]proxy.ClientAuth{"none": proxy.ClientAuthNone, "request": proxy.ClientAuthRequest, "require": proxy.ClientAuthRequire}
	return proxy.ServerTLSFiles{CertFile: t.CertFile, KeyFile: t.KeyFile, ClientCAFile: t.ClientCAFile, ClientAuth: auth[t.ClientAuth]}
}
