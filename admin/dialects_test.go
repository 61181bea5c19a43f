package admin_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tokenward/admin"
	"tokenward/admin/admintest"
	"tokenward/admin/fynn"
	"tokenward/admin/mailtrap"
	"tokenward/admin/native"
	"tokenward/admin/unit"
	"tokenward/audit"
	"tokenward/tokenstore"
)

// allFaces serves the four token APIs over one service.
func allFaces(w *admintest.World) http.Handler {
	g := w.Gate()
	return admintest.Handler(
		unit.New(w.Service, g, w.Log),
		fynn.New(w.Service, g, w.Log),
		mailtrap.New(w.Service, g, w.Log, mailtrap.Options{}),
		native.New(w.Service, g, w.Log, native.Options{}),
	)
}

// The verbs that the dialects have in common.
type wireVerb string

const (
	toList   wireVerb = "list"
	toCreate wireVerb = "create"
	toShow   wireVerb = "show"
	toReset  wireVerb = "reset"
	toRevoke wireVerb = "revoke"
)

// call is a request in one dialect.
type call struct{ method, target, body string }

// home is where a caller's paths lead: its own account and owner, for root those
// of the configuration.
type home struct{ account, owner uint64 }

func homeOf(t *tokenstore.Token) home {
	if t.IsRoot() {
		return home{1, 1}
	}
	return home{t.Account, t.Owner}
}

// dialect is one wire contract. A verb that it lacks has no entry in calls.
type dialect struct {
	name    string
	calls   map[wireVerb]func(at home, id tokenstore.ID) call
	success map[wireVerb]int
	missing int // what an id gives that leads nowhere

	// shown returns the ids of the tokens that a list or an object shows.
	shown func(body []byte) []tokenstore.ID
	// made returns the token that an answer makes.
	made func(body []byte) (id tokenstore.ID, secret string)
}

// newName and newEnd are of every token that a dialect creates. The rest is the
// caller's own, so that all dialects can say the same.
const (
	newName = "made by a dialect"
	newEnd  = "2026-11-21T12:30:00Z"
)

// dialects are the four APIs, one of them under both of its prefixes.
func dialects() []dialect {
	return []dialect{unitDialect(), fynnDialect(),
		mailtrapDialect("mailtrap", func(home) string { return "/api/api_tokens" }),
		mailtrapDialect("mailtrap by account", func(at home) string { return fmt.Sprintf("/api/accounts/%d/api_tokens", at.account) }),
		nativeDialect(),
	}
}

func unitDialect() dialect {
	path := func(at home) string { return fmt.Sprintf("/users/%d/api-tokens", at.owner) }
	type token struct {
		ID         string
		Attributes struct{ Token string }
	}
	return dialect{
		name: "unit",
		calls: map[wireVerb]func(home, tokenstore.ID) call{
			toList: func(at home, _ tokenstore.ID) call { return call{"GET", path(at), ""} },
			toCreate: func(at home, _ tokenstore.ID) call {
				return call{"POST", path(at), `{"data":{"type":"apiToken","attributes":{"description":"` + newName + `","scope":"accounts user:api-token:read user:api-token:write","expiration":"` + newEnd + `"}}}`}
			},
			toRevoke: func(at home, id tokenstore.ID) call { return call{"DELETE", path(at) + "/" + id.String(), ""} },
		},
		success: map[wireVerb]int{toList: 200, toCreate: 201, toRevoke: 200},
		missing: 400,
		shown: func(body []byte) []tokenstore.ID {
			many := decode[struct{ Data []token }](body)
			return each(many.Data, func(t token) tokenstore.ID { return number(t.ID) })
		},
		made: func(body []byte) (tokenstore.ID, string) {
			one := decode[struct{ Data token }](body).Data
			return number(one.ID), one.Attributes.Token
		},
	}
}

