package tokenstore_test

import (
	"bytes"
	"testing"
	"time"

	"tokenward/tokenstore"
	"tokenward/tokenstore/storetest"
)

func TestRecordHoldsSilenceInAVersionOfItsOwn(t *testing.T) {
	t.Parallel()
	plain := storetest.Sample(7, 1, 1)
	silent := plain.Clone()
	silent.Secrets = append(silent.Secrets, silent.Secrets[0])
	silent.Secrets[1].Digest = storetest.SampleDigest(8)
	silent.Secrets[1].Silence = 48 * time.Hour
	for version, token := range map[byte]*tokenstore.Token{1: plain, 2: silent} {
		record, err := tokenstore.EncodeRecord(nil, token)
		if err != nil {
			t.Fatal(err)
		}
		if record[0] != version {
			t.Errorf("the record has version %d instead of %d", record[0], version)
		}
		got, err := tokenstore.DecodeRecord(record)
		if err != nil {
			t.Fatal(err)
		}
		again, err := tokenstore.EncodeRecord(nil, got)
		if err != nil || !bytes.Equal(again, record) || got.AwaitsSilence() != (version == 2) {
			t.Errorf("version %d does not come back as it was: %v", version, err)
		}
		for other := range 4 {
			if byte(other) != version {
				record[0] = byte(other)
				if _, err := tokenstore.DecodeRecord(record); err == nil {
					t.Errorf("a record of version %d reads as one of %d", version, other)
				}
			}
		}
	}
	silent.Secrets[1].Silence = time.Second + time.Millisecond
	if _, err := tokenstore.EncodeRecord(nil, silent); err == nil {
		t.Error("a silence is not whole seconds")
	}
	if !(&tokenstore.SecretRecord{Ends: tokenstore.Never(), Silence: time.Hour}).InGrace() {
		t.Error("a secret that ends by silence may manage tokens")
	}
}
