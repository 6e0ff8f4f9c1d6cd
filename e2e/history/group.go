package history

import (
	"slices"

	"github.com/magnetar-io/magnetar/client"
)

// group is what is known of a subscription so far.
type group struct {
	kind  Kind
	got   []bool  // by message
	spots []spot  // by rank
	parts []track // by dense partition
}

// spot is a position as a subscription stands to it. Fields name the newest event
// of their kind; none: -1.
type spot struct {
	got    int32
	holder int32 // consumer that got it last
	asked  int32 // an acknowledgement of it alone began
	acked  int32 // one was answered that no seek voids
	nacked int32 // since it was got last
}

// track is a partition as a subscription stands to it.
type track struct {
	frontier int32 // rank in front of which all was got, acknowledged or passed over by a seek
	server   int32 // consumer that got something last; none: -1
	highest  int32 // rank that was got; none: -1
	asked    int32 // rank through which a cumulative acknowledgement began
	acked    int32 // rank through which one was answered that no seek voids

	// Seeks. While one is under way, deliveries may come from before or behind it.
	// Where the subscription stands afterwards shows the first delivery that is
	// surely from behind it.
	underWay int
	several  bool  // were under way at once: which one was the last nobody knows
	open     bool  // where the subscription stands is not known
	began    int32 // event that began the newest; none: -1
	last     int32 // event that began or ended one; none: -1
	// What a seek may have passed over: what is below a rank, and what was published
	// before a time; all, while a seek to the latest is under way.
	below   int32
	before  int64 // ns since 1970
	latests int
}

// view is a partition as a consumer sees it.
type view struct {
	since int32 // event: it joined, or opened its stream
	acked int32 // track.acked then
	last  int32 // highest rank it got since it serves or was taken elsewhere; none: -1
	seek  int32 // event that ended its own seek; none: -1
	floor int32 // rank where that went; none, or something came since: -1
}

// begin makes room for the subscriptions.
func (c *checker) begin() {
	for _, s := range c.h.subs {
		g := group{kind: s.kind, got: make([]bool, len(c.messages)),
			spots: slices.Repeat([]spot{{got: -1, holder: -1, asked: -1, acked: -1, nacked: -1}}, len(c.ids))}
		for p := range c.count() {
			g.parts = append(g.parts, track{frontier: c.first[p], server: -1, highest: -1, asked: -1, acked: -1, began: -1, last: -1, below: -1})
		}
		c.subs = append(c.subs, g)
	}
	c.views = make([]view, len(c.h.consumers)*c.count())
	c.left = make([]bool, len(c.h.consumers))
}

func (c *checker) count() int { return len(c.first) - 1 }

func (c *checker) view(consumer, partition int32) *view {
	return &c.views[int(consumer)*c.count()+int(partition)]
}

// consumers follows what consumers do other than receive.
func (c *checker) consumers(i int32, e *event) {
	g := &c.subs[c.h.consumers[e.consumer].sub]
	at := c.at[i]
	switch e.what {
	case joined:
		for p := range g.parts {
			c.opens(i, g, e.consumer, int32(p))
		}
	case opened:
		if p, ok := c.partitions[e.id.Partition]; ok {
			c.opens(i, g, e.consumer, p)
		}
	case leaving:
		c.left[e.consumer] = true
	case nacked:
		if at >= 0 {
			g.spots[at].nacked = i
		}
	case acking:
		switch {
		case at < 0:
		case e.all:
			t := &g.parts[c.part[at]]
			t.asked = max(t.asked, at)
		default:
			g.spots[at].asked = i
		}
	case ackEnded:
		if at < 0 || !e.ok {
			return
		}
		t := &g.parts[c.part[at]]
		if t.underWay > 0 || e.began < t.last {
			return // the seek may have undone it
		}
		if e.all {
			t.acked = max(t.acked, at)
		} else {
			g.spots[at].acked = i
		}
	case seeking:
		c.sought(e, g, func(p int32, t *track) {
			t.several = t.several || t.underWay > 0
			t.underWay++
			t.began, t.last, t.acked, t.asked = i, i, -1, -1
			switch e.to {
			case toMessage, toAfter:
				t.below = max(t.below, c.rankFrom(p, e))
			case toLatest:
				t.latests++
			case toTime:
				t.before = max(t.before, e.time)
			}
		})
	case seekEnded:
		if !e.ok {
			return
		}
		c.sought(e, g, func(p int32, t *track) {
			t.underWay--
			t.last, t.open = i, true
			if e.to == toLatest {
				t.latests--
				t.before = max(t.before, e.at)
			}
			if t.several {
				t.several = t.underWay > 0
				return
			}
			v := c.view(e.consumer, p)
			v.seek, v.last, v.floor = i, -1, c.first[p]
			if e.to == toMessage || e.to == toAfter {
				v.floor = c.rankFrom(p, e)
			}
		})
	}
}

// opens says that a consumer gets nothing any more that was sent before.
func (c *checker) opens(i int32, g *group, consumer, p int32) {
	t := &g.parts[p]
	*c.view(consumer, p) = view{since: i, acked: t.acked, last: -1, seek: -1, floor: -1}
}

// sought does something to every partition that a seek concerns.
func (c *checker) sought(e *event, g *group, do func(p int32, t *track)) {
	if e.to == toMessage || e.to == toAfter {
		if p, ok := c.partitions[e.id.Partition]; ok {
			do(p, &g.parts[p])
		}
		return
	}
	for p := range g.parts {
		do(int32(p), &g.parts[p])
	}
}

