package subscription

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/cursor"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// world drives a machine and knows, from the outside, what it must never do.
type world struct {
	t       *rapid.T
	l       *fakeLedger
	m       *machine
	kind    Type
	joined  int
	holders map[position.Position]*consumer // shared: who holds what
	acked   map[position.Position]bool
	came    map[position.Position]int // deliveries since the last seek
	granted map[*consumer]int64
	spent   map[*consumer]int64
	out     map[*consumer]int64
}

func newWorld(t *rapid.T, kind Type, partition int) *world {
	l := newFakeLedger()
	w := &world{
		t: t, l: l, kind: kind,
		m:       newMachine(chain{l}, cursor.New(position.Start), "persistent://public/default/t", partition, 1<<20),
		holders: map[position.Position]*consumer{},
		acked:   map[position.Position]bool{},
		came:    map[position.Position]int{},
		granted: map[*consumer]int64{}, spent: map[*consumer]int64{}, out: map[*consumer]int64{},
	}
	return w
}

func messagesAt(p position.Position) int { return 1 + int(p.Entry*7+3*(1+0))%5 }

func (w *world) append() {
	if rapid.IntRange(0, 4).Draw(w.t, "roll") == 0 {
		w.l.roll()
	}
	n := len(w.l.bodies[w.l.LastConfirmed().Ledger])
	w.l.append(make([]byte, 40+n%90))
}

// step makes the machine do one thing, if it would. What happens meanwhile,
// happens while entries are being read.
func (w *world) step(meanwhile func()) (waits string) {
	s := w.m.plan(w.l.LastConfirmed())
	if s.wait != "" {
		return s.wait
	}
	if s.maxEntries < 1 || s.maxBytes < 1 {
		w.t.Fatalf("a read of %d entries, %d bytes", s.maxEntries, s.maxBytes)
	}
	entries, err := w.l.Read(w.t.Context(), s.from, s.maxEntries, s.maxBytes)
	if err != nil {
		w.t.Fatal(err)
	}
	var items []item
	for _, e := range entries {
		items = append(items, item{at: e.Position, messages: messagesAt(e.Position), body: e.Body})
	}
	if meanwhile != nil {
		meanwhile()
	}
	for _, p := range w.m.assign(s, items) {
		for _, d := range p.entries {
			w.delivered(p.to, d)
		}
	}
	return ""
}

func (w *world) delivered(c *consumer, d Delivery) {
	p := d.Position
	if w.acked[p] {
		w.t.Fatalf("%v was acknowledged and is delivered", p)
	}
	if h := w.holders[p]; h != nil {
		w.t.Fatalf("%v is held by %s and is delivered to %s", p, h.name, c.name)
	}
	if w.granted[c]-w.spent[c] <= 0 {
		w.t.Fatalf("%v is delivered to %s, which has no permits", p, c.name)
	}
	if w.out[c] > 0 && w.out[c]+int64(len(d.Body)) > c.window {
		w.t.Fatalf("%v takes %s to %d bytes, its window is %d", p, c.name, w.out[c]+int64(len(d.Body)), c.window)
	}
	if int(d.Attempts) != w.came[p] {
		w.t.Fatalf("%v is delivered with %d attempts, it went out %d times", p, d.Attempts, w.came[p])
	}
	if w.came[p]++; w.kind == Shared {
		w.holders[p] = c
	} else if c != w.m.active {
		w.t.Fatalf("%v is delivered to %s, which is not served", p, c.name)
	}
	w.spent[c] += int64(d.Messages)
	w.out[c] += int64(len(d.Body))
}

