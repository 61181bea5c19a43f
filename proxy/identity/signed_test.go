package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	"tokenward/tokenstore"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func pemKey(t testing.TB) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func ecdsaKey(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func newSigner(t testing.TB, keys ...[]byte) *Signer {
	t.Helper()
	s, err := NewSigner(SignerOptions{Name: "X-Token-Jwt", Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// verify checks a JWT as an upstream would, with nothing but the published keys.
func verify(t testing.TB, jwks, jwt []byte) map[string]any {
	t.Helper()
	var set struct {
		Keys []struct{ Kty, Crv, Use, Alg, Kid, X string }
	}
	if err := json.Unmarshal(jwks, &set); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(jwt), ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	decode := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var header struct{ Alg, Kid, Typ string }
	if err := json.Unmarshal(decode(parts[0]), &header); err != nil || header.Alg != "EdDSA" || header.Typ != "JWT" || header.Kid == "" {
		t.Fatalf("header %+v, %v", header, err)
	}
	for _, k := range set.Keys {
		if k.Kty != "OKP" || k.Crv != "Ed25519" || k.Use != "sig" || k.Alg != "EdDSA" {
			t.Errorf("published as %+v", k)
		}
		if k.Kid == header.Kid && ed25519.Verify(decode(k.X), []byte(parts[0]+"."+parts[1]), decode(parts[2])) {
			var claims map[string]any
			if err := json.Unmarshal(decode(parts[1]), &claims); err != nil {
				t.Fatal(err)
			}
			return claims
		}
	}
	t.Fatal("no published key verifies it")
	return nil
}

func sampleToken() *tokenstore.Token {
	return &tokenstore.Token{ID: 7, Revision: 1, Account: 42, Owner: 3, Name: "Zoë", Scopes: []string{"a", "b"},
		Resources: tokenstore.Resources{All: true}, Expiry: tokenstore.Never()}
}

func TestUpstreamCanCheckWhoAsks(t *testing.T) {
	s := newSigner(t, pemKey(t))
	if s.Name() != "X-Token-Jwt" {
		t.Fatal(s.Name())
	}
	c := verify(t, s.JWKS(), s.Value(sampleToken(), noon))
	want := map[string]any{"sub": "7", "account": 42.0, "owner": 3.0, "name": "Zoë", "scope": "a b", "resources": "all", "iss": "tokenward",
		"iat": float64(noon.Unix()), "exp": float64(noon.Add(DefaultLifetime).Unix())}
	for k, v := range want {
		if c[k] != v {
			t.Errorf("%s is %v, want %v", k, c[k], v)
		}
	}
	if len(c["jti"].(string)) < 20 {
		t.Errorf("jti %v", c["jti"])
	}
}

func TestSignedIdentityIsOfThisTokenAlone(t *testing.T) {
	key := pemKey(t)
	s, err := NewSigner(SignerOptions{Name: "X-J", Issuer: "gate", Lifetime: time.Hour, Keys: [][]byte{key}})
	if err != nil {
		t.Fatal(err)
	}
	say := func(tok *tokenstore.Token) map[string]any {
		return verify(t, s.JWKS(), s.Value(tok, noon))
	}
	one, other := sampleToken(), sampleToken()
	other.ID = 8
	if say(one)["sub"] != "7" || say(other)["sub"] != "8" {
		t.Error("one token goes under the name of another")
	}
	narrowed := sampleToken()
	narrowed.Revision = 2
	narrowed.Resources = tokenstore.Resources{Grants: []tokenstore.Grant{{Type: "card", ID: "7", Level: tokenstore.LevelRead}}}
	narrowed.Expiry = tokenstore.EndsAt(noon.Add(2 * time.Hour))
	c := say(narrowed)
	if got := fmt.Sprint(c["resources"]); got != "[map[id:7 level:read type:card]]" {
		t.Errorf("a restricted token's resources are %s", got)
	}
	if c["iss"] != "gate" || c["exp"] != float64(noon.Add(time.Hour).Unix()) {
		t.Errorf("iss %v, exp %v", c["iss"], c["exp"])
	}
}

func TestSignedIdentityServesHalfItsLife(t *testing.T) {
	s := newSigner(t, pemKey(t))
	tok := sampleToken()
	at := func(d time.Duration) []byte { return s.Value(tok, noon.Add(d)) }
	first := at(0)
	if !bytes.Equal(first, at(DefaultLifetime/2-1)) {
		t.Error("it was signed again before half of its life")
	}
	if bytes.Equal(first, at(DefaultLifetime/2)) {
		t.Error("it was used after half of its life")
	}
	if second := at(DefaultLifetime / 2); !bytes.Equal(second, at(DefaultLifetime/2-time.Second)) {
		t.Error("it was signed again for a request that another one overtook")
	} else if bytes.Equal(second, at(DefaultLifetime/2-time.Second-1)) {
		t.Error("it was used before it was signed")
	}
	if c := verify(t, s.JWKS(), at(-5*time.Hour)); c["iat"] != float64(noon.Add(-5*time.Hour).Unix()) {
		t.Errorf("once the clock was set back it says %v", c["iat"])
	}
	tok = tok.Clone()
	tok.Revision, tok.Scopes = 2, []string{"b"}
	if c := verify(t, s.JWKS(), at(DefaultLifetime/2)); c["scope"] != "b" {
		t.Errorf("after a change the scope is %v", c["scope"])
	}
}

func TestSignedIdentityEndsWithTheToken(t *testing.T) {
	s := newSigner(t, pemKey(t))
	tok := sampleToken()
	tok.Expiry = tokenstore.EndsAt(noon.Add(time.Minute))
	if c := verify(t, s.JWKS(), s.Value(tok, noon)); c["exp"] != float64(noon.Add(time.Minute).Unix()) {
		t.Errorf("exp %v", c["exp"])
	}
}

func TestReplacedKeyStaysPublished(t *testing.T) {
	old, fresh := pemKey(t), pemKey(t)
	before := newSigner(t, old).Value(sampleToken(), noon)
	both := newSigner(t, fresh, old)
	after := both.Value(sampleToken(), noon)
	verify(t, both.JWKS(), before)
	verify(t, both.JWKS(), after)
}

func TestUnusableSignersAreRefused(t *testing.T) {
	for _, life := range []time.Duration{10 * time.Second, time.Hour} {
		if _, err := NewSigner(SignerOptions{Name: "X-J", Keys: [][]byte{pemKey(t)}, Lifetime: life}); err != nil {
			t.Error(err)
		}
	}
	for name, o := range map[string]SignerOptions{
		"another kind of key": {Name: "X-J", Keys: [][]byte{ecdsaKey(t)}},
		"another kind of PEM": {Name: "X-J", Keys: [][]byte{bytes.ReplaceAll(pemKey(t), []byte("PRIVATE"), []byte("SECRET"))}},
		"the second key":      {Name: "X-J", Keys: [][]byte{pemKey(t), nil}},
		"too short":           {Name: "X-J", Keys: [][]byte{pemKey(t)}, Lifetime: 10*time.Second - 1},
		"too long":            {Name: "X-J", Keys: [][]byte{pemKey(t)}, Lifetime: time.Hour + 1},
		"no key":              {Name: "X-J"},
		"no PEM":              {Name: "X-J", Keys: [][]byte{[]byte("secret")}},
		"no name":             {Keys: [][]byte{pemKey(t)}},
		"name":                {Name: "Authorization", Keys: [][]byte{pemKey(t)}},
		"short":               {Name: "X-J", Keys: [][]byte{pemKey(t)}, Lifetime: time.Second},
		"long":                {Name: "X-J", Keys: [][]byte{pemKey(t)}, Lifetime: 2 * time.Hour},
		"wrong PEM":           {Name: "X-J", Keys: [][]byte{pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})}},
	} {
		if _, err := NewSigner(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	var none *Signer
	if none.Value(sampleToken(), noon) != nil || none.Name() != "" || string(none.JWKS()) != `{"keys":[]}` {
		t.Error("the nil signer says something")
	}
}

func TestKeptIdentityDoesNotAllocate(t *testing.T) {
	s := newSigner(t, pemKey(t))
	tok := sampleToken()
	s.Value(tok, noon)
	if n := testing.AllocsPerRun(100, func() { s.Value(tok, noon) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
