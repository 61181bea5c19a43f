package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tokenward/admin"
	"tokenward/admin/notify"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
	"tokenward/tokenstore/usage"
)

// hook is a webhook without a network.
type hook struct {
	mu    sync.Mutex // guards what follows
	down  bool
	taken []notify.Event
}

// RoundTrip implements http.RoundTripper.
func (h *hook) RoundTrip(r *http.Request) (*http.Response, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	status := http.StatusNoContent
	var e notify.Event
	if err := json.NewDecoder(r.Body).Decode(&e); err != nil || h.down {
		status = http.StatusServiceUnavailable
	} else {
		h.taken = append(h.taken, e)
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader("")), Request: r}, nil
}

func (h *hook) setDown(down bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = down
}

func (h *hook) ids() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var ids []string
	for _, e := range h.taken {
		ids = append(ids, e.ID)
	}
	return ids
}

// kept is a store that is kept up, with a webhook, and can be opened again.
type kept struct {
	t       *testing.T
	path    string
	hook    *hook
	store   *boltstore.Store
	service *admin.Service
	upkeep  *upkeep
	ahead   time.Duration // of the machine's clock
	stop    func()
}

func newKept(t *testing.T) *kept {
	t.Helper()
	k := &kept{t: t, path: filepath.Join(t.TempDir(), "tokens.db"), hook: &hook{}}
	store, err := boltstore.Create(boltstore.Options{Path: k.path})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	k.open()
	return k
}

func (k *kept) open() {
	k.t.Helper()
	log := slog.New(slog.DiscardHandler)
	sender, err := notify.New("https://hooks.example.com/", []byte("0123456789abcdef"), &http.Client{Transport: k.hook}, time.Now, log)
	if err != nil {
		k.t.Fatal(err)
	}
	k.store, err = boltstore.Open(boltstore.Options{Path: k.path, Now: time.Now, OnChange: func(c tokenstore.Change) { k.upkeep.tellRevoked(c) }})
	if err != nil {
		k.t.Fatal(err)
	}
	used, err := usage.NewRecorder(k.store, usage.Pace{})
	if err != nil {
		k.t.Fatal(err)
	}
	clock := newClock(func() time.Time { return time.Now().Add(k.ahead) }, steadyClock(), k.store.LastTime(), log)
	k.service, err = admin.New(k.store, k.store, nil, clock.Now, admin.Options{Usage: used.Of})
	if err != nil {
		k.t.Fatal(err)
	}
	v := &vault{store: file{k.store}, service: k.service, usage: used, clock: clock}
	k.upkeep = newUpkeep(v, sender, []int{14, 3, 1}, log)
	ctx, cancel := context.WithCancel(k.t.Context())
	ended := make(chan struct{})
	go func() { sender.Run(ctx); close(ended) }()
	k.stop = func() { cancel(); <-ended }
}

func (k *kept) close() {
	k.t.Helper()
	k.stop()
	if err := k.store.Check(context.Background(), func(fault string) { k.t.Error(fault) }); err != nil {
		k.t.Error(err)
	}
	if err := k.store.Close(); err != nil {
		k.t.Error(err)
	}
}

func (k *kept) create(expiry tokenstore.Expiry) *tokenstore.Token {
	k.t.Helper()
	made, err := k.service.Create(k.t.Context(), admin.Operator("test"), admin.Spec{Name: "kept", Scopes: []string{"*"}, Expiry: &expiry})
	if err != nil {
		k.t.Fatal(err)
	}
	return made.Token
}

// pass lets time pass, and the upkeep do a few of its rounds.
func (k *kept) pass(d time.Duration) {
	const rounds = 8
	for range rounds {
		time.Sleep(d / rounds) //nolint:forbidigo // in a bubble
		k.upkeep.clock.compare()
		k.upkeep.round(k.t.Context())
		synctest.Wait()
	}
}

