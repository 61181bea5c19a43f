package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// ledger is the sample API behind the demo: two accounts with cards, in memory.
// It knows nothing of tokens; every answer repeats what it was told about the
// caller.
type ledger struct {
	// mu guards cards, by account; held for one request.
	mu    sync.Mutex
	cards map[string][]ledgerCard
	made  int
}

type ledgerAccount struct {
	ID      string `json:"id"`
	Holder  string `json:"holder"`
	Balance string `json:"balance"`
}

type ledgerCard struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

func newLedger() *ledger {
	return &ledger{cards: map[string][]ledgerCard{
		"1001": {{"c-1", "Groceries"}, {"c-2", "Travel"}},
		"1002": {{"c-3", "Tools"}},
	}}
}

func ledgerAccounts() []ledgerAccount {
	return []ledgerAccount{{"1001", "Ada", "1204.50"}, {"1002", "Grace", "88.00"}}
}

func (l *ledger) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { tell(w, r, http.StatusOK, "status", "fine") })
	mux.HandleFunc("GET /accounts", func(w http.ResponseWriter, r *http.Request) { tell(w, r, http.StatusOK, "accounts", ledgerAccounts()) })
	mux.HandleFunc("GET /accounts/{account}", l.showAccount)
	mux.HandleFunc("GET /accounts/{account}/cards", l.listCards)
	mux.HandleFunc("POST /accounts/{account}/cards", l.addCard)
	mux.HandleFunc("GET /accounts/{account}/cards/{card}", l.showCard)
	mux.HandleFunc("DELETE /accounts/{account}/cards/{card}", l.removeCard)
	return mux
}

func (l *ledger) showAccount(w http.ResponseWriter, r *http.Request) {
	i := slices.IndexFunc(ledgerAccounts(), func(a ledgerAccount) bool { return a.ID == r.PathValue("account") })
	if i < 0 {
		tell(w, r, http.StatusNotFound, "error", "there is no such account")
		return
	}
	tell(w, r, http.StatusOK, "account", ledgerAccounts()[i])
}

func (l *ledger) listCards(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	cards, ok := l.cards[r.PathValue("account")]
	if !ok {
		tell(w, r, http.StatusNotFound, "error", "there is no such account")
		return
	}
	tell(w, r, http.StatusOK, "cards", cards)
}

// maxLedgerCards bounds the cards of an account.
const maxLedgerCards = 100

func (l *ledger) addCard(w http.ResponseWriter, r *http.Request) {
	var card ledgerCard
	if err := json.NewDecoder(io.LimitReader(r.Body, 4<<10)).Decode(&card); err != nil || card.Name == "" {
		tell(w, r, http.StatusBadRequest, "error", `send {"name":"…"}`)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	account := r.PathValue("account")
	cards, ok := l.cards[account]
	switch {
	case !ok:
		tell(w, r, http.StatusNotFound, "error", "there is no such account")
	case len(cards) >= maxLedgerCards:
		tell(w, r, http.StatusConflict, "error", "the account has too many cards")
	default:
		l.made++
		card.ID = fmt.Sprintf("c-%d", 100+l.made)
		l.cards[account] = append(cards, card)
		tell(w, r, http.StatusCreated, "card", card)
	}
}

func (l *ledger) showCard(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if cards, i := l.find(r); i >= 0 {
		tell(w, r, http.StatusOK, "card", cards[i])
		return
	}
	tell(w, r, http.StatusNotFound, "error", "there is no such card")
}

func (l *ledger) removeCard(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	cards, i := l.find(r)
	if i < 0 {
		tell(w, r, http.StatusNotFound, "error", "there is no such card")
		return
	}
	gone := cards[i]
	l.cards[r.PathValue("account")] = slices.Delete(cards, i, i+1)
	tell(w, r, http.StatusOK, "removed", gone)
}

// find is the card that the path names; l.mu is held.
func (l *ledger) find(r *http.Request) ([]ledgerCard, int) {
	cards := l.cards[r.PathValue("account")]
	return cards, slices.IndexFunc(cards, func(c ledgerCard) bool { return c.ID == r.PathValue("card") })
}

// tell answers with one value, and with what the request said about its caller.
func tell(w http.ResponseWriter, r *http.Request, status int, name string, value any) {
	caller := map[string]string{}
	for header, values := range r.Header {
		if strings.HasPrefix(header, "X-") || header == "Authorization" || header == "Api-Token" {
			caller[header] = strings.Join(values, ", ")
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(map[string]any{name: value, "what_the_api_is_told": caller}) // a client that is gone needs no answer
}

// sampleAPI is the API behind the demo.
type sampleAPI struct {
	listener net.Listener
	server   *http.Server
	served   chan error
}

func startSampleAPI(ctx context.Context) (*sampleAPI, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start the sample API: %w", err)
	}
	s := &sampleAPI{listener: l, served: make(chan error, 1), server: &http.Server{
		Handler: newLedger().handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second}}
	go func() { s.served <- s.server.Serve(l) }()
	return s, nil
}

func (s *sampleAPI) url() string { return urlOf(s.listener) }

func (s *sampleAPI) close() error {
	err := s.server.Close()
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