func fynnDialect() dialect {
	const path = "/user/api-tokens"
	type token struct{ ID, Token string }
	return dialect{
		name: "fynn",
		calls: map[wireVerb]func(home, tokenstore.ID) call{
			toList: func(home, tokenstore.ID) call { return call{"GET", path + "?limit=100", ""} },
			toCreate: func(home, tokenstore.ID) call {
				return call{"POST", path, `{"description":"` + newName + `","expiresAt":"` + newEnd + `"}`}
			},
			toRevoke: func(_ home, id tokenstore.ID) call { return call{"DELETE", path + "/" + fynn.FormatID(id), ""} },
		},
		success: map[wireVerb]int{toList: 200, toCreate: 201, toRevoke: 204},
		missing: 404,
		shown: func(body []byte) []tokenstore.ID {
			many := decode[struct{ Data []token }](body)
			return each(many.Data, func(t token) tokenstore.ID { return fynnID(t.ID) })
		},
		made: func(body []byte) (tokenstore.ID, string) {
			one := decode[token](body)
			return fynnID(one.ID), one.Token
		},
	}
}

func fynnID(text string) tokenstore.ID {
	id, _ := fynn.ParseID(text)
	return id
}

func mailtrapDialect(name string, path func(home) string) dialect {
	type token struct {
		ID    tokenstore.ID
		Token string
	}
	return dialect{
		name: name,
		calls: map[wireVerb]func(home, tokenstore.ID) call{
			toList: func(at home, _ tokenstore.ID) call { return call{"GET", path(at), ""} },
			toCreate: func(at home, _ tokenstore.ID) call {
				return call{"POST", path(at), `{"name":"` + newName + `","expires_at":"` + newEnd + `","resources":[{"resource_type":"account","resource_id":` + strconv.FormatUint(at.account, 10) + `,"access_level":100}]}`}
			},
			toShow: func(at home, id tokenstore.ID) call { return call{"GET", path(at) + "/" + id.String(), ""} },
			toReset: func(at home, id tokenstore.ID) call {
				return call{"POST", path(at) + "/" + id.String() + "/reset", `{"expires_at":"` + newEnd + `"}`}
			},
			toRevoke: func(at home, id tokenstore.ID) call { return call{"DELETE", path(at) + "/" + id.String(), ""} },
		},
		success: map[wireVerb]int{toList: 200, toCreate: 200, toShow: 200, toReset: 200, toRevoke: 204},
		missing: 404,
		shown: func(body []byte) []tokenstore.ID {
			if body[0] == '{' {
				return []tokenstore.ID{decode[token](body).ID}
			}
			return each(decode[[]token](body), func(t token) tokenstore.ID { return t.ID })
		},
		made: func(body []byte) (tokenstore.ID, string) {
			one := decode[token](body)
			return one.ID, one.Token
		},
	}
}

func nativeDialect() dialect {
	const path = "/v1/tokens"
	type token struct {
		ID    tokenstore.ID
		Token string
	}
	return dialect{
		name: "native",
		calls: map[wireVerb]func(home, tokenstore.ID) call{
			toList: func(at home, _ tokenstore.ID) call {
				return call{"GET", fmt.Sprintf("%s?account=%d", path, at.account), ""}
			},
			toCreate: func(home, tokenstore.ID) call {
				return call{"POST", path, `{"name":"` + newName + `","expires_at":"` + newEnd + `"}`}
			},
			toShow: func(_ home, id tokenstore.ID) call { return call{"GET", path + "/" + id.String(), ""} },
			toReset: func(_ home, id tokenstore.ID) call {
				return call{"POST", path + "/" + id.String() + "/reset", `{"expires_at":"` + newEnd + `"}`}
			},
			toRevoke: func(_ home, id tokenstore.ID) call { return call{"DELETE", path + "/" + id.String(), ""} },
		},
		success: map[wireVerb]int{toList: 200, toCreate: 201, toShow: 200, toReset: 200, toRevoke: 200},
		missing: 404,
		shown: func(body []byte) []tokenstore.ID {
			if many := decode[struct{ Items []token }](body); many.Items != nil {
				return each(many.Items, func(t token) tokenstore.ID { return t.ID })
			}
			return []tokenstore.ID{decode[token](body).ID}
		},
		made: func(body []byte) (tokenstore.ID, string) {
			one := decode[token](body)
			return one.ID, one.Token
		},
	}
}

