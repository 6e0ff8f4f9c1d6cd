package history

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/magnetar-io/magnetar/client"
)

// honest is a cluster of one topic that keeps its promises, told step by step by
// chance: what is under way meets everything else at any time, answers are lost,
// consumers come and go with what they hold, owners change.
type honest struct {
	*Log
	r          *rand.Rand
	clock      int64
	partitions []*honestPartition
	producers  []*honestProducer
	subs       []*honestSub
	// later is what is under way: it happens in any order, after anything else.
	later []func()
	calm  bool // all is drained: nothing new, nothing fails
}

type honestPartition struct {
	number        int32
	ledger, entry int64
	stored        []storedMessage
}

// storedMessage is a message in a partition.
type storedMessage struct {
	m  Message
	id client.MessageID
	at time.Time
}

type honestProducer struct {
	name    string
	next    int
	waiting [][]Message // by partition, in order
}

// honestSub is a subscription, as broker and clients have it.
type honestSub struct {
	name       string
	kind       Kind
	seeks      bool
	cumulative bool
	parts      []*honestTrack
	members    []*honestConsumer
	lives      int
}

// honestTrack is a partition of a subscription on its broker.
type honestTrack struct {
	epoch  int
	acked  []bool // by index in the partition
	times  []int  // deliveries
	next   int    // index to be read
	again  []int  // indexes to be delivered again
	holder []*honestConsumer
	active *honestConsumer
}

type honestConsumer struct {
	*Consumer
	s     *honestSub
	queue []parcel       // sent by the broker, not handed out
	has   []map[int]int  // by partition: index to the epoch in which it was handed out
	inApp []map[int]bool // by partition: neither acknowledged nor given back
	epoch []int          // by partition: the newest it has heard of
	gone  bool
}

// parcel is a message on its way to a consumer.
type parcel struct{ partition, index, times, epoch int }

func generate(seed uint64, operations int) *record {
	h := &honest{Log: New(), r: rand.New(rand.NewPCG(seed, 0))}
	h.now = func() time.Time { h.clock += 1 + h.r.Int64N(1e6); return time.Unix(0, h.clock) }
	n := h.r.IntN(4)
	for i := range max(1, n) {
		p := &honestPartition{number: int32(i), ledger: int64(1 + h.r.IntN(12))}
		if n == 0 {
			p.number = -1
		}
		h.partitions = append(h.partitions, p)
	}
	for i := range 2 + h.r.IntN(3) {
		h.producers = append(h.producers, &honestProducer{name: fmt.Sprintf("p%d", i), waiting: make([][]Message, len(h.partitions))})
	}
	for i, kind := range []Kind{Exclusive, Failover, Shared, Exclusive, Failover, Shared} {
		h.subscribe(fmt.Sprintf("s%d", i), kind, i >= 3)
	}
	for len(h.h.events) < operations {
		h.step()
	}
	h.drain()
	return &h.h
}

func (h *honest) once(n int) bool { return h.r.IntN(n) == 0 }

func (h *honest) subscribe(name string, kind Kind, seeks bool) *honestSub {
	s := &honestSub{name: name, kind: kind, seeks: seeks, cumulative: kind != Shared && h.once(2)}
	for range h.partitions {
		s.parts = append(s.parts, &honestTrack{})
	}
	h.subs = append(h.subs, s)
	h.Subscription(name, kind)
	return s
}

func (h *honest) step() {
	switch h.r.IntN(40) {
	case 0:
		h.publish(h.producers[h.r.IntN(len(h.producers))])
	case 1, 2, 3:
		h.store(h.producers[h.r.IntN(len(h.producers))], h.r.IntN(len(h.partitions)))
	case 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14:
		h.happen()
	case 15:
		if h.once(30) {
			h.takeOver(h.r.IntN(len(h.partitions)))
		}
	default:
		h.consume(h.subs[h.r.IntN(len(h.subs))])
	}
}

// happen lets something that is under way happen.
func (h *honest) happen() {
	if len(h.later) == 0 {
		return
	}
	i := h.r.IntN(len(h.later))
	do := h.later[i]
	h.later = append(h.later[:i], h.later[i+1:]...)
	do()
}

func (h *honest) publish(p *honestProducer) {
	m := Message{p.name, p.next}
	p.next++
	h.Publishing(m)
	if h.once(30) { // refused before it has a position
		h.later = append(h.later, func() { h.Published(m, Failed, client.MessageID{}) })
		return
	}
	to := h.r.IntN(len(h.partitions))
	p.waiting[to] = append(p.waiting[to], m)
}