func (k *kept) days() []int {
	k.hook.mu.Lock()
	defer k.hook.mu.Unlock()
	var days []int
	for _, e := range k.hook.taken {
		days = append(days, e.Days)
	}
	return days
}

const day = 24 * time.Hour

func TestWarningsComeOnceAcrossRestarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKept(t)
		k.create(tokenstore.EndsAt(time.Now().Add(20 * day)))
		k.create(tokenstore.Never())
		k.pass(5 * day)
		if days := k.days(); days != nil {
			t.Errorf("15 days before the end it is warned of by %v", days)
		}
		for _, step := range []struct {
			pass time.Duration
			want []int
		}{{day + time.Hour, []int{14}}, {5 * day, []int{14}}, {6 * day, []int{14, 3}}, {2 * day, []int{14, 3, 1}}, {3 * day, []int{14, 3, 1}}} {
			k.close()
			k.open()
			k.pass(step.pass)
			if days := k.days(); !slices.Equal(days, step.want) {
				t.Errorf("warnings of %v days were taken, want %v", days, step.want)
			}
		}
		k.close()
	})
}

func TestWarningWaitsForADeadReceiverAndSkipsThoseOvertaken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKept(t)
		k.hook.setDown(true)
		made := k.create(tokenstore.EndsAt(time.Now().Add(13 * day)))
		k.pass(11 * day)
		if n, err := k.store.Notice(made.ID, made.Expiry.At); err != nil || n.Told != 3 || n.Sent <= 365 {
			t.Errorf("noted is %+v, %v", n, err)
		}
		k.hook.setDown(false)
		k.pass(12 * time.Hour)
		if days := k.days(); len(days) == 0 || days[len(days)-1] != 3 || len(slices.Compact(days)) != len(days) {
			t.Errorf("warnings of %v days were taken", days)
		}
		k.close()
	})
}

// TestDeadReceiverKeepsNoWarningFromTheAuditLog: what waits for the webhook is not to
// be taken for what a look did, so that those behind it had their turn never.
func TestDeadReceiverKeepsNoWarningFromTheAuditLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKept(t)
		k.hook.setDown(true)
		end := time.Now().Add(10 * day).UTC().Truncate(time.Millisecond)
		first := k.create(tokenstore.EndsAt(end))
		last := first.ID
		err := k.store.Change(t.Context(), func(tx tokenstore.Tx) error {
			tx.Emit([]byte("{}"))
			for i := range warnAtOnce + 2 {
				id, err := tx.NewID()
				if err != nil {
					return err
				}
				one := first.Clone()
				one.ID, one.Secrets[0].Digest, last = id, sha256.Sum256([]byte{byte(i), byte(i >> 8)}), id
				if err := tx.Put(one); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		k.pass(2 * time.Hour)
		for _, id := range []tokenstore.ID{first.ID, last} {
			if n, err := k.store.Notice(id, end); err != nil || n.Told != 14 {
				t.Errorf("of token %d is noted %+v, %v", id, n, err)
			}
		}
		k.close()
	})
}

// TestWarningsGoOnOnceThereIsRoom: more tokens end than can wait for the webhook.
func TestWarningsGoOnOnceThereIsRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKept(t)
		k.hook.setDown(true)
		for i := range 1024 {
			k.upkeep.sender.Send(notify.Event{ID: strconv.Itoa(i)})
		}
		k.create(tokenstore.EndsAt(time.Now().Add(10 * day)))
		k.pass(8 * time.Second)
		if !k.upkeep.unsent {
			t.Fatal("there was room")
		}
		k.hook.setDown(false)
		k.pass(8 * time.Minute)
		if ids := k.hook.ids(); len(ids) != 1025 || !strings.HasPrefix(ids[1024], "expires.1.") || k.upkeep.unsent {
			t.Errorf("%d were taken", len(ids))
		}
		k.close()
	})
}

