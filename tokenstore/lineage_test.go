package tokenstore_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"testing"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// TestTokenOutsideAnyLineageIsStoredAsBefore holds what the versions of records that
// know no lineage read and write, byte for byte.
func TestTokenOutsideAnyLineageIsStoredAsBefore(t *testing.T) {
	t.Parallel()
	plain := storetest.Sample(7, 1, 1)
	plain.ReplacedBy = 9
	silent := plain.Clone()
	silent.Secrets = append(silent.Secrets, silent.Secrets[0])
	silent.Secrets[1].Digest = storetest.SampleDigest(8)
	silent.Secrets[1].Silence = 48 * time.Hour
	for _, c := range []struct {
		token *tokenstore.Token
		text  string
	}{
		{plain, "0107010107746f6b656e20370100818ce9ef9f340081e4adad9535818ce9ef9f34818ce9ef9f3400000c636f6d6d616e64206c696e650902086163636f756e74" +
			"730763617264733a2a0002076163636f756e740131010463617264012a02000204c0000200181020010db8000000000000000000000000200104c00002072025" +
			"3139322e302e322e302f32342c323030313a6462383a3a2f33322c213139322e302e322e37808080808080c0944014c0843d0801e8070201a3eb8db89fc5123c" +
			"cfd49585059f292bc40a1c0d550b860f24f84efb4760fbf2000000000000000001047778797a818ce9ef9f3401"},
		{silent, "0207010107746f6b656e20370100818ce9ef9f340081e4adad9535818ce9ef9f34818ce9ef9f3400000c636f6d6d616e64206c696e650902086163636f756e74" +
			"730763617264733a2a0002076163636f756e740131010463617264012a02000204c0000200181020010db8000000000000000000000000200104c00002072025" +
			"3139322e302e322e302f32342c323030313a6462383a3a2f33322c213139322e302e322e37808080808080c0944014c0843d0801e8070202a3eb8db89fc5123c" +
			"cfd49585059f292bc40a1c0d550b860f24f84efb4760fbf2000000000000000001047778797a818ce9ef9f3401004c0e071832d527694adea57b50dd7b2164c2" +
			"a47c02940dcf26fa07c44d6d222a000000000000000001047778797a818ce9ef9f340180c60a"},
	} {
		record, err := tokenstore.EncodeRecord(nil, c.token)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(record); got != c.text {
			t.Errorf("it is written as\n%s, and was\n%s", got, c.text)
		}
		old, err := hex.DecodeString(c.text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := tokenstore.DecodeRecord(old)
		if err != nil {
			t.Fatal(err)
		}
		if got.Lineage != 0 || got.MeasuredAs() != 7 || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", c.token) {
			t.Errorf("it reads\n%+v, and was\n%+v", got, c.token)
		}
	}
}

func TestRecordHoldsLineageInAVersionOfItsOwn(t *testing.T) {
	t.Parallel()
	next := storetest.Sample(7, 1, 1)
	next.Lineage = 3
	above := next.Clone()
	above.Lineage = 1<<53 - 1
	silent := next.Clone()
	silent.Secrets = append(silent.Secrets, silent.Secrets[0])
	silent.Secrets[1].Digest = storetest.SampleDigest(8)
	silent.Secrets[1].Silence = 48 * time.Hour
	for _, token := range []*tokenstore.Token{next, above, silent} {
		record, err := tokenstore.EncodeRecord(nil, token)
		if err != nil {
			t.Fatal(err)
		}
		if record[0] != 3 {
			t.Errorf("the record has version %d", record[0])
		}
		got, err := tokenstore.DecodeRecord(record)
		if err != nil {
			t.Fatal(err)
		}
		if got.Lineage != token.Lineage || got.AwaitsSilence() != token.AwaitsSilence() || got.MeasuredAs() != token.Lineage {
			t.Errorf("it reads %+v", got)
		}
		again, err := tokenstore.EncodeRecord(nil, got)
		if err != nil || !bytes.Equal(again, record) {
			t.Errorf("it does not come back as it was: %v", err)
		}
		for _, version := range []byte{0, 1, 2, 4} {
			record[0] = version
			if _, err := tokenstore.DecodeRecord(record); err == nil {
				t.Errorf("a record of version 3 reads as one of %d", version)
			}
		}
	}
}

// TestRecordIsInTheOldestVersionThatHoldsIt: the same token in a later one would be two
// records for one token.
func TestRecordIsInTheOldestVersionThatHoldsIt(t *testing.T) {
	t.Parallel()
	encode := func(lineage tokenstore.ID) []byte {
		token := storetest.Sample(7, 1, 1)
		token.Lineage = lineage
		record, err := tokenstore.EncodeRecord(nil, token)
		if err != nil {
			t.Fatal(err)
		}
		return record
	}
	none, other := encode(3), encode(4)
	for i := range none {
		if none[i] != other[i] {
			none[i] = 0
		}
	}
	if got, err := tokenstore.DecodeRecord(none); err == nil {
		t.Errorf("a record of version 3 reads as a token of no lineage: %+v", got)
	}
	plain := encode(0)
	silent := append(plain[:len(plain):len(plain)], 0) // of no silence
	silent[0] = 2
	if got, err := tokenstore.DecodeRecord(silent); err == nil {
		t.Errorf("a record of version 2 reads as a token that no silence ends: %+v", got)
	}
}

// TestLineageIsOfAnotherToken: a record has one form, and 0 is that of a token that
// began its own lineage.
func TestLineageIsOfAnotherToken(t *testing.T) {
	t.Parallel()
	for lineage, sound := range map[tokenstore.ID]bool{0: true, 6: true, 7: false, 8: true, 1<<53 - 1: true, 1 << 53: false} {
		token := storetest.Sample(7, 1, 1)
		token.Lineage = lineage
		if faults := token.Validate(); (len(faults) == 0) != sound {
			t.Errorf("token 7 of the lineage of %d: %v", lineage, faults)
		}
	}
}

// FuzzRecord: what reads as a token is sound, and is written again as the same bytes.
func FuzzRecord(f *testing.F) {
	next := storetest.Sample(7, 1, 1)
	silent := next.Clone()
	silent.Secrets[0].Silence = time.Minute
	lineal := silent.Clone()
	lineal.Lineage = 3
	for _, token := range []*tokenstore.Token{next, silent, lineal} {
		record, err := tokenstore.EncodeRecord(nil, token)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(record)
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		token, err := tokenstore.DecodeRecord(record)
		if err != nil {
			return
		}
		again, err := tokenstore.EncodeRecord(nil, token)
		if err != nil || !bytes.Equal(again, record) {
			t.Errorf("%x reads as %+v, which is written as %x: %v", record, token, again, err)
		}
	})
}