// store stores a batch of a producer, or loses it on the way.
func (h *honest) store(p *honestProducer, to int) {
	n := min(len(p.waiting[to]), 1+h.r.IntN(3))
	if n == 0 {
		return
	}
	batch := p.waiting[to][:n]
	p.waiting[to] = p.waiting[to][n:]
	lost, unsure, forgotten := h.once(40), h.once(20), h.once(40)
	part := h.partitions[to]
	if h.once(30) {
		part.ledger, part.entry = part.ledger+int64(1+h.r.IntN(9)), 0
	}
	for i, m := range batch {
		id := client.MessageID{Ledger: part.ledger, Entry: part.entry, Partition: part.number, BatchIndex: int32(i)}
		if n == 1 {
			id.BatchIndex = -1
		}
		if !lost {
			part.stored = append(part.stored, storedMessage{m, id, h.now()})
		}
		h.later = append(h.later, func() {
			switch {
			case lost || unsure:
				h.Published(m, Unknown, client.MessageID{})
			case forgotten:
				h.Published(m, OK, client.MessageID{})
			default:
				h.Published(m, OK, id)
			}
		})
	}
	if !lost {
		part.entry++
	}
}

// grow makes room for what was stored since.
func (t *honestTrack) grow(n int) {
	for len(t.acked) < n {
		t.acked, t.times, t.holder = append(t.acked, false), append(t.times, 0), append(t.holder, nil)
	}
}

// consume lets something happen around a subscription.
func (h *honest) consume(s *honestSub) {
	want := 1
	if s.kind != Exclusive {
		want = 3
	}
	switch k := h.r.IntN(120); {
	case len(s.members) == 0 || len(s.members) < want && k == 0:
		h.join(s)
		return
	case k == 1 && h.once(3):
		h.leave(s, h.r.IntN(len(s.members)))
		return
	case k == 2 && s.kind == Failover:
		t := s.parts[h.r.IntN(len(s.parts))]
		t.rewind()
		t.active = s.members[h.r.IntN(len(s.members))]
		return
	}
	h.dispatch(s)
	c := s.members[h.r.IntN(len(s.members))]
	h.handOut(c)
	switch {
	case s.seeks && h.once(200):
		h.seek(c)
	case !h.once(4):
		h.answer(c)
	}
}

func (h *honest) join(s *honestSub) {
	s.lives++
	c := &honestConsumer{s: s}
	for _, t := range s.parts {
		c.has, c.inApp, c.epoch = append(c.has, map[int]int{}), append(c.inApp, map[int]bool{}), append(c.epoch, t.epoch)
	}
	c.Consumer = h.Join(s.name, s.kind, fmt.Sprintf("%s-%d", s.name, s.lives))
	s.members = append(s.members, c)
}

// leave takes a consumer out; what it holds goes to others.
func (h *honest) leave(s *honestSub, i int) {
	c := s.members[i]
	c.Leaving()
	c.gone = true
	s.members = append(s.members[:i], s.members[i+1:]...)
	for _, t := range s.parts {
		switch {
		case s.kind == Shared:
			for index, holder := range t.holder {
				if holder == c && !t.acked[index] {
					t.again, t.holder[index] = append(t.again, index), nil
				}
			}
		case t.active == c:
			t.rewind()
			t.active = nil
		}
	}
}

// rewind delivers what is not acknowledged from the first on.
func (t *honestTrack) rewind() { t.next, t.again = 0, nil }

// takeOver has another broker serve a partition. Every consumer opens its stream
// anew; the new owner has not counted deliveries.
func (h *honest) takeOver(p int) {
	h.Owner(fmt.Sprintf("broker of %d", p))
	for _, s := range h.subs {
		t := s.parts[p]
		t.rewind()
		clear(t.times)
		clear(t.holder)
		for _, c := range s.members {
			kept := c.queue[:0]
			for _, m := range c.queue {
				if m.partition != p {
					kept = append(kept, m)
				}
			}
			c.queue = kept
			c.Opened(h.partitions[p].number)
			if s.kind != Shared {
				continue
			}
			for index := range c.inApp[p] { // still its own
				t.holder[index] = c
			}
		}
	}
}

// dispatch sends something to a consumer.
func (h *honest) dispatch(s *honestSub) {
	p := h.r.IntN(len(h.partitions))
	t := s.parts[p]
	t.grow(len(h.partitions[p].stored))
	to := s.members[h.r.IntN(len(s.members))]
	if s.kind != Shared {
		if t.active == nil {
			t.active = to
		}
		to = t.active
	}
	for range 1 + h.r.IntN(4) {
		index := -1
		if len(t.again) > 0 && h.once(2) {
			index, t.again = t.again[0], t.again[1:]
		} else {
			for t.next < len(t.acked) && (t.acked[t.next] || s.kind == Shared && t.holder[t.next] != nil) {
				t.next++
			}
			if t.next < len(t.acked) {
				index = t.next
				t.next++
			}
		}
		if index < 0 || t.acked[index] {
			continue
		}
		to.queue = append(to.queue, parcel{p, index, t.times[index], t.epoch})
		t.times[index]++
		t.holder[index] = to
	}
}

