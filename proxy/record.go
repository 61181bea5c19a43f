package proxy

import (
	"context"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"

	"tokenward/enforce/canon"
)

// Recording says which requests leave a record in the log. The zero Recording
// leaves none.
type Recording struct {
	// Denied records requests that were refused or would have been; All records
	// every request.
	Denied, All bool
	// Every records one of so many, counted over those that would be recorded. 0
	// and 1: each.
	Every uint64
}

// recorded counts requests towards Recording.Every.
type recorded struct{ n atomic.Uint64 }

func (r *recorded) due(every uint64) bool { return every <= 1 || r.n.Add(1)%every == 1 }

// maxRecordedPath bounds the client's text in a record.
const maxRecordedPath = 256

// record logs one request at its end. It never holds a credential: the query is
// left out, and the path is the one that was judged.
func (g *Guard) record(p *passage) {
	if p.rules == nil || p.mount != nil || !p.read {
		return
	}
	r := &p.rules.Record
	outcome := p.outcome()
	if !r.All && (!r.Denied || outcome == Allowed) || !g.recorded.due(r.Every) {
		return
	}
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs, slog.String("request_id", p.id.String()), slog.String("outcome", outcome.String()))
	if p.req.Verdict() == canon.Accepted {
		attrs = append(attrs, slog.String("method", string(p.req.Method)), slog.String("path", printable(p.req.Path)),
			slog.String("reason", p.decision.Reason.String()))
	} else {
		attrs = append(attrs, slog.String("reason", p.req.Verdict().String()))
	}
	if p.decision.Route != nil {
		attrs = append(attrs, slog.String("route", p.decision.Route.Pattern))
	}
	if t := p.decision.Match.Token; t != nil {
		attrs = append(attrs, slog.Uint64("token", uint64(t.ID)), slog.Uint64("account", t.Account))
	}
	client := "unknown"
	if p.req.Client.Known {
		client = p.req.Client.Addr.String()
	}
	attrs = append(attrs, slog.String("client", client))
	if status := p.answered(); status != 0 {
		attrs = append(attrs, slog.Int("status", status))
	}
	attrs = append(attrs, slog.Duration("took", g.Now().Sub(p.started)))
	g.Log.LogAttrs(context.Background(), slog.LevelInfo, "request", attrs...)
}

// answered is the status that the client got, 0 if that is not known.
func (p *passage) answered() int {
	if p.refusal.status != 0 {
		return p.refusal.status
	}
	return p.status
}

// secretForm is what a client may have put into a path by mistake: a secret of ours,
// whatever stands around it, with or without its checksum.
var secretForm = regexp.MustCompile(`[0-9A-Za-z]*_[0-9A-Za-z]{32,}`)

// secretRest is how much of a path after a secret's underscore tells it for one.
const secretRest = 32

// printable cuts and escapes what a client chose, so that it cannot break out of
// a record whatever the log's format is, and masks what looks like a secret. It looks
// beyond where it cuts: most of a secret that ends there would be legible.
func printable(path []byte) string {
	shown := min(len(path), maxRecordedPath)
	var text strings.Builder
	at := 0
	for _, m := range secretForm.FindAllIndex(path[:min(len(path), maxRecordedPath+secretRest)], -1) {
		if m[0] < shown {
			text.Write(path[at:m[0]])
			text.WriteString("[secret]")
			at = m[1]
		}
	}
	text.Write(path[min(at, shown):shown])
	quoted := strconv.QuoteToASCII(text.String())
	if len(path) > max(at, shown) {
		return quoted[1:len(quoted)-1] + "…"
	}
	return quoted[1 : len(quoted)-1]
}