// check compares what the machine believes with what was seen of it.
func (w *world) check() {
	m := w.m
	for _, c := range m.consumers {
		if c.permits() != w.granted[c]-w.spent[c] {
			w.t.Fatalf("%s has %d permits, was given %d and sent %d", c.name, c.permits(), w.granted[c], w.spent[c])
		}
		if c.permits() <= -6 {
			w.t.Fatalf("%s is %d permits short, more than a batch", c.name, -c.permits())
		}
		if c.out != w.out[c] {
			w.t.Fatalf("%s has %d bytes out, want %d", c.name, c.out, w.out[c])
		}
	}
	for _, p := range w.l.all() {
		places := []string{}
		if m.cursor.Acked(p) {
			places = append(places, "acknowledged")
		}
		if m.replay.Contains(p) {
			places = append(places, "replay")
		}
		isNew := m.read.Compare(p) <= 0
		for _, c := range m.consumers {
			if c.held.Contains(p) {
				places = append(places, "held by "+c.name)
			}
			if c.held.Contains(p) != (w.holders[p] == c) {
				w.t.Fatalf("%v held by %s: %v", p, c.name, c.held.Contains(p))
			}
		}
		if m.cursor.Acked(p) != w.acked[p] {
			w.t.Fatalf("%v acknowledged: %v", p, m.cursor.Acked(p))
		}
		if isNew && !m.cursor.Acked(p) {
			places = append(places, "new")
		}
		if w.kind != Shared && len(places) == 0 {
			places = append(places, "held")
		}
		if len(places) != 1 {
			w.t.Fatalf("%v is in %d places: %q (read %v, mark %v)", p, len(places), places, m.read, m.cursor.MarkDelete())
		}
	}
	if m.kind != Shared && len(m.consumers) > 0 && (m.active == nil) == (m.leaving == nil) {
		w.t.Fatalf("active %v, leaving %v", m.active, m.leaving)
	}
}

func (w *world) someConsumer() *consumer {
	if len(w.m.consumers) == 0 {
		return nil
	}
	return w.m.consumers[rapid.IntRange(0, len(w.m.consumers)-1).Draw(w.t, "consumer")]
}

func (w *world) some(label string) (position.Position, bool) {
	all := w.l.all()
	if len(all) == 0 {
		return position.Start, false
	}
	return all[rapid.IntRange(0, len(all)-1).Draw(w.t, label)], true
}

func (w *world) ackOne(c *consumer, p position.Position) {
	if !w.acked[p] {
		w.m.cursor.Ack(w.m.chain, p)
		w.m.acked(c, p)
	}
	w.acked[p] = true
	delete(w.holders, p)
	w.m.settle()
}

func (w *world) leave(c *consumer) {
	w.m.leave(c)
	for p, h := range w.holders {
		if h == c {
			delete(w.holders, p)
		}
	}
}

func (w *world) act() {
	switch rapid.IntRange(0, 14).Draw(w.t, "act") {
	case 0, 1, 2:
		w.append()
	case 3:
		if len(w.m.consumers) < 4 {
			w.joined++
			c := &consumer{
				name:   fmt.Sprintf("c%d", rapid.IntRange(0, 9).Draw(w.t, "name")),
				window: int64(rapid.IntRange(1, 400).Draw(w.t, "window")),
			}
			if _, err := w.m.join(c, w.kind); err != nil && (w.kind != Exclusive || len(w.m.consumers) == 0) {
				w.t.Fatal(err)
			}
		}
	case 4:
		if c := w.someConsumer(); c != nil {
			w.leave(c)
		}
	case 5, 6:
		if c := w.someConsumer(); c != nil {
			n := rapid.IntRange(0, 9).Draw(w.t, "permits")
			b := rapid.Int64Range(0, c.out).Draw(w.t, "bytes")
			if err := c.flow(uint32(n), uint64(b)); err != nil {
				w.t.Fatal(err)
			}
			w.granted[c] += int64(n)
			w.out[c] -= b
		}
	case 7, 8:
		if p, ok := w.some("ack"); ok {
			w.ackOne(w.someConsumer(), p)
		}
	case 9:
		p, ok := w.some("through")
		if ok && w.kind != Shared {
			w.m.cursor.AckCumulative(w.m.chain, p)
			w.m.ackedThrough()
			for _, q := range w.l.all() {
				if q.Compare(p) <= 0 {
					w.acked[q] = true
				}
			}
			w.m.settle()
		}
	case 10:
		c := w.someConsumer()
		if c == nil {
			return
		}
		if rapid.Bool().Draw(w.t, "everything") {
			w.m.giveBack(c, nil)
			for p, h := range w.holders {
				if h == c {
					delete(w.holders, p)
				}
			}
			return
		}
		if p, ok := w.some("back"); ok {
			w.m.giveBack(c, []position.Position{p})
			if w.holders[p] == c {
				delete(w.holders, p)
			}
		}
	case 11:
		if p, ok := w.some("seek"); ok && rapid.IntRange(0, 2).Draw(w.t, "rare") == 0 {
			w.m.cursor.Seek(p.Prev(), p, nil)
			w.m.sought()
			clear(w.holders)
			clear(w.acked)
			clear(w.came)
			for _, q := range w.l.all() {
				if q.Before(p) {
					w.acked[q] = true
				}
			}
			w.m.settle()
		}
	case 12:
		w.m.handOver()
	case 13:
		for range 3 {
			w.step(nil)
		}
	case 14:
		w.step(func() {
			w.act()
			w.check()
		})
	}
}

