package history

import (
	"fmt"
	"slices"
	"time"

	"github.com/magnetar-io/magnetar/client"
)

// Check judges all that was recorded, after the subscriptions were drained. What
// is recorded meanwhile is not judged.
func (l *Log) Check() *Verdict {
	l.mu.Lock()
	h := l.h // what it holds by now is not altered any more
	l.mu.Unlock()
	return h.check()
}

// checker goes over a record once. Positions are known by their rank: the index in
// the sorted list of all that were acknowledged or delivered, partition after
// partition.
type checker struct {
	h *record
	v *Verdict

	ids        []client.MessageID // by rank
	at         []int32            // rank by event; none: -1
	partitions map[int32]int32    // dense numbers of partitions
	first      []int32            // rank by dense partition; one more, the end
	part       []int32            // dense partition by rank

	messages []fate
	contents []int32 // message by rank; none yet: -1
	sent     []int32 // highest rank by producer and partition
	acked    []int32 // highest acknowledged rank by partition
	deleted  int32   // event; not: -1

	subs  []group
	views []view // by consumer and dense partition
	left  []bool // by consumer

	lastOK, lastGot int64 // times of events
}

// fate of a message.
type fate struct {
	begun    int32 // event; not yet: -1
	rank     int32 // where it was acknowledged; not known: -1
	got      int32 // where it was delivered first; not: -1
	producer int32
	outcome  Outcome
	noted    uint16 // anomalies that were counted for it
}

// at is where the message is, -1 when nobody told.
func (f *fate) at() int32 {
	if f.rank >= 0 {
		return f.rank
	}
	return f.got
}

func (h *record) check() *Verdict {
	c := &checker{h: h, v: &Verdict{Delivered: map[string]int{}}, deleted: -1}
	c.index()
	c.fates()
	c.begin()
	for i := range h.events {
		c.step(int32(i), &h.events[i])
	}
	c.missing()
	c.describe()
	return c.v
}

// index ranks the positions.
func (c *checker) index() {
	h := c.h
	c.at = make([]int32, len(h.events))
	numbers := make(map[client.MessageID]int32, len(h.messages))
	for i := range h.events {
		e := &h.events[i]
		if e.what == delivered || e.what == published && e.outcome == OK && e.id.Known() {
			if _, ok := numbers[e.id]; !ok {
				numbers[e.id] = 0
				c.ids = append(c.ids, e.id)
			}
		}
	}
	slices.SortFunc(c.ids, func(a, b client.MessageID) int {
		if a.Partition != b.Partition {
			return int(a.Partition) - int(b.Partition)
		}
		return a.Compare(b)
	})
	c.partitions = map[int32]int32{}
	c.part = make([]int32, len(c.ids))
	for rank, id := range c.ids {
		numbers[id] = int32(rank)
		p, ok := c.partitions[id.Partition]
		if !ok {
			p = int32(len(c.partitions))
			c.partitions[id.Partition] = p
			c.first = append(c.first, int32(rank))
		}
		c.part[rank] = p
	}
	c.first = append(c.first, int32(len(c.ids)))
	for i := range h.events {
		c.at[i] = -1
		switch e := &h.events[i]; e.what {
		case published, delivered, acking, ackEnded, nacked:
			if rank, ok := numbers[e.id]; ok {
				c.at[i] = rank
			}
		}
	}
}

// fates learns how every publish ended and where every message is.
func (c *checker) fates() {
	producers := map[string]int32{}
	c.messages = make([]fate, len(c.h.messages))
	for i, m := range c.h.messages {
		p, ok := producers[m.Producer]
		if !ok {
			p = int32(len(producers))
			producers[m.Producer] = p
		}
		c.messages[i] = fate{begun: -1, rank: -1, got: -1, producer: p}
	}
	for i := range c.h.events {
		switch e := &c.h.events[i]; e.what {
		case publishing:
			c.v.Published++
		case published:
			m := &c.messages[e.message]
			m.outcome = e.outcome
			switch e.outcome {
			case OK:
				c.v.OK++
				m.rank = c.at[i]
			case Unknown:
				c.v.Unknown++
			case Failed:
				c.v.Failed++
			}
		case delivered:
			if m := &c.messages[e.message]; m.got < 0 {
				m.got = c.at[i]
			}
		}
	}
	c.sent = fill(len(producers)*c.count(), -1)
	c.acked = fill(c.count(), -1)
	c.contents = fill(len(c.ids), -1)
}

