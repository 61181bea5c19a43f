package etcdtest

import (
	"net/url"
	"time"
)

// Relays lead one node to all members, so that it can lose them while others do not.
// A fault is that of all relays; one relay's is set on the relay.
type Relays struct {
	scheme string
	relays []*Relay // by member
}

// ClientRelays starts relays to all members, which end with the test. A client that
// is given their endpoints must not ask the cluster for its members, since it would
// be told the addresses behind the relays.
func (c *Cluster) ClientRelays() *Relays {
	c.t.Helper()
	r := new(Relays)
	for _, m := range c.members {
		to, err := url.Parse(m.Endpoint())
		if err != nil {
			c.t.Fatal(err)
		}
		r.scheme = to.Scheme
		r.relays = append(r.relays, StartRelay(c.t, to.Host))
	}
	return r
}

// Endpoints returns the relays' URLs, in the order of the members.
func (r *Relays) Endpoints() []string {
	list := make([]string, len(r.relays))
	for i, relay := range r.relays {
		list[i] = (&url.URL{Scheme: r.scheme, Host: relay.Addr()}).String()
	}
	return list
}

// To returns the relay to the i-th member.
func (r *Relays) To(i int) *Relay { return r.relays[i] }

// Cut is [Relay.Cut] for all relays.
func (r *Relays) Cut() { r.each((*Relay).Cut) }

// Stall is [Relay.Stall] for all relays.
func (r *Relays) Stall(d Direction) { r.each(func(one *Relay) { one.Stall(d) }) }

// DropAnswers is [Relay.DropAnswers] for all relays.
func (r *Relays) DropAnswers() { r.each((*Relay).DropAnswers) }

// Delay is [Relay.Delay] for all relays.
func (r *Relays) Delay(d time.Duration) { r.each(func(one *Relay) { one.Delay(d) }) }

// Heal is [Relay.Heal] for all relays.
func (r *Relays) Heal() { r.each((*Relay).Heal) }

func (r *Relays) each(do func(*Relay)) {
	for _, relay := range r.relays {
		do(relay)
	}
}
