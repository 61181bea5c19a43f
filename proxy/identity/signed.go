package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/maypok86/otter/v2"

	"tokenward/tokenstore"
)

// DefaultLifetime is how long a signed identity is good for.
const DefaultLifetime = 5 * time.Minute

// SignedName is the usual name of the header with the signed identity.
const SignedName = "X-Token-Jwt"

// maxSigned bounds how many signed identities are kept, about 600 bytes each.
const maxSigned = 1 << 16

// Signer makes one header that says who asks and proves that we said so: a JWT
// (RFC 7519) signed with Ed25519 (RFC 8037). An upstream that others can reach
// too checks it against [Signer.JWKS]. It is safe for concurrent use.
type Signer struct {
	name     string
	issuer   string
	lifetime time.Duration
	keys     []signingKey // the first signs, all are published
	kept     *otter.Cache[signedKey, signed]
}

// SignerOptions are what an operator chooses.
type SignerOptions struct {
	Name     string        // of the header
	Issuer   string        // the claim iss; empty: tokenward
	Lifetime time.Duration // 0: DefaultLifetime
	// Keys are PEM files with an Ed25519 key in PKCS #8. The first one signs; the
	// others are published, so that what they signed stays good while they are
	// replaced.
	Keys [][]byte
}

type signingKey struct {
	id     string
	signer ed25519.PrivateKey
	header string // encoded JOSE header
}

// signedKey names one state of one token: another revision says other things.
type signedKey struct {
	id       tokenstore.ID
	revision uint64
}

type signed struct {
	text  []byte
	fresh time.Time // until when it is used: half of its life
}

// NewSigner checks the options and reads the keys.
func NewSigner(o SignerOptions) (*Signer, error) {
	if !validName(o.Name) {
		return nil, fmt.Errorf("signed identity header: %q must begin with X- and consist of letters, digits and dashes", o.Name)
	}
	if len(o.Keys) == 0 {
		return nil, errors.New("signed identity header: there is no key: make one with `openssl genpkey -algorithm ed25519 -out identity.pem`")
	}
	s := &Signer{name: o.Name, issuer: o.Issuer, lifetime: o.Lifetime}
	if s.issuer == "" {
		s.issuer = "tokenward"
	}
	if s.lifetime == 0 {
		s.lifetime = DefaultLifetime
	}
	if s.lifetime < 10*time.Second || s.lifetime > time.Hour {
		return nil, fmt.Errorf("signed identity header: a life of %s is not between 10s and 1h", s.lifetime)
	}
	for i, raw := range o.Keys {
		key, err := parseSigningKey(raw)
		if err != nil {
			return nil, fmt.Errorf("signing key %d: %w", i+1, err)
		}
		s.keys = append(s.keys, key)
	}
	var err error
	s.kept, err = otter.New(&otter.Options[signedKey, signed]{MaximumSize: maxSigned})
	return s, err
}

func parseSigningKey(raw []byte) (signingKey, error) {
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != "PRIVATE KEY" {
		return signingKey{}, errors.New("it is not a PEM file with a private key: make one with `openssl genpkey -algorithm ed25519`")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return signingKey{}, fmt.Errorf("it cannot be read: %w", err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return signingKey{}, errors.New("it is of another kind than Ed25519: make one with `openssl genpkey -algorithm ed25519`")
	}
	public := key.Public().(ed25519.PublicKey)
	sum := sha256.Sum256(public)
	k := signingKey{id: encode(sum[:12]), signer: key}
	header, err := json.Marshal(struct {
		Algorithm string `json:"alg"`
		KeyID     string `json:"kid"`
		Type      string `json:"typ"`
	}{"EdDSA", k.id, "JWT"})
	k.header = encode(header)
	return k, err
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// Name is the header's name: what a client must not be able to send.
func (s *Signer) Name() string {
	if s == nil {
		return ""
	}
	return s.name
}

// Value returns the header's value for t, which is not to be changed. The same text
// serves a token for half of its life, so that signing, some 20 µs, is rare; what it
// says is at most that much older than the decision. The nil *Signer says nothing.
func (s *Signer) Value(t *tokenstore.Token, now time.Time) []byte {
	if s == nil {
		return nil
	}
	key := signedKey{t.ID, t.Revision}
	one, _ := s.kept.GetIfPresent(key)
	// Requests overtake one another by less than a second; what was signed later than
	// that is from before the clock was set back, and not valid yet.
	if !now.Before(one.fresh) || one.fresh.Sub(now) > s.lifetime/2+time.Second {
		one = signed{text: s.sign(t, now), fresh: now.Add(s.lifetime / 2)}
		s.kept.Set(key, one)
	}
	return one.text
}

// claims are what the JWT says. Its end is never later than the token's own.
type claims struct {
	Issuer    string `json:"iss"`
	Subject   string `json:"sub"`
	ID        string `json:"jti"`
	Issued    int64  `json:"iat"`
	Expires   int64  `json:"exp"`
	Account   uint64 `json:"account"`
	Owner     uint64 `json:"owner"`
	Name      string `json:"name"`
	Scope     string `json:"scope"`
	Resources any    `json:"resources"`
}

type grantClaim struct {
	Type  string `json:"type"`
	ID    string `json:"id"`
	Level string `json:"level"`
}

func (s *Signer) sign(t *tokenstore.Token, now time.Time) []byte {
	expires := now.Add(s.lifetime)
	if !t.Expiry.Never && t.Expiry.At.Before(expires) {
		expires = t.Expiry.At
	}
	c := claims{
		Issuer: s.issuer, Subject: t.ID.String(), ID: rand.Text(), Issued: now.Unix(), Expires: expires.Unix(),
		Account: t.Account, Owner: t.Owner, Name: t.Name, Scope: string(appendScopes(nil, t)), Resources: "all",
	}
	if t.Resources.Restricted() {
		grants := make([]grantClaim, len(t.Resources.Grants))
		for i, g := range t.Resources.Grants {
			grants[i] = grantClaim{g.Type, g.ID, g.Level.String()}
		}
		c.Resources = grants
	}
	payload, _ := json.Marshal(c) // texts and numbers only: it cannot fail
	key := &s.keys[0]
	text := key.header + "." + encode(payload)
	return []byte(text + "." + encode(ed25519.Sign(key.signer, []byte(text))))
}

// JWKS is the set of public keys (RFC 7517) that signed identities are checked
// with, as JSON.
func (s *Signer) JWKS() []byte {
	type jwk struct {
		Type      string `json:"kty"`
		Curve     string `json:"crv"`
		Use       string `json:"use"`
		Algorithm string `json:"alg"`
		KeyID     string `json:"kid"`
		X         string `json:"x"`
	}
	set := struct {
		Keys []jwk `json:"keys"`
	}{[]jwk{}}
	if s != nil {
		for _, k := range s.keys {
			set.Keys = append(set.Keys, jwk{"OKP", "Ed25519", "sig", "EdDSA", k.id, encode(k.signer.Public().(ed25519.PublicKey))})
		}
	}
	out, _ := json.Marshal(set) // texts only: it cannot fail
	return out
}
