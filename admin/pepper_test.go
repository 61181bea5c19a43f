package admin_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
)

// TestVerbsUnderAPepper makes tokens in a sealed store, before and after the
// pepper is replaced: a secret made under the old one is found while it is
// listed, and every new one is made under the first.
func TestVerbsUnderAPepper(t *testing.T) {
	old, fresh := bytes.Repeat([]byte("o"), tokenstore.MinPepperBytes), bytes.Repeat([]byte("n"), tokenstore.MinPepperBytes)
	path := filepath.Join(t.TempDir(), "tokens.db")
	open := func(make func(boltstore.Options) (*boltstore.Store, error), files ...[]byte) (*boltstore.Store, *admintest.World) {
		peppers, err := tokenstore.NewPeppers(files...)
		if err != nil {
			t.Fatal(err)
		}
		store, err := make(boltstore.Options{Path: path, Peppers: peppers})
		if err != nil {
			t.Fatal(err)
		}
		return store, admintest.Over(t, store, peppers)
	}
	root := func(w *admintest.World, secret tokenstore.Secret) admin.Caller {
		token := w.Token(1)
		return admin.Caller{Token: token, Secret: &token.Secrets[0], Presented: secret, Remote: admintest.Client}
	}
	store, w := open(boltstore.Create, old)
	made, err := w.Service.Bootstrap(ctx, tokenstore.Secret{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := w.Service.Create(ctx, root(w, made.Secret), admin.Spec{Name: "first"})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	store, w = open(boltstore.Open, fresh, old)
	defer store.Close()
	caller := root(w, made.Secret)
	second, err := w.Service.Rotate(ctx, caller, at(first.Token.ID), admin.RotateSpec{})
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string]tokenstore.Secret{"old": first.Secret, "new": second.Secret} {
		match, err := w.Service.Introspect(ctx, caller, secret)
		if err != nil || match.Token.ID != first.Token.ID {
			t.Errorf("%s secret: %v", name, err)
		}
	}
	if s := second.Token.Secrets; s[0].Pepper == s[1].Pepper || s[0].Pepper.IsZero() {
		t.Errorf("peppers %v and %v", s[0].Pepper, s[1].Pepper)
	}
}
