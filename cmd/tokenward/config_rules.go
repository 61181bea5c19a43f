package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/proxy"
	"tokenward/proxy/identity"
	"tokenward/tokenstore"
)

// checkConfig applies every rule that goes beyond the form of a single value.
func checkConfig(c *Config, d *decoder) {
	d.checkTransport(c)
	d.checkIdentity(c)
	d.checkCanon(c)
	d.checkBounds(c)
	d.checkListeners(c)
	d.checkEnforce(c)
	d.checkStore(c)
	d.checkEtcd(c)
	d.checkNotify(c)
	d.checkChoices(c)
	d.checkRoutes(c)
}

// validPort reports whether a URL's port is left out or a number that can be
// connected to.
func validPort(port, host string) bool {
	if port == "" {
		return !strings.HasSuffix(host, ":")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// reaches reports whether a request to u would come in at the listen address.
// It compares what is written, and asks no name server.
func reaches(u *url.URL, listen string) bool {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	wanted := u.Port()
	if wanted == "" {
		wanted = map[string]string{"http": "80", "https": "443", "h2c": "80"}[u.Scheme]
	}
	if port != wanted {
		return false
	}
	target, err := netip.ParseAddr(u.Hostname())
	local := u.Hostname() == "localhost" || err == nil && target.IsLoopback()
	if wildcard(host) || host == "localhost" {
		return local
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && (addr == target || local && u.Hostname() == "localhost" && addr.IsLoopback())
}

func wildcard(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "" || err == nil && addr.IsUnspecified()
}

// checkFileReference refuses a secret where the name of its file belongs, and what
// is not a name of a file. It does not look at the file.
func (d *decoder) checkFileReference(path, name string) {
	switch {
	case strings.Contains(name, "-----BEGIN"):
		d.report(path, ruleSecretInline, "this is the content of a file", "store it in a file that only this process can read, and write the file's path")
	case strings.ContainsFunc(name, unicode.IsControl):
		d.report(path, rulePath, quote(name)+" holds a control character", "write the path in single quotes: in double ones a backslash begins an escape")
	case strings.HasPrefix(name, "$"), strings.Contains(name, "${"), strings.Contains(name, "$("), name == "~", strings.HasPrefix(name, "~/"):
		d.report(path, rulePath, quote(name)+" is taken as it stands: neither variables nor ~ are replaced", "write the path out; paths are relative to the working directory")
	}
}

// identityKeys is the part of identity.Names that belongs to one key.
var identityKeys = map[string]func(name string) identity.Names{
	"id":        func(s string) identity.Names { return identity.Names{ID: s} },
	"account":   func(s string) identity.Names { return identity.Names{Account: s} },
	"owner":     func(s string) identity.Names { return identity.Names{Owner: s} },
	"name":      func(s string) identity.Names { return identity.Names{Name: s} },
	"scopes":    func(s string) identity.Names { return identity.Names{Scopes: s} },
	"resources": func(s string) identity.Names { return identity.Names{Resources: s} },
	"signed":    func(s string) identity.Names { return identity.Names{ID: s} }, // the same rule of names
}

func (d *decoder) checkIdentity(c *Config) {
	keys, names := c.Proxy.Identity.sets()
	for i, key := range keys {
		path := "proxy.identity." + key
		if !d.sound(path) {
			continue
		}
		const fix = "write a header name that begins with X-, or off to leave it away"
		if names[i] == "" {
			d.report(path, ruleIdentity, "there is no header name", fix)
			continue
		}
		if _, err := identity.New(identityKeys[key](names[i])); err != nil {
			d.report(path, ruleIdentity, quote(names[i])+" cannot be used as an identity header", fix+"; letters, digits and dashes, not X-Request-Id or X-Forwarded-…")
			continue
		}
		same := func(o string) bool { return strings.EqualFold(o, names[i]) }
		if first := slices.IndexFunc(names, same); first < i {
			d.report(path, ruleIdentity, fmt.Sprintf("the header %s is set by %s already", quote(names[i]), keys[first]), "give each its own header")
		}
	}
}

// checkCanon compiles the rules by which requests are read, for both listeners
// that read them.
func (d *decoder) checkCanon(c *Config) {
	keys, _ := c.Proxy.Identity.sets()
	proxy := c.canonOptions()
	if !d.sound("proxy.identity") {
		proxy.Sets, proxy.Removes = nil, nil
	}
	if !d.sound("proxy.credentials") {
		proxy.Credentials = nil
	}
	if !d.sound("proxy.client_address") || !slices.Contains(choices["proxy.client_address"], c.Proxy.ClientAddress) {
		proxy.ClientAddress = ""
	}
	proxy.TrustedProxies = nil
	for _, err := range optionErrors(proxy) {
		switch err.Option {
		case "Credentials":
			d.report(itemPath("proxy.credentials", err.Index), ruleCredentials, quote(err.Value)+" "+err.Problem, err.Fix)
		case "Sets":
			d.report("proxy.identity."+keys[err.Index], ruleIdentity, quote(err.Value)+" "+err.Problem, err.Fix)
		default:
			d.report("proxy", ruleBounds, quote(err.Value)+" "+err.Problem, err.Fix)
		}
	}
	d.checkNetworks("proxy.trusted_proxies", c.Proxy.TrustedProxies)
	d.checkNetworks("proxy.proxy_protocol_from", c.Proxy.ProxyProtocolFrom)
	d.checkNetworks("admin.trusted_proxies", c.Admin.TrustedProxies)
}

// checkNetworks checks a list of peers that are believed.
func (d *decoder) checkNetworks(path string, list []netip.Prefix) {
	for _, err := range optionErrors(canon.Options{TrustedProxies: list}) {
		if at := itemPath(path, err.Index); err.Index < 0 || d.sound(at) {
			d.report(at, ruleProxies, quote(err.Value)+" "+err.Problem, err.Fix)
		}
	}
}

// optionErrors takes apart what canon has to say.
func optionErrors(o canon.Options) []*canon.OptionError {
	_, err := canon.NewRules(o)
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil
	}
	var all []*canon.OptionError
	for _, one := range joined.Unwrap() {
		if e, ok := errors.AsType[*canon.OptionError](one); ok {
			all = append(all, e)
		}
	}
	return all
}

func itemPath(path string, index int) string {
	if index < 0 {
		return path
	}
	return path + "[" + strconv.Itoa(index) + "]"
}

func (d *decoder) checkBounds(c *Config) {
	t, l := &c.Proxy.Timeouts, &c.Proxy.Limits
	const day = 24 * time.Hour
	d.duration("proxy.timeouts.header", t.Header, time.Millisecond, day, false)
	d.duration("proxy.timeouts.idle", t.Idle, time.Millisecond, day, false)
	d.duration("proxy.timeouts.dial", t.Dial, time.Millisecond, day, false)
	d.duration("proxy.timeouts.response_header", t.ResponseHeader, time.Millisecond, day, true)
	d.duration("proxy.timeouts.stall", t.Stall, time.Millisecond, day, true)
	d.duration("proxy.timeouts.drain", t.Drain, time.Millisecond, day, true)
	d.duration("tokenstore.reset_grace", c.TokenStore.ResetGrace, time.Second, 90*day, true)
	d.duration("admin.mailtrap.default_lifetime", c.Admin.Mailtrap.DefaultLifetime, time.Minute, 5*365*day, true)
	d.count("admin.mailtrap.requests", int64(c.Admin.Mailtrap.Requests), 0, 1_000_000)

	d.count("proxy.limits.header_bytes", int64(l.HeaderBytes), 1024, 1<<20)
	d.count("proxy.limits.header_count", int64(l.HeaderCount), 1, 10_000)
	d.count("proxy.limits.uri_bytes", int64(l.URIBytes), 64, 1<<20)
	if d.sound("proxy.limits.uri_bytes", "proxy.limits.header_bytes") && l.URIBytes > l.HeaderBytes {
		d.report("proxy.limits.uri_bytes", ruleTarget, fmt.Sprintf("a target of %d bytes does not fit into a head of %d", l.URIBytes, l.HeaderBytes), "raise header_bytes or lower uri_bytes")
	}
	d.duration("proxy.identity.signed_lifetime", c.Proxy.Identity.SignedLifetime, 10*time.Second, time.Hour, false)
	for i, path := range c.Proxy.Identity.SigningKeyFiles {
		d.checkFileReference(itemPath("proxy.identity.signing_key_files", i), path)
	}
	if i := &c.Proxy.Identity; d.sound("proxy.identity") && i.Signed != headerOff && len(i.SigningKeyFiles) == 0 {
		d.report("proxy.identity.signed", ruleMissing, "there is no key to sign with", "name a file in signing_key_files: `openssl genpkey -algorithm ed25519 -out identity.pem` makes one")
	}
	d.checkParents(c)
	d.count("log.requests_every", int64(c.Log.RequestsEvery), 1, 1_000_000)
	d.count("tokenstore.cache_entries", int64(c.TokenStore.CacheEntries), 0, 100_000_000)
	d.home("admin.default_account", c.Admin.DefaultAccount, "0 is the account of root tokens")
	d.home("admin.default_owner", c.Admin.DefaultOwner, "there is no owner 0")
}

// home checks a number that accounts or owners can have; zero says why 0 is none.
func (d *decoder) home(path string, n uint64, zero string) {
	const fix = "write a number from 1 to 9007199254740991"
	if !d.sound(path) {
		return
	}
	if _, ok := tokenstore.ParseNumber(strconv.FormatUint(n, 10)); n == 0 {
		d.report(path, ruleBounds, zero, fix)
	} else if !ok {
		d.report(path, ruleBounds, strconv.FormatUint(n, 10)+" is more than every JSON reader takes exactly", fix)
	}
}

func (d *decoder) duration(path string, v, least, most time.Duration, zero bool) {
	if !d.sound(path) || v == 0 && zero || v >= least && v <= most {
		return
	}
	fix := fmt.Sprintf("write %s to %s", formatDuration(least), formatDuration(most))
	if zero {
		fix += ", or 0"
	}
	d.report(path, ruleBounds, formatDuration(v)+" is out of bounds", fix)
}

func (d *decoder) count(path string, v, least, most int64) {
	if d.sound(path) && (v < least || v > most) {
		d.report(path, ruleBounds, fmt.Sprintf("%d is out of bounds", v), fmt.Sprintf("write %d to %d", least, most))
	}
}

func listenOf(c *Config, key string) string {
	return map[string]string{"proxy.listen": c.Proxy.Listen, "admin.listen": c.Admin.Listen, "metrics.listen": c.Metrics.Listen}[key]
}

func (d *decoder) checkListeners(c *Config) {
	keys := []string{"proxy.listen", "admin.listen", "metrics.listen"}
	for i, key := range keys {
		listen := listenOf(c, key)
		if !d.sound(key) || !d.checkListen(key, listen) {
			continue
		}
		for _, other := range keys[:i] {
			if !d.sound(other) || !sameListener(listen, listenOf(c, other)) {
				continue
			}
			at, with := key, other
			if d.place(key).line == 0 { // it is the default that stands in the way
				at, with = other, key
			}
			d.report(at, ruleSameListen, fmt.Sprintf("%s and %s (%s) cannot both be listened on", listenOf(c, at), with, listenOf(c, with)), "give each listener its own port")
		}
	}
	if d.sound("admin.listen", "admin.tls", "admin.insecure") && !loopback(c.Admin.Listen) && !c.Admin.TLS.Enabled() && !c.Admin.Insecure {
		d.report("admin.listen", ruleExposed, "others can reach this address, and secrets would cross the network in clear",
			"listen on 127.0.0.1, set admin.tls, or write `insecure: true` below admin if something before it does TLS")
	}
	if d.sound("metrics.listen", "metrics.pprof") && c.Metrics.PProf && !loopback(c.Metrics.Listen) {
		d.report("metrics.pprof", ruleProfiles, "profiles show memory, and others can reach "+c.Metrics.Listen, "listen on 127.0.0.1, or set pprof to false")
	}
}

func (d *decoder) checkListen(key, listen string) bool {
	const form = "write host:port, such as 127.0.0.1:8080, or :8080 for all addresses"
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		d.report(key, ruleListen, quote(listen)+" is not an address with a port", form)
		return false
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		d.report(key, ruleListen, quote(port)+" is not a port", "write a number from 1 to 65535, or 0 for any free port")
		return false
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		d.report(key, ruleListen, quote(host)+" is not an address of this machine", "write an IP address, localhost, or nothing for all addresses")
		return false
	}
	return true
}

// sameListener reports whether two addresses claim the same port of the same
// interface.
func sameListener(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	return hostA == hostB || wildcard(hostA) || wildcard(hostB) || loopback(a) && loopback(b) && (hostA == "localhost" || hostB == "localhost")
}

func (d *decoder) checkEnforce(c *Config) {
	d.names("enforce.known_scopes", c.Enforce.KnownScopes, tokenstore.CheckScopeName)
	d.names("enforce.resource_types", c.Enforce.ResourceTypes, tokenstore.CheckResourceType)
	if d.sound("enforce.on_no_route") && c.Enforce.OnNoRoute != 403 && c.Enforce.OnNoRoute != 404 {
		d.report("enforce.on_no_route", ruleChoice, fmt.Sprintf("%d is not a choice here", c.Enforce.OnNoRoute), "write 403 or 404")
	}
	d.once("admin.mount", c.Admin.Mount)
	d.checkLimits(c)
}

func (d *decoder) names(path string, list []string, check func(string) string) {
	for i, name := range list {
		if detail := check(name); detail != "" && d.sound(itemPath(path, i)) {
			d.report(itemPath(path, i), ruleName, quote(name)+" "+detail, "correct the name, or remove it")
		}
	}
	d.once(path, list)
}

func (d *decoder) once(path string, list []string) {
	seen := make(map[string]bool, len(list))
	for i, name := range list {
		if seen[name] && d.sound(itemPath(path, i)) {
			d.report(itemPath(path, i), ruleTwice, quote(name)+" is listed twice", "remove one of the two")
		}
		seen[name] = true
	}
}

func (d *decoder) checkStore(c *Config) {
	const fix = "write 2 to 16 lower-case letters and digits, a letter first, such as tw"
	if d.sound("tokenstore.secret_prefix") && !tokenstore.ValidPrefix(c.TokenStore.SecretPrefix) {
		d.report("tokenstore.secret_prefix", ruleName, quote(c.TokenStore.SecretPrefix)+" is not a prefix of secrets", fix)
	}
	apis := c.Admin.SecretPrefix.byAPI()
	for _, api := range slices.Sorted(maps.Keys(apis)) {
		if key := "admin.secret_prefix." + api; d.sound(key) && !tokenstore.ValidPrefix(apis[api]) {
			d.report(key, ruleName, quote(apis[api])+" is not a prefix of secrets", fix+`; or "" to have that of tokenstore.secret_prefix`)
		}
	}
	files := []struct{ key, path string }{{"tokenstore.path", c.TokenStore.Path}, {"audit.path", c.Audit.Path}}
	for _, f := range files {
		d.checkFileReference(f.key, f.path)
	}
	for i, path := range c.TokenStore.PepperFiles {
		key := itemPath("tokenstore.pepper_files", i)
		files = append(files, struct{ key, path string }{key, path})
		d.checkFileReference(key, path)
	}
	for i, path := range c.TokenStore.ImportKeyFiles {
		key := itemPath("tokenstore.import_key_files", i)
		files = append(files, struct{ key, path string }{key, path})
		d.checkFileReference(key, path)
	}
	d.checkFileReference("audit.signing_key_file", c.Audit.SigningKeyFile)
	if c.Audit.SigningKeyFile != "" {
		files = append(files, struct{ key, path string }{"audit.signing_key_file", c.Audit.SigningKeyFile})
	}
	taken := make(map[string]string)
	for _, f := range files {
		if !d.sound(f.key) {
			continue
		}
		clean, err := filepath.Abs(f.path) // a and ../here/a are the same
		if err != nil {
			clean = filepath.Clean(f.path)
		}
		switch {
		case f.path == "":
			d.report(f.key, rulePath, "there is no path", "write the path of a file")
		case strings.HasSuffix(f.path, "/") || filepath.Clean(f.path) == ".":
			d.report(f.key, rulePath, quote(f.path)+" is a directory", "write the path of a file in it")
		case taken[clean] != "":
			d.report(f.key, ruleSameFile, fmt.Sprintf("%s names the same file as %s", quote(f.path), taken[clean]), "give each its own file")
		default:
			taken[clean] = f.key
		}
	}
}

// choices are the words that a key takes.
var choices = map[string][]string{
	"proxy.client_address":        {"x-forwarded-for", "forwarded"},
	"proxy.tls.client_auth":       {"none", "request", "require"},
	"enforce.mode":                {"enforce", "observe"},
	"admin.mount":                 {"unit", "fynn", "mailtrap", "native"},
	"log.level":                   {"debug", "info", "warn", "error"},
	"log.format":                  {"json", "text"},
	"log.requests":                {"off", "denied", "all"},
	"admin.leaks.action":          {"disable", "revoke"},
	"audit.denials":               {"on", "off"},
	"tokenstore.etcd.mirror":      {"full", "on_demand"},
	"tokenstore.etcd.on_stale":    {"deny", "serve"},
	"routes[].restricted_tokens":  {"refuse", "allow"},
	"routes[].mode":               {"enforce", "observe"},
	"enforce.observe_credentials": {"keep", "remove"},
	"enforce.limits.headers":      {"refused", "all"},
}

func (d *decoder) checkChoices(c *Config) {
	d.choice("proxy.client_address", c.Proxy.ClientAddress)
	d.choice("enforce.mode", c.Enforce.Mode)
	d.choice("enforce.observe_credentials", c.Enforce.ObserveCredentials)
	d.checkObserve(c)
	d.choice("log.level", c.Log.Level)
	d.choice("log.format", c.Log.Format)
	d.choice("log.requests", c.Log.Requests)
	d.choice("admin.leaks.action", c.Admin.Leaks.Action)
	d.choice("audit.denials", c.Audit.Denials)
	d.checkFileReference("admin.leaks.keys_file", c.Admin.Leaks.KeysFile)
	for i, api := range c.Admin.Mount {
		d.choiceOf("admin.mount", itemPath("admin.mount", i), api)
	}
	for i := range c.Routes {
		if r := &c.Routes[i]; r.RestrictedTokens != "" {
			d.choiceOf("routes[].restricted_tokens", itemPath("routes", i)+".restricted_tokens", r.RestrictedTokens)
		}
		if r := &c.Routes[i]; r.Mode != "" {
			d.choiceOf("routes[].mode", itemPath("routes", i)+".mode", r.Mode)
		}
	}
}

// checkParents compiles each rule by itself.
func (d *decoder) checkParents(c *Config) {
	for _, typ := range slices.Sorted(maps.Keys(c.Enforce.Parents)) {
		path, p := "enforce.parents."+typ, c.Enforce.Parents[typ]
		if !d.sound(path) {
			continue
		}
		for _, name := range []string{typ, p.Type} {
			if detail := tokenstore.CheckResourceType(name); detail != "" {
				d.report(path, ruleParent, "the resource type "+quote(name)+" "+detail, "write get, pointer and type, as in parents: {card: {get: \"/cards/{id}\", pointer: /data/account/id, type: account}}")
				break
			}
		}
		if !d.sound(path) {
			continue
		}
		rule := proxy.ParentRule{Get: p.Get, Pointer: p.Pointer, TTL: p.TTL}
		if _, err := proxy.NewParents(&url.URL{}, nil, map[string]proxy.ParentRule{typ: rule}, time.Now); err != nil {
			d.report(path, ruleParent, err.Error(), "correct get, pointer or ttl")
		}
		d.checkFileReference(path+".credential_file", p.CredentialFile)
	}
}

// checkObserve asks for an end of observing wherever something is observed: what
// is only observed is open to everybody.
func (d *decoder) checkObserve(c *Config) {
	const until = "enforce.observe_until"
	if !c.Enforce.ObserveUntil.IsZero() || !d.sound(until) {
		return
	}
	at := func(path, mode string) {
		if mode == "observe" && d.sound(path) {
			d.report(path, ruleObserve, "observing has no end: until then whoever asks gets through", "set enforce.observe_until to the time from which on requests are refused")
		}
	}
	at("enforce.mode", c.Enforce.Mode)
	for i := range c.Routes {
		at(itemPath("routes", i)+".mode", c.Routes[i].Mode)
	}
}

func (d *decoder) choice(key, word string) { d.choiceOf(key, key, word) }

// choiceOf checks word, which stands at path, against the words that key takes.
func (d *decoder) choiceOf(key, path, word string) {
	if !d.sound(path) {
		return
	}
	if slices.Contains(choices[key], word) {
		return
	}
	fix := "write " + orList(choices[key])
	if near := nearest(word, choices[key]); near != "" {
		fix = "did you mean " + near + "? W" + fix[1:]
	}
	d.report(path, ruleChoice, quote(word)+" is not a choice here", fix)
}

// checkRoutes compiles each route by itself, and then all that are sound
// together, which finds the conflicts between them: one bad route does not hide
// these.
func (d *decoder) checkRoutes(c *Config) {
	var sound []enforce.RouteSpec
	var index []int
	for i := range c.Routes {
		r := &c.Routes[i]
		path := itemPath("routes", i)
		if _, ok := d.places[path+".match"]; !ok {
			if d.sound(path) {
				d.report(path, ruleMissing, "the route does not say what it matches", "write `match: GET /path` in it")
			}
			continue
		}
		if !d.sound(path + ".match") {
			continue
		}
		_, faults := enforce.Compile([]enforce.RouteSpec{r.spec()}, c.enforceOptions())
		if len(faults) == 0 {
			sound, index = append(sound, r.spec()), append(index, i)
		}
		faults = slices.DeleteFunc(faults, func(f enforce.SpecFault) bool { // of what could not be read
			return !d.sound(d.itemNamed(path+"."+f.Field, r, f))
		})
		for _, f := range faults {
			d.routeFault(i, r, ruleRoute, f)
		}
	}
	_, faults := enforce.Compile(sound, c.enforceOptions())
	for _, f := range faults {
		i := index[f.Index]
		d.routeFault(i, &c.Routes[i], ruleConflict, f)
	}
}

func (d *decoder) routeFault(i int, route *RouteConfig, r rule, f enforce.SpecFault) {
	path := d.itemNamed(itemPath("routes", i)+"."+f.Field, route, f)
	problem, fix := splitDetail(f)
	d.report(path, r, problem, fix)
}

// routeForms say what to write for a key of a route.
var routeForms = map[string]string{
	"match":             "write methods, a space and a path, such as `GET,HEAD /accounts/{account}`",
	"scopes":            "write names of scopes, such as [\"accounts\", \"cards|cards-write\"]",
	"resources":         "write type:id, such as [\"account:{account}\"]",
	"token_account":     "write a variable of the path, such as \"{account}\"",
	"restricted_tokens": "write refuse or allow, or remove the key",
	"access":            "write read or write, or remove the key",
	"relax":             "write names of relaxations: docs/config.md lists them",
}

// splitDetail parts what is wrong with a route from what to write.
func splitDetail(f enforce.SpecFault) (problem, fix string) {
	problem, fix, ok := strings.Cut(f.Detail, ": ")
	if !ok || strings.HasPrefix(problem, `"`) && strings.HasSuffix(problem, `"`) && !strings.Contains(problem, " ") {
		return f.Detail, routeForms[f.Field]
	}
	return problem, fix
}

// itemNamed narrows the path of a list down to the item that the fault quotes.
func (d *decoder) itemNamed(path string, route *RouteConfig, f enforce.SpecFault) string {
	list := map[string][]string{"scopes": route.Scopes, "resources": route.Resources, "relax": route.Relax}[f.Field]
	for i, item := range list {
		for part := range strings.SplitSeq(item, "|") {
			if strings.Contains(f.Detail, strconv.Quote(part)) {
				return itemPath(path, i)
			}
		}
	}
	return path
}

// otherVariable matches a segment that is a variable to other routers, and text here.
var otherVariable = regexp.MustCompile(`^(?::([A-Za-z]\w*)|<([A-Za-z]\w*)>|\[([A-Za-z]\w*)\])$`)

// routeWarnings are about routes that can be what is meant, and hardly are.
func (c *Config) routeWarnings() (warnings []configFault) {
	for i := range c.Routes {
		_, path, _ := strings.Cut(c.Routes[i].Match, " ")
		for text := range strings.SplitSeq(path, "/") {
			m := otherVariable.FindStringSubmatch(text)
			if m == nil {
				continue
			}
			warnings = append(warnings, configFault{
				Key: itemPath("routes", i) + ".match", Rule: ruleRoute,
				Problem: quote(text) + " stands for this very text, not for a variable",
				Fix:     fmt.Sprintf("write {%s} for any one segment; if the text is meant, write %%%02X%s, which says so", strings.ToLower(m[1]+m[2]+m[3]), text[0], text[1:]),
			})
		}
	}
	return warnings
}
