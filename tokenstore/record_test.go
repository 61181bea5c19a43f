package tokenstore_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

// TestDamagedRecordIsNoTokenOrAnotherWhole: what is cut off, has more behind it, has
// another byte anywhere, or a number in a longer form, is refused, or is the one record
// of the token that it reads as.
func TestDamagedRecordIsNoTokenOrAnotherWhole(t *testing.T) {
	t.Parallel()
	token := storetest.Sample(7, 1, 1)
	token.Lineage, token.State, token.EndedAt = 3, tokenstore.StateRevoked, storetest.Epoch
	token.Secrets = append(token.Secrets, token.Secrets[0])
	token.Secrets[1].Digest, token.Secrets[1].Silence = storetest.SampleDigest(8), time.Minute
	record, err := tokenstore.EncodeRecord(nil, token)
	if err != nil {
		t.Fatal(err)
	}
	// The last thing it says is when a secret ends, so that what is cut off leaves a whole one.
	plain := storetest.Sample(7, 1, 1)
	plain.Secrets[0].Ends = tokenstore.Expiry{}
	short, err := tokenstore.EncodeRecord(nil, plain)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, at int, damaged []byte) {
		if got, err := tokenstore.DecodeRecord(damaged); err == nil {
			t.Errorf("%s at %d: it reads as %+v", what, at, got)
		}
	}
	for _, whole := range [][]byte{record, short} {
		for n := range whole {
			refused("cut off", n, whole[:n])
			if whole[n] < 0x80 { // else it is within a number already, or in a digest
				longer := slices.Insert(bytes.Clone(whole), n+1, 0)
				longer[n] |= 0x80
				oneForm(t, "longer number", n, longer)
			}
		}
		for c := range 256 {
			refused("another byte", len(whole), append(bytes.Clone(whole), byte(c)))
		}
	}
	damaged := bytes.Clone(record)
	for n := range damaged {
		for c := range 256 {
			damaged[n] = byte(c)
			oneForm(t, "another byte", n, damaged)
		}
		damaged[n] = record[n]
	}
}

// oneForm checks that a record, if it is one, is what its token is written as.
func oneForm(t *testing.T, what string, at int, record []byte) {
	t.Helper()
	token, err := tokenstore.DecodeRecord(record)
	if err != nil {
		return
	}
	if again, err := tokenstore.EncodeRecord(nil, token); err != nil || !bytes.Equal(again, record) {
		t.Fatalf("%s at %d: it reads as %+v, which is written otherwise: %v", what, at, token, err)
	}
}

// TestNoticeIsOfOneEnd: a token whose end was moved is warned of anew.
func TestNoticeIsOfOneEnd(t *testing.T) {
	t.Parallel()
	end := storetest.Epoch
	stored := (&tokenstore.Notice{End: end, Told: 7, Sent: 30}).Append(nil)
	none := tokenstore.Notice{End: end, Told: tokenstore.NotWarned, Sent: tokenstore.NotWarned}
	if got := tokenstore.ParseNotice(stored, end); got != (tokenstore.Notice{End: end, Told: 7, Sent: 30}) {
		t.Errorf("it reads as %+v", got)
	}
	later := end.Add(time.Millisecond)
	if got := tokenstore.ParseNotice(stored, later); got != (tokenstore.Notice{End: later, Told: tokenstore.NotWarned, Sent: tokenstore.NotWarned}) {
		t.Errorf("of another end it reads as %+v", got)
	}
	for _, damaged := range [][]byte{nil, stored[:11], append(stored, 0)} {
		if got := tokenstore.ParseNotice(damaged, end); got != none {
			t.Errorf("%x reads as %+v", damaged, got)
		}
	}
}
