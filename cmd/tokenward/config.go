package main

import (
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"tokenward/admin"
	"tokenward/admin/fynn"
	"tokenward/admin/mailtrap"
	"tokenward/admin/native"
	"tokenward/admin/unit"
	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/proxy/identity"
	"tokenward/tokenstore"
)

// Config is everything that a configuration file says, with the defaults where
// it says nothing. It is made by [loadConfig] and not changed afterwards; no
// other package sees it.
//
// A tag `reload:"yes"` marks what a running server takes over when it reads
// its file again; with `reload:"no"` it has to be started anew, and
// [restartNeeded] names the key. Paths of files are relative to the working
// directory of the process. docs/config.md and config.example.yaml list every
// key: tests hold both equal to this file.
type Config struct {
	Proxy      ProxyConfig      `yaml:"proxy"`
	Enforce    EnforceConfig    `yaml:"enforce"`
	Admin      AdminConfig      `yaml:"admin"`
	Metrics    MetricsConfig    `yaml:"metrics"`
	TokenStore TokenStoreConfig `yaml:"tokenstore"`
	Audit      AuditConfig      `yaml:"audit"`
	Notify     NotifyConfig     `yaml:"notify"`
	Log        LogConfig        `yaml:"log"`
	// Routes is the whole policy; without any, nothing passes.
	Routes []RouteConfig `yaml:"routes" reload:"yes"`
}

// ProxyConfig configures the listener that clients of the API connect to.
type ProxyConfig struct {
	// Listen is host:port. Host is an IP address, localhost, or nothing for all
	// addresses; port 0 takes any free one.
	Listen string `yaml:"listen" reload:"no"`
	// Upstream is the API behind: scheme and authority of http, https or h2c URLs,
	// in the order of preference.
	Upstream upstreamList `yaml:"upstream" reload:"no"`
	// UpstreamTLS is for all https upstreams, those of routes too.
	UpstreamTLS UpstreamTLSConfig `yaml:"upstream_tls"`
	// TrustedProxies are the peers whose client address header is believed.
	TrustedProxies []netip.Prefix `yaml:"trusted_proxies" reload:"no"`
	// ClientAddress is the one header that is believed: x-forwarded-for or
	// forwarded. The other is removed.
	ClientAddress string `yaml:"client_address" reload:"no"`
	// ProxyProtocolFrom are the peers that must begin each connection with a PROXY
	// protocol header, whose address is believed.
	ProxyProtocolFrom []netip.Prefix `yaml:"proxy_protocol_from" reload:"no"`
	// Credentials are the places where a token may stand, as in [canon.Options].
	Credentials []string            `yaml:"credentials" reload:"no"`
	TLS         TLSConfig           `yaml:"tls"`
	Identity    IdentityConfig      `yaml:"identity"`
	Timeouts    TimeoutsConfig      `yaml:"timeouts"`
	Limits      RequestLimitsConfig `yaml:"limits"`
}

// TLSConfig names the certificate of a listener. Both files or none: without,
// the listener is cleartext.
type TLSConfig struct {
	CertFile string `yaml:"cert_file" reload:"no"` // PEM, leaf first, then intermediates
	KeyFile  string `yaml:"key_file" reload:"no"`  // PEM
	// ClientCAFile holds the authorities of client certificates, PEM; for
	// ClientAuth request and require, and only for them.
	ClientCAFile string `yaml:"client_ca_file" reload:"no"`
	// ClientAuth is none, request or require.
	ClientAuth string `yaml:"client_auth" reload:"no"`
}

// Enabled reports whether the listener speaks TLS.
func (t TLSConfig) Enabled() bool { return t.CertFile != "" }

// IdentityConfig names the headers that tell the upstream who asks; headerOff
// leaves one away.
type IdentityConfig struct {
	ID        string `yaml:"id" reload:"no"`
	Account   string `yaml:"account" reload:"no"`
	Owner     string `yaml:"owner" reload:"no"`
	Name      string `yaml:"name" reload:"no"`
	Scopes    string `yaml:"scopes" reload:"no"`
	Resources string `yaml:"resources" reload:"no"`
	// Signed is the header of a signed identity. It needs SigningKeyFiles, PEM
	// files with one Ed25519 key each; the first signs, all are published at
	// /.well-known/jwks.json of metrics.listen. A signature is good for
	// SignedLifetime.
	Signed          string        `yaml:"signed" reload:"no"`
	SigningKeyFiles []string      `yaml:"signing_key_files" reload:"yes"`
	SignedLifetime  time.Duration `yaml:"signed_lifetime" reload:"yes"`
}

