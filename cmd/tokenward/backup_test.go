package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

func TestBackupKeepsItsPace(t *testing.T) {
	for name, piece := range map[string]int{"small pieces": 32 << 10, "large pieces": 8 << 20} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &pacedWriter{ctx: t.Context(), w: io.Discard}
				<-time.After(time.Hour) // is not made up for
				began, sent := time.Now(), 0
				for sent < 4*backupPace {
					n, err := w.Write(make([]byte, piece))
					if err != nil {
						t.Fatal(err)
					}
					sent += n
				}
				want := time.Duration(sent) * time.Second / backupPace
				if took := time.Since(began); took < want-pauseLeast || took > want+pauseLeast {
					t.Errorf("%d bytes took %v, want %v", sent, took, want)
				}
			})
		})
	}
}

func TestPacedBackupEndsWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		var out bytes.Buffer
		w := &pacedWriter{ctx: ctx, w: &out}
		began := time.Now()
		if n, err := w.Write(make([]byte, 10*backupPace)); n != out.Len() || !errors.Is(err, context.Canceled) || time.Since(began) != time.Second {
			t.Errorf("%d bytes, %v after %v", n, err, time.Since(began))
		}
	})
}
