package tokenstore_test

import (
	"bytes"
	"runtime"
	"slices"
	"strings"
	"testing"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// TestDecodedTokenHoldsOnToNothingOfItsRecord decodes tokens whose texts just fit behind
// them, and such as do not, writes over the record, and has the collector run: no text
// may lie in memory that is another's.
func TestDecodedTokenHoldsOnToNothingOfItsRecord(t *testing.T) {
	t.Parallel()
	token := storetest.Sample(7, 1, 1)
	token.Name, token.Sources.Text = "", ""
	bare := len(token.Creator.Name)
	for _, s := range token.Scopes {
		bare += len(s)
	}
	for _, g := range token.Resources.Grants {
		bare += len(g.Type) + len(g.ID)
	}
	for i := range token.Secrets {
		bare += len(token.Secrets[i].Last4)
	}
	const room = 120
	for _, length := range []int{1, room - 1 - bare, room - bare, room + 1 - bare, 200} {
		token.Name = strings.Repeat("n", length)
		record, err := tokenstore.EncodeRecord(nil, token)
		if err != nil {
			t.Fatal(err)
		}
		got, err := tokenstore.DecodeRecord(record)
		if err != nil {
			t.Fatal(err)
		}
		want, clone, name, scopes := bytes.Clone(record), got.Clone(), got.Name, got.Scopes
		for i := range record {
			record[i] = 0xFF
		}
		if again, err := tokenstore.EncodeRecord(nil, got); err != nil || !bytes.Equal(again, want) {
			t.Errorf("a name of %d bytes: it became %+v, %v", length, got, err)
		}
		// What was taken from it outlives the token.
		runtime.GC()
		trash := make([][]byte, 1000)
		for i := range trash {
			trash[i] = bytes.Repeat([]byte{'x'}, 880)
		}
		if again, err := tokenstore.EncodeRecord(nil, clone); err != nil || !bytes.Equal(again, want) || name != token.Name || !slices.Equal(scopes, token.Scopes) {
			t.Errorf("a name of %d bytes, once the token is collected: %q %q %+v, %v", length, name, scopes, clone, err)
		}
		runtime.KeepAlive(trash)
	}
}