func fill(n int, value int32) []int32 { return slices.Repeat([]int32{value}, n) }

// step judges one event.
func (c *checker) step(i int32, e *event) {
	switch e.what {
	case publishing:
		c.publishing(i, e)
	case published:
		c.published(i, e)
	case rested:
		c.lastOK, c.lastGot = 0, 0
	case delivered:
		if c.lastGot != 0 {
			c.v.DeliveryGap = max(c.v.DeliveryGap, time.Duration(e.at-c.lastGot))
		}
		c.lastGot = e.at
		c.value(i, e)
		c.delivered(i, e)
	case ownerMoved:
		c.v.Owners++
	case deleted:
		c.deleted = i
	default:
		c.consumers(i, e)
	}
}

// publishing judges the order of positions: a message stands behind what its
// producer published before, and behind all that was acknowledged before it began.
func (c *checker) publishing(i int32, e *event) {
	m := &c.messages[e.message]
	m.begun = i
	at := m.at()
	if at < 0 {
		return
	}
	p := c.part[at]
	sent := &c.sent[int(m.producer)*c.count()+int(p)]
	if *sent > at {
		c.note(NonmonotonicSend, i, at, e.message, c.contents[*sent], "%s is at %s, and what its producer published before it at %s", c.h.messages[e.message], c.ids[at], c.ids[*sent])
	}
	*sent = max(*sent, at)
	if c.acked[p] > at {
		c.note(OrderOfIDs, i, at, e.message, c.contents[c.acked[p]], "%s is at %s, and began after %s had been acknowledged", c.h.messages[e.message], c.ids[at], c.ids[c.acked[p]])
	}
}

func (c *checker) published(i int32, e *event) {
	if e.outcome != OK {
		return
	}
	if c.lastOK != 0 {
		c.v.PublishGap = max(c.v.PublishGap, time.Duration(e.at-c.lastOK))
	}
	c.lastOK = e.at
	if at := c.at[i]; at >= 0 {
		c.holds(i, at, e.message)
		c.acked[c.part[at]] = max(c.acked[c.part[at]], at)
	}
}

// holds says that a position holds a message.
func (c *checker) holds(i, at, message int32) {
	switch other := c.contents[at]; other {
	case -1:
		c.contents[at] = message
	case message:
	default:
		c.once(message, InconsistentOffsets, i, at, other, "%s holds %s and %s", c.ids[at], c.h.messages[other], c.h.messages[message])
	}
}

// value judges what a delivery says about its message, whoever got it.
func (c *checker) value(i int32, e *event) {
	at, m, name := c.at[i], &c.messages[e.message], c.h.messages[e.message]
	c.holds(i, at, e.message)
	switch {
	case m.begun < 0:
		c.once(e.message, Invented, i, at, -1, "%s was got at %s before anybody published it", name, e.id)
	case m.outcome == Failed:
		c.once(e.message, AbortedRead, i, at, -1, "%s was refused and got at %s", name, e.id)
	case m.rank >= 0 && m.rank != at:
		c.once(e.message, Invented, i, at, -1, "%s was got at %s and acknowledged at %s", name, e.id, c.ids[m.rank])
	}
	if m.got != at {
		c.once(e.message, Duplicate, i, at, -1, "%s was got at %s and at %s", name, c.ids[m.got], e.id)
	}
}

// once notes an anomaly of a message, at most once for each message.
func (c *checker) once(message int32, a Anomaly, i, at, other int32, format string, args ...any) {
	if m := &c.messages[message]; m.noted&(1<<a) == 0 {
		m.noted |= 1 << a
		c.note(a, i, at, message, other, format, args...)
	}
}

// note counts an anomaly that event i shows, of a position and up to two messages.
func (c *checker) note(a Anomaly, i, at, message, other int32, format string, args ...any) {
	if c.v.Found[a]++; c.v.Found[a] <= described {
		c.v.Findings = append(c.v.Findings, Finding{Anomaly: a, What: fmt.Sprintf(format, args...), event: i, messages: [2]int32{message, other}, rank: at})
	}
}