// Shows, for every type: permits are conserved; an entry is in exactly one
// place; nothing acknowledged and nothing another consumer holds is delivered;
// attempts are counted; a window is kept; and in the end, one consumer with
// permits gets all that is not acknowledged.
func TestPromiseP6_MachineDeliversWhatIsNotAcknowledged(t *testing.T) {
	for _, kind := range []Type{Exclusive, Shared, Failover} {
		t.Run(kind.String(), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				w := newWorld(t, kind, rapid.IntRange(-1, 5).Draw(t, "partition"))
				for range rapid.IntRange(1, 60).Draw(t, "acts") {
					w.act()
					w.check()
				}
				for len(w.m.consumers) > 0 {
					w.leave(w.m.consumers[0])
				}
				clear(w.holders)
				last := &consumer{name: "last", window: 1 << 30}
				if _, err := w.m.join(last, kind); err != nil {
					t.Fatal(err)
				}
				w.granted[last] = 1 << 20
				last.granted = 1 << 20
				before := map[position.Position]int{}
				for p, n := range w.came {
					before[p] = n
				}
				reason := ""
				for reason == "" {
					reason = w.step(nil)
				}
				for _, p := range w.l.all() {
					if !w.acked[p] && w.came[p] == before[p] {
						t.Fatalf("%v was not delivered, though a consumer has permits; it waits for: %s", p, reason)
					}
				}
			})
		})
	}
}

// Shows that an exclusive or failover consumer gets what is new in the order of
// the topic, with nothing left out, also when it leaves and comes back.
func TestPromiseP3_OneOrderForTheConsumerServed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, Failover, -1)
		var got []position.Position
		acked := 0
		c := &consumer{name: "c", window: 300}
		if _, err := w.m.join(c, Failover); err != nil {
			t.Fatal(err)
		}
		for range 60 {
			switch rapid.IntRange(0, 4).Draw(t, "act") {
			case 0, 1:
				w.append()
			case 2:
				c.granted += 3
				c.out = 0
				s := w.m.plan(w.l.LastConfirmed())
				if s.wait != "" {
					continue
				}
				entries, err := w.l.Read(t.Context(), s.from, s.maxEntries, s.maxBytes)
				if err != nil {
					t.Fatal(err)
				}
				var items []item
				for _, e := range entries {
					items = append(items, item{at: e.Position, messages: 1, body: e.Body})
				}
				for _, p := range w.m.assign(s, items) {
					for _, d := range p.entries {
						got = append(got, d.Position)
					}
				}
			case 3:
				if acked < len(got) {
					acked += rapid.IntRange(1, len(got)-acked).Draw(t, "n")
					w.m.cursor.AckCumulative(w.m.chain, got[acked-1])
					w.m.ackedThrough()
				}
			case 4:
				w.m.leave(c)
				got = got[:acked]
				c = &consumer{name: "c", window: 300}
				if _, err := w.m.join(c, Failover); err != nil {
					t.Fatal(err)
				}
			}
			if want := w.l.all(); !slices.Equal(got, want[:len(got)]) {
				t.Fatalf("got %v of %v", got, want)
			}
		}
	})
}