const headerOff = "off"

// TimeoutsConfig bounds how long each step of an exchange may take: 1ms to 24h.
type TimeoutsConfig struct {
	Header         time.Duration `yaml:"header" reload:"no"`          // reading a request's head; never 0
	Idle           time.Duration `yaml:"idle" reload:"no"`            // a connection between requests; never 0
	Dial           time.Duration `yaml:"dial" reload:"no"`            // connecting to the upstream; never 0
	ResponseHeader time.Duration `yaml:"response_header" reload:"no"` // until the upstream begins its answer; 0: no limit
	Stall          time.Duration `yaml:"stall" reload:"no"`           // without a byte moving in a body; 0: no limit
	Drain          time.Duration `yaml:"drain" reload:"no"`           // for requests in flight at shutdown; 0: cut at once
}

// RequestLimitsConfig bounds requests and connections.
type RequestLimitsConfig struct {
	HeaderBytes          byteSize `yaml:"header_bytes" reload:"no"`           // of the whole head; 1KiB to 1MiB
	HeaderCount          int      `yaml:"header_count" reload:"no"`           // field lines; 1 to 10,000
	URIBytes             byteSize `yaml:"uri_bytes" reload:"no"`              // of the request target; 64 to header_bytes
	BodyBytes            byteSize `yaml:"body_bytes" reload:"no"`             // 0: no limit
	InFlight             int      `yaml:"in_flight" reload:"no"`              // requests at once; 0: no limit
	Connections          int      `yaml:"connections" reload:"no"`            // from clients; 0: no limit
	ConnectionsPerSource int      `yaml:"connections_per_source" reload:"no"` // from one address; 0: no limit
}

// EnforceConfig configures what concerns all routes.
type EnforceConfig struct {
	// Mode is enforce or observe. What is only observed is forwarded whatever the
	// judgement, until ObserveUntil, and counted.
	Mode         string  `yaml:"mode" reload:"yes"`
	ObserveUntil instant `yaml:"observe_until" reload:"yes"`
	// ObserveCredentials says whether requests that are allowed while only observed
	// keep their credentials: keep or remove.
	ObserveCredentials string   `yaml:"observe_credentials" reload:"yes"`
	OnNoRoute          int      `yaml:"on_no_route" reload:"yes"` // 403 or 404
	KnownScopes        []string `yaml:"known_scopes" reload:"yes"`
	ResourceTypes      []string `yaml:"resource_types" reload:"yes"`
	// Limits and Failures are [enforce.LimitOptions].
	Limits   LimitsConfig   `yaml:"limits"`
	Failures FailuresConfig `yaml:"failures"`
	// Parents say by resource type how the API tells what a resource belongs to: a
	// grant on the parent reaches it.
	Parents map[string]ParentConfig `yaml:"parents" reload:"no"`
}

// ParentConfig says how the API tells which resource another belongs to.
type ParentConfig struct {
	Get     string        `yaml:"get" reload:"no"`     // path with {id}, asked of the first upstream of proxy
	Pointer string        `yaml:"pointer" reload:"no"` // JSON pointer to the parent's id
	Type    string        `yaml:"type" reload:"no"`    // the parent's resource type
	TTL     time.Duration `yaml:"ttl" reload:"no"`     // how long an answer is believed; 0: 5m
	// CredentialFile holds the Authorization value that is sent; empty: none is.
	CredentialFile string `yaml:"credential_file" reload:"no"`
}

// AdminConfig configures the listener of the token APIs.
type AdminConfig struct {
	Listen string    `yaml:"listen" reload:"no"`
	TLS    TLSConfig `yaml:"tls"`
	// Insecure allows a listener that others can reach without TLS.
	Insecure bool `yaml:"insecure" reload:"no"`
	// TrustedProxies are those before the admin listener; the proxy's do not
	// count there. The header is the one of proxy.client_address.
	TrustedProxies []netip.Prefix `yaml:"trusted_proxies" reload:"no"`
	// Mount names token APIs that proxy.listen serves too.
	Mount []string `yaml:"mount" reload:"no"`
	// DefaultAccount and DefaultOwner are meant where root's path names none.
	DefaultAccount uint64 `yaml:"default_account" reload:"no"`
	DefaultOwner   uint64 `yaml:"default_owner" reload:"no"`

	Leaks    LeaksConfig    `yaml:"leaks"`
	Mailtrap MailtrapConfig `yaml:"mailtrap"`
	// SecretPrefix begins the new secrets of single token APIs.
	SecretPrefix SecretPrefixConfig `yaml:"secret_prefix"`
}

