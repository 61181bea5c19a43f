package leaks_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/admin/leaks"
	"tokenward/tokenstore"
)

type reporter struct {
	key  *ecdsa.PrivateKey
	keys []byte // as it publishes them
}

func newReporter(t testing.TB) *reporter {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	keys, err := json.Marshal(map[string]any{"public_keys": []map[string]any{{"key_identifier": "k1", "key": string(text), "is_current": true}}})
	if err != nil {
		t.Fatal(err)
	}
	return &reporter{key, keys}
}

func (r *reporter) request(t testing.TB, body string) *http.Request {
	t.Helper()
	sum := sha256.Sum256([]byte(body))
	signature, err := ecdsa.SignASN1(rand.Reader, r.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequest(http.MethodPost, "/v1/leaks", strings.NewReader(body))
	req.Header.Set("Github-Public-Key-Identifier", "k1")
	req.Header.Set("Github-Public-Key-Signature", base64.StdEncoding.EncodeToString(signature))
	return req
}

func handler(t testing.TB, w *admintest.World, r *reporter, action leaks.Action, fail error) http.Handler {
	t.Helper()
	keys, err := leaks.ParseKeys(r.keys)
	if err != nil {
		t.Fatal(err)
	}
	h, err := leaks.New(w.Service, leaks.Options{Keys: keys, Action: action, Log: w.Log, Find: func(ctx context.Context, text []byte) (tokenstore.Match, error) {
		if fail != nil {
			return tokenstore.Match{}, fail
		}
		m, err := w.Service.Introspect(ctx, admin.Operator(""), tokenstore.SecretFrom(string(text)))
		if err != nil {
			return m, tokenstore.ErrNotFound
		}
		return m, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestReportEndsTheToken(t *testing.T) {
	t.Parallel()
	for action, want := range map[leaks.Action]tokenstore.State{leaks.Disable: tokenstore.StateDisabled, leaks.Revoke: tokenstore.StateRevoked} {
		w, r := admintest.New(t), newReporter(t)
		leaked := w.Make(admin.Spec{Name: "leaked", Scopes: []string{"cards"}})
		kept := w.Make(admin.Spec{Name: "kept", Scopes: []string{"cards"}})
		body, err := json.Marshal([]map[string]string{
			{"token": leaked.Secret.Reveal(), "type": "tokenward", "url": "https://example.com/a", "source": "content"},
			{"token": "nothing of ours", "type": "tokenward"},
		})
		if err != nil {
			t.Fatal(err)
		}
		h := handler(t, w, r, action, nil)
		for range 2 { // it may come twice
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r.request(t, string(body)))
			if text := rec.Body.String(); rec.Code != http.StatusOK || !strings.Contains(text, `"true_positive"`) || !strings.Contains(text, `"false_positive"`) || strings.Contains(text, leaked.Secret.Reveal()) {
				t.Errorf("%s: %d %s", action, rec.Code, text)
			}
		}
		if got := w.Token(leaked.ID).State; got != want {
			t.Errorf("%s: the token is %s", action, got)
		}
		if got := w.Token(kept.ID).State; got != tokenstore.StateActive {
			t.Errorf("%s: another token is %s", action, got)
		}
		events := w.Events()
		if last := events[len(events)-1]; last.Actor.Via != leaks.Name || last.Target.Token != uint64(leaked.ID) {
			t.Errorf("%s: the last event is %+v", action, last)
		}
	}
}

// TestLeakReportedTwiceIsToldAsOne: a secret is often found in several places, and a
// receiver knows by the token's revision that it is the same leak.
func TestLeakReportedTwiceIsToldAsOne(t *testing.T) {
	t.Parallel()
	for _, action := range []leaks.Action{leaks.Disable, leaks.Revoke} {
		w, r := admintest.New(t), newReporter(t)
		leaked := w.Make(admin.Spec{Name: "leaked", Scopes: []string{"cards"}})
		keys, err := leaks.ParseKeys(r.keys)
		if err != nil {
			t.Fatal(err)
		}
		told := make(map[uint64]int)
		h, err := leaks.New(w.Service, leaks.Options{
			Keys: keys, Action: action, Log: w.Log,
			Find: func(ctx context.Context, text []byte) (tokenstore.Match, error) {
				return w.Service.Introspect(ctx, admin.Operator(""), tokenstore.SecretFrom(string(text)))
			},
			Reported: func(t *tokenstore.Token) { told[t.Revision]++ },
		})
		if err != nil {
			t.Fatal(err)
		}
		one := `{"token":"` + leaked.Secret.Reveal() + `","type":"tokenward"}`
		for _, body := range []string{"[" + one + "," + one + "]", "[" + one + "]"} {
			h.ServeHTTP(httptest.NewRecorder(), r.request(t, body))
		}
		if now := w.Token(leaked.ID).Revision; len(told) != 1 || told[now] != 3 {
			t.Errorf("%s: told of revisions %v, want %d three times", action, told, now)
		}
	}
}

func TestReportOfASecretThatEndedLeavesTheTokenThatWasRotated(t *testing.T) {
	t.Parallel()
	w, r := admintest.New(t), newReporter(t)
	root := w.Caller(w.Root())
	token := w.Make(admin.Spec{Name: "rotated", Scopes: []string{"cards"}})
	rotated, err := w.Service.Rotate(t.Context(), root, admin.Target{ID: token.ID}, admin.RotateSpec{OldEnds: w.Service.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := leaks.ParseKeys(r.keys)
	if err != nil {
		t.Fatal(err)
	}
	h, err := leaks.New(w.Service, leaks.Options{Keys: keys, Action: leaks.Revoke, Log: w.Log, Find: func(_ context.Context, text []byte) (tokenstore.Match, error) {
		known := w.Token(token.ID)
		for i := range known.Secrets {
			one := known.Secrets[i]
			if !one.Ends.Never { // an hour later
				one.Ends = tokenstore.EndsAt(w.Service.Now())
			}
			if one.Last4 == string(text[len(text)-4:]) {
				return tokenstore.Match{Token: known, Secret: &one}, nil
			}
		}
		return tokenstore.Match{}, tokenstore.ErrNotFound
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		secret tokenstore.Secret
		want   tokenstore.State
	}{{token.Secret, tokenstore.StateActive}, {rotated.Secret, tokenstore.StateRevoked}} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r.request(t, `[{"token":"`+test.secret.Reveal()+`"}]`))
		if got := w.Token(token.ID).State; rec.Code != http.StatusOK || !strings.Contains(rec.Body.String(), `"true_positive"`) || got != test.want {
			t.Errorf("%d %s, the token is %s, want %s", rec.Code, rec.Body, got, test.want)
		}
	}
}

func TestReportThatIsNotSoundIsRefused(t *testing.T) {
	t.Parallel()
	w, r, stranger := admintest.New(t), newReporter(t), newReporter(t)
	leaked := w.Make(admin.Spec{Name: "leaked", Scopes: []string{"cards"}})
	body := `[{"token":"` + leaked.Secret.Reveal() + `"}]`
	h := handler(t, w, r, leaks.Revoke, nil)
	for name, test := range map[string]struct {
		request func() *http.Request
		status  int
	}{
		"another key": {func() *http.Request { return stranger.request(t, body) }, 401},
		"an unknown key": {func() *http.Request {
			q := r.request(t, body)
			q.Header.Set("Github-Public-Key-Identifier", "k2")
			return q
		}, 401},
		"no signature": {func() *http.Request {
			q := r.request(t, body)
			q.Header.Del("Github-Public-Key-Signature")
			return q
		}, 401},
		"two signatures": {func() *http.Request {
			q := r.request(t, body)
			q.Header.Add("Github-Public-Key-Signature", "AA==")
			return q
		}, 401},
		"another body": {func() *http.Request {
			signed := r.request(t, `[]`)
			q := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
			q.Header = signed.Header
			return q
		}, 401},
		"no list":     {func() *http.Request { return r.request(t, `{}`) }, 400},
		"too long":    {func() *http.Request { return r.request(t, `[`+strings.Repeat(`{},`, 400_000)+`{}]`) }, 413},
		"a long body": {func() *http.Request { return r.request(t, strings.Repeat(" ", 1<<20)+body) }, 413},
		"a get":       {func() *http.Request { q := r.request(t, body); q.Method = http.MethodGet; return q }, 405},
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, test.request())
		if rec.Code != test.status || rec.Body.Len() != 0 {
			t.Errorf("%s: %d %s", name, rec.Code, rec.Body)
		}
	}
	if got := w.Token(leaked.ID).State; got != tokenstore.StateActive {
		t.Errorf("the token is %s", got)
	}
	rec := httptest.NewRecorder()
	handler(t, w, r, leaks.Revoke, errors.New("the store is away")).ServeHTTP(rec, r.request(t, body))
	if rec.Code != http.StatusServiceUnavailable || rec.Header().Get("Retry-After") == "" {
		t.Errorf("while the store is away: %d", rec.Code)
	}
}

func TestReportedURLDoesNotBringTheSecretIntoTheLog(t *testing.T) {
	t.Parallel()
	w, r := admintest.New(t), newReporter(t)
	var log bytes.Buffer
	w.Log = slog.New(slog.NewJSONHandler(&log, nil))
	one, other := w.Make(admin.Spec{Name: "one", Scopes: []string{"cards"}}), w.Make(admin.Spec{Name: "other", Scopes: []string{"cards"}})
	body, err := json.Marshal([]map[string]string{
		{"token": one.Secret.Reveal(), "url": "https://example.com/?a=" + one.Secret.Reveal() + "&b=" + other.Secret.Reveal(), "source": one.Secret.Reveal()},
		{"token": other.Secret.Reveal(), "url": strings.Repeat("x", 500) + other.Secret.Reveal()},
		{"token": ""},
	})
	if err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	handler(t, w, r, leaks.Revoke, nil).ServeHTTP(rec, r.request(t, string(body)))
	text := log.String()
	if rec.Code != http.StatusOK || !strings.Contains(text, "https://example.com/?a=REDACTED") {
		t.Errorf("%d, the log has %s", rec.Code, text)
	}
	for _, secret := range []string{one.Secret.Reveal(), other.Secret.Reveal()} {
		if strings.Contains(text, secret[:10]) {
			t.Errorf("the log has the secret: %s", text)
		}
	}
}

func FuzzParseKeys(f *testing.F) {
	f.Add(newReporter(f).keys)
	f.Add([]byte(`{"public_keys":[{"key_identifier":"a","key":"-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if keys, err := leaks.ParseKeys(data); err == nil && len(keys) == 0 {
			t.Error("no key, and no error")
		}
	})
}

// unread is a body that nobody may read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body of a report that no known key signed was read")
	return 0, io.EOF
}

// TestStrangersReportsAreNotReadAndDoNotFillTheLog sends what names no configured key.
func TestStrangersReportsAreNotReadAndDoNotFillTheLog(t *testing.T) {
	var log bytes.Buffer
	w := admintest.New(t)
	w.Log = slog.New(slog.NewTextHandler(&log, nil))
	h := handler(t, w, newReporter(t), leaks.Disable, nil)
	for range 100 {
		req := httptest.NewRequest(http.MethodPost, "/v1/leaks", unread{t})
		req.Header.Set("Github-Public-Key-Identifier", "another")
		req.Header.Set("Github-Public-Key-Signature", "AAAA")
		rec := httptest.NewRecorder()
		if h.ServeHTTP(rec, req); rec.Code != http.StatusUnauthorized {
			t.Fatalf("status %d", rec.Code)
		}
	}
	if n := strings.Count(log.String(), "\n"); n < 1 || n > 2 { // the minute may end meanwhile
		t.Errorf("100 reports of strangers make %d lines", n)
	}
}

// trickle is a body of which a byte comes each second, in the time of a bubble.
type trickle struct{}

func (trickle) Read(p []byte) (int, error) {
	time.Sleep(time.Second) //nolint:forbidigo // in a bubble
	p[0] = ' '
	return 1, nil
}

// TestTricklingReportGivesItsPlaceBack keeps every place busy by reports that arrive
// slower than anybody waits.
func TestTricklingReportGivesItsPlaceBack(t *testing.T) {
	reporter := newReporter(t)
	h := handler(t, admintest.New(t), reporter, leaks.Disable, nil)
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var senders sync.WaitGroup
		for range 4 {
			senders.Go(func() {
				req := reporter.request(t, "[]")
				req.Body = io.NopCloser(trickle{})
				w := httptest.NewRecorder()
				if h.ServeHTTP(w, req); w.Code != http.StatusRequestTimeout {
					t.Errorf("status %d", w.Code)
				}
			})
		}
		senders.Wait()
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("they held their places for %s", took)
		}
	})
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, reporter.request(t, "[]")); w.Code != http.StatusOK {
		t.Errorf("the next report: %d", w.Code)
	}
}

// TestNoReportIsLeftAsideForItsLength: GitHub sends as many finds at once as it has, and
// each is of a secret that everybody can read.
func TestNoReportIsLeftAsideForItsLength(t *testing.T) {
	t.Parallel()
	w, r := admintest.New(t), newReporter(t)
	leaked := w.Make(admin.Spec{Name: "leaked", Scopes: []string{"cards"}})
	list := make([]map[string]string, 0, 5001)
	for i := range 5000 {
		list = append(list, map[string]string{"token": fmt.Sprintf("another_%d", i), "type": "tokenward", "url": "https://example.com/a"})
	}
	list = append(list, map[string]string{"token": leaked.Secret.Reveal(), "type": "tokenward"})
	body, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	handler(t, w, r, leaks.Revoke, nil).ServeHTTP(rec, r.request(t, string(body)))
	if got := strings.Count(rec.Body.String(), `"false_positive"`); rec.Code != http.StatusOK || got != 5000 || w.Token(leaked.ID).State != tokenstore.StateRevoked {
		t.Errorf("%d, %d finds are told to be none of ours, the token is %s", rec.Code, got, w.Token(leaked.ID).State)
	}
}

// TestSignedReportThatCannotBeReadIsToldOf: its sender knows of leaked secrets, and will
// not send it again.
func TestSignedReportThatCannotBeReadIsToldOf(t *testing.T) {
	t.Parallel()
	w, r := admintest.New(t), newReporter(t)
	keys, err := leaks.ParseKeys(r.keys)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ body, told string }{
		"no list":  {`{"token":"tw_secret"}`, "cannot be read"},
		"too long": {`[` + strings.Repeat(`{"token":"tw_secret"},`, 60_000) + `{}]`, "was too long"},
	} {
		var log bytes.Buffer
		h, err := leaks.New(w.Service, leaks.Options{Keys: keys, Action: leaks.Disable, Log: slog.New(slog.NewTextHandler(&log, nil)), Find: func(context.Context, []byte) (tokenstore.Match, error) {
			return tokenstore.Match{}, tokenstore.ErrNotFound
		}})
		if err != nil {
			t.Fatal(err)
		}
		h.ServeHTTP(httptest.NewRecorder(), r.request(t, test.body))
		if text := log.String(); !strings.Contains(text, test.told) || strings.Contains(text, "tw_secret") {
			t.Errorf("%s: the log says %q", name, text)
		}
	}
}