// rankFrom is the first rank that a seek to a message leaves to be delivered.
func (c *checker) rankFrom(p int32, e *event) int32 {
	of := c.ids[c.first[p]:c.first[p+1]]
	n, found := slices.BinarySearchFunc(of, e.id, client.MessageID.Compare)
	if found && e.to == toAfter {
		n++
	}
	return c.first[p] + int32(n)
}

// delivered judges a delivery as one of its subscription.
func (c *checker) delivered(i int32, e *event) {
	g := &c.subs[c.h.consumers[e.consumer].sub]
	at := c.at[i]
	p := c.part[at]
	t, v, s := &g.parts[p], c.view(e.consumer, p), &g.spots[at]
	if c.deleted >= 0 && c.messages[e.message].begun < c.deleted && v.since > c.deleted {
		c.note(AfterDelete, i, at, e.message, -1, "%s: %s was got at %s by %s, which came after the topic had been deleted", c.subName(e), c.h.messages[e.message], e.id, c.h.consumers[e.consumer].name)
	}
	c.again(i, e, g, t, v, s)
	if g.kind.ordered() {
		c.inOrder(i, e, g, t, v, s)
	}
	g.got[e.message] = true
	t.highest = max(t.highest, at)
	s.got, s.holder, s.nacked = i, e.consumer, -1
}

func (c *checker) subName(e *event) string { return c.h.subs[c.h.consumers[e.consumer].sub].name }

// again judges a delivery of what was acknowledged or is held by another consumer.
func (c *checker) again(i int32, e *event, g *group, t *track, v *view, s *spot) {
	at, name := c.at[i], c.h.messages[e.message]
	acked := s.acked > t.last || t.acked >= at
	switch {
	case s.got < 0:
	case s.got < t.began:
		c.v.Replayed++
	default:
		c.v.Redelivered++
		if acked {
			c.v.AfterAck++
		}
	}
	if t.underWay > 0 {
		return
	}
	if v.since > t.last && (s.acked > t.last && s.acked < v.since || v.acked >= at) {
		c.note(AckUndone, i, at, e.message, -1, "%s: %s was got at %s by %s, which came after its acknowledgement had been answered", c.subName(e), name, e.id, c.h.consumers[e.consumer].name)
	}
	if g.kind != Exclusive || s.holder < 0 || s.holder == e.consumer || c.left[s.holder] {
		return
	}
	if s.asked < s.got && t.asked < at && s.nacked < 0 && s.got > t.last && c.view(s.holder, c.part[at]).since < s.got {
		c.note(TwoHolders, i, at, e.message, -1, "%s: %s was got at %s by %s while %s held it", c.subName(e), name, e.id, c.h.consumers[e.consumer].name, c.h.consumers[s.holder].name)
	}
}

// inOrder judges the order of an ordered subscription's deliveries.
func (c *checker) inOrder(i int32, e *event, g *group, t *track, v *view, s *spot) {
	at := c.at[i]
	if t.server != e.consumer { // another one serves now, from the first unacknowledged on
		t.server, v.last = e.consumer, -1
	}
	if t.underWay > 0 || v.since < t.last && v.seek != t.last {
		return // from before a seek, or from behind it
	}
	who, name := c.h.consumers[e.consumer].name, c.h.messages[e.message]
	if at < v.floor {
		c.note(NonmonotonicPoll, i, at, e.message, -1, "%s: %s got %s at %s, which is in front of where it had sought", c.subName(e), who, name, e.id)
	}
	v.floor = -1
	if t.open {
		t.open, t.frontier = false, at+1
	}
	if at <= v.last && e.n == 0 && s.nacked < 0 {
		c.note(NonmonotonicPoll, i, at, e.message, c.contents[v.last], "%s: %s got %s at %s after %s", c.subName(e), who, name, e.id, c.ids[v.last])
	}
	for q := t.frontier; q < at; q++ {
		if f := &g.spots[q]; f.got <= t.began && f.asked <= t.began && q > t.asked {
			c.note(PollSkip, i, at, e.message, c.contents[q], "%s: %s got %s at %s and not what is at %s before it", c.subName(e), who, name, e.id, c.ids[q])
			break
		}
	}
	t.frontier = max(t.frontier, at+1)
	v.last = max(v.last, at)
}

// missing judges what was acknowledged and never came.
func (c *checker) missing() {
	for n, g := range c.subs {
		name := c.h.subs[n].name
		for m := range c.messages {
			f := &c.messages[m]
			if g.got[m] {
				c.v.Delivered[name]++
				continue
			}
			if f.outcome != OK {
				continue
			}
			at := f.at()
			if at < 0 {
				c.note(Unseen, f.begun, -1, int32(m), -1, "%s: %s was acknowledged and never got", name, c.h.messages[m])
				continue
			}
			t := &g.parts[c.part[at]]
			if at < t.below || t.latests > 0 || f.begun >= 0 && c.h.events[f.begun].at < t.before {
				continue // a seek passed over it
			}
			a := Unseen
			if at < t.highest {
				a = LostWrite
			}
			c.note(a, f.begun, at, int32(m), -1, "%s: %s was acknowledged, is at %s, and was never got", name, c.h.messages[m], c.ids[at])
		}
	}
}