func decode[T any](body []byte) (v T) {
	_ = json.Unmarshal(body, &v) // what is not there is seen by its absence
	return v
}

func each[A, B any](all []A, f func(A) B) []B {
	out := make([]B, len(all))
	for i := range all {
		out[i] = f(all[i])
	}
	return out
}

func number(s string) tokenstore.ID {
	id, _ := tokenstore.ParseID(s)
	return id
}

// stage is a world with the four APIs and everybody in it.
type stage struct {
	*admintest.World
	t    *testing.T
	h    http.Handler
	cast map[string]admintest.Holder
}

func newStage(t *testing.T) *stage {
	t.Helper()
	w := admintest.New(t)
	s := &stage{World: w, t: t, h: allFaces(w), cast: w.Cast().Names()}
	w.Events()
	return s
}

// send makes one call of a dialect by a holder.
func (s *stage) send(d dialect, v wireVerb, by admintest.Holder, id tokenstore.ID) *httptest.ResponseRecorder {
	s.t.Helper()
	return s.sendAt(d, v, by, homeOf(s.Token(by.ID)), id)
}

func (s *stage) sendAt(d dialect, v wireVerb, by admintest.Holder, at home, id tokenstore.ID) *httptest.ResponseRecorder {
	s.t.Helper()
	c := d.calls[v](at, id)
	return admintest.Send(s.t, s.h, by, c.method, c.target, c.body, "Content-Type", "application/json")
}

// must is send with success.
func (s *stage) must(d dialect, v wireVerb, by admintest.Holder, id tokenstore.ID) []byte {
	s.t.Helper()
	rec := s.send(d, v, by, id)
	if rec.Code != d.success[v] {
		s.t.Fatalf("%s by %s: %d %s", v, d.name, rec.Code, rec.Body)
	}
	return rec.Body.Bytes()
}

// maker makes somebody who is restricted to its account, which every dialect can say.
func (s *stage) maker() admintest.Holder {
	return s.Make(admin.Spec{
		Name:   "maker",
		Scopes: []string{"accounts", tokenstore.ScopeTokenRead, tokenstore.ScopeTokenWrite},
		Resources: &tokenstore.Resources{Grants: []tokenstore.Grant{
			{Type: tokenstore.TypeAccount, ID: "1", Level: tokenstore.LevelWrite},
		}},
		Limits: &tokenstore.Limits{Uses: 1000},
	})
}

// TestOneTokenIsTheSameThroughEveryAPI makes a token by each API, and lists,
// shows, resets and revokes it by each.
func TestOneTokenIsTheSameThroughEveryAPI(t *testing.T) {
	for _, maker := range dialects() {
		for _, other := range dialects() {
			t.Run(maker.name+", then "+other.name, func(t *testing.T) {
				s := newStage(t)
				by := s.maker()
				id, secret := maker.made(s.must(maker, toCreate, by, 0))
				holder := admintest.Holder{ID: id, Secret: tokenstore.SecretFrom(secret)}
				if ids := other.shown(s.must(other, toList, by, 0)); !slices.Contains(ids, id) {
					t.Errorf("the list lacks token %d: %v", id, ids)
				}
				if _, ok := other.calls[toShow]; ok {
					if ids := other.shown(s.must(other, toShow, by, id)); !slices.Equal(ids, []tokenstore.ID{id}) {
						t.Errorf("shown is %v, not token %d", ids, id)
					}
				}
				if _, ok := other.calls[toReset]; ok {
					next, _ := other.made(s.must(other, toReset, by, id))
					if s.Token(id).ReplacedBy != next || next == 0 {
						t.Errorf("token %d was not reset: %+v", id, s.Token(id))
					}
				}
				if rec := admintest.Send(t, s.h, holder, "GET", "/v1/tokens/self", ""); rec.Code != http.StatusOK {
					t.Errorf("the secret does not work: %d", rec.Code)
				}
				s.must(other, toRevoke, by, id)
				if got := s.Token(id).State; got != tokenstore.StateRevoked {
					t.Errorf("the token is %v", got)
				}
				if rec := admintest.Send(t, s.h, holder, "GET", "/v1/tokens/self", ""); rec.Code != http.StatusUnauthorized {
					t.Errorf("the revoked secret gives %d", rec.Code)
				}
				for _, d := range dialects()[:4] { // the native API shows it until it is swept
					if ids := d.shown(s.must(d, toList, by, 0)); slices.Contains(ids, id) {
						t.Errorf("%s lists a revoked token", d.name)
					}
				}
			})
		}
	}
}