// MailtrapConfig is what the contract of that API leaves to the operator.
type MailtrapConfig struct {
	// Requests is how many a token may make in 10 seconds, on both listeners
	// together; 0: any number.
	Requests int `yaml:"requests" reload:"no"`
	// DefaultLifetime is how long a token lives whose creation or reset says
	// nothing about its end: 1m to 1825d; 0: it never ends.
	DefaultLifetime time.Duration `yaml:"default_lifetime" reload:"no"`
}

// SecretPrefixConfig is how the secrets of each token API begin; where it is
// empty, as tokenstore.secret_prefix says.
type SecretPrefixConfig struct {
	Unit     string `yaml:"unit" reload:"no"`
	Fynn     string `yaml:"fynn" reload:"no"`
	Mailtrap string `yaml:"mailtrap" reload:"no"`
	Native   string `yaml:"native" reload:"no"`
}

// byAPI has the prefixes that are set, by the names of the token APIs.
func (c *SecretPrefixConfig) byAPI() map[string]string {
	all := map[string]string{unit.Name: c.Unit, fynn.Name: c.Fynn, mailtrap.Name: c.Mailtrap, native.Name: c.Native}
	maps.DeleteFunc(all, func(_, prefix string) bool { return prefix == "" })
	return all
}

// LeaksConfig configures the endpoint for reports of leaked secrets.
type LeaksConfig struct {
	// KeysFile holds the public keys that reports are signed with, in the form in
	// which GitHub publishes them. Empty: there is no endpoint.
	KeysFile string `yaml:"keys_file" reload:"no"`
	// Action is what becomes of a token whose secret leaked: disable or revoke.
	Action string `yaml:"action" reload:"no"`
}

// MetricsConfig configures the listener for operators' machines.
type MetricsConfig struct {
	Listen string `yaml:"listen" reload:"no"`
	// PProf serves profiles on the same listener, on loopback only.
	PProf bool `yaml:"pprof" reload:"no"`
}

// TokenStoreConfig configures where tokens are kept.
type TokenStoreConfig struct {
	Path string `yaml:"path" reload:"no"` // the bbolt file
	// SecretPrefix begins every new secret.
	SecretPrefix string `yaml:"secret_prefix" reload:"no"`
	// ResetGrace is how long the old secret lives on after a reset; 0: not at
	// all. At most 90 days.
	ResetGrace time.Duration `yaml:"reset_grace" reload:"no"`
	// PepperFiles hold one pepper each; the first writes. None: plain SHA-256,
	// and whoever writes the store file can mint tokens.
	PepperFiles []string `yaml:"pepper_files" reload:"no"`
	// ImportKeyFiles hold the keys of HMAC digests that were imported, one each.
	ImportKeyFiles []string `yaml:"import_key_files" reload:"no"`
	// CacheEntries is how many secrets are kept in memory; 0: none.
	CacheEntries int        `yaml:"cache_entries" reload:"no"`
	Etcd         EtcdConfig `yaml:"etcd"`
}

// AuditConfig configures the audit log.
type AuditConfig struct {
	Path string `yaml:"path" reload:"no"`
	// SigningKeyFile holds an Ed25519 private key in PEM (PKCS #8), with which heads
	// of the log are signed. Empty: none are.
	SigningKeyFile string `yaml:"signing_key_file" reload:"no"`
	// Denials says whether refused requests are told there too, gathered: on or off.
	Denials string `yaml:"denials" reload:"no"`
}

// LogConfig configures the program's log on standard error.
type LogConfig struct {
	Level  string `yaml:"level" reload:"yes"`
	Format string `yaml:"format" reload:"no"`
	// Requests says which requests are logged, one record each: off, denied, all.
	Requests string `yaml:"requests" reload:"yes"`
	// RequestsEvery logs one of so many of them, from 1 on.
	RequestsEvery int `yaml:"requests_every" reload:"yes"`
}

