package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"

	"tokenward/enforce"
	"tokenward/tokenstore"
)

// ParentRule says how the API behind tells which resource another belongs to.
type ParentRule struct {
	// Get is the path to ask, in which {id} stands for the resource's id.
	Get string
	// Pointer leads to the parent's id in the JSON answer (RFC 6901).
	Pointer string
	// TTL is how long an answer is believed: 5 min if 0.
	TTL time.Duration
	// Authorization is sent with the question; empty: nothing is.
	Authorization string
}

// The bounds of looking up parents.
const (
	defaultParentTTL  = 5 * time.Minute
	maxParents        = 1 << 16 // answers kept, about 150 bytes each
	maxParentFlights  = 64      // questions at one moment; more fail
	maxParentAnswer   = 1 << 20 // bytes of an answer
	parentTimeout     = 5 * time.Second
	parentAbsentMaxim = 10 * time.Second // how long "there is none" is believed
)

// Parents asks the upstream what a resource belongs to, and keeps the answers. It
// is bounded in memory and in concurrent questions, and asks once on behalf of all
// requests that want the same answer. Every failure is an error, which refuses the
// request. It is safe for concurrent use.
type Parents struct {
	base    *url.URL
	rules   map[string]ParentRule
	client  *http.Client
	now     func() time.Time
	answers *otter.Cache[resourceName, parentAnswer]
	flights singleflight.Group
	room    chan struct{}
}

type resourceName struct{ typ, id string }

type parentAnswer struct {
	parent       string    // empty: there is none
	asked, until time.Time // it is believed from when it was asked for until then
}

var _ enforce.ParentFinder = (*Parents)(nil)

// NewParents checks the rules, by resource type. base is the upstream, scheme and
// authority; transport is how it is reached.
func NewParents(base *url.URL, transport http.RoundTripper, rules map[string]ParentRule, now func() time.Time) (*Parents, error) {
	p := &Parents{
		base: base, rules: make(map[string]ParentRule, len(rules)), now: now, room: make(chan struct{}, maxParentFlights),
		client: &http.Client{Transport: transport, Timeout: parentTimeout, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // an answer from elsewhere is no answer
		}},
	}
	for typ, r := range rules {
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("parent of %s: %w", typ, err)
		}
		if r.TTL == 0 {
			r.TTL = defaultParentTTL
		}
		p.rules[typ] = r
	}
	var err error
	p.answers, err = otter.New(&otter.Options[resourceName, parentAnswer]{MaximumSize: maxParents})
	return p, err
}

func (r *ParentRule) check() error {
	if !strings.HasPrefix(r.Get, "/") || strings.Count(r.Get, "{id}") != 1 || strings.ContainsAny(r.Get, "#\\ ") {
		return fmt.Errorf("%q must be a path with {id} in it, such as /cards/{id}", r.Get)
	}
	if r.Pointer == "" || r.Pointer[0] != '/' {
		return fmt.Errorf("%q must be a JSON pointer, such as /data/account/id", r.Pointer)
	}
	if r.TTL < 0 || r.TTL > 24*time.Hour {
		return fmt.Errorf("a ttl of %s is not between 0 and 24h", r.TTL)
	}
	return nil
}

// Parent implements [enforce.ParentFinder].
func (p *Parents) Parent(ctx context.Context, typ string, id []byte) (string, error) {
	rule, ok := p.rules[typ]
	if !ok {
		return "", enforce.ErrNoParent
	}
	name := resourceName{typ, string(id)}
	if a, ok := p.answers.GetIfPresent(name); ok {
		if now := p.now(); now.Before(a.until) && !now.Before(a.asked) { // or the clock was set back
			return a.id()
		}
	}
	// The flight outlives the request that began it: others wait for it too.
	result := p.flights.DoChan(typ+":"+name.id, func() (any, error) { return p.ask(context.WithoutCancel(ctx), name, rule) })
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case r := <-result:
		if r.Err != nil {
			return "", r.Err
		}
		return r.Val.(parentAnswer).id()
	}
}

func (a parentAnswer) id() (string, error) {
	if a.parent == "" {
		return "", enforce.ErrNoParent
	}
	return a.parent, nil
}

func (p *Parents) ask(ctx context.Context, name resourceName, rule ParentRule) (parentAnswer, error) {
	select {
	case p.room <- struct{}{}:
		defer func() { <-p.room }()
	default:
		return parentAnswer{}, errors.New("too many resources are being looked up at once")
	}
	asked := p.now()
	parent, err := p.fetch(ctx, name.id, rule)
	a := parentAnswer{parent: parent, asked: asked, until: asked.Add(rule.TTL)}
	if errors.Is(err, enforce.ErrNoParent) {
		a.until, err = asked.Add(min(rule.TTL, parentAbsentMaxim)), nil
	}
	if err != nil {
		return parentAnswer{}, fmt.Errorf("look up what %s %q belongs to: %w", name.typ, name.id, err)
	}
	p.answers.Set(name, a)
	return a, nil
}

func (p *Parents) fetch(ctx context.Context, id string, rule ParentRule) (string, error) {
	if id == "." || id == ".." { // would climb in the path that is asked
		return "", enforce.ErrNoParent
	}
	path, query, _ := strings.Cut(rule.Get, "?")
	u := &url.URL{Scheme: p.base.Scheme, Host: p.base.Host,
		Opaque: strings.Replace(path, "{id}", url.PathEscape(id), 1), RawQuery: strings.Replace(query, "{id}", url.QueryEscape(id), 1)}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base.String(), nil)
	if err != nil {
		return "", err
	}
	req.URL = u
	req.Header.Set("Accept", "application/json, application/vnd.api+json")
	req.Header.Set("User-Agent", "tokenward")
	if rule.Authorization != "" {
		req.Header.Set("Authorization", rule.Authorization)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxParentAnswer+1))
	switch {
	case err != nil:
		return "", err
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone:
		return "", enforce.ErrNoParent
	case resp.StatusCode != http.StatusOK:
		return "", fmt.Errorf("the API answered with status %d", resp.StatusCode)
	case len(body) > maxParentAnswer:
		return "", fmt.Errorf("the API's answer is longer than %d bytes", maxParentAnswer)
	}
	return parentIn(body, rule.Pointer)
}

// parentIn reads the id that the pointer leads to: a text, or a whole number as it
// is written. Anything else is an error, not an absence.
func parentIn(body []byte, pointer string) (string, error) {
	at := json.RawMessage(body)
	for token := range strings.SplitSeq(pointer[1:], "/") {
		token = strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
		var object map[string]json.RawMessage
		var list []json.RawMessage
		var index int
		switch {
		case json.Unmarshal(at, &object) == nil:
			next, ok := object[token]
			if !ok {
				return "", fmt.Errorf("the API's answer has nothing at %s", pointer)
			}
			at = next
		case json.Unmarshal(at, &list) == nil && json.Unmarshal([]byte(token), &index) == nil && index >= 0 && index < len(list):
			at = list[index]
		default:
			return "", fmt.Errorf("the API's answer has nothing at %s", pointer)
		}
	}
	var text string
	if json.Unmarshal(at, &text) == nil && text != "" && len(text) <= tokenstore.MaxGrantID {
		return text, nil
	}
	var number json.Number
	if json.Unmarshal(at, &number) == nil && !strings.ContainsAny(number.String(), ".eE-") && number != "" {
		return number.String(), nil
	}
	return "", fmt.Errorf("the API's answer holds no id at %s", pointer)
}