// TestEveryAPIStoresTheSame compares what a call of each API leaves in the store
// and in the audit log.
func TestEveryAPIStoresTheSame(t *testing.T) {
	type trace struct {
		tokens []*tokenstore.Token
		events []audit.Event
	}
	for _, v := range []wireVerb{toCreate, toReset, toRevoke} {
		t.Run(string(v), func(t *testing.T) {
			var first *trace
			for _, d := range dialects() {
				if _, ok := d.calls[v]; !ok {
					continue
				}
				s := newStage(t)
				by := s.maker()
				target := by.ID + 1
				if v != toCreate {
					native := nativeDialect()
					target, _ = native.made(s.must(native, toCreate, by, 0))
				}
				s.Events()
				s.Clock.Advance(time.Minute)
				s.must(d, v, by, target)
				got := &trace{events: s.Events()}
				for i := range got.events {
					e := &got.events[i]
					if want, _, _ := strings.Cut(d.name, " "); string(e.Actor.Via) != want {
						t.Errorf("%s: the event tells of %s", d.name, e.Actor.Via)
					}
					e.Actor.Via = ""
					got.tokens = append(got.tokens, unsecret(s.Token(tokenstore.ID(e.Target.Token))))
				}
				if first == nil {
					first = got
					continue
				}
				if diff := cmp.Diff(first.tokens, got.tokens, cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
					t.Errorf("%s stores another token (-%s +%s):\n%s", d.name, dialects()[0].name, d.name, diff)
				}
				if diff := cmp.Diff(first.events, got.events, cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
					t.Errorf("%s tells the audit log something else:\n%s", d.name, diff)
				}
			}
		})
	}
}

// TestEveryAPITellsOfRefusals: whichever API somebody tries, the audit log has it.
func TestEveryAPITellsOfRefusals(t *testing.T) {
	for _, d := range dialects() {
		for _, v := range []wireVerb{toCreate, toReset, toRevoke} {
			if _, ok := d.calls[v]; !ok {
				continue
			}
			for _, caller := range []string{"reader", "plain", "replaced"} {
				t.Run(fmt.Sprintf("%s %s by %s", d.name, v, caller), func(t *testing.T) {
					s := newStage(t)
					if rec := s.send(d, v, s.cast[caller], s.cast["peer"].ID); rec.Code != http.StatusForbidden {
						t.Fatalf("answer %d", rec.Code)
					}
					events := s.Events()
					if len(events) != 1 || events[0].Outcome != audit.Refusal || string(events[0].Verb) != string(v) || events[0].Actor.Token != uint64(s.cast[caller].ID) {
						t.Errorf("the audit log was told %+v", events)
					}
				})
			}
		}
	}
}

// unsecret takes away what is random in a token.
func unsecret(t *tokenstore.Token) *tokenstore.Token {
	c := t.Clone()
	for i := range c.Secrets {
		c.Secrets[i].Digest, c.Secrets[i].Last4 = tokenstore.Digest{}, ""
	}
	return c
}

// judgement is what the management rule says, in words that no dialect has.
type judgement string

const (
	isOK           judgement = "ok"
	isUnauthorized judgement = "unauthorized"
	isForbidden    judgement = "forbidden"
	isMissing      judgement = "missing"
)

func (d dialect) status(v wireVerb, o judgement) int {
	switch o {
	case isOK:
		return d.success[v]
	case isUnauthorized:
		return http.StatusUnauthorized
	case isForbidden:
		return http.StatusForbidden
	}
	return d.missing
}

// ruling is the management rule for one caller: what it gets when it lists, when
// it creates, and when it shows, resets and revokes the token of a peer, which
// is unrestricted and of account 1 and owner 1.
type ruling struct {
	caller                            string
	list, create, show, reset, revoke judgement
}

