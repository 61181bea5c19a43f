package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"tokenward/tokenstore/boltstore"
)

func TestBackupKeepsItsPace(t *testing.T) {
	for name, test := range map[string]struct {
		m    boltstore.Manifest
		want time.Duration
	}{
		"a million tokens":            {boltstore.Manifest{Tokens: 1_000_000, Bytes: 600e6}, 8700 * time.Millisecond},
		"a million large ones":        {boltstore.Manifest{Tokens: 1_000_000, Bytes: 900e6}, 8700 * time.Millisecond},
		"a thousand":                  {boltstore.Manifest{Tokens: 1000, Bytes: 600e3}, 9 * time.Millisecond},
		"few tokens in a large file":  {boltstore.Manifest{Tokens: 10, Bytes: 600e6}, 4 * time.Second},
		"none in the smallest of all": {boltstore.Manifest{Bytes: 32 << 10}, 0},
	} {
		for _, part := range []int64{64 << 10, 10 << 20} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := pacer{ctx: t.Context()}
					<-time.After(time.Hour) // is not made up for
					began := time.Now()
					for done := int64(0); done < test.m.Bytes; {
						done = min(test.m.Bytes, done+part)
						if err := p.wait(&test.m, done); err != nil {
							t.Fatal(err)
						}
					}
					if took := time.Since(began); took < test.want-pauseLeast || took > test.want+pauseLeast {
						t.Errorf("took %v, want %v", took, test.want)
					}
				})
			})
		}
	}
}

// TestBackupMakesUpForShortDelays: of a long one, for a part.
func TestBackupMakesUpForShortDelays(t *testing.T) {
	m := boltstore.Manifest{Tokens: 1_000_000, Bytes: 600e6}
	for name, test := range map[string]struct{ delay, late time.Duration }{
		"short": {lagMost / 2, 0},
		"long":  {time.Hour, time.Hour - lagMost},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pacer{ctx: t.Context()}
				began := time.Now()
				for done := int64(1e6); done <= m.Bytes; done += 1e6 {
					if done == 300e6 {
						<-time.After(test.delay)
					}
					if err := p.wait(&m, done); err != nil {
						t.Fatal(err)
					}
				}
				want := 1_000_000*backupToken + test.late
				if took := time.Since(began); took < want-pauseLeast || took > want+pauseLeast {
					t.Errorf("took %v, want %v", took, want)
				}
			})
		})
	}
}

func TestPacedBackupEndsWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		p := pacer{ctx: ctx}
		began := time.Now()
		if err := p.wait(&boltstore.Manifest{Tokens: 1_000_000, Bytes: 600e6}, 600e6); !errors.Is(err, context.Canceled) || time.Since(began) != time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}
