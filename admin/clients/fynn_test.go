package clients

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"
)

// fynnClient is a client as people write it against the vendor's documentation:
// no SDK has these calls. It takes nothing that the documentation does not name.
type fynnClient struct {
	t        *testing.T
	s        *server
	listener string
	secret   string
}

type fynnToken struct {
	ID          string     `json:"id"`
	Description *string    `json:"description"`
	ExpiresAt   *time.Time `json:"expiresAt"`
	CreatedAt   time.Time  `json:"createdAt"`
	UpdatedAt   time.Time  `json:"updatedAt"`
	APIToken    string     `json:"apiToken"`
}

type fynnPage struct {
	Data []fynnToken `json:"data"`
	Meta struct {
		Pagination struct {
			TotalItems     int `json:"totalItems"`
			ItemsPerPage   int `json:"itemsPerPage"`
			CurrentPage    int `json:"currentPage"`
			LastPage       int `json:"lastPage"`
			PageTotalItems int `json:"pageTotalItems"`
		} `json:"pagination"`
	} `json:"meta"`
}

type fynnMade struct {
	ID          string     `json:"id"`
	Token       string     `json:"token"`
	Description string     `json:"description"`
	ExpiresAt   *time.Time `json:"expiresAt"`
}

// do makes a call. A status other than want fails the test, and so does an
// answer that does not fit into v.
func (c fynnClient) do(method, target, body string, want int, v any) {
	c.t.Helper()
	status, answer := c.s.call(c.listener, c.secret, method, target, body)
	if status != want {
		c.t.Fatalf("%s %s gives %d, want %d: %s", method, target, status, want, answer)
	}
	if v == nil {
		return
	}
	d := json.NewDecoder(bytes.NewReader(answer))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		c.t.Fatalf("%s %s: %v in %s", method, target, err, answer)
	}
}

// all reads all pages as such clients do: from 0, up to lastPage.
func (c fynnClient) all() (ids []string) {
	c.t.Helper()
	for number := 0; ; number++ {
		var page fynnPage
		c.do("GET", fmt.Sprintf("/user/api-tokens?page=%d&limit=2", number), "", http.StatusOK, &page)
		p := page.Meta.Pagination
		if p.CurrentPage != max(number, 1) || p.ItemsPerPage != 2 || p.PageTotalItems != len(page.Data) {
			c.t.Fatalf("page %d says of itself %+v", number, p)
		}
		for _, t := range page.Data {
			if t.APIToken != "**********" {
				c.t.Errorf("token %s is shown with %q", t.ID, t.APIToken)
			}
			if !slices.Contains(ids, t.ID) { // page 0 is page 1
				ids = append(ids, t.ID)
			}
		}
		if number >= p.LastPage {
			if len(ids) != p.TotalItems {
				c.t.Errorf("the pages show %d tokens of %d", len(ids), p.TotalItems)
			}
			return ids
		}
	}
}

func (c fynnClient) with(secret string) fynnClient {
	c.secret = secret
	return c
}

func TestHandWrittenFynnClientWorks(t *testing.T) {
	s := start(t, build(t), config)
	plain := s.make(`{"name":"plain","account":7,"owner":70,"scopes":["accounts","user:api-token:read","user:api-token:write"],"expires_at":"2090-01-01T00:00:00Z"}`)
	poor := s.make(`{"name":"without scope","account":7,"owner":70,"scopes":["accounts"]}`)
	for _, listener := range []string{"admin", "proxy"} {
		for name, secret := range map[string]string{"root": s.root, "plain caller": plain} {
			t.Run(name+" on the "+listener+" listener", func(t *testing.T) {
				c := fynnClient{t: t, s: s, listener: listener, secret: secret}
				var made [3]fynnMade
				for i := range made {
					c.do("POST", "/user/api-tokens", fmt.Sprintf(`{"description":"token %d","expiresAt":null}`, i), http.StatusCreated, &made[i])
				}
				if inherits := made[0].ExpiresAt != nil; inherits != (name == "plain caller") {
					t.Errorf("a token without an end of its own ends at %v", made[0].ExpiresAt)
				}
				var ending fynnMade
				c.do("POST", "/user/api-tokens", `{"description":"ends","expiresAt":"2080-06-01T12:00:00+02:00"}`, http.StatusCreated, &ending)
				if want := time.Date(2080, 6, 1, 10, 0, 0, 0, time.UTC); ending.ExpiresAt == nil || !ending.ExpiresAt.Equal(want) {
					t.Errorf("ends at %v", ending.ExpiresAt)
				}
				if ids := c.all(); slices.Index(ids, ending.ID) != 0 || slices.Index(ids, made[0].ID) != 3 {
					t.Errorf("not the newest first: %v", ids)
				}
				if ids := c.with(made[0].Token).all(); !slices.Contains(ids, made[1].ID) {
					t.Errorf("the new token has less than its maker: %v", ids)
				}

				var e struct {
					Type, Title, Detail, Message string
					Status                       int
					Violations                   []struct{ PropertyPath, Message string }
				}
				c.do("POST", "/user/api-tokens", `{"description":"x"}`, http.StatusUnprocessableEntity, &e)
				if len(e.Violations) != 1 || e.Violations[0].PropertyPath != "description" {
					t.Errorf("validation tells %+v", e)
				}
				c.do("GET", "/user/api-tokens?limit=101", "", http.StatusBadRequest, &e)
				c.with(poor).do("GET", "/user/api-tokens", "", http.StatusForbidden, &e)
				c.with(poor).do("POST", "/user/api-tokens", `{"description":"test"}`, http.StatusForbidden, &e)
				c.with(poor).do("DELETE", "/user/api-tokens/"+made[0].ID, "", http.StatusForbidden, &e)
				c.do("DELETE", "/user/api-tokens/ABCDEFGHIJ0123456789", "", http.StatusNotFound, &e)
				var unknown struct {
					Code    int
					Message string
				}
				c.with("api_wrong").do("GET", "/user/api-tokens", "", http.StatusUnauthorized, &unknown)

				for _, m := range append(made[:], ending) {
					c.do("DELETE", "/user/api-tokens/"+m.ID, "", http.StatusNoContent, nil)
				}
				c.do("DELETE", "/user/api-tokens/"+ending.ID, "", http.StatusNotFound, &e)
				c.with(ending.Token).do("GET", "/user/api-tokens", "", http.StatusUnauthorized, &unknown)
			})
		}
	}
}