// RouteConfig is one route, as in [enforce.RouteSpec].
type RouteConfig struct {
	Match            string   `yaml:"match"`
	Public           bool     `yaml:"public"`
	Scopes           []string `yaml:"scopes"`
	Resources        []string `yaml:"resources"`
	TokenAccount     string   `yaml:"token_account"`
	RestrictedTokens string   `yaml:"restricted_tokens"` // refuse (default) or allow
	Access           string   `yaml:"access"`            // read, write; empty: by method
	Relax            []string `yaml:"relax"`

	Upstream             upstreamList        `yaml:"upstream"` // nil: that of proxy
	Timeouts             RouteTimeoutsConfig `yaml:"timeouts"`
	Limits               RouteLimitsConfig   `yaml:"limits"`
	CORS                 *CORSConfig         `yaml:"cors"` // nil: none
	ForwardAuthorization bool                `yaml:"forward_authorization"`
	Mode                 string              `yaml:"mode"` // enforce, observe; empty: enforce.mode

	line int // where it stands in the file
}

// defaultConfig is the one place where defaults are set.
func defaultConfig() *Config {
	names := identity.DefaultNames()
	return &Config{
		Proxy: ProxyConfig{
			Listen:         "127.0.0.1:8080",
			Upstream:       upstreamList{"http://127.0.0.1:3000"},
			TrustedProxies: []netip.Prefix{},
			ClientAddress:  "x-forwarded-for",
			Credentials:    []string{"authorization", "api-token"},
			TLS:            defaultTLS(),

			ProxyProtocolFrom: []netip.Prefix{},
			Identity: IdentityConfig{
				ID: names.ID, Account: names.Account, Owner: names.Owner,
				Name: names.Name, Scopes: names.Scopes, Resources: names.Resources,
				Signed: headerOff, SigningKeyFiles: []string{}, SignedLifetime: identity.DefaultLifetime,
			},
			Timeouts: TimeoutsConfig{
				Header:         10 * time.Second,
				Idle:           90 * time.Second,
				Dial:           5 * time.Second,
				ResponseHeader: 30 * time.Second,
				Stall:          60 * time.Second,
				Drain:          30 * time.Second,
			},
			Limits: RequestLimitsConfig{HeaderBytes: 32768, HeaderCount: 100, URIBytes: 8192},
		},
		Enforce: EnforceConfig{
			Mode:               "enforce",
			ObserveCredentials: "keep",
			Parents:            map[string]ParentConfig{},
			OnNoRoute:          403,
			KnownScopes:        []string{},
			ResourceTypes:      []string{},
			Limits:             LimitsConfig{Headers: "refused"},
			Failures:           FailuresConfig{PerMinute: 60, Burst: 30},
		},
		Admin: AdminConfig{
			Listen:         "127.0.0.1:8081",
			TLS:            defaultTLS(),
			TrustedProxies: []netip.Prefix{},
			Mount:          []string{},
			DefaultAccount: 1,
			DefaultOwner:   1,
			Leaks:          LeaksConfig{Action: "disable"},
			Mailtrap:       MailtrapConfig{Requests: mailtrap.DefaultRequests},
			SecretPrefix:   SecretPrefixConfig{Fynn: fynn.DefaultPrefix},
		},
		Metrics: MetricsConfig{Listen: "127.0.0.1:8082"},
		TokenStore: TokenStoreConfig{
			Path:         "tokenward.db",
			SecretPrefix: "tw",
			ResetGrace:   admin.DefaultResetGrace,
			PepperFiles:  []string{},

			ImportKeyFiles: []string{},

			CacheEntries: 100_000,
			Etcd:         defaultEtcd(),
		},
		Audit:  AuditConfig{Path: "tokenward-audit.jsonl", Denials: "on"},
		Notify: defaultNotify(),
		Log:    LogConfig{Level: "info", Format: "json", Requests: "off", RequestsEvery: 1},
		Routes: []RouteConfig{},
	}
}

// routeSpecs are the routes for [enforce.Compile], in the file's order.
func (c *Config) routeSpecs() []enforce.RouteSpec {
	specs := make([]enforce.RouteSpec, len(c.Routes))
	for i := range c.Routes {
		specs[i] = c.Routes[i].spec()
	}
	return specs
}

func (r *RouteConfig) spec() enforce.RouteSpec {
	return enforce.RouteSpec{
		Match:            r.Match,
		Public:           r.Public,
		Scopes:           r.Scopes,
		Resources:        r.Resources,
		TokenAccount:     r.TokenAccount,
		RestrictedTokens: r.RestrictedTokens == "allow",
		Access:           r.Access,
		Relax:            r.Relax,
		Limits:           tokenstore.Limits{Rate: float64(r.Limits.Rate), Burst: r.Limits.Burst, Concurrent: r.Limits.Concurrent},
		Line:             r.line,
	}
}

// mountedPaths are the paths that each token API takes from proxy.listen once
// it is mounted.
var mountedPaths = map[string][]string{
	unit.Name:     unit.Paths(),
	fynn.Name:     fynn.Paths(),
	mailtrap.Name: mailtrap.Paths(),
	native.Name:   native.Paths(),
}

