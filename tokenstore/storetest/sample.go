package storetest

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"tokenward/tokenstore"
)

// Epoch is when the tokens of [Sample] were made.
var Epoch = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// Sample returns an active token that uses every field, with the secret digest
// [SampleDigest] of its id.
func Sample(id tokenstore.ID, account, owner uint64) *tokenstore.Token {
	return &tokenstore.Token{
		ID: id, Account: account, Owner: owner, Name: fmt.Sprintf("token %d", id),
		Scopes: []string{"accounts", "cards:*"},
		Resources: tokenstore.Resources{Grants: []tokenstore.Grant{
			{Type: "account", ID: fmt.Sprint(account), Level: tokenstore.LevelRead},
			{Type: "card", ID: tokenstore.AnyID, Level: tokenstore.LevelWrite},
		}},
		Sources: tokenstore.Sources{
			Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
			Deny:  []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")},
			Text:  "192.0.2.0/24,2001:db8::/32,!192.0.2.7",
		},
		NotBefore: Epoch,
		Expiry:    tokenstore.EndsAt(Epoch.AddDate(1, 0, 0)),
		Limits: tokenstore.Limits{
			Rate: 12.5, Burst: 20, Uses: 1_000_000, Concurrent: 8,
			Quotas: []tokenstore.Quota{{Count: 1000, Per: tokenstore.PerHour}},
		},
		State:     tokenstore.StateActive,
		Creator:   tokenstore.Creator{Name: "command line"},
		CreatedAt: Epoch, UpdatedAt: Epoch,
		Secrets: []tokenstore.SecretRecord{{
			Digest: SampleDigest(id), Scheme: tokenstore.SchemeNative, Last4: "wxyz",
			CreatedAt: Epoch, Ends: tokenstore.Never(),
		}},
	}
}

// SampleDigest returns the digest of the secret that [Sample] gives a token.
func SampleDigest(id tokenstore.ID) tokenstore.Digest {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(id))
	return sha256.Sum256(b[:])
}