// rulings are everybody's. TestManagementRuleHoldsThroughEveryAPI runs them
// through every dialect, which may be narrower only as narrower says.
var rulings = []ruling{
	{"root", isOK, isOK, isOK, isOK, isOK},
	{"admin", isOK, isOK, isOK, isOK, isOK},
	{"weaker", isOK, isOK, isOK, isForbidden, isOK}, // lacks a scope that a reset would hand out
	{"brief", isOK, isOK, isOK, isOK, isOK},         // what it makes ends when it does
	{"limited", isOK, isOK, isOK, isForbidden, isOK},
	{"sourced", isOK, isOK, isOK, isForbidden, isOK},
	{"reader", isOK, isForbidden, isOK, isForbidden, isForbidden},
	{"plain", isForbidden, isForbidden, isForbidden, isForbidden, isForbidden},
	{"manager", isOK, isOK, isOK, isForbidden, isOK},               // restricted to its account: the peer is not
	{"viewer", isOK, isForbidden, isMissing, isMissing, isMissing}, // sees what is no wider than itself
	{"boxed", isOK, isForbidden, isMissing, isMissing, isMissing},
	{"inbox", isForbidden, isForbidden, isForbidden, isForbidden, isForbidden},
	{"other", isOK, isOK, isOK, isForbidden, isOK}, // another owner of the account
	{"foreign", isOK, isOK, isMissing, isMissing, isMissing},
	{"disabled", isUnauthorized, isUnauthorized, isUnauthorized, isUnauthorized, isUnauthorized},
	{"expired", isUnauthorized, isUnauthorized, isUnauthorized, isUnauthorized, isUnauthorized},
	{"ended", isUnauthorized, isUnauthorized, isUnauthorized, isUnauthorized, isUnauthorized},
	{"replaced", isOK, isForbidden, isForbidden, isForbidden, isForbidden}, // lists itself alone
	{"rotated", isOK, isForbidden, isForbidden, isForbidden, isForbidden},
}

// narrower are the places where a contract gives less than the rule: its paths
// name one owner's tokens.
var narrower = map[string]judgement{
	"unit revoke other": isMissing,
	"fynn revoke other": isMissing,
}

func (r ruling) of(v wireVerb) judgement {
	return map[wireVerb]judgement{toList: r.list, toCreate: r.create, toShow: r.show, toReset: r.reset, toRevoke: r.revoke}[v]
}

func TestManagementRuleHoldsThroughEveryAPI(t *testing.T) {
	everybody := slices.Sorted(maps.Keys((&admintest.Cast{}).Names()))
	for _, r := range rulings {
		everybody = slices.DeleteFunc(everybody, func(name string) bool { return name == r.caller })
	}
	if !slices.Equal(everybody, []string{"peer"}) {
		t.Errorf("callers without a ruling: %v", everybody)
	}
	for _, r := range rulings {
		t.Run(r.caller, func(t *testing.T) {
			s := newStage(t)
			by := s.cast[r.caller]
			for _, d := range dialects() {
				for _, v := range []wireVerb{toList, toCreate, toShow, toReset, toRevoke} {
					if _, ok := d.calls[v]; !ok {
						continue
					}
					peer := s.Make(admin.Spec{Name: "peer", Scopes: []string{"accounts", "cards", tokenstore.ScopeTokenRead, tokenstore.ScopeTokenWrite}})
					before := s.Token(peer.ID)
					want := r.of(v)
					if narrow, ok := narrower[d.name+" "+string(v)+" "+r.caller]; ok {
						want = narrow
					}
					rec := s.send(d, v, by, peer.ID)
					if rec.Code != d.status(v, want) {
						t.Errorf("%s by %s: %d, want %d (%s): %s", v, d.name, rec.Code, d.status(v, want), want, rec.Body)
					}
					if want != isOK && !reflect.DeepEqual(before, s.Token(peer.ID)) {
						t.Errorf("%s by %s was refused, and changed the token all the same", v, d.name)
					}
				}
			}
		})
	}
}