// Shows that a machine that waits always says why, and that it never waits for a
// consumer while one could be sent the next entry.
func TestPromiseP6_MachineWaitsForAReason(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, Shared, -1)
		for range 60 {
			w.act()
			for w.step(nil) == "" {
			}
			s := w.m.plan(w.l.LastConfirmed())
			undelivered := w.m.replay.Len() > 0
			for _, p := range w.l.all() {
				undelivered = undelivered || w.m.read.Compare(p) <= 0 && !w.acked[p]
			}
			for _, c := range w.m.consumers {
				if undelivered && c.permits() > 0 && c.out == 0 {
					t.Fatalf("%s could be sent something, yet it waits: %s", c.name, s.wait)
				}
			}
			if s.wait == "" {
				t.Fatal("it neither waits nor works")
			}
		}
	})
}

// Shows the dealing of partitions: consumers in order of name, partition modulo
// their number, whatever the order in which they came.
func TestFailoverDealsPartitionsByName(t *testing.T) {
	for partition := range 7 {
		l := newFakeLedger()
		m := newMachine(chain{l}, cursor.New(position.Start), "t", partition, 1<<20)
		for _, name := range []string{"b", "c", "a"} {
			if _, err := m.join(&consumer{name: name, window: 1}, Failover); err != nil {
				t.Fatal(err)
			}
		}
		if want := []string{"a", "b", "c"}[partition%3]; m.active == nil || m.active.name != want {
			t.Errorf("partition %d is served to %v, want %s", partition, m.active, want)
		}
	}
}

// Shows that a topic without partitions picks its consumer by a hash ring: the
// choice does not depend on the order of joining, stays when another one leaves,
// and differs between topics.
func TestFailoverWithoutPartitionsUsesARing(t *testing.T) {
	chosen := map[string]int{}
	for i := range 40 {
		topic := fmt.Sprintf("persistent://public/default/t%d", i)
		pick := func(names ...string) string {
			m := newMachine(chain{newFakeLedger()}, cursor.New(position.Start), topic, -1, 1<<20)
			for _, name := range names {
				if _, err := m.join(&consumer{name: name, window: 1}, Failover); err != nil {
					t.Fatal(err)
				}
			}
			return m.active.name
		}
		name := pick("a", "b", "c")
		chosen[name]++
		if other := pick("c", "a", "b"); other != name {
			t.Errorf("%s: %s or %s, by the order of joining", topic, name, other)
		}
		rest := slices.DeleteFunc([]string{"a", "b", "c"}, func(s string) bool { return s == map[string]string{"a": "b", "b": "c", "c": "a"}[name] })
		if other := pick(rest...); other != name {
			t.Errorf("%s moved from %s to %s because another consumer left", topic, name, other)
		}
	}
	if len(chosen) != 3 {
		t.Errorf("40 topics over 3 consumers: %v", chosen)
	}
}

// Shows that a million entries held by a consumer that leaves, twice, stay
// within a few bits each, and that their attempts are known.
func TestAttemptsAreCompact(t *testing.T) {
	var a attempts
	var all position.Set
	all.AddRange(3, 0, 999_999)
	a.raise(&all)
	a.raise(&all)
	a.raiseOne(position.Position{Ledger: 3, Entry: 500})
	for e, want := range map[int]uint32{0: 2, 500: 3, 999_999: 2, 1_000_000: 0} {
		if got := a.of(position.Position{Ledger: 3, Entry: ledger.EntryID(e)}); got != want {
			t.Errorf("entry %d: %d attempts, want %d", e, got, want)
		}
	}
	if a.bytes() > 600_000 {
		t.Errorf("%d bytes", a.bytes())
	}
	a.forgetThrough(position.Position{Ledger: 4})
	if len(a.slices) != 0 {
		t.Errorf("%d bytes left", a.bytes())
	}
}