// parentTypes are the types of the parents, by the type that has one.
func (c *Config) parentTypes() map[string]string {
	types := make(map[string]string, len(c.Enforce.Parents))
	for typ, p := range c.Enforce.Parents {
		types[typ] = p.Type
	}
	return types
}

// enforceOptions go with routeSpecs into [enforce.Compile].
func (c *Config) enforceOptions() enforce.Options {
	var reserved []string
	for _, api := range c.Admin.Mount {
		reserved = append(reserved, mountedPaths[api]...)
	}
	return enforce.Options{
		KnownScopes:       c.Enforce.KnownScopes,
		ResourceTypes:     c.Enforce.ResourceTypes,
		NotFoundOnNoRoute: c.Enforce.OnNoRoute == 404,
		Parents:           c.parentTypes(),
		Reserved:          reserved,
	}
}

// canonOptions are the rules by which proxy.listen reads requests.
func (c *Config) canonOptions() canon.Options {
	_, sets := c.Proxy.Identity.sets()
	return canon.Options{
		TrustedProxies: c.Proxy.TrustedProxies,
		ClientAddress:  c.Proxy.ClientAddress,
		Credentials:    c.Proxy.Credentials,
		Sets:           sets,
		Removes:        c.unusedIdentityNames(),
		MaxTargetBytes: int(c.Proxy.Limits.URIBytes),
	}
}

// unusedIdentityNames are the default names of identity headers, and the usual one of
// the signed identity, that the configuration turned off or renamed. They are removed
// all the same: an upstream may still believe them. One that carries a credential is
// removed as that.
func (c *Config) unusedIdentityNames() []string {
	_, used := c.Proxy.Identity.sets()
	used = append(used, c.Proxy.Credentials...)
	_, names := defaultConfig().Proxy.Identity.sets()
	names = append(names, identity.SignedName)
	return slices.DeleteFunc(names, func(name string) bool {
		return slices.ContainsFunc(used, func(o string) bool { return foldHeader(o) == foldHeader(name) })
	})
}

// foldHeader is a header name as a backend may read it: letters and digits in
// one case, all else alike.
func foldHeader(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, strings.ToLower(name))
}

// adminCanonOptions are the rules by which admin.listen reads requests.
func (c *Config) adminCanonOptions() canon.Options {
	return canon.Options{
		TrustedProxies: c.Admin.TrustedProxies,
		ClientAddress:  c.Proxy.ClientAddress,
		MaxTargetBytes: int(c.Proxy.Limits.URIBytes),
	}
}

// serviceOptions are the part of [admin.Options] that is configured.
func (c *Config) serviceOptions() admin.Options {
	return admin.Options{
		Account:    c.Admin.DefaultAccount,
		Owner:      c.Admin.DefaultOwner,
		ResetGrace: c.TokenStore.ResetGrace,
		Prefix:     c.TokenStore.SecretPrefix,
		Prefixes:   c.Admin.SecretPrefix.byAPI(),
	}
}

// identityNames are the names for [identity.New].
func (c *Config) identityNames() identity.Names {
	name := func(s string) string {
		if s == headerOff {
			return ""
		}
		return s
	}
	i := &c.Proxy.Identity
	return identity.Names{
		ID: name(i.ID), Account: name(i.Account), Owner: name(i.Owner),
		Name: name(i.Name), Scopes: name(i.Scopes), Resources: name(i.Resources),
	}
}

// sets lists the header names in use beside the keys that name them.
func (i *IdentityConfig) sets() (keys, names []string) {
	for _, h := range []struct{ key, name string }{
		{"id", i.ID}, {"account", i.Account}, {"owner", i.Owner},
		{"name", i.Name}, {"scopes", i.Scopes}, {"resources", i.Resources}, {"signed", i.Signed},
	} {
		if h.name != headerOff {
			keys, names = append(keys, h.key), append(names, h.name)
		}
	}
	return keys, names
}

// upstreamURL is where a sound URL of an upstream leads: scheme and host only.
func upstreamURL(raw string) *url.URL {
	u, err := url.Parse(raw)
	if err != nil {
		panic("configuration in use was not checked: " + err.Error())
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}
}

// logLevel is the least level that is logged.
func (c *Config) logLevel() slog.Level {
	return map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}[c.Log.Level]
}

// loopback reports whether only this machine can connect to a listen address.
func loopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.Unmap().IsLoopback()
}