// TestAnyTokenMayEndItself: no scope is needed, and neither grace period nor
// restriction is in the way.
func TestAnyTokenMayEndItself(t *testing.T) {
	for _, d := range dialects() {
		t.Run(d.name, func(t *testing.T) {
			s := newStage(t)
			for _, r := range rulings {
				by := s.cast[r.caller]
				want := isOK
				switch {
				case r.list == isUnauthorized:
					want = isUnauthorized
				case r.caller == "root" && d.name != "native":
					want = isMissing // its account is in no path
				}
				if _, has := d.calls[toShow]; has {
					if rec := s.send(d, toShow, by, by.ID); rec.Code != d.status(toShow, want) {
						t.Errorf("%s shows itself: %d, want %s: %s", r.caller, rec.Code, want, rec.Body)
					}
				}
				if rec := s.send(d, toRevoke, by, by.ID); rec.Code != d.status(toRevoke, want) {
					t.Errorf("%s revokes itself: %d, want %s: %s", r.caller, rec.Code, want, rec.Body)
				}
			}
		})
	}
}

// TestProbingAnyAPILearnsNothing compares, for callers and verbs of every kind, the
// answer about what the caller may not see with the answer about what does not
// exist: status, header, body, and how often the store was asked.
func TestProbingAnyAPILearnsNothing(t *testing.T) {
	const nobody = 1 << 40
	s := newStage(t)
	for _, d := range dialects() {
		for _, v := range []wireVerb{toShow, toReset, toRevoke} {
			if _, ok := d.calls[v]; !ok {
				continue
			}
			for _, caller := range []string{"admin", "weaker", "reader", "plain", "manager", "viewer", "boxed", "inbox", "foreign", "replaced"} {
				t.Run(fmt.Sprintf("%s %s by %s", d.name, v, caller), func(t *testing.T) {
					by := s.cast[caller]
					hidden := map[string]tokenstore.ID{"another account's": s.cast["foreign"].ID, "root's": s.cast["root"].ID}
					if caller == "foreign" {
						hidden["another account's"] = s.cast["peer"].ID
					}
					if d.name == "unit" || d.name == "fynn" {
						hidden["another owner's"] = s.cast["other"].ID
					}
					if caller == "boxed" || caller == "viewer" {
						hidden["a wider one"] = s.cast["peer"].ID
					}
					want := s.probe(func() *httptest.ResponseRecorder { return s.send(d, v, by, nobody) })
					for name, id := range hidden {
						got := s.probe(func() *httptest.ResponseRecorder { return s.send(d, v, by, id) })
						if got != want {
							t.Errorf("%s token can be told from one that does not exist:\n got %s\nwant %s", name, got, want)
						}
					}
				})
			}
		}
	}
}

// TestPathsOfOthersLearnNothing compares paths that name an account or a user
// that exists with those that name none.
func TestPathsOfOthersLearnNothing(t *testing.T) {
	s := newStage(t)
	for name, c := range map[string]struct {
		d              dialect
		others, nobody home
	}{
		"unit":     {unitDialect(), home{1, 2}, home{1, 999}},
		"mailtrap": {dialects()[3], home{2, 1}, home{999, 1}},
		"native":   {nativeDialect(), home{2, 1}, home{999, 1}},
	} {
		for v := range c.d.calls {
			if name == "native" && v != toList {
				continue // its paths name neither
			}
			for _, caller := range []string{"admin", "plain", "boxed", "replaced"} {
				t.Run(fmt.Sprintf("%s %s by %s", name, v, caller), func(t *testing.T) {
					by := s.cast[caller]
					want := s.probe(func() *httptest.ResponseRecorder { return s.sendAt(c.d, v, by, c.nobody, s.cast["foreign"].ID) })
					got := s.probe(func() *httptest.ResponseRecorder { return s.sendAt(c.d, v, by, c.others, s.cast["foreign"].ID) })
					if got != want {
						t.Errorf("that the other exists can be told:\n got %s\nwant %s", got, want)
					}
				})
			}
		}
	}
}

