//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
)

// fillStore makes a store of o.tokens tokens, unless the last run left one, and
// returns the secrets of the first o.active of them. Each has what a token in
// use has: scopes, a source rule, grants and a rate limit that is never reached.
func fillStore(ctx context.Context, o options) ([]string, error) {
	path, list := storePath(o), storePath(o)+".secrets"
	if secrets, err := readLines(list); err == nil && len(secrets) >= o.active {
		return secrets[:o.active], nil
	}
	for _, old := range []string{path, list} {
		if err := os.Remove(old); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	fmt.Fprintf(os.Stderr, "filling a store with %d tokens …\n", o.tokens)
	store, err := boltstore.Create(boltstore.Options{Path: path})
	if err != nil {
		return nil, err
	}
	defer store.Close()
	if err := store.RecordPrefix(ctx, "tw"); err != nil {
		return nil, err
	}
	var secrets []string
	const batch = 10_000
	for done := 0; done < o.tokens; done += batch {
		made := make([]string, 0, batch)
		err := store.Change(ctx, func(tx tokenstore.Tx) error {
			made = made[:0]
			for range min(batch, o.tokens-done) {
				_, secret, err := putToken(tx, false)
				if err != nil {
					return err
				}
				made = append(made, secret)
			}
			tx.Emit([]byte(`{}`))
			return nil
		})
		if err != nil {
			return nil, err
		}
		if len(secrets) < o.active {
			secrets = append(secrets, made[:min(len(made), o.active-len(secrets))]...)
		}
		fmt.Fprintf(os.Stderr, "\r%d of %d", min(done+batch, o.tokens), o.tokens)
	}
	fmt.Fprintln(os.Stderr)
	var expired string
	err = store.Change(ctx, func(tx tokenstore.Tx) error {
		tx.Emit([]byte(`{}`))
		_, expired, err = putToken(tx, true)
		return err
	})
	if err != nil {
		return nil, err
	}
	return secrets, errors.Join(writeLines(expiredPath(o), []string{expired}), writeLines(list, secrets))
}

// expiredPath is the file with the secret of a token that has expired.
func expiredPath(o options) string { return storePath(o) + ".expired" }

func storePath(o options) string {
	return filepath.Join(o.dir, fmt.Sprintf("tokens-%d.db", o.tokens))
}

func putToken(tx tokenstore.Tx, expired bool) (id tokenstore.ID, text string, err error) {
	if id, err = tx.NewID(); err != nil {
		return 0, "", err
	}
	secret := tokenstore.NewSecret("tw").Reveal()
	digest, _ := (*tokenstore.Peppers)(nil).Digest(secret)
	now := time.Now().UTC().Truncate(time.Millisecond)
	expiry := tokenstore.EndsAt(now.AddDate(1, 0, 0))
	if expired {
		expiry = tokenstore.EndsAt(now)
	}
	return id, secret, tx.Put(&tokenstore.Token{
		ID: id, Account: 1, Owner: 1, Name: fmt.Sprintf("worker %d", id),
		Scopes: []string{"accounts", "cards", "payments-write"},
		Resources: tokenstore.Resources{Grants: []tokenstore.Grant{
			{Type: "account", ID: "10000", Level: tokenstore.LevelWrite}, {Type: "account", ID: "10001", Level: tokenstore.LevelRead},
		}},
		Sources: tokenstore.Sources{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8")}},
		Expiry:  expiry, State: tokenstore.StateActive,
		Limits:    tokenstore.Limits{Rate: 1e6, Burst: 1e6},
		Creator:   tokenstore.Creator{ID: 1, Name: "root"},
		CreatedAt: now, UpdatedAt: now,
		Secrets: []tokenstore.SecretRecord{{Digest: digest, Scheme: tokenstore.SchemeNative, Last4: secret[len(secret)-4:], CreatedAt: now, Ends: tokenstore.Never()}},
	})
}

func readLines(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var lines []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		lines = append(lines, s.Text())
	}
	return lines, s.Err()
}

func writeLines(path string, lines []string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for _, l := range lines {
		fmt.Fprintln(w, l)
	}
	return errors.Join(w.Flush(), f.Close())
}
