package etcdstore

import (
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// changeOf is a change that rests on some keys and prefixes and writes others, or
// removes them where a hyphen stands before.
func changeOf(rests, prefixes, writes string) *part {
	w := &writing{caller: &caller{}, read: map[string]int64{}, ranges: strings.Fields(prefixes)}
	for _, key := range strings.Fields(rests) {
		w.read[key] = 1
	}
	for _, key := range strings.Fields(writes) {
		op := clientv3.OpPut(key, "v")
		if gone, ok := strings.CutPrefix(key, "-"); ok {
			op = clientv3.OpDelete(gone)
		}
		w.ops = append(w.ops, op)
	}
	w.touches = true
	return partOf(w, make([]clientv3.Cmp, len(w.read)+len(w.ranges)))
}

// TestChangesThatTouchEachOtherDoNotGoTogether holds a batch to what makes its changes
// one after another, in any order, the same as all at once.
func TestChangesThatTouchEachOtherDoNotGoTogether(t *testing.T) {
	for _, c := range []struct {
		name          string
		first, second *part
		want          bool
	}{
		{"strangers", changeOf("a", "", "a b"), changeOf("c", "", "c d"), true},
		{"both remove one", changeOf("", "", "a -c"), changeOf("", "", "b -c"), true},
		{"the second removes what the first writes", changeOf("", "", "a"), changeOf("", "", "-a"), false},
		{"the second writes what the first removes", changeOf("", "", "-a"), changeOf("", "", "a"), false},
		{"the second removes what the first rests on", changeOf("a", "", "b"), changeOf("", "", "-a"), false},
		{"the second removes what the first rests on and removes", changeOf("a", "", "-a"), changeOf("", "", "-a"), false},
		{"the second rests on what both remove", changeOf("", "", "-a"), changeOf("a", "", "-a"), false},
		{"the second looked where both remove", changeOf("", "", "-p/1"), changeOf("", "p/", "-p/1"), false},
		{"both rest on one", changeOf("a", "", "b"), changeOf("a", "", "c"), true},
		{"both write one", changeOf("", "", "a"), changeOf("", "", "a"), false},
		{"the second writes what the first rests on", changeOf("a", "", "b"), changeOf("", "", "a"), false},
		{"the second rests on what the first writes", changeOf("", "", "a"), changeOf("a", "", "b"), false},
		{"the second writes where the first looked", changeOf("", "p/", "a"), changeOf("", "", "p/1"), false},
		{"the second looked where the first writes", changeOf("", "", "p/1"), changeOf("", "p/", "a"), false},
		{"both looked in one place", changeOf("", "p/", "a"), changeOf("", "p/", "b"), true},
		{"the second rests on one where the first looked", changeOf("", "p/", "a"), changeOf("p/1", "", "b"), true},
	} {
		b := &batch{keys: map[string]touch{}}
		b.add(c.first)
		if got := b.takes(c.second); got != c.want {
			t.Errorf("%s: together is %t", c.name, got)
		}
	}
}

// TestBatchIsNoLargerThanEtcdTakes adds changes until there is no room.
func TestBatchIsNoLargerThanEtcdTakes(t *testing.T) {
	for name, one := range map[string]func(key string) *part{
		"comparisons": func(key string) *part { return changeOf(key+"1 "+key+"2 "+key+"3", "", key+"1") },
		"operations":  func(key string) *part { return changeOf("", "", key+"1 "+key+"2 "+key+"3") },
		"removals":    func(key string) *part { return changeOf("", "", key+"1 -gone1 -gone2 -gone3") },
		"bytes": func(key string) *part {
			w := &writing{caller: &caller{}}
			w.ops, w.touches = []clientv3.Op{clientv3.OpPut(key, strings.Repeat("x", batchBytes/8))}, true
			return partOf(w, nil)
		},
		"events": func(key string) *part {
			w := &writing{caller: &caller{}}
			w.ops, w.events = []clientv3.Op{clientv3.OpPut(key, "")}, make([][]byte, batchRoom.events/5)
			return partOf(w, nil)
		},
	} {
		b := &batch{keys: map[string]touch{}}
		for {
			p := one(strings.Repeat("k", len(b.parts)+1) + "/")
			if !b.takes(p) {
				break
			}
			b.add(p)
		}
		ops := b.operations(&Store{Client: &Client{}})
		if n := len(b.parts); n < 2 || len(b.comparisons())+groundCompares > txnCompares || len(ops)+1 > txnOps {
			t.Errorf("%s: %d changes with %d comparisons and %d operations", name, n, len(b.comparisons()), len(ops))
		}
	}
}

// TestChangesThatGoAlone lists what is never gathered.
func TestChangesThatGoAlone(t *testing.T) {
	whole := &writing{whole: true}
	whole.ops, whole.touches = []clientv3.Op{clientv3.OpPut("a", "")}, true
	sweep := &writing{}
	sweep.ops, sweep.touches = []clientv3.Op{clientv3.OpDelete("a/", clientv3.WithPrefix())}, true
	counts := &writing{}
	counts.ops = []clientv3.Op{clientv3.OpPut("counts/a", "")}
	large := &writing{}
	large.ops, large.touches = make([]clientv3.Op, txnOps), true
	for name, w := range map[string]*writing{"rests on all data": whole, "removes a range": sweep, "requests wait for it": counts, "large": large} {
		if partOf(w, nil) != nil {
			t.Errorf("a change that %s goes with others", name)
		}
	}
}

// TestOnlyWhoHasCompanyWaits looks at what a change waits for, by who was there before.
func TestOnlyWhoHasCompanyWaits(t *testing.T) {
	g := &group{}
	join := func(key string) (*batch, time.Duration, *caller) {
		g.took = time.Second // and not what passed here
		p := changeOf("", "", key)
		p.w.caller.group = g
		b, patience, opened := g.join(p)
		if !opened {
			patience = 0
		}
		return b, patience, p.w.caller
	}
	leave := func(b *batch) {
		g.departs(b)
		g.crowd = g.callers
	}

	first, _, a := join("a")
	if first.waits {
		t.Error("a change by itself waits")
	}
	leave(first)
	// Another comes while the first is on its way: from now on there are two.
	second, patience, b := join("b")
	if second.waits || patience != longestHold {
		t.Errorf("the first company is waited for: %t, %s", second.waits, patience)
	}
	leave(second)
	a.end()
	third, patience, a := join("a2")
	if !third.waits || patience != longestHold {
		t.Errorf("with another on its way a change waits: %t, at most %s", third.waits, patience)
	}
	b.end()
	if fourth, _, second := join("b2"); fourth != third || third.waits {
		t.Error("the two did not go together, or wait for a third")
	} else {
		b = second
	}
	leave(third)
	a.end()
	b.end()
	// Both were answered: the one that comes first waits a little, in vain.
	fifth, patience, a := join("a3")
	if !fifth.waits || patience != longestGather {
		t.Errorf("a change waits for the other of two that were answered: %t, at most %s", fifth.waits, patience)
	}
	leave(fifth)
	a.end()
	sixth, _, a := join("a4")
	if sixth.waits {
		t.Error("a change waits for one who did not come back")
	}
	leave(sixth)
	a.end()
	g.crowd, g.answered = 64, g.answered.Add(-time.Minute)
	if last, _, _ := join("a5"); last.waits {
		t.Error("a change waits for a crowd that is long gone")
	}
}