// probe returns everything that a client can see of an answer, and what the
// store did for it.
func (s *stage) probe(send func() *httptest.ResponseRecorder) string {
	s.t.Helper()
	s.Clock.Advance(time.Hour / 100) // else the audit log's own bound would show in the number of changes
	reads, changes := s.Store.Reads.Load(), s.Store.Changes.Load()
	rec := send()
	if rec.Code < 400 {
		s.t.Errorf("answer %d to a probe", rec.Code)
	}
	var header strings.Builder
	for _, name := range slices.Sorted(maps.Keys(rec.Header())) {
		fmt.Fprintf(&header, "%s: %q ", name, rec.Header()[name])
	}
	return fmt.Sprintf("%d, %s, %s, %d reads, %d changes", rec.Code, header.String(), rec.Body, s.Store.Reads.Load()-reads, s.Store.Changes.Load()-changes)
}

// TestAllAPIsAtOnce lets every API make, list and revoke tokens at the same
// time: no id comes twice, and nothing is left.
func TestAllAPIsAtOnce(t *testing.T) {
	const callers, rounds = 4, 5
	s := newStage(t)
	by := s.maker()
	at := homeOf(s.Token(by.ID))
	var (
		all  sync.WaitGroup
		mu   sync.Mutex // guards seen
		seen = make(map[tokenstore.ID]string)
	)
	for _, d := range dialects() {
		for range callers {
			all.Go(func() {
				for range rounds {
					rec := s.sendAt(d, toCreate, by, at, 0)
					id, _ := d.made(rec.Body.Bytes())
					mu.Lock()
					if other, twice := seen[id]; twice || id == 0 {
						t.Errorf("%s made token %d, as %q did: %d %s", d.name, id, other, rec.Code, rec.Body)
					}
					seen[id] = d.name
					mu.Unlock()
					if ids := d.shown(s.sendAt(d, toList, by, at, 0).Body.Bytes()); !slices.Contains(ids, id) {
						t.Errorf("%s does not list token %d, which it made", d.name, id)
					}
					if rec := s.sendAt(d, toRevoke, by, at, id); rec.Code != d.success[toRevoke] {
						t.Errorf("%s revokes token %d: %d %s", d.name, id, rec.Code, rec.Body)
					}
				}
			})
		}
	}
	all.Wait()
	for id := range seen {
		if got := s.Token(id).State; got != tokenstore.StateRevoked {
			t.Errorf("token %d is left %v", id, got)
		}
	}
}

// TestStalledBodyIsATimeoutInEachShape, and the connection is not used again.
func TestStalledBodyIsATimeoutInEachShape(t *testing.T) {
	w := admintest.New(t)
	caller := w.Cast().Admin
	h := allFaces(w)
	for _, d := range dialects() {
		c := d.calls[toCreate]
		if c == nil {
			continue
		}
		one := c(homeOf(w.Token(caller.ID)), 0)
		r := httptest.NewRequest(one.method, one.target, io.MultiReader(strings.NewReader(one.body[:9]), stalledReader{}))
		r.Header.Set("Authorization", "Bearer "+caller.Secret.Reveal())
		r.Header.Set("Content-Type", "application/json")
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		refused := httptest.NewRecorder()
		r = httptest.NewRequest(one.method, one.target, strings.NewReader("{"))
		r.Header.Set("Authorization", "Bearer "+caller.Secret.Reveal())
		h.ServeHTTP(refused, r)
		if rec.Code != http.StatusRequestTimeout || rec.Header().Get("Connection") != "close" {
			t.Errorf("%s: %d %v", d.name, rec.Code, rec.Header())
		}
		if got, want := rec.Header().Get("Content-Type"), refused.Header().Get("Content-Type"); got != want || !slices.Equal(membersOf(t, rec), membersOf(t, refused)) {
			t.Errorf("%s: %s %s does not look as other refusals do: %s", d.name, got, rec.Body, refused.Body)
		}
	}
}

// membersOf are the names in a JSON object.
func membersOf(t *testing.T, rec *httptest.ResponseRecorder) []string {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal(rec.Body.Bytes(), &object); err != nil {
		t.Fatalf("%s: %v", rec.Body, err)
	}
	return slices.Sorted(maps.Keys(object))
}