// handOut gives the application the next message of a consumer's queue.
func (h *honest) handOut(c *honestConsumer) {
	for len(c.queue) > 0 {
		m := c.queue[0]
		c.queue = c.queue[1:]
		if m.epoch > c.epoch[m.partition] { // what came before is void
			c.epoch[m.partition] = m.epoch
			clear(c.inApp[m.partition])
		}
		epoch, has := c.has[m.partition][m.index]
		if m.epoch < c.epoch[m.partition] || has && epoch == m.epoch {
			continue
		}
		c.has[m.partition][m.index] = m.epoch
		c.inApp[m.partition][m.index] = true
		s := h.partitions[m.partition].stored[m.index]
		c.Delivered(s.m, s.id, m.times)
		return
	}
}

var errNoAnswer = errors.New("no answer")

// answer acknowledges something that the application has, or gives it back.
func (h *honest) answer(c *honestConsumer) {
	p := h.r.IntN(len(h.partitions))
	t, index := c.s.parts[p], -1
	for i := range len(h.partitions[p].stored) { // not by ranging: maps have no order that a seed repeats
		if c.inApp[p][i] && (index < 0 || h.once(3)) {
			index = i
		}
	}
	if index < 0 {
		return
	}
	id, epoch, all := h.partitions[p].stored[index].id, c.epoch[p], c.s.cumulative && h.once(2)
	if !all && !h.calm && h.once(15) {
		c.Nacked(id)
		delete(c.inApp[p], index)
		delete(c.has[p], index)
		h.later = append(h.later, func() {
			if t.epoch == epoch && !t.acked[index] && !c.gone && t.holder[index] == c {
				t.again, t.holder[index] = append(t.again, index), nil
			}
		})
		return
	}
	first := index
	if all {
		first = 0
	}
	for i := first; i <= index; i++ {
		delete(c.inApp[p], i)
	}
	a := c.Acking(id, all)
	lost := h.once(30)
	h.later = append(h.later, func() {
		if lost && h.once(2) {
			return
		}
		done := t.epoch == epoch
		if done {
			for i := first; i <= index; i++ {
				t.acked[i] = true
			}
		}
		h.later = append(h.later, func() {
			if lost || !done {
				a.Ended(errNoAnswer)
			} else {
				a.Ended(nil)
			}
		})
	})
}

// seek moves a subscription.
func (h *honest) seek(c *honestConsumer) {
	p := h.r.IntN(len(h.partitions))
	stored := h.partitions[p].stored
	if len(stored) == 0 {
		return
	}
	index := h.r.IntN(len(stored))
	one, to := false, Earliest()
	find := func(int) int { return 0 }
	switch h.r.IntN(5) {
	case 0:
		one, to, find = true, At(stored[index].id), func(int) int { return index }
	case 1:
		one, to, find = true, After(stored[index].id), func(int) int { return index + 1 }
	case 2:
		to, find = Latest(), func(p int) int { return len(h.partitions[p].stored) }
	case 3:
		to = Since(stored[index].at)
		find = func(p int) int {
			for i, s := range h.partitions[p].stored {
				if !s.at.Before(stored[index].at) {
					return i
				}
			}
			return len(h.partitions[p].stored)
		}
	}
	pending := c.Seeking(to)
	lost, never := h.once(20), h.once(2)
	h.later = append(h.later, func() {
		if lost && never {
			return
		}
		for q, t := range c.s.parts {
			if one && q != p {
				continue
			}
			t.grow(len(h.partitions[q].stored))
			t.next = find(q)
			t.epoch++
			t.again = nil
			clear(t.holder)
			for i := range t.acked {
				t.acked[i] = i < t.next
			}
		}
		if lost {
			return
		}
		h.later = append(h.later, func() {
			for q, t := range c.s.parts { // nothing from before comes from now on
				if (!one || q == p) && c.epoch[q] < t.epoch {
					c.epoch[q] = t.epoch
					clear(c.inApp[q])
				}
			}
			pending.Ended(nil)
		})
	})
}

// drain ends everything, delivers what is left, and lets a fresh subscription read
// all there is.
func (h *honest) drain() {
	h.calm = true
	for _, p := range h.producers {
		for to := range h.partitions {
			for len(p.waiting[to]) > 0 {
				h.store(p, to)
			}
		}
	}
	for len(h.later) > 0 {
		h.happen()
	}
	h.Rest()
	h.subscribe("audit", Exclusive, false)
	for _, s := range h.subs {
		s.seeks = false
		for h.Missing(s.name) > 0 && h.reachable(s) || len(s.members) == 0 {
			h.consume(s)
			h.happen()
		}
	}
}

// reachable reports whether something that the subscription has not got is still
// before it, or on its way: a seek may have passed over the rest.
func (h *honest) reachable(s *honestSub) bool {
	for p, t := range s.parts {
		t.grow(len(h.partitions[p].stored))
		for index, m := range h.partitions[p].stored {
			n := h.messages[m.m]
			got := h.got[h.Log.subs[s.name]].messages
			if !t.acked[index] && (int(n) >= len(got) || !got[n]) {
				return true
			}
		}
	}
	return false
}