func TestReceiverIsToldOfRevocation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKept(t)
		made := k.create(tokenstore.Never())
		for range 2 {
			_, err := k.service.Revoke(t.Context(), admin.Operator("test"), admin.Target{ID: made.ID, Revoked: true}, false)
			if err != nil {
				t.Fatal(err)
			}
		}
		k.pass(time.Second)
		if ids := k.hook.ids(); len(ids) != 1 || !strings.HasPrefix(ids[0], "revoked.1.") {
			t.Errorf("it is told of %v", ids)
		}
		k.close()
	})
}

func TestReceiverIsToldOfALeak(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKept(t)
		a := &app{upkeep: k.upkeep, now: time.Now}
		a.tellLeaked(k.create(tokenstore.Never()))
		k.pass(time.Second)
		if ids := k.hook.ids(); !slices.Equal(ids, []string{"leaked.1.1"}) {
			t.Errorf("it is told of %v", ids)
		}
		k.close()
	})
}

// TestLeapOfTheClockIsNoSilence: the machine's clock was a day behind and was set right,
// by which nobody was silent for a day.
func TestLeapOfTheClockIsNoSilence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKept(t)
		made := k.create(tokenstore.Never())
		if _, err := k.service.Rotate(t.Context(), admin.Operator("test"), admin.Target{ID: made.ID}, admin.RotateSpec{OldSilence: 12 * time.Hour}); err != nil {
			t.Fatal(err)
		}
		k.pass(2 * time.Hour)
		k.ahead = day
		for _, want := range []uint64{0, 1} {
			k.pass(50 * time.Minute)
			if s := k.upkeep.stats(); s.Silenced != want || k.upkeep.clock.stats().Adopted != 1 {
				t.Errorf("%d secrets were ended, want %d; %d leaps", s.Silenced, want, k.upkeep.clock.stats().Adopted)
			}
		}
		k.close()
	})
}

func TestUpkeepSweepsSilencesAndCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKept(t)
		ending := k.create(tokenstore.EndsAt(time.Now().Add(2 * day)))
		rotated := k.create(tokenstore.Never())
		if _, err := k.service.Rotate(t.Context(), admin.Operator("test"), admin.Target{ID: rotated.ID}, admin.RotateSpec{OldSilence: 12 * time.Hour}); err != nil {
			t.Fatal(err)
		}
		k.pass(time.Hour)
		if s := k.upkeep.stats(); s.Ending[0].Tokens != 0 || s.Ending[1].Tokens != 1 || s.Ending[2].Tokens != 1 || s.Silenced != 0 {
			t.Errorf("after an hour %+v", s)
		}
		k.pass(12 * time.Hour)
		if s := k.upkeep.stats(); s.Silenced != 1 {
			t.Errorf("after half a day %+v", s)
		}
		k.pass(92*day - time.Hour)
		if s := k.upkeep.stats(); s.Swept != 1 || s.Failures != 0 {
			t.Errorf("after 92 days %+v", s)
		}
		if _, err := k.store.ByID(t.Context(), ending.ID); err == nil {
			t.Error("the token that ended is still there")
		}
		k.close()
	})
}

// TestStoreThatWasTakenAwayIsToldOnce: who does not ask /readyz reads it in the log.
func TestStoreThatWasTakenAwayIsToldOnce(t *testing.T) {
	k := newKept(t)
	defer k.close()
	var told lockedBuffer
	k.upkeep.log = slog.New(slog.NewTextHandler(&told, nil))
	k.upkeep.lookAtFile()
	if told.String() != "" {
		t.Errorf("while it is there: %s", &told)
	}
	if err := os.Rename(k.path, k.path+".away"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		k.upkeep.lookAtFile()
	}
	if got := strings.Count(told.String(), "no longer at tokenstore.path"); got != 1 || !strings.Contains(told.String(), "tokenward backup") {
		t.Errorf("told %d times: %s", got, &told)
	}
}
